"""Where published checkpoints keep the tensors of Stable Audio's autoencoders, and what else they hold.

| layout | prefix of the autoencoder |
|---|---|
| stable-audio-vae | none, or `state_dict.` in an unwrapped checkpoint |
| full-model | `pretransform.model.`, next to the diffusion model and its conditioners |
| full-training | `diffusion.pretransform.model.`, in a training checkpoint of the diffusion model |
| training-average, training | `autoencoder_ema.ema_model.` or else `autoencoder.`, next to the discriminator and the losses |
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from soundomni.core.errors import CheckpointError, amount, some
from soundomni.core.pretrained.foreign_weights import WeightFile

STABLE_AUDIO = "stable-audio-vae"
CONTAINER = "state_dict."

_LOSS = "a loss of its training"
_NOT_TRAINED = {
    "discriminator.": "the discriminator of its training",
    "losses_gen.": _LOSS,
    "losses_disc.": _LOSS,
    "losses.": _LOSS,
    "eval_losses.": _LOSS,
    "sdstft.": _LOSS,
    "lrstft.": _LOSS,
    "teacher_model.": "the teacher of its training",
    "autoencoder_ema.online_model.": "the last weights; their average is used instead",
    "autoencoder_ema.initted": "a counter of the average",
    "autoencoder_ema.step": "a counter of the average",
}
_PREFIXES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "training-average": (
        "autoencoder_ema.ema_model.",
        _NOT_TRAINED | {"autoencoder.": "the last weights; their average is used instead"},
    ),
    "training": ("autoencoder.", _NOT_TRAINED),
    "full-training": (
        "diffusion.pretransform.model.",
        {"diffusion.": "the diffusion model", "diffusion_ema.": "its average"},
    ),
    "full-model": (
        "pretransform.model.",
        {"model.": "the diffusion model", "conditioner.": "a conditioner of the diffusion model"},
    ),
    STABLE_AUDIO: ("", {}),
}
"""Layout → prefix of the autoencoder, and other prefixes → why they are unused. The first layout that matches is
used."""


@dataclass(frozen=True)
class Located:
    """The tensors of an autoencoder in a file.

    Args:
        layout: one of the layouts above.
        names: name in the autoencoder, without its prefix → name in the file.
        unused: tensor or other value of the file → why it is not used.
        unexpected: tensors of the file outside the autoencoder that nothing explains.
    """

    layout: str
    names: Mapping[str, str]
    unused: Mapping[str, str]
    unexpected: tuple[str, ...]


def locate(weights: WeightFile, belongs: Callable[[Collection[str]], object], *, what: str, example: str) -> Located:
    """Find an autoencoder in a file by its prefix.

    Args:
        weights: the file.
        belongs: returns whether tensors with these names, without the prefix, belong to such an autoencoder.
        what: the autoencoder, for the error.
        example: name of one of its tensors, for the error.

    Raises:
        CheckpointError: the file does not hold such an autoencoder.
    """
    container = CONTAINER if any(name.startswith(CONTAINER) for name in weights) else ""
    inner = {name.removeprefix(container): name for name in weights if name.startswith(container)}
    unused = dict.fromkeys(weights.others, "not a tensor")
    unused |= {name: "kept next to the weights by the training" for name in weights if not name.startswith(container)}
    layout = next((layout for layout, (prefix, _) in _PREFIXES.items() if belongs(_under(prefix, inner))), None)
    if layout is None:
        raise CheckpointError(
            f"'{weights.path}' does not hold {what}; expected tensors such as {example} under "
            f"{', '.join(prefix for prefix, _ in _PREFIXES.values() if prefix)} "
            f"or no prefix, found {amount(len(weights), 'other')} ({some(sorted(weights)) or 'none'})"
        )
    prefix, reasons = _PREFIXES[layout]
    unexpected = []
    for name, full in inner.items():
        if name.startswith(prefix):
            continue
        reason = next((why for start, why in reasons.items() if name.startswith(start)), None)
        if reason is None:
            unexpected.append(full)
        else:
            unused[full] = reason
    return Located(layout, _under(prefix, inner), unused, tuple(unexpected))


def check_tensors(
    weights: WeightFile,
    given: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    *,
    unexpected: Collection[str],
    source_of: Callable[[str], str],
) -> None:
    """Raise CheckpointError unless an autoencoder has exactly the parameters `expected` and everything else is
    explained.

    Args:
        weights: the file, for the error.
        given, expected: parameter → shape.
        unexpected: tensors of the file that nothing explains.
        source_of: maps a given parameter to its tensor in the file.
    """
    told = {
        "missing": sorted(expected.keys() - given.keys()),
        "unexpected": sorted([*unexpected, *(source_of(name) for name in given.keys() - expected.keys())]),
        "of another shape": [
            f"{source_of(name)} {list(given[name])} instead of {list(expected[name])}"
            for name in sorted(expected.keys() & given.keys())
            if given[name] != expected[name]
        ],
    }
    problems = [f"{len(names)} {what} ({some(names)})" for what, names in told.items() if names]
    if problems:
        raise CheckpointError(
            f"'{weights.path}' does not fit the codec's sizes: of the {len(expected)} tensors of the autoencoder, {'; '.join(problems)}"
        )


def _under(prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    return {name.removeprefix(prefix): full for name, full in names.items() if name.startswith(prefix)}
