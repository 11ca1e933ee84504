"""Encoding the clips of a dataset, with the same bits as in a run that reads the audio.

Shape letters: B clips, C audio channels, S samples, D latent dimensions, K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch

from soundomni.core.assembly.encoding import encode_clips
from soundomni.core.errors import DataError, RejectedAudioError, SpecError, UnreadableAudioError, message_of
from soundomni.core.interfaces import Codec, Dataset, Item, Skip
from soundomni.core.waveform import resampled_length
from soundomni.data.audio import fit_announced
from soundomni.data.encoded.layout import Stored
from soundomni.data.samples import converted

_THREADS, _AHEAD = 2, 2
_PROBE_SECONDS = 0.1
LARGEST_INT16 = 1 << 15


@dataclass(frozen=True)
class Encoded:
    """An encoded clip: what is known about it, and its values as stored, `[T, D]` or `[T, K]`."""

    item: Item
    rows: np.ndarray


class ClipEncoder:
    """Encodes clips of a dataset.

    Args:
        dataset: a dataset of audio.
        codec: a fitted codec, in evaluation mode, on `device`.
        device: where it runs.
        dtype: how latents are stored; codes are stored as the smallest integers that hold them.
        max_seconds: encode only the beginning of longer clips, up to this length; None for no limit.
        batch_size: clips that are read ahead, and that a codec without parameters encodes at once.

    Raise SpecError if the clips are encoded already, or the codec is random: it would draw new values in every epoch.
    """

    def __init__(
        self,
        *,
        dataset: Dataset,
        codec: Codec,
        device: str | torch.device = "cpu",
        dtype: Stored = "float32",
        max_seconds: float | None = None,
        batch_size: int = 16,
    ) -> None:
        if dataset.encoding is not None:
            raise SpecError(f"the clips are encoded already, by {dataset.encoding.codec}. Give a dataset of audio")
        self.codec = codec
        self.dtype: Stored = dtype if codec.spec.kind == "continuous" else _integers(codec.spec.codebook_sizes)
        self._dataset = dataset
        self._device = torch.device(device)
        self.max_seconds = max_seconds
        self._batch_size = batch_size
        if self._is_random():
            raise SpecError(
                "the codec draws its encoding at random, such as with sample_latents, so one encoding cannot stand for all epochs. "
                "Turn that off in the codec, and in the spec that trains on the clips"
            )

    def item(self, index: int) -> Item:
        """Return what is known about a clip, with its length after the cut to `max_seconds`."""
        item = self._dataset.item(index)
        if self.max_seconds is None:
            return item
        return replace(item, num_samples=min(item.num_samples, max(1, int(self.max_seconds * item.sample_rate))))

    def num_frames(self, item: Item) -> int:
        """Return T of a clip."""
        spec = self.codec.spec
        return spec.num_frames(resampled_length(item.num_samples, item.sample_rate, spec.sample_rate))

    def num_bytes(self, item: Item) -> int:
        """Return the size of a clip's values as stored."""
        return self.num_frames(item) * self.codec.spec.token_dim * np.dtype(self.dtype).itemsize

    def encode(self, indices: Sequence[int]) -> Iterator[Encoded | Skip]:
        """Yield the clips of `indices` in order, or a Skip for a clip that cannot be read or that a filter leaves out.

        Raise DataError for values that are not finite, or too large for the dtype.
        """
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="soundomni-encode") as threads:
            groups = (indices[first : first + self._batch_size] for first in range(0, len(indices), self._batch_size))
            ahead = [[threads.submit(self._read, index) for index in group] for group in islice(groups, _AHEAD)]
            while ahead:
                group = ahead.pop(0)
                ahead += [[threads.submit(self._read, index) for index in some] for some in islice(groups, 1)]
                yield from self._encoded([one.result() for one in group])

    def _read(self, index: int) -> tuple[Item, np.ndarray] | Skip:
        """Return a clip `[C, S]` at the codec's rate."""
        item, spec = self.item(index), self.codec.spec
        total = self._dataset.item(index).num_samples
        try:
            if item.num_samples < total:
                waveform, rate = self._dataset.load_part(index, first=0, num_samples=item.num_samples)
            else:
                waveform, rate = self._dataset.load(index)
            if rate != item.sample_rate:
                raise UnreadableAudioError(f"cannot use '{item.key}': it decodes at {rate} Hz, but {item.sample_rate} Hz were announced")
            part = fit_announced(waveform, item.num_samples, rate, name=item.key)
            return item, converted(part, rate, spec.sample_rate, spec.channels, key=item.key)
        except RejectedAudioError as error:
            return Skip(item.key, message_of(error), "unsuitable", "left out by a filter")
        except UnreadableAudioError as error:
            return Skip(item.key, message_of(error))

    @torch.no_grad()
    def _encoded(self, clips: Sequence[tuple[Item, np.ndarray] | Skip]) -> Iterator[Encoded | Skip]:
        read = [clip for clip in clips if not isinstance(clip, Skip)]
        counts = [waveform.shape[1] for _, waveform in read]
        batch = torch.zeros(len(read), self.codec.spec.channels, max(counts, default=0))
        for row, (_, waveform) in zip(batch, read, strict=True):
            row[:, : waveform.shape[1]] = torch.from_numpy(waveform)
        made: Iterator[torch.Tensor] = iter(())
        if read:
            lengths = torch.tensor(counts)
            values = encode_clips(self.codec, batch.to(self._device), lengths.to(self._device), num_samples=counts).values
            made = iter(values.cpu())
        for clip in clips:
            if isinstance(clip, Skip):
                yield clip
            else:
                yield Encoded(clip[0], self._stored(next(made)[:, : self.num_frames(clip[0])], clip[0].key))

    def _stored(self, values: torch.Tensor, key: str) -> np.ndarray:
        given = values.T.contiguous().numpy()
        with np.errstate(over="ignore"):  # found below
            rows: np.ndarray = given.astype(self.dtype)
        if self.codec.spec.kind == "continuous" and not np.isfinite(rows).all():
            if np.isfinite(given).all():
                raise DataError(f"'{key}' has latents up to {np.abs(given).max():.3g}, too large for {self.dtype}. Use --dtype float32")
            raise DataError(f"the codec gives latents that are not finite for '{key}'. Leave the clip out, or use another codec")
        return rows

    @torch.no_grad()
    def _is_random(self) -> bool:
        """Return whether the codec draws from the generators that training passes."""
        spec = self.codec.spec
        samples = max(spec.downsampling_ratio, int(_PROBE_SECONDS * spec.sample_rate))
        noise = 0.1 * torch.randn(1, spec.channels, samples, generator=torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(0)
        before = generator.get_state()
        self.codec.encode(noise.to(self._device), torch.tensor([samples], device=self._device), [generator])
        return not torch.equal(before, generator.get_state())


def _integers(codebook_sizes: Sequence[int]) -> Stored:
    return "int16" if max(codebook_sizes) <= LARGEST_INT16 else "int32"
