"""Adapters: what they compute, where they go, and their files, against the package peft itself."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import contexts_of, make_model, one_forward, rule
from torch import Tensor, nn
from unusual_dtypes import BITS, with_dtype

from soundomni.core.assembly.lora import add_adapters, merge_adapters
from soundomni.core.assembly.lora_linear import LoRALinear
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import CheckpointError, SpecError
from soundomni.core.interfaces import Backbone
from soundomni.core.pretrained.adapters import load_adapter_file, save_adapters
from soundomni.core.pretrained.omni import SoundOmni
from soundomni.core.spec.schema import LoRASpec

ALL = ["qkv", "output", "gate_up", "down"]
BOTH = LoRASpec(streams=["und", "gen"], rank=3, alpha=5.0, targets=ALL)


def adapted(spec: LoRASpec = BOTH, router: str = "modality") -> UnifiedModel:
    """A model whose adapters are random in both matrices, of values that float32 holds."""
    model = make_model(router)
    add_adapters(model, spec)
    generator = torch.Generator().manual_seed(3)
    for layer in adapters(model).values():
        for matrix in (layer.lora_A.weight, layer.lora_B.weight):
            matrix.data.copy_(0.3 * torch.randn(matrix.shape, generator=generator))
    return model


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


@torch.no_grad()
def answers(model: UnifiedModel) -> Tensor:
    """What a model predicts of noise after a text, through both streams: `[1, D, T]`."""
    values = torch.randn(1, 16, 5, generator=torch.Generator().manual_seed(0)).double()
    return one_forward(model, contexts_of(model, ["one two"])[0], values, torch.full((1, 5), 0.7), rule("shared"))


def test_a_model_directory_holds_no_adapters_that_are_not_merged(tmp_path: Path) -> None:
    omni = SoundOmni.from_pretrained("nano")
    add_adapters(omni.model, LoRASpec(streams=["und"]))
    with pytest.raises(CheckpointError, match="Call merge_adapters first"):
        omni.save_pretrained(tmp_path / "out")
    merge_adapters(omni.model)
    SoundOmni.from_pretrained(omni.save_pretrained(tmp_path / "out"))


def test_a_layer_computes_the_formula() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(6, 4).double()
    layer = LoRALinear(linear, rank=2, alpha=3.0)
    x = torch.randn(5, 6).double()
    assert torch.equal(layer(x), linear(x))
    layer.lora_B.weight.data.normal_()
    update = 1.5 * layer.lora_B.weight @ layer.lora_A.weight
    torch.testing.assert_close(layer(x), linear(x) + x @ update.T)
    before, after = layer(x), layer.merged()(x)
    torch.testing.assert_close(after, before)
    assert type(layer.merged()) is nn.Linear


def test_dropout_needs_gradients_and_keeps_the_mean() -> None:
    layer = LoRALinear(nn.Linear(40, 1, bias=False).requires_grad_(False), rank=1, alpha=1.0, dropout=0.25)
    layer.weight.zero_()
    layer.lora_A.weight.data.fill_(1.0)
    layer.lora_B.weight.data.fill_(1.0)
    x = torch.ones(2000, 40)
    with torch.no_grad():
        assert torch.equal(layer(x), torch.full((2000, 1), 40.0))
    torch.manual_seed(0)
    dropped = layer(x).detach()
    assert dropped.std() > 1 and dropped.mean().item() == pytest.approx(40, abs=0.5)


@pytest.mark.parametrize(
    ("router", "streams"), [("modality", ["und", "gen"]), ("modality", ["gen"]), ("dense", ["all"]), ("top-k", ["und"])]
)
def test_a_new_adapter_changes_nothing_and_alone_is_trained(router: str, streams: list[str]) -> None:
    model = make_model(router)
    before, names = answers(model), model.state_dict().keys()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    own = {name for name, p in model.named_parameters() if any(p is q for s in streams for q in model.backbone.expert_parameters(s))}
    add_adapters(model, LoRASpec(streams=streams, targets=ALL))
    assert torch.equal(answers(model), before)
    now = {name for name, p in model.named_parameters() if p.requires_grad}
    added = model.state_dict().keys() - names
    assert names <= model.state_dict().keys() and now == (trained - own) | added
    kinds = {name.rpartition(".lora_")[0].rpartition(".")[2] for name in added}
    assert kinds == {"qkv", "output", "gate_up", "down"}
    assert all(f".experts.{name.split('.')[4]}." in name and name.split(".")[4] in streams for name in added)


def test_first_weights_follow_from_the_seed_alone() -> None:
    models = [make_model() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        torch.rand(seed)
        add_adapters(model, BOTH, seed=seed)
    first, same, other = (next(iter(adapters(model).values())).lora_A.weight for model in models)
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert first.abs().max() <= 32**-0.5, "Kaiming-uniform as of any linear layer"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_merging_keeps_the_function_and_the_names(dtype: torch.dtype, tolerance: float) -> None:
    names = make_model().state_dict().keys()
    model = adapted()
    layer = adapters(model)["backbone.blocks.1.experts.gen.mlp.down"].to(dtype)
    x = torch.randn(7, layer.in_features, generator=torch.Generator().manual_seed(1)).to(dtype)
    before = layer(x)
    torch.testing.assert_close(layer.merged()(x), before, rtol=tolerance, atol=tolerance)
    model = adapted()
    before = answers(model)
    assert (before - answers(make_model())).abs().max() > 0.01
    merge_adapters(model)
    assert model.state_dict().keys() == names and not adapters(model)
    torch.testing.assert_close(answers(model), before, rtol=0, atol=1e-12)


class OtherBackbone(Backbone):
    """Of someone else: other names, a head among the layers' parameters, and an attention of torch that uses a weight by itself."""

    hidden_dim, num_kv_heads, head_dim = 8, 1, 8

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.towers = nn.ModuleList(
            nn.ModuleDict({s: nn.ModuleDict({"q_proj": nn.Linear(8, 8), "mha": nn.MultiheadAttention(8, 1)}) for s in ("und", "gen")})
            for _ in range(2)
        )
        self.lm_head = nn.Linear(8, 8)
        if tied:
            self.towers[1]["und"]["q_proj"].weight = self.towers[0]["und"]["q_proj"].weight

    @property
    def layers(self) -> nn.ModuleList:
        return self.towers

    def embed(self, token_ids: Tensor) -> Tensor:
        raise NotImplementedError

    def head(self, hidden: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, streams: Any, layout: Any) -> Any:
        raise NotImplementedError

    def expert_parameters(self, stream: str) -> list[nn.Parameter]:
        return [p for tower in self.towers for p in tower[stream].parameters()] + list(self.lm_head.parameters())


