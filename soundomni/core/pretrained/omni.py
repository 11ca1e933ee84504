"""A trained model and how it is used: load, save, generate, describe, reconstruct.

Nothing in a model directory (see directory.py) is ever unpickled, and its spec may only name registered plugins.

Shape letters: C audio channels, S samples, D latent dimensions, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from soundomni.core.assembly.build import build_model, build_sampler, check_sampler
from soundomni.core.assembly.lora import check_merged
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.assembly.uninitialized import uninitialized
from soundomni.core.assembly.wide_layers import lay_out_wide_layers
from soundomni.core.batches import batches
from soundomni.core.errors import CheckpointError, SpecError
from soundomni.core.files.names import SPEC_FILE
from soundomni.core.inference.decoding import iter_tokens, sample_text
from soundomni.core.inference.editing import Kept
from soundomni.core.inference.inputs import (
    as_asked,
    as_callback,
    as_clip,
    as_clips,
    as_count,
    as_directory,
    as_messages,
    as_number,
    as_optional_text,
    as_overrides,
    as_seed,
    as_seeds,
    as_strength,
    as_text,
    as_texts,
    as_trained_length,
    as_whole,
    check_prompts,
)
from soundomni.core.inference.making import Maker
from soundomni.core.inference.prepared_clips import prepared_asked
from soundomni.core.inference.requests import RequestBuilder
from soundomni.core.inference.round_trip import round_trip
from soundomni.core.inference.token_choice import TokenSampling
from soundomni.core.interfaces import Sampler
from soundomni.core.limits import (
    MOST_NEW_TOKENS,
    MOST_STEPS,
    check_negative,
    check_scale,
    check_seconds,
    check_text_sampling,
    resolve_device,
)
from soundomni.core.pretrained.abilities import Abilities, abilities_of
from soundomni.core.pretrained.adapters import load_adapter_file
from soundomni.core.pretrained.declared_sizes import check_declared
from soundomni.core.pretrained.directory import (
    Origin,
    check_portable,
    find_model,
    portable,
    read_max_tokens,
    read_origin,
    replacing,
    trained_max_tokens,
    write_model,
)
from soundomni.core.pretrained.directory import (
    card as model_card,
)
from soundomni.core.pretrained.draft import check_draft
from soundomni.core.pretrained.hub import check_pushable, push
from soundomni.core.pretrained.weights import MAX_SHARD_BYTES, computing_dtype, load_weights, stored_dtype, weight_shapes
from soundomni.core.representation import Representation
from soundomni.core.sequence import Context, context_length
from soundomni.core.spec.clips import check_clips, clips_of
from soundomni.core.spec.load import load_spec
from soundomni.core.spec.schema import ClipSpec, GuidanceSpec, ModalitySpec, Spec
from soundomni.core.spec.shorthand import written_key
from soundomni.core.tokenizer import TextTokenizer
from soundomni.core.waveform import Audio
from soundomni.core.writing.chat import Message
from soundomni.core.writing.prompts import PromptWriter


class SoundOmni:
    """A model ready for use.

    Args:
        model: the network. Its weights are laid out in memory for use, see `lay_out_wide_layers`; names, shapes and values stay.
        spec: the spec that it was built from.
        tokenizer: the tokenizer of its texts.
        max_tokens: the longest sample that it was trained with; longer ones are refused. None for no limit.
        origin: where its weights come from.
        trust_class_paths: let the spec's sampler be named by import path.
        in_training: leave the weights as they lie in memory, because the model is being trained.
    """

    def __init__(
        self,
        model: UnifiedModel,
        spec: Spec,
        tokenizer: TextTokenizer,
        *,
        max_tokens: int | None = None,
        origin: Origin = Origin(),  # noqa: B008  it is frozen
        trust_class_paths: bool = False,
        in_training: bool = False,
    ) -> None:
        if not in_training:
            lay_out_wide_layers(model)
        self.model = model
        self.spec = spec
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.origin = origin
        self._trust_class_paths = trust_class_paths

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        *,
        overrides: Mapping[str, object] | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str = torch.float32,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        offline: bool = False,
    ) -> SoundOmni:
        """Load a model directory. The weights must fit the spec exactly, in names and shapes.

        Memory holds the model and little more: weights are read tensor by tensor into their place.

        Args:
            directory: a model directory. If there is none, the name of a model that comes with the package, such as
                "nano", or the owner/name or owner/name@revision of a model on the Hugging Face Hub; only the files of a
                model directory are fetched.
            overrides: dotted spec keys to change, such as {"sampler": "heun"}.
            device: device of the model, such as "cpu" or "cuda:0"; "auto" takes the first of cuda, mps and cpu that is
                there.
            dtype: dtype in which the model computes, or its name: torch.float32; or torch.bfloat16, which takes half of the memory. Codecs
                and encoders always compute in float32.
            revision: branch, tag or commit on the Hub.
            cache_dir: directory of the Hub's cache; None leaves it to HF_HUB_CACHE and HF_HOME.
            offline: only look for a Hub model in the cache, as with HF_HUB_OFFLINE=1.

        Raises:
            CheckpointError: a file is missing or damaged, the weights belong to another model, or the Hub does not
                provide it.
            PluginError: the spec names an unregistered plugin.
            SpecError: an override is wrong, there is no such device or dtype, or the spec names a file to start from.
        """
        device, computing = resolve_device(str(device)), computing_dtype(dtype)
        path = find_model(as_directory("the model", directory), revision=revision, cache_dir=cache_dir, offline=offline)
        max_tokens = read_max_tokens(path)
        spec = load_spec([path / SPEC_FILE], list(as_overrides(overrides).items()), base={})
        check_portable(spec)
        spec = portable(spec)
        check_clips(spec.of_model.clips, "model.clips")
        tokenizer = TextTokenizer.load(path)
        build = partial(build_model, spec.of_model, vocab_size=tokenizer.vocab_size)
        check_declared(spec, build, weight_shapes(path), path)
        with uninitialized():
            model = build()
        load_weights(model, path)
        if computing != torch.float32:
            model.compute_in(computing)
        return cls(model.to(device), spec, tokenizer, max_tokens=max_tokens, origin=read_origin(path))

    def save_pretrained(
        self,
        directory: str | Path,
        *,
        card: str | None = None,
        license: str | None = None,
        dtype: torch.dtype | str = torch.float32,
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ) -> Path:
        """Write a model directory, whole or not at all; an older one is replaced, but not a chain of models.

        Args:
            directory: the directory to write.
            card: text of the model card, or None for a card with the spec, and with the license and source of imported
                weights.
            license: license of the weights; None keeps that of their origin.
            dtype: dtype of the stored weights; torch.float16, or its name, halves the file.
            max_shard_bytes: weights beyond this size are stored in several files with an index.

        Raises:
            CheckpointError: the directory cannot be written or holds something other than an older model, a weight is
                too large for `dtype`, or there are adapters that are not merged.
            SpecError: `dtype` or `max_shard_bytes` is of a wrong kind.
            DataError: a path or a text is of a wrong kind.
        """
        directory = as_directory("the directory", directory)
        with replacing(directory) as path:
            self.write(path, card=card, license=license, dtype=dtype, max_shard_bytes=max_shard_bytes)
        return Path(directory)

    def write(self, folder: Path, *, card: str | None, license: str | None, dtype: torch.dtype | str, max_shard_bytes: int) -> None:
        """Write the files of a model directory into an empty folder, such as that of a stage in a chain.

        Arguments and errors are those of `save_pretrained`, which is whole or not at all; this is not.
        """
        stored, shard = stored_dtype(dtype), as_count("max_shard_bytes", max_shard_bytes)
        card, license = as_optional_text("card", card), as_optional_text("license", license)
        check_merged(self.model)
        if self.model.is_rounded:
            raise CheckpointError(f"the weights were rounded to {self.model.dtype}. To save them, load the model without dtype")
        parameters = sum(p.numel() for p in self.model.parameters())
        origin = self.origin if license is None else replace(self.origin, license=license)
        write_model(
            folder,
            self.spec,
            self.model.state_dict(),
            self.tokenizer,
            parameters=parameters,
            sample_rate=self.sample_rate,
            max_tokens=self.max_tokens if self.max_tokens is not None else trained_max_tokens(self.spec),
            origin=origin,
            card=model_card(self.spec, parameters, origin) if card is None else card,
            dtype=stored,
            max_shard_bytes=shard,
        )

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool = False,
        token: str | None = None,
        commit_message: str | None = None,
        card: str | None = None,
        license: str | None = None,
        dtype: torch.dtype | str = torch.float32,
    ) -> str:
        """Push the model directory as a commit to a Hugging Face Hub repository, and return the commit's address.

        Args:
            repository: owner/name; it is created if it does not exist.
            private: whether only its owner can see a new repository.
            token: token of the account; None leaves it to HF_TOKEN or the stored login.
            commit_message: message of the commit.
            card, dtype, license: as in `save_pretrained`.

        Raises:
            CheckpointError: the repository name is not valid, the Hub cannot be reached or refuses, or the directory
                cannot be written.
        """
        repository = as_text("the repository", repository)
        check_pushable(repository)
        with TemporaryDirectory() as folder:
            path = self.save_pretrained(Path(folder) / "model", card=card, license=license, dtype=dtype)
            return push(path, repository, private=private, token=token, message=commit_message)

    @property
    def sample_rate(self) -> int:
        """Sample rate in Hz of the clips that it makes, or of the first modality if it makes several."""
        return self.model.made().sample_rate

    @property
    def contexts(self) -> PromptWriter:
        """Writer of prompts, clips, questions and chats in the form that the model takes."""
        writer = segment_writer(self.model, self.spec.of_model, tokenizer=self.tokenizer)
        return PromptWriter(writer, max_tokens=self.max_tokens, clips=self.clips)

    @property
    def clips(self) -> ClipSpec | None:
        """How clips to hear, keep or vary are prepared, as in training; None for clips as they are."""
        return clips_of(self.spec)

    def requests(self, seconds: float, *, negative_prompt: str | None = None, of: str | None = None) -> RequestBuilder:
        """Return the builder of requests for clips of `seconds`, steered away from the negative prompt.

        `of` is the modality to make; None stands for the first one.
        """
        seconds = as_number("seconds", seconds)
        check_seconds(seconds)
        modality = self.model.made(as_optional_text("the modality", of))
        return RequestBuilder(
            self.model,
            self.contexts,
            num_samples=max(1, round(seconds * modality.sample_rate)),
            of=modality.name,
            negative_prompt=as_optional_text("the negative prompt", negative_prompt),
        )

    def generate(
        self,
        prompts: Iterable[str] | str,
        *,
        seconds: float | Iterable[float] | None = None,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        known: Iterable[Kept | None] | Kept | None = None,
        vary: Iterable[Audio] | Audio | None = None,
        strength: float | None = None,
        seeds: Iterable[int] | int = 0,
        batch_size: int = 16,
        of: str | None = None,
        given: Mapping[str, object] | None = None,
        on_step: Callable[[int, Tensor], None] | None = None,
        draft: SoundOmni | None = None,
    ) -> list[Audio]:
        """Make a clip of `seconds` for each prompt, or of at most `seconds` if the model says where a clip ends.

        Args:
            prompts: what to make; a single text makes one clip. An empty text is left out, as `data.condition_dropout` leaves texts out.
                A model whose prompt has no text only takes empty ones.
            seconds: length of each clip, or one for all of them. None stands for the length of all clips that the model was trained on,
                if `clips` gave them one.
            num_steps, guidance_scale: settings of the sampler and of guidance; None for the spec's.
            negative_prompt: what to steer away from; without it, guidance steers away from what the model makes without
                a prompt.
            known: for each prompt, the parts of a clip to keep (continuation, inpainting), or None to make all of it. A
                single `Kept` applies to every prompt. If training prepared its clips (`clips`), this one begins at the
                same place and has the same level; its spans stay at the same sounds.
            vary: for each prompt, a clip to make a variant of, or one clip for all of them: sampling starts from the clip with
                noise added, not from only noise. It is prepared as in training (`clips`).
            strength: how much of the clip the noise hides from the model, and how far the variant may go from it, above 0 and at most
                1: 0.2 is a slight change with any prompt, 0.8 a strong one, and at 1 nothing is left of the clip (see
                `core.variation`). None means DEFAULT_STRENGTH; without a clip to vary, it must be None.
            seeds: one per prompt, or the first of consecutive ones. What a clip becomes only depends on its seed and
                prompt.
            batch_size: clips made at once.
            of: the modality to make, if the model makes several; None stands for the first one.
            given: name of a modality → its clip for each prompt, or one clip for all of them: audio, or a `Representation` that its codec
                made. Clips of modalities that are `aligned` with the one to make, and codes of its levels that the model does not make,
                are cut to its length; those of the model's prompt have any length. A modality that is not named is left out.
            on_step: called with the index of a sampling step and the values so far.
            draft: a smaller model of the same codes and prompts, which guesses ahead for the sampler `speculative`. Clips come from
                the same distribution with any draft.

        Raises:
            SpecError: a number is out of its range or of a wrong kind, the model does not make that modality or takes no text, its codec
                only encodes, the kept spans do not hold a whole frame, or the draft does not fit the model or its sampler.
            DataError: a prompt and its clip are longer than the samples that the model was trained with, or are of a
                wrong kind; or a clip that is given is shorter than the one to make, comes from another codec, or is missing.
        """
        maker = self.maker(of, num_steps=num_steps, guidance_scale=guidance_scale, negative_prompt=negative_prompt, draft=draft)
        maker.modality.check_decodes()
        lengths = as_trained_length(seconds, self.clips)
        asked = prepared_asked(as_asked(prompts, seconds=lengths, seeds=seeds, known=known, vary=vary, given=given), self.clips)
        self.check_prompts([one.prompt for one in asked])
        size, share = as_count("batch_size", batch_size), as_strength(strength, varied=vary is not None)
        batches = maker.batches(asked, size=size, strength=share, on_step=as_callback("on_step", on_step))
        return [clip for made, sizes in batches for clip in maker.decoded(made, sizes)]

    def make(
        self,
        prompts: Iterable[str] | str,
        *,
        seconds: float | Iterable[float] | None = None,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        known: Iterable[Kept | None] | Kept | None = None,
        vary: Iterable[Audio] | Audio | None = None,
        strength: float | None = None,
        seeds: Iterable[int] | int = 0,
        batch_size: int = 16,
        of: str | None = None,
        given: Mapping[str, object] | None = None,
        on_step: Callable[[int, Tensor], None] | None = None,
        draft: SoundOmni | None = None,
    ) -> list[Representation]:
        """Make what `generate` does, without decoding it: a representation `[1, D, T]` or `[1, K, T]` for each prompt, as the codec's
        `encode` gives it.

        Each has the frames of its own clip. The codec may be one that only encodes, such as that of semantic tokens. Arguments and errors
        are those of `generate`.
        """
        maker = self.maker(of, num_steps=num_steps, guidance_scale=guidance_scale, negative_prompt=negative_prompt, draft=draft)
        lengths = as_trained_length(seconds, self.clips)
        asked = prepared_asked(as_asked(prompts, seconds=lengths, seeds=seeds, known=known, vary=vary, given=given), self.clips)
        self.check_prompts([one.prompt for one in asked])
        size, share = as_count("batch_size", batch_size), as_strength(strength, varied=vary is not None)
        made = maker.batches(asked, size=size, strength=share, on_step=as_callback("on_step", on_step))
        return [clip for batch, sizes in made for clip in maker.clips(batch, sizes)]

    def maker(
        self,
        of: str | None = None,
        *,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        keeps_all: bool = False,
        draft: SoundOmni | None = None,
    ) -> Maker:
        """Return what makes clips of a modality, the first one if `of` is None; other arguments are as in `generate` and `Maker`."""
        modality = self.model.made(as_optional_text("the modality", of))
        avoided = as_optional_text("the negative prompt", negative_prompt)
        guidance, sampler = self._guidance(modality.name, guidance_scale, avoided), self._sampler(modality.name, num_steps)
        if draft is not None:
            check_draft(self, draft, sampler, of=modality.name)
        return Maker(
            self.model,
            self.contexts,
            of=modality.name,
            guidance=guidance,
            sampler=sampler,
            negative_prompt=avoided,
            keeps_all=keeps_all,
            draft=None if draft is None else draft.model,
        )

    @property
    def takes_text(self) -> bool:
        """Whether its prompt has a text that says what to make."""
        return self.spec.of_model.takes_text

    def check_prompts(self, prompts: Iterable[str] | str) -> None:
        """Raise SpecError for a text if the model's prompt has none."""
        check_prompts(as_texts("prompts", prompts), takes_text=self.takes_text, of="this model")

    def check_request(self, prompt: str, seconds: float, *, of: str | None = None) -> None:
        """Raise SpecError or DataError if the model cannot make a clip of this length from this prompt."""
        self.check_prompts(prompt)
        self.requests(seconds, of=of).request(prompt, seed=0)

    def abilities(self) -> Abilities:
        """Return what the model makes, hears and takes."""
        return abilities_of(self.model, self.spec.of_model, max_tokens=self.max_tokens, trust_class_paths=self._trust_class_paths)

    def made_spec(self, of: str | None = None) -> ModalitySpec:
        """Return the part of the spec about a modality that the model makes; None stands for the first one."""
        return self.spec.of_model.all_made[self.model.made(of).name]

    def _guidance(self, of: str, scale: float | None, negative_prompt: str | None) -> GuidanceSpec:
        """Return the spec's guidance with another scale, if one is given.

        Raise SpecError for a scale out of its range.
        """
        own = self.made_spec(of).guidance
        guidance = own if scale is None else replace(own, scale=as_number("guidance scale", scale))
        check_scale(guidance.scale)
        check_negative(negative_prompt, guidance.scale)
        return guidance

    def _sampler(self, of: str, num_steps: int | None) -> Sampler:
        """Return the spec's sampler with another number of steps, if one is given.

        Raise SpecError for a number out of its range, or a sampler that does not take what the objective predicts.
        """
        steps = None if num_steps is None else as_count("num_steps", num_steps, most=MOST_STEPS)
        slot = self.made_spec(of).sampler
        assert slot is not None, "checked when the spec was read"
        sampler = build_sampler(slot, num_steps=steps, trust_class_paths=self._trust_class_paths)
        modality = self.model.made(of)
        key = written_key(f"model.modalities.{modality.name}.sampler", self.spec.of_model)
        check_sampler(sampler, modality, key=key, name=slot.class_path)
        return sampler

    def describe(
        self,
        clips: Iterable[Audio] | Audio,
        *,
        question: str | None = None,
        max_new_tokens: int = 64,
        batch_size: int = 16,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seeds: Iterable[int] | int = 0,
    ) -> list[str]:
        """Say what is heard in each clip, or answer a question about it. Any rate and channel count.

        Clips are prepared as in training (`clips`).

        Args:
            clips: what to hear, one or several.
            question: what to answer; None asks for a description.
            max_new_tokens: most tokens of a text; it ends earlier if the sample reaches the length that the model was
                trained with.
            batch_size: clips heard at once.
            temperature, top_k, top_p: draw each token instead of taking the likeliest one: see `TokenSampling` in
                core/inference/token_choice.py. Without a temperature the likeliest token is always taken.
            seeds: seeds for drawing tokens: one per clip, or the first of consecutive ones. A text only depends on its
                seed and clip.

        Raises:
            SpecError: the model cannot describe, or a number is out of its range.
            DataError: a clip is too long for the encoder, or with its question longer than the samples that the model
                was trained with, or an argument is not a clip.
        """
        longest, size = as_count("max_new_tokens", max_new_tokens, most=MOST_NEW_TOKENS), as_count("batch_size", batch_size)
        sampling, given = _text_sampling(temperature, top_k, top_p), as_clips("clips", clips)
        contexts = [self._heard(clip, question) for clip in given]
        numbered = list(zip(contexts, map(as_seed, as_seeds(seeds, len(given), of="clip")), strict=True))
        return [text for batch in batches(numbered, size) for text in self._write(batch, longest, sampling)]

    def stream(
        self,
        clip: Audio,
        *,
        question: str | None = None,
        max_new_tokens: int = 64,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> Iterator[str]:
        """Describe one clip, or answer a question about it, piece by piece as it is written.

        Arguments and errors are those of `describe`; errors are raised at once.

        Returns:
            pieces of at least one character each. Joined, they are the text that `describe` returns.
        """
        longest, sampling = as_count("max_new_tokens", max_new_tokens, most=MOST_NEW_TOKENS), _text_sampling(temperature, top_k, top_p)
        return self._stream(self._heard(as_clip("the clip", clip), question), as_seed(seed), longest, sampling)

    def _heard(self, clip: Audio, question: str | None) -> Context:
        return self.contexts.clip(clip, as_optional_text("the question", question))

    def chat(
        self,
        messages: Iterable[Message] | Message | str,
        clips: Iterable[Audio] | Audio = (),
        *,
        max_new_tokens: int = 256,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> str:
        """Answer a chat about any number of clips.

        Args:
            messages: as the processor of Qwen2-Audio takes them: `{"role": "user", "content": [{"type": "audio"}, {"type": "text",
                "text": "What is heard?"}]}`; content may be plain text, and a system message may come first. A single message or text
                is a chat of one turn.
            clips: the clips that the messages mention, in that order, one or several. Any rate and channel count.
            max_new_tokens: most tokens of the answer; it ends earlier if the chat reaches the length that the model was
                trained with.
            temperature, top_k, top_p, seed: as in `describe`.

        Raises:
            SpecError: the model was not trained on chats, or a number is out of its range.
            DataError: a message is malformed, the clips do not match the messages, a clip is too long for the encoder,
                or the chat is longer than the samples that the model was trained with.
        """
        longest, sampling = as_count("max_new_tokens", max_new_tokens, most=MOST_NEW_TOKENS), _text_sampling(temperature, top_k, top_p)
        return self._write([(self._asked(messages, clips), as_seed(seed))], longest, sampling)[0]

    def stream_chat(
        self,
        messages: Iterable[Message] | Message | str,
        clips: Iterable[Audio] | Audio = (),
        *,
        max_new_tokens: int = 256,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> Iterator[str]:
        """Answer a chat piece by piece as the answer is written.

        Arguments and errors are those of `chat`; errors are raised at once.

        Returns:
            pieces of at least one character each. Joined, they are the answer that `chat` returns.
        """
        longest, sampling = as_count("max_new_tokens", max_new_tokens, most=MOST_NEW_TOKENS), _text_sampling(temperature, top_k, top_p)
        return self._stream(self._asked(messages, clips), as_seed(seed), longest, sampling)

    def _asked(self, messages: Iterable[Message] | Message | str, clips: Iterable[Audio] | Audio) -> Context:
        if self.spec.of_model.chat == "none":
            raise SpecError("this model was not trained on chats: its spec has model.chat: none. Use describe() to ask it about a clip")
        return self.contexts.chat(as_messages(messages), as_clips("clips", clips))

    def _write(self, numbered: Sequence[tuple[Context, int]], max_new_tokens: int, sampling: TokenSampling) -> list[str]:
        """Write the text that follows each context, drawn by its seed."""
        contexts, seeds = zip(*numbered, strict=True)
        rooms = [self._room(context, max_new_tokens) for context in contexts]
        ids = sample_text(
            self.model,
            contexts,
            tokenizer=self.tokenizer,
            max_new_tokens=max(rooms),
            opening=self.contexts.opening(),
            sampling=sampling,
            seeds=seeds,
        )
        return [self.tokenizer.decode(one[:room]) for one, room in zip(ids, rooms, strict=True)]

    def _stream(self, context: Context, seed: int, max_new_tokens: int, sampling: TokenSampling) -> Iterator[str]:
        """Write the text that follows a context, piece by piece."""
        tokens = iter_tokens(
            self.model,
            [context],
            tokenizer=self.tokenizer,
            max_new_tokens=self._room(context, max_new_tokens),
            opening=self.contexts.opening(),
            sampling=sampling,
            seeds=[seed],
        )
        return self.tokenizer.pieces(token for (token,) in tokens if token is not None)

    def _room(self, context: Context, max_new_tokens: int) -> int:
        """Return how many tokens a text can have before the sample is as long as the longest in training."""
        if self.max_tokens is None:
            return max_new_tokens
        return min(max_new_tokens, self.max_tokens - context_length(context) - len(self.contexts.opening()) + 1)

    def reconstruct(self, clip: Audio, *, chunk_seconds: float | None = None, of: str | None = None) -> Audio:
        """Encode and decode a clip with the codec; the result has the codec's rate and channels and the clip's length.

        Args:
            clip: a clip of at least one sample.
            chunk_seconds: a longer clip goes through the codec in pieces of this length. The audio is the same, and the
                device only needs memory for one piece. None means pieces of 30 s, or the whole clip if the codec cannot
                work in pieces.
            of: the modality whose codec it is; None stands for the first one that is made.

        Raises:
            SpecError: `chunk_seconds` is out of its range, the codec cannot work in pieces or only encodes, or the model does
                not make that modality.
            DataError: `clip` is not a clip.
        """
        modality = self.model.made(of)
        modality.check_decodes()
        return round_trip(modality.codec, as_clip("the clip", clip), chunk_seconds=chunk_seconds)

    def load_adapter(self, directory: str | Path, *, interval: tuple[float, float] | None = None) -> None:
        """Add adapters (LoRA or DoRA) from a folder that `soundomni export --format peft-adapter` or peft wrote.

        They are merged into the weights, unless they only act at some timesteps.

        Args:
            directory: the folder.
            interval: timesteps (low, high) at which they act, as in `guidance.interval`: 0 is clean, 1 is noise. None
                for the ones in the folder, or all if it names none.

        Raises:
            CheckpointError: the folder is damaged, is neither LoRA nor DoRA, or has a layer or a shape that this model does
                not have.
            SpecError: a layer shares its weight with another one, which the adapter would change too; or there is an interval, but
                the model does not know the timesteps of clips.
        """
        load_adapter_file(self.model, as_directory("the adapter", directory), interval=interval)


def _text_sampling(temperature: float | None, top_k: int | None, top_p: float | None) -> TokenSampling:
    """Return how tokens are chosen.

    Raise SpecError for a number that is out of its range, of a wrong kind or without effect.
    """
    heat = None if temperature is None else as_number("temperature", temperature)
    most = None if top_k is None else as_whole("top_k", top_k)
    share = None if top_p is None else as_number("top_p", top_p)
    check_text_sampling(heat, most, share)
    return TokenSampling(temperature=heat or 0.0, top_k=most, top_p=1.0 if share is None else share)
