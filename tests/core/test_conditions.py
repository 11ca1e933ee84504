"""Conditions that are texts or numbers: encoders read them, prompts hold them, and they are left out singly or together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import RATE, TOKENIZER, model_spec
from torch import Tensor, nn

from soundomni import SoundOmni
from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.errors import DataError, SpecError
from soundomni.core.interfaces import Encoder, Item
from soundomni.core.representation import FeatureSpec
from soundomni.core.sequence import Attend, PackedBatch, Role, Sample
from soundomni.core.spec.schema import DropoutSpec, ModalitySpec, ModelSpec, SegmentTemplate, Slot, Spec
from soundomni.core.writing.tasks import build_tasks
from soundomni.data.samples import SampleWriter

ITEM = Item(key="a", num_samples=RATE // 10, sample_rate=RATE, captions=("rain",))
TASKS = build_tasks({"both": [SegmentTemplate(audio="features"), SegmentTemplate(text="{caption}"), SegmentTemplate(audio="target")]})


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
        return self.table(waveform[:, 0].long())


class Length(Encoder):
    """Reads a number."""

    spec = FeatureSpec(feature_dim=1, source="number")

    def num_tokens(self, num_samples: int) -> int:
        return 1

    def read(self, source: str) -> np.ndarray:
        try:
            return np.asarray([[float(source)]], dtype=np.float32)
        except ValueError as error:
            raise DataError(f"'{source}' is not a number; expected the length in seconds") from error

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        return waveform.transpose(1, 2)


def conditioned() -> ModelSpec:
    own = model_spec(normalize="none")
    letters, length = (ModalitySpec(encoder=Slot(f"{__name__}.{name}"), connector=Slot("linear")) for name in ("Letters", "Length"))
    prompt = [SegmentTemplate(text="{caption}", of="letters"), SegmentTemplate(text="{seconds}", of="length")]
    return replace(own, modalities={**own.modalities, "letters": letters, "length": length}, prompt=prompt)


def built(spec: ModelSpec) -> UnifiedModel:
    return build_model(spec, vocab_size=TOKENIZER.vocab_size, trust_class_paths=True, seed=2)


def writer(spec: ModelSpec, **dropout: object) -> SampleWriter:
    none = DropoutSpec(text=0.0, latent=0.0, features=0.0)
    return SampleWriter(segment_writer(built(spec), spec, tokenizer=TOKENIZER), dropout=replace(none, **dropout))  # type: ignore[arg-type]


def planned(writer: SampleWriter, task: str, seed: int = 0) -> Sample:
    found = writer.plan(ITEM, TASKS[task], seed=seed, key="a")
    return found.sample  # type: ignore[union-attr]


@pytest.mark.parametrize("task", ["generate", "continue", "fill"])
def test_a_task_begins_with_the_prompt_of_the_model(task: str) -> None:
    text, number, target = planned(writer(conditioned()), task).segments
    assert (text.modality, number.modality, target.modality) == ("letters", "length", "latent")
    assert text.waveform is not None and text.waveform.tolist() == [[ord(letter) for letter in "rain"]]
    assert number.waveform is not None and number.waveform.tolist() == [[pytest.approx(0.1)]]
    assert (text.role, text.attend, text.num_frames, number.num_frames) == (Role.FEATURES, Attend.FULL, 4, 1)


def test_a_request_is_written_as_a_sample_of_training() -> None:
    spec = conditioned()
    trained = planned(writer(spec), "generate").segments
    model = SoundOmni(built(spec), Spec(model=spec), TOKENIZER, trust_class_paths=True)
    asked = model.contexts.prompt("rain", model.contexts.slot(RATE // 10))
    for ours, theirs in zip(asked, trained, strict=False):
        assert ours.modality == theirs.modality and np.array_equal(ours.waveform, theirs.waveform)  # type: ignore[arg-type]
        assert (ours.length, ours.attend, ours.positions) == (theirs.length, theirs.attend, theirs.positions)
    assert len(asked) == 2


def test_what_is_made_follows_texts_and_numbers_and_guidance() -> None:
    spec = conditioned()
    network = built(spec)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.made().connector.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model = SoundOmni(network, Spec(model=spec), TOKENIZER, trust_class_paths=True)
    rain, again, wind = (model.generate(text, seconds=0.1, num_steps=2)[0].waveform for text in ("rain", "rain", "wind"))
    steered = model.generate("rain", seconds=0.1, num_steps=2, guidance_scale=3.0, negative_prompt="wind")[0].waveform
    longer = model.generate("rain", seconds=0.2, num_steps=2)[0].waveform[:, :50]
    assert np.array_equal(rain, again)
    assert not np.allclose(rain, wind) and not np.allclose(rain, steered) and not np.allclose(rain[:, :50], longer)


def test_losses_train_the_encoders_of_conditions() -> None:
    spec = conditioned()
    network = built(spec)
    with torch.no_grad():
        for parameter in network.made().connector.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    sample = writer(spec).plan(ITEM, TASKS["generate"], seed=0, key="a")
    filled = writer(spec).fill(sample, np.zeros((1, ITEM.num_samples), np.float32), RATE)  # type: ignore[arg-type]
    for batch in (PackedBatch.from_samples([filled]), PackedBatch.from_samples([])):
        network.zero_grad()
        torch.stack([total for total, _ in network(batch).values()]).sum().backward()
        assert all(p.grad is not None for modality in network.each() for p in modality.connector.parameters())
    assert network.modalities["letters"].encoder.table.weight.grad is not None  # type: ignore[union-attr]


def kept(dropout: SampleWriter, task: str) -> dict[tuple[str, ...], int]:
    found: dict[tuple[str, ...], int] = {}
    for seed in range(400):
        names = tuple(segment.modality for segment in planned(dropout, task, seed).segments[:-1])
        found[names] = found.get(names, 0) + 1
    return found


def test_conditions_are_left_out_singly() -> None:
    found = kept(writer(conditioned(), modalities={"letters": 0.5}), "generate")
    assert set(found) == {("letters", "length"), ("length",)} and 150 < found[("length",)] < 250


def test_conditions_are_left_out_together() -> None:
    found = kept(writer(conditioned(), together={"letters+length": 0.25}), "generate")
    assert set(found) == {("letters", "length"), ()} and 60 < found[()] < 140
    found = kept(writer(model_spec(normalize="none"), together={"text+features": 0.5}), "both")
    assert set(found) == {("features", "text"), ()}


def test_a_group_does_not_change_what_else_is_drawn() -> None:
    spec = model_spec(normalize="none")
    plain, grouped = (writer(spec, text=0.5, together=groups) for groups in ({}, {"features": 0.0}))
    for seed in range(50):
        assert [s.modality for s in planned(plain, "both", seed).segments] == [s.modality for s in planned(grouped, "both", seed).segments]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"modalities": {"leters": 0.5}}, "modalities.leters: the model has no modality 'leters'.*Did you mean 'letters'"),
        ({"together": {"letters+lenght": 0.5}}, "together.letters\\+lenght: the model has no modality 'lenght'.*Did you mean 'length'"),
        ({"modalities": {"letters": 1.5}}, "modalities.letters is 1.5; expected a number from 0 to 1"),
        ({"together": {"text": -0.5}}, "together.text is -0.5; expected a number from 0 to 1"),
    ],
)
def test_shares_of_unknown_modalities_and_out_of_range_are_refused(given: dict[str, object], expected: str) -> None:
    with pytest.raises(SpecError, match=expected):
        writer(conditioned(), **given).check(TASKS["generate"])


def test_what_an_encoder_cannot_read_or_a_model_cannot_hear_is_one_line() -> None:
    spec = conditioned()
    model = SoundOmni(built(spec), Spec(model=spec), TOKENIZER, trust_class_paths=True)
    segments = segment_writer(model.model, spec, tokenizer=TOKENIZER)
    with pytest.raises(DataError, match="'soon' is not a number"):
        segments.condition("soon", of="length")
    with pytest.raises(SpecError, match="does not have 'leters' among what it reads: letters, length. Did you mean 'letters'"):
        segments.condition("x", of="leters")
    assert segments.heard().name == "features", "an encoder of texts does not hear"


def test_abilities_say_what_a_model_makes_hears_and_takes() -> None:
    own = model_spec(normalize="none")
    given = ModalitySpec(codec=Slot("mdct", {"sample_rate": RATE, "frame_size": 8}), connector=Slot("linear"))
    spec = replace(own, modalities={**own.modalities, "given": given})
    found = SoundOmni(built(spec), Spec(model=spec), TOKENIZER, max_tokens=99).abilities()
    (made,), (heard,), (taken,) = found.made, found.heard, found.given
    assert not found.read
    assert (made.name, made.kind, made.sample_rate, made.channels, made.num_steps) == ("latent", "continuous", RATE, 1, 50)
    assert (heard.name, taken.name, found.chats, found.max_tokens) == ("features", "given", False, 99)
    reading = conditioned()
    found = SoundOmni(built(reading), Spec(model=reading), TOKENIZER).abilities()
    assert [(one.name, one.source) for one in found.read] == [("letters", "text"), ("length", "number")]
    assert [one.name for one in found.heard] == ["features"]
