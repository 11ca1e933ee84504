"""Weights of a model directory: shards, what is refused, and the memory that loading takes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from unusual_dtypes import BITS, with_dtype

from soundomni.core.assembly.uninitialized import uninitialized
from soundomni.core.errors import CheckpointError
from soundomni.core.pretrained.weights import INDEX_FILE, WEIGHTS_FILE, load_weights, weight_files, write_weights
from soundomni.core.spec import registry
from soundomni.core.spec.schema import Slot


class Network(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.register_buffer("count", torch.tensor(seed))


def same(first: nn.Module, second: nn.Module) -> bool:
    other = second.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in first.state_dict().items())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=st.integers(1, 300))
def test_what_is_written_is_read_whatever_the_shards(limit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("shards")
    network, other = Network(1), Network(2)
    write_weights(network.state_dict(), folder, dtype=torch.float32, max_shard_bytes=limit)
    files = weight_files(folder)
    assert {path.name for path in folder.iterdir()} == {file.name for file in files} | ({INDEX_FILE} if len(files) > 1 else set())
    largest = max(tensor.nbytes for tensor in network.state_dict().values())
    headers = 2000
    assert all(file.stat().st_size <= max(limit, largest) + headers for file in files)
    load_weights(other, folder)
    assert same(network, other)


def test_the_index_is_the_one_that_transformers_reads(tmp_path: Path) -> None:
    from transformers.utils.hub import get_checkpoint_shard_files

    write_weights(Network().state_dict(), tmp_path, dtype=torch.float32, max_shard_bytes=100)
    files, metadata = get_checkpoint_shard_files(str(tmp_path), str(tmp_path / INDEX_FILE))
    assert [Path(file).name for file in files] == [file.name for file in weight_files(tmp_path)]
    assert metadata["total_size"] == 3 * (16 + 4) * 4 + 8


def test_half_precision_is_stored_and_loaded_as_single(tmp_path: Path) -> None:
    network, other = Network(1), Network(2)
    write_weights(network.state_dict(), tmp_path, dtype=torch.float16)
    load_weights(other, tmp_path)
    assert other.layers[0].weight.dtype == torch.float32
    assert torch.equal(other.layers[0].weight, network.layers[0].weight.half().float())
    assert torch.equal(other.count, network.count)
    with torch.no_grad():
        network.layers[0].weight[0, 0] = 1e6
    with pytest.raises(CheckpointError, match=r"'layers.0.weight' has values up to 1e\+06, too large for torch.float16"):
        write_weights(network.state_dict(), tmp_path, dtype=torch.float16)


def broken_index(folder: Path, content: object) -> None:
    (folder / INDEX_FILE).write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "model-00002-of-00007.safetensors").unlink(), "lacks 1 of 7 shards of weights: model-00002-of-00007"),
        (lambda folder: (folder / INDEX_FILE).unlink(), f"has no weights; expected {WEIGHTS_FILE} or {INDEX_FILE}"),
        (lambda folder: broken_index(folder, "{"), "is not an index of weights: JSONDecodeError"),
        (lambda folder: broken_index(folder, {"weight_map": {"a": "../other.safetensors"}}), "must name files such as model-00001-of"),
        (lambda folder: broken_index(folder, {"weights": {}}), "is not an index of weights: KeyError"),
        (lambda folder: (folder / "model-00001-of-00007.safetensors").write_bytes(b"no"), "cannot be read as safetensors"),
        (
            lambda folder: save_file({"count": torch.tensor(1)}, folder / "model-00007-of-00007.safetensors"),
            "'count' is in both",
        ),
        (
            lambda folder: save_file({"layers.0.weight": torch.zeros(4, 5)}, folder / "model-00002-of-00007.safetensors"),
            r"of another model: 1 tensor of another shape \(first: layers.0.weight\)",
        ),
        (
            lambda folder: save_file({"layers.9.weight": torch.zeros(4, 4)}, folder / "model-00002-of-00007.safetensors"),
            r"1 tensor missing, 1 tensor unexpected \(first: layers.0.weight\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_loaded(change, message, tmp_path: Path) -> None:
    network, other, before = Network(1), Network(2), Network(2)
    write_weights(network.state_dict(), tmp_path, dtype=torch.float32, max_shard_bytes=1)
    assert len(weight_files(tmp_path)) == 7
    change(tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_weights(other, tmp_path)
    assert "\n" not in str(caught.value)
    assert same(other, before)


@pytest.mark.parametrize("dtype", BITS)
def test_numbers_of_another_kind_are_refused(dtype: str, tmp_path: Path) -> None:
    network, before = Network(2), Network(2)
    write_weights(Network(1).state_dict(), tmp_path, dtype=torch.float32)
    with_dtype(tmp_path / WEIGHTS_FILE, "layers.1.weight", dtype)
    with pytest.raises(CheckpointError, match=rf"'{tmp_path / WEIGHTS_FILE}'") as caught:
        load_weights(network, tmp_path)
    told = str(caught.value)
    assert "\n" not in told and torch.equal(network.layers[1].weight, before.layers[1].weight)
    if not dtype.startswith("F6"):
        assert re.search(r": 'layers.1.weight' is (u?int|bool|complex|float[48])\w*; expected float32, float16, bfloat16 or float64", told)


def test_whole_numbers_are_not_loaded_from_floats(tmp_path: Path) -> None:
    module = torch.nn.Module()
    module.register_buffer("count", torch.zeros(3, dtype=torch.int64))
    save_file({"count": torch.full((3,), 1.5)}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(CheckpointError, match="'count' is float32; expected int64$"):
        load_weights(module, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    network = Network(1)
    with torch.no_grad():
        network.layers[1].weight[2, 3] = value
    write_weights(network.state_dict(), tmp_path, dtype=dtype)
    with pytest.raises(CheckpointError, match=r"'layers.1.weight' holds NaN or infinity"):
        load_weights(Network(2), tmp_path)


def test_large_weights_whose_sum_is_not_finite_are_loaded(tmp_path: Path) -> None:
    network, other = Network(1), Network(2)
    with torch.no_grad():
        network.layers[1].weight.fill_(3e38)
    write_weights(network.state_dict(), tmp_path, dtype=torch.float32)
    load_weights(other, tmp_path)
    assert same(network, other)


def test_uninitialized_networks_cost_nothing_and_are_whole_once_loaded(tmp_path: Path) -> None:
    def build():
        router = registry.build("router", Slot("modality"))
        return registry.build("backbone", Slot("mot", {"hidden_dim": 32, "num_heads": 2}), vocab_size=50, router=router)

    class Marked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((3,), 7.0))
            nn.init.zeros_(self.weight)
            nn.init.uniform_(tensor=self.weight)
            self.register_buffer("ones", torch.zeros(3).fill_(1.0))

    with uninitialized():
        marked, network = Marked(), build()
    assert torch.equal(marked.weight.detach(), torch.full((3,), 7.0)) and torch.equal(marked.ones, torch.ones(3))
    trained = build()
    write_weights(trained.state_dict(), tmp_path, dtype=torch.float32)
    load_weights(network, tmp_path)
    assert same(trained, network)
    assert not same(trained, build()), "outside of the context weights are drawn again"


MEASURE = """
import sys, torch
from pathlib import Path
from soundomni.core.spec import registry
from soundomni.core.pretrained.weights import load_weights, write_weights
from soundomni.core.spec.schema import Slot
from soundomni.core.assembly.uninitialized import uninitialized

def build(hidden_dim):
    router = registry.build("router", Slot("modality"))
    return registry.build("backbone", Slot("mot", {"hidden_dim": hidden_dim, "num_heads": 8}), vocab_size=1000, router=router)

def peak():
    # not ru_maxrss, which a process takes over from the one that started it
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

folder = Path(sys.argv[1])
if sys.argv[2] == "write":
    write_weights(build(1024).state_dict(), folder, dtype=torch.float32, max_shard_bytes=int(sys.argv[3]))
else:
    write_weights(build(32).state_dict(), folder / "small", dtype=torch.float32)
    with uninitialized():
        load_weights(build(32), folder / "small")
        before = peak()
        model = build(1024)
    load_weights(model, folder)
    print((peak() - before) / sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process's memory is read from Linux's /proc")
@pytest.mark.parametrize("shard_bytes", [10**10, 10**8])
def test_loading_takes_little_more_memory_than_the_weights(shard_bytes: int, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    ratio = ""
    for step in ("write", "read"):
        command = [sys.executable, "-c", MEASURE, str(tmp_path), step, str(shard_bytes)]
        ratio = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert 0.9 < float(ratio) <= 1.15
