"""`soundomni import qwen2-audio`: a directory of Hugging Face becomes a model that every command takes, or one line says why not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from qwen2_audio_files import model, write
from safetensors.torch import load_file, save_file

from soundomni.cli.main import main
from soundomni.core.pretrained.omni import SoundOmni


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("qwen") / "source", model())


def test_the_directory_is_a_model_that_hears(tmp_path: Path, source: Path, result: Any, wav: Path) -> None:
    out = tmp_path / "out"
    made = result("import", "qwen2-audio", source, "--out", out, "--license", "theirs", "--model.codec.frame_size=160")
    names = {entry.name for entry in out.iterdir()}
    assert names == {"spec.yaml", "config.json", "model.safetensors", "tokenizer.json", "README.md", "import-report.json"}
    report = json.loads((out / "import-report.json").read_text())
    assert made["keys"] == {"used": len(load_file(source / "model.safetensors")), "unused": 0} and report["license"] == "theirs"
    card = (out / "README.md").read_text()
    assert "license: other\nlicense_name: theirs\n" in card and "License of the weights: theirs." in card and "\n```yaml\nmodel:\n" in card
    assert json.loads((out / "config.json").read_text())["max_tokens"] == 32768
    spec = SoundOmni.from_pretrained(out).spec.model
    assert spec.codec.init_args == {"sample_rate": 16000, "frame_size": 160} and spec.chat == "qwen2-audio"
    heard = result("describe", "--model", out, wav, "--question", "what?", "--max-tokens", "4")["heard"]
    assert [one["file"] for one in heard] == [str(wav)] and isinstance(heard[0]["text"], str)


def test_layers_say_what_generates(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer = tmp_path / "layer.yaml"
    layer.write_text(
        "model:\n"
        "  backbone: {class_path: mot, init_args: {gen_intermediate_dim: 12, qk_norm: gen}}\n"
        "  codec: {class_path: oobleck, init_args: {base_channels: 4, channel_multiples: [1, 2], strides: [2, 4], latent_dim: 6}}\n"
        "  connectors: {latent: mlp}\n"
        "sampler: {class_path: heun, init_args: {num_steps: 3}}\n"
    )
    out = tmp_path / "out"
    assert main(["import", "qwen2-audio", str(source), "--out", str(out), "--config", str(layer), "--sampler.num_steps=5"]) == 0
    text = capsys.readouterr().out
    assert "channels floor(j * 36 / 12)" in text and "codec oobleck" in text and "explains the 0 unused entries" in text
    omni = SoundOmni.from_pretrained(out)
    assert omni.spec.model.made.sampler.init_args == {"num_steps": 5} and omni.model.made().codec.spec.latent_dim == 6
    assert omni.model.backbone.blocks[0].experts["gen"].mlp.down.in_features == 12
    assert torch.equal(omni.model.backbone.blocks[0].experts["gen"].q_norm.weight, torch.ones(8))


class Runs:
    """Unpickling this makes a directory."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.trace),)


def another_model(folder: Path) -> None:
    save_file({"encoder.layers.0.weight": torch.zeros(3, 2)}, folder / "model.safetensors")


def with_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": Runs(folder / "ran")}, folder / "pytorch_model.bin")


def truncated(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


def missing_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["multi_modal_projector.linear.bias"]
    save_file(tensors, folder / "model.safetensors")


def other_widths(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name][:-1].contiguous()}, folder / "model.safetensors")


def quantized(folder: Path) -> None:
    """Found only while tensors are written."""
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"language_model.model.norm.weight": torch.ones(32, dtype=torch.int8)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (another_model, "does not hold a Qwen2-Audio model; expected model.language_model.embed_tokens.weight or language_model.model."),
        (with_code, f"is a pickle with code in it: it asks for '{os.mkdir.__module__}.mkdir'"),
        (truncated, "cannot be read as safetensors; it is damaged or incomplete"),
        (missing_shard, "lacks 1 of 2 shards: model-00002-of-00002.safetensors"),
        (missing_tensor, "lacks 1 tensor that its config asks for (multi_modal_projector.linear.bias)"),
        (other_widths, "layers.1.mlp.up_proj.weight is [35, 32]; its config says [36, 32]"),
        (quantized, "'language_model.model.norm.weight' is int8; expected float32, float16, bfloat16 or float64"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "is not a usable tokenizer.json"),
    ],
)
def test_wrong_sources_end_in_one_line_and_nothing_is_written(tmp_path: Path, fails: Any, damage: Any, told: str) -> None:
    folder, out = write(tmp_path / "source", model()), tmp_path / "made" / "out"
    damage(folder)
    assert told in fails("import", "qwen2-audio", folder, "--out", out)
    assert not out.exists() and not (folder / "ran").exists()
    assert not (tmp_path / "made").exists() or not list((tmp_path / "made").iterdir())


