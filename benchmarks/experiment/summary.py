"""The figures of one cell: one policy under one load."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.experiment.intervals import clopper_pearson, wilson
from benchmarks.experiment.records import Record
from benchmarks.figures import interval, quantile

QUANTILES = (0.5, 0.95, 0.99)


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """Counts, attainment, goodput, quality, latencies and refusals; shares with 95 % intervals."""
    admitted = [record for record in records if record.admitted]
    answered = [record for record in admitted if record.answered]
    return {
        "n": len(records),
        "admitted": len(admitted),
        "answered": len(answered),
        "refused": dict(Counter(record.error for record in records if record.refused)),
        "failed": dict(Counter(record.error for record in admitted if not record.answered)),
        "attainment_deadline": attainment(admitted, [record.by_deadline for record in admitted]),
        "attainment_target": attainment(admitted, [record.by_target for record in admitted]),
        "in_time_of_all": attainment(records, [record.by_deadline for record in records]),
        "goodput": goodput(records),
        "goodput_per_request": goodput(records) / max(1, len(records)),
        "served_quality": _mean([record.quality for record in answered]),
        "served_quality_95": interval([record.quality for record in answered], _mean),
        "rungs": dict(Counter(record.rung for record in answered)),
        "items_by_rung": _items_by_rung(answered),
        "latency_ms": _quantiles([record.elapsed_ms for record in answered]),
        "latency_over_deadline": _quantiles([record.elapsed_ms / record.arrival.deadline_ms for record in answered]),
        "refusal_ms": _quantiles([record.elapsed_ms for record in records if record.refused]),
        "prediction_error_ms": _quantiles([_error_ms(record) for record in answered]),
        "sent_late_ms": _quantiles([record.sent_late_ms for record in records]),
        "by_priority": _by_priority(records),
    }


def attainment(records: Sequence[Record], kept: Sequence[bool]) -> dict[str, Any]:
    """The share of `records` that was kept, and the exact interval of the share that was missed."""
    hits, total = sum(kept), len(records)
    return {
        "share": hits / total if total else None,
        "share_95": wilson(hits, total),
        "missed": total - hits,
        "missed_share_95": clopper_pearson(total - hits, total),
        "n": total,
    }


def goodput(records: Sequence[Record]) -> float:
    """Requests answered by the deadline, each counted by its normalised quality."""
    return sum(record.quality for record in records if record.by_deadline)


def _by_priority(records: Sequence[Record]) -> dict[str, Any]:
    found = {}
    for priority in sorted({record.arrival.priority for record in records}):
        mine = [record for record in records if record.arrival.priority == priority]
        admitted = [record for record in mine if record.admitted]
        found[priority] = {
            "n": len(mine),
            "refused": len(mine) - len(admitted),
            "attainment_target": attainment(admitted, [record.by_target for record in admitted]),
            "attainment_deadline": attainment(admitted, [record.by_deadline for record in admitted]),
            "served_quality": _mean([record.quality for record in admitted if record.answered]),
        }
    return found


def _items_by_rung(answered: Sequence[Record]) -> dict[str, int]:
    items = Counter[str]()
    for record in answered:
        items[str(record.rung)] += record.arrival.items
    return dict(items)


def _error_ms(record: Record) -> float:
    return abs(record.elapsed_ms - (record.predicted_p50_ms or 0.0))


def _quantiles(values: Sequence[float]) -> dict[str, float | None]:
    return {f"p{share * 100:g}": quantile(values, share) if values else None for share in QUANTILES}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
