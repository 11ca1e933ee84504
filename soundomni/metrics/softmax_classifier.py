"""A linear classifier: multinomial logistic regression with an L2 penalty (Bishop, "Pattern Recognition and Machine
Learning", 2006, section 4.3.4), fitted by L-BFGS.

Shape letters: N clips, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from soundomni.metrics.kl import softmax

PENALTY = 0.01
LEAST_SPREAD = 1.0
"""Features are divided by their deviation, but at least by this: they are levels in dB, and smaller differences are not
heard."""
_STEPS = 200


class SoftmaxClassifier:
    """A classifier of feature vectors. Fitting is convex and starts at zero, so it draws nothing at random.

    Args:
        features: finite floats `[N, F]`.
        labels: class of each row; at least two different ones.
        penalty: factor of the sum of squared weights, added to the mean cross entropy.

    Raises:
        ValueError: the lengths differ, or there are fewer than two classes.
    """

    def __init__(self, features: np.ndarray, labels: Sequence[str], *, penalty: float = PENALTY) -> None:
        self.classes = tuple(sorted(set(labels)))
        if np.ndim(features) != 2 or len(features) != len(labels) or len(self.classes) < 2:
            raise ValueError(f"features {np.shape(features)} with {len(labels)} labels of {len(self.classes)} classes; expected at least 2")
        self._mean = features.mean(axis=0, dtype=np.float64)
        self._spread = np.maximum(features.std(axis=0, dtype=np.float64), LEAST_SPREAD)
        places = {name: place for place, name in enumerate(self.classes)}
        self._weights, self._bias = _fit(self._scaled(features), [places[label] for label in labels], len(self.classes), penalty)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return float64 `[N, K]` in the order of `classes` for `[N, F]`."""
        return softmax(self._scaled(features) @ self._weights + self._bias)

    def classify(self, features: np.ndarray) -> list[str]:
        """Return the most probable class of each row of `[N, F]`."""
        return [self.classes[place] for place in self.probabilities(features).argmax(axis=1)]

    def _scaled(self, features: np.ndarray) -> np.ndarray:
        return np.asarray((features - self._mean) / self._spread)


@torch.enable_grad()
def _fit(features: np.ndarray, labels: Sequence[int], classes: int, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Return weights `[F, K]` and biases `[K]`."""
    inputs, targets = torch.from_numpy(features), torch.tensor(labels)
    weights = torch.zeros(inputs.shape[1], classes, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(inputs @ weights + bias, targets) + penalty * weights.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach().numpy(), bias.detach().numpy()
