import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from splat_rig import CARD, RUNG_S, worker


@pytest.fixture(scope="session")
def calibrations(tmp_path_factory) -> Path:
    """Kept for the session, so that one start measures this host and the others find it measured."""
    return tmp_path_factory.mktemp("splat-calibrations")


@pytest.fixture
async def channel(calibrations) -> AsyncIterator[grpc.aio.Channel]:
    async with worker(cache_dir=calibrations) as connected:
        yield connected


@pytest.fixture
async def slow_channel(calibrations, tmp_path) -> AsyncIterator[grpc.aio.Channel]:
    """A worker that was calibrated on a far slower host: RUNG_S less for each rung down, so that seconds bind."""
    async with worker(cache_dir=calibrations):
        pass
    assert CARD.ladder is not None
    labels = [rung.label for rung in CARD.ladder.rungs]
    mean_ms = {f"render {label}": 1000 * RUNG_S * (len(labels) - rank) for rank, label in enumerate(labels)}
    for path in calibrations.glob("calibration-*.json"):
        file = json.loads(path.read_text())
        for name, points in file["curves"].items():
            # The small size stays as it is: by it a worker knows how quick this host is now.
            for point in points[1:] if name in mean_ms else points:
                point |= {"mean_ms": mean_ms.get(name, 1.0), "var_ms2": 0.0}
        (tmp_path / path.name).write_text(json.dumps(file))
    async with worker(cache_dir=tmp_path) as connected:
        yield connected
