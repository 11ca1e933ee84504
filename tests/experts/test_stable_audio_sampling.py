"""Whole guided runs equal those of stable-audio-tools: its transformer, its conditioners, its guidance and its samplers."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from sat_models import LATENT_DIM, RATE, backbone_slot, features, model_spec, random_model, theirs_of
from test_dit import FAMILIES
from tiny_stages import TOKENIZER
from torch import Tensor

from soundomni import SoundOmni
from soundomni.core.spec.schema import GuidanceSpec, ModelSpec, Slot, Spec

FRAMES, PROMPT, AVOIDED, STEPS = 9, "a loud bell", "rain", 5
SECONDS = FRAMES * LATENT_DIM / RATE - LATENT_DIM / RATE  # the codec adds a frame
GUIDANCE = {
    "plain": (GuidanceSpec(scale=1.0), {"cfg_scale": 1.0}),
    "guided": (GuidanceSpec(scale=7.0), {"cfg_scale": 7.0}),
    "in an interval": (GuidanceSpec(scale=7.0, interval=(0.4, 0.9)), {"cfg_scale": 7.0}),
    "rescaled": (GuidanceSpec(scale=4.0, rescale=0.7), {"cfg_scale": 4.0, "scale_phi": 0.7}),
}


def with_guidance(spec: ModelSpec, guidance: GuidanceSpec) -> ModelSpec:
    made = spec.used["latent"]
    return replace(spec, modalities={**spec.modalities, "latent": replace(made, guidance=guidance)})


def conditions(numbers: dict[str, Any], text: str) -> tuple[Tensor, Tensor]:
    """Their condition tokens, and their global condition."""
    start, total = (numbers[name]([value], "cpu")[0] for name, value in (("seconds_start", 1.5), ("seconds_total", float(f"{SECONDS:g}"))))
    words = features(torch.tensor([[float(ord(letter)) for letter in text]]))
    return torch.cat([words, start, total], 1), torch.cat([start, total], -1)[:, 0]


def drawn_noise(seed: int) -> Tensor:
    """The noise that a clip of this seed begins with."""
    return torch.randn(FRAMES, LATENT_DIM, generator=torch.Generator().manual_seed(seed)).T[None]


def intervals(given: GuidanceSpec, *, circle: bool) -> dict[str, tuple[float, float]]:
    """Their interval: they compare t of a flow, and sin(π·u/2) on the circle, which is t / |(1 − t, t)|."""
    low, high = (t / (math.hypot(1 - t, t) if circle else 1.0) for t in given.interval)
    return {"cfg_interval": (low, high)}


@pytest.mark.parametrize("guidance", list(GUIDANCE))
@pytest.mark.parametrize("family", ["open-1.0", "adaln"])
@pytest.mark.parametrize("sampler", ["dpmpp-2m", "ddim"])
def test_a_guided_run_of_a_v_model_equals_theirs(sampler: str, family: str, guidance: str) -> None:
    from stable_audio_tools.inference.sampling import sample_k

    ours, theirs = FAMILIES[family]
    given, arguments = GUIDANCE[guidance]
    spec = with_guidance(model_spec(backbone_slot(**ours), sampler=Slot(sampler, {"num_steps": STEPS})), given)
    model = random_model(spec)
    user = SoundOmni(model, Spec(model=spec), TOKENIZER, trust_class_paths=True)
    made = user.make(PROMPT, seconds=SECONDS, seeds=3)[0].values
    transformer, numbers = theirs_of(model, diffusion_objective="v", **theirs)
    tokens, whole = conditions(numbers, PROMPT)
    name = {"dpmpp-2m": "dpmpp-2m", "ddim": "v-ddim"}[sampler]
    with torch.no_grad():
        wanted = sample_k(
            transformer,
            drawn_noise(3),
            steps=STEPS,
            sampler_type=name,
            sigma_min=0.3,
            sigma_max=500.0,
            device="cpu",
            cross_attn_cond=tokens,
            global_embed=whole,
            use_checkpointing=False,
            **intervals(given, circle=True),
            **arguments,
        )
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_a_negative_prompt_stands_for_their_negative_condition() -> None:
    from stable_audio_tools.inference.sampling import sample_k

    spec = with_guidance(model_spec(backbone_slot(), sampler=Slot("dpmpp-2m", {"num_steps": STEPS})), GuidanceSpec(scale=3.0))
    model = random_model(spec)
    user = SoundOmni(model, Spec(model=spec), TOKENIZER, trust_class_paths=True)
    made = user.make(PROMPT, seconds=SECONDS, seeds=3, negative_prompt=AVOIDED)[0].values
    transformer, numbers = theirs_of(model)
    tokens, whole = conditions(numbers, PROMPT)
    avoided, _ = conditions(numbers, AVOIDED + " " * (len(PROMPT) - len(AVOIDED)))
    with torch.no_grad():
        wanted = sample_k(
            transformer,
            drawn_noise(3),
            steps=STEPS,
            sampler_type="dpmpp-2m",
            sigma_min=0.3,
            sigma_max=500.0,
            device="cpu",
            cross_attn_cond=tokens,
            negative_cross_attn_cond=avoided,
            global_embed=whole,
            cfg_scale=3.0,
            use_checkpointing=False,
        )
    spaced = user.make(PROMPT, seconds=SECONDS, seeds=3, negative_prompt=AVOIDED + " " * (len(PROMPT) - len(AVOIDED)))[0].values
    torch.testing.assert_close(spaced, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert made.shape == spaced.shape


@pytest.mark.parametrize("guidance", list(GUIDANCE))
def test_a_guided_run_of_a_rectified_flow_equals_theirs(guidance: str) -> None:
    given, arguments = GUIDANCE[guidance]
    sampler = Slot("euler", {"num_steps": STEPS})
    spec = with_guidance(model_spec(backbone_slot(head_norm="layer"), objective="flow-matching", sampler=sampler), given)
    model = random_model(spec)
    user = SoundOmni(model, Spec(model=spec), TOKENIZER, trust_class_paths=True)
    made = user.make(PROMPT, seconds=SECONDS, seeds=3)[0].values
    transformer, numbers = theirs_of(model, diffusion_objective="rectified_flow", attn_kwargs={"qk_norm": "ln"})
    tokens, whole = conditions(numbers, PROMPT)
    times = torch.linspace(1.0, 0.0, STEPS + 1)
    with torch.no_grad():
        x = drawn_noise(3)
        for now, then in pairwise(times):
            more = {**arguments, **intervals(given, circle=False), "use_checkpointing": False}
            v = transformer(x, now[None], cross_attn_cond=tokens, global_embed=whole, **more)
            x = x + (then - now) * v
    torch.testing.assert_close(made, x, rtol=1e-4, atol=1e-4 * float(x.abs().max()))
