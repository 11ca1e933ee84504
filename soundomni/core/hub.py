"""A trained model and how it is used: load, save, generate, describe, reconstruct.

Nothing in a model directory (see model_directory.py) is ever unpickled, and its spec may only name registered plugins.

Shape letters: C audio channels, S samples, D latent dimensions, T frames.
"""

from __future__ import annotations

import json
from bisect import bisect_right
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
from soundomni.core.editing import known_frames
from soundomni.core.errors import CheckpointError, DataError, SpecError
from soundomni.core.generation import (
    AudioRequest,
    Context,
    context_length,
    features_context,
    sample_audio,
    sample_text,
    text_context,
)
from soundomni.core.limits import (
    MOST_NEW_TOKENS,
    MOST_STEPS,
    check_count,
    check_device,
    check_negative,
    check_scale,
    check_seconds,
    check_seed,
    check_strength,
)
from soundomni.core.model import UnifiedModel
from soundomni.core.model_directory import (
    CARD_FILE,
    CONFIG_FILE,
    FORMAT,
    WEIGHTS_FILE,
    check_portable,
    find_model,
    plugins,
    portable,
    read_max_tokens,
    replacing,
    trained_max_tokens,
)
from soundomni.core.model_directory import SPEC_FILE as SPEC_FILE
from soundomni.core.model_directory import (
    card as model_card,
)
from soundomni.core.schema import Spec
from soundomni.core.sequence import Attend, PositionRule
from soundomni.core.spec import dump_spec, load_spec
from soundomni.core.tokenizer import TextTokenizer
from soundomni.core.waveform import fit_length, match_channels, resample

T = TypeVar("T")

BOUNDARIES = 2
"""Tokens around the frames of a clip."""


@dataclass(frozen=True)
class Audio:
    """A clip: float32 waveform `[C, S]` and its sample rate in Hz."""

    waveform: np.ndarray
    sample_rate: int


@dataclass(frozen=True)
class Kept:
    """What is kept of a clip while the rest is made: its beginning to continue it, all but a gap to fill that.

    Args:
        clip: any rate and channel count; its time 0 is that of the clip to make.
        spans: (from, to) in seconds. The frames of the codec that lie whole within them are given to the model and come back as
            the codec reconstructs them.
    """

    clip: Audio
    spans: Sequence[tuple[float, float]]


