"""The drum-hits example, small: hits collected from packages that are laid out like Debian's, trained on, measured, shown and tabulated."""

import csv
import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from soundomni.cli.main import main
from soundomni.core.spec.load import load_spec

EXAMPLE = Path(__file__).parents[2] / "examples" / "drum-hits"
KINDS = {"Kick": "a kick drum", "Snare 1": "a snare drum", "Closed HH": "a closed hi-hat", "Snare roll": None, "Voice": None}
TINY = [
    "--model.backbone={init_args: {hidden_dim: 32, num_layers: 1, num_heads: 2, intermediate_dim: 32, gen_intermediate_dim: 32}}",
    *("--model.encoder.feature_dim=16", "--model.tokenizer.vocab_size=261", "--sampler.num_steps=2"),
    *("--train.steps=2", "--train.threads=1", "--train.save_every=0", "--train.schedule.warmup_steps=null"),
]


def script(name: str, folder: Path = EXAMPLE) -> ModuleType:
    """Imports a script of the example."""
    spec = importlib.util.spec_from_file_location(f"drum_hits_{name}", folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[f"drum_hits_{name}"] = module
    spec.loader.exec_module(module)
    return module


def hit(seed: int, rate: int) -> np.ndarray:
    return 0.2 * np.random.default_rng(seed).standard_normal(rate // 4) * np.exp(-np.arange(rate // 4) / 900)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with hits of three kinds, collected from two drum kits and two other packages."""
    folder = tmp_path_factory.mktemp("hits")
    kits = folder / "packages" / "hydrogen-drumkits" / "usr/share/hydrogen/data/drumkits"
    for kit in ("Known", "VariBreaks"):
        (kits / kit).mkdir(parents=True)
        instruments = []
        for number, name in enumerate(KINDS):
            files = [f"{number}-{i} {name}.wav" for i in range(5)]
            for i, file in enumerate(files):
                rate = (44100, 22050)[i % 2]
                soundfile.write(kits / kit / file, hit(10 * number + i, rate), rate)
            layers = "".join(f"<layer><filename>{file}</filename></layer>" for file in [*files, "missing.wav", files[0]])
            instruments.append(f"<instrument><name>{name}</name>{layers}</instrument>")
        (kits / kit / "drumkit.xml").write_text(
            f'<drumkit_info xmlns="http://kit" xmlns:xsi="http://x" xsi:schemaLocation="a">{"".join(instruments)}</drumkit_info>'
        )
    for package, place, suffix in (("sonic-pi-samples", "a", "flac"), ("lmms-common", "b/samples/drums", "ogg")):
        (folder / "packages" / package / place).mkdir(parents=True)
        for name in ("drum_heavy_kick", "snare_01", "drum_roll"):
            soundfile.write(folder / "packages" / package / place / f"{name}.{suffix}", hit(99, 44100), 44100)
    (folder / "packages" / "lmms-common" / "b/samples/drums" / "snare04.ogg").write_bytes(b"OggS cut")
    assert script("collect").main([str(folder / "my-sounds"), "--packages", str(folder / "packages")]) == 0
    return folder


def test_hits_are_collected_once_and_split_by_kit(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (work / "my-sounds" / "metadata.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    folders = Counter((row["file_name"].split("/")[0], row["caption"]) for row in rows)
    for caption in ("a kick drum", "a snare drum", "a closed hi-hat"):
        assert folders["new-kits", caption] == 5 and folders["held-out", caption] == 1 and folders["train", caption] >= 4
    assert {caption for _, caption in folders} == {caption for caption in KINDS.values() if caption}, "rolls and voices are not hits"
    assert all((row["kit"] == "VariBreaks") == row["file_name"].startswith("new-kits/") for row in rows)
    assert {row["kit"] for row in rows} == {"Known", "VariBreaks", "sonicpi", "lmms"}
    assert all((work / "my-sounds" / row["file_name"]).is_file() for row in rows)
    assert script("collect").main([str(work / "my-sounds")]) == 2
    assert "already exists" in capsys.readouterr().err


def test_it_trains_is_measured_shown_and_tabulated(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(work)
    monkeypatch.syspath_prepend(str(EXAMPLE))
    assert main(["train", "--config", "recordings", "--config", str(EXAMPLE / "drum-hits.yaml"), *TINY]) == 0
    assert main(["export", "runs/drum-hits", "--out", "models/recipe"]) == 0
    capsys.readouterr()
    measured = ["--sounds", "my-sounds", "--model", "models/recipe", "--out", "measured/recipe", "--per-caption", "2"]
    assert script("measure").main(measured) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["made"]["clips"], shown["held-out"]["clips"], shown["new-kits"]["clips"]) == (6, 3, 15)
    assert all(0 <= shown["made"][name] <= 100 for name in ("nearest", "classified"))
    assert shown["new-kits"]["copies"] > 0, "the new kit has the sounds of the known one"
    assert {caption: found["of"] for caption, found in shown["captions"].items()} == dict.fromkeys(shown["captions"], 6)
    assert len(list(Path("measured/recipe").glob("*.wav"))) == 6
    assert script("page").main(["--sounds", "my-sounds", "--measured", "measured/recipe", "--out", "index.html"]) == 0
    page = Path("index.html").read_text(encoding="utf-8")
    assert page.count("<audio") == 3 * (2 + 1) and page.count("<section>") == 3 and "http" not in page
    Path("runs/recipe-model.seconds").write_text("150.0\n")
    capsys.readouterr()
    for _ in range(2):
        assert script("table").main(["--work", ".", "--out", "rows.md"]) == 0
        lines = Path("rows.md").read_text(encoding="utf-8").splitlines()
        assert [line.split(" | ")[0] for line in lines if line.startswith("| *")] == ["| *held-out hits*", "| *hits of new kits*"]
        assert len([line for line in lines if "| 2 min |" in line]) == 1
    Path("other.md").write_text("no place\n")
    with pytest.raises(SystemExit):
        script("table").main(["--work", ".", "--out", "other.md"])
    assert "put them where the table goes" in capsys.readouterr().err


@pytest.mark.parametrize("row", sorted(path.stem for path in (EXAMPLE / "rows").glob("*.yaml")))
def test_every_row_is_a_valid_layer_and_is_in_the_table(row: str) -> None:
    if row.endswith("-codec"):
        assert load_spec([f"{row.removesuffix('-codec')}-toy", EXAMPLE / "rows" / f"{row}.yaml"]).codec is not None
        return
    spec = load_spec(["recordings", EXAMPLE / "drum-hits.yaml", EXAMPLE / "rows" / f"{row}.yaml"])
    assert spec.model is not None
    assert row in script("table").ROWS
    assert row in (EXAMPLE / "run_rows.sh").read_text(encoding="utf-8")


def test_syllables_are_collected_by_language(tmp_path: Path) -> None:
    for code, count in (("da", 9), ("lt", 120)):
        folder = tmp_path / "packages" / "klettres-data" / "usr/share/klettres" / code / "alpha"
        folder.mkdir(parents=True)
        for i in range(count):
            soundfile.write(folder / f"{i}.ogg", np.zeros(800), 8000)
    sys.path.insert(0, str(EXAMPLE))
    try:
        collected = script("collect_syllables", EXAMPLE / "other")
    finally:
        sys.path.remove(str(EXAMPLE))
    assert collected.main([str(tmp_path / "out"), "--packages", str(tmp_path / "packages")]) == 0
    with (tmp_path / "out" / "metadata.csv").open(encoding="utf-8", newline="") as table:
        rows = Counter((row["file_name"].split("/")[0], row["caption"]) for row in csv.DictReader(table))
    assert rows == {
        ("train", "a syllable in Danish"): 8,
        ("held-out", "a syllable in Danish"): 1,
        ("train", "a syllable in Lithuanian"): 88,
        ("held-out", "a syllable in Lithuanian"): 12,
    }
