"""Samples as they are planned and filled."""

import numpy as np
import pytest

from soundomni.core.errors import SpecError, UnreadableAudioError
from soundomni.core.interfaces import Item, Skip
from soundomni.core.representation import FeatureSpec, RepresentationSpec
from soundomni.core.sequence import NO_LABEL, Attend, PackedBatch, PositionRule, Role
from soundomni.core.spec.schema import DropoutSpec
from soundomni.core.spec.schema import SegmentTemplate as Template
from soundomni.core.writing.tasks import build_tasks
from soundomni.data.audio import resample, resampled_length

NO_DROPOUT = DropoutSpec(text=0.0, latent=0.0, features=0.0)
TASKS = build_tasks(
    {
        "edit": [Template(audio="context"), Template(audio="features"), Template(text="{caption}"), Template(audio="target")],
        "turns": [Template(text="{caption}"), Template(audio="target"), Template(audio="context"), Template(text="{answer}", loss=True)],
    }
)
ITEM = Item(key="a", num_samples=11025, sample_rate=11025, captions=("rain", "wind"), questions=(("Loud?", "no"), ("Wet?", "yes")))


def plan(writer, task, *, item=ITEM, seed=0, **arguments):
    return writer.plan(item, TASKS[task], seed=seed, key=f"set:{item.key}", **arguments)


def test_generate_is_text_then_a_noise_block(make_writer, tokenizer):
    text, target = plan(make_writer(dropout=NO_DROPOUT), "generate").sample.segments
    assert tokenizer.decode(text.token_ids) in ITEM.captions and text.labels is None
    assert (text.token_ids[0], text.token_ids[-1]) == (tokenizer.bos, tokenizer.eos)
    assert (target.role, target.attend, target.positions) == (Role.LATENT, Attend.NOISE, PositionRule.SHARED)
    assert target.num_samples == 8000 and target.num_frames == 8000 // 100 + 1 and target.known is None
    assert target.token_ids.tolist() == [tokenizer.audio_bos, tokenizer.audio_eos]
    assert target.waveform is None


def test_describe_and_answer_learn_only_their_last_text(make_writer, tokenizer):
    features, text = plan(make_writer(), "describe").sample.segments
    assert (features.role, features.attend, features.positions) == (Role.FEATURES, Attend.FULL, PositionRule.ADVANCE)
    assert features.num_samples == 4000 and features.num_frames == 20
    assert text.token_ids[0] == tokenizer.bos and text.labels.tolist() == [*text.token_ids[1:], tokenizer.eos]
    _, question, answer = plan(make_writer(), "answer").sample.segments
    assert (tokenizer.decode(question.token_ids), tokenizer.decode(answer.token_ids)) in ITEM.questions
    assert question.labels is None and (answer.labels != NO_LABEL).all()


def test_settings_of_the_model_are_followed(make_writer):
    codes = RepresentationSpec(kind="codes", sample_rate=16000, channels=2, downsampling_ratio=320, codebook_sizes=(64, 64))
    writer = make_writer(codec=codes, latent_positions="advance", feature_positions="shared", feature_attend="causal", dropout=NO_DROPOUT)
    context, features, _, target = plan(writer, "edit").sample.segments
    assert (context.role, context.attend, context.num_frames) == (Role.CODES, Attend.FULL, 50)
    assert (target.role, target.attend, target.positions) == (Role.CODES, Attend.NOISE, PositionRule.ADVANCE)
    assert (features.attend, features.positions) == (Attend.CAUSAL, PositionRule.SHARED)


def test_continue_gives_a_share_of_the_first_frames(make_writer):
    shares = []
    for seed in range(200):
        target = plan(make_writer(), "continue", seed=seed).sample.segments[-1]
        count = int(target.known.sum())
        assert target.known[:count].all() and 0 < count < target.num_frames
        shares.append(count / target.num_frames)
    assert 0.08 <= min(shares) < 0.15 and 0.65 < max(shares) <= 0.7


def test_a_gap_is_made_at_any_place_and_the_rest_is_given(make_writer):
    shares, places = [], []
    for seed in range(200):
        target = plan(make_writer(), "fill", seed=seed).sample.segments[-1]
        made = np.flatnonzero(~target.known)
        assert len(made) and (np.diff(made) == 1).all()
        shares.append(len(made) / target.num_frames)
        places.append(made[0] / (target.num_frames - len(made)))
    assert 0.08 <= min(shares) < 0.15 and 0.55 < max(shares) <= 0.6
    assert min(places) < 0.05 and max(places) > 0.95


