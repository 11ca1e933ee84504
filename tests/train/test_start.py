"""Runs that start from a model: what is taken, what may be new, what is refused, and how they go on without it."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qwen2_audio_files import model as qwen2_audio
from qwen2_audio_files import write
from safetensors.torch import load_file, save_file
from test_run import measured
from tiny_spec import tiny_spec

from soundomni.cli.main import main
from soundomni.core.errors import CheckpointError, SpecError
from soundomni.core.files.shipped import SHIPPED
from soundomni.core.pretrained.directory import Origin
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.pretrained.spec_with_start import load_spec_with_start
from soundomni.core.pretrained.start import KEPT_FILE, kept_text, read_kept, read_start
from soundomni.core.spec.load import load_spec
from soundomni.core.spec.schema import Spec
from soundomni.core.waveform import Audio
from soundomni.train.export import load_run
from soundomni.train.run import run_training

TOYS = {"size": 64, "seconds": 0.4, "events": [1, 1], "notes": ["C4", "D4"], "variation": 0.0}
REST: dict[str, Any] = {
    "data": {
        "datasets": {"toys": {"source": {"class_path": "toy-sounds", "init_args": TOYS}}},
        "tokens_per_batch": 256,
        "lookahead": 8,
        "workers": 1,
    },
    "train": {
        "steps": 3,
        "batches_per_step": 2,
        "optimizer": {"lr": 1e-4, "eps": 1e-8},
        "schedule": {"warmup_steps": 2},
        "ema_decay": 0.9,
        "log_every": 1,
        "save_every": 2,
        "threads": 1,
    },
}
"""A spec but for its model."""


def spec_from(start: Path | str, run_dir: Path, *overrides: str) -> Spec:
    pairs = [("model.start", str(start)), ("train.run_dir", str(run_dir)), *(tuple(text.split("=", 1)) for text in overrides)]
    return load_spec_with_start([REST], pairs)  # type: ignore[arg-type]


def state(omni: SoundOmni) -> dict[str, torch.Tensor]:
    return dict(omni.model.state_dict())


def checkpoint(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return dict(load_file(run_dir / "checkpoints" / f"step-{step:08d}" / "rank-00000.safetensors"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory of the smallest model, trained for a step."""
    base = tmp_path_factory.mktemp("tiny")
    run_training(tiny_spec(base / "run", "train.steps=1"))
    return load_run(base / "run")[0].save_pretrained(base / "model")


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory from a Qwen2-Audio of random weights."""
    base = tmp_path_factory.mktemp("imported")
    source = write(base / "source", qwen2_audio())
    assert (
        main(
            ["import", "qwen2-audio", str(source), "--out", str(base / "model"), "--license", "Apache-2.0", "--model.codec.frame_size=160"]
        )
        == 0
    )
    return base / "model"


def test_it_learns_on_from_what_the_model_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_training(spec_from("nano", tmp_path / "run"))
    assert "starting from the weights of 'nano'\n" in capsys.readouterr().err
    run_training(load_spec([SHIPPED / "nano" / "spec.yaml", REST], [("train.run_dir", str(tmp_path / "fresh"))]))
    first, random = measured(tmp_path / "run")[0], measured(tmp_path / "fresh")[0]
    assert first["loss/ce"] < 0.2 * random["loss/ce"] and first["loss"] < 0.5 * random["loss"]
    made = load_run(tmp_path / "run")[0]
    given = SoundOmni.from_pretrained("nano")
    assert torch.equal(made.model.made().normalizer.std, given.model.made().normalizer.std), "its latents are measured already"
    assert made.tokenizer.vocab_size == given.tokenizer.vocab_size
    assert made.spec.model.made.sampler == given.spec.model.made.sampler and made.spec.model.made.guidance == given.spec.model.made.guidance
    assert load_spec([made.save_pretrained(tmp_path / "out") / "spec.yaml"]).model.start is None


def test_before_the_first_step_weights_and_averages_are_those_of_the_model(tiny: Path, tmp_path: Path) -> None:
    run_training(spec_from(tiny, tmp_path / "run", "train.steps=1", "train.optimizer.lr=1e-30", "train.schedule.warmup_steps=0"))
    found = checkpoint(tmp_path / "run", 1)
    for name, tensor in state(SoundOmni.from_pretrained(tiny)).items():
        for held in (found[f"model/{name}"], found.get(f"ema/{name}", tensor)):
            assert torch.allclose(held, tensor, rtol=0, atol=1e-25), name


def test_going_on_is_bit_exact_when_the_model_is_gone(tiny: Path, tmp_path: Path) -> None:
    start = Path(shutil.copytree(tiny, tmp_path / "start"))
    run_training(spec_from(start, tmp_path / "whole"))
    run_training(spec_from(start, tmp_path / "run", "train.steps=2"))
    shutil.rmtree(start)
    assert run_training(spec_from(start, tmp_path / "run")).step == 3
    assert measured(tmp_path / "run") == measured(tmp_path / "whole")
    expected, found = checkpoint(tmp_path / "whole", 3), checkpoint(tmp_path / "run", 3)
    assert expected.keys() == found.keys() and all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    again = spec_from(start, tmp_path / "run")
    with pytest.raises(CheckpointError, match="is neither a model directory nor a shipped model"):
        run_training(again, existing="overwrite")
    assert len(measured(tmp_path / "run")) == 3, "which is found out before anything is removed"
    with pytest.raises(CheckpointError, match="is neither"):
        spec_from(start, tmp_path / "other")


def test_what_a_run_kept_counts_only_where_it_goes_on(tiny: Path, tmp_path: Path) -> None:
    start, run = Path(shutil.copytree(tiny, tmp_path / "start")), tmp_path / "run"
    run.mkdir()
    (run / KEPT_FILE).write_text(kept_text(read_start(str(start), start)))
    text = (start / "spec.yaml").read_text()
    assert "num_steps: 2" in text
    (start / "spec.yaml").write_text(text.replace("num_steps: 2", "num_steps: 3"))
    assert spec_from(start, run).model.made.sampler.init_args["num_steps"] == 3, "the attempt before it left no checkpoint"
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    assert spec_from(start, run).model.made.sampler.init_args["num_steps"] == 2


def test_a_run_that_begins_anew_does_not_keep_the_origin_of_an_attempt_before_it(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text('{"run": "the attempt"}')
    (run / KEPT_FILE).write_text(kept_text(replace(read_start(str(tiny), tiny), origin=Origin("theirs", "X"))))
    run_training(tiny_spec(run, "train.steps=1"))
    assert load_run(run)[0].origin == Origin() and not (run / KEPT_FILE).exists()
    (run / KEPT_FILE).write_text(kept_text(replace(read_start(str(tiny), tiny), origin=Origin("theirs", "X"))))
    assert load_run(run)[0].origin == Origin(), "the spec names no start"


@pytest.mark.parametrize(("before", "after"), [("license: theirs", "license: 5"), ("commit: null", "commit: 5"), ("origin:", "origins:")])
def test_what_a_run_kept_is_checked(tiny: Path, tmp_path: Path, before: str, after: str) -> None:
    (tmp_path / KEPT_FILE).write_text(kept_text(replace(read_start(str(tiny), tiny), origin=Origin("theirs", "X"))))
    found = read_kept(tmp_path)
    assert found is not None and found.origin == Origin("theirs", "X")
    text = (tmp_path / KEPT_FILE).read_text()
    assert before in text
    (tmp_path / KEPT_FILE).write_text(text.replace(before, after))
    with pytest.raises(CheckpointError, match=KEPT_FILE) as caught:
        read_kept(tmp_path)
    assert "\n" not in str(caught.value)


def test_weights_are_not_needed_to_read_a_spec(tiny: Path, tmp_path: Path) -> None:
    start = Path(shutil.copytree(tiny, tmp_path / "start"))
    (start / "model.safetensors").unlink()
    assert spec_from(start, tmp_path / "run").model == spec_from(tiny, tmp_path / "run", f"model.start={start}").model
    with pytest.raises(CheckpointError, match="has no weights"):
        run_training(spec_from(start, tmp_path / "run"))


def test_an_imported_model_learns_to_make_audio(imported: Path, tmp_path: Path) -> None:
    result = run_training(spec_from(imported, tmp_path / "run"))
    assert result.finished and np.isfinite(result.metrics["loss"])
    omni, _ = load_run(tmp_path / "run")
    omni.save_pretrained(tmp_path / "out")
    made, given = SoundOmni.from_pretrained(tmp_path / "out"), SoundOmni.from_pretrained(imported)
    assert not bool(given.model.made().normalizer.fitted) and made.model.made().normalizer.measured, "latents are measured on the data"
    assert made.origin == Origin("Apache-2.0", "source") and "license: apache-2.0\n" in (tmp_path / "out" / "README.md").read_text()
    assert made.max_tokens == 256 and made.spec.model.chat == "qwen2-audio"
    before, after = state(given), state(made)
    heard = [name for name in before if name.startswith(("encoder.", "backbone.embedding.")) or ".experts.und." in name]
    assert heard and all(torch.equal(before[name], after[name]) for name in heard), "what hears is frozen"
    assert any(not torch.equal(before[name], after[name]) for name in before if ".experts.gen." in name)
    clip = made.generate(["a dog"], seconds=0.2, num_steps=2)[0]
    assert clip.waveform.shape == (1, 3200) and np.isfinite(clip.waveform).all()
    noise = Audio(0.1 * np.random.default_rng(0).standard_normal((1, 8000)).astype(np.float32), 16000)
    assert made.describe([noise], max_new_tokens=6) == given.describe([noise], max_new_tokens=6)


def test_parts_may_be_new(imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = ("model.codec.frame_size=80", "model.connectors.latent=mlp", "model.start_fresh=[codec,latent_connector]", "train.steps=1")
    run_training(spec_from(imported, tmp_path / "run", *new))
    told = capsys.readouterr().err
    assert "new: codec, latent_connector, normalizer; the spec changes model.codec.init_args.frame_size: 160 -> 80, model.conn" in told
    omni, _ = load_run(tmp_path / "run")
    assert omni.model.made().normalizer.measured and omni.model.made().codec.spec.token_dim == 80
    assert all(bool(tensor.isfinite().all()) for tensor in state(omni).values()), "nothing is left uninitialized"


def test_only_the_codec_may_be_taken(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the codec has measured stays the same in a model with another backbone."""
    fresh = ("model.backbone.hidden_dim=32", "model.start_fresh=[backbone,latent_connector,features_connector,encoder]", "train.steps=1")
    run_training(spec_from(tiny, tmp_path / "run", *fresh))
    assert "new: backbone, latent_connector, features_connector, encoder; the spec changes" in capsys.readouterr().err
    found, given = load_run(tmp_path / "run")[0], SoundOmni.from_pretrained(tiny)
    assert torch.equal(found.model.made().normalizer.std, given.model.made().normalizer.std)
    assert all(bool(tensor.isfinite().all()) for tensor in state(found).values()), "nothing is left uninitialized"


