"""Every built-in plugin keeps the contract of its kind."""

import io
import sys
import tarfile
from dataclasses import replace

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import torch
from ranks_in_threads import OneRank
from stable_audio_files import audio_vae
from t5_files import tiny_t5, tiny_t5gemma
from tiny_networks import save_tiny_clap

from soundomni import testing
from soundomni.core.representation import RepresentationSpec, TokenSpec
from soundomni.core.spec import registry
from soundomni.core.spec.schema import Slot

RATE = 8000
CODES = RepresentationSpec(kind="codes", sample_rate=RATE, channels=1, downsampling_ratio=100, codebook_sizes=(4, 3))
RUNS = replace(CODES, codebook_sizes=(2,))


def build(kind, name, arguments=None, **runtime):
    return registry.build(kind, Slot(name, arguments or {}), **runtime)


class Builtin:
    """Makes the plugin that `name` and `arguments` name, in the way that the assembly does."""

    name = ""
    arguments = {}  # noqa: RUF012

    def make(self, **runtime):
        return build(self.kind, self.name, self.arguments, **runtime)


def suite(base, label, name, **arguments):
    """Returns a test class of one plugin."""
    return type(f"Test{label}", (Builtin, base), {"name": name, "arguments": arguments, "__module__": __name__})


TestMDCT = suite(testing.CodecSuite, "MDCT", "mdct", frame_size=16)
TestMDCTStereo = suite(testing.CodecSuite, "MDCTStereo", "mdct", frame_size=15, channels=2, companding=0.5)
TestShapeGain = suite(testing.CodecSuite, "ShapeGain", "mdct-shape-gain", frame_size=16)
TestShapeGainStereo = suite(testing.CodecSuite, "ShapeGainStereo", "mdct-shape-gain", frame_size=15, channels=2, companding=0.5)
HARMONIC = {"sample_rate": RATE, "frame_size": 16, "num_harmonics": 3, "pitch_range": [RATE / 8, RATE / 4]}
TestHarmonic = suite(testing.CodecSuite, "Harmonic", "harmonic", **HARMONIC)
TestHarmonicStereo = suite(testing.CodecSuite, "HarmonicStereo", "harmonic", **HARMONIC, channels=2, companding=0.5)
OOBLECK = {"sample_rate": RATE, "channels": 2, "base_channels": 2, "channel_multiples": [1, 2], "strides": [2, 4], "latent_dim": 3}
TestOobleck = suite(testing.CodecSuite, "Oobleck", "oobleck", **OOBLECK)
TestOobleckSampled = suite(testing.CodecSuite, "OobleckSampled", "oobleck", **OOBLECK, sample_latents=True)
SAME = {"sample_rate": RATE, "patch_size": 3, "base_channels": 8, "channel_multiples": [2], "strides": [4], "latent_dim": 5}
CHUNKS = {"num_layers": [4], "sine_layers": [2], "head_dim": 8, "chunk_size": 8}
TestSameInChunks = suite(testing.CodecSuite, "SameInChunks", "same", **SAME, transformer=CHUNKS)
TestSameInLongerChunks = suite(
    testing.CodecSuite, "SameInLongerChunks", "same", **SAME, channels=1, transformer=CHUNKS | {"chunk_size": 16}
)
WINDOW = {"num_layers": [2, 1], "sine_layers": [1, 0], "head_dim": 8, "window": [1, 2]}
BLOCKS = {"channel_multiples": [1, 2], "strides": [2, 4], "decoder_kernel": 1}
TestSameInWindow = suite(testing.CodecSuite, "SameInWindow", "same", **{**SAME, **BLOCKS}, transformer=WINDOW)
TestStableAudioTools = suite(testing.CodecSuite, "StableAudioTools", "stable-audio-tools", config=audio_vae())
DAC = {"sample_rate": RATE, "encoder_dim": 2, "decoder_dim": 16, "codebook_size": 16, "codebook_dim": 2, "total_codebooks": 4}
TestDac = suite(testing.CodecSuite, "Dac", "dac", **DAC, strides=[2, 4])
TestDacOfOddStrides = suite(testing.CodecSuite, "DacOfOddStrides", "dac", **DAC, strides=[5, 3], num_codebooks=2)
ENCODEC = {"sample_rate": RATE, "num_filters": 2, "strides": [2, 5], "hidden_dim": 4, "codebook_size": 16, "total_codebooks": 3}
TestEncodec = suite(testing.CodecSuite, "Encodec", "encodec", **ENCODEC, num_codebooks=2)
TestEncodecStereo = suite(testing.CodecSuite, "EncodecStereo", "encodec", **ENCODEC, channels=2, causal=False, conv_shortcut=False)
SOUNDSTREAM = {"sample_rate": RATE, "base_channels": 2, "channel_multiples": [1, 2], "strides": [2, 3], "latent_dim": 4}
GRADIENT = {"num_levels": 3, "codebook_size": 8, "codebook_dim": 2}
EMA = {"method": "ema", "num_levels": 2, "groups": 2, "codebook_size": 8}
FSQ = {"method": "fsq", "num_levels": 2, "steps": [4, 3]}
LFQ = {"method": "lfq", "num_levels": 3, "codebook_size": 8}
TestSoundStream = suite(testing.CodecSuite, "SoundStream", "soundstream", **SOUNDSTREAM, quantizer=GRADIENT)
TestSoundStreamWarmup = suite(testing.CodecSuite, "SoundStreamWarmup", "soundstream", **SOUNDSTREAM, quantizer=GRADIENT, warmup_steps=1)
TestSoundStreamFsq = suite(testing.CodecSuite, "SoundStreamFsq", "soundstream", **SOUNDSTREAM, quantizer=FSQ, attention_window=2)
TestSoundStreamLfq = suite(testing.CodecSuite, "SoundStreamLfq", "soundstream", **SOUNDSTREAM, quantizer=LFQ, weight_norm=True)


