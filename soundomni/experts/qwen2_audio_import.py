"""A directory of Hugging Face with a Qwen2-Audio model, as a model directory that hears as that model does.

The language model becomes the understanding stream, bit for bit. The generation stream starts as a copy of it, narrower where
`gen_intermediate_dim` says so; codec, latent connector, objective and sampler are those of a spec. Tensors are read, joined and
written shard by shard, so that memory holds one shard, whatever the size of the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from soundomni.core import yaml_text
from soundomni.core.assembly import build_model
from soundomni.core.errors import CheckpointError, SpecError
from soundomni.core.interfaces import Codec
from soundomni.core.model_directory import portable, write_model
from soundomni.core.model_weights import MAX_SHARD_BYTES
from soundomni.core.normalizer import LatentNormalizer
from soundomni.core.registry import build
from soundomni.core.schema import Spec
from soundomni.core.spec import changed_keys, load_spec, resolve, spec_to_dict
from soundomni.core.tokenizer import FILE_NAME as TOKENIZER_FILE
from soundomni.core.tokenizer import TextTokenizer
from soundomni.core.weight_files import WeightFile, digest, read_weights
from soundomni.experts.qwen2_audio_config import SourceConfig, read_source_config
from soundomni.experts.qwen2_audio_layout import Layout, Rows, check_depth, check_rows, find_layout, hearing_rows, language_rows
from soundomni.experts.swiglu import kept_channels

REPORT_FILE = "import-report.json"
FORMAT = 1
KIND = "qwen2-audio"
UND, GEN = "und", "gen"

_BACKBONE = ("gen_intermediate_dim", "qk_norm", "copy_initialise")
_MODEL = ("codec", "connectors.latent", "objective", "latent_positions", "normalise", "freeze", "tokenizer", "chat")
FREE = (
    *(f"model.backbone.init_args.{name}" for name in _BACKBONE),
    *(f"model.{name}" for name in _MODEL),
    *("sampler", "guidance", "data", "train"),
)
"""What layers of a spec may change; the rest follows from the checkpoint."""


class LazyState(Mapping[str, Tensor]):
    """The tensors of a model by name, each made anew when it is asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


@dataclass(frozen=True)
class ImportedModel:
    """A checkpoint that fits its config and a spec; nothing large of it has been read.

    Args:
        weights, layout, config, tokenizer: of the source.
        spec: of the model directory.
        state: the tensors of the model.
        parameters: how many there are.
        sample_rate: of what will be generated, in Hz.
        used: tensor of the source → parameter here.
        unused: what else the source holds → why it is not used.
        notes: what was decided, for the report.
    """

    weights: WeightFile
    layout: Layout
    config: SourceConfig
    tokenizer: TextTokenizer
    spec: Spec
    state: Mapping[str, Tensor]
    parameters: int
    sample_rate: int
    used: Mapping[str, str]
    unused: Mapping[str, str]
    notes: tuple[str, ...]

    def report(self) -> dict[str, Any]:
        """Returns what import-report.json says, as plain data; reads the source whole for its checksums."""
        return {
            "format": FORMAT,
            "kind": KIND,
            "source": {"name": self.weights.path.resolve().name, "files": {file.name: digest(file) for file in self.weights.files}},
            "layout": self.layout.name,
            "parameters": self.parameters,
            "notes": list(self.notes),
            "keys": {"used": dict(self.used), "unused": dict(self.unused), "missing": [], "unexpected": []},
        }


