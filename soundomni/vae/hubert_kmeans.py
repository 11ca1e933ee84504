"""Semantic tokens: clusters of the outputs of a layer of a speech network (Lakhotia et al. 2021, "On generative
spoken language modeling from raw audio", section 3.1; Borsos et al. 2022, "AudioLM", section III-B, has w2v-BERT
instead of HuBERT).

Shape letters: B clips, S samples, T frames, N frames of the network, D dimensions of a layer, M clusters.
"""

from __future__ import annotations

import math
from typing import ClassVar, NoReturn

import torch
from torch import Tensor
from torch.nn import functional

from soundomni.core.errors import DataError, SpecError
from soundomni.core.limits import check_count
from soundomni.core.representation import Representation, RepresentationSpec
from soundomni.vae.checkpoints.codec_weights import load_strict
from soundomni.vae.clips import check_audio_format
from soundomni.vae.frozen_codec import FrozenTokens
from soundomni.vae.kmeans import nearest_centroid
from soundomni.vae.speech_network import MOST_LAYERS, SpeechNetwork

VARIANCE_FLOOR = 1e-7
"""What transformers' Wav2Vec2FeatureExtractor adds to the variance of a clip."""


class HubertKmeansCodec(FrozenTokens):
    """Semantic tokens of HuBERT, WavLM or wav2vec 2.0, as transformers computes them; the defaults are those of HuBERT
    base at layer 9.

    Codes are `[B, 1, T]`: for each frame, the centroid that is nearest to the output of a layer. The codec only
    encodes: semantic tokens have no waveform, and `decode` raises DataError. `soundomni import hubert-kmeans` makes a
    layer of a spec for a published network, and `soundomni fit-kmeans` the centroids.

    T is ceil(S / ratio), as for every codec. The network's convolutions do not pad, so with the defaults they make one
    or two frames fewer than ceil(S / 320). A clip of fewer than 400 samples, which would have none, is padded with
    silence to one frame. Each of the T frames takes the code of the network's frame that holds its middle (the later
    one, if that is a boundary), and the last ones that of the network's last frame. So the codes of longer clips are
    those of transformers' own frames, not of padded ones.

    With `frames_per_second`, the same rule gives another rate, so that frames line up with those of an acoustic codec:
    half the network's rate keeps every second frame, and twice the rate repeats each of them. A frame must have a whole
    number of samples: at 16 kHz, 12.5 frames per second are possible, and 75 are not.

    The network is frozen and looks at the whole clip at once, so clips are not processed in pieces, and each runs on
    its own. Time grows with the square of a clip's length, and with WavLM memory too. Without `weights` all centroids
    are random.

    Args:
        sample_rate: sample rate in Hz.
        network: sizes of the network; see `soundomni.vae.speech_network.SpeechNetwork`.
        layer: layer of the transformer whose output is clustered, from 1.
        normalize: whether each clip is normalized to mean 0 and variance 1.
        num_clusters: M, the number of codes.
        frames_per_second: rate of the codes, with a whole number of samples per frame; None means the network's.
        weights: a .safetensors file with the tensors of this codec: centroids `[M, D]`, and those of transformers'
            model after "network.".

    Raises:
        SpecError: an argument is out of range.
        CheckpointError: the weights are missing or damaged, or have other sizes.
    """

    decodes: ClassVar[bool] = False

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        network: SpeechNetwork = SpeechNetwork(),  # noqa: B008  it is frozen
        layer: int = 9,
        normalize: bool = True,
        num_clusters: int = 500,
        frames_per_second: float | None = None,
        weights: str | None = None,
    ) -> None:
        check_audio_format(sample_rate, 1)
        network.check()
        check_count("layer", layer, most=MOST_LAYERS)
        check_count("num_clusters", num_clusters)
        spec = RepresentationSpec(
            kind="codes",
            sample_rate=sample_rate,
            channels=1,
            downsampling_ratio=_ratio(sample_rate, network.hop, frames_per_second),
            codebook_sizes=(num_clusters,),
        )
        super().__init__(network.build(layer), spec)
        self.centroids: Tensor
        self.register_buffer("centroids", torch.randn(num_clusters, network.hidden_dim))
        self._normalize = normalize
        self._hop, self._window = network.hop, network.window
        if weights is not None:
            load_strict(self, weights)

    def features(self, clip: Tensor) -> Tensor:
        """Map one clip `[1, 1, S]` of at least one sample to the network's frames at the layer, `[N, D]`."""
        samples = _normalized(clip[0]) if self._normalize else clip[0]
        padded = functional.pad(samples, (0, max(0, self._window - samples.shape[-1])))
        hidden: Tensor = self.network(padded).last_hidden_state
        return hidden[0]

    def encode_clip(self, clip: Tensor) -> Tensor:
        """Map one clip `[1, 1, S]` to its codes `[1, 1, T]`."""
        codes = nearest_centroid(self.features(clip), self.centroids)
        return codes[self._sources(self._spec.num_frames(clip.shape[-1]), len(codes)).to(codes.device)][None, None]

    def decode(self, representation: Representation) -> NoReturn:
        """Raise DataError: semantic tokens have no waveform."""
        advice = "Make acoustic codes from them, and decode those"
        raise DataError(f"hubert-kmeans only encodes: semantic tokens have no waveform. {advice}")

    def _sources(self, num_frames: int, available: int) -> Tensor:
        """Return, int64 `[T]`, which of the network's frames each frame takes its code from."""
        twice_middle = (2 * torch.arange(num_frames) + 1) * self._spec.downsampling_ratio
        return (twice_middle // (2 * self._hop)).clamp_max(available - 1)


def _normalized(samples: Tensor) -> Tensor:
    """Map `[1, S]` to mean 0 and variance 1, as transformers' Wav2Vec2FeatureExtractor does."""
    exact = samples.to(torch.promote_types(samples.dtype, torch.float32))
    centered = exact - exact.mean(dim=-1, keepdim=True)
    variance = centered.square().mean(dim=-1, keepdim=True)
    return (centered / (variance + VARIANCE_FLOOR).sqrt()).to(samples.dtype)


def _ratio(sample_rate: int, hop: int, frames_per_second: float | None) -> int:
    """Return the samples of a frame. Raise SpecError if they are not a whole number."""
    if frames_per_second is None:
        return hop
    given = f"frames_per_second is {frames_per_second:g}"
    if not 0 < frames_per_second <= sample_rate:
        raise SpecError(f"{given}; expected a number above 0, and at most the sample rate, {sample_rate}")
    ratio = round(sample_rate / frames_per_second)
    if not math.isclose(ratio * frames_per_second, sample_rate, rel_tol=1e-6):
        near = f"frames of {ratio} samples, {sample_rate / ratio:.6g} per second"
        raise SpecError(f"{given}; expected whole samples per frame at {sample_rate} Hz, such as {near}")
    return ratio
