"""Conformance of routers.

Shape letters: N tokens, H hidden dimensions.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from soundomni.core.interfaces import Router
from soundomni.core.sequence import Role
from soundomni.testing.suite import ConformanceSuite, noise, number, seeded


class RouterSuite(ConformanceSuite):
    """Clauses of `soundomni.core.interfaces.Router`.

    Attributes:
        hidden_dim: H of the networks that are built.
        tolerance: largest change of a token's output when padding is added, relative above magnitude 1.
    """

    kind: ClassVar[str] = "router"
    hidden_dim: ClassVar[int] = 8
    tolerance: ClassVar[float] = 1e-5

    @abstractmethod
    def make(self) -> Router:
        """Return a new router."""

    def built(self, seed: int = 0) -> Router:
        """Return `make()`."""
        router: Router = seeded(self.make, seed)
        return router

    def network(self) -> nn.Module:
        """Return a feed-forward network of one stream, around plain ones without biases."""
        router, dim = self.built(), self.hidden_dim

        def build() -> nn.Module:
            return nn.Sequential(nn.Linear(dim, 2 * dim, bias=False), nn.SiLU(), nn.Linear(2 * dim, dim, bias=False))

        module: nn.Module = seeded(lambda: router.feed_forward(build, dim), 0)
        return module

    def test_streams(self) -> None:
        """There is a stream, and names of streams are unique and not empty."""
        streams = self.built().streams
        good = isinstance(streams, tuple) and len(streams) > 0 and all(isinstance(name, str) and name for name in streams)
        self.require(good, "streams", f"streams are {streams!r}; expected a tuple of at least one name")
        self.require(len(set(streams)) == len(streams), "streams", f"streams are {streams!r}; expected unique names")

    def test_stream_of(self) -> None:
        """Every role has a stream, and always the same one."""
        router = self.built()
        count = len(router.streams)
        for role in Role:
            found = router.stream_of(role)
            valid = isinstance(found, int) and 0 <= found < count
            self.require(
                valid, "stream_of", f"stream_of({role.name}) is {found!r}; expected 0 to {count - 1}, as streams are {router.streams}"
            )
            again = router.stream_of(role)
            self.require(again == found, "stream_of", f"stream_of({role.name}) was {found} and then {again}; expected a fixed stream")

    def test_text_first(self) -> None:
        """Text lives in the first stream."""
        found = self.built().stream_of(Role.TEXT)
        self.require(found == 0, "text_first", f"stream_of(TEXT) is {found}; expected 0")

    def test_feed_forward(self) -> None:
        """A stream's network maps `[N, H]` to `[N, H]`, N = 0 included."""
        network = self.network()
        for count in (7, 1, 0):
            output, _ = self._run(network, noise(0, count, self.hidden_dim))
            wanted = [count, self.hidden_dim]
            self.require(list(output.shape) == wanted, "feed_forward", f"{wanted} came out as {list(output.shape)}; expected {wanted}")
            self.require(bool(output.isfinite().all()), "feed_forward", f"{count} tokens came out with values that are not finite")

    def test_loss_names(self) -> None:
        """Networks add a (loss sum, count) of scalars exactly if `loss_names` names a loss; at most one."""
        names = self.built().loss_names
        good = isinstance(names, tuple) and len(names) <= 1
        self.require(good, "loss_names", f"loss_names is {names!r}; expected a tuple of at most one name: a network adds one loss")
        _, loss = self._run(self.network(), noise(0, 7, self.hidden_dim))
        if loss is None:
            self.require(not names, "loss_names", f"loss_names is {names}, but the network added no loss; expected (output, (sum, count))")
            return
        self.require(len(names) > 0, "loss_names", "the network added a loss, but loss_names is empty; expected its name")
        total, count = loss
        good = total.ndim == 0 and bool(total.isfinite()) and 0 <= number(count) <= 7
        self.require(good, "loss_names", f"7 tokens added the loss ({total!r}, {count!r}); expected a finite sum and a count of 0 to 7")

    def test_zero_rows(self) -> None:
        """Padding, rows of zeros, changes neither the output of other tokens nor the loss and its count."""
        network, hidden = self.network(), noise(0, 7, self.hidden_dim)
        output, loss = self._run(network, hidden)
        padded, padded_loss = self._run(network, torch.cat([hidden, torch.zeros(3, self.hidden_dim)]))
        self.require(bool(padded.isfinite().all()), "zero_rows", "rows of zeros came out with values that are not finite")
        self.require_close(padded[:7], output, self.tolerance, "zero_rows", "3 rows of padding change the output of the other 7 tokens")
        if loss is not None and padded_loss is not None:
            for name, found, expected in zip(("sum", "count"), padded_loss, loss, strict=True):
                message = f"3 rows of padding change the {name} of the loss"
                self.require_close(found.float(), expected.float(), self.tolerance, "zero_rows", message)

    def test_gradients(self) -> None:
        """Every parameter takes part in every backward pass, even with few or no tokens."""
        for count in (7, 1, 0):
            network = self.network()
            output, loss = self._run(network, noise(0, count, self.hidden_dim))
            total = output.sum() if loss is None else output.sum() + loss[0]
            self.require_gradients(network, total, "gradients", f"a stream of {count} tokens")

    def _run(self, network: nn.Module, hidden: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        out = network(hidden)
        return out if isinstance(out, tuple) else (out, None)
