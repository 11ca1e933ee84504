"""Clips cut into chunks against the same clips in one piece, and how far each codec looks against what its derivatives say."""

import gc
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from soundomni.core.assembly.chunked import decode_in_chunks, decode_in_groups, encode_in_chunks, iter_decoded, iter_encoded
from soundomni.core.errors import DataError, SpecError
from soundomni.core.interfaces import Codec, ReceptiveField
from soundomni.core.representation import Representation, RepresentationSpec
from soundomni.vae import MDCTCodec, OobleckCodec
from soundomni.vae.padding import zero_beyond
from soundomni.vae.receptive_field import input_span

STRIDES = [(2, 4), (3, 2), (5, 3), (4,)]


def oobleck(strides=(2, 4), *, channels=1, seed=0, dtype=torch.float32, cls=OobleckCodec, **changes) -> OobleckCodec:
    """A small codec whose every parameter is away from where it starts, biases and snakes included."""
    torch.manual_seed(seed)
    sizes = {"base_channels": 2, "channel_multiples": (1,) * len(strides), "latent_dim": 2}
    codec = cls(sample_rate=8000, channels=channels, strides=strides, **{**sizes, **changes})
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return codec.to(dtype)


class Overlapping(Codec):
    """Codes with two extra frames: frame t holds the rounded sum of blocks t - 2 to t, block t of samples that of frames t to t + 2."""

    spec = RepresentationSpec(kind="codes", sample_rate=8000, channels=1, downsampling_ratio=3, codebook_sizes=(10**6,), extra_frames=2)
    receptive_field = ReceptiveField(encode=0, decode=0)

    def encode(self, waveform, lengths, generators=None):
        blocks = zero_beyond(waveform, lengths)
        blocks = functional.pad(blocks, (0, -blocks.shape[-1] % 3)).unfold(-1, 3, 3).sum(-1)
        sums = functional.pad(blocks, (2, 2)).unfold(-1, 3, 1).sum(-1)
        return Representation((1000 * sums).round().long() + 500_000, -(-lengths // 3) + 2, self.spec)

    def decode(self, representation):
        codes = zero_beyond(representation.values.double(), representation.lengths)
        return codes.unfold(-1, 3, 1).sum(-1).repeat_interleave(3, dim=-1)


class WholeClips(MDCTCodec):
    receptive_field = None


def in_one_piece(codec: Codec, waveform: Tensor, lengths: list[int]) -> tuple[Representation, Tensor]:
    with torch.no_grad():
        encoded = codec.encode(waveform, torch.tensor(lengths))
        return encoded, codec.decode(encoded)


def assert_equal_to(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Differences are at most `tolerance`, relative to the largest value."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def assert_cuts_exactly(codec: Codec, waveform: Tensor, lengths: list[int], chunk_frames: int, tolerance: float) -> None:
    encoded, decoded = in_one_piece(codec, waveform, lengths)
    cut = encode_in_chunks(codec, waveform, torch.tensor(lengths), chunk_frames=chunk_frames)
    back = decode_in_chunks(codec, encoded, chunk_frames=chunk_frames)
    assert cut.lengths.dtype == torch.int64 and cut.lengths.tolist() == encoded.lengths.tolist() and cut.spec == codec.spec
    assert cut.values.shape[-1] == cut.lengths.max() and back.shape[-1] == codec.spec.num_samples(int(cut.lengths.max()))
    for i, (length, frames) in enumerate(zip(lengths, encoded.lengths.tolist(), strict=True)):
        assert_equal_to(cut.values[i, :, :frames], encoded.values[i, :, :frames], tolerance)
        assert not cut.values[i, :, frames:].any()
        samples = codec.spec.num_samples(frames)
        assert samples >= length
        assert_equal_to(back[i, :, :samples], decoded[i, :, :samples], tolerance)
        assert not back[i, :, samples:].any()


@settings(max_examples=25, deadline=None)
@given(
    strides=st.sampled_from(STRIDES),
    channels=st.integers(1, 2),
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=3),
    chunk_frames=st.sampled_from([1, 2, 3, 7, 20, 200]),
    variant=st.sampled_from([{}, {"use_snake": False, "final_tanh": True}]),
    exact=st.booleans(),
)
def test_oobleck_in_chunks_is_oobleck_in_one_piece(strides, channels, lengths, chunk_frames, variant, exact):
    dtype, tolerance = (torch.float64, 1e-13) if exact else (torch.float32, 1e-5)
    codec = oobleck(strides, channels=channels, dtype=dtype, **variant)
    waveform = torch.randn(len(lengths), channels, max(lengths) + 5, dtype=dtype)  # beyond each clip lies garbage
    assert_cuts_exactly(codec, waveform, lengths, chunk_frames, tolerance)


@settings(max_examples=40, deadline=None)
@given(
    hop=st.integers(1, 40),
    channels=st.integers(1, 2),
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=4),
    chunk_frames=st.integers(1, 12),
    companding=st.sampled_from([1.0, 0.5]),
)
def test_mdct_in_chunks_is_mdct_in_one_piece_and_gives_back_the_samples(hop, channels, lengths, chunk_frames, companding):
    codec = MDCTCodec(sample_rate=8000, channels=channels, frame_size=hop, companding=companding)
    waveform = torch.randn(len(lengths), channels, max(lengths), dtype=torch.float64)
    assert_cuts_exactly(codec, waveform, lengths, chunk_frames, 1e-13)
    encoded = encode_in_chunks(codec, waveform.float(), torch.tensor(lengths), chunk_frames=chunk_frames)
    back = decode_in_chunks(codec, encoded, chunk_frames=chunk_frames)
    for i, length in enumerate(lengths):
        assert_equal_to(back[i, :, :length], waveform[i, :, :length].float(), 1e-5)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=3), chunk_frames=st.integers(1, 12))
