"""Names of the two experts in BAGEL and the original SoundOmni: the second has `_moe_gen` after the name of each
module.

    language_model.model.embed_tokens, language_model.lm_head            shared
    language_model.model.layers.N.self_attn.q_proj                       understanding
    language_model.model.layers.N.self_attn.q_proj_moe_gen               generation
    language_model.model.norm, language_model.model.norm_moe_gen

Widths are taken from the tensors: configs state widths of the generation expert that were never built.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from soundomni.core.errors import CheckpointError, some
from soundomni.core.files.names import CONFIG_FILE
from soundomni.core.pretrained.foreign_weights import WeightFile
from soundomni.core.tokenizer import TextTokenizer
from soundomni.experts.checkpoints.language_config import LanguageConfig, Node, read_language, read_node
from soundomni.experts.checkpoints.language_import import GEN, UND, Sources, backbone_slot
from soundomni.experts.checkpoints.language_layout import Expert, check_depth, expert_rows, shape_of, shared_rows

LANGUAGE, HEAD, SUFFIX = "language_model.model.", "language_model.lm_head.", "_moe_gen"
MODULE = "module."
"""Prefix that wrappers of distributed training put before every name."""
LLM_CONFIG_FILE = "llm_config.json"


@dataclass(frozen=True)
class Experts:
    """The two experts of a checkpoint.

    Args:
        config: config of the language model, with the rows that the embedding has.
        und, gen: names of each expert.
        tied: whether head and embedding share their weights.
    """

    config: LanguageConfig
    und: Expert
    gen: Expert
    tied: bool

    @property
    def qk_norm(self) -> Literal["none", "all", "gen"]:
        """Which of them have norms of queries and keys."""
        return "all" if self.und.qk_norm else "gen" if self.gen.qk_norm else "none"

    def backbone(self, tokenizer: TextTokenizer) -> dict[str, Any]:
        """Return the backbone for them, with a row for every token, as plain data of a spec."""
        slot = backbone_slot(self.config, vocab_rows=max(self.config.vocab_size, tokenizer.vocab_size), tied=self.tied)
        slot["init_args"] |= {"qk_norm": self.qk_norm, "gen_intermediate_dim": self.gen.intermediate_dim}
        return slot

    def rows(self) -> Sources:
        """Return each parameter of the backbone with the tensors that it consists of."""
        sources = dict(shared_rows(self.config, prefix=LANGUAGE, head=None if self.tied else HEAD))
        return sources | dict(expert_rows(self.config, self.und)) | dict(expert_rows(self.config, self.gen))


def beside(source: str | Path, llm: str | Path | None) -> Path:
    """Return the directory of config and tokenizer: `llm`, or that of the weights if it is None."""
    if llm is not None:
        return Path(llm)
    return Path(source) if Path(source).is_dir() else Path(source).parent


def check_layout(weights: WeightFile, model: str) -> None:
    """Raise CheckpointError unless a checkpoint holds a language model with two experts; `model` names the kind of
    model."""
    for name in (f"{LANGUAGE}embed_tokens.weight", f"{LANGUAGE}norm{SUFFIX}.weight"):
        if name not in weights:
            raise CheckpointError(f"'{weights.path}' does not hold a {model}; expected {name}, found {some(sorted(weights)) or 'nothing'}")


def find_language_config(directory: Path) -> tuple[LanguageConfig, Node] | None:
    """Read llm_config.json or config.json, which may hold the language model as a part; None if there is neither.

    Returns:
        Its config, and the whole file.
    """
    for name in (LLM_CONFIG_FILE, CONFIG_FILE):
        if (directory / name).is_file():
            tree = read_node(directory / name, "a config of a language model")
            nested = isinstance(tree.values.get("text_config"), dict)
            return (read_language(tree.node("text_config"), outer=tree) if nested else read_language(tree)), tree
    return None


def read_experts(weights: WeightFile, config: LanguageConfig) -> Experts:
    """Determine from the tensors what a config leaves open.

    Raises:
        CheckpointError: the checkpoint's depth differs from its config, or only its understanding expert has q/k norms.
    """
    check_depth(weights, LANGUAGE, config.num_layers)
    first = f"{LANGUAGE}layers.0."
    config = replace(config, vocab_size=shape_of(weights, f"{LANGUAGE}embed_tokens.weight", 2)[0])
    experts = {}
    for stream, suffix in ((UND, ""), (GEN, SUFFIX)):
        width = shape_of(weights, f"{first}mlp{suffix}.gate_proj.weight", 2)[0]
        qk_norm = f"{first}self_attn.q_norm{suffix}.weight" in weights
        experts[stream] = Expert(stream=stream, prefix=LANGUAGE, suffix=suffix, intermediate_dim=width, qk_norm=qk_norm)
    if experts[UND].qk_norm and not experts[GEN].qk_norm:
        raise CheckpointError(f"'{weights.path}' has q/k norms only in its understanding expert, which the backbone mot does not support")
    config = replace(config, intermediate_dim=experts[UND].intermediate_dim)
    return Experts(config, experts[UND], experts[GEN], tied=config.tied and f"{HEAD}weight" not in weights)
