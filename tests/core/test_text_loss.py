"""The loss of texts in parts is that of all of them at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from soundomni.core.assembly import text_loss
from soundomni.core.assembly.text_loss import summed_nats


@pytest.mark.parametrize("most", [1, 11, 40, 77, 10**6])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_values_and_gradients(monkeypatch: pytest.MonkeyPatch, most: int, count: int) -> None:
    monkeypatch.setattr(text_loss, "MOST_LOGITS", most)
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(5, 11, dtype=torch.float64)
    hidden = torch.randn(count, 5, dtype=torch.float64, generator=generator).requires_grad_()
    labels = torch.randint(11, (count,), generator=generator)
    largest: list[int] = []

    def counted(some: Tensor) -> Tensor:
        largest.append(len(some))
        out: Tensor = head(some)
        return out

    expected = functional.cross_entropy(head(hidden).float(), labels, reduction="sum")
    found = summed_nats(counted, hidden, labels)
    torch.testing.assert_close(found, expected)
    assert max(largest) <= max(1, most // 11)
    wanted = torch.autograd.grad(expected, [hidden, *head.parameters()])
    for one, other in zip(torch.autograd.grad(found, [hidden, *head.parameters()]), wanted, strict=True):
        torch.testing.assert_close(one, other)
