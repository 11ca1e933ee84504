"""Structure of a spec: what a YAML file may contain.

No torch here: specs are checked before anything heavy is imported.

A field of type Slot holds a plugin: in YAML a short name, `dist:name`, or `{class_path: name, init_args: {...}}`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from soundomni.core.errors import SpecError


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
    """Declare a mapping that a later layer replaces as a whole, unlike other mappings, which merge; an override still
    sets one entry."""
    return field(default_factory=default, metadata={"replace": True})


def switched_off(by: str, default: Any) -> Any:
    """Declare a field that does not accept null; `by` is what the error for null says to set instead."""
    metadata = {"off": by}
    return field(default_factory=default, metadata=metadata) if callable(default) else field(default=default, metadata=metadata)


def slot(kind: str, *, optional: bool = False, many: bool = False, named: bool = False, default: str | None = None) -> Any:
    """Declare a field that holds a plugin of `kind` (or None, or a list of them, or a mapping of names to them, of which null
    removes one); without `default`, a spec must name one."""
    metadata = {"kind": kind, "optional": optional, "many": many, "named": named}
    if named:
        return field(default_factory=dict, metadata=metadata)
    if many:
        return field(default_factory=list, metadata=metadata)
    if optional:
        return field(default=None, metadata=metadata)
    if default is not None:
        return field(default=Slot(default), metadata=metadata)
    return field(metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """Text tokenizer: the tokenizer.json in `path`, or byte-level BPE learned from the run's captions.

    Args:
        path: a tokenizer.json, or a directory with one.
        vocab_size: vocabulary size of the learned tokenizer, including special tokens; 261 or fewer means bytes.
    """

    path: str | None = None
    vocab_size: int = 512


@dataclass(frozen=True, kw_only=True)
class GuidanceSpec:
    """Classifier-free guidance.

    Args:
        scale: v = v_uncond + scale * (v_cond - v_uncond); 1 turns guidance off.
        interval: timesteps (low, high) within which guidance applies; outside, the scale is 1.
        renormalize: limit on the guided prediction's norm: that of the conditional prediction over the whole clip
            ("global") or per token ("channel"); "none" for no limit.
        renormalize_min: lower bound of the renormalization factor.
        rescale: share of the guided output of the network that is brought back to the standard deviation over channels that the
            conditional output has in that frame (Lin et al. 2024); 0 turns it off. For velocities only.
        parallel: how much to keep of the part of guidance that is parallel to the conditional estimate of the clean data (APG, Sadat
            et al. 2024): 1 for plain guidance, 0 for only the orthogonal part. For velocities only.
        norm_threshold: largest norm of the change that guidance makes to a whole clip, before it is scaled; 0 for no
            limit. For velocities only.
        momentum: how much of the changes of earlier steps to add to this change before it is limited (APG). A number
            below 0 pushes away from them; 0 is off. For velocities only.
    """

    scale: float = switched_off("it to 1", 1.0)
    interval: tuple[float, float] = (0.0, 1.0)
    renormalize: Literal["none", "global", "channel"] = "none"
    renormalize_min: float = 0.0
    rescale: float = switched_off("it to 0", 0.0)
    parallel: float = switched_off("it to 1", 1.0)
    norm_threshold: float = switched_off("it to 0", 0.0)
    momentum: float = switched_off("it to 0", 0.0)


@dataclass(frozen=True, kw_only=True)
class SegmentTemplate:
    """One segment of a task: exactly one of `text` and `audio`.

    Args:
        text: pattern with `{caption}`, `{question}`, `{answer}` or `{seconds}`, the length of the clip; or
            `{seconds_start}` and `{seconds_total}`, in whole seconds: where in its recording the clip begins, and how
            long the recording is. A part of a file that a manifest names counts as a recording of its own, and so does
            a clip that `clips` cuts or pads.
        audio: "features" (to understand), "target" (to generate) or "context" (clean latents or codes).
        of: the modality of the audio; null for the first one that is heard, or made. For text, the modality whose encoder reads it;
            null for the text tokens of the model.
        loss: whether the text is predicted; targets always are.
        known: for a target, (least, most) share of frames at its start that are kept, for continuation.
        gap: for a target, (least, most) share of its frames to generate, in one gap at a random place; the others are
            kept.
    """

    text: str | None = None
    audio: Literal["features", "target", "context"] | None = None
    of: str | None = None
    loss: bool = False
    known: tuple[float, float] | None = None
    gap: tuple[float, float] | None = None


Normalize = Literal["channel", "half", "global", "none"]
Positions = Literal["shared", "advance"]
AttendName = Literal["full", "causal"]
Enters = Literal["prefix", "cross", "global", "cross+global"]
Chat = Literal["none", "qwen2-audio"]


@dataclass(frozen=True, kw_only=True)
class ModalitySpec:
    """A way into the hidden space of a model, and out of it if it has an objective.

    It has a codec, for clips that are made or given, or an encoder, for clips that are heard, never both. With an
    objective and a sampler, the model makes such clips.

    Args:
        codec: codec of clips that are given or made.
        encoder: encoder of clips that are heard.
        connector: carries its tokens.
        objective: with it, the modality can be made.
        sampler: how it is made; needed with an objective.
        guidance: guidance while it is made.
        normalize: normalization of latents, fitted on the first clips of the data: per "channel", with one "global" scale,
            "half" way between, or "none". Codes are never normalized.
        positions: position rule of its tokens: "advance" counts them, "shared" gives all one position.
        attend: attention among the tokens of a clip that is heard.
        enters: how texts, numbers and clips that an encoder reads reach the clip that is made after them: as tokens
            before it in the sequence ("prefix"), as tokens that the clip's tokens attend to in every layer ("cross"),
            or as the mean of these tokens, which scales and shifts the norms of every layer ("global"). With
            "cross+global", the mean stays when the condition is left out, in training and for guidance.
        aligned: modalities whose tokens are added to those of a clip that is made, frame by frame, instead of taking places of
            their own in the sequence; they must have the same number of frames.
        window: seconds to generate even for shorter clips, which are then cut to their length: for models that only
            know clips of one length, padded with silence. Null generates only the requested length.
        headroom: seconds to generate past the end of each clip and then cut off: for models that were trained with
            silence after their clips.
    """

    codec: Slot | None = slot("codec", optional=True)
    encoder: Slot | None = slot("encoder", optional=True)
    connector: Slot = slot("connector")
    objective: Slot | None = slot("objective", optional=True)
    sampler: Slot | None = slot("sampler", optional=True)
    guidance: GuidanceSpec = switched_off("its scale to 1", GuidanceSpec)
    normalize: Normalize = switched_off("it to none", "none")
    positions: Positions = "advance"
    attend: AttendName = "full"
    enters: Enters = switched_off("it to prefix", "prefix")
    aligned: list[str] = field(default_factory=list)
    window: float | None = None
    headroom: float = switched_off("it to 0", 0.0)


ClipCut = Literal["start", "onset", "random"]


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """How clips are prepared, in this order: the part that is used, its length, its level.

    Every option is off by default.

    Args:
        cut: where the part that is used begins: at the "start"; at the "onset", 5 ms before the first sample that
            reaches a twentieth of the peak; or, for clips longer than `seconds`, at a "random" place. A model that was
            trained on random places takes the start of a clip that it is given.
        seconds: length of every clip: longer ones are cut, with a short fade-out unless the place is random, and
            shorter ones are padded with silence; null keeps their lengths.
        trim: decibels below the peak: what is quieter at both ends is removed, or, if the place is random, avoided;
            null keeps it.
        peak: largest absolute sample, such as 0.9; null keeps it. Silence stays silence.
        loudness: integrated loudness in LUFS (ITU-R BS.1770), such as -23; lower for clips that would exceed full
            scale. null keeps it.
    """

    cut: ClipCut = switched_off("it to start", "start")
    seconds: float | None = None
    trim: float | None = None
    peak: float | None = None
    loudness: float | None = None


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The parts of a model.

    Args:
        backbone, router: plugins.
        modalities: name → modality, in order; null removes one of an earlier layer.
        tokenizer: text tokens.
        prompt: how a request is written in front of the clip that is made: segments of text, as the task `generate` has them, and of
            clips that are given, each of another modality.
        freeze: parts that are not trained: names of expert streams ("und", "gen"), "embedding", "encoder" and
            "connectors" for all of them, MODALITY.encoder and MODALITY.connector for one, and "critic".
        critic: backbone of a network of its own that scores what the model makes, for objectives with a review, such as masked-critic; it
            has connectors of its own and shares codecs and encoders. By default the model's own heads give the scores.
        chat: template for hearing, asking about and describing clips: "none" for segments with nothing around them, or
            "qwen2-audio" for the turns that Qwen2-Audio was trained on.
        start: model to start training from: a model directory, a shipped model or a Hub repository. Its spec is the
            lowest layer, so the spec only lists what changes; its tokenizer is used, and its weights must match.
        start_fresh: parts that are not taken from `start` but begin as they would without it: backbone, critic,
            MODALITY.codec, MODALITY.encoder or MODALITY.connector.
        clips: how clips that the model is given are prepared, to hear, keep or vary them; null for what all datasets in
            `data.datasets` agree on.
    """

    backbone: Slot = slot("backbone")
    router: Slot = slot("router")
    modalities: dict[str, ModalitySpec | None]
    tokenizer: TokenizerSpec = field(default_factory=TokenizerSpec)
    prompt: list[SegmentTemplate] = field(default_factory=lambda: [SegmentTemplate(text="{caption}")])
    freeze: list[str] = field(default_factory=list)
    critic: Slot | None = slot("backbone", optional=True)
    chat: Chat = switched_off("it to none", "none")
    start: str | None = None
    start_fresh: list[str] | None = None
    clips: ClipSpec | None = None

    @property
    def used(self) -> dict[str, ModalitySpec]:
        """The modalities that are not removed, by name."""
        return {name: modality for name, modality in self.modalities.items() if modality is not None}

    @property
    def all_made(self) -> dict[str, ModalitySpec]:
        """The modalities that the model makes, by name."""
        return {name: modality for name, modality in self.used.items() if modality.objective is not None}

    @property
    def made(self) -> ModalitySpec:
        """The first modality that the model makes. Raise SpecError if it makes none."""
        for modality in self.all_made.values():
            return modality
        raise SpecError("the model makes no audio; expected a modality with a codec and an objective")

    @property
    def codec(self) -> Slot:
        """The codec of the first modality that the model makes. Raise SpecError if it makes none."""
        codec = self.made.codec
        assert codec is not None, "what is made has a codec"
        return codec

    @property
    def all_heard(self) -> dict[str, ModalitySpec]:
        """The modalities that the model hears through an encoder, by name."""
        return {name: modality for name, modality in self.used.items() if modality.encoder is not None}

    @property
    def takes_clips(self) -> tuple[str, ...]:
        """Names of the modalities of which a clip can be given, in the prompt or added to the one that is made."""
        in_prompt = [template.of for template in self.prompt if template.audio is not None and template.of is not None]
        return tuple(dict.fromkeys([*(name for one in self.all_made.values() for name in one.aligned), *in_prompt]))

    @property
    def takes_text(self) -> bool:
        """Whether the prompt has a text that says what to make."""
        return any("{caption}" in (template.text or "") for template in self.prompt)


