"""Codecs without a model: a waveform to latents and back, with one codec that is exact and one that learns from critics.

Every codec has the same methods, whatever is inside. Shape letters: B clips, C audio channels, S samples.
"""

import torch

from soundomni.core.interfaces import Codec
from soundomni.metrics.waveform_distances import si_sdr
from soundomni.vae import MDCTCodec, OobleckCodec
from soundomni.vae.critics import L1Critic, MultiSTFTCritic

RATE = 8000


def chord(seconds: float) -> torch.Tensor:
    """Return three notes that fade, `[B, C, S]`."""
    time = torch.arange(int(seconds * RATE)) / RATE
    notes = [torch.sin(2 * torch.pi * pitch * time) for pitch in (262.0, 330.0, 392.0)]
    return 0.2 * (torch.stack(notes).sum(0) * torch.exp(-3 * time))[None, None]


def quality(codec: Codec, waveform: torch.Tensor, lengths: torch.Tensor) -> str:
    """Encode and decode `[B, C, S]`, and return how close the result is."""
    with torch.no_grad():
        latents = codec.encode(waveform, lengths)
        decoded = codec.decode(latents)[..., : waveform.shape[-1]]
    return f"latents {list(latents.values.shape)}, SI-SDR {si_sdr(waveform[0].numpy(), decoded[0].numpy()):.1f} dB"


torch.manual_seed(0)
waveform = chord(seconds=0.25)
lengths = torch.tensor([waveform.shape[-1]])

print("mdct:", quality(MDCTCodec(sample_rate=RATE, frame_size=128), waveform, lengths))

sizes = {"base_channels": 8, "channel_multiples": (1, 2), "strides": (4, 4), "latent_dim": 16}
oobleck = OobleckCodec(sample_rate=RATE, channels=1, **sizes)
print("oobleck, untrained:", quality(oobleck, waveform, lengths))
critics = MultiSTFTCritic(sample_rate=RATE, channels=1, windows=(512, 128, 32)), L1Critic(sample_rate=RATE, channels=1)
optimizer = torch.optim.AdamW(oobleck.parameters(), lr=3e-3)
generators = [torch.Generator().manual_seed(0)]  # one per clip: its noise does not depend on other clips
for _ in range(100):
    estimate, own = oobleck.reconstruct(waveform, lengths, generators)
    losses = [own["kl"], *(critic.judge(waveform, estimate)["distance"] for critic in critics)]
    sum(weight * total / count for weight, (total, count) in zip((1, 1, 100), losses, strict=True)).backward()
    optimizer.step()
    optimizer.zero_grad()
print("oobleck, 100 steps on this clip:", quality(oobleck, waveform, lengths))
