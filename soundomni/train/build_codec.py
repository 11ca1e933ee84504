"""Building what the section `codec` of a spec trains: the codec and its critics."""

from __future__ import annotations

from typing import cast

from soundomni.core.interfaces import Codec, Critic
from soundomni.core.spec import registry
from soundomni.core.spec.schema import CodecSpec, TrainSpec
from soundomni.train.codec_training import CodecTraining


def build_codec(section: CodecSpec, train: TrainSpec, *, trust_class_paths: bool = False) -> CodecTraining:
    """Build a codec and its critics, with weights drawn from torch's global generator.

    Raises:
        SpecError: a plugin does not fit, or there is nothing to train.
    """
    codec = cast(Codec, registry.build("codec", section.codec, trust_class_paths=trust_class_paths))
    runtime = {"sample_rate": codec.spec.sample_rate, "channels": codec.spec.channels}
    critics = {
        name: cast(Critic, registry.build("critic", slot, trust_class_paths=trust_class_paths, **runtime))
        for name, slot in section.used.items()
    }
    return CodecTraining(codec, critics, section, train)
