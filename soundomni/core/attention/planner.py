"""Choice of how to compute the attention of a batch, once per batch, from the segment table.

Shape letters: P stored tokens, h heads, h_kv key-value heads, d head dimensions.
"""

from __future__ import annotations

import torch

from soundomni.core.attention import merged, padded, reference, varlen
from soundomni.core.attention.places import token_places
from soundomni.core.attention.plans import AttentionPlan
from soundomni.core.attention.rectangles import cut_rectangles
from soundomni.core.attention.stored_order import StoredOrder
from soundomni.core.errors import SpecError, did_you_mean
from soundomni.core.sequence import SegmentTable

EXECUTORS = ("auto", "merged", "varlen", "flex", "padded", "reference")


def plan_attention(
    table: SegmentTable,
    stored: StoredOrder,
    *,
    device: torch.device,
    executor: str = "auto",
    dtype: torch.dtype = torch.float32,
    head_dim: int | None = None,
) -> AttentionPlan:
    """Plan exact attention of a packed batch under the rule of `soundomni.core.sequence`.

    The plan takes query `[P, h, d]`, key and value `[P, h_kv, d]` in stored order, h a multiple of h_kv, and is
    differentiable in all three. Its `executor` and `reason` say what was chosen and why. A requested executor is used
    or refused, never replaced.

    Args:
        table: the segments of the batch.
        stored: stored order of its tokens.
        device: device of the queries.
        executor: one of EXECUTORS. "auto" takes merged on the CPU. Elsewhere, it takes varlen if its kernels fit; otherwise, it takes
            flex for training if that can run, and else padded, which compiles nothing.
        dtype: dtype of the queries; the varlen kernels only take float16 and bfloat16.
        head_dim: d; None leaves its limits to the kernels.

    Raises:
        SpecError: the executor is unknown or cannot run here; the message says why.
    """
    if executor not in EXECUTORS:
        known = ", ".join(EXECUTORS)
        raise SpecError(f"unknown attention executor '{executor}'; expected one of {known}.{did_you_mean(executor, EXECUTORS)}")
    name, reason = _choose(table, device, dtype, head_dim) if executor == "auto" else (executor, "asked for")
    obstacle = _obstacle(name, table, device, dtype, head_dim)
    if obstacle is not None:
        raise SpecError(f"attention executor '{name}' cannot run here: {obstacle}")
    if name == "merged":
        return merged.MergedPlan(cut_rectangles(table).at(token_places(stored)), device=device, reason=reason)
    if name == "varlen":
        return varlen.VarlenPlan(cut_rectangles(table).at(token_places(stored)), device=device, reason=reason)
    if name == "flex":
        from soundomni.core.attention import flex  # here, because it imports the compiler, which takes as long as the rest of torch

        return flex.FlexPlan(table, stored, device=device, reason=reason)
    if name == "padded":
        return padded.PaddedPlan(padded.join_rectangles(cut_rectangles(table).at(token_places(stored))), device=device, reason=reason)
    return reference.ReferencePlan(table, stored, device=device, reason=reason)


def chosen_executor(table: SegmentTable, *, device: torch.device, dtype: torch.dtype, head_dim: int | None = None) -> str:
    """Return the executor that "auto" chooses in the current gradient mode; the arguments are those of `plan_attention`."""
    return _choose(table, device, dtype, head_dim)[0]


def _choose(table: SegmentTable, device: torch.device, dtype: torch.dtype, head_dim: int | None = None) -> tuple[str, str]:
    """Return the executor that "auto" chooses, and the reason."""
    if device.type == "cpu":
        return "merged", "on the CPU, flash calls per segment are exact and the only ones with a backward pass"
    hindrance = varlen.obstacle(table, device, dtype, head_dim)
    if hindrance is None:
        return "varlen", "no causal segment follows a full one, so two varlen calls are exact without merging"
    if not torch.is_grad_enabled():
        return "padded", f"{hindrance}; without gradients, it is not worth compiling a kernel"
    from soundomni.core.attention import flex

    refusal = flex.obstacle(device, head_dim)
    return ("flex", hindrance) if refusal is None else ("padded", f"{hindrance}; {refusal}")


def _obstacle(name: str, table: SegmentTable, device: torch.device, dtype: torch.dtype, head_dim: int | None) -> str | None:
    """Return why the executor cannot run here, or None if it can."""
    if name == "merged":
        return merged.obstacle(device)
    if name == "varlen":
        return varlen.obstacle(table, device, dtype, head_dim)
    if name == "flex":
        from soundomni.core.attention import flex

        return flex.obstacle(device, head_dim)
    if name == "padded":
        return None
    return reference.obstacle(table)
