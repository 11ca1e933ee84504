"""`soundomni demo`: train a small model on this machine, then show on one page what it makes and hears, and how good
that is."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soundomni.cli.page.gather import Contender
    from soundomni.cli.page.report import Listening, Prompt, Report
    from soundomni.core.spec.schema import Spec
    from soundomni.data.toys.toy_sounds import ToySounds

HELP = "train a small model on this machine, then hear and see what it learned"

PROMPTS = (
    "a loud sine tone at A4",
    "a quiet square tone at C4",
    "a loud sawtooth tone at E4",
    "a loud rising chirp",
    "a loud falling chirp",
    "three loud clicks",
    "loud white noise",
    "quiet low noise",
)
PAGE = "index.html"
TRAINED = "trained here"
NO_COMPARISON = "none"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--out", default="demo", metavar="DIR", help="folder for all results (default: demo)")
    parser.add_argument("--config", default="demo", metavar="SPEC", help="spec to train; it must use toy-sounds (default: demo)")
    parser.add_argument(
        "--measure",
        type=int,
        default=100,
        metavar="N",
        help="number of clips to measure on, from a seed not used in training (default: 100)",
    )
    parser.add_argument(
        "--compare",
        default="nano",
        metavar="MODEL",
        help="model to show next to the trained one: a shipped model, on clips like its own, or a model directory, on clips like "
        "those of --config; 'none' for no comparison (default: nano)",
    )
    parser.add_argument(
        "--existing",
        choices=("resume", "overwrite"),
        default="resume",
        help="resume a demo that is already there, or train it again from scratch (default: resume)",
    )


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Train, write the model, generate, describe, measure, and write the page."""
    from soundomni.cli.console import emit, note
    from soundomni.cli.folders import make_directory
    from soundomni.cli.page.gather import CLIPS, Contender, generate, listen, measure, show_model, show_training
    from soundomni.core.errors import SpecError
    from soundomni.core.pretrained.spec_with_start import load_spec_with_start
    from soundomni.data.toys.in_specs import unused_seed
    from soundomni.train.export import load_run
    from soundomni.train.run import run_training

    if args.measure < 1:
        raise SpecError(f"--measure is {args.measure}; expected at least 1")
    if any(key == "train.run_dir" for key, _ in overrides):
        raise SpecError("the demo trains in the folder 'run' within --out; use --out instead of --train.run_dir")
    out = make_directory(args.out)
    if (out / CLIPS).exists() and not (out / "run").exists():
        raise SpecError(f"'{out / CLIPS}' does not belong to a demo and would be replaced; give --out another folder")
    given = [("train.run_dir", str(out / "run")), *overrides]
    spec = load_spec_with_start([args.config], given, trust_class_paths=args.trust_class_paths)
    unseen = _unseen(spec, args.measure)
    others = _others(args, unseen)
    trained = run_training(spec, trust_class_paths=args.trust_class_paths, existing=args.existing)
    if not trained.finished:
        return trained.exit_status
    model, step = load_run(out / "run", trust_class_paths=args.trust_class_paths)
    model.save_pretrained(out / "model")
    contenders = [Contender(TRAINED, "", model, unseen, spec), *others]
    prompts = generate(contenders, PROMPTS, out)
    listening = listen(contenders, out)
    results = measure(contenders)
    report = _report(
        training=show_training(out / "run", args.config, earlier=not trained.metrics),
        models=tuple(show_model(one, result) for one, result in zip(contenders, results, strict=True)),
        prompts=prompts,
        listening=listening,
        command=_command(args, overrides),
        spec=model.spec,
        unseen_seed=unused_seed(spec),
    )
    page = _write(out / PAGE, report)
    told = {"step": step, "model": str(out / "model"), "page": str(page)}
    emit(args, told | _told(out, contenders, prompts, listening, results), text=None)
    again = f'soundomni generate --model {out / "model"} --prompt "{PROMPTS[0]}" --seconds {unseen.seconds:g}'
    note(f"\nMake more:\n  {again}\nTo hear and see everything, open {page} in a browser")
    return 0


