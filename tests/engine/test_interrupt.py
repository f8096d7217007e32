import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from detector.engine.interrupt import Interrupt
from detector.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)
BUSY = """
import os, signal, sys
from detector.engine.interrupt import Interrupt

with Interrupt() as interrupt:
    os.kill(os.getpid(), int(sys.argv[1]))
    print(interrupt.exit_code, flush=True)
    os.kill(os.getpid(), int(sys.argv[2]))
    print("never reached", flush=True)
"""


@pytest.fixture(autouse=True)
def python_handles_sigint():
    """A shell's background job starts with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_noted(number: int, code: int):
    before = [signal.getsignal(n) for n in SIGNALS]
    with Interrupt() as interrupt:
        assert interrupt.exit_code is None
        os.kill(os.getpid(), number)
        assert interrupt.exit_code == code
    assert [signal.getsignal(n) for n in SIGNALS] == before


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_signal_ends_the_process_at_once(first: int, second: int):
    command = [sys.executable, "-c", BUSY, str(int(first)), str(int(second))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-second, f"{128 + first}\n", "")  # a shell says 128 + second


def test_at_once_the_first_signal_raises():
    with Interrupt() as interrupt:
        with pytest.raises(Interrupted) as stopped, interrupt.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
        assert stopped.value.exit_code == 143


def test_at_once_a_signal_that_came_before_raises():
    with Interrupt() as interrupt:
        with interrupt.at_once():
            pass
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted) as stopped, interrupt.at_once():
            pytest.fail("never reached")
        assert stopped.value.exit_code == 130


def test_without_a_signal_and_after_an_error_the_handlers_are_back():
    before = [signal.getsignal(n) for n in SIGNALS]
    with Interrupt() as interrupt:
        pass
    assert interrupt.exit_code is None
    with pytest.raises(ZeroDivisionError), Interrupt():
        _ = 1 / 0
    assert [signal.getsignal(n) for n in SIGNALS] == before
