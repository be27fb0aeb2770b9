"""The folder of a running mesh: its sockets, its log, and a state file that says who runs it."""

import contextlib
import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path


class RunFolderError(RuntimeError):
    """The folder cannot be used, or a mesh runs in it already. Names the folder."""


@dataclass(frozen=True)
class State:
    """What `headway up` tells other commands about itself."""

    pid: int
    listen: str
    ready: bool
    pids: Mapping[str, int] = field(default_factory=dict)
    """The process id of each part that runs now, by name."""


def default_run_folder() -> Path:
    """The user's own runtime folder, where the system gives one; else one in the temporary folder."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        return Path(runtime) / "headway"
    return Path(tempfile.gettempdir()) / f"headway-{os.getuid()}"


class RunFolder:
    """Private to the user (mode 0700). Whoever holds its lock runs the mesh; the lock goes with the process."""

    def __init__(self, path: Path) -> None:
        """Makes the folder if it is not there. Raises `RunFolderError` when it is not the user's own."""
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = path.lstat()
        except OSError as error:
            raise RunFolderError(f"run folder {path}: {error.strerror}") from error
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise RunFolderError(f"run folder {path}: is not a folder of this user")
        path.chmod(0o700)

    @property
    def log(self) -> Path:
        """Where a detached mesh writes its log."""
        return self.path / "up.log"

    def socket(self, name: str) -> Path:
        """Where the part `name` listens."""
        return self.path / f"{name}.sock"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds the lock. Raises `RunFolderError` when a mesh runs here already."""
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _try_lock(lock):
                state = self.state()
                who = f" (process {state.pid}, {state.listen})" if state is not None else ""
                raise RunFolderError(f"a mesh runs already{who}; end it with: headway down")
            try:
                yield
            finally:
                self._state_file.unlink(missing_ok=True)
        finally:
            os.close(lock)

    def is_held(self) -> bool:
        """Whether a mesh runs here."""
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            return not _try_lock(lock)
        finally:
            os.close(lock)

    def write(self, state: State) -> None:
        """Replaces the state file in one step."""
        fresh = self._state_file.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(state)))
        fresh.replace(self._state_file)

    def state(self) -> State | None:
        """What the mesh that runs here tells of itself; None when there is none or it has not told yet."""
        try:
            return State(**json.loads(self._state_file.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def _state_file(self) -> Path:
        return self.path / "state.json"


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
