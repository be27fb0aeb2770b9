"""Rasterises through gsplat: several views of one level in one launch, with the maths of `rasterizer`.

It takes gsplat's public stages one by one, not `gsplat.rasterization`: between projection and tiles a crop is cut out
of its whole frame, and views that would need absurd memory are refused before it is allocated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import gsplat
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headway.errors import BadInput
from services.splat_worker.camera import Camera
from services.splat_worker.rasterizer import BLACK, Picture
from services.splat_worker.scene import ARRAY_NAMES, SH_COEFFICIENTS, Scene

TILE_PX = 16
BLUR = 0.3  # added to both variances, in px^2: gsplat's default
MAX_PAIRS = 128_000_000
"""Of gaussian and tile in one launch: 24 bytes each on the device, half of them to sort. gsplat pairs a gaussian with
all tiles of its box, so the limit is twice that of the CPU's rasteriser, which leaves out what the ellipse misses."""


class TooManyPairs(BadInput):
    """A launch would pair gaussians with tiles more than MAX_PAIRS times."""


@dataclass(frozen=True)
class DeviceScene:
    """A scene's arrays as float32 tensors on a device; see `Scene`."""

    means: Tensor  # [gaussians, 3]
    quats: Tensor  # [gaussians, 4] wxyz, unit
    scales: Tensor  # [gaussians, 3]
    opacities: Tensor  # [gaussians]
    sh: Tensor  # [gaussians, (degree + 1) ** 2, 3]

    @staticmethod
    def of(scene: Scene, device: torch.device) -> "DeviceScene":
        """Copies a scene to a device; blocks."""
        return DeviceScene(
            means=torch.tensor(scene.means, device=device),
            quats=torch.tensor(scene.quats, device=device),
            scales=torch.tensor(scene.scales, device=device),
            opacities=torch.tensor(scene.opacities, device=device),
            sh=torch.tensor(scene.sh, device=device),
        )

    @property
    def sh_degree(self) -> int:
        return SH_COEFFICIENTS.index(self.sh.shape[1])

    @property
    def memory_bytes(self) -> int:
        return sum(getattr(self, name).nbytes for name in ARRAY_NAMES)

    def prefix(self, count: int) -> "DeviceScene":
        """The first `count` gaussians, without copying."""
        return replace(self, **{name: getattr(self, name)[:count] for name in ARRAY_NAMES})


@dataclass(frozen=True, slots=True)
class View:
    """One frame of a launch."""

    camera: Camera
    background: tuple[float, float, float] = BLACK


@dataclass(frozen=True, slots=True)
class _Splats:
    """Ellipses on the frames [views, gaussians]; what cannot be seen has a radius of 0 and holds anything."""

    radii: Tensor  # [views, gaussians, 2] int32
    means2d: Tensor  # [views, gaussians, 2] in pixels of the crop
    depths: Tensor  # [views, gaussians]
    conics: Tensor  # [views, gaussians, 3]
    opacities: Tensor  # [views, gaussians]

    @property
    def seen(self) -> Tensor:
        return (self.radii > 0).all(-1)  # [views, gaussians]


@torch.no_grad()
def render(
    level: DeviceScene,
    views: Sequence[View],
    sh_degree: int | None = None,
    antialiased: bool = False,
    with_depth: bool = False,
) -> list[Picture]:
    """Pictures of the views, which are of one size and cut from whole frames of one size; blocks.

    `sh_degree` None means the scene's own. A picture does not depend on those beside it. Raises TooManyPairs.
    """
    if not len(level.means):  # gsplat's kernels would divide by their number
        return [_empty(view, with_depth) for view in views]
    camera, device = views[0].camera, level.means.device
    splats = _project(level, [view.camera for view in views], antialiased)
    pairs = _pairs(splats, camera.width, camera.height)  # [views]
    if sum(pairs) > MAX_PAIRS:
        raise TooManyPairs("camera", f"gaussians would be paired with tiles {sum(pairs)} times; at most {MAX_PAIRS}")
    colors = _colors(level, splats, views, level.sh_degree if sh_degree is None else min(sh_degree, level.sh_degree))
    backgrounds = torch.tensor([view.background for view in views], dtype=torch.float32, device=device)  # [views, 3]
    if with_depth:
        colors = torch.cat([colors, splats.depths[..., None]], dim=-1)
        backgrounds = torch.nn.functional.pad(backgrounds, (0, 1))
    planes, alphas = _blend(splats, colors, backgrounds, camera.width, camera.height)
    visible = splats.seen.sum(-1).tolist()
    return [
        Picture(
            rgb=_host(plane[..., :3]),
            alpha=_host(alpha[..., 0]),
            depth=_host(plane[..., 3]) if with_depth else None,
            visible=seen,
            pairs=paired,
            stages=None,
        )
        for plane, alpha, seen, paired in zip(planes, alphas, visible, pairs, strict=True)
    ]


def _empty(view: View, with_depth: bool) -> Picture:
    nothing = np.zeros((view.camera.height, view.camera.width), dtype=np.float32)
    rgb = np.full((*nothing.shape, 3), view.background, dtype=np.float32)
    return Picture(rgb, nothing, nothing.copy() if with_depth else None, visible=0, pairs=0, stages=None)