def test_adapters_are_added_to_what_is_taken(imported: Path, tmp_path: Path) -> None:
    options = ("train.lora={streams: [und, gen], rank: 2}", "model.freeze=[und, gen, embedding, encoder]", "train.optimizer.lr=0.01")
    run_training(spec_from(imported, tmp_path / "run", *options))
    found, given = checkpoint(tmp_path / "run", 3), state(SoundOmni.from_pretrained(imported))
    backbone = [name for name in given if name.startswith("backbone.")]
    assert all(torch.equal(found[f"model/{name}"], given[name]) for name in backbone)
    assert sum(".lora_B." in name and bool(tensor.any()) for name, tensor in found.items() if name.startswith("model/")) > 4
    merged = state(load_run(tmp_path / "run")[0])
    assert merged.keys() == given.keys() and any(not torch.equal(merged[name], given[name]) for name in backbone)


def test_another_codec_of_the_same_shape_has_latents_of_its_own(tiny: Path, tmp_path: Path) -> None:
    run_training(spec_from(tiny, tmp_path / "run", "model.codec.companding=0.5", "train.steps=1"))
    assert not torch.equal(
        load_run(tmp_path / "run")[0].model.made().normalizer.std, SoundOmni.from_pretrained(tiny).model.made().normalizer.std
    )


