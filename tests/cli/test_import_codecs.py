"""`soundomni import dac`, `encodec` and `mimi`: directories of transformers become codecs that models hold, or one line says why not."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from codec_files import RATE, dac_model, encodec_model, mimi_model, save
from safetensors.torch import load_file, save_file

from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.spec import registry
from soundomni.core.spec.schema import Slot
from soundomni.vae.checkpoints.codec_weights import known_name
from soundomni.vae.checkpoints.mimi_config import OTHER_NAMES

MODELS: dict[str, Callable[..., Any]] = {"dac": dac_model, "encodec": encodec_model, "mimi": mimi_model}
KINDS = list(MODELS)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {kind: save(make(), folder / kind) for kind, make in MODELS.items()}


def copied(source: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a directory with other values in its config."""
    folder.mkdir()
    config = json.loads((source / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    return folder


def codec_of(layer: Path) -> Any:
    slot = yaml.safe_load(layer.read_text())["model"]["codec"]
    return registry.build("codec", Slot(slot["class_path"], slot["init_args"]))


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_arrives_and_is_reported(kind: str, sources: dict[str, Path], wav: Path, tmp_path: Path, result: Any) -> None:
    out = tmp_path / "out"
    made = result("import", kind, sources[kind], "--out", out, "--check", wav, "--license", "MIT")
    assert {entry.name for entry in out.iterdir()} == {"model.safetensors", "codec.yaml", "import-report.json", "README.md"}
    state, codec = MODELS[kind]().state_dict(), codec_of(out / "codec.yaml")
    assert state.keys() == load_file(out / "model.safetensors").keys()
    assert all(torch.equal(tensor, codec.network.state_dict()[name]) for name, tensor in state.items())
    report = json.loads((out / "import-report.json").read_text())
    used, given = report["keys"]["used"], load_file(sources[kind] / "model.safetensors")
    assert used.keys() == given.keys() and {name for (name,) in used.values()} == state.keys()
    assert all(torch.equal(state[name], given[theirs]) for theirs, (name,) in used.items())
    assert kind == "mimi" or all([name] == names for name, names in used.items())
    assert report["kind"] == kind and report["license"] == "MIT" and made["keys"] == {"used": len(state), "unused": 0}
    assert report["source"]["files"].keys() == {"model.safetensors"} and np.isfinite(made["check"]["si_sdr"])
    assert "total_codebooks: 4" in (out / "README.md").read_text()


def test_files_of_mimi_have_the_names_of_the_published_one(sources: dict[str, Path]) -> None:
    """transformers writes these, whatever it calls the parts of the network."""
    starts = {name.split(".")[0] for name in load_file(sources["mimi"] / "model.safetensors")}
    assert starts == {"encoder", "encoder_transformer", "downsample", "quantizer", "upsample", "decoder_transformer", "decoder"}


def test_mimi_is_read_with_the_names_of_every_version(sources: dict[str, Path], tmp_path: Path, result: Any, fails: Any) -> None:
    """A network of transformers 5.0 has the names of the files; newer ones have an object for each half of it."""
    flat, network = load_file(sources["mimi"] / "model.safetensors"), mimi_model()
    nested = network.state_dict().keys()
    assert nested != flat.keys() and {known_name(name, nested, OTHER_NAMES) for name in flat} == nested
    assert {known_name(name, flat, OTHER_NAMES) for name in nested} == flat.keys()
    source = copied(sources["mimi"], tmp_path / "nested")
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, source / "model.safetensors")
    result("import", "mimi", source, "--out", tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(tensor, written[name]) for name, tensor in network.state_dict().items())
    save_file({name: flat[known_name(name, flat, OTHER_NAMES)] for name in nested}, source / "model.safetensors")
    layer = yaml.safe_load((tmp_path / "out" / "codec.yaml").read_text())["model"]["codec"]["init_args"]
    for file in (sources["mimi"] / "model.safetensors", source / "model.safetensors"):
        codec = registry.build("codec", Slot("mimi", layer | {"weights": str(file)}))
        assert all(torch.equal(tensor, written[name]) for name, tensor in codec.network.state_dict().items())
    first = next(name for name in flat if name not in nested)
    twice = flat | {known_name(first, nested, OTHER_NAMES): flat[first].clone()}
    save_file(twice, source / "model.safetensors")
    assert "twice" in fails("import", "mimi", source, "--out", tmp_path / "twice")


def test_older_files_of_encodec_spell_weight_norm_differently(sources: dict[str, Path], tmp_path: Path, result: Any, fails: Any) -> None:
    source = copied(sources["encodec"], tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    spelled = {
        name.replace("parametrizations.weight.original0", "weight_g").replace("parametrizations.weight.original1", "weight_v"): tensor
        for name, tensor in tensors.items()
    }
    assert spelled.keys() != tensors.keys()
    save_file(spelled, source / "model.safetensors")
    result("import", "encodec", source, "--out", tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(tensor, written[name]) for name, tensor in tensors.items())
    save_file(
        spelled | {name: tensor.clone() for name, tensor in tensors.items() if name.endswith("original0")}, source / "model.safetensors"
    )
    assert "twice" in fails("import", "encodec", source, "--out", tmp_path / "twice")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(dtype: torch.dtype, sources: dict[str, Path], tmp_path: Path, result: Any) -> None:
    source = copied(sources["dac"], tmp_path / "source")
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(tensors, source / "model.safetensors")
    result("import", "dac", source, "--out", tmp_path / "out")
    assert all(tensor.dtype == torch.float32 for tensor in load_file(tmp_path / "out" / "model.safetensors").values())


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("dac", {"model_type": "encodec"}, "model_type is 'encodec'; expected 'dac'"),
    ("encodec", {"model_type": "dac"}, "model_type is 'dac'; expected 'encodec'"),
    ("encodec", {"normalize": True}, "normalize is True: such a model divides overlapping chunks by their loudness"),
    ("encodec", {"chunk_length_s": 1.0}, "chunk_length_s is 1.0: such a model divides overlapping chunks"),
    ("encodec", {"norm_type": "time_group_norm"}, "norm_type is 'time_group_norm'; expected 'weight_norm'"),
    ("encodec", {"num_lstm_layers": 1}, "num_lstm_layers is 1; expected 2"),
    ("encodec", {"codebook_dim": 3}, "codebook_dim is 3; expected 4"),
    ("encodec", {"target_bandwidths": []}, "target_bandwidths is []; expected its last entry"),
    ("encodec", {"target_bandwidths": [1e308]}, "target_bandwidths is [1e+308]; expected its last entry"),
    ("encodec", {"target_bandwidths": [9.6]}, "does not fit this EncodecModel"),
    ("encodec", {"target_bandwidths": [1e6]}, "total_codebooks is 312500; expected at most 256"),
    ("encodec", {"sampling_rate": 10**4000}, "expected a whole number of at most 9,223,372,036,854,775,807"),
    ("encodec", {"num_filters": 2**40}, "its sizes ask for tensors that are too large"),
    ("encodec", {"num_filters": "many"}, "num_filters is 'many'; expected"),
    ("dac", {"hidden_size": 9}, "hidden_size is 9; expected 8, to agree with"),
    ("dac", {"upsampling_ratios": [2, 5]}, "upsampling_ratios is (2, 5); expected (5, 2)"),
    ("dac", {"hop_length": 7}, "hop_length is 7; expected 10"),
    ("dac", {"n_codebooks": 3}, "does not fit this DacModel: of its tensors"),
    ("dac", {"n_codebooks": 10**9}, "total_codebooks is 1000000000; expected at most 256"),
    ("dac", {"codebook_size": 32}, "of another shape"),
    ("dac", {"codebook_size": 2**62}, "its sizes ask for tensors that are too large. Use smaller sizes"),
    ("dac", {"codebook_size": 15}, "codebook_size is 15; expected a power of 2"),
    ("dac", {"encoder_hidden_size": 10**4000}, "expected a whole number of at most 9,223,372,036,854,775,807"),
    ("dac", {"downsampling_ratios": [2] * 10**5}, "strides has 100,000 entries; expected 1 to 16"),
    ("dac", {"downsampling_ratios": [10**4000, 2]}, "expected a whole number of at most 9,223,372,036,854,775,807"),
    ("dac", {"decoder_hidden_size": None}, "decoder_hidden_size"),
    ("mimi", {"model_type": "encodec"}, "model_type is 'encodec'; expected 'mimi'"),
    ("mimi", {"use_causal_conv": False}, "use_causal_conv is False; expected True, the only value that the codec mimi has"),
    ("mimi", {"use_streaming": True}, "use_streaming is True; expected False"),
    ("mimi", {"rope_theta": 500.0}, "rope_theta is 500.0; expected 10000.0"),
    ("mimi", {"rope_parameters": {"rope_type": "yarn"}}, "expected {'rope_theta': 10000.0, 'rope_type': 'default'}"),
    ("mimi", {"head_dim": 8}, "head_dim is 8; expected 4, to agree with num_attention_heads, hidden_size and codebook_dim"),
    ("mimi", {"num_key_value_heads": 1}, "num_key_value_heads is 1; expected 2"),
    ("mimi", {"num_attention_heads": 0}, "num_attention_heads is 0; expected at least 1"),
    ("mimi", {"upsample_groups": 1}, "upsample_groups is 1; expected 8"),
    ("mimi", {"vector_quantization_hidden_dimension": 4}, "vector_quantization_hidden_dimension is 4; expected 3"),
    ("mimi", {"num_semantic_quantizers": 4}, "semantic_codebooks is 4; expected at least 1, and fewer than the 4"),
    ("mimi", {"num_semantic_quantizers": 2}, "does not fit this MimiModel: of its tensors"),
    ("mimi", {"num_quantizers": 10**9}, "total_codebooks is 1000000000; expected at most 256"),
    ("mimi", {"num_hidden_layers": 10**9}, "num_layers is 1000000000; expected at most 256"),
    ("mimi", {"hidden_size": 10**4000}, "expected a whole number of at most 9,223,372,036,854,775,807"),
    ("mimi", {"codebook_size": 2**62}, "its sizes ask for tensors that are too large. Use smaller sizes"),
    ("mimi", {"upsampling_ratios": [10**4000, 2]}, "expected a whole number of at most 9,223,372,036,854,775,807"),
    ("mimi", {"sliding_window": None}, "sliding_window"),
]


@pytest.mark.parametrize(("kind", "changes", "message"), REFUSED)
def test_configs_that_do_not_fit_end_in_one_line(
    kind: str, changes: dict[str, Any], message: str, sources: dict[str, Path], tmp_path: Path, fails: Any
) -> None:
    told = fails("import", kind, copied(sources[kind], tmp_path / "source", **changes), "--out", tmp_path / "out")
    assert message in told and not (tmp_path / "out").exists()


class Runs:
    """Unpickling this makes a directory."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pth", "encodec_24khz.th"])
@pytest.mark.parametrize("kind", KINDS)
def test_pickles_are_never_opened(kind: str, name: str, sources: dict[str, Path], tmp_path: Path, fails: Any) -> None:
    source = copied(sources[kind], tmp_path / "source")
    (source / "model.safetensors").unlink()
    (source / name).write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
    told = fails("import", kind, source, "--out", tmp_path / "out")
    assert "is a pickle, and pickles can run code" in told and ".from_pretrained and write it with save_pretrained" in told
    told = fails("import", kind, source / name, "--out", tmp_path / "out")
    assert "is a pickle, and pickles can run code; expected a directory with config.json and model.safetensors" in told
    (source / "model.safetensors").write_bytes((source / name).read_bytes())  # under a name that is read
    assert "cannot be read as safetensors" in fails("import", kind, source, "--out", tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_other_sources_end_in_one_line(sources: dict[str, Path], tmp_path: Path, fails: Any) -> None:
    out = ("--out", tmp_path / "out")
    assert "'absent' is not a directory; expected a directory with config.json" in fails("import", "dac", "absent", *out)
    (tmp_path / "empty").mkdir()
    assert "it holds no file" in fails("import", "encodec", tmp_path / "empty", *out)
    source = copied(sources["dac"], tmp_path / "source")
    content = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert "cannot be read as safetensors" in fails("import", "dac", source, *out)
    tensors = load_file(sources["dac"] / "model.safetensors")
    first = next(iter(tensors))
    for changed, message in (
        (tensors | {first: torch.full_like(tensors[first], torch.nan)}, "has numbers that are not finite"),
        (tensors | {first: tensors[first].double()}, "is torch.float64; expected one of"),
        (tensors | {"more": torch.zeros(1)}, "1 unexpected (more)"),
    ):
        save_file(changed, source / "model.safetensors")
        assert message in fails("import", "dac", source, *out)
    (source / "config.json").write_text("[" * 100_000)
    assert "cannot be read as JSON" in fails("import", "dac", source, *out)
    (source / "config.json").unlink()
    assert "config.json" in fails("import", "dac", source, *out)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_holds_the_codec(
    kind: str, sources: dict[str, Path], tiny_spec: Path, tmp_path: Path, result: Any, fails: Any
) -> None:
    from soundomni.core.assembly.build import build_model
    from soundomni.core.spec.load import load_spec
    from soundomni.core.tokenizer import TextTokenizer

    layer = tmp_path / "vae" / "codec.yaml"
    result("import", kind, sources[kind], "--out", layer.parent)
    spec = load_spec([tiny_spec, layer], [("model.objective", "masked"), ("model.connectors.latent", "codes"), ("sampler", "maskgit")])
    tokenizer = TextTokenizer.train(["a"], vocab_size=300)
    model = SoundOmni(build_model(spec.model, vocab_size=tokenizer.vocab_size), spec, tokenizer)
    model.save_pretrained(tmp_path / "model")
    (layer.parent / "model.safetensors").unlink()  # the model holds the weights itself
    again = SoundOmni.from_pretrained(tmp_path / "model")
    state = MODELS[kind]().state_dict()
    assert all(torch.equal(tensor, again.model.made().codec.network.state_dict()[name]) for name, tensor in state.items())
    clip = 0.3 * np.random.default_rng(0).standard_normal((1, 2003)).astype(np.float32)
    soundfile.write(tmp_path / "clip.wav", clip.T, RATE, subtype="FLOAT")
    arguments = ("reconstruct", tmp_path / "clip.wav", "--model", tmp_path / "model", "--out", tmp_path / "out")
    waveform, lengths = torch.from_numpy(clip)[None], torch.tensor([2003])
    expected = again.model.made().codec.decode(again.model.made().codec.encode(waveform, lengths))[0, :, :2003].numpy()
    (row,) = result(*arguments)["files"]
    np.testing.assert_allclose(soundfile.read(row["out"], always_2d=True)[0].T, expected, atol=1e-4)
    if kind == "dac":
        (row,) = result(*arguments, "--chunk", "0.05")["files"]
        np.testing.assert_allclose(soundfile.read(row["out"], always_2d=True)[0].T, expected, atol=1e-4)
    else:
        assert "declares no receptive_field, so clips cannot be cut" in fails(*arguments, "--chunk", "0.05")
