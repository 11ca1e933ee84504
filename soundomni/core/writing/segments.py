"""The segments that tasks are made of, from the settings of a model.

Shape letters: S samples, T frames.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from soundomni.core.representation import RepresentationSpec
from soundomni.core.sequence import Attend, PositionRule, Role, Segment, audio_segment, text_segment
from soundomni.core.tokenizer import TextTokenizer

Positions = Literal["shared", "advance"]


def text_context(text: str, *, tokenizer: TextTokenizer, loss: bool = False) -> Segment:
    """Writes text as a causal segment, with loss as one that is predicted."""
    return text_segment(tokenizer.encode(text), bos=tokenizer.bos, eos=tokenizer.eos, loss=loss)


def features_segment(
    num_samples: int, num_tokens: int, *, tokenizer: TextTokenizer, positions: Positions, attend: Literal["full", "causal"]
) -> Segment:
    """Writes a clip to understand: `num_samples` S at the encoder's rate, which it turns into `num_tokens` features."""
    return audio_segment(
        role=Role.FEATURES,
        attend=Attend.named(attend),
        num_frames=num_tokens,
        num_samples=num_samples,
        boundary_ids=(tokenizer.audio_bos, tokenizer.audio_eos),
        positions=PositionRule.named(positions),
    )


def target_segment(
    num_samples: int,
    *,
    codec_spec: RepresentationSpec,
    tokenizer: TextTokenizer,
    positions: Positions,
    made: tuple[int, int] | None = None,
) -> Segment:
    """Writes a clip to make: `num_samples` S at the codec's rate; of its T frames all outside `made`, (first, end), are given."""
    return _codec_segment(num_samples, Attend.NOISE, codec_spec, tokenizer, positions, made)


def clean_segment(num_samples: int, *, codec_spec: RepresentationSpec, tokenizer: TextTokenizer, positions: Positions) -> Segment:
    """Writes a clip as clean context (timestep 0): `num_samples` S at the codec's rate."""
    return _codec_segment(num_samples, Attend.FULL, codec_spec, tokenizer, positions, None)


def _codec_segment(
    num_samples: int,
    attend: Attend,
    spec: RepresentationSpec,
    tokenizer: TextTokenizer,
    positions: Positions,
    made: tuple[int, int] | None,
) -> Segment:
    frames = spec.num_frames(num_samples)
    first, end = made or (0, frames)
    index = np.arange(frames)
    return audio_segment(
        role=Role.CODES if spec.kind == "codes" else Role.LATENT,
        attend=attend,
        num_frames=frames,
        num_samples=num_samples,
        boundary_ids=(tokenizer.audio_bos, tokenizer.audio_eos),
        positions=PositionRule.named(positions),
        known=(index < first) | (index >= end) if (first, end) != (0, frames) else None,
    )
