"""Mel bands without phases: the formula in float64, clips that do not depend on their batch or on chunks, and codes of the bands."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from soundomni.core.assembly.chunked import decode_in_chunks, encode_in_chunks
from soundomni.core.errors import SpecError
from soundomni.core.mel_filters import mel_filters
from soundomni.core.representation import Representation
from soundomni.vae import MelCodesCodec, MelMagnitudeCodec
from soundomni.vae.griffin_lim import PERIOD
from soundomni.vae.mel_synthesis import spread

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
        frames.append(np.log10(filters @ power / filters.sum(1) + 1e-10))
    latents = codec.encode(clip.double(), whole(clip)).values[0].T.numpy()
    np.testing.assert_allclose(latents, (np.stack(frames) + 7.0) / 2.5, atol=1e-9)
    np.testing.assert_allclose(codec.encode(clip, whole(clip)).values[0].T.numpy(), latents, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(num_mels=st.integers(1, 100), window=st.integers(2, 600), rate=st.integers(1000, 48000))
def test_every_band_has_bins(num_mels: int, window: int, rate: int) -> None:
    num_mels = min(num_mels, window // 2)
    bands = MelMagnitudeCodec(sample_rate=rate, frame_size=window // 2, window=window, num_mels=num_mels).synthesis.bands
    np.testing.assert_allclose(bands.sum(1), np.ones(num_mels), atol=1e-12)


@pytest.mark.parametrize(
    ("rate", "sizes"),
    [(8000, (80, 256, 48)), (16000, (160, 512, 64)), (24000, (240, 768, 74)), (44100, (441, 1536, 88)), (48000, (480, 1536, 91))],
)
def test_sizes_follow_the_sample_rate(rate: int, sizes: tuple[int, int, int]) -> None:
    codec = MelMagnitudeCodec(sample_rate=rate, channels=2)
    assert (codec.spec.downsampling_ratio, codec.window, codec.spec.latent_dim) == (*sizes[:2], 2 * sizes[2])
    narrow = MelMagnitudeCodec(sample_rate=rate, frequencies=(300.0, 3000.0))
    assert narrow.spec.latent_dim == 33 and narrow.window == sizes[1]
    assert MelMagnitudeCodec(sample_rate=rate, frame_size=10).window == 32


@settings(max_examples=40, deadline=None)
@given(rate=st.integers(1, 200_000))
def test_every_rate_has_sizes(rate: int) -> None:
    codec = MelMagnitudeCodec(sample_rate=rate)
    assert codec.window >= 2 * codec.spec.downsampling_ratio and codec.spec.token_dim <= codec.window // 2


def test_silence_and_a_full_sine_have_fixed_latents() -> None:
    codec, time = MelMagnitudeCodec(**SETTINGS), torch.arange(RATE) / RATE
    tone = torch.sin(2 * torch.pi * 1000 * time)[None, None]
    peaks = codec.encode(tone, whole(tone)).values[0, :, 10:-10].amax(0)
    assert 2.5 < float(peaks.mean()) < 2.8
    silence = codec.encode(0 * tone, whole(tone)).values
    torch.testing.assert_close(silence, torch.full_like(silence, -1.2))


def test_latents_of_sounds_need_no_scaling() -> None:
    latents = MelMagnitudeCodec(**SETTINGS).encode(sounds(), whole(sounds())).values
    assert abs(float(latents.mean())) < 1.0 and 0.5 < float(latents.std()) < 1.5


def inconsistency(codec: MelMagnitudeCodec, clips: Tensor) -> float:
    """How far the levels of what is decoded are from those that were decoded, in dB."""
    levels = codec.encode(clips, whole(clips))
    again = codec.encode(codec.decode(levels)[..., : clips.shape[-1]], whole(clips))
    return 25 * float((again.values - levels.values)[..., 4:-4].abs().mean())


def test_phases_fit_better_with_every_round() -> None:
    far = [inconsistency(MelMagnitudeCodec(**SETTINGS, rounds=rounds), sounds()) for rounds in (1, 8, 64)]
    assert far[0] > far[1] > far[2] and far[2] < 3.0, far


def test_a_clip_is_decoded_the_same_whatever_is_in_its_batch() -> None:
    codec, clips, lengths = MelMagnitudeCodec(**SETTINGS), sounds(3), torch.tensor([2000, 900, 1333])
    levels = codec.encode(clips, lengths)
    together = codec.decode(levels)
    for clip, length in enumerate(lengths.tolist()):
        frames = codec.spec.num_frames(length)
        own = Representation(levels.values[clip : clip + 1, :, :frames], torch.tensor([frames]), codec.spec)
        alone = codec.decode(own)
        torch.testing.assert_close(together[clip : clip + 1, :, : alone.shape[-1]], alone, rtol=0, atol=1e-7)
        assert not together[clip, :, alone.shape[-1] :].any()
    spoiled = Representation(levels.values.clone(), levels.lengths, codec.spec)
    spoiled.values[1, :, codec.spec.num_frames(900) :] = float("nan")
    torch.testing.assert_close(codec.decode(spoiled), together)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"channels": 2, "frame_size": 37, "window": 75, "num_mels": 20},
        {"frame_size": 64, "window": 256},
        {"frame_size": 50, "window": 101},
        {"frame_size": 7, "window": 64, "num_mels": 20},
    ],
)
def test_chunks_give_the_samples_of_the_whole_clip(changes: dict[str, Any]) -> None:
    """The clip is longer than the period of the first phases, so chunks begin before and after its end."""
    codec = MelMagnitudeCodec(**{**SETTINGS, "rounds": 6, **changes})
    frames = PERIOD + 200
    clip = sounds(1, frames * codec.spec.downsampling_ratio - 3, codec.spec.channels)
    latents = codec.encode(clip, whole(clip))
    decoded = codec.decode(latents)
    for chunk in (97, PERIOD, 600):
        in_chunks = encode_in_chunks(codec, clip, whole(clip), chunk_frames=chunk).values
        torch.testing.assert_close(in_chunks, latents.values, rtol=0, atol=1e-6)
        torch.testing.assert_close(decode_in_chunks(codec, latents, chunk_frames=chunk), decoded, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("hop", "window"), [(16, 51), (16, 64), (10, 20)])
def test_the_receptive_field_is_what_samples_depend_on(hop: int, window: int) -> None:
    """A changed frame changes the samples within reach, and no others; a reach that is one less would be too little."""
    codec = MelMagnitudeCodec(sample_rate=RATE, frame_size=hop, window=window, num_mels=min(8, window // 2), rounds=2)
    field, frames, place = codec.receptive_field, 80, 40
    latents = codec.encode(sounds(1, (frames - 1) * hop), torch.tensor([(frames - 1) * hop])).values.double()
    changed = latents.clone()
    changed[..., place] += 0.3
    lengths = torch.tensor([frames])
    one, other = (codec.decode(Representation(values, lengths, codec.spec))[0, 0] for values in (latents, changed))
    blocks = (one - other).reshape(-1, hop).abs().amax(1).gt(1e-12).nonzero().flatten()  # block t lies between frames t and t + 1
    before, after = place - 1 - int(blocks[0]), int(blocks[-1]) - place
    assert max(before, after) == field.decode


def test_bands_get_their_power_back() -> None:
    rng = np.random.default_rng(0)
    codec = MelMagnitudeCodec()
    bands = torch.from_numpy(codec.synthesis.bands)
    power = bands @ torch.from_numpy(10.0 ** rng.uniform(-6, 0, (257, 50)))
    bins = spread(power.T, bands)
    assert bool((bins >= 0).all()) and not bins[:, bands.sum(0) == 0].any()
    first = power.T @ (bands / bands.sum(0).clamp_min(1e-300))

    def divergence(bins: Tensor) -> Tensor:
        made = bins @ bands.T
        return (power.T * (power.T / made).log() - power.T + made).sum(1)

    def decibels(bins: Tensor) -> float:
        return float(10 * (bins @ bands.T / power.T).log10().abs().mean())

    assert bool((divergence(bins) < divergence(first)).all())
    assert decibels(bins) < 0.5 * decibels(first)
    assert not spread(0 * power.T, bands).any()


def test_precision_does_not_follow_the_module_or_autocast() -> None:
    codec, clip = MelMagnitudeCodec(**SETTINGS), sounds(1)
    latents = codec.encode(clip, whole(clip))
    decoded = codec.decode(latents)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = codec.to(torch.bfloat16).encode(clip, whole(clip))
        torch.testing.assert_close(again.values, latents.values, rtol=0, atol=0)
        torch.testing.assert_close(codec.decode(again), decoded, rtol=0, atol=0)
    assert decoded.dtype == torch.float32
    half = latents.with_values(latents.values.half())
    assert codec.encode(clip.half(), whole(clip)).values.dtype == codec.decode(half).dtype == torch.float32


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
    assert float(codec.decode(codec.encode(silence, whole(silence))).abs().max()) < 1e-7
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
        ({"frame_size": 10**9}, "frame_size is 1000000000; expected at most 32,768"),
        ({"frame_size": 1, "window": 2**16}, "window is 65536; expected at most 64, 64 frames. Set a smaller window"),
        ({"frame_size": 129}, "frame_size is 129; expected at most 128, half of the window. Set a larger window"),
        ({"frame_size": 0}, "frame_size is 0; expected at least 1"),
        ({"num_mels": 129}, "num_mels is 129; expected at most 128, half of the window. Set a larger window"),
        ({"window": 1}, "frame_size is 80; expected at most 0, half of the window"),
        ({"window": 0}, "window is 0; expected at least 1"),
        ({"num_mels": 0}, "num_mels is 0; expected at least 1"),
        ({"window": 2**17}, "window is 131072; expected at most 65,536"),
        ({"rounds": 0}, "rounds is 0; expected at least 1"),
        *[({"floor": bad}, "floor is .*; expected a power above 0 and below 1") for bad in (0.0, -1.0, float("nan"), 1.0, 1e308, 10**400)],
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
