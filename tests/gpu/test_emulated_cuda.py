"""The emulated device refuses what CUDA refuses, and notes what makes the host wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from emulated_cuda import CUDA, CudaTensor, DeviceMismatch, EmulatedCuda, backend, on_cpu, tf32, to_cuda
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel


@pytest.fixture
def device() -> Iterator[EmulatedCuda]:
    with EmulatedCuda().running() as device:
        yield device


def test_values_and_places(device: EmulatedCuda) -> None:
    made = torch.arange(6.0, device="cuda").reshape(2, 3)
    made[0, :1].fill_(7)
    made.add_(1)
    assert isinstance(made, CudaTensor) and made.device == CUDA and made.is_cuda
    assert not device.waits
    assert made.cpu().tolist() == [[8, 2, 3], [4, 5, 6]]
    network = to_cuda(nn.Linear(3, 2))
    assert all(parameter.is_cuda and isinstance(parameter, nn.Parameter) for parameter in network.parameters())
    assert network(made).requires_grad


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, y: x + y,
        lambda x, y: torch.cat([x, y]),
        lambda x, y: y.index_select(0, torch.zeros(1, dtype=torch.int64).to("cuda")),
        lambda x, y: x.masked_fill(torch.ones(3, dtype=torch.bool), 0.0),
        lambda x, y: y[torch.zeros(1, dtype=torch.int64).to("cuda")],
        lambda x, y: y.sum().add_(x.sum()),
        lambda x, y: torch.randn(3, device="cuda", generator=torch.Generator()),
        lambda x, y: functional.scaled_dot_product_attention(x[None, None, None], y[None, None, None], y[None, None, None]),
    ],
)
def test_devices_do_not_mix(device: EmulatedCuda, mix: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(DeviceMismatch):
        mix(torch.ones(3, device="cuda"), torch.ones(3))


def test_numbers_and_indices_may_be_on_the_cpu(device: EmulatedCuda) -> None:
    made = torch.ones(3, device="cuda") * torch.tensor(2.0)
    assert on_cpu(made[torch.tensor([0, 2])]).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("kind", "ask"),
    [
        ("item", lambda x: x[0].item()),
        ("item", lambda x: bool(x.any())),
        ("download", lambda x: x.tolist()),
        ("download", lambda x: x.cpu()),
        ("download", lambda x: torch.zeros(3).copy_(x)),
        ("upload", lambda x: torch.zeros(3).to(x)),
        ("upload", lambda x: torch.tensor([1.0], device=x.device)),
        ("upload", lambda x: x[torch.tensor([0])]),
        ("nonzero", lambda x: x.nonzero()),
        ("boolean index", lambda x: x[x > 0]),
        ("bincount", lambda x: x.long().bincount()),
        ("repeat_interleave", lambda x: x.repeat_interleave(x.long())),
    ],
)
def test_waits_are_noted(device: EmulatedCuda, kind: str, ask: Callable[[Tensor], object]) -> None:
    ask(torch.ones(3, device="cuda"))
    assert [wait.kind for wait in device.waits] == [kind]
    assert device.waits[0].place.startswith("test_emulated_cuda.py:")


def test_waits_of_layers_are_told_apart(device: EmulatedCuda) -> None:
    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (2 if x.any() else 3) + torch.zeros(1).to(x)

    layers = nn.Sequential(Layer(), Layer())
    device.watch(list(layers))
    layers(torch.ones(1, device="cuda")).sum().item()
    assert [(wait.kind, wait.unit) for wait in device.waits_of_layers()] == [("item", 0), ("item", 1), ("upload", 1)]


@pytest.mark.parametrize(
    "kernels", [(SDPBackend.MATH,), (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH), tuple(SDPBackend.__members__.values())[1:]]
)
def test_attention_is_that_of_torch_and_kernels_follow_the_settings(device: EmulatedCuda, kernels: tuple[SDPBackend, ...]) -> None:
    q, k, v = torch.randn(3, 2, 4, 5, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    with sdpa_kernel(list(kernels)):
        found = functional.scaled_dot_product_attention(q.to("cuda"), k.to("cuda"), v.to("cuda"), attn_mask=mask.to("cuda"))
        assert backend(q.half(), mask, False) == {1: "math", 2: "efficient"}.get(len(kernels), "cudnn")
    torch.testing.assert_close(on_cpu(found), functional.scaled_dot_product_attention(q, k, v, attn_mask=mask))


@pytest.mark.parametrize("name", ["convolution", "product"])
def test_tf32_loses_three_digits_if_it_is_allowed(name: str) -> None:
    network = nn.Conv1d(8, 8, 3) if name == "convolution" else nn.Linear(8, 8)
    setting = torch.backends.cudnn.conv if name == "convolution" else torch.backends.cuda.matmul
    before = setting.fp32_precision
    values = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    expected, errors = network(values).detach(), []
    with EmulatedCuda(tf32=True).running():
        to_cuda(network)
        for precision in ("ieee", "tf32"):
            setting.fp32_precision = precision
            errors.append((on_cpu(network(values.to("cuda")).detach()) - expected).abs().max().item())
    setting.fp32_precision = before
    assert errors[0] < 1e-6 < 1e-4 < errors[1] < 1e-2
    assert tf32(torch.tensor([1 + 2**-11 + 2**-20])).item() == 1 + 2**-10
