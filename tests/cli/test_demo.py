"""The demo as a whole: what it leaves, what it refuses, and its page in a real browser."""

from __future__ import annotations

import base64
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile

from soundomni.cli.demo import PROMPTS
from soundomni.cli.main import main
from soundomni.core.spec.load import load_spec

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--mute-audio",
)
PHONE, DESKTOP = (360, 800), (1280, 900)


@pytest.fixture(scope="module")
def demo(tiny_spec: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo of the tiny spec beside the tiny model."""
    out = tmp_path_factory.mktemp("demo") / "out"
    status = main(["demo", "--config", str(tiny_spec), "--compare", str(tiny_model), "--measure", "5", "--out", str(out)])
    assert status == 0
    return out


@pytest.mark.long
def test_the_page_is_beside_what_it_shows(demo: Path) -> None:
    html = (demo / "index.html").read_text(encoding="utf-8")
    for folder in ("generated", "generated-model", "heard"):
        for wav in (demo / "clips" / folder).glob("*.wav"):
            assert base64.b64encode(wav.read_bytes()).decode() in html and f"clips/{folder}/{wav.name}" in html
    assert len(list((demo / "clips" / "generated-model").glob("*.wav"))) == len(PROMPTS)
    assert len(list((demo / "clips" / "heard").glob("*.wav"))) == 5
    assert not (demo / "clips" / "heard-model").exists()  # both models were trained on the same clips
    assert len(html) < 6e6
    assert not list(demo.glob(".index*"))


@pytest.mark.long
def test_a_finished_demo_is_shown_again(demo: Path, tiny_spec: Path, result: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before = (demo / "index.html").read_text(encoding="utf-8")
    told = result("demo", "--config", tiny_spec, "--compare", "none", "--measure", "2", "--out", demo)
    html = (demo / "index.html").read_text(encoding="utf-8")
    assert "earlier call" in html and "earlier call" not in before
    assert "Next to it" in before and "Next to it" not in html
    assert told["page"] == str(demo / "index.html") and told["step"] == 4 and told["compared"] == {}
    assert [one["prompt"] for one in told["generated"]] == list(PROMPTS) and len(told["heard"]) == 2
    assert told["measured"]["clips"] == 2
    (demo / "index.html").write_text(before, encoding="utf-8")


@pytest.mark.long
def test_a_shipped_model_has_clips_of_its_own_kind(
    tiny_spec: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: Any
) -> None:
    shutil.copytree(tiny_model, tmp_path / "models" / "nano")
    monkeypatch.setattr("soundomni.core.files.shipped.SHIPPED", tmp_path / "models")
    out = tmp_path / "out"
    told = result("demo", "--config", tiny_spec, "--compare", "nano", "--measure", "7", "--out", out)
    kinds = re.findall(r"<h3>(Clips of .*?)</h3>", (out / "index.html").read_text(encoding="utf-8"))
    data = load_spec(["nano"]).data
    assert data is not None
    source = next(entry.source for entry in data.datasets.values() if entry is not None)
    seconds = source.init_args["seconds"]
    assert len(kinds) == 2 and kinds[0] == "Clips of 0.5 s with one event" and kinds[1].startswith(f"Clips of {seconds:g} s with one")
    heard, other = told["heard"], told["compared"]["nano"]["heard"]
    assert len(heard) == len(other) == 6 and not {one["file"] for one in heard} & {one["file"] for one in other}
    assert soundfile.info(other[0]["file"]).duration == seconds and soundfile.info(heard[0]["file"]).duration == 0.5
    assert soundfile.info(told["compared"]["nano"]["generated"][0]["file"]).duration == seconds


@pytest.mark.long
def test_the_last_line_says_where_the_page_is(
    tiny_spec: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["demo", "--config", str(tiny_spec), "--compare", str(tiny_model), "--measure", "1", "--out", str(out)]) == 0
    assert str(out / "index.html") in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.long
def test_the_defaults_do_not_take_the_folder_they_write_for_the_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    steps = ["--train.steps=1", "--train.threads=1", "--train.validation.every=0", "--data.tokens_per_batch=512", "--sampler.num_steps=1"]
    for _ in range(2):
        assert main(["demo", "--compare", "none", "--measure", "1", *steps]) == 0
    assert "demo" in (tmp_path / "demo" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--measure", "0"], "--measure is 0; expected at least 1"),
        (["--compare", "no-such-model"], "no-such-model"),
        (["--data.datasets.toys=null"], "toy-sounds"),
        (["--train.run_dir=elsewhere"], "use --out instead of --train.run_dir"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(
    arguments: list[str], complaint: str, tiny_spec: Path, tmp_path: Path, fails: Any
) -> None:
    assert complaint in fails("demo", "--config", tiny_spec, "--out", tmp_path / "out", *arguments)
    assert not (tmp_path / "out" / "run").exists()


def _installed(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.fail(f"{program} is missing: install the packages chromium and chromium-driver (apt-get install chromium chromium-driver)")
    return path


def test_a_missing_browser_is_a_failure_that_names_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium chromium-driver"):
        _installed("chromium")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium without a window, with a profile of its own; nothing is downloaded to drive it."""
    from selenium.webdriver import Chrome
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = _installed("chromium")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SE_OFFLINE", "true")
        driver = Chrome(options=options, service=Service(_installed("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def _open(browser: Any, page: Path, *, size: tuple[int, int] = DESKTOP, dark: bool = False, media: str = "screen") -> None:
    width, height = size
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    )
    browser.get((page / "index.html").as_uri())


@pytest.mark.browser
@pytest.mark.long
def test_players_play_one_at_a_time(browser: Any, demo: Path) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    def state(index: int) -> dict[str, Any]:
        found: dict[str, Any] = browser.execute_script(
            "const p = document.querySelectorAll('audio')[arguments[0]];"
            "return {time: p.currentTime, paused: p.paused, error: p.error && p.error.message, seconds: p.duration,"
            " line: p.closest('.sound').querySelector('.now').style.left}",
            index,
        )
        return found

    _open(browser, demo)
    # played slowly, so that half a second lasts long enough to look at it
    browser.execute_script("for (const p of document.querySelectorAll('audio')) p.playbackRate = 0.1")
    wait = WebDriverWait(browser, 30)
    for index in (0, 1):
        player = browser.find_elements("tag name", "audio")[index]
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", player)
        wait.until(lambda _, index=index: (state(index)["seconds"] or 0) > 0)
        assert state(index)["seconds"] == pytest.approx(0.5, abs=0.01)
        player.send_keys(" ")  # the key of the player's own play button
        wait.until(lambda _, index=index: state(index)["time"] > 0.02)
        assert state(index)["error"] is None and not state(index)["paused"]
        assert float(state(index)["line"].removesuffix("%")) > 0
    assert state(0)["paused"]
    errors = "return [...document.querySelectorAll('audio')].filter(p => p.error || !(p.duration > 0)).length"
    wait.until(lambda _: browser.execute_script(errors) == 0)


@pytest.mark.browser
@pytest.mark.long
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_the_page_fits_and_all_of_it_is_there(browser: Any, demo: Path, size: tuple[int, int], dark: bool) -> None:
    _open(browser, demo, size=size, dark=dark)
    root = "document.documentElement"
    assert browser.execute_script(f"return {root}.scrollWidth <= {root}.clientWidth")
    assert browser.execute_script("return innerWidth") == size[0]
    wide = browser.execute_script(
        "const right = document.documentElement.clientWidth + 1;"
        "return [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > right).map(e => e.outerHTML)"
    )
    assert wide == []
    images = browser.execute_script("return [...document.images].map(i => [i.complete, i.naturalWidth, i.getBoundingClientRect().width])")
    assert len(images) == 1 + 2 * len(PROMPTS) + 5 and all(done and width > 0 and shown > 0 for done, width, shown in images)
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
    assert light < 40 if dark else light > 230
    beside = browser.execute_script(
        "return [...document.querySelector('.pair').children].map(e => Math.round(e.getBoundingClientRect().top))"
    )
    assert (beside[0] == beside[1]) == (size is DESKTOP)
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    requested = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in requested if not name.startswith("data:")] == []


@pytest.mark.browser
@pytest.mark.long
def test_the_specs_unfold_and_the_keyboard_reaches_everything(browser: Any, demo: Path) -> None:
    _open(browser, demo, size=PHONE)
    shown = "return document.querySelector('details pre').checkVisibility()"
    assert not browser.execute_script(shown)
    summary = browser.find_element("tag name", "summary")
    summary.send_keys("\n")
    assert browser.execute_script(shown)
    assert browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    root = "document.documentElement"
    assert browser.execute_script(f"return {root}.scrollWidth <= {root}.clientWidth")


@pytest.mark.browser
@pytest.mark.long
def test_print_has_the_words_and_names_the_files(browser: Any, demo: Path) -> None:
    _open(browser, demo, dark=True, media="print")
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.execute_script("return [...document.querySelectorAll('audio, nav')].every(e => !e.checkVisibility())")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True, "paperWidth": 8.27, "paperHeight": 11.69})
    words = "".join(pdf_text(base64.b64decode(printed["data"])).split())
    for text in (*PROMPTS, "clips/generated/000-a-loud-sine-tone-at-a4.wav", "How it was made"):
        assert "".join(text.split()) in words