class TestSoundStreamEma(Builtin, testing.CodecSuite):
    """Its codebooks start from noise, as those of a run do from its first clips."""

    name = "soundstream"
    arguments = {**SOUNDSTREAM, "channels": 2, "quantizer": EMA}  # noqa: RUF012

    def make(self, **runtime):
        codec = super().make(**runtime)
        clips = 0.3 * torch.randn(2, 2, 400, generator=torch.Generator().manual_seed(0))
        codec.reconstruct(clips, torch.tensor([400, 300]), [torch.Generator().manual_seed(clip) for clip in range(2)])
        codec.after_step(OneRank())
        return codec


MIMI = {"sample_rate": RATE, "num_filters": 2, "strides": [2, 5], "codebook_size": 16, "codebook_dim": 3, "total_codebooks": 4}
MIMI |= {"transformer": {"hidden_dim": 8, "num_layers": 2, "num_heads": 2, "mlp_dim": 6, "sliding_window": 3}}
TestMimi = suite(testing.CodecSuite, "Mimi", "mimi", **MIMI, num_codebooks=3)
TestMimiStereo = suite(testing.CodecSuite, "MimiStereo", "mimi", **MIMI, channels=2, semantic_codebooks=2)

SPEECH = {"conv_dims": [4, 4], "conv_kernels": [6, 4], "conv_strides": [5, 2], "hidden_dim": 8, "num_heads": 2, "mlp_dim": 6}
SPEECH |= {"position_kernel": 4, "position_groups": 2}
TOKENS = {"sample_rate": RATE, "layer": 2, "num_clusters": 9}
TestHubertKmeans = suite(testing.CodecSuite, "HubertKmeans", "hubert-kmeans", **TOKENS, network=SPEECH)
LARGE = SPEECH | {"family": "wavlm", "conv_norm": "layer", "norm_first": True}
TestWavlmKmeans = suite(testing.CodecSuite, "WavlmKmeans", "hubert-kmeans", **TOKENS, network=LARGE, frames_per_second=RATE / 15)


class Measured(Builtin):
    """A codec that is measured on noise, as a run does on its first clips."""

    def make(self, **runtime):
        codec = super().make(**runtime)
        codec.fit([(0.3 * torch.randn(2, 1, 400, generator=torch.Generator().manual_seed(0)), torch.tensor([400, 300]))])
        return codec


class TestHarmonicCodes(Measured, testing.CodecSuite):
    name = "harmonic-codes"
    arguments = {**HARMONIC, "num_codebooks": 2, "codebook_size": 5}  # noqa: RUF012


