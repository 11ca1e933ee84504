"""Pipelines of diffusers with Stable Audio 3 come in and go out again, bit for bit, and sample what diffusers samples.

The pipelines are made of diffusers' and transformers' own classes with random weights. As Stable Audio 3 was trained,
norms in front of branches have an eps of 1e-5 in comparisons, where diffusers has 1e-6.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import same_files
import stable_audio_pipelines
import torch
from diffusers.pipelines.stable_audio_3.pipeline_stable_audio_3 import logsnr_sigma_schedule
from safetensors.torch import load_file
from stable_audio_3_pipelines import LATENT, RATE, RATIO, loaded, saved
from test_dit_3 import diffusers_model
from test_stable_audio_3_import import checkpoint, config, write
from test_stable_audio_3_import import imported as imported_checkpoint
from test_stable_audio_diffusers import (
    assert_equal,
    change,
    exported,
    imported,
    spec_of,
    tree_of,
    weights,
    with_tensors,
    with_values,
    without,
)
from torch import Tensor

from soundomni import SoundOmni
from soundomni.cli.main import main
from soundomni.core.files.names import SPEC_FILE
from soundomni.core.inference.audio_request import sampler_seed
from soundomni.core.representation import Representation
from soundomni.experts.checkpoints.stable_audio_3_diffusers_config import IRRELEVANT, read_third_pipeline
from soundomni.experts.checkpoints.stable_audio_3_diffusers_layout import third_places
from soundomni.flow.noise_schedules import NoiseSchedule

PARTS = ("transformer", "duration_embedder", "vae")
SECONDS, HEADROOM = 0.25, 0.125
FRAMES = math.ceil((SECONDS + HEADROOM) * RATE / RATIO)


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


class Draws:
    """The noise that a clip of a seed gets here, for diffusers: how it begins, then that of each step."""

    def __init__(self, seed: int) -> None:
        self.start = self._draw(torch.Generator().manual_seed(seed))
        self.generator = torch.Generator().manual_seed(sampler_seed(seed))

    def __call__(self, *_: Any, **__: Any) -> Tensor:
        return self._draw(self.generator)

    def _draw(self, generator: torch.Generator) -> Tensor:
        return torch.randn(FRAMES, LATENT, generator=generator).T[None]


def steps(num_steps: int, first: float, last: float) -> list[float]:
    """Where the steps lie here, for diffusers, which computes them in single precision.

    Features of timesteps have frequencies up to 10,000, so the last digit of a timestep changes a prediction by 1e-4.
    """
    own = list(NoiseSchedule(spacing="log-snr", log_snr=(first, last)).timesteps(num_steps))[:-1]
    assert own == pytest.approx(logsnr_sigma_schedule(num_steps, first, last), rel=0, abs=1e-6)
    return own


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Draws:
    """The noise of a clip, which diffusers gets too."""
    found = Draws(seed=3)
    monkeypatch.setattr("diffusers.schedulers.scheduling_flow_match_euler_discrete.randn_tensor", found)
    for name in ("", "_inpaint"):
        module = f"diffusers.pipelines.stable_audio_3.pipeline_stable_audio_3{name}"
        monkeypatch.setattr(f"{module}.logsnr_sigma_schedule", steps)
    return found


def assert_close(made: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def short(folder: Path) -> SoundOmni:
    """A model of short clips, which have parts of a second; prompts do not say these."""
    spec = folder / SPEC_FILE
    text = spec.read_text()
    assert "headroom: 6.0" in text
    spec.write_text(text.replace("{seconds_total}", "{seconds}").replace("headroom: 6.0", f"headroom: {HEADROOM}"))
    return SoundOmni.from_pretrained(folder)


@pytest.mark.parametrize("text", ["one two", "a text with more letters than tokens"])
@pytest.mark.parametrize(("differential", "stochastic"), [(True, True), (False, True), (True, False)])
def test_a_run_equals_that_of_diffusers(differential: bool, stochastic: bool, text: str, tmp_path: Path, draws: Draws) -> None:
    folder = saved(tmp_path / "in", differential=differential, stochastic=stochastic)
    assert imported(folder, tmp_path / "out") == 0
    ours, theirs = short(tmp_path / "out"), loaded(folder)
    given = {"silence_padding_duration": HEADROOM, "num_inference_steps": 5, "duration": SECONDS}
    wanted = theirs(text, latents=draws.start, output_type="latent", **given).audios
    made = ours.make(text, seconds=SECONDS, num_steps=5, guidance_scale=1.0, seeds=3)[0].values
    assert_close(made, wanted[..., : made.shape[-1]])


def test_a_guided_run_equals_that_of_diffusers_with_the_same_negative_prompt(tmp_path: Path, draws: Draws) -> None:
    folder = saved(tmp_path / "in", stochastic=False)
    assert imported(folder, tmp_path / "out") == 0
    spec = tmp_path / "out" / SPEC_FILE
    spec.write_text(spec.read_text().replace("parallel: 0.0", "parallel: 1.0"))
    ours, theirs = short(tmp_path / "out"), loaded(folder)
    given = {"silence_padding_duration": HEADROOM, "num_inference_steps": 5, "duration": SECONDS, "guidance_scale": 3.0}
    wanted = theirs("one two", negative_prompt="three", latents=draws.start, output_type="latent", **given).audios
    made = ours.make("one two", seconds=SECONDS, num_steps=5, guidance_scale=3.0, negative_prompt="three", seeds=3)[0].values
    assert_close(made, wanted[..., : made.shape[-1]])


def test_the_inpainting_pipeline_makes_the_same_from_nothing(pipeline: Path, tmp_path: Path, draws: Draws) -> None:
    """As the note of an export says: it has the network for known frames, which the plain pipeline leaves out."""
    from diffusers import StableAudio3InpaintPipeline

    assert imported(pipeline, tmp_path / "out") == 0
    ours, plain = short(tmp_path / "out"), loaded(pipeline, hints=False)
    theirs = StableAudio3InpaintPipeline(**plain.components)
    theirs.set_progress_bar_config(disable=True)
    given = {"silence_padding_duration": HEADROOM, "num_inference_steps": 5, "duration": SECONDS}
    nothing = {"audio": torch.ones(1, 2, FRAMES * RATIO), "mask": torch.zeros(1, 1, FRAMES)}
    wanted = theirs("one two", latents=draws.start, output_type="latent", **given, **nothing).audios
    made = ours.make("one two", seconds=SECONDS, num_steps=5, seeds=3)[0].values
    assert_close(made, wanted[..., : made.shape[-1]])
    other = plain("one two", latents=draws.start, output_type="latent", **given).audios
    assert not torch.isclose(wanted, other, rtol=1e-2).any(dim=1).all()


def test_the_codec_of_a_pipeline_decodes_what_diffusers_decodes(pipeline: Path, model: Path) -> None:
    codec: Any = SoundOmni.from_pretrained(model).model.made().codec
    latents = torch.randn(2, LATENT, 9, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        wanted = loaded(pipeline).vae.decode(latents).sample
        assert_close(codec.decode(Representation(latents, torch.tensor([9, 9]), codec.spec)), wanted)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"differential": False}, {"stochastic": False, "memory": 0}, {"heads": 1, "layers": 1}],
    ids=["medium", "the transformer of small", "not distilled, without memory", "one head"],
)
def test_a_pipeline_comes_in_and_goes_out_bit_for_bit(arguments: dict[str, Any], tmp_path: Path) -> None:
    folder = saved(tmp_path / "in", **arguments)
    change(folder, "text_encoder/config.json", _name_or_path="google/t5gemma-b-b-ul2")
    assert imported(folder, tmp_path / "out") == 0
    assert exported(tmp_path / "out", tmp_path / "again") == 0
    assert_equal(weights(folder), weights(tmp_path / "again"))
    for file in sorted(path.relative_to(folder) for path in folder.rglob("*.json")):
        first, second = tree_of(folder / file), tree_of(tmp_path / "again" / file)
        assert all(first[name] == second[name] for name in second if name not in ("_diffusers_version", "tokenizer"))
        assert first.keys() - second.keys() <= set(IRRELEVANT), "the rest of the scheduler"
    assert imported(tmp_path / "again", tmp_path / "other") == 0
    assert_equal(weights(tmp_path / "out"), weights(tmp_path / "other"))
    first, second = (spec_of(tmp_path / name) for name in ("out", "other"))
    folders = [tree["model"]["modalities"]["prompt"]["encoder"]["init_args"].pop("folder") for tree in (first, second)]
    assert first == second and folders == [str(tmp_path / "in"), str(tmp_path / "again")]


def test_every_tensor_of_a_pipeline_is_reported(pipeline: Path, model: Path) -> None:
    report = tree_of(model / "import-report.json")
    keys, file = report["keys"], "diffusion_pytorch_model.safetensors"
    names = {f"{part}.{name}" for part in PARTS for name in load_file(pipeline / part / file)}
    assert keys["used"].keys() | keys["unused"].keys() == names and not keys["missing"] and not keys["unexpected"]
    assert keys["unused"] == dict.fromkeys((f"transformer.{RATES}", "duration_embedder.freqs"), "follows from the sizes")
    parameters = [name for ours in keys["used"].values() for name in ours]
    assert set(parameters) == {name for name in load_file(model / "model.safetensors") if ".normalizer." not in name}
    assert len(parameters) == len(set(parameters)) and report["layout"] == "diffusers"
    assert set(report["source"]["files"]) == {f"{part}/{file}" for part in PARTS}


@pytest.mark.parametrize("differential", [False, True])
def test_a_checkpoint_goes_through_diffusers_and_back(differential: bool, pipeline: Path, tmp_path: Path) -> None:
    """With the names and the order of rows that the tests of `dit-3` spell out a second time."""
    tensors = checkpoint(differential=differential)
    source = write(tmp_path / "in", config(differential=differential), tensors)
    assert main(["import", "stable-audio", str(source), "--out", str(tmp_path / "out"), *encoder_of(pipeline)]) == 0
    assert exported(tmp_path / "out", tmp_path / "diffusers") == 0
    prefix = "model.model."
    own = {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
    expected = diffusers_model(own, differential=differential, num_heads=1).state_dict()
    expected["prompt_padding_embedding"] = tensors["conditioner.conditioners.prompt.padding_embedding"]
    assert_equal(load_file(tmp_path / "diffusers" / "transformer" / "diffusion_pytorch_model.safetensors"), expected)
    assert loaded(tmp_path / "diffusers").tokenizer.model_max_length == 6, "as the config of the checkpoint says"
    change(tmp_path / "diffusers", "text_encoder/config.json", _name_or_path="google/t5gemma-b-b-ul2")
    assert imported(tmp_path / "diffusers", tmp_path / "other") == 0
    assert_equal(weights(tmp_path / "out"), weights(tmp_path / "other"))
    assert spec_of(tmp_path / "out") == with_folder(spec_of(tmp_path / "other"), pipeline)
    assert exported(tmp_path / "other", tmp_path / "again", "stable-audio-3") == 0
    assert_equal(load_file(tmp_path / "again" / "model.safetensors"), tensors)


def encoder_of(folder: Path) -> tuple[str, str]:
    return "--text-encoder", str(folder)


def with_folder(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A spec whose prompts are read by the text encoder in another folder."""
    tree["model"]["modalities"]["prompt"]["encoder"]["init_args"]["folder"] = str(folder)
    return tree


