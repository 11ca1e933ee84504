"""Translates stable-audio-tools' configs for training autoencoders into a spec that trains the codec `oobleck`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from soundomni.core.errors import SpecError
from soundomni.core.pretrained.config_sections import Section, Translation
from soundomni.core.spec.values import join
from soundomni.vae.checkpoints.stable_audio_config import parse_config
from soundomni.vae.stft_loss import DEFAULT_WINDOWS

STFT, SPECTROGRAM, L1 = "stft", "spectrogram", "l1"
"""Names for the critics in the spec."""
KL_WEIGHT = 1e-6
"""Weight of the KL divergence if a config does not set it."""
TRAINER = "training a codec"
_WINDOWS = list(DEFAULT_WINDOWS)
_HOPS = [window // 4 for window in _WINDOWS]
DEFAULT_LOSSES: Mapping[str, Any] = {
    "spectral": {
        "type": "mrstft",
        "config": {"fft_sizes": _WINDOWS, "hop_sizes": _HOPS, "win_lengths": _WINDOWS, "perceptual_weighting": True},
        "weights": {"mrstft": 1.0},
    },
    "discriminator": {
        "type": "encodec",
        "config": {"n_ffts": _WINDOWS, "hop_lengths": _HOPS, "win_lengths": _WINDOWS, "filters": 32},
        "weights": {"adversarial": 0.1, "feature_matching": 5.0},
    },
}
"""Losses for a config without `loss_configs`."""


def read_autoencoder(tree: Any, training: Section) -> Translation:
    """Return the sections `codec` and `train.loss_weights` for a config.

    Args:
        tree: the whole config.
        training: its section `training`; keys about the run stay in it.

    Raise SpecError for a network or a loss that does not exist here.
    """
    config = parse_config(tree)
    notes = [f"{key} is ignored" for key in config.unused if key not in ("sample_size", "training") and "requires_grad" not in key]
    key = join(training.key, "loss_configs")
    losses = training.section("loss_configs") if "loss_configs" in training else Section(DEFAULT_LOSSES, key)
    critics: dict[str, Any] = {}
    weights: dict[str, float] = {}
    _spectral(losses, critics, weights)
    _time(losses, critics, weights)
    if "discriminator" in losses:
        _discriminator(losses, critics, weights, notes)
    kl = losses.section("bottleneck")
    kl.take("type", str, "kl")
    amounts = kl.section("weights")
    init_args = {**config.init_args, "kl_weight": amounts.take("kl", float, KL_WEIGHT)}
    weights["kl"] = 1.0
    for section in (amounts, kl, losses):
        section.close(unused=("weights", "config"))
    codec: dict[str, Any] = {"codec": {"class_path": "oobleck", "init_args": init_args}, "critics": critics}
    train: dict[str, Any] = {"loss_weights": weights}
    frozen = _frozen(tree)
    starts = training.take("warmup_steps", int, 0)
    if training.take("encoder_freeze_on_warmup", bool, False):
        if starts:
            key = join(training.key, "encoder_freeze_on_warmup")
            raise SpecError(
                f"{key} is true, but parts can only be frozen for a whole run here. Train without it, then with codec.freeze: [encoder]"
            )
        frozen = list(dict.fromkeys(["encoder", *frozen]))
    codec |= {"freeze": frozen} if frozen else {}
    if starts and SPECTROGRAM in critics:
        begins = -(-starts // 2)  # each of their steps trains one network
        train["loss_starts"] = {f"{SPECTROGRAM}.{loss}": begins for loss in ("adversarial", "features")}
    notes += _others(training)
    return Translation({"codec": codec, "train": train}, (*config.notes, *notes))


def _others(training: Section) -> list[str]:
    """Raise SpecError for what does not exist here, and return notes on what does not matter."""
    for name, value in {"force_input_mono": False, "latent_mask_ratio": 0.0}.items():
        training.expect(name, value, by=TRAINER, default=value)
    if "teacher_model" in training:
        raise SpecError(f"{join(training.key, 'teacher_model')} is given; expected none, because codecs are not distilled here")
    measured = "`soundomni reconstruct` and held-out clips measure a codec"
    return training.ignore({"teacher_model_ckpt": "there is no teacher", "eval_loss_configs": measured})


def _frozen(tree: Mapping[str, Any]) -> list[str]:
    """Return the parts that are not trained."""
    model = Section(tree, "").section("model")
    return [part for part in ("encoder", "decoder") if not model.section(part).take("requires_grad", bool, True)]


def _spectral(losses: Section, critics: dict[str, Any], weights: dict[str, float]) -> None:
    """Read the settings of the spectral distance."""
    section = losses.section("spectral")
    section.expect("type", "mrstft", by=TRAINER, default="mrstft")
    section.expect("decay", 1.0, by=TRAINER, default=1.0)
    config, amounts = section.section("config"), section.section("weights")
    windows = _windows(config, ("fft_sizes", "hop_sizes", "win_lengths"), "the critic multi-stft")
    weighting = config.take("perceptual_weighting", bool, False)
    fixed = {"w_sc": 1.0, "w_log_mag": 1.0, "w_lin_mag": 0.0, "w_phs": 0.0, "w_sum": 1.0, "w_diff": 1.0}
    for name, value in fixed.items():
        config.expect(name, value, by="the critic multi-stft", default=value)
    config.expect("scale_invariance", False, by="the critic multi-stft", default=False)
    weight = amounts.take("mrstft", float)
    for one in (amounts, config, section):
        one.close()
    critics[STFT] = {"class_path": "multi-stft", "init_args": {"windows": windows, "a_weighting": weighting}}
    weights[STFT] = weight


def _time(losses: Section, critics: dict[str, Any], weights: dict[str, float]) -> None:
    """Read the distance between samples; refuse distances that do not exist here unless their weight is 0."""
    section = losses.section("time")
    section.take("type", str, "l1")
    section.expect("decay", 1.0, by=TRAINER, default=1.0)
    section.section("config").close()
    amounts = section.section("weights")
    weight = amounts.take("l1", float, 0.0)
    amounts.expect("l2", 0.0, by="the critic l1", default=0.0)
    amounts.close()
    section.close()
    if weight > 0:
        critics[L1], weights[L1] = "l1", weight
    for name, near in {"mrmel": "multi-mel", "hubert": "multi-mel"}.items():
        other = losses.section(name)
        share = other.section("weights").take(name, float, 0.0)
        if share > 0:
            key = join(other.key, f"weights.{name}")
            raise SpecError(
                f"{key} is {share}; expected 0, because there is no such critic here. Set it to 0, and consider adding the critic {near}"
            )


def _discriminator(losses: Section, critics: dict[str, Any], weights: dict[str, float], notes: list[str]) -> None:
    """Read the settings of the discriminator."""
    section = losses.section("discriminator")
    section.expect("type", "encodec", by=TRAINER)
    config, amounts = section.section("config"), section.section("weights")
    filters = config.take("filters", int)
    windows = _windows(config, ("n_ffts", "hop_lengths", "win_lengths"), "the critic multi-scale-stft")
    relative = config.take("normalize_losses", bool, False)
    config.expect("loss_type", "hinge", by="the critic multi-scale-stft", default="hinge")
    config.expect("normalized", True, by="the critic multi-scale-stft", default=True)
    dilations = config.take("dilations", list[int], [1, 2, 4])
    weights[f"{SPECTROGRAM}.adversarial"] = amounts.take("adversarial", float)
    weights[f"{SPECTROGRAM}.features"] = amounts.take("feature_matching", float)
    for one in (amounts, config, section):
        one.close()
    settings = {"windows": windows, "filters": filters, "dilations": dilations, "relative_features": relative}
    critics[SPECTROGRAM] = {"class_path": "multi-scale-stft", "init_args": settings}
    networks = "networks halve the frequencies layer by layer, as EnCodec's do, and stable-audio-tools' keep them"
    notes.append(f"the critic multi-scale-stft: its {networks}; the codec's adversarial loss is max(0, 1 - logit) instead of -logit")
    notes.append("a step here trains codec and critic, and theirs only one of them, so numbers of steps and intervals are halved")


def _windows(config: Section, names: tuple[str, str, str], critic: str) -> list[int]:
    """Return the lengths of windows. Raise SpecError unless each hop is a quarter of its window and each spectrum as
    long."""
    ffts, hops, lengths = (config.take(name, list[int]) for name in names)
    quarters = [length // 4 for length in lengths]
    for name, found, expected in ((names[0], ffts, lengths), (names[1], hops, quarters)):
        if found != expected:
            raise SpecError(f"{join(config.key, name)} is {found}; expected {expected}, to fit the windows of {critic}")
    return list(lengths)
