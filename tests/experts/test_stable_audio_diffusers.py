"""Pipelines of diffusers come in and go out again, bit for bit, and sample what diffusers samples.

The pipelines are made of diffusers' and transformers' own classes with random weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from stable_audio_files import SIZES
from stable_audio_pipelines import (
    CONDITION_DIM,
    FRAMES,
    HEAD_DIM,
    HOP,
    LATENT_DIM,
    RATE,
    SECONDS,
    checkpoint,
    loaded,
    saved,
    tiny_pipeline,
)
from t5_files import tiny_t5
from torch import Tensor

from soundomni import SoundOmni
from soundomni.cli.main import main
from soundomni.core.assembly.build import build_model
from soundomni.core.errors import SpecError
from soundomni.core.files.names import SPEC_FILE
from soundomni.core.inference.audio_request import sampler_seed
from soundomni.core.spec.load import load_spec, spec_to_dict
from soundomni.core.tokenizer import TextTokenizer
from soundomni.experts.checkpoints.stable_audio_diffusers_export import export_pipeline

PARTS = ("transformer", "projection_model", "vae", "text_encoder")
WIDTHS = {"conditions as they are": CONDITION_DIM, "projected conditions": 2 * HEAD_DIM}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline, which no test changes."""
    return saved(tmp_path_factory.mktemp("pipeline") / "in")