@dataclass(frozen=True, kw_only=True)
class CodecSpec:
    """A codec that is trained on its own.

    Args:
        codec: the codec.
        critics: name → what judges its estimates of clips; null removes one of an earlier layer.
        freeze: parts of the codec that are not trained, such as encoder to fine-tune only the decoder.
        balance: decay of the average gradient of each critic's loss, by which the weights of these losses become shares of the
            gradient (EnCodec's balancer); 0 adds the losses up, each times its weight.
    """

    codec: Slot = slot("codec")
    critics: dict[str, Slot | None] = slot("critic", named=True)
    freeze: list[str] = field(default_factory=list)
    balance: float = switched_off("it to 0", 0.0)

    @property
    def used(self) -> dict[str, Slot]:
        """The critics that are not removed, by name."""
        return {name: critic for name, critic in self.critics.items() if critic is not None}


@dataclass(frozen=True, kw_only=True)
class MixtureEntry:
    """A dataset in the mixture.

    Args:
        source: the dataset plugin.
        tasks: task → weight among the tasks; names of built-in tasks or of `data.tasks`. A mapping in a later layer
            replaces this one entirely; `tasks.describe=2` sets one weight.
        weight: how often it is drawn, relative to the other datasets.
        is_mandatory: whether an empty or missing dataset stops the run; otherwise it is left out with a warning.
        num_used: number of items to use, from the start of the seeded order; -1 for all.
        held_out: share of its items that training never draws and that validation measures the losses on; 1 for a dataset
            that is only measured. Digests of the keys decide which items: the same in every run, and as the dataset grows.
        max_seconds: longer clips are cut at a random place (to generate) or skipped (to understand); null for no limit.
        clips: how clips are prepared, to generate and to understand, before `augmentations`; null for clips as they
            are. The trained model keeps it, and prepares the clips that it is given in the same way.
        balance: most draws of a clip per epoch. Clips with rare captions are drawn several times, so that these
            captions come up about as often as the median one; 1 draws every clip once.
        filters: name → filter, which decides which clips are used and may write captions, in order; null removes an
            earlier layer's.
        augmentations: name → augmentation, which changes clips at random during training, in order; null removes an
            earlier layer's.
    """

    source: Slot = slot("dataset")
    tasks: dict[str, float] = replaced(lambda: {"generate": 1.0, "describe": 1.0})
    weight: float = 1.0
    is_mandatory: bool = True
    num_used: int = -1
    held_out: float = 0.0
    max_seconds: float | None = None
    clips: ClipSpec | None = None
    balance: int = switched_off("it to 1", 1)
    filters: dict[str, Slot | None] = slot("filter", named=True)
    augmentations: dict[str, Slot | None] = slot("augmentation", named=True)

    @property
    def longest_seconds(self) -> float | None:
        """Length of the longest clips in seconds, as far as the options decide it."""
        return self.max_seconds if self.clips is None or self.clips.seconds is None else self.clips.seconds


