"""Tasks: each is a list of segments to write for a clip."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from soundomni.core.errors import SpecError, did_you_mean
from soundomni.core.interfaces import Item
from soundomni.core.spec.schema import SegmentTemplate

PLACEHOLDERS = ("caption", "question", "answer", "seconds", "seconds_start", "seconds_total")
PROMPTED = ("generate", "continue", "fill")
"""Built-in tasks that begin with the model's prompt, see ModelSpec; below, it is the usual one."""

BUILT_IN: Mapping[str, tuple[SegmentTemplate, ...]] = {
    "generate": (SegmentTemplate(text="{caption}"), SegmentTemplate(audio="target")),
    "describe": (SegmentTemplate(audio="features"), SegmentTemplate(text="{caption}", loss=True)),
    "answer": (
        SegmentTemplate(audio="features"),
        SegmentTemplate(text="{question}"),
        SegmentTemplate(text="{answer}", loss=True),
    ),
    "continue": (SegmentTemplate(text="{caption}"), SegmentTemplate(audio="target", known=(0.1, 0.7))),
    "fill": (SegmentTemplate(text="{caption}"), SegmentTemplate(audio="target", gap=(0.1, 0.6))),
}


@dataclass(frozen=True)
class Task:
    """A validated task: its name and the templates of its segments, in order."""

    name: str
    templates: tuple[SegmentTemplate, ...]

    @cached_property
    def placeholders(self) -> frozenset[str]:
        """Fields of an item that its texts need."""
        return frozenset(name for template in self.templates for name in _placeholders(template.text or ""))

    def uses(self, audio: str) -> bool:
        """Return whether it has a segment of this kind of audio: "features", "target" or "context"."""
        return any(template.audio == audio for template in self.templates)

    def lacks(self, item: Item) -> str | None:
        """Return what `item` would need for this task, "caption" or "question", or None if it has all of it."""
        if "caption" in self.placeholders and not item.captions:
            return "caption"
        if self.placeholders & {"question", "answer"} and not item.questions:
            return "question"
        return None


def length_texts(seconds: float, *, start: float = 0.0, total: float | None = None) -> dict[str, str]:
    """Return the values of `{seconds}`, `{seconds_start}` and `{seconds_total}` for a clip.

    The last two are in whole seconds and say where in a recording a part of it begins, rounded down, and how long the
    recording is, rounded up, as Stable Audio has them. The recording is the item of a dataset: a part of a file that a
    manifest names counts as a recording of its own.

    Args:
        seconds: length of the clip.
        start: seconds of the recording before the clip.
        total: length of the recording; None for the length of the clip.
    """
    whole = seconds if total is None else total
    return {"seconds": f"{seconds:g}", "seconds_start": f"{math.floor(start)}", "seconds_total": f"{math.ceil(whole)}"}


def build_tasks(custom: Mapping[str, Sequence[SegmentTemplate]] | None = None) -> dict[str, Task]:
    """Return the built-in tasks and the `custom` ones by name. Raise SpecError if a custom one is wrong."""
    custom = custom or {}
    taken = sorted(set(custom) & set(BUILT_IN))
    if taken:
        raise SpecError(f"data.tasks.{taken[0]}: '{taken[0]}' is a built-in task. Choose another name")
    tasks = {name: Task(name, templates) for name, templates in BUILT_IN.items()}
    for name, templates in custom.items():
        for i, template in enumerate(templates):
            problem = _problem(template)
            if problem:
                raise SpecError(f"data.tasks.{name}: segment {i + 1} {problem}")
        task = Task(name, tuple(templates))
        if not task.uses("target") and not any(template.loss for template in templates):
            raise SpecError(f"data.tasks.{name}: nothing to learn; expected an audio 'target' or a text with loss")
        tasks[name] = task
    return tasks


def find_task(name: str, tasks: Mapping[str, Task]) -> Task:
    """Return the task of this name. Raise SpecError with the nearest known name."""
    if name not in tasks:
        raise SpecError(f"unknown task '{name}'; expected one of {', '.join(sorted(tasks))}.{did_you_mean(name, tasks)}")
    return tasks[name]


def _placeholders(pattern: str) -> list[str]:
    return [field for _, field, _, _ in string.Formatter().parse(pattern) if field is not None]


def _problem(template: SegmentTemplate) -> str | None:
    """Return what is wrong with a template, or None."""
    if (template.text is None) == (template.audio is None):
        return "needs exactly one of text and audio"
    if template.audio is not None and template.loss:
        return f"sets loss on audio '{template.audio}'; a target always carries loss, features and context never do"
    if template.known is not None and template.gap is not None:
        return "sets known and gap; expected at most one of them"
    for name, shares in (("known", template.known), ("gap", template.gap)):
        if shares is None:
            continue
        if template.audio != "target":
            return f"sets {name}, which only applies to an audio 'target'"
        least, most = shares
        if not 0.0 <= least <= most < 1.0:
            return f"sets {name} to ({least}, {most}); expected 0 <= least <= most < 1"
    return _text_problem(template.text) if template.text is not None else None


def _text_problem(pattern: str) -> str | None:
    try:
        fields = list(string.Formatter().parse(pattern))
    except ValueError as error:
        return f"has the text {pattern!r}, which is not a valid pattern: {error}"
    for _, name, format_spec, conversion in fields:
        if name is None:
            continue
        if name not in PLACEHOLDERS:
            known = ", ".join(f"{{{known}}}" for known in PLACEHOLDERS)
            return f"has an unknown placeholder '{{{name}}}'; expected {known}.{did_you_mean(name, PLACEHOLDERS)}"
        if format_spec or conversion:
            return f"formats the placeholder '{{{name}}}'; write it without a format"
    return None
