"""A frozen teacher: a model learns to reach in a few steps without guidance what its teacher reaches in many with
guidance.

The model's sampler goes from noise, t = 1, to data, t = 0, in a few straight steps. For each clip, one of these steps,
t → s, is drawn, and the clip gets as much noise as at t. From there the teacher goes to s in several steps with
guidance, and the model learns the velocity that leads to the same place in one step. This is progressive distillation
(Salimans and Ho 2022, algorithm 2) of a guided teacher (Meng et al. 2023, section 3), but it goes to the final number
of steps at once.

Shape letters: G guidance branches, B clips, D latent dimensions, T frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from soundomni.core.assembly.modality import Entered, MadeModality
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import SpecError
from soundomni.core.inference.guidance import PartialTarget, check_guidance, guided
from soundomni.core.interfaces import Backbone, First, Objective, Predict, Query, Sampler
from soundomni.core.limits import check_scale
from soundomni.core.sequence import Clips, Conditioned, PackedBatch
from soundomni.core.spec.registry import load
from soundomni.core.spec.schema import GuidanceSpec, Slot, Spec
from soundomni.core.spec.shorthand import written_key


@dataclass(frozen=True)
class Course:
    """How clips of a modality get from noise to data.

    Args:
        timesteps: timesteps of the learning model's sampler, falling from noise to 0.
        guidance: the teacher's guidance.
    """

    timesteps: tuple[float, ...]
    guidance: GuidanceSpec


@dataclass(frozen=True)
class _Lesson:
    """One step of the sampler for each clip of a modality.

    Args:
        query: the clips at the beginning of their steps, with their own noise's velocity as targets.
        begins, ends: `[B]`, timesteps at which the steps begin and end; 0 for clips that are only given.
        known: bool `[B, T]`, frames that are given.
    """

    query: Query
    begins: Tensor
    ends: Tensor
    known: Tensor


class Teacher:
    """Makes the queries about the clips of a training batch: the velocity to where the teacher gets in one step of the
    sampler.

    It is not part of the model that learns, so nothing averages, updates or saves it. The teacher predicts equally
    often for any batch, which keeps ranks in step.

    Args:
        model: the teacher's network, frozen; its codecs and normalizers are those of the model that learns.
        courses: name of each modality that is made → its course.
        steps: number of midpoint steps within one step of the sampler.
    """

    def __init__(self, model: UnifiedModel, *, courses: Mapping[str, Course], steps: int) -> None:
        self.model = model
        self._courses, self._steps = courses, steps

    @torch.no_grad()
    def __call__(self, batch: PackedBatch) -> dict[str, Query]:
        """Return the query about the clips of each modality that is made."""
        lessons = {name: _lesson(self.model.made(name), batch.of(name), course.timesteps) for name, course in self._courses.items()}
        asked = {name: lesson.query for name, lesson in lessons.items()}
        given = self.model.enter_given(batch)
        queries = {}
        for name, lesson in lessons.items():
            clean = lesson.query.inputs - lesson.query.timesteps[:, None] * lesson.query.targets
            target = PartialTarget(values=clean, known=lesson.known, noisy=self.model.made(name).objective.shows_known)
            predict = target.hold(self._guided(name, asked, batch, given))
            targets = straight_velocity(predict, lesson.query.inputs, lesson.begins, lesson.ends, steps=self._steps)
            queries[name] = replace(lesson.query, targets=targets)
        return queries

    def _guided(self, name: str, asked: Mapping[str, Query], batch: PackedBatch, given: Mapping[str, Entered]) -> Predict:
        """Return the guided prediction for the clips of a modality; those of other modalities stay as `asked` has them."""
        guidance, model, query = self._courses[name].guidance, self.model, asked[name]
        sides = [(batch, given)]
        if guidance.scale != 1.0:
            sides.append((_without_conditions(batch, model), _without_aligned(given, model.made(name))))

        def branches(values: Tensor, timesteps: Tensor, count: int, *, first: First, level: int | None = None) -> Tensor:
            queries = {**asked, name: replace(query, inputs=values, timesteps=timesteps)}
            precise = torch.promote_types(values.dtype, torch.float32)
            # All branches run, even if no clip of this rank is guided: on another rank, some may be.
            found = [model.answer(one, queries, entered)[name].to(precise) for one, entered in sides]
            return torch.stack(found[:count])

        return guided(branches, guidance, valid=query.loss_mask, objective=model.made(name).objective)


def _lesson(modality: MadeModality, clips: Clips, timesteps: tuple[float, ...]) -> _Lesson:
    """Draw a step of the sampler for each clip, from the clip's seed or quantile, and make the clip as noisy as at its
    beginning."""
    query, last = modality.corrupt(clips), len(timesteps) - 2
    count = last + 1
    if clips.quantiles is None:
        steps = [int(torch.randint(count, (), generator=torch.Generator().manual_seed(_step_seed(seed)))) for seed in clips.seeds]
    else:
        steps = [min(int(quantile * count), last) for quantile in clips.quantiles]
    chosen = torch.tensor([[timesteps[step], timesteps[step + 1]] for step in steps], dtype=torch.float32).reshape(-1, 2)
    made = clips.noise.to(query.inputs.device)
    begins, ends = (chosen.to(made.device) * made[:, None]).unbind(1)
    times = torch.where(query.timesteps > 0, begins[:, None].to(query.timesteps.dtype), 0.0)
    inputs = query.inputs + (times - query.timesteps)[:, None] * query.targets  # along the path from clip to noise
    known = clips.known if len(clips) else query.loss_mask
    return _Lesson(replace(query, inputs=inputs, timesteps=times), begins, ends, known)


def straight_velocity(predict: Predict, values: Tensor, begins: Tensor, ends: Tensor, *, steps: int) -> Tensor:
    """Return the velocity that takes clips in one step to where midpoint steps take them (Hairer, Nørsett and Wanner
    1993, section II.1).

    It never predicts at the end of the last step, where the timestep may be 0.

    Args:
        predict: predicts velocities.
        values: `[B, D, T]`, clips at timesteps `begins`.
        begins, ends: `[B]`, timesteps; if both are equal, the velocity is 0.
        steps: number of midpoint steps.
    """
    reached, width = values, (ends - begins) / steps
    wide = width[:, None, None]
    for index in range(steps):
        times = begins + index * width
        middle = reached + wide / 2 * predict(reached, times)
        reached = reached + wide * predict(middle, times + width / 2)
    whole = (ends - begins)[:, None, None]
    return (reached - values) / torch.where(whole == 0.0, 1.0, whole)


def _without_conditions(batch: PackedBatch, model: UnifiedModel) -> PackedBatch:
    """Return a batch without prompts, as guidance writes it: only the conditions that stay, which clips do not attend
    to."""
    stays = {name for name, one in model.unplaced.items() if one.enters_as("cross") and one.enters_as("global")}

    def bare(clip: Conditioned) -> Conditioned:
        left = tuple(one for one in clip.conditions if one[0] in stays)
        return replace(clip, conditions=left, unattended=frozenset(left))

    return replace(batch, conditioned=tuple(map(bare, batch.conditioned)))


def _without_aligned(given: Mapping[str, Entered], modality: MadeModality) -> dict[str, Entered]:
    """Return given clips with zeros for those that are added to the frames of a modality."""
    return {name: replace(one, hidden=torch.zeros_like(one.hidden)) if name in modality.aligned else one for name, one in given.items()}


def _step_seed(seed: int) -> int:
    """Return the seed for a clip's step; its stream differs from the streams that corrupt nearby clips."""
    return (seed ^ 0x3C6EF372) & 0xFFFFFFFF  # CPU generators only read the low 32 bits


