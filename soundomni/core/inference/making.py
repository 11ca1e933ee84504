"""Making clips with one model: requests are written, batched and sampled.

Shape letters: B clips, D latent dimensions, K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.batches import batches
from soundomni.core.inference.audio_request import AudioRequest
from soundomni.core.inference.editing import Kept
from soundomni.core.inference.given_clips import Given
from soundomni.core.inference.requests import RequestBuilder
from soundomni.core.inference.sampling import sample_audio
from soundomni.core.inference.variation import beginnings
from soundomni.core.interfaces import Sampler
from soundomni.core.limits import DEFAULT_STRENGTH
from soundomni.core.representation import Representation
from soundomni.core.spec.schema import GuidanceSpec
from soundomni.core.waveform import Audio, fit_length
from soundomni.core.writing.prompts import PromptWriter


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A clip that is asked for.

    Args:
        prompt: what to make.
        seconds: its length, or the most if the model says where it ends.
        seed: seed of the noise.
        kept, varied, given: as in `RequestBuilder.request`.
    """

    prompt: str
    seconds: float
    seed: int
    kept: Kept | None = None
    varied: Audio | None = None
    given: Mapping[str, Given] | None = None


class Maker:
    """Makes clips of one modality.

    Args:
        model: the network.
        contexts: writes the model's prompts.
        of: name of the modality.
        sampler, guidance: how it is made.
        negative_prompt: what to steer away from, or None.
        keeps_all: whether a clip may be kept as a whole, so that nothing of it is left to make.
        draft: guesses tokens ahead for a sampler that takes drafts, or None.
    """

    def __init__(
        self,
        model: UnifiedModel,
        contexts: PromptWriter,
        *,
        of: str,
        sampler: Sampler,
        guidance: GuidanceSpec,
        negative_prompt: str | None = None,
        keeps_all: bool = False,
        draft: UnifiedModel | None = None,
    ) -> None:
        self.modality = model.made(of)
        self._model = model
        self._contexts = contexts
        self._sampler = sampler
        self._guidance = guidance
        self._negative_prompt = negative_prompt
        self._keeps_all = keeps_all
        self._draft = draft

    def builder(self, seconds: float) -> RequestBuilder:
        """Return the builder of requests for clips of this length."""
        return RequestBuilder(
            self._model,
            self._contexts,
            num_samples=max(1, round(seconds * self.modality.sample_rate)),
            of=self.modality.name,
            negative_prompt=self._negative_prompt,
            keeps_all=self._keeps_all,
        )

    def batches(
        self,
        asked: Sequence[Asked],
        *,
        size: int,
        strength: float = DEFAULT_STRENGTH,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Iterator[tuple[Representation, list[int]]]:
        """Yield what is made of at most `size` clips at once, in order: normalized values, and samples of each clip.

        Args:
            asked: the clips; all of them are checked before the first batch is made.
            size: clips made at once.
            strength: how much of clips to vary the noise hides.
            on_step: called after each step of the sampler.
        """
        builders = {seconds: self.builder(seconds) for seconds in dict.fromkeys(one.seconds for one in asked)}
        requests = [
            builders[one.seconds].request(one.prompt, seed=one.seed, kept=one.kept, varied=one.varied, given=one.given) for one in asked
        ]
        longest = [builders[one.seconds].num_samples for one in asked]
        done = 0
        for begin, batch in self._batches(requests, strength, size):
            made = sample_audio(
                self._model, batch, sampler=self._sampler, guidance=self._guidance, begin=begin, on_step=on_step, draft=self._draft
            )
            most = longest[done : done + len(batch)]
            spec = self.modality.codec.spec
            yield made, [min(count, spec.num_samples(frames)) for count, frames in zip(most, made.frame_counts, strict=True)]
            done += len(batch)

    @torch.no_grad()
    def decoded(self, made: Representation, lengths: Sequence[int]) -> list[Audio]:
        """Return the audio of a batch, each clip with its number of samples. Raise SpecError if the codec only encodes."""
        self.modality.check_decodes()
        waveform = self.modality.decode(self._needed(made, max(lengths))).float().cpu().numpy()
        return [Audio.unchecked(fit_length(w, n), self.modality.sample_rate) for w, n in zip(waveform, lengths, strict=True)]

    def _needed(self, made: Representation, num_samples: int) -> Representation:
        """Return the frames of a batch that its first `num_samples` samples depend on: those of a window or headroom
        beyond them need no decoding."""
        reach = self.modality.codec.receptive_field
        if reach is None:
            return made
        frames = min(made.values.shape[-1], made.spec.num_frames(num_samples) + reach.decode)
        counts = tuple(min(frames, count) for count in made.frame_counts)
        return replace(made, values=made.values[..., :frames], lengths=made.lengths.clamp_max(frames), frames=counts)

    def clips(self, made: Representation, lengths: Sequence[int]) -> list[Representation]:
        """Return the clips of a batch one by one, as the codec gives them: `[1, D, T]` or `[1, K, T]` each, for `lengths` samples."""
        with torch.no_grad():
            plain = self.modality.normalizer.denormalize(made)
        rows = enumerate(plain.spec.num_frames(count) for count in lengths)
        return [
            Representation(plain.values[i : i + 1, :, :n].clone(), plain.lengths[i : i + 1].clamp_max(n), plain.spec, (n,)) for i, n in rows
        ]

    def _batches(self, requests: Sequence[AudioRequest], strength: float, size: int) -> Iterator[tuple[float, Sequence[AudioRequest]]]:
        """Yield the timestep to begin at, and requests that begin there, at most `size` of them, in order."""
        slots = {request.num_frames: (replace(request.slot, aligned=()), request.unprompted) for request in requests}
        begin_of = {
            frames: beginnings(self._model, strength, slot=slot, context=context, batch_size=size)
            for frames, (slot, context) in slots.items()
        }
        begun = [begin_of[request.num_frames](request.varied) for request in requests]
        bounded = [replace(request, most_change=one.most_change) for request, one in zip(requests, begun, strict=True)]
        for begin, group in groupby(zip(begun, bounded, strict=True), lambda pair: pair[0].timestep):
            for batch in batches([request for _, request in group], size):
                yield begin, batch
