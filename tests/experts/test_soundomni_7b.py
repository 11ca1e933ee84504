"""The shipped specs of the original's size against the checkpoint that they are made for, of which only the config is needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from soundomni.core.spec.load import changed_keys, load_spec, resolve, spec_to_dict
from soundomni.experts.checkpoints.language_import import ALWAYS_FREE
from soundomni.experts.checkpoints.qwen2_audio_config import read_source_config
from soundomni.experts.checkpoints.qwen2_audio_import import FREE, base_layer

SPECS = ("soundomni-7b", "soundomni-7b-full")
ROWS = 156032
CONFIG = {
    "model_type": "qwen2_audio",
    "audio_config": {
        "model_type": "qwen2_audio_encoder",
        "num_mel_bins": 128,
        "d_model": 1280,
        "encoder_layers": 32,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
        "max_source_positions": 1500,
    },
    "text_config": {
        "model_type": "qwen2",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": ROWS,
    },
}


def changes(folder: Path, name: str, *overrides: tuple[str, str]) -> list[str]:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    base = base_layer(read_source_config(folder), vocab_rows=ROWS, tied=False)
    alone, layered = (resolve(load_spec([base, *layers], given, base={})) for layers, given in (([], ()), ([name], overrides)))
    return changed_keys(spec_to_dict(alone), spec_to_dict(layered), may_change=(*FREE, *ALWAYS_FREE))


@pytest.mark.parametrize("name", SPECS)
def test_a_shipped_spec_may_lie_over_the_checkpoint(tmp_path: Path, name: str) -> None:
    alone = ("model.start", "null")
    assert changes(tmp_path, name, alone) == []
    refused = changes(tmp_path, name, alone, ("model.backbone.num_layers", "28"))
    assert refused == ["model.backbone.init_args.num_layers: 32 -> 28"]


def test_the_specs_differ_in_the_width_of_the_generation_expert_alone() -> None:
    narrow, full = (spec_to_dict(resolve(load_spec([name], base={}))) for name in SPECS)
    assert changed_keys(narrow, full, may_change=["model.start", "train.run_dir"]) == [
        "model.backbone.init_args.gen_intermediate_dim: 2048 -> None"
    ]
