"""A checkpoint built around a language model, as a model directory.

Each kind of checkpoint states, as a `Checkpoint`, which spec it stands for and which of its tensors make up each
parameter. The rest is shared: layers of a spec for what is free, a generation stream that starts as a copy if the
checkpoint has none, new rows for new special tokens, and new parts for those that the checkpoint does not have. Tensors
are read, joined and written shard by shard, so that memory only holds one shard, whatever the size of the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.normalizer import LatentNormalizer
from soundomni.core.assembly.uninitialized import without_memory
from soundomni.core.errors import CheckpointError, SpecError
from soundomni.core.files.names import REPORT_FILE
from soundomni.core.interfaces import Codec, Encoder, Objective
from soundomni.core.pretrained.directory import (
    Origin,
    front_matter,
    markdown_code,
    markdown_text,
    origin_of,
    portable,
    shown_license,
    spec_block,
    write_model,
)
from soundomni.core.pretrained.foreign_weights import WeightFile, read_floating
from soundomni.core.pretrained.import_report import report_start
from soundomni.core.pretrained.renamed_tensors import MODALITIES, part_of
from soundomni.core.pretrained.weights import MAX_SHARD_BYTES
from soundomni.core.representation import TokenSpec
from soundomni.core.spec.load import changed_keys, load_spec, resolve, spec_to_dict
from soundomni.core.spec.registry import build
from soundomni.core.spec.schema import Spec
from soundomni.core.spec.shorthand import written_model
from soundomni.core.tokenizer import FILE_NAME as TOKENIZER_FILE
from soundomni.core.tokenizer import TextTokenizer
from soundomni.experts.checkpoints.language_config import LanguageConfig, read_node
from soundomni.experts.checkpoints.language_layout import Rows, Shape, check_rows
from soundomni.experts.swiglu import kept_channels

UND, GEN = "und", "gen"

ALWAYS_FREE = ("sampler", "guidance", "data", "train", "model.start", "model.start_fresh")
"""Parts of a spec that no checkpoint determines."""

Sources = Mapping[str, tuple[Rows, ...]]
"""Parameter here → the tensors that make it up."""


class LazyState(Mapping[str, Tensor]):
    """The tensors of a model by name, each created when it is asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Description of a checkpoint by the importer of its kind.

    Args:
        kind: its name on the command line.
        title: what the model is, after "a", for its card and for errors.
        layout: name of the layout of its tensors, in words.
        weights: its tensors.
        config: config of its language model.
        tokenizer: its text tokenizer.
        base: the spec layer that it stands for.
        free: dotted keys of a spec that layers may change; the rest follows from the checkpoint.
        sources: function from the shapes of the model's parameters to the sources of those that the checkpoint has.
        known: prefix of tensors that are not used → why.
        notes: decisions that were made, for the report.
    """

    kind: str
    title: str
    layout: str
    weights: WeightFile
    config: LanguageConfig
    tokenizer: TextTokenizer
    base: Mapping[str, Any]
    free: Sequence[str]
    sources: Callable[[Mapping[str, Shape]], Sources]
    known: Mapping[str, str]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class ImportedModel:
    """A checkpoint that fits its config and a spec; no large part of it has been read yet.

    Args:
        checkpoint: where it comes from.
        spec: spec of the model directory.
        state: tensors of the model.
        parameters: number of parameters.
        sample_rate: sample rate of generated audio, in Hz.
        used: tensor of the source → parameter here.
        unused: other entry of the source → why it is not used.
        notes: decisions that were made, for the report.
        codec: where the codec's weights come from; None for a codec without weights.
    """

    checkpoint: Checkpoint
    spec: Spec
    state: Mapping[str, Tensor]
    parameters: int
    sample_rate: int
    used: Mapping[str, str]
    unused: Mapping[str, str]
    notes: tuple[str, ...]
    codec: Origin | None

    @property
    def layout(self) -> str:
        """Name of the layout of the source's tensors, in words."""
        return self.checkpoint.layout

    def report(self) -> dict[str, Any]:
        """Return the contents of import-report.json as plain data; reads the whole source for its checksums."""
        return {
            **report_start(self.checkpoint.kind, self.checkpoint.weights),
            "layout": self.layout,
            "parameters": self.parameters,
            "codec": None if self.codec is None else asdict(self.codec),
            "notes": list(self.notes),
            "keys": {"used": dict(self.used), "unused": dict(self.unused), "missing": [], "unexpected": []},
        }


