"""A checkpoint of BAGEL (Deng et al. 2025) as a model directory: its language model and its generation expert, for
audio.

Its parts for images are listed as unused. The parts that carry audio in and out come from a spec, and are new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from soundomni.core.errors import CheckpointError
from soundomni.core.pretrained.foreign_weights import WeightFile, read_weights
from soundomni.core.spec.provenance import own_names
from soundomni.experts.checkpoints.language_import import UND, Checkpoint, ImportedModel, assemble, read_tokenizer
from soundomni.experts.checkpoints.moe_gen_layout import LLM_CONFIG_FILE, MODULE, beside, check_layout, find_language_config, read_experts

KIND = "bagel"
WEIGHTS_FILE = "ema.safetensors"
IMAGES = "a part for images"
KNOWN = dict.fromkeys(("vae2llm.", "llm2vae.", "time_embedder.", "latent_pos_embed.", "vit_model.", "connector.", "vit_pos_embed."), IMAGES)
FREE = tuple(
    f"model.{name}"
    for name in (
        *("codec", "encoder", "connectors", "objective", "latent_positions", "feature_positions", "feature_attend"),
        *("normalize", "freeze", "tokenizer", "chat"),
    )
)
"""Keys that layers of a spec may change, in addition to data and run; the rest follows from the checkpoint."""


def import_bagel(
    source: str | Path,
    *,
    llm: str | Path | None = None,
    layers: Sequence[Path | str] = (),
    overrides: Sequence[tuple[str, str]] = (),
) -> ImportedModel:
    """Determine where every tensor of a checkpoint goes.

    Args:
        source: a directory with ema.safetensors, or else one weight file, or the file itself.
        llm: directory with llm_config.json (or config.json) and tokenizer.json; None means that of the weights.
        layers, overrides: of a spec, for the audio parts. The default is MDCT frames at 16 kHz, and no encoder.

    Raises:
        CheckpointError: a file is missing or damaged, or belongs to another model.
        SpecError: a layer is wrong, or contradicts the checkpoint.
    """
    weights = _read(Path(source)).without(MODULE)
    check_layout(weights, "BAGEL model")
    directory = beside(source, llm)
    found = find_language_config(directory)
    if found is None:
        raise CheckpointError(f"no {LLM_CONFIG_FILE} in '{directory}'; name the directory with the checkpoint's one with --llm")
    experts = read_experts(weights, found[0])
    tokenizer = read_tokenizer(directory, rows=experts.config.vocab_size)
    checkpoint = Checkpoint(
        kind=KIND,
        title="BAGEL model for audio",
        layout="BAGEL",
        weights=weights,
        config=experts.config,
        tokenizer=tokenizer,
        base=_base_layer(experts.backbone(tokenizer)),
        free=FREE,
        sources=lambda shapes: experts.rows(),
        known=KNOWN,
    )
    return assemble(checkpoint, layers=layers, overrides=overrides)


def _read(source: Path) -> WeightFile:
    """Open the averaged weights; the VAE for images lies next to them."""
    return read_weights(source / WEIGHTS_FILE if (source / WEIGHTS_FILE).is_file() else source)


def _base_layer(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Return the spec layer that a checkpoint stands for, with the simplest audio parts."""
    model = {
        "backbone": dict(backbone),
        "router": "modality",
        "codec": {"class_path": "mdct", "init_args": {"sample_rate": 16000, "frame_size": 320}},
        "connectors": {"latent": "linear"},
        "objective": "flow-matching",
        "freeze": [UND, "embedding"],
        "normalize": "global",
    }
    return own_names({"model": model, "sampler": "euler"})