@pytest.mark.parametrize(
    "sizes",
    [{}, {"embed_dim": 1024, "depth": 20, "num_heads": 16, "use_differential_attention": False}],
    ids=["medium", "small"],
)
def test_a_pipeline_of_full_size_has_these_tensors(sizes: dict[str, Any], tmp_path: Path) -> None:
    from diffusers import StableAudio3DiTModel
    from diffusers.pipelines.stable_audio_3 import StableAudio3DurationEmbedder

    with torch.device("meta"):
        parts = {"transformer": StableAudio3DiTModel(**sizes), "duration_embedder": StableAudio3DurationEmbedder()}
    shutil.copytree(saved(tmp_path / "tiny"), tmp_path / "in")
    for name, module in parts.items():
        (tmp_path / "in" / name / "config.json").write_text(module.to_json_string())
    read = read_third_pipeline(tmp_path / "in", {"sample_rate": 44100, "channels": 2, "latent_dim": 256})
    places = third_places(read.config)
    ours = {name: piece.shape for piece in places.pieces for name in piece.theirs}
    ours |= {name: tuple(tensor.shape) for name, tensor in places.constants.items()}
    theirs = {f"{part}.{name}": tuple(one.shape) for part, module in parts.items() for name, one in module.state_dict().items()}
    assert ours == theirs


