"""What frames cost on this host: measured over views, rungs and sizes, on the code that serves."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from headway.calibration import Curves, Probe, cost_of, quiet_cost, timed_ms
from headway.cost import Cost, StepCurve
from headway.engine import Device, Pulse
from headway.quality import Rung
from services.splat_worker.camera import Camera
from services.splat_worker.encode import Channel, Encoding, Pixels, develop, encode, scale_up, to_pixels
from services.splat_worker.gang import Crew
from services.splat_worker.library import LoadedScene
from services.splat_worker.rasterizer import Picture, Rasterizer
from services.splat_worker.video import pan
from services.splat_worker.views import orbit

SIZES_PX = (192, 512)
VIEWS, VIEWS_START = 2, 0.61  # beside the scene's own view; a share of a turn away from those of the ladder
REPEATS = 2
_RENDER, _ENCODE, _BLEND, _GANG = "render", "encode", "blend", "gang"


NO_GANG = StepCurve(((1, Cost(1.0)),))


@dataclass(frozen=True, slots=True)
class SceneCosts:
    """Costs of one scene, before `LearnedScale`. Curves run over pixels of the frame that was asked for."""

    render: Mapping[str, StepCurve]
    """By rung label: all that is done before encoding."""
    encode: Mapping[Encoding, StepCurve]
    blend: StepCurve
    """Over `TileLists.work`: what is left of a render when its tile lists are known."""

    gang: StepCurve = NO_GANG
    """Of frames side by side, by how many: one for each core at most. One point: never."""

    @property
    def side_by_side(self) -> float:
        """What a gang takes, over what its frames take in turn."""
        size, cost = self.gang.points[-1]
        return cost.mean_ms / (size * self.gang.at(1).mean_ms)

    def frame(self, label: str, pixels: int, encoding: Encoding) -> Cost:
        return self.render[label].at(pixels) + self.encode[encoding].at(pixels)


def scene_costs(curves: Curves) -> SceneCosts:
    """Raises KeyError when `curves` are not those of `measure`."""
    start = f"{_RENDER} "
    return SceneCosts(
        render={name.removeprefix(start): curve for name, curve in curves.items() if name.startswith(start)},
        encode={encoding: curves[f"{_ENCODE} {encoding.value}"] for encoding in Encoding},
        blend=curves[_BLEND],
        gang=curves[_GANG],
    )


def measure(scene: LoadedScene, rasterizer: Rasterizer, device: Device) -> Curves:
    """Curves by name; seconds for a scene of 100,000 gaussians. Every timed run holds the device."""
    cameras = {side: list(_cameras(scene, side)) for side in SIZES_PX}
    _draw(rasterizer, scene, scene.ranked.ladder.top, cameras[SIZES_PX[0]][0])  # the first call compiles
    curves: dict[str, StepCurve] = {}
    for rung in scene.ranked.ladder.rungs:
        costs = [_over_views(cameras[side], rasterizer, scene, rung, device) for side in SIZES_PX]
        curves[f"{_RENDER} {rung.label}"] = _falling(_curve(costs), list(curves.values())[-1:])
    pictures = {
        side: rasterizer.render(scene.ranked.scene, views[0], with_depth=True) for side, views in cameras.items()
    }
    for encoding in Encoding:
        costs = [quiet_cost(_encoder(pictures[side], encoding), device, repeats=5) for side in SIZES_PX]
        curves[f"{_ENCODE} {encoding.value}"] = _curve(costs)
    curves[_BLEND] = _blend_curve(rasterizer, scene, cameras, device)
    curves[_GANG] = _gang_curve(rasterizer, scene, cameras[SIZES_PX[-1]][0], device)
    return curves


def _encoder(picture: Picture, encoding: Encoding) -> Callable[[], bytes]:
    """What the encoding adds to a frame: to one of floats, putting all of its channels together."""
    height, width = picture.alpha.shape
    if encoding is Encoding.FLOAT32:
        return lambda: encode(develop(picture, encoding, width, height, tuple(Channel)), encoding)
    pixels = to_pixels(picture.rgb)
    return pan(pixels) if encoding is Encoding.H264 else partial(encode, pixels, encoding)


def _cameras(scene: LoadedScene, side: int) -> Iterator[Camera]:
    home = scene.ranked.home
    yield home.camera(side, side)
    yield from (pose.camera(side, side) for pose in orbit(home, VIEWS, VIEWS_START))


def _curve(costs: list[Cost]) -> StepCurve:
    return StepCurve(tuple((side * side, cost) for side, cost in zip(SIZES_PX, costs, strict=True)))


def _falling(curve: StepCurve, above: list[StepCurve]) -> StepCurve:
    """A lower rung never does more work: where it measured slower than the one above, that was noise."""
    if not above:
        return curve
    points = zip(curve.points, above[0].points, strict=True)
    return StepCurve(
        tuple((size, min(cost, other, key=lambda each: each.mean_ms)) for (size, cost), (_, other) in points)
    )


def _over_views(cameras: list[Camera], rasterizer: Rasterizer, scene: LoadedScene, rung: Rung, device: Device) -> Cost:
    """Mean and spread over views, each at its quickest: views differ, stalls are learned while serving."""
    return cost_of(
        [
            min(timed_ms(partial(_draw, rasterizer, scene, rung, camera), device) for _ in range(REPEATS))
            for camera in cameras
        ]
    )


def probe(scene: LoadedScene, rasterizer: Rasterizer, device: Device) -> Probe:
    """What the scene's own view costs now at the top rung and the smaller size. Compiles what a frame runs."""
    side, top = SIZES_PX[0], scene.ranked.ladder.top
    _draw(rasterizer, scene, top, next(_cameras(scene, side)))
    rasterizer.render(scene.ranked.scene, next(_cameras(scene, side)), with_depth=True)
    views = list(_cameras(scene, side))
    return f"{_RENDER} {top.label}", side * side, _over_views(views, rasterizer, scene, top, device)


