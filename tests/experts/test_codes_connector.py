"""The connector of codes against its parts."""

import pytest
import torch

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Connector
from soundomni.core.representation import HIDDEN, TokenSpec
from soundomni.experts import CodesConnector
from soundomni.experts.sinusoids import place_embedding

TOKENS = TokenSpec((5, 3), (6, 4))


def connector(generates=True):
    torch.manual_seed(0)
    return CodesConnector(tokens=TOKENS, hidden_dim=8, generates=generates)


def test_codes_enter_as_the_sum_of_their_embeddings_and_their_place():
    codes = connector()
    ids = torch.tensor([[4, 0], [HIDDEN, 2], [0, HIDDEN]])
    first, second = (table.weight for table in codes.embeddings)
    expected = torch.stack([first[4] + second[0], first[5] + second[2], first[0] + second[3]])
    places = torch.tensor([0, 7, 2])
    entered = codes.enter(ids, timesteps=torch.rand(3), frames=places)
    torch.testing.assert_close(entered, expected + place_embedding(places, 8))


def test_given_codes_have_neither_places_nor_heads():
    codes = connector(generates=False)
    ids = torch.tensor([[1, HIDDEN]])
    torch.testing.assert_close(codes.enter(ids)[0], codes.embeddings[0].weight[1] + codes.embeddings[1].weight[3])
    assert sorted(codes.state_dict()) == ["embeddings.0.weight", "embeddings.1.weight"]
    with pytest.raises(TypeError, match="generates=False"):
        codes.leave(torch.zeros(1, 8))
    with pytest.raises(ValueError, match="neither timesteps nor frames"):
        codes.enter(ids, frames=torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="needs both timesteps and frames"):
        connector().enter(ids)


def test_logits_are_those_of_the_heads_one_after_the_other():
    codes = connector()
    names = ["embeddings.0.weight", "embeddings.1.weight", "heads.0.bias", "heads.0.weight", "heads.1.bias", "heads.1.weight"]
    assert sorted(codes.state_dict()) == names
    with torch.no_grad():
        for parameter in codes.heads.parameters():
            parameter.normal_()
    hidden = torch.randn(3, 8)
    left = codes.leave(hidden)
    assert left.shape == (3, 10)
    torch.testing.assert_close(left[:, :6], codes.heads[0](hidden))
    torch.testing.assert_close(left[:, 6:], codes.heads[1](hidden))


def test_one_level_runs_only_its_head():
    codes = connector()
    with torch.no_grad():
        for parameter in codes.heads.parameters():
            parameter.normal_()
    hidden = torch.randn(3, 8)
    codes.leave_level(hidden, 1, (6, 4)).sum().backward()
    assert [head.weight.grad is not None for head in codes.heads] == [False, True]
    for level, expected in enumerate(codes.leave(hidden).split([6, 4], dim=1)):
        torch.testing.assert_close(codes.leave_level(hidden, level, (6, 4)), expected)
        torch.testing.assert_close(Connector.leave_level(codes, hidden, level, (6, 4)), expected)  # the default
    with pytest.raises(TypeError, match="generates=False"):
        connector(generates=False).leave_level(hidden, 0, (6, 4))


@pytest.mark.parametrize("tokens", [TokenSpec(4, 4), TokenSpec((4,), 4), TokenSpec(4, (4,))])
def test_numbers_are_refused_with_what_to_use(tokens):
    with pytest.raises(SpecError, match=r"connector 'codes' maps codes, .* Use a connector of numbers, such as linear"):
        CodesConnector(tokens=tokens, hidden_dim=8, generates=True)


def test_arguments_out_of_range_are_named():
    with pytest.raises(SpecError, match="std of connector 'codes' is 0"):
        CodesConnector(tokens=TOKENS, hidden_dim=8, generates=True, std=0.0)
    with pytest.raises(SpecError, match="hidden_dim is 7; expected an even number"):
        CodesConnector(tokens=TOKENS, hidden_dim=7, generates=True)
    CodesConnector(tokens=TOKENS, hidden_dim=7, generates=False)


def test_an_id_beyond_its_level_is_not_taken_for_another():
    with pytest.raises(IndexError):
        connector(generates=False).enter(torch.tensor([[0, 4]]))