def test_codes_with_more_extra_frames_are_the_same(lengths, chunk_frames):
    assert_cuts_exactly(Overlapping(), torch.randn(len(lengths), 1, max(lengths)), lengths, chunk_frames, 0.0)


@settings(max_examples=20, deadline=None)
@given(
    codec=st.sampled_from([oobleck((2, 4)), MDCTCodec(frame_size=5), Overlapping()]),
    length=st.integers(1, 600),
    chunk_frames=st.integers(1, 30),
    data=st.data(),
)
def test_a_stream_is_the_clip_however_its_blocks_fall(codec, length, chunk_frames, data):
    waveform = torch.randn(1, 1, length)
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=6)))
    expected = encode_in_chunks(codec, waveform, torch.tensor([length]), chunk_frames=chunk_frames)
    chunks = list(iter_encoded(codec, waveform[0].tensor_split(cuts, dim=-1), chunk_frames=chunk_frames))
    assert [chunk.shape[-1] for chunk in chunks[:-1]] == [chunk_frames] * (len(chunks) - 1)
    assert torch.equal(torch.cat(chunks, dim=-1), expected.values[0])
    samples = list(iter_decoded(codec, chunks, chunk_frames=chunk_frames))
    assert torch.equal(torch.cat(samples, dim=-1), decode_in_chunks(codec, expected, chunk_frames=chunk_frames)[0])


def reach(output: Tensor, given: Tensor) -> tuple[int, int]:
    """The first and last position of `given` `[1, C, L]` that the sum of `output`, with random weights, changes with."""
    (slope,) = torch.autograd.grad((output * torch.rand_like(output)).sum(), given)
    positions = slope.abs().sum((0, 1)).nonzero().flatten().tolist()
    return positions[0], positions[-1]


