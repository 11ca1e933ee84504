"""Configs of stable-audio-tools for models with a diffusion transformer, read as a spec.

A key that a config omits has the default of stable-audio-tools. Unknown keys, and anything that cannot be computed here, are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from soundomni.core.errors import SpecError, did_you_mean, shown
from soundomni.core.limits import HIGHEST_RATE, LONGEST_SECONDS, MOST_CHANNELS
from soundomni.core.pretrained.config_sections import Section
from soundomni.core.spec.values import join
from soundomni.experts.checkpoints.stable_audio_layout import LATENT
from soundomni.experts.sizes import MOST_DIM, MOST_LAYERS

TRANSFORMER, MODEL = "the backbone dit", "the importer"
Objective = Literal["v", "rectified_flow", "rf_denoiser"]
T5, NUMBER, CLAP_TEXT = "t5", "number", "clap_text"
KINDS = {"diffusion_cond": False, "diffusion_cond_inpaint": True}
"""Kind of model → whether it sees known frames of a clip."""
HINTS = ["inpaint_mask", "inpaint_masked_input"]
"""What the input of such a model also holds, in this order."""
NUMBERS: Mapping[str, str] = {"seconds_start": "{seconds_start}", "seconds_total": "{seconds_total}"}
"""Number → its text in a prompt: where a clip begins in its recording, and how long the recording is, in whole
seconds."""
LONGEST_TEXT = 128
"""Tokens of a text of stable-audio-tools' T5, unless a config says otherwise."""
USUAL_T5 = "t5-base"
"""T5 that stable-audio-tools uses unless a config names another one."""
NUM_FREQUENCIES = 128
"""Number of frequencies with which stable-audio-tools encodes a number."""
MOST_CONDITIONS = 64


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A condition of a model.

    Args:
        id: its name.
        kind: "t5", "t5gemma", "clap_text" or "number".
        settings: for T5 and T5Gemma, the name of the model and its max_length; for CLAP, its file and which of its
            features are used; for a number, the arguments of the encoder.
        crosses, is_global: in which ways it enters.
    """

    id: str
    kind: str
    settings: Mapping[str, Any]
    crosses: bool
    is_global: bool

    @property
    def enters(self) -> str:
        """The way in which it enters, as in a spec."""
        return "cross+global" if self.crosses and self.is_global else "cross" if self.crosses else "global"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What is known about a model without its weights.

    Args:
        sample_rate, channels: those of its audio.
        sample_size: samples of the clips that it was trained on.
        latent_dim: dimensions of its latents.
        objective: what the network predicts.
        plugin, backbone: the backbone and its arguments.
        condition_dim: dimensions of condition tokens.
        conditions: its conditions, in the order of the tokens that the backbone attends to.
        global_ids: those that enter globally, in the order of their columns.
        inpaints: whether it sees known frames of a clip.
        unused: keys of the config that do not matter.
        schedule: where the steps of its sampler lie, if the config says so.
    """

    sample_rate: int
    channels: int
    sample_size: int
    latent_dim: int
    objective: Objective
    backbone: Mapping[str, Any]
    condition_dim: int
    conditions: tuple[Condition, ...]
    global_ids: tuple[str, ...]
    inpaints: bool
    unused: tuple[str, ...]
    plugin: Literal["dit", "dit-3"] = "dit"
    schedule: Mapping[str, Any] | None = None


