"""The encoder of a T5 model (Raffel et al. 2020), as transformers computes it: frozen, and from local files only.

Shape letters: S token ids, F feature dimensions.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from soundomni.experts.checkpoints.local_model import LocalModel
from soundomni.experts.checkpoints.t5_network import load_network, read_sizes
from soundomni.experts.frozen_text import FrozenTextEncoder


class T5Encoder(FrozenTextEncoder):
    """Reads a text as the tokens of a T5 model, and gives the hidden states of its encoder.

    The model is named, not held: it is looked for in a folder, or in the local cache of the Hugging Face Hub, and nothing is ever
    downloaded. It is never trained, and the weights of a model that uses it do not include it, so that a saved model is small, and
    needs the same T5 wherever it is used. Weights are read from safetensors files when the first text is encoded.

    Features of a text do not depend on other texts: each runs by itself, and those of the last texts are kept, because the same
    captions come again and again.

    With `pad_to`, every text has the same number of tokens, and those after the text are zeros that networks still attend to. Models
    of stable-audio-tools were trained in this way.

    Args:
        name: a folder with config.json, tokenizer.json and model.safetensors, or a Hub repository such as google-t5/t5-base.
        revision: revision of the repository; None for its main branch.
        folder: load the model from here instead of looking `name` up: a folder with these files, or a diffusers
            pipeline with text_encoder and tokenizer.
        max_tokens: tokens of the longest text without `pad_to`; longer ones are refused, never cut.
        pad_to: tokens of every text, at most `max_tokens`; longer ones are refused. None for as many as each text has.
        truncate: with `pad_to`, cut longer texts instead of refusing them; the end token stays.
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
        model = LocalModel.find(name, revision, plugin="t5", what="a T5 model", example="google-t5/t5-base", folder=folder)
        sizes = read_sizes(model)
        super().__init__(model=model, feature_dim=sizes.d_model, max_tokens=max_tokens, pad_to=pad_to, truncate=truncate, num_kept=num_kept)
        self._sizes = sizes

    def load(self) -> Any:
        """Return the encoder in float32, frozen. Raise CheckpointError for damaged weights."""
        return load_network(self.model, self._sizes)

    def run(self, network: Any, ids: Tensor) -> Tensor:
        """Return the features `[S, F]` of one text from its ids `[1, S]`."""
        hidden: Tensor = network(input_ids=ids).last_hidden_state[0]
        return hidden
