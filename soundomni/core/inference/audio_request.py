"""A clip to make, as the model takes it.

Shape letters: B clips, D latent dimensions, K codebooks, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from soundomni.core.assembly.modality import MadeModality
from soundomni.core.inference.guidance import PartialTarget
from soundomni.core.representation import Representation
from soundomni.core.sequence import Context, Segment
from soundomni.core.upload import upload


@dataclass(frozen=True, kw_only=True)
class AudioRequest:
    """One clip to make.

    Args:
        context: segments before the clip.
        negative: segments of the guidance branch; empty for the unconditional one.
        slot: the segment of the clip itself, as a target is written.
        seed: seed of the noise.
        known: normalized values `[D, T]` or codes `[K, T]`, given in the frames that `known_mask` marks; None to make all frames.
        known_mask: bool `[T]`.
        lower: codes `[K, T]` of the levels that the model does not make; None if it makes all.
        varied: normalized values `[D, T]` or codes `[K, T]` of a clip to mix with the noise that sampling starts from; None to start from
            only noise.
        unprompted: segments without a prompt, for measuring the model on `varied`.
        most_change: how far the model's estimate may go from `varied`, see `Bound`; infinite without a bound.
    """

    context: Context
    negative: Context = ()
    slot: Segment
    seed: int
    known: Tensor | None = None
    known_mask: Tensor | None = None
    lower: Tensor | None = None
    varied: Tensor | None = None
    unprompted: Context = ()
    most_change: float = math.inf

    @property
    def num_frames(self) -> int:
        """Number of frames to make."""
        return self.slot.num_frames


def sampler_seed(seed: int) -> int:
    """Return the seed for what a stochastic sampler draws, a stream different from those of the noise of nearby clip
    seeds.
    """
    return (seed ^ 0x5DEECE66) & 0xFFFFFFFF  # CPU generators only read the low 32 bits


def given_frames(modality: MadeModality, requests: Sequence[AudioRequest]) -> tuple[Representation, PartialTarget]:
    """Return the given values of all clips, zero in frames to make, and which frames are given."""
    device, spec, frames = (
        modality.device,
        modality.codec.spec.with_levels(modality.most_levels),
        tuple(request.num_frames for request in requests),
    )
    dtype = torch.float32 if spec.kind == "continuous" else torch.int64
    values = torch.zeros(len(requests), spec.token_dim, max(frames), dtype=dtype, device=device)
    mask = torch.zeros(len(requests), max(frames), dtype=torch.bool, device=device)
    for i, request in enumerate(requests):
        if request.known is not None and request.known_mask is not None:
            values[i, :, : request.num_frames] = request.known.to(device)
            mask[i, : request.num_frames] = request.known_mask.to(device)
        if request.lower is not None:
            values[i, : len(request.lower), : request.num_frames] = request.lower.to(device)
    lengths = upload(torch.tensor(frames), device)
    return Representation(values, lengths, spec, frames), PartialTarget(values=values, known=mask, noisy=modality.objective.shows_known)
