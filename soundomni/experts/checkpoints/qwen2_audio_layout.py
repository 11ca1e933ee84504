"""Where the parts of a Qwen2-Audio checkpoint are: names in transformers 4 and 5.

| | transformers 4 | transformers 5 |
|---|---|---|
| language model | `language_model.model.` | `model.language_model.` |
| its head | `language_model.lm_head.` | `lm_head.` |
| audio tower | `audio_tower.` | `model.audio_tower.` |
| projector | `multi_modal_projector.linear.` | `model.multi_modal_projector.linear.` |
"""

from __future__ import annotations

from dataclasses import dataclass

from soundomni.core.errors import CheckpointError, some
from soundomni.core.pretrained.foreign_weights import WeightFile


@dataclass(frozen=True)
class Layout:
    """Prefixes of the parts of a checkpoint."""

    name: str
    language: str
    head: str
    tower: str
    projector: str


LAYOUTS = (
    Layout("transformers 5", "model.language_model.", "lm_head.", "model.audio_tower.", "model.multi_modal_projector.linear."),
    Layout("transformers 4", "language_model.model.", "language_model.lm_head.", "audio_tower.", "multi_modal_projector.linear."),
)


def find_layout(weights: WeightFile) -> Layout:
    """Return the layout by the name of the embedding. Raise CheckpointError if there is none."""
    for layout in LAYOUTS:
        if f"{layout.language}embed_tokens.weight" in weights:
            return layout
    expected = " or ".join(f"{layout.language}embed_tokens.weight" for layout in LAYOUTS)
    raise CheckpointError(
        f"'{weights.path}' does not hold a Qwen2-Audio model; expected {expected}, found {some(sorted(weights)) or 'nothing'}"
    )
