"""What a codec produces, and what is known about it before any weight is loaded.

Shape letters: B clips, C audio channels, S samples, D latent dimensions, K codebooks, T frames.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Generator, Tensor


HIDDEN = -1
"""A cell of codes that is not known yet. Connectors of codes have an embedding for it."""
EMPTY = -2
"""A cell of `Tokens` that stands for no code. Networks are shown HIDDEN instead."""


@dataclass(frozen=True)
class TokenSpec:
    """What the tokens of a representation look like to a connector.

    Args:
        inputs: numbers per token, or the vocabulary of each of its K ids.
        outputs: numbers that are predicted per token, or the number of classes of each id.
    """

    inputs: int | tuple[int, ...]
    outputs: int | tuple[int, ...]

    @property
    def num_inputs(self) -> int:
        """Values per token that enter: numbers or ids."""
        return self.inputs if isinstance(self.inputs, int) else len(self.inputs)

    @property
    def num_outputs(self) -> int:
        """P, the numbers per token that leave: predicted values, or logits of all ids one after the other."""
        return self.outputs if isinstance(self.outputs, int) else sum(self.outputs)

    def with_scores(self, count: int) -> TokenSpec:
        """Return tokens for which `count` numbers more are predicted.

        >>> TokenSpec((64, 32), (64, 32)).with_scores(2)
        TokenSpec(inputs=(64, 32), outputs=(64, 32, 1, 1))
        """
        return replace(self, outputs=self.outputs + count if isinstance(self.outputs, int) else (*self.outputs, *(1,) * count))

    @property
    def is_numbers(self) -> bool:
        """Whether tokens are numbers both ways, not ids."""
        return isinstance(self.inputs, int) and isinstance(self.outputs, int)


@dataclass(frozen=True, kw_only=True)
class RepresentationSpec:
    """Everything that data, packing and assembly need to know about a codec; no torch, no weights.

    Args:
        kind: "continuous" latents `[B, D, T]` float, or "codes" `[B, K, T]` int64.
        sample_rate: samples per second of the waveform, in Hz.
        channels: audio channels C of the waveform.
        downsampling_ratio: samples per frame.
        latent_dim: D of continuous latents; None for codes.
        codebook_sizes: vocabulary of each of the K levels; empty for continuous latents.
        extra_frames: frames beyond ceil(S / downsampling_ratio), such as the overlap frame of a lapped transform.
    """

    kind: Literal["continuous", "codes"]
    sample_rate: int
    channels: int
    downsampling_ratio: int
    latent_dim: int | None = None
    codebook_sizes: tuple[int, ...] = ()
    extra_frames: int = 0

    def num_frames(self, num_samples: int) -> int:
        """Return T, the frames of a clip of `num_samples` samples at `sample_rate`."""
        return math.ceil(num_samples / self.downsampling_ratio) + self.extra_frames

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Return `num_frames` for each of `lengths` `[B]`, given in samples: `[B]`."""
        return -(-lengths // self.downsampling_ratio) + self.extra_frames

    def num_samples(self, num_frames: int) -> int:
        """Return the longest clip, in samples, that fits into `num_frames` frames (at least 0)."""
        return max(0, num_frames - self.extra_frames) * self.downsampling_ratio

    def seconds(self, num_frames: int) -> float:
        """Return the length of that clip in seconds."""
        return self.num_samples(num_frames) / self.sample_rate

    def with_levels(self, count: int) -> RepresentationSpec:
        """Return the spec of codes that only have the first `count` levels; latents have no levels."""
        return replace(self, codebook_sizes=self.codebook_sizes[:count])

    @property
    def token_dim(self) -> int:
        """Values per frame: D for continuous latents, K for codes."""
        return self.latent_dim if self.latent_dim is not None else len(self.codebook_sizes)

    @property
    def tokens(self) -> int | tuple[int, ...]:
        """A frame as a token: D numbers, or the vocabulary of each of K ids."""
        return self.latent_dim if self.latent_dim is not None else self.codebook_sizes


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Return which of `size` positions lie within each of `lengths` `[B]`: `[B, size]` bool, on the device of the lengths."""
    import torch

    return torch.arange(size, device=lengths.device) < lengths[:, None]


def draw_noise(into: Tensor, frames: int, generator: Generator) -> None:
    """Fill the first `frames` of one clip's `[D, T]` with normal noise, drawn on the generator's device: padding does not change it."""
    import torch

    from soundomni.core.upload import upload

    drawn = torch.randn(into.shape[0], frames, generator=generator, device=generator.device)
    into[:, :frames] = upload(drawn.to(into.dtype), into.device)


def frame_noise(like: Tensor, frames: Sequence[int], generators: Sequence[Generator]) -> Tensor:
    """Return normal noise `[B, D, T]` in the shape, type and place of `like`, zero beyond a clip's `frames`.

    That of clip b is drawn from `generators[b]`, on its device, frame by frame, so that a longer clip begins with the noise of
    a shorter one. Raise ValueError unless there is one generator for each clip.
    """
    import torch

    from soundomni.core.upload import upload

    noise = torch.zeros_like(like)
    for i, (count, generator) in enumerate(zip(frames, generators, strict=True)):
        drawn = torch.randn(count, like.shape[1], generator=generator, device=generator.device)
        noise[i, :, :count] = upload(drawn.T.to(noise.dtype), noise.device)
    return noise


@dataclass(frozen=True)
class Representation:
    """A batch of encoded clips.

    Args:
        values: `[B, D, T]` float latents or `[B, K, T]` int64 codes. Values beyond a clip's length are undefined.
        lengths: `[B]` int64, number of valid frames of each clip.
        spec: the codec's spec.
        frames: the same lengths as plain numbers, where they are known without asking the device; see `frame_counts`.
    """

    values: Tensor
    lengths: Tensor
    spec: RepresentationSpec
    frames: tuple[int, ...] | None = None

    @property
    def frame_counts(self) -> tuple[int, ...]:
        """The lengths as plain numbers. If they are not known on the host, this waits for the device."""
        return self.frames if self.frames is not None else tuple(self.lengths.tolist())

    @classmethod
    def of_latents(cls, values: Tensor) -> Representation:
        """Return latents `[B, D, T]` that no codec made, all frames valid: for using an objective or a sampler on its own."""
        import torch

        clips, dim, frames = values.shape
        spec = RepresentationSpec(kind="continuous", sample_rate=1, channels=1, downsampling_ratio=1, latent_dim=dim)
        lengths = torch.full((clips,), frames, dtype=torch.int64, device=values.device)
        return cls(values, lengths, spec, (frames,) * clips)

    def with_values(self, values: Tensor) -> Representation:
        """Return the same clips with other values of the same shape, for example normalized ones."""
        return replace(self, values=values)


@dataclass(frozen=True, kw_only=True)
class Tokens(Representation):
    """Codes of clips as tokens that are made one after the other; a clip ends where a token of level 0 says so.

    Here `values` are `[B, K, N]` ids, `lengths` and `frames` count tokens, and the spec's codebooks have all classes of an id. Cells
    to make are HIDDEN, and those without a code are EMPTY.

    Args:
        end: the class of level 0 that ends a clip.
        earliest: the first token at which a clip may end, whatever its ids are.
        ended: (clip, token) → ids `[K, N']` of that clip if it ends at that token, from its first to its last token; ids up to
            the end are the same for every end.
        allowed: (ids `[R, K, N]`, clips `[R]`, tokens `[R]`) → bool `[R, V]`, the classes of level 0 that a token of a clip may have
            after the ids before it; all on the CPU. None for all classes.
    """

    end: int
    earliest: int
    ended: Callable[[int, int], Tensor]
    allowed: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None


def most_frames(num_tokens: Callable[[int], int], limit: int) -> int:
    """Return the most frames whose tokens are at most `limit`; 0 if there are none.

    >>> most_frames(lambda frames: 4 * frames + 1, 12)
    2
    """
    return max(0, bisect_right(range(limit + 1), limit, key=num_tokens) - 1)


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """What is known about an understanding encoder before any weight is loaded.

    Args:
        sample_rate: sample rate of the encoder's input, in Hz. Encoders take mono `[B, 1, S]`. It is 1 unless the source is a
            waveform.
        source: what the encoder reads: a "waveform", a "text", or a "number".
        feature_dim: F of the features `[B, T, F]`.
        max_seconds: longest clip that the encoder takes whole; None if there is no limit.
    """

    sample_rate: int = 1
    feature_dim: int
    max_seconds: float | None = None
    source: Literal["waveform", "text", "number"] = "waveform"

    @property
    def tokens(self) -> int:
        """A row of features as a token: F numbers."""
        return self.feature_dim
