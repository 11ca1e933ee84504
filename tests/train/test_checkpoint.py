"""Checkpoints on one process: complete or not there, bit-exact, damaged ones passed over, failures told."""

import dataclasses
import json
import logging
import random
import resource
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tiny_training import TinyModel, TinyRun, alone, settings
from torch import nn

from soundomni.core.errors import CheckpointError
from soundomni.train.checkpoint import Checkpointer, find_latest, list_checkpoints, read_state
from soundomni.train.shards import ShardReader, Slice, write_rank
from soundomni.train.state import load_trained_weights, rng_state, set_rng_state


def saved_run(directory: Path, *steps: int, keep: int = 9) -> TinyRun:
    """Trains to the last of `steps`, saving at each."""
    run, checkpointer = TinyRun(alone(), settings()), Checkpointer(directory, alone(), keep=keep)
    for step in steps:
        run.run(step, checkpointer=checkpointer)
    checkpointer.wait()
    return run


def test_resuming_is_bit_exact(tmp_path: Path) -> None:
    whole = TinyRun(alone(), settings())
    whole.run(20)
    first = saved_run(tmp_path, 7)
    resumed = TinyRun(alone(), settings(), resume=find_latest(tmp_path))
    assert (resumed.state.progress.step, resumed.state.progress.data) == (7, {"step": 7})
    resumed.run(20)
    assert resumed.losses == whole.losses[7:]
    expected = whole.tensors()
    assert {name.split("/")[0] for name in expected} == {"model", "ema", "optimizer"}
    for name, tensor in resumed.tensors().items():
        assert torch.equal(tensor, expected[name]), name
    assert resumed.state.progress.seconds > first.state.progress.seconds > 0.0, "time is added up"
    progress = [dataclasses.replace(run.state.progress, seconds=0.0) for run in (resumed, whole)]
    assert progress[0] == progress[1]
    assert resumed.state.ema is not None and resumed.state.ema.updates == 20


def test_random_state_is_restored(tmp_path: Path) -> None:
    saved_run(tmp_path, 1)
    run, checkpointer = TinyRun(alone(), settings()), Checkpointer(tmp_path / "other", alone(), keep=1)
    run.run(1, checkpointer=checkpointer)
    expected = torch.randn(3), random.random()
    checkpointer.wait()
    torch.manual_seed(5)
    random.seed(5)
    run.state.load(tmp_path / "other" / "step-00000001", alone())
    found = torch.randn(3), random.random()
    assert torch.equal(found[0], expected[0]) and found[1] == expected[1]


def test_random_state_survives_json() -> None:
    random.gauss(0.0, 1.0)  # leaves a second number behind
    state = json.loads(json.dumps(rng_state(torch.device("cpu"))))
    expected = random.gauss(0.0, 1.0)
    set_rng_state(state, torch.device("cpu"))
    assert random.gauss(0.0, 1.0) == expected


def test_old_checkpoints_are_removed_and_the_pointer_follows(tmp_path: Path) -> None:
    saved_run(tmp_path, 1, 2, 3, 4, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000004", "step-00000003"]
    assert (tmp_path / "latest").read_text() == "step-00000004\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-00000003", "step-00000004"]


