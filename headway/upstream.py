"""Calls to other services of the mesh, with credentials whose files may change while both sides run.

A key is shown anew with every call. A certificate is shown when a connection begins, so when its file changes another
connection is made, and takes the place of the one that stands once it is there; calls that are under way end over the
old one.
"""

import asyncio
import logging
import time
from collections.abc import Iterable
from pathlib import Path

import grpc

from headway.channels import Credentials, open_channel, read_credentials
from headway.config import UpstreamConfig
from headway.deadline import Clock
from headway.tls import check_authority, check_pair
from headway.tracing import Metadata
from headway.watched import LOOK_S, Watched

log = logging.getLogger(__name__)

_CONNECT_S = 5.0
_SETTINGS = "upstream_ca, upstream_cert, upstream_key, upstream_api_key"


class UpstreamCredentials:
    """How a service shows itself to those that it calls, as its files are now."""

    def __init__(
        self, *, ca: Path | None = None, cert: Path | None = None, key: Path | None = None, api_key: Path | None = None
    ) -> None:
        """Raises `CertificateError`, and OSError for files that cannot be read. Blocks."""
        paths = [path for path in (ca, cert, key, api_key) if path is not None]
        self._watched = Watched(_SETTINGS, paths, lambda: _read(ca, cert, key, api_key))
        self.tls = ca is not None

    @classmethod
    def from_config(cls, config: UpstreamConfig) -> "UpstreamCredentials":
        """Raises as the constructor."""
        return cls(
            ca=config.upstream_ca, cert=config.upstream_cert, key=config.upstream_key, api_key=config.upstream_api_key
        )

    def now(self) -> Credentials:
        """As the files are; where they cannot be used, as they were."""
        return self._watched.value()

    def metadata(self) -> Metadata:
        """What identifies the caller, for every call."""
        return self.now().metadata()


def _read(ca: Path | None, cert: Path | None, key: Path | None, api_key: Path | None) -> Credentials:
    read = read_credentials(ca=ca, cert=cert, key=key, api_key=api_key)
    if ca is not None:
        check_authority(ca, setting="upstream_ca")
    if cert is not None and key is not None:
        check_pair(cert, key, settings=("upstream_cert", "upstream_key"))
    return read


class Connection:
    """The channel to one server; another one in its place when the certificates change. Belongs to one event loop."""

    def __init__(
        self,
        address: str,
        credentials: UpstreamCredentials,
        *,
        max_message_bytes: int = 16 << 20,
        server_name: str | None = None,
        longest_call_s: float = 3600.0,
        clock: Clock = time.monotonic,
    ) -> None:
        """`server_name` is as for `open_channel`; `longest_call_s`: after that no call with a deadline is under way."""
        self._address, self._credentials, self._server_name = address, credentials, server_name
        self._max_message_bytes, self._longest_call_s, self._clock = max_message_bytes, longest_call_s, clock
        self._shown = credentials.now()
        self.channel = self._open(self._shown)
        """Ask for it at every call. Streams that never end are to be opened anew when it is another one."""
        self.replaced = asyncio.Event()
        """Set, and replaced by a new one, when `channel` is another one."""
        self._old: list[tuple[grpc.aio.Channel, float]] = []
        self._refused: Credentials | None = None

    async def follow(self) -> None:
        """Keeps the channel up to date until cancelled; at once done where nothing of it can change."""
        while self._credentials.tls:
            await asyncio.sleep(LOOK_S)
            try:
                await self._look()
            except Exception:  # a fault with one server must not take the others away
                log.exception("%s: the connection to %s stays as it is", _SETTINGS, self._address)

    async def _look(self) -> None:
        await self._close(channel for channel, until_s in self._old if until_s <= self._clock())
        now = self._credentials.now()
        if not _same_certificates(now, self._shown):
            await self._replace(now)

    async def close(self, grace_s: float | None = None) -> None:
        """Closes the channel; calls under way may go on for `grace_s`, those over older ones are ended."""
        await self._close([channel for channel, _ in self._old])
        await self.channel.close(grace_s)

    async def _replace(self, now: Credentials) -> None:
        """Takes a connection with what is `now` shown, unless it cannot be had and the one that stands can."""
        fresh = self._open(now)
        try:
            await asyncio.wait_for(fresh.channel_ready(), _CONNECT_S)
        except TimeoutError:
            if self.channel.get_state() is grpc.ChannelConnectivity.READY:
                await fresh.close(None)
                self._complain(now)
                return
        except BaseException:
            await fresh.close(None)
            raise
        self._old.append((self.channel, self._clock() + self._longest_call_s))
        self.channel, self._shown = fresh, now
        replaced, self.replaced = self.replaced, asyncio.Event()
        replaced.set()
        log.info("%s is called with new certificates", self._address)

    def _complain(self, now: Credentials) -> None:
        if self._refused is not now:
            log.error("%s: no connection with what was read: the one that stands goes on: %s", _SETTINGS, self._address)
        self._refused = now

    def _open(self, credentials: Credentials) -> grpc.aio.Channel:
        return open_channel(
            self._address, credentials, max_message_bytes=self._max_message_bytes, server_name=self._server_name
        )

    async def _close(self, channels: Iterable[grpc.aio.Channel]) -> None:
        for closing in list(channels):
            self._old = [(channel, until_s) for channel, until_s in self._old if channel is not closing]
            await closing.close(None)


def _same_certificates(one: Credentials, other: Credentials) -> bool:
    return (one.ca, one.cert, one.key) == (other.ca, other.cert, other.key)
