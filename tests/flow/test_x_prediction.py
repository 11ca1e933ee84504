"""The network says what the clean data are; everything else is flow matching."""

import pytest
import torch

from soundomni.core.errors import SpecError
from soundomni.core.representation import Representation, RepresentationSpec
from soundomni.flow import DPMppSampler, EulerSampler, FlowMatching, HeunSampler, XPrediction

SPEC = RepresentationSpec(kind="continuous", sample_rate=100, channels=1, downsampling_ratio=10, latent_dim=3)


def query_of(objective, clean):  # type: ignore[no-untyped-def]
    generators = [torch.Generator().manual_seed(i) for i in range(len(clean))]
    lengths = torch.full((len(clean),), clean.shape[-1])
    known = torch.zeros(len(clean), clean.shape[-1], dtype=torch.bool)
    return objective.corrupt(Representation(clean, lengths, SPEC), known=known, noise=torch.ones(len(clean)).bool(), generators=generators)


def test_the_corruption_is_that_of_flow_matching() -> None:
    clean = torch.randn(4, 3, 5)
    mine, plain = query_of(XPrediction(mean=0.5), clean), query_of(FlowMatching(mean=0.5), clean)
    for name in ("inputs", "timesteps", "targets", "loss_mask"):
        assert torch.equal(getattr(mine, name), getattr(plain, name))


def test_the_clean_data_have_no_loss_and_an_error_weighs_by_its_timestep() -> None:
    objective, clean = XPrediction(), torch.randn(64, 3, 5)
    query = query_of(objective, clean)
    assert query.timesteps.min() > objective.min_timestep
    total, count = objective.loss(objective.predicted(clean, query.inputs, query.timesteps), query)["velocity"]
    assert float(total) / float(count) < 1e-10
    total, _ = objective.loss(objective.predicted(clean + 0.1, query.inputs, query.timesteps), query)["velocity"]
    torch.testing.assert_close(total, (0.1 / query.timesteps).square().sum(), rtol=1e-4, atol=0.0)


def test_near_the_data_the_loss_is_bounded_and_still_asks_for_them() -> None:
    objective, clean = XPrediction(mean=-4.0, min_timestep=0.1), torch.randn(64, 3, 5)
    query = query_of(objective, clean)
    assert query.timesteps.max() < objective.min_timestep
    total, count = objective.loss(objective.predicted(clean, query.inputs, query.timesteps), query)["velocity"]
    assert float(total) / float(count) < 1e-8
    total, count = objective.loss(objective.predicted(clean + 0.1, query.inputs, query.timesteps), query)["velocity"]
    torch.testing.assert_close(total / count, torch.tensor((0.1 / 0.1) ** 2), rtol=1e-3, atol=0.0)


def test_known_frames_stay_finite() -> None:
    found = XPrediction().predicted(torch.zeros(1, 3, 1), torch.ones(1, 3, 1), torch.zeros(1, 1))
    assert bool(found.isfinite().all())


@pytest.mark.parametrize("num_steps", [1, 8, 25, 50, 200])
@pytest.mark.parametrize("sampler", [EulerSampler, HeunSampler, DPMppSampler])
def test_a_sampler_that_is_told_the_data_finds_them(sampler, num_steps: int) -> None:  # type: ignore[no-untyped-def]
    objective, data, start = XPrediction(), torch.randn(2, 3, 5), torch.randn(2, 3, 5)

    def predict(values: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return objective.predicted(data, values, timesteps[:, None].expand(-1, 5))

    torch.testing.assert_close(
        sampler(num_steps=num_steps).sample(predict, Representation.of_latents(start)).values, data, rtol=1e-4, atol=1e-4
    )


def test_out_of_range() -> None:
    with pytest.raises(SpecError, match="min_timestep is 0; expected a number above 0 and at most 1"):
        XPrediction(min_timestep=0)
