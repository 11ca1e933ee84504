"""Configs of stable-audio-tools become specs that train: every key is translated, ignored with a note, or refused in one line."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from hostile_numbers import faults
from stable_audio_files import audio_vae, changed, flat, tiny_codec, write_json
from t5_files import tiny_t5

from soundomni.cli.importing.sat_config import _translated
from soundomni.cli.main import main
from soundomni.core.spec.load import load_spec
from soundomni.train.learning_rate import learning_rate
from soundomni.train.preflight import check_settings

RATE, FRAME, DIM = 8000, 8, 8
SIZE = 800
"""Samples of a clip of the tiny models, 100 latents."""
ADAMW = {"type": "AdamW", "config": {"lr": 1e-3, "betas": [0.8, 0.99], "weight_decay": 1e-3}}
INVERSE = {"type": "InverseLR", "config": {"inv_gamma": 2000, "power": 0.5, "warmup": 0.9}}


def autoencoder(**changes: Any) -> dict[str, Any]:
    """A config that trains the codec of `stable_audio_files`, with the sections of the published one for Stable Audio 2.0."""
    sizes = [64, 32]
    windows = {"fft_sizes": sizes, "hop_sizes": [16, 8], "win_lengths": sizes, "perceptual_weighting": True}
    spectra = {"filters": 4, "n_ffts": sizes, "hop_lengths": [16, 8], "win_lengths": sizes}
    losses = {
        "discriminator": {"type": "encodec", "config": spectra, "weights": {"adversarial": 0.1, "feature_matching": 5.0}},
        "spectral": {"type": "mrstft", "config": windows, "weights": {"mrstft": 1.5}},
        "time": {"type": "l1", "weights": {"l1": 0.25}},
        "bottleneck": {"type": "kl", "weights": {"kl": 1e-4}},
    }
    network = {"optimizer": ADAMW, "scheduler": INVERSE}
    training = {
        "learning_rate": 1e-4,
        "warmup_steps": 7,
        "use_ema": True,
        "optimizer_configs": {"autoencoder": network, "discriminator": {**network, "optimizer": changed(ADAMW, {"config__lr": 2e-3})}},
        "loss_configs": losses,
        "demo": {"demo_every": 3},
    }
    return changed({**audio_vae(), "sample_size": SIZE, "training": training}, changes)


def diffusion(**changes: Any) -> dict[str, Any]:
    """A config of a diffusion model over that codec, with the sections of Stable Audio Open's."""
    vae = audio_vae()
    configs = [{"id": "prompt", "type": "t5", "config": {"t5_model_name": "t5-base", "max_length": 6}}]
    configs += [{"id": f"seconds_{name}", "type": "number", "config": {"min_val": 0, "max_val": 512}} for name in ("start", "total")]
    ids = [one["id"] for one in configs]
    transformer = {"io_channels": 2, "embed_dim": 16, "depth": 1, "num_heads": 2, "cond_token_dim": DIM, "global_cond_dim": 2 * DIM}
    tree = {
        "model_type": "diffusion_cond",
        "sample_size": SIZE,
        "sample_rate": RATE,
        "audio_channels": 2,
        "model": {
            "pretransform": {"type": "autoencoder", "iterate_batch": True, "config": vae["model"]},
            "conditioning": {"configs": configs, "cond_dim": DIM},
            "diffusion": {"cross_attention_cond_ids": ids, "global_cond_ids": ids[1:], "type": "dit", "config": transformer},
            "io_channels": 2,
        },
        "training": {
            "use_ema": True,
            "log_loss_info": False,
            "cfg_dropout_prob": 0.2,
            "timestep_sampler": "log_snr",
            "timestep_sampler_options": {"mean_logsnr": -1.0},
            "optimizer_configs": {"diffusion": {"optimizer": ADAMW, "scheduler": INVERSE}},
            "demo": {
                "demo_every": 2,
                "demo_steps": 2,
                "num_demos": 2,
                "demo_cond": [
                    {"prompt": "one two", "seconds_start": 0, "seconds_total": 0.04},
                    {"prompt": "three", "seconds_start": 0, "seconds_total": 0.05},
                ],
                "demo_cfg_scales": [3, 6, 9],
            },
        },
    }
    return changed(tree, changes)


