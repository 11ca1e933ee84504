"""A CUDA device without a GPU: tensors that say they are on cuda:0 and hold their values on the CPU.

Inside `EmulatedCuda`, everything that goes to a CUDA device is such a tensor, so that whole models run as they would on a GPU, on
real values: mixing devices raises as it does there, kernels that only CUDA has are replaced by plain arithmetic that refuses what
they refuse, and everything that makes the host wait for the device is noted with its place. Gradients, streams and the
kernels themselves are not emulated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

import soundomni
from soundomni.core.attention import flex

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
HALF = (torch.float16, torch.bfloat16)
PACKAGE = Path(soundomni.__file__).parent

PINNED = "_pinned"
"""Attribute of tensors of the host whose memory is pinned."""

aten = torch.ops.aten
INDEXING = {aten.index.Tensor, aten._unsafe_index.Tensor}
PUTTING = {aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
WAITING = {
    **{aten._local_scalar_dense.default: "item", aten.nonzero.default: "nonzero", aten.masked_select.default: "masked_select"},
    **{aten.bincount.default: "bincount", aten._unique2.default: "unique", aten.unique_consecutive.default: "unique"},
    **{aten.equal.default: "equal", aten.repeat_interleave.Tensor: "repeat_interleave"},
}
"""Operators that make the host wait, because what they return, or how large it is, depends on values."""
MULTIPLYING = {aten.mm.default: (0, 1), aten.bmm.default: (0, 1), aten.addmm.default: (1, 2), aten.baddbmm.default: (1, 2)}
CONVOLVING = {aten.convolution.default: (0, 1)}
"""Operators that may compute in TF32, and their arguments that are rounded."""


class DeviceMismatch(RuntimeError):
    """Tensors of two devices meet, or a kernel gets what it does not take."""


@dataclass(frozen=True)
class Wait:
    """Something that makes the host wait for the device.

    Args:
        kind: the operator, "download" or "upload": a copy from or to memory that is not pinned.
        place: the line of the package that asks for it.
        unit: index of the layer that runs, or None outside of layers; see `EmulatedCuda.watch`.
    """

    kind: str
    place: str
    unit: int | None = None


class CudaTensor(Tensor):
    """A tensor that says it is on cuda:0, and holds `values` on the CPU."""

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor) -> CudaTensor:
        made: CudaTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype, device=CUDA
        )
        made.values = values
        return made

    def __repr__(self, **_: object) -> str:
        return f"CudaTensor({self.values!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise DeviceMismatch(f"{func} runs on an emulated tensor outside of EmulatedCuda")


def on_cpu(tensor: Tensor) -> Tensor:
    """The values of an emulated tensor, without a wait."""
    return tensor.values if isinstance(tensor, CudaTensor) else tensor


def place() -> str:
    """The innermost line of the package that is running, or of whatever calls torch."""
    frame, outside = sys._getframe(1), "?"
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(str(PACKAGE)):
            return f"{Path(name).relative_to(PACKAGE)}:{frame.f_lineno} {frame.f_code.co_name}"
        if outside == "?" and name != __file__ and "/torch/" not in name:
            outside = f"{Path(name).name}:{frame.f_lineno}"
        frame = frame.f_back
    return outside


class EmulatedCuda(TorchDispatchMode):
    """The emulated device, and what happened on it.

    Args:
        tf32: compute products and convolutions of fp32 in TF32 if torch's settings allow it, as a GPU does.
    """

    def __init__(self, *, tf32: bool = False) -> None:
        super().__init__()
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE  # with such a mode, torch does not look for a driver
        self._tf32 = tf32
        self._unit: int | None = None
        self.waits: list[Wait] = []
        self.attention: list[str] = []
        """The kernel of each call of attention, such as "varlen", "flex" or "math"."""

    @contextmanager
    def running(self) -> Iterator[EmulatedCuda]:
        """Everything inside runs with this device."""
        torch._C._ensureCUDADeviceGuardSet()
        defaults = flex.FlexPlan.__init__.__kwdefaults__
        with (
            patch.dict(defaults, attention=self._flex),
            patch("torch.autocast", _Autocast),
            patch("torch.amp.autocast", _Autocast),
            patch("torch.nn.attention.varlen.varlen_attn", self._varlen),
            self,
            _Functions(self),
        ):
            yield self

    def watch(self, units: Sequence[nn.Module]) -> None:
        """Note from now on for each wait which of `units` runs."""

        def enter(index: int) -> Callable[..., None]:
            def hook(*_: object) -> None:
                self._unit = index

            return hook

        def leave(*_: object) -> None:
            self._unit = None

        for index, unit in enumerate(units):
            unit.register_forward_pre_hook(enter(index))
            unit.register_forward_hook(leave, always_call=True)

    def wait(self, kind: str) -> None:
        """Note a wait."""
        self.waits.append(Wait(kind, place(), self._unit))

    def waits_of_layers(self) -> list[Wait]:
        """Return the waits inside a layer. A copy to the device in the first layer counts for the whole pass, which keeps it."""
        return [wait for wait in self.waits if wait.unit is not None and (wait.unit or wait.kind != "upload")]

    # Operators

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        is_cuda = [isinstance(x, CudaTensor) for x in tensors]
        asked = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
        if any(is_cuda):
            self._note(func, args)
        if func is aten._to_copy.default:
            return self._to_copy(args[0], asked, kwargs)
        if func is aten.copy_.default:
            return self._copy(*args, **kwargs)
        if asked is not None:
            kwargs["device"] = CPU
        to_cuda = any(is_cuda) if asked is None else asked == "cuda"
        _check_generator(func, kwargs.get("generator"), "cuda" if to_cuda else "cpu")
        if any(is_cuda) and not all(is_cuda):
            self._check_mix(func, args, tensors)
        if any(is_cuda) and "for_cpu" in func.__name__:
            raise DeviceMismatch(f"{func} is for the CPU, but its tensors are on cuda, at {place()}")
        given = (args, kwargs)
        args, kwargs = pytree.tree_map(on_cpu, (self._rounded(func, args), kwargs))
        out = func(*args, **kwargs)
        if torch.Tag.inplace_view in func.tags and isinstance(given[0][0], CudaTensor):
            # The sizes of the tensor around the values change as well.
            with no_dispatch():
                func(*given[0], **given[1])
        if not to_cuda:
            return out
        return pytree.tree_map(lambda x: _wrapped(x, tensors), out)

    def _note(self, func: Any, args: Any) -> None:
        if func in WAITING:
            self.wait(WAITING[func])
        if func in INDEXING | PUTTING and any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]):
            self.wait("boolean index")

    def _to_copy(self, source: Tensor, asked: str | None, kwargs: dict[str, Any]) -> Tensor:
        is_cuda = isinstance(source, CudaTensor)
        to_cuda = is_cuda if asked is None else asked == "cuda"
        if is_cuda != to_cuda and not (kwargs.get("non_blocking") and getattr(source, PINNED, False)):
            self.wait("upload" if to_cuda else "download")
        kwargs.pop("device", None)
        out: Tensor = aten._to_copy.default(on_cpu(source), **kwargs)
        return CudaTensor(out) if to_cuda else out

    def _copy(self, into: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if isinstance(into, CudaTensor) != isinstance(source, CudaTensor):
            self.wait("upload" if isinstance(into, CudaTensor) else "download")
        aten.copy_.default(on_cpu(into), on_cpu(source), non_blocking)
        return into

    def _check_mix(self, func: Any, args: Any, tensors: Sequence[Tensor]) -> None:
        """Raise DeviceMismatch for what CUDA refuses: it takes numbers, and indices, from the CPU."""
        others = [x for x in tensors if not isinstance(x, CudaTensor) and x.dim() > 0]
        if func in INDEXING | PUTTING and isinstance(args[0], CudaTensor):
            if any(x is not None and not isinstance(x, CudaTensor) for x in args[1]):
                self.wait("upload")
            others = [x for x in args[2:3] if isinstance(x, Tensor) and x.dim() > 0 and not isinstance(x, CudaTensor)]
        in_place = func.__name__.split(".")[0].endswith("_") and not isinstance(args[0], CudaTensor)
        if others or in_place:
            found = ", ".join(f"{list(x.shape)} on {'cuda' if isinstance(x, CudaTensor) else 'cpu'}" for x in tensors)
            raise DeviceMismatch(f"{func} gets {found}, at {place()}")

    def _rounded(self, func: Any, args: Any) -> Any:
        """Return the arguments of an operator as TF32 takes them."""
        allowed = (torch.backends.cudnn.conv if func in CONVOLVING else torch.backends.cuda.matmul).fp32_precision == "tf32"
        places = (CONVOLVING | MULTIPLYING).get(func, ())
        if not (self._tf32 and allowed and places and isinstance(args[places[0]], CudaTensor)):
            return args
        return [tf32(on_cpu(x)) if i in places and x.dtype == torch.float32 else x for i, x in enumerate(args)]

    # Attention

    def _varlen(
        self, query: Tensor, key: Tensor, value: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, *, window_size: Any
    ) -> Tensor:
        """Stand-in for `varlen_attn`: query `[Q, h, d]`, key and value `[K, h, d]`, sequence after sequence."""
        _check_kernel("varlen attention", query, key, value, cu_q, cu_k)
        if query.dtype not in HALF or query.shape[-1] % 8 or query.shape[-1] > 256:
            raise DeviceMismatch(f"varlen attention gets heads of {query.shape[-1]} in {query.dtype}")
        if any(x.dtype != torch.int32 for x in (cu_q, cu_k)) or query.shape[1] != key.shape[1]:
            raise DeviceMismatch("varlen attention gets other numbers of heads, or starts that are not int32")
        self.attention.append("varlen")
        ends = zip(on_cpu(cu_q).diff().tolist(), on_cpu(cu_k).diff().tolist(), strict=True)
        lengths_q, lengths_k = zip(*ends, strict=True)
        parts = zip(query.split(lengths_q), key.split(lengths_k), value.split(lengths_k), strict=True)
        outs = []
        for q, k, v in parts:
            mask = None
            if tuple(window_size) == (-1, 0):
                mask = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(len(k) - len(q))
            outs.append(plain_attention(q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None], mask)[0].transpose(0, 1))
        return torch.cat(outs)

    def _flex(self, query: Tensor, key: Tensor, value: Tensor, ids: Sequence[Tensor], blocks: Sequence[Tensor]) -> Tensor:
        """Stand-in for the compiled kernel of flex attention, with the mask that its ids mean."""
        _check_kernel("flex attention", query, key, value, *ids, *blocks)
        if query.shape[-1] < 16:
            raise DeviceMismatch(f"flex attention gets heads of {query.shape[-1]}; expected at least 16")
        self.attention.append("flex")
        document, block, noise = ids
        token = torch.arange(query.shape[2], device=query.device)
        same_block = (block[:, None] == block) & (block != -1)
        shown = (noise == -1) | (noise[:, None] == noise)
        mask = (document[:, None] == document) & ((token[:, None] >= token) | same_block) & shown
        return plain_attention(query, key, value, mask)

    def fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Stand-in for `scaled_dot_product_attention`, by the backend that torch 2.11 chooses on an H200."""
        if torch.is_autocast_enabled("cuda"):
            query, key, value = (x.to(torch.get_autocast_dtype("cuda")) for x in (query, key, value))
        _check_kernel("attention", query, key, value, *([] if attn_mask is None else [attn_mask]))
        self.attention.append(f"{backend(query, attn_mask, enable_gqa)}: {key.shape[2]} keys")
        mask = attn_mask
        if is_causal:
            mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        return plain_attention(query, key, value, mask, scale)