def parse_model_config(tree: Any, *, conditioners: Mapping[str, Callable[[Section], dict[str, Any]]] | None = None) -> ModelConfig:
    """Read a config from parsed JSON.

    Args:
        tree: the config.
        conditioners: type of conditioner → function that reads its settings; None for the types that can be imported
            with weights.

    Raise SpecError if it is not such a config, has an unknown key or a wrong value, or asks for what cannot be computed here.
    """
    top = Section(tree, "")
    kind = top.take("model_type", str)
    if kind not in KINDS:
        known = "autoencoders are read by `soundomni import stable-audio-vae`" if kind == "autoencoder" else "others are not imported"
        raise SpecError(f"model_type is '{kind}'; expected {' or '.join(map(repr, KINDS))}; {known}")
    inpaints = KINDS[kind]
    sample_rate, sample_size, channels = read_audio(top)
    model = top.section("model")
    unused = top.close(unused=("training",))
    conditioning, diffusion = model.section("conditioning"), model.section("diffusion")
    latent_dim = model.take_whole("io_channels", most=MOST_DIM)
    model.section("pretransform").expect("scale", 1.0, by=MODEL, default=1.0)
    unused += model.close(unused=("in_channels", "out_channels"))
    diffusion.expect("type", "dit", by=MODEL)
    crosses, globals_ = (tuple(diffusion.take(f"{name}_ids", list[str], [])) for name in ("cross_attention_cond", "global_cond"))
    diffusion.expect("prepend_cond_ids", [], by=MODEL, default=[])
    diffusion.expect("input_concat_ids", HINTS if inpaints else [], by=f"a model of the type {kind}", default=[])
    objective: Objective = diffusion.take("diffusion_objective", Objective, "v")
    transformer = diffusion.section("config")
    unused += diffusion.close(unused=("distribution_shift_options",))
    condition_dim = conditioning.take_whole("cond_dim", most=MOST_DIM)
    conditions = read_conditions(conditioning, crosses, globals_, IMPORTED if conditioners is None else conditioners)
    unused += conditioning.close(unused=("default_keys",))
    widths = {"cond_token_dim": condition_dim if crosses else 0, "global_cond_dim": len(globals_) * condition_dim}
    widths |= {"io_channels": latent_dim, "input_concat_dim": latent_dim + 1 if inpaints else 0}
    backbone = _backbone(transformer, condition_dim, widths)
    return ModelConfig(
        sample_rate=sample_rate,
        channels=channels,
        sample_size=sample_size,
        latent_dim=latent_dim,
        objective=objective,
        backbone=backbone,
        condition_dim=condition_dim,
        conditions=conditions,
        global_ids=globals_,
        inpaints=inpaints,
        unused=tuple(unused),
    )


def read_audio(top: Section) -> tuple[int, int, int]:
    """Return the sample rate, the samples of a clip and the audio channels of a config. Raise SpecError if one is out
    of range."""
    sample_rate = top.take_whole("sample_rate", most=HIGHEST_RATE)
    sample_size = top.take_whole("sample_size", most=int(LONGEST_SECONDS) * sample_rate)
    return sample_rate, sample_size, top.take_whole("audio_channels", 2, most=MOST_CHANNELS)


def read_conditions(
    section: Section,
    crosses: tuple[str, ...],
    globals_: tuple[str, ...],
    readers: Mapping[str, Callable[[Section], dict[str, Any]]],
) -> tuple[Condition, ...]:
    """Read the conditioners; `readers` reads the settings of each known kind. Raise SpecError for other kinds, and for
    an id without a conditioner."""
    found: list[Condition] = []
    configs = section.take("configs", list[Any])
    if len(configs) > MOST_CONDITIONS:
        raise SpecError(f"{join(section.key, 'configs')} has {len(configs):,} conditions; expected at most {MOST_CONDITIONS}")
    for index, given in enumerate(configs):
        one = Section(given, f"{join(section.key, 'configs')}[{index}]")
        id, kind, settings = one.take("id", str), one.take("type", str), one.section("config")
        one.close()
        if not id.isidentifier():
            raise SpecError(f"{join(one.key, 'id')} is '{id}'; expected a name of letters, digits and underscores")
        if id == LATENT or id in (other.id for other in found):
            raise SpecError(f"{join(one.key, 'id')} is '{id}', which is taken; expected another name for each condition")
        read = readers.get(kind)
        if read is None:
            near, known = did_you_mean(kind, readers), " or ".join(readers)
            raise SpecError(f"{join(one.key, 'type')} is '{kind}'; expected {known}, the only conditioners that can be imported.{near}")
        found.append(Condition(id=id, kind=kind, settings=read(settings), crosses=id in crosses, is_global=id in globals_))
    for name, given_ids in (("cross_attention_cond_ids", crosses), ("global_cond_ids", globals_)):
        if len(set(given_ids)) < len(given_ids):
            raise SpecError(f"model.diffusion.{name} is {shown(list(given_ids))}; expected every condition only once")
    ids = [one.id for one in found]
    for id in (*crosses, *globals_):
        if id not in ids:
            raise SpecError(f"the condition '{id}' has no conditioner; the config has {', '.join(ids)}.{did_you_mean(id, ids)}")
    order = [*crosses, *globals_]
    entering = tuple(sorted((one for one in found if one.id in order), key=lambda one: order.index(one.id)))
    _check_conditions(entering)
    return entering


