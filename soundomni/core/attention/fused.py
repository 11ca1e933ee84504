"""`scaled_dot_product_attention` with kernels that stay fast on CUDA: none plans again for every length, and none holds all weights.

Shape letters: B rows, q queries, k keys, h heads, h_kv key-value heads, d head dimensions.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Kernels for CUDA. That of cuDNN is left out: it makes a plan for every new number of keys, and text has a new one at every token."""


def fused_attention(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Map query `[B, h, q, d]`, key and value `[B, h_kv, k, d]`, h a multiple of h_kv, to `[B, h, q, d]`.

    Args:
        query, key, value: of one dtype.
        mask: bool, True where a query sees a key, or added to the scores; `[B, 1, q, k]`, or 1 instead of q. None for no mask.
        causal: whether query i only sees keys 0 to i; then q = k, and there is no mask.
    """
    is_shared = query.shape[1] != key.shape[1]
    if query.device.type != "cuda":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=is_shared)
    with sdpa_kernel(KERNELS):
        if not is_shared:
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        # On CUDA, only flash lets heads share keys, and it takes neither masks nor fp32; otherwise torch would hold all weights.
        if causal:
            key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return _as_queries(query, key, value, mask)


def _as_queries(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attend with the heads that share keys as further queries, so that no key is repeated."""
    b, h, q, d = query.shape
    group = h // key.shape[1]
    rows = query.reshape(b, key.shape[1], group * q, d)
    if mask is not None and mask.shape[2] > 1:
        mask = mask.repeat(1, 1, group, 1)
    return F.scaled_dot_product_attention(rows, key, value, attn_mask=mask).reshape(b, h, q, d)
