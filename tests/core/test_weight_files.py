"""Weight files of others: what they hold is found, nothing in them runs, and what is wrong with one is said in one line."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from unusual_dtypes import BITS, with_dtype

from soundomni.core.errors import CheckpointError
from soundomni.core.files import pickle_bounds
from soundomni.core.pretrained import foreign_weights
from soundomni.core.pretrained.foreign_weights import read_float32, read_floating, read_weights

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.5, -2.0]), "b": torch.tensor(3.0, dtype=torch.float16)}


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 500, line
    assert str(path) in line or path.name in line
    return line


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.pth", "x.ckpt", "x.bin", "X.PT", "old.pt"])
def test_every_format_gives_the_same_tensors(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=name != "old.pt")
    weights = read_weights(path)
    assert set(weights) == set(TENSORS) and len(weights) == 3 and weights.files == (path,) and weights.others == ()
    for key, tensor in TENSORS.items():
        assert weights.shape(key) == tensor.shape
        assert torch.equal(weights[key], tensor) and weights[key].dtype == tensor.dtype


def test_containers_are_flattened_and_what_is_no_tensor_is_named(tmp_path: Path) -> None:
    group = {"lr": 1e-3, "params": [0, 1, 2]}
    tree = {
        "epoch": 3,
        "state_dict": {"a": torch.ones(2), "b": torch.nn.Parameter(torch.zeros(1))},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [group]}],
        "callbacks": {"checkpoint": {"best": "x", "scores": [1.0, 2.0]}},
        "empty": {},
    }
    torch.save(tree, tmp_path / "x.ckpt")
    weights = read_weights(tmp_path / "x.ckpt")
    assert set(weights) == {"state_dict.a", "state_dict.b", "optimizer_states.0.state.0.exp_avg"}
    assert not weights["state_dict.b"].requires_grad
    assert weights.others == ("epoch", "optimizer_states.0.param_groups", "callbacks", "empty")


class Runs:
    """Unpickling this makes a directory."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("how", ["zip", "legacy", "bare"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, how: str) -> None:
    trace, path = tmp_path / "ran", tmp_path / "x.ckpt"
    content: dict[str, Any] = {"state_dict": {"a": torch.zeros(2)}, "extra": Runs(trace)}
    if how == "bare":
        path.write_bytes(pickle.dumps(content["extra"], protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    line = refused(path)
    wanted = f"'{os.mkdir.__module__}.mkdir'"
    assert line.endswith(f"with code in it: it asks for {wanted}, which weights do not need; none of its code was run")
    assert not trace.exists()
    torch.load(path, weights_only=False) if how != "bare" else pickle.loads(path.read_bytes())
    assert trace.exists()  # so it would have run


def test_the_global_that_a_pickle_asks_for_is_named(tmp_path: Path) -> None:
    torch.save({"hyper_parameters": argparse.Namespace(lr=1.0)}, tmp_path / "x.ckpt")
    assert "'argparse.Namespace'" in refused(tmp_path / "x.ckpt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    assert "torch.nn.modules.linear.Linear" in refused(tmp_path / "module.pt")
    path = tmp_path / "modern.pt"
    path.write_bytes(pickle.dumps({"a": 1}, protocol=4))
    assert "none of its code was run" in refused(path)


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


@pytest.mark.parametrize("share", [0.99, 0.5, 0.02, 0.0])
@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "old.pt"])
def test_truncated_files(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    tensors = {"a": torch.randn(300), "b": torch.randn(300)}
    if name == "x.safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=name == "x.pt")
    assert "damaged" in refused(cut(path, share))


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "old.pt"])
def test_damaged_files_are_refused_or_give_tensors(tmp_path: Path, name: str, seed: int) -> None:
    path = tmp_path / name
    if name == "x.safetensors":
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=name == "x.pt")
    content = bytearray(path.read_bytes())
    draw = torch.Generator().manual_seed(seed)
    for _ in range(8):
        content[int(torch.randint(len(content), (), generator=draw))] = int(torch.randint(256, (), generator=draw))
    path.write_bytes(content)
    try:
        weights = read_weights(path)
        assert all(isinstance(tensor, torch.Tensor) for tensor in weights.values())
    except CheckpointError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x.bin"])
