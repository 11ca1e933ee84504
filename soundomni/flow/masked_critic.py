"""Masked codes with a token critic, which learns which of the model's own guesses are right (Token-Critic, Lezama et al. 2022, 3.2).

Shape letters: B clips, K levels, T frames, V_k vocabulary of level k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from soundomni.core.interfaces import LossTerms, Query, Review
from soundomni.core.representation import HIDDEN, RepresentationSpec
from soundomni.flow.code_draws import draw_codes, uniform
from soundomni.flow.masked import Masked


class TokenCritic(Review):
    """Fills the requested cells with codes drawn from the model's prediction, and asks for each cell whether its code is right.

    There is one score for each level of a frame, the logit of "this is the code of the clip". The loss, named "critic", is the binary
    cross-entropy over all cells of the level that was asked for, in the frames that count; cells that were visible are right. Cells of
    levels above stay hidden. The critic is not told which cells were filled.
    """

    loss_names: ClassVar[tuple[str, ...]] = ("critic",)

    def num_scores(self, spec: RepresentationSpec) -> int:
        """Return K."""
        return spec.token_dim

    def query(self, prediction: Tensor, asked: Query, *, frames: Sequence[int], generators: Sequence[torch.Generator]) -> Query:
        """Return the clips with the cells filled that were asked for; targets `[B, K, T]` are 1 for right codes and 0 for wrong ones.

        A clip draws a number for each of its frames. Nothing else is random, and padding changes nothing.
        """
        if not len(asked.inputs):  # a batch without clips has no levels
            return asked
        inputs, hidden = asked.inputs.clone(), asked.targets != HIDDEN
        numbers = uniform(1, frames, inputs[:, 0], generators)[0]
        for level, logits in enumerate(torch.split(prediction, list(asked.levels), dim=1)):
            clips = hidden[:, level].any(1).nonzero()[:, 0]  # each clip has one level to predict
            drawn = draw_codes(logits[clips].double().log_softmax(1), numbers[clips])
            inputs[clips, level] = torch.where(hidden[clips, level], drawn, inputs[clips, level])
        right = ~hidden | (inputs == asked.targets)
        judged = hidden.any(2, keepdim=True) & asked.loss_mask[:, None]
        return replace(asked, inputs=inputs, targets=right.long().masked_fill(~judged, HIDDEN), levels=(1,) * inputs.shape[1])

    def loss(self, prediction: Tensor, query: Query) -> LossTerms:
        """Return the sum of the binary cross-entropy of scores `[B, K, T]` over the cells to judge, and their number.

        There is one such cell in each frame that counts. Other cells have no gradient.
        """
        if not len(query.levels):
            return {"critic": (prediction.float().sum(), query.loss_mask.sum())}
        judged = query.targets != HIDDEN
        nats = functional.binary_cross_entropy_with_logits(prediction.float(), (query.targets == 1).float(), reduction="none")
        return {"critic": (torch.where(judged, nats, 0.0).sum(), query.loss_mask.sum())}


class MaskedCritic(Masked):
    """Hides and predicts codes as `masked` does, and trains a token critic on codes drawn from the predictions, for `maskgit-critic`.

    Each training step runs the network twice: on clips with hidden cells, whose loss is "masked", and on the same clips with these cells
    filled, whose loss is "critic". Nothing flows back through what was drawn. The scores leave through heads of their own of the same
    network, a self critic; with `model.critic` they come from a network of their own. Weigh the losses with `train.loss_weights`.

    Args:
        prompts, levels: as in `masked`.

    Raises:
        SpecError: `prompts` or `levels` is out of its range.
    """

    review: ClassVar[Review] = TokenCritic()
