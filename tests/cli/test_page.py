"""The page as text: whole, escaped, the same each time; and what is drawn on it."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundomni.cli.page.curves import REACH, curve_svg, linear_ticks, log_ticks, smooth
from soundomni.cli.page.gather import show_training
from soundomni.cli.page.render import render
from soundomni.cli.page.report import Heard, Listening, Made, Model, Prompt, Report, Said, Score, Sound, Training, Verdict
from soundomni.cli.page.sounds import LEVELS, LOWEST, attributes, colors, judge, outline, show_sound
from soundomni.data.audio import write_wav
from soundomni.data.toys.toy_language import parse_caption

EVIL = "<script>alert(1)</script> & \"x\" 'y'"
VOID = {"meta", "link", "img", "br", "rect", "line", "path", "polygon"}
SOUND = Sound(
    file="generated/000.wav",
    wav=b"RIFF",
    spectrogram=b"PNG",
    size=(4, 2),
    frequencies=(50.0, 4000.0),
    outline=((-0.5, 0.5), (-0.2, 0.1)),
    seconds=0.5,
)


def report(text: str = "a loud sine tone at A4", *, names: tuple[str, ...] = ("trained here", "nano")) -> Report:
    """A small report with `text` wherever words come from models, prompts, specs or the user."""
    verdicts = (
        Verdict(name="pitch", wanted="A4", heard=text, right=False),
        Verdict(name="loudness", wanted=text, heard=text, right=True),
        Verdict(name="waveform", wanted="sine", heard="", right=False),
    )
    scores = {
        "described": {"right": Score(text="50.0 %", count=4, share=0.5, interval=(0.2, 0.8))},
        "answered": {text: Score(text=text, count=4)},
    }
    models = tuple(Model(name=name, parameters=1234567, spec=f"a: {text}", measured_on=text, scores=scores) for name in names)
    heard = Heard(sound=replace(SOUND, file=text), truth=text, said=(Said(text=text), Said(text=None))[: len(names)])
    wrong = Heard(sound=SOUND, truth="noise", said=(Said(text="a tone", wrong=("kinds", text), unsaid=("loudness",)),) * len(names))
    return Report(
        training=Training(
            spec=text,
            steps=1150,
            seconds=241.9,
            samples=44798,
            earlier=False,
            curves={"ce": ((1, 5.0), (2, None), (3, 0.5)), text: ((1, 0.0), (2, -1.0))},
        ),
        models=models,
        prompts=(Prompt(text=text, made=(Made(sound=SOUND, verdicts=verdicts),) * len(names)),),
        listening=(Listening(kind=text, models=names, clips=(heard, wrong)),),
        levels=(-80.0, -10.0),
        colors=b"PNG",
        command=f"soundomni demo --out {text}",
        seeds={text: text},
        versions={"torch": text},
    )


class Page(HTMLParser):
    """Reads a page strictly: every element is closed in order, and attributes and texts are collected."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"{tag} has an attribute twice"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_page_is_well_formed_and_the_same_each_time():
    html = render(report())
    assert html == render(report())
    page = Page(html)
    assert html.startswith("<!doctype html>") and page.all("html") == [{"lang": "en"}]
    assert [len(page.all(tag)) for tag in ("h1", "main", "header", "nav", "title")] == [1] * 5


def test_every_text_is_escaped():
    page = Page(render(report(EVIL)))
    assert len(page.all("script")) == len(page.all("style")) == 1
    shown = [text for texts in page.texts.values() for text in texts]
    # the prompt, the truth, what was said, what was heard, the spec, the command, seeds, versions, a measure, a loss, a file
    assert sum(EVIL in text for text in shown) >= 15
    assert all(EVIL in audio["aria-label"] for audio in page.all("audio") if "noise" not in audio["aria-label"])


def test_a_name_of_a_model_is_escaped():
    page = Page(render(report(names=(EVIL, "nano"))))
    assert len(page.all("script")) == 1 and EVIL in page.texts["title"][0]


