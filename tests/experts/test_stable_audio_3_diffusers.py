"""Pipelines of diffusers with Stable Audio 3 come in and go out again, bit for bit, and sample what diffusers samples.

The pipelines are made of diffusers' and transformers' own classes with random weights. As Stable Audio 3 was trained,
norms in front of branches have an eps of 1e-5 in comparisons, where diffusers has 1e-6.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_audio_3.pipeline_stable_audio_3 import logsnr_sigma_schedule
from safetensors.torch import load_file, save_file
from stable_audio_3_pipelines import LATENT, RATE, RATIO, loaded, saved, tiny_pipeline
from stable_audio_3_pipelines import TEXT_LENGTH as LENGTH
from t5_files import tiny_t5gemma
from test_dit_3 import diffusers_model
from test_stable_audio_3_import import checkpoint, config, write
from test_stable_audio_3_import import imported as imported_checkpoint
from test_stable_audio_diffusers import (
    assert_equal,
    change,
    exported,
    imported,
    spec_of,
    tree_of,
    weights,
    with_tensors,
    with_values,
    without,
)
from torch import Tensor

from soundomni import SoundOmni
from soundomni.cli.main import main
from soundomni.core.files.names import SPEC_FILE
from soundomni.core.inference.audio_request import sampler_seed
from soundomni.flow.noise_schedules import NoiseSchedule

PARTS = ("transformer", "duration_embedder", "vae")
SECONDS, HEADROOM = 0.1, 0.02
FRAMES = round((SECONDS + HEADROOM) * RATE / RATIO)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline, which no test changes."""
    return saved(tmp_path_factory.mktemp("pipeline") / "in")


@pytest.fixture(scope="module")
def model(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model directory of that pipeline, which no test changes."""
    out = tmp_path_factory.mktemp("model") / "out"
    assert imported(pipeline, out) == 0
    return out


class Draws:
    """The noise that a clip of a seed gets here, for diffusers: how it begins, then that of each step."""

    def __init__(self, seed: int) -> None:
        self.start = self._draw(torch.Generator().manual_seed(seed))
        self.generator = torch.Generator().manual_seed(sampler_seed(seed))

    def __call__(self, *_: Any, **__: Any) -> Tensor:
        return self._draw(self.generator)

    def _draw(self, generator: torch.Generator) -> Tensor:
        return torch.randn(FRAMES, LATENT, generator=generator).T[None]


class Steps:
    """Where the steps lie here, for diffusers, which computes them in single precision.

    Features of timesteps have frequencies up to 10,000, so the last digit of a timestep changes a prediction by 1e-4.
    """

    def __call__(self, num_steps: int, first: float, last: float) -> list[float]:
        schedule = NoiseSchedule(spacing="log-snr", log_snr=(first, last))
        own = list(schedule.timesteps(num_steps))[:-1]
        assert own == pytest.approx(logsnr_sigma_schedule(num_steps, first, last), rel=0, abs=1e-6)
        return own


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Draws:
    """The noise of a clip, which diffusers gets too."""
    found = Draws(seed=3)
    monkeypatch.setattr("diffusers.schedulers.scheduling_flow_match_euler_discrete.randn_tensor", found)
    for name in ("", "_inpaint"):
        module = f"diffusers.pipelines.stable_audio_3.pipeline_stable_audio_3{name}"
        monkeypatch.setattr(f"{module}.logsnr_sigma_schedule", Steps())
    return found


def short(folder: Path) -> SoundOmni:
    """A model of short clips, which have parts of a second; prompts do not say these."""
    spec = folder / SPEC_FILE
    text = spec.read_text()
    assert "headroom: 6.0" in text
    spec.write_text(text.replace("{seconds_total}", "{seconds}").replace("headroom: 6.0", f"headroom: {HEADROOM}"))
    return SoundOmni.from_pretrained(folder)


@pytest.mark.parametrize("text", ["one two", "a text with more letters than tokens"])
@pytest.mark.parametrize(("differential", "stochastic"), [(True, True), (False, True), (True, False)])
def test_a_run_equals_that_of_diffusers(
    differential: bool, stochastic: bool, text: str, tmp_path: Path, draws: Draws
) -> None:
    folder = saved(tmp_path / "in", differential=differential, stochastic=stochastic)
    assert imported(folder, tmp_path / "out") == 0
    ours, theirs = short(tmp_path / "out"), loaded(folder)
    given = {"silence_padding_duration": HEADROOM, "num_inference_steps": 5, "duration": SECONDS}
    wanted = theirs(text, latents=draws.start, output_type="latent", **given).audios
    made = ours.make(text, seconds=SECONDS, num_steps=5, guidance_scale=1.0, seeds=3)[0].values
    torch.testing.assert_close(made, wanted[..., : made.shape[-1]], rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_a_guided_run_equals_that_of_diffusers_with_the_same_negative_prompt(
    tmp_path: Path, draws: Draws
) -> None:
    folder = saved(tmp_path / "in", stochastic=False)
    assert imported(folder, tmp_path / "out") == 0
    spec = tmp_path / "out" / SPEC_FILE
    spec.write_text(spec.read_text().replace("parallel: 0.0", "parallel: 1.0"))
    ours, theirs = short(tmp_path / "out"), loaded(folder)
    given = {"silence_padding_duration": HEADROOM, "num_inference_steps": 5, "duration": SECONDS, "guidance_scale": 3.0}
    wanted = theirs("one two", negative_prompt="three", latents=draws.start, output_type="latent", **given).audios
    made = ours.make("one two", seconds=SECONDS, num_steps=5, guidance_scale=3.0, negative_prompt="three", seeds=3)[0].values
    torch.testing.assert_close(made, wanted[..., : made.shape[-1]], rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
