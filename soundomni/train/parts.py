"""The parts of a run, built from its spec before anything is sharded: data, tokenizer, model and loader."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.lora import add_adapters
from soundomni.core.assembly.modality import CodecModality
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.segment_writer import clip_writer, segment_writer
from soundomni.core.errors import SpecError
from soundomni.core.pretrained.directory import without_codec_weights, without_weights
from soundomni.core.spec import registry
from soundomni.core.spec.ranges import check_loss_weights
from soundomni.core.spec.schema import CodecSpec, DataSpec, MixtureEntry, SegmentTemplate, Spec, TrainSpec
from soundomni.core.tokenizer import TextTokenizer
from soundomni.core.writing.segments import SegmentWriter
from soundomni.data.batch_planner import state_for_other_data
from soundomni.data.loader import PackedLoader
from soundomni.data.mixture import Mixture
from soundomni.data.samples import SampleWriter
from soundomni.train.announcement import announce, announce_latents
from soundomni.train.build_codec import build_codec
from soundomni.train.checkpoint import read_state
from soundomni.train.codec_training import CodecTraining
from soundomni.train.encoded_data import check_audio, check_encoded
from soundomni.train.latent_fitting import fit_latents
from soundomni.train.open_teacher import TeacherSource
from soundomni.train.parallel import World
from soundomni.train.preflight import check_spec
from soundomni.train.run_directory.opening import OpenRun, RunDirectory
from soundomni.train.run_directory.same_data import Listings, check_same_data, list_data
from soundomni.train.run_directory.spec_changes import is_below
from soundomni.train.run_tokenizer import run_tokenizer
from soundomni.train.start_weights import Start
from soundomni.train.terminal import tell

_Built = tuple[UnifiedModel | CodecTraining, SegmentWriter, int]
CLIP_TASK = "codec-clip"
"""Task of a run that trains a codec: only the clip."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of a run, before anything is sharded.

    `module` is what is trained: a UnifiedModel or a CodecTraining.
    """

    spec: Spec
    data: DataSpec
    train: TrainSpec
    mixture: Mixture
    tokenizer: TextTokenizer
    module: UnifiedModel | CodecTraining
    segments: SegmentWriter
    loader: PackedLoader
    listings: Listings
    opened: OpenRun
    home: RunDirectory | None
    start: Start | None
    teacher: TeacherSource | None = None


def checked_sections(spec: Spec, *, trust_class_paths: bool) -> tuple[DataSpec, TrainSpec, list[str]]:
    """Check the spec before anything is built; return its sections, with a codec's own task, and its doubts."""
    spec.check_single()
    data, train = spec.data, spec.train
    if data is None or train is None:
        raise SpecError(f"the spec has no '{'data' if data is None else 'train'}' section, which training needs")
    doubts = check_spec(spec, trust_class_paths=trust_class_paths)
    if spec.codec is not None:
        entries: dict[str, MixtureEntry | None] = {
            name: dataclasses.replace(entry, tasks={CLIP_TASK: 1.0}) for name, entry in data.datasets.items() if entry
        }
        tasks = {**data.tasks, CLIP_TASK: [SegmentTemplate(audio="target")]}  # a codec needs no captions
        data = dataclasses.replace(data, datasets=entries, tasks=tasks)
    return data, train, doubts


