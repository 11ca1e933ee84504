"""The codecs `dac`, `encodec` and `mimi` compute what transformers' own classes do, bit for bit, for each clip and at any length."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from codec_files import RATE, dac_model, encodec_model, mimi_model, ours
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from soundomni.core.assembly.chunked import decode_in_chunks, encode_in_chunks
from soundomni.core.errors import CheckpointError, DataError, SpecError
from soundomni.core.representation import Representation
from soundomni.vae import DacCodec, EncodecCodec, MimiCodec
from soundomni.vae.frozen_codec import MOST_SAMPLES, FrozenCodec
from soundomni.vae.mimi import MimiTransformer

DAC_SIZES: dict[str, Any] = {"sample_rate": RATE, "encoder_dim": 2, "decoder_dim": 16, "codebook_size": 16, "codebook_dim": 2}
DAC_SIZES |= {"total_codebooks": 4, "strides": (2, 5)}
ENCODEC_SIZES: dict[str, Any] = {"sample_rate": RATE, "num_filters": 2, "strides": (2, 5), "hidden_dim": 4, "codebook_size": 16}
ENCODEC_SIZES |= {"total_codebooks": 4}
TRANSFORMER = MimiTransformer(hidden_dim=8, num_layers=2, num_heads=2, mlp_dim=6, sliding_window=7)
MIMI_SIZES: dict[str, Any] = {"sample_rate": RATE, "num_filters": 2, "strides": (2, 5), "transformer": TRANSFORMER}
MIMI_SIZES |= {"codebook_size": 16, "codebook_dim": 3, "total_codebooks": 4}
SIZES = {DacCodec: DAC_SIZES, EncodecCodec: ENCODEC_SIZES, MimiCodec: MIMI_SIZES}
NAMES = ("dac", "dac-even", "dac-3", "encodec", "encodec-1", "encodec-stereo", "mimi", "mimi-1", "mimi-2", "mimi-3", "mimi-stereo")


@cache
def pair(name: str) -> tuple[Any, FrozenCodec]:
    """A network of transformers and the codec with its weights."""
    if name.startswith("dac"):
        strides = (4, 2) if name == "dac-even" else (2, 5)
        network = dac_model(downsampling_ratios=list(strides))
        codec: Any = DacCodec(**DAC_SIZES | {"strides": strides}, num_codebooks=3 if name == "dac-3" else None)
    elif name.startswith("mimi"):
        stereo = name == "mimi-stereo"  # with two semantic codebooks
        network = mimi_model(audio_channels=1 + stereo, num_semantic_quantizers=1 + stereo)
        used = int(name[-1]) if name[-1].isdigit() else None
        codec = MimiCodec(**MIMI_SIZES, channels=1 + stereo, semantic_codebooks=1 + stereo, num_codebooks=used)
    else:
        stereo = name == "encodec-stereo"
        network = encodec_model(audio_channels=1 + stereo, use_causal_conv=not stereo, use_conv_shortcut=not stereo)
        used = 1 if name == "encodec-1" else None
        codec = EncodecCodec(**ENCODEC_SIZES, channels=1 + stereo, causal=not stereo, conv_shortcut=not stereo, num_codebooks=used)
    return network, ours(network, codec)


@torch.no_grad()
def theirs_encoded(name: str, clip: Tensor) -> Tensor:
    """What transformers makes of one clip `[1, C, S]`: its feature extractor pads clips for DAC to whole frames."""
    network, codec = pair(name)
    if isinstance(codec, DacCodec):
        padded = pad(clip, (0, -clip.shape[-1] % network.config.hop_length))
        return network.encode(padded, n_quantizers=codec.num_codebooks).audio_codes
    if isinstance(codec, MimiCodec):
        return network.encode(clip, num_quantizers=codec.num_codebooks).audio_codes
    bandwidth = network.config.target_bandwidths[0 if name == "encodec-1" else 1]
    return network.encode(clip, bandwidth=bandwidth).audio_codes[0]


@torch.no_grad()
def theirs_decoded(name: str, codes: Tensor) -> Tensor:
    network, codec = pair(name)
    if isinstance(codec, DacCodec):
        return network.decode(audio_codes=codes).audio_values[:, None]
    if isinstance(codec, MimiCodec):
        return network.decode(codes).audio_values
    return network.decode(codes[None], [None]).audio_values


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check(name: str, lengths: list[int], seed: int) -> None:
    """A padded batch gives what transformers gives for each clip alone, and keeps every length."""
    _, codec = pair(name)
    spec, longest = codec.spec, max(lengths)
    waveform = noise(seed, len(lengths), spec.channels, longest)
    encoded = codec.encode(waveform, torch.tensor(lengths))
    assert encoded.values.dtype == torch.int64 and encoded.lengths.tolist() == [spec.num_frames(n) for n in lengths]
    values = encoded.values.clone()
    for row, frames in zip(values, encoded.lengths.tolist(), strict=True):
        row[:, frames:] = -1  # undefined there
    decoded = codec.decode(encoded.with_values(values))
    assert decoded.shape[-1] >= spec.num_samples(values.shape[-1]) >= longest
    for clip, length in enumerate(lengths):
        codes = theirs_encoded(name, waveform[clip : clip + 1, :, :length])
        frames = spec.num_frames(length)
        assert torch.equal(encoded.values[clip, :, :frames], codes[0]), (name, length)
        samples = theirs_decoded(name, codes)[0]
        assert torch.equal(decoded[clip, :, : samples.shape[-1]], samples), (name, length)
        assert not decoded[clip, :, samples.shape[-1] :].any()


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_all_short_lengths_is_what_transformers_makes_of_each(name: str) -> None:
    ratio = pair(name)[1].spec.downsampling_ratio
    check(name, list(range(1, 3 * ratio + 2)), seed=1)


@settings(max_examples=15, deadline=None)
@given(name=st.sampled_from(NAMES), lengths=st.lists(st.integers(1, 700), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_any_lengths_are_what_transformers_makes_of_each(name: str, lengths: list[int], seed: int) -> None:
    check(name, lengths, seed)


@pytest.mark.parametrize("name", NAMES)
def test_the_codes_of_noise_differ_and_every_level_matters(name: str) -> None:
    """Otherwise the comparisons here would show nothing."""
    _, codec = pair(name)
    encoded = codec.encode(noise(2, 1, codec.spec.channels, 2000), torch.tensor([2000]))
    assert all(len(level.unique()) >= 4 for level in encoded.values[0])
    whole = codec.decode(encoded)
    for levels in range(1, encoded.values.shape[1]):
        fewer = codec.decode(encoded.with_values(encoded.values[:, :levels]))
        assert torch.equal(fewer, pad(theirs_decoded(name, encoded.values[:, :levels]), (0, fewer.shape[-1]))[..., : fewer.shape[-1]])
        assert fewer.shape == whole.shape and not torch.equal(fewer, whole)


@pytest.mark.parametrize("name", NAMES)
def test_no_clips_and_no_samples(name: str) -> None:
    _, codec = pair(name)
    nothing = codec.encode(torch.zeros(0, codec.spec.channels, 25), torch.zeros(0, dtype=torch.int64))
    assert nothing.values.shape == (0, codec.spec.token_dim, codec.spec.num_frames(25)) and codec.decode(nothing).shape[0] == 0
    empty = codec.encode(torch.zeros(1, codec.spec.channels, 25), torch.tensor([0]))
    assert empty.lengths.tolist() == [0] and not codec.decode(empty).any()


@pytest.mark.parametrize("name", ["dac", "dac-even", "dac-3"])
def test_pieces_give_the_codes_and_samples_of_the_whole_clip(name: str) -> None:
    """A piece has other shapes than the clip, so only latents up to rounding are promised; these codes are equal."""
    _, codec = pair(name)
    waveform, lengths = noise(3, 1, 1, 1003), torch.tensor([1003])
    whole = codec.encode(waveform, lengths)
    pieces = encode_in_chunks(codec, waveform, lengths, chunk_frames=30)
    assert torch.equal(pieces.values, whole.values)
    decoded = decode_in_chunks(codec, whole, chunk_frames=30)
    torch.testing.assert_close(decoded, codec.decode(whole)[..., : decoded.shape[-1]], atol=1e-6, rtol=0)


@pytest.mark.parametrize("strides", [(2, 4, 8, 8), (2, 4, 5, 8)])
def test_the_published_dac_models_reach_a_few_frames(strides: tuple[int, ...]) -> None:
    field = DacCodec(**DAC_SIZES | {"strides": strides}).receptive_field
    assert (field.encode, field.decode) == (8, 10)


def test_encodec_looks_back_to_the_start_of_a_clip() -> None:
    codec = EncodecCodec(**ENCODEC_SIZES)
    assert codec.receptive_field is None
    network: Any = codec.network
    width = network.encoder.layers[7].lstm.hidden_size
    for layer in (0, 1):
        getattr(network.encoder.layers[7].lstm, f"bias_ih_l{layer}")[width : 2 * width] = 10.0  # it forgets nothing
    waveform = noise(4, 1, 1, 2000)
    changed = torch.cat([noise(5, 1, 1, 20), waveform[..., 20:]], dim=-1)
    latents = [network.encoder(clip) for clip in (waveform, changed)]
    assert not torch.equal(latents[0][..., -1], latents[1][..., -1])


def test_mimi_only_looks_back_and_over_its_windows() -> None:
    _, codec = pair("mimi")
    assert codec.receptive_field is None
    waveform, lengths = noise(4, 1, 1, 2000), torch.tensor([2000])
    changed = torch.cat([waveform[..., :1000], noise(5, 1, 1, 1000)], dim=-1)
    first, second = (codec.encode(clip, lengths).values for clip in (waveform, changed))
    assert torch.equal(first[..., :50], second[..., :50]) and not torch.equal(first[..., 50:], second[..., 50:])
    narrower = ours(pair("mimi")[0], MimiCodec(**MIMI_SIZES | {"transformer": replace(TRANSFORMER, sliding_window=3)}))
    assert not torch.equal(narrower.encode(waveform, lengths).values, first)


def test_mimi_computes_the_entries_of_its_codebooks_from_the_weights_that_it_has() -> None:
    """transformers computes them once, and keeps them when other weights are loaded or the dtype changes."""
    codec: Any = MimiCodec(**MIMI_SIZES)
    waveform, lengths = noise(7, 1, 1, 500), torch.tensor([500])
    before = codec.encode(waveform, lengths).values
    ours(pair("mimi")[0], codec)
    after = codec.encode(waveform, lengths)
    assert not torch.equal(after.values, before) and torch.equal(after.values[0], theirs_encoded("mimi", waveform)[0])
    assert torch.equal(codec.decode(after), theirs_decoded("mimi", after.values))
    assert codec.double().decode(after).dtype == torch.float64


@pytest.mark.parametrize("rate", [19, 21, 100, 7993])
def test_a_frame_of_mimi_has_as_many_samples_at_every_rate(rate: int) -> None:
    """transformers computes the last stride from rounded rates."""
    codec = MimiCodec(**MIMI_SIZES | {"sample_rate": rate})
    for samples in (1, 20, 21, 399, 400):
        encoded = codec.encode(noise(8, 1, 1, samples), torch.tensor([samples]))
        assert encoded.values.shape == (1, 4, -(-samples // 20)) and codec.decode(encoded).shape[-1] == 20 * encoded.values.shape[-1]


WRONG = {
    "below": (torch.full((1, 2, 3), -1), "clip 0 has the code -1 in frame 0 of level 0; expected a code from 0 to 15"),
    "above": (torch.tensor([[[0, 0, 0], [0, 0, 16]]]), "clip 0 has the code 16 in frame 2 of level 1; expected a code from 0 to 15"),
    "too many levels": (torch.zeros(1, 5, 3, dtype=torch.int64), "int64 [1, 5, 3]; expected int64 [B, K, T], with K from 1 to 4"),
    "no level": (torch.zeros(1, 0, 3, dtype=torch.int64), "int64 [1, 0, 3]; expected int64 [B, K, T], with K from 1 to 4"),
    "int32": (torch.zeros(1, 2, 3, dtype=torch.int32), "int32 [1, 2, 3]; expected int64"),
    "latents": (torch.zeros(1, 2, 3), "float32 [1, 2, 3]; expected int64"),
    "one clip": (torch.zeros(2, 3, dtype=torch.int64), "int64 [2, 3]; expected int64"),
}


@pytest.mark.parametrize("name", ["dac", "encodec", "mimi"])
@pytest.mark.parametrize("case", list(WRONG))
def test_codes_of_strangers_get_one_line(name: str, case: str) -> None:
    _, codec = pair(name)
    values, message = WRONG[case]
    with pytest.raises(DataError) as caught:
        codec.decode(Representation(values, torch.tensor([3]), codec.spec))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["dac", "encodec", "mimi"])
def test_codes_beyond_a_clip_may_be_anything(name: str) -> None:
    _, codec = pair(name)
    values = noise(6, 1, 4, 6).abs().mul(3).long()
    expected = codec.decode(Representation(values[..., :4], torch.tensor([4]), codec.spec))
    values[..., 4:] = 10**9
    assert torch.equal(codec.decode(Representation(values, torch.tensor([4]), codec.spec))[..., : expected.shape[-1]], expected)


@pytest.mark.parametrize(("name", "network"), [("encodec", "EnCodec"), ("mimi", "Mimi")])
def test_clips_that_transformers_would_pad_wrongly_are_refused(name: str, network: str) -> None:
    """Beyond 2^24 samples transformers' arithmetic in float32 takes away a sample that is there."""
    _, codec = pair(name)
    first: Any = next(module for module in codec.network.modules() if hasattr(module, "_get_extra_padding_for_conv1d"))
    assert [int(first._get_extra_padding_for_conv1d(torch.empty(1).expand(1, 1, MOST_SAMPLES + i))) for i in (0, 1)] == [0, -1]
    with pytest.raises(DataError, match=f"has 16,777,217 samples; {network} takes at most 16,777,216. Split the clip"):
        codec.encode(torch.empty(1).expand(1, 1, MOST_SAMPLES + 1), torch.tensor([MOST_SAMPLES + 1]))
    codes = torch.zeros(1, 1, 1, dtype=torch.int64).expand(1, 1, MOST_SAMPLES // codec.spec.downsampling_ratio + 1)
    with pytest.raises(DataError, match=f"{network} takes at most"):
        codec.decode(Representation(codes, torch.tensor([codes.shape[-1]]), codec.spec))


REFUSED = [
    (DacCodec, {"codebook_size": 12}, "codebook_size is 12; expected a power of 2"),
    (DacCodec, {"num_codebooks": 5}, "num_codebooks is 5; expected a number from 1 to 4"),
    (DacCodec, {"total_codebooks": 0}, "total_codebooks is 0; expected at least 1"),
    (EncodecCodec, {"total_codebooks": 10**9}, "total_codebooks is 1000000000; expected at most 256"),
    (DacCodec, {"strides": ()}, "strides has 0 entries; expected 1 to 16"),
    (DacCodec, {"strides": (1, 2)}, "expected strides from 2 to 1024"),
    (DacCodec, {"strides": (2,) * 17}, "strides has 17 entries"),
    (DacCodec, {"decoder_dim": 3}, "decoder_dim is 3; expected at least 4"),
    (DacCodec, {"encoder_dim": 0}, "encoder_dim is 0"),
    (DacCodec, {"sample_rate": 0}, "sample_rate is 0"),
    (EncodecCodec, {"codebook_size": 0}, "codebook_size is 0; expected a power of 2"),
    (EncodecCodec, {"num_codebooks": 0}, "num_codebooks is 0; expected a number from 1 to 4"),
    (EncodecCodec, {"strides": (2, 2000)}, "expected strides from 2 to 1024"),
    (EncodecCodec, {"channels": 3}, "channels is 3"),
    (EncodecCodec, {"num_filters": 1}, "num_filters is 1"),
    (EncodecCodec, {"hidden_dim": 0}, "hidden_dim is 0"),
    (MimiCodec, {"channels": 3}, "channels is 3"),
    (MimiCodec, {"strides": (1, 2)}, "expected strides from 2 to 1024"),
    (MimiCodec, {"codebook_dim": 0}, "codebook_dim is 0"),
    (MimiCodec, {"codebook_size": 15}, "codebook_size is 15; expected a power of 2"),
    (MimiCodec, {"semantic_codebooks": 0}, "semantic_codebooks is 0; expected at least 1, and fewer than the 4 of total_codebooks"),
    (MimiCodec, {"semantic_codebooks": 4}, "semantic_codebooks is 4; expected at least 1, and fewer than the 4 of total_codebooks"),
    (MimiCodec, {"semantic_codebooks": 2, "num_codebooks": 1}, "num_codebooks is 1; expected at least 2, which is semantic_codebooks"),
]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_dim": 6}, "transformer.hidden_dim is 6; expected a multiple of 2 · num_heads, which is 4"),
        ({"hidden_dim": 0}, "transformer.hidden_dim is 0; expected a multiple of 2"),
        ({"num_heads": 0}, "transformer.num_heads is 0; expected at least 1"),
        ({"num_layers": 10**9}, "transformer.num_layers is 1000000000; expected at most 256"),
        ({"mlp_dim": 0}, "transformer.mlp_dim is 0"),
        ({"sliding_window": 0}, "transformer.sliding_window is 0"),
    ],
)
def test_a_transformer_of_a_wrong_size_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        replace(TRANSFORMER, **changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("codec", "changes", "message"), REFUSED)
def test_sizes_that_no_network_has(codec: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        codec(**SIZES[codec] | changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("frame_rate", [50, 75, 86, 150, 800])
def test_every_number_of_codebooks_is_a_bandwidth_of_encodec(frame_rate: int) -> None:
    for used in (1, 2, 3, 4):
        codec = EncodecCodec(**ENCODEC_SIZES | {"sample_rate": 10 * frame_rate - 3}, num_codebooks=used)
        assert codec.network.config.num_quantizers == 4
        assert codec.encode(torch.zeros(1, 1, 10), torch.tensor([10])).values.shape == (1, used, 1)


def test_weights_are_loaded_strictly(tmp_path: Path) -> None:
    for name, build, sizes in (("dac", DacCodec, DAC_SIZES), ("encodec", EncodecCodec, ENCODEC_SIZES), ("mimi", MimiCodec, MIMI_SIZES)):
        network, codec = pair(name)
        state = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
        save_file(state, tmp_path / "whole.safetensors")
        loaded: Any = build(**sizes, weights=str(tmp_path / "whole.safetensors"))
        assert loaded.state_dict().keys() == codec.state_dict().keys()
        assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in codec.state_dict().items())
        state.popitem()
        save_file(state, tmp_path / "less.safetensors")
        with pytest.raises(CheckpointError, match="1 missing"):
            build(**sizes, weights=str(tmp_path / "less.safetensors"))


def test_training_changes_nothing_and_nothing_is_trained() -> None:
    for name in ("dac", "encodec", "mimi"):
        _, codec = pair(name)
        assert not any(parameter.requires_grad for parameter in codec.parameters())
        codec.train()
        assert codec.training and not codec.network.training
        codec.eval()
        with pytest.raises(TypeError, match="has nothing to train"):
            codec.reconstruct(torch.zeros(1, 1, 10), torch.tensor([10]), [torch.Generator()])
