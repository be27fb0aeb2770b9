"""Cards: what a folder of scenes says about them, beside the files. One `card.json`, one entry per scene."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from headway.errors import BadInput
from services.splat_worker.views import Pose

CARD_NAME = "card.json"
MAX_CARD_BYTES = 1 << 20


@dataclass(frozen=True)
class SceneCard:
    """What is known of one scene: the view that shows it best, and facts for people."""

    home: Pose
    facts: dict[str, object] = field(default_factory=dict)


def read_cards(folder: Path) -> dict[str, SceneCard]:
    """Cards by scene name; empty when the folder has none. Raises BadInput naming the entry and what is wrong."""
    path = folder / CARD_NAME
    if not path.exists():
        return {}
    if path.stat().st_size > MAX_CARD_BYTES:
        raise BadInput(CARD_NAME, f"must be at most {MAX_CARD_BYTES} bytes")
    try:
        entries = json.loads(path.read_bytes())
    except ValueError as error:
        raise BadInput(CARD_NAME, f"is not JSON: {error}") from None
    if not isinstance(entries, dict):
        raise BadInput(CARD_NAME, "must be an object with one entry per scene")
    return {name: _card(name, entry) for name, entry in entries.items()}


def write_card(folder: Path, name: str, card: SceneCard) -> None:
    """Add or replace a scene's entry in the folder's card."""
    entries = {known: _entry(other) for known, other in read_cards(folder).items()}
    entries[name] = _entry(card)
    (folder / CARD_NAME).write_text(json.dumps(entries, indent=2) + "\n")


def _entry(card: SceneCard) -> dict[str, object]:
    return {"home": asdict(card.home), **card.facts}


def _card(name: str, entry: object) -> SceneCard:
    field_name = f"{CARD_NAME}:{name}.home"
    home = entry.get("home") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(home, dict):
        raise BadInput(field_name, "must have position, target, up and field_of_view_deg")
    try:
        position, target, up = (_vector(home[key]) for key in ("position", "target", "up"))
        pose = Pose(position, target, up, float(home["field_of_view_deg"]))
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(field_name, f"must have position, target, up and field_of_view_deg: {error}") from None
    pose.camera(64, 64)  # a pose that makes no camera is refused now, not at the first request
    return SceneCard(pose, {key: value for key, value in entry.items() if key != "home"})


def _vector(values: object) -> tuple[float, float, float]:
    if not isinstance(values, list) or len(values) != 3:
        raise ValueError(f"{values} is not a list of 3 numbers")
    x, y, z = (float(value) for value in values)
    return x, y, z
