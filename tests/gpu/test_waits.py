"""How often the host waits for the device: per batch, per step of sampling, and per token of a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from emulated_cuda import EmulatedCuda, Wait
from emulated_models import DEAF, MODELS, Twice, clip, make


@pytest.fixture(scope="module", params=list(MODELS))
def twice(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twice:
    """One of the models, or of those that a test names."""
    return make(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def device() -> Iterator[EmulatedCuda]:
    with EmulatedCuda().running() as device:
        yield device


def outside_codecs(waits: Sequence[Wait]) -> list[Wait]:
    return [wait for wait in waits if not wait.place.startswith("vae/")]


def test_a_batch_waits_for_codecs_only(twice: Twice, device: EmulatedCuda) -> None:
    """Some codecs look at the values of clips, which pre-encoded data spares."""
    model = twice.on_cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        model(twice.batches[0].to("cuda"))  # makes what lasts, such as the filters of spectrograms
        device.waits.clear()
        model(twice.batches[1].to("cuda"))
    assert outside_codecs(device.waits) == []


@pytest.mark.parametrize("twice", [name for name in MODELS if name not in ("tokens", "conformer", "top-k")], indirect=True)
def test_steps_of_sampling_do_not_wait(twice: Twice, device: EmulatedCuda) -> None:
    """Guidance in an interval looks at each timestep, which is cheaper than a pass that it does not need."""
    user, counts = twice.user_of(twice.on_cuda()), []
    for num_steps in (3, 3, 6):
        device.waits.clear()
        user.generate(["a sine tone"], seconds=0.3, num_steps=num_steps, of=twice.latent)
        counts.append(sum(not wait.place.startswith("core/inference/guidance.py") for wait in device.waits))
    assert counts[1] == counts[2], [wait for wait in device.waits if wait.place.startswith(("core", "flow", "experts"))]


@pytest.mark.parametrize("twice", [name for name in MODELS if name not in (*DEAF, "top-k")], indirect=True)
def test_a_token_of_a_text_waits_once(twice: Twice, device: EmulatedCuda) -> None:
    user, counts = twice.user_of(twice.on_cuda()), []
    for num_tokens in (4, 4, 8):
        device.waits.clear()
        text = user.describe([clip(0.3, 1)], max_new_tokens=num_tokens)
        counts.append(len(device.waits))
    assert text
    assert counts[2] - counts[1] == 4, device.waits[-12:]
