"""Packed attention without a model: documents of mixed segments in one batch, and exact attention for your own q, k and
v.

The segments determine who sees whom: text is causal, a clip to understand sees all of itself, and nothing outside a
clip that is still noise sees it. No mask of size N x N is built, except by the reference that the result is compared
with.
"""

import torch

from soundomni.core.attention import plan_attention
from soundomni.core.attention.stored_order import store
from soundomni.core.sequence import Attend, PositionRule, Role, Segment, SegmentTable, audio_segment, text_segment


def text(tokens: int) -> Segment:
    """Return text of `tokens` tokens, including its two boundaries; attention does not look at the ids."""
    return text_segment([5] * (tokens - 2), bos=1, eos=2)


def clip(frames: int, role: Role, attend: Attend) -> Segment:
    """Return a clip of `frames` frames between two boundary tokens."""
    return audio_segment(role=role, attend=attend, num_frames=frames, num_samples=0, boundary_ids=(3, 4), positions=PositionRule.ADVANCE)


documents = [
    [text(7), clip(40, Role.LATENT, Attend.NOISE)],  # text to audio
    [clip(60, Role.FEATURES, Attend.FULL), text(12)],  # a description
    [text(5), clip(30, Role.FEATURES, Attend.FULL), text(9), clip(25, Role.LATENT, Attend.NOISE)],  # both, interleaved
]
table = SegmentTable.from_samples(documents)
stored = store(table, lambda role: int(role == Role.LATENT), num_streams=2)  # latents have their own expert stream
print(f"{table.num_documents} documents, {table.num_segments} segments, {table.num_tokens} tokens in streams of {stored.stream_lengths}")

torch.manual_seed(0)
cpu, places = torch.device("cpu"), len(stored.order)
query, key, value = (torch.randn(places, heads, 16, requires_grad=True) for heads in (4, 2, 2))  # two query heads share a key head
plan = plan_attention(table, stored, device=cpu)
print(f"executor {plan.executor}: {plan.reason}")

reference = plan_attention(table, stored, device=cpu, executor="reference")
found, expected = plan(query, key, value), reference(query, key, value)
gradients = [torch.autograd.grad(out.square().sum(), (query, key, value)) for out in (found, expected)]
print(f"largest difference from the reference: {(found - expected).abs().max():.0e}")
print(f"and of the gradients: {max((a - b).abs().max() for a, b in zip(*gradients, strict=True)):.0e}")
