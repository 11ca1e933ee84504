"""Frames as harmonics and residual: exact both ways, and a timbre that knows neither pitch nor level."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from soundomni.core.assembly.chunked import decode_in_chunks, encode_in_chunks
from soundomni.core.errors import SpecError
from soundomni.core.representation import Representation
from soundomni.vae import HarmonicCodec
from soundomni.vae.harmonic import SEMITONES
from soundomni.vae.harmonic_fit import find_pitch, fit, mix, waves
from soundomni.vae.level import CENTER_DB, DB_PER_UNIT, LOWEST

RATE, HOP, K = 8000, 128, 8
MIDDLE = math.sqrt(125.0 * 1000.0)


def codec(**changes: Any) -> HarmonicCodec:
    return HarmonicCodec(**{"sample_rate": RATE, "frame_size": HOP, "num_harmonics": K, "pitch_range": (125.0, 1000.0), **changes})


def encode(used: HarmonicCodec, waveform: Tensor) -> Representation:
    return used.encode(waveform, torch.tensor([waveform.shape[-1]] * len(waveform)))


def tone(pitch: float, amplitudes: list[complex], samples: int = 4000) -> Tensor:
    """A steady tone `[1, 1, S]`; its amplitudes hold the phases at time 0."""
    time = torch.arange(samples, dtype=torch.float64) / RATE
    parts = [(amplitude * torch.exp(2j * math.pi * pitch * k * time)).real for k, amplitude in enumerate(amplitudes, 1)]
    return torch.stack(parts).sum(0)[None, None]


def noise(channels: int, samples: int) -> Tensor:
    return torch.randn(2, channels, samples, generator=torch.Generator().manual_seed(samples), dtype=torch.float64)


def parts(values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pitch in Hz `[T]`, level in dB `[T]`, harmonics `[K, T]` and the residual's RMS in dB `[T]` of one mono clip's `[D, T]`."""
    harmonics = torch.complex(values[2 : K + 2], values[K + 2 : 2 * K + 2])
    return (
        MIDDLE * 2.0 ** (values[0] / SEMITONES),
        values[1] * DB_PER_UNIT + CENTER_DB,
        harmonics,
        10.0 * values[2 * K + 2 :].square().mean(0).log10(),
    )


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(1, 2),
    samples=st.integers(1, 700),
    level=st.floats(-120.0, 20.0),
    pitch=st.floats(130.0, 950.0),
    share=st.sampled_from([0.0, 0.1, 1.0]),
    companding=st.sampled_from([1.0, 0.5]),
)
def test_decoding_gives_the_samples_back(channels: int, samples: int, level: float, pitch: float, share: float, companding: float) -> None:
    used = codec(channels=channels, companding=companding)
    waveform = 10.0 ** (level / 20.0) * (share * noise(channels, samples) + tone(pitch, [1.0, 0.5j, -0.3], samples))
    encoded = encode(used, waveform)
    assert encoded.values.shape == (2, channels * (2 * K + 2 + HOP), used.spec.num_frames(samples))
    decoded = used.decode(encoded)[..., :samples]
    torch.testing.assert_close(decoded, waveform, rtol=1e-9, atol=1e-9 * float(waveform.abs().max()))


@pytest.mark.parametrize("pitch", [131.0, 293.66, 493.88])
def test_a_steady_tone_is_its_pitch_its_level_and_its_harmonics(pitch: float) -> None:
    amplitudes = [0.2 + 0.1j, 0.05j, -0.1, 0.02 - 0.03j]
    found, level, harmonics, residual = parts(encode(codec(), tone(pitch, amplitudes)).values[0, :, 2:-3])
    torch.testing.assert_close(found, torch.full_like(found, pitch), rtol=1e-6, atol=0)
    rms = math.sqrt(sum(abs(a) ** 2 for a in amplitudes) / 2)
    torch.testing.assert_close(level, torch.full_like(level, 20 * math.log10(rms)), rtol=0, atol=1e-4)
    unit = amplitudes[0] / abs(amplitudes[0])
    for k, amplitude in enumerate(amplitudes[1:], 2):
        expected = torch.full_like(harmonics[k - 1], complex(amplitude) / unit**k / rms)
        torch.testing.assert_close(harmonics[k - 1], expected, rtol=0, atol=1e-4)
    middle = torch.arange(2, 2 + harmonics.shape[-1]) * HOP - 0.5  # sample times are whole, a frame's middle lies between two of them
    turned = amplitudes[0] / rms * torch.exp(2j * math.pi * pitch / RATE * middle.double())
    torch.testing.assert_close(harmonics[0], turned, rtol=0, atol=1e-4)
    assert float(harmonics[len(amplitudes) :].abs().max()) < 1e-4
    assert float(residual.max()) < -70.0


