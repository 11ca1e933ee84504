"""Critics against independent computations in double precision: distances, networks, losses and the penalty."""

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torchaudio.functional import melscale_fbanks

from soundomni.core.assembly.uninitialized import uninitialized
from soundomni.core.errors import SpecError
from soundomni.vae.critics import (
    ComplexSTFTCritic,
    MultiMelCritic,
    MultiPeriodCritic,
    MultiScaleSTFTCritic,
    MultiScaleWaveformCritic,
    MultiSTFTCritic,
)
from soundomni.vae.critics.a_weighting import a_weighted, a_weighting, a_weighting_taps
from soundomni.vae.critics.adversarial import AdversarialCritic, Network, Verdict
from soundomni.vae.critics.multi_scale_waveform import WaveformNetwork
from soundomni.vae.spectrum import as_channels, spectrum
from soundomni.vae.stft_loss import MAGNITUDE_FLOOR

RATE = 16000
MONO = {"sample_rate": RATE, "channels": 1}
TINY = [
    (MultiScaleWaveformCritic, {"num_scales": 2, "widths": (4, 8, 8)}),
    (MultiPeriodCritic, {"periods": (2, 3), "widths": (3, 4)}),
    (MultiScaleSTFTCritic, {"windows": (32, 16), "filters": 3, "dilations": (1, 2)}),
    (ComplexSTFTCritic, {"window": 32, "widths": (3, 3, 4)}),
]


