"""Runs that train adapters: what moves, how they go on, what two processes compute, and what is exported."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_dit_training import DIT
from test_run import VALIDATION, measured
from test_run_processes import ENVIRONMENT, PROGRAM, TORCHRUN
from tiny_spec import tiny_spec

from soundomni import SoundOmni
from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.lora import add_adapters
from soundomni.core.assembly.lora_linear import LoRALinear
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import CheckpointError, SpecError
from soundomni.core.sequence import PackedBatch, Sample, text_segment
from soundomni.core.spec.load import resolve, spec_to_dict
from soundomni.core.spec.schema import Spec
from soundomni.core.tokenizer import TextTokenizer
from soundomni.train.export import load_run, save_run_adapters
from soundomni.train.preflight import check_spec
from soundomni.train.run import run_training
from soundomni.train.run_directory.opening import check_unchanged
from soundomni.train.state import load_trained_weights

LORA = ("train.lora={streams: [und, gen], rank: 2, alpha: 3.5, targets: [qkv, output, mlp.down]}", "train.optimizer.lr=0.02")
ALONE = (*LORA, "train.lora.streams=[und]", "model.freeze=[gen, embedding, encoder, connectors]")
"""One expert's adapters and nothing else. That of "gen" would learn nothing here: a new model's frozen way out is zero."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that trains the adapters of one expert alone, with validation."""
    run_dir = tmp_path_factory.mktemp("lora") / "run"
    run_training(tiny_spec(run_dir, *ALONE, *VALIDATION))
    return run_dir


