"""Drawn text follows the distribution of the model, cut off just as `top_k` and `top_p` say; pieces of a text are the text.

Shape letters: N tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from tiny_models import MODELS, RATE, TOKENIZER, clip, make_model, model_spec
from tokenizers import Tokenizer, decoders, models
from torch import Tensor, nn

from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import DataError, SpecError
from soundomni.core.inference.decoding import sample_text
from soundomni.core.inference.token_choice import GREEDY, TokenSampling, chosen_tokens, next_tokens, token_weights
from soundomni.core.interfaces import Backbone, Router
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.spec.schema import GuidanceSpec, Slot, Spec
from soundomni.core.tokenizer import SPECIAL_TOKENS, TextTokenizer
from soundomni.core.waveform import Audio

BOS, EOS, A, B, C = TOKENIZER.bos, TOKENIZER.eos, 40, 41, 281
CHAIN = {
    BOS: {A: 0.5, B: 0.2, C: 0.29, EOS: 0.01},
    A: {A: 0.05, B: 0.6, C: 0.3, EOS: 0.05},
    B: {A: 0.25, B: 0.35, C: 0.4},
    C: {A: 0.9, EOS: 0.1},
}
"""What follows each token, and how likely it is."""
ROWS, STEPS = 1500, 4


class Chain(Backbone):
    """A model of known conditionals: what comes next depends on the token alone, as CHAIN says."""

    hidden_dim = TOKENIZER.vocab_size
    num_kv_heads, head_dim = 1, 2

    def __init__(self, *, vocab_size: int, router: Router) -> None:
        super().__init__()
        probabilities = torch.full((vocab_size, vocab_size), 1 / vocab_size)
        for token, following in CHAIN.items():
            probabilities[token] = 0.0
            probabilities[token, list(following)] = torch.tensor(list(following.values()))
        self.logits = nn.Parameter(probabilities.log())
        self.blocks = nn.ModuleList([nn.Identity()])

    @property
    def layers(self) -> nn.ModuleList:
        return self.blocks

    def embed(self, token_ids: Tensor) -> Tensor:
        return nn.functional.one_hot(token_ids, self.hidden_dim).to(self.logits.dtype)

    def head(self, hidden: Tensor) -> Tensor:
        return self.logits.index_select(0, hidden.argmax(-1))

    def forward(self, streams, layout):  # type: ignore[no-untyped-def]
        return list(streams), {}


@pytest.fixture(scope="module")
def chain() -> UnifiedModel:
    spec = replace(model_spec("dense", normalize="none"), backbone=Slot(f"{__name__}.Chain"))
    return build_model(spec, vocab_size=TOKENIZER.vocab_size, trust_class_paths=True)


def cut(following: dict[int, float], sampling: TokenSampling) -> dict[int, float]:
    """The distribution after temperature, top-k and top-p, by their definitions; no two of CHAIN's are equally likely."""
    heated = {token: p ** (1 / sampling.temperature) for token, p in following.items()}
    ranked = sorted(heated, key=lambda token: -heated[token])[: sampling.top_k]
    whole = sum(heated[token] for token in ranked)
    nucleus = next(n for n in range(1, len(ranked) + 1) if sum(heated[t] for t in ranked[:n]) >= sampling.top_p * whole - 1e-12)
    total = sum(heated[token] for token in ranked[:nucleus])
    return {token: heated[token] / total for token in ranked[:nucleus]}


