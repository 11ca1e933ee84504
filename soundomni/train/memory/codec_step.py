"""Memory of one step of training a codec with its critics, found by running both phases on tensors without memory.

What a step keeps and needs grows evenly with its clips, so one clip is measured. Weights are counted elsewhere.

Shape letters: B clips, C audio channels, S samples.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from soundomni.core.interfaces import LossTerms
from soundomni.train.codec_training import CODEC, CRITICS, CodecTraining
from soundomni.train.memory.activations import StepMemory, placed
from soundomni.train.memory.live_memory import LiveMemory
from soundomni.train.memory.without_values import without_values

CPU = torch.device("cpu")


class _Answered(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers when a codec without memory asks for a number: quantizers have started, and a clip uses all levels."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and getattr(args[0], "constant", None) is None:
            dtype = args[0].dtype
            return True if dtype == torch.bool else 0.999 if dtype.is_floating_point else 0
        return func(*args, **(kwargs or {}))


def measure_codec_step(module: CodecTraining, *, clips: int, samples: int, bf16: bool) -> StepMemory:
    """Measure a step over clips of `samples` samples each, on one process.

    Args:
        module: the codec and its critics on the meta device; it is there again afterwards.
        clips: number of clips B.
        samples: S.
        bf16: whether it computes under autocast.

    Raise any error of a plugin whose computation depends on values.
    """
    channels = module.codec.spec.channels
    kept, peak = _measured(module, channels, samples, bf16=bf16)
    return StepMemory(batch=4 * clips * channels * samples, kept=clips * kept, passing=clips * (peak - kept), entering=0, encoding=0)


def _measured(module: CodecTraining, channels: int, samples: int, *, bf16: bool) -> tuple[int, int]:
    """Return what the codec's phase keeps for its backward pass, and the peak of both phases, for one clip."""
    with ExitStack() as stack:
        stack.enter_context(without_values())
        stack.enter_context(placed(module.modules(), CPU, None))
        weights = [*module.parameters(), *module.buffers()]
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_drop_gradient)  # type: ignore[no-untyped-call]
        waveform, lengths = torch.empty(1, channels, samples), torch.tensor([samples])
        live = stack.enter_context(LiveMemory([*weights, waveform, lengths]))
        stack.enter_context(_Answered())  # type: ignore[no-untyped-call]
        if bf16:
            stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
        if CRITICS in module.phases:
            _loss(module.losses(waveform, lengths, (samples,), (0,), CRITICS, keep=True)).backward()  # type: ignore[no-untyped-call]
        loss = _loss(module.losses(waveform, lengths, (samples,), (0,), CODEC))
        kept = live.current
        loss.backward()  # type: ignore[no-untyped-call]
        return kept, live.peak


def _loss(terms: LossTerms) -> Tensor:
    return torch.stack([total.float() for name, (total, _) in terms.items() if "/" not in name]).sum()


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None
