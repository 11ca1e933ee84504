"""Options shared by the commands that run a model, and how they load it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from soundomni.cli.folders import expanded

if TYPE_CHECKING:
    from soundomni.cli.parsing import Overrides
    from soundomni.core.pretrained.chain import Chain
    from soundomni.core.pretrained.omni import SoundOmni

TESTED_ON = "cpu"
"""The only kind of device on which this project's tests have been run."""


def shipped_model() -> str:
    """Return the help text that lists the models that come with the package."""
    from soundomni.core.files.shipped import shipped_models

    return f"shipped model ({', '.join(shipped_models())})"


def _model() -> str:
    return f"model directory, {shipped_model()}, or Hugging Face Hub repository OWNER/NAME[@REVISION]"


def add_model(parser: argparse.ArgumentParser, *, may_be_chain: bool = False) -> None:
    """Add `--model`."""
    chain = ", or a chain of models: its directory, or a spec with the section stages" if may_be_chain else ""
    parser.add_argument("--model", type=expanded, required=True, metavar="MODEL", help=_model() + chain)


def add_model_or_codec(parser: argparse.ArgumentParser) -> None:
    """Add `--model` and `--codec`, of which one is needed, and `--step`."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", type=expanded, metavar="MODEL", help=f"{_model()}; only its codec is used")
    which.add_argument(
        "--codec",
        type=expanded,
        metavar="DIR",
        help="directory of a codec that `soundomni import` wrote, or of a run that trained a codec",
    )
    parser.add_argument("--step", type=int, metavar="N", help="use the checkpoint of step N of a run instead of the newest one")


def add_adapter(parser: argparse.ArgumentParser, *, takes_interval: bool = False) -> None:
    """Add `--adapter`, and `--adapter-interval` if asked for."""
    if takes_interval:
        parser.add_argument(
            "--adapter-interval",
            type=_interval,
            metavar="LOW:HIGH",
            help="timesteps at which the adapter acts, from 0 (clean) to 1 (noise) (default: its own)",
        )
    parser.add_argument("--adapter", type=expanded, metavar="DIR", help="LoRA or DoRA adapter in peft's format, to merge into the model")


def _interval(text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    try:
        ends = float(low), float(high)
    except ValueError:
        ends = (0.0, 0.0)
    if not 0 <= ends[0] < ends[1] <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected LOW:HIGH, two timesteps from 0 to 1, such as 0:0.5")
    return ends


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device`."""
    parser.add_argument(
        "--device",
        default="cpu",
        help="device to run on: cpu, cuda, cuda:1, mps, or auto for the first available of cuda, mps and cpu (default: cpu)",
    )


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Add `--dtype`."""
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="what the model computes in: float32, or bfloat16, which takes half of the memory and is faster on GPUs; "
        "codecs and encoders always compute in float32 (default: float32)",
    )


def add_modality(parser: argparse.ArgumentParser) -> None:
    """Add `--of`."""
    parser.add_argument("--of", metavar="NAME", help="modality to use, for a model that makes several (default: its first one)")


def say_clips(model: SoundOmni | Chain) -> None:
    """Say on stderr how the clips that a model is given are prepared, if they are."""
    from soundomni.cli.console import note
    from soundomni.core.spec.clips import announced

    if model.clips is not None:
        note(announced(model.clips))


def check_modality(model: SoundOmni | Chain, name: str | None) -> None:
    """Raise SpecError if a model does not make the modality of `--of`."""
    from soundomni.core.errors import SpecError, did_you_mean, listed

    made = [one.name for one in model.abilities().made]
    if name is not None and name not in made:
        raise SpecError(f"--of is '{name}'; this model makes {listed(made) if made else 'no audio'}.{did_you_mean(name, made)}")


def check_steps(model: SoundOmni | Chain, name: str | None, steps: int | None, *, option: str = "--steps") -> None:
    """Raise SpecError if a number of steps is asked for and the modality of `--of` is made without one."""
    from soundomni.core.errors import SpecError

    if steps is None:
        return
    made = next((one for one in model.abilities().made if name in (None, one.name)), None)
    if made is not None and made.num_steps is None:
        raise SpecError(
            f"{option} is {steps}, but this model makes '{made.name}' token after token, as many as a clip has. Leave out {option}"
        )


def choose_device(args: argparse.Namespace) -> str:
    """Return the device of `--device`.

    Say on stderr which one auto picked, and if nothing has been tested on that kind of device.

    Raise SpecError if this machine does not have the device.
    """
    from soundomni.cli.console import note
    from soundomni.cli.start_up import importing
    from soundomni.core.limits import AUTO, resolve_device

    with importing():
        device = resolve_device(args.device)
    kind = device.partition(":")[0]
    picked = f"--device auto runs on {device}" if args.device == AUTO else f"running on {device}"
    if kind != TESTED_ON:
        note(
            f"{picked}: SoundOmni has never been tested on {kind}, for generating, describing, reconstructing or "
            f"evaluating. Compare the results with --device {TESTED_ON}"
        )
    elif args.device == AUTO:
        note(f"{picked}: this machine has neither cuda nor mps")
    return device


def load_model(args: argparse.Namespace, overrides: Overrides, *, device: str) -> SoundOmni:
    """Return the model of `--model` on a device, with the adapters of `--adapter` merged if the command has that
    option."""
    from soundomni.cli.progress import Progress
    from soundomni.cli.start_up import importing
    from soundomni.core.errors import SpecError

    with Progress(f"loading {args.model}"):
        with importing():
            from soundomni.core.pretrained.omni import SoundOmni  # here, because importing torch takes time as well
            from soundomni.core.pretrained.weights import computing_dtype

        dtype, adapter, interval = (getattr(args, name, None) for name in ("dtype", "adapter", "adapter_interval"))
        rounded = {} if dtype is None or adapter is not None else {"dtype": dtype}
        model = SoundOmni.from_pretrained(args.model, overrides=dict(overrides), device=device, **rounded)
        if adapter is not None:
            model.load_adapter(adapter, interval=interval)
            model.model.compute_in(computing_dtype(dtype or "float32"))  # after merging, which float32 does more exactly
        elif interval is not None:
            raise SpecError("--adapter-interval says when an adapter acts. Give the adapter with --adapter")
    return model


def load_model_or_chain(args: argparse.Namespace, overrides: Overrides, *, device: str) -> SoundOmni | Chain:
    """Return the model of `--model` as `load_model` does, or the chain of models that it names.

    Raise SpecError if an adapter is given for a chain.
    """
    from soundomni.cli.progress import Progress
    from soundomni.core.errors import SpecError
    from soundomni.core.pretrained.stage_paths import is_chain

    if not is_chain(args.model):
        return load_model(args, overrides, device=device)
    if args.adapter is not None:
        raise SpecError(f"--adapter changes one model, but '{args.model}' is a chain of several. Merge it into a stage first")
    with Progress(f"loading {args.model}"):
        from soundomni.core.pretrained.weights import computing_dtype
        from soundomni.train.stages import load_chain

        chain = load_chain(args.model, overrides=dict(overrides), device=device, trust_class_paths=args.trust_class_paths)
        for stage in chain.stages.values():
            stage.model.compute_in(computing_dtype(args.dtype))
        return chain


def load_draft(directory: str, *, device: str) -> SoundOmni:
    """Return the model of `--draft` on a device, which has to be that of the model that it guesses for."""
    from soundomni.cli.progress import Progress

    with Progress(f"loading {directory}"):
        from soundomni.core.pretrained.omni import SoundOmni

        return SoundOmni.from_pretrained(directory, device=device)
