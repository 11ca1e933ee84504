"""What a model is asked to make: a prompt, with what is kept or varied of a clip.

Shape letters: C audio channels, S samples, D latent dimensions, T frames.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import DataError
from soundomni.core.inference.editing import Kept, known_frames
from soundomni.core.inference.sampling import AudioRequest, context_length, text_context
from soundomni.core.limits import check_seed
from soundomni.core.sequence import AUDIO_BOUNDARIES
from soundomni.core.tokenizer import TextTokenizer
from soundomni.core.waveform import Audio, convert, fit_length


class RequestBuilder:
    """Writes prompts and clips as requests for clips of one length.

    Args:
        model: the network.
        tokenizer: its text tokens.
        max_tokens: the longest sample it was trained with; None for no limit.
        num_samples: S of each clip, at the codec's rate.
        negative_prompt: what to steer away from, or None.
    """

    def __init__(
        self, model: UnifiedModel, tokenizer: TextTokenizer, *, max_tokens: int | None, num_samples: int, negative_prompt: str | None
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self.num_samples = num_samples
        self._negative = text_context(tokenizer, negative_prompt) if negative_prompt else ()

    def request(self, prompt: str, *, seed: int, kept: Kept | None = None, varied: Audio | None = None) -> AudioRequest:
        """Writes the request for one clip.

        Args:
            prompt: what to make.
            seed: of its noise.
            kept: what is kept of a clip, or None to make all of it.
            varied: the clip to start from, or None to start from noise.

        Raises:
            SpecError: the seed is out of its range, or nothing whole is kept.
            DataError: the prompt and the clip are longer than what the model was trained with.
        """
        check_seed(seed)
        spec, num_samples = self._model.codec.spec, self.num_samples
        context = text_context(self._tokenizer, prompt)
        frames = spec.num_frames(num_samples)
        self._model.check_frames(frames)
        for before, name in ((context, "prompt"), (self._negative, "negative prompt")):
            text = context_length(before)
            if self._max_tokens is not None and text + frames + AUDIO_BOUNDARIES > self._max_tokens:
                fits = spec.num_samples(self._max_tokens - text - AUDIO_BOUNDARIES) / spec.sample_rate
                raise DataError(
                    f"{num_samples / spec.sample_rate:g} s of audio and a {name} of {text} tokens take {text + frames + AUDIO_BOUNDARIES} "
                    f"tokens; the model was trained with at most {self._max_tokens}: "
                    + (f"at most {fits:g} s fit with this {name}" if fits > 0 else f"shorten the {name}")
                )
        request = AudioRequest(context=context, negative=self._negative, num_frames=frames, seed=seed)
        if varied is not None:
            request = replace(request, varied=self._encode(self._to_codec(varied), num_samples))
        return request if kept is None else self._keep(request, kept)

    def _keep(self, request: AudioRequest, kept: Kept) -> AudioRequest:
        """Adds the normalised values `[D, T]` of what is kept."""
        waveform, num_samples = self._to_codec(kept.clip), self.num_samples
        mask = known_frames(kept.spans, self._model.codec.spec, num_samples=num_samples, num_given=waveform.shape[1])
        given = self._encode(waveform, min(num_samples, waveform.shape[1]))
        known = torch.nn.functional.pad(given, (0, len(mask) - given.shape[1]))
        return replace(request, known=known, known_mask=torch.from_numpy(mask))

    @torch.no_grad()
    def _encode(self, waveform: np.ndarray, num_samples: int) -> Tensor:
        """`[C, S]` at the codec's rate, cut or lengthened to `num_samples` → normalised values `[D, T]`."""
        batch = torch.from_numpy(fit_length(waveform, num_samples))[None].to(self._model.device)
        return self._model.encode(batch, torch.tensor([num_samples], device=batch.device)).values[0]

    def _to_codec(self, clip: Audio) -> np.ndarray:
        """Returns `[C, S]` with the rate and the channels of the codec."""
        return convert(clip, channels=self._model.codec.spec.channels, sample_rate=self._model.codec.spec.sample_rate)
