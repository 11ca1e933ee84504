"""How differently a classifier hears a generated clip and the clip that it should resemble.

KL(reference ‖ generated) between class probabilities of paired clips, the mean over clips: Kreuk et al., "AudioGen"
(ICLR 2023), section 4.2, with a softmax over the classes, as text-to-audio papers report it also for classifiers
trained on several labels per clip.

Shape letters: N clips, K classes.
"""

from __future__ import annotations

import numpy as np

_TOLERANCE = 1e-4


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities `[..., K]` from logits, in float64: none of them becomes 0 below a difference of 700."""
    shifted = np.asarray(logits, dtype=np.float64)
    shifted = np.exp(shifted - shifted.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def kl_divergence(reference: np.ndarray, generated: np.ndarray) -> float:
    """Return the mean over clips of Σ p log(p / q) in nats, p for the references and q for the generated clips.

    Args:
        reference, generated: `[N, K]`; row i of both belongs together, and each row sums to 1.

    Returns:
        at least 0; infinite if a class that the reference has is impossible in the generated clip.

    Raises:
        ValueError: the arrays are not two `[N, K]` of the same shape, or a row is not a distribution.
    """
    p, q = np.asarray(reference, dtype=np.float64), np.asarray(generated, dtype=np.float64)
    if p.shape != q.shape or p.ndim != 2 or p.size == 0:
        raise ValueError(f"KL divergence: the probabilities are {p.shape} and {q.shape}; expected the same shape [N, K]")
    for rows in (p, q):
        if not (rows >= 0).all() or not np.allclose(rows.sum(1), 1.0, atol=_TOLERANCE):
            raise ValueError("KL divergence: a row is not a distribution; expected probabilities that sum to 1")
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0)
    return float(terms.sum(1).mean())