MEL = {"sample_rate": RATE, "frame_size": 8, "window": 32, "num_mels": 10, "rounds": 4}
TestMelMagnitude = suite(testing.CodecSuite, "MelMagnitude", "mel-magnitude", **MEL)
TestMelMagnitudeStereo = suite(testing.CodecSuite, "MelMagnitudeStereo", "mel-magnitude", **MEL, channels=2)
TestMelMagnitudeDefaults = suite(testing.CodecSuite, "MelMagnitudeDefaults", "mel-magnitude", sample_rate=RATE, rounds=3)


class TestMelCodes(Measured, testing.CodecSuite):
    name = "mel-codes"
    arguments = {**MEL, "num_codebooks": 2, "codebook_size": 5}  # noqa: RUF012


class TestMelKmeans(Measured, testing.CodecSuite):
    name = "mel-kmeans"
    arguments = {"sample_rate": RATE, "frame_size": 16, "window": 50, "num_mels": 12, "num_clusters": 6}  # noqa: RUF012


class TestMelKmeansWithContext(Measured, testing.CodecSuite):
    name = "mel-kmeans"
    arguments = {**TestMelKmeans.arguments, "context": 2, "num_coefficients": 5}  # noqa: RUF012


class TestMelKmeansLapped(Measured, testing.CodecSuite):
    name = "mel-kmeans"
    arguments = {**TestMelKmeans.arguments, "lapped": True, "frequencies": [RATE / 20, RATE / 3], "context": 1}  # noqa: RUF012


TestL1 = suite(testing.CriticSuite, "L1", "l1")
TestMultiSTFT = suite(testing.CriticSuite, "MultiSTFT", "multi-stft", windows=[256, 64])
TestMultiMel = suite(testing.CriticSuite, "MultiMel", "multi-mel", windows=[64, 256], num_mels=[8])
DAC_MEL = {"windows": [64, 256], "num_mels": [5, 20], "scale": "slaney", "linear_weight": 0.0, "log_error": "l1"}
TestMultiMelDac = suite(testing.CriticSuite, "MultiMelDac", "multi-mel", **DAC_MEL)
ENCODEC_MEL = {"windows": [256], "num_mels": [8], "power": 2, "log_error": "squares"}
TestMultiMelEncodec = suite(testing.CriticSuite, "MultiMelEncodec", "multi-mel", **ENCODEC_MEL)
WAVES = {"num_scales": 2, "widths": [4, 8, 8]}
TestMultiScaleWaveform = suite(testing.CriticSuite, "MultiScaleWaveform", "multi-scale-waveform", **WAVES)
PENALTY = {"gradient_penalty": True}
TestWavesPenalty = suite(testing.CriticSuite, "WavesPenalty", "multi-scale-waveform", **WAVES, **PENALTY)
COMPLEX = {"window": 64, "widths": [4, 4, 8]}
TestComplexSTFT = suite(testing.CriticSuite, "ComplexSTFT", "complex-stft", **COMPLEX, **PENALTY)
SPECTRA = {"windows": [128, 64], "filters": 4, "dilations": [1, 2]}
TestMultiScaleSTFT = suite(testing.CriticSuite, "MultiScaleSTFT", "multi-scale-stft", **SPECTRA, **PENALTY)
TestMultiPeriod = suite(testing.CriticSuite, "MultiPeriod", "multi-period", periods=[2, 3], widths=[8, 8, 8])


class TestMultiSTFTStereo(suite(testing.CriticSuite, "Base", "multi-stft", windows=[64])):
    channels = 2


class TestMultiScaleSTFTStereo(suite(testing.CriticSuite, "Base", "multi-scale-stft", **SPECTRA, loss="least-squares")):
    channels = 2


LOG_MEL = {"sample_rate": RATE, "n_fft": 64, "hop_length": 20, "num_mels": 8, "feature_dim": 16}
TestLogMel = suite(testing.EncoderSuite, "LogMel", "log-mel", **LOG_MEL)
TOWER = {"num_mel_bins": 16, "d_model": 16, "num_layers": 1, "num_heads": 2, "ffn_dim": 32, "max_source_positions": 20}
TestQwen2Audio = suite(testing.EncoderSuite, "Qwen2Audio", "qwen2-audio", **TOWER)
TestBytes = suite(testing.EncoderSuite, "Bytes", "bytes", feature_dim=16, num_layers=1, num_heads=2)
TestNumber = suite(testing.EncoderSuite, "Number", "number", most=10.0, num_frequencies=3)


