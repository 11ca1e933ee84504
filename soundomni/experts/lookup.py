"""Named entries as learned embeddings, as stable-audio-tools has them.

Shape letters: B texts, F feature dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from soundomni.core.errors import DataError, SpecError, did_you_mean, shown, some
from soundomni.core.interfaces import Encoder
from soundomni.core.limits import MOST_VOCABULARY
from soundomni.core.representation import FeatureSpec
from soundomni.experts.sizes import require_positive


class LookupEncoder(Encoder):
    """Maps a text that is one of several entries, such as a genre, to an embedding of its own, which is learned: one token.

    An entry has to be written exactly as in the list.

    Args:
        entries: the texts that it reads, each once.
        feature_dim: feature dimensions F.
        unknown: read any other text as one more embedding, the first of the table, instead of refusing it, as stable-audio-tools does.
    """

    def __init__(self, *, entries: Sequence[str], feature_dim: int = 768, unknown: bool = False) -> None:
        super().__init__()
        require_positive("lookup", {"feature_dim": feature_dim})
        if isinstance(entries, str) or not 1 <= len(entries) < MOST_VOCABULARY:
            raise SpecError(f"lookup: entries is {shown(entries)}; expected a list of at least one text, and below {MOST_VOCABULARY:,}")
        self._rows = {entry: row for row, entry in enumerate(entries, start=int(unknown))}
        if len(self._rows) < len(entries):
            twice = next(entry for row, entry in enumerate(entries, start=int(unknown)) if self._rows[entry] != row)
            raise SpecError(f"lookup: entries has '{twice}' more than once; expected each entry once")
        self._spec = FeatureSpec(feature_dim=feature_dim, source="text")
        self.unknown = unknown
        self.embedding = nn.Embedding(len(entries) + unknown, feature_dim)

    @property
    def spec(self) -> FeatureSpec:
        """Texts, and F."""
        return self._spec

    def num_tokens(self, num_samples: int) -> int:
        """Return 1."""
        return 1

    def read(self, source: str) -> np.ndarray:
        """Return the row of the table, float32 `[1, 1]`. Raise DataError for a text that is not an entry, unless `unknown` is set."""
        row = self._rows.get(source, 0 if self.unknown else None)
        if row is None:
            known, hint = f"one of its {len(self._rows):,} entries", did_you_mean(source, self._rows)
            raise DataError(f"{shown(source)} is not an entry of the encoder 'lookup'; expected {known} ({some(self._rows)}).{hint}")
        return np.asarray([[row]], dtype=np.float32)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Encode `[B, 1, 1]` into `[B, 1, F]`."""
        rows = waveform[:, 0, :1].round().long()  # [B, 1]
        features: Tensor = self.embedding(rows.clamp(0, self.embedding.num_embeddings - 1))
        return features
