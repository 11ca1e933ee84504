"""Conditions of clips that have no places in the sequence: tokens to look at in every layer, and a vector for each clip.

Shape letters: P stored tokens of a stream, C condition tokens of the batch, M clips, H dimensions of conditions, h_kv key-value heads, d
head dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from soundomni.core.attention.cross import plan_cross
from soundomni.core.attention.places import token_places
from soundomni.core.attention.plans import AttentionPlan
from soundomni.core.attention.rectangles import Rectangle
from soundomni.core.attention.stored_order import StoredOrder
from soundomni.core.upload import upload

Project = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps condition tokens `[C, H]` to key and value `[C, h_kv, d]`."""
Kept = dict[tuple[int, int], tuple[Tensor, Tensor]]
"""(layer, stream) → key and value of all condition tokens."""


MAPPED = -1
"""Stands for the layer in `Kept` under which mapped condition tokens are kept."""


@dataclass(frozen=True)
class SeenHints:
    """The hints for the frames of a stream: which ones are known, and their values (see `Objective.hints`).

    Args:
        stream: index of the stream.
        places: int64 `[F]`, the place of each frame in the stream.
        values: `[F, L]`, the L numbers of each frame.
    """

    stream: int
    places: Tensor
    values: Tensor


@dataclass(frozen=True)
class SeenConditions:
    """Conditions, and which tokens of a layout see them.

    Args:
        tokens: `[C, H]`, the condition tokens of all clips.
        attention: stream → attention of its tokens to the condition tokens.
        vectors: `[M + 1, H]`: zero, then the sum of the global conditions of each clip.
        by_name: modality → what it adds to `vectors`.
        clips: stream → int64 `[P]`, the row of `vectors` that belongs to each token, 0 for tokens without conditions.
        rows, first: stream → int64, the row of each of its clips, and the place of its first token in the stream.
        times: `[M + 1]`: zero, then the timestep of each clip; None unless the backbone takes times.
        hints: hints for the frames; None unless the backbone takes hints and the objective gives any.
        kept: keys and values that were computed before; None in training, which computes them in every call.
    """

    tokens: Tensor
    attention: Mapping[int, AttentionPlan]
    vectors: Tensor
    by_name: Mapping[str, Tensor]
    clips: Mapping[int, Tensor]
    rows: Mapping[int, Tensor]
    first: Mapping[int, Tensor]
    times: Tensor | None = None
    hints: SeenHints | None = None
    kept: Kept | None = None

    def projected(self, layer: int, stream: int, project: Project) -> tuple[Tensor, Tensor]:
        """Return key and value of the condition tokens, computed by `project` or kept."""
        if self.kept is None:
            return project(self.tokens)
        if (layer, stream) not in self.kept:
            self.kept[layer, stream] = project(self.tokens)
        return self.kept[layer, stream]

    def mapped(self, network: Callable[[Tensor], Tensor]) -> SeenConditions:
        """Return the conditions with their tokens mapped by a network `[C, H]` → `[C, H']`, which is computed once while sampling."""

        def twice(tokens: Tensor) -> tuple[Tensor, Tensor]:
            return (out := network(tokens)), out

        return replace(self, tokens=self.projected(MAPPED, 0, twice)[0])

    def at(self, times: Tensor) -> SeenConditions:
        """Return the conditions with the timesteps of the first clips of the M, or of all of them; the others get 0."""
        rest = len(self.vectors) - 1 - len(times)
        return replace(self, times=torch.cat([times.new_zeros(1), times, times.new_zeros(rest)]))


