"""`hubert-kmeans` gives the clusters of the frames that transformers' own networks make of a clip, at any rate."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from speech_files import HOP, LAYERS, RATE, SIZES, VARIANTS, WINDOW, network_of, speech_model
from torch import Tensor, nn

from soundomni.core.errors import CheckpointError, DataError, SpecError
from soundomni.core.representation import Representation
from soundomni.vae import HubertKmeansCodec, SpeechNetwork

CLUSTERS = 12


@cache
def pair(variant: str, layer: int, normalize: bool = True) -> tuple[Any, HubertKmeansCodec]:
    """A model of transformers and the codec with its weights; centroids lie among what the layer makes of noise."""
    model = speech_model(variant)
    sizes = network_of(variant)
    codec = HubertKmeansCodec(sample_rate=RATE, network=sizes, layer=layer, normalize=normalize, num_clusters=CLUSTERS)
    own = codec.network.state_dict()
    codec.network.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in own})
    hidden = theirs(variant, layer, noise(9, 1000), normalize)
    codec.centroids = hidden.mean(0) + hidden.std(0) * noise(8, CLUSTERS, hidden.shape[1])
    return model, codec


@torch.no_grad()
def theirs(variant: str, layer: int, samples: Tensor, normalize: bool = True) -> Tensor:
    """Frames `[N, D]` of a layer for a clip `[S]`, by transformers' feature extractor and whole model.

    Older versions of transformers give the last layer with the norm that follows it.
    """
    from transformers import Wav2Vec2FeatureExtractor

    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=normalize)
    values = extractor(samples.numpy(), sampling_rate=RATE, return_tensors="pt").input_values
    return speech_model_of(variant)(values, output_hidden_states=True).hidden_states[layer][0]


@cache
def speech_model_of(variant: str) -> Any:
    return speech_model(variant)


def noise(seed: int, *shape: int) -> Tensor:
    return 0.2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + (0.05 if len(shape) == 1 else 0.0)


def clips(*samples: int) -> tuple[Tensor, Tensor]:
    """Clips of these lengths, with noise beyond them."""
    batch = torch.stack([noise(99 + i, max(samples)) for i in range(len(samples))])
    for i, count in enumerate(samples):
        batch[i, :count] = noise(i, count)
    return batch[:, None], torch.tensor(samples)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("layer", range(1, LAYERS + 1))
@pytest.mark.parametrize("variant", VARIANTS)
def test_frames_and_codes_are_those_of_transformers(variant: str, layer: int, normalize: bool) -> None:
    _, codec = pair(variant, layer, normalize)
    samples = noise(1, 1234)
    expected = theirs(variant, layer, samples, normalize)
    with torch.no_grad():
        found = codec.features(samples[None, None])
    assert found.shape == expected.shape == ((1234 - WINDOW) // HOP + 1, 8)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    codes = torch.cdist(expected.double(), codec.centroids.double()).argmin(1)
    encoded = codec.encode(samples[None, None], torch.tensor([1234]))
    given = encoded.values[0, 0]
    assert int(encoded.lengths) == len(given) == 124 and len(codes.unique()) > 3
    assert torch.equal(given[: len(codes)], codes) and torch.equal(given[len(codes) :], codes[-1:].expand(len(given) - len(codes)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_clip_has_the_same_codes_in_every_batch(variant: str) -> None:
    _, codec = pair(variant, 2)
    waveform, lengths = clips(1, 10, 11, WINDOW - 1, WINDOW, 700, 703)
    together = codec.encode(waveform, lengths)
    for clip, count in enumerate(lengths.tolist()):
        single = codec.encode(waveform[clip : clip + 1, :, :count], lengths[clip : clip + 1])
        assert torch.equal(together.values[clip, :, : -(-count // HOP)], single.values[0])


def test_a_clip_shorter_than_a_frame_is_padded_with_silence() -> None:
    _, codec = pair("hubert", 2, False)
    samples = noise(2, WINDOW - 5)
    padded = nn.functional.pad(samples, (0, 5))
    codes = [codec.encode(clip[None, None], torch.tensor([len(clip)])).values for clip in (samples, padded)]
    assert codes[0].shape == (1, 1, 2) and len(codes[0].unique()) == 1 and codes[0][0, 0, 0] == codes[1][0, 0, 0]
    silent = codec.encode(torch.zeros(1, 1, 300), torch.tensor([300]))
    assert silent.values.shape == (1, 1, 30)


def test_normalized_clips_do_not_depend_on_level_and_offset() -> None:
    _, codec = pair("hubert", 2)
    samples = noise(3, 1, 1, 900)
    first, second = (codec.encode(clip, torch.tensor([900])).values for clip in (samples, 3.0 * samples + 0.5))
    assert torch.equal(first, second)
    assert codec.encode(torch.zeros(1, 1, 100), torch.tensor([100])).values.shape == (1, 1, 10)


def nearest(frame: int, ratio: int, available: int) -> int:
    """The frame of the network that holds the middle of a frame of `ratio` samples, the later of two, or else the last
    one."""
    middle = Fraction(2 * frame + 1, 2) * ratio
    return min(available - 1, max(j for j in range(available + ratio) if j * HOP <= middle) if available else 0)


@settings(max_examples=60, deadline=None)
@given(samples=st.integers(1, 400), ratio=st.sampled_from([1, 2, 5, 8, 10, 16, 20, 25, 40, 100]))
def test_a_frame_at_another_rate_has_the_code_that_holds_its_middle(samples: int, ratio: int) -> None:
    sizes = network_of("hubert")
    codec = HubertKmeansCodec(sample_rate=RATE, network=sizes, layer=1, num_clusters=2, frames_per_second=RATE / ratio)
    available = max(1, (samples - WINDOW) // HOP + 1)
    frames = codec.spec.num_frames(samples)
    assert codec.spec.downsampling_ratio == ratio and frames == -(-samples // ratio)
    assert codec._sources(frames, available).tolist() == [nearest(t, ratio, available) for t in range(frames)]


@pytest.mark.parametrize(("rate", "step"), [(RATE / 20, 2), (RATE / 5, 0.5), (RATE / 10, 1)])
def test_half_the_rate_keeps_every_second_code_and_twice_the_rate_repeats_them(rate: float, step: float) -> None:
    _, codec = pair("hubert", 2)
    other = HubertKmeansCodec(sample_rate=RATE, network=network_of("hubert"), layer=2, num_clusters=CLUSTERS, frames_per_second=rate)
    other.load_state_dict(codec.state_dict())
    waveform, lengths = clips(1000)
    own, resampled = codec.encode(waveform, lengths).values[0, 0], other.encode(waveform, lengths).values[0, 0]
    expected = {2: own[1::2], 0.5: own.repeat_interleave(2), 1: own}[step]
    assert len(resampled) == other.spec.num_frames(1000) and torch.equal(resampled, expected)


def test_they_only_encode() -> None:
    _, codec = pair("hubert", 2)
    assert codec.decodes is False and codec.receptive_field is None
    with pytest.raises(DataError, match="hubert-kmeans only encodes: semantic tokens have no waveform"):
        codec.decode(Representation(torch.zeros(1, 1, 1, dtype=torch.int64), torch.tensor([1]), codec.spec))
    with pytest.raises(TypeError, match="nothing to train"):
        codec.reconstruct(*clips(100), [torch.Generator()])


def test_nothing_is_trained_or_dropped_in_training() -> None:
    _, codec = pair("wavlm", 3)
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    waveform, lengths = clips(500)
    evaluated = codec.encode(waveform, lengths).values
    assert torch.equal(codec.train().encode(waveform, lengths).values, evaluated)
    assert not any(module.training for module in codec.network.modules())


REFUSED = [
    ({"layer": 0}, "layer is 0; expected at least 1"),
    ({"layer": 10**6}, "layer is 1000000; expected at most 256"),
    ({"num_clusters": 0}, "num_clusters is 0; expected at least 1"),
    ({"sample_rate": 0}, "sample_rate is 0"),
    ({"frames_per_second": 0.0}, "frames_per_second is 0; expected a number above 0"),
    ({"frames_per_second": 1e9}, "frames_per_second is 1e+09; expected a number above 0, and at most the sample rate, 8000"),
    ({"frames_per_second": float("nan")}, "frames_per_second is nan; expected a number above 0"),
    ({"frames_per_second": 75.0}, "whole samples per frame at 8000 Hz, such as frames of 107 samples, 74.7664 per second"),
    ({"conv_kernels": (7,)}, "the network has 2 conv_dims, 1 conv_kernels and 2 conv_strides; expected the same number of each"),
    ({"conv_dims": (), "conv_kernels": (), "conv_strides": ()}, "expected the same number of each, from 1 to 16"),
    ({"conv_strides": (5, 0)}, "network.conv_strides[1] is 0; expected at least 1"),
    ({"conv_kernels": (7, 10**5)}, "network.conv_kernels[1] is 100000; expected at most 1,024"),
    ({"hidden_dim": 9}, "network.hidden_dim is 9; expected a multiple of network.num_heads, which is 2"),
    ({"position_groups": 3}, "network.hidden_dim is 8; expected a multiple of network.position_groups, which is 3"),
    ({"num_heads": 0}, "network.num_heads is 0; expected at least 1"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_arguments_that_no_codec_has(changes: dict[str, Any], message: str) -> None:
    sizes = {name: value for name, value in changes.items() if name in SIZES}
    others = {name: value for name, value in changes.items() if name not in SIZES}
    with pytest.raises(SpecError) as caught:
        HubertKmeansCodec(**{"sample_rate": RATE, "layer": 1} | others, network=SpeechNetwork(**SIZES | sizes))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_rates_that_no_number_holds_exactly_are_taken() -> None:
    sizes = network_of("hubert")
    codec = HubertKmeansCodec(sample_rate=16000, network=sizes, layer=1, frames_per_second=33.33333333)
    assert codec.spec.downsampling_ratio == 480


def test_weights_are_loaded_strictly(tmp_path: Path) -> None:
    _, codec = pair("hubert", 2)
    state = {name: tensor.contiguous() for name, tensor in codec.state_dict().items()}
    assert "centroids" in state and all(name == "centroids" or name.startswith("network.") for name in state)
    arguments: dict[str, Any] = {"sample_rate": RATE, "network": network_of("hubert"), "layer": 2, "num_clusters": CLUSTERS}
    save_file(state, tmp_path / "whole.safetensors")
    loaded = HubertKmeansCodec(**arguments, weights=str(tmp_path / "whole.safetensors")).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in state.items())
    save_file({name: tensor for name, tensor in state.items() if name != "centroids"}, tmp_path / "without.safetensors")
    with pytest.raises(CheckpointError, match="does not fit this HubertKmeansCodec: of its tensors, 1 missing"):
        HubertKmeansCodec(**arguments, weights=str(tmp_path / "without.safetensors"))