def test_fill_resamples_once_per_rate_and_packs(make_writer, ramps):
    data = ramps(lengths=[11025], rate=11025, channels=2)
    planned = plan(make_writer(dropout=NO_DROPOUT), "edit")
    waveform, rate = data.load(0)
    sample = make_writer().fill(planned, waveform, rate)
    context, features, _, target = sample.segments
    assert context.waveform is target.waveform and target.waveform.shape == (1, 8000)
    np.testing.assert_allclose(target.waveform, resample(waveform[:1], 11025, 8000), atol=1e-6)
    assert features.waveform.shape == (1, 4000)
    assert sample.length == planned.length
    batch = PackedBatch.from_samples([sample])
    assert batch.keys == ("set:a",) and len(batch.of("latent")) == 2 and len(batch.of("features")) == 1
    assert batch.of("latent").noise.tolist() == [False, True]


def test_fill_gives_the_codec_its_channels(make_writer, ramps):
    stereo = RepresentationSpec(kind="continuous", sample_rate=11025, channels=2, downsampling_ratio=100, latent_dim=4)
    writer = make_writer(codec=stereo)
    planned = plan(writer, "generate")
    filled = writer.fill(planned, *ramps(lengths=[11025], rate=11025).load(0)).segments[-1].waveform
    assert filled.shape == (2, 11025) and (filled[0] == filled[1]).all()
    with pytest.raises(UnreadableAudioError, match="'set:a'.*3 channels"):
        writer.fill(planned, *ramps(lengths=[11025], rate=11025, channels=3).load(0))


def test_fill_refuses_a_clip_that_is_not_what_was_planned(make_writer):
    writer = make_writer()
    planned = plan(writer, "generate")
    with pytest.raises(UnreadableAudioError, match="8000 Hz, but 11025 Hz"):
        writer.fill(planned, np.zeros((1, 11025), np.float32), 8000)
    with pytest.raises(UnreadableAudioError, match="'set:a': it decodes to 5000 samples, but 11025"):
        writer.fill(planned, np.zeros((1, 5000), np.float32), 11025)
    with pytest.raises(UnreadableAudioError, match="'set:a': it decodes to 5000 samples, but 11025"):
        writer.fill(planned, np.zeros((1, 5000), np.float32), 11025, cut=True)
    short = writer.fill(planned, np.ones((1, 11000), np.float32), 11025)
    assert short.segments[-1].waveform.shape == (1, 8000)


def test_long_targets_are_cut_at_a_random_place_and_long_clips_to_understand_are_refused(make_writer, ramps):
    data = ramps(lengths=[80000])
    writer = make_writer()
    starts = []
    for seed in range(100):
        planned = plan(writer, "generate", item=data.item(0), seed=seed, max_seconds=0.5)
        waveform = writer.fill(planned, *data.load(0)).segments[-1].waveform
        assert waveform.shape == (1, 4000)
        np.testing.assert_allclose(np.diff(waveform[0]), 1 / 79999, atol=1e-6)
        starts.append(float(waveform[0, 0]))
    assert min(starts) < 0.1 and 0.85 < max(starts) <= 1 - 4000 / 80000 + 1e-3
    refused = plan(writer, "describe", item=data.item(0), max_seconds=0.5)
    assert isinstance(refused, Skip) and refused.key == "set:ramp-0" and "10.00 s" in refused.reason and "0.5 s" in refused.reason


def test_the_encoder_limits_what_is_understood(make_writer, ramps):
    writer = make_writer(encoder=FeatureSpec(sample_rate=4000, feature_dim=8, max_seconds=1.0), dropout=NO_DROPOUT)
    long, short = ramps(lengths=[8001, 8000]), ramps(lengths=[8000])
    assert isinstance(plan(writer, "describe", item=long.item(0)), Skip)
    assert not isinstance(plan(writer, "describe", item=short.item(0)), Skip)
    assert plan(writer, "generate", item=long.item(0)).crop.num_samples == 8001
    assert plan(writer, "edit", item=long.item(0)).crop.num_samples == 8000


def test_the_latent_connector_limits_what_is_made(make_writer, ramps):
    writer, longest = make_writer(max_frames=10), 900
    long, short = ramps(lengths=[longest + 1]), ramps(lengths=[longest])
    for task in ("generate", "edit"):
        refused = plan(writer, task, item=long.item(0))
        assert isinstance(refused, Skip) and refused.key == "set:ramp-0"
        assert "0.11 s of it are used, and the latent connector takes at most 0.1125 s. Set max_seconds" in refused.reason
        assert not isinstance(plan(writer, task, item=short.item(0)), Skip)
    assert not isinstance(plan(writer, "describe", item=long.item(0)), Skip)
    cut = plan(writer, "generate", item=long.item(0), max_seconds=0.1125)
    assert cut.crop.num_samples == longest


def test_a_model_without_encoder_cannot_describe(make_writer):
    writer = make_writer(encoder=None)
    writer.check(TASKS["generate"])
    with pytest.raises(SpecError, match="'describe' understands audio, but the model has no encoder"):
        writer.check(TASKS["describe"])


