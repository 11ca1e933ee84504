"""Timesteps of training follow the published distributions, and shift with the length of a clip as in stable-audio-tools."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.core.errors import SpecError
from soundomni.core.representation import Representation
from soundomni.flow.flow_matching import FlowMatching
from soundomni.flow.training_timesteps import TimestepDistribution, Timesteps

KINDS: tuple[Timesteps, ...] = ("uniform", "logit-normal", "truncated-logit-normal", "even-log-snr")


def distribution(kind: Timesteps, *, shift: float = 1.0, length_shift: tuple[float, float] | None = None) -> TimestepDistribution:
    return TimestepDistribution(kind=kind, mean=0.0, std=1.0, shift=shift, length_shift=length_shift)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_follow_the_quantiles(kind: Timesteps) -> None:
    """Kolmogorov's distance of 4,000 draws from the quantile function stays below 0.03, which it exceeds once in 700 such samples."""
    wanted, generator = distribution(kind, shift=2.0), torch.Generator().manual_seed(0)
    drawn = torch.tensor([wanted.draw(generator, 100) for _ in range(4000)], dtype=torch.float64)
    assert float(drawn.min()) > 0 and float(drawn.max()) <= 1
    for place in torch.linspace(0.02, 0.98, 49).tolist():
        assert abs(float((drawn <= wanted.at(place, 100)).double().mean()) - place) < 0.03


@settings(deadline=None)  # the first example imports their package
@given(place=st.floats(0.001, 0.999))
def test_the_truncated_one_is_that_of_stable_audio_tools(place: float) -> None:
    from stable_audio_tools.inference import sampling

    ours = distribution("truncated-logit-normal").at(place, 100)
    drawn = torch.special.ndtri(torch.tensor([1.0 - place]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling.torch, "randn", lambda shape: drawn)
        theirs = 1.0 - float(sampling.truncated_logistic_normal_rescaled(1))
    assert ours == pytest.approx(theirs, abs=2e-4)  # theirs is computed in single precision


def test_even_log_snr_is_even() -> None:
    places = [0.1, 0.35, 0.6, 0.85]
    found = [math.log((1 - t) / t) for t in (distribution("even-log-snr").at(place, 9) for place in places)]
    assert found == pytest.approx([5 - 11 * place for place in places])


@settings(deadline=None)
@given(frames=st.integers(1, 6000), time=st.floats(0.01, 0.99))
def test_a_shift_by_length_is_that_of_stable_audio_tools(frames: int, time: float) -> None:
    from stable_audio_tools.inference import sampling

    shift = distribution("uniform", length_shift=(0.5, 1.15)).at(time, frames)
    theirs = sampling.DistributionShift().time_shift(torch.tensor(time, dtype=torch.float64), min(max(frames, 256), 4096))
    assert shift == pytest.approx(float(theirs), abs=1e-9)


def test_longer_clips_of_a_batch_are_noisier() -> None:
    objective = FlowMatching(timesteps="uniform", length_shift=(0.0, 3.0))
    values = torch.zeros(2, 1, 4096)
    clips = Representation(values, torch.tensor([256, 4096]), Representation.of_latents(values).spec, (256, 4096))
    known, noise = torch.zeros(2, 4096, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    short, long = objective.corrupt(clips, known=known, noise=noise, generators=generators).timesteps[:, 0].tolist()
    assert long == pytest.approx(math.exp(3) * short / (1 + (math.exp(3) - 1) * short), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"timesteps": "log-snr"}, "timesteps is 'log-snr'; expected one of .*Did you mean 'even-log-snr'"),
        ({"std": 0.0}, "std is 0.0; expected a finite number above 0"),
        ({"std": math.inf}, "std is inf; expected a finite number above 0"),
        ({"mean": math.nan}, "mean is nan; expected a finite number"),
        ({"mean": -math.inf}, "mean is -inf; expected a finite number"),
        ({"shift": 2.0, "length_shift": (0.5, 1.15)}, "shift is 2 and length_shift is given too"),
        ({"length_shift": (math.nan, 1.0)}, "expected two numbers from -10 to 10"),
        ({"length_shift": (0.0, 720.0)}, "expected two numbers from -10 to 10"),
        ({"length_shift": (-1e5, 0.0)}, "expected two numbers from -10 to 10"),
    ],
)
def test_wrong_settings_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        FlowMatching(**arguments)  # type: ignore[arg-type]
