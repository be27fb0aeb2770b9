"""`headway scene info` and `headway scene convert`: scene files on this machine, without a mesh."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from headway.errors import BadInput
from services.splat_worker.convert import converted
from services.splat_worker.ladder import Bench
from services.splat_worker.rasterizer import Rasterizer, max_threads
from services.splat_worker.readers import SUFFIXES, read_scene
from services.splat_worker.readers.format_name import format_name
from services.splat_worker.scene import Scene, SceneLimits
from services.splat_worker.writers import WRITERS, write_scene, writer_of

EXIT_BAD_INPUT, EXIT_FAILED = 2, 4  # as everywhere in `headway`
LIMITS = SceneLimits(max_gaussians=50_000_000, max_file_bytes=64 << 30)
"""The file is the caller's own: it may be larger than what a worker takes from others."""

app = typer.Typer(
    name="headway scene", help="Scene files.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


@dataclass(frozen=True)
class SceneInfo:
    """What a scene file holds. Lengths are in the scene's own units."""

    file: str
    format: str
    file_bytes: int
    gaussians: int
    dropped: int
    """Gaussians that are not finite or degenerate; never drawn."""
    sh_degree: int
    lowest: tuple[float, float, float]
    highest: tuple[float, float, float]
    """Corners of the box around all centres."""
    memory_bytes: int
    """What the scene takes in a worker."""
    hash: str


@app.command()
def info(
    file: Annotated[Path, typer.Argument(metavar="FILE", help=f"Ends in {', '.join(SUFFIXES)}.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Show what a scene file holds."""
    scene = _read(file)
    found = describe(file, scene)
    if as_json:
        print(json.dumps(asdict(found)))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in asdict(found).items():
        table.add_row(name.replace("_", " "), _shown(value))
    Console(soft_wrap=True).print(table)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help=f"Ends in {', '.join(SUFFIXES)}.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help=f"Ends in {', '.join(WRITERS)}.")],
    sh_degree: Annotated[int | None, typer.Option(min=0, max=3, help="Highest degree of harmonics to keep.")] = None,
    keep: Annotated[float, typer.Option(metavar="SHARE", help="Share of the gaussians to keep, above 0 to 1.")] = 1.0,
    keep_axes: Annotated[
        bool, typer.Option("--keep-axes", help="Leave coordinates as they are, whatever the format's convention.")
    ] = False,
) -> None:
    """Write a scene in another format. With --keep the gaussians that are seen most are kept, most important first."""
    if not 0 < keep <= 1:
        _fail(f"--keep: must be above 0 and at most 1, not {keep:g}")
    try:
        writer_of(target)
    except BadInput as error:
        _fail(str(error))
    bench = Bench(Rasterizer(min(os.cpu_count() or 1, max_threads())))
    scene = converted(_read(source), source, target, sh_degree=sh_degree, keep=keep, keep_axes=keep_axes, bench=bench)
    try:
        write_scene(target, scene)
    except OSError as error:
        _fail(f"{target}: {error.strerror or error}", EXIT_FAILED)
    size = target.stat().st_size
    print(f"wrote {target}: {scene.count} gaussians, degree {scene.sh_degree}, {size} bytes, from {source}")


def describe(file: Path, scene: Scene) -> SceneInfo:
    """What is known of a scene and its file."""
    lowest, highest = scene.means.min(axis=0), scene.means.max(axis=0)
    return SceneInfo(
        file=str(file),
        format=format_name(file, LIMITS),
        file_bytes=file.stat().st_size,
        gaussians=scene.count,
        dropped=scene.dropped,
        sh_degree=scene.sh_degree,
        lowest=_corner(lowest),
        highest=_corner(highest),
        memory_bytes=scene.memory_bytes,
        hash=scene.scene_id,
    )


def _corner(values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> tuple[float, float, float]:
    x, y, z = (round(float(value), 4) for value in values)
    return x, y, z


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _read(file: Path) -> Scene:
    try:
        return read_scene(file, LIMITS)
    except BadInput as error:
        _fail(f"{file}: {error}")
    except OSError as error:
        _fail(f"{file}: {error.strerror or error}", EXIT_FAILED)


def _fail(message: str, code: int = EXIT_BAD_INPUT) -> NoReturn:
    Console(stderr=True).print(message, style="bold red", soft_wrap=True, highlight=False, markup=False)
    raise typer.Exit(code)


def main() -> None:
    """Runs the command."""
    app(prog_name="headway scene")
