"""The model in the box: loaded by name without a network, small, made by the shipped spec, and worth what its card says."""

import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from soundomni import SoundOmni
from soundomni.core.errors import SpecError
from soundomni.core.files.shipped import SHIPPED, shipped_models
from soundomni.core.inference.editing import Kept
from soundomni.core.interfaces import Item
from soundomni.core.pretrained.directory import find_model, portable
from soundomni.core.spec.load import load_spec, resolve
from soundomni.core.waveform import Audio
from soundomni.data.toys.analysis import analyze, compare
from soundomni.data.toys.toy_recipe import Recipe
from soundomni.data.toys.toy_sounds import ToySounds
from soundomni.evaluation import evaluate, score_text
from soundomni.metrics.waveform_distances import spectral_convergence

SCORES = json.loads((SHIPPED / "nano-scores.json").read_text(encoding="utf-8"))
ROWS = (
    ("prompts generated with every attribute right", "generated", "right"),
    ("attributes generated right", "generated", "attributes"),
    ("clips described with every attribute right", "described", "right"),
    ("attributes described right", "described", "attributes"),
    ("questions answered right", "answered", "right"),
    ("chirps continued in their direction", "continued", "direction"),
    ("sounds continued at their pitch", "continued", "pitch"),
    ("variants at strength 0.8 with every attribute of the prompt", "varied", "right at 0.8"),
)
README = Path(__file__).parents[2] / "README.md"
LAST = Path(__file__).parents[2] / "tools" / "nano_last.yaml"
NOTES = ("C4", "D4", "E4", "F4", "G4", "A4", "B4")


@pytest.fixture(scope="module")
def nano() -> SoundOmni:
    return SoundOmni.from_pretrained("nano")


def test_it_loads_by_name_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError(f"a connection was asked for: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert SoundOmni.from_pretrained("nano").describe([Audio(np.zeros((1, 8000), np.float32), 8000)])


def test_a_model_directory_of_that_name_wins_and_any_other_folder_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano").mkdir()
    assert find_model("nano") == SHIPPED / "nano" and "nano" in shipped_models()
    (tmp_path / "nano").rmdir()
    SoundOmni.from_pretrained("nano").save_pretrained("nano")
    assert find_model("nano") == Path("nano")


def test_it_is_small_and_assembled_as_the_shipped_spec_says(nano: SoundOmni) -> None:
    assert (SHIPPED / "nano" / "model.safetensors").stat().st_size <= 8_000_000
    spec = portable(resolve(load_spec(["nano", LAST], base={})))
    own = resolve(nano.spec)
    model = replace(spec.model, tokenizer=own.model.tokenizer)  # which the first part of training learnt
    assert own.model == model


def test_the_card_says_what_evaluate_printed() -> None:
    card = (SHIPPED / "nano" / "README.md").read_text(encoding="utf-8")
    rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in card.splitlines() if line.startswith("| "))
    cells = {row[0]: row[1:] for row in rows}
    for label, task, key in ROWS:
        assert cells[label] == [score_text(key, found[task][key]) if task in found else "" for found in SCORES.values()], label
    for scores, tasks in (
        ("new-combinations", ("generated", "described", "answered", "reconstructed")),
        ("editing", ("continued", "varied")),
    ):
        for task in tasks:
            for name, value in SCORES[scores][task].items():
                assert f"| {task} | {name} | {score_text(name, value)} |" in card
    weights = hashlib.sha256((SHIPPED / "nano" / "model.safetensors").read_bytes()).hexdigest()
    assert {score["made_with"]["model"]["sha256"] for score in SCORES.values()} == {weights}


def test_the_readme_says_what_evaluate_printed() -> None:
    said = README.read_text(encoding="utf-8").partition("<!-- scores of nano")[2].partition("<!-- end of scores -->")[0]
    first = SCORES["new-combinations"]
    tasks = ("generated", "described", "answered")
    assert re.findall(r"[\d.]+ %", said) == [score_text("right", first[task]["right"]) for task in tasks]


@pytest.mark.long
def test_a_sixth_of_the_list_scores_about_what_the_card_says(nano: SoundOmni) -> None:
    """Of 32 clips a share has a standard error below 9 points; weights that were not those of the card would be far off."""
    result = evaluate(nano, "new-combinations", limit=32)
    for task, name in (("generated", "attributes"), ("described", "attributes"), ("answered", "right")):
        assert abs(result[task][name] - SCORES["new-combinations"][task][name]) < 0.15, (task, name)


def editing_clips(kinds: tuple[str, ...], count: int) -> tuple[ToySounds, list[Audio]]:
    """New clips of one sound that lasts, at the full variation."""
    dataset = ToySounds(size=count, seed=9, seconds=1.0, events=(1, 1), notes=NOTES, kinds=kinds)
    return dataset, [Audio(*dataset.load(i)) for i in range(count)]


def level(waveform: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(waveform)) + 1e-12))


def test_a_clip_longer_than_its_places_is_refused(nano: SoundOmni) -> None:
    with pytest.raises(SpecError, match=r"the clip lasts 3\.504 s; the latent connector takes at most 3\.056 s\. Choose a shorter length"):
        nano.generate(["white noise"], seconds=3.5)


