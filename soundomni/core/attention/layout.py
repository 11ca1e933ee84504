"""A batch as the backbone sees it: where its tokens are stored, their positions, how they attend, and what earlier
calls left.

Shape letters: N tokens of the batch, P stored tokens (padding included), H hidden dimensions, h heads, d head
dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from soundomni.core.attention.conditions import Project, SeenConditions
from soundomni.core.attention.kv_cache import KVCache
from soundomni.core.attention.plans import AttentionPlan
from soundomni.core.attention.spaced_clips import SpacedClips, space_clips
from soundomni.core.attention.stored_order import StoredOrder
from soundomni.core.sequence import Role


@dataclass(frozen=True)
class Layout:
    """A batch as the backbone sees it: positions, the attention plan, and the cache if there is one.

    Args:
        stored: the stored order.
        position_ids: int64 `[P]` on the device.
        attention: the attention plan.
        cache: keys and values of earlier calls; None in training.
        conditions: conditions without places in the sequence, and which tokens see them; None if there are none.
    """

    stored: StoredOrder
    position_ids: Tensor
    attention: AttentionPlan
    cache: KVCache | None = None
    conditions: SeenConditions | None = None
    _spaced: dict[tuple[int, int], SpacedClips | None] = field(default_factory=dict, repr=False, compare=False)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Run attention of layer `layer` on rotated queries and keys in stored order, through the cache if there is
        one."""
        if self.cache is not None:
            key, value = self.cache.update(layer, key, value)
        out: Tensor = self.attention(query, key, value)
        return out

    def cross(self, layer: int, stream: int, query: Tensor, project: Project) -> Tensor:
        """Let the tokens of clips that are made look at their conditions: map query `[N_e, h, d]` of a stream to `[N_e, h, d]`.

        Tokens without conditions get zero. `project` maps the condition tokens `[C, H]` to key and value `[C, h_kv, d]`; while
        sampling, it is only called once for each layer and stream. Raise ValueError if the layout has no conditions.
        """
        if self.conditions is None:
            raise ValueError("the layout has no conditions to look at")
        key, value = self.conditions.projected(layer, stream, project)
        out: Tensor = self.conditions.attention[stream](query, key, value)
        return out

    def with_conditions(self, conditions: SeenConditions) -> Layout:
        """Return the layout with other conditions."""
        return replace(self, conditions=conditions)

    def spaced_clips(self, stream: int, gap: int) -> SpacedClips | None:
        """Return where the frames of a stream lie with `gap` rows of zeros between clips, for convolutions; None if it has no clips.

        Only frames of full and noise segments belong to clips: tokens of causal segments must not see later ones, and may come one at a
        time. The answer is kept for the next call.
        """
        key = (stream, gap)
        if key not in self._spaced:
            first = sum(self.stored.stream_lengths[:stream])
            own = self.stored.clips[first : first + self.stored.stream_lengths[stream]]
            self._spaced[key] = space_clips(own, gap, self.position_ids.device)
        return self._spaced[key]

    def place(self, blocks: Mapping[Any, Tensor], hidden_dim: int) -> list[Tensor]:
        """Join blocks of hidden tokens, `[N, H]` each, into padded streams `[N_e, H]`.

        A block is named by its modality; a role stands for the modality that is named after it.
        """
        sample = next(iter(blocks.values()))
        named = {modality_name(of): block for of, block in blocks.items()}
        streams = []
        for stream, length in enumerate(self.stored.stream_lengths):
            mine = [named[name] for name, run in self.stored.runs.items() if name in named and run[0] == stream]
            count = sum(len(block) for block in mine)
            streams.append(torch.cat([*mine, sample.new_zeros(length - count, hidden_dim)]))
        return streams

    def take(self, streams: Sequence[Tensor], of: str | Role) -> Tensor:
        """Return the hidden tokens of a modality, `[N, H]`, in token order; a role stands for the one named after it."""
        stream, first, last = self.stored.runs[modality_name(of)]
        return streams[stream][first:last]


def modality_name(of: str | Role) -> str:
    """Return the name of a modality; for a role, of the modality that is named after it."""
    return of.modality if isinstance(of, Role) else of
