"""Where the tensors of a Qwen2 language model belong, and what else a checkpoint holds.

Several tensors there may be one here: queries, keys and values are rows of `qkv`, in this order; gate and up are rows
of `gate_up`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from soundomni.core.errors import CheckpointError, amount, some
from soundomni.core.pretrained.foreign_weights import WeightFile
from soundomni.experts.checkpoints.language_config import LanguageConfig

Shape = tuple[int, ...]
ROTARY = "rotary frequencies, which follow from rope_theta"


@dataclass(frozen=True)
class Rows:
    """A tensor of a checkpoint that provides some or all rows of a parameter here."""

    name: str
    shape: Shape


@dataclass(frozen=True, kw_only=True)
class Expert:
    """Names, in a checkpoint, of the language model that becomes one stream of the backbone.

    Args:
        stream: name of the stream.
        prefix: prefix of its tensors, such as "language_model.model.".
        suffix: what follows the names of its modules, such as "_moe_gen".
        intermediate_dim: width of its feed-forward networks.
        qk_norm: whether it has norms of queries and keys.
    """

    stream: str
    prefix: str
    suffix: str = ""
    intermediate_dim: int
    qk_norm: bool = False


def shape_of(weights: WeightFile, name: str, dimensions: int) -> Shape:
    """Return the shape of a tensor that determines sizes.

    Raise CheckpointError if it is missing or has other dimensions.
    """
    if name not in weights:
        raise CheckpointError(f"'{weights.path}' lacks {name}")
    shape = weights.shape(name)
    if len(shape) != dimensions:
        raise CheckpointError(f"'{weights.path}': {name} is {list(shape)}; expected {dimensions} dimensions")
    return shape


def check_depth(weights: WeightFile, prefix: str, num_layers: int) -> None:
    """Raise CheckpointError if the part under `prefix` does not have this many layers: a config may state anything."""
    found = count_layers(weights, prefix)
    if found != num_layers:
        raise CheckpointError(f"'{weights.path}' holds {found} layers of {prefix.rstrip('.')}; its config says {num_layers}")


def count_layers(weights: WeightFile, prefix: str) -> int:
    """Count the layers of the part under `prefix`."""
    start = f"{prefix}layers."
    return len({name.removeprefix(start).partition(".")[0] for name in weights if name.startswith(start)})


def shared_rows(config: LanguageConfig, *, prefix: str, head: str | None) -> Iterator[tuple[str, tuple[Rows, ...]]]:
    """Yield embedding and head with the tensors that they consist of; without a head, the embedding is also the
    head."""
    shape = (config.vocab_size, config.hidden_dim)
    yield "backbone.embedding.weight", (Rows(f"{prefix}embed_tokens.weight", shape),)
    if head is not None:
        yield "backbone.lm_head.weight", (Rows(f"{head}weight", shape),)


def expert_rows(config: LanguageConfig, expert: Expert) -> Iterator[tuple[str, tuple[Rows, ...]]]:
    """Yield each parameter of a stream of the backbone with the tensors that it consists of."""
    hidden, inner, end = config.hidden_dim, expert.intermediate_dim, expert.suffix
    width = {"q": config.num_heads * config.head_dim}
    width["k"] = width["v"] = config.num_kv_heads * config.head_dim
    for layer in range(config.num_layers):
        theirs, ours = f"{expert.prefix}layers.{layer}.", f"backbone.blocks.{layer}.experts.{expert.stream}."
        attention, mlp = f"{theirs}self_attn.", f"{theirs}mlp{end}."
        yield f"{ours}attention_norm.weight", (Rows(f"{theirs}input_layernorm{end}.weight", (hidden,)),)
        yield f"{ours}qkv.weight", tuple(Rows(f"{attention}{x}_proj{end}.weight", (n, hidden)) for x, n in width.items())
        yield f"{ours}qkv.bias", tuple(Rows(f"{attention}{x}_proj{end}.bias", (n,)) for x, n in width.items())
        if expert.qk_norm:
            yield from ((f"{ours}{x}_norm.weight", (Rows(f"{attention}{x}_norm{end}.weight", (config.head_dim,)),)) for x in "qk")
        yield f"{ours}output.weight", (Rows(f"{attention}o_proj{end}.weight", (hidden, width["q"])),)
        yield f"{ours}mlp_norm.weight", (Rows(f"{theirs}post_attention_layernorm{end}.weight", (hidden,)),)
        yield f"{ours}mlp.gate_up.weight", tuple(Rows(f"{mlp}{x}_proj.weight", (inner, hidden)) for x in ("gate", "up"))
        yield f"{ours}mlp.down.weight", (Rows(f"{mlp}down_proj.weight", (hidden, inner)),)
    yield f"backbone.norms.{expert.stream}.weight", (Rows(f"{expert.prefix}norm{end}.weight", (hidden,)),)


def named_rows(prefixes: Mapping[str, str], shapes: Mapping[str, Shape]) -> Iterator[tuple[str, tuple[Rows, ...]]]:
    """Yield each parameter of `shapes` under one of `prefixes` (ours → theirs) with the one tensor that it corresponds
    to."""
    for name, shape in shapes.items():
        for ours, theirs in prefixes.items():
            if name.startswith(ours):
                yield name, (Rows(theirs + name.removeprefix(ours), shape),)


def check_rows(weights: WeightFile, needed: Iterable[Rows], *, model: str, known: Mapping[str, str]) -> dict[str, str]:
    """Compare names and shapes before anything is read.

    Args:
        weights: the checkpoint.
        needed: every tensor that is used.
        model: kind of model, for the error.
        known: prefix of other tensors → why they are not used.

    Returns:
        The entries of the checkpoint that are not needed, and why they are not used.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or is not explained by anything.
    """
    rows = {one.name: one.shape for one in needed}
    missing = sorted(rows.keys() - set(weights))
    if missing:
        raise CheckpointError(f"'{weights.path}' lacks {amount(len(missing), 'tensor')} that its config asks for ({some(missing)})")
    for name, shape in rows.items():
        if weights.shape(name) != shape:
            raise CheckpointError(f"'{weights.path}': {name} is {list(weights.shape(name))}; its config says {list(shape)}")
    unused = dict.fromkeys(weights.others, "not a tensor")
    unexpected = []
    for name in weights:
        if name in rows:
            continue
        reason = (
            ROTARY if name.endswith("rotary_emb.inv_freq") else next((why for start, why in known.items() if name.startswith(start)), None)
        )
        if reason is None:
            unexpected.append(name)
        else:
            unused[name] = reason
    if unexpected:
        raise CheckpointError(
            f"'{weights.path}' has {amount(len(unexpected), 'tensor')} that {model} does not have ({some(sorted(unexpected))})"
        )
    return unused
