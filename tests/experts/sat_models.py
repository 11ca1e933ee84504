"""Tiny diffusion models of stable-audio-tools, and the same models here: their own modules, with random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tiny_stages import TOKENIZER
from torch import Tensor, nn

from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.interfaces import Encoder
from soundomni.core.representation import FeatureSpec
from soundomni.core.spec.schema import ModalitySpec, ModelSpec, SegmentTemplate, Slot
from soundomni.experts.checkpoints.stable_audio_layout import CONDITIONERS, DIT, Facts, Part, parts_of

RATE, FRAME, LATENT_DIM = 8000, 80, 4
TEXT_DIM, MOST_SECONDS = 64, 8.0


class Words(Encoder):
    """Reads a text as fixed features of its letters: embeddings that both sides get."""

    spec = FeatureSpec(feature_dim=TEXT_DIM, source="text")

    def num_tokens(self, num_samples: int) -> int:
        return num_samples

    def read(self, source: str) -> np.ndarray:
        return np.asarray([[ord(letter) for letter in source]], dtype=np.float32)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        return features(waveform[:, 0])


def features(letters: Tensor) -> Tensor:
    """Embed letters `[B, S]` as `[B, S, F]`."""
    return torch.sin(letters[..., None].float() * (1.0 + torch.arange(TEXT_DIM)))


def backbone_slot(**arguments: Any) -> Slot:
    sizes = {"hidden_dim": 128, "num_layers": 2, "num_heads": 2, "condition_dim": TEXT_DIM, "project_conditions": True}
    return Slot("dit", {**sizes, **arguments})


def model_spec(backbone: Slot, *, objective: str = "v-prediction", sampler: Slot | None = None, shows_known: bool = False) -> ModelSpec:
    codec = Slot("mdct", {"sample_rate": RATE, "frame_size": LATENT_DIM})
    number = Slot("number", {"least": 0.0, "most": MOST_SECONDS, "num_frequencies": 6})
    seconds = ModalitySpec(encoder=number, connector=Slot("linear"), enters="cross+global")
    made = ModalitySpec(
        codec=codec,
        connector=Slot("residual-linear"),
        objective=Slot(objective, {"shows_known": shows_known}),
        sampler=sampler or Slot("euler", {"num_steps": 5}),
    )
    prompt = ModalitySpec(encoder=Slot(f"{__name__}.Words"), connector=Slot("identity"), enters="cross")
    return ModelSpec(
        backbone=backbone,
        router=Slot("dense"),
        modalities={"latent": made, "prompt": prompt, "seconds_start": seconds, "seconds_total": seconds},
        prompt=[
            SegmentTemplate(text="{caption}", of="prompt"),
            SegmentTemplate(text="1.5", of="seconds_start"),
            SegmentTemplate(text="{seconds}", of="seconds_total"),
        ],
    )


def random_model(spec: ModelSpec) -> UnifiedModel:
    """A model whose every parameter is random, those that start at zero included."""
    model = build_model(spec, vocab_size=TOKENIZER.vocab_size, trust_class_paths=True, seed=1)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * parameter.new_ones(()) * torch.randn_like(parameter) / max(1, parameter.shape[-1]) ** 0.5)
    return model


def facts_of(model: UnifiedModel) -> Facts:
    backbone: Any = model.backbone
    return Facts(
        num_layers=len(backbone.blocks),
        hidden_dim=backbone.hidden_dim,
        rotary_dim=backbone.rotary_dim,
        crosses=backbone.conditions is not None,
        global_ids=("seconds_start", "seconds_total"),
        numbers=("seconds_start", "seconds_total"),
        head_norm="none" if backbone.blocks[0].attention.norms is None else "layer",
        modulates=backbone.modulation is not None,
        has_memory=backbone.memory is not None,
    )


def theirs_of(model: UnifiedModel, **arguments: Any) -> tuple[nn.Module, dict[str, nn.Module]]:
    """Their transformer and conditioners with the weights of a model."""
    from stable_audio_tools.models.conditioners import NumberConditioner
    from stable_audio_tools.models.dit import DiffusionTransformer

    backbone: Any = model.backbone
    parts: list[Part] = parts_of(facts_of(model))
    state = model.state_dict()
    theirs = {part.source: part.write(state) for part in parts}
    transformer = DiffusionTransformer(
        io_channels=LATENT_DIM,
        embed_dim=backbone.hidden_dim,
        depth=len(backbone.blocks),
        num_heads=backbone.hidden_dim // backbone.head_dim,
        cond_token_dim=TEXT_DIM,
        project_cond_tokens=backbone.project_conditions,
        global_cond_dim=2 * TEXT_DIM,
        global_cond_type="prepend" if backbone.prepends else "adaLN",
        **arguments,
    )
    given = {name.removeprefix(DIT): tensor for name, tensor in theirs.items() if name.startswith(DIT)}
    missing, unexpected = transformer.load_state_dict(given, strict=False)
    assert not unexpected and all(name.endswith(("beta", "inv_freq")) for name in missing), (missing, unexpected)
    numbers: dict[str, nn.Module] = {}
    for name in ("seconds_start", "seconds_total"):
        numbers[name] = number = NumberConditioner(TEXT_DIM, min_val=0.0, max_val=MOST_SECONDS)
        weights = {key.removeprefix(f"{CONDITIONERS}{name}."): value for key, value in theirs.items() if f"{name}." in key}
        number.embedder.embedding[0].weights = nn.Parameter(weights["embedder.embedding.0.weights"])
        number.embedder.embedding[1] = nn.Linear(2 * len(weights["embedder.embedding.0.weights"]) + 1, TEXT_DIM)
        number.load_state_dict(weights)
    return transformer.eval(), numbers