TestNumberFixed = suite(testing.EncoderSuite, "NumberFixed", "number", most=10.0, num_frequencies=3, features="fixed", clamp=True)
TestInteger = suite(testing.EncoderSuite, "Integer", "integer", most=4, feature_dim=6)
TestLookup = suite(testing.EncoderSuite, "Lookup", "lookup", entries=["0", "1", "2"], feature_dim=6)
TestLookupUnknown = suite(testing.EncoderSuite, "LookupUnknown", "lookup", entries=["rain"], feature_dim=6, unknown=True)


class Local(testing.EncoderSuite):
    """An encoder that uses a pretrained network in a folder, which `write` writes."""

    arguments = {}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def model(self, tmp_path):
        self.folder = str(self.write(tmp_path))

    def make(self):
        return build("encoder", self.name, {"name": self.folder, **self.arguments})


def local(label, name, write, **arguments):
    """Returns a test class of an encoder with a pretrained network."""
    members = {"name": name, "arguments": arguments, "write": staticmethod(write), "__module__": __name__}
    return type(f"Test{label}", (Local,), members)


TestT5 = local("T5", "t5", tiny_t5)
TestT5Padded = local("T5Padded", "t5", tiny_t5, pad_to=6, truncate=True)
TestT5Gemma = local("T5Gemma", "t5gemma", tiny_t5gemma)
TestT5GemmaPadded = local("T5GemmaPadded", "t5gemma", tiny_t5gemma, pad_to=6)
TestClapText = local("ClapText", "clap-text", save_tiny_clap)
TestClapTextHidden = local("ClapTextHidden", "clap-text", save_tiny_clap, features="hidden")
TestClapTextPadded = local("ClapTextPadded", "clap-text", save_tiny_clap, features="hidden", pad_to=6, truncate=True)
TestClapAudio = local("ClapAudio", "clap-audio", save_tiny_clap)

TestLinear = suite(testing.ConnectorSuite, "Linear", "linear")
TestFourier = suite(testing.ConnectorSuite, "Fourier", "fourier")
TestCodes = type("TestCodes", (suite(testing.ConnectorSuite, "Base", "codes"),), {"tokens": TokenSpec((4, 3), (4, 5))})
DEPTH = {"depth_dim": 8, "num_layers": 2, "num_heads": 2}
TestDepthCodes = type("TestDepthCodes", (suite(testing.ConnectorSuite, "Base", "depth-codes", **DEPTH),), {"tokens": TestCodes.tokens})
TestMLP = suite(testing.ConnectorSuite, "MLP", "mlp")
TestIdentity = type("TestIdentity", (suite(testing.ConnectorSuite, "Base", "identity"),), {"hidden_dim": 6, "generates": False})
TestResidualLinear = suite(testing.ConnectorSuite, "ResidualLinear", "residual-linear")

TestModality = suite(testing.RouterSuite, "Modality", "modality")
TestDense = suite(testing.RouterSuite, "Dense", "dense")
TestTopK = suite(testing.RouterSuite, "TopK", "top-k")
TestTopKDense = suite(testing.RouterSuite, "TopKDense", "top-k", by_modality=False, num_experts=3, k=1)

MOT = {"hidden_dim": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "qk_norm": "all"}
TestMoT = suite(testing.BackboneSuite, "MoT", "mot", **MOT)


CONFORMER = {"hidden_dim": 16, "num_layers": 2, "num_heads": 2}
TestConformer = suite(testing.BackboneSuite, "Conformer", "conformer", **CONFORMER)
TestConformerLong = suite(testing.BackboneSuite, "ConformerLong", "conformer", **CONFORMER, kernel_size=11, conv_expansion=1)


class TestConformerTopK(suite(testing.BackboneSuite, "Base", "conformer", **CONFORMER)):
    def router(self):
        return build("router", "top-k")


class TestConformerDense(suite(testing.BackboneSuite, "Base", "conformer", **CONFORMER)):
    def router(self):
        return build("router", "dense")


class TestMoTTopK(suite(testing.BackboneSuite, "Base", "mot", **MOT, tie_embeddings=True)):
    def router(self):
        return build("router", "top-k")


class TestMoTDense(suite(testing.BackboneSuite, "Base", "mot", **MOT)):
    def router(self):
        return build("router", "dense")


