"""Conformance of objectives that predict the next token.

Shape letters: B clips, K codebooks, T frames, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import le
from typing import ClassVar

import torch
from torch import Tensor

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Objective, Query
from soundomni.core.representation import EMPTY, HIDDEN, Representation, RepresentationSpec, Tokens, length_mask
from soundomni.core.sequence import Attend
from soundomni.testing.objective import GIVEN, LENGTHS, NOISE, ObjectiveSuite
from soundomni.testing.suite import generator, number


class NextTokenObjectiveSuite(ObjectiveSuite):
    """Clauses of `soundomni.core.interfaces.Objective`, for those that predict the next token of codes.

    Attributes:
        representation: spec of the codes.
        tokens_vary: whether the codes of a clip decide how many tokens it has; then `num_tokens` is the most, and `start` hides tokens
            that may not be needed.
        tolerance: largest difference between results that should be equal, relative above magnitude 1.
    """

    representation: ClassVar[RepresentationSpec] = RepresentationSpec(
        kind="codes", sample_rate=8000, channels=1, downsampling_ratio=100, codebook_sizes=(4, 3)
    )
    tokens_vary: ClassVar[bool] = False

    def test_shapes(self) -> None:
        """Inputs and targets are int64 `[B, K, N]` for the ids of a token; timesteps are `[B, N]`, the mask bool `[B, N]`; tokens attend
        causally."""
        objective = self.built()
        query = self._corrupt(objective)
        attend = objective.attend
        self.require(attend == Attend.CAUSAL, "shapes", f"attend is {attend!r}; expected Attend.CAUSAL for the next token")
        size = [len(LENGTHS), query.inputs.shape[-1]]
        ids = [size[0], objective.tokens(self.representation).num_inputs, size[1]]
        for name, wanted, dtype in (
            ("inputs", ids, torch.int64),
            ("targets", ids, torch.int64),
            ("loss_mask", size, torch.bool),
            ("timesteps", size, query.timesteps.dtype),
        ):
            tensor = getattr(query, name)
            found, expected = f"{tensor.dtype} {list(tensor.shape)}", f"{dtype} {wanted}"
            self.require(found == expected, "shapes", f"{name} are {found}; expected {expected}")

    def test_clean(self) -> None:
        """Clips that are not targets are shown as `given` says, at timestep 0 and without loss; all tokens of targets are at timestep
        1."""
        objective = self.built()
        query, given = self._corrupt(objective), objective.given(self._clean())
        for clip, (count, noisy) in enumerate(zip(self._counts(objective), NOISE, strict=True)):
            wanted = float(noisy)
            same = bool((query.timesteps[clip, :count] == wanted).all())
            self.require(same, "clean", f"tokens of clip {clip} got timesteps other than {wanted:g}; expected {wanted:g}")
            if not noisy:
                message = f"clip {clip}, which is not a target, is shown in another way than `given` says"
                self.require_close(query.inputs[clip, :, :count], given[clip, :, :count], 0.0, "clean", message)
                self.require(not bool(query.loss_mask[clip].any()), "clean", f"clip {clip} counts in the loss; expected it not to")

    def test_corrupts(self) -> None:
        """Targets are shown as `given` says, or HIDDEN where they are forgotten; the first place shows nothing."""
        objective = self.built()
        query, given = self._corrupt(objective), objective.given(self._clean())
        for clip, count in enumerate(self._counts(objective)):
            shown = query.inputs[clip, :, :count]
            other = (shown != HIDDEN) & (shown != given[clip, :, :count])
            self.require(not bool(other.any()), "corrupts", f"clip {clip} is shown other ids than `given` says; expected these, or HIDDEN")
            self.require(bool((shown[:, 0] == HIDDEN).all()), "corrupts", "the first place shows an id; expected HIDDEN")

    def test_hidden(self) -> None:
        """The targets, put into the hidden cells of `start`, are tokens that `made` turns into the clean codes."""
        objective, clean = self.built(), self._clean()
        known = length_mask(torch.tensor(GIVEN), max(LENGTHS))
        query = self._corrupt(objective, targets=True)
        start = self._start(objective, clean, known)
        filled = torch.where(start.values == HIDDEN, query.targets, start.values)
        for clip, noisy in enumerate(NOISE):
            if not noisy:
                continue
            hidden = start.values[clip] == HIDDEN
            asked = query.targets[clip] != HIDDEN
            needed = int(torch.nonzero(asked.any(0))[-1]) + 1 if self.tokens_vary else asked.shape[1]
            missing = int((hidden & ~asked)[:, :needed].sum())
            self.require(missing == 0, "hidden", f"clip {clip} has {missing} hidden cells at the start that are not predicted")
            more = int((asked & ~hidden).sum())
            right = more <= 1 if self.tokens_vary else more == 1
            self.require(right, "hidden", f"clip {clip} predicts {more} ids that are not hidden at the start; expected its end only")
            one = self._one(start, filled, clip)
            made = objective.made(one)
            self.require(isinstance(made, Representation), "hidden", f"made returned {made!r}; expected a Representation")
            frames = int(made.lengths[0])
            self.require(frames == LENGTHS[clip], "hidden", f"made gave clip {clip} {frames} frames; expected {LENGTHS[clip]}")
            message = f"made did not turn the targets of clip {clip} into its codes"
            self.require_close(made.values[0, :, :frames], clean.values[clip, :, :frames], 0.0, "hidden", message)
            same = made.spec == self.representation
            self.require(same, "hidden", f"made gave codes of the spec {made.spec}; expected that of the codec")

    def test_start(self) -> None:
        """`start` gives `Tokens`: of each clip as many as `num_tokens` says, hidden except for known codes and the last end; it changes
        nothing in place, and refuses frames that the objective cannot make. With `tokens_vary`, there are at most as many."""
        objective, clean = self.built(), self._clean()
        kept = clean.values.clone()
        known = length_mask(torch.tensor(GIVEN), max(LENGTHS))
        start = self._start(objective, clean, known)
        self.require(isinstance(start, Tokens), "start", f"start returned a {type(start).__name__}; expected Tokens")
        self.require(torch.equal(clean.values, kept), "start", "the given codes were changed in place; expected them to stay as they were")
        wanted, found = self._counts(objective), start.frame_counts
        right = all(map(le, found, wanted)) if self.tokens_vary else found == wanted
        self.require(right, "start", f"clips of {LENGTHS} frames start with {found} tokens; expected {wanted}")
        classes = objective.tokens(self.representation).outputs
        same = start.spec.codebook_sizes == classes
        self.require(same, "start", f"the spec of the start has codebooks of {start.spec.codebook_sizes}; expected all classes, {classes}")
        levels = self.representation.token_dim
        for clip, (frames, given, count) in enumerate(zip(LENGTHS, GIVEN, found, strict=True)):
            hidden, beyond = int((start.values[clip] == HIDDEN).sum()), start.values[clip, :, count:]
            expected = levels * (frames - given)
            right = hidden >= expected if self.tokens_vary else hidden == expected
            self.require(right, "start", f"clip {clip} starts with {hidden} hidden cells; expected {expected}")
            ends = int((start.values[clip] == start.end).sum()) if start.end >= max(self.representation.codebook_sizes) else 1
            self.require(ends == 1, "start", f"clip {clip} starts with {ends} ends; expected one, after its last frame")
            self.require(bool((beyond == EMPTY).all()), "start", f"tokens beyond clip {clip} are not EMPTY")
        gap = torch.zeros_like(known)
        gap[:, 1] = True
        self._refuse(objective, gap, "start")

    def _refuse(self, objective: Objective, known: Tensor, clause: str) -> None:
        """Require that `start` takes known frames if and only if `check_known` does."""
        refused = []
        for check in (lambda: objective.check_known(known), lambda: self._start(objective, self._clean(), known)):
            try:
                check()
                refused.append(False)
            except SpecError:
                refused.append(True)
        self.require(refused[0] == refused[1], clause, "check_known and start do not refuse the same known frames")

    def test_ended(self) -> None:
        """A clip that ends early has the tokens of a clip of that length, which begin like those of the longer one; none ends before
        `earliest`."""
        objective, clean = self.built(), self._clean()
        whole = self._start(objective, clean, torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.bool))
        for frames in range(1, max(LENGTHS)):
            lengths = torch.tensor([frames])
            short = Representation(clean.values[:1, :, :frames], lengths, clean.spec)
            start = self._start(objective, short, torch.zeros(1, frames, dtype=torch.bool))
            (token,) = torch.nonzero(start.values[0, 0] == start.end)[-1:, 0].tolist()
            self.require(
                token >= whole.earliest or frames <= self.representation.extra_frames,
                "ended",
                f"a clip of {frames} frames ends at token {token}, but earliest is {whole.earliest}",
            )
            rest = whole.ended(0, token)
            message = f"a clip that ends at token {token} does not have the tokens of a clip of {frames} frames"
            self.require_close(rest, start.values[0], 0.0, "ended", message)
            message = f"a clip of {frames} frames has other tokens before its end than a longer one"
            self.require_close(start.values[0, :, :token], whole.values[0, :, :token], 0.0, "ended", message)

    def test_causal(self) -> None:
        """A place shows nothing of the tokens to predict there and after it: if a code changes, places up to its token stay as they
        are."""
        objective, clean = self.built(), self._clean((max(LENGTHS),))
        query = self._whole_query(objective, clean)
        for level, size in enumerate(self.representation.codebook_sizes):
            for frame in range(max(LENGTHS)):
                values = clean.values.clone()
                values[0, level, frame] = (values[0, level, frame] + 1) % size
                other = self._whole_query(objective, clean.with_values(values))
                (changed,) = torch.nonzero((other.targets != query.targets).any(1)[0])[:1, 0].tolist() or [-1]
                self.require(changed >= 0, "causal", f"no target changes with the code of level {level} in frame {frame}; expected one")
                same = torch.equal(other.inputs[..., : changed + 1], query.inputs[..., : changed + 1])
                message = f"place {changed} or one before it shows the code of level {level} in frame {frame}, which comes later"
                self.require(same, "causal", message)

    def test_counts(self) -> None:
        """`loss_names` names what `loss` returns, and each counts what `num_terms` says; the mask has the tokens with targets."""
        objective = self.built()
        query = self._corrupt(objective)
        wanted = (query.targets != HIDDEN).any(1)
        self.require_close(query.loss_mask, wanted, 0.0, "counts", "loss_mask is not the tokens of which an id is predicted")
        made = [frames - given for frames, given, noisy in zip(LENGTHS, GIVEN, NOISE, strict=True) if noisy]
        expected = sum(objective.num_terms(self.representation, frames) for frames in made)
        losses = objective.loss(self.prediction(query, 0), query)
        found, names = sorted(losses), sorted(objective.loss_names)
        self.require(found == names, "counts", f"loss returned {found}, but loss_names says {names}")
        for name, (total, count) in losses.items():
            message = f"loss '{name}' counts {number(count):g}, but num_terms says {expected}"
            self.require(number(count) == expected, "counts", message)
            self.require(
                total.ndim == 0 and bool(total.isfinite()), "counts", f"the sum of loss '{name}' is {total!r}; expected a finite scalar"
            )

    def _counts(self, objective: Objective, lengths: Sequence[int] = LENGTHS) -> tuple[int, ...]:
        return tuple(objective.num_tokens(self.representation, frames) for frames in lengths)

    def _start(self, objective: Objective, given: Representation, known: Tensor) -> Tokens:
        start = objective.start(given, known, [generator(clip) for clip in range(len(known))])
        assert isinstance(start, Tokens), f"start returned a {type(start).__name__}; expected Tokens"
        return start

    def _whole_query(self, objective: Objective, clean: Representation) -> Query:
        clips = len(clean.values)
        none, all_of_them = torch.zeros(clips, clean.values.shape[-1], dtype=torch.bool), torch.ones(clips, dtype=torch.bool)
        return objective.corrupt(clean, known=none, noise=all_of_them, generators=[generator(clip) for clip in range(clips)])

    def _one(self, start: Tokens, values: Tensor, clip: int) -> Tokens:
        count = start.frame_counts[clip]
        return replace(start, values=values[clip : clip + 1, :, :count], lengths=torch.tensor([count]), frames=(count,))
