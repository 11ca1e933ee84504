"""Open about 100 hostile model directories, tokenizers, adapters, checkpoints, weight files and tables.

    python tools/attack_files.py [--only PATTERN] [--seconds 5]

Each case is a tiny valid folder with one hostile change. It is opened in its own child process, forked from one that
has everything imported. It must end within 5 s of its own processor time (endless waiting counts too), with at most 1
GB of memory more than the parent, in a one-line error of SoundOmni; cases that are harmless within these limits may
also succeed. Code in the files must not run, which would create a file called "canary", and no connection may be
opened. The tool prints a table, and exits with status 1 if a case misbehaves. All random choices have fixed seeds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import random
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file, save_file

from soundomni import SoundOmni
from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.lora import add_adapters
from soundomni.core.errors import SoundOmniError
from soundomni.core.pretrained.adapters import save_adapters
from soundomni.core.pretrained.directory import card
from soundomni.core.pretrained.foreign_weights import read_weights
from soundomni.core.pretrained.start import start_layer
from soundomni.core.spec.load import load_spec
from soundomni.core.spec.schema import LoRASpec
from soundomni.core.tokenizer import SPECIAL_TOKENS, TextTokenizer
from soundomni.data.audio_folder import AudioFolder
from soundomni.experts.checkpoints.bagel_import import import_bagel
from soundomni.experts.checkpoints.original_import import import_soundomni
from soundomni.experts.checkpoints.qwen2_audio_import import import_qwen2_audio
from soundomni.train.export import load_run
from soundomni.train.shards import stage, write_rank
from soundomni.vae.checkpoints.hubert_import import read_speech_source
from soundomni.vae.checkpoints.stable_audio import import_stable_audio_vae
from soundomni.vae.checkpoints.transformers_codecs import import_codec

SPEC: dict[str, Any] = {
    "model": {
        "backbone": {"class_path": "mot", "init_args": {"hidden_dim": 16, "num_layers": 1, "num_heads": 2}},
        "router": "modality",
        "codec": {"class_path": "mdct", "init_args": {"sample_rate": 8000, "frame_size": 64}},
        "connectors": {"latent": "linear"},
        "objective": "flow-matching",
    },
    "sampler": "euler",
}
MOST_BYTES = 1 << 30
LONGEST_LINE = 4100

Make = Callable[[Path], object]
Open = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """One attack.

    Args:
        name: name of the case.
        base: the valid folder that it starts from: model, adapter, run, weights or table.
        make: changes the folder.
        open: opens the folder.
        may_load: whether it may also be loaded, because its content is harmless within the limits.
    """

    name: str
    base: str
    make: Make
    open: Open
    may_load: bool = False


# The valid folders


def write_bases(root: Path) -> None:
    """Write a valid folder of each kind."""
    omni = tiny_model()
    omni.save_pretrained(root / "model")
    torch.save({"state_dict": omni.model.state_dict()}, root / "weights.pt")
    (root / "weights").mkdir()
    shutil.move(root / "weights.pt", root / "weights" / "model.pt")
    _write_run(root / "run", omni)
    add_adapters(omni.model, LoRASpec(streams=["gen"], rank=2))
    save_adapters(omni.model, root / "adapters")
    shutil.move(root / "adapters" / "gen", root / "adapter")
    (root / "table").mkdir()
    for i in range(2):
        soundfile.write(root / "table" / f"{i}.wav", np.zeros(800), 8000)
    (root / "table" / "metadata.csv").write_text("file_name,caption\n0.wav,one\n1.wav,two\n")


def tiny_model() -> SoundOmni:
    """Return a model with a few thousand parameters."""
    spec = load_spec([SPEC])
    tokenizer = TextTokenizer.train(["a tone"], vocab_size=0)
    return SoundOmni(build_model(spec.model, vocab_size=tokenizer.vocab_size), spec, tokenizer)


def _write_run(folder: Path, omni: SoundOmni) -> None:
    checkpoint = folder / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    shutil.copy(folder.parent / "model" / "spec.yaml", folder)
    omni.tokenizer.save(folder)
    tensors = {f"model/{name}": tensor for name, tensor in omni.model.state_dict().items()}
    write_rank(checkpoint, 0, stage(tensors, rank=0), {})
    tokenizer = hashlib.sha256((folder / TOKENIZER).read_bytes()).hexdigest()
    (checkpoint / "state.json").write_text(json.dumps({"num_ranks": 1, "tokenizer": tokenizer}))
    seal(checkpoint)


def seal(checkpoint: Path) -> None:
    """Write the manifest of the files in a checkpoint."""
    files = {p.name: {"sha256": hashlib.sha256(p.read_bytes()).hexdigest()} for p in checkpoint.iterdir() if p.name != "manifest.json"}
    (checkpoint / "manifest.json").write_text(json.dumps({"format": 1, "files": files}))


# Ways in


def open_model(folder: Path) -> None:
    """Load a model directory, and write a text and a card as its user would."""
    omni = SoundOmni.from_pretrained(folder)
    omni.tokenizer.decode(omni.tokenizer.encode("a tone 123 — déjà vu " * 20))
    text = card(omni.spec, 1, omni.origin)
    assert "<script" not in text.replace("\\<script", ""), "markup of the file is in the card"


def open_adapter(folder: Path) -> None:
    """Merge an adapter."""
    tiny_model().load_adapter(folder)


def open_weights(folder: Path) -> None:
    """Read a whole weight file."""
    weights = read_weights(next(iter(sorted(folder.iterdir()))))
    for name in weights:
        weights[name].clone()


def open_table(folder: Path) -> None:
    """List a folder of audio with its captions."""
    dataset = AudioFolder(path=str(folder))
    for i in range(len(dataset)):
        dataset.item(i)


def open_start(folder: Path) -> None:
    """Read the layer that `model.start` stands for."""
    start_layer(str(folder))


# Changes


def at(*parts: str, then: Make) -> Make:
    """Return a change of one file in the folder."""
    return lambda folder: then(folder.joinpath(*parts))


def text(content: str | bytes) -> Make:
    """Return a change that replaces the content of a file."""
    return lambda file: file.write_bytes(content.encode() if isinstance(content, str) else content)


def edit(**changes: Any) -> Make:
    """Return a change that sets keys of a JSON file; two underscores separate the keys of inner objects."""

    def change(file: Path) -> None:
        tree = json.loads(file.read_text())
        for key, value in changes.items():
            *outer, last = key.split("__")
            inner = tree
            for part in outer:
                inner = inner[part]
            inner[last] = value
        file.write_text(json.dumps(tree))

    return change


def fifo(file: Path) -> None:
    """Replace a file with a pipe."""
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def link(target: str) -> Make:
    """Return a change that replaces a file with a link."""

    def change(file: Path) -> None:
        file.unlink(missing_ok=True)
        file.symlink_to(target.replace("SELF", str(file)))

    return change


def directory(file: Path) -> None:
    """Replace a file with a directory."""
    file.unlink()
    file.mkdir()


def unix_socket(file: Path) -> None:
    """Replace a file with a socket."""
    file.unlink()
    before = Path.cwd()
    os.chdir(file.parent)  # addresses of sockets have to be short
    socket.socket(socket.AF_UNIX).bind(file.name)
    os.chdir(before)


def sparse(size: int) -> Make:
    """Return a change that makes a file of zeros that does not take any space."""

    def change(file: Path) -> None:
        with file.open("wb") as opened:
            opened.truncate(size)

    return change


def flip(seed: int) -> Make:
    """Return a change of a few bytes."""

    def change(file: Path) -> None:
        content, draw = bytearray(file.read_bytes()), random.Random(seed)
        for _ in range(8):
            content[draw.randrange(min(len(content), 3000))] = draw.randrange(256)
        file.write_bytes(content)

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Make:
    """Return a change of the tensors in a safetensors file."""

    def rewrite(file: Path) -> None:
        found = load_file(file)
        change(found)
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, file)

    return rewrite


def header(table: Mapping[str, Any] | bytes, length: int | None = None, body: int = 64) -> Make:
    """Return a change that writes a safetensors file with the given header."""
    content = table if isinstance(table, bytes) else json.dumps(table).encode()
    return text((len(content) if length is None else length).to_bytes(8, "little") + content + bytes(body))


def spec(**changes: Any) -> Make:
    """Return a change of arguments of a slot of the model, or of the slot itself."""

    def change(folder: Path) -> None:
        tree = json.loads(json.dumps(SPEC))
        for key, value in changes.items():
            slot, _, name = key.partition("__")
            if name:
                tree["model"][slot]["init_args"][name] = value
            else:
                tree["model"][slot] = value
        (folder / "spec.yaml").write_text(json.dumps(tree))

    return change


def sealed(change: Make) -> Make:
    """Return a change of a run's checkpoint that also updates the manifest."""

    def both(folder: Path) -> None:
        checkpoint = folder / "checkpoints" / "step-00000001"
        change(checkpoint)
        seal(checkpoint)

    return both


