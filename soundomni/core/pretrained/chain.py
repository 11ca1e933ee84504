"""Chains of models: each is given what the ones before it made, and the last one makes the audio.

AudioLM (Borsos et al. 2022) is a chain of three: semantic codes, then the coarse levels of acoustic codes, then the fine ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from soundomni.core.errors import CheckpointError, SpecError, did_you_mean
from soundomni.core.inference.editing import Kept
from soundomni.core.inference.inputs import (
    as_asked,
    as_callback,
    as_count,
    as_directory,
    as_number,
    as_optional_text,
    as_overrides,
    as_texts,
    as_trained_length,
    check_prompts,
)
from soundomni.core.inference.making import Asked, Maker
from soundomni.core.inference.prepared_clips import prepared_asked
from soundomni.core.limits import check_negative
from soundomni.core.pretrained.abilities import Abilities
from soundomni.core.pretrained.chain_checks import check_stages, made_by, taken_by
from soundomni.core.pretrained.directory import Origin, front_matter, hub_name, markdown_code, markdown_text, replacing, write_description
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.pretrained.stage_paths import STAGES, is_chain, overrides_of, stage_paths
from soundomni.core.pretrained.weights import MAX_SHARD_BYTES
from soundomni.core.representation import Representation
from soundomni.core.spec.schema import ClipSpec, ModalitySpec, Spec
from soundomni.core.waveform import Audio


class LoadsModel(Protocol):
    """Loads a stage of a chain, such as `SoundOmni.from_pretrained`."""

    def __call__(self, directory: Path, *, overrides: Mapping[str, str], device: str | torch.device) -> SoundOmni:
        """Return the model in a directory, with keys of its spec changed."""
        ...


class Chain:
    """A chain of models. Each makes its first modality and passes it, by name, to the later ones.

    What is handed on is added to a clip (`aligned`), comes before it (`model.prompt`), or has the lower levels of its codes (`levels` of
    the objective), as the spec of the later stage says. It is the representation itself: nothing is decoded and encoded again.

    Args:
        stages: name → model, in order.

    Raises:
        SpecError: the stages do not fit together.
    """

    def __init__(self, stages: Mapping[str, SoundOmni]) -> None:
        check_stages(stages)
        self.stages = dict(stages)

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, *, overrides: Mapping[str, object] | None = None, device: str | torch.device = "cpu"
    ) -> Chain:
        """Load a chain.

        Args:
            directory: a spec with the section `stages`, or a directory that `save_pretrained` wrote. Each stage is a model directory;
                `soundomni.train.stages.load_chain` takes run directories too.
            overrides: keys of the stages' specs to change, such as {"stages.coarse.sampler.top_k": 0.1}.
            device: device of all models.

        Raises:
            CheckpointError: it is not a chain, or a stage is missing or damaged.
            SpecError: an override is wrong, or the stages do not fit together.
        """
        return cls.load(directory, SoundOmni.from_pretrained, overrides=overrides, device=device)

    @classmethod
    def load(
        cls,
        directory: str | Path,
        model: LoadsModel,
        *,
        overrides: Mapping[str, object] | None = None,
        device: str | torch.device = "cpu",
    ) -> Chain:
        """Load a chain as `from_pretrained` does, each stage with `model`."""
        name = as_directory("the chain", directory)
        if hub_name(name) is not None and not is_chain(name):
            raise CheckpointError(f"'{name}' is not here, and chains are not fetched from the Hub. Download it, and give its directory")
        paths = stage_paths(name)
        changes = overrides_of(paths, as_overrides(overrides))
        stages = {}
        for stage, path in paths.items():
            try:
                stages[stage] = model(path, overrides=changes[stage], device=device)
            except SpecError as error:
                raise SpecError(f"{STAGES}.{stage}: {error}") from error
        return cls(stages)

    def save_pretrained(
        self,
        directory: str | Path,
        *,
        card: str | None = None,
        license: str | None = None,
        dtype: torch.dtype | str = torch.float32,
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ) -> Path:
        """Write a directory with each stage as a model directory in it, whole or not at all; an older one is replaced.

        Arguments and errors are those of `SoundOmni.save_pretrained`. The card names the license of all stages, or each stage's own.
        """
        target = as_directory("the directory", directory)
        card, license = as_optional_text("card", card), as_optional_text("license", license)
        spec = Spec(stages={name: name for name in self.stages})
        config = {STAGES: list(self.stages), "sample_rate": self.sample_rate}
        with replacing(target, for_chain=True) as path:
            for name, stage in self.stages.items():
                (path / name).mkdir()
                stage.write(path / name, card=None, license=license, dtype=dtype, max_shard_bytes=max_shard_bytes)
            write_description(path, spec, config, self._card(license) if card is None else card)
        return Path(target)

    @property
    def sample_rate(self) -> int:
        """Sample rate in Hz of the clips that it makes."""
        return self._last.sample_rate

    @property
    def clips(self) -> ClipSpec | None:
        """How a clip to keep is prepared: as in the training of the stages if they agree; None for a clip as it is."""
        found = {stage.clips for stage in self.stages.values()}
        return found.pop() if len(found) == 1 else None

    @property
    def _last(self) -> SoundOmni:
        return list(self.stages.values())[-1]

    @property
    def _first(self) -> SoundOmni:
        return next(iter(self.stages.values()))

    def abilities(self) -> Abilities:
        """Return what the chain makes and takes: what its last stage makes, from a prompt if its first one takes a text."""
        first, last = self._first.abilities(), self._last.abilities()
        steps = [made_by(stage).num_steps for stage in self.stages.values()]
        made = replace(
            last.made[0],
            num_steps=next((count for count in reversed(steps) if count is not None), None),
            ends=any(made_by(stage).ends for stage in self.stages.values()),
            aligned=(),
            in_prompt=(),
            levels=(0, last.made[0].levels[1]),
        )
        return Abilities(made=(made,), heard=(), read=first.read, given=(), chats=False, max_tokens=None, takes_text=first.takes_text)

    def generate(
        self,
        prompts: Iterable[str] | str,
        *,
        seconds: float | Iterable[float] | None = None,
        num_steps: int | None = None,
        guidance_scale: float | Mapping[str, float] | None = None,
        negative_prompt: str | None = None,
        known: Iterable[Kept | None] | Kept | None = None,
        seeds: Iterable[int] | int = 0,
        batch_size: int = 16,
        of: str | None = None,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> list[Audio]:
        """Make a clip for each prompt.

        Args:
            prompts: what to make; empty texts for a chain whose first stage takes none.
            seconds: length of each clip, or one for all of them: the most if a stage says where a clip ends. None stands for the length of
                all clips that the stages were trained on, if `clips` gave them one.
            num_steps: steps of each stage that has a number of steps; None for those of the specs.
            guidance_scale: scale of all stages, or of some by name; None for those of the specs.
            negative_prompt: what the stages that take a text and are guided steer away from.
            known: for each prompt, the parts of a clip to keep, or None to make all of it; one `Kept` serves all prompts. Every stage
                encodes the clip itself, at the rate of its own codec.
            seeds: one per prompt, or the first of consecutive ones. Each stage draws from a seed of its own, see `stage_seed`.
            batch_size: clips made at once.
            of: the modality that the last stage makes; None stands for it.
            on_step: called after each step of each stage.

        Raises:
            SpecError: a number is out of its range, a text is given and the first stage takes none, or a stage does not exist.
            DataError: a prompt and its clip are too long for a stage, or an argument is of a wrong kind.
        """
        self.made_spec(of)
        makers = self._makers(num_steps, guidance_scale, negative_prompt)
        asked = self._asked(prompts, seconds=seconds, seeds=seeds, known=known)
        size, after_step = as_count("batch_size", batch_size), as_callback("on_step", on_step)
        *before, last = makers
        handed = self._run(before, makers, asked, size, after_step)
        batches = makers[last].batches(self._asked_of(last, asked, handed), size=size, on_step=after_step)
        return [clip for batch, lengths in batches for clip in makers[last].decoded(batch, lengths)]

    def make(
        self,
        prompts: Iterable[str] | str,
        *,
        seconds: float | Iterable[float] | None = None,
        num_steps: int | None = None,
        guidance_scale: float | Mapping[str, float] | None = None,
        negative_prompt: str | None = None,
        known: Iterable[Kept | None] | Kept | None = None,
        seeds: Iterable[int] | int = 0,
        batch_size: int = 16,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> dict[str, list[Representation]]:
        """Return what each stage makes for each prompt, by the name of the stage, without decoding anything.

        Arguments and errors are those of `generate`.
        """
        makers = self._makers(num_steps, guidance_scale, negative_prompt)
        asked = self._asked(prompts, seconds=seconds, seeds=seeds, known=known)
        return self._run(list(makers), makers, asked, as_count("batch_size", batch_size), as_callback("on_step", on_step))

    @property
    def takes_text(self) -> bool:
        """Whether the prompt of the first stage has a text that says what to make."""
        return self._first.takes_text

    def check_prompts(self, prompts: Iterable[str] | str) -> None:
        """Raise SpecError for a text if the prompt of the first stage has none."""
        of = f"the first stage of this chain, '{next(iter(self.stages))}',"
        check_prompts(as_texts("prompts", prompts), takes_text=self.takes_text, of=of)

    def check_request(self, prompt: str, seconds: float, *, of: str | None = None) -> None:
        """Raise SpecError or DataError if the first stage cannot make a clip of this length from this prompt."""
        self.made_spec(of)
        (asked,) = self._asked(prompt, seconds=seconds, seeds=0, known=None)
        self._first.check_request(asked.prompt, asked.seconds)

    def made_spec(self, of: str | None = None) -> ModalitySpec:
        """Return the part of the last stage's spec about what it makes. Raise SpecError if `of` names another modality."""
        made = self._last.model.made().name
        if of not in (None, made):
            raise SpecError(f"the chain makes '{made}', not '{of}'.{did_you_mean(str(of), [made])}")
        return self._last.made_spec()

    def _asked(self, prompts: object, *, seconds: object, seeds: object, known: object) -> list[Asked]:
        """Return the clips that are asked for. Raise SpecError for a text that the first stage does not take."""
        asked = prepared_asked(as_asked(prompts, seconds=as_trained_length(seconds, self.clips), seeds=seeds, known=known), self.clips)
        self.check_prompts([one.prompt for one in asked])
        return asked

    def _makers(
        self, num_steps: int | None, guidance_scale: float | Mapping[str, float] | None, negative_prompt: str | None
    ) -> dict[str, Maker]:
        """Return what makes the clips of each stage."""
        scales = self._scales(guidance_scale)
        if num_steps is not None and all(made_by(stage).num_steps is None for stage in self.stages.values()):
            raise SpecError(f"num_steps is {num_steps}, but all stages of this chain make clips token after token. Leave it out")
        avoiding = [name for name, stage in self.stages.items() if stage.takes_text and scales[name] != 1.0]
        if negative_prompt and not avoiding:
            check_negative(negative_prompt, 1.0)
        return {
            name: stage.maker(
                num_steps=None if made_by(stage).num_steps is None else num_steps,
                guidance_scale=scales[name],
                negative_prompt=negative_prompt if name in avoiding else None,
                keeps_all=True,
            )
            for name, stage in self.stages.items()
        }

    def _scales(self, given: float | Mapping[str, float] | None) -> dict[str, float]:
        """Return the guidance scale of each stage. Raise SpecError for a name that no stage has."""
        own = {name: stage.made_spec().guidance.scale for name, stage in self.stages.items()}
        if given is None:
            return own
        if not isinstance(given, Mapping):
            return dict.fromkeys(own, as_number("guidance scale", given))
        for name in given:
            if name not in own:
                near = did_you_mean(str(name), own)
                raise SpecError(f"guidance_scale names the stage '{name}'; expected one of {', '.join(own)}.{near}")
        return own | {name: as_number(f"guidance scale of '{name}'", scale) for name, scale in given.items()}

    def _run(
        self,
        names: Sequence[str],
        makers: Mapping[str, Maker],
        asked: Sequence[Asked],
        size: int,
        on_step: Callable[[int, Tensor], None] | None,
    ) -> dict[str, list[Representation]]:
        """Return what the first stages, `names`, make for each clip."""
        made: dict[str, list[Representation]] = {}
        for name in names:
            batches = makers[name].batches(self._asked_of(name, asked, made), size=size, on_step=on_step)
            made[name] = [clip for batch, lengths in batches for clip in makers[name].clips(batch, lengths)]
        return made

    def _asked_of(self, name: str, asked: Sequence[Asked], made: Mapping[str, Sequence[Representation]]) -> list[Asked]:
        """Return what a stage is asked for, given what the stages before it made: of a modality that several of them made, the last one."""
        stage, index = self.stages[name], list(self.stages).index(name)
        latest = {made_by(self.stages[before]).name: clips for before, clips in made.items()}
        handed = {modality: latest[modality] for modality in taken_by(stage) if modality in latest}
        lasting = made_by(stage).same_length  # the others come before the clip, and do not say how long it is

        def of(i: int, one: Asked) -> Asked:
            given = {modality: clips[i] for modality, clips in handed.items()}
            lengths = [clip.spec.seconds(clip.frame_counts[0]) for modality, clip in given.items() if modality in lasting]
            seconds = min([one.seconds, *lengths])
            kept = one.kept if one.kept is None or seconds == one.seconds else _cut(one.kept, seconds)
            return replace(one, seconds=seconds, seed=stage_seed(one.seed, index), kept=kept, given=given)

        return [of(i, one) for i, one in enumerate(asked)]

    def _card(self, license: str | None) -> str:
        """Return the default card: what each stage makes, and where its weights come from."""
        licenses = {stage.origin.license if license is None else license for stage in self.stages.values()}
        common = Origin(license=licenses.pop() if len(licenses) == 1 else None)
        parts = "\n".join(f"- {name}: makes `{made_by(stage).name}`{_origin(stage, license)}" for name, stage in self.stages.items())
        return (
            f"---\n{front_matter(common, pipeline_tag='text-to-audio')}---\n\n# A chain of SoundOmni models\n\n{parts}\n\n"
            '```python\nfrom soundomni import Chain\n\nchain = Chain.from_pretrained(".")\n'
            'clip = chain.generate("...", seconds=1.0)[0]\n```\n'
        )


def stage_seed(seed: int, index: int) -> int:
    """Return the seed of stage `index` for a clip, so that stages do not draw the same numbers; the first one has the clip's own.

    >>> stage_seed(7, 0), stage_seed(7, 1) == stage_seed(7, 2)
    (7, False)
    """
    if index == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:8], "big") >> 1


def _origin(stage: SoundOmni, license: str | None) -> str:
    """Return the end of a card's line about a stage: the source and the license of its weights, if they are known."""
    source, own = stage.origin.source, stage.origin.license if license is None else license
    parts = [] if source is None else [f"weights from {markdown_code(source)}"]
    parts += [] if own is None else [f"license {markdown_text(own)}"]
    return "".join(f", {part}" for part in parts)


def _cut(kept: Kept, seconds: float) -> Kept | None:
    """Return the parts of a clip to keep within its first `seconds`; None if there are none."""
    spans = [(start, min(end, seconds)) for start, end in kept.spans if start < seconds]
    return replace(kept, spans=spans) if spans else None
