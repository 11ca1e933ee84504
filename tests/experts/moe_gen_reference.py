"""What BAGEL and the original SoundOmni compute, written token by token from their rules, in float64 and from their own tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from moe_gen_files import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, TEXT
from torch import Tensor

SOA, EOA = 0, 1


@dataclass(frozen=True)
class Block:
    """A run of tokens: text ids; or hidden vectors between two ids, clean, noisy or heard.

    Args:
        kind: "text", "clean", "noise" or "heard".
        ids: of the text, or the two around the vectors.
        hidden: `[N, H]` of audio.
    """

    kind: str
    ids: Sequence[int]
    hidden: Tensor | None = None


def latent_tokens(tensors: Mapping[str, Tensor], latents: Tensor, t: float) -> Tensor:
    """x_t `[N, D]` at timestep t as hidden tokens: the way in, the timestep, the place."""
    w = {name: tensor.double() for name, tensor in tensors.items()}
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float64) / 128)
    wave = torch.cat([(t * frequencies).cos(), (t * frequencies).sin()])
    first = torch.nn.functional.silu(w["time_embedder.mlp.0.weight"] @ wave + w["time_embedder.mlp.0.bias"])
    time = w["time_embedder.mlp.2.weight"] @ first + w["time_embedder.mlp.2.bias"]
    entered = latents.double() @ w["audiovae2llm.weight"].T + w["audiovae2llm.bias"]
    return entered + time + w["gen_pos_embed"][: len(latents)]


def forward(tensors: Mapping[str, Tensor], blocks: Sequence[Block]) -> tuple[Tensor, Tensor, Tensor]:
    """Runs one sample.

    Returns:
        The last hidden states `[L, H]` after the norms, which tokens belong to the generation expert `[L]`, and which are text `[L]`.
    """
    w = {name.removeprefix("language_model.model."): tensor.double() for name, tensor in tensors.items()}
    hidden, gen, text, position, block_of, kinds = [], [], [], [], [], []
    at = 0
    for index, block in enumerate(blocks):
        ids = [w["embed_tokens.weight"][i] for i in block.ids]
        inner = [] if block.hidden is None else list(block.hidden)
        rows = ids if block.hidden is None else [ids[SOA], *inner, ids[EOA]]
        shared = block.kind in ("clean", "noise")
        for offset, row in enumerate(rows):
            is_text = block.hidden is None or offset in (0, len(rows) - 1)
            hidden.append(row)
            text.append(is_text)
            gen.append(shared and not is_text)
            position.append(at if shared else at + offset)
            block_of.append(index)
            kinds.append(block.kind)
        at += {"noise": 0, "clean": 1}.get(block.kind, len(rows))
    x, length = torch.stack(hidden), len(hidden)
    allowed = torch.zeros(length, length, dtype=torch.bool)
    for q in range(length):
        for k in range(length):
            same = block_of[q] == block_of[k]
            whole = same and kinds[q] != "text"
            allowed[q, k] = (k <= q or whole) and not (kinds[k] == "noise" and not same)
    for layer in range(LAYERS):
        x = _layer(w, f"layers.{layer}.", x, gen, position, allowed)
    final = [_norm(row, w[f"norm{_end(is_gen)}.weight"]) for row, is_gen in zip(x, gen, strict=True)]
    return torch.stack(final), torch.tensor(gen), torch.tensor(text)


def _end(is_gen: bool) -> str:
    return "_moe_gen" if is_gen else ""


def _norm(row: Tensor, weight: Tensor) -> Tensor:
    return weight * row / torch.sqrt((row * row).mean() + float(TEXT["rms_norm_eps"]))


def _layer(w: Mapping[str, Tensor], at: str, x: Tensor, gen: Sequence[bool], position: Sequence[int], allowed: Tensor) -> Tensor:
    queries, keys, values = [], [], []
    for row, is_gen, place in zip(x, gen, position, strict=True):
        end = _end(is_gen)
        normed = _norm(row, w[f"{at}input_layernorm{end}.weight"])
        q, k, v = (w[f"{at}self_attn.{n}_proj{end}.weight"] @ normed + w[f"{at}self_attn.{n}_proj{end}.bias"] for n in "qkv")
        queries.append([_turn(_head_norm(w, f"{at}self_attn.q_norm{end}.weight", head), place) for head in q.reshape(HEADS, HEAD_DIM)])
        keys.append([_turn(_head_norm(w, f"{at}self_attn.k_norm{end}.weight", head), place) for head in k.reshape(KV_HEADS, HEAD_DIM)])
        values.append(v.reshape(KV_HEADS, HEAD_DIM))
    out = []
    for i, (row, is_gen) in enumerate(zip(x, gen, strict=True)):
        end, seen = _end(is_gen), [j for j in range(len(x)) if allowed[i, j]]
        heads = []
        for head in range(HEADS):
            group = head * KV_HEADS // HEADS
            scores = torch.stack([queries[i][head] @ keys[j][group] / math.sqrt(HEAD_DIM) for j in seen])
            heads.append(scores.softmax(0) @ torch.stack([values[j][group] for j in seen]))
        row = row + w[f"{at}self_attn.o_proj{end}.weight"] @ torch.cat(heads)
        normed = _norm(row, w[f"{at}post_attention_layernorm{end}.weight"])
        gate, up = (w[f"{at}mlp{end}.{n}_proj.weight"] @ normed for n in ("gate", "up"))
        out.append(row + w[f"{at}mlp{end}.down_proj.weight"] @ (gate * torch.sigmoid(gate) * up))
    assert x.shape[1] == HIDDEN
    return torch.stack(out)


def _head_norm(w: Mapping[str, Tensor], name: str, head: Tensor) -> Tensor:
    return _norm(head, w[name]) if name in w else head


def _turn(head: Tensor, place: int) -> Tensor:
    """Rotates (x_i, x_{i + d/2}) by place · theta^(−2i/d)."""
    half = HEAD_DIM // 2
    angles = place * float(TEXT["rope_theta"]) ** (-torch.arange(half, dtype=torch.float64) * 2 / HEAD_DIM)
    first, second = head[:half], head[half:]
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()])
