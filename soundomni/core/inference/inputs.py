"""Arguments of the class SoundOmni as people pass them: one prompt or many, numpy numbers, generators.

Whatever has only one meaning is accepted; every error is one line that says what was given and what to pass instead.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from soundomni.core.errors import DataError, SpecError
from soundomni.core.inference.editing import Kept
from soundomni.core.inference.given_clips import Given
from soundomni.core.inference.making import Asked
from soundomni.core.limits import DEFAULT_STRENGTH, check_count, check_seconds, check_seed, check_strength
from soundomni.core.representation import Representation
from soundomni.core.spec.schema import ClipSpec
from soundomni.core.waveform import Audio

T = TypeVar("T")

_LONGEST_SHOWN = 60
_READ_IT = "Read it first: Audio(*soundomni.data.read_audio(path))"
_MAKE_IT = "Pass Audio(waveform, sample_rate), with a float32 waveform [C, S]"


def shown(value: object) -> str:
    """Return how an error shows a value of a wrong kind: on one line, cut short, with its type."""
    text = " ".join(repr(value).split())
    text = text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
    return f"{text} ({type(value).__name__})"


def as_whole(name: str, value: Any) -> int:
    """Return a Python, numpy or torch integer as an int.

    Raise SpecError for anything else, floats and bools included.
    """
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise SpecError(f"{name} is {shown(value)}; expected a whole number")


def as_count(name: str, value: Any, *, most: int | None = None) -> int:
    """Return a whole number of at least 1, and at most `most`. Raise SpecError for anything else."""
    count = as_whole(name, value)
    check_count(name, count, most=most)
    return count


def as_seed(value: Any) -> int:
    """Return the seed of one clip or text. Raise SpecError for one that is out of its range or of a wrong kind."""
    seed = as_whole("seed", value)
    check_seed(seed)
    return seed


def as_strength(value: Any, *, varied: bool) -> float:
    """Return the strength of a variation, DEFAULT_STRENGTH for None.

    Raise SpecError for one that is out of its range, or if no clip is varied.
    """
    if value is None:
        return DEFAULT_STRENGTH
    strength = as_number("strength", value)
    check_strength(strength)
    if not varied:
        raise SpecError(f"strength is {strength:g}, but there is no clip to vary. Pass the clip as vary, or leave strength out")
    return strength


def as_number(name: str, value: Any) -> float:
    """Return a real Python, numpy or torch number as a float. Raise SpecError for anything else."""
    try:
        if not isinstance(value, (bool, np.bool_, str, bytes)) and np.ndim(value) == 0:
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise SpecError(f"{name} is {shown(value)}; expected a number")


def as_lengths(value: Any, count: int) -> list[float]:
    """Return the seconds of each of `count` clips; one number serves them all. Raise SpecError for one out of its range."""
    if np.ndim(value) == 0 or isinstance(value, (str, bytes, Mapping, Set)):
        lengths = [as_number("seconds", value)] * max(1, count)
        check_seconds(lengths[0])
        return lengths[:count]
    lengths = [as_number(f"seconds[{i}]", one) for i, one in enumerate(value)]
    for i, one in enumerate(lengths):
        check_seconds(one, name=f"seconds[{i}]")
    return matching("seconds", lengths, count)


def as_text(name: str, value: Any) -> str:
    """Return a text. Raise DataError for anything else, and for text that is not valid Unicode."""
    if not isinstance(value, str):
        raise DataError(f"{name} is {shown(value)}; expected text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{name} {value!a} is not valid Unicode. Write it as UTF-8") from None
    return str(value)


def as_optional_text(name: str, value: Any) -> str | None:
    """Return a text, or None. Raise DataError for anything else, as `as_text`."""
    return None if value is None else as_text(name, value)


def as_texts(name: str, value: Any) -> list[str]:
    """Return one text or several as a list. Raise DataError for anything else."""
    if isinstance(value, str):
        return [as_text(name, value)]
    return [as_text(f"{name}[{i}]", one) for i, one in enumerate(_listed(name, value, "a text or a list of texts"))]


def as_seeds(value: Any, count: int, *, of: str = "prompt") -> list[int]:
    """Return `count` seeds, from a list or counting up from one number.

    Raise SpecError for anything else, for another count, or if there are no such seeds.
    """
    if isinstance(value, (int, np.integer)) or (hasattr(value, "__index__") and np.ndim(value) == 0):
        first = as_whole("seeds", value)
        check_seed(first, count=count)
        return list(range(first, first + count))
    try:
        seeds = _listed("seeds", value, "a whole number or a list of them")
    except DataError as error:
        raise SpecError(str(error)) from error
    return matching("seeds", [as_whole(f"seeds[{i}]", one) for i, one in enumerate(seeds)], count, of=of)


def as_clip(name: str, value: Any) -> Audio:
    """Return a clip. Raise DataError for anything else, with what to pass instead."""
    if isinstance(value, Audio):
        return value
    if isinstance(value, (str, PathLike)):
        raise DataError(f"{name} is the path {str(value)!r}; expected a clip. {_READ_IT}")
    if isinstance(value, (list, tuple)) and any(isinstance(one, Audio) for one in value):
        raise DataError(f"{name} is a list of {len(value)} clips; expected one clip. Make one call for each clip")
    shape = f", shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    raise DataError(f"{name} is {shown(value) if not shape else type(value).__name__}{shape}; expected a clip. {_MAKE_IT}")


def as_clips(name: str, value: Any) -> list[Audio]:
    """Return one clip or several as a list. Raise DataError for anything else."""
    if isinstance(value, (Audio, str, PathLike)) or hasattr(value, "__array__"):
        return [as_clip(name, value)]
    if isinstance(value, tuple) and len(value) == 2 and hasattr(value[0], "shape") and not hasattr(value[1], "shape"):
        raise DataError(f"{name} is a pair of a waveform and {shown(value[1])}; expected clips. {_MAKE_IT}")  # as read_audio returns it
    return [as_clip(f"{name}[{i}]", one) for i, one in enumerate(_listed(name, value, "a clip or a list of clips"))]


def as_varied(value: Any, count: int) -> list[Audio] | None:
    """Return a clip to vary for each of `count` prompts; one clip serves them all. Raise DataError or SpecError for anything else."""
    if value is None:
        return None
    clips = as_clips("vary", value)
    return clips * count if isinstance(value, Audio) else matching("vary", clips, count)


def as_known(value: Any, count: int) -> list[Kept | None]:
    """Return what to keep for each of `count` prompts; one serves them all.

    Raise DataError or SpecError for anything else.
    """
    if value is None:
        return [None] * count
    if isinstance(value, (Kept, Audio)):
        return [_kept("known", value)] * count
    listed = _listed("known", value, "Kept(clip, spans), or a list of these with None for prompts that keep nothing")
    return matching("known", [None if one is None else _kept(f"known[{i}]", one) for i, one in enumerate(listed)], count)


def as_given(value: Any, count: int) -> list[dict[str, Given]]:
    """Return the clips that are given for each of `count` prompts, by modality; one clip serves all prompts.

    Raise DataError or SpecError for anything but a mapping of names to clips, lists of clips or representations.
    """
    if value is None:
        return [{} for _ in range(count)]
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise DataError(f"given is {shown(value)}; expected a mapping of modalities to clips, such as {{'semantic': clip}}")
    columns = {name: _given(f"given[{name!r}]", clips, count) for name, clips in value.items()}
    return [{name: clips[i] for name, clips in columns.items()} for i in range(count)]


def _given(name: str, value: Any, count: int) -> list[Given]:
    each: list[Given] = []
    is_listed = not isinstance(value, (Representation, Audio))
    for i, one in enumerate(_listed(name, value, "a clip or a list of clips") if is_listed else [value]):
        each += _rows(one) if isinstance(one, Representation) else [as_clip(f"{name}[{i}]" if is_listed else name, one)]
    return each * count if len(each) == 1 and not is_listed else matching(name, each, count)


def _rows(clips: Representation) -> list[Representation]:
    """Return the clips of a batch one by one."""
    frames = clips.frame_counts
    rows = [slice(i, i + 1) for i in range(len(frames))]
    return [Representation(clips.values[row], clips.lengths[row], clips.spec, frames[row]) for row in rows]


def as_trained_length(seconds: Any, clips: ClipSpec | None) -> Any:
    """Return `seconds`, or, if it is None, the length of all clips that a model was trained on. Raise SpecError if they had several."""
    if seconds is not None:
        return seconds
    if clips is None or clips.seconds is None:
        raise SpecError("seconds is missing, and the model was not trained on clips of one length. Give the length of the clips to make")
    return clips.seconds


def as_asked(prompts: Any, *, seconds: Any, seeds: Any, known: Any = None, vary: Any = None, given: Any = None) -> list[Asked]:
    """Return the clips that are asked for, one for each prompt. Raise DataError or SpecError for arguments of a wrong kind or number."""
    texts = as_texts("prompts", prompts)
    count = len(texts)
    varied: Sequence[Audio | None] = as_varied(vary, count) or [None] * count
    rows = zip(
        texts, as_lengths(seconds, count), as_seeds(seeds, count), as_known(known, count), varied, as_given(given, count), strict=True
    )
    return [
        Asked(prompt=text, seconds=length, seed=seed, kept=kept, varied=clip, given=added) for text, length, seed, kept, clip, added in rows
    ]


def check_prompts(prompts: Iterable[str], *, takes_text: bool, of: str) -> None:
    """Raise SpecError for a text that nothing would read; `of` says what takes none, such as "this model"."""
    text = next((one for one in prompts if one), None)
    if text is not None and not takes_text:
        raise SpecError(f"the prompt is {text!r}, but {of} takes no text. Leave the prompt empty")


def as_messages(value: Any) -> list[Mapping[str, Any]]:
    """Return the messages of a chat: a list of mappings, one mapping, or the text of one user turn.

    Raise DataError for anything else.
    """
    if isinstance(value, str):
        return [{"role": "user", "content": as_text("messages", value)}]
    if isinstance(value, Mapping):
        return [value]
    listed = _listed("messages", value, "a list of messages such as {'role': 'user', 'content': TEXT}")
    for i, message in enumerate(listed):
        if not isinstance(message, Mapping):
            raise DataError(f"message {i} is {shown(message)}; expected a mapping such as {{'role': 'user', 'content': TEXT}}")
    return listed


def as_overrides(value: Any) -> dict[str, str]:
    """Return overrides of a spec as text by dotted key.

    Raise SpecError for anything but a mapping of keys to plain values.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise SpecError(f"overrides is {shown(value)}; expected a mapping of dotted keys, such as {{'sampler': 'heun'}}")
    return {key: one if isinstance(one, str) else _yaml(key, one) for key, one in value.items()}


