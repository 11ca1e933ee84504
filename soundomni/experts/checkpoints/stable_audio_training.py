"""Translates stable-audio-tools' configs for training diffusion transformers into a spec that trains the backbone
`dit`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from soundomni.core.errors import SpecError
from soundomni.core.pretrained.config_sections import Section, Translation
from soundomni.core.spec.values import join
from soundomni.experts.checkpoints.stable_audio_import import spec_layer
from soundomni.experts.checkpoints.stable_audio_layout import LATENT
from soundomni.experts.checkpoints.stable_audio_model_config import (
    CLAP_TEXT,
    NUMBER,
    NUMBERS,
    T5,
    ModelConfig,
    parse_model_config,
    read_number,
    read_t5,
)

Sampling = Literal["uniform", "logit_normal", "trunc_logit_normal", "log_snr"]
TIMESTEPS: Mapping[Sampling, str] = {
    "uniform": "uniform",
    "logit_normal": "logit-normal",
    "trunc_logit_normal": "truncated-logit-normal",
    "log_snr": "logit-normal",
}
"""`timestep_sampler` → `timesteps` of an objective."""
SHORT, LONG = 256, 4096
"""Numbers of latents between which the shift of timesteps depends on a clip's length, in both projects."""
CLAP_TOKENS = 77
"""Number of tokens of a text in stable-audio-tools' CLAP."""
MASKS = {"fill": 0.1, "generate": 0.8, "continue": 0.1}
"""Task → its share of the clips, for stable-audio-tools' kinds of masks: segments, the whole clip, its end."""
OBJECTIVE, ENCODERS = "an objective here", "a frozen encoder"


@dataclass(frozen=True)
class ModelTraining:
    """A model to train.

    Args:
        config: its network.
        translation: the sections `model`, `data` and `train`.
        tasks: weights of the tasks of every dataset.
        condition_tokens: largest number of condition tokens of a clip, which count toward the batch size.
        has_text: whether one of the conditions is a text.
    """

    config: ModelConfig
    translation: Translation
    tasks: Mapping[str, float]
    condition_tokens: int
    has_text: bool


def read_diffusion(tree: Any, training: Section, *, codec: Mapping[str, Any], text_encoder: str | None) -> ModelTraining:
    """Return the model that a config trains.

    Args:
        tree: the whole config.
        training: its section `training`; keys about the run stay in it.
        codec: slot of the codec, as plain data.
        text_encoder: folder or Hub repository of the model that reads prompts; None for the one the config names.

    Raise SpecError for a part or a setting that does not exist here.
    """
    if "arc" in training:
        raise SpecError(f"{join(training.key, 'arc')} is given; expected none, because adversarial post-training is not translated")
    config = parse_model_config(tree, conditioners=CONDITIONERS)
    if text_encoder is None and any(one.kind == CLAP_TEXT for one in config.conditions):
        raise SpecError(
            "the conditioner clap_text names a file of the package laion-clap, which cannot be read here. Use "
            "--text-encoder with a folder that holds the same CLAP as saved by transformers, or with its Hub "
            "repository"
        )
    layer = spec_layer(config, codec, text_encoder)
    made = layer["model"]["modalities"][LATENT]
    del made["window"]  # clips are as long as they are
    made["objective"]["init_args"] |= _timesteps(training) | _shift(tree)
    notes = ["clips keep their own length, up to sample_size, instead of being padded to it"]
    notes += [f"{key} is ignored" for key in config.unused if key != "training" and not key.endswith("distribution_shift_options")]
    if any(one.kind == NUMBER for one in config.conditions):
        notes.append("numbers give the length of the generated clip, starting at 0 seconds, even if it is part of a longer file")
    tasks = _tasks(training, config.inpaints, notes)
    layer["data"] = {"condition_dropout": _dropout(training, config)}
    layer["train"] = _demos(training, config, made, notes)
    notes += training.ignore(
        {
            "mask_padding": "clips are not padded",
            "mask_padding_dropout": "clips are not padded",
            "log_loss_info": "it does not change what is learned",
            "pre_encoded": "the dataset says whether clips are encoded",
        }
    )
    longest = [one.settings.get("max_length") or one.settings.get("pad_to") or 1 for one in config.conditions]
    has_text = any(one.kind != NUMBER for one in config.conditions)
    return ModelTraining(config, Translation(layer, tuple(notes)), tasks, sum(longest), has_text)


def _timesteps(training: Section) -> dict[str, Any]:
    """Return the distribution of timesteps, as arguments of an objective."""
    kind: Sampling = training.take("timestep_sampler", Sampling, "uniform")
    training.expect("p_one_shot", 0.0, by=OBJECTIVE, default=0.0)
    options = training.section("timestep_sampler_options")
    read: dict[str, Any] = {"timesteps": TIMESTEPS[kind]}
    if kind == "log_snr":
        read |= {"mean": -options.take("mean_logsnr", float, -1.2), "std": options.take("std_logsnr", float, 2.0)}
    options.close()
    return read


def _shift(tree: Any) -> dict[str, Any]:
    """Return the shift of timesteps by length, as an argument of an objective; nothing if there is none."""
    diffusion = Section(tree, "").section("model").section("diffusion")
    if "distribution_shift_options" not in diffusion:
        return {}
    options = diffusion.section("distribution_shift_options")
    shift = [options.take("base_shift", float, 0.5), options.take("max_shift", float, 1.15)]
    for name, length in {"min_length": SHORT, "max_length": LONG}.items():
        options.expect(name, length, by=OBJECTIVE, default=length)
    options.expect("use_sine", False, by=OBJECTIVE, default=False)
    options.close()
    return {"length_shift": shift}


