"""Who sees whom, token by token.

Query q sees key k if and only if both are in the same document, and k is not after q or both are in the same full or
noise segment, and k is not in a noise segment other than q's own. The boundary tokens of a segment belong to it. With
three ids per token the rule can be evaluated pointwise, so that kernels need no mask of size N x N.

Shape letters: G segments, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from soundomni.core.sequence import Attend, SegmentTable

OUTSIDE = -1


@dataclass(frozen=True)
class TokenRule:
    """The ids that the rule needs for each token, int64 `[N]` each.

    Args:
        document: the token's document.
        block: its segment if that is full or noise, OUTSIDE otherwise.
        noise: its segment if that is noise, OUTSIDE otherwise.
    """

    document: np.ndarray
    block: np.ndarray
    noise: np.ndarray


def token_rule(table: SegmentTable) -> TokenRule:
    """Return the three ids of every token of the batch."""
    row = table.token_segments()
    attend = table.attend[row]
    return TokenRule(
        document=table.document[row],
        block=np.where(attend != Attend.CAUSAL, row, OUTSIDE),
        noise=np.where(attend == Attend.NOISE, row, OUTSIDE),
    )


def dense_mask(table: SegmentTable) -> np.ndarray:
    """Return bool `[N, N]`, True where the query of the row sees the key of the column. For tests and small batches."""
    rule = token_rule(table)
    token = np.arange(table.num_tokens)
    same_document = rule.document[:, None] == rule.document
    same_block = (rule.block[:, None] == rule.block) & (rule.block != OUTSIDE)
    hidden = (rule.noise != OUTSIDE) & (rule.noise[:, None] != rule.noise)
    visible: np.ndarray = same_document & ((token[:, None] >= token) | same_block) & ~hidden
    return visible


def is_single_pass(table: SegmentTable) -> bool:
    """Return whether no causal segment comes after a full one in its document.

    A query's keys are then either a causal chain that ends at the query, or a plain set that its whole segment shares.
    """
    full = np.append(0, np.cumsum(table.attend == Attend.FULL))
    first_row = np.searchsorted(table.document, table.document)
    full_before = full[:-1] - full[first_row]
    return not bool(((table.attend == Attend.CAUSAL) & (full_before > 0)).any())
