"""Writing text token by token: the likeliest next token, or one drawn from the model's distribution.

Shape letters: R rows, one text each, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.attention import plan_cached
from soundomni.core.attention.kv_cache import KVCache
from soundomni.core.inference.contexts import empty_cache, packed
from soundomni.core.inference.token_choice import GREEDY, TokenSampling, next_tokens
from soundomni.core.sequence import Context, SegmentTable, next_position, plain_segment
from soundomni.core.tokenizer import TextTokenizer
from soundomni.core.upload import upload


@torch.no_grad()
def iter_tokens(
    model: UnifiedModel,
    contexts: Sequence[Context],
    *,
    tokenizer: TextTokenizer,
    max_new_tokens: int,
    opening: Sequence[int] | None = None,
    sampling: TokenSampling = GREEDY,
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
    logits = model.next_token_logits(upload(tokens, model.device), layout)
    cache.keep(ones)
    return logits


def sample_text(
    model: UnifiedModel,
    contexts: Sequence[Context],
    *,
    tokenizer: TextTokenizer,
    max_new_tokens: int,
    opening: Sequence[int] | None = None,
    sampling: TokenSampling = GREEDY,
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
