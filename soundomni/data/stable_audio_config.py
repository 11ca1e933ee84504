"""Translates stable-audio-tools' dataset configs into the section `data.datasets` of a spec."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from soundomni.core.errors import SpecError, did_you_mean, shown
from soundomni.core.files.paths import slug
from soundomni.core.pretrained.config_sections import Section, Translation
from soundomni.core.spec.values import join

READER = "the dataset encoded"
HOOK = "custom_metadata_module"
_LOADING = {
    "drop_last": "every clip is used",
    "epoch_steps": "a run counts steps",
    "resampled_shards": "each clip is drawn once per pass",
}
_AUDIO_PLUGINS: Mapping[str, Any] = {"filters": {"silence": "silence"}, "augmentations": {"flip": "phase-flip"}}
"""What stable-audio-tools does to all clips of audio, without a key: half of them change their sign, after silent ones are left out."""
_SILENCE_NOTE = "the filter silence judges the RMS level of a clip; there, clips whose peak is below -60 dB are left out"


@dataclass(frozen=True, kw_only=True)
class Clips:
    """What clips must be like for a model.

    Args:
        sample_rate, channels, downsampling_ratio: the codec's.
        seconds: length of the longest clip; a random part is used of longer files.
        tasks: weights of the tasks; None for a codec, which has no tasks.
        captions: whether every clip needs a caption.
    """

    sample_rate: int
    channels: int
    downsampling_ratio: int
    seconds: float
    tasks: Mapping[str, float] | None
    captions: bool


def read_datasets(tree: Any, clips: Clips) -> Translation:
    """Return the datasets of a config from parsed JSON.

    Raise SpecError if it is not such a config, has an unknown key or a wrong value, or asks for something that no
    dataset here can do.
    """
    top = Section(tree, "")
    kind = top.take("dataset_type", str)
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise SpecError(f"dataset_type is '{kind}'; expected one of {known}.{did_you_mean(kind, KINDS)}")
    _refuse_hook(top)
    expected = "mono" if clips.channels == 1 else "stereo"
    top.expect("force_channels", expected, by=f"a model with {clips.channels} channels", default=expected)
    given = top.take("datasets", list[dict[str, Any]])
    if not given:
        raise SpecError("datasets is []; expected at least one, with the keys id and path")
    sections = [Section(one, f"datasets[{index}]") for index, one in enumerate(given)]
    for section in sections:
        _refuse_hook(section)
    read, notes = KINDS[kind](top, sections, clips)
    notes += top.ignore(_LOADING)
    top.close()
    datasets: dict[str, Any] = {}
    for section, source in zip(sections, read, strict=True):
        name = _name(section, datasets)
        section.close()
        entry: dict[str, Any] = {"source": source.slot} | ({"tasks": dict(clips.tasks)} if clips.tasks is not None else {})
        datasets[name] = entry | ({"max_seconds": source.seconds} if source.seconds is not None else {}) | dict(source.plugins)
    return Translation({"data": {"datasets": datasets}}, tuple(notes))


@dataclass(frozen=True)
class Source:
    """A dataset of a config.

    Args:
        slot: its slot.
        seconds: longest clip; None for any.
        plugins: its filters and augmentations, as keys of its entry in the spec.
    """

    slot: dict[str, Any]
    seconds: float | None
    plugins: Mapping[str, Any] = field(default_factory=dict)


Sources = tuple[list[Source], list[str]]
"""The datasets, and notes."""


def _folders(top: Section, sections: list[Section], clips: Clips) -> Sources:
    """Read folders of audio files."""
    _check_crop(top)
    sources = [_slot("audio-folder", {"path": one.take("path", str), "captions": clips.captions}) for one in sections]
    return [Source(source, clips.seconds, _AUDIO_PLUGINS) for source in sources], [_SILENCE_NOTE]


def _shards(top: Section, sections: list[Section], clips: Clips) -> Sources:
    """Read tar shards."""
    for name in ("pre_encoded", "remove_silence", "volume_norm"):
        top.expect(name, False, by="the dataset webdataset", default=False)
    _check_crop(top)
    unused = {
        "silence_threshold": "silence within clips is not removed",
        "max_silence_duration": "silence within clips is not removed",
        "volume_norm_param": "volumes stay",
        "latent_crop_length": "clips are audio",
    }
    notes = top.ignore(unused)
    for one in sections:
        if "s3_path" in one:
            place = one.take("s3_path", str)
            raise SpecError(
                f"{join(one.key, 's3_path')} is '{place}'; expected local shards, because nothing is fetched while training. "
                f'Copy them, as `aws s3 sync {place} FOLDER` does, and write "path": "FOLDER" in place of it'
            )
    sources = [_slot("webdataset", {"path": one.take("path", str), "captions": clips.captions}) for one in sections]
    return [Source(source, clips.seconds, _AUDIO_PLUGINS) for source in sources], [*notes, _SILENCE_NOTE]


def _encoded(top: Section, sections: list[Section], clips: Clips) -> Sources:
    """Read latents that were encoded beforehand."""
    if clips.tasks is None:
        raise SpecError("dataset_type is 'pre_encoded'; expected audio_dir or wds, because training a codec needs audio")
    top.expect("latent_extension", "npy", by=READER, default="npy")
    for name in ("min_length_sec", "max_length_sec"):
        if name in top:
            raise SpecError(f"{name} is given; expected none, because {READER} takes clips of any length. Remove it, and these clips")
    common, random = top.take("latent_crop_length", int, None), top.take("random_crop", bool, False)
    sizes = {"sample_rate": clips.sample_rate, "downsampling_ratio": clips.downsampling_ratio, "channels": clips.channels}
    found, notes = [], []
    for one in sections:
        frames = one.take("latent_crop_length", int, common)
        seconds = None if frames is None else in_seconds(frames * clips.downsampling_ratio, clips.sample_rate)
        if seconds is not None and not random:
            notes.append(f"random_crop is false, but clips of '{one.key}' that are longer than {seconds:g} s are cut at a random place")
        found.append(Source(_slot("encoded", {"path": one.take("path", str), **sizes}), seconds))
    return found, notes


KINDS: Mapping[str, Callable[[Section, list[Section], Clips], Sources]] = {
    "audio_dir": _folders,
    "wds": _shards,
    "s3": _shards,
    "pre_encoded": _encoded,
}
"""`dataset_type` → function that reads its keys; "s3" is an older name for "wds"."""


def _refuse_hook(section: Section) -> None:
    """Raise SpecError if the config names a Python file for stable-audio-tools to run on every clip."""
    if HOOK not in section:
        return
    file = shown(section.take(HOOK, str))
    raise SpecError(
        f"{join(section.key, HOOK)} is {file}, which is never run here. Write prompts into NAME.json next to each clip, or "
        "into a table for the dataset manifest; to compute them or to leave out clips, write a filter (`soundomni plugins "
        "new filter NAME`)"
    )


def _check_crop(top: Section) -> None:
    """Raise SpecError if longer clips are always used from their beginning."""
    if not top.take("random_crop", bool, True):
        raise SpecError("random_crop is false; expected true, because a random part of longer clips is used here. Cut the files beforehand")


def _name(section: Section, taken: Mapping[str, Any]) -> str:
    """Return the name of a dataset: its id, without characters that names cannot have."""
    id = section.take("id", str, PurePath(section.take("path", str)).name)
    name = slug(id, default="dataset")
    if name in taken:
        raise SpecError(f"{join(section.key, 'id')} is '{id}', which is already taken; expected a different id for each dataset")
    return name


def _slot(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"class_path": name, "init_args": dict(arguments)}


def in_seconds(num_samples: int, rate: int) -> float:
    """Return a length in seconds with six decimals, rounded up, because a cut keeps only the whole samples in it."""
    return math.ceil(num_samples / rate * 1e6) / 1e6
