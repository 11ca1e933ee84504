"""A tiny Conformer that makes latents or codes, with a text and a number that reach it in one of three ways."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from tiny_models import TOKENIZER, double
from torch import Tensor, nn

from soundomni import SoundOmni
from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.interfaces import Encoder, Item
from soundomni.core.representation import FeatureSpec
from soundomni.core.sequence import PackedBatch, Sample
from soundomni.core.spec.schema import DropoutSpec, GuidanceSpec, ModalitySpec, ModelSpec, SegmentTemplate, Slot, Spec
from soundomni.core.writing.tasks import build_tasks
from soundomni.data.samples import SampleWriter

RATE = 1000
CONFORMER = Slot("conformer", {"hidden_dim": 16, "num_layers": 2, "num_heads": 2})
CODEC = Slot("soundstream", {
    **{"sample_rate": RATE, "base_channels": 2, "channel_multiples": [1, 2], "strides": [2, 4], "latent_dim": 4},
    "quantizer": {"method": "fsq", "num_levels": 2, "steps": [4, 3]},
})  # fmt: skip
MADE = {
    "masked": ModalitySpec(codec=CODEC, connector=Slot("codes"), objective=Slot("masked"), sampler=Slot("maskgit", {"iterations": [3, 1]})),
    "autoregressive": ModalitySpec(
        codec=CODEC, connector=Slot("codes"), objective=Slot("autoregressive", {"order": "delay"}), sampler=Slot("next-token")
    ),
    "flow-matching": ModalitySpec(
        codec=Slot("mdct", {"sample_rate": RATE, "frame_size": 16}),
        connector=Slot("linear"),
        objective=Slot("flow-matching"),
        sampler=Slot("euler", {"num_steps": 3}),
    ),
}
TASKS = build_tasks({"twice": [
    *[SegmentTemplate(text="{caption}", of="letters"), SegmentTemplate(audio="target")],
    *[SegmentTemplate(text="{seconds}", of="letters"), SegmentTemplate(audio="target")],
]})  # fmt: skip


class Letters(Encoder):
    """Reads a text as one number for each letter."""

    spec = FeatureSpec(feature_dim=4, source="text")

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(128, 4)

    def num_tokens(self, num_samples: int) -> int:
        return num_samples

    def read(self, source: str) -> np.ndarray:
        return np.asarray([[ord(letter) for letter in source]], dtype=np.float32)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        return self.table(waveform[:, 0].nan_to_num().long()) + 0 * waveform[:, 0, :, None].to(self.table.weight)


class Length(Encoder):
    """Reads a number."""

    spec = FeatureSpec(feature_dim=1, source="number")

    def num_tokens(self, num_samples: int) -> int:
        return 1

    def read(self, source: str) -> np.ndarray:
        return np.asarray([[float(source)]], dtype=np.float32)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        return waveform.transpose(1, 2)


def conditioned_spec(
    letters: str = "cross", length: str = "global", *, objective: str = "masked", router: str = "dense", backbone: Slot = CONFORMER
) -> ModelSpec:
    given = {
        name: ModalitySpec(encoder=Slot(f"{__name__}.{name.title()}"), connector=Slot("linear"), enters=enters)  # type: ignore[arg-type]
        for name, enters in (("letters", letters), ("length", length))
    }
    prompt = [SegmentTemplate(text="{caption}", of="letters"), SegmentTemplate(text="{seconds}", of="length")]
    made = replace(MADE[objective], guidance=GuidanceSpec(scale=2.0))
    return ModelSpec(backbone=backbone, router=Slot(router), modalities={"made": made, **given}, prompt=prompt)


def conditioned_model(spec: ModelSpec, *, precise: bool = True) -> UnifiedModel:
    """A model whose every parameter is random, those that start at zero included; in float64 if precise."""
    model = build_model(spec, vocab_size=TOKENIZER.vocab_size, trust_class_paths=True, seed=1)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.double() if precise else model


def user_of(model: UnifiedModel, spec: ModelSpec) -> SoundOmni:
    return SoundOmni(model, Spec(model=spec), TOKENIZER, trust_class_paths=True)


def sample_writer(model: UnifiedModel, spec: ModelSpec, **dropout: object) -> SampleWriter:
    none = DropoutSpec(text=0.0, latent=0.0, features=0.0)
    return SampleWriter(segment_writer(model, spec, tokenizer=TOKENIZER), dropout=replace(none, **dropout))  # type: ignore[arg-type]


def samples_of(writer: SampleWriter, texts: list[str], task: str = "generate") -> list[Sample]:
    """Samples of clips of different lengths with these captions, each in a group of its own."""
    made = []
    for i, text in enumerate(texts):
        count = 60 + 37 * i
        planned = writer.plan(Item(key=str(i), num_samples=count, sample_rate=RATE, captions=(text,)), TASKS[task], seed=i, key=str(i))
        waveform = np.random.default_rng(i).standard_normal((1, count)).astype(np.float32)
        made.append(replace(writer.fill(planned, waveform, RATE), group=str(i)))  # type: ignore[arg-type]
    return made


def batch_of(samples: list[Sample]) -> PackedBatch:
    return double(PackedBatch.from_samples(samples).broken_down())
