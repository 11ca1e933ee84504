"""Muon: what its updates are, and which parameters get them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from soundomni.core.errors import SpecError
from soundomni.core.spec.schema import OptimizerSpec
from soundomni.train.optimizers.muon import SMALLEST_BF16, Muon, multiplies_bf16, orthogonal

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


def named(*shapes: tuple[int, int]) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {f"layers.{i}.weight": nn.Parameter(torch.randn(shape, generator=generator)) for i, shape in enumerate(shapes)}


def take_steps(parameters: dict[str, nn.Parameter], *, count: int) -> torch.optim.Optimizer:
    """Take steps on gradients that depend on the weights, and return the optimizer."""
    optimizer = Muon().build(parameters, SETTINGS)
    for _ in range(count):
        for parameter in parameters.values():
            parameter.grad = parameter.detach().sin()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("side", [24, 300])
def test_matrices_together_move_as_each_would_on_its_own(side: int) -> None:
    """Also if they are stored transposed, and if there are more of one shape than are computed at once."""
    shapes = [(side, 2 * side), (2 * side, side), (side, side)] * 7
    together, alone = named(*shapes), named(*shapes)
    for parameters in (together, alone):
        turned = parameters["layers.2.weight"]
        turned.data = turned.data.T.contiguous().T
    take_steps(together, count=3)
    for name, parameter in alone.items():
        take_steps({name: parameter}, count=3)
        torch.testing.assert_close(together[name], parameter, rtol=0, atol=1e-6 if side < SMALLEST_BF16 else 1e-3)
    assert together["layers.2.weight"].stride() == (1, side)


def test_a_matrix_that_is_not_finite_spoils_no_other() -> None:
    matrices = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0))
    matrices[1, 2, 3] = float("nan")
    found = orthogonal(matrices)
    assert found[1].isnan().any()
    for index in (0, 2):
        torch.testing.assert_close(found[index], orthogonal(matrices[index]))


@pytest.mark.parametrize("shape", [(128, 128), (128, 384), (384, 128)])
def test_bf16_rounds_the_update_and_nothing_else(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-5
    exact, found = orthogonal(matrix.double()), orthogonal(matrix, dtype=torch.bfloat16)
    assert found.dtype == torch.float32
    assert (found - exact).norm() < 0.02 * exact.norm()
    parameters = named(shape)
    state = take_steps(parameters, count=1).state[parameters["layers.0.weight"]]
    assert {name: value.dtype for name, value in state.items()} == {"momentum_buffer": torch.float32}
    assert parameters["layers.0.weight"].dtype == torch.float32


def test_only_large_float32_matrices_are_computed_in_bf16_and_only_if_the_device_multiplies_it() -> None:
    for side, dtype in ((SMALLEST_BF16, torch.float32), (SMALLEST_BF16 - 1, torch.float32), (SMALLEST_BF16, torch.float64)):
        parameter = nn.Parameter(torch.randn(side, side, generator=torch.Generator().manual_seed(0), dtype=dtype))
        before, update = parameter.detach().clone(), orthogonal(parameter.detach().sin())
        take_steps({"layers.0.weight": parameter}, count=1)
        error = (before - parameter.detach() - 0.1 * 0.2 * side**0.5 * update).abs().max()
        rounded = side == SMALLEST_BF16 and dtype == torch.float32 and multiplies_bf16(parameter.device)
        assert (error > 1e-5) == rounded
    assert not multiplies_bf16(torch.device("meta"))


def test_what_it_cannot_use_is_refused() -> None:
    with pytest.raises(SpecError, match="momentum is 1.0; expected at least 0 and below 1"):
        Muon(momentum=1.0)
    with pytest.raises(SpecError, match=r"no trained matrix has a name like \*blocks\.\* or \*layers\.\*"):
        Muon().build({"embedding.weight": nn.Parameter(torch.zeros(2, 2))}, SETTINGS)
