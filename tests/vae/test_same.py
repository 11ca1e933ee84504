"""SAME against an independent functional rendering of Stability's source in double precision, and against diffusers."""

import math

import pytest
import torch
from same_files import HEAD, LATENT, PATCH, RATE, RATIO, STRIDE, WIDTH, config, tensors, write
from torch import Tensor
from torch.nn import functional as F

from soundomni.core.errors import CheckpointError, DataError, SpecError
from soundomni.core.representation import Representation
from soundomni.vae import SameCodec, SameTransformer
from soundomni.vae.checkpoints.same import import_same
from soundomni.vae.checkpoints.same_export import export_same
from soundomni.vae.same_attention import rotated

BOTH = pytest.mark.parametrize("large", [False, True], ids=["small", "large"])


@pytest.fixture
def codec(tmp_path, large) -> SameCodec:
    return import_same(write(tmp_path / "source", tensors(large), config(large))).codec()


class Functional:
    """The architecture written from its description, one clip at a time over a plain dictionary of tensors, with dense
    masks."""

    def __init__(self, large: bool) -> None:
        self.state = {name: tensor.double() for name, tensor in tensors(large).items()}
        self.large = large

    def norm(self, x: Tensor, name: str) -> Tensor:
        return self.state[f"{name}.gamma"] * torch.tanh(self.state[f"{name}.alpha"] * x) + self.state[f"{name}.beta"]

    def mapping(self, x: Tensor, block: str) -> Tensor:
        g, v = self.state[f"{block}.mapping.weight_g"], self.state[f"{block}.mapping.weight_v"]
        weight = g * v / v.square().sum((1, 2), keepdim=True).sqrt()
        return F.conv1d(x.T[None], weight, self.state[f"{block}.mapping.bias"], padding=v.shape[-1] // 2)[0].T

    def turn(self, x: Tensor) -> Tensor:
        """Rotate the first half of heads `[H, L, E]`, as complex numbers."""
        quarter = HEAD // 4
        angles = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
        turned = torch.complex(x[..., :quarter], x[..., quarter : 2 * quarter]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([turned.real, turned.imag, x[..., 2 * quarter :]], dim=-1)

    def layer(self, x: Tensor, name: str, allowed: Tensor, sine: bool) -> Tensor:
        heads = (self.norm(x, f"{name}.pre_norm") @ self.state[f"{name}.self_attn.to_qkv.weight"].T).chunk(5, dim=-1)
        q, k, v, q2, k2 = (part.unflatten(-1, (-1, HEAD)).transpose(0, 1) for part in heads)
        out = torch.zeros_like(v)
        for sign, query, key in ((1, q, k), (-1, q2, k2)):
            query, key = (
                self.turn(self.norm(query, f"{name}.self_attn.q_norm")),
                self.turn(self.norm(key, f"{name}.self_attn.k_norm")),
            )
            scores = (query @ key.mT / math.sqrt(HEAD)).masked_fill(~allowed, -math.inf)
            out = out + sign * scores.softmax(-1) @ v
        x = x + out.transpose(0, 1).flatten(1) @ self.state[f"{name}.self_attn.to_out.weight"].T
        wide = self.norm(x, f"{name}.ff_norm") @ self.state[f"{name}.ff.ff.0.proj.weight"].T + self.state[f"{name}.ff.ff.0.proj.bias"]
        value, gate = wide.chunk(2, dim=-1)
        value = value * (torch.sin(math.pi * gate) if sine else gate * torch.sigmoid(gate))
        return x + value @ self.state[f"{name}.ff.ff.2.weight"].T + self.state[f"{name}.ff.ff.2.bias"]

    def transform(self, x: Tensor, block: str, sines: int) -> Tensor:
        """Map tokens `[L, C]`, in groups of STRIDE + 1, through four layers."""
        tokens = STRIDE + 1
        for i in range(4):
            if i == 2 and not self.large:
                x = torch.cat([x[:tokens], x, x[-tokens:]])
            place = torch.arange(len(x))
            chunk = place // (2 * tokens)
            allowed = (place - place[:, None]).abs() <= tokens if self.large else chunk == chunk[:, None]
            x = self.layer(x, f"{block}.transformers.{i}", allowed, sine=i >= 4 - sines)
        return x if self.large else x[tokens:-tokens]

    def encode(self, waveform: Tensor) -> Tensor:
        unit = RATIO if self.large else 2 * RATIO
        padded = F.pad(waveform.double(), (0, -waveform.shape[-1] % unit))
        patches = padded.unflatten(-1, (-1, PATCH)).permute(1, 0, 2).flatten(1)
        groups = self.mapping(patches, "encoder.layers.0").unflatten(0, (-1, STRIDE))
        new = self.state["encoder.layers.0.new_tokens"].expand(len(groups), 1, -1)
        x = self.transform(torch.cat([groups, new], 1).flatten(0, 1), "encoder.layers.0", 0)[STRIDE :: STRIDE + 1]
        x = x @ self.state["encoder.layers.2.weight"].T + self.state["encoder.layers.2.bias"]
        latents = (x.T * self.state["bottleneck.scaling_factor"][0] + self.state["bottleneck.bias"][0]) / 1.7
        return latents[:, : -(-waveform.shape[-1] // RATIO)]

    def decode(self, latents: Tensor) -> Tensor:
        x = (latents.double() * 1.7).T @ self.state["decoder.layers.1.weight"].T + self.state["decoder.layers.1.bias"]
        x = F.pad(x, (0, 0, 0, 0 if self.large else len(x) % 2))
        new = self.state["decoder.layers.3.new_tokens"].expand(len(x), STRIDE, -1)
        groups = self.transform(torch.cat([x[:, None], new], 1).flatten(0, 1), "decoder.layers.3", 2 if self.large else 0)
        patches = self.mapping(groups.unflatten(0, (-1, STRIDE + 1))[:, 1:].flatten(0, 1), "decoder.layers.3")
        return patches.unflatten(1, (2, PATCH)).permute(1, 0, 2).flatten(1)[:, : latents.shape[-1] * RATIO]


@BOTH
@pytest.mark.parametrize("samples", [1, RATIO, 2 * RATIO - 3, 7 * RATIO, 20 * RATIO + 5])
@torch.no_grad()
def test_equals_the_functional_form(codec, large, samples):
    reference, waveform = Functional(large), torch.randn(1, 2, samples)
    encoded = codec.encode(waveform, torch.tensor([samples]))
    torch.testing.assert_close(encoded.values[0].double(), reference.encode(waveform[0]), atol=2e-5, rtol=1e-5)
    latents = torch.randn(1, LATENT, -(-samples // RATIO))
    decoded = codec.decode(Representation(latents, torch.tensor([latents.shape[-1]]), codec.spec))
    assert decoded.shape == (1, 2, latents.shape[-1] * RATIO)
    torch.testing.assert_close(decoded[0].double(), reference.decode(latents[0]), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("large", [True])
@torch.no_grad()
def test_equals_diffusers(codec, large, tmp_path):
    """AutoencoderSAME, of which no eps has to be corrected: SAME has a tanh where the diffusion transformer has
    norms."""
    import diffusers

    arguments = import_same(tmp_path / "source").config.init_args
    (tmp_path / "out").mkdir()
    export_same(codec, arguments, tmp_path / "out", "diffusers-same")
    theirs = diffusers.AutoencoderSAME.from_pretrained(tmp_path / "out").eval()
    waveform, latents = torch.randn(2, 2, 9 * RATIO), torch.randn(2, LATENT, 9)
    lengths = torch.tensor([9 * RATIO] * 2)
    expected = theirs.encode(waveform).latents
    torch.testing.assert_close(codec.encode(waveform, lengths).values, expected, atol=1e-5, rtol=1e-5)
    decoded = codec.decode(Representation(latents, torch.tensor([9, 9]), codec.spec))
    torch.testing.assert_close(decoded, theirs.decode(latents).sample, atol=1e-5, rtol=1e-5)


def test_full_sizes_are_the_published_ones():
    """Stability's files have 472 and 244 tensors: besides ours a rotary table in each layer, and an empty one."""
    with torch.device("meta"):
        small = SameCodec()
        large = SameCodec(
            base_channels=256,
            decoder_kernel=1,
            transformer=SameTransformer(num_layers=(12,), sine_layers=(7,), window=(1, 1)),
        )
    assert sum(t.numel() for t in large.state_dict().values()) == 852_127_457 - 24 * 16
    assert (len(large.state_dict()), len(small.state_dict())) == (472 - 25, 244 - 13)
    for codec in (small, large):
        assert (codec.spec.downsampling_ratio, codec.spec.latent_dim, codec.spec.sample_rate) == (4096, 256, 44100)
    assert (small.receptive_field.encode, small.receptive_field.decode, small.receptive_field.step) == (2, 3, 2)
    assert (large.receptive_field.encode, large.receptive_field.decode, large.receptive_field.step) == (12, 12, 1)


@BOTH
@torch.no_grad()
def test_a_batch_holds_each_clip_as_it_is_on_its_own(codec, large):
    lengths = [RATIO, 3 * RATIO + 1, 1, 12 * RATIO - 2]
    waveform = torch.randn(4, 2, max(lengths) + 7)  # there is garbage beyond each clip
    together = codec.encode(waveform, torch.tensor(lengths))
    decoded = codec.decode(together)
    for i, length in enumerate(lengths):
        alone = codec.encode(waveform[i : i + 1, :, :length], torch.tensor([length]))
        frames = alone.values.shape[-1]
        torch.testing.assert_close(together.values[i, :, :frames], alone.values[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(decoded[i, :, : frames * RATIO], codec.decode(alone)[0], atol=1e-5, rtol=0)
        assert not decoded[i, :, frames * RATIO :].any() and not together.values[i, :, frames:].any()


@BOTH
def test_looks_as_far_as_it_says_and_no_farther(codec, large):
    field, frames = codec.receptive_field, 25
    latents = torch.randn(1, LATENT, frames, requires_grad=True)
    decoded = codec.decode(Representation(latents, torch.tensor([frames]), codec.spec))
    waveform = torch.randn(1, 2, frames * RATIO, requires_grad=True)
    encoded = codec.encode(waveform, torch.tensor([frames * RATIO])).values
    reached = {"encode": 0, "decode": 0}
    for frame in (12, 13):
        (by_latent,) = torch.autograd.grad(decoded[..., frame * RATIO : (frame + 1) * RATIO].sum(), latents, retain_graph=True)
        (by_sample,) = torch.autograd.grad(encoded[..., frame].sum(), waveform, retain_graph=True)
        for name, gradient in (("encode", by_sample.unflatten(-1, (-1, RATIO)).abs().sum(-1)), ("decode", by_latent)):
            seen = gradient[0].abs().sum(0).nonzero()[:, 0]
            reached[name] = max(reached[name], int((seen - frame).abs().max()))
    assert reached["encode"] == field.encode
    assert field.decode - 1 <= reached["decode"] <= field.decode  # a position beyond a frame counts as a frame


def test_positions_only_matter_relative_to_each_other():
    query, key = torch.randn(5, 16, dtype=torch.float64), torch.randn(5, 16, dtype=torch.float64)
    scores = rotated(query, first=3) @ rotated(key).mT
    torch.testing.assert_close(rotated(query, first=1003) @ rotated(key, first=1000).mT, scores, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(rotated(query) @ rotated(key).mT, scores, atol=1e-2)


@BOTH
@torch.no_grad()
def test_no_clip_and_clips_without_a_frame(codec, large):
    assert codec.encode(torch.zeros(0, 2, RATIO), torch.zeros(0, dtype=torch.int64)).values.shape == (0, LATENT, 1)
    latents, lengths = torch.randn(2, LATENT, 3), torch.tensor([0, 3])
    decoded = codec.decode(Representation(latents, lengths, codec.spec))
    assert not decoded[0].any() and decoded[1].isfinite().all() and decoded[1].any()


SIZES = {
    "sample_rate": RATE,
    "patch_size": PATCH,
    "base_channels": WIDTH,
    "channel_multiples": (1,),
    "strides": (STRIDE,),
    "latent_dim": 2,
}
TINY = {"num_layers": (1,), "head_dim": HEAD, "chunk_size": 8}


@pytest.mark.parametrize(
    ("changes", "transformer", "told"),
    [
        ({"strides": (2, 4)}, {}, "expected lists of the same length, with at least one entry"),
        ({"strides": (1,)}, {}, r"strides is \[1\]; expected strides from 2 to 1024"),
        ({"base_channels": 12}, {}, "a block is 12 channels wide; expected a multiple of transformer.head_dim, 8"),
        ({"decoder_kernel": 5}, {}, "decoder_kernel is 5; expected 1 or 3"),
        ({"latent_dim": 0}, {}, "latent_dim is 0; expected"),
        ({}, {"chunk_size": 12}, r"transformer.chunk_size is 12; expected a multiple of twice every stride, \[4\]"),
        ({}, {"head_dim": 6}, "transformer.head_dim is 6; expected a multiple of 4"),
        ({}, {"window": (1, -1)}, r"transformer.window is \[1, -1\]; expected two numbers of groups from 0"),
        (
            {},
            {"sine_layers": (2,)},
            r"transformer.sine_layers is \[2\]; expected 1 numbers from 0 up to the number of layers in num_layers, \[1\]",
        ),
        ({}, {"num_layers": (0,)}, "transformer.num_layers is 0; expected"),
    ],
)
def test_refuses_wrong_sizes(changes, transformer, told):
    with pytest.raises(SpecError, match=told) as caught:
        SameCodec(**{**SIZES, **changes}, transformer=SameTransformer(**{**TINY, **transformer}))
    assert "\n" not in str(caught.value)


def test_refuses_other_shapes(tmp_path):
    codec = SameCodec(**SIZES, transformer=SameTransformer(**TINY))
    with pytest.raises(DataError, match=r"\[B, 2, S\]"):
        codec.encode(torch.zeros(1, 1, 64), torch.tensor([64]))
    with pytest.raises(DataError, match=r"\[B, 2, T\]"):
        codec.decode(Representation(torch.zeros(1, 3, 4), torch.tensor([4]), codec.spec))
    with pytest.raises(CheckpointError, match="no weights at"):
        SameCodec(**SIZES, transformer=SameTransformer(**TINY), weights=str(tmp_path / "absent.safetensors"))


def test_is_frozen_and_has_nothing_to_train():
    codec = SameCodec(**SIZES, transformer=SameTransformer(**TINY))
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    with pytest.raises(TypeError, match="nothing to train"):
        codec.reconstruct(torch.zeros(1, 2, 64), torch.tensor([64]), [torch.Generator()])
