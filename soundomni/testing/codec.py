"""Conformance of codecs.

Shape letters: B clips, C audio channels, S samples, D latent dimensions or codebooks, T frames.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from soundomni.core.assembly.chunked import decode_in_chunks, encode_in_chunks
from soundomni.core.errors import DataError
from soundomni.core.interfaces import Codec, LossTerms
from soundomni.core.representation import Representation, RepresentationSpec, length_mask
from soundomni.testing.suite import ModuleSuite, generator, noise, number, seeded


class CodecSuite(ModuleSuite):
    """Clauses of `soundomni.core.interfaces.Codec`.

    Attributes:
        tolerance: largest difference between a clip encoded on its own, or in chunks, and in a batch, or whole,
            relative above magnitude 1. Codes may not differ.
    """

    kind: ClassVar[str] = "codec"
    tolerance: ClassVar[float] = 1e-4

    @abstractmethod
    def make(self) -> Codec:
        """Return a new, small codec on the CPU."""

    def built(self, seed: int = 0) -> Codec:
        """Return `make()` with weights drawn from `seed`."""
        codec: Codec = seeded(self.make, seed)
        return codec

    def outputs(self, plugin: Any) -> list[Tensor]:
        """Return what encoding and decoding one clip gives; only its values if the codec only encodes."""
        encoded = _encode(plugin, [self.lengths(plugin)[-1]])
        return [encoded.values, plugin.decode(encoded)] if plugin.decodes else [encoded.values]

    def lengths(self, codec: Codec) -> list[int]:
        """Return lengths in samples around the first frame, and of several frames."""
        ratio = codec.spec.downsampling_ratio
        return sorted({1, max(1, ratio - 1), ratio, ratio + 1, 3 * ratio + ratio // 2})

    def test_spec(self) -> None:
        """The spec is complete, known before anything is encoded, and does not change."""
        codec = self.built()
        spec = codec.spec
        self.require(isinstance(spec, RepresentationSpec), "spec", f"spec is a {type(spec).__name__}; expected a RepresentationSpec")
        for name in ("sample_rate", "channels", "downsampling_ratio", "token_dim"):
            self.require(getattr(spec, name) > 0, "spec", f"spec.{name} is {getattr(spec, name)}; expected at least 1")
        if spec.kind == "continuous":
            self.require(not spec.codebook_sizes, "spec", f"continuous latents have codebook_sizes {spec.codebook_sizes}; expected none")
        else:
            self.require(spec.latent_dim is None, "spec", f"codes have latent_dim {spec.latent_dim}; expected None and codebook_sizes")
            sizes = spec.codebook_sizes
            self.require(min(sizes) > 0, "spec", f"spec.codebook_sizes is {list(sizes)}; expected at least 1 everywhere")
        _encode(codec, [self.lengths(codec)[-1]])
        self.require(codec.spec == spec, "spec", f"spec was {spec} before encoding and is {codec.spec} after; expected the same")

    def test_lengths(self) -> None:
        """A clip becomes `spec.num_frames` of its length, on its own and with longer ones."""
        codec = self.built()
        lengths = self.lengths(codec)
        for clips in (*([samples] for samples in lengths), lengths):
            encoded = _encode(codec, clips)
            for samples, found in zip(clips, encoded.lengths.tolist(), strict=True):
                expected, count = codec.spec.num_frames(samples), f"{samples} sample{'s' if samples > 1 else ''}"
                message = f"encode of {count} gave {found} frames, but spec.num_frames says {expected}"
                self.require(found == expected, "lengths", message)
            rows, longest = encoded.values.shape[-1], int(encoded.lengths.max())
            self.require(rows >= longest, "lengths", f"encode of {clips} samples gave {rows} frames, but lengths say {longest}")

    def test_values(self) -> None:
        """Latents are float `[B, D, T]`, codes int64 `[B, K, T]` within their codebooks; lengths are int64 `[B]`."""
        codec = self.built()
        lengths = self.lengths(codec)
        encoded, spec = _encode(codec, lengths), codec.spec
        self.require(encoded.spec == spec, "values", f"encode returned the spec {encoded.spec}, but the codec's is {spec}")
        shape = list(encoded.values.shape)
        wanted = [len(lengths), spec.token_dim]
        self.require(
            len(shape) == 3 and shape[:2] == wanted, "values", f"{len(lengths)} clips gave values {shape}; expected {[*wanted, 'T']}"
        )
        counts = encoded.lengths
        self.require(
            counts.dtype == torch.int64 and list(counts.shape) == [len(lengths)],
            "values",
            f"lengths are {counts.dtype} {list(counts.shape)}; expected int64 {[len(lengths)]}",
        )
        dtype = encoded.values.dtype
        if spec.kind == "continuous":
            self.require(dtype.is_floating_point, "values", f"latents are {dtype}; expected floating point")
            return
        self.require(dtype == torch.int64, "values", f"codes are {dtype}; expected int64")
        for clip, frames in enumerate(counts.tolist()):
            for level, size in enumerate(spec.codebook_sizes):
                codes = encoded.values[clip, level, :frames]
                low, high = int(codes.min()), int(codes.max())
                message = f"codes of level {level} run from {low} to {high}; expected within 0 to {size - 1}"
                self.require(low >= 0 and high < size, "values", message)

    def test_decode(self) -> None:
        """Decoding gives float `[B, C, S]` that is at least `spec.num_samples(T)` long; with `decodes` False, it raises
        DataError."""
        codec = self.built()
        if not codec.decodes:
            encoded = _encode(codec, [self.lengths(codec)[-1]])
            self.require(_is_refused(codec, encoded), "decode", "decodes is False, but decode returned; expected DataError")
            return
        for samples in self.lengths(codec):
            encoded = _encode(codec, [samples, samples])
            decoded, least = _decode(codec, encoded), codec.spec.num_samples(encoded.values.shape[-1])
            shape = list(decoded.shape)
            good = len(shape) == 3 and shape[:2] == [2, codec.spec.channels] and decoded.dtype.is_floating_point
            message = f"2 clips of {samples} sample{'s' if samples > 1 else ''} came back as {decoded.dtype} {shape}"
            self.require(good, "decode", f"{message}; expected floating point {[2, codec.spec.channels, 'S']}")
            long_enough = shape[-1] >= max(least, samples)
            self.require(long_enough, "decode", f"{message}; expected at least {max(least, samples)} samples")

    def test_batch(self) -> None:
        """Each clip of a batch is encoded as it is on its own, whatever comes with it or after its length."""
        codec = self.built()
        lengths = self.lengths(codec)
        together = _encode(codec, lengths)
        for clip, samples in enumerate(lengths):
            frames = codec.spec.num_frames(samples)
            alone = _encode(codec, [samples], first_clip=clip)
            message = f"a clip of {samples} samples is encoded differently on its own than in a batch of {len(lengths)}"
            self.require_close(together.values[clip, :, :frames], alone.values[0, :, :frames], self.tolerance, "batch", message)

    def test_decode_batch(self) -> None:
        """Each clip of a batch is decoded as it is on its own, whatever comes with it or after its frames."""
        codec = self.built()
        if not codec.decodes:
            return
        encoded, spec = _encode(codec, self.lengths(codec)), codec.spec
        within = length_mask(encoded.lengths, encoded.values.shape[-1])[:, None]
        other = noise(98, *encoded.values.shape) if spec.kind == "continuous" else torch.full_like(encoded.values, -1)
        together = _decode(codec, encoded.with_values(torch.where(within, encoded.values, other.to(encoded.values))))
        for clip, frames in enumerate(encoded.lengths.tolist()):
            alone = _decode(codec, Representation(encoded.values[clip : clip + 1, :, :frames], encoded.lengths[clip : clip + 1], spec))
            samples = spec.num_samples(frames)
            message = f"a clip of {frames} frame{'s' if frames > 1 else ''} is decoded differently on its own than in a batch"
            self.require_close(together[clip, :, :samples], alone[0, :, :samples], self.tolerance, "decode_batch", message)

    def test_fewer_levels(self) -> None:
        """A codec of codes also decodes clips of which only the first levels are given."""
        codec = self.built()
        if not codec.decodes:
            return
        encoded, levels = _encode(codec, self.lengths(codec)), len(codec.spec.codebook_sizes)
        expected = [len(encoded.values), codec.spec.channels, codec.spec.num_samples(encoded.values.shape[-1])]
        for count in range(1, levels):
            decoded = _decode(codec, encoded.with_values(encoded.values[:, :count]))
            shape = list(decoded.shape)
            good = len(shape) == 3 and shape[:2] == expected[:2] and shape[2] >= expected[2]
            message = f"{count} of {levels} levels came back as {shape}"
            self.require(good, "fewer_levels", f"{message}; expected {expected} or longer")
            self.require(bool(decoded.isfinite().all()), "fewer_levels", f"{message}, with samples that are not finite")

    def test_wrong_codes(self) -> None:
        """Decoding refuses a code that is not in its codebook with DataError."""
        codec = self.built()
        encoded = _encode(codec, [self.lengths(codec)[-1]])
        for level, size in enumerate(codec.spec.codebook_sizes):
            for code in (-1, size):
                values = encoded.values.clone()
                values[0, level, 0] = code
                refused = _is_refused(codec, encoded.with_values(values))
                message = f"decode took the code {code} of level {level}, whose codes run from 0 to {size - 1}; expected DataError"
                self.require(refused, "wrong_codes", message)

    def test_training_mode(self) -> None:
        """Encoding does not depend on `self.training`."""
        codec = self.built()
        samples = self.lengths(codec)[-1]
        trained, evaluated = _encode(codec.train(), [samples]), _encode(codec.eval(), [samples])
        message = "encode in train() differs from encode in eval()"
        self.require_close(trained.values, evaluated.values, self.tolerance, "training_mode", message)

    def test_deterministic(self) -> None:
        """Without generators encoding is not random."""
        codec = self.built()
        samples = self.lengths(codec)[-1]
        first, second = (seeded(lambda: _encode(codec, [samples]), seed) for seed in (1, 2))
        message = "two encodings of one clip without generators differ"
        self.require_close(second.values, first.values, self.tolerance, "deterministic", message)

    def test_generators(self) -> None:
        """Everything random about clip b depends only on `generators[b]`."""
        codec = self.built()
        lengths = self.lengths(codec)
        together = seeded(lambda: _encode(codec, lengths, generators=[generator(b) for b in range(len(lengths))]), 1)
        for clip, samples in enumerate(lengths):
            frames = codec.spec.num_frames(samples)
            alone = seeded(partial(_encode, codec, [samples], first_clip=clip, generators=[generator(clip)]), 2)
            message = f"clip {clip} is encoded differently on its own than in a batch, with a generator of the same seed"
            self.require_close(together.values[clip, :, :frames], alone.values[0, :, :frames], self.tolerance, "generators", message)

    def test_receptive_field(self) -> None:
        """A codec that declares a `receptive_field` gives the same result whole and in chunks with that much
        context."""
        codec = self.built()
        field, spec = codec.receptive_field, codec.spec
        if field is None:
            return
        for name, frames in (("encode", field.encode), ("decode", field.decode)):
            good = isinstance(frames, int) and frames >= 0
            self.require(good, "receptive_field", f"receptive_field.{name} is {frames!r}; expected a number of frames from 0")
        good = isinstance(field.step, int) and field.step >= 1
        self.require(good, "receptive_field", f"receptive_field.step is {field.step!r}; expected a number of frames from 1")
        samples = (2 * max(field.encode, field.decode) + 4) * spec.downsampling_ratio + (spec.downsampling_ratio + 1) // 2
        waveform, lengths = _waveform(codec, [samples], 0), torch.tensor([samples])
        encoded = _encode(codec, [samples])
        decoded = _decode(codec, encoded)[..., : spec.num_samples(int(encoded.lengths[0]))] if codec.decodes else None
        for chunk in (1, 3):
            cut = encode_in_chunks(codec, waveform, lengths, chunk_frames=chunk)
            told = f"in chunks of {chunk} frame{'s' if chunk > 1 else ''} with a context of"
            message = f"encode {told} {field.encode} differs from encode of the whole clip"
            self.require_close(cut.values, encoded.values[..., : cut.values.shape[-1]], self.tolerance, "receptive_field", message)
            if decoded is None:
                continue
            message = f"decode {told} {field.decode} differs from decode of the whole clip"
            pieces = decode_in_chunks(codec, encoded, chunk_frames=chunk)
            self.require_close(pieces, decoded, self.tolerance, "receptive_field", message)

    def test_round_trip(self) -> None:
        """Silence, noise and full scale are encoded and decoded to finite values."""
        codec = self.built()
        samples = self.lengths(codec)[-1]
        clips = noise(0, 1, codec.spec.channels, samples)
        for name, waveform in (("silence", 0 * clips), ("noise", 0.1 * clips), ("full scale", clips.sign())):
            with torch.no_grad():
                encoded = codec.encode(waveform, torch.tensor([samples]))
            finite = bool(encoded.values.isfinite().all())
            self.require(finite, "round_trip", f"encode of {name} gave values that are not finite")
            if not codec.decodes:
                continue
            finite = bool(_decode(codec, encoded)[..., :samples].isfinite().all())
            self.require(finite, "round_trip", f"decode of encoded {name} gave samples that are not finite")

    def test_reconstruct(self) -> None:
        """Training gets an estimate in the shape of the waveform, and finite (sum, count) pairs as losses; a codec with
        nothing to train keeps the contract's default."""
        codec = self.built()
        if not _is_trained(codec):
            return
        lengths = self.lengths(codec)
        estimate, losses = _reconstruct(codec, lengths)
        shape, wanted = list(estimate.shape), [len(lengths), codec.spec.channels, max(lengths)]
        good = shape == wanted and estimate.dtype.is_floating_point
        self.require(good, "reconstruct", f"the estimate is {estimate.dtype} {shape}; expected floating point {wanted}")
        named = [name for name in losses if "/" not in name]
        message = f"the losses are {', '.join(named) or 'none'}, but loss_names says {', '.join(codec.loss_names) or 'none'}"
        self.require(sorted(named) == sorted(codec.loss_names), "reconstruct", message)
        for name, (total, count) in losses.items():
            finite = bool(torch.isfinite(total)) and number(count) > 0
            given = f"loss '{name}' is ({number(total):.3g}, {number(count):.3g})"
            self.require(finite, "reconstruct", f"{given}; expected a finite sum and a count above 0")

    def test_reconstruct_gradients(self) -> None:
        """The gradient of an estimate reaches parameters; with that of the codec's own losses it reaches all."""
        codec = self.built()
        if not _is_trained(codec):
            return
        estimate, losses = _reconstruct(codec, self.lengths(codec))
        judged = _within(estimate, self.lengths(codec)).square().sum()
        own = [total for name, (total, _) in losses.items() if "/" not in name]
        total = torch.stack([judged, *(loss.to(judged) for loss in own)]).sum()
        message = "the estimate has no gradient; expected one for critics"
        self.require(estimate.requires_grad, "reconstruct_gradients", message)
        self.require_gradients(codec, total, "reconstruct_gradients", "an estimate and the codec's losses")
        reached = any(p.grad is not None and bool(p.grad.any()) for p in codec.parameters())
        self.require(reached, "reconstruct_gradients", "the gradients of all parameters are zero; expected others")

    def test_reconstruct_batch(self) -> None:
        """Each clip of a batch has the estimate that it has on its own; only `generators[b]` decides what is random."""
        codec = self.built()
        if not _is_trained(codec):
            return
        lengths = self.lengths(codec)
        together, _ = seeded(lambda: _reconstruct(codec, lengths), 1)
        for clip, samples in enumerate(lengths):
            alone, _ = seeded(partial(_reconstruct, codec, [samples], first_clip=clip), 2)
            told = f"clip {clip} is reconstructed differently on its own than in a batch"
            message = f"{told}, with a generator of the same seed"
            self.require_close(together[clip, :, :samples], alone[0], self.tolerance, "reconstruct_batch", message)

    def test_reconstruct_without_gradients(self) -> None:
        """Without gradients, as when critics learn or losses are measured, the estimate is the same and buffers stay."""
        codec = self.built()
        if not _is_trained(codec):
            return
        clause = "reconstruct_without_gradients"
        before = {name: buffer.clone() for name, buffer in codec.named_buffers()}
        with torch.no_grad():
            estimate, _ = _reconstruct(codec, self.lengths(codec))
        for name, buffer in codec.named_buffers():
            self.require(torch.equal(buffer, before[name]), clause, f"buffer '{name}' changed without gradients; expected no change")
        again, _ = _reconstruct(codec, self.lengths(codec))
        self.require_close(again.detach(), estimate, self.tolerance, clause, "the estimate differs without gradients")

    def test_after_step(self) -> None:
        """After a step buffers are finite, and only parameters in modules of `whole` have changed."""
        codec = self.built()
        if not _is_trained(codec):
            return
        _reconstruct(codec, self.lengths(codec))
        whole = {id(parameter) for module in codec.whole for parameter in module.parameters()}
        others = {name: parameter for name, parameter in codec.named_parameters() if id(parameter) not in whole}
        before = {name: parameter.detach().clone() for name, parameter in others.items()}
        codec.after_step(OneRank())
        parameters = dict(codec.named_parameters())
        for name, values in before.items():
            message = f"after_step changed parameter '{name}', which is in no module of `whole`"
            self.require(torch.equal(parameters[name].detach(), values), "after_step", message)
        for name, buffer in codec.named_buffers():
            self.require(bool(buffer.isfinite().all()), "after_step", f"buffer '{name}' is not finite after a step")


