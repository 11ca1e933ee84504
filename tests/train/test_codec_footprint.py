"""The memory that doctor says a codec's training takes, compared with tensors that are really there."""

import gc
import json
from pathlib import Path

import pytest
import torch

from soundomni.cli.main import main
from soundomni.core.spec.load import load_spec, resolve
from soundomni.train.build_codec import build_codec
from soundomni.train.codec_training import CODEC, CRITICS, CodecTraining
from soundomni.train.memory.codec_diagnosis import diagnose_codec
from soundomni.train.memory.codec_step import measure_codec_step
from soundomni.train.memory.live_memory import LiveMemory
from soundomni.train.optimizers.build import build_optimizer
from soundomni.train.without_memory import codec_without_memory

SPECS = ("soundstream-toy", "oobleck-toy")
CLIPS, SAMPLES = 3, 2000


def really(module: CodecTraining) -> tuple[int, int]:
    """Returns what a step keeps and its peak, of real tensors."""
    waveform, lengths = 0.1 * torch.randn(CLIPS, 1, SAMPLES), torch.full((CLIPS,), SAMPLES)
    module.after_step(type("One", (), {"sum": lambda self, x: x, "gather": lambda self, x: [x]})())
    for parameter in module.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    with LiveMemory([*module.parameters(), *module.buffers(), waveform, lengths]) as live:
        terms = module.losses(waveform, lengths, lengths.tolist(), range(CLIPS), CRITICS, keep=True)
        torch.stack([total for name, (total, _) in terms.items()]).sum().backward()
        del terms
        gc.collect()
        terms = module.losses(waveform, lengths, lengths.tolist(), range(CLIPS), CODEC)
        loss = torch.stack([total.float() for name, (total, _) in terms.items() if "/" not in name]).sum()
        kept = live.current
        loss.backward()
        return kept, live.peak


@pytest.mark.parametrize("name", SPECS)
def test_a_step_without_memory_is_as_large_as_a_real_one(name: str) -> None:
    spec = resolve(load_spec([name], [("codec.codec.warmup_steps", "0")] if "soundstream" in name else []))
    assert spec.codec is not None and spec.train is not None
    empty = codec_without_memory(spec.codec, spec.train, trust_class_paths=False)
    found = measure_codec_step(empty, clips=CLIPS, samples=SAMPLES, bf16=False)
    assert all(parameter.is_meta for parameter in empty.parameters())
    kept, peak = really(build_codec(spec.codec, spec.train))
    assert found.kept == pytest.approx(kept, rel=0.1)
    assert found.kept + found.passing == pytest.approx(peak, rel=0.15)


@pytest.mark.parametrize("gpus", [1, 4])
def test_what_stays_is_counted_from_the_parameters(gpus: int) -> None:
    spec = resolve(load_spec(["oobleck-toy"], [("train.batches_per_step", "4")]))
    assert spec.codec is not None and spec.train is not None
    found = diagnose_codec(spec, spec.codec, gpus=gpus, gpu_memory=1 << 34)
    module = build_codec(spec.codec, spec.train)
    codec, critics = (sum(p.numel() for p in part.parameters()) for part in (module.codec, module.critics))
    buffers = sum(buffer.nbytes for buffer in module.buffers())
    shares = found.footprint.weights - buffers - 4 * critics
    assert 4 * codec / gpus <= shares <= 4 * codec / gpus * 1.5, "the codec is sharded, and critics are whole"
    optimizer = build_optimizer(module, spec.train.optimizer)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = sum(value.nbytes for of in optimizer.state.values() for value in of.values())
    if gpus == 1:
        assert found.footprint.optimizer == pytest.approx(state, rel=1e-3)
    assert {part.name for part in found.parts} == {"encoder", "decoder", "critic spectrogram"}
    assert found.fits and found.complete


def test_doctor_sizes_the_published_codecs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, least, most in (("soundstream", 11e6, 13e6), ("stable-audio-vae", 156e6, 157e6)):
        assert main(["--json", "doctor", "--config", name, "--gpus", "8"]) == 0
        found = json.loads(capsys.readouterr().out)
        codec = sum(part["all"] for part_name, part in found["parameters"].items() if not part_name.startswith("critic"))
        assert least < codec < most
        assert found["complete"] and found["bytes_per_gpu"]["activations"] > 1 << 30
