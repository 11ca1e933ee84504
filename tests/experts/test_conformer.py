"""The Conformer against a reference that runs each document and each clip by itself in float64, and its own promises."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import segments, to_streams, to_tokens
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from soundomni.core.attention import plan_attention
from soundomni.core.attention.layout import Layout
from soundomni.core.attention.spaced_clips import space_clips
from soundomni.core.attention.stored_order import APART
from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Router
from soundomni.core.sequence import Attend, Role, Segment, SegmentTable, text_segment
from soundomni.experts import ConformerBackbone, ConformerExpert, DenseRouter, ModalityRouter
from soundomni.experts.depthwise import MOST_TAPS, DepthwiseConv
from soundomni.experts.rope import rope_tables

LayOut = Callable[..., tuple[SegmentTable, Layout]]
VOCAB = 37
CPU = torch.device("cpu")


def tiny(router: Router, seed: int = 0, **sizes: object) -> ConformerBackbone:
    """A float64 backbone whose every parameter is far from zero and from one, so that each of them matters."""
    torch.manual_seed(seed)
    given = {"hidden_dim": 16, "num_layers": 2, "num_heads": 4, "intermediate_dim": 24} | sizes
    backbone = ConformerBackbone(vocab_size=VOCAB, router=router, **given).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return backbone


def reference(backbone: ConformerBackbone, router: Router, table: SegmentTable, tokens: Tensor) -> Tensor:
    """All tokens in document order: weights of each token's own expert, attention by the rule of visibility, and torch's
    convolution of each clip with zeros around it."""
    names = [router.streams[router.stream_of(Role(role))] for role in table.token_roles()]
    hidden = tokens
    for layer in backbone.layers:
        experts: list[ConformerExpert] = [layer.experts[name] for name in names]
        hidden = by_token(experts, hidden, lambda e, x: x + 0.5 * swish(e.first, norm(e.first_norm, x)))
        hidden = hidden + attend(table, experts, hidden, backbone.rope_theta)
        gated = by_token(experts, hidden, lambda e, x: glu(linear(e.convolution.gated, norm(e.convolution.norm, x))))
        mixed = convolve(table, experts, gated)
        out = by_token(experts, mixed, lambda e, x: linear(e.convolution.pointwise, norm(e.convolution.inner_norm, x * x.sigmoid())))
        hidden = hidden + out
        hidden = by_token(experts, hidden, lambda e, x: norm(e.norm, x + 0.5 * swish(e.second, norm(e.second_norm, x))))
    return hidden


def by_token(experts: Sequence[ConformerExpert], tokens: Tensor, do: Callable[[ConformerExpert, Tensor], Tensor]) -> Tensor:
    return torch.stack([do(expert, token) for expert, token in zip(experts, tokens, strict=True)])


def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    centered = x - x.mean()
    return centered / (centered.square().mean() + layer.eps).sqrt() * layer.weight + layer.bias


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return layer.weight @ x if layer.bias is None else layer.weight @ x + layer.bias


def swish(network: nn.Module, x: Tensor) -> Tensor:
    up = linear(network.up, x)  # type: ignore[arg-type]
    return linear(network.down, up * up.sigmoid())  # type: ignore[arg-type]


def glu(x: Tensor) -> Tensor:
    value, gate = x.chunk(2)
    return value * gate.sigmoid()


def attend(table: SegmentTable, experts: Sequence[ConformerExpert], hidden: Tensor, theta: float) -> Tensor:
    """Rotation as multiplication of complex numbers; a token sees what the rule says."""
    row, first = table.token_segments(), experts[0]
    h, d = first.num_heads, first.head_dim
    heads = by_token(experts, hidden, lambda e, x: linear(e.qkv, norm(e.attention_norm, x))).view(-1, 3, h, d)
    frequencies = theta ** (-2 * torch.arange(d // 2, dtype=torch.float64) / d)
    turns = torch.exp(1j * torch.from_numpy(table.token_positions())[:, None] * frequencies)
    turned = torch.complex(heads[:, :2, :, : d // 2], heads[:, :2, :, d // 2 :]) * turns[:, None, None]
    query, key = torch.cat([turned.real, turned.imag], -1).unbind(1)
    out = []
    for q in range(len(hidden)):
        seen = []
        for k in range(len(hidden)):
            same, noise = row[q] == row[k], table.attend[row[k]] == Attend.NOISE
            block = same and table.attend[row[k]] != Attend.CAUSAL
            if table.document[row[q]] == table.document[row[k]] and (q >= k or block) and (same or not noise):
                seen.append(k)
        weights = (torch.einsum("hd,khd->hk", query[q], key[seen]) / math.sqrt(d)).softmax(-1)
        out.append(linear(experts[q].output, torch.einsum("hk,khd->hd", weights, heads[seen, 2]).flatten()))
    return torch.stack(out)


def convolve(table: SegmentTable, experts: Sequence[ConformerExpert], tokens: Tensor) -> Tensor:
    """Frames of a clip together, every other token by itself."""
    out = []
    for g in range(table.num_segments):
        start, length = int(table.start[g]), int(table.length[g])
        edge = int(table.boundary[g])
        parts = [(t, t + 1) for t in range(start, start + length)]
        if table.attend[g] != Attend.CAUSAL and length > 2 * edge:
            parts = [*parts[:edge], (start + edge, start + length - edge), *parts[length - edge :]]
        for begin, end in parts:
            depthwise = experts[begin].convolution.depthwise
            taps = depthwise.weight
            conv = F.conv1d(tokens[begin:end].T[None], taps, depthwise.bias, padding=taps.shape[-1] // 2, groups=len(taps))
            out.append(conv[0].T)
    return torch.cat(out)


@pytest.mark.parametrize(
    ("router", "sizes", "multiple"),
    [
        (ModalityRouter(), {}, 1),
        (ModalityRouter(), {"kernel_size": MOST_TAPS + 2, "conv_expansion": 1}, 8),
        (DenseRouter(), {"kernel_size": 3, "head_dim": 6, "rope_theta": 100.0}, 8),
        (DenseRouter(), {"kernel_size": 1}, 1),
    ],
    ids=["plain", "long-kernel", "dense", "one-tap"],
)
def test_forward_and_backward_equal_the_reference(
    router: Router, sizes: dict[str, object], multiple: int, lay_out: LayOut, documents: list[list[Segment]]
) -> None:
    backbone = tiny(router, **sizes)
    table, layout = lay_out(documents, router, multiple)
    tokens = torch.randn(table.num_tokens, 16, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(tokens)
    streams, losses = backbone(to_streams(layout, tokens), layout)
    ours, theirs = to_tokens(layout, streams), reference(backbone, router, table, tokens)
    assert losses == {}
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    leaves = [tokens, *(p for n, p in backbone.named_parameters() if not n.startswith(("embedding", "lm_head")))]
    for mine, other in zip(
        torch.autograd.grad((ours * weights).sum(), leaves), torch.autograd.grad((theirs * weights).sum(), leaves), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-8)


@settings(max_examples=12, deadline=None)
@given(
    documents=st.lists(st.lists(segments, min_size=1, max_size=3), min_size=1, max_size=3),
    multiple=st.sampled_from([1, 4, 16]),
    kernel=st.sampled_from([3, 5, 11]),
    router=st.sampled_from([ModalityRouter(), DenseRouter()]),
)
def test_any_packing_equals_the_reference(
    lay_out: LayOut, documents: list[list[Segment]], multiple: int, kernel: int, router: Router
) -> None:
    backbone = tiny(router, num_layers=1, hidden_dim=8, num_heads=2, kernel_size=kernel)
    table, layout = lay_out(documents, router, multiple)
    tokens = torch.randn(table.num_tokens, 8, dtype=torch.float64)
    with torch.no_grad():
        streams, _ = backbone(to_streams(layout, tokens), layout)
        torch.testing.assert_close(to_tokens(layout, streams), reference(backbone, router, table, tokens), rtol=1e-9, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=6),
    kernel=st.sampled_from([1, 3, 5, MOST_TAPS, MOST_TAPS + 2]),
    chosen=st.integers(0, 5),
)
def test_convolution_never_reads_a_neighbor_and_equals_each_clip_by_itself(
    lengths: list[tuple[int, bool]], kernel: int, chosen: int
) -> None:
    """Everything outside one clip is not a number, and so would be all that reads it; gradients too."""
    torch.manual_seed(len(lengths))
    conv = DepthwiseConv(4, kernel_size=kernel).double()
    clips = np.concatenate([np.full(n, i if inside else APART) for i, (n, inside) in enumerate(lengths)])
    starts = np.cumsum([0, *(n for n, _ in lengths)])
    chosen %= len(lengths)
    own = slice(int(starts[chosen]), int(starts[chosen + 1]))
    values = torch.full((len(clips), 4), float("nan"), dtype=torch.float64)
    values[own] = torch.randn(lengths[chosen][0], 4, dtype=torch.float64)
    values.requires_grad_()
    out = conv(values, space_clips(clips, conv.reach, CPU))[own]
    alone = values.detach()[own].requires_grad_()
    expected = conv(alone, space_clips(clips[own], conv.reach, CPU))
    assert torch.equal(out, expected)
    (grad,), (grad_alone,) = torch.autograd.grad(out.sum(), values), torch.autograd.grad(expected.sum(), alone)
    assert torch.equal(grad[own], grad_alone)
    outside = torch.cat([grad[: own.start], grad[own.stop :]])
    assert not outside.any()


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_a_document_does_not_change_another(lay_out: LayOut, data: st.DataObject) -> None:
    documents = data.draw(st.lists(st.lists(segments, min_size=1, max_size=3), min_size=2, max_size=3))
    router, multiple = ModalityRouter(), data.draw(st.sampled_from([1, 16]))
    backbone = tiny(router, hidden_dim=8, num_heads=2)
    table, layout = lay_out(documents, router, multiple)
    tokens = torch.randn(table.num_tokens, 8, dtype=torch.float64, requires_grad=True)
    out = to_tokens(layout, backbone(to_streams(layout, tokens), layout)[0])
    of = torch.from_numpy(np.repeat(table.document, table.length))
    for document in range(table.num_documents):
        (grad,) = torch.autograd.grad(out[of == document].sum(), tokens, retain_graph=True)
        assert not grad[of != document].any()


@pytest.mark.parametrize("executor", ["reference", "merged"])
def test_planned_attention_gives_the_same(executor: str, lay_out: LayOut, documents: list[list[Segment]]) -> None:
    backbone = tiny(ModalityRouter())
    table, layout = lay_out(documents, ModalityRouter(), 8)
    planned = replace(layout, attention=plan_attention(table, layout.stored, device=CPU, executor=executor))
    streams = to_streams(layout, torch.randn(table.num_tokens, 16, dtype=torch.float64))
    parameters = list(backbone.layers.parameters())
    results = []
    for each in (layout, planned):
        out, _ = backbone(streams, each)
        results.append((to_tokens(layout, out), torch.autograd.grad(to_tokens(layout, out).square().sum(), parameters)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-8, atol=1e-8)


def test_causal_tokens_do_not_see_later_ones(lay_out: LayOut) -> None:
    backbone = tiny(DenseRouter())
    table, layout = lay_out([[text_segment([5, 6, 7, 8], bos=1, eos=2)]], DenseRouter())
    tokens = torch.randn(table.num_tokens, 16, dtype=torch.float64, requires_grad=True)
    out = backbone([tokens], layout)[0][0]
    for place in range(len(out)):
        (grad,) = torch.autograd.grad(out[place].sum(), tokens, retain_graph=True)
        assert not grad[place + 1 :].any() and grad[: place + 1].abs().sum(1).all()


def test_a_stream_of_padding_alone_takes_part_with_zero_gradients(lay_out: LayOut) -> None:
    backbone = tiny(ModalityRouter())
    table, layout = lay_out([[text_segment([5, 6], bos=1, eos=2)]], ModalityRouter(), 4)
    streams, _ = backbone(to_streams(layout, torch.randn(table.num_tokens, 16, dtype=torch.float64)), layout)
    torch.stack([layout.take(streams, name).sum() for name in ("text", "latent")]).sum().backward()
    grads = [p.grad for p in backbone.expert_parameters("gen")]
    assert all(g is not None and not g.any() for g in grads)


def test_layers_can_be_checkpointed_alone(lay_out: LayOut, documents: list[list[Segment]]) -> None:
    layer = tiny(ModalityRouter()).layers[0]
    table, layout = lay_out(documents, ModalityRouter())
    streams = to_streams(layout, torch.randn(table.num_tokens, 16, dtype=torch.float64))
    rope = rope_tables(layout.position_ids, head_dim=4, theta=1e4, dtype=torch.float64)
    clips = [layout.spaced_clips(stream, 2) for stream in range(2)]
    parameters = list(layer.parameters())
    plain = torch.autograd.grad(sum(x.square().sum() for x in layer(streams, rope, clips, layout)[0]), parameters)  # type: ignore[arg-type]
    again = checkpoint(layer, streams, rope, clips, layout, use_reentrant=False)[0]
    torch.testing.assert_close(torch.autograd.grad(sum(x.square().sum() for x in again), parameters), plain)  # type: ignore[arg-type]


def test_bfloat16_model_keeps_its_dtype(lay_out: LayOut, documents: list[list[Segment]]) -> None:
    backbone = tiny(ModalityRouter()).bfloat16()
    table, layout = lay_out(documents, ModalityRouter())
    streams, _ = backbone(to_streams(layout, torch.randn(table.num_tokens, 16).bfloat16()), layout)
    assert {x.dtype for x in streams} == {torch.bfloat16} and all(x.isfinite().all() for x in streams)


def test_streams_share_only_attention_embedding_and_head() -> None:
    backbone = tiny(ModalityRouter())
    und, gen = ({id(p) for p in backbone.expert_parameters(name)} for name in ("und", "gen"))
    shared = {id(p) for p in (backbone.embedding.weight, backbone.lm_head.weight)}
    assert not und & gen and not (und | gen) & shared
    assert und | gen | shared == {id(p) for p in backbone.parameters()}
    with pytest.raises(SpecError, match=r"unknown expert stream 'gem'.*Did you mean 'gen'"):
        list(backbone.expert_parameters("gem"))


def test_the_sizes_of_soundstorm_have_350_million_parameters() -> None:
    """Borsos et al. 2023, section 4.1, with the embeddings and heads of 12 levels of 1024 codes."""
    with torch.device("meta"):
        backbone = ConformerBackbone(
            vocab_size=512, router=DenseRouter(), hidden_dim=1024, num_layers=12, num_heads=16, intermediate_dim=4096
        )
    codes = 12 * (1025 + 1024) * 1024
    assert sum(p.numel() for p in backbone.parameters()) + codes == pytest.approx(350e6, rel=0.02)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"kernel_size": 4}, "conformer: kernel_size is 4; expected an odd number, such as 3 or 5"),
        ({"hidden_dim": 10, "num_heads": 4}, "conformer: hidden_dim is 10; expected a multiple of num_heads, which is 4"),
        ({"hidden_dim": 12, "num_heads": 4}, "conformer: head_dim is 3; expected an even number"),
        ({"conv_expansion": 0}, "conformer: conv_expansion is 0; expected at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, int], expected: str) -> None:
    with pytest.raises(SpecError, match=expected):
        ConformerBackbone(vocab_size=VOCAB, router=DenseRouter(), **sizes)  # type: ignore[arg-type]