def build_parts(
    spec: Spec,
    data: DataSpec,
    train: TrainSpec,
    world: World,
    *,
    home: RunDirectory | None,
    opened: OpenRun,
    start: Start | None,
    teacher: TeacherSource | None,
    allowed: Collection[str],
    trust_class_paths: bool,
) -> Parts:
    """Build the parts of a run, the same on every rank. Every rank must call this.

    Args:
        spec: the resolved spec; `data` and `train` are its sections as `checked_sections` returns them.
        world: its ranks.
        home: on rank 0, the run directory.
        opened: what was found in it.
        start: the model to start from, for a new run that has one.
        teacher: the model to learn from, if the run has one.
        allowed: keys that may change, see `check_unchanged`.
        trust_class_paths: whether plugins may be named by import path.
    """
    _seed_all(train.seed)
    build = partial(registry.build, trust_class_paths=trust_class_paths)
    mixture = world.on_every(lambda: Mixture.open(data, build))
    listings = list_data(mixture, world)
    position = _position(opened, listings, mixture, world, allowed=allowed)
    tokenizer = run_tokenizer(spec, mixture, world, home, latest=opened.latest, start=start)
    if spec.codec is not None:
        check_audio(mixture)
        module, segments, codec_rate = _codec(spec.codec, train, tokenizer, opened=opened, trust_class_paths=trust_class_paths)
    else:
        module, segments, codec_rate = _model(spec, tokenizer, world, opened=opened, start=start, trust_class_paths=trust_class_paths)
    writer = SampleWriter(segments, dropout=data.condition_dropout)
    told = announce(mixture, writer, data, codec_rate=codec_rate) if world.is_main else ()
    places = {"rank": world.rank, "world_size": world.size, "batches_per_step": train.batches_per_step}
    loader = PackedLoader(mixture=mixture, writer=writer, spec=data, state=position, told=told, **places)
    check_loss_weights(train.loss_weights, module.loss_names)
    if isinstance(module, UnifiedModel):
        if train.lora is not None:  # after the model has its first weights
            add_adapters(module, train.lora, seed=train.seed)
        if opened.latest is None:
            _fit_on_main(module, mixture, loader, world)
            world.on_main(lambda: check_encoded(module, spec, mixture, trust_class_paths=trust_class_paths))
            world.on_main(lambda: announce_latents(module, spec.of_model, mixture, loader))
    return Parts(
        spec=spec,
        data=data,
        train=train,
        mixture=mixture,
        tokenizer=tokenizer,
        module=module,
        segments=segments,
        loader=loader,
        listings=listings,
        opened=opened,
        home=home,
        start=start,
        teacher=teacher,
    )


def _seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # a checkpoint keeps this state too
    random.seed(seed)


def _fit_on_main(model: UnifiedModel, mixture: Mixture, loader: PackedLoader, world: World) -> None:
    """Fit on rank 0 what is measured on the data, and copy it to the other ranks."""
    world.on_main(lambda: fit_latents(model, mixture, loader, device=world.device))
    for modality in model.each():
        if isinstance(modality, CodecModality):
            world.copy_from_main([*modality.codec.buffers(), *modality.normalizer.buffers()])


def _codec(section: CodecSpec, train: TrainSpec, tokenizer: TextTokenizer, *, opened: OpenRun, trust_class_paths: bool) -> _Built:
    """Return the codec and its critics, what writes clips for them, and the codec's sample rate.

    If a checkpoint has their weights, no other file is needed for them.
    """
    if opened.latest is not None:
        section = dataclasses.replace(section, codec=without_weights(section.codec))
    module = build_codec(section, train, trust_class_paths=trust_class_paths)
    return module, clip_writer(module.codec.spec, tokenizer=tokenizer), module.codec.spec.sample_rate


def _model(spec: Spec, tokenizer: TextTokenizer, world: World, *, opened: OpenRun, start: Start | None, trust_class_paths: bool) -> _Built:
    """Return the model before anything is sharded, what writes its segments, and the sample rate of what it makes first.

    If a checkpoint has its weights, no other file is needed for them.
    """
    section = spec.of_model
    if opened.latest is not None:
        section = without_codec_weights(section)
    model = build_model(
        section,
        vocab_size=tokenizer.vocab_size,
        trust_class_paths=trust_class_paths,
        seed=spec.train.seed if spec.train is not None else 0,
        drawn=start.fresh if start is not None else None,
    )
    if start is not None:
        with world.own_errors():
            start.load_whole(model)
    return model, segment_writer(model, spec.of_model, tokenizer=tokenizer), model.made().sample_rate


def _position(opened: OpenRun, listings: Listings, mixture: Mixture, world: World, *, allowed: Collection[str]) -> Any:
    """Return the loader state to resume from: that of the checkpoint, or what still applies if the data changed."""
    if opened.latest is None:
        return None
    saved = read_state(opened.latest)
    state = saved["progress"]["data"]
    is_same = check_same_data(saved.get("data"), listings, mixture, opened.latest, allowed=allowed)
    order = [key for key in opened.changed if is_below(key, ["data"]) and ".source." not in key]
    if is_same and not order:
        return state
    if world.is_main:
        tell("the data has changed: the run resumes with its samples in a new order, and clips of this epoch may be repeated")
    return state_for_other_data(state, mixture)
