"""Latent normalisation against numpy over the valid frames of all clips at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from soundomni.core.assembly.normalizer import STD_FLOOR, LatentNormalizer
from soundomni.core.errors import CheckpointError, DataError, SpecError
from soundomni.core.representation import Representation, RepresentationSpec

SPEC = RepresentationSpec(kind="continuous", sample_rate=8000, channels=1, downsampling_ratio=4, latent_dim=3)


def batch(lengths, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((len(lengths), 3, max(lengths))) * np.array([1.0, 5.0, 0.1])[:, None] + offset
    for i, n in enumerate(lengths):
        values[i, :, n:] = np.nan  # undefined
    return Representation(torch.from_numpy(values.astype(np.float32)), torch.tensor(lengths), SPEC)


def valid(representations):
    """All valid frames, float64 `[frames, 3]`."""
    rows = [r.values[i, :, :n].T.double().numpy() for r in representations for i, n in enumerate(r.lengths.tolist())]
    return np.concatenate(rows)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(0, 6).map(lambda n: n + 1), min_size=1, max_size=3), min_size=2, max_size=5),
    offset=st.sampled_from([0.0, 3.0, 1000.0]),
)
def test_channel_is_numpys_mean_and_std(lengths, offset):
    batches = [batch(part, seed, offset) for seed, part in enumerate(lengths)]
    normalizer = LatentNormalizer(token_dim=3, kind="channel")
    normalizer.fit(iter(batches))
    frames = valid(batches)
    np.testing.assert_allclose(normalizer.mean.numpy(), frames.mean(0), rtol=1e-6, atol=1e-6)
    std = frames.std(0)
    np.testing.assert_allclose(normalizer.std.numpy(), np.maximum(std, STD_FLOOR * std.max()), rtol=1e-5)


def test_channel_gives_zero_mean_and_unit_variance_and_back():
    data = batch([400, 300])
    normalizer = LatentNormalizer(token_dim=3, kind="channel")
    normalizer.fit([data])
    normalized = normalizer.normalize(data)
    frames = valid([normalized])
    np.testing.assert_allclose(frames.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(frames.std(0), 1, atol=1e-5)
    back = normalizer.denormalize(normalized)
    torch.testing.assert_close(back.values, data.values, equal_nan=True)
    assert back.lengths is data.lengths and back.spec == SPEC


def test_global_is_one_root_mean_square():
    data = batch([40, 30], offset=0.5)
    normalizer = LatentNormalizer(token_dim=3, kind="global")
    normalizer.fit([data])
    expected = np.sqrt((valid([data]) ** 2).mean())
    np.testing.assert_allclose(normalizer.std.numpy(), [expected] * 3, rtol=1e-6)
    assert (normalizer.mean == 0).all()
    assert (valid([normalizer.normalize(data)]) ** 2).mean() == pytest.approx(1.0, abs=1e-5)


def test_none_changes_nothing_and_needs_no_fit():
    normalizer = LatentNormalizer(token_dim=3, kind="none")
    data = batch([4])
    assert normalizer.normalize(data) is data and normalizer.denormalize(data) is data
    normalizer.fit(iter([]))
    assert bool(normalizer.fitted)


def test_a_silent_dimension_does_not_explode():
    data = batch([50])
    data.values[:, 2] = 0.25
    normalizer = LatentNormalizer(token_dim=3, kind="channel")
    normalizer.fit([data])
    assert normalizer.std[2] == pytest.approx(STD_FLOOR * normalizer.std.max().item())
    loud = Representation(torch.ones(1, 3, 1), torch.tensor([1]), SPEC)
    assert normalizer.normalize(loud).values.abs().max() < 1 / STD_FLOOR


def test_refuses_use_before_a_fit():
    normalizer = LatentNormalizer(token_dim=3, kind="channel")
    for use in (normalizer.normalize, normalizer.denormalize):
        with pytest.raises(CheckpointError, match="has not been fitted"):
            use(batch([4]))


def test_travels_with_the_weights(tmp_path):
    normalizer = LatentNormalizer(token_dim=3, kind="channel")
    normalizer.fit([batch([50])])
    save_file(normalizer.state_dict(), tmp_path / "n.safetensors")
    loaded = LatentNormalizer(token_dim=3, kind="channel")
    loaded.load_state_dict(load_file(tmp_path / "n.safetensors"))
    data = batch([7], seed=9)
    assert torch.equal(loaded.normalize(data).values, normalizer.normalize(data).values)


def test_what_it_has_seen_is_forgotten_when_another_state_is_loaded():
    normalizer, fresh = (LatentNormalizer(token_dim=3, kind="channel") for _ in range(2))
    data = batch([7])
    normalizer.fit([data])
    normalizer.normalize(data)
    nn.ModuleDict({"inner": normalizer}).load_state_dict(nn.ModuleDict({"inner": fresh}).state_dict())
    with pytest.raises(CheckpointError, match="has not been fitted"):
        normalizer.normalize(data)
    normalizer.fit([data])
    normalizer.denormalize(data)


def test_keeps_the_dtype_of_the_latents():
    normalizer = LatentNormalizer(token_dim=3, kind="global")
    normalizer.fit([batch([50])])
    data = batch([4])
    assert normalizer.normalize(data.with_values(data.values.bfloat16())).values.dtype == torch.bfloat16


def test_refuses_what_cannot_be_fitted():
    normalizer = LatentNormalizer(token_dim=3, kind="channel")
    with pytest.raises(DataError, match="no frame to fit on"):
        normalizer.fit([])
    with pytest.raises(DataError, match="not silent"):
        normalizer.fit([Representation(torch.zeros(1, 3, 4), torch.tensor([4]), SPEC)])
    with pytest.raises(CheckpointError, match="expected 3 latent dimensions"):
        normalizer.fit([Representation(torch.zeros(1, 2, 4), torch.tensor([4]), SPEC)])
    with pytest.raises(SpecError, match="codes"):
        normalizer.fit([Representation(torch.zeros(1, 3, 4, dtype=torch.int64), torch.tensor([4]), SPEC)])
    assert not normalizer.fitted
    with pytest.raises(SpecError, match="Did you mean 'channel'"):
        LatentNormalizer(token_dim=3, kind="chanel")


def test_half_lies_between_and_gives_one_root_mean_square_over_all():
    values = torch.randn(2, 3, 50, dtype=torch.float64) * torch.tensor([10.0, 1.0, 0.1])[:, None]
    representation = Representation(values, torch.tensor([50, 50]), SPEC)
    normalizer = LatentNormalizer(token_dim=3, kind="half").double()
    normalizer.fit([representation])
    out = normalizer.normalize(representation).values
    size = out.square().mean(dim=(0, 2)).sqrt()
    assert out.square().mean().sqrt().item() == pytest.approx(1.0)
    before = values.square().mean(dim=(0, 2)).sqrt()
    torch.testing.assert_close(size / size[1], (before / before[1]).sqrt())


def test_codes_are_never_normalized_whatever_the_spec_says_about_latents():
    codes = RepresentationSpec(kind="codes", sample_rate=8000, channels=1, downsampling_ratio=100, codebook_sizes=(4, 3))
    latents = RepresentationSpec(kind="continuous", sample_rate=8000, channels=1, downsampling_ratio=100, latent_dim=2)
    for kind in ("channel", "half", "global", "none"):
        normalizer = LatentNormalizer.of(codes, kind)
        made = Representation(torch.tensor([[[3, 0], [2, 1]]]), torch.tensor([2]), codes)
        assert normalizer.measured and normalizer.normalize(made) is made and normalizer.denormalize(made) is made
        assert LatentNormalizer.of(latents, kind).kind == kind
    with pytest.raises(SpecError, match="model.normalize is 'chanel'; expected .* Did you mean 'channel'"):
        LatentNormalizer.of(latents, "chanel")
