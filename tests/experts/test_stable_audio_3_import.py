"""Models of Stable Audio 3 come in with every tensor accounted for, and compute what diffusers' transformer computes with these tensors.

No package has Stable Audio 3's own names, so they are spelled out here a second time, from their description. The codec is a tiny SAME.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import same_files
import torch
from safetensors.torch import load_file, save_file
from stable_audio_files import changed
from t5_files import tiny_t5gemma
from test_dit import packed, predictions
from test_dit_3 import diffusers_model
from torch import Tensor

from soundomni import SoundOmni
from soundomni.cli.main import main
from soundomni.core.errors import SpecError
from soundomni.core.inference.requests import RequestBuilder
from soundomni.experts.checkpoints.stable_audio_3_config import is_third, parse_third

COND, WIDTH, DEPTH, MEMORY, LATENT = 8, 64, 2, 3, same_files.LATENT
DIT, SECONDS = "model.model.", "conditioner.conditioners.seconds_total.embedder.embedding.1."
PADDING = "conditioner.conditioners.prompt.padding_embedding"
"""Dimensions of conditions, which is the size of the tiny T5Gemma, of the transformer, its layers, and of latents."""


def config(*, differential: bool = False, **changes: Any) -> dict[str, Any]:
    """A config of a tiny model; `changes` are dotted keys with __ for the dots."""
    vae = same_files.config(large=True)
    t5 = {"model_name": "google/t5gemma-b-b-ul2", "max_length": 6, "padding_mode": "learned", "repo_id": "someone/model"}
    number = {"min_val": 0, "max_val": 384, "fourier_features_type": "expo"}
    transformer = {
        "io_channels": LATENT,
        "embed_dim": WIDTH,
        "depth": DEPTH,
        "num_heads": 1,
        "cond_token_dim": COND,
        "global_cond_dim": COND,
        "local_add_cond_dim": LATENT + 1,
        "project_cond_tokens": True,
        "transformer_type": "continuous_transformer",
        "global_cond_type": "adaLN",
        "timestep_features_type": "expo",
        "num_memory_tokens": MEMORY,
        "norm_type": "rms_norm",
        "norm_kwargs": {"force_fp32": True},
        "attn_kwargs": {"qk_norm": "rms", "differential": differential},
        "ff_kwargs": {"mult": 4.0},
    }
    tree = {
        "model_type": "diffusion_cond_inpaint",
        "sample_size": 4096,
        "sample_rate": vae["sample_rate"],
        "audio_channels": 2,
        "model": {
            "pretransform": {"type": "autoencoder", "chunked": True, "iterate_batch": True, "config": vae["model"]},
            "conditioning": {
                "configs": [
                    {"id": "prompt", "type": "t5gemma", "config": t5},
                    {"id": "seconds_total", "type": "number", "config": number},
                ],
                "cond_dim": COND,
            },
            "diffusion": {
                "cross_attention_cond_ids": ["prompt", "seconds_total"],
                "global_cond_ids": ["seconds_total"],
                "local_add_cond_ids": ["inpaint_mask", "inpaint_masked_input"],
                "diffusion_objective": "rf_denoiser",
                "distribution_shift_options": {"type": "logsnr"},
                "mask_padding_attention": True,
                "use_effective_length_for_schedule": True,
                "type": "dit",
                "config": transformer,
            },
            "io_channels": LATENT,
        },
        "training": {"learning_rate": 5e-5},
    }
    return changed(tree, changes)


def shapes(*, differential: bool) -> dict[str, tuple[int, ...]]:
    """The tensors of the transformer and the conditioners."""
    queries, rows = (2, 3) if differential else (1, 2)
    found = {
        "to_timestep_embed.0.weight": (WIDTH, 256),
        "to_timestep_embed.0.bias": (WIDTH,),
        "to_timestep_embed.2.weight": (WIDTH, WIDTH),
        "to_timestep_embed.2.bias": (WIDTH,),
        "to_cond_embed.0.weight": (WIDTH, COND),
        "to_cond_embed.2.weight": (WIDTH, WIDTH),
        "to_global_embed.0.weight": (WIDTH, COND),
        "to_global_embed.2.weight": (WIDTH, WIDTH),
        "preprocess_conv.weight": (LATENT, LATENT, 1),
        "postprocess_conv.weight": (LATENT, LATENT, 1),
        "transformer.project_in.weight": (WIDTH, LATENT),
        "transformer.project_out.weight": (LATENT, WIDTH),
        "transformer.memory_tokens": (MEMORY, WIDTH),
        "transformer.global_cond_embedder.0.weight": (WIDTH, WIDTH),
        "transformer.global_cond_embedder.0.bias": (WIDTH,),
        "transformer.global_cond_embedder.2.weight": (6 * WIDTH, WIDTH),
        "transformer.global_cond_embedder.2.bias": (6 * WIDTH,),
        "transformer.rotary_pos_emb.inv_freq": (16,),
    }
    layer = {
        "to_scale_shift_gate": (6 * WIDTH,),
        "self_attn.to_qkv.weight": ((5 if differential else 3) * WIDTH, WIDTH),
        "self_attn.to_out.weight": (WIDTH, WIDTH),
        "cross_attn.to_q.weight": (queries * WIDTH, WIDTH),
        "cross_attn.to_kv.weight": (rows * WIDTH, WIDTH),
        "cross_attn.to_out.weight": (WIDTH, WIDTH),
        "to_local_embed.0.weight": (WIDTH, LATENT + 1),
        "to_local_embed.0.bias": (WIDTH,),
        "to_local_embed.2.weight": (WIDTH, WIDTH),
        "to_local_embed.2.bias": (WIDTH,),
        "ff.ff.0.proj.weight": (8 * WIDTH, WIDTH),
        "ff.ff.0.proj.bias": (8 * WIDTH,),
        "ff.ff.2.weight": (WIDTH, 4 * WIDTH),
        "ff.ff.2.bias": (WIDTH,),
        **{f"{name}.gamma": (WIDTH,) for name in ("pre_norm", "cross_attend_norm", "ff_norm")},
        **{f"{kind}.{name}.gamma": (WIDTH,) for kind in ("self_attn", "cross_attn") for name in ("q_norm", "k_norm")},
    }
    found |= {f"transformer.layers.{i}.{name}": shape for i in range(DEPTH) for name, shape in layer.items()}
    return {f"model.model.{name}": shape for name, shape in found.items()} | {
        "conditioner.conditioners.prompt.padding_embedding": (COND,),
        "conditioner.conditioners.seconds_total.embedder.embedding.1.weight": (COND, 256),
        "conditioner.conditioners.seconds_total.embedder.embedding.1.bias": (COND,),
    }


def checkpoint(*, differential: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    found = shapes(differential=differential)
    tensors = {name: torch.randn(shape, generator=generator) / max(shape[-1], 9) ** 0.5 for name, shape in found.items()}
    tensors["model.model.transformer.rotary_pos_emb.inv_freq"] = 1.0 / 1e4 ** (torch.arange(0, 32, 2).float() / 32)
    return tensors | same_files.tensors(large=True, prefix="pretransform.model.")


def write(folder: Path, tree: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_config.json").write_text(json.dumps(tree))
    save_file(tensors, folder / "model.safetensors")
    return folder


def imported(folder: Path, tree: dict[str, Any], tensors: dict[str, Tensor]) -> int:
    source, encoder = write(folder / "in", tree, tensors), tiny_t5gemma(folder / "t5gemma")
    return main(["import", "stable-audio", str(source), "--out", str(folder / "out"), "--text-encoder", str(encoder)])


@pytest.mark.parametrize("differential", [False, True])
def test_an_imported_model_computes_what_diffusers_does_with_the_tensors(differential: bool, tmp_path: Path) -> None:
    tensors = checkpoint(differential=differential)
    assert imported(tmp_path, config(differential=differential), tensors) == 0
    report = json.loads((tmp_path / "out" / "import-report.json").read_text())
    assert sum(map(len, report["keys"].values())) == len(tensors) and not report["keys"]["missing"]
    implied = [name for name, why in report["keys"]["unused"].items() if why == "follows from the sizes"]
    assert len(implied) == 1 + 1 + 2 * 4 and report["keys"]["unused"].keys() == set(implied), "rotary tables, and a tensor without numbers"
    own = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(tensor.numel() for name, tensor in own.items() if "normalizer" not in name) == sum(
        tensor.numel() for name, tensor in tensors.items() if name not in implied
    )
    from diffusers.pipelines.stable_audio_3 import modeling_stable_audio_3 as peers

    user = SoundOmni.from_pretrained(tmp_path / "out")
    transformer = {name.removeprefix(DIT): tensor for name, tensor in tensors.items() if name.startswith(DIT)}
    theirs = diffusers_model(transformer, differential=differential, num_heads=1)
    duration = peers.StableAudio3DurationEmbedder(output_dim=COND, max_val=384.0)
    duration.linear.load_state_dict({name: tensors[f"{SECONDS}{name}"] for name in ("weight", "bias")})
    texts = ["one two", "three", "four five zero one two three", "one"]
    batch = packed(user.model, user.spec.of_model, texts, task="fill")
    prompt: Any = user.model.modality("prompt")
    clips = batch.of("prompt")
    with torch.no_grad():
        query, output = predictions(user.model, batch)
        words = prompt.encoder(clips.waveform, clips.lengths)
        assert torch.equal(words[1, 1:], tensors[PADDING].expand(5, -1)) and not torch.isclose(words[1, 0], tensors[PADDING]).any()
        for i in range(len(texts)):
            frames = int(batch.of("latent").num_frames[i])
            total = duration(batch.of("seconds_total").waveform[i, 0])
            wanted = theirs(
                query.inputs[i : i + 1, :, :frames],
                query.timesteps[i, :1],
                torch.cat([words[i : i + 1], total[:, None]], 1),
                total,
                local_add_cond=query.hints[i : i + 1, :, :frames],
            ).sample[0]
            torch.testing.assert_close(output[i, :, :frames], wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "diffusion_cond"}, "model_type is 'diffusion_cond'; expected 'diffusion_cond_inpaint'"),
        ({"model__diffusion__local_add_cond_ids": ["inpaint_mask"]}, r"local_add_cond_ids is \['inpaint_mask'\]; expected"),
        ({"model__diffusion__modular_local_cond_configs": [{"id": "x", "dim": 3}]}, "modular_local_cond_configs is .* expected"),
        ({"model__diffusion__config__global_cond_type": "prepend"}, "global_cond_type is 'prepend'; expected 'adaLN'"),
        ({"model__diffusion__config__timestep_features_type": ...}, "timestep_features_type: missing"),
        ({"model__diffusion__config__local_add_cond_dim": 257}, "local_add_cond_dim is 257; expected 7"),
        ({"model__diffusion__config__ff_kwargs": {"mult": 2.0}}, "mult is 2.0; expected 4.0"),
        ({"model__diffusion__config__ff_kwargs": {"no_bias": True}}, "unknown key 'model.diffusion.config.ff_kwargs.no_bias'|no_bias"),
        ({"model__diffusion__config__attn_kwargs__qk_norm": "dyt"}, "qk_norm is 'dyt'; expected 'rms'"),
        ({"model__diffusion__config__sliding_window": [1, 1]}, "sliding_window"),
        ({"model__diffusion__config__depht": 3}, "depht"),
    ],
)
def test_a_config_that_cannot_be_computed_is_refused(changes: dict[str, Any], message: str) -> None:
    tree = config(**changes)
    assert is_third(tree)
    with pytest.raises(SpecError, match=message):
        parse_third(tree)


@pytest.mark.parametrize("differential", [False, True])
def test_a_model_goes_out_bit_for_bit(differential: bool, tmp_path: Path) -> None:
    tree, tensors = (
        config(differential=differential, model__diffusion__config__timestep_features_logsnr=True),
        checkpoint(differential=differential),
    )
    assert imported(tmp_path, tree, tensors) == 0
    assert main(["export", str(tmp_path / "out"), "--format", "stable-audio-3", "--out", str(tmp_path / "again")]) == 0
    back = load_file(tmp_path / "again" / "model.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in tensors.items())
    written = json.loads((tmp_path / "again" / "model_config.json").read_text())
    first, second = parse_third(tree), parse_third(written)
    assert replace(first, sample_size=second.sample_size, unused=()) == replace(second, unused=())


def test_a_model_of_another_kind_does_not_go_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert imported(tmp_path, config(), checkpoint()) == 0
    for source, layout, told in (
        (str(tmp_path / "out"), "stable-audio-tools", "the codec is SameCodec, but stable-audio-tools only has oobleck"),
        ("nano", "stable-audio-3", "but stable-audio-3 only has same"),
    ):
        assert main(["export", source, "--format", layout, "--out", str(tmp_path / layout)]) == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "schedule", "ignored"),
    [
        ({}, {"spacing": "log-snr", "log_snr": [-6.2, 2.0]}, True),
        ({"type": "none"}, {"spacing": "even"}, False),
        ({"type": "logsnr", "rate": 0, "anchor_logsnr": -5, "logsnr_end": 3.5}, {"spacing": "log-snr", "log_snr": [-5.0, 3.5]}, False),
        ({"type": "logsnr"}, {"spacing": "log-snr", "log_snr": [-6.2, 2.0]}, True),
        ({"type": "flux", "alpha_max": 4.0}, {"spacing": "log-snr", "log_snr": [-6.2, 2.0]}, True),
    ],
)
def test_the_schedule_of_a_config_is_read_unless_it_depends_on_lengths(
    options: dict[str, Any], schedule: dict[str, Any], ignored: bool
) -> None:
    read = parse_third(config(model__diffusion__sampling_distribution_shift_options=options | {"max_length": 4096}))
    assert read.schedule == schedule and ("model.diffusion.sampling_distribution_shift_options" in read.unused) == ignored


def test_what_differs_around_the_network_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert imported(tmp_path, config(), checkpoint()) == 0
    capsys.readouterr()
    assert main(["export", str(tmp_path / "out"), "--format", "stable-audio-3", "--out", str(tmp_path / "same")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1, "one line of the export, and no notes"
    spec = tmp_path / "out" / "spec.yaml"
    spec.write_text(spec.read_text().replace("headroom: 6.0", "headroom: 0.5").replace("truncate: true", "truncate: false"))
    assert main(["export", str(tmp_path / "out"), "--format", "stable-audio-3", "--out", str(tmp_path / "other")]) == 0
    told = capsys.readouterr().out
    assert "texts of prompt with more than 6 tokens are refused here; stable-audio-3 cuts them" in told
    assert "a clip is made with 0.5 s behind its end here; stable-audio-3 makes 6 s behind its end" in told


def test_the_published_ways_to_sample_are_the_defaults(tmp_path: Path) -> None:
    assert imported(tmp_path, config(), checkpoint()) == 0
    model = SoundOmni.from_pretrained(tmp_path / "out")
    made = model.spec.of_model.used["latent"]
    assert made.sampler is not None and made.sampler.class_path.endswith("pingpong") and made.guidance.scale == 1.0
    assert made.guidance.parallel == 0.0 and made.window is None and made.headroom == 6.0
    clip = model.generate("one two", seconds=0.1, num_steps=2, seeds=[4])[0]
    assert clip.waveform.shape == (2, 800)
    builder = RequestBuilder(model.model, model.contexts, num_samples=800, negative_prompt=None)
    request = builder.request("one two", seed=1)
    assert request.num_frames == 6.1 * 8000 / same_files.RATIO
    told = next(segment for segment in request.context if segment.modality == "seconds_total")
    assert told.waveform is not None and float(told.waveform[0, 0]) == 1.0, "in whole seconds"
