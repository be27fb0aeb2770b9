"""Ties a child process to its parent's life: `subprocess.Popen(tied(command))` leaves nothing behind a `kill -9`.

The child begins as this file, which asks the kernel to kill it when its parent ends and then becomes the command
(Linux). Elsewhere it stays, runs the command below itself, and ends it when its own parent is gone. Nothing runs
between fork and exec in the parent, so threads and event loops there do no harm.

Linux means by "parent" the THREAD that started the child: start it from one that lives as long as the child should.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.5


def tied(command: Sequence[str]) -> list[str]:
    """The command to start instead of `command`, from this process, for it to die (SIGKILL) with this process."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def _become(parent: int, command: list[str]) -> None:
    import ctypes  # only here: the parent has no use for it

    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before it could be watched
        sys.exit(1)
    os.execvp(command[0], command)


def _guard(parent: int, command: list[str]) -> int:
    with subprocess.Popen(command) as child:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda received, _: child.send_signal(received))
        while child.poll() is None:
            if os.getppid() != parent:
                child.kill()
            time.sleep(_POLL_S)
    return child.returncode


if __name__ == "__main__":
    _parent, _command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        _become(_parent, _command)
    sys.exit(_guard(_parent, _command))
