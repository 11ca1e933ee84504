"""DoRA: what it computes and learns, merging, and its files, against the package peft itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_lora import ALL, QKV, adapters, answers, rewritten
from tiny_models import make_model
from torch import Tensor, nn

from soundomni.core.assembly.dora_linear import DoRALinear
from soundomni.core.assembly.lora import add_adapters, merge_adapters, reset_magnitudes
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import CheckpointError, SpecError
from soundomni.core.pretrained.adapters import load_adapter_file, save_adapters
from soundomni.core.spec.schema import LoRASpec

BOTH = LoRASpec(streams=["und", "gen"], kind="dora", rank=3, alpha=5.0, targets=ALL)


def adapted(spec: LoRASpec = BOTH) -> UnifiedModel:
    """A model whose adapters are random in all their parts, of values that float32 holds."""
    model = make_model()
    add_adapters(model, spec)
    generator = torch.Generator().manual_seed(3)
    for layer in adapters(model).values():
        assert isinstance(layer, DoRALinear)
        for matrix in (layer.lora_A.weight, layer.lora_B.weight):
            matrix.data.copy_(0.3 * torch.randn(matrix.shape, generator=generator))
        factors = 0.5 + torch.rand(layer.out_features, generator=generator)
        layer.lora_magnitude.data.copy_((layer.lora_magnitude.detach() * factors).float())
    return model


def parts(layer: Any, of_peft: bool) -> list[Tensor]:
    """A, B and magnitudes of a layer."""
    if of_peft:
        return [layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.lora_magnitude_vector["default"].weight]
    return [layer.lora_A.weight, layer.lora_B.weight, layer.lora_magnitude]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_those_of_peft(bias: bool, dropout: float) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    linear = nn.Linear(7, 5, bias=bias).double().requires_grad_(False)
    config = LoraConfig(r=2, lora_alpha=3, lora_dropout=dropout, target_modules=["0"], use_dora=True)
    theirs: Any = get_peft_model(nn.Sequential(linear), config).base_model.model[0].double()
    ours = DoRALinear(linear, rank=2, alpha=3.0, dropout=dropout)
    torch.testing.assert_close(ours.lora_magnitude, parts(theirs, True)[2], rtol=0, atol=1e-7)
    for mine, their in zip(parts(ours, False), parts(theirs, True), strict=True):
        mine.data.normal_()
        their.data.copy_(mine)
    gradients, results = [], []
    for layer, of_peft in ((ours, False), (theirs, True)):
        x = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        torch.manual_seed(2)
        out = layer(x)
        results.append(out.detach())
        gradients.append(torch.autograd.grad(out.sin().sum(), [x, *parts(layer, of_peft)]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-12)
    for mine, their in zip(*gradients, strict=True):
        assert mine.abs().max() > 0.01
        torch.testing.assert_close(mine, their, rtol=0, atol=1e-12)


def test_a_new_adapter_changes_nothing_and_is_what_is_trained() -> None:
    model = make_model()
    before, names = answers(model), model.state_dict().keys()
    add_adapters(model, BOTH)
    assert torch.equal(answers(model), before)
    added = model.state_dict().keys() - names
    trained = {name for name, p in model.named_parameters() if p.requires_grad and ".experts." in name and ".blocks." in name}
    assert {name.rpartition(".lora_")[2] for name in added} == {"A.weight", "B.weight", "magnitude"} and added <= trained


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_merging_keeps_the_function_and_the_names(dtype: torch.dtype, tolerance: float) -> None:
    layer = adapters(adapted())["backbone.blocks.1.experts.gen.mlp.down"].to(dtype)
    x = torch.randn(7, layer.in_features, generator=torch.Generator().manual_seed(1)).to(dtype)
    before = layer(x)
    torch.testing.assert_close(layer.merged()(x), before, rtol=tolerance, atol=tolerance)
    model, names = adapted(), make_model().state_dict().keys()
    before = answers(model)
    assert (before - answers(make_model())).abs().max() > 0.01
    merge_adapters(model)
    assert model.state_dict().keys() == names and not adapters(model)
    torch.testing.assert_close(answers(model), before, rtol=0, atol=1e-12)


def test_half_precision_keeps_small_changes_of_the_magnitudes() -> None:
    torch.manual_seed(0)
    layer = DoRALinear(nn.Linear(16, 8), rank=2, alpha=2.0)
    layer.lora_magnitude.data *= 1.001
    x = torch.randn(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        update = layer.update(x, None)
    assert update.dtype == torch.bfloat16
    torch.testing.assert_close(update.float(), 0.001 * nn.functional.linear(x, layer.weight), rtol=0.05, atol=1e-5)


def test_rows_of_zeros_are_refused_and_magnitudes_follow_weights_that_are_loaded() -> None:
    model = make_model()
    add_adapters(model, BOTH)
    for layer in adapters(model).values():
        layer.weight.data *= 3
    reset_magnitudes(model)
    layer = adapters(model)["backbone.blocks.0.experts.gen.qkv"]
    assert torch.equal(layer.lora_magnitude, layer.weight.norm(dim=1))  # type: ignore[arg-type]
    layer.weight.data[3] = 0
    with pytest.raises(SpecError, match=r"is 'dora', but the weight of 'backbone.blocks.0.experts.gen.qkv' has rows of zeros"):
        reset_magnitudes(model)


# Files


def test_a_folder_goes_back_into_a_plain_model(tmp_path: Path) -> None:
    model = adapted()
    other = make_model()
    for folder in save_adapters(model, tmp_path / "out"):
        assert json.loads((folder / "adapter_config.json").read_text())["use_dora"] is True
        load_adapter_file(other, folder)
    assert f"{QKV}.lora_magnitude_vector" in load_file(tmp_path / "out" / "gen" / "adapter_model.safetensors")
    torch.testing.assert_close(answers(other), answers(model), rtol=0, atol=1e-12)


@pytest.mark.parametrize("stream", ["und", "gen"])
def test_peft_computes_what_we_saved(stream: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model = adapted(LoRASpec(streams=[stream], kind="dora", rank=4, alpha=6.0, dropout=0.1, targets=ALL))
    (folder,) = save_adapters(model, tmp_path)
    theirs = PeftModel.from_pretrained(make_model(), str(folder))
    torch.testing.assert_close(answers(theirs.base_model.model), answers(model), rtol=0, atol=1e-6)


def test_we_compute_what_peft_saved(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    targets = r"backbone\..*\.(und\.qkv|gen\.mlp\.gate_up)"
    theirs = get_peft_model(
        make_model(), LoraConfig(r=2, lora_alpha=7, target_modules=targets, init_lora_weights=False, use_dora=True)
    ).eval()
    for name, parameter in theirs.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1.5
    theirs.save_pretrained(str(tmp_path))
    ours = make_model()
    before = answers(ours)
    load_adapter_file(ours, tmp_path)
    expected = answers(theirs.base_model.model)
    assert (before - expected).abs().max() > 0.01
    torch.testing.assert_close(answers(ours), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{QKV}.lora_magnitude_vector"), "does not hold lora_magnitude_vector of 'backbone.blocks.0.experts.gen.qkv'"),
        (lambda t: t.update({f"{QKV}.lora_magnitude_vector": torch.ones(3)}), r"is \(3,\); expected \(64,\), one number for each row"),
        (lambda t: t[f"{QKV}.lora_magnitude_vector"].fill_(float("nan")), "lora_magnitude_vector' holds NaN or infinity"),
        (
            lambda t: t.update({f"{QKV}.lora_magnitude_vector": torch.ones(64, dtype=torch.int64)}),
            "'base_model.model.backbone.blocks.0.experts.gen.qkv.lora_magnitude_vector' is int64; expected float32",
        ),
    ],
)
def test_what_does_not_fit_changes_nothing(change: Any, message: str, tmp_path: Path) -> None:
    save_adapters(adapted(), tmp_path / "a")
    rewritten(tmp_path / "a" / "gen", change)
    model = make_model()
    with pytest.raises(CheckpointError, match=message):
        load_adapter_file(model, tmp_path / "a" / "gen")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), make_model().parameters(), strict=True))


def test_a_row_that_an_adapter_makes_zero_is_refused(tmp_path: Path) -> None:
    save_adapters(adapted(), tmp_path / "a")
    model = make_model()
    layer = model.get_submodule("backbone.blocks.0.experts.gen.qkv")
    layer.weight.data.zero_()
    rewritten(tmp_path / "a" / "gen", lambda t: t[f"{QKV}.lora_B.weight"][5].zero_())
    with pytest.raises(CheckpointError, match="makes rows of 'backbone.blocks.0.experts.gen.qkv' zero or infinite"):
        load_adapter_file(model, tmp_path / "a" / "gen")


def test_a_magnitude_of_zero_gives_a_row_of_zeros(tmp_path: Path) -> None:
    save_adapters(adapted(), tmp_path / "a")
    name, magnitudes = "backbone.blocks.0.experts.gen.qkv", f"{QKV}.lora_magnitude_vector"
    expected = make_model()
    load_adapter_file(expected, tmp_path / "a" / "gen")
    rewritten(tmp_path / "a" / "gen", lambda t: t[magnitudes][5].zero_())
    model = make_model()
    load_adapter_file(model, tmp_path / "a" / "gen")
    wanted = expected.get_submodule(name).weight.detach().clone()
    wanted[5] = 0
    assert torch.equal(model.get_submodule(name).weight, wanted)
    attached = make_model()
    layer = DoRALinear(attached.get_submodule(name), rank=2, alpha=1.0)
    layer.lora_magnitude.data[5] = 0
    assert bool((layer(torch.randn(3, layer.in_features, dtype=torch.float64))[:, 5] == 0).all())


def test_a_magnitude_that_is_too_large_for_its_row_is_refused(tmp_path: Path) -> None:
    save_adapters(adapted(), tmp_path / "a")
    model = make_model().float()
    layer = model.get_submodule("backbone.blocks.0.experts.gen.qkv")
    layer.weight.data[5] = 1e-18
    rewritten(tmp_path / "a" / "gen", lambda t: (t[f"{QKV}.lora_B.weight"][5].zero_(), t[f"{QKV}.lora_magnitude_vector"][5].fill_(1e30)))
    with pytest.raises(CheckpointError, match="makes rows of 'backbone.blocks.0.experts.gen.qkv' zero or infinite"):
        load_adapter_file(model, tmp_path / "a" / "gen")
