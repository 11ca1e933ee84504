"""Models of stable-audio-tools come in and go out again, bit for bit, and nothing in their files goes unexplained.

The checkpoints are made of stable-audio-tools' own modules with random weights, so names and shapes are theirs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from stable_audio_files import audio_vae, flat, tiny_codec
from t5_files import tiny_t5
from torch import Tensor, nn

from soundomni import SoundOmni
from soundomni.cli.main import main
from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.modality import EncoderModality
from soundomni.core.errors import SpecError
from soundomni.core.spec.schema import Slot, Spec
from soundomni.core.tokenizer import TextTokenizer
from soundomni.experts.checkpoints.stable_audio_export import export_stable_audio

COND, FRAME, RATE = 8, 8, 8000
IDS = ("seconds_start", "seconds_total")
FAMILIES: dict[str, dict[str, Any]] = {
    "prepended, projected": {},
    "norms of heads": {"attn_kwargs": {"qk_norm": "ln"}},
    "modulated": {"global_cond_type": "adaLN"},
    "inpainting": {"input_concat_dim": 3},
    "memory, differential": {"num_memory_tokens": 2, "attn_kwargs": {"differential": True}},
}


def config(objective: str = "v", **transformer: Any) -> dict[str, Any]:
    """A config of a tiny model."""
    vae = audio_vae()
    configs = [{"id": "prompt", "type": "t5", "config": {"t5_model_name": "t5-base", "max_length": 6}}]
    configs += [{"id": name, "type": "number", "config": {"min_val": 0, "max_val": 512}} for name in IDS]
    sizes = {"io_channels": vae["model"]["latent_dim"], "embed_dim": 64, "depth": 2, "num_heads": 1, "cond_token_dim": COND}
    diffusion = {
        "cross_attention_cond_ids": ["prompt", *IDS],
        "global_cond_ids": list(IDS),
        "diffusion_objective": objective,
        "type": "dit",
        "config": {**sizes, "global_cond_dim": 2 * COND, **transformer},
    }
    inpaints = "input_concat_dim" in transformer
    diffusion |= {"input_concat_ids": ["inpaint_mask", "inpaint_masked_input"]} if inpaints else {}
    return {
        "model_type": "diffusion_cond_inpaint" if inpaints else "diffusion_cond",
        "sample_size": 4096,
        "sample_rate": vae["sample_rate"],
        "audio_channels": vae["audio_channels"],
        "model": {
            "pretransform": {"type": "autoencoder", "iterate_batch": True, "config": vae["model"]},
            "conditioning": {"configs": configs, "cond_dim": COND},
            "diffusion": diffusion,
            "io_channels": vae["model"]["latent_dim"],
        },
        "training": {"learning_rate": 5e-5},
    }


def random_state(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """The tensors of a module, its parameters random."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def their_tensors(tree: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a model of a config, as stable-audio-tools names them."""
    from stable_audio_tools.models.conditioners import NumberConditioner
    from stable_audio_tools.models.dit import DiffusionTransformer

    diffusion = tree["model"]["diffusion"]
    transformer = DiffusionTransformer(diffusion_objective=diffusion["diffusion_objective"], **diffusion["config"])
    tensors = {f"model.model.{name}": tensor for name, tensor in random_state(transformer, 1).items()}
    for seed, name in enumerate(IDS):
        state = random_state(NumberConditioner(COND, min_val=0, max_val=512), seed)
        tensors |= {f"conditioner.conditioners.{name}.{key}": tensor for key, tensor in state.items()}
    return tensors | flat(tiny_codec(), prefix="pretransform.model.")


