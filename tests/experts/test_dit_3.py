"""The diffusion transformer of Stable Audio 3 computes what diffusers' model does, on packed clips of any lengths.

diffusers' norms in front of the branches have an eps of 1e-6, but Stable Audio 3 was trained with 1e-5. For inputs of usual size, that
alone changes outputs by 2.5e-4, so the eps of these norms is corrected here. Rows of differential attention lie in another order there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from sat_models import LATENT_DIM, TEXT_DIM, features, model_spec, random_model
from test_dit import TEXTS, packed, predictions
from tiny_stages import TOKENIZER
from torch import Tensor, nn

from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.attention.conditions import SeenHints
from soundomni.core.errors import SpecError
from soundomni.core.spec.schema import ModelSpec, Slot
from soundomni.experts.checkpoints.stable_audio_layout import DIT, Facts, parts_of
from soundomni.experts.dit_3 import DiT3Backbone, FixedTimes

EPS = 1e-5
FAMILIES: dict[str, dict[str, Any]] = {
    "small": {},
    "medium": {"differential": True},
}


def spec_of(**arguments: Any) -> ModelSpec:
    """A tiny model whose only global condition is the length."""
    sizes = {"hidden_dim": 128, "num_layers": 2, "num_heads": 2, "condition_dim": TEXT_DIM, "num_memory": 3}
    spec = model_spec(Slot("dit-3", {**sizes, **arguments}), objective="flow-matching", shows_known=True)
    modalities = {name: one for name, one in spec.modalities.items() if name != "seconds_start"}
    number = Slot("number", {"least": 0.0, "most": 8.0, "num_frequencies": 6, "features": "fixed"})
    modalities["seconds_total"] = replace(modalities["seconds_total"], encoder=number)
    return ModelSpec(
        backbone=spec.backbone,
        router=spec.router,
        modalities=modalities,
        prompt=[template for template in spec.prompt if template.of != "seconds_start"],
    )


def theirs_of(model: UnifiedModel, *, differential: bool) -> nn.Module:
    """diffusers' model with the weights of a model here."""
    state, backbone = model.state_dict(), cast(DiT3Backbone, model.backbone)
    tensors = {part.source.removeprefix(DIT): part.write(state) for part in parts_of(facts_of(model)) if part.source.startswith(DIT)}
    return diffusers_model(tensors, differential=differential, num_heads=backbone.hidden_dim // backbone.head_dim)


def diffusers_model(tensors: dict[str, Tensor], *, differential: bool, num_heads: int) -> nn.Module:
    """diffusers' model with tensors that have the names of Stable Audio 3's transformer."""
    from diffusers.models.transformers.transformer_stable_audio3 import StableAudio3DiTModel, StableAudio3RMSNorm

    width, condition_dim = tensors["to_cond_embed.0.weight"].shape
    channels = len(tensors["preprocess_conv.weight"])
    theirs = StableAudio3DiTModel(
        io_channels=channels,
        embed_dim=width,
        depth=len({name.split(".")[2] for name in tensors if name.startswith("transformer.layers.")}),
        num_heads=num_heads,
        cond_token_dim=condition_dim,
        global_cond_dim=condition_dim,
        local_add_cond_dim=channels + 1,
        num_memory_tokens=len(tensors["transformer.memory_tokens"]),
        use_differential_attention=differential,
    )
    given = {_renamed(name): _ordered(name, tensor, differential) for name, tensor in tensors.items() if not name.endswith("inv_freq")}
    missing, unexpected = theirs.load_state_dict(given, strict=False)
    assert not unexpected and set(missing) == {"prompt_padding_embedding", "rotary_pos_emb.inv_freq"}
    for name, module in theirs.named_modules():
        if isinstance(module, StableAudio3RMSNorm) and not name.endswith(("q_norm", "k_norm")):
            module.eps = EPS
    return theirs.eval()


def facts_of(model: UnifiedModel) -> Facts:
    backbone: Any = model.backbone
    return Facts(
        num_layers=len(backbone.blocks),
        hidden_dim=backbone.hidden_dim,
        rotary_dim=backbone.rotary_dim,
        crosses=True,
        global_ids=("seconds_total",),
        numbers=(),
        modulates=True,
        has_memory=True,
        norm="rms",
        head_norm="rms",
        has_frequencies=False,
        has_hints=True,
        fixed_numbers=("seconds_total",),
    )


def _renamed(name: str) -> str:
    name = name.removeprefix("transformer.")
    for old, new in {
        "project_": "proj_",
        "layers.": "transformer_blocks.",
        "ff.ff.0.proj": "ff.proj_in",
        "ff.ff.2": "ff.proj_out",
    }.items():
        name = name.replace(old, new)
    return name


def _ordered(name: str, tensor: Tensor, differential: bool) -> Tensor:
    """Put the rows q, k, v, q', k' in diffusers' order q, q', k, k', v."""
    if not (differential and name.endswith("self_attn.to_qkv.weight")):
        return tensor
    query, key, value, other_query, other_key = tensor.chunk(5)
    return torch.cat([query, other_query, key, other_key, value])


@pytest.mark.parametrize("task", ["generate", "fill"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_packed_batch_equals_diffusers_on_each_clip(family: str, task: str) -> None:
    spec = spec_of(**FAMILIES[family])
    model = random_model(spec)
    batch = packed(model, spec, TEXTS, task=task)
    theirs = theirs_of(model, differential=family == "medium")
    number: Any = model.modality("seconds_total")
    with torch.no_grad():
        query, output = predictions(model, batch)
        assert query.hints is not None and bool(query.hints[:, 0].any()) == (task == "fill")
        clips = batch.of("seconds_total")
        totals = number.connector.enter(number.encoder(clips.waveform, clips.lengths).flatten(0, 1))
        for i, text in enumerate(TEXTS):
            frames = int(batch.of("latent").num_frames[i])
            words = features(torch.tensor([[float(ord(letter)) for letter in text]])) if text else torch.zeros(1, 5, TEXT_DIM)
            total = totals[i][None]
            tokens = torch.cat([words, total[:, None]], 1) if text else torch.zeros(1, 6, TEXT_DIM)
            wanted = theirs(
                query.inputs[i : i + 1, :, :frames],
                query.timesteps[i, :1],
                tokens,
                total,
                local_add_cond=query.hints[i : i + 1, :, :frames],
            ).sample[0]
            torch.testing.assert_close(output[i, :, :frames], wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_the_log_snr_of_a_timestep_is_limited_and_runs_from_0_to_1() -> None:
    times = torch.tensor([0.0, 1e-9, 0.0024726232, 0.25, 0.5, 0.9933071491, 1.0])
    shown = (5 - torch.log((1 - times.double()) / times.double()).clamp(-12, 5)) / 17
    plain, other = (FixedTimes(8, log_snr=log_snr) for log_snr in (False, True))
    other.load_state_dict(plain.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(other(times), plain(shown.float()), rtol=1e-2, atol=1e-3)
        assert not torch.equal(other(times), plain(times))


def test_only_one_modality_has_hints_for_the_layers() -> None:
    spec = spec_of()
    made = spec.modalities["latent"]
    two = ModelSpec(backbone=spec.backbone, router=spec.router, modalities={"one": made, "two": made})
    with pytest.raises(SpecError, match="model.modalities.one and model.modalities.two have objectives with shows_known"):
        build_model(two, vocab_size=TOKENIZER.vocab_size, trust_class_paths=True)


def test_a_layer_adds_its_network_for_hints_only_to_frames() -> None:
    """Not to the memory in front of them, which has no hints, but would get the biases."""
    model = random_model(spec_of())
    layer: Any = model.backbone.layers[0]
    hidden, values = torch.randn(9, 128), torch.randn(4, LATENT_DIM + 1)
    places = torch.tensor([3, 4, 7, 8])
    out = layer.hints(hidden, SeenHints(0, places, values))
    others = [0, 1, 2, 5, 6]
    assert torch.equal(out[others], hidden[others]) and not torch.isclose(out[places], hidden[places]).any()


def test_every_parameter_has_a_gradient_with_and_without_clips() -> None:
    spec = spec_of()
    model = random_model(spec)
    for texts in (TEXTS[:3], []):
        model.zero_grad()
        total, count = model(packed(model, spec, texts, task="fill"))["velocity"]
        (total / count.clamp_min(1)).backward()
        lacking = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
        assert not [name for name in lacking if ".codec." not in name]


def test_a_backbone_of_hints_that_has_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips that are only given would have hints that nobody takes."""
    monkeypatch.setattr(DiT3Backbone, "takes_text", True)
    with pytest.raises(TypeError, match="DiT3Backbone has takes_hints; then it also needs takes_times, and may not take text"):
        build_model(spec_of(), vocab_size=TOKENIZER.vocab_size, trust_class_paths=True)
