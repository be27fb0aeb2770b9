"""What the faults cost the calls that they met."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.experiment.intervals import clopper_pearson
from benchmarks.faults.requests import IMAGES
from benchmarks.faults.schedule import Event
from benchmarks.faults.traffic import Call
from benchmarks.figures import quantile

COLUMNS = (
    "fault", "to", "times", "whole again, s (median)", "most", "in flight", "of these right", "asked another",
    "refused", "failed", "sent meanwhile", "right", "refused", "failed",
)  # fmt: skip


def figures_of(calls: Sequence[Call], events: Sequence[Event]) -> dict[str, Any]:
    """Counts in all, by kind of request, and by kind of fault."""
    return {
        **_counts(calls),
        "by_kind": {kind: _counts([call for call in calls if call.asked.kind == kind]) for kind in _kinds(calls)},
        "by_fault": _by_fault(calls, events),
        "events": [asdict(event) for event in events],
    }


def _kinds(calls: Sequence[Call]) -> list[str]:
    return sorted({call.asked.kind for call in calls})


def _counts(calls: Sequence[Call]) -> dict[str, Any]:
    admitted = [call for call in calls if call.admitted]
    failed = [call for call in admitted if not call.right]
    images = [call for call in calls if call.right and call.asked.kind == "image"]
    return {
        "sent": len(calls),
        "admitted": len(admitted),
        "wrong": sum(call.wrong is not None for call in calls),
        "failed": dict(Counter(call.error or "WRONG" for call in failed)),
        "refused": dict(Counter(call.error for call in calls if not call.admitted)),
        "availability_of_admitted": 1 - len(failed) / len(admitted) if admitted else None,
        "failed_share_95": clopper_pearson(len(failed), len(admitted)),
        "asked_several_workers": sum(call.attempts > 1 for call in calls),
        "latency_s": {
            share: quantile([call.ended_s - call.sent_s for call in admitted], share) for share in (0.5, 0.99)
        },
        "images_bit_equal": sum(call.same_images for call in images) / (len(images) * IMAGES) if images else None,
    }


def _by_fault(calls: Sequence[Call], events: Sequence[Event]) -> list[dict[str, Any]]:
    rows = []
    for kind, part in sorted({(event.fault.kind, event.fault.group) for event in events}):
        mine = [event for event in events if (event.fault.kind, event.fault.group) == (kind, part)]
        met = [call for call in calls if any(call.sent_s < event.began_s < call.ended_s for event in mine)]
        during = [call for call in calls if any(event.began_s <= call.sent_s < event.whole_s for event in mine)]
        whole_again_s = [event.whole_s - event.began_s for event in mine]
        rows.append(
            {
                "fault": kind,
                "part": part,
                "times": len(mine),
                "whole_again_s": quantile(whole_again_s, 0.5),
                "whole_again_most_s": max(whole_again_s),
                "in_flight": _outcomes(met),
                "sent_meanwhile": _outcomes(during),
            }
        )
    return rows


def _outcomes(calls: Sequence[Call]) -> dict[str, int]:
    return {
        "calls": len(calls),
        "right": sum(call.right for call in calls),
        "asked_several_workers": sum(call.attempts > 1 for call in calls),
        "refused": sum(not call.admitted for call in calls),
        "failed": sum(call.admitted and not call.right for call in calls),
    }


def show(figures: dict[str, Any], console: Console) -> None:
    """Prints the table and what it comes to."""
    table = Table(title="what each kind of fault met")
    for column in COLUMNS:
        table.add_column(column)
    for row in figures["by_fault"]:
        met, during = row["in_flight"], row["sent_meanwhile"]
        counts = [met[name] for name in ("calls", "right", "asked_several_workers", "refused", "failed")]
        counts += [during[name] for name in ("calls", "right", "refused", "failed")]
        whole_s = [f"{row[name]:.1f}" for name in ("whole_again_s", "whole_again_most_s")]
        table.add_row(row["fault"], row["part"], str(row["times"]), *whole_s, *map(str, counts))
    console.print(table)
    for name, counts in {"all": figures, **figures["by_kind"]}.items():
        share = counts["availability_of_admitted"]
        console.print(
            f"{name}: {counts['sent']} sent, {counts['admitted']} admitted, of which "
            f"{'-' if share is None else f'{share:.4%}'} were answered right; failed {counts['failed'] or 'none'}, "
            f"wrong {counts['wrong']}, refused {counts['refused'] or 'none'}"
        )
