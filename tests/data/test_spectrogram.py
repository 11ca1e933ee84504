"""Pictures of sounds: what they show, that any clip can be drawn, and that a file is whole or not there."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from soundomni.core.errors import DataError
from soundomni.data.spectrogram import log_spectrogram, save_spectrogram


def sine(frequency: float, rate: int, *, amplitude: float = 0.5, seconds: float = 1.0) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)[None]


@pytest.mark.parametrize("rate", [8000, 44100])
@pytest.mark.parametrize("frequency", [110.0, 1000.0, 3000.0])
def test_a_sine_is_at_its_frequency_and_level(rate: int, frequency: float) -> None:
    level, rows, times = log_spectrogram(sine(frequency, rate), rate)
    middle = level[:, len(times) // 2]
    assert rows[middle.argmax()] == pytest.approx(frequency, rel=0.06)
    assert middle.max() == pytest.approx(20 * np.log10(0.5), abs=1.6)  # a Hann window loses up to 1.4 dB between two bins
    assert middle[np.abs(np.log2(rows / frequency)) > 1].max() < -40


def test_axes_of_the_spectrogram() -> None:
    level, rows, times = log_spectrogram(np.zeros((2, 16000), dtype=np.float32), 8000)
    assert level.shape == (len(rows), len(times)) and level.max() <= -190
    assert rows[-1] == pytest.approx(4000) and np.allclose(np.diff(np.log(rows)), np.diff(np.log(rows))[0])
    assert times[0] == 0 and times[-1] == pytest.approx(2.0, abs=0.01)


def test_long_clips_are_drawn_with_few_frames() -> None:
    level, _, times = log_spectrogram(np.zeros((1, 60 * 8000), dtype=np.float32), 8000)
    assert level.shape[1] == len(times) <= 1001 and times[-1] == pytest.approx(60, abs=0.2)


@pytest.mark.parametrize(
    "waveform",
    [
        pytest.param(np.ones((1, 1), dtype=np.float32), id="one sample"),
        pytest.param(np.ones((2, 7), dtype=np.float32), id="seven samples"),
        pytest.param(np.zeros((1, 4000), dtype=np.float32), id="silence"),
        pytest.param(np.random.default_rng(0).standard_normal((33, 900)).astype(np.float32), id="33 channels"),
        pytest.param(sine(300, 8000, seconds=10.0), id="long"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_any_clip_can_be_drawn(tmp_path: Path, waveform: np.ndarray) -> None:
    path = save_spectrogram(tmp_path / "clip.png", waveform, 8000, title="costs $5_per^clip")
    picture = imread(path)
    assert picture.shape == (500, 800, 4) and picture.std() > 0.05
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.png"]


def test_title_and_sound_are_in_the_picture(tmp_path: Path) -> None:
    plain, titled, other = (tmp_path / name for name in ("plain.png", "titled.png", "other.png"))
    save_spectrogram(plain, sine(200, 8000), 8000)
    save_spectrogram(titled, sine(200, 8000), 8000, title="a sine tone")
    save_spectrogram(other, sine(900, 8000), 8000)
    assert not np.array_equal(imread(plain), imread(titled)) and not np.array_equal(imread(plain), imread(other))
    before = plain.read_bytes()
    save_spectrogram(plain, sine(200, 8000), 8000)
    assert plain.read_bytes() == before


@pytest.mark.filterwarnings("error")
def test_letters_that_the_font_lacks_are_drawn_without_a_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    titles = ("a dog \U0001f415 barks", "狗在叫")
    pictures = [imread(save_spectrogram(tmp_path / f"{i}.png", sine(200, 8000), 8000, title=title)) for i, title in enumerate(titles)]
    blank = imread(save_spectrogram(tmp_path / "blank.png", sine(200, 8000), 8000, title=" "))
    assert all(not np.array_equal(picture[:30], blank[:30]) for picture in pictures)
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The picture of a sine without a title."""
    path = tmp_path_factory.mktemp("blank") / "a.png"
    return np.asarray(imread(save_spectrogram(path, sine(200, 8000), 8000, title=" ")))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "title",
    [
        "cash $$ money $$",
        "a $^$ sign",
        "$\\frac{1}$ and $\\notacommand{$",
        "\\ backslash \\n \\alpha_2^3 {",
        "_under_ ^hat^ & % # ~",
        "a\nnew line\r\nand a\ttab",
        "bell \x07 null \x00 escape \x1b[31m del \x7f",
        "line \u2028 separator \x0b \x0c \x1c",
        "emoji \U0001f469\u200d\U0001f680 flag \U0001f1e9\U0001f1ea",
        "lone \udce9 surrogate \ud800",
        "عربي हिन्दी ภาษาไทย עברית",
        "\u202eright to left",
        "e" + "\u0301" * 200,
        "W" * 5000,
        "long words " * 2000,
        "$" * 3000,
    ],
    ids=lambda title: ascii(title)[:20],
)
def test_titles_are_drawn_as_they_are_and_never_fail(
    tmp_path: Path, title: str, blank: np.ndarray, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(matplotlib.rcParams, "axes.formatter.use_mathtext", True)  # a user's own settings change nothing
    picture = imread(save_spectrogram(tmp_path / "a.png", sine(200, 8000), 8000, title=title))
    assert picture.shape == (500, 800, 4) and not np.array_equal(picture[:30], blank[:30])
    assert np.array_equal(picture[:, :4], blank[:, :4]) and np.array_equal(picture[:60, -8:], blank[:60, -8:])  # within its edges
    assert (picture[80:] != 1.0).mean() > 0.5 * (blank[80:] != 1.0).mean()  # and the sound keeps its place
    assert capfd.readouterr() == ("", "")


def test_markup_is_drawn_as_other_letters_are(tmp_path: Path) -> None:
    """As mathematics, "$x$" would be as wide as an x."""
    titles = ("x", "$x$", r"\$x\$")
    pictures = [imread(save_spectrogram(tmp_path / "a.png", sine(200, 8000), 8000, title=title))[:18] for title in titles]
    widths = [np.ptp(np.nonzero((picture[..., :3] < 0.5).any(axis=(0, 2)))[0]) for picture in pictures]
    assert widths[0] < widths[1] < widths[2] < 60


def test_unwritable_paths_are_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "directory.png").mkdir()
    for path in (tmp_path / "missing" / "clip.png", tmp_path / "file" / "clip.png", tmp_path / "directory.png"):
        with pytest.raises(DataError, match=str(path)) as caught:
            save_spectrogram(path, sine(200, 8000), 8000)
        assert "\n" not in str(caught.value)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["directory.png", "file"]  # nothing half-written is left


@pytest.mark.parametrize("waveform", [np.zeros((1, 0)), np.zeros(5), np.array([[np.nan, 0.0]])])
def test_refuses_what_is_no_clip(tmp_path: Path, waveform: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"expected \[C, S\]"):
        save_spectrogram(tmp_path / "clip.png", waveform, 8000)


def test_replaces_a_picture_and_keeps_usual_permissions(tmp_path: Path) -> None:
    path, plain = tmp_path / "clip.png", tmp_path / "plain"
    path.write_bytes(b"old")
    plain.write_text("")
    save_spectrogram(path, sine(200, 8000), 8000)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert os.stat(path).st_mode == os.stat(plain).st_mode  # noqa: PTH116


def test_import_loads_no_matplotlib_and_drawing_no_pyplot(tmp_path: Path) -> None:
    program = (
        "import sys, numpy as np\n"
        "from soundomni.data.spectrogram import save_spectrogram\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"save_spectrogram({str(tmp_path / 'a.png')!r}, np.ones((1, 50)), 8000)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