def test_mistakes_of_the_command_line_end_in_one_line(tmp_path: Path, source: Path, fails: Any) -> None:
    out = tmp_path / "out"
    assert "is not a directory" in fails("import", "qwen2-audio", tmp_path / "absent", "--out", out)
    assert "hidden_dim: 32 -> 48" in fails("import", "qwen2-audio", source, "--out", out, "--model.backbone.hidden_dim=48")
    assert "Did you mean 'mdct'?" in fails("import", "qwen2-audio", source, "--out", out, "--model.codec=mdc")
    assert "no spec 'absent.yaml'" in fails("import", "qwen2-audio", source, "--out", out, "--config", "absent.yaml")
    assert not out.exists()
    assert "already exists" in fails("import", "qwen2-audio", source, "--out", source)


def test_a_spec_may_state_the_model_that_it_starts_from(
    tmp_path: Path, result: Any, fails: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the shipped specs of the original's size do: one file to import with, to weigh, and to train."""
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path / "source", model(vocab_size=600))
    Path("tiny-7b.yaml").write_text(
        "model:\n"
        "  backbone:\n"
        "    class_path: mot\n"
        "    init_args: {hidden_dim: 32, num_layers: 2, num_heads: 4, num_kv_heads: 2, head_dim: 8, intermediate_dim: 36,\n"
        "      gen_intermediate_dim: 12, qk_norm: gen, rope_theta: 10000.0, norm_eps: 1.0e-5, vocab_rows: 600}\n"
        "  router: modality\n"
        "  codec: {class_path: mdct, init_args: {sample_rate: 16000, frame_size: 160}}\n"
        "  encoder:\n"
        "    class_path: qwen2-audio\n"
        "    init_args: {num_mel_bins: 80, d_model: 16, num_layers: 2, num_heads: 4, ffn_dim: 16, max_source_positions: 50}\n"
        "  connectors: {latent: linear, features: linear}\n"
        "  objective: flow-matching\n"
        "  start: data/start/tiny-7b\n"
        "  freeze: [und, embedding, encoder]\n"
        "  feature_attend: causal\n"
        "  normalize: none\n"
        "  chat: qwen2-audio\n"
        "sampler: {class_path: euler, init_args: {num_steps: 2}}\n"
        "data:\n"
        "  datasets: {toys: {source: {class_path: toy-sounds, init_args: {size: 40, seconds: 0.4, events: [1, 1]}}}}\n"
        "  tokens_per_batch: 256\n"
        "train: {run_dir: runs/tiny-7b, steps: 1, schedule: {warmup_steps: 0}, optimizer: {lr: 1.0e-30}, threads: 1}\n"
    )
    spec = ("--config", "tiny-7b.yaml")
    assert "Make one with" in fails("train", *spec)
    for command in (("spec", "print", *spec), ("spec", "validate", *spec), ("doctor", *spec, "--seconds", "0.4")):
        assert main([*command]) == 0
    assert "model.start: 'data/start/tiny-7b' is not here, so its weights were not compared\n" in capsys.readouterr().err
    assert "is neither a model directory" in fails("spec", "validate", *spec, "--model.backbone=null")
    result("import", "qwen2-audio", source, *spec, "--out", "data/start/tiny-7b")
    assert main(["spec", "validate", *spec]) == 0 and "is not here" not in capsys.readouterr().err
    assert result("train", *spec)["finished"]
    result("export", "runs/tiny-7b", "--out", "out")
    given, made = (load_file(Path(folder) / "model.safetensors") for folder in ("data/start/tiny-7b", "out"))
    assert given.keys() == made.keys() and all(torch.allclose(tensor, made[name], rtol=0, atol=1e-20) for name, tensor in given.items())


def test_it_is_trained_on_exported_and_used(tmp_path: Path, source: Path, result: Any, wav: Path) -> None:
    start, run, out = tmp_path / "start", tmp_path / "run", tmp_path / "out"
    rest = tmp_path / "rest.yaml"
    rest.write_text(
        "data:\n"
        "  datasets: {toys: {source: {class_path: toy-sounds, init_args: {size: 40, seconds: 0.4, events: [1, 1]}}}}\n"
        "  tokens_per_batch: 256\n"
        "train: {run_dir: RUN, steps: 2, schedule: {warmup_steps: 1}, threads: 1}\n".replace("RUN", str(run))
    )
    result("import", "qwen2-audio", source, "--out", start, "--model.codec.frame_size=160")
    command = ("train", "--config", rest, f"--model.start={start}")
    assert result("spec", "validate", rest, f"--model.start={start}")["ok"]
    assert result(*command)["finished"]
    start.rename(tmp_path / "elsewhere")
    assert result("spec", "validate", rest, f"--model.start={start}")["ok"], "it goes on, so there is nothing to compare with"
    assert result(*command, "--train.steps=3")["step"] == 3, "it goes on without the model that it started from"
    result("export", run, "--out", out, "--dtype", "bfloat16")
    made = result("generate", "--model", out, "--prompt", "a dog", "--seconds", "0.2", "--steps", "2", "--out", tmp_path / "made")
    assert made and list((tmp_path / "made").glob("*.wav"))
    heard = result("describe", "--model", out, wav, "--max-tokens", "4")["heard"]
    assert isinstance(heard[0]["text"], str)
