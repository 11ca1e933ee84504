"""The steps of the plan, most valuable first, with their sizes on an H200, and those for trying the steps themselves on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Step:
    """A step of the plan.

    Args:
        number: its place in the plan.
        name: what it is about, in a few words.
        function: MODULE:FUNCTION, called with the kind of device and the sizes; it returns numbers and raises `Failed`.
        limit: the most seconds that it may take; then it is stopped.
        full: sizes for an H200.
        tiny: sizes that differ on a CPU, with `--device cpu`.
    """

    number: int
    name: str
    function: str
    limit: float
    full: Mapping[str, Any] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)

    def sizes(self, device: str) -> dict[str, Any]:
        """Return the sizes for a kind of device, "cuda" or "cpu"."""
        return {**self.full, **(self.tiny if device == "cpu" else {})}


BILLION = {"num_layers": 24, "hidden_dim": 2048, "num_heads": 16, "intermediate_dim": 1664}
"""A mixture of two transformers with 1.3 billion parameters."""
SMALL = {"num_layers": 2, "hidden_dim": 32, "num_heads": 2, "intermediate_dim": 32}

STEPS = (
    Step(0, "environment", "benchmarks.gpu.environment:environment", 60, {"size": 8192}, {"size": 128}),
    Step(
        1,
        "attention",
        "benchmarks.gpu.correctness:attention",
        90,
        {"unit": 64, "dims": [32, 48, 64, 128], "odd_dims": [8, 12]},
        {"unit": 8, "dims": [32], "odd_dims": [12]},
    ),
    Step(2, "codecs", "benchmarks.gpu.correctness:codecs", 60, {"seconds": 1.0, "base_channels": 32}, {"seconds": 0.2, "base_channels": 2}),
    Step(3, "losses and gradients", "benchmarks.gpu.correctness:gradients_agree", 60, {"tokens": 1280}, {"tokens": 320}),
    Step(
        4,
        "generate and describe",
        "benchmarks.gpu.correctness:use",
        75,
        {"num_steps": None, "num_clips": 8},
        {"num_steps": 4, "num_clips": 4},
    ),
    Step(
        5,
        "kinds of models",
        "benchmarks.gpu.correctness:kinds",
        75,
        {"tokens": 640, "rules": ["adamw", "muon", "adamw-8bit"]},
        {"tokens": 320, "rules": ["muon"]},
    ),
    Step(
        6,
        "runs",
        "benchmarks.gpu.training:runs",
        150,
        {"steps": 200, "stop": 100, "sharded_steps": 20, "compared": True, "precision": "bf16", "changes": []},
        {
            **{"steps": 4, "stop": 1, "sharded_steps": 1, "compared": False, "precision": "fp32"},
            "changes": [
                *("--train.threads=1", "--data.tokens_per_batch=512", "--data.datasets.toys.source.init_args.size=64"),
                "--model.backbone={class_path: mot, init_args: {hidden_dim: 64, num_layers: 2, num_heads: 2}}",
            ],
        },
    ),
    Step(7, "waits", "benchmarks.gpu.training:waits", 60, {"hidden_dim": 256, "num_steps": 3, "num_tokens": 8}, {"hidden_dim": 64}),
    Step(
        8,
        "speed of training",
        "benchmarks.gpu.speed:training",
        150,
        {
            **{**BILLION, "tokens": 16384, "seconds": 10.0, "rounds": 3, "backend": "inductor"},
            "cases": [(False, False), (False, True), (True, False), (True, True)],
        },
        {**SMALL, "tokens": 256, "seconds": 0.5, "rounds": 1, "backend": "eager", "cases": [(False, False), (True, True)]},
    ),
    Step(
        9,
        "speed of attention",
        "benchmarks.gpu.speed:attention",
        60,
        {"documents": 64, "words": 64, "frames": 448, "heads": 16, "dim": 128, "num_layers": 24, "rounds": 5},
        {"documents": 2, "words": 6, "frames": 10, "heads": 2, "dim": 16, "rounds": 1},
    ),
    Step(
        10,
        "speed of use",
        "benchmarks.gpu.speed:use",
        90,
        {**BILLION, "num_tokens": 128, "batch_sizes": [1, 8], "seconds": 10.0, "num_steps": 25},
        {**SMALL, "num_tokens": 4, "batch_sizes": [1, 2], "seconds": 0.3, "num_steps": 2},
    ),
    Step(
        11,
        "speed of the codec",
        "benchmarks.gpu.speed:codec",
        60,
        {"seconds": 47.0, "count": 4, "chunk_seconds": 10.0, "sizes": {}},
        {
            **{"seconds": 0.4, "count": 2, "chunk_seconds": 0.1},
            "sizes": {"sample_rate": 8000, "base_channels": 2, "channel_multiples": [1, 2], "strides": [4, 8], "latent_dim": 4},
        },
    ),
    Step(
        12,
        "checkpoints",
        "benchmarks.gpu.speed:checkpoint",
        90,
        {**BILLION, "num_layers": 8, "stall_per_gigabyte": 0.1},
        SMALL,
    ),
    Step(
        13,
        "layers of soundomni-7b",
        "benchmarks.gpu.speed:wide_layers",
        75,
        {
            **{"num_layers": 4, "hidden_dim": 4096, "num_heads": 32, "intermediate_dim": 11008, "gen_intermediate_dim": 2048},
            **{"vocab_rows": 156032, "tokens": 36864, "seconds": 10.0, "labels": 8192},
        },
        {**SMALL, "gen_intermediate_dim": 16, "vocab_rows": 400, "tokens": 256, "seconds": 0.5, "labels": 8},
    ),
)
