"""Where the tensors of a Qwen2-Audio checkpoint belong: names of transformers 4 and 5, and the parameters here.

| | transformers 4 | transformers 5 |
|---|---|---|
| language model | `language_model.model.` | `model.language_model.` |
| its head | `language_model.lm_head.` | `lm_head.` |
| audio tower | `audio_tower.` | `model.audio_tower.` |
| projector | `multi_modal_projector.linear.` | `model.multi_modal_projector.linear.` |

Several tensors there may be one here: queries, keys and values are rows of `qkv`, in this order, gate and up those of `gate_up`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from soundomni.core.errors import CheckpointError
from soundomni.core.weight_files import WeightFile
from soundomni.experts.qwen2_audio_config import LanguageSizes

Shape = tuple[int, ...]
TOWER = "encoder.tower."
PROJECTOR = "features_connector.inward."
_NAMED = 3


@dataclass(frozen=True)
class Rows:
    """A tensor of a checkpoint that is some of the rows of a parameter here, or all of them."""

    name: str
    shape: Shape


@dataclass(frozen=True)
class Layout:
    """Prefixes of the parts of a checkpoint."""

    name: str
    language: str
    head: str
    tower: str
    projector: str


LAYOUTS = (
    Layout("transformers 5", "model.language_model.", "lm_head.", "model.audio_tower.", "model.multi_modal_projector.linear."),
    Layout("transformers 4", "language_model.model.", "language_model.lm_head.", "audio_tower.", "multi_modal_projector.linear."),
)


def find_layout(weights: WeightFile) -> Layout:
    """Returns the layout by the name of the embedding. Raises CheckpointError when it is none."""
    for layout in LAYOUTS:
        if f"{layout.language}embed_tokens.weight" in weights:
            return layout
    expected = " or ".join(f"{layout.language}embed_tokens.weight" for layout in LAYOUTS)
    raise CheckpointError(f"'{weights.path}' holds no Qwen2-Audio model: expected {expected}, found {_some(sorted(weights)) or 'nothing'}")


def check_depth(weights: WeightFile, prefix: str, num_layers: int) -> None:
    """Raises CheckpointError when the part under `prefix` has not just so many layers: a config may say anything."""
    start = f"{prefix}layers."
    found = {name.removeprefix(start).partition(".")[0] for name in weights if name.startswith(start)}
    if len(found) != num_layers:
        raise CheckpointError(
            f"'{weights.path}' holds {len(found)} layers of {prefix.rstrip('.')}, by its config {num_layers} are expected"
        )


def language_rows(sizes: LanguageSizes, *, language: str, head: str | None, stream: str) -> Iterator[tuple[str, tuple[Rows, ...]]]:
    """Yields each parameter of a backbone's stream, and of what streams share, with the tensors that it is made of.

    Args:
        sizes: of the language model.
        language, head: their prefixes; without a head, it is the embedding.
        stream: the name of the stream.
    """
    hidden, inner, vocab = sizes.hidden_dim, sizes.intermediate_dim, sizes.vocab_size
    width = {"q": sizes.num_heads * sizes.head_dim}
    width["k"] = width["v"] = sizes.num_kv_heads * sizes.head_dim
    yield "backbone.embedding.weight", (Rows(f"{language}embed_tokens.weight", (vocab, hidden)),)
    for layer in range(sizes.num_layers):
        theirs, ours = f"{language}layers.{layer}.", f"backbone.blocks.{layer}.experts.{stream}."
        yield f"{ours}attention_norm.weight", (Rows(f"{theirs}input_layernorm.weight", (hidden,)),)
        yield f"{ours}qkv.weight", tuple(Rows(f"{theirs}self_attn.{x}_proj.weight", (n, hidden)) for x, n in width.items())
        yield f"{ours}qkv.bias", tuple(Rows(f"{theirs}self_attn.{x}_proj.bias", (n,)) for x, n in width.items())
        yield f"{ours}output.weight", (Rows(f"{theirs}self_attn.o_proj.weight", (hidden, width["q"])),)
        yield f"{ours}mlp_norm.weight", (Rows(f"{theirs}post_attention_layernorm.weight", (hidden,)),)
        yield f"{ours}mlp.gate_up.weight", tuple(Rows(f"{theirs}mlp.{x}_proj.weight", (inner, hidden)) for x in ("gate", "up"))
        yield f"{ours}mlp.down.weight", (Rows(f"{theirs}mlp.down_proj.weight", (hidden, inner)),)
    yield f"backbone.norms.{stream}.weight", (Rows(f"{language}norm.weight", (hidden,)),)
    if head is not None:
        yield "backbone.lm_head.weight", (Rows(f"{head}weight", (vocab, hidden)),)


def hearing_rows(layout: Layout, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, tuple[Rows, ...]]]:
    """Yields each parameter of the audio tower and of the projector, of `shapes`, with the tensor that it is."""
    for name, shape in shapes.items():
        for ours, theirs in ((TOWER, layout.tower), (PROJECTOR, layout.projector)):
            if name.startswith(ours):
                yield name, (Rows(theirs + name.removeprefix(ours), shape),)


def check_rows(weights: WeightFile, needed: Iterable[Rows]) -> dict[str, str]:
    """Compares names and shapes before anything is read.

    Returns:
        What the checkpoint holds beside what is needed, and why it is not used.

    Raises:
        CheckpointError: a tensor is missing, of another shape, or one that nothing explains.
    """
    rows = {one.name: one.shape for one in needed}
    missing = sorted(rows.keys() - set(weights))
    if missing:
        raise CheckpointError(f"'{weights.path}' lacks {len(missing)} tensors that its config asks for ({_some(missing)})")
    for name, shape in rows.items():
        if weights.shape(name) != shape:
            raise CheckpointError(f"'{weights.path}': {name} is {list(weights.shape(name))}, by its config {list(shape)} is expected")
    unused = dict.fromkeys(weights.others, "not a tensor")
    unexpected = []
    for name in weights:
        if name in rows:
            continue
        if name.endswith("rotary_emb.inv_freq"):
            unused[name] = "rotary frequencies, which follow from rope_theta"
        else:
            unexpected.append(name)
    if unexpected:
        raise CheckpointError(f"'{weights.path}' holds {len(unexpected)} tensors that Qwen2-Audio has not ({_some(sorted(unexpected))})")
    return unused


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
