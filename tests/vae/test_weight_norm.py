"""Weight normalisation folded and restored is the same function, and a step of training afterwards is that of a normalised weight."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st
from stable_audio_files import assert_same, tiny_codec
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from soundomni.vae.weight_norm import DIRECTION, MAGNITUDE, fold_weight_norm, restore_weight_norm, split_weight


@pytest.mark.parametrize("use_snake", [True, False])
def test_folding_keeps_outputs_to_the_bit_and_restoring_to_rounding(use_snake):
    original, codec = tiny_codec(use_snake=use_snake), tiny_codec(use_snake=use_snake)
    keys = set(codec.state_dict())
    names = fold_weight_norm(codec)
    assert len(names) == 2 * (2 + 2 * 7)
    assert not any("parametrizations" in key for key in codec.state_dict())
    assert sum(p.numel() for p in codec.parameters()) < sum(p.numel() for p in original.parameters())
    assert all(not list(module.buffers(recurse=False)) for module in codec.modules())
    assert_same(original, codec)
    restore_weight_norm(codec, names)
    assert set(codec.state_dict()) == keys
    assert_same(original, codec, atol=1e-6)
    restored = {name: codec.get_submodule(name) for name in names}
    for module in restored.values():
        norm = module.get_parameter(DIRECTION).flatten(1).norm(dim=1)
        torch.testing.assert_close(module.get_parameter(MAGNITUDE).flatten(), norm, atol=0, rtol=1e-6)


def test_again_and_again_does_not_drift():
    original, codec = tiny_codec(), tiny_codec()
    for _ in range(10):
        restore_weight_norm(codec, fold_weight_norm(codec))
    assert_same(original, codec, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(np_st.arrays("float32", (3, 2, 4), elements=st.floats(-(2.0**40), 2.0**40, width=32, allow_subnormal=False)))
def test_a_weight_splits_into_its_norm_and_its_direction(values):
    weight = torch.from_numpy(values.copy())
    weight[weight.abs() < 1e-15] = 0.0  # whose square float32 does not hold
    weight[1] = 0.0
    g, v = split_weight(weight)
    assert g.shape == (3, 1, 1) and g[1] == 0 and (v[1] == 1).all()
    norm = v.double().flatten(1).norm(dim=1)[:, None, None]
    torch.testing.assert_close((g.double() * v.double() / norm).float(), weight, atol=0, rtol=1e-6)
    layer = nn.Conv1d(2, 3, 4)
    with torch.no_grad():
        layer.weight.copy_(weight)
    restore_weight_norm(nn.Sequential(layer), ["0"])
    torch.testing.assert_close(layer.weight, weight, atol=0, rtol=1e-5)


def test_what_is_trained_stays_so_and_what_is_frozen_too():
    network = nn.Sequential(weight_norm(nn.Conv1d(2, 3, 4)), weight_norm(nn.ConvTranspose1d(3, 2, 4)), nn.Conv1d(2, 2, 1))
    network[1].requires_grad_(False)
    names = fold_weight_norm(network)
    assert names == ("0", "1") and type(network[0]) is nn.Conv1d
    assert [p.requires_grad for p in network.parameters()] == [True, True, False, False, True, True]
    restore_weight_norm(network, names)
    assert [network[i].get_parameter(DIRECTION).requires_grad for i in (0, 1)] == [True, False]
    network(torch.randn(1, 2, 8)).sum().backward()
    v, gradient = network[0].get_parameter(DIRECTION), network[0].get_parameter(DIRECTION).grad
    assert gradient is not None and network[0].get_parameter(MAGNITUDE).grad is not None
    along = (v * gradient).flatten(1).sum(1)
    torch.testing.assert_close(along, torch.zeros(3), atol=1e-4, rtol=0)  # the norm of v has no influence