def import_qwen2_audio(
    source: str | Path, *, layers: Sequence[Path | str] = (), overrides: Sequence[tuple[str, str]] = ()
) -> ImportedModel:
    """Finds out where every tensor of a checkpoint goes.

    Args:
        source: a directory with config.json, tokenizer.json and weights in safetensors or pickles, sharded or not.
        layers, overrides: of a spec, for what generates: codec, latent connector, objective, sampler, and of the backbone
            gen_intermediate_dim and qk_norm. Without any: MDCT frames at 16 kHz, and a generation stream as wide as the other.

    Raises:
        CheckpointError: a file is missing or damaged, or of another model.
        SpecError: a layer is wrong, or contradicts the checkpoint.
    """
    directory = Path(source)
    if not directory.is_dir():
        raise CheckpointError(f"'{source}' is not a directory: expected one of Hugging Face with a Qwen2-Audio model")
    config = read_source_config(directory)
    weights = read_weights(directory)
    layout = find_layout(weights)
    check_depth(weights, layout.language, config.language.num_layers)
    check_depth(weights, layout.tower, config.encoder["num_layers"])
    tokenizer = _read_tokenizer(directory, config)
    rows = max(config.language.vocab_size, tokenizer.vocab_size)
    tied = config.tied and f"{layout.head}weight" not in weights
    spec = _spec(base_layer(config, vocab_rows=rows, tied=tied), layers, overrides)
    with torch.device("meta"):
        shell = build_model(portable(spec).model, vocab_size=tokenizer.vocab_size)
    shapes = {name: tuple(tensor.shape) for name, tensor in shell.state_dict().items()}
    head = None if tied else layout.head
    sources = dict(language_rows(config.language, language=layout.language, head=head, stream=UND))
    sources |= dict(hearing_rows(layout, shapes))
    unused = check_rows(weights, [one for parts in sources.values() for one in parts])
    state = LazyState(_makers(weights, sources, shapes, _fresh(spec)))
    return ImportedModel(
        weights=weights,
        layout=layout,
        config=config,
        tokenizer=tokenizer,
        spec=portable(spec),
        state=state,
        parameters=sum(parameter.numel() for parameter in shell.parameters()),
        sample_rate=shell.codec.spec.sample_rate,
        used={one.name: ours for ours, parts in sources.items() for one in parts},
        unused=unused,
        notes=tuple(_notes(directory, config, tokenizer, spec)),
    )


def write_imported(
    imported: ImportedModel, folder: Path, *, licence: str | None = None, max_shard_bytes: int = MAX_SHARD_BYTES
) -> dict[str, Any]:
    """Writes the model directory, weights in the precision of the source, and returns the report.

    Args:
        imported: what to write.
        folder: an empty folder.
        licence: of the weights, as their owner names it; None for unknown.
        max_shard_bytes: beyond this, weights are stored in several files with an index.
    """
    report = imported.report() | {"licence": licence}
    write_model(
        folder,
        imported.spec,
        imported.state,
        imported.tokenizer,
        parameters=imported.parameters,
        sample_rate=imported.sample_rate,
        max_tokens=imported.config.max_tokens,
        card=_card(report),
        dtype=None,
        max_shard_bytes=max_shard_bytes,
    )
    (folder / REPORT_FILE).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return report


def base_layer(config: SourceConfig, *, vocab_rows: int, tied: bool) -> dict[str, Any]:
    """Returns the layer of a spec that a checkpoint stands for, with the simplest of what generates."""
    language = config.language
    backbone = {
        "hidden_dim": language.hidden_dim,
        "num_layers": language.num_layers,
        "num_heads": language.num_heads,
        "num_kv_heads": language.num_kv_heads,
        "head_dim": language.head_dim,
        "intermediate_dim": language.intermediate_dim,
        "rope_theta": config.rope_theta,
        "norm_eps": config.norm_eps,
        "tie_embeddings": tied,
        "vocab_rows": vocab_rows,
    }
    model = {
        "backbone": {"class_path": "mot", "init_args": backbone},
        "router": "modality",
        "codec": {"class_path": "mdct", "init_args": {"sample_rate": 16000, "frame_size": 320}},
        "encoder": {"class_path": "qwen2-audio", "init_args": dict(config.encoder)},
        "connectors": {"latent": "linear", "features": "linear"},
        "objective": "flow-matching",
        "freeze": [UND, "embedding", "encoder"],
        "feature_positions": "advance",
        "feature_attend": "causal",
        "normalise": "global",
        "chat": "qwen2-audio",
    }
    return {"model": model, "sampler": "euler"}