@dataclass(frozen=True, kw_only=True)
class DropoutSpec:
    """Probability of leaving out each condition of a generated target, independently per segment.

    Args:
        text: share of texts.
        latent: share of clips that are given as latents or codes.
        features: share of clips that are heard, and of texts and numbers that an encoder reads.
        modalities: name of a modality, or "text" → its own share.
        together: names of modalities, joined by "+", of which "text" may be one → probability of leaving out all their segments
            at once, in addition.
    """

    text: float = switched_off("it to 0", 0.1)
    latent: float = switched_off("it to 0", 0.3)
    features: float = switched_off("it to 0", 0.3)
    modalities: dict[str, float] = field(default_factory=dict)
    together: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Training data and how it is packed.

    Args:
        datasets: name → dataset; null removes a dataset of an earlier layer.
        tasks: name → segments, in addition to the built-in tasks generate, describe, answer, continue and fill.
        tokens_per_batch: token budget of a packed batch (fixed).
        max_tokens_per_sample: longer samples are skipped and reported; null means the budget.
        lookahead: number of samples that the packer may choose from.
        condition_dropout: how often conditions are left out, for guidance.
        skip_limit: share of unreadable clips among all clips seen, beyond which the run stops.
        workers: threads that read and resample ahead.
        seed: seed of order, task choice, cuts, noise and dropout.
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
    """Optimizer and gradient clipping.

    Args:
        rule: the optimizer.
        lr: peak learning rate.
        betas, eps: parameters of Adam's moments.
        weight_decay: share of each weight, times the learning rate, that a step subtracts; applies to matrices, not to
            biases and gains.
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
        kind: after a linear warm-up, "constant", "cosine" down to `min_lr`, or "inverse" square root; or "inverse-power", as
            stable-audio-tools trains: lr · (1 − `warmup_decay`^(step + 1)) · (1 + step / `gamma`)^(−`power`), without other warm-up.
        warmup_steps: steps of the warm-up; null means a tenth of the run, at most 2000.
        min_lr: learning rate at the end of a cosine.
        gamma, power, warmup_decay: parameters of "inverse-power"; other kinds ignore them.
    """

    kind: Literal["constant", "cosine", "inverse", "inverse-power"] = "constant"
    warmup_steps: int | None = None
    min_lr: float = 1e-7
    gamma: float = 200_000.0
    power: float = 0.5
    warmup_decay: float = 0.999


