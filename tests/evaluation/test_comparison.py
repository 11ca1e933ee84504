"""What a codec does to a file is measured at the codec's rate and at the file's own, and what its rate leaves out is said."""

import numpy as np
import pytest

from soundomni import Audio
from soundomni.core.waveform import resample
from soundomni.evaluation import compare, comparison_text
from soundomni.evaluation.tasks.reconstruction import reconstruction_scores


def tones(rate: int, *parts: tuple[float, float], channels: int = 1, seconds: float = 0.5) -> Audio:
    """A sum of sines of (frequency, amplitude)."""
    time = np.arange(round(rate * seconds)) / rate
    waveform = sum(amplitude * np.sin(2 * np.pi * hertz * time) for hertz, amplitude in parts)
    return Audio(np.repeat(np.asarray(waveform, np.float32)[None], channels, axis=0), rate)


def through(clip: Audio, rate: int) -> Audio:
    """The clip as a perfect codec of that rate returns it."""
    return Audio(resample(clip.waveform, clip.sample_rate, rate), rate)


@pytest.mark.parametrize(("rate", "codec"), [(44100, 8000), (48000, 16000), (22050, 8000)])
def test_what_lies_above_the_codecs_rate_counts_at_the_files_own(rate: int, codec: int) -> None:
    low, high = (500.0, 0.2), (0.3 * rate, 0.2)
    clip = tones(rate, low, high)
    found = compare(clip, through(clip, codec))
    assert found.at_codec["si_sdr"] > 60  # all that the codec was given came back
    assert found.at_file["si_sdr"] == pytest.approx(0.0, abs=0.5)  # half of the file's energy did not
    assert found.energy_above == pytest.approx(0.5, abs=0.01)
    assert found.at_file["mel_distance"] > 10 * found.at_codec["mel_distance"]
    assert (found.file_rate, found.codec_rate, found.kept_hz) == (rate, codec, codec / 2)
    text = comparison_text(found)
    assert f"codec at {codec} Hz, keeps 0-{codec // 2} Hz" in text and f"file at {rate} Hz" in text and " % of its energy above" in text


def test_files_that_the_codec_can_hold_lose_nothing() -> None:
    for rate in (6000, 8000):
        clip = tones(rate, (500.0, 0.2))
        found = compare(clip, through(clip, 8000))
        assert found.energy_above == 0.0 and min(found.at_file["si_sdr"], found.at_codec["si_sdr"]) > 40
    assert found.at_file == found.at_codec and "the file has the same rate" in comparison_text(found)


def test_channels_are_mixed_as_for_the_codec() -> None:
    clip = tones(44100, (500.0, 0.2), (9000.0, 0.4), channels=2)
    found = compare(clip, Audio(through(clip, 8000).waveform[:1], 8000))
    assert found.at_codec["si_sdr"] > 60 and found.energy_above == pytest.approx(0.8, abs=0.01)
    data = found.to_json()
    assert data["codec_keeps_hz"] == [0, 4000.0] and data["file_sample_rate"] == 44100 and data["si_sdr_file"] < 0


def test_silence_and_single_samples_are_measured() -> None:
    for samples in (1, 2, 300):
        clip = Audio(np.zeros((1, samples), np.float32), 44100)
        found = compare(clip, through(clip, 8000))
        assert found.at_file["si_sdr"] is None and found.energy_above == 0.0 and "undefined (silence)" in comparison_text(found)


def test_a_codec_without_phases_has_no_si_sdr() -> None:
    clip = tones(44100, (500.0, 0.2))
    made = through(clip, 8000)
    found, usual = compare(clip, made, keeps_waveform=False), compare(clip, made)
    assert found.at_codec["si_sdr"] is None and found.at_file["si_sdr"] is None
    for name in ("stft_distance", "mel_distance"):
        assert found.at_codec[name] == usual.at_codec[name] and found.at_file[name] == usual.at_file[name]
    text = comparison_text(found)
    assert text.count("SI-SDR n/a (no phases)") == 2 and "undefined" not in text and "n/a" not in comparison_text(usual)
    data = found.to_json()
    assert data["si_sdr"] is None and data["si_sdr_file"] is None and data["mel_distance"] is not None
    assert reconstruction_scores([found]).keys() == reconstruction_scores([usual]).keys() - {"si_sdr", "si_sdr_file"}
