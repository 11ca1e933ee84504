"""MaskGIT by level: counts, ranks and order of the levels against cases worked by hand, and exactness against a known distribution.

Shape letters: B clips, K levels, T frames, V vocabulary of one level.
"""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from soundomni.core.errors import SpecError
from soundomni.core.inference.guidance import PartialTarget, guided
from soundomni.core.representation import HIDDEN, Representation, RepresentationSpec
from soundomni.core.spec.schema import GuidanceSpec
from soundomni.flow import MaskGITSampler


def spec_of(sizes):
    return RepresentationSpec(kind="codes", sample_rate=8000, channels=1, downsampling_ratio=100, codebook_sizes=tuple(sizes))


def hidden(sizes, *lengths):
    values = torch.full((len(lengths), len(sizes), max(lengths)), HIDDEN)
    return Representation(values, torch.tensor(lengths), spec_of(sizes), tuple(lengths))


def generators(count, first=0):
    return [torch.Generator().manual_seed(first + clip) for clip in range(count)]


def steps_of(sampler, start, predict, **given):
    """What each pass was shown, and the result."""
    seen = []

    def watched(values, timesteps, *, first=0):
        seen.append((values.clone(), timesteps.clone()))
        return predict(values, timesteps)

    made = sampler.sample(watched, start, generators=generators(len(start.values)), **given)
    return seen, made.values


def even(sizes):
    """All codes alike, at every cell."""

    def predict(values, timesteps, *, first=0):
        return torch.zeros(len(values), sum(sizes), values.shape[2])

    return predict


# Counts, ranks and levels


def test_twelve_levels_take_27_passes():
    sampler, start = MaskGITSampler(), hidden([4] * 12, 5, 3)
    seen, made = steps_of(sampler, start, even([4] * 12))
    assert sampler.num_evaluations(start) == sampler.count_steps(start) == len(seen) == 27 and sampler.num_steps == 16
    assert not (made == HIDDEN).any()


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({}, 18),
        ({"num_steps": 5}, 7),
        ({"iterations": [4, 3, 2]}, 9),
        ({"iterations": [4]}, 12),
        ({"iterations": [4, 3], "num_steps": 1}, 7),
    ],
)
def test_the_last_number_of_iterations_holds_for_all_further_levels(settings, passes):
    assert MaskGITSampler(**settings).num_evaluations(hidden([4] * 3, 2)) == passes


def test_counts_of_hidden_cells_follow_the_cosine():
    """N = 10, S = 4: floor(10 · cos(π/8, π/4, 3π/8)) = 9, 7, 3; and N = 2, of which a cell is always filled: 1, 0, 0."""
    start = hidden([4, 3], 10, 2)
    seen, _ = steps_of(MaskGITSampler(iterations=[4, 1]), start, even([4, 3]))
    left = [[int((values[clip, 0] == HIDDEN).sum()) for clip in (0, 1)] for values, _ in seen]
    assert left == [[10, 2], [9, 1], [7, 0], [3, 0], [0, 0]]
    assert [int((values[0, 1] == HIDDEN).sum()) for values, _ in seen] == [10] * 5, "the upper level stays hidden"
    assert [float(timesteps[0]) for _, timesteps in seen] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_the_least_confident_cells_are_hidden_again():
    """Without noise in the confidence: cell t has the code t % 3 with a probability that rises with `sure`."""
    sure = torch.tensor([0.2, 3.0, 1.0, 5.0, 0.4, 2.0])
    likeliest = torch.arange(6) % 3

    def predict(values, timesteps, *, first=0):
        return (functional.one_hot(likeliest, 3).T * (15.0 + sure))[None].expand(len(values), -1, -1)

    seen, made = steps_of(MaskGITSampler(iterations=[3], temperature=0.0), hidden([3], 6), predict)
    # N = 6: floor(6 · cos(π/6)) = 5, floor(6 · cos(π/3)) = 3
    assert [(values[0, 0] != HIDDEN).nonzero()[:, 0].tolist() for values, _ in seen] == [[], [3], [1, 3, 5]]
    assert torch.equal(made[0, 0], likeliest)


