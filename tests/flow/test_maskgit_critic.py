"""Token critics: the loss against a closed form, and decoding with planted scores that say which cells stay."""

import itertools

import pytest
import torch

from soundomni.core.interfaces import Query
from soundomni.core.representation import HIDDEN, Representation, RepresentationSpec
from soundomni.flow import MaskedCritic, MaskGITCriticSampler, MaskGITSampler, TokenCritic


def spec_of(sizes):
    return RepresentationSpec(kind="codes", sample_rate=8000, channels=1, downsampling_ratio=100, codebook_sizes=tuple(sizes))


def clips(values, *lengths, sizes):
    return Representation(torch.as_tensor(values), torch.tensor(lengths), spec_of(sizes), tuple(lengths))


def generators(count, first=0):
    return [torch.Generator().manual_seed(first + clip) for clip in range(count)]


# The review


def corrupted(seed, sizes=(5, 4, 3), lengths=(9, 4, 6)):
    """A query of clips, one of which is not made and one of which has two known frames."""
    clean = torch.stack([torch.randint(size, (3, 9), generator=torch.Generator().manual_seed(size + seed)) for size in sizes], 1)
    known = torch.zeros(3, 9, dtype=torch.bool)
    known[0, :2] = True
    noise = torch.tensor([True, False, True])
    asked = MaskedCritic(prompts=0.5).corrupt(clips(clean, *lengths, sizes=sizes), known=known, noise=noise, generators=generators(3, seed))
    return clean, asked


def test_only_cells_that_were_asked_for_are_filled_each_from_its_prediction():
    for seed in range(20):
        clean, asked = corrupted(seed)
        wanted = torch.stack([torch.randint(size, (3, 9), generator=torch.Generator().manual_seed(seed)) for size in (5, 4, 3)], 1)
        one_hot = [torch.nn.functional.one_hot(wanted[:, level], size).transpose(1, 2) for level, size in enumerate((5, 4, 3))]
        query = TokenCritic().query(1e4 * torch.cat(one_hot, 1).float(), asked, frames=(9, 4, 6), generators=generators(3))
        cells = asked.targets != HIDDEN
        assert torch.equal(query.inputs, torch.where(cells, wanted, asked.inputs)), "levels above stay hidden, visible cells visible"
        judged = query.targets != HIDDEN
        assert torch.equal(judged.any(1), asked.loss_mask) and int(judged.sum()) == int(asked.loss_mask.sum())
        assert torch.equal(judged.any(2), cells.any(2)), "of the level that was asked for"
        assert torch.equal(query.targets[judged] == 1, (query.inputs == clean)[judged])
        assert torch.equal(query.timesteps, asked.timesteps) and torch.equal(query.loss_mask, asked.loss_mask)


def test_filled_codes_follow_the_predicted_distribution():
    probabilities = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    asked = Query(
        inputs=torch.full((1, 1, 20000), HIDDEN),
        timesteps=torch.ones(1, 20000),
        targets=torch.zeros(1, 1, 20000, dtype=torch.int64),
        loss_mask=torch.ones(1, 20000, dtype=torch.bool),
        levels=(3,),
    )
    prediction = probabilities.log()[None, :, None].expand(1, 3, 20000).requires_grad_()
    query = TokenCritic().query(prediction, asked, frames=(20000,), generators=generators(1))
    shares = torch.bincount(query.inputs.flatten(), minlength=3) / 20000
    torch.testing.assert_close(shares.double(), probabilities, atol=0.015, rtol=0)
    assert torch.equal(query.targets == 1, query.inputs == 0), "code 0 is right everywhere"


def test_a_clip_is_filled_the_same_in_a_batch_and_with_padding():
    _, asked = corrupted(3)
    prediction = torch.randn(3, 12, 9, generator=torch.Generator().manual_seed(0))
    together = TokenCritic().query(prediction, asked, frames=(9, 4, 6), generators=generators(3))
    frames = 6
    one = Query(
        inputs=asked.inputs[2:, :, :frames],
        timesteps=asked.timesteps[2:, :frames],
        targets=asked.targets[2:, :, :frames],
        loss_mask=asked.loss_mask[2:, :frames],
        levels=asked.levels,
    )
    alone = TokenCritic().query(prediction[2:, :, :frames], one, frames=(6,), generators=generators(1, 2))
    assert torch.equal(alone.inputs, together.inputs[2:, :, :frames]) and torch.equal(alone.targets, together.targets[2:, :, :frames])


def test_the_loss_is_the_binary_cross_entropy_in_float64():
    _, asked = corrupted(1)
    prediction = torch.randn(3, 12, 9, generator=torch.Generator().manual_seed(0))
    query = TokenCritic().query(prediction, asked, frames=(9, 4, 6), generators=generators(3))
    scores = (3 * torch.randn(3, 3, 9, generator=torch.Generator().manual_seed(1))).requires_grad_()
    total, count = TokenCritic().loss(scores, query)["critic"]
    nats, cells = 0.0, 0
    for clip, level, frame in itertools.product(range(3), range(3), range(9)):
        if query.targets[clip, level, frame] != HIDDEN:
            right = torch.sigmoid(scores[clip, level, frame].detach().double())
            nats -= float((right if query.targets[clip, level, frame] == 1 else 1 - right).log())
            cells += 1
    assert cells == int(count) == 7 + 6 and total.item() == pytest.approx(nats, rel=1e-6)
    (gradient,) = torch.autograd.grad(total, scores)
    judged = query.targets != HIDDEN
    wanted = torch.where(judged, scores.detach().sigmoid() - (query.targets == 1).float(), 0.0)
    torch.testing.assert_close(gradient, wanted)


