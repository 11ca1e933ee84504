"""Flow matching without a codec or a backbone: your own network learns a distribution, and a sampler draws from it.

An objective determines the network's target, and a sampler takes any function of values `[B, D, T]` and timesteps
`[B]`. Here a "frame" is a point on a ring of radius 2, so D = 2, and each of B "clips" is T points. Timestep 1 is
noise, 0 is data.
"""

import torch
from torch import Tensor, nn

from soundomni.core.representation import Representation
from soundomni.flow import EulerSampler, FlowMatching, HeunSampler

B, T = 256, 8


def ring() -> Tensor:
    """Return points on the ring, `[B, 2, T]`."""
    angle = 2 * torch.pi * torch.rand(B, T)
    return 2 * torch.stack([angle.cos(), angle.sin()], dim=1)


torch.manual_seed(0)
network = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
objective = FlowMatching(timesteps="uniform")
optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
generators = [torch.Generator().manual_seed(clip) for clip in range(B)]


def velocity(values: Tensor, timesteps: Tensor, *, first: int = 0) -> Tensor:
    """Return the network's prediction for values `[B, 2, T]` at timesteps `[B, T]`, or one per clip `[B]`."""
    times = timesteps.reshape(len(values), -1, 1).expand(-1, values.shape[-1], 1)
    return network(torch.cat([values.mT, times], dim=-1)).mT


nothing_known, all_noisy = torch.zeros(B, T, dtype=torch.bool), torch.ones(B, dtype=torch.bool)
for _ in range(300):
    query = objective.corrupt(Representation.of_latents(ring()), known=nothing_known, noise=all_noisy, generators=generators)
    total, count = objective.loss(velocity(query.inputs, query.timesteps), query)["velocity"]
    (total / count).backward()
    optimizer.step()
    optimizer.zero_grad()
for sampler in (EulerSampler(num_steps=2), EulerSampler(num_steps=20), HeunSampler(num_steps=10)):
    with torch.no_grad():
        start = Representation.of_latents(torch.randn(B, 2, T))
        radius = sampler.sample(velocity, start, generators=generators).values.norm(dim=1)
    asked = f"{type(sampler).__name__}, {sampler.num_evaluations(start)} evaluations"
    print(f"{asked}: radius {radius.mean():.2f} with deviation {radius.std():.2f} (data: 2.00, 0.00)")
