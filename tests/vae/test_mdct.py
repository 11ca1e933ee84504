"""The MDCT codec against its definition in double precision, and as an exact inverse."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import windows

from soundomni.core.errors import DataError, SpecError
from soundomni.core.representation import Representation
from soundomni.vae import MDCTCodec
from soundomni.vae.mdct import COMPANDING_KNEE, _tables, compand, expand


def definition(samples: np.ndarray, window: np.ndarray, hop: int) -> np.ndarray:
    """The O(N²) sum of one channel `[S]` → `[M, T]`."""
    frames = -(-len(samples) // hop) + 1
    padded = np.concatenate([np.zeros(hop), samples, np.zeros(frames * hop - len(samples))])
    n, k = np.arange(2 * hop), np.arange(hop)
    basis = np.sqrt(2 / hop) * np.cos(np.pi / hop * (n[None] + (hop + 1) / 2) * (k[:, None] + 0.5))
    return np.stack([basis @ (window * padded[t * hop : (t + 2) * hop]) for t in range(frames)], axis=1)


def encode_one(codec: MDCTCodec, waveform: torch.Tensor) -> Representation:
    return codec.encode(waveform, torch.full((len(waveform),), waveform.shape[-1]))


@pytest.mark.parametrize("hop", [1, 2, 7, 32, 100])
@pytest.mark.parametrize("window", ["sine", "kbd"])
def test_equals_the_definition(hop, window):
    waveform = torch.randn(2, 2, 3 * hop + 5, dtype=torch.float64)
    out = encode_one(MDCTCodec(frame_size=hop, channels=2, window=window), waveform)
    shape = _tables(hop, window)[0]
    expected = np.stack([np.concatenate([definition(c.numpy(), shape, hop) for c in clip]) for clip in waveform])
    np.testing.assert_allclose(out.values.numpy(), expected, atol=1e-12)


def test_windows_satisfy_princen_bradley_and_kbd_is_scipys():
    for hop in (4, 128, 2048):
        np.testing.assert_allclose(_tables(hop, "kbd")[0], windows.kaiser_bessel_derived(2 * hop, np.pi * 4), atol=1e-12)
        for name in ("sine", "kbd"):
            window = _tables(hop, name)[0]
            np.testing.assert_allclose(window[:hop] ** 2 + window[hop:] ** 2, 1.0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    hop=st.integers(1, 300),
    channels=st.integers(1, 3),
    lengths=st.lists(st.integers(1, 900), min_size=1, max_size=4),
    window=st.sampled_from(["sine", "kbd"]),
    companding=st.sampled_from([1.0, 0.5, 0.3]),
    seed=st.integers(0, 99),
)
def test_decodes_exactly_and_each_clip_alone(hop, channels, lengths, window, companding, seed):
    codec = MDCTCodec(sample_rate=8000, channels=channels, frame_size=hop, window=window, companding=companding)
    torch.manual_seed(seed)
    waveform = torch.rand(len(lengths), channels, max(lengths)) * 2 - 1
    out = codec.encode(waveform, torch.tensor(lengths))
    assert out.lengths.tolist() == [codec.spec.num_frames(length) for length in lengths]
    assert out.values.shape == (len(lengths), channels * hop, codec.spec.num_frames(max(lengths)))
    garbage = torch.arange(out.values.shape[-1]) >= out.lengths[:, None]
    decoded = codec.decode(out.with_values(out.values.masked_fill(garbage[:, None], float("nan"))))
    assert decoded.shape[-1] == codec.spec.num_samples(out.values.shape[-1])
    for i, length in enumerate(lengths):
        torch.testing.assert_close(decoded[i, :, :length], waveform[i, :, :length], atol=1e-5, rtol=0)
        assert not decoded[i, :, codec.spec.num_samples(int(out.lengths[i])) :].any()
        alone = encode_one(codec, waveform[i : i + 1, :, :length])
        torch.testing.assert_close(out.values[i, :, : out.lengths[i]], alone.values[0], atol=1e-5, rtol=1e-4)


def test_white_noise_keeps_unit_variance():
    torch.manual_seed(0)
    values = encode_one(MDCTCodec(frame_size=64), torch.randn(1, 1, 64 * 2000)).values[0, :, 1:-1]
    assert values.square().mean().item() == pytest.approx(1.0, abs=0.02)
    assert values.square().mean(1).sub(1).abs().max() < 0.15


def test_a_tone_lands_in_its_band():
    codec = MDCTCodec(sample_rate=8000, frame_size=128)
    tone = torch.sin(2 * torch.pi * 1015.625 * torch.arange(8000) / 8000)
    power = encode_one(codec, tone[None, None]).values[0].square().sum(1)
    assert int(power.argmax()) == 32  # bands of 4000 / 128 Hz
    assert power[30:35].sum() > 0.99 * power.sum()


def test_companding_is_the_power_law_above_the_knee_and_has_finite_slopes():
    values = torch.tensor([-2.0, -0.25, -1e-6, 0.0, 3e-7, 0.01, 4.0], dtype=torch.float64, requires_grad=True)
    for power in (1.0, 0.5, 0.1):
        small = compand(values, power)
        loud = values.abs() > COMPANDING_KNEE
        torch.testing.assert_close(small[loud], (values.sign() * values.abs() ** power)[loud])
        torch.testing.assert_close(expand(small, power), values)
        (slope,) = torch.autograd.grad(small.sum(), values)
        assert slope.isfinite().all() and (slope >= 0).all() and slope.max() <= COMPANDING_KNEE ** (power - 1) * 1.001
        codes = small.detach().requires_grad_()
        assert torch.autograd.grad(expand(codes, power).sum(), codes)[0].isfinite().all()


def test_quiet_coefficients_come_closer_to_loud_ones():
    waveform = torch.randn(1, 1, 4000) * 0.01
    plain, companded = (encode_one(MDCTCodec(companding=p), waveform).values for p in (1.0, 0.5))
    assert companded.std() > 4 * plain.std()


def test_holds_no_tensors_and_survives_a_cast_and_a_build_without_memory():
    with torch.device("meta"):
        codec = MDCTCodec(frame_size=16)
    assert codec.state_dict() == {} and list(codec.buffers()) == []
    codec.to(torch.bfloat16)
    waveform = torch.rand(1, 1, 100)
    torch.testing.assert_close(codec.decode(encode_one(codec, waveform))[..., :100], waveform, atol=1e-5, rtol=0)


def test_gradients_reach_the_waveform_orthonormally():
    codec = MDCTCodec(frame_size=8)
    waveform = torch.rand(1, 1, 40, requires_grad=True)
    encode_one(codec, waveform).values.square().sum().backward()
    torch.testing.assert_close(waveform.grad, 2 * waveform.detach())


def test_nothing_to_train():
    with pytest.raises(TypeError, match="nothing to train"):
        MDCTCodec().reconstruct(torch.zeros(1, 1, 10), torch.tensor([10]), [torch.Generator()])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"frame_size": 0}, "frame_size is 0; expected at least 1"),
        ({"window": "sin"}, "Did you mean 'sine'"),
        ({"companding": 0.0}, r"companding is 0\.0; expected a number above 0"),
        ({"channels": 0}, "at least 1"),
    ],
)
def test_refuses_wrong_arguments(arguments, told):
    with pytest.raises(SpecError, match=told):
        MDCTCodec(**arguments)


def test_refuses_other_shapes():
    codec = MDCTCodec(channels=2, frame_size=4)
    with pytest.raises(DataError, match=r"\[1, 1, 10\]; expected float \[B, 2, S\]"):
        codec.encode(torch.zeros(1, 1, 10), torch.tensor([10]))
    with pytest.raises(DataError, match="one per clip"):
        codec.encode(torch.zeros(1, 2, 10), torch.tensor([10, 10]))
    with pytest.raises(DataError, match=r"\[B, 8, T\]"):
        codec.decode(Representation(torch.zeros(1, 4, 3), torch.tensor([3]), codec.spec))
