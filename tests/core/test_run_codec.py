"""Encoding some clips at a time must be encoding all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from soundomni.core.assembly import modality as modality_module
from soundomni.core.assembly.build import build_model
from soundomni.core.spec.schema import ModelSpec, Slot
from soundomni.core.spec.shorthand import model_of
from soundomni.core.spec.written import ConnectorsSpec, WrittenModel

LENGTHS = [700, 333, 640, 90, 700]


def spec() -> ModelSpec:
    codec = {"sample_rate": 8000, "channels": 2, "base_channels": 2, "channel_multiples": [1, 2], "strides": [4, 8], "latent_dim": 4}
    written = WrittenModel(
        backbone=Slot("mot", {"hidden_dim": 8, "num_layers": 1, "num_heads": 2}),
        router=Slot("modality"),
        codec=Slot("oobleck", {**codec, "sample_latents": True}),
        connectors=ConnectorsSpec(latent=Slot("linear")),
        objective=Slot("flow-matching"),
        normalize="none",
    )
    return model_of(written, sampler=Slot("euler"))


@pytest.mark.parametrize("with_noise", [True, False])
@pytest.mark.parametrize("at_once", [1, 1400, 2 * 1400, 4 * 1400 + 1])
def test_clips_are_encoded_some_at_a_time_and_as_if_alone(monkeypatch: pytest.MonkeyPatch, at_once: int, with_noise: bool) -> None:
    model = build_model(spec(), vocab_size=300).made()
    waveform = 0.1 * torch.randn(len(LENGTHS), 2, 700, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor(LENGTHS)
    calls: list[int] = []
    encode = model.codec.encode

    def counted(part: Tensor, *rest: object) -> object:
        calls.append(len(part))
        return encode(part, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(model.codec, "encode", counted)

    def encoded() -> tuple[Tensor, Tensor]:
        generators = [torch.Generator().manual_seed(i) for i in range(len(LENGTHS))] if with_noise else None
        found = model.encode(waveform, lengths, generators)
        return found.values, found.lengths

    values, frames = encoded()
    monkeypatch.setattr(modality_module, "CODEC_SAMPLES", at_once)
    parts, part_frames = encoded()
    assert calls[0] == 5 and max(calls[1:]) == max(1, at_once // 1400) and sum(calls) == 10
    assert torch.equal(frames, part_frames)
    torch.testing.assert_close(parts, values, rtol=1e-5, atol=1e-6)