@pytest.mark.parametrize("companding", [1.0, 0.5])
def test_a_timbre_is_the_same_at_any_pitch_level_and_phase(companding: float) -> None:
    timbre = [1.0, 0.5, -0.3j]
    turn = [complex(math.cos(k), math.sin(k)) for k in (1, 2, 3)]
    used = codec(companding=companding)
    first = parts(encode(used, tone(262.0, timbre)).values[0, :, 2:-3])[2]
    other = [0.01 * a * t for a, t in zip(timbre, turn, strict=True)]
    second = parts(encode(used, tone(440.0, other)).values[0, :, 2:-3])[2]
    torch.testing.assert_close(first[1:], second[1:], rtol=0, atol=1e-3)
    torch.testing.assert_close(first[0].abs(), second[0].abs(), rtol=0, atol=1e-3)


def test_a_chirp_leaves_little_and_noise_leaves_all() -> None:
    time = torch.arange(4000, dtype=torch.float64) / RATE
    chirp = torch.sin(2.0 * math.pi * 200.0 * (2.0**time - 1.0) / math.log(2.0))[None, None]  # an octave per second
    values = encode(codec(), chirp).values[0, :, 2:-3]
    found, level, _, residual = parts(values)
    torch.testing.assert_close(found, 200.0 * 2.0 ** (torch.arange(2, 2 + len(found)) * HOP / RATE).double(), rtol=1e-3, atol=0)
    assert float((residual - level).max()) < -20.0
    rough = encode(codec(), noise(1, 8000)).values
    assert float(rough[:, 1].max()) == LOWEST and float(rough[:, : 2 * K + 2].abs().max()) == -LOWEST


def test_silence_has_no_pitch() -> None:
    values = encode(codec(), torch.zeros(1, 1, 1000)).values
    assert float(values[:, 0].abs().max()) == 0.0 and float(values[:, 2:].abs().max()) == 0.0
    torch.testing.assert_close(values[:, 1], torch.full_like(values[:, 1], LOWEST))


@pytest.mark.parametrize("end", [2048, 2000, 2100])
def test_a_tone_goes_on_beyond_the_end_of_a_clip(end: int) -> None:
    """The frames that a continuation keeps and those that it makes must fit: what is known of the last kept block is that of the tone."""
    used, whole = codec(), tone(300.0, [0.3, 0.1j])
    full, part = encode(used, whole), encode(used, whole[..., :end])
    torch.testing.assert_close(part.values[:, : 2 * K + 2], full.values[:, : 2 * K + 2, : part.values.shape[-1]], rtol=0, atol=1e-3)
    kept = end // HOP
    values = torch.cat([part.values[..., :kept], full.values[..., kept:]], dim=-1)
    decoded = used.decode(Representation(values, full.lengths, full.spec))[..., :4000]
    assert float((decoded - whole).abs().max()) < 1e-4


@pytest.mark.parametrize(("kind", "highest"), [("sawtooth", 16), ("square", 16), ("sine", 1)])
def test_no_pitch_is_taken_for_its_octave(kind: str, highest: int) -> None:
    """Quarter semitones over the whole range: also periods half way between two samples."""
    used = codec(num_harmonics=16)
    for step in range(0, 144):
        pitch = 125.5 * 2.0 ** (step / 48.0)
        orders = [k for k in range(1, highest + 1) if k * pitch < 0.49 * RATE]
        timbre = [0.0 if kind == "square" and k % 2 == 0 else -0.3j / k for k in orders]
        found = parts_of(encode(used, tone(pitch, timbre, 1024)), 16)
        torch.testing.assert_close(found, torch.full_like(found, pitch), rtol=1e-3, atol=0)


@pytest.mark.parametrize("partial", [3, 10, 14])
def test_a_strong_partial_does_not_hide_the_pitch(partial: int) -> None:
    for pitch in range(128, 260, 7):
        found = parts_of(encode(codec(num_harmonics=15), tone(float(pitch), [0.3, *[0.0] * (partial - 2), 0.2], 1024)), 15)
        torch.testing.assert_close(found, torch.full_like(found, float(pitch)), rtol=1e-3, atol=0)


def parts_of(encoded: Representation, num_harmonics: int) -> Tensor:
    """Pitches in Hz of the frames that have one, in the middle of a mono clip."""
    values = encoded.values[0, :, 2:-3]
    assert float(values[1].min()) > LOWEST, "a frame without a pitch"
    assert num_harmonics * 2 + 2 + HOP == len(values)
    return MIDDLE * 2.0 ** (values[0] / SEMITONES)


def test_a_tone_without_a_fundamental_is_left_to_the_residual() -> None:
    values = encode(codec(), tone(220.0, [0.0, 0.2, 0.2, 0.1])).values
    assert float(values[:, 1].max()) == LOWEST


@pytest.mark.parametrize("samples", [256, 300, 1025, 1100, 2048])
def test_tones_in_a_batch_and_in_chunks_are_those_of_a_clip_alone(samples: int) -> None:
    used = codec()
    waveform = tone(220.0, [0.3, 0.1, 0.05j], 2048)
    alone = encode(used, waveform[..., :samples])
    batch = used.encode(torch.cat([waveform, 0.1 * waveform.flip(-1)]), torch.tensor([samples, 2048]))
    torch.testing.assert_close(batch.values[:1, :, : alone.values.shape[-1]], alone.values, rtol=0, atol=1e-9)
    for frames in (1, 2, 5):
        cut = encode_in_chunks(used, waveform[..., :samples], torch.tensor([samples]), chunk_frames=frames)
        torch.testing.assert_close(cut.values, alone.values, rtol=0, atol=1e-9)
        pieces = decode_in_chunks(used, cut, chunk_frames=frames)[..., :samples]
        torch.testing.assert_close(pieces.flatten(), waveform[0, 0, :samples], rtol=0, atol=1e-9)


