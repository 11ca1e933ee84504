"""SAME, the autoencoder of Stable Audio 3, as a codec (Stability AI 2026, "Stable Audio 3", arXiv 2605.17991).

Shape letters: B clips, C audio channels, S samples, D latent dimensions, T frames, L patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from einops import rearrange
from torch import Tensor, nn

from soundomni.core.errors import SpecError, shown
from soundomni.core.interfaces import Codec, ReceptiveField
from soundomni.core.limits import check_count
from soundomni.core.representation import Representation, RepresentationSpec
from soundomni.vae.checkpoints.codec_weights import load_strict
from soundomni.vae.clips import at_least_float32, check_audio_format, check_latent, check_waveform
from soundomni.vae.padding import pad_to_frames, zero_beyond
from soundomni.vae.same_network import DEFAULT_TRANSFORMER, SameDecoder, SameEncoder, SameTransformer
from soundomni.vae.sizes import MOST_WIDTH, check_strides, check_widths

KERNELS = (1, 3)


class SoftNorm(nn.Module):
    """The bottleneck: a scale and an offset for each dimension, and one measured standard deviation for all of them.

    Args:
        latent_dim: D.
    """

    running_std: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, latent_dim, 1))
        self.bias = nn.Parameter(torch.zeros(1, latent_dim, 1))
        self.register_buffer("running_std", torch.ones(1))

    def encode(self, values: Tensor) -> Tensor:
        """Map `[B, D, T]` to latents, in at least float32."""
        return (at_least_float32(values) * self.scale + self.bias) / self.running_std

    def decode(self, latents: Tensor) -> Tensor:
        """Map latents `[B, D, T]` to what the decoder takes."""
        return latents * self.running_std


class SameCodec(Codec):
    """The autoencoder of Stable Audio 3; the defaults are those of SAME small, the one in the small models.

    Latents are `[B, D, T]` with T = ceil(S / R), where R is `patch_size` times the product of the strides, 4096 by
    default. Nothing is random: this codec leaves out the noise that the original adds to latents and learned tokens
    when it decodes.

    SAME large, the one in Stable Audio 3 medium, has `base_channels: 256`, `decoder_kernel: 1` and
    `transformer: {num_layers: [12], sine_layers: [7], window: [1, 1]}`. `soundomni import same` writes a spec layer for
    either.

    Each clip is padded with silence to whole frames, and its result does not depend on other clips in the batch. The
    network is frozen. Without `weights`, it is random.

    Args:
        sample_rate: sample rate in Hz.
        channels: number of audio channels C.
        patch_size: samples of each channel that the encoder sees as one position.
        base_channels: unit of the blocks' widths.
        channel_multiples: width of each block, in multiples of `base_channels`.
        strides: stride of each block, at least 2; one for each of `channel_multiples`.
        latent_dim: latent dimensions D.
        decoder_kernel: positions that the convolution at the end of a decoder's block sees, 1 or 3.
        transformer: sizes of the transformers; see SameTransformer.
        weights: a .safetensors file with this codec's own state dict.

    Raises:
        SpecError: an argument is out of range.
        CheckpointError: the weights are missing or damaged, or have other sizes.
    """

    def __init__(
        self,
        *,
        sample_rate: int = 44100,
        channels: int = 2,
        patch_size: int = 256,
        base_channels: int = 128,
        channel_multiples: tuple[int, ...] = (6,),
        strides: tuple[int, ...] = (16,),
        latent_dim: int = 256,
        decoder_kernel: int = 3,
        transformer: SameTransformer = DEFAULT_TRANSFORMER,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        check_audio_format(sample_rate, channels)
        check_count("patch_size", patch_size, most=MOST_WIDTH // channels)
        check_count("latent_dim", latent_dim, most=MOST_WIDTH)
        if decoder_kernel not in KERNELS:
            raise SpecError(f"decoder_kernel is {decoder_kernel}; expected 1 or 3")
        _check_blocks(patch_size, base_channels, channel_multiples, strides, transformer)
        self.patch_size = patch_size
        widths = [channels * patch_size, *(base_channels * multiple for multiple in channel_multiples)]
        self.encoder = SameEncoder(widths=widths, strides=strides, latent_dim=latent_dim, settings=transformer)
        self.bottleneck = SoftNorm(latent_dim)
        self.decoder = SameDecoder(widths=widths, strides=strides, latent_dim=latent_dim, kernel=decoder_kernel, settings=transformer)
        self._spec = RepresentationSpec(
            kind="continuous",
            sample_rate=sample_rate,
            channels=channels,
            downsampling_ratio=patch_size * math.prod(strides),
            latent_dim=latent_dim,
        )
        self._receptive_field = _receptive_field(transformer, strides, decoder_kernel)
        if weights is not None:
            load_strict(self, weights)
        self.requires_grad_(False).eval()

    @property
    def spec(self) -> RepresentationSpec:
        """Spec of the latents."""
        return self._spec

    @property
    def receptive_field(self) -> ReceptiveField:
        """How many frames the encoder and the decoder see: 2 and 3 for SAME small, whose chunks begin at every second
        frame; 12 and 12 for SAME large."""
        return self._receptive_field

    def encode(self, waveform: Tensor, lengths: Tensor, generators: Sequence[torch.Generator] | None = None) -> Representation:
        """Encode `[B, C, S]`, clips of `lengths` `[B]` samples, with silence after each clip; nothing is random. Raise
        DataError."""
        check_waveform(waveform, lengths, self._spec)
        ratio, lengths = self._spec.downsampling_ratio, lengths.to(waveform.device)
        frames, num_frames = self._spec.frame_lengths(lengths), self._spec.num_frames(waveform.shape[-1])
        padded = pad_to_frames(zero_beyond(waveform, lengths), ratio, num_frames)
        patches = rearrange(padded, "b c (l p) -> b (c p) l", p=self.patch_size)
        encoded = self.encoder(patches, frames * (ratio // self.patch_size))[..., :num_frames]
        return Representation(zero_beyond(self.bottleneck.encode(encoded), frames), frames, self._spec)

    def decode(self, representation: Representation) -> Tensor:
        """Decode `[B, D, T]` to `[B, C, T · ratio]`, zero beyond each clip's frames. Raise DataError."""
        check_latent(representation, self._spec)
        values, ratio = representation.values, self._spec.downsampling_ratio
        frames, num_frames = representation.lengths.to(values.device), values.shape[-1]
        patches = self.decoder(self.bottleneck.decode(zero_beyond(values, frames)), frames)
        waveform = rearrange(patches, "b (c p) l -> b c (l p)", p=self.patch_size)[..., : num_frames * ratio]
        return zero_beyond(waveform, frames * ratio)


