"""Harmonics and residual as codes: the contract of codecs, and codebooks that are measured on clips."""

from typing import Any

import pytest
import torch
from torch import Tensor

from soundomni import testing
from soundomni.core.errors import CheckpointError, DataError
from soundomni.core.representation import Representation
from soundomni.vae import HarmonicCodesCodec

RATE, HOP = 8000, 16
SETTINGS: dict[str, Any] = {
    "sample_rate": RATE,
    "frame_size": HOP,
    "num_harmonics": 2,
    "pitch_range": (1000.0, 2000.0),
    "num_codebooks": 3,
    "codebook_size": 16,
}


def clips(count: int = 4, samples: int = 700, seed: int = 0, channels: int = 1) -> Tensor:
    """Tones of several pitches in some noise, `[B, C, S]`."""
    rng = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / RATE
    pitches = 1000 + 1000 * torch.rand(count, channels, 1, generator=rng)
    return 0.4 * torch.sin(2 * torch.pi * pitches * time) + 0.02 * torch.randn(count, channels, samples, generator=rng)


def fit_on(codec: HarmonicCodesCodec, waveform: Tensor, lengths: Tensor | None = None) -> HarmonicCodesCodec:
    codec.fit([(waveform, torch.full((len(waveform),), waveform.shape[-1]) if lengths is None else lengths)])
    return codec


def fitted(**changes: Any) -> HarmonicCodesCodec:
    settings = {**SETTINGS, **changes}
    return fit_on(HarmonicCodesCodec(**settings), clips(channels=settings.get("channels", 1)))


def encode(codec: HarmonicCodesCodec, waveform: Tensor) -> Representation:
    return codec.encode(waveform, torch.full((len(waveform),), waveform.shape[-1]))


class TestHarmonicCodes(testing.CodecSuite):
    def make(self) -> HarmonicCodesCodec:
        return fitted()


class TestHarmonicCodesStereo(testing.CodecSuite):
    def make(self) -> HarmonicCodesCodec:
        return fitted(channels=2, num_codebooks=2, companding=1.0)


def test_the_same_clips_give_the_same_codebooks_and_samples_beyond_a_clip_do_not_count() -> None:
    first, again = fitted(), fitted()
    assert torch.equal(first.quantizer.codebooks, again.quantizer.codebooks)
    longer = torch.cat([clips(), torch.full((4, 1, 300), 0.9)], -1)
    other = fit_on(HarmonicCodesCodec(**SETTINGS), longer, torch.full((4,), 700))
    torch.testing.assert_close(other.quantizer.codebooks, first.quantizer.codebooks)
    apart = HarmonicCodesCodec(**SETTINGS)
    apart.fit([(one[None], torch.tensor([700])) for one in clips()])
    torch.testing.assert_close(apart.quantizer.codebooks, first.quantizer.codebooks)


def test_more_levels_lower_the_error_and_clips_keep_their_length() -> None:
    codec, waveform = fitted(num_codebooks=4, codebook_size=32), clips()
    codes = encode(codec, waveform)
    errors = []
    for levels in (1, 2, 3, 4):
        made = codec.decode(codes.with_values(codes.values[:, :levels]))
        assert made.shape[-1] >= 700 and made.shape[-1] - 700 < HOP
        errors.append(float((made[..., :700] - waveform).square().mean()))
    assert errors[-1] < 0.5 * float(waveform.square().mean()) and errors[-1] < errors[0]
    latents = codec.latents.encode(waveform, torch.full((4,), 700)).values
    differences = [
        float(
            (codec.quantizer.decode(codes.values[:, :levels].transpose(1, 2).flatten(0, 1)) - latents.transpose(1, 2).flatten(0, 1))
            .square()
            .mean()
        )
        for levels in (1, 2, 3, 4)
    ]
    assert differences == sorted(differences, reverse=True) and differences[0] > differences[-1]


@pytest.mark.parametrize("samples", [1, HOP - 1, HOP, HOP + 1, 333])
def test_every_length_comes_back(samples: int) -> None:
    codec = fitted()
    codes = encode(codec, clips(2, samples))
    assert codes.lengths.tolist() == [codec.spec.num_frames(samples)] * 2 and codes.values.shape == (2, 3, codec.spec.num_frames(samples))
    assert codec.decode(codes).shape[-1] >= samples


def test_silence_is_never_nan() -> None:
    for codec in (fitted(), fit_on(HarmonicCodesCodec(**SETTINGS), torch.zeros(4, 1, 700))):
        assert codec.quantizer.codebooks.isfinite().all()
        for waveform in (torch.zeros(2, 1, 500), clips(2, 500)):
            made = codec.decode(encode(codec, waveform))
            assert made.isfinite().all()
    assert float(made.abs().max()) < 1e-3, "codebooks of silence make silence"


def test_before_a_fit_nothing_is_coded() -> None:
    codec = HarmonicCodesCodec(**SETTINGS)
    assert not codec.is_fitted
    codes = Representation(torch.zeros(1, 3, 4, dtype=torch.int64), torch.tensor([4]), codec.spec)
    for attempt in (lambda: encode(codec, clips(1)), lambda: codec.decode(codes)):
        with pytest.raises(CheckpointError, match="the codebooks have not been measured. Call fit"):
            attempt()
    assert fit_on(codec, clips()).is_fitted


@pytest.mark.parametrize(
    "batches", [[], [(clips(1, 5 * HOP), torch.tensor([5 * HOP]))], [(clips(3, 5 * HOP), torch.tensor([HOP, 1, HOP]))]]
)
def test_too_few_frames_are_refused(batches: list[tuple[Tensor, Tensor]]) -> None:
    codec = HarmonicCodesCodec(**SETTINGS)
    with pytest.raises(DataError, match=r"codebooks of 16 entries are measured on at least as many frames, but there are only \d+$"):
        codec.fit(batches)
    assert not codec.is_fitted


def test_codebooks_are_part_of_the_saved_state() -> None:
    codec, other = fitted(), HarmonicCodesCodec(**SETTINGS)
    other.load_state_dict(codec.state_dict())
    assert other.is_fitted and torch.equal(encode(other, clips()).values, encode(codec, clips()).values)
