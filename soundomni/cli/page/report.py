"""Contents of the page as plain values, so that a page can be made without a model and without audio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A clip as the page shows it.

    Args:
        file: its path, relative to the page.
        wav: the bytes of that file.
        spectrogram: PNG; time runs from left to right, frequency from the bottom up, logarithmically.
        size: (width, height) of the picture in pixels.
        frequencies: lowest and highest edge of the picture, in Hz.
        outline: lowest and highest sample in each of equally long stretches, in order of time; full scale is 1.
        seconds: length of the clip.
    """

    file: str
    wav: bytes
    spectrogram: bytes
    size: tuple[int, int]
    frequencies: tuple[float, float]
    outline: tuple[tuple[float, float], ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One attribute that a prompt states: its value there, what signal analysis heard ("" for nothing), and whether
    that is right."""

    name: str
    wanted: str
    heard: str
    right: bool


@dataclass(frozen=True, kw_only=True)
class Made:
    """A clip that a model made from a prompt."""

    sound: Sound
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt and what each model of the report made from it, in their order."""

    text: str
    made: tuple[Made, ...]


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a model said about a clip, the attributes that are wrong in it and those that it omits; no text if the model
    only generates."""

    text: str | None
    wrong: tuple[str, ...] = ()
    unsaid: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Heard:
    """A clip, what it is, and what each model that listened said about it."""

    sound: Sound
    truth: str
    said: tuple[Said, ...]


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Clips of one kind, and the models that listened to them.

    Args:
        kind: what they are, such as "clips of 0.5 s with one event".
        models: their names, in the order of what they said.
        clips: all of them.
    """

    kind: str
    models: tuple[str, ...]
    clips: tuple[Heard, ...]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number.

    Args:
        text: the number with its unit.
        count: clips, answers or attributes that it sums up.
        share: the number as a share of what is right, drawn as a bar; None if it is not such a share.
        interval: ends of its 95 % interval, if there is one.
    """

    text: str
    count: int
    share: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Model:
    """One of the models that the page compares.

    Args:
        name: heading of its columns.
        parameters: number of parameters.
        spec: YAML text of what it is assembled from.
        measured_on: the list of clips behind `scores`.
        scores: task → measure → score, with the names that evaluation gives them.
    """

    name: str
    parameters: int
    spec: str
    measured_on: str
    scores: Mapping[str, Mapping[str, Score]]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the first model was trained.

    Args:
        spec: the name of its spec.
        steps: number of finished steps.
        seconds: time spent on them.
        samples: number of samples it was trained on; repeats count each time.
        earlier: whether it had already been trained before the command that made the page.
        curves: loss → (step, value) in order of steps; None where it was not finite.
    """

    spec: str
    steps: int
    seconds: float
    samples: int
    earlier: bool
    curves: Mapping[str, tuple[tuple[int, float | None], ...]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a page shows.

    Args:
        training: training of the first model.
        models: the one trained, then any that it is compared with.
        prompts: the prompts and what was made from them.
        listening: what the models heard.
        levels: dB of full scale at the two ends of the spectrograms' colors.
        colors: PNG of these colors, from left to right.
        command: the command that made all this.
        seeds: what each one is for → its value.
        versions: program → version.
    """

    training: Training
    models: tuple[Model, ...]
    prompts: tuple[Prompt, ...]
    listening: tuple[Listening, ...]
    levels: tuple[float, float]
    colors: bytes
    command: str
    seeds: Mapping[str, str]
    versions: Mapping[str, str]