@pytest.mark.parametrize(
    "sampling",
    [
        TokenSampling(temperature=1.0),
        TokenSampling(temperature=0.5),
        TokenSampling(temperature=2.0),
        TokenSampling(temperature=1.0, top_k=2),
        TokenSampling(temperature=1.0, top_p=0.75),
        TokenSampling(temperature=1.5, top_k=3, top_p=0.8),
    ],
    ids=str,
)
def test_drawn_text_follows_the_distribution(chain: UnifiedModel, sampling: TokenSampling) -> None:
    texts = sample_text(chain, [()] * ROWS, tokenizer=TOKENIZER, max_new_tokens=STEPS, sampling=sampling, seeds=range(ROWS))
    seen = Counter(pair for ids in texts for pair in pairwise([BOS, *ids] if len(ids) == STEPS else [BOS, *ids, EOS]))
    assert sum(seen.values()) > ROWS
    for token, following in CHAIN.items():
        expected = cut(following, sampling)
        counts = {after: number for (before, after), number in seen.items() if before == token}
        assert set(counts) <= set(expected)  # what is cut off is never drawn
        total = sum(counts.values())
        if len(expected) == 1 or total < 200:
            continue
        statistic = sum((counts.get(after, 0) - total * p) ** 2 / (total * p) for after, p in expected.items())
        assert statistic < chi2.ppf(0.9995, len(expected) - 1), (token, counts, expected)


def test_another_distribution_is_noticed(chain: UnifiedModel) -> None:
    """The test above would fail at another temperature."""
    texts = sample_text(chain, [()] * ROWS, tokenizer=TOKENIZER, max_new_tokens=1, sampling=TokenSampling(temperature=1.3))
    counts = Counter(ids[0] if ids else EOS for ids in texts)
    statistic = sum((counts[token] - ROWS * p) ** 2 / (ROWS * p) for token, p in CHAIN[BOS].items())
    assert statistic > chi2.ppf(0.9995, 3)


def test_greedy_is_the_default_and_what_low_temperatures_tend_to(chain: UnifiedModel) -> None:
    greedy = sample_text(chain, [()] * 3, tokenizer=TOKENIZER, max_new_tokens=4)
    assert greedy == [[A, B, C, A]] * 3
    cold = [TokenSampling(temperature=temperature) for temperature in (1e-3, 1e-30, 5e-324)]
    for sampling in (GREEDY, TokenSampling(), *cold, TokenSampling(temperature=9.0, top_k=1)):
        assert sample_text(chain, [()] * 3, tokenizer=TOKENIZER, max_new_tokens=4, sampling=sampling) == greedy
    hot = sample_text(chain, [()] * 50, tokenizer=TOKENIZER, max_new_tokens=1, sampling=TokenSampling(temperature=1e300))
    assert {ids[0] if ids else EOS for ids in hot} == {A, B, C, EOS}  # never what cannot come next


@settings(max_examples=100, deadline=None)
@given(
    logits=st.lists(st.one_of(st.floats(-30, 30, width=32), st.sampled_from([0.0, 1.0, -math.inf])), min_size=1, max_size=12),
    temperature=st.floats(0.05, 20),
    top_k=st.none() | st.integers(1, 14) | st.just(10**30),
    top_p=st.floats(0.01, 1),
)
def test_tokens_are_cut_off_as_defined(logits: list[float], temperature: float, top_k: int | None, top_p: float) -> None:
    logits[0] = max(logits[0], 0.0)
    sampling = TokenSampling(temperature=temperature, top_k=top_k, top_p=top_p)
    by_id = token_weights(torch.tensor([logits], dtype=torch.float32), sampling)[0].numpy()
    values = np.asarray(logits, np.float32).astype(np.float64)
    ids = np.asarray(sorted(range(len(logits)), key=lambda i: (-values[i], i)))
    weights = by_id[ids]
    full = np.exp((values[ids] - values.max()) / temperature)
    among = full[: len(full) if top_k is None else min(top_k, len(full))]
    kept = int((weights > 0).sum())
    np.testing.assert_allclose(weights[:kept], full[:kept], rtol=1e-12)
    assert kept <= len(among)
    if top_p < 1:  # the smallest set that holds the share: it does, and without its least likely token it does not
        assert among[:kept].sum() >= top_p * among.sum() * (1 - 1e-12)
        assert among[: kept - 1].sum() < top_p * among.sum() * (1 + 1e-12)
    else:
        assert kept == int((among > 0).sum())


