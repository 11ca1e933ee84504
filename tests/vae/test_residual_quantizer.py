"""Codebooks that are measured on data: the same data, the same codebooks, and each level adds to the levels before it."""

import pytest
import torch
from torch import Tensor

from soundomni.core.errors import CheckpointError, DataError, SpecError
from soundomni.vae.residual_quantizer import PART, ResidualQuantizer


def vectors(count: int = 400, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def fitted(data: Tensor, *, levels: int = 3, size: int = 8) -> ResidualQuantizer:
    quantizer = ResidualQuantizer(dim=data.shape[1], num_codebooks=levels, codebook_size=size)
    quantizer.fit(data)
    return quantizer


def test_the_same_vectors_give_the_same_codebooks_whatever_was_drawn_before() -> None:
    first = fitted(vectors())
    torch.manual_seed(7)
    torch.rand(5)
    state = torch.random.get_rng_state()
    again = fitted(vectors())
    assert torch.equal(first.codebooks, again.codebooks) and torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(first.codebooks, fitted(vectors(seed=1)).codebooks)


def test_each_level_lowers_the_error_and_is_the_nearest_entry_to_what_is_left() -> None:
    data = vectors()
    quantizer = fitted(data)
    ids = quantizer.encode(data)
    assert ids.shape == (400, 3) and ids.dtype == torch.int64
    errors = [float((data - quantizer.decode(ids[:, :levels])).square().mean()) for levels in (1, 2, 3)]
    assert data.var() > errors[0] > errors[1] > errors[2]
    left = data.clone()
    for level in range(3):
        distances = (left[:, None] - quantizer.codebooks[level]).square().sum(-1)
        torch.testing.assert_close(distances.gather(1, ids[:, level : level + 1])[:, 0], distances.min(1).values)
        left = left - quantizer.codebooks[level][ids[:, level]]


def test_vectors_in_clusters_are_found_exactly() -> None:
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    quantizer = fitted(centers.repeat(50, 1), levels=2, size=4)
    torch.testing.assert_close(quantizer.decode(quantizer.encode(centers)), centers)


@pytest.mark.parametrize("data", [torch.zeros(20, 2), torch.ones(20, 2), torch.eye(2).repeat(10, 1)])
def test_fewer_different_vectors_than_entries_give_finite_codebooks(data: Tensor) -> None:
    quantizer = fitted(data, size=8)
    assert quantizer.codebooks.isfinite().all()
    torch.testing.assert_close(quantizer.decode(quantizer.encode(data)), data)


def test_a_vector_has_the_same_codes_on_its_own_and_among_many() -> None:
    data = vectors(PART + 30)
    quantizer = fitted(data[:100])
    together = quantizer.encode(data)
    for row in (0, 1, PART - 1, PART, PART + 29):
        assert torch.equal(quantizer.encode(data[row : row + 1]), together[row : row + 1])
    assert quantizer.encode(data[:0]).shape == (0, 3) and quantizer.decode(together[:0]).shape == (0, 3)


def test_nothing_is_coded_before_codebooks_are_measured_and_a_saved_state_counts() -> None:
    quantizer = ResidualQuantizer(dim=3, num_codebooks=2, codebook_size=4)
    for attempt in (lambda: quantizer.encode(vectors(5)), lambda: quantizer.decode(torch.zeros(5, 2, dtype=torch.int64))):
        with pytest.raises(CheckpointError, match="the codebooks have not been measured. Call fit"):
            attempt()
    other = fitted(vectors(), levels=2, size=4)
    quantizer.load_state_dict(other.state_dict())
    assert torch.equal(quantizer.encode(vectors()), other.encode(vectors()))


@pytest.mark.parametrize("count", [0, 1, 7])
def test_too_few_vectors_are_refused(count: int) -> None:
    with pytest.raises(DataError, match=f"codebooks of 8 entries are measured on at least as many frames, but there are only {count}$"):
        fitted(vectors(count), size=8)
    fitted(vectors(8), size=8)


@pytest.mark.parametrize(
    ("changes", "message"), [({"num_codebooks": 0}, "num_codebooks is 0"), ({"codebook_size": 1}, "codebook_size is 1")]
)
def test_sizes_out_of_range_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ResidualQuantizer(**{"dim": 2, "num_codebooks": 1, "codebook_size": 2, **changes})