@pytest.mark.parametrize("file", ["rank-00000.safetensors", "rank-00000.json", "state.json", "manifest.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "removed"])
def test_damage_falls_back_and_says_so(tmp_path: Path, file: str, how: str, caplog: pytest.LogCaptureFixture) -> None:
    saved_run(tmp_path, 1, 2)
    victim = tmp_path / "step-00000002" / file
    content = bytearray(victim.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif how == "cut":
        victim.write_bytes(content[:-3])
    else:
        victim.unlink()
    with caplog.at_level(logging.WARNING, "soundomni"):
        assert find_latest(tmp_path) == tmp_path / "step-00000001"
    assert "step-00000002' is damaged" in caplog.text and (file in caplog.text or file == "manifest.json")


def test_no_intact_checkpoint_is_an_error_and_none_at_all_is_not(tmp_path: Path) -> None:
    assert find_latest(tmp_path) is None
    saved_run(tmp_path, 1)
    (tmp_path / "step-00000001" / "state.json").unlink()
    with pytest.raises(CheckpointError, match=f"the only checkpoint in '{tmp_path}' is damaged"):
        find_latest(tmp_path)
    saved_run(tmp_path, 2)
    (tmp_path / "step-00000002" / "state.json").unlink()
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints .* is intact; the oldest is damaged"):
        find_latest(tmp_path)


def test_an_unfinished_checkpoint_is_not_seen_and_cleared_away(tmp_path: Path) -> None:
    saved_run(tmp_path, 1)
    unfinished = tmp_path / ".writing-step-00000002"
    unfinished.mkdir()
    (unfinished / "rank-00000.safetensors").write_bytes(b"half")
    assert find_latest(tmp_path) == tmp_path / "step-00000001"
    Checkpointer(tmp_path, alone(), keep=1)
    assert not unfinished.exists()


def test_saving_over_a_damaged_step_replaces_it_and_pruning_spares_what_works(tmp_path: Path) -> None:
    saved_run(tmp_path, 2, 4, 6)
    for step in (4, 6):
        (tmp_path / f"step-0000000{step}" / "state.json").write_text("{}")
    run = TinyRun(alone(), settings(), resume=find_latest(tmp_path))
    checkpointer = Checkpointer(tmp_path, alone(), keep=1)
    run.run(4, checkpointer=checkpointer)
    checkpointer.wait()
    assert find_latest(tmp_path) == tmp_path / "step-00000004"
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000006", "step-00000004"]


def test_a_directory_that_cannot_be_written_is_told_at_the_next_save(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run, checkpointer = TinyRun(alone(), settings()), Checkpointer(tmp_path / "file" / "checkpoints", alone(), keep=1)
    run.run(1, checkpointer=checkpointer)
    with pytest.raises(CheckpointError, match=r"could not be written: .*Not a directory"):
        run.run(2, checkpointer=checkpointer)


def test_a_full_disk_leaves_the_last_checkpoint_intact(tmp_path: Path) -> None:
    run = saved_run(tmp_path, 1)
    checkpointer = Checkpointer(tmp_path, alone(), keep=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, before[1]))
    try:
        run.run(2, checkpointer=checkpointer)
        with pytest.raises(CheckpointError, match="could not be written"):
            checkpointer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert find_latest(tmp_path) == tmp_path / "step-00000001"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-00000001"]
    run.run(3, checkpointer=checkpointer)
    checkpointer.wait()
    assert find_latest(tmp_path) == tmp_path / "step-00000003"


def test_what_is_written_does_not_follow_the_weights(tmp_path: Path) -> None:
    run, checkpointer = TinyRun(alone(), settings()), Checkpointer(tmp_path, alone(), keep=1)
    run.run(3, checkpointer=checkpointer)
    expected = run.tensors()
    run.run(9)
    checkpointer.wait()
    resumed = TinyRun(alone(), settings(), resume=find_latest(tmp_path))
    for name, tensor in resumed.tensors().items():
        assert torch.equal(tensor, expected[name])


def test_another_model_is_refused(tmp_path: Path) -> None:
    saved_run(tmp_path, 1)
    path = find_latest(tmp_path)
    assert path is not None
    other = TinyRun(alone(), settings())
    other.state.model.enter = nn.Linear(3, 7)
    with pytest.raises(CheckpointError, match=r"'model/enter.weight' has shape \(5, 3\), the model expects \(7, 3\)"):
        other.state.load(path, alone())
    without_average = TinyRun(alone(), settings(ema_decay=0.0))
    with pytest.raises(CheckpointError, match="10 tensors unexpected"):
        without_average.state.load(path, alone())


def test_trained_weights_load_alone_averaged_or_not(tmp_path: Path) -> None:
    run = saved_run(tmp_path, 5)
    path = find_latest(tmp_path)
    assert path is not None and run.state.ema is not None
    for average in (True, False):
        model = TinyModel(seed=3)
        load_trained_weights(model, path, average=average)
        expected = run.state.ema.averages["enter.weight"] if average else run.state.model.get_parameter("enter.weight")
        assert torch.equal(model.enter.weight, expected)
        assert torch.equal(model.frozen.weight, run.state.model.get_parameter("frozen.weight"))


def test_a_checkpoint_holds_json_and_safetensors_only(tmp_path: Path) -> None:
    saved_run(tmp_path, 1)
    names = sorted(path.name for path in (tmp_path / "step-00000001").iterdir())
    assert names == ["manifest.json", "rank-00000.json", "rank-00000.safetensors", "state.json"]
    assert read_state(tmp_path / "step-00000001")["name"] == "tiny"


@given(rows=st.integers(0, 9), ranks=st.integers(1, 4), first=st.integers(0, 9), data=st.data())
@hypothesis_settings(max_examples=30, deadline=None)
def test_any_rows_are_read_from_any_number_of_files(
    rows: int, ranks: int, first: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("shards")
    values = torch.randn(rows, 3)
    parts = values.chunk(ranks) if rows else (values,)
    start = 0
    for rank in range(ranks):
        staged = {"x": Slice(parts[rank], (rows, 3), start, True)} if rank < len(parts) else {}
        write_rank(directory, rank, staged, {"rng": rank})
        start += len(parts[rank]) if rank < len(parts) else 0
    reader = ShardReader(directory, ranks)
    target = torch.full((rows, 3), float("nan"))
    reader.read_into("x", target)
    assert torch.equal(target, values)
    assert [reader.extra(rank) for rank in range(ranks)] == [{"rng": rank} for rank in range(ranks)]
    first = min(first, rows)
    last = data.draw(st.integers(first, rows))
    piece = torch.full((last - first, 3), float("nan"))
    found = sum(reader._copy_rows("x", rank, begin, piece, first, last) for begin, rank in reader._holders["x"])
    assert found == last - first and torch.equal(piece, values[first:last])


def test_missing_rows_and_wrong_types_are_refused(tmp_path: Path) -> None:
    write_rank(tmp_path, 0, {"x": Slice(torch.zeros(2, 3), (4, 3), 0, True)}, {})
    reader = ShardReader(tmp_path, 1)
    with pytest.raises(CheckpointError, match="2 rows of 'x' are missing"):
        reader.read_into("x", torch.zeros(4, 3))
    with pytest.raises(CheckpointError, match=r"'x' is torch.float32, the model expects torch.float64"):
        reader.read_into("x", torch.zeros(4, 3, dtype=torch.float64))
    with pytest.raises(CheckpointError, match=r"no tensor 'xy'. Did you mean 'x'\?"):
        reader.read_into("xy", torch.zeros(4, 3))
