"""Put a finished run of tools/nano_last.yaml into the package, measure it, and write its model card and the README's line about it.

    python tools/pack_nano.py runs/nano-last

The commands at the top of that file make the run.

It needs no network; measuring takes about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from soundomni import SoundOmni
from soundomni.cli.stderr_observer import StderrObserver
from soundomni.core.files.names import CARD_FILE
from soundomni.core.files.shipped import SHIPPED
from soundomni.core.pretrained.weights import WEIGHTS_FILE
from soundomni.core.spec.load import changed_keys, load_spec, resolve, spec_to_dict
from soundomni.core.spec.schema import TrainSpec
from soundomni.evaluation import evaluate, score_text
from soundomni.train.export import load_run

NAME = "nano"
EDITING, LAST = (Path(__file__).with_name(f"nano_{part}.yaml") for part in ("editing", "last"))
MAY_CHANGE = ("model.start", "model.tokenizer.vocab_size", "train.run_dir", "train.threads", "sampler", "guidance")
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- scores of nano, written by tools/pack_nano.py -->", "<!-- end of scores -->"
SCORES = SHIPPED / f"{NAME}-scores.json"
MEASURED: dict[str, tuple[str, int | None]] = {
    "new-combinations": ("new-combinations", None),
    "new-combinations, 8 steps": ("new-combinations", 8),
    "new-combinations, 50 steps": ("new-combinations", 50),
    "between-notes": ("between-notes", None),
    "editing": ("editing", None),
}
"""Heading → the fixed list, and sampling steps or None for the model's own number."""
ROWS = (
    ("prompts generated with every attribute right", "generated", "right"),
    ("attributes generated right", "generated", "attributes"),
    ("clips described with every attribute right", "described", "right"),
    ("attributes described right", "described", "attributes"),
    ("questions answered right", "answered", "right"),
    ("chirps continued in their direction", "continued", "direction"),
    ("sounds continued at their pitch", "continued", "pitch"),
    ("variants at strength 0.8 with every attribute of the prompt", "varied", "right at 0.8"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory of tools/nano_last.yaml")
    run = parser.parse_args().run
    then, now = (spec_to_dict(resolve(load_spec(layers, base={}))) for layers in ([run / "spec.yaml"], [NAME, LAST]))
    differences = changed_keys(then, now, may_change=MAY_CHANGE)
    if differences:
        raise SystemExit(f"'{run}' is not a run of {LAST.name}: {'; '.join(differences)}")
    model, step = load_run(run)
    assert model.spec.train is not None, "it was trained"
    if step != model.spec.train.steps:
        raise SystemExit(f"'{run}' is at step {step} of {model.spec.train.steps}: let it finish")
    if not all(mark in README.read_text(encoding="utf-8") for mark in (BEGIN, END)):
        raise SystemExit(f"README.md has no '{BEGIN}' and '{END}' for the scores")
    model.save_pretrained(SHIPPED / NAME, dtype=torch.float16)
    packed = SoundOmni.from_pretrained(NAME)
    scores = {heading: measure(packed, *given) for heading, given in MEASURED.items()}
    SCORES.write_text(json.dumps(scores, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (SHIPPED / NAME / CARD_FILE).write_text(card(run, model.spec.train, scores), encoding="utf-8")
    before, _, rest = README.read_text(encoding="utf-8").partition(f"{BEGIN}\n")
    README.write_text(f"{before}{BEGIN}\n\n{summary(scores)}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def measure(model: SoundOmni, name: str, num_steps: int | None) -> dict[str, Any]:
    """Return what the packed model scores on a fixed list."""
    result = evaluate(model, name, num_steps=num_steps, loaded_from=NAME, observer=StderrObserver())
    if result["failures"]:
        raise SystemExit(f"some clips of {name} could not be measured: {result['failures']}")
    return result


def steps_of(part: str | Path) -> int:
    """Return the steps of one part of the training."""
    train = resolve(load_spec([NAME, part], base={})).train
    assert train is not None, "it trains"
    return train.steps


def summary(scores: dict[str, dict[str, Any]]) -> str:
    """Return the README's lines about what the model scores."""
    first = scores["new-combinations"]
    made, described, answered = (score_text("right", first[task]["right"]) for task in ("generated", "described", "answered"))
    return (
        "On combinations of sounds that it was never trained on, `nano` gets every attribute of "
        f"{made} of the\nprompts right, describes {described} of the clips without an error, and answers {answered} of the questions\n"
        "correctly ([model card](soundomni/models/nano/README.md))."
    )


def table(scores: dict[str, dict[str, Any]]) -> str:
    """Return the table of the most important scores, a column for each measurement."""
    lines = [f"| | {' | '.join(scores)} |", f"|---|{'---|' * len(scores)}"]
    for label, task, key in ROWS:
        cells = [score_text(key, result[task][key]) if task in result else "" for result in scores.values()]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def card(run: Path, train: TrainSpec, scores: dict[str, dict[str, Any]]) -> str:
    """Return the model card."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    parameters = json.loads((SHIPPED / NAME / "config.json").read_text(encoding="utf-8"))["parameters"]
    size = (SHIPPED / NAME / WEIGHTS_FILE).stat().st_size / 1e6
    first = scores["new-combinations"]
    made = first["made_with"]
    details = [
        f"| {task} | {name} | {score_text(name, value)} |"
        for result in (first, scores["editing"])
        for task in ("generated", "described", "answered", "reconstructed", "continued", "varied")
        for name, value in result.get(task, {}).items()
    ]
    return CARD.format(
        parameters=f"{parameters:,}",
        size=f"{size:.1f}",
        first=f"{steps_of(NAME):,}",
        second=f"{steps_of(EDITING):,}",
        step=f"{train.steps:,}",
        minutes=f"{metrics[-1]['seconds'] / 60:.0f}",
        samples=f"{metrics[-1]['samples']:,.0f}",
        clips=first["clips"],
        table=table(scores),
        details="\n".join(details),
        seed=made["seed"],
        steps=made["steps"],
        sampler=made["sampler"]["class_path"],
        guidance=made["guidance"]["scale"],
        resampler=f"{made['resampler']['name']} {made['resampler']['version']}, quality {made['resampler']['quality']}",
        versions=", ".join(f"{name} {number}" for name, number in made["versions"].items()),
    )


CARD = """---
library_name: soundomni
pipeline_tag: text-to-audio
license: apache-2.0
---

# soundomni-nano

A small model that comes with the library: {parameters} parameters, {size} MB. It generates and describes one second of one or two
synthetic sounds. It shows how the library works, on any machine and without a download; it has no other purpose.

```bash
soundomni generate --model nano --prompt "a rising sine tone, then two clicks"
soundomni describe --model nano generated/000-a-rising-sine-tone-then-two-clicks.wav
soundomni describe --model nano generated/000-a-rising-sine-tone-then-two-clicks.wav --question "how many events are there?"
```

## What it was trained on

The synthetic dataset `toy-sounds`, in three parts: {first} steps of the spec `nano`; {second} steps of `tools/nano_editing.yaml`, which
has more clips to continue, to fill and to vary; and {step} steps of `tools/nano_last.yaml`, which has more clips to generate and to hear
({samples} samples, {minutes} minutes on one core). The commands at the top of that file train it again, with the same data in the same
order, and the last one packs and measures it.

- It knows tones (sine, square, sawtooth, triangle) at C4, D4, E4, F4, G4, A4 and B4, rising and falling chirps, one to four clicks,
  and white, low and high noise; each quiet or loud; one sound or two in a row, in clips of one second at 8 kHz, mono.
- It learned to generate each sound from one rendition (`variation: 0`): another seed changes the noise, but hardly the tones.
  It learned to describe, continue and fill sounds with all variations of onset, phase and course.
- When it continues a clip in which clicks are still to come, it often makes the wrong number of them.
- It only understands prompts and questions in the words of `soundomni.data.toys.toy_language`.

## What it scores

These fixed lists hold clips that training never drew. `new-combinations` ({clips} clips) combines waveforms, notes, loudness and orders
of two sounds that never occurred together. `between-notes` has tones that are 15 to 35 cents off a note; the nearest note is the right
answer. `editing` has 100 clips to continue from the middle of a tone or a chirp, and to vary. Signal analysis judges the generated audio;
descriptions and answers are compared with the truth.

{table}

On `new-combinations` and `editing`, one by one:

| | score | value |
|---|---|---|
{details}

Made with: seed {seed}, sampler {sampler}, {steps} steps unless the column says otherwise, guidance {guidance};
resampler {resampler}; {versions}.
"""


if __name__ == "__main__":
    main()
