"""Cards: what a folder of scenes says about them, beside the files. One `card.json`, one entry per scene."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from headway.errors import BadInput
from headway.quality import Ladder, Rung
from services.splat_worker.views import Pose

CARD_NAME = "card.json"
MAX_CARD_BYTES = 1 << 20


@dataclass(frozen=True)
class SceneCard:
    """What is known of one scene: the view that shows it best, its ladder where it was measured, and facts for people.

    A card with a ladder says that the file's gaussians are in order of importance, and for which scene (by hash) that
    and the ladder hold.
    """

    home: Pose
    scene_id: str | None = None
    ladder: Ladder | None = None
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
    entry: dict[str, object] = {"home": asdict(card.home)}
    if card.scene_id is not None and card.ladder is not None:
        rungs = [
            {name: value for name, value in asdict(rung).items() if value is not None} for rung in card.ladder.rungs
        ]
        entry |= {"scene_id": card.scene_id, "ladder": rungs}
    return entry | card.facts


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
    facts = {key: value for key, value in entry.items() if key not in ("home", "scene_id", "ladder")}
    if "ladder" not in entry:
        return SceneCard(pose, facts=facts)
    return SceneCard(pose, str(entry.get("scene_id")), _ladder(name, entry["ladder"]), facts)


def _ladder(name: str, rungs: object) -> Ladder:
    try:
        if not isinstance(rungs, list):
            raise TypeError("not a list")
        ladder = Ladder(tuple(Rung(**rung) for rung in rungs))
        for rung in ladder.rungs:
            if not (0 < float(rung.gaussian_share or 0) <= 1 and 0 < float(rung.resolution_scale or 0) <= 1):
                raise ValueError(f"gaussian_share and resolution_scale of {rung.label!r} must be above 0, at most 1")
    except (TypeError, ValueError) as error:
        raise BadInput(f"{CARD_NAME}:{name}.ladder", f"is no ladder: {error}") from None
    return ladder


def _vector(values: object) -> tuple[float, float, float]:
    if not isinstance(values, list) or len(values) != 3:
        raise ValueError(f"{values} is not a list of 3 numbers")
    x, y, z = (float(value) for value in values)
    return x, y, z
