"""Autoregressive codes: orders against cases worked by hand, what is shown and asked for, and what counts.

Shape letters: B clips, K levels, T frames, N tokens.
"""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.core.errors import SpecError
from soundomni.core.representation import EMPTY, HIDDEN, Representation, RepresentationSpec
from soundomni.flow import Autoregressive
from soundomni.flow.orders import Order, arrange, end_token, frames_before, num_tokens, restore

ORDERS: tuple[Order, ...] = get_args(Order)
SIZES = (5, 4, 3)
SPEC = RepresentationSpec(kind="codes", sample_rate=8000, channels=1, downsampling_ratio=100, codebook_sizes=SIZES)
E, H, X = EMPTY, HIDDEN, 5
"""Nothing, hidden, and the end of a clip."""


def clips(*lengths, sizes=SIZES, padding=0, seed=0):
    spec, rng = replace(SPEC, codebook_sizes=sizes), np.random.default_rng(seed)
    values = np.stack([rng.integers(0, size, (len(lengths), max(lengths) + padding)) for size in sizes], 1)
    return Representation(torch.from_numpy(values), torch.tensor(lengths), spec, tuple(lengths))


def corrupt(objective, clean, *, known=None, noise=None, seeds=None):
    count, frames = len(clean.values), clean.values.shape[2]
    return objective.corrupt(
        clean,
        known=torch.zeros(count, frames, dtype=torch.bool) if known is None else known,
        noise=torch.ones(count, dtype=torch.bool) if noise is None else noise,
        generators=[torch.Generator().manual_seed(seed) for seed in (range(count) if seeds is None else seeds)],
    )


BY_HAND = {
    "flat": [[0, E, E, 1, E, E, X], [E, 2, E, E, 3, E, E], [E, E, 1, E, E, 2, E]],
    "levels": [[0, 1, X, E, E, E, E], [E, E, E, 2, 3, E, E], [E, E, E, E, E, 1, 2]],
    "delay": [[0, 1, X, E], [E, 2, 3, E], [E, E, 1, 2]],
    "frames": [[0, 1, X], [2, 3, E], [1, 2, E]],
}
"""The codes 0 1 / 2 3 / 1 2 of three levels and two frames."""


@pytest.mark.parametrize("order", ORDERS)
def test_orders_worked_by_hand(order):
    codes = torch.tensor([[[0, 1], [2, 3], [1, 2]]])
    tokens = arrange(codes, torch.tensor([2]), order, end=X, width=len(BY_HAND[order][0]))
    assert tokens.tolist() == [BY_HAND[order]]
    clean = Representation(codes, torch.tensor([2]), SPEC)
    query = corrupt(Autoregressive(order=order), clean)
    shown = [[H, *(H if cell == E else cell for cell in row[:-1])] for row in BY_HAND[order]]
    assert query.inputs.tolist() == [shown] and torch.equal(query.inputs, Autoregressive(order=order).given(clean))
    assert query.targets.tolist() == [[[H if cell == E else cell for cell in row] for row in BY_HAND[order]]]
    assert query.levels == (6, 4, 3) and query.loss_mask.all() and (query.timesteps == 1).all()


@pytest.mark.parametrize("order", ORDERS)
@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    padding=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_any_codes_come_back_from_their_tokens(order, lengths, sizes, padding, seed):
    clean = clips(*lengths, sizes=tuple(sizes), padding=padding, seed=seed)
    levels, counts = len(sizes), [num_tokens(order, len(sizes), frames) for frames in lengths]
    tokens = arrange(clean.values, clean.lengths, order, end=sizes[0], width=max(counts) + padding)
    codes, found = restore(tokens, order, end=sizes[0])
    assert found.tolist() == lengths
    for clip, (frames, count) in enumerate(zip(lengths, counts, strict=True)):
        assert torch.equal(codes[clip, :, :frames], clean.values[clip, :, :frames]) and not codes[clip, :, frames:].any()
        assert int((tokens[clip] != EMPTY).sum()) == levels * frames + 1, "each code has one place, and so has the end"
        assert (tokens[clip, :, count:] == EMPTY).all() and (tokens[clip, :, count - 1] != EMPTY).any(), "no token more than needed"
        assert (tokens[clip, :, :count] != EMPTY).any(0).all(), "no token without an id"
        end = end_token(order, levels, frames)
        assert tokens[clip, 0, end] == sizes[0] and frames_before(order, levels, end) == frames


def test_a_clip_without_an_end_is_refused():
    with pytest.raises(ValueError, match="a clip does not end: no token of its level 0 is 5"):
        restore(torch.zeros(1, 2, 4, dtype=torch.int64), "frames", end=5)


