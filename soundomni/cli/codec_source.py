"""The codec that a command works with: that of a model, or one without a model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from soundomni.cli.parsing import Overrides
    from soundomni.core.interfaces import Codec


def check_codec_options(args: argparse.Namespace, overrides: Overrides) -> None:
    """Raise UsageError for options that do not apply to the source of `--model` or `--codec`."""
    from soundomni.cli.parsing import UsageError

    if args.step is not None and not (args.codec is not None and _is_run(args.codec)):
        raise UsageError(f"--step only applies to run directories; '{args.codec or args.model}' is not one. Leave it out")
    if args.codec is not None and args.of is not None:
        raise UsageError("--of only applies to --model. Leave it out")
    if args.codec is not None and overrides:
        raise UsageError(f"--{overrides[0][0]} only applies to --model. Leave it out")


def load_codec(args: argparse.Namespace, overrides: Overrides, *, device: str) -> Codec:
    """Return the codec of `--model`, or that of `--codec`, on a device.

    Raise SpecError if the directory of `--codec` is neither a codec's nor a run's, or if the run trained a model.
    """
    from soundomni.cli.model_options import check_modality, load_model
    from soundomni.cli.progress import Progress

    if args.codec is None:
        model = load_model(args, overrides, device=device)
        check_modality(model, args.of)
        return model.model.made(args.of).codec
    with Progress(f"loading {args.codec}"):
        codec = _without_model(Path(args.codec), step=args.step, trust_class_paths=args.trust_class_paths)
        return codec.to(device).requires_grad_(False).eval()


def _without_model(folder: Path, *, step: int | None, trust_class_paths: bool) -> Codec:
    """Return the codec of a directory."""
    from soundomni.core.errors import SpecError
    from soundomni.core.pretrained.directory import is_run
    from soundomni.core.spec.registry import build
    from soundomni.train.export import load_run_codec
    from soundomni.vae.checkpoints.codec_directory import LAYER_FILE, read_layer

    if (folder / LAYER_FILE).is_file():
        return cast("Codec", build("codec", read_layer(folder), trust_class_paths=trust_class_paths))
    if not is_run(folder):
        expected = f"expected a directory with {LAYER_FILE}, or the directory of a run"
        raise SpecError(f"--codec is '{folder}'; {expected}. Use --model for the codec of a model")
    chosen = _newest_step(folder) if step is None else step
    found = load_run_codec(folder, step=chosen, trust_class_paths=trust_class_paths)
    if found is None:
        raise SpecError(f"--codec is '{folder}', a run that trained a model. Export it with `soundomni export`, and give that as --model")
    return found[1]


def _is_run(folder: str) -> bool:
    from soundomni.core.pretrained.directory import is_run

    return is_run(Path(folder))


def _newest_step(run_dir: Path) -> int:
    """Return the step of the newest intact checkpoint of a run. Raise CheckpointError if there is none."""
    from soundomni.core.errors import CheckpointError
    from soundomni.core.pretrained.start import CHECKPOINTS
    from soundomni.train.checkpoint import find_latest, step_of
    from soundomni.train.run_directory.files import read_run_id

    latest = find_latest(run_dir / CHECKPOINTS, run=read_run_id(run_dir))
    if latest is None:
        raise CheckpointError(f"the run '{run_dir}' has no checkpoint yet; it saves every train.save_every steps and at the end")
    return step_of(latest)
