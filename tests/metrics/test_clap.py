"""CLAP through a local directory gives what transformers gives, hears all of a long clip, and refuses what is damaged."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_networks import CLAP_RATE, save_tiny_clap, without_a_weight
from transformers import ClapModel, ClapProcessor

from soundomni.core.errors import CheckpointError, DataError
from soundomni.metrics.clap import ClapEmbedder, clap_score


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clap(tmp_path_factory.mktemp("clap"))


@pytest.fixture(scope="module")
def embedder(folder: Path) -> ClapEmbedder:
    return ClapEmbedder(folder)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal((1, samples))).astype(np.float32)


def test_embeddings_are_those_of_transformers(folder: Path, embedder: ClapEmbedder) -> None:
    model, processor = ClapModel.from_pretrained(folder).eval(), ClapProcessor.from_pretrained(folder)
    texts, clip = ["a loud tone", "noise"], noise(CLAP_RATE // 2)
    with torch.no_grad():
        words = model.get_text_features(**processor.tokenizer(texts, return_tensors="pt", padding=True)).pooler_output
        heard = processor.feature_extractor(clip[0], sampling_rate=CLAP_RATE, return_tensors="pt")
        sound = model.get_audio_features(input_features=heard["input_features"]).pooler_output
    np.testing.assert_allclose(embedder.embed_text(texts), words.numpy(), atol=1e-5)
    np.testing.assert_allclose(embedder.embed_audio([(clip, CLAP_RATE)]), sound.numpy(), atol=1e-5)


def test_a_long_clip_is_the_mean_of_its_windows_and_the_same_every_time(embedder: ClapEmbedder) -> None:
    clip = noise(3 * CLAP_RATE)
    parts = embedder.embed_audio([(part, CLAP_RATE) for part in np.split(clip, 3, axis=1)])
    mean = parts.mean(0) / np.linalg.norm(parts.mean(0))
    for _ in range(2):
        np.testing.assert_allclose(embedder.embed_audio([(clip, CLAP_RATE)])[0], mean, atol=1e-12)
    quiet_end = clip.copy()
    quiet_end[:, -CLAP_RATE // 2 :] = 0
    assert np.abs(embedder.embed_audio([(quiet_end, CLAP_RATE)])[0] - mean).max() > 1e-4


def test_any_rate_and_channel_count(embedder: ClapEmbedder) -> None:
    made = embedder.embed_audio([(np.repeat(noise(22050), 2, axis=0), 22050), (noise(4000), CLAP_RATE)])
    assert made.shape == (2, 16) and made.dtype == np.float64
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1.0)


def test_a_network_with_fusion_does_not_depend_on_chance(tmp_path: Path) -> None:
    embedder = ClapEmbedder(save_tiny_clap(tmp_path / "fusion", fusion=True))
    clips = [(noise(CLAP_RATE // 2, seed), CLAP_RATE) for seed in range(3)]
    together = embedder.embed_audio(clips)
    np.testing.assert_array_equal(together[1], embedder.embed_audio(clips[1:2])[0])


def test_scores_are_cosines() -> None:
    texts = np.array([[1.0, 0.0], [0.0, 2.0]])
    assert clap_score(texts, 3.0 * texts) == pytest.approx(1.0)
    assert clap_score(texts, -texts) == pytest.approx(-1.0)
    assert clap_score(texts, np.array([[1.0, 1.0], [1.0, 0.0]])) == pytest.approx(0.5 / np.sqrt(2))
    with pytest.raises(ValueError, match="the same shape"):
        clap_score(texts, texts[:1])


def test_a_text_that_is_too_long_is_refused(embedder: ClapEmbedder) -> None:
    assert embedder.embed_text(["a" * 62]).shape == (1, 16)  # 64 tokens with the marks around it
    with pytest.raises(DataError, match="has 65 tokens; CLAP takes at most 64"):
        embedder.embed_text(["a" * 63])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: shutil.rmtree(path), "does not exist; expected a network"),
        (lambda path: (path / "config.json").unlink(), "has no config.json; expected a network"),
        (lambda path: (path / "model.safetensors").unlink(), r"has no \*.safetensors; expected a network"),
        (lambda path: (path / "model.safetensors").write_bytes(b"no weights"), "cannot be loaded as ClapModel"),
        (lambda path: (path / "config.json").write_text("{"), "cannot be read as JSON"),
        (
            lambda path: (path / "config.json").write_text('{"model_type": "bert"}'),
            "config.json' has the model_type 'bert'; expected 'clap'",
        ),
        (lambda path: (path / "config.json").write_text("{}"), "config.json' has no model_type; expected 'clap'"),
        (lambda path: shutil.rmtree(path) or path.write_text(""), "is a file; expected a network"),
        (lambda path: (path / "processor_config.json").unlink(), "has no settings for ClapProcessor"),
        (without_a_weight, "another network than ClapModel: 1 missing"),
    ],
)
def test_damage_is_told_in_one_line(folder: Path, tmp_path: Path, damage, message: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    damage(copy)
    with pytest.raises(CheckpointError, match=message) as caught:
        ClapEmbedder(copy)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").unlink()
    torch.save(ClapModel.from_pretrained(folder).state_dict(), tmp_path / "copy" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safetensors"):
        ClapEmbedder(tmp_path / "copy")
