"""Writes the shipped scene, its card and its picture: the files of `models/scenes/`."""

import argparse
import hashlib
from pathlib import Path

import gsply
import numpy as np
from PIL import Image

from services.splat_worker.card import CARD_NAME, SceneCard, write_card
from services.splat_worker.encode import to_pixels
from services.splat_worker.ladder import SCORE_PX, SCORE_VIEWS, Bench, RankedScene, importance_order, measure
from services.splat_worker.rasterizer import Rasterizer
from services.splat_worker.readers import read_scene
from services.splat_worker.recipe.still_life import build
from services.splat_worker.scene import Gaussians, SceneLimits
from services.splat_worker.views import Pose

NAME = "still-life"
HOME = Pose(position=(2.2, 2.0, 4.6), target=(0.0, 0.85, 0.0), up=(0.0, 1.0, 0.0), field_of_view_deg=45.0)
_SPZ_VERSION = 4
_FRACTION_BITS = 14  # positions to 0.06 mm of a metre


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m services.splat_worker.recipe", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("models/scenes"), help="folder to write to (default: %(default)s)"
    )
    parser.add_argument("--count", type=int, default=100_000, help="gaussians, about (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="of everything random (default: %(default)s)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / f"{NAME}.spz"
    ranked = write_ranked(file, build(arguments.count, arguments.seed))
    facts = _facts(file, ranked, arguments.count, arguments.seed)
    write_card(arguments.out, NAME, SceneCard(HOME, ranked.scene.scene_id, ranked.ladder, facts))
    picture = Rasterizer(1).render(ranked.scene, HOME.camera(960, 640))
    Image.fromarray(to_pixels(picture.rgb)).save(arguments.out / f"{NAME}.jpg", quality=90)
    print(f"{file}: {ranked.scene.count} gaussians, {file.stat().st_size} bytes; card in {CARD_NAME}")


def write_ranked(file: Path, gaussians: Gaussians) -> RankedScene:
    """Write the gaussians in order of importance, as found and measured on what the file's precision leaves of them."""
    write_spz(file, gaussians)
    bench = Bench(Rasterizer(1))
    order = importance_order(read_scene(file, SceneLimits()), HOME, bench)
    arrays = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.sh)
    write_spz(file, Gaussians(*(array[order] for array in arrays)))
    scene = read_scene(file, SceneLimits())
    return RankedScene(scene, measure(scene, HOME, bench), HOME)


def write_spz(file: Path, gaussians: Gaussians) -> None:
    """Write gaussians as SPZ 4; values outside its fixed ranges are clipped by the format."""
    opacities = np.clip(gaussians.opacities.astype(np.float64), 1e-6, 1 - 1e-6)
    data = gsply.GSData.from_arrays(
        means=gaussians.means,
        scales=np.log(gaussians.scales),
        quats=gaussians.quats,
        opacities=np.log(opacities / (1 - opacities)).astype(np.float32),
        sh0=np.ascontiguousarray(gaussians.sh[:, 0]),
        shN=np.ascontiguousarray(gaussians.sh[:, 1:]),
        format="ply",
    )
    gsply.use_backend("auto")  # the compiled writer brings its own zstd
    gsply.write_spz(file, data, version=_SPZ_VERSION, fractional_bits=_FRACTION_BITS)


def _facts(file: Path, ranked: RankedScene, count: int, seed: int) -> dict[str, object]:
    return {
        "recipe": f"python -m services.splat_worker.recipe --count {count} --seed {seed}",
        "seed": seed,
        "data": "none: the scene is procedural",
        "licence": "Apache-2.0",
        "format": f"SPZ {_SPZ_VERSION}",
        "bytes": file.stat().st_size,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "gaussians": ranked.scene.count,
        "sh_degree": ranked.scene.sh_degree,
        "ladder_measured_on": f"{SCORE_VIEWS} cameras not used for the ordering, {SCORE_PX} px, 8-bit, scaled up",
    }


if __name__ == "__main__":
    main()
