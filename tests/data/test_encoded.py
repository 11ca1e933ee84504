"""Folders of encoded clips: what is written is read back, parts are parts, and damaged or hostile files are named."""

import json
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from soundomni.core.errors import DataError, SpecError, UnreadableAudioError
from soundomni.core.interfaces import Codec, Skip
from soundomni.core.pretrained.fingerprint import codec_fingerprint, complete_slot
from soundomni.core.representation import Representation, RepresentationSpec
from soundomni.core.spec.registry import build
from soundomni.core.spec.schema import Slot
from soundomni.data.encoded.dataset import EncodedClips
from soundomni.data.encoded.encoder import ClipEncoder
from soundomni.data.encoded.folder_writer import measured_by, plan_parts
from soundomni.data.encoded.pair_writer import PairWriter
from soundomni.data.encoded.shard_writer import ShardWriter
from soundomni.data.samples import Crop, encoded_part

MDCT = Slot("mdct", {"sample_rate": 8000, "frame_size": 32})
CODES = Slot(
    "harmonic-codes",
    {"sample_rate": 8000, "frame_size": 128, "num_harmonics": 2, "pitch_range": [125.0, 1000.0], "num_codebooks": 2, "codebook_size": 8},
)
LENGTHS = (700, 333, 640, 90, 700, 1200)
ONE_SHARD, SOME_SHARDS = 1_000_000, 6000


def codec_of(slot: Slot) -> Codec:
    codec: Codec = build("codec", slot)
    if not codec.is_fitted:
        codec.fit([(0.3 * torch.randn(2, 1, 9000, generator=torch.Generator().manual_seed(0)), torch.tensor([9000, 4000]))])
    return codec


def writer_of(folder: Path, dataset, slot=MDCT, *, shard_bytes=SOME_SHARDS, pairs=False, **settings):
    codec = codec_of(slot)
    encoder = ClipEncoder(dataset=dataset, codec=codec, batch_size=4, **settings)
    common = {
        "folder": folder,
        "encoder": encoder,
        "num_items": len(dataset),
        "codec": complete_slot(slot),
        "fingerprint": codec_fingerprint(slot, codec),
    }
    folder.mkdir(exist_ok=True)
    return PairWriter(**common) if pairs else ShardWriter(**common, measured=measured_by(codec), shard_bytes=shard_bytes)


def write(writer, *, resume=False, parts=None) -> list:
    told: list = []
    writer.begin(resume=resume)
    for number in writer.missing() if parts is None else parts:
        writer.write(number, told.append)
    if parts is None:
        writer.finish()
    return told


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture
def folder(tmp_path, ramps):
    """A complete folder with several shards, one clip unreadable."""
    write(writer_of(tmp_path / "clips", ramps(lengths=LENGTHS, broken=[3], questions=(("which?", "this"),))))
    return tmp_path / "clips"


def edit_line(folder: Path, number=0, **changes):
    file = folder / "clips-00000.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[number] |= changes
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("slot", [MDCT, CODES], ids=lambda slot: slot.class_path)
@pytest.mark.parametrize("rate", [8000, 11025])
def test_clips_come_back_as_the_codec_encodes_each(tmp_path, ramps, slot, rate):
    dataset, codec = ramps(lengths=LENGTHS, rate=rate), codec_of(slot)
    write(writer_of(tmp_path / "clips", dataset, slot))
    found = EncodedClips(path=str(tmp_path / "clips"))
    assert len(found) == len(LENGTHS) and (len(list((tmp_path / "clips").glob("*.jsonl"))) > 1) == (slot == MDCT)
    assert found.encoding.spec == codec.spec and found.encoding.fingerprint == codec_fingerprint(slot, codec)
    for index in range(len(found)):
        assert found.item(index) == dataset.item(index)
        waveform = ClipEncoder(dataset=dataset, codec=codec)._read(index)[1]
        alone = codec.encode(torch.from_numpy(waveform)[None], torch.tensor([waveform.shape[1]])).values[0]
        values = found.load_encoded(index)
        assert values.dtype == (np.float32 if slot == MDCT else np.int64)
        assert np.array_equal(values, alone.numpy())


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.integers(0, 40), count=st.integers(1, 40), index=st.integers(0, 4))
def test_a_part_is_that_part_or_refused(folder, first, count, index):
    found = EncodedClips(path=str(folder))
    whole = found.load_encoded(index)
    if first + count > whole.shape[1]:
        with pytest.raises(UnreadableAudioError, match=f"has {whole.shape[1]} frames"):
            found.load_encoded(index, first=first, num_frames=count)
    else:
        assert np.array_equal(found.load_encoded(index, first=first, num_frames=count), whole[:, first : first + count])


