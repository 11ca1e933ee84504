"""Networks that run at once against the same networks one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from soundomni.experts import grouped
from soundomni.experts.grouped import run_grouped, runs_grouped
from soundomni.experts.swiglu import SwiGLU
from soundomni.experts.top_k import TopKFeedForward

META = torch.device("meta")


def networks(count: int, hidden_dim: int = 16, intermediate_dim: int = 24) -> list[SwiGLU]:
    torch.manual_seed(0)
    return [SwiGLU(hidden_dim=hidden_dim, intermediate_dim=intermediate_dim) for _ in range(count)]


@pytest.mark.parametrize("sizes", [[3, 4, 5], [0, 7, 1], [5, 0, 0], [1, 1, 1]])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_values_and_gradients(sizes: list[int], dtype: torch.dtype, tolerance: float) -> None:
    some = [network.to(dtype) for network in networks(len(sizes))]
    rows = torch.randn(sum(sizes), 16, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    weights = torch.randn(sum(sizes), 16, generator=torch.Generator().manual_seed(2)).to(dtype)

    def gradients(out: Tensor) -> list[Tensor]:
        inputs = [rows, *(p for network in some for p in network.parameters())]
        return [out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)]

    found = gradients(run_grouped(some, rows, torch.tensor(sizes)))
    expected = gradients(torch.cat([network(part) for network, part in zip(some, rows.split(sizes), strict=True)]))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.float(), other.float(), rtol=tolerance, atol=tolerance)


def test_a_mixture_is_the_same_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    mixture = TopKFeedForward(networks(4), hidden_dim=16, k=2, balance=0.01)
    hidden = torch.randn(40, 16)
    expected = mixture(hidden)
    monkeypatch.setattr("soundomni.experts.top_k.runs_grouped", lambda *_: True)
    found = mixture(hidden)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


class _Adapted(nn.Linear):
    """A layer that computes something else than its weights say."""


def test_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    half, single = torch.empty(2, 16, dtype=torch.bfloat16), torch.empty(2, 16)
    assert not runs_grouped(networks(2), half), "not on the CPU"
    monkeypatch.setattr(grouped.torch.Tensor, "device", torch.device("cuda"), raising=False)
    assert runs_grouped(networks(2), half)
    assert not runs_grouped(networks(2), single)
    with monkeypatch.context() as patch:
        patch.setattr(grouped, "_computing_dtype", lambda _: torch.bfloat16)
        assert runs_grouped(networks(2), single)
        assert not runs_grouped(networks(2, intermediate_dim=20), single)
        assert not runs_grouped([*networks(1), nn.Identity()], single)
        adapted = networks(2)
        adapted[1].down = _Adapted(24, 16, bias=False)
        assert not runs_grouped(adapted, single)
