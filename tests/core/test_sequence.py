"""The sequence language: text and audio segments, the segment table, packed payloads, and where tokens are stored."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.core.attention.kv_cache import KVCache
from soundomni.core.attention.layout import Layout
from soundomni.core.attention.stored_order import PADDING, store
from soundomni.core.sequence import (
    NO_LABEL,
    Attend,
    PackedBatch,
    PositionRule,
    Role,
    Sample,
    Segment,
    SegmentTable,
    audio_segment,
    text_segment,
)

BOS, EOS = 1, 2


def audio(role: Role, attend: Attend, frames: int, rule: PositionRule, seed: int = 0) -> Segment:
    waveform = np.random.default_rng(seed).standard_normal((1, frames * 4)).astype(np.float32)
    segment = audio_segment(role=role, attend=attend, num_frames=frames, num_samples=frames * 4, boundary_ids=(3, 4), positions=rule)
    return segment.with_waveform(waveform)


segments = st.one_of(
    st.builds(lambda n, loss: text_segment(range(10, 10 + n), bos=BOS, eos=EOS, loss=loss), st.integers(0, 6), st.booleans()),
    st.builds(
        audio,
        st.sampled_from([Role.FEATURES, Role.LATENT]),
        st.sampled_from(list(Attend)),
        st.integers(1, 6),
        st.sampled_from(list(PositionRule)),
    ),
)
documents = st.lists(st.lists(segments, min_size=1, max_size=4), min_size=1, max_size=5)


def samples_of(layout: list[list[Segment]]) -> list[Sample]:
    return [Sample(key=str(i), segments=tuple(s), seed=7 * i) for i, s in enumerate(layout)]


def modality(role: Role) -> int:
    return 0 if role in (Role.TEXT, Role.FEATURES) else 1


def test_text_with_loss_predicts_the_next_token_and_the_end() -> None:
    segment = text_segment([5, 6], bos=BOS, eos=EOS, loss=True)
    assert segment.token_ids.tolist() == [BOS, 5, 6]
    assert segment.labels is not None and segment.labels.tolist() == [5, 6, EOS]
    assert text_segment([5, 6], bos=BOS, eos=EOS).token_ids.tolist() == [BOS, 5, 6, EOS]


def test_positions_follow_the_rules_of_each_segment() -> None:
    sample = [
        text_segment([5, 6], bos=BOS, eos=EOS),  # 4 tokens: 0 1 2 3
        audio(Role.LATENT, Attend.FULL, 2, PositionRule.SHARED),  # 4 tokens at 4, then the counter is 5
        audio(Role.LATENT, Attend.NOISE, 2, PositionRule.SHARED),  # 4 tokens at 5, the counter stays
        text_segment([7], bos=BOS, eos=EOS),  # 5 6 7
        audio(Role.FEATURES, Attend.FULL, 1, PositionRule.ADVANCE),  # 8 9 10
    ]
    table = SegmentTable.from_samples([sample, sample[:1]])
    assert table.token_positions().tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 5, 5, 5, 5, 5, 6, 7, 8, 9, 10, 0, 1, 2, 3]
    shifted = SegmentTable.from_samples([sample[2:3]], first_position=[5])
    assert shifted.token_positions().tolist() == [5, 5, 5, 5]


@settings(max_examples=60, deadline=None)
@given(documents)
def test_every_token_has_one_place_one_role_and_one_payload(layout: list[list[Segment]]) -> None:
    batch = PackedBatch.from_samples(samples_of(layout))
    table = batch.table
    roles = table.token_roles()
    assert table.num_tokens == sum(s.length for d in layout for s in d) == len(roles)
    assert len(batch.text_ids) == len(batch.labels) == (roles == Role.TEXT).sum()
    assert batch.of("latent").num_frames.sum() == (roles == Role.LATENT).sum()
    assert batch.of("features").num_frames.sum() == (roles == Role.FEATURES).sum()
    expected = np.concatenate([s.token_ids for d in layout for s in d])
    assert batch.text_ids.tolist() == expected.tolist()
    assert batch.table.document.tolist() == [i for i, d in enumerate(layout) for _ in d]


@settings(max_examples=60, deadline=None)
@given(documents, st.sampled_from([1, 8]))
def test_the_stored_order_is_a_padded_permutation_grouped_by_role(layout: list[list[Segment]], multiple: int) -> None:
    table = SegmentTable.from_samples(layout)
    stored = store(table, modality, 2, multiple=multiple)
    real = stored.order[stored.order != PADDING]
    assert sorted(real) == list(range(table.num_tokens))
    assert all(length % multiple == 0 and length > 0 for length in stored.stream_lengths)
    offsets = np.cumsum([0, *stored.stream_lengths])
    roles = table.token_roles()
    for name, (stream, first, last) in stored.runs.items():
        role = Role[name.upper()]
        tokens = stored.order[offsets[stream] + first : offsets[stream] + last]
        assert (roles[tokens] == role).all() and (np.diff(tokens) > 0).all()
        assert len(tokens) == (roles == role).sum()
    assert (stored.position_ids[stored.order != PADDING] == table.token_positions()[real]).all()


def test_streams_place_and_take_are_inverse() -> None:
    table = SegmentTable.from_samples([[text_segment([5], bos=BOS, eos=EOS), audio(Role.LATENT, Attend.NOISE, 3, PositionRule.SHARED)]])
    stored = store(table, modality, 2, multiple=4)
    layout = Layout(stored, torch.from_numpy(stored.position_ids), attention=None)  # type: ignore[arg-type]
    blocks = {Role.TEXT: torch.randn(5, 6), Role.LATENT: torch.randn(3, 6)}
    streams = layout.place(blocks, 6)
    assert [len(s) for s in streams] == [8, 4]
    assert torch.equal(layout.take(streams, Role.TEXT), blocks[Role.TEXT])
    assert torch.equal(layout.take(streams, Role.LATENT), blocks[Role.LATENT])
    assert len(layout.take(streams, Role.FEATURES)) == 0


def test_a_batch_without_samples_is_legal() -> None:
    batch = PackedBatch.from_samples([])
    assert batch.table.num_tokens == 0 and len(batch.of("latent")) == 0 and len(batch.text_ids) == 0
    assert store(batch.table, modality, 2, multiple=8).stream_lengths == (8, 8)


def test_labels_only_where_there_is_loss() -> None:
    layout = [[text_segment([5], bos=BOS, eos=EOS), text_segment([6, 7], bos=BOS, eos=EOS, loss=True)]]
    batch = PackedBatch.from_samples(samples_of(layout))
    assert batch.labels.tolist() == [NO_LABEL] * 3 + [6, 7, EOS]


def test_an_unread_clip_cannot_be_packed() -> None:
    bare = audio_segment(
        role=Role.LATENT, attend=Attend.NOISE, num_frames=2, num_samples=8, boundary_ids=(3, 4), positions=PositionRule.SHARED
    )
    with pytest.raises(ValueError, match="Read the clip first"):
        PackedBatch.from_samples([Sample(key="a", segments=(bare,))])


def test_clips_of_one_sample_have_different_seeds_that_do_not_depend_on_the_batch() -> None:
    two = (audio(Role.LATENT, Attend.FULL, 2, PositionRule.SHARED), audio(Role.LATENT, Attend.NOISE, 2, PositionRule.SHARED))
    a, b = Sample(key="a", segments=two, seed=11), Sample(key="b", segments=two[:1], seed=12)
    seeds = PackedBatch.from_samples([a]).of("latent").seeds
    assert len(set(seeds)) == 2
    assert PackedBatch.from_samples([b, a]).of("latent").seeds[1:] == seeds


def test_the_cache_writes_behind_each_rows_context_and_refuses_to_overflow() -> None:
    cache = KVCache(num_rows=2, capacity=4, num_layers=1, num_kv_heads=1, head_dim=1)
    order = np.asarray([0, 2, 1, PADDING])  # three tokens, stored out of order: row 0 has two, row 1 one
    rows = np.asarray([0, 0, 1])
    cache.begin(order, rows, whole=False)
    key = torch.tensor([10.0, 12.0, 11.0, 99.0])[:, None, None]
    fresh, _ = cache.update(0, key, key)
    assert fresh is key
    assert cache.keys[0].flatten().tolist() == [10, 11, 0, 0, 12, 0, 0, 0]
    cache.keep([2, 1])
    cache.begin(np.asarray([0, 1]), np.asarray([0, 1]), whole=True)
    whole, _ = cache.update(0, torch.tensor([20.0, 21.0])[:, None, None], torch.zeros(2, 1, 1))
    assert whole.flatten().tolist() == [10, 11, 20, 0, 12, 21, 0, 0]
    with pytest.raises(ValueError, match="holds 4 tokens per row"):
        cache.begin(np.arange(3), np.zeros(3, dtype=np.int64), whole=True)
