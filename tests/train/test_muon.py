"""Muon: what its updates are, and which parameters get them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from soundomni.core.errors import SpecError
from soundomni.core.spec.schema import OptimizerSpec
from soundomni.train.optimizers.muon import Muon, orthogonal

SETTINGS = OptimizerSpec(lr=0.1, eps=1e-8, weight_decay=0.0)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 24), columns=st.integers(1, 24), seed=st.integers(0, 2**31), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_singular_values_come_near_one_and_vectors_stay(rows: int, columns: int, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rank = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, rows, generator=generator).double())[0][:, :rank]
    right = torch.linalg.qr(torch.randn(columns, columns, generator=generator).double())[0][:, :rank]
    values = 0.05 + 0.95 * torch.rand(rank, generator=generator).double()
    found = orthogonal((scale * left * values @ right.T).float()).double()
    inside = left.T @ found @ right
    torch.testing.assert_close(inside, torch.diag(inside.diagonal()), rtol=0, atol=1e-3)
    torch.testing.assert_close(left @ inside @ right.T, found, rtol=0, atol=1e-3)
    assert inside.diagonal().sub(1).abs().max() < 0.35


def test_zeros_stay_zeros() -> None:
    assert torch.equal(orthogonal(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_matrices_of_layers_move_by_muon_and_the_rest_as_with_adamw() -> None:
    def parameters() -> dict[str, nn.Parameter]:
        generator = torch.Generator().manual_seed(0)
        shapes = {"layers.0.up.weight": (8, 4), "layers.0.norm.weight": (4,), "embedding.weight": (6, 4), "layers.0.kernel": (3, 2, 2)}
        return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}

    found, plain = parameters(), parameters()
    others = {name: p for name, p in plain.items() if name != "layers.0.up.weight"}
    before = found["layers.0.up.weight"].detach().clone()
    optimizers = Muon(momentum=0.5).build(found, SETTINGS), torch.optim.AdamW(others.values(), lr=0.1, betas=SETTINGS.betas, eps=1e-8)
    optimizers[1].param_groups[0]["weight_decay"] = 0.0
    gradients = {name: torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) for name, p in found.items()}
    for named, optimizer in ((found, optimizers[0]), (others, optimizers[1])):
        for name, p in named.items():
            p.grad = gradients[name].clone()
        optimizer.step()
    for name, p in others.items():
        torch.testing.assert_close(found[name], p)
    # one step from nothing: momentum holds half of the gradient, and the look ahead is along it
    update = orthogonal(gradients["layers.0.up.weight"])
    torch.testing.assert_close(found["layers.0.up.weight"].detach(), before - 0.1 * 0.2 * 8**0.5 * update)


def test_what_it_cannot_use_is_refused() -> None:
    with pytest.raises(SpecError, match="momentum is 1.0; expected at least 0 and below 1"):
        Muon(momentum=1.0)
    with pytest.raises(SpecError, match=r"no trained matrix has a name like \*blocks\.\* or \*layers\.\*"):
        Muon().build({"embedding.weight": nn.Parameter(torch.zeros(2, 2))}, SETTINGS)