class OneRank:
    """The processes of a run that has only one, as `Codec.after_step` takes them."""

    def sum(self, values: Tensor) -> Tensor:
        """Return the values."""
        return values

    def gather(self, values: Any) -> list[Any]:
        """Return the value, in a list."""
        return [values]


def _is_trained(codec: Codec) -> bool:
    """Return whether the codec has something to train; if not, it keeps the contract's `reconstruct`."""
    return type(codec).reconstruct is not Codec.reconstruct


def _reconstruct(codec: Codec, lengths: Sequence[int], *, first_clip: int = 0) -> tuple[Tensor, LossTerms]:
    """Return what training gets for clips of `_waveform`, each with a generator whose seed is its place."""
    generators = [generator(first_clip + clip) for clip in range(len(lengths))]
    return codec.train().reconstruct(_waveform(codec, lengths, first_clip), torch.tensor(lengths), generators)


def _within(waveform: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return the samples of `[B, C, S]` that belong to a clip, with zeros instead of the others."""
    within = length_mask(torch.tensor(lengths), waveform.shape[-1])
    return waveform.masked_fill(~within[:, None], 0.0)


def _waveform(codec: Codec, lengths: Sequence[int], first_clip: int) -> Tensor:
    """Return `[B, C, S]`: clip b is noise that depends only on its place, with other noise beyond its length."""
    waveform = 0.1 * noise(99, len(lengths), codec.spec.channels, max(lengths))
    for clip, samples in enumerate(lengths):
        waveform[clip, :, :samples] = 0.1 * noise(first_clip + clip, codec.spec.channels, samples)
    return waveform


@torch.no_grad()
def _encode(
    codec: Codec, lengths: Sequence[int], *, first_clip: int = 0, generators: Sequence[torch.Generator] | None = None
) -> Representation:
    return codec.encode(_waveform(codec, lengths, first_clip), torch.tensor(lengths), generators)


@torch.no_grad()
def _decode(codec: Codec, encoded: Representation) -> Tensor:
    return codec.decode(encoded)


def _is_refused(codec: Codec, encoded: Representation) -> bool:
    """Return whether decoding raises DataError."""
    try:
        _decode(codec, encoded)
    except DataError:
        return True
    return False
