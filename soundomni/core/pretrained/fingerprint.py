"""Fingerprints of codecs: equal ones encode a clip to the same values."""

from __future__ import annotations

import hashlib
import json

import torch

from soundomni.core.assembly.modality import CodecModality
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.interfaces import Codec
from soundomni.core.spec.registry import load, portable_name, validate_init_args
from soundomni.core.spec.schema import ModalitySpec, Slot
from soundomni.core.spec.values import plain

_NOT_COUNTED = ("weights",)
"""Arguments that say where weights come from: the weights themselves count."""


def complete_slot(slot: Slot, *, trust_class_paths: bool = False) -> Slot:
    """Return the slot of a codec under its portable name, with all arguments that describe it.

    Raise PluginError or SpecError if it cannot be one.
    """
    given = validate_init_args("codec", slot, trust_class_paths=trust_class_paths)
    cls = load("codec", slot.class_path, trust_class_paths=trust_class_paths)
    described = {name: plain(value) for name, value in given.items() if name not in _NOT_COUNTED}
    return Slot(portable_name("codec", slot.class_path, cls), described)


def codec_fingerprint(slot: Slot, codec: Codec, *, trust_class_paths: bool = False) -> str:
    """Return a SHA-256 of a codec: its plugin, its arguments, and the bytes of its weights and buffers.

    It is strict: an argument that only matters for training, or another decoder, gives another fingerprint.

    Args:
        slot: the codec in its spec.
        codec: the codec itself, fitted if it has to be.
        trust_class_paths: whether the slot may name an import path.
    """
    complete = complete_slot(slot, trust_class_paths=trust_class_paths)
    digest = hashlib.sha256(json.dumps([complete.class_path, complete.init_args], sort_keys=True, default=str).encode())
    for name, tensor in sorted(codec.state_dict().items()):
        stored = tensor.detach().cpu().contiguous()
        digest.update(json.dumps([name, str(stored.dtype), list(stored.shape)]).encode())
        digest.update(stored.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def modality_fingerprint(model: UnifiedModel, name: str, spec: ModalitySpec) -> str:
    """Return the fingerprint of the codec of a model's modality `name`, which was built from `spec`."""
    modality = model.modality(name)
    assert isinstance(modality, CodecModality) and spec.codec is not None, "checked when the spec was read"
    return codec_fingerprint(spec.codec, modality.codec, trust_class_paths=True)  # it is built already