@settings(max_examples=50, deadline=None)
@given(
    logits=st.lists(st.integers(-3, 3), min_size=2, max_size=12),
    number=st.floats(0, 1, exclude_max=True),
    top_p=st.sampled_from([1.0, 0.999999]),
    seed=st.integers(0, 100),
)
def test_rounding_of_equal_logits_changes_nothing_that_is_drawn(logits: list[int], number: float, top_p: float, seed: int) -> None:
    even = torch.tensor([logits], dtype=torch.float32)
    rounded = even + 1e-7 * torch.randn(even.shape, generator=torch.Generator().manual_seed(seed))
    shares = even[0].double().softmax(0).cumsum(0)
    assume(float((shares - number).abs().min()) > 1e-4)
    sampling, numbers = TokenSampling(temperature=1.0, top_p=top_p), torch.tensor([number], dtype=torch.float64)
    assert torch.equal(chosen_tokens(even, sampling, numbers), chosen_tokens(rounded, sampling, numbers))


def test_what_is_drawn_depends_on_the_seed_and_the_context_only() -> None:
    model, sampling = MODELS["modality"], TokenSampling(temperature=1.5, top_k=50)
    omni = SoundOmni(model, Spec(model=model_spec(sampler=Slot("euler"), guidance=GuidanceSpec())), TOKENIZER)
    contexts = [omni.contexts.clip(Audio(clip(seed, 40 + 7 * seed), RATE), None) for seed in range(4)]

    def written(which: list[int], seeds: list[int]) -> list[list[int]]:
        some = [contexts[i] for i in which]
        return sample_text(model, some, tokenizer=TOKENIZER, max_new_tokens=6, sampling=sampling, seeds=seeds)

    together = written([0, 1, 2, 3], [5, 6, 7, 2**63 - 1])
    assert written([0, 1, 2, 3], [5, 6, 7, 2**63 - 1]) == together
    assert [written([i], [seed])[0] for i, seed in enumerate([5, 6, 7, 2**63 - 1])] == together
    assert written([2, 0], [7, 5]) == [together[2], together[0]]
    assert written([0, 0], [5, 99])[0] == together[0] != written([0, 0], [5, 99])[1]


@pytest.mark.parametrize("drawn", [0.0, 0.5, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_tokens_that_can_be_drawn(drawn: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([drawn], dtype=torch.float64))
    logits = torch.tensor([[-math.inf, 0.0, -1.0, -math.inf, -2.0, -50.0]])
    for sampling, allowed in ((TokenSampling(temperature=1.0), {1, 2, 4, 5}), (TokenSampling(temperature=1.0, top_k=2), {1, 2})):
        assert set(next_tokens(logits, sampling, [torch.Generator()]).tolist()) <= allowed


def omni(chat: bool = False, max_tokens: int | None = None) -> SoundOmni:
    spec = replace(model_spec(), chat="qwen2-audio") if chat else model_spec()
    return SoundOmni(MODELS["modality"], Spec(model=spec), TOKENIZER, max_tokens=max_tokens)


DRAWN = {"temperature": 1.2, "top_k": 200, "top_p": 0.95}


@pytest.mark.parametrize("max_tokens", [None, 20])
@pytest.mark.parametrize("asked", [{}, DRAWN])
def test_the_pieces_of_a_text_are_the_text(asked: dict[str, float], max_tokens: int | None) -> None:
    model, heard = omni(max_tokens=max_tokens), Audio(clip(2, 80), RATE)
    for seed in range(4 if asked else 1):
        pieces = list(model.stream(heard, max_new_tokens=24, seed=seed, **asked))
        assert "".join(pieces) == model.describe(heard, max_new_tokens=24, seeds=seed, **asked)[0]
        assert all(pieces)


def test_the_pieces_of_an_answer_are_the_answer() -> None:
    model, heard = omni(chat=True), Audio(clip(2, 80), RATE)
    messages = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "one?"}]}]
    pieces = model.stream_chat(messages, heard, max_new_tokens=12, seed=3, **DRAWN)
    assert "".join(pieces) == model.chat(messages, heard, max_new_tokens=12, seed=3, **DRAWN)
    first, second = (model.chat(messages, heard, max_new_tokens=12, seed=seed, **DRAWN) for seed in (3, 4))
    assert first != second