def test_the_noise_in_the_confidence_fades_to_nothing():
    """With S = 2 the noise of the first pass is scaled by temperature / 2; a very high temperature makes the order random."""
    sure = torch.linspace(1.0, 2.0, 8)

    def predict(values, timesteps, *, first=0):
        return torch.stack([sure * 10, torch.zeros(8)])[None].expand(len(values), -1, -1)

    firsts = []
    for temperature in (0.0, 1e6):
        seen, _ = steps_of(MaskGITSampler(iterations=[2], temperature=temperature), hidden([2], *[8] * 64), predict)
        firsts.append((seen[1][0][:, 0] != HIDDEN).double().mean(0))
    assert firsts[0].tolist() == [0] * 5 + [1] * 3
    assert float(firsts[1].min()) > 0.1 and float(firsts[1].max()) < 0.7


def test_levels_of_one_pass_are_greedy_unless_told_otherwise():
    logits = torch.tensor([0.0, 0.5, 0.1])[None, :, None].expand(200, -1, 3)
    start = hidden([3], *[3] * 200)
    _, greedy = steps_of(MaskGITSampler(iterations=[1]), start, lambda values, timesteps: logits)
    _, drawn = steps_of(MaskGITSampler(iterations=[1], greedy=False), start, lambda values, timesteps: logits)
    assert (greedy == 1).all()
    shares = torch.bincount(drawn.flatten(), minlength=3) / drawn.numel()
    torch.testing.assert_close(shares, logits[0, :, 0].softmax(0), atol=0.06, rtol=0)


@pytest.mark.parametrize("temperature", [0.25, 0.7, 2.0])
def test_codes_are_drawn_at_their_temperature(temperature):
    logits = torch.tensor([0.0, 0.5, 0.1])[None, :, None].expand(300, -1, 3)
    sampler = MaskGITSampler(iterations=[1], greedy=False, draw_temperature=temperature)
    _, drawn = steps_of(sampler, hidden([3], *[3] * 300), lambda values, timesteps: logits)
    shares = torch.bincount(drawn.flatten(), minlength=3) / drawn.numel()
    torch.testing.assert_close(shares, (logits[0, :, 0] / temperature).softmax(0), atol=0.05, rtol=0)


def test_the_confidence_of_a_drawn_code_is_that_of_the_model_at_any_temperature():
    """Sharpened, the likeliest code of the first cell (0.61) would be surer than those of the second (0.50 each)."""
    shares = torch.tensor([[0.4, 0.3, 0.3], [0.45, 0.45, 0.1]]).T[None].expand(300, -1, -1)
    sampler = MaskGITSampler(iterations=[2], temperature=0.0, draw_temperature=0.25)
    seen, _ = steps_of(sampler, hidden([3], *[2] * 300), lambda values, timesteps: shares.log())
    kept = seen[1][0][:, 0] != HIDDEN
    assert bool((kept.sum(1) == 1).all()) and float(kept[:, 1].double().mean()) > 0.95


def test_impossible_codes_are_never_drawn():
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf])[None, :, None].expand(50, -1, 20)
    _, made = steps_of(MaskGITSampler(iterations=[3]), hidden([5], *[20] * 50), lambda values, timesteps: logits)
    assert set(made.flatten().tolist()) == {1, 3}


@pytest.mark.parametrize(("level", "passes"), [(0, 4 + 2), (1, 4 + 2 + 2)])
def test_a_level_without_hidden_cells_stays_as_it_is(level, passes):
    """The first passes are those of the first level that is made."""
    start = hidden([4, 4, 3], 3)
    start.values[:, level] = torch.tensor([1, 0, 3])
    seen, made = steps_of(MaskGITSampler(iterations=[4, 2]), start, even([4, 4, 3]))
    assert len(seen) == passes and made[0, level].tolist() == [1, 0, 3]


