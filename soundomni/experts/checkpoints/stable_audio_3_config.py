"""Reads Stable Audio 3's configs of models with its diffusion transformer as a spec.

They look like stable-audio-tools' configs, but have other keys. A key that a config omits has the default of the
published code. Unknown keys are refused, and so is anything that cannot be computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from soundomni.core.errors import SpecError
from soundomni.core.pretrained.config_sections import Section
from soundomni.core.spec.values import join
from soundomni.experts.checkpoints.stable_audio_model_config import (
    HINTS,
    MODEL,
    NUMBER,
    ModelConfig,
    Objective,
    read_audio,
    read_conditions,
    read_name,
    read_sizes,
)
from soundomni.experts.sizes import MOST_DIM

TRANSFORMER, KIND = "the backbone dit-3", "diffusion_cond_inpaint"
T5GEMMA = "t5gemma"
T5GEMMA_MODEL, LONGEST_TEXT = "google/t5gemma-b-b-ul2", 128
HEADROOM = 6.0
"""Seconds that Stable Audio 3 makes behind the end of a clip, and cuts off."""
SAMPLING_SHIFT = "sampling_distribution_shift_options"
LOG_SNR_ANCHOR, LOG_SNR_END = -6.2, 2.0
"""Log-SNR between which Stable Audio 3 spaces its steps, unless a config says otherwise."""


def is_third(tree: Any) -> bool:
    """Return whether a config, as parsed JSON, belongs to Stable Audio 3: its transformer has RMSNorm."""
    for name in ("model", "diffusion", "config"):
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return isinstance(tree, Mapping) and tree.get("norm_type") == "rms_norm"


def parse_third(tree: Any) -> ModelConfig:
    """Read a config of Stable Audio 3 from parsed JSON.

    Raise SpecError if it is not such a config, has an unknown key or a wrong value, or asks for something that cannot
    be computed here.
    """
    top = Section(tree, "")
    top.expect("model_type", KIND, by=f"{MODEL} for Stable Audio 3")
    sample_rate, sample_size, channels = read_audio(top)
    model = top.section("model")
    unused = top.close(unused=("training", "svd_bases_path"))
    conditioning, diffusion = model.section("conditioning"), model.section("diffusion")
    latent_dim = model.take_whole("io_channels", most=MOST_DIM)
    model.section("pretransform").expect("scale", 1.0, by=MODEL, default=1.0)
    unused += model.close(unused=("in_channels", "out_channels"))
    diffusion.expect("type", "dit", by=MODEL)
    crosses, globals_ = (tuple(diffusion.take(f"{name}_ids", list[str], [])) for name in ("cross_attention_cond", "global_cond"))
    diffusion.expect("local_add_cond_ids", HINTS, by=f"{MODEL} for Stable Audio 3")
    for name in ("prepend_cond_ids", "input_concat_ids", "modular_local_cond_configs"):
        diffusion.expect(name, [], by=MODEL, default=[])
    objective: Objective = diffusion.take("diffusion_objective", Objective, "v")
    transformer = diffusion.section("config")
    usual = _log_snr(LOG_SNR_ANCHOR, LOG_SNR_END)
    schedule = _schedule(diffusion.section(SAMPLING_SHIFT)) if SAMPLING_SHIFT in diffusion else usual
    unused += diffusion.close(unused=("distribution_shift_options", "use_effective_length_for_schedule", "mask_padding_attention"))
    unused += [] if schedule else [f"{diffusion.key}.{SAMPLING_SHIFT}"]
    condition_dim = conditioning.take_whole("cond_dim", most=MOST_DIM)
    conditions = read_conditions(conditioning, crosses, globals_, {T5GEMMA: _t5gemma, NUMBER: _number})
    unused += conditioning.close(unused=("default_keys", "pre_encoded_keys"))
    widths = {"cond_token_dim": condition_dim if crosses else 0, "global_cond_dim": len(globals_) * condition_dim}
    widths |= {"io_channels": latent_dim, "local_add_cond_dim": latent_dim + 1}
    return ModelConfig(
        sample_rate=sample_rate,
        channels=channels,
        sample_size=sample_size,
        latent_dim=latent_dim,
        objective=objective,
        plugin="dit-3",
        backbone=_backbone(transformer, condition_dim, widths),
        condition_dim=condition_dim,
        conditions=conditions,
        global_ids=globals_,
        inpaints=True,
        unused=tuple(unused),
        schedule=schedule or usual,
    )


def _schedule(options: Section) -> dict[str, Any] | None:
    """Return where the steps of sampling lie; None for a schedule that depends on a clip's length: it is not here."""
    kind = options.take("type", str, "full")
    if kind == "none":
        return {"spacing": "even"}
    if kind == "logsnr" and options.take("rate", float, 1.0) == 0:
        return _log_snr(options.take("anchor_logsnr", float, LOG_SNR_ANCHOR), options.take("logsnr_end", float, LOG_SNR_END))
    return None


