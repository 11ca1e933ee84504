"""`soundomni demo`: trains a small model on this machine, then shows what it makes and hears, and what that is worth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

HELP = "train a small model on this machine, and hear and see what it learnt"

PROMPTS = (
    "a loud sine tone at A4",
    "a quiet square tone at C4",
    "a loud rising chirp",
    "a loud falling chirp",
    "three loud clicks",
    "loud white noise",
    "a loud rising chirp, then two loud clicks",
    "quiet low noise, then a loud sawtooth tone at E3",
)
SECONDS = 1.0
UNSEEN = 6


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--out", default="demo", metavar="DIR", help="where everything goes (default: demo)")
    parser.add_argument("--config", default="nano", metavar="SPEC", help="spec to train (default: nano)")
    parser.add_argument("--measure", type=int, default=64, metavar="N", help="unseen clips to measure on (default: 64)")


def run(args: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    """Trains, writes the model, generates, describes and measures."""
    from soundomni.cli.evaluation import evaluate, lines
    from soundomni.cli.files import make_directory
    from soundomni.cli.generate import Request, generate_files
    from soundomni.cli.output import emit, note
    from soundomni.core.errors import SpecError
    from soundomni.core.spec import load_spec
    from soundomni.data.toy_sounds import ToySounds
    from soundomni.train.export import load_run
    from soundomni.train.run import run_training

    if args.measure < 1:
        raise SpecError(f"--measure must be at least 1, {args.measure} was given")
    out = make_directory(args.out)
    spec = load_spec([args.config], [("train.run_dir", str(out / "run")), *overrides], trust_class_paths=args.trust_class_paths)
    trained = run_training(spec, trust_class_paths=args.trust_class_paths)
    if not trained.finished:
        return trained.exit_status
    model, step = load_run(out / "run", trust_class_paths=args.trust_class_paths)
    model.save_pretrained(out / "model")
    requests = [Request(prompt=prompt, seconds=SECONDS, seed=i) for i, prompt in enumerate(PROMPTS)]
    folder = make_directory(out / "generated")
    note("\ngenerated")
    files = [str(path) for _, (path, *_) in _shown(generate_files(model, requests, folder, batch=8, pictures=True))]
    unseen = ToySounds(size=args.measure, seed=1, held_out="only")
    heard = _describe(model, unseen, make_directory(out / "heard"))
    note(f"\nmeasured on {args.measure} combinations that training never had")
    result = evaluate(model, unseen, limit=args.measure, seed=0, batch=16)
    report: dict[str, Any] = {"step": step, "model": str(out / "model"), "generated": files, "heard": heard, "measured": result}
    emit(args, report, text="\n".join(lines(result)))
    note(f'\nListen to {folder}, or make more: soundomni generate --model {out / "model"} --prompt "{PROMPTS[0]}"')
    return 0


def _shown(made: Any) -> Any:
    from soundomni.cli.output import note

    for request, files in made:
        note(f"  {files[0]}  {request.prompt}")
        yield request, files


def _describe(model: Any, unseen: Any, folder: Path) -> list[dict[str, str]]:
    """Writes a few unseen clips and what the model says of each."""
    from soundomni.cli.output import note
    from soundomni.core.hub import Audio
    from soundomni.data.audio import write_wav

    count = min(UNSEEN, len(unseen))
    clips = [Audio(*unseen.load(i)) for i in range(count)]
    note("\nheard")
    heard = []
    for i, (clip, text) in enumerate(zip(clips, model.describe(clips), strict=True)):
        path = folder / f"{i:03d}.wav"
        write_wav(path, clip.waveform, clip.sample_rate)
        truth = unseen.item(i).captions[0]
        note(f"  {path}  said: {text}  (it is: {truth})")
        heard.append({"file": str(path), "said": text, "truth": truth})
    return heard
