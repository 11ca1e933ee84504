"""Coding a clip while it comes in: each layer remembers what it needs, and nothing is computed twice.

Shape letters: C audio channels, L samples of a piece, K codes of a frame, k the first of them, T frames of a piece.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from soundomni.core.errors import DataError
from soundomni.core.representation import Representation, RepresentationSpec
from soundomni.vae.clips import check_codes
from soundomni.vae.past import Past
from soundomni.vae.quantizers.bottleneck import CodeBottleneck
from soundomni.vae.seanet import SEANetDecoder, SEANetEncoder


class CodecStream:
    """One clip that is encoded, and one that is decoded, piece by piece. No gradients.

    The pieces of a clip may have any lengths; together they give what the whole clip does.

    Args:
        encoder, bottleneck, decoder: parts of a causal codec.
        spec: spec of its codes.
    """

    def __init__(
        self,
        encoder: SEANetEncoder,
        bottleneck: CodeBottleneck,
        decoder: SEANetDecoder,
        spec: RepresentationSpec,
    ) -> None:
        self._encoder, self._bottleneck, self._decoder = encoder, bottleneck, decoder
        self._spec = spec
        self._encoded, self._decoded = Past(), Past()
        self._samples: Tensor | None = None
        """Samples `[C, L]` that came in and do not fill a frame yet."""

    @torch.no_grad()
    def encode(self, samples: Tensor, *, last: bool = False) -> Tensor:
        """Return the codes `[K, T]` of the frames that the next samples `[C, L]` complete.

        Args:
            samples: the samples that follow those before, L ≥ 0.
            last: whether the clip ends here: the last frame is padded with silence, and the next call starts another
                clip.

        Raises:
            DataError: the samples do not have the codec's channels.
        """
        if samples.dim() != 2 or len(samples) != self._spec.channels or not samples.is_floating_point():
            given = f"the samples are {samples.dtype} {list(samples.shape)}"
            raise DataError(f"{given}; expected float [{self._spec.channels}, L]")
        held = samples if self._samples is None else torch.cat([self._samples, samples], dim=-1)
        ratio = self._spec.downsampling_ratio
        if last:
            held = functional.pad(held, (0, -held.shape[-1] % ratio))
        count = held.shape[-1] // ratio * ratio
        self._samples = None if last else held[:, count:]
        codes = self._encode(held[None, :, :count])
        if last:
            self._encoded = Past()
        return codes

    @torch.no_grad()
    def decode(self, codes: Tensor, *, last: bool = False) -> Tensor:
        """Return the samples `[C, T · ratio]` of the next frames' codes `[k, T]`, T ≥ 0.

        Args:
            codes: the codes that follow those before, the first k of each frame.
            last: whether the clip ends here, so that the next call starts another clip.

        Raises:
            DataError: a code is not in its codebook.
        """
        values = codes[None]
        check_codes(Representation(values, torch.tensor([codes.shape[-1]]), self._spec), self._spec)
        if codes.shape[-1] == 0:
            waveform = torch.zeros(self._spec.channels, 0, device=codes.device)
        else:
            waveform = self._decoder(self._bottleneck.decode(values), self._decoded)[0]
        if last:
            self._decoded = Past()
        return waveform

    def _encode(self, samples: Tensor) -> Tensor:
        """Map whole frames `[1, C, T · ratio]` to codes `[K, T]`."""
        if samples.shape[-1] == 0:
            return torch.zeros(self._spec.token_dim, 0, dtype=torch.int64, device=samples.device)
        return self._bottleneck.encode(self._encoder(samples, self._encoded))[0]
