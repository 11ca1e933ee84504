"""Adapters that only act at some timesteps: on which clips of a batch, while sampling, and in files."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cross_conditions import outputs_of
from test_lora import adapters
from tiny_conditions import batch_of, conditioned_model, conditioned_spec, sample_writer, samples_of, user_of
from tiny_models import make_model

from soundomni.core.assembly.lora import add_adapters, interval_of, merge_adapters
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import CheckpointError, SpecError
from soundomni.core.pretrained.adapters import load_adapter_file, save_adapters
from soundomni.core.sequence import Sample
from soundomni.core.spec.schema import AdapterKind, LoRASpec, ModelSpec, Slot
from soundomni.flow.v_prediction import VPrediction

TARGETS = ["qkv", "output", "query", "up", "down"]
DIT = Slot("dit", {"hidden_dim": 16, "num_layers": 2, "num_heads": 2})


def spec_of(objective: str = "flow-matching") -> ModelSpec:
    spec = conditioned_spec("cross", "cross+global", objective="flow-matching", backbone=DIT)
    made = spec.used["made"]
    return replace(spec, modalities={**spec.used, "made": replace(made, objective=Slot(objective, {"timesteps": "uniform"}))})


def adapted(interval: tuple[float, float] | None, *, kind: AdapterKind = "lora", objective: str = "flow-matching") -> UnifiedModel:
    """The same model each time, with the same random adapters."""
    model = conditioned_model(spec_of(objective))
    add_adapters(model, LoRASpec(streams=["all"], kind=kind, rank=2, targets=TARGETS, interval=interval))
    generator = torch.Generator().manual_seed(3)
    for layer in adapters(model).values():
        layer.lora_B.weight.data.copy_(0.3 * torch.randn(layer.lora_B.weight.shape, generator=generator))
        layer.lora_A.weight.data.copy_(layer.lora_A.weight.float())
    return model


def samples(model: UnifiedModel, objective: str) -> list[Sample]:
    """Clips of three lengths, at the timesteps 1/6, 1/2 and 5/6 of the objective."""
    made = samples_of(sample_writer(model, spec_of(objective)), ["rain", "a very long wind", "x"])
    return [replace(sample, quantile=(i + 0.5) / 3) for i, sample in enumerate(made)]


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("objective", ["flow-matching", "v-prediction"])
def test_each_clip_of_a_batch_has_its_own_timestep(objective: str, kind: AdapterKind) -> None:
    plain, whole = conditioned_model(spec_of(objective)), adapted(None, kind=kind, objective=objective)
    # Of the circle's 1/6, 1/2 and 5/6, timesteps of the flow are 0.21, 0.5 and 0.79.
    part = adapted((0.2, 0.6) if objective == "v-prediction" else (0.4, 0.6), kind=kind, objective=objective)
    acting = {"v-prediction": [0, 1], "flow-matching": [1]}[objective]
    without, always, found = (outputs_of(model, samples(model, objective)) for model in (plain, whole, part))
    for clip in range(3):
        assert not torch.allclose(without[clip], always[clip])
        torch.testing.assert_close(found[clip], always[clip] if clip in acting else without[clip], rtol=0, atol=1e-12)


def test_gradients_come_from_the_clips_at_these_timesteps() -> None:
    part, whole = adapted((0.4, 0.6)), adapted(None)
    clips = samples(part, "flow-matching")
    gradients = []
    for model, chosen in ((part, clips), (whole, clips[1:2])):
        total, _ = model(batch_of(chosen))["velocity"]
        total.backward()
        gradients.append({name: layer.lora_A.weight.grad for name, layer in adapters(model).items()})
    assert len(gradients[0]) == 2 * 6
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradient.abs().max() > 0
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-9, atol=1e-12)
    part.zero_grad()
    part(batch_of([clips[0], clips[2]]))["velocity"][0].backward()
    assert all(bool((layer.lora_A.weight.grad == 0).all()) for layer in adapters(part).values())  # type: ignore[attr-defined]


@pytest.mark.parametrize("interval", [(0.0, 0.5), (0.5, 1.0)])
def test_sampling_uses_the_adapters_in_the_interval_only(interval: tuple[float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of()
    whole, plain, part = adapted(None), conditioned_model(spec), adapted(interval)
    asked: list[dict[str, Any]] = [{"seconds": [0.06, 0.1], "seeds": 3}]
    found = user_of(part, spec).generate(["rain", "a dog"], **asked[0])
    predict, seen = UnifiedModel.predict_frames, []

    def by_hand(self: UnifiedModel, name: str, values: Any, timesteps: Any, *rest: Any, **more: Any) -> Any:
        time = float(timesteps.max())
        seen.append(time)
        return predict(whole if interval[0] <= time <= interval[1] else plain, name, values, timesteps, *rest, **more)

    monkeypatch.setattr(UnifiedModel, "predict_frames", by_hand)
    expected = user_of(conditioned_model(spec), spec).generate(["rain", "a dog"], **asked[0])
    assert min(seen) < 0.5 < max(seen)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(one.waveform), torch.from_numpy(other.waveform), rtol=0, atol=1e-5)


# Files


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_folder_keeps_the_interval_and_gives_it_to_a_plain_model(kind: AdapterKind, tmp_path: Path) -> None:
    model = adapted((0.4, 0.6), kind=kind)
    (folder,) = save_adapters(model, tmp_path / "out")
    assert json.loads((folder / "adapter_config.json").read_text())["timestep_interval"] == [0.4, 0.6]
    other = conditioned_model(spec_of())
    load_adapter_file(other, folder)
    assert interval_of(other) == (0.4, 0.6)
    clips = samples(model, "flow-matching")
    for expected, found in zip(outputs_of(model, clips), outputs_of(other, clips), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    with pytest.raises(CheckpointError, match="already has adapters that only act at some timesteps"):
        load_adapter_file(other, folder)
    with pytest.raises(CheckpointError, match=r"only act at timesteps from 0.4 to 0.6, so they cannot be merged into the weights"):
        merge_adapters(other)
    user = user_of(other, spec_of())
    with pytest.raises(CheckpointError, match="the model has adapters, which a model directory cannot hold. Save them with save_adapters"):
        user.save_pretrained(tmp_path / "model")


def test_an_interval_of_all_timesteps_is_none() -> None:
    """So such adapters are merged like others."""
    model = adapted((0.0, 1.0))
    assert interval_of(model) is None
    merge_adapters(model)


def test_an_interval_may_be_chosen_when_an_adapter_is_loaded(tmp_path: Path) -> None:
    (folder,) = save_adapters(adapted(None), tmp_path / "out")
    chosen, part = user_of(conditioned_model(spec_of()), spec_of()), adapted((0.0, 0.2))
    chosen.load_adapter(folder, interval=(0.0, 0.2))
    clips = samples(part, "flow-matching")
    for expected, found in zip(outputs_of(part, clips), outputs_of(chosen.model, clips), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    (folder,) = save_adapters(part, tmp_path / "part")
    everywhere = user_of(conditioned_model(spec_of()), spec_of())
    everywhere.load_adapter(folder, interval=(0.0, 1.0))
    assert not adapters(everywhere.model), "merged"


@pytest.mark.parametrize(
    "value",
    [
        "[0.5]",
        "[0.6, 0.4]",
        "[0, 1.5]",
        '"low"',
        "[true, 1]",
        "[NaN, 1]",
        "[0, Infinity]",
        f"[0, 1{400 * '0'}]",
        f"[-1{400 * '0'}, 1]",
        "[0, 1e400]",
        "[[0], 1]",
    ],
)
def test_a_wrong_interval_in_a_file_is_refused(value: str, tmp_path: Path) -> None:
    (folder,) = save_adapters(adapted(None), tmp_path / "out")
    text = (folder / "adapter_config.json").read_text().rstrip().removesuffix("}")
    (folder / "adapter_config.json").write_text(f'{text}, "timestep_interval": {value}}}')
    with pytest.raises(CheckpointError, match="timestep_interval is .*; expected two numbers from 0 to 1, the lower one first"):
        load_adapter_file(conditioned_model(spec_of()), folder)


def test_models_and_layers_without_timesteps_refuse_an_interval(tmp_path: Path) -> None:
    half = LoRASpec(streams=["gen"], interval=(0.0, 0.5))
    with pytest.raises(SpecError, match=r"train.lora.interval is \[0, 0.5\], but .* does not know the timesteps of clips"):
        add_adapters(make_model(), half)
    model = conditioned_model(spec_of())
    with pytest.raises(SpecError, match=r"the inputs of 'backbone.blocks.0.conditions.key_value' are conditions, which have no timestep"):
        add_adapters(model, LoRASpec(streams=["all"], targets=["key_value"], interval=(0.0, 0.5)))
    assert not adapters(model) and all(p.requires_grad for p in model.backbone.parameters())
    with pytest.raises(SpecError, match=r"the interval of the adapter is \[0.7, 0.2\]; expected two numbers from 0 to 1"):
        load_adapter_file(model, save_adapters(adapted(None), tmp_path / "a")[0], interval=(0.7, 0.2))
    other = conditioned_model(spec_of())
    made = other.made()
    made.objective, second = VPrediction(), conditioned_model(spec_of()).made()
    second.name = "second"
    other.modalities["second"] = second
    with pytest.raises(SpecError, match=r"the objectives of made, second have timesteps of different kinds"):
        add_adapters(other, LoRASpec(streams=["all"], interval=(0.0, 0.3)))
