"""Cards: what is written is read, and what is wrong is named."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from headway.errors import BadInput
from headway.quality import Ladder, Rung
from services.splat_worker.card import CARD_NAME, SceneCard, read_cards, write_card
from services.splat_worker.views import Pose

CARD = SceneCard(Pose((1.0, 2.0, 3.0), (0.0, 0.0, 0.0)), facts={"licence": "CC0"})
TOP, LOW = (Rung("a", 1.0, gaussian_share=1.0, resolution_scale=1.0), Rung("b", 0.5, None, None, 32.5, 0.5, 0.25))
MEASURED = SceneCard(CARD.home, "ab12", Ladder((TOP, LOW)))
POSE = {"position": [0, 0, 1], "target": [0, 0, 0], "up": [0, 1, 0], "field_of_view_deg": 50}


def test_cards_are_kept_side_by_side(tmp_path: Path) -> None:
    assert read_cards(tmp_path) == {}
    write_card(tmp_path, "a", CARD)
    write_card(tmp_path, "b", MEASURED)
    assert read_cards(tmp_path) == {"a": CARD, "b": MEASURED}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"a": 3}',
        '{"a": {"home": {}}}',
        '{"a": {"home": {"position": [1, 2], "target": [0, 0, 0], "up": [0, 1, 0], "field_of_view_deg": 50}}}',
        '{"a": {"home": {"position": [1, 2, NaN], "target": [0, 0, 0], "up": [0, 1, 0], "field_of_view_deg": 50}}}',
        json.dumps({"a": {"home": POSE | {"target": [0, 0, 1]}}}),
        json.dumps({"a": {"home": POSE, "ladder": 3}}),
        json.dumps({"a": {"home": POSE, "ladder": [{"label": "x", "quality": 1.0, "what": 3}]}}),
        json.dumps({"a": {"home": POSE, "ladder": [{"label": "x", "quality": 1.0}]}}),
        json.dumps({"a": {"home": POSE, "ladder": [asdict(TOP) | {"gaussian_share": -1}]}}),
    ],
)
def test_a_bad_card_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / CARD_NAME).write_text(text)
    with pytest.raises(BadInput):
        read_cards(tmp_path)
