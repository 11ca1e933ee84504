"""What a run directory keeps apart: runs by their ids, and what a run wrote from what anybody else did."""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_run import VALIDATION, measured
from tiny_spec import OOBLECK, tiny_spec

from soundomni.core.errors import CheckpointError
from soundomni.core.pretrained.start import has_checkpoint
from soundomni.core.tokenizer import TextTokenizer
from soundomni.train.checkpoint import find_latest, read_state
from soundomni.train.export import load_run
from soundomni.train.metrics_log import MetricsLog, read_metrics
from soundomni.train.run import run_training
from soundomni.train.run_directory import inventory
from soundomni.train.run_directory.files import read_run_id, refuse_foreign
from soundomni.train.run_directory.inventory import Inventory


def snapshot(folder: Path) -> dict[str, str | bytes]:
    """Path → content of every file and link."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return {path.relative_to(folder).as_posix(): str(path.readlink()) if path.is_symlink() else path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps, with a checkpoint at each of the last two, and samples."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    run_training(tiny_spec(run_dir, *VALIDATION, "train.steps=3", "train.save_every=2"))
    return run_dir


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def change_state(checkpoint: Path, **changes: object) -> None:
    """Changes a checkpoint's state, and its manifest; None removes a key."""
    state = {key: value for key, value in {**read_state(checkpoint), **changes}.items() if value is not None}
    (checkpoint / "state.json").write_text(json.dumps(state))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"]["state.json"]["sha256"] = hashlib.sha256((checkpoint / "state.json").read_bytes()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def newest(run_dir: Path) -> Path:
    found = find_latest(run_dir / "checkpoints")
    assert found is not None
    return found


def test_one_id_is_in_the_directory_its_checkpoints_and_its_log(run_dir: Path) -> None:
    run = json.loads((run_dir / "run.json").read_text())["run"]
    assert {read_state(path)["run"] for path in (run_dir / "checkpoints").glob("step-*")} == {run}
    assert {entry["run"] for entry in read_metrics(run_dir / "metrics.jsonl")} == {run}
    run_training(tiny_spec(run_dir, *VALIDATION, "train.steps=4"))
    assert {entry["run"] for entry in read_metrics(run_dir / "metrics.jsonl")} == {run}
    run_training(tiny_spec(run_dir, "train.steps=1"), existing="overwrite")
    assert [entry["run"] == run for entry in read_metrics(run_dir / "metrics.jsonl")] == [False]


@pytest.mark.parametrize("step", [1, 9])
def test_a_checkpoint_of_another_run_is_neither_continued_nor_removed_nor_exported(
    run_dir: Path, step: int, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = Path(shutil.copytree(newest(run_dir), run_dir / "checkpoints" / f"step-{step:08d}"))
    change_state(foreign, run="another")
    before = snapshot(run_dir)
    for existing, message in (("resume", f"'{foreign}' belongs to run another"), ("overwrite", f"has checkpoints/{foreign.name}, which")):
        with pytest.raises(CheckpointError, match=message):
            run_training(tiny_spec(run_dir, *VALIDATION), existing=existing)  # type: ignore[arg-type]
    assert snapshot(run_dir) == before
    assert load_run(run_dir)[1] == 3
    assert (f"{foreign}' belongs to run another" in caplog.text) == (step == 9)
    shutil.rmtree(run_dir / "checkpoints" / "step-00000003")
    shutil.rmtree(run_dir / "checkpoints" / "step-00000002")
    with pytest.raises(CheckpointError, match="belongs to run another"):
        load_run(run_dir)


def test_a_checkpoint_that_comes_while_a_run_trains_is_not_replaced(run_dir: Path) -> None:
    def add(log: MetricsLog, step: int, metrics: object) -> None:
        if step == 4:
            change_state(Path(shutil.copytree(newest(run_dir), run_dir / "checkpoints" / "step-00000006")), run="another")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsLog, "log", add)
        with pytest.raises(CheckpointError, match="step-00000006' belongs to run another, not to this one"):
            run_training(tiny_spec(run_dir, *VALIDATION, "train.steps=6"))
    assert read_state(run_dir / "checkpoints" / "step-00000006")["progress"]["step"] == 3


