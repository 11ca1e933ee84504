"""Distance of mel spectra at several resolutions (Zeghidour et al. 2021, "SoundStream", section III-E; after Gritsenko
et al. 2020, "A spectral energy distance for parallel speech synthesis").

Shape letters: B clips, C audio channels, S samples, W samples per window, F frequency bins, M mel bins, T frames.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from soundomni.core.errors import SpecError, did_you_mean, shown
from soundomni.core.interfaces import Critic, LossTerms
from soundomni.core.limits import check_count
from soundomni.core.mel_filters import MelScale, mel_filters
from soundomni.vae.clips import check_audio_format
from soundomni.vae.critics.shares import nothing, share
from soundomni.vae.critics.windows import check_windows
from soundomni.vae.spectrum import spectrum
from soundomni.vae.stft_loss import MAGNITUDE_FLOOR

LogError = Literal["l1", "l2", "squares"]


class MultiMelCritic(Critic):
    """L1 distance of mel spectra plus √(W / 2) times the L2 distance of their logarithms, over windows of 2^6 to 2^11
    samples.

    The norms run over the M bins of a frame and are divided by M. The distance of a clip is their mean over frames,
    channels and windows, so that it does not grow with the length of a clip. In short windows some filters lie between
    two frequencies; they are zero, and add nothing.

    The defaults are SoundStream's. DAC's distance has windows of 2^5 to 2^11 with 5, 10, 20, 40, 80, 160 and 320 bins,
    `scale="slaney"`, `linear_weight=0`, `log_weight=0.4343` (for logarithms to base 10) and `log_error="l1"`;
    EnCodec's has `power=2`, `log_weight=0.1886` and `log_error="squares"`.

    Args:
        sample_rate, channels: format of the clips (runtime).
        windows: lengths in samples, W; hops are a quarter. Windows longer than a clip are left out.
        num_mels: number of mel bins M, one for all windows or one for each.
        scale: "htk", or "slaney" with triangles of equal area.
        power: 1 to combine magnitudes, 2 to combine their squares.
        linear_weight: weight of the L1 distance of mel spectra.
        log_weight: weight of the distance of their natural logarithms; null is √(W / 2) for each window.
        log_error: norm of that distance: "l1", "l2", or "squares", the sum of squares.
        floor: number that is added to mel spectra before the logarithm, above 0.

    Raises:
        SpecError: an argument is out of range.
    """

    judged: ClassVar[tuple[str, ...]] = ("distance",)

    def __init__(
        self,
        *,
        sample_rate: int,
        channels: int,
        windows: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048),
        num_mels: tuple[int, ...] = (64,),
        scale: MelScale = "htk",
        power: int = 1,
        linear_weight: float = 1.0,
        log_weight: float | None = None,
        log_error: LogError = "l2",
        floor: float = 1e-5,
    ) -> None:
        super().__init__()
        check_audio_format(sample_rate, channels)
        self.sample_rate = sample_rate
        self.windows = check_windows(windows)
        self.num_mels = _one_for_each(num_mels, len(windows))
        for name, value, known in (("scale", scale, get_args(MelScale)), ("log_error", log_error, get_args(LogError))):
            if value not in known:
                raise SpecError(f"{name} is '{value}'; expected one of {', '.join(known)}.{did_you_mean(value, known)}")
        if power not in (1, 2):
            raise SpecError(f"power is {power}; expected 1 for magnitudes or 2 for their squares")
        if not floor > 0:
            raise SpecError(f"floor is {floor}; expected a number above 0")
        self.scale: MelScale = scale
        self.power = power
        self.linear_weight = linear_weight
        self.log_weight = log_weight
        self.log_error: LogError = log_error
        self.floor = floor

    def judge(self, target: Tensor, estimate: Tensor) -> LossTerms:
        """Return the sum of the distances of `[B, C, S]`, and B."""
        target = target.detach()
        distances = [
            self._distance(target, estimate, window, num_mels)
            for window, num_mels in zip(self.windows, self.num_mels, strict=True)
            if window <= target.shape[-1]
        ]
        return {"distance": share(torch.stack(distances).mean(0)) if distances else nothing(estimate)}

    def _distance(self, target: Tensor, estimate: Tensor, window: int, num_mels: int) -> Tensor:
        """Return the distance of each clip `[B]` in one window."""
        theirs, ours = (self._mels(waveform, window, num_mels) for waveform in (target, estimate))
        linear = (theirs - ours).abs().sum(2)
        difference = (theirs + self.floor).log() - (ours + self.floor).log()
        weight = math.sqrt(window / 2) if self.log_weight is None else self.log_weight
        frames = (self.linear_weight * linear + weight * _norm(difference, self.log_error)) / num_mels
        return frames.mean((1, 2))

    def _mels(self, waveform: Tensor, window: int, num_mels: int) -> Tensor:
        """Map `[B, C, S]` to mel spectra `[B, C, M, T]`."""
        bins = spectrum(waveform, window, center=True)
        values = bins.real.square() + bins.imag.square()
        if self.power == 1:
            values = (values + MAGNITUDE_FLOOR**2).sqrt()  # a root has no finite slope at zero
        filters = _filters(num_mels, window, self.sample_rate, self.scale, values.device, values.dtype)
        with torch.autocast(values.device.type, enabled=False):
            return filters @ values


def _norm(difference: Tensor, error: LogError) -> Tensor:
    """Map `[B, C, M, T]` to the norms `[B, C, T]` of frames."""
    if error == "l1":
        return difference.abs().sum(2)
    if error == "squares":
        return difference.square().sum(2)
    norm: Tensor = torch.linalg.vector_norm(difference, dim=2)
    return norm


def _one_for_each(num_mels: tuple[int, ...], num_windows: int) -> tuple[int, ...]:
    if len(num_mels) not in (1, num_windows):
        expected = f"one number, or one for each of the {num_windows} windows"
        raise SpecError(f"num_mels is {shown(list(num_mels))}; expected {expected}")
    for count in num_mels:
        check_count("num_mels", count)
    return tuple(num_mels) if len(num_mels) == num_windows else tuple(num_mels) * num_windows


@lru_cache(maxsize=32)
def _filters(
    num_mels: int,
    window: int,
    sample_rate: int,
    scale: MelScale,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Return the filters `[M, F]`."""
    filters = mel_filters(num_mels=num_mels, n_fft=window, sample_rate=sample_rate, scale=scale)
    with torch.inference_mode(False):  # the filters outlive the call, and a later one may be recorded for backward
        return torch.tensor(filters, device=device, dtype=dtype)