class Evil:
    """Makes a file called canary when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, ("touch canary",)


def bomb(folder: Path) -> None:
    """Write a small torch archive that decodes to 2 GB."""
    for file in folder.iterdir():
        file.unlink()
    with zipfile.ZipFile(folder / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x/data.pkl", "w", force_zip64=True) as entry:
        for _ in range(200):
            entry.write(bytes(10_000_000))


def only(content: bytes | Callable[[Path], object], name: str = "a.pt") -> Make:
    """Return a change that leaves one weight file in the folder."""

    def change(folder: Path) -> None:
        for file in folder.iterdir():
            file.unlink()
        content(folder / name) if callable(content) else (folder / name).write_bytes(content)

    return change


def torch_pickle(program: bytes) -> bytes:
    """Return a torch file in the format without an archive, whose tensors come from a pickle program."""
    return b"".join(pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})) + program


def shared_lists(file: Path) -> None:
    """Write 1 kB that stands for 10^12 values."""
    nested: Any = [1.0]
    for _ in range(12):
        nested = [nested] * 10
    torch.save({"a": torch.zeros(1), "others": nested}, file)


# Cases

TOKENIZER, CONFIG, WEIGHTS, YAML = "tokenizer.json", "config.json", "model.safetensors", "spec.yaml"
ADAPTER, MATRICES = "adapter_config.json", "adapter_model.safetensors"
CHECKPOINT = ("checkpoints", "step-00000001")
GROWS = {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaa"}] * 30}


def cases() -> Iterator[Case]:
    """Yield every case."""
    yield from _kinds_of_files()
    yield from _tokenizers()
    yield from _specs()
    yield from _configs()
    yield from _weights()
    yield from _pickles()
    yield from _adapters()
    yield from _runs()
    yield from _imports()
    yield from _tables()
    for seed in range(4):
        for name in (YAML, CONFIG, TOKENIZER, WEIGHTS):
            yield Case(f"bytes of {name} changed ({seed})", "model", at(name, then=flip(seed)), open_model, may_load=True)


def _kinds_of_files() -> Iterator[Case]:
    kinds: dict[str, Make] = {
        "a pipe": fifo,
        "a link to /dev/zero": link("/dev/zero"),
        "a link to itself": link("SELF"),
        "a directory": directory,
        "a socket": unix_socket,
        "5 GB of nothing": sparse(5 << 30),
    }
    for kind, change in kinds.items():
        for name in (YAML, CONFIG, TOKENIZER, WEIGHTS):
            yield Case(f"{name} is {kind}", "model", at(name, then=change), open_model)
    for name in (ADAPTER, MATRICES):
        yield Case(f"{name} is a pipe", "adapter", at(name, then=fifo), open_adapter)
    for name in ("manifest.json", "state.json", "rank-00000.json", "rank-00000.safetensors"):
        yield Case(f"{name} of a run is a pipe", "run", at(*CHECKPOINT, name, then=fifo), load_run)
    yield Case("manifest.json of a run is a link to /dev/zero", "run", at(*CHECKPOINT, "manifest.json", then=link("/dev/zero")), load_run)


def _tokenizers() -> Iterator[Case]:
    parts: dict[str, dict[str, Any]] = {
        "an empty table of characters": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}},
        "Replace of nothing": {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}},
        "Replace by an expression of nothing": {"normalizer": {"type": "Replace", "pattern": {"Regex": "a*"}, "content": "x"}},
        "an expression that backtracks": {
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$|(.*)*b"}, "behavior": "Isolated", "invert": False}
        },
        "a normalizer that multiplies": {"normalizer": GROWS},
        "bytes as bytes of bytes": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 30}},
        "a decoder that strips too much": {"decoder": {"type": "Strip", "content": "a", "start": 0, "stop": 9}},
        "a template that multiplies": {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 5000,
                "pair": [],
                "special_tokens": {},
            }
        },
        "ids without end": {"model__vocab": {**dict.fromkeys(SPECIAL_TOKENS, 4_000_000_000), "a": 0}, "model__merges": []},
        "a prefix that cuts characters": {"model__continuing_subword_prefix": "é"},
        "a part of the future": {"normalizer": {"type": "RunCode", "code": "import os"}},
        "sequences within each other": {"normalizer": _nested_normalizer(300)},
        "a strip that never ends": {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
    }
    for name, changes in parts.items():
        yield Case(f"tokenizer: {name}", "model", at(TOKENIZER, then=edit(**changes)), open_model)
    yield Case("tokenizer: nested 100,000 deep", "model", at(TOKENIZER, then=text('{"a":' * 100_000)), open_model)
    yield Case("tokenizer: ten million lists", "model", at(TOKENIZER, then=text("[" + "[]," * 10_000_000 + "0]")), open_model)
    yield Case("tokenizer: of model.start", "model", at(TOKENIZER, then=edit(**parts["Replace of nothing"])), open_start)


def _nested_normalizer(depth: int) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "NFC"}
    for _ in range(depth):
        part = {"type": "Sequence", "normalizers": [part]}
    return part


def _specs() -> Iterator[Case]:
    sizes = {"hidden_dim": 10**9, "num_layers": 10**9, "intermediate_dim": 10**12, "vocab_rows": 2**62, "head_dim": 10**30}
    for name, value in sizes.items():
        yield Case(f"spec: {name} {value:.0e}", "model", spec(**{f"backbone__{name}": value}), open_model)
    yield Case("spec: hidden_dim 20,000 (6 GB)", "model", spec(backbone__hidden_dim=20_000), open_model)
    for name, value in {"frame_size": 10**10, "sample_rate": 10**18, "channels": 10**9}.items():
        yield Case(f"spec: codec {name} {value:.0e}", "model", spec(**{f"codec__{name}": value}), open_model, may_load=True)
    for path in ("os.system", "soundomni.cli.main.main", "hf://evil/repo", "https://evil.example/x.py"):
        yield Case(f"spec: the codec {path}", "model", spec(codec={"class_path": path, "init_args": {}}), open_model)
    yield Case("spec: weights of a URL", "model", spec(codec__weights="https://evil.example/x.safetensors"), open_model)
    yield Case("spec: model.start", "model", spec(start="evil/repo"), open_model)
    yield Case("spec: a flat list of 2 MB", "model", at(YAML, then=text("- a\n" * 500_000)), open_model)
    yield Case("spec: a flat list of 900 kB", "model", at(YAML, then=text("- a\n" * 225_000)), open_model)
    yield Case("spec: references", "model", at(YAML, then=text(_references())), open_model)
    yield Case("spec: nested 100,000 deep", "model", at(YAML, then=text("a: " + "[" * 100_000)), open_model)
    yield Case(
        "spec: a tag that runs code", "model", at(YAML, then=text("model: !!python/object/apply:os.system ['touch canary']")), open_model
    )


def _references() -> str:
    return "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))


def _configs() -> Iterator[Case]:
    html = "<script>alert(1)</script>"
    changes: dict[str, tuple[dict[str, Any], bool]] = {
        "HTML as source": ({"source": html, "license": html}, True),
        "front matter as source": ({"source": "x\n---\nlicense: mit\n---\n# hello"}, False),
        "a source of 1 MB": ({"source": "x" * 1_000_000}, False),
        "codes for terminals": ({"license": "\x1b[2J\x1b]0;x\x07"}, False),
        "a list as source": ({"source": [1, 2]}, False),
        "max_tokens of 5000 digits": ({"max_tokens": "9" * 5000}, False),
        "auto_map and trust_remote_code": ({"auto_map": {"AutoModel": "evil.Model"}, "trust_remote_code": True}, True),
        "a format of the future": ({"format": [[]] * 1000}, False),
    }
    for name, (keys, harmless) in changes.items():
        yield Case(f"config: {name}", "model", at(CONFIG, then=edit(**keys)), open_model, may_load=harmless)
    yield Case("config: nested 100,000 deep", "model", at(CONFIG, then=text("[" * 100_000)), open_model)
    yield Case("config: not UTF-8", "model", at(CONFIG, then=text(b"\xff\xfe{}")), open_model)


def _weights() -> Iterator[Case]:
    def one(value: float) -> Make:
        return tensors(lambda found: next(t for t in found.values() if t.is_floating_point() and t.numel()).view(-1)[:1].fill_(value))

    for value in ("nan", "inf", "-inf"):
        yield Case(f"weights: {value}", "model", at(WEIGHTS, then=one(float(value))), open_model)
        yield Case(f"weights of a run: {value}", "run", sealed(at("rank-00000.safetensors", then=one(float(value)))), load_run)
    place = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    headers: dict[str, Make] = {
        "a huge shape": header({"a": place}),
        "a length beyond the file": header(b"{}", length=2**62),
        "a header of 20 MB": header(b"{" + b" " * 20_000_000 + b"}"),
        "overlapping places": header(
            {n: {"dtype": "F32", "shape": [2], "data_offsets": [o, o + 8]} for n, o in (("a", 0), ("b", 4))}, body=12
        ),
        "300,000 tensors": header({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(300_000)}, body=0),
        "a header nested 100,000 deep": header(b'{"a":' * 100_000),
    }
    for name, change in headers.items():
        yield Case(f"weights: {name}", "model", at(WEIGHTS, then=change), open_model)
    for shard in ("../../secret", "/etc/passwd", "model-00001-of-00001.safetensors\x00", "https://evil.example/x.safetensors"):
        yield Case(f"index: the shard {shard!r}", "model", _index({"a": shard}), open_model)
    yield Case("index: a shard that is a pipe", "model", _index({"a": "model-00001-of-00001.safetensors"}, fifo), open_model)
    yield Case("index: nested 100,000 deep", "model", _index("[" * 100_000), open_model)


def _index(places: Mapping[str, str] | str, shard: Make | None = None) -> Make:
    def change(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        content = places if isinstance(places, str) else json.dumps({"weight_map": places})
        (folder / f"{WEIGHTS}.index.json").write_text(content)
        if shard is not None:
            shard(folder / "model-00001-of-00001.safetensors")

    return change


def _pickles() -> Iterator[Case]:
    programs: dict[str, bytes | Callable[[Path], object]] = {
        "os.system in an archive": lambda file: torch.save({"a": torch.zeros(1), "b": Evil()}, file),
        "os.system": pickle.dumps(Evil(), protocol=2),
        "os.system after the magic number": torch_pickle(pickle.dumps({"a": Evil()}, protocol=2)),
        "bytes of any number": torch_pickle(b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R."),
        "a loop": lambda file: _loop(file),
        "five million lists": torch_pickle(b"\x80\x02" + b"]" * 5_000_000 + b"."),
        "copies of a dictionary": torch_pickle(
            b"\x80\x02]q\x00(" + b"K\x01K\x02\x86" * 20_000 + b"e" + b"0ccollections\nOrderedDict\nh\x00\x85R" * 20_000 + b"."
        ),
        "an expanded tensor": lambda file: torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, file),
        "text": b"these are no weights " * 10,
    }
    for name, program in programs.items():
        yield Case(f"pickle: {name}", "weights", only(program), open_weights)
    yield Case("pickle: shared lists", "weights", only(shared_lists), open_weights, may_load=True)
    yield Case("pickle: a bomb of 2 GB", "weights", bomb, open_weights)
    yield Case("pickle: 5 GB of nothing", "weights", only(sparse(5 << 30)), open_weights)


def _loop(file: Path) -> None:
    loop: dict[str, Any] = {"t": torch.zeros(1)}
    loop["again"] = [loop, loop]
    torch.save(loop, file)


def _adapters() -> Iterator[Case]:
    numbers: dict[str, Any] = {"alpha 1e308": {"lora_alpha": 1e308}, "alpha of 4000 digits": {"lora_alpha": 10**4000}}
    numbers |= {"alpha NaN": {"lora_alpha": float("nan")}, "alpha 0": {"lora_alpha": 0}, "alpha as text": {"lora_alpha": "16"}}
    numbers |= {"rank 0": {"r": 0}, "rank -1": {"r": -1}, "rank 1e9": {"r": 10**9}, "rank 2.0": {"r": 2.0}, "rank 3 of 2": {"r": 3}}
    numbers |= {
        "other ranks": {"rank_pattern": {".*": 10**9}},
        "a kind of its own": {"peft_type": "CODE", "auto_mapping": {"x": "os.system"}},
    }
    for name, keys in numbers.items():
        yield Case(f"adapter: {name}", "adapter", at(ADAPTER, then=edit(**keys)), open_adapter)
    matrices: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
        "NaN": lambda found: next(iter(found.values())).fill_(float("nan")),
        "huge numbers": lambda found: [t.fill_(3e38) for t in found.values()],
        "integers": lambda found: found.update({name: torch.ones_like(t, dtype=torch.int64) for name, t in found.items()}),
        "a layer of another model": lambda found: found.update({"base_model.model.x.lora_A.weight": torch.ones(2, 2)}),
        "one dimension": lambda found: found.update({name: t.flatten() for name, t in found.items()}),
    }
    for name, change in matrices.items():
        yield Case(f"adapter: {name}", "adapter", at(MATRICES, then=tensors(change)), open_adapter)


def _runs() -> Iterator[Case]:
    def manifest(name: str) -> Make:
        return at(*CHECKPOINT, "manifest.json", then=edit(files={"state.json": {"sha256": ""}, name: {"sha256": ""}}))

    for name in ("../../../secret", "/dev/zero", "a/b"):
        yield Case(f"manifest: the file {name}", "run", manifest(name), load_run)
    places: dict[str, Any] = {
        "a huge shape": {"shape": [2**40], "start": 0},
        "a place as text": {"shape": "x", "start": 0},
        "a start below 0": {"shape": [1], "start": -5},
        "no place": None,
    }
    first = "model/backbone.embedding.weight"
    for name, place in places.items():
        yield Case(f"index of a rank: {name}", "run", sealed(at("rank-00000.json", then=edit(**{f"tensors__{first}": place}))), load_run)
    for ranks in (10**12, -1, "1", None, 2):
        yield Case(f"state: {ranks} ranks", "run", sealed(at("state.json", then=edit(num_ranks=ranks))), load_run)
    yield Case("run: a spec of 10^9 layers", "run", spec(backbone__num_layers=10**9), load_run)
    yield Case("run: a tokenizer that multiplies", "run", at(TOKENIZER, then=edit(normalizer=GROWS)), load_run)


def _imports() -> Iterator[Case]:
    codecs: dict[str, Callable[..., Any]] = {kind: partial(import_codec, kind) for kind in ("dac", "encodec", "mimi")}
    codecs["hubert-kmeans"] = partial(read_speech_source, layer=1)
    readers = {"qwen2-audio": import_qwen2_audio, "bagel": import_bagel, "soundomni": import_soundomni, **codecs}
    for kind, reader in readers.items():
        yield Case(f"import {kind}: a pipe as config.json", "model", at(CONFIG, then=fifo), reader)
        yield Case(f"import {kind}: a deep config.json", "model", at(CONFIG, then=text("[" * 100_000)), reader)
    sizes = {"model_type": "qwen2_audio", "text_config": {"hidden_size": 10**4000, "rope_theta": 10**4000}, "audio_config": {}}
    yield Case("import qwen2-audio: numbers of 4000 digits", "model", at(CONFIG, then=text(json.dumps(sizes))), import_qwen2_audio)
    yield Case(
        "import encodec: os.system", "model", at("model.safetensors", then=text(pickle.dumps(Evil(), protocol=2))), codecs["encodec"]
    )
    large = {"model_type": "dac", "codebook_size": 2**62, "sampling_rate": 10**4000}
    yield Case("import dac: a codebook of 2^62 entries", "model", at(CONFIG, then=text(json.dumps(large))), codecs["dac"])
    yield Case("import stable-audio-vae: os.system", "weights", only(pickle.dumps(Evil(), protocol=2)), import_stable_audio_vae)
    yield Case("import stable-audio-vae: a deep config", "weights", at("config.json", then=text("[" * 100_000)), import_stable_audio_vae)


def _tables() -> Iterator[Case]:
    yield Case("table: a sidecar nested 100,000 deep", "table", at("0.json", then=text("[" * 100_000)), open_table, may_load=True)
    yield Case("table: a path out of the folder", "table", at("metadata.csv", then=text("file_name,caption\n../../x.wav,a\n")), open_table)
    yield Case("table: a pipe as metadata.csv", "table", at("metadata.csv", then=fifo), open_table)
    yield Case("table: 20,000 rows for one file", "table", _rows, open_table, may_load=True)
    yield Case(
        "table: a field of 10 MB", "table", at("metadata.csv", then=text('file_name,caption\n0.wav,"' + "x" * 10**7 + '"\n')), open_table
    )


def _rows(folder: Path) -> None:
    lines = (f"0.wav,caption {i}" for i in range(20_000))
    (folder / "metadata.csv").write_text("file_name,caption\n" + "\n".join(lines) + "\n")


# Opening one case


def prepare(case: Case, bases: Path, folder: Path) -> Path:
    """Return a copy of the valid folder that a case starts from, changed."""
    target = folder / "attacked"
    shutil.copytree(bases / case.base, target)
    case.make(target)
    return target


def verdict(case: Case, error: BaseException | None) -> str | None:
    """Return what was wrong after opening a case; None if nothing was."""
    if error is None:
        return None if case.may_load else "was loaded"
    if not isinstance(error, (SoundOmniError, OSError)):
        return f"ended in {type(error).__name__}: {str(error)[:100]}"
    if "\n" in str(error) or len(str(error)) > LONGEST_LINE:
        return "printed more than one line"
    return None


def attack(case: Case, bases: Path, *, seconds: float) -> dict[str, Any]:
    """Open a case in a child process; return the time and memory that it took, and how it ended."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = prepare(case, bases, folder)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _child(case, path, folder, writing)
        os.close(writing)
        found = _wait(child, reading, seconds)
        if (folder / "canary").exists() or (path / "canary").exists():
            found["wrong"] = "ran code"
        noise = (folder / "stderr").read_text(errors="replace") if (folder / "stderr").exists() else ""
        if "Traceback" in noise or "panicked" in noise:
            found["wrong"] = found["wrong"] or f"wrote a traceback: {noise.strip().splitlines()[0][:100]}"
        if found["wrong"] is None and (found["seconds"] > seconds or found["bytes"] > MOST_BYTES):
            found["wrong"] = "took too much"
        return found


