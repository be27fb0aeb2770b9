"""Sends one request and shows the answer as it comes."""

import sys
from collections.abc import Iterable
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from headway.cli.show import plan_line, print_note, served_line
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
                print_note(notes, plan_line(message.plan))
            case "chunk":
                sys.stdout.write(message.chunk.text)
                sys.stdout.flush()
            case "summary":
                sys.stdout.write("\n")
                _text_ended(message.summary, notes)


def _text_ended(summary: text_pb2.GenerateSummary, notes: Console) -> None:
    why = text_pb2.FinishReason.Name(summary.finish_reason).removeprefix("FINISH_REASON_").lower()
    print_note(notes, served_line(summary.served))
    usage = summary.usage
    tokens = f"{usage.completion_tokens} tokens after {usage.prompt_tokens}"
    print_note(notes, f"ended by {why}: {tokens}; seed {summary.seed}")


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
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as progress:
        task = progress.add_task("images", total=request.count or len(request.labels))
        for message in mesh.images(request, deadline_s=deadline_s):
            match message.WhichOneof("part"):
                case "plan":
                    print_note(progress.console, plan_line(message.plan))
                case "batch":
                    _write(message.batch.images, folder, suffix)
                    progress.advance(task, len(message.batch.images))
                case "summary":
                    print_note(progress.console, served_line(message.summary.served))
    print_note(notes, f"wrote {int(progress.tasks[0].completed)} images to {folder}")


def _write(images: Iterable[image_pb2.Image], folder: Path, suffix: str) -> None:
    for image in images:
        (folder / f"{image.index:03d}-label{image.label}{suffix}").write_bytes(image.data)


def save_frame(mesh: Headway, request: splat_pb2.RenderRequest, deadline_s: float, file: Path, notes: Console) -> None:
    """Writes the frame to `file`."""
    with notes.status("rendering"):
        answer = mesh.render(request, deadline_s=deadline_s)
    print_note(notes, plan_line(answer.plan))
    print_note(notes, served_line(answer.served))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(answer.frame.data)
    frame = answer.frame
    size = f"{frame.width}x{frame.height}"
    drawn = f"{frame.rendered_width}x{frame.rendered_height}"
    scaled = "" if size == drawn else f", rendered at {drawn}"
    print_note(notes, f"wrote {file}: {size}{scaled}, {frame.gaussians} gaussians")
