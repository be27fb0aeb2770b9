import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from headway import lifeline
from headway.lifeline import tied


def _gone(pid: int, within_s: float = 10.0) -> bool:
    """Whether the process ends in time; a zombie that nobody reaped has ended too."""
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


PARENT = """
import subprocess, sys
from headway.lifeline import tied
child = subprocess.Popen(tied(["sleep", "600"]))
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_child_dies_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=-1, stdout=-1) as parent:
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.send_signal(signal.SIGKILL)
    assert _gone(child)


def test_the_child_is_the_command_itself() -> None:
    done = subprocess.run(tied(["sh", "-c", "echo said; exit 7"]), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "said\n", "")


GUARDED = """
import os, subprocess, sys
from headway import lifeline
code = "import sys; from headway import lifeline; sys.exit(lifeline._guard(int(sys.argv[1]), sys.argv[2:]))"
me = str(os.getpid())
child = subprocess.Popen([sys.executable, "-c", code, me, "sh", "-c", "echo $$; exec sleep 600"])
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_where_the_kernel_does_not_help_a_guard_ends_the_child() -> None:
    with subprocess.Popen([sys.executable, "-c", GUARDED], stdin=-1, stdout=-1) as parent:
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.send_signal(signal.SIGKILL)
    assert _gone(child)


def test_a_guard_passes_on_the_exit_code() -> None:
    assert lifeline._guard(os.getppid(), ["sh", "-c", "exit 3"]) == 3
    for signum in (signal.SIGTERM, signal.SIGINT):
        with suppress(ValueError):
            signal.signal(signum, signal.SIG_DFL if signum == signal.SIGTERM else signal.default_int_handler)
