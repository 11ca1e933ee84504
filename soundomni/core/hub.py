"""A trained model and how it is used: load, save, generate, describe, reconstruct.

A model directory holds spec.yaml, config.json, model.safetensors, tokenizer.json and README.md (the model card). Nothing in it is
ever unpickled, and its spec may only name registered plugins.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from soundomni.core.assembly import build_model, build_sampler
from soundomni.core.errors import CheckpointError, DataError, SpecError
from soundomni.core.generation import (
    AudioRequest,
    Context,
    features_context,
    sample_audio,
    sample_text,
    text_context,
)
from soundomni.core.model import UnifiedModel
from soundomni.core.schema import Slot, Spec
from soundomni.core.sequence import Attend, PositionRule
from soundomni.core.spec import dump_spec, load_spec
from soundomni.core.tokenizer import TextTokenizer
from soundomni.core.waveform import fit_length, match_channels, resample

T = TypeVar("T")

SPEC_FILE, CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "spec.yaml", "config.json", "model.safetensors", "README.md"


@dataclass(frozen=True)
class Audio:
    """A clip: float32 waveform `[C, S]` and its sample rate in Hz."""

    waveform: np.ndarray
    sample_rate: int


class SoundOmni:
    """A model ready for use.

    Args:
        model: the network.
        spec: what it was built from.
        tokenizer: its text tokens.
    """

    def __init__(self, model: UnifiedModel, spec: Spec, tokenizer: TextTokenizer) -> None:
        self.model = model
        self.spec = spec
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, directory: str | Path, *, overrides: Mapping[str, str] | None = None, device: str = "cpu") -> SoundOmni:
        """Loads a model directory. The weights must fit the spec exactly.

        Args:
            directory: a model directory.
            overrides: dotted spec keys to change, such as {"sampler": "heun"}.
            device: where to put it.

        Raises:
            CheckpointError: a file is missing or damaged, or the weights are of another model.
            PluginError: the spec names something that is not a registered plugin.
        """
        path = Path(directory)
        for name in (SPEC_FILE, WEIGHTS_FILE):
            if not (path / name).is_file():
                raise CheckpointError(f"'{path}' is not a model directory: it has no {name}; `soundomni export RUN` makes one")
        spec = load_spec([path / SPEC_FILE], list((overrides or {}).items()))
        tokenizer = TextTokenizer.load(path)
        model = build_model(spec.model, tokenizer=tokenizer)
        load_weights(model, path / WEIGHTS_FILE)
        return cls(model.to(device), spec, tokenizer)

    def save_pretrained(self, directory: str | Path, *, card: str | None = None) -> Path:
        """Writes a model directory. Raises CheckpointError when it cannot be written."""
        path = Path(directory)
        state = {key: value.detach().contiguous().cpu() for key, value in self.model.state_dict().items()}
        parameters = sum(p.numel() for p in self.model.parameters())
        config = {"format": 1, "parameters": parameters, "sample_rate": self.sample_rate, "plugins": _plugins(self.spec)}
        try:
            path.mkdir(parents=True, exist_ok=True)
            save_file(state, path / f"{WEIGHTS_FILE}.part", metadata={"format": "pt"})
            (path / f"{WEIGHTS_FILE}.part").replace(path / WEIGHTS_FILE)
            (path / SPEC_FILE).write_text(dump_spec(_portable(self.spec)), encoding="utf-8")
            (path / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            (path / CARD_FILE).write_text(card or _card(self.spec, parameters), encoding="utf-8")
            self.tokenizer.save(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot write the model directory '{path}': {error}") from error
        return path

    @property
    def sample_rate(self) -> int:
        """Of what is generated, in Hz."""
        return self.model.codec.spec.sample_rate

    def generate(
        self,
        prompts: Sequence[str],
        *,
        seconds: float,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        seeds: Sequence[int] | int = 0,
        batch_size: int = 16,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> list[Audio]:
        """Makes a clip of `seconds` for each prompt.

        Args:
            prompts: what to make.
            seconds: length of each clip.
            num_steps, guidance_scale: of the sampler; None leaves them to the spec.
            negative_prompt: what to steer away from; without it, guidance steers away from no prompt at all.
            seeds: one per prompt, or the first of consecutive ones. What a clip becomes depends on its seed and prompt alone.
            batch_size: clips made at once.
            on_step: called with the index of a sampling step and the values so far.

        Raises:
            SpecError: a number is out of its range.
        """
        if not seconds > 0:
            raise SpecError(f"seconds must be above 0, {seconds} was given")
        if batch_size < 1:
            raise SpecError(f"batch size must be at least 1, {batch_size} was given")
        seeds = range(seeds, seeds + len(prompts)) if isinstance(seeds, int) else seeds
        spec = self.model.codec.spec
        num_samples = max(1, round(seconds * spec.sample_rate))
        negative = text_context(self.tokenizer, negative_prompt) if negative_prompt else ()
        frames = spec.num_frames(num_samples)
        requests = [
            AudioRequest(context=text_context(self.tokenizer, prompt), negative=negative, num_frames=frames, seed=seed)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        given = self.spec.guidance
        guidance = given if guidance_scale is None else replace(given, scale=guidance_scale)
        sampler = build_sampler(self.spec.sampler, num_steps=num_steps)
        clips: list[Audio] = []
        for batch in _batches(requests, batch_size):
            made = sample_audio(
                self.model,
                batch,
                sampler=sampler,
                guidance=guidance,
                tokenizer=self.tokenizer,
                rule=_rule(self.spec.model.latent_positions),
                on_step=on_step,
            )
            waveform = self.model.decode(made).float().cpu().numpy()
            clips += [Audio(fit_length(w, num_samples), spec.sample_rate) for w in waveform]
        return clips

    def describe(self, clips: Sequence[Audio], *, question: str | None = None, max_new_tokens: int = 64, batch_size: int = 16) -> list[str]:
        """Says what is heard in each clip, or answers a question about it. Any rate and channel count.

        Raises:
            SpecError: the model cannot describe.
            DataError: a clip is too long for the encoder.
        """
        contexts = [self._listen(clip, question) for clip in clips]
        texts: list[str] = []
        for batch in _batches(contexts, batch_size):
            ids = sample_text(self.model, batch, tokenizer=self.tokenizer, max_new_tokens=max_new_tokens)
            texts += [self.tokenizer.decode(one) for one in ids]
        return texts

    def _listen(self, clip: Audio, question: str | None) -> Context:
        encoder = self.model.encoder
        if encoder is None:
            raise SpecError("this model only generates: its spec has no encoder, so it cannot describe")
        waveform = resample(match_channels(clip.waveform, 1), clip.sample_rate, encoder.spec.sample_rate)
        limit = encoder.spec.max_seconds
        if limit is not None and waveform.shape[1] > limit * encoder.spec.sample_rate:
            seconds = waveform.shape[1] / encoder.spec.sample_rate
            raise DataError(f"the clip lasts {seconds:.1f} s; the encoder takes at most {limit:g} s: cut it first")
        heard = features_context(
            self.model,
            waveform,
            tokenizer=self.tokenizer,
            attend=Attend.FULL if self.spec.model.feature_attend == "full" else Attend.CAUSAL,
            rule=_rule(self.spec.model.feature_positions),
        )
        return heard + (text_context(self.tokenizer, question) if question else ())

    @torch.no_grad()
    def reconstruct(self, clip: Audio) -> Audio:
        """Encodes and decodes a clip with the codec; the result has the codec's rate and channels and the clip's length."""
        spec = self.model.codec.spec
        waveform = resample(match_channels(clip.waveform, spec.channels), clip.sample_rate, spec.sample_rate)
        batch = torch.from_numpy(waveform)[None].to(self.model.device)
        lengths = torch.tensor([waveform.shape[1]], device=batch.device)
        out = self.model.codec.decode(self.model.codec.encode(batch, lengths))[0].float().cpu().numpy()
        return Audio(fit_length(out, waveform.shape[1]), spec.sample_rate)


def load_weights(model: UnifiedModel, path: Path) -> None:
    """Loads a safetensors file into a model whose tensors must have just these names and shapes. Raises CheckpointError."""
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path}' cannot be read as safetensors: {error}") from error
    expected = model.state_dict()
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    shapes = [k for k in expected.keys() & state.keys() if expected[k].shape != state[k].shape]
    if missing or unexpected or shapes:
        first = (missing + unexpected + sorted(shapes))[0]
        raise CheckpointError(
            f"'{path}' holds another model: {len(missing)} tensors missing, {len(unexpected)} unexpected, "
            f"{len(shapes)} of another shape (first: {first})"
        )
    model.load_state_dict(state)


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def _rule(name: str) -> PositionRule:
    return PositionRule.SHARED if name == "shared" else PositionRule.ADVANCE


def _portable(spec: Spec) -> Spec:
    """Leaves out what a model directory has no use for: the run, and the file that the codec started from."""
    codec = spec.model.codec
    init_args = {name: value for name, value in codec.init_args.items() if name != "weights"}
    return replace(spec, model=replace(spec.model, codec=replace(codec, init_args=init_args)), data=None, train=None)


def _plugins(spec: Spec) -> dict[str, str]:
    slots: dict[str, Slot | None] = {
        "backbone": spec.model.backbone,
        "router": spec.model.router,
        "codec": spec.model.codec,
        "encoder": spec.model.encoder,
        "objective": spec.model.objective,
        "sampler": spec.sampler,
    }
    return {kind: slot.class_path for kind, slot in slots.items() if slot is not None}


def _card(spec: Spec, parameters: int) -> str:
    plugins = "\n".join(f"- {kind}: `{name}`" for kind, name in _plugins(spec).items())
    return (
        "---\nlibrary_name: soundomni\npipeline_tag: text-to-audio\n---\n\n"
        f"# A SoundOmni model\n\n{parameters:,} parameters, assembled from:\n\n{plugins}\n\n"
        '```python\nfrom soundomni import SoundOmni\n\nmodel = SoundOmni.from_pretrained(".")\n'
        'clip = model.generate(["..."], seconds=1.0)[0]\n```\n'
    )
