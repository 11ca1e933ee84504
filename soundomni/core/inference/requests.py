"""What a model is asked to make: a prompt, and a clip to vary or parts of a clip to keep.

Shape letters: C audio channels, S samples, D latent dimensions, T frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import SpecError
from soundomni.core.inference.audio_request import AudioRequest
from soundomni.core.inference.editing import Kept, known_frames
from soundomni.core.inference.given_clips import Given, GivenClips
from soundomni.core.limits import check_seed
from soundomni.core.waveform import Audio, convert, fit_length
from soundomni.core.writing.prompts import PromptWriter


class RequestBuilder:
    """Turns prompts and clips into requests for clips of one length.

    Args:
        model: the network.
        contexts: writes the model's prompts.
        num_samples: S of each clip, at the codec's rate; more are made if the modality has a window or headroom.
        negative_prompt: what to steer away from, or None.
        of: the modality to make; None for the first one.
        keeps_all: whether a clip may be kept as a whole.
    """

    def __init__(
        self,
        model: UnifiedModel,
        contexts: PromptWriter,
        *,
        num_samples: int,
        negative_prompt: str | None,
        of: str | None = None,
        keeps_all: bool = False,
    ) -> None:
        self._modality = model.made(of)
        self._one_time = model.backbone.takes_times
        self._contexts = contexts
        self._given = GivenClips(model, contexts, self._modality)
        self._negative_prompt = negative_prompt
        self._keeps_all = keeps_all
        self.num_samples = num_samples
        self._samples_made = self._modality.samples_made(num_samples)

    def request(
        self,
        prompt: str,
        *,
        seed: int,
        kept: Kept | None = None,
        varied: Audio | None = None,
        given: Mapping[str, Given] | None = None,
    ) -> AudioRequest:
        """Return the request for one clip.

        Args:
            prompt: what to make.
            seed: seed of the noise.
            kept: the parts of a clip to keep, or None to make all of it.
            varied: the clip to start from, or None to start from noise.
            given: name of a modality → a clip of it, see `GivenClips`. Guidance steers away from a prediction without
                them, except for what stays of conditions that are left out.

        Raises:
            SpecError: the seed is out of its range, the kept spans do not hold a whole frame, the model cannot make the rest around
                them, or it does not take clips of a modality that is given.
            DataError: the prompt and the clip are longer than the samples that the model was trained with, or a clip that is given
                is too short, too long, comes from another codec, or is missing.
        """
        check_seed(seed)
        given = given or {}
        self._given.check(given)
        slot = self._contexts.slot(self._samples_made, of=self._modality.name)
        self._modality.check_frames(slot.num_frames)
        seconds = self.num_samples / self._modality.sample_rate
        clips = self._given.in_prompt(given)
        context = self._contexts.prompt(prompt, slot, seconds=seconds, clips=clips)
        negative = self._contexts.without_prompt(slot, text=prompt, seconds=seconds, clips=clips)
        if self._negative_prompt:
            staying = tuple(segment for segment in negative if segment.modality in clips)
            negative = self._contexts.prompt(self._negative_prompt, slot, seconds=seconds, name="negative prompt") + staying
        lower = self._given.lower_levels(given, slot)
        slot = self._given.with_aligned(slot, given)
        request = AudioRequest(context=context, negative=negative, slot=slot, seed=seed, lower=lower)
        if varied is not None:
            clip = self._encode(self._to_codec(varied), self._samples_made)
            if lower is not None:  # levels that are given stay as they are
                clip = torch.cat([lower[: self._modality.first_level].to(clip), clip[self._modality.first_level :]])
            request = replace(request, varied=clip, unprompted=self._contexts.without_prompt(slot, seconds=seconds))
        return request if kept is None else self._keep(request, kept)

    def _keep(self, request: AudioRequest, kept: Kept) -> AudioRequest:
        """Add the normalized values `[D, T]` of the kept parts."""
        waveform, num_samples = self._to_codec(kept.clip), self._samples_made
        mask = known_frames(
            kept.spans,
            self._modality.codec.spec,
            num_samples=num_samples,
            num_asked=self.num_samples,
            num_given=waveform.shape[1],
            may_be_all=self._keeps_all,
        )
        if self._one_time and not self._modality.objective.shows_known:
            raise SpecError(
                "the model cannot keep parts of a clip: its backbone has one timestep for a whole clip, and its objective does not show "
                "what is known. Train it with shows_known of its objective"
            )
        self._modality.objective.check_known(torch.from_numpy(mask)[None])
        given = self._encode(waveform, min(num_samples, waveform.shape[1]))
        known = torch.nn.functional.pad(given, (0, len(mask) - given.shape[1]))
        return replace(request, known=known, known_mask=torch.from_numpy(mask))

    @torch.no_grad()
    def _encode(self, waveform: np.ndarray, num_samples: int) -> Tensor:
        """Return normalized values `[D, T]` of `[C, S]` at the codec's rate, cut or padded to `num_samples`, in the model's levels."""
        batch = torch.from_numpy(fit_length(waveform, num_samples))[None].to(self._modality.device)
        return self._modality.encode(batch, torch.tensor([num_samples], device=batch.device)).values[0, : self._modality.most_levels]

    def _to_codec(self, clip: Audio) -> np.ndarray:
        """Return `[C, S]` with the codec's rate and channels."""
        return convert(clip, channels=self._modality.codec.spec.channels, sample_rate=self._modality.codec.spec.sample_rate)