def pulse(scene: LoadedScene, rasterizer: Rasterizer, costs: SceneCosts) -> Pulse:
    """The scene's own view, small, at the lowest rung, for a worker at rest."""
    side, lowest = SIZES_PX[0], scene.ranked.ladder.rungs[-1]
    draw = partial(_draw, rasterizer, scene, lowest, next(_cameras(scene, side)))
    return Pulse(costs.render[lowest.label].at(side * side), draw)


def _blend_curve(
    rasterizer: Rasterizer, scene: LoadedScene, cameras: Mapping[int, list[Camera]], device: Device
) -> StepCurve:
    points: dict[int, Cost] = {}
    for side in SIZES_PX:
        runs = list[tuple[Pixels, int, float]]()

        def draw(camera: Camera = cameras[side][0], runs: list[tuple[Pixels, int, float]] = runs) -> None:
            runs.append(_draw(rasterizer, scene, scene.ranked.ladder.top, camera))

        for _ in range(5):
            timed_ms(draw, device)
        points[runs[0][1]] = cost_of([blend_ms for _, _, blend_ms in runs])
    return StepCurve(tuple(sorted(points.items())))


def _gang_curve(rasterizer: Rasterizer, scene: LoadedScene, camera: Camera, device: Device) -> StepCurve:
    """A frame and its encoding alone on all cores, and one on each core at once; each at its quickest."""

    def draw(drawing: Rasterizer) -> bytes:
        return encode(_draw(drawing, scene, scene.ranked.ladder.top, camera)[0], Encoding.JPEG)

    points = [(1, quiet_cost(partial(draw, rasterizer), device, repeats=5))]
    with closing(Crew(rasterizer.threads)) as crew:
        if crew.usable:
            points.append((crew.size, quiet_cost(partial(crew.all_at_once, draw), device, repeats=5)))
    return StepCurve(tuple(points))


def _draw(rasterizer: Rasterizer, scene: LoadedScene, rung: Rung, camera: Camera) -> tuple[Pixels, int, float]:
    """Pixels at the size asked for, the work that blending was, and its time in ms."""
    start = camera.scaled(rung.resolution_scale or 1.0)
    projection = rasterizer.project(scene.ranked.at(rung), start)
    lists = rasterizer.bin(projection, start)
    picture = rasterizer.blend(projection, lists, start)
    return scale_up(to_pixels(picture.rgb), camera.width, camera.height), lists.work, picture.blend_ms