@pytest.fixture(scope="module")
def model(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model directory of that pipeline, which no test changes."""
    out = tmp_path_factory.mktemp("model") / "out"
    assert imported(pipeline, out) == 0
    return out


def imported(source: Path, out: Path, *options: str) -> int:
    return main(["import", "stable-audio", str(source), "--out", str(out), *options])


def exported(source: Path, out: Path, layout: str = "diffusers", *options: str) -> int:
    return main(["export", str(source), "--format", layout, "--out", str(out), *options])


def weights(folder: Path) -> dict[str, Tensor]:
    """All tensors below a folder, by file and name."""
    return {
        f"{file.relative_to(folder)} {name}": one for file in sorted(folder.rglob("*.safetensors")) for name, one in load_file(file).items()
    }


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


def tree_of(file: Path) -> Any:
    return json.loads(file.read_text())


def spec_of(folder: Path) -> dict[str, Any]:
    return spec_to_dict(SoundOmni.from_pretrained(folder).spec)


def change(folder: Path, file: str, **values: Any) -> None:
    """Set keys of a JSON file, or remove them for the value `...`."""
    tree = {**tree_of(folder / file), **values}
    (folder / file).write_text(json.dumps({name: value for name, value in tree.items() if value is not ...}))


@pytest.mark.parametrize("width", list(WIDTHS))
def test_a_pipeline_gives_the_model_of_its_checkpoint(width: str, tmp_path: Path) -> None:
    made = tiny_pipeline(seen_dim=WIDTHS[width])
    made.save_pretrained(tmp_path / "in")
    assert imported(tmp_path / "in", tmp_path / "out") == 0
    assert imported(checkpoint(made, tmp_path / "sat"), tmp_path / "other", "--text-encoder", str(tmp_path / "in")) == 0
    assert_equal(weights(tmp_path / "out"), weights(tmp_path / "other"))
    ours, other = spec_of(tmp_path / "out"), spec_of(tmp_path / "other")
    samplers = [tree["model"]["modalities"]["latent"].pop("sampler") for tree in (ours, other)]
    names = [tree["model"]["modalities"]["prompt"]["encoder"]["init_args"].pop("name") for tree in (ours, other)]
    assert ours == other and names == [str(tmp_path / "in"), "t5-base"]
    assert [one["class_path"] for one in samplers] == ["dpmpp-2m-sde", "dpmpp-3m-sde"]


@pytest.mark.parametrize("width", list(WIDTHS))
def test_a_pipeline_comes_in_and_goes_out_bit_for_bit(width: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "in", seen_dim=WIDTHS[width], sigma_min=0.1, sigma_max=80.0)
    change(folder, "text_encoder/config.json", _name_or_path="google-t5/t5-base")
    assert imported(folder, tmp_path / "out") == 0
    assert exported(tmp_path / "out", tmp_path / "again") == 0
    assert_equal(weights(folder), weights(tmp_path / "again"))
    for file in sorted(path.relative_to(folder) for path in folder.rglob("*.json")):
        first, second = tree_of(folder / file), tree_of(tmp_path / "again" / file)
        written = {name for name in second if name not in ("_diffusers_version", "tokenizer")}
        assert all(first[name] == second[name] for name in written), file
    assert imported(tmp_path / "again", tmp_path / "other") == 0
    assert_equal(weights(tmp_path / "out"), weights(tmp_path / "other"))
    first, second = (spec_of(tmp_path / name) for name in ("out", "other"))
    folders = [tree["model"]["modalities"]["prompt"]["encoder"]["init_args"].pop("folder") for tree in (first, second)]
    assert first == second and folders == [str(tmp_path / "in"), str(tmp_path / "again")]


def test_every_tensor_of_a_pipeline_is_reported(pipeline: Path, model: Path) -> None:
    report = tree_of(model / "import-report.json")
    keys = report["keys"]
    names = {f"{part}.{name}" for part in PARTS[:3] for name in load_file(pipeline / part / "diffusion_pytorch_model.safetensors")}
    assert keys["used"].keys() | keys["unused"].keys() == names and not keys["missing"] and not keys["unexpected"]
    assert set(keys["unused"]) == {name for name in names if ".norm" in name and name.endswith(".bias")}
    parameters = {name for ours in keys["used"].values() for name in ours}
    assert parameters == {name for name in load_file(model / "model.safetensors") if ".normalizer." not in name}
    assert report["layout"] == "diffusers"
    assert set(report["source"]["files"]) == {f"{part}/diffusion_pytorch_model.safetensors" for part in PARTS[:3]}


def test_a_checkpoint_goes_through_diffusers_and_back(pipeline: Path, tmp_path: Path) -> None:
    source = checkpoint(tiny_pipeline(), tmp_path / "sat")
    assert imported(source, tmp_path / "out", "--text-encoder", str(pipeline)) == 0
    assert exported(tmp_path / "out", tmp_path / "diffusers") == 0
    assert imported(tmp_path / "diffusers", tmp_path / "other") == 0
    assert exported(tmp_path / "other", tmp_path / "again", "stable-audio-tools") == 0
    assert_equal(weights(source), weights(tmp_path / "again"))
    first, second = (tree_of(folder / "model_config.json")["model"] for folder in (source, tmp_path / "again"))
    assert first["conditioning"] == second["conditioning"]


class Draws:
    """The noise that a clip of a seed gets here, for diffusers: how it begins, then that of each step."""

    def __init__(self, seed: int) -> None:
        self.start = self._draw(torch.Generator().manual_seed(seed))
        self.generator = torch.Generator().manual_seed(sampler_seed(seed))

    def __call__(self, *_: Any) -> Tensor:
        return self._draw(self.generator)

    def _draw(self, generator: torch.Generator) -> Tensor:
        return torch.randn(FRAMES, LATENT_DIM, generator=generator).T[None]


@pytest.mark.parametrize(
    ("steps", "scale", "negative", "sigmas"),
    [(5, 7.0, None, (0.3, 500.0)), (5, 1.0, None, (0.3, 500.0)), (5, 4.0, "three four", (0.3, 500.0)), (20, 3.0, None, (0.05, 20.0))],
)
def test_a_guided_run_equals_that_of_diffusers(
    steps: int, scale: float, negative: str | None, sigmas: tuple[float, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    least, most = sigmas
    folder = saved(tmp_path / "in", sigma_min=least, sigma_max=most)
    assert imported(folder, tmp_path / "out") == 0
    assert exported(tmp_path / "out", tmp_path / "again") == 0
    spec = tmp_path / "out" / SPEC_FILE  # such short clips have parts of a second, which prompts do not say
    spec.write_text(spec.read_text().replace("{seconds_total}", "{seconds}"))
    ours = SoundOmni.from_pretrained(tmp_path / "out")
    theirs, draws = loaded(tmp_path / "again"), Draws(seed=3)
    monkeypatch.setattr("diffusers.schedulers.scheduling_cosine_dpmsolver_multistep.BrownianTreeNoiseSampler", lambda *_, **__: draws)
    wanted = theirs(
        "one two",
        negative_prompt=negative,
        audio_end_in_s=SECONDS,
        num_inference_steps=steps,
        guidance_scale=scale,
        latents=draws.start * most / (most**2 + 1) ** 0.5,  # diffusers begins with noise of the deviation √(sigma_max² + 1)
        output_type="latent",
    ).audios
    made = ours.make("one two", seconds=SECONDS, num_steps=steps, guidance_scale=scale, negative_prompt=negative, seeds=3)[0].values
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_a_small_range_of_noise_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert imported(saved(tmp_path / "in", sigma_max=20.0), tmp_path / "out") == 0
    assert "diffusers begins with noise of the deviation" in capsys.readouterr().out


@pytest.mark.parametrize("way", ["shards", "pickles", "half precision next to full precision"])
def test_weights_may_be_stored_in_other_ways(way: str, model: Path, tmp_path: Path) -> None:
    made = tiny_pipeline()
    if way == "shards":
        made.save_pretrained(tmp_path / "in", max_shard_size="500KB")
        assert len(list((tmp_path / "in" / "transformer").glob("*-of-*.safetensors"))) > 1
    elif way == "pickles":
        made.save_pretrained(tmp_path / "in")
        for part in PARTS[:3]:
            file = tmp_path / "in" / part / "diffusion_pytorch_model.safetensors"
            torch.save(load_file(file), file.with_suffix(".bin"))
            file.unlink()
    else:
        made.save_pretrained(tmp_path / "in")
        made.to(torch.float16).save_pretrained(tmp_path / "in", variant="fp16")
    assert imported(tmp_path / "in", tmp_path / "out") == 0
    assert_equal(weights(model), weights(tmp_path / "out"))


def test_a_pipeline_in_half_precision_goes_out_and_comes_in(model: Path, tmp_path: Path) -> None:
    assert exported(model, tmp_path / "half", "diffusers", "--dtype", "bfloat16") == 0
    assert {one.dtype for name, one in weights(tmp_path / "half").items() if "text_encoder" not in name} == {torch.bfloat16}
    assert loaded(tmp_path / "half").transformer.config.num_layers == 2
    assert imported(tmp_path / "half", tmp_path / "out") == 0


def without(path: str) -> Callable[[Path], Any]:
    def remove(folder: Path) -> None:
        target = folder / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return remove


def with_values(file: str, **values: Any) -> Callable[[Path], Any]:
    return lambda folder: change(folder, file, **values)


def with_tensors(part: str, alter: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], Any]:
    def write(folder: Path) -> None:
        file = folder / part / "diffusion_pytorch_model.safetensors"
        tensors = load_file(file)
        alter(tensors)
        save_file(tensors, file)

    return write


DIT, SCHEDULER, PROJECTION = "transformer/config.json", "scheduler/scheduler_config.json", "projection_model/config.json"
BIAS, KEYS = "transformer_blocks.1.norm2.bias", "transformer_blocks.1.attn2.to_k.weight"
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another pipeline": (with_values("model_index.json", _class_name="StableAudioPipelin"), "Did you mean 'StableAudioPipeline'"),
    "the pipeline of Stable Audio 3": (
        with_values("model_index.json", _class_name="StableAudio3Pipeline"),
        "transformer is ['diffusers', 'StableAudioDiTModel']; expected ['diffusers', 'StableAudio3DiTModel']",
    ),
    "another scheduler": (
        with_values("model_index.json", scheduler=["diffusers", "EDMDPMSolverMultistepScheduler"]),
        "model_index.json': scheduler is ['diffusers', 'EDMDPMSolverMultistepScheduler']; expected ['diffusers', 'CosineDPMSolver",
    ),
    "a part too many": (with_values("model_index.json", transformr=["diffusers", "X"]), "transformr"),
    "a part missing": (with_values("model_index.json", vae=...), "vae: missing"),
    "no transformer": (without("transformer"), "has no transformer/config.json"),
    "no codec": (without("vae"), "has no vae/config.json"),
    "no scheduler": (without(SCHEDULER), "has no scheduler/scheduler_config.json"),
    "no weights": (without("transformer/diffusion_pytorch_model.safetensors"), "no weights in"),
    "a key that is not known": (with_values(DIT, num_layer=2), "Did you mean 'num_layers'"),
    "not JSON": (lambda folder: (folder / DIT).write_text("{"), "config.json' cannot be read as JSON"),
    "half a frame": (with_values(DIT, sample_size=12.5), "sample_size is 12.5; expected a whole number"),
    "small heads": (with_values(DIT, attention_head_dim=32, num_attention_heads=4), "attention_head_dim is 32; expected at least 64"),
    "conditions of another width": (with_values(DIT, cross_attention_dim=96), "cross_attention_dim is 96; expected 64"),
    "latents of another width": (with_values(DIT, in_channels=5), "in_channels is 5; expected 2, to agree"),
    "other heads of keys": (with_values(DIT, num_key_value_attention_heads=2), "num_key_value_attention_heads is 2; expected 1"),
    "other features of time": (with_values(DIT, time_proj_dim=128), "time_proj_dim is 128; expected 256"),
    "only one number": (with_values(DIT, global_states_input_dim=64), "global_states_input_dim is 64; expected 128"),
    "more layers": (with_values(DIT, num_layers=3), "missing"),
    "fewer layers": (with_values(DIT, num_layers=1), "unexpected"),
    "another width": (with_values(DIT, num_attention_heads=3), "of another shape"),
    "projected texts": (with_values(PROJECTION, text_encoder_dim=32), "text_encoder_dim is 32; expected 64"),
    "another T5": (with_values("text_encoder/config.json", d_model=32), "32"),
    "Karras' schedule": (with_values(SCHEDULER, sigma_schedule="karras"), "sigma_schedule is 'karras'; expected 'exponential'"),
    "steps of the first order": (with_values(SCHEDULER, solver_order=1), "solver_order is 1; expected 2"),
    "steps of Heun": (with_values(SCHEDULER, solver_type="heun"), "solver_type is 'heun'; expected 'midpoint'"),
    "a network of noise": (with_values(SCHEDULER, prediction_type="epsilon"), "prediction_type is 'epsilon'; expected 'v_prediction'"),
    "no last step": (with_values(SCHEDULER, final_sigmas_type="sigma_min"), "final_sigmas_type is 'sigma_min'; expected 'zero'"),
    "no range of noise": (with_values(SCHEDULER, sigma_min=9.0, sigma_max=3.0), "sigma_min is 9 and sigma_max is 3"),
    "a setting of the scheduler": (with_values(SCHEDULER, sigma_mix=1.0), "sigma_mix"),
    "another codec": (with_values("vae/config.json", decoder_channels=8), "vae/config.json': decoder_channels is 8"),
    "a text without end": (with_values("tokenizer/tokenizer_config.json", model_max_length=10**30), "model_max_length is 1000"),
    "padding in front": (with_values("tokenizer/tokenizer_config.json", padding_side="left"), "padding_side is 'left'"),
    "a tensor is missing": (with_tensors("transformer", lambda tensors: tensors.pop(KEYS)), f"1 missing (transformer.{KEYS})"),
    "a tensor too many": (
        with_tensors("transformer", lambda tensors: tensors.update(extra=torch.zeros(1))),
        "1 unexpected (transformer.extra)",
    ),
    "a projection of texts": (
        with_tensors("projection_model", lambda tensors: tensors.update({"text_projection.weight": torch.zeros(1)})),
        "1 unexpected (projection_model.text_projection.weight)",
    ),
    "a tensor of another shape": (
        with_tensors("transformer", lambda tensors: tensors.update({KEYS: torch.zeros(3, 3)})),
        f"transformer.{KEYS} [3, 3] instead of [64, 64]",
    ),
    "a trained bias": (with_tensors("transformer", lambda tensors: tensors[BIAS].fill_(0.1)), f"transformer.{BIAS} is not zero"),
    "a training that diverged": (
        with_tensors("transformer", lambda tensors: tensors[KEYS].fill_(float("nan"))),
        f"'transformer.{KEYS}' has numbers that are not finite",
    ),
    "a tensor of the codec is missing": (with_tensors("vae", lambda tensors: tensors.pop("encoder.conv1.bias")), "missing"),
    "no weights of the T5": (without("text_encoder/model.safetensors"), "lacks text_encoder/model.safetensors"),
    "no tokenizer": (without("tokenizer"), "lacks tokenizer/tokenizer.json"),
}


@pytest.mark.parametrize("broken", list(BROKEN))
def test_what_does_not_fit_is_refused_in_one_line(broken: str, pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alter, told = BROKEN[broken]
    folder = tmp_path / "in"
    shutil.copytree(pipeline, folder)
    alter(folder)
    assert imported(folder, tmp_path / "out") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert told in lines[-1] and len([line for line in lines if "error" in line.lower()]) == 1
    assert not (tmp_path / "out").exists()


def test_a_slow_tokenizer_has_to_be_converted(pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    shutil.copytree(pipeline, folder)
    (folder / "tokenizer" / "tokenizer.json").rename(folder / "tokenizer" / "spiece.model")
    assert imported(folder, tmp_path / "out") == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "lacks tokenizer/tokenizer.json" in told
    assert f"T.from_pretrained('{folder}/tokenizer').save_pretrained('{folder}/tokenizer')" in told


def test_a_pipeline_without_a_text_encoder_takes_another_one(pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    shutil.copytree(pipeline, folder)
    shutil.rmtree(folder / "text_encoder")
    change(folder, "model_index.json", text_encoder=[None, None])
    assert imported(folder, tmp_path / "out") == 2
    assert "t5: name is 't5-base'" in capsys.readouterr().err
    assert imported(folder, tmp_path / "out", "--text-encoder", str(pipeline)) == 0
    assert "has no text_encoder; it was assumed to be t5-base" in capsys.readouterr().out
    encoder = SoundOmni.from_pretrained(tmp_path / "out").spec.of_model.modalities["prompt"].encoder
    assert encoder is not None and (encoder.init_args["name"], encoder.init_args["folder"]) == ("t5-base", str(pipeline))


def test_a_checkpoint_in_the_folder_of_a_pipeline_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The Hub repository of Stable Audio Open holds both."""
    folder = checkpoint(tiny_pipeline(), saved(tmp_path / "in"))
    assert imported(folder, tmp_path / "out") == 0
    assert tree_of(tmp_path / "out" / "import-report.json")["layout"] == "model"
    assert f"the text encoder comes from the diffusers pipeline in '{folder}'" in capsys.readouterr().out
    assert imported(folder / "model_index.json", tmp_path / "other") == 0
    assert tree_of(tmp_path / "other" / "import-report.json")["layout"] == "diffusers"
    assert_equal(weights(tmp_path / "out"), weights(tmp_path / "other"))
    assert imported(folder / "model_index.json", tmp_path / "third", "--config", str(folder / "model_config.json")) == 2
    assert "--config only applies to checkpoints of stable-audio-tools" in capsys.readouterr().err


def small_spec(pipeline: Path, **changes: Any) -> dict[str, Any]:
    """The spec of a model that a pipeline can hold; `changes` are dotted keys with __ for the dots."""
    seconds = {
        "encoder": {"class_path": "number", "init_args": {"most": 8.0, "clamp": True}},
        "connector": "linear",
        "enters": "cross+global",
    }
    text = {"name": "t5-base", "folder": str(pipeline), "pad_to": 6, "truncate": True}
    sizes = {"hidden_dim": 128, "num_layers": 1, "num_heads": 2, "condition_dim": CONDITION_DIM}
    made = {
        "codec": {"class_path": "oobleck", "init_args": {**SIZES, "sample_latents": True}},
        "connector": "residual-linear",
        "objective": {"class_path": "v-prediction", "init_args": {}},
        "sampler": {"class_path": "dpmpp-2m-sde", "init_args": {}},
        "guidance": {"scale": 7.0},
        "window": FRAMES * HOP / RATE,
    }
    prompt = {"encoder": {"class_path": "t5", "init_args": text}, "connector": "identity", "enters": "cross"}
    texts = {"prompt": "{caption}", "seconds_start": "{seconds_start}", "seconds_total": "{seconds_total}"}
    tree: dict[str, Any] = {
        "backbone": {"class_path": "dit", "init_args": sizes},
        "router": "dense",
        "tokenizer": {"vocab_size": 261},
        "modalities": {"latent": made, "prompt": prompt, "seconds_start": seconds, "seconds_total": seconds},
        "prompt": [{"text": text, "of": name} for name, text in texts.items()],
    }
    tree = json.loads(json.dumps(tree))
    for key, value in changes.items():
        *path, last = key.split("__")
        inner: Any = tree
        for name in path:
            inner = inner[int(name)] if isinstance(inner, list) else inner[name]
        if value is ...:
            del inner[int(last) if isinstance(inner, list) else last]
        else:
            inner[last] = value
    return {"model": tree}


def built(tree: dict[str, Any]) -> SoundOmni:
    spec = load_spec([tree], base={})
    return SoundOmni(build_model(spec.of_model, vocab_size=261), spec, TextTokenizer.train([""], vocab_size=261))


MADE, NUMBER = "modalities__latent__", "modalities__seconds_total__encoder__init_args__"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "adaptive norms": (
        {"backbone__init_args__conditioning": "adaln"},
        "backbone.conditioning is 'adaln', but diffusers only has 'prepend'",
    ),
    "differential attention": ({"backbone__init_args__differential": True}, "backbone.differential is True, but diffusers only has False"),
    "norms of heads": ({"backbone__init_args__head_norm": "layer"}, "backbone.head_norm is 'layer', but diffusers only has 'none'"),
    "memory": ({"backbone__init_args__num_memory": 2}, "backbone.num_memory is 2, but diffusers only has 0"),
    "small heads": ({"backbone__init_args__num_heads": 4}, "backbone.num_heads is 4, but diffusers rotates half of the 32 dimensions"),
    "a rectified flow": (
        {f"{MADE}objective__class_path": "flow-matching"},
        "objective is 'flow-matching', but diffusers only has 'v-prediction'",
    ),
    "inpainting": ({f"{MADE}objective__init_args__shows_known": True}, "shows_known is True, but diffusers only has False"),
    "half a frame": ({f"{MADE}window": 100 / RATE}, "window is 0.0125, which is 12.5 frames, but diffusers only has whole ones"),
    "ranges that differ": ({f"{NUMBER}most": 9.0}, "seconds_total.encoder.most is 9.0, but diffusers only has 8.0"),
    "a number less": (
        {"modalities__seconds_start": ..., "prompt__1": ...},
        "the conditions of the model are prompt, seconds_total, but diffusers only has one text, seconds_start and seconds_total",
    ),
    "a number that only crosses": (
        {"modalities__seconds_start__enters": "cross"},
        "seconds_start.enters is 'cross', but diffusers only has",
    ),
    "fixed features": ({f"{NUMBER}features": "fixed"}, "features is 'fixed', but diffusers only has 'learned'"),
    "a condition that is not given": ({"prompt__1": ...}, "model.prompt gives prompt, seconds_total; expected prompt, seconds_start"),
}


