"""Reach of a chain of convolutions, from its kernels, strides and dilations (Araujo et al. 2019, "Computing receptive
fields of convolutional neural networks", section 2)."""

from __future__ import annotations

from torch import nn


def input_span(network: nn.Module, first: int, last: int) -> tuple[int, int]:
    """Return the first and last input positions that affect the output positions from `first` to `last`.

    Position 0 of the input is where position 0 of the output begins; positions before it are negative. The
    one-dimensional convolutions of `network`, plain and transposed, must be registered in the order in which they run,
    and paths that skip some of them must not reach farther than they do.
    """
    for layer in reversed([m for m in network.modules() if isinstance(m, nn.Conv1d | nn.ConvTranspose1d)]):
        (kernel,), (stride,), (dilation,), padding = layer.kernel_size, layer.stride, layer.dilation, layer.padding[0]
        assert isinstance(padding, int), "padding is given in positions"
        width = (kernel - 1) * dilation
        if isinstance(layer, nn.ConvTranspose1d):
            # input i reaches the outputs from i·stride - padding to i·stride - padding + width
            first, last = -((width - first - padding) // stride), (last + padding) // stride
        else:
            first, last = first * stride - padding, last * stride - padding + width
    return first, last
