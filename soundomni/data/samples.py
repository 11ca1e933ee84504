"""Writes clips as samples, in two steps: `plan` from the listing, `fill` once the clip has been read.

Token counts only depend on the specs of codec and encoder, so every rank packs the whole stream without reading audio.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import numpy as np

from soundomni.core.errors import DataError, SpecError, UnreadableAudioError, did_you_mean, listed
from soundomni.core.interfaces import Encoding, Item, Skip
from soundomni.core.representation import RepresentationSpec
from soundomni.core.sequence import TEXT, Attend, Role, Sample, Segment
from soundomni.core.spec.schema import DropoutSpec, SegmentTemplate
from soundomni.core.writing.chat import Answer, taught_chat
from soundomni.core.writing.segments import CodecModality, HeardModality, SegmentWriter
from soundomni.core.writing.tasks import PROMPTED, Task, length_texts
from soundomni.data.audio import fit_announced, match_channels, resample, resampled_length
from soundomni.data.data_section import check_dropout


@dataclass(frozen=True)
class Crop:
    """The part of a clip that is used: samples `[offset, offset + num_samples)` of `total`, at the file's `rate`."""

    offset: int
    num_samples: int
    total: int
    rate: int


@dataclass(frozen=True)
class PlannedSample:
    """A sample without its waveforms.

    Args:
        sample: the sample, without the conditions that dropout removed.
        crop: the part of the clip that the waveforms will come from.
        full_length: number of tokens with all conditions. Limits use it, so dropout does not decide whether an item is
            used.
    """

    sample: Sample
    crop: Crop
    full_length: int

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.sample.length


