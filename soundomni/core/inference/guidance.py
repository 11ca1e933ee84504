"""What generation does around a model's prediction: classifier-free guidance, and targets with some given frames.

Both wrap a prediction into another one, so that samplers need not know about them. Velocities, scores and logits are
guided alike, except that only velocities can be rescaled or projected.

Shape letters: B clips, D latent dimensions, T frames, G guidance branches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor

from soundomni.core.errors import SpecError, did_you_mean
from soundomni.core.inference.one_level import all_levels, takes_level
from soundomni.core.inference.projected_guidance import Momentum, projected, projects
from soundomni.core.interfaces import First, LevelPredict, Objective, Predict, Prediction
from soundomni.core.spec.schema import GuidanceSpec


class PredictBranches(Protocol):
    """What guidance asks for predictions."""

    def __call__(self, values: Tensor, timesteps: Tensor, count: int, *, first: First, level: int | None = None) -> Tensor:
        """Return predictions `[G, B, P, T]` for G = `count`: the conditional one, then, if G is 2, the one without a prompt or
        with the negative prompt. The other arguments are those of `Predict` and `LevelPredict`."""
        ...


RENORMALIZATIONS = ("none", "global", "channel")


def guided(
    predict_branches: PredictBranches, guidance: GuidanceSpec, *, valid: Tensor | None = None, objective: Objective | None = None
) -> Predict:
    """Wrap the branches into one guided prediction.

    v = v_uncond + scale * (v_cond - v_uncond) (Ho and Salimans 2022, eq. 6), for clips whose timestep lies within the interval, both
    ends included (Kynkäänniemi et al. 2024); other clips keep v_cond. If only part of the difference stays, see `projected`. Then the
    network's output for v is rescaled, and v is scaled by clamp(|v_cond| / |v|, renormalize_min, 1). The unconditional branch only
    runs at steps at which some clip is guided, and never if the scale is 1.

    Args:
        predict_branches: called with G = 1 or G = 2.
        guidance: what to do with the branches.
        valid: bool `[B, T]`, the frames that count in the norm of a clip; None for all.
        objective: knows what the network gave for a prediction, and whether that is a velocity; by default, the network itself gives
            the velocities, or the guidance is one that also fits logits.

    Returns:
        (values `[B, D, T]`, timesteps `[B]`, or `[B, T]` for a timestep per frame) → `[B, D, T]`. No clip's result
        depends on another. It can be asked for one level if the branches can, and if there is no norm, which is that of
        all levels. With momentum, it remembers earlier steps, so it only serves one run of a sampler.

    Raises:
        SpecError: a value of the guidance is out of its range, or does not fit what the objective predicts.
    """
    both = _pair(predict_branches, guidance, valid=valid, objective=objective)

    def predict(values: Tensor, timesteps: Tensor, *, first: First = 0, level: int | None = None) -> Tensor:
        return both(values, timesteps, first=first, level=level)[0]

    has_norm = guidance.scale != 1.0 and (guidance.renormalize != "none" or guidance.rescale > 0.0 or projects(guidance))
    return predict if takes_level(predict_branches) and not has_norm else all_levels(predict)


def compared(
    predict_branches: PredictBranches, guidance: GuidanceSpec, *, valid: Tensor | None = None, objective: Objective | None = None
) -> Predict:
    """Wrap the branches into one function that returns the guided prediction and the one that it steers away from,
    `[2, B, D, T]`.

    Clips without guidance have the conditional prediction as both. Arguments and errors are those of `guided`.
    """
    both = _pair(predict_branches, guidance, valid=valid, objective=objective)

    def predict(values: Tensor, timesteps: Tensor, *, first: First = 0) -> Tensor:
        return torch.stack(both(values, timesteps, first=first))

    return predict


class _Pair(Protocol):
    """The guided prediction and the one that it steers away from."""

    def __call__(self, values: Tensor, timesteps: Tensor, *, first: First = 0, level: int | None = None) -> tuple[Tensor, Tensor]:
        """Return both, `[B, D, T]`."""
        ...


def _pair(predict_branches: PredictBranches, guidance: GuidanceSpec, *, valid: Tensor | None, objective: Objective | None) -> _Pair:
    check_guidance(guidance, predicts="velocity" if objective is None else objective.predicts)
    low, high = guidance.interval
    everywhere = low <= 0.0 and high >= 1.0
    momentum = Momentum(guidance.momentum) if guidance.momentum else None

    def both(values: Tensor, timesteps: Tensor, *, first: First = 0, level: int | None = None) -> tuple[Tensor, Tensor]:
        within = None if everywhere else ((timesteps >= low) & (timesteps <= high)).reshape(len(values), 1, -1)
        branches = predict_branches if level is None else partial(predict_branches, level=level)
        if guidance.scale == 1.0 or not (within is None or bool(within.any())):
            (only,) = branches(values, timesteps, 1, first=first)
            return only, only
        conditional, unconditional = branches(values, timesteps, 2, first=first)
        counted = None if valid is None else valid[:, first:]
        if projects(guidance):
            limited = partial(projected, valid=counted, momentum=momentum, within=within)
            steered = limited(conditional, unconditional, values, timesteps, guidance)
        else:
            steered = unconditional + guidance.scale * (conditional - unconditional)
        if guidance.rescale:
            steered = _rescaled(conditional, steered, values, timesteps, guidance.rescale, objective, first=first)
        if guidance.renormalize != "none":
            steered = steered * _shrink(conditional, steered, guidance, counted)
        if within is None:
            return steered, unconditional
        return torch.where(within, steered, conditional), torch.where(within, unconditional, conditional)

    return both


def without_norms(guidance: GuidanceSpec) -> GuidanceSpec:
    """Return only the scale and the interval: for scores, whose size does not matter."""
    return GuidanceSpec(scale=guidance.scale, interval=guidance.interval)


def _rescaled(
    conditional: Tensor,
    steered: Tensor,
    values: Tensor,
    timesteps: Tensor,
    share: float,
    objective: Objective | None,
    *,
    first: First,
) -> Tensor:
    """Return the prediction `[B, D, T]` whose network output is `share` times that of `steered` with the standard deviation over
    channels of the conditional one, frame by frame, plus the rest times that of `steered` (Lin et al. 2024, equations 15 and 16).
    """
    if objective is None:
        return steered * _deviations(conditional, steered, share)
    times = timesteps[:, None].expand(-1, values.shape[-1]) if timesteps.ndim == 1 else timesteps
    wanted, found = (objective.native(prediction, values, times, first=first) for prediction in (conditional, steered))
    return objective.predicted(found * _deviations(wanted, found, share), values, times, first=first).to(steered.dtype)


def _deviations(wanted: Tensor, found: Tensor, share: float) -> Tensor:
    """Return the factor `[B, 1, T]` that brings the standard deviation over channels back; 1 if there is no deviation."""
    target, own = (output.std(1, correction=0, keepdim=True) for output in (wanted, found))
    return 1.0 + share * torch.where(own > 0, target / own - 1.0, 0.0)


def _shrink(conditional: Tensor, steered: Tensor, guidance: GuidanceSpec, valid: Tensor | None) -> Tensor:
    """Return the factor `[B, 1, 1]` or `[B, 1, T]` that brings the norm back, at most to that of the conditional
    prediction.
    """
    dims = (1,) if guidance.renormalize == "channel" else (1, 2)
    if guidance.renormalize == "global" and valid is not None:
        conditional, steered = (v.masked_fill(~valid[:, None], 0.0) for v in (conditional, steered))
    dtype = torch.promote_types(steered.dtype, torch.float32)
    norms = [torch.linalg.vector_norm(v, dim=dims, keepdim=True, dtype=dtype) for v in (conditional, steered)]
    tiny = torch.finfo(torch.float32).tiny
    factor: Tensor = norms[0] / norms[1].clamp_min(tiny)
    return factor.clamp(guidance.renormalize_min, 1.0).to(steered.dtype)


def check_guidance(guidance: GuidanceSpec, *, predicts: Prediction = "velocity") -> None:
    """Raise SpecError, naming the dotted key, if a value is out of its range, or is only for velocities and these are not predicted."""
    low, high = guidance.interval
    if not low <= high:
        raise SpecError(f"guidance.interval is {(low, high)}; expected (low, high) with low <= high")
    if guidance.renormalize not in RENORMALIZATIONS:
        near = did_you_mean(guidance.renormalize, RENORMALIZATIONS)
        raise SpecError(f"guidance.renormalize is '{guidance.renormalize}'; expected none, global or channel.{near}")
    if not 0.0 <= guidance.renormalize_min <= 1.0:
        raise SpecError(f"guidance.renormalize_min is {guidance.renormalize_min}; expected a number from 0 to 1")
    allowed = {"norm_threshold": "a finite number from 0 up", "momentum": "a number above -1 and below 1"}
    for name, off in (("rescale", 0.0), ("parallel", 1.0), ("norm_threshold", 0.0), ("momentum", 0.0)):
        value, expected = getattr(guidance, name), allowed.get(name, "a number from 0 to 1")
        fits = -1.0 < value < 1.0 if name == "momentum" else 0.0 <= value <= (math.inf if name == "norm_threshold" else 1.0)
        if not (fits and math.isfinite(value)):
            raise SpecError(f"guidance.{name} is {value}; expected {expected}, with {off:g} for plain guidance")
        if value != off and predicts != "velocity":
            what = "logits" if predicts == "logits" else "the next token"
            raise SpecError(
                f"guidance.{name} is {value}, but the objective predicts {what}; expected {off:g}. It only applies to velocities"
            )


@dataclass(frozen=True, kw_only=True)
class PartialTarget:
    """A target with some given frames: continuation, inpainting.

    The model is always shown the given frames clean, at timestep 0, as in training; the sampler moves only the others. If they are
    `noisy` instead, as for an objective that shows them in another way, they move straight to their values. Sampling reads
    `target.show(sampler.sample(target.hold(predict), target.begun(noise), ...))`.

    Args:
        values: `[B, D, T]` or codes `[B, K, T]`, read at known frames only.
        known: bool `[B, T]`.
        noisy: whether known frames are as noisy as the others.
    """

    values: Tensor
    known: Tensor
    noisy: bool = False

    def begun(self, values: Tensor) -> Tensor:
        """Return what sampling begins with: `values`, with the given ones at known frames unless these are noisy."""
        return values if self.noisy else self.show(values)

    def show(self, values: Tensor) -> Tensor:
        """Return `[B, D, T]` with exactly the given values at known frames."""
        return torch.where(self.known[:, None], self.values.to(values.dtype), values)

    def timesteps(self, timesteps: Tensor) -> Tensor:
        """Return timesteps `[B, T]` from `[B]`, 0 at known frames."""
        return timesteps[:, None].masked_fill(self.known, 0.0)

    def hold(self, predict: Predict) -> Predict:
        """Wrap a prediction that takes a timestep per frame, `[B, T]`, into one that takes one per clip, `[B]`.

        It is zero at known frames, so that a sampler of velocities leaves them where they are, unless it adds noise, which the
        prediction never sees and `show` removes. Codes that are known do not change anyway.
        """

        def held(values: Tensor, timesteps: Tensor, *, first: First = 0, level: int | None = None) -> Tensor:
            own = replace(self, values=self.values[..., first:], known=self.known[:, first:])
            ask = predict if level is None else partial(cast(LevelPredict, predict), level=level)
            if own.noisy:
                prediction = ask(values, timesteps[:, None].expand(-1, values.shape[-1]), first=first)
                straight = (values - own.values.to(values.dtype)) / timesteps[:, None, None].to(values.dtype)
                return torch.where(own.known[:, None], straight, prediction)
            prediction = ask(own.show(values), own.timesteps(timesteps), first=first)
            return prediction.masked_fill(own.known[:, None], 0.0)

        return held if takes_level(predict) else all_levels(held)
