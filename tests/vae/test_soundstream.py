"""SoundStream against an independent functional rendering in double precision, clip by clip, in chunks, as a stream."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks_in_threads import OneRank
from safetensors.torch import save_file
from torch.nn import functional as F

from soundomni.core.assembly.chunked import decode_in_chunks, encode_in_chunks
from soundomni.core.errors import CheckpointError, DataError, SpecError
from soundomni.core.representation import Representation
from soundomni.core.spec import registry
from soundomni.core.spec.schema import Slot
from soundomni.vae import QuantizerSettings, SoundStreamCodec
from soundomni.vae.local_attention import LocalAttention

TINY = {"sample_rate": 8000, "base_channels": 4, "channel_multiples": (1, 2), "strides": (2, 3), "latent_dim": 6}
QUANTIZER = QuantizerSettings(num_levels=3, codebook_size=16, codebook_dim=2)


def tiny(seed=0, dtype=torch.float64, **changes) -> SoundStreamCodec:
    """A small codec, by default in double precision, where no two entries of a codebook are equally near."""
    torch.manual_seed(seed)
    codec = SoundStreamCodec(**{**TINY, "quantizer": QUANTIZER, **changes})
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return codec.to(dtype)


def generators(count):
    return [torch.Generator().manual_seed(100 + clip) for clip in range(count)]


def noise(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


# The network


class Functional:
    """The architecture written from its description, over a plain dictionary of tensors."""

    def __init__(self, codec, strides):
        self.state, self.strides = codec.state_dict(), strides

    def conv(self, x, name, stride=1, dilation=1):
        weight, bias = self.state[f"{name}.convolution.weight"], self.state[f"{name}.convolution.bias"]
        missing = (weight.shape[-1] - 1) * dilation - (stride - 1)
        silence = x.new_zeros(*x.shape[:2], missing)
        return F.conv1d(torch.cat([silence, x], -1), weight, bias, stride=stride, dilation=dilation)

    def up(self, x, name, stride):
        weight, bias = self.state[f"{name}.convolution.weight"], self.state[f"{name}.convolution.bias"]
        return F.conv_transpose1d(x, weight, bias, stride=stride)[..., : x.shape[-1] * stride]

    def units(self, x, name):
        for index, dilation in enumerate((1, 3, 9)):
            inner = F.elu(self.conv(F.elu(x), f"{name}.units.{index}.wide", dilation=dilation))
            x = x + self.conv(inner, f"{name}.units.{index}.mix")
        return x

    def encode(self, x):
        x = self.conv(x, "encoder.first")
        for index, stride in enumerate(self.strides):
            x = self.conv(F.elu(self.units(x, f"encoder.blocks.{index}")), f"encoder.blocks.{index}.down", stride=stride)
        return self.conv(F.elu(x), "encoder.last")

    def decode(self, x):
        x = self.conv(x, "decoder.first")
        for index, stride in enumerate(reversed(self.strides)):
            x = self.units(self.up(F.elu(x), f"decoder.blocks.{index}.up", stride), f"decoder.blocks.{index}")
        return self.conv(F.elu(x), "decoder.last")


@pytest.mark.parametrize(("strides", "channels"), [((2, 3), 1), ((4,), 2), ((2, 2, 5), 1)])
def test_equals_the_functional_form(strides, channels):
    codec = tiny(strides=strides, channels=channels, channel_multiples=(1,) * len(strides))
    reference, ratio = Functional(codec, strides), math.prod(strides)
    waveform = noise(2, channels, 5 * ratio)
    torch.testing.assert_close(codec.encoder(waveform), reference.encode(waveform))
    latents = noise(2, 6, 5)
    assert codec.decoder(latents).shape == (2, channels, 5 * ratio)
    torch.testing.assert_close(codec.decoder(latents), reference.decode(latents))


@pytest.mark.parametrize(("sample_rate", "strides"), [(16000, (2, 4, 5, 8)), (24000, (3, 4, 5, 8))], ids=["AudioLM", "MusicLM"])
def test_published_sizes(sample_rate, strides):
    with torch.device("meta"):
        codec = SoundStreamCodec(sample_rate=sample_rate, strides=strides)
    spec, widths = codec.spec, [32, 64, 128, 256, 512]
    assert spec.codebook_sizes == (1024,) * 12 and spec.sample_rate / spec.downsampling_ratio == 50
    units = sum(3 * (7 * w * w + w + w * w + w) for w in widths[:-1])
    strided = sum(2 * s * i * o for (i, o), s in zip(pairwise(widths), strides, strict=True))
    encoder = (7 * 32 + 32) + units + strided + sum(widths[1:]) + (3 * 512 * 512 + 512)
    decoder = (7 * 512 * 512 + 512) + units + strided + sum(widths[:-1]) + (7 * 32 + 1)
    quantizers = 12 * ((512 * 8 + 8) + (8 * 512 + 512) + 1024 * 8)
    assert sum(p.numel() for p in codec.encoder.parameters()) == encoder
    assert sum(p.numel() for p in codec.decoder.parameters()) == decoder
    assert sum(p.numel() for p in codec.parameters()) == encoder + decoder + quantizers


@pytest.mark.parametrize(("window", "frames"), [(1, 5), (3, 1), (3, 10), (4, 8), (20, 7)])
def test_local_attention_equals_a_dense_reference(window, frames):
    torch.manual_seed(0)
    layer = LocalAttention(dim=128, window=window).double()
    given = noise(2, 128, frames)
    rows = layer.norm(given.mT)
    query, key, value = (part.view(2, frames, 2, 64) for part in layer.joint(rows).chunk(3, -1))
    places = torch.arange(frames, dtype=torch.float64)
    turns = torch.polar(torch.ones(frames, 32, dtype=torch.float64), torch.outer(places, 10_000.0 ** -(torch.arange(32) / 32)))

    def turned(x):  # numbers i and i + 32 are a complex number
        rotated = torch.complex(x[..., :32].contiguous(), x[..., 32:].contiguous()) * turns[:, None]
        return torch.cat([rotated.real, rotated.imag], -1)

    scores = torch.einsum("bihe,bjhe->bhij", turned(query), turned(key)) / 8
    back = torch.arange(frames)[:, None] - torch.arange(frames)
    scores = scores.masked_fill((back < 0) | (back >= window), -math.inf)
    mixed = torch.einsum("bhij,bjhe->bihe", scores.softmax(-1), value).flatten(2)
    torch.testing.assert_close(layer(given), given + layer.out(mixed).mT, atol=1e-6, rtol=0)


@pytest.mark.parametrize("window", [0, 3])
def test_nothing_depends_on_what_comes_later_or_long_before(window):
    codec = tiny(attention_window=window)
    field, ratio = codec.receptive_field, 6
    frames = max(field.encode, field.decode) + 6
    waveform = noise(1, 1, frames * ratio).requires_grad_()
    latents = noise(1, 6, frames).requires_grad_()
    (reach,) = torch.autograd.grad(codec.encoder(waveform)[0, :, -3].square().sum(), waveform)
    seen = reach[0].view(frames, ratio).abs().sum(1).nonzero().flatten()
    assert seen.min() == frames - 3 - field.encode and seen.max() == frames - 3
    (reach,) = torch.autograd.grad(codec.decoder(latents)[..., -3 * ratio : -2 * ratio].square().sum(), latents)
    seen = reach[0].abs().sum(0).nonzero().flatten()
    assert seen.min() == frames - 3 - field.decode and seen.max() == frames - 3


# Clips


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    strides=st.sampled_from([(2, 3), (5, 2)]),
    window=st.sampled_from([0, 2]),
    weight_norm=st.booleans(),
)
def test_every_clip_comes_out_as_if_alone(lengths, strides, window, weight_norm):
    codec = tiny(strides=strides, attention_window=window, weight_norm=weight_norm)
    waveform = noise(len(lengths), 1, max(lengths) + 7)  # beyond each clip lies garbage
    with torch.no_grad():
        together = codec.encode(waveform, torch.tensor(lengths))
        decoded = codec.decode(together)
        estimate, _ = codec.reconstruct(waveform, torch.tensor(lengths), generators(len(lengths)))
        for clip, length in enumerate(lengths):
            one = slice(clip, clip + 1)
            alone = codec.encode(waveform[one, :, :length], torch.tensor([length]))
            frames = codec.spec.num_frames(length)
            assert together.lengths[clip] == alone.lengths[0] == alone.values.shape[-1] == frames
            assert torch.equal(together.values[clip, :, :frames], alone.values[0])
            samples = frames * codec.spec.downsampling_ratio
            torch.testing.assert_close(decoded[clip, :, :samples], codec.decode(alone)[0], atol=1e-9, rtol=0)
            assert not decoded[clip, :, samples:].any()
            again, _ = codec.reconstruct(waveform[one, :, :length], torch.tensor([length]), generators(len(lengths))[one])
            torch.testing.assert_close(estimate[clip, :, :length], again[0], atol=1e-9, rtol=0)


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("chunk", [1, 4, 50])
def test_chunks_are_the_whole(window, chunk):
    codec = tiny(attention_window=window)
    lengths = torch.tensor([299, 1, 150])
    waveform = noise(3, 1, 299)
    with torch.no_grad():
        whole = codec.encode(waveform, lengths)
        cut = encode_in_chunks(codec, waveform, lengths, chunk_frames=chunk)
        assert all(torch.equal(a[:, :n], b[:, :n]) for a, b, n in zip(whole.values, cut.values, whole.lengths, strict=True))
        pieces = decode_in_chunks(codec, whole, chunk_frames=chunk)
        torch.testing.assert_close(pieces, codec.decode(whole), atol=1e-6, rtol=0)


@st.composite
def cuts(draw, total):
    inner = draw(st.lists(st.integers(0, total), max_size=8))
    return [end - start for start, end in pairwise([0, *sorted(inner), total])]


@settings(max_examples=20, deadline=None)
@given(data=st.data(), window=st.sampled_from([0, 3]), channels=st.sampled_from([1, 2]), method=st.sampled_from(["gradient", "ema"]))
def test_a_stream_is_the_whole(data, window, channels, method):
    quantizer = QUANTIZER if method == "gradient" else QuantizerSettings(method="ema", num_levels=2, codebook_size=16)
    codec = tiny(attention_window=window, channels=channels, quantizer=quantizer)
    samples = data.draw(st.integers(1, 100))
    waveform = noise(1, channels, samples)
    with torch.no_grad():
        whole = codec.encode(waveform, torch.tensor([samples]))
        stream = codec.stream()
        for _ in range(2):  # a stream takes one clip after the other
            pieces = waveform[0].split(data.draw(cuts(samples)), dim=-1)
            codes = torch.cat([stream.encode(piece, last=index == len(pieces) - 1) for index, piece in enumerate(pieces)], -1)
            assert torch.equal(codes, whole.values[0])
            parts = codes[:1].split(data.draw(cuts(codes.shape[-1])), dim=-1)
            decoded = torch.cat([stream.decode(part, last=index == len(parts) - 1) for index, part in enumerate(parts)], -1)
            first = whole.with_values(whole.values[:, :1])
            torch.testing.assert_close(decoded, codec.decode(first)[0], atol=1e-6, rtol=0)


def test_a_stream_in_single_precision_stays_near():
    codec = tiny(dtype=torch.float32)
    waveform = noise(1, 1, 120, dtype=torch.float32)
    stream = codec.stream()
    codes = torch.cat([stream.encode(piece) for piece in waveform[0].split(7, -1)], -1)
    whole = codec.encode(waveform, torch.tensor([120]))
    assert torch.equal(codes, whole.values[0])
    decoded = torch.cat([stream.decode(piece) for piece in codes.split(3, -1)], -1)
    torch.testing.assert_close(decoded, codec.decode(whole)[0], atol=1e-5, rtol=0)


def test_a_stream_refuses_other_values():
    stream = tiny().stream()
    with pytest.raises(DataError, match=r"the samples are torch.float64 \[2, 5\]; expected float \[1, L\]"):
        stream.encode(noise(2, 5))
    with pytest.raises(DataError, match="clip 0 has the code 16 in frame 1 of level 2; expected a code from 0 to 15"):
        stream.decode(torch.tensor([[0, 1], [0, 1], [0, 16]]))


@pytest.mark.parametrize("method", [{}, {"method": "ema", "groups": 2}, {"method": "fsq", "steps": (5, 4)}, {"method": "lfq"}])
def test_fewer_levels_are_further_away(method):
    sizes = {} if method.get("method") == "fsq" else {"codebook_size": 16}
    codec = tiny(
        quantizer=QuantizerSettings(num_levels=4, level_dropout=0.0, **sizes, **method, **({} if method else {"codebook_dim": 4})),
        warmup_steps=1,
    )
    waveform, lengths = noise(8, 1, 240), torch.full((8,), 240)
    codec.reconstruct(waveform, lengths, generators(8))
    codec.after_step(OneRank())
    with torch.no_grad():
        latents, codes = codec.encoder(waveform), codec.encode(waveform, lengths).values
        errors = [(codec.bottleneck.decode(codes[:, :k]) - latents).square().mean().item() for k in range(1, codes.shape[1] + 1)]
        shorter = codec.decode(Representation(codes[:, :2], torch.full((8,), 40), codec.spec))
    assert shorter.shape == (8, 1, 240)
    if method.get("method") in (None, "ema"):  # the others have projections that no step has trained yet
        assert errors == sorted(errors, reverse=True) and errors[-1] < 0.5 * errors[0]


# Training


@pytest.mark.parametrize("method", ["gradient", "ema", "fsq", "lfq"])
def test_a_small_one_learns(method):
    torch.manual_seed(0)
    sizes = {
        "gradient": {"codebook_size": 32, "codebook_dim": 4},
        "ema": {"codebook_size": 32},
        "fsq": {"steps": (5, 5, 5)},
        "lfq": {"codebook_size": 64},
    }
    quantizer = QuantizerSettings(method=method, num_levels=2, **sizes[method])
    codec = SoundStreamCodec(**{**TINY, "base_channels": 8}, quantizer=quantizer, warmup_steps=15)
    time = torch.arange(120) / 8000
    waveform = torch.stack([torch.sin(2 * torch.pi * f * time) for f in (200.0, 450.0, 800.0)])[:, None]
    lengths = torch.tensor([120, 120, 100])
    optimizer = torch.optim.Adam(codec.parameters(), lr=5e-3)
    history = []
    for step in range(50):
        drawn = [torch.Generator().manual_seed(3 * step + clip) for clip in range(3)]
        estimate, losses = codec.reconstruct(waveform, lengths, drawn)
        error = (estimate - waveform).abs().mean()
        history.append(error.item())
        optimizer.zero_grad()
        (10 * error + sum(total / count for name, (total, count) in losses.items() if "/" not in name)).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in codec.parameters())
        optimizer.step()
        codec.after_step(OneRank())
    assert codec.bottleneck.quantizes
    codec.eval()
    with torch.no_grad():
        decoded = codec.decode(codec.encode(waveform, lengths))
        estimate, _ = codec.reconstruct(waveform, lengths, drawn)
    torch.testing.assert_close(decoded, estimate, atol=1e-5, rtol=0)  # training sees what is decoded later
    assert (decoded - waveform).abs().mean() < 0.6 * history[0]


def test_half_precision_stays_near_and_quantizes_in_float32():
    codec = tiny(dtype=torch.float32)
    waveform, lengths = noise(2, 1, 120, dtype=torch.float32), torch.tensor([120, 100])
    _, full = codec.eval().reconstruct(waveform, lengths, generators(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        estimate, half = codec.reconstruct(waveform, lengths, generators(2))
    assert estimate.isfinite().all()
    for name, (total, count) in half.items():
        assert total.dtype == torch.float32
        torch.testing.assert_close(total / count, full[name][0] / count, rtol=0.1, atol=1e-3)


def test_silence_trains_without_infinities():
    codec = tiny(quantizer=QuantizerSettings(method="ema", num_levels=2, codebook_size=8))
    for _ in range(3):
        estimate, losses = codec.reconstruct(torch.zeros(1, 1, 60, dtype=torch.float64), torch.tensor([60]), generators(1))
        codec.zero_grad()
        (estimate.square().sum() + losses["commitment"][0]).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in codec.parameters())
        codec.after_step(OneRank())
    assert all(buffer.isfinite().all() for buffer in codec.buffers())


def test_only_codebooks_that_start_are_whole():
    codec = tiny()
    assert [id(module) for module in codec.whole] == [id(codec.bottleneck)]
    assert tuple(tiny(quantizer=QuantizerSettings(method="ema", codebook_size=8)).whole) == ()


# Specs and files


def test_a_spec_sets_the_quantizer():
    arguments = {**TINY, "channel_multiples": [1, 2], "strides": [2, 3]}
    codec = registry.build("codec", Slot("soundstream", {**arguments, "quantizer": {"method": "ema", "num_levels": 2, "decay": 0.9}}))
    assert codec.spec.codebook_sizes == (1024, 1024) and codec.bottleneck.groups[0].decay == 0.9
    with pytest.raises(SpecError, match=r"unknown key '.*quantizer.level'.*Did you mean 'num_levels'"):
        registry.build("codec", Slot("soundstream", {**arguments, "quantizer": {"level": 2}}))
    with pytest.raises(SpecError, match=r"quantizer.method is 'emma'; expected one of gradient, ema, fsq, lfq. Did you mean 'ema'"):
        registry.build("codec", Slot("soundstream", {**arguments, "quantizer": {"method": "emma"}}))


def test_weights_load_and_give_the_same_codes(tmp_path):
    codec = tiny(dtype=torch.float32)
    save_file(codec.state_dict(), tmp_path / "codec.safetensors")
    loaded = SoundStreamCodec(**TINY, quantizer=QUANTIZER, weights=str(tmp_path / "codec.safetensors"))
    waveform, lengths = noise(1, 1, 60, dtype=torch.float32), torch.tensor([60])
    assert torch.equal(loaded.encode(waveform, lengths).values, codec.encode(waveform, lengths).values)
    with pytest.raises(CheckpointError, match="does not fit this SoundStreamCodec"):
        SoundStreamCodec(**TINY, quantizer=QuantizerSettings(method="ema"), weights=str(tmp_path / "codec.safetensors"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"strides": (2, 4, 4)}, "expected lists of the same length"),
        ({"strides": (1, 4)}, r"strides is \[1, 4\]; expected strides from 2"),
        ({"latent_dim": 0}, "latent_dim is 0; expected at least 1"),
        ({"channel_multiples": (1, 0)}, r"channel_multiples is \[1, 0\]; expected at least 1 everywhere"),
        ({"attention_window": -1}, "attention_window is -1 and warmup_steps is 0; expected at least 0 of both"),
        ({"attention_window": 8, "latent_dim": 7}, "latent_dim is 7; expected an even number"),
        ({"sample_rate": 0}, "at least 1"),
    ],
)
def test_refuses_wrong_sizes(changes, told):
    with pytest.raises(SpecError, match=told):
        SoundStreamCodec(**{**TINY, **changes})
