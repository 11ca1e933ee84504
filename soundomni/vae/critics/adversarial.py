"""Critics that learn to tell estimates from clips, and the losses that all of them share.

Such a critic has one or more networks, one for each scale for example. A network gives a clip one or more logits,
which are high for what it takes for a target. The losses of a clip are means over the networks that the clip is long
enough for, and for each network over its logits or its layers: every network counts the same, and so does every layer.

Shape letters: B clips, C audio channels, S samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from soundomni.core.errors import SpecError, did_you_mean
from soundomni.core.interfaces import Critic, LossTerms
from soundomni.vae.clips import at_least_float32
from soundomni.vae.critics.shares import nothing, share

AdversarialLoss = Literal["hinge", "least-squares"]

_SMALLEST_FEATURE = 1e-5
"""Mean magnitude below which the features of a layer are measured as if they were this large."""


class Verdict(NamedTuple):
    """What a network says about clips.

    Args:
        logits: `[B, ...]`, high for targets.
        features: what each hidden layer gave, `[B, ...]`.
    """

    logits: Tensor
    features: Sequence[Tensor]


class Network(nn.Module, ABC):
    """A network that tells estimates from clips.

    Attributes:
        shortest: number of samples of the shortest clip that it can judge.
    """

    shortest: int

    @abstractmethod
    def forward(self, waveform: Tensor) -> Verdict:
        """Judge clips `[B, C, S]` with S at least `shortest`."""


class AdversarialCritic(Critic):
    """Base of the critics that learn; a subclass only builds its networks.

    `judge` returns "adversarial", which is low if the networks take the estimate for a target, and "features", the
    distance of what the layers of the networks give for estimate and target. `learn` returns the networks' own loss,
    named "hinge" or "least_squares" as the argument `loss` says, and "penalty" with `gradient_penalty`. All of them
    count clips.

    Args:
        networks: the networks.
        loss: "hinge" (Lim and Ye 2017, "Geometric GAN"; as SoundStream, section III-E, and EnCodec, section 3.4, use
            it), or "least-squares" (Mao et al. 2017; as HiFi-GAN, section 2.4, uses it).
        gradient_penalty: whether to penalize the slope of the logits at the targets (Mescheder et al. 2018, "Which
            training methods for GANs do actually converge?", section 4.1, R1).
        relative_features: divide the distance of each layer by the mean magnitude of its features for the target, as
            EnCodec does, so that layers with large features count no more than others.

    Raises:
        SpecError: the loss is unknown.
    """

    judged: ClassVar[tuple[str, ...]] = ("adversarial", "features")
    learned: ClassVar[tuple[str, ...]] = ("hinge",)

    def __init__(
        self,
        networks: Sequence[Network],
        *,
        loss: AdversarialLoss,
        gradient_penalty: bool,
        relative_features: bool,
    ) -> None:
        super().__init__()
        known = get_args(AdversarialLoss)
        if loss not in known:
            raise SpecError(f"loss is '{loss}'; expected one of {', '.join(known)}.{did_you_mean(loss, known)}")
        self.networks = nn.ModuleList(networks)
        self.loss: AdversarialLoss = loss
        self.gradient_penalty = gradient_penalty
        self.relative_features = relative_features
        own = loss.replace("-", "_")
        self.learned = (own, "penalty") if gradient_penalty else (own,)  # type: ignore[misc]  # by the arguments

    def judge(self, target: Tensor, estimate: Tensor) -> LossTerms:
        """Return the codec's losses for `[B, C, S]`; `target` is judged without gradients."""
        found = self.verdicts(estimate)
        if not found:
            return dict.fromkeys(self.judged, nothing(estimate))
        with torch.no_grad():
            wanted = self.verdicts(target)
        adversarial = [_per_clip(for_target(verdict.logits, self.loss)) for verdict in found]
        pairs = zip(found, wanted, strict=True)
        features = [feature_distance(ours, theirs, relative=self.relative_features) for ours, theirs in pairs]
        return {"adversarial": share(_mean(adversarial)), "features": share(_mean(features))}

    def learn(self, target: Tensor, estimate: Tensor, generators: Sequence[torch.Generator]) -> LossTerms:
        """Return the networks' losses for `[B, C, S]`; nothing is drawn."""
        real = target.detach().requires_grad_(self.gradient_penalty)
        found, made = self.verdicts(real), self.verdicts(estimate.detach())
        if not found:
            return dict.fromkeys(self.learned, nothing(self._unused(target.shape[-1])))
        own = [
            _per_clip(for_target(good.logits, self.loss) + for_estimate(bad.logits, self.loss))
            for good, bad in zip(found, made, strict=True)
        ]
        total, count = share(_mean(own))
        zero, _ = nothing(self._unused(target.shape[-1]))
        losses = {self.learned[0]: (total + zero, count)}
        if self.gradient_penalty:
            losses["penalty"] = share(_mean([squared_slope(verdict.logits, real) for verdict in found]))
        return losses

    def verdicts(self, waveform: Tensor) -> list[Verdict]:
        """Return what each network says about clips `[B, C, S]`, without those that need longer ones."""
        return [network(waveform) for network in self._networks(waveform.shape[-1], judge=True)]

    def _networks(self, num_samples: int, *, judge: bool) -> list[Network]:
        """Return the networks that judge clips of this length, or those that do not."""
        networks = [cast(Network, network) for network in self.networks]
        return [network for network in networks if (num_samples >= network.shortest) == judge]

    def _unused(self, num_samples: int) -> Tensor:
        """Return sums of the parameters of the networks that need longer clips, so that every parameter gets a
        gradient."""
        idle = self._networks(num_samples, judge=False)
        sums = [parameter.sum() for network in idle for parameter in network.parameters()]
        return torch.stack(sums) if sums else torch.zeros(0, device=next(self.parameters()).device)


def for_target(logits: Tensor, loss: AdversarialLoss) -> Tensor:
    """Return the loss of logits that should be high: max(0, 1 − logit), or (1 − logit)²."""
    distance = 1.0 - at_least_float32(logits)
    return distance.clamp_min(0.0) if loss == "hinge" else distance.square()


def for_estimate(logits: Tensor, loss: AdversarialLoss) -> Tensor:
    """Return the loss of logits that should be low: max(0, 1 + logit), or logit²."""
    logits = at_least_float32(logits)
    return (1.0 + logits).clamp_min(0.0) if loss == "hinge" else logits.square()


def feature_distance(found: Verdict, wanted: Verdict, *, relative: bool) -> Tensor:
    """Return the mean over layers of the mean absolute difference of their features, for each clip `[B]`.

    With `relative`, that of each layer is divided by the mean magnitude of the wanted features.
    """
    layers = []
    for ours, theirs in zip(found.features, wanted.features, strict=True):
        distance = _per_clip((ours - theirs).abs())
        layers.append(distance / _per_clip(theirs.abs()).clamp_min(_SMALLEST_FEATURE) if relative else distance)
    return _mean(layers)


def squared_slope(logits: Tensor, clips: Tensor) -> Tensor:
    """Return the squared norm of the slope of the logits at clips `[B, C, S]`, for each clip `[B]`, with a gradient
    for the network.

    It is the norm of the slope of the sum of a clip's logits, divided by their number: if no two logits depend on the
    same sample, the mean of the penalties of all logits. So it does not depend on the length of the clips.
    """
    (slope,) = torch.autograd.grad(at_least_float32(logits).sum(), clips, create_graph=True)
    return at_least_float32(slope).square().flatten(1).sum(1) / logits[0].numel()


def _per_clip(values: Tensor) -> Tensor:
    """Map `[B, ...]` to the mean of each clip `[B]`."""
    return at_least_float32(values).flatten(1).mean(1)


def _mean(parts: Sequence[Tensor]) -> Tensor:
    """Return the mean of losses `[B]`."""
    return torch.stack(list(parts)).mean(0)
