"""The first signal sets a flag, the second does what it always did."""

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