def backend(query: Tensor, mask: Tensor | None, shared: bool) -> str:
    """The kernel of `scaled_dot_product_attention` on an H200 by the rules of torch 2.11: the first that takes what it is given."""
    settings, dim, is_half = torch.backends.cuda, query.shape[-1], query.dtype in HALF
    if settings.cudnn_sdp_enabled() and is_half and dim % 8 == 0 and dim <= 256:
        return "cudnn"
    if settings.flash_sdp_enabled() and is_half and mask is None and dim <= 256:
        return "flash"
    if settings.mem_efficient_sdp_enabled() and not shared and query.dtype != torch.float64 and dim % (8 if is_half else 4) == 0:
        return "efficient"
    return "math"


def plain_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
    """Attention of query `[B, h, q, d]`, key and value `[B, h_kv, k, d]` in float32, rounded to the dtype of the query."""
    with _Autocast("cuda", enabled=False), _Autocast("cpu", enabled=False):
        group = query.shape[1] // key.shape[1]
        q, k, v = query.float(), key.float().repeat_interleave(group, 1), value.float().repeat_interleave(group, 1)
        scores = q @ k.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        return (scores.softmax(-1) @ v).to(query.dtype)


def tf32(values: Tensor) -> Tensor:
    """Round fp32 to the 10 bits of TF32's mantissa."""
    bits = values.contiguous().numpy().view(np.int32)
    return torch.from_numpy(((bits + 0x1000) & ~0x1FFF).view(np.float32))


