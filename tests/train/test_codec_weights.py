"""A model is not trained on a codec with random weights, of which nothing would come but noise."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from tiny_spec import OOBLECK, tiny_spec

from soundomni.cli.main import main
from soundomni.core.errors import ConstructionError, SpecError
from soundomni.core.spec import yaml_text
from soundomni.core.spec.load import resolve
from soundomni.core.spec.registry import build
from soundomni.core.spec.schema import Slot
from soundomni.core.spec.slots import map_slots
from soundomni.train.codec_weights import find_random_codecs
from soundomni.train.run import run_training
from soundomni.vae.oobleck import OobleckCodec

STEP = ("train.steps=1", "data.tokens_per_batch=512", f"model.codec={OOBLECK}")
LINE = (
    "model.codec.weights is null; training needs a file, because codec 'oobleck' would have random weights, and the model would "
    "only make noise. Train the codec first or import one, and set model.codec.weights; for a test, set train.random_codec"
)


def test_a_new_run_is_refused_before_it_has_a_directory_and_goes_on_once_it_began(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as error:
        run_training(tiny_spec(tmp_path / "run", *STEP))
    assert str(error.value) == LINE and not (tmp_path / "run").exists()
    assert run_training(tiny_spec(tmp_path / "run", *STEP, "train.random_codec=true")).step == 1
    assert run_training(tiny_spec(tmp_path / "run", *STEP, "train.steps=2")).step == 2


def test_weights_from_a_file_and_codecs_without_any_are_fine(tmp_path: Path) -> None:
    slot = yaml_text.parse(OOBLECK, "codec")
    codec = build("codec", Slot(**slot))
    save_file(codec.state_dict(), tmp_path / "codec.safetensors")
    slot["init_args"]["weights"] = str(tmp_path / "codec.safetensors")
    assert run_training(tiny_spec(tmp_path / "run", *STEP, f"model.codec={json.dumps(slot)}")).step == 1
    for fine in ("mdct", "mel-codes", "harmonic"):
        options = [] if fine != "mel-codes" else ["model.objective=masked", "model.connectors.latent=codes", "sampler=maskgit"]
        spec = tiny_spec(tmp_path / fine, f"model.codec={fine}", *options)
        assert find_random_codecs(resolve(spec), None) == []


def test_codecs_that_are_only_given_are_named_by_their_full_key(tmp_path: Path) -> None:
    spec = tiny_spec(tmp_path / "run", f"model.modalities.given={{codec: {OOBLECK}, connector: linear}}")
    (line,) = find_random_codecs(resolve(spec), None)
    assert line.startswith("model.modalities.given.codec.weights is null; ")


def test_validation_of_a_spec_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = [str(tmp_path / f"run-{name}.yaml") for name in ("model", "codec")]
    tiny_spec(tmp_path / "run")
    command: Any = ["--json", "spec", "validate", *layers, f"--train.run_dir={tmp_path / 'run'}", f"--model.codec={OOBLECK}"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["warnings"][-1] == LINE
    assert main([*command, "--train.random_codec=true"]) == 0
    assert LINE not in json.loads(capsys.readouterr().out)["warnings"]


class NeedsMemory(OobleckCodec):
    """A codec whose constructor reads a value, which nothing has on the meta device."""

    def __init__(self, *, weights: str | None = None) -> None:
        super().__init__(**yaml_text.parse(OOBLECK, "codec")["init_args"], weights=weights)
        assert float(sum(one.sum() for one in self.parameters())) != 0.0


class Fails(NeedsMemory):
    """A codec that cannot be built at all."""

    def __init__(self, *, weights: str | None = None) -> None:
        raise RuntimeError("no luck")


def test_a_codec_that_needs_memory_is_judged_too(tmp_path: Path) -> None:
    def random_codecs(cls: type) -> list[str]:
        slot = Slot(f"{cls.__module__}.{cls.__qualname__}")
        spec = map_slots(resolve(tiny_spec(tmp_path / "run")), lambda _, kind, other: slot if kind == "codec" else other)
        return find_random_codecs(spec, None, trust_class_paths=True)

    (line,) = random_codecs(NeedsMemory)
    assert (
        line.startswith("model.codec.weights is null; training needs a file, because codec '") and "NeedsMemory' would have random" in line
    )
    with pytest.raises(ConstructionError, match="cannot be constructed: .*no luck"):
        random_codecs(Fails)
