"""The half of a CLAP model that hears clips (Wu et al. 2023), as transformers computes it: frozen, and from local files only.

Shape letters: B clips, S samples, M mel bins, L mel frames, F feature dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from soundomni.core.interfaces import Encoder
from soundomni.core.representation import FeatureSpec
from soundomni.experts.checkpoints.clap_network import find_clap, load_audio_network, read_audio_sizes, read_hearing
from soundomni.experts.mel import MelSpectrum

FLOOR = 1e-10
"""Lowest power of a mel bin, −100 dB."""


class ClapAudioEncoder(Encoder):
    """Hears a clip as a CLAP model does, and gives the embedding that texts about this sound also have: one token, of length 1.

    The network takes clips of one length, 10 s at 48 kHz for the released models. A shorter clip is repeated as often as it fits, with
    silence after it. Of a longer one, only the beginning is heard; transformers would draw a part of it at random.

    The model is found, frozen and left out of saved models like that of `t5`. Models with fusion, which hear several parts of a long
    clip, are refused.

    Args:
        name: a folder with config.json, preprocessor_config.json and model.safetensors, or a Hub repository such as
            laion/clap-htsat-unfused.
        revision: revision of the repository; None for its main branch.
    """

    def __init__(self, *, name: str, revision: str | None = None) -> None:
        super().__init__()
        self._model = find_clap(name, revision, plugin="clap-audio", reads_text=False)
        self._sizes = read_audio_sizes(self._model)
        self._hearing = hearing = read_hearing(self._model)
        self._spec = FeatureSpec(sample_rate=hearing.sampling_rate, feature_dim=self._sizes.projection_dim)
        self._mel = MelSpectrum(
            sample_rate=hearing.sampling_rate,
            n_fft=hearing.fft_window_size,
            hop_length=hearing.hop_length,
            num_mels=hearing.feature_size,
            pad_mode="reflect",
            frequencies=(hearing.frequency_min, hearing.frequency_max),
        )
        self._network: list[Any] = []  # a list, so that its weights are not those of this module

    @property
    def spec(self) -> FeatureSpec:
        """Rate of the network's clips, and F."""
        return self._spec

    def num_tokens(self, num_samples: int) -> int:
        """Return 1."""
        return 1

    @torch.no_grad()
    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Encode `[B, 1, S]`, clips of `lengths` `[B]` samples, into float32 `[B, 1, F]`. Raise CheckpointError for damaged weights."""
        if not self._network:
            self._network.append(load_audio_network(self._model, self._sizes))
        device = waveform.device
        with torch.autocast(device.type, enabled=False):
            power = self._mel(repeated(waveform[:, 0].float(), lengths, self._hearing.num_samples))  # [B, M, L]
            decibels = 10 * power.clamp(min=FLOOR).log10().transpose(1, 2)
            embedding: Tensor = self._network[0].to(device)(input_features=decibels[:, None]).audio_embeds
        return functional.normalize(embedding, dim=-1)[:, None]


def repeated(clips: Tensor, lengths: Tensor, num_samples: int) -> Tensor:
    """Return each clip of `[B, S]`, of `lengths` `[B]` samples, as often as it fits into `[B, num_samples]`, with zeros after that.

    >>> repeated(torch.tensor([[1.0, 2.0, 9.0], [1.0, 2.0, 3.0]]), torch.tensor([2, 3]), 5)
    tensor([[1., 2., 1., 2., 0.],
            [1., 2., 3., 0., 0.]])
    """
    lengths = lengths.clamp(min=1, max=num_samples)[:, None].to(clips.device)
    places = torch.arange(num_samples, device=clips.device)
    inside = places < lengths * (num_samples // lengths)
    return torch.where(inside, clips.gather(1, places % lengths), 0.0)