def as_callback(name: str, value: T) -> T:
    """Return a function or None. Raise SpecError for anything else."""
    if value is not None and not callable(value):
        raise SpecError(f"{name} is {shown(value)}; expected a function")
    return value


def as_directory(name: str, value: Any) -> str | Path:
    """Return a path or a name. Raise DataError for anything else."""
    if isinstance(value, (str, Path)) and str(value):
        return value
    if isinstance(value, PathLike):
        return Path(value)
    if value == "":
        raise DataError(f"{name} is empty; expected the name of a directory")
    raise DataError(f"{name} is {shown(value)}; expected a path")


def matching(name: str, values: Sequence[T], count: int, *, of: str = "prompt") -> list[T]:
    """Return the values as a list.

    Raise SpecError unless there is one for each of `count` prompts, or whatever `of` names.
    """
    if len(values) != count:
        raise SpecError(f"{name} has length {len(values)}; expected {count}, one for each {of}")
    return list(values)


def _kept(name: str, value: Any) -> Kept:
    if not isinstance(value, Kept):
        raise DataError(f"{name} is {shown(value)}; expected Kept(clip, spans). Import Kept from soundomni")
    return replace(value, clip=as_clip(f"the clip of {name}", value.clip), spans=_spans(name, value.spans))


def _spans(name: str, value: Any) -> list[tuple[float, float]]:
    """Return spans; a pair of numbers is one span."""
    listed = _listed(f"the spans of {name}", value, "a list of (from, to) in seconds")
    if len(listed) == 2 and not any(isinstance(one, Iterable) and getattr(one, "shape", None) != () for one in listed):
        listed = [listed]
    spans = []
    for span in listed:
        if not isinstance(span, (list, tuple, np.ndarray)) or len(span) != 2:
            raise SpecError(f"the spans of {name} have {shown(span)}; expected (from, to) in seconds")
        spans.append((as_number("a span's start", span[0]), as_number("a span's end", span[1])))
    return spans


def _listed(name: str, value: Any, expected: str) -> list[Any]:
    """Return the items of anything that has an order. Sets and mappings are refused: their order may be arbitrary."""
    if isinstance(value, (str, bytes, Mapping, Set)) or not isinstance(value, Iterable) or getattr(value, "shape", None) == ():
        raise DataError(f"{name} is {shown(value)}; expected {expected}")
    return list(value)


def _yaml(key: str, value: Any) -> str:
    try:
        return json.dumps(value.item() if isinstance(value, np.generic) else value)
    except (TypeError, ValueError):
        raise SpecError(f"the override {key} is {shown(value)}; expected text, numbers, lists or mappings") from None