def inpainting(**changes: Any) -> dict[str, Any]:
    """The same for a model that sees known frames."""
    hints = {
        "model__diffusion__input_concat_ids": ["inpaint_mask", "inpaint_masked_input"],
        "model__diffusion__config__input_concat_dim": 3,
    }
    masks = {"mask_kwargs": {"max_mask_segments": 10, "mask_type_probabilities": [0.3, 0.6, 0.1]}}
    return diffusion(model_type="diffusion_cond_inpaint", training__inpainting=masks, **hints, **changes)


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """Stereo noises with prompts, as friendly-stable-audio-tools reads them."""
    folder = tmp_path / "music"
    folder.mkdir()
    for i in range(6):
        soundfile.write(folder / f"{i}.wav", 0.1 * np.random.default_rng(i).standard_normal((SIZE + 200 * i, 2)), RATE)
        (folder / f"{i}.json").write_text(json.dumps({"prompt": "one four"}))
    return folder


def local(folder: Path, **changes: Any) -> dict[str, Any]:
    """A config of a folder of audio files."""
    return changed({"dataset_type": "audio_dir", "datasets": [{"id": "My music", "path": str(folder)}], "random_crop": True}, changes)


@pytest.fixture
def translate(tmp_path: Path, result: Any) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """Translates configs, and returns the spec's file and what the command printed."""

    def run(tree: Any, *options: object, dataset: Any = None) -> tuple[Path, dict[str, Any]]:
        out = tmp_path / "spec.yaml"
        data = [] if dataset is None else ["--dataset", write_json(dataset, tmp_path / "dataset.json")]
        told = result("import", "sat-config", write_json(tree, tmp_path / "model.json"), *data, *options, "--out", out)
        return out, told

    return run


@pytest.fixture
def refuse(tmp_path: Path, fails: Any) -> Callable[..., str]:
    """Translates configs in vain, and returns the one line."""

    def run(tree: Any, *options: object, dataset: Any = None) -> str:
        data = [] if dataset is None else ["--dataset", write_json(dataset, tmp_path / "dataset.json")]
        out = tmp_path / "spec.yaml"
        line: str = fails("import", "sat-config", write_json(tree, tmp_path / "model.json"), *data, *options, "--out", out)
        assert not out.exists()
        return line

    return run


def trains(spec: Path, folder: Path, *overrides: str) -> dict[str, Any]:
    """Validate a spec, and train two steps of it. Return the last line of its metrics."""
    assert main(["spec", "validate", str(spec)]) == 0
    small = [f"--train.run_dir={folder / 'run'}", "--train.steps=2", "--train.log_every=1", "--train.threads=1", "--data.workers=1"]
    assert main(["train", "--config", str(spec), *small, *overrides]) == 0
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    last: dict[str, Any] = [json.loads(line) for line in lines if '"loss"' in line][-1]
    return last


