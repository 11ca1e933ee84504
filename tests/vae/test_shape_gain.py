"""Frames as shape and gain: exact both ways, and a shape that does not know how loud it is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from soundomni.core.errors import SpecError
from soundomni.core.representation import Representation
from soundomni.vae import MDCTCodec, ShapeGainCodec
from soundomni.vae.level import CENTER_DB, DB_PER_UNIT, FLOOR_DB


def encode(codec: ShapeGainCodec, waveform: Tensor) -> Representation:
    return codec.encode(waveform, torch.tensor([waveform.shape[-1]] * len(waveform)))


def noise(channels: int, samples: int) -> Tensor:
    return torch.randn(2, channels, samples, generator=torch.Generator().manual_seed(samples), dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(1, 2),
    frame_size=st.integers(1, 20),
    samples=st.integers(1, 90),
    level=st.floats(-120.0, 20.0),
    companding=st.sampled_from([1.0, 0.5]),
)
def test_decoding_gives_the_samples_back(channels: int, frame_size: int, samples: int, level: float, companding: float) -> None:
    codec = ShapeGainCodec(sample_rate=8000, channels=channels, frame_size=frame_size, companding=companding)
    waveform = 10.0 ** (level / 20.0) * noise(channels, samples)
    encoded = encode(codec, waveform)
    assert encoded.values.shape == (2, channels * frame_size + 1, codec.spec.num_frames(samples))
    decoded = codec.decode(encoded)[..., :samples]
    torch.testing.assert_close(decoded, waveform, rtol=1e-9, atol=1e-9 * float(waveform.abs().max()))


@pytest.mark.parametrize("companding", [1.0, 0.7])
def test_a_louder_clip_has_the_same_shape_and_a_gain_of_so_many_decibels_more(companding: float) -> None:
    codec = ShapeGainCodec(sample_rate=8000, frame_size=16, companding=companding)
    quiet = 0.01 * noise(1, 200)
    first, second = encode(codec, quiet).values, encode(codec, 4.0 * quiet).values
    torch.testing.assert_close(first[:, :-1], second[:, :-1])
    difference = 20.0 * torch.log10(torch.tensor(4.0, dtype=torch.float64)) / DB_PER_UNIT
    torch.testing.assert_close(second[:, -1] - first[:, -1], difference.expand(2, first.shape[-1]))


def test_shape_times_gain_are_the_coefficients() -> None:
    codec, plain = ShapeGainCodec(sample_rate=8000, channels=2, frame_size=16), MDCTCodec(sample_rate=8000, channels=2, frame_size=16)
    waveform = noise(2, 100)
    values = encode(codec, waveform).values
    size = 10.0 ** ((values[:, -1:] * DB_PER_UNIT + CENTER_DB) / 20.0)
    torch.testing.assert_close(values[:, :-1] * size, plain.encode(waveform, torch.tensor([100, 100])).values)
    torch.testing.assert_close(values[:, :-1].square().mean(1), torch.ones(2, values.shape[-1], dtype=torch.float64))


def test_silence_has_the_lowest_gain_and_no_shape() -> None:
    values = encode(ShapeGainCodec(sample_rate=8000, frame_size=16), torch.zeros(1, 1, 100)).values
    assert float(values[:, :-1].abs().max()) == 0.0
    torch.testing.assert_close(values[:, -1], torch.full_like(values[:, -1], (FLOOR_DB - CENTER_DB) / DB_PER_UNIT))


def test_companding_out_of_range_is_refused() -> None:
    with pytest.raises(SpecError, match=r"companding is 1\.5; expected a number above 0 and at most 1"):
        ShapeGainCodec(companding=1.5)
