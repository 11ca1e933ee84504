"""The losses of a step by dataset and task: they add up to the losses, and change nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_held_out import held_out
from tiny_training import alone

from soundomni.core.sequence import PackedBatch
from soundomni.train.optimizers.build import build_optimizer
from soundomni.train.step import part_means, train_step


@pytest.fixture
def batches(tmp_path: Path) -> tuple[torch.nn.Module, list[PackedBatch], object]:
    """A model, batches of two datasets and three tasks, one of them with text alone, and the spec of a run."""
    measure = held_out(alone(), tmp_path)
    samples = [[], []]
    for number, planned in enumerate(measure.batches):
        for pending, _ in zip(measure.reader.start(planned.samples), planned.samples, strict=True):
            (sample,) = measure.reader.finish([pending])
            samples[number % 2].append(replace(sample, group="/".join(planned.group)))
    packed = [PackedBatch.from_samples(some) for some in samples]
    return measure.module, [*packed, PackedBatch.from_samples([])], measure.train


def test_parts_add_up_to_the_losses_and_change_nothing(batches) -> None:  # type: ignore[no-untyped-def]
    model, packed, _ = batches
    names = set()
    for batch in packed:
        plain, broken = model(batch), model(batch.broken_down())
        for name, (total, count) in plain.items():
            assert torch.equal(broken[name][0], total) and torch.equal(broken[name][1], count)
            parts = {part: terms for part, terms in broken.items() if part.startswith(f"{name}/")}
            names |= parts.keys()
            assert not any(terms[0].requires_grad for terms in parts.values())
            assert float(sum(terms[0] for terms in parts.values())) == pytest.approx(total.item(), rel=1e-5)
            assert float(sum(terms[1] for terms in parts.values())) == float(count)
    assert {"ce/toys/describe", "velocity/toys/generate", "velocity/others/generate"} <= names


def test_a_step_is_the_same_with_parts(batches, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model, packed, train = batches
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = []
    for some in (packed, [batch.broken_down() for batch in packed]):
        model.load_state_dict(start)
        result = train_step(model, some, train=train, optimizer=build_optimizer(model, train.optimizer), world=alone())
        found.append((result, {name: tensor.clone() for name, tensor in model.state_dict().items()}))
    (plain, weights), (broken, same) = found
    assert plain.measured == broken.measured and torch.equal(plain.values, broken.values)
    assert all(torch.equal(tensor, same[name]) for name, tensor in weights.items())
    assert not plain.parts
    means = part_means(broken, alone())
    counts = {name: float(broken.parts[f"velocity/{name}/generate"][1]) for name in ("toys", "others")}
    mean = sum(means[f"loss/velocity/{name}/generate"] * count for name, count in counts.items()) / sum(counts.values())
    assert mean == pytest.approx(plain.read(train).losses["velocity"], rel=1e-5), "the mean of the parts by what they count"
    assert "loss/velocity/toys/describe" not in means, "what counts nothing has no mean"