def test_layers_of_any_backbone_are_found_by_their_parameters(tmp_path: Path) -> None:
    model = make_model()
    model.backbone = OtherBackbone()
    add_adapters(model, LoRASpec(streams=["gen"], targets=["q_proj"]))
    assert list(adapters(model)) == ["backbone.towers.0.gen.q_proj", "backbone.towers.1.gen.q_proj"]
    assert not model.backbone.lm_head.weight.requires_grad and model.backbone.towers[0]["und"]["q_proj"].weight.requires_grad
    for target in ("lm_head", "out_proj"):
        with pytest.raises(SpecError, match=f"unknown linear layer '{target}'.* Layers: q_proj"):
            add_adapters(model, LoRASpec(streams=["und"], targets=[target]))
    save_adapters(model, tmp_path)
    model.backbone = OtherBackbone(tied=True)
    with pytest.raises(
        SpecError, match=r"'backbone.towers.0.und.q_proj.weight' and 'backbone.towers.1.und.q_proj.weight' share one weight"
    ):
        add_adapters(model, LoRASpec(streams=["und"], targets=["q_proj"]))
    assert model.backbone.towers[0]["und"]["q_proj"].weight.requires_grad
    model.backbone.towers[1]["gen"]["q_proj"].weight = model.backbone.towers[0]["gen"]["q_proj"].weight
    with pytest.raises(SpecError, match="share one weight"):
        load_adapter_file(model, tmp_path / "gen")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (LoRASpec(streams=["gan"]), "train.lora.streams: unknown expert stream 'gan'. Did you mean 'gen'? Streams: und, gen"),
        (
            LoRASpec(streams=["gen"], targets=["qkv", "mlp.dwn"]),
            "unknown linear layer 'mlp.dwn'. Did you mean 'down'? Layers: down, gate_up,",
        ),
    ],
)
def test_what_does_not_exist_is_named_and_nothing_is_frozen(spec: LoRASpec, message: str) -> None:
    model = make_model()
    with pytest.raises(SpecError) as error:
        add_adapters(model, spec)
    assert message in str(error.value)
    assert all(p.requires_grad for p in model.backbone.parameters()) and not adapters(model)


# Files


