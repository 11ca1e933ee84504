"""Conditions without places in the sequence: cross-attention and norms that follow a vector, in training and while sampling."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from t5_files import tiny_t5, tiny_t5gemma
from tiny_conditions import CONFORMER, batch_of, conditioned_model, conditioned_spec, sample_writer, samples_of, user_of
from tiny_models import MOT
from torch import Tensor

from soundomni import Audio, SoundOmni
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.attention.conditions import SeenConditions, join_conditions
from soundomni.core.attention.cross import PaddedPlan, plan_cross
from soundomni.core.attention.rectangles import Rectangle
from soundomni.core.errors import DataError, SpecError
from soundomni.core.sequence import PackedBatch, Sample, in_sequence
from soundomni.core.spec.load import load_spec
from soundomni.core.spec.schema import Enters, ModalitySpec, ModelSpec, SegmentTemplate, Slot
from soundomni.core.writing.tasks import build_tasks
from soundomni.train.preflight import check_spec

CPU = torch.device("cpu")
TEXTS = ["rain", "a very long wind", "x"]
OBJECTIVES = ("masked", "autoregressive", "flow-matching")
CASES = [("masked", "cross", "global"), ("autoregressive", "cross", "cross"), ("flow-matching", "global", "prefix")]


def losses_of(model: UnifiedModel, samples: list[Sample]) -> dict[str, Tensor]:
    """The loss of each sample."""
    return {name: total for name, (total, _) in model(batch_of(samples)).items() if "/" in name and not name.startswith("ce")}


def outputs_of(model: UnifiedModel, samples: list[Sample]) -> list[Tensor]:
    """What the network gives for the tokens of each clip, `[P, T]`."""
    made, found = model.made(), []
    leave = type(made).leave
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(type(made), "leave", lambda *given: found.append(leave(*given)) or found[-1])
        batch = batch_of(samples)
        model(batch)
    return [out[:, :count] for out, count in zip(found[0], batch.of("made").num_tokens.tolist(), strict=True)]


@pytest.mark.parametrize(("objective", "letters", "length"), [*CASES, ("flow-matching", "prefix", "cross")])
def test_a_pack_equals_each_clip_by_itself(objective: str, letters: str, length: str) -> None:
    router = "dense" if objective == "masked" else "modality"
    spec = conditioned_spec(letters, length, objective=objective, router=router)
    model = conditioned_model(spec)
    samples = samples_of(sample_writer(model, spec), TEXTS)
    without = [replace(one, segments=one.segments[-1:]) for one in samples]
    together = outputs_of(model, [*samples, *without])
    for packed, sample in zip(together, [*samples, *without], strict=True):
        torch.testing.assert_close(packed, outputs_of(model, [sample])[0], rtol=1e-11, atol=1e-11)
    assert all(not torch.allclose(seen, alone) for seen, alone in zip(together[:3], together[3:], strict=True))


@pytest.mark.parametrize("ways", [("cross", "global"), ("global", "cross")])
def test_conditions_that_are_not_numbers_change_no_bit_of_other_clips(ways: tuple[str, str]) -> None:
    spec = conditioned_spec(*ways)
    model = conditioned_model(spec)
    samples = samples_of(sample_writer(model, spec), TEXTS)
    clean = losses_of(model, samples)
    bad = [replace(s, waveform=np.full_like(s.waveform, np.nan)) if not s.placed else s for s in samples[1].segments]
    spoiled = losses_of(model, [samples[0], replace(samples[1], segments=tuple(bad)), samples[2]])
    for name, loss in clean.items():
        if name.endswith("/1"):
            assert spoiled[name].isnan()
        else:
            assert torch.equal(spoiled[name], loss)


def test_a_clip_sees_the_conditions_before_it_and_none_after_it() -> None:
    spec = conditioned_spec()
    model = conditioned_model(spec)
    (sample,) = samples_of(sample_writer(model, spec), ["rain"], "twice")
    first, _, second, _ = sample.segments
    batch = PackedBatch.from_samples([sample])
    assert [one.conditions for one in batch.conditioned] == [(("letters", 0),), (("letters", 0), ("letters", 1))]
    assert len(in_sequence(sample.segments)) == 2 and not first.placed and not second.placed
    assert batch.table.num_tokens == sum(segment.length for segment in in_sequence(sample.segments))


def test_every_parameter_gets_a_gradient_with_and_without_conditions() -> None:
    spec = conditioned_spec()
    model = conditioned_model(spec)
    samples = samples_of(sample_writer(model, spec), TEXTS)
    without = [replace(one, segments=one.segments[-1:]) for one in samples]
    for batch in (batch_of(samples), batch_of(without), batch_of([])):
        model.zero_grad()
        torch.stack([total for name, (total, _) in model(batch).items() if "/" not in name]).sum().backward()
        assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    model.zero_grad()
    torch.stack([total for total, _ in model(batch_of(samples)).values()]).sum().backward()
    layer = model.backbone.layers[0].experts["all"]  # type: ignore[union-attr, index]
    table = model.modalities["letters"].encoder.table  # type: ignore[union-attr]
    assert all(w.grad.abs().sum() > 0 for w in (layer.cross.key_value.weight, layer.adaptive.linear.weight, table.weight))  # type: ignore


def test_a_model_without_such_conditions_is_as_it_was() -> None:
    ways = [conditioned_model(conditioned_spec("prefix", "prefix")), conditioned_model(conditioned_spec("cross", "global"))]
    plain, more = (set(dict(model.named_parameters())) for model in ways)
    assert plain < more and {name.split(".")[5] for name in more - plain} == {"cross", "adaptive"}


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 7)), min_size=1, max_size=6),
    heads=st.sampled_from([(2, 2), (4, 2)]),
    plan=st.sampled_from(["auto", "padded"]),
)
def test_attention_to_conditions_is_that_of_each_clip_by_itself(sizes: list[tuple[int, int]], heads: tuple[int, int], plan: str) -> None:
    """Keys of another clip are not a number, and so would be all that reads them; clips without conditions get zero."""
    torch.manual_seed(len(sizes))
    queries, keys = (np.cumsum([0, *counts]) for counts in zip(*sizes, strict=True))
    q, k, v = (torch.randn(n, h, 4, dtype=torch.float64) for n, h in ((queries[-1] + 2, heads[0]), *[(keys[-1], heads[1])] * 2))
    parts = [(slice(queries[i], queries[i + 1]), slice(keys[i], keys[i + 1])) for i in range(len(sizes))]
    rectangles = [Rectangle(np.arange(a.start, a.stop), np.arange(b.start, b.stop)) for a, b in parts if b.stop > b.start]
    attend = plan_cross(rectangles, device=CPU, dtype=q.dtype) if plan == "auto" else PaddedPlan(rectangles, device=CPU, reason="")
    weights = torch.randn_like(q)
    for own, seen in parts:
        others = torch.ones(len(k), dtype=torch.bool)
        others[seen] = False
        leaves = [q.clone().requires_grad_(), *(x.masked_fill(others[:, None, None], torch.nan).requires_grad_() for x in (k, v))]
        out = attend(*leaves)
        single = [x.detach()[part].clone().requires_grad_() for x, part in zip(leaves, (own, seen, seen), strict=True)]
        expected = dense(*single)
        torch.testing.assert_close(out[own], expected, rtol=1e-11, atol=1e-11)
        assert not out[queries[-1] :].any()
        if plan == "auto" and len(single[1]):
            clean = [x.clone().requires_grad_() for x in (q, k, v)]
            grads = torch.autograd.grad((attend(*clean)[own] * weights[own]).sum(), clean)
            alone = torch.autograd.grad((expected * weights[own]).sum(), single)
            for grad, wanted, part in zip(grads, alone, (own, seen, seen), strict=True):
                torch.testing.assert_close(grad[part], wanted, rtol=1e-10, atol=1e-10)
                assert not grad[: part.start].any() and not grad[part.stop :].any()


def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    if not len(key):
        return torch.zeros_like(query)
    q, k, v = (x.transpose(0, 1) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(0, 1)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_sampling_gives_the_same_whether_keys_are_kept_or_computed_again(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = conditioned_spec(objective=objective)
    model = conditioned_model(spec, precise=False)
    user, asked = user_of(model, spec), {"seconds": 0.04, "negative_prompt": "wind", "seeds": 3}
    calls = []
    layer = model.backbone.layers[0].experts["all"]  # type: ignore[union-attr, index]
    layer.cross.key_value.register_forward_hook(lambda *given: calls.append(len(given[1][0])))  # type: ignore
    kept = user.generate(TEXTS, **asked)  # type: ignore[arg-type]
    assert calls == [sum(map(len, TEXTS)) + 3 * len("wind")], "once for all steps and branches"
    monkeypatch.setattr(SeenConditions, "projected", lambda self, layer, stream, project: project(self.tokens))
    again = user.generate(TEXTS, **asked)  # type: ignore[arg-type]
    assert len(calls) > 2
    assert all(np.array_equal(a.waveform, b.waveform) for a, b in zip(kept, again, strict=True))


@pytest.mark.parametrize(("objective", "letters", "length"), CASES)
def test_one_prompt_gives_what_it_gives_among_others(objective: str, letters: str, length: str) -> None:
    spec = conditioned_spec(letters, length, objective=objective)
    user = user_of(conditioned_model(spec, precise=False), spec)
    together = user.generate(TEXTS, seconds=0.04, seeds=3)
    for i, text in enumerate(TEXTS):
        (alone,) = user.generate(text, seconds=0.04, seeds=3 + i)
        np.testing.assert_allclose(together[i].waveform, alone.waveform, atol=1e-5)


@pytest.mark.parametrize(("objective", "letters"), [("masked", "cross"), ("autoregressive", "cross"), ("flow-matching", "global")])
def test_what_is_made_follows_conditions_and_guidance(objective: str, letters: str) -> None:
    spec = conditioned_spec(letters, "prefix", objective=objective)
    user = user_of(conditioned_model(spec, precise=False), spec)

    def made(text: str, **settings: object) -> list[np.ndarray]:
        return [clip.waveform for clip in user.generate([text] * 5, seconds=0.2, **settings)]  # type: ignore[arg-type]

    def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
        return all(one.shape == two.shape and np.allclose(one, two, atol=1e-4) for one, two in zip(first, second, strict=True))

    rain = made("rain")
    assert all(np.array_equal(one, two) for one, two in zip(rain, made("rain"), strict=True))
    for other in (made("wind"), made("rain", guidance_scale=1.0), made("rain", guidance_scale=5.0), made("rain", negative_prompt="wind")):
        assert not same(other, rain)


def test_dropout_leaves_conditions_out_singly_and_together() -> None:
    spec = conditioned_spec()
    model = conditioned_model(spec)
    writer = sample_writer(model, spec, modalities={"letters": 1.0})
    assert [s.modality for s in samples_of(writer, ["rain"])[0].segments] == ["length", "made"]
    writer = sample_writer(model, spec, together={"letters+length": 1.0})
    assert [s.modality for s in samples_of(writer, ["rain"])[0].segments] == ["made"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"backbone": MOT}, "backbone 'mot', for model.modalities.letters: .*'cross' and 'global'.*use conformer"),
        ({"letters": "prefix", "backbone": MOT}, "backbone 'mot', for model.modalities.length: .*enter as 'global'"),
    ],
)
def test_a_backbone_that_takes_no_conditions_is_refused(change: dict[str, object], expected: str) -> None:
    with pytest.raises(SpecError, match=expected) as raised:
        conditioned_model(conditioned_spec(**change))  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


MEL = {"sample_rate": 1000, "n_fft": 64, "hop_length": 16, "num_mels": 8, "feature_dim": 16, "num_layers": 2}


def hearing_spec(enters: Enters = "cross", objective: str = "flow-matching", **changes: Any) -> ModelSpec:
    """The spec with a clip that enters through a trained encoder of many tokens, besides a text and a number."""
    spec = conditioned_spec(objective=objective)
    heard = ModalitySpec(encoder=Slot("log-mel", MEL), connector=Slot("linear"), enters=enters)
    prompt = [*spec.prompt, SegmentTemplate(audio="features", of="heard")]
    return replace(spec, modalities={**spec.modalities, "heard": heard}, prompt=prompt, **changes)


@pytest.mark.parametrize(("enters", "objective"), [("cross", "masked"), ("global", "flow-matching"), ("cross+global", "autoregressive")])
def test_a_clip_is_a_condition_of_its_own_sample_only(enters: Enters, objective: str) -> None:
    spec = hearing_spec(enters, objective)
    model = conditioned_model(spec)
    writer = sample_writer(model, spec)
    samples = samples_of(writer, TEXTS)
    heard = [sample.segments[2] for sample in samples]
    assert [(one.modality, one.placed, one.num_samples) for one in heard] == [("heard", False, 60 + 37 * i) for i in range(3)]
    assert all(np.array_equal(one.waveform, sample.segments[-1].waveform) for one, sample in zip(heard, samples, strict=True)), "the clip"
    without = [replace(one, segments=(*one.segments[:2], one.segments[-1])) for one in samples]
    together = outputs_of(model, [*samples, *without])
    for packed, sample in zip(together, [*samples, *without], strict=True):
        torch.testing.assert_close(packed, outputs_of(model, [sample])[0], rtol=1e-11, atol=1e-11)
    assert all(not torch.allclose(seen, alone) for seen, alone in zip(together[:3], together[3:], strict=True))
    for batch in (batch_of(samples), batch_of(without)):
        model.zero_grad()
        torch.stack([total for name, (total, _) in model(batch).items() if "/" not in name]).sum().backward()
        assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_clip_is_left_out_by_name_with_others_or_in_one_of_two_ways() -> None:
    spec = hearing_spec()
    model = conditioned_model(spec)
    for dropout in ({"modalities": {"heard": 1.0}}, {"together": {"heard+length": 1.0}}, {"features": 1.0}):
        names = [segment.modality for segment in samples_of(sample_writer(model, spec, **dropout), ["rain"])[0].segments]
        assert "heard" not in names and ("letters" in names) == ("features" not in dropout)
    spec = hearing_spec("cross+global")
    (sample,) = samples_of(sample_writer(conditioned_model(spec), spec, modalities={"heard": 1.0}), ["rain"])
    assert [(one.modality, one.attended) for one in sample.segments] == [
        *[("letters", True), ("length", True), ("heard", False), ("made", True)]
    ]


def test_a_clip_that_conditions_nothing_is_refused() -> None:
    spec = hearing_spec()
    writer = sample_writer(conditioned_model(spec), spec)
    heard, wanted = SegmentTemplate(audio="features", of="heard"), SegmentTemplate(audio="target")
    told, said = SegmentTemplate(text="{caption}"), SegmentTemplate(text="{caption}", loss=True)
    tasks = build_tasks({"after": [told, wanted, heard], "say": [heard, said], "fine": [heard, wanted]})
    writer.check(tasks["fine"])
    for name in ("after", "say"):
        with pytest.raises(SpecError, match=f"task '{name}': it hears 'heard', which only conditions clips that are made after it"):
            writer.check(tasks[name])
    with pytest.raises(SpecError, match="task 'describe' understands audio, but 'heard' only conditions what the model makes"):
        writer.check(tasks["describe"])
    with pytest.raises(SpecError, match="this model only generates, because 'heard' only conditions what the model makes"):
        user_of(conditioned_model(spec, precise=False), spec).describe(Audio(np.zeros((1, 100), np.float32), 1000))


def test_a_clip_that_conditions_is_not_added_as_well() -> None:
    spec = hearing_spec()
    made = replace(spec.used["made"], aligned=["heard"])
    with pytest.raises(SpecError, match="model.modalities.made.aligned names 'heard', which enters as 'cross'; expected 'prefix'"):
        conditioned_model(replace(spec, modalities={**spec.modalities, "made": made}))


def test_a_conformer_without_conditions_runs_a_layout_without_them() -> None:
    spec = conditioned_spec("prefix", "prefix", backbone=CONFORMER)
    model = conditioned_model(spec)
    assert not model.unplaced
    assert losses_of(model, samples_of(sample_writer(model, spec), TEXTS))


CROSSED = {
    "model.modalities.caption.encoder": "bytes",
    "model.modalities.caption.connector": "linear",
    "model.modalities.caption.enters": "cross",
    "model.prompt": '[{text: "{caption}", of: caption}]',
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model.backbone": "conformer"}, None),
        ({"model.backbone": "mot"}, "backbone 'mot', for model.modalities.caption: .*'cross'.*use conformer"),
        ({"model.modalities.caption.enters": "crss"}, "model.modalities.caption.enters .*crss"),
        ({"model.modalities.latent.enters": "cross"}, "model.modalities.latent.enters is 'cross', but 'latent' has a codec"),
        ({"model.modalities.caption.encoder": "log-mel"}, "the model does not have 'caption' among what it reads"),
    ],
)
def test_specs_say_how_conditions_enter(change: dict[str, str], expected: str | None) -> None:
    overrides = list({**CROSSED, "model.backbone": "conformer", **change}.items())
    if expected is None:
        spec = load_spec(["demo"], overrides)
        check_spec(spec)
        assert spec.of_model.used["caption"].enters == "cross"
        return
    with pytest.raises(SpecError, match=expected) as raised:
        check_spec(load_spec(["demo"], overrides))
    assert "\n" not in str(raised.value)


def test_a_saved_model_needs_the_same_t5_and_makes_the_same(tmp_path: Path) -> None:
    t5 = tiny_t5(tmp_path / "t5")
    spec = conditioned_spec()
    letters = replace(spec.used["letters"], encoder=Slot("t5", {"name": str(t5)}))
    length = replace(spec.used["length"], encoder=Slot("number", {"most": 2.0, "num_frequencies": 3}))
    spec = replace(spec, modalities={**spec.modalities, "letters": letters, "length": length})
    user = user_of(conditioned_model(spec, precise=False), spec)
    made = user.generate(["zero one", "two"], seconds=0.04)
    folder = user.save_pretrained(tmp_path / "model")
    assert not any("letters.encoder" in name for name in user.model.state_dict())
    with pytest.raises(DataError, match="the number 3 is out of range; expected one from 0 to 2"):
        user.generate("two", seconds=3)
    t5.rename(tmp_path / "moved")
    with pytest.raises(SpecError, match="Nothing is downloaded: .* or give its folder") as raised:
        SoundOmni.from_pretrained(folder)
    assert "\n" not in str(raised.value)
    again = SoundOmni.from_pretrained(folder, overrides={"model.modalities.letters.encoder.name": str(tmp_path / "moved")})
    for before, after in zip(made, again.generate(["zero one", "two"], seconds=0.04), strict=True):
        assert np.array_equal(before.waveform, after.waveform)


def test_padded_texts_train_their_padding_and_are_saved_without_their_network(tmp_path: Path) -> None:
    folder = tiny_t5gemma(tmp_path / "t5gemma")
    spec = conditioned_spec(objective="flow-matching")
    letters = replace(spec.used["letters"], encoder=Slot("t5gemma", {"name": str(folder), "pad_to": 6}))
    length = replace(spec.used["length"], encoder=Slot("number", {"most": 2.0, "num_frequencies": 3, "features": "fixed", "clamp": True}))
    spec = replace(spec, modalities={**spec.modalities, "letters": letters, "length": length})
    model = conditioned_model(spec, precise=False)
    samples = samples_of(sample_writer(model, spec), ["zero one", "", "one two three four five zero"])
    assert [sample.segments[0].num_tokens for sample in samples] == [6, 6, 6]
    batch = PackedBatch.from_samples(samples)
    sum(total for total, _ in model(batch).values()).backward()  # type: ignore[union-attr]
    assert model.modality("letters").encoder.padding.grad.abs().sum() > 0  # type: ignore[union-attr, operator]
    user = user_of(model, spec)
    made = user.generate(["zero one", ""], seconds=0.04)
    assert [name for name in model.state_dict() if ".encoder." in name] == ["modalities.letters.encoder.padding"]
    again = SoundOmni.from_pretrained(user.save_pretrained(tmp_path / "model"))
    for before, after in zip(made, again.generate(["zero one", ""], seconds=0.04), strict=True):
        assert np.array_equal(before.waveform, after.waveform)


def test_a_draft_that_reads_texts_in_another_way_is_refused_in_one_line() -> None:
    def user(spec: ModelSpec) -> SoundOmni:
        made = replace(spec.used["made"], sampler=Slot("speculative", {"ahead": 2}))
        return user_of(conditioned_model(spec, precise=False), replace(spec, modalities={**spec.used, "made": made}))

    def with_codec_of(model: SoundOmni, draft: SoundOmni) -> SoundOmni:
        draft.model.made().codec.load_state_dict(model.model.made().codec.state_dict())
        return draft

    way = partial(conditioned_spec, objective="autoregressive", router="modality")
    model = user(way("cross", "global"))
    drafts = [way("prefix", "global"), way("cross", "prefix"), way("global", "cross")]
    for draft in (with_codec_of(model, user(spec)) for spec in drafts):
        with pytest.raises(
            SpecError, match="the draft reads texts by .*; expected by .*Train the draft with the model's encoders"
        ) as raised:
            model.generate("rain", seconds=0.05, draft=draft)
        assert "\n" not in str(raised.value)
    assert model.generate("rain", seconds=0.05, draft=with_codec_of(model, user(way("cross", "global"))))


def test_a_condition_without_tokens_gives_a_vector_of_zeros() -> None:
    for count in (0, 3):
        vectors, counts = {"a": torch.ones(count, 4)}, {"a": np.asarray([count])}
        joined = join_conditions({}, vectors, counts, [(("a", 0),)], like=torch.zeros(1, 4))
        assert torch.equal(joined.vectors[-1], torch.full((4,), float(count > 0)))


def test_a_critic_apart_does_not_train_the_encoders_that_it_shares() -> None:
    spec = conditioned_spec("cross", "global")
    made = replace(spec.used["made"], objective=Slot("masked-critic"), sampler=Slot("maskgit-critic", {"iterations": [3, 1]}))
    spec = replace(spec, modalities={**spec.used, "made": made}, critic=CONFORMER)
    model = conditioned_model(spec)
    batch = batch_of(samples_of(sample_writer(model, spec), TEXTS))
    for loss, moved in (("critic", {"critic"}), ("masked", {"backbone", "modalities"})):
        model.zero_grad()
        model(batch)[loss][0].backward()
        given = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert {name.partition(".")[0] for name in given} == moved
        assert ("modalities.letters.encoder.table.weight" in given) == (loss == "masked")