@pytest.mark.parametrize("strides", [*STRIDES, (2, 4, 4, 8, 8)])
def test_oobleck_looks_just_as_far_as_it_says(strides):
    codec, ratio = oobleck(strides, dtype=torch.float64), math.prod(strides)
    field = codec.receptive_field
    frame, frames = field.decode + 2, 2 * field.decode + 5
    waveform = torch.randn(1, 1, frames * ratio, dtype=torch.float64, requires_grad=True)
    first, last = reach(codec.encode(waveform, torch.tensor([frames * ratio])).values[..., frame], waveform)
    assert (first - frame * ratio, last - frame * ratio) == input_span(codec.encoder, 0, 0)
    assert field.encode == max(frame - first // ratio, last // ratio - frame)
    latent = torch.randn(1, 2, frames, dtype=torch.float64, requires_grad=True)
    decoded = codec.decode(Representation(latent, torch.tensor([frames]), codec.spec))
    first, last = reach(decoded[..., frame * ratio : (frame + 1) * ratio], latent)
    assert field.decode == max(frame - first, last - frame)


def test_stable_audio_looks_at_8_and_10_frames():
    with torch.device("meta"):
        assert OobleckCodec().receptive_field == ReceptiveField(encode=8, decode=10)


class Counting(OobleckCodec):
    """Remembers the most numbers that went in at once."""

    largest = 0

    def encode(self, waveform, lengths, generators=None):
        self.largest = max(self.largest, waveform.numel())
        return super().encode(waveform, lengths, generators)

    def decode(self, representation):
        self.largest = max(self.largest, representation.values.numel())
        return super().decode(representation)


@pytest.mark.parametrize("seconds", [1, 8])
def test_what_goes_in_at_once_does_not_grow_with_the_clip(seconds):
    codec, length = oobleck(channels=2, cls=Counting), 8000 * seconds
    field, ratio = codec.receptive_field, codec.spec.downsampling_ratio
    waveform = torch.randn(1, 2, length)
    encoded = encode_in_chunks(codec, waveform, torch.tensor([length]), chunk_frames=100)
    assert codec.largest == 2 * (100 + 2 * field.encode) * ratio
    codec.largest = 0
    decode_in_chunks(codec, encoded, chunk_frames=100)
    assert codec.largest == 2 * (100 + 2 * field.decode)


def numbers_alive() -> int:
    """Of all tensors, each storage counted once."""
    tensors = [item for item in gc.get_objects() if type(item) is Tensor]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // t.element_size() for t in tensors}.values())


def test_what_is_held_of_a_stream_does_not_grow_with_the_clip():
    codec = oobleck()
    before, waited = numbers_alive(), []

    def blocks():
        for _ in range(5):
            waited.append(numbers_alive() - before)
            yield from (torch.randn(1, 1000) for _ in range(8))

    latents = iter_encoded(codec, blocks(), chunk_frames=50)
    received = sum(samples.shape[-1] for samples in iter_decoded(codec, latents, chunk_frames=50))
    assert received == 40_000 and len(waited) == 5
    assert 0 < max(waited) < 6000


def test_chunks_carry_no_gradients():
    codec, waveform = oobleck(), torch.randn(2, 1, 100, requires_grad=True)
    encoded = encode_in_chunks(codec, waveform, torch.tensor([100, 60]), chunk_frames=4)
    assert not encoded.values.requires_grad
    assert not decode_in_chunks(codec, encoded, chunk_frames=4).requires_grad


def test_sampled_latents_are_cut_at_their_mean():
    codec, waveform, lengths = oobleck(sample_latents=True), torch.randn(1, 1, 300), torch.tensor([300])
    mean = codec.encode(waveform, lengths).values.detach()
    assert_equal_to(encode_in_chunks(codec, waveform, lengths, chunk_frames=5).values, mean, 1e-5)


def test_too_few_frames_for_a_sample_decode_to_nothing():
    codec = MDCTCodec(frame_size=4)
    latent = Representation(torch.randn(2, 4, 3), torch.tensor([1, 0]), codec.spec)
    assert decode_in_chunks(codec, latent, chunk_frames=2).shape == (2, 1, 0)
    assert list(iter_decoded(codec, [], chunk_frames=2)) == []


def test_what_cannot_be_cut_is_refused_before_anything_is_read():
    codec, waveform, lengths = MDCTCodec(frame_size=4), torch.randn(2, 1, 30), torch.tensor([30, 10])
    for cut in (iter_encoded, iter_decoded):
        with pytest.raises(SpecError, match="chunk_frames is 0; expected at least 1"):
            cut(codec, [], chunk_frames=0)
        with pytest.raises(SpecError, match="WholeClips declares no receptive_field, .* whole"):
            cut(WholeClips(), [], chunk_frames=1)
    with pytest.raises(SpecError, match="chunk_frames is -3; expected at least 1"):
        encode_in_chunks(codec, waveform, lengths, chunk_frames=-3)
    with pytest.raises(SpecError, match="declares no receptive_field"):
        encode_in_chunks(WholeClips(), waveform, lengths, chunk_frames=1)
    with pytest.raises(DataError, match=r"lengths is \[30, 0\]; expected numbers from 1 to 30"):
        encode_in_chunks(codec, waveform, torch.tensor([30, 0]), chunk_frames=1)
    with pytest.raises(DataError, match=r"expected \[2\], one per clip"):
        encode_in_chunks(codec, waveform, torch.tensor([30]), chunk_frames=1)
    with pytest.raises(DataError, match="there is nothing to encode"):
        list(iter_encoded(codec, [torch.zeros(1, 0)], chunk_frames=1))
    with pytest.raises(DataError, match=r"lengths is \[4\]; expected numbers from 0 to 3"):
        decode_in_chunks(codec, Representation(torch.zeros(1, 4, 3), torch.tensor([4]), codec.spec), chunk_frames=1)


@settings(max_examples=30, deadline=None)
@given(
    codec=st.sampled_from([oobleck((2, 4), dtype=torch.float64), MDCTCodec(frame_size=5), WholeClips(frame_size=5), Overlapping()]),
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=5),
    most_frames=st.integers(1, 80),
)
def test_groups_of_clips_are_decoded_as_all_at_once(codec, lengths, most_frames):
    encoded, expected = in_one_piece(codec, torch.randn(len(lengths), codec.spec.channels, max(lengths), dtype=torch.float64), lengths)
    found = decode_in_groups(codec, encoded, most_frames=most_frames)
    for i, frames in enumerate(encoded.lengths.tolist()):
        samples = codec.spec.num_samples(frames)
        assert_equal_to(found[i, :, :samples], expected[i, :, :samples], 1e-13)


