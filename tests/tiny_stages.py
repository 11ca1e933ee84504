"""Tiny AudioLM and SoundStorm: semantic codes, then acoustic ones, coarse and fine or all at once, by models with random weights."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from soundomni import Audio, SoundOmni
from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.modality import CodecModality
from soundomni.core.spec.schema import GuidanceSpec, ModalitySpec, ModelSpec, SegmentTemplate, Slot, Spec
from soundomni.core.tokenizer import TextTokenizer

TOKENIZER = TextTokenizer.train(["zero one two three four five"] * 4, vocab_size=300)
RATE, SEMANTIC_RATE = 1000, 500
LEVELS, COARSE = 3, 2
"""Levels of the acoustic codec, and how many of them the coarse stage makes."""
NEXT = Slot("next-token", {"temperature": 1.3})
Name = Literal["semantic", "coarse", "fine", "fine-masked", "storm", "whole"]


def autoregressive(**arguments: object) -> dict[str, object]:
    return {"objective": Slot("autoregressive", arguments), "sampler": NEXT, "guidance": GuidanceSpec(scale=1.5)}


def masked(**arguments: object) -> dict[str, object]:
    return {"objective": Slot("masked", arguments), "sampler": Slot("maskgit", {"iterations": [3, 1]}), "guidance": GuidanceSpec(scale=1.5)}


TEXT = SegmentTemplate(text="{caption}")
BEFORE = SegmentTemplate(audio="context", of="semantic")
MADE: dict[Name, tuple[dict[str, object], dict[str, object], list[SegmentTemplate]]] = {
    "semantic": (autoregressive(), {}, [TEXT]),
    "coarse": ({}, autoregressive(order="flat", levels=[0, COARSE]), [TEXT, BEFORE]),
    "fine": ({}, autoregressive(order="frames", levels=[COARSE, LEVELS]), []),
    "fine-masked": ({}, masked(levels=[COARSE, LEVELS]), []),
    "storm": ({}, masked() | {"aligned": ["semantic"]}, []),
    "whole": ({}, autoregressive(order="delay"), [TEXT, BEFORE]),
}
"""How each model makes semantic and acoustic codes, if it does, and its prompt."""


def codecs(wider: int) -> tuple[Slot, Slot]:
    """The codecs of semantic and acoustic tokens, 125 frames per second each, at `wider` times the rates above."""
    semantic = {"sample_rate": wider * SEMANTIC_RATE, "frame_size": wider * 4, "window": wider * 32, "num_mels": 4, "num_clusters": 6}
    quantizer = {"method": "fsq", "num_levels": LEVELS, "steps": [3, 3]}
    sizes = {"base_channels": 2, "channel_multiples": [1, 2], "strides": [2, 4 * wider], "latent_dim": 4}
    return Slot("mel-kmeans", semantic), Slot("soundstream", {"sample_rate": wider * RATE, **sizes, "quantizer": quantizer})


def spec_of(name: Name, *, wider: int = 1) -> ModelSpec:
    (semantic, acoustic, prompt), (semantic_codec, acoustic_codec) = MADE[name], codecs(wider)
    modalities: dict[str, ModalitySpec | None] = {}
    if semantic or BEFORE in prompt or "aligned" in acoustic:
        modalities["semantic"] = ModalitySpec(codec=semantic_codec, connector=Slot("codes"), **semantic)  # type: ignore[arg-type]
    if acoustic:
        modalities["acoustic"] = ModalitySpec(codec=acoustic_codec, connector=Slot("codes"), **acoustic)  # type: ignore[arg-type]
    backbone = Slot("mot", {"hidden_dim": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "qk_norm": "all"})
    return ModelSpec(backbone=backbone, router=Slot("dense"), modalities=modalities, prompt=prompt)


def clip(seed: int, samples: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, samples)).astype(np.float32)


CLIPS = torch.from_numpy(np.stack([clip(seed, 1600) for seed in range(6)]))


def stage(name: Name, *, seed: int = 1, max_tokens: int | None = None, wider: int = 1) -> SoundOmni:
    """A model whose every parameter is random; its codecs have the weights that they have in all of these models."""
    spec = spec_of(name, wider=wider)
    model = build_model(spec, vocab_size=TOKENIZER.vocab_size, seed=seed)
    for modality in model.each():
        assert isinstance(modality, CodecModality)
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in modality.codec.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.5)
        if not modality.codec.is_fitted:
            modality.codec.fit([(CLIPS, torch.full((len(CLIPS),), CLIPS.shape[-1]))])
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in (*model.backbone.parameters(), *(p for one in model.each() for p in one.connector.parameters())):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return SoundOmni(model, Spec(model=spec), TOKENIZER, max_tokens=max_tokens)


def sound(seed: int, samples: int = 100, rate: int = RATE) -> Audio:
    return Audio(clip(seed, samples), rate)
