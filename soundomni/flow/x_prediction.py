"""Flow matching with a network that predicts the clean data (Salimans and Ho 2022, section 4; Li and He 2025, section
4).

Noise fills every dimension of a latent frame, data only a few. A network that predicts velocities has to carry all of
the noise through, and cannot if a frame has about as many dimensions as a token; one that predicts the data need not.

Shape letters: B clips, D latent dimensions, T frames.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import First, LossTerms, Query
from soundomni.flow.flow_matching import FlowMatching
from soundomni.flow.training_timesteps import Timesteps

SMALLEST = 1e-4
"""Smallest divisor, used in place of smaller t: at 0, the timestep of known frames, there is no velocity."""


class XPrediction(FlowMatching):
    """`FlowMatching` with the same x_t and target, but the network's output is x̂0, whose velocity is (x_t − x̂0) / t.

    The loss is that of the velocity, so an error of x̂0 is weighted by 1/t², but by no more than 1/min_timestep².
    Arguments not named here are those of `FlowMatching`.

    Args:
        min_timestep: limits the weight of nearly clean clips.

    Raises:
        SpecError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        timesteps: Timesteps = "logit-normal",
        mean: float = 0.0,
        std: float = 1.0,
        shift: float = 1.0,
        length_shift: tuple[float, float] | None = None,
        shows_known: bool = False,
        min_timestep: float = 0.05,
    ) -> None:
        super().__init__(timesteps=timesteps, mean=mean, std=std, shift=shift, length_shift=length_shift, shows_known=shows_known)
        if not 0.0 < min_timestep <= 1.0:
            raise SpecError(f"min_timestep is {min_timestep}; expected a number above 0 and at most 1")
        self.min_timestep = min_timestep

    def predicted(self, output: Tensor, inputs: Tensor, timesteps: Tensor, *, first: First = 0) -> Tensor:
        """Return the velocity `[B, D, T]` toward x̂0 = `output`, in at least float32."""
        values, clean = inputs.float(), output.float()
        return (values - clean) / timesteps[:, None].float().clamp_min(SMALLEST)

    def native(self, prediction: Tensor, inputs: Tensor, timesteps: Tensor, *, first: First = 0) -> Tensor:
        """Return x̂0 `[B, D, T]`, toward which the velocity `prediction` leads, in at least float32."""
        return inputs.float() - timesteps[:, None].float().clamp_min(SMALLEST) * prediction.float()

    def loss(self, prediction: Tensor, query: Query) -> LossTerms:
        """Return the loss of FlowMatching with each error of a frame times t / max(t, min_timestep)."""
        share = (query.timesteps / query.timesteps.clamp_min(self.min_timestep))[:, None]
        return super().loss(prediction.float() * share, replace(query, targets=query.targets.float() * share))