def _spec(base: Mapping[str, Any], layers: Sequence[Path | str], overrides: Sequence[tuple[str, str]]) -> Spec:
    """Returns the spec of base and layers. Raises SpecError when a layer changes what the checkpoint fixes."""
    spec = load_spec([base, *layers], overrides)
    changed = changed_keys(spec_to_dict(resolve(load_spec([base]))), spec_to_dict(resolve(spec)), may_change=FREE)
    if changed:
        raise SpecError(f"a layer changes what follows from the checkpoint: {changed[0]}; leave it out")
    chosen = spec.model.backbone.init_args
    if chosen.get("qk_norm") == "all":
        raise SpecError("model.backbone.qk_norm: 'all' would change what the language model computes; give 'gen' or 'none'")
    narrow, wide = chosen.get("gen_intermediate_dim"), chosen["intermediate_dim"]
    if narrow is not None and narrow > wide:
        raise SpecError(f"model.backbone.gen_intermediate_dim is {narrow}; a copy of the language model has at most {wide}")
    return spec


def _read_tokenizer(directory: Path, config: SourceConfig) -> TextTokenizer:
    if not (directory / TOKENIZER_FILE).is_file():
        advice = f"`AutoTokenizer.from_pretrained('{directory}').save_pretrained('{directory}')` of transformers writes one"
        raise CheckpointError(f"no {TOKENIZER_FILE} in '{directory}'; {advice}")
    tokenizer = TextTokenizer.load(directory, extend=True)
    size = tokenizer.vocab_size - len(tokenizer.added)
    if size > config.language.vocab_size:
        raise CheckpointError(
            f"'{directory / TOKENIZER_FILE}' has ids up to {size - 1}, the embedding {config.language.vocab_size} rows: "
            "the tokenizer is of another model"
        )
    return tokenizer


