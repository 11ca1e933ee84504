"""Moving clips up or down in pitch with a phase vocoder (Laroche and Dolson 1999, "Improved Phase Vocoder Time-Scale
Modification of Audio").

Shape letters: C audio channels, S samples, B frequency bins, L frames.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from soundomni.core.errors import PluginError
from soundomni.core.interfaces import Augmentation
from soundomni.core.waveform import fit_length
from soundomni.data.augmentations.bandlimited import resampled_by
from soundomni.data.augmentations.checks import check_probability, check_range

_WINDOW_SECONDS = 0.046
_SHORTEST_WINDOW = 64


class Pitch(Augmentation):
    """Moves a clip up or down in pitch; its length stays.

    It needs torchaudio (`pip install soundomni[torchaudio]`). A phase vocoder smears attacks a little; `speed` does not, but changes
    the length too.

    Args:
        semitones: range of the change in semitones, drawn evenly.
        probability: probability of changing a clip.

    Raise PluginError without torchaudio, and SpecError for a range that is not in order or beyond two octaves, or a probability that is
    not from 0 to 1.
    """

    def __init__(self, *, semitones: tuple[float, float] = (-2.0, 2.0), probability: float = 1.0) -> None:
        check_range("pitch", "semitones", semitones, least=-24.0, most=24.0)
        check_probability("pitch", probability)
        self._torchaudio = _torchaudio()
        self.semitones, self.probability = semitones, probability

    def change(self, waveform: np.ndarray, sample_rate: int, draws: np.random.Generator) -> np.ndarray:
        """Return the clip `[C, S]` with its frequencies multiplied by 2^(semitones / 12)."""
        is_changed, ratio = draws.random() < self.probability, 2.0 ** (float(draws.uniform(*self.semitones)) / 12.0)
        if not is_changed or ratio == 1.0:
            return waveform
        return fit_length(resampled_by(self._stretched(waveform, ratio, sample_rate), ratio), waveform.shape[1])

    @torch.no_grad()
    def _stretched(self, waveform: np.ndarray, ratio: float, sample_rate: int) -> np.ndarray:
        """Return the clip `[C, S]` at the same pitch, `ratio` times as long."""
        n_fft = max(_SHORTEST_WINDOW, 2 ** round(math.log2(_WINDOW_SECONDS * sample_rate)))
        hop, window = n_fft // 4, torch.hann_window(n_fft)
        clip = torch.from_numpy(fit_length(waveform, max(n_fft, waveform.shape[1])))
        spectrum = torch.stft(clip, n_fft, hop, window=window, return_complex=True)  # [C, B, L]
        advance = torch.linspace(0, math.pi * hop, spectrum.shape[1])[:, None]
        longer = self._torchaudio.functional.phase_vocoder(spectrum, 1.0 / ratio, advance)
        stretched = torch.istft(longer, n_fft, hop, window=window, length=round(clip.shape[1] * ratio))
        return fit_length(stretched.numpy(), max(1, round(waveform.shape[1] * ratio)))


def _torchaudio() -> Any:
    """Return torchaudio. Raise PluginError with the install hint if it cannot be imported."""
    try:
        import torchaudio
    except (ImportError, OSError) as error:  # OSError if it belongs to another torch
        raise PluginError("augmentation 'pitch' needs the package torchaudio: pip install soundomni[torchaudio]") from error
    return torchaudio
