"""Checks that the stages of a chain fit together, before anything is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from soundomni.core.assembly.modality import CodecModality, MadeModality
from soundomni.core.errors import SpecError, shown
from soundomni.core.pretrained.abilities import Made
from soundomni.core.pretrained.fingerprint import modality_fingerprint
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.spec.sections import check_stage_name


def check_stages(stages: Mapping[str, SoundOmni]) -> None:
    """Raise SpecError, in one line, unless each stage makes what a later one takes, with the same codec, and the last one makes audio.

    A name has to be one that a folder may have, because the chain is saved with each stage in a folder of its name.
    """
    if not isinstance(stages, Mapping):
        raise SpecError(f"stages is {shown(stages)}; expected a mapping of names to models, such as {{'semantic': model}}")
    for name, stage in stages.items():
        check_stage_name(name)
        if not isinstance(stage, SoundOmni):
            raise SpecError(f"stage '{name}' is {shown(stage)}; expected a model. Load it with SoundOmni.from_pretrained")
    if not stages:
        raise SpecError("the chain has no stages; expected at least one model")
    names = list(stages)
    for i, name in enumerate(names):
        _check_lower_levels(stages, name, before=names[:i])
    for i, name in enumerate(names[:-1]):
        _check_taken(stages, name, after=names[i + 1 :])
    last = stages[names[-1]].model.made()
    if not last.codec.decodes:
        codec = type(last.codec).__name__
        raise SpecError(f"stage '{names[-1]}' is the last one, but the codec of '{last.name}', {codec}, only encodes. Add the next stage")


def taken_by(stage: SoundOmni) -> tuple[str, ...]:
    """Return the modalities of which a stage takes clips that other stages make."""
    made = stage.abilities().made[0]
    return tuple(name for name in made.taken if isinstance(stage.model.modality(name), CodecModality))


def made_by(stage: SoundOmni) -> Made:
    """Return what a stage makes in a chain: the first modality that its model makes."""
    stage.model.made()  # it says what is wrong if there is none
    return stage.abilities().made[0]


def _check_lower_levels(stages: Mapping[str, SoundOmni], name: str, *, before: list[str]) -> None:
    """Raise SpecError if a stage makes only upper levels, and no stage before it makes exactly those below."""
    own = made_by(stages[name])
    first = own.levels[0]
    if not first:
        return
    makers = [other for other in before if made_by(stages[other]).name == own.name]
    needs = f"stage '{name}' needs the levels of '{own.name}' below {first}"
    if not makers:
        raise SpecError(f"{needs}, which no stage before it makes. Add the missing stage")
    end = made_by(stages[makers[-1]]).levels[1]
    if end != first:
        raise SpecError(f"{needs}, but stage '{makers[-1]}' makes those below {end}. Set the levels of their objectives to meet")


def _check_taken(stages: Mapping[str, SoundOmni], name: str, *, after: list[str]) -> None:
    """Raise SpecError if no later stage takes what a stage makes, or if one has another codec for it."""
    made = made_by(stages[name])
    takers = [other for other in after if made.name in taken_by(stages[other])]
    if not takers:
        takes = "; ".join(f"'{other}' takes {', '.join(taken_by(stages[other])) or 'nothing'}" for other in after)
        raise SpecError(f"stage '{name}' makes '{made.name}', which no later stage takes: {takes}. Use one name for both, or leave it out")
    for other in takers:
        _check_codec(stages, name, other, made.name)


def _check_codec(stages: Mapping[str, SoundOmni], maker: str, taker: str, modality: str) -> None:
    """Raise SpecError if two stages have different codecs for a modality: other rates or sizes, other settings, or other weights."""
    own, other = (stages[name].model.modality(modality) for name in (maker, taker))
    assert isinstance(own, MadeModality) and isinstance(other, CodecModality), "one makes it, and the other takes it as codes or latents"
    made, wanted = own.codec.spec, other.codec.spec
    handed = f"stage '{maker}' hands '{modality}' on to stage '{taker}'"
    for field in fields(made):
        ours, theirs = getattr(made, field.name), getattr(wanted, field.name)
        if ours != theirs:
            raise SpecError(f"{handed}, but its codec has {field.name} {ours}, and that of '{taker}' {theirs}. Use the same codec for both")
    has, needs = own.most_levels, _levels_needed(other)
    if has < needs:
        raise SpecError(f"{handed}, which needs {needs} levels, but it has {has}. Add the stage that makes the others")
    prints = [modality_fingerprint(stages[name].model, modality, stages[name].spec.of_model.used[modality]) for name in (maker, taker)]
    if prints[0] != prints[1]:
        different = f"their codecs differ in settings or weights ({prints[0][:8]} and {prints[1][:8]})"
        raise SpecError(f"{handed}, but {different}. Train both with one codec")


def _levels_needed(taker: CodecModality) -> int:
    made = isinstance(taker, MadeModality) and taker.first_level
    return made or taker.most_levels
