"""KL divergence of paired distributions, by hand and as properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soundomni.metrics.kl import kl_divergence, softmax

logits = st.lists(st.floats(-20, 20), min_size=3, max_size=3)


def test_by_hand() -> None:
    p, q = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.25, 0.75], [0.5, 0.5]])
    expected = (0.5 * math.log(2) + 0.5 * math.log(2 / 3) + math.log(2)) / 2
    assert kl_divergence(p, q) == pytest.approx(expected)
    assert kl_divergence(q, p) == math.inf


@given(logits, logits)
def test_properties(first: list[float], second: list[float]) -> None:
    p, q = softmax(np.array([first])), softmax(np.array([second]))
    assert kl_divergence(p, p) == 0.0
    value = kl_divergence(p, q)
    assert value >= -1e-12
    reference = torch.nn.functional.kl_div(
        torch.tensor([second], dtype=torch.float64).log_softmax(-1),
        torch.tensor([first], dtype=torch.float64).log_softmax(-1),
        reduction="batchmean",
        log_target=True,
    )
    assert value == pytest.approx(float(reference), rel=1e-9, abs=1e-12)


def test_extreme_logits_stay_finite() -> None:
    far = softmax(np.array([[300.0, -300.0]], dtype=np.float32))
    assert kl_divergence(far[:, ::-1], far) == pytest.approx(600.0)


def test_what_is_no_distribution_is_refused() -> None:
    good = np.array([[0.5, 0.5]])
    for bad in (np.array([[0.5, 0.6]]), np.array([[1.5, -0.5]]), np.array([[np.nan, 1.0]])):
        with pytest.raises(ValueError, match="not a distribution"):
            kl_divergence(good, bad)
    with pytest.raises(ValueError, match="the same shape"):
        kl_divergence(good, np.array([[1.0]]))
