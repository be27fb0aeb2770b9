"""The one error tree, the one table to gRPC statuses, and how an error crosses the wire.

HeadwayError
├── BadInput            INVALID_ARGUMENT     fields with what is wrong and the limit
├── NotFound            NOT_FOUND            no such model or scene
├── NoSuchRung          FAILED_PRECONDITION  the floor or exact rung is not on the ladder
├── Refused             the work is not begun
│   ├── Expired         DEADLINE_EXCEEDED    the deadline passed before the work began
│   ├── BudgetTooSmall  DEADLINE_EXCEEDED    even an idle worker needs longer
│   ├── Shed            RESOURCE_EXHAUSTED   it would not be done in time behind what is admitted
│   ├── TooManyCalls    RESOURCE_EXHAUSTED   the limit on calls in flight is reached
│   ├── NoWorker        UNAVAILABLE          no healthy worker of the kind is known
│   └── Draining        UNAVAILABLE          the server takes nothing new
├── WorkerLost          UNAVAILABLE          the worker died while it worked
├── StoreUnavailable    UNAVAILABLE          the store behind the service cannot be reached
├── Unauthenticated     UNAUTHENTICATED      no key, or a wrong one
├── PermissionDenied    PERMISSION_DENIED    a known tenant that may not do this
├── Unimplemented       UNIMPLEMENTED        part of the contract, not served by this version
├── Cancelled           CANCELLED            the caller went away
└── Failed              INTERNAL             a fault of ours
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from headway.v1 import errors_pb2

DOMAIN = "headway.v1"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
DETAILS_KEY = "grpc-status-details-bin"
_REASON_PREFIX = "ERROR_REASON_"


class HeadwayError(Exception):
    """A failure that has a reason of its own in the contract.

    `metadata` goes to the caller as `ErrorInfo.metadata`. `retry_after_s` says when to come back; None gives no advice.
    """

    reason: errors_pb2.ErrorReason
    status: grpc.StatusCode

    def __init__(
        self, message: str, *, metadata: Mapping[str, str] | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s

    @property
    def reason_name(self) -> str:
        """The reason as `ErrorInfo.reason` and metrics carry it, e.g. "SHED"."""
        return errors_pb2.ErrorReason.Name(self.reason).removeprefix(_REASON_PREFIX)


class BadInput(HeadwayError):
    """One or more request fields are bad. `violations` maps each field to what is wrong with it and the limit."""

    reason, status = errors_pb2.ERROR_REASON_BAD_INPUT, grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, violations: Mapping[str, str] | str, why: str | None = None) -> None:
        self.violations = {violations: why or "is bad"} if isinstance(violations, str) else dict(violations)
        super().__init__("; ".join(f"{field}: {problem}" for field, problem in self.violations.items()))


class NotFound(HeadwayError):
    """No such model, scene or worker."""

    reason, status = errors_pb2.ERROR_REASON_NOT_FOUND, grpc.StatusCode.NOT_FOUND

    def __init__(self, what: str, name: str, known: Sequence[str]) -> None:
        shown = ", ".join(known) or "none"
        message = f"{what}: no {what} is called {name[:64]!r}; known: {shown}"
        super().__init__(message, metadata={"known": ",".join(known)})


class NoSuchRung(HeadwayError):
    """The caller's floor or exact rung does not exist on this ladder."""

    reason, status = errors_pb2.ERROR_REASON_NO_SUCH_RUNG, grpc.StatusCode.FAILED_PRECONDITION


class Refused(HeadwayError):
    """The work is not begun."""


class Expired(Refused):
    """The deadline passed before the work began."""

    reason, status = errors_pb2.ERROR_REASON_EXPIRED, grpc.StatusCode.DEADLINE_EXCEEDED


class BudgetTooSmall(Refused):
    """Even an idle worker needs longer."""

    reason, status = errors_pb2.ERROR_REASON_BUDGET_TOO_SMALL, grpc.StatusCode.DEADLINE_EXCEEDED

    def __init__(self, *, budget_ms: float, least_budget_ms: float) -> None:
        super().__init__(
            f"the budget of {budget_ms:.1f} ms is too small; at the lowest allowed rung an idle worker needs "
            f"{least_budget_ms:.1f} ms",
            metadata={"budget_ms": f"{budget_ms:.1f}", "least_budget_ms": f"{math.ceil(least_budget_ms)}"},
        )
        self.least_budget_ms = least_budget_ms


class Shed(Refused):
    """The work would not be done in time behind what is admitted already."""

    reason, status = errors_pb2.ERROR_REASON_SHED, grpc.StatusCode.RESOURCE_EXHAUSTED


class TooManyCalls(Refused):
    """The limit on calls in flight, or the tenant's quota, is reached."""

    reason, status = errors_pb2.ERROR_REASON_TOO_MANY_CALLS, grpc.StatusCode.RESOURCE_EXHAUSTED


class NoWorker(Refused):
    """No healthy worker of this kind is known."""

    reason, status = errors_pb2.ERROR_REASON_NO_WORKER, grpc.StatusCode.UNAVAILABLE


class Draining(Refused):
    """The server takes nothing new."""

    reason, status = errors_pb2.ERROR_REASON_DRAINING, grpc.StatusCode.UNAVAILABLE


class WorkerLost(HeadwayError):
    """The worker died while it worked; what was streamed so far stands."""

    reason, status = errors_pb2.ERROR_REASON_WORKER_LOST, grpc.StatusCode.UNAVAILABLE


class StoreUnavailable(HeadwayError):
    """The store behind the service cannot be reached."""

    reason, status = errors_pb2.ERROR_REASON_STORE_UNAVAILABLE, grpc.StatusCode.UNAVAILABLE


