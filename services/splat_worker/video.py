"""Frames as a video: H.264 in fragmented MP4, so that it plays while it is made and in bounded memory."""

import io
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace

from headway.errors import BadInput
from services.splat_worker.encode import DEFAULT_QUALITY, Pixels

DEFAULT_FRAMES_PER_SECOND = 30.0
_BT709 = 1
_MOST_FRAMES_PER_SECOND = 1000


class Film:
    """A video that is made frame by frame; one thread at a time. The same frames give the same bytes.

    `add` and `close` return the bytes of the file that are ready; all of them in order are the file. A fragment ends
    about every second. x264 runs on one thread without look-ahead: a frame's cost is its own, and counted.
    """

    def __init__(
        self, width: int, height: int, frames_per_second: float | None = None, quality: int = DEFAULT_QUALITY
    ) -> None:
        """Sides must be even. Raises BadInput for those and for the rate."""
        rate = frames_per_second or DEFAULT_FRAMES_PER_SECOND
        if width % 2 or height % 2:
            raise BadInput("options.width", f"{width} x {height} px; both must be even for a video")
        if not 0 < rate <= _MOST_FRAMES_PER_SECOND:
            raise BadInput("frames_per_second", f"{rate}; must be above 0 and at most {_MOST_FRAMES_PER_SECOND}")
        self._file, self._last = _Written(), -1
        movflags = "frag_keyframe+empty_moov+default_base_moof"
        self._container = av.open(self._file, "w", format="mp4", options={"movflags": movflags, "fflags": "+bitexact"})
        self._stream = _stream(self._container, width, height, rate, quality)

    def add(self, index: int, pixels: Pixels) -> bytes:
        """Takes the frame [height, width, 3] that is shown from `index` / rate on; indices rise, and may leave out."""
        if index <= self._last:
            raise ValueError(f"frame {index} comes after frame {self._last}")
        self._last = index
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
        frame.pts = index
        self._container.mux(self._stream.encode(frame))
        return self._file.taken()

    def close(self) -> bytes:
        """The rest of the file; nothing can be added then."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._file.taken()


class _Written(io.RawIOBase):
    """What the muxer writes, until it is taken; it cannot seek, so the muxer never goes back."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        part = bytes(memoryview(data))  # type: ignore[arg-type]
        self._parts.append(part)
        return len(part)

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


def _stream(container: OutputContainer, width: int, height: int, rate: float, quality: int) -> av.VideoStream:
    options = {"preset": "ultrafast", "tune": "zerolatency", "crf": f"{51 - 0.37 * quality:.0f}"}
    stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001), options=options)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    context = stream.codec_context
    context.time_base = 1 / Fraction(rate).limit_denominator(1001)
    context.thread_count, context.gop_size = 1, max(1, round(rate))
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = ColorRange.MPEG
    return stream


def pan(picture: Pixels) -> Callable[[], bytes]:
    """Adds one more frame of a film that pans over `picture` at each call: for measuring what a frame costs."""
    film, count = Film(picture.shape[1], picture.shape[0]), 0

    def step() -> bytes:
        nonlocal count
        count += 1
        return film.add(count, np.roll(picture, 3 * count, axis=1))

    return step
