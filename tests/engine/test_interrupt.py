import os
import signal

import pytest

from detector.engine.interrupt import Interrupt

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def python_handles_sigint():
    """A shell's background job starts with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_noted_and_the_handlers_are_back(number: int, code: int):
    before = [signal.getsignal(n) for n in SIGNALS]
    with Interrupt() as interrupt:
        assert interrupt.exit_code is None
        assert all(signal.getsignal(n) not in before for n in SIGNALS)
        os.kill(os.getpid(), number)
        assert interrupt.exit_code == code
        assert [signal.getsignal(n) for n in SIGNALS] == before  # so a second one ends the process at once
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_the_second_signal_is_pythons():
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert interrupt.exit_code == 143


def test_without_a_signal_and_after_an_error_the_handlers_are_back():
    before = [signal.getsignal(n) for n in SIGNALS]
    with Interrupt() as interrupt:
        pass
    assert interrupt.exit_code is None
    with pytest.raises(ZeroDivisionError), Interrupt():
        _ = 1 / 0
    assert [signal.getsignal(n) for n in SIGNALS] == before