class SampleWriter:
    """Writes the samples of one model.

    Args:
        writer: writes the model's segments.
        dropout: how often conditions of a target are dropped.
    """

    def __init__(self, writer: SegmentWriter, *, dropout: DropoutSpec | None = None) -> None:
        self._writer = writer
        self._dropout = dropout or DropoutSpec()
        check_dropout(self._dropout)

    @property
    def feature_dims(self) -> dict[str, int]:
        """Feature dimensions of each modality whose clips the model hears, by its name."""
        heard = (one for one in self._writer.modalities.values() if isinstance(one, HeardModality))
        return {one.name: one.spec.feature_dim for one in heard if one.spec.source == "waveform"}

    def check(self, task: Task) -> None:
        """Raise SpecError if the model cannot do this task."""
        why, hearing = self._writer.hears_nothing, [template.of for template in task.templates if template.audio == "features"]
        if why is not None and (None in hearing or (hearing and not self.feature_dims)):
            raise SpecError(f"task '{task.name}' understands audio, but {why}. Set model.encoder, or leave out the task")
        templates = self._templates(task)
        for i, template in enumerate(templates):
            with _naming(task):
                _check_condition(template, templates[i:], self._writer)
                if template.audio == "context":
                    self._writer.check_context()
                if template.audio is not None:
                    _check_gap(template, self._writer.of(template))
                elif template.of is not None:
                    self._writer.reads(template.of)
                else:
                    self._writer.check_text()
        self._check_dropout()
        if self._in_chat(task) and task.uses("context"):
            raise SpecError(
                f"task '{task.name}' puts clean latents into a chat, but model.chat '{self._writer.chat}' does not "
                "support them. Leave out the task"
            )

    def check_encoded(self, task: Task, encoding: Encoding, *, name: str) -> None:
        """Raise SpecError if the task cannot use the encoded clips of dataset `name`: it hears them, or another codec made them."""
        for template in self._templates(task):
            if template.audio is None:
                continue
            modality = self._writer.of(template)
            if isinstance(modality, HeardModality):
                raise SpecError(
                    f"task '{task.name}' hears clips as audio, but those of data.datasets.{name} are encoded. Give it a dataset of "
                    "audio, or leave out the task"
                )
            if modality.spec != encoding.spec:
                raise SpecError(
                    f"the clips of data.datasets.{name} were encoded by {encoding.codec}: {_differs(encoding.spec, modality.spec)} in "
                    f"the codec of '{modality.name}'. Set that codec, or encode the clips again"
                )
            if template.audio == "target" and modality.aligned:
                raise SpecError(
                    f"task '{task.name}' adds clips of '{modality.aligned[0]}', but those of data.datasets.{name} are encoded by "
                    f"{encoding.codec} only. Give it a dataset of audio"
                )

    def _check_dropout(self) -> None:
        """Raise SpecError for a share of dropout that names a modality which the model does not have."""
        known = [TEXT, *self._writer.modalities]
        given = {f"modalities.{name}": [name] for name in self._dropout.modalities}
        given |= {f"together.{names}": names.split("+") for names in self._dropout.together}
        for key, names in given.items():
            for name in names:
                if name not in known:
                    near = did_you_mean(name, known)
                    raise SpecError(f"data.condition_dropout.{key}: the model has no modality '{name}'; it has {listed(known)}.{near}")

    def plan(
        self, item: Item, task: Task, *, seed: int, key: str, max_seconds: float | None = None, prepared: bool = False
    ) -> PlannedSample | Skip:
        """Write `item` for a suitable task, without its waveforms.

        Only `seed` decides the caption or question, the cut of a clip longer than `max_seconds`, the part of a target
        to keep, and the dropout of conditions. Return a Skip if the clip is too long to be understood, or has too many
        frames; `prepared` tells it that `clips.seconds` decides how long the clip is.
        """
        draws = np.random.default_rng(seed)
        caption_draw, question_draw, crop_draw = draws.random(3)
        crop = self._crop(item, task, crop_draw, max_seconds, prepared)
        if isinstance(crop, Skip):
            return replace(crop, key=key)
        seconds = length_texts(crop.num_samples / crop.rate, start=crop.offset / crop.rate, total=crop.total / crop.rate)
        texts = {"caption": _choose(item.captions, caption_draw), **seconds}
        if item.questions:
            texts["question"], texts["answer"] = item.questions[int(question_draw * len(item.questions))]
        if self._in_chat(task):
            chat = taught_chat(self._writer.tokenizer, [self._chat_part(template, crop, texts) for template in task.templates])
            return PlannedSample(Sample(key=key, segments=chat, seed=seed), crop, sum(segment.length for segment in chat))
        templates = self._templates(task)
        targets = [i for i, template in enumerate(templates) if template.audio == "target"]
        together = self._left_out_together(seed)
        segments: list[Segment] = []
        full_length = 0
        for i, template in enumerate(templates):
            share_draw, place_draw, dropout_draw = draws.random(3)  # for every segment: no choice shifts another
            try:
                segment = self._segment(template, crop, texts, share_draw, place_draw)
            except DataError as error:
                return Skip(key, str(error), "unsuitable", f"with a text that encoder '{template.of}' does not read, for {task.name}")
            if template.audio == "target":
                segment = self._with_aligned(segment, crop, seed, together)
            full_length += segment.length
            is_condition = bool(targets) and i < targets[-1] and i not in targets and not template.loss
            left_out = dropout_draw < self._dropout_share(template) or segment.modality in together
            if not (is_condition and left_out):
                segments.append(segment)
            elif self._writer.stays(segment):
                segments.append(replace(segment, attended=False))
        return PlannedSample(Sample(key=key, segments=tuple(segments), seed=seed), crop, full_length)

    def fill(self, planned: PlannedSample, waveform: np.ndarray, rate: int, *, cut: bool = False) -> Sample:
        """Attach the clip, float32 `[C, S]` at `rate`: cut, resampled and with the channels that each segment needs.

        With `cut`, `waveform` is only the part of the clip given by `planned.crop`.

        Raise UnreadableAudioError if the clip has another rate or length (see `fit_announced`) than planned, or
        channels that cannot be converted.
        """
        crop, key = planned.crop, planned.sample.key
        if rate != crop.rate:
            raise UnreadableAudioError(f"cannot use '{key}': it decodes at {rate} Hz, but {crop.rate} Hz were announced")
        part = fit_announced(waveform, crop.num_samples if cut else crop.total, rate, name=key)
        if not cut and crop.num_samples < crop.total:
            part = part[:, crop.offset : crop.offset + crop.num_samples].copy()  # a view would keep the whole file in memory
        made: dict[tuple[int, int], np.ndarray] = {}

        def filled(segment: Segment) -> Segment:
            if segment.role == Role.TEXT or segment.waveform is not None:  # what an encoder reads is known from the listing
                return segment
            modality = self._writer.modalities[segment.modality]
            need = (modality.sample_rate, modality.channels)
            if need not in made:
                made[need] = converted(part, rate, *need, key=key)
            return replace(segment, waveform=made[need], aligned=tuple(map(filled, segment.aligned)))

        return replace(planned.sample, segments=tuple(map(filled, planned.sample.segments)))

    def fill_encoded(self, planned: PlannedSample, values: np.ndarray) -> Sample:
        """Attach the clip as a codec encoded it, `[D, T]` or `[K, T]`: the frames of `planned.crop`.

        Raise UnreadableAudioError if there is another number of frames than planned.
        """
        segments: list[Segment] = []
        for segment in planned.sample.segments:
            if segment.role == Role.TEXT or segment.waveform is not None:
                segments.append(segment)
                continue
            if segment.num_frames != values.shape[1]:
                found = f"it has {values.shape[1]} frames, but {segment.num_frames} were planned"
                raise UnreadableAudioError(f"cannot use '{planned.sample.key}': {found}")
            segments.append(segment.with_values(values))
        return replace(planned.sample, segments=tuple(segments))

    def _crop(self, item: Item, task: Task, draw: float, max_seconds: float | None, prepared: bool) -> Crop | Skip:
        used = self._used(task)
        limits = [max_seconds, *(one.spec.max_seconds for one in used if isinstance(one, HeardModality))]
        seconds = min((limit for limit in limits if limit is not None), default=None)
        longest = item.num_samples if seconds is None else max(1, int(seconds * item.sample_rate))
        # a caption of the whole clip may not fit a part of it
        if item.num_samples > longest and not task.uses("target"):
            length = item.num_samples / item.sample_rate
            way_out = "Cut the file into shorter ones, each with its own caption"
            if prepared:
                way_out = f"Set clips.seconds of its dataset to {seconds:g}"
            elif seconds == max_seconds:
                way_out += (
                    f", raise max_seconds of its dataset, or add the folder as a second dataset for '{task.name}' with a higher max_seconds"
                )
            reason = f"it lasts {length:.2f} s, but task '{task.name}' accepts at most {seconds:g} s. {way_out}"
            return Skip(item.key, reason, "unsuitable", f"longer than {seconds:g} s for {task.name}")
        num_samples = min(item.num_samples, longest)
        crop = Crop(int(draw * (item.num_samples - num_samples + 1)), num_samples, item.num_samples, item.sample_rate)
        for one in used:
            most = one.max_tokens if isinstance(one, CodecModality) else None
            if isinstance(one, CodecModality) and most is not None and one.tokens_of(_samples_of(crop, one)) > most:
                way_out = "a lower clips.seconds for" if prepared else "max_seconds of"
                reason = (
                    f"{num_samples / crop.rate:.2f} s of it are used, and the {one.name} connector takes at most "
                    f"{one.seconds_within(most):g} s. Set {way_out} its dataset"
                    f"{'' if prepared else ', which cuts longer clips for generation'}"
                )
                group = f"longer than the {one.seconds_within(most):g} s of the {one.name} connector, for {task.name}"
                return Skip(item.key, reason, "unsuitable", group)
        return crop

    def _used(self, task: Task) -> list[HeardModality | CodecModality]:
        """Return the modalities of the clips of a task, those that are added to others included."""
        used = [self._writer.of(template) for template in task.templates if template.audio is not None]
        made = [self._writer.made(template.of) for template in task.templates if template.audio == "target"]
        return [*used, *(self._writer.modalities[name] for one in made for name in one.aligned)]

    def _with_aligned(self, target: Segment, crop: Crop, seed: int, left_out: Collection[str]) -> Segment:
        """Add the clips of other modalities to a target, except those that dropout leaves out; its draws shift no others."""
        added = []
        for i, name in enumerate(self._writer.made(target.of).aligned):
            modality = self._writer.modalities[name]
            share = self._dropout.features if isinstance(modality, HeardModality) else self._dropout.latent
            draw = np.random.default_rng([seed, i, 1]).random()
            if draw >= self._dropout.modalities.get(name, share) and name not in left_out:
                added.append(self._writer.added(_samples_of(crop, modality), of=name, to=target))
        return replace(target, aligned=tuple(added))

    def _in_chat(self, task: Task) -> bool:
        """Return whether a task uses the chat template: it only makes text, as `describe` and `chat` do."""
        return self._writer.chat != "none" and not task.uses("target")

    def _chat_part(self, template: SegmentTemplate, crop: Crop, texts: dict[str, str]) -> str | Segment | Answer:
        if template.text is None:
            return self._writer.features(_samples_of(crop, self._writer.heard(template.of)), of=template.of)
        text = template.text.format(**texts)
        return Answer(text) if template.loss else text

    def _templates(self, task: Task) -> tuple[SegmentTemplate, ...]:
        """Return the templates of a task, those of a built-in one with the model's prompt."""
        if task.name not in PROMPTED:
            return task.templates
        return (*self._writer.prompt, *(template for template in task.templates if template.audio is not None))

    def _dropout_share(self, template: SegmentTemplate) -> float:
        if template.text is not None and template.of is None:
            return self._dropout.modalities.get(TEXT, self._dropout.text)
        if template.text is not None or template.audio == "features":
            name, share = template.of or self._writer.heard().name, self._dropout.features
        else:
            name, share = self._writer.given(template.of).name, self._dropout.latent
        return self._dropout.modalities.get(name, share)

    def _left_out_together(self, seed: int) -> set[str]:
        """Return the modalities of the groups that are left out as a whole, drawn from the sample's seed."""
        left_out: set[str] = set()
        for i, (names, share) in enumerate(self._dropout.together.items()):
            if np.random.default_rng([seed, i]).random() < share:
                left_out |= set(names.split("+"))
        return left_out

    def _segment(self, template: SegmentTemplate, crop: Crop, texts: dict[str, str], share_draw: float, place_draw: float) -> Segment:
        if template.audio is None:
            return self._writer.segment(template, texts=texts)
        modality = self._writer.of(template)
        num_samples, made = _samples_of(crop, modality), None
        if template.audio == "target" and isinstance(modality, CodecModality):
            made = _made(template, modality.spec.num_frames(num_samples), share_draw, place_draw)
        return self._writer.segment(template, texts=texts, num_samples=num_samples, made=made)


