"""Strength of a variation: how much of a clip is lost to a model, whatever its latent space and its path of noise.

Shape letters: D latent dimensions, T frames.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import MODELS, make_model, rule, slot
from tiny_paths import CosinePath, SquarePath
from torch import Tensor

from soundomni.core.inference.clean_estimate import clean_estimate
from soundomni.core.inference.variation import (
    TIMESTEPS,
    Beginning,
    beginning,
    estimate_errors,
    lost_shares,
    timestep_of_share,
)
from soundomni.core.interfaces import Objective
from soundomni.flow import FlowMatching


@pytest.mark.parametrize("objective", [FlowMatching(), CosinePath(), SquarePath()], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("timestep", [0.1, 0.5, 0.93, 1.0])
def test_a_velocity_on_any_path_gives_back_the_clip_it_leads_to(objective: Objective, timestep: float) -> None:
    generator = torch.Generator().manual_seed(1)
    clean, noise = torch.randn(2, 1, 4, 6, dtype=torch.float64, generator=generator)
    t = torch.tensor(timestep, dtype=torch.float64, requires_grad=True)
    if isinstance(objective, CosinePath):
        velocity = math.pi / 2 * (torch.cos(t * math.pi / 2) * noise - torch.sin(t * math.pi / 2) * clean)
    elif isinstance(objective, SquarePath):
        velocity = 2 * t * (noise - clean)
    else:
        velocity = noise - clean
    found = clean_estimate(objective, objective.noised(clean, noise, timestep), velocity.detach(), timestep)
    torch.testing.assert_close(found, clean, rtol=2e-3, atol=2e-3)


def latents(seed: int, frames: int = 9) -> Tensor:
    return torch.randn(16, frames, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["modality", "dense", "advance"])
def test_what_is_lost_rises_to_all_and_does_not_depend_on_the_batch(name: str) -> None:
    model, clip = MODELS[name], latents(3)
    errors = estimate_errors(model, clip, slot=slot(9, rule(name)))
    lost = lost_shares(errors)
    assert lost == sorted(lost) and lost[0] > 0.0 and lost[-1] == 1.0 and len(lost) == len(TIMESTEPS)
    assert estimate_errors(model, clip, slot=slot(9, rule(name)), batch_size=3) == pytest.approx(errors, rel=1e-9)


def test_a_model_that_says_nothing_loses_a_clip_as_its_noise_does() -> None:
    """With a velocity of 0 the estimate is x_t itself: the error is t²·|ε − x0|², of which t² is the share, over both signs of ε."""
    model = make_model()
    with torch.no_grad():
        for parameter in model.made().connector.parameters():
            parameter.zero_()
    errors = estimate_errors(model, latents(5), slot=slot(9, rule("modality")))
    assert lost_shares(errors) == pytest.approx([t**2 for t in TIMESTEPS], abs=1e-6)
    begin = beginning(model, latents(5), 0.5, slot=slot(9, rule("modality")))
    assert begin.timestep == pytest.approx(0.5, abs=1e-6)
    assert begin.most_change == pytest.approx(math.sqrt(errors[-1]))


@given(
    st.lists(st.floats(0.0, 1.0), min_size=len(TIMESTEPS) - 1, max_size=len(TIMESTEPS) - 1), st.floats(0.001, 1.0), st.floats(0.001, 1.0)
)
def test_more_strength_never_begins_earlier(shares: list[float], one: float, other: float) -> None:
    lost = [*sorted(shares), 1.0]
    low, high = (timestep_of_share(share, lost) for share in sorted((one, other)))
    assert 0.0 < low <= high <= 1.0


def test_nothing_is_left_at_full_strength() -> None:
    assert beginning(MODELS["modality"], latents(1), 1.0, slot=slot(9, rule("modality"))) == Beginning(1.0, math.inf)
