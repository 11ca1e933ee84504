"""The sizes of Stable Audio's autoencoder from the shapes of its tensors, for checkpoints without a config."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from soundomni.core.errors import CheckpointError
from soundomni.vae.checkpoints.oobleck_names import num_blocks
from soundomni.vae.checkpoints.stable_audio_config import CodecConfig, stride_notes
from soundomni.vae.checkpoints.stable_audio_layouts import DIFFUSERS, Shape
from soundomni.vae.weight_norm import DIRECTION

SAMPLE_RATE = 44100
"""Sample rate of every published Stable Audio autoencoder; the tensors do not determine it."""


def infer_config(shapes: Mapping[str, Shape], layout: str) -> CodecConfig:
    """Return the arguments of a codec with these parameters.

    Args:
        shapes: parameter of the codec → shape. The first width gives base_channels, those after each block the
            multiples; a convolution that shortens clips by a stride s is 2s wide.
        layout: layout of the file; diffusers' has no final tanh.

    Raises:
        CheckpointError: a convolution that determines a size is missing or has another shape.
    """
    blocks = num_blocks(shapes)
    first = _convolution(shapes, "encoder.layers.0")
    downs = [_convolution(shapes, f"encoder.layers.{i}.layers.4") for i in range(1, blocks + 1)]
    latent_dim = _convolution(shapes, "decoder.layers.0")[1]
    widths = [first[0], *(down[0] for down in downs)]
    for i, ((before, after), (_, _, kernel)) in enumerate(zip(pairwise(widths), downs, strict=True), start=1):
        if before < 1 or after % first[0] or kernel % 2:
            raise CheckpointError(
                f"the convolution at the end of encoder block {i} has {after} channels and a kernel of {kernel}: "
                f"expected a multiple of {first[0]} channels and an even kernel; give --config"
            )
    notes = ["sizes are those of the tensors, as no config was given", f"the sample rate is assumed to be {SAMPLE_RATE} Hz"]
    if layout != DIFFUSERS:
        notes.append("the decoder is assumed to end without tanh, like that of Stable Audio 2.0")
    strides = [kernel // 2 for _, _, kernel in downs]
    init_args = {
        "sample_rate": SAMPLE_RATE,
        "channels": first[1],
        "base_channels": first[0],
        "channel_multiples": [width // first[0] for width in widths[1:]],
        "strides": strides,
        "latent_dim": latent_dim,
        "final_tanh": False,
        "use_snake": any(name.endswith(".alpha") for name in shapes),
    }
    return CodecConfig(init_args, (), (*notes, *stride_notes(strides)))


def _convolution(shapes: Mapping[str, Shape], module: str) -> tuple[int, int, int]:
    shape = shapes.get(f"{module}.{DIRECTION}", ())
    if len(shape) != 3:
        raise CheckpointError(f"'{module}' is not a convolution with weight norm, so the sizes are unknown; give --config")
    outputs, inputs, kernel = shape
    return outputs, inputs, kernel