@pytest.mark.parametrize(("clips", "frames", "calls"), [(6, 10, 2), (6, 30, 6), (6, 31, 6), (2, 70, 2), (40, 1, 2)])
def test_as_many_whole_clips_share_a_call_as_there_is_memory_for(clips, frames, calls, monkeypatch):
    codec, seen = WholeClips(frame_size=5), []
    decode = codec.decode
    monkeypatch.setattr(codec, "decode", lambda given: (seen.append(len(given.values)), decode(given))[1])
    decode_in_groups(codec, Representation(torch.randn(clips, 5, frames), torch.full((clips,), frames), codec.spec), most_frames=30)
    assert sum(seen) == clips and len(seen) == calls


@pytest.mark.parametrize("run", ["groups", "decode", "encode"])
def test_normalized_weights_are_computed_once_for_all_pieces_and_anew_after_a_change(run):
    codec, counts = oobleck((2, 4)), Counter()
    network = codec.encoder if run == "encode" else codec.decoder
    norms = [m for name, m in network.named_modules() if name.endswith("parametrizations.weight.0")]
    for norm in norms:
        norm.register_forward_hook(lambda module, *_: counts.update([module]))
    waveform, length = torch.randn(3, 1, 400), torch.tensor([400, 400, 170])
    encoded, _ = in_one_piece(codec, waveform, length.tolist())

    def once():
        counts.clear()
        if run == "encode":
            return encode_in_chunks(codec, waveform, length, chunk_frames=7).values
        used = decode_in_groups if run == "groups" else decode_in_chunks
        size = {"most_frames": 100} if run == "groups" else {"chunk_frames": 7}
        return used(codec, encoded, **size)

    first = once()
    assert len(norms) > 5 and set(counts.values()) == {1} and len(counts) == len(norms)
    with torch.no_grad():
        for norm in [p for name, p in network.named_parameters() if name.endswith("original0")]:
            norm.mul_(1.5)
    assert not torch.allclose(first, once(), rtol=1e-2)
    codec.reconstruct(waveform, length, [torch.Generator()] * 3)[0].abs().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
