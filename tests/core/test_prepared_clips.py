"""A model prepares the clips that it hears, keeps and varies as its training did, and its directory says how."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_models import RATE, TOKENIZER, make_model, model_spec

from soundomni.core.errors import SpecError
from soundomni.core.inference.editing import Kept
from soundomni.core.inference.prepared_clips import prepared_kept
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.spec.load import load_spec
from soundomni.core.spec.schema import ClipSpec, DataSpec, MixtureEntry, Slot, Spec
from soundomni.core.waveform import Audio
from soundomni.core.writing.preparing import prepared

CLIPS = ClipSpec(cut="onset", seconds=0.2, peak=0.9)
RAW = Audio(
    np.pad(0.3 * np.random.default_rng(0).standard_normal((2, 400)) * np.exp(-np.arange(400) / 90), ((0, 0), (100, 0))).astype("f4"), RATE
)


def omni(clips: ClipSpec | None) -> SoundOmni:
    return SoundOmni(make_model().float(), Spec(model=replace(model_spec(), clips=clips)), TOKENIZER)


PREPARING, PLAIN = omni(CLIPS), omni(None)


def test_what_is_heard_is_prepared() -> None:
    texts = PREPARING.describe([RAW, prepared(RAW, CLIPS)], max_new_tokens=8)
    assert texts == PLAIN.describe([prepared(RAW, CLIPS)] * 2, max_new_tokens=8)
    assert "".join(PREPARING.stream(RAW, max_new_tokens=8)) == texts[0]
    asked = PREPARING.describe(RAW, question="one?", max_new_tokens=8)
    assert asked == PLAIN.describe(prepared(RAW, CLIPS), question="one?", max_new_tokens=8)
    (segment,) = [one for one in PREPARING.contexts.clip(RAW, None) if one.waveform is not None]
    assert segment.waveform is not None and segment.waveform.shape == (1, 200)


def made(model: SoundOmni, **arguments: object) -> np.ndarray:
    (clip,) = model.make("one", seconds=0.3, num_steps=2, **arguments)  # type: ignore[arg-type]
    return clip.values.numpy()


def test_what_is_varied_is_prepared() -> None:
    found = made(PREPARING, vary=RAW, strength=0.3)
    np.testing.assert_array_equal(found, made(PLAIN, vary=prepared(RAW, CLIPS), strength=0.3))
    assert not np.array_equal(found, made(PLAIN, vary=RAW, strength=0.3))


def test_what_is_kept_begins_at_the_onset_and_its_spans_stay_at_the_same_sounds() -> None:
    spans = [(0.15, 0.2), (0.05, 0.12)]
    kept = prepared_kept(Kept(RAW, spans), CLIPS)
    whole = prepared(RAW, CLIPS)
    begin = 500 - kept.clip.waveform.shape[1]
    np.testing.assert_allclose(kept.clip.waveform[:, :150], whole.waveform[:, :150], rtol=1e-6)
    assert 90 <= begin <= 100 and kept.spans == [(0.15 - begin / RATE, 0.2 - begin / RATE), (0.0, 0.12 - begin / RATE)]
    np.testing.assert_array_equal(made(PREPARING, known=Kept(RAW, spans)), made(PLAIN, known=kept))


def test_a_span_before_the_onset_is_refused_in_one_line() -> None:
    with pytest.raises(SpecError) as error:
        PREPARING.generate("one", seconds=0.3, known=Kept(RAW, [(0.0, 0.05)]))
    assert str(error.value).startswith("the span to keep is (0.0, 0.05), but the model takes this clip from 0.09")
    nan, inf = float("nan"), float("inf")
    for wrong in [(-0.1, 0.2), (0.2, 0.1), (0.2, 9.0), (0.2, inf), (nan, 0.2), (0.2, nan), (-inf, 0.2), (0.2, 0.2)]:
        with pytest.raises(SpecError) as error:
            PREPARING.generate("one", seconds=0.3, known=Kept(RAW, [wrong]))
        assert str(error.value).startswith(f"the span to keep is {wrong}; expected (from, to) with ")


def test_a_random_place_takes_the_start_and_moves_nothing_that_is_kept() -> None:
    clips = ClipSpec(cut="random", seconds=0.2, trim=20.0)
    assert prepared_kept(Kept(RAW, [(0.0, 0.1)]), clips) == Kept(RAW, [(0.0, 0.1)])
    assert prepared(RAW, ClipSpec(cut="random", seconds=0.2)) == Audio(RAW.waveform[:, :200], RATE)


def test_a_model_directory_keeps_what_the_datasets_agreed_on(tmp_path: Path) -> None:
    entry = MixtureEntry(source=Slot("toy-sounds"), clips=CLIPS)
    spec = Spec(model=model_spec(), data=DataSpec(datasets={"a": entry, "b": entry, "c": None}))
    trained = SoundOmni(PLAIN.model, spec, TOKENIZER)
    assert trained.clips == CLIPS
    path = trained.save_pretrained(tmp_path / "model")
    loaded = SoundOmni.from_pretrained(path)
    assert loaded.clips == CLIPS and loaded.spec.data is None
    assert load_spec([path / "spec.yaml"], base={}).of_model.clips == CLIPS
    assert SoundOmni.from_pretrained(path, overrides={"model.clips": None}).clips is None
    assert SoundOmni.from_pretrained(path, overrides={"model.clips.peak": 0.5}).clips == replace(CLIPS, peak=0.5)
    with pytest.raises(SpecError, match=r"model\.clips\.peak is 2; expected above 0 and at most 1"):
        SoundOmni.from_pretrained(path, overrides={"model.clips.peak": 2})


def test_clips_without_a_length_get_that_of_training() -> None:
    for asked in ("one", ["one", "two"]):
        lengths = [clip.waveform.shape[1] for clip in PREPARING.generate(asked, num_steps=1)]
        assert lengths == [200] * len(lengths)
        assert [len(clip.values[0, 0]) for clip in PREPARING.make(asked, num_steps=1)] == [
            len(clip.values[0, 0]) for clip in PREPARING.make(asked, seconds=0.2, num_steps=1)
        ]
    for model in (PLAIN, omni(ClipSpec(peak=0.9))):
        with pytest.raises(SpecError) as error:
            model.generate("one", num_steps=1)
        assert str(error.value).startswith("seconds is missing, and the model was not trained on clips of one length.")
