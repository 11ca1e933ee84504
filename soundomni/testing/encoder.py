"""Conformance of encoders.

Shape letters: B clips, S samples, T tokens, F feature dimensions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from soundomni.core.interfaces import Encoder
from soundomni.core.representation import FeatureSpec
from soundomni.testing.suite import ModuleSuite, evaluating, noise, seeded


class EncoderSuite(ModuleSuite):
    """Clauses of `soundomni.core.interfaces.Encoder`, for encoders in evaluation mode.

    Attributes:
        seconds: length of the longest clip that is tried, at most `spec.max_seconds`.
        tolerance: largest difference between a clip on its own and in a batch, relative above magnitude 1.
    """

    kind: ClassVar[str] = "encoder"
    seconds: ClassVar[float] = 0.5
    tolerance: ClassVar[float] = 1e-4

    @abstractmethod
    def make(self) -> Encoder:
        """Return a new, small encoder on the CPU."""

    def built(self, seed: int = 0) -> Encoder:
        """Return `make()` in evaluation mode with weights drawn from `seed`."""
        encoder: Encoder = evaluating(seeded(self.make, seed))
        return encoder

    def outputs(self, plugin: Any) -> list[Tensor]:
        """Return the features of one clip."""
        return [_encode(plugin, [self.lengths(plugin)[-1]])]

    def lengths(self, encoder: Encoder) -> list[int]:
        """Return lengths in samples, from one sample to `seconds`; of texts, from one value to five; numbers have one."""
        spec = encoder.spec
        if spec.source != "waveform":
            return [1, 2, 5] if spec.source == "text" else [1]
        longest = int(min(self.seconds, spec.max_seconds or self.seconds) * spec.sample_rate)
        return sorted({1, 2, max(1, longest // 7), max(1, longest // 3 + 1), longest})

    def test_spec(self) -> None:
        """The spec is a FeatureSpec with a rate and a dimension."""
        spec = self.built().spec
        self.require(isinstance(spec, FeatureSpec), "spec", f"spec is a {type(spec).__name__}; expected a FeatureSpec")
        for name in ("sample_rate", "feature_dim"):
            self.require(getattr(spec, name) > 0, "spec", f"spec.{name} is {getattr(spec, name)}; expected at least 1")

    def test_num_tokens(self) -> None:
        """Every clip has at least one token."""
        encoder = self.built()
        for samples in self.lengths(encoder):
            found = encoder.num_tokens(samples)
            self.require(isinstance(found, int) and found >= 1, "num_tokens", f"num_tokens({samples}) is {found!r}; expected an int from 1")

    def test_read(self) -> None:
        """An encoder of texts or numbers reads one as finite float32 values `[1, S]`, the same each time."""
        encoder = self.built()
        if encoder.spec.source == "waveform":
            return
        values, again = encoder.read("1"), encoder.read("1")
        good = values.ndim == 2 and values.shape[0] == 1 and values.shape[1] > 0 and values.dtype == np.float32
        self.require(good, "read", f"'1' was read as {values.dtype} {list(values.shape)}; expected float32 [1, S] of at least one value")
        finite = bool(np.isfinite(values).all()) and np.array_equal(values, again)
        self.require(finite, "read", f"'1' was read as {values.tolist()}, then as {again.tolist()}; expected the same finite values")

    def test_rows(self) -> None:
        """Features are float `[B, T, F]` with at least `num_tokens` rows, finite within a clip, silence included."""
        encoder = self.built()
        lengths = self.lengths(encoder)
        for clips in (*([samples] for samples in lengths), lengths):
            for name, scale in (("noise", 0.1), ("silence", 0.0)):
                features, needed = _encode(encoder, clips, scale=scale), max(encoder.num_tokens(samples) for samples in clips)
                shape, wanted = list(features.shape), [len(clips), needed, encoder.spec.feature_dim]
                good = len(shape) == 3 and [shape[0], shape[2]] == [wanted[0], wanted[2]] and shape[1] >= needed
                message = f"{name} of {clips} samples gave {features.dtype} {shape}; expected floating point of at least {wanted}"
                self.require(good and features.dtype.is_floating_point, "rows", message)
                for clip, samples in enumerate(clips):
                    finite = bool(features[clip, : encoder.num_tokens(samples)].isfinite().all())
                    self.require(finite, "rows", f"{name} of {samples} samples gave features that are not finite")

    def test_batch(self) -> None:
        """The valid rows of a clip are the same on its own and in a batch, whatever comes after its length."""
        encoder = self.built()
        lengths = self.lengths(encoder)
        together = _encode(encoder, lengths)
        for clip, samples in enumerate(lengths):
            rows = encoder.num_tokens(samples)
            alone = _encode(encoder, [samples], first_clip=clip)
            message = f"a clip of {samples} samples has other features on its own than in a batch of {len(lengths)}"
            self.require_close(together[clip, :rows], alone[0, :rows], self.tolerance, "batch", message)


@torch.no_grad()
def _encode(encoder: Encoder, lengths: Sequence[int], *, first_clip: int = 0, scale: float = 0.1) -> Tensor:
    """Encode clips of noise; clip b depends only on its place, with other noise beyond its length."""
    waveform = scale * noise(99, len(lengths), 1, max(lengths))
    for clip, samples in enumerate(lengths):
        waveform[clip, :, :samples] = scale * noise(first_clip + clip, 1, samples)
    features: Tensor = encoder(waveform, torch.tensor(lengths))
    return features
