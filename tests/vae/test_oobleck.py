"""Oobleck against an independent functional rendering of the architecture in double precision, and clip by clip."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from soundomni.core.errors import CheckpointError, DataError, SpecError
from soundomni.core.representation import Representation, length_mask
from soundomni.vae import OobleckCodec, SnakeBeta
from soundomni.vae.bottleneck import DiagonalGaussian

TINY = {"sample_rate": 8000, "channels": 1, "base_channels": 4, "channel_multiples": (1, 2), "strides": (2, 4), "latent_dim": 3}


def tiny(seed: int = 0, **changes) -> OobleckCodec:
    """A small codec whose every parameter is away from where it starts, biases and snakes included."""
    torch.manual_seed(seed)
    codec = OobleckCodec(**{**TINY, **changes})
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return codec


class Functional:
    """The architecture written from its description, over a plain dictionary of tensors."""

    def __init__(self, codec: OobleckCodec, strides: tuple[int, ...], final_tanh: bool = False) -> None:
        self.state = {k: v.detach().double() for k, v in codec.state_dict().items()}
        self.strides, self.final_tanh = strides, final_tanh

    def weight(self, name: str) -> Tensor:
        g, v = (self.state[f"{name}.parametrizations.weight.original{i}"] for i in (0, 1))
        return g * v / v.pow(2).sum((1, 2), keepdim=True).sqrt()

    def conv(self, x: Tensor, name: str, **options) -> Tensor:
        return F.conv1d(x, self.weight(name), self.state.get(f"{name}.bias"), **options)

    def snake(self, x: Tensor, name: str) -> Tensor:
        a, b = (self.state[f"{name}.{p}"][None, :, None] for p in ("alpha", "beta"))
        return x + torch.sin(torch.exp(a) * x) ** 2 / (torch.exp(b) + 1e-9)

    def residual(self, x: Tensor, name: str, dilation: int) -> Tensor:
        y = self.conv(self.snake(x, f"{name}.layers.0"), f"{name}.layers.1", padding=3 * dilation, dilation=dilation)
        return x + self.conv(self.snake(y, f"{name}.layers.2"), f"{name}.layers.3")

    def encode(self, x: Tensor) -> Tensor:
        x = self.conv(x, "encoder.layers.0", padding=3)
        for i, s in enumerate(self.strides, start=1):
            for j, dilation in enumerate((1, 3, 9)):
                x = self.residual(x, f"encoder.layers.{i}.layers.{j}", dilation)
            x = self.snake(x, f"encoder.layers.{i}.layers.3")
            x = self.conv(x, f"encoder.layers.{i}.layers.4", stride=s, padding=math.ceil(s / 2))
        n = len(self.strides)
        return self.conv(self.snake(x, f"encoder.layers.{n + 1}"), f"encoder.layers.{n + 2}", padding=1)

    def decode(self, z: Tensor) -> Tensor:
        x = self.conv(z, "decoder.layers.0", padding=3)
        for i, s in enumerate(reversed(self.strides), start=1):
            name = f"decoder.layers.{i}.layers"
            options = {"stride": s, "padding": math.ceil(s / 2), "output_padding": s % 2}
            x = F.conv_transpose1d(self.snake(x, f"{name}.0"), self.weight(f"{name}.1"), self.state[f"{name}.1.bias"], **options)
            for j, dilation in enumerate((1, 3, 9), start=2):
                x = self.residual(x, f"{name}.{j}", dilation)
        n = len(self.strides)
        x = self.conv(self.snake(x, f"decoder.layers.{n + 1}"), f"decoder.layers.{n + 2}", padding=3)
        return torch.tanh(x) if self.final_tanh else x


def test_the_full_size_is_stable_audios():
    with torch.device("meta"):
        codec = OobleckCodec()
    assert sum(p.numel() for p in codec.parameters()) == 156_112_514
    assert len(codec.state_dict()) == len(list(codec.parameters())) == 365
    assert (codec.spec.downsampling_ratio, codec.spec.latent_dim, codec.spec.sample_rate) == (2048, 64, 44100)
    assert codec.state_dict()["encoder.layers.7.parametrizations.weight.original1"].shape == (128, 2048, 3)
    assert codec.state_dict()["decoder.layers.0.parametrizations.weight.original1"].shape == (2048, 64, 7)


@pytest.mark.parametrize(("strides", "tanh"), [((2, 4), False), ((3, 5), True), ((2, 3), False)])
def test_equals_the_functional_form(strides, tanh):
    codec = tiny(strides=strides, final_tanh=tanh, channels=2)
    reference = Functional(codec, strides, tanh)
    ratio = math.prod(strides)
    waveform = torch.randn(2, 2, 6 * ratio)
    out = codec.encode(waveform, torch.full((2,), 6 * ratio))
    torch.testing.assert_close(out.values.double(), reference.encode(waveform.double())[:, :3], atol=1e-5, rtol=1e-5)
    latent = torch.randn(2, 3, 6)
    decoded = codec.decode(Representation(latent, torch.tensor([6, 6]), codec.spec))
    assert decoded.shape == (2, 2, 6 * ratio)
    torch.testing.assert_close(decoded.double(), reference.decode(latent.double()), atol=1e-5, rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 120), min_size=1, max_size=4),
    strides=st.sampled_from([(2, 4), (3, 2), (5, 3)]),
    use_snake=st.booleans(),
)
def test_every_clip_comes_out_as_if_alone(lengths, strides, use_snake):
    codec = tiny(strides=strides, use_snake=use_snake)
    waveform = torch.randn(len(lengths), 1, max(lengths) + 7)  # beyond each clip lies garbage
    with torch.no_grad():
        together = codec.encode(waveform, torch.tensor(lengths))
        decoded = codec.decode(together)
        assert decoded.shape[-1] >= codec.spec.num_samples(together.values.shape[-1])
        for i, length in enumerate(lengths):
            alone = codec.encode(waveform[i : i + 1, :, :length], torch.tensor([length]))
            frames = codec.spec.num_frames(length)
            assert together.lengths[i] == alone.lengths[0] == alone.values.shape[-1] == frames
            torch.testing.assert_close(together.values[i, :, :frames], alone.values[0], atol=1e-5, rtol=0)
            samples = frames * codec.spec.downsampling_ratio
            torch.testing.assert_close(decoded[i, :, :samples], codec.decode(alone)[0], atol=1e-5, rtol=0)
            assert not decoded[i, :, samples:].any()


def test_encodes_to_the_mean_or_to_a_sample():
    waveform, lengths = torch.randn(1, 1, 4000), torch.tensor([4000])
    mean, sampled = tiny(), tiny(sample_latents=True)
    torch.testing.assert_close(mean.encode(waveform, lengths).values, mean.encode(waveform, lengths).values, atol=0, rtol=0)
    with torch.no_grad():
        posterior = DiagonalGaussian.from_parameters(Functional(mean, (2, 4)).encode(waveform.double()))
        drawn = sampled.encode(waveform, lengths, [torch.Generator().manual_seed(1)]).values
        noise = (drawn - posterior.mean) / posterior.std
    assert torch.equal(sampled.encode(waveform, lengths).values, sampled.encode(waveform, lengths).values)
    assert noise.mean().abs() < 0.1 and abs(noise.std() - 1) < 0.1


def test_divergence_is_twice_that_of_torch_distributions():
    posterior = DiagonalGaussian.from_parameters(torch.randn(2, 6, 5, dtype=torch.float64))
    normal = torch.distributions.Normal(posterior.mean, posterior.std)
    expected = 2 * torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(posterior.divergence(), expected)
    silent = DiagonalGaussian.from_parameters(torch.full((1, 2, 1), -1e4))
    assert silent.std.item() == pytest.approx(1e-4) and silent.divergence().isfinite().all()


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in range(count)]


def test_a_batch_is_estimated_as_its_clips_are():
    codec = tiny(channels=2, kl_weight=0.5)
    lengths = [20, 100, 57]
    waveform = torch.randn(3, 2, 100)
    together, terms = codec.reconstruct(waveform, torch.tensor(lengths), generators(3))
    alone = [codec.reconstruct(waveform[i : i + 1, :, :n], torch.tensor([n]), generators(3)[i : i + 1]) for i, n in enumerate(lengths)]
    for i, (estimate, _) in enumerate(alone):
        torch.testing.assert_close(together[i : i + 1, :, : lengths[i]], estimate, atol=1e-5, rtol=1e-5)
    assert terms.keys() == {"kl", "latent/power"} and codec.loss_names == ("kl",)
    for name, (total, count) in terms.items():
        assert count == sum(own[name][1] for _, own in alone)
        torch.testing.assert_close(total, sum(own[name][0] for _, own in alone), atol=1e-4, rtol=1e-4)
    assert terms["kl"][1] == sum(codec.spec.num_frames(n) for n in lengths)
    latents = [codec.encode(waveform[i : i + 1, :, :n], torch.tensor([n])).values for i, n in enumerate(lengths)]
    torch.testing.assert_close(terms["latent/power"][0], sum(latent.square().sum() for latent in latents), atol=1e-4, rtol=1e-4)


def test_a_small_one_learns():
    torch.manual_seed(0)
    codec = OobleckCodec(**{**TINY, "base_channels": 8})
    time = torch.arange(256) / 8000
    waveform = torch.stack([torch.sin(2 * torch.pi * f * time) for f in (200.0, 450.0, 800.0)])[:, None]
    lengths = torch.tensor([256, 256, 200])
    optimizer = torch.optim.Adam(codec.parameters(), lr=5e-3)
    history = []
    for step in range(60):
        drawn = [torch.Generator().manual_seed(3 * step + i) for i in range(3)]
        estimate, terms = codec.reconstruct(waveform, lengths, drawn)
        error = (estimate - waveform).abs()[length_mask(lengths, 256)[:, None]].mean()
        history.append(error.item())
        optimizer.zero_grad()
        (10 * error + terms["kl"][0] / terms["kl"][1]).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in codec.parameters())
        optimizer.step()
    assert history[-1] < 0.5 * history[0]


def test_half_precision_stays_near_and_keeps_latents_in_float32():
    codec = OobleckCodec(**TINY)
    waveform, lengths = torch.randn(2, 1, 128), torch.tensor([128, 100])
    full, terms = codec.reconstruct(waveform, lengths, generators(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, half_terms = codec.reconstruct(waveform, lengths, generators(2))
        assert codec.encode(waveform, lengths).values.dtype == torch.float32
    torch.testing.assert_close(half.float(), full, rtol=0.05, atol=0.05)
    for name, (total, count) in half_terms.items():
        assert total.dtype == torch.float32
        torch.testing.assert_close(total / count, terms[name][0] / count, rtol=0.05, atol=1e-3)


def test_silence_trains_without_infinities():
    codec = tiny()
    estimate, terms = codec.reconstruct(torch.zeros(1, 1, 128), torch.tensor([128]), generators(1))
    (estimate.abs().mean() + terms["kl"][0]).backward()
    assert all(p.grad.isfinite().all() for p in codec.parameters())


def test_weights_load_and_give_the_same_latents(tmp_path):
    codec = tiny(seed=3)
    save_file(codec.state_dict(), tmp_path / "codec.safetensors")
    loaded = OobleckCodec(**TINY, weights=str(tmp_path / "codec.safetensors"))
    waveform, lengths = torch.randn(1, 1, 64), torch.tensor([64])
    torch.testing.assert_close(loaded.encode(waveform, lengths).values, codec.encode(waveform, lengths).values, atol=0, rtol=0)


def test_weights_that_do_not_fit_are_told(tmp_path):
    path = tmp_path / "codec.safetensors"
    save_file({**tiny().state_dict(), "extra": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"1 unexpected \(extra\)") as caught:
        OobleckCodec(**TINY, weights=str(path))
    assert "missing" not in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"of another shape \(decoder.*\[4, 8, 3\]|of another shape"):
        OobleckCodec(**{**TINY, "latent_dim": 5}, weights=str(path))
    save_file({"encoder.layers.0.bias": torch.zeros(4)}, path)
    with pytest.raises(CheckpointError, match=r"missing \(decoder.layers.0.bias, .*\.\.\.\)"):
        OobleckCodec(**TINY, weights=str(path))
    path.write_bytes(b"not tensors")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        OobleckCodec(**TINY, weights=str(path))
    with pytest.raises(CheckpointError, match="no weights at"):
        OobleckCodec(**TINY, weights=str(tmp_path / "absent.safetensors"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"strides": (2, 4, 4)}, "expected lists of the same length"),
        ({"strides": (1, 4)}, "expected strides from 2 to 1024"),
        ({"latent_dim": 0}, "expected at least 1"),
        ({"sample_rate": 0}, "at least 1"),
    ],
)
def test_refuses_wrong_sizes(changes, told):
    with pytest.raises(SpecError, match=told):
        OobleckCodec(**{**TINY, **changes})


def test_refuses_another_channel_count():
    with pytest.raises(DataError, match=r"\[B, 1, S\]"):
        tiny().encode(torch.zeros(1, 2, 64), torch.tensor([64]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_snake_without_gradients_gives_the_same_bits(dtype):
    torch.manual_seed(0)
    snake = SnakeBeta(6)
    with torch.no_grad():
        snake.alpha.normal_()
        snake.beta.normal_()
    values = torch.randn(2, 6, 50, dtype=dtype)
    before = values.clone()
    recorded = snake(values)
    with torch.no_grad():
        found = snake(values)
    assert found.dtype == recorded.dtype and torch.equal(found, recorded)
    assert torch.equal(values, before)
