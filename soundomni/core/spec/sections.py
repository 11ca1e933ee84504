"""Checks of what the sections of a spec say together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from soundomni.core.errors import SpecError, did_you_mean, listed, shown
from soundomni.core.files.names import RUN_FILES
from soundomni.core.spec.schema import ModelSpec, SegmentTemplate, Spec
from soundomni.core.spec.shorthand import check_modalities

_KINDS = ("model", "codec", "stages")
"""Sections of which a spec has exactly one."""


def check_sections(spec: Spec) -> None:
    """Raise SpecError unless the spec has a model, a codec or stages, whose parts go together."""
    given = [name for name in _KINDS if getattr(spec, name) is not None]
    if len(given) != 1:
        found = f"the sections {listed(given)}" if given else f"none of the sections {listed(_KINDS)}"
        raise SpecError(f"the spec has {found}; expected one of them: a model, a codec that is trained on its own, or a chain of models")
    if spec.model is not None:
        check_modalities(spec.model)
        check_prompt(spec.model)
    if spec.stages is not None:
        check_stages(spec)


def check_stages(spec: Spec) -> None:
    """Raise SpecError unless a chain has stages, each with a name that a folder may have, and a directory."""
    if not spec.used_stages:
        raise SpecError("stages is empty; expected names with the directories of models, such as semantic: runs/semantic")
    for name, directory in spec.used_stages.items():
        check_stage_name(name)
        if not directory.strip():
            raise SpecError(f"stages.{name} is {directory!r}; expected the directory of a model or of a run. Name it, or remove the stage")


def check_stage_name(name: object) -> None:
    """Raise SpecError unless a stage may have this name, which is also that of its folder in a chain's directory."""
    if not isinstance(name, str) or not name.isidentifier():
        raise SpecError(f"the name of a stage is {shown(name)}; expected a word such as semantic")
    if name.casefold() in RUN_FILES:
        raise SpecError(f"the name of a stage is {shown(name)}, which is reserved for runs; expected another word, such as semantic")


def check_untrained(tree: Mapping[str, Any]) -> None:
    """Raise SpecError if the spec of a chain, as plain data, also has data or train.

    This runs before those sections are checked, so that nobody is asked for missing keys of a section that has to go.
    """
    for section in ("data", "train"):
        if tree.get("stages") is not None and tree.get(section) is not None:
            raise SpecError(f"the spec has the sections stages and {section}, but each stage is trained by its own spec. Remove {section}")


def check_prompt(model: ModelSpec) -> None:
    """Raise SpecError unless a model's prompt has texts, and clips that are given, each of another modality."""
    named: list[str | None] = []
    for i, template in enumerate(model.prompt):
        problem = _problem(template, model)
        if problem is None and template.audio is not None and template.of in named:
            problem = f"gives '{template.of}' again; expected each modality once"
        if problem is not None:
            raise SpecError(f"model.prompt[{i}] {problem}")
        if template.audio is not None:
            named.append(template.of)


def _problem(template: SegmentTemplate, model: ModelSpec) -> str | None:
    """Return what is wrong with a segment of a prompt, or None."""
    if (template.text is None) == (template.audio is None):
        return "needs exactly one of text and audio"
    if template.loss or template.known is not None or template.gap is not None:
        return "sets loss, known or gap, but a prompt is never predicted. Remove them"
    if template.audio is None:
        return None
    if template.audio == "target":
        return "is the target, which is always appended after the prompt. Remove it"
    wanted = "encoder" if template.audio == "features" else "codec"
    known = [name for name, one in model.used.items() if getattr(one, wanted) is not None]
    if template.of is None or template.of not in known:
        given = "does not name the modality of its audio" if template.of is None else f"names the modality '{template.of}'"
        expected = f"expected one with {'an encoder' if wanted == 'encoder' else 'a codec'}: {', '.join(known) or 'the model has none'}"
        return f"{given}; {expected}.{did_you_mean(template.of or '', known)}"
    return None
