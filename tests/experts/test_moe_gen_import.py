"""Checkpoints of BAGEL and of the original SoundOmni: what they compute, refused files, and the way back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moe_gen_files import CODEC, HIDDEN, LATENT_DIM, ROWS, TEXT, bagel, original, places, write, write_bagel, write_original
from moe_gen_reference import Block, forward, latent_tokens
from qwen2_audio_files import edit_json
from safetensors.torch import load_file, save_file
from torch import Tensor

from soundomni.core.assembly.modality import frame_places
from soundomni.core.errors import CheckpointError, SoundOmniError, SpecError
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.sequence import Attend, PackedBatch, PositionRule, Role, Sample, Segment, audio_segment, text_segment
from soundomni.core.spec.schema import DataSpec
from soundomni.core.waveform import Audio
from soundomni.experts.checkpoints.bagel_import import import_bagel
from soundomni.experts.checkpoints.language_import import write_imported
from soundomni.experts.checkpoints.original_export import export_soundomni
from soundomni.experts.checkpoints.original_import import import_soundomni

RATE = 8000


def loaded(imported: Any, folder: Path) -> SoundOmni:
    folder.mkdir()
    write_imported(imported, folder)
    return SoundOmni.from_pretrained(folder)


def clip(role: Role, attend: Attend, frames: int, samples: int, channels: int = 1) -> Segment:
    rule = PositionRule.ADVANCE if role == Role.FEATURES else PositionRule.SHARED
    segment = audio_segment(role=role, attend=attend, num_frames=frames, num_samples=samples, boundary_ids=(3, 4), positions=rule)
    noise = np.random.default_rng(samples).standard_normal((channels, samples)).astype(np.float32)
    return segment.with_waveform(0.3 * noise)


@torch.no_grad()
def run(omni: SoundOmni, segments: list[Segment], latents: dict[int, tuple[Tensor, float]]) -> tuple[Tensor, Tensor]:
    """Runs one sample with given latents `[N, D]` and timesteps of its clips to make; returns predictions and hidden text."""
    net, batch = omni.model, PackedBatch.from_samples([Sample("x", tuple(segments))])
    layout = net.plan(batch.table)
    longest = max((len(x) for x, _ in latents.values()), default=0)
    values, times = torch.zeros(len(latents), LATENT_DIM, longest), torch.zeros(len(latents), longest)
    for row, (x, t) in enumerate(latents.values()):
        values[row, :, : len(x)], times[row] = x.T, t
    spots = frame_places(batch.of("latent").num_frames, longest, net.device)
    blocks = {
        Role.TEXT: net.backbone.embed(batch.text_ids),
        **{one.name: one.enter(batch.of(one.name)).hidden for one in net.all_heard},
        Role.LATENT: net.made().enter_frames(values, times, spots),
    }
    streams, _ = net.backbone(layout.place(blocks, HIDDEN), layout)
    return net.made().connector.leave(layout.take(streams, Role.LATENT)), net.backbone.head(layout.take(streams, Role.TEXT))


@pytest.mark.parametrize("given", [{}, {"qk_norm": "gen"}, {"qk_norm": "all", "gen_inner": 36}], ids=["plain", "gen-norms", "norms"])
def test_an_original_checkpoint_computes_what_its_rules_say(tmp_path: Path, given: dict[str, Any]) -> None:
    tensors = original(**given)
    omni = loaded(import_soundomni(write_original(tmp_path / "source", tensors), overrides=CODEC), tmp_path / "out")
    generator = torch.Generator().manual_seed(5)
    clean, noisy = (torch.randn(n, LATENT_DIM, generator=generator) for n in (3, 5))
    heard = clip(Role.FEATURES, Attend.FULL, 10, 6400)
    segments = [
        text_segment([7, 8, 9], bos=1, eos=2),
        heard,
        clip(Role.LATENT, Attend.FULL, 3, 2 * LATENT_DIM),
        text_segment([20], bos=1, eos=2),
        clip(Role.LATENT, Attend.NOISE, 5, 4 * LATENT_DIM),
        text_segment([11, 12], bos=1, eos=2),
    ]
    with torch.no_grad():
        waveform = torch.from_numpy(heard.waveform)[None]
        features = omni.model.all_heard[0].encoder(waveform, torch.tensor([6400]))[0, :10].double()
    projected = features @ tensors["audio_projector.weight"].double().T + tensors["audio_projector.bias"].double()
    blocks = [
        Block("text", [1, 7, 8, 9, 2]),
        Block("heard", [3, 4], projected),
        Block("clean", [3, 4], latent_tokens(tensors, clean, 0.0)),
        Block("text", [1, 20, 2]),
        Block("noise", [3, 4], latent_tokens(tensors, noisy, 0.7)),
        Block("text", [1, 11, 12, 2]),
    ]
    hidden, gen, text = forward(tensors, blocks)
    velocity, logits = run(omni, segments, {0: (clean, 0.0), 1: (noisy, 0.7)})
    expected = hidden[gen] @ tensors["llm2audiovae.weight"].double().T + tensors["llm2audiovae.bias"].double()
    torch.testing.assert_close(velocity.double(), expected, rtol=0, atol=5e-5)
    torch.testing.assert_close(logits.double(), hidden[text] @ tensors["language_model.lm_head.weight"].double().T, rtol=0, atol=5e-5)
    assert expected.abs().max() > 0.5


@pytest.mark.parametrize("qk_norm", ["all", "none"])
def test_a_bagel_checkpoint_computes_what_its_rules_say(tmp_path: Path, qk_norm: str) -> None:
    tensors = bagel(qk_norm=qk_norm)
    imported = import_bagel(write_bagel(tmp_path / "source", tensors), overrides=CODEC)
    omni = loaded(imported, tmp_path / "out")
    state = omni.model.state_dict()
    ours = {
        "audiovae2llm": "inward",
        "llm2audiovae": "outward",
        "time_embedder.mlp.0": "time_and_place.time.first",
        "time_embedder.mlp.2": "time_and_place.time.second",
    }
    with torch.no_grad():  # a new connector's way out is zero
        state["modalities.latent.connector.outward.weight"].normal_(generator=torch.Generator().manual_seed(0))
    mine = {
        f"{theirs}.{key}": state[f"modalities.latent.connector.{name}.{key}"] for theirs, name in ours.items() for key in ("weight", "bias")
    }
    mine |= tensors | mine | {"gen_pos_embed": places()}
    noisy = torch.randn(4, LATENT_DIM, generator=torch.Generator().manual_seed(5))
    blocks = [Block("text", [1, 7, 8, 2]), Block("noise", [3, 4], latent_tokens(mine, noisy, 0.4))]
    hidden, gen, text = forward(mine, blocks)
    segments = [text_segment([7, 8], bos=1, eos=2), clip(Role.LATENT, Attend.NOISE, 4, 3 * LATENT_DIM)]
    velocity, logits = run(omni, segments, {0: (noisy, 0.4)})
    expected = hidden[gen] @ mine["llm2audiovae.weight"].double().T + mine["llm2audiovae.bias"].double()
    torch.testing.assert_close(velocity.double(), expected, rtol=0, atol=5e-5)
    torch.testing.assert_close(logits.double(), hidden[text] @ tensors["language_model.lm_head.weight"].double().T, rtol=0, atol=5e-5)
    assert set(imported.unused) == {name for name in tensors if not name.startswith("language_model.")}
    assert set(imported.unused.values()) == {"a part for images"}
    assert any("new and untrained: latent connector" in note for note in imported.notes)


def test_an_original_model_generates_and_describes(tmp_path: Path) -> None:
    omni = loaded(import_soundomni(write_original(tmp_path / "source", original(), prefix="module."), overrides=CODEC), tmp_path / "out")
    made = omni.generate(["a dog"], seconds=0.1, num_steps=2)[0]
    assert made.waveform.shape == (1, 800) and np.isfinite(made.waveform).all() and made.waveform.std() > 0
    assert isinstance(omni.describe([Audio(made.waveform, RATE)], max_new_tokens=3)[0], str)


@pytest.mark.parametrize("hears", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_export_of_an_import_is_the_checkpoint_bit_for_bit(tmp_path: Path, hears: bool, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in original(hears=hears, qk_norm="gen").items()}
    omni = loaded(import_soundomni(write_original(tmp_path / "source", tensors), overrides=CODEC), tmp_path / "out")
    back = tmp_path / "back"
    back.mkdir()
    export_soundomni(omni, back, dtype=dtype)
    written = load_file(back / "model.safetensors")
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        if name == "gen_pos_embed":  # computed, to rounding
            assert float((written[name].float() - tensor.float()).abs().max()) < (1e-2 if dtype == torch.bfloat16 else 2e-4)
        else:
            assert written[name].dtype == dtype and torch.equal(written[name], tensor), name
    again = loaded(import_soundomni(back, overrides=CODEC), tmp_path / "again")
    for name, tensor in omni.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    assert again.spec == omni.spec and again.max_tokens == omni.max_tokens == TEXT["max_position_embeddings"]


def test_how_audio_is_heard_and_the_longest_sample_survive_the_way_out_and_in(tmp_path: Path) -> None:
    layer = [*CODEC, ("model.feature_attend", "causal"), ("model.chat", "qwen2-audio")]
    omni = loaded(import_soundomni(write_original(tmp_path / "source", original()), overrides=layer), tmp_path / "out")
    back = tmp_path / "back"
    back.mkdir()
    export_soundomni(omni, back)
    again = import_soundomni(back, overrides=CODEC)
    assert again.spec.model.used["features"].attend == "causal" and again.spec.model.chat == "qwen2-audio"
    trained = SoundOmni(omni.model, replace(omni.spec, data=DataSpec(datasets={}, max_tokens_per_sample=77)), omni.tokenizer)
    export_soundomni(trained, back)
    assert import_soundomni(back, overrides=CODEC).checkpoint.config.max_tokens == 77


def test_a_table_of_places_in_double_precision_is_the_same_table(tmp_path: Path) -> None:
    tensors = original()
    source = write_original(tmp_path / "source", tensors | {"gen_pos_embed": tensors["gen_pos_embed"].double()})
    assert "gen_pos_embed" in import_soundomni(source, overrides=CODEC).unused


def test_a_bagel_model_leaves_in_the_layout_of_the_original_and_comes_back(tmp_path: Path) -> None:
    layer = [*CODEC, ("model.normalize", "none")]
    omni = loaded(import_bagel(write_bagel(tmp_path / "source", bagel()), overrides=layer), tmp_path / "out")
    back = tmp_path / "back"
    back.mkdir()
    export_soundomni(omni, back, max_shard_bytes=50_000)
    assert (back / "model.safetensors.index.json").is_file()
    again = loaded(import_soundomni(back, overrides=CODEC), tmp_path / "again")
    for name, tensor in omni.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    assert again.spec == omni.spec


def test_an_encoder_of_a_layer_is_new(tmp_path: Path) -> None:
    layer = [*CODEC, ("model.encoder", "log-mel"), ("model.connectors.features", "linear")]
    imported = import_bagel(write_bagel(tmp_path / "source", bagel()), overrides=layer)
    omni = loaded(imported, tmp_path / "out")
    assert omni.model.all_heard and "new and untrained: latent connector and encoder" in " ".join(imported.notes)
    assert omni.describe([Audio(np.zeros((1, RATE), np.float32), RATE)], max_new_tokens=2)


def test_the_rows_of_the_embedding_are_those_of_the_tensor(tmp_path: Path) -> None:
    imported = import_soundomni(write_original(tmp_path / "source", original()), overrides=CODEC)
    assert TEXT["vocab_size"] != ROWS == imported.spec.model.backbone.init_args["vocab_rows"]
    assert imported.spec.model.backbone.init_args["gen_intermediate_dim"] == 20


def damaged(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    """Writes the weights anew after a change."""

    def damage(source: Path) -> None:
        tensors = load_file(source / "model.safetensors")
        change(tensors)
        save_file(tensors, source / "model.safetensors")

    return damage


def truncate(source: Path) -> None:
    file = source / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def lose_a_layer(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if ".layers.1." in name and name.startswith("language")]:
        del tensors[name]


def lose_und_norms(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if "_norm.weight" in name and "self_attn" in name]:
        tensors[name.replace("_norm.", "_norm_moe_gen.")] = tensors.pop(name)


EMBEDDING = "language_model.model.embed_tokens.weight"
DEEP = "language_model.model.layers.1.mlp_moe_gen.up_proj.weight"


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (truncate, "cannot be read as safetensors; it is damaged or incomplete"),
        (
            damaged(lambda tensors: tensors.pop("language_model.model.norm_moe_gen.weight")),
            "does not hold a model of the original SoundOmni",
        ),
        (damaged(lambda tensors: tensors.pop(DEEP)), f"lacks 1 tensor that its config asks for ({DEEP})"),
        (damaged(lambda tensors: tensors.update({DEEP: torch.ones(21, 32)})), f"{DEEP} is [21, 32]; its config says [20, 32]"),
        (damaged(lambda tensors: tensors.update({"vit_model.x": torch.ones(2)})), "that a model of the original SoundOmni does not have"),
        (
            damaged(lambda tensors: tensors.update({"gen_pos_embed": torch.ones(9, 32)})),
            "gen_pos_embed [9, 32] is not the original's table",
        ),
        (damaged(lambda tensors: tensors.pop("audiovae2llm.weight")), "lacks audiovae2llm.weight: it cannot generate audio"),
        (
            damaged(lambda tensors: tensors.update({"audiovae2llm.weight": torch.ones(32, 64)})),
            "makes latents of 64 dimensions, but the codec mdct has 16",
        ),
        (damaged(lambda tensors: tensors.update({EMBEDDING: torch.tensor(1.0)})), f"{EMBEDDING} is []; expected 2 dimensions"),
        (damaged(lambda tensors: tensors.update({"audio_encoder.conv1.weight": torch.ones(3)})), "is [3]; expected 3 dimensions"),
        (damaged(lose_a_layer), "holds 1 layers of language_model.model; its config says 2"),
        (lambda source: (source / "config.json").unlink(), "does not have the sizes of Qwen2-Audio-7B; name the directory"),
        (lambda source: edit_json(source / "config.json", audio_config=None), "an audio tower of width 16; the config"),
        (lambda source: edit_json(source / "config.json", text_config__num_attention_heads=8), "its config says"),
        (lambda source: edit_json(source / "config.json", text_config__model_type="llama"), "model_type is 'llama'"),
        (lambda source: (source / "tokenizer.json").unlink(), "no tokenizer.json in"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, damage: Callable[[Path], Any], told: str) -> None:
    source = write_original(tmp_path / "source", original())
    damage(source)
    with pytest.raises(SoundOmniError) as caught:
        import_soundomni(source, overrides=CODEC)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_checkpoints_of_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="lacks audiovae2llm"):
        import_soundomni(write_bagel(tmp_path / "bagel", bagel()) / "ema.safetensors", overrides=CODEC)
    with pytest.raises(CheckpointError, match="that a BAGEL model for audio does not have"):
        import_bagel(write_original(tmp_path / "original", original()), overrides=CODEC)
    with pytest.raises(CheckpointError, match="holds several weight files"):
        source = write_bagel(tmp_path / "other", bagel())
        (source / "ema.safetensors").rename(source / "last.safetensors")
        import_bagel(source)
    with pytest.raises(CheckpointError, match=r"no llm_config\.json in"):
        import_bagel(write(tmp_path / "bare", bagel(), name="ema.safetensors", config=None, config_name=""))


def test_norms_in_the_understanding_expert_alone_are_refused(tmp_path: Path) -> None:
    tensors = bagel()
    for name in [name for name in tensors if "_norm_moe_gen" in name and "self_attn" in name]:
        del tensors[name]
    with pytest.raises(CheckpointError, match="q/k norms only in its understanding expert"):
        import_bagel(write_bagel(tmp_path / "source", tensors))


def test_a_codec_without_weights_is_not_taken_for_the_vae(tmp_path: Path) -> None:
    source = write_original(tmp_path / "source", original())
    with pytest.raises(CheckpointError, match=r"makes latents of 16 dimensions, but the codec oobleck has 64; name the codec"):
        import_soundomni(source)
    with pytest.raises(CheckpointError, match=r"no VAE, and the codec oobleck has no weights; name the codec .*--config codec\.yaml"):
        import_soundomni(source, overrides=[("model.codec", "oobleck"), ("model.codec.latent_dim", "16")])


def test_sizes_of_the_original_run_need_no_config(tmp_path: Path) -> None:
    from soundomni.experts.checkpoints.original_import import QWEN2_AUDIO_7B, _known

    with torch.device("meta"):
        at, wide = "language_model.model.layers.", torch.empty(4096, 4096)
        shapes = {f"{at}{i}.self_attn.{x}_proj.weight": wide for i in range(32) for x in "qk"}
        shapes[f"{at}0.mlp.gate_proj.weight"] = torch.empty(11008, 4096)

    class Weights(dict[str, Tensor]):
        path = tmp_path

        def shape(self, name: str) -> tuple[int, ...]:
            return tuple(self[name].shape)

    assert _known(Weights(shapes), tmp_path) is QWEN2_AUDIO_7B  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value"), [("model.backbone.hidden_dim", "64"), ("model.normalize", "global"), ("model.objective", "x-prediction")]
)
def test_layers_may_not_contradict_the_checkpoint(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(SpecError, match="a layer changes what the checkpoint determines"):
        import_soundomni(write_original(tmp_path / "source", original()), overrides=[*CODEC, (key, value)])


def test_what_the_original_lacks_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"model\.connectors\.latent is 'fourier', but the original SoundOmni only has 'linear'"):
        export_soundomni(SoundOmni.from_pretrained("nano"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_config_of_the_export_reads_as_json(tmp_path: Path) -> None:
    omni = loaded(import_soundomni(write_original(tmp_path / "source", original()), overrides=CODEC), tmp_path / "out")
    export_soundomni(omni, tmp_path / "out")
    tree = json.loads((tmp_path / "out" / "config.json").read_text())
    assert tree["text_config"]["gen_intermediate_size"] == 20 and tree["audio_config"]["encoder_attention_heads"] == 4
