"""Items that training never draws: how they are chosen, and how they are packed to be measured."""

from collections import Counter

import numpy as np
import pytest

from soundomni.core.errors import DataError, SpecError
from soundomni.core.spec.schema import DataSpec, DropoutSpec
from soundomni.data.held_out import held_out_indices, key_place
from soundomni.data.held_out_batches import plan_held_out, read_in_turn
from soundomni.data.mixture import Mixture, Source
from soundomni.data.prefetch import ClipReader
from soundomni.data.usage import survey

SPEC = DataSpec(datasets={}, tokens_per_batch=300, workers=0)
TASKS = {"generate": 3.0, "describe": 1.0}


def mix(dataset, *, seed=3, **uses):
    use = {"tasks": {"generate": 1.0}} | uses
    return Mixture(sources={"mine": Source(dataset=dataset, **use)}, seed=seed)


def keys(dataset, indices):
    return {dataset.item(index).key for index in indices}


def test_what_is_held_out_is_never_drawn_and_the_rest_is(ramps):
    mixture = mix(ramps(lengths=[1000] * 60), held_out=0.3)
    held = set(mixture.held_out("mine").tolist())
    stream = mixture.stream()
    drawn = {stream.next().index for _ in range(200)}
    assert 8 < len(held) < 28 and not drawn & held and drawn | held == set(range(60))
    assert mixture.captions(100) == [text for i in range(60) if i not in held for text in (f"ramp {i}", f"slope {i}")]


def test_the_split_depends_on_keys_alone(ramps):
    few, many = ramps(lengths=[1000] * 50), ramps(lengths=[2000] * 500)
    small, large = (keys(data, held_out_indices("x", data, 0.2)) for data in (few, many))
    assert small == {key for key in large if int(key.removeprefix("ramp-")) < 50}, "items stay where they are as a dataset grows"
    assert small < keys(few, held_out_indices("y", few, 0.5)), "and as the share does"
    assert [mix(few, held_out=0.2, seed=seed).held_out("mine").tolist() for seed in (1, 2)] == [
        held_out_indices("x", few, 0.2).tolist()
    ] * 2
    assert abs(np.mean([key_place(f"{n}.wav") < 0.1 for n in range(4000)]) - 0.1) < 0.02


def test_num_used_counts_what_is_drawn(ramps):
    mixture = mix(ramps(lengths=[1000] * 60), held_out=0.3, num_used=20)
    assert mixture.sizes == {"mine": 20} and not set(mixture.indices("mine").tolist()) & set(mixture.held_out("mine").tolist())


def test_a_dataset_that_is_only_measured_is_never_drawn(ramps):
    use = {"tasks": {"generate": 1.0}}
    sources = {name: Source(dataset=ramps(lengths=[1000] * 9), held_out=share, **use) for name, share in (("a", 0), ("b", 1), ("c", 0))}
    mixture = Mixture(sources=sources)
    stream = mixture.stream()
    assert Counter(stream.next().source for _ in range(50)).keys() == {"a", "c"}
    assert sorted(mixture.held_out("b").tolist()) == list(range(9))


@pytest.mark.parametrize(
    ("share", "size", "told"),
    [
        (0.001, 20, "which holds out none of its 20 items. Set it to 0.0"),
        (0.999, 20, "which holds out all of its 20 items. Set it to 0.9"),
        (1.0, 20, "every item of the data is held out"),
    ],
)
def test_a_share_that_leaves_one_side_empty_is_refused(share, size, told, ramps):
    with pytest.raises(DataError, match=told):
        mix(ramps(lengths=[1000] * size), held_out=share)


@pytest.mark.parametrize("share", [1e-6, 0.9999999])
@pytest.mark.parametrize("size", [2, 3, 7, 40, 300])
def test_the_share_that_an_error_proposes_splits_the_items(share, size, ramps):
    with pytest.raises(DataError, match="Set it to") as caught:
        mix(ramps(lengths=[1000] * size), held_out=share)
    proposed = float(str(caught.value).partition("Set it to ")[2].partition(",")[0])
    assert 0 < len(mix(ramps(lengths=[1000] * size), held_out=proposed).held_out("mine")) < size


