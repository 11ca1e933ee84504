"""An audio classifier's class probabilities, and the embedding that they come from.

It can be any network that transformers loads as AutoModelForAudioClassification, such as the Audio Spectrogram
Transformer (Gong et al., Interspeech 2021), with weights from a local directory.

Shape letters: N clips, K classes, F features, C channels, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from soundomni.metrics.kl import softmax
from soundomni.metrics.pretrained import load_network, load_processor, windows

_FRAME_SHIFT = 0.01  # seconds between the frames of AST's filter bank


@dataclass(frozen=True)
class Heard:
    """Class probabilities `[N, K]` and embeddings `[N, F]`, both float64."""

    probabilities: np.ndarray
    embeddings: np.ndarray


class AudioClassifier:
    """A classifier of clips.

    Clips are converted to one channel and the network's rate. A clip longer than the network accepts is cut into equal
    consecutive windows; its probabilities and its embedding are the means of theirs. The embedding is the input of the
    network's `classifier`.

    Args:
        directory: config.json, *.safetensors and preprocessor_config.json.
        device: device to run on.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights belong to another network.
    """

    def __init__(self, directory: str | Path, *, device: str = "cpu") -> None:
        from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

        self.model = load_network(AutoModelForAudioClassification, directory).to(device)
        self.extractor = load_processor(AutoFeatureExtractor, directory)
        self.sample_rate: int = self.extractor.sampling_rate
        self.longest = _longest_input(self.extractor)

    @torch.no_grad()
    def hear(self, clips: Sequence[tuple[np.ndarray, int]]) -> Heard:
        """Classify (waveform `[C, S]`, rate in Hz) of any rate, channel count and length; the probabilities are a
        softmax."""
        probabilities, embeddings = [], []
        for waveform, rate in clips:
            heard = [self._hear_window(window) for window in windows(waveform, rate, self.sample_rate, self.longest)]
            probabilities.append(np.mean([softmax(logits) for logits, _ in heard], axis=0))
            embeddings.append(np.mean([embedding for _, embedding in heard], axis=0))
        return Heard(np.stack(probabilities), np.stack(embeddings))

    def _hear_window(self, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return logits `[K]` and embedding `[F]`."""
        entered: list[torch.Tensor] = []
        hook = self.model.classifier.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
        try:
            features = self.extractor(window, sampling_rate=self.sample_rate, return_tensors="pt").to(self.model.device)
            logits = self.model(**features).logits
        finally:
            hook.remove()
        return tuple(values[0].double().cpu().numpy() for values in (logits, entered[0]))  # type: ignore[return-value]


def _longest_input(extractor: Any) -> int | None:
    """Return the number of samples that a feature extractor accepts without cutting; None if there is no limit."""
    for name in ("nb_max_samples", "n_samples"):
        if hasattr(extractor, name):
            return int(getattr(extractor, name))
    if hasattr(extractor, "max_length") and hasattr(extractor, "num_mel_bins"):
        return int(extractor.max_length * _FRAME_SHIFT * extractor.sampling_rate)
    return None
