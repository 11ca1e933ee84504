"""From a spec to a model: every plugin is built through the registry, then they are joined."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch

from soundomni.core.assembly.building_bounds import at_most
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.normalizer import LatentNormalizer
from soundomni.core.assembly.uninitialized import uninitialized
from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Backbone, Codec, Connector, Encoder, Objective, Prediction, Router, Sampler
from soundomni.core.limits import MOST_STEPS, check_count
from soundomni.core.representation import TokenSpec
from soundomni.core.spec.registry import build
from soundomni.core.spec.schema import ModelSpec, Slot


def build_model(
    spec: ModelSpec, *, vocab_size: int, trust_class_paths: bool = False, seed: int = 0, drawn: Collection[str] | None = None
) -> UnifiedModel:
    """Build the model of a spec with random weights that depend only on `seed` and `drawn`.

    Args:
        spec: spec of the model.
        vocab_size: number of the tokenizer's tokens.
        trust_class_paths: let the spec name classes by import path.
        seed: seed of the weights.
        drawn: parts whose weights are drawn, some of backbone, codec, encoder, latent_connector and features_connector;
            all others are about to be loaded (see uninitialized.py). None draws all.

    Raises:
        PluginError, SpecError: a plugin or an argument of the spec is wrong, or the parts do not fit together.
    """
    if (spec.encoder is None) != (spec.connectors.features is None):
        raise SpecError("model.encoder and model.connectors.features go together. Set both, or neither")
    with at_most():
        return _build(spec, vocab_size, trust_class_paths, seed, drawn)


def _build(spec: ModelSpec, vocab_size: int, trust_class_paths: bool, seed: int, drawn: Collection[str] | None) -> UnifiedModel:
    def weights_of(part: str) -> AbstractContextManager[object]:
        return nullcontext() if drawn is None or part in drawn else uninitialized()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        router = cast(Router, build("router", spec.router, trust_class_paths=trust_class_paths))
        with weights_of("backbone"):
            backbone = cast(
                Backbone,
                build("backbone", spec.backbone, trust_class_paths=trust_class_paths, vocab_size=vocab_size, router=router),
            )
        with weights_of("codec"):
            codec = cast(Codec, build("codec", spec.codec, trust_class_paths=trust_class_paths))
        encoder = None
        if spec.encoder is not None:
            with weights_of("encoder"):
                encoder = cast(Encoder, build("encoder", spec.encoder, trust_class_paths=trust_class_paths))

        def connector(slot: Slot, tokens: TokenSpec, generates: bool) -> Connector:
            sizes = {"tokens": tokens, "hidden_dim": backbone.hidden_dim, "generates": generates}
            return cast(Connector, build("connector", slot, trust_class_paths=trust_class_paths, **sizes))

        features = spec.connectors.features
        objective = cast(Objective, build("objective", spec.objective, trust_class_paths=trust_class_paths))
        with weights_of("latent_connector"):
            latent_connector = connector(spec.connectors.latent, objective.tokens(codec.spec), True)
        with weights_of("features_connector"):
            features_connector = connector(features, encoder.spec.tokens, False) if encoder and features else None
        try:
            return UnifiedModel(
                backbone=backbone,
                router=router,
                codec=codec,
                objective=objective,
                latent_connector=latent_connector,
                features_connector=features_connector,
                encoder=encoder,
                normalizer=LatentNormalizer.of(codec.spec, spec.normalize),
                frozen=spec.freeze,
            )
        except ValueError as error:
            raise SpecError(str(error)) from error


def build_sampler(slot: Slot, *, num_steps: int | None = None, trust_class_paths: bool = False) -> Sampler:
    """Build a sampler; `num_steps` overrides the spec's. Raise SpecError for more than MOST_STEPS."""
    if num_steps is not None:
        slot = Slot(slot.class_path, {**slot.init_args, "num_steps": num_steps})
    sampler = cast(Sampler, build("sampler", slot, trust_class_paths=trust_class_paths))
    check_count(f"num_steps of sampler '{slot.class_path}'", sampler.num_steps, most=MOST_STEPS)
    return sampler


FITTING: dict[Prediction, str] = {"velocity": "euler", "logits": "maskgit"}
"""A built-in sampler for each kind of prediction."""


def check_sampler(sampler: Sampler, objective: Objective, *, name: str) -> None:
    """Raise SpecError if a sampler, called `name` in the spec, does not take what the objective predicts."""
    if sampler.takes != objective.predicts:
        kinds: dict[Prediction, str] = {"velocity": "velocities", "logits": "logits"}
        wanted, fitting = kinds[objective.predicts], FITTING[objective.predicts]
        raise SpecError(
            f"sampler is '{name}', which takes {kinds[sampler.takes]}; expected one that takes {wanted}, "
            f"because the objective predicts {wanted}. Use a sampler such as {fitting}"
        )
