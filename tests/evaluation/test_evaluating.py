"""Evaluation from Python, as a researcher uses it: one call, nothing printed, and every mistake refused in one line."""

import importlib
import json
import logging
import os
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import soundomni.evaluation
from soundomni import Audio, SoundOmni
from soundomni.core.errors import DataError, SoundOmniError, SpecError
from soundomni.core.spec.schema import Slot
from soundomni.data.audio_folder import AudioFolder
from soundomni.data.toys.toy_sounds import ToySounds
from soundomni.evaluation import (
    TASKS,
    Outcome,
    Settings,
    evaluate,
    load_judges,
    open_data,
    run_model,
    save_outcome,
    score_outcome,
    score_text,
)
from soundomni.evaluation.saving import empty_folder

TOYS: dict[str, Any] = {"size": 3, "seconds": 0.5, "events": (1, 1), "kinds": ("tone", "chirp"), "seed": 5}


class Listening:
    """An observer that keeps what it hears: how much of each piece of work was done, and the notes."""

    def __init__(self) -> None:
        self.done: dict[str, tuple[int, int]] = {}
        self.details: list[str] = []
        self.notes: list[str] = []
        self._what = ""

    @contextmanager
    def begin(self, what: str, *, total: int) -> Iterator["Listening"]:
        self._what, self.done[what] = what, (0, total)
        yield self

    def advance(self, count: int = 1) -> None:
        done, total = self.done[self._what]
        self.done[self._what] = (done + count, total)

    def detail(self, text: str) -> None:
        self.details.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two clips that are not toy sounds."""
    path = tmp_path / "clips"
    path.mkdir()
    for i in range(2):
        soundfile.write(path / f"{i}.wav", 0.1 * np.random.default_rng(i).standard_normal(4000), 8000)
        (path / f"{i}.json").write_text(json.dumps({"caption": "a dog barks", "events": ["dog bark"]}))
    return path


def test_a_model_is_measured_in_one_call(model: SoundOmni) -> None:
    result = evaluate(model, ToySounds(**TOYS), tasks=TASKS, num_steps=1)
    assert result["clips"] == 3 and result["failures"] == result["not_measured"] == []
    done = ("generated", "described", "answered", "reconstructed", "continued", "varied")
    assert all(result[task] for task in done) and result["reconstructed"]["si_sdr"] > 60
    assert all(score_text(name, value) for task in done for name, value in result[task].items())
    made = result["made_with"]
    assert (made["limit"], made["seed"], made["batch"], made["steps"], made["device"]) == (3, 0, 16, 1, "cpu")
    assert made["model"]["name"] is None and len(made["model"]["spec_sha256"]) == 64
    assert made["judges"] == {"clap": None, "classifier": None} and json.dumps(result, allow_nan=False)


def test_a_dataset_is_measured_alike_by_its_slot_and_as_it_is_in_python(model: SoundOmni) -> None:
    class Own(ToySounds):
        """A dataset that no distribution registers."""

    slot = Slot("toy-sounds", {name: list(value) if isinstance(value, tuple) else value for name, value in TOYS.items()})
    results = [evaluate(model, data, tasks=["describe"], limit=2) for data in (slot, ToySounds(**TOYS), Own(**TOYS), open_data(slot))]
    described = [result["described"] for result in results]
    sums = [result["made_with"]["data"]["audio_sha256"] for result in results]
    assert all(one == described[0] for one in described) and len(set(sums)) == 1
    datasets = [result["made_with"]["data"]["dataset"] for result in results]
    assert datasets[0] == datasets[3] == {"class_path": "toy-sounds", "init_args": slot.init_args}
    assert datasets[1] == {"class_path": "soundomni.data.toys.toy_sounds.ToySounds", "init_args": None}
    assert datasets[2]["class_path"].endswith("Own")
    assert [plugin["distribution"] for plugin in results[1]["made_with"]["plugins"]] == ["soundomni"]


def test_the_steps_are_functions_of_their_own(model: SoundOmni, tmp_path: Path) -> None:
    settings = Settings(limit=2, seed=4, num_steps=1, tasks=["generate", "answer"])
    data = open_data("new-combinations")
    outcome = run_model(model, data.dataset, settings)
    save_outcome(outcome, tmp_path)
    result = score_outcome(outcome)
    whole = evaluate(model, data, tasks=["generate", "answer"], limit=2, seed=4, num_steps=1, save=tmp_path / "kept")
    assert {name: whole[name] for name in result} == result and whole["made_with"]["data"]["list"] == "new-combinations"
    files = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    assert files == ["0000.wav", "0001.wav", "results.jsonl"] == sorted(path.name for path in (tmp_path / "kept").iterdir())
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [item.captions[0] for item in outcome.items]
    with pytest.raises(DataError, match="is not empty. Save to a directory that does not exist, or to an empty one"):
        evaluate(model, data, limit=1, save=tmp_path)
    with pytest.raises(DataError, match=r"cannot write to '.*0000.wav'"):
        evaluate(model, data, limit=1, save=tmp_path / "0000.wav")
    with pytest.raises(DataError, match="save is empty; expected the name of a directory"):
        evaluate(model, data, limit=1, save="")


@pytest.mark.skipif(not hasattr(os, "setresuid"), reason="permissions are those of POSIX")
def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    closed, user = tmp_path / "closed", os.getuid()
    closed.mkdir(mode=0o555)
    if user == 0:
        for folder in (*tmp_path.parents[:3], tmp_path):
            folder.chmod(0o755)  # so that another user gets this far
        os.setresuid(65534, 65534, 0)
    try:
        with pytest.raises(DataError, match=r"cannot write to '.*closed': permission denied"):
            empty_folder(closed)
    finally:
        if user == 0:
            os.setresuid(0, 0, 0)


def test_nothing_is_printed_and_an_observer_hears_everything(
    model: SoundOmni, tmp_path: Path, folder: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "2.wav").write_bytes(b"not audio")
    (folder / "2.txt").write_text("noise")
    loud = Outcome(items=[ToySounds(**TOYS).item(0)], clips=[], generated=[Audio(np.full((1, 800), 2.0, np.float32), 8000)])
    with caplog.at_level(logging.DEBUG, logger="soundomni.evaluation"):
        for observer in ({}, {"observer": Listening()}):
            evaluate(model, ToySounds(**TOYS), tasks=TASKS, num_steps=1, **observer)
            found = evaluate(model, AudioFolder(path=str(folder)), **observer)
            evaluate(model, "editing", limit=1, num_steps=1, save=tmp_path / f"{len(observer)}", **observer)
            save_outcome(loud, tmp_path, **observer)
    assert capfd.readouterr() == ("", "") and not [record for record in caplog.records if record.name.startswith("soundomni.evaluation")]
    assert [failure["file"] for failure in found["failures"]] == ["2.wav"] and found["clips"] == 2
    heard = observer["observer"]
    assert all(done == total > 0 for done, total in heard.done.values()) and "step 1" in heard.details
    for what in ("reading", "generating", "describing", "continuing", "varying", "analyzing"):
        assert f"{what} clips" in heard.done
    assert "checking the list editing" in heard.done and "answering questions" in heard.done
    assert any(note.startswith("left out '2.wav': ") for note in heard.notes)
    assert any("1 of 1 generated clips exceeded full scale" in note for note in heard.notes)


def test_other_collections_have_events_too(model: SoundOmni, folder: Path) -> None:
    result = evaluate(model, AudioFolder(path=str(folder)), tasks=["describe", "generate", "continue", "vary", "answer"])
    assert result["described"].keys() == {"exact", "wer", "cer", "cider_d"} and "generated" not in result
    assert [line.partition(":")[0] for line in result["not_measured"]] == ["generated", "continued", "varied", "answered"]
    assert all("the clips are not toy sounds" in line for line in result["not_measured"][:3])


def test_networks_judge_other_collections(model: SoundOmni, folder: Path, networks: tuple[Path, Path]) -> None:
    judges = load_judges(clap=str(networks[0]), classifier=str(networks[1]))
    result = evaluate(model, AudioFolder(path=str(folder)), tasks=["generate"], num_steps=1, judges=judges)
    names = {"clap_score", "clap_score_of_data", "frechet_clap", "kernel_clap", "kl", "frechet_classifier"}
    assert result["generated"].keys() == names
    assert [result["made_with"]["judges"][name]["name"] for name in ("clap", "classifier")] == [str(path) for path in networks]
    with pytest.raises(DataError, match="need at least 2, there is 1"):
        evaluate(model, AudioFolder(path=str(folder)), tasks=["generate"], limit=1, judges=judges)
    with pytest.raises(SpecError, match="the tasks are describe. Add generate, or leave the networks out"):
        evaluate(model, AudioFolder(path=str(folder)), tasks=["describe"], judges=judges)


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        ("new-combination", {}, "Did you mean 'new-combinations'"),
        (3, {}, r"data is 3 \(int\); expected the name of a fixed list"),
        (None, {"limit": 0}, "limit is 0; expected at least 1"),
        (None, {"limit": 1.5}, "limit is 1.5"),
        (None, {"limit": True}, "limit is True"),
        (None, {"seed": -1}, "the seed is -1; expected a whole number from 0"),
        (None, {"batch_size": 0}, "batch_size is 0; expected at least 1"),
        (None, {"num_steps": 0}, "num_steps is 0; expected at least 1"),
        (None, {"guidance_scale": float("nan")}, "the guidance scale is nan; expected a number from"),
        (None, {"guidance_scale": "2"}, "guidance_scale is '2'"),
        (None, {"tasks": "describe"}, r"Write \['describe'\]"),
        (None, {"tasks": []}, "tasks is empty"),
        (None, {"tasks": ["describes"]}, "unknown task 'describes'.* Did you mean 'describe'"),
        (None, {"tasks": [3]}, "unknown task '3'"),
        (None, {"tasks": 3}, r"tasks is 3 \(int\); expected a list of some of generate"),
        (None, {"judges": None}, r"judges is None \(NoneType\); expected Judges. Call load_judges"),
        (None, {"save": 5}, r"save is 5 \(int\); expected a path"),
        (None, {"loaded_from": 5}, r"loaded_from is 5 \(int\); expected a path"),
        (None, {"seed": 2**63 - 1, "limit": 2}, "and 2 seeds count up from it; expected at most 9223372036854775806. Set a smaller seed"),
        ("between-notes", {"tasks": ["vary"]}, "'between-notes' does not measure vary; expected some of describe, answer"),
        (Slot("toy-sound"), {}, "Did you mean 'toy-sounds'"),
        (None, {"loaded_from": "nnao"}, "'nnao'"),
        (None, {"adapter": "no/such"}, r"the adapter 'no/such' \(/.*\) has no adapter_config.json"),
    ],
)
def test_mistakes_are_refused_in_one_line_before_anything_is_made(
    model: SoundOmni, data: Any, arguments: dict[str, Any], message: str
) -> None:
    heard = Listening()
    with pytest.raises(SoundOmniError, match=message) as caught:
        evaluate(model, ToySounds(**TOYS) if data is None else data, **arguments, observer=heard)
    assert "\n" not in str(caught.value) and "reading clips" not in heard.done


@pytest.mark.parametrize("given", ["nano", None])
def test_what_is_not_a_model_is_refused(given: Any) -> None:
    with pytest.raises(SpecError, match="^model is .*; expected a SoundOmni. Load it first: SoundOmni.from_pretrained"):
        evaluate(given)


@pytest.mark.parametrize("given", [None, print])
def test_what_is_not_an_observer_is_refused(model: SoundOmni, given: Any) -> None:
    with pytest.raises(SpecError, match=r"^observer is .* without the method begin\(\); expected an Observer, or leave it out"):
        evaluate(model, ToySounds(**TOYS), observer=given)


def test_every_public_name_is_there_and_none_is_the_name_of_a_module() -> None:
    package = soundomni.evaluation
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert modules.isdisjoint(package.__all__)  # a module that is imported would hide the name
    for module in modules:
        importlib.import_module(f"{package.__name__}.{module}")
    assert all(getattr(package, name) is not None for name in package.__all__)
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="has no attribute 'evaluates'"):
        _ = package.evaluates
