"""Reads the configs of a diffusers pipeline of Stable Audio Open as the model's config and its sampler.

A key that a config omits has diffusers' default. Unknown keys are refused, and so is anything that cannot be computed
here; the error names the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from soundomni.core.errors import SpecError
from soundomni.core.limits import check_count
from soundomni.core.pretrained.config_sections import Section
from soundomni.experts.checkpoints.local_model import CONFIG, NETWORK_FOLDER, TOKENIZER_FOLDER
from soundomni.experts.checkpoints.stable_audio_diffusers_files import (
    OPEN,
    SCHEDULER_FILE,
    TOKENIZER_FILE,
    check_agreement,
    config_in,
    expect_class,
)
from soundomni.experts.checkpoints.stable_audio_diffusers_layout import NUMBER_NAMES
from soundomni.experts.checkpoints.stable_audio_model_config import (
    LONGEST_TEXT,
    MODEL,
    NUMBER,
    T5,
    TRANSFORMER,
    USUAL_T5,
    Condition,
    ModelConfig,
)
from soundomni.experts.dit_network import LEAST_ROTATED, NUM_TIME_FEATURES
from soundomni.experts.frozen_text import MOST_TOKENS
from soundomni.experts.sizes import MOST_DIM, MOST_LAYERS

PROMPT = "prompt"
"""Our name for the text condition, which has no name in diffusers."""
NUM_STEPS, GUIDANCE_SCALE = 100, 7.0
"""Defaults of the pipeline."""
SAMPLER = "dpmpp-2m-sde"
"""Sampler that corresponds to the scheduler."""
SIGMAS = (0.3, 500.0)
"""Default noise range of the scheduler."""
SCHEDULER: Mapping[str, Any] = {
    "sigma_schedule": "exponential",
    "solver_order": 2,
    "prediction_type": "v_prediction",
    "solver_type": "midpoint",
    "final_sigmas_type": "zero",
}
"""Settings that the scheduler needs, all of them defaults, to take the steps of SAMPLER."""
IRRELEVANT = {"num_train_timesteps": int, "rho": float, "lower_order_final": bool, "euler_at_final": bool}
"""Settings that do not matter with the settings above."""
LEAST_SIGMA = 70.0
"""Below this sigma_max, the noise that diffusers begins with is noticeably louder than ours."""
MOST_FRAMES = 2**24


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """What is known about a pipeline without its weights.

    Args:
        config: config of the model.
        sampler: the sampler that corresponds to its scheduler, as in a spec.
        text_encoder: folder of its text encoder; None to look its name up.
        notes: what was assumed or differs from diffusers; one sentence each.
    """

    config: ModelConfig
    sampler: Mapping[str, Any]
    text_encoder: str | None
    notes: tuple[str, ...]


def read_pipeline(folder: Path, codec: Mapping[str, Any], *, text_encoder: str | None = None) -> Pipeline:
    """Read the configs of a pipeline, except its codec's.

    Args:
        folder: the pipeline.
        codec: arguments of its codec.
        text_encoder: folder of a T5 to use instead of its own; None for its own or, if it has none, stable-audio-tools'
            default.

    Raises:
        SpecError: a file is missing or not such a config, has an unknown key or a wrong value, or asks for something
            that cannot be computed here.
    """
    with config_in(folder, f"projection_model/{CONFIG}") as projection:
        condition_dim, seconds = _projection(projection)
    with config_in(folder, f"transformer/{CONFIG}") as transformer:
        frames, backbone = _transformer(transformer, condition_dim, codec["latent_dim"])
    with config_in(folder, f"scheduler/{SCHEDULER_FILE}") as scheduler:
        sampler, notes = _scheduler(scheduler)
    length, more = _longest_text(folder)
    name, found, told = read_text_encoder(folder, text_encoder, usual=USUAL_T5)
    prompt = Condition(id=PROMPT, kind=T5, settings={"name": name, "max_length": length}, crosses=True, is_global=False)
    numbers = (Condition(id=name, kind=NUMBER, settings=seconds, crosses=True, is_global=True) for name in NUMBER_NAMES)
    config = ModelConfig(
        sample_rate=codec["sample_rate"],
        channels=codec["channels"],
        sample_size=frames * math.prod(codec["strides"]),
        latent_dim=codec["latent_dim"],
        objective="v",
        backbone=backbone,
        condition_dim=condition_dim,
        conditions=(prompt, *numbers),
        global_ids=tuple(NUMBER_NAMES),
        inpaints=False,
        unused=(),
    )
    return Pipeline(config=config, sampler=sampler, text_encoder=found, notes=(*notes, *more, *told))


def _projection(section: Section) -> tuple[int, Mapping[str, float]]:
    """Return the dimensions of conditions, and the range of seconds."""
    expect_class(section, OPEN.class_of("projection_model"))
    text_dim, condition_dim = section.take("text_encoder_dim", int), section.take_whole("conditioning_dim", most=MOST_DIM)
    if text_dim != condition_dim:
        told = f"text_encoder_dim is {text_dim}; expected {condition_dim}"
        raise SpecError(f"{told}, the conditioning_dim, because {MODEL} has no projection of texts")
    return condition_dim, {"least": section.take("min_value", float), "most": section.take("max_value", float)}


def _transformer(section: Section, condition_dim: int, latent_dim: int) -> tuple[int, dict[str, Any]]:
    """Return the frames of a clip, and the backbone's arguments. Raise SpecError for sizes that the backbone cannot
    have."""
    expect_class(section, OPEN.class_of("transformer"))
    frames = section.take("sample_size", float, 1024.0)
    if frames != round(frames) or not 1 <= frames <= MOST_FRAMES:
        raise SpecError(f"sample_size is {frames:g}; expected a whole number of frames, at most {MOST_FRAMES:,}")
    num_layers, num_heads, head_dim = (
        section.take_whole("num_layers", 24, most=MOST_LAYERS),
        section.take_whole("num_attention_heads", 24, most=MOST_DIM),
        section.take_whole("attention_head_dim", 64, most=MOST_DIM),
    )
    hidden_dim, seen_dim = num_heads * head_dim, section.take("cross_attention_dim", int, 768)
    check_count("num_attention_heads times attention_head_dim", hidden_dim, most=MOST_DIM)
    check_rotation("attention_head_dim", head_dim, by=TRANSFORMER)
    if seen_dim not in (condition_dim, hidden_dim):
        told = f"{condition_dim}, the dimensions of conditions, or {hidden_dim}, those of the transformer"
        raise SpecError(f"cross_attention_dim is {seen_dim}; expected {told}, the only ones that {TRANSFORMER} has")
    agreeing: Mapping[str, tuple[int, int]] = {
        "in_channels": (64, latent_dim),
        "out_channels": (64, latent_dim),
        "time_proj_dim": (256, NUM_TIME_FEATURES),
        "num_key_value_attention_heads": (12, seen_dim // head_dim),
        "global_states_input_dim": (1536, len(NUMBER_NAMES) * condition_dim),
        "cross_attention_input_dim": (768, condition_dim),
    }
    check_agreement(section, agreeing)
    return round(frames), {
        "hidden_dim": hidden_dim,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "condition_dim": condition_dim,
        "project_conditions": seen_dim != condition_dim,
        "conditioning": "prepend",
        "head_norm": "none",
        "num_memory": 0,
        "differential": False,
    }


def _scheduler(section: Section) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the sampler that takes the same steps, and notes on what differs. The last step goes to 0 at any order."""
    expect_class(section, OPEN.class_of("scheduler"))
    least, most = section.take("sigma_min", float, SIGMAS[0]), section.take("sigma_max", float, SIGMAS[1])
    if not 0 < least < most < float("inf"):
        told = f"sigma_min is {least:g} and sigma_max is {most:g}"
        raise SpecError(f"{told}; expected finite numbers above 0, the lower one first")
    for name, value in {"sigma_data": 1.0, **SCHEDULER}.items():
        section.expect(name, value, by=f"the sampler {SAMPLER}", default=value)
    for name, kind in IRRELEVANT.items():
        section.take(name, kind, None)
    schedule = {"spacing": "exponential", "sigma_min": least, "sigma_max": most}
    sampler = {"class_path": SAMPLER, "init_args": {"num_steps": NUM_STEPS, "schedule": schedule}}
    louder = f"diffusers begins with noise of the deviation √(sigma_max² + 1), but here it is sigma_max, {most:g}"
    return sampler, ((louder,) if most < LEAST_SIGMA else ())