@pytest.mark.parametrize("order", ORDERS)
@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=2, max_size=4),
    shares=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    forget=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 1000),
)
def test_codes_that_are_known_are_not_asked_for_and_the_batch_does_not_matter(order, lengths, shares, forget, seed):
    objective, clean = Autoregressive(order=order, forget=forget), clips(*lengths, seed=seed)
    given = [int(share * frames) for share, frames in zip(shares, lengths, strict=False)]
    known = torch.arange(max(lengths)) < torch.tensor(given)[:, None]
    seeds = [seed + clip for clip in range(len(lengths))]
    query = corrupt(objective, clean, known=known, seeds=seeds)
    for clip, (frames, count) in enumerate(zip(lengths, given, strict=True)):
        assert int((query.targets[clip] != HIDDEN).sum()) == objective.num_terms(SPEC, frames - count)
        own = Representation(clean.values[clip : clip + 1, :, :frames], torch.tensor([frames]), SPEC)
        alone = corrupt(objective, own, known=known[clip : clip + 1, :frames], seeds=[seeds[clip]])
        width = objective.num_tokens(SPEC, frames)
        assert torch.equal(query.inputs[clip, :, :width], alone.inputs[0])
        assert torch.equal(query.targets[clip, :, :width], alone.targets[0]) and (query.targets[clip, :, width:] == HIDDEN).all()
    start = objective.start(clean, known, [torch.Generator()] * len(lengths))
    hidden = start.values == HIDDEN
    asked = query.targets != HIDDEN
    assert torch.equal(hidden, asked & (query.targets != SIZES[0])), "what is hidden at the start is what training asks for"
    assert torch.equal(start.values[~hidden & (start.values != EMPTY)], tokens_of(order, clean)[~hidden & (start.values != EMPTY)])


def tokens_of(order, clean):
    width = num_tokens(order, len(SIZES), int(clean.lengths.max()))
    return arrange(clean.values, clean.lengths, order, end=SIZES[0], width=width)


def test_the_loss_is_the_cross_entropy_of_every_id_that_is_asked_for():
    """Against a sum over single cells in float64."""
    objective, clean = Autoregressive(order="delay"), clips(6, 3)
    query = corrupt(objective, clean, known=torch.tensor([[True] * 2 + [False] * 4, [False] * 6]), noise=torch.tensor([True, True]))
    logits = torch.randn(2, 13, query.inputs.shape[2], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total, count = objective.loss(logits, query)["autoregressive"]
    expected, offsets = 0.0, (0, 6, 10)
    for clip, level, token in torch.nonzero(query.targets != HIDDEN).tolist():
        own = logits[clip, offsets[level] : offsets[level] + query.levels[level], token]
        expected -= float(own.log_softmax(0)[query.targets[clip, level, token]])
    assert int(count) == 3 * (4 + 3) + 2 and float(total) == pytest.approx(expected, rel=1e-5)
    none, nothing = objective.loss(logits, corrupt(objective, clean, noise=torch.tensor([False, False])))["autoregressive"]
    assert float(none) == 0 and int(nothing) == 0


def test_a_share_of_the_tokens_is_forgotten_and_still_asked_for():
    objective, clean = Autoregressive(order="frames", forget=0.3), clips(*[400] * 5)
    query = corrupt(objective, clean, noise=torch.tensor([True] * 4 + [False]))
    plain = corrupt(Autoregressive(order="frames"), clean)
    forgotten = (query.inputs == HIDDEN).all(1)[:, 1:]
    assert float(forgotten[:4].float().mean()) == pytest.approx(0.3, abs=0.04) and not forgotten[4].any()
    assert torch.equal(query.targets[:4], plain.targets[:4])
    shown = (query.inputs != HIDDEN).all(1)
    assert torch.equal(query.inputs.transpose(1, 2)[shown], plain.inputs.transpose(1, 2)[shown])
    assert not torch.equal(forgotten[0], forgotten[1])


@pytest.mark.parametrize("order", ORDERS)
def test_a_clip_that_ends_early_goes_on_as_one_of_that_length_with_its_known_codes(order):
    objective, clean = Autoregressive(order=order), clips(6)
    known = torch.tensor([[True, True] + [False] * 4])
    start = objective.start(clean, known, [torch.Generator()])
    shorter = Representation(clean.values[..., :4], torch.tensor([4]), SPEC)
    expected = objective.start(shorter, known[:, :4], [torch.Generator()]).values[0]
    assert torch.equal(start.ended(0, end_token(order, 3, 4)), expected)
    assert start.earliest == end_token(order, 3, 1) and start.end == 5 and start.spec.codebook_sizes == (6, 4, 3)


def test_a_clip_to_vary_keeps_its_beginning():
    clean = clips(10).values
    hidden = torch.full_like(clean, HIDDEN)
    for timestep, kept in ((0.0, 10), (0.3, 7), (0.31, 6), (1.0, 0)):
        found = Autoregressive().noised(clean, hidden, timestep)
        assert torch.equal(found[..., :kept], clean[..., :kept]) and (found[..., kept:] == HIDDEN).all()


def test_wrong_arguments_are_refused_in_one_line():
    with pytest.raises(SpecError, match=r"order is 'flats'; expected flat, levels, delay, frames\. Did you mean 'flat'\?"):
        Autoregressive(order="flats")
    with pytest.raises(SpecError, match=r"forget is 1.0; expected a share from 0 to below 1"):
        Autoregressive(forget=1.0)
    latents = RepresentationSpec(kind="continuous", sample_rate=1, channels=1, downsampling_ratio=1, latent_dim=2)
    with pytest.raises(SpecError, match="autoregressive modeling needs codes, .* such as flow-matching"):
        Autoregressive().tokens(latents)
    for known in ([False, True, False], [True, False, True], [False, False, True]):
        with pytest.raises(SpecError, match="made|beginning to end. Keep one part that begins at 0 s"):
            Autoregressive().start(clips(3), torch.tensor([known]), [torch.Generator()])


def test_cross_entropies_of_a_uniform_prediction():
    query = corrupt(Autoregressive(order="flat"), clips(5))
    total, count = Autoregressive(order="flat").loss(torch.zeros(1, 13, 16), query)["autoregressive"]
    expected = 5 * (np.log(6) + np.log(4) + np.log(3)) + np.log(6)
    assert int(count) == 16 and float(total) == pytest.approx(expected, rel=1e-6)