def test_each_stream_is_a_folder_and_goes_back_into_a_plain_model(tmp_path: Path) -> None:
    model = adapted()
    folders = save_adapters(model, tmp_path / "out", base="my/base")
    assert folders == [tmp_path / "out" / "und", tmp_path / "out" / "gen"]
    config = json.loads((folders[0] / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (3, 5, "my/base")
    names = load_file(folders[1] / "adapter_model.safetensors")
    assert len(names) == 16 and "base_model.model.backbone.blocks.0.experts.gen.qkv.lora_A.weight" in names
    other = make_model()
    for folder in folders:
        load_adapter_file(other, folder)
    torch.testing.assert_close(answers(other), answers(model), rtol=0, atol=1e-12)
    with pytest.raises(CheckpointError, match="is not an empty folder"):
        save_adapters(model, tmp_path / "out")
    with pytest.raises(
        CheckpointError, match="has no adapter_config.json; expected a folder in peft's format. Name one of its folders: gen, und"
    ):
        load_adapter_file(other, tmp_path / "out")
    with pytest.raises(CheckpointError, match="the model has no adapters to write"):
        save_adapters(make_model(), tmp_path / "none")


@pytest.mark.parametrize("stream", ["und", "gen"])
def test_peft_computes_what_we_saved(stream: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model = adapted(LoRASpec(streams=[stream], rank=4, alpha=6.0, dropout=0.1, targets=ALL))
    (folder,) = save_adapters(model, tmp_path)
    theirs = PeftModel.from_pretrained(make_model(), str(folder))
    assert not theirs.training and theirs.peft_config["default"].lora_dropout == 0.1
    torch.testing.assert_close(answers(theirs.base_model.model), answers(model), rtol=0, atol=1e-6)


def test_we_compute_what_peft_saved(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=7, target_modules=r"backbone\..*\.(und\.qkv|gen\.mlp\.gate_up)", init_lora_weights=False)
    theirs = get_peft_model(make_model(), config).eval()
    theirs.save_pretrained(str(tmp_path))
    ours = make_model()
    before = answers(ours)
    load_adapter_file(ours, tmp_path)
    expected = answers(theirs.base_model.model)
    assert (before - expected).abs().max() > 0.01
    torch.testing.assert_close(answers(ours), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("setting", [{"use_rslora": True}, {"rank_pattern": {"qkv": 4}}, {"init_lora_weights": "pissa"}, {"bias": "all"}])
def test_other_kinds_that_peft_saves_are_refused(setting: dict[str, Any], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    get_peft_model(make_model().float(), LoraConfig(r=2, target_modules=["qkv"], **setting)).save_pretrained(str(tmp_path))
    with pytest.raises(CheckpointError, match=next(iter(setting))):
        load_adapter_file(make_model(), tmp_path)


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")


QKV = "base_model.model.backbone.blocks.0.experts.gen.qkv"


@pytest.mark.parametrize("dtype", BITS)
def test_numbers_of_another_kind_are_refused(dtype: str, tmp_path: Path) -> None:
    save_adapters(adapted(), tmp_path)
    model, file = make_model(), tmp_path / "gen" / "adapter_model.safetensors"
    with_dtype(file, f"{QKV}.lora_A.weight", dtype)
    with pytest.raises(CheckpointError, match=f"'{file}'") as caught:
        load_adapter_file(model, tmp_path / "gen")
    assert "\n" not in str(caught.value)
    assert dtype.startswith("F6") or re.search(rf": '{QKV}.lora_A.weight' is \w+; expected float32, float16", str(caught.value))


DAMAGE: list[tuple[Callable[[dict[str, Tensor]], Any], str]] = [
    (lambda t: t.pop(f"{QKV}.lora_B.weight"), "does not hold lora_B.weight of 'backbone.blocks.0.experts.gen.qkv'; expected base_model"),
    (lambda t: t.update({f"{QKV}.lora_magnitude_vector": torch.ones(1)}), "lora_magnitude_vector'; expected only base_model.model.<layer>"),
    (
        lambda t: t.update({f"{QKV}.lora_A.weight": torch.ones(2, 32)}),
        r"are \(2, 32\) and \(64, 3\); expected \(r, I\) and \(O, r\) with r = 3",
    ),
    (lambda t: t.update({f"{QKV}.lora_A.weight": torch.ones(3, 31)}), r"of shape \(64, 31\); expected \(64, 32\)"),
    (
        lambda t: t.update({f"{QKV}2.lora_{m}.weight": t[f"{QKV}.lora_{m}.weight"].clone() for m in "AB"}),
        "adapts 'backbone.blocks.0.experts.gen.qkv2', which is not a linear layer of this model. Did you mean",
    ),
    (lambda t: t.clear(), "holds no adapter"),
    (lambda t: t[f"{QKV}.lora_B.weight"][1].fill_(float("nan")), "'base_model.model.backbone.*qkv.lora_B.weight' holds NaN or infinity"),
    (lambda t: t[f"{QKV}.lora_A.weight"][:1].fill_(float("-inf")), "'base_model.model.backbone.*qkv.lora_A.weight' holds NaN or infinity"),
    (
        lambda t: t.update({f"{QKV}.lora_A.weight": torch.ones(3, 32, dtype=torch.int64)}),
        "'base_model.model.backbone.blocks.0.experts.gen.qkv.lora_A.weight' is int64; expected float32",
    ),
    (lambda t: t.update({f"{QKV}.lora_A.weight": torch.ones(96)}), r"are \(96,\) and \(64, 3\); expected"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGE)
def test_what_does_not_fit_changes_nothing(change: Callable[[dict[str, Tensor]], None], message: str, tmp_path: Path) -> None:
    save_adapters(adapted(), tmp_path / "a")
    rewritten(tmp_path / "a" / "gen", change)
    model = make_model()
    with pytest.raises(CheckpointError, match=message):
        load_adapter_file(model, tmp_path / "a" / "gen")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), make_model().parameters(), strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "expected a JSON object"),
        ('{"peft_type": "IA3"}', "is not a LoRA config"),
        ('{"peft_type": "LORA", "r": true, "lora_alpha": 1}', "r is True; expected a whole number from 1 to 65,536"),
        ('{"peft_type": "LORA", "r": 3, "lora_alpha": NaN}', "lora_alpha is nan; expected a number above 0"),
        *(
            (
                f'{{"peft_type": "LORA", "r": 3, "lora_alpha": {alpha}}}',
                "lora_alpha is .*; expected a number above 0 and at most 1,000,000 times r",
            )
            for alpha in ("1e308", "1e7", "Infinity", "-Infinity", "0", "-2", "null", '"16"', "true", "1" + "0" * 400, "[16]")
        ),
        *(
            (f'{{"peft_type": "LORA", "r": {rank}, "lora_alpha": 1}}', "r is .*; expected a whole number from 1 to")
            for rank in ("0", "-3", "3.0", "1e308", "NaN", '"3"', "null", "1" + "0" * 400, "100000000")
        ),
        (
            '{"peft_type": "LORA", "r": 3, "lora_alpha": ' + "9" * 5000 + "}",
            "cannot be read as JSON: it has a whole number of too many digits",
        ),
        ('{"a": ' * 100_000, "cannot be read as JSON: it is nested too deeply"),
        (
            '{"peft_type": "LORA", "r": 3, "lora_alpha": 1, "use_next_idea": true}',
            "sets use_next_idea; only plain LoRA and DoRA are",
        ),
    ],
)
def test_configs_of_something_else_are_refused(text: str, message: str, tmp_path: Path) -> None:
    save_adapters(adapted(), tmp_path / "a")
    (tmp_path / "a" / "gen" / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_adapter_file(make_model(), tmp_path / "a" / "gen")


def test_an_adapter_that_makes_weights_infinite_is_refused(tmp_path: Path) -> None:
    save_adapters(adapted(), tmp_path / "a")
    rewritten(tmp_path / "a" / "gen", lambda t: t[f"{QKV}.lora_A.weight"].fill_(3e38))
    model, before = make_model().float(), make_model().float()
    with pytest.raises(CheckpointError, match="may change 'backbone.blocks.0.experts.gen.qkv' by up to .*; expected at most 1.7e"):
        load_adapter_file(model, tmp_path / "a" / "gen")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_a_rank_beyond_the_layer_is_refused(tmp_path: Path) -> None:
    save_adapters(adapted(), tmp_path / "a")
    config = tmp_path / "a" / "gen" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 65}))
    rewritten(
        tmp_path / "a" / "gen",
        lambda t: t.update({n: torch.ones(65, x.shape[1]) if "A" in n else torch.ones(x.shape[0], 65) for n, x in t.items()}),
    )
    with pytest.raises(CheckpointError, match=r"of shape \(\d+, 32\) with r = 65; expected at most (32|64)"):
        load_adapter_file(make_model(), tmp_path / "a" / "gen")


def test_an_adapter_names_its_base_without_the_path_to_it(tmp_path: Path) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    names = {
        str(tmp_path / "models" / "mine"): "mine",
        str(tmp_path / "gone" / "other"): "other",
        "nano": "nano",
        "my/base@v1": "my/base@v1",
    }
    for i, (base, name) in enumerate(names.items()):
        save_adapters(adapted(), tmp_path / str(i), base=base)
        config = (tmp_path / str(i) / "gen" / "adapter_config.json").read_text()
        assert json.loads(config)["base_model_name_or_path"] == name and str(tmp_path) not in config


def test_missing_weights_are_named(tmp_path: Path) -> None:
    save_adapters(adapted(), tmp_path / "a")
    shutil.move(tmp_path / "a" / "gen" / "adapter_model.safetensors", tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="no weights at '.*adapter_model.safetensors'"):
        load_adapter_file(make_model(), tmp_path / "a" / "gen")
