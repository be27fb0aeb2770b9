"""What frames cost on this host: measured over views, rungs and sizes, on the code that serves."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from headway.calibration import Curves, Probe, cost_of, quiet_cost, timed_ms
from headway.cost import Cost, StepCurve
from headway.engine import Device, Pulse
from headway.errors import BadInput
from headway.quality import Rung
from services.splat_worker.camera import Camera
from services.splat_worker.encode import DEFAULT_QUALITY, Channel, Encoding, develop, encode, to_pixels
from services.splat_worker.frame import FrameSpec
from services.splat_worker.library import LoadedScene
from services.splat_worker.rasterizer import BLACK, Picture
from services.splat_worker.renderer import Renderer
from services.splat_worker.video import pan
from services.splat_worker.views import orbit

SIZES_PX = (192, 512)
VIEWS, VIEWS_START = 2, 0.61  # beside the scene's own view; a share of a turn away from those of the ladder
REPEATS = 2
_RENDER, _ENCODE, _BLEND, _GANG = "render", "encode", "blend", "gang"

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


NO_GANG = StepCurve(((1, Cost(1.0)),))


@dataclass(frozen=True, slots=True)
class SceneCosts:
    """Costs of one scene, before `LearnedScale`. Curves run over pixels of the frame that was asked for."""

    render: Mapping[str, StepCurve]
    """By rung label: all that is done before encoding."""
    encode: Mapping[Encoding, StepCurve]
    blend: StepCurve | None
    """Over `TileLists.work`: what is left of a render when its tile lists are known; None where it is one launch."""

    gang: StepCurve = NO_GANG
    """Of frames side by side, by how many. One point: never."""

    @property
    def gang_sizes(self) -> tuple[int, ...]:
        """How many frames may go side by side, most first."""
        return tuple(size for size, _ in reversed(self.gang.points) if size > 1)

    def side_by_side(self, size: int) -> float:
        """What a gang takes, over what its frames take in turn."""
        return self.gang.at(size).mean_ms / (size * self.gang.at(1).mean_ms)

    def frame(self, label: str, pixels: int, encoding: Encoding) -> Cost:
        return self.render[label].at(pixels) + self.encode[encoding].at(pixels)


def scene_costs(curves: Curves) -> SceneCosts:
    """Raises KeyError when `curves` are not those of `measure`."""
    start = f"{_RENDER} "
    return SceneCosts(
        render={name.removeprefix(start): curve for name, curve in curves.items() if name.startswith(start)},
        encode={encoding: curves[f"{_ENCODE} {encoding.value}"] for encoding in Encoding},
        blend=curves.get(_BLEND),
        gang=curves[_GANG],
    )


@dataclass(slots=True)
class _Still(Generic[T_co]):
    """A frame that is drawn to see what it costs."""

    spec: FrameSpec
    rung: Rung
    develop: Callable[[Picture], T_co]
    tile_work: int | None = None
    """None: it was drawn in one go."""

    def binned(self, tile_work: int) -> None:
        self.tile_work = tile_work

    def finish(self, picture: Picture) -> T_co:
        return self.develop(picture)


def measure(scene: LoadedScene, renderer: Renderer, device: Device) -> Curves:
    """Curves by name; seconds for a scene of 100,000 gaussians. Every timed run holds the device."""
    cameras = {side: list(_cameras(scene, side)) for side in SIZES_PX}
    _drawn(renderer, _still(scene, scene.ranked.ladder.top, cameras[SIZES_PX[0]][0]))  # the first call compiles
    curves: dict[str, StepCurve] = {}
    for rung in scene.ranked.ladder.rungs:
        costs = [_over_views(cameras[side], renderer, scene, rung, device) for side in SIZES_PX]
        curves[f"{_RENDER} {rung.label}"] = _falling(_curve(costs), list(curves.values())[-1:])
    pictures = {side: _picture(renderer, scene, views[0]) for side, views in cameras.items()}
    for encoding in Encoding:
        costs = [quiet_cost(_encoder(pictures[side], encoding), device, repeats=5) for side in SIZES_PX]
        curves[f"{_ENCODE} {encoding.value}"] = _curve(costs)
    if pictures[SIZES_PX[0]].stages is not None:
        curves[_BLEND] = _blend_curve(renderer, scene, cameras, device)
    curves[_GANG] = _gang_curve(renderer, scene, cameras[SIZES_PX[-1]][0], device)
    return curves


def probe(scene: LoadedScene, renderer: Renderer, device: Device) -> Probe:
    """What the scene's own view costs now at the top rung and the smaller size. Compiles what a frame runs."""
    side, top = SIZES_PX[0], scene.ranked.ladder.top
    views = list(_cameras(scene, side))
    _drawn(renderer, _still(scene, top, views[0]))
    _picture(renderer, scene, views[0])
    return f"{_RENDER} {top.label}", side * side, _over_views(views, renderer, scene, top, device)


