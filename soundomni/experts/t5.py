"""The encoder of a T5 model (Raffel et al. 2020), as transformers computes it: frozen, and from local files only.

Shape letters: B texts, S tokens, F feature dimensions.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soundomni.core.errors import CheckpointError, DataError, SpecError, describe
from soundomni.core.files.paths import local_path, place
from soundomni.core.interfaces import Encoder
from soundomni.core.limits import check_count
from soundomni.core.representation import FeatureSpec
from soundomni.core.tokenizer import check_unicode
from soundomni.experts.checkpoints.t5_network import CONFIG, INDEX, WEIGHTS, load_network, read_sizes

TOKENIZER = "tokenizer.json"
MOST_TOKENIZER_BYTES = 1 << 26
"""Largest tokenizer.json that is read; T5's is 2.4 MB, and mT5's 16 MB."""
MOST_TOKENS, MOST_KEPT = 4096, 4096
"""Limits for specs from strangers."""


class T5Encoder(Encoder):
    """Reads a text as the tokens of a T5 model, and gives the hidden states of its encoder.

    The model is named, not held: it is looked for in a folder, or in the local cache of the Hugging Face Hub, and nothing is ever
    downloaded. It is never trained, and the weights of a model that uses it do not include it, so that a saved model is small, and
    needs the same T5 wherever it is used. Weights are read from safetensors files when the first text is encoded.

    Features of a text do not depend on other texts: each runs by itself, and those of the last texts are kept, because the same
    captions come again and again.

    Args:
        name: a folder with config.json, tokenizer.json and model.safetensors, or a Hub repository such as google-t5/t5-base.
        revision: revision of the repository; None for its main branch.
        max_tokens: tokens of the longest text; longer ones are refused, never cut.
        num_kept: number of texts whose features are kept.
    """

    def __init__(self, *, name: str, revision: str | None = None, max_tokens: int = 512, num_kept: int = 256) -> None:
        super().__init__()
        check_count("max_tokens", max_tokens, most=MOST_TOKENS)
        check_count("num_kept", num_kept, most=MOST_KEPT)
        self.name, self.max_tokens, self.num_kept = name, max_tokens, num_kept
        self._folder = find_t5(name, revision)
        self._sizes = read_sizes(self._folder, name)
        self._spec = FeatureSpec(feature_dim=self._sizes.d_model, source="text")
        self._tokenizer = _tokenizer(self._folder / TOKENIZER)
        self._network: list[Any] = []  # a list, so that its weights are not those of this module
        self._kept: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    @property
    def spec(self) -> FeatureSpec:
        """Texts, and F."""
        return self._spec

    def num_tokens(self, num_samples: int) -> int:
        """Return the number of values of `read`: a token for each."""
        return num_samples

    def read(self, source: str) -> np.ndarray:
        """Return the ids of a text, float32 `[1, S]`, as the tokenizer writes them, with the end. Raise DataError if it is too long."""
        check_unicode(source)
        ids = self._tokenizer.encode(source).ids
        if not 1 <= len(ids) <= self.max_tokens:
            told = f"the text has {len(ids)} tokens with the tokenizer of '{self.name}'; expected 1 to {self.max_tokens}"
            raise DataError(f"{told}. Shorten the text, or raise max_tokens")
        return np.asarray([ids], dtype=np.float32)

    @torch.no_grad()
    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Encode `[B, 1, S]`, texts of `lengths` `[B]` ids, into float32 `[B, S, F]`. Raise CheckpointError for damaged weights."""
        features = torch.zeros(len(waveform), waveform.shape[-1], self._spec.feature_dim, device=waveform.device)
        for ids, count, row in zip(waveform[:, 0].tolist(), lengths.tolist(), features, strict=True):
            row[:count] = self._features(tuple(map(int, ids[:count])), waveform.device)
        return features

    def _features(self, ids: tuple[int, ...], device: torch.device) -> Tensor:
        """Return the features of one text, `[S, F]`."""
        if ids in self._kept:
            self._kept.move_to_end(ids)
            return self._kept[ids].to(device)
        with torch.autocast(device.type, enabled=False):
            hidden: Tensor = self._loaded(device)(input_ids=torch.tensor([ids], device=device)).last_hidden_state[0]
        self._kept[ids] = hidden.cpu()
        if len(self._kept) > self.num_kept:
            self._kept.popitem(last=False)
        return hidden

    def _loaded(self, device: torch.device) -> Any:
        if not self._network:
            self._network.append(load_network(self._folder, self._sizes))
        return self._network[0].to(device)


def find_t5(name: str, revision: str | None = None) -> Path:
    """Return the folder of a T5 model, in the file system or in the Hub's cache. Raise SpecError if it is not there."""
    if not name.strip():
        raise SpecError(f"t5: name is {name!r}; expected a folder with a T5 model, or a Hub repository such as google-t5/t5-base")
    folder = local_path(name)
    try:
        is_there = folder.is_dir()
    except OSError as error:  # the path is too long
        raise SpecError(f"t5: name is '{name[:40]}…', which cannot be a folder: {error.strerror}") from error
    if not is_there:
        folder = _cached(name, revision) or folder
    missing = [file for file in (CONFIG, TOKENIZER) if not (folder / file).is_file()]
    missing += [WEIGHTS] if not any((folder / file).is_file() for file in (WEIGHTS, INDEX)) else []
    if not missing:
        return folder
    if folder.is_dir():
        raise SpecError(f"t5: {place(folder)} lacks {', '.join(missing)}; expected a T5 model with weights as safetensors")
    raise SpecError(
        f"t5: name is '{name}'; expected a folder with a T5 model, or a Hub repository in the local cache. Nothing is downloaded: "
        f"fetch it with `hf download {name}`, or give its folder"
    )


def _cached(name: str, revision: str | None) -> Path | None:
    """Return the folder of a repository in the Hub's cache; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, CONFIG, revision=revision)
    except ValueError:  # not a name of a repository
        return None
    return Path(found).parent if isinstance(found, str) else None


def _tokenizer(file: Path) -> Any:
    """Read a tokenizer.json; texts are never cut or padded. Raise CheckpointError if it is damaged."""
    from tokenizers import Tokenizer

    if file.stat().st_size > MOST_TOKENIZER_BYTES:
        raise CheckpointError(f"t5: {place(file)} has more than {MOST_TOKENIZER_BYTES >> 20} MiB; expected a tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain exceptions
        raise CheckpointError(f"t5: {place(file)} is not a tokenizer: {describe(error)}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