@given(sizes=st.lists(st.integers(1, 50)), limit=st.integers(1, 100))
def test_parts_cover_all_clips_in_order_and_stay_within_the_limit(sizes, limit):
    parts = plan_parts(sizes, limit)
    assert [index for part in parts for index in part] == list(range(len(sizes)))
    for part in parts:
        assert len(part) == 1 or (len(part) > 0 and sum(sizes[i] for i in part) <= limit)
    for part, after in pairwise(parts):
        assert sum(sizes[i] for i in part) + sizes[after[0]] > limit


def test_a_clip_that_cannot_be_read_is_told_and_stays_known(folder):
    found = EncodedClips(path=str(folder))
    assert [found.item(i).key for i in range(len(found))] == ["ramp-0", "ramp-1", "ramp-2", "ramp-4", "ramp-5"]
    assert found.skipped == (Skip("ramp-3", "cannot read 'ramp-3': it was broken for this test"),)
    with pytest.raises(UnreadableAudioError, match="'ramp-0': it is encoded, and has no audio"):
        found.load(0)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("after", [1, 3, 5])
def test_an_interrupted_encoding_goes_on_to_the_same_files(tmp_path, ramps, pairs, after):
    dataset = ramps(lengths=LENGTHS, broken=[1])
    write(writer_of(tmp_path / "whole", dataset, pairs=pairs))
    first, second = (writer_of(tmp_path / "halves", dataset, pairs=pairs) for _ in range(2))
    told: list = []

    def stop(clip):
        told.append(clip)
        if len(told) == after:
            raise KeyboardInterrupt

    first.begin(resume=False)
    with pytest.raises(KeyboardInterrupt):
        for number in first.missing():
            first.write(number, stop)
    if not pairs:
        with pytest.raises(DataError, match="all encoded"):
            EncodedClips(path=str(tmp_path / "halves"))
    with pytest.raises(DataError, match=r"is not empty. Give a new or empty directory, or --resume to continue"):
        second.begin(resume=False)
    write(second, resume=True)
    assert contents(tmp_path / "halves") == contents(tmp_path / "whole")


def test_two_writers_that_share_the_parts_write_the_same_files(tmp_path, ramps):
    dataset = ramps(lengths=LENGTHS)
    write(writer_of(tmp_path / "one", dataset))
    first, second = (writer_of(tmp_path / "two", dataset) for _ in range(2))
    assert len(first.parts) > 2
    write(first, parts=range(1, len(first.parts), 2))
    second.write(0, [].append)
    write(second, resume=True)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"slot": Slot("mdct", {"sample_rate": 8000, "frame_size": 32, "companding": 0.5})}, "the codec"),
        ({"lengths": (1, 2)}, "the clips"),
        ({"dtype": "float16"}, "--dtype"),
        ({"max_seconds": 0.01}, "the clips"),
        ({"max_seconds": 10.0}, "--max-seconds"),
        ({"shard_bytes": 7000}, "--shard-mb"),
    ],
)
def test_another_encoding_is_not_continued(tmp_path, ramps, changes, what):
    write(writer_of(tmp_path / "clips", ramps(lengths=LENGTHS)), parts=[0])
    dataset = ramps(lengths=changes.pop("lengths", LENGTHS))
    with pytest.raises(DataError, match=f"cannot be continued: {what} differed when it began"):
        writer_of(tmp_path / "clips", dataset, **changes).begin(resume=True)


