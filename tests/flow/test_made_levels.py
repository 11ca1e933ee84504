"""Objectives that make only some levels of a codec's codes: what is given stays, what is left out does not exist.

Shape letters: B clips, K levels, T frames, N tokens.
"""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Objective, Query
from soundomni.core.representation import EMPTY, HIDDEN, Representation, RepresentationSpec, Tokens
from soundomni.flow.autoregressive import Autoregressive
from soundomni.flow.masked import Masked
from soundomni.flow.maskgit import MaskGITSampler
from soundomni.flow.next_token import NextTokenSampler
from soundomni.flow.orders import Order

SIZES = (5, 4, 6, 3)
SPEC = RepresentationSpec(kind="codes", sample_rate=100, channels=1, downsampling_ratio=10, codebook_sizes=SIZES)
RANGES = [(first, end) for first in range(4) for end in range(first + 1, 5)]
ORDERS: tuple[Order, ...] = get_args(Order)


def clips(lengths: list[int], seed: int = 0) -> Representation:
    generator = torch.Generator().manual_seed(seed)
    levels = [torch.randint(size, (len(lengths), max(lengths)), generator=generator) for size in SIZES]
    return Representation(torch.stack(levels, dim=1), torch.tensor(lengths), SPEC, tuple(lengths))


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def objectives(levels: tuple[int, int]) -> list[Objective]:
    return [*(Autoregressive(order=order, levels=levels) for order in ORDERS), Masked(levels=levels)]


def query(objective: Objective, clean: Representation, known: Tensor | None = None) -> Query:
    count, frames = len(clean.values), clean.values.shape[-1]
    known = torch.zeros(count, frames, dtype=torch.bool) if known is None else known
    return objective.corrupt(clean, known=known, noise=torch.ones(count, dtype=torch.bool), generators=generators(count))


def first_frames(counts: list[int], frames: int) -> Tensor:
    return torch.arange(frames) < torch.tensor(counts)[:, None]


@pytest.mark.parametrize("levels", RANGES)
def test_sizes_are_those_of_the_levels_that_are_made(levels: tuple[int, int]) -> None:
    first, end = levels
    for objective in objectives(levels):
        tokens, more = objective.tokens(SPEC), int(isinstance(objective, Autoregressive) and not first)
        assert tokens.inputs == (SIZES[0] + more, *SIZES[1:end])
        assert tokens.outputs == tuple(tokens.inputs)[first:]  # type: ignore[arg-type]
        assert objective.made_levels(SPEC) == levels
        found = query(objective, clips([4, 2]))
        assert found.inputs.shape == found.targets.shape == (2, end, objective.num_tokens(SPEC, 4))
        assert objective.given(clips([4, 2])).shape == found.inputs.shape
        assert found.levels == tokens.inputs


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_only_levels_that_are_made_carry_loss_and_those_below_are_shown(data: st.DataObject) -> None:
    first, end = levels = data.draw(st.sampled_from(RANGES))
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    kept = [data.draw(st.integers(0, length - 1)) for length in lengths]
    clean = clips(lengths)
    for objective in objectives(levels):
        found = query(objective, clean, first_frames(kept, max(lengths)))
        assert bool((found.targets[:, :first] == HIDDEN).all()), "nothing is predicted of what is given"
        prediction = torch.zeros(len(lengths), sum(found.levels), found.inputs.shape[-1], requires_grad=True)
        ((total, count),) = objective.loss(prediction, found).values()
        assert int(count) == sum(objective.num_terms(SPEC, length - known) for length, known in zip(lengths, kept, strict=True))
        total.backward()
        below = sum(found.levels[:first])
        assert prediction.grad is not None and not prediction.grad[:, :below].any() and bool(prediction.grad[:, below:].any())
        higher = clean.with_values(clean.values.clone())
        higher.values[:, end:] = 0
        assert torch.equal(query(objective, higher, first_frames(kept, max(lengths))).inputs, found.inputs), "they do not exist"
        if isinstance(objective, Masked):
            for clip, length in enumerate(lengths):
                assert torch.equal(found.inputs[clip, :first, :length], clean.values[clip, :first, :length])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("levels", [one for one in RANGES if one[0]])