def assemble(checkpoint: Checkpoint, *, layers: Sequence[Path | str] = (), overrides: Sequence[tuple[str, str]] = ()) -> ImportedModel:
    """Determine where every tensor of the model comes from.

    Args:
        checkpoint: the checkpoint to import.
        layers, overrides: of a spec, for what is free.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or is not explained by anything.
        SpecError: a layer is wrong, or contradicts the checkpoint.
    """
    spec = _spec(checkpoint, layers, overrides)
    with without_memory():
        shell = build_model(portable(spec).of_model, vocab_size=checkpoint.tokenizer.vocab_size)
    shapes = {name: tuple(tensor.shape) for name, tensor in shell.state_dict().items()}
    sources = checkpoint.sources(shapes)
    needed = [one for parts in sources.values() for one in parts]
    unused = check_rows(checkpoint.weights, needed, model=f"a {checkpoint.title}", known=checkpoint.known)
    makers = _makers(checkpoint.weights, sources, shapes, _new_parts(spec, sources, shapes))
    return ImportedModel(
        checkpoint=checkpoint,
        spec=portable(spec),
        state=LazyState(makers),
        parameters=sum(parameter.numel() for parameter in shell.parameters()),
        sample_rate=shell.made().sample_rate,
        used={one.name: ours for ours, parts in sources.items() for one in parts},
        unused=unused,
        notes=(*checkpoint.notes, *_notes(checkpoint, spec, sources)),
        codec=_codec_origin(spec),
    )


def write_imported(
    imported: ImportedModel, folder: Path, *, license: str | None = None, max_shard_bytes: int = MAX_SHARD_BYTES
) -> dict[str, Any]:
    """Write the model directory, with weights in the precision of the source, and return the report.

    Args:
        imported: the model to write.
        folder: an empty folder.
        license: license of the weights, as their owner names it; None for unknown.
        max_shard_bytes: beyond this, weights are stored in several files with an index.
    """
    report = imported.report() | {"license": license}
    write_model(
        folder,
        imported.spec,
        imported.state,
        imported.checkpoint.tokenizer,
        parameters=imported.parameters,
        sample_rate=imported.sample_rate,
        max_tokens=imported.checkpoint.config.max_tokens,
        origin=_origin(report),
        card=_card(imported, report),
        dtype=None,
        max_shard_bytes=max_shard_bytes,
    )
    (folder / REPORT_FILE).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return report


