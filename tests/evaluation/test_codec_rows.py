"""The table of a codec: bit rates in closed form, means over clips, and which numbers of levels there are."""

import numpy as np
import pytest

from soundomni import Audio
from soundomni.core.errors import SpecError
from soundomni.core.representation import RepresentationSpec
from soundomni.evaluation import codec_table, compare
from soundomni.evaluation.codec_rows import bits_per_second, levels_to_measure

CODES = RepresentationSpec(kind="codes", sample_rate=8000, channels=1, downsampling_ratio=50, codebook_sizes=(1000, 64, 2), extra_frames=1)
LATENTS = RepresentationSpec(kind="continuous", sample_rate=8000, channels=1, downsampling_ratio=50, latent_dim=3)


def test_bit_rates_are_those_of_the_levels_that_are_decoded() -> None:
    rates = [bits_per_second(CODES, levels) for levels in (1, 2, 3, None)]
    first = 160 * np.log2(1000)
    assert rates == pytest.approx([first, first + 960, first + 1120, first + 1120])
    assert bits_per_second(LATENTS, None) is None


def test_levels_are_counted_from_the_first() -> None:
    assert levels_to_measure(CODES, 2) == [1, 2] and levels_to_measure(CODES, None) == [3]
    assert levels_to_measure(LATENTS, None) == [None]
    for levels in (0, 4):
        with pytest.raises(SpecError, match=f"^--levels is {levels}; expected a number from 1 to 3, the levels of this codec"):
            levels_to_measure(CODES, levels, name="--levels")
    with pytest.raises(SpecError, match="levels is 1, but this codec makes latents"):
        levels_to_measure(LATENTS, 1)


def test_every_clip_counts_once_in_every_row() -> None:
    rng = np.random.default_rng(0)
    clips = [Audio(rng.standard_normal((1, samples)).astype(np.float32), 8000) for samples in (300, 9000)]
    clips.append(Audio(np.zeros((1, 500), np.float32), 8000))
    noise = [rng.standard_normal(clip.waveform.shape).astype(np.float32) for clip in clips]
    compared = [
        [compare(clip, Audio(clip.waveform + share * some, 8000)) for share in (0.5, 0.0)] for clip, some in zip(clips, noise, strict=True)
    ]
    rows = codec_table(CODES, [1, 3], compared)
    assert [(row.levels, row.clips) for row in rows] == [(1, 3), (3, 3)]
    for row, place in zip(rows, (0, 1), strict=True):
        for name, of in (("si_sdr", 2), ("stft_distance", 2), ("mel_distance", 3)):
            values = [one[place].at_codec[name] for one in compared]
            assert row.scores[name].of == of
            assert row.scores[name].value == pytest.approx(np.mean([value for value in values if value is not None]))
        assert row.scores["bandwidth_file"].of == 2 and row.scores["bandwidth"].of == (3 if place == 0 else 2)
    assert rows[1].scores["si_sdr"].value == 100.0 and rows[1].scores["mel_distance"].value == 0.0
    data = rows[0].to_json()
    assert data["kbit_per_second"] == pytest.approx(0.16 * np.log2(1000)) and data["of"]["si_sdr"] == 2
