"""An error is traced to the plugin that it comes from, through threads, processes, wrappers and inheritance."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch._utils import ExceptionWrapper

from soundomni.core.errors import DataError, reason
from soundomni.core.spec import registry
from soundomni.core.spec.culprit import culprit, named

SOURCE = """
import urllib.request

import torch
from soundomni.core.errors import DataError
from soundomni.core.limits import check_count
from soundomni.core.interfaces import Sampler
from soundomni.vae.mdct import MDCTCodec


class First(MDCTCodec):
    def encode(self, waveform, lengths, generators=None):
        return helper(waveform)

    def forward(self, waveform):
        return torch.zeros(2) @ torch.zeros(3)

    def refuse(self):
        raise DataError("this clip is mine")

    def ask(self):
        check_count("steps", 10, most=3)

    def read(self):
        urllib.request.urlopen("file:///no/such/file")


class Second(Sampler):
    def num_evaluations(self, start):
        return 1


    def sample(self, predict, start, *, generators, begin=1.0, on_step=None):
        return helper(predict)


def helper(values):
    raise RuntimeError("helper")
"""
CODEC, SAMPLER = "codec 'first' of acme-audio 1.2.3", "sampler 'second' of acme-audio 1.2.3"


@pytest.fixture
def acme(install: Callable[..., Path]) -> ModuleType:
    groups = {"soundomni.codecs": {"first": "acme_culprit:First"}, "soundomni.samplers": {"second": "acme_culprit:Second"}}
    install("acme-audio", groups=groups, modules={"acme_culprit": SOURCE})
    registry.load("codec", "first")
    registry.load("sampler", "second")
    return sys.modules["acme_culprit"]


def caught(function: Callable[..., object], *arguments: object, **named_arguments: object) -> BaseException:
    try:
        function(*arguments, **named_arguments)
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def test_the_method_of_an_instance_tells_which_of_several_plugins_of_a_module(acme: ModuleType) -> None:
    assert culprit(caught(acme.First(sample_rate=8000).encode, None, None)) == CODEC
    assert culprit(caught(acme.Second().sample, None, None, generators=[])) == SAMPLER
    assert culprit(caught(acme.helper, None)) == f"{CODEC} or {SAMPLER}"
    assert culprit(caught(int, "x")) is None


def test_errors_below_a_plugin_are_its_own(acme: ModuleType) -> None:
    codec = acme.First(sample_rate=8000)
    assert culprit(caught(codec, torch.zeros(1))) == CODEC  # raised in torch
    assert culprit(caught(codec, 1, 2, 3)) == CODEC  # torch calls forward with what it does not take
    assert culprit(caught(type("Sharded", (acme.First,), {})(sample_rate=8000).encode, None, None)) == CODEC


def test_an_error_for_the_user_is_a_plugins_only_when_it_raised_it(acme: ModuleType) -> None:
    codec = acme.First(sample_rate=8000)
    assert culprit(caught(codec.refuse), raised=True) == CODEC
    assert culprit(caught(codec.read), raised=True) == CODEC  # through modules of the standard library
    error = caught(codec.ask)
    assert culprit(error, raised=True) is None and culprit(error) == CODEC


def test_threads_and_wrappers_keep_the_trace(acme: ModuleType) -> None:
    codec = acme.First(sample_rate=8000)
    with ThreadPoolExecutor(1) as pool:
        assert culprit(caught(pool.submit(codec.encode, None, None).result)) == CODEC

    def wrapped() -> None:
        try:
            acme.Second().sample(None, None, generators=[])
        except RuntimeError as error:
            raise DataError("clip 3 failed") from error

    assert culprit(caught(wrapped)) == SAMPLER


def test_errors_of_worker_processes_are_read_from_their_text(acme: ModuleType) -> None:
    try:
        acme.helper(None)
    except RuntimeError:
        wrapper = ExceptionWrapper(where="in DataLoader worker process 0")
    error = caught(wrapper.reraise)
    assert culprit(error) == f"{CODEC} or {SAMPLER}"
    assert named(error) == f"{CODEC} or {SAMPLER} failed: RuntimeError: helper"


def test_a_namespace_is_shared_but_not_the_packages_in_it(install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root = install("acme-space", groups={"soundomni.codecs": {"spaced": "acme_space.audio.codec:Codec"}}, modules={})
    for name, source in [
        ("audio/__init__", ""),
        ("audio/codec", "from soundomni.vae.mdct import MDCTCodec\nclass Codec(MDCTCodec): ..."),
        ("audio/util", "def fail(): raise OSError('x')"),
        ("other", "def fail(): raise OSError('x')"),
    ]:
        file = root / "acme_space" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    registry.load("codec", "spaced")
    import acme_space.audio.util
    import acme_space.other

    assert culprit(caught(acme_space.audio.util.fail), raised=True) == "codec 'spaced' of acme-space 1.2.3"
    assert culprit(caught(acme_space.other.fail)) is None
    for module in [name for name in sys.modules if name.partition(".")[0] == "acme_space"]:
        monkeypatch.delitem(sys.modules, module)


def test_an_error_without_a_message_is_described() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise ValueError("no")

    assert named(Odd()).startswith("Odd: its message cannot be made: ValueError")
    assert named(AssertionError()).partition(";")[0] == "AssertionError"


class Leaves(Exception):
    """Its message cannot be made, as it ends the program."""

    def __str__(self) -> str:
        raise SystemExit(3)


@pytest.mark.parametrize("error", [Leaves(), RuntimeError("red \x1b[31m \x07"), RuntimeError("\ud800" + "y" * 100_000), SystemExit("a\nb")])
def test_whatever_a_plugin_raises_is_one_short_line_that_no_terminal_obeys(error: BaseException) -> None:
    for line in (named(error), reason(error)):
        assert line.isprintable() and len(line) < 2000 and line.encode()