def check_teacher(spec: Spec, samplers: Mapping[str, Sampler], *, trust_class_paths: bool = False) -> None:
    """Raise SpecError unless the model of a spec with `train.teacher` can learn its samplers' steps."""
    assert spec.train is not None and spec.train.teacher is not None, "the caller checked it"
    section = spec.of_model
    if section.start is None:
        raise SpecError("train.teacher is set, but model.start is not. Set model.start to the teacher, such as a model directory")
    if section.start_fresh:
        raise SpecError(f"model.start_fresh is {section.start_fresh}, but with train.teacher, a model begins as its teacher. Leave it out")
    if spec.train.teacher.guidance is not None:
        check_guided(spec.train.teacher.guidance, section.backbone, trust_class_paths=trust_class_paths)
    for name, one in section.all_made.items():
        assert one.objective is not None and one.sampler is not None, "it is made"
        objective = cast(type[Objective], load("objective", one.objective.class_path, trust_class_paths=trust_class_paths))
        if objective.predicts != "velocity":
            kind = "codes" if objective.predicts == "logits" else "the next token"
            raise SpecError(f"train.teacher teaches velocities, but the objective of '{name}' predicts {kind}. Leave train.teacher out")
        if samplers[name].straight_steps() is None:
            key = written_key(f"model.modalities.{name}.sampler", section)
            raise SpecError(
                f"{key} is '{one.sampler.class_path}', whose steps a model cannot learn from a teacher; expected a "
                "sampler that follows each prediction in a straight line. Use a sampler such as euler"
            )
        if one.guidance.scale != 1.0:
            key = written_key(f"model.modalities.{name}.guidance.scale", section)
            raise SpecError(f"{key} is {one.guidance.scale:g}; expected 1, because only the teacher is guided. Set it to 1")


def check_guided(guidance: GuidanceSpec, backbone: Slot, *, trust_class_paths: bool = False) -> None:
    """Raise SpecError if a value of a teacher's guidance is out of its range, or if a guided teacher has its prompts in
    the sequence, because a packed batch cannot leave them out there."""
    try:
        check_guidance(guidance)
    except SpecError as error:
        raise SpecError(f"train.teacher.{error}") from error
    check_scale(guidance.scale, name="train.teacher.guidance.scale")
    takes_text = cast(type[Backbone], load("backbone", backbone.class_path, trust_class_paths=trust_class_paths)).takes_text
    if guidance.scale != 1.0 and takes_text:
        raise SpecError(
            f"train.teacher: the guidance scale of the teacher is {guidance.scale:g}; expected 1, because backbone '{backbone.class_path}' "
            "has the prompts in its sequence. Use a backbone such as dit, or set train.teacher.guidance to {scale: 1}"
        )
