"""Reads the configs of a diffusers pipeline of Stable Audio 3 as the model's config and its sampler.

A key that a config omits has diffusers' default. Unknown keys are refused, and so is anything that cannot be computed
here; the error names the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from soundomni.core.errors import SpecError
from soundomni.core.pretrained.config_sections import Section
from soundomni.experts.checkpoints.local_model import TOKENIZER_FOLDER
from soundomni.experts.checkpoints.stable_audio_3_config import (
    LOG_SNR_ANCHOR,
    LOG_SNR_END,
    T5GEMMA,
    T5GEMMA_MODEL,
    TRANSFORMER,
)
from soundomni.experts.checkpoints.stable_audio_3_diffusers_layout import SECONDS
from soundomni.experts.checkpoints.stable_audio_diffusers_config import (
    PROMPT,
    Pipeline,
    check_rotation,
    read_text_encoder,
)
from soundomni.experts.checkpoints.stable_audio_diffusers_files import (
    SCHEDULER_FILE,
    THIRD,
    TOKENIZER_FILE,
    check_agreement,
    config_in,
    expect_class,
)
from soundomni.experts.checkpoints.stable_audio_model_config import (
    MODEL,
    NUM_FREQUENCIES,
    NUMBER,
    Condition,
    ModelConfig,
    Objective,
)
from soundomni.experts.dit_network import NUM_TIME_FEATURES
from soundomni.experts.number import HIGHEST, LOWEST
from soundomni.experts.sizes import MOST_DIM, MOST_LAYERS

LONGEST_TEXT = 256
"""Tokens of a text in diffusers, unless the tokenizer's own limit is lower."""
SCHEDULE: Mapping[str, Any] = {"spacing": "log-snr", "log_snr": [LOG_SNR_ANCHOR, LOG_SNR_END]}
"""Where the steps of the pipeline lie by default."""
SAMPLERS: Mapping[Objective, tuple[str, int]] = {"rf_denoiser": ("pingpong", 8), "rectified_flow": ("ddim", 100)}
"""Objective → the sampler that takes the scheduler's steps, and how many steps the pipeline takes by default."""
SCHEDULER: Mapping[str, Any] = {
    "num_train_timesteps": 1,
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "invert_sigmas": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
"""Settings with which the network sees timesteps from 0 to 1, and the steps lie as the pipeline says."""
IRRELEVANT = {
    "base_shift": float,
    "max_shift": float,
    "base_image_seq_len": int,
    "max_image_seq_len": int,
    "time_shift_type": str,
}
"""Settings that do not matter with the settings above."""
SCHEDULER_DEFAULTS = {"num_train_timesteps": 1000}
"""Defaults that differ from these settings."""
UNGUIDED = "the model is not distilled, so guidance.scale is 7 here; diffusers only guides if you pass guidance_scale"


def read_third_pipeline(folder: Path, codec: Mapping[str, Any], *, text_encoder: str | None = None) -> Pipeline:
    """Read the configs of a pipeline, except its codec's.

    Args:
        folder: the pipeline.
        codec: arguments of its codec.
        text_encoder: folder of a T5Gemma to use instead of its own; None for its own or, if it has none, the published
            one.

    Raises:
        SpecError: a file is missing or not such a config, has an unknown key or a wrong value, or asks for something
            that cannot be computed here.
    """
    with config_in(folder, "duration_embedder/config.json") as duration:
        condition_dim, seconds = _duration(duration)
    with config_in(folder, "transformer/config.json") as transformer:
        backbone = _transformer(transformer, condition_dim, codec["latent_dim"])
    with config_in(folder, f"scheduler/{SCHEDULER_FILE}") as scheduler:
        objective = _scheduler(scheduler)
    name, found, notes = read_text_encoder(folder, text_encoder, usual=T5GEMMA_MODEL)
    text = {"name": name, "max_length": _longest_text(folder)}
    prompt = Condition(id=PROMPT, kind=T5GEMMA, settings=text, crosses=True, is_global=False)
    number = Condition(id=SECONDS, kind=NUMBER, settings={**seconds, "features": "fixed"}, crosses=True, is_global=True)
    config = ModelConfig(
        sample_rate=codec["sample_rate"],
        channels=codec["channels"],
        sample_size=codec["sample_rate"],  # a pipeline does not say how long clips were in training
        latent_dim=codec["latent_dim"],
        objective=objective,
        plugin="dit-3",
        backbone=backbone,
        condition_dim=condition_dim,
        conditions=(prompt, number),
        global_ids=(SECONDS,),
        inpaints=True,
        unused=(),
        schedule=SCHEDULE,
    )
    class_path, num_steps = SAMPLERS[objective]
    sampler = {"class_path": class_path, "init_args": {"num_steps": num_steps, "schedule": SCHEDULE}}
    notes += (UNGUIDED,) if objective == "rectified_flow" else ()
    return Pipeline(config=config, sampler=sampler, text_encoder=found, notes=notes)


def _duration(section: Section) -> tuple[int, Mapping[str, float]]:
    """Return the dimensions of conditions, and the range of seconds."""
    expect_class(section, THIRD.class_of("duration_embedder"))
    fixed: Mapping[str, float] = {"fourier_dim": 2 * NUM_FREQUENCIES, "min_freq": LOWEST, "max_freq": HIGHEST}
    for name, value in fixed.items():
        section.expect(name, value, by=MODEL, default=value)
    least, most = section.take("min_val", float, 0.0), section.take("max_val", float, 384.0)
    if not least < most:
        raise SpecError(f"min_val is {least:g} and max_val is {most:g}; expected the lower one first")
    return section.take_whole("output_dim", 768, most=MOST_DIM), {"least": least, "most": most}


def _transformer(section: Section, condition_dim: int, latent_dim: int) -> dict[str, Any]:
    """Return the backbone's arguments. Raise SpecError for sizes that the backbone cannot have."""
    expect_class(section, THIRD.class_of("transformer"))
    hidden_dim, num_layers, num_heads = (
        section.take_whole("embed_dim", 1536, most=MOST_DIM),
        section.take_whole("depth", 24, most=MOST_LAYERS),
        section.take_whole("num_heads", 24, most=MOST_DIM),
    )
    if hidden_dim % num_heads:
        raise SpecError(f"num_heads is {num_heads}; expected a divisor of embed_dim, which is {hidden_dim}")
    check_rotation("embed_dim / num_heads", hidden_dim // num_heads, by=TRANSFORMER)
    fixed: Mapping[str, Any] = {"patch_size": 1, "timestep_features_dim": NUM_TIME_FEATURES, "ff_mult": 4.0}
    for name, value in fixed.items():
        section.expect(name, value, by=TRANSFORMER, default=value)
    agreeing = {
        "io_channels": (256, latent_dim),
        "local_add_cond_dim": (257, latent_dim + 1),
        "cond_token_dim": (768, condition_dim),
        "global_cond_dim": (768, condition_dim),
    }
    check_agreement(section, agreeing)
    return {
        "hidden_dim": hidden_dim,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "condition_dim": condition_dim,
        "project_conditions": True,
        "num_memory": section.take_whole("num_memory_tokens", 64, least=0, most=MOST_DIM),
        "differential": section.take("use_differential_attention", bool, True),
        "log_snr_times": False,
    }


def _scheduler(section: Section) -> Objective:
    """Return the objective of a model with such a scheduler: only distilled models are sampled with fresh noise."""
    expect_class(section, THIRD.class_of("scheduler"))
    for name, value in SCHEDULER.items():
        section.expect(name, value, by="the network", default=SCHEDULER_DEFAULTS.get(name, value))
    if (last := section.take("shift_terminal", float, None)) is not None:
        raise SpecError(f"shift_terminal is {last:g}; expected null, because the last step goes to 0")
    for name, kind in IRRELEVANT.items():
        section.take(name, kind, None)
    return "rf_denoiser" if section.take("stochastic_sampling", bool, False) else "rectified_flow"


def _longest_text(folder: Path) -> int:
    """Return the number of tokens of a text. On which side of it diffusers has the padding does not matter: tokens only
    know how far they are from each other."""
    name = f"{TOKENIZER_FOLDER}/{TOKENIZER_FILE}"
    if not (folder / name).is_file():
        return LONGEST_TEXT
    with config_in(folder, name, others=True) as section:
        given: float = section.take("model_max_length", float, float(LONGEST_TEXT))  # 1e30 means no limit
        if given < 1 or given != round(given):
            raise SpecError(f"model_max_length is {given:g}; expected a whole number of at least 1")
        section.expect("truncation_side", "right", by="the encoder t5gemma", default="right")
    return min(round(given), LONGEST_TEXT)