@dataclass(frozen=True)
class Conditions:
    """Conditions of M clips.

    Args:
        tokens: `[C, H]`.
        keys: for each clip, int64 numpy, its tokens among the C.
        vectors: `[M + 1, H]`: zero, then the sum of the global conditions of each clip.
        by_name: modality → what it adds to `vectors`.
        kept: as in SeenConditions.
    """

    tokens: Tensor
    keys: Sequence[np.ndarray]
    vectors: Tensor
    by_name: Mapping[str, Tensor]
    kept: Kept | None = None

    def seen(
        self, stored: StoredOrder, spans: Sequence[tuple[int, int]], *, dtype: torch.dtype, head_dim: int | None = None
    ) -> SeenConditions:
        """Return the conditions as the tokens of a batch see them.

        Args:
            stored: stored order of the batch.
            spans: the tokens [first, end) of the first clips of the M, or of all of them.
            dtype: dtype of the queries.
            head_dim: dimensions of their heads; None leaves their limits to the kernels.
        """
        places, device = token_places(stored), self.tokens.device
        attention: dict[int, AttentionPlan] = {}
        clips: dict[int, Tensor] = {}
        rows: dict[int, Tensor] = {}
        begins: dict[int, Tensor] = {}
        begin = 0
        for stream, length in enumerate(stored.stream_lengths):
            own = np.zeros(length, dtype=np.int64)
            rectangles = []
            found: list[tuple[int, int]] = []
            for clip, (first, end) in enumerate(spans):
                query = places[first:end] - begin
                if not len(query) or not 0 <= query[0] < length:
                    continue
                own[query] = clip + 1
                found.append((clip + 1, int(query[0])))
                if len(self.keys[clip]):
                    rectangles.append(Rectangle(query, self.keys[clip]))
            attention[stream] = plan_cross(rectangles, device=device, dtype=dtype, head_dim=head_dim)
            clips[stream] = upload(own, device)
            rows[stream], begins[stream] = upload(torch.tensor(found, dtype=torch.int64).reshape(-1, 2), device).unbind(1)
            begin += length
        return SeenConditions(self.tokens, attention, self.vectors, self.by_name, clips, rows, begins, kept=self.kept)


def join_conditions(
    tokens: Mapping[str, Tensor],
    vectors: Mapping[str, Tensor],
    num_tokens: Mapping[str, np.ndarray],
    clips: Sequence[Sequence[tuple[str, int]]],
    *,
    like: Tensor,
    unattended: Sequence[Collection[tuple[str, int]]] = (),
    kept: Kept | None = None,
) -> Conditions:
    """Join the conditions of M clips.

    Args:
        tokens: modality → hidden tokens of all its conditions, to look at.
        vectors: modality → hidden tokens of its conditions, of which a clip gets the mean; several modalities are added up.
        num_tokens: modality → number of tokens of each condition.
        clips: the conditions of each clip: (modality, index among its conditions).
        like: has the dtype and device of hidden tokens, and H columns.
        unattended: those of the conditions of each clip that it does not attend to; empty if there are none.
        kept: where keys and values are kept; None in training.
    """
    first = {name: np.concatenate([[0], np.cumsum(counts)]) for name, counts in num_tokens.items()}
    before = np.cumsum([0, *(len(hidden) for hidden in tokens.values())])
    begin = dict(zip(tokens, before.tolist(), strict=False))

    def rows(name: str, index: int) -> np.ndarray:
        return np.arange(first[name][index], first[name][index + 1], dtype=np.int64)

    nothing = np.zeros(0, np.int64)
    attended = [[one for one in given if one not in left] for given, left in zip(clips, unattended or [()] * len(clips), strict=True)]
    keys = [np.concatenate([nothing, *(begin[n] + rows(n, i) for n, i in given if n in tokens)]) for given in attended]
    by_name = {}
    for name, hidden in vectors.items():
        pairs = [(clip + 1, rows(name, i)) for clip, given in enumerate(clips) for n, i in given if n == name]
        chosen = upload(np.concatenate([nothing, *(own for _, own in pairs)]), like.device)
        to = upload(np.concatenate([nothing, *(np.full(len(own), clip) for clip, own in pairs)]), like.device)
        shares = torch.from_numpy(np.concatenate([nothing, *(np.full(len(own), 1 / max(len(own), 1)) for _, own in pairs)]))
        share = upload(shares.to(hidden.dtype), hidden.device)
        nothing_yet = like.new_zeros(len(clips) + 1, like.shape[1])
        by_name[name] = nothing_yet.index_add(0, to, (hidden.index_select(0, chosen) * share[:, None]).to(like.dtype))
    joined = torch.cat(list(tokens.values())) if tokens else like.new_zeros(0, like.shape[1])
    total = sum(by_name.values(), start=like.new_zeros(len(clips) + 1, like.shape[1]))
    return Conditions(joined, keys, total, by_name, kept)
