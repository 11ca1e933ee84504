"""Augmentations in training: the same bytes on any number of ranks and after a run resumes, with the right lengths and conditions."""

import json
import math
from itertools import islice

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shard_files import RATE, clip, write_parquet, write_tar

from soundomni.core.assembly.modality import EncoderModality
from soundomni.core.errors import PluginError, SpecError
from soundomni.core.interfaces import Augmentation, Item
from soundomni.core.representation import TokenSpec
from soundomni.core.sequence import Clips, PackedBatch
from soundomni.core.spec.registry import build
from soundomni.core.spec.schema import DataSpec, DropoutSpec, MixtureEntry, SegmentTemplate, Slot
from soundomni.core.writing.tasks import build_tasks, length_texts
from soundomni.data.augmented import Augmenter
from soundomni.data.held_out_batches import plan_held_out, read_in_turn
from soundomni.data.loader import PackedLoader
from soundomni.data.mixture import Mixture, Source
from soundomni.data.prefetch import ClipReader
from soundomni.data.samples import Crop

ALL = {
    "flip": Slot("phase-flip"),
    "level": Slot("gain", {"decibels": [-12.0, 0.0]}),
    "swap": Slot("channel-swap"),
    "mono": Slot("mono", {"probability": 0.5}),
    "speed": Slot("speed", {"factors": [0.7, 1.4]}),
    "pitch": Slot("pitch", {"probability": 0.5}),
    "dull": Slot("resample", {"rates": [1000, 8000]}),
    "hide": Slot("spec-augment", {"longest": 0.5, "widest": 0.5}),
}


def made(**slots):
    return {name: build("augmentation", slot) for name, slot in slots.items()}


def mixture_of(dataset, *, held_out=0.0, max_seconds=0.06, tasks=None, **slots):
    use = {"tasks": tasks or {"generate": 1.0, "describe": 1.0}, "max_seconds": max_seconds, "held_out": held_out}
    return Mixture(sources={"main": Source(dataset=dataset, augmentations=made(**slots), **use)}, seed=5)


def steps_of(mixture, writer, count, **arguments):
    spec = DataSpec(datasets={}, tokens_per_batch=96, lookahead=8, workers=2)
    with PackedLoader(mixture=mixture, writer=writer, spec=spec, batches_per_step=2, **arguments) as loader:
        return list(islice(loader, count))


def content(batch):
    """Returns everything random about a batch."""
    parts = [batch.keys, batch.text_ids.tolist()]
    for name in ("latent", "features"):
        clips = batch.of(name)
        parts += [clips.seeds, clips.waveform.numpy().tobytes(), None if clips.masked is None else clips.masked.numpy().tobytes()]
    return parts


@pytest.fixture(scope="module")
def files():
    return [clip(i, samples=400 + 37 * i, channels=1 + i % 2) for i in range(12)]