def test_latents_that_were_never_measured_are_measured(tmp_path: Path) -> None:
    run_training(tiny_spec(tmp_path / "run", "data.datasets.toys.tasks={describe: 1.0}", "train.steps=1"))
    hears = load_run(tmp_path / "run")[0].save_pretrained(tmp_path / "hears")
    assert bool(SoundOmni.from_pretrained(hears).model.made().normalizer.fitted)
    run_training(spec_from(hears, tmp_path / "next", "train.steps=1"))
    assert load_run(tmp_path / "next")[0].model.made().normalizer.measured


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.backbone.hidden_dim=32",
            r"do not fit model.backbone.init_args.hidden_dim: 16 -> 32: .*Leave these keys out$",
        ),
        ("model.connectors.latent=mlp", r"connectors.latent.class_path: 'linear' -> 'mlp'.*or name latent_connector in model.start_fresh"),
        ("model.codec.frame_size=32", r"model.codec.init_args.frame_size: 64 -> 32: .* or name latent_connector in model.start_fresh"),
        ("model.tokenizer.vocab_size=999", r"model.tokenizer.vocab_size: \d+ -> 999: the tokenizer comes from model.start"),
        ("model.tokenizer.path=tokenizer.json", "model.tokenizer.path: None -> 'tokenizer.json': the tokenizer comes from model.start"),
        ("model.start_fresh=[codce]", "Did you mean 'codec'"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_key_before_anything_is_written(
    tiny: Path, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        run_training(spec_from(tiny, tmp_path / "run", override))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["5", "2024", "1e3", "true", "[a]", "in a section"])
def test_a_start_that_looks_like_another_value_is_still_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    override = ("model", "{start: named}") if name == "in a section" else ("model.start", name)
    start = "named" if name == "in a section" else name
    (tmp_path / start).symlink_to(SHIPPED / "nano")
    spec = load_spec_with_start([{"guidance": {"scale": 2.0}}], [override])
    nano = load_spec([SHIPPED / "nano" / "spec.yaml"])
    assert spec.model.backbone == nano.model.backbone and spec.model.start == start
    with pytest.raises(SpecError, match="whose spec load_spec does not read"):
        load_spec(["demo"], [override])


def test_wrong_starts_end_in_one_line(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rest = tmp_path / "rest.yaml"
    rest.write_text(json.dumps(REST))

    def told(*options: str) -> str:
        capsys.readouterr()
        assert main(["train", "--config", str(rest), f"--train.run_dir={tmp_path / 'run'}", *options]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("soundomni: ")]
        return line

    assert "Did you mean 'nano'?" in told("--model.start=nan0")
    assert "the spec has none of the sections model, codec and stages" in told()
    assert "model.start_fresh is set, but model.start is not" in told("--config", "nano", "--model.start_fresh=[codec]")
    damaged = Path(shutil.copytree(tiny, tmp_path / "damaged"))
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:-4])
    assert "cannot be read as safetensors" in told(f"--model.start={damaged}")
    with (damaged / "spec.yaml").open("a") as file:
        file.write("unknown: 1\n")
    assert "unknown key 'unknown'" in told(f"--model.start={damaged}")
    assert not (tmp_path / "run").exists()
    with pytest.raises(SpecError, match=r"model.start is 'nano', but a model directory holds all weights itself; leave it out"):
        SoundOmni.from_pretrained(tiny, overrides={"model.start": "nano"})


