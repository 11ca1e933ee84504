"""`soundomni train`: train from a spec, with plain python or torchrun."""

from __future__ import annotations

import argparse

HELP = "train a model or a codec from a spec"
EXISTING = ("resume", "refuse", "overwrite")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--config",
        action="append",
        required=True,
        metavar="SPEC",
        help="YAML file or the name of a shipped spec; may be repeated, later ones override earlier ones",
    )
    parser.add_argument(
        "--existing",
        choices=EXISTING,
        default="resume",
        help="if train.run_dir already has a run: resume it, refuse to start, or overwrite it (default: resume)",
    )
    parser.add_argument(
        "--from-step",
        type=int,
        metavar="N",
        help="resume from the checkpoint of step N instead of the newest one; later checkpoints are moved to checkpoints-1",
    )
    parser.add_argument(
        "--profile",
        type=int,
        default=0,
        metavar="N",
        help="record N steps, after the first three, in trace.json in the run directory, for chrome://tracing or Perfetto",
    )
    parser.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="KEY",
        help="resume a run although this spec key, or a key below it, has changed, such as train.optimizer.lr or data; "
        "only possible for learning rates, paths and data; may be repeated",
    )
    parser.add_argument(
        "--print-config",
        "--print_config",
        action="store_true",
        help="print the spec with all defaults filled in, as `soundomni spec print` does, without training",
    )
    parser.epilog = (
        "Every spec key is also an option: --train.steps=100 --sampler=heun --model.codec.frame_size=64. "
        "For the arguments of a plugin, add .help to its key: `soundomni train --model.codec.help mdct`."
    )


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Train, or resume the run in train.run_dir; return exit status 75 if it saved and stopped before the end."""
    if args.print_config:
        from soundomni.cli.spec import print_spec

        return print_spec(args, args.config, overrides)
    import os

    from soundomni.cli.console import emit
    from soundomni.core.pretrained.spec_with_start import StartFrom, load_spec_with_start
    from soundomni.train.run import run_training

    start: StartFrom = "kept" if args.existing == "resume" else "directory"
    spec = load_spec_with_start(args.config, overrides, trust_class_paths=args.trust_class_paths, start=start)
    result = run_training(
        spec,
        trust_class_paths=args.trust_class_paths,
        existing=args.existing,
        from_step=args.from_step,
        profile_steps=args.profile,
        allow_change=args.allow_change,
    )
    if os.environ.get("RANK", "0") == "0":
        report = {"run_dir": str(result.run_dir), "finished": result.finished, "step": result.step, "metrics": result.metrics}
        state = "finished" if result.finished else "saved and stopped. Run the same command to resume"
        emit(args, report, text=f"{result.run_dir}: step {result.step}, {state}")
    return result.exit_status
