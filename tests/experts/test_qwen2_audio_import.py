"""An imported Qwen2-Audio against transformers: logits, greedy text, and every tensor where it belongs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qwen2_audio_files import LIMIT, RATE, SPECIALS, VOCAB, edit_json, model, processor, rename, tokenizer, write
from safetensors.torch import load_file, save_file
from transformers import Qwen2AudioForConditionalGeneration

from soundomni.core.errors import CheckpointError, DataError, SpecError
from soundomni.core.inference.decoding import sample_text
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.sequence import PackedBatch, Role, Sample, context_length, plain_segment
from soundomni.core.waveform import Audio
from soundomni.core.writing.chat import DESCRIBE
from soundomni.experts.checkpoints.language_import import write_imported
from soundomni.experts.checkpoints.qwen2_audio_import import import_qwen2_audio

PROCESSOR = processor()
CHAT = [
    {"role": "user", "content": [{"type": "audio", "audio_url": "a"}, {"type": "text", "text": "What can be heard?"}]},
    {"role": "assistant", "content": "A dog."},
    {
        "role": "user",
        "content": [{"type": "text", "text": "à"}, {"type": "audio", "audio_url": "b"}, {"type": "text", "text": "and here?\n"}],
    },
]
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "every-head": {"num_key_value_heads": 4, "rms_norm_eps": 1e-3},
    "wide-heads": {"head_dim": 12, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
}


def noise(seed: int, samples: int) -> np.ndarray:
    return (0.3 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


CLIPS = [noise(0, 12_345), noise(1, LIMIT)]


def imported(source: Path, out: Path, **given: Any) -> SoundOmni:
    out.mkdir()
    write_imported(import_qwen2_audio(source, **given), out)
    return SoundOmni.from_pretrained(out)


def inputs(messages: list[Any], clips: list[np.ndarray]) -> Any:
    text = PROCESSOR.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False, chat_template=PROCESSOR.default_chat_template
    )
    return PROCESSOR(text=text, audio=clips, sampling_rate=RATE, return_tensors="pt")


def generated(theirs: Qwen2AudioForConditionalGeneration, messages: list[Any], clips: list[np.ndarray], count: int) -> list[int]:
    given = inputs(messages, clips)
    ids: list[int] = theirs.generate(**given, do_sample=False, max_new_tokens=count)[0, given.input_ids.shape[1] :].tolist()
    return ids


@torch.no_grad()
def logits(omni: SoundOmni, messages: list[Any], clips: list[np.ndarray]) -> dict[Role, torch.Tensor]:
    """Of text and of features, in token order."""
    context = (*omni.contexts.chat(messages, [Audio(clip[None], RATE) for clip in clips]), plain_segment(omni.contexts.opening()))
    batch, net = PackedBatch.from_samples([Sample("chat", context)]), omni.model
    layout = net.plan(batch.table)
    blocks = {Role.TEXT: net.backbone.embed(batch.text_ids), Role.FEATURES: net.all_heard[0].enter(batch.of("features")).hidden}
    streams, _ = net.backbone(layout.place(blocks, net.backbone.hidden_dim), layout)
    return {role: net.backbone.head(layout.take(streams, role)) for role in (Role.TEXT, Role.FEATURES)}


def assert_same_logits(omni: SoundOmni, theirs: Qwen2AudioForConditionalGeneration) -> None:
    given = inputs(CHAT, CLIPS)
    with torch.no_grad():
        expected = theirs(**given).logits[0]
    heard = given.input_ids[0] == theirs.config.audio_token_id
    ours = logits(omni, CHAT, CLIPS)
    columns = expected.shape[1]
    torch.testing.assert_close(ours[Role.TEXT][:, :columns], expected[~heard], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[Role.FEATURES][:, :columns], expected[heard], rtol=1e-5, atol=1e-5)
    assert expected.abs().max() > 1


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("layout", ["as-saved", "transformers 4", "transformers 5", "shards"])
def test_logits_and_greedy_text_equal_those_of_transformers(tmp_path: Path, layout: str, variant: str) -> None:
    theirs = model(**VARIANTS[variant])
    source = write(tmp_path / "source", theirs, shard="60KB" if layout == "shards" else "5GB")
    if layout.startswith("transformers"):
        rename(source, version=int(layout[-1]))
        assert import_qwen2_audio(source).layout == layout
    assert (source / "model.safetensors.index.json").exists() == (layout == "shards")
    omni = imported(source, tmp_path / "out")
    assert_same_logits(omni, theirs)
    context = omni.contexts.chat(CHAT, [Audio(clip[None], RATE) for clip in CLIPS])
    (ours,) = sample_text(omni.model, [context], tokenizer=omni.tokenizer, max_new_tokens=20, opening=omni.contexts.opening())
    assert ours == generated(theirs, CHAT, CLIPS, 20)


def test_describe_and_chat_write_what_generate_does_and_end_where_it_ends(tmp_path: Path) -> None:
    """The row of the head of a token that comes up is given to one that ends texts, so that both must stop there."""
    theirs = model()
    question = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": DESCRIBE}]}]
    wished = generated(theirs, question, [CLIPS[0]], 12)
    for end in ("<|im_end|>", "<|endoftext|>"):
        theirs = model()
        rows = [wished[6], PROCESSOR.tokenizer.convert_tokens_to_ids(end)]
        with torch.no_grad():
            theirs.lm_head.weight[rows] = theirs.lm_head.weight[rows[::-1]]
        omni = imported(write(tmp_path / f"source{rows[1]}", theirs), tmp_path / f"out{rows[1]}")
        expected = [generated(theirs, question, [clip], 12) for clip in CLIPS]
        assert expected[0][-1] == rows[1] and len(expected[0]) < 12
        texts = [PROCESSOR.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in expected]
        clips = [Audio(clip[None], RATE) for clip in CLIPS]
        assert omni.describe(clips, max_new_tokens=12) == texts
        assert omni.chat(question, clips[:1], max_new_tokens=12) == texts[0]


def test_every_tensor_of_the_source_is_used_bit_for_bit_in_its_own_precision(tmp_path: Path) -> None:
    source = write(tmp_path / "source", model().to(torch.bfloat16))
    out = tmp_path / "out"
    out.mkdir()
    report = write_imported(import_qwen2_audio(source), out)
    theirs, ours = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    assert report["keys"]["used"].keys() == theirs.keys() and report["keys"]["unused"] == {}
    for parameter in set(report["keys"]["used"].values()):
        parts = [theirs[name] for name, place in report["keys"]["used"].items() if place == parameter]
        assert ours[parameter].dtype == torch.bfloat16 and torch.equal(ours[parameter], torch.cat(parts)), parameter
    assert ours["modalities.latent.connector.inward.weight"].dtype == torch.float32
    assert next(SoundOmni.from_pretrained(out).model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("width", [None, 36, 20, 7])
def test_the_generation_expert_starts_as_copy_streams_says(tmp_path: Path, width: int | None) -> None:
    overrides = [("model.backbone.qk_norm", "gen")]
    overrides += [] if width is None else [("model.backbone.gen_intermediate_dim", str(width))]
    omni = imported(write(tmp_path / "source", model()), tmp_path / "out", overrides=overrides)
    backbone = omni.model.backbone
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with torch.no_grad():
        for parameter in backbone.expert_parameters("gen"):
            parameter.fill_(9.0)
        for layer in backbone.blocks:
            for norm in (layer.experts["gen"].q_norm, layer.experts["gen"].k_norm):
                norm.reset_parameters()
    backbone.copy_streams()
    assert before["blocks.0.experts.gen.mlp.down.weight"].shape[1] == (width or 36)
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert_same_logits(omni, model())


def test_new_special_tokens_leave_old_rows_as_they_are(tmp_path: Path) -> None:
    few = ("<|endoftext|>", "<|AUDIO|>")
    size = tokenizer(few).get_vocab_size()
    theirs = model(vocab_size=size)
    theirs.config.audio_token_id = theirs.config.audio_token_index = size - 1
    source, out = write(tmp_path / "source", theirs, specials=few), tmp_path / "out"
    omni = imported(source, out)
    assert omni.tokenizer.bos == size and omni.tokenizer.audio_eos == size + 3 and omni.model.backbone.embedding.num_embeddings == size + 4
    for name, weight in (("embedding.weight", theirs.model.language_model.embed_tokens.weight), ("lm_head.weight", theirs.lm_head.weight)):
        rows = omni.model.backbone.state_dict()[name]
        assert torch.equal(rows[:size], weight)
        torch.testing.assert_close(rows[size:], weight.detach().mean(0).expand(4, -1))
    assert any("<|im_start|>, <|im_end|>, <|audio_bos|>, <|audio_eos|>" in note for note in import_qwen2_audio(source).notes)
    with torch.no_grad():  # what the old tokens compute has not changed
        ids = torch.arange(40)
        batch = PackedBatch.from_samples([Sample("x", (plain_segment(ids.numpy()),))])
        layout = omni.model.plan(batch.table)
        streams, _ = omni.model.backbone(layout.place({Role.TEXT: omni.model.backbone.embed(ids)}, 32), layout)
        ours = omni.model.backbone.head(layout.take(streams, Role.TEXT))[:, :size]
        torch.testing.assert_close(ours, theirs(input_ids=ids[None]).logits[0], rtol=1e-5, atol=1e-5)


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    theirs = model()
    source = rename(write(tmp_path / "source", theirs), version=4)
    tensors = load_file(source / "model.safetensors")
    del tensors["language_model.lm_head.weight"]
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks 1 tensor that its config asks for \(language_model\.lm_head\.weight\)"):
        import_qwen2_audio(source)
    edit_json(source / "config.json", text_config__tie_word_embeddings=True)
    omni = imported(source, tmp_path / "out")
    theirs.lm_head.weight = theirs.model.language_model.embed_tokens.weight
    assert_same_logits(omni, theirs)


def test_both_spellings_of_theta_are_read(tmp_path: Path) -> None:
    source = write(tmp_path / "source", model())
    edit_json(source / "config.json", text_config__rope_parameters=None, text_config__rope_theta=123.0)
    assert import_qwen2_audio(source).spec.model.backbone.init_args["rope_theta"] == 123.0
    edit_json(
        source / "config.json", text_config__rope_parameters={"rope_theta": 5.0, "rope_type": "default"}, text_config__rope_theta=None
    )
    assert import_qwen2_audio(source).spec.model.backbone.init_args["rope_theta"] == 5.0
    edit_json(source / "config.json", text_config__rope_theta=6.0)
    with pytest.raises(CheckpointError, match="rope_theta is both 5 and 6"):
        import_qwen2_audio(source)
    edit_json(source / "config.json", text_config__rope_theta=None, text_config__rope_parameters={"rope_type": "yarn", "rope_theta": 5.0})
    with pytest.raises(CheckpointError, match="rope_type is 'yarn'; only 'default' can be imported"):
        import_qwen2_audio(source)


def test_a_sparse_config_means_the_defaults_of_transformers(tmp_path: Path) -> None:
    """The published config leaves most sizes out; theirs are what transformers takes them to be."""
    from transformers import Qwen2AudioConfig

    from soundomni.experts.checkpoints.qwen2_audio_config import read_source_config

    (tmp_path / "config.json").write_text('{"model_type": "qwen2_audio", "text_config": {"model_type": "qwen2"}}')
    ours, theirs = read_source_config(tmp_path), Qwen2AudioConfig.from_pretrained(tmp_path)
    text, audio = theirs.text_config, theirs.audio_config
    sizes = ours.language
    assert (sizes.hidden_dim, sizes.num_layers, sizes.num_heads) == (text.hidden_size, text.num_hidden_layers, text.num_attention_heads)
    assert (sizes.num_kv_heads, sizes.intermediate_dim, sizes.vocab_size) == (
        text.num_key_value_heads,
        text.intermediate_size,
        text.vocab_size,
    )
    assert (sizes.rope_theta, sizes.norm_eps) == (text.rope_parameters["rope_theta"], text.rms_norm_eps)
    assert (sizes.max_tokens, sizes.tied) == (text.max_position_embeddings, text.tie_word_embeddings)
    assert list(ours.encoder.values()) == [
        *(audio.num_mel_bins, audio.d_model, audio.encoder_layers, audio.encoder_attention_heads, audio.encoder_ffn_dim),
        audio.max_source_positions,
    ]


def change(**changes: Any) -> Callable[[Path], None]:
    return lambda source: edit_json(source / "config.json", **changes)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (change(model_type="llama"), "model_type is 'llama'; expected 'qwen2_audio'"),
        (change(text_config__model_type="qwen3"), "model_type is 'qwen3'; only 'qwen2' can be imported"),
        (change(text_config__hidden_act="gelu"), "hidden_act is 'gelu'"),
        (change(text_config__layer_types=["sliding_attention"] * 2), "layer_types is"),
        (change(text_config__hidden_size=40), "embed_tokens.weight is [330, 32]; its config says [330, 40]"),
        (change(text_config__num_hidden_layers=10**9), "holds 2 layers of language_model.model; its config says 1000000000"),
        (change(text_config__num_hidden_layers=1), "holds 2 layers"),
        (change(text_config__num_attention_heads=0), "num_attention_heads is 0; expected a whole number above 0"),
        (change(audio_config__d_model=20), "multi_modal_projector.linear.weight is [32, 16]; its config says [32, 20]"),
        (change(text_config=[1]), "text_config is [1]; expected an object"),
        (lambda source: edit_json(source / "processor_config.json", feature_extractor__hop_length=320), "hop_length is 320; only 160"),
        (lambda source: (source / "tokenizer.json").unlink(), "no tokenizer.json in"),
        (lambda source: (source / "config.json").unlink(), "no config.json in"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, damage: Callable[[Path], None], told: str) -> None:
    source = write(tmp_path / "source", model())
    damage(source)
    with pytest.raises(CheckpointError) as caught:
        import_qwen2_audio(source)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_tensors_that_nothing_explains_are_refused_and_known_ones_listed(tmp_path: Path) -> None:
    source = write(tmp_path / "source", model())
    tensors = load_file(source / "model.safetensors")
    frequencies = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file(tensors | {frequencies: torch.ones(4)}, source / "model.safetensors")
    assert import_qwen2_audio(source).unused == {frequencies: "rotary frequencies, which follow from rope_theta"}
    save_file(tensors | {"visual.proj": torch.ones(4)}, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has 1 tensor that a Qwen2-Audio model does not have \(visual\.proj\)"):
        import_qwen2_audio(source)
    save_file({name: tensor.to(torch.int8) for name, tensor in tensors.items()}, source / "model.safetensors")
    with pytest.raises(
        CheckpointError, match="' is int8; expected float32, float16, bfloat16 or float64. Use weights that are not quantized"
    ):
        write_imported(import_qwen2_audio(source), tmp_path)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has ids up to 315, but the embedding has 300 rows"):
        import_qwen2_audio(write(tmp_path / "source", model(vocab_size=300)))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("model.backbone.hidden_dim", "64", "model.backbone.init_args.hidden_dim: 32 -> 64"),
        ("model.encoder", "log-mel", "model.encoder.class_path"),
        ("model.router", "dense", "model.router.class_path: 'modality' -> 'dense'"),
        ("model.feature_attend", "full", "model.feature_attend: 'causal' -> 'full'"),
        ("model.backbone.qk_norm", "all", "would change the language model's outputs"),
        ("model.backbone.gen_intermediate_dim", "37", "gen_intermediate_dim is 37; expected at most 36"),
    ],
)
def test_layers_may_not_contradict_the_checkpoint(tmp_path: Path, key: str, value: str, told: str) -> None:
    with pytest.raises(SpecError) as caught:
        import_qwen2_audio(write(tmp_path / "source", model()), overrides=[(key, value)])
    assert told in str(caught.value)


def test_audio_that_is_too_long_is_refused_and_never_cut(tmp_path: Path) -> None:
    omni = imported(write(tmp_path / "source", model(max_position_embeddings=90)), tmp_path / "out")
    long = Audio(noise(2, LIMIT + 1)[None], RATE)
    with pytest.raises(DataError, match=r"the clip lasts 1\.0 s; the encoder takes at most 1 s"):
        omni.chat(CHAT[:1], [long])
    with pytest.raises(DataError, match=r"take \d+ tokens, 27 of them clips; the model was trained with at most 90"):
        omni.chat([*CHAT[:1], {"role": "assistant", "content": "much more" * 20}], [Audio(CLIPS[1][None], RATE)])
    context = omni.contexts.chat(CHAT[:1], [Audio(CLIPS[1][None], RATE)])
    assert context_length(context) < 90 and omni.chat(CHAT[:1], [Audio(CLIPS[1][None], RATE)], max_new_tokens=200) is not None


def test_an_imported_model_learns_to_make_audio(tmp_path: Path) -> None:
    """The frozen understanding side stays as it is; the generation expert and the latent connector get gradients."""
    from soundomni.core.sequence import Attend, PositionRule, audio_segment, text_segment

    layer = [("model.codec.frame_size", "16"), ("model.freeze", "[und, embedding, encoder]"), ("model.normalize", "none")]
    omni = imported(write(tmp_path / "source", model()), tmp_path / "out", overrides=layer)
    target = audio_segment(
        role=Role.LATENT,
        attend=Attend.NOISE,
        num_frames=11,
        num_samples=160,
        boundary_ids=(omni.tokenizer.audio_bos, omni.tokenizer.audio_eos),
        positions=PositionRule.SHARED,
    ).with_waveform(noise(0, 160)[None])
    prompt = text_segment(omni.tokenizer.encode("a dog"), bos=omni.tokenizer.bos, eos=omni.tokenizer.eos)
    with torch.no_grad():
        omni.model.made().connector.outward.weight.normal_()
    total, count = omni.model(PackedBatch.from_samples([Sample("x", (prompt, target))]))["velocity"]
    (total / count).backward()
    learning = {name for name, parameter in omni.model.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert all(".gen." in name or name.startswith(("modalities.latent.connector.", "backbone.norms.gen")) for name in learning)
    assert any("gen.mlp.down" in name for name in learning) and any("latent.connector.inward" in name for name in learning)


def test_the_sizes_of_these_files_are_what_the_tests_suppose() -> None:
    assert tokenizer().get_vocab_size() == 310 + len(SPECIALS) < VOCAB