def _child(case: Case, path: Path, folder: Path, writing: int) -> None:
    """Open a case, write the result to a pipe, and end the process."""
    connected: list[object] = []

    def refuse(self: socket.socket, address: object) -> None:
        connected.append(address)
        raise OSError("connections are not allowed here")

    socket.socket.connect = refuse  # type: ignore[method-assign,assignment]
    os.chdir(folder)
    os.dup2(os.open("stderr", os.O_CREAT | os.O_WRONLY), 2)
    before, start = _peak(), _processor_seconds()
    error: BaseException | None = None
    try:
        case.open(path)
    except BaseException as raised:
        error = raised
        if not isinstance(raised, (SoundOmniError, OSError)):
            traceback.print_exc()
    wrong = "opened a connection" if connected else verdict(case, error)
    line = "loaded" if error is None else f"{type(error).__name__}: {error}"
    found = {"wrong": wrong, "seconds": _processor_seconds() - start, "bytes": _peak() - before, "line": line}
    os.write(writing, json.dumps(found).encode()[:60_000])
    os._exit(0)


def _wait(child: int, reading: int, seconds: float) -> dict[str, Any]:
    """Return the result of a child, which is killed when its time is used up or it waits forever."""
    last, asleep = -1.0, 0
    while not select.select([reading], [], [], 0.2)[0]:
        used = _processor_seconds(child)
        # on a busy machine, processes that are ready to run wait too
        asleep = asleep + 1 if used == last and _state(child) != "R" else 0
        last = used
        if used > 2 * seconds or asleep > 5 * seconds:
            os.kill(child, signal.SIGKILL)
            break
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if answer:
        return dict(json.loads(answer))
    return {"wrong": f"never ended (status {status})", "seconds": float("inf"), "bytes": 0, "line": ""}


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def _processor_seconds(process: int | None = None) -> float:
    if process is None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def warm(bases: Path) -> None:
    """Open each valid folder once, so that children have all imports."""
    for folder, opens in {
        "model": open_model,
        "adapter": open_adapter,
        "run": load_run,
        "weights": open_weights,
        "table": open_table,
    }.items():
        opens(bases / folder)  # type: ignore[operator]
    open_start(bases / "model")
    for reader in (import_qwen2_audio, import_bagel, import_soundomni, import_stable_audio_vae, partial(import_codec, "dac")):
        try:
            reader(bases / "model")
        except SoundOmniError:
            continue


def main() -> int:
    """Run the cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names of cases to run (default: all)")
    parser.add_argument("--seconds", type=float, default=5.0, help="largest processor time of a case, in seconds (default: 5)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bad = count = 0
    with tempfile.TemporaryDirectory() as folder:
        bases = Path(folder)
        write_bases(bases)
        warm(bases)
        for case in cases():
            if not fnmatch(case.name, args.only):
                continue
            found = attack(case, bases, seconds=args.seconds)
            count, bad = count + 1, bad + (found["wrong"] is not None)
            shown = found["line"].replace(str(bases.parent), "")[:110]
            verdict = "ok" if found["wrong"] is None else f"WRONG: {found['wrong']}"
            sys.stdout.write(f"{found['seconds']:6.2f} s {found['bytes'] / 2**20:6.0f} MB  {verdict:8}  {case.name}: {shown}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{count} cases, {bad} wrong\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
