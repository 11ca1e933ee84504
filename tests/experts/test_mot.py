"""The backbone against a per-token float64 reference, against Qwen2 and Qwen3 of transformers, and its own promises."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import segments, to_streams, to_tokens
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from soundomni.core.attention import plan_attention
from soundomni.core.attention.layout import Layout
from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Router
from soundomni.core.sequence import Attend, Role, Segment, SegmentTable, text_segment
from soundomni.experts import DenseRouter, ModalityRouter, MoTBackbone, MoTExpert, RMSNorm, SwiGLU, TopKRouter
from soundomni.experts.rope import rope_tables, rotate

LayOut = Callable[..., tuple[SegmentTable, Layout]]
VOCAB = 37


def tiny(router: Router, seed: int = 0, **sizes: object) -> MoTBackbone:
    """A float64 backbone whose every parameter is far from zero and from one, so that each of them matters."""
    torch.manual_seed(seed)
    given = {"hidden_dim": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "intermediate_dim": 24} | sizes
    backbone = MoTBackbone(vocab_size=VOCAB, router=router, **given).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return backbone


def reference(backbone: MoTBackbone, router: Router, table: SegmentTable, tokens: Tensor) -> Tensor:
    """Every token by itself, in document order, with the weights of its own expert; attention from the rule of visibility."""
    names = [router.streams[router.stream_of(Role(role))] for role in table.token_roles()]
    hidden = list(tokens)
    for layer in backbone.layers:
        experts: list[MoTExpert] = [layer.experts[name] for name in names]
        heads = [project(e, x, int(p), backbone.rope_theta) for e, x, p in zip(experts, hidden, table.token_positions(), strict=True)]
        for t, mixed in enumerate(attend(table, heads)):
            middle = hidden[t] + experts[t].output.weight @ mixed
            hidden[t] = middle + swiglu(experts[t].mlp, rms(experts[t].mlp_norm, middle))
    return torch.stack([rms(backbone.norms[name], x) for name, x in zip(names, hidden, strict=True)])


def rms(norm: RMSNorm, x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def swiglu(mlp: SwiGLU, x: Tensor) -> Tensor:
    width = mlp.down.in_features
    gate, up = mlp.gate_up.weight[:width] @ x, mlp.gate_up.weight[width:] @ x
    return mlp.down.weight @ (gate * gate.sigmoid() * up)


def project(expert: MoTExpert, x: Tensor, position: int, theta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries and keys, and values of one token; rotation as multiplication of complex numbers."""
    h, g, d = expert.num_heads, expert.num_kv_heads, expert.head_dim
    flat = expert.qkv.weight @ rms(expert.attention_norm, x) + expert.qkv.bias
    query, key, value = flat[: h * d].view(h, d), flat[h * d : (h + g) * d].view(g, d), flat[(h + g) * d :].view(g, d)
    if expert.q_norm is not None and expert.k_norm is not None:
        query, key = rms(expert.q_norm, query), rms(expert.k_norm, key)
    turn = torch.exp(1j * position * theta ** (-2 * torch.arange(d // 2, dtype=torch.float64) / d))

    def turned(y: Tensor) -> Tensor:
        z = torch.complex(y[:, : d // 2], y[:, d // 2 :]) * turn
        return torch.cat([z.real, z.imag], dim=-1)

    return turned(query), turned(key), value


def attend(table: SegmentTable, heads: list[tuple[Tensor, Tensor, Tensor]]) -> list[Tensor]:
    row = table.token_segments()
    out = []
    for q, (query, _, _) in enumerate(heads):
        seen = []
        for k in range(len(heads)):
            same, noise = row[q] == row[k], table.attend[row[k]] == Attend.NOISE
            block = same and table.attend[row[k]] != Attend.CAUSAL
            if table.document[row[q]] == table.document[row[k]] and (q >= k or block) and (same or not noise):
                seen.append(k)
        mixed = []
        for h in range(len(query)):
            g = h * len(heads[0][1]) // len(query)
            scores = torch.stack([query[h] @ heads[k][1][g] for k in seen]) / math.sqrt(query.shape[-1])
            mixed.append(scores.softmax(0) @ torch.stack([heads[k][2][g] for k in seen]))
        out.append(torch.cat(mixed))
    return out


@pytest.mark.parametrize(
    ("router", "sizes", "multiple"),
    [
        (ModalityRouter(), {}, 1),
        (ModalityRouter(), {"qk_norm": "gen", "gen_intermediate_dim": 10}, 8),
        (ModalityRouter(), {"qk_norm": "all", "head_dim": 6, "num_kv_heads": None, "rope_theta": 100.0}, 1),
        (DenseRouter(), {"num_kv_heads": 1}, 8),
    ],
    ids=["plain", "narrow-gen", "wide-heads", "dense"],
)
def test_forward_and_backward_equal_the_per_token_reference(
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
@given(documents=st.lists(st.lists(segments, min_size=1, max_size=3), min_size=1, max_size=3), multiple=st.sampled_from([1, 4, 16]))
def test_any_packing_equals_the_reference(lay_out: LayOut, documents: list[list[Segment]], multiple: int) -> None:
    router = ModalityRouter()
    backbone = tiny(router, num_layers=1, hidden_dim=8, num_heads=2, num_kv_heads=1)
    table, layout = lay_out(documents, router, multiple)
    tokens = torch.randn(table.num_tokens, 8, dtype=torch.float64)
    with torch.no_grad():
        streams, _ = backbone(to_streams(layout, tokens), layout)
        torch.testing.assert_close(to_tokens(layout, streams), reference(backbone, router, table, tokens), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("executor", ["reference", "merged"])
def test_planned_attention_gives_the_same(executor: str, lay_out: LayOut, documents: list[list[Segment]]) -> None:
    backbone = tiny(ModalityRouter()).float()
    table, layout = lay_out(documents, ModalityRouter(), 8)
    planned = replace(layout, attention=plan_attention(table, layout.stored, device=torch.device("cpu"), executor=executor))
    streams = to_streams(layout, torch.randn(table.num_tokens, 16))
    parameters = list(backbone.layers.parameters())
    results = []
    for each in (layout, planned):
        out, _ = backbone(streams, each)
        results.append((out, torch.autograd.grad(sum(x.square().sum() for x in out), parameters)))  # type: ignore[arg-type]
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4)


def test_single_precision_stays_near_the_reference(lay_out: LayOut, documents: list[list[Segment]]) -> None:
    router = ModalityRouter()
    backbone = tiny(router)
    table, layout = lay_out(documents, router)
    tokens = torch.randn(table.num_tokens, 16, dtype=torch.float64)
    with torch.no_grad():
        wide = reference(backbone, router, table, tokens)
        streams, _ = backbone.float()(to_streams(layout, tokens.float()), layout)
    torch.testing.assert_close(to_tokens(layout, streams).double(), wide, rtol=1e-4, atol=1e-5)


def test_bfloat16_model_keeps_its_dtype(lay_out: LayOut, documents: list[list[Segment]]) -> None:
    router = ModalityRouter()
    backbone = tiny(router, qk_norm="all").bfloat16()
    table, layout = lay_out(documents, router)
    streams, _ = backbone(to_streams(layout, torch.randn(table.num_tokens, 16).bfloat16()), layout)
    assert {x.dtype for x in streams} == {torch.bfloat16} and all(x.isfinite().all() for x in streams)


def qwen(kind: str) -> torch.nn.Module:
    """A tiny language model of transformers with random weights, norms and biases included."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(1)
    extra = {"vocab_size": VOCAB, "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 5e4}}
    if kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**sizes, **extra, tie_word_embeddings=True))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**sizes, **extra, head_dim=12, attention_bias=False, tie_word_embeddings=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def copy_qwen(backbone: MoTBackbone, state: dict[str, Tensor]) -> None:
    """Copies a Qwen checkpoint into the first stream."""
    ours = {"embedding.weight": state["model.embed_tokens.weight"], "norms.all.weight": state["model.norm.weight"]}
    if backbone.lm_head is not None:
        ours["lm_head.weight"] = state["lm_head.weight"]
    for i in range(len(backbone.layers)):
        old, new = f"model.layers.{i}.", f"blocks.{i}.experts.all."
        ours[new + "qkv.weight"] = torch.cat([state[f"{old}self_attn.{x}_proj.weight"] for x in "qkv"])
        biases = [state.get(f"{old}self_attn.{x}_proj.bias") for x in "qkv"]
        width = ours[new + "qkv.weight"].shape[0]
        ours[new + "qkv.bias"] = torch.cat([b for b in biases if b is not None]) if biases[0] is not None else torch.zeros(width)
        ours[new + "output.weight"] = state[old + "self_attn.o_proj.weight"]
        ours[new + "mlp.gate_up.weight"] = torch.cat([state[f"{old}mlp.{x}_proj.weight"] for x in ("gate", "up")])
        ours[new + "mlp.down.weight"] = state[old + "mlp.down_proj.weight"]
        ours[new + "attention_norm.weight"] = state[old + "input_layernorm.weight"]
        ours[new + "mlp_norm.weight"] = state[old + "post_attention_layernorm.weight"]
        ours |= {
            f"{new}{x}_norm.weight": state[f"{old}self_attn.{x}_norm.weight"] for x in "qk" if f"{old}self_attn.q_norm.weight" in state
        }
    backbone.load_state_dict(ours, strict=True)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_one_stream_is_qwen(kind: str, lay_out: LayOut) -> None:
    model = qwen(kind)
    extra = {"tie_embeddings": True} if kind == "qwen2" else {"qk_norm": "all", "head_dim": 12}
    backbone = MoTBackbone(
        vocab_size=VOCAB,
        router=DenseRouter(),
        hidden_dim=32,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        intermediate_dim=48,
        rope_theta=5e4,
        norm_eps=1e-5,
        **extra,  # type: ignore[arg-type]
    )
    copy_qwen(backbone, model.state_dict())
    _, layout = lay_out([[text_segment(range(20), bos=1, eos=2)]], DenseRouter())
    ids = torch.randint(VOCAB, (22,))
    streams, _ = backbone([backbone.embed(ids)], layout)
    theirs = model.model(ids[None]).last_hidden_state[0]
    torch.testing.assert_close(streams[0], theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backbone.head(streams[0]), model(ids[None]).logits[0], rtol=1e-5, atol=1e-5)


def test_rotation_equals_transformers() -> None:
    from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

    positions = torch.tensor([0, 1, 7, 7, 1000])
    query, key = torch.randn(5, 3, 8), torch.randn(5, 2, 8)
    cos, sin = rope_tables(positions, head_dim=8, theta=1e4, dtype=torch.float32)
    angles = (positions[:, None] * 1e4 ** (-torch.arange(0, 8, 2) / 8)).repeat(1, 2)
    theirs = apply_rotary_pos_emb(query, key, angles.cos(), angles.sin())
    torch.testing.assert_close((rotate(query, cos, sin), rotate(key, cos, sin)), theirs, rtol=1e-5, atol=2e-4)


def test_streams_share_only_attention_embedding_and_head() -> None:
    backbone = tiny(ModalityRouter(), qk_norm="gen")
    und, gen = ({id(p) for p in backbone.expert_parameters(name)} for name in ("und", "gen"))
    shared = {id(p) for p in (backbone.embedding.weight, backbone.lm_head.weight)}  # type: ignore[union-attr]
    assert not und & gen and not (und | gen) & shared
    assert und | gen | shared == {id(p) for p in backbone.parameters()}
    assert len(gen) == len(und) + 2 * len(backbone.layers)
    with pytest.raises(SpecError, match=r"unknown expert stream 'gem'.*Did you mean 'gen'"):
        list(backbone.expert_parameters("gem"))


def test_a_frozen_stream_stays_and_passes_gradients_through(lay_out: LayOut, documents: list[list[Segment]]) -> None:
    backbone = tiny(ModalityRouter())
    for parameter in backbone.expert_parameters("und"):
        parameter.requires_grad_(False)
    table, layout = lay_out(documents, ModalityRouter())
    tokens = torch.randn(table.num_tokens, 16, dtype=torch.float64, requires_grad=True)
    streams, _ = backbone(to_streams(layout, tokens), layout)
    streams[0].square().sum().backward()
    assert all(p.grad is None for p in backbone.expert_parameters("und"))
    assert backbone.blocks[0].experts["gen"].qkv.weight.grad.abs().sum() > 0  # text sees clean latents
    assert tokens.grad is not None and tokens.grad.abs().sum() > 0


def test_a_stream_of_padding_alone_takes_part_with_zero_gradients(lay_out: LayOut) -> None:
    backbone = tiny(ModalityRouter(), qk_norm="all")
    table, layout = lay_out([[text_segment([5, 6], bos=1, eos=2)]], ModalityRouter(), 4)
    streams, _ = backbone(to_streams(layout, torch.randn(table.num_tokens, 16, dtype=torch.float64)), layout)
    sum(x.sum() for x in streams).backward()  # type: ignore[union-attr]
    grads = [p.grad for p in backbone.expert_parameters("gen")]
    assert all(g is not None and not g.any() for g in grads)
    assert not streams[1].any()


def test_layers_can_be_checkpointed_alone(lay_out: LayOut, documents: list[list[Segment]]) -> None:
    layer = tiny(ModalityRouter()).layers[0]
    table, layout = lay_out(documents, ModalityRouter())
    streams = to_streams(layout, torch.randn(table.num_tokens, 16, dtype=torch.float64))
    rope = rope_tables(layout.position_ids, head_dim=4, theta=1e4, dtype=torch.float64)
    parameters = list(layer.parameters())
    plain = torch.autograd.grad(sum(x.square().sum() for x in layer(streams, rope, layout)[0]), parameters)  # type: ignore[arg-type]
    again = checkpoint(layer, streams, rope, layout, use_reentrant=False)[0]
    torch.testing.assert_close(torch.autograd.grad(sum(x.square().sum() for x in again), parameters), plain)  # type: ignore[arg-type]


def test_copies_start_equal_where_shapes_agree() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_dim": 16, "num_layers": 2, "intermediate_dim": 24, "gen_intermediate_dim": 9}
    backbone = MoTBackbone(vocab_size=VOCAB, router=ModalityRouter(), qk_norm="gen", copy_initialize=True, **sizes)  # type: ignore[arg-type]
    rows = [j * 24 // 9 for j in range(9)]
    for layer in backbone.layers:
        und, gen = layer.experts["und"], layer.experts["gen"]
        for name, parameter in und.named_parameters():
            if not name.startswith("mlp."):
                assert torch.equal(gen.get_parameter(name), parameter)
        assert torch.equal(gen.mlp.gate_up.weight[:9], und.mlp.gate_up.weight[rows])
        assert torch.equal(gen.mlp.gate_up.weight[9:], und.mlp.gate_up.weight[[24 + r for r in rows]])
        assert torch.equal(gen.mlp.down.weight, und.mlp.down.weight[:, rows])
        assert torch.equal(gen.q_norm.weight, torch.ones(4))
        assert gen.qkv.weight.data_ptr() != und.qkv.weight.data_ptr()
    with torch.no_grad():
        backbone.norms["und"].weight.fill_(3)
    backbone.copy_streams()
    assert backbone.norms["gen"].weight.eq(3).all()


def test_copies_of_mixtures_pair_their_networks() -> None:
    router = TopKRouter(num_experts=3, k=1)
    backbone = MoTBackbone(vocab_size=VOCAB, router=router, hidden_dim=8, num_heads=2, num_layers=1, copy_initialize=True)
    und, gen = (backbone.blocks[0].experts[name].mlp for name in router.streams)
    assert all(torch.equal(a, b) for a, b in zip(und.parameters(), gen.parameters(), strict=True))
    assert not torch.equal(und.networks[0].down.weight, und.networks[1].down.weight)


def test_initial_weights_have_the_stated_spread() -> None:
    torch.manual_seed(0)
    backbone = MoTBackbone(vocab_size=512, router=ModalityRouter(), hidden_dim=192, num_heads=6, num_layers=8)
    expert = backbone.blocks[3].experts["gen"]
    for weight, std in [
        (backbone.embedding.weight, 0.02),
        (backbone.lm_head.weight, 0.02),  # type: ignore[union-attr]
        (expert.qkv.weight, 0.02),
        (expert.mlp.gate_up.weight, 0.02),
        (expert.output.weight, 0.02 / 4),
        (expert.mlp.down.weight, 0.02 / 4),
    ]:
        assert weight.std().item() == pytest.approx(std, rel=0.02)
    assert not expert.qkv.bias.any() and expert.mlp.down.in_features == 512
    with torch.device("meta"):
        empty = MoTBackbone(vocab_size=512, router=ModalityRouter(), hidden_dim=192, num_heads=6, num_layers=8)
    filled = empty.to_empty(device="cpu")
    filled.reset_parameters()
    assert filled.blocks[3].experts["gen"].output.weight.std().item() == pytest.approx(0.02 / 4, rel=0.02)
    assert filled.norms["gen"].weight.eq(1).all() and not filled.blocks[0].experts["und"].qkv.bias.any()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_dim": 30}, "hidden_dim is 30; expected a multiple of num_heads, which is 4"),
        ({"num_heads": 0}, "num_heads is 0; expected at least 1"),
        ({"num_kv_heads": 3}, "num_heads is 4; expected a multiple of num_kv_heads, which is 3"),
        ({"head_dim": 5}, "head_dim is 5; expected an even number"),
        ({"intermediate_dim": 8, "gen_intermediate_dim": 9, "copy_initialize": True}, "gen_intermediate_dim is 9 .* at most .* 8"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        MoTBackbone(vocab_size=VOCAB, router=ModalityRouter(), **sizes)  # type: ignore[arg-type]


def test_mixtures_report_one_balance_loss_that_padding_does_not_touch(lay_out: LayOut, documents: list[list[Segment]]) -> None:
    router = TopKRouter(num_experts=3, k=2)
    backbone = tiny(router)
    results = []
    for multiple in (1, 32):
        table, layout = lay_out(documents, router, multiple)
        torch.manual_seed(5)
        streams, losses = backbone(to_streams(layout, torch.randn(table.num_tokens, 16, dtype=torch.float64)), layout)
        total, count = losses["load_balance"]
        assert count.item() == table.num_tokens * len(backbone.layers)
        gates = [p for n, p in backbone.named_parameters() if "gate.weight" in n]
        results.append((to_tokens(layout, streams), total, *torch.autograd.grad(total, gates)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)
