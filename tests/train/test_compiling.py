"""Compiled layers: with and without recomputation they compute the same, in compiled graphs."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import alone, settings
from torch import Tensor, fx

from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.sequence import PackedBatch
from soundomni.train.parallel import parallelize

sys.path.insert(0, str(Path(__file__).parents[1] / "gpu"))
from emulated_models import make


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[UnifiedModel, PackedBatch]:
    """A small model of the spec `demo`, and a packed batch."""
    twice = make("demo", tmp_path_factory.mktemp("demo"))
    return twice.cpu, twice.batches[0]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Compile with a backend that runs graphs as they are; the sizes of those that ran."""
    ran: list[int] = []

    def backend(graph: fx.GraphModule, _: object) -> Callable[..., Any]:
        size = sum(node.op == "call_function" for node in graph.graph.nodes)

        def run(*args: Tensor) -> Any:
            ran.append(size)
            return graph.forward(*args)

        return run

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    yield ran
    torch._dynamo.reset()


def gradients(model: UnifiedModel, batch: PackedBatch) -> dict[str, Tensor]:
    model.zero_grad()
    sum(total / count for total, count in model(batch).values()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recompute", [False, True])
def test_layers_run_compiled_and_give_the_same(trained: tuple[UnifiedModel, PackedBatch], graphs: list[int], recompute: bool) -> None:
    model, batch = deepcopy(trained[0]), trained[1]
    expected = gradients(model, batch)
    parallelize(model, alone(), settings(compile=True, activation_checkpointing=recompute))
    found = gradients(model, batch)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    operations, passes = sum(graphs), 2 if recompute else 1
    assert operations >= passes * 20 * len(model.units), "almost everything in a layer is compiled"