@pytest.mark.parametrize("name", ["StableAudio3InpaintPipeline", "StableAudio3AudioToAudioPipeline"])
def test_the_other_pipelines_have_the_same_parts(name: str, pipeline: Path, model: Path, tmp_path: Path) -> None:
    shutil.copytree(pipeline, tmp_path / "in")
    change(tmp_path / "in", "model_index.json", _class_name=name)
    assert imported(tmp_path / "in", tmp_path / "out") == 0
    assert_equal(weights(model), weights(tmp_path / "out"))


def test_a_pipeline_in_half_precision_goes_out_and_comes_in(model: Path, tmp_path: Path) -> None:
    assert exported(model, tmp_path / "half", "diffusers", "--dtype", "float16") == 0
    assert {one.dtype for name, one in weights(tmp_path / "half").items() if "text_encoder" not in name} == {torch.float16}
    assert loaded(tmp_path / "half").transformer.config.depth == 2
    assert imported(tmp_path / "half", tmp_path / "out") == 0
    assert exported(tmp_path / "out", tmp_path / "again", "diffusers", "--dtype", "float16") == 0
    assert_equal(weights(tmp_path / "half"), weights(tmp_path / "again"))


def test_a_pipeline_without_a_text_encoder_takes_another_one(pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    shutil.copytree(pipeline, folder)
    shutil.rmtree(folder / "text_encoder")
    change(folder, "model_index.json", text_encoder=[None, None])
    assert imported(folder, tmp_path / "out") == 2
    assert "t5gemma: name is 'google/t5gemma-b-b-ul2'" in capsys.readouterr().err
    assert imported(folder, tmp_path / "out", *encoder_of(pipeline)) == 0
    assert "has no text_encoder; it was assumed to be google/t5gemma-b-b-ul2" in capsys.readouterr().out


def test_a_text_has_no_more_tokens_than_diffusers_takes(pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    shutil.copytree(pipeline, folder)
    for i, length in enumerate((10**30, 256, ...)):
        change(folder, "tokenizer/tokenizer_config.json", model_max_length=length)
        assert imported(folder, tmp_path / str(i)) == 0
        assert spec_of(tmp_path / str(i))["model"]["modalities"]["prompt"]["encoder"]["init_args"]["pad_to"] == 256


DIT, SCHEDULER, DURATION = "transformer/config.json", "scheduler/scheduler_config.json", "duration_embedder/config.json"
RATES, KEYS = "rotary_pos_emb.inv_freq", "transformer_blocks.1.self_attn.to_qkv.weight"
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another pipeline": (
        with_values("model_index.json", _class_name="StableAudio4Pipeline"),
        "_class_name is 'StableAudio4Pipeline'; expected one of 'StableAudioPipeline', 'StableAudio3Pipeline'",
    ),
    "the pipeline of Stable Audio Open": (
        with_values("model_index.json", _class_name="StableAudioPipeline"),
        "transformer is ['diffusers', 'StableAudio3DiTModel']; expected ['diffusers', 'StableAudioDiTModel']",
    ),
    "another scheduler": (
        with_values("model_index.json", scheduler=["diffusers", "EulerDiscreteScheduler"]),
        "scheduler is ['diffusers', 'EulerDiscreteScheduler']; expected ['diffusers', 'FlowMatchEulerDiscreteScheduler']",
    ),
    "a part too many": (with_values("model_index.json", duration_embeder=["diffusers", "X"]), "duration_embeder"),
    "a part missing": (with_values("model_index.json", duration_embedder=...), "duration_embedder: missing"),
    "no transformer": (without("transformer"), "has no transformer/config.json"),
    "no duration": (without("duration_embedder"), "has no duration_embedder/config.json"),
    "no codec": (without("vae"), "has no vae/config.json"),
    "no scheduler": (without(SCHEDULER), "has no scheduler/scheduler_config.json"),
    "no weights": (without("transformer/diffusion_pytorch_model.safetensors"), "no weights in"),
    "no weights of the T5Gemma": (without("text_encoder/model.safetensors"), "lacks text_encoder/model.safetensors"),
    "no tokenizer": (without("tokenizer"), "lacks tokenizer/tokenizer.json"),
    "a key that is not known": (with_values(DIT, dept=2), "Did you mean 'depth'"),
    "a setting of the scheduler": (with_values(SCHEDULER, sigma_mix=1.0), "sigma_mix"),
    "not JSON": (lambda folder: (folder / DIT).write_text("{"), "config.json' cannot be read as JSON"),
    "the config of another class": (with_values(DIT, _class_name="StableAudioDiTModel"), "expected 'StableAudio3DiTModel'"),
    "patches": (with_values(DIT, patch_size=2), "patch_size is 2; expected 1"),
    "fewer features of time": (with_values(DIT, timestep_features_dim=128), "timestep_features_dim is 128; expected 256"),
    "a narrow network": (with_values(DIT, ff_mult=2.0), "ff_mult is 2.0; expected 4.0"),
    "latents of another width": (with_values(DIT, io_channels=5), "io_channels is 5; expected 6, to agree"),
    "no known frames": (with_values(DIT, local_add_cond_dim=6), "local_add_cond_dim is 6; expected 7, to agree"),
    "wider tokens": (with_values(DIT, cond_token_dim=16), "cond_token_dim is 16; expected 8, to agree"),
    "wider lengths": (with_values(DIT, global_cond_dim=16), "global_cond_dim is 16; expected 8, to agree"),
    "heads that do not fit": (with_values(DIT, num_heads=3), "num_heads is 3; expected a divisor of embed_dim, which is 128"),
    "small heads": (with_values(DIT, num_heads=4), "embed_dim / num_heads is 32; expected at least 64"),
    "more layers": (with_values(DIT, depth=3), "missing"),
    "fewer layers": (with_values(DIT, depth=1), "unexpected"),
    "no memory": (with_values(DIT, num_memory_tokens=0), "1 unexpected (transformer.memory_tokens)"),
    "plain attention": (with_values(DIT, use_differential_attention=False), "cross_attn.to_kv.weight [384, 128] instead of [256, 128]"),
    "other frequencies": (with_values(DURATION, max_freq=100.0), "max_freq is 100.0; expected 10000.0"),
    "fewer frequencies": (with_values(DURATION, fourier_dim=128), "fourier_dim is 128; expected 256"),
    "no range of seconds": (with_values(DURATION, min_val=9.0), "min_val is 9 and max_val is 8; expected the lower one first"),
    "another T5Gemma": (
        lambda folder: change(folder, "text_encoder/config.json", encoder={**encoder_config(folder), "hidden_size": 16}),
        "passes on tokens of 8 numbers, but these have 16",
    ),
    "timesteps up to 1000": (with_values(SCHEDULER, num_train_timesteps=...), "num_train_timesteps is 1000; expected 1"),
    "a shift": (with_values(SCHEDULER, shift=3.0), "shift is 3.0; expected 1.0"),
    "a shift by length": (with_values(SCHEDULER, use_dynamic_shifting=True), "use_dynamic_shifting is True; expected False"),
    "Karras' schedule": (with_values(SCHEDULER, use_karras_sigmas=True), "use_karras_sigmas is True; expected False"),
    "another last step": (with_values(SCHEDULER, shift_terminal=0.1), "shift_terminal is 0.1; expected null"),
    "text cut in front": (with_values("tokenizer/tokenizer_config.json", truncation_side="left"), "truncation_side is 'left'"),
    "no room for text": (with_values("tokenizer/tokenizer_config.json", model_max_length=0), "model_max_length is 0"),
    "another codec": (with_values("vae/config.json", latent_dim=5), "decoder.proj.weight [16, 6] instead of [16, 5]"),
    "a tensor is missing": (with_tensors("transformer", lambda tensors: tensors.pop(KEYS)), f"1 missing (transformer.{KEYS})"),
    "a tensor too many": (
        with_tensors("duration_embedder", lambda tensors: tensors.update(extra=torch.zeros(1))),
        "1 unexpected (duration_embedder.extra)",
    ),
    "a tensor of another shape": (
        with_tensors("transformer", lambda tensors: tensors.update({KEYS: torch.zeros(3, 3)})),
        f"transformer.{KEYS} [3, 3] instead of [640, 128]",
    ),
    "another base of positions": (
        with_tensors("transformer", lambda tensors: tensors[RATES].mul_(0.9)),
        f"transformer.{RATES} has other values than its sizes give; the backbone dit-3 only has these",
    ),
    "trained frequencies": (
        with_tensors("duration_embedder", lambda tensors: tensors["freqs"].mul_(1.1)),
        "duration_embedder.freqs has other values than its sizes give",
    ),
    "a training that diverged": (
        with_tensors("transformer", lambda tensors: tensors[KEYS].fill_(float("nan"))),
        f"'transformer.{KEYS}' has numbers that are not finite",
    ),
    "a tensor of the codec is missing": (with_tensors("vae", lambda tensors: tensors.pop("bottleneck.bias")), "missing"),
}