def test_levels_that_are_given_come_first_in_the_same_order(order: Order, levels: tuple[int, int]) -> None:
    """Before the first token that is made, places show the tokens of a codec that only has the given levels, without an end."""
    first, end = levels
    frames, clean = 4, clips([4])
    found = query(Autoregressive(order=order, levels=levels), clean)
    below = query(Autoregressive(order=order, levels=(0, first)), clean).targets[0]
    below[0] = below[0].masked_fill(below[0] == SIZES[0], HIDDEN)
    rows = [ids for ids in below.unbind(1) if bool((ids != HIDDEN).any()) or order == "delay"]
    given = torch.stack(rows[: frames + first - 1] if order == "delay" else rows, dim=1)
    if order == "levels":  # the end comes after level 0 there, where it is not given
        assert given.shape[1] == first * frames
    asked = (found.targets[0] != HIDDEN).any(0)
    start = int(torch.nonzero(asked)[0])
    assert start == given.shape[1] and bool(asked[start:].all()), "what is made follows without a gap"
    assert torch.equal(found.inputs[0, :first, 1 : start + 1], given)
    assert bool((found.inputs[0, first:, : start + 1] == HIDDEN).all())
    codes = found.targets[0, first:]
    assert sorted(codes[codes != HIDDEN].tolist()) == sorted(clean.values[0, first:end].flatten().tolist())


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_what_is_given_and_known_never_changes_in_sampling(data: st.DataObject) -> None:
    first, end = levels = data.draw(st.sampled_from(RANGES))
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    kept = [data.draw(st.integers(0, length)) for length in lengths]
    clean, known = clips(lengths, seed=3), first_frames(kept, max(lengths))
    for objective in objectives(levels):
        start = objective.start(clean, known, generators(len(lengths)))
        asked: list[int] = []

        def predict(values: Tensor, timesteps: Tensor, *, first: int = 0) -> Tensor:
            asked.append(first)  # noqa: B023
            classes = objective.tokens(SPEC)  # noqa: B023
            assert isinstance(classes.inputs, tuple)
            noise = torch.randn(len(values), sum(classes.inputs), values.shape[-1], generator=torch.Generator().manual_seed(first))
            return noise

        sampler = MaskGITSampler(iterations=(2, 1)) if isinstance(objective, Masked) else NextTokenSampler()
        expected = sampler.num_evaluations(start)
        made = objective.made(sampler.sample(predict, start, generators=generators(len(lengths))))
        assert len(asked) == expected or (isinstance(start, Tokens) and not first and len(asked) <= expected)
        assert made.spec == SPEC.with_levels(end) and made.values.shape[1] == end
        for clip, (length, count) in enumerate(zip(lengths, kept, strict=True)):
            frames = made.frame_counts[clip]
            assert frames == length if first or isinstance(objective, Masked) else max(count, 1) <= frames <= length
            assert torch.equal(made.values[clip, :first, :frames], clean.values[clip, :first, :frames])
            assert torch.equal(made.values[clip, :, :count], clean.values[clip, :end, :count])
            own = made.values[clip, :, :frames]
            assert int(own.min()) >= 0 and bool((own < torch.tensor(SIZES[:end])[:, None]).all())


def test_passes_are_those_of_levels_that_are_made() -> None:
    clean, none = clips([6]), torch.zeros(1, 6, dtype=torch.bool)
    sampler = MaskGITSampler(iterations=(16, 1))
    for levels, passes in (((0, 4), 19), ((0, 2), 17), ((1, 4), 18), ((3, 4), 16)):
        assert sampler.count_steps(Masked(levels=levels).start(clean, none, generators(1))) == passes
    assert sampler.count_steps(Masked().start(clean, ~none, generators(1))) == 0, "all of it is known"


def test_a_fine_clip_has_no_end_and_its_length_is_that_of_what_is_given() -> None:
    for order, (first, end) in product(ORDERS, RANGES):
        start = Autoregressive(order=order, levels=(first, end)).start(clips([3, 1]), torch.zeros(2, 3, dtype=torch.bool), generators(2))
        ends = (start.values[:, 0] == start.end).sum(1).tolist()
        assert ends == ([0, 0] if first else [1, 1])
        assert not bool((start.values == EMPTY).all(1)[0, : start.frame_counts[0]].any()), "every token holds a code or the end"


@pytest.mark.parametrize("cls", [Autoregressive, Masked])
def test_levels_that_there_cannot_be_are_one_line(cls: type[Autoregressive] | type[Masked]) -> None:
    for levels in ((2, 2), (3, 1), (-1, 2)):
        with pytest.raises(SpecError, match=r"levels is \[.*\]; expected \[first, end\] with 0 <= first < end"):
            cls(levels=levels)
    with pytest.raises(SpecError, match=r"levels is \[2, 5\], but the codec has 4; expected an end of at most 4"):
        cls(levels=(2, 5)).tokens(SPEC)
