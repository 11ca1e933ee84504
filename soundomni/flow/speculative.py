"""Drawing tokens that a cheap draft has guessed, several with each prediction, from exactly the model's distribution.

Shape letters: B clips, K levels, N tokens, m guesses, n tokens of a prediction, R rows, V classes of one level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from soundomni.core.inference.places_ahead import PlacesAhead
from soundomni.core.inference.token_choice import drawn_tokens, token_weights
from soundomni.core.interfaces import Draft, DraftedSampler, Predict, Prediction
from soundomni.core.limits import check_count
from soundomni.core.representation import HIDDEN, Representation, Tokens
from soundomni.flow.code_choice import CodeChoice, check_tokens, drawn_numbers, end_clips, tokens_to_draw
from soundomni.flow.prompt_lookup import PromptLookup
from soundomni.flow.timestep_schedule import check_begin

MOST_AHEAD, MOST_COMPARED = 256, 256
"""Limits for specs from strangers, in tokens."""


class SpeculativeSampler(DraftedSampler):
    """Lets a draft guess several tokens, has the model check all of them at once, and keeps those that agree.

    Clips follow exactly the distribution of `next-token` with the same settings (Leviathan et al. 2023; Chen et al. 2023). A code
    that the draft drew with probability q is kept with probability min(1, p/q), p being the model's; otherwise it is drawn from
    the positive part of p - q. Tokens after the first one with another code are drawn again. If all guesses are kept, the same
    prediction gives one more token.

    Without a draft model, codes are guessed from what the clip had before. Such guesses are certain, and then a seed gives the
    same clip as with `next-token`.

    Args:
        temperature: divides the logits: below 1, likely codes become likelier; 0 always takes the likeliest code.
        top_k: draw only from this number of likeliest codes of a level, or, below 1, from this share of them, rounded up. Null draws
            from all.
        top_p: draw only from the smallest set of likeliest codes with at least this probability together (Holtzman et al. 2020).
        repetition_penalty: divides positive logits of codes that the level had before, and multiplies negative ones (Keskar et
            al. 2019, section 4.1); 1 changes nothing. The end of a clip is not a repetition.
        repetition_window: number of last tokens whose codes count as had before; null counts all of the clip.
        ahead: most tokens that are guessed for each prediction.
        compared: most tokens by which a clip's earlier codes are looked up, if there is no draft model.

    Raises:
        SpecError: an argument is out of its range.
    """

    takes: ClassVar[Prediction] = "next-token"

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        top_k: int | float | None = None,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        repetition_window: int | None = None,
        ahead: int = 4,
        compared: int = 4,
    ) -> None:
        self._choice = CodeChoice(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            repetition_window=repetition_window,
        )
        check_count("ahead", ahead, most=MOST_AHEAD)
        check_count("compared", compared, most=MOST_COMPARED)
        self.ahead = ahead
        self.compared = compared

    def count_steps(self, start: Representation) -> int:
        """Return the most steps, one for each token to draw: all guesses may be wrong."""
        return len(tokens_to_draw(start))

    def num_evaluations(self, start: Representation) -> int:
        """Return the most predictions that are asked for, one for each token to draw."""
        return len(tokens_to_draw(start))

    def sample(
        self,
        predict: Predict,
        start: Representation,
        *,
        generators: Sequence[torch.Generator],
        begin: float = 1.0,
        on_step: Callable[[int, Tensor], None] | None = None,
        draft: Draft | None = None,
    ) -> Tokens:
        """Fill the hidden cells of tokens `[B, K, N]`; each prediction settles at least one token of every clip.

        Clip b draws 2·K numbers for each of its tokens from `generators[b]`: first those that choose codes, as `next-token`
        does, then those of the draft. Clips go on at places of their own, so that none depends on another.

        Raises:
            TypeError: `start` is not `Tokens`, as an objective that predicts the next token gives it.
        """
        check_begin(begin)
        start = check_tokens(start)
        device = start.values.device
        values, lengths = start.values.cpu().clone(), list(start.frame_counts)
        numbers, drafted = (drawn_numbers(values, start.frame_counts, generators) for _ in range(2))
        guess = PromptLookup(start.spec.codebook_sizes, compared=self.compared) if draft is None else draft
        ask = PlacesAhead(predict, start.values, begin)
        step = 0
        while bool((hidden := (values == HIDDEN).any(1)).any()):
            tokens = torch.where(hidden.any(1), hidden.int().argmax(1), values.shape[-1])
            guessed, shares = self._guesses(guess, values, tokens, drafted, start)
            logits = ask(guessed, tokens, self.ahead + 1)
            self._settle(logits, values, guessed, shares, tokens, numbers, lengths, start)
            if on_step is not None:
                on_step(step, values.to(device, copy=True))
            step += 1
        counts = torch.tensor(lengths, device=device)
        return replace(start, values=values.to(device), lengths=counts, frames=tuple(lengths))

    def _guesses(self, draft: Draft, values: Tensor, tokens: Tensor, numbers: Tensor, start: Tokens) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the ids `[B, K, N]` with guesses in hidden cells from `tokens` on, and what each level's were drawn from.

        The latter are probabilities `[B, m + 1, V]`, all 0 without a guess. Nothing is guessed after the end of a clip, or after
        a token with a level that the draft does not guess.
        """
        clips, _, size = values.shape
        guessed, going = values.clone(), tokens < size
        shares = tuple(torch.zeros(clips, self.ahead + 1, count, dtype=torch.float64) for count in start.spec.codebook_sizes)
        for ahead in range(self.ahead):
            going &= tokens + ahead < size
            at = (tokens + ahead).clamp(max=size - 1)
            every = torch.arange(clips)
            hidden = (values[every, :, at] == HIDDEN) & going[:, None]
            if bool(hidden.any()):
                logits = draft(guessed, at)
                for level, own in enumerate(torch.split(logits, list(start.spec.codebook_sizes), dim=1)):
                    rows = torch.nonzero(hidden[:, level])[:, 0]
                    scores = self._choice.scores(own[rows.to(own.device)], guessed, rows, at[rows], start, level=level)
                    able = (scores > -torch.inf).any(1)
                    scores, rows = scores[able], rows[able.cpu()]
                    weights = self._weights(scores)
                    guessed[rows, level, at[rows]] = drawn_tokens(weights, numbers[rows, level, at[rows]])
                    shares[level][rows, ahead] = weights
            going &= _full(guessed[every, :, at, None], hidden[..., None], start.end)[:, 0]
            if not bool(going.any()):
                break
        return guessed, shares

    def _settle(
        self,
        logits: Tensor,
        values: Tensor,
        guessed: Tensor,
        shares: Sequence[Tensor],
        tokens: Tensor,
        numbers: Tensor,
        lengths: list[int],
        start: Tokens,
    ) -> None:
        """Draw codes in hidden cells from `tokens` on, up to the first token that is not as guessed, in place.

        Args:
            logits: `[B, V_1 + … + V_K, n]` of n tokens from `tokens` on, given the guesses before each.
            values, guessed: ids `[B, K, N]` without and with guesses.
            shares: what `_guesses` returns.
            tokens: int64 `[B]`, the first token of each clip with a hidden cell.
            numbers: float64 `[B, K, N]`, uniform in [0, 1).
            lengths: number of tokens of each clip.
            start: says what ends a clip, and when.
        """
        size = values.shape[-1]
        at = tokens[:, None] + torch.arange(logits.shape[-1])
        inside, at = at < size, at.clamp(max=size - 1)
        index = at[:, None].expand(-1, values.shape[1], -1)
        found = guessed.gather(2, index)
        hidden = (values.gather(2, index) == HIDDEN) & inside[:, None]
        full = _full(found, hidden, start.end)
        hidden &= _so_far(full)[:, None]
        drawn = found.clone()
        for level, own in enumerate(torch.split(logits, list(start.spec.codebook_sizes), dim=1)):
            clips, places = torch.nonzero(hidden[:, level], as_tuple=True)
            at_rows, guess = at[clips, places], found[clips, level, places]
            own = own[clips.to(own.device), :, places.to(own.device)]
            scores = self._choice.scores(own, guessed, clips, at_rows, start, level=level)
            weights = accepted(self._weights(scores), shares[level][clips, places], guess)
            drawn[clips, level, places] = drawn_tokens(weights, numbers[clips, level, at_rows])
        hidden &= _so_far(full & (drawn == found).all(1))[:, None]
        clips, levels, places = torch.nonzero(hidden, as_tuple=True)
        values[clips, levels, at[clips, places]] = drawn[clips, levels, places]
        clips, places = torch.nonzero(hidden[:, 0] & (drawn[:, 0] == start.end), as_tuple=True)
        end_clips(values, lengths, clips.tolist(), at[clips, places].tolist(), start)

    def _weights(self, scores: Tensor) -> Tensor:
        """Return the probabilities `[R, V]` of the classes of a level, on the CPU."""
        if self._choice.temperature == 0.0:
            return one_hot(scores.argmax(-1), scores.shape[1]).double().cpu()
        weights = token_weights(scores, self._choice.sampling(scores.shape[1]))
        return weights / weights.sum(-1, keepdim=True)


