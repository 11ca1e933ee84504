"""CLAP embeddings of texts and clips, and how well they agree.

Wu et al., "Large-scale Contrastive Language-Audio Pretraining" (ICASSP 2023), through transformers' ClapModel with
weights from a local directory. The CLAP score is the cosine of a prompt's and a clip's embedding.

Shape letters: N texts or clips, F features, C channels, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from soundomni.core.errors import DataError
from soundomni.metrics.pretrained import load_network, load_processor, windows


class ClapEmbedder:
    """A CLAP network.

    Clips are converted to one channel and the network's rate. A clip longer than the network accepts (10 s for the
    released ones) is cut into equal consecutive windows; its embedding is the mean of theirs, scaled to length 1.
    Nothing is cut off, and nothing is random: transformers itself draws windows of long clips at random.

    Args:
        directory: config.json, *.safetensors, preprocessor settings and tokenizer.
        device: device to run on.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights belong to another network.
    """

    def __init__(self, directory: str | Path, *, device: str = "cpu") -> None:
        from transformers import ClapModel, ClapProcessor

        self.model = load_network(ClapModel, directory).to(device)
        processor = load_processor(ClapProcessor, directory)
        self.extractor, self.tokenizer = processor.feature_extractor, processor.tokenizer
        self.sample_rate: int = self.extractor.sampling_rate
        config = self.model.config.text_config
        self.max_tokens: int = config.max_position_embeddings - config.pad_token_id - 1  # positions begin after the padding's

    def tokens(self, text: str) -> Any:
        """Return the network's input for a text. Raise DataError if the text is longer than the network accepts."""
        tokens = self.tokenizer(text, return_tensors="pt", truncation=False)
        count = tokens["input_ids"].shape[1]
        if count > self.max_tokens:
            raise DataError(f"'{text[:40]}…' has {count} tokens; CLAP takes at most {self.max_tokens}. Shorten it")
        return tokens

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Return float64 `[N, F]` of length 1. Raise DataError for a text longer than the network accepts."""
        rows = []
        for text in texts:
            tokens = self.tokens(text).to(self.model.device)
            made = self.model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            rows.append(made.pooler_output[0].double().cpu().numpy())
        return _unit(np.stack(rows))

    @torch.no_grad()
    def embed_audio(self, clips: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
        """Return float64 `[N, F]` of length 1 for (waveform `[C, S]`, rate in Hz) of any rate, channel count and
        length."""
        return np.stack([_unit(self._embed_windows(*clip).mean(0)) for clip in clips])

    def _embed_windows(self, waveform: np.ndarray, rate: int) -> np.ndarray:
        rows = []
        for window in windows(waveform, rate, self.sample_rate, self.extractor.nb_max_samples):
            features = self.extractor(window, sampling_rate=self.sample_rate, return_tensors="pt")["input_features"]
            # the extractor marks one clip of each batch as long at random, which is meant for training
            longer = torch.zeros(1, 1, dtype=torch.bool)
            made = self.model.get_audio_features(input_features=features.float().to(self.model.device), is_longer=longer)
            rows.append(made.pooler_output[0].double().cpu().numpy())
        return np.stack(rows)


def clap_score(texts: np.ndarray, clips: np.ndarray) -> float:
    """Return the mean cosine of paired embeddings `[N, F]`, from −1 to 1.

    Raises:
        ValueError: the arrays are not two `[N, F]` of the same shape.
    """
    if texts.shape != clips.shape or texts.ndim != 2 or texts.size == 0:
        raise ValueError(f"CLAP score: the embeddings are {texts.shape} and {clips.shape}; expected the same shape [N, F]")
    return float((_unit(texts) * _unit(clips)).sum(1).mean())


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))
