"""The shape of a spec: what a YAML file may say. No torch here: specs are checked before anything heavy is imported.

A field of type Slot holds a plugin: in YAML a short name, `dist:name`, or `{class_path: name, init_args: {...}}`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Slot:
    """A plugin chosen by a spec.

    Args:
        class_path: a registered name (`oobleck`, `acme:oobleck`); a dotted import path only with --trust-class-paths.
        init_args: keyword arguments of its constructor.
    """

    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)


def replaced(default: Callable[[], Any]) -> Any:
    """Declare a mapping that a later layer replaces whole, where other mappings merge; a dotted override still sets one entry."""
    return field(default_factory=default, metadata={"replace": True})


def switched_off(by: str, default: Any) -> Any:
    """Declare a field that does not take null; `by` is what the error for null says to set instead."""
    metadata = {"off": by}
    return field(default_factory=default, metadata=metadata) if callable(default) else field(default=default, metadata=metadata)


def slot(kind: str, *, optional: bool = False, many: bool = False, default: str | None = None) -> Any:
    """Declare a dataclass field that holds a plugin of `kind` (or None, or a list of them); without `default`, a spec must name one."""
    metadata = {"kind": kind, "optional": optional, "many": many}
    if many:
        return field(default_factory=list, metadata=metadata)
    if optional:
        return field(default=None, metadata=metadata)
    if default is not None:
        return field(default=Slot(default), metadata=metadata)
    return field(metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """Text tokens. With `path`, a directory or file that holds a tokenizer.json; otherwise byte-level BPE learned from the run's captions.

    Args:
        path: a tokenizer.json or a directory with one.
        vocab_size: of the learned tokenizer, special tokens included; 261 or fewer means bytes.
    """

    path: str | None = None
    vocab_size: int = 512


@dataclass(frozen=True, kw_only=True)
class ConnectorsSpec:
    """The connectors of the representation (in and out) and of the understanding features (in)."""

    latent: Slot = slot("connector")
    features: Slot | None = slot("connector", optional=True)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The parts of a model.

    Args:
        backbone, router, codec, connectors, objective, encoder: plugins; without an encoder the model only generates.
        tokenizer: text tokens.
        freeze: parts that stay as they are: names of expert streams ("und", "gen"), "embedding", "encoder", "connectors".
        latent_positions: position rule of latents; "shared" as in the original, where a sin-cos table orders them, or "advance".
        feature_positions: position rule of understanding features.
        feature_attend: attention among understanding features.
        normalize: how latents are normalized, fitted on the first clips of the data: per "channel", with
            one "global" scale, "half" way between, or "none".
        chat: the template in which clips are heard, asked about and described: "none" for segments with nothing around them, or
            "qwen2-audio" for the turns that this model was trained on.
        start: the model that training starts from: a model directory, a shipped model or a repository of the Hub. Its spec lies
            below all layers, so that they need not repeat it; its tokenizer and weights are taken, the latter strictly.
        start_fresh: parts that are not taken from `start`, but begin as a spec without it has them.
    """

    backbone: Slot = slot("backbone")
    router: Slot = slot("router")
    codec: Slot = slot("codec")
    connectors: ConnectorsSpec
    objective: Slot = slot("objective")
    encoder: Slot | None = slot("encoder", optional=True)
    tokenizer: TokenizerSpec = field(default_factory=TokenizerSpec)
    freeze: list[str] = field(default_factory=list)
    latent_positions: Literal["shared", "advance"] = "shared"
    feature_positions: Literal["shared", "advance"] = "advance"
    feature_attend: Literal["full", "causal"] = "full"
    normalize: Literal["channel", "half", "global", "none"] = switched_off("it to none", "channel")
    chat: Literal["none", "qwen2-audio"] = switched_off("it to none", "none")
    start: str | None = None
    start_fresh: list[Literal["codec", "encoder", "latent_connector", "features_connector"]] | None = None