def pulse(scene: LoadedScene, renderer: Renderer, costs: SceneCosts) -> Pulse:
    """The scene's own view, small, at the lowest rung, for a worker at rest."""
    side, lowest = SIZES_PX[0], scene.ranked.ladder.rungs[-1]
    still = _still(scene, lowest, next(_cameras(scene, side)))
    return Pulse(costs.render[lowest.label].at(side * side), partial(_drawn, renderer, still))


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


def _over_views(cameras: list[Camera], renderer: Renderer, scene: LoadedScene, rung: Rung, device: Device) -> Cost:
    """Mean and spread over views, each at its quickest: views differ, stalls are learned while serving."""
    stills = [_still(scene, rung, camera) for camera in cameras]
    return cost_of(
        [min(timed_ms(partial(_drawn, renderer, still), device) for _ in range(REPEATS)) for still in stills]
    )


def _blend_curve(
    renderer: Renderer, scene: LoadedScene, cameras: Mapping[int, list[Camera]], device: Device
) -> StepCurve:
    points: dict[int, Cost] = {}
    for side in SIZES_PX:
        still, blends_ms = _Still(_spec(scene, cameras[side][0]), scene.ranked.ladder.top, _blend_ms), list[float]()

        def draw(still: _Still[float] = still, blends_ms: list[float] = blends_ms) -> None:
            blends_ms.append(_drawn(renderer, still))

        for _ in range(5):
            timed_ms(draw, device)
        assert still.tile_work is not None
        points[still.tile_work] = cost_of(blends_ms)
    return StepCurve(tuple(sorted(points.items())))


def _blend_ms(picture: Picture) -> float:
    assert picture.stages is not None
    return picture.stages.blend_ms


def _gang_curve(renderer: Renderer, scene: LoadedScene, camera: Camera, device: Device) -> StepCurve:
    """Frames and their encoding: one alone, and as many at once as a gang may have; each at its quickest."""
    still = _Still(_spec(scene, camera), scene.ranked.ladder.top, _as_jpeg)
    points = [
        (size, quiet_cost(partial(_all_drawn, renderer, [still] * size), device, repeats=5))
        for size in (1, *renderer.gang_sizes)
    ]
    return StepCurve(tuple(points))


def _as_jpeg(picture: Picture) -> bytes:
    return encode(to_pixels(picture.rgb), Encoding.JPEG)


def _picture(renderer: Renderer, scene: LoadedScene, camera: Camera) -> Picture:
    """With depth, at the top rung."""
    spec = _spec(scene, camera, tuple(Channel))
    return _drawn(renderer, _Still(spec, scene.ranked.ladder.top, lambda picture: picture))


def _still(scene: LoadedScene, rung: Rung, camera: Camera) -> "_Still[object]":
    """Ends as pixels at the size asked for."""
    developed = partial(develop, encoding=Encoding.RAW, width=camera.width, height=camera.height)
    return _Still(_spec(scene, camera), rung, developed)


def _spec(scene: LoadedScene, camera: Camera, channels: tuple[Channel, ...] = (Channel.COLOR,)) -> FrameSpec:
    return FrameSpec(scene, camera, BLACK, None, Encoding.FLOAT32, DEFAULT_QUALITY, channels)


def _drawn(renderer: Renderer, still: _Still[T]) -> T:
    return _all_drawn(renderer, [still])[0]


def _all_drawn(renderer: Renderer, stills: Sequence[_Still[T]]) -> list[T]:
    """Raises BadInput for a scene whose own views are too complex."""
    results = list[T]()
    for result in renderer.draw(stills):
        if isinstance(result, BadInput):
            raise result
        results.append(result)
    return results
