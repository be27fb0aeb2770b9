"""How plans, answers, workers and refusals look on a terminal."""

from collections.abc import Mapping, Sequence

import grpc
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headway.errors import HeadwayError, RemoteError
from headway.v1 import common_pb2, errors_pb2, router_pb2

_HEALTH = {
    router_pb2.WORKER_HEALTH_HEALTHY: ("healthy", "green"),
    router_pb2.WORKER_HEALTH_DRAINING: ("draining", "yellow"),
    router_pb2.WORKER_HEALTH_LOST: ("lost", "red"),
    router_pb2.WORKER_HEALTH_EJECTED: ("ejected", "red"),
}

EXIT_BAD_INPUT = 2
EXIT_REFUSED = 3
EXIT_FAILED = 4
EXIT_IDENTITY = 5
EXIT_CODES = "Exit codes: 0 served, 2 bad input, 3 refused or too late, 4 failed or not reachable, 5 not allowed."

_EXITS = {
    errors_pb2.ERROR_REASON_BAD_INPUT: EXIT_BAD_INPUT,
    errors_pb2.ERROR_REASON_NOT_FOUND: EXIT_BAD_INPUT,
    errors_pb2.ERROR_REASON_NO_SUCH_RUNG: EXIT_BAD_INPUT,
    errors_pb2.ERROR_REASON_UNIMPLEMENTED: EXIT_BAD_INPUT,
    errors_pb2.ERROR_REASON_SHED: EXIT_REFUSED,
    errors_pb2.ERROR_REASON_BUDGET_TOO_SMALL: EXIT_REFUSED,
    errors_pb2.ERROR_REASON_EXPIRED: EXIT_REFUSED,
    errors_pb2.ERROR_REASON_TOO_MANY_CALLS: EXIT_REFUSED,
    errors_pb2.ERROR_REASON_DRAINING: EXIT_REFUSED,
    errors_pb2.ERROR_REASON_NO_WORKER: EXIT_REFUSED,
    errors_pb2.ERROR_REASON_UNAUTHENTICATED: EXIT_IDENTITY,
    errors_pb2.ERROR_REASON_PERMISSION_DENIED: EXIT_IDENTITY,
}


def exit_code(error: HeadwayError) -> int:
    """What a command that ended in `error` leaves with; see `EXIT_CODES`."""
    return _EXITS.get(error.reason, EXIT_FAILED)


def is_unreachable(error: HeadwayError) -> bool:
    """Whether nobody answered at all: a broken connection has no trailers."""
    return isinstance(error, RemoteError) and error.status is grpc.StatusCode.UNAVAILABLE and not error.trailers


def error_lines(error: HeadwayError, address: str) -> list[str]:
    """An error for a person: the reason, what it says, and what to do."""
    if is_unreachable(error):
        return [f"cannot reach {address}: {error.message}", _way_out(error.message)]
    lines = [f"{error.reason_name}: {error.message}"]
    violations: Mapping[str, str] = getattr(error, "violations", {})
    lines += [f"  {field}: {problem}" for field, problem in violations.items() if problem not in error.message]
    if (least_ms := error.metadata.get("least_budget_ms")) is not None:
        lines.append(f"  a budget of at least {least_ms} ms would do")
    if error.retry_after_s is not None:
        lines.append(f"  come back in {error.retry_after_s:.2f} s")
    return lines


def _way_out(message: str) -> str:
    """What to change, by what the transport says of why there is no connection."""
    if "CERTIFICATE_VERIFY_FAILED" in message:
        return "its certificate is not from the authority in --ca, has expired, or names another host"
    if "WRONG_VERSION_NUMBER" in message:
        return "it does not speak TLS: leave --ca, --cert and --key out, or call its TLS port"
    if "CERTIFICATE_REQUIRED" in message or "BAD_CERTIFICATE" in message or "UNKNOWN_CA" in message:
        return "it does not take this client's certificate: name one that its authority signed with --cert and --key"
    return "start a mesh with: headway up; a server with TLS wants its authority in --ca"


def reason(value: common_pb2.RungReason) -> str:
    """Why a rung was chosen, in words."""
    return common_pb2.RungReason.Name(value).removeprefix("RUNG_REASON_").lower().replace("_", " ")


def ms(value_ms: float) -> str:
    """A time for people."""
    return f"{value_ms / 1000:.2f} s" if abs(value_ms) >= 1000 else f"{value_ms:.0f} ms"


def plan_line(plan: common_pb2.Plan) -> str:
    """What was promised, in one line."""
    return (
        f"plan: rung {plan.rung.label} ({reason(plan.reason)}), {plan.steps} steps, expected in "
        f"{ms(plan.predicted_p50_ms)} of {ms(plan.budget_ms)}"
    )


def served_line(served: common_pb2.Served) -> str:
    """What was served, in one line."""
    again = f", attempt {served.attempts}" if served.attempts > 1 else ""
    return (
        f"served: rung {served.rung.label} ({reason(served.reason)}), quality {served.quality:.2f}, "
        f"{served.steps_executed} of {served.steps_planned} steps, slack {ms(served.slack_ms)}, "
        f"by {served.worker_id}{again}"
    )


def print_note(console: Console, line: str) -> None:
    """Prints what is beside the answer, in one line however narrow the terminal."""
    console.print(Text(line, style="dim"), soft_wrap=True)


def print_error(console: Console, lines: Sequence[str]) -> None:
    """Prints the lines; the first stands out."""
    for number, line in enumerate(lines):
        console.print(Text(line, style="bold red" if number == 0 else ""), soft_wrap=True)


def print_workers(console: Console, answer: router_pb2.ListWorkersResponse) -> None:
    """The workers as the router sees them, and below them what is wrong with those that are lost."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in ("worker", "kind", "health"):
        table.add_column(name, no_wrap=True)
    for name in ("in flight", "backlog", "report age"):
        table.add_column(name, justify="right")
    table.add_column("assets", overflow="fold")
    table.add_column("engine", overflow="fold")
    for worker in answer.workers:
        health, style = _HEALTH.get(worker.health, ("unknown", ""))
        figures = (str(worker.in_flight), ms(worker.backlog_ms), ms(worker.report_age_ms))
        kind = common_pb2.Kind.Name(worker.kind).removeprefix("KIND_").lower()
        table.add_row(
            worker.worker_id or "?", kind, Text(health, style), *figures, ", ".join(worker.assets), worker.engine
        )
    console.print(table)
    for worker in answer.workers:
        if worker.detail:
            console.print(Text(f"{worker.address}: {worker.detail}"), soft_wrap=True)