def test_an_autoencoder_trains_by_its_config(tmp_path: Path, music: Path, translate: Any) -> None:
    spec, told = translate(autoencoder(), dataset=local(music))
    loaded = load_spec([spec])
    assert loaded.codec is not None and loaded.data is not None and loaded.train is not None
    assert loaded.codec.codec.init_args["kl_weight"] == 1e-4 and loaded.codec.freeze == []
    assert loaded.codec.critics.keys() == {"stft", "spectrogram", "l1"}
    critic = loaded.codec.critics["spectrogram"].init_args
    assert critic == {"windows": [64, 32], "filters": 4, "dilations": [1, 2, 4], "relative_features": False}
    weights = {"stft": 1.5, "l1": 0.25, "spectrogram.adversarial": 0.1, "spectrogram.features": 5.0, "kl": 1.0}
    assert loaded.train.loss_weights == weights
    assert loaded.train.loss_starts == {"spectrogram.adversarial": 4, "spectrogram.features": 4}  # 7 of theirs, in turn
    assert loaded.train.ema_decay == 0.9999 and loaded.train.validating.every == 2
    critics = loaded.train.phases["critics"]
    assert critics is not None and critics.optimizer is not None
    assert (loaded.train.optimizer.lr, critics.optimizer.lr, critics.optimizer.betas) == (1e-3, 2e-3, (0.8, 0.99))
    assert (loaded.train.optimizer.eps, loaded.train.optimizer.weight_decay, loaded.train.optimizer.clip) == (1e-8, 1e-3, 0.0)
    entry = loaded.data.datasets["my-music"]
    assert entry is not None and entry.max_seconds == 0.1 and entry.source.init_args == {"path": str(music), "captions": False}
    plugins = {**entry.filters, **entry.augmentations}
    assert {name: one and one.class_path for name, one in plugins.items()} == {"silence": "silence", "flip": "phase-flip"}
    assert any("judges the RMS level" in note and "peak is below -60 dB" in note for note in told["notes"])
    assert loaded.data.tokens_per_batch == 4 * (SIZE // FRAME + 2)
    assert "training.learning_rate is ignored: optimizer_configs sets the rates" in told["notes"]
    last = trains(spec, tmp_path)
    assert np.isfinite(last["loss"]) and last["samples"] == 2 * 4  # in each batch as many clips as in theirs
    assert (tmp_path / "run" / "codec.safetensors").is_file()


def test_the_learning_rate_is_that_of_their_scheduler(translate: Any) -> None:
    spec, _ = translate(autoencoder())
    train = load_spec([{"data": {"datasets": {"toys": {"source": "toy-sounds"}}}}, spec]).train
    assert train is not None
    for step in range(50):
        expected = 1e-3 * (1 - 0.9 ** (step + 1)) * (1 + step / 2000) ** -0.5  # of InverseLR
        assert learning_rate(step, schedule=train.schedule, peak=train.optimizer.lr, total_steps=50) == pytest.approx(expected, rel=1e-12)


def test_a_diffusion_model_trains_with_the_codec_of_a_run(tmp_path: Path, music: Path, translate: Any) -> None:
    vae, _ = translate(autoencoder(training__warmup_steps=0), dataset=local(music))
    trains(vae, tmp_path / "vae")
    vae.unlink()
    t5 = tiny_t5(tmp_path / "t5")
    spec, told = translate(diffusion(), "--codec", tmp_path / "vae" / "run", "--text-encoder", t5, dataset=local(music))
    text = spec.read_text()
    assert text.startswith("# Translated by") and "model.json and dataset.json" in text
    assert yaml.safe_load(text) == told["spec"]
    loaded = load_spec([spec])
    assert loaded.data is not None and loaded.train is not None
    made = loaded.of_model.used["latent"]
    assert made.codec is not None and made.objective is not None and made.sampler is not None
    assert made.codec.init_args["weights"] == str(tmp_path / "vae" / "run" / "codec.safetensors") and made.codec.init_args["sample_latents"]
    assert made.objective.class_path == "v-prediction"
    assert made.objective.init_args == {"timesteps": "logit-normal", "mean": 1.0, "std": 2.0, "shows_known": False}
    assert made.sampler.init_args["num_steps"] == 2 and made.guidance.scale == 6.0 and made.window is None
    assert loaded.data.condition_dropout.together == {"prompt+seconds_start+seconds_total": 0.2}
    assert loaded.data.tokens_per_batch == 4 * (SIZE // FRAME + 2 + 6 + 2)
    validating = loaded.train.validating
    assert (validating.every, validating.prompts, validating.seconds) == (2, ["one two", "three"], 0.04)
    assert "demos use one guidance scale, 6, instead of 3" in told["notes"]
    last = trains(spec, tmp_path)
    assert np.isfinite(last["loss"]) and last["samples"] == 2 * 4
    assert len(list((tmp_path / "run" / "samples").rglob("*.wav"))) == 2


def test_a_model_that_inpaints_learns_to_continue_and_fill(tmp_path: Path, music: Path, translate: Any) -> None:
    t5 = tiny_t5(tmp_path / "t5")
    tree = inpainting(
        model__diffusion__diffusion_objective="rectified_flow",
        model__diffusion__distribution_shift_options={"base_shift": 0.25},
        training__timestep_sampler="trunc_logit_normal",
        training__timestep_sampler_options=...,
    )
    spec, told = translate(tree, "--text-encoder", t5, "--batch-size", 2, dataset=local(music))
    loaded = load_spec([spec])
    assert loaded.data is not None
    objective = loaded.of_model.used["latent"].objective
    assert objective is not None and objective.class_path == "flow-matching"
    assert objective.init_args == {"timesteps": "truncated-logit-normal", "length_shift": [0.25, 1.15], "shows_known": True}
    entry = loaded.data.datasets["my-music"]
    assert entry is not None and entry.tasks == {"generate": 0.6, "continue": 0.1, "fill": 0.3}
    assert any(note.startswith("the codec has no weights yet") for note in told["notes"])
    weights = write_weights(tmp_path)
    last = trains(spec, tmp_path, f"--model.modalities.latent.codec.weights={weights}")
    assert np.isfinite(last["loss"]) and last["samples"] == 2 * 2


def write_weights(folder: Path) -> Path:
    """Weights of the tiny codec, under our names."""
    from safetensors.torch import save_file

    save_file(dict(tiny_codec().state_dict()), folder / "codec.safetensors")
    return folder / "codec.safetensors"


def test_the_codec_of_an_import_and_prompts_that_clap_reads(tmp_path: Path, translate: Any, refuse: Any) -> None:
    import torch

    torch.save(flat(tiny_codec()), tmp_path / "vae.pth")
    config = write_json(audio_vae(), tmp_path / "vae.json")
    assert main(["import", "stable-audio-vae", str(tmp_path / "vae.pth"), "--config", str(config), "--out", str(tmp_path / "vae")]) == 0
    clap = {"clap_ckpt_path": "clap.pt", "audio_model_type": "HTSAT-base", "enable_fusion": True, "use_text_features": True}
    tree = diffusion()
    tree["model"]["conditioning"]["configs"][0] = {"id": "prompt", "type": "clap_text", "config": {**clap, "feature_layer_ix": -2}}
    tree["model"]["pretransform"]["config"] = {"what": "describes another codec"}
    assert "Use --text-encoder" in refuse(tree, "--codec", tmp_path / "vae")
    spec, _ = translate(tree, "--codec", tmp_path / "vae", "--text-encoder", "acme/clap")
    model = yaml.safe_load(spec.read_text())["model"]["modalities"]
    arguments = {"name": "acme/clap", "features": "hidden", "layer": -2, "pad_to": 77, "truncate": True}
    assert model["prompt"]["encoder"] == {"class_path": "clap-text", "init_args": arguments}
    assert model["latent"]["codec"]["init_args"]["weights"] == str(tmp_path / "vae" / "model.safetensors")


@pytest.mark.parametrize("family", ["shards", "encoded"])
def test_shards_and_encoded_clips(tmp_path: Path, translate: Any, family: str) -> None:
    t5 = tiny_t5(tmp_path / "t5")
    shards = {"dataset_type": "wds", "datasets": [{"id": "a", "path": "shards"}], "epoch_steps": 5}
    encoded = {"dataset_type": "pre_encoded", "datasets": [{"path": "made/latents", "latent_crop_length": 10}, {"id": "b", "path": "x"}]}
    given = shards if family == "shards" else {**encoded, "random_crop": False, "drop_last": False}
    spec, told = translate(diffusion(training__pre_encoded=family == "encoded"), "--text-encoder", t5, dataset=given)
    tree = yaml.safe_load(spec.read_text())
    assert tree["model"]["modalities"]["latent"]["codec"]["init_args"]["sample_latents"] == (family == "shards")
    datasets = tree["data"]["datasets"]
    if family == "shards":
        source = {"class_path": "webdataset", "init_args": {"path": "shards", "captions": True}}
        kept = {"filters": {"silence": "silence"}, "augmentations": {"flip": "phase-flip"}}
        assert datasets == {"a": {"source": source, "tasks": {"generate": 1.0}, "max_seconds": 0.1, **kept}}
        assert any("judges the RMS level" in note and "peak is below -60 dB" in note for note in told["notes"])
        assert "epoch_steps is ignored: a run counts steps" in told["notes"]
        return
    sizes = {"sample_rate": RATE, "downsampling_ratio": FRAME, "channels": 2}
    assert datasets["latents"]["source"] == {"class_path": "encoded", "init_args": {"path": "made/latents", **sizes}}
    assert not any(plugins in entry for entry in datasets.values() for plugins in ("filters", "augmentations"))
    assert datasets["latents"]["max_seconds"] == 0.01 and "max_seconds" not in datasets["b"]
    assert any("datasets[0]" in note and "random place" in note for note in told["notes"])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "lm"}, "model_type is 'lm' (language models of codes"),
        ({"model_type": "diffusion_uncond"}, "(models without conditions), which is not translated"),
        ({"model_type": "autoencodr"}, "Did you mean 'autoencoder'?"),
        ({"training": ...}, "training: missing"),
        ({"sample_size": 0}, "sample_size is 0; expected at least 1"),
        ({"training__lose_configs": {}}, "unknown key 'training.lose_configs'. Did you mean 'loss_configs'?"),
        ({"training__optimizer_configs__autoencoder__optimizer__type": "Adamw"}, "optimizer.type is 'Adamw'; expected one of AdamW"),
        ({"training__optimizer_configs__autoencoder__optimizer__config__lrr": 1}, "autoencoder.optimizer.config.lrr'. Did you mean 'lr'?"),
        ({"training__optimizer_configs__discriminator__scheduler": ...}, "autoencoder.scheduler is given, but discriminator has none"),
        ({"training__optimizer_configs__autoencoder__scheduler__type": "ExponentialLR"}, "scheduler.type is 'ExponentialLR'; expected"),
        ({"training__loss_configs__discriminator__type": "dac"}, "training.loss_configs.discriminator.type is 'dac'; expected 'encodec'"),
        ({"training__loss_configs__spectral__config__hop_sizes": [8, 8]}, "spectral.config.hop_sizes is [8, 8]; expected [16, 8]"),
        ({"training__loss_configs__spectral__decay": 0.9}, "training.loss_configs.spectral.decay is 0.9; expected 1.0"),
        ({"training__loss_configs__mrmel": {"weights": {"mrmel": 1.0}, "config": {}}}, "mrmel.weights.mrmel is 1.0; expected 0"),
        ({"training__latent_mask_ratio": 0.1}, "training.latent_mask_ratio is 0.1; expected 0.0"),
        ({"training__teacher_model": {"a": 1}}, "training.teacher_model is given"),
        ({"training__encoder_freeze_on_warmup": True}, "training.encoder_freeze_on_warmup is true"),
        ({"model__encoder__type": "dac"}, "model.encoder.type is 'dac'; expected 'oobleck'"),
    ],
)
def test_what_an_autoencoder_asks_in_vain_is_refused(refuse: Any, changes: dict[str, Any], expected: str) -> None:
    line = refuse(autoencoder(**changes))
    assert expected in line and "model.json': " in line


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model__diffusion__type": "adp_cfg_1d"}, "(the U-Net of audio-diffusion-pytorch), which is not translated; expected 'dit'"),
        ({"model__diffusion__type": "dti"}, "model.diffusion.type is 'dti'; expected 'dit'."),
        ({"model__pretransform": ...}, "model.pretransform: missing"),
        ({"model__conditioning__configs": [{"id": "prompt", "type": "phoneme", "config": {}}]}, "expected t5 or clap_text or number"),
        ({"model__diffusion__distribution_shift_options": {"use_sine": True}}, "distribution_shift_options.use_sine is True"),
        ({"training__timestep_sampler": "logit-normal"}, "training.timestep_sampler is 'logit-normal'; expected"),
        ({"training__p_one_shot": 0.5}, "training.p_one_shot is 0.5; expected 0.0"),
        ({"training__arc": {}}, "training.arc is given"),
        ({"training__inpainting": {}}, "expected 'diffusion_cond_inpaint'"),
        ({"training__cfg_drop_prob": 0.1}, "unknown key 'training.cfg_drop_prob'. Did you mean 'cfg_dropout_prob'?"),
        ({"training__demo__demo_evry": 1}, "unknown key 'training.demo.demo_evry'. Did you mean 'demo_every'?"),
        ({"training__demo__demo_cond": [{"promt": "one"}]}, "training.demo.demo_cond[0].promt'. Did you mean 'prompt'?"),
        ({"training__optimizer_configs": {"difusion": {}}}, "training.optimizer_configs.diffusion: missing"),
        ({"training__optimizer_configs": ...}, "training.learning_rate: missing; expected it, or optimizer_configs"),
        ({"audio_channels": 1}, "audio_channels is 1; expected 2, "),
    ],
)
def test_what_a_diffusion_model_asks_in_vain_is_refused(refuse: Any, changes: dict[str, Any], expected: str) -> None:
    line = refuse(diffusion(**changes), "--text-encoder", "acme/t5")
    assert expected in line and "model.json': " in line


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"dataset_type": "audio_dri"},
            "dataset_type is 'audio_dri'; expected one of audio_dir, wds, s3, pre_encoded. Did you mean 'audio_dir'?",
        ),
        ({"custom_metadata_module": "md.py"}, "custom_metadata_module is 'md.py', which is never run here. Write prompts into NAME.json"),
        ({"custom_metadata_module": "md.py"}, "leave out clips, write a filter (`soundomni plugins new filter NAME`)"),
        ({"datasets": [{"id": "a", "path": "x", "custom_metadata_module": "md.py"}]}, "datasets[0].custom_metadata_module is 'md.py'"),
        (
            {"datasets": [{"id": "a", "path": "x"}, {"id": "A", "path": "y"}]},
            "datasets[1].id is 'A', which is already taken; expected a different id",
        ),
        ({"datasets": [{"id": "a", "pth": "x"}]}, "datasets[0].path: missing"),
        ({"datasets": [{"id": "a", "path": "x", "weigth": 1}]}, "unknown key 'datasets[0].weigth'"),
        ({"datasets": []}, "datasets is []"),
        ({"random_crop": False}, "random_crop is false; expected true"),
        ({"force_channels": "mono"}, "force_channels is 'mono'; expected 'stereo'"),
        ({"random_crp": True}, "unknown key 'random_crp'. Did you mean 'random_crop'?"),
        ({"dataset_type": "pre_encoded"}, "dataset_type is 'pre_encoded'; expected audio_dir or wds"),
        ({"dataset_type": "wds", "remove_silence": True}, "remove_silence is True; expected False"),
        ({"dataset_type": "s3", "datasets": [{"id": "a", "s3_path": "s3://bucket/x/"}]}, "`aws s3 sync s3://bucket/x/ FOLDER`"),
    ],
)
def test_what_no_dataset_here_does_is_refused(refuse: Any, changes: dict[str, Any], expected: str) -> None:
    line = refuse(autoencoder(), dataset=local(Path("music"), **changes))
    assert expected in line and "dataset.json': " in line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--codec", "nowhere"], "--codec is given, but model_type is 'autoencoder'"),
        (["--batch-size", "0"], "--batch-size is 0; expected at least 1"),
    ],
)
def test_options_that_do_not_apply_are_refused(refuse: Any, options: list[str], expected: str) -> None:
    assert expected in refuse(autoencoder(), *options)


