"""The audio tower of Qwen2-Audio (Chu et al. 2024, section 2), which is Whisper's encoder with pooling.

Shape letters: B clips, S samples, M mel bins, L mel frames, T tokens, F feature dimensions.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from soundomni.core.errors import DataError, SpecError
from soundomni.core.interfaces import Encoder
from soundomni.core.representation import FeatureSpec
from soundomni.experts.mel import MelSpectrum, fit
from soundomni.experts.sizes import require_positive

SAMPLE_RATE = 16000
N_FFT = 400
HOP_LENGTH = 160

Count = TypeVar("Count", int, Tensor)


class Qwen2AudioEncoder(Encoder):
    """Log-mel frames as Whisper computes them (Radford et al. 2022, section 2.2), then the tower from transformers, as
    `tower`.

    The tower takes exactly 2 · max_source_positions frames, 30 s by default. Shorter clips are padded with silence that
    attention does not see; longer ones are refused, never cut. Weights are random until they are loaded.

    Args:
        num_mel_bins: number of mel bins M.
        d_model: feature dimensions F.
        num_layers: transformer layers.
        num_heads: attention heads.
        ffn_dim: width of the feed-forward networks.
        max_source_positions: number of positions of the tower; each stands for two mel frames (20 ms).
    """

    def __init__(
        self,
        *,
        num_mel_bins: int = 128,
        d_model: int = 1280,
        num_layers: int = 32,
        num_heads: int = 20,
        ffn_dim: int = 5120,
        max_source_positions: int = 1500,
    ) -> None:
        from transformers import AutoModel
        from transformers.models.qwen2_audio import Qwen2AudioEncoderConfig

        super().__init__()
        sizes = {"num_mel_bins": num_mel_bins, "d_model": d_model, "num_layers": num_layers, "num_heads": num_heads, "ffn_dim": ffn_dim}
        require_positive("qwen2-audio", sizes | {"max_source_positions": max_source_positions})
        if d_model % num_heads:
            raise SpecError(f"qwen2-audio: d_model is {d_model}; expected a multiple of num_heads, which is {num_heads}")
        config = Qwen2AudioEncoderConfig(
            num_mel_bins=num_mel_bins,
            d_model=d_model,
            encoder_layers=num_layers,
            encoder_attention_heads=num_heads,
            encoder_ffn_dim=ffn_dim,
            max_source_positions=max_source_positions,
        )
        self.tower = AutoModel.from_config(config, attn_implementation="sdpa")
        self.mel = MelSpectrum(sample_rate=SAMPLE_RATE, n_fft=N_FFT, hop_length=HOP_LENGTH, num_mels=num_mel_bins, pad_mode="reflect")
        self.feature_dim = d_model
        self.num_positions = max_source_positions
        self.max_samples = 2 * max_source_positions * HOP_LENGTH

    @property
    def spec(self) -> FeatureSpec:
        """16 kHz, F, and the longest clip."""
        return FeatureSpec(sample_rate=SAMPLE_RATE, feature_dim=self.feature_dim, max_seconds=self.max_samples / SAMPLE_RATE)

    def num_tokens(self, num_samples: int) -> int:
        """Return T = (L1 − 2) // 2 + 1 with L1 = (L − 1) // 2 + 1 positions and L = ceil(S / 160) frames; at least 1.

        Raise DataError if the clip is longer than the tower takes.
        """
        self._refuse_longer(num_samples)
        return max(1, (_positions(-(-num_samples // HOP_LENGTH)) - 2) // 2 + 1)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Encode `[B, 1, S]` at 16 kHz, clips of `lengths` `[B]` samples, into `[B, T, F]`.

        Raise DataError if a clip is longer than the tower takes.
        """
        if waveform.shape[-1] > self.max_samples:  # only then is it worth waiting for the lengths
            self._refuse_longer(int(lengths.max()))
        frames = (lengths + HOP_LENGTH - 1) // HOP_LENGTH
        positions = torch.arange(self.num_positions, device=waveform.device)
        visible = positions < _positions(frames).clamp(min=1)[:, None]
        features: Tensor = self.tower(self.log_mel(waveform, lengths), attention_mask=visible[:, None, None]).last_hidden_state
        return features[:, : self.num_tokens(min(waveform.shape[-1], self.max_samples))]

    def log_mel(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Return Whisper's features, float32 `[B, M, 2 · max_source_positions]`, of clips padded with zeros.

        Log10 power is cut at 8 below the clip's maximum, then (x + 4) / 4.
        """
        power = self.mel(fit(waveform, lengths, self.max_samples))[..., :-1]
        log_power = power.clamp(min=1e-10).log10()
        return (torch.maximum(log_power, log_power.amax(dim=(1, 2), keepdim=True) - 8) + 4) / 4

    def _refuse_longer(self, num_samples: int) -> None:
        if num_samples > self.max_samples:
            given, limit = num_samples / SAMPLE_RATE, self.max_samples / SAMPLE_RATE
            raise DataError(f"the clip lasts {given:.2f} s; the qwen2-audio encoder takes at most {limit:g} s. Split the clip")


def _positions(frames: Count) -> Count:
    """Return the tower's positions for L mel frames, after its convolution of stride 2."""
    return (frames - 1) // 2 + 1
