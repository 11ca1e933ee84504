"""Text, latents and codes in one model, from end to end: a small version of the shipped spec `mixed`."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_run import measured
from tiny_mixed import HARMONIC, SMALL, tiny_mixed
from two_processes import run_in_two_processes

from soundomni.core.errors import DataError, SpecError
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.pretrained.spec_with_start import load_spec_with_start
from soundomni.core.spec.load import resolve, spec_to_dict
from soundomni.core.spec.schema import Spec
from soundomni.core.waveform import Audio
from soundomni.train.export import load_run
from soundomni.train.run import run_training
from soundomni.train.start_weights import open_start

LOSSES = ("loss/ce", "loss/velocity", "loss/masked")
BUFFERS = ("codec.quantizer.codebooks", "codec.quantizer.fitted")
WORDS = "{class_path: toy-sounds, init_args: {size: 64, seconds: 0.4, events: [1, 1], seed: 5}}"
SEVERAL = (
    "data.tokens_per_batch=64",
    "data.tasks.say=[{text: '{caption}', loss: true}]",
    f"data.datasets.saying={{source: {WORDS}, tasks: {{say: 1}}, weight: 6}}",
    "train.batches_per_step=2",
    "train.steps=20",
    "train.optimizer.lr=1e-3",
    "train.save_every=0",
)
"""Batches of a few documents, two of them per step, so that all lack some modality and some are only text."""


def checkpoint(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return dict(load_file(run_dir / "checkpoints" / f"step-{step:08d}" / "rank-00000.safetensors"))


def clip(seconds: float = 0.3) -> Audio:
    time = np.arange(int(8000 * seconds), dtype=np.float32) / 8000
    return Audio(0.3 * np.sin(2 * np.pi * 262 * time)[None], 8000)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of thirty steps."""
    run_dir = tmp_path_factory.mktemp("mixed") / "run"
    assert run_training(tiny_mixed(run_dir)).finished
    return run_dir


@pytest.fixture(scope="module")
def saved(run: Path) -> Path:
    """The model that the run exports."""
    return load_run(run)[0].save_pretrained(run.parent / "model")


def test_all_three_losses_fall(run: Path) -> None:
    lines = measured(run)
    for loss in LOSSES:
        values = [line[loss] for line in lines]
        assert np.mean(values[-6:]) < 0.9 * np.mean(values[:6]), (loss, values)


def test_it_makes_latents_and_codes_and_describes(saved: Path) -> None:
    model = SoundOmni.from_pretrained(saved)
    latent, codes, made_first = (
        model.generate(["a C4 sine", "noise"], seconds=0.3, seeds=[3, 4], of=of) for of in ("latent", "codes", None)
    )
    made = {"latent": latent, "codes": codes}
    for clips in made.values():
        assert all(one.waveform.shape == (1, 2400) and np.isfinite(one.waveform).all() for one in clips)
    assert not np.array_equal(latent[0].waveform, codes[0].waveform)
    assert np.array_equal(latent[0].waveform, made_first[0].waveform), "the first one"
    (text,) = model.describe([clip()], max_new_tokens=6)
    assert isinstance(text, str)
    for of in made:
        assert model.reconstruct(clip(), of=of).waveform.shape == (1, 2400)


def test_codebooks_are_measured_on_the_data_and_saved_with_the_model(run: Path, saved: Path) -> None:
    stored, kept = load_file(saved / "model.safetensors"), checkpoint(run, 30)
    for name in BUFFERS:
        key = f"modalities.codes.{name}"
        assert torch.equal(stored[key], kept[f"model/{key}"]) and torch.equal(kept[f"model/{key}"], checkpoint(run, 15)[f"model/{key}"])
    assert stored["modalities.codes.codec.quantizer.fitted"] and stored["modalities.codes.codec.quantizer.codebooks"].any()
    in_memory, loaded = load_run(run)[0], SoundOmni.from_pretrained(saved)
    again = SoundOmni.from_pretrained(loaded.save_pretrained(saved.parent / "again"))
    assert (saved / "spec.yaml").read_text() == (saved.parent / "again" / "spec.yaml").read_text()
    for of in ("latent", "codes"):
        clips = [one.generate("a C4 sine", seconds=0.3, seeds=3, of=of)[0].waveform for one in (in_memory, loaded, again)]
        assert all(clips[0].tobytes() == other.tobytes() for other in clips[1:])
    texts = [one.describe([clip()], max_new_tokens=6) for one in (in_memory, loaded, again)]
    assert texts[0] == texts[1] == texts[2]


def test_resuming_is_bit_exact(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    changed = ("model.modalities.codes.sampler.iterations=[2, 1]", "model.modalities.latent.guidance.scale=3")  # these may
    assert run_training(tiny_mixed(copy, *changed), from_step=15).step == 30
    expected, found = checkpoint(run, 30), checkpoint(copy, 30)
    assert expected.keys() == found.keys() and any("codebooks" in name for name in expected)
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])] == []
    assert measured(copy)[-15:] == measured(run)[-15:]


