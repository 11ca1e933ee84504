"""Models of the steps: shipped specs with other sizes, with weights from seeds, and batches of toy sounds packed for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from soundomni import SoundOmni
from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.lora import add_adapters
from soundomni.core.assembly.modality import CodecModality
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.sequence import PackedBatch
from soundomni.core.spec import registry
from soundomni.core.spec.load import load_spec, resolve
from soundomni.core.spec.schema import Spec
from soundomni.core.tokenizer import TextTokenizer
from soundomni.data.loader import PackedLoader
from soundomni.data.mixture import Mixture
from soundomni.data.samples import SampleWriter


@dataclass
class Built:
    """A model on the CPU or the GPU, and what was needed to build it."""

    spec: Spec
    tokenizer: TextTokenizer
    model: UnifiedModel

    @property
    def user(self) -> SoundOmni:
        """The model ready for use."""
        return SoundOmni(self.model, self.spec, self.tokenizer, in_training=True)


def spec_of(base: str, *changes: str) -> Spec:
    """Return a shipped spec with changes such as "train.steps=3"."""
    pairs = [one.split("=", 1) for one in ("data.workers=1", *changes)]
    return resolve(load_spec([base], [(key, value) for key, value in pairs]))


def built(spec: Spec, *, tokenizer: TextTokenizer | None = None) -> Built:
    """Build a model on the CPU with all of its weights drawn, also those that start at zero and would hide what comes before them."""
    tokenizer = TextTokenizer.train([], vocab_size=spec.of_model.tokenizer.vocab_size) if tokenizer is None else tokenizer
    model = build_model(spec.of_model, vocab_size=tokenizer.vocab_size, seed=1)
    if spec.train is not None and spec.train.lora is not None:
        add_adapters(model, spec.train.lora)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return Built(spec, tokenizer, model)


def built_there(spec: Spec, device: torch.device) -> Built:
    """Build a large model with weights drawn on the device."""
    tokenizer = TextTokenizer.train([], vocab_size=spec.of_model.tokenizer.vocab_size)
    model = build_model(spec.of_model, vocab_size=tokenizer.vocab_size, drawn=()).to(device)
    generator = torch.Generator(device).manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.02, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return Built(spec, tokenizer, model)


def pack(made: Built, count: int = 1) -> Sequence[PackedBatch]:
    """Pack batches from the data of the spec, on the CPU, and fit codecs and latents that are not fitted yet."""
    spec, model = made.spec, made.model
    assert spec.data is not None
    mixture = Mixture.open(spec.data, registry.build)
    writer = SampleWriter(segment_writer(model, spec.of_model, tokenizer=made.tokenizer), dropout=spec.data.condition_dropout)
    loader = PackedLoader(mixture=mixture, writer=writer, spec=spec.data, batches_per_step=count)
    try:
        batches = next(loader).batches
    finally:
        loader.close()
    for modality in model.each():
        if isinstance(modality, CodecModality):
            modality.fit([batch.of(modality.name).to(model.device) for batch in batches])
    return batches


def nano(device: torch.device) -> SoundOmni:
    """Return the model that comes with the package."""
    return SoundOmni.from_pretrained(Path(registry.__file__).parents[2] / "models" / "nano", device=device)


def gradients(model: UnifiedModel) -> dict[str, Tensor]:
    """Return the gradients of the trained parameters, zero for those without one, on the CPU."""
    return {
        name: (torch.zeros_like(p) if p.grad is None else p.grad).detach().cpu() for name, p in model.named_parameters() if p.requires_grad
    }