def test_files_that_cannot_be_read_or_written_are_named(tmp_path: Path, fails: Any, refuse: Any) -> None:
    good, out = write_json(autoencoder(), tmp_path / "model.json"), tmp_path / "spec.yaml"
    assert "there is no file 'gone.json'" in fails("import", "sat-config", "gone.json", "--out", out)
    (tmp_path / "bad.json").write_text("{")
    assert "bad.json' cannot be read as JSON" in fails("import", "sat-config", tmp_path / "bad.json", "--out", out)
    assert "expected a file that ends in .yaml" in fails("import", "sat-config", good, "--out", tmp_path / "spec.json")
    out.write_text("")
    assert "already exists; give --out a new file" in fails("import", "sat-config", good, "--out", out)
    out.unlink()
    assert "expected a directory with codec.yaml" in refuse(diffusion(), "--codec", "nowhere", "--text-encoder", "acme/t5")


@pytest.mark.parametrize("make", [autoencoder, diffusion])
def test_no_number_gives_a_spec_that_training_refuses(make: Callable[..., Any], music: Path, tmp_path: Path) -> None:
    """What is written passes the checks of `soundomni train` and `spec validate`; everything else ends in one line."""
    data = write_json(local(music), tmp_path / "dataset.json")
    out, written = tmp_path / "spec.yaml", 0

    def translated(training: Any) -> None:
        nonlocal written
        source = write_json(make() | {"training": training}, tmp_path / "model.json")
        arguments = argparse.Namespace(source=source, dataset=data, codec=None, text_encoder=None, batch_size=4)
        out.write_text(yaml.safe_dump(_translated(arguments, run_dir="runs/spec").layer))
        check_settings(load_spec([out]))
        written += 1

    translated(make()["training"])
    assert faults(make()["training"], translated, values=(math.nan, -1, 1e300), lists=False) == []
    assert written > 1, "some are harmless"


