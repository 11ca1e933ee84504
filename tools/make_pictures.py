"""Make the pictures of the README from the current code.

    soundomni demo
    python tools/make_pictures.py demo

This needs chromium and chromedriver, for the page of the demo.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from soundomni import SoundOmni

PICTURES = Path(__file__).parents[1] / "docs" / "images"
PROMPTS = (
    "a rising sine tone, then two clicks",
    "a loud sawtooth tone at C4",
    "three loud clicks",
    "a loud square tone at G4, then white noise",
    "a loud falling chirp",
    "loud low noise, then a loud sine tone at A4",
)
SIZE = (1100, 1400)
SWITCHES = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --hide-scrollbars --force-device-scale-factor=1"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="what `soundomni demo` wrote")
    folder = parser.parse_args().demo
    PICTURES.mkdir(parents=True, exist_ok=True)
    draw_prompts(PICTURES / "nano.png")
    photograph(folder / "index.html", PICTURES / "demo-page.png")


def draw_prompts(path: Path) -> None:
    """Draw a spectrogram of nano's clip for each prompt."""
    clips = SoundOmni.from_pretrained("nano").generate(PROMPTS, seconds=1.0)
    figure, axes = plt.subplots(2, 3, figsize=(11, 4.6), sharex=True, sharey=True, layout="constrained")
    for prompt, clip, axis in zip(PROMPTS, clips, axes.flat, strict=True):
        noise = np.random.default_rng(0).standard_normal(clip.waveform.shape[1])
        signal = clip.waveform[0] + 1e-6 * noise  # silence needs a level
        axis.specgram(signal, NFFT=256, noverlap=224, Fs=clip.sample_rate, cmap="magma", vmin=-110, vmax=-30)
        axis.set_title(prompt, fontsize=10)
    for axis in axes[1]:
        axis.set_xlabel("seconds")
    for axis in axes[:, 0]:
        axis.set_ylabel("Hz")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def photograph(page: Path, path: Path) -> None:
    """Take a picture of the top of a page."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        raise SystemExit("chromium and chromedriver are missing. Install them: sudo apt-get install chromium chromium-driver")
    with tempfile.TemporaryDirectory() as profile:
        options = ChromeOptions()
        options.binary_location = browser
        for switch in (*SWITCHES.split(), f"--user-data-dir={profile}", f"--window-size={SIZE[0]},{SIZE[1]}"):
            options.add_argument(switch)
        with Chrome(options=options, service=Service(driver)) as chrome:
            chrome.get(page.resolve().as_uri())
            chrome.save_screenshot(str(path))


if __name__ == "__main__":
    main()
