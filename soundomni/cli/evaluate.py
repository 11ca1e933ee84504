"""`soundomni evaluate`: measure the quality of a model's audio and text."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from soundomni.cli.folders import expanded
from soundomni.cli.model_options import (
    add_adapter,
    add_device,
    add_dtype,
    add_modality,
    add_model,
    check_modality,
    check_steps,
    choose_device,
    load_model_or_chain,
)
from soundomni.evaluation.settings import COMMON_TASKS, DATASET_LIMIT, DEFAULT_BATCH_SIZE, DEFAULT_LIST, TASKS

if TYPE_CHECKING:
    from soundomni.core.spec.schema import Slot

HELP = "measure what a model generates, describes and reconstructs"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.epilog = "The error rates wer and cer also count extra words and characters, so they can exceed 100 %."
    add_model(parser, may_be_chain=True)
    add_adapter(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--list",
        type=expanded,
        metavar="NAME",
        help=f"fixed list of clips: a shipped list, or a YAML file in the same form (default: {DEFAULT_LIST})",
    )
    what.add_argument(
        "--dataset",
        metavar="SLOT",
        help="dataset to measure on instead of a list: a name, or YAML with class_path and init_args",
    )
    parser.add_argument(
        "--reference",
        metavar="SLOT",
        help="dataset that the model was trained on, written like --dataset: generated clips are compared with it (nearest "
        "clip, classifier, novelty, bandwidth), and so are, as a ceiling, the clips of --dataset, which must be different ones",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        type=_task,
        choices=TASKS,
        metavar="TASK",
        help=f"what to measure: {', '.join(TASKS)} (default: those of the list; {', '.join(COMMON_TASKS)} for a dataset)",
    )
    parser.add_argument(
        "--limit",
        type=int,
        help=f"measure only the first LIMIT clips (default: all of a list, {DATASET_LIMIT} of a dataset)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the first generated clip; later clips use seed+1, seed+2, … (default: 0)",
    )
    parser.add_argument("--steps", type=int, help="sampling steps (default: the model's)")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the model's)")
    add_modality(parser)
    parser.add_argument(
        "--batch",
        type=int,
        default=DEFAULT_BATCH_SIZE,
        help=f"number of clips to process at once (default: {DEFAULT_BATCH_SIZE})",
    )
    add_device(parser)
    add_dtype(parser)
    _add_judges(parser)
    parser.add_argument(
        "--save",
        type=expanded,
        metavar="DIR",
        help="save the generated audio as WAV files, and the generated text in results.jsonl",
    )


def _task(text: str) -> str:
    """Return the name of a task. Raise ArgumentTypeError for several names in one word."""
    names = " ".join(text.replace(",", " ").split())
    if "," in text and names:
        raise argparse.ArgumentTypeError(f"{text!r}; expected names with spaces between them. Use --tasks {names}")
    return text


def _add_judges(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clap",
        type=expanded,
        metavar="DIR",
        help="CLAP network in transformers format, to add the CLAP score, Fréchet distance and kernel distance",
    )
    parser.add_argument(
        "--classifier",
        type=expanded,
        metavar="DIR",
        help="audio classifier in transformers format, to add KL divergence and Fréchet distance",
    )


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Print every measured number, and with --json also the settings."""
    from soundomni.cli.console import emit
    from soundomni.cli.result_lines import result_lines
    from soundomni.cli.stderr_observer import StderrObserver
    from soundomni.core.spec.load import parse_slot
    from soundomni.evaluation import evaluate, load_judges, open_data, open_reference
    from soundomni.evaluation.judges import check_judged_tasks

    _check(args)
    observer = StderrObserver()
    device = choose_device(args)
    data = open_data(_chosen_data(args), trust_class_paths=args.trust_class_paths, observer=observer)
    tasks = data.choose_tasks(args.tasks)
    if args.clap or args.classifier:
        check_judged_tasks(tasks)
    reference = None
    if args.reference is not None:
        check_judged_tasks(tasks, by_reference=True)
        reference = open_reference(parse_slot("reference", args.reference), data, trust_class_paths=args.trust_class_paths)
    judges = load_judges(clap=args.clap, classifier=args.classifier, device=device)
    model = load_model_or_chain(args, overrides, device=device)
    check_modality(model, args.of)
    check_steps(model, args.of, args.steps)
    result = evaluate(
        model,
        data,
        tasks=tasks,
        limit=args.limit,
        seed=args.seed,
        batch_size=args.batch,
        num_steps=args.steps,
        guidance_scale=args.guidance,
        of=args.of,
        judges=judges,
        reference=reference,
        save=args.save,
        loaded_from=args.model,
        adapter=args.adapter,
        observer=observer,
    )
    emit(args, result, text="\n".join(result_lines(result)))
    return 1 if result["failures"] else 0


def _check(args: argparse.Namespace) -> None:
    """Raise SpecError for a number out of its range."""
    from soundomni.core.errors import SpecError
    from soundomni.core.limits import MOST_STEPS, check_count, check_scale, check_seed

    if args.limit is not None:
        check_count("--limit", args.limit)
        if args.limit == 1 and (args.clap or args.classifier):
            raise SpecError("--limit is 1; expected at least 2 with --clap or --classifier, which compare sets of clips")
    if args.steps is not None:
        check_count("--steps", args.steps, most=MOST_STEPS)
    if args.guidance is not None:
        check_scale(args.guidance)
    check_count("--batch", args.batch)
    check_seed(args.seed)


def _chosen_data(args: argparse.Namespace) -> str | Slot:
    """Return the list of --list, or the dataset of --dataset."""
    from soundomni.core.spec.load import parse_slot

    if args.dataset is not None:
        return parse_slot("dataset", args.dataset)
    return DEFAULT_LIST if args.list is None else str(args.list)