def test_other_files_under_the_name_of_weights(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("these are no weights, but some text that is long enough")
    assert "cannot be read as" in refused(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    assert "`git lfs pull`" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/notes.txt", "text")
    assert "cannot be read as" in refused(path)
    path.write_bytes(b"")
    assert "cannot be read as" in refused(path)


def test_what_is_no_weight_file(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    assert "is not a weight file: expected a .safetensors, .pt" in refused(tmp_path / "notes.txt")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "Did you mean 'model.safetensors'?" in refused(tmp_path / "modl.safetensors")
    assert "no weights at" in refused(tmp_path / "nowhere" / "x.pt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    assert "holds a list; expected tensors by name" in refused(tmp_path / "list.pt")
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "sparse.pt")
    assert "'a' is a sparse or quantized tensor" in refused(tmp_path / "sparse.pt")
    torch.save({"a": {"b": torch.zeros(1)}, "a.b": torch.zeros(1)}, tmp_path / "twice.pt")
    assert "two tensors named 'a.b'" in refused(tmp_path / "twice.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_archive_holds_code(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    assert "TorchScript" in refused(tmp_path / "script.pt")


def test_containers_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop: dict[str, Any] = {}
    loop["again"] = loop
    torch.save(loop, tmp_path / "loop.pt")
    assert "nested deeper than" in refused(tmp_path / "loop.pt")
    monkeypatch.setattr(foreign_weights, "MOST_VALUES", 1000)
    for leaf, ending in (([torch.ones(1)], "tensors"), ([1.0], "numbers")):
        many: list[Any] = leaf
        for _ in range(10):
            many = [many] * 10
        torch.save({"many": many, "a": torch.ones(2)}, tmp_path / f"{ending}.pt")
    assert "more than 1,000 values" in refused(tmp_path / "tensors.pt")
    weights = read_weights(tmp_path / "numbers.pt")
    assert list(weights) == ["a"] and weights.others == ("many",), "one look is enough for what holds no tensor, however often it is held"


def shards(folder: Path, *, suffix: str = ".safetensors", index: bool = True) -> list[Path]:
    folder.mkdir()
    parts = [{"a": torch.ones(2), "b": torch.zeros(3)}, {"c": torch.full((2, 2), 7.0)}]
    paths = [folder / f"model-{i:05d}-of-00002{suffix}" for i in (1, 2)]
    for part, path in zip(parts, paths, strict=True):
        save_file(part, path) if suffix == ".safetensors" else torch.save(part, path)
    if index:
        table = {name: path.name for part, path in zip(parts, paths, strict=True) for name in part}
        (folder / f"model{suffix}.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": table}))
    return paths


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("index", [True, False])
def test_shards_are_joined(tmp_path: Path, suffix: str, index: bool) -> None:
    paths = shards(tmp_path / "m", suffix=suffix, index=index)
    opened = [read_weights(tmp_path / "m"), *([read_weights(tmp_path / "m" / f"model{suffix}.index.json")] if index else [])]
    for weights in opened:
        assert set(weights) == {"a", "b", "c"} and weights["c"].sum() == 28 and weights.files == tuple(paths)
    paths[1].unlink()
    assert f"lacks 1 of 2 shards: {paths[1].name}" in refused(tmp_path / "m")
    assert weights["a"].sum() == 2


def test_wrong_indices(tmp_path: Path) -> None:
    shards(tmp_path / "m")
    index = tmp_path / "m" / "model.safetensors.index.json"
    table = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**table, "d": "model-00002-of-00002.safetensors"}}))
    assert "lists 1 tensor that its shards do not hold (d)" in refused(index)
    (tmp_path / "secret.safetensors").write_bytes(b"")
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    assert "names the shard '../secret.safetensors'; expected a file next to it" in refused(index)
    for text in ("[]", '{"weight_map": []}', "{", '{"weight_map": {"a": "."}}', "\x00\xff"):
        index.write_text(text)
        assert "index" in refused(index)
    save_file({"a": torch.ones(2)}, tmp_path / "m" / "model-00002-of-00002.safetensors")
    index.unlink()
    assert "holds tensors that another shard also holds (a)" in refused(tmp_path / "m")


def test_pickles_are_refused_by_their_names_before_anything_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "m"
    shards(folder)
    assert set(read_weights(folder, safe=True)) == {"a", "b", "c"}
    monkeypatch.setattr(foreign_weights, "_read_file", lambda path: pytest.fail(f"{path} was opened"))
    index = folder / "model.safetensors.index.json"
    for name in ("model-00002-of-00002.bin", "x.ckpt", "x.safetensors.pt", "x"):
        index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "c": name}}))
        for path in (index, folder):
            with pytest.raises(CheckpointError, match=f"keeps weights in {name}; expected only .safetensors files"):
                read_weights(path, safe=True)
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="keeps weights in x.bin"):
        read_weights(tmp_path / "x.bin", safe=True)
    with pytest.raises(CheckpointError, match="expected a .safetensors file; it holds x.bin"):
        read_weights(tmp_path, safe=True)


def test_a_directory_has_one_weight_file(tmp_path: Path) -> None:
    assert "it holds no file" in refused(tmp_path)
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert read_weights(tmp_path)["a"] == 0
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    weights = read_weights(tmp_path)
    assert weights["a"] == 1 and weights.path == tmp_path and weights.files == (tmp_path / "model.safetensors",)
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    assert "several weight files (model.safetensors, other.safetensors); name one" in refused(tmp_path)


