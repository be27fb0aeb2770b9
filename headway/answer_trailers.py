"""What a finished answer says in its trailing metadata: for proxies, whose access logs cannot read messages.

`headway-rung`, `headway-reason`, `headway-quality`, `headway-slack-ms` and `headway-worker` are those of `Served`. They
are for logs alone: a client reads the message. Refusals have trailers of their own, see `headway.errors`.
"""

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import partial
from typing import Any

from headway.v1 import common_pb2

Trailers = tuple[tuple[str, str | bytes], ...]

_add_to_call: ContextVar[Callable[[Trailers], None] | None] = ContextVar("add_to_call", default=None)


def follow_call(context: Any) -> None:
    """From now on `tell` speaks for the call with this gRPC context; set by the interceptor."""

    _add_to_call.set(partial(add, context))


def add(context: Any, trailers: Trailers) -> None:
    """Adds to what goes out at the end of the call with this gRPC context, in place of what has the same names."""
    told = {name for name, _ in trailers}
    context.set_trailing_metadata((*_others(context.trailing_metadata(), told), *trailers))


def tell(served: common_pb2.Served) -> None:
    """Adds what was served to the trailers of the call that is being handled, in place of what was told before."""
    add_to_this = _add_to_call.get()
    if add_to_this is not None:
        add_to_this(trailers_of(served))


def trailers_of(served: common_pb2.Served) -> Trailers:
    """As metadata: printable ASCII, figures as plain numbers."""
    return (
        ("headway-rung", _printable(served.rung.label)),
        ("headway-reason", common_pb2.RungReason.Name(served.reason).removeprefix("RUNG_REASON_").lower()),
        ("headway-quality", f"{served.quality:.3f}"),
        ("headway-slack-ms", f"{served.slack_ms:.1f}"),
        ("headway-worker", _printable(served.worker_id)),
    )


def _others(trailers: Iterable[tuple[str, str | bytes]] | None, told: set[str]) -> Trailers:
    return tuple((name, value) for name, value in trailers or () if name not in told)


def _printable(text: str) -> str:
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text)
