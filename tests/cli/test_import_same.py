"""`soundomni import same` and `export --format same`: SAME becomes a codec and goes out again, or one line says why
not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from same_files import config, tensors, write, write_whole


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_a_whole_model_gives_a_codec_that_goes_out_again(tmp_path: Path, wav: Path, result: Any, large: bool) -> None:
    source, out = write_whole(tmp_path / "source", large=large), tmp_path / "out"
    made = result("import", "same", source, "--out", out, "--check", wav, "--license", "Stability AI Community")
    assert made["layout"] == "full-model" and "adds noise when it decodes" in made["notes"][0]
    assert made["check"]["codec_sample_rate"] == 8000
    report = json.loads((out / "import-report.json").read_text())
    assert made["keys"] == {"used": len(report["keys"]["used"]), "unused": 9 + 2}
    written = tmp_path / "written"
    result("export", out, "--format", "same", "--out", written)
    stored, wanted = load_file(written / "model.safetensors"), tensors(large)
    assert stored.keys() == wanted.keys() and all(torch.equal(stored[name], wanted[name]) for name in wanted)
    again = result("import", "same", written, "--out", tmp_path / "again")
    assert again["codec"] == made["codec"] and again["notes"] == []


def test_what_cannot_be_done_is_one_line(tmp_path: Path, fails: Any, result: Any) -> None:
    source = write(tmp_path / "source", tensors(), config())
    assert "holds SAME, the autoencoder of Stable Audio 3" in fails("import", "stable-audio-vae", source, "--out", tmp_path / "out")
    (tmp_path / "absent").mkdir()
    assert "no weights" in fails("import", "same", tmp_path / "absent" / "model.safetensors", "--out", tmp_path / "out")
    result("import", "same", source, "--out", tmp_path / "codec")
    told = fails("export", tmp_path / "codec", "--format", "diffusers-same", "--out", tmp_path / "out")
    assert "codec.transformer.window is null, but diffusers' autoencoder only has windows as long on either side; write it as same" in told
    told = fails("export", tmp_path / "codec", "--format", "stable-audio-vae", "--out", tmp_path / "out")
    assert "only the codec oobleck can be written as stable-audio-vae, not SameCodec. Choose another --format" in told
    assert not (tmp_path / "out").exists()