def _log_snr(first: float, last: float) -> dict[str, Any]:
    return {"spacing": "log-snr", "log_snr": [first, last]}


def _t5gemma(settings: Section) -> dict[str, Any]:
    """Read the settings of a T5Gemma conditioner, whose padding is a learned embedding."""
    settings.expect("project_out", False, by=MODEL, default=False)
    settings.expect("padding_mode", "learned", by="the encoder t5gemma")
    read = {"name": read_name(settings, "model_name", T5GEMMA_MODEL), "max_length": settings.take("max_length", int, LONGEST_TEXT)}
    settings.close(unused=("enable_grad", "output_dim", "model_path", "repo_id", "subfolder"))
    return read


def _number(settings: Section) -> dict[str, Any]:
    """Read the settings of a number, with learned or with fixed frequencies."""
    kind = settings.take("fourier_features_type", Literal["learned", "expo"], "learned")
    read = {"least": settings.take("min_val", float, 0.0), "most": settings.take("max_val", float, 1.0)}
    settings.close(unused=("output_dim",))
    return {**read, "features": "fixed"} if kind == "expo" else read


def _backbone(config: Section, condition_dim: int, widths: Mapping[str, int]) -> dict[str, Any]:
    """Return the arguments of the backbone; `widths` are what the rest of the config implies.

    Raise SpecError for parts that the backbone does not have, and for sizes that contradict each other.
    """
    hidden_dim, num_layers, num_heads = read_sizes(config)
    for name, expected in widths.items():
        given = config.take(name, int, 32 if name == "io_channels" else 0)
        if given != expected:
            raise SpecError(f"{join(config.key, name)} is {given}; expected {expected}, to agree with the rest of the config")
    texts = {"norm_type": "rms_norm", "timestep_features_type": "expo", "global_cond_type": "adaLN"}
    for name, text in texts.items():
        config.expect(name, text, by=TRANSFORMER)
    defaults: Mapping[str, Any] = {
        "transformer_type": "continuous_transformer",
        "timestep_cond_type": "global",
        "timestep_features_dim": 256,
        "patch_size": 1,
        "input_concat_dim": 0,
        "prepend_cond_dim": 0,
        "rotary_pos_emb": True,
        "conformer": False,
        "causal": False,
        "layer_scale": False,
        "add_rope": False,
        "cross_attn_rotary_pos_emb": False,
        "use_sinusoidal_emb": False,
        "use_abs_pos_emb": False,
        "final_cross_attn_ix": -1,
    }
    for name, value in defaults.items():
        config.expect(name, value, by=TRANSFORMER, default=value)
    projects_global = config.take("project_global_cond", bool, True)
    if widths["global_cond_dim"] and not projects_global and widths["global_cond_dim"] != hidden_dim:
        raise SpecError(
            f"{join(config.key, 'project_global_cond')} is false; expected true, because global conditions have a different size"
        )
    attention, norms, mlp = (config.section(name) for name in ("attn_kwargs", "norm_kwargs", "ff_kwargs"))
    attention.expect("qk_norm", "rms", by=TRANSFORMER)
    attention.expect("feat_scale", False, by=TRANSFORMER, default=False)
    differential = attention.take("differential", bool, False)
    mlp.expect("mult", 4.0, by=TRANSFORMER, default=4.0)
    attention.close()
    norms.close(unused=("force_fp32",))
    mlp.close()
    found = {
        "hidden_dim": hidden_dim,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "condition_dim": condition_dim,
        "project_conditions": config.take("project_cond_tokens", bool, True),
        "num_memory": config.take_whole("num_memory_tokens", 0, least=0, most=MOST_DIM),
        "differential": differential,
        "log_snr_times": config.take("timestep_features_logsnr", bool, False),
    }
    config.close(unused=("zero_init_branch_outputs",))
    return found
