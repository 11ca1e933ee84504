"""The writer of samples that a model's parts and spec call for."""

from __future__ import annotations

from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.spec.schema import DropoutSpec, ModelSpec
from soundomni.core.tokenizer import TextTokenizer
from soundomni.data.samples import SampleWriter


def sample_writer(
    model: UnifiedModel, spec: ModelSpec, *, tokenizer: TextTokenizer, dropout: DropoutSpec, codec_alone: bool = False
) -> SampleWriter:
    """Returns the writer for a model.

    Args:
        model: it may be on the meta device.
        spec: of the model.
        tokenizer: writes the texts.
        dropout: how often conditions of a target are left out.
        codec_alone: whether nothing but the codec is trained: its frames then pass no connector, and are as many as they like.
    """
    encoder = model.encoder
    return SampleWriter(
        tokenizer=tokenizer,
        codec_spec=model.codec.spec,
        encoder_spec=encoder.spec if encoder is not None else None,
        encoder_tokens=encoder.num_tokens if encoder is not None else None,
        max_frames=None if codec_alone else model.latent_connector.max_frames,
        latent_positions=spec.latent_positions,
        feature_positions=spec.feature_positions,
        feature_attend=spec.feature_attend,
        chat=spec.chat,
        dropout=dropout,
    )
