"""What encoders of texts that use a frozen pretrained network have in common.

Shape letters: B texts, S token ids, T tokens, F feature dimensions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from soundomni.core.errors import DataError, SpecError
from soundomni.core.interfaces import Encoder
from soundomni.core.limits import check_count
from soundomni.core.representation import FeatureSpec
from soundomni.core.tokenizer import check_unicode
from soundomni.experts.checkpoints.local_model import LocalModel

MOST_TOKENS, MOST_KEPT = 4096, 4096
"""Limits for specs from strangers."""
NO_TOKEN = -1
"""The value that stands for a text without any token, because every text has at least one value."""


class FrozenTextEncoder(Encoder):
    """Reads a text as token ids, and gives the features that a frozen network computes for them.

    The network is loaded when the first text is encoded. Each text runs by itself, so its features do not depend on others, and
    those of the last texts are kept.

    Args:
        model: the pretrained model.
        feature_dim: feature dimensions F.
        max_tokens, pad_to, truncate, num_kept: as in T5Encoder.
    """

    def __init__(self, *, model: LocalModel, feature_dim: int, max_tokens: int, pad_to: int | None, truncate: bool, num_kept: int) -> None:
        super().__init__()
        check_count("max_tokens", max_tokens, most=MOST_TOKENS)
        check_count("num_kept", num_kept, most=MOST_KEPT)
        self.model, self.max_tokens, self.pad_to, self.num_kept = model, max_tokens, pad_to, num_kept
        self._spec = FeatureSpec(feature_dim=feature_dim, source="text")
        self._tokenizer = model.tokenizer()
        if pad_to is not None:
            check_count("pad_to", pad_to)
            if pad_to > max_tokens:
                raise SpecError(f"{model.plugin}: pad_to is {pad_to}; expected at most max_tokens, which is {max_tokens}. Raise max_tokens")
        elif truncate:
            raise SpecError(f"{model.plugin}: truncate is true, but pad_to is null. Set pad_to too, or leave truncate out")
        if truncate:
            marks = self._tokenizer.num_special_tokens_to_add(is_pair=False)
            check_count("pad_to, without the tokens that mark the ends of a text,", self.most_tokens - marks)
            self._tokenizer.enable_truncation(self.most_tokens)
        self._network: list[Any] = []  # a list, so that its weights are not those of this module
        self._kept: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    @property
    def spec(self) -> FeatureSpec:
        """Texts, and F."""
        return self._spec

    @property
    def most_tokens(self) -> int:
        """Tokens of the longest text."""
        return self.max_tokens if self.pad_to is None else self.pad_to

    def num_tokens(self, num_samples: int) -> int:
        """Return the number of values of `read`, a token for each; with `pad_to`, that many for any text."""
        return num_samples if self.pad_to is None else self.pad_to

    def read(self, source: str) -> np.ndarray:
        """Return the ids of a text, float32 `[1, S]`, as the tokenizer writes them. Raise DataError if it is too long."""
        check_unicode(source)
        ids = self._tokenizer.encode(source).ids
        least = 1 if self.pad_to is None else 0
        if not least <= len(ids) <= self.most_tokens:
            told = f"the text has {len(ids)} tokens with the tokenizer of '{self.model.name}'; expected {least} to {self.most_tokens}"
            raise DataError(f"{told}. Shorten the text, or raise {'max_tokens' if self.pad_to is None else 'pad_to'}")
        return np.asarray([ids or [NO_TOKEN]], dtype=np.float32)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Encode `[B, 1, S]`, texts of `lengths` `[B]` ids, into float32 `[B, T, F]`, zero in the padding.

        Raise CheckpointError for damaged weights.
        """
        width = self.num_tokens(waveform.shape[-1])
        features = torch.zeros(len(waveform), width, self._spec.feature_dim, device=waveform.device)
        if isinstance(waveform, FakeTensor):  # only its memory is measured, without any ids
            return features
        for ids, count, row in zip(waveform[:, 0].tolist(), lengths.tolist(), features, strict=True):
            found = tuple(index for index in map(round, ids[:count]) if index != NO_TOKEN)
            if found:
                made = self._features(found, waveform.device)
                row[: len(made)] = made
        return features

    @torch.no_grad()
    def _features(self, ids: tuple[int, ...], device: torch.device) -> Tensor:
        """Return the features of one text, `[T, F]`."""
        if ids in self._kept:
            self._kept.move_to_end(ids)
            return self._kept[ids].to(device)
        if not self._network:
            self._network.append(self.load())
        with torch.autocast(device.type, enabled=False):
            hidden = self.run(self._network[0].to(device), torch.tensor([ids], device=device))
        self._kept[ids] = hidden.cpu()
        if len(self._kept) > self.num_kept:
            self._kept.popitem(last=False)
        return hidden

    @abstractmethod
    def load(self) -> Any:
        """Return the network in float32, frozen. Raise CheckpointError for damaged weights."""

    @abstractmethod
    def run(self, network: Any, ids: Tensor) -> Tensor:
        """Return the features `[T, F]` of one text from its ids `[1, S]`."""
