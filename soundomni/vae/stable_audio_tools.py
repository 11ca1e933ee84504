"""Autoencoders of the package stable-audio-tools, as that package builds and computes them.

For users who have the package: `oobleck` is the same network as its "oobleck" pair, loads its checkpoints, and needs
nothing else.

Shape letters: B clips, C audio channels, S samples, D latent dimensions, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from soundomni.core.errors import SpecError, describe, did_you_mean
from soundomni.core.interfaces import Codec
from soundomni.core.representation import Representation, RepresentationSpec
from soundomni.vae.bottleneck import DiagonalGaussian
from soundomni.vae.checkpoints.codec_weights import load_strict
from soundomni.vae.clips import check_latent, check_waveform
from soundomni.vae.padding import pad_to_frames

NEEDED = ("model_type", "sample_rate", "model")
"""Keys that a config must have."""
VAE = "vae"
PLAIN = ("tanh", "l2_norm", "none")
"""Bottlenecks without randomness, whose values are the latents."""
NETWORKS = ("oobleck", "seanet", "dac", "local_attn", "taae")
"""The package's encoders and decoders that are plain networks and do not fetch or load anything."""


class StableAudioToolsCodec(Codec):
    """An autoencoder of the package stable-audio-tools, with the bottleneck vae, tanh or l2_norm, or without one.

    Latents are `[B, D, T]`.

    The network is frozen, and each clip runs on its own, padded with silence to a multiple of the ratio, so that its
    result does not depend on the batch. Latents are not scaled beyond what the package does.

    Args:
        config: contents of the autoencoder's JSON config; they can be pasted into YAML.
        weights: a .safetensors file with the state dict of the package's own model.

    Raises:
        SpecError: the package is not installed, or the config does not describe an autoencoder that it builds, of a
            kind named above.
        CheckpointError: the weights are missing or damaged, or belong to another autoencoder.
    """

    def __init__(self, *, config: dict[str, Any], weights: str | None = None) -> None:
        super().__init__()
        self.bottleneck = _checked(config)
        self.network = _build(config)
        sizes = config["model"]
        self._spec = RepresentationSpec(
            kind="continuous",
            sample_rate=config["sample_rate"],
            channels=sizes.get("in_channels") or sizes["io_channels"],
            downsampling_ratio=sizes["downsampling_ratio"],
            latent_dim=sizes["latent_dim"],
        )
        if weights is not None:
            load_strict(self.network, weights)
        self.network.requires_grad_(False).eval()

    @property
    def spec(self) -> RepresentationSpec:
        """Spec of the latents."""
        return self._spec

    def train(self, mode: bool = True) -> StableAudioToolsCodec:
        """Keep the network in evaluation mode: some of its parts add noise in training."""
        super().train(mode)
        self.network.eval()
        return self

    def encode(self, waveform: Tensor, lengths: Tensor, generators: Sequence[torch.Generator] | None = None) -> Representation:
        """Encode `[B, C, S]`, clips of `lengths` `[B]` samples; a vae gives its mean, or with generators mean + std·ε.
        Raise DataError."""
        check_waveform(waveform, lengths, self._spec)
        ratio, most = self._spec.downsampling_ratio, self._spec.num_frames(waveform.shape[-1])
        rows = []
        for i, length in enumerate(lengths.tolist()):
            frames = self._spec.num_frames(length)
            clip = pad_to_frames(waveform[i : i + 1, :, :length], ratio, frames)
            values = self._bottle(self.network.encode(clip, skip_bottleneck=True), generators[i] if generators else None)
            rows.append(pad(values, (0, most - frames)))
        values = torch.cat(rows) if rows else waveform.new_zeros(0, self._spec.token_dim, most)
        return Representation(values, self._spec.frame_lengths(lengths), self._spec)

    def decode(self, representation: Representation) -> Tensor:
        """Decode `[B, D, T]` to `[B, C, T · ratio]`, zero beyond each clip's frames. Raise DataError."""
        check_latent(representation, self._spec)
        values, ratio = representation.values, self._spec.downsampling_ratio
        waveform = values.new_zeros(len(values), self._spec.channels, values.shape[-1] * ratio)
        for i, frames in enumerate(representation.lengths.tolist()):
            decoded = self.network.decode(values[i : i + 1, :, :frames])[0, :, : frames * ratio]
            waveform[i, :, : decoded.shape[-1]] = decoded  # with odd strides the package decodes a few samples less
        return waveform

    def _bottle(self, values: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.bottleneck != VAE:
            latents: Tensor = values if self.network.bottleneck is None else self.network.bottleneck.encode(values)
            return latents
        posterior = DiagonalGaussian.from_parameters(values)
        if generator is None:
            return posterior.mean
        noise = torch.randn(posterior.mean.shape, generator=generator, device=generator.device)
        return posterior.sample(noise.to(posterior.mean))


def _checked(config: dict[str, Any]) -> str:
    """Return the type of the bottleneck.

    Raise SpecError if the config is not one, or describes another kind of model.
    """
    missing = [key for key in NEEDED if key not in config]
    if missing:
        raise SpecError(f"config has no '{missing[0]}'; expected the JSON config of a stable-audio-tools autoencoder")
    if config["model_type"] != "autoencoder":
        raise SpecError(f"config.model_type is '{config['model_type']}'; expected 'autoencoder'")
    if config["model"].get("pretransform") is not None:  # the package would fetch some of them, and unpickle the files
        raise SpecError("config.model.pretransform is given; expected none, because the codec takes waveforms")
    for part in ("encoder", "decoder"):
        network = str((config["model"].get(part) or {}).get("type"))
        if network not in NETWORKS:
            known = ", ".join(NETWORKS)
            raise SpecError(f"config.model.{part}.type is '{network}'; expected one of {known}.{did_you_mean(network, NETWORKS)}")
    kind = str((config["model"].get("bottleneck") or {"type": "none"}).get("type"))
    if kind not in (VAE, *PLAIN):
        known = ", ".join((VAE, *PLAIN))
        raise SpecError(f"config.model.bottleneck.type is '{kind}'; expected one of {known}.{did_you_mean(kind, (VAE, *PLAIN))}")
    return kind


def _build(config: dict[str, Any]) -> Any:
    """Return the package's AudioAutoencoder. Raise SpecError if the package is missing, or refuses the config."""
    try:
        from stable_audio_tools.models.autoencoders import create_autoencoder_from_config
    except ImportError as error:
        raise SpecError(
            f"codec 'stable-audio-tools' needs the package of that name, which cannot be imported ({error}); "
            "install the packages in requirements/stable-audio-tools.txt with pip's --no-deps"
        ) from error
    try:
        network: nn.Module = create_autoencoder_from_config(config)
    except (AssertionError, ImportError, KeyError, TypeError, NotImplementedError) as error:
        raise SpecError(f"stable-audio-tools cannot build this config: {describe(error)}") from error
    return network
