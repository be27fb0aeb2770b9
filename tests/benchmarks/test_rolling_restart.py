"""A rolling restart of every process under load: what a release does to a mesh in use."""

from dataclasses import replace

import pytest

from benchmarks.chaos import RESTART, measure


@pytest.mark.slow
async def test_no_request_fails_while_every_process_restarts() -> None:
    figures = await measure(replace(RESTART, load=0.3), seed=1)
    assert figures["admitted"] > 300
    assert figures["wrong"] == 0
    assert figures["failed"] == {}
