"""Masked codes: which cells are hidden, which count, and by how much.

Shape letters: B clips, K levels, T frames.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from soundomni.core.errors import SpecError
from soundomni.core.representation import HIDDEN, Representation, RepresentationSpec
from soundomni.flow import Masked
from soundomni.flow.masked import _draws, _masks, _spread

SIZES = (5, 4, 3)
SPEC = RepresentationSpec(kind="codes", sample_rate=8000, channels=1, downsampling_ratio=100, codebook_sizes=SIZES)


def clips(*lengths, padding=0):
    longest = max(lengths) + padding
    levels = [torch.randint(size, (len(lengths), longest), generator=torch.Generator().manual_seed(size)) for size in SIZES]
    return Representation(torch.stack(levels, 1), torch.tensor(lengths), SPEC, tuple(lengths))


def corrupt(clean, seeds, *, known=None, noise=None, quantiles=None):
    if known is None:
        known = torch.zeros(len(clean.values), clean.values.shape[2], dtype=torch.bool)
    if noise is None:
        noise = torch.ones(len(clean.values), dtype=torch.bool)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    if quantiles is None:
        return Masked().corrupt(clean, known=known, noise=noise, generators=generators)
    return Masked().corrupt_at(clean, known=known, noise=noise, generators=generators, quantiles=quantiles)


def masks(counted, prompt, level, share, ranks):
    """The masks of one clip for given draws: `prompt` and `level` as numbers in [0, 1), and the share itself."""
    u = math.acos(share) / (math.pi / 2)
    drawn = torch.tensor([[prompt, level, u]], dtype=torch.float64)
    asked, above = _masks(torch.tensor([counted]), drawn, torch.tensor([ranks], dtype=torch.float64), levels=(0, 3))
    return asked[0].int().tolist(), above[0].int().tolist()


def test_a_mask_worked_by_hand():
    """Frame 1 is known, so 5 are left; floor(0.45 · 5) = 2 of them are the prompt: frames 0 and 2. Of the frames 3, 4 and 5 of level
    floor(0.4 · 3) = 1, ceil(0.5 · 3) = 2 are hidden, those with the lowest numbers, and of level 2 all."""
    counted = [True, False, True, True, True, True]
    asked, above = masks(counted, 0.45, 0.4, 0.5, [0.0, 0.1, 0.0, 0.9, 0.2, 0.6])
    assert asked == [[0] * 6, [0, 0, 0, 0, 1, 1], [0] * 6]
    assert above == [[0] * 6, [0] * 6, [0, 0, 0, 1, 1, 1]]


@pytest.mark.parametrize(("share", "count"), [(1.0, 4), (0.75, 3), (0.5, 2), (0.51, 3), (0.25, 1), (1e-6, 1)])
def test_the_count_is_the_share_rounded_up_and_at_least_one(share, count):
    asked, above = masks([True] * 4, 0.0, 0.0, share, [0.4, 0.3, 0.2, 0.1])
    assert asked[0] == [0] * (4 - count) + [1] * count
    assert above == [[0] * 4, [1] * 4, [1] * 4]


def test_the_longest_prompt_leaves_one_frame():
    asked, above = masks([True] * 5, 1.0 - 2**-53, 0.99, 1.0, [0.5] * 5)
    assert asked[2] == [0, 0, 0, 0, 1] and not any(map(any, above))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_is_hidden_follows_the_rule(data):
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    seeds = [data.draw(st.integers(0, 10**6)) for _ in lengths]
    clean = clips(*lengths, padding=data.draw(st.integers(0, 3)))
    frames = clean.values.shape[2]
    known = torch.tensor([data.draw(st.lists(st.booleans(), min_size=frames, max_size=frames)) for _ in lengths])
    query = corrupt(clean, seeds, known=known)
    for clip, length in enumerate(lengths):
        inputs, targets = query.inputs[clip, :, :length], query.targets[clip, :, :length]
        left = (~known[clip, :length]).nonzero()[:, 0].tolist()
        assert query.loss_mask[clip].nonzero()[:, 0].tolist() == left
        hidden = inputs == HIDDEN
        assert torch.equal(inputs[~hidden], clean.values[clip, :, :length][~hidden])
        if not left:
            assert not hidden.any() and (targets == HIDDEN).all() and not query.timesteps[clip].any()
            continue
        (level,) = {int(k) for k in (targets != HIDDEN).nonzero()[:, 0]}
        assert torch.equal(hidden[level], targets[level] != HIDDEN)
        assert not hidden[:level].any()
        first = left[-1 - int(hidden[level + 1].sum()) + 1] if level < 2 else None
        for above in range(level + 1, 3):
            assert hidden[above].nonzero()[:, 0].tolist() == [frame for frame in left if frame >= first]
        if first is not None:
            assert not hidden[level, :first].any()
        share = float(hidden.sum()) / (3 * len(left))
        assert query.timesteps[clip, left].tolist() == pytest.approx([share] * len(left)) and share > 0
        assert query.timesteps[clip].count_nonzero() == len(left)


@settings(max_examples=30, deadline=None)
@given(seeds=st.lists(st.integers(0, 2**40), min_size=3, max_size=3), padding=st.integers(0, 4))
def test_a_clip_is_hidden_the_same_alone_and_padded(seeds, padding):
    clean = clips(7, 3, 5)
    together = corrupt(clips(7, 3, 5, padding=0), seeds)
    for clip, length in enumerate(clean.frame_counts):
        values = functional.pad(clean.values[clip : clip + 1, :, :length], (0, padding), value=1)
        alone = corrupt(Representation(values, torch.tensor([length]), SPEC), seeds[clip : clip + 1])
        for name in ("inputs", "timesteps", "targets", "loss_mask"):
            assert torch.equal(getattr(alone, name)[0, ..., :length], getattr(together, name)[clip, ..., :length])


def test_prompts_levels_and_shares_are_drawn_evenly():
    count, frames = 4000, 8
    drawn, ranks = _draws([frames] * count, frames, [torch.Generator().manual_seed(seed) for seed in range(count)])
    asked, above = _masks(torch.ones(count, frames, dtype=torch.bool), drawn, ranks, levels=(0, 3))
    levels = asked.any(2).double().mean(0)
    assert levels.tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
    visible = (frames - above[:, 2].sum(1))[~asked[:, 2].any(1)]
    assert torch.bincount(visible, minlength=frames).tolist() == pytest.approx([len(visible) / frames] * frames, rel=0.25)
    whole = asked.sum((1, 2))[(drawn[:, 0] * frames).floor() == 0].double()
    mean = sum(math.ceil(frames * math.cos((i + 0.5) / 1000 * math.pi / 2)) for i in range(1000)) / 1000
    assert float(whole.mean()) == pytest.approx(mean, rel=0.06)


def test_the_quantile_decides_the_share_and_nothing_else():
    clean, seeds = clips(*[40] * 5), [3] * 5
    low_to_high = corrupt(clean, seeds, quantiles=[0.01, 0.25, 0.5, 0.75, 0.99])
    asked = low_to_high.targets != HIDDEN
    assert len({tuple(row) for row in asked.any(2).tolist()}) == 1, "the same level"
    counts = asked.sum((1, 2)).tolist()
    assert counts == sorted(set(counts)) and all((asked[i] <= asked[i + 1]).all() for i in range(4)), "the same order of cells"
    (level,) = asked[0].any(1).nonzero()[:, 0].tolist()
    after = int((low_to_high.inputs[0, level + 1] == HIDDEN).sum()) if level < 2 else counts[-1]
    assert counts == [math.ceil(math.sin(q * math.pi / 2) * after) for q in (0.01, 0.25, 0.5, 0.75, 0.99)]


def test_the_loss_is_the_mean_over_hidden_cells_times_the_frames_to_make():
    query = corrupt(clips(7, 3, 5), [1, 2, 3], known=torch.tensor([[True] * 2 + [False] * 5] * 3), noise=torch.tensor([True, True, False]))
    prediction = torch.randn(3, sum(SIZES), 7, generator=torch.Generator().manual_seed(0))
    (total, count) = Masked().loss(prediction, query)["masked"]
    expected = 0.0
    for clip, frames in ((0, 5), (1, 1)):
        nats = []
        for level, frame in (query.targets[clip] != HIDDEN).nonzero().tolist():
            first = sum(SIZES[:level])
            probabilities = prediction[clip, first : first + SIZES[level], frame].softmax(0)
            nats.append(-math.log(probabilities[query.targets[clip, level, frame]]))
        expected += frames * sum(nats) / len(nats)
    assert float(total) == pytest.approx(expected, rel=1e-5) and int(count) == 6


def test_an_empty_batch_has_no_loss_but_a_gradient():
    values = torch.zeros(0, 3, 1, dtype=torch.int64)
    query = corrupt(Representation(values, torch.zeros(0, dtype=torch.int64), SPEC, ()), [])
    prediction = torch.zeros(0, sum(SIZES), 1, requires_grad=True)
    total, count = Masked().loss(prediction, query)["masked"]
    total.backward()
    assert float(total) == 0.0 and int(count) == 0 and prediction.grad is not None


@settings(max_examples=40, deadline=None)
@given(frames=st.integers(1, 70), share=st.floats(0.0, 1.0), more=st.floats(0.0, 1.0))
def test_variations_hide_whole_frames_evenly_and_nested(frames, share, more):
    clean = clips(frames).values
    start = torch.full_like(clean, HIDDEN)
    hidden = (Masked().noised(clean, start, share) == HIDDEN)[0]
    assert (hidden == hidden[0]).all() and int(hidden[0].sum()) == math.ceil(share * frames - 1e-9)
    later = (Masked().noised(clean, start, min(1.0, share + more)) == HIDDEN)[0]
    assert (hidden <= later).all()
    places = hidden[0].nonzero()[:, 0].tolist()
    if places:
        gaps = [after - before for before, after in zip(places, [*places[1:], places[0] + frames], strict=True)]
        assert max(gaps) <= 2 * math.ceil(frames / len(places)), "no long stretch stays as it was"


@pytest.mark.parametrize("frames", [1, 2, 3, 8, 9, 100])
def test_every_frame_has_one_place_in_the_order(frames):
    assert sorted(_spread(frames)) == list(range(frames))


def test_sampling_starts_from_hidden_cells_but_for_known_frames():
    given = clips(4, 3)
    known = torch.tensor([[True, False, False, True], [False] * 4])
    start = Masked().start(given, known, [])
    shown = known[:, None].expand(2, 3, 4)
    assert torch.equal(start.values[shown], given.values[shown]) and (start.values[~shown] == HIDDEN).all()


def test_latents_are_refused_with_what_to_use():
    latents = RepresentationSpec(kind="continuous", sample_rate=8000, channels=1, downsampling_ratio=100, latent_dim=3)
    with pytest.raises(SpecError, match="masked modeling needs codes, .* Use an objective for latents, such as flow-matching"):
        Masked().tokens(latents)


@pytest.mark.parametrize(("prompts", "least", "most"), [(0.0, 0, 0), (0.25, 150, 250), (1.0, 700, 800)])
def test_a_share_of_the_clips_has_a_prompt(prompts: float, least: int, most: int) -> None:
    spec = RepresentationSpec(kind="codes", sample_rate=8000, channels=1, downsampling_ratio=100, codebook_sizes=(5, 5))
    clean = Representation(torch.zeros(800, 2, 16, dtype=torch.int64), torch.full((800,), 16), spec)
    query = Masked(prompts=prompts).corrupt(
        clean,
        known=torch.zeros(800, 16, dtype=torch.bool),
        noise=torch.ones(800, dtype=torch.bool),
        generators=[torch.Generator().manual_seed(i) for i in range(800)],
    )
    upper = query.inputs[:, 1] == HIDDEN  # for level 0, all cells after the prompt
    of_level_0 = (query.targets[:, 0] != HIDDEN).any(1)
    shown = int((~upper[of_level_0][:, 0]).sum())
    assert least / 2 * 0.8 <= shown <= most / 2 * 1.2
    with pytest.raises(SpecError, match="prompts is 1.5; expected a share from 0 to 1"):
        Masked(prompts=1.5)