def to_cuda(module: nn.Module) -> nn.Module:
    """Move a module to the emulated device; its parameters become new ones."""
    moved: dict[int, Tensor] = {}
    for one in module.modules():
        for held in (one._parameters, one._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    if id(tensor) not in moved:
                        made = tensor.detach().to(CUDA)
                        is_parameter = isinstance(tensor, nn.Parameter)
                        moved[id(tensor)] = nn.Parameter(made, requires_grad=tensor.requires_grad) if is_parameter else made
                    held[name] = moved[id(tensor)]
    return module


def _wrapped(out: Any, given: Sequence[Tensor]) -> Any:
    """Return an output on the emulated device; what an operator changed in place is the tensor that it got."""
    if not isinstance(out, Tensor) or isinstance(out, CudaTensor):
        return out
    changed = next((x for x in given if isinstance(x, CudaTensor) and x.values is out), None)
    if changed is not None:
        return changed
    return CudaTensor(out.resolve_conj().resolve_neg())


def _check_generator(func: Any, generator: torch.Generator | None, wanted: str) -> None:
    if generator is not None and generator.device.type != wanted:
        raise DeviceMismatch(f"{func} draws on {wanted} from a generator on {generator.device}, at {place()}")


def _check_kernel(kernel: str, query: Tensor, *others: Tensor) -> None:
    if not all(isinstance(x, CudaTensor) for x in (query, *others)):
        raise DeviceMismatch(f"{kernel} gets tensors on the CPU, at {place()}")
    if len({x.dtype for x in (query, *others[:2])}) > 1:
        raise DeviceMismatch(f"{kernel} gets {[x.dtype for x in (query, *others[:2])]}, at {place()}")


class _Functions(TorchFunctionMode):
    """Functions that torch answers before any operator runs."""

    def __init__(self, device: EmulatedCuda) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and torch.device(kwargs.get("device") or CPU).type == "cuda":
            return torch.tensor(*args, **{**kwargs, "device": CPU}).to(CUDA)
        if func is Tensor.__getitem__ and isinstance(args[0], CudaTensor) and isinstance(args[1], list):
            return args[0][torch.tensor(args[1])]  # torch makes a tensor of a list, too
        if func is Tensor.pin_memory:
            pinned = args[0].clone()
            setattr(pinned, PINNED, True)
            return pinned
        if func is Tensor.tolist and isinstance(args[0], CudaTensor):
            return args[0].to(CPU).tolist()
        if func is functional.scaled_dot_product_attention:
            leaves = pytree.tree_leaves((args, kwargs))
            if any(isinstance(x, CudaTensor) for x in leaves):
                return self._device.fused(*args, **kwargs)
        return func(*args, **kwargs)


class _Autocast:
    """`torch.autocast`, which otherwise turns itself off for a device that is not there."""

    def __init__(self, device_type: str, dtype: torch.dtype | None = None, enabled: bool = True, cache_enabled: bool | None = None) -> None:
        self._kind, self._enabled = device_type, enabled
        self._dtype = torch.get_autocast_dtype(device_type) if dtype is None else dtype
        self._before: list[tuple[bool, torch.dtype]] = []

    def __enter__(self) -> _Autocast:
        self._before.append((torch.is_autocast_enabled(self._kind), torch.get_autocast_dtype(self._kind)))
        self._set(self._enabled, self._dtype)
        torch.autocast_increment_nesting()
        return self

    def __exit__(self, *_: object) -> None:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        self._set(*self._before.pop())

    def _set(self, enabled: bool, dtype: torch.dtype) -> None:
        torch.set_autocast_enabled(self._kind, enabled)
        torch.set_autocast_dtype(self._kind, dtype)
