"""Clips of any length through a codec, piece by piece: the same values as in one piece, in memory that does not grow.

A clip can be cut anywhere if the codec says how far it looks (`Codec.receptive_field`). Each piece runs with that many
extra frames on either side, or a few more if the codec counts groups of frames, and their output is dropped. At a clip's
start and end there is no context: the piece ends where the clip does, so that the codec pads it as it pads the whole
clip. Because of biases, encoding explicit silence gives a different result.

With ratio R, E extra frames and a receptive field of c frames, frame t is computed from the samples of the blocks of R from t - E - c
to t + c, and block t of decoded samples from the frames from t - c to t + E + c.

Shape letters: B clips, C audio channels, S samples, D latent dimensions or codebooks, T frames, L positions (samples or frames).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from soundomni.core.errors import DataError, SpecError
from soundomni.core.full_precision import full_precision
from soundomni.core.interfaces import Codec, ReceptiveField
from soundomni.core.limits import check_count
from soundomni.core.representation import Representation, RepresentationSpec

CHUNK_SECONDS = 30.0
"""Seconds of audio that go through a codec at once by default."""


def chunk_frames_of(spec: RepresentationSpec, seconds: float = CHUNK_SECONDS) -> int:
    """Return the frames of a piece of `seconds`, at least 1."""
    return max(1, round(seconds * spec.sample_rate / spec.downsampling_ratio))


def device_of(codec: Codec, otherwise: Tensor) -> torch.device:
    """Return the device of the codec; for a codec without tensors, that of its input."""
    return next((tensor.device for tensor in chain(codec.parameters(), codec.buffers())), otherwise.device)


def decode_in_groups(codec: Codec, representation: Representation, *, most_frames: int) -> Tensor:
    """Decode clips as `codec.decode` does, in the memory that `most_frames` frames take. No gradients.

    Clips that have at most that many frames together share a call. Longer ones go through one by one: in pieces, or
    whole if the codec does not declare a `receptive_field`.

    Args:
        codec: the codec, on the device of the values.
        representation: values `[B, D, T]`.
        most_frames: frames that go through the codec at once, without the context around a piece.

    Returns:
        `[B, C, S]` on the values' device, S at least `spec.num_samples(T)` for the T frames of the longest clip.

    Raises:
        SpecError: `most_frames` is below 1.
        DataError: the codec refuses the values.
    """
    check_count("most_frames", most_frames)
    values, lengths, spec = representation.values, representation.lengths, representation.spec
    if values.shape[-1] > most_frames and codec.receptive_field is not None:
        return decode_in_chunks(codec, representation, chunk_frames=most_frames)
    count = max(1, most_frames // max(1, values.shape[-1]))
    with torch.no_grad(), parametrize.cached(), full_precision(values.device):
        if count >= len(values):
            return codec.decode(representation)
        groups = zip(torch.split(values, count), torch.split(lengths, count), strict=True)
        return torch.cat([codec.decode(Representation(some, theirs, spec)) for some, theirs in groups])


def encode_in_chunks(codec: Codec, waveform: Tensor, lengths: Tensor, *, chunk_frames: int) -> Representation:
    """Encode clip after clip as `codec.encode` does without generators, to the mean. No gradients.

    Args:
        codec: the codec; it may be on another device than the clips; one piece at a time goes there, and its frames
            come back.
        waveform: `[B, C, S]`.
        lengths: `[B]`, samples of each clip, from 1 to S.
        chunk_frames: frames of a piece, without the context around it.

    Returns:
        Values `[B, D, T]` on the waveform's device, T being the frames of the longest clip, zero beyond each clip.

    Raises:
        SpecError: the codec only takes whole clips, or `chunk_frames` is below 1.
        DataError: a length is out of its range, or the codec refuses the waveform.
    """
    check_count("chunk_frames", chunk_frames)
    _check_lengths(lengths, waveform, least=1)
    spec, counts = codec.spec, lengths.tolist()
    frames = [spec.num_frames(count) for count in counts]
    block = chunk_frames * spec.downsampling_ratio
    clips = (clip[:, :count].split(block, dim=-1) for clip, count in zip(waveform, counts, strict=True))
    with parametrize.cached():  # normalized weights are computed once for all pieces
        values = _gather((iter_encoded(codec, clip, chunk_frames=chunk_frames) for clip in clips), spec.token_dim, frames, waveform)
    return Representation(values, torch.tensor(frames, device=lengths.device), spec)


def decode_in_chunks(codec: Codec, representation: Representation, *, chunk_frames: int) -> Tensor:
    """Decode clip after clip as `codec.decode` does. No gradients.

    Args:
        codec: the codec; it may be on another device than the values; one piece at a time goes there, and its samples
            come back.
        representation: values `[B, D, T]`.
        chunk_frames: frames of a piece, without the context around it.

    Returns:
        `[B, C, S]` on the values' device, S being `spec.num_samples` of the longest clip's frames, zero beyond that of each clip.

    Raises:
        SpecError: the codec only takes whole clips, or `chunk_frames` is below 1.
        DataError: a length is out of its range, or the codec refuses the values.
    """
    check_count("chunk_frames", chunk_frames)
    values, spec = representation.values, codec.spec
    _check_lengths(representation.lengths, values, least=0)
    frames = representation.lengths.tolist()
    clips = (clip[:, :count].split(chunk_frames, dim=-1) for clip, count in zip(values, frames, strict=True))
    samples = [spec.num_samples(count) for count in frames]
    with parametrize.cached():  # normalized weights are computed once for all pieces
        return _gather((iter_decoded(codec, clip, chunk_frames=chunk_frames) for clip in clips), spec.channels, samples, values)


def iter_encoded(codec: Codec, blocks: Iterable[Tensor], *, chunk_frames: int) -> Iterator[Tensor]:
    """Encode one clip as it comes in, such as from a file, as `codec.encode` does without generators. No gradients.

    Memory holds a piece, its context and a block at a time.

    Args:
        codec: the codec; it may be on another device than the blocks.
        blocks: `[C, L]` with any lengths L: consecutive samples of the clip at `codec.spec.sample_rate`.
        chunk_frames: frames of a piece, without the context around it.

    Returns:
        `[D, L]` of `chunk_frames` frames each, the last of those left, on the blocks' device; `spec.num_frames` in all.

    Raises:
        SpecError: the codec only takes whole clips, or `chunk_frames` is below 1.
        DataError: there is no sample, or the codec refuses a block.
    """
    spec, field = codec.spec, _receptive_field(codec, chunk_frames)
    window = _Window(unit=spec.downsampling_ratio, before=spec.extra_frames + field.encode, after=field.encode, step=field.step)

    def total(num_samples: int) -> int:
        if num_samples < 1:
            raise DataError("there is nothing to encode: the blocks are empty; expected at least 1 sample")
        return spec.num_frames(num_samples)

    @torch.no_grad()
    def run(piece: Tensor, skip: int, count: int) -> Tensor:
        batch = piece[None].to(device_of(codec, piece))
        with full_precision(batch.device):
            encoded = codec.encode(batch, torch.tensor([piece.shape[-1]], device=batch.device))
        return encoded.values[0, :, skip : skip + count].to(piece.device)

    return _in_pieces(blocks, window, chunk_frames, total, run)


def iter_decoded(codec: Codec, blocks: Iterable[Tensor], *, chunk_frames: int) -> Iterator[Tensor]:
    """Decode one clip as its frames come in, as `codec.decode` does. No gradients.

    Memory holds a piece, its context and a block at a time.

    Args:
        codec: the codec; it may be on another device than the blocks.
        blocks: `[D, L]` with any lengths L: consecutive frames of the clip.
        chunk_frames: frames of a piece, without the context around it.

    Returns:
        `[C, L]` of `chunk_frames` frames each, the last of those left, on the blocks' device; `spec.num_samples` in
        all.

    Raises:
        SpecError: the codec only takes whole clips, or `chunk_frames` is below 1.
        DataError: the codec refuses a block.
    """
    spec, field = codec.spec, _receptive_field(codec, chunk_frames)
    window = _Window(unit=1, before=field.decode, after=spec.extra_frames + field.decode, step=field.step)
    ratio = spec.downsampling_ratio

    def total(num_frames: int) -> int:
        return max(0, num_frames - spec.extra_frames)

    @torch.no_grad()
    def run(piece: Tensor, skip: int, count: int) -> Tensor:
        batch = piece[None].to(device_of(codec, piece))
        with full_precision(batch.device):
            decoded = codec.decode(Representation(batch, torch.tensor([piece.shape[-1]], device=batch.device), spec))
        return decoded[0, :, skip * ratio : (skip + count) * ratio].to(piece.device)

    return _in_pieces(blocks, window, chunk_frames, total, run)


class _Window:
    """The part of a clip that is still needed, while it comes in block by block.

    Input and output are counted in units; output unit t needs the input units from t - before to t + after.

    Args:
        unit: positions of an input unit.
        before, after: how many input units an output unit needs around its own.
        step: pieces begin at multiples of this many units.
    """

    def __init__(self, *, unit: int, before: int, after: int, step: int) -> None:
        self.unit = unit
        self.before = before
        self.after = after
        self.step = step
        self.next = 0
        """The output unit that comes next."""
        self._start = 0
        self._held: Tensor | None = None

    @property
    def end(self) -> int:
        """Number of positions that came in so far."""
        return self._start * self.unit + (0 if self._held is None else self._held.shape[-1])

    def push(self, block: Tensor) -> None:
        """Take in `[..., L]`."""
        self._held = block if self._held is None else torch.cat([self._held, block], dim=-1)

    def is_enough_for(self, count: int) -> bool:
        """Return whether all input that the next `count` output units need has come in."""
        return self.end >= (self.next + count + self.after) * self.unit

    def pop(self, count: int) -> tuple[Tensor, int]:
        """Return the piece `[..., L]` for the next `count` output units, and how many of its output units come first."""
        assert self._held is not None, "nothing was taken in"
        piece = self._held[..., : (self.next + count + self.after - self._start) * self.unit]
        skip = self.next - self._start
        self.next += count
        start = max(0, self.next - self.before) // self.step * self.step
        self._held = self._held[..., (start - self._start) * self.unit :]
        self._start = start
        return piece, skip


def _in_pieces(
    blocks: Iterable[Tensor],
    window: _Window,
    chunk: int,
    total: Callable[[int], int],
    run: Callable[[Tensor, int, int], Tensor],
) -> Iterator[Tensor]:
    """Yield `run(piece, skip, count)` piece by piece; `total` maps the positions of the whole input to output units."""
    for block in blocks:
        window.push(block)
        while window.is_enough_for(chunk):
            yield run(*window.pop(chunk), chunk)
    units = total(window.end)
    while window.next < units:
        count = min(chunk, units - window.next)
        yield run(*window.pop(count), count)


def _gather(streams: Iterable[Iterator[Tensor]], rows: int, lengths: list[int], like: Tensor) -> Tensor:
    """Return `[B, rows, longest]`, with the output of stream b, `[rows, lengths[b]]`, as clip b, and zeros beyond."""
    out: Tensor | None = None
    shape = (len(lengths), rows, max(lengths, default=0))
    for clip, stream in enumerate(streams):
        place = 0
        for piece in stream:
            out = piece.new_zeros(shape) if out is None else out
            out[clip, :, place : place + piece.shape[-1]] = piece
            place += piece.shape[-1]
    return like.new_zeros(shape) if out is None else out


def _receptive_field(codec: Codec, chunk_frames: int) -> ReceptiveField:
    check_count("chunk_frames", chunk_frames)
    if codec.receptive_field is None:
        raise SpecError(f"{type(codec).__name__} declares no receptive_field, so clips cannot be cut. Encode and decode them whole")
    return codec.receptive_field


def _check_lengths(lengths: Tensor, values: Tensor, *, least: int) -> None:
    if lengths.shape != values.shape[:1]:
        raise DataError(f"lengths has shape {list(lengths.shape)}; expected [{len(values)}], one per clip")
    if any(not least <= length <= values.shape[-1] for length in lengths.tolist()):
        raise DataError(f"lengths is {lengths.tolist()}; expected numbers from {least} to {values.shape[-1]}")