def test_a_run_that_was_made_before_there_were_ids_goes_on_and_exports(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = tiny_spec(run_dir, *VALIDATION, "train.steps=5")
    for name in ("run.json", "inventory.jsonl"):
        (run_dir / name).unlink()
    for path in (run_dir / "checkpoints").glob("step-*"):
        change_state(path, run=None, data=None)
    lines = [{key: value for key, value in entry.items() if key != "run"} for entry in read_metrics(run_dir / "metrics.jsonl")]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert load_run(run_dir)[1] == 3
    older = Path(shutil.copytree(run_dir, run_dir.with_name("older")))
    assert run_training(whole).step == 5
    assert [line["step"] for line in measured(run_dir)] == [1, 2, 3, 4, 5]
    assert not caplog.records
    for path in (older, run_dir):
        run_training(tiny_spec(path, "train.steps=1"), existing="overwrite")
        assert [line["step"] for line in measured(path)] == [1] and not list(path.glob("samples/*"))


@pytest.mark.parametrize("existing", ["resume", "refuse", "overwrite"])
def test_checkpoints_without_the_rest_of_their_run_are_not_begun_over(run_dir: Path, existing: str, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(run_dir / "checkpoints", alone / "checkpoints")
    if existing == "overwrite":
        run_training(tiny_spec(alone, "train.steps=1"), existing="overwrite")
        assert [path.name for path in (alone / "checkpoints").glob("step-*")] == ["step-00000001"]
        return
    with pytest.raises(CheckpointError, match="already holds a run" if existing == "refuse" else "tokenizer.json' cannot be read"):
        run_training(tiny_spec(alone, *VALIDATION), existing=existing)  # type: ignore[arg-type]
    shutil.copy(run_dir / "tokenizer.json", alone)
    assert run_training(tiny_spec(alone, *VALIDATION, "train.steps=4")).step == 4


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"mine")
    return path


@pytest.mark.parametrize(
    "name",
    [
        "samples/mine.wav",
        "samples/step-00000003/notes.txt",
        "samples/step-00000003/00-a-sine.wav",
        "samples/best/00-a-sine.wav",
        "checkpoints/best.pt",
        "checkpoints/step-00000002/optimizer.pt",
        "checkpoints/step-00000002/old/state.json",
        "checkpoints/step-5/model.safetensors",
        "tokenizer.json",
        "metrics.jsonl",
        "spec.yaml",
    ],
)
def test_overwriting_refuses_what_the_run_has_not_written_before_it_removes_anything(run_dir: Path, name: str) -> None:
    put(run_dir / name)
    before = snapshot(run_dir)
    with pytest.raises(CheckpointError, match=r"which the run did not write, so nothing was removed; move it elsewhere") as caught:
        run_training(tiny_spec(run_dir), existing="overwrite")
    named = next(part for part in (name, str(Path(name).parent)) if part in str(caught.value))
    assert named != "." and "\n" not in str(caught.value)
    assert snapshot(run_dir) == before


def test_overwriting_refuses_links_and_what_it_cannot_read(run_dir: Path, tmp_path: Path) -> None:
    elsewhere = put(tmp_path / "elsewhere" / "00-a-sine.wav")
    (run_dir / "samples" / "step-00000009").symlink_to(elsewhere.parent)
    with pytest.raises(CheckpointError, match="has samples/step-00000009, which the run did not write"):
        run_training(tiny_spec(run_dir), existing="overwrite")
    assert elsewhere.exists()


def test_overwriting_leaves_what_does_not_stand_in_its_way(run_dir: Path) -> None:
    kept = [put(run_dir / name) for name in ("notes.txt", "tensorboard/mine.txt", "samples-1/x.wav", "checkpoints-old/step-1/state.json")]
    gone = [
        put(run_dir / name) for name in ("tensorboard/events.out.tfevents.1", "wandb-id", "checkpoints/.writing-step-00000005/state.json")
    ]
    put(run_dir / "samples" / "step-00000006" / "00-a-sine.wav")  # of a validation that was killed before it noted what it wrote
    run_training(tiny_spec(run_dir, "train.steps=1"), existing="overwrite")
    assert all(path.read_bytes() == b"mine" for path in kept)
    assert not any(path.exists() for path in gone) and not (run_dir / "samples" / "step-00000006").exists()
    assert [path.name for path in (run_dir / "checkpoints").glob("step-*")] == ["step-00000001"]


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json",
        "metrics.jsonl",
        "spec.yaml",
        "lock.json",
        "start.yaml",
        "codec.safetensors",
        "inventory.jsonl",
        "checkpoints/latest",
        "checkpoints/step-00000005",
        "samples/step-3/a.wav",
    ],
)
@pytest.mark.parametrize("existing", ["resume", "overwrite"])
def test_a_first_run_replaces_nothing(tmp_path: Path, name: str, existing: str) -> None:
    put(tmp_path / "run" / name)
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError, match=f"has {Path(name).parts[0]}.*, which does not belong to a run; move it elsewhere"):
        run_training(tiny_spec(tmp_path / "run"), existing=existing)  # type: ignore[arg-type]
    found = {key: value for key, value in snapshot(tmp_path).items() if key.startswith("run/")}
    assert found == {key: value for key, value in before.items() if key.startswith("run/")}


