"""A flow as rectified-flow and as diffusion models see it, and noise that several samplers share."""

import math

import torch

from soundomni.core.representation import Representation, frame_noise

SHAPE = (2, 3, 4)
FRAMES = (4, 4)


def velocity(values, timesteps, *, first=0):
    """A smooth velocity ε − x0 on x_t = (1 − t)·x0 + t·ε that bends in both arguments and treats numbers separately."""
    t = timesteps[:, None, None]
    return torch.sin(2 * values + 3 * t) + 0.3 * values * (1 - t) - 0.2


def v_network(x, t):
    """The same flow for the cosine path: what a network of v = α·ε − σ·x0 gives for x = α·x0 + σ·ε at times `[B]`."""
    alpha, sigma = torch.cos(math.pi / 2 * t)[:, None, None], torch.sin(math.pi / 2 * t)[:, None, None]
    values, times = x / (alpha + sigma), (sigma / (alpha + sigma)).reshape(-1)
    slope = velocity(values, times)
    data, noise = values - times[:, None, None] * slope, values + (1 - times[:, None, None]) * slope
    return alpha * noise - sigma * data


def denoiser(x, sigma):
    """The same flow for k-diffusion: the data in x = x0 + σ·ε at noise levels `[B]`."""
    times = sigma / (1 + sigma)
    values = x * (1 - times)[:, None, None]
    return values - times[:, None, None] * velocity(values, times)


def noise(seed=5):
    return torch.randn(*SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def generators(seed=11):
    return [torch.Generator().manual_seed(seed + clip) for clip in range(SHAPE[0])]


class Draws:
    """The fresh noise that samplers draw from `generators()`, step by step."""

    def __init__(self):
        self.generators = generators()

    def __call__(self, *_):
        return frame_noise(noise(), FRAMES, self.generators)


def solve(sampler, start, predict=velocity, **given):
    return sampler.sample(predict, Representation.of_latents(start), generators=generators(), **given).values