@pytest.fixture(scope="module", params=["audio-folder", "manifest", "parquet", "webdataset", "audiocaps"])
def dataset(request, tmp_path_factory, files):
    """The same clips through each dataset that reads recordings."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "parquet":
        write_parquet(folder / "0.parquet", files)
        return build("dataset", Slot("parquet", {"path": str(folder), "index_dir": "memory"}))
    if request.param == "webdataset":
        pairs = (((f"{i:02}.wav", data), (f"{i:02}.txt", b"a sound")) for i, data in enumerate(files))
        write_tar(folder / "0.tar", [one for pair in pairs for one in pair])
        return build("dataset", Slot("webdataset", {"path": str(folder), "index_dir": "memory"}))
    for i, data in enumerate(files):
        (folder / f"v_{i}.wav").write_bytes(data)
        if request.param == "audio-folder":
            (folder / f"v_{i}.txt").write_text("a sound")
    if request.param == "audio-folder":
        return build("dataset", Slot("audio-folder", {"path": str(folder)}))
    rows = [f"{i},v,{i},a sound" for i in range(len(files))]
    (folder / "all.csv").write_text("\n".join(["audiocap_id,youtube_id,start_time,caption", *rows]) + "\n")
    arguments = {"csv": str(folder / "all.csv"), "audio_dir": str(folder)}
    if request.param == "manifest":
        arguments = {"path": str(folder / "all.csv")}
    return build("dataset", Slot(request.param, arguments))


def test_two_ranks_share_the_bytes_of_one_and_so_does_a_run_that_resumes(dataset, make_writer):
    whole = steps_of(mixture_of(dataset, **ALL), make_writer(), 5)
    plain = steps_of(mixture_of(dataset), make_writer(), 5)
    assert [content(step.batches[0]) for step in whole] != [content(step.batches[0]) for step in plain]
    assert any(batch.of("features").masked is not None for step in whole for batch in step.batches)
    ranks = [steps_of(mixture_of(dataset, **ALL), make_writer(), 5, rank=rank, world_size=2) for rank in range(2)]
    for i, step in enumerate(whole):
        assert [content(ranks[rank][i].batches[0]) for rank in range(2)] == [content(batch) for batch in step.batches]
    state = json.loads(json.dumps(whole[1].state))
    for expected, found in zip(whole[2:], steps_of(mixture_of(dataset, **ALL), make_writer(), 3, state=state), strict=True):
        assert [content(batch) for batch in found.batches] == [content(batch) for batch in expected.batches]


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stop=st.integers(0, 3), world_size=st.sampled_from([1, 2]), names=st.sets(st.sampled_from(sorted(ALL))))
def test_a_run_resumes_with_any_augmentations(ramps, make_writer, stop, world_size, names):
    mixture = mixture_of(ramps(lengths=range(300, 1500, 70)), **{name: ALL[name] for name in sorted(names)})
    whole = steps_of(mixture, make_writer(), 5)
    state = json.loads(json.dumps(whole[stop].state))
    parts = [steps_of(mixture, make_writer(), 4 - stop, state=state, rank=rank, world_size=world_size) for rank in range(world_size)]
    for i, expected in enumerate(whole[stop + 1 :]):
        found = [parts[g % world_size][i].batches[g // world_size] for g in range(2)]
        assert [content(batch) for batch in found] == [content(batch) for batch in expected.batches]


def test_an_augmentation_does_not_change_what_the_others_draw(ramps):
    data, crop = ramps(lengths=[100]), Crop(0, 100, 100, 8000)
    alone = Augmenter(made(level=ALL["level"])).read(data, 0, crop, 7)[0]
    after_flip = Augmenter(made(flip=Slot("phase-flip", {"probability": 1.0}), level=ALL["level"])).read(data, 0, crop, 7)[0]
    assert after_flip.tobytes() == (-alone).tobytes()
    named_otherwise = Augmenter(made(other=ALL["level"])).read(data, 0, crop, 7)[0]
    assert named_otherwise.tobytes() != alone.tobytes()


def test_names_of_sources_without_augmentations_keep_their_bytes(ramps, make_writer):
    data = ramps(lengths=range(300, 900, 50))
    kept = steps_of(mixture_of(data), make_writer(), 2)
    still = steps_of(mixture_of(data, none=Slot("phase-flip", {"probability": 0.0})), make_writer(), 2)
    assert [content(batch) for step in kept for batch in step.batches] == [content(batch) for step in still for batch in step.batches]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**40), total=st.integers(1, 3000), factor=st.floats(0.25, 4.0), share=st.floats(0.01, 1.0))
def test_a_crop_of_a_faster_clip_comes_from_the_right_place(ramps, seed, total, factor, share):
    data = ramps(lengths=[total])
    augmenter = Augmenter(made(speed=Slot("speed", {"factors": [factor, factor]})))
    lasting = augmenter.lasting(data.item(0), seed)
    assert lasting.num_samples == max(1, round(total / factor))
    count = max(1, int(share * lasting.num_samples))
    offset = lasting.num_samples - count
    waveform, rate = augmenter.read(data, 0, Crop(offset, count, lasting.num_samples, 8000), seed)
    assert waveform.shape == (1, count) and rate == 8000
    if count > 400 and total > 400:  # a ramp tells the place: sample i of the faster clip is sample i * factor of the file
        middle = count // 2
        assert waveform[0, middle] == pytest.approx((offset + middle) * factor / (total - 1), abs=8 * max(1.0, factor) / total)


def test_held_out_clips_are_never_changed(ramps, make_writer):
    data = ramps(lengths=range(300, 900, 30))
    spec = DataSpec(datasets={}, tokens_per_batch=96)
    found = []
    for slots in ({}, ALL):
        mixture, writer = mixture_of(data, held_out=0.4, max_seconds=None, **slots), make_writer()
        reader = ClipReader(mixture=mixture, writer=writer, workers=0)
        found.append([content(batch) for batch in read_in_turn(plan_held_out(mixture, writer, spec, most=-1), reader)])
    assert found[0] and found[0] == found[1]


def test_what_is_said_about_the_length_is_the_length_after_the_change(tokenizer, make_writer, ramps):
    tasks = build_tasks({"timed": [SegmentTemplate(text="{seconds} {seconds_start} {seconds_total}"), SegmentTemplate(audio="target")]})
    use = {"tasks": {"timed": 1.0}, "augmentations": made(speed=Slot("speed", {"factors": [2.0, 2.0]}))}
    mixture = Mixture(sources={"main": Source(dataset=ramps(lengths=[24000]), **use)}, tasks=tasks)
    writer = make_writer(dropout=DropoutSpec(text=0.0))
    with PackedLoader(mixture=mixture, writer=writer, spec=DataSpec(datasets={}, tokens_per_batch=400, workers=0)) as loader:
        batch = next(loader).batches[0]
    assert "1.5 0 2" in tokenizer.decode(batch.text_ids.tolist()) and batch.of("latent").num_samples[0] == 12000


@settings(max_examples=100)
@given(total=st.integers(1, 10_000_000), rate=st.sampled_from([8000, 44100]), share=st.floats(0, 1), place=st.floats(0, 1))
def test_start_is_rounded_down_and_total_up_in_whole_seconds(total, rate, share, place):
    count = max(1, int(share * total))
    offset = int(place * (total - count))
    texts = length_texts(count / rate, start=offset / rate, total=total / rate)
    assert int(texts["seconds_start"]) == offset // rate and int(texts["seconds_total"]) == -(-total // rate)
    assert texts["seconds"] == f"{count / rate:g}"
    alone = length_texts(count / rate)
    assert (alone["seconds_start"], alone["seconds_total"]) == ("0", str(math.ceil(count / rate)))


def test_a_part_of_a_long_recording_is_told_where_it_begins(make_writer, tokenizer):
    tasks = build_tasks({"timed": [SegmentTemplate(text="{seconds_start}/{seconds_total}"), SegmentTemplate(audio="target")]})
    item, writer = Item(key="x", num_samples=20 * 8000 + 1, sample_rate=8000, captions=("rain",)), make_writer(dropout=DropoutSpec(text=0))
    starts = set()
    for seed in range(50):
        plan = writer.plan(item, tasks["timed"], seed=seed, key="x", max_seconds=2.0)
        start, total = tokenizer.decode(plan.sample.segments[0].token_ids.tolist()).split("/")
        assert int(start) == plan.crop.offset // 8000 and int(total) == 21
        starts.add(int(start))
    assert len(starts) > 10


def test_masked_features_are_zero_and_others_stay(make_writer, ramps):
    encoder = build("encoder", Slot("log-mel", {"sample_rate": 4000, "n_fft": 64, "hop_length": 50, "num_mels": 8, "feature_dim": 8}))
    connector = build("connector", Slot("identity"), tokens=TokenSpec(8, 8), hidden_dim=8, generates=False)
    modality = EncoderModality(name="features", connector=connector, encoder=encoder)
    mixture = mixture_of(ramps(lengths=[4000, 2600, 3200]), max_seconds=None, tasks={"describe": 1.0}, hide=ALL["hide"])
    clips = steps_of(mixture, make_writer(), 1)[0].batches[0].of("features")
    tokens = clips.num_tokens.tolist()
    assert clips.masked is not None and 0 < clips.masked.float().mean() < 1
    with torch.no_grad():
        found, plain = (modality.enter(one).hidden for one in (clips, Clips(**{**vars(clips), "masked": None})))
    masked = torch.cat([row[:count] for row, count in zip(clips.masked, tokens, strict=True)])
    assert masked.any() and torch.equal(found, plain.masked_fill(masked, 0.0)) and (plain[masked] != 0).any()


def test_clips_to_make_and_texts_have_no_masks(make_writer, ramps):
    augmenter = Augmenter(made(hide=Slot("spec-augment", {"longest": 1.0, "widest": 1.0})))
    writer, tasks = make_writer(), build_tasks()
    data = ramps(lengths=[800])
    for task, heard in (("generate", False), ("describe", True)):
        plan = writer.plan(data.item(0), tasks[task], seed=3, key="x")
        sample = augmenter.masked(writer.fill(plan, *data.load(0)), writer.feature_dims)
        assert [segment.masked is not None for segment in sample.segments] == ([True, False] if heard else [False] * len(sample.segments))
        assert PackedBatch.from_samples([sample]).of("latent").masked is None


class Shorter(Augmentation):
    def change(self, waveform, sample_rate, draws):
        return waveform[:, : waveform.shape[1] // 2]


class Doubles(Augmentation):
    def change(self, waveform, sample_rate, draws):
        return waveform.astype(np.float64)


class NotFinite(Augmentation):
    def change(self, waveform, sample_rate, draws):
        return waveform * np.float32(np.nan)


class Flat(Augmentation):
    def mask(self, num_tokens, feature_dim, draws):
        return np.zeros(num_tokens, dtype=np.bool_)


class Still(Augmentation):
    def tempo(self, draws):
        return 0.0


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        (Shorter(), r"augmentation 'mine' returned float32 \[1, 400\]; expected float32 \[1, 800\]"),
        (Doubles(), r"augmentation 'mine' returned float64 \[1, 800\]; expected float32 \[1, 800\]"),
        (NotFinite(), "augmentation 'mine' returned samples that are not finite"),
        (Flat(), r"augmentation 'mine' returned a mask of bool \[\d+\]; expected bool \[\d+, 8\]"),
        (Still(), "augmentation 'mine' has the tempo 0.0; expected 0.1 to 10"),
    ],
)
def test_a_faulty_augmentation_is_named_in_one_line(ramps, make_writer, augmentation, message):
    data = ramps(lengths=[800] * 3)
    mixture = Mixture(sources={"main": Source(dataset=data, tasks={"describe": 1.0}, augmentations={"mine": augmentation})})
    with pytest.raises(PluginError, match=message) as caught:
        steps_of(mixture, make_writer(), 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("factors", [(0.25, 0.3), (3.5, 4.0), (0.25, 4.0)])
def test_several_tempos_are_bounded_as_one_is(factors):
    slot = Slot("speed", {"factors": list(factors)})
    Augmenter(made(one=slot))
    with pytest.raises(SpecError, match=r"augmentations 'one' and 'two' together have the tempo [\d.]+; expected 0.1 to 10. Narrow"):
        Augmenter(made(one=slot, two=slot))
    Augmenter(made(one=slot, two=Slot("speed", {"factors": [1.0, 1.0]})))


def test_a_product_of_tempos_that_is_rarely_too_large_is_refused_when_it_is_drawn(ramps):
    class Rarely(Augmentation):
        def tempo(self, draws):
            return 10.0 if draws.random() < 1e-3 else 1.0

    augmenter = Augmenter({"rarely": Rarely(), "speed": build("augmentation", Slot("speed", {"factors": [1.1, 1.1]}))})
    with pytest.raises(SpecError, match="together have the tempo 11; expected 0.1 to 10"):
        for seed in range(100_000):
            augmenter.lasting(Item(key="a", num_samples=800, sample_rate=RATE), seed)


def entry_of(folder, **changes):
    return DataSpec(datasets={"mine": MixtureEntry(source=Slot("audio-folder", {"path": str(folder), "captions": False}), **changes)})


def test_specs_name_the_key_of_a_bad_value_and_refuse_encoded_clips(tmp_path, ramps):
    soundfile.write(tmp_path / "a.wav", np.zeros(800), RATE)
    with pytest.raises(SpecError, match=r"^data.datasets.mine.augmentations.flip: phase-flip: probability is 2; expected"):
        Mixture.open(entry_of(tmp_path, augmentations={"flip": Slot("phase-flip", {"probability": 2.0})}), build)
    opened = Mixture.open(entry_of(tmp_path, augmentations={"flip": Slot("phase-flip"), "gone": None}), build)
    assert list(opened.sources["mine"].augmentations) == ["flip"]

    class Encoded(ramps):
        encoding = "any"

    def make(kind, slot):
        return Encoded(lengths=[800]) if kind == "dataset" else build(kind, slot)

    reason = "data.datasets.mine.augmentations has flip; expected none, because the clips of this dataset are encoded"
    with pytest.raises(SpecError, match=reason):
        Mixture.open(entry_of(tmp_path, augmentations={"flip": Slot("phase-flip")}), make)
