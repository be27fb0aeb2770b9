"""Which addresses a configured one stands for."""

import asyncio
import ipaddress
import socket


def is_name(address: str) -> bool:
    """Whether HOST:PORT has a name that must be looked up; unix paths and IP addresses stand for themselves."""
    if address.startswith("unix:"):
        return False
    try:
        ipaddress.ip_address(address.rpartition(":")[0].strip("[]"))
    except ValueError:
        return True
    return False


async def resolve(address: str) -> frozenset[str]:
    """The addresses, as IP:PORT, that a name stands for now. IPv6 counts only where there is no IPv4: a worker that
    listens on both must not count twice. Raises OSError when the name cannot be resolved.
    """
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    by_family = {
        family: {row[4][0] for row in found if row[0] == family} for family in (socket.AF_INET, socket.AF_INET6)
    }
    if by_family[socket.AF_INET]:
        return frozenset(f"{ip}:{port}" for ip in by_family[socket.AF_INET])
    return frozenset(f"[{ip}]:{port}" for ip in by_family[socket.AF_INET6])
