"""Numbers, whole numbers and named entries as conditions: their formulas, those of other libraries, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from soundomni.core.errors import DataError, SpecError
from soundomni.core.interfaces import Encoder
from soundomni.experts import IntegerEncoder, LookupEncoder, NumberEncoder
from soundomni.experts.number import fixed_frequencies

ENTRIES = ["piano", "violin", "drums"]


def encoded(encoder: Encoder, sources: list[str]) -> Tensor:
    """Features `[B, F]` of one token each."""
    values = torch.stack([torch.from_numpy(encoder.read(source)) for source in sources])
    assert encoder.num_tokens(1) == 1 and values.shape == (len(sources), 1, 1)
    features: Tensor = encoder(values, torch.ones(len(sources), dtype=torch.int64))
    assert features.shape == (len(sources), 1, encoder.spec.feature_dim)
    return features[:, 0]


@pytest.fixture
def conditioners() -> Any:
    from stable_audio_tools.models import conditioners

    return conditioners


@torch.no_grad()
def test_learned_features_are_those_of_stable_audio_tools(conditioners: Any) -> None:
    torch.manual_seed(0)
    peer = conditioners.NumberConditioner(output_dim=8, min_val=0, max_val=512)
    encoder = NumberEncoder(least=0, most=512, clamp=True)
    encoder.frequencies.copy_(peer.embedder.embedding[0].weights)
    numbers = [0.0, 0.3, 17.0, 47.55, 511.9, 512.0, -3.0, 9999.0]
    found = peer.embedder.embedding[1](encoded(encoder, [str(one) for one in numbers]))
    torch.testing.assert_close(found, peer(numbers)[0][:, 0], rtol=0, atol=1e-6)


@torch.no_grad()
def test_fixed_features_are_those_of_diffusers() -> None:
    from diffusers.pipelines.stable_audio_3 import modeling_stable_audio_3 as peers

    torch.manual_seed(0)
    peer = peers.StableAudio3DurationEmbedder(output_dim=8, max_val=384.0)
    encoder = NumberEncoder(most=384.0, features="fixed", clamp=True)
    numbers = [0.0, 0.3, 17.0, 47.55, 383.9, 384.0, -3.0, 9999.0]
    found = peer.linear(encoded(encoder, [str(one) for one in numbers]))
    torch.testing.assert_close(found, peer(torch.tensor(numbers)), rtol=0, atol=1e-6)


def test_fixed_features_are_their_formula() -> None:
    encoder = NumberEncoder(least=2.0, most=10.0, num_frequencies=3, features="fixed")
    (found,) = encoded(encoder, ["4"])
    angles = 2 * math.pi * 0.25 * torch.tensor([0.5, math.sqrt(0.5 * 10_000), 10_000.0])
    torch.testing.assert_close(found, torch.cat([angles.cos(), angles.sin()]), rtol=0, atol=1e-3)
    torch.testing.assert_close(fixed_frequencies(128, torch.device("cpu"))[[0, -1]], torch.tensor([0.5, 10_000.0]))


def test_fixed_features_hold_nothing_and_stay_precise_in_half_precision() -> None:
    encoder = NumberEncoder(most=384.0, features="fixed")
    wanted = encoded(encoder, ["383.9"])
    assert not encoder.state_dict() and torch.equal(encoded(encoder.bfloat16(), ["383.9"]), wanted)


def test_numbers_out_of_range_are_refused_or_clamped() -> None:
    strict, clamped = (NumberEncoder(least=1.0, most=5.0, clamp=clamp) for clamp in (False, True))
    for text, nearest in (("0", 1.0), ("7.5", 5.0), ("3.5", 3.5)):
        assert clamped.read(text).tolist() == [[nearest]]
    with pytest.raises(DataError, match="the number 7.5 is out of range; expected one from 1 to 5"):
        strict.read("7.5")
    for text in ("nan", "inf", "-inf"):
        with pytest.raises(DataError, match="is out of range"):
            clamped.read(text)
    with pytest.raises(DataError, match="'x' is not a number; expected one from 1 to 5"):
        clamped.read("x")


@torch.no_grad()
def test_whole_numbers_are_those_of_stable_audio_tools(conditioners: Any) -> None:
    torch.manual_seed(0)
    peer, encoder = conditioners.IntConditioner(output_dim=8, min_val=0, max_val=20), IntegerEncoder(most=20, feature_dim=8, clamp=True)
    encoder.embedding.weight.copy_(peer.int_embedder.weight)
    numbers = [0, 7, 20, -4, 31]
    assert torch.equal(encoded(encoder, [str(one) for one in numbers]), peer(numbers)[0][:, 0])


def test_a_whole_number_has_the_row_of_its_place_in_the_range() -> None:
    encoder = IntegerEncoder(least=-3, most=4, feature_dim=5)
    assert torch.equal(encoded(encoder, [str(one) for one in range(-3, 5)]), encoder.embedding.weight)
    assert torch.equal(encoded(encoder, ["2.0"]), encoded(encoder, ["2"]))
    with pytest.raises(DataError, match="the number 2.4 is not whole; expected one such as 2, from -3 to 4"):
        encoder.read("2.4")
    for text in ("5", "inf", "nan"):
        with pytest.raises(DataError, match="is out of range; expected one from -3 to 4"):
            encoder.read(text)
    large = IntegerEncoder(least=2**24 - 9, most=2**24, feature_dim=1)
    assert torch.equal(encoded(large, [str(2**24 - 9 + one) for one in range(10)]), large.embedding.weight)


@pytest.mark.parametrize(("least", "most"), [(3, 2), (0, 2**24 + 1), (0, 2**20)])
def test_ranges_that_cannot_be_are_refused(least: int, most: int) -> None:
    with pytest.raises(SpecError, match=f"integer: least is {least} and most is {most}; expected"):
        IntegerEncoder(least=least, most=most)


@torch.no_grad()
def test_entries_are_those_of_stable_audio_tools(conditioners: Any) -> None:
    torch.manual_seed(0)
    peer, encoder = conditioners.ListConditioner(output_dim=8, options=ENTRIES), LookupEncoder(entries=ENTRIES, feature_dim=8, unknown=True)
    encoder.embedding.weight.copy_(peer.embedder.weight)
    texts = ["violin", "flute", "piano", "drums", ""]
    assert torch.equal(encoded(encoder, texts), peer(texts)[0][:, 0])


def test_an_entry_that_is_unknown_is_refused_with_the_nearest_one() -> None:
    encoder = LookupEncoder(entries=ENTRIES, feature_dim=8)
    assert torch.equal(encoded(encoder, ENTRIES), encoder.embedding.weight)
    with pytest.raises(DataError) as raised:
        encoder.read("violino")
    told = "'violino' is not an entry of the encoder 'lookup'; expected one of its 3 entries (piano, violin, drums)"
    assert str(raised.value) == f"{told}. Did you mean 'violin'?"


def test_lists_that_cannot_be_are_refused() -> None:
    for entries, expected in (
        ([], r"entries is \[\]; expected a list of at least one text"),
        ("piano", "entries is 'piano'; expected a list"),
        (["a", "b", "a"], "entries has 'a' more than once; expected each entry once"),
    ):
        with pytest.raises(SpecError, match=expected):
            LookupEncoder(entries=entries)
