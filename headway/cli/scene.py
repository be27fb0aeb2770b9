"""`headway scene`: files through the splat worker's tool, in a process of its own; what workers hold over gRPC."""

import subprocess
import sys
from typing import Annotated

import typer

app = typer.Typer(name="scene", help="Scenes: look into files, convert them, load and unload.", no_args_is_help=True)

_PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
Arguments = Annotated[list[str] | None, typer.Argument(metavar="...")]


def _run_tool(command: str, arguments: list[str] | None) -> None:
    """The layers forbid importing the worker, and its libraries may be missing: then the tool says so."""
    tool = (sys.executable, "-m", "services.splat_worker.scene_tool", command)
    raise typer.Exit(subprocess.run([*tool, *(arguments or [])], check=False).returncode)


@app.command(context_settings=_PASSED_ON)
def info(arguments: Arguments = None) -> None:
    """Show what a scene file holds: FILE [--json]."""
    _run_tool("info", arguments)


@app.command(context_settings=_PASSED_ON)
def convert(arguments: Arguments = None) -> None:
    """Write a scene in another format: IN OUT [--sh-degree N] [--keep SHARE] [--keep-axes]."""
    _run_tool("convert", arguments)
