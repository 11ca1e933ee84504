"""A classifier from a local directory gives the probabilities of transformers, and hears all of a long clip."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_networks import CLASSES, save_tiny_classifier, without_a_weight
from transformers import ASTFeatureExtractor, ASTForAudioClassification

from soundomni.core.errors import CheckpointError
from soundomni.metrics.classifier import AudioClassifier

RATE, WINDOW = 16000, 10560


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_classifier(tmp_path_factory.mktemp("classifier"))


def noise(samples: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal((1, samples))).astype(np.float32)


def test_probabilities_and_embeddings_are_those_of_transformers(folder: Path) -> None:
    model, extractor = ASTForAudioClassification.from_pretrained(folder).eval(), ASTFeatureExtractor.from_pretrained(folder)
    clip = noise(8000)
    with torch.no_grad():
        features = extractor(clip[0], sampling_rate=RATE, return_tensors="pt")
        logits = model(**features).logits
        embedding = model.audio_spectrogram_transformer(**features).pooler_output
    heard = AudioClassifier(folder).hear([(clip, RATE)])
    np.testing.assert_allclose(heard.probabilities, logits.softmax(-1).numpy(), atol=1e-6)
    np.testing.assert_allclose(heard.embeddings, embedding.numpy(), atol=1e-6)


def test_a_long_clip_is_the_mean_of_its_windows(folder: Path) -> None:
    classifier, clip = AudioClassifier(folder), noise(2 * WINDOW)
    whole = classifier.hear([(clip, RATE)])
    parts = classifier.hear([(part, RATE) for part in np.split(clip, 2, axis=1)])
    np.testing.assert_allclose(whole.probabilities[0], parts.probabilities.mean(0), atol=1e-12)
    np.testing.assert_allclose(whole.embeddings[0], parts.embeddings.mean(0), atol=1e-12)
    assert whole.probabilities.shape == (1, CLASSES) and np.abs(parts.probabilities[0] - parts.probabilities[1]).max() > 1e-6


def test_the_longest_window_is_not_cut_by_the_extractor(folder: Path) -> None:
    classifier, clip = AudioClassifier(folder), noise(WINDOW)
    louder_end = clip.copy()
    louder_end[:, -480:] *= 20
    one, other = (classifier.hear([(c, RATE)]).probabilities for c in (clip, louder_end))
    assert np.abs(one - other).max() > 1e-6


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "preprocessor_config.json").unlink(), "has no settings for AutoFeatureExtractor"),
        (without_a_weight, "1 missing"),
        (lambda path: (path / "config.json").write_text('{"model_type": "bert"}'), "cannot be loaded as AutoModelForAudioClassification"),
    ],
)
def test_damage_is_told_in_one_line(folder: Path, tmp_path: Path, damage, message: str) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(CheckpointError, match=message) as caught:
        AudioClassifier(tmp_path / "copy")
    assert "\n" not in str(caught.value)
