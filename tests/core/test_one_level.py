"""Samplers that fill one level of codes get the same logits whether one level is computed or all.

Shape letters: B clips, K levels, T frames.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import pytest
import torch
from test_next_token import LEVELS, MODELS, SIZE, target
from tiny_aligned import ACOUSTIC, aligned_model, aligned_spec
from torch import Tensor

from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.inference.audio_request import AudioRequest
from soundomni.core.inference.guidance import PartialTarget, guided
from soundomni.core.inference.next_token import TokenSlots
from soundomni.core.inference.one_level import all_levels, of_level, takes_level
from soundomni.core.inference.sampling import sample_audio
from soundomni.core.interfaces import Predict
from soundomni.core.representation import Representation
from soundomni.core.spec.schema import GuidanceSpec
from soundomni.flow import MaskGITSampler, NextTokenSampler

GUIDANCE = {
    "none": GuidanceSpec(scale=1.0),
    "scale": GuidanceSpec(scale=2.5),
    "interval": GuidanceSpec(scale=2.5, interval=(0.3, 0.8)),
    "norm": GuidanceSpec(scale=2.5, renormalize="global"),
}


class Whole(MaskGITSampler):
    """A sampler that always asks for all levels."""

    def sample(self, predict: Predict, start: Representation, **settings: Any) -> Representation:
        return super().sample(all_levels(predict), start, **settings)


class WholeTokens(NextTokenSampler):
    """A sampler that always asks for all levels."""

    def sample(self, predict: Predict, start: Representation, **settings: Any) -> Any:
        return super().sample(all_levels(predict), start, **settings)


@pytest.mark.parametrize("name", list(GUIDANCE))
@pytest.mark.parametrize("order", ["flat", "levels", "delay", "frames"])
def test_tokens_are_the_same(order: Any, name: str) -> None:
    model, writer = MODELS[order, "advance"]
    words = ("one two", "")
    requests = [AudioRequest(context=(writer.text(text),), slot=target(writer, 6), seed=i) for i, text in enumerate(words)]
    made = [sample_audio(model, requests, sampler=sampler, guidance=GUIDANCE[name]) for sampler in (NextTokenSampler(), WholeTokens())]
    assert torch.equal(made[0].values, made[1].values) and made[0].frame_counts == made[1].frame_counts


@pytest.mark.parametrize("name", list(GUIDANCE))
def test_clips_of_several_passes_are_the_same(name: str) -> None:
    spec = aligned_spec(acoustic=ACOUSTIC)
    model = aligned_model(spec)
    writer = segment_writer(model, spec, tokenizer=MODELS["flat", "advance"][1].tokenizer)
    requests = [AudioRequest(context=(), slot=writer.target(samples), seed=1) for samples in (80, 56)]
    settings: dict[str, Any] = {"iterations": [3, 2], "greedy": False}
    made = [sample_audio(model, requests, sampler=kind(**settings), guidance=GUIDANCE[name]) for kind in (MaskGITSampler, Whole)]
    assert torch.equal(made[0].values, made[1].values)


def test_an_objective_that_changes_predictions_sees_all_levels() -> None:
    model, writer = MODELS["flat", "advance"]
    slots = TokenSlots(model, [()], [target(writer, 4)])
    objective, shown = model.made().objective, torch.zeros(1, LEVELS, 1, dtype=torch.int64)
    expected = slots.predict(shown, torch.ones(1, 1))

    class Halved(type(objective)):  # type: ignore[misc]
        def predicted(self, output: Tensor, inputs: Tensor, timesteps: Tensor, *, first: int = 0) -> Tensor:
            assert output.shape[1] == LEVELS * SIZE + 1
            return output / 2

    real, objective.__class__ = type(objective), Halved
    try:
        found = [slots.predict(shown, torch.ones(1, 1), level=level) for level in range(LEVELS)]
    finally:
        objective.__class__ = real
    torch.testing.assert_close(torch.cat(found, dim=1), expected / 2)


def test_who_can_be_asked_for_one_level() -> None:
    def plain(values: Tensor, timesteps: Tensor, *, first: int = 0) -> Tensor:
        return torch.arange(5.0).view(1, 5, 1).expand(1, 5, values.shape[-1])

    def asked(values: Tensor, timesteps: Tensor, *, first: int = 0, level: int | None = None) -> Tensor:
        return plain(values, timesteps) if level is None else torch.full((1, 2, values.shape[-1]), float(level))

    values, times, known = torch.zeros(1, 2, 4, dtype=torch.int64), torch.ones(1), torch.zeros(1, 4, dtype=torch.bool)
    assert of_level(plain, (3, 2))(values, times, level=1)[0, :, 0].tolist() == [3.0, 4.0]
    assert of_level(asked, (3, 2))(values, times, level=1)[0, :, 0].tolist() == [1.0, 1.0]
    assert takes_level(MethodType(lambda self, values, level: values, object()))
    held = PartialTarget(values=values, known=known).hold
    assert takes_level(held(asked)) and not takes_level(held(plain)) and not takes_level(all_levels(asked))

    def branches(values: Tensor, timesteps: Tensor, count: int, *, first: int, level: int | None = None) -> Tensor:
        return asked(values, timesteps, level=level).expand(count, -1, -1, -1)

    able = {name: takes_level(guided(branches, guidance)) for name, guidance in GUIDANCE.items()}
    assert able == {"none": True, "scale": True, "interval": True, "norm": False}, "the norm is that of all levels"
