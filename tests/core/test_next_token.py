"""Clips that are made token after token: what the cache gives is what training gives, and clips end by themselves.

Shape letters: B clips, K levels, N tokens, T frames, P predicted numbers.
"""

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import RATE, TOKENIZER, clip, pack

from soundomni.core.assembly.build import build_model, build_sampler
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.errors import SpecError
from soundomni.core.inference.audio_request import AudioRequest
from soundomni.core.inference.contexts import make_cache
from soundomni.core.inference.editing import Kept
from soundomni.core.inference.next_token import TokenSlots
from soundomni.core.inference.sampling import AudioSlots, sample_audio
from soundomni.core.interfaces import Predict
from soundomni.core.pretrained.draft import check_draft
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.representation import HIDDEN, Representation, Tokens
from soundomni.core.sequence import Context, PackedBatch, Sample, Segment
from soundomni.core.spec.schema import GuidanceSpec, ModalitySpec, ModelSpec, Slot, Spec
from soundomni.core.tokenizer import TextTokenizer
from soundomni.core.waveform import Audio
from soundomni.core.writing.segments import SegmentWriter
from soundomni.flow import NextTokenSampler
from soundomni.flow.orders import Order

ORDERS: tuple[Order, ...] = get_args(Order)
LEVELS, SIZE = 3, 5
CODEC = Slot(
    "harmonic-codes",
    {"sample_rate": RATE, "num_harmonics": 2, "pitch_range": [150, 240], "num_codebooks": LEVELS, "codebook_size": SIZE, "frame_size": 16},
)
WORDS = st.sampled_from(["", "one", "two three four", "five zero five"])
GUIDED = GuidanceSpec(scale=2.5, renormalize="global")


def model_spec(order: Order, positions: str = "advance", hidden: int = 16) -> ModelSpec:
    codes = ModalitySpec(
        codec=CODEC,
        connector=Slot("codes"),
        objective=Slot("autoregressive", {"order": order}),
        sampler=Slot("next-token"),
        positions=positions,  # type: ignore[arg-type]
    )
    return ModelSpec(
        backbone=Slot("mot", {"hidden_dim": hidden, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "qk_norm": "all"}),
        router=Slot("modality"),
        modalities={"codes": codes},
    )


def make_model(order: Order, positions: str = "advance", hidden: int = 16) -> tuple[UnifiedModel, SegmentWriter]:
    """A model in float64 whose every parameter is random, and what writes its segments."""
    spec = model_spec(order, positions, hidden)
    model = build_model(spec, vocab_size=TOKENIZER.vocab_size, seed=1)
    model.executor = "reference"
    waveform = torch.from_numpy(np.stack([clip(seed, 160) for seed in range(4)]))
    clips = replace(PackedBatch.from_samples([]).of("codes"), waveform=waveform, lengths=torch.full((4,), 160), seeds=(0, 1, 2, 3))
    model.made().fit([clips])
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.made().connector.parameters():
            parameter.normal_()
    return model.double(), segment_writer(model, spec, tokenizer=TOKENIZER)


MODELS = {(order, positions): make_model(order, positions) for order in ORDERS for positions in ("advance", "shared")}

HALF = {order: make_model(order, hidden=8)[0] for order in ORDERS}


def codes_of(frames: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SIZE, (LEVELS, frames))


def target(writer: SegmentWriter, frames: int, seed: int = 0, known: int = 0) -> Segment:
    """A clip to make that is encoded already; its codec has one frame more than its samples fill."""
    segment = writer.target((frames - 1) * 16, made=(known, frames) if known else None)
    assert segment.num_frames == frames
    return segment.with_values(codes_of(frames, seed))


def whole(model: UnifiedModel, context: Context, segment: Segment) -> tuple[torch.Tensor, torch.Tensor]:
    """What training predicts for a clip, `[1, P, N]`, and the inputs that it is shown, `[1, K, N]`."""
    batch = pack([Sample(key="x", segments=(*context, segment))])
    layout, entered = model.plan(batch.table), model.made().enter(batch.of("codes"))
    blocks = {"text": model.backbone.embed(batch.text_ids), "codes": entered.hidden}
    streams, _ = model.backbone(layout.place(blocks, 16), layout)
    query = entered.query
    assert query is not None and entered.places is not None
    output = model.made().leave(layout.take(streams, "codes"), entered.places, query.inputs)
    return output[-1:, :, : segment.num_tokens], query.inputs[-1:, :, : segment.num_tokens]


