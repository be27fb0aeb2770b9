from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import status_pb2

from headway import errors
from headway.v1 import errors_pb2


class Call:
    """A finished call, as gRPC gives it to a client."""

    def __init__(self, code: grpc.StatusCode, details: str, trailers: tuple[tuple[str, Any], ...]) -> None:
        self._code, self._details, self._trailers = code, details, trailers

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, Any], ...]:
        return self._trailers


def crossed(error: errors.HeadwayError) -> errors.RemoteError:
    return errors.from_rpc_error(Call(error.status, error.message, errors.to_trailers(error)))


def every_error() -> list[errors.HeadwayError]:
    plain = [
        errors.NoSuchRung, errors.Expired, errors.Shed, errors.TooManyCalls, errors.NoWorker, errors.Draining,
        errors.WorkerLost, errors.StoreUnavailable, errors.Unauthenticated, errors.PermissionDenied,
        errors.Unimplemented, errors.Cancelled, errors.Failed,
    ]  # fmt: skip
    own = [
        errors.BadInput({"a.b": "is bad"}),
        errors.NotFound("model", "x", ["digits"]),
        errors.BudgetTooSmall(budget_ms=5, least_budget_ms=20.4),
    ]
    return [*(kind("why", retry_after_s=0.5) for kind in plain), *own]


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_every_error_crosses_the_wire_unchanged(error: errors.HeadwayError) -> None:
    received = crossed(error)
    assert (received.status, received.reason, received.message) == (error.status, error.reason, error.message)
    assert received.metadata == error.metadata
    assert received.retry_after_s == error.retry_after_s
    assert errors.to_trailers(received) == errors.to_trailers(error), "the next hop passes it on as it is"


def test_every_reason_of_the_contract_has_an_error() -> None:
    made = {error.reason for error in every_error()}
    assert made == set(errors_pb2.ErrorReason.values()) - {errors_pb2.ERROR_REASON_UNSPECIFIED}


def pushback(error: errors.HeadwayError) -> str | bytes | None:
    return dict(errors.to_trailers(error)).get(errors.PUSHBACK_KEY)


def test_pushback_says_when_or_never() -> None:
    assert pushback(errors.Shed("full", retry_after_s=0.2506)) == "251"
    assert pushback(errors.BudgetTooSmall(budget_ms=1, least_budget_ms=2)) == "-1"
    assert pushback(errors.BadInput("a", "b")) is None


def test_a_budget_that_is_too_small_says_what_would_do() -> None:
    received = crossed(errors.BudgetTooSmall(budget_ms=5, least_budget_ms=20.4))
    assert received.metadata["least_budget_ms"] == "21"


def test_violations_cross_the_wire() -> None:
    assert crossed(errors.BadInput({"x": "is 1", "y": "is 2"})).violations == {"x": "is 1", "y": "is 2"}


@pytest.mark.parametrize(
    "trailers",
    [
        (),
        ((errors.DETAILS_KEY, status_pb2.Status(code=3, message="other").SerializeToString()),),
        (
            (
                errors.DETAILS_KEY,
                status_pb2.Status(code=14, message="gone", details=[any_pb2.Any(type_url="x/y")]).SerializeToString(),
            ),
        ),
    ],
)
def test_a_foreign_error_keeps_its_status(trailers: tuple[tuple[str, Any], ...]) -> None:
    received = errors.from_rpc_error(Call(grpc.StatusCode.UNAVAILABLE, "gone", trailers))
    assert (received.status, received.message) == (grpc.StatusCode.UNAVAILABLE, "gone")
    assert received.reason == errors_pb2.ERROR_REASON_WORKER_LOST


def test_garbage_in_the_details_is_not_trusted() -> None:
    received = errors.from_rpc_error(Call(grpc.StatusCode.INTERNAL, "bad", ((errors.DETAILS_KEY, b"\xff\xff"),)))
    assert received.reason == errors_pb2.ERROR_REASON_FAILED
