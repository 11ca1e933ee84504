"""A chord through a codec and back, on a command line of your own that knows the registered plugins by their names."""

import torch
from jsonargparse import ArgumentParser

from soundomni import extend_jsonargparse
from soundomni.core.interfaces import Codec
from soundomni.metrics.waveform_distances import si_sdr


def resynthesize(codec: Codec, seconds: float = 0.5) -> None:
    """Encodes and decodes a chord, and prints how close that comes."""
    time = torch.arange(int(seconds * codec.spec.sample_rate)) / codec.spec.sample_rate
    waveform = 0.2 * sum(torch.sin(2 * torch.pi * pitch * time) for pitch in (262.0, 330.0, 392.0))[None, None]
    latents = codec.encode(waveform, torch.tensor([waveform.shape[-1]]))
    decoded = codec.decode(latents)[..., : waveform.shape[-1]]
    quality = si_sdr(waveform[0].numpy(), decoded[0].numpy())
    print(f"{type(codec).__name__}: latents {list(latents.values.shape)}, SI-SDR {quality:.1f} dB")


extend_jsonargparse()
parser = ArgumentParser()
parser.add_argument("--config", action="config")
parser.add_function_arguments(resynthesize)
arguments = parser.instantiate(parser.parse_args())
resynthesize(arguments.codec, arguments.seconds)
