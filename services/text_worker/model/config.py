"""`config.json` read as an attacker might have written it: every field is checked, and named when it is refused."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 64 * 2**20
MAX_LAYERS = 1024
MAX_CONTEXT = 16_777_216


class CheckpointError(ValueError):
    """A checkpoint that cannot be served; the message names the file or field and the limit."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of at most `MAX_JSON_BYTES`. Raises CheckpointError naming the file."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path.name}: larger than {MAX_JSON_BYTES} bytes")
        parsed = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path.name}: not valid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path.name}: must hold a JSON object")
    return parsed


@dataclass(frozen=True)
class Fields:
    """A JSON object whose fields are read with their limits; null is absent. Every method raises CheckpointError."""

    raw: Mapping[str, Any]
    inside: str = ""
    """The object's own name and a dot, for messages."""

    def has(self, field: str) -> bool:
        return self.raw.get(field) is not None

    def size(self, field: str, limit: int, default: int | None = None) -> int:
        """A whole number from 1 to `limit`."""
        value = self._value(field, default)
        if type(value) is not int or not 1 <= value <= limit:
            raise self.bad(field, f"must be a whole number from 1 to {limit}", value)
        return value

    def number(self, field: str, low: float, high: float, default: float | None = None) -> float:
        """A number from `low` to `high`."""
        value = self._value(field, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.bad(field, f"must be a number from {low:g} to {high:g}", value)
        return float(value)

    def maybe_number(self, field: str, low: float, high: float) -> float | None:
        """A number from `low` to `high`, or None where it is absent."""
        return self.number(field, low, high) if self.has(field) else None

    def flag(self, field: str, default: bool = False) -> bool:
        """True or false."""
        value = self._value(field, default)
        if not isinstance(value, bool):
            raise self.bad(field, "must be true or false", value)
        return value

    def part(self, field: str) -> "Fields | None":
        """An object inside this one, or None where it is absent."""
        value = self.raw.get(field)
        if value is not None and not isinstance(value, dict):
            raise self.bad(field, "must be an object", value)
        return None if value is None else Fields(value, f"{self.inside}{field}.")

    def numbers(self, field: str, count: int, low: float, high: float) -> tuple[float, ...]:
        """A list of exactly `count` numbers from `low` to `high`."""
        value = self.raw.get(field)
        if not isinstance(value, list) or len(value) != count:
            raise self.bad(field, f"must be a list of {count} numbers", value)
        return tuple(Fields({field: item}, self.inside).number(field, low, high) for item in value)

    def indices(self, field: str, limit: int) -> frozenset[int]:
        """A list of whole numbers from 0 to `limit` - 1; empty where it is absent. One number alone is a list too."""
        value = self.raw.get(field)
        items = [] if value is None else value if isinstance(value, list) else [value]
        if not all(type(item) is int and 0 <= item < limit for item in items):
            raise self.bad(field, f"must be whole numbers from 0 to {limit - 1}", value)
        return frozenset(items)

    def only(self, field: str, *values: object) -> None:
        """Refuses a field that has a value other than `values`; absent means the first."""
        value = self._value(field, values[0])
        if not any(value == known and type(value) is type(known) for known in values):
            known = " or ".join(repr(item) for item in values)
            raise CheckpointError(f"{self.inside}{field}: {value!r:.80} is not supported, only {known}")

    def only_holds(self, *names: str) -> None:
        """Refuses an object with other fields than `names`."""
        for name in self.raw.keys() - set(names):
            raise CheckpointError(f"{self.inside}{name:.80}: is not supported here, only {', '.join(names)}")

    def bad(self, field: str, wanted: str, value: object) -> CheckpointError:
        """The error for a field that is not what it must be."""
        return CheckpointError(f"{self.inside}{field}: {wanted}, is {value!r:.80}")

    def _value(self, field: str, default: object) -> Any:
        value = self.raw.get(field)
        return default if value is None else value
