"""Measure the effect of some one-line changes, and write the table into the README: `python tools/measure_swaps.py`.

Samplers and guidance are measured on clips that `nano` was never trained on, the rest with `soundomni doctor`. It takes
a few minutes.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from soundomni.cli.main import main as soundomni
from soundomni.core.spec.registry import build
from soundomni.core.spec.schema import Slot

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- changes of one line, written by tools/measure_swaps.py -->", "<!-- end of changes -->"
CLIPS = 64
GIB = 2**30

GENERATING = (
    ("`--steps 8`", "half the steps", ["--steps", "8"]),
    ("`--sampler=heun --steps 8`", "a second-order solver", ["--sampler=heun", "--steps", "8"]),
    ("`--sampler=dpmpp --steps 8`", "a multistep solver", ["--sampler=dpmpp", "--steps", "8"]),
    ("`--guidance 1`", "no guidance: one prediction per step, not two", ["--guidance", "1"]),
)
"""Changes to how `nano` generates: the line, its meaning, and the options of `soundomni evaluate`."""


def main() -> None:
    around()
    rows = [*generating(), *sizes()]
    before, after = around()
    head = ["| line | applied to | what it does | effect |", "|---|---|---|---|"]
    README.write_text("\n".join([before + BEGIN, "", *head, *rows, "", END]) + after, encoding="utf-8")


def around() -> tuple[str, str]:
    """Return the README before and after the table."""
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    if not after:
        raise SystemExit(f"README.md does not have the lines '{BEGIN}' and '{END}'. Put them where the table goes")
    return before, after


def generating() -> list[str]:
    """Return the rows of GENERATING, each compared with nano without the change."""
    plain = measured([])
    rows = []
    for line, meaning, options in GENERATING:
        found = measured(options)
        changes = f"predictions per clip {plain[0]} → {found[0]}, prompts right {plain[1]:.1%} → {found[1]:.1%}"
        rows.append(f"| {line} | `nano` | {meaning} | {changes.replace('%', ' %')} |")
    return rows


def measured(options: list[str]) -> tuple[int, float]:
    """Return the number of predictions per clip, and the share of prompts with every attribute right."""
    common = ["--model", "nano", "--list", "new-combinations", "--tasks", "generate", "--limit", str(CLIPS)]
    result = printed(["evaluate", *common, *options])
    made = result["made_with"]
    slot = Slot(made["sampler"]["class_path"], {**made["sampler"]["init_args"], "num_steps": made["steps"]})
    branches = 1 if made["guidance"]["scale"] == 1 else 2
    return build("sampler", slot).num_evaluations * branches, result["generated"]["right"]


def sizes() -> list[str]:
    """Return the rows that `soundomni doctor` measures."""
    frozen = "--model.freeze=[gen, embedding, encoder, connectors]"
    cases: tuple[tuple[str, str, str, Callable[[dict[str, Any]], str], list[str]], ...] = (
        ("`--model.router=dense`", "demo", "one expert for all tokens: parameters of the experts", experts, ["--model.router=dense"]),
        (
            "`--train.lora='{streams: [und], rank: 8}'`",
            "demo",
            "adapters on one expert, the rest frozen with `--model.freeze`: trained parameters",
            trained,
            ["--train.lora={streams: [und], rank: 8}", frozen],
        ),
        (
            "`--train.optimizer.rule=muon`",
            "soundomni-7b",
            "one moment per weight: optimizer states on each of 8 GPUs",
            gibibytes("optimizer"),
            ["--train.optimizer.rule=muon"],
        ),
        (
            "`--train.activation_checkpointing=false`",
            "soundomni-7b",
            "nothing is recomputed: activations on each of 8 GPUs",
            gibibytes("activations"),
            ["--train.activation_checkpointing=false"],
        ),
    )
    rows = []
    for line, spec, meaning, read, options in cases:
        common = ["--config", spec, "--gpu-memory", "80", *(["--gpus", "8"] if spec == "soundomni-7b" else ["--seconds", "0.5"])]
        then, now = read(printed(["doctor", *common])), read(printed(["doctor", *common, *options]))
        rows.append(f"| {line} | `{spec}` | {meaning} | {then} → {now} |")
    return rows


def printed(command: list[str]) -> dict[str, Any]:
    """Return the JSON that `soundomni` prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        status = soundomni(["--json", *command])
    if status:
        raise SystemExit(status)
    result: dict[str, Any] = json.loads(text.getvalue())
    return result


def experts(report: dict[str, Any]) -> str:
    return f"{sum(row['all'] for name, row in report['parameters'].items() if name.startswith('expert')):,}"


def trained(report: dict[str, Any]) -> str:
    return f"{sum(row['trained'] for row in report['parameters'].values()):,}"


def gibibytes(row: str) -> Callable[[dict[str, Any]], str]:
    return lambda report: f"{report['bytes_per_gpu'][row] / GIB:.1f} GiB"


if __name__ == "__main__":
    main()
