"""Importance, levels, the measured ladder and its cache, on the scene that ships."""

from pathlib import Path

import numpy as np
import pytest
import scene_files

from services.splat_worker import ladder
from services.splat_worker.card import read_cards
from services.splat_worker.encode import to_pixels
from services.splat_worker.rasterizer import Rasterizer
from services.splat_worker.readers import read_scene
from services.splat_worker.scene import Scene, SceneLimits, build_scene
from services.splat_worker.views import Pose, default_pose, orbit

SCENES = Path(__file__).parents[3] / "models" / "scenes"
CARD = read_cards(SCENES)["still-life"]
BENCH = ladder.Bench(Rasterizer(1))


@pytest.fixture(scope="module")
def shipped() -> Scene:
    return read_scene(SCENES / "still-life.spz", SceneLimits())


@pytest.fixture(scope="module")
def ranked(shipped: Scene) -> ladder.RankedScene:
    return ladder.RankedScene(shipped, ladder.measure(shipped, CARD.home, BENCH), CARD.home)


def test_the_card_says_what_is_measured(shipped: Scene, ranked: ladder.RankedScene) -> None:
    assert CARD.ladder is not None
    assert CARD.scene_id == shipped.scene_id
    assert CARD.facts["gaussians"] == shipped.count
    assert [rung.label for rung in CARD.ladder.rungs] == [rung.label for rung in ranked.ladder.rungs]
    for stated, measured in zip(CARD.ladder.rungs[1:], ranked.ladder.rungs[1:], strict=True):
        assert stated.psnr_db == pytest.approx(measured.psnr_db, abs=0.1)


def test_the_shipped_file_is_in_order_of_importance(shipped: Scene) -> None:
    order = ladder.importance_order(shipped, CARD.home, BENCH)
    quarter = shipped.count // 4
    # Not exactly: which random subsets are drawn follows the file's order. By chance it would be a third.
    assert np.mean(order[:quarter] < quarter * 1.3) > 0.75


def test_rungs_fall_in_quality_and_in_work(ranked: ladder.RankedScene) -> None:
    rasterizer, camera = Rasterizer(1), CARD.home.camera(256, 256)
    work = []
    for rung in ranked.ladder.rungs:
        assert rung.resolution_scale is not None
        work.append(rasterizer.render(ranked.at(rung), camera.scaled(rung.resolution_scale)).pairs)
    assert len(work) >= 5
    assert work == sorted(work, reverse=True)
    assert ranked.ladder.top.quality == 1 and ranked.ladder.top.psnr_db is None


def test_importance_beats_chance(shipped: Scene) -> None:
    rasterizer, camera = Rasterizer(1), orbit(CARD.home, 1, 0.7)[0].camera(192, 192)
    full = rasterizer.render(shipped, camera).rgb
    quarter = shipped.count // 4
    by_chance = shipped.permuted(np.random.default_rng(1).permutation(shipped.count)[:quarter])
    errors = [np.mean((rasterizer.render(s, camera).rgb - full) ** 2) for s in (shipped.prefix(quarter), by_chance)]
    assert errors[0] < errors[1] / 3


def test_ranking_keeps_the_scene() -> None:
    scene, home = small()
    ranked = ladder.rank(scene, home, BENCH)
    assert ranked.scene.scene_id == scene.scene_id
    assert np.array_equal(np.sort(ranked.scene.means[:, 0]), np.sort(scene.means[:, 0]))
    camera = home.camera(128, 96)
    one, other = (Rasterizer(1).render(each, camera).rgb for each in (scene, ranked.scene))
    assert np.array_equal(to_pixels(one), to_pixels(other))


def small() -> tuple[Scene, Pose]:
    scene = build_scene(scene_files.gaussians(count=200, degree=0))
    return scene, default_pose(scene)


def test_what_is_cached_is_what_was_measured(tmp_path: Path) -> None:
    scene, home = small()
    first = ladder.rank(scene, home, BENCH, tmp_path)
    (entry,) = tmp_path.iterdir()
    stamp = entry.stat().st_mtime_ns
    second = ladder.rank(scene, home, BENCH, tmp_path)
    assert second.ladder == first.ladder
    assert np.array_equal(second.scene.means, first.scene.means)
    assert entry.stat().st_mtime_ns == stamp  # read, not written again


def test_progress_rises_stage_by_stage_and_what_is_cached_needs_none(tmp_path: Path) -> None:
    scene, home = small()
    told: list[tuple[str, float]] = []
    ladder.rank(scene, home, BENCH, tmp_path, lambda stage, share: told.append((stage, share)))
    assert told == sorted(told, key=lambda each: (["order", "ladder"].index(each[0]), each[1]))
    assert told[0] == ("order", 0) and told[-1] == ("ladder", 1)
    told.clear()
    ladder.rank(scene, home, BENCH, tmp_path, lambda stage, share: told.append((stage, share)))
    assert told == []


def test_a_load_can_be_stopped(tmp_path: Path) -> None:
    scene, home = small()

    def stop(stage: str, share: float) -> None:
        raise InterruptedError(stage)

    with pytest.raises(InterruptedError):
        ladder.rank(scene, home, BENCH, tmp_path, stop)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_cache_entry_is_measured_anew(tmp_path: Path) -> None:
    scene, home = small()
    truth = ladder.rank(scene, home, BENCH, tmp_path)
    (entry,) = tmp_path.iterdir()
    whole = entry.read_bytes()
    wrong = np.zeros(scene.count, dtype=np.int32)
    for damage in (b"", whole[: len(whole) // 2], b"junk" * 100):
        entry.write_bytes(damage)
        assert ladder.rank(scene, home, BENCH, tmp_path).ladder == truth.ladder
    with entry.open("wb") as file:
        np.savez(file, order=wrong, rungs=np.frombuffer(b"[]", dtype=np.uint8))
    again = ladder.rank(scene, home, BENCH, tmp_path)
    assert np.array_equal(again.scene.means, truth.scene.means)


def test_ordering_and_scoring_share_no_camera() -> None:
    home = Pose((0.0, 1.0, 4.0), (0.0, 0.0, 0.0))
    ordering = np.array([pose.position for pose in orbit(home, ladder.ORDER_VIEWS, 0.0)])
    scoring = np.array([pose.position for pose in orbit(home, ladder.SCORE_VIEWS, 0.37)])
    apart = np.linalg.norm(ordering[:, None] - scoring[None], axis=-1)
    assert apart.min() > 0.1


def test_normalised_quality_is_clipped() -> None:
    assert [ladder.normalised(psnr) for psnr in (-5.0, 20.0, 32.5, 45.0, 99.0)] == [0, 0, 0.5, 1, 1]
