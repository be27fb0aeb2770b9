"""The command `headway`."""

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.json_format import MessageToDict
from rich.console import Console

from headway import __version__
from headway.cli import calls, options, show
from headway.cli.autoscale import read_bounds
from headway.cli.camera_path import read_camera_path
from headway.cli.path_calls import VIDEO_SUFFIX, save_path
from headway.cli.readiness import is_ready
from headway.cli.run_folder import RunFolderError, default_run_folder
from headway.cli.scene import app as scene_app
from headway.cli.supervisor import StartFailed
from headway.cli.topology import GrpcReady, default_models
from headway.cli.up import UpError, UpOptions, down, up, up_detached
from headway.client import DEFAULT_ADDRESS
from headway.config import check_address
from headway.errors import HeadwayError
from headway.local_redis import RedisError
from headway.requests import images_request, look_at, path_request, render_request, service_level, text_request
from headway.v1 import router_pb2

app = typer.Typer(
    name="headway",
    help="Generative work under a deadline: text, images and splats behind one gRPC router.",
    epilog=show.EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(scene_app)
notes = Console(stderr=True)


@contextmanager
def _readable(address: str = "") -> Iterator[None]:
    """Turns what can go wrong into a few lines and an exit code."""
    try:
        yield
    except HeadwayError as error:
        show.print_error(notes, show.error_lines(error, address))
        raise typer.Exit(show.exit_code(error)) from None
    except (UpError, StartFailed, RunFolderError, RedisError, OSError) as error:
        show.print_error(notes, str(error).splitlines())
        raise typer.Exit(show.EXIT_FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _listen(text: str) -> str:
    try:
        checked = check_address(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if checked.startswith("unix:"):
        raise typer.BadParameter("the router listens on HOST:PORT")
    return checked


def _bounds(text: str) -> str:
    try:
        least, most = read_bounds(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: {error}") from error
    if least < most and os.environ.get("HEADWAY_TLS_CERT"):
        raise typer.BadParameter("workers come and go by what the router says without TLS; give MIN equal to MAX")
    return text


def _vector(text: str) -> tuple[float, float, float]:
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: must be three numbers, such as 0,1.5,-3") from error
    return x, y, z


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


RunDir = Annotated[
    Path | None, typer.Option("--run-dir", metavar="DIR", help="Sockets, state and log. [default: the user's own]")
]


@app.command("up")
def up_command(
    listen: Annotated[
        str,
        typer.Option("--listen", parser=_listen, metavar="HOST:PORT", help="Where the router serves; port 0 picks."),
    ] = DEFAULT_ADDRESS,
    redis: Annotated[
        str | None, typer.Option("--redis", metavar="URL", help="A Redis that runs already. [default: starts one]")
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(
            "--models", metavar="DIR", exists=True, file_okay=False, help="Holds text, dit-digits and scenes."
        ),
    ] = None,
    run_dir: RunDir = None,
    start_timeout: Annotated[
        float,
        typer.Option("--start-timeout", parser=options.parse_duration_s, metavar="TIME", help="Time to be ready."),
    ] = 300.0,
    autoscale: Annotated[
        str,
        typer.Option(
            "--autoscale", parser=_bounds, metavar="MIN:MAX", help="Workers of each kind; they come and go as needed."
        ),
    ] = "1:1",
    detach: Annotated[bool, typer.Option("--detach", help="Return when all is ready; `headway down` ends it.")] = False,
) -> None:
    """Start everything as processes of this machine: Redis, device arbiter, prefix cache, workers, router."""
    folder, bounds = run_dir or default_run_folder(), read_bounds(autoscale)
    chosen = UpOptions(listen, models or default_models(), folder, redis, start_timeout, bounds)
    with _readable():
        if detach:
            up_detached(chosen, notes)
        else:
            up(chosen, notes)


@app.command("down")
def down_command(run_dir: RunDir = None) -> None:
    """Drain and end what `headway up` started."""
    with _readable():
        if not down(run_dir or default_run_folder(), notes):
            show.print_error(notes, ["no mesh runs here"])
            raise typer.Exit(show.EXIT_FAILED)
    notes.print("ended")


@app.command()
def status(
    address: options.Address = DEFAULT_ADDRESS,
    ca: options.Ca = None,
    cert: options.Cert = None,
    key: options.Key = None,
    api_key: options.ApiKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Show the workers as the router sees them. Leaves with 4 when one of them is not healthy."""
    with _readable(address), options.Server(address, ca, cert, key, api_key).connect() as mesh:
        answer = mesh.workers()
    if as_json:
        _print_json(answer)
    else:
        show.print_workers(Console(), answer)
        print("prefix cache:", "reachable" if answer.prefix_cache_reachable else "not reachable")
    if any(worker.health != router_pb2.WORKER_HEALTH_HEALTHY for worker in answer.workers):
        raise typer.Exit(show.EXIT_FAILED)


@app.command()
def health(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Any service of the mesh.")] = DEFAULT_ADDRESS,
    ca: options.Ca = None,
    cert: options.Cert = None,
    key: options.Key = None,
    server_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name in the server's certificate. [default: the address's]")
    ] = None,
) -> None:
    """Ask one service whether it serves; leaves with 4 when not. For container health checks."""
    credentials = options.Server(address, ca, cert, key, None).credentials()
    if not asyncio.run(is_ready(GrpcReady(address, credentials, server_name))):
        show.print_error(notes, [f"{address} does not serve"])
        raise typer.Exit(show.EXIT_FAILED)


def _print_json(answer: router_pb2.ListWorkersResponse) -> None:
    Console().print_json(
        data=MessageToDict(answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    )


@app.command()
def text(
    prompt: Annotated[str, typer.Argument(help="What to continue; - reads standard input.")],
    deadline: options.Deadline = 10.0,
    priority: options.Priority = "normal",
    at_least: options.AtLeast = None,
    exact: options.Exact = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most new tokens. [default: the model's]")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=10, help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Makes the answer repeatable.")] = None,
    model: Annotated[str, typer.Option(help="Name of the model. [default: the worker's]")] = "",
    address: options.Address = DEFAULT_ADDRESS,
    ca: options.Ca = None,
    cert: options.Cert = None,
    key: options.Key = None,
    api_key: options.ApiKey = None,
) -> None:
    """Continue PROMPT; the text streams to standard output."""
    with _readable(address), options.Server(address, ca, cert, key, api_key).connect() as mesh:
        level = service_level(priority=priority, at_least=at_least, exact=exact)
        given = sys.stdin.read() if prompt == "-" else prompt
        request = text_request(
            given, model=model, max_tokens=max_tokens, temperature=temperature, seed=seed, level=level
        )
        calls.stream_text(mesh, request, deadline, notes)


@app.command()
def image(
    label: Annotated[list[int], typer.Option("--label", min=0, help="Class; give it again for more classes.")],
    n: Annotated[int | None, typer.Option("--n", min=1, help="How many. [default: one for each label]")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", file_okay=False, metavar="DIR")] = Path("images"),
    deadline: options.Deadline = 10.0,
    priority: options.Priority = "normal",
    at_least: options.AtLeast = None,
    exact: options.Exact = None,
    format: Annotated[str, typer.Option(help="png, jpeg or webp.")] = "png",
    seed: Annotated[int | None, typer.Option(min=0, help="Makes the answer repeatable.")] = None,
    model: Annotated[str, typer.Option(help="Name of the model. [default: the worker's]")] = "",
    address: options.Address = DEFAULT_ADDRESS,
    ca: options.Ca = None,
    cert: options.Cert = None,
    key: options.Key = None,
    api_key: options.ApiKey = None,
) -> None:
    """Draw images of the given classes into a folder."""
    suffix = f".{format}"
    calls.format_of(Path(suffix[1:] + suffix))
    with _readable(address), options.Server(address, ca, cert, key, api_key).connect() as mesh:
        level = service_level(priority=priority, at_least=at_least, exact=exact)
        request = images_request(label, count=n, model=model, seed=seed, format=format, level=level)
        calls.save_images(mesh, request, deadline, output, suffix, notes)


@app.command()
def render(
    scene: Annotated[str, typer.Argument(help="Name or hash of a scene.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            "--out",
            metavar="FILE",
            help="Ends in .png, .jpg or .webp; with --path in .mp4, or a folder for frames.",
        ),
    ],
    width: Annotated[int, typer.Option(min=1, max=4096)] = 512,
    height: Annotated[int, typer.Option(min=1, max=4096)] = 512,
    position: Annotated[str | None, typer.Option(metavar="X,Y,Z", help="Camera. [default: the scene's own]")] = None,
    target: Annotated[str, typer.Option(metavar="X,Y,Z", help="What the camera at --position looks at.")] = "0,0,0",
    path: Annotated[
        Path | None, typer.Option(metavar="FILE", exists=True, dir_okay=False, help="JSON file of key cameras.")
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(min=0.001, max=240, help="With --path: the video's rate. [default: the file's]"),
    ] = None,
    format: Annotated[str, typer.Option(help="With --path into a folder: png, jpeg or webp.")] = "png",
    deadline: options.Deadline = 10.0,
    priority: options.Priority = "normal",
    at_least: options.AtLeast = None,
    exact: options.Exact = None,
    address: options.Address = DEFAULT_ADDRESS,
    ca: options.Ca = None,
    cert: options.Cert = None,
    key: options.Key = None,
    api_key: options.ApiKey = None,
) -> None:
    """Render one frame of SCENE into a file, or with --path a video or a folder of frames."""
    is_video = path is not None and output.suffix.lower() == VIDEO_SUFFIX
    pixel_format = calls.format_of(output if path is None else Path(f"x.{format}"))
    camera = None if position is None else look_at(_vector(position), _vector(target))
    with _readable(address), options.Server(address, ca, cert, key, api_key).connect() as mesh:
        level = service_level(priority=priority, at_least=at_least, exact=exact)
        if path is not None:
            keys = read_camera_path(path)
            along = path_request(
                scene, keys.cameras, frames_between=keys.frames_between, level=level, width=width, height=height,
                video_frames_per_second=fps or keys.frames_per_second, format=pixel_format, video=is_video,
            )  # fmt: skip
            return save_path(mesh, along, deadline, output, f".{format}", notes)
        request = render_request(scene, width=width, height=height, camera=camera, format=pixel_format, level=level)
        calls.save_frame(mesh, request, deadline, output, notes)
    return None


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", file_okay=False, metavar="DIR")] = Path("demo-output"),
    models: Annotated[Path | None, typer.Option("--models", metavar="DIR", exists=True, file_okay=False)] = None,
    address: Annotated[
        str | None, typer.Option("--address", metavar="HOST:PORT", help="A mesh that runs. [default: starts one]")
    ] = None,
) -> None:
    """Start everything, send each kind of work with several deadlines, and show what each deadline bought."""
    try:
        from headway.cli.demo import run_demo  # Pillow comes with the workers, and only the demo needs it
    except ImportError as error:
        show.print_error(notes, [f"the demo needs the workers ({error}): pip install 'headway[workers]'"])
        raise typer.Exit(show.EXIT_FAILED) from None

    with _readable(address or ""):
        run_demo(output, models or default_models(), address, Console())


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
