"""The encoder of a T5Gemma model (Zhang et al. 2025), as transformers computes it: frozen, and from local files only.

Shape letters: B texts, S token ids, T tokens, F feature dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from soundomni.core.representation import length_mask
from soundomni.experts.checkpoints.local_model import LocalModel
from soundomni.experts.checkpoints.t5gemma_network import load_network, read_sizes
from soundomni.experts.frozen_text import NO_TOKEN, FrozenTextEncoder

PADDING_STD = 0.02


class T5GemmaEncoder(FrozenTextEncoder):
    """Reads a text as the tokens of a T5Gemma model, and gives the hidden states of its encoder.

    The model is found, frozen and left out of saved models like that of `t5`. A text has the tokens that tokenizer.json writes,
    with or without a beginning or an end.

    With `pad_to`, every text has the same number of tokens, and all those after the text are one embedding, `padding`, which is trained
    and saved with the model, and which networks attend to. Stable Audio 3 was trained in this way, with 256 tokens. An empty text may
    then be nothing but padding.

    Args:
        name: a folder with config.json, tokenizer.json and model.safetensors, or a Hub repository such as google/t5gemma-b-b-ul2.
        revision: revision of the repository; None for its main branch.
        folder: see T5Encoder.
        max_tokens: tokens of the longest text without `pad_to`; longer ones are refused, never cut.
        pad_to: tokens of every text, at most `max_tokens`; longer ones are refused. None for as many as each text has.
        truncate: with `pad_to`, cut longer texts instead of refusing them.
        num_kept: number of texts whose features are kept.
    """

    def __init__(
        self,
        *,
        name: str,
        revision: str | None = None,
        folder: str | None = None,
        max_tokens: int = 512,
        pad_to: int | None = None,
        truncate: bool = False,
        num_kept: int = 256,
    ) -> None:
        example = "google/t5gemma-b-b-ul2"
        model = LocalModel.find(name, revision, plugin="t5gemma", what="a T5Gemma model", example=example, folder=folder)
        sizes = read_sizes(model)
        width = sizes.hidden_size
        super().__init__(model=model, feature_dim=width, max_tokens=max_tokens, pad_to=pad_to, truncate=truncate, num_kept=num_kept)
        self._sizes = sizes
        self.padding = None if pad_to is None else nn.Parameter(torch.empty(width))
        if self.padding is not None:
            nn.init.normal_(self.padding, std=PADDING_STD)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Encode `[B, 1, S]`, texts of `lengths` `[B]` ids, into `[B, T, F]`, with `padding` after each text.

        Raise CheckpointError for damaged weights.
        """
        features = super().forward(waveform, lengths)
        if self.padding is None:
            return features
        is_token = length_mask(lengths, waveform.shape[-1]) & (waveform[:, 0].round() != NO_TOKEN)
        inside = length_mask(is_token.sum(1), features.shape[1])
        return torch.where(inside[..., None], features, self.padding)

    def load(self) -> Any:
        """Return the encoder in float32, frozen. Raise CheckpointError for damaged weights."""
        return load_network(self.model, self._sizes)

    def run(self, network: Any, ids: Tensor) -> Tensor:
        """Return the features `[S, F]` of one text from its ids `[1, S]`."""
        everywhere = torch.ones_like(ids)  # by default, tokens that are spelled <pad> would be masked
        hidden: Tensor = network(input_ids=ids, attention_mask=everywhere).last_hidden_state[0]
        return hidden