def test_float16_is_near_and_a_cut_encodes_the_beginning(tmp_path, ramps):
    dataset = ramps(lengths=LENGTHS)
    write(writer_of(tmp_path / "exact", dataset, max_seconds=0.05))
    write(writer_of(tmp_path / "half", dataset, max_seconds=0.05, dtype="float16"))
    exact, half = (EncodedClips(path=str(tmp_path / name)) for name in ("exact", "half"))
    assert [exact.item(i).num_samples for i in range(6)] == [400, 333, 400, 90, 400, 400]
    begun = codec_of(MDCT).encode(torch.from_numpy(dataset.load(0)[0])[None, :, :400], torch.tensor([400])).values[0]
    assert np.array_equal(exact.load_encoded(0), begun.numpy())
    np.testing.assert_allclose(half.load_encoded(0), exact.load_encoded(0), rtol=1e-3, atol=1e-4)
    assert half.load_encoded(0).dtype == np.float32 and not np.array_equal(half.load_encoded(0), exact.load_encoded(0))


class Loud(Codec):
    """Latents of a size that only float32 holds, or of none."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    @property
    def spec(self):
        return RepresentationSpec(kind="continuous", sample_rate=8000, channels=1, downsampling_ratio=100, latent_dim=1)

    def encode(self, waveform, lengths, generators=None):
        frames = self.spec.frame_lengths(lengths)
        return Representation(torch.full((len(lengths), 1, int(frames.max())), self.value), frames, self.spec)

    def decode(self, representation):
        raise NotImplementedError


def test_values_that_cannot_be_stored_are_refused(ramps):
    dataset = ramps(lengths=(700,))
    with pytest.raises(DataError, match="'ramp-0' has latents up to 1e\\+05, too large for float16. Use --dtype float32"):
        list(ClipEncoder(dataset=dataset, codec=Loud(1e5), dtype="float16").encode([0]))
    with pytest.raises(DataError, match="latents that are not finite for 'ramp-0'"):
        list(ClipEncoder(dataset=dataset, codec=Loud(float("nan"))).encode([0]))


def test_encoded_clips_and_random_codecs_are_refused(folder, ramps):
    with pytest.raises(SpecError, match="the clips are encoded already, by mdct"):
        ClipEncoder(dataset=EncodedClips(path=str(folder)), codec=codec_of(MDCT))
    small = {"sample_rate": 8000, "channels": 1, "base_channels": 2, "channel_multiples": [1], "strides": [4], "latent_dim": 2}
    for is_random in (False, True):
        codec = build("codec", Slot("oobleck", {**small, "sample_latents": is_random}))
        if not is_random:
            ClipEncoder(dataset=ramps(lengths=(700,)), codec=codec)
            continue
        with pytest.raises(SpecError, match="draws its encoding at random, such as with sample_latents"):
            ClipEncoder(dataset=ramps(lengths=(700,)), codec=codec)


def test_a_fingerprint_changes_with_plugin_arguments_and_every_weight_but_not_with_the_place_of_the_weights(tmp_path):
    small = {"sample_rate": 8000, "channels": 1, "base_channels": 2, "channel_multiples": [1], "strides": [4], "latent_dim": 2}
    torch.manual_seed(0)
    slot = Slot("oobleck", small)
    codec = build("codec", slot)
    save_file({name: tensor.numpy() for name, tensor in codec.state_dict().items()}, tmp_path / "w.safetensors")
    placed = Slot("oobleck", {**small, "weights": str(tmp_path / "w.safetensors")})
    before = codec_fingerprint(slot, codec)
    assert codec_fingerprint(placed, build("codec", placed)) == before
    assert codec_fingerprint(Slot("oobleck", {**small, "kl_weight": 0.5}), codec) != before
    assert codec_fingerprint(MDCT, codec_of(MDCT)) != codec_fingerprint(Slot("mdct-shape-gain", MDCT.init_args), codec_of(MDCT))
    seen = {before}
    for parameter in codec.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1.0
        seen.add(codec_fingerprint(slot, codec))
    assert len(seen) == 1 + len(list(codec.parameters()))


@settings(max_examples=200, deadline=None)
@given(
    total=st.integers(1, 5000),
    taken=st.integers(1, 5000),
    offset=st.integers(0, 5000),
    rate=st.sampled_from([8000, 11025, 3000]),
    extra=st.integers(0, 2),
)
def test_a_crop_of_frames_lies_in_the_clip_and_begins_where_the_crop_does(total, taken, offset, rate, extra):
    taken = min(total, taken)
    offset = min(offset, total - taken)
    spec = RepresentationSpec(kind="continuous", sample_rate=8000, channels=1, downsampling_ratio=64, latent_dim=2, extra_frames=extra)
    first, count = encoded_part(Crop(offset, taken, total, rate), spec)
    frames = spec.num_frames(-(-total * 8000 // rate))
    assert first >= 0 and first + count <= frames and count == spec.num_frames(-(-taken * 8000 // rate))
    assert abs(first * 64 / 8000 - offset / rate) < 64 / 8000 + 1e-9 or first == frames - count
    if taken == total:
        assert (first, count) == (0, frames)


def test_a_crop_of_latents_with_an_overlap_frame_decodes_to_that_part_of_the_clip():
    codec = codec_of(MDCT)
    waveform = 0.3 * torch.randn(1, 1, 960, generator=torch.Generator().manual_seed(0))
    whole = codec.encode(waveform, torch.tensor([960])).values
    first, count = encoded_part(Crop(320, 320, 960, 8000), codec.spec)
    part = codec.decode(Representation(whole[:, :, first : first + count], torch.tensor([count]), codec.spec))
    assert (first, count) == (10, 11)
    torch.testing.assert_close(part[..., :320], waveform[..., 320:640], rtol=0, atol=1e-5)


# Damaged and hostile folders


@pytest.mark.parametrize("kept", [0, 7, 60, -4])
def test_a_truncated_shard_is_named(folder, kept):
    file = folder / "clips-00001.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"cannot read .*clips-00001.safetensors.*damaged or incomplete.*Encode the clips again"):
        EncodedClips(path=str(folder))


@pytest.mark.parametrize("name", ["clips-00001.safetensors", "clips-00001.jsonl"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"cannot read .*{name}.*[Nn]o such file"):
        EncodedClips(path=str(folder))


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        ({"values": np.zeros((80, 31), np.float32)}, r"F32 \[80, 31\]"),
        ({"values": np.zeros((80, 32), np.float16)}, r"F16 \[80, 32\]"),
        ({"values": np.zeros(80, np.float32)}, r"F32 \[80\]"),
        ({"other": np.zeros((80, 32), np.float32)}, r"\['other'\]"),
    ],
)
def test_a_shard_of_another_shape_is_refused(folder, tensors, found):
    save_file(tensors, folder / "clips-00000.safetensors")
    with pytest.raises(DataError, match=rf"holds .*{found}; expected one tensor 'values', F32 \[N, 32\]"):
        EncodedClips(path=str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first": -1}, r"its frames -1 to 22 lie outside of the \d+"),
        ({"first": 10**9}, "lie outside of"),
        ({"first": True}, "'first' is true or false; expected a number"),
        ({"frames": 24}, "it has 24 frames; expected 23 for its 700 samples"),
        ({"num_samples": 10**30}, "it has 23 frames; expected"),
        ({"num_samples": 0}, "expected a key, and at least 1"),
        ({"sample_rate": "8000"}, "'sample_rate' is text; expected a number"),
        ({"key": ""}, "expected a key"),
        ({"key": None}, "'key' is null; expected text"),
        ({"captions": [1]}, "'captions' has something other than text"),
        ({"questions": [["a"]]}, r"'questions' is not a list of \[question, answer\]"),
        ({"attributes": []}, "'attributes' is a list; expected an object"),
        ({"skipped": 1}, "expected texts for 'key' and 'skipped'"),
    ],
)
def test_a_line_that_does_not_fit_is_refused_with_its_row(folder, changes, message):
    edit_line(folder, **changes)
    with pytest.raises(DataError, match=rf"clips-00000.jsonl', row 1: .*{message}"):
        EncodedClips(path=str(folder))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"key": ' + "9" * 10_000 + "}", '{"key": "a", "key": "b"}', "null", "{", "\udcff", '{"key": 1e999}']
)
def test_hostile_json_is_one_line(folder, text):
    file = folder / "clips-00000.jsonl"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"clips-00000.jsonl") as caught:
        EncodedClips(path=str(folder))
    assert len(str(caught.value)) < 1000


def test_a_key_twice_is_refused(folder):
    edit_line(folder, 1, key="ramp-0")
    with pytest.raises(DataError, match="have the key 'ramp-0' twice"):
        EncodedClips(path=str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has the format 2; expected 1"),
        ({"complete": False}, "not all encoded. Run `soundomni encode` again with --resume"),
        ({"num_shards": -1}, "announces -1 shards"),
        ({"num_shards": 10**7}, "announces 10000000 shards"),
        ({"dtype": "float8"}, "dtype is .*float8.*expected"),
        ({"fingerprint": None}, "header.fingerprint"),
        ({"surprise": 1}, "surprise"),
        ({"spec": {"kind": "continuous", "sample_rate": 0, "channels": 1, "downsampling_ratio": 32, "latent_dim": 32}}, "sample_rate 0"),
        ({"spec": {"kind": "codes", "sample_rate": 1, "channels": 1, "downsampling_ratio": 32}}, "0 codebooks"),
        ({"spec": {"kind": "continuous", "sample_rate": 1, "channels": 1, "downsampling_ratio": 32}}, "latent_dim None"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(folder, changes, message):
    file = folder / "encoded.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(DataError, match=message):
        EncodedClips(path=str(folder))


def test_values_that_no_codec_gives_make_a_clip_unreadable(tmp_path, ramps):
    write(writer_of(tmp_path / "latents", ramps(lengths=LENGTHS), shard_bytes=ONE_SHARD))
    write(writer_of(tmp_path / "codes", ramps(lengths=LENGTHS), CODES, shard_bytes=ONE_SHARD))
    for name, wrong, message in (
        ("latents", np.nan, "not finite"),
        ("codes", 8, r"not in the codebooks of \[8, 8\]"),
        ("codes", -1, "not in the"),
    ):
        found = EncodedClips(path=str(tmp_path / name))
        rows = np.concatenate([found._layout.read(i, 0, found.num_frames(i)) for i in range(len(found))])
        rows[0, 0] = wrong
        save_file({"values": rows}, tmp_path / name / "clips-00000.safetensors")
        with pytest.raises(UnreadableAudioError, match=f"cannot read 'ramp-0': it has .*{message}"):
            found.load_encoded(0)
        found.load_encoded(1)


@pytest.mark.parametrize("kept", [None, 300])
def test_a_shard_that_is_gone_or_cut_meanwhile_makes_its_clips_unreadable(folder, kept):
    found = EncodedClips(path=str(folder))
    file = folder / "clips-00000.safetensors"
    start = file.read_bytes()[:kept]
    file.unlink()
    if kept is not None:
        file.write_bytes(start)
    with pytest.raises(UnreadableAudioError, match="cannot read 'ramp-0' in .*clips-00000.safetensors"):
        found.load_encoded(0)


def test_no_folder_and_an_empty_one_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"there is no folder .*nowhere.*expected one that `soundomni encode` wrote"):
        EncodedClips(path=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="has no encoded clip"):
        EncodedClips(path=str(tmp_path))


# Stable Audio's layout


@pytest.mark.parametrize("max_seconds", [None, 0.1])
def test_pairs_come_back_without_their_padding(tmp_path, ramps, max_seconds):
    dataset = ramps(lengths=LENGTHS)
    write(writer_of(tmp_path / "own", dataset, max_seconds=max_seconds))
    write(writer_of(tmp_path / "pairs", dataset, max_seconds=max_seconds, pairs=True))
    own, pairs = (EncodedClips(path=str(tmp_path / name)) for name in ("own", "pairs"))
    assert own.encoding.fingerprint == pairs.encoding.fingerprint and len(pairs) == len(own)
    shapes = {np.load(file).shape for file in (tmp_path / "pairs").rglob("*.npy")}
    assert shapes == {(32, 26)} if max_seconds else len(shapes) > 1
    for index in range(len(own)):
        assert np.array_equal(own.load_encoded(index), pairs.load_encoded(index))
        assert pairs.item(index).captions == own.item(index).captions and pairs.item(index).attributes["relpath"] == own.item(index).key
    notes = json.loads((tmp_path / "pairs" / "00000" / "00000003.json").read_text())
    assert notes["prompt"] == "ramp 3" and notes["seconds_start"] == 0 and notes["seconds_total"] == 90 / 8000
    assert notes["padding_mask"] == [1] * 4 + [0] * (22 if max_seconds else 0)


def test_codes_have_no_pairs(tmp_path, ramps):
    with pytest.raises(SpecError, match="codec 'harmonic-codes' makes codes; the layout stable-audio is for latents"):
        writer_of(tmp_path / "pairs", ramps(lengths=LENGTHS), CODES, pairs=True)


def foreign(folder: Path, name: str, array: object, text: str | None = '{"prompt": "x"}') -> None:
    folder.mkdir(exist_ok=True)
    np.save(folder / f"{name}.npy", array, allow_pickle=True)  # type: ignore[arg-type]
    if text is not None:
        (folder / f"{name}.json").write_text(text)


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_what_another_program_wrote_is_read_and_damaged_pairs_are_left_out(tmp_path):
    folder = tmp_path / "pairs"
    latents = np.random.default_rng(0).standard_normal((4, 10)).astype(np.float64)
    foreign(folder, "good", latents, json.dumps({"prompt": ["x"][0], "seconds_total": 0.9, "padding_mask": [1] * 7 + [0] * 3}))
    foreign(folder, "unmasked", latents.astype(np.float16))
    foreign(folder, "pickled", np.array([Harmful(tmp_path / "harm")], dtype=object))
    (folder / "raw.npy").write_bytes(pickle.dumps(Harmful(tmp_path / "harm")))
    foreign(folder, "flat", latents[0])
    foreign(folder, "words", np.array([["a"]]))
    foreign(folder, "alone", latents, None)
    foreign(folder, "silent", latents, '{"prompt": "x", "padding_mask": [0, 0]}')
    foreign(folder, "masked", latents, '{"prompt": "x", "padding_mask": 3}')
    (folder / "cut.npy").write_bytes((folder / "good.npy").read_bytes()[:-40])
    (folder / "cut.json").write_text("{}")
    (folder / "long.npy").write_bytes(b"\x93NUMPY\x02\x00" + (10**9).to_bytes(4, "little") + b"{")
    found = EncodedClips(path=str(folder), sample_rate=8000, downsampling_ratio=100, channels=1)
    assert [found.item(i).key for i in range(len(found))] == ["good", "unmasked"]
    assert found.item(0).num_samples == 700 and found.item(0).captions == ("x",) and found.encoding.fingerprint is None
    assert np.array_equal(found.load_encoded(0), latents[:, :7].astype(np.float32))
    assert found.load_encoded(1).shape == (4, 10) and "padding_mask" not in found.item(0).attributes
    assert {skip.key for skip in found.skipped} == {"pickled", "raw", "flat", "words", "alone", "silent", "masked", "cut", "long"}
    assert all("\n" not in skip.reason for skip in found.skipped) and not (tmp_path / "harm").exists()


def test_latents_of_two_codecs_in_a_folder_are_refused(tmp_path):
    foreign(tmp_path / "pairs", "a", np.zeros((4, 3), np.float32))
    foreign(tmp_path / "pairs", "b", np.zeros((5, 3), np.float32))
    with pytest.raises(DataError, match="different dimensions: .*'a' has 4"):
        EncodedClips(path=str(tmp_path / "pairs"))