def encoded_part(crop: Crop, spec: RepresentationSpec) -> tuple[int, int]:
    """Return the frames of an encoded clip that a crop stands for: index of the first, and their number.

    They are as many as encoding the crop would give, with the extra frames of the codec, and begin with the frame in which the
    crop begins.
    """
    total, count = (spec.num_frames(resampled_length(n, crop.rate, spec.sample_rate)) for n in (crop.total, crop.num_samples))
    first = crop.offset * spec.sample_rate // (crop.rate * spec.downsampling_ratio)
    return min(first, total - count), count


def _differs(made: RepresentationSpec, wanted: RepresentationSpec) -> str:
    """Return the first difference between the spec of encoded clips and that of a codec."""
    name = next(field.name for field in fields(made) if getattr(made, field.name) != getattr(wanted, field.name))
    return f"{name} was {getattr(made, name)}, but it is {getattr(wanted, name)}"


def _check_gap(template: SegmentTemplate, modality: HeardModality | CodecModality) -> None:
    """Raise SpecError for a gap in a clip that is made from beginning to end, or known frames that the model cannot see."""
    if (template.gap or template.known) and isinstance(modality, CodecModality) and not modality.keeps:
        raise SpecError(
            "it keeps frames of its target, but the backbone cannot tell them from noisy ones. Set "
            f"model.modalities.{modality.name}.objective.shows_known to true, or remove the task"
        )
    if template.gap is not None and isinstance(modality, CodecModality) and modality.target_attend == Attend.CAUSAL:
        raise SpecError(
            f"it leaves a gap in its target, but clips of '{modality.name}' are made from beginning to end. Use `known` in place of `gap`, "
            "or leave out the task"
        )


