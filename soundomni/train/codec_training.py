"""Training a codec on its own, in the loop that trains models.

Shape letters: B clips, C audio channels, S samples.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from soundomni.core.errors import CheckpointError, SpecError
from soundomni.core.interfaces import Codec, LossTerms
from soundomni.core.sequence import Clips, PackedBatch
from soundomni.train.state import load_trained_weights

SILENCE_SECONDS = 0.1


class CodecTraining(nn.Module):
    """Makes a codec trainable on the clips of packed batches.

    Each codec counts its losses in its own way, so each batch weighs the same (see Trainable.count_terms).

    Args:
        codec: all its parameters are trained.

    Raises:
        SpecError: the codec does not have parameters, or does not define losses.
    """

    FORWARD_METHODS: ClassVar[tuple[str, ...]] = ("reconstruct",)

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        if type(codec).training_losses is Codec.training_losses or not list(codec.parameters()):
            raise SpecError(
                f"train.target is codec, but {type(codec).__name__} has nothing to train. Choose a codec with weights and losses"
            )
        self.codec = codec.requires_grad_(True)

    @property
    def units(self) -> tuple[nn.Module, ...]:
        """No inner units: a codec is one unit."""
        return ()

    def count_terms(self, batch: PackedBatch) -> dict[str, float]:
        """Return nothing: no loss can be counted before the codec has run."""
        return {}

    def forward(self, batch: PackedBatch) -> LossTerms:
        """Return the codec's losses on the clips to make; clip b draws from its own seed.

        Without clips, a silent one takes their place and counts nothing, so that every rank computes the same gradients.
        """
        clips = next(iter(batch.clips.values()), Clips.none())
        if len(clips) == 0:
            terms = self._losses(*self._silence(clips.waveform.device), seeds=(0,))
            return {name: (0.0 * total, count) for name, (total, count) in terms.items()}
        return self._losses(clips.waveform, clips.lengths, seeds=clips.seeds)

    @torch.no_grad()
    def reconstruct(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Return the codec's version `[B, C, at least S]` of clips `[B, C, S]` of `lengths` `[B]`."""
        return self.codec.decode(self.codec.encode(waveform, lengths))

    def _losses(self, waveform: Tensor, lengths: Tensor, *, seeds: tuple[int, ...]) -> LossTerms:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return self.codec.training_losses(waveform, lengths, generators)

    def _silence(self, device: torch.device) -> tuple[Tensor, Tensor]:
        spec = self.codec.spec
        num_samples = max(spec.downsampling_ratio, round(SILENCE_SECONDS * spec.sample_rate))
        waveform = torch.zeros(1, spec.channels, num_samples, device=device)
        return waveform, torch.tensor([num_samples], device=device)


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