def peculiar(sizes):
    """Logits of each frame that depend on all codes of the clip within its length, which padding must not change."""
    classes = torch.arange(sum(sizes), dtype=torch.float64)[:, None]

    def predict(values, timesteps, *, first=0):
        seen = (values.double() * torch.arange(1, len(sizes) + 1)[:, None]).sum(1, keepdim=True)
        return 3 * torch.sin(classes * 1.7 + seen + torch.arange(values.shape[2]) + timesteps[:, None, None])

    return predict


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_known_cells_stay_and_a_clip_is_the_same_alone(data):
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    start = hidden(sizes, *lengths)
    for clip, level, frame in itertools.product(range(len(lengths)), range(len(sizes)), range(max(lengths))):
        if (level, frame) != (0, 0) and data.draw(st.integers(0, 3)) == 0:  # all clips make the same levels
            start.values[clip, level, frame] = data.draw(st.integers(0, sizes[level] - 1))
    sampler = MaskGITSampler(
        iterations=data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)),
        order=data.draw(st.sampled_from(["confidence", "random"])),
        temperature=data.draw(st.sampled_from([0.0, 4.5])),
    )
    begin = data.draw(st.sampled_from([1.0, 0.3]))
    seen, made = steps_of(sampler, start, peculiar(sizes), begin=begin)
    given = start.values != HIDDEN
    for values in (*(values for values, _ in seen), made):
        assert torch.equal(values[given], start.values[given])
    assert not (made == HIDDEN).any() and (made < torch.tensor(sizes)[:, None]).all()
    asked = [float(timesteps[0]) for _, timesteps in seen]
    assert asked[0] == pytest.approx(begin) and asked == sorted(asked, reverse=True) and asked[-1] > 0
    for clip, length in enumerate(lengths):
        alone = Representation(start.values[clip : clip + 1, :, :length], torch.tensor([length]), start.spec)
        one = sampler.sample(peculiar(sizes), alone, generators=generators(1, clip), begin=begin)
        assert torch.equal(one.values[0], made[clip, :, :length])


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 9), more=st.integers(0, 3))
def test_a_random_order_with_a_pass_per_cell_fills_one_cell_per_pass(length, more):
    seen, _ = steps_of(MaskGITSampler(iterations=[length + more], order="random"), hidden([3], length), even([3]))
    filled = [int((values != HIDDEN).sum()) for values, _ in seen]
    assert filled == [min(step, length) for step in range(length + more)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"iterations": []}, r"iterations is \[\]"),
        ({"iterations": [4, 0]}, r"iterations\[1\] is 0; expected at least 1"),
        ({"num_steps": 0}, "num_steps is 0; expected at least 1"),
        ({"iterations": [1, 10**6]}, r"iterations\[1\] is 1000000; expected at most 10,000"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"draw_temperature": 0.0}, "draw_temperature is 0.0; expected a number above 0"),
        ({"draw_temperature": math.inf}, "draw_temperature is inf"),
        ({"order": "randon"}, "order is 'randon'; expected confidence or random. Did you mean 'random'?"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(SpecError, match=message):
        MaskGITSampler(**arguments)
    with pytest.raises(SpecError, match="begin is 0"):
        steps_of(MaskGITSampler(), hidden([3], 2), even([3]), begin=0.0)


# Exactness: a random joint distribution over two levels of three cells, whose conditional distributions are computed by enumeration

SIZES, FRAMES, DRAWS = (2, 3), 3, 6000
STATES = torch.tensor(list(itertools.product(*([range(SIZES[0])] * FRAMES + [range(SIZES[1])] * FRAMES))))
JOINT = (torch.randn(len(STATES), generator=torch.Generator().manual_seed(0)) * 1.3).softmax(0).double()
CELLS = torch.cat([functional.one_hot(cells, size) for cells, size in zip(STATES.split(FRAMES, 1), SIZES, strict=True)], 2)
CELLS = torch.stack([*CELLS]).double()  # [216, T, V0 + V1]


def conditional(values, timesteps, *, first=0):
    """The exact log-probabilities of each cell, given all cells that are not hidden; asked once for each set of these."""
    keys, which = ((values.flatten(1) + 1) * 4 ** torch.arange(6)).sum(1).unique(return_inverse=True)
    distinct = keys[:, None] // 4 ** torch.arange(6) % 4 - 1
    fits = ((distinct[:, None] == STATES) | (distinct[:, None] == HIDDEN)).all(-1).double() * JOINT
    shares = torch.einsum("bs,stv->bvt", fits / fits.sum(1, keepdim=True), CELLS)
    return shares.clamp_min(1e-30).log()[which]


def distance(values, expected):
    """Total variation between the draws and the expected distribution."""
    weights = torch.tensor([4 * 27, 2 * 27, 27, 9, 3, 1])
    found = torch.bincount((values.flatten(1) * weights).sum(1), minlength=len(STATES)).double() / len(values)
    return 0.5 * float((found - expected).abs().sum())


def draw(sampler, start):
    shared = torch.Generator().manual_seed(0)
    return sampler.sample(conditional, start, generators=[shared] * len(start.values)).values


def floor(expected):
    """The distance of exact draws."""
    chosen = torch.multinomial(expected, DRAWS, replacement=True, generator=torch.Generator().manual_seed(1))
    return distance(STATES[chosen].unflatten(1, (2, FRAMES)), expected)


def test_one_cell_per_pass_in_random_order_is_exact_and_the_published_order_is_not():
    start = hidden(SIZES, *[FRAMES] * DRAWS)
    exact = MaskGITSampler(iterations=[FRAMES], order="random")
    published = MaskGITSampler(iterations=[FRAMES])
    assert distance(draw(exact, start), JOINT) < 1.25 * floor(JOINT)
    assert distance(draw(published, start), JOINT) > 1.5 * floor(JOINT)


def test_the_cells_that_are_known_condition_the_others_exactly():
    known = torch.tensor([[1, HIDDEN, HIDDEN], [HIDDEN, HIDDEN, 2]])
    start = hidden(SIZES, *[FRAMES] * DRAWS).with_values(known.expand(DRAWS, 2, FRAMES))
    expected = ((STATES[:, 0] == 1) & (STATES[:, 5] == 2)).double() * JOINT
    expected = expected / expected.sum()
    made = draw(MaskGITSampler(iterations=[FRAMES], order="random"), start)
    assert (made[:, 0, 0] == 1).all() and (made[:, 1, 2] == 2).all()
    assert distance(made, expected) < 1.25 * floor(expected)


# What generation wraps around the prediction


def test_guidance_on_logits_is_the_formula_and_sampling_follows_it():
    logits = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))  # branches, B, V, T
    predict = guided(lambda values, timesteps, count, *, first=0: logits[:count], GuidanceSpec(scale=3.0))
    start = hidden([2, 3], *[6] * 4)
    expected = logits[1] + 3.0 * (logits[0] - logits[1])
    torch.testing.assert_close(predict(start.values, torch.ones(4)), expected)
    made = MaskGITSampler(iterations=[1]).sample(predict, start, generators=generators(4)).values
    assert torch.equal(made[:, 0], expected[:, :2].argmax(1)) and torch.equal(made[:, 1], expected[:, 2:].argmax(1))


def test_kept_frames_are_shown_and_never_change():
    given = torch.tensor([[[1, 0, 2, 1], [0, 1, 1, 0]]])
    known = torch.tensor([[True, False, True, False]])
    target = PartialTarget(values=given, known=known)
    asked = []

    def predict(values, timesteps, *, first=0):
        asked.append(timesteps)
        assert torch.equal(values[..., known[0]], given[..., known[0]])
        return torch.zeros(1, 5, 4)

    start = hidden([3, 2], 4)
    made = MaskGITSampler(iterations=[3, 1]).sample(
        target.hold(predict), start.with_values(target.show(start.values)), generators=generators(1)
    )
    assert torch.equal(made.values[..., known[0]], given[..., known[0]]) and not (made.values == HIDDEN).any()
    assert all((one[0, known[0]] == 0).all() and (one[0, ~known[0]] > 0).all() for one in asked)
