"""Mel bands without phases: the formula in float64, phases that fit, clips that do not depend on their batch, and codes of the bands."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from soundomni.core.errors import SpecError
from soundomni.core.mel_filters import mel_filters
from soundomni.core.representation import Representation
from soundomni.vae import MelCodesCodec, MelMagnitudeCodec
from soundomni.vae.griffin_lim import griffin_lim

RATE = 8000
SETTINGS: dict[str, Any] = {"sample_rate": RATE, "frame_size": 80, "window": 256, "num_mels": 40}


def whole(waveform: Tensor) -> Tensor:
    return torch.full((len(waveform),), waveform.shape[-1])


def sounds(count: int = 3, samples: int = 2000, channels: int = 1) -> Tensor:
    """Tones and noise, `[B, C, S]`."""
    rng = torch.Generator().manual_seed(1)
    time = torch.arange(samples) / RATE
    pitches = 200 + 1500 * torch.rand(count, channels, 1, generator=rng)
    noise = torch.randn(count, channels, samples, generator=rng)
    return 0.3 * torch.sin(2 * torch.pi * pitches * time) + 0.05 * noise * (time > 0.1)


@pytest.mark.parametrize("changes", [{}, {"frequencies": (300.0, 3000.0)}, {"frame_size": 128}, {"window": 161, "num_mels": 80}])
def test_a_level_is_the_formula(changes: dict[str, Any]) -> None:
    arguments = {**SETTINGS, **changes}
    codec, clip = MelMagnitudeCodec(**arguments), sounds(1, 1111)
    hop, window = arguments["frame_size"], arguments["window"]
    shape = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    filters = mel_filters(
        num_mels=arguments["num_mels"],
        n_fft=window,
        sample_rate=RATE,
        scale="htk",
        frequencies=arguments.get("frequencies"),
        at_least_a_bin=True,
    )
    padded = np.concatenate([np.zeros(window), clip[0, 0].double().numpy(), np.zeros(window + hop)])
    frames = []
    for frame in range(-(-1111 // hop) + 1):
        first = window + frame * hop - window // 2
        power = np.square(np.abs(np.fft.rfft(padded[first : first + window] * shape)) * 2 / shape.sum())
        frames.append(np.log10(filters @ power / filters.sum(1) + 1e-6))
    np.testing.assert_allclose(codec.encode(clip, whole(clip)).values[0].T.numpy(), np.stack(frames), atol=2e-3)


@settings(max_examples=40, deadline=None)
@given(num_mels=st.integers(1, 100), window=st.integers(2, 600), rate=st.integers(1000, 48000))
def test_every_band_has_bins(num_mels: int, window: int, rate: int) -> None:
    num_mels = min(num_mels, window // 2)
    codec = MelMagnitudeCodec(sample_rate=rate, frame_size=1, window=window, num_mels=num_mels)
    assert bool(codec._bands.isfinite().all()) and torch.allclose(codec._bands.sum(1), torch.ones(num_mels), atol=1e-5)


def test_a_full_sine_has_a_level_of_about_zero() -> None:
    time = torch.arange(RATE) / RATE
    tone = torch.sin(2 * torch.pi * 1000 * time)[None, None]
    levels = MelMagnitudeCodec(**SETTINGS).encode(tone, whole(tone)).values[0, :, 10:-10]
    assert -0.7 < float(levels.amax(0).mean()) < 0.0


def inconsistency(codec: MelMagnitudeCodec, clips: Tensor) -> float:
    """How far the levels of what is decoded are from those that were decoded, in dB."""
    levels = codec.encode(clips, whole(clips))
    again = codec.encode(codec.decode(levels)[..., : clips.shape[-1]], whole(clips))
    return 10 * float((again.values - levels.values)[..., 4:-4].abs().mean())


def test_phases_fit_better_with_every_round() -> None:
    far = [inconsistency(MelMagnitudeCodec(**SETTINGS, rounds=rounds), sounds()) for rounds in (1, 8, 64)]
    assert far[0] > far[1] > far[2] and far[2] < 3.0, far


def test_phases_of_a_real_sound_are_found() -> None:
    """Phases are found whose spectra match those of a real signal."""
    window, hop = torch.hann_window(128, dtype=torch.float64), 16
    time = torch.arange(1600, dtype=torch.float64) / RATE
    clip = (torch.sin(2 * torch.pi * 500 * time) * torch.hann_window(1600, dtype=torch.float64))[None]
    padded = torch.nn.functional.pad(clip, (64, 128))
    spectra = torch.fft.rfft(padded.unfold(-1, 128, hop)[:, :101] * window).abs()
    found = griffin_lim(spectra, torch.tensor([101]), window, hop=hop, rounds=200)
    again = torch.fft.rfft(torch.nn.functional.pad(found, (64, 128)).unfold(-1, 128, hop)[:, :101] * window).abs()
    assert float((again - spectra).norm() / spectra.norm()) < 0.05


def test_a_clip_is_decoded_the_same_whatever_is_in_its_batch() -> None:
    codec, clips, lengths = MelMagnitudeCodec(**SETTINGS), sounds(3), torch.tensor([2000, 900, 1333])
    levels = codec.encode(clips, lengths)
    together = codec.decode(levels)
    for clip, length in enumerate(lengths.tolist()):
        frames = codec.spec.num_frames(length)
        own = Representation(levels.values[clip : clip + 1, :, :frames], torch.tensor([frames]), codec.spec)
        alone = codec.decode(own)
        torch.testing.assert_close(together[clip : clip + 1, :, : alone.shape[-1]], alone, rtol=1e-4, atol=1e-5)
        assert not together[clip, :, alone.shape[-1] :].any()
    spoiled = Representation(levels.values.clone(), levels.lengths, codec.spec)
    spoiled.values[1, :, codec.spec.num_frames(900) :] = float("nan")
    torch.testing.assert_close(codec.decode(spoiled), together)


def test_channels_are_decoded_by_themselves() -> None:
    mono, stereo = MelMagnitudeCodec(**SETTINGS), MelMagnitudeCodec(**SETTINGS, channels=2)
    clips = sounds(2, channels=2).double()
    decoded = stereo.decode(stereo.encode(clips, whole(clips)))
    for channel in range(2):
        own = clips[:, channel : channel + 1]
        torch.testing.assert_close(decoded[:, channel : channel + 1], mono.decode(mono.encode(own, whole(own))))


def test_silence_stays_silent_and_any_latents_give_finite_sound() -> None:
    codec = MelMagnitudeCodec(**SETTINGS)
    silence = torch.zeros(1, 1, 1000)
    assert float(codec.decode(codec.encode(silence, whole(silence))).abs().max()) < 1e-4
    for value in (1e30, -1e30, 0.0):
        assert bool(codec.decode(Representation(torch.full((1, 40, 5), value), torch.tensor([5]), codec.spec)).isfinite().all())
    nothing = torch.zeros(1, 1, 0)
    assert codec.encode(nothing, whole(nothing)).values.shape[-1] == codec.spec.num_frames(0)
    for frames in (0, 1):
        assert codec.decode(Representation(torch.zeros(1, 40, frames), torch.tensor([frames]), codec.spec)).shape == (1, 1, 0)


def test_more_levels_of_codes_are_nearer_to_the_bands() -> None:
    codec, clips = MelCodesCodec(**SETTINGS, num_codebooks=4, codebook_size=16), sounds(6)
    codec.fit([(clips, whole(clips))])
    wanted = codec.latents.encode(clips, whole(clips)).values
    codes = codec.encode(clips, whole(clips))
    assert codes.spec.codebook_sizes == (16,) * 4 and codes.frame_counts == codec.latents.encode(clips, whole(clips)).frame_counts
    far = []
    for levels in (1, 2, 4):
        found = codec.quantizer.decode(codes.values[:, :levels].transpose(1, 2).flatten(0, 1)).reshape(6, -1, 40).transpose(1, 2)
        far.append(float((found - wanted).square().mean()))
    assert far[0] > far[1] > far[2]
    fewer = Representation(codes.values[:, :2], codes.lengths, codec.spec.with_levels(2))
    assert codec.decode(fewer).shape == codec.decode(codes).shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame_size": 129}, "frame_size is 129; expected at most 128"),
        ({"num_mels": 129}, "num_mels is 129; expected at most 128"),
        ({"num_mels": 0}, "num_mels is 0; expected at least 1"),
        ({"window": 2**17}, "window is 131072; expected at most 65,536"),
        ({"rounds": 0}, "rounds is 0; expected at least 1"),
        ({"floor": 0.0}, "floor is 0.0; expected a power above 0"),
        (
            {"frequencies": (300.0, 5000.0)},
            "frequencies is .300.0, 5000.0.; expected the lowest and the highest one, from 0 to 4000 Hz",
        ),
        ({"frequencies": (300.0,)}, "frequencies is .300.0.; expected the lowest and the highest"),
        ({"frequencies": ()}, "frequencies is ..; expected the lowest and the highest"),
        ({"sample_rate": 0}, "sample_rate is 0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    for kind in (MelMagnitudeCodec, MelCodesCodec):
        with pytest.raises(SpecError, match=message) as raised:
            kind(**{**SETTINGS, **changes})
        assert "\n" not in str(raised.value)
