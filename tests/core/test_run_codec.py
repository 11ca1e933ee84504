"""What a codec makes of a clip in a batch has the bits of what it makes of the clip by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from soundomni.core.assembly import encoding
from soundomni.core.assembly.encoding import encode_clips
from soundomni.core.interfaces import Codec
from soundomni.core.spec.registry import build
from soundomni.core.spec.schema import Slot

LENGTHS = [700, 333, 640, 90, 700]
OOBLECK = Slot(
    "oobleck",
    {
        "sample_rate": 8000,
        "channels": 2,
        "base_channels": 3,
        "channel_multiples": [1, 2],
        "strides": [4, 8],
        "latent_dim": 4,
        "sample_latents": True,
    },
)
MDCT = Slot("mdct", {"sample_rate": 8000, "channels": 2, "frame_size": 24})
HARMONIC = Slot("harmonic", {"sample_rate": 8000, "channels": 2, "frame_size": 128, "num_harmonics": 2, "pitch_range": [125.0, 1000.0]})


def codec_of(slot: Slot) -> Codec:
    torch.manual_seed(1)
    codec: Codec = build("codec", slot)
    return codec.requires_grad_(False)


def clips() -> tuple[Tensor, Tensor]:
    waveform = 0.1 * torch.randn(len(LENGTHS), 2, 700, generator=torch.Generator().manual_seed(0))
    return waveform, torch.tensor(LENGTHS)


def calls_of(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return a list that will hold the shapes of the waveforms that the codec gets."""
    seen: list[tuple[int, ...]] = []
    encode = codec.encode

    def noted(part: Tensor, *rest: Any) -> Any:
        seen.append(tuple(part.shape))
        return encode(part, *rest)

    monkeypatch.setattr(codec, "encode", noted)
    return seen


@pytest.mark.parametrize("with_noise", [True, False])
@pytest.mark.parametrize("slot", [OOBLECK, MDCT, HARMONIC], ids=lambda slot: slot.class_path)
def test_a_clip_has_the_bits_that_it_has_by_itself(slot: Slot, with_noise: bool) -> None:
    codec, (waveform, lengths) = codec_of(slot), clips()
    generators = [torch.Generator().manual_seed(i) for i in range(len(LENGTHS))] if with_noise else None
    found = encode_clips(codec, waveform, lengths, generators)
    assert found.values.shape[-1] == codec.spec.num_frames(700)
    for i, count in enumerate(LENGTHS):
        drawn = [torch.Generator().manual_seed(i)] if with_noise else None
        alone = codec.encode(waveform[i : i + 1, :, :count], torch.tensor([count]), drawn)
        frames = codec.spec.num_frames(count)
        assert int(found.lengths[i]) == frames == alone.values.shape[-1]
        assert torch.equal(found.values[i, :, :frames], alone.values[0])


def test_a_network_gets_one_clip_at_a_time_without_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = codec_of(OOBLECK)
    seen = calls_of(codec, monkeypatch)
    encode_clips(codec, *clips())
    assert seen == [(1, 2, count) for count in LENGTHS]


@pytest.mark.parametrize("at_once", [1, 1400, 2 * 1400, 4 * 1400 + 1])
def test_a_transform_gets_as_many_clips_as_fit(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    codec, given = codec_of(MDCT), clips()
    whole = encode_clips(codec, *given).values
    seen = calls_of(codec, monkeypatch)
    monkeypatch.setattr(encoding, "CODEC_SAMPLES", at_once)
    parts = encode_clips(codec, *given).values
    assert max(shape[0] for shape in seen) == max(1, at_once // 1400) and sum(shape[0] for shape in seen) == 5
    assert torch.equal(parts, whole)


def test_no_clip_and_an_empty_one_have_no_frames() -> None:
    codec = codec_of(OOBLECK)
    assert encode_clips(codec, torch.zeros(0, 2, 64), torch.zeros(0, dtype=torch.int64)).values.shape == (0, 4, 2)
    found = encode_clips(codec, torch.ones(2, 2, 64), torch.tensor([0, 64]))
    assert found.lengths.tolist() == [0, 2] and found.values.shape == (2, 4, 2)