class Unauthenticated(HeadwayError):
    """No API key or client certificate, or one that is not known."""

    reason, status = errors_pb2.ERROR_REASON_UNAUTHENTICATED, grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(HeadwayError):
    """The tenant is known, but may not do this."""

    reason, status = errors_pb2.ERROR_REASON_PERMISSION_DENIED, grpc.StatusCode.PERMISSION_DENIED


class Unimplemented(HeadwayError):
    """Part of the contract, but not served by this version."""

    reason, status = errors_pb2.ERROR_REASON_UNIMPLEMENTED, grpc.StatusCode.UNIMPLEMENTED


class Cancelled(HeadwayError):
    """The caller went away."""

    reason, status = errors_pb2.ERROR_REASON_CANCELLED, grpc.StatusCode.CANCELLED


class Failed(HeadwayError):
    """A fault of ours."""

    reason, status = errors_pb2.ERROR_REASON_FAILED, grpc.StatusCode.INTERNAL


class RemoteError(HeadwayError):
    """An error that another hop or server reported; carries its status, reason and details unchanged."""

    def __init__(
        self,
        status: grpc.StatusCode,
        message: str,
        reason: errors_pb2.ErrorReason,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
        violations: Mapping[str, str] | None = None,
        trailers: tuple[tuple[str, str | bytes], ...] = (),
    ) -> None:
        super().__init__(message, metadata=metadata, retry_after_s=retry_after_s)
        self.status, self.reason = status, reason
        self.violations = dict(violations or {})
        self.trailers = trailers


def to_status(error: HeadwayError) -> status_pb2.Status:
    """The error as `google.rpc.Status` with its details."""
    details = [_pack(error_details_pb2.ErrorInfo(reason=error.reason_name, domain=DOMAIN, metadata=error.metadata))]
    if isinstance(error, BadInput):
        bad = error_details_pb2.BadRequest()
        for field, problem in error.violations.items():
            bad.field_violations.add(field=field, description=problem)
        details.append(_pack(bad))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(code=error.status.value[0], message=error.message, details=details)


def to_trailers(error: HeadwayError) -> tuple[tuple[str, str | bytes], ...]:
    """The trailing metadata that goes with the error: packed details and, for refusals, the retry pushback."""
    if isinstance(error, RemoteError) and error.trailers:
        return tuple(item for item in error.trailers if item[0] in (DETAILS_KEY, PUSHBACK_KEY))
    trailers: tuple[tuple[str, str | bytes], ...] = ((DETAILS_KEY, to_status(error).SerializeToString()),)
    if isinstance(error, Refused):
        trailers += ((PUSHBACK_KEY, _pushback(error)),)
    return trailers


def from_rpc_error(error: Any) -> RemoteError:
    """Reads back what `to_trailers` wrote, from an `RpcError` or a finished call.

    An error of another server keeps its status and message, with the nearest reason.
    """
    code: grpc.StatusCode = error.code()
    message: str = error.details() or code.name
    trailers = tuple((str(key), value) for key, value in _pairs(error))
    try:
        found = _read_details(error)
    except (ValueError, DecodeError):  # a foreign hop rewrote the status, or sent garbage
        found = _Details()
    return RemoteError(
        code,
        message,
        _reason_of(found.info, code),
        metadata=dict(found.info.metadata),
        retry_after_s=found.retry_after_s,
        violations=found.violations,
        trailers=trailers,
    )


@dataclass
class _Details:
    info: error_details_pb2.ErrorInfo = field(default_factory=error_details_pb2.ErrorInfo)
    retry_after_s: float | None = None
    violations: dict[str, str] = field(default_factory=dict)


def _read_details(error: Any) -> _Details:
    status = rpc_status.from_call(error)
    found = _Details()
    for detail in () if status is None else status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(found.info)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            found.retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            found.violations = {item.field: item.description for item in bad.field_violations}
    return found


def _pairs(error: Any) -> Iterable[tuple[str, str | bytes]]:
    return error.trailing_metadata() or ()


def _reason_of(info: error_details_pb2.ErrorInfo, code: grpc.StatusCode) -> errors_pb2.ErrorReason:
    name = _REASON_PREFIX + info.reason
    if info.domain == DOMAIN and name in errors_pb2.ErrorReason.keys():  # noqa: SIM118  (an enum wrapper, not a dict)
        return cast(errors_pb2.ErrorReason, errors_pb2.ErrorReason.Value(name))
    return {
        grpc.StatusCode.DEADLINE_EXCEEDED: errors_pb2.ERROR_REASON_EXPIRED,
        grpc.StatusCode.RESOURCE_EXHAUSTED: errors_pb2.ERROR_REASON_TOO_MANY_CALLS,
        grpc.StatusCode.UNAVAILABLE: errors_pb2.ERROR_REASON_WORKER_LOST,
        grpc.StatusCode.CANCELLED: errors_pb2.ERROR_REASON_CANCELLED,
        grpc.StatusCode.UNIMPLEMENTED: errors_pb2.ERROR_REASON_UNIMPLEMENTED,
        grpc.StatusCode.INVALID_ARGUMENT: errors_pb2.ERROR_REASON_BAD_INPUT,
        grpc.StatusCode.UNAUTHENTICATED: errors_pb2.ERROR_REASON_UNAUTHENTICATED,
    }.get(code, errors_pb2.ERROR_REASON_FAILED)


def _pushback(error: Refused) -> str:
    """Milliseconds to wait before a retry; negative means never with this deadline."""
    if error.retry_after_s is None:
        return "-1"
    return str(max(1, round(error.retry_after_s * 1000)))


def _pack(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