def _check_condition(template: SegmentTemplate, after: Sequence[SegmentTemplate], writer: SegmentWriter) -> None:
    """Raise SpecError for a clip that only reaches clips that are made, if none is made after it."""
    if template.audio != "features" or any(other.audio == "target" for other in after):
        return
    if not (heard := writer.heard(template.of)).placed:
        raise SpecError(
            f"it hears '{heard.name}', which only conditions clips that are made after it. Set model.modalities.{heard.name}.enters to "
            "prefix, or leave out the task"
        )


def _samples_of(crop: Crop, modality: HeardModality | CodecModality) -> int:
    """Return the number of samples of a clip at the rate of a modality."""
    return resampled_length(crop.num_samples, crop.rate, modality.sample_rate)


def _made(template: SegmentTemplate, frames: int, share_draw: float, place_draw: float) -> tuple[int, int]:
    """Return the frames of a target to generate, (first, end)."""
    least, most = template.gap or template.known or (0.0, 0.0)
    count = int((least + (most - least) * share_draw) * frames)
    if template.gap is None:
        return count, frames
    width = max(1, count)
    first = int(place_draw * (frames - width + 1))
    return first, first + width


@contextmanager
def _naming(task: Task) -> Iterator[None]:
    try:
        yield
    except SpecError as error:
        raise SpecError(f"task '{task.name}': {error}") from error


def _choose(texts: tuple[str, ...], draw: float) -> str:
    return texts[int(draw * len(texts))] if texts else ""


def converted(part: np.ndarray, from_rate: int, to_rate: int, channels: int, *, key: str) -> np.ndarray:
    """Return `[channels, S]` at `to_rate`, resampling as few channels as possible. Raise UnreadableAudioError."""
    try:
        if channels < part.shape[0]:
            return resample(match_channels(part, channels), from_rate, to_rate)
        return match_channels(resample(part, from_rate, to_rate), channels)
    except DataError as error:
        raise UnreadableAudioError(f"cannot use '{key}': {error}") from error
