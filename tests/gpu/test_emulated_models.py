"""Whole models on the emulated device give what they give on the CPU, and no layer makes the host wait.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from emulated_cuda import EmulatedCuda, on_cpu, to_cuda
from emulated_models import CODES_ONLY, DEAF, MODELS, Twice, clip, make
from torch import Tensor

from soundomni import Audio, Kept, SoundOmni
from soundomni.core.assembly.lora import merge_adapters
from soundomni.core.interfaces import LossTerms

FP32, BF16 = 2e-4, 2e-2


@pytest.fixture(scope="module", params=list(MODELS))
def twice(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twice:
    """One of the models, or of those that a test names."""
    return make(request.param, tmp_path_factory.mktemp(request.param))


makes_latents = pytest.mark.parametrize("twice", [name for name in MODELS if name not in CODES_ONLY], indirect=True)
hears = pytest.mark.parametrize("twice", [name for name in MODELS if name not in DEAF], indirect=True)


def test_the_lists_of_models_are_right(twice: Twice) -> None:
    assert (twice.name in CODES_ONLY) == (not any(one.codec.spec.kind == "continuous" for one in twice.cpu.all_made))
    assert (twice.name in DEAF) == (twice.cpu.heard() is None)


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


def assert_only_splits_wait(device: EmulatedCuda, *, may_split: bool) -> None:
    """Assert that no layer waits, but for the sizes of the parts that networks of a mixture get in fp32."""
    waits = device.waits_of_layers()
    assert all(may_split and wait.place.startswith("experts/top_k.py") for wait in waits), waits


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


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_no_layer_waits_in_training(twice: Twice, device: EmulatedCuda, precision: torch.dtype) -> None:
    model = twice.on_cuda()
    device.watch(model.units)
    with torch.autocast("cuda", dtype=precision, enabled=precision == torch.bfloat16):
        model(twice.batches[0].to("cuda"))
    assert_only_splits_wait(device, may_split=twice.mixes_networks and precision == torch.float32)


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


def test_codecs_and_latents_are_measured_on_the_device(twice: Twice, device: EmulatedCuda) -> None:
    """Before a model goes to the device, its codecs do, which encode the clips that are measured."""
    for one in twice.cpu.all_made:
        if one.normalizer.kind == "none":
            continue
        own = deepcopy(one)
        own.normalizer.fitted.fill_(False)
        to_cuda(own.codec)
        own.fit([batch.of(one.name) for batch in twice.batches], device=torch.device("cuda"))
        assert_same(own.normalizer.mean, one.normalizer.mean, FP32)
        assert_same(own.normalizer.std, one.normalizer.std, FP32)


def test_generating_with_guidance(twice: Twice, device: EmulatedCuda) -> None:
    model = twice.on_cuda()
    device.watch(model.units)
    for one in twice.cpu.all_made:
        asked: dict[str, object] = {"prompts": ["a sine tone", "two clicks and noise", ""], "seconds": [0.3, 0.2, 0.3], "of": one.name}
        if one.codec.spec.kind == "continuous":
            asked |= {"num_steps": 3}
        if twice.name not in DEAF:
            asked |= {"negative_prompt": "noise"}
        assert_same_audio(twice.user_of(model).generate(**asked), twice.user_of(twice.cpu).generate(**asked), 10 * FP32)
    assert_only_splits_wait(device, may_split=twice.mixes_networks)


@makes_latents
def test_generating_in_bf16(twice: Twice, device: EmulatedCuda) -> None:
    """It is as close to fp32 as bf16 on the CPU is, which rounds at other places."""
    asked = {"prompts": ["a sine tone", "noise"], "seconds": 0.3, "num_steps": 2, "of": twice.latent}
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = twice.user_of(twice.on_cuda()).generate(**asked)
    exact = twice.user_of(twice.cpu).generate(**asked)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = twice.user_of(twice.cpu).generate(**asked)
    for one, other, precise in zip(found, rounded, exact, strict=True):
        errors = [np.abs(x.waveform - precise.waveform).max() / np.abs(precise.waveform).max() for x in (one, other)]
        assert errors[0] <= 2 * max(BF16, errors[1])


@makes_latents
def test_generating_with_rounded_weights(twice: Twice, device: EmulatedCuda) -> None:
    """They are as close to fp32 as on the CPU."""
    asked = {"prompts": ["a sine tone", "noise"], "seconds": 0.3, "num_steps": 2, "of": twice.latent}
    exact, made = twice.user_of(twice.cpu).generate(**asked), []
    for move in (to_cuda, torch.nn.Module.eval):
        model = deepcopy(twice.cpu)
        model.compute_in(torch.bfloat16)
        move(model)
        made.append(twice.user_of(model).generate(**asked))
    for one, other, precise in zip(*made, exact, strict=True):
        errors = [np.abs(x.waveform - precise.waveform).max() / np.abs(precise.waveform).max() for x in (one, other)]
        assert errors[0] <= 2 * max(BF16, errors[1])


@makes_latents
def test_editing(twice: Twice, device: EmulatedCuda) -> None:
    own, other = twice.user_of(twice.on_cuda()), twice.user_of(twice.cpu)
    asked = {"prompts": ["a sine tone"], "seconds": 0.3, "num_steps": 3, "of": twice.latent}
    for edit in ({"known": Kept(clip(0.3), [(0.0, 0.15)])}, {"vary": clip(0.3), "strength": 0.5}):
        assert_same_audio(own.generate(**asked, **edit), other.generate(**asked, **edit), 10 * FP32)


@hears
def test_describing(twice: Twice, device: EmulatedCuda) -> None:
    model = twice.on_cuda()
    device.watch(model.units)
    clips = [clip(0.3, 1), clip(0.45, 2)]
    found = twice.user_of(model).describe(clips, max_new_tokens=6)
    assert found == twice.user_of(twice.cpu).describe(clips, max_new_tokens=6)
    assert_only_splits_wait(device, may_split=twice.mixes_networks)


def test_reconstructing(twice: Twice, device: EmulatedCuda) -> None:
    own, other = twice.user_of(twice.on_cuda()), twice.user_of(twice.cpu)
    for seconds in (None, 0.2):
        if seconds is None or twice.cpu.made().codec.receptive_field is not None:
            found, expected = (one.reconstruct(clip(0.7), chunk_seconds=seconds) for one in (own, other))
            assert_same_audio([found], [expected], FP32)


def test_a_saved_model_is_the_same(twice: Twice, device: EmulatedCuda, tmp_path: Path) -> None:
    models = {"cuda": twice.on_cuda(), "cpu": deepcopy(twice.cpu)}
    for model in models.values():
        merge_adapters(model)
    folders = [twice.user_of(model).save_pretrained(tmp_path / name) for name, model in models.items()]
    assert (folders[0] / "model.safetensors").read_bytes() == (folders[1] / "model.safetensors").read_bytes()


def test_the_model_in_the_box(device: EmulatedCuda) -> None:
    cpu = SoundOmni.from_pretrained("nano")
    cuda = SoundOmni(to_cuda(deepcopy(cpu.model)), cpu.spec, cpu.tokenizer, max_tokens=cpu.max_tokens)
    asked = {"prompts": ["a sine tone at C4", "two clicks"], "seconds": 0.5, "num_steps": 3}
    found, expected = cuda.generate(**asked), cpu.generate(**asked)
    assert_same_audio(found, expected, 10 * FP32)
    assert cuda.describe(found) == cpu.describe(found)
