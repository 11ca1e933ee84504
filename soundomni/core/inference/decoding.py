"""Writing text token by token: the likeliest next token, or one drawn from the model's distribution.

Shape letters: R rows, one text each, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.attention import plan_cached
from soundomni.core.attention.kv_cache import KVCache
from soundomni.core.inference.sampling import empty_cache, packed
from soundomni.core.limits import check_text_sampling
from soundomni.core.sequence import Context, SegmentTable, next_position, plain_segment
from soundomni.core.tokenizer import TextTokenizer


@dataclass(frozen=True, kw_only=True)
class TextSampling:
    """How the next token is chosen.

    Args:
        temperature: divides the logits: 1 draws from the model's own distribution, lower values make likely tokens
            likelier. 0 always takes the likeliest token (greedy), and then nothing else matters.
        top_k: draw only from the k likeliest tokens; None from all.
        top_p: draw only from the smallest set of likeliest tokens that together have at least this probability (Holtzman et al.
            2020, section 3.1, the nucleus); it counts after the temperature and among the tokens that `top_k` leaves.

    Raises:
        SpecError: a number is out of its range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_text_sampling(self.temperature, self.top_k, self.top_p)


GREEDY = TextSampling()


def next_tokens(logits: Tensor, sampling: TextSampling, generators: Sequence[torch.Generator]) -> np.ndarray:
    """Choose the next token of each row.

    Args:
        logits: `[R, V]`, on any device.
        sampling: how to choose.
        generators: one for each row, on the CPU. Each draws one number; greedy decoding draws none.

    Returns:
        int64 `[R]`.
    """
    if sampling.temperature == 0.0:
        return logits.argmax(-1).cpu().numpy()
    ids, weights = likeliest(logits, sampling)
    totals = weights.cumsum(-1)
    drawn = torch.cat([torch.rand(1, dtype=torch.float64, generator=generator) for generator in generators])
    passed = (totals <= drawn[:, None] * totals[:, -1:]).sum(-1)
    chosen = torch.minimum(passed, (weights > 0).sum(-1) - 1)  # the product may round up to the total
    return ids.gather(1, chosen[:, None])[:, 0].numpy()


def likeliest(logits: Tensor, sampling: TextSampling) -> tuple[Tensor, Tensor]:
    """Return the tokens that can be drawn, likeliest first, with their weights. The temperature must be above 0.

    Args:
        logits: `[R, V]`; among equal logits, the smaller id counts as likelier.
        sampling: how to choose.

    Returns:
        ids int64 `[R, V]` and weights float64 `[R, V]`, proportional to the probabilities, 0 for tokens that cannot be drawn; both on
        the CPU.
    """
    values, ids = logits.sort(dim=-1, descending=True, stable=True)
    values = values.cpu().double()
    weights = ((values - values[:, :1]) / sampling.temperature).exp()
    if sampling.top_k is not None:
        weights[:, min(sampling.top_k, weights.shape[1]) :] = 0.0
    if sampling.top_p < 1.0:
        totals = weights.cumsum(-1)
        before = torch.cat([torch.zeros_like(totals[:, :1]), totals[:, :-1]], dim=-1)
        weights = weights.masked_fill(before >= sampling.top_p * totals[:, -1:], 0.0)
    return ids.cpu(), weights


@torch.no_grad()
def iter_tokens(
    model: UnifiedModel,
    contexts: Sequence[Context],
    *,
    tokenizer: TextTokenizer,
    max_new_tokens: int,
    opening: Sequence[int] | None = None,
    sampling: TextSampling = GREEDY,
    seeds: Sequence[int] | None = None,
) -> Iterator[list[int | None]]:
    """Continue each context with text, up to a token that ends texts or to `max_new_tokens`.

    A text depends on its own context and seed only, not on the others.

    Args:
        model, tokenizer: the model that writes, and its tokenizer.
        contexts: what comes before each text.
        max_new_tokens: most ids of each text.
        opening: ids that every text begins with, given to the model and not returned; None for only the start token.
        sampling: how tokens are chosen.
        seeds: one for each context, for drawing tokens; None for 0, 1, 2, …

    Yields:
        the next id of each text, None for texts that have ended. At least one text has not ended.
    """
    begun = [(*context, plain_segment(opening if opening is not None else (tokenizer.bos,))) for context in contexts]
    generators = [torch.Generator().manual_seed(seed) for seed in (range(len(begun)) if seeds is None else seeds)]
    cache = empty_cache(model, begun, room=max_new_tokens)
    positions = np.asarray([next_position(context) for context in begun])
    logits = model.prefill_text(packed(model, begun), cache)
    done = np.zeros(len(begun), dtype=bool)
    for step in range(max_new_tokens):
        tokens = next_tokens(logits, sampling, generators)
        done |= np.isin(tokens, tokenizer.ends)
        if done.all():
            return
        yield [None if ended else int(token) for token, ended in zip(tokens, done, strict=True)]
        if step + 1 < max_new_tokens:
            logits = _logits_after(model, cache, tokens, positions + step)


def _logits_after(model: UnifiedModel, cache: KVCache, tokens: np.ndarray, positions: np.ndarray) -> Tensor:
    """Add one token to each row, int64 `[R]` at `positions` `[R]`, and return the logits after it `[R, V]`."""
    ones = np.ones_like(tokens)
    table = SegmentTable.from_samples([(plain_segment(tokens[:1]),)] * len(tokens), first_position=positions.tolist())
    stored = model.stored(table, inference=True)
    plan = plan_cached(cache.lengths, cache.capacity, ones, stored, causal=True, device=model.device)
    layout = model.layout(stored, plan, cache)
    cache.begin(layout.stored.order, table.document, whole=True)
    logits = model.next_token_logits(torch.from_numpy(tokens).to(model.device), layout)
    cache.keep(ones)
    return logits


def sample_text(
    model: UnifiedModel,
    contexts: Sequence[Context],
    *,
    tokenizer: TextTokenizer,
    max_new_tokens: int,
    opening: Sequence[int] | None = None,
    sampling: TextSampling = GREEDY,
    seeds: Sequence[int] | None = None,
) -> list[list[int]]:
    """Return the ids of the text that follows each context. The arguments are those of `iter_tokens`."""
    texts: list[list[int]] = [[] for _ in contexts]
    written = iter_tokens(
        model, contexts, tokenizer=tokenizer, max_new_tokens=max_new_tokens, opening=opening, sampling=sampling, seeds=seeds
    )
    for tokens in written:
        for text, token in zip(texts, tokens, strict=True):
            if token is not None:
                text.append(token)
    return texts
