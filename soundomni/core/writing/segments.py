"""The writer of segments, the same one for training and for inference, so that a model gets its inputs in the form that
it learned.

Shape letters: S samples, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from soundomni.core.representation import FeatureSpec, RepresentationSpec
from soundomni.core.sequence import Attend, PositionRule, Role, Segment, audio_segment, text_segment
from soundomni.core.spec.schema import SegmentTemplate
from soundomni.core.tokenizer import TextTokenizer

Positions = Literal["shared", "advance"]


class SegmentWriter:
    """Writes the segments of one model. It only needs the spec, not the weights.

    Args:
        tokenizer: the model's tokenizer.
        codec_spec: spec of the codec whose representation the model makes.
        encoder_spec, encoder_tokens: spec and `num_tokens` of the understanding encoder; None without an encoder.
        max_frames: how many codec frames the latent connector can tell apart; None for any number.
        latent_positions, feature_positions, feature_attend, chat: as in ModelSpec.
    """

    def __init__(
        self,
        *,
        tokenizer: TextTokenizer,
        codec_spec: RepresentationSpec,
        encoder_spec: FeatureSpec | None = None,
        encoder_tokens: Callable[[int], int] | None = None,
        max_frames: int | None = None,
        latent_positions: Positions = "shared",
        feature_positions: Positions = "advance",
        feature_attend: Literal["full", "causal"] = "full",
        chat: Literal["none", "qwen2-audio"] = "none",
    ) -> None:
        if (encoder_spec is None) != (encoder_tokens is None):
            raise ValueError("encoder_spec and encoder_tokens come together")
        self.tokenizer = tokenizer
        self.codec_spec = codec_spec
        self.encoder_spec = encoder_spec
        self.max_frames = max_frames
        self.chat = chat
        self._encoder_tokens = encoder_tokens
        self._latent_positions = PositionRule.named(latent_positions)
        self._feature_positions = PositionRule.named(feature_positions)
        self._feature_attend = Attend.named(feature_attend)

    def segment(
        self,
        template: SegmentTemplate,
        *,
        texts: Mapping[str, str],
        num_heard: int = 0,
        num_made: int = 0,
        made: tuple[int, int] | None = None,
    ) -> Segment:
        """Write one segment of a task.

        Args:
            template: template of the segment.
            texts: values of its placeholders.
            num_heard: S of a clip to understand, at the encoder's rate.
            num_made: S of a clip to make or to give as context, at the codec's rate.
            made: the frames of a clip to make, (first, end); None for all of them.
        """
        if template.text is not None:
            return self.text(template.text.format(**texts), loss=template.loss)
        if template.audio == "features":
            return self.features(num_heard)
        return self.context(num_made) if template.audio == "context" else self.target(num_made, made=made)

    def text(self, text: str, *, loss: bool = False) -> Segment:
        """Write text as a causal segment; with loss, as one to predict."""
        return text_segment(self.tokenizer.encode(text), bos=self.tokenizer.bos, eos=self.tokenizer.eos, loss=loss)

    def num_features(self, num_samples: int) -> int:
        """Return how many features the encoder makes from S samples at its rate. The model must have an encoder."""
        assert self._encoder_tokens is not None, "the model has no encoder"
        return self._encoder_tokens(num_samples)

    def features(self, num_samples: int) -> Segment:
        """Write a clip to understand, of S samples at the encoder's rate. The model must have an encoder."""
        return audio_segment(
            role=Role.FEATURES,
            attend=self._feature_attend,
            num_frames=self.num_features(num_samples),
            num_samples=num_samples,
            boundary_ids=self._boundary_ids,
            positions=self._feature_positions,
        )

    def target(self, num_samples: int, *, made: tuple[int, int] | None = None) -> Segment:
        """Write a clip to make, of S samples at the codec's rate; of its T frames, those outside `made`, (first, end),
        are given.
        """
        frames = self.codec_spec.num_frames(num_samples)
        first, end = made or (0, frames)
        index = np.arange(frames)
        known = (index < first) | (index >= end) if (first, end) != (0, frames) else None
        return self._frames(num_samples, Attend.NOISE, known)

    def context(self, num_samples: int) -> Segment:
        """Write a clip as clean context (timestep 0), of S samples at the codec's rate."""
        return self._frames(num_samples, Attend.FULL, None)

    @property
    def _boundary_ids(self) -> tuple[int, int]:
        return self.tokenizer.audio_bos, self.tokenizer.audio_eos

    def _frames(self, num_samples: int, attend: Attend, known: np.ndarray | None) -> Segment:
        return audio_segment(
            role=Role.CODES if self.codec_spec.kind == "codes" else Role.LATENT,
            attend=attend,
            num_frames=self.codec_spec.num_frames(num_samples),
            num_samples=num_samples,
            boundary_ids=self._boundary_ids,
            positions=self._latent_positions,
            known=known,
        )
