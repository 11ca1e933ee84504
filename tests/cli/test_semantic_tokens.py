"""`soundomni fit-kmeans` and `soundomni import hubert-kmeans`: centroids, and the codec that they make with a network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file, save_file
from speech_files import HOP, LAYERS, RATE, VARIANTS, WINDOW, save_speech, speech_model

from soundomni.cli.main import main
from soundomni.core.errors import SpecError
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.spec import registry
from soundomni.core.spec.schema import Slot
from soundomni.core.waveform import Audio
from soundomni.vae.checkpoints.hubert_import import write_centroids

TOYS = "{class_path: toy-sounds, init_args: {size: 20, sample_rate: 8000, seconds: 0.5, events: [1, 1]}}"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("speech")
    return {name: save_speech(speech_model(name), folder / name, normalize="large" in name) for name in VARIANTS}


@pytest.fixture(scope="module")
def centroids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six random centroids of layer 2."""
    path = tmp_path_factory.mktemp("centroids") / "six.safetensors"
    write_centroids(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), 2, path)
    return path


def codec_of(folder: Path) -> Any:
    slot = yaml.safe_load((folder / "codec.yaml").read_text())["model"]["codec"]
    return registry.build("codec", Slot(slot["class_path"], slot["init_args"]))


def changed(source: Path, folder: Path, file: str = "config.json", **changes: Any) -> Path:
    """A copy of a directory with other values in one of its files."""
    shutil.copytree(source, folder)
    tree = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps(tree))
    return folder


# Importing


