"""Finding the teacher of `train.teacher`, in a new run and in one that is resumed, and building its network.

A run keeps the digest of its teacher in every checkpoint, but never its weights: a resumed run reads them again from
`model.start`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from soundomni.core.assembly.build import build_model, build_sampler
from soundomni.core.assembly.modality import share
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import CheckpointError, SpecError
from soundomni.core.files.names import SPEC_FILE
from soundomni.core.pretrained.directory import without_codec_weights
from soundomni.core.pretrained.start import read_kept
from soundomni.core.pretrained.weights import weight_files
from soundomni.core.spec.load import changed_keys
from soundomni.core.spec.schema import GuidanceSpec, Spec
from soundomni.core.spec.values import plain
from soundomni.train.checkpoint import read_state
from soundomni.train.parallel import World, parallelize
from soundomni.train.run_directory.inventory import digest
from soundomni.train.start_weights import CHOICES, Start, open_start
from soundomni.train.teacher import Course, Teacher, check_guided

KEY = "teacher"
"""Key of the digest in a checkpoint's state."""
CODEC = ("codec", "normalizer")
"""Parts that training does not change and that the teacher shares with the learning model."""


@dataclass(frozen=True)
class TeacherSource:
    """Source of a teacher's weights.

    Args:
        start: the model directory.
        digest: SHA-256 of its spec and its weights.
    """

    start: Start
    digest: str

    def check(self, checkpoint: Path | None) -> None:
        """Raise CheckpointError if a checkpoint learned from another teacher."""
        if checkpoint is None:
            return
        known = read_state(checkpoint).get(KEY)
        if known not in (None, self.digest):
            raise CheckpointError(
                f"model.start, '{self.start.name}', has changed since '{checkpoint}' learned from it as train.teacher. Restore it, or "
                "begin a new run"
            )


def find_teacher(spec: Spec, world: World, start: Start | None, *, trust_class_paths: bool = False) -> TeacherSource | None:
    """Find the teacher of a resolved spec, the same on every rank; None for a run without a teacher. Every rank must
    call this.

    Args:
        spec: the spec.
        world: the ranks.
        start: the model that a new run starts from; None if the run is resumed.
        trust_class_paths: whether plugins may be named by import path.

    Raises:
        CheckpointError: a resumed run can no longer find its teacher.
        SpecError: the spec changes more than the samplers and guidance of the teacher, or the teacher cannot be guided.
    """
    if spec.train is None or spec.train.teacher is None:
        return None
    run_dir = Path(spec.train.run_dir)
    with world.own_errors():
        found = _again(spec, run_dir, trust_class_paths=trust_class_paths) if start is None else start
        _check_same(spec, found)
        for guidance in _guidance(spec, found).values():
            check_guided(guidance, spec.of_model.backbone, trust_class_paths=trust_class_paths)
    return TeacherSource(found, world.share(lambda: _digest(found.directory)))


def _again(spec: Spec, run_dir: Path, *, trust_class_paths: bool) -> Start:
    kept = read_kept(run_dir)
    try:
        found = open_start(spec, commit=kept.commit if kept is not None else None, trust_class_paths=trust_class_paths)
    except CheckpointError as error:
        raise CheckpointError(f"the run in '{run_dir}' still learns from model.start (train.teacher): {error}") from error
    assert found is not None, "check_teacher was called"
    return found


def _check_same(spec: Spec, start: Start) -> None:
    """Raise SpecError if the spec changes what the teacher computes, or how its batches are written."""
    may_change = [f"model.{key}" for key in CHOICES]
    may_change += [f"model.modalities.{name}.{key}" for name in spec.of_model.used for key in ("sampler", "guidance")]
    own, new = (plain(without_codec_weights(one)) for one in (start.own.of_model, spec.of_model))
    changed = changed_keys({"model": own}, {"model": new}, may_change=may_change)
    if changed:
        raise SpecError(
            f"train.teacher: the spec changes {changed[0]} of '{start.name}', but a model may only differ from its "
            "teacher in sampler and guidance. Leave this key out"
        )


def _guidance(spec: Spec, start: Start) -> dict[str, GuidanceSpec]:
    """Return the teacher's guidance for each modality that is made, from `train.teacher` or from the teacher's own
    spec."""
    assert spec.train is not None and spec.train.teacher is not None, "the caller checked it"
    given = spec.train.teacher.guidance
    return {name: one.guidance if given is None else given for name, one in start.own.of_model.all_made.items()}


def _digest(directory: Path) -> str:
    parts = [digest(file) for file in (directory / SPEC_FILE, *weight_files(directory))]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def build_teacher(
    source: TeacherSource, spec: Spec, student: UnifiedModel, world: World, *, vocab_size: int, trust_class_paths: bool = False
) -> Teacher:
    """Build the teacher of a model that is already on its device, sharded in the same way; each rank only reads its own
    rows.

    Raise CheckpointError if its weights cannot be read.
    """
    train = spec.train
    assert train is not None and train.teacher is not None, "find_teacher was called"
    section = replace(without_codec_weights(spec.of_model), freeze=[])
    model = build_model(section, vocab_size=vocab_size, trust_class_paths=trust_class_paths, drawn=())
    for one in model.each():
        share(one, student.modality(one.name), parts=CODEC)
    model.requires_grad_(False)
    parallelize(model, world, replace(train, activation_checkpointing=False))
    source.start.load(model)
    courses = {}
    for name, guidance in _guidance(spec, source.start).items():
        slot = spec.of_model.all_made[name].sampler
        assert slot is not None, "checked when the spec was read"
        timesteps = build_sampler(slot, trust_class_paths=trust_class_paths).straight_steps()
        assert timesteps is not None, "check_teacher was called"
        courses[name] = Course(timesteps, guidance)
    return Teacher(model, courses=courses, steps=train.teacher.steps)
