"""A text encoder that needs no weights from elsewhere: a small transformer over UTF-8 bytes, trained with the model.

Shape letters: B texts, S bytes with the end, F feature dimensions, h heads, d head dimensions.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soundomni.core.errors import DataError, SpecError
from soundomni.core.interfaces import Encoder
from soundomni.core.representation import FeatureSpec, length_mask
from soundomni.core.tokenizer import check_unicode
from soundomni.experts.initial import draw_weights
from soundomni.experts.rope import rope_tables, rotate
from soundomni.experts.sizes import require_positive

END = 256
"""The token after the last byte, so that an empty text has one too."""
ROPE_THETA = 1e4


class ByteLayer(nn.Module):
    """Attention over a whole text, with rotary positions, then a feed-forward network; LayerNorm in front of both."""

    def __init__(self, *, feature_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(feature_dim)
        self.qkv = nn.Linear(feature_dim, 3 * feature_dim, bias=False)
        self.output = nn.Linear(feature_dim, feature_dim, bias=False)
        self.norm = nn.LayerNorm(feature_dim)
        self.up = nn.Linear(feature_dim, 4 * feature_dim)
        self.down = nn.Linear(4 * feature_dim, feature_dim)

    def forward(self, hidden: Tensor, rope: tuple[Tensor, Tensor], inside: Tensor) -> Tensor:
        """Map `[B, S, F]` to `[B, S, F]`; `inside` `[B, 1, 1, S]` is False in the padding."""
        heads = self.qkv(self.attention_norm(hidden)).unflatten(-1, (3, self.num_heads, -1))  # [B, S, 3, h, d]
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # [B, h, S, d] each
        query, key = (_turned(x, rope) for x in (query, key))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=inside)
        hidden = hidden + self.output(attended.transpose(1, 2).flatten(2))
        out: Tensor = hidden + self.down(F.silu(self.up(self.norm(hidden))))
        return out


class BytesEncoder(Encoder):
    """Embeds the bytes of a text and lets them see each other: a token for each byte, and one for the end.

    A convolution over neighboring bytes comes before the transformer, so that short words are learned sooner (Kim et
    al. 2016, section 2.2). It reads any text in any language as it is, without a vocabulary. A text's features do not
    depend on other texts in the batch.

    Args:
        feature_dim: feature dimensions F.
        num_layers: transformer layers.
        num_heads: attention heads.
        kernel_size: bytes that the convolution sees at once, an odd number.
        max_bytes: bytes of the longest text; longer ones are refused, never cut.
    """

    def __init__(
        self, *, feature_dim: int = 128, num_layers: int = 2, num_heads: int = 4, kernel_size: int = 5, max_bytes: int = 512
    ) -> None:
        super().__init__()
        sizes = {"feature_dim": feature_dim, "num_layers": num_layers, "num_heads": num_heads, "kernel_size": kernel_size}
        require_positive("bytes", sizes | {"max_bytes": max_bytes})
        if kernel_size % 2 == 0:
            raise SpecError(f"bytes: kernel_size is {kernel_size}; expected an odd number, such as {kernel_size + 1}")
        if feature_dim % (2 * num_heads):
            near = 2 * num_heads * max(1, round(feature_dim / (2 * num_heads)))
            raise SpecError(f"bytes: feature_dim is {feature_dim}; expected a multiple of 2 · num_heads, such as {near}")
        self._spec = FeatureSpec(feature_dim=feature_dim, source="text")
        self.max_bytes = max_bytes
        self.head_dim = feature_dim // num_heads
        self.embedding = nn.Embedding(END + 1, feature_dim)
        self.neighbors = nn.Conv1d(feature_dim, feature_dim, kernel_size, padding=kernel_size // 2)
        self.layers = nn.ModuleList(ByteLayer(feature_dim=feature_dim, num_heads=num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(feature_dim)
        draw_weights(self)

    @property
    def spec(self) -> FeatureSpec:
        """Texts, and F."""
        return self._spec

    def num_tokens(self, num_samples: int) -> int:
        """Return the number of values of `read`: bytes and the end."""
        return num_samples

    def read(self, source: str) -> np.ndarray:
        """Return the bytes of a text and the end, float32 `[1, S]`. Raise DataError for a text of more than `max_bytes`."""
        check_unicode(source)
        values = [*source.encode(), END]
        if len(values) > self.max_bytes + 1:
            raise DataError(
                f"the text has {len(values) - 1} bytes; expected at most {self.max_bytes}. Shorten it, or raise max_bytes of the encoder "
                "'bytes'"
            )
        return np.asarray([values], dtype=np.float32)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Encode `[B, 1, S]`, texts of `lengths` `[B]` values, into `[B, S, F]`."""
        inside = length_mask(lengths, waveform.shape[-1])
        ids = waveform[:, 0].masked_fill(~inside, 0).long().clamp(0, END)
        hidden: Tensor = self.embedding(ids) * inside[..., None]  # a text ends in zeros, with or without padding
        hidden = hidden + F.silu(self.neighbors(hidden.transpose(1, 2))).transpose(1, 2)
        positions = torch.arange(ids.shape[1], device=ids.device)
        rope = rope_tables(positions, head_dim=self.head_dim, theta=ROPE_THETA, dtype=hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, rope, inside[:, None, None])
        out: Tensor = self.norm(hidden)
        return out


def _turned(heads: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate `[B, h, S, d]` by tables `[S, d]`."""
    by_place = heads.flatten(0, 1).transpose(0, 1)  # [S, B · h, d]
    return rotate(by_place, *rope).transpose(0, 1).view_as(heads)