@pytest.mark.long
def test_two_ranks_whose_batches_lack_modalities_compute_what_one_process_does(tmp_path: Path) -> None:
    run_training(tiny_mixed(tmp_path / "one", *SEVERAL))
    run_dir = tmp_path / "two"
    run_in_two_processes(Path(__file__).with_name("tiny_mixed.py"), str(run_dir), *SEVERAL)
    batches = [json.loads(Path(f"{run_dir}-batches-{rank}.json").read_text())[-20:] for rank in range(2)]
    assert {3 - len(names) for one in batches for names in one} >= {1, 2, 3}, "how many modalities a batch lacks"
    kinds = {name for one in batches for names in one for name in names}
    assert kinds == {"latent", "codes", "features"}
    for name in kinds:
        lacks = [(name not in one, name not in two) for one, two in zip(*batches, strict=True)]
        assert (True, False) in lacks and (False, True) in lacks, "one rank has the modality and the other does not"
    one, two = measured(tmp_path / "one"), measured(run_dir)
    assert len(one) == len(two) == 20
    for loss in ("loss", *LOSSES):
        assert [line[loss] for line in two] == pytest.approx([line[loss] for line in one], abs=1e-5)
    first, second = (load_run(path)[0].model.state_dict() for path in (tmp_path / "one", run_dir))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
        assert torch.equal(second[name], tensor) or not name.endswith(BUFFERS), name


ROUGH = {"codec": {"class_path": "harmonic-codes", "init_args": {**HARMONIC, "num_codebooks": 1, "codebook_size": 8}}, "connector": "codes"}
CONFORMER = "{class_path: conformer, init_args: {hidden_dim: 32, num_layers: 2, num_heads: 2, intermediate_dim: 64}}"
ALIGNED = (
    f"model.backbone={CONFORMER}",
    f"model.modalities.rough={json.dumps(ROUGH)}",
    "model.modalities.codes.aligned=[rough]",
    *SEVERAL,
    "data.tokens_per_batch=96",
    "train.steps=8",
)
"""Rough codes of the clip, whose codebook is measured too, are added to its codes, unless dropout leaves them out."""