@pytest.mark.parametrize("layer", [2, LAYERS])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_arrives_or_is_unused_for_a_reason(
    variant: str, layer: int, sources: dict[str, Path], wav: Path, tmp_path: Path, result: Any
) -> None:
    file, out = tmp_path / "centroids.safetensors", tmp_path / "out"
    write_centroids(torch.randn(5, 8, generator=torch.Generator().manual_seed(1)), layer, file)
    made = result("import", "hubert-kmeans", sources[variant], "--centroids", file, "--out", out, "--check", wav, "--license", "MIT")
    codec, model = codec_of(out), speech_model(variant).state_dict()
    assert torch.equal(codec.centroids, load_file(file)["centroids"])
    report = json.loads((out / "import-report.json").read_text())
    used, unused = report["keys"]["used"], report["keys"]["unused"]
    given = load_file(sources[variant] / "model.safetensors")
    assert used.keys() | unused.keys() == given.keys() and not used.keys() & unused.keys()
    assert {name for (name,) in used.values()} | {"centroids"} == codec.state_dict().keys()
    assert all(torch.equal(codec.state_dict()[name], given[theirs]) for theirs, (name,) in used.items())
    assert all(torch.equal(tensor, model[name]) for name, tensor in codec.network.state_dict().items())
    is_last = layer == LAYERS
    assert ("encoder.layer_norm.weight" in unused) == ("large" in variant)
    assert any(reason == "comes after layer 2" for reason in unused.values()) == (not is_last)
    arguments = report["codec"]["init_args"]
    assert arguments["normalize"] == ("large" in variant) and arguments["num_clusters"] == 5 and arguments["sample_rate"] == RATE
    samples = -(-3000 * RATE // 6000)
    assert made["check"]["frames"] == -(-samples // HOP) and 1 <= made["check"]["different_codes"] <= 5
    assert report["license"] == "MIT" and "# Semantic tokens of audio" in (out / "README.md").read_text()


def test_the_network_of_a_model_with_a_head_is_found(sources: dict[str, Path], centroids: Path, tmp_path: Path, result: Any) -> None:
    model = speech_model("hubert", head="ForCTC")
    source = save_speech(model, tmp_path / "source")
    result("import", "hubert-kmeans", source, "--centroids", centroids, "--out", tmp_path / "out")
    unused = json.loads((tmp_path / "out" / "import-report.json").read_text())["keys"]["unused"]
    assert {name for name, reason in unused.items() if reason.startswith("part of a head")} == {"lm_head.weight", "lm_head.bias"}
    codec, expected = codec_of(tmp_path / "out"), model.hubert.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in codec.network.state_dict().items())


def test_older_files_spell_weight_norm_differently(sources: dict[str, Path], centroids: Path, tmp_path: Path, result: Any) -> None:
    source = changed(sources["hubert"], tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    spelled = {
        name.replace("parametrizations.weight.original0", "weight_g").replace("parametrizations.weight.original1", "weight_v"): tensor
        for name, tensor in tensors.items()
    }
    assert sum(name not in tensors for name in spelled) == 2
    save_file(spelled, source / "model.safetensors")
    result("import", "hubert-kmeans", source, "--centroids", centroids, "--out", tmp_path / "out")
    state = codec_of(tmp_path / "out").network.state_dict()
    assert all(torch.equal(state[name], tensors[name]) for name in state)


def test_centroids_without_a_layer_need_the_option(sources: dict[str, Path], tmp_path: Path, result: Any, fails: Any) -> None:
    save_file({"centroids": torch.randn(4, 8)}, tmp_path / "other.safetensors")
    arguments = ("import", "hubert-kmeans", sources["wavlm"], "--centroids", tmp_path / "other.safetensors", "--out", tmp_path / "out")
    assert "does not say which layer its centroids belong to. Set --layer" in fails(*arguments)
    assert result(*arguments, "--layer", "3")["codec"]["init_args"]["layer"] == 3


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("config.json", {"model_type": "bert"}, "model_type is 'bert'; expected one of hubert, wavlm, wav2vec2"),
    ("config.json", {"model_type": ["hubert"]}, "model_type is ['hubert']; expected one of"),
    ("config.json", {"hidden_act": "relu"}, "hidden_act is 'relu'; expected 'gelu', the only value that the codec hubert-kmeans has"),
    ("config.json", {"conv_pos_batch_norm": True}, "conv_pos_batch_norm is True; expected False"),
    ("config.json", {"feat_extract_norm": "batch"}, "feat_extract_norm is 'batch'; expected one of group, layer"),
    ("config.json", {"num_hidden_layers": 1}, "the layer is 2; expected 1 to 1, the layers of this network"),
    ("config.json", {"hidden_size": "wide"}, "hidden_size is 'wide'; expected"),
    ("config.json", {"hidden_size": 10**4000}, "expected a whole number of at most 9,223,372,036,854,775,807"),
    ("config.json", {"intermediate_size": 2**62}, "its sizes ask for tensors that are too large"),
    ("config.json", {"conv_dim": [6]}, "the network has 1 conv_dims, 2 conv_kernels and 2 conv_strides"),
    ("config.json", {"intermediate_size": 16}, "does not fit this HubertModel: of its tensors"),
    ("preprocessor_config.json", {"feature_size": 80}, "feature_size is 80; expected 1"),
    ("preprocessor_config.json", {"feature_extractor_type": "WhisperFeatureExtractor"}, "expected 'Wav2Vec2FeatureExtractor'"),
    ("preprocessor_config.json", {"do_normalize": "maybe"}, "do_normalize is 'maybe'; expected true or false"),
    ("preprocessor_config.json", {"sampling_rate": 0}, "sample_rate is 0"),
]


@pytest.mark.parametrize(("file", "changes", "message"), REFUSED)
def test_files_that_do_not_fit_end_in_one_line(
    file: str, changes: dict[str, Any], message: str, sources: dict[str, Path], centroids: Path, tmp_path: Path, fails: Any
) -> None:
    source = changed(sources["hubert"], tmp_path / "source", file, **changes)
    assert message in fails("import", "hubert-kmeans", source, "--centroids", centroids, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_sources_and_centroids_end_in_one_line(sources: dict[str, Path], centroids: Path, tmp_path: Path, fails: Any) -> None:
    out = ("--out", tmp_path / "out")
    arguments = ("import", "hubert-kmeans", sources["hubert"], *out, "--centroids")
    assert "'absent.safetensors' (" in (told := fails(*arguments, "absent.safetensors")) and "does not exist; expected" in told
    (tmp_path / "km.bin").write_bytes(b"pickle")
    assert "is not a safetensors file; expected a .safetensors file with the tensor 'centroids'" in fails(*arguments, tmp_path / "km.bin")
    for name, tensors, message in (
        ("none", {"other": torch.zeros(1)}, "does not hold centroids; expected"),
        ("narrow", {"centroids": torch.zeros(4, 7)}, "'centroids' is [4, 7]; expected [clusters, 8], as wide as the network"),
        ("empty", {"centroids": torch.zeros(0, 8)}, "'centroids' is [0, 8]; expected [clusters, 8]"),
        ("broken", {"centroids": torch.full((4, 8), torch.nan)}, "'centroids' has numbers that are not finite"),
    ):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        assert message in fails(*arguments, tmp_path / f"{name}.safetensors", "--layer", "1")
    assert "--layer is 1, but" in (told := fails(*arguments, centroids, "--layer", "1")) and "has centroids of layer 2" in told
    source = changed(sources["hubert"], tmp_path / "source")
    (source / "preprocessor_config.json").unlink()
    told = fails("import", "hubert-kmeans", source, "--centroids", centroids, *out)
    assert "no preprocessor_config.json in" in told and "Copy it from the repository of the model" in told
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    assert "is a pickle, and pickles can run code" in fails("import", "hubert-kmeans", source, "--centroids", centroids, *out)
    assert not (tmp_path / "out").exists()


# Fitting


def fit(source: Path, out: Path, *more: object, layer: int = 2, clusters: int = 6) -> tuple[object, ...]:
    return ("fit-kmeans", source, "--layer", layer, "--clusters", clusters, "--out", out, *more)


def test_centroids_of_a_dataset_become_a_codec(sources: dict[str, Path], tmp_path: Path, result: Any) -> None:
    out = tmp_path / "km.safetensors"
    made = result(*fit(sources["hubert-large"], out, "--dataset", TOYS))
    assert made["layer"] == 2 and made["clusters"] == 6 and made["failures"] == []
    assert made["clips"] == 20 and made["frames"] == 20 * ((RATE // 2 - WINDOW) // HOP + 1)
    assert len(made["inertia"]) > 1 and made["inertia"][-1] < made["inertia"][0]
    written = load_file(out)
    assert written.keys() == {"centroids", "layer"} and int(written["layer"]) == 2
    assert written["centroids"].shape == (6, 8) and written["centroids"].dtype == torch.float32
    imported = tmp_path / "codec"
    result("import", "hubert-kmeans", sources["hubert-large"], "--centroids", out, "--out", imported)
    codec = codec_of(imported)
    toys = registry.build("dataset", Slot("toy-sounds", yaml.safe_load(TOYS)["init_args"]))
    distances = []
    for index in range(len(toys)):
        clip = torch.from_numpy(toys.load(index)[0])[None]
        with torch.no_grad():
            distances.append(torch.cdist(codec.features(clip), codec.centroids).square().min(1).values)
    assert float(torch.cat(distances).double().mean()) == pytest.approx(made["inertia"][-1], rel=1e-5)


def test_clips_are_taken_until_they_have_about_as_many_frames(sources: dict[str, Path], tmp_path: Path, result: Any) -> None:
    made = result(*fit(sources["hubert"], tmp_path / "km.safetensors", "--dataset", TOYS, "--frames", 2000))
    assert made["clips"] == 5 and made["frames"] == 5 * ((RATE // 2 - WINDOW) // HOP + 1)


def test_the_same_seed_gives_the_same_centroids(sources: dict[str, Path], tmp_path: Path, result: Any) -> None:
    found = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        result(*fit(sources["wavlm"], tmp_path / f"{name}.safetensors", "--dataset", TOYS, "--frames", 300, "--seed", seed))
        found[name] = load_file(tmp_path / f"{name}.safetensors")["centroids"]
    assert torch.equal(found["a"], found["b"]) and not torch.equal(found["a"], found["c"])


def test_a_folder_is_fitted_on_and_what_cannot_be_read_is_named(
    sources: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sounds"
    folder.mkdir()
    for i in range(3):
        soundfile.write(folder / f"{i}.wav", 0.1 * np.random.default_rng(i).standard_normal((4000, 2)), 6000)
    soundfile.write(folder / "long.flac", 0.1 * np.random.default_rng(9).standard_normal(40_000), RATE)
    content = (folder / "long.flac").read_bytes()
    (folder / "broken.flac").write_bytes(content[:1000] + bytes(len(content) // 2) + content[1000 + len(content) // 2 :])
    (folder / "none.wav").write_bytes(b"no audio")
    arguments = fit(sources["hubert"], tmp_path / "km.safetensors", "--data", folder, "--max-seconds", 0.5, "--iterations", 3)
    assert main(["--json", *map(str, arguments)]) == 1
    captured = capsys.readouterr()
    made = json.loads(captured.out)
    assert made["clips"] == 4 and [failure["clip"] for failure in made["failures"]] == ["none.wav", "broken.flac"]
    assert made["frames"] == 4 * ((RATE // 2 - WINDOW) // HOP + 1) and len(made["inertia"]) <= 4
    told = [line.split(": ")[1] for line in captured.err.splitlines() if line.startswith("left out: ")]
    assert told == ["none.wav", "broken.flac"]


def test_inertia_of_each_iteration_is_printed(sources: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = fit(sources["hubert"], tmp_path / "km.safetensors", "--dataset", TOYS, "--frames", 300, "--iterations", 2)
    assert main([str(one) for one in arguments]) == 0
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("iteration ")]
    assert [line.split(":")[0] for line in lines] == ["iteration 0", "iteration 1", "iteration 2"][: len(lines)] and len(lines) > 1
    assert "6 centroids of layer 2, from " in captured.out and f"inertia {lines[-1].split()[-1]} after" in captured.out


def test_the_data_section_of_a_spec_is_fitted_on_without_what_it_holds_out(
    sources: dict[str, Path], tiny_spec: Path, tmp_path: Path, result: Any
) -> None:
    arguments = ("--config", tiny_spec, "--data.datasets.toys.source.size=10", "--data.datasets.toys.num_used=4")
    made = result(*fit(sources["hubert"], tmp_path / "km.safetensors", *arguments))
    assert made["clips"] == 4
    made = result(*fit(sources["hubert"], tmp_path / "held.safetensors", *arguments[:3], "--data.datasets.toys.held_out=0.4"))
    assert made["clips"] == 6


def test_wrong_input_of_fit_kmeans_ends_in_one_line(sources: dict[str, Path], tiny_spec: Path, tmp_path: Path, fails: Any) -> None:
    source, out = sources["hubert"], tmp_path / "km.safetensors"
    toys = ("--dataset", TOYS)
    for arguments, message in (
        (fit(source, out), "--data"),
        (fit(source, out, *toys, "--data", tmp_path), "--data and --dataset exclude each other"),
        (fit(source, out, *toys, layer=4), "the layer is 4; expected 1 to 3, the layers of this network"),
        (fit(source, out, *toys, layer=0), "--layer is 0; expected at least 1"),
        (fit(source, out, *toys, clusters=0), "--clusters is 0; expected at least 1"),
        (fit(source, out, *toys, "--frames", 5), "--frames is 5; expected at least --clusters, which is 6"),
        (fit(source, out, *toys, "--iterations", 0), "--iterations is 0; expected at least 1"),
        (fit(source, out, *toys, "--max-seconds", 0), "--max-seconds is 0; expected a number above 0"),
        (fit(source, out, *toys, "--seed", -1), "the seed is -1"),
        (fit(source, out, *toys, "--frames", 10**6, clusters=10**5), "expected at least 100,000, one for each cluster"),
        (fit(source, out, "--dataset", "toy-sound"), "Did you mean 'toy-sounds'?"),
        (fit(source, out, "--data", tmp_path / "absent"), "absent"),
        (fit(source, out, "--config", tiny_spec, "--data.datasets.toys=null"), "there is no dataset to draw from"),
        (fit(source, out, *toys, "--train.steps=3"), "--train.steps is a key of a spec, but no spec is given. Add --config"),
        (fit(source, tmp_path / "km.pt", *toys), "expected a file name that ends in .safetensors"),
        (fit(tmp_path / "absent", out, *toys), "is not a directory; expected a directory with config.json"),
    ):
        assert message in fails(*arguments), arguments
        assert not out.exists()
    out.write_bytes(b"kept")
    assert "already exists; give --out a new file" in fails(*fit(source, out, *toys))
    assert out.read_bytes() == b"kept"


# In a model


@pytest.mark.long
def test_a_model_hears_semantic_tokens_and_makes_no_waveform_of_them(
    sources: dict[str, Path], centroids: Path, tmp_path: Path, wav: Path, result: Any, fails: Any
) -> None:
    result("import", "hubert-kmeans", sources["hubert"], "--centroids", centroids, "--out", tmp_path / "codec")
    spec = {
        "model": {
            "backbone": {"class_path": "mot", "init_args": {"hidden_dim": 16, "num_layers": 1, "num_heads": 2}},
            "router": "modality",
            "tokenizer": {"vocab_size": 261},
            "connectors": {"latent": "codes"},
            "objective": "masked",
        },
        "sampler": "maskgit",
        "data": {
            "datasets": {"toys": {"source": yaml.safe_load(TOYS), "tasks": {"generate": 1.0}}},
            "tokens_per_batch": 1024,
        },
        "train": {"run_dir": str(tmp_path / "run"), "steps": 2, "threads": 1},
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    trained = result("train", "--config", tmp_path / "spec.yaml", "--config", tmp_path / "codec" / "codec.yaml")
    assert trained["finished"] and np.isfinite(trained["metrics"]["loss"])
    result("export", tmp_path / "run", "--out", tmp_path / "model")
    model = SoundOmni.from_pretrained(tmp_path / "model")
    state, expected = model.model.made().codec.state_dict(), codec_of(tmp_path / "codec").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    told = "HubertKmeansCodec, only encodes, so its tokens have no waveform. Use a modality whose codec decodes"
    assert told in fails("generate", "--model", tmp_path / "model", "--prompt", "x", "--seconds", "0.2", "--out", tmp_path / "made")
    with pytest.raises(SpecError, match="only encodes"):
        model.reconstruct(Audio(np.zeros((1, 800), np.float32), RATE))
