"""Connectors: what they compute, where they start, and the shared embeddings against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from soundomni.core.errors import SpecError
from soundomni.core.representation import TokenSpec
from soundomni.experts import FourierConnector, LinearConnector, MLPConnector
from soundomni.experts.sinusoids import TimeEmbedding, fourier_places, place_embedding

CONNECTORS = [LinearConnector, FourierConnector, MLPConnector]


def test_places_are_sin_cos_halves_for_any_index() -> None:
    frames = np.array([0, 1, 5, 2047, 100_000])
    omega = 10000.0 ** (-np.arange(8) / 8)
    angles = frames[:, None] * omega
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    ours = place_embedding(torch.from_numpy(frames), 16).numpy()
    np.testing.assert_allclose(ours[:3], expected[:3], atol=2e-6)
    np.testing.assert_allclose(ours, expected, atol=0.03)  # float32 angles of the fastest waves


def test_fourier_places_carry_every_function_of_the_place() -> None:
    places = fourier_places(torch.arange(16), 16).double()
    places.sub_(places.mean(0))
    assert torch.linalg.matrix_rank(places, atol=1e-3) == 15  # all but the mean
    slow = place_embedding(torch.arange(16), 16).double()
    assert torch.linalg.matrix_rank(slow - slow.mean(0), atol=1e-3) < 12


@pytest.mark.parametrize("first", [16, 160, 16 * 10**6])
def test_fourier_places_repeat_after_their_dimensions(first: int) -> None:
    torch.testing.assert_close(fourier_places(torch.arange(first, first + 16), 16), fourier_places(torch.arange(16), 16), rtol=0, atol=0)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_time_is_cos_sin_of_the_scaled_timestep(scale: float) -> None:
    embedding = TimeEmbedding(hidden_dim=6, time_scale=scale).double()
    with torch.no_grad():
        for layer in (embedding.first, embedding.second):
            layer.weight.normal_()
            layer.bias.normal_()
    t = np.array([0.0, 0.25, 1.0])
    angles = scale * t[:, None] * 10000.0 ** (-np.arange(128) / 128)
    waves = torch.from_numpy(np.concatenate([np.cos(angles), np.sin(angles)], axis=1))
    middle = waves @ embedding.first.weight.T + embedding.first.bias
    expected = (middle * middle.sigmoid()) @ embedding.second.weight.T + embedding.second.bias
    torch.testing.assert_close(embedding(torch.from_numpy(t)), expected, rtol=1e-3, atol=1e-2 if scale > 1 else 1e-4)


def test_linear_connector_is_the_sum_of_its_parts() -> None:
    connector = LinearConnector(tokens=TokenSpec(5, 5), hidden_dim=8, generates=True)
    tokens, t, frames = torch.randn(7, 5), torch.rand(7), torch.arange(7)
    assert connector.time_and_place is not None and isinstance(connector.inward, nn.Linear)
    expected = tokens @ connector.inward.weight.T + connector.time_and_place.time(t) + place_embedding(frames, 8)
    torch.testing.assert_close(connector.enter(tokens, timesteps=t, frames=frames), expected)


def test_fourier_connector_is_the_linear_one_but_for_its_places() -> None:
    linear = LinearConnector(tokens=TokenSpec(5, 5), hidden_dim=8, generates=True)
    fourier = FourierConnector(tokens=TokenSpec(5, 5), hidden_dim=8, generates=True)
    fourier.load_state_dict(linear.state_dict())
    tokens, t, frames = torch.randn(7, 5), torch.rand(7), torch.arange(7)
    places = fourier_places(frames, 8) - place_embedding(frames, 8)
    entered = linear.enter(tokens, timesteps=t, frames=frames)
    torch.testing.assert_close(fourier.enter(tokens, timesteps=t, frames=frames), entered + places)


def test_connectors_say_how_many_frames_they_tell_apart() -> None:
    sizes = {"tokens": TokenSpec(5, 5), "hidden_dim": 8, "generates": True}
    assert FourierConnector(**sizes).max_frames == 8 and LinearConnector(**sizes).max_frames is None


def test_mlp_connector_is_gelu_between_two_layers() -> None:
    connector = MLPConnector(tokens=TokenSpec(5, 5), hidden_dim=8, generates=False, multiple=3)
    first, last = connector.inward[0], connector.inward[2]  # type: ignore[index]
    assert first.weight.shape == (24, 5)
    tokens = torch.randn(7, 5)
    middle = tokens @ first.weight.T
    expected = (middle * 0.5 * (1 + torch.erf(middle / 2**0.5))) @ last.weight.T
    torch.testing.assert_close(connector.enter(tokens), expected)


@pytest.mark.parametrize("kind", CONNECTORS)
def test_the_way_out_starts_at_zero_and_learns(kind: type[LinearConnector]) -> None:
    connector = kind(tokens=TokenSpec(5, 5), hidden_dim=8, generates=True)
    hidden = torch.randn(7, 8)
    out = connector.leave(hidden)
    assert out.shape == (7, 5) and not out.any()
    (out - 1).square().sum().backward()
    torch.optim.SGD(connector.parameters(), 0.01).step()
    assert (connector.leave(hidden) - 1).square().sum() < 35


@pytest.mark.parametrize("kind", CONNECTORS)
def test_no_tokens_still_reach_every_parameter(kind: type[LinearConnector]) -> None:
    connector = kind(tokens=TokenSpec(5, 5), hidden_dim=8, generates=True)
    entered = connector.enter(torch.zeros(0, 5), timesteps=torch.zeros(0), frames=torch.zeros(0, dtype=torch.int64))
    assert entered.shape == (0, 8)
    connector.leave(entered).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in connector.parameters())


def test_initial_spread_of_the_way_in() -> None:
    torch.manual_seed(0)
    connector = LinearConnector(tokens=TokenSpec(64, 64), hidden_dim=512, generates=False)
    assert connector.inward.weight.std().item() == pytest.approx(0.02, rel=0.02)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", CONNECTORS)
def test_wrong_use_is_named(kind: type[LinearConnector]) -> None:
    listens, speaks = (kind(tokens=TokenSpec(5, 5), hidden_dim=8, generates=g) for g in (False, True))
    with pytest.raises(TypeError, match="generates=False"):
        listens.leave(torch.zeros(1, 8))
    with pytest.raises(ValueError, match="neither timesteps nor frames"):
        listens.enter(torch.zeros(1, 5), timesteps=torch.zeros(1))
    with pytest.raises(ValueError, match="needs both timesteps and frames"):
        speaks.enter(torch.zeros(1, 5), timesteps=torch.zeros(1))
    with pytest.raises(SpecError, match="multiple is 0; expected at least 1"):
        MLPConnector(tokens=TokenSpec(5, 5), hidden_dim=8, generates=False, multiple=0)
    with pytest.raises(SpecError, match="hidden_dim is 7"):
        kind(tokens=TokenSpec(5, 5), hidden_dim=7, generates=True)
