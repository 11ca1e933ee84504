"""Configs with numbers that no model has end in one line: sizes without end, NaN, Infinity, and integers that no float can hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stable_audio_3_pipelines
import test_stable_audio_3_import
import test_stable_audio_import
from hostile_numbers import faults, variants
from stable_audio_pipelines import saved

from soundomni.cli.main import main
from soundomni.core.assembly.uninitialized import without_memory
from soundomni.core.errors import SpecError
from soundomni.core.spec.registry import build
from soundomni.core.spec.schema import Slot
from soundomni.experts.checkpoints.stable_audio_3_config import parse_third
from soundomni.experts.checkpoints.stable_audio_3_diffusers_config import read_third_pipeline
from soundomni.experts.checkpoints.stable_audio_3_diffusers_layout import third_places
from soundomni.experts.checkpoints.stable_audio_diffusers_config import read_pipeline
from soundomni.experts.checkpoints.stable_audio_diffusers_layout import Places, places_of
from soundomni.experts.checkpoints.stable_audio_import import facts_of, spec_layer
from soundomni.experts.checkpoints.stable_audio_layout import parts_of
from soundomni.experts.checkpoints.stable_audio_model_config import ModelConfig, parse_model_config

CODEC: dict[str, Any] = {"latent_dim": 2, "sample_rate": 8000, "channels": 2, "strides": [2, 4]}
LIMITS = {"hidden_dim": 65_536, "num_layers": 256, "num_heads": 65_536, "condition_dim": 65_536, "num_memory": 65_536}


def planned(config: ModelConfig) -> None:
    """Do what importers do with a config before they compare it with weights."""
    spec_layer(config, {"class_path": "oobleck", "init_args": CODEC}, None)
    parts_of(facts_of(config))


def planned_pipeline(config: ModelConfig, places: Callable[[ModelConfig], Places]) -> None:
    """Do the same with the config of a pipeline."""
    planned(config)
    places(config)


CONFIGS: dict[str, tuple[Callable[[Any], ModelConfig], Callable[[], dict[str, Any]]]] = {
    "stable-audio-tools": (parse_model_config, lambda: test_stable_audio_import.config(num_memory_tokens=2)),
    "Stable Audio 3": (parse_third, test_stable_audio_3_import.config),
}


@pytest.mark.parametrize("family", list(CONFIGS))
def test_no_number_of_a_config_ends_in_anything_but_one_line(family: str) -> None:
    parse, config = CONFIGS[family]
    planned(parse(config()))
    assert faults(config(), lambda tree: planned(parse(tree))) == []


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("pipeline"))


@pytest.mark.parametrize(
    "file",
    [
        "transformer/config.json",
        "projection_model/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
    ],
)
def test_no_number_of_a_pipeline_ends_in_anything_but_one_line(file: str, pipeline: Path) -> None:
    check_numbers(pipeline / file, lambda: planned_pipeline(read_pipeline(pipeline, CODEC).config, places_of))


@pytest.fixture(scope="module")
def third(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_audio_3_pipelines.saved(tmp_path_factory.mktemp("third"))


@pytest.mark.parametrize(
    "file",
    [
        "transformer/config.json",
        "duration_embedder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
    ],
)
def test_no_number_of_a_pipeline_of_stable_audio_3_ends_in_anything_but_one_line(file: str, third: Path) -> None:
    codec = CODEC | {"latent_dim": stable_audio_3_pipelines.LATENT}
    check_numbers(third / file, lambda: planned_pipeline(read_third_pipeline(third, codec).config, third_places))


def check_numbers(file: Path, read: Callable[[], object]) -> None:
    """Check that no number in a file makes `read` fail with anything but one line."""
    text = file.read_text()

    def write_and_read(tree: Any) -> None:
        file.write_text(json.dumps(tree))
        read()

    read()
    try:
        assert faults(json.loads(text), write_and_read) == []
    finally:
        file.write_text(text)


SIZES = ("embed_dim", "depth", "num_heads", "num_memory_tokens")


@pytest.mark.parametrize("family", list(CONFIGS))
def test_sizes_without_end_are_refused_by_their_key(family: str) -> None:
    parse, config = CONFIGS[family]
    for key in SIZES:
        for value in (10**5, 10**6, 10**9, 10**18, 10**400):
            tree = config()
            tree["model"]["diffusion"]["config"][key] = value
            with pytest.raises(SpecError, match=rf"^model.diffusion.config.{key} is 10+.*; expected .*at most [\d,]+$"):
                parse(tree)
    for outer, key in ((("model", "conditioning"), "cond_dim"), (("model",), "io_channels"), ((), "audio_channels"), ((), "sample_rate")):
        tree = inner = config()
        for name in outer:
            inner = inner[name]
        inner[key] = 10**9
        with pytest.raises(SpecError, match=rf"^{'.'.join((*outer, key))} is 1000000000; expected at most"):
            parse(tree)


def test_a_list_of_conditions_without_end_is_refused() -> None:
    tree = test_stable_audio_import.config()
    number = {"type": "number", "config": {"min_val": 0, "max_val": 512}}
    tree["model"]["conditioning"]["configs"] = [{"id": f"number_{i}", **number} for i in range(2000)]
    with pytest.raises(SpecError, match=r"^model.conditioning.configs has 2,000 conditions; expected at most 64$"):
        parse_model_config(tree)


@pytest.mark.parametrize("key", ["num_layers", "num_attention_heads", "attention_head_dim"])
@pytest.mark.parametrize("value", [10**6, 10**9, 10**18])
def test_a_pipeline_with_sizes_without_end_is_refused_in_one_line(
    key: str, value: int, pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = pipeline / "transformer" / "config.json"
    text = file.read_text()
    file.write_text(json.dumps(json.loads(text) | {key: value}))
    try:
        assert main(["import", "stable-audio", str(pipeline), "--out", str(tmp_path / "out")]) == 2
    finally:
        file.write_text(text)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert f"'{file}': {key} is {value}; expected at most" in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["dit", "dit-3"])
@pytest.mark.parametrize("size", list(LIMITS))
def test_the_backbones_refuse_sizes_that_no_model_has(name: str, size: str) -> None:
    router = build("router", Slot("dense"))
    for value in (LIMITS[size] + 1, 10**9, 2**62, 10**30, 10**400, -1):
        with pytest.raises(SpecError, match=rf"{name}'?: {size} is .*; expected (a whole number of )?at (most|least) "), without_memory():
            build("backbone", Slot(name, {size: value}), vocab_size=300, router=router)


@pytest.mark.parametrize("family", list(CONFIGS))
@pytest.mark.parametrize("name", ["", " ", "\t"])
def test_a_text_encoder_without_a_name_is_refused(family: str, name: str) -> None:
    parse, config = CONFIGS[family]
    tree = config()
    settings = tree["model"]["conditioning"]["configs"][0]["config"]
    (key,) = [key for key in settings if key.endswith("model_name")]
    settings[key] = name
    with pytest.raises(SpecError, match=rf"config.{key} is '.*'; expected the name of a model, such as "):
        parse(tree)


@pytest.mark.parametrize("name", ["", " ", "\n"])
def test_a_blank_name_of_a_pipeline_is_that_of_its_folder(name: str, pipeline: Path) -> None:
    file = pipeline / "text_encoder" / "config.json"
    text = file.read_text()
    file.write_text(json.dumps(json.loads(text) | {"_name_or_path": name}))
    try:
        assert read_pipeline(pipeline, CODEC).config.conditions[0].settings["name"] == str(pipeline.resolve())
    finally:
        file.write_text(text)


def test_the_variants_are_of_every_number() -> None:
    assert [name for name, _ in variants({"a": {"b": [1, 2]}, "c": True})] == [
        *(f"a.b.0 = {value}" for value in ("nan", "inf", "1e+300", f"1{29 * '0'}", 10**18, 10**9, 0, -1)),
        "a.b.0: a long list",
    ]