def _fresh(spec: Spec) -> dict[str, Tensor]:
    """Returns the tensors of what the checkpoint does not have: codec, latent connector and normalisation, which are small."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        codec = cast(Codec, build("codec", spec.model.codec))
        token_dim, hidden_dim = codec.spec.token_dim, spec.model.backbone.init_args["hidden_dim"]
        sizes = {"token_dim": token_dim, "hidden_dim": hidden_dim, "generates": True}
        connector = cast(nn.Module, build("connector", spec.model.connectors.latent, **sizes))
        normalizer = LatentNormalizer(token_dim=token_dim, kind=spec.model.normalise)
    parts = {"codec": codec, "latent_connector": connector, "normalizer": normalizer}
    return {f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in module.state_dict().items()}


def _makers(
    weights: WeightFile, sources: Mapping[str, tuple[Rows, ...]], shapes: Mapping[str, tuple[int, ...]], fresh: Mapping[str, Tensor]
) -> dict[str, Callable[[], Tensor]]:
    """Returns how each tensor of the model, of `shapes`, is made."""
    makers: dict[str, Callable[[], Tensor]] = {}
    for name, shape in shapes.items():
        twin = name.replace(f".experts.{GEN}.", f".experts.{UND}.").replace(f"backbone.norms.{GEN}.", f"backbone.norms.{UND}.")
        if name in sources:
            makers[name] = partial(_joined, weights, sources[name], shape[0])
        elif twin != name and twin in sources:
            makers[name] = partial(_copy, weights, name, sources[twin], shape)
        elif name.endswith(("q_norm.weight", "k_norm.weight")):
            makers[name] = partial(torch.ones, shape)
        elif name in fresh:
            makers[name] = partial(fresh.__getitem__, name)
        else:
            raise SpecError(f"the spec asks for '{name}', which neither the checkpoint nor a new part has")
    return makers


def _joined(weights: WeightFile, parts: Sequence[Rows], num_rows: int) -> Tensor:
    """Reads the rows of a tensor; rows that no part has, of tokens that are new, are the mean of the others (Hewitt 2021)."""
    tensors = [weights[part.name] for part in parts]
    for part, tensor in zip(parts, tensors, strict=True):
        if not tensor.is_floating_point():
            raise CheckpointError(f"'{weights.path}': {part.name} is of {tensor.dtype}; quantised weights cannot be imported")
    joined = torch.cat(tensors) if len(tensors) > 1 else tensors[0].clone()
    new = num_rows - len(joined)
    if new:
        joined = torch.cat([joined, joined.float().mean(0).to(joined.dtype).expand(new, -1)])
    return joined


def _copy(weights: WeightFile, name: str, parts: Sequence[Rows], shape: tuple[int, ...]) -> Tensor:
    """Makes a tensor of the generation stream from the same of the other: the whole, or the channels that SwiGLU.copy_from takes."""
    whole = _joined(weights, parts, sum(part.shape[0] for part in parts))
    if tuple(whole.shape) == shape:
        return whole
    if name.endswith("mlp.down.weight"):
        return whole[:, kept_channels(shape[1], whole.shape[1])].contiguous()
    wide = len(whole) // 2
    chosen = kept_channels(shape[0] // 2, wide)
    return whole[torch.cat([chosen, chosen + wide])]


def _notes(directory: Path, config: SourceConfig, tokenizer: TextTokenizer, spec: Spec) -> Iterator[str]:
    backbone = spec.model.backbone.init_args
    narrow, wide = backbone.get("gen_intermediate_dim"), config.language.intermediate_dim
    if narrow is None or narrow == wide:
        yield "the generation expert is a copy of the language model"
    else:
        channels = f"channels floor(j * {wide} / {narrow}) of its feed-forward networks"
        yield f"the generation expert is a copy of the language model with {channels}"
    yield f"the latent connector is new, and nothing that generates is trained; codec {spec.model.codec.class_path}"
    if tokenizer.added:
        rows = config.language.vocab_size
        old = f"old rows are as they were, rows from {rows} on are their mean" if tokenizer.vocab_size > rows else "they take rows to spare"
        yield f"the tokenizer lacked {', '.join(tokenizer.added)}: {old}"
    if (others := _other_ends(directory, tokenizer)) is None:
        yield "generation_config.json cannot be read and is not used"
    elif others:
        yield f"generation_config.json ends texts at the ids {', '.join(map(str, others))} as well, which is not done here"


def _other_ends(directory: Path, tokenizer: TextTokenizer) -> list[int] | None:
    """Returns the ids that end texts by generation_config.json and not here; None when it cannot be read."""
    file = directory / "generation_config.json"
    if not file.is_file():
        return []
    try:
        ends = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, RecursionError, AttributeError):
        return None
    given = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return [end for end in given if end not in tokenizer.ends]


def _card(report: Mapping[str, Any]) -> str:
    files = "\n".join(f"| {name} | {entry['bytes']:,} | `{entry['sha256']}` |" for name, entry in report["source"]["files"].items())
    notes = "".join(f"- {note}\n" for note in report["notes"])
    front = yaml_text.render({"library_name": "soundomni", "license": report["licence"] or "unknown"})
    return (
        f"---\n{front}---\n\n# A Qwen2-Audio model\n\n"
        f"{report['parameters']:,} parameters, imported from the layout of {report['layout']} in `{report['source']['name']}`. "
        f"Licence of the weights: {report['licence'] or 'unknown; ask whoever gave them to you'}.\n\n"
        f"| file | bytes | SHA-256 |\n|---|---|---|\n{files}\n\n{notes}\n"
        '```python\nfrom soundomni import SoundOmni\n\nmodel = SoundOmni.from_pretrained(".")\n'
        'content = [{"type": "audio"}, {"type": "text", "text": "What can be heard?"}]\n'
        'answer = model.chat([{"role": "user", "content": content}], [clip])\n```\n\n'
        f"`{REPORT_FILE}` says where every tensor of the source went.\n"
    )