@dataclass(frozen=True, kw_only=True)
class GuidanceSpec:
    """Classifier-free guidance.

    Args:
        scale: 1 is none; v = v_uncond + scale * (v_cond - v_uncond).
        interval: timesteps (low, high) within which it applies; outside, the scale is 1.
        renormalize: "none", or what norm is kept at most: of the whole clip ("global") or of each token ("channel").
        renormalize_min: lower bound of the renormalization factor.
    """

    scale: float = switched_off("it to 1", 1.0)
    interval: tuple[float, float] = (0.0, 1.0)
    renormalize: Literal["none", "global", "channel"] = "none"
    renormalize_min: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SegmentTemplate:
    """One segment of a task: exactly one of `text` and `audio`.

    Args:
        text: a pattern with `{caption}`, `{question}` or `{answer}`.
        audio: "features" (to understand), "target" (to make) or "context" (clean latents).
        loss: whether the text is predicted; targets always are.
        known: for a target, the (least, most) share of its first frames that are given, for continuation.
        gap: for a target, the (least, most) share of its frames that are made, together at a random place; the others are given.
    """

    text: str | None = None
    audio: Literal["features", "target", "context"] | None = None
    loss: bool = False
    known: tuple[float, float] | None = None
    gap: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class MixtureEntry:
    """A dataset in the mixture.

    Args:
        source: the dataset plugin.
        tasks: task → weight among the tasks; names of built-in tasks or of `data.tasks`. A later layer that gives a mapping replaces
            all of it; `tasks.describe=2` sets one weight.
        weight: how often it is drawn, against the other datasets.
        is_mandatory: whether an empty or missing dataset stops the run; otherwise it is left out and named.
        num_used: only the first this many items of the seeded order; -1 for all.
        max_seconds: longer clips are cut at a random place (the target of generation) or refused (understanding); None for no limit.
    """

    source: Slot = slot("dataset")
    tasks: dict[str, float] = replaced(lambda: {"generate": 1.0, "describe": 1.0})
    weight: float = 1.0
    is_mandatory: bool = True
    num_used: int = -1
    max_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class DropoutSpec:
    """How often each condition of a generated target is left out of its sample, independently per segment."""

    text: float = switched_off("it to 0", 0.1)
    latent: float = switched_off("it to 0", 0.3)
    features: float = switched_off("it to 0", 0.3)


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What is trained on, and how it is packed.

    Args:
        datasets: name → dataset; null leaves out one that an earlier layer named.
        tasks: name → segments, beside the built-in tasks generate, describe, answer, continue and fill.
        tokens_per_batch: token budget of a packed batch (fixed).
        max_tokens_per_sample: longer samples are refused and reported; None means the budget.
        lookahead: samples the packer may choose from.
        condition_dropout: for guidance.
        skip_limit: share of unreadable clips, of all seen, beyond which the run stops.
        workers: threads that read and resample ahead.
        seed: of order, task choice, cuts, noise and dropout.
    """

    datasets: dict[str, MixtureEntry | None]
    tasks: dict[str, list[SegmentTemplate]] = field(default_factory=dict)
    tokens_per_batch: int = 4096
    max_tokens_per_sample: int | None = None
    lookahead: int = 64
    condition_dropout: DropoutSpec = switched_off("its text, latent and features to 0", DropoutSpec)
    skip_limit: float = switched_off("it to 1", 0.1)
    workers: int = 2
    seed: int = 42


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """How gradients become updates, and how they are clipped before.

    Args:
        rule: the optimizer.
        lr: peak learning rate.
        betas, eps: of Adam's moments.
        weight_decay: share of a weight, times the learning rate, that each step takes off; of matrices, not of biases and gains.
        clip: largest norm of all gradients together; 0 for no limit.
    """

    rule: Slot = slot("optimizer", default="adamw")
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-15
    weight_decay: float = switched_off("it to 0", 0.0)
    clip: float = switched_off("it to 0", 1.0)


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec:
    """Learning rate over steps.

    Args:
        kind: after a linear warm-up, "constant", "cosine" down to `min_lr`, or "inverse" square root.
        warmup_steps: steps of the warm-up; null takes a tenth of the run, 2000 at most.
        min_lr: learning rate at the end of a cosine.
    """

    kind: Literal["constant", "cosine", "inverse"] = "constant"
    warmup_steps: int | None = None
    min_lr: float = 1e-7


@dataclass(frozen=True, kw_only=True)
class LoRASpec:
    """Low-rank adapters in place of whole experts: the weights of the named streams stay as they are, and only adapters are trained.

    What other streams and parts do is up to `model.freeze` as ever.

    Args:
        streams: expert streams that get adapters, such as "und" and "gen".
        rank: of the two matrices of an adapter.
        alpha: an adapter counts alpha / rank times.
        dropout: share of an adapter's inputs that are zeroed in training.
        targets: names, or last parts of names, of the linear layers that get one, such as "qkv", "output", "mlp.gate_up" and "mlp.down".
    """

    streams: list[str]
    rank: int = 8
    alpha: float = 16.0
    dropout: float = switched_off("it to 0", 0.0)
    targets: list[str] = field(default_factory=lambda: ["qkv", "output"])


@dataclass(frozen=True, kw_only=True)
class ParallelSpec:
    """The device mesh: parameters are sharded over `shard` ranks (-1: all that are left) and replicated over `replicate`."""

    shard: int = -1
    replicate: int = 1


@dataclass(frozen=True, kw_only=True)
class ValidationSpec:
    """What is made and described during training, to hear and see how far it is.

    Args:
        every: steps between; 0 for never.
        prompts: texts to generate from.
        seconds: length of each.
        num_describe: clips of the data to describe.
    """

    every: int = switched_off("it to 0", 0)
    prompts: list[str] = field(default_factory=list)
    seconds: float = 1.0
    num_describe: int = switched_off("it to 0", 2)


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """The run.

    Args:
        run_dir: where everything of the run goes.
        target: what is trained: the "model", or the "codec" alone.
        steps: optimizer steps.
        batches_per_step: packed batches per optimizer step over all ranks; must be a multiple of the number of ranks.
        loss_weights: of "ce" and of the objective's losses by name; 1 when not named. A later layer that gives a mapping replaces all
            of it; `loss_weights.ce=2` sets one.
        lora: train adapters of some expert streams; null trains the weights themselves.
        ema_decay: of the averaged weights; 0 for none.
        validation: what to make on the way; null for nothing.
        precision: of the forward and backward pass; parameters and optimizer are always float32.
        activation_checkpointing: recompute each layer in the backward pass.
        compile: compile each layer.
        log_every: steps between lines of metrics.
        save_every: steps between checkpoints; 0 saves only at the end.
        keep_checkpoints: complete checkpoints to keep.
        seed: of the initial weights.
        threads: CPU threads per process; 0 leaves torch's choice.
    """

    run_dir: str
    target: Literal["model", "codec"] = "model"
    steps: int = 1000
    batches_per_step: int = 1
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    schedule: ScheduleSpec = switched_off("its kind to constant and its warmup_steps to 0", ScheduleSpec)
    loss_weights: dict[str, float] = replaced(dict)
    lora: LoRASpec | None = None
    ema_decay: float = switched_off("it to 0", 0.9999)
    precision: Literal["fp32", "bf16"] = "fp32"
    activation_checkpointing: bool = False
    compile: bool = False
    parallel: ParallelSpec = field(default_factory=ParallelSpec)
    validation: ValidationSpec | None = field(default_factory=ValidationSpec)
    trackers: list[Slot] = slot("tracker", many=True)
    log_every: int = 10
    save_every: int = switched_off("it to 0, which saves at the end only", 500)
    keep_checkpoints: int = 2
    seed: int = 4396
    threads: int = 0

    @property
    def validating(self) -> ValidationSpec:
        """Validation as it takes place: null means never."""
        return self.validation if self.validation is not None else ValidationSpec(every=0)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A whole spec. `data` and `train` are absent from a model directory."""

    model: ModelSpec
    sampler: Slot = slot("sampler")
    guidance: GuidanceSpec = switched_off("its scale to 1", GuidanceSpec)
    data: DataSpec | None = None
    train: TrainSpec | None = None
