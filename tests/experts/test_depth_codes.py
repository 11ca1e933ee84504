"""The connector with a transformer over levels, against PyTorch's attention in float64 and against its parts.

Shape letters: N tokens, K levels.
"""

import pytest
import torch
from torch.nn import functional

from soundomni.core.errors import SpecError
from soundomni.core.representation import HIDDEN, TokenSpec
from soundomni.experts import CodesConnector, DepthCodesConnector

TOKENS = TokenSpec((5, 3, 4), (6, 3, 4))


def connector(**arguments):
    torch.manual_seed(0)
    depth = DepthCodesConnector(tokens=TOKENS, hidden_dim=8, **{"generates": True, "depth_dim": 12, "num_heads": 3, **arguments}).double()
    with torch.no_grad():
        for parameter in depth.parameters():
            parameter.normal_()
    return depth


def test_logits_are_those_of_a_causal_transformer_over_the_levels():
    depth, ids = connector(), torch.tensor([[5, 0, 3], [HIDDEN, 2, 0]])
    hidden = torch.randn(2, 8, dtype=torch.float64)
    below = [torch.zeros(2, 12, dtype=torch.float64), depth.below[0].weight[[5, 6]], depth.below[1].weight[[0, 2]]]
    x = torch.stack([into(hidden) + code for into, code in zip(depth.inward, below, strict=True)], 1)
    norm = lambda values, weight: values / (values.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight  # noqa: E731
    for layer in depth.layers:
        q, k, v = (
            one.reshape(2, 3, 3, 4).transpose(1, 2)
            for one in functional.linear(norm(x, layer.attention_norm.weight), layer.qkv.weight).chunk(3, -1)
        )
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(2, 3, 12)
        x = x + seen @ layer.out.weight.T
        gate, up = (norm(x, layer.network_norm.weight) @ layer.network.gate_up.weight.T).chunk(2, -1)
        x = x + (functional.silu(gate) * up) @ layer.network.down.weight.T
    x = norm(x, depth.norm.weight)
    expected = torch.cat([x[:, level] @ head.weight.T + head.bias for level, head in enumerate(depth.heads)], -1)
    torch.testing.assert_close(depth.leave(hidden, ids), expected)


def test_codes_enter_as_with_codes():
    depth, ids = connector(), torch.tensor([[4, 0, HIDDEN], [HIDDEN, 2, 1]])
    plain = CodesConnector(tokens=TOKENS, hidden_dim=8, generates=True).double()
    plain.load_state_dict({name: value for name, value in depth.state_dict().items() if name.startswith("embeddings")}, strict=False)
    at = {"timesteps": torch.zeros(2), "frames": torch.tensor([0, 5])}
    assert torch.equal(depth.enter(ids, **at), plain.enter(ids, **at))


def test_given_codes_have_no_small_transformer_and_one_level_needs_no_codes_below():
    given = DepthCodesConnector(tokens=TOKENS, hidden_dim=8, generates=False)
    assert all(name.startswith("embeddings") for name in given.state_dict())
    with pytest.raises(TypeError, match="generates=False"):
        given.leave(torch.zeros(1, 8))
    one = DepthCodesConnector(tokens=TokenSpec((5,), (6,)), hidden_dim=8, generates=True, depth_dim=4)
    assert len(one.below) == 0 and one.leave(torch.zeros(2, 8)).shape == (2, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth_dim": 0}, "depth_dim of connector 'depth-codes' is 0; expected at least 1"),
        ({"num_layers": 0}, "num_layers of connector 'depth-codes' is 0; expected at least 1"),
        ({"depth_dim": 10, "num_heads": 4}, "depth_dim of connector 'depth-codes' is 10; expected a multiple of num_heads, 4"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(arguments, message):
    with pytest.raises(SpecError, match=message):
        connector(**arguments)
