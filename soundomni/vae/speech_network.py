"""Networks that learned speech without transcripts, computed by transformers: HuBERT (Hsu et al. 2021, "HuBERT:
self-supervised speech representation learning by masked prediction of hidden units"), WavLM (Chen et al. 2022) and
wav2vec 2.0 (Baevski et al. 2020).

Convolutions without padding make frames of a waveform, a convolution over frames adds positions, and a transformer
follows.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from soundomni.core.errors import SpecError, shown
from soundomni.core.limits import check_count

MOST_LAYERS = 256
MOST_CONVOLUTIONS, LARGEST_KERNEL = 16, 1024
"""Limits for specs from strangers."""

Family = Literal["hubert", "wavlm", "wav2vec2"]
CLASSES: Mapping[Family, str] = {"hubert": "Hubert", "wavlm": "WavLM", "wav2vec2": "Wav2Vec2"}
"""Kind of network → start of the names of its classes in transformers; the kind is the model_type of its config."""


@dataclass(frozen=True, kw_only=True)
class SpeechNetwork:
    """Sizes of a network; the defaults are those of HuBERT base, WavLM base and wav2vec 2.0 base.

    Args:
        family: "hubert", "wavlm" or "wav2vec2".
        conv_dims: channels of each convolution that makes frames of the waveform.
        conv_kernels, conv_strides: their kernels and strides.
        conv_bias: whether they have a bias.
        conv_norm: "group" normalizes each channel of the first convolution over the whole clip; "layer" each frame of
            every one.
        hidden_dim: width of the transformer.
        num_heads: attention heads.
        mlp_dim: inner width of its MLPs.
        position_kernel, position_groups: kernel, in frames, and groups of the convolution that adds positions.
        norm_first: whether layers normalize what they read; otherwise they normalize their sums.
    """

    family: Family = "hubert"
    conv_dims: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    conv_norm: Literal["group", "layer"] = "group"
    hidden_dim: int = 768
    num_heads: int = 12
    mlp_dim: int = 3072
    position_kernel: int = 128
    position_groups: int = 16
    norm_first: bool = False

    def check(self) -> None:
        """Raise SpecError if sizes are out of range or do not fit together."""
        counts = {len(values) for values in (self.conv_dims, self.conv_kernels, self.conv_strides)}
        if len(counts) > 1 or not 1 <= min(counts) <= MOST_CONVOLUTIONS:
            dims, kernels, strides = len(self.conv_dims), len(self.conv_kernels), len(self.conv_strides)
            given = f"{dims} conv_dims, {kernels} conv_kernels and {strides} conv_strides"
            raise SpecError(f"the network has {given}; expected the same number of each, from 1 to {MOST_CONVOLUTIONS}")
        _check_each("conv_dims", self.conv_dims, most=None)
        _check_each("conv_kernels", self.conv_kernels, most=LARGEST_KERNEL)
        _check_each("conv_strides", self.conv_strides, most=LARGEST_KERNEL)
        for name in ("num_heads", "mlp_dim", "position_kernel", "position_groups"):
            check_count(f"network.{name}", getattr(self, name))
        for name in ("num_heads", "position_groups"):
            if self.hidden_dim < 1 or self.hidden_dim % getattr(self, name):
                told = f"expected a multiple of network.{name}, which is {shown(getattr(self, name))}"
                raise SpecError(f"network.hidden_dim is {shown(self.hidden_dim)}; {told}")

    @property
    def hop(self) -> int:
        """Samples from frame to frame."""
        return math.prod(self.conv_strides)

    @property
    def window(self) -> int:
        """Samples that a frame is made of, before the transformer: the shortest clip that has one."""
        window, hop = 1, 1
        for kernel, stride in zip(self.conv_kernels, self.conv_strides, strict=True):
            window, hop = window + (kernel - 1) * hop, hop * stride
        return window

    def build(self, num_layers: int) -> nn.Module:
        """Return the first `num_layers` layers with random weights, whose output is that of the last one of them.

        The norm that follows all layers of a network with `norm_first` is left out.
        """
        name = CLASSES[self.family]
        package = f"transformers.models.{self.family}"
        configs = importlib.import_module(f"{package}.configuration_{self.family}")
        models = importlib.import_module(f"{package}.modeling_{self.family}")
        config = getattr(configs, f"{name}Config")(
            hidden_size=self.hidden_dim,
            num_hidden_layers=num_layers,
            num_attention_heads=self.num_heads,
            intermediate_size=self.mlp_dim,
            conv_dim=list(self.conv_dims),
            conv_kernel=list(self.conv_kernels),
            conv_stride=list(self.conv_strides),
            conv_bias=self.conv_bias,
            feat_extract_norm=self.conv_norm,
            num_conv_pos_embeddings=self.position_kernel,
            num_conv_pos_embedding_groups=self.position_groups,
            do_stable_layer_norm=self.norm_first,
            mask_time_prob=0.0,
            mask_feature_prob=0.0,
        )
        network: nn.Module = getattr(models, f"{name}Model")(config)
        if self.norm_first:
            network.set_submodule("encoder.layer_norm", nn.Identity())
        return network


def _check_each(name: str, values: Iterable[int], *, most: int | None) -> None:
    for i, value in enumerate(values):
        check_count(f"network.{name}[{i}]", value, most=most)
