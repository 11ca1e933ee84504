"""`soundomni export`: a run's weights as a model directory."""

from __future__ import annotations

import argparse

HELP = "write a run's weights as a model directory"


DTYPES = ("float32", "float16", "bfloat16")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument("--out", required=True, metavar="DIR", help="model directory to write, or an older one to replace")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="what weights are stored as (default: float32)")
    parser.add_argument("--last", action="store_true", help="take the last weights, not their average over steps")


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Writes the newest intact checkpoint of the run."""
    import torch

    from soundomni.cli.arguments import refuse_overrides
    from soundomni.cli.output import emit
    from soundomni.core.model_directory import check_target
    from soundomni.train.export import load_run

    refuse_overrides(overrides, "export")
    check_target(args.out)
    model, step = load_run(args.run, average=not args.last, trust_class_paths=args.trust_class_paths)
    path = model.save_pretrained(args.out, dtype=getattr(torch, args.dtype))
    emit(args, {"run": str(args.run), "step": step, "out": str(path)}, text=f"{path}: the weights of step {step}")
    return 0
