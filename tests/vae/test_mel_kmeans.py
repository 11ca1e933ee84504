"""Semantic tokens of mel spectra: a reference in float64, and what the tokens do not hear."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from soundomni.core.errors import CheckpointError, DataError, SpecError
from soundomni.core.mel_filters import mel_filters
from soundomni.vae import MelKmeansCodec

RATE = 8000
SETTINGS: dict[str, Any] = {"sample_rate": RATE, "frame_size": 80, "window": 256, "num_mels": 24, "num_clusters": 12}
KINDS: list[dict[str, Any]] = [{}, {"num_coefficients": 6}, {"context": 2, "num_coefficients": 4}, {"window": 81}, {"frame_size": 256}]


def tones(count: int = 5, samples: int = 1500, *, level: float = 0.3) -> Tensor:
    """Harmonic tones of different pitch and some noise, `[B, 1, S]`."""
    rng = torch.Generator().manual_seed(1)
    time = torch.arange(samples) / RATE
    pitches = 150 + 600 * torch.rand(count, 1, 1, generator=rng)
    wave = sum(torch.sin(2 * torch.pi * k * pitches * time) / k for k in range(1, 5))
    return level * (wave + 0.05 * torch.randn(count, 1, samples, generator=rng))


def whole(waveform: Tensor) -> Tensor:
    return torch.full((len(waveform),), waveform.shape[-1])


def fitted(**changes: Any) -> MelKmeansCodec:
    codec = MelKmeansCodec(**{**SETTINGS, **changes})
    codec.fit([(tones(), whole(tones()))])
    return codec


@pytest.mark.parametrize("changes", KINDS)
def test_the_description_of_a_frame_is_the_formula(changes: dict[str, Any]) -> None:
    settings = {**SETTINGS, "num_coefficients": None, "context": 0, "floor": 0.01, **changes}
    codec, clip = MelKmeansCodec(**settings), tones(1, 1111)
    hop, window, num_mels = settings["frame_size"], settings["window"], settings["num_mels"]
    shape = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    filters = mel_filters(num_mels=num_mels, n_fft=window, sample_rate=RATE, scale="htk")
    samples = np.concatenate([np.zeros(window), clip[0, 0].double().numpy(), np.zeros(window + hop)])
    frames = []
    for frame in range(-(-1111 // hop)):
        first = window + frame * hop - (window - hop) // 2
        bins = np.abs(np.fft.rfft(samples[first : first + window] * shape)) * 2 / shape.sum()
        mels = np.log(filters @ bins + settings["floor"])
        order, count = np.arange(num_mels), settings["num_coefficients"]
        cosines = [np.sqrt(2 / num_mels) * np.cos(np.pi * n * (order + 0.5) / num_mels) @ mels for n in range(1, (count or 0) + 1)]
        frames.append(np.asarray(cosines) if count else mels - mels.mean())
    nothing = np.zeros_like(frames[0])
    around = settings["context"]
    padded = [nothing] * around + frames + [nothing] * around
    expected = np.stack([np.concatenate(padded[i : i + 2 * around + 1]) for i in range(len(frames))])
    np.testing.assert_allclose(codec.features(clip, whole(clip))[0].numpy(), expected, atol=2e-4)


def test_loudness_has_no_part_in_the_tokens_of_what_is_above_the_floor() -> None:
    codec = fitted(floor=1e-6)
    codes = [codec.encode(level * tones(), whole(tones())).values for level in (1.0, 0.1)]
    assert (codes[0] == codes[1]).double().mean() > 0.99


def test_all_that_is_far_below_the_floor_has_the_token_of_silence() -> None:
    codec = fitted()
    quiet, silence = (codec.encode(level * tones(), whole(tones())).values for level in (1e-6, 0.0))
    assert torch.equal(quiet, silence) and len(silence.unique()) == 1


def test_the_coarse_shape_hears_the_vowel_and_not_the_pitch() -> None:
    """Two spectral envelopes at many pitches are told apart, whatever the pitch."""
    time, rng = torch.arange(2400) / RATE, np.random.default_rng(0)
    clips, vowels = [], []
    for i in range(40):
        pitch, (low, high) = rng.uniform(90, 180), ((300, 2300), (700, 1200))[i % 2]
        parts = np.arange(1, int(3800 / pitch))
        gains = sum(1 / (1 + ((parts * pitch - formant) / 120) ** 2) for formant in (low, high))
        clips.append(sum(g * torch.sin(2 * torch.pi * float(k) * pitch * time) for k, g in zip(parts, gains, strict=True)))
        vowels.append(i % 2)
    waveform = 0.1 * torch.stack(clips)[:, None]
    codec = MelKmeansCodec(sample_rate=RATE, frame_size=160, window=512, num_mels=32, num_coefficients=8, num_clusters=2)
    codec.fit([(waveform[:20], whole(waveform[:20]))])
    heard = codec.encode(waveform[20:], whole(waveform[20:])).values[:, 0, 2:-2].double().mean(1).round()
    agree = float((heard == torch.tensor(vowels[20:])).double().mean())
    assert max(agree, 1 - agree) == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 79}, "window is 79; expected at least frame_size, 80"),
        ({"num_coefficients": 24}, "num_coefficients is 24; expected a number from 1 to 23, or null"),
        ({"num_coefficients": 0}, "num_coefficients is 0"),
        ({"context": -1}, "context is -1"),
        ({"floor": 0.0}, "floor is 0.0; expected a number above 0"),
        ({"num_clusters": 1}, "codebook_size is 1"),
        ({"num_mels": 0}, "num_mels is 0; expected a number from 2 to"),
        ({"num_mels": 1}, "num_mels is 1; expected a number from 2 to"),
        ({"num_mels": 10**9}, "num_mels is 1000000000; expected a number from 2 to"),
        ({"window": 10**12}, "window is 1000000000000; expected"),
        ({"context": 10**9}, "context is 1000000000; expected"),
        ({"num_clusters": 10**10}, "num_clusters is 10000000000; expected"),
        ({"sample_rate": 0}, "sample_rate is 0"),
    ],
)
def test_wrong_arguments_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        MelKmeansCodec(**{**SETTINGS, **changes})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_codec_in_another_precision_finds_the_same_tokens(dtype: torch.dtype) -> None:
    codec = fitted()
    expected = codec.encode(tones(), whole(tones())).values
    found = codec.to(dtype).encode(tones().to(dtype), whole(tones())).values
    assert (found == expected).double().mean() > 0.9


def test_it_has_to_be_measured_on_enough_and_does_not_decode() -> None:
    codec = MelKmeansCodec(**SETTINGS)
    with pytest.raises(CheckpointError, match="have not been measured"):
        codec.encode(tones(), whole(tones()))
    with pytest.raises(DataError, match="at least as many frames, but there are only 2"):
        codec.fit([(tones(1, 160), torch.tensor([160]))])
    with pytest.raises(DataError, match="only encodes"):
        codec.decode(fitted().encode(tones(), whole(tones())))
