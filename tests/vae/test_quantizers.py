"""Quantizers against references in double precision, closed forms, and the same clips on several ranks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks_in_threads import OneRank, on_ranks
from torch.nn import functional
from transformers.models.dac.configuration_dac import DacConfig
from transformers.models.dac.modeling_dac import DacResidualVectorQuantizer

from soundomni.core.errors import SpecError
from soundomni.vae.quantizers import (
    CodeBottleneck,
    Draws,
    FactorizedQuantizer,
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    MovingAverageQuantizer,
    QuantizerSettings,
)
from soundomni.vae.quantizers.nearest import nearest_by_angle, nearest_by_distance, start_codebook
from soundomni.vae.quantizers.quantizer import IN_USE

DIM = 6
METHODS = {
    "gradient": {"codebook_size": 8, "codebook_dim": 2},
    "ema": {"codebook_size": 8},
    "fsq": {"steps": (4, 3)},
    "lfq": {"codebook_size": 8},
}


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draws(clips, levels, frame=0):
    """Every clip uses `levels` levels."""
    return Draws(torch.full((clips,), levels), torch.full((clips,), frame), tuple(range(clips)))


def factorized(**changes):
    torch.manual_seed(0)
    sizes = {"dim": DIM, "num_levels": 3, "entries": 16, "codebook_dim": 2, "commitment_weight": 0.25, "decay": 0.9}
    return FactorizedQuantizer(**{**sizes, **changes}).double()


def averaged(**changes):
    torch.manual_seed(0)
    sizes = {"dim": DIM, "num_levels": 3, "entries": 16, "commitment_weight": 0.25, "decay": 0.9, "dead_code_share": 0.0}
    return MovingAverageQuantizer(**{**sizes, **changes}).double()


def bottleneck(method="ema", *, warmup_steps=0, seed=0, dim=DIM, **changes):
    torch.manual_seed(seed)
    chosen = QuantizerSettings(method=method, **{"num_levels": 3, **METHODS[method], **changes})
    return CodeBottleneck(dim=dim, settings=chosen, warmup_steps=warmup_steps).double()


def latents(clips=4, frames=20, seed=0):
    return torch.randn(clips, DIM, frames, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# By gradient


def test_factorized_equals_transformers_dac():
    ours = factorized()
    config = DacConfig(n_codebooks=3, codebook_size=16, codebook_dim=2, hidden_size=DIM)
    theirs = DacResidualVectorQuantizer(config).double().eval()
    with torch.no_grad():
        for level, layer in enumerate(theirs.quantizers):
            layer.codebook.weight.copy_(ours.codebooks[level])
            for linear, conv in ((ours.inward[level], layer.in_proj), (ours.outward[level], layer.out_proj)):
                conv.weight.copy_(linear.weight[..., None])
                conv.bias.copy_(linear.bias)
    batch = latents()
    mine, yours = batch.clone().requires_grad_(), batch.clone().requires_grad_()
    valid = torch.ones(4, 20, dtype=torch.bool)
    values, losses = ours(mine.mT, valid, draws(4, 3))
    quantized, codes, _, *repeated = theirs(yours)
    commitment, codebook = (loss.mean() for loss in repeated)  # transformers repeats the mean over the batch for each clip
    torch.testing.assert_close(values.mT, quantized)
    assert torch.equal(ours.encode(batch.mT), codes)
    torch.testing.assert_close(ours.decode(codes), values)
    torch.testing.assert_close(losses["commitment"] / 80, 0.25 * commitment)
    torch.testing.assert_close(losses["codebook"] / 80, codebook)
    weights = torch.randn_like(quantized)
    ((values.mT * weights).sum() + losses["commitment"] + losses["codebook"]).backward()
    ((quantized * weights).sum() + 80 * (0.25 * commitment + codebook)).backward()
    torch.testing.assert_close(mine.grad, yours.grad)
    for level, layer in enumerate(theirs.quantizers):
        torch.testing.assert_close(ours.codebooks.grad[level], layer.codebook.weight.grad)
        torch.testing.assert_close(ours.inward[level].weight.grad, layer.in_proj.weight.grad[..., 0])
        torch.testing.assert_close(ours.outward[level].weight.grad, layer.out_proj.weight.grad[..., 0])


def test_factorized_starts_near_the_latents():
    quantizer = factorized(entries=64, num_levels=4)
    basis = torch.linalg.qr(torch.randn(DIM, DIM, dtype=torch.float64)).Q[:2]
    vectors = 5 + torch.randn(600, 2, dtype=torch.float64) @ basis  # latents that have two dimensions
    quantizer.start(vectors)
    error = quantizer.decode(quantizer.encode(vectors[None])) - vectors
    assert error.square().mean() < 0.02 * (vectors - vectors.mean(0)).square().mean()


# Moving averages


def test_moving_average_passes_the_gradient_straight_through():
    quantizer = averaged()
    batch = latents().mT.requires_grad_()
    values, losses = quantizer(batch, torch.ones(4, 20, dtype=torch.bool), draws(4, 3))
    weights = torch.randn_like(values)
    (through,) = torch.autograd.grad((values * weights).sum(), batch, retain_graph=True)
    torch.testing.assert_close(through, weights)
    codes = quantizer.encode(batch)
    sums = torch.stack([quantizer.decode(codes[:, : level + 1]) for level in range(3)])
    (found,) = torch.autograd.grad(losses["commitment"], batch)
    torch.testing.assert_close(found, 0.25 * 2 / DIM * (batch - sums).sum(0))
    torch.testing.assert_close(losses["commitment"], 0.25 * (batch - sums).square().mean(-1).sum())
    torch.testing.assert_close(values, sums[-1])


def test_moving_average_takes_the_nearest_entry_of_what_is_left_over():
    quantizer, batch = averaged(), latents().mT
    residual = batch.reshape(-1, DIM)
    for level, codes in enumerate(quantizer.encode(batch).unbind(1)):
        nearest = torch.cdist(residual, quantizer.codebooks[level]).argmin(1)
        assert torch.equal(codes.flatten(), nearest)
        residual = residual - quantizer.codebooks[level][nearest]


def test_codebooks_are_moving_averages_of_sums_and_counts():
    quantizer = averaged(num_levels=1)
    quantizer.usage.copy_(1 + torch.rand_like(quantizer.usage))
    usage, sums = quantizer.usage[0].clone(), quantizer.usage[0, :, None] * quantizer.codebooks[0]
    for step in range(4):
        batch, valid = latents(seed=step).mT, torch.arange(20) < torch.tensor([20, 3, 0, 11])[:, None]
        codes = torch.cdist(batch[valid], sums / usage[:, None]).argmin(1)
        quantizer(batch[:2], valid[:2], draws(2, 1))
        quantizer(batch[2:], valid[2:], draws(2, 1))  # a step may have several batches
        quantizer.update(OneRank())
        chosen = functional.one_hot(codes, 16).double()
        usage, sums = 0.9 * usage + 0.1 * chosen.sum(0), 0.9 * sums + 0.1 * chosen.T @ batch[valid]
        torch.testing.assert_close(quantizer.usage[0], usage)
        torch.testing.assert_close(quantizer.codebooks[0], sums / usage[:, None])


def test_dead_entries_become_frames_of_the_clips():
    quantizer = averaged(num_levels=1, entries=4, dead_code_share=0.5)
    entries = torch.zeros(4, DIM, dtype=torch.float64)
    entries[:, 0] = torch.tensor([0.0, 1.0, 90.0, 80.0])  # nobody is near the last two
    quantizer.codebooks[0] = entries
    quantizer.usage.fill_(10.0)
    batch = 0.1 * latents().mT
    batch[2:, :, 0] += 1
    steps = 0
    while bool((quantizer.codebooks[0, 2:, 0] > 50).any()):
        quantizer(batch, torch.ones(4, 20, dtype=torch.bool), Draws(torch.full((4,), 1), torch.tensor([3, -1, 5, 6]), (9, 1, 5, 7)))
        quantizer.update(OneRank())
        steps += 1
        assert steps < 20
    assert steps > 1  # they were used as much as the others before
    torch.testing.assert_close(quantizer.codebooks[0, 2:], torch.stack([batch[2, 5], batch[3, 6]]))  # clip 1 has no frames
    torch.testing.assert_close(quantizer.usage[0, 2:], quantizer.usage[0, :2].mean().expand(2), rtol=0.5, atol=0)
    quantizer.update(OneRank())
    assert (quantizer.codebooks[0, :, 0] < 50).all()


def test_without_enough_candidates_the_other_dead_entries_wait():
    quantizer = averaged(num_levels=1, entries=8, dead_code_share=0.5)
    quantizer.codebooks[0, 1:] += 100
    quantizer(latents().mT[:2], torch.ones(2, 20, dtype=torch.bool), draws(2, 1))
    quantizer.update(OneRank())
    assert (quantizer.codebooks[0, 1:3].abs() < 50).all() and (quantizer.codebooks[0, 3:] > 50).all()


def test_frames_that_are_not_finite_leave_no_statistics():
    quantizer, clean = averaged(), averaged()
    batch = latents().mT
    spoiled = batch.clone()
    spoiled[1, 4, 2], spoiled[2, 0, 0] = math.nan, math.inf
    valid = torch.ones(4, 20, dtype=torch.bool)
    quantizer(spoiled, valid, draws(4, 3))
    valid[1, 4] = valid[2, 0] = False
    clean(batch, valid, draws(4, 3))
    for each in (quantizer, clean):
        each.update(OneRank())
    assert torch.equal(quantizer.codebooks, clean.codebooks) and torch.equal(quantizer.usage, clean.usage)


@pytest.mark.parametrize("method", METHODS)
def test_latents_that_are_not_finite_do_not_stop_anything(method):
    module = bottleneck(method)
    module.started.fill_(True)
    batch = latents()
    batch[1, :, 3], batch[2] = math.nan, math.inf
    module(batch, torch.full((4,), 20), generators(0, 1, 2, 3))
    module.after_step(OneRank())
    assert all(values.isfinite().all() for values in module.state_dict().values())
    assert module.groups[0].usage.sum() > 0


# Starts


def test_kmeans_finds_clusters():
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]], dtype=torch.float64)
    vectors = (centers[:, None] + 0.1 * torch.randn(4, 50, 2, dtype=torch.float64)).flatten(0, 1)
    best = min(
        (start_codebook(vectors, 4, nearest_by_distance, torch.Generator().manual_seed(seed)) for seed in range(5)),
        key=lambda found: float(torch.cdist(vectors, found).min(1).values.sum()),
    )
    found = best[nearest_by_distance(centers, best)]
    torch.testing.assert_close(found, vectors.view(4, 50, 2).mean(1))


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 40), size=st.integers(2, 12), angle=st.booleans())
def test_codebooks_start_from_any_number_of_vectors(count, size, angle):
    nearest = nearest_by_angle if angle else nearest_by_distance
    vectors = torch.randn(count, 3, dtype=torch.float64)
    entries = start_codebook(vectors, size, nearest, torch.Generator().manual_seed(0))
    assert entries.shape == (size, 3) and entries.isfinite().all()
    again = start_codebook(vectors, size, nearest, torch.Generator().manual_seed(0))
    assert torch.equal(entries, again)
    if count >= 8:
        assert len(entries.unique(dim=0)) == size


def test_later_levels_start_from_what_is_left_over():
    quantizer = averaged(entries=8)
    vectors = torch.randn(400, DIM, dtype=torch.float64)
    quantizer.start(vectors)
    codes = quantizer.encode(vectors[None])
    errors = [(quantizer.decode(codes[:, :levels]) - vectors).square().mean().item() for levels in (1, 2, 3)]
    assert errors[0] < vectors.square().mean() and errors == sorted(errors, reverse=True)
    assert torch.equal(quantizer.usage.sum(1), torch.full((3,), 400.0, dtype=torch.float64))


# Without codebooks


@settings(max_examples=20, deadline=None)
@given(steps=st.lists(st.integers(3, 9), min_size=1, max_size=3), levels=st.integers(1, 4))
def test_finite_scalars_are_as_near_as_their_steps(steps, levels):
    quantizer = FiniteScalarQuantizer(dim=DIM, num_levels=levels, steps=steps, decay=0.9).double()
    numbers = torch.rand(2, 30, len(steps), dtype=torch.float64) * 2 - 1
    residual, total = numbers, 0.0
    for level in range(levels):
        codes = quantizer.find(level, residual)
        assert codes.min() >= 0 and codes.max() < math.prod(steps)
        total = total + quantizer.lookup(level, codes)
        residual = numbers - total
        assert (residual.abs() <= (torch.tensor(steps) - 1.0) ** -(level + 1) + 1e-12).all()


def test_finite_scalar_codes_count_with_the_first_number_fastest():
    quantizer = FiniteScalarQuantizer(dim=DIM, num_levels=1, steps=(4, 3), decay=0.9).double()
    codes = torch.arange(12)[None]
    numbers = quantizer.lookup(0, codes)[0]
    torch.testing.assert_close(numbers[:, 0], torch.tensor([-1, -1 / 3, 1 / 3, 1] * 3, dtype=torch.float64))
    torch.testing.assert_close(numbers[:, 1], torch.tensor([-1.0] * 4 + [0.0] * 4 + [1.0] * 4, dtype=torch.float64))
    assert torch.equal(quantizer.find(0, quantizer.lookup(0, codes)), codes)


def test_finite_scalar_codes_stay_in_range_below_float_precision():
    quantizer = FiniteScalarQuantizer(dim=DIM, num_levels=12, steps=(8, 5), decay=0.9)
    codes = quantizer.encode(10 * latents().mT.float())
    assert codes.min() >= 0 and codes.max() < 40


def test_finite_scalars_pass_the_gradient_through_their_bound():
    quantizer = FiniteScalarQuantizer(dim=DIM, num_levels=2, steps=(4, 3), decay=0.9).double()
    batch = latents().mT.requires_grad_()
    values, losses = quantizer(batch, torch.ones(4, 20, dtype=torch.bool), draws(4, 2))
    assert losses == {}
    weights = torch.randn_like(values)
    (found,) = torch.autograd.grad((values * weights).sum(), batch)
    slope = 1 - torch.tanh(quantizer.inward(batch)).square()
    torch.testing.assert_close(found, ((weights @ quantizer.outward.weight) * slope) @ quantizer.inward.weight)
    torch.testing.assert_close(quantizer.decode(quantizer.encode(batch)), values)


def lookup_free(**changes):
    torch.manual_seed(0)
    sizes = {"dim": DIM, "num_levels": 3, "bits": 3, "commitment_weight": 0.25, "entropy_weight": 0.1, "decay": 0.9}
    return LookupFreeQuantizer(**{**sizes, **changes}).double()


def test_lookup_free_codes_are_signs():
    quantizer = lookup_free()
    codes = torch.arange(8)[None]
    assert quantizer.lookup(0, codes)[0].tolist() == [[2 * (code >> bit & 1) - 1 for bit in range(3)] for code in range(8)]
    assert torch.equal(quantizer.find(2, quantizer.lookup(2, codes)), codes)
    torch.testing.assert_close(quantizer.lookup(2, codes), quantizer.lookup(0, codes) / 4)
    batch = latents().mT
    values, _ = quantizer(batch, torch.ones(4, 20, dtype=torch.bool), draws(4, 3))
    torch.testing.assert_close(quantizer.decode(quantizer.encode(batch)), values)


def test_lookup_free_entropy_has_the_gradient_of_its_definition():
    quantizer = lookup_free(num_levels=1)
    numbers = torch.randn(1, 50, 3, dtype=torch.float64)
    chances = torch.sigmoid(4 * numbers)
    # usage whose share of positive signs is that of the chances: then the slope is measured where the batch is
    share = chances.mean((0, 1))
    signs = torch.tensor([[code >> bit & 1 for bit in range(3)] for code in range(8)], dtype=torch.float64)
    quantizer.usage[0] = (signs * share + (1 - signs) * (1 - share)).prod(1)
    batch = numbers.clone().requires_grad_()
    _, _, (_, entropy) = quantizer.learn(0, batch)
    (found,) = torch.autograd.grad(entropy.mean(), batch)

    def binary(p):
        return -p * p.log() - (1 - p) * (1 - p).log()

    again = numbers.clone().requires_grad_()
    chances = torch.sigmoid(4 * again)
    (expected,) = torch.autograd.grad(0.1 * (binary(chances).mean((0, 1)) - binary(chances.mean((0, 1)))).sum(), again)
    torch.testing.assert_close(found, expected)


# Groups, levels, and the steps before quantizers start


@pytest.mark.parametrize("method", METHODS)
def test_groups_are_quantizers_side_by_side(method):
    one = bottleneck(method, groups=2)
    batch = latents()
    codes = one.encode(batch)
    assert codes.shape == (4, 6, 20)
    for index, (group, part) in enumerate(zip(one.groups, batch.mT.chunk(2, -1), strict=True)):
        assert torch.equal(codes[:, index::2], group.encode(part))
        half = slice(index * DIM // 2, (index + 1) * DIM // 2)
        torch.testing.assert_close(one.decode(codes)[:, half].mT, group.decode(codes[:, index::2]))
        torch.testing.assert_close(one.decode(codes[:, :3])[:, half].mT, group.decode(codes[:, :3][:, index::2]))
    assert one.decode(codes[:, :1])[:, DIM // 2 :].abs().max() == 0  # the second group has no code yet


@pytest.mark.parametrize("method", METHODS)
def test_a_clip_uses_the_levels_that_its_generator_draws(method):
    module = bottleneck(method)
    module.started.fill_(True)
    batch, seeds, frames = latents(16), range(16), torch.tensor([20, 20, 1, 7, 20, 20, 5, 20] * 2)
    with torch.no_grad():
        values, _ = module(batch, frames, generators(*seeds))
        codes = module.encode(batch)
        used = []
        for clip, count in enumerate(frames.tolist()):
            one = slice(clip, clip + 1)
            torch.testing.assert_close(module(batch[one], frames[one], generators(clip))[0][..., :count], values[one, :, :count])
            fits = [
                levels
                for levels in (1, 2, 3)
                if torch.allclose(module.decode(codes[one, :levels])[..., :count], values[one, :, :count], atol=1e-12)
            ]
            used += fits
        assert len(used) == 16 and set(used) == {1, 2, 3}
        whole, _ = module.eval()(batch, frames, generators(*seeds))
        decoded = module.decode(codes)
        for clip, count in enumerate(frames.tolist()):
            torch.testing.assert_close(whole[clip, :, :count], decoded[clip, :, :count])


def test_levels_are_drawn_evenly():
    module = bottleneck("ema", num_levels=4)
    drawn = module._draw(torch.full((4000,), 9), generators(*range(4000)))
    shares = torch.bincount(drawn.levels, minlength=5) / 4000
    torch.testing.assert_close(shares, torch.tensor([0, 0.125, 0.125, 0.125, 0.625]), atol=0.02, rtol=0)
    assert set(drawn.frames.tolist()) == set(range(9))
    assert (bottleneck("ema", level_dropout=0.0)._draw(torch.full((50,), 9), generators(*range(50))).levels == 3).all()


def train(module, batches, ranks=None):
    """Shows a bottleneck one batch of (latents, frames, seeds) per step."""
    for batch, frames, seeds in batches:
        module(batch, frames, generators(*seeds))
        module.after_step(ranks or OneRank())


def batches(count, clips=4, offset=0):
    frames = torch.tensor([20, 13, 1, 7, 20, 18, 5, 20][:clips])
    return [(latents(clips, seed=offset + step), frames, [100 * (offset + step) + clip for clip in range(clips)]) for step in range(count)]


@pytest.mark.parametrize("method", METHODS)
def test_the_warmup_passes_latents_through_and_then_quantizes(method):
    module = bottleneck(method, warmup_steps=3)
    for step, (batch, frames, seeds) in enumerate(batches(5)):
        values, terms = module(batch.requires_grad_(), frames, generators(*seeds))
        quantized = not torch.equal(values, batch)
        assert quantized == (step >= 3)
        losses = {name: total for name, (total, _) in terms.items() if "/" not in name}
        assert set(losses) == set(module.loss_names)
        assert all((loss != 0) == quantized for loss in losses.values())
        module.zero_grad()
        values.sum().backward()
        assert all(parameter.grad is not None for parameter in module.parameters()) or quantized
        module.after_step(OneRank())
    assert int(module.steps) == 5


def test_a_start_waits_for_clips():
    module, new = bottleneck("ema"), bottleneck("ema")
    module.after_step(OneRank())
    assert not module.quantizes
    train(module, [(latents(1) * math.nan, torch.tensor([20]), [0])])
    assert not module.quantizes
    train(module, batches(1))
    assert module.quantizes and module.groups[0].codebooks.isfinite().all()
    assert not module._vectors  # only needed in that step
    module.load_state_dict(new.state_dict())
    assert not module.quantizes


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pause", [1, 2, 4])
def test_a_state_dict_continues_exactly(method, pause):
    arguments = {"warmup_steps": 2, "groups": 2, "dead_code_share": 0.5} if method == "ema" else {"warmup_steps": 2}
    straight, first = bottleneck(method, **arguments), bottleneck(method, **arguments)
    train(straight, batches(6))
    train(first, batches(pause))
    second = bottleneck(method, seed=1, **arguments)
    second.load_state_dict(first.state_dict())
    train(second, batches(6 - pause, offset=pause))
    for name, values in straight.state_dict().items():
        assert torch.equal(second.state_dict()[name], values), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spread", [([0, 2], [1, 3]), ([3], [2, 1, 0]), ([0, 1, 2, 3], [])])
def test_ranks_together_are_one_rank(method, spread):
    changes = {"dead_code_share": 0.9} if method == "ema" else {}
    alone = bottleneck(method, warmup_steps=1, **changes)
    shown = batches(4)
    train(alone, shown)

    modules = [bottleneck(method, warmup_steps=1, **changes) for _ in range(2)]

    def work(index, ranks):
        module, mine = modules[index], spread[index]
        train(module, [(batch[mine], frames[mine], [seeds[clip] for clip in mine]) for batch, frames, seeds in shown], ranks)
        return module.state_dict()

    states = on_ranks(work, 2)
    for name, values in alone.state_dict().items():
        assert torch.equal(states[0][name], states[1][name]), name
        torch.testing.assert_close(states[0][name], values, msg=lambda text, name=name: f"{name}: {text}")


def test_held_out_clips_leave_no_trace():
    module = bottleneck("ema", dead_code_share=0.9)
    train(module, batches(2))
    before = {name: values.clone() for name, values in module.state_dict().items()}
    with torch.no_grad():
        module.eval()(*batches(1, offset=5)[0][:2], generators(0, 1, 2, 3))
    module.train().after_step(OneRank())
    after = module.state_dict()
    assert all(torch.equal(after[name], values) for name, values in before.items() if name != "steps")


def test_what_is_logged():
    module = bottleneck("ema")
    batch, frames, seeds = batches(1)[0]
    module.started.fill_(True)
    _, terms = module(batch, frames, generators(*seeds))
    within = torch.arange(20) < frames[:, None]
    torch.testing.assert_close(terms["latent/power"][0], batch.mT[within].square().sum())
    assert terms["latent/power"][1] == DIM * frames.sum() and terms["commitment"][1] == frames.sum()
    assert [terms[f"usage/{code}"][0].item() for code in range(3)] == [0, 0, 0]
    module.after_step(OneRank())
    _, terms = module(batch, frames, generators(*seeds))
    for code in range(3):
        usage = module.groups[0].usage[code]
        assert terms[f"usage/{code}"][0] == (usage >= IN_USE * usage.mean()).double().mean() > 0
        assert terms[f"usage/{code}"][1] == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"method": "ema", "codebook_dim": 4}, "quantizer.codebook_dim is 4, but method 'ema' does not use it. Remove it"),
        ({"steps": (3,)}, r"quantizer.steps is \(3,\), but method 'gradient' does not use it"),
        ({"method": "fsq", "steps": (2, 5)}, r"quantizer.steps is \[2, 5\]; expected one or more numbers of at least 3"),
        ({"method": "fsq", "steps": (2000, 2000)}, "quantizer.steps makes 4,000,000 values of a code; expected 2 to 1,048,576"),
        ({"method": "lfq", "codebook_size": 12}, "quantizer.codebook_size is 12; expected a power of 2 for lfq"),
        ({"codebook_size": 1}, "quantizer.codebook_size makes 1 values of a code; expected 2 to"),
        ({"num_levels": 0}, "quantizer.num_levels is 0; expected at least 1"),
        ({"num_levels": 100, "groups": 4}, "quantizer.num_levels is 100; expected at most 64"),
        ({"decay": 1.0}, "quantizer.decay is 1; expected a number from 0 up and below 1"),
        ({"level_dropout": 1.5}, "quantizer.level_dropout is 1.5; expected a number from 0 to 1"),
        ({"commitment_weight": math.inf}, "quantizer.commitment_weight is inf; expected a finite number from 0 up"),
    ],
)
def test_refuses_wrong_settings(changes, told):
    with pytest.raises(SpecError, match=told):
        QuantizerSettings(**changes)


def test_refuses_settings_that_do_not_fit_the_latents():
    with pytest.raises(SpecError, match="quantizer.groups is 4; expected a divisor of the 6 latent dimensions"):
        bottleneck("ema", groups=4)
    with pytest.raises(SpecError, match="quantizer.codebook_dim is 7; expected at most 6"):
        bottleneck("gradient", codebook_dim=7)
