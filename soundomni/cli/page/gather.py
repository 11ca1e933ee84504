"""What the models of the demo make, say and score: each file is written first, then shown as it is on disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soundomni.cli.page.report import Heard, Listening, Made, Model, Prompt, Said, Score, Training
from soundomni.cli.page.sounds import judge, show_sound

if TYPE_CHECKING:
    from soundomni.core.pretrained.omni import SoundOmni
    from soundomni.core.spec.schema import Spec
    from soundomni.core.waveform import Audio
    from soundomni.data.toys.toy_sounds import ToySounds

CLIPS = "clips"
"""The folder whose contents are replaced each time."""
HEARD = 6
MEASURE_SEED = 0
ERROR_RATES = ("wer", "cer")
"""Scores in percent that are error rates, not shares of what is right."""


@dataclass(frozen=True)
class Contender:
    """A model to show.

    Args:
        name: heading of its columns.
        folder: suffix of the names of its folders.
        model: the model, ready for use.
        unseen: clips to measure it on.
        data: the spec of its training data; None if that is not known.
    """

    name: str
    folder: str
    model: SoundOmni
    unseen: ToySounds
    data: Spec | None

    @property
    def kind(self) -> str:
        """Description of its clips, in words."""
        counts = sorted({len(self.unseen.recipe(i).events) for i in range(len(self.unseen))})
        events = " or ".join(("no", "one", "two")[count] for count in counts)
        return f"clips of {self.unseen.seconds:g} s with {events} event{'s' if counts[-1] > 1 else ''}"


def generate(contenders: Sequence[Contender], prompts: Sequence[str], out: Path) -> tuple[Prompt, ...]:
    """Make a clip and a picture from each prompt with each model, as long as the model's own clips."""
    from soundomni.cli.console import note
    from soundomni.cli.generate import Request, generate_files
    from soundomni.data.toys.toy_language import parse_caption

    columns: list[list[Made]] = []
    for one in contenders:
        note(f"\ngenerated: {one.name}")
        requests = [Request(prompt=prompt, seconds=one.unseen.seconds, seed=i) for i, prompt in enumerate(prompts)]
        folder = _emptied(out / CLIPS / f"generated{one.folder}")
        column = []
        for made in generate_files(one.model, requests, folder, batch=len(requests), pictures=True):
            recipe = parse_caption(made.request.prompt)
            assert recipe is not None, "the prompts of the demo are captions of toy sounds"
            column.append(Made(sound=show_sound(made.files[0], out), verdicts=judge(recipe, made.files[0])))
            note(f"  {made.files[0]}  {made.request.prompt}")
        columns.append(column)
    return tuple(Prompt(text=text, made=made) for text, made in zip(prompts, zip(*columns, strict=True), strict=True))


def listen(contenders: Sequence[Contender], out: Path) -> tuple[Listening, ...]:
    """Write the first of the clips that the models are measured on, and what each model says about them."""
    from soundomni.cli.console import note

    parts = []
    for own in _kinds(contenders):
        first = own[0]
        names = tuple(one.name for one in own)
        note(f"\nheard: {first.kind}")
        clips = _hear(own, first.unseen, _emptied(out / CLIPS / f"heard{first.folder}"), out)
        for clip in clips:
            said = ", ".join(f"{name}: {words.text or 'nothing'}" for name, words in zip(names, clip.said, strict=True))
            note(f"  {clip.sound.file}  {said}  (it is: {clip.truth})")
        parts.append(Listening(kind=first.kind, models=names, clips=tuple(clips)))
    return tuple(parts)


def measure(contenders: Sequence[Contender]) -> list[dict[str, Any]]:
    """Measure each model on its own list of clips; return the results of `score_outcome`."""
    from soundomni.cli.console import note
    from soundomni.cli.result_lines import result_lines
    from soundomni.cli.stderr_observer import StderrObserver
    from soundomni.evaluation import Settings, run_model, score_outcome

    observer = StderrObserver()
    results = []
    for one in contenders:
        note(f"\nmeasured: {one.name} on {_list(one)}")
        outcome = run_model(one.model, one.unseen, Settings(seed=MEASURE_SEED), observer=observer)
        result = score_outcome(outcome, observer=observer)
        note("\n".join(f"  {line}" for line in result_lines(result)))
        results.append(result)
    return results