DIT = {"hidden_dim": 16, "num_layers": 2, "num_heads": 2}


class TestDiT(suite(testing.BackboneSuite, "Base", "dit", **DIT)):
    def router(self):
        return build("router", "dense")


class TestDiTAdaLN(suite(testing.BackboneSuite, "Base", "dit", **DIT, conditioning="adaln", head_norm="layer", condition_dim=8)):
    def router(self):
        return build("router", "dense")


class TestDiTDifferential(suite(testing.BackboneSuite, "Base", "dit", **DIT, differential=True, num_memory=2, project_conditions=True)):
    def router(self):
        return build("router", "dense")


class TestDiT3(suite(testing.BackboneSuite, "Base", "dit-3", **DIT, num_memory=2)):
    def router(self):
        return build("router", "dense")


class TestDiT3Differential(suite(testing.BackboneSuite, "Base", "dit-3", **DIT, num_memory=0, differential=True, log_snr_times=True)):
    def router(self):
        return build("router", "dense")


TestFlowMatching = suite(testing.ObjectiveSuite, "FlowMatching", "flow-matching")
TestXPrediction = suite(testing.ObjectiveSuite, "XPrediction", "x-prediction")
TestFlowMatchingInpainting = suite(testing.ObjectiveSuite, "FlowMatchingInpainting", "flow-matching", shows_known=True)
TestXPredictionInpainting = suite(testing.ObjectiveSuite, "XPredictionInpainting", "x-prediction", shows_known=True)
TestVPredictionInpainting = suite(testing.ObjectiveSuite, "VPredictionInpainting", "v-prediction", shows_known=True)
TestVPrediction = suite(testing.ObjectiveSuite, "VPrediction", "v-prediction")
TestVPredictionUniform = suite(testing.ObjectiveSuite, "VPredictionUniform", "v-prediction", timesteps="uniform", shift=2.0)
TestFlowMatchingUniform = suite(testing.ObjectiveSuite, "FlowMatchingUniform", "flow-matching", timesteps="uniform", shift=2.0)
TestMasked = type("TestMasked", (suite(testing.ObjectiveSuite, "Base", "masked"),), {"representation": CODES})
TestMaskedCritic = type(
    "TestMaskedCritic", (suite(testing.ObjectiveSuite, "Base", "masked-critic", prompts=0.5),), {"representation": CODES}
)
for order in ("flat", "levels", "delay", "frames"):
    base = suite(testing.NextTokenObjectiveSuite, "Base", "autoregressive", order=order, forget=0.3 if order == "flat" else 0.0)
    vars()[f"TestAutoregressive{order.title()}"] = base
del base
for longest in (1, 2, 8):
    base = suite(testing.NextTokenObjectiveSuite, "Base", "autoregressive-runs", longest=longest, forget=0.3 if longest == 8 else 0.0)
    base.representation, base.tokens_vary = RUNS, True
    vars()[f"TestRunsOf{longest}"] = base
del base

