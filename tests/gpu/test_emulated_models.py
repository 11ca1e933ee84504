"""Whole models on the emulated device give what they give on the CPU, and no layer makes the host wait.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from emulated_cuda import EmulatedCuda, on_cpu
from emulated_models import MODELS, Twice, clip, make
from torch import Tensor

from soundomni import Audio, Kept
from soundomni.core.interfaces import LossTerms

FP32, BF16 = 2e-4, 2e-2


@pytest.fixture(scope="module", params=list(MODELS))
def twice(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twice:
    """One of the models."""
    return make(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def device() -> Iterator[EmulatedCuda]:
    with EmulatedCuda().running() as device:
        yield device


def assert_same(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Assert that two results agree up to `tolerance` of the largest value."""
    found, expected = on_cpu(found.detach()).double(), expected.detach().double()
    assert found.shape == expected.shape
    assert found.isfinite().all()
    scale = expected.abs().max().item() if expected.numel() else 0.0
    error = (found - expected).abs().max().item() if expected.numel() else 0.0
    assert error <= tolerance * max(scale, 1e-3), f"error {error:.2e} at a scale of {scale:.2e}"


def assert_same_losses(found: LossTerms, expected: LossTerms, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, (total, count) in expected.items():
        assert_same(found[name][0], total, tolerance)
        assert float(on_cpu(found[name][1])) == float(count), name


def assert_same_audio(found: list[Audio], expected: list[Audio], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert_same(torch.from_numpy(np.asarray(one.waveform)), torch.from_numpy(np.asarray(other.waveform)), tolerance)


def test_losses(twice: Twice, device: EmulatedCuda) -> None:
    model = twice.on_cuda()
    for batch in twice.batches:
        assert_same_losses(model(batch.to("cuda")), twice.cpu(batch), FP32)


def test_losses_in_bf16(twice: Twice, device: EmulatedCuda) -> None:
    model = twice.on_cuda()
    for batch in twice.batches:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            found = model(batch.to("cuda"))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected = twice.cpu(batch)
        assert_same_losses(found, expected, BF16)


def test_no_layer_waits_in_training(twice: Twice, device: EmulatedCuda) -> None:
    model = twice.on_cuda()
    device.watch(model.units)
    for precision in (torch.float32, torch.bfloat16):
        with torch.autocast("cuda", dtype=precision, enabled=precision == torch.bfloat16):
            model(twice.batches[0].to("cuda"))
    assert not device.waits_of_layers()


def test_codecs(twice: Twice, device: EmulatedCuda) -> None:
    model = twice.on_cuda()
    for own in model.all_made:
        other, clips = twice.cpu.made(own.name), twice.batches[0].of(own.name)
        given = clips.to("cuda")
        for seeds in (None, clips.seeds):
            generators = [None if seeds is None else [torch.Generator().manual_seed(seed) for seed in seeds] for _ in range(2)]
            found, expected = own.represent(given, generators[0]), other.represent(clips, generators[1])
            assert_same(found.values, expected.values, FP32)
            assert on_cpu(found.lengths).tolist() == expected.lengths.tolist()
            assert_same(own.decode(found), other.decode(expected), FP32)


def test_generating_with_guidance(twice: Twice, device: EmulatedCuda) -> None:
    model = twice.on_cuda()
    asked = {"prompts": ["a sine tone", "two clicks and noise", ""], "seconds": [0.3, 0.2, 0.3], "num_steps": 3}
    device.watch(model.units)
    found = twice.user_of(model).generate(**asked, negative_prompt="noise")
    assert_same_audio(found, twice.user_of(twice.cpu).generate(**asked, negative_prompt="noise"), 10 * FP32)
    assert not device.waits_of_layers()


def test_generating_in_bf16(twice: Twice, device: EmulatedCuda) -> None:
    asked = {"prompts": ["a sine tone", "noise"], "seconds": 0.3, "num_steps": 2}
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = twice.user_of(twice.on_cuda()).generate(**asked)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = twice.user_of(twice.cpu).generate(**asked)
    assert_same_audio(found, expected, 2 * BF16)


def test_editing(twice: Twice, device: EmulatedCuda) -> None:
    own, other = twice.user_of(twice.on_cuda()), twice.user_of(twice.cpu)
    asked = {"prompts": ["a sine tone"], "seconds": 0.3, "num_steps": 3}
    for edit in ({"known": Kept(clip(0.3), [(0.0, 0.15)])}, {"vary": clip(0.3), "strength": 0.5}):
        assert_same_audio(own.generate(**asked, **edit), other.generate(**asked, **edit), 10 * FP32)


def test_describing(twice: Twice, device: EmulatedCuda) -> None:
    model = twice.on_cuda()
    device.watch(model.units)
    clips = [clip(0.3, 1), clip(0.45, 2)]
    found = twice.user_of(model).describe(clips, max_new_tokens=6)
    assert found == twice.user_of(twice.cpu).describe(clips, max_new_tokens=6)
    assert not device.waits_of_layers()


def test_reconstructing(twice: Twice, device: EmulatedCuda) -> None:
    own, other = twice.user_of(twice.on_cuda()), twice.user_of(twice.cpu)
    for seconds in (None, 0.2):
        if seconds is None or twice.cpu.made().codec.receptive_field is not None:
            found, expected = (one.reconstruct(clip(0.7), chunk_seconds=seconds) for one in (own, other))
            assert_same_audio([found], [expected], FP32)


def test_a_saved_model_is_the_same(twice: Twice, device: EmulatedCuda, tmp_path: Path) -> None:
    folders = [twice.user_of(model).save_pretrained(tmp_path / name) for name, model in (("cuda", twice.on_cuda()), ("cpu", twice.cpu))]
    assert (folders[0] / "model.safetensors").read_bytes() == (folders[1] / "model.safetensors").read_bytes()