def accepted(target: Tensor, draft: Tensor, guess: Tensor) -> Tensor:
    """Return the probabilities `[R, V]` of codes, given what was guessed.

    Averaged over the guesses of the draft, they equal `target` (Leviathan et al. 2023, appendix A.1). A guess with draft
    probability 1 leaves `target` as it is.

    Args:
        target: float64 `[R, V]`, the probabilities p of the codes.
        draft: float64 `[R, V]`, the probabilities q that the guess was drawn from; all 0 without a guess.
        guess: int64 `[R]`; HIDDEN without a guess.
    """
    hit = torch.arange(target.shape[1]) == guess[:, None]
    p, q = ((one * hit).sum(1) for one in (target, draft))
    keep = torch.where(q > 0, (p / q).clamp(max=1.0), 0.0)
    rest = (target - draft).clamp(min=0.0)
    total = rest.sum(1)
    share = torch.where(total > 0, (1.0 - keep) / total, 0.0)
    return rest * share[:, None] + hit * keep[:, None]


def _full(ids: Tensor, hidden: Tensor, end: int) -> Tensor:
    """Return which tokens `[B, n]` of ids `[B, K, n]` have all their codes, and do not end their clip in a cell that was hidden."""
    return (ids != HIDDEN).all(1) & ~(hidden[:, 0] & (ids[:, 0] == end))


def _so_far(agreed: Tensor) -> Tensor:
    """Return up to where `[B, n]` all tokens before are marked."""
    before = torch.nn.functional.pad(agreed[:, :-1].long(), (1, 0), value=1)
    return before.cumprod(1).bool()
