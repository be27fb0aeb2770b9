"""Tables of the studies."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
Column = tuple[str, str, str]
"""(heading, key with dots for what lies deeper, format)."""

KEPT: tuple[Column, ...] = (
    ("asked", "n", "d"),
    ("admitted", "admitted", "d"),
    ("late", "missed", "d"),
    ("attainment", "attainment", ".2%"),
    ("in time of all", "in_time_of_all", ".1%"),
    ("quality", "quality", ".3f"),
    ("goodput / asked", "goodput_per_request", ".3f"),
)
TITLES = {
    "policies": "who places and who plans, on the same arrivals",
    "bounds": "beside a clairvoyant's bound",
    "staleness": "how often workers report",
    "fairness": "one tenant sends 60 % of all",
    "spike": "load 0.3, then 1.5, then 0.3",
    "devices": "a device for each worker, or one for three kinds",
    "several_routers": "routers that do not see what the others send",
    "scale": "how many routers a cluster needs",
    "shared_documents": "prompts that begin alike, two caches",
}
SET: dict[str, tuple[Column, ...]] = {
    "policies": (("load", "load", "g"), ("contender", "contender", "s")),
    "bounds": (("load", "load", "g"), ("goodput / bound", "goodput_over_bound", ".1%")),
    "staleness": (
        ("placement", "placement", "s"),
        ("report every, s", "interval_s", "g"),
        ("goodput lost to that", "lost", ".1%"),
    ),
    "fairness": (
        ("quotas", "quotas", "s"),
        ("Jain, of what each got", "jain", ".3f"),
        ("flood: goodput / asked", "by_tenant.flood.goodput_per_request", ".3f"),
        ("a", "by_tenant.a.goodput_per_request", ".3f"),
        ("b", "by_tenant.b.goodput_per_request", ".3f"),
        ("c", "by_tenant.c.goodput_per_request", ".3f"),
    ),
    "spike": (
        ("contender", "contender", "s"),
        ("high: in time of all", "by_priority.high.in_time_of_all", ".1%"),
        ("normal", "by_priority.normal.in_time_of_all", ".1%"),
        ("low", "by_priority.low.in_time_of_all", ".1%"),
    ),
    "devices": (("load", "load", "g"), ("shared", "shared", "")),
    "several_routers": (("placement", "placement", "s"), ("routers", "routers", "d")),
    "scale": (
        ("workers", "workers", "d"),
        ("requests / s", "requests_per_s", ".0f"),
        ("placing, us CPU", "placing_us", ".0f"),
        ("routers, passing on", "routers_passing_on", "d"),
        ("routers, picking", "routers_picking", "d"),
    ),
    "shared_documents": (
        ("at once", "at_once", "d"),
        ("placement", "placement", "s"),
        ("answers / s", "answers_per_s", ".1f"),
        ("reused", "reused_share", ".0%"),
        ("mean, s", "mean_s", ".3f"),
    ),
}


def show(study: str, rows: Sequence[Row], console: Console) -> None:
    """Prints a study's table."""
    columns = (*SET[study], *(column for column in KEPT if column[1] in rows[0]))
    table = Table(title=f"{study}: {TITLES[study]}")
    for heading, _, form in columns:
        table.add_column(heading, justify="left" if form in ("s", "") else "right")
    for row in rows:
        table.add_row(*(_cell(row, key, form) for _, key, form in columns))
    console.print(table)


def _cell(row: Row, key: str, form: str) -> str:
    value: Any = row
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return "-" if value is None else format(value, form)
