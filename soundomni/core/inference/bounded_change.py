"""A bound on how far a variation goes from its clip, with any prompt.

A model with a prompt may take little notice of the clip that it is shown, and predict what the prompt describes even if only a little of
the clip is hidden. So the clean values that a prediction stands for are kept within a ball around the clip. Samplers end on such an
estimate, or close to it. A model that follows what it is shown then settles near the clip by itself.

Shape letters: B clips, D latent dimensions, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from soundomni.core.inference.clean_estimate import path_point
from soundomni.core.interfaces import First, Objective, Predict


@dataclass(frozen=True)
class Bound:
    """A ball around a clip.

    Args:
        clip: normalized values `[D, T]`, T being the clip's own frames.
        most_change: its radius, as the root of the mean squared change of a value, above 0.
    """

    clip: Tensor
    most_change: float


def most_change(strength: float, *, unknown: float) -> float:
    """Return how far a variation of this strength, above 0 and below 1, may go from its clip, for `Bound.most_change`.

    What may change is to what stays as s to 1 − s: a distance of 0.25 at a strength of 0.2, of 1 at 0.5, and of 4 at 0.8, in
    units of `unknown`, the distance between the clip and what the model expects if it knows nothing about it.
    """
    return strength / (1.0 - strength) * unknown


def bounded(predict: Predict, objective: Objective, bounds: Sequence[Bound | None], *, made: Tensor) -> Predict:
    """Wrap a prediction into one whose clean estimate stays within the bound of each clip.

    An estimate outside the ball moves along a straight line towards the clip, to the surface. One inside it does not change, and neither
    does a clip without a bound.

    Args:
        predict: (values `[B, D, T]`, timesteps `[B]` above 0) → velocity `[B, D, T]`, already guided.
        objective: its path says which clean values a velocity stands for.
        bounds: one for each clip; None leaves the clip unbounded.
        made: bool `[B, T]`, the frames that are made; only these count and change.

    Returns:
        a prediction with the same arguments. No clip's result depends on another.

    Raises:
        ValueError: there is a bound, but the objective predicts logits, which stand for no single clean value.
    """
    if not any(bounds):
        return predict
    if objective.predicts != "velocity":
        raise ValueError("the change of a clip cannot be bounded for an objective that predicts logits; expected no bound")

    def predict_bounded(values: Tensor, timesteps: Tensor, *, first: First = 0) -> Tensor:
        velocity = predict(values, timesteps, first=first).clone()
        times = timesteps.tolist()
        points = {timestep: path_point(objective, timestep) for timestep in set(times)}
        for row, (bound, timestep) in enumerate(zip(bounds, times, strict=True)):
            if bound is not None:
                frames, point = made[row], points[timestep]
                clip = bound.clip.to(values)[:, frames[: bound.clip.shape[1]]]
                change = point.clean(values[row][:, frames], velocity[row][:, frames]) - clip
                excess = (1.0 - bound.most_change / change.square().mean().sqrt()).clamp_min(0.0)
                velocity[row, :, frames] += point.velocity_change(-excess * change).to(velocity)
        return velocity

    return predict_bounded
