"""A plugin that breaks its contract fails the clause that it breaks, with a message that names the clause; known failures are told."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from soundomni import testing
from soundomni.core.attention.layout import Layout
from soundomni.core.errors import DataError
from soundomni.core.interfaces import (
    Augmentation,
    Connector,
    Critic,
    Dataset,
    Encoding,
    Filter,
    Item,
    Objective,
    Optimizer,
    Query,
    Router,
    Sampler,
    Tracker,
)
from soundomni.core.representation import EMPTY, HIDDEN, RepresentationSpec, TokenSpec
from soundomni.core.spec.registry import load

MDCT, Dac, LogMel, MoT = load("codec", "mdct"), load("codec", "dac"), load("encoder", "log-mel"), load("backbone", "mot")
Euler, FlowMatching, AdamW = load("sampler", "euler"), load("objective", "flow-matching"), load("optimizer", "adamw")
Codes, Masked = load("connector", "codes"), load("objective", "masked")
Autoregressive, NextToken = load("objective", "autoregressive"), load("sampler", "next-token")
L1, Waveforms = load("critic", "l1"), load("critic", "multi-scale-waveform")
IDS = TokenSpec((4, 4), (4, 4))
CODES = {"representation": RepresentationSpec(kind="codes", sample_rate=8000, channels=1, downsampling_ratio=100, codebook_sizes=(4, 3))}
pytest_plugins = ["pytester"]

BROKEN = []


def broken(base, clause, message, **attributes):
    """Registers a plugin class that breaks one clause of the suite `base`, with its `attributes`, and the message that is due."""

    def register(cls):
        name = f"{base.__name__}.{clause}-{cls.__name__}"
        BROKEN.append(pytest.param(type(base.__name__, (base,), attributes), cls, clause, message, id=name))
        return cls

    return register


@broken(testing.CodecSuite, "lengths", r"encode of 1 sample gave 3 frames, but spec.num_frames says 2$")
class OneFrameMore(MDCT):
    def encode(self, waveform, lengths, generators=None):
        encoded = super().encode(waveform, lengths)
        return type(encoded)(nn.functional.pad(encoded.values, (0, 1)), encoded.lengths + 1, encoded.spec)


@broken(testing.CodecSuite, "batch", r"encoded differently on its own than in a batch of \d; the largest difference is")
class NormalisedByBatch(MDCT):
    def encode(self, waveform, lengths, generators=None):
        return super().encode(waveform / waveform.std(correction=0).clamp_min(1e-3), lengths)


@broken(testing.CodecSuite, "batch", "a clip of 1 sample.* is encoded differently on its own than in a batch of 5")
class LooksBeyond(MDCT):
    def encode(self, waveform, lengths, generators=None):
        encoded = super().encode(waveform, torch.full_like(lengths, waveform.shape[-1]))
        return type(encoded)(encoded.values, self.spec.frame_lengths(lengths), encoded.spec)


@broken(testing.CodecSuite, "training_mode", r"encode in train\(\) differs from encode in eval\(\)")
@broken(testing.CodecSuite, "deterministic", "two encodings of one clip without generators differ")
@broken(testing.CodecSuite, "generators", "with a generator of the same seed")
class Noisy(MDCT):
    def encode(self, waveform, lengths, generators=None):
        return super().encode(waveform + 0.1 * torch.randn_like(waveform), lengths)


@broken(testing.CodecSuite, "decode", "1 sample.* came back as .*; expected at least 128 samples")
class Short(MDCT):
    def decode(self, representation):
        return super().decode(representation)[..., :-1]


@broken(testing.CodecSuite, "decode", "decodes is False, but decode returned; expected DataError")
class SaysThatItOnlyEncodes(MDCT):
    decodes = False


@broken(testing.CodecSuite, "receptive_field", "decode in chunks of 1 frame with a context of 0 differs from decode of the whole clip")
class Echoes(MDCT):
    def decode(self, representation):
        waveform = super().decode(representation)
        return waveform + nn.functional.pad(waveform, (self.frame_size, 0))[..., : -self.frame_size]


@broken(testing.CodecSuite, "receptive_field", "encode in chunks of 1 frame with a context of 0 differs from encode of the whole clip")
class Averages(MDCT):
    def encode(self, waveform, lengths, generators=None):
        encoded = super().encode(waveform, lengths)
        return encoded.with_values(nn.functional.avg_pool1d(encoded.values, 3, stride=1, padding=1))


@broken(testing.CodecSuite, "decode_batch", "a clip of 2 frames is decoded differently on its own than in a batch; the largest")
class LoudnessOfBatch(MDCT):
    def decode(self, representation):
        return super().decode(representation) / representation.values.abs().amax()


class TinyDac(Dac):
    def __init__(self):
        sizes = {"encoder_dim": 2, "decoder_dim": 8, "strides": (2, 4), "codebook_size": 8, "codebook_dim": 2, "total_codebooks": 2}
        super().__init__(sample_rate=8000, **sizes)


@broken(testing.CodecSuite, "values", r"codes are torch\.int32; expected int64")
class HalfAsWide(TinyDac):
    def encode(self, waveform, lengths, generators=None):
        encoded = super().encode(waveform, lengths)
        return encoded.with_values(encoded.values.int())


@broken(testing.CodecSuite, "values", r"codes of level 0 run from \d+ to \d+; expected within 0 to 7")
class CountsOnward(TinyDac):
    def encode(self, waveform, lengths, generators=None):
        encoded = super().encode(waveform, lengths)
        return encoded.with_values(encoded.values + 8)


@broken(testing.CodecSuite, "spec", r"spec.codebook_sizes is \[8, 0\]; expected at least 1 everywhere")
class EmptyCodebook(TinyDac):
    def __init__(self):
        super().__init__()
        self._spec = replace(self._spec, codebook_sizes=(8, 0))


@broken(testing.CodecSuite, "decode_batch", "raised IndexError: index out of range in self")
@broken(testing.CodecSuite, "wrong_codes", "raised IndexError: index out of range in self")
class LooksUpAnything(TinyDac):
    def decode(self, representation):
        return self.network.decode(audio_codes=representation.values).audio_values[:, None]


@broken(testing.CodecSuite, "wrong_codes", "decode took the code -1 of level 0, whose codes run from 0 to 7; expected DataError")
class Clamps(TinyDac):
    def decode(self, representation):
        return super().decode(representation.with_values(representation.values.clamp(0, 7)))


@broken(testing.CodecSuite, "fewer_levels", "raised DataError: expected all levels")
class AllLevels(TinyDac):
    def decode(self, representation):
        if representation.values.shape[1] != 2:
            raise DataError("expected all levels")
        return super().decode(representation)


@broken(testing.CodecSuite, "round_trip", "decode of encoded silence gave samples that are not finite")
class DividesByLoudness(MDCT):
    def decode(self, representation):
        return super().decode(representation) / representation.values.abs().amax()


@broken(testing.CodecSuite, "constructor", r"takes '\*\*settings'; plugins declare every argument by name; expected typed keyword")
class TakesAnything(MDCT):
    def __init__(self, **settings):
        super().__init__(**settings)


@broken(testing.CodecSuite, "state_dict", "loaded the other's state dict computes another output")
class KeepsWeightsApart(MDCT):
    def __init__(self):
        super().__init__()
        self.scale = torch.rand(())

    def encode(self, waveform, lengths, generators=None):
        return super().encode(waveform * self.scale, lengths)


class TinyOobleck(load("codec", "oobleck")):
    def __init__(self):
        sizes = {"base_channels": 2, "channel_multiples": (1, 2), "strides": (2, 4), "latent_dim": 3}
        super().__init__(sample_rate=8000, channels=1, **sizes)


@broken(testing.CodecSuite, "reconstruct", "raised TypeError: .* takes 3 positional arguments but 4 were given")
class ForgetsGenerators(TinyOobleck):
    def reconstruct(self, waveform, lengths):
        return waveform, {}


@broken(testing.CodecSuite, "reconstruct", r"the estimate is torch\.float32 \[5, 1, 32\]; expected floating point \[5, 1, 28\]")
class PadsEstimates(TinyOobleck):
    def reconstruct(self, waveform, lengths, generators):
        estimate, losses = super().reconstruct(waveform, lengths, generators)
        return nn.functional.pad(estimate, (0, 4)), losses


@broken(testing.CodecSuite, "reconstruct", r"loss 'kl' is \(nan, 9\); expected a finite sum")
class DividesByZero(TinyOobleck):
    def reconstruct(self, waveform, lengths, generators):
        estimate, losses = super().reconstruct(waveform, lengths, generators)
        return estimate, losses | {"kl": (losses["kl"][0] * math.nan, losses["kl"][1])}


@broken(testing.CodecSuite, "reconstruct", "the losses are kl, kl2, but loss_names says kl")
class AddsLosses(TinyOobleck):
    def reconstruct(self, waveform, lengths, generators):
        estimate, losses = super().reconstruct(waveform, lengths, generators)
        return estimate, losses | {"kl2": losses["kl"]}


@broken(testing.CodecSuite, "reconstruct_without_gradients", "buffer 'seen' changed without gradients; expected no change")
class CountsEverything(TinyOobleck):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.tensor(0))

    def reconstruct(self, waveform, lengths, generators):
        self.seen += 1
        return super().reconstruct(waveform, lengths, generators)


@broken(testing.CodecSuite, "reconstruct_gradients", "the estimate has no gradient; expected one for critics")
class Detaches(TinyOobleck):
    def reconstruct(self, waveform, lengths, generators):
        estimate, losses = super().reconstruct(waveform, lengths, generators)
        return estimate.detach(), losses


@broken(testing.CodecSuite, "reconstruct_gradients", "gave parameter 'spare' no gradient; expected one, even if zero")
class HasSpareParts(TinyOobleck):
    def __init__(self):
        super().__init__()
        self.spare = nn.Parameter(torch.ones(3))


@broken(testing.CodecSuite, "reconstruct_gradients", "the gradients of all parameters are zero; expected others")
class Silences(TinyOobleck):
    def reconstruct(self, waveform, lengths, generators):
        estimate, _ = super().reconstruct(waveform, lengths, generators)
        return 0 * estimate, {}


@broken(testing.CodecSuite, "reconstruct_batch", "clip 0 is reconstructed differently on its own than in a batch")
class DrawsForAll(TinyOobleck):
    def reconstruct(self, waveform, lengths, generators):
        estimate, losses = super().reconstruct(waveform, lengths, generators)
        return estimate + 0.1 * torch.randn_like(estimate), losses


@broken(testing.CodecSuite, "reconstruct_batch", "clip 0 is reconstructed differently on its own than in a batch")
class LevelsOfBatch(TinyOobleck):
    def reconstruct(self, waveform, lengths, generators):
        estimate, losses = super().reconstruct(waveform, lengths, generators)
        return estimate - estimate.mean(), losses


@broken(testing.CodecSuite, "after_step", r"after_step changed parameter 'encoder\.layers\.0\.bias', which is in no module of `whole`")
class Decays(TinyOobleck):
    def after_step(self, ranks):
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(1e-3)


@broken(testing.CodecSuite, "after_step", "buffer 'average' is not finite after a step")
class AveragesNothing(TinyOobleck):
    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.zeros(()))

    def after_step(self, ranks):
        self.average.div_(ranks.sum(torch.zeros(())))


@broken(testing.CodecSuite, "lengths", "raised DataError: clips of 1 sample are too short")
class RefusesShort(MDCT):
    def encode(self, waveform, lengths, generators=None):
        if int(lengths.min()) == 1:
            raise DataError("clips of 1 sample are too short")
        return super().encode(waveform, lengths, generators)


@broken(testing.EncoderSuite, "contract", "make returned a NotAnEncoder; expected a Encoder")
class NotAnEncoder:
    pass


@broken(testing.EncoderSuite, "batch", "has other features on its own than in a batch")
class MeanOfBatch(LogMel):
    def forward(self, waveform, lengths):
        return super().forward(waveform - waveform.mean(), lengths)


@broken(testing.EncoderSuite, "num_tokens", r"num_tokens\(1\) is 0; expected an int from 1")
class NoTokens(LogMel):
    def num_tokens(self, num_samples):
        return num_samples // 640


class Line(Connector):
    def __init__(self, *, tokens: TokenSpec, hidden_dim: int, generates: bool) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(tokens.num_inputs, hidden_dim), nn.Linear(hidden_dim, tokens.num_outputs)

    def enter(self, tokens, *, timesteps=None, frames=None):
        return self.inward(tokens)

    def leave(self, hidden):
        return self.outward(hidden)


@broken(testing.ConnectorSuite, "max_frames", "frames 0 and 8 enter as the same token, but max_frames is 9")
class Forgets(load("connector", "fourier")):
    @property
    def max_frames(self):
        return 9

    def enter(self, tokens, *, timesteps=None, frames=None):
        return super().enter(tokens, timesteps=timesteps, frames=frames % 8)


@broken(testing.ConnectorSuite, "hidden", "a hidden cell of level 0 enters like a code; expected a token of its own", tokens=IDS)
class HidesLikeZero(Codes):
    def enter(self, tokens, *, timesteps=None, frames=None):
        return super().enter(tokens.clamp_min(0), timesteps=timesteps, frames=frames)


@broken(testing.ConnectorSuite, "ids", r"the codes \[0, \d\] and \[0, \d\] enter as the same token", tokens=IDS)
class HearsTheFirstLevel(Codes):
    def enter(self, tokens, *, timesteps=None, frames=None):
        first = tokens * torch.tensor([1, 0])
        return super().enter(first, timesteps=timesteps, frames=frames)


@broken(testing.ConnectorSuite, "ids", r"the codes \[1, 0\] and \[0, 1\] enter as the same token", tokens=IDS)
class OneTable(Codes):
    def __init__(self, *, tokens, hidden_dim, generates):
        super().__init__(tokens=tokens, hidden_dim=hidden_dim, generates=generates)
        with torch.no_grad():
            self.embeddings[1].weight.copy_(self.embeddings[0].weight)


@broken(testing.ConnectorSuite, "one_level", "leave_level of level 1 is not the part of leave that belongs to this level", tokens=IDS)
class OneHead(Codes):
    def leave_level(self, hidden, level, sizes):
        return super().leave_level(hidden, 0, sizes)


broken(testing.ConnectorSuite, "zero_start", "leave of a new connector gave values up to .*; expected zeros")(Line)
broken(testing.ConnectorSuite, "gradients", "5 tokens with generates=False gave parameter 'outward.weight' no gradient")(Line)


class TinyWaves(Waveforms):
    """Keeps every clause."""

    def __init__(self, *, sample_rate: int, channels: int):
        super().__init__(sample_rate=sample_rate, channels=channels, num_scales=1, widths=(4, 8), gradient_penalty=True)


@broken(testing.CriticSuite, "names", r"judge returned \['adversarial'\]; expected \['adversarial', 'features'\]")
class LeavesOutFeatures(TinyWaves):
    def judge(self, target, estimate):
        return {"adversarial": super().judge(target, estimate)["adversarial"]}


@broken(testing.CriticSuite, "names", r"judge: 'distance' is \(\S+, 0\); expected a finite sum and a count above 0")
class CountsNothing(L1):
    def judge(self, target, estimate):
        return {"distance": (super().judge(target, estimate)["distance"][0], torch.tensor(0.0))}


@broken(testing.CriticSuite, "names", r"judged has 'mel.distance'; expected names without a dot")
class NamesItself(L1):
    judged = ("mel.distance",)


@broken(testing.CriticSuite, "parameters", r"learned is \(\), and the trainable parameters are \['scale'\]; expected both")
class NeverLearns(L1):
    def __init__(self, *, sample_rate: int, channels: int):
        super().__init__(sample_rate=sample_rate, channels=channels)
        self.scale = nn.Parameter(torch.ones(()))


@broken(testing.CriticSuite, "gradient", "judge: 'distance' has no gradient; expected one, even if zero")
class DetachesEstimate(L1):
    def judge(self, target, estimate):
        return super().judge(target, estimate.detach())


@broken(testing.CriticSuite, "gradient", "judge: 'features' gave the target a gradient; expected none")
@broken(testing.CriticSuite, "learn_gradient", "learn gave the estimate a gradient; expected none")
@broken(testing.CriticSuite, "learns", "'adversarial' is .* for the estimate and .* for the target itself; expected more")
@broken(testing.CriticSuite, "shortest", "raised RuntimeError: ")
class Naive(Critic):
    """One convolution, which nothing is kept from, and which takes targets for estimates."""

    judged, learned = ("adversarial", "features"), ("hinge",)

    def __init__(self, *, sample_rate: int, channels: int):
        super().__init__()
        self.layer = nn.Conv1d(channels, 4, 9)

    def judge(self, target, estimate):
        wanted, found = self.layer(target), self.layer(estimate)
        count = torch.tensor(float(found.numel()))
        return {"adversarial": ((1.0 - found).relu().sum(), count), "features": ((found - wanted).abs().sum(), count)}

    def learn(self, target, estimate, generators):
        good, bad = self.layer(target.detach()), self.layer(estimate)
        return {"hinge": (((1.0 + good).relu() + (1.0 - bad).relu()).sum(), torch.tensor(float(good.numel())))}


@broken(testing.CriticSuite, "learn_gradient", "learn gave parameter 'unused' no gradient; expected one, even if zero")
class HasMoreThanItUses(TinyWaves):
    def __init__(self, *, sample_rate: int, channels: int):
        super().__init__(sample_rate=sample_rate, channels=channels)
        self.unused = nn.Parameter(torch.ones(()))


@broken(testing.CriticSuite, "learns", r"30 steps took the losses of learn from \S+ to \S+; expected less")
class LearnsBackwards(TinyWaves):
    def learn(self, target, estimate, generators):
        losses = super().learn(target, estimate, generators)
        return {name: (2.0 * total.detach() - total, count) for name, (total, count) in losses.items()}


@broken(testing.CriticSuite, "penalty", "learn: 'penalty' has no gradient; expected one, even if zero")
class ForgetsTheGraph(TinyWaves):
    def learn(self, target, estimate, generators):
        losses = super().learn(target, estimate, generators)
        return losses | {"penalty": tuple(term.detach() for term in losses["penalty"])}


@broken(testing.CriticSuite, "batch", "judge: the count of 'distance' of a batch is not that of its clips")
class CountsBatches(L1):
    def judge(self, target, estimate):
        return {"distance": (super().judge(target, estimate)["distance"][0], torch.tensor(1.0))}


@broken(testing.CriticSuite, "batch", "learn: the sum of 'hinge' of a batch is not that of its clips")
class ComparesWithBatch(TinyWaves):
    def learn(self, target, estimate, generators):
        return super().learn(target - target.mean(0), estimate, generators)


@broken(testing.CriticSuite, "shortest", "judge of clips of 1 sample has no gradient; expected one, even if zero")
class ZeroWithoutGraph(L1):
    def judge(self, target, estimate):
        if target.shape[-1] < 3:
            return {"distance": (torch.tensor(0.0), torch.tensor(0.0))}
        return super().judge(target, estimate)


@broken(testing.CriticSuite, "shortest", r"judge of clips of 1 sample gave 'distance' \(\S+, 0\); expected a finite")
class ForgetsCounts(L1):
    def judge(self, target, estimate):
        total, count = super().judge(target, estimate)["distance"]
        return {"distance": (total, count * (target.shape[-1] > 2))}


@broken(testing.CriticSuite, "shortest", "learn of clips of 1 sample gave parameter '.*' no gradient; expected one")
class LeavesOutIdleNetworks(Waveforms):
    def __init__(self, *, sample_rate: int, channels: int):
        super().__init__(sample_rate=sample_rate, channels=channels, num_scales=2, widths=(4, 8))

    def _unused(self, num_samples):
        return torch.zeros(0)


@broken(testing.CriticSuite, "silence", "judge of silence for silence gave losses that are not finite")
class Logarithm(L1):
    def judge(self, target, estimate):
        return super().judge(target, estimate.square().log())


@broken(testing.CriticSuite, "silence", "judge of silence for silence gave no gradient, or one that is not finite")
class Root(L1):
    def judge(self, target, estimate):
        total = (target - estimate).square().sum((1, 2)).sqrt().sum()
        return {"distance": (total, torch.tensor(float(len(target))))}


@broken(testing.CriticSuite, "perfect", r"'distance' of a perfect estimate is \S+; expected 0")
class ExpectsLouder(L1):
    def judge(self, target, estimate):
        return super().judge(2.0 * target, estimate)


@broken(testing.CriticSuite, "perfect", "'distance' is 1 for a small error and 1 for a large one; expected it to grow")
class Counts(L1):
    def judge(self, target, estimate):
        (total, count) = super().judge(target, estimate)["distance"]
        return {"distance": (total.sign() * count, count)}


@broken(testing.CriticSuite, "pure", "judge changed 'calls'; expected it to stay")
class CountsCalls(L1):
    def __init__(self, *, sample_rate: int, channels: int):
        super().__init__(sample_rate=sample_rate, channels=channels)
        self.register_buffer("calls", torch.zeros(()))

    def judge(self, target, estimate):
        self.calls += 1
        return super().judge(target, estimate)


@broken(testing.CriticSuite, "pure", "judge changed the target in place; expected it to stay")
class Scales(L1):
    def judge(self, target, estimate):
        return super().judge(target.mul_(0.5), estimate)


@broken(testing.CriticSuite, "deterministic", "two calls of judge gave different 'distance'")
class Crops(L1):
    def judge(self, target, estimate):
        first = int(torch.randint(target.shape[-1] // 2 + 1, ()))
        return super().judge(target[..., first:], estimate[..., first:])


@broken(testing.CriticSuite, "deterministic", "two calls of learn gave different 'hinge'")
class LearnsFromNoise(TinyWaves):
    def learn(self, target, estimate, generators):
        return super().learn(target + torch.randn_like(target), estimate, generators)


@broken(testing.RouterSuite, "streams", r"streams are \('a', 'a'\); expected unique names")
@broken(testing.RouterSuite, "stream_of", r"stream_of\(CODES\) is 2; expected 0 to 1, as streams are")
@broken(testing.RouterSuite, "text_first", r"stream_of\(TEXT\) is 1; expected 0")
@broken(testing.RouterSuite, "loss_names", r"loss_names is \('balance',\), but the network added no loss")
class Astray(Router):
    loss_names = ("balance",)

    @property
    def streams(self):
        return ("a", "a")

    def stream_of(self, role):
        return (1, 0, 1, 2)[role]


class TwoLosses(load("router", "top-k")):
    loss_names = ("load_balance", "z")


broken(testing.RouterSuite, "loss_names", r"loss_names is \('load_balance', 'z'\); expected a tuple of at most one name")(TwoLosses)


class FirstOnly(nn.Module):
    def __init__(self, networks):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, hidden):
        return self.networks[0](hidden - hidden.mean(0))


@broken(
    testing.RouterSuite, "gradients", r"a stream of 7 tokens gave parameter 'networks.1.0.weight' no gradient; expected one, even if zero"
)
@broken(testing.RouterSuite, "zero_rows", "3 rows of padding change the output of the other 7 tokens")
class Forgetful(Router):
    streams = ("all",)

    def stream_of(self, role):
        return 0

    def feed_forward(self, build, hidden_dim):
        return FirstOnly([build(), build()])


@broken(testing.BackboneSuite, "packing", "hidden text of two packed documents differ from those of each one on its own")
@broken(testing.BackboneSuite, "causal", "the first 5 text tokens change when the text continues")
@broken(testing.BackboneSuite, "expert_parameters", "a parameter of stream 'gen' was already named by stream 'und'")
class SeesAll(MoT):
    def forward(self, streams, layout):
        return super().forward([stream + stream.mean(0) for stream in streams], layout)

    def expert_parameters(self, stream):
        return self.parameters()


@broken(testing.BackboneSuite, "losses", r"losses \['balance'\] were returned, but the router names \['magnitude'\]")
class RenamesLosses(MoT):
    def forward(self, streams, layout):
        streams, losses = super().forward(streams, layout)
        return streams, dict(zip(["balance"], losses.values(), strict=True))


@broken(testing.BackboneSuite, "positions", "expected layout.position_ids to be used")
class NoPositions(MoT):
    def forward(self, streams, layout):
        return super().forward(streams, replace(layout, position_ids=torch.zeros_like(layout.position_ids)))


class OneLayer(Layout):
    def attend(self, layer, query, key, value):
        return super().attend(0, query, key, value)


@broken(testing.BackboneSuite, "cache", "latents after cached text differ from those after the text itself")
class SameLayer(MoT):
    def forward(self, streams, layout):
        return super().forward(streams, OneLayer(layout.stored, layout.position_ids, layout.attention, layout.cache))


@broken(testing.BackboneSuite, "empty_streams", r"streams came out as \[\[14, \d+\], \[1, \d+\]\], expected \[\[14, \d+\], \[0, \d+\]\]")
class PadsEmpty(MoT):
    takes_empty_streams = True

    def forward(self, streams, layout):
        streams, losses = super().forward(streams, layout)
        return [stream if len(stream) else stream.new_zeros(1, self.hidden_dim) for stream in streams], losses


@broken(testing.BackboneSuite, "empty_streams", "hidden text differs from that next to padding")
class NeedsPadding(MoT):
    takes_empty_streams = True

    def forward(self, streams, layout):
        mixed = torch.stack([stream.mean(0) for stream in streams]).sum(0)
        return super().forward([stream + mixed for stream in streams], layout)


@broken(testing.BackboneSuite, "empty_streams", "raised IndexError: ")
class TakesTheFirst(MoT):
    takes_empty_streams = True

    def forward(self, streams, layout):
        return super().forward([stream - 0 * stream[0] for stream in streams], layout)


@broken(testing.BackboneSuite, "cache", "raised RuntimeError: ")
class NoCache(MoT):
    def forward(self, streams, layout):
        return super().forward(streams, replace(layout, cache=None))


@broken(testing.ObjectiveSuite, "predicted", r"an output \[4, 3, 7\] became a prediction \[4, 1, 7\]; expected \[4, 3, 7\]")
class PredictsOne(FlowMatching):
    def predicted(self, output, inputs, timesteps):
        return output[:, :1]


@broken(testing.ObjectiveSuite, "clean", "the 2 known frames of clip 1 changed; expected them to stay clean")
@broken(testing.ObjectiveSuite, "counts", "loss_mask is not the frames of targets that are not known")
class ForgetsKnown(FlowMatching):
    def corrupt(self, clean, *, known, noise, generators):
        return super().corrupt(clean, known=torch.zeros_like(known), noise=noise, generators=generators)


@broken(testing.ObjectiveSuite, "batch", "differ between the clip on its own and a batch of 4")
class OneTimestep(FlowMatching):
    def corrupt(self, clean, *, known, noise, generators):
        return super().corrupt(clean, known=known, noise=noise, generators=[generators[0]] * len(generators))


@broken(testing.ObjectiveSuite, "loss_mask", "loss 'velocity' changes with predictions outside loss_mask")
class CountsAll(Objective):
    loss_names = ("velocity",)

    def corrupt(self, clean, *, known, noise, generators) -> Query:
        return FlowMatching().corrupt(clean, known=known, noise=noise, generators=generators)

    def loss(self, prediction, query):
        return {"velocity": ((prediction - query.targets).square().sum(), query.loss_mask.sum())}

    def noised(self, clean, start, timestep):
        return FlowMatching().noised(clean, start, timestep)


@broken(testing.ObjectiveSuite, "noised", "at timestep 0 the values are not the clean ones")
class NoisedBackwards(FlowMatching):
    def noised(self, clean, start, timestep):
        return super().noised(clean, start, 1 - timestep)


@broken(testing.ObjectiveSuite, "timesteps", r"corrupt_to\(0.25\) gave 3 timesteps; expected one for all frames")
class StillDraws(FlowMatching):
    def corrupt_to(self, clean, *, known, noise, generators, timestep):
        return self.corrupt(clean, known=known, noise=noise, generators=generators)


@broken(testing.ObjectiveSuite, "timesteps", r"corrupt_to\(0.5\) gave the timestep 0.5; expected one above 0.75")
class LaterIsCleaner(FlowMatching):
    def corrupt_to(self, clean, *, known, noise, generators, timestep):
        return super().corrupt_to(clean, known=known, noise=noise, generators=generators, timestep=1 - timestep)


@broken(testing.ObjectiveSuite, "timesteps", r"corrupt_to\(0.5\) used different noise than at an earlier timestep")
class OtherNoise(FlowMatching):
    def corrupt_to(self, clean, *, known, noise, generators, timestep):
        other = [torch.Generator().manual_seed(int(4 * timestep)) for _ in generators]
        return super().corrupt_to(clean, known=known, noise=noise, generators=other, timestep=timestep)


class Cosine(FlowMatching):
    """x_t = cos(πt/2)·x0 + sin(πt/2)·ε with the velocity that belongs to it: keeps every clause."""

    scale = math.pi / 2

    def corrupt(self, clean, *, known, noise, generators):
        straight = super().corrupt(clean, known=known, noise=noise, generators=generators)
        within = torch.arange(clean.values.shape[-1]) < clean.lengths[:, None]
        data = clean.values.masked_fill(~within[:, None], 0.0)
        epsilon = straight.targets + data
        angle = self.angle(straight.timesteps)[:, None]
        inputs = angle.cos() * data + angle.sin() * epsilon
        return replace(straight, inputs=inputs, targets=self.target(data, epsilon, angle))

    def target(self, data, epsilon, angle):
        return self.scale * (angle.cos() * epsilon - angle.sin() * data)

    def angle(self, timesteps):
        return timesteps * math.pi / 2

    def noised(self, clean, start, timestep):
        angle = self.angle(torch.tensor(timestep))
        return angle.cos() * clean + angle.sin() * start


@broken(testing.ObjectiveSuite, "velocity", r"loss is \S+ for the velocity of `noised`, d`noised`/dt, and \S+ slightly next to it")
class TextbookVelocity(Cosine):
    """v = α·ε - σ·x0 (Salimans and Ho 2022), which is not d x_t / dt but 2 / π of it."""

    scale = 1.0


@broken(testing.ObjectiveSuite, "velocity", "loss is .* for the velocity of `noised`")
class Negated(FlowMatching):
    def corrupt(self, clean, *, known, noise, generators):
        query = super().corrupt(clean, known=known, noise=noise, generators=generators)
        return replace(query, targets=-query.targets)


@broken(testing.ObjectiveSuite, "velocity", "corrupt did not mix clean values and noise as `noised` does at its timesteps")
class StraightNoised(Cosine):
    def noised(self, clean, start, timestep):
        return FlowMatching.noised(self, clean, start, timestep)


@broken(testing.ObjectiveSuite, "velocity", "corrupt used noise with standard deviation .* for clip 0, .*; expected 1")
class LoudNoise(FlowMatching):
    def corrupt(self, clean, *, known, noise, generators):
        query = super().corrupt(clean, known=known, noise=noise, generators=generators)
        timesteps = query.timesteps[:, None]
        epsilon = query.targets + clean.values.masked_fill(~query.loss_mask[:, None], 0.0)
        return replace(query, inputs=torch.where(query.loss_mask[:, None], query.inputs + timesteps * epsilon, query.inputs))


@broken(testing.ObjectiveSuite, "velocity", "loss is .* for the velocity of `noised`")
class PredictsNoise(FlowMatching):
    def corrupt(self, clean, *, known, noise, generators):
        query = super().corrupt(clean, known=known, noise=noise, generators=generators)
        return replace(query, targets=query.targets + clean.values.masked_fill(~query.loss_mask[:, None], 0.0))


@broken(testing.ObjectiveSuite, "velocity", "loss is .* for the velocity of `noised`")
class HuberOfClean(FlowMatching):
    """A network that predicts the clean values, whose output nothing turns into a velocity."""

    def corrupt(self, clean, *, known, noise, generators):
        query = super().corrupt(clean, known=known, noise=noise, generators=generators)
        return replace(query, targets=clean.values)

    def loss(self, prediction, query):
        mask = query.loss_mask[:, None].expand(query.targets.shape)
        total = nn.functional.huber_loss(prediction[mask], query.targets[mask], reduction="sum")
        return {"velocity": (total, query.loss_mask.sum())}


@broken(testing.ObjectiveSuite, "native", "native does not give back the output that predicted was given")
class ForgetsNative(FlowMatching):
    def predicted(self, output, inputs, timesteps):
        return inputs - output


@broken(testing.SamplerSuite, "timesteps", "the first prediction was asked for at timestep 0.998; expected 1")
class StartsLower(load("sampler", "dpmpp-2m")):
    def __init__(self):
        super().__init__(num_steps=3)
        self.starts_at = 1.0


@broken(testing.SamplerSuite, "batch", "clip 0 gave another result on its own than in a batch of 3")
class DrawsTogether(load("sampler", "pingpong")):
    def sample(self, predict, start, *, generators, begin=1.0, on_step=None):
        return super().sample(predict, start, generators=generators[:1] * len(generators), begin=begin, on_step=on_step)


@broken(testing.SamplerSuite, "batch", "clip 1 gave another result on its own than in a batch of 3")
class DrawsForPadding(load("sampler", "pingpong")):
    def sample(self, predict, start, *, generators, begin=1.0, on_step=None):
        frames = start.values.shape[-1]
        longest = replace(start, lengths=torch.full_like(start.lengths, frames))
        return super().sample(predict, longest, generators=generators, begin=begin, on_step=on_step)


@broken(testing.SamplerSuite, "begin", "timesteps from 1 to 1 were asked for; expected above 0, at most 0.5")
class AlwaysFromNoise(Euler):
    def sample(self, predict, start, *, generators, begin=1.0, on_step=None):
        return super().sample(predict, start, generators=generators, on_step=on_step)


@broken(testing.SamplerSuite, "begin", r"on_step was called 0 times, indices start \[\]; expected 50 times")
class SilentBelowOne(Euler):
    def sample(self, predict, start, *, generators, begin=1.0, on_step=None):
        return super().sample(predict, start, generators=generators, begin=begin, on_step=on_step if begin == 1.0 else None)


@broken(testing.SamplerSuite, "num_evaluations", "one call asked for 50 predictions, but num_evaluations says 5$")
@broken(testing.SamplerSuite, "on_step", r"on_step was called 0 times, indices start \[\]; expected 50 times, with 0 to 49")
class Miscounts(Euler):
    def num_evaluations(self, start):
        return 5

    def sample(self, predict, start, *, generators, begin=1.0, on_step=None):
        return super().sample(predict, start, generators=generators, begin=begin)


@broken(testing.SamplerSuite, "timesteps", "timesteps from 0 to 0 were asked for; expected above 0, at most 1")
@broken(testing.SamplerSuite, "target", "constant velocity ε − x0 did not lead from ε to x0; the largest difference is")
@broken(testing.SamplerSuite, "no_state", "the same call gave other values after another call")
@broken(testing.SamplerSuite, "shape", "the given noise was changed in place")
class Backwards(Sampler):
    num_steps = 1

    def num_evaluations(self, start):
        return 1

    def __init__(self, *, num_steps: int = 1) -> None:
        self.calls = 0

    def sample(self, predict, start, *, generators, begin=1.0, on_step=None):
        self.calls += 1
        values = start.values
        values += self.calls * predict(values, torch.zeros(len(values)))
        return start.with_values(values.clone())


@broken(testing.ObjectiveSuite, "start", "known frames start from other values than the given ones")
class StartsAnew(FlowMatching):
    def start(self, given, known, generators):
        return super().start(given, torch.zeros_like(known), generators)


@broken(testing.ObjectiveSuite, "start", "two seeds gave the same start; expected noise that follows the generators")
class StartsFromZero(FlowMatching):
    def start(self, given, known, generators):
        return given.with_values(given.values * known[:, None])


@broken(testing.ObjectiveSuite, "start", "some cells of frames to make are not HIDDEN at the start", **CODES)
class StartsFromCodes(Masked):
    def start(self, given, known, generators):
        return given.with_values(given.values.clone())


@broken(testing.ObjectiveSuite, "tokens", r"predicts is 'velocity', but the outputs of a token are \(4, 3\); expected a number", **CODES)
class DoesNotSayLogits(Masked):
    predicts = "velocity"


@broken(testing.ObjectiveSuite, "hidden", "targets are given for cells that are not hidden; expected HIDDEN", **CODES)
class AsksForAll(Masked):
    def corrupt(self, clean, *, known, noise, generators):
        return replace(super().corrupt(clean, known=known, noise=noise, generators=generators), targets=clean.values)


@broken(testing.ObjectiveSuite, "hidden", "some cells hold other codes than the clean ones; expected these, or HIDDEN", **CODES)
class HidesAsZero(Masked):
    def corrupt(self, clean, *, known, noise, generators):
        query = super().corrupt(clean, known=known, noise=noise, generators=generators)
        return replace(query, inputs=query.inputs.clamp_min(0))


@broken(testing.ObjectiveSuite, "hidden", r"clip \d has no cell to predict; expected every clip to make to have one", **CODES)
class HidesNoneNowAndThen(Masked):
    def corrupt(self, clean, *, known, noise, generators):
        query = super().corrupt(clean, known=known, noise=noise, generators=generators)
        return replace(query, targets=torch.where(torch.arange(query.targets.shape[2]) < 2, HIDDEN, query.targets))


@broken(testing.ObjectiveSuite, "hidden", "cells of frames that do not count are HIDDEN; expected them clean", **CODES)
class HidesKnown(Masked):
    def corrupt(self, clean, *, known, noise, generators):
        query = super().corrupt(clean, known=known, noise=noise, generators=generators)
        return replace(query, inputs=query.inputs.masked_fill(known[:, None], HIDDEN))


@broken(testing.ObjectiveSuite, "sums", "loss 'masked' of a batch is not the sum over its clips", **CODES)
class MeanOfAllCells(Masked):
    """Counts tokens, but weighs clips by their hidden cells."""

    def loss(self, prediction, query):
        nats = 0.0
        for logits, ids in zip(prediction.split(query.levels, 1), query.targets.unbind(1), strict=True):
            nats = nats + nn.functional.cross_entropy(logits, ids, ignore_index=HIDDEN, reduction="sum")
        count = query.loss_mask.sum()
        return {"masked": (nats * count / (query.targets != HIDDEN).sum().clamp_min(1), count)}


@broken(testing.ObjectiveSuite, "counts", r"loss 'masked' counts \d+; expected 10 frames", **CODES)
class CountsCells(Masked):
    def loss(self, prediction, query):
        return {"masked": (super().loss(prediction, query)["masked"][0], (query.targets != HIDDEN).sum())}


@broken(testing.ObjectiveSuite, "nested", "at timestep 0.5 cells are clean that were hidden at an earlier one", **CODES)
class HidesElsewhere(Masked):
    def noised(self, clean, start, timestep):
        hidden = super().noised(torch.zeros_like(clean), torch.ones_like(start), timestep).bool()
        return torch.where(hidden.roll(round(4 * timestep), -1), start, clean)


@broken(testing.ObjectiveSuite, "nested", "at timestep 0.5 6 cells are hidden, after 6; expected more", **CODES)
class HidesHalf(Masked):
    def noised(self, clean, start, timestep):
        return super().noised(clean, start, {0.0: 0.0, 1.0: 1.0}.get(timestep, 0.4))


class TwiceMasked(Masked):
    """Hides the cells of level 0 also where another level is asked for; asks for the same: keeps every clause."""

    def corrupt(self, clean, *, known, noise, generators):
        query = super().corrupt(clean, known=known, noise=noise, generators=generators)
        return replace(query, inputs=query.inputs.masked_fill((query.inputs == HIDDEN).any(1, keepdim=True), HIDDEN))


class FillsAll(Sampler):
    """One prediction, and the likeliest codes everywhere: `keep` and `sizes` say what it breaks."""

    num_steps, takes, keep, sizes = 2, "logits", True, (3, 4)

    def num_evaluations(self, start):
        return 2

    def sample(self, predict, start, *, generators, begin=1.0, on_step=None):
        values = start.values
        for step in range(2):
            logits = predict(values, torch.full((len(values),), begin / (step + 1)))
            likeliest = torch.stack([one.argmax(1) for one in self.divide(logits)], 1)
            values = torch.where((values != HIDDEN) & self.keep, values, likeliest)
            if on_step is not None:
                on_step(step, values)
        return start.with_values(values)

    def divide(self, logits):
        return logits.split(self.sizes, 1)


@broken(testing.SamplerSuite, "known", "codes given at the start are others after step 0; expected them never to change")
class OverwritesKnown(FillsAll):
    keep = False


@broken(testing.SamplerSuite, "hidden", r"\d+ cells are HIDDEN in the result; expected none")
class LeavesHidden(FillsAll):
    def sample(self, predict, start, *, generators, begin=1.0, on_step=None):
        super().sample(predict, start, generators=generators, begin=begin, on_step=on_step)
        return start


@broken(testing.SamplerSuite, "hidden", "codes of level 0 run from . to [3-6]; expected 0 to 2")
@broken(testing.SamplerSuite, "target", "logits that allow one code in each cell did not lead to these codes")
class DividesElsewhere(FillsAll):
    sizes = (5, 2)


@broken(testing.SamplerSuite, "batch", "clip 1 gave another result on its own than in a batch of 3")
class LooksAtPadding(FillsAll):
    def divide(self, logits):
        return (logits - logits.mean(2, keepdim=True)).split(self.sizes, 1)


def corrupted(change):
    """A class whose queries are changed."""

    class Changed(Autoregressive):
        def corrupt(self, clean, *, known, noise, generators):
            return change(super().corrupt(clean, known=known, noise=noise, generators=generators))

    return Changed


OBJECTIVE, SAMPLER = testing.NextTokenObjectiveSuite, testing.NextTokenSamplerSuite
broken(OBJECTIVE, "shapes", r"inputs are torch\.int32 \[4, 2, 15\]; expected torch\.int64")(
    corrupted(lambda query: replace(query, inputs=query.inputs.int()))
)
broken(OBJECTIVE, "clean", "tokens of clip 0 got timesteps other than 1; expected 1")(
    corrupted(lambda query: replace(query, timesteps=0 * query.timesteps))
)
broken(OBJECTIVE, "corrupts", "clip 0 is shown other ids than `given` says; expected these, or HIDDEN")(
    corrupted(lambda query: replace(query, inputs=torch.where(query.inputs == HIDDEN, query.inputs, query.inputs + 1)))
)
broken(OBJECTIVE, "hidden", r"clip 0 has \d+ hidden cells at the start that are not predicted")(
    corrupted(lambda query: replace(query, targets=query.targets.masked_fill(query.targets == 0, HIDDEN)))
)
broken(OBJECTIVE, "causal", r"place 0 or one before it shows the code of level 0 in frame 0, which comes later")(
    corrupted(lambda query: replace(query, inputs=query.targets))
)
broken(OBJECTIVE, "counts", "loss_mask is not the tokens of which an id is predicted")(
    corrupted(lambda query: replace(query, loss_mask=query.loss_mask.roll(1, 1)))
)


@broken(OBJECTIVE, "counts", "loss 'autoregressive' counts 23, but num_terms says 10")
class CountsFrames(Autoregressive):
    def num_terms(self, spec, frames):
        return frames


@broken(OBJECTIVE, "num_tokens", "the longest clip became 15 tokens, but num_tokens says 14")
class ForgetsTheEnd(Autoregressive):
    def num_tokens(self, spec, frames):
        return 2 * frames

    def _arranged(self, clips, codes):
        return nn.functional.pad(super()._arranged(clips, codes), (0, 1), value=EMPTY)


@broken(OBJECTIVE, "start", r"the spec of the start has codebooks of \(4, 3\); expected all classes, \(5, 3\)")
class StartsWithCodes(Autoregressive):
    def start(self, given, known, generators):
        return replace(super().start(given, known, generators), spec=given.spec)


@broken(OBJECTIVE, "start", "check_known and start do not refuse the same known frames")
class RefusesLate(Autoregressive):
    def check_known(self, known):
        if known.any(1).all() and not known[:, 0].any() and not self.starting:
            return
        super().check_known(known)

    starting = False

    def start(self, given, known, generators):
        self.starting = True
        try:
            return super().start(given, known, generators)
        finally:
            self.starting = False


@broken(OBJECTIVE, "ended", "a clip that ends at token 2 does not have the tokens of a clip of 1 frames")
class EndsWithoutOthers(Autoregressive):
    def start(self, given, known, generators):
        start = super().start(given, known, generators)
        return replace(start, ended=lambda clip, token: start.ended(clip, token)[:, :-1])


def sampled(change):
    """A class whose results are changed."""

    class Changed(NextToken):
        def sample(self, predict, start, **settings):
            return change(super().sample(predict, start, **settings))

    return Changed


@broken(SAMPLER, "takes", "takes is 'logits'; expected next-token. Use SamplerSuite")
class TakesLogits(NextToken):
    takes = "logits"


@broken(SAMPLER, "num_evaluations", "num_evaluations says 12, but there are 11 tokens to draw")
@broken(SAMPLER, "on_step", r"on_step was called \d+ times, indices start \[1, 2, 3\]; expected 0, 1, 2, … and at most 12 times")
class CountsFromOne(NextToken):
    def count_steps(self, start):
        return super().count_steps(start) + 1

    def num_evaluations(self, start):
        return super().num_evaluations(start) + 1

    def sample(self, predict, start, *, on_step=None, **settings):
        counted = None if on_step is None else lambda index, values: on_step(index + 1, values)
        return super().sample(predict, start, on_step=counted, **settings)


@broken(SAMPLER, "settled", "tokens from 1 on of clip 0 were asked for after those before 0; expected no gap")
class SkipsAToken(NextToken):
    def sample(self, predict, start, **settings):
        return super().sample(lambda values, timesteps, *, first=0: predict(values, timesteps, first=first + 1), start, **settings)


@broken(SAMPLER, "settled", "places before 1 do not show clip 0 the token before each of them, but were not asked for again")
class ShowsNoughts(NextToken):
    def sample(self, predict, start, **settings):
        return super().sample(lambda values, *rest, **named: predict(values.clamp(min=0), *rest, **named), start, **settings)


class AsksTwice(NextToken):
    def sample(self, predict, start, **settings):
        def twice(values, timesteps, *, first=0):
            predict(values, timesteps, first=first)
            return predict(values, timesteps, first=first)

        return super().sample(twice, start, **settings)


broken(SAMPLER, "num_evaluations", "one call asked for 22 predictions, but num_evaluations says 11")(AsksTwice)
broken(SAMPLER, "stops", "10 predictions were asked for, although the longest clip ended after 5 tokens")(AsksTwice)


@broken(SAMPLER, "settled", "places before 2 do not show clip 0 the token before each of them, but were not asked for again")
class ShowsNothing(NextToken):
    def sample(self, predict, start, **settings):
        def hidden(values, timesteps, *, first=0):
            return predict(torch.full_like(values, HIDDEN), timesteps, first=first)

        return super().sample(hidden, start, **settings)


@broken(SAMPLER, "begin", r"timesteps \[0\.1.*\] were asked for; expected 1 for each clip")
class AtAnotherTime(NextToken):
    def sample(self, predict, start, *, begin=1.0, **settings):
        return super().sample(predict, start, begin=0.1, **settings)


@broken(SAMPLER, "earliest", r"clip 0 ended at token 0; expected 2 at the earliest")
class EndsAtOnce(NextToken):
    def sample(self, predict, start, **settings):
        return super().sample(predict, replace(start, earliest=0), **settings)


broken(SAMPLER, "hidden", r"\d+ cells are HIDDEN in the result; expected none")(
    sampled(lambda made: replace(made, values=made.values.masked_fill(made.values == 1, HIDDEN)))
)
broken(SAMPLER, "known", "ids given at the start are others in the result; expected them never to change")(
    sampled(lambda made: replace(made, values=made.values.masked_fill(made.values == 1, 0)))
)
broken(SAMPLER, "shape", r"a start of torch\.int64 \[3, 2, 11\] became torch\.int64 \[3, 2, 10\]; expected")(
    sampled(lambda made: replace(made, values=made.values[..., :-1]))
)
broken(SAMPLER, "target", r"clips that end after \(5, 2, 3\) frames have \(11, 11, 11\) tokens; expected \(11, 5, 7\)")(
    sampled(lambda made: replace(made, frames=(11, 11, 11)))
)


class Rolls(NextToken):
    """Draws from a generator of its own, which it keeps."""

    def __init__(self):
        super().__init__()
        self.own = torch.Generator().manual_seed(1)

    def sample(self, predict, start, *, generators, **settings):
        return super().sample(predict, start, generators=[self.own] * len(generators), **settings)


broken(SAMPLER, "no_state", "the same call gave other ids after another call")(Rolls)
broken(SAMPLER, "batch", r"clip \d gave another result on its own than in a batch of 3")(Rolls)


class Two(Dataset):
    def __len__(self):
        return 2

    def item(self, index):
        self.load(index)
        return Item(key="same", num_samples=100, sample_rate=8000)

    def load(self, index):
        return np.full((1, 90), 2.0, np.float32), 8000


class Numbers(Two):
    def item(self, index):
        return Item(key=str(index), num_samples=90, sample_rate=8000, questions=((1, 2),))


class Begins(Two):
    def load_part(self, index, *, first, num_samples):
        return np.full((1, num_samples), 1.0, np.float32), 8000


class Halves(Begins):
    """Says that its clips are encoded, but gives audio, and too few frames, and always the first ones of a part."""

    encoding = Encoding(
        spec=RepresentationSpec(kind="continuous", sample_rate=8000, channels=1, downsampling_ratio=10, latent_dim=2), codec="x"
    )
    frames = 9

    def load_encoded(self, index, *, first=0, num_frames=None):
        frames = self.frames if num_frames is None else num_frames
        return np.tile(np.arange(frames, dtype=np.float32), (2, 1))


class Repeats(Halves):
    frames = 10


broken(testing.DatasetSuite, "load", r"load\(0\) gave audio, although the clips are encoded; expected UnreadableAudioError")(Halves)
broken(testing.DatasetSuite, "encoded", r"gave float32 \[2, 9\]; expected float32 \[2, 10\], as its item says")(Halves)
broken(testing.DatasetSuite, "encoded", r"load_encoded\(0\) from frame 3 on differs from these frames of the clip")(Repeats)
broken(testing.DatasetSuite, "part", "gave 30 samples at 8000 Hz; expected samples 30 to 60 of load")(Begins)
broken(testing.DatasetSuite, "items", r"questions of item 0 are \(\(1, 2\),\); expected a tuple of \(question, answer\)")(Numbers)
broken(testing.DatasetSuite, "keys", "items 0 and 1 are both 'same'; expected unique keys")(Two)
broken(testing.DatasetSuite, "cheap", r"item loaded the clips \[0, 1\]; expected it to decode nothing")(Two)
broken(testing.DatasetSuite, "load", "gave 90 samples at 8000 Hz; its item says 100 at 8000")(Two)
broken(testing.DatasetSuite, "beyond", r"item\(2\) of 2 items gave Item; expected IndexError")(Two)


@broken(testing.FilterSuite, "describe", r"describe\('8000/0.wav'\) returned an item of another clip, 'renamed'")
class Renames(Filter):
    def describe(self, item):
        return replace(item, key="renamed")


@broken(testing.FilterSuite, "describe", r"returned the reason 'no\\nway'; expected one line")
class TwoLines(Filter):
    def describe(self, item):
        return "no\nway"


@broken(testing.FilterSuite, "describe", "gave the captions 'rain'; expected a tuple of texts")
class OneText(Filter):
    def describe(self, item):
        return replace(item, captions="rain")


@broken(testing.FilterSuite, "reject", "reject returned a bool; expected None or a reason")
class SaysYes(Filter):
    def reject(self, item, waveform, sample_rate):
        return True


@broken(testing.FilterSuite, "reject", "reject changed the clip in place; expected no change")
class Normalizes(Filter):
    def reject(self, item, waveform, sample_rate):
        waveform /= max(1e-6, np.abs(waveform).max())


@broken(testing.FilterSuite, "stable", r"describe\('.*'\) differs in another instance")
class EverySecond(Filter):
    def __init__(self):
        self.count = 0

    def describe(self, item):
        self.count += 1
        return item if self.count % 2 else "it is the second"


@broken(testing.FilterSuite, "threads", "four threads got other answers than one")
class SharesACount(Filter):
    def __init__(self):
        self.count = 0

    def reject(self, item, waveform, sample_rate):
        self.count += 1
        return f"it is number {self.count}"


@broken(testing.AugmentationSuite, "tempo", "tempo is 0.0; expected 0.1 to 10")
class StandsStill(Augmentation):
    def tempo(self, draws):
        return 0.0


@broken(testing.AugmentationSuite, "change", r"change of \[1, 1\] gave float64 \[1, 1\]; expected float32 \[1, 1\]")
class Widens(Augmentation):
    def change(self, waveform, sample_rate, draws):
        return waveform * np.float64(0.5)


@broken(testing.AugmentationSuite, "change", r"change of \[2, 777\] gave float32 \[2, 388\]; expected float32 \[2, 777\]")
class Halves2(Augmentation):
    def change(self, waveform, sample_rate, draws):
        return waveform[:, : max(1, waveform.shape[1] // 2)].copy()


@broken(testing.AugmentationSuite, "silence", "change of silence gave samples that are not finite")
class ToFullScale(Augmentation):
    def change(self, waveform, sample_rate, draws):
        with np.errstate(all="ignore"):
            return waveform / np.abs(waveform).max()


@broken(testing.AugmentationSuite, "in_place", "change changed its clip in place; expected a new array")
class InPlace(Augmentation):
    def change(self, waveform, sample_rate, draws):
        waveform *= np.float32(0.5)
        return waveform


@broken(testing.AugmentationSuite, "draws", "the same draws gave different clips in two instances; draw only from `draws`")
class DrawsElsewhere(Augmentation):
    def change(self, waveform, sample_rate, draws):
        return waveform * np.float32(np.random.default_rng().random())


@broken(testing.AugmentationSuite, "threads", "four threads got different clips than one")
class SharedBuffer(Augmentation):
    def __init__(self):
        self.calls = 0

    def change(self, waveform, sample_rate, draws):
        self.calls += 1
        return waveform * np.float32(1 / self.calls)


@broken(testing.AugmentationSuite, "mask", r"mask\(1, 1\) gave bool \(1,\); expected None or bool of this shape")
class OneAxis(Augmentation):
    def mask(self, num_tokens, feature_dim, draws):
        return np.zeros(num_tokens, dtype=np.bool_)


@broken(testing.TrackerSuite, "log", r"log\(0, \{\}\) raised ValueError: .*; expected it to be accepted")
@broken(testing.TrackerSuite, "log_files", "log_files changed or removed tone.wav; expected it to stay")
class Greedy(Tracker):
    def __init__(self, *, run_dir, spec):
        pass

    def log(self, step, metrics):
        max(metrics.values())

    def log_files(self, step, files):
        for path in files:
            path.unlink()


class Scribe(Tracker):
    """Writes what `files` does not name."""

    files = ("notes.*",)

    def __init__(self, *, run_dir, spec):
        self.path = run_dir / "scribe" / "log.txt"

    def log(self, step, metrics):
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_text("x")


broken(testing.TrackerSuite, "files", "files matches 'notes.txt', which it does not write")(Scribe)


@broken(testing.TrackerSuite, "files", r"'scribe/log.txt' was written, but files is \(\); expected a pattern that matches it")
class Unnamed(Scribe):
    files = ()


@broken(testing.TrackerSuite, "files", "files has '../run'; expected a pattern relative to the run directory")
class Elsewhere(Scribe):
    files = ("../run",)


@broken(testing.TrackerSuite, "close", "close before begin raised AttributeError: .*; expected it to be accepted")
@broken(testing.TrackerSuite, "resumes", "a tracker from step 2 on in one run directory raised ValueError: .*; expected it to be accepted")
class OnlyOnce(Scribe):
    def begin(self, step):
        if step:
            raise ValueError("begins at 0 only")
        self.begun = True

    def close(self):
        assert self.begun


@broken(testing.OptimizerSuite, "groups", "'embedding.weight' is in 0 groups; expected 1")
class LeavesTheEmbedding(AdamW):
    def build(self, parameters, settings):
        return super().build({name: p for name, p in parameters.items() if not name.startswith("embedding")}, settings)


class Counting(torch.optim.SGD):
    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.steps = 0

    def step(self, closure=None):
        self.steps += 1
        for group in self.param_groups:
            group["lr"] = 0.02 / self.steps
        super().step(closure)


@broken(testing.OptimizerSuite, "rate", "'embedding.weight' moved at lr 0")
@broken(testing.OptimizerSuite, "state", "'embedding.weight' moved differently with the state of another optimizer")
class CountsForItself(Optimizer):
    def build(self, parameters, settings):
        return Counting(parameters.values(), lr=settings.lr)


@broken(testing.OptimizerSuite, "sharded", "shards is False, but build took sharded parameters; expected it to raise SpecError")
class TakesShards(AdamW):
    shards = False


@broken(testing.OptimizerSuite, "sharded", "raised RuntimeError: one process, please")
class RefusesAsItLikes(AdamW):
    shards = False

    def build(self, parameters, settings):
        if any(isinstance(p, DTensor) for p in parameters.values()):
            raise RuntimeError("one process, please")
        return super().build(parameters, settings)


@broken(testing.OptimizerSuite, "sharded", "sharded, 'embedding.weight' moved differently than whole")
class ForgetsShards(AdamW):
    def build(self, parameters, settings):
        sharded = any(isinstance(p, DTensor) for p in parameters.values())
        return super().build(parameters, replace(settings, lr=2 * settings.lr) if sharded else settings)


class Skipping(torch.optim.Optimizer):
    """Steps along an average of gradients, and declares that it can skip a step on the device."""

    _step_supports_amp_scaling = True

    def __init__(self, parameters, settings):
        super().__init__(parameters.values(), {"lr": settings.lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, group["lr"], getattr(self, "found_inf", torch.tensor(0.0)))

    def update(self, p, rate, skipped):
        average = self.state[p].setdefault("average", torch.zeros_like(p))
        average.lerp_(p.grad, 0.5)
        p.sub_(rate * average)


class Multiplies(Skipping):
    """Zero times NaN is NaN."""

    def update(self, p, rate, skipped):
        p.sub_(rate * (1.0 - skipped) * p.grad)


class KeepsWeightsOnly(Skipping):
    def update(self, p, rate, skipped):
        before = p.clone()
        super().update(p, rate, skipped)
        p.copy_(torch.where(skipped.bool(), before, p))


class CountsSkipped(Skipping):
    """Counts steps, whether they are taken or not."""

    def update(self, p, rate, skipped):
        self.state[p]["step"] = self.state[p].get("step", torch.tensor(0.0)) + 1.0
        if not skipped:
            super().update(p, rate, skipped)


class SkipsAtZero(Skipping):
    def step(self, closure=None):
        if not hasattr(self, "found_inf"):
            super().step(closure)


@broken(testing.OptimizerSuite, "skips", "'embedding.weight' moved in a step with found_inf 1.0 and gradients of nan")
class DeclaresMore(Optimizer):
    rule = Skipping

    def build(self, parameters, settings):
        return self.rule(parameters, settings)


@broken(testing.OptimizerSuite, "skips", "'embedding.weight' moved in a step with found_inf 1.0 and gradients of nan")
class MultipliesByZero(DeclaresMore):
    rule = Multiplies


@broken(testing.OptimizerSuite, "skips", "moved differently after a skipped step and with found_inf 0.0")
class KeepsNoState(DeclaresMore):
    rule = KeepsWeightsOnly


@broken(testing.OptimizerSuite, "skips", "'step' of 'embedding.weight' changed in a step with found_inf 1.0 and gradients of inf")
class CountsWhatItSkips(DeclaresMore):
    rule = CountsSkipped


@broken(testing.OptimizerSuite, "skips", "'embedding.weight' moved differently after a skipped step and with found_inf 0.0")
class TakesZeroForOne(DeclaresMore):
    rule = SkipsAtZero


@broken(testing.OptimizerSuite, "learns", r"60 steps took a loss of \S+ to \S+; expected half")
class Ascends(Optimizer):
    def build(self, parameters, settings):
        return torch.optim.SGD(parameters.values(), lr=settings.lr, maximize=True)


def suite_of(base, cls, **attributes):
    return type("Suite", (base,), {"make": lambda self, **runtime: cls(**runtime), **attributes})


@pytest.mark.parametrize(("base", "cls", "clause", "message"), BROKEN)
def test_a_broken_clause_is_named(base, cls, clause, message):
    with pytest.raises(AssertionError, match=f"^{base.__name__}.{clause}: .*{message}") as caught:
        getattr(suite_of(base, cls)(), f"test_{clause}")()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cls", [Cosine, load("objective", "x-prediction")])
def test_other_paths_and_other_networks_keep_every_clause(cls):
    suite = suite_of(testing.ObjectiveSuite, cls)()
    for name in dir(suite):
        if name.startswith("test_"):
            getattr(suite, name)()


def test_every_kind_has_a_broken_plugin():
    assert {parameters.values[0].__name__ for parameters in BROKEN} == set(testing.__all__)


@pytest.mark.parametrize("cls", [Masked, TwiceMasked])
def test_other_masks_keep_every_clause(cls):
    suite = suite_of(testing.ObjectiveSuite, cls, **CODES)()
    for name in dir(suite):
        if name.startswith("test_"):
            getattr(suite, name)()


PLUGIN = """
from soundomni.core.spec.registry import load
from soundomni.testing import SamplerSuite

