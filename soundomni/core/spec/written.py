"""The shape in which specs are written: that of `Spec`, and short keys for models with one modality that is made.

No torch here: specs are checked before anything heavy is imported.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from soundomni.core.spec.schema import (
    AttendName,
    Chat,
    ClipSpec,
    CodecSpec,
    DataSpec,
    GuidanceSpec,
    ModalitySpec,
    Normalize,
    Positions,
    SegmentTemplate,
    Slot,
    TokenizerSpec,
    TrainSpec,
    slot,
    switched_off,
)


@dataclass(frozen=True, kw_only=True)
class ConnectorsSpec:
    """Connectors for latents or codes (in and out) and for understanding features (in)."""

    latent: Slot = slot("connector")
    features: Slot | None = slot("connector", optional=True)


@dataclass(frozen=True, kw_only=True)
class WrittenModel:
    """The parts of a model.

    `codec`, `connectors`, `objective`, `encoder`, `normalize`, `latent_positions`, `feature_positions` and
    `feature_attend` are short keys: they stand for the keys in `modalities` of the only modality that is made, or heard.

    Args:
        backbone, router: plugins.
        codec, connectors, objective, encoder: plugins; without an encoder the model only generates.
        modalities: name → modality, in order, for models that make or hear several; null removes one of an earlier layer.
        tokenizer: text tokens.
        prompt: how a request is written in front of the clip that is made: segments of text, as the task `generate` has them, and of
            clips that are given, each of another modality.
        freeze: parts that are not trained: names of expert streams ("und", "gen"), "embedding", "encoder" and
            "connectors" for all of them, MODALITY.encoder and MODALITY.connector for one, and "critic".
        critic: backbone of a network of its own that scores what the model makes, for objectives with a review, such as masked-critic; it
            has connectors of its own and shares codecs and encoders. By default the model's own heads give the scores.
        latent_positions: position rule of latents or codes; "shared" as in the original, where a sin-cos table orders them, or
            "advance".
        feature_positions: position rule of understanding features.
        feature_attend: attention among understanding features.
        normalize: normalization of latents, fitted on the first clips of the data: per "channel", with
            one "global" scale, "half" way between, or "none". Codes are never normalized.
        chat: template for hearing, asking about and describing clips: "none" for segments with nothing around them, or
            "qwen2-audio" for the turns that Qwen2-Audio was trained on.
        start: model to start training from: a model directory, a shipped model or a Hub repository. Its spec is the
            lowest layer, so the spec only lists what changes; its tokenizer is used, and its weights must match.
        start_fresh: parts that are not taken from `start` but begin as they would without it: backbone, critic, codec,
            encoder, latent_connector or features_connector; or MODALITY.codec, MODALITY.encoder or MODALITY.connector.
        clips: how clips that the model is given are prepared, to hear, keep or vary them; null for what all datasets in
            `data.datasets` agree on.
    """

    backbone: Slot = slot("backbone")
    router: Slot = slot("router")
    codec: Slot = slot("codec")
    connectors: ConnectorsSpec
    objective: Slot = slot("objective")
    encoder: Slot | None = slot("encoder", optional=True)
    modalities: dict[str, ModalitySpec | None] = field(default_factory=dict)
    tokenizer: TokenizerSpec = field(default_factory=TokenizerSpec)
    prompt: list[SegmentTemplate] = field(default_factory=lambda: [SegmentTemplate(text="{caption}")])
    freeze: list[str] = field(default_factory=list)
    critic: Slot | None = slot("backbone", optional=True)
    latent_positions: Positions = "shared"
    feature_positions: Positions = "advance"
    feature_attend: AttendName = "full"
    normalize: Normalize = switched_off("it to none", "channel")
    chat: Chat = switched_off("it to none", "none")
    start: str | None = None
    start_fresh: list[str] | None = None
    clips: ClipSpec | None = None


@dataclass(frozen=True, kw_only=True)
class WrittenSpec:
    """A complete spec: of a model, of a codec that is trained on its own, or of a chain of models.

    Model directories do not have `data` and `train`, and chains do not either. `sampler` and `guidance` are short keys: they stand for
    those of the only modality that is made.

    Args:
        stages: name → directory of a model or of a run, relative to the spec, in the order in which they make what the next ones are
            given.
    """

    model: WrittenModel | None = None
    codec: CodecSpec | None = None
    stages: dict[str, str | None] | None = None
    sampler: Slot | None = slot("sampler", optional=True)
    guidance: GuidanceSpec = switched_off("its scale to 1", GuidanceSpec)
    data: DataSpec | None = None
    train: TrainSpec | None = None
