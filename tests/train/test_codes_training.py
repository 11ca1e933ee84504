"""A model of codes from end to end: it trains, makes clips, keeps and varies parts of them, and is checked before it trains."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from real_footprint import real_step
from tiny_spec import TEXT

from soundomni.core.assembly.build import build_model, build_sampler
from soundomni.core.assembly.modality import frame_places
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.segment_writer import segment_writer
from soundomni.core.errors import SpecError
from soundomni.core.inference.audio_request import AudioRequest
from soundomni.core.inference.bounded_change import Bound, bounded
from soundomni.core.inference.contexts import make_cache
from soundomni.core.inference.editing import Kept
from soundomni.core.inference.sampling import AudioSlots, sample_audio
from soundomni.core.inference.variation import LEAST_STRENGTH, Beginning, beginning
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.representation import HIDDEN
from soundomni.core.sequence import PackedBatch, Role, Sample, next_position
from soundomni.core.spec.load import load_spec, resolve
from soundomni.core.spec.schema import GuidanceSpec, Slot
from soundomni.core.tokenizer import TextTokenizer
from soundomni.core.waveform import Audio
from soundomni.core.writing.segments import SegmentWriter
from soundomni.train.export import load_run
from soundomni.train.memory.activations import MeasuredRun
from soundomni.train.parallel import World
from soundomni.train.preflight import check_spec
from soundomni.train.run import run_training

CODEC = '''
import torch
from soundomni.core.interfaces import Codec
from soundomni.core.representation import Representation, RepresentationSpec


class LoudnessCodes(Codec):
    """The level of each frame in two steps, and its number of sign changes."""

    def __init__(self, *, sample_rate: int = 8000) -> None:
        super().__init__()
        self._spec = RepresentationSpec(
            kind="codes", sample_rate=sample_rate, channels=1, downsampling_ratio=64, codebook_sizes=(4, 5, 16)
        )

    @property
    def spec(self):
        return self._spec

    def encode(self, waveform, lengths, generators=None):
        frames = self.spec.frame_lengths(lengths)
        clean = torch.where(torch.arange(waveform.shape[-1]) < lengths[:, None, None], waveform, 0.0)
        pieces = torch.nn.functional.pad(clean[:, 0], (0, -waveform.shape[-1] % 64)).unflatten(1, (-1, 64))
        step = (pieces.square().mean(2).sqrt().clamp(0, 0.999).sqrt() * 20).long()
        turns = (pieces[..., 1:] * pieces[..., :-1] < 0).sum(2) // 4
        return Representation(torch.stack([step // 5, step % 5, turns], 1), frames, self.spec)

    def decode(self, representation):
        coarse, fine, turns = representation.values.unbind(1)
        times = torch.arange(64) / 64
        tone = torch.sin(2 * torch.pi * (turns[..., None] + 1) * 2 * times)
        return (tone * ((coarse * 5 + fine)[..., None] / 20).square()).flatten(1)[:, None]
'''
OVERRIDES = (
    ("model.codec", "loudness-codes"),
    ("model.connectors.latent", "codes"),
    ("model.objective", "masked"),
    ("sampler", "{class_path: maskgit, init_args: {iterations: [4, 2]}}"),
    ("guidance.scale", "2.0"),
    ("train.steps", "40"),
    ("train.batches_per_step", "1"),
    ("train.save_every", "40"),
    ("train.optimizer.lr", "1.0e-2"),
    ("train.validation", "{every: 40, prompts: [a loud sine tone], seconds: 0.3}"),
    ("data.datasets.toys.tasks", "{generate: 2, continue: 1, describe: 1}"),
    ("data.datasets.toys.held_out", "0.1"),
)


@pytest.fixture
def codec(install) -> None:  # type: ignore[no-untyped-def]
    install("acme-codes", groups={"soundomni.codecs": {"loudness-codes": "acme_codes:LoudnessCodes"}}, modules={"acme_codes": CODEC})


def codes_spec(folder: Path, *overrides: tuple[str, str]):  # type: ignore[no-untyped-def]
    layer = folder / "spec.yaml"
    layer.write_text(TEXT)
    return load_spec([layer], [("train.run_dir", str(folder / "run")), *OVERRIDES, *overrides])


def random_model(folder: Path) -> tuple[UnifiedModel, SegmentWriter]:
    """A model in float64 whose every parameter is random, and what writes its segments."""
    spec = codes_spec(folder)
    tokenizer = TextTokenizer.train(["a sine"], vocab_size=300)
    model = build_model(spec.model, vocab_size=tokenizer.vocab_size, seed=1).double()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.made().connector.parameters():
            parameter.normal_()
    return model, segment_writer(model, spec.model, tokenizer=tokenizer)


def losses_of(run_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss/masked"] for line in lines if "loss/masked" in line]


def test_a_model_of_codes_trains_makes_keeps_and_varies(codec: None, tmp_path: Path) -> None:
    run_training(codes_spec(tmp_path))
    losses = losses_of(tmp_path / "run")
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:4]), losses
    load_run(tmp_path / "run")[0].save_pretrained(tmp_path / "model")
    model = SoundOmni.from_pretrained(tmp_path / "model")
    network = model.model
    clip = Audio(np.sin(np.arange(2400, dtype=np.float32) * 0.6)[None] * np.linspace(0, 1, 2400, dtype=np.float32), 8000)
    codes = network.made().encode(torch.from_numpy(clip.waveform)[None], torch.tensor([2400])).values[0]
    first, again = (model.generate("a loud sine tone", seconds=0.3, seeds=3)[0].waveform for _ in range(2))
    assert np.array_equal(first, again) and first.shape == (1, 2400) and np.isfinite(first).all()
    together = model.generate(["a loud sine tone", "white noise"], seconds=0.3, seeds=[3, 4])
    assert np.array_equal(together[0].waveform, first), "batched = single"
    # after so few steps the prompt says little, hence the scale
    steered = model.generate("a loud sine tone", seconds=0.3, seeds=3, negative_prompt="white noise", guidance_scale=1e4)
    assert not np.array_equal(steered[0].waveform, first)
    kept = model.generate("white noise", seconds=0.3, known=Kept(clip, [(0.0, 0.16)]))[0]
    whole = network.made().decode(network.made().encode(torch.from_numpy(clip.waveform)[None], torch.tensor([2400])))[0].numpy()
    np.testing.assert_array_equal(kept.waveform[:, : 20 * 64], whole[:, : 20 * 64])
    changed = []
    for strength in (0.2, 0.6, 1.0):
        varied = model.generate("white noise", seconds=0.3, vary=clip, strength=strength, seeds=5)[0].waveform
        frames = np.pad(varied[0], (0, -2400 % 64)).reshape(-1, 64)
        own = np.pad(whole[0, :2400], (0, -2400 % 64)).reshape(-1, 64)
        changed.append(int((frames != own).any(1).sum()))
        assert changed[-1] <= -(-strength * codes.shape[1] // 1), "no more frames than those that were hidden"
    assert changed == sorted(changed) and changed[-1] > changed[0], changed


@pytest.mark.parametrize("frames", [7, 12])
def test_a_cached_slot_of_codes_equals_the_packed_sequence(codec: None, tmp_path: Path, frames: int) -> None:
    model, writer = random_model(tmp_path)
    slot, context = writer.target(frames * 64), (writer.text("a sine"),)
    values = torch.stack([torch.randint(-1, size, (1, frames), generator=torch.Generator().manual_seed(size)) for size in (4, 5, 16)], 1)
    with torch.no_grad():
        cache = make_cache(model, [context], room=frames + 2)
        slots = AudioSlots(model, cache, [slot], positions=[next_position(context)])
        cached = slots.predict(values, torch.full((1, frames), 0.5).double())
        filled = replace(slot, waveform=np.zeros((1, frames * 64), np.float32))
        batch = PackedBatch.from_samples([Sample(key="x", segments=(*context, filled))])
        layout = model.plan(batch.table)
        places = frame_places(np.asarray([frames]), frames, model.device)
        blocks = {
            Role.TEXT: model.backbone.embed(batch.text_ids),
            "latent": model.made().enter_frames(values, torch.full((1, frames), 0.5).double(), places),
        }
        streams, _ = model.backbone(layout.place(blocks, model.backbone.hidden_dim), layout)
        packed = model.made().leave(layout.take(streams, "latent"), places, values)
    assert packed.shape == (1, 25, frames) and packed.abs().max() > 1
    torch.testing.assert_close(cached.double(), packed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_a_clip_of_codes_is_made_the_same_in_a_batch_and_known_frames_stay(codec: None, tmp_path: Path, seed: int) -> None:
    model, writer = random_model(tmp_path)
    rng = np.random.default_rng(seed)
    requests = []
    for clip in range(3):
        frames = int(rng.integers(1, 10))
        words, avoided = rng.choice(["", "a sine", "noise and noise"], 2)
        request = AudioRequest(
            context=(writer.text(words),) if words else (),
            negative=(writer.text(avoided),) if avoided else (),
            slot=writer.target(frames * 64),
            seed=int(rng.integers(100)),
        )
        codes = torch.from_numpy(np.stack([rng.integers(0, size, frames) for size in (4, 5, 16)]))
        if clip == 1:
            request = replace(request, known=codes, known_mask=torch.from_numpy(rng.random(frames) < 0.5))
        if clip == 2:
            request = replace(request, varied=codes)
        requests.append(request)
    make = partial(
        sample_audio,
        model,
        sampler=build_sampler(Slot("maskgit", {"iterations": [3, 2]})),
        guidance=GuidanceSpec(scale=2.5, interval=(0.2, 0.9), renormalize="global"),
        begin=0.5,
    )
    together = make(requests)
    for row, request in enumerate(requests):
        made = together.values[row, :, : request.num_frames]
        assert torch.equal(make([request]).values[0], made)
        assert not together.values[row, :, request.num_frames :].any() and (made >= 0).all()
        if request.known is not None:
            assert torch.equal(made[:, request.known_mask], request.known[:, request.known_mask])
        if request.varied is not None:
            same = int((made == request.varied).all(0).sum())
            assert same >= request.num_frames - -(-request.num_frames // 2)


def test_losses_of_codes_are_counted_before_they_are_computed_and_add_up(codec: None, tmp_path: Path) -> None:
    model, writer = random_model(tmp_path)
    samples = []
    for seed, length in enumerate((640, 300, 1000)):
        clip = np.random.default_rng(seed).normal(0, 0.3, (1, length)).astype(np.float32)
        segments = (writer.text("a sine"), writer.target(length).with_waveform(clip))
        samples.append(Sample(key=str(seed), segments=segments, seed=seed, group="few/generate" if seed else "one/generate"))
    batch = PackedBatch.from_samples(samples)
    losses = model(batch)
    assert model.count_terms(batch)["masked"] == float(losses["masked"][1]) == 10 + 5 + 16
    alone = [model(PackedBatch.from_samples([sample]))["masked"] for sample in samples]
    torch.testing.assert_close(losses["masked"][0], sum(total for total, _ in alone), rtol=1e-5, atol=1e-5)
    parts = model(batch.broken_down())
    assert [float(parts[f"masked/{name}/generate"][1]) for name in ("one", "few")] == [10, 21]
    torch.testing.assert_close(parts["masked/one/generate"][0], alone[0][0].detach().double(), rtol=1e-5, atol=1e-5)
    sum(total for total, _ in model(PackedBatch.from_samples([])).values()).backward()
    assert all(parameter.grad is not None for parameter in model.made().connector.parameters())


def test_a_strength_is_the_share_of_frames_to_hide_and_needs_no_bound(codec: None, tmp_path: Path) -> None:
    model, writer = random_model(tmp_path)
    clip = torch.zeros(3, 10, dtype=torch.int64)
    found = [beginning(model, clip, strength, slot=writer.target(640)) for strength in (1e-9, 0.3, 1.0)]
    assert found == [Beginning(LEAST_STRENGTH), Beginning(0.3), Beginning(1.0)]
    hidden = [
        (model.made().objective.noised(clip[None], torch.full_like(clip[None], HIDDEN), one.timestep) == HIDDEN).sum() for one in found
    ]
    assert hidden == [3 * 1, 3 * 3, 3 * 10], "the least strength makes a frame"
    with pytest.raises(ValueError, match="cannot be bounded for an objective that predicts logits"):
        bounded(lambda values, timesteps, *, first=0: values, model.made().objective, [Bound(clip, 0.5)], made=torch.ones(1, 10) > 0)


def test_the_memory_that_codes_need_is_that_of_a_real_step(codec: None, tmp_path: Path) -> None:
    spec = resolve(codes_spec(tmp_path))
    found, sizes = real_step(spec, World(rank=0, size=1, device=torch.device("cpu")))
    with torch.device("meta"):
        model = build_model(spec.model, vocab_size=spec.model.tokenizer.vocab_size)
    run = MeasuredRun(model, sizes, bf16=False, sharded=False, num_layers=len(model.backbone.layers))
    with run.staged("cuda"):
        encoder = run.encoder().total
    with run.staged("cpu"):
        kept = run.kept("cpu", recompute=False).total + encoder
    assert kept == pytest.approx(found["alive"], rel=0.1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            (("sampler", "heun"),),
            "sampler is 'heun', which takes velocities; expected one that takes logits of hidden codes, .* Use a sampler such as maskgit",
        ),
        (
            (("model.codec", "mdct"), ("model.connectors.latent", "linear"), ("model.objective", "flow-matching")),
            "sampler is 'maskgit', which takes logits of hidden codes; expected one that takes velocities, .* Use a sampler such as euler",
        ),
        ((("model.codec", "mdct"),), "masked modeling needs codes, .* such as flow-matching"),
        ((("model.objective", "x-prediction"),), "needs continuous latents, .* such as masked"),
        ((("model.connectors.latent", "linear"),), "connector 'linear' maps numbers, .* Use the connector codes"),
    ],
)
def test_parts_that_do_not_fit_are_named_with_one_that_does(codec: None, tmp_path: Path, overrides, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SpecError, match=message):
        check_spec(codes_spec(tmp_path, *overrides))
