"""Names in the original SoundOmni research code of the parts other than its two experts, and checks of these parts.

| there | here |
|---|---|
| `audiovae2llm`, `llm2audiovae` | the latent connector `linear`, in and out |
| `time_embedder.mlp.0`, `.2` | its embedding of timesteps |
| `gen_pos_embed` | its embedding of places, computed here for any place |
| `audio_encoder` | the tower of the encoder `qwen2-audio` |
| `audio_projector` | the connector of its features, `linear` |
"""

from __future__ import annotations

import torch
from torch import Tensor

from soundomni.core.errors import CheckpointError
from soundomni.experts.sinusoids import place_embedding

PLACES = "gen_pos_embed"
NUM_PLACES = 2048
CONNECTOR = {
    "modalities.latent.connector.inward.": "audiovae2llm.",
    "modalities.latent.connector.outward.": "llm2audiovae.",
    "modalities.latent.connector.time_and_place.time.first.": "time_embedder.mlp.0.",
    "modalities.latent.connector.time_and_place.time.second.": "time_embedder.mlp.2.",
}
TOWER = "audio_encoder."
HEARING = {"modalities.features.encoder.tower.": TOWER, "modalities.features.connector.inward.": "audio_projector."}
READING = ("feature_positions", "feature_attend", "chat")
"""Keys of a spec's section model that say how audio is heard; the original checkpoints do not state this."""
READING_KEY = "soundomni"
"""Key of config.json under which an export stores them."""

_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Largest error of a stored sine: from rounding, and from the angle, which is exact to 1e-4 at the last place in
float32."""


def places(hidden_dim: int) -> Tensor:
    """Return the original's table of places, float32 `[2048, hidden_dim]`."""
    return place_embedding(torch.arange(NUM_PLACES), hidden_dim)


def check_places(table: Tensor, path: object) -> None:
    """Raise CheckpointError unless a table `[P, hidden_dim]` holds what the connector computes."""
    tolerance = _TOLERANCE.get(table.dtype, 0.0)
    if table.dim() != 2 or table.shape[1] % 2 or not _close(table, tolerance):
        raise CheckpointError(
            f"'{path}': {PLACES} {list(table.shape)} is not the original's table of [sin | cos], so positions would be decoded incorrectly"
        )


def _close(table: Tensor, tolerance: float) -> bool:
    expected = place_embedding(torch.arange(len(table)), table.shape[1])
    return bool(((table.float() - expected).abs() <= tolerance).all())