@pytest.mark.parametrize("reached", ["nothing was written", "the line was written", "the file was written in part"])
def test_a_run_whose_disk_was_full_before_it_began_begins_later(reached: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir, sub = tmp_path / "run", "train.steps=1"

    def full(path: Path, *_: object, **__: object) -> None:
        if "part" in reached:
            (path.parent / f".{path.name}.part").write_text("{")
        raise OSError(28, "No space left on device")

    def full_at_once(path: Path, records: object) -> None:
        path.touch()
        full(path)

    with monkeypatch.context() as patched:
        patched.setattr(inventory, "write_whole", full)
        if "nothing" in reached:
            patched.setattr(inventory, "append_lines", full_at_once)
        with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
            run_training(tiny_spec(run_dir, sub))
    assert (run_dir / "inventory.jsonl").exists() and not (run_dir / "run.json").exists()
    assert run_training(tiny_spec(run_dir, sub)).finished


def test_a_file_that_was_edited_is_set_aside_when_the_run_goes_on(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edited = (run_dir / "spec.yaml").read_text() + "# mine\n"
    (run_dir / "spec.yaml").write_text(edited)
    run_training(tiny_spec(run_dir, *VALIDATION, "train.steps=3"))
    assert "spec.yaml' was edited after the run wrote it; the edited file is kept as 'spec-1.yaml'\n" in capsys.readouterr().err
    assert (run_dir / "spec-1.yaml").read_text() == edited


def test_without_its_checkpoints_a_run_says_so_and_keeps_the_log(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, log = json.loads((run_dir / "run.json").read_text()), (run_dir / "metrics.jsonl").read_bytes()
    away = (run_dir / "checkpoints").rename(run_dir.with_name("away"))
    run_training(tiny_spec(run_dir, "train.steps=1"))
    told = f"'{run_dir}' has a run without checkpoints: it starts over from step 0; its earlier log and samples are kept as metrics-1.jsonl"
    assert told in capsys.readouterr().err
    assert (run_dir / "metrics-1.jsonl").read_bytes() == log and (run_dir / "samples-1" / "step-00000003").is_dir()
    assert json.loads((run_dir / "run.json").read_text()) != before
    for path in away.glob("step-*"):  # the disk is mounted again
        shutil.copytree(path, run_dir / "checkpoints" / path.name)
    with pytest.raises(CheckpointError, match=f"belongs to run {before['run']}"):
        run_training(tiny_spec(run_dir, "train.steps=2"))


def test_checkpoints_that_lead_to_what_is_not_mounted_are_named(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "checkpoints").symlink_to("/not/mounted")
    log = (run_dir / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="checkpoints' links to '/not/mounted', which does not exist; mount it"):
        run_training(tiny_spec(run_dir))
    assert (run_dir / "metrics.jsonl").read_bytes() == log


@pytest.mark.parametrize(
    "line", ['{"step": 2, "lo\n', "[1]\n", '{"loss": 1}\n', '{"step": "two"}\n', "\0\0\n", '{"run": "other", "step": 2}\n']
)
def test_a_log_that_is_broken_or_of_two_runs_is_set_aside(tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture) -> None:
    text = '{"step": 1, "run": "own"}\n' + line + '{"step": 3, "run": "own"}\n{"step": 4, "run": "own"}\n'
    (tmp_path / "metrics.jsonl").write_text(text)
    MetricsLog(tmp_path, resumed_step=3, run="own").log(4, {"loss": 1.0})
    assert [(entry["step"], entry["run"]) for entry in read_metrics(tmp_path / "metrics.jsonl")] == [(1, "own"), (3, "own"), (4, "own")]
    assert (tmp_path / "metrics-1.jsonl").read_text() == text
    assert len(caplog.records) == 1 and "it is kept as 'metrics-1.jsonl'" in caplog.text


@pytest.mark.parametrize("what", ["folder", "pipe", "link"])
def test_a_log_that_cannot_grow_never_stops_training(what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_dir = tmp_path / "run"
    run_training(tiny_spec(run_dir, "train.steps=1"))
    log = run_dir / "metrics.jsonl"
    log.unlink()
    if what == "folder":
        log.mkdir()
    elif what == "pipe":
        os.mkfifo(log)
    else:
        log.symlink_to("/dev/full")
    with caplog.at_level(logging.WARNING, "soundomni"):
        assert run_training(tiny_spec(run_dir, "train.steps=4")).finished
    assert len([record for record in caplog.records if "cannot be written; training continues" in record.message]) == 1


def test_a_line_that_was_cut_short_is_ended_before_the_next(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    log = MetricsLog(tmp_path, resumed_step=1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')  # a full disk
    log.log(3, {"loss": 1.0})
    assert [entry["step"] for entry in read_metrics(tmp_path / "metrics.jsonl")] == [1, 3]


def test_another_tokenizer_is_not_exported_with(run_dir: Path) -> None:
    TextTokenizer.train(["other"], vocab_size=300).save(run_dir)
    with pytest.raises(CheckpointError, match=r"tokenizer.json' is not the tokenizer that .* was trained with"):
        load_run(run_dir)


def test_a_run_with_weights_of_a_codec_needs_their_file_no_more(tmp_path: Path) -> None:
    run_training(tiny_spec(tmp_path / "codec", "train.steps=1", codec=True))
    weights = Path(shutil.copy(tmp_path / "codec" / "codec.safetensors", tmp_path / "weights.safetensors"))
    expected = load_file(weights)
    with_codec = (f"model.codec={OOBLECK}", f"model.codec.weights={weights}")
    run_training(tiny_spec(tmp_path / "run", *with_codec, "train.steps=1"))
    weights.unlink()
    run_training(tiny_spec(tmp_path / "run", *with_codec, "train.steps=2"))
    model, step = load_run(tmp_path / "run")
    found = model.model.made().codec.state_dict()
    assert step == 2 and all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_a_codec_that_began_from_weights_is_finished_without_their_file(tmp_path: Path) -> None:
    run_training(tiny_spec(tmp_path / "first", "train.steps=1", codec=True))
    weights = Path(shutil.copy(tmp_path / "first" / "codec.safetensors", tmp_path / "weights.safetensors"))
    begun = f"codec.codec.weights={weights}"
    run_training(tiny_spec(tmp_path / "run", begun, "train.steps=1", codec=True))
    weights.unlink()
    run_training(tiny_spec(tmp_path / "run", begun, "train.steps=2", codec=True))
    assert load_file(tmp_path / "run" / "codec.safetensors").keys() == load_file(tmp_path / "first" / "codec.safetensors").keys()


@pytest.mark.parametrize(
    "changes",
    [
        {"progress": None},
        {"progress": []},
        {"progress": {"step": "2", "data": {}}},
        {"spec": None},
        {"spec": {"train": 3}},
        {"tokenizer": None},
    ],
    ids=str,
)
def test_a_checkpoint_that_lacks_what_a_run_needs_is_named(run_dir: Path, changes: dict[str, object]) -> None:
    change_state(newest(run_dir), **changes)
    with pytest.raises(CheckpointError, match=rf"'{newest(run_dir)}' does not say which step its run has reached or which spec it has"):
        run_training(tiny_spec(run_dir, "train.steps=8"))


STATES: list[tuple[str, object]] = [
    ("data", [1]),
    ("data", {"toys": None}),
    ("data", {"toys": {"count": "x", "sha256": 1, "blocks": 3}}),
    ("progress", {"step": 3, "data": None}),
    ("progress", {"step": 3, "data": {"mixture": 1}}),
    ("ema_updates", "many"),
]


@pytest.mark.parametrize(("key", "value"), STATES)
def test_a_state_of_another_form_is_an_error_of_one_line(run_dir: Path, key: str, value: object) -> None:
    change_state(newest(run_dir), **{key: value})
    with pytest.raises(CheckpointError, match=r"does not say which step its run has .*; remove it to resume from the previous"):
        run_training(tiny_spec(run_dir, *VALIDATION, "train.steps=4"))


@pytest.mark.parametrize("name", ["step-²", "step-٣"])
def test_a_folder_with_digits_of_other_scripts_is_not_a_checkpoint(run_dir: Path, name: str) -> None:
    before = newest(run_dir)
    (run_dir / "checkpoints" / name).mkdir()
    assert newest(run_dir) == before and has_checkpoint(run_dir)


@pytest.mark.parametrize("text", ["[]", "3", '{"run": null}', '{"run": ["x"]}'])
def test_an_id_that_is_not_one_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(CheckpointError, match="run.json' cannot be read: it holds .*; expected the id of the run"):
        read_run_id(tmp_path)


def test_a_tokenizer_that_is_a_pipe_does_not_hang(run_dir: Path) -> None:
    (run_dir / "tokenizer.json").unlink()
    os.mkfifo(run_dir / "tokenizer.json")
    with pytest.raises(CheckpointError, match="tokenizer.json' cannot be read: it is a pipe; expected a regular file"):
        run_training(tiny_spec(run_dir, *VALIDATION, "train.steps=4"))


@pytest.mark.parametrize("name", ["wandb-id", "tensorboard/events.out.tfevents.1.host.1.0"])
def test_logs_of_other_programs_are_not_mixed_with_a_run(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(CheckpointError, match="which does not belong to a run; move it elsewhere"):
        refuse_foreign(tmp_path)


def test_unfinished_files_of_others_stay(tmp_path: Path) -> None:
    for name in ("spec.yaml.part", "metrics.part"):
        (tmp_path / name).write_text("mine")
    Inventory(tmp_path).write("spec.yaml", "x")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    MetricsLog(tmp_path, resumed_step=1)
    assert [(tmp_path / name).read_text() for name in ("spec.yaml.part", "metrics.part")] == ["mine", "mine"]
