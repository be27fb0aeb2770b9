"""Films: what goes in comes out, at its time, the same each time."""

import io

import av
import numpy as np
import pytest

from headway.errors import BadInput
from services.splat_worker.video import Film, pan

PICTURE = np.kron(np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5, np.ones((16, 16, 1), dtype=np.uint8))


def made(indices: list[int], **settings: float) -> list[bytes]:
    film = Film(64, 64, **settings)
    return [*(film.add(index, np.roll(PICTURE, index, axis=0)) for index in indices), film.close()]


def played(file: bytes) -> list[av.VideoFrame]:
    with av.open(io.BytesIO(file)) as opened:
        return list(opened.decode(video=0))


def test_every_frame_is_shown_at_its_time_and_a_gap_shows_the_one_before() -> None:
    frames = played(b"".join(made([0, 1, 2, 5, 6], frames_per_second=10.0)))
    assert [round(float(frame.time), 6) for frame in frames] == [0, 0.1, 0.2, 0.5, 0.6]


def test_colours_come_back() -> None:
    (frame,) = played(b"".join(made([0], frames_per_second=10.0, quality=100)))
    error = np.mean((frame.to_ndarray(format="rgb24").astype(float) - PICTURE) ** 2)
    assert 10 * np.log10(255**2 / error) > 30


def test_the_same_frames_give_the_same_bytes_and_a_cut_file_plays_as_far_as_it_came() -> None:
    parts = made(list(range(35)), frames_per_second=10.0)
    assert parts == made(list(range(35)), frames_per_second=10.0)
    fragments = [part for part in parts if part]
    assert len(fragments) == 5  # the header, three of a second, the rest
    assert 10 <= len(played(b"".join(fragments[:3]))) <= 20


def test_quality_decides_the_size() -> None:
    assert len(b"".join(made([0, 1], quality=95))) > len(b"".join(made([0, 1], quality=10)))


def test_bad_sides_rates_and_orders_are_refused() -> None:
    for sides in ((63, 64), (64, 63)):
        with pytest.raises(BadInput):
            Film(*sides)
    with pytest.raises(BadInput):
        Film(64, 64, 1001.0)
    film = Film(64, 64)
    film.add(3, PICTURE)
    with pytest.raises(ValueError, match="after"):
        film.add(3, PICTURE)


def test_a_pan_goes_on() -> None:
    step = pan(PICTURE)
    assert sum(len(step()) for _ in range(70)) > 0