@pytest.mark.parametrize("refused", list(REFUSED))
def test_what_diffusers_cannot_compute_is_not_written(refused: str, pipeline: Path, tmp_path: Path) -> None:
    changes, told = REFUSED[refused]
    model = built(small_spec(pipeline, **changes))
    with pytest.raises(SpecError) as raised:
        export_pipeline(model, tmp_path, codec={}, codec_config={})
    assert told in str(raised.value) and not list(tmp_path.iterdir())


def test_a_codec_that_diffusers_cannot_compute_is_not_written(pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built(small_spec(pipeline, modalities__latent__codec__init_args__final_tanh=True)).save_pretrained(tmp_path / "model")
    assert exported(tmp_path / "model", tmp_path / "out") == 2
    assert "codec.final_tanh is True" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_tokenizer_that_no_t5_has_is_not_written(tmp_path: Path) -> None:
    folder = tiny_t5(tmp_path / "t5")  # 8 dimensions, and whole words
    model = built(small_spec(folder, backbone__init_args__condition_dim=8, backbone__init_args__project_conditions=True))
    (tmp_path / "out").mkdir()
    with pytest.raises(SpecError, match="is a tokenizer of type 'WordLevel'; expected Unigram"):
        export_pipeline(model, tmp_path / "out", codec={}, codec_config={})


NOTED: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "numbers out of range": (
        {f"{NUMBER}clamp": False},
        {
            "stable-audio-tools": (
                "values of seconds_total outside its range are refused here; stable-audio-tools uses the nearest valid number"
            )
        },
    ),
    "long texts": (
        {"modalities__prompt__encoder__init_args__truncate": False},
        {
            name: f"texts of prompt with more than 6 tokens are refused here; {name} cuts them"
            for name in ("stable-audio-tools", "diffusers")
        },
    ),
    "another prompt": (
        {"prompt__0__text": "sound of {caption}"},
        {
            name: f"model.prompt writes 'sound of {{caption}}' for prompt instead of '{{caption}}'; do the same with {name}"
            for name in ("stable-audio-tools", "diffusers")
        },
    ),
    "means of latents": (
        {f"{MADE}codec__init_args__sample_latents": False},
        {
            name: f"clips are encoded as the mean of their latents here; {name} samples the latents"
            for name in ("stable-audio-tools", "diffusers")
        },
    ),
    "another sampler": (
        {f"{MADE}sampler__class_path": "dpmpp-3m-sde", f"{MADE}sampler__init_args": {"num_steps": 50}},
        {"diffusers": "the sampler takes 50 steps here; pass num_inference_steps=50 to the pipeline"},
    ),
    "another guidance": (
        {f"{MADE}guidance": {"scale": 5.0, "rescale": 0.5}},
        {"diffusers": "guidance.rescale is 0.5 here; diffusers has no such setting"},
    ),
    "nothing": ({}, {}),
}


