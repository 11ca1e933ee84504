"""Two processes must compute what one does, and agree on everything they decide."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_held_out import held_out
from tiny_training import TinyRun, alone, settings
from two_processes import run_in_two_processes
from two_ranks import MUON

from soundomni.core.errors import SpecError
from soundomni.core.spec.schema import OptimizerSpec, ParallelSpec
from soundomni.train.checkpoint import Checkpointer, find_latest
from soundomni.train.parallel import mesh_shape, open_world

pytestmark = pytest.mark.long
WORKER = Path(__file__).with_name("two_ranks.py")


@pytest.fixture(scope="module")
def one() -> dict[str, list[float]]:
    """Losses and gradient norms of one process."""
    run = TinyRun(alone(), settings())
    run.run(20)
    return {"losses": run.losses, "norms": run.norms}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes ran every scenario."""
    path = tmp_path_factory.mktemp("ranks")
    checkpointer = Checkpointer(path / "alone", alone(), keep=1)
    TinyRun(alone(), settings()).run(10, checkpointer=checkpointer)
    checkpointer.wait()
    run_in_two_processes(WORKER, str(path))
    return path


@pytest.fixture(scope="module")
def seen(out: Path) -> list[dict[str, Any]]:
    """What each rank saw."""
    return [json.loads((out / f"seen-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("scenario", ["sharded", "large", "hybrid", "recomputed", "resumed_from_one", "averaged"])
def test_two_processes_compute_what_one_does(scenario: str, one: dict[str, list[float]], seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        losses = rank[scenario]["losses"]
        assert losses == pytest.approx(one["losses"][20 - len(losses) :], abs=1e-5)
    assert len(seen[0][scenario]["losses"]) == (10 if scenario == "resumed_from_one" else 20)


@pytest.mark.parametrize("scenario", ["sharded", "large", "hybrid"])
def test_gradient_norm_is_of_whole_tensors(scenario: str, one: dict[str, list[float]], seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        assert rank[scenario]["norms"] == pytest.approx(one["norms"], rel=1e-4)


def test_meshes_shard_and_replicate_as_they_say(seen: list[dict[str, Any]]) -> None:
    assert [rank["sharded"]["rows"] for rank in seen] == [3, 2]
    assert [rank["hybrid"]["rows"] for rank in seen] == [5, 5]
    assert seen[0]["sharded"]["whole"] == "Parameter", "the frozen codec is not sharded"


def test_resuming_is_bit_exact(out: Path, seen: list[dict[str, Any]]) -> None:
    assert [rank["resumed"]["from"] for rank in seen] == [10, 10]
    assert [rank["resumed"]["losses"] for rank in seen] == [rank["sharded"]["losses"][10:] for rank in seen]
    expected, found = load_file(out / "sharded.safetensors"), load_file(out / "resumed.safetensors")
    assert expected.keys() == found.keys()
    assert any(name.startswith("optimizer/") for name in expected) and any(name.startswith("ema/") for name in expected)
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_muon_over_shards_is_muon_over_whole_matrices_and_resumes_bit_exactly(seen: list[dict[str, Any]]) -> None:
    whole = TinyRun(alone(), settings(optimizer=MUON))
    whole.run(20)
    for rank in seen:
        assert rank["muon"]["losses"] == pytest.approx(whole.losses, abs=1e-5)
        assert rank["muon"]["same"]


def test_muon_orthogonalizes_shards_of_equal_matrices_together(seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        assert rank["muon_together"]["error"] < 1e-6
        assert rank["muon_together"]["kept"]


@pytest.mark.parametrize("name", ["sharded", "hybrid"])
def test_one_process_goes_on_from_two(name: str, out: Path, one: dict[str, list[float]]) -> None:
    latest = find_latest(out / name)
    assert latest is not None
    run = TinyRun(alone(), settings(), resume=latest)
    run.run(20)
    assert run.losses == pytest.approx(one["losses"][10:], abs=1e-5)


def test_one_poisoned_rank_makes_all_skip(seen: list[dict[str, Any]]) -> None:
    run = TinyRun(alone(), settings(), poisoned=(8,))
    run.run(20)
    for rank in seen:
        assert rank["poisoned"]["skipped"] == 1
        assert rank["poisoned"]["losses"][2] is None
        assert rank["poisoned"]["losses"][3:] == pytest.approx(run.losses[3:], abs=1e-5)


@pytest.mark.parametrize(("rule", "optimizer"), [("adamw", settings().optimizer), ("muon", MUON)])
def test_ranks_that_skip_on_the_device_skip_as_the_host_would(rule: str, optimizer: OptimizerSpec, seen: list[dict[str, Any]]) -> None:
    one = TinyRun(alone(), settings(optimizer=optimizer, log_every=7), poisoned=(0, 8, 21))
    one.run(20)
    for rank in seen:
        found = rank["skipping"][rule]
        assert found["losses"] == pytest.approx(one.losses, abs=1e-5)
        assert found["same"] == {"resumed": True, "host": True}
        assert found["skipped"] == [2, 3, 3, 3]
        assert found["sharded"] == "DTensor"


def test_all_ranks_give_up_together(seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        assert rank["poisoned_for_good"]["step"] == 12
        assert "10 steps in a row were not finite" in rank["poisoned_for_good"]["error"]


def test_averages_are_what_is_computed_with_and_leave_no_trace(seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        assert rank["averaged"]["error"] < 1e-6 < 1e-3 < rank["averaged"]["difference"]
        assert rank["averaged"]["restored"]


def test_bf16_shards_keep_fp32_weights(one: dict[str, list[float]], seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        assert rank["bf16"]["dtype"] == "torch.float32"
        assert rank["bf16"]["losses"] == pytest.approx(one["losses"][:5], rel=0.05)
        assert rank["bf16"]["losses"] != one["losses"][:5]


def test_one_rank_that_is_asked_to_stop_stops_all(seen: list[dict[str, Any]]) -> None:
    assert [rank["stopping"] for rank in seen] == [{"finished": False, "saved": [3]}] * 2


def test_a_rank_that_cannot_write_fails_the_save_on_all_and_keeps_the_last(seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        assert "could not be written" in rank["full_disk"]["error"]
        assert rank["full_disk"]["latest"] == "step-00000002"
        assert rank["full_disk"]["left"] == ["latest", "step-00000002"]


def test_validation_that_fails_on_one_rank_or_on_all_leaves_training_as_it_is(seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        assert rank["validating"]["losses"] == rank["sharded"]["losses"][:10]
        assert rank["validating"]["told"] == ["ValueError: in the middle", "sys.exit('gone') was called (on rank 1)"]
        assert rank["validating"]["files"] == [f"step-{step:08d}/made.jsonl" for step in (2, 4, 6, 8)]


def test_a_rank_that_fails_while_the_others_compute_ends_instead_of_waiting(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["left_alone"] == {"failure": "left alone (on rank 1)"}
    assert "this rank failed, and the others cannot continue without it: MemoryError. Resume from" in seen[1]["left_alone"]["error"]
    assert seen[1]["left_alone"]["notes"] == ["on rank 1"]


def test_settings_that_do_not_fit_the_ranks_are_refused(seen: list[dict[str, Any]]) -> None:
    refused = seen[1]["refusals"]
    assert "train.batches_per_step is 3; expected a multiple of the 2 running processes, such as 4" in refused["batches"]
    assert "1 x 3 processes, but 2 are running" in refused["mesh"]
    assert "train.parallel.replicate is 3; expected a divisor" in refused["replicate"]


def test_held_out_losses_are_those_of_one_process(tmp_path: Path, seen: list[dict[str, Any]]) -> None:
    numbers = held_out(alone(), tmp_path)(0)
    for rank in seen:
        assert rank["measured"]["batches"] % 2 == 1
        assert rank["measured"]["numbers"] == rank["measured"]["again"] == numbers


def test_losses_by_group_are_counted_over_ranks(seen: list[dict[str, Any]]) -> None:
    assert [rank["in_parts"] for rank in seen] == [{"loss/ce/a": 1.0, "loss/ce/b": 0.25}] * 2


def test_ranks_that_list_other_data_are_named_to_all(seen: list[dict[str, Any]]) -> None:
    expected = {
        "same": None,
        "caption": "rank 1 has different data from rank 0: dataset 'mine' has the same number of clips, and first differs at '2.wav'; "
        "give every process the same files",
        "length": "rank 1 has different data from rank 0: dataset 'mine' ends after 2 of 3 clips; give every process the same files",
        "one cannot": "rank 1: no folder 'mine'",
        "none can": "no folder at all",
        "all can": 1,
    }
    assert [rank["other_data"] for rank in seen] == [expected, expected]


def test_what_rank_0_measured_is_what_all_have(seen: list[dict[str, Any]]) -> None:
    assert [rank["copied"]["values"] for rank in seen] == [[[0.0, 0.0, 0.0], True]] * 2


@pytest.mark.parametrize(
    ("replicate", "shard", "size", "expected"), [(1, -1, 4, (4,)), (2, -1, 4, (2, 2)), (4, 1, 4, (4, 1)), (1, 1, 1, (1,))]
)
def test_mesh_shapes(replicate: int, shard: int, size: int, expected: tuple[int, ...]) -> None:
    assert mesh_shape(ParallelSpec(replicate=replicate, shard=shard), size) == expected


def test_without_torchrun_there_is_no_group() -> None:
    with open_world(ParallelSpec(), environment={}) as world:
        assert (world.rank, world.size, world.mesh) == (0, 1, None)
    with pytest.raises(SpecError, match=r"replicate is 2; expected a divisor"), open_world(ParallelSpec(replicate=2), environment={}):
        pass
