"""A small trainable encoder over log-mel spectra.

Shape letters: B clips, S samples, M mel bins, C channels of the first convolution, L mel frames, T tokens, F feature
dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Encoder
from soundomni.core.representation import FeatureSpec, length_mask
from soundomni.experts.mel import MelSpectrum, fit
from soundomni.experts.sizes import require_positive


class LogMelEncoder(Encoder):
    """Log-mel frames through convolutions of kernel 3: two of stride 2, as in Whisper's stem, then residual ones of
    stride 1.

    In addition to its mel bins, each frame has one number for its level; otherwise the network would have to derive the
    level from bins whose share of a tone depends on its pitch.

    A token covers four hops. Features of a clip do not depend on other clips in the batch: everything beyond a clip is
    set to zero before each convolution, which is also the convolution's padding. The backbone's positions provide the
    order.

    Args:
        sample_rate: sample rate in Hz.
        n_fft: window length in samples.
        hop_length: samples between mel frames.
        num_mels: number of mel bins M.
        feature_dim: feature dimensions F.
        num_layers: convolutions, at least 2.
    """

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        n_fft: int = 400,
        hop_length: int = 160,
        num_mels: int = 80,
        feature_dim: int = 128,
        num_layers: int = 4,
    ) -> None:
        super().__init__()
        sizes = {"sample_rate": sample_rate, "n_fft": n_fft, "hop_length": hop_length, "num_mels": num_mels, "feature_dim": feature_dim}
        require_positive("log-mel", sizes)
        if num_layers < 2:
            raise SpecError(f"log-mel: num_layers is {num_layers}; expected at least 2, the layers of stride 2")
        self.mel = MelSpectrum(sample_rate=sample_rate, n_fft=n_fft, hop_length=hop_length, num_mels=num_mels, pad_mode="constant")
        self.feature_dim = feature_dim
        self.convolutions = nn.ModuleList(
            nn.Conv1d(num_mels + 1 if i == 0 else feature_dim, feature_dim, 3, stride=_stride(i), padding=1) for i in range(num_layers)
        )
        self.norm = nn.LayerNorm(feature_dim)

    @property
    def spec(self) -> FeatureSpec:
        """Rate and dimension; clips may have any length."""
        return FeatureSpec(sample_rate=self.mel.sample_rate, feature_dim=self.feature_dim)

    def num_tokens(self, num_samples: int) -> int:
        """Return T = ceil(S / (4 · hop_length)), at least 1."""
        return max(1, -(-num_samples // (4 * self.mel.hop_length)))

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Encode `[B, 1, S]`, clips of `lengths` `[B]` samples, into `[B, T, F]`."""
        hidden, frames = self._frames(waveform, lengths)
        for index, convolution in enumerate(self.convolutions):
            stride = _stride(index)
            inside = length_mask(frames, hidden.shape[-1])
            hidden = torch.where(inside[:, None], hidden, 0.0)
            update = nn.functional.gelu(convolution(hidden))
            hidden = update if stride == 2 else hidden + update
            frames = (frames + stride - 1) // stride
        out: Tensor = self.norm(hidden.transpose(1, 2))
        return out

    def _frames(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return log10 power `[B, C, L]` of the M mel bins and in total, scaled to about [−1.5, 1.5], and each clip's
        frame count."""
        clips = fit(waveform, lengths, waveform.shape[-1])
        hop = self.mel.hop_length
        power = self.mel(clips)[..., : -(-waveform.shape[-1] // hop)]
        bins = (power.clamp(min=1e-10).log10() + 4) / 4
        window = self.mel.n_fft
        squares = nn.functional.pad(clips.float() ** 2, (window // 2, window // 2))[:, None]
        level = (nn.functional.avg_pool1d(squares, window, hop)[..., : power.shape[-1]].clamp(min=1e-6).log10() + 3) / 1.5
        return torch.cat([bins, level], dim=1).to(self.norm.weight.dtype), (lengths + hop - 1) // hop


def _stride(layer: int) -> int:
    return 2 if layer < 2 else 1
