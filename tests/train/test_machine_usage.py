"""What is said of the machine: memory, the share of its peak speed, a trace of some steps."""

import json
from pathlib import Path

import pytest
import torch
from tiny_spec import tiny_spec
from tiny_training import TinyModel, alone
from torch.profiler import profile

from soundomni.core.assembly.build import build_model
from soundomni.train.tracing import WARMUP_STEPS, traced
from soundomni.train.usage import Usage, peak_memory, peak_speed, summary, token_weights


@pytest.mark.parametrize(
    ("name", "precision", "speed"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5e12),
        ("NVIDIA GeForce GTX 1080", "bf16", None),
        ("", "fp32", None),
    ],
)
def test_peak_speeds_are_known_by_name(name: str, precision: str, speed: float | None) -> None:
    assert peak_speed(name, precision=precision) == speed


def test_the_share_of_the_peak_is_left_out_where_there_is_none() -> None:
    found = Usage(alone(), weights=1e9, peak=60e12)({"tokens_per_second": 5000.0})
    assert found["mfu"] == pytest.approx(0.5) and 1e7 < found["peak_memory"] < 1e12
    for known in (Usage(alone(), weights=1e9, peak=None), Usage.of(TinyModel(), alone(), precision="fp32")):
        assert known({"tokens_per_second": 5000.0}).keys() == {"peak_memory"}


def test_a_token_passes_the_matrices_of_one_stream(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = build_model(tiny_spec(tmp_path / "run").model, vocab_size=300)
    names = ("qkv", "output", "gate_up", "down")
    layer = dict(model.backbone.layers[0].named_parameters())
    one = sum(p.numel() for name, p in layer.items() if any(part in name for part in names) and p.ndim == 2) / 2
    assert token_weights(model) == 2 * one


def test_a_run_is_summed_up() -> None:
    assert summary(60, {"tokens": 7200.0}, seconds=3600.4, memory=2.5e9) == "60 steps in 1:00:00, 2 tokens/s, peak memory 2.50 GB"
    assert peak_memory(torch.device("cpu")) > 1e7


def run_traced(count: int, steps: int, path: Path) -> list[int]:
    """Multiplies once per step; returns the number of multiplications in each trace that was saved."""
    saved: list[int] = []

    def save(profiler: profile) -> None:
        profiler.export_chrome_trace(str(path))
        saved.append(sum(event.get("name") == "aten::mm" for event in json.loads(path.read_text())["traceEvents"]))

    found = traced(range(steps), count, save)
    for _ in found:
        torch.ones(2, 2) @ torch.ones(2, 2)
    return saved


@pytest.mark.parametrize(("steps", "expected"), [(WARMUP_STEPS + 5, [2]), (WARMUP_STEPS + 1, [1]), (WARMUP_STEPS, [])])
def test_as_many_steps_are_traced_as_there_are(steps: int, expected: list[int], tmp_path: Path) -> None:
    assert run_traced(2, steps, tmp_path / "trace.json") == expected


def test_a_trace_of_a_run_that_ends_sooner_is_kept(tmp_path: Path) -> None:
    saved: list[profile] = []
    steps = traced(iter(range(100)), 50, saved.append)
    for _ in range(WARMUP_STEPS + 2):
        next(steps)
    assert not saved
    steps.close()
    assert len(saved) == 1
