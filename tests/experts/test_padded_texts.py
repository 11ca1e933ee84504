"""Texts with padding: T5 and T5Gemma against transformers and stable-audio-tools, and what they refuse."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from t5_files import change_config, peer_tokenizer, tiny_t5, tiny_t5gemma
from torch import Tensor
from torch._subclasses import FakeTensorMode

from soundomni.core.errors import CheckpointError, DataError, SpecError
from soundomni.core.interfaces import Encoder
from soundomni.experts import T5Encoder, T5GemmaEncoder
from soundomni.train.memory.activations import placed

TEXTS = ["zero one", "five", "one two three four five"]
WIDTH = 6


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def t5gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_t5gemma(tmp_path_factory.mktemp("t5gemma"))


def encoded(encoder: Encoder, texts: list[str]) -> Tensor:
    """Features `[B, T, F]` of texts in one batch, with values that are not numbers beyond each text."""
    values = [encoder.read(text) for text in texts]
    lengths = torch.tensor([one.shape[1] for one in values])
    batch = torch.full((len(texts), 1, int(lengths.max())), math.nan)
    for row, one in zip(batch, values, strict=True):
        row[:, : one.shape[1]] = torch.from_numpy(one)
    features: Tensor = encoder(batch, lengths)
    return features


def padded(folder: Path, texts: list[str]) -> dict[str, Tensor]:
    """Ids and mask as transformers writes them."""
    tokenizer = peer_tokenizer(folder)
    made = tokenizer(texts, padding="max_length", truncation=True, max_length=WIDTH, return_tensors="pt", return_token_type_ids=False)
    return {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}


@torch.no_grad()
def test_t5_is_padded_with_zeros(t5: Path) -> None:
    from transformers import T5EncoderModel

    given = padded(t5, TEXTS)
    hidden = T5EncoderModel.from_pretrained(t5).eval()(**given).last_hidden_state
    found = encoded(T5Encoder(name=str(t5), pad_to=WIDTH), TEXTS)
    torch.testing.assert_close(found, hidden * given["attention_mask"][..., None], rtol=0, atol=1e-6)
    assert not found[1, 2:].any() and found[1, :2].all()


def test_t5_is_that_of_stable_audio_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stable_audio_tools.models import conditioners

    folder = tiny_t5(tmp_path)
    weights = {name: one.half().float() for name, one in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})  # it rounds them to float16
    monkeypatch.setattr(conditioners.T5Conditioner, "T5_MODELS", [str(folder)])
    monkeypatch.setattr(conditioners.T5Conditioner, "T5_MODEL_DIMS", {str(folder): 8})
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda name: peer_tokenizer(Path(name)))
    peer = conditioners.T5Conditioner(output_dim=8, t5_model_name=str(folder), max_length=WIDTH)
    peer.model.float()
    texts = [*TEXTS, "", "one two three four five one two three"]
    with pytest.warns(FutureWarning, match="autocast"):
        wanted, _ = peer(texts, "cpu")
    found = encoded(T5Encoder(name=str(folder), pad_to=WIDTH, truncate=True), texts)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_a_text_that_is_too_long_is_refused_or_cut_before_its_end(t5: Path) -> None:
    text = "one two three four five"
    encoder = T5Encoder(name=str(t5), pad_to=4)
    with pytest.raises(DataError, match="the text has 6 tokens .*; expected 0 to 4. Shorten the text, or raise pad_to"):
        encoder.read(text)
    cut = T5Encoder(name=str(t5), pad_to=4, truncate=True)
    assert cut.read(text).tolist() == [[4, 5, 6, 1]] and cut.num_tokens(2) == 4
    assert torch.equal(encoded(cut, [text]), encoded(encoder, ["one two three"]))


def test_padding_is_a_whole_number_and_truncation_needs_it(t5: Path) -> None:
    for arguments, expected in (
        ({"truncate": True}, "t5: truncate is true, but pad_to is null. Set pad_to too, or leave truncate out"),
        ({"pad_to": 0}, "pad_to is 0; expected at least 1"),
        ({"pad_to": 600}, "t5: pad_to is 600; expected at most max_tokens, which is 512. Raise max_tokens"),
        ({"pad_to": 5000, "max_tokens": 5000}, "max_tokens is 5000; expected at most 4,096"),
        ({"pad_to": 1, "truncate": True}, "pad_to, without the tokens that mark the ends of a text, is 0; expected at least 1"),
    ):
        with pytest.raises(SpecError) as raised:
            T5Encoder(name=str(t5), **arguments)
        assert str(raised.value) == expected


def t5gemma_peer(folder: Path) -> Any:
    from transformers import AutoConfig, T5GemmaEncoderModel

    config = AutoConfig.from_pretrained(folder)
    config.is_encoder_decoder = False
    return T5GemmaEncoderModel.from_pretrained(folder, config=config).eval()


@torch.no_grad()
def test_t5gemma_is_that_of_transformers_with_an_embedding_in_place_of_padding(t5gemma: Path) -> None:
    given = padded(t5gemma, TEXTS)
    hidden = t5gemma_peer(t5gemma)(**given).last_hidden_state
    encoder = T5GemmaEncoder(name=str(t5gemma), pad_to=WIDTH)
    assert encoder.padding is not None
    found = encoded(encoder, TEXTS)
    torch.testing.assert_close(found, torch.where(given["attention_mask"][..., None] > 0, hidden, encoder.padding), rtol=0, atol=1e-6)
    bare = encoded(T5GemmaEncoder(name=str(t5gemma)), TEXTS)
    for row, wanted, inside in zip(bare, found, given["attention_mask"].bool(), strict=True):
        torch.testing.assert_close(row[inside[: len(row)]], wanted[inside])


def test_only_the_padding_of_t5gemma_is_trained_and_saved(t5gemma: Path) -> None:
    encoder = T5GemmaEncoder(name=str(t5gemma), pad_to=WIDTH)
    encoded(encoder, TEXTS)[1].sum().backward()
    assert list(encoder.state_dict()) == ["padding"]
    assert torch.equal(encoder.padding.grad, torch.full((8,), 5.0))
    assert not T5GemmaEncoder(name=str(t5gemma)).state_dict()


def test_memory_is_measured_without_ids_and_weights(t5gemma: Path) -> None:
    encoder = T5GemmaEncoder(name=str(t5gemma), pad_to=WIDTH)
    cpu = torch.device("cpu")
    with FakeTensorMode(allow_non_fake_inputs=True), placed(encoder.modules(), cpu, None):
        features = encoder(torch.empty(2, 1, 4), torch.empty(2, dtype=torch.int64))
    assert features.shape == (2, WIDTH, 8) and features.requires_grad and not encoder._network


def test_an_empty_text_without_an_end_is_only_padding(t5gemma: Path) -> None:
    encoder = T5GemmaEncoder(name=str(t5gemma), pad_to=3)
    empty, full = encoded(encoder, ["", "one two three"])
    assert torch.equal(empty, encoder.padding.expand(3, 8)) and not (full == encoder.padding).any()
    with pytest.raises(DataError, match="the text has 0 tokens .*; expected 1 to 512"):
        T5GemmaEncoder(name=str(t5gemma)).read("")


def test_tokens_that_are_spelled_as_padding_are_text(t5gemma: Path) -> None:
    peer = t5gemma_peer(t5gemma)
    ids = torch.tensor([[4, 0, 5]])
    with torch.no_grad():
        wanted = peer(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    torch.testing.assert_close(encoded(T5GemmaEncoder(name=str(t5gemma)), ["zero <pad> one"]), wanted)


def test_older_configs_have_the_base_of_positions_next_to_the_sizes(t5gemma: Path, tmp_path: Path) -> None:
    folder = tiny_t5gemma(tmp_path)
    config = json.loads((folder / "config.json").read_text())["encoder"]
    assert config["rope_parameters"] == {"rope_theta": 10000.0, "rope_type": "default"}
    change_config(folder, encoder={"rope_parameters": None, "rope_theta": 10000.0})
    wanted, found = (encoded(T5GemmaEncoder(name=str(one)), TEXTS) for one in (t5gemma, folder))
    assert torch.equal(wanted, found)
    change_config(folder, encoder={"rope_theta": 10.0})
    assert not torch.allclose(wanted, encoded(T5GemmaEncoder(name=str(folder)), TEXTS), atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "t5"}, "t5gemma: '.*' has a config of model_type 't5'; expected t5gemma"),
        ({"encoder": []}, "the config of '.*', encoder is ..; expected that of a T5Gemma model"),
        ({"encoder": {"num_attention_heads": 3}}, "hidden_size is 8; expected a multiple of num_attention_heads, which is 3"),
        ({"encoder": {"head_dim": 3}}, "head_dim is 3; expected a multiple of 2"),
        ({"encoder": {"num_hidden_layers": 3}}, "layer_types has 2 entries; expected num_hidden_layers, which is 3"),
        ({"encoder": {"num_hidden_layers": 10**9}}, "num_hidden_layers is 1000000000; expected at most 256"),
        ({"encoder": {"rope_parameters": {"rope_type": "yarn"}}}, "rope_parameters.rope_type"),
        ({"encoder": {"hidden_activation": "relu"}}, "hidden_activation"),
    ],
)
def test_configs_that_cannot_be_are_refused_in_one_line(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    folder = change_config(tiny_t5gemma(tmp_path), **changes)
    with pytest.raises(SpecError, match=expected) as raised:
        T5GemmaEncoder(name=str(folder))
    assert "\n" not in str(raised.value)


def test_a_pickle_among_the_shards_is_refused(tmp_path: Path) -> None:
    folder = tiny_t5gemma(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "model.bin").write_bytes(b"never unpickled")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "model.bin")}))
    with pytest.raises(CheckpointError, match="keeps weights in model.bin; expected only .safetensors files"):
        encoded(T5GemmaEncoder(name=str(folder)), TEXTS)


def test_sizes_that_do_not_fit_the_weights_take_no_memory(tmp_path: Path) -> None:
    folder = change_config(tiny_t5gemma(tmp_path), encoder={"vocab_size": 2**20, "intermediate_size": 2**16, "head_dim": 2**14})
    with pytest.raises(CheckpointError, match=r"has the shape \[10, 8\]; expected \[1048576, 8\], as its config says"):
        encoded(T5GemmaEncoder(name=str(folder)), TEXTS)
