"""The half of a CLAP model that reads texts (Wu et al. 2023), as transformers computes it: frozen, and from local files only.

Shape letters: S token ids, T tokens, F feature dimensions.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as functional
from torch import Tensor

from soundomni.core.errors import SpecError
from soundomni.experts.checkpoints.clap_network import find_clap, load_text_network, read_text_sizes
from soundomni.experts.frozen_text import FrozenTextEncoder


class ClapTextEncoder(FrozenTextEncoder):
    """Reads a text as a CLAP model does, and gives the embedding that clips of this sound also have: one token, of length 1.

    With `features: hidden`, it gives the hidden states of a layer instead, a token for each of the text. stable-audio-tools has this as
    `use_text_features`, with the last layer but one and 77 tokens.

    The model is found, frozen and left out of saved models like that of `t5`.

    Args:
        name: a folder with config.json, tokenizer.json and model.safetensors, or a Hub repository such as laion/clap-htsat-unfused.
        revision: revision of the repository; None for its main branch.
        features: "pooled" for the embedding of the whole text, or "hidden" for the hidden states of a layer.
        layer: the layer for "hidden": 0 for the embeddings before all layers, −1 for the last layer.
        max_tokens: tokens of the longest text without `pad_to`; longer ones are refused, never cut. None for as many as the model has
            positions.
        pad_to: tokens of every text with "hidden", at most `max_tokens`; longer ones are refused. The features after the text are those
            that the network computes for its padding token. None for as many as each text has.
        truncate: with `pad_to`, cut longer texts instead of refusing them; the end token stays.
        num_kept: number of texts whose features are kept.
    """

    def __init__(
        self,
        *,
        name: str,
        revision: str | None = None,
        features: Literal["pooled", "hidden"] = "pooled",
        layer: int = -2,
        max_tokens: int | None = None,
        pad_to: int | None = None,
        truncate: bool = False,
        num_kept: int = 256,
    ) -> None:
        model = find_clap(name, revision, plugin="clap-text", reads_text=True)
        sizes = read_text_sizes(model)
        layers = sizes.num_hidden_layers
        if not -layers - 1 <= layer <= layers:
            raise SpecError(f"clap-text: layer is {layer}; expected {-layers - 1} to {layers}, because '{name}' has {layers} layers")
        most = sizes.max_tokens
        if max_tokens is not None and max_tokens > most:
            raise SpecError(f"clap-text: max_tokens is {max_tokens}; expected at most {most}, because '{name}' has no more positions")
        if pad_to is not None and features == "pooled":
            raise SpecError("clap-text: pad_to is set, but features is 'pooled', which is one token. Set features to 'hidden'")
        super().__init__(
            model=model,
            feature_dim=sizes.projection_dim if features == "pooled" else sizes.hidden_size,
            max_tokens=most if max_tokens is None else max_tokens,
            pad_to=pad_to,
            truncate=truncate,
            num_kept=num_kept,
        )
        self._sizes, self.features, self.layer = sizes, features, layer

    def num_tokens(self, num_samples: int) -> int:
        """Return 1 for "pooled", or the tokens of a text of so many values of `read`."""
        return 1 if self.features == "pooled" else super().num_tokens(num_samples)

    def load(self) -> Any:
        """Return the half for texts in float32, frozen. Raise CheckpointError for damaged weights."""
        return load_text_network(self.model, self._sizes)

    def run(self, network: Any, ids: Tensor) -> Tensor:
        """Return the features `[T, F]` of one text from its ids `[1, S]`."""
        inside = torch.ones_like(ids)
        if self.features == "pooled":
            embedding: Tensor = network(input_ids=ids, attention_mask=inside).text_embeds
            return functional.normalize(embedding, dim=-1)
        padding = self.num_tokens(ids.shape[1]) - ids.shape[1]
        ids = functional.pad(ids, (0, padding), value=self._sizes.pad_token_id)
        out = network.text_model(input_ids=ids, attention_mask=functional.pad(inside, (0, padding)), output_hidden_states=True)
        hidden: Tensor = out.hidden_states[self.layer][0]
        return hidden
