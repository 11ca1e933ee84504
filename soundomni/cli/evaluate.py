"""`soundomni evaluate`: what a model's audio and words are worth, measured."""

from __future__ import annotations

import argparse

HELP = "measure what a model generates, describes and reconstructs"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--model", required=True, metavar="DIR", help="model directory")
    parser.add_argument(
        "--dataset",
        default="{class_path: toy-sounds, init_args: {held_out: only, seed: 1}}",
        metavar="SLOT",
        help="data set, a name or YAML with class_path and init_args (default: toy-sounds in combinations reserved for tests)",
    )
    parser.add_argument("--limit", type=int, default=100, help="clips to measure on (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of what is generated (default: 0)")
    parser.add_argument("--batch", type=int, default=16, help="clips at once (default: 16)")
    parser.add_argument("--device", default="cpu", help="where to run (default: cpu)")


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Prints every measured number."""
    from typing import cast

    from soundomni import __version__
    from soundomni.cli.evaluation import evaluate, lines
    from soundomni.cli.output import emit
    from soundomni.core.hub import SoundOmni
    from soundomni.core.interfaces import Dataset
    from soundomni.core.limits import check_count, check_device, check_seed
    from soundomni.core.registry import build
    from soundomni.core.spec import parse_slot

    check_count("--limit", args.limit)
    check_count("--batch", args.batch)
    check_seed(args.seed)
    check_device(args.device)
    slot = parse_slot("dataset", args.dataset)
    dataset = cast(Dataset, build("dataset", slot, trust_class_paths=args.trust_class_paths))
    model = SoundOmni.from_pretrained(args.model, overrides=dict(overrides), device=args.device)
    result = evaluate(model, dataset, limit=args.limit, seed=args.seed, batch=args.batch)
    made_with = {
        "model": str(args.model),
        "dataset": {"class_path": slot.class_path, "init_args": slot.init_args},
        "seed": args.seed,
        "sampler": {"class_path": model.spec.sampler.class_path, "init_args": model.spec.sampler.init_args},
        "version": __version__,
    }
    emit(args, {**result, "made_with": made_with}, text="\n".join(lines(result)))
    return 0
