"""`Audio`: what people pass by mistake is named when a clip is made."""

import numpy as np
import pytest
import torch

from soundomni import Audio, Kept
from soundomni.core.errors import DataError

TONE = (0.3 * np.sin(2 * np.pi * 440 * np.arange(800) / 8000)).astype(np.float32)
CLIP = TONE[None]


@pytest.mark.parametrize(
    ("waveform", "words"),
    [
        (np.stack([TONE, TONE], axis=1), ["800 channels of 2 samples", "Use waveform.T"]),
        (TONE[:9, None], ["9 channels of 1 samples", "Use waveform.T"]),
        ((CLIP * 32767).astype(np.int16), ["int16", "Divide by 32768"]),
        ((CLIP * 2147483000).astype(np.int32), ["int32", "Divide by 2147483648"]),
        ((CLIP * 100 + 128).astype(np.uint8), ["uint8", "- 128) / 128"]),
        (CLIP > 0, ["dtype bool", "float32"]),
        (CLIP.astype(np.complex64), ["dtype complex64"]),
        (CLIP.astype(object), ["dtype object"]),
        (TONE, ["shape [800]", "Use waveform[None]"]),
        (CLIP[None], ["shape [1, 1, 800]", "waveform[0]"]),
        (np.array(0.5, np.float32), ["shape []"]),
        (torch.from_numpy(CLIP), ["type Tensor", "waveform.detach().cpu().numpy()"]),
        (CLIP.tolist(), ["type list", "numpy.array(waveform"]),
        (8000, ["type int"]),
        (None, ["type NoneType"]),
        (np.zeros((1, 0), np.float32), ["[1, 0]", "empty"]),
        (np.zeros((0, 10), np.float32), ["[0, 10]", "empty"]),
        (np.where(np.arange(800) == 7, np.nan, CLIP), ["not finite"]),
        (np.where(np.arange(800) == 7, -np.inf, CLIP).astype(np.float32), ["not finite"]),
        (CLIP.astype(np.float64) * 1e200, ["not finite"]),
        ((CLIP * 32767).astype(np.int16).astype(np.float32), ["reaches 98", "Divide it by 32768"]),
        ((CLIP * 127).astype(np.int8).astype(np.float64), ["reaches 38", "Divide it by 128"]),
        (CLIP * 1e30, ["reaches 3e+29", "Divide it by its peak"]),
    ],
)
def test_waveforms_that_cannot_be_meant_are_named_in_one_line(waveform, words):
    with pytest.raises(DataError) as caught:
        Audio(waveform, 8000)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (0, "is 0; expected a positive integer"),
        (-8000, "is -8000;"),
        (np.int64(0), "is 0;"),
        (8000.0, "8000.0 of type float; expected a positive integer, in Hz. Use 8000"),
        (np.float32(16000), "Use 16000"),
        (float("nan"), "nan of type float"),
        (True, "True of type bool"),
        (np.True_, "of type bool"),
        ("8000", "'8000' of type str"),
        (None, "of type NoneType"),
        (TONE, "of type ndarray"),
    ],
)
def test_rates_that_cannot_be_meant_are_named_in_one_line(rate, words):
    with pytest.raises(DataError) as caught:
        Audio(CLIP, rate)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble, ">f4", ">f8"])
@pytest.mark.parametrize("rate", [8000, np.int16(8000), np.uint64(8000)])
def test_other_floats_and_integers_of_numpy_are_converted(dtype, rate):
    clip = Audio(CLIP.astype(dtype), rate)
    assert clip.waveform.dtype == np.float32 and clip.waveform.dtype.isnative
    np.testing.assert_allclose(clip.waveform, CLIP, atol=2e-4 if dtype == np.float16 else 6e-8)
    assert type(clip.sample_rate) is int and clip.sample_rate == 8000


def test_float32_is_taken_as_it_is():
    assert Audio(CLIP, 8000).waveform is CLIP
    assert Audio(np.zeros((2, 1), np.float32), 8000).waveform.shape == (2, 1), "a very short stereo clip has its samples last"
    assert Audio(np.zeros((24, 100), np.float32), 8000).waveform.shape == (24, 100)


def test_what_a_model_made_is_not_checked():
    made = np.full((1, 10), np.nan, np.float32)
    assert Audio.unchecked(made, 8000).waveform is made


@pytest.mark.parametrize("turned", [CLIP[:, ::-1], CLIP[::-1, ::2], np.stack([CLIP[0], TONE[::-1]])[::-1]])
def test_arrays_that_run_backwards_are_taken(turned):
    clip = Audio(turned, 8000)
    assert np.array_equal(torch.from_numpy(clip.waveform).numpy(), turned)


def test_clips_are_compared_by_their_samples_and_rate():
    assert Audio(CLIP, 8000) == Audio(CLIP.copy(), 8000)
    assert Audio(CLIP, 8000) != Audio(CLIP, 16000)
    assert Audio(CLIP, 8000) != Audio(CLIP[:, 1:], 8000)
    assert Kept(Audio(CLIP, 8000), [(0, 0.1)]) == Kept(Audio(CLIP.copy(), 8000), [(0, 0.1)])
    assert Audio(CLIP, 8000) != "a clip"
