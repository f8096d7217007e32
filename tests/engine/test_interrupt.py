import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ranks import start_command
from tiny import TINY

from detector.core.errors import Interrupted
from detector.engine.checkpoint import load_checkpoint
from detector.engine.interrupt import Interrupt

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
    """Set the default handler, because background jobs of a shell ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_recorded(number: int, code: int):
    before = [signal.getsignal(n) for n in SIGNALS]
    with Interrupt() as interrupt:
        assert interrupt.exit_code is None
        os.kill(os.getpid(), number)
        assert interrupt.exit_code == code
    assert [signal.getsignal(n) for n in SIGNALS] == before


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_signal_ends_the_process_immediately(first: int, second: int):
    command = [sys.executable, "-c", BUSY, str(int(first)), str(int(second))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert (done.returncode, done.stdout, done.stderr) == (
        -second,
        f"{128 + first}\n",
        "",
    )  # a shell shows 128 + second


def test_in_immediate_mode_the_first_signal_raises():
    with Interrupt() as interrupt:
        with pytest.raises(Interrupted) as stopped, interrupt.immediately():
            os.kill(os.getpid(), signal.SIGTERM)
        assert stopped.value.exit_code == 143


def test_in_immediate_mode_an_earlier_signal_raises():
    with Interrupt() as interrupt:
        with interrupt.immediately():
            pass
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted) as stopped, interrupt.immediately():
            pytest.fail("never reached")
        assert stopped.value.exit_code == 130


def test_without_a_signal_and_after_an_error_the_handlers_are_restored():
    before = [signal.getsignal(n) for n in SIGNALS]
    with Interrupt() as interrupt:
        pass
    assert interrupt.exit_code is None
    with pytest.raises(ZeroDivisionError), Interrupt():
        _ = 1 / 0
    assert [signal.getsignal(n) for n in SIGNALS] == before


SLOW = """
import os, time
from pathlib import Path
from detector.losses.smooth_l1 import SmoothL1Loss
from detector.losses.base import BOX_LOSSES

@BOX_LOSSES.register("slow")
class Slow(SmoothL1Loss):
    def forward(self, *arguments):
        Path(os.environ["MARKER"]).touch()
        time.sleep(float(os.environ["SECONDS"]))
        return super().forward(*arguments)
"""


@pytest.mark.slow
def test_ctrl_c_saves_a_training_and_a_second_ctrl_c_ends_it_immediately(tmp_path: Path):
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "tiny.yaml").write_text(TINY.replace("imports: [", "imports: [slow, ") + "loss: {box: slow}\n")
    options = ("--cfg", tmp_path / "tiny.yaml", "--out", tmp_path / "run", "--resume", "auto")
    marker, last = tmp_path / "marker", tmp_path / "run/checkpoints/last.pt"
    for num_signals, seconds, code in ((1, 2, 130), (2, 300, -signal.SIGINT)):  # a shell shows 130 in both cases
        run = start_command(tmp_path, "train", *options, MARKER=str(marker), SECONDS=str(seconds))
        deadline = time.monotonic() + 120
        while not marker.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        for _ in range(num_signals):
            run.send_signal(signal.SIGINT)
            time.sleep(0.5)
        ended = run.end()
        assert ended.code == code and "Traceback" not in ended.errors
        assert ("--resume auto" in ended.errors) == (num_signals == 1)
        assert load_checkpoint(last)["training"]["steps_done"] == 1
        marker.unlink()
