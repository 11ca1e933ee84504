"""Translates optimizers, schedules, averages and intervals of stable-audio-tools' configs into the section `train` of a
spec.

A key that a config omits has stable-audio-tools' default or, within an optimizer, torch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from soundomni.core.errors import SpecError, did_you_mean
from soundomni.core.pretrained.config_sections import Section, Translation
from soundomni.core.spec.values import join

STEPS = 1_000_000
"""Number of steps for a run, which stable-audio-tools would never end."""
EMA_DECAY = 0.9999
DECAYS = {"AdamW": 0.01, "Adam": 0.0, "FusedAdam": 0.0}
"""Name of an optimizer → its weight decay if a config does not set it."""
DEFAULTS = {"autoencoder": (False, "AdamW", (0.8, 0.99)), "diffusion": (True, "Adam", (0.9, 0.999))}
"""Network → whether its weights are averaged by default, and the optimizer that stable-audio-tools uses for
`learning_rate`."""
BY = "the optimizer adamw"


def read_run(training: Section, networks: Sequence[str]) -> Translation:
    """Return the section `train` for a config's section `training`, except for its losses and demos.

    Args:
        training: the section; keys that this function does not know stay in it.
        networks: names of what is trained in `optimizer_configs`: "diffusion"; or "autoencoder", with "discriminator" if there is a
            critic that learns.

    Raise SpecError for an optimizer or a schedule that does not exist here.
    """
    averages, kind, betas = DEFAULTS[networks[0]]
    rate, given = training.take("learning_rate", float, None), training.section("optimizer_configs")
    notes = [
        f"stable-audio-tools trains until it is stopped; train.steps is {STEPS:,}",
        "stable-audio-tools clips gradients only with --gradient-clip-val; train.optimizer.clip is 0",
    ]
    if "optimizer_configs" in training:
        _check_pair(given, networks)
        phases = {name: _phase(given, name) for name in networks}
        notes += [f"{join(training.key, 'learning_rate')} is ignored: optimizer_configs sets the rates"] if rate is not None else []
        others = [name for name in ("autoencoder", "discriminator", "diffusion") if name not in networks]
        notes += given.ignore(dict.fromkeys(others, "nothing with this name is trained"))
        given.close()
    elif rate is None:
        raise SpecError(f"{join(training.key, 'learning_rate')}: missing; expected it, or optimizer_configs")
    else:
        plain = {"lr": rate, "betas": list(betas), "eps": 1e-8, "weight_decay": DECAYS[kind], "clip": 0.0}
        phases = {name: {"optimizer": plain, "schedule": _constant()} for name in networks}
    if any(phase["optimizer"]["weight_decay"] for phase in phases.values()):
        notes.append("weight decay applies to matrices, not to biases and gains")
    own, *critics = (phases[name] for name in networks)
    layer: dict[str, Any] = {"steps": STEPS, **own}
    layer |= {"phases": {"critics": critics[0]}} if critics else {}
    layer["ema_decay"] = EMA_DECAY if training.take("use_ema", bool, averages) else 0.0
    per_step = len(networks)
    layer |= _intervals(training, per_step, notes)
    return Translation({"train": layer}, tuple(notes))


def own_steps(steps: int, per_step: int) -> int:
    """Convert stable-audio-tools' number of steps to ours: its steps train codec and critic in turn, a step here trains
    both."""
    return -(-steps // per_step)


def _phase(given: Section, name: str) -> dict[str, Any]:
    """Return the optimizer and schedule of one network."""
    section = given.section(name)
    if name not in given:
        raise SpecError(f"{section.key}: missing; expected its optimizer, such as AdamW")
    read = {"optimizer": _optimizer(section.section("optimizer"))}
    read["schedule"] = _schedule(section.section("scheduler")) if "scheduler" in section else _constant()
    section.close(unused=("scheduler",))
    return read


def _check_pair(given: Section, networks: Sequence[str]) -> None:
    """Raise SpecError if only one of two networks has a schedule, because stable-audio-tools would then ignore it."""
    scheduled = [name for name in networks if "scheduler" in Section(given.take(name, dict[str, Any], {}), "")]
    if 0 < len(scheduled) < len(networks):
        key = join(given.key, scheduled[0])
        raise SpecError(
            f"{key}.scheduler is given, but {networks[networks[0] == scheduled[0]]} has none; expected a scheduler for both, or for none"
        )


def _optimizer(section: Section) -> dict[str, Any]:
    kind, config = section.take("type", str), section.section("config")
    if kind not in DECAYS:
        known = ", ".join(DECAYS)
        raise SpecError(f"{join(section.key, 'type')} is '{kind}'; expected one of {known}.{did_you_mean(kind, DECAYS)}")
    read = {
        "lr": config.take("lr", float, 1e-3),
        "betas": list(config.take("betas", tuple[float, float], (0.9, 0.999))),
        "eps": config.take("eps", float, 1e-8),
        "weight_decay": config.take("weight_decay", float, DECAYS[kind]),
        "clip": 0.0,
    }
    if kind == "Adam" and read["weight_decay"]:
        key = join(config.key, "weight_decay")
        raise SpecError(f"{key} is {read['weight_decay']}; expected 0, because {BY} does not add it to gradients. Use AdamW")
    for name in ("amsgrad", "maximize"):
        config.expect(name, False, by=BY, default=False)
    config.ignore(dict.fromkeys(("fused", "foreach", "capturable"), "it does not change results"))
    config.close()
    section.close()
    return read


def _schedule(section: Section) -> dict[str, Any]:
    kind = section.take("type", str)
    if kind != "InverseLR":
        key = join(section.key, "type")
        raise SpecError(f"{key} is '{kind}'; expected 'InverseLR'. Leave the scheduler out, and set train.schedule in a layer of your own")
    config = section.section("config")
    read = {
        "kind": "inverse-power",
        "gamma": config.take("inv_gamma", float, 1.0),
        "power": config.take("power", float, 1.0),
        "warmup_decay": config.take("warmup", float, 0.0),
    }
    config.expect("final_lr", 0.0, by="the schedule inverse-power", default=0.0)
    config.close()
    section.close()
    return read


def _constant() -> dict[str, Any]:
    return {"kind": "constant", "warmup_steps": 0}


def _intervals(training: Section, per_step: int, notes: list[str]) -> dict[str, Any]:
    """Return the intervals for saving and logging, which friendly-stable-audio-tools has in its configs."""
    logging, checkpoint = training.section("logging"), training.section("checkpoint")
    every, rows = checkpoint.take("every_n_train_steps", int, None), logging.take("log_every", int, None)
    kept = checkpoint.take("save_top_k", int, None)
    read: dict[str, Any] = {} if every is None else {"save_every": own_steps(every, per_step)}
    read |= {} if rows is None else {"log_every": own_steps(rows, per_step)}
    if kept is not None and kept > 0:
        read["keep_checkpoints"] = kept
    elif kept == -1 and every is not None:
        read["keep_every"] = read["save_every"]
    best = "checkpoints are kept by age; train.validation.best keeps the best one"
    notes += checkpoint.ignore({"monitor": best, "save_last": "the newest checkpoint is always kept"})
    checkpoint.close()
    logging.close()
    notes += training.ignore({"tqdm": "it only changes a progress bar"})
    return read
