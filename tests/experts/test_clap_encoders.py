"""CLAP as an encoder of texts and of clips, against transformers itself, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from t5_files import change_config
from tiny_networks import CLAP_RATE, save_tiny_clap
from torch import Tensor

from soundomni.core.errors import CheckpointError, DataError, SpecError
from soundomni.experts import ClapAudioEncoder, ClapTextEncoder

TEXTS = ["rain", "a dog barks", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clap(tmp_path_factory.mktemp("clap"))


@pytest.fixture(scope="module")
def peer(folder: Path) -> Any:
    from transformers import ClapModel

    return ClapModel.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    from transformers import ClapProcessor

    return ClapProcessor.from_pretrained(folder)


def read(encoder: ClapTextEncoder, texts: list[str]) -> Tensor:
    """Features `[B, T, F]` of texts in one batch, with values that are not numbers beyond each text."""
    values = [torch.from_numpy(encoder.read(text)) for text in texts]
    lengths = torch.tensor([one.shape[1] for one in values])
    batch = torch.full((len(texts), 1, int(lengths.max())), math.nan)
    for row, one in zip(batch, values, strict=True):
        row[:, : one.shape[1]] = one
    features: Tensor = encoder(batch, lengths)
    return features


def heard(encoder: ClapAudioEncoder, clips: list[Tensor]) -> Tensor:
    """Features `[B, 1, F]` of clips `[S]` in one batch, with values that are not numbers beyond each clip."""
    batch = torch.full((len(clips), 1, max(map(len, clips))), math.nan)
    for row, clip in zip(batch, clips, strict=True):
        row[0, : len(clip)] = clip
    features: Tensor = encoder(batch, torch.tensor([len(clip) for clip in clips]))
    return features


@torch.no_grad()
def test_a_text_is_one_embedding(folder: Path, peer: Any, processor: Any) -> None:
    encoder = ClapTextEncoder(name=str(folder))
    assert encoder.spec.feature_dim == 16 and encoder.num_tokens(7) == 1
    wanted = [peer.get_text_features(**processor.tokenizer(text, return_tensors="pt")).pooler_output for text in TEXTS]
    torch.testing.assert_close(read(encoder, TEXTS), torch.stack(wanted), rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("layer", [-2, -1, 0, 1])
def test_a_text_is_the_hidden_states_of_a_layer(layer: int, folder: Path, peer: Any, processor: Any) -> None:
    padded = processor.tokenizer(TEXTS, padding="max_length", max_length=8, truncation=True, return_tensors="pt")
    wanted = peer.text_model(**padded, output_hidden_states=True).hidden_states[layer]
    encoder = ClapTextEncoder(name=str(folder), features="hidden", layer=layer, pad_to=8, truncate=True)
    torch.testing.assert_close(read(encoder, TEXTS), wanted, rtol=0, atol=1e-6)
    bare = ClapTextEncoder(name=str(folder), features="hidden", layer=layer)
    assert bare.num_tokens(6) == 6
    torch.testing.assert_close(read(bare, TEXTS)[0, :6], wanted[0, :6])


@torch.no_grad()
def test_hidden_states_are_those_of_roberta_which_stable_audio_tools_runs(folder: Path, peer: Any, processor: Any) -> None:
    from transformers import RobertaConfig, RobertaModel

    shared = {key: value for key, value in peer.config.text_config.to_dict().items() if key in RobertaConfig().to_dict()}
    roberta = RobertaModel(RobertaConfig(**{**shared, "model_type": "roberta"})).eval()
    roberta.load_state_dict({k: v for k, v in peer.text_model.state_dict().items() if k in roberta.state_dict()})
    padded = processor.tokenizer(TEXTS, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    wanted = roberta(**padded).last_hidden_state
    encoder = ClapTextEncoder(name=str(folder), features="hidden", layer=-1, pad_to=16)
    torch.testing.assert_close(read(encoder, TEXTS), wanted, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("num_samples", [1, 300, 3000, CLAP_RATE, CLAP_RATE + 1, 2 * CLAP_RATE])
def test_a_clip_is_repeated_or_cut_as_transformers_does(num_samples: int, folder: Path, peer: Any, processor: Any) -> None:
    clip = 0.3 * torch.randn(num_samples, generator=torch.Generator().manual_seed(0))
    given = processor.feature_extractor(clip[:CLAP_RATE].numpy(), sampling_rate=CLAP_RATE, return_tensors="pt")["input_features"]
    wanted = peer.get_audio_features(input_features=given.float(), is_longer=torch.zeros(1, 1, dtype=torch.bool)).pooler_output
    encoder = ClapAudioEncoder(name=str(folder))
    assert encoder.spec.sample_rate == CLAP_RATE and encoder.num_tokens(num_samples) == 1
    together = heard(encoder, [clip, torch.zeros(40)])
    torch.testing.assert_close(together[:1], wanted[None], rtol=0, atol=1e-6)


def test_they_are_frozen_and_not_part_of_a_model(folder: Path) -> None:
    clip = torch.zeros(9)
    for encoder, run in ((ClapTextEncoder(name=str(folder)), lambda one: read(one, TEXTS)), (ClapAudioEncoder(name=str(folder)), None)):
        found = run(encoder) if run else heard(encoder, [clip])
        assert not encoder.state_dict() and not found.requires_grad
        assert not any(parameter.requires_grad or parameter.dtype != torch.float32 for parameter in encoder._network[0].parameters())


def test_both_lie_in_one_space(folder: Path) -> None:
    text, clip = read(ClapTextEncoder(name=str(folder)), ["rain"]), heard(ClapAudioEncoder(name=str(folder)), [torch.ones(9)])
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(1, 1))
    assert text.shape == clip.shape == (1, 1, 16)


def test_a_text_that_is_too_long_is_refused_or_cut_before_its_end(folder: Path) -> None:
    assert ClapTextEncoder(name=str(folder)).most_tokens == 64
    with pytest.raises(DataError, match="the text has 102 tokens .*; expected 1 to 64"):
        ClapTextEncoder(name=str(folder)).read("x" * 100)
    cut = ClapTextEncoder(name=str(folder), features="hidden", pad_to=5, truncate=True).read("x" * 100)
    assert cut.shape == (1, 5) and cut[0, -1] == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"layer": 2}, "clap-text: layer is 2; expected -2 to 1, because '.*' has 1 layers"),
        ({"max_tokens": 65}, "max_tokens is 65; expected at most 64, because '.*' has no more positions"),
        ({"pad_to": 65, "features": "hidden"}, "clap-text: pad_to is 65; expected at most max_tokens, which is 64"),
        ({"pad_to": 9}, "pad_to is set, but features is 'pooled', which is one token. Set features to 'hidden'"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments: dict[str, Any], expected: str, folder: Path) -> None:
    with pytest.raises(SpecError, match=expected):
        ClapTextEncoder(name=str(folder), **arguments)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "t5"}, "clap-audio: '.*' has a config of model_type 't5'; expected clap"),
        ({"audio_config": {"enable_fusion": True}}, "enable_fusion is true; expected false. Use a model without fusion, such as laion"),
        ({"audio_config": {"depths": [1]}}, "depths has 1 entries and num_attention_heads 2; expected as many"),
        ({"audio_config": {"spec_size": 0}}, "spec_size is 0; expected at least 1"),
        ({"audio_config": None}, "the config of '.*', audio_config is None; expected that of a CLAP model"),
    ],
)
def test_configs_of_audio_that_cannot_be_are_refused(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    folder = change_config(save_tiny_clap(tmp_path), **changes)
    with pytest.raises(SpecError, match=expected) as raised:
        ClapAudioEncoder(name=str(folder))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"truncation": "fusion"}, "truncation"),
        ({"padding": "pad"}, "padding"),
        ({"hop_length": 0}, "hop_length is 0; expected at least 1"),
        ({"max_length_s": 10**9}, "max_length_s is 1000000000; expected at most 600"),
        ({"frequency_max": 5000}, "expected a band within 0 and half the sampling_rate, 4000"),
        ({"fft_window_size": 2**15}, "fft_window_size is 32768; expected less than twice the 8000 samples of a clip"),
    ],
)
def test_hearing_that_cannot_be_is_refused(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    folder = save_tiny_clap(tmp_path)
    hearing = json.loads((folder / "processor_config.json").read_text())["feature_extractor"]
    (folder / "processor_config.json").unlink()
    with pytest.raises(SpecError, match="clap-audio: '.*' lacks preprocessor_config.json"):
        ClapAudioEncoder(name=str(folder))
    (folder / "preprocessor_config.json").write_text(json.dumps(hearing))
    assert ClapAudioEncoder(name=str(folder)).spec.sample_rate == CLAP_RATE
    (folder / "preprocessor_config.json").write_text(json.dumps({**hearing, **changes}))
    with pytest.raises(SpecError, match=expected) as raised:
        ClapAudioEncoder(name=str(folder))
    assert "\n" not in str(raised.value)


def test_configs_of_texts_that_cannot_be_are_refused(tmp_path: Path) -> None:
    folder = save_tiny_clap(tmp_path)
    for changes, expected in (
        ({"num_attention_heads": 3}, r"hidden_size is 16; expected a multiple of num_attention_heads \(3\)"),
        ({"num_attention_heads": 2, "pad_token_id": 65}, "pad_token_id is 65; expected the id of a token"),
        ({"pad_token_id": 1, "hidden_act": "evil"}, "hidden_act"),
    ):
        change_config(folder, text_config=changes)
        with pytest.raises(SpecError, match=expected):
            ClapTextEncoder(name=str(folder))


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    folder = save_tiny_clap(tmp_path)
    weights = load_file(folder / "model.safetensors")
    for name in ("text_projection.linear1.weight", "audio_model.audio_encoder.batch_norm.running_var"):
        save_file({key: one for key, one in weights.items() if key != name}, folder / "model.safetensors", metadata={"format": "pt"})
        is_text = name.startswith("text")
        with pytest.raises(CheckpointError, match=f"lacks the tensor '{name}'; expected the weights of a CLAP model"):
            read(ClapTextEncoder(name=str(folder)), TEXTS) if is_text else heard(ClapAudioEncoder(name=str(folder)), [torch.zeros(9)])


def test_a_tokenizer_is_only_needed_for_texts(tmp_path: Path) -> None:
    folder = save_tiny_clap(tmp_path)
    (folder / "tokenizer.json").unlink()
    assert heard(ClapAudioEncoder(name=str(folder)), [torch.zeros(9)]).isfinite().all()
    with pytest.raises(SpecError, match="clap-text: .* lacks tokenizer.json; expected a CLAP model"):
        ClapTextEncoder(name=str(folder))