@dataclass(frozen=True, kw_only=True)
class PhaseSpec:
    """A part of a step in which some of the parameters are trained.

    Args:
        optimizer: its optimizer; null for train.optimizer.
        schedule: its learning rate over steps; null for train.schedule.
        starts: number of steps before it begins.
    """

    optimizer: OptimizerSpec | None = None
    schedule: ScheduleSpec | None = None
    starts: int = 0


AdapterKind = Literal["lora", "dora"]


@dataclass(frozen=True, kw_only=True)
class LoRASpec:
    """Low-rank adapters: the weights of the named streams are frozen, and only their adapters are trained.

    `model.freeze` still decides about other streams and parts.

    Args:
        streams: expert streams that get adapters, such as "und" and "gen".
        kind: "lora", or "dora", which also learns the length of each row of a layer's weights (Liu et al. 2024).
        rank: rank of an adapter's two matrices.
        alpha: adapters are scaled by alpha / rank.
        dropout: share of an adapter's inputs that are zeroed in training.
        targets: names, or last parts of names, of the linear layers to adapt, such as "qkv", "output", "mlp.gate_up"
            and "mlp.down".
        interval: timesteps (low, high) of the flow at which the adapters act, as in `guidance.interval`: 0 is clean, 1 is noise. Only
            for backbones that know the timestep of each clip, such as dit; null for all timesteps.
    """

    streams: list[str]
    kind: AdapterKind = "lora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = switched_off("it to 0", 0.0)
    targets: list[str] = field(default_factory=lambda: ["qkv", "output"])
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """A frozen teacher: the model of `model.start`, as it was when training started.

    The model learns to make clips without guidance in its own sampler's steps, such as 8 steps of euler. For each clip,
    training draws one of these steps, the teacher covers it in several steps with guidance, and the model learns to get
    to the same place in one.

    Args:
        steps: number of steps that the teacher takes within one step of the model's sampler. They are midpoint steps,
            with two predictions each.
        guidance: guidance of the teacher; null for the guidance in its own spec.
    """

    steps: int = 2
    guidance: GuidanceSpec | None = None