class Miscounts(load("sampler", "euler")):
    def num_evaluations(self, start):
        return 5

class TestMiscounts(SamplerSuite):
    known_failures = {KNOWN}

    def make(self):
        return Miscounts(num_steps=4)

class TestMended(TestMiscounts):
    known_failures = {}

    def make(self):
        return load("sampler", "euler")(num_steps=4)
"""


def run(pytester, known):
    pytester.makepyfile(PLUGIN.replace("{KNOWN}", repr(known)))
    return pytester.runpytest_inprocess("--strict-markers", "--strict-config", "-p", "no:cacheprovider", "-rxX")


def test_a_known_failure_is_expected_with_its_reason_and_not_in_subclasses_without_it(pytester):
    result = run(pytester, {"num_evaluations": "counts one too many"})
    result.assert_outcomes(passed=25, xfailed=1)
    result.stdout.fnmatch_lines(["XFAIL *TestMiscounts::test_num_evaluations*counts one too many*"])


def test_a_known_failure_that_passes_is_a_failure(pytester):
    run(pytester, {"num_evaluations": "counts one too many", "shape": "casts"}).assert_outcomes(passed=24, xfailed=1, failed=1)


def test_a_failure_that_is_not_known_fails_with_its_message(pytester):
    result = run(pytester, {})
    result.assert_outcomes(passed=25, failed=1)
    result.stdout.fnmatch_lines(["*SamplerSuite.num_evaluations: one call asked for 4 predictions, but num_evaluations says 5"])


def test_a_known_failure_that_breaks_otherwise_is_a_failure(pytester):
    pytester.makepyfile(
        """
        from soundomni.testing import SamplerSuite

        class TestAbsent(SamplerSuite):
            known_failures = {"no_state": "remembers the last call"}

            def make(self):
                from soundomni_absent import Sampler
        """
    )
    pytester.runpytest_inprocess("-p", "no:cacheprovider", "-k", "no_state").assert_outcomes(failed=1)


def test_a_known_failure_of_no_clause_is_refused():
    with pytest.raises(TypeError, match=r"names 'on_steps'. Did you mean 'on_step'\? Clauses: batch, begin, constructor"):
        type("Suite", (testing.SamplerSuite,), {"known_failures": {"on_steps": "?"}})
