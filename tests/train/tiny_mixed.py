"""A small version of the shipped spec `mixed`, and a way to run it as a program that notes what was in its batches.

Run as `python tiny_mixed.py RUN_DIR [KEY=VALUE ...]`, plain or under torchrun; `RUN_DIR-batches-RANK.json` lists the modalities of
each batch.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.spec.load import load_spec
from soundomni.core.spec.schema import Spec
from soundomni.train.run import run_training

HARMONIC = {"sample_rate": 8000, "channels": 1, "frame_size": 128, "num_harmonics": 3, "pitch_range": [125, 1000], "companding": 0.5}
CLIPS = {"size": 64, "seconds": 0.4}
SMALL: dict[str, Any] = {
    "model": {
        "backbone": {"class_path": "mot", "init_args": {"hidden_dim": 32, "num_layers": 2, "num_heads": 2, "intermediate_dim": 64}},
        "modalities": {
            "latent": {"sampler": {"init_args": {"num_steps": 2}}},
            "codes": {
                "codec": {"class_path": "harmonic-codes", "init_args": {**HARMONIC, "num_codebooks": 2, "codebook_size": 16}},
                "sampler": {"init_args": {"iterations": [3, 1]}},
            },
            "features": {"encoder": {"init_args": {"n_fft": 200, "hop_length": 80, "num_mels": 16, "feature_dim": 16, "num_layers": 3}}},
        },
        "tokenizer": {"vocab_size": 300},
    },
    "data": {
        "datasets": {
            "making": {"source": {"init_args": CLIPS}, "tasks": {"generate": 1.0, "generate-codes": 1.0}, "weight": 2.0},
            "hearing": {"source": {"init_args": CLIPS}},
        },
        "tokens_per_batch": 512,
        "max_tokens_per_sample": None,
        "lookahead": 8,
    },
    "train": {
        "steps": 30,
        "optimizer": {"rule": "adamw", "lr": 1.0e-2},
        "schedule": {"kind": "constant", "warmup_steps": 2},
        "ema_decay": 0.9,
        "log_every": 1,
        "save_every": 15,
        "threads": 1,
    },
}


def tiny_mixed(run_dir: Path, *overrides: str) -> Spec:
    """Returns the spec with dotted overrides."""
    pairs = [("train.run_dir", str(run_dir)), *(tuple(text.split("=", 1)) for text in overrides)]
    return load_spec(["mixed", SMALL], pairs)  # type: ignore[arg-type]


if __name__ == "__main__":
    found: list[list[str]] = []

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if isinstance(module, UnifiedModel) and module.training:
            found.append(sorted(arguments[0].clips))

    register_module_forward_pre_hook(note)
    status = run_training(tiny_mixed(Path(sys.argv[1]), *sys.argv[2:])).exit_status
    Path(f"{sys.argv[1]}-batches-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))
    sys.exit(status)