def _check_conditions(conditions: Sequence[Condition]) -> None:
    """Raise SpecError for conditions that cannot play the same part in a prompt or in guidance here."""
    for one in conditions:
        if not one.crosses:
            raise SpecError(
                f"the condition '{one.id}' is only in global_cond_ids; {MODEL} needs it in cross_attention_cond_ids "
                "too, because stable-audio-tools keeps purely global conditions in both branches of guidance, "
                "which is not possible here"
            )
        if one.kind == NUMBER and one.id not in NUMBERS:
            near = did_you_mean(one.id, NUMBERS)
            raise SpecError(f"the number '{one.id}' is unknown; {MODEL} takes the numbers {' and '.join(NUMBERS)}.{near}")
    texts = [one.id for one in conditions if one.kind != NUMBER]
    if len(texts) > 1:
        raise SpecError(f"the conditions {', '.join(texts)} are all texts; {MODEL} takes only one, the prompt")


def read_name(settings: Section, key: str, usual: str) -> str:
    """Return the name of a text encoder. Raise SpecError for a blank one."""
    name: str = settings.take(key, str, usual)
    if not name.strip():
        raise SpecError(f"{join(settings.key, key)} is {name!r}; expected the name of a model, such as {usual}")
    return name


def read_t5(settings: Section) -> dict[str, Any]:
    """Read the settings of a T5 conditioner, which is only imported if its features are used as they are."""
    settings.expect("project_out", False, by=MODEL, default=False)
    read = {"name": read_name(settings, "t5_model_name", USUAL_T5), "max_length": settings.take("max_length", int, LONGEST_TEXT)}
    settings.close(unused=("enable_grad", "output_dim"))
    return read


def read_number(settings: Section) -> dict[str, Any]:
    """Read the settings of a number."""
    read = {"least": settings.take("min_val", float, 0.0), "most": settings.take("max_val", float, 1.0)}
    settings.close(unused=("output_dim",))
    return read


IMPORTED: Mapping[str, Callable[[Section], dict[str, Any]]] = {T5: read_t5, NUMBER: read_number}
"""Type of conditioner → function that reads its settings, for types that can be imported with a model's weights."""


def read_sizes(config: Section) -> tuple[int, int, int]:
    """Return the hidden size, the layers and the heads of a transformer. Raise SpecError if one is out of range."""
    return (
        config.take_whole("embed_dim", 768, most=MOST_DIM),
        config.take_whole("depth", 12, most=MOST_LAYERS),
        config.take_whole("num_heads", 8, most=MOST_DIM),
    )


def _backbone(config: Section, condition_dim: int, widths: Mapping[str, int]) -> dict[str, Any]:
    """Return the arguments of the backbone; `widths` are what the rest of the config implies.

    Raise SpecError for what it does not have, and for sizes that contradict each other.
    """
    hidden_dim, num_layers, num_heads = read_sizes(config)
    for name, expected in widths.items():
        given = config.take(name, int, 32 if name == "io_channels" else 0)
        if given != expected:
            raise SpecError(f"{join(config.key, name)} is {given}; expected {expected}, to agree with the rest of the config")
    projects_global = config.take("project_global_cond", bool, True)
    if widths["global_cond_dim"] and not projects_global and widths["global_cond_dim"] != hidden_dim:
        raise SpecError(f"{join(config.key, 'project_global_cond')} is false; expected true, because global conditions have other sizes")
    for name, value in {"patch_size": 1, "prepend_cond_dim": 0}.items():
        config.expect(name, value, by=TRANSFORMER, default=value)
    for name, text in {"transformer_type": "continuous_transformer", "timestep_cond_type": "global"}.items():
        config.expect(name, text, by=TRANSFORMER, default=text)
    for name, flag in {"rotary_pos_emb": True, "conformer": False, "use_sinusoidal_emb": False, "use_abs_pos_emb": False}.items():
        config.expect(name, flag, by=TRANSFORMER, default=flag)
    kind = config.take("global_cond_type", Literal["prepend", "adaLN"], "prepend")
    attention = config.section("attn_kwargs")
    norm, differential = attention.take("qk_norm", str, "none"), attention.take("differential", bool, False)
    if norm not in ("none", "ln"):
        raise SpecError(f"{join(attention.key, 'qk_norm')} is '{norm}'; expected 'none' or 'ln', which {TRANSFORMER} has")
    attention.expect("feat_scale", False, by=TRANSFORMER, default=False)
    attention.close()
    projects = config.take("project_cond_tokens", bool, True)
    num_memory = config.take_whole("num_memory_tokens", 0, least=0, most=MOST_DIM)
    config.close(unused=("zero_init_branch_outputs",))
    return {
        "hidden_dim": hidden_dim,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "condition_dim": condition_dim,
        "project_conditions": projects,
        "conditioning": "prepend" if kind == "prepend" else "adaln",
        "head_norm": "layer" if norm == "ln" else "none",
        "num_memory": num_memory,
        "differential": differential,
    }
