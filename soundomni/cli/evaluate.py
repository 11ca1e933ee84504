"""`soundomni evaluate`: what a model's audio and words are worth, measured."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from soundomni.cli.folders import expanded
from soundomni.cli.model_options import add_adapter, add_device, add_model, choose_device, load_model
from soundomni.evaluation.settings import COMMON_TASKS, TASKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from soundomni.core.interfaces import Dataset
    from soundomni.core.spec.schema import Slot

HELP = "measure what a model generates, describes and reconstructs"

DEFAULT_LIST = "new-combinations"
DATASET_LIMIT = 100


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.epilog = "The error rates wer and cer count extra words and characters as errors too, so they may exceed 100 %."
    add_model(parser)
    add_adapter(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--list",
        type=expanded,
        metavar="NAME",
        help=f"fixed list of clips: a shipped one, or a YAML file like those (default: {DEFAULT_LIST})",
    )
    what.add_argument("--dataset", metavar="SLOT", help="dataset instead of a list: a name, or YAML with class_path and init_args")
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=TASKS,
        metavar="TASK",
        help=f"what to measure: {', '.join(TASKS)} (default: what the list names; {', '.join(COMMON_TASKS)} of a dataset)",
    )
    parser.add_argument(
        "--limit", type=int, help=f"measure on the first so many clips (default: all of a list, {DATASET_LIMIT} of a dataset)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first clip that is generated; each next one counts up (default: 0)")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the model's)")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the model's)")
    parser.add_argument("--batch", type=int, default=16, help="clips at once (default: 16)")
    add_device(parser)
    parser.add_argument(
        "--clap",
        type=expanded,
        metavar="DIR",
        help="CLAP network in transformers format: adds the CLAP score, Fréchet distance and kernel distance",
    )
    parser.add_argument(
        "--classifier",
        type=expanded,
        metavar="DIR",
        help="audio classifier in transformers format: adds KL divergence and Fréchet distance",
    )
    parser.add_argument(
        "--save", type=expanded, metavar="DIR", help="save the generated audio as WAV files, and the generated text in results.jsonl"
    )


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Prints every measured number, and with --json what it was made with."""
    from soundomni.cli.console import emit
    from soundomni.cli.folders import empty_directory
    from soundomni.core.errors import SpecError
    from soundomni.evaluation.lists import audio_sha256, items_sha256
    from soundomni.evaluation.measure import lines, run_model, score
    from soundomni.evaluation.networks import load_networks
    from soundomni.evaluation.record import made_with, save
    from soundomni.evaluation.settings import Settings

    _check(args)
    device = choose_device(args)
    dataset, slot, tasks, data, limit = _data(args)
    judges = {"clap": args.clap, "classifier": args.classifier}
    if any(judges.values()) and "generate" not in tasks:
        raise SpecError(f"measuring {', '.join(tasks)} generates nothing that --clap or --classifier could judge: leave them out")
    networks = load_networks(**judges, device=device)
    model = load_model(args, overrides, device=device)
    folder = None if args.save is None else empty_directory(args.save, option="--save")
    settings = Settings(limit=limit, seed=args.seed, batch=args.batch, steps=args.steps, guidance=args.guidance, tasks=tasks)
    outcome = run_model(model, dataset, settings, networks=networks)
    if folder is not None:
        save(outcome, folder)
    result = score(outcome, networks=networks)
    data |= {
        "items_sha256": items_sha256(outcome.items),
        "audio_sha256": audio_sha256((clip.waveform, clip.sample_rate) for clip in outcome.clips),
    }
    record = made_with(model, settings, name=args.model, adapter=args.adapter, judges=judges, device=device, data=data, dataset=slot)
    emit(args, {**result, "made_with": record}, text="\n".join(lines(result)))
    return 1 if outcome.failures else 0


def _check(args: argparse.Namespace) -> None:
    """Raises SpecError for a number out of its range."""
    from soundomni.core.errors import SpecError
    from soundomni.core.limits import MOST_STEPS, check_count, check_scale, check_seed

    if args.limit is not None:
        check_count("--limit", args.limit)
        if args.limit == 1 and (args.clap or args.classifier):
            raise SpecError("--limit 1 leaves no set of clips to compare: --clap and --classifier need at least 2")
    if args.steps is not None:
        check_count("--steps", args.steps, most=MOST_STEPS)
    if args.guidance is not None:
        check_scale(args.guidance)
    check_count("--batch", args.batch)
    check_seed(args.seed)


def _data(args: argparse.Namespace) -> tuple[Dataset, Slot, Sequence[str], dict[str, Any], int]:
    """Returns the dataset, its slot, the tasks, what identifies the data, and how many clips to take."""
    from dataclasses import asdict
    from typing import cast

    from soundomni.core.errors import SpecError
    from soundomni.core.interfaces import Dataset
    from soundomni.core.spec.load import parse_slot
    from soundomni.core.spec.registry import build
    from soundomni.evaluation.lists import open_list

    if args.dataset is None:
        fixed = open_list(DEFAULT_LIST if args.list is None else args.list, trust_class_paths=args.trust_class_paths)
        data = {"list": fixed.name, "sha256": fixed.sha256, "dataset": asdict(fixed.slot)}
        missing = [task for task in args.tasks or () if task not in fixed.tasks]
        if missing:
            raise SpecError(f"the list '{fixed.name}' does not measure {', '.join(missing)}, only {', '.join(fixed.tasks)}")
        return fixed.dataset, fixed.slot, args.tasks or fixed.tasks, data, min(args.limit or len(fixed.dataset), len(fixed.dataset))
    given = parse_slot("dataset", args.dataset)
    dataset = cast(Dataset, build("dataset", given, trust_class_paths=args.trust_class_paths))
    data = {"dataset": asdict(given)}
    return dataset, given, args.tasks or COMMON_TASKS, data, min(args.limit or DATASET_LIMIT, len(dataset))
