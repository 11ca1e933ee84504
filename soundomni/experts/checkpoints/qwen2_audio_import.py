"""A Hugging Face directory with a Qwen2-Audio model, as a model directory that hears as that model does.

The language model becomes the understanding stream, bit for bit. The generation stream starts as a copy of it, narrower
if `gen_intermediate_dim` says so; codec, latent connector, objective and sampler come from a spec.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from soundomni.core.errors import CheckpointError, SpecError
from soundomni.core.files.json_objects import read_object
from soundomni.core.pretrained.foreign_weights import read_weights
from soundomni.core.spec.load import load_spec
from soundomni.core.spec.provenance import own_names
from soundomni.core.spec.schema import Spec
from soundomni.core.tokenizer import TextTokenizer
from soundomni.experts.checkpoints.language_config import LanguageConfig
from soundomni.experts.checkpoints.language_import import UND, Checkpoint, ImportedModel, Sources, assemble, backbone_slot, read_tokenizer
from soundomni.experts.checkpoints.language_layout import Expert, Shape, check_depth, expert_rows, named_rows, shared_rows
from soundomni.experts.checkpoints.qwen2_audio_config import SourceConfig, read_source_config
from soundomni.experts.checkpoints.qwen2_audio_layout import Layout, find_layout

KIND = "qwen2-audio"

_BACKBONE = ("gen_intermediate_dim", "qk_norm", "copy_initialize")
_MODEL = ("codec", "connectors.latent", "objective", "latent_positions", "normalize", "freeze", "tokenizer", "chat")
FREE = (*(f"model.backbone.init_args.{name}" for name in _BACKBONE), *(f"model.{name}" for name in _MODEL))
"""Keys that layers of a spec may change, in addition to data and run; the rest follows from the checkpoint."""


def import_qwen2_audio(
    source: str | Path, *, layers: Sequence[Path | str] = (), overrides: Sequence[tuple[str, str]] = ()
) -> ImportedModel:
    """Determine where every tensor of a checkpoint goes.

    Args:
        source: a directory with config.json, tokenizer.json and weights in safetensors or pickles, sharded or not.
        layers, overrides: of a spec, for the parts that generate: codec, latent connector, objective, sampler, and the
            backbone's gen_intermediate_dim and qk_norm. The default is MDCT frames at 16 kHz, and a generation stream
            as wide as the other.

    Raises:
        CheckpointError: a file is missing or damaged, or belongs to another model.
        SpecError: a layer is wrong, or contradicts the checkpoint.
    """
    directory = Path(source)
    if not directory.is_dir():
        raise CheckpointError(f"'{source}' is not a directory; expected a Hugging Face directory with a Qwen2-Audio model")
    config = read_source_config(directory)
    weights = read_weights(directory)
    layout = find_layout(weights)
    check_depth(weights, layout.language, config.language.num_layers)
    check_depth(weights, layout.tower, config.encoder["num_layers"])
    tokenizer = read_tokenizer(directory, rows=config.language.vocab_size)
    rows = max(config.language.vocab_size, tokenizer.vocab_size)
    tied = config.language.tied and f"{layout.head}weight" not in weights
    base = base_layer(config, vocab_rows=rows, tied=tied)
    generation = _check_generation(load_spec([base, *layers], overrides, base={}), config.language)
    checkpoint = Checkpoint(
        kind=KIND,
        title="Qwen2-Audio model",
        layout=layout.name,
        weights=weights,
        config=config.language,
        tokenizer=tokenizer,
        base=base,
        free=FREE,
        sources=partial(_sources, config.language, layout, tied),
        known={},
        notes=(generation, *_ends_note(directory, tokenizer)),
    )
    return assemble(checkpoint, layers=layers, overrides=overrides)


def base_layer(config: SourceConfig, *, vocab_rows: int, tied: bool) -> dict[str, Any]:
    """Return the spec layer that a checkpoint stands for, with the simplest parts that generate."""
    model = {
        "backbone": backbone_slot(config.language, vocab_rows=vocab_rows, tied=tied),
        "router": "modality",
        "codec": {"class_path": "mdct", "init_args": {"sample_rate": 16000, "frame_size": 320}},
        "encoder": {"class_path": "qwen2-audio", "init_args": dict(config.encoder)},
        "connectors": {"latent": "linear", "features": "linear"},
        "objective": "flow-matching",
        "freeze": [UND, "embedding", "encoder"],
        "feature_positions": "advance",
        "feature_attend": "causal",
        "normalize": "global",
        "chat": "qwen2-audio",
    }
    return own_names({"model": model, "sampler": "euler"})


def _sources(config: LanguageConfig, layout: Layout, tied: bool, shapes: Mapping[str, Shape]) -> Sources:
    expert = Expert(stream=UND, prefix=layout.language, intermediate_dim=config.intermediate_dim)
    sources = dict(shared_rows(config, prefix=layout.language, head=None if tied else layout.head))
    sources |= expert_rows(config, expert)
    heard = {"modalities.features.encoder.tower.": layout.tower, "modalities.features.connector.inward.": layout.projector}
    return sources | dict(named_rows(heard, shapes))


def _check_generation(spec: Spec, config: LanguageConfig) -> str:
    """Return what the generation expert is, for the report. Raise SpecError if it cannot copy the language model."""
    chosen = spec.of_model.backbone.init_args
    if chosen.get("qk_norm") == "all":
        raise SpecError("model.backbone.qk_norm is 'all', which would change the language model's outputs; set it to 'gen' or 'none'")
    narrow, wide = chosen.get("gen_intermediate_dim"), config.intermediate_dim
    if narrow is None or narrow == wide:
        return "the generation expert is a copy of the language model"
    if narrow > wide:
        raise SpecError(f"model.backbone.gen_intermediate_dim is {narrow}; expected at most {wide}, the width of the language model")
    channels = f"channels floor(j * {wide} / {narrow}) of its feed-forward networks"
    return f"the generation expert is a copy of the language model with {channels}"


def _ends_note(directory: Path, tokenizer: TextTokenizer) -> Iterator[str]:
    """Yield a note on ids that end texts in generation_config.json but not here, if any."""
    file = directory / "generation_config.json"
    if not file.is_file():
        return
    try:
        ends = read_object(file).get("eos_token_id")
    except CheckpointError:
        yield "generation_config.json cannot be read and is not used"
        return
    given = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(type(end) is int for end in given):
        yield "generation_config.json has an eos_token_id that is not a token id, and is not used"
        return
    others = [end for end in given if end not in tokenizer.ends]
    if others:
        yield f"generation_config.json also ends texts at the ids {', '.join(map(str, others))}; this model does not"
