"""Put a finished run of the spec nano-codes into the package, measure it, and write its model card and the README's line about it.

    soundomni train --config nano-codes
    python tools/pack_nano_codes.py runs/nano-codes

It needs no network; measuring takes about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from soundomni import SoundOmni
from soundomni.cli.stderr_observer import StderrObserver
from soundomni.core.files.names import CARD_FILE
from soundomni.core.files.shipped import SHIPPED
from soundomni.core.pretrained.weights import WEIGHTS_FILE
from soundomni.core.spec.load import changed_keys, load_spec, resolve, spec_to_dict
from soundomni.evaluation import evaluate, score_text
from soundomni.train.export import load_run

NAME = "nano-codes"
MAY_CHANGE = (
    "model.tokenizer.vocab_size",
    "train.run_dir",
    "train.threads",
    *(f"model.modalities.{name}.{key}" for name in ("codes", "tokens") for key in ("sampler", "guidance")),
)
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- scores of nano-codes, written by tools/pack_nano_codes.py -->", "<!-- end of scores of nano-codes -->"
SCORES = SHIPPED / f"{NAME}-scores.json"
MEASURED: dict[str, tuple[str, str, str, dict[str, str]]] = {
    "masked": ("new-combinations", "generate", "codes", {}),
    "masked, one pass per level": (
        *("new-combinations", "generate", "codes"),
        {"model.modalities.codes.sampler.init_args.iterations": "[1, 1]"},
    ),
    "token by token": ("new-combinations", "generate", "tokens", {}),
    "continued": ("editing", "continue", "tokens", {}),
}
"""Column → the fixed list, the task, the modality, and changes of the spec."""
SECTIONS = {"generate": "generated", "continue": "continued"}
ROWS = (
    ("every attribute of a clip right", "right"),
    ("attributes right", "attributes"),
    ("pitch right, or kept", "pitch"),
    ("direction of chirps right, or kept", "direction"),
    ("waveform right", "waveform"),
    ("loudness right", "loudness"),
    ("number of clicks right", "clicks"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory of the spec nano-codes")
    run = parser.parse_args().run
    then, now = (spec_to_dict(resolve(load_spec([layer], base={}))) for layer in (run / "spec.yaml", NAME))
    differences = changed_keys(then, now, may_change=MAY_CHANGE)
    if differences:
        raise SystemExit(f"'{run}' is not a run of {NAME}: {'; '.join(differences)}")
    model, step = load_run(run)
    assert model.spec.train is not None, "it was trained"
    if step != model.spec.train.steps:
        raise SystemExit(f"'{run}' is at step {step} of {model.spec.train.steps}: let it finish")
    if not all(mark in README.read_text(encoding="utf-8") for mark in (BEGIN, END)):
        raise SystemExit(f"README.md has no '{BEGIN}' and '{END}' for the scores")
    with tempfile.TemporaryDirectory() as folder:  # the settings of sampling may have changed since the run began
        saved = model.save_pretrained(Path(folder) / NAME)
        SoundOmni.from_pretrained(saved, overrides=sampling(now)).save_pretrained(SHIPPED / NAME, dtype=torch.float16)
    scores = {heading: measure(*given) for heading, given in MEASURED.items()}
    SCORES.write_text(json.dumps(scores, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (SHIPPED / NAME / CARD_FILE).write_text(card(run, scores), encoding="utf-8")
    before, _, rest = README.read_text(encoding="utf-8").partition(f"{BEGIN}\n")
    README.write_text(f"{before}{BEGIN}\n\n{summary(scores)}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def sampling(spec: dict[str, Any]) -> dict[str, str]:
    """Return the samplers and the guidance of a spec, as changes of another spec."""
    made = spec["model"]["modalities"]
    return {f"model.modalities.{name}.{key}": json.dumps(made[name][key]) for name in made for key in ("sampler", "guidance")}


def measure(name: str, task: str, of: str, overrides: dict[str, str]) -> dict[str, Any]:
    """Return what the packed model scores on a fixed list."""
    model = SoundOmni.from_pretrained(NAME, overrides=overrides)
    result = evaluate(model, name, tasks=[task], of=of, loaded_from=NAME, observer=StderrObserver())
    if result["failures"]:
        raise SystemExit(f"some clips of {name} could not be measured: {result['failures']}")
    return result


def found_in(heading: str, scores: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the scores of one column by name."""
    scored: dict[str, Any] = scores[heading][SECTIONS[MEASURED[heading][1]]]
    return scored