def test_one_item_cannot_be_split(ramps):
    with pytest.raises(DataError, match=r"of its 1 items\. Set it to 0 or 1$"):
        mix(ramps(lengths=[1000]), held_out=0.5)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(share, ramps):
    with pytest.raises(SpecError, match=r"data\.datasets\.mine\.held_out is .*; expected a share from 0 to 1"):
        mix(ramps(lengths=[1000] * 9), held_out=share)


def test_held_out_items_are_told(ramps, make_writer):
    (usage,) = survey(mix(ramps(lengths=[1000] * 60), held_out=0.3, num_used=20), make_writer(), SPEC)
    assert usage.describe()[0].startswith("data 'mine': 20 of 60 clips are used; left out: ")
    assert usage.left_out.keys() == {"held out for validation", "beyond num_used"} and sum(usage.left_out.values()) == 40


def planned(ramps, make_writer, *, most=-1, **uses):
    mixture = mix(ramps(lengths=range(1000, 9000, 100)), tasks=TASKS, **({"held_out": 0.5} | uses))
    writer = make_writer(dropout=DropoutSpec(text=0.0, latent=0.0, features=0.0))
    return mixture, writer, plan_held_out(mixture, writer, SPEC, most=most)


def test_batches_are_the_same_every_time_and_of_one_task(ramps, make_writer):
    mixture, writer, batches = planned(ramps, make_writer)
    assert repr(batches) == repr(planned(ramps, make_writer)[2]) and len(batches) > 3
    for batch in batches:
        assert {one.draw.task.name for one in batch.samples} == {batch.group.task}
        assert sum(one.length for one in batch.samples) <= SPEC.tokens_per_batch
    samples = [one for batch in batches for one in batch.samples]
    assert {one.draw.index for one in samples} == set(mixture.held_out("mine").tolist()) and len(samples) == len(mixture.held_out("mine"))
    read = list(read_in_turn(batches, ClipReader(mixture=mixture, writer=writer, workers=0)))
    assert [batch.keys for batch in read] == [tuple(one.draw.key for one in batch.samples) for batch in batches]


def test_timesteps_are_spread_evenly_within_each_task(ramps, make_writer):
    _, _, batches = planned(ramps, make_writer)
    tasks = Counter(batch.group.task for batch in batches for _ in batch.samples)
    assert abs(tasks["generate"] / tasks.total() - 0.75) < 0.05
    everything = sorted(one.plan.sample.quantile for batch in batches for one in batch.samples)
    np.testing.assert_allclose(everything, (np.arange(len(everything)) + 0.5) / len(everything))
    for task, count in tasks.items():
        places = sorted(one.plan.sample.quantile for batch in batches if batch.group.task == task for one in batch.samples)
        assert np.abs(places - (np.arange(count) + 0.5) / count).max() < 2.5 / count, f"as even as {count} places can be, nearly"


def test_the_first_items_by_key_are_measured(ramps, make_writer):
    mixture, _, batches = planned(ramps, make_writer, most=7)
    assert {one.draw.index for batch in batches for one in batch.samples} == set(mixture.held_out("mine")[:7].tolist())
    assert planned(ramps, make_writer, most=0)[2] == [] == planned(ramps, make_writer, held_out=0.0)[2]


def test_items_that_cannot_be_measured_are_told(ramps, make_writer, caplog):
    mixture = mix(ramps(lengths=[1000] * 9 + [90_000], questions=()), tasks={"answer": 1.0}, held_out=0.9)
    assert plan_held_out(mixture, make_writer(), SPEC, most=-1) == []
    assert "held-out items are not measured, the first because: task 'answer' needs a question" in caplog.text
