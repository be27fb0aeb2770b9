"""Sends one request and shows the answer as it comes."""

import sys
from collections.abc import Iterable
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from headway.cli.show import plan_line, served_line
from headway.client import Headway
from headway.v1 import image_pb2, splat_pb2, text_pb2

SUFFIXES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
"""Formats of files by their suffix."""


def format_of(file: Path) -> str:
    """The pixel format that a file's suffix asks for. Raises `typer.BadParameter`."""
    if file.suffix.lower() not in SUFFIXES:
        raise typer.BadParameter(f"{file}: the name must end in one of {', '.join(SUFFIXES)}")
    return SUFFIXES[file.suffix.lower()]


def stream_text(mesh: Headway, request: text_pb2.GenerateRequest, deadline_s: float, notes: Console) -> None:
    """Writes the text to standard output while it comes, and what was promised and served to `notes`."""
    for message in mesh.text(request, deadline_s=deadline_s):
        match message.WhichOneof("part"):
            case "plan":
                notes.print(plan_line(message.plan), style="dim", highlight=False)
            case "chunk":
                sys.stdout.write(message.chunk.text)
                sys.stdout.flush()
            case "summary":
                sys.stdout.write("\n")
                _text_ended(message.summary, notes)


def _text_ended(summary: text_pb2.GenerateSummary, notes: Console) -> None:
    why = text_pb2.FinishReason.Name(summary.finish_reason).removeprefix("FINISH_REASON_").lower()
    notes.print(served_line(summary.served), style="dim", highlight=False)
    usage = summary.usage
    notes.print(
        f"ended by {why}: {usage.completion_tokens} tokens after {usage.prompt_tokens}; seed {summary.seed}",
        style="dim",
        highlight=False,
    )


def save_images(
    mesh: Headway,
    request: image_pb2.GenerateImagesRequest,
    deadline_s: float,
    folder: Path,
    suffix: str,
    notes: Console,
) -> None:
    """Writes each image into `folder` as it comes, under its number and label."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=notes, transient=True) as progress:
        task = progress.add_task("images", total=request.count or len(request.labels))
        for message in mesh.images(request, deadline_s=deadline_s):
            match message.WhichOneof("part"):
                case "plan":
                    progress.console.print(plan_line(message.plan), style="dim", highlight=False)
                case "batch":
                    _write(message.batch.images, folder, suffix)
                    progress.advance(task, len(message.batch.images))
                case "summary":
                    progress.console.print(served_line(message.summary.served), style="dim", highlight=False)
    notes.print(f"wrote {int(progress.tasks[0].completed)} images to {folder}", highlight=False)


def _write(images: Iterable[image_pb2.Image], folder: Path, suffix: str) -> None:
    for image in images:
        (folder / f"{image.index:03d}-label{image.label}{suffix}").write_bytes(image.data)


def save_frame(mesh: Headway, request: splat_pb2.RenderRequest, deadline_s: float, file: Path, notes: Console) -> None:
    """Writes the frame to `file`."""
    with notes.status("rendering"):
        answer = mesh.render(request, deadline_s=deadline_s)
    notes.print(plan_line(answer.plan), style="dim", highlight=False)
    notes.print(served_line(answer.served), style="dim", highlight=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(answer.frame.data)
    frame = answer.frame
    size = f"{frame.width}x{frame.height}"
    drawn = f"{frame.rendered_width}x{frame.rendered_height}"
    scaled = "" if size == drawn else f", rendered at {drawn}"
    notes.print(f"wrote {file}: {size}{scaled}, {frame.gaussians} gaussians", highlight=False)