@pytest.mark.parametrize("positions", ["advance", "shared"])
@pytest.mark.parametrize("order", ORDERS)
@settings(max_examples=5, deadline=None)
@given(
    words=st.lists(WORDS, min_size=1, max_size=3),
    frames=st.integers(2, 5),
    cuts=st.sets(st.integers(1, 15)),
    back=st.integers(0, 5),
)
def test_tokens_in_the_cache_are_those_of_training(
    order: Order, positions: str, words: list[str], frames: int, cuts: set[int], back: int
) -> None:
    model, writer = MODELS[order, positions]
    contexts: list[Context] = [(writer.text(text),) if text else () for text in words]
    given = writer.context(32).with_values(codes_of(3, 8))  # a clip of the same modality that is only context
    contexts[0] = (given, *contexts[0])
    with torch.no_grad():
        expected, inputs = zip(*(whole(model, c, target(writer, frames, seed=i)) for i, c in enumerate(contexts)), strict=True)
        shown = torch.cat(inputs)
        count = shown.shape[-1]
        slots = TokenSlots(model, contexts, [target(writer, frames)] * len(contexts))
        bounds = [0, *sorted(cut for cut in cuts if cut < count), count]
        times = torch.ones(len(contexts), count, dtype=torch.float64)

        def predict(first: int, last: int) -> torch.Tensor:
            return slots.predict(shown[..., first:last], times[:, first:last], first=first)

        pieces = torch.cat([predict(first, last) for first, last in pairwise(bounds)], dim=-1)
        first = min(back, count - 1)
        again = predict(first, count)  # tokens that were asked for may be asked for anew
        own = (first + torch.arange(len(contexts))) % count  # and each clip may go on at a place of its own
        width = count - int(own.max())
        places = own[:, None] + torch.arange(width)
        entered = shown.gather(2, places[:, None].expand(-1, LEVELS, -1))
        apart = slots.predict(entered, times[:, :width], first=own)
    joined = torch.cat(expected)
    assert joined.abs().max() > 1
    torch.testing.assert_close(pieces.double(), joined, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again.double(), joined[..., first:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(apart.double(), joined.gather(2, places[:, None].expand(-1, joined.shape[1], -1)), rtol=1e-5, atol=1e-5)


@st.composite
def requests(draw: st.DrawFn, writer: SegmentWriter) -> AudioRequest:
    """A clip to make: some prompt, some negative prompt, and now and then a beginning that is kept, or a clip to vary."""
    words, avoided, frames = draw(WORDS), draw(WORDS), draw(st.integers(2, 6))
    request = AudioRequest(
        context=(writer.text(words),) if words else (),
        negative=(writer.text(avoided),) if avoided else (),
        slot=writer.target((frames - 1) * 16),
        seed=draw(st.integers(0, 2**63 - 1)),
    )
    codes, kind = torch.from_numpy(codes_of(frames, 3)), draw(st.sampled_from(["", "known", "varied"]))
    if kind == "known":
        return replace(request, known=codes, known_mask=torch.arange(frames) < draw(st.integers(1, frames - 1)))
    return replace(request, varied=codes) if kind else request


@pytest.mark.parametrize("order", ORDERS)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_clips_end_by_themselves_keep_what_is_known_and_do_not_depend_on_the_batch(order: Order, data: st.DataObject) -> None:
    model, writer = MODELS[order, "advance"]
    batch = data.draw(st.lists(requests(writer), min_size=2, max_size=3))
    sampler = build_sampler(Slot("next-token", {"temperature": 1.5, "top_k": 0.9}))
    make = partial(sample_audio, model, sampler=sampler, guidance=GUIDED, begin=0.5)
    steps: list[int] = []
    together = make(batch, on_step=lambda index, _: steps.append(index))
    assert steps == list(range(len(steps)))
    for row, request in enumerate(batch):
        frames = together.frame_counts[row]
        made = together.values[row, :, :frames]
        alone = make([request])
        assert alone.frame_counts == (frames,) and torch.equal(alone.values[0], made)
        assert 2 <= frames <= request.num_frames and int(together.lengths[row]) == frames
        assert int(made.min()) >= 0 and int(made.max()) < SIZE and not together.values[row, :, frames:].any()
        if request.known is not None:
            count = int(request.known_mask.sum())
            assert frames >= count and torch.equal(made[:, :count], request.known[:, :count])
        if request.varied is not None:
            count = request.num_frames // 2
            assert frames >= count and torch.equal(made[:, :count], request.varied[:, :count]), "it keeps the first half"


@pytest.mark.parametrize("order", ORDERS)
@settings(max_examples=3, deadline=None)
@given(data=st.data())
def test_guessing_ahead_gives_the_same_clips_with_fewer_predictions(order: Order, data: st.DataObject) -> None:
    model, writer = MODELS[order, "advance"]
    batch = data.draw(st.lists(requests(writer), min_size=2, max_size=3))

    def make(sampler: Slot, some: list[AudioRequest], draft: UnifiedModel | None = None) -> tuple[Representation, int]:
        steps: list[int] = []
        note = lambda index, _: steps.append(index)  # noqa: E731
        made = sample_audio(model, some, sampler=build_sampler(sampler), guidance=GUIDED, begin=0.5, on_step=note, draft=draft)
        assert steps == list(range(len(steps)))
        return made, len(steps)

    for arguments in ({"temperature": 0.0, "repetition_penalty": 1.3}, {"temperature": 1.2, "top_k": 0.9}):
        expected, every = make(Slot("next-token", arguments), batch)
        for kind, draft in (("lookup", None), ("perfect", model), ("half", HALF[order])):
            made, steps = make(Slot("speculative", {**arguments, "ahead": 3}), batch, draft)
            if not arguments["temperature"] or kind == "lookup":
                assert made.frame_counts == expected.frame_counts and torch.equal(made.values, expected.values)
                assert steps <= every
            alone, steps = make(Slot("speculative", {**arguments, "ahead": 3}), batch[:1], draft)
            frames = made.frame_counts[0]
            assert alone.frame_counts == (frames,) and torch.equal(alone.values[0], made.values[0, :, :frames])
            if kind == "perfect":
                tokens = model.made().num_tokens(frames)
                rest = order in ("levels", "delay")  # nothing is guessed after the end of a clip
                assert steps <= -(-tokens // 4) + rest, "each prediction settles three guesses and one token more"


@pytest.mark.parametrize("order", ORDERS)
def test_every_token_is_computed_once_and_guided_as_the_formula_says(order: Order) -> None:
    model, writer = MODELS[order, "advance"]
    frames, context, negative = 5, (writer.text("one two"),), (writer.text("five"),)
    known = torch.arange(frames) < 2
    request = AudioRequest(
        context=context,
        negative=negative,
        slot=target(writer, frames),
        seed=1,
        known=torch.from_numpy(codes_of(frames, 4)),
        known_mask=known,
    )
    asked: list[tuple[int, int]] = []
    seen: list[torch.Tensor] = []
    real = TokenSlots.predict

    class Greedy(type(build_sampler(Slot("next-token")))):  # type: ignore[misc]
        def sample(self, predict, start, **settings):  # type: ignore[no-untyped-def]
            def watched(values, timesteps, *, first=0):  # type: ignore[no-untyped-def]
                asked.append((first, values.shape[-1]))
                seen.append(predict(values, timesteps, first=first))
                return seen[-1]

            return super().sample(watched, start, **settings)

    made = sample_audio(model, [request], sampler=Greedy(temperature=0.0), guidance=GuidanceSpec(scale=3.0))
    assert [first for first, _ in asked] == [0, *np.cumsum([count for _, count in asked])[:-1].tolist()]
    if order != "levels":  # there the kept codes of the upper levels come later
        assert asked[0] == (0, {"flat": 2 * LEVELS, "delay": 2, "frames": 2}[order] + 1), "what is known is computed in one call"
    clip = target(writer, made.frame_counts[0]).with_values(made.values[0].numpy())
    with torch.no_grad():
        with_prompt, without = (whole(model, one, clip)[0] for one in (context, negative))
    guided = without + 3.0 * (with_prompt - without)
    found = torch.cat(seen, dim=-1).double()
    torch.testing.assert_close(found, guided[..., : found.shape[-1]], rtol=1e-5, atol=1e-5)
    assert TokenSlots.predict is real


def test_guidance_applies_to_a_clip_that_is_varied() -> None:
    """All tokens have timestep 1, however little of the clip changes."""
    model, writer = MODELS["frames", "advance"]
    request = AudioRequest(context=(writer.text("one"),), slot=target(writer, 8), seed=1, varied=torch.from_numpy(codes_of(8, 2)))

    def predicted(guidance: GuidanceSpec) -> torch.Tensor:
        seen: list[torch.Tensor] = []

        class Watching(NextTokenSampler):
            def sample(self, predict: Predict, start: Representation, **settings: Any) -> Tokens:
                def watched(values: torch.Tensor, timesteps: torch.Tensor, *, first: int = 0) -> torch.Tensor:
                    seen.append(predict(values, timesteps, first=first))
                    return seen[-1]

                return super().sample(watched, start, **settings)

        sample_audio(model, [request], sampler=Watching(temperature=0.0), guidance=guidance, begin=0.5)
        return seen[0]

    narrow, wide, off = (predicted(replace(GUIDED, scale=s, interval=(low, 1.0))) for s, low in ((6.0, 0.9), (6.0, 0.0), (1.0, 0.0)))
    assert torch.equal(narrow, wide) and not torch.equal(narrow, off)


def test_training_counts_the_codes_to_make_and_the_end_before_it_computes() -> None:
    for order in ORDERS:
        model, writer = MODELS[order, "advance"]
        samples = [
            Sample(key=str(i), segments=(writer.text("one"), target(writer, frames, seed=i, known=known)), seed=i, group=f"{i}/generate")
            for i, (frames, known) in enumerate(((6, 0), (3, 1), (5, 3)))
        ]
        batch = pack(samples)
        losses = model(batch)
        wanted = LEVELS * (6 + 2 + 2) + 3
        assert model.count_terms(batch)["autoregressive"] == float(losses["autoregressive"][1]) == wanted, order
        alone = [model(pack([sample]))["autoregressive"] for sample in samples]
        torch.testing.assert_close(losses["autoregressive"][0], sum(total for total, _ in alone), rtol=1e-5, atol=1e-5)
        parts = model(batch.broken_down())
        assert [float(parts[f"autoregressive/{i}/generate"][1]) for i in range(3)] == [float(count) for _, count in alone]
        sum(total for total, _ in model(PackedBatch.from_samples([])).values()).backward()
        assert all(parameter.grad is not None for parameter in model.made().connector.parameters())
        model.zero_grad()


def test_a_model_that_goes_from_beginning_to_end_refuses_gaps_steps_and_other_slots() -> None:
    model, writer = MODELS["delay", "advance"]
    spec = model_spec("delay")
    omni = SoundOmni(model.float(), Spec(model=spec), TOKENIZER, max_tokens=40)
    try:
        sound = Audio(clip(0, 160), RATE)
        for spans in ([(0.05, 0.16)], [(0.0, 0.05), (0.1, 0.16)]):
            with pytest.raises(SpecError, match="do not begin with the clip and go on without a gap, .* Keep one part that begins at 0 s"):
                omni.generate("one", seconds=0.2, known=Kept(sound, spans))
        with pytest.raises(SpecError, match=r"the number of steps is 5, but sampler 'next-token' takes a step for each token of a clip"):
            omni.generate("one", seconds=0.2, num_steps=5)
        with pytest.raises(Exception, match=r"2 s of audio and a prompt of 3 tokens take 133 tokens; .* Ask for at most 0.512 s"):
            omni.generate("one", seconds=2.0)
        made = omni.abilities().made[0]
        assert made.ends and made.num_steps is None
        kept = omni.generate(["one", "two"], seconds=0.3, known=Kept(sound, [(0.0, 0.1)]), seeds=[1, 2])
        assert all(16 * 5 <= one.waveform.shape[1] <= 300 for one in kept)
        lengths = {one.waveform.shape[1] for one in omni.generate(["one"] * 12, seconds=0.3)}
        assert len(lengths) > 1 and max(lengths) <= 300 and all(length % 16 == 0 or length == 300 for length in lengths)
    finally:
        model.double()
    cache = make_cache(model, [()], room=20)
    slots = AudioSlots(model, cache, [writer.target(64)], positions=[0])
    with pytest.raises(ValueError, match="first is 2, but the tokens of this clip see each other; expected 0"):
        slots.predict(torch.full((1, LEVELS, 3), HIDDEN), torch.ones(1, 3), first=2)


def test_a_draft_that_does_not_fit_is_refused_in_one_line() -> None:
    def omni(order: Order = "delay", *, tokenizer: TextTokenizer = TOKENIZER, **changed: Slot) -> SoundOmni:
        spec = model_spec(order)
        spec = replace(spec, modalities={name: replace(one, **changed) for name, one in spec.used.items()})  # type: ignore[arg-type]
        return SoundOmni(build_model(spec, vocab_size=tokenizer.vocab_size), Spec(model=spec), tokenizer)

    ahead = Slot("speculative", {"ahead": 2})
    model, other = omni(sampler=ahead), TextTokenizer.train(["other words"], vocab_size=300)
    for draft, message in (
        (omni("frames"), "the draft makes the codes in another order than the model. Train it with the model's objective"),
        (omni(codec=replace(CODEC, init_args={**CODEC.init_args, "companding": 0.3})), "the codec of the draft has the fingerprint "),
        (
            omni(tokenizer=other),
            f"the text vocabulary of the draft has {other.vocab_size} entries; expected the same {TOKENIZER.vocab_size}",
        ),
        (
            omni(connector=Slot("depth-codes", {"num_layers": 1, "num_heads": 2}), order="frames"),
            "the draft predicts each level from those below it, but all levels are guessed at once. Use the connector codes",
        ),
    ):
        with pytest.raises(SpecError, match=message):
            model.generate("one", seconds=0.1, draft=draft)
    with pytest.raises(SpecError, match="sampler is 'next-token', which does not take a draft. Leave out the draft, or use"):
        omni().generate("one", seconds=0.1, draft=model)
    check_draft(model, omni(), build_sampler(ahead), of="codes")