def test_conditions_drop_out_at_their_rates_and_independently(make_writer):
    writer = make_writer(dropout=DropoutSpec(text=0.1, latent=0.3, features=0.5))
    roles = [
        tuple(s.role if s.attend != Attend.NOISE else "target" for s in plan(writer, "edit", seed=i).sample.segments) for i in range(3000)
    ]
    dropped = np.asarray([[role not in found for role in (Role.TEXT, Role.LATENT, Role.FEATURES)] for found in roles])
    # four standard deviations
    assert np.abs(dropped.mean(0) - [0.1, 0.3, 0.5]).max() < 4 * 0.5 / np.sqrt(3000)
    assert abs((dropped[:, 1] & dropped[:, 2]).mean() - 0.15) < 4 * 0.36 / np.sqrt(3000)
    assert all("target" in found for found in roles)


def test_only_conditions_of_a_target_drop_out(make_writer):
    writer = make_writer(dropout=DropoutSpec(text=1.0, latent=1.0, features=1.0))
    assert [s.role for s in plan(writer, "describe").sample.segments] == [Role.FEATURES, Role.TEXT]
    assert [s.role for s in plan(writer, "answer").sample.segments] == [Role.FEATURES, Role.TEXT, Role.TEXT]
    assert [s.attend for s in plan(writer, "turns").sample.segments] == [Attend.NOISE, Attend.FULL, Attend.CAUSAL]


def test_dropout_does_not_shift_other_choices(make_writer):
    plans = [plan(make_writer(dropout=DropoutSpec(text=share)), "continue", seed=5, max_seconds=0.5) for share in (0.0, 1.0)]
    assert len(plans[0].sample.segments) == 2 and len(plans[1].sample.segments) == 1
    assert plans[0].crop == plans[1].crop
    assert plans[0].full_length == plans[1].full_length == plans[0].length > plans[1].length
    np.testing.assert_array_equal(plans[0].sample.segments[-1].known, plans[1].sample.segments[-1].known)


def test_a_plan_depends_on_its_seed_alone(make_writer):
    first, again = plan(make_writer(), "continue", seed=9), plan(make_writer(), "continue", seed=9)
    assert [s.token_ids.tolist() for s in first.sample.segments] == [s.token_ids.tolist() for s in again.sample.segments]
    captions = {tuple(plan(make_writer(dropout=NO_DROPOUT), "generate", seed=s).sample.segments[0].token_ids) for s in range(20)}
    assert len(captions) == 2


def test_dropout_shares_are_checked(make_writer):
    with pytest.raises(SpecError, match=r"condition_dropout.text is 1.5"):
        make_writer(dropout=DropoutSpec(text=1.5))


@pytest.mark.parametrize(("num_samples", "rate"), [(1, 44100), (7, 48000), (44101, 44100), (8000, 8000), (12345, 7001)])
def test_planned_lengths_hold_for_odd_clips(make_writer, num_samples, rate):
    item = Item(key="a", num_samples=num_samples, sample_rate=rate, captions=("x",))
    writer = make_writer(dropout=NO_DROPOUT)
    sample = writer.fill(plan(writer, "edit", item=item), np.zeros((1, num_samples), np.float32), rate)
    for segment, to_rate in zip(sample.segments, (8000, 4000, None, 8000), strict=True):
        if to_rate:
            assert segment.waveform.shape == (1, segment.num_samples)
            assert segment.num_samples == resampled_length(num_samples, rate, to_rate)


def test_a_chat_template_holds_what_is_heard_and_leaves_generation_alone(make_writer, tokenizer):
    writer = make_writer(chat="qwen2-audio", feature_attend="causal", dropout=NO_DROPOUT)
    before, features, asked, answer = plan(writer, "answer").sample.segments
    assert tokenizer.decode(before.token_ids).startswith("system") and features.role == Role.FEATURES
    question, expected = next(pair for pair in ITEM.questions if pair[0] in tokenizer.decode(asked.token_ids))
    assert tokenizer.decode(asked.token_ids).strip() == question
    assert answer.labels[answer.labels != NO_LABEL].tolist() == [*tokenizer.encode(expected), tokenizer.eos]
    planned = plan(writer, "describe")
    assert planned.full_length == sum(segment.length for segment in planned.sample.segments)
    bare, chat = plan(make_writer(dropout=NO_DROPOUT), "generate", seed=3), plan(writer, "generate", seed=3)
    for mine, theirs in zip(chat.sample.segments, bare.sample.segments, strict=True):
        assert mine.token_ids.tolist() == theirs.token_ids.tolist() and mine.role == theirs.role
    with pytest.raises(SpecError, match="puts clean latents into a chat"):
        writer.check(build_tasks({"say": [Template(audio="context"), Template(text="{caption}", loss=True)]})["say"])