def test_weights_of_a_codec_are_either_of_the_model_or_given(tmp_path: Path) -> None:
    codec = {"class_path": "oobleck", "init_args": {"base_channels": 2, "channel_multiples": [1], "strides": [8], "latent_dim": 4}}
    codec["init_args"] |= {"sample_rate": 8000, "channels": 1}  # type: ignore[operator, call-overload]
    random = ("train.steps=1", "data.tokens_per_batch=1024", "train.random_codec=true")
    run_training(tiny_spec(tmp_path / "run", f"model.codec={json.dumps(codec)}", *random))
    omni = load_run(tmp_path / "run")[0]
    start = omni.save_pretrained(tmp_path / "start")
    given = tmp_path / "codec.safetensors"
    save_file({name: torch.full_like(tensor, 0.5) for name, tensor in omni.model.made().codec.state_dict().items()}, given)
    weights, steps = f"model.codec.weights={given}", ("train.steps=1", "data.tokens_per_batch=1024")
    with pytest.raises(SpecError, match=r"the codec's weights come from model.start, .*or name codec in model.start_fresh"):
        run_training(spec_from(start, tmp_path / "both", weights, *steps))
    fresh = "model.start_fresh=[codec]"
    with pytest.raises(SpecError, match=r"model.codec.weights is null; training needs a file, because codec 'oobleck'"):
        run_training(spec_from(start, tmp_path / "random", fresh, *steps))
    assert not (tmp_path / "random").exists()
    run_training(spec_from(start, tmp_path / "kept", *steps))
    run_training(spec_from(start, tmp_path / "new", weights, "model.start_fresh=[codec]", *steps))
    kept, new = (load_run(tmp_path / name)[0].model.made().codec.state_dict() for name in ("kept", "new"))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in omni.model.made().codec.state_dict().items())
    assert all(bool((tensor == 0.5).all()) for tensor in new.values())


@pytest.mark.long
def test_two_processes_start_as_one_does_and_each_reads_its_part(imported: Path, tmp_path: Path) -> None:
    program = Path(__file__)
    run_training(spec_from(imported, tmp_path / "one"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(map(str, program.parents[1:3])),
    }
    done = subprocess.run([*command, str(imported), str(tmp_path / "two")], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("starting from the weights of") == 1
    one, two = (measured(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 3
    for expected, found in zip(one, two, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


if __name__ == "__main__":
    sys.exit(run_training(spec_from(sys.argv[1], Path(sys.argv[2]))).exit_status)
