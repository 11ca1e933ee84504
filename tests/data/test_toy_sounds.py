"""Toy sounds: what an item says is what its waveform is, and the held-out combinations are never met where they must not be."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.core.errors import DataError
from soundomni.data.toys.toy_language import captions, parse_caption, questions
from soundomni.data.toys.toy_recipe import (
    CLICK_WINDOW,
    LEVELS,
    LOUDNESSES,
    NOTES,
    WAVEFORMS,
    Event,
    Recipe,
    agreement,
    all_events,
    is_held_out,
    is_recipe,
    nearest_note,
    note_frequency,
)
from soundomni.data.toys.toy_sounds import ToySounds
from soundomni.data.toys.toy_synthesis import synthesize

EVENTS = all_events()
recipes = st.lists(st.sampled_from(EVENTS), min_size=1, max_size=2).map(lambda events: Recipe(tuple(events)))


def clip_of(event: Event, *, rate: int = 8000, seed: int = 0) -> np.ndarray:
    return synthesize(Recipe((event,)), sample_rate=rate, seconds=1.0, rng=np.random.default_rng(seed))[0].astype(np.float64)


def test_item_depends_on_seed_and_index_alone() -> None:
    small, large = ToySounds(size=30, seed=3), ToySounds(size=3000, seed=3)
    for index in (29, 3, 3, 0):
        assert small.item(index) == large.item(index)
        np.testing.assert_array_equal(small.load(index)[0], large.load(index)[0])
    other = ToySounds(size=30, seed=4)
    assert any(small.recipe(index) != other.recipe(index) for index in range(5))
    with pytest.raises(IndexError):
        small.item(30)


@pytest.mark.parametrize(("rate", "seconds"), [(8000, 1.0), (16000, 0.8), (22050, 2.5)])
def test_load_is_what_the_item_announces(rate: int, seconds: float) -> None:
    data = ToySounds(size=60, sample_rate=rate, seconds=seconds, held_out="include")
    for index in range(len(data)):
        item, (waveform, loaded_rate) = data.item(index), data.load(index)
        assert waveform.dtype == np.float32 and waveform.shape == (1, item.num_samples) and loaded_rate == item.sample_rate == rate
        assert 0.02 < np.abs(waveform).max() <= 1.0
    assert len({data.item(index).key for index in range(60)}) == 60


def test_attributes_are_plain_json_and_give_the_recipe_back() -> None:
    data = ToySounds(size=200, held_out="include")
    for index in range(200):
        attributes = json.loads(json.dumps(dict(data.item(index).attributes)))
        assert Recipe.from_json(attributes) == data.recipe(index)
        assert attributes["held_out"] == is_held_out(data.recipe(index))


@settings(max_examples=150, deadline=None)
@given(recipes)
def test_captions_say_all_and_parse_back(recipe: Recipe) -> None:
    *full, plain = captions(recipe)
    assert len(full) == 4
    assert all(parse_caption(caption) == recipe for caption in full)
    assert parse_caption(full[0].capitalize() + ".") == recipe
    assert parse_caption(plain) == recipe.without_loudness() and "loud" not in plain and "quiet" not in plain


@pytest.mark.parametrize(
    ("text", "events"),
    [
        ("a rising sine tone, then two clicks", [Event(kind="chirp", direction="rising"), Event(kind="clicks", clicks=2)]),
        ("a loud sine tone at A4", [Event(kind="tone", loudness="loud", waveform="sine", note="A4")]),
        ("Quiet white noise, then three clicks.", [Event(kind="noise", loudness="quiet", color="white"), Event(kind="clicks", clicks=3)]),
        ("a click before a square wave at Db3", [Event(kind="clicks", clicks=1), Event(kind="tone", waveform="square", note="C#3")]),
        ("noise after a falling sweep", [Event(kind="chirp", direction="falling"), Event(kind="noise")]),
        ("a tone", [Event(kind="tone")]),
    ],
)
def test_parses_captions_that_leave_attributes_open(text: str, events: list[Event]) -> None:
    assert parse_caption(text) == Recipe(tuple(events))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a dog barks",
        "a loud quiet tone",
        "loud",
        "two white clicks",
        "a rising square tone",
        "a sine tone at A4 at B4",
        "two click",
        "noise, then",
        "noise then a cat",
        "noise, then one click, then noise",
    ],
)
def test_refuses_what_is_no_caption(text: str) -> None:
    assert parse_caption(text) is None


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="abcdeA4# ,.thn", max_size=40))
def test_parser_never_fails(text: str) -> None:
    parsed = parse_caption(text)
    assert parsed is None or parsed.events


@settings(max_examples=100, deadline=None)
@given(recipes)
def test_questions_are_unique_and_answers_true(recipe: Recipe) -> None:
    pairs = dict(questions(recipe))
    assert len(pairs) == len(questions(recipe))
    assert pairs["how many events are there?"] == ("one", "two")[len(recipe.events) - 1]
    tones = [event for event in recipe.events if event.kind == "tone"]
    assert ("what is the pitch?" in pairs) == (len(tones) == 1)
    if len(tones) == 1:
        assert pairs["what is the pitch?"] == tones[0].note
    first = parse_caption(pairs["what is it?" if len(recipe.events) == 1 else "what comes first?"])
    assert first is not None and first.events[0].sound == recipe.events[0].sound


def test_held_out_combinations_never_mix() -> None:
    for events in ((1, 1), (1, 2), (2, 2)):
        train, unseen = (ToySounds(size=400, events=events, held_out=held_out) for held_out in ("exclude", "only"))
        assert not any(is_held_out(train.recipe(index)) for index in range(400))
        assert all(is_held_out(unseen.recipe(index)) for index in range(400))


def test_held_out_share_and_every_attribute_in_training() -> None:
    tones = [event for event in EVENTS if event.kind == "tone"]
    held = [event for event in tones if is_held_out(Recipe((event,)))]
    assert (len(held), len(tones)) == (26, 192)
    data = ToySounds(size=3000)
    events = [event for index in range(3000) for event in data.recipe(index).events]
    for attribute in ("kind", "loudness", "waveform", "note", "direction", "clicks", "color"):
        assert {getattr(event, attribute) for event in events} == {getattr(event, attribute) for event in EVENTS}
    assert {(event.waveform, event.loudness) for event in events if event.kind == "tone"} == {(w, v) for w in WAVEFORMS for v in LOUDNESSES}
    pairs = [data.recipe(index).events for index in range(3000) if len(data.recipe(index).events) == 2]
    sounds = {event.sound for event in EVENTS}
    assert {first.sound for first, _ in pairs} == {second.sound for _, second in pairs} == sounds
    assert len({(first.sound, second.sound) for first, second in pairs}) == 91  # of 100


def test_shares_of_kinds() -> None:
    data = ToySounds(size=4000, held_out="include", events=(1, 1))
    kinds = [data.recipe(index).events[0].kind for index in range(4000)]
    # four standard deviations of a share of 0.4 or 0.2 in 4000 draws are about 0.03
    for kind, share in {"tone": 0.4, "chirp": 0.2, "clicks": 0.2, "noise": 0.2}.items():
        assert kinds.count(kind) / 4000 == pytest.approx(share, abs=0.03)


def test_subsets() -> None:
    data = ToySounds(size=100, kinds=["sine", "clicks"], notes=["A3", "A4"], held_out="include")
    events = {event for index in range(100) for event in data.recipe(index).events}
    assert {event.sound for event in events} == {"sine", "clicks"}
    assert {event.note for event in events if event.kind == "tone"} == {"A3", "A4"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": ["sin"]}, "Did you mean 'sine'"),
        ({"notes": ["A5"]}, "Did you mean 'A"),
        ({"notes": []}, "at least one note"),
        ({"kinds": "tone"}, "expected a list"),
        ({"held_out": "exclud"}, "Did you mean 'exclude'"),
        ({"events": (0, 1)}, r"\[1, 2\]"),
        ({"events": (2, 3)}, r"\[1, 2\]"),
        ({"sample_rate": 4000}, "at least 6000"),
        ({"seconds": 0.5}, "at least 0.8"),
        ({"size": 0}, "size 0"),
        ({"size": 10**12}, "a size of 1 to 10,000,000"),
        ({"seed": 2**80}, "a seed of 0 to 9223372036854775807"),
        ({"sample_rate": 10**9}, "is too high; expected at least 6000 and at most 192000"),
        *(({"seconds": value}, "expected at most 120") for value in (float("nan"), float("inf"), 1e12)),
        *(({"variation": value}, "expected 0 to 1") for value in (float("nan"), float("inf"), -0.1)),
        *(({"detune": value}, "from 0 to below 50") for value in ((float("nan"), 1.0), (0.0, float("inf")), (0.0, float("nan")))),
        ({"events": (1, 10**9)}, r"\[1, 2\]"),
        ({"seed": -1}, "seed -1"),
        ({"detune": (10.0, 50.0)}, "from 0 to below 50"),
        ({"detune": (20.0, 10.0)}, "from 0 to below 50"),
        ({"detune": (-5.0, 5.0)}, "from 0 to below 50"),
        ({"detune": (float("nan"), 5.0)}, "from 0 to below 50"),
        ({"kinds": ["chirp"], "events": (1, 1), "held_out": "only"}, "no sound of 1 event"),
    ],
)
def test_wrong_arguments_are_named_in_one_line(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        ToySounds(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_first_captions_tell_all_events_apart() -> None:
    prompts = [captions(Recipe((event,)))[0] for event in EVENTS if not is_held_out(Recipe((event,)))]
    assert len(prompts) == len(set(prompts)) == 210 - 26
    assert {parse_caption(prompt) for prompt in prompts} == {Recipe((event,)) for event in EVENTS if not is_held_out(Recipe((event,)))}


def test_notes() -> None:
    assert len(NOTES) == 24 and note_frequency("A4") == 440.0
    assert note_frequency("C3") == pytest.approx(130.8128, abs=1e-3)
    for note in NOTES:
        frequency = note_frequency(note)
        assert nearest_note(frequency * 2 ** (0.49 / 12)) == note == nearest_note(frequency * 2 ** (-0.49 / 12))
        assert nearest_note(frequency * 2 ** (0.51 / 12)) != note


@pytest.mark.parametrize("loudness", LOUDNESSES)
def test_levels_are_exact(loudness: str) -> None:
    expected = 10 ** (LEVELS[loudness] / 20)
    for event in all_events(notes=["C3"], loudnesses=[loudness]):
        sound = clip_of(event)
        if event.kind == "clicks":
            energy = np.sum(sound**2) / event.clicks / (CLICK_WINDOW * 8000)
            assert np.sqrt(energy) == pytest.approx(expected, rel=1e-3)
        else:  # the fades of 8 ms are left out; a band of noise fluctuates within a clip, but not by more than this
            active = np.flatnonzero(sound)
            inside = sound[active[0] + 64 : active[-1] - 64]
            assert np.sqrt(np.mean(inside**2)) == pytest.approx(expected, rel=0.03)
    assert LEVELS["loud"] - LEVELS["quiet"] == 12.0


@pytest.mark.parametrize(
    ("waveform", "series"),
    [
        ("sine", [1, 0, 0, 0, 0, 0, 0]),
        ("square", [1, 0, 1 / 3, 0, 1 / 5, 0, 1 / 7]),
        ("sawtooth", [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6, 1 / 7]),
        ("triangle", [1, 0, 1 / 9, 0, 1 / 25, 0, 1 / 49]),
    ],
)
def test_tone_has_its_fourier_series_and_nothing_aliases(waveform: str, series: list[float]) -> None:
    sound = clip_of(Event(kind="tone", waveform=waveform, note="A3", loudness="loud"))
    amplitude = np.abs(np.fft.rfft(sound[1600:5600]))  # half a second: 110 whole periods of 220 Hz
    np.testing.assert_allclose(amplitude[110:771:110] / amplitude[110], series, atol=1e-3)
    between = np.delete(amplitude, np.arange(0, 2001, 110))
    assert between.max() < 1e-3 * amplitude[110]


def test_noise_stays_in_its_band() -> None:
    for color, low, high in (("white", 0, 4000), ("low", 0, 700), ("high", 2000, 4000)):
        sound = clip_of(Event(kind="noise", color=color, loudness="loud"))
        frequency, power = np.fft.rfftfreq(8000, 1 / 8000), np.abs(np.fft.rfft(sound)) ** 2
        # cutting a clip out of the periodic noise and fading it leaks a little beyond the edges
        inside = (frequency >= low - 40) & (frequency <= high + 40)
        assert power[inside].sum() > 0.99 * power.sum()
        assert power[(frequency > low + 0.75 * (high - low)) & (frequency < high)].sum() > 0.1 * power.sum()


def test_events_are_apart_and_have_no_accidental_clicks() -> None:
    data = ToySounds(size=80, events=(2, 2), kinds=["tone", "chirp", "noise"], held_out="include")
    for index in range(80):
        sound = data.load(index)[0][0]
        active = np.flatnonzero(np.abs(sound) > 1e-3)
        assert np.diff(active).max() > 0.175 * 8000
        assert np.abs(sound[[active[0], active[-1]]]).max() < 0.05 * np.abs(sound).max()


def test_agreement_judges_attribute_by_attribute() -> None:
    tone, clicks = Event(kind="tone", waveform="sine", note="A4", loudness="loud"), Event(kind="clicks", clicks=2, loudness="quiet")
    recipe = Recipe((tone, clicks))
    everything = dict.fromkeys(("events", "kinds", "order", "waveform", "pitch", "clicks", "loudness"), True)
    assert agreement(recipe, recipe) == everything
    assert agreement(recipe, Recipe((clicks, tone))) == {**everything, "order": False}
    wrong = Recipe((Event(kind="tone", waveform="sine", note="G4", loudness="quiet"), clicks))
    assert agreement(recipe, wrong) == {**everything, "pitch": False, "loudness": False}
    assert agreement(recipe, None) == dict.fromkeys(everything, False)
    assert agreement(Recipe((clicks,)), recipe) == {"events": False, "kinds": False, "clicks": True, "loudness": True}
    assert Recipe.from_json({"events": [{"kind": "noise", "colour": "low"}]}) == Recipe((Event(kind="noise", color="low"),)), "older files"
    assert is_recipe({"events": [{"kind": "noise", "colour": "low"}]}) and not is_recipe({"events": [{"kind": "noise", "colours": "low"}]})
    assert agreement(Recipe((Event(kind="noise"),)), Recipe((Event(kind="noise", color="low"),))) == {"events": True, "kinds": True}


def test_without_variation_a_recipe_is_one_sound_but_for_its_noise() -> None:
    def clips(variation: float) -> dict[str, list[np.ndarray]]:
        dataset = ToySounds(size=400, events=(1, 1), notes=["A3"], variation=variation)
        found: dict[str, list[np.ndarray]] = {}
        for i in range(len(dataset)):
            found.setdefault(dataset.item(i).captions[0], []).append(dataset.load(i)[0])
        return found

    for caption, same in clips(0.0).items():
        spread = max(float(np.abs(same[0] - other).max()) for other in same)
        assert (spread > 0.01) == ("noise" in caption), caption
    varied = clips(1.0)["a loud sine tone at A3"]
    assert max(float(np.abs(varied[0] - other).max()) for other in varied) > 0.01
    with pytest.raises(DataError, match="variation is 2"):
        ToySounds(variation=2)


def test_detuned_tones_keep_their_recipe_and_stay_nearest_to_their_note() -> None:
    plain, detuned = ToySounds(size=80, seed=2), ToySounds(size=80, seed=2, detune=(20.0, 40.0))
    signs = set()
    for index in range(80):
        recipe, cents = plain.recipe(index), detuned.item(index).attributes["detune"]
        assert detuned.recipe(index) == recipe and "detune" not in plain.item(index).attributes
        assert detuned.item(index).questions == plain.item(index).questions
        for event, off in zip(recipe.events, cents, strict=True):
            assert 20.0 <= abs(off) <= 40.0 if event.kind == "tone" else off == 0.0
            if event.kind == "tone":
                signs.add(off > 0)
                assert nearest_note(note_frequency(str(event.note)) * 2 ** (off / 1200)) == event.note
        has_tone = any(event.kind == "tone" for event in recipe.events)
        assert np.array_equal(plain.load(index)[0], detuned.load(index)[0]) == (not has_tone)
    assert signs == {True, False}


def test_a_detuned_sine_has_its_frequency() -> None:
    dataset = ToySounds(size=1, kinds=["sine"], notes=["A4"], events=(1, 1), seconds=4.0, detune=(30.0, 30.0), held_out="include")
    (cents,) = dataset.item(0).attributes["detune"]
    waveform, rate = dataset.load(0)
    spectrum = np.abs(np.fft.rfft(waveform[0] * np.hanning(waveform.shape[1]), 1 << 19))
    assert np.argmax(spectrum) * rate / (1 << 19) == pytest.approx(440.0 * 2 ** (cents / 1200), abs=0.05)
