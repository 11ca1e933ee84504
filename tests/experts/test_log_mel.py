"""Mel spectra against torchaudio, and the small encoder: exact lengths, independence of the batch, learning."""

from __future__ import annotations

import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.core.errors import SpecError
from soundomni.experts import LogMelEncoder
from soundomni.experts.mel import MelSpectrum

SIZES = {"sample_rate": 8000, "n_fft": 64, "hop_length": 20, "num_mels": 12, "feature_dim": 16}


@pytest.fixture(scope="module")
def encoder() -> LogMelEncoder:
    torch.manual_seed(0)
    return LogMelEncoder(**SIZES)


@pytest.mark.parametrize("pad_mode", ["reflect", "constant"])
def test_mel_power_equals_torchaudio(pad_mode: str) -> None:
    waveform = torch.randn(2, 3000)
    theirs = torchaudio.transforms.MelSpectrogram(
        sample_rate=16000, n_fft=400, hop_length=160, n_mels=80, norm="slaney", mel_scale="slaney", pad_mode=pad_mode
    )(waveform)
    ours = MelSpectrum(sample_rate=16000, n_fft=400, hop_length=160, num_mels=80, pad_mode=pad_mode)(waveform)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("num_mels", "is_told"), [(12, False), (80, True)])
def test_a_warning_counts_filters_that_are_always_zero(num_mels: int, is_told: bool, caplog: pytest.LogCaptureFixture) -> None:
    power = MelSpectrum(sample_rate=8000, n_fft=64, hop_length=20, num_mels=num_mels, pad_mode="constant")(torch.randn(1, 4000))
    empty = int((power.amax(dim=(0, 2)) == 0).sum())
    told = f"{empty} of the {num_mels} mel filters lie between two frequencies of the spectrum"
    assert (told in caplog.text) == bool(empty) == is_told


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 900), min_size=1, max_size=4), extra=st.integers(0, 200))
def test_features_of_a_clip_do_not_depend_on_the_batch(encoder: LogMelEncoder, lengths: list[int], extra: int) -> None:
    waveform = torch.randn(len(lengths), 1, max(lengths) + extra)  # what lies beyond a clip is noise, and must not matter
    with torch.no_grad():
        together = encoder(waveform, torch.tensor(lengths))
        for clip, length, features in zip(waveform, lengths, together, strict=True):
            alone = encoder(clip[None, :, :length], torch.tensor([length]))[0]
            assert len(alone) == encoder.num_tokens(length) <= len(features)
            torch.testing.assert_close(features[: len(alone)], alone, rtol=1e-5, atol=1e-5)


def test_a_token_is_four_hops(encoder: LogMelEncoder) -> None:
    assert [encoder.num_tokens(n) for n in (1, 79, 80, 81, 160, 161)] == [1, 1, 1, 2, 2, 3]
    assert encoder.spec.sample_rate == 8000 and encoder.spec.feature_dim == 16 and encoder.spec.max_seconds is None


def test_silence_is_finite(encoder: LogMelEncoder) -> None:
    assert encoder(torch.zeros(1, 1, 500), torch.tensor([500])).isfinite().all()


def test_it_learns_to_tell_high_from_low() -> None:
    torch.manual_seed(0)
    encoder, head = LogMelEncoder(**SIZES), torch.nn.Linear(16, 1)
    pitch = torch.cat([torch.linspace(200, 500, 8), torch.linspace(1000, 3000, 8)])
    waveform = torch.sin(torch.arange(800) / 8000 * pitch[:, None] * 2 * torch.pi)[:, None]
    lengths, high = torch.full((16,), 800), (pitch > 750).float()
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], 3e-3)
    for _ in range(30):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(head(encoder(waveform, lengths).mean(1))[:, 0], high)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in encoder.parameters())
        optimizer.step()
    assert loss.item() < 0.05


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(SpecError, match="num_layers is 1; expected at least 2"):
        LogMelEncoder(num_layers=1)
    with pytest.raises(SpecError, match="log-mel: hop_length is 0; expected at least 1"):
        LogMelEncoder(hop_length=0)