def test_the_policy_allows_just_the_style_and_the_script_of_the_page():
    html = render(report(EVIL))
    page = Page(html)
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy and "http" not in policy
    for tag in ("style", "script"):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
        assert content is not None
        digest = base64.b64encode(hashlib.sha256(content[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not any("style" in attributes or any(name.startswith("on") for name in attributes) for _, attributes in page.elements)


def test_nothing_is_requested():
    html = render(report())
    assert not re.search(r"https?:|//www|@import|url\(", html)
    page = Page(html)
    assert all(value.startswith(("data:", "#")) for _, found in page.elements for name, value in found.items() if name in ("src", "href"))


def test_sounds_and_pictures_are_in_the_page():
    page = Page(render(report()))
    assert {audio["src"] for audio in page.all("audio")} == {f"data:audio/wav;base64,{base64.b64encode(b'RIFF').decode()}"}
    assert len(page.all("audio")) == 4 and all("controls" in audio and audio["aria-label"] for audio in page.all("audio"))
    assert all(image["alt"] and int(image["width"]) and int(image["height"]) for image in page.all("img"))
    spectrogram = page.all("img")[1]["alt"]
    assert "a loud sine tone at A4, made by trained here" in spectrogram and "0.5 s" in spectrogram and "50 to 4000 Hz" in spectrogram


def test_headings_are_in_order_and_links_lead_somewhere():
    page = Page(render(report()))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and all(later <= now + 1 for now, later in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = [link["href"].removeprefix("#") for link in page.all("a")]
    assert len(links) == 5 and set(links) <= set(ids)
    assert all(section["aria-labelledby"] in ids for section in page.all("section"))


def test_tables_have_captions_and_headers():
    page = Page(render(report()))
    assert len(page.all("table")) == len(page.all("caption")) == 3
    assert all(header.get("scope") in ("row", "col", "rowgroup") for header in page.all("th"))


def test_marks_are_said_and_not_only_shown():
    page = Page(render(report()))
    marks = [text for text in page.texts["span"] if text in ("✓", "✗", "right: ", "wrong: ")]
    assert marks.count("✓") == marks.count("right: ") == 3 and marks.count("✗") == marks.count("wrong: ") == 6
    assert "1 of 3 right" in page.texts["span"]
    assert ", not heard" in page.texts["li"] and "only generates" in page.texts["dd"]


def test_one_model_alone():
    html = render(report(names=("trained here",)))
    assert "Next to it" not in html and len(Page(html).all("audio")) == 3


def test_scores():
    page = Page(render(report()))
    assert "50.0 % " in page.texts["td"] and "20–80, of 4" in page.texts["span"]
    assert {rect["width"] for rect in page.all("rect")} == {"50.0", "60.0"}


def test_earlier_training_is_told():
    one = report()
    again = replace(one, training=replace(one.training, earlier=True))
    assert "earlier call" in render(again) and "earlier call" not in render(one)


def _luminance(color: str) -> float:
    """Relative luminance of "#rrggbb" (WCAG 2.1)."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_stands_out_from_its_background():
    css = (resources.files("soundomni") / "cli" / "templates" / "page.css").read_text(encoding="utf-8")
    themes = [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)]
    light, dark = themes[:2]
    for theme in (light, dark, light | themes[2]):
        for ink in ("ink", "quiet", "accent", "right", "wrong"):
            for ground in ("paper", "card"):
                high, low = sorted((_luminance(theme[ink]), _luminance(theme[ground])), reverse=True)
                assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground, theme)


@given(low=st.floats(-1e3, 1e3), width=st.floats(1e-3, 1e4))
def test_linear_ticks_are_few_and_cover_the_values(low, width):
    ticks = linear_ticks(low, low + width)
    assert ticks[0] <= low + 1e-9 and ticks[-1] >= low + width - 1e-9 and 2 <= len(ticks) <= 7
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


@given(low=st.floats(1e-6, 1e6), ratio=st.floats(1.0, 1e6))
def test_log_ticks_cover_the_values(low, ratio):
    ticks = log_ticks(low, low * ratio)
    assert ticks[0] <= low * (1 + 1e-9) and ticks[-1] >= low * ratio * (1 - 1e-9)
    assert ticks == sorted(set(ticks)) and len(ticks) >= 1


def test_smoothing_keeps_lines_and_gaps():
    line: list[tuple[int, float | None]] = [(i, 3.0 - 0.01 * i) for i in range(100)]
    np.testing.assert_allclose([value for _, value in smooth(line)], [value for _, value in line], atol=1e-12)
    broken = [(i, None if i == 50 else float(i % 2)) for i in range(100)]
    smoothed = smooth(broken)
    assert smoothed[50] == (50, None) and REACH == 0.04
    assert smoothed[20][1] == pytest.approx(sum(i % 2 for i in range(16, 25)) / 9)


def test_a_curve_is_broken_where_the_loss_was_not_finite():
    svg = curve_svg("ce", ((10, 4.0), (20, 2.0), (30, None), (40, 1.0)))
    raw = re.search(r'class="raw" d="([^"]+)"', svg)
    assert raw is not None and raw[1].count("M") == 2 and raw[1].count("L") == 1
    assert 'role="img"' in svg and "Loss ce over 40 steps, from 4 to 1." in svg


def test_a_curve_has_a_logarithmic_axis_where_it_can():
    def height(svg: str) -> list[float]:
        raw = re.search(r'class="raw" d="([^"]+)"', svg)
        assert raw is not None
        return [float(point.split()[1]) for point in re.split("[ML]", raw[1])[1:]]

    high, middle, low = height(curve_svg("a", ((1, 100.0), (2, 10.0), (3, 1.0))))
    assert middle - high == pytest.approx(low - middle, abs=0.2)
    high, middle, low = height(curve_svg("a", ((1, 1.0), (2, 0.0), (3, -1.0))))
    assert middle - high == pytest.approx(low - middle, abs=0.2)
    assert len(height(curve_svg("a", ((0, 0.0),)))) == 1


def _wav(path: Path, frequency: float, amplitude: float = 0.22, seconds: float = 0.5, rate: int = 8000) -> Path:
    time = np.arange(round(seconds * rate)) / rate
    write_wav(path, (amplitude * np.sin(2 * np.pi * frequency * time))[None].astype(np.float32), rate)
    return path


def test_a_sound_is_shown_as_it_is(tmp_path):
    from matplotlib.image import imread

    (tmp_path / "made").mkdir()
    path = _wav(tmp_path / "made" / "a.wav", 1000.0)
    sound = show_sound(path, tmp_path)
    assert sound.file == "made/a.wav" and sound.wav == path.read_bytes() and sound.seconds == 0.5
    pixels = imread(io.BytesIO(sound.spectrogram))
    assert pixels.shape[:2] == sound.size[::-1]
    low, high = sound.frequencies
    assert LOWEST / 1.02 < low < LOWEST * 1.02 and high == pytest.approx(4000, rel=0.02)
    row = int(pixels[..., :3].sum((1, 2)).argmax())
    frequency = low * (high / low) ** (1 - (row + 0.5) / len(pixels))
    assert frequency == pytest.approx(1000.0, rel=0.02)
    assert min(a for a, _ in sound.outline) == pytest.approx(-0.22, abs=0.005)
    assert max(b for _, b in sound.outline) == pytest.approx(0.22, abs=0.005)


def test_quiet_sounds_look_quiet(tmp_path):
    from matplotlib.image import imread

    bright = [
        imread(io.BytesIO(show_sound(_wav(tmp_path / f"{i}.wav", 440.0, amplitude), tmp_path).spectrogram))[..., :3].sum((1, 2)).max()
        for i, amplitude in enumerate((0.22, 0.02))
    ]
    assert bright[0] > 1.2 * bright[1]


def test_the_colors_get_lighter():
    from matplotlib.image import imread

    pixels = imread(io.BytesIO(colors()))
    light = pixels[0, :, :3] @ np.array([0.2126, 0.7152, 0.0722])
    assert LEVELS[0] < LEVELS[1] and len(light) == 256 and (np.diff(light[::8]) > 0).all() and light[-1] - light[0] > 0.8


def test_an_outline_has_the_extremes_of_all_channels():
    waveform = np.zeros((2, 1000))
    waveform[0, 500], waveform[1, 501] = 0.75, -0.5
    found = outline(waveform)
    assert len(found) == 240 and sorted(set(found)) == [(-0.5, 0.75), (0.0, 0.0)]
    assert len(outline(np.ones((1, 3)))) == 3


def test_analysis_judges_the_file(tmp_path):
    wanted = parse_caption("a loud sine tone at A4")
    assert wanted is not None
    right = judge(wanted, _wav(tmp_path / "a.wav", 440.0))
    assert {one.name for one in right} == {"events", "kinds", "waveform", "pitch", "loudness"} and all(one.right for one in right)
    wrong = {one.name: one for one in judge(wanted, _wav(tmp_path / "b.wav", 261.63))}
    assert wrong["pitch"] == Verdict(name="pitch", wanted="A4", heard="C4", right=False)
    silent = {one.name: one for one in judge(wanted, _wav(tmp_path / "c.wav", 440.0, amplitude=0.0))}
    assert silent["waveform"] == Verdict(name="waveform", wanted="sine", heard="", right=False) and silent["events"].heard == "0"


def test_attributes_of_two_events_are_in_order():
    recipe = parse_caption("three quiet clicks, then a loud rising chirp")
    assert recipe is not None
    found = attributes(recipe)
    assert found["order"] == "clicks, chirp" and found["loudness"] == "quiet, loud" and found["clicks"] == "3" and "pitch" not in found


def test_training_is_shown_as_it_was_logged(tmp_path):
    lines = [(10, 5.0), (20, 9.5), (30, 14.0), (40, 18.0), (50, 20.5)]
    entry = '{{"step": {0}, "loss": 1.0, "loss/ce": {2}, "seconds": {1}, "samples": {0}.0}}\n'
    text = "".join(entry.format(step, seconds, "null" if step == 20 else 0.5) for step, seconds in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    training = show_training(tmp_path, "demo", earlier=False)
    assert training.seconds == 20.5 and training.steps == training.samples == 50
    assert training.curves == {"ce": tuple((step, None if step == 20 else 0.5) for step, _ in lines)}