def _tasks(training: Section, inpaints: bool, notes: list[str]) -> dict[str, float]:
    """Return the weights of the tasks; a model that sees known frames also learns to continue and fill clips."""
    if not inpaints:
        if "inpainting" in training:
            key = join(training.key, "inpainting")
            raise SpecError(
                f"{key} is given, but model_type is 'diffusion_cond'; expected 'diffusion_cond_inpaint'. Change it, or remove {key}"
            )
        return {"generate": 1.0}
    section = training.section("inpainting")
    masks = section.section("mask_kwargs")
    shares = masks.take("mask_type_probabilities", tuple[float, float, float], tuple(MASKS.values()))
    one_gap = "the task fill makes one gap in a clip"
    notes += masks.ignore({"max_mask_segments": one_gap}) + training.ignore({"max_mask_segments": one_gap})
    masks.close()
    section.close()
    notes.append("the tasks continue and fill keep at least a tenth of a clip; data.tasks can say otherwise")
    weights = {task: share for task, share in zip(MASKS, shares, strict=True) if share > 0}
    return {task: weights[task] for task in ("generate", "continue", "fill") if task in weights}


def _dropout(training: Section, config: ModelConfig) -> dict[str, Any]:
    """Return how often all conditions are left out at once."""
    share = training.take("cfg_dropout_prob", float, 0.1)
    crossing = [one.id for one in config.conditions if one.crosses]
    together = {"+".join(crossing): share} if crossing and share > 0 else {}
    return {"features": 0.0} | ({"together": together} if together else {})


def _demos(training: Section, config: ModelConfig, made: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return what is generated during training; its steps and guidance become the model's."""
    demo = training.section("demo")
    if "demo" not in training:
        return {}
    made["sampler"] = {**made["sampler"], "init_args": {**made["sampler"]["init_args"], "num_steps": demo.take("demo_steps", int, 250)}}
    scales = demo.take("demo_cfg_scales", list[float], [])
    if scales:
        made["guidance"] = {"scale": sorted(scales)[(len(scales) - 1) // 2]}
    if len(scales) > 1:
        notes.append(f"demos use one guidance scale, {made['guidance']['scale']:g}, instead of {len(scales)}")
    prompts, seconds = _prompts(demo, config, notes)
    validation: dict[str, Any] = {"every": demo.take("demo_every", int, 2000)}
    validation |= {"prompts": prompts, "seconds": seconds} if prompts else {}
    reasons = {
        "demo_cond_from_batch": "prompts come from demo_cond",
        "display_audio_cond": "no clip is a condition",
        "cond_display_configs": "no clip is a condition",
        "log_duration": "train.validation.seconds says how long demos are",
    }
    notes += demo.ignore(reasons)
    demo.close()
    return {"validation": validation}


def _prompts(demo: Section, config: ModelConfig, notes: list[str]) -> tuple[list[str], float]:
    """Return the prompts of demos, and the length in seconds that all demos have."""
    rows = demo.take("demo_cond", list[dict[str, Any]], [])
    rows = rows[: demo.take("num_demos", int, len(rows))]
    read = [Section(row, f"{join(demo.key, 'demo_cond')}[{i}]") for i, row in enumerate(rows)]
    text = next((one.id for one in config.conditions if one.kind != NUMBER), None)
    prompts = [] if text is None else [row.take(text, str, "") for row in read]
    starts, lengths = ([row.take(name, float, 0.0) for row in read] for name in NUMBERS)
    for row in read:
        row.close()
    if not prompts:
        notes.append("there are no prompts for demos; name some in train.validation.prompts")
    if any(starts):
        notes.append("demos begin at 0 seconds instead of seconds_start")
    seconds = min([config.sample_size / config.sample_rate, *(length for length in lengths if length > 0)])
    if len(set(lengths)) > 1:
        notes.append(f"all demos are as long as the shortest, {seconds:g} s (train.validation.seconds)")
    return prompts, _rounded(seconds)


def _rounded(seconds: float) -> float:
    """Return a length with at most six decimals, rounded down."""
    return int(seconds * 1e6) / 1e6


def _trained_t5(settings: Section) -> dict[str, Any]:
    settings.expect("enable_grad", False, by=ENCODERS, default=False)
    return read_t5(settings)


def _clap_text(settings: Section) -> dict[str, Any]:
    """Read the settings of a CLAP model that reads texts, as arguments of the encoder `clap-text`."""
    hidden = settings.take("use_text_features", bool, False)
    name, layer = settings.take("clap_ckpt_path", str, ""), settings.take("feature_layer_ix", int, -1)
    for flag in ("project_out", "finetune", "enable_grad"):
        settings.expect(flag, False, by=ENCODERS, default=False)
    settings.close(unused=("audio_model_type", "enable_fusion", "output_dim"))
    read: dict[str, Any] = {"name": name, "features": "hidden" if hidden else "pooled"}
    tokens = {"layer": layer, "pad_to": CLAP_TOKENS, "truncate": True} if hidden else {"pad_to": None}
    return read | tokens


CONDITIONERS = {T5: _trained_t5, CLAP_TEXT: _clap_text, NUMBER: read_number}
"""Type of conditioner → function that reads its settings, for models that are trained from scratch."""