# The sampler


class Watched:
    """A generator that draws even codes and a critic with planted scores; notes what each of them was shown."""

    def __init__(self, sizes, planted):
        self.sizes, self.planted = sizes, planted
        self.asked, self.judged = [], []

    def predict(self, values, timesteps, *, first=0):
        self.asked.append(values.clone())
        return torch.zeros(len(values), sum(self.sizes), values.shape[2])

    def review(self, values, timesteps, *, first=0):
        self.judged.append((values.clone(), timesteps.clone()))
        return self.planted[min(len(self.judged), len(self.planted)) - 1].expand(values.shape)


def test_the_cells_that_the_critic_doubts_are_those_that_are_hidden_again():
    doubted = torch.tensor([1, 2, 5, 6, 7])
    scores = torch.full((8,), 4.0)
    scores[doubted] = -4.0
    watched = Watched((6,), [scores])
    start = clips(torch.full((1, 1, 8), HIDDEN), 8, sizes=(6,))
    MaskGITCriticSampler(iterations=[2], temperature=0.0).sample(watched.predict, start, generators=generators(1), review=watched.review)
    assert (watched.asked[0] == HIDDEN).all() and len(watched.asked) == 2 and len(watched.judged) == 1
    assert torch.equal((watched.asked[1][0, 0] == HIDDEN).nonzero()[:, 0], doubted), "5 of 8, as cos(pi/4) says"
    assert not (watched.judged[0][0] == HIDDEN).any(), "it sees the level filled"


def test_a_code_that_was_kept_may_be_hidden_later():
    first, second = torch.arange(8.0), torch.arange(8.0).flip(0)
    watched = Watched((6,), [first, second])
    start = clips(torch.full((1, 1, 8), HIDDEN), 8, sizes=(6,))
    MaskGITCriticSampler(iterations=[3], temperature=0.0).sample(watched.predict, start, generators=generators(1), review=watched.review)
    hidden = [(values[0, 0] == HIDDEN).nonzero()[:, 0].tolist() for values in watched.asked]
    assert hidden == [list(range(8)), [0, 1, 2, 3, 4, 5], [4, 5, 6, 7]], "6 and 4 of 8"


def test_given_cells_never_change_however_much_they_are_doubted():
    given = torch.full((2, 2, 7), HIDDEN)
    given[0, 0, :3], given[0, 1, :3], given[1, 1, 4] = 1, 2, 0
    scores = torch.zeros(7)
    scores[:3] = -1e4
    watched = Watched((4, 3), [scores])
    start = clips(given, 7, 5, sizes=(4, 3))
    made = MaskGITCriticSampler(iterations=[4, 3]).sample(watched.predict, start, generators=generators(2), review=watched.review)
    within = torch.arange(7) < torch.tensor([7, 5])[:, None]
    for values in (*watched.asked, *(values for values, _ in watched.judged), made.values):
        assert torch.equal(values[given != HIDDEN], given[given != HIDDEN])
    for values, _ in watched.judged[:3]:
        assert (values[:, 1][(given[:, 1] == HIDDEN) & within] == HIDDEN).all(), "the level above stays hidden"
    assert not (made.values == HIDDEN).any()


@pytest.mark.parametrize(("settings", "passes", "reviews"), [({}, 27, 15), ({"iterations": [4, 2]}, 26, 14), ({"num_steps": 1}, 12, 0)])
def test_each_pass_but_the_last_of_a_level_is_reviewed_at_its_timestep(settings, passes, reviews):
    sampler, start = MaskGITCriticSampler(**settings), clips(torch.full((1, 12, 5), HIDDEN), 5, sizes=(4,) * 12)
    watched = Watched((4,) * 12, [torch.zeros(5)])
    steps = []
    sampler.sample(
        watched.predict, start, generators=generators(1), review=watched.review, on_step=lambda index, values: steps.append(index)
    )
    assert (len(watched.asked), len(watched.judged)) == (passes, reviews) and steps == list(range(passes))
    assert sampler.num_evaluations(start) == passes + reviews and sampler.count_steps(start) == passes
    assert MaskGITSampler(**settings).num_evaluations(start) == passes
    times = [float(timesteps) for _, timesteps in watched.judged]
    assert all(0 < time <= 1 for time in times) and times == sorted(times, reverse=True)


def test_scores_order_the_cells_like_odds_at_temperature_one():
    """With Gumbel noise of scale tau, the cell that stays first is drawn with probability proportional to its score to the 1/tau."""
    start = clips(torch.full((4000, 1, 2), HIDDEN), *(2,) * 4000, sizes=(3,))
    right = torch.tensor([0.9, 0.3])
    watched = Watched((3,), [torch.logit(right)])
    MaskGITCriticSampler(iterations=[2], temperature=2.0).sample(watched.predict, start, generators=generators(4000), review=watched.review)
    hidden = (watched.asked[1][:, 0] == HIDDEN).double()
    assert hidden.sum(1).eq(1).all(), "one of two"
    assert float(hidden[:, 1].mean()) == pytest.approx(0.9 / (0.9 + 0.3), abs=0.025), "the scale is 2 at the start and 1 half way"


def test_it_says_that_it_needs_scores():
    start = clips(torch.full((1, 1, 2), HIDDEN), 2, sizes=(3,))
    with pytest.raises(ValueError, match="review is None; expected the scores of a token critic"):
        MaskGITCriticSampler().sample(Watched((3,), []).predict, start, generators=generators(1))
