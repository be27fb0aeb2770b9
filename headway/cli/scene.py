"""`headway scene`: files through the splat worker's tool, in a process of its own; what workers serve over gRPC."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from headway.cli import options, show
from headway.client import DEFAULT_ADDRESS, Headway
from headway.errors import HeadwayError
from headway.v1 import splat_pb2

app = typer.Typer(name="scene", help="Scenes: look into files, convert them, load and unload.", no_args_is_help=True)
notes = Console(stderr=True)

_PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
Arguments = Annotated[list[str] | None, typer.Argument(metavar="...")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A file's name in the workers' scene folder, no suffix.")]


def _run_tool(command: str, arguments: list[str] | None) -> None:
    """The layers forbid importing the worker, and its libraries may be missing: then the tool says so."""
    tool = (sys.executable, "-m", "services.splat_worker.scene_tool", command)
    raise typer.Exit(subprocess.run([*tool, *(arguments or [])], check=False).returncode)


@contextmanager
def _connected(server: options.Server) -> Iterator[Headway]:
    try:
        with server.connect() as mesh:
            yield mesh
    except HeadwayError as error:
        show.print_error(notes, show.error_lines(error, server.address))
        raise typer.Exit(show.exit_code(error)) from None


@app.command(context_settings=_PASSED_ON)
def info(arguments: Arguments = None) -> None:
    """Show what a scene file holds: FILE [--json]."""
    _run_tool("info", arguments)


@app.command(context_settings=_PASSED_ON)
def convert(arguments: Arguments = None) -> None:
    """Write a scene in another format: IN OUT [--sh-degree N] [--keep SHARE] [--keep-axes]."""
    _run_tool("convert", arguments)


@app.command("list")
def list_scenes(
    address: options.Address = DEFAULT_ADDRESS,
    ca: options.Ca = None,
    cert: options.Cert = None,
    key: options.Key = None,
    api_key: options.ApiKey = None,
) -> None:
    """List the scenes that can be asked for."""
    with _connected(options.Server(address, ca, cert, key, api_key)) as mesh:
        scenes = mesh.scenes().scenes
    table = Table(box=box.SIMPLE, pad_edge=False)
    for column in ("scene", "gaussians", "SH", "dropped", "MB", "memory", "hash"):
        table.add_column(column, overflow="fold")
    for scene in scenes:
        memory = "evicted" if scene.evicted else "pinned" if scene.pinned else "loaded"
        figures = (f"{scene.gaussians:,}", str(scene.sh_degree), str(scene.dropped), f"{scene.memory_bytes / 1e6:.1f}")
        table.add_row(scene.name, *figures, memory, scene.hash[:12])
    Console().print(table)


@app.command()
def load(
    name: Name,
    pin: Annotated[bool, typer.Option("--pin", help="Keep it in memory when others must go.")] = False,
    deadline: options.Deadline = 600.0,
    address: options.Address = DEFAULT_ADDRESS,
    ca: options.Ca = None,
    cert: options.Cert = None,
    key: options.Key = None,
    api_key: options.ApiKey = None,
) -> None:
    """Load a scene of the workers' folder, or load it anew when its file has changed."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    last = splat_pb2.LoadSceneResponse()
    with (
        _connected(options.Server(address, ca, cert, key, api_key)) as mesh,
        Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as progress,
    ):
        task = progress.add_task("wait", total=1.0)
        for last in mesh.load_scene(name, pin=pin, deadline_s=deadline):
            progress.update(task, description=last.stage, completed=last.progress)
    took = show.ms(last.elapsed.ToMilliseconds())
    show.print_note(notes, f"{last.scene.name} is loaded: {last.scene.gaussians} gaussians, {last.scene.hash}, {took}")


@app.command()
def unload(
    name: Name,
    address: options.Address = DEFAULT_ADDRESS,
    ca: options.Ca = None,
    cert: options.Cert = None,
    key: options.Key = None,
    api_key: options.ApiKey = None,
) -> None:
    """Take a scene out of service until it is loaded again or its file changes."""
    with _connected(options.Server(address, ca, cert, key, api_key)) as mesh:
        mesh.unload_scene(name)
    show.print_note(notes, f"{name} is out of service")