def test_the_first_piece_comes_before_the_text_is_whole() -> None:
    model, steps = make_model("dense"), []
    model.backbone.norms["all"].register_forward_hook(lambda *_: steps.append(None))
    spec = Spec(model=model_spec("dense", sampler=Slot("euler"), guidance=GuidanceSpec()))
    pieces = SoundOmni(model, spec, TOKENIZER).stream(Audio(clip(2, 80), RATE), max_new_tokens=60, **DRAWN)
    assert not steps
    next(pieces)
    assert 0 < len(steps) < 30


def test_mistakes_are_told_before_the_first_piece() -> None:
    model = omni()
    with pytest.raises(DataError, match="expected a clip"):
        model.stream("a.wav")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="top_k is 0; expected"):
        model.stream(Audio(clip(2, 80), RATE), temperature=1, top_k=0)
    with pytest.raises(SpecError, match="not trained on chats"):
        model.stream_chat("hello")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; expected a finite number from 0"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": "hot"}, "temperature is 'hot' (str); expected a number"),
        ({"temperature": 1, "top_k": 0}, "top_k is 0; expected a number of tokens, at least 1"),
        ({"temperature": 1, "top_k": 2.5}, "top_k is 2.5 (float); expected a whole number"),
        ({"temperature": 1, "top_p": 0}, "top_p is 0; expected a share of the probability, above 0 and at most 1"),
        ({"temperature": 1, "top_p": 1.01}, "top_p is 1.01"),
        ({"temperature": 1, "top_p": math.nan}, "top_p is nan"),
        ({"top_k": 5}, "top_k is 5, but without a temperature no token is sampled. Set temperature too"),
        ({"top_p": 0.9}, "top_p is 0.9, but without a temperature"),
        ({"temperature": 1, "seeds": -1}, "the seed is -1; expected a whole number from 0"),
        ({"temperature": 1, "seeds": [1, 2]}, "seeds has length 2; expected 1, one for each clip"),
        ({"temperature": 1, "seeds": "a"}, "seeds is 'a' (str); expected"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(asked: dict[str, object], told: str) -> None:
    with pytest.raises(SpecError) as refused:
        omni().describe(Audio(clip(0, 50), RATE), **asked)  # type: ignore[arg-type]
    assert told in str(refused.value) and "\n" not in str(refused.value)


TEXTS = st.text(st.characters(codec="utf-8") | st.sampled_from(" \n\t🎵é漢\N{REPLACEMENT CHARACTER}\u3000"), max_size=30)


def joined(tokenizer: TextTokenizer, ids: Iterable[int]) -> list[str]:
    ids = list(ids)
    pieces = list(tokenizer.pieces(iter(ids)))
    assert "".join(pieces) == tokenizer.decode(ids)
    assert all(pieces)
    return pieces


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_pieces_hold_whole_characters(text: str) -> None:
    pieces = joined(TOKENIZER, TOKENIZER.encode(text))
    allowed = text.count("\N{REPLACEMENT CHARACTER}")
    assert sum(piece.count("\N{REPLACEMENT CHARACTER}") for piece in pieces) == allowed


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=40))
def test_pieces_are_the_text_whatever_was_written(ids: list[int]) -> None:
    joined(TOKENIZER, ids)


def test_a_character_of_several_tokens_comes_as_one_piece() -> None:
    ids = TOKENIZER.encode("🎵漢")
    assert len(ids) > 5
    assert joined(TOKENIZER, ids) == ["🎵", "漢"]


def test_words_of_a_tokenizer_that_marks_spaces_keep_them() -> None:
    words = ["▁one", "▁two", "s", "▁", *SPECIAL_TOKENS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="▁"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    loaded = TextTokenizer(tokenizer)
    special = tokenizer.token_to_id(SPECIAL_TOKENS[0])
    assert joined(loaded, [0, 1, 2, special, 1, special, special, 0]) == ["one", " two", "s", " two", " one"]
