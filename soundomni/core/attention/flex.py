"""Any layout in one compiled kernel: FlexAttention (Dong et al. 2024) with the BlockMask of the segment table.

It runs in token order, padded to one of a few lengths, so that the batches of a run share one compiled kernel: the
rule's ids and the blocks are arguments of the compiled function, never captured. Padding tokens form their own
documents, so that every row has a key.

Shape letters: N tokens, S padded tokens, P stored tokens, h heads, h_kv key-value heads, d head dimensions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from soundomni.core.attention.block_mask import BLOCK, assemble_mask, block_tensors
from soundomni.core.attention.places import token_places
from soundomni.core.attention.rule import OUTSIDE, token_rule
from soundomni.core.attention.stored_order import StoredOrder
from soundomni.core.sequence import Attend, PositionRule, Role, SegmentTable
from soundomni.core.upload import upload

MaskedAttention = Callable[[Tensor, Tensor, Tensor, Sequence[Tensor], Sequence[Tensor]], Tensor]

LEAST_HEAD_DIM = 16
"""The fewest head dimensions that Triton multiplies."""
RECOMPILE_LIMIT = 64
"""Largest number of kernels per process: lengths x head shapes x dtypes x with or without gradients x threads.

Beyond it, flex raises.
"""


def obstacle(device: torch.device, head_dim: int | None = None) -> str | None:
    """Return why flex cannot run on `device` in the current gradient mode, or None if it can.

    `head_dim` is d; None leaves it to the compiler.
    """
    if device.type not in ("cpu", "cuda"):
        return f"flex attention needs a CPU or CUDA device, and the batch is on '{device.type}'"
    if device.type == "cpu" and torch.is_grad_enabled():
        return "flex attention has no backward pass on the CPU; use 'merged', or torch.no_grad()"
    if device.type == "cuda" and head_dim is not None and head_dim < LEAST_HEAD_DIM:
        return f"flex attention takes heads of at least {LEAST_HEAD_DIM} dimensions, not {head_dim}"
    return None


def padded_length(num_tokens: int) -> int:
    """Return S: the next multiple of 128 of the form 2^k or 3 * 2^k blocks, so that a run meets few lengths."""
    blocks = max(1, -(-num_tokens // BLOCK))
    power = 1 << (blocks - 1).bit_length()
    return BLOCK * (power * 3 // 4 if power >= 4 and blocks <= power * 3 // 4 else power)


def pad_table(table: SegmentTable, length: int) -> SegmentTable:
    """Return the table of a batch padded to `length` tokens: padding is causal text in documents that end with their
    block."""
    edges = np.union1d([table.num_tokens, length], np.arange(table.num_tokens // BLOCK + 1, length // BLOCK) * BLOCK)
    pads = len(edges) - 1
    columns = {
        "document": table.num_documents + np.arange(pads),
        "role": np.full(pads, Role.TEXT),
        "attend": np.full(pads, Attend.CAUSAL),
        "start": edges[:-1],
        "length": np.diff(edges),
        "boundary": np.zeros(pads, np.int64),
        "position": np.zeros(pads, np.int64),
        "rule": np.full(pads, PositionRule.ADVANCE),
        "modality": np.zeros(pads, np.int64),
    }
    joined = {name: np.concatenate([getattr(table, name), column]) for name, column in columns.items()}
    return SegmentTable(**joined, names=table.names)


def masked_attention(query: Tensor, key: Tensor, value: Tensor, ids: Sequence[Tensor], blocks: Sequence[Tensor]) -> Tensor:
    """Map query `[1, h, S, d]`, key and value `[1, h_kv, S, d]`, the rule's ids `[S]` and `block_tensors` to `[1, h, S,
    d]`."""
    document, block, noise = ids

    def rule(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        same_block = (block[q] == block[k]) & (block[k] != OUTSIDE)
        shown = (noise[k] == OUTSIDE) | (noise[q] == noise[k])
        return (document[q] == document[k]) & ((q >= k) | same_block) & shown

    mask = assemble_mask(query.shape[2], blocks, rule)
    out = flex_attention(query, key, value, block_mask=mask, enable_gqa=query.shape[1] != key.shape[1])
    assert isinstance(out, Tensor)
    return out


@functools.cache
def _compiled(num_threads: int) -> MaskedAttention:
    """Return `masked_attention` compiled for `num_threads`.

    At the limit, whole-graph compilation raises instead of running eagerly.
    """
    return torch.compile(masked_attention, fullgraph=True, dynamic=False, options={"cpp.threads": num_threads})


def compiled_attention(query: Tensor, key: Tensor, value: Tensor, ids: Sequence[Tensor], blocks: Sequence[Tensor]) -> Tensor:
    """Run `masked_attention` in a kernel that is compiled once per process and number of threads.

    A CPU kernel has buffers for the threads that it was compiled for, and would write beyond them with more. As an
    option, their number is also part of the key of kernels cached on disk.
    """
    with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT):
        return _compiled(torch.get_num_threads())(query, key, value, ids, blocks)


class FlexPlan:
    """Executor "flex": any layout; training on CUDA, inference also on the CPU."""

    executor = "flex"

    def __init__(
        self,
        table: SegmentTable,
        stored: StoredOrder,
        *,
        device: torch.device,
        reason: str,
        attention: MaskedAttention = compiled_attention,
    ) -> None:
        self.reason = reason
        self._attention = attention
        self._places = upload(token_places(stored), device)
        self._padding = padded_length(table.num_tokens) - table.num_tokens
        padded = pad_table(table, padded_length(table.num_tokens))
        rule = token_rule(padded)
        self._ids = tuple(upload(x.astype(np.int32), device) for x in (rule.document, rule.block, rule.noise))
        self._blocks = block_tensors(padded, device)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map query `[P, h, d]`, key and value `[P, h_kv, d]` of one dtype, h a multiple of h_kv, to `[P, h, d]`."""
        out = self._attention(self._in_order(query), self._in_order(key), self._in_order(value), self._ids, self._blocks)
        tokens = out[0].transpose(0, 1)[: len(self._places)]
        return torch.zeros_like(query).index_copy(0, self._places, tokens)

    def _in_order(self, stored: Tensor) -> Tensor:
        """Map `[P, h, d]` to `[1, h, S, d]`, zero at padding."""
        tokens = F.pad(stored.index_select(0, self._places), (0, 0, 0, 0, 0, self._padding))
        return tokens.transpose(0, 1)[None]