def pdf_text(data: bytes) -> str:
    """Reads the text of a PDF as Chromium writes it: font resources are named after their objects, text is in hexadecimal glyphs."""
    objects = {int(number): body for number, body in re.findall(rb"(\d+) 0 obj\n(.*?)\nendobj", data, flags=re.DOTALL)}

    def stream(number: int) -> str:
        content = re.search(rb"stream\r?\n(.*)\r?\nendstream", objects[number], flags=re.DOTALL)
        assert content is not None
        return zlib.decompress(content[1]).decode("latin-1")

    fonts: dict[str, dict[int, str]] = {}
    for number, body in objects.items():
        if reference := re.search(rb"/ToUnicode (\d+) 0 R", body):
            letters: dict[int, str] = {}
            for line in re.findall(r"^<.*>$", stream(int(reference[1])), flags=re.MULTILINE):
                codes = [int(code, 16) for code in re.findall(r"<([0-9A-F]+)>", line)]
                first, last, letter = codes if len(codes) == 3 else (codes[0], codes[0], codes[1])
                letters |= {first + i: chr(letter + i) for i in range(last - first + 1)}
            fonts[f"F{number}"] = letters
    pages = [body for body in objects.values() if re.search(rb"/Type\s*/Page\b", body)]
    text = []
    for page in pages:
        contents = re.search(rb"/Contents (\d+) 0 R", page)
        assert contents is not None
        letters = {}
        for font, shown in re.findall(r"/(F\d+) [\d.]+ Tf|<([0-9A-Fa-f]+)>", stream(int(contents[1]))):
            if font:
                letters = fonts[font]
            else:
                text += [letters.get(int(shown[i : i + 4], 16), "") for i in range(0, len(shown), 4)]
    return "".join(text)
