"""The writer of segments for a model, from its parts and its spec."""

from __future__ import annotations

from soundomni.core.assembly.modality import CodecModality, EncoderModality, MadeModality, Modality
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.representation import RepresentationSpec
from soundomni.core.sequence import Attend, PositionRule
from soundomni.core.spec.schema import ModalitySpec, ModelSpec
from soundomni.core.tokenizer import TextTokenizer
from soundomni.core.writing import segments
from soundomni.core.writing.segments import SegmentWriter


def segment_writer(model: UnifiedModel, spec: ModelSpec, *, tokenizer: TextTokenizer) -> SegmentWriter:
    """Return the writer for a model.

    Args:
        model: the model; it may be on the meta device.
        spec: the model's spec.
        tokenizer: writes the texts.
    """
    used = spec.used
    facts = [_facts(modality, used[modality.name], one_time=model.backbone.takes_times) for modality in model.each()]
    has_text = model.backbone.takes_text
    return SegmentWriter(tokenizer=tokenizer, modalities=facts, chat=spec.chat, prompt=spec.prompt, has_text=has_text)


def clip_writer(spec: RepresentationSpec, *, tokenizer: TextTokenizer) -> SegmentWriter:
    """Return the writer for a codec that is trained on its own: its clips have any number of frames, as no connector takes them."""
    return SegmentWriter(tokenizer=tokenizer, modalities=[segments.CodecModality(name=segments.CLIP, spec=spec)])


def _facts(modality: Modality, spec: ModalitySpec, *, one_time: bool) -> segments.HeardModality | segments.CodecModality:
    positions = PositionRule.named(spec.positions)
    if isinstance(modality, EncoderModality):
        encoder = modality.encoder
        return segments.HeardModality(
            name=modality.name,
            spec=encoder.spec,
            num_tokens=encoder.num_tokens,
            read=encoder.read,
            positions=positions,
            attend=Attend.named(spec.attend),
            placed=spec.enters == "prefix",
            stays=spec.enters == "cross+global",
        )
    assert isinstance(modality, CodecModality), "it has an encoder or a codec"
    made = modality if isinstance(modality, MadeModality) else None
    return segments.CodecModality(
        name=modality.name,
        spec=modality.codec.spec,
        target_attend=None if made is None else made.objective.attend,
        max_tokens=modality.connector.max_frames,
        positions=positions,
        num_tokens=None if made is None else made.num_tokens,
        aligned=() if made is None else made.aligned,
        keeps=made is None or not one_time or made.objective.shows_known,
    )
