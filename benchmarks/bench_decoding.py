"""Describing eight clips with nano, with and without padding every stream.

With padding, each new token also runs the generation expert, on a row of zeros. Both must write the same texts before a
timing counts. Run on one thread: `OMP_NUM_THREADS=1 pytest benchmarks/bench_decoding.py`.
"""

from __future__ import annotations

import pytest

from soundomni import Audio, SoundOmni
from soundomni.data import ToySounds

CLIPS = 8


@pytest.fixture(scope="module")
def model() -> SoundOmni:
    return SoundOmni.from_pretrained("nano")


@pytest.fixture(scope="module")
def clips() -> list[Audio]:
    sounds = ToySounds()
    return [Audio(*sounds.load(index)) for index in range(CLIPS)]


@pytest.mark.parametrize("padded", [False, True], ids=["experts with tokens", "every expert"])
def test_describe(benchmark, model, clips, padded, monkeypatch):
    expected = model.describe(clips)
    monkeypatch.setattr(model.model.backbone, "takes_empty_streams", not padded)
    assert model.describe(clips) == expected
    benchmark.group = f"describing {CLIPS} clips of a second"
    benchmark(model.describe, clips)
