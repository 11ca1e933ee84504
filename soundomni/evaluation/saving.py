"""Saving the clips and texts that a model made in an evaluation."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soundomni.core.errors import DataError
from soundomni.core.files.paths import local_path, place
from soundomni.evaluation.observer import SILENT, Observer

if TYPE_CHECKING:
    from soundomni.evaluation.outcome import Outcome
    from soundomni.evaluation.tasks.continuation import Continuation

RESULTS_FILE = "results.jsonl"


def empty_folder(path: str | Path) -> Path:
    """Make an empty folder. Raise DataError if it is not empty, or cannot be made or written to."""
    if not str(path):
        raise DataError("the path to save to is empty; expected the name of a directory")
    folder = local_path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = any(folder.iterdir())
    except OSError as error:
        raise DataError(f"cannot write to {place(path)}: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):
        raise DataError(f"cannot write to {place(path)}: permission denied")
    if occupied:
        raise DataError(f"{place(path)} is not empty. Save to a directory that does not exist, or to an empty one")
    return folder


def save_outcome(outcome: Outcome, folder: Path, *, observer: Observer = SILENT) -> None:
    """Write each generated clip as NUMBER.wav, and results.jsonl with a line per clip: the truth, and what the model
    made and said.

    Continued and varied clips are NUMBER-continued.wav and NUMBER-varied-STRENGTH.wav. The scores are those of the
    clips as made; a file with a "gain" below 1 is quieter, because it would clip otherwise.
    """
    from soundomni.evaluation.toy_attributes import are_toys

    toys = are_toys(outcome.items)
    continued = {one.item.key: one for one in outcome.continued}  # without the clips that were not cut
    rows = []
    for i, item in enumerate(outcome.items):
        row: dict[str, Any] = {"key": item.key, "captions": item.captions, "attributes": dict(item.attributes)}
        if outcome.generated:
            row |= _save_generated(outcome, i, folder, toys=toys)
        if outcome.described:
            row["described"] = outcome.described[i]
        if outcome.answered:
            pairs = zip(item.questions, outcome.answered[i], strict=True)
            row["answered"] = [{"question": question, "right": truth, "given": given} for (question, truth), given in pairs]
        if item.key in continued:
            row |= _save_continued(continued[item.key], i, folder)
        if outcome.varied:
            row |= _save_varied(outcome, i, folder)
        rows.append(row)
    quieter = sum(row.get("gain", 1.0) < 1.0 for row in rows)
    if quieter:
        observer.note(f"{quieter} of {len(rows)} generated clips exceeded full scale and were saved quieter; {RESULTS_FILE} has the gains")
    lines = (json.dumps(row, ensure_ascii=False, default=str) for row in rows)
    (folder / RESULTS_FILE).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _save_generated(outcome: Outcome, i: int, folder: Path, *, toys: bool) -> dict[str, Any]:
    from soundomni.data.audio import write_wav
    from soundomni.evaluation.toy_attributes import heard_recipe

    clip, name = outcome.generated[i], f"{i:04d}.wav"
    row: dict[str, Any] = {"prompt": outcome.items[i].captions[0], "generated": name}
    row["gain"] = write_wav(folder / name, clip.waveform, clip.sample_rate)
    if toys:
        row["heard"] = heard_recipe(clip).to_json()["events"]
    return row


def _save_continued(continuation: Continuation, i: int, folder: Path) -> dict[str, Any]:
    from soundomni.data.audio import write_wav

    name = f"{i:04d}-continued.wav"
    write_wav(folder / name, continuation.made.waveform, continuation.made.sample_rate)
    return {"continued": name, "kept_seconds": continuation.cut.join}


def _save_varied(outcome: Outcome, i: int, folder: Path) -> dict[str, Any]:
    from soundomni.data.audio import write_wav

    names: dict[str, str] = {}
    for strength, variants in outcome.varied.items():
        names[f"{strength:g}"] = name = f"{i:04d}-varied-{strength:g}.wav"
        write_wav(folder / name, variants[i].made.waveform, variants[i].made.sample_rate)
    towards = next(iter(outcome.varied.values()))[i].prompted.captions[0]
    return {"varied": names, "varied_towards": towards}
