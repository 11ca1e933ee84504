"""Augmentations, which change clips at random during training."""