@pytest.mark.parametrize("noted", list(NOTED))
def test_what_others_do_otherwise_is_noted(noted: str, pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, told = NOTED[noted]
    built(small_spec(pipeline, **changes)).save_pretrained(tmp_path / "model")
    for layout in ("stable-audio-tools", "diffusers"):
        capsys.readouterr()
        assert exported(tmp_path / "model", tmp_path / layout, layout, "--json") == 0
        notes = json.loads(capsys.readouterr().out)["notes"]
        assert told[layout] in notes if layout in told else not notes


def test_the_noise_schedule_of_another_sampler_is_kept(pipeline: Path, tmp_path: Path) -> None:
    sampler = {"class_path": "dpmpp-3m-sde", "init_args": {"schedule": {"spacing": "exponential", "sigma_min": 0.1, "sigma_max": 80.0}}}
    built(small_spec(pipeline, modalities__latent__sampler=sampler)).save_pretrained(tmp_path / "model")
    assert exported(tmp_path / "model", tmp_path / "out") == 0
    config = loaded(tmp_path / "out").scheduler.config
    assert (config.sigma_min, config.sigma_max) == (0.1, 80.0)


@pytest.mark.parametrize(
    ("name", "told"),
    [("t5-bse", "Did you mean 't5-base'"), ("/somewhere/t5", "expected one of t5-small, t5-base"), ("google-t5/t5-base", None)],
)
def test_stable_audio_tools_only_loads_some_t5_models(
    name: str, told: str | None, pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built(small_spec(pipeline, modalities__prompt__encoder__init_args__name=name)).save_pretrained(tmp_path / "model")
    assert exported(tmp_path / "model", tmp_path / "out", "stable-audio-tools") == (0 if told is None else 2)
    if told is not None:
        assert told in capsys.readouterr().err and not (tmp_path / "out").exists()
        return
    configs = tree_of(tmp_path / "out" / "model_config.json")["model"]["conditioning"]["configs"]
    assert configs[0]["config"]["t5_model_name"] == "t5-base"


def test_the_order_of_global_conditions_is_kept(pipeline: Path, tmp_path: Path) -> None:
    source = checkpoint(tiny_pipeline(), tmp_path / "sat", global_ids=("seconds_total", "seconds_start"))
    assert imported(source, tmp_path / "out", "--text-encoder", str(pipeline)) == 0
    assert exported(tmp_path / "out", tmp_path / "again", "stable-audio-tools") == 0
    assert_equal(weights(source), weights(tmp_path / "again"))
    first, second = (tree_of(folder / "model_config.json")["model"]["diffusion"] for folder in (source, tmp_path / "again"))
    assert all(first[key] == second[key] for key in ("cross_attention_cond_ids", "global_cond_ids"))
    assert exported(tmp_path / "out", tmp_path / "diffusers") == 0
    usual = weights(pipeline)
    assert_equal(
        {name: usual[name] for name in usual if "text_encoder" not in name},
        {name: one for name, one in weights(tmp_path / "diffusers").items() if "text_encoder" not in name},
    )
