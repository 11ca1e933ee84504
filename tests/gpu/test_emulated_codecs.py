"""A codec in training, and its critics, give the same losses on the emulated device as on the CPU, but gradients are not emulated."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from emulated_cuda import EmulatedCuda, on_cpu, to_cuda
from emulated_models import SPECS, clip

from soundomni.core.spec.load import load_spec, resolve
from soundomni.train.build_codec import build_codec

SMALL = {
    "soundstream-toy": (
        *("base_channels=2", "latent_dim=8", "channel_multiples=[1, 2, 2]", "warmup_steps=0"),
        *("quantizer.num_levels=2", "quantizer.codebook_size=8"),
    ),
    "oobleck-toy": ("base_channels=2", "latent_dim=4"),
}
"""Shipped spec → sizes of its codec. A balance of losses needs gradients."""


@pytest.mark.parametrize("phase", ["critics", "codec"])
@pytest.mark.parametrize("name", list(SMALL))
@pytest.mark.parametrize("tf32", [False, True])
def test_losses_of_each_phase(name: str, phase: str, tf32: bool) -> None:
    sizes = [(f"codec.codec.init_args.{key}", value) for key, value in (one.split("=") for one in SMALL[name])]
    spec = resolve(load_spec([SPECS / f"{name}.yaml"], [*sizes, ("codec.balance", "0.0")]))
    assert spec.codec is not None and spec.train is not None
    torch.manual_seed(0)
    cpu = build_codec(spec.codec, spec.train)
    counts = (2400, 1800, 2400)
    waveform = torch.from_numpy(np.stack([clip(0.3, seed).waveform for seed in range(3)]))
    waveform[1, :, 1800:] = 0
    lengths, seeds = torch.tensor(counts), (1, 2, 3)
    expected = cpu.losses(waveform, lengths, counts, seeds, phase)
    assert expected
    with EmulatedCuda(tf32=tf32).running():
        cuda = deepcopy(cpu)
        to_cuda(cuda)
        terms = cuda.losses(waveform.to("cuda"), lengths.to("cuda"), counts, seeds, phase)
        found = {loss: [on_cpu(value.detach()).item() for value in term] for loss, term in terms.items()}
    assert found.keys() == expected.keys()
    for loss, (total, count) in expected.items():
        assert found[loss][0] == pytest.approx(total.item(), rel=2e-2 if tf32 else 2e-4), loss
        assert found[loss][1] == pytest.approx(count.item()), loss
