"""From a spec to a model: every plugin is built through the registry, then they are joined."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Literal, cast

import torch

from soundomni.core.assembly.aligned import check_aligned
from soundomni.core.assembly.building_bounds import at_most
from soundomni.core.assembly.modality import CodecModality, EncoderModality, MadeModality, Modality, share
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.normalizer import LatentNormalizer
from soundomni.core.assembly.uninitialized import uninitialized
from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Backbone, Codec, Connector, Encoder, LevelsConnector, Objective, Prediction, Router, Sampler
from soundomni.core.limits import MOST_STEPS, check_count, check_seconds
from soundomni.core.representation import TokenSpec
from soundomni.core.spec.registry import build, load
from soundomni.core.spec.schema import ModalitySpec, ModelSpec, Slot

Scores = Literal["own", "none", "only"]
"""What a modality with a review outputs: predictions and scores, only predictions, or, in a critic, only scores."""


def build_model(
    spec: ModelSpec, *, vocab_size: int, trust_class_paths: bool = False, seed: int = 0, drawn: Collection[str] | None = None
) -> UnifiedModel:
    """Build the model of a spec with random weights that depend only on `seed` and `drawn`.

    Args:
        spec: spec of the model.
        vocab_size: number of the tokenizer's tokens.
        trust_class_paths: let the spec name classes by import path.
        seed: seed of the weights.
        drawn: parts whose weights are drawn, some of backbone, critic, MODALITY.codec, MODALITY.encoder and
            MODALITY.connector;
            all others are about to be loaded (see uninitialized.py). None draws all.

    Raises:
        PluginError, SpecError: a plugin or an argument of the spec is wrong, or the parts do not fit together.
    """
    with at_most():
        return _build(spec, vocab_size, trust_class_paths, seed, drawn)


def _build(spec: ModelSpec, vocab_size: int, trust: bool, seed: int, drawn: Collection[str] | None) -> UnifiedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        router = cast(Router, build("router", spec.router, trust_class_paths=trust))
        with _weights_of("backbone", drawn):
            backbone = cast(Backbone, build("backbone", spec.backbone, trust_class_paths=trust, vocab_size=vocab_size, router=router))
        sources = {name: _source(name, one, trust, drawn) for name, one in spec.used.items()}  # before all connectors
        scores: Scores = "own" if spec.critic is None else "none"
        parts = [(name, one, sources[name], _weights_of(f"{name}.connector", drawn)) for name, one in spec.used.items()]
        modalities = [_modality(*part, backbone=backbone, trust=trust, scores=scores) for part in parts]
        _check_aligned(modalities)
        _check_prompt(spec, modalities)
        with _weights_of("backbone", drawn):
            _take_conditions(backbone, spec.backbone, modalities)
            _take_hints(backbone, modalities)
        critic = None if spec.critic is None else _critic(spec, spec.critic, vocab_size, router, modalities, sources, trust, drawn)
        try:
            return UnifiedModel(backbone=backbone, router=router, modalities=modalities, critic=critic, frozen=spec.freeze)
        except ValueError as error:
            raise SpecError(str(error)) from error


def _critic(
    spec: ModelSpec,
    slot: Slot,
    vocab_size: int,
    router: Router,
    owners: Sequence[Modality],
    sources: Mapping[str, Codec | Encoder],
    trust: bool,
    drawn: Collection[str] | None,
) -> UnifiedModel:
    """Build the critic of a model whose modalities are `owners`. Raise SpecError if no objective has a review."""
    if not any(isinstance(one, MadeModality) and one.objective.review is not None for one in owners):
        raise SpecError(
            f"model.critic is '{slot.class_path}', but no objective asks for scores. Use an objective such as masked-critic, or leave "
            "model.critic out"
        )
    with _weights_of("critic", drawn):
        backbone = cast(Backbone, build("backbone", slot, trust_class_paths=trust, vocab_size=vocab_size, router=router))
        if backbone.takes_times:
            raise SpecError(f"model.critic is '{slot.class_path}', which needs timesteps; critics do not have any. Choose another backbone")
        parts = [(one.name, spec.used[one.name], sources[one.name], nullcontext()) for one in owners]
        own = [_modality(*part, backbone=backbone, trust=trust, scores="only") for part in parts]
        _take_conditions(backbone, slot, own)
    return UnifiedModel(backbone=backbone, router=router, modalities=[share(one, owner) for one, owner in zip(own, owners, strict=True)])


def _check_aligned(modalities: Sequence[Modality]) -> None:
    by_name = {modality.name: modality for modality in modalities}
    for host in modalities:
        if isinstance(host, MadeModality):
            for other in host.aligned:
                check_aligned(host, by_name[other])


def _check_prompt(spec: ModelSpec, modalities: Sequence[Modality]) -> None:
    """Raise SpecError if the prompt holds clips of a modality whose lower levels are given too: a given clip could then mean either."""
    in_prompt = [template.of for template in spec.prompt if template.audio is not None]
    for modality in modalities:
        if isinstance(modality, MadeModality) and modality.name in in_prompt and modality.first_level:
            levels = f"its levels below {modality.first_level} are given too"
            raise SpecError(f"model.prompt holds a clip of '{modality.name}', but {levels}. Leave it out of the prompt")


def _take_conditions(backbone: Backbone, slot: Slot, modalities: Sequence[Modality]) -> None:
    """Tell a backbone in which ways conditions enter besides the sequence. Raise SpecError if it does not take them."""
    others = {one.name: one for one in modalities if isinstance(one, EncoderModality) and one.enters != "prefix"}
    if not backbone.takes_text:
        _check_without_text(slot, modalities)
    if others:
        try:
            ways = {way: [name for name, one in others.items() if one.enters_as(way)] for way in ("cross", "global")}
            backbone.take_conditions({way: names for way, names in ways.items() if names})
        except SpecError as error:
            raise SpecError(f"backbone '{slot.class_path}', for model.modalities.{next(iter(others))}: {error}") from error


def _take_hints(backbone: Backbone, modalities: Sequence[Modality]) -> None:
    """Tell a backbone that takes hints how many numbers they have. Raise SpecError if several modalities have hints."""
    told = [one for one in modalities if isinstance(one, MadeModality) and one.num_hints]
    if len(told) > 1:
        names = " and ".join(f"model.modalities.{one.name}" for one in told)
        raise SpecError(f"{names} have objectives with shows_known; the backbone only takes the hints of one. Set the others to false")
    if told and (backbone.takes_text or not backbone.takes_times):
        raise TypeError(f"{type(backbone).__name__} has takes_hints; then it also needs takes_times, and may not take text")
    for one in told:
        backbone.take_hints(one.num_hints)


def _check_without_text(slot: Slot, modalities: Sequence[Modality]) -> None:
    """Raise SpecError if a modality takes places in the sequence of a backbone that only has clips that are made."""
    for one in modalities:
        key = f"model.modalities.{one.name}"
        if isinstance(one, EncoderModality) and one.enters == "prefix":
            raise SpecError(
                f"{key}.enters is 'prefix', but backbone '{slot.class_path}' can only hold clips that it makes. Set it to 'cross'"
            )
        if not isinstance(one, EncoderModality | MadeModality):
            raise SpecError(
                f"{key} has a codec, but no objective: backbone '{slot.class_path}' can only hold clips that it makes. Leave {key} out"
            )


def _weights_of(part: str, drawn: Collection[str] | None) -> AbstractContextManager[object]:
    return nullcontext() if drawn is None or part in drawn else uninitialized()


def _source(name: str, spec: ModalitySpec, trust: bool, drawn: Collection[str] | None) -> Codec | Encoder:
    """Build the codec or the encoder of a modality."""
    if spec.encoder is not None:
        with _weights_of(f"{name}.encoder", drawn):
            return cast(Encoder, build("encoder", spec.encoder, trust_class_paths=trust))
    assert spec.codec is not None, "checked when the spec was read"
    with _weights_of(f"{name}.codec", drawn):
        return cast(Codec, build("codec", spec.codec, trust_class_paths=trust))


def _modality(
    name: str,
    spec: ModalitySpec,
    source: Codec | Encoder,
    weights: AbstractContextManager[object],
    *,
    backbone: Backbone,
    trust: bool,
    scores: Scores,
) -> Modality:
    """Build the rest of a modality. Raise SpecError if its parts do not fit together."""
    objective = None if spec.objective is None else cast(Objective, build("objective", spec.objective, trust_class_paths=trust))
    num_scores = 0
    if isinstance(source, Codec) and objective is not None:
        tokens = objective.tokens(source.spec)
        if objective.review is not None and scores != "none":
            shown = source.spec if isinstance(tokens.inputs, int) else source.spec.with_levels(len(tokens.inputs))
            num_scores = objective.review.num_scores(shown)
            others = TokenSpec(tokens.inputs, 0 if isinstance(tokens.outputs, int) else ()) if scores == "only" else tokens
            tokens = others.with_scores(num_scores)
    else:
        tokens = TokenSpec(source.spec.tokens, source.spec.tokens)
    num_hints, own = 0, source.spec.tokens
    if backbone.takes_hints and objective is not None and objective.shows_known and isinstance(own, int):
        num_hints = tokens.num_inputs - own
        tokens = replace(tokens, inputs=own)
    is_condition = isinstance(source, Encoder) and spec.enters != "prefix"
    width = backbone.condition_dim if is_condition else backbone.hidden_dim
    sizes = {"tokens": tokens, "hidden_dim": width, "generates": objective is not None}
    with weights:
        connector = cast(Connector, build("connector", spec.connector, trust_class_paths=trust, **sizes))
    if isinstance(source, Encoder):
        return EncoderModality(name=name, connector=connector, encoder=source, enters=spec.enters)
    if isinstance(connector, LevelsConnector) and objective is not None and objective.predicts != "next-token":
        raise SpecError(
            f"the connector of '{name}' is '{spec.connector.class_path}', which predicts levels one after the other, but the objective "
            "does not predict the next token. Use the connector codes, or the objective autoregressive"
        )
    normalizer = LatentNormalizer.of(source.spec, spec.normalize)
    if objective is None:
        return CodecModality(name=name, connector=connector, codec=source, normalizer=normalizer)
    if spec.window is not None:
        check_seconds(spec.window, name=f"model.modalities.{name}.window")
    if spec.headroom:
        check_seconds(spec.headroom, name=f"model.modalities.{name}.headroom")
    return MadeModality(
        name=name,
        connector=connector,
        codec=source,
        normalizer=normalizer,
        objective=objective,
        aligned=spec.aligned,
        num_scores=num_scores,
        lead=backbone.lead_tokens,
        num_hints=num_hints,
        window=spec.window,
        headroom=spec.headroom,
    )


def build_sampler(slot: Slot, *, num_steps: int | None = None, trust_class_paths: bool = False) -> Sampler:
    """Build a sampler; `num_steps` overrides the spec's.

    Raise SpecError for more than MOST_STEPS, or for a sampler that does not have a number of steps.
    """
    has_steps = cast(type[Sampler], load("sampler", slot.class_path, trust_class_paths=trust_class_paths)).takes != "next-token"
    if num_steps is not None and not has_steps:
        raise SpecError(
            f"the number of steps is {num_steps}, but sampler '{slot.class_path}' takes a step for each token of a clip. Leave out the "
            "number of steps"
        )
    if num_steps is not None:
        slot = Slot(slot.class_path, {**slot.init_args, "num_steps": num_steps})
    sampler = cast(Sampler, build("sampler", slot, trust_class_paths=trust_class_paths))
    if has_steps:
        check_count(f"num_steps of sampler '{slot.class_path}'", sampler.num_steps, most=MOST_STEPS)
    return sampler


def steps_of(sampler: Sampler) -> int | None:
    """Return the number of steps of a sampler; None if it takes one for each token."""
    return None if sampler.takes == "next-token" else sampler.num_steps


FITTING: dict[Prediction, str] = {"velocity": "euler", "logits": "maskgit", "next-token": "next-token"}
"""A built-in sampler for each kind of prediction."""


def check_sampler(sampler: Sampler, modality: MadeModality, *, key: str, name: str) -> None:
    """Raise SpecError if a sampler, called `name` at `key` in the spec, does not take what the modality predicts, or asks for scores
    that its objective does not have."""
    objective = modality.objective
    if sampler.takes != objective.predicts:
        kinds: dict[Prediction, str] = {
            "velocity": "velocities",
            "logits": "logits of hidden codes",
            "next-token": "logits of the next token",
        }
        wanted, fitting = kinds[objective.predicts], FITTING[objective.predicts]
        raise SpecError(
            f"{key} is '{name}', which takes {kinds[sampler.takes]}; expected one that takes {wanted}, "
            f"because the objective predicts {wanted}. Use a sampler such as {fitting}"
        )
    if sampler.reviews and objective.review is None:
        raise SpecError(
            f"{key} is '{name}', which needs scores of what was made, but the objective is not trained to give any. Use an objective "
            f"such as masked-critic, or a sampler such as {FITTING[objective.predicts]}"
        )
    if isinstance(modality.connector, LevelsConnector) and not sampler.by_level:
        raise SpecError(
            f"{key} is '{name}', which draws the levels of a token at once, but the connector of '{modality.name}' predicts each from "
            "those below it. Use the sampler next-token, or the connector codes"
        )
