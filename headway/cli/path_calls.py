"""Renders a path into a video file or a folder of frames, and shows how far it is."""

from contextlib import ExitStack
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from headway.cli.show import plan_line, print_note, served_line
from headway.client import Headway
from headway.v1 import errors_pb2, splat_pb2

VIDEO_SUFFIX = ".mp4"


def save_path(
    mesh: Headway, request: splat_pb2.RenderPathRequest, deadline_s: float, output: Path, suffix: str, notes: Console
) -> None:
    """Writes the video to `output`, or the frames into it as a folder, as they come; says which were skipped and why.

    What came before a failure stays: a cut video plays as far as it came.
    """
    skipped, file = list[splat_pb2.PathFrame](), None
    with ExitStack() as opened, _progress(notes) as progress:
        task = progress.add_task("frames", total=None)
        for message in mesh.path(request, deadline_s=deadline_s):
            match message.WhichOneof("part"):
                case "plan":  # what is refused leaves nothing behind
                    file = _output(request, output, opened)
                    progress.update(task, total=message.plan.steps)
                    print_note(progress.console, plan_line(message.plan))
                case "video":
                    assert file is not None
                    file.write(message.video)
                case "frame":
                    progress.advance(task)
                    if not message.frame.HasField("frame"):
                        skipped.append(message.frame)
                    elif file is None:
                        (output / f"frame-{message.frame.index:05d}{suffix}").write_bytes(message.frame.frame.data)
                case "served":
                    print_note(progress.console, served_line(message.served))
        done = int(progress.tasks[0].completed)
    for frame in skipped:
        print_note(notes, f"frame {frame.index} was skipped: {_why(frame)}")
    print_note(notes, f"wrote {output}: {done - len(skipped)} of {done} frames")


def _why(frame: splat_pb2.PathFrame) -> str:
    return errors_pb2.ErrorReason.Name(frame.skipped).removeprefix("ERROR_REASON_").lower().replace("_", " ")


def _output(request: splat_pb2.RenderPathRequest, output: Path, opened: ExitStack) -> IO[bytes] | None:
    """The video's file; None for frames, whose folder is made."""
    if request.video == splat_pb2.VIDEO_FORMAT_UNSPECIFIED:
        output.mkdir(parents=True, exist_ok=True)
        return None
    output.parent.mkdir(parents=True, exist_ok=True)
    return opened.enter_context(output.open("wb"))


def _progress(notes: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal)
