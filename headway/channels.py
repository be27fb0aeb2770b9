"""Channels to other services, and what every call over them carries: the rest of the budget and the trace."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from headway.deadline import PROMISED, Budget
from headway.tracing import Metadata, inject

API_KEY_HEADER = "authorization"


@dataclass(frozen=True, slots=True)
class Credentials:
    """How to reach a server: plain, TLS, or mutual TLS; and the API key to show."""

    ca: bytes | None = None
    """Certificate authority (PEM) that signed the server's certificate; turns TLS on."""
    cert: bytes | None = None
    key: bytes | None = None
    api_key: str | None = None

    @property
    def tls(self) -> bool:
        return self.ca is not None

    def metadata(self) -> Metadata:
        """What identifies the caller, for every call."""
        return ((API_KEY_HEADER, f"Bearer {self.api_key}"),) if self.api_key else ()


OPEN = Credentials()


def read_credentials(
    *, ca: Path | None = None, cert: Path | None = None, key: Path | None = None, api_key: Path | None = None
) -> Credentials:
    """Reads the files that settings name. Raises OSError when one cannot be read."""
    shown = None if api_key is None else api_key.read_text().strip()
    return Credentials(ca=_read(ca), cert=_read(cert), key=_read(key), api_key=shown)


def _read(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()


def channel_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Options that client and server sides share."""
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def _client_options(max_message_bytes: int) -> list[tuple[str, Any]]:
    # A retry inside the library would spend the budget unseen, and a lost worker must be noticed at once.
    own = [
        ("grpc.enable_retries", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
    ]
    return [*channel_options(max_message_bytes), *own]


def open_channel(
    address: str, credentials: Credentials = OPEN, *, max_message_bytes: int = 16 << 20, server_name: str | None = None
) -> grpc.aio.Channel:
    """A channel for asyncio; connects when first used.

    `server_name`: whose certificate the server shows, where `address` is one that a name was resolved to.
    """
    options = _client_options(max_message_bytes)
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    if credentials.tls:
        return grpc.aio.secure_channel(address, _ssl(credentials), options=options)
    return grpc.aio.insecure_channel(address, options=options)


def open_sync_channel(
    address: str, credentials: Credentials = OPEN, *, max_message_bytes: int = 16 << 20
) -> grpc.Channel:
    """A channel for blocking calls; connects when first used."""
    options = _client_options(max_message_bytes)
    if credentials.tls:
        return grpc.secure_channel(address, _ssl(credentials), options=options)
    return grpc.insecure_channel(address, options=options)


def _ssl(credentials: Credentials) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(credentials.ca, credentials.key, credentials.cert)


@dataclass(frozen=True, slots=True)
class CallOptions:
    """What a call made on behalf of another one carries."""

    timeout_s: float
    metadata: Metadata

    def kwargs(self) -> dict[str, Any]:
        """As a stub's method takes it."""
        return {"timeout": self.timeout_s, "metadata": self.metadata}


def onward(budget: Budget, now_s: float, metadata: Sequence[tuple[str, str | bytes]] = ()) -> CallOptions:
    """The rest of `budget`, its mark and the current trace, for a call to the next hop. Raises `Expired`."""
    marks = (PROMISED,) if budget.promised else ()
    return CallOptions(budget.onward_timeout_s(now_s), inject((*metadata, *marks)))