@dataclass(frozen=True, kw_only=True)
class ParallelSpec:
    """Device mesh: parameters are sharded over `shard` ranks (-1: all that are left), replicated over `replicate`."""

    shard: int = -1
    replicate: int = 1


@dataclass(frozen=True, kw_only=True)
class ValidationSpec:
    """Losses to measure, and clips to generate and describe, during training, to follow its progress.

    The losses are measured on the items that `held_out` of a dataset keeps from training: before the first step, every
    `every` steps, and at the end.

    Args:
        every: steps between validations; 0 for never.
        num_held_out: held-out items of each dataset to measure the losses on, at most; -1 for all.
        timesteps: timesteps at which the losses of flow matching and diffusion are measured as well, each with all
            clips at that timestep; 1 is noise. For v-prediction they are angles on its circle, in quarter turns, as in
            stable-audio-tools. With n timesteps, they are measured on every n-th batch, and on at least one batch of
            each dataset and task, so that together they take about as long as the other losses. A list in a later layer
            replaces this one; [] for none.
        best: the measured number by which steps are compared, such as validation/loss; the checkpoint of the best step is
            kept. null compares none.
        better: whether a "lower" or a "higher" number is better.
        patience: validations in a row that are not better than the best one before the run ends early; 0 for never.
        prompts: texts to generate from.
        seconds: length of each generated clip; null for the length of the clips that the model is trained on if `clips` gives them all
            the same, otherwise 1 s.
        num_describe: number of clips of the data to describe.
    """

    every: int = switched_off("it to 0", 0)
    num_held_out: int = switched_off("it to 0", 256)
    timesteps: list[float] = switched_off("it to []", lambda: [0.1, 0.3, 0.5, 0.7, 0.9])
    best: str | None = None
    better: Literal["lower", "higher"] = "lower"
    patience: int = switched_off("it to 0", 0)
    prompts: list[str] = field(default_factory=list)
    seconds: float | None = None
    num_describe: int = switched_off("it to 0", 2)


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """Settings of a run.

    Args:
        run_dir: directory for everything that the run writes.
        steps: number of optimizer steps.
        batches_per_step: packed batches per optimizer step over all ranks; must be a multiple of the number of ranks.
        loss_weights: weights of "ce" and of the objective's losses by name; 1 if not named. A mapping in a later layer
            replaces this one entirely; `loss_weights.ce=2` sets one weight.
        loss_starts: number of steps before a loss counts; 0 if not named.
        phases: name → settings of a phase; null removes those of an earlier layer. Training a codec has two: "critics" and then "codec".
        lora: adapters for some expert streams; null trains the weights themselves.
        random_codec: allow a codec without weights to stay random. A model learns nothing useful from it, so this is
            for tests.
        teacher: how to learn from the model of `model.start` to make clips in a few steps without guidance; null to
            learn from data.
        ema_decay: decay of the averaged weights; 0 for no averaging.
        validation: what to generate and describe during training; null for nothing.
        precision: precision of the forward and backward pass; parameters and optimizer are always float32.
        activation_checkpointing: recompute each layer in the backward pass.
        compile: compile each layer.
        log_every: steps between lines of metrics.
        save_every: steps between checkpoints; 0 saves only at the end.
        keep_checkpoints: number of newest complete checkpoints to keep.
        keep_every: steps between checkpoints that are kept for good, besides the newest ones; 0 for none.
        seed: seed of the initial weights.
        threads: CPU threads per process; 0 leaves the choice to torch.
    """

    run_dir: str
    steps: int = 1000
    batches_per_step: int = 1
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    schedule: ScheduleSpec = switched_off("its kind to constant and its warmup_steps to 0", ScheduleSpec)
    loss_weights: dict[str, float] = replaced(dict)
    loss_starts: dict[str, int] = replaced(dict)
    phases: dict[str, PhaseSpec | None] = field(default_factory=dict)
    lora: LoRASpec | None = None
    random_codec: bool = False
    teacher: TeacherSpec | None = None
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
    keep_every: int = switched_off("it to 0", 0)
    seed: int = 4396
    threads: int = 0

    @property
    def set_phases(self) -> dict[str, PhaseSpec]:
        """The settings of phases that are not removed, by name."""
        return {name: phase for name, phase in self.phases.items() if phase is not None}

    @property
    def validating(self) -> ValidationSpec:
        """Effective validation settings: null means never."""
        return self.validation if self.validation is not None else ValidationSpec(every=0)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A complete spec: of a model, of a codec that is trained on its own, or of a chain of models.

    Model directories do not have `data` and `train`, and chains do not either.

    Args:
        stages: name → directory of a model or of a run, relative to the spec, in order; each stage's output is passed to the later ones.
    """

    model: ModelSpec | None = None
    codec: CodecSpec | None = None
    stages: dict[str, str | None] | None = None
    data: DataSpec | None = None
    train: TrainSpec | None = None

    @property
    def of_model(self) -> ModelSpec:
        """The model. Raise SpecError for a spec that has none, because it trains a codec, or chains models."""
        self.check_single()
        if self.model is None:
            raise SpecError("the spec trains a codec, and has no model. Give a spec with the section model")
        return self.model

    def check_single(self) -> None:
        """Raise SpecError for the spec of a chain, which has no model that could be built or trained."""
        if self.stages is not None:
            raise SpecError(f"the spec is a chain ({', '.join(self.stages)}); expected the spec of one model. Use the spec of one stage")

    @property
    def used_stages(self) -> dict[str, str]:
        """The directories of the stages that are not removed, by name; empty for a spec that is not a chain."""
        return {name: path for name, path in (self.stages or {}).items() if path is not None}
