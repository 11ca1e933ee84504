"""Encoders of texts and numbers: bytes, T5 against transformers itself, and numbers against their formula."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from t5_files import tiny_t5

from soundomni.core.errors import CheckpointError, DataError, SpecError
from soundomni.core.interfaces import Encoder
from soundomni.experts import BytesEncoder, NumberEncoder, T5Encoder


def encoded(encoder: Encoder, texts: list[str]) -> list[torch.Tensor]:
    """Features of each text `[T, F]`, encoded in one batch with values that are not numbers beyond each text."""
    values = [encoder.read(text) for text in texts]
    lengths = torch.tensor([one.shape[1] for one in values])
    batch = torch.full((len(texts), 1, int(lengths.max())), math.nan)
    for row, one in zip(batch, values, strict=True):
        row[:, : one.shape[1]] = torch.from_numpy(one)
    features = encoder(batch, lengths)
    return [row[: encoder.num_tokens(int(count))] for row, count in zip(features, lengths, strict=True)]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=3))
def test_bytes_reads_any_text_and_each_by_itself(texts: list[str]) -> None:
    torch.manual_seed(0)
    encoder = BytesEncoder(feature_dim=8, num_layers=1, num_heads=2).double()
    for text, together in zip(texts, encoded(encoder, texts), strict=True):
        (alone,) = encoded(encoder, [text])
        assert together.shape == (len(text.encode()) + 1, 8)
        torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_bytes_tells_the_order_of_letters_apart() -> None:
    torch.manual_seed(0)
    first, second = (one.mean(0) for one in encoded(BytesEncoder(feature_dim=8, num_heads=2), ["ab", "ba"]))
    assert not torch.allclose(first, second, atol=1e-5)


def test_numbers_are_their_formula() -> None:
    torch.manual_seed(0)
    encoder = NumberEncoder(least=2.0, most=10.0, num_frequencies=5).double()
    (found,) = encoded(encoder, ["4"])
    angles = 2 * math.pi * 0.25 * encoder.frequencies
    torch.testing.assert_close(found[0], torch.cat([torch.tensor([0.25], dtype=torch.float64), angles.sin(), angles.cos()]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_t5(tmp_path_factory.mktemp("t5"))


def test_t5_is_that_of_transformers(folder: Path) -> None:
    from transformers import T5EncoderModel

    peer = T5EncoderModel.from_pretrained(folder).eval()
    encoder = T5Encoder(name=str(folder))
    for text, found in zip(["zero one", "five"], encoded(encoder, ["zero one", "five"]), strict=True):
        ids = torch.from_numpy(encoder.read(text)).long()
        assert ids[0, -1] == 1, "a text ends with the end token"
        with torch.no_grad():
            torch.testing.assert_close(found, peer(input_ids=ids).last_hidden_state[0])


def test_t5_is_not_part_of_a_model_and_keeps_the_features_of_the_last_texts(folder: Path) -> None:
    encoder = T5Encoder(name=str(folder), num_kept=2)
    first = encoded(encoder, ["zero one", "five"])
    assert not encoder.state_dict() and not list(encoder.parameters())
    runs: list[int] = []
    encoder._network[0].register_forward_hook(lambda *_: runs.append(1))
    again = encoded(encoder, ["five", "zero one"])
    assert not runs and all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    encoded(encoder, ["two", "zero one", "five"])
    assert len(runs) == 2, "two was new, and five was the oldest when it came"


@pytest.mark.parametrize("lacking", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_without_a_file_is_named(lacking: str, tmp_path: Path) -> None:
    folder = tiny_t5(tmp_path / "t5")
    (folder / lacking).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"never unpickled")
    with pytest.raises(SpecError, match=f"lacks {lacking}; expected a T5 model with weights as safetensors"):
        T5Encoder(name=str(folder))


@pytest.mark.parametrize("argument", ["name", "folder"])
def test_the_files_may_be_those_of_a_pipeline(argument: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "tokenizer").mkdir()
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "text_encoder" / file).write_bytes((folder / file).read_bytes())
    (tmp_path / "tokenizer" / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    found = T5Encoder(**{"name": "t5-base", argument: str(tmp_path)})
    assert torch.equal(encoded(found, ["zero one"])[0], encoded(T5Encoder(name=str(folder)), ["zero one"])[0])


def test_a_folder_is_never_replaced_by_the_cache(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="t5: folder is '.*nowhere', which does not exist; expected a folder with a T5 model"):
        T5Encoder(name="t5-base", folder=str(tmp_path / "nowhere"))


def test_a_name_that_is_nowhere_is_not_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it must not use the network"))
    for name in ("acme/no-such-t5", "./nowhere", "no such t5"):
        with pytest.raises(SpecError, match="Nothing is downloaded: fetch it with `hf download") as raised:
            T5Encoder(name=name)
        assert "\n" not in str(raised.value)


def test_a_model_in_the_cache_of_the_hub_is_found(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--acme--t5"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / ("0" * 40)).symlink_to(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert encoded(T5Encoder(name="acme/t5"), ["one"])[0].shape == (2, 8)


def test_another_model_and_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    folder = tiny_t5(tmp_path / "t5")
    config = json.loads((folder / "config.json").read_text())
    for broken, error, expected in (
        ({**config, "model_type": "bert"}, SpecError, "model_type 'bert'; expected t5"),
        ([], SpecError, "expected the JSON object of a T5 model"),
    ):
        (folder / "config.json").write_text(json.dumps(broken))
        with pytest.raises(error, match=expected):
            T5Encoder(name=str(folder))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{broken}")
    encoder = T5Encoder(name=str(folder))
    with pytest.raises(CheckpointError, match="cannot be read as safetensors; it is damaged or incomplete") as raised:
        encoded(encoder, ["one"])
    assert "\n" not in str(raised.value)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is not a tokenizer"):
        T5Encoder(name=str(folder))


def test_weights_that_are_not_those_of_the_config_are_refused_in_one_line(tmp_path: Path) -> None:
    weights = load_file(tiny_t5(tmp_path / "whole") / "model.safetensors")
    kernel = "encoder.block.0.layer.0.SelfAttention.q.weight"
    cases = {
        "missing": ({name: one for name, one in weights.items() if name != kernel}, f"lacks the tensor '{kernel}'"),
        "narrow": ({**weights, kernel: weights[kernel][:4].contiguous()}, "has the shape .4, 8.; expected .8, 8., as its config says"),
        "nan": ({**weights, kernel: weights[kernel] * math.nan}, "has numbers that are not finite"),
        "whole numbers": ({**weights, kernel: weights[kernel].int()}, "is torch.int32; expected one of torch.float32"),
    }
    for case, (tensors, expected) in cases.items():
        folder = tiny_t5(tmp_path / case)
        save_file(tensors, folder / "model.safetensors")
        encoder = T5Encoder(name=str(folder))
        with pytest.raises(CheckpointError, match=expected) as raised:
            encoded(encoder, ["one"])
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("key", ["vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "relative_attention_num_buckets"])
@pytest.mark.parametrize("value", [0, -1, 2**40, "many", None])
def test_sizes_that_cannot_be_are_refused_before_anything_is_built(key: str, value: object, tmp_path: Path) -> None:
    folder = tiny_t5(tmp_path / "t5")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(SpecError, match=key) as raised:
        T5Encoder(name=str(folder))
    assert "\n" not in str(raised.value)


def test_only_sizes_are_read_from_a_folder_and_adapters_in_it_are_not(folder: Path, tmp_path: Path) -> None:
    copy = tiny_t5(tmp_path / "t5")
    config = json.loads((copy / "config.json").read_text())
    more = {"auto_map": {"AutoModel": "evil.Evil"}, "_attn_implementation": "evil", "torch_dtype": "float16", "num_beams": 10**9}
    (copy / "config.json").write_text(json.dumps({**config, **more}))
    (copy / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "evil/evil"}))
    expected, found = (encoded(T5Encoder(name=str(one)), ["one two"])[0] for one in (folder, copy))
    assert torch.equal(expected, found) and found.dtype == torch.float32


@pytest.mark.parametrize("name", ["", " ", "x" * 5000, "a/b/c", "\0"])
def test_a_name_that_cannot_be_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(SpecError, match="t5: name") as raised:
        T5Encoder(name=name)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_half_a_character_is_refused_by_everything_that_reads_text(folder: Path) -> None:
    for encoder in (BytesEncoder(), T5Encoder(name=str(folder))):
        with pytest.raises(DataError, match="expected UTF-8") as raised:
            encoder.read("one \ud83d")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_in_half_precision_are_told_apart(dtype: torch.dtype) -> None:
    encoder = NumberEncoder().to(dtype)
    assert not torch.equal(*(encoded(encoder, [text])[0] for text in ("400", "401")))


def test_texts_and_numbers_out_of_range_are_refused(folder: Path) -> None:
    for encoder, text, expected in (
        (BytesEncoder(max_bytes=4), "five!", "the text has 5 bytes; expected at most 4"),
        (T5Encoder(name=str(folder), max_tokens=2), "zero one", "the text has 3 tokens with the tokenizer of .*; expected 1 to 2"),
        (NumberEncoder(), "soon", "'soon' is not a number; expected one from 0 to 512"),
        (NumberEncoder(most=9.5), "10", "the number 10 is out of range; expected one from 0 to 9.5"),
        (NumberEncoder(), "nan", "the number nan is out of range"),
    ):
        with pytest.raises(DataError, match=expected):
            encoder.read(text)
    for make, expected in (
        (lambda: BytesEncoder(feature_dim=10, num_heads=4), "feature_dim is 10; expected a multiple of 2 · num_heads, such as 8"),
        (lambda: NumberEncoder(least=3, most=3), "least is 3 and most is 3; expected finite numbers"),
    ):
        with pytest.raises(SpecError, match=expected):
            make()
    assert np.array_equal(BytesEncoder().read(""), [[256]])