def backbone_slot(config: LanguageConfig, *, vocab_rows: int, tied: bool) -> dict[str, Any]:
    """Return the backbone for a language model, as plain data of a spec."""
    names = ("hidden_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "intermediate_dim", "rope_theta", "norm_eps")
    init_args = {name: getattr(config, name) for name in names}
    return {"class_path": "mot", "init_args": init_args | {"tie_embeddings": tied, "vocab_rows": vocab_rows}}


def read_tokenizer(directory: Path, *, rows: int) -> TextTokenizer:
    """Read the tokenizer.json of a directory and add the special tokens that it lacks.

    Args:
        directory: folder with the file.
        rows: rows of the embedding; a tokenizer with more ids belongs to another model.

    Raises:
        CheckpointError: it is missing, damaged or belongs to another model.
    """
    if not (directory / TOKENIZER_FILE).is_file():
        advice = f"`AutoTokenizer.from_pretrained('{directory}').save_pretrained('{directory}')` of transformers writes one"
        raise CheckpointError(f"no {TOKENIZER_FILE} in '{directory}'; {advice}")
    tokenizer = TextTokenizer.load(directory, extend=True)
    size = tokenizer.vocab_size - len(tokenizer.added)
    if size > rows:
        raise CheckpointError(
            f"'{directory / TOKENIZER_FILE}' has ids up to {size - 1}, but the embedding has {rows} rows; it belongs to another model"
        )
    return tokenizer


def _spec(checkpoint: Checkpoint, layers: Sequence[Path | str], overrides: Sequence[tuple[str, str]]) -> Spec:
    """Return the spec made of base and layers. Raise SpecError if a layer changes what the checkpoint determines."""
    spec = load_spec([checkpoint.base, *layers], overrides, base={})
    before, after = (spec_to_dict(resolve(one)) for one in (load_spec([checkpoint.base], base={}), spec))
    changed = changed_keys(before, after, may_change=(*checkpoint.free, *ALWAYS_FREE))
    if changed:
        raise SpecError(f"a layer changes what the checkpoint determines: {changed[0]}; leave it out")
    return spec


def _new_parts(spec: Spec, sources: Sources, shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """Return the tensors of parts that the checkpoint does not have; all of them are small compared to the backbone."""
    wanted = {part_of(name) for name in shapes if name not in sources}
    written = written_model(spec.of_model)
    hidden_dim = spec.of_model.backbone.init_args["hidden_dim"]
    parts: dict[str, nn.Module] = {}

    def connector(slot: Any, tokens: TokenSpec, generates: bool) -> nn.Module:
        return cast(nn.Module, build("connector", slot, tokens=tokens, hidden_dim=hidden_dim, generates=generates))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        codec = cast(Codec, build("codec", written.codec))
        parts = {"latent.codec": codec, "latent.normalizer": LatentNormalizer.of(codec.spec, written.normalize)}
        if "latent.connector" in wanted:
            objective = cast(Objective, build("objective", written.objective))
            parts["latent.connector"] = connector(written.connectors.latent, objective.tokens(codec.spec), True)
        if {"features.encoder", "features.connector"} & wanted and written.encoder is not None:
            encoder = cast(Encoder, build("encoder", written.encoder))
            parts["features.encoder"] = encoder
            features = TokenSpec(encoder.spec.tokens, encoder.spec.tokens)
            parts["features.connector"] = connector(written.connectors.features, features, False)
    return {f"{MODALITIES}{part}.{name}": tensor for part, module in parts.items() for name, tensor in module.state_dict().items()}


def _makers(
    weights: WeightFile, sources: Sources, shapes: Mapping[str, Shape], new: Mapping[str, Tensor]
) -> dict[str, Callable[[], Tensor]]:
    """Return a function for each tensor of the model, by name, that makes it."""
    makers: dict[str, Callable[[], Tensor]] = {}
    for name, shape in shapes.items():
        twin = name.replace(f".experts.{GEN}.", f".experts.{UND}.").replace(f"backbone.norms.{GEN}.", f"backbone.norms.{UND}.")
        if name in sources:
            makers[name] = partial(_joined, weights, sources[name], shape[0])
        elif twin != name and twin in sources:
            makers[name] = partial(_copy, weights, name, sources[twin], shape)
        elif name.endswith(("q_norm.weight", "k_norm.weight")):
            makers[name] = partial(torch.ones, shape)
        elif name in new:
            makers[name] = partial(new.__getitem__, name)
        else:
            raise SpecError(f"the spec asks for '{name}', which is neither in the checkpoint nor in a new part")
    return makers


def _joined(weights: WeightFile, parts: Sequence[Rows], num_rows: int) -> Tensor:
    """Read the rows of a tensor; rows of new tokens, which no part has, are the mean of the others (Hewitt 2021)."""
    tensors = [read_floating(weights, part.name) for part in parts]
    joined = torch.cat(tensors) if len(tensors) > 1 else tensors[0].clone()
    new = num_rows - len(joined)
    if new:
        joined = torch.cat([joined, joined.float().mean(0).to(joined.dtype).expand(new, -1)])
    return joined


def _copy(weights: WeightFile, name: str, parts: Sequence[Rows], shape: Shape) -> Tensor:
    """Make a tensor of the generation stream from that of the other: the whole, or the channels that SwiGLU.copy_from
    takes."""
    whole = _joined(weights, parts, sum(part.shape[0] for part in parts))
    if tuple(whole.shape) == shape:
        return whole
    if name.endswith("mlp.down.weight"):
        return whole[:, kept_channels(shape[1], whole.shape[1])].contiguous()
    wide = len(whole) // 2
    chosen = kept_channels(shape[0] // 2, wide)
    return whole[torch.cat([chosen, chosen + wide])]


def _notes(checkpoint: Checkpoint, spec: Spec, sources: Sources) -> Iterator[str]:
    named = (("latent.connector", "latent connector"), ("features.encoder", "encoder"))
    new = [what for part, what in named if _is_new(part, spec, sources)]
    if new:
        untrained = ", and no part that generates is trained" if "latent connector" in new else ""
        yield f"new and untrained: {' and '.join(new)}{untrained}; codec {spec.of_model.codec.class_path}"
    added, rows = checkpoint.tokenizer.added, checkpoint.config.vocab_size
    if added:
        old = (
            f"old rows are unchanged, rows from {rows} on are their mean"
            if checkpoint.tokenizer.vocab_size > rows
            else "they use spare rows"
        )
        yield f"the tokenizer lacked {', '.join(added)}: {old}"


def _is_new(part: str, spec: Spec, sources: Sources) -> bool:
    present = part != "features.encoder" or bool(spec.of_model.all_heard)
    return present and not any(part_of(name) == part for name in sources)


def _codec_origin(spec: Spec) -> Origin | None:
    """Return where the weights of a codec come from, as the report next to them says; None for a codec without
    weights."""
    given = spec.of_model.codec.init_args.get("weights")
    if given is None:
        return None
    report = Path(given).parent / REPORT_FILE
    if not report.is_file():
        return Origin(source=Path(given).name)
    said = read_node(report, "the report of an import")
    source = said.node("source").values.get("name")
    return origin_of({**said.values, "source": source or Path(given).name}, report)


def _origin(report: Mapping[str, Any]) -> Origin:
    """Return where all weights come from, including the codec's."""
    license, source, codec = report["license"], report["source"]["name"], report["codec"]
    if codec is None:
        return Origin(license=license, source=source)
    return Origin(
        license=f"{license or 'unknown'}; of the codec: {codec['license'] or 'unknown'}", source=f"{source}, codec {codec['source']}"
    )


def _card(imported: ImportedModel, report: Mapping[str, Any]) -> str:
    files = "\n".join(
        f"| {markdown_code(name)} | {entry['bytes']:,} | `{entry['sha256']}` |" for name, entry in report["source"]["files"].items()
    )
    source = markdown_code(report["source"]["name"])
    notes = "".join(f"- {markdown_text(note)}\n" for note in report["notes"])
    return (
        f"---\n{front_matter(_origin(report))}---\n\n# A {imported.checkpoint.title}\n\n"
        f"{report['parameters']:,} parameters, imported from the layout of {report['layout']} in {source}. "
        f"License of the weights: {shown_license(_origin(report))}.\n\n"
        f"| file | bytes | SHA-256 |\n|---|---|---|\n{files}\n\n{notes}\n"
        f"```python\n{_snippet(imported.spec)}```\n\n"
        f"`{REPORT_FILE}` says where every tensor of the source went.\n\n{spec_block(imported.spec)}"
    )


def _snippet(spec: Spec) -> str:
    """Return an example of how to use the model, in Python."""
    start = 'from soundomni import SoundOmni\n\nmodel = SoundOmni.from_pretrained(".")\n'
    if spec.of_model.chat != "none":
        content = 'content = [{"type": "audio"}, {"type": "text", "text": "What can be heard?"}]\n'
        return f'{start}{content}answer = model.chat([{{"role": "user", "content": content}}], [clip])\n'
    return f'{start}clip = model.generate(["a dog barks"], seconds=4.0)[0]\n'
