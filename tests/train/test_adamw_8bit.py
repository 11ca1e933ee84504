"""AdamW with 8-bit moments, as bitsandbytes computes it here: near AdamW, resumed exactly, refused where it cannot work."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tiny_training import TinyRun, alone, settings
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from soundomni.core.errors import PluginError, SpecError
from soundomni.core.spec.schema import OptimizerSpec, Slot
from soundomni.train.checkpoint import Checkpointer, find_latest
from soundomni.train.optimizers.adamw import AdamW
from soundomni.train.optimizers.adamw_8bit import AdamW8bit

SETTINGS = OptimizerSpec(lr=0.01, eps=1e-8, weight_decay=0.1)
RULE = OptimizerSpec(rule=Slot("adamw-8bit", {"min_size": 1}), lr=0.01, eps=1e-8, weight_decay=0.1)


def test_it_goes_nearly_where_adamw_goes() -> None:
    target = torch.randn(64, 80, generator=torch.Generator().manual_seed(1))
    found = []
    for rule in (AdamW(), AdamW8bit()):
        weight = nn.Parameter(torch.zeros(64, 80))
        optimizer = rule.build({"weight": weight}, SETTINGS)
        first = None
        for _ in range(50):
            optimizer.zero_grad()
            (weight - target).square().sum().backward()
            optimizer.step()
            first = weight.detach().clone() if first is None else first
        found.append((first, weight.detach(), optimizer.state[weight]))
    (first, expected, whole), (one, weight, state) = found
    torch.testing.assert_close(one, first)  # the first update is of moments that were not rounded yet
    assert (weight - expected).abs().mean() < 0.1 * expected.abs().mean()
    assert {value.dtype for name, value in state.items() if name.startswith("state")} == {torch.uint8}
    kept, before = (sum(value.nbytes for value in one.values()) for one in (state, whole))
    assert kept < 0.33 * before, "1 byte and a 256th of 4 for each of two moments, beside 2 tables of 1 KiB"


def test_a_run_keeps_codes_and_scales_and_resumes_bit_exactly(tmp_path: Path) -> None:
    chosen = settings(optimizer=RULE)
    run, checkpointer = TinyRun(alone(), chosen), Checkpointer(tmp_path, alone(), keep=1)
    run.run(10, checkpointer=checkpointer)
    checkpointer.wait()
    run.run(20)
    latest = find_latest(tmp_path)
    assert latest is not None
    saved = load_file(latest / "rank-00000.safetensors")
    assert saved["optimizer/enter.weight/state1"].dtype == torch.uint8 and saved["optimizer/enter.weight/absmax1"].shape == (1,)
    again = TinyRun(alone(), chosen, resume=latest)
    again.run(20)
    assert again.losses == run.losses[10:]
    assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in run.tensors().items())
    assert run.losses[-1] < run.losses[0]


def test_sharded_parameters_are_refused() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        sharded = nn.Parameter(distribute_tensor(torch.ones(4, 4), init_device_mesh("cpu", (1,)), [Shard(0)]))
        with pytest.raises(SpecError, match="optimizer 'adamw-8bit' runs in one process, not under torchrun"):
            AdamW8bit().build({"weight": sharded}, SETTINGS)
    finally:
        dist.destroy_process_group()


def test_what_is_missing_or_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match="min_size is 0; expected at least 1"):
        AdamW8bit(min_size=0)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(PluginError, match=r"needs the package bitsandbytes: pip install soundomni\[bitsandbytes\]"):
        AdamW8bit()
