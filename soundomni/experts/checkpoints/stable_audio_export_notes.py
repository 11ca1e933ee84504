"""Notes on what other projects do differently around an exported model's network. The network itself computes the
same."""

from __future__ import annotations

from collections.abc import Iterator

from soundomni.core.spec.schema import ModelSpec, Slot
from soundomni.experts.checkpoints.stable_audio_3_config import T5GEMMA
from soundomni.experts.checkpoints.stable_audio_layout import LATENT
from soundomni.experts.checkpoints.stable_audio_model_config import NUMBER, NUMBERS, T5

TEXTS = (T5, T5GEMMA)
"""Encoders of texts that other projects have."""


def notes_of(model: ModelSpec, *, by: str, clamps: bool = True, takes_main: bool = True) -> tuple[str, ...]:
    """Return what another project does differently, one sentence each.

    Args:
        model: a resolved spec that the other project can express.
        by: the other project.
        clamps: whether it replaces a number that is out of range by the nearest valid one.
        takes_main: whether it always takes a T5 from the main branch of its repository.
    """
    encoders = {name: one.encoder for name, one in model.used.items() if one.encoder is not None}
    notes: list[str] = []
    for name, slot in encoders.items():
        notes += _encoder(name, slot, by, clamps=clamps, takes_main=takes_main)
    for template in model.prompt:
        slot = encoders[template.of or ""]
        usual = "{caption}" if slot.class_path in TEXTS else NUMBERS.get(template.of or "")
        if usual is not None and template.text != usual:
            told = f"model.prompt writes '{template.text}' for {template.of} instead of '{usual}'"
            notes.append(f"{told}; do the same with {by}")
    made = model.used[LATENT]
    if made.codec is not None and not made.codec.init_args.get("sample_latents", True):
        notes.append(f"clips are encoded as the mean of their latents here; {by} samples the latents")
    return tuple(notes)


def _encoder(name: str, slot: Slot, by: str, *, clamps: bool, takes_main: bool) -> Iterator[str]:
    arguments = slot.init_args
    if slot.class_path == NUMBER and clamps and not arguments["clamp"]:
        yield f"values of {name} outside its range are refused here; {by} uses the nearest valid number"
    if slot.class_path in TEXTS and not arguments["truncate"]:
        yield f"texts of {name} with more than {arguments['pad_to']} tokens are refused here; {by} cuts them"
    if slot.class_path in TEXTS and takes_main and arguments["revision"] is not None:
        yield f"the T5 of {name} is the revision {arguments['revision']} here; {by} takes that of the main branch"
