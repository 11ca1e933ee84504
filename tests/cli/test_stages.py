"""Commands with a chain of models in place of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from tiny_stages import RATE, SEMANTIC_RATE, Name, clip, stage

from soundomni import Chain
from soundomni.cli.main import main
from soundomni.data.audio import read_audio

STAGES: tuple[Name, ...] = ("semantic", "coarse", "fine")
TOYS = "{class_path: toy-sounds, init_args: {size: 3, sample_rate: 8000, seconds: 0.4, events: [1, 1]}}"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a chain of three stages."""
    return Chain({name: stage(name) for name in STAGES}).save_pretrained(tmp_path_factory.mktemp("chains") / "speech")


@pytest.fixture
def spec(chain: Path) -> Path:
    """A spec that names the stages of the chain."""
    file = chain.parent / "speech.yaml"
    file.write_text("stages:\n" + "".join(f"  {name}: speech/{name}\n" for name in STAGES))
    return file


def test_generate_takes_a_chain_by_its_directory_and_by_its_spec(chain: Path, spec: Path, tmp_path: Path, result: Any) -> None:
    made = []
    for model, out in ((chain, "a"), (spec, "b")):
        given = result("generate", "--model", model, "--prompt", "one", "--prompt", "two", "--seconds", 0.1, "--out", tmp_path / out)
        made.append([read_audio(one["files"][0])[0] for one in given["clips"]])
        assert len(given["clips"]) == 2 and not given["failures"]
    assert all(np.array_equal(first, second) for first, second in zip(*made, strict=True))
    assert {read_audio(path)[1] for path in (tmp_path / "a").glob("*.wav")} == {RATE}
    lines = (tmp_path / "a" / "prompts.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == ["one", "two"]


def test_generate_continues_a_file_of_any_rate_and_changes_one_stage(chain: Path, tmp_path: Path, result: Any) -> None:
    file = tmp_path / "prompt.wav"
    soundfile.write(file, 0.1 * clip(1, 160).T, 1600)
    asked = ("generate", "--model", chain, *["--prompt", "one"] * 4, "--seconds", 0.2, "--keep", file, "--no-pictures")
    plain = result(*asked, "--out", tmp_path / "a")
    hotter = result(*asked, "--out", tmp_path / "b", "--stages.semantic.model.modalities.semantic.sampler.temperature=5")
    waves = [[read_audio(clip["files"][0])[0] for clip in one["clips"]] for one in (plain, hotter)]
    assert all(wave.shape[1] >= 96 for wave in waves[0])
    assert not all(np.array_equal(one[:, 96:], other[:, 96:]) for one, other in zip(*waves, strict=True))


def test_evaluate_measures_what_a_chain_generates(tmp_path: Path, result: Any) -> None:
    chain = Chain({name: stage(name, wider=8) for name in STAGES}).save_pretrained(tmp_path / "wider")
    found = result("evaluate", "--model", chain, "--dataset", TOYS, "--limit", 2, "--tasks", "generate", "continue", "describe", "vary")
    record = found["made_with"]
    assert list(record["stages"]) == list(STAGES) and record["modality"] == "acoustic"
    assert record["stages"]["semantic"]["modality"] == "semantic" and record["stages"]["fine"]["steps"] is None
    assert record["model"]["sha256"] and len(record["plugins"]) >= 1
    assert {one["task"] for one in found["details"]} <= {"generated", "continued"} and "generated" in found
    assert sum("a chain of models only generates and continues" in one for one in found["not_measured"]) == 2


def test_evaluate_compares_what_chains_and_models_without_a_text_make_with_a_reference(tmp_path: Path, result: Any) -> None:
    chain = Chain({name: stage(name, wider=8) for name in STAGES}).save_pretrained(tmp_path / "wider")
    storm = stage("storm", wider=8).save_pretrained(tmp_path / "storm")
    other = "{class_path: toy-sounds, init_args: {size: 40, seconds: 0.4, events: [1, 1], seed: 9}}"
    for model, judged in ((chain, True), (storm, False)):
        found = result("evaluate", "--model", model, "--dataset", TOYS, "--limit", 2, "--tasks", "generate", "--reference", other)
        assert found["reference"]["sample_rate"] == 8 * RATE and found["generated"]["novelty"] > 0
        assert ("captions are not judged: the model does not take a text" in found["reference"]["notes"]) != judged


def test_evaluate_gives_no_captions_to_a_model_without_a_text(tmp_path: Path, result: Any) -> None:
    model = stage("storm", wider=8).save_pretrained(tmp_path / "storm")
    found = result("evaluate", "--model", model, "--dataset", TOYS, "--limit", 2, "--tasks", "generate", "continue", "vary")
    assert {"generated", "varied"} <= set(found) and not found["failures"]


def test_evaluate_refuses_tasks_of_which_none_can_be_measured(chain: Path, fails: Any) -> None:
    asked = ("evaluate", "--model", chain, "--dataset", TOYS, "--tasks", "describe", "vary")
    assert "there is nothing to measure (describe: a chain of models only generates and continues; vary: a chain" in fails(*asked)


def test_a_spec_of_stages_is_validated_and_printed(spec: Path, result: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert [one["found"] for one in result("spec", "validate", spec)["stages"]] == [True] * 3
    assert result("spec", "validate", "audiolm-toy")["stages"][0]["directory"].startswith("models")
    broken = spec.with_name("broken.yaml")
    broken.write_text(spec.read_text() + "  last: nothing\n")
    assert result("spec", "validate", broken)["stages"][-1]["found"] is False
    assert main(["spec", "print", str(spec)]) == 0
    assert capsys.readouterr().out == spec.read_text()


def test_what_a_chain_does_not_do_is_one_line(chain: Path, spec: Path, tmp_path: Path, fails: Any) -> None:
    file = tmp_path / "a.wav"
    soundfile.write(file, 0.1 * clip(1, 100).T, SEMANTIC_RATE)
    generate = ("generate", "--model", chain, "--prompt", "one", "--out", tmp_path / "out")
    for option, value in (("--vary", file), ("--given", f"semantic={file}"), ("--draft", chain / "semantic")):
        assert f"{option} only applies to a single model; '{chain}' is a chain. Use one of its stages" in fails(*generate, option, value)
    assert "--adapter changes one model, but" in fails(*generate, "--adapter", tmp_path)
    assert "--of is 'semantic'; this model makes acoustic" in fails(*generate, "--of", "semantic")
    assert "--steps is 3, but this model makes 'acoustic' token after token" in fails(*generate, "--steps", 3)
    assert "the prompt is empty; say what to make" in fails("generate", "--model", chain, "--prompt", "", "--out", tmp_path / "out")
    assert "sampler is not a key of a chain; write stages.STAGE.KEY" in fails(*generate, "--sampler=euler")
    for name in (chain, spec, "audiolm-toy"):
        for command in (
            ("describe", "--model", name, file),
            ("reconstruct", "--model", name, "--out", tmp_path / "r", file),
            ("export", name, "--out", tmp_path / "e"),
            ("encode", "--model", name, tmp_path, "--out", tmp_path / "c"),
            ("generate", "--model", chain / "coarse", "--draft", name, "--prompt", "one", "--out", tmp_path / "out"),
        ):
            assert f"'{name}' is a chain of models, and chains can only generate. Use one of its stages, such as" in fails(*command), (
                command
            )
    for command in ("doctor", "train"):
        assert "the spec is a chain (semantic, coarse, fine); expected the spec of one model" in fails(command, "--config", spec)
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stages: {}", "stages is empty; expected names with the directories of models"),
        ("stages: {a b: x}", "the name of a stage is 'a b'; expected a word such as semantic"),
        ('stages: {a: ""}', "stages.a is ''; expected the directory of a model or of a run"),
        ("stages: {a: x}\ncodec: {codec: mdct}", "the spec has the sections codec and stages; expected one of them"),
        (
            "stages: {a: x}\ndata: {workers: 1}",
            "the spec has the sections stages and data, but each stage is trained by its own spec. Remove",
        ),
        (
            "stages: {a: x}\ntrain: {steps: 3}",
            "the spec has the sections stages and train, but each stage is trained by its own spec. Remove",
        ),
        ("stages: {a: x}\ntrain: {run_dir: r}", "the spec has the sections stages and train, but each stage is trained by its own spec"),
    ],
)
def test_a_spec_of_stages_that_is_wrong_is_one_line(text: str, expected: str, tmp_path: Path, fails: Any) -> None:
    file = tmp_path / "chain.yaml"
    file.write_text(text)
    assert expected in fails("spec", "validate", file)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("stages: {a: b", "not valid YAML"), ("stage: {a: b}", "Did you mean 'stages'"), ("stages:", "none of the sections")],
)
def test_a_mistyped_chain_is_said_to_be_mistyped(text: str, expected: str, tmp_path: Path, fails: Any) -> None:
    file = tmp_path / "chain.yaml"
    file.write_text(text)
    told = fails("generate", "--model", file, "--prompt", "one", "--out", tmp_path / "out")
    assert expected in told and "shipped model" not in told and not (tmp_path / "out").exists()


def test_a_model_without_a_text_takes_empty_prompts_only(chain: Path, tmp_path: Path, result: Any, fails: Any) -> None:
    file = tmp_path / "a.wav"
    soundfile.write(file, 0.1 * clip(1, 100).T, RATE)
    asked = ("generate", "--model", chain / "fine", "--given", f"acoustic={file}", "--out", tmp_path / "out", "--no-pictures")
    assert len(result(*asked, "--prompt", "")["clips"]) == 1
    assert "the prompt is 'one', but this model takes no text. Leave the prompt empty" in fails(*asked, "--prompt", "one")
    assert "the prompt is empty; say what to make" in fails("generate", "--model", chain / "semantic", "--prompt", " ")
