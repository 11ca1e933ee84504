"""What people pass to the class SoundOmni: taken where it can be meant in only one way, refused in one line otherwise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from soundomni import Audio, Kept, SoundOmni
from soundomni.core.errors import DataError, SoundOmniError, SpecError

CLIP = Audio(0.1 * np.sin(np.arange(1600, dtype=np.float32) / 3)[None], 8000)
QUICK = {"seconds": 0.1, "num_steps": 1}


@pytest.fixture(scope="module")
def nano() -> SoundOmni:
    return SoundOmni.from_pretrained("nano")


def same(made: list[Audio], expected: list[Audio]) -> bool:
    pairs = list(zip(made, expected, strict=True))
    return all(np.allclose(one.waveform, other.waveform, atol=1e-5) for one, other in pairs)


@pytest.mark.parametrize(
    ("prompts", "changes"),
    [
        ("a", {}),
        (("a", "b"), {"seeds": np.array([0, 1])}),
        (np.array(["a", "b"]), {"seeds": torch.tensor([0, 1])}),
        ((text for text in ("a", "b")), {"seeds": (i for i in range(2))}),
        (["a", "b"], {"seeds": np.int64(0), "num_steps": np.int32(1), "batch_size": np.uint8(2)}),
        (["a", "b"], {"seeds": np.array(0), "seconds": np.float32(0.1)}),
        (["a", "b"], {"seeds": range(2), "guidance_scale": np.float64(1.5)}),
        (["a"], {"seeds": [np.uint64(0)], "seconds": np.array(0.1)}),
        (["a", "b"], {"guidance_scale": torch.tensor(1.5)}),
    ],
)
def test_what_can_be_meant_in_one_way_is_taken(nano: SoundOmni, prompts: Any, changes: dict[str, Any]) -> None:
    made = nano.generate(prompts, **{**QUICK, **changes})
    scale = {"guidance_scale": 1.5} if "guidance_scale" in changes else {}
    assert same(made, nano.generate(["a", "b"][: len(made)], **QUICK, seeds=list(range(len(made))), **scale))


def test_one_clip_serves_every_prompt(nano: SoundOmni) -> None:
    both = nano.generate(["a", "b"], **QUICK, vary=[CLIP, CLIP], strength=0.75)
    assert same(nano.generate(("a", "b"), **QUICK, vary=CLIP, strength=np.float32(0.75)), both)
    kept = nano.generate(["a", "b"], **QUICK, known=[Kept(CLIP, [(0.0, 0.05)])] * 2)
    assert same(nano.generate(["a", "b"], **QUICK, known=Kept(CLIP, (np.float64(0), 0.05))), kept)
    assert same(nano.generate(["a", "b"], **QUICK, known=(Kept(CLIP, np.array([[0.0, 0.05]])) for _ in range(2))), kept)


def test_one_clip_is_heard_as_a_list_of_one(nano: SoundOmni) -> None:
    text = nano.describe([CLIP], max_new_tokens=3)
    assert nano.describe(CLIP, max_new_tokens=np.int64(3)) == text == nano.describe((clip for clip in [CLIP]), max_new_tokens=3)
    assert nano.reconstruct(CLIP, chunk_seconds=np.float32(0.1)).waveform.shape == (1, 1600)


def test_overrides_and_devices_need_not_be_text() -> None:
    model = SoundOmni.from_pretrained("nano", overrides={"sampler.num_steps": np.int64(3), "guidance.scale": 2}, device=torch.device("cpu"))
    assert model.spec.model.made.sampler.init_args["num_steps"] == 3 and model.spec.model.made.guidance.scale == 2.0
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert SoundOmni.from_pretrained("nano", device="auto").model.device.type == expected


@pytest.mark.parametrize("prompts", [None, 3, b"x", {"a": 1}, {"a"}, [1], ["a", None], [["a"]], Path("a"), CLIP, "caf\udce9", ["\ud800"]])
def test_what_is_not_a_prompt_is_refused(nano: SoundOmni, prompts: Any) -> None:
    refused(lambda: nano.generate(prompts, **QUICK), "prompts", DataError)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("seeds", ["1", 1.5, [1.0], True, None, {1}, {0: 1}, [0, 1], np.array([[0]]), np.array([0.0]), b"1"]),
        ("seconds", ["1", None, ["1"], True, [True], 1j]),
        ("num_steps", [2.5, "3", np.float32(2), [1]]),
        ("batch_size", [None, 2.0, "2"]),
        ("guidance_scale", ["2", [2], np.True_]),
        ("strength", ["x", True, [0.5]]),
        ("on_step", [3, "print"]),
    ],
)
def test_what_is_not_a_number_is_refused(nano: SoundOmni, name: str, values: list[Any]) -> None:
    word = {"guidance_scale": "guidance scale"}.get(name, name)
    for value in values:
        refused(lambda value=value: nano.generate("a", **{**QUICK, name: value}), word, SpecError)


NOT_CLIPS = ["a.wav", Path("a.wav"), CLIP.waveform, torch.zeros(1, 9), (CLIP.waveform, 8000), [None], [CLIP.waveform], {"a": CLIP}, 3]


@pytest.mark.parametrize("value", NOT_CLIPS, ids=lambda value: type(value).__name__)
def test_what_is_not_a_clip_is_refused_with_what_to_pass(nano: SoundOmni, value: Any) -> None:
    for call in (
        lambda: nano.describe(value),
        lambda: nano.generate("a", **QUICK, vary=value),
        lambda: nano.generate("a", **QUICK, known=3 if value is NOT_CLIPS[5] else value),  # None keeps nothing
        lambda: nano.generate("a", **QUICK, known=Kept(value, [(0, 0.05)])),
        lambda: nano.reconstruct(value),
    ):
        refused(call, "expected", DataError)


@pytest.mark.parametrize("spans", [3, "ab", ["ab"], [0], [(0, 1, 2)], [("0", "1")], [(0, (1, 2))], [0, (1, 2)], None])
def test_what_is_not_a_span_is_refused(nano: SoundOmni, spans: Any) -> None:
    refused(lambda: nano.generate("a", **QUICK, known=Kept(CLIP, spans)), "span", SoundOmniError)


def test_other_arguments_of_a_wrong_kind_are_refused(nano: SoundOmni, tmp_path: Path) -> None:
    for call, word in (
        (lambda: nano.generate("a", **QUICK, known=CLIP), "Import Kept from soundomni"),
        (lambda: nano.generate("a", **QUICK, negative_prompt=3), "negative prompt"),
        (lambda: nano.generate(["a", "b"], **QUICK, vary=[CLIP]), "vary has length 1; expected 2, one for each prompt"),
        (lambda: nano.describe(CLIP, question=["a"]), "question"),
        (lambda: nano.describe(CLIP, max_new_tokens=2.5), "max_new_tokens"),
        (lambda: nano.reconstruct([CLIP]), "Make one call for each"),
        (lambda: nano.reconstruct(CLIP, chunk_seconds="1"), "chunk_seconds"),
        (lambda: nano.requests(-1), "seconds is -1; expected a number above 0"),
        (lambda: nano.load_adapter(3), "adapter"),
        (lambda: nano.push_to_hub(3), "repository"),
        (lambda: nano.save_pretrained(None), "directory"),
        (lambda: nano.save_pretrained(tmp_path / "m", dtype="int8"), "dtype"),
        (lambda: nano.save_pretrained(tmp_path / "m", dtype=torch.bool), "dtype"),
        (lambda: nano.save_pretrained(tmp_path / "m", max_shard_bytes=0), "max_shard_bytes"),
        (lambda: nano.save_pretrained(tmp_path / "m", card=3), "card"),
        (lambda: SoundOmni.from_pretrained(None), "the model"),
        (lambda: SoundOmni.from_pretrained("nano", overrides=["sampler"]), "overrides"),
        (lambda: SoundOmni.from_pretrained("nano", overrides={"sampler.num_steps": object()}), "sampler.num_steps"),
        (lambda: SoundOmni.from_pretrained("nano", device=0), "no device '0'"),
    ):
        refused(call, word, SoundOmniError)
    assert not list(tmp_path.iterdir())


def refused(call: Callable[[], object], word: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=word) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