def _project(level: DeviceScene, cameras: Sequence[Camera], antialiased: bool) -> _Splats:
    device = level.means.device
    wholes = [camera.whole or (0.0, 0.0, camera.width, camera.height) for camera in cameras]
    corners = np.array([whole[:2] for whole in wholes])  # [views, 2] of the whole frame, in the crop's pixels
    # Sides that a smaller rung left between two pixels are taken up: only how far out shapes are clamped hangs on them.
    width, height = (int(np.ceil(side - 1e-6)) for side in cameras[0].whole_size)
    ks = np.array([camera.k for camera in cameras])
    ks[:, :2, 2] -= corners
    radii, means2d, depths, conics, _ = gsplat.fully_fused_projection(
        level.means, None, level.quats, level.scales,
        _tensor(np.array([camera.viewmat for camera in cameras]), device), _tensor(ks, device), width, height,
        opacities=level.opacities,
    )  # fmt: skip
    means2d = means2d + _tensor(corners, device)[:, None]
    opacities = level.opacities.expand(len(cameras), -1)  # [views, gaussians]
    if antialiased:
        shapes = [_antialiased(level, camera) for camera in cameras]
        conics, sharpness = (torch.stack(parts) for parts in zip(*shapes, strict=True))
        opacities = opacities * sharpness
    # A shape that left float32 would cover its whole box, perhaps with NaN.
    sound = (conics[..., ::2] > 0).all(-1) & torch.isfinite(conics[..., 1] + means2d.sum(-1) + opacities)
    return _Splats(radii * sound[..., None], means2d, depths, conics, opacities)


def _antialiased(level: DeviceScene, camera: Camera) -> tuple[Tensor, Tensor]:
    """Conics [gaussians, 3], and what the blur leaves of the opacities [gaussians]; steps 3 and 7 of
    rasterizer/README.md.

    gsplat's own take determinants in float32 in the way that cancels: needles then come out at 41 dB.
    """
    device = level.means.device
    rotation = _tensor(np.reshape(camera.rotation, (3, 3)), device)
    x, y, z = (level.means @ rotation.T + _tensor(np.array(camera.translation), device)).unbind(-1)
    left, right, top, bottom = camera.limits
    across, down = camera.fx / z, camera.fy / z
    rows = torch.stack(  # [gaussians, 2, 3] of the Jacobian times the view's rotation
        [
            across[:, None] * rotation[0] - (across * (x / z).clamp(left, right))[:, None] * rotation[2],
            down[:, None] * rotation[1] - (down * (y / z).clamp(top, bottom))[:, None] * rotation[2],
        ],
        dim=1,
    )
    a, b = (rows @ _axes(level)).unbind(1)  # [gaussians, 3] each
    sharp = torch.linalg.cross(a, b).square().sum(-1)
    aa, ab, bb = a.square().sum(-1), (a * b).sum(-1), b.square().sum(-1)
    det = sharp + BLUR * (aa + bb) + BLUR**2
    return torch.stack([bb + BLUR, -ab, aa + BLUR], dim=-1) / det[:, None], (sharp / det).sqrt()


def _axes(level: DeviceScene) -> Tensor:
    """[gaussians, 3, 3]: rotation times scale, the gaussians' axes as columns."""
    w, x, y, z = level.quats.unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=1) * level.scales[:, None]


def _pairs(splats: _Splats, width: int, height: int) -> list[int]:
    """Of each view: how many tiles gsplat will pair with its gaussians."""
    limits = torch.tensor([-(-width // TILE_PX), -(-height // TILE_PX)], device=splats.radii.device)
    low = ((splats.means2d - splats.radii) / TILE_PX).floor().clamp(min=0).minimum(limits)
    high = ((splats.means2d + splats.radii) / TILE_PX).ceil().clamp(min=0).minimum(limits)
    tiles = torch.where(splats.seen, (high - low).prod(-1), 0.0)  # [views, gaussians]
    return [int(count) for count in tiles.sum(-1, dtype=torch.float64).tolist()]


def _colors(level: DeviceScene, splats: _Splats, views: Sequence[View], degree: int) -> Tensor:
    """[views, gaussians, 3]. View by view: gsplat would copy the coefficients for each view of a batch."""
    shades = []
    for view, seen in zip(views, splats.seen, strict=True):
        directions = level.means - _position(view.camera, level.means.device)
        shades.append(gsplat.spherical_harmonics(degree, directions, level.sh, masks=seen))
    return (torch.stack(shades) + 0.5).clamp(min=0)


def _blend(splats: _Splats, colors: Tensor, backgrounds: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Pixels [views, height, width, channels] over the backgrounds, and alphas [views, height, width, 1]."""
    count, across, down = len(colors), -(-width // TILE_PX), -(-height // TILE_PX)
    _, ids, flat_ids = gsplat.isect_tiles(splats.means2d, splats.radii, splats.depths, TILE_PX, across, down)
    starts = gsplat.isect_offset_encode(ids, count, across, down).reshape(count, down, across)
    planes, alphas = gsplat.rasterize_to_pixels(
        splats.means2d, splats.conics, colors, splats.opacities, width, height, TILE_PX, starts, flat_ids,
        backgrounds=backgrounds,
    )  # fmt: skip
    return planes, alphas


def _position(camera: Camera, device: torch.device) -> Tensor:
    rotation = np.reshape(camera.rotation, (3, 3))
    return _tensor(-rotation.T @ np.array(camera.translation), device)  # [3]


def _tensor(array: npt.NDArray[np.float64], device: torch.device) -> Tensor:
    return torch.tensor(array, dtype=torch.float32, device=device)


def _host(plane: Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = plane.contiguous().cpu().numpy()
    return array
