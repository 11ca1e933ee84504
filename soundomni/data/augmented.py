"""Applies the augmentations of a dataset to the clips of its samples.

Each augmentation draws from its own generator, seeded by the sample's seed and the augmentation's name in the spec. So
adding or removing one augmentation does not change what the others draw, and a sample is the same on any rank and after
a run resumes.

Shape letters: C audio channels, S samples, T tokens, F feature dimensions.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from enum import IntEnum

import numpy as np

from soundomni.core.errors import PluginError, SpecError, listed
from soundomni.core.interfaces import FASTEST, SLOWEST, TEMPO_ROUNDING, Augmentation, Dataset, Item
from soundomni.core.sequence import Role, Sample, Segment
from soundomni.core.waveform import fit_length
from soundomni.data.audio import fit_announced
from soundomni.data.samples import Crop

_PROBES = 200
"""Seeds for which the product of several tempos is checked before anything is read."""


class _Purpose(IntEnum):
    """What an augmentation draws numbers for; each purpose has a stream of its own."""

    CHANGE = 0
    MASK = 1


class Augmenter:
    """The augmentations of one dataset, which change its samples.

    Args:
        augmentations: name → augmentation, in the order in which they are applied.

    Raise SpecError if several of them make clips faster or slower, and together by too much.
    """

    def __init__(self, augmentations: Mapping[str, Augmentation]) -> None:
        self._augmentations = dict(augmentations)
        self._with_tempo = {name: one for name, one in augmentations.items() if type(one).tempo is not Augmentation.tempo}
        for seed in range(_PROBES if len(self._with_tempo) > 1 else 0):
            self._tempo(seed)

    def lasting(self, item: Item, seed: int) -> Item:
        """Return the item with the length of its whole clip after the augmentations that this seed draws."""
        tempo = self._tempo(seed)
        return item if tempo == 1.0 else replace(item, num_samples=max(1, round(item.num_samples / tempo)))

    def read(self, dataset: Dataset, index: int, crop: Crop, seed: int) -> tuple[np.ndarray, int]:
        """Read what `crop` needs of a clip, and return it changed, `[C, crop.num_samples]`, and its rate.

        Args:
            dataset: the dataset.
            index: index of the item.
            crop: the part of the clip that is used, in a clip of the length that `lasting` gives.
            seed: seed of the sample.

        Raise UnreadableAudioError as the dataset does and if a clip does not have its announced length, and PluginError
        if an augmentation returns anything but such a clip.
        """
        item, tempo = dataset.item(index), self._tempo(seed)
        if crop.num_samples == crop.total:
            waveform, rate = dataset.load(index)
            count = item.num_samples
        else:
            count = min(item.num_samples, max(1, round(crop.num_samples * tempo)))
            first = min(int(crop.offset * tempo), item.num_samples - count)
            waveform, rate = dataset.load_part(index, first=first, num_samples=count)
        waveform = fit_announced(waveform, count, rate, name=item.key)
        for name, one in self._augmentations.items():
            faster = one.tempo(self._draws(name, seed))
            waveform = _checked(name, waveform, one.change(waveform, rate, self._draws(name, seed)), faster)
        return fit_length(waveform, crop.num_samples), rate

    def masked(self, sample: Sample, feature_dims: Mapping[str, int]) -> Sample:
        """Return the sample with masks for the features of the clips that the model hears.

        Args:
            sample: the sample.
            feature_dims: modality that hears clips → dimensions of its features.
        """

        def with_mask(segment: Segment, place: tuple[int, ...]) -> Segment:
            added = tuple(with_mask(other, (*place, i)) for i, other in enumerate(segment.aligned))
            segment = replace(segment, aligned=added) if added else segment
            if segment.role != Role.FEATURES or segment.modality not in feature_dims:
                return segment
            return replace(segment, masked=self._mask(segment.num_tokens, feature_dims[segment.modality], sample.seed, place))

        return replace(sample, segments=tuple(with_mask(segment, (i,)) for i, segment in enumerate(sample.segments)))

    def _tempo(self, seed: int) -> float:
        tempo = 1.0
        for name, one in self._with_tempo.items():
            faster = one.tempo(self._draws(name, seed))
            if not SLOWEST <= faster <= FASTEST:
                raise PluginError(f"augmentation '{name}' has the tempo {faster}; expected {SLOWEST:g} to {FASTEST:g}")
            tempo *= faster
        if not SLOWEST <= tempo <= FASTEST:
            names = listed([f"'{name}'" for name in self._with_tempo])
            raise SpecError(
                f"the augmentations {names} together have the tempo {tempo:g}; expected {SLOWEST:g} to {FASTEST:g}. Narrow their "
                "ranges, or remove one of them"
            )
        return tempo

    def _mask(self, num_tokens: int, feature_dim: int, seed: int, place: tuple[int, ...]) -> np.ndarray | None:
        masked = None
        for name, one in self._augmentations.items():
            found = one.mask(num_tokens, feature_dim, self._draws(name, seed, _Purpose.MASK, *place))
            if found is None:
                continue
            if found.dtype != np.bool_ or found.shape != (num_tokens, feature_dim):
                given = f"a mask of {found.dtype} {list(found.shape)}"
                raise PluginError(f"augmentation '{name}' returned {given}; expected bool {[num_tokens, feature_dim]}")
            masked = found if masked is None else masked | found
        return masked

    def _draws(self, name: str, seed: int, purpose: _Purpose = _Purpose.CHANGE, *place: int) -> np.random.Generator:
        return np.random.default_rng([purpose, seed, zlib.crc32(name.encode()), *place])


def _checked(name: str, before: np.ndarray, after: np.ndarray, tempo: float) -> np.ndarray:
    """Return a changed clip of S / tempo samples. Raise PluginError if `after` is not such a clip."""
    expected = max(1, round(before.shape[1] / tempo))
    good = isinstance(after, np.ndarray) and after.dtype == np.float32 and after.ndim == 2 and len(after) == len(before)
    if not good or abs(after.shape[1] - expected) > TEMPO_ROUNDING:
        found = f"{after.dtype} {list(after.shape)}" if isinstance(after, np.ndarray) else type(after).__name__
        raise PluginError(f"augmentation '{name}' returned {found}; expected float32 {[len(before), expected]}")
    if not np.isfinite(after).all():
        raise PluginError(f"augmentation '{name}' returned samples that are not finite")
    return fit_length(after, expected)
