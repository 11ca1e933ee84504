"""Latents with zero mean and unit variance, to match the noise of a flow (Rombach et al. 2022, section 4.3.2).

Shape letters: B clips, D latent dimensions, T frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from soundomni.core.errors import CheckpointError, DataError, SpecError, did_you_mean
from soundomni.core.representation import Representation, RepresentationSpec, length_mask

Kind = Literal["channel", "half", "global", "none"]

STD_FLOOR = 1e-3
"""Least standard deviation of a dimension, as a share of the largest. A dimension that is silent in the clips of the
fit, such as a band above their recording bandwidth, would otherwise be divided by almost zero, and explode in the first
clip that uses it."""


class LatentNormalizer(nn.Module):
    """Affine normalization of latents `[B, D, T]`, stored with the model.

    Args:
        token_dim: D.
        kind: "channel" gives every dimension zero mean and unit variance; "global" divides all by one number, their root mean
            square, and so keeps the balance between dimensions; "half" lies between them, dividing each by a multiple of the square
            root of its own root mean square, so that all together have one, and suits spectra, whose dimensions differ by orders of
            magnitude; "none" changes nothing and needs no fit.

    Raises:
        SpecError: `kind` is not one of these, or `token_dim` is not positive.
    """

    mean: Tensor
    std: Tensor
    fitted: Tensor

    def __init__(self, *, token_dim: int, kind: Kind) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise SpecError(f"model.normalize is '{kind}'; expected channel, half, global or none.{did_you_mean(kind, get_args(Kind))}")
        if token_dim < 1:
            raise SpecError(f"token_dim is {token_dim}; expected at least 1")
        self.kind = kind
        self.register_buffer("mean", torch.zeros(token_dim))
        self.register_buffer("std", torch.ones(token_dim))
        self.register_buffer("fitted", torch.tensor(kind == "none"))
        self._seen_fitted = False  # so that the host reads the buffer, and waits for the device, only once

    @classmethod
    def of(cls, spec: RepresentationSpec, kind: Kind) -> LatentNormalizer:
        """Return the normalizer for what a codec makes. Codes are ids without a scale, so `kind`, which is about latents, does not apply
        to them: they are never normalized."""
        return cls(token_dim=spec.token_dim, kind=kind if spec.kind == "continuous" else "none")

    def fit(self, representations: Iterable[Representation]) -> None:
        """Measure mean and standard deviation over the valid frames of all clips, in float64, one batch at a time.

        The moments of the batches are merged as in Chan, Golub and LeVeque 1983, eq. 2.1, which does not cancel as a sum of squares
        would. With kind "none", nothing is read.

        Raises:
            DataError: there is no frame at all, or the latents do not vary.
        """
        if self.kind == "none":
            return
        count, mean, squares = 0, torch.zeros(len(self.mean), dtype=torch.float64), torch.zeros(len(self.mean), dtype=torch.float64)
        for representation in representations:
            frames = self._valid_frames(representation)
            if not len(frames):
                continue
            batch_mean = frames.mean(0)
            delta = batch_mean - mean
            total = count + len(frames)
            squares += (frames - batch_mean).square().sum(0) + delta.square() * (count * len(frames) / total)
            mean += delta * (len(frames) / total)
            count = total
        if count == 0:
            raise DataError("latents cannot be normalized: there is no frame to fit on. Give at least one clip")
        size = (squares / count + mean.square()).sqrt()
        if self.kind == "channel":
            std = (squares / count).sqrt()
        else:
            std = (size * size.mean()).sqrt() if self.kind == "half" else size.square().mean().sqrt().expand_as(mean)
            mean = torch.zeros_like(mean)
        largest = float(std.max())
        if not 0 < largest < float("inf"):
            raise DataError(f"latents cannot be normalized: their standard deviation is {largest:g}. Fit on clips that are not silent")
        self.mean.copy_(mean)
        self.std.copy_(std.clamp_min(STD_FLOOR * largest))
        self.fitted.fill_(True)

    @property
    def measured(self) -> bool:
        """Whether the latents have been measured, or `kind` "none" needs no fit; False after `leave`."""
        left = bool((self.mean == 0).all() and (self.std == 1).all())
        return self.kind == "none" or (bool(self.fitted) and not left)

    def leave(self) -> None:
        """Change nothing from now on, in place of a fit: for a model that is not trained on latents at all."""
        self.mean.zero_()
        self.std.fill_(1.0)
        self.fitted.fill_(True)

    def normalize(self, representation: Representation) -> Representation:
        """Return the same clips with (values - mean) / std. Raise CheckpointError before a fit."""
        if self.kind == "none":
            return representation
        mean, std = self._affine(representation)
        return representation.with_values((representation.values - mean) / std)

    def denormalize(self, representation: Representation) -> Representation:
        """Undo `normalize`. Raise CheckpointError before a fit."""
        if self.kind == "none":
            return representation
        mean, std = self._affine(representation)
        return representation.with_values(representation.values * std + mean)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._seen_fitted = False
        super()._load_from_state_dict(*args, **kwargs)

    def _affine(self, representation: Representation) -> tuple[Tensor, Tensor]:
        self._seen_fitted = self._seen_fitted or bool(self.fitted)
        if not self._seen_fitted:
            raise CheckpointError("the latent normalizer has not been fitted. Call fit() on encoded clips, or load a trained model")
        values = representation.values
        self._check(values)
        return self.mean[:, None].to(values.dtype), self.std[:, None].to(values.dtype)

    def _valid_frames(self, representation: Representation) -> Tensor:
        """Return float64 `[frames, D]` on the CPU."""
        self._check(representation.values)
        values = representation.values.detach().cpu().double()
        valid = length_mask(representation.lengths.cpu(), values.shape[-1])
        return values.transpose(1, 2)[valid]

    def _check(self, values: Tensor) -> None:
        if not values.is_floating_point():
            raise SpecError("codes cannot be normalized. Set model.normalize to none for a codec of codes")
        if values.shape[1] != len(self.mean):
            raise CheckpointError(
                f"the latents have shape {list(values.shape)}; expected {len(self.mean)} latent dimensions, as in the fit"
            )