NETWORK = "training__optimizer_configs__diffusion"
RANGES: dict[str, tuple[Any, str]] = {
    f"{NETWORK}__optimizer__config__lr": (-1e-4, "train.optimizer.lr is -0.0001; expected finite and at least 0"),
    f"{NETWORK}__optimizer__config__eps": (math.nan, "diffusion.optimizer.config.eps is nan; expected a finite number"),
    f"{NETWORK}__optimizer__config__weight_decay": (10**400, "diffusion.optimizer.config.weight_decay is 1000"),
    f"{NETWORK}__optimizer__config__betas": ([0.9, 1.5], "train.optimizer.betas[1] is 1.5; expected at least 0 and"),
    f"{NETWORK}__scheduler__config__warmup": (1.0, "train.schedule.warmup_decay is 1.0; expected at least 0 and"),
    "training__cfg_dropout_prob": (1.5, "seconds_start+seconds_total is 1.5; expected a number from 0 to 1"),
    "training__timestep_sampler_options__mean_logsnr": (-math.inf, "options.mean_logsnr is -inf; expected a finite number"),
    "training__timestep_sampler_options__std_logsnr": (-2.0, "std is -2.0; expected a finite number above 0"),
    "training__demo__demo_steps": (10**9, "num_steps of sampler 'dpmpp-3m-sde' is 1000000000; expected at most 10,000"),
    "training__demo__demo_cfg_scales": ([1e300], "the guidance scale is 1e+300; expected a number from"),
    "training__demo__demo_every": (-5, "train.validation.every is -5; expected at least 0"),
    "sample_rate": (0, "sample_rate is 0; expected at least 1"),
    "model__conditioning__cond_dim": (10**9, "model.conditioning.cond_dim is 1000000000; expected at most 65,536"),
}


@pytest.mark.parametrize("key", list(RANGES))
def test_numbers_out_of_range_are_refused_with_the_file(key: str, refuse: Any, music: Path) -> None:
    value, told = RANGES[key]
    line = refuse(diffusion(**{key: value}), dataset=local(music))
    assert told in line and "model.json': " in line


@pytest.mark.parametrize("out", ["", " ", f"{300 * 'x'}.yaml"])
def test_no_name_and_a_name_that_is_too_long_are_refused(out: str, tmp_path: Path, fails: Any) -> None:
    line = fails("import", "sat-config", write_json(autoencoder(), tmp_path / "model.json"), "--out", out)
    long = "has 305 bytes; expected at most 255. Use a shorter name"
    assert (long if out.strip() else f"--out is {out!r}; expected the name of a file or folder") in line
