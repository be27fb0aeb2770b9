"""The paced server and the bare hop, as real processes with a real text worker between them."""

import sys

import pytest

from benchmarks.hop.processes import cpu_s, hops, resident_mib
from benchmarks.hop.streams import together
from headway.client import AsyncHeadway

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.timeout(80)
async def test_every_way_to_the_worker_gives_the_same_tokens() -> None:
    async with hops() as running:
        ways = [(running.worker, False), (running.bare, False), (running.router, False), (running.router, True)]
        for address, direct in ways:
            async with AsyncHeadway(address, direct=direct) as client:
                found = await together(client, 3, 5, 0.0)
            assert len(found) == 3
            assert all(3 <= each.messages <= 5 + 2 and 0 < each.first_token_s <= each.took_s for each in found)
        assert cpu_s(running.pids["router"]) > 0
        assert resident_mib(running.pids["router"]) > 1