def show_model(one: Contender, result: Mapping[str, Any]) -> Model:
    """Return what the page shows about a model and its results from `measure`."""
    from soundomni.core.spec.load import dump_spec

    scores: dict[str, dict[str, Score]] = {}
    for row in result["details"]:
        scores.setdefault(row["task"], {})[row["score"]] = _score(row)
    return Model(
        name=one.name,
        parameters=sum(parameter.numel() for parameter in one.model.model.parameters()),
        spec=dump_spec(one.model.spec),
        measured_on=_list(one),
        scores=scores,
    )


def show_training(run_dir: Path, spec: str, *, earlier: bool) -> Training:
    """Read from its metrics how a finished run went."""
    from soundomni.train.metrics_log import FILE_NAME, read_metrics

    entries = [entry for entry in read_metrics(run_dir / FILE_NAME) if "loss" in entry]  # others only have held-out losses
    losses = sorted({name for entry in entries for name in entry if name.startswith("loss/") and name.count("/") == 1})
    return Training(
        spec=spec,
        steps=entries[-1]["step"],
        seconds=float(entries[-1]["seconds"]),
        samples=round(entries[-1]["samples"]),
        earlier=earlier,
        curves={name.removeprefix("loss/"): tuple((entry["step"], entry.get(name)) for entry in entries) for name in losses},
    )


def _score(row: Mapping[str, Any]) -> Score:
    from soundomni.evaluation import score_text

    text = score_text(row["score"], row["value"])
    is_share = text.endswith("%") and row["score"] not in ERROR_RATES
    interval = None if row["low"] is None else (row["low"], row["high"])
    return Score(text=text, count=row["of"], share=row["value"] if is_share else None, interval=interval)


def _emptied(folder: Path) -> Path:
    """Make one of the demo's own folders, empty."""
    from soundomni.cli.folders import make_directory

    shutil.rmtree(folder, ignore_errors=True)
    return make_directory(folder)


def _list(one: Contender) -> str:
    from soundomni.data.toys.in_specs import toy_entries

    if one.data is None:
        return f"{len(one.unseen)} {one.kind}; it is not known here whether it was trained on them"
    if any(entry.source.init_args.get("held_out", "exclude") != "exclude" for entry in toy_entries(one.data)):
        return f"{len(one.unseen)} new {one.kind}"
    new = sum(bool(one.unseen.item(i).attributes["held_out"]) for i in range(len(one.unseen)))
    if one.unseen.variation == 0.0:
        return (
            f"{len(one.unseen)} {one.kind}, {new} of them of combinations that training never had; except for noise, a combination "
            "sounds the same each time, as it did in training"
        )
    return f"{len(one.unseen)} new {one.kind}, {new} of them of combinations that training never had"


def _kinds(contenders: Sequence[Contender]) -> Iterator[list[Contender]]:
    """Group the models that have the same clips."""
    import numpy as np

    groups: list[list[Contender]] = []
    for one in contenders:
        for group in groups:
            first = group[0].unseen
            if all(np.array_equal(first.load(i)[0], one.unseen.load(i)[0]) for i in range(min(HEARD, len(first)))):
                group.append(one)
                break
        else:
            groups.append([one])
    yield from groups


def _hear(contenders: Sequence[Contender], unseen: ToySounds, folder: Path, out: Path) -> list[Heard]:
    """Write the first clips of a list, and ask each model about all of them."""
    from soundomni.core.waveform import Audio
    from soundomni.data.audio import write_wav

    clips = [Audio(*unseen.load(i)) for i in range(min(HEARD, len(unseen)))]
    answers = [_describe(one.model, clips, unseen) for one in contenders]
    heard = []
    for i, (clip, said) in enumerate(zip(clips, zip(*answers, strict=True), strict=True)):
        path = folder / f"{i:03d}.wav"
        write_wav(path, clip.waveform, clip.sample_rate)
        heard.append(Heard(sound=show_sound(path, out), truth=unseen.item(i).captions[0], said=said))
    return heard


def _describe(model: SoundOmni, clips: Sequence[Audio], unseen: ToySounds) -> list[Said]:
    """Return what a model says about the first clips of a list, what is wrong in that, and what it leaves out."""
    from soundomni.data.toys.toy_language import parse_caption
    from soundomni.data.toys.toy_recipe import agreement

    if not model.model.all_heard:
        return [Said(text=None)] * len(clips)
    said = []
    for i, text in enumerate(model.describe(clips)):
        heard = parse_caption(text)
        stated = {} if heard is None else agreement(heard, heard)
        missed = [name for name, right in agreement(unseen.recipe(i), heard).items() if not right]
        unsaid = tuple(name for name in missed if heard is not None and name not in stated)
        said.append(Said(text=text, wrong=tuple(name for name in missed if name not in unsaid), unsaid=unsaid))
    return said
