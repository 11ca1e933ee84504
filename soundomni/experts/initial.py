"""Initial weights of a backbone."""

from __future__ import annotations

import torch
from torch import nn

INITIAL_STD = 0.02


@torch.no_grad()
def draw_weights(backbone: nn.Module) -> None:
    """Draw matrices from a normal distribution with standard deviation 0.02, set their biases to zero, and reset all other modules."""
    for module in backbone.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=INITIAL_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif module is not backbone and callable(reset := getattr(module, "reset_parameters", None)):
            reset()