def _check_blocks(
    patch_size: int, base_channels: int, multiples: Sequence[int], strides: Sequence[int], transformer: SameTransformer
) -> None:
    """Raise SpecError for blocks that cannot be built."""
    counts = transformer.num_layers
    if not len(multiples) == len(strides) == len(counts) or not strides:
        given = f"channel_multiples is {shown(list(multiples))}, strides is {shown(list(strides))}"
        given += f" and transformer.num_layers is {shown(list(counts))}"
        raise SpecError(f"{given}; expected lists of the same length, with at least one entry")
    check_strides(strides, patch_size=patch_size)
    check_widths(base_channels, multiples)
    for multiple in multiples:
        width, head_dim = base_channels * multiple, transformer.head_dim
        if width < 1 or width % min(head_dim, width) or width % 4:
            raise SpecError(f"a block is {width} channels wide; expected a multiple of transformer.head_dim, {head_dim}")
    if transformer.window is None and any(transformer.chunk_size % (2 * stride) for stride in strides):
        raise SpecError(
            f"transformer.chunk_size is {transformer.chunk_size}; expected a multiple of twice every stride, {shown(list(strides))}, "
            "as later layers see chunks that are shifted by half"
        )


def _receptive_field(transformer: SameTransformer, strides: Sequence[int], kernel: int) -> ReceptiveField:
    """Return how far the codec looks.

    A block of the decoder has the same groups as the encoder's block, and a convolution over the positions of the
    longer side. With a window, every layer looks further. With chunks, the layers see two sets of chunks, the second
    shifted by half a chunk, both counted from the beginning of the clip.
    """
    encoder = decoder = Fraction(0)
    step = 1
    for block, (stride, count) in enumerate(zip(strides, transformer.num_layers, strict=True)):
        per_frame = math.prod(strides[block + 1 :])
        together = transformer.chunk_size // stride
        if transformer.window is None:
            step = math.lcm(step, together // math.gcd(together, per_frame))
        groups = together + together // 2 - 1 if transformer.window is None else count * max(transformer.window)
        encoder += Fraction(groups, per_frame)
        decoder += Fraction(groups, per_frame) + Fraction(kernel // 2, stride * per_frame)
    return ReceptiveField(encode=math.ceil(encoder), decode=math.ceil(decoder), step=step)
