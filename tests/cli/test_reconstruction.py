"""What a codec does to a file is measured at the codec's rate and at the file's own, and what its rate leaves out is said."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from soundomni.cli.main import main
from soundomni.core.waveform import Audio, resample
from soundomni.data.toys.toy_sounds import ToySounds
from soundomni.evaluation.clips import Clips
from soundomni.evaluation.measure import lines, score
from soundomni.evaluation.reconstruction import compare


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
    told = found.told()
    assert f"codec at {codec} Hz, keeps 0-{codec // 2} Hz" in told and f"file at {rate} Hz" in told and " % of its energy above" in told


def test_files_that_the_codec_can_hold_lose_nothing() -> None:
    for rate in (6000, 8000):
        clip = tones(rate, (500.0, 0.2))
        found = compare(clip, through(clip, 8000))
        assert found.energy_above == 0.0 and min(found.at_file["si_sdr"], found.at_codec["si_sdr"]) > 40
    assert found.at_file == found.at_codec and "the file has the same rate" in found.told()


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
        assert found.at_file["si_sdr"] is None and found.energy_above == 0.0 and "undefined (silence)" in found.told()


def test_reconstruct_reports_both_rates(tiny_model: Path, tmp_path: Path, result: Any) -> None:
    for name, clip in (("high", tones(44100, (500.0, 0.2), (9000.0, 0.2))), ("low", tones(8000, (500.0, 0.2)))):
        soundfile.write(tmp_path / f"{name}.wav", clip.waveform.T, clip.sample_rate)
    paths = [tmp_path / "high.wav", tmp_path / "low.wav"]
    high, low = result("reconstruct", *paths, "--model", tiny_model, "--out", tmp_path / "out")["files"]
    assert (high["file_sample_rate"], high["codec_sample_rate"], low["file_sample_rate"]) == (44100, 8000, 8000)
    assert high["si_sdr"] > 50 and abs(high["si_sdr_file"]) < 1 and high["energy_above"] == pytest.approx(0.5, abs=0.01)
    assert low["si_sdr"] == low["si_sdr_file"] and low["energy_above"] == 0.0


def test_evaluate_names_the_rates_and_what_the_codec_leaves_out(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, rate in enumerate((44100, 44100, 8000)):
        soundfile.write(tmp_path / f"{i}.wav", tones(rate, (500.0, 0.2), (0.4 * rate, 0.2)).waveform.T, rate)
    dataset = f"{{class_path: audio-folder, init_args: {{path: '{tmp_path}', captions: false}}}}"
    assert main(["evaluate", "--model", str(tiny_model), "--dataset", dataset]) == 0
    out = capsys.readouterr().out
    assert "the codec is at 8000 Hz and keeps 0-4000 Hz; files: 1 at 8000 Hz, 2 at 44100 Hz" in out
    rows = {row.split()[1]: row.split() for row in out.splitlines() if row.startswith("reconstructed  ")}
    assert float(rows["si_sdr"][2]) > 50 > float(rows["si_sdr_file"][2]) and rows["energy_above"][2:4] == ["33.3", "%"]


def test_scores_at_the_files_rate_are_only_listed_if_it_differs() -> None:
    from soundomni.evaluation.measure import Outcome

    data = ToySounds(size=2)
    clips = [Audio(*data.load(i)) for i in range(2)]
    same = Outcome(items=[data.item(i) for i in range(2)], clips=clips, unreadable=0, reconstructed=[compare(c, c) for c in clips])
    result = score(same)
    assert result["reconstructed"].keys() == {"si_sdr", "stft_distance", "mel_distance"}
    assert result["rates"] == {"codec": 8000, "codec_keeps_hz": [0, 4000.0], "files": {"8000": 2}}
    assert "reconstructed: the codec is at 8000 Hz and keeps 0-4000 Hz; files: 2 at 8000 Hz" in lines(result)


def test_clips_of_an_evaluation_are_read_when_they_are_needed() -> None:
    class Counting(ToySounds):
        """Toy sounds that count how often they are read."""

        reads = 0

        def load(self, index: int) -> tuple[np.ndarray, int]:
            self.reads += 1
            return super().load(index)

    data = Counting(size=6)
    size = data.load(0)[0].nbytes
    whole, few = Clips(data, range(6)), Clips(data, range(6), kept_bytes=2 * size)
    data.reads = 0
    for _ in range(3):
        assert len(list(whole)) == 6
    assert data.reads == 6
    for _ in range(3):
        assert len(list(few)) == 6 and few._bytes <= 2 * size
    assert data.reads == 6 + 18
    chosen = few.at([5, 3])
    assert [np.array_equal(chosen[i].waveform, ToySounds.load(data, k)[0]) for i, k in ((0, 5), (1, 3), (-1, 3))] == [True] * 3
    assert len(chosen) == 2 and len(chosen[:5]) == 2