@pytest.mark.long
def test_two_ranks_of_a_conformer_with_aligned_clips_compute_what_one_process_does(tmp_path: Path) -> None:
    run_training(tiny_mixed(tmp_path / "one", *ALIGNED, "train.activation_checkpointing=true"))
    run_dir = tmp_path / "two"
    run_in_two_processes(Path(__file__).with_name("tiny_mixed.py"), str(run_dir), *ALIGNED)
    one, two = measured(tmp_path / "one"), measured(run_dir)
    assert len(one) == len(two) == 8
    for loss in ("loss", *LOSSES):
        assert [line[loss] for line in two] == pytest.approx([line[loss] for line in one], abs=1e-5)
    first, second = (load_run(path)[0].model.state_dict() for path in (tmp_path / "one", run_dir))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_a_modality_of_which_the_data_have_no_clip_is_named(tmp_path: Path) -> None:
    rare = "data.datasets.making.tasks={generate: 1, generate-codes: 1e-12}"
    with pytest.raises(DataError, match="^the modality 'codes' cannot be measured on the data: the first 64 packed batches") as caught:
        run_training(tiny_mixed(tmp_path / "run", rare, "data.tokens_per_batch=64"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("first", "later"), [("generate", "codes"), ("generate-codes", "latent")])
def test_a_modality_that_gets_its_first_task_on_resume_is_refused(first: str, later: str, tmp_path: Path) -> None:
    short = ("train.steps=2", "train.save_every=1")
    run_training(tiny_mixed(tmp_path / "run", f"data.datasets.making.tasks={{{first}: 1}}", *short))
    kept = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(SpecError, match=f"^the data now have a task for the modality '{later}', .*which had none.*[^.]$") as caught:
        run_training(tiny_mixed(tmp_path / "run", *short, "train.steps=4"), allow_change=["data"])
    assert "\n" not in str(caught.value) and (tmp_path / "run" / "metrics.jsonl").read_text() == kept
    assert run_training(tiny_mixed(tmp_path / "run", f"data.datasets.making.tasks={{{first}: 1}}", *short, "train.steps=4")).finished


# model.start


def without(name: str) -> dict[str, Any]:
    return {"model": {"modalities": {name: None}}}


def started(start: Path, run_dir: Path, *layers: dict[str, Any], **overrides: str) -> Spec:
    pairs = [("model.start", str(start)), ("train.run_dir", str(run_dir)), ("train.steps", "1"), *overrides.items()]
    return load_spec_with_start([small_rest(), *layers], pairs)


def small_rest() -> dict[str, Any]:
    """The sections data and train of the small spec, as plain data."""
    tree = spec_to_dict(tiny_mixed(Path("unused")))
    return {section: tree[section] for section in ("data", "train")}


TASKS = {"data": {"datasets": {"making": {"tasks": {"generate": 1.0}}}}, "train": {"loss_weights": {"ce": 1.0}}}
NEW = {
    "codec": {**SMALL["model"]["modalities"]["codes"]["codec"]},
    "connector": "codes",
    "objective": "masked",
    "sampler": {"class_path": "maskgit", "init_args": {"iterations": [3, 1]}},
}


@pytest.fixture(scope="module")
def latents_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of text, latents and features, trained for a step."""
    base = tmp_path_factory.mktemp("latents")
    options = ("model.modalities.codes=null", "data.datasets.making.tasks={generate: 1}", "train.steps=1", "train.loss_weights={ce: 1}")
    run_training(tiny_mixed(base / "run", *options))
    return load_run(base / "run")[0].save_pretrained(base / "model")


def test_a_modality_that_the_starting_model_does_not_have_is_new_by_itself(
    latents_only: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "modalities" not in (latents_only / "spec.yaml").read_text(), "it is written in short keys"
    start = Path(shutil.copytree(latents_only, tmp_path / "start"))
    added = {"model": {"modalities": {"codes": NEW}}}
    spec = started(start, tmp_path / "run", added, **{"train.optimizer.lr": "1e-30", "train.schedule.warmup_steps": "0"})
    assert run_training(spec).finished
    assert f"starting from the weights of '{start}'; new: codes\n" in capsys.readouterr().err
    found, given = checkpoint(tmp_path / "run", 1), load_file(start / "model.safetensors")
    assert all(torch.allclose(found[f"model/{name}"], tensor, rtol=0, atol=1e-25) for name, tensor in given.items())
    new = {name.removeprefix("model/") for name in found if name.startswith("model/")} - set(given)
    assert new and all(name.startswith("modalities.codes.") for name in new)
    assert found["model/modalities.codes.codec.quantizer.fitted"], "its codebooks are measured on the data"
    assert all(bool(found[f"model/{name}"].isfinite().all()) for name in new), "nothing is left uninitialized"
    shutil.rmtree(start)
    assert (
        run_training(
            started(
                start, tmp_path / "run", added, **{"train.optimizer.lr": "1e-30", "train.schedule.warmup_steps": "0", "train.steps": "2"}
            )
        ).step
        == 2
    )


def told(start: Path, run_dir: Path, *layers: dict[str, Any], **overrides: str) -> str:
    opened = open_start(resolve(started(start, run_dir, *layers, **overrides)))
    assert opened is not None
    return opened.describe().removeprefix(f"starting from the weights of '{start}'")


def test_what_is_new_and_what_is_left_out_is_said(latents_only: Path, saved: Path, tmp_path: Path) -> None:
    ears = {"encoder": {"class_path": "log-mel", "init_args": {"sample_rate": 8000}}, "connector": "mlp"}
    assert told(saved, tmp_path) == ""
    assert told(latents_only, tmp_path, {"model": {"modalities": {"codes": NEW, "ears": ears}}}) == "; new: codes, ears"
    deaf = {"data": {"datasets": {"hearing": {"tasks": {"generate": 1.0}}}}}
    assert told(latents_only, tmp_path, TASKS, deaf, without("features")) == "; left out: features"
    short = {"model": {"encoder": None, "connectors": {"features": None}, "normalize": "channel"}}
    expected = "; new: normalizer; left out: features; the spec changes model.normalize: 'half' -> 'channel'"
    assert told(latents_only, tmp_path, TASKS, deaf, short) == expected
    assert told(saved, tmp_path, TASKS, without("codes")) == "; left out: codes"
    assert told(saved, tmp_path, TASKS, {"model": {"modalities": {"codes": None, "more": NEW}}}) == "; new: more; left out: codes"
    fresh = {"model": {"modalities": {"codes": {"connector": {"init_args": {"std": 0.1}}}}, "start_fresh": ["codes.connector"]}}
    expected = "; new: codes.connector; the spec changes model.modalities.codes.connector.init_args.std: 0.5 -> 0.1"
    assert told(saved, tmp_path, fresh) == expected
    again = {"model": {"modalities": {"latent": {"normalize": "channel"}}}}
    assert (
        told(saved, tmp_path, again) == "; new: latent.normalizer; the spec changes model.modalities.latent.normalize: 'half' -> 'channel'"
    )
    other = {"model": {"modalities": {"codes": {"codec": {"init_args": {"companding": 1.0}}}}}}
    expected = "; new: codes.codec, codes.normalizer; the spec changes model.modalities.codes.codec.init_args.companding: 0.5 -> 1.0"
    assert told(saved, tmp_path, other) == expected, "codebooks that were measured with another companding mean something else"
