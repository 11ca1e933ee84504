"""EnCodec's loss balancer (Défossez et al. 2022, section 3.4): weights of losses as shares of the gradient, whatever their units.

The gradient of each loss for the estimate is divided by a moving average of its norm, and scaled to its share of the weights. All
ranks use the same averages, those of the steps before; the first step only measures.

Shape letters: B clips, C audio channels, S samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from soundomni.core.interfaces import LossTerms, Ranks

BALANCED = "balancer"
"""The term that carries the balanced gradient. Its value is 0."""


class Balancer(nn.Module):
    """Replaces the gradients of several losses of one estimate by a balanced one.

    Args:
        names: the losses.
        decay: decay of the averages per step, below 1; 0 leaves everything as it is.
    """

    averages: Tensor
    weight: Tensor
    sums: Tensor
    clips: Tensor

    def __init__(self, names: Sequence[str], *, decay: float) -> None:
        super().__init__()
        self.names, self.decay = tuple(names), decay
        size = len(self.names) if decay > 0 else 0
        self.register_buffer("averages", torch.zeros(size))  # of norms, not yet divided by `weight`
        self.register_buffer("weight", torch.zeros(size))
        self.register_buffer("sums", torch.zeros(size))  # of this step
        self.register_buffer("clips", torch.zeros(size))

    def leaf(self, estimate: Tensor) -> Tensor:
        """Return what critics judge in place of an estimate `[B, C, S]`."""
        return estimate.detach().requires_grad_() if self._is_on else estimate

    def forward(self, estimate: Tensor, judged: Tensor, terms: LossTerms, weights: Mapping[str, float], *, counted: Tensor) -> LossTerms:
        """Return the losses, and a term that gives `estimate` the balanced gradient.

        Args:
            estimate: the codec's estimate `[B, C, S]`.
            judged: what `leaf` returned for it.
            terms: the losses of critics that have started.
            weights: weights of the losses; 1 if not named.
            counted: bool `[B]`, clips whose gradients enter the averages.
        """
        if not self._is_on:
            return terms
        shares = {name: weights.get(name, 1.0) for name in terms}
        balanced = torch.zeros_like(judged)
        for name, (total, count) in terms.items():
            (gradient,) = torch.autograd.grad(total / count.clamp(min=1e-12), judged, retain_graph=True)
            place = self.names.index(name)
            norms = gradient.flatten(1).norm(dim=1)
            self.sums[place] += (norms * counted).sum()
            self.clips[place] += counted.sum()
            norm = self.averages[place] / self.weight[place].clamp(min=1e-12)
            share = shares[name] / max(sum(shares.values()), 1e-12)
            balanced += torch.where(norm > 0, share / norm.clamp(min=1e-12), 0.0) * gradient
        value = ((estimate - estimate.detach()) * balanced).sum()
        constant = {name: (total.detach(), count) for name, (total, count) in terms.items()}
        return {**constant, BALANCED: (value, torch.ones_like(value))}

    @torch.no_grad()
    def after_step(self, ranks: Ranks) -> None:
        """Add the norms of the step, of all ranks, to the averages; losses that had none keep theirs."""
        if self.decay == 0:
            return
        sums, clips = ranks.sum(torch.stack([self.sums, self.clips]))
        seen = (clips > 0) & sums.isfinite()
        self.averages.copy_(torch.where(seen, self.decay * self.averages + sums / clips.clamp(min=1.0), self.averages))
        self.weight.copy_(torch.where(seen, self.decay * self.weight + 1.0, self.weight))
        self.sums.zero_()
        self.clips.zero_()

    @property
    def _is_on(self) -> bool:
        return self.decay > 0 and torch.is_grad_enabled()
