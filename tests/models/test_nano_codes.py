"""The model of codes in the box: small, made by the shipped spec, worth what its card says, and able to continue clips."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from soundomni import Kept, SoundOmni
from soundomni.core.assembly.modality import CodecModality
from soundomni.core.files.shipped import SHIPPED, shipped_models
from soundomni.core.pretrained.directory import portable
from soundomni.core.spec.load import load_spec, resolve
from soundomni.core.waveform import Audio
from soundomni.data.toys.toy_sounds import ToySounds
from soundomni.evaluation import evaluate, score_text

FOLDER = SHIPPED / "nano-codes"
README = Path(__file__).parents[2] / "README.md"
SCORES = json.loads((SHIPPED / "nano-codes-scores.json").read_text(encoding="utf-8"))
FOUND = [next(value for key, value in one.items() if key in ("generated", "continued")) for one in SCORES.values()]
LABELS = {
    "every attribute of a clip right": "right",
    "attributes right": "attributes",
    "pitch right, or kept": "pitch",
    "direction of chirps right, or kept": "direction",
    "waveform right": "waveform",
    "loudness right": "loudness",
    "number of clicks right": "clicks",
}


@pytest.fixture(scope="module")
def model() -> SoundOmni:
    return SoundOmni.from_pretrained("nano-codes")


def test_it_comes_with_the_package_is_small_and_is_assembled_as_the_shipped_spec_says(model: SoundOmni) -> None:
    assert shipped_models() == ("nano", "nano-codes")
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 8_000_000
    spec, own = portable(resolve(load_spec(["nano-codes"], base={}))), resolve(model.spec)
    assert own.model == replace(spec.model, tokenizer=own.model.tokenizer)  # which training learnt


def test_its_card_and_the_readme_say_what_evaluate_printed() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in card.splitlines() if line.startswith("| "))
    cells = {row[0]: row[1:] for row in rows}
    assert cells[""] == list(SCORES)
    for label, key in LABELS.items():
        assert cells[label] == [score_text(key, found[key]) if key in found else "" for found in FOUND], label
    weights = hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest()
    assert {score["made_with"]["model"]["sha256"] for score in SCORES.values()} == {weights}
    said = README.read_text(encoding="utf-8").partition("<!-- scores of nano-codes")[2].partition("<!-- end of scores of nano-codes")[0]
    masked, kept = SCORES["masked"]["generated"], SCORES["continued"]["continued"]
    assert re.findall(r"[\d.]+ %", said) == [score_text("attributes", masked["attributes"]), score_text("pitch", kept["pitch"])]


@pytest.mark.long
@pytest.mark.parametrize(("column", "data", "task"), [("masked", "new-combinations", "generate"), ("continued", "editing", "continue")])
def test_a_part_of_the_list_scores_about_what_the_card_says(model: SoundOmni, column: str, data: str, task: str) -> None:
    """Of 32 clips a share has a standard error below 9 points; weights that were not those of the card would be far off."""
    found = evaluate(model, data, tasks=[task], of="codes" if column == "masked" else "tokens", limit=32)
    said = SCORES[column]
    section = "generated" if task == "generate" else "continued"
    assert abs(found[section]["attributes"] - said[section]["attributes"]) < 0.15


def test_both_ways_make_the_same_kind_of_codes(model: SoundOmni) -> None:
    prompts = ["a loud sine tone at A4", "two clicks"]
    clips = {of: model.make(prompts, seconds=[0.4, 0.3], seeds=[1, 2], of=of) for of in ("codes", "tokens")}
    assert {clip.spec for made in clips.values() for clip in made} == {clips["codes"][0].spec}
    for made in clips.values():
        (again,) = model.make(prompts[1], seconds=0.3, seeds=2, of="codes" if made is clips["codes"] else "tokens")
        assert torch.equal(again.values, made[1].values), "a clip does not depend on its batch"


@pytest.mark.long
def test_what_is_kept_of_a_file_stays_and_the_rest_goes_on(model: SoundOmni) -> None:
    dataset = ToySounds(size=8, seed=9, seconds=1.0, events=(1, 1), notes=("C4", "E4", "A4"), kinds=("tone",), variation=1.0)
    clips, prompts = [Audio(*dataset.load(i)) for i in range(8)], [dataset.item(i).captions[0] for i in range(8)]
    known = [Kept(clip, [(0.0, 0.5)]) for clip in clips]
    made = model.make(prompts, seconds=1.0, of="tokens", known=known, seeds=list(range(8)))
    own = model.model.modality("tokens")
    assert isinstance(own, CodecModality)
    first = 4000 // 128 - 1
    for clip, one in zip(clips, made, strict=True):
        codes = own.codec.encode(torch.from_numpy(clip.waveform)[None], torch.tensor([8000])).values
        assert torch.equal(one.values[..., :first], codes[..., :first])
    sounds = model.generate(prompts, seconds=1.0, of="tokens", known=known, seeds=list(range(8)))
    rest = [sound.waveform[0, 4000:4800] for sound in sounds if sound.waveform.shape[1] >= 4800]
    assert len(rest) >= 4 and all(np.square(wave).mean() > 1e-4 for wave in rest)