def checkpoint(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints" / "step-00000006" / "rank-00000.safetensors")


def test_adapters_alone_move_and_are_averaged(whole: Path) -> None:
    tensors = checkpoint(whole)
    spec = tiny_spec(whole, *ALONE)
    assert spec.train is not None
    base = dict(build_model(spec.model, vocab_size=300, seed=spec.train.seed).named_parameters())
    adapters = {name.removeprefix("model/") for name in tensors if name.startswith("model/") and ".lora_" in name}
    assert len(adapters) == 2 * 3 * 2, "layers, targets, matrices"
    for name, parameter in base.items():
        assert torch.equal(tensors[f"model/{name}"], parameter), name
    assert all(tensors[f"model/{name}"].abs().max() > 0 for name in adapters), "B has left zero"
    for prefix, suffix in (("ema/", ""), ("optimizer/", "/exp_avg")):
        assert {n.removeprefix(prefix).removesuffix(suffix) for n in tensors if n.startswith(prefix) and n.endswith(suffix)} == adapters
    assert (whole / "samples" / "step-00000006" / "00-a-sine.wav").is_file()


def test_going_on_is_bit_exact(whole: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_training(tiny_spec(run_dir, *ALONE, "train.steps=3"))
    assert run_training(tiny_spec(run_dir, *ALONE)).step == 6
    assert measured(run_dir) == measured(whole)
    expected, found = checkpoint(whole), checkpoint(run_dir)
    assert expected.keys() == found.keys() and all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


@torch.no_grad()
def cross_entropy(model: UnifiedModel, tokenizer: TextTokenizer) -> float:
    """Of a text that every stage of a model computes."""
    segment = text_segment(tokenizer.encode("a rising sine and a click"), bos=tokenizer.bos, eos=tokenizer.eos, loss=True)
    total, count = model(PackedBatch.from_samples([Sample(key="x", segments=(segment,))]))["ce"]
    return float(total / count)


def test_a_run_is_exported_merged_and_as_adapters(whole: Path, tmp_path: Path) -> None:
    spec = tiny_spec(whole, *ALONE)
    assert spec.train is not None and spec.train.lora is not None
    merged, step = load_run(whole)
    assert step == 6 and not any(isinstance(module, LoRALinear) for module in merged.model.modules())

    base = build_model(spec.model, vocab_size=merged.tokenizer.vocab_size, seed=spec.train.seed)
    unmerged = build_model(spec.model, vocab_size=merged.tokenizer.vocab_size)
    add_adapters(unmerged, spec.train.lora)
    load_trained_weights(unmerged, whole / "checkpoints" / "step-00000006")
    before, expected, found = (cross_entropy(model, merged.tokenizer) for model in (base, unmerged, merged.model))
    assert found == pytest.approx(expected, abs=1e-6) and abs(before - expected) > 1e-3

    folders, step = save_run_adapters(whole, tmp_path / "adapters")
    assert (step, folders) == (6, [tmp_path / "adapters" / "und"])
    SoundOmni(base, spec, merged.tokenizer).load_adapter(folders[0])
    for name, parameter in merged.model.named_parameters():
        torch.testing.assert_close(base.get_parameter(name), parameter, rtol=0, atol=1e-7)

    merged.save_pretrained(tmp_path / "model")
    again = SoundOmni.from_pretrained(tmp_path / "model")
    assert cross_entropy(again.model, again.tokenizer) == found and again.spec.train is None


def test_adapters_that_are_not_all_are_not_written(tmp_path: Path) -> None:
    run_training(tiny_spec(tmp_path / "run", *LORA, "train.steps=1"))
    with pytest.raises(
        CheckpointError, match=r"trained \d+ parameters besides its adapters, such as 'backbone.embedding.weight'. Export it"
    ):
        save_run_adapters(tmp_path / "run", tmp_path / "out")
    run_training(tiny_spec(tmp_path / "plain", "train.steps=1"))
    with pytest.raises(CheckpointError, match="has no adapters: its spec has no train.lora"):
        save_run_adapters(tmp_path / "plain", tmp_path / "out")
    assert not (tmp_path / "out").exists()


DORA = ("train.lora={streams: [und], kind: dora, rank: 2}", "model.tokenizer.vocab_size=261", "train.precision=bf16")


def from_start(start: Path, run_dir: Path, *options: str) -> Spec:
    spec = tiny_spec(run_dir, *DORA, "model.freeze=[gen, embedding, encoder, connectors]", *options)
    return replace(spec, model=replace(spec.of_model, start=str(start)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to start from."""
    folder = tmp_path_factory.mktemp("start")
    run_training(tiny_spec(folder / "run", "model.tokenizer.vocab_size=261", "train.steps=1"))
    return load_run(folder / "run")[0].save_pretrained(folder / "model")


def test_magnitudes_start_at_the_norms_of_the_starting_model(trained: Path, tmp_path: Path) -> None:
    weights = load_file(trained / "model.safetensors")
    run_training(from_start(trained, tmp_path / "run", "train.optimizer.lr=0.0", "train.steps=1"))
    found = load_file(tmp_path / "run" / "checkpoints" / "step-00000001" / "rank-00000.safetensors")
    magnitudes = {name: tensor for name, tensor in found.items() if name.startswith("model/") and name.endswith(".lora_magnitude")}
    assert len(magnitudes) == 2 * 2, "layers, targets"
    for name, magnitude in magnitudes.items():
        torch.testing.assert_close(magnitude, weights[name.removeprefix("model/").replace("lora_magnitude", "weight")].norm(dim=1))


def test_dora_resumes_exactly_and_is_exported_merged_and_on_its_own(trained: Path, tmp_path: Path) -> None:
    run_training(from_start(trained, tmp_path / "whole", "train.optimizer.lr=0.02"))
    run_training(from_start(trained, tmp_path / "run", "train.optimizer.lr=0.02", "train.steps=3"))
    run_training(from_start(trained, tmp_path / "run", "train.optimizer.lr=0.02"))
    expected, found = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "run")
    assert expected.keys() == found.keys() and all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    merged, _ = load_run(tmp_path / "run")
    (folder,), _ = save_run_adapters(tmp_path / "run", tmp_path / "adapters")
    base = SoundOmni.from_pretrained(trained)
    plain = cross_entropy(base.model, base.tokenizer)
    base.load_adapter(folder)
    assert cross_entropy(base.model, base.tokenizer) == pytest.approx(cross_entropy(merged.model, merged.tokenizer), abs=1e-6)
    assert abs(plain - cross_entropy(merged.model, merged.tokenizer)) > 1e-3


def test_dora_of_new_weights_that_are_zero_is_refused(tmp_path: Path) -> None:
    targets = "train.lora={streams: [all], kind: dora, targets: [output]}"
    with pytest.raises(SpecError, match=r"the weight of 'backbone.blocks.0.attention.output' has rows of zeros.* Start from a trained"):
        run_training(tiny_spec(tmp_path / "run", *DIT, targets))


def test_adapters_with_an_interval_are_exported_on_their_own_and_may_be_recomputed(tmp_path: Path) -> None:
    lora = "train.lora={streams: [all], rank: 2, interval: [0.0, 0.5], targets: [qkv, query, up]}"
    options = (*DIT, lora, "train.steps=3", "train.optimizer.lr=0.02", "train.validation.every=3", "model.freeze=[encoder, connectors]")
    for name, recompute in (("plain", "false"), ("recomputed", "true")):
        run_training(tiny_spec(tmp_path / name, *options, f"train.activation_checkpointing={recompute}"))
    plain, recomputed = (measured(tmp_path / name) for name in ("plain", "recomputed"))
    for expected, found in zip(plain, recomputed, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    assert (tmp_path / "plain" / "samples" / "step-00000003" / "00-a-c4-sine.wav").is_file()
    with pytest.raises(CheckpointError, match=r"only act at timesteps from 0 to 0.5, .* Export them with --format peft-adapter"):
        load_run(tmp_path / "plain")


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ("{streams: [all], interval: [0.5, 0.2]}", r"train.lora.interval is \[0.5, 0.2\]; expected two numbers from 0 to 1"),
        ("{streams: [all], interval: [0, 0.5], targets: [key_value]}", "are conditions, which have no timestep"),
    ],
)
def test_wrong_intervals_are_told_before_anything_is_built(lora: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message):
        check_spec(tiny_spec(tmp_path / "run", *DIT, f"train.lora={lora}"))


@pytest.mark.long
def test_magnitudes_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    settings = [*LORA, "train.lora.kind=dora"]
    run_training(tiny_spec(tmp_path / "one", *settings))
    command = [sys.executable, *TORCHRUN, str(PROGRAM), str(tmp_path / "two"), *settings]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    one, two = (measured(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 6
    for expected, found in zip(one, two, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.lora={streams: [gen], rank: 0}"], "train.lora.rank is 0; expected at least 1"),
        (["train.lora={streams: [gen], alpha: 0}"], "train.lora.alpha is 0.0; expected finite and above 0"),
        (["train.lora={streams: [gen], dropout: 1}"], "train.lora.dropout is 1.0; expected at least 0 and below 1"),
        (["train.lora={streams: []}"], "train.lora.streams is empty"),
        (["train.lora={streams: [gen], targets: []}"], "train.lora.targets is empty"),
        (["train.lora={streams: [gem]}"], "unknown expert stream 'gem'. Did you mean 'gen'"),
        (["train.lora={streams: [gen], targets: [kqv]}"], "unknown linear layer 'kqv'. Did you mean 'qkv'"),
    ],
)
def test_mistakes_are_told_before_anything_is_built(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message):
        check_spec(tiny_spec(tmp_path / "run", *overrides))


def test_a_codec_has_no_experts(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="train.lora adapts expert streams, but the spec trains a codec"):
        check_spec(tiny_spec(tmp_path / "run", "train.lora={streams: [gen]}", codec=True))


def test_runs_from_before_adapters_go_on_and_adapters_are_not_added_to_them(tmp_path: Path) -> None:
    spec = resolve(tiny_spec(tmp_path / "run"))
    saved = spec_to_dict(spec)
    del saved["train"]["lora"]
    check_unchanged(saved, spec, tmp_path)
    with pytest.raises(CheckpointError, match=r"train.lora: None -> \{"):
        check_unchanged(saved, resolve(tiny_spec(tmp_path / "run", *LORA)), tmp_path)


@pytest.mark.long
def test_two_processes_learn_what_one_does_and_one_goes_on(tmp_path: Path) -> None:
    """With sharded adapters and recomputed layers; then one process resumes from what two saved."""
    settings = [*LORA, "train.lora.rank=1", "train.activation_checkpointing=true"]  # one process holds no row of A
    run_training(tiny_spec(tmp_path / "one", *settings))
    command = [sys.executable, *TORCHRUN, str(PROGRAM), str(tmp_path / "two"), *settings, "train.steps=3"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    run_training(tiny_spec(tmp_path / "two", *settings))
    one, two = (measured(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 6
    for expected, found in zip(one, two, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    expected, found = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two")
    for name, tensor in expected.items():
        if name.startswith(("model/", "ema/")):
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
