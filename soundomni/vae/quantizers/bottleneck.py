"""What lies between the encoder and the decoder of a codec of codes: quantizers of one or more groups of dimensions,
and the steps before they start.

Codebooks start from the latents of one step. Before that step, clips go through unquantized, so that the first
codebooks are made for latents that mean something (autoencoder warm-up; arXiv 2605.06870).

Shape letters: B clips, D latent dimensions, T frames, G groups, K codes of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import LossTerms, Ranks
from soundomni.core.representation import length_mask
from soundomni.vae.clips import at_least_float32
from soundomni.vae.quantizers.factorized import FactorizedQuantizer
from soundomni.vae.quantizers.finite_scalar import FiniteScalarQuantizer
from soundomni.vae.quantizers.lookup_free import LookupFreeQuantizer
from soundomni.vae.quantizers.moving_average import MovingAverageQuantizer
from soundomni.vae.quantizers.quantizer import Draws, Quantizer
from soundomni.vae.quantizers.settings import QuantizerSettings

START_FRAMES = 256
"""Frames of each clip from which codebooks start."""


class CodeBottleneck(nn.Module):
    """Latents `[B, D, T]` to codes `[B, K, T]` and back.

    With several groups, code g + G·k is that of level k of group g: the first codes are the first levels of all groups.

    Args:
        dim: D, a multiple of the number of groups.
        settings: how latents are quantized.
        warmup_steps: steps of training before quantizers start; at least one for "ema", whose codebooks start from it.

    Raises:
        SpecError: the settings do not fit D.
    """

    steps: Tensor
    started: Tensor

    def __init__(self, *, dim: int, settings: QuantizerSettings, warmup_steps: int) -> None:
        super().__init__()
        if dim % settings.groups:
            raise SpecError(f"quantizer.groups is {settings.groups}; expected a divisor of the {dim} latent dimensions")
        self.dim = dim
        self.settings = settings
        self.warmup_steps = max(warmup_steps, 1) if settings.method == "ema" else warmup_steps
        self.groups = nn.ModuleList(_quantizer(dim // settings.groups, settings) for _ in range(settings.groups))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("started", torch.tensor(self.warmup_steps == 0))
        self._seen_started = self.warmup_steps == 0  # so that the host reads the buffer only until then
        self._vectors: list[tuple[int, Tensor]] = []
        """Seed of a clip, and some of its frames `[N, D]`, from which quantizers start; only those of this step."""

    @property
    def quantizes(self) -> bool:
        """Whether quantizers have started, so that training clips are quantized."""
        self._seen_started = self._seen_started or bool(self.started)
        return self._seen_started

    @property
    def whole(self) -> tuple[nn.Module, ...]:
        """This module, if `after_step` changes parameters."""
        return (self,) if self.settings.method == "gradient" else ()

    def encode(self, latents: Tensor) -> Tensor:
        """Map latents `[B, D, T]` to codes `[B, K, T]`."""
        parts = self._split(at_least_float32(latents).mT)
        with torch.autocast(latents.device.type, enabled=False):
            codes = [group.encode(part) for group, part in zip(self._quantizers, parts, strict=True)]
        return torch.stack(codes, dim=2).flatten(1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        """Map the first k codes of each frame, `[B, k, T]`, to latents `[B, D, T]`; a group without any gives zeros."""
        count = len(self.groups)
        parts = [self._decode_group(group, codes[:, index::count]) for index, group in enumerate(self._quantizers)]
        return torch.cat(parts, dim=-1).mT

    def forward(self, latents: Tensor, frames: Tensor, generators: Sequence[Generator]) -> tuple[Tensor, LossTerms]:
        """Quantize latents for training.

        Only in training mode, levels are dropped, and with gradients enabled, statistics are left for `after_step`.

        Args:
            latents: `[B, D, T]`.
            frames: int64 `[B]`, frames of each clip.
            generators: one for each clip.

        Returns:
            Latents `[B, D, T]`, quantized unless quantizers have yet to start. The losses of the quantizers, per frame;
            and only to be logged, "latent/power", the squares of the latents, and once quantizers have started,
            "usage/k", the share of the values of code k that are in use.
        """
        rows, valid = at_least_float32(latents).mT, length_mask(frames, latents.shape[-1])
        power = rows.detach().square().sum(-1).masked_fill(~valid, 0.0).sum()
        with torch.autocast(latents.device.type, enabled=False):
            if self.quantizes:
                draws, parts = self._draw(frames, generators), self._split(rows)
                outputs = [group(part, valid, draws) for group, part in zip(self.groups, parts, strict=True)]
                values = torch.cat([quantized for quantized, _ in outputs], dim=-1)
                losses = {name: torch.stack([theirs[name] for _, theirs in outputs]).sum() for name in self.loss_names}
            else:
                self._keep(rows, frames, generators)
                values = rows + self._no_gradient()
                losses = dict.fromkeys(self.loss_names, power.new_zeros(()))
        count, one = frames.sum(), torch.ones_like(power)
        terms = {name: (total, count) for name, total in losses.items()}
        terms["latent/power"] = (power, count * self.dim)
        shares = self._shares() if self.quantizes else ()
        return values.mT, terms | {f"usage/{code}": (share, one) for code, share in enumerate(shares)}

    @torch.no_grad()
    def after_step(self, ranks: Ranks) -> None:
        """Update what no gradient does, from the clips of all ranks in this step; start quantizers when it is time."""
        if self.quantizes:
            for group in self._quantizers:
                group.update(ranks)
        elif self._is_last_step:
            self._start(ranks)
        self.steps += 1
        self._vectors = []

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses."""
        return self._quantizers[0].loss_names

    @property
    def _quantizers(self) -> tuple[Quantizer, ...]:
        return tuple(group for group in self.groups if isinstance(group, Quantizer))

    @property
    def _is_last_step(self) -> bool:
        """Whether quantizers start after this step."""
        return int(self.steps) + 1 >= self.warmup_steps

    def _start(self, ranks: Ranks) -> None:
        """Start quantizers from the frames of all ranks, in the order of the clips' seeds, if there are any."""
        mine = [(seed, vectors.cpu().numpy()) for seed, vectors in self._vectors]
        clips = sorted((clip for theirs in ranks.gather(mine) for clip in theirs), key=itemgetter(0))
        vectors = torch.from_numpy(np.concatenate([vectors for _, vectors in clips])) if clips else torch.zeros(0, 1)
        vectors = vectors[vectors.isfinite().all(1)]
        if not len(vectors):
            return
        for group, part in zip(self._quantizers, self._split(vectors), strict=True):
            group.start(part)
        self.started.fill_(True)

    def _keep(self, rows: Tensor, frames: Tensor, generators: Sequence[Generator]) -> None:
        """Keep frames of `[B, T, D]`, drawn for each clip, if quantizers start after this step."""
        if not (self.training and torch.is_grad_enabled() and self._is_last_step):
            return
        for clip, count, generator in zip(rows.detach(), frames.tolist(), generators, strict=True):
            chosen = torch.randperm(count, generator=generator, device=generator.device)[:START_FRAMES]
            self._vectors.append((generator.initial_seed(), clip[chosen.to(clip.device)]))

    def _draw(self, frames: Tensor, generators: Sequence[Generator]) -> Draws:
        levels, chosen, most = [], [], self.settings.num_levels
        for count, generator in zip(frames.tolist(), generators, strict=True):
            dropped, level, frame = torch.rand(3, generator=generator, device=generator.device).tolist()
            drops = self.training and dropped < self.settings.level_dropout
            levels.append(1 + int(level * most) if drops else most)
            chosen.append(int(frame * count) if count else -1)
        seeds = tuple(generator.initial_seed() for generator in generators)
        counts = torch.tensor([levels, chosen], dtype=torch.int64, device=frames.device)
        return Draws(counts[0], counts[1], seeds)

    def _shares(self) -> Tensor:
        """Return the share `[K]` of the values of each code that are in use."""
        return torch.stack([group.shares() for group in self._quantizers], dim=1).flatten()

    def _no_gradient(self) -> Tensor | float:
        """Return zero that depends on every parameter, so that each has a gradient on every rank."""
        return 0.0 * sum(parameter.sum() for parameter in self.parameters())

    def _split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Split `[..., D]` into the dimensions of each group."""
        return rows.chunk(len(self.groups), dim=-1)

    def _decode_group(self, group: Quantizer, codes: Tensor) -> Tensor:
        if codes.shape[1]:
            return group.decode(codes)
        return group.usage.new_zeros(len(codes), codes.shape[-1], self.dim // len(self.groups))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._seen_started = False
        super()._load_from_state_dict(*args, **kwargs)


def _quantizer(dim: int, settings: QuantizerSettings) -> Quantizer:
    """Return the quantizer of one group."""
    num_levels, entries, decay = settings.num_levels, settings.entries, settings.decay
    commitment_weight = settings.commitment_weight
    if settings.method == "fsq":
        return FiniteScalarQuantizer(dim=dim, num_levels=num_levels, steps=settings.steps, decay=decay)
    if settings.method == "lfq":
        return LookupFreeQuantizer(
            dim=dim,
            num_levels=num_levels,
            bits=entries.bit_length() - 1,
            commitment_weight=commitment_weight,
            entropy_weight=settings.entropy_weight,
            decay=decay,
        )
    if settings.method == "ema":
        return MovingAverageQuantizer(
            dim=dim,
            num_levels=num_levels,
            entries=entries,
            commitment_weight=commitment_weight,
            decay=decay,
            dead_code_share=settings.dead_code_share,
        )
    return FactorizedQuantizer(
        dim=dim,
        num_levels=num_levels,
        entries=entries,
        codebook_dim=settings.codebook_dim,
        commitment_weight=commitment_weight,
        decay=decay,
    )