TestEuler = suite(testing.SamplerSuite, "Euler", "euler", num_steps=4)
TestHeun = suite(testing.SamplerSuite, "Heun", "heun", num_steps=4, shift=3.0)
TestMidpoint = suite(testing.SamplerSuite, "Midpoint", "midpoint", num_steps=4)
TestRK4 = suite(testing.SamplerSuite, "RK4", "rk4", num_steps=3)
TestDPMpp = suite(testing.SamplerSuite, "DPMpp", "dpmpp", num_steps=5, shift=2.0)
TestDPMpp2M = suite(testing.SamplerSuite, "DPMpp2M", "dpmpp-2m", num_steps=5)
TestDPMpp2MLogSnr = suite(testing.SamplerSuite, "DPMpp2MLogSnr", "dpmpp-2m", num_steps=5, schedule={"spacing": "log-snr"})
WIDE = {"spacing": "exponential", "sigma_min": 0.03, "sigma_max": 100.0, "rho": 1.5}
TestDPMpp2MSDE = suite(testing.SamplerSuite, "DPMpp2MSDE", "dpmpp-2m-sde", num_steps=5, schedule=WIDE)
TestDPMpp3MSDE = suite(testing.SamplerSuite, "DPMpp3MSDE", "dpmpp-3m-sde", num_steps=5)
TestDPMpp3MSDEFromNoise = suite(
    testing.SamplerSuite, "DPMpp3MSDEFromNoise", "dpmpp-3m-sde", num_steps=5, eta=0.4, schedule={"spacing": "log-snr"}
)
TestDPMpp3MWithoutNoise = suite(testing.SamplerSuite, "DPMpp3MWithoutNoise", "dpmpp-3m-sde", num_steps=5, eta=0.0)
TestDDIM = suite(testing.SamplerSuite, "DDIM", "ddim", num_steps=4)
TestDDIMWithNoise = suite(testing.SamplerSuite, "DDIMWithNoise", "ddim", num_steps=4, eta=1.0, schedule={"spacing": "even"})
TestPingPong = suite(testing.SamplerSuite, "PingPong", "pingpong", num_steps=3)
TestMaskGIT = suite(testing.SamplerSuite, "MaskGIT", "maskgit", iterations=[3, 1])
TestMaskGITRandom = suite(testing.SamplerSuite, "MaskGITRandom", "maskgit", iterations=[2], num_steps=3, order="random", greedy=False)
TestMaskGITCritic = suite(testing.SamplerSuite, "MaskGITCritic", "maskgit-critic", iterations=[3, 1])
TestMaskGITCriticDrawn = suite(testing.SamplerSuite, "MaskGITCriticDrawn", "maskgit-critic", iterations=[2], num_steps=3, greedy=False)
TestNextToken = suite(testing.NextTokenSamplerSuite, "NextToken", "next-token")
TestNextTokenCut = suite(
    testing.NextTokenSamplerSuite, "NextTokenCut", "next-token", temperature=0.7, top_k=0.6, top_p=0.9, repetition_penalty=1.3
)
TestSpeculative = suite(testing.NextTokenSamplerSuite, "Speculative", "speculative")
TestSpeculativeCut = suite(
    testing.NextTokenSamplerSuite,
    "SpeculativeCut",
    "speculative",
    temperature=0.7,
    top_k=0.6,
    top_p=0.9,
    repetition_penalty=1.3,
    ahead=7,
    compared=1,
)
TestNextTokenGreedy = suite(testing.NextTokenSamplerSuite, "NextTokenGreedy", "next-token", temperature=0.0, repetition_penalty=1.1)

TestAdamW = suite(testing.OptimizerSuite, "AdamW", "adamw")
TestMuon = suite(testing.OptimizerSuite, "Muon", "muon")


TestAdamW8bit = suite(testing.OptimizerSuite, "AdamW8bit", "adamw-8bit", min_size=1)

TestToySounds = suite(testing.DatasetSuite, "ToySounds", "toy-sounds", size=40, seconds=0.8)


class TestAudioFolder(testing.DatasetSuite):
    name = "audio-folder"

    @pytest.fixture(autouse=True)
    def clips(self, tmp_path):
        for name, channels in (("a", 1), ("b", 2)):
            samples = 0.1 * np.random.default_rng(0).standard_normal((500, channels))
            soundfile.write(tmp_path / f"{name}.wav", samples, RATE)
            (tmp_path / f"{name}.txt").write_text(f"sound {name}")
        (tmp_path / "broken.wav").write_bytes(b"no audio")
        self.folder = str(tmp_path)

    def make(self):
        return build("dataset", self.name, {"path": self.folder})


class TestEncoded(testing.DatasetSuite):
    name = "encoded"

    @pytest.fixture(autouse=True)
    def clips(self, tmp_path):
        for name, frames in (("a", 7), ("b", 4)):
            np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).standard_normal((3, frames)).astype(np.float32))
            (tmp_path / f"{name}.json").write_text(f'{{"prompt": "sound {name}", "padding_mask": {[1] * (frames - 1) + [0]}}}')
        self.folder = str(tmp_path)

    def make(self):
        return build("dataset", self.name, {"path": self.folder, "sample_rate": RATE, "downsampling_ratio": 64, "channels": 1})


class TestAudioCaps(testing.DatasetSuite):
    name = "audiocaps"

    @pytest.fixture(autouse=True)
    def clips(self, tmp_path):
        (tmp_path / "train.csv").write_text("audiocap_id,youtube_id,start_time,caption\n1,abc,30,a dog\n2,xyz,0,rain\n3,gone,1,wind\n")
        for name in ("abc_30", "xyz_0"):
            soundfile.write(tmp_path / f"{name}.wav", np.zeros((400, 2)), RATE)
        self.folder = tmp_path

    def make(self):
        return build("dataset", self.name, {"csv": str(self.folder / "train.csv"), "audio_dir": str(self.folder)})


