"""What is said before the first step: how many clips are used and why not all, and what a codec keeps of their sound."""

import logging

import numpy as np
import pytest
import soundfile

from soundomni.core.interfaces import FeatureSpec, Skip
from soundomni.core.spec.schema import ClipSpec, DataSpec
from soundomni.data.audio_folder import AudioFolder
from soundomni.data.loader import PackedLoader
from soundomni.data.mixture import Mixture, Source
from soundomni.data.prepared import Prepared
from soundomni.data.rates import MEASURED_CLIPS, describe_rates
from soundomni.data.usage import LOOKED_AT, MOST_ITEMS, survey

SPEC = DataSpec(datasets={}, tokens_per_batch=400, max_tokens_per_sample=300, workers=0)


def mix(dataset, tasks, **use):
    return Mixture(sources={"mine": Source(dataset=dataset, tasks=tasks, **use)}, seed=0)


def lines(mixture, writer, spec=SPEC):
    return [line for usage in survey(mixture, writer, spec) for line in usage.describe()]


def test_clips_are_summed_by_reason_and_the_cure_is_told(ramps, make_writer):
    class Listed(ramps):
        skipped = (
            Skip("x", "bad"),
            Skip("y", "bad"),
            Skip("z", "it has no caption", "no caption"),
            Skip("v", "no", "unsuitable", "in M4A"),
        )

    data = Listed(lengths=[8000] * 3 + [50_000] * 2)  # at 8000 Hz
    told = lines(mix(data, {"describe": 1.0, "generate": 0.0}, max_seconds=5.0), make_writer())
    assert told[0] == (
        "data 'mine': 3 of 9 clips are used; left out: 2 unreadable, 2 longer than 5 s for describe, 1 without a caption, 1 in M4A"
    )
    assert told[1].startswith("  longer than 5 s for describe, such as 'ramp-3': it lasts 6.25 s, but task 'describe' accepts at most 5 s")
    assert "raise max_seconds of its dataset" in told[1] and "shorter ones" in told[1] and len(told) == 2
    told = lines(mix(data, {"describe": 1.0, "generate": 2.0}, max_seconds=3.0), make_writer())
    assert told[0].startswith("data 'mine': 5 of 9 clips are used; ") and told[0].endswith("; used in part: 2 longer than 3 s for describe")


@pytest.mark.parametrize("seconds", [6.25, 40.0])
@pytest.mark.parametrize("limit", [None, 5.0])
def test_clips_that_their_own_length_makes_too_long_name_that_length_as_the_cure(ramps, make_writer, seconds, limit):
    """The files may be short, and another max_seconds would be refused."""
    writer = make_writer(encoder=FeatureSpec(sample_rate=4000, feature_dim=8, max_seconds=limit))
    told = lines(mix(Prepared(ramps(lengths=[8000]), ClipSpec(seconds=seconds)), {"describe": 1.0, "generate": 1.0}), writer)
    assert "clips.seconds" in " ".join(told[1:]) and not any("max_seconds of" in line or "the file" in line for line in told), told


@pytest.mark.parametrize(
    ("tasks", "lengths", "sums"),
    [
        (
            {"generate": 1.0},
            [8000, 80_000],
            "1 of 2 clips are used; left out: 1 longer than 300 tokens for generate (data.max_tokens_per_sample)",
        ),
        ({"answer": 1.0, "generate": 1.0}, [8000], "1 of 1 clips are used; used in part: 1 without a question for answer"),
        ({"answer": 1.0}, [8000], "0 of 1 clips are used; left out: 1 without a question for answer"),
        (
            {"describe": 1.0, "answer": 1.0},
            [160_000],
            "0 of 1 clips are used; left out: "
            "1 longer than 300 tokens for describe (data.max_tokens_per_sample) and without a question for answer",
        ),
        ({"generate": 1.0}, [8000, 9000], "2 of 2 clips are used"),
    ],
)
def test_every_reason_of_the_planner_is_a_group(ramps, make_writer, tasks, lengths, sums):
    assert lines(mix(ramps(lengths=lengths), tasks), make_writer())[0] == f"data 'mine': {sums}"