def nested_pickle(value: Any) -> bytes:
    """A file of torch without an archive whose tensors are `value`."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, value, []]
    return b"".join(pickle.dumps(part, protocol=2) for part in parts)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02" + b"]" * 20_001 + b".",
        b"\x80\x02" + b"(" * 20_001 + b".",
        b"\x80\x02]q\x00(" + b"K\x01K\x02\x86" * 200 + b"e" + b"0ccollections\nOrderedDict\nh\x00\x85R" * 400 + b".",
        b"\x80\x02" + b"}q\x00" + b"(" + b"K\x01K\x02" * 200 + b"u0" + b"ccollections\nOrderedDict\n)Rh\x00b0" * 400 + b".",
    ],
    ids=["lists", "marks", "copies", "states"],
)
@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_that_asks_for_too_much_is_refused_before_it_is_read(
    tmp_path: Path, content: bytes, archive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickle_bounds, "MOST_OPERATIONS", 20_000)
    monkeypatch.setattr(pickle_bounds, "MOST_COPIED", 200_000)
    path = tmp_path / "x.pt"
    if archive:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
            file.writestr("x/data.pkl", content)
            file.writestr("x/version", "3\n")
    else:
        start = nested_pickle({})[: -len(pickle.dumps({}, protocol=2) + pickle.dumps([], protocol=2))]
        path.write_bytes(start + content)
    assert "its pickle needs more than" in refused(path)


def test_a_pickle_cannot_take_memory_by_a_number(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    start = nested_pickle({})[: -len(pickle.dumps({}, protocol=2) + pickle.dumps([], protocol=2))]
    path.write_bytes(start + b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.")
    assert "its pickle uses bytearray" in refused(path)
    text = b"X" + (1_000_000).to_bytes(4, "little") + b"a" * 1_000_000
    path.write_bytes(start + b"\x80\x02" + text + b"q\x00" + b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R" * 600 + b".")
    assert "its pickle needs more than" in refused(path)


def test_archives_are_as_torch_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save(TENSORS, path)
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for info in plain.infolist():
            packed.writestr(info.filename, plain.read(info))
        packed.writestr("x/more", bytes(10_000_000))
    assert "is compressed, which torch.save never does" in refused(tmp_path / "packed.pt")


def test_a_tensor_that_repeats_few_numbers_is_refused(tmp_path: Path) -> None:
    for name, tensor in {
        "expanded": torch.ones(1).expand(10**6, 10**6),
        "strided": torch.as_strided(torch.ones(4), (3, 2), (1, 1)),
    }.items():
        torch.save({"a": tensor}, tmp_path / f"{name}.pt")
        assert "but the file holds fewer numbers" in refused(tmp_path / f"{name}.pt")
    torch.save({"a": torch.ones(4, 3).T[1:], "b": torch.zeros(0, 5)}, tmp_path / "view.pt")
    assert read_weights(tmp_path / "view.pt").shape("a") == (2, 4)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "model.safetensors.index.json"])
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    assert "no weights at" in refused(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "no weights at" in refused(path)
    path.unlink()
    path.symlink_to(path)
    assert "no weights at" in refused(path)


def test_a_header_of_safetensors_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header = b"{" + b" " * (1 << 24) + b"}"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert "its header has 16,777,218 bytes; expected at most 16,777,216" in refused(path)
    for length in (2**63, 2**40, 10**6):
        path.write_bytes(length.to_bytes(8, "little") + b"{}")
        assert "cannot be read as safetensors" in refused(path)
    places = {"a": [0, 8], "b": [4, 12]}
    table = json.dumps({name: {"dtype": "F32", "shape": [2], "data_offsets": place} for name, place in places.items()}).encode()
    path.write_bytes(len(table).to_bytes(8, "little") + table + bytes(12))
    assert "cannot be read as safetensors" in refused(path)


@pytest.mark.parametrize("read", [read_float32, read_floating])
@pytest.mark.parametrize("dtype", BITS)
def test_numbers_of_another_kind_are_refused_by_name(dtype: str, read: Callable[..., object], tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file({"a.weight": torch.ones(4, 2), "b": torch.ones(3)}, file)
    with_dtype(file, "a.weight", dtype)
    with pytest.raises(CheckpointError, match=f"'{file}'") as caught:
        read(read_weights(file), "a.weight")
    assert "\n" not in str(caught.value)
    assert dtype.startswith("F6") or re.search(r": 'a.weight' is [\w.]+; expected ", str(caught.value))
    assert torch.equal(torch.as_tensor(read(read_weights(file), "b")), torch.ones(3))