def clips(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets and estimates in double precision."""
    generator = torch.Generator().manual_seed(sum(shape))
    return tuple(0.3 * torch.randn(2, *shape, dtype=torch.float64, generator=generator))


def tiny(cls, arguments, **more):
    """A small critic in double precision."""
    torch.manual_seed(0)
    return cls(**MONO, **arguments, **more).double()


def bins(signal: np.ndarray, size: int) -> np.ndarray:
    """Spectra `[T, F]` of a mono clip, frame by frame, with silence around it."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    window /= np.linalg.norm(window)
    padded = np.pad(signal, size // 2)
    return np.fft.rfft([padded[t : t + size] * window for t in range(0, len(signal) + 1, size // 4)])


# Distances


def stft_distance(x: np.ndarray, y: np.ndarray, windows: tuple[int, ...]) -> float:
    """Spectral convergence plus log magnitude distance of mono clips, the mean over windows."""
    found = []
    for size in windows:
        a, b = (np.sqrt(np.abs(bins(signal, size)) ** 2 + MAGNITUDE_FLOOR**2) for signal in (x, y))
        found.append(np.linalg.norm(a - b) / np.linalg.norm(a) + np.abs(np.log(a) - np.log(b)).mean())
    return float(np.mean(found))


def distance(critic, target: torch.Tensor, estimate: torch.Tensor) -> tuple[float, float]:
    total, count = critic.judge(target, estimate)["distance"]
    return total.item(), count.item()


@pytest.mark.parametrize("weighted", [False, True])
def test_stft_distance_of_mono_and_stereo_equals_the_formula(weighted: bool) -> None:
    windows = (128, 64)

    def heard(signal: torch.Tensor) -> np.ndarray:
        return np.convolve(signal.numpy(), a_weighting_taps(RATE), "same") if weighted else signal.numpy()

    mono = MultiSTFTCritic(**MONO, windows=windows, a_weighting=weighted)
    x, y = clips(2, 1, 400)
    expected = sum(stft_distance(heard(x[b, 0]), heard(y[b, 0]), windows) for b in range(2))
    assert distance(mono, x, y) == (pytest.approx(expected, rel=1e-5), 2)

    stereo = MultiSTFTCritic(sample_rate=RATE, channels=2, windows=windows, a_weighting=weighted)
    x, y = clips(1, 2, 400)
    (left, right), (left_hat, right_hat) = x[0], y[0]
    pairs = {
        "sum": (left + right, left_hat + right_hat),
        "difference": (left - right, left_hat - right_hat),
        "left": (left, left_hat),
        "right": (right, right_hat),
    }
    parts = {name: stft_distance(heard(a), heard(b), windows) for name, (a, b) in pairs.items()}
    expected = (parts["sum"] + parts["difference"]) / 2 + 0.5 * parts["left"] + 0.5 * parts["right"]
    assert distance(stereo, x, y) == (pytest.approx(expected, rel=1e-5), 1)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_weighting_is_that_of_the_standard(rate: int) -> None:
    octaves = 10 ** np.arange(1.5, 4.3, 0.3)  # exact values of 31.5 Hz to 16 kHz
    decibels = np.array([-39.4, -26.2, -16.1, -8.6, -3.2, 0.0, 1.2, 1.0, -1.1, -6.6])
    np.testing.assert_allclose(20 * np.log10(a_weighting(octaves)), decibels, atol=0.06, err_msg="the standard's table")
    taps = a_weighting_taps(rate)
    grid = np.linspace(0, rate / 2, 1024)
    np.testing.assert_allclose(taps, scipy.signal.firls(101, grid, a_weighting(grid), fs=rate), atol=1e-4)
    resolved = (octaves > rate / 40) & (octaves < rate / 2.1)
    _, response = scipy.signal.freqz(taps, worN=octaves[resolved], fs=rate)
    np.testing.assert_allclose(20 * np.log10(np.abs(response)), decibels[resolved], atol=0.5)


def test_a_weighting_keeps_clips_in_place_and_apart() -> None:
    impulse = torch.zeros(2, 2, 301)
    impulse[1, 0, 150] = 1.0
    filtered = a_weighted(impulse, RATE)
    assert filtered.shape == impulse.shape and not filtered[0].any() and not filtered[1, 1].any()
    torch.testing.assert_close(filtered[1, 0], filtered[1, 0].flip(0))


DAC = {"num_mels": (5, 20), "scale": "slaney", "linear_weight": 0.0, "log_weight": 1 / math.log(10), "log_error": "l1"}
ENCODEC = {"power": 2, "log_weight": 1 / math.log(10) ** 2, "log_error": "squares"}


@pytest.mark.parametrize("form", [{}, DAC, ENCODEC], ids=["soundstream", "dac", "encodec"])
def test_mel_distance_equals_the_formula(form: dict) -> None:
    windows, counts = (128, 512), form.get("num_mels", (8, 8))
    critic = MultiMelCritic(**MONO, **{"windows": windows, "num_mels": (8,), **form})
    x, y = clips(2, 2, 1000)
    expected = 0.0
    for size, num_mels in zip(windows, counts, strict=True):
        norm, scale = ("slaney", "slaney") if form == DAC else (None, "htk")
        filters = melscale_fbanks(size // 2 + 1, 0.0, RATE / 2, num_mels, RATE, norm, scale).double().numpy()
        for clip in range(2):
            for channel in range(2):
                power = [np.abs(bins(one[clip, channel].numpy(), size)) ** 2 for one in (x, y)]
                values = power if form.get("power") == 2 else [np.sqrt(one + MAGNITUDE_FLOOR**2) for one in power]
                a, b = (one @ filters for one in values)
                linear, log10 = a - b, np.log10(a + 1e-5) - np.log10(b + 1e-5)
                if form == DAC:
                    frames = np.abs(log10).mean(1)
                elif form == ENCODEC:
                    frames = np.abs(linear).mean(1) + np.square(log10).mean(1)
                else:
                    norms = np.linalg.norm(math.log(10) * log10, axis=1)
                    frames = (np.abs(linear).sum(1) + math.sqrt(size / 2) * norms) / num_mels
                expected += frames.mean() / 4  # 2 channels and 2 windows
    assert distance(critic, x, y) == (pytest.approx(expected, rel=1e-5), 2)


@pytest.mark.parametrize("cls", [MultiSTFTCritic, MultiMelCritic])
def test_windows_longer_than_the_clips_are_left_out(cls) -> None:
    x, y = clips(2, 1, 40)
    critic, only = cls(**MONO, windows=(64, 32)), cls(**MONO, windows=(32,))
    assert distance(critic, x, y) == distance(only, x, y)
    assert distance(critic, x[..., :31], y[..., :31]) == (0.0, 0.0)


@pytest.mark.parametrize("cls", [MultiSTFTCritic, MultiMelCritic])
def test_distances_are_computed_in_single_precision_under_autocast(cls) -> None:
    critic = cls(**MONO, windows=(64,))
    x, y = (clip.float() for clip in clips(1, 1, 300))
    expected = critic.judge(x, y)["distance"][0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = critic.judge(x, y)["distance"][0]
    assert found.dtype == torch.float32 and found.item() == expected.item()


# Adversarial losses


class Scaled(Network):
    """Logits are `weight` times every `step`-th sample; features are the samples, and the samples times `size`."""

    def __init__(self, weight: float, *, step: int = 1, size: float = 1.0, shortest: int = 1) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight, dtype=torch.float64))
        self.step, self.size, self.shortest = step, size, shortest

    def forward(self, waveform: torch.Tensor) -> Verdict:
        return Verdict(self.weight * waveform[..., :: self.step], [waveform, self.size * waveform])


def adversarial(networks, **changes) -> AdversarialCritic:
    settled = {"loss": "hinge", "gradient_penalty": False, "relative_features": False}
    return AdversarialCritic(networks, **{**settled, **changes})


def means(losses) -> dict[str, float]:
    return {name: (total / count).item() for name, (total, count) in losses.items()}


SAMPLES = st.lists(st.floats(-4, 4), min_size=4, max_size=4)


@settings(max_examples=30, deadline=None)
@given(real=SAMPLES, made=SAMPLES, loss=st.sampled_from(["hinge", "least-squares"]))
def test_losses_are_those_of_the_closed_form(real: list[float], made: list[float], loss: str) -> None:
    critic = adversarial([Scaled(1.0), Scaled(-2.0, step=2)], loss=loss)
    target, estimate = (torch.tensor([[one]], dtype=torch.float64) for one in (real, made))
    a, b = np.array(real), np.array(made)
    high = (lambda d: np.maximum(0, 1 - d)) if loss == "hinge" else lambda d: (1 - d) ** 2
    low = (lambda d: np.maximum(0, 1 + d)) if loss == "hinge" else lambda d: d**2
    own = (high(a).mean() + low(b).mean() + high(-2 * a[::2]).mean() + low(-2 * b[::2]).mean()) / 2
    assert means(critic.learn(target, estimate, [])) == {loss.replace("-", "_"): pytest.approx(own)}
    expected = {"adversarial": (high(b).mean() + high(-2 * b[::2]).mean()) / 2, "features": np.abs(a - b).mean()}
    assert means(critic.judge(target, estimate)) == {name: pytest.approx(value) for name, value in expected.items()}


@pytest.mark.parametrize("size", [1.0, 100.0])
def test_every_layer_counts_the_same_with_relative_features(size: float) -> None:
    x, y = clips(1, 1, 50)
    expected = ((x - y).abs().mean() / x.abs().mean()).item()
    found = means(adversarial([Scaled(1.0, size=size)], relative_features=True).judge(x, y))["features"]
    assert found == pytest.approx(expected)
    plain = means(adversarial([Scaled(1.0, size=size)]).judge(x, y))["features"]
    assert plain == pytest.approx((1 + size) / 2 * (x - y).abs().mean().item())


def test_networks_that_need_longer_clips_have_no_share_but_gradients() -> None:
    networks = [Scaled(1.0), Scaled(3.0, shortest=20)]
    x, y = clips(3, 1, 10)
    short, only = adversarial(networks), adversarial(networks[:1])
    assert means(short.judge(x, y)) == means(only.judge(x, y))
    losses = short.learn(x, y, [])
    assert means(losses) == means(only.learn(x, y, []))
    losses["hinge"][0].backward()
    assert networks[0].weight.grad.item() != 0 and networks[1].weight.grad.item() == 0
    none = adversarial(networks[1:], gradient_penalty=True)
    assert {name: (total.item(), count.item()) for name, (total, count) in none.learn(x, y, []).items()} == {
        "hinge": (0.0, 0.0),
        "penalty": (0.0, 0.0),
    }


def test_own_losses_are_named_after_the_arguments() -> None:
    assert adversarial([Scaled(1.0)]).learned == ("hinge",)
    critic = adversarial([Scaled(1.0)], loss="least-squares", gradient_penalty=True)
    assert critic.learned == ("least_squares", "penalty")


@pytest.mark.parametrize(("step", "num_samples"), [(1, 12), (1, 120), (2, 120)])
def test_penalty_of_independent_logits_is_the_mean_of_theirs(step: int, num_samples: int) -> None:
    x, y = clips(2, 1, num_samples)
    penalty = adversarial([Scaled(3.0, step=step), Scaled(1.0)], gradient_penalty=True).learn(x, y, [])["penalty"]
    assert (penalty[0].item(), penalty[1].item()) == (pytest.approx(2 * (9.0 + 1.0) / 2), 2)


@pytest.mark.parametrize(("cls", "arguments"), TINY)
def test_penalty_and_its_gradient_equal_finite_differences(cls, arguments) -> None:
    critic = tiny(cls, arguments, gradient_penalty=True)
    x, y = clips(1, 1, 48)

    def sums(waveform: torch.Tensor) -> list[float]:
        with torch.no_grad():
            return [verdict.logits.sum().item() for verdict in critic.verdicts(waveform)]

    with torch.no_grad():
        counts = [verdict.logits.numel() for verdict in critic.verdicts(x)]
    step, squares = 1e-6, np.zeros(len(counts))
    for sample in range(x.shape[-1]):
        moved = torch.zeros_like(x)
        moved[..., sample] = step
        squares += ((np.array(sums(x + moved)) - np.array(sums(x - moved))) / (2 * step)) ** 2
    penalty = critic.learn(x, y, [])["penalty"][0]
    assert penalty.item() == pytest.approx((squares / counts).mean(), rel=1e-5)

    parameters = list(critic.parameters())
    slopes = torch.autograd.grad(penalty, parameters, allow_unused=True, materialize_grads=True)
    directions = [torch.randn_like(parameter) for parameter in parameters]
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(direction, alpha=sign * step)
        values.append(critic.learn(x, y, [])["penalty"][0].item())
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.sub_(direction, alpha=sign * step)
    expected = sum((slope * direction).sum().item() for slope, direction in zip(slopes, directions, strict=True))
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("cls", "arguments"), TINY)
def test_judging_differentiates_the_estimate_only_through_its_own_features(cls, arguments) -> None:
    critic = tiny(cls, arguments)
    x, y = clips(1, 1, 60)
    recorded = []
    for network in critic.networks:
        network.register_forward_hook(lambda *call: recorded.append(torch.is_grad_enabled()))
    critic.judge(x.requires_grad_(), y.requires_grad_())["features"][0].backward()
    assert x.grad is None and y.grad.any()
    assert recorded.count(True) == recorded.count(False) == len(critic.networks), "the target runs without gradients"


# Networks


def published(cls, num_samples: int, channels: int = 1):
    """Shapes of weights, logits and features of each network in the published sizes."""
    with uninitialized(), torch.no_grad():
        critic = cls(sample_rate=24000, channels=channels)
        verdicts = critic.verdicts(torch.zeros(2, channels, num_samples))
    for network, (logits, features) in zip(critic.networks, verdicts, strict=True):
        state = network.state_dict()
        weights = [tuple(state[name].shape) for name in state if name.endswith("original1") and "shortcut" not in name]
        yield weights, list(logits.shape), [list(layer.shape) for layer in features]


def test_sizes_of_the_waveform_networks() -> None:
    widths, groups = (16, 64, 256, 1024, 1024), [(64, 4, 41), (256, 4, 41), (1024, 4, 41), (1024, 4, 41)]
    found = published(MultiScaleWaveformCritic, 16384)
    for samples, (weights, logits, features) in zip((16384, 8192, 4096), found, strict=True):
        assert weights == [(16, 1, 15), *groups, (1024, 1024, 5), (1, 1024, 3)]
        layers = zip((*widths, 1024), (1, 4, 16, 64, 256, 256), strict=True)
        assert features == [[2, width, samples // ratio] for width, ratio in layers]
        assert logits == [2, 1, samples // 256]


def test_sizes_of_the_period_networks() -> None:
    widths = (32, 128, 512, 1024, 1024)
    for period, (weights, logits, features) in zip((2, 3, 5, 7, 11), published(MultiPeriodCritic, 4096), strict=True):
        assert weights == [*((o, i, 5, 1) for i, o in pairwise((1, *widths))), (1, 1024, 3, 1)]
        frames = [math.ceil(4096 / period)]
        while len(frames) < 5:
            frames.append(math.ceil(frames[-1] / 3))
        assert features == [[2, width, t, period] for width, t in zip(widths, [*frames[1:], frames[-1]], strict=True)]
        assert logits == [2, 1, frames[-1], period]


def test_sizes_of_the_spectrum_networks() -> None:
    windows = (2048, 1024, 512, 256, 128)
    found = published(MultiScaleSTFTCritic, 4096, channels=2)
    for window, (weights, logits, features) in zip(windows, found, strict=True):
        assert weights == [(32, 4, 3, 9), *[(32, 32, 3, 9)] * 3, (32, 32, 3, 3), (1, 32, 3, 3)]
        frames, bins = (4096 - window) // (window // 4) + 1, window // 2 + 1
        sizes = [bins, *(math.ceil(bins / 2**n) for n in (1, 2, 3, 3))]
        assert features == [[2, 32, frames, size] for size in sizes]
        assert logits == [2, 1, frames, sizes[-1]]


def test_sizes_of_the_complex_network() -> None:
    ((weights, logits, features),) = published(ComplexSTFTCritic, 1024 + 256 * 15)
    widths, frames, bins = (32, 32, 64, 128, 128, 256, 256), (16, 16, 8, 8, 4, 4, 2), (512, 256, 128, 64, 32, 16, 8)
    kernels = zip(pairwise(widths), [(3, 4), (4, 4)] * 3, strict=True)
    blocks = [shape for (i, o), kernel in kernels for shape in ((i, i, 3, 3), (o, i, *kernel))]
    assert sorted(weights) == sorted([(32, 2, 7, 7), *blocks, (1, 256, 1, 8)])
    assert features == [[2, *shape] for shape in zip(widths, frames, bins, strict=True)]
    assert logits == [2, 1, 2, 1]


def test_a_lower_rate_is_the_mean_of_four_samples() -> None:
    torch.manual_seed(0)
    half = WaveformNetwork(channels=1, widths=(4, 8), halvings=1).double()
    full = WaveformNetwork(channels=1, widths=(4, 8), halvings=0).double()
    full.load_state_dict(half.state_dict())
    x, _ = clips(1, 1, 20)
    averaged = torch.stack([x[..., max(2 * t - 1, 0) : 2 * t + 3].mean(-1) for t in range(10)], -1)
    torch.testing.assert_close(half(x).logits, full(averaged).logits)


def test_a_period_hears_each_offset_on_its_own() -> None:
    critic = tiny(MultiPeriodCritic, {"periods": (5,), "widths": (3, 4)})
    x, _ = clips(1, 1, 50)
    changed = x.clone()
    changed[..., 2::5] += 1.0
    (before,), (after,) = critic.verdicts(x), critic.verdicts(changed)
    moved = (before.logits != after.logits).flatten(0, 2).any(0)
    assert moved.tolist() == [False, False, True, False, False]


class Functional:
    """The convolutions of a network, over a plain dictionary of tensors."""

    def __init__(self, network: Network) -> None:
        self.state = network.state_dict()

    def __call__(self, values: torch.Tensor, name: str, **options) -> torch.Tensor:
        g, v = (self.state[f"{name}.parametrizations.weight.original{i}"] for i in (0, 1))
        weight = g * v / v.flatten(1).norm(dim=1).view_as(g)
        return (F.conv1d if v.dim() == 3 else F.conv2d)(values, weight, self.state[f"{name}.bias"], **options)

    def spectra(self, clip: torch.Tensor, size: int) -> torch.Tensor:
        """Real and imaginary parts `[1, 2, T, F]` of a mono clip `[1, 1, S]`."""
        window = torch.hann_window(size, dtype=torch.float64)
        bins = torch.fft.rfft(clip[0, 0].unfold(0, size, size // 4) * window / window.norm())
        return torch.stack([bins.real, bins.imag])[None]


def test_the_waveform_network_computes_what_its_description_says() -> None:
    torch.manual_seed(0)
    network = WaveformNetwork(channels=1, widths=(8, 16, 8, 4), halvings=0).double()
    x, _ = clips(1, 1, 100)
    convolution, values = Functional(network), x
    for name, options in {
        "layers.0": {"padding": 7},
        "layers.1": {"padding": 20, "stride": 4, "groups": 2},
        "layers.2": {"padding": 20, "stride": 4, "groups": 4},
        "layers.3": {"padding": 2},
    }.items():
        values = F.leaky_relu(convolution(values, name, **options), 0.2)
    torch.testing.assert_close(network(x).logits, convolution(values, "logits", padding=1))


def test_the_period_network_computes_what_its_description_says() -> None:
    critic = tiny(MultiPeriodCritic, {"periods": (3,), "widths": (4, 3, 2)})
    x, _ = clips(1, 1, 100)
    convolution, values = Functional(critic.networks[0]), torch.cat([x, x[..., [98, 97]]], -1).view(1, 1, 34, 3)
    for name, stride in (("layers.0", 3), ("layers.1", 3), ("layers.2", 1)):
        values = F.leaky_relu(convolution(values, name, padding=(2, 0), stride=(stride, 1)), 0.1)
    torch.testing.assert_close(critic.verdicts(x)[0].logits, convolution(values, "logits", padding=(1, 0)))


def test_the_spectrum_network_computes_what_its_description_says() -> None:
    critic = tiny(MultiScaleSTFTCritic, {"windows": (32,), "filters": 3, "dilations": (1, 2)})
    x, _ = clips(1, 1, 100)
    convolution = Functional(critic.networks[0])
    values = convolution.spectra(x, 32)
    for name, options in {
        "layers.0": {"padding": (1, 4)},
        "layers.1": {"padding": (1, 4), "stride": (1, 2)},
        "layers.2": {"padding": (2, 4), "stride": (1, 2), "dilation": (2, 1)},
        "layers.3": {"padding": 1},
    }.items():
        values = F.leaky_relu(convolution(values, name, **options), 0.2)
    torch.testing.assert_close(critic.verdicts(x)[0].logits, convolution(values, "logits", padding=1))


def test_the_complex_network_computes_what_its_description_says() -> None:
    critic = tiny(ComplexSTFTCritic, {"window": 32, "widths": (3, 4, 5)})
    x, _ = clips(1, 1, 128)
    convolution = Functional(critic.networks[0])
    values = F.leaky_relu(convolution(convolution.spectra(x, 32)[..., :16], "first", padding=3), 0.2)
    assert values.shape[2:] == (13, 16)
    for name, stride in (("blocks.0", (1, 2)), ("blocks.1", (2, 2))):
        inner = F.leaky_relu(convolution(values, f"{name}.inner", padding=1), 0.2)
        if name == "blocks.1":
            inner = F.pad(inner, (0, 0, 0, 1))  # 13 frames become 7
        strided = convolution(inner, f"{name}.strided", padding=1, stride=stride)
        values = F.leaky_relu(strided + convolution(values, f"{name}.shortcut", stride=stride), 0.2)
    assert values.shape[2:] == (7, 4)
    torch.testing.assert_close(critic.verdicts(x)[0].logits, convolution(values, "logits"))


def test_a_stereo_spectrum_enters_as_real_parts_and_then_imaginary_parts() -> None:
    x, _ = clips(2, 2, 64)
    values = as_channels(spectrum(x, 32, center=False))
    for channel in range(2):
        mono = as_channels(spectrum(x[:, channel : channel + 1], 32, center=False))
        torch.testing.assert_close(values[:, channel::2], mono)


@pytest.mark.parametrize("num_samples", [32, 40, 72])
def test_sizes_that_strides_do_not_divide_are_rounded_up(num_samples: int) -> None:
    critic = tiny(ComplexSTFTCritic, {"window": 32, "widths": (2,) * 7})
    frames = (num_samples - 32) // 8 + 1
    (verdict,) = critic.verdicts(clips(1, 1, num_samples)[0])
    assert list(verdict.logits.shape) == [1, 1, math.ceil(frames / 8), 1]


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (MultiSTFTCritic, {"windows": ()}, r"windows is \[\]; expected one or more lengths in samples"),
        (MultiSTFTCritic, {"windows": (64, 30)}, r"windows is \[64, 30\]; expected"),
        (MultiMelCritic, {"num_mels": (8, 8)}, r"num_mels is \[8, 8\]; expected one number, or one for each of the 6"),
        (MultiMelCritic, {"num_mels": (0,)}, "num_mels is 0; expected at least 1"),
        (MultiMelCritic, {"scale": "slany"}, "scale is 'slany'; expected one of slaney, htk. Did you mean 'slaney'?"),
        (MultiMelCritic, {"log_error": "l3"}, "log_error is 'l3'; expected one of l1, l2, squares"),
        (MultiMelCritic, {"power": 3}, "power is 3; expected 1 for magnitudes or 2 for their squares"),
        (MultiMelCritic, {"floor": 0.0}, "floor is 0.0; expected a number above 0"),
        (MultiScaleWaveformCritic, {"num_scales": 0}, "num_scales is 0; expected at least 1"),
        (MultiScaleWaveformCritic, {"widths": (16,)}, r"widths is \[16\]; expected two or more multiples of 4"),
        (MultiScaleWaveformCritic, {"widths": (16, 18)}, r"widths is \[16, 18\]; expected two or more multiples of 4"),
        (MultiScaleWaveformCritic, {"widths": (12, 16, 16)}, "widths has 16 after 12; expected a multiple of 3"),
        (MultiPeriodCritic, {"periods": ()}, r"periods is \[\]; expected one or more numbers of at least 1"),
        (MultiPeriodCritic, {"widths": (4, 0)}, r"widths is \[4, 0\]; expected one or more numbers"),
        (MultiPeriodCritic, {"loss": "hinged"}, "loss is 'hinged'; expected one of hinge, least-squares"),
        (MultiScaleSTFTCritic, {"filters": 0}, "filters is 0; expected at least 1"),
        (MultiScaleSTFTCritic, {"dilations": (1, 0)}, r"dilations is \[1, 0\]; expected numbers of at least 1"),
        (ComplexSTFTCritic, {"window": 2}, "window is 2; expected a length in samples that is a multiple of 4"),
        (ComplexSTFTCritic, {"widths": ()}, r"widths is \[\]; expected one or more numbers"),
        (ComplexSTFTCritic, {"channels": 0}, "channels is 0; expected at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused_in_one_line(cls, arguments, message) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        cls(**{**MONO, **arguments})
    assert "\n" not in str(caught.value)
