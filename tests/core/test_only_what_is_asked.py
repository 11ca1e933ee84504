"""A model runs what it was asked for and nothing else; in training every rank runs everything, whatever its batch holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from tiny_models import MODELS, RATE, TOKENIZER, clip, model_spec, pack
from torch import Tensor, nn

from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.inference.editing import Kept
from soundomni.core.interfaces import Router
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.representation import Representation
from soundomni.core.sequence import Role, Sample, text_segment
from soundomni.core.spec.schema import GuidanceSpec, Slot, Spec
from soundomni.core.waveform import Audio
from soundomni.experts import MoTBackbone

CLIPS = [Audio(clip(seed, 60 + 10 * seed), RATE) for seed in (1, 2)]


class ByRole(Router):
    """A stream for each role, text first."""

    @property
    def streams(self) -> tuple[str, ...]:
        return tuple(role.name.lower() for role in Role)

    def stream_of(self, role: Role) -> int:
        return list(Role).index(role)


class Padded(MoTBackbone):
    """A backbone with a `forward` of its own that says nothing of empty streams."""

    def forward(self, streams, layout):  # type: ignore[no-untyped-def]
        assert all(len(stream) for stream in streams)
        return super().forward(streams, layout)


@cache
def built(router: str) -> UnifiedModel:
    if router in MODELS:
        return MODELS[router]
    spec = replace(model_spec(normalize="none"), router=Slot(f"{__name__}.{router}"))
    return build_model(spec, vocab_size=TOKENIZER.vocab_size, trust_class_paths=True).double()


def omni(router: str, scale: float = 2.0) -> SoundOmni:
    spec = Spec(model=model_spec(sampler=Slot("euler", {"num_steps": 2}), guidance=GuidanceSpec(scale=scale)))
    return SoundOmni(built(router), spec, TOKENIZER)


@contextmanager
def counted(model: UnifiedModel) -> Iterator[Counter[str]]:
    """Counts the rows that go through the experts of each stream, and the calls of the encoder and of each connector."""
    calls: Counter[str] = Counter()

    def rows(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, given: calls.update({name: len(given[0])})

    handles = []
    for stream in model.router.streams:
        for part in ("attention_norm", "qkv", "output", "mlp"):
            expert = model.backbone.layers[0].expert(stream)
            handles.append(getattr(expert, part).register_forward_pre_hook(rows(f"{stream}.{part}")))
        handles.append(model.backbone.norms[stream].register_forward_pre_hook(rows(f"{stream}.norm")))
    (heard,) = model.all_heard
    handles += [part.register_forward_pre_hook(lambda *_: calls.update(["encoder"])) for part in heard.encoder.modules()]
    yield calls
    for handle in handles:
        handle.remove()


def stream_of(model: UnifiedModel, role: Role) -> str:
    return model.router.streams[model.router.stream_of(role)]


@pytest.mark.parametrize("router", ["modality", "dense", "top-k", "ByRole"])
@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize(
    "asked", [{}, {"negative_prompt": "two"}, {"known": Kept(CLIPS[0], [(0.0, 0.04)])}, {"vary": CLIPS[0], "strength": 0.5}]
)
def test_no_encoder_runs_for_a_prompt_without_audio(router: str, scale: float, asked: dict) -> None:  # type: ignore[type-arg]
    model = omni(router, 2.0 if "negative_prompt" in asked else scale)
    with counted(model.model) as calls:
        model.generate(["one two", "zero"], seconds=0.08, **asked)
    assert not calls["encoder"] and calls
    if router == "ByRole":
        assert not any(calls[name] for name in calls if name.startswith("features."))


@pytest.mark.parametrize("router", ["modality", "top-k", "ByRole"])
def test_no_expert_that_generates_runs_while_text_is_written(router: str) -> None:
    model = omni(router)
    with counted(model.model) as calls:
        texts = model.describe(CLIPS, max_new_tokens=4)
        model.describe(CLIPS[0], question="one?", max_new_tokens=2)
    assert len(texts) == 2 and calls["encoder"]
    made = stream_of(model.model, Role.LATENT)
    assert not any(calls[f"{made}.{part}"] for part in ("attention_norm", "qkv", "output", "mlp", "norm"))


def test_heard_audio_runs_through_its_expert_once_and_not_again_for_each_token() -> None:
    model = omni("ByRole")
    encoder = model.model.all_heard[0].encoder
    with counted(model.model) as calls:
        model.describe(CLIPS, max_new_tokens=5)
    heard = sum(encoder.num_tokens(one.waveform.shape[1]) for one in CLIPS)
    assert {calls[f"features.{part}"] for part in ("attention_norm", "qkv", "output", "norm")} == {heard}


@pytest.mark.parametrize("router", ["modality", "ByRole"])
def test_experts_run_on_no_padding_while_audio_is_made(router: str) -> None:
    model = omni(router, scale=1.0)
    prompts, steps, frames = ["one two", "zero"], 2, model.model.made().codec.spec.num_frames(80)
    with counted(model.model) as calls:
        model.generate(prompts, seconds=0.08, num_steps=steps)
    words = sum(len(TOKENIZER.encode(prompt)) + 2 for prompt in prompts)
    boundaries = 2 * len(prompts) * steps
    made, read = stream_of(model.model, Role.LATENT), stream_of(model.model, Role.TEXT)
    assert calls[f"{made}.qkv"] == frames * len(prompts) * steps
    assert calls[f"{read}.qkv"] == words + boundaries


def test_a_backbone_that_says_nothing_of_empty_streams_is_given_padding() -> None:
    assert MoTBackbone.takes_empty_streams and not Padded.takes_empty_streams
    spec = replace(model_spec(), backbone=Slot(f"{__name__}.Padded", model_spec().backbone.init_args))
    padded = build_model(spec, vocab_size=TOKENIZER.vocab_size, trust_class_paths=True, seed=1).double()
    padded.load_state_dict(MODELS["modality"].state_dict())
    theirs = SoundOmni(padded, omni("modality").spec, TOKENIZER)
    assert theirs.describe(CLIPS, max_new_tokens=6) == omni("modality").describe(CLIPS, max_new_tokens=6)
    ours, same = (one.generate(["one"], seconds=0.08)[0].waveform for one in (omni("modality"), theirs))
    np.testing.assert_allclose(ours, same, atol=1e-6)


@pytest.mark.parametrize("router", ["modality", "dense", "top-k", "ByRole"])
def test_in_training_everything_runs_whatever_the_batch_holds(router: str) -> None:
    model = built(router)
    text = text_segment(TOKENIZER.encode("one two"), bos=TOKENIZER.bos, eos=TOKENIZER.eos, loss=True)
    with counted(model) as calls:
        model(pack([Sample(key="x", segments=(text,))]))
    assert calls["encoder"]
    assert all(calls[f"{stream}.{part}"] for stream in model.router.streams for part in ("qkv", "output", "mlp", "norm"))


@pytest.mark.parametrize(("clips", "seconds"), [(8, 47), (16, 3), (3, 30), (1, 100)])
def test_clips_are_decoded_with_the_memory_of_half_a_minute(clips: int, seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, most = MODELS["modality"], 0
    made_modality = model.made()
    codec, decode = made_modality.codec, made_modality.codec.decode
    spec, field = codec.spec, codec.receptive_field
    assert field is not None
    frames = spec.num_frames(seconds * RATE)
    made = torch.randn(clips, spec.token_dim, frames, dtype=torch.float64)
    with torch.no_grad():
        whole = decode(made_modality.normalizer.denormalize(Representation(made, torch.full((clips,), frames), spec)))

    def watched(given: Representation) -> Tensor:
        nonlocal most
        most = max(most, given.values.shape[0] * given.values.shape[-1])
        return decode(given)

    monkeypatch.setattr(codec, "decode", watched)
    found = made_modality.decode(Representation(made, torch.full((clips,), frames), spec))
    assert 0 < most <= 30 * RATE // spec.downsampling_ratio + 2 * (field.decode + spec.extra_frames)
    torch.testing.assert_close(found, whole[..., : found.shape[-1]], rtol=0, atol=1e-12)
