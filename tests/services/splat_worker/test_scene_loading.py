"""How patient a load is with the device, by whether the worker serves already."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import scene_files

from headway.device import DeviceClient, Lease
from services.splat_worker.folder import scan
from services.splat_worker.hardware import renderers
from services.splat_worker.loading import Loader
from services.splat_worker.scene import SceneLimits

UNHURRIED_S = 1.5
"""Above this nobody waits soon, and below it nobody lets all others go first."""


class Noted(DeviceClient):
    """Notes how long from now each step is due that asks for the device."""

    def __init__(self) -> None:
        super().__init__(None)
        self.due_in_s: list[float] = []

    @contextmanager
    def lease(self, *, due_s: float, label: str = "", keep: bool = False) -> Iterator[Lease]:
        self.due_in_s.append(due_s - time.monotonic())
        with super().lease(due_s=due_s, label=label, keep=keep) as lease:
            yield lease


def test_only_the_probe_of_a_worker_that_starts_again_is_in_a_hurry(tmp_path: Path, calibrations: Path) -> None:
    (tmp_path / "first.ply").write_bytes(scene_files.small(0))
    file = scan(tmp_path)["first"]

    def first_due_in_s(*, serving: bool) -> float:
        device = Noted()
        loader = Loader(tmp_path, SceneLimits(), renderers("cpu", 1), device, calibrations)
        loader.prepare(file, loader.read(file, False), {}, lambda stage, share: None, serving=serving)
        return device.due_in_s[0]

    first_due_in_s(serving=False)  # measures, unless another test has
    assert first_due_in_s(serving=False) < UNHURRIED_S < first_due_in_s(serving=True)
