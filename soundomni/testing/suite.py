"""Shared parts of all suites: the clauses on constructors, known failures, and messages that name the clause."""

from __future__ import annotations

import functools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import pytest
import torch
from torch import Tensor, nn

from soundomni.core.errors import PluginError, did_you_mean, message_of
from soundomni.core.interfaces import KINDS
from soundomni.core.spec import registry

PREFIX = "test_"
T = TypeVar("T")


def _checked(method: Callable[..., Any], clause: str) -> Callable[..., Any]:
    """Make a clause fail with its name if the plugin raises; a missing module is not the plugin's failure."""

    @functools.wraps(method)
    def checked(self: ConformanceSuite, *arguments: Any, **fixtures: Any) -> None:
        name = self._clause(clause)
        try:
            method(self, *arguments, **fixtures)
        except ImportError:
            raise
        except Exception as error:
            text = message_of(error)
            if isinstance(error, AssertionError) and text.startswith(name):
                raise
            raise AssertionError(f"{name}: raised {type(error).__name__}: {text}") from error

    vars(checked)["clause_as_written"] = method
    return checked


class ConformanceSuite(ABC):
    """Base of the suites. `test_<clause>` methods are the clauses.

    Attributes:
        kind: kind of plugin, one of `soundomni.core.interfaces.KINDS`.
        known_failures: clause → why the plugin breaks it. Such a clause must fail, possibly by an error that the plugin
            raises: pytest reports it as xfailed, and as failed once it passes.
    """

    kind: ClassVar[str]
    known_failures: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make clauses name plugins' errors, and mark known failures.

        Raise TypeError if one does not name a clause of the suite.
        """
        super().__init_subclass__(**kwargs)
        clauses = [name.removeprefix(PREFIX) for name in dir(cls) if name.startswith(PREFIX)]
        for clause in cls.known_failures:
            if clause not in clauses:
                near = did_you_mean(clause, clauses)
                raise TypeError(f"{cls.__name__}.known_failures names '{clause}'.{near} Clauses: {', '.join(clauses)}")
        for clause in clauses:
            method = getattr(cls, PREFIX + clause)
            checked = _checked(getattr(method, "clause_as_written", method), clause)
            if clause in cls.known_failures:
                checked = pytest.mark.xfail(strict=True, raises=AssertionError, reason=cls.known_failures[clause])(checked)
            setattr(cls, PREFIX + clause, checked)

    @abstractmethod
    def built(self, seed: int = 0) -> Any:
        """Return a new plugin whose random weights depend only on `seed`."""

    def require(self, holds: bool, clause: str, message: str) -> None:
        """Raise AssertionError "<Kind>Suite.<clause>: <message>" unless `holds`."""
        if not holds:
            raise AssertionError(f"{self._clause(clause)}: {message}")

    def _clause(self, clause: str) -> str:
        """Return the name of a clause for messages."""
        name = next(cls.__name__ for cls in type(self).__mro__ if cls.__module__.startswith(__package__))
        return f"{name}.{clause}"

    def require_close(self, found: Tensor, expected: Tensor, tolerance: float, clause: str, message: str) -> None:
        """Require equal shapes, and values within `tolerance`, times the largest expected magnitude if that is above 1.

        Integers must be equal, and tensors without elements cannot differ.
        """
        shapes = f"{list(found.shape)} against {list(expected.shape)}"
        self.require(found.shape == expected.shape, clause, f"{message}; the shapes are {shapes}")
        if not found.numel():
            return
        exact = not (found.is_floating_point() and expected.is_floating_point())
        allowed = 0.0 if exact else tolerance * max(1.0, float(expected.detach().abs().max()))
        difference = float((found.detach().double() - expected.detach().double()).abs().max())
        self.require(difference <= allowed, clause, f"{message}; the largest difference is {difference:.3g}, allowed is {allowed:.3g}")

    def require_gradients(self, module: nn.Module, loss: Tensor, clause: str, given: str) -> None:
        """Require that `loss` gives every trainable parameter of `module` a finite gradient, even if it is zero."""
        module.zero_grad(set_to_none=True)
        trainable = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        if trainable:
            self.require(loss.requires_grad, clause, f"{given} gave an output without gradient, although there are trainable parameters")
            loss.backward()  # type: ignore[no-untyped-call]
        for name, parameter in trainable:
            self.require(parameter.grad is not None, clause, f"{given} gave parameter '{name}' no gradient; expected one, even if zero")
            self.require(
                parameter.grad is None or bool(parameter.grad.isfinite().all()),
                clause,
                f"{given} gave '{name}' a gradient that is not finite",
            )

    def test_contract(self) -> None:
        """`make` returns a plugin of the kind."""
        plugin, contract = self.built(), KINDS[self.kind]
        self.require(isinstance(plugin, contract), "contract", f"make returned a {type(plugin).__name__}; expected a {contract.__name__}")

    def test_constructor(self) -> None:
        """The constructor names every argument, types it as plain data, and accepts what the assembly passes."""
        cls = type(self.built())
        try:
            registry.arguments(self.kind, cls)
        except PluginError as error:
            self.require(False, "constructor", f"{error}; expected typed keyword arguments only")


class ModuleSuite(ConformanceSuite):
    """Suite for a kind whose plugins are torch modules."""

    @abstractmethod
    def outputs(self, plugin: Any) -> list[Tensor]:
        """Return the plugin's outputs for fixed inputs."""

    def test_state_dict(self) -> None:
        """A state dict holds everything that was learned: loaded into another plugin with the same arguments, it gives
        the same outputs."""
        first, second = self.built(1).eval(), self.built(2).eval()
        second.load_state_dict(first.state_dict())
        with torch.no_grad():
            pairs = zip(self.outputs(second), self.outputs(first), strict=True)
            for found, expected in pairs:
                self.require_close(
                    found, expected, 0.0, "state_dict", "a plugin that loaded the other's state dict computes another output"
                )


def seeded(make: Callable[[], Any], seed: int) -> Any:
    """Call `make` with torch's global generator at `seed`, and restore that generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def in_threads(work: Callable[[], T], count: int = 4) -> tuple[list[T], list[Exception]]:
    """Call `work` in several threads at once, and return what it returned and what it raised."""
    found: list[T] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, failed


def noise(seed: int, *shape: int) -> Tensor:
    """Return standard normal float32 values of `shape` that depend only on `seed`."""
    return torch.randn(*shape, generator=generator(seed))


def number(scalar: Tensor | float) -> float:
    """Return a scalar as a float, without its gradient."""
    return float(scalar.detach()) if isinstance(scalar, Tensor) else float(scalar)


def generator(seed: int) -> torch.Generator:
    """Return a CPU generator at `seed`."""
    return torch.Generator().manual_seed(seed)


def evaluating(plugin: Any) -> Any:
    """Return a module in evaluation mode, and anything else, which the clause `contract` reports, as it is."""
    return plugin.eval() if isinstance(plugin, nn.Module) else plugin