def _unseen(spec: Spec, count: int) -> ToySounds:
    """Return clips like those of training, reserved combinations included. Raise SpecError without toy sounds."""
    from soundomni.core.errors import SpecError
    from soundomni.core.spec.registry import build
    from soundomni.core.spec.schema import Slot
    from soundomni.data.toys.in_specs import toy_entries, unused_seed
    from soundomni.data.toys.toy_sounds import ToySounds

    toys = toy_entries(spec)
    if toys:
        new = {"size": count, "seed": unused_seed(spec), "held_out": "include"}
        dataset = build("dataset", Slot(toys[0].source.class_path, {**toys[0].source.init_args, **new}))
        assert isinstance(dataset, ToySounds)
        return dataset
    raise SpecError("the demo can only measure specs that train on toy-sounds; use `soundomni train` for other data")


def _others(args: argparse.Namespace, unseen: ToySounds) -> list[Contender]:
    """Load the model to compare with, before any time is spent on training.

    Raise CheckpointError if there is no such model.
    """
    from soundomni.cli.page.gather import Contender
    from soundomni.core.files.paths import slug
    from soundomni.core.files.shipped import shipped_path
    from soundomni.core.pretrained.directory import find_model
    from soundomni.core.pretrained.omni import SoundOmni
    from soundomni.core.spec.load import load_spec

    if args.compare == NO_COMPARISON:
        return []
    directory = find_model(args.compare).resolve()
    model = SoundOmni.from_pretrained(directory)
    data = None
    if directory == shipped_path(directory.name).resolve():  # a model that is shipped was trained from the shipped spec of its name
        data = load_spec([directory.name])
        unseen = _unseen(data, args.measure)
    return [Contender(directory.name, f"-{slug(directory.name)}", model, unseen, data)]


def _report(*, spec: Spec, unseen_seed: int, **parts: Any) -> Report:
    """Add what is the same for every model."""
    import platform
    from importlib.metadata import version

    from soundomni import __version__
    from soundomni.cli.page.gather import MEASURE_SEED
    from soundomni.cli.page.report import Report
    from soundomni.cli.page.sounds import LEVELS, colors

    assert spec.train is not None and spec.data is not None, "it was trained"
    seeds = {
        "weights": f"{spec.train.seed}",
        "order of samples": f"{spec.data.seed}",
        "prompts": f"0 to {len(PROMPTS) - 1}, in their order",
        "clips to hear": f"{unseen_seed}",
        "measured prompts": f"from {MEASURE_SEED}",
    }
    programs = {"soundomni": __version__, "Python": platform.python_version(), "torch": version("torch"), "numpy": version("numpy")}
    return Report(levels=LEVELS, colors=colors(), seeds=seeds, versions=programs, **parts)


def _command(args: argparse.Namespace, overrides: Sequence[tuple[str, str]]) -> str:
    """Return the command with all options, given or default, one per line."""
    options = [["--" + name, str(getattr(args, name))] for name in ("config", "compare", "measure", "existing", "out")]
    trusted = [["--trust-class-paths"]] if args.trust_class_paths else []
    words = [["soundomni", "demo"], *options, *trusted, *([f"--{key}={value}"] for key, value in overrides)]
    return " \\\n  ".join(map(shlex.join, words))


def _write(path: Path, report: Report) -> Path:
    """Write the page to a temporary name and rename it, so that no reader sees half of it."""
    from soundomni.cli.page.render import render
    from soundomni.core.files.whole_files import write_whole

    write_whole(path, render(report))
    return path


def _told(
    out: Path, contenders: Sequence[Contender], prompts: Sequence[Prompt], listening: Sequence[Listening], results: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Return the page's numbers and words for --json: those of the trained model, and under "compared" the others by
    name."""
    models = []
    for i, (one, result) in enumerate(zip(contenders, results, strict=True)):
        made = [{"file": str(out / prompt.made[i].sound.file), "prompt": prompt.text} for prompt in prompts]
        clips = [(clip, clip.said[part.models.index(one.name)]) for part in listening if one.name in part.models for clip in part.clips]
        heard = [{"file": str(out / clip.sound.file), "said": said.text, "truth": clip.truth} for clip, said in clips]
        models.append({"generated": made, "heard": heard, "measured": result})
    return models[0] | {"compared": {one.name: told for one, told in zip(contenders[1:], models[1:], strict=True)}}