def write_checkpoint(folder: Path, tree: dict[str, Any], tensors: dict[str, Tensor], name: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_config.json").write_text(json.dumps(tree))
    if name.endswith(".safetensors"):
        save_file(tensors, folder / name)
    else:
        torch.save({"state_dict": tensors, "epoch": 3, "optimizer_states": [1, 2]}, folder / name)
    return folder


def imported(folder: Path, source: Path) -> int:
    return main(["import", "stable-audio", str(source), "--out", str(folder / "out"), "--text-encoder", str(tiny_t5(folder / "t5"))])


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_model_comes_in_and_goes_out_bit_for_bit(family: str, tmp_path: Path) -> None:
    tree = config(**FAMILIES[family])
    tensors = their_tensors(tree)
    assert imported(tmp_path, write_checkpoint(tmp_path / "in", tree, tensors)) == 0
    assert main(["export", str(tmp_path / "out"), "--format", "stable-audio-tools", "--out", str(tmp_path / "again")]) == 0
    written = json.loads((tmp_path / "again" / "model_config.json").read_text())
    assert all(written[key] == tree[key] for key in ("model_type", "sample_size", "sample_rate", "audio_channels"))
    back = load_file(tmp_path / "again" / "model.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in tensors.items())
    report = json.loads((tmp_path / "out" / "import-report.json").read_text())
    assert sum(map(len, report["keys"].values())) == len(tensors) and not report["keys"]["missing"]
    other = tmp_path / "other"
    assert main(["import", "stable-audio", str(tmp_path / "again"), "--out", str(other), "--text-encoder", str(tmp_path / "t5")]) == 0
    first, second = (load_file(path / "model.safetensors") for path in (tmp_path / "out", other))
    assert all(torch.equal(first[name], second[name]) for name in first) and first.keys() == second.keys()


def test_a_checkpoint_of_a_training_gives_its_average(tmp_path: Path) -> None:
    tree = config()
    tensors = their_tensors(tree)
    last = {name: tensor + 1.0 for name, tensor in tensors.items() if name.startswith("model.")}
    wrapped = {f"diffusion.{name}": tensor for name, tensor in (tensors | last).items()}
    average = {f"diffusion_ema.ema_model.{name.removeprefix('model.')}": one for name, one in tensors.items() if name.startswith("model.")}
    counters = {"diffusion_ema.step": torch.tensor(5), "diffusion_ema.initted": torch.tensor(True)}
    assert imported(tmp_path, write_checkpoint(tmp_path / "in", tree, wrapped | average | counters, "last.ckpt")) == 0
    plain = tmp_path / "plain"
    assert imported(plain, write_checkpoint(tmp_path / "flat", tree, tensors)) == 0
    first, second = (load_file(path / "out" / "model.safetensors") for path in (tmp_path, plain))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_tensor_that_the_average_lacks_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last weights of the transformer, which the file has too, do not take its place."""
    tree = config()
    tensors = their_tensors(tree)
    wrapped = {f"diffusion.{name}": tensor for name, tensor in tensors.items()}
    average = {f"diffusion_ema.ema_model.{name.removeprefix('model.')}": one for name, one in tensors.items() if name.startswith("model.")}
    del average["diffusion_ema.ema_model.model.transformer.project_in.weight"]
    assert imported(tmp_path, write_checkpoint(tmp_path / "in", tree, wrapped | average, "last.ckpt")) == 2
    assert "1 missing (model.model.transformer.project_in.weight)" in capsys.readouterr().err


def test_an_imported_model_makes_clips(tmp_path: Path) -> None:
    tree = config()
    assert imported(tmp_path, write_checkpoint(tmp_path / "in", tree, their_tensors(tree))) == 0
    model = SoundOmni.from_pretrained(tmp_path / "out")
    ways = {one.name: one.enters for one in model.model.each() if isinstance(one, EncoderModality)}
    assert ways == {"prompt": "cross", "seconds_start": "cross+global", "seconds_total": "cross+global"}
    whole = model.generate("one two", seconds=4096 / 8000, num_steps=3, seeds=[4])[0]
    assert whole.waveform.shape == (2, 4096)
    clips = [model.generate("one two", seconds=seconds, num_steps=3, seeds=[4])[0] for seconds in (0.1, 0.25)]
    assert [clip.waveform.shape for clip in clips] == [(2, 800), (2, 2000)]
    assert not torch.equal(
        *(torch.from_numpy(model.generate(text, seconds=0.1, num_steps=3, seeds=[4])[0].waveform) for text in ("one", "two"))
    )


def without(name: str) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    return lambda tree, tensors: tensors.pop(name)  # type: ignore[return-value]


def setting(path: str, value: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def change(tree: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        *keys, last = path.split(".")
        for key in keys:
            tree = tree[int(key)] if isinstance(tree, list) else tree[key]
        tree[last] = value

    return change


def rename(tree: dict[str, Any], tensors: dict[str, Tensor], old: str, new: str) -> None:
    """Give a condition another name."""
    model = tree["model"]
    for one in model["conditioning"]["configs"]:
        one["id"] = new if one["id"] == old else one["id"]
    for key in ("cross_attention_cond_ids", "global_cond_ids"):
        model["diffusion"][key] = [new if name == old else name for name in model["diffusion"][key]]
    for name in [name for name in tensors if old in name]:
        tensors[name.replace(old, new)] = tensors.pop(name)


def wrap(tensors: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    """Turn a model into a checkpoint of its training, with more tensors."""
    for name in list(tensors):
        tensors[f"diffusion.{name}"] = tensors.pop(name)
    tensors.update({f"diffusion.{name}": tensor for name, tensor in more.items()})


BROKEN: dict[str, tuple[Callable[[dict[str, Any], dict[str, Tensor]], Any], str]] = {
    "a tensor is missing": (without("model.model.transformer.layers.1.ff.ff.2.bias"), "1 missing"),
    "a tensor of the codec is missing": (without("pretransform.model.decoder.layers.0.bias"), "missing"),
    "a tensor too many": (lambda tree, tensors: tensors.update({"model.model.extra": torch.zeros(1)}), "1 unexpected"),
    "another width": (setting("model.diffusion.config.embed_dim", 128), "of another shape"),
    "fewer layers": (setting("model.diffusion.config.depth", 1), "unexpected"),
    "another latent width": (setting("model.io_channels", 5), "expected 5, to agree with the rest"),
    "no objective of this name": (
        setting("model.diffusion.diffusion_objective", "epsilon"),
        "model_config.json': model.diffusion.diffusion_objective",
    ),
    "no such conditioner": (setting("model.conditioning.configs.0.type", "t6"), "Did you mean 't5'"),
    "a condition without a conditioner": (setting("model.diffusion.global_cond_ids", ["bpm"]), "has no conditioner"),
    "a condition with the name of another": (setting("model.conditioning.configs.1.id", "prompt"), "which is taken"),
    "a condition with the name of what is made": (setting("model.conditioning.configs.1.id", "latent"), "which is taken"),
    "a condition that only enters globally": (
        setting("model.diffusion.cross_attention_cond_ids", ["prompt", "seconds_total"]),
        "'seconds_start' is only in global_cond_ids",
    ),
    "a number that nobody knows": (
        lambda tree, tensors: rename(tree, tensors, "seconds_start", "bpm"),
        "the number 'bpm' is unknown",
    ),
    "two texts": (
        lambda tree, tensors: (
            tree["model"]["conditioning"]["configs"].append({"id": "lyrics", "type": "t5", "config": {}}),
            tree["model"]["diffusion"]["cross_attention_cond_ids"].append("lyrics"),
        ),
        "prompt, lyrics are all texts",
    ),
    "a tensor too many, in a training without an average": (
        lambda tree, tensors: wrap(tensors, {"model.model.extra": torch.zeros(1)}),
        "1 unexpected",
    ),
    "latents of another scale": (
        setting("model.pretransform.scale", 2.0),
        "model_config.json': model.pretransform.scale is 2.0; expected 1.0",
    ),
    "a global condition twice": (setting("model.diffusion.global_cond_ids", ["seconds_total"] * 2), "expected every condition only once"),
    "a condition twice": (
        setting("model.diffusion.cross_attention_cond_ids", ["prompt", "prompt", *IDS]),
        "expected every condition only once",
    ),
    "a training that diverged": (
        lambda tree, tensors: tensors["model.model.transformer.layers.1.ff.ff.2.bias"].fill_(float("nan")),
        "not finite",
    ),
    "clips without end": (setting("sample_size", 10**18), "sample_size is 1000000000000000000; expected at most"),
    "layers without end": (setting("model.diffusion.config.depth", 10**6), "model.diffusion.config.depth is 1000000; expected at most 256"),
    "a text without end": (setting("model.conditioning.configs.0.config.max_length", 10**9), "max_tokens is 1000000000"),
    "a key that is not known": (setting("model.diffusion.config.cross_atend", True), "cross_atend"),
    "patches": (setting("model.diffusion.config.patch_size", 2), "patch_size is 2"),
    "a codec only": (setting("model_type", "autoencoder"), "stable-audio-vae"),
    "other rotary frequencies": (
        lambda tree, tensors: tensors["model.model.transformer.rotary_pos_emb.inv_freq"].mul_(2),
        "other values than its sizes give",
    ),
}


@pytest.mark.parametrize("broken", list(BROKEN))
def test_what_does_not_fit_is_refused_in_one_line(broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, told = BROKEN[broken]
    tree = config()
    tensors = their_tensors(tree)
    change(tree, tensors)
    assert imported(tmp_path, write_checkpoint(tmp_path / "in", tree, tensors)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert told in lines[-1] and len([line for line in lines if "error" in line.lower()]) == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_text_encoder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = config()
    source = write_checkpoint(tmp_path / "in", tree, their_tensors(tree))
    assert main(["import", "stable-audio", str(source), "--out", str(tmp_path / "out")]) == 2
    assert "t5-base" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("modality", "argument", "value", "told"),
    [
        ("seconds_total", "num_frequencies", 64, "num_frequencies is 64, but stable-audio-tools only has 128"),
        ("seconds_total", "features", "fixed", "features is 'fixed', but stable-audio-tools only has 'learned'"),
        ("prompt", "pad_to", None, "pad_to is null"),
    ],
)
def test_what_stable_audio_tools_cannot_compute_is_not_written(
    modality: str, argument: str, value: Any, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = config()
    assert imported(tmp_path, write_checkpoint(tmp_path / "in", tree, their_tensors(tree))) == 0
    spec = SoundOmni.from_pretrained(tmp_path / "out").spec
    encoder = spec.of_model.modalities[modality].encoder
    assert encoder is not None
    changed = replace(spec.of_model.modalities[modality], encoder=Slot(encoder.class_path, {**encoder.init_args, argument: value}))
    model = replace(spec.of_model, modalities={**spec.of_model.modalities, modality: changed})
    with pytest.raises(SpecError, match=told):
        export_stable_audio(
            SoundOmni(build_model(model, vocab_size=261), Spec(model=model), TextTokenizer.train([""], vocab_size=261)),
            tmp_path,
            codec={},
            codec_config={},
        )
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_network_of_v_stays_one_with_the_sampler_of_distilled_flows(tmp_path: Path) -> None:
    tree = config()
    assert imported(tmp_path, write_checkpoint(tmp_path / "in", tree, their_tensors(tree))) == 0
    file = tmp_path / "out" / "config.json"
    text = file.read_text()
    assert "dpmpp-3m-sde" in text
    file.write_text(text.replace("dpmpp-3m-sde", "pingpong"))
    assert main(["export", str(tmp_path / "out"), "--format", "stable-audio-tools", "--out", str(tmp_path / "again")]) == 0
    assert json.loads((tmp_path / "again" / "model_config.json").read_text())["model"]["diffusion"]["diffusion_objective"] == "v"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_is_exported_in_half_precision_can_be_imported(dtype: str, tmp_path: Path) -> None:
    tree = config()
    assert imported(tmp_path, write_checkpoint(tmp_path / "in", tree, their_tensors(tree))) == 0
    half = tmp_path / "half"
    assert main(["export", str(tmp_path / "out"), "--format", "stable-audio-tools", "--dtype", dtype, "--out", str(half)]) == 0
    other = tmp_path / "other"
    assert main(["import", "stable-audio", str(half), "--out", str(other), "--text-encoder", str(tmp_path / "t5")]) == 0


def test_the_folder_of_a_text_encoder_is_kept_for_other_working_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = config()
    source = write_checkpoint(tmp_path / "in", tree, their_tensors(tree))
    tiny_t5(tmp_path / "t5")
    monkeypatch.chdir(tmp_path)
    assert main(["import", "stable-audio", str(source), "--out", "out", "--text-encoder", "t5"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert SoundOmni.from_pretrained(tmp_path / "out").generate("one", seconds=0.1, num_steps=1, seeds=[4])


def test_a_tensor_without_values_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = config()
    tensors = their_tensors(tree)
    tensors["model.model.transformer.layers.1.ff.ff.2.bias"] = torch.empty(64, device="meta")
    assert imported(tmp_path, write_checkpoint(tmp_path / "in", tree, tensors, "last.ckpt")) == 2
    assert "has no values; expected a dense tensor" in capsys.readouterr().err