def encoder_config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = tree_of(folder / "text_encoder" / "config.json")["encoder"]
    return found


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


def test_the_codec_of_another_family_is_refused(pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = stable_audio_pipelines.saved(tmp_path / "open")
    for i, (source, codec) in enumerate(((pipeline, other), (other, pipeline))):
        folder = tmp_path / str(i)
        shutil.copytree(source, folder)
        shutil.rmtree(folder / "vae")
        shutil.copytree(codec / "vae", folder / "vae")
        assert imported(folder, tmp_path / "out") == 2
    first, second = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
    told = "vae' holds the tensors of the codec {}; expected those of {}, the codec of a {}"
    assert first.endswith(told.format("oobleck", "AutoencoderSAME", "StableAudio3Pipeline"))
    assert second.endswith(told.format("same", "AutoencoderOobleck", "StableAudioPipeline"))


def edited(model: Path, folder: Path, *changes: tuple[str, str]) -> Path:
    """Copy a model directory, and replace parts of its spec."""
    shutil.copytree(model, folder)
    text = (folder / SPEC_FILE).read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / SPEC_FILE).write_text(text)
    return folder


REST = "loss: false\n      known: null\n      gap: null"
LENGTH_IN_PROMPT = f"    - text: '{{seconds_total}}'\n      audio: null\n      of: seconds_total\n      {REST}\n"
REFUSED: dict[str, tuple[tuple[str, str], str]] = {
    "other times": (
        ("log_snr_times: false", "log_snr_times: true"),
        "model.backbone.log_snr_times is True, but diffusers only has False",
    ),
    "long texts": (("pad_to: 12", "pad_to: 300"), "prompt.encoder.pad_to is 300, but diffusers has at most 256 tokens"),
    "an objective of noise": (
        ("class_path: flow-matching", "class_path: v-prediction"),
        "model.modalities.latent.objective is 'v-prediction', but diffusers only has 'flow-matching'",
    ),
    "a prompt without a length": (
        (LENGTH_IN_PROMPT, ""),
        "model.prompt gives prompt; expected prompt, seconds_total, each once",
    ),
    "a window that is longer on one side": (
        ("window:\n              - 1\n              - 1", "window:\n              - 1\n              - 2"),
        "codec.transformer.window is [1, 2], but diffusers' autoencoder only has windows as long on either side; "
        "write it as stable-audio-3",
    ),
}


