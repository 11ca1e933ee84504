"""`soundomni demo`: trains a small model on this machine, then shows what it makes and hears, and what that is worth."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soundomni.core.hub import SoundOmni
    from soundomni.core.schema import Spec
    from soundomni.data.toy_sounds import ToySounds

HELP = "train a small model on this machine, and hear and see what it learnt"

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
UNSEEN_SEED = 1
HEARD = 6


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--out", default="demo", metavar="DIR", help="where everything goes (default: demo)")
    parser.add_argument("--config", default="nano", metavar="SPEC", help="spec to train, on toy-sounds (default: nano)")
    parser.add_argument("--measure", type=int, default=100, metavar="N", help="new clips to measure on (default: 100)")
    parser.add_argument(
        "--existing",
        choices=("resume", "overwrite"),
        default="resume",
        help="go on with a demo that is already there, or train it anew (default: resume)",
    )


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Trains, writes the model, generates, describes and measures."""
    from soundomni.cli.evaluation import evaluate, lines
    from soundomni.cli.files import make_directory
    from soundomni.cli.output import emit, note
    from soundomni.core.errors import SpecError
    from soundomni.core.spec import load_spec
    from soundomni.train.export import load_run
    from soundomni.train.run import run_training

    if args.measure < 1:
        raise SpecError(f"--measure must be at least 1, {args.measure} was given")
    out = make_directory(args.out)
    spec = load_spec([args.config], [("train.run_dir", str(out / "run")), *overrides], trust_class_paths=args.trust_class_paths)
    unseen = _unseen(spec, args.measure)
    trained = run_training(spec, trust_class_paths=args.trust_class_paths, existing=args.existing)
    if not trained.finished:
        return trained.exit_status
    model, step = load_run(out / "run", trust_class_paths=args.trust_class_paths)
    model.save_pretrained(out / "model")
    made = _generate(model, _emptied(out / "generated"), unseen.seconds)
    heard = _describe(model, unseen, _emptied(out / "heard"))
    new = sum(bool(unseen.item(i).attributes["held_out"]) for i in range(len(unseen)))
    note(f"\nmeasured on {len(unseen)} new clips, {new} of them of combinations that training never had")
    result = evaluate(model, unseen, limit=args.measure, seed=0, batch=16)
    report: dict[str, Any] = {"step": step, "model": str(out / "model"), "generated": made, "heard": heard, "measured": result}
    emit(args, report, text="\n".join(lines(result)))
    again = f'soundomni generate --model {out / "model"} --prompt "{PROMPTS[0]}" --seconds {unseen.seconds:g}'
    note(f"\nListen to {out / 'generated'}, or make more:\n  {again}")
    return 0


def _unseen(spec: Spec, count: int) -> ToySounds:
    """Returns new clips like those of training, combinations reserved for tests among them. Raises SpecError without toy sounds."""
    from soundomni.core.errors import SpecError
    from soundomni.core.registry import build
    from soundomni.core.schema import Slot
    from soundomni.data.toy_sounds import ToySounds

    for entry in spec.data.datasets.values() if spec.data else ():
        if entry is not None and entry.source.class_path == "toy-sounds":
            new = {"size": count, "seed": UNSEEN_SEED, "held_out": "include"}
            dataset = build("dataset", Slot(entry.source.class_path, {**entry.source.init_args, **new}))
            assert isinstance(dataset, ToySounds)
            return dataset
    raise SpecError("the demo needs a spec that trains on toy-sounds, whose attributes it can measure; `soundomni train` takes any")


def _emptied(folder: Path) -> Path:
    """Makes a folder of the demo's own anew."""
    from soundomni.cli.files import make_directory

    shutil.rmtree(folder, ignore_errors=True)
    return make_directory(folder)


def _generate(model: SoundOmni, folder: Path, seconds: float) -> list[dict[str, str]]:
    """Makes a clip and a picture from each prompt."""
    from soundomni.cli.generate import Request, generate_files
    from soundomni.cli.output import note

    requests = [Request(prompt=prompt, seconds=seconds, seed=i) for i, prompt in enumerate(PROMPTS)]
    note("\ngenerated")
    made = []
    for request, files in generate_files(model, requests, folder, batch=len(requests), pictures=True):
        note(f"  {files[0]}  {request.prompt}")
        made.append({"file": str(files[0]), "prompt": request.prompt})
    return made


def _describe(model: SoundOmni, unseen: ToySounds, folder: Path) -> list[dict[str, str]]:
    """Writes a few new clips and what the model says of each."""
    from soundomni.cli.output import note
    from soundomni.core.hub import Audio
    from soundomni.data.audio import write_wav

    clips = [Audio(*unseen.load(i)) for i in range(min(HEARD, len(unseen)))]
    note("\nheard")
    heard = []
    for i, (clip, text) in enumerate(zip(clips, model.describe(clips), strict=True)):
        path = folder / f"{i:03d}.wav"
        write_wav(path, clip.waveform, clip.sample_rate)
        truth = unseen.item(i).captions[0]
        note(f"  {path}  said: {text}  (it is: {truth})")
        heard.append({"file": str(path), "said": text, "truth": truth})
    return heard
