"""The writer of segments for a model, from its parts and its spec."""

from __future__ import annotations

from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.spec.schema import ModelSpec
from soundomni.core.tokenizer import TextTokenizer
from soundomni.core.writing.segments import SegmentWriter


def segment_writer(model: UnifiedModel, spec: ModelSpec, *, tokenizer: TextTokenizer, codec_only: bool = False) -> SegmentWriter:
    """Return the writer for a model.

    Args:
        model: the model; it may be on the meta device.
        spec: the model's spec.
        tokenizer: writes the texts.
        codec_only: whether only the codec is trained. Its frames then pass no connector, and there may be any number of
            them.
    """
    encoder = model.encoder
    return SegmentWriter(
        tokenizer=tokenizer,
        codec_spec=model.codec.spec,
        encoder_spec=encoder.spec if encoder is not None else None,
        encoder_tokens=encoder.num_tokens if encoder is not None else None,
        max_frames=None if codec_only else model.latent_connector.max_frames,
        latent_positions=spec.latent_positions,
        feature_positions=spec.feature_positions,
        feature_attend=spec.feature_attend,
        chat=spec.chat,
    )
