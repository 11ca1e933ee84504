"""The linear classifier: its optimum, which is unique, and what it does with classes, order and scale."""

import numpy as np
import pytest
import torch

from soundomni.metrics.softmax_classifier import PENALTY, SoftmaxClassifier


def clusters(count: int = 60, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Three overlapping classes in four features, in dB."""
    rng = np.random.default_rng(seed)
    labels = [("a", "b", "c")[i % 3] for i in range(count)]
    centers = {"a": [0, 0, 0, 0], "b": [9, 0, -9, 0], "c": [0, 9, 0, -9]}
    return np.array([centers[label] for label in labels]) + 6 * rng.standard_normal((count, 4)), labels


def test_the_gradient_of_the_objective_is_zero_where_fitting_ends() -> None:
    features, labels = clusters()
    model = SoftmaxClassifier(features, labels)
    scaled = (features - features.mean(0)) / np.maximum(features.std(0), 1.0)
    excess = (model.probabilities(features) - np.eye(3)[["abc".index(label) for label in labels]]) / len(labels)
    assert np.abs(excess.sum(0)).max() < 1e-4  # that of the biases, which have no penalty
    log_odds = np.log(model.probabilities(features))
    log_odds -= log_odds.mean(1, keepdims=True)
    weights, *_ = np.linalg.lstsq(np.c_[scaled, np.ones(len(labels))], log_odds, rcond=None)
    assert np.abs(scaled.T @ excess + 2 * PENALTY * weights[:-1]).max() < 1e-4


def test_fitting_is_deterministic_and_touches_no_generator_and_no_gradient_mode() -> None:
    features, labels = clusters()
    with torch.no_grad():
        state = torch.get_rng_state()
        first, again = (SoftmaxClassifier(features, labels).probabilities(features) for _ in range(2))
        assert (first == again).all() and torch.equal(torch.get_rng_state(), state) and not torch.is_grad_enabled()
    order = np.random.default_rng(1).permutation(len(labels))
    moved = SoftmaxClassifier(features[order], [labels[i] for i in order])
    np.testing.assert_allclose(moved.probabilities(features), first, atol=1e-3)


def test_clear_classes_are_told_apart_and_one_clip_is_enough_for_a_class() -> None:
    features = np.array([[0.0, 5.0], [1.0, 5.0], [40.0, 5.0]])
    model = SoftmaxClassifier(features, ["low", "low", "high"])
    assert model.classes == ("high", "low") and model.classify(features) == ["low", "low", "high"]
    np.testing.assert_allclose(model.probabilities(features).sum(1), 1.0)
    constant = features.copy()
    constant[:, 1] = -1e4  # a feature that was always the same in training says nothing
    np.testing.assert_allclose(model.probabilities(constant), model.probabilities(features), atol=1e-6)


@pytest.mark.parametrize(("rows", "labels"), [(3, ["a", "b"]), (2, ["a", "a"]), (0, [])])
def test_what_has_no_two_classes_is_refused(rows: int, labels: list[str]) -> None:
    with pytest.raises(ValueError, match="expected at least 2"):
        SoftmaxClassifier(np.zeros((rows, 4)), labels)
