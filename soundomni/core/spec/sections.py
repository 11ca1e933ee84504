"""Checks of what the sections of a spec say together."""

from __future__ import annotations

from soundomni.core.errors import SpecError, did_you_mean
from soundomni.core.spec.schema import ModelSpec, SegmentTemplate, Spec
from soundomni.core.spec.shorthand import check_modalities


def check_sections(spec: Spec) -> None:
    """Raise SpecError unless the spec has a model or a codec, whose parts go together."""
    if (spec.model is None) == (spec.codec is None):
        given = "neither the section model nor the section codec" if spec.model is None else "the sections model and codec"
        raise SpecError(f"the spec has {given}; expected one of them: a model, or a codec that is trained on its own")
    if spec.model is not None:
        check_modalities(spec.model)
        check_prompt(spec.model)


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
        return "is an audio 'target', which comes after the prompt by itself. Remove it"
    wanted = "encoder" if template.audio == "features" else "codec"
    known = [name for name, one in model.used.items() if getattr(one, wanted) is not None]
    if template.of is None or template.of not in known:
        given = "does not say of which modality its audio is" if template.of is None else f"is of '{template.of}'"
        expected = f"expected one with {'an encoder' if wanted == 'encoder' else 'a codec'}: {', '.join(known) or 'the model has none'}"
        return f"{given}; {expected}.{did_you_mean(template.of or '', known)}"
    return None
