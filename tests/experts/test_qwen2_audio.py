"""The audio tower against transformers: log-mel features, features of a whole model, lengths, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration, WhisperFeatureExtractor

from soundomni.core.errors import DataError, SpecError
from soundomni.experts import Qwen2AudioEncoder

SIZES = {"num_mel_bins": 80, "d_model": 16, "num_layers": 2, "num_heads": 4, "ffn_dim": 16, "max_source_positions": 30}
LIMIT = 9600


@pytest.fixture(scope="module")
def encoder() -> Qwen2AudioEncoder:
    torch.manual_seed(0)
    return Qwen2AudioEncoder(**SIZES)


def test_log_mel_equals_whisper() -> None:
    encoder = Qwen2AudioEncoder(num_mel_bins=128, d_model=8, num_layers=1, num_heads=1, ffn_dim=8, max_source_positions=1500)
    rng = np.random.default_rng(0)
    clips = [rng.standard_normal(n).astype(np.float32) * a for n, a in ((480_000, 0.1), (70_001, 1.0), (300, 1e-3))]
    waveform = torch.full((3, 1, 480_000), 9.0)  # what lies beyond a clip must not matter
    for row, clip in zip(waveform, clips, strict=True):
        row[0, : len(clip)] = torch.from_numpy(clip)
    theirs = WhisperFeatureExtractor(feature_size=128)(clips, sampling_rate=16000, return_tensors="pt").input_features
    ours = encoder.log_mel(waveform, torch.tensor([len(clip) for clip in clips]))
    assert ours.shape == (3, 128, 3000)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def whole_model() -> Qwen2AudioForConditionalGeneration:
    text = {"hidden_size": 32, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    audio = {"num_mel_bins": 80, "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 16}
    config = Qwen2AudioConfig(
        text_config=text | {"vocab_size": 99, "model_type": "qwen2"},
        audio_config=audio | {"max_source_positions": 30, "model_type": "qwen2_audio_encoder"},
        audio_token_index=7,
    )
    torch.manual_seed(3)
    return Qwen2AudioForConditionalGeneration(config).eval()


def test_features_equal_those_inside_the_whole_model(encoder: Qwen2AudioEncoder) -> None:
    """Catches what the language model of transformers receives for its audio tokens: tower, mask and lengths of its own making."""
    model = whole_model()
    encoder.tower.load_state_dict(model.model.audio_tower.state_dict())
    lengths = [9600, 4321, 900]
    clips = [torch.randn(n).numpy() for n in lengths]
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=30)
    mel = extractor(clips, max_length=LIMIT, sampling_rate=16000, return_attention_mask=True, return_tensors="pt")
    counts = [encoder.num_tokens(n) for n in lengths]
    ids = torch.tensor([[7] * c + [1] * (max(counts) - c) for c in counts])
    received: list[torch.Tensor] = []
    model.model.language_model.register_forward_pre_hook(lambda _, __, kwargs: received.append(kwargs["inputs_embeds"]), with_kwargs=True)
    waveform = torch.zeros(3, 1, LIMIT)
    for row, clip in zip(waveform, clips, strict=True):
        row[0, : len(clip)] = torch.from_numpy(clip)
    with torch.no_grad():
        model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            input_features=mel.input_features,
            feature_attention_mask=mel.attention_mask,
        )
        ours = model.model.multi_modal_projector(encoder(waveform, torch.tensor(lengths)))
    for mine, theirs, count in zip(ours, received[0], counts, strict=True):
        torch.testing.assert_close(mine[:count], theirs[:count], rtol=1e-5, atol=1e-5)


def test_features_of_a_clip_do_not_depend_on_the_batch(encoder: Qwen2AudioEncoder) -> None:
    lengths = [1, 700, 5000]
    waveform = torch.randn(3, 1, 20_000)
    with torch.no_grad():
        together = encoder(waveform, torch.tensor(lengths))
        for clip, length, features in zip(waveform, lengths, together, strict=True):
            alone = encoder(clip[None, :, :length], torch.tensor([length]))[0]
            assert len(alone) == encoder.num_tokens(length)
            torch.testing.assert_close(features[: len(alone)], alone, rtol=1e-5, atol=1e-5)


def test_lengths_follow_the_documented_formula(encoder: Qwen2AudioEncoder) -> None:
    for num_samples in range(480, LIMIT + 1, 37):
        frames = torch.tensor(-(-num_samples // 160))
        assert encoder.num_tokens(num_samples) == encoder.tower._get_feat_extract_output_lengths(frames)[1]
    assert encoder.num_tokens(1) == encoder.num_tokens(320) == 1  # where the formula gives none
    assert encoder.num_tokens(LIMIT) == 15
    assert encoder.spec.max_seconds == 0.6 and encoder.spec.feature_dim == 16


def test_longer_clips_are_refused_by_length(encoder: Qwen2AudioEncoder) -> None:
    with pytest.raises(DataError, match=r"the clip lasts 1\.00 s; .* at most 0\.6 s\. Split the clip$"):
        encoder.num_tokens(16000)
    with pytest.raises(DataError, match=r"1\.00 s"):
        encoder(torch.zeros(2, 1, 16000), torch.tensor([10, 16000]))


def test_heads_that_do_not_divide_are_named() -> None:
    with pytest.raises(SpecError, match="d_model is 16; expected a multiple of num_heads, which is 3"):
        Qwen2AudioEncoder(**SIZES | {"num_heads": 3})


def test_every_parameter_but_the_positions_learns(encoder: Qwen2AudioEncoder) -> None:
    encoder(torch.randn(1, 1, 3000), torch.tensor([3000])).square().sum().backward()
    idle = {name for name, p in encoder.named_parameters() if p.grad is None}
    assert idle == {"tower.embed_positions.weight"}
