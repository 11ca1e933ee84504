"""Models in bfloat16: what is rounded, what they make, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from soundomni import SoundOmni
from soundomni.core.assembly.modality import CodecModality, EncoderModality
from soundomni.core.errors import CheckpointError, SpecError

PROMPTS = ["a sine tone at C4", "two clicks", "a low noise"]


@pytest.fixture(scope="module")
def exact() -> SoundOmni:
    return SoundOmni.from_pretrained("nano")


@pytest.fixture(scope="module")
def rounded() -> SoundOmni:
    return SoundOmni.from_pretrained("nano", dtype="bfloat16")


def test_codecs_and_encoders_stay_as_they_are(rounded: SoundOmni, exact: SoundOmni) -> None:
    assert rounded.model.dtype == torch.bfloat16
    assert all(p.dtype == torch.bfloat16 for p in rounded.model.backbone.parameters())
    other = exact.model.state_dict()
    for one in rounded.model.each():
        kept = one.codec if isinstance(one, CodecModality) else one.encoder if isinstance(one, EncoderModality) else None
        assert kept is not None
        prefix = f"modalities.{one.name}.{'codec' if isinstance(one, CodecModality) else 'encoder'}."
        for name, tensor in kept.state_dict().items():
            assert torch.equal(tensor, other[prefix + name]) and tensor.dtype == other[prefix + name].dtype


def test_clips_and_texts_are_nearly_the_same(rounded: SoundOmni, exact: SoundOmni) -> None:
    asked = {"prompts": PROMPTS, "seconds": 0.5, "num_steps": 8}
    found, expected = rounded.generate(**asked), exact.generate(**asked)
    for one, other in zip(found, expected, strict=True):
        error = np.abs(one.waveform - other.waveform).max() / np.abs(other.waveform).max()
        assert 0 < error < 0.2
    assert rounded.describe(expected) == exact.describe(expected)


def test_rounded_weights_are_not_saved(rounded: SoundOmni, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="rounded to torch.bfloat16. To save them, load the model without dtype"):
        rounded.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("dtype", ["float16", "bf16", "", "int8", torch.float64, 3])
def test_other_dtypes_are_refused(dtype: object) -> None:
    with pytest.raises(SpecError, match=r"dtype is .*; expected one of torch.float32, torch.bfloat16"):
        SoundOmni.from_pretrained("nano", dtype=dtype)  # type: ignore[arg-type]