class SoundOmni:
    """A model ready for use.

    Args:
        model: the network.
        spec: what it was built from.
        tokenizer: its text tokens.
        max_tokens: the longest sample it was trained with; longer ones are refused. None for no limit.
        trust_class_paths: let the spec's sampler be named by import path.
    """

    def __init__(
        self, model: UnifiedModel, spec: Spec, tokenizer: TextTokenizer, *, max_tokens: int | None = None, trust_class_paths: bool = False
    ) -> None:
        self.model = model
        self.spec = spec
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self._trust_class_paths = trust_class_paths

    @classmethod
    def from_pretrained(cls, directory: str | Path, *, overrides: Mapping[str, str] | None = None, device: str = "cpu") -> SoundOmni:
        """Loads a model directory. The weights must fit the spec exactly, in names and shapes; they are computed with in fp32.

        Args:
            directory: a model directory, or the name of a model that comes with the package, such as "nano".
            overrides: dotted spec keys to change, such as {"sampler": "heun"}.
            device: where to put it.

        Raises:
            CheckpointError: a file is missing or damaged, or the weights are of another model.
            PluginError: the spec names something that is not a registered plugin.
            SpecError: an override is wrong, there is no such device, or the spec names a file to start from.
        """
        check_device(device)
        path = find_model(directory)
        max_tokens = read_max_tokens(path)
        spec = load_spec([path / SPEC_FILE], list((overrides or {}).items()))
        check_portable(spec)
        spec = portable(spec)
        tokenizer = TextTokenizer.load(path)
        model = build_model(spec.model, tokenizer=tokenizer)
        load_weights(model, path / WEIGHTS_FILE)
        return cls(model.to(device), spec, tokenizer, max_tokens=max_tokens)

    def save_pretrained(self, directory: str | Path, *, card: str | None = None, dtype: torch.dtype = torch.float32) -> Path:
        """Writes a model directory, whole or not at all; an older one is replaced.

        Args:
            directory: where.
            card: text of the model card; None for a plain one.
            dtype: what weights are stored as; torch.float16 halves the file.

        Raises:
            CheckpointError: it cannot be written, something other than an older model is there, or a weight is too large for `dtype`.
        """
        state = _stored(self.model.state_dict(), dtype)
        parameters = sum(p.numel() for p in self.model.parameters())
        config = {
            "format": FORMAT,
            "parameters": parameters,
            "sample_rate": self.sample_rate,
            "max_tokens": self.max_tokens if self.max_tokens is not None else trained_max_tokens(self.spec),
            "plugins": plugins(self.spec),
        }
        with replacing(directory) as path:
            (path / SPEC_FILE).write_text(dump_spec(portable(self.spec)), encoding="utf-8")
            save_file(state, path / WEIGHTS_FILE, metadata={"format": "pt"})
            (path / WEIGHTS_FILE).chmod((path / SPEC_FILE).stat().st_mode)  # safetensors lets nobody else read what it writes
            (path / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            self.tokenizer.save(path)
            (path / CARD_FILE).write_text(card or model_card(self.spec, parameters), encoding="utf-8")
        return Path(directory)

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
        known: Sequence[Kept | None] | None = None,
        vary: Sequence[Audio] | None = None,
        strength: float = 0.5,
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
            known: for each prompt, what is kept of a clip (continuation, inpainting), or None to make all of it.
            vary: for each prompt, a clip to make a variant of: sampling starts from it with some noise, not from noise alone.
            strength: how much noise, above 0 and at most 1, where nothing is left of the clip: the timestep to start from.
            seeds: one per prompt, or the first of consecutive ones. What a clip becomes depends on its seed and prompt alone.
            batch_size: clips made at once.
            on_step: called with the index of a sampling step and the values so far.

        Raises:
            SpecError: a number is out of its range, or nothing whole is kept.
            DataError: a prompt and its clip are longer than what the model was trained with.
        """
        check_seconds(seconds)
        check_count("batch size", batch_size)
        guidance = self.spec.guidance if guidance_scale is None else replace(self.spec.guidance, scale=guidance_scale)
        check_scale(guidance.scale)
        check_negative(negative_prompt, guidance.scale)
        if num_steps is not None:
            check_count("steps", num_steps, most=MOST_STEPS)
        sampler = build_sampler(self.spec.sampler, num_steps=num_steps, trust_class_paths=self._trust_class_paths)
        num_samples = max(1, round(seconds * self.sample_rate))
        check_strength(strength)
        given = [None] * len(prompts) if known is None else known
        varied = [None] * len(prompts) if vary is None else vary
        numbers = range(seeds, seeds + len(prompts)) if isinstance(seeds, int) else seeds
        for name, values in (("seeds", numbers), ("known", given), ("vary", varied)):
            if len(values) != len(prompts):
                raise SpecError(f"{name}: {len(values)} were given for {len(prompts)} prompts")
        clips: list[Audio] = []
        negative = text_context(self.tokenizer, negative_prompt) if negative_prompt else ()
        requests = [self._request(*one, negative, num_samples) for one in zip(prompts, numbers, given, varied, strict=True)]
        for batch in _batches(requests, batch_size):
            made = sample_audio(
                self.model,
                batch,
                sampler=sampler,
                guidance=guidance,
                tokenizer=self.tokenizer,
                rule=_rule(self.spec.model.latent_positions),
                begin=1.0 if vary is None else strength,
                on_step=on_step,
            )
            waveform = self.model.decode(made).float().cpu().numpy()
            clips += [Audio(fit_length(w, num_samples), self.sample_rate) for w in waveform]
        return clips

    def _request(
        self, prompt: str, seed: int, kept: Kept | None, varied: Audio | None, negative: Context, num_samples: int
    ) -> AudioRequest:
        check_seed(seed)
        spec = self.model.codec.spec
        context = text_context(self.tokenizer, prompt)
        frames = spec.num_frames(num_samples)
        for before, name in ((context, "prompt"), (negative, "negative prompt")):
            text = context_length(before)
            if self.max_tokens is not None and text + frames + BOUNDARIES > self.max_tokens:
                fits = spec.num_samples(self.max_tokens - text - BOUNDARIES) / spec.sample_rate
                raise DataError(
                    f"{num_samples / spec.sample_rate:g} s of audio and a {name} of {text} tokens take {text + frames + BOUNDARIES} "
                    f"tokens; the model was trained with at most {self.max_tokens}: "
                    + (f"at most {fits:g} s fit with this {name}" if fits > 0 else f"shorten the {name}")
                )
        request = AudioRequest(context=context, negative=negative, num_frames=frames, seed=seed)
        if varied is not None:
            request = replace(request, varied=self._encode(self._to_codec(varied), num_samples))
        return request if kept is None else self._keep(request, kept, num_samples)

    def _keep(self, request: AudioRequest, kept: Kept, num_samples: int) -> AudioRequest:
        """Adds the normalised values `[D, T]` of what is kept to a request for a clip of `num_samples`."""
        waveform = self._to_codec(kept.clip)
        mask = known_frames(kept.spans, self.model.codec.spec, num_samples=num_samples, num_given=waveform.shape[1])
        return replace(request, known=self._encode(waveform, num_samples), known_mask=torch.from_numpy(mask))

    @torch.no_grad()
    def _encode(self, waveform: np.ndarray, num_samples: int) -> Tensor:
        """`[C, S]` at the codec's rate, cut or lengthened to `num_samples` → normalised values `[D, T]`."""
        batch = torch.from_numpy(fit_length(waveform, num_samples))[None].to(self.model.device)
        return self.model.encode(batch, torch.tensor([num_samples], device=batch.device)).values[0]

    def describe(self, clips: Sequence[Audio], *, question: str | None = None, max_new_tokens: int = 64, batch_size: int = 16) -> list[str]:
        """Says what is heard in each clip, or answers a question about it. Any rate and channel count.

        Args:
            clips: what to hear.
            question: what to answer; None asks for a description.
            max_new_tokens: longest text; it ends earlier where the sample reaches the length that the model was trained with.
            batch_size: clips heard at once.

        Raises:
            SpecError: the model cannot describe, or a number is out of its range.
            DataError: a clip is too long for the encoder, or with its question for what the model was trained with.
        """
        check_count("max_new_tokens", max_new_tokens, most=MOST_NEW_TOKENS)
        check_count("batch size", batch_size)
        contexts = [self._listen(clip, question) for clip in clips]
        texts: list[str] = []
        for batch in _batches(contexts, batch_size):
            rooms = [max_new_tokens if self.max_tokens is None else self.max_tokens - context_length(context) for context in batch]
            longest = min(max_new_tokens, max(rooms))
            ids = sample_text(self.model, batch, tokenizer=self.tokenizer, max_new_tokens=longest)
            texts += [self.tokenizer.decode(one[:room]) for one, room in zip(ids, rooms, strict=True)]
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
        asked = text_context(self.tokenizer, question) if question else ()
        self._check_heard(waveform.shape[1], context_length(asked), context_length(heard))
        return heard + asked

    def _check_heard(self, num_samples: int, asked: int, heard: int) -> None:
        """Raises DataError when a clip of `heard` tokens, a question of `asked` tokens and the start of an answer are too long."""
        total = heard + asked + 1
        if self.max_tokens is None or total <= self.max_tokens:
            return
        encoder = self.model.encoder
        assert encoder is not None, "checked by _listen"
        room = self.max_tokens - asked - 1 - BOUNDARIES
        fits = bisect_right(range(1, num_samples + 1), room, key=encoder.num_tokens) / encoder.spec.sample_rate
        question = f", a question of {asked} tokens" if asked else ""
        raise DataError(
            f"a clip of {num_samples / encoder.spec.sample_rate:g} s{question} and the start of the text take {total} tokens; "
            f"the model was trained with at most {self.max_tokens}: "
            + (f"at most {fits:g} s fit, so cut the clip" if fits > 0 else "shorten the question")
        )

    @torch.no_grad()
    def reconstruct(self, clip: Audio) -> Audio:
        """Encodes and decodes a clip with the codec; the result has the codec's rate and channels and the clip's length."""
        waveform = self._to_codec(clip)
        batch = torch.from_numpy(waveform)[None].to(self.model.device)
        lengths = torch.tensor([waveform.shape[1]], device=batch.device)
        out = self.model.codec.decode(self.model.codec.encode(batch, lengths))[0].float().cpu().numpy()
        return Audio(fit_length(out, waveform.shape[1]), self.sample_rate)

    def _to_codec(self, clip: Audio) -> np.ndarray:
        """Returns `[C, S]` with the rate and the channels of the codec."""
        spec = self.model.codec.spec
        return resample(match_channels(clip.waveform, spec.channels), clip.sample_rate, spec.sample_rate)


def _stored(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Returns the tensors for the CPU, those of floats as `dtype`."""
    stored: dict[str, Tensor] = {}
    for key, value in state.items():
        value = value.detach().contiguous().cpu()
        stored[key] = value.to(dtype) if value.is_floating_point() else value
        if not bool(stored[key].isfinite().all()) and bool(value.isfinite().all()):
            largest = float(value.abs().max())
            raise CheckpointError(f"'{key}' has values up to {largest:.3g}, too large for {dtype}; store float32 or bfloat16")
    return stored


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
