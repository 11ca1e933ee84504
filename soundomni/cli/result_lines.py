"""The result of an evaluation as text, for `soundomni evaluate` and the demo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def result_lines(result: Mapping[str, Any]) -> list[str]:
    """Return a result as lines of text: a table with a row per score, and what was not measured."""
    from soundomni.cli.console import table
    from soundomni.evaluation import score_text

    left_out = "".join(f", {result[kind]} {kind}" for kind in ("unreadable", "unmeasurable") if result[kind])
    head = f"{result['clips']} clips{left_out}"
    rows = [[row["task"], row["score"], score_text(row["score"], row["value"]), _interval(row), row["of"]] for row in result["details"]]
    shown = table(["task", "score", "value", "95 % interval", "of"], rows).splitlines()
    rates = [_rates_line(result["rates"])] if "rates" in result else []
    compared = _reference_lines(result["reference"]) if "reference" in result else []
    return [head, *shown, *rates, *compared, *(f"not measured: {line}" for line in result["not_measured"])]


def _rates_line(rates: Mapping[str, Any]) -> str:
    """Return a line about the rates of codec and files; if they differ, it also explains scores that end in "_file"."""
    files = ", ".join(f"{count} at {rate} Hz" for rate, count in rates["files"].items())
    line = f"reconstructed: the codec is at {rates['codec']} Hz and keeps 0-{rates['codec_keeps_hz'][1]:g} Hz; files: {files}"
    if list(rates["files"]) == [str(rates["codec"])]:
        return line
    return (
        f"{line}; scores named _file compare with the files at their own rate; "
        "energy_above is the share of their energy above what the codec keeps"
    )


def _reference_lines(reference: Mapping[str, Any]) -> list[str]:
    """Return lines about the clips that generated ones were compared with, and what was found besides scores."""
    from soundomni.core.errors import amount
    from soundomni.evaluation.caption_scores import MOST_NAMED

    clips, captions = amount(reference["clips"], "training clip"), amount(reference["captions"], "caption")
    scope = f"{clips} of {captions}" if reference["captions"] else clips
    how = f"compared at {reference['sample_rate']} Hz, up to {reference['seconds']:g} s"
    lines = [f"reference: {scope}, {how}; scores that end in _of_data are those of the held-out clips themselves"]
    wrong = [f"'{row['caption']}' as '{row['heard']}' {row['clips']} of {row['of']}" for row in reference["confusions"]]
    copies = [f"'{row['clip']}' of '{row['of']}' ({row['novelty']:.2f})" for row in reference["copies"]]
    near = f"copies (novelty below {reference['copy_below']:g}), generated for"
    for title, rows in (("classified wrongly", wrong), (near, copies)):
        if rows:
            more = f"; and {len(rows) - MOST_NAMED} more" if len(rows) > MOST_NAMED else ""
            lines.append(f"{title}: {'; '.join(rows[:MOST_NAMED])}{more}")
    return [*lines, *(f"saturated: {line}" for line in reference["saturated"]), *(f"note: {line}" for line in reference["notes"])]


def _interval(row: Mapping[str, Any]) -> str:
    return "" if row["low"] is None else f"{100 * row['low']:.1f} to {100 * row['high']:.1f} %"