def summary(scores: dict[str, dict[str, Any]]) -> str:
    """Return the README's lines about what the model scores."""
    made, kept = found_in("masked", scores), found_in("continued", scores)
    return (
        f"A second model, `nano-codes`, makes such clips as discrete codes, and gets {score_text('attributes', made['attributes'])} of the "
        "attributes of new\ncombinations right. Token by token, it continues "
        f"{score_text('pitch', kept['pitch'])} of the sounds at the same pitch\n([model card](soundomni/models/nano-codes/README.md))."
    )


def table(scores: dict[str, dict[str, Any]]) -> str:
    """Return the table of the scores, a column for each measurement."""
    lines = [f"| | {' | '.join(scores)} |", f"|---|{'---|' * len(scores)}"]
    for label, key in ROWS:
        found = [found_in(heading, scores) for heading in scores]
        lines.append(f"| {label} | {' | '.join(score_text(key, one[key]) if key in one else '' for one in found)} |")
    return "\n".join(lines)


def card(run: Path, scores: dict[str, dict[str, Any]]) -> str:
    """Return the model card."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    parameters = json.loads((SHIPPED / NAME / "config.json").read_text(encoding="utf-8"))["parameters"]
    made = scores["masked"]["made_with"]
    return CARD.format(
        parameters=f"{parameters:,}",
        size=f"{(SHIPPED / NAME / WEIGHTS_FILE).stat().st_size / 1e6:.1f}",
        steps=f"{metrics[-1]['step']:,}",
        minutes=f"{metrics[-1]['seconds'] / 60:.0f}",
        samples=f"{metrics[-1]['samples']:,.0f}",
        clips=scores["masked"]["clips"],
        continued=scores["continued"]["clips"],
        table=table(scores),
        seed=made["seed"],
        resampler=f"{made['resampler']['name']} {made['resampler']['version']}, quality {made['resampler']['quality']}",
        versions=", ".join(f"{name} {number}" for name, number in made["versions"].items()),
    )


CARD = """---
library_name: soundomni
pipeline_tag: text-to-audio
license: apache-2.0
---

# soundomni-nano-codes

A small model of discrete codes that comes with the library: {parameters} parameters, {size} MB, including its codec. It makes one
second of one or two synthetic sounds, with all codes in a few passes, and continues clips token by token. Its only purpose is to show how
models of codes work, on any machine and without a download.

```bash
soundomni generate --model nano-codes --prompt "a rising sine tone, then two clicks" --out coded
soundomni generate --model nano-codes --of tokens --prompt "a rising sine tone, then two clicks" \\
    --keep coded/000-a-rising-sine-tone-then-two-clicks.wav --span 0:0.3 --out continued
```

## What it was trained on

The synthetic dataset `toy-sounds`: {steps} steps of the spec `nano-codes` ({samples} samples, {minutes} minutes on one core).

- Each frame of 16 ms has six codes, from codebooks of 128 entries, by the codec `harmonic-codes`.
- The modality `codes` is made by masked prediction, as in SoundStorm. `tokens` are the same codes, made frame by frame, as in
  AudioLM. Both share the transformer.
- It knows tones (sine, square, sawtooth, triangle) at C4, D4, E4, F4, G4, A4 and B4, rising and falling chirps, one to four clicks,
  and white, low and high noise; each quiet or loud; one sound or two in a row, in clips of one second at 8 kHz, mono.
- It only understands prompts in the words of `soundomni.data.toys.toy_language`. It does not describe clips; `nano` does.

## What it scores

The fixed list `new-combinations` ({clips} clips) combines waveforms, notes, loudness and orders of two sounds that never occurred
together in training. `editing` has {continued} clips to continue from the middle of a tone or a chirp. Signal analysis judges the audio.

{table}

Made with: seed {seed}, and the settings of the model; resampler {resampler}; {versions}.
"""


if __name__ == "__main__":
    main()
