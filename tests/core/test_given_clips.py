"""Clips that come before the one that is made, levels of codes that are given, and what a model makes without decoding it.

Shape letters: K levels, T frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_stages import COARSE, LEVELS, RATE, TOKENIZER, Name, sound, spec_of, stage

from soundomni import Kept, SoundOmni
from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.errors import DataError, SoundOmniError, SpecError
from soundomni.core.inference.sampling import sample_audio
from soundomni.core.interfaces import Item
from soundomni.core.representation import Representation
from soundomni.core.sequence import PackedBatch, Sample
from soundomni.core.spec.load import dump_spec, load_spec
from soundomni.core.spec.schema import DropoutSpec, GuidanceSpec, ModalitySpec, SegmentTemplate, Slot, Spec
from soundomni.core.writing.tasks import build_tasks
from soundomni.data.samples import SampleWriter

MODELS: dict[Name, SoundOmni] = {
    name: stage(name)
    for name in ("semantic", "coarse", "fine", "fine-masked", "storm", "whole")  # type: ignore[misc]
}


def codes(name: Name, of: str, seed: int, samples: int = 100) -> Representation:
    """What a codec makes of a sound, one clip."""
    modality = next(one for one in MODELS[name].model.each() if one.name == of)
    wave = torch.from_numpy(sound(seed, samples).waveform)[None]
    return modality.codec.encode(wave, torch.tensor([wave.shape[-1]]))  # type: ignore[no-any-return,union-attr,operator]


def same(first: list[Representation], second: list[Representation]) -> bool:
    return len(first) == len(second) and all(torch.equal(a.values, b.values) for a, b in zip(first, second, strict=True))


def test_a_request_with_a_clip_in_its_prompt_is_written_as_a_sample_of_training() -> None:
    model = MODELS["whole"]
    none = DropoutSpec(text=0.0, latent=0.0, features=0.0)
    writer = SampleWriter(segment_writer(model.model, spec_of("whole"), tokenizer=TOKENIZER), dropout=none)
    item = Item(key="a", num_samples=100, sample_rate=RATE, captions=("one",))
    planned = writer.plan(item, build_tasks()["generate"], seed=0, key="a")
    trained = writer.fill(planned, sound(3).waveform, RATE)  # type: ignore[arg-type]
    asked = model.requests(0.1).request("one", seed=0, given={"semantic": sound(3)})
    for ours, theirs in zip((*asked.context, asked.slot), trained.segments, strict=True):
        assert (ours.modality, ours.length, ours.attend, ours.positions) == (
            theirs.modality,
            theirs.length,
            theirs.attend,
            theirs.positions,
        )
        assert np.array_equal(ours.token_ids, theirs.token_ids)
    batch = PackedBatch.from_samples([trained])
    semantic = next(one for one in model.model.each() if one.name == "semantic")
    assert np.array_equal(semantic.represent(batch.of("semantic")).values[0].numpy(), asked.context[1].values)  # type: ignore[operator]


def test_a_clip_in_the_prompt_has_any_length_and_is_left_out_if_it_is_not_given() -> None:
    model = MODELS["coarse"]
    made = {samples: model.make("one", seconds=0.1, given={"semantic": sound(1, samples)}) for samples in (8, 100, 333)}
    without = model.make("one", seconds=0.1)
    assert len({one[0].values.numpy().tobytes() for one in (*made.values(), without)}) == 4
    request = model.requests(0.1).request("one", seed=0)
    assert [segment.modality for segment in request.context] == ["text"] and request.negative == ()
    guided = model.requests(0.1, negative_prompt="two").request("one", seed=0, given={"semantic": sound(1)})
    assert [segment.modality for segment in guided.context] == ["text", "semantic"]
    assert [segment.modality for segment in guided.negative] == ["text"], "what steers away has no given clips"


@pytest.mark.parametrize("name", ["coarse", "whole", "storm"])
def test_guidance_steers_away_from_what_is_made_without_the_clip(name: Name) -> None:
    model, made = MODELS[name], {}
    for scale in (1.0, 2.0, 4.0):
        made[scale] = model.make("", seconds=0.1, guidance_scale=scale, given={"semantic": sound(1)})[0].values
    assert not torch.equal(made[1.0], made[4.0])


@pytest.mark.parametrize("name", ["coarse", "whole", "storm", "fine", "fine-masked"])
def test_a_representation_serves_as_its_audio_does_and_batched_is_single(name: Name) -> None:
    model = MODELS[name]
    of = "acoustic" if name.startswith("fine") else "semantic"
    texts = ["one", "two", ""] if model.takes_text else [""] * 3
    sounds = [sound(seed, samples) for seed, samples in ((1, 100), (2, 130), (3, 104))]
    lengths = [0.1, 0.12, 0.1]
    together = model.make(texts, seconds=lengths, seeds=[4, 5, 6], given={of: sounds})
    assert len({clip.values.shape for clip in together}) > 1 or name == "storm"
    for i, clip in enumerate(sounds):
        (alone,) = model.make(texts[i], seconds=lengths[i], seeds=4 + i, given={of: clip})
        assert torch.equal(alone.values, together[i].values) and alone.frame_counts == together[i].frame_counts
        modality = next(one for one in model.model.each() if one.name == of)
        wave = clip.waveform if of == "acoustic" else None
        if wave is not None:
            cut = torch.from_numpy(wave)[None, :, : round(lengths[i] * RATE)]
            handed = modality.codec.encode(cut, torch.tensor([cut.shape[-1]]))  # type: ignore[union-attr,operator]
            assert same(model.make(texts[i], seconds=lengths[i], seeds=4 + i, given={of: handed}), [alone])
            assert same(model.make(texts[i], seconds=lengths[i], seeds=4 + i, given={of: [handed]}), [alone]), "as made"


def test_an_empty_prompt_is_left_out_as_in_training() -> None:
    contexts = MODELS["whole"].contexts
    slot = contexts.slot(100, of="acoustic")
    assert contexts.prompt("", slot) == () and len(contexts.prompt("one", slot)) == 1


@pytest.mark.parametrize("name", ["fine", "fine-masked"])
def test_levels_that_are_given_are_never_changed(name: Name) -> None:
    model = MODELS[name]
    lower = codes(name, "acoustic", 7)
    coarse = Representation(lower.values[:, :COARSE], lower.lengths, lower.spec.with_levels(COARSE))
    (made,) = model.make("", seconds=0.1, given={"acoustic": coarse})
    assert made.spec.codebook_sizes == lower.spec.codebook_sizes and made.values.shape[1] == LEVELS
    frames = made.frame_counts[0]
    assert frames == 13 and torch.equal(made.values[:, :COARSE], coarse.values[..., :frames])
    assert not torch.equal(made.values[:, COARSE:], lower.values[:, COARSE:, :frames]), "the others are made"
    assert same(model.make("", seconds=0.1, given={"acoustic": lower}), [made]), "other levels of what is given are not looked at"
    (varied,) = model.make("", seconds=0.1, given={"acoustic": coarse}, vary=[sound(9)], strength=0.5)
    assert torch.equal(varied.values[:, :COARSE], coarse.values[..., :frames]), "what is varied has other lower levels"
    (kept,) = model.make("", seconds=0.1, given={"acoustic": coarse}, known=Kept(sound(9), [(0.0, 0.05)]))
    assert torch.equal(kept.values[:, :COARSE], coarse.values[..., :frames])
    wave = torch.from_numpy(sound(9).waveform)[None]
    own = model.model.made().codec.encode(wave, torch.tensor([100])).values
    assert torch.equal(kept.values[:, COARSE:, :6], own[:, COARSE:, :6])


def test_a_coarse_model_has_the_first_levels_and_decodes_them() -> None:
    (made,) = MODELS["coarse"].make("one", seconds=0.1)
    assert made.values.shape[1] == COARSE == len(made.spec.codebook_sizes)
    (clip,) = MODELS["coarse"].generate("one", seconds=0.1)
    codec = MODELS["coarse"].model.made().codec
    assert np.allclose(clip.waveform, codec.decode(made)[0, :, : clip.waveform.shape[1]].detach().numpy(), rtol=1e-4, atol=1e-4)


def test_what_is_generated_is_what_is_made_decoded() -> None:
    model = MODELS["whole"]
    made = model.make(["one", "two", "five"], seconds=0.2, seeds=3)
    assert len({one.frame_counts for one in made}) > 1, "clips end by themselves"
    for representation, clip in zip(made, model.generate(["one", "two", "five"], seconds=0.2, seeds=3), strict=True):
        assert representation.values.shape[-1] == representation.frame_counts[0] == int(representation.lengths[0])
        waveform = model.model.made().codec.decode(representation)[0].detach().numpy()
        count = min(200, representation.spec.num_samples(representation.frame_counts[0]))
        assert clip.waveform.shape[1] == count and np.allclose(clip.waveform, waveform[:, :count], rtol=1e-4, atol=1e-4)
    with pytest.raises(SpecError, match="only encodes, so its tokens have no waveform"):
        MODELS["semantic"].generate("one", seconds=0.1)
    assert MODELS["semantic"].make("one", seconds=0.1)[0].values.shape[1] == 1


@pytest.mark.parametrize("name", ["fine", "fine-masked", "coarse"])
def test_cached_prediction_is_that_of_training(name: Name) -> None:
    """The loss of a clip that was made, by the predictions that sampling asked for, is that of training with greedy choices."""
    model = MODELS[name]
    given = {"acoustic": codes(name, "acoustic", 7)} if name != "coarse" else {"semantic": sound(4)}
    request = model.requests(0.08).request("one", seed=1, given=given)
    seen: list[torch.Tensor] = []
    sampler = model._sampler("acoustic", None)
    real = sampler.sample

    def watched(predict: Any, start: Any, **settings: Any) -> Any:
        def noted(values: Any, timesteps: Any, *, first: int = 0) -> Any:
            seen.append(predict(values, timesteps, first=first))
            return seen[-1]

        return real(noted, start, **settings)

    sampler.sample = watched  # type: ignore[method-assign]
    made = sample_audio(model.model, [request], sampler=sampler, guidance=GuidanceSpec(scale=1.0))
    if name == "fine-masked":
        assert all(not one[:, : sum(made.spec.codebook_sizes[:COARSE])].any() for one in seen), "nothing is predicted of what is given"
        return
    slot = replace(request.slot, values=made.values[0].numpy(), length=0, frames=made.frame_counts[0])
    slot = replace(slot, length=model.model.made().num_tokens(made.frame_counts[0]) + 2)
    batch = PackedBatch.from_samples([Sample(key="x", segments=(*request.context, slot))])
    layout, entered = model.model.plan(batch.table), {one.name: one.enter(batch.of(one.name)) for one in model.model.each()}
    blocks = {"text": model.model.backbone.embed(batch.text_ids)} | {key: one.hidden for key, one in entered.items()}
    with torch.no_grad():
        streams, _ = model.model.backbone(layout.place(blocks, 16), layout)
        query, places = entered["acoustic"].query, entered["acoustic"].places
        assert query is not None and places is not None
        whole = model.model.made().leave(layout.take(streams, "acoustic"), places, query.inputs)
    found = torch.cat(seen, dim=-1)
    torch.testing.assert_close(found, whole[..., : found.shape[-1]], rtol=1e-4, atol=1e-4)


def other_sizes(clip: Representation, **changes: object) -> Representation:
    return replace(clip, spec=replace(clip.spec, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "given", "error", "expected"),
    [
        (
            "coarse",
            lambda: {"semantik": sound(1)},
            SpecError,
            "given names 'semantik', .* clips of semantic. Did you mean 'semantic'",
        ),
        ("semantic", lambda: {"semantic": sound(1)}, SpecError, "the model takes no other clips"),
        ("coarse", lambda: {"semantic": other_sizes(codes("coarse", "semantic", 1), sample_rate=16000)}, DataError, "sample_rate is 16000"),
        ("coarse", lambda: {"semantic": other_sizes(codes("coarse", "semantic", 1), codebook_sizes=(7,))}, DataError, "codebook_sizes"),
        ("fine", lambda: {}, DataError, "makes only the levels of 'acoustic' from 2 on, so it needs those below. Pass them as given="),
        ("fine", lambda: {"acoustic": other_sizes(codes("fine", "acoustic", 1), codebook_sizes=(6,))}, DataError, "codebook_sizes is .6,"),
        ("fine", lambda: {"acoustic": codes("fine", "acoustic", 1, 50)}, DataError, "lasts 7 frames; expected at least 13"),
        ("storm", lambda: {"semantic": codes("storm", "semantic", 1, 20)}, DataError, "lasts 5 frames; expected at least 13"),
    ],
)
def test_what_cannot_be_given_is_one_line(name: Name, given: Callable[[], Any], error: type[SoundOmniError], expected: str) -> None:
    with pytest.raises(error, match=expected) as raised:
        MODELS[name].make("one" if MODELS[name].takes_text else "", seconds=0.1, given=given())
    assert "\n" not in str(raised.value)


def test_given_clips_count_in_the_length_of_a_sample() -> None:
    model = stage("whole", max_tokens=40)
    assert model.make("one", seconds=0.05, given={"semantic": sound(1, 50)})
    with pytest.raises(DataError, match=r"a prompt of 30 tokens \(27 from given clips\) take \d+ tokens; .* at most 40"):
        model.make("one", seconds=0.2, given={"semantic": sound(1, 200)})


@pytest.mark.parametrize(
    ("segment", "expected"),
    [
        (SegmentTemplate(audio="target"), "is the target, which is always appended after the prompt"),
        (SegmentTemplate(audio="context"), "does not name the modality of its audio; expected one with a codec: semantic, acoustic"),
        (SegmentTemplate(audio="context", of="semantik"), "names the modality 'semantik'; expected one .* Did you mean 'semantic'"),
        (SegmentTemplate(audio="features", of="semantic"), "names the modality 'semantic'; expected one with an encoder"),
        (SegmentTemplate(text="x", loss=True), "sets loss, known or gap, but a prompt is never predicted"),
        (SegmentTemplate(), "needs exactly one of text and audio"),
        (SegmentTemplate(audio="context", of="semantic"), "gives 'semantic' again; expected each modality once"),
    ],
)
def test_a_prompt_that_cannot_be_is_one_line(segment: SegmentTemplate, expected: str) -> None:
    spec = spec_of("whole")
    text = dump_spec(Spec(model=replace(spec, prompt=[*spec.prompt, segment])))
    with pytest.raises(SpecError, match=rf"model.prompt\[2\] {expected}"):
        load_spec([_tree(text)])


def _tree(text: str) -> dict[str, Any]:
    from soundomni.core.spec import yaml_text

    return yaml_text.parse(text, "x")  # type: ignore[no-any-return]


def test_a_prompt_does_not_hold_a_clip_of_which_levels_are_given() -> None:
    spec = replace(spec_of("fine"), prompt=[SegmentTemplate(audio="context", of="acoustic")])
    with pytest.raises(SpecError, match="model.prompt holds a clip of 'acoustic', but its levels below 2 are given too"):
        build_model(spec, vocab_size=TOKENIZER.vocab_size)


def test_a_prompt_can_hold_a_clip_that_is_heard() -> None:
    mel = ModalitySpec(
        encoder=Slot("log-mel", {"sample_rate": RATE, "n_fft": 64, "hop_length": 16, "num_mels": 8, "feature_dim": 16}),
        connector=Slot("mlp"),
    )
    spec = spec_of("whole")
    heard = [SegmentTemplate(audio="features", of="mel"), SegmentTemplate(text="{caption}")]
    spec = replace(spec, modalities={"acoustic": spec.modalities["acoustic"], "mel": mel}, prompt=heard)
    model = SoundOmni(build_model(spec, vocab_size=TOKENIZER.vocab_size), Spec(model=spec), TOKENIZER)
    request = model.requests(0.1).request("one", seed=0, given={"mel": sound(1, 130, 1300)})
    assert [segment.modality for segment in request.context] == ["mel", "text"]
    assert request.context[0].waveform is not None and request.context[0].waveform.shape == (1, 100)
    assert model.make("one", seconds=0.1, given={"mel": sound(1)})
    with pytest.raises(DataError, match="given 'mel' is a representation, but the model hears this modality. Give it as audio"):
        model.make("one", seconds=0.1, given={"mel": codes("whole", "semantic", 1)})
