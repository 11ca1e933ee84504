"""Flow matching along straight lines between data and noise (Lipman et al. 2023; Liu et al. 2023, rectified flow).

Shape letters: B clips, D latent dimensions, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import LossTerms, Objective, Query
from soundomni.core.representation import Representation, RepresentationSpec, TokenSpec, draw_noise, length_mask
from soundomni.core.upload import upload
from soundomni.flow.training_timesteps import TimestepDistribution, Timesteps


class FlowMatching(Objective):
    """x_t = (1 − t)·x0 + t·ε with one t per clip; the target is the velocity ε − x0; the loss is named "velocity".

    Args:
        timesteps: "logit-normal", t = sigmoid(mean + std·u) with u ~ N(0, 1) (Esser et al. 2024, section 3.1); "uniform";
            "truncated-logit-normal", 1 − t logit-normal above 0.075 and stretched to 0 to 1, as in stable-audio-tools; or "even-log-snr",
            with an even log signal-to-noise ratio from −6 to 5, as in Stable Audio 3.
        mean: mean of the logit for the two logit-normal ones; others ignore it. stable-audio-tools' "log_snr" is "logit-normal" with mean
            1.2 and std 2.
        std: standard deviation of the logit for the two logit-normal ones; others ignore it.
        shift: s in t ← s·t / (1 + (s − 1)·t); above 1, clips are noisier.
        length_shift: log s for clips of 256 and of 4096 frames, between which it changes evenly, such as [0.5, 1.15]; null for the same
            `shift` for all clips.
        shows_known: whether the network sees which frames are known, and what they hold, in D + 1 numbers more of each token, while these
            frames become as noisy as the others. Backbones with one timestep for a whole clip, such as `dit`, need it to continue and to
            fill clips.

    Raises:
        SpecError: an argument is out of range.
    """

    loss_names: ClassVar[tuple[str, ...]] = ("velocity",)

    def __init__(
        self,
        *,
        timesteps: Timesteps = "logit-normal",
        mean: float = 0.0,
        std: float = 1.0,
        shift: float = 1.0,
        length_shift: tuple[float, float] | None = None,
        shows_known: bool = False,
    ) -> None:
        super().__init__()
        self.shows_known = shows_known
        self.distribution = TimestepDistribution(kind=timesteps, mean=mean, std=std, shift=shift, length_shift=length_shift)

    def tokens(self, spec: RepresentationSpec) -> TokenSpec:
        """Return D numbers in and out. Raise SpecError for a codec of codes."""
        if spec.kind != "continuous":
            raise SpecError("flow matching needs continuous latents, but the codec makes codes. Use an objective for codes, such as masked")
        tokens = super().tokens(spec)
        assert isinstance(tokens.inputs, int), "latents are numbers"
        return replace(tokens, inputs=2 * tokens.inputs + 1) if self.shows_known else tokens

    def given(self, clean: Representation) -> Tensor:
        """Return the values of clips that are only context, `[B, D, T]`; with `shows_known`, as clips of which all frames are known."""
        known = torch.ones_like(clean.values[:, 0], dtype=torch.bool)
        hints = self.hints(clean.values, known)
        return clean.values if hints is None else torch.cat([clean.values, hints], dim=1)

    def corrupt(self, clean: Representation, *, known: Tensor, noise: Tensor, generators: Sequence[torch.Generator]) -> Query:
        """Mix noise into the clips `[B, D, T]` with `noise` `[B]` set; without `shows_known`, not into their `known` `[B, T]` frames.

        A clip draws its t and then ε `[D, its own frames]` from its own generator, on that generator's device, so that
        its corruption depends neither on the batch around it nor on padding. Frames beyond a clip become zero.

        Raises:
            SpecError: the representation consists of codes.
        """
        return self._mix(clean, known, noise, generators, [self._draw_timestep] * len(generators))

    def corrupt_at(
        self,
        clean: Representation,
        *,
        known: Tensor,
        noise: Tensor,
        generators: Sequence[torch.Generator],
        quantiles: Sequence[float],
    ) -> Query:
        """Mixes as `corrupt` does, with the timestep of clip b at `quantiles[b]` of the distribution; only ε is drawn.

        A subclass with a `corrupt` of its own gets what the contract says about an objective without quantiles.
        """
        if type(self).corrupt is not FlowMatching.corrupt:
            return super().corrupt_at(clean, known=known, noise=noise, generators=generators, quantiles=quantiles)
        return self._mix(clean, known, noise, generators, [partial(self._timestep_at, quantile) for quantile in quantiles])

    @property
    def has_timesteps(self) -> bool:
        """True, except for subclasses that override `corrupt`."""
        return type(self).corrupt is FlowMatching.corrupt

    def corrupt_to(
        self, clean: Representation, *, known: Tensor, noise: Tensor, generators: Sequence[torch.Generator], timestep: float
    ) -> Query:
        """Mix as `corrupt` does, but with all clips at one timestep, which `shift` does not change; only ε is drawn."""
        if not self.has_timesteps:
            return super().corrupt_to(clean, known=known, noise=noise, generators=generators, timestep=timestep)
        return self._mix(clean, known, noise, generators, [partial(self._timestep_of, timestep)] * len(generators))

    def _mix(
        self,
        clean: Representation,
        known: Tensor,
        noise: Tensor,
        generators: Sequence[torch.Generator],
        timesteps: Sequence[Callable[[torch.Generator, int], float]],
    ) -> Query:
        self.tokens(clean.spec)
        values = clean.values
        noise = noise.to(values.device)
        times, epsilon = torch.zeros(len(values)), torch.zeros_like(values)
        for i, frames in enumerate(clean.frame_counts):  # clean clips too: to ask which they are would wait for the device
            times[i] = timesteps[i](generators[i], frames)
            draw_noise(epsilon[i], frames, generators[i])
        epsilon = epsilon.masked_fill(~noise[:, None, None], 0.0)
        valid = length_mask(clean.lengths.to(values.device), values.shape[-1])
        made = valid & noise[:, None]
        counted = made & ~known
        per_frame = upload(times, values.device)[:, None] * (made if self.shows_known else counted)
        data = values.masked_fill(~valid[:, None], 0.0)
        mix = per_frame[:, None].to(values.dtype)
        return Query(
            inputs=(1.0 - mix) * data + mix * epsilon,
            timesteps=per_frame,
            targets=epsilon - data,
            loss_mask=counted,
            hints=self.hints(data, valid & (known | ~noise[:, None])),
        )

    def _draw_timestep(self, generator: torch.Generator, frames: int) -> float:
        return self.distribution.draw(generator, frames)

    def _timestep_at(self, quantile: float, generator: torch.Generator, frames: int) -> float:
        return self.distribution.at(quantile, frames)

    def _timestep_of(self, timestep: float, generator: torch.Generator, frames: int) -> float:
        return timestep

    def loss(self, prediction: Tensor, query: Query) -> LossTerms:
        """Return the sum over counted frames of the mean squared error over D, and their number.

        Other frames have no gradient.
        """
        error = (prediction.float() - query.targets.float()).masked_fill(~query.loss_mask[:, None], 0.0)
        return {"velocity": (error.square().mean(1).sum(), query.loss_mask.sum())}

    def noised(self, clean: Tensor, start: Tensor, timestep: float) -> Tensor:
        """Return x_t = (1 − t)·x0 + t·ε, `[B, D, T]`."""
        return (1.0 - timestep) * clean + timestep * start
