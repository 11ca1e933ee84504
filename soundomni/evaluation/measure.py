"""What a model is measured by: what its audio is, judged by signal analysis, and what it says, judged by what is true.

Every number comes from the audio and the words that the model made. The shipped lists hold clips that training never draws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from soundomni.core.errors import DataError
from soundomni.evaluation.checks import check_clips
from soundomni.evaluation.clips import Clips
from soundomni.evaluation.editing import (
    Continuation,
    Variant,
    continuation_scores,
    continue_clips,
    variation_scores,
    vary_clips,
)
from soundomni.evaluation.networks import Networks
from soundomni.evaluation.reconstruction import Comparison, compare
from soundomni.evaluation.settings import TASKS, Settings

if TYPE_CHECKING:
    from soundomni.core.interfaces import Dataset, Item
    from soundomni.core.pretrained.omni import SoundOmni
    from soundomni.core.waveform import Audio
    from soundomni.evaluation.scores import Scores

NAMES = {
    "generate": "generated",
    "describe": "described",
    "answer": "answered",
    "reconstruct": "reconstructed",
    "continue": "continued",
    "vary": "varied",
}
"""Task → its key in a result."""

_CODEC_FORMS = {"si_sdr": "{:.1f} dB", "mel_distance": "{:.2f} dB", "stft_distance": "{:.3f}"}
_FORMS = {
    **_CODEC_FORMS,
    **{f"{name}_file": form for name, form in _CODEC_FORMS.items()},
    "cider_d": "{:.2f}",
    "kl": "{:.3f}",
    "level_step": "{:.2f} dB",
}


@dataclass(kw_only=True)
class Outcome:
    """What a model made and said.

    Args:
        items, clips: what it was given; clips that cannot be read are left out and counted as `unreadable`.
        unmeasurable: how many can be read but are left out, because the model or a metric does not take them.
        failures: for each that is left out, its key as "file" and what is wrong with it as "error".
        generated: a clip for the first caption of each item, of the item's length.
        described: a text for each clip.
        answered: for each clip, the answer to each of its questions.
        reconstructed: how each clip came back through the codec.
        continued: each clip that could be cut in the middle of a sound, continued.
        varied: strength → a variant of each clip towards the caption of the next one.
        not_measured: task → why there is nothing.
    """

    items: list[Item]
    clips: Sequence[Audio]
    unreadable: int
    unmeasurable: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    generated: list[Audio] = field(default_factory=list)
    described: list[str] = field(default_factory=list)
    answered: list[list[str]] = field(default_factory=list)
    reconstructed: list[Comparison] = field(default_factory=list)
    continued: list[Continuation] = field(default_factory=list)
    varied: dict[float, list[Variant]] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)


def evaluate(model: SoundOmni, dataset: Dataset, *, limit: int, seed: int, batch: int) -> dict[str, Any]:
    """Measures a model on the first `limit` clips of a dataset, every task that model and clips allow. Raises as `run_model`."""
    return score(run_model(model, dataset, Settings(limit=limit, seed=seed, batch=batch)))


def run_model(model: SoundOmni, dataset: Dataset, settings: Settings, *, networks: Networks | None = None) -> Outcome:
    """Lets a model generate, describe, answer and reconstruct, as far as the settings ask for it, and model and clips allow it.

    Generating needs captions, and clips whose attributes can be heard by signal analysis (those of toy-sounds) or networks that judge
    others. Describing needs an encoder and captions, answering an encoder and questions. Clips that cannot be read, or
    that the model does not take, are named on stderr and left out.

    Raises:
        DataError: the dataset is empty, or none of its clips can be read and measured, see evaluation_checks.
    """
    from soundomni.cli.console import note
    from soundomni.cli.progress import tracked

    outcome = _read(dataset, min(settings.limit, len(dataset)))
    _refuse(outcome, model, settings.tasks, judged=bool(networks))
    wanted = [task for task in TASKS if task in settings.tasks and task not in outcome.not_measured]
    pairs = tracked(zip(outcome.items, outcome.clips, strict=True), "checking clips", total=len(outcome.items))
    _leave_out(outcome, check_clips(model, pairs, wanted, networks, count=len(outcome.items)))
    note(f"measuring on {len(outcome.clips)} clips: {', '.join(wanted)}")
    if "generate" in wanted:
        outcome.generated = _generate(model, outcome.items, settings)
    if "describe" in wanted:
        outcome.described = _describe(model, outcome.clips, settings.batch)
    if "answer" in wanted:
        outcome.answered = _answer(model, outcome, settings.batch)
    if "reconstruct" in wanted:
        clips = tracked(outcome.clips, "reconstructing", total=len(outcome.clips))
        outcome.reconstructed = [compare(clip, model.reconstruct(clip)) for clip in clips]
    if "continue" in wanted:
        outcome.continued = continue_clips(model, outcome.items, outcome.clips, settings)
    if "vary" in wanted:
        outcome.varied = vary_clips(model, outcome.items, outcome.clips, settings)
    return outcome


def score(outcome: Outcome, *, networks: Networks | None = None) -> dict[str, Any]:
    """Turns an outcome into plain data.

    Returns:
        "clips", "unreadable" and "unmeasurable", counts; "failures", a row for each clip that is left out; "rates" of codec and files in
        Hz, if clips went through the codec; for each task that was measured {score: value}; "details", a row for each score with its
        task, of how much it is and its interval (see evaluation_scores.Score); "not_measured", lines that say what is missing and why.
    """
    found = _scores(outcome, networks)
    return {
        "clips": len(outcome.clips),
        "unreadable": outcome.unreadable,
        "unmeasurable": outcome.unmeasurable,
        "failures": outcome.failures,
        **_rates(outcome),
        **{task: {name: one.value for name, one in scores.items()} for task, scores in found.items()},
        "details": [{"task": task, "score": name, **asdict(one)} for task, scores in found.items() for name, one in scores.items()],
        "not_measured": [f"{NAMES[task]}: {why}" for task, why in outcome.not_measured.items()],
    }


def _rates(outcome: Outcome) -> dict[str, Any]:
    """Returns at which rates the reconstructions were measured: that of the codec, what it keeps, and how many files have which."""
    if not outcome.reconstructed:
        return {}
    first = outcome.reconstructed[0]
    files = Counter(one.file_rate for one in outcome.reconstructed)
    counts = {str(rate): count for rate, count in sorted(files.items())}
    return {"rates": {"codec": first.codec_rate, "codec_keeps_hz": [0, first.kept_hz], "files": counts}}


def _scores(outcome: Outcome, networks: Networks | None) -> dict[str, Scores]:
    """Returns the scores of each task that was done."""
    from soundomni.evaluation import scores as scores

    items, made = outcome.items, outcome.generated
    result: dict[str, Scores] = {}
    if made:
        result["generated"] = scores.generation_scores(items, made) if scores.are_toys(items) else {}
        if networks:
            result["generated"] |= scores.network_scores([item.captions[0] for item in items], outcome.clips, made, networks)
    if outcome.described:
        result["described"] = scores.description_scores(items, outcome.described)
    if outcome.answered:
        asked = [
            (question, truth, given)
            for item, answers in zip(items, outcome.answered, strict=True)
            for (question, truth), given in zip(item.questions, answers, strict=True)
        ]
        result["answered"] = scores.answer_scores(asked)
    if outcome.reconstructed:
        result["reconstructed"] = scores.reconstruction_scores(outcome.reconstructed)
    if outcome.continued:
        result["continued"] = continuation_scores(outcome.continued)
    if outcome.varied:
        result["varied"] = variation_scores(outcome.varied)
    return result


def _read(dataset: Dataset, count: int) -> Outcome:
    """Reads every clip once, one after the other, to know which can be read."""
    from soundomni.cli.progress import tracked
    from soundomni.core.errors import UnreadableAudioError

    if count == 0:
        raise DataError("there is nothing to evaluate on: the dataset is empty")
    clips = Clips(dataset, range(count))
    places, failures = [], _listed(dataset)
    for i in tracked(range(count), "reading clips", total=count):
        try:
            clips[i]
        except UnreadableAudioError as error:
            failures.append(_left_out(dataset.item(i).key, str(error)))
        else:
            places.append(i)
    if not places:
        raise DataError(f"there is nothing to evaluate on: none of the {count} clips can be read")
    items = [dataset.item(i) for i in places]
    return Outcome(items=items, clips=clips.at(places), unreadable=len(failures), failures=failures)


def _listed(dataset: Dataset) -> list[dict[str, str]]:
    """Returns the files that the dataset found unreadable when it listed them; it says which others it leaves out."""
    from soundomni.cli.console import note
    from soundomni.data.reports import name_first

    others = [skip for skip in dataset.skipped if skip.kind != "unreadable"]
    if others:
        note(f"{len(others)} of {len(others) + len(dataset)} items of the dataset cannot be used: {name_first(others)}")
    return [_left_out(skip.key, skip.reason) for skip in dataset.skipped if skip.kind == "unreadable"]


def _left_out(key: str, reason: str) -> dict[str, str]:
    from soundomni.cli.console import note

    note(f"left out '{key}': {reason}")
    return {"file": key, "error": reason}


def _leave_out(outcome: Outcome, unfit: Mapping[int, DataError]) -> None:
    """Takes clips that cannot be measured out of an outcome, by place, and names them."""
    if not unfit:
        return
    assert isinstance(outcome.clips, Clips), "as _read made them"
    for place, error in unfit.items():
        key = outcome.items[place].key
        outcome.failures.append(_left_out(key, str(error).removeprefix(f"'{key}': ")))
    places = [place for place in range(len(outcome.items)) if place not in unfit]
    outcome.items, outcome.clips = [outcome.items[place] for place in places], outcome.clips.at(places)
    outcome.unmeasurable = len(unfit)


def _refuse(outcome: Outcome, model: SoundOmni, tasks: Sequence[str], *, judged: bool) -> None:
    """Notes why a task that is asked for cannot be measured."""
    from soundomni.evaluation.scores import are_toys

    captioned = all(item.captions for item in outcome.items)
    deaf = None if model.model.encoder is not None else "the model has no encoder"
    silent = None if captioned else "not every clip has a caption"
    unjudged = (
        None if judged or are_toys(outcome.items) else "the clips are no toy sounds, and neither --clap nor --classifier judges others"
    )
    unasked = None if any(item.questions for item in outcome.items) else "no clip has a question"
    unheard = None if are_toys(outcome.items) else "the clips are not toy sounds, and analysis hears only those"
    reasons = {
        "generate": silent or unjudged,
        "describe": deaf or silent,
        "answer": deaf or unasked,
        "continue": silent or unheard,
        "vary": silent or unheard,
    }
    outcome.not_measured = {task: why for task in tasks if (why := reasons.get(task)) is not None}


def _generate(model: SoundOmni, items: Sequence[Item], settings: Settings) -> list[Audio]:
    """Makes a clip for each item, those of one length together."""
    from soundomni.cli.progress import Progress

    lengths: dict[float, list[int]] = {}
    for i, item in enumerate(items):
        lengths.setdefault(item.num_samples / item.sample_rate, []).append(i)
    made: dict[int, Audio] = {}
    with Progress("generating clips", total=len(items)) as progress:
        for seconds, all_places in lengths.items():
            for places in _batches(all_places, settings.batch):
                clips = model.generate(
                    [items[i].captions[0] for i in places],
                    seconds=seconds,
                    num_steps=settings.steps,
                    guidance_scale=settings.guidance,
                    seeds=[settings.seed + i for i in places],
                    batch_size=settings.batch,
                    on_step=lambda index, _: progress.detail(f"step {index + 1}"),
                )
                made |= dict(zip(places, clips, strict=True))
                progress.advance(len(places))
    return [made[i] for i in range(len(items))]


def _describe(model: SoundOmni, clips: Sequence[Audio], batch: int) -> list[str]:
    """Describes all clips, a batch at a time."""
    from soundomni.cli.progress import Progress

    texts: list[str] = []
    with Progress("describing clips", total=len(clips)) as progress:
        for places in _batches(range(len(clips)), batch):
            texts += model.describe([clips[i] for i in places], batch_size=batch)
            progress.advance(len(places))
    return texts


def _answer(model: SoundOmni, outcome: Outcome, batch: int) -> list[list[str]]:
    """Asks all questions of every clip, the same question of many clips at once."""
    from soundomni.cli.progress import Progress

    places: dict[str, list[int]] = {}
    for i, item in enumerate(outcome.items):
        for question, _ in item.questions:
            places.setdefault(question, []).append(i)
    given: dict[tuple[str, int], str] = {}
    with Progress("answering questions", total=sum(map(len, places.values()))) as progress:
        for question, every in places.items():
            for those in _batches(every, batch):
                answers = model.describe([outcome.clips[i] for i in those], question=question, batch_size=batch)
                given |= {(question, i): answer for i, answer in zip(those, answers, strict=True)}
                progress.advance(len(those))
    return [[given[question, i] for question, _ in item.questions] for i, item in enumerate(outcome.items)]


def _batches(places: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for first in range(0, len(places), size):
        yield places[first : first + size]


def lines(result: Mapping[str, Any]) -> list[str]:
    """Writes a result as text: a table with a row for each score, and what was not measured."""
    from soundomni.cli.console import table

    left_out = "".join(f", {result[kind]} {kind}" for kind in ("unreadable", "unmeasurable") if result[kind])
    head = f"{result['clips']} clips{left_out}"
    rows = [[row["task"], row["score"], written(row["score"], row["value"]), _interval(row), row["of"]] for row in result["details"]]
    told = table(["task", "score", "value", "95 % interval", "of"], rows).splitlines()
    rates = [_told(result["rates"])] if "rates" in result else []
    return [head, *told, *rates, *(f"not measured: {line}" for line in result["not_measured"])]


def _told(rates: Mapping[str, Any]) -> str:
    """Writes the rates of codec and files as a line, and what scores that end in "_file" are measured against."""
    files = ", ".join(f"{count} at {rate} Hz" for rate, count in rates["files"].items())
    line = f"reconstructed: the codec is at {rates['codec']} Hz and keeps 0-{rates['codec_keeps_hz'][1]:g} Hz; files: {files}"
    if list(rates["files"]) == [str(rates["codec"])]:
        return line
    return (
        f"{line}; scores named _file compare with the files at their own rate; "
        "energy_above is the share of their energy above what the codec keeps"
    )


def written(name: str, value: float) -> str:
    """Writes the value of a score with its unit.

    >>> written("right", 0.5), written("si_sdr", 21.04)
    ('50.0 %', '21.0 dB')
    """
    if name in _FORMS:
        return _FORMS[name].format(value)
    if name.startswith("distance at"):
        return f"{value:.2f}"
    return f"{value:.3f}" if name.startswith(("clap_", "frechet_", "kernel_")) else f"{100 * value:.1f} %"


def _interval(row: Mapping[str, Any]) -> str:
    return "" if row["low"] is None else f"{100 * row['low']:.1f} to {100 * row['high']:.1f} %"
