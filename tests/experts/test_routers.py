"""Static routers by role, and the mixture of networks against a dense float64 computation."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from soundomni.core.errors import SpecError
from soundomni.core.sequence import Role
from soundomni.experts import DenseRouter, ModalityRouter, SwiGLU, TopKFeedForward, TopKRouter


def mixture(num_experts: int, k: int, seed: int = 0) -> TopKFeedForward:
    torch.manual_seed(seed)
    router = TopKRouter(num_experts=num_experts, k=k, balance=0.5)
    made = router.feed_forward(lambda: SwiGLU(hidden_dim=6, intermediate_dim=10), 6)
    assert isinstance(made, TopKFeedForward)
    return made.double()


def dense(layer: TopKFeedForward, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """All networks on all tokens, weighed; and eq. 4-6 of Fedus et al. (2021), per token."""
    probabilities = (hidden @ layer.gate.weight.T).softmax(-1)
    kept = torch.zeros_like(probabilities, dtype=torch.bool)
    for row, p in zip(kept, probabilities, strict=True):
        row[p.argsort(descending=True)[: layer.k]] = True
    gates = probabilities * kept / (probabilities * kept).sum(-1, keepdim=True)
    out = sum(gates[:, i : i + 1] * network(hidden) for i, network in enumerate(layer.networks))
    f, p = kept.double().mean(0) / layer.k, probabilities.mean(0)
    return out, 0.5 * len(layer.networks) * (f * p).sum()  # type: ignore[return-value]


def test_static_routers_send_roles_to_streams() -> None:
    modality, one = ModalityRouter(), DenseRouter()
    assert modality.streams == ("und", "gen") and one.streams == ("all",)
    assert {role.name: modality.stream_of(role) for role in Role} == {"TEXT": 0, "FEATURES": 0, "LATENT": 1, "CODES": 1}
    assert {one.stream_of(role) for role in Role} == {0}
    assert TopKRouter().streams == ("und", "gen") and TopKRouter(by_modality=False).streams == ("all",)
    assert TopKRouter().stream_of(Role.LATENT) == 1 and TopKRouter(by_modality=False).stream_of(Role.LATENT) == 0
    assert TopKRouter.loss_names == ("load_balance",) and ModalityRouter.loss_names == ()


@settings(max_examples=20, deadline=None)
@given(data=st.data(), num_tokens=st.integers(1, 20), num_experts=st.integers(1, 5), seed=st.integers(0, 99))
def test_mixture_equals_the_dense_computation(data: st.DataObject, num_tokens: int, num_experts: int, seed: int) -> None:
    layer = mixture(num_experts, data.draw(st.integers(1, num_experts)), seed)
    hidden = torch.randn(num_tokens, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(hidden)
    leaves = [hidden, *layer.parameters()]
    ours, (total, count) = layer(hidden)
    theirs, balance = dense(layer, hidden)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(total / count, balance)
    mine = torch.autograd.grad((ours * weights).sum() + total / count, leaves)
    other = torch.autograd.grad((theirs * weights).sum() + balance, leaves)
    torch.testing.assert_close(mine, other)


def test_networks_run_on_their_own_tokens_only_and_idle_ones_still_take_part() -> None:
    layer = mixture(4, 2)
    with torch.no_grad():
        layer.gate.weight.zero_()
        layer.gate.weight[1] = layer.gate.weight[3] = 1.0  # positive tokens choose networks 1 and 3
    rows: dict[int, int] = {}
    for i, network in enumerate(layer.networks):
        network.register_forward_hook(lambda _, inputs, __, i=i: rows.__setitem__(i, len(inputs[0])))
    out, (total, _) = layer(torch.rand(7, 6, dtype=torch.float64) + 0.1)
    assert rows == {0: 0, 1: 7, 2: 0, 3: 7}
    (out.sum() + total).backward()
    for i, network in enumerate(layer.networks):
        assert all(p.grad is not None and bool(p.grad.any()) == (i in (1, 3)) for p in network.parameters())


def test_rows_of_padding_do_not_count() -> None:
    layer = mixture(4, 2)
    hidden = torch.randn(9, 6, dtype=torch.float64)
    out, loss = layer(hidden)
    padded_out, padded_loss = layer(torch.cat([hidden, torch.zeros(23, 6, dtype=torch.float64)]))
    torch.testing.assert_close(padded_out[:9], out)
    torch.testing.assert_close(padded_loss, loss)
    assert not padded_out[9:].any() and loss[1] == 9
    nothing, (total, count) = layer(torch.zeros(5, 6, dtype=torch.float64))
    assert total == 0 and count == 0 and not nothing.any()


def test_balanced_routing_costs_alpha_per_token() -> None:
    layer = mixture(4, 1)
    with torch.no_grad():
        layer.gate.weight.copy_(torch.eye(4, 6) * 1e-6)
    total, count = layer(torch.eye(4, 6, dtype=torch.float64).repeat(3, 1))[1]
    assert (total / count).item() == pytest.approx(0.5, abs=1e-6)


def test_plain_routers_keep_the_plain_network() -> None:
    network = nn.Linear(3, 3)
    assert ModalityRouter().feed_forward(lambda: network, 3) is network


@pytest.mark.parametrize("k", [0, 5])
def test_k_beyond_the_networks_is_named(k: int) -> None:
    with pytest.raises(SpecError, match=f"k is {k}; expected 1 to num_experts, which is 4"):
        TopKRouter(num_experts=4, k=k)


def test_importing_the_experts_imports_no_transformers() -> None:
    code = "import sys, soundomni.experts; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
