"""Weights that lie column by column: the same values, for files and for training too."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import TOKENIZER, model_spec
from torch import nn

from soundomni import SoundOmni
from soundomni.core.assembly.build import build_model
from soundomni.core.assembly.wide_layers import lay_out_wide_layers
from soundomni.core.spec.schema import Spec


class Tied(nn.Module):
    """A wide layer, a narrow one, a square one, and a head that shares the weight of an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.square = nn.Linear(4, 9), nn.Linear(9, 4), nn.Linear(4, 4)
        self.embedding, self.head = nn.Embedding(11, 4), nn.Linear(4, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.twin = nn.Linear(4, 9, bias=False)
        self.twin.weight = self.wide.weight


def test_only_wide_layers_of_their_own_are_laid_out_and_no_value_changes() -> None:
    model = Tied()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    for _ in range(2):
        lay_out_wide_layers(model)
    assert not model.wide.weight.is_contiguous() and model.wide.weight.t().is_contiguous() and model.twin.weight is model.wide.weight
    assert (
        all(one.weight.is_contiguous() for one in (model.narrow, model.square, model.embedding))
        and model.head.weight is model.embedding.weight
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert dict(model.named_parameters()).keys() == parameters.keys() and all(one is parameters[n] for n, one in model.named_parameters())
    with torch.device("meta"):
        lay_out_wide_layers(Tied())


@pytest.mark.parametrize("rows", [1, 2, 5, 64])
def test_products_are_the_same_and_so_are_gradients(rows: int) -> None:
    torch.manual_seed(0)
    plain, laid = (nn.Linear(16, 40).double() for _ in range(2))
    laid.load_state_dict(plain.state_dict())
    lay_out_wide_layers(laid)
    given = torch.randn(rows, 16, dtype=torch.float64)
    torch.testing.assert_close(laid(given), plain(given))
    for layer in (plain, laid):
        layer(given).square().sum().backward()
    assert laid.weight.grad is not None
    torch.testing.assert_close(laid.weight.grad, plain.weight.grad)


def test_a_model_in_use_is_laid_out_and_one_in_training_is_not(tmp_path: Path) -> None:
    models = [build_model(model_spec(), vocab_size=TOKENIZER.vocab_size, seed=1) for _ in range(2)]
    omni = SoundOmni(models[0], Spec(model=model_spec()), TOKENIZER)
    SoundOmni(models[1], Spec(model=model_spec()), TOKENIZER, in_training=True)
    strided = [[name for name, p in model.named_parameters() if not p.is_contiguous()] for model in models]
    assert strided[1] == [] and any(name.endswith("gate_up.weight") for name in strided[0])
    stored = load_file(omni.save_pretrained(tmp_path / "model") / "model.safetensors")
    assert all(torch.equal(stored[name], p) for name, p in models[1].named_parameters() if name in stored) and len(stored) > 5
