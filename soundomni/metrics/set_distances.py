"""Distances between two sets of embeddings that an evaluation reports, by the network that the embeddings come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from soundomni.metrics.frechet import frechet_distance
from soundomni.metrics.kernel import kernel_distance

SET_DISTANCES: Mapping[str, Mapping[str, Callable[[np.ndarray, np.ndarray], float]]] = {
    "clap": {"frechet": frechet_distance, "kernel": kernel_distance},
    "classifier": {"frechet": frechet_distance},
}
"""Network → name of a distance → (embeddings of what was generated `[N, F]`, those of the data `[M, F]`) → distance."""
