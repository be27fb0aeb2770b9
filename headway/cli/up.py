"""`headway up` and `headway down`: a whole mesh as processes of this machine."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from headway.cli.autoscale import Autoscaler, runner
from headway.cli.run_folder import RunFolder, State
from headway.cli.supervisor import Say, Supervisor
from headway.cli.topology import PARTS, MeshSettings, parts_of, reachable, spare_workers
from headway.local_redis import find_server

DRAIN_S = 10.0
_END_S = DRAIN_S * 2 + 10
_POLL_S = 0.05
_COLOURS = ("red", "magenta", "blue", "green", "yellow", "cyan", "bright_white")


@dataclass(frozen=True)
class UpOptions:
    """What the user asked of `up`."""

    listen: str
    models: Path
    run_folder: Path
    redis_url: str | None
    start_s: float
    """How long the parts may take to be ready."""
    workers: tuple[int, int] = (1, 1)
    """The least and the most of each kind."""


class UpError(RuntimeError):
    """The mesh did not come up or did not end; says why."""


def with_free_port(listen: str) -> str:
    """HOST:0 with a port that is free now."""
    host, _, port = listen.rpartition(":")
    if port != "0":
        return listen
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host.strip("[]"), 0))
        return f"{host}:{probe.getsockname()[1]}"


async def run_mesh(options: UpOptions, say: Say, stop: asyncio.Event, on_ready: Callable[[str], None]) -> None:
    """Runs a mesh until `stop` is set; `on_ready` is told the router's address when all parts are ready.

    Raises `RunFolderError`, `RedisError` or `StartFailed`. A second SIGINT or SIGTERM ends it without draining.
    """
    folder = RunFolder(options.run_folder)
    with folder.held():
        listen = with_free_port(options.listen)
        server = None if options.redis_url is not None else find_server()
        settings = MeshSettings(listen, options.models, folder.path, options.redis_url, server, *options.workers)
        told = False

        def changed(supervisor: Supervisor) -> None:
            nonlocal told
            folder.write(State(os.getpid(), listen, supervisor.ready, supervisor.pids))
            if supervisor.ready and not told:
                told = True
                on_ready(listen)

        supervisor = Supervisor(parts_of(settings), say, start_s=options.start_s, drain_s=DRAIN_S, changed=changed)
        _on_signals(stop, supervisor)
        changed(supervisor)
        scaling = asyncio.create_task(_scale(settings, options, say))
        try:
            await supervisor.run(stop)
        finally:
            scaling.cancel()
            (ended,) = await asyncio.gather(scaling, return_exceptions=True)
        if isinstance(ended, Exception):
            raise ended


async def _scale(settings: MeshSettings, options: UpOptions, say: Say) -> None:
    """Adds and removes workers while the router can be asked."""
    if settings.most_workers > settings.least_workers:
        run = runner(say, start_s=options.start_s, drain_s=DRAIN_S)
        await Autoscaler(reachable(settings.listen), spare_workers(settings), options.workers, run, say).follow()


def _on_signals(stop: asyncio.Event, supervisor: Supervisor) -> None:
    def received() -> None:
        if stop.is_set():
            supervisor.kill()
        stop.set()

    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, received)


def printer(console: Console) -> Say:
    """Prints one readable log: each line after the name of its part."""
    width = max(map(len, PARTS))
    colours = dict(zip(PARTS, _COLOURS, strict=True))

    def say(name: str, line: str) -> None:
        console.print(Text.assemble((f"{name:<{width}} | ", colours.get(name, "white")), line), soft_wrap=True)

    return say


def up(options: UpOptions, console: Console) -> None:
    """Runs a mesh in the foreground until SIGINT or SIGTERM, and prints its log."""

    def on_ready(listen: str) -> None:
        console.print(f"[bold green]ready[/]: the router serves on [bold]{escape(listen)}[/]; Ctrl-C drains and ends")

    async def main() -> None:
        await run_mesh(options, printer(console), asyncio.Event(), on_ready)

    asyncio.run(main())


def up_detached(options: UpOptions, console: Console) -> None:
    """Starts a mesh that goes on when this command ends. Returns when it is ready. Raises `UpError`."""
    folder = RunFolder(options.run_folder)
    if folder.is_held():
        raise UpError("a mesh runs already; end it with: headway down")
    command = [sys.executable, "-m", "headway.cli.main", "up", *_flags(options)]
    with folder.log.open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, close_fds=True
        )
    with console.status("starting"):
        while not ((state := folder.state()) and state.pid == process.pid and state.ready):
            if process.poll() is not None:
                raise UpError(f"it did not come up; the end of {folder.log}:\n{_tail(folder.log)}")
            time.sleep(_POLL_S)
    console.print(
        f"ready: the router serves on {escape(state.listen)}; the log is {folder.log}; end it with: headway down"
    )


def down(run_folder: Path, console: Console) -> bool:
    """Drains and ends the mesh that runs in the folder. Returns False when none does. Raises `UpError`."""
    folder = RunFolder(run_folder)
    state = folder.state()
    if not folder.is_held() or state is None:
        return False
    with console.status("draining"):
        os.kill(state.pid, signal.SIGTERM)
        if not _released(folder, _END_S):
            os.kill(state.pid, signal.SIGKILL)  # its parts die with it
            if not _released(folder, 5.0):
                raise UpError(f"process {state.pid} does not end")
    return True


def _released(folder: RunFolder, within_s: float) -> bool:
    end_s = time.monotonic() + within_s
    while folder.is_held():
        if time.monotonic() > end_s:
            return False
        time.sleep(_POLL_S)
    return True


def _flags(options: UpOptions) -> list[str]:
    absolute = replace(options, models=options.models.absolute(), run_folder=options.run_folder.absolute())
    flags = ["--listen", absolute.listen, "--models", str(absolute.models), "--run-dir", str(absolute.run_folder)]
    flags += ["--start-timeout", str(absolute.start_s), "--autoscale", "{}:{}".format(*absolute.workers)]
    return flags if absolute.redis_url is None else [*flags, "--redis", absolute.redis_url]


def _tail(path: Path, lines: int = 20) -> str:
    return "\n".join(path.read_text("utf-8", "replace").splitlines()[-lines:])