@pytest.fixture
def clips(tmp_path):
    """Two short clips as bytes, and one that is damaged, by name."""
    files = {}
    for name, channels in (("a", 1), ("b", 2)):
        out = io.BytesIO()
        soundfile.write(out, 0.1 * np.random.default_rng(0).standard_normal((500, channels)), RATE, format="WAV")
        files[name] = out.getvalue()
    return files | {"broken": b"no audio"}


class TestManifest(testing.DatasetSuite):
    name = "manifest"

    @pytest.fixture(autouse=True)
    def table(self, tmp_path, clips):
        for name, data in clips.items():
            (tmp_path / f"{name}.wav").write_bytes(data)
        rows = [f'{{"audio_filepath": "{name}.wav", "text": "sound {name}"}}' for name in clips]
        rows.append('{"audio_filepath": "b.wav", "offset": 0.01, "duration": 0.03, "text": "a part"}')
        (tmp_path / "train.jsonl").write_text("\n".join(rows))
        self.path = str(tmp_path / "train.jsonl")

    def make(self):
        return build("dataset", self.name, {"path": self.path})


class TestParquet(testing.DatasetSuite):
    name = "parquet"

    @pytest.fixture(autouse=True)
    def shard(self, tmp_path, clips):
        rows = [{"bytes": data, "path": f"{name}.wav"} for name, data in clips.items()]
        table = pyarrow.table({"audio": rows, "text": [f"sound {name}" for name in clips]})
        pyarrow.parquet.write_table(table, tmp_path / "train-00000-of-00001.parquet", row_group_size=2)
        self.folder = str(tmp_path)

    def make(self):
        return build("dataset", self.name, {"path": self.folder, "index_dir": "memory"})


class TestWebDataset(testing.DatasetSuite):
    name = "webdataset"

    @pytest.fixture(autouse=True)
    def shard(self, tmp_path, clips):
        with tarfile.open(tmp_path / "sounds-000000.tar", "w") as shard:
            for name, data in clips.items():
                for suffix, content in (("wav", data), ("txt", f"sound {name}".encode())):
                    member = tarfile.TarInfo(f"{name}.{suffix}")
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))
        self.folder = str(tmp_path)

    def make(self):
        return build("dataset", self.name, {"path": self.folder, "index_dir": "memory"})


TestLength = suite(testing.FilterSuite, "Length", "length", least=0.1, most=1.0)
TestSilence = suite(testing.FilterSuite, "Silence", "silence")
TestChannelSwap = suite(testing.AugmentationSuite, "ChannelSwap", "channel-swap")
TestGain = suite(testing.AugmentationSuite, "Gain", "gain", decibels=[-20, 20])
TestMono = suite(testing.AugmentationSuite, "Mono", "mono", probability=0.5)
TestPhaseFlip = suite(testing.AugmentationSuite, "PhaseFlip", "phase-flip")
TestPitch = suite(testing.AugmentationSuite, "Pitch", "pitch", semitones=[-24, 24])
TestResample = suite(testing.AugmentationSuite, "Resample", "resample", rates=[1000, 8000])
TestSpecAugment = suite(testing.AugmentationSuite, "SpecAugment", "spec-augment", longest=1.0, widest=1.0)
TestSpeed = suite(testing.AugmentationSuite, "Speed", "speed", factors=[0.25, 4.0])
TestTensorBoard = suite(testing.TrackerSuite, "TensorBoard", "tensorboard")


TestWandb = suite(testing.TrackerSuite, "Wandb", "wandb", mode="disabled")


def test_no_builtin_is_forgotten():
    suites = [value for key, value in vars(sys.modules[__name__]).items() if key.startswith("Test")]
    tested = {(cls.kind, cls.name) for cls in suites}
    builtins = {(kind, entry.name) for kind in registry.KINDS for entry in registry.entries(kind) if entry.distribution == "soundomni"}
    assert builtins and tested == builtins


def test_there_is_a_suite_of_every_kind():
    assert {getattr(testing, name).kind for name in testing.__all__} == set(registry.KINDS)