def test_gradients_go_both_ways() -> None:
    used, waveform = codec(companding=0.5), tone(300.0, [0.3, 0.1], 1000).requires_grad_()
    encode(used, waveform).values.sum().backward()
    assert waveform.grad is not None and waveform.grad.isfinite().all()
    values = torch.zeros(1, used.spec.token_dim, 5).index_fill_(1, torch.tensor([1]), 5.0).requires_grad_()
    used.decode(Representation(values, torch.tensor([5]), used.spec)).sum().backward()
    assert values.grad is not None and values.grad.isfinite().all()


def test_a_predicted_frame_is_as_loud_as_its_level_says() -> None:
    used = codec(companding=0.5)
    encoded = encode(used, tone(300.0, [0.3, 0.1]))
    values = encoded.values.clone()
    values[:, 2 : 2 * K + 2] *= 0.7
    torch.testing.assert_close(used.decode(Representation(values, encoded.lengths, encoded.spec)), used.decode(encoded))
    values[:, 1] += 6.0 / DB_PER_UNIT
    louder = used.decode(Representation(values, encoded.lengths, encoded.spec))[..., HOP : 29 * HOP]
    torch.testing.assert_close(louder, 10.0**0.3 * used.decode(encoded)[..., HOP : 29 * HOP], rtol=0, atol=1e-5)


def test_frames_beyond_a_clip_are_not_heard() -> None:
    used = codec()
    encoded = encode(used, tone(300.0, [0.3], 2000).expand(2, 1, 2000))
    decoded = used.decode(Representation(encoded.values, torch.tensor([5, 17]), encoded.spec))
    assert float(decoded[0, :, 4 * HOP :].abs().max()) == 0.0 and float(decoded[1, :, 4 * HOP :].abs().max()) > 0.1
    torch.testing.assert_close(decoded[0, :, : 4 * HOP], decoded[1, :, : 4 * HOP])


def test_a_fit_finds_what_was_mixed() -> None:
    generator = torch.Generator().manual_seed(0)
    pitch = torch.rand(50, generator=generator, dtype=torch.float64) * 0.1 + 0.02
    amplitudes = torch.randn(50, 4, generator=generator, dtype=torch.complex128)
    frames = mix(amplitudes, waves(pitch, 4, HOP))
    found, fitted, explained = fit(frames, pitch * 1.002, 4)
    torch.testing.assert_close(found, pitch, rtol=5e-5, atol=0)
    torch.testing.assert_close(fitted, amplitudes, rtol=0.01, atol=0.01)
    assert float(explained.min()) > 1.0 - 1e-5


def test_waves_are_exponentials_below_half_the_sampling_rate() -> None:
    pitch = torch.tensor([0.1, 0.3], dtype=torch.float64)
    cosines, sines = waves(pitch, 4, 16)
    time = torch.arange(16, dtype=torch.float64) + 0.5
    for row, (f, most) in enumerate([(0.1, 4), (0.3, 1)]):
        for k in range(1, 5):
            heard = k <= most
            torch.testing.assert_close(cosines[row, k - 1], heard * torch.cos(2 * math.pi * f * k * time), rtol=0, atol=1e-9)
            torch.testing.assert_close(sines[row, k - 1], heard * torch.sin(2 * math.pi * f * k * time), rtol=0, atol=1e-9)


def test_the_pitch_is_the_fundamental_even_where_it_is_missing() -> None:
    frames = tone(220.0, [0.0, 1.0, 1.0, 0.5], 2 * HOP)[0]
    pitch, periodic = find_pitch(frames, 125.0 / RATE, 1000.0 / RATE)
    assert float(pitch) * RATE == pytest.approx(220.0, rel=0.01) and float(periodic) > 0.95
    pitch, periodic = find_pitch(torch.zeros(1, 2 * HOP), 0.02, 0.1)
    assert float(pitch) == pytest.approx(0.1) and float(periodic) == -1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"companding": 1.5}, r"companding is 1\.5; expected a number above 0 and at most 1"),
        ({"num_harmonics": 0}, "num_harmonics is 0; with pitches from 125 Hz at 8000 Hz expected 1 to 32"),
        ({"num_harmonics": 10**9}, "num_harmonics is 1000000000; with pitches"),
        ({"pitch_range": (60.0, 1000.0)}, r"pitch_range is \[60\.0, 1000\.0\].*within 93\.75 to 2000 Hz"),
        ({"frame_size": 6}, "frame_size is 6; expected at least 7"),
        ({"pitch_range": (500.0, 200.0)}, r"pitch_range is \[500\.0, 200\.0\]"),
    ],
)
def test_arguments_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        codec(**changes)
