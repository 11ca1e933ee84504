"""Conformance of connectors.

Shape letters: N tokens, H hidden dimensions.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from soundomni.core.interfaces import Connector, LevelsConnector
from soundomni.core.representation import HIDDEN, TokenSpec
from soundomni.testing.suite import ModuleSuite, generator, noise, seeded

TOLERANCE = 1e-5
"""Tokens that differ by less than this share of the longest are the same."""


class ConnectorSuite(ModuleSuite):
    """Clauses of `soundomni.core.interfaces.Connector`.

    Attributes:
        tokens, hidden_dim: the tokens and H of the connectors that are made.
        generates: whether they can carry what is made; if not, the clauses about `leave` do not apply.
    """

    kind: ClassVar[str] = "connector"
    tokens: ClassVar[TokenSpec] = TokenSpec(6, 6)
    hidden_dim: ClassVar[int] = 16
    generates: ClassVar[bool] = True

    @abstractmethod
    def make(self, *, tokens: TokenSpec, hidden_dim: int, generates: bool) -> Connector:
        """Return a new connector on the CPU; the assembly passes these arguments."""

    def built(self, seed: int = 0, *, generates: bool | None = None) -> Connector:
        """Return a connector with weights drawn from `seed`, for tokens that are made if it can carry them."""
        made = self.generates if generates is None else generates
        connector: Connector = seeded(lambda: self.make(tokens=self.tokens, hidden_dim=self.hidden_dim, generates=made), seed)
        return connector

    @property
    def _uses(self) -> tuple[bool, ...]:
        return (False, True) if self.generates else (False,)

    def outputs(self, plugin: Any) -> list[Tensor]:
        """Return what mapping five tokens in and five back gives."""
        entered = self._enter(plugin, 5, generates=self.generates)
        return [entered, plugin.leave(noise(1, 5, self.hidden_dim))] if self.generates else [entered]

    def test_enter(self) -> None:
        """Tokens `[N, D]`, or ids `[N, K]`, become float `[N, H]`, whether or not anything is generated, N = 0 included."""
        for generates in self._uses:
            connector = self.built(generates=generates)
            for count in (5, 1, 0):
                hidden, wanted = self._enter(connector, count, generates=generates), [count, self.hidden_dim]
                message = f"with generates={generates}, {count} tokens entered as {list(hidden.shape)}; expected {wanted}"
                self.require(list(hidden.shape) == wanted, "enter", message)
                self.require(bool(hidden.isfinite().all()), "enter", f"with generates={generates}, enter gave values that are not finite")

    def test_leave(self) -> None:
        """Hidden tokens `[N, H]` become predictions `[N, P]`, N = 0 included."""
        if not self.generates:
            return
        connector = self.built()
        for count in (5, 1, 0):
            left, wanted = connector.leave(noise(0, count, self.hidden_dim)), [count, self.tokens.num_outputs]
            self.require(list(left.shape) == wanted, "leave", f"{count} tokens left as {list(left.shape)}; expected {wanted}")

    def test_zero_start(self) -> None:
        """The prediction is zero before training."""
        if not self.generates:
            return
        largest = float(self.built().leave(noise(0, 5, self.hidden_dim)).detach().abs().max())
        self.require(largest == 0.0, "zero_start", f"leave of a new connector gave values up to {largest:.3g}; expected zeros")

    def test_max_frames(self) -> None:
        """`max_frames` is None or an int from 1, and that many frames of a clip enter as different tokens."""
        connector = self.built()
        most = connector.max_frames
        self.require(
            most is None or (type(most) is int and most >= 1), "max_frames", f"max_frames is {most!r}; expected None or an int from 1"
        )
        if most is not None:
            tokens = connector.enter(self._some(1).expand(most, -1), timesteps=torch.zeros(most), frames=torch.arange(most)).detach()
            apart = torch.cdist(tokens, tokens, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
            nearest, closest = divmod(int(apart.argmin()), most)
            same = float(apart.min()) <= TOLERANCE * float(tokens.norm(dim=1).max())
            message = f"frames {nearest} and {closest} enter as the same token, but max_frames is {most}"
            self.require(not same, "max_frames", message)

    def test_gradients(self) -> None:
        """Every parameter takes part in every backward pass, even for a batch without such tokens."""
        for generates in self._uses:
            for count in (5, 0):
                connector = self.built(generates=generates)
                loss = self._enter(connector, count, generates=generates).sum()
                if generates:
                    loss = loss + connector.leave(noise(1, count, self.hidden_dim)).sum()
                self.require_gradients(connector, loss, "gradients", f"a batch of {count} tokens with generates={generates}")

    def test_ids(self) -> None:
        """Every id of every level enters as a token of its own."""
        if isinstance(self.tokens.inputs, int):
            return
        connector, sizes = self.built(), self.tokens.inputs
        rows = torch.zeros(1 + sum(size - 1 for size in sizes), len(sizes), dtype=torch.int64)
        at = 1
        for level, size in enumerate(sizes):
            rows[at : at + size - 1, level] = torch.arange(1, size)
            at += size - 1
        still = torch.zeros(len(rows))
        entered = connector.enter(rows, timesteps=still, frames=still.long()).detach()
        apart = torch.cdist(entered, entered, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
        nearest, closest = divmod(int(apart.argmin()), len(rows))
        same = float(apart.min()) <= TOLERANCE * float(entered.norm(dim=1).max())
        message = f"the codes {rows[nearest].tolist()} and {rows[closest].tolist()} enter as the same token"
        self.require(not same, "ids", message)

    def test_hidden(self) -> None:
        """Hidden cells of codes enter as a token of their own, at every level."""
        if isinstance(self.tokens.inputs, int):
            return
        connector, ids = self.built(), self._some(1)
        at = {"timesteps": torch.zeros(1), "frames": torch.zeros(1, dtype=torch.int64)}
        shown = connector.enter(ids, **at)
        for level, size in enumerate(self.tokens.inputs):
            hidden = ids.clone()
            hidden[:, level] = HIDDEN
            entered = connector.enter(hidden, **at)
            others = [connector.enter(ids.index_copy(1, torch.tensor([level]), torch.tensor([[id]])), **at) for id in range(size)]
            same = any(torch.equal(entered, other) for other in (shown, *others))
            self.require(not same, "hidden", f"a hidden cell of level {level} enters like a code; expected a token of its own")

    def test_one_level(self) -> None:
        """What leaves at one level is its part of what leaves at all."""
        if isinstance(self.tokens.outputs, int):
            return
        connector, hidden, sizes = self.built(), noise(3, 5, self.hidden_dim), self.tokens.outputs
        with torch.no_grad():
            for number, parameter in enumerate(connector.parameters()):
                parameter.add_(noise(number, *parameter.shape))  # the prediction starts at zero
        for level, expected in enumerate(torch.split(connector.leave(hidden), list(sizes), dim=1)):
            left = connector.leave_level(hidden, level, sizes)
            same = left.shape == expected.shape and torch.allclose(left, expected, rtol=1e-4, atol=TOLERANCE)
            message = f"leave_level of level {level} is not the part of leave that belongs to this level"
            self.require(same, "one_level", message)

    def test_levels(self) -> None:
        """Logits of a level depend on the ids of the levels below it, and on no others; without ids, all are HIDDEN."""
        connector, sizes = self.built(), self.tokens.outputs
        if not isinstance(connector, LevelsConnector) or isinstance(sizes, int):
            return
        with torch.no_grad():
            for parameter in connector.parameters():
                parameter.normal_(generator=generator(1))
        hidden, ids = noise(1, 5, self.hidden_dim), torch.zeros(5, len(sizes), dtype=torch.int64)
        plain = torch.split(connector.leave(hidden, ids).detach(), list(sizes), dim=1)
        for changed, size in enumerate(sizes):
            changed_ids = ids.index_fill(1, torch.tensor([changed]), size - 1)
            other = torch.split(connector.leave(hidden, changed_ids).detach(), list(sizes), dim=1)
            for level in range(len(sizes)):
                differs = not torch.equal(plain[level], other[level])
                depends = "depend" if differs else "do not depend"
                message = f"logits of level {level} {depends} on the ids of level {changed}; expected them to see the levels below only"
                self.require(differs == (changed < level), "levels", message)
        without, none = connector.leave(hidden), connector.leave(hidden, torch.full_like(ids, HIDDEN))
        self.require_close(without, none, 0.0, "levels", "leave without ids gave other logits than with HIDDEN ids")

    def _some(self, count: int) -> Tensor:
        """Return `count` tokens: numbers, or ids of which some are hidden."""
        if isinstance(self.tokens.inputs, int):
            return noise(0, count, self.tokens.inputs)
        ids = [torch.randint(HIDDEN, size, (count,), generator=generator(level)) for level, size in enumerate(self.tokens.inputs)]
        return torch.stack(ids, 1)

    def _enter(self, connector: Connector, count: int, *, generates: bool = True) -> Tensor:
        tokens = self._some(count)
        if generates:
            return connector.enter(tokens, timesteps=torch.linspace(0, 1, count), frames=torch.arange(count))
        return connector.enter(tokens)
