"""Training a codec on its own, in the loop that trains models: with critics that judge what it makes, and may learn.

A step has two phases if a critic learns: the critics learn from the clips and the codec's estimates, then the codec learns from
how the critics judge the same estimates.

Shape letters: B clips, C audio channels, S samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from soundomni.core.errors import CheckpointError, SpecError, did_you_mean
from soundomni.core.interfaces import Codec, Critic, LossTerms, Ranks
from soundomni.core.sequence import Clips, PackedBatch
from soundomni.core.spec.schema import CodecSpec, TrainSpec
from soundomni.train.balancer import Balancer
from soundomni.train.guards import Guards
from soundomni.train.phases import loss_weights
from soundomni.train.state import load_trained_weights

SILENCE_SECONDS = 0.1
CODEC, CRITICS = "codec", "critics"
"""Names of the phases."""
DISTANCE, PENALTY = "distance", "penalty"
"""The loss that is named after its critic only, and the one that says nothing about how well a critic tells clips apart."""


class CodecTraining(nn.Module):
    """Makes a codec trainable on the clips of packed batches.

    Each codec and critic counts its losses in its own way, so each batch weighs the same (see Trainable.count_terms).

    Args:
        codec: the codec; all its parameters are trained, except for those that `spec` freezes.
        critics: name → critic, as in the spec.
        spec: which parts are frozen, and whether losses are balanced.
        train: weights of the losses, and when they start.

    Raises:
        SpecError: the codec does not have parameters to train, or cannot be trained, or the spec names parts or losses that
            there are not.
    """

    FORWARD_METHODS: ClassVar[tuple[str, ...]] = ("reconstruct",)

    def __init__(self, codec: Codec, critics: Mapping[str, Critic], spec: CodecSpec, train: TrainSpec) -> None:
        super().__init__()
        if type(codec).reconstruct is Codec.reconstruct or not list(codec.parameters()):
            outdated = hasattr(codec, "training_losses")
            cure = "It has training_losses: write reconstruct in its place" if outdated else "Choose a codec with weights"
            raise SpecError(f"codec.codec is a {type(codec).__name__}, which has nothing to train. {cure}")
        self.codec = codec.requires_grad_(True)
        self.critics = nn.ModuleDict(critics).requires_grad_(True)
        _freeze(codec, spec.freeze)
        self.balancer = Balancer([_loss_name(name, one) for name in critics for one in critics[name].judged], decay=spec.balance)
        self._train = train
        self._estimate: tuple[Tensor, LossTerms] | None = None

    @property
    def phases(self) -> Mapping[str, nn.Module]:
        """The critics, if any has parameters, then the codec."""
        learn = {CRITICS: self.critics} if list(self.critics.parameters()) else {}
        return {**learn, CODEC: self.codec}

    @property
    def units(self) -> tuple[nn.Module, ...]:
        """No inner units: a codec is one unit."""
        return ()

    @property
    def whole(self) -> tuple[nn.Module, ...]:
        """Critics, because gradients of gradients cannot be sharded, and what the codec changes after a step."""
        return (self.critics, *self.codec.whole)

    @property
    def kept(self) -> nn.Module:
        """The codec: critics are not used after training."""
        return self.codec

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses: those of the codec, then those of the critics."""
        critics = (_loss_name(name, loss) for name, one in self._named() for loss in (*one.judged, *one.learned))
        return (*self.codec.loss_names, *critics)

    def guards(self) -> Guards:
        """Return what ends a run whose numbers say that it has failed."""
        learned = [_loss_name(name, loss) for name, one in self._named() for loss in one.learned if loss != PENALTY]
        judged = [_loss_name(name, loss) for name, one in self._named() for loss in one.judged]
        return Guards(learned=learned, judged=judged, distances=[name for name in judged if name in self.critics])

    def count_terms(self, batch: PackedBatch) -> dict[str, float]:
        """Return nothing: no loss can be counted before the codec has run."""
        return {}

    def forward(self, batch: PackedBatch, phase: str = CODEC, *, step: int | None = None, keep: bool = False) -> LossTerms:
        """Return the losses of a phase on the clips to make; clip b draws from its own seed.

        Without clips, a silent one takes their place and counts nothing, so that every rank computes the same gradients.

        Args:
            batch: its first modality has the clips.
            phase: "critics" or "codec".
            step: number of finished steps; losses that have not started are left out. None for all losses.
            keep: whether the next call is the codec's phase on the same batch, which then takes the estimates of this one.
        """
        clips = next(iter(batch.clips.values()), Clips.none())
        if len(clips) > 0:
            return self.losses(clips.waveform, clips.lengths, clips.num_samples, clips.seeds, phase, step=step, keep=keep)
        silence, nothing = self._silence(clips.waveform.device)
        terms = self.losses(silence, nothing, (silence.shape[-1],), (0,), phase, step=step, keep=keep)
        return {name: (0.0 * total, count) for name, (total, count) in terms.items()}

    @torch.no_grad()
    def reconstruct(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Return the codec's version `[B, C, at least S]` of clips `[B, C, S]` of `lengths` `[B]`."""
        return self.codec.decode(self.codec.encode(waveform, lengths))

    def after_step(self, ranks: Ranks) -> None:
        """Let the codec change what gradients do not, and the balancer measure. Every rank must call this after every step."""
        self.codec.after_step(ranks)
        self.balancer.after_step(ranks)

    def losses(
        self,
        waveform: Tensor,
        lengths: Tensor,
        counts: Sequence[int],
        seeds: Sequence[int],
        phase: str = CODEC,
        *,
        step: int | None = None,
        keep: bool = False,
    ) -> LossTerms:
        """Return the losses of a phase on clips `[B, C, S]`, as `forward` does for those of a batch.

        Args:
            waveform: the clips.
            lengths: `[B]`, samples of each clip; 0 for one that counts nothing.
            counts: samples of each clip that critics judge, on the host.
            seeds: that of each clip.
            phase, step, keep: as for `forward`.
        """
        if phase == CRITICS:
            with torch.set_grad_enabled(keep):
                estimate, own = self._estimated(waveform, lengths, seeds)
            self._estimate = (estimate, own) if keep else None
            return self._learned(waveform, estimate.detach(), counts, seeds)
        found, self._estimate = self._estimate, None
        estimate, own = found if found is not None else self._estimated(waveform, lengths, seeds)
        with _constant(self.critics):
            return {**own, **self._judged(waveform, estimate, lengths > 0, counts, step)}

    def _estimated(self, waveform: Tensor, lengths: Tensor, seeds: Sequence[int]) -> tuple[Tensor, LossTerms]:
        return self.codec.reconstruct(waveform, lengths, [torch.Generator().manual_seed(seed) for seed in seeds])

    def _learned(self, target: Tensor, estimate: Tensor, counts: Sequence[int], seeds: Sequence[int]) -> LossTerms:
        terms: LossTerms = {}
        for name, critic in self._named():
            if not critic.learned:
                continue
            for clips, samples in _equally_long(counts):
                generators = [torch.Generator().manual_seed(seeds[clip]) for clip in clips]
                _add(terms, name, critic.learn(_of(clips, target, samples), _of(clips, estimate, samples), generators))
        return terms

    def _judged(self, target: Tensor, estimate: Tensor, counted: Tensor, counts: Sequence[int], step: int | None) -> LossTerms:
        judged = self.balancer.leaf(estimate)
        terms: LossTerms = {}
        for name, critic in self._named():
            if self._waits(name, critic, step):
                continue
            for clips, samples in _equally_long(counts):
                _add(terms, name, critic.judge(_of(clips, target, samples), _of(clips, judged, samples)))
        weights = self._train.loss_weights if step is None else loss_weights(self._train, step)
        balanced: LossTerms = self.balancer(estimate, judged, terms, weights, counted=counted)
        return balanced

    def _waits(self, name: str, critic: Critic, step: int | None) -> bool:
        """Return whether none of a critic's losses has started."""
        starts = [self._train.loss_starts.get(_loss_name(name, loss), 0) for loss in critic.judged]
        return step is not None and step < min(starts)

    def _named(self) -> Iterator[tuple[str, Critic]]:
        for name, critic in self.critics.items():
            assert isinstance(critic, Critic), "the registry checked it"
            yield name, critic

    def _silence(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return a short clip, and the length 0, by which the codec counts nothing of it."""
        spec = self.codec.spec
        num_samples = max(spec.downsampling_ratio, round(SILENCE_SECONDS * spec.sample_rate))
        waveform = torch.zeros(1, spec.channels, num_samples, device=device)
        return waveform, torch.zeros(1, dtype=torch.int64, device=device)


def _loss_name(critic: str, loss: str) -> str:
    return critic if loss == DISTANCE else f"{critic}.{loss}"


def _add(terms: LossTerms, critic: str, found: LossTerms) -> None:
    """Add losses to those that are there already."""
    for loss, (total, count) in found.items():
        name = _loss_name(critic, loss)
        before = terms.get(name)
        terms[name] = (total, count) if before is None else (before[0] + total, before[1] + count)


def _equally_long(counts: Sequence[int]) -> Iterator[tuple[list[int], int]]:
    """Yield the clips of each length, and the length in samples: critics see no padding."""
    for samples in dict.fromkeys(counts):
        yield [clip for clip, count in enumerate(counts) if count == samples], samples


def _of(clips: Sequence[int], waveform: Tensor, samples: int) -> Tensor:
    """Return some clips of `[B, C, S]`, without padding; all of them without a copy."""
    chosen = waveform if len(clips) == len(waveform) else waveform[list(clips)]
    return chosen[..., :samples]


@contextmanager
def _constant(module: nn.Module) -> Iterator[None]:
    """Compute no gradients of a module's own parameters from what is computed in this context."""
    trained = [p for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _freeze(codec: Codec, parts: Sequence[str]) -> None:
    """Freeze parts of a codec. Raise SpecError for one that it does not have, or if nothing is left."""
    known = [name for name, child in codec.named_children() if list(child.parameters())]
    for i, part in enumerate(parts):
        if part not in known:
            raise SpecError(f"codec.freeze[{i}] is '{part}'; expected one of {', '.join(known)}.{did_you_mean(part, known)}")
        codec.get_submodule(part).requires_grad_(False)
    if not any(p.requires_grad for p in codec.parameters()):
        raise SpecError("nothing to train: codec.freeze names every part of the codec. Name fewer")


def write_codec(codec: Codec, checkpoint: Path, path: Path) -> None:
    """Write the weights of a checkpoint of CodecTraining as safetensors: the averaged ones, if it has them.

    Args:
        codec: built like the trained one; receives its weights.
        checkpoint: directory of the checkpoint.
        path: file to write.

    Raises:
        CheckpointError: the checkpoint belongs to another codec, or the file cannot be written.
    """
    load_trained_weights(codec, checkpoint, prefix="codec.")
    try:
        save_file({name: tensor.contiguous() for name, tensor in codec.state_dict().items()}, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"'{path}' cannot be written: {error}") from error
