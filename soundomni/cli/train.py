"""`soundomni train`: a run from a spec, under plain python or torchrun."""

from __future__ import annotations

import argparse

HELP = "train a model or a codec from a spec"
EXISTING = ("resume", "refuse", "overwrite")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument(
        "--config",
        action="append",
        required=True,
        metavar="SPEC",
        help="YAML file or the name of a shipped spec; later ones change earlier ones",
    )
    parser.add_argument(
        "--existing",
        choices=EXISTING,
        default="resume",
        help="what to do when train.run_dir holds a run: go on with it, stop, or remove it first (default: resume)",
    )
    parser.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="KEY",
        help="resume a run although this key of its spec, or a key below it, has changed: learning rate, paths and data, for example "
        "train.optimizer.lr or data; may be given several times",
    )
    parser.add_argument(
        "--print-config",
        "--print_config",
        action="store_true",
        help="print the spec with every default filled in, as `soundomni spec print` does, and train nothing",
    )
    parser.epilog = (
        "Every key of the spec is an option too: --train.steps=100 --sampler=heun --model.codec.frame_size=64. "
        "For the arguments of a plugin, name its key and .help: `soundomni train --model.codec.help mdct`."
    )


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Trains, or goes on with the run in train.run_dir; exit status 75 when it saved and stopped before the end."""
    if args.print_config:
        from soundomni.cli.spec import print_spec

        return print_spec(args, args.config, overrides)
    import os

    from soundomni.cli.console import emit
    from soundomni.core.pretrained.spec_with_start import StartFrom, load_spec_with_start
    from soundomni.train.run import run_training

    start: StartFrom = "kept" if args.existing == "resume" else "directory"
    spec = load_spec_with_start(args.config, overrides, trust_class_paths=args.trust_class_paths, start=start)
    result = run_training(spec, trust_class_paths=args.trust_class_paths, existing=args.existing, allow_change=args.allow_change)
    if os.environ.get("RANK", "0") == "0":
        report = {"run_dir": str(result.run_dir), "finished": result.finished, "step": result.step, "metrics": result.metrics}
        state = "finished" if result.finished else "saved and stopped; the same command goes on from there"
        emit(args, report, text=f"{result.run_dir}: step {result.step}, {state}")
    return result.exit_status
