"""A step of training `soundstream` with critics, in the loop, against plain code of equal size.

The plain code is what one would write for this one recipe: the same layers as bare torch modules, a loop over codebooks, and two
optimizers. Before anything is timed, the losses and the weights after a step have to agree. The ratio of the fastest rounds is
printed, and that of the peaks of memory in tensors. Run on one thread: `OMP_NUM_THREADS=1 pytest -s benchmarks/bench_codec_training.py`.

Shape letters: B clips, S samples, D latent dimensions, T frames, V entries of a codebook.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from soundomni.core.assembly.segment_writer import clip_writer
from soundomni.core.sequence import PackedBatch, Sample
from soundomni.core.spec.schema import CodecSpec, OptimizerSpec, SegmentTemplate, Slot, TrainSpec
from soundomni.core.tokenizer import TextTokenizer
from soundomni.train.build_codec import build_codec
from soundomni.train.codec_training import CodecTraining
from soundomni.train.memory.live_memory import LiveMemory
from soundomni.train.parallel import World
from soundomni.train.phases import build_optimizers, phases_of
from soundomni.train.step import train_step

RATE, SECONDS, CLIPS, LEVELS, ENTRIES, DIM = 16000, 0.5, 2, 8, 256, 256
WEIGHTS = {"l1": 1.0, "waves.adversarial": 1.0, "waves.features": 10.0, "stft.adversarial": 1.0, "stft.features": 10.0}
SETTINGS = OptimizerSpec(lr=1e-4, eps=1e-8, clip=0.0)
ROUNDS = 7


def training() -> CodecTraining:
    """Return SoundStream at its published strides, half as wide, with two of its critics."""
    torch.manual_seed(0)
    quantizer = {"method": "ema", "num_levels": LEVELS, "codebook_size": ENTRIES, "level_dropout": 0.0, "dead_code_share": 0.0}
    codec = Slot("soundstream", {"base_channels": 16, "latent_dim": DIM, "quantizer": quantizer})
    critics: dict[str, Slot | None] = {
        "l1": Slot("l1"),
        "waves": Slot("multi-scale-waveform", {"widths": [16, 64, 128, 256]}),
        "stft": Slot("complex-stft", {"window": 512, "widths": [16, 16, 32, 32, 64]}),
    }
    train = TrainSpec(run_dir=".", loss_weights=WEIGHTS, optimizer=SETTINGS)
    module = build_codec(CodecSpec(codec=codec, critics=critics), train)
    module.codec.bottleneck.started.fill_(True)  # type: ignore[union-attr,operator]
    module.codec.bottleneck.groups[0].usage.fill_(1.0)  # type: ignore[union-attr,index,operator]
    return module


def batch(module: CodecTraining) -> PackedBatch:
    """Return noise."""
    writer, samples = clip_writer(module.codec.spec, tokenizer=TextTokenizer.train([], vocab_size=261)), []
    for clip in range(CLIPS):
        noise = 0.1 * torch.randn(1, int(RATE * SECONDS), generator=torch.Generator().manual_seed(clip))
        segment = writer.segment(SegmentTemplate(audio="target"), texts={}, num_samples=noise.shape[1])
        samples.append(Sample(key=str(clip), segments=(replace(segment, waveform=noise.numpy()),), seed=clip))
    return PackedBatch.from_samples(samples)


def ours() -> tuple[Callable[[], Tensor], CodecTraining]:
    """Return a step of the loop."""
    module = training()
    packed, world = batch(module), World(rank=0, size=1, device=torch.device("cpu"))
    train = TrainSpec(run_dir=".", loss_weights=WEIGHTS, optimizer=SETTINGS)
    train = replace(train, schedule=replace(train.schedule, warmup_steps=0))
    phases = phases_of(module, train)
    optimizer = build_optimizers(module, phases)

    def step() -> Tensor:
        return train_step(module, [packed], train=train, optimizer=optimizer, world=world, phases=phases).values

    return step, module


class Causal(nn.Module):
    """A convolution over what came before."""

    def __init__(self, convolution: nn.Conv1d, width: int) -> None:
        super().__init__()
        self.convolution, self.width = convolution, width

    def forward(self, values: Tensor) -> Tensor:
        layer = self.convolution
        longer = functional.pad(values, (self.width, 0))
        return functional.conv1d(longer, layer.weight, layer.bias, layer.stride, 0, layer.dilation)


class Up(nn.Module):
    """A transposed convolution without what comes later."""

    def __init__(self, convolution: nn.ConvTranspose1d, stride: int) -> None:
        super().__init__()
        self.convolution, self.stride = convolution, stride

    def forward(self, values: Tensor) -> Tensor:
        return self.convolution(values)[..., : -self.stride]


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, values: Tensor) -> Tensor:
        return values + self.layers(values)


def plain_network(network: nn.Module, *, is_decoder: bool) -> nn.Sequential:
    """Return the layers of SEANet as a plain sequence, sharing its parameters."""

    def causal(layer: nn.Module) -> Causal:
        return Causal(layer.convolution, layer.width)  # type: ignore[arg-type]

    def units(block: nn.Module) -> list[nn.Module]:
        return [Residual(nn.ELU(), causal(unit.wide), nn.ELU(), causal(unit.mix)) for unit in block.units]  # type: ignore[arg-type,union-attr]

    layers: list[nn.Module] = [causal(network.first)]  # type: ignore[arg-type]
    for block in network.blocks:  # type: ignore[union-attr]
        if is_decoder:
            layers += [nn.ELU(), Up(block.up.convolution, block.up.stride), *units(block)]  # type: ignore[arg-type,union-attr]
        else:
            layers += [*units(block), nn.ELU(), causal(block.down)]  # type: ignore[arg-type]
    return nn.Sequential(*layers, nn.ELU(), causal(network.last))  # type: ignore[arg-type]


def plain() -> tuple[Callable[[], Tensor], CodecTraining]:
    """Return a step of plain code, and the module whose parameters it trains."""
    module = training()
    encoder = plain_network(module.codec.encoder, is_decoder=False)  # type: ignore[arg-type]
    decoder = plain_network(module.codec.decoder, is_decoder=True)  # type: ignore[arg-type]
    networks = [(name, list(module.critics[name].networks)) for name in ("waves", "stft")]  # type: ignore[arg-type]
    codebooks = module.codec.bottleneck.groups[0].codebooks.clone()  # type: ignore[union-attr,index,operator]
    usage, decay = torch.ones(LEVELS, ENTRIES), 0.99
    of_codec = torch.optim.AdamW(module.codec.parameters(), lr=1e-4, betas=SETTINGS.betas, eps=1e-8, weight_decay=0.0)
    of_critics = torch.optim.AdamW(module.critics.parameters(), lr=1e-4, betas=SETTINGS.betas, eps=1e-8, weight_decay=0.0)
    waveform = batch(module).of("clip").waveform

    def quantize(latents: Tensor) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        residual, total, commitment, seen = latents, torch.zeros_like(latents), latents.new_zeros(()), []
        for book in codebooks:
            flat = residual.detach().flatten(0, 1)
            codes = torch.addmm(book.square().sum(1), flat, book.T, beta=-0.5).argmax(1)
            values = book[codes].view_as(residual)
            commitment = commitment + 0.25 * (residual - values).square().mean(-1).sum()
            seen.append((codes, flat))
            residual, total = residual - values, total + values
        return latents + (total - latents).detach(), commitment / (latents.shape[0] * latents.shape[1]), seen

    def update(seen: list[tuple[Tensor, Tensor]]) -> None:
        for level, (codes, vectors) in enumerate(seen):
            counts = torch.bincount(codes, minlength=ENTRIES).float()
            sums = torch.zeros_like(codebooks[level]).index_add_(0, codes, vectors)
            usage[level] = decay * usage[level] + (1 - decay) * counts
            rate = torch.where(counts > 0, (1 - decay) / usage[level], 0.0)
            codebooks[level] += rate[:, None] * (sums - counts[:, None] * codebooks[level])

    def verdicts(of: list[nn.Module], clips: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        return [network(clips) for network in of]

    def hinges(estimate: Tensor) -> dict[str, Tensor]:
        losses = {}
        for name, of in networks:
            real, made = verdicts(of, waveform), verdicts(of, estimate)
            each = [functional.relu(1 - a[0]).mean() + functional.relu(1 + b[0]).mean() for a, b in zip(real, made, strict=True)]
            losses[name] = torch.stack(each).mean()
        return losses

    def judged(estimate: Tensor) -> dict[str, Tensor]:
        losses = {"l1": (estimate - waveform).abs().mean()}
        for name, of in networks:
            made = verdicts(of, estimate)
            with torch.no_grad():
                real = verdicts(of, waveform)
            losses[f"{name}.adversarial"] = torch.stack([functional.relu(1 - logits).mean() for logits, _ in made]).mean()
            distances = [
                torch.stack([(a - b).abs().mean() for a, b in zip(ours[1], theirs[1], strict=True)]).mean()
                for ours, theirs in zip(made, real, strict=True)
            ]
            losses[f"{name}.features"] = torch.stack(distances).mean()
        return losses

    def step() -> Tensor:
        quantized, commitment, seen = quantize(encoder(waveform).mT)
        estimate = decoder(quantized.mT)
        own = hinges(estimate.detach())
        sum(own.values()).backward()  # type: ignore[union-attr]
        of_critics.step()
        of_critics.zero_grad()
        for parameter in module.critics.parameters():
            parameter.requires_grad_(False)
        losses = judged(estimate)
        (commitment + sum(WEIGHTS[name] * loss for name, loss in losses.items())).backward()
        for parameter in module.critics.parameters():
            parameter.requires_grad_(True)
        of_codec.step()
        of_codec.zero_grad()
        with torch.no_grad():
            update(seen)
        found = {**{f"{name}.hinge": loss for name, loss in own.items()}, "commitment": commitment, **losses}
        return torch.stack([loss.detach() for _, loss in sorted(found.items())])

    return step, module


def peak(step: Callable[[], Tensor], module: nn.Module) -> int:
    """Return the peak of bytes in tensors that a step makes."""
    with LiveMemory([*module.parameters(), *module.buffers()]) as live:
        step()
        return live.peak


@pytest.mark.benchmark(group="codec training")
def test_a_step_takes_at_most_a_tenth_more_than_plain_code() -> None:
    (first, mine), (second, theirs) = ours(), plain()
    assert mine.codec.state_dict().keys() == theirs.codec.state_dict().keys()
    for _ in range(3):
        losses, expected = first(), second()
        hinges, norm, others = losses[:2], losses[2], losses[3:-1]
        assert norm > 0
        torch.testing.assert_close(torch.cat([hinges, others]).sort().values, expected.sort().values, rtol=1e-4, atol=1e-5)
    for name, tensor in mine.named_parameters():
        torch.testing.assert_close(tensor, dict(theirs.named_parameters())[name], rtol=1e-3, atol=1e-4, msg=name)
    memory = peak(first, mine) / peak(second, theirs)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for step, taken in zip((first, second), seconds, strict=True):
            begun = time.process_time()
            step()
            taken.append(time.process_time() - begun)
    ratio = min(seconds[0]) / min(seconds[1])
    print(f"\nsoundstream step / plain step: time {ratio:.3f}, memory {memory:.3f} ({min(seconds[0]):.2f} s)")
    assert memory < 1.1
    assert ratio < 1.1