def test_a_sample_over_the_limit_says_how_far_to_raise_it(ramps, make_writer):
    told = lines(mix(ramps(lengths=[40_000]), {"generate": 1.0}), make_writer())[1]
    length = int(told.partition(" tokens, the limit is 300")[0].rpartition(" ")[2])
    assert f"or raise data.max_tokens_per_sample to {length} or more, with data.tokens_per_batch" in told
    raised = DataSpec(datasets={}, tokens_per_batch=length, max_tokens_per_sample=length)
    assert lines(mix(ramps(lengths=[40_000]), {"generate": 1.0}), make_writer(), raised) == ["data 'mine': 1 of 1 clips are used"]


def test_very_many_clips_are_sampled_and_it_is_said(ramps, make_writer):
    data = ramps(lengths=[800] * MOST_ITEMS + [80_000])
    (usage,) = survey(mix(data, {"generate": 1.0}), make_writer(), SPEC)
    assert (usage.listed, usage.looked_at) == (MOST_ITEMS + 1, LOOKED_AT)
    assert usage.describe()[0].startswith(
        "data 'mine': 10,001 clips are listed; of 2,000 that were checked, 1,999 are used; left out: 1 longer"
    )
    (usage,) = survey(mix(data, {"generate": 1.0}, num_used=10), make_writer(), SPEC)
    assert usage.describe()[0].startswith("data 'mine': 10 of 10,001 clips are used; left out: 9,991 beyond num_used")


def test_nothing_is_decoded_to_count(ramps, make_writer):
    class Sealed(ramps):
        def load(self, index):
            raise AssertionError("decoded")

    assert lines(mix(Sealed(lengths=[8000] * 3), {"generate": 1.0, "describe": 1.0}), make_writer()) == [
        "data 'mine': 3 of 3 clips are used"
    ]


def test_what_was_told_in_sums_is_not_told_again_clip_by_clip(ramps, make_writer, caplog):
    mixture = mix(ramps(lengths=[8000] * 4 + [60_000] * 30), {"describe": 1.0, "generate": 1.0}, max_seconds=5.0)
    told = {group for usage in survey(mixture, make_writer(), SPEC) for group in usage.examples}
    for groups, records in ((told, 0), ((), 4)):  # without sums: three examples, and that there are more
        caplog.clear()
        with (
            caplog.at_level(logging.WARNING, "soundomni.data"),
            PackedLoader(mixture=mixture, writer=make_writer(), spec=SPEC, told=groups) as loader,
        ):
            steps = [next(loader) for _ in range(10)]
        assert len(caplog.records) == records and sum(step.counts["refused"] for step in steps) > 5


def folder(root, tones):
    for i, (hertz, rate, seconds) in enumerate(tones):
        soundfile.write(root / f"{i:02}.wav", 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate), rate)
    return mix(AudioFolder(path=str(root), captions=False), {"generate": 1.0})


def test_rates_and_the_share_that_a_codec_keeps(tmp_path):
    mixture = folder(tmp_path, [(1000, 44100, 0.2)] * 3 + [(9000, 48000, 0.2)])
    line = describe_rates(mixture, "mine", codec_rate=8000)
    assert line.startswith(
        "data 'mine': files are at 44100 Hz (3), 48000 Hz (1); the codec works at 8000 Hz and keeps 0-4000 Hz, 75% of their energy"
    )
    assert "over 4 clips; 1 of these loses more than half" in line
    assert describe_rates(mixture, "mine", codec_rate=48000).endswith("keeps 0-24000 Hz, which covers their full bandwidth")


def test_what_is_measured_is_bounded_and_survives_broken_files(tmp_path):
    mixture = folder(tmp_path, [(1000, 16000, 0.05)] * (MEASURED_CLIPS + 5))
    assert f"100% of their energy on average over {MEASURED_CLIPS} clips" in describe_rates(mixture, "mine", codec_rate=8000)
    for i in range(MEASURED_CLIPS + 4):
        (tmp_path / f"{i:02}.wav").write_bytes(b"noise")
    line = describe_rates(mixture, "mine", codec_rate=8000)
    assert "over 1 clip" in line or "could be read" in line
    long = tmp_path / "long"
    long.mkdir()
    assert "no clip of at most 60 s could be read" in describe_rates(folder(long, [(100, 200, 61)]), "mine", codec_rate=100)
