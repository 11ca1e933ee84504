"""Conformance of objectives.

Shape letters: B clips, D latent dimensions, K codebooks, T frames.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from soundomni.core.interfaces import Objective, Query
from soundomni.core.representation import HIDDEN, Representation, RepresentationSpec, TokenSpec, length_mask
from soundomni.testing.suite import ConformanceSuite, generator, noise, number, seeded

LENGTHS = (7, 4, 5, 1)
NOISE = (True, True, False, True)
GIVEN = (0, 2, 0, 0)
WIDE, NEAREST, MOST_SEEDS = 400, 0.1, 200
"""Frames of the clips for measuring velocities, how near their timesteps come to 0 and 1, and how many seeds may be
tried for that."""
DIFFERENCE, STEP, SPREAD = 5e-3, 0.1, 0.15
"""Difference of the timesteps for measuring a velocity; change of predictions from the velocity; deviation of the noise
from 1."""


class ObjectiveSuite(ConformanceSuite):
    """Clauses of `soundomni.core.interfaces.Objective`, for those that predict velocities or logits of hidden codes.

    Those that predict the next token have `NextTokenObjectiveSuite`.

    Attributes:
        representation: spec of the representation to corrupt: latents, or codes.
        tolerance: largest difference between results that should be equal, relative above magnitude 1.
    """

    kind: ClassVar[str] = "objective"
    representation: ClassVar[RepresentationSpec] = RepresentationSpec(
        kind="continuous", sample_rate=8000, channels=1, downsampling_ratio=100, latent_dim=3
    )
    tolerance: ClassVar[float] = 1e-5

    @abstractmethod
    def make(self) -> Objective:
        """Return a new objective."""

    def built(self, seed: int = 0) -> Objective:
        """Return `make()`."""
        objective: Objective = seeded(self.make, seed)
        return objective

    def prediction(self, query: Query, seed: int) -> Tensor:
        """Return some prediction `[B, P, T]` for a query, P being what `tokens` says, or the classes of all levels."""
        clips, _, frames = query.targets.shape
        return noise(seed, clips, sum(query.levels) or self.built().tokens(self.representation).num_outputs, frames)

    def test_shapes(self) -> None:
        """Inputs keep the representation's shape and dtype; timesteps `[B, T]` lie in [0, 1]; the mask is bool `[B,
        T]`."""
        way = "predicts is 'next-token'; expected velocity or logits. Use NextTokenObjectiveSuite"
        self.require(self.built().predicts != "next-token", "shapes", way)
        clean, query = self._clean(), self._corrupt(self.built())
        wanted, found = f"{clean.values.dtype} {list(clean.values.shape)}", f"{query.inputs.dtype} {list(query.inputs.shape)}"
        self.require(found == wanted, "shapes", f"values of {wanted} became inputs of {found}; expected {wanted}")
        frames = [len(LENGTHS), max(LENGTHS)]
        self.require(list(query.timesteps.shape) == frames, "shapes", f"timesteps are {list(query.timesteps.shape)}; expected {frames}")
        low, high = float(query.timesteps.min()), float(query.timesteps.max())
        self.require(low >= 0 and high <= 1, "shapes", f"timesteps run from {low:.4g} to {high:.4g}; expected within [0, 1]")
        mask = query.loss_mask
        message = f"loss_mask is {mask.dtype} {list(mask.shape)}; expected bool {frames}"
        self.require(mask.dtype == torch.bool and list(mask.shape) == frames, "shapes", message)

    def test_clean(self) -> None:
        """Known frames, and clips that are not targets, stay unchanged, at timestep 0 and without loss; with `shows_known`, the known
        frames of targets are hints instead."""
        objective = self.built()
        clean, query = self._clean(), self._corrupt(objective)
        for clip, (frames, noisy, given) in enumerate(zip(LENGTHS, NOISE, GIVEN, strict=True)):
            last = given if noisy else frames
            if objective.shows_known and noisy:
                self._require_hints(query, clean, clip, given)
                continue
            what = f"the {last} known frames of clip {clip}" if noisy else f"clip {clip}, which is not a target,"
            message = f"{what} changed; expected them to stay clean"
            self.require_close(query.inputs[clip, :, :last], clean.values[clip, :, :last], 0.0, "clean", message)
            largest = float(query.timesteps[clip, :last].sum())
            self.require(largest == 0.0, "clean", f"{what} got timesteps other than 0; expected 0")
            self.require(not bool(query.loss_mask[clip, :last].any()), "clean", f"{what} count in the loss; expected them not to")

    def _require_hints(self, query: Query, clean: Representation, clip: int, given: int) -> None:
        """Require that the hints of a target are its known frames, which do not count in the loss."""
        self.require(query.hints is not None, "clean", "shows_known is true, but a query has no hints")
        assert query.hints is not None
        wanted = torch.zeros_like(query.hints[clip])
        wanted[0, :given] = 1
        wanted[1:, :given] = clean.values[clip, :, :given]
        message = f"the hints of clip {clip} are not a 1 and the clean values at its {given} known frames, and 0 elsewhere"
        self.require_close(query.hints[clip], wanted, 0.0, "clean", message)
        counted = bool(query.loss_mask[clip, :given].any())
        self.require(not counted, "clean", f"the {given} known frames of clip {clip} count in the loss; expected them not to")

    def test_corrupts(self) -> None:
        """Targets differ from the clean representation, and between seeds."""
        objective = self.built()
        first, second = self._corrupt(objective), self._corrupt(objective, first_seed=50)
        where = self._counted()[:, None].expand(first.inputs.shape)
        same = torch.equal(first.inputs[where], self._clean().values[where])
        self.require(not same, "corrupts", "the inputs of targets equal the clean values; expected them corrupted")
        same = torch.equal(first.inputs[where], second.inputs[where])
        self.require(not same, "corrupts", "two seeds gave the same inputs; expected the corruption to follow the generators")

    def test_tokens(self) -> None:
        """`tokens` says what goes in, and what is predicted: numbers for velocities, classes of each id for logits."""
        objective = self.built()
        tokens, logits = objective.tokens(self.representation), objective.predicts != "velocity"
        message = f"tokens returned {tokens!r}; expected a TokenSpec"
        self.require(isinstance(tokens, TokenSpec), "tokens", message)
        wanted = "a number of classes for each id" if logits else "a number"
        message = f"predicts is '{objective.predicts}', but the outputs of a token are {tokens.outputs!r}; expected {wanted}"
        self.require(isinstance(tokens.outputs, tuple) == logits, "tokens", message)

    def test_num_tokens(self) -> None:
        """`num_tokens` says how many tokens a clip has, at least one for each frame and more for more frames."""
        objective, spec = self.built(), self.representation
        counts = [objective.num_tokens(spec, frames) for frames in range(1, 9)]
        rises = all(after > before for before, after in pairwise(counts)) and all(count > frame for frame, count in enumerate(counts))
        self.require(rises, "num_tokens", f"clips of 1 to 8 frames have {counts} tokens; expected one for each frame or more")
        found, wanted = self._corrupt(objective).inputs.shape[-1], objective.num_tokens(spec, max(LENGTHS))
        message = f"the longest clip became {found} tokens, but num_tokens says {wanted}"
        self.require(found == wanted, "num_tokens", message)

    def test_start(self) -> None:
        """`start` keeps the values of known frames; all other frames are noise that follows the generators, and codes are
        HIDDEN."""
        objective, given = self.built(), self._clean()
        known = length_mask(torch.tensor(GIVEN), max(LENGTHS))
        kept = given.values.clone()
        first, second = (objective.start(given, known, [generator(seed + clip) for clip in range(len(LENGTHS))]) for seed in (0, 50))
        wanted, found = f"{kept.dtype} {list(kept.shape)}", f"{first.values.dtype} {list(first.values.shape)}"
        self.require(found == wanted, "start", f"values of {wanted} became a start of {found}; expected {wanted}")
        self.require(
            torch.equal(given.values, kept), "start", "the given values were changed in place; expected them to be left as they were"
        )
        shown = known[:, None].expand(kept.shape)
        same = torch.equal(first.values[shown], kept[shown])
        message = "known frames start from the given values; expected noise, as shows_known is true"
        message = message if objective.shows_known else "known frames start from other values than the given ones"
        self.require(same != objective.shows_known, "start", message)
        made = (length_mask(given.lengths, max(LENGTHS)) & ~known)[:, None].expand(kept.shape)
        if self.representation.kind == "codes":
            hidden = bool((first.values[made] == HIDDEN).all())
            self.require(hidden, "start", "some cells of frames to make are not HIDDEN at the start; expected all of them to be")
            return
        same = torch.equal(first.values[made], second.values[made])
        self.require(not same, "start", "two seeds gave the same start; expected noise that follows the generators")

    def test_hidden(self) -> None:
        """Codes are either hidden or clean. Targets are the clean codes of some hidden cells of each clip to make, and HIDDEN in
        all other cells."""
        if self.representation.kind != "codes":
            return
        clean, query = self._clean().values, self._corrupt(self.built())
        counted = self._counted()[:, None].expand(clean.shape)
        within = length_mask(torch.tensor(LENGTHS), max(LENGTHS))[:, None].expand(clean.shape)
        hidden, asked = query.inputs == HIDDEN, query.targets != HIDDEN
        changed = within & ~hidden & (query.inputs != clean)
        self.require(not bool(changed.any()), "hidden", "some cells hold other codes than the clean ones; expected these, or HIDDEN")
        self.require(
            not bool((hidden & within & ~counted).any()), "hidden", "cells of frames that do not count are HIDDEN; expected them clean"
        )
        self.require(
            not bool((asked & ~(hidden & counted)).any()), "hidden", "targets are given for cells that are not hidden; expected HIDDEN"
        )
        self.require(torch.equal(query.targets[asked], clean[asked]), "hidden", "some targets are not the clean codes of their cells")
        for clip in range(len(LENGTHS)):
            empty = bool(counted[clip].any()) and not bool(asked[clip].any())
            self.require(not empty, "hidden", f"clip {clip} has no cell to predict; expected every clip to make to have one")

    def test_nested(self) -> None:
        """For codes, `noised` hides more cells at a later timestep, and those of earlier timesteps too."""
        if self.representation.kind != "codes":
            return
        objective, clean = self.built(), self._clean().values[:1]
        start = torch.full_like(clean, HIDDEN)
        before = torch.zeros_like(clean, dtype=torch.bool)
        for timestep in (0.25, 0.5, 0.75, 1.0):
            values = objective.noised(clean, start, timestep)
            hidden = values == HIDDEN
            same = torch.equal(values[~hidden], clean[~hidden])
            self.require(same, "nested", f"at timestep {timestep:g} some codes are neither clean nor HIDDEN")
            nested = not bool((before & ~hidden).any())
            self.require(nested, "nested", f"at timestep {timestep:g} cells are clean that were hidden at an earlier one")
            more, count = int(before.sum()), int(hidden.sum())
            self.require(count > more, "nested", f"at timestep {timestep:g} {count} cells are hidden, after {more}; expected more")
            before = hidden

    def test_counts(self) -> None:
        """`loss_names` names what `loss` returns, and each counts the frames of targets that are not known."""
        objective = self.built()
        query = self._corrupt(objective)
        expected = self._counted()
        message = "loss_mask is not the frames of targets that are not known"
        self.require_close(query.loss_mask, expected, 0.0, "counts", message)
        losses = objective.loss(self.prediction(query, 0), query)
        found, names = sorted(losses), sorted(objective.loss_names)
        self.require(found == names, "counts", f"loss returned {found}, but loss_names says {names}")
        for name, (total, count) in losses.items():
            right = number(count) == float(expected.sum())
            self.require(right, "counts", f"loss '{name}' counts {number(count):g}; expected {int(expected.sum())} frames")
            self.require(
                total.ndim == 0 and bool(total.isfinite()), "counts", f"the sum of loss '{name}' is {total!r}; expected a finite scalar"
            )

    def test_sums(self) -> None:
        """The losses of a batch are the sums of those of its clips."""
        objective = self.built()
        query = self._corrupt(objective)
        prediction = self.prediction(query, 0)
        together = objective.loss(prediction, query)
        alone = [objective.loss(prediction[clip : clip + 1], query.clip(clip)) for clip in range(len(LENGTHS))]
        for name, (total, _) in together.items():
            expected = torch.stack([losses[name][0] for losses in alone]).sum()
            self.require_close(total, expected, self.tolerance, "sums", f"loss '{name}' of a batch is not the sum over its clips")

    def test_loss_mask(self) -> None:
        """Predictions outside `loss_mask` do not affect the loss or its gradient; predictions inside do."""
        objective = self.built()
        query = self._corrupt(objective)
        first, second = self.prediction(query, 0), self.prediction(query, 1)
        inside = query.loss_mask[:, None].expand(first.shape[0], 1, first.shape[-1])
        expected, mixed = objective.loss(first, query), torch.where(inside, first, second).requires_grad_()
        found = objective.loss(mixed, query)
        for name in expected:
            message = f"loss '{name}' changes with predictions outside loss_mask"
            self.require_close(found[name][0], expected[name][0], self.tolerance, "loss_mask", message)
            message = f"loss '{name}' has no gradient with respect to the prediction; expected one"
            self.require(found[name][0].requires_grad, "loss_mask", message)
        (gradient,) = torch.autograd.grad(torch.stack([total for total, _ in found.values()]).sum(), mixed)
        outside = gradient.masked_select(~inside)
        self.require(not bool(outside.any()), "loss_mask", "predictions outside loss_mask have a gradient; expected zero")
        self.require(bool(gradient.any()), "loss_mask", "predictions inside loss_mask have no gradient; expected one")

    def test_predicted(self) -> None:
        """`predicted` makes a finite prediction `[B, P, T]` from the network's output of that shape."""
        objective = self.built()
        query = self._corrupt(objective)
        output = self.prediction(query, 0)
        found = objective.predicted(output, query.inputs, query.timesteps)
        message = f"an output {list(output.shape)} became a prediction {list(found.shape)}; expected {list(output.shape)}"
        self.require(found.shape == output.shape, "predicted", message)
        finite = bool(found.masked_select(query.loss_mask[:, None]).isfinite().all())
        self.require(finite, "predicted", "predictions of frames that count are not finite")

    def test_native(self) -> None:
        """`native` gives the network's output back from the velocity that `predicted` made of it, for frames that count."""
        objective = self.built()
        if objective.predicts != "velocity":
            return
        query = self._corrupt(objective)
        output = self.prediction(query, 0)
        shown = query.inputs, query.timesteps
        found = objective.native(objective.predicted(output, *shown), *shown)
        counted = query.loss_mask[:, None].expand_as(output)
        message = "native does not give back the output that predicted was given"
        self.require_close(found[counted], output[counted], self.tolerance, "native", message)

    def test_noised(self) -> None:
        """`noised` leads from the clean values at timestep 0 to the start of sampling at 1, and changes neither in
        place."""
        objective, clean = self.built(), self._clean().values
        start = noise(3, *clean.shape).to(clean) if clean.is_floating_point() else clean.flip(0)
        kept = clean.clone(), start.clone()
        for timestep, expected, what in ((0.0, clean, "the clean ones"), (1.0, start, "what sampling starts from")):
            message = f"at timestep {timestep:g} the values are not {what}"
            self.require_close(objective.noised(clean, start, timestep), expected, self.tolerance, "noised", message)
        objective.noised(clean, start, 0.5)
        same = torch.equal(clean, kept[0]) and torch.equal(start, kept[1])
        self.require(same, "noised", "the values given were changed in place; expected them to be left as they were")

    def test_velocity(self) -> None:
        """`corrupt` gives what `noised` gives for some noise, and `loss` is lowest for the velocity there, d`noised`/
        dt.

        Samplers follow the prediction from timestep 1 to 0, so with any other prediction they would end up elsewhere.
        The velocity is measured by differences of `noised`. This is not asked of codes, which have none.
        """
        if self.representation.kind != "continuous":
            return
        objective, lengths = self.built(), (WIDE,) * len(LENGTHS)
        clean = self._clean(lengths)
        silent = replace(clean, values=torch.zeros_like(clean.values))
        query = self._whole(objective, clean)
        start = self.start(objective, query, clean.values)
        other = self.start(objective, self._whole(objective, silent), silent.values)
        message = "corrupt did not mix clean values and noise as `noised` does at its timesteps"
        self.require_close(start, other, 1e-3, "velocity", message)
        for clip, spread in enumerate(start.std(dim=(1, 2)).tolist()):
            message = f"corrupt used noise with standard deviation {spread:.3g} for clip {clip}, as measured by `noised`; expected 1"
            self.require(abs(spread - 1.0) < SPREAD, "velocity", message)
        velocity = _velocity(objective, clean.values, start, query.timesteps)
        self._require_rewarded(objective, query, velocity)

    def start(self, objective: Objective, query: Query, clean: Tensor) -> Tensor:
        """Return the start `[B, D, T]` from which `noised` gives a query's inputs; override it if `noised` is not
        linear in it."""
        zeros, ones = torch.zeros_like(clean), torch.ones_like(clean)
        base, top = (_at(objective, clean, start, query.timesteps) for start in (zeros, ones))
        return (query.inputs - base) / (top - base)

    def _whole(self, objective: Objective, clean: Representation) -> Query:
        """Corrupt whole clips at timesteps that are neither almost 0 nor almost 1, where differences say little."""
        batch = len(clean.values)
        known = torch.zeros(clean.values.shape[0], clean.values.shape[-1], dtype=torch.bool)
        seeds = iter(range(1000, 1000 + MOST_SEEDS))
        found: list[int] = []
        while len(found) < batch:
            seed = next(seeds, None)
            self.require(seed is not None, "velocity", f"no timestep from {NEAREST} to {1 - NEAREST} was drawn for {MOST_SEEDS} seeds")
            assert seed is not None
            one = replace(clean, values=clean.values[:1], lengths=clean.lengths[:1])
            timesteps = objective.corrupt(one, known=known[:1], noise=torch.tensor([True]), generators=[generator(seed)]).timesteps
            if float(timesteps.min()) >= NEAREST and float(timesteps.max()) <= 1 - NEAREST:
                found.append(seed)
        noisy = torch.ones(batch, dtype=torch.bool)
        return objective.corrupt(clean, known=known, noise=noisy, generators=[generator(seed) for seed in found])

    def _require_rewarded(self, objective: Objective, query: Query, velocity: Tensor) -> None:
        """Require that no small step from the velocity, in the direction in which the losses fall fastest, lowers
        them."""

        def losses(prediction: Tensor) -> Tensor:
            return torch.stack([total.float() for total, _ in objective.loss(prediction, query).values()]).sum()

        at = velocity.clone().requires_grad_()
        loss = losses(at)
        (slope,) = torch.autograd.grad(loss, at)
        unit = slope.square().mean().sqrt()
        step = STEP * velocity.square().mean().sqrt() * slope / unit.clamp_min(1e-30)
        lower = float(losses((velocity - step).detach()))
        message = (
            f"loss is {number(loss):.4g} for the velocity of `noised`, d`noised`/dt, and {lower:.4g} slightly next to it; "
            "expected the loss to be lowest for the velocity"
        )
        self.require(lower >= number(loss), "velocity", message)

    def test_timesteps(self) -> None:
        """If `has_timesteps` is set, `corrupt_to` gives all frames that count one timestep, higher for a higher
        argument, and mixes in the same noise for the same generators."""
        objective = self.built()
        if not objective.has_timesteps:
            return
        clean, known = self._clean(), length_mask(torch.tensor(GIVEN), max(LENGTHS))
        before, starts = 0.0, []
        for timestep in (0.25, 0.5, 0.75):
            generators = [generator(clip) for clip in range(len(LENGTHS))]
            query = objective.corrupt_to(clean, known=known, noise=torch.tensor(NOISE), generators=generators, timestep=timestep)
            self.require_close(query.loss_mask, self._counted(), 0.0, "timesteps", "corrupt_to and corrupt differ in loss_mask")
            found = sorted(set(query.timesteps[query.loss_mask].tolist()))
            self.require(len(found) == 1, "timesteps", f"corrupt_to({timestep:g}) gave {len(found)} timesteps; expected one for all frames")
            later = found[0] > before
            self.require(later, "timesteps", f"corrupt_to({timestep:g}) gave the timestep {found[0]:.3g}; expected one above {before:.3g}")
            before = found[0]
            starts.append(self.start(objective, query, clean.values).masked_fill(~query.loss_mask[:, None], 0.0))
            message = f"corrupt_to({timestep:g}) used different noise than at an earlier timestep"
            self.require_close(starts[-1], starts[0], 1e-3, "timesteps", message)

    def test_no_targets(self) -> None:
        """A batch without targets has losses of zero over zero frames."""
        objective = self.built()
        query = self._corrupt(objective, targets=False)
        for name, (total, count) in objective.loss(self.prediction(query, 0), query).items():
            found = f"({number(total):.3g}, {number(count):g})"
            self.require(
                number(total) == 0 and number(count) == 0, "no_targets", f"loss '{name}' is {found} without targets; expected (0, 0)"
            )

    def test_batch(self) -> None:
        """A clip is corrupted the same on its own and in a batch, from its own generator, whatever is drawn
        elsewhere."""
        objective = self.built()
        together = seeded(lambda: self._corrupt(objective), 1)
        for clip, frames in enumerate(LENGTHS):
            alone = seeded(partial(self._corrupt, objective, clips=[clip]), 2)
            for name in ("inputs", "timesteps", "targets", "loss_mask"):
                count = objective.num_tokens(self.representation, frames)
                found, expected = getattr(together, name)[clip, ..., :count], getattr(alone, name)[0, ..., :count]
                message = f"{name} of clip {clip} differ between the clip on its own and a batch of {len(LENGTHS)}"
                self.require_close(found, expected, self.tolerance, "batch", message)

    def test_no_state(self) -> None:
        """The same call gives the same query twice, whatever is called in between."""
        objective = self.built()
        first = self._corrupt(objective)
        self._corrupt(objective, clips=[1], first_seed=50)
        second = self._corrupt(objective)
        self.require_close(second.inputs, first.inputs, 0.0, "no_state", "the same call gave other inputs after another call")
        self.require_close(second.timesteps, first.timesteps, 0.0, "no_state", "the same call gave other timesteps after another call")

    def _clean(self, lengths: Sequence[int] = LENGTHS) -> Representation:
        spec, longest = self.representation, max(lengths)
        if spec.kind == "continuous":
            values = noise(9, len(lengths), spec.token_dim, longest)
        else:
            levels = [torch.randint(size, (len(lengths), longest), generator=generator(9)) for size in spec.codebook_sizes]
            values = torch.stack(levels, dim=1)
        return Representation(values, torch.tensor(lengths), spec)

    def _counted(self) -> Tensor:
        """Return bool `[B, T]`: frames of targets that are not known."""
        frames = torch.arange(max(LENGTHS))
        within = (frames >= torch.tensor(GIVEN)[:, None]) & (frames < torch.tensor(LENGTHS)[:, None])
        return within & torch.tensor(NOISE)[:, None]

    def _corrupt(
        self, objective: Objective, *, clips: Sequence[int] = range(len(LENGTHS)), first_seed: int = 0, targets: bool = True
    ) -> Query:
        clean, rows = self._clean(), list(clips)
        longest = max(LENGTHS[clip] for clip in rows)
        part = Representation(clean.values[rows, :, :longest].clone(), clean.lengths[rows], clean.spec)
        known = length_mask(torch.tensor(GIVEN)[rows], longest)
        noisy = torch.tensor(NOISE)[rows] & targets
        return objective.corrupt(part, known=known & targets, noise=noisy, generators=[generator(first_seed + clip) for clip in rows])


def _at(objective: Objective, clean: Tensor, start: Tensor, timesteps: Tensor) -> Tensor:
    """Return the values of `noised` at the timestep of each frame, `[B, T]`."""
    values = torch.empty_like(clean)
    for timestep in sorted(set(timesteps.flatten().tolist())):
        here = (timesteps == timestep)[:, None].expand(clean.shape)
        values[here] = objective.noised(clean, start, timestep)[here].to(values)
    return values


def _velocity(objective: Objective, clean: Tensor, start: Tensor, timesteps: Tensor) -> Tensor:
    """Return the derivative of `noised` with respect to its timestep, `[B, D, T]`, by a central difference."""
    after, before = (_at(objective, clean, start, timesteps + sign * DIFFERENCE) for sign in (1.0, -1.0))
    return (after - before) / (2.0 * DIFFERENCE)
