"""Training models whose levels depend on each other, and models of runs: resumed exactly, saved, and used."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_spec import TEXT

from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.spec.load import load_spec
from soundomni.train.export import load_run
from soundomni.train.run import run_training

CODEC = "{class_path: harmonic-codes, init_args: {num_codebooks: %d, codebook_size: 8, num_harmonics: 3}}"
KINDS = {
    "depth": {
        "model.codec": CODEC % 2,
        "model.connectors.latent": "{class_path: depth-codes, init_args: {depth_dim: 8, num_heads: 2}}",
        "model.objective": "{class_path: autoregressive, init_args: {order: frames}}",
    },
    "runs": {"model.codec": CODEC % 1, "model.connectors.latent": "codes", "model.objective": "autoregressive-runs"},
}


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints" / "step-00000004" / "rank-00000.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumes_bit_exactly_and_its_model_ends_clips_by_itself(kind: str, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(TEXT)
    settings = {**KINDS[kind], "sampler": "next-token", "guidance.scale": "2.0", "train.steps": "4", "train.save_every": "2"}
    settings |= {"data.datasets.toys.tasks": "{generate: 2, continue: 1}", "train.batches_per_step": "1"}
    settings |= {"train.validation": "{every: 4, prompts: [a loud sine tone], seconds: 0.3}"}

    def spec(folder: str):  # type: ignore[no-untyped-def]
        return load_spec([tmp_path / "spec.yaml"], [("train.run_dir", str(tmp_path / folder)), *settings.items()])

    run_training(spec("run"))
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    run_training(spec("again"), from_step=2)
    one, two = weights(tmp_path / "run"), weights(tmp_path / "again")
    assert set(one) == set(two) and [name for name in one if not torch.equal(one[name], two[name])] == []
    load_run(tmp_path / "run")[0].save_pretrained(tmp_path / "model")
    model = SoundOmni.from_pretrained(tmp_path / "model")
    made = model.generate(["a loud sine tone", "white noise"], seconds=0.3, seeds=[3, 4])
    alone = model.generate("white noise", seconds=0.3, seeds=4)[0]
    assert np.array_equal(made[1].waveform, alone.waveform) and all(0 < clip.waveform.shape[1] <= 2400 for clip in made)
