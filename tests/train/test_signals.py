"""The first signal sets a flag, the second does what it always did; one that announces an end may come any number of times."""

import os
import signal

import pytest
from tiny_training import alone

from soundomni.train.signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_the_second_acts(number: signal.Signals) -> None:
    def before(found: int, frame: object) -> None:
        seen.append(found)

    seen: list[int] = []
    outer = signal.signal(number, before)
    try:
        with StopRequest() as stop:
            assert not stop.agreed(alone())
            os.kill(os.getpid(), number)
            assert stop.agreed(alone()) and seen == []
            os.kill(os.getpid(), number)
            assert seen == [number]
        with StopRequest():
            pass
        assert signal.getsignal(number) is before
    finally:
        signal.signal(number, outer)


def test_under_torchrun_a_signal_that_is_passed_on_once_more_asks_for_the_same() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(environment={"TORCHELASTIC_RUN_ID": "none"}) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested and stop.agreed(alone())
    assert signal.getsignal(signal.SIGTERM) is before


WARNINGS = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGHUP]


@pytest.mark.parametrize("number", WARNINGS)
def test_a_signal_that_announces_an_end_may_come_again_and_a_request_after_it_is_the_first(number: signal.Signals) -> None:
    def before(found: int, frame: object) -> None:
        seen.append(found)

    seen: list[int] = []
    outer = {name: signal.signal(name, before) for name in (number, signal.SIGTERM)}
    try:
        with StopRequest() as stop:
            for _ in range(2):
                os.kill(os.getpid(), number)
                assert stop.agreed(alone()) and seen == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == [signal.SIGTERM]
        assert signal.getsignal(number) is before and signal.getsignal(signal.SIGTERM) is before
    finally:
        for name, handler in outer.items():
            signal.signal(name, handler)


@pytest.mark.parametrize("number", WARNINGS)
def test_a_signal_that_is_ignored_stays_ignored(number: signal.Signals) -> None:
    outer = signal.signal(number, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), number)
            assert not stop.requested
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, outer)
