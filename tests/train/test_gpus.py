"""Which GPU a process takes, by what its launcher shows it."""

from __future__ import annotations

import pytest
import torch

from soundomni.core.errors import SpecError
from soundomni.train.gpus import check_gpus, own_gpu


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine whose number of visible GPUs can be set, and the numbers that were made current."""
    state = [1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: state[0] > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: state[0])
    monkeypatch.setattr(torch.cuda, "set_device", state.append)
    return state


@pytest.mark.parametrize(
    ("visible", "shown", "local_rank", "expected"),
    [
        (0, None, 3, "cpu"),
        (1, None, 0, "cuda:0"),
        (4, None, 3, "cuda:3"),
        (4, "4,5,6,7", 3, "cuda:3"),
        (1, "2", 0, "cuda:0"),
        (1, "2", 2, "cuda:0"),
        (1, "GPU-8932f937", 7, "cuda:0"),
        (1, "", 1, None),
        (1, " ", 1, None),
        (2, "0,1", 2, None),
    ],
)
def test_the_gpu_of_a_process(machine: list[int], visible: int, shown: str | None, local_rank: int, expected: str | None) -> None:
    machine[0] = visible
    environment = {} if shown is None else {"CUDA_VISIBLE_DEVICES": shown}
    if expected is None:
        with pytest.raises(SpecError, match=rf"LOCAL_RANK is {local_rank}, but this machine has {visible} GPUs"):
            own_gpu(local_rank, environment)
    else:
        device = own_gpu(local_rank, environment)
        assert device == torch.device(expected)
        assert machine[1:] == ([] if device.type == "cpu" else [device.index])


def test_two_processes_with_one_gpu_are_named() -> None:
    check_gpus(["a, 1", "a, 2", "b, 1"])
    with pytest.raises(SpecError, match="processes 1 and 3 both use the GPU a, 2"):
        check_gpus(["a, 1", "a, 2", "b, 1", "a, 2"])