def _longest_text(folder: Path) -> tuple[int, tuple[str, ...]]:
    """Return the number of tokens of a text, and a note if it had to be assumed."""
    name = f"{TOKENIZER_FOLDER}/{TOKENIZER_FILE}"
    if not (folder / name).is_file():
        return LONGEST_TEXT, (f"texts have {LONGEST_TEXT} tokens, because there is no {name} that says how many",)
    with config_in(folder, name, others=True) as section:
        length = section.take_whole("model_max_length", most=MOST_TOKENS, hint=f"Set the tokens of a text, such as {LONGEST_TEXT}")
        side: Literal["right"] = "right"
        for key in ("padding_side", "truncation_side"):
            section.expect(key, side, by="the encoder t5", default=side)
    return length, ()


def read_text_encoder(folder: Path, other: str | None, *, usual: str) -> tuple[str, str | None, tuple[str, ...]]:
    """Return the text encoder's name, its folder (None to look the name up), and a note if the name had to be assumed.

    Args:
        folder: the pipeline.
        other: folder of a text encoder to use instead; None for its own.
        usual: name that is assumed if the pipeline has none.
    """
    if not (folder / NETWORK_FOLDER).is_dir():
        return usual, other, (f"the pipeline has no {NETWORK_FOLDER}; it was assumed to be {usual}",)
    found = other or str(folder.resolve())
    with config_in(folder, f"{NETWORK_FOLDER}/{CONFIG}", others=True) as section:
        return section.take("_name_or_path", str, "").strip() or found, found, ()


def check_rotation(key: str, head_dim: int, *, by: str) -> None:
    """Raise SpecError for heads that are so small that diffusers and `by`, the backbone, rotate other dimensions."""
    if head_dim // 2 < LEAST_ROTATED:
        told = f"diffusers rotates {head_dim // 2} dimensions of a head, and {by} at least {LEAST_ROTATED}"
        raise SpecError(f"{key} is {head_dim}; expected at least {2 * LEAST_ROTATED}: {told}")