@pytest.mark.long
def test_continuing_has_no_seam(nano: SoundOmni) -> None:
    """The step in level from 30 ms before the join to 30 ms after is that of the clips themselves, and nothing clicks there."""
    dataset, clips = editing_clips(("tone", "noise"), 24)
    prompts = [dataset.item(i).captions[0] for i in range(len(clips))]
    files = [Audio(clip.waveform[:, :4096], 8000) for clip in clips]
    made = nano.generate(prompts, seconds=1.0, known=[Kept(file, [(0.0, 0.512)]) for file in files], seeds=0)
    join, width = 4096 - 128, 240  # the frame that overlaps the join is made, not kept

    def steps(sounds: list[Audio]) -> np.ndarray:
        return np.asarray([abs(level(c.waveform[0, join : join + width]) - level(c.waveform[0, join - width : join])) for c in sounds])

    def clicks(sounds: list[Audio]) -> np.ndarray:
        """The largest bend of the waveform around the join against the largest of 30 ms before."""
        bends = [np.abs(np.diff(c.waveform[0], 2)) for c in sounds]
        return np.asarray([b[join - 64 : join + 192].max() / b[join - 64 - width : join - 64].max() for b in bends])

    assert np.median(steps(made)) < np.median(steps(clips)) + 1.0
    assert np.quantile(steps(made), 0.9) < np.quantile(steps(clips), 0.9) + 3.0
    assert np.median(clicks(made)) < 1.5 * np.median(clicks(clips))
    assert np.quantile(clicks(made), 0.9) < 2.0 * np.quantile(clicks(clips), 0.9)


@pytest.mark.long
def test_filling_a_gap_leaves_what_is_kept_as_the_codec_gives_it_back(nano: SoundOmni) -> None:
    dataset, clips = editing_clips(("tone", "noise"), 8)
    prompts = [dataset.item(i).captions[0] for i in range(len(clips))]
    made = nano.generate(prompts, seconds=1.0, known=[Kept(clip, [(0.0, 0.4), (0.6, 1.0)]) for clip in clips], seeds=0)
    for clip, one in zip(clips, made, strict=True):
        whole = nano.reconstruct(clip).waveform
        np.testing.assert_allclose(one.waveform[:, : 3200 - 256], whole[:, : 3200 - 256], atol=2e-6)
        np.testing.assert_allclose(one.waveform[:, 4800 + 256 :], whole[:, 4800 + 256 :], atol=2e-6)
        assert np.abs(one.waveform - whole).max() > 1e-3
        assert level(one.waveform[0, 3500:4500]) > level(clip.waveform[0]) - 12.0


@pytest.mark.long
def test_a_rising_tone_goes_on_rising_whatever_the_seed(nano: SoundOmni) -> None:
    (clip,) = nano.generate("a rising sine tone, then two clicks", seconds=1.0)
    made = nano.generate(["a rising sine tone"] * 4, seconds=1.0, known=Kept(clip, [(0.0, 0.4)]), seeds=0)
    for one in made:
        (event,) = analyze(one.waveform, 8000).events
        assert event.kind == "chirp" and event.sweep is not None and event.sweep > 4.0


@pytest.mark.long
def test_strength_leads_from_the_clip_to_the_prompt(nano: SoundOmni) -> None:
    """At 0.2 a clip is near itself, under its own caption and under another one; at 0.8 it is what the prompt asks for."""
    dataset, clips = editing_clips(("tone", "noise"), 6)
    items = [dataset.item(i) for i in range(len(clips))]
    others = [*items[1:], items[0]]

    def varied(prompts: list[Item], strength: float) -> list[Audio]:
        return nano.generate([item.captions[0] for item in prompts], seconds=1.0, vary=clips, strength=strength, seeds=0)

    def distance(made: list[Audio]) -> float:
        return float(np.median([spectral_convergence(clip.waveform, one.waveform) for clip, one in zip(clips, made, strict=True)]))

    def right(made: list[Audio], items: list[Item]) -> float:
        heard = [compare(Recipe.from_json(item.attributes), analyze(one.waveform, 8000)) for item, one in zip(items, made, strict=True)]
        return float(np.mean([all(verdict.values()) for verdict in heard]))

    slight, half, strong = (varied(others, strength) for strength in (0.2, 0.5, 0.8))
    assert distance(slight) < distance(half) < distance(strong) + 0.1 and distance(slight) < 0.6 * distance(strong)
    assert right(strong, others) >= 5 / 6
    assert right(varied(items, 0.2), items) >= 5 / 6


@pytest.mark.long
def test_an_installed_package_has_the_model_and_everything_else_it_reads(tmp_path: Path) -> None:
    root, copy = Path(__file__).parents[2], tmp_path / "copy"
    shutil.copytree(root / "soundomni", copy / "soundomni", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(copy)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    needed = {
        str(path.relative_to(root))
        for folder, pattern in (("models", "**/*"), ("lists", "*.yaml"), ("specs", "*.yaml"), ("cli/templates", "*"))
        for path in (root / "soundomni" / folder).glob(pattern)
        if path.is_file()
    }
    assert len(needed) > 15 and needed <= names, needed - names
