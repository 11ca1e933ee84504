"""Fixed lists: nothing in them occurs in training, their clips are what they say, and they cannot change unnoticed."""

import re
from pathlib import Path

import numpy as np
import pytest

from soundomni.core.errors import SoundOmniError, SpecError
from soundomni.core.spec.load import load_spec
from soundomni.core.spec.registry import build
from soundomni.data.toys.analysis import analyze
from soundomni.data.toys.toy_recipe import Recipe, is_held_out, note_frequency
from soundomni.data.toys.toy_sounds import ToySounds
from soundomni.evaluation import open_list, shipped_lists

LIST = """
description: A few toy sounds.
dataset: {class_path: toy-sounds, init_args: {size: 4, seconds: 0.5, events: [1, 1], seed: 5}}
tasks: [describe, reconstruct]
items_sha256: ITEMS
audio_sha256: AUDIO
"""


def refusal(path: Path, text: str) -> str:
    """Returns the one line with which a list of this text is refused."""
    path.write_text(text)
    with pytest.raises(SoundOmniError) as caught:
        open_list(path)
    line = str(caught.value)
    assert "\n" not in line
    return line


def with_sums(path: Path) -> str:
    """Returns LIST with the checksums that the errors name."""
    text = LIST.replace("ITEMS", "0" * 64).replace("AUDIO", "0" * 64)
    for _ in range(2):
        found = re.search(r"(\w+_sha256) is ([0-9a-f]{64})", refusal(path, text))
        assert found is not None
        text = re.sub(f"{found[1]}: \\w+", f"{found[1]}: {found[2]}", text)
    return text


@pytest.mark.parametrize("name", shipped_lists())
def test_nothing_of_a_list_occurs_in_training(name: str) -> None:
    fixed = open_list(name)
    assert len(fixed.dataset) == (100 if name == "editing" else 200) and fixed.description
    specs = [load_spec(["nano"]), load_spec(["nano", Path(__file__).parents[2] / "tools" / "nano_editing.yaml"])]
    entries = [entry for spec in specs for entry in spec.data.datasets.values() if entry is not None]
    sources = [entry.source for entry in entries if entry.source.class_path == "toy-sounds"]
    assert len(sources) == len(entries) == 7
    recipes = [Recipe.from_json(fixed.dataset.item(i).attributes) for i in range(len(fixed.dataset))]
    for source in sources:
        trained = build("dataset", source)
        assert isinstance(trained, ToySounds)
        seen = {trained.recipe(i) for i in range(min(len(trained), 2000))}
        if name == "new-combinations":
            # training draws again until a recipe is not held out, and all of these are
            assert trained.held_out == "exclude" and all(map(is_held_out, recipes))
            assert seen.isdisjoint(recipes)
            said = {caption for i in range(500) for caption in trained.item(i).captions}
            assert said.isdisjoint(fixed.dataset.item(i).captions[0] for i in range(200))
        elif name == "editing":
            # onset, phase and course of every sound are drawn anew: clips of another seed are other clips of the same kind
            assert trained.seed != fixed.slot.init_args["seed"] and fixed.slot.init_args["variation"] == 1.0
        else:
            # training has every tone on its note, and each clip of these has tones that are all off theirs
            assert trained.detune == (0.0, 0.0)
            for i, recipe in enumerate(recipes):
                cents = fixed.dataset.item(i).attributes["detune"]
                assert {event.kind for event in recipe.events} == {"tone"} and all(15 <= abs(c) <= 35 for c in cents)


def test_the_pitches_between_notes_are_where_the_list_says() -> None:
    dataset = open_list("between-notes").dataset
    for i in range(40):
        item = dataset.item(i)
        heard = analyze(*dataset.load(i)).events
        for event, found, cents in zip(Recipe.from_json(item.attributes).events, heard, item.attributes["detune"], strict=True):
            assert 1200 * np.log2(found.pitch / note_frequency(event.note)) == pytest.approx(cents, abs=10)
            assert found.event.note == event.note


def test_lists_that_are_not_there_or_damaged(tmp_path: Path) -> None:
    def line(text: str) -> str:
        return refusal(tmp_path / "own.yaml", text)

    for name in ("new-combination", "between_notes"):
        with pytest.raises(SpecError, match=r"Did you mean .* Shipped lists: between-notes, editing, new-combinations"):
            open_list(name)
    with pytest.raises(SpecError, match=r"there is no list 'no/such.yaml': '/.*' is not a file"):
        open_list("no/such.yaml")
    assert "is empty; expected the keys description" in line("")
    assert "is not a mapping" in line("- 1")
    assert "not valid YAML" in line("description: {")
    assert "Did you mean 'tasks'" in line(LIST.replace("tasks:", "task:"))
    assert "Did you mean 'describe'" in line(LIST.replace("[describe,", "[descrive,"))
    assert "tasks is empty" in line(LIST.replace("[describe, reconstruct]", "[]"))
    assert "0.1 s is too short" in line(LIST.replace("seconds: 0.5", "seconds: 0.1"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="cannot be read"):
        open_list(tmp_path / "binary.yaml")


def test_a_list_whose_items_or_audio_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    whole = with_sums(path)
    path.write_text(whole)
    assert len(open_list(path).dataset) == 4
    assert "its items changed since it was written" in refusal(path, whole.replace("seed: 5", "seed: 6"))
    other = whole.replace("seed: 5", "seed: 5, variation: 0.5")  # other sounds of the same recipes
    assert "its audio changed since it was written" in refusal(path, other)
    line = refusal(path, whole.replace("items_sha256", "# items_sha256"))
    assert re.search("has no items_sha256, .* now is [0-9a-f]{64}", line)
