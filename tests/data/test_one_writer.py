"""What a model is asked is what it was taught: requests and training samples consist of the same segments."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.core.interfaces import Item
from soundomni.core.representation import FeatureSpec, RepresentationSpec
from soundomni.core.sequence import Attend, PositionRule, Role, Segment
from soundomni.core.tokenizer import TextTokenizer
from soundomni.core.waveform import Audio
from soundomni.core.writing.prompts import PromptWriter
from soundomni.core.writing.segments import CodecModality, HeardModality, SegmentWriter
from soundomni.core.writing.tasks import build_tasks
from soundomni.data.samples import SampleWriter

TOKENIZER = TextTokenizer.train(["rain on a roof"], vocab_size=261)
RATE = 8000
TEXTS = st.text(min_size=1, max_size=20)


def writer(chat: str, positions: str) -> SegmentWriter:
    rule = PositionRule.named(positions)  # type: ignore[arg-type]
    codec = RepresentationSpec(kind="continuous", latent_dim=4, sample_rate=RATE, downsampling_ratio=100, channels=1)
    made = CodecModality(name="latent", spec=codec, positions=rule)
    heard = HeardModality(
        name="features",
        spec=FeatureSpec(sample_rate=RATE, feature_dim=3),
        num_tokens=lambda num_samples: -(-num_samples // 200),
        positions=rule,
        attend=Attend.CAUSAL if positions == "advance" else Attend.FULL,
    )
    return SegmentWriter(tokenizer=TOKENIZER, modalities=[made, heard], chat=chat)  # type: ignore[arg-type]


def taught(segments: SegmentWriter, task: str, *, num_samples: int, caption: str, question: str, answer: str) -> tuple[Segment, ...]:
    item = Item(key="a", num_samples=num_samples, sample_rate=RATE, captions=(caption,), questions=((question, answer),))
    planned: Any = SampleWriter(segments).plan(item, build_tasks()[task], seed=1, key="a")
    return planned.sample.segments  # type: ignore[no-any-return]


def assert_same(ours: Segment, theirs: Segment) -> None:
    for field in dataclasses.fields(Segment):
        if field.name != "waveform":
            np.testing.assert_array_equal(getattr(ours, field.name), getattr(theirs, field.name), err_msg=field.name)


@pytest.mark.parametrize("positions", ["shared", "advance"])
@pytest.mark.parametrize("chat", ["none", "qwen2-audio"])
@settings(max_examples=15, deadline=None)
@given(prompt=TEXTS, num_samples=st.integers(100, 5000))
def test_a_prompt_and_its_clip_are_written_as_in_training(chat: str, positions: str, prompt: str, num_samples: int) -> None:
    segments = writer(chat, positions)
    contexts = PromptWriter(segments, max_tokens=None)
    slot = contexts.slot(num_samples)
    asked = (*contexts.prompt(prompt, slot), slot)
    sample = taught(segments, "generate", num_samples=num_samples, caption=prompt, question="what?", answer="no")
    assert len(asked) == len(sample)
    for ours, theirs in zip(asked, sample, strict=True):
        assert_same(ours, theirs)
    assert (slot.role, slot.attend, slot.positions) == (Role.LATENT, Attend.NOISE, PositionRule.named(positions))  # type: ignore[arg-type]


@pytest.mark.parametrize("positions", ["shared", "advance"])
@pytest.mark.parametrize("chat", ["none", "qwen2-audio"])
@pytest.mark.parametrize("task", ["describe", "answer"])
@settings(max_examples=15, deadline=None)
@given(said=TEXTS, question=TEXTS, num_samples=st.integers(100, 5000))
def test_a_clip_and_its_question_are_written_as_in_training(
    task: str, chat: str, positions: str, said: str, question: str, num_samples: int
) -> None:
    segments = writer(chat, positions)
    contexts = PromptWriter(segments, max_tokens=None)
    clip = Audio(np.full((1, num_samples), 0.1, np.float32), RATE)
    asked = contexts.clip(clip, question if task == "answer" else None)
    *before, told = taught(segments, task, num_samples=num_samples, caption=said, question=question, answer=said)
    assert len(asked) == len(before)
    for ours, theirs in zip(asked, before, strict=True):
        assert_same(ours, theirs)
    opening = contexts.opening()
    assert told.token_ids.tolist() == [*opening, *TOKENIZER.encode(said)]
    heard = next(segment for segment in asked if segment.role == Role.FEATURES)
    np.testing.assert_array_equal(heard.waveform, clip.waveform)
