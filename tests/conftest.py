"""What holds for every test."""

from pathlib import Path

import pytest

_ROOT = Path(__file__).parent
_OUTSIDE_TIME = ("kernels",)
"""Folders in which nothing waits for a clock: what fails there failed for a reason."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Real servers keep real deadlines here, on a host that others may use: one bad second is no proof, three are.

    Each rerun is counted in the last line of a run.
    """
    for item in items:
        if item.path.relative_to(_ROOT).parts[0] not in _OUTSIDE_TIME:
            item.add_marker(pytest.mark.flaky(reruns=2))
