"""Hostile files by the public ways in: some of the cases of tools/attack_files.py, here in this process."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "attack_files.py"


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("attack_files", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["attack_files"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


attack_files = load_tool()
CASES = {case.name: case for case in attack_files.cases()}
CHOSEN = (
    "config.json is a pipe",
    "model.safetensors is a link to /dev/zero",
    "tokenizer.json is a socket",
    "manifest.json of a run is a pipe",
    "tokenizer: Replace of nothing",
    "tokenizer: a normalizer that multiplies",
    "tokenizer: a decoder that strips too much",
    "tokenizer: ids without end",
    "spec: num_layers 1e+09",
    "spec: hidden_dim 20,000 (6 GB)",
    "spec: the codec os.system",
    "spec: a tag that runs code",
    "config: HTML as source",
    "config: front matter as source",
    "config: codes for terminals",
    "weights: nan",
    "weights of a run: inf",
    "weights: overlapping places",
    "index: the shard '../../secret'",
    "pickle: os.system after the magic number",
    "pickle: shared lists",
    "adapter: alpha 1e308",
    "adapter: huge numbers",
    "manifest: the file ../../../secret",
    "index of a rank: a huge shape",
    "state: 1000000000000 ranks",
    "import qwen2-audio: numbers of 4000 digits",
    "import dac: a codebook of 2^62 entries",
    "import encodec: os.system",
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    attack_files.write_bases(folder)
    attack_files.open_model(folder / "model")
    attack_files.load_run(folder / "run")
    attack_files.open_adapter(folder / "adapter")
    attack_files.open_weights(folder / "weights")
    return folder


def test_there_are_a_hundred_cases_with_names_of_their_own() -> None:
    assert len(CASES) == len(list(attack_files.cases())) >= 100


@pytest.mark.parametrize("name", CHOSEN)
def test_hostile_files_end_in_one_line(name: str, bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    case = CASES[name]
    path = attack_files.prepare(case, bases, tmp_path)
    error: BaseException | None = None
    try:
        case.open(path)
    except Exception as raised:
        error = raised
    assert attack_files.verdict(case, error) is None, error
    assert not (tmp_path / "canary").exists()