@pytest.mark.parametrize("refused", list(REFUSED))
def test_what_diffusers_cannot_compute_is_not_written(
    refused: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_of_spec, told = REFUSED[refused]
    assert exported(edited(model, tmp_path / "model", change_of_spec), tmp_path / "out") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert told in lines[-1] and not (tmp_path / "out").exists()


def test_the_codec_of_the_small_models_is_not_in_diffusers(pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = config(model__pretransform__config=same_files.config()["model"])
    others = {name: one for name, one in checkpoint().items() if not name.startswith("pretransform.")}
    source = write(tmp_path / "in", tree, others | same_files.tensors(prefix="pretransform.model."))
    assert main(["import", "stable-audio", str(source), "--out", str(tmp_path / "out"), *encoder_of(pipeline)]) == 0
    assert exported(tmp_path / "out", tmp_path / "again") == 2
    told = "codec.transformer.window is null, but diffusers' autoencoder only has windows as long on either side"
    assert f"{told}; write it as stable-audio-3" in capsys.readouterr().err
    assert exported("nano", tmp_path / "again") == 2
    assert "the codec is HarmonicCodec, but diffusers only has oobleck and same" in capsys.readouterr().err


def test_a_tokenizer_that_no_t5gemma_has_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert imported_checkpoint(tmp_path, config(), checkpoint()) == 0  # its tokenizer knows whole words
    assert exported(tmp_path / "out", tmp_path / "again") == 2
    assert "is a tokenizer of type 'WordLevel'; expected BPE, like every T5Gemma tokenizer" in capsys.readouterr().err


def test_the_encoder_of_a_whole_t5gemma_is_written(tmp_path: Path) -> None:
    assert imported_checkpoint(tmp_path, config(), checkpoint()) == 0
    shutil.copyfile(saved(tmp_path / "pipeline") / "tokenizer" / "tokenizer.json", tmp_path / "t5gemma" / "tokenizer.json")
    assert exported(tmp_path / "out", tmp_path / "again") == 0
    own = load_file(tmp_path / "t5gemma" / "model.safetensors")
    prefix = "model.encoder."
    expected = {name.removeprefix("model."): one for name, one in own.items() if name.startswith(prefix)}
    assert expected and len(expected) < len(own)
    assert_equal(load_file(tmp_path / "again" / "text_encoder" / "model.safetensors"), expected)
    assert type(loaded(tmp_path / "again").tokenizer).__name__ == "GemmaTokenizer"


HINTS = "clips that continue nothing are made without the network for known frames by diffusers' StableAudio3Pipeline"
UNUSED = "interval:\n          - 0.0\n          - 1.0\n        renormalize: none\n        renormalize_min: 0.0\n        rescale: 0.0"
GUIDANCE = f"scale: 1.0\n        {UNUSED}\n        parallel: 0.0"
NOTED: dict[str, tuple[tuple[tuple[str, str], ...], tuple[str, ...]]] = {
    "nothing else": ((), ("a clip is made with 6 s behind its end here; pass silence_padding_duration=6 to the pipeline",)),
    "no headroom": ((("headroom: 6.0", "headroom: 0.0"),), ()),
    "other steps": (
        (("headroom: 6.0", "headroom: 0.0"), ("num_steps: 8", "num_steps: 4"), ("- -6.2", "- -5.0")),
        (
            "the steps lie between the log-SNR -5 and 2 here; pass logsnr_min=-5 and logsnr_max=2 to the pipeline",
            "the sampler takes 4 steps here; pass num_inference_steps=4 to the pipeline",
        ),
    ),
    "another sampler": (
        (("headroom: 6.0", "headroom: 0.0"), ("class_path: pingpong", "class_path: ddim")),
        ("the sampler takes 8 steps here; pass num_inference_steps=8 to the pipeline",),
    ),
    "guidance": (
        (("headroom: 6.0", "headroom: 0.0"), (GUIDANCE, GUIDANCE.replace("scale: 1.0", "scale: 3.0"))),
        (
            "guidance.scale is 3 here; pass guidance_scale=3 to the pipeline",
            "guidance is away from a clip without conditions here; diffusers guides away from one with an empty prompt",
            "guidance.parallel is 0.0 here; diffusers has no such setting",
        ),
    ),
    "a window": (
        (
            ("headroom: 6.0", "headroom: 0.0"),
            ("window: null\n      headroom: 0.0\n    prompt", "window: 9.0\n      headroom: 0.0\n    prompt"),
        ),
        ("a clip is made with 9 s here, if it is shorter; diffusers has no such setting",),
    ),
}


@pytest.mark.parametrize("noted", list(NOTED))
def test_what_diffusers_does_otherwise_is_noted(noted: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, told = NOTED[noted]
    capsys.readouterr()
    assert exported(edited(model, tmp_path / "model", *changes), tmp_path / "out", "diffusers", "--json") == 0
    first, *others = json.loads(capsys.readouterr().out)["notes"]
    assert first.startswith(HINTS) and tuple(others) == told


def test_a_model_that_is_not_distilled_is_guided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert imported(saved(tmp_path / "in", stochastic=False), tmp_path / "out") == 0
    assert "diffusers only guides if you pass guidance_scale" in capsys.readouterr().out
    made = spec_of(tmp_path / "out")["model"]["modalities"]["latent"]
    assert made["sampler"]["class_path"] == "ddim" and made["sampler"]["init_args"]["num_steps"] == 100
    assert made["guidance"]["scale"] == 7.0
