"""gsplat's own torch path as the judge of our pixels.

gsplat 1.5.3 projects, shades and composites in plain torch (`gsplat.rendering._rasterization`), but asks
CUDA for the tile lists, for which gaussian reaches which pixel, and for nerfacc's scans. Those few are
given here in torch, slow and plain. With them gsplat's public functions run on a CPU too, for batches of views.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from services.splat_worker.camera import Camera
from services.splat_worker.scene import Scene

MIN_ALPHA, MIN_TRANSMITTANCE = 1 / 255, 1e-4


@dataclass(frozen=True)
class Judged:
    """A frame as gsplat has it, in float64: its maths, not its rounding."""

    rgb: npt.NDArray[np.float64]  # [height, width, 3]
    alpha: npt.NDArray[np.float64]  # [height, width]
    depth: npt.NDArray[np.float64]  # [height, width], gsplat's D
    expected_depth: npt.NDArray[np.float64]  # [height, width], gsplat's ED


def judge(
    scene: Scene,
    camera: Camera,
    background: tuple[float, float, float] = (0, 0, 0),
    sh_degree: int | None = None,
    antialiased: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Judged:
    """The frame in gsplat's mode RGB+D, classic or antialiased; its ED is D over alpha."""
    import gsplat.rendering

    arrays = (scene.means, scene.quats, scene.scales, scene.opacities, scene.sh)
    with torch.no_grad(), without_cuda():
        pixels, alphas, _ = gsplat.rendering._rasterization(
            *(torch.tensor(array, dtype=dtype) for array in arrays),
            viewmats=torch.tensor(camera.viewmat, dtype=dtype)[None],
            Ks=torch.tensor(camera.k, dtype=dtype)[None],
            width=camera.width,
            height=camera.height,
            sh_degree=scene.sh_degree if sh_degree is None else sh_degree,
            backgrounds=torch.tensor([background], dtype=dtype),
            render_mode="RGB+D",
            rasterize_mode="antialiased" if antialiased else "classic",
        )
    frame, alpha = pixels[0].numpy(), alphas[0, ..., 0].numpy()
    return Judged(frame[..., :3], alpha, frame[..., 3], frame[..., 3] / alpha.clip(min=1e-10))


@contextlib.contextmanager
def without_cuda() -> Iterator[None]:
    """What gsplat and nerfacc do in CUDA only, for the duration."""
    import gsplat.rendering
    import nerfacc.cuda
    import nerfacc.volrend
    from gsplat.cuda import _torch_impl, _wrapper

    with contextlib.ExitStack() as patches:
        for module, name, twin in (
            (_wrapper, "rasterize_to_indices_in_range", _reached),
            (nerfacc.volrend, "pack_info", _pack_info),
            (nerfacc.cuda, "exclusive_prod_forward", _exclusive_prod),
            (gsplat, "fully_fused_projection", _project),
            (gsplat, "rasterize_to_pixels", _torch_impl._rasterize_to_pixels),
            *((module, "isect_tiles", _isect_tiles) for module in (gsplat, gsplat.rendering)),
            *(
                (module, "isect_offset_encode", _torch_impl._isect_offset_encode)
                for module in (gsplat, gsplat.rendering)
            ),
            *((module, "spherical_harmonics", _shade) for module in (gsplat, gsplat.rendering)),
        ):
            patches.enter_context(mock.patch.object(module, name, twin))
        yield


def _project(
    means: Tensor, covars: None, quats: Tensor, scales: Tensor, viewmats: Tensor, ks: Tensor, width: int, height: int,
    *, opacities: Tensor,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """gsplat's torch projection with the arguments of its CUDA one; opacities only narrow what that draws."""
    from gsplat.cuda import _torch_impl

    shapes, _ = _torch_impl._quat_scale_to_covar_preci(quats, scales, compute_preci=False)
    return _torch_impl._fully_fused_projection(means, shapes, viewmats, ks, width, height)


def _shade(degree: int, directions: Tensor, coefficients: Tensor, masks: Tensor) -> Tensor:
    from gsplat.cuda import _torch_impl

    return _torch_impl._spherical_harmonics(degree, directions, coefficients)


def _isect_tiles(
    means2d: Tensor, radii: Tensor, depths: Tensor, tile: int, across: int, down: int, **_: object
) -> tuple[Tensor, Tensor, Tensor]:
    """`_torch_impl._isect_tiles` without its Python double loop; the sort is stable, as CUDA's is."""
    found = [_tiles_of_image(*planes, tile, across, down) for planes in zip(means2d, radii, depths, strict=True)]
    image_bit = (across * down).bit_length() + 32
    return (
        torch.stack([counts for counts, _, _ in found]),
        torch.cat([keys | image << image_bit for image, (_, keys, _) in enumerate(found)]),
        torch.cat([ids + image * means2d.shape[1] for image, (_, _, ids) in enumerate(found)]),
    )


def _tiles_of_image(
    means2d: Tensor, radii: Tensor, depths: Tensor, tile: int, across: int, down: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Per gaussian how many tiles it reaches, then for each of them its tile and depth, in order, and the gaussian."""
    limit = torch.tensor([across, down])
    first = torch.floor((means2d - radii) / tile).clamp(torch.zeros(2), limit).long()
    last = torch.ceil((means2d + radii) / tile).clamp(torch.zeros(2), limit).long()
    sides = (last - first) * (radii > 0).all(-1, keepdim=True)
    counts = sides.prod(-1)
    ids = torch.repeat_interleave(torch.arange(len(counts)), counts)
    within = torch.arange(len(ids)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    column = first[ids, 0] + within % sides[ids, 0].clamp(min=1)
    row = first[ids, 1] + within // sides[ids, 0].clamp(min=1)
    depth_bits = depths.float().contiguous().view(torch.int32).long()[ids]
    keys, order = torch.sort(((row * across + column) << 32) | depth_bits, stable=True)
    return counts.int(), keys, ids[order].int()


def _reached(
    start: int, end: int, transmittances: Tensor, means2d: Tensor, conics: Tensor, opacities: Tensor,
    width: int, height: int, tile: int, offsets: Tensor, flatten_ids: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gaussians that reach each pixel, as the CUDA kernel decides it: front to back until 1e-4 would be
    left."""
    bounds = torch.cat([offsets.flatten(), torch.tensor([len(flatten_ids)])]).tolist()
    found_gaussians, found_pixels = [torch.empty(0, dtype=torch.long)], [torch.empty(0, dtype=torch.long)]
    down, across = offsets.shape[-2:]
    for index in range(len(bounds) - 1):
        low = bounds[index] + start * tile * tile
        high = min(bounds[index + 1], bounds[index] + end * tile * tile)
        if low >= high:
            continue
        ids = flatten_ids[low:high].long() % means2d.shape[1]
        image, here = divmod(index, down * across)
        top, left = here // across * tile, here % across * tile
        rows, columns = torch.meshgrid(
            torch.arange(top, min(top + tile, height)),
            torch.arange(left, min(left + tile, width)),
            indexing="ij",
        )
        rows, columns = rows.flatten(), columns.flatten()
        dx = columns[:, None] + 0.5 - means2d[image, ids, 0]
        dy = rows[:, None] + 0.5 - means2d[image, ids, 1]
        a, b, c = conics[image, ids].unbind(-1)
        sigma = 0.5 * (a * dx**2 + c * dy**2) + b * dx * dy  # [pixels, gaussians]
        alpha = (opacities[image, ids] * torch.exp(-sigma)).clamp(max=0.999)
        drawn = (sigma >= 0) & (alpha >= MIN_ALPHA)
        left_over = transmittances[image, rows, columns][:, None] * torch.cumprod(1 - alpha * drawn, dim=-1)
        pixel, gaussian = torch.nonzero(drawn & (left_over > MIN_TRANSMITTANCE), as_tuple=True)
        found_gaussians.append(ids[gaussian])
        found_pixels.append((image * height * width + rows * width + columns)[pixel])
    pixels, order = torch.sort(torch.cat(found_pixels), stable=True)
    return torch.cat(found_gaussians)[order], pixels % (height * width), pixels // (height * width)


def _pack_info(ray_indices: Tensor, n_rays: int) -> Tensor:
    counts = torch.bincount(ray_indices, minlength=n_rays)
    return torch.stack([counts.cumsum(0) - counts, counts], dim=-1)


def _exclusive_prod(starts: Tensor, counts: Tensor, inputs: Tensor) -> Tensor:
    """Per ray 1, x0, x0 x1, ...: rays padded to the longest, in blocks that keep memory small."""
    out = torch.ones_like(inputs)
    rays = torch.nonzero(counts > 1)[:, 0]
    for block in rays.split(4096) if len(rays) else ():
        longest = int(counts[block].max())
        lane = torch.arange(longest)
        inside = lane < counts[block][:, None]
        at = (starts[block][:, None] + lane).clamp(max=len(inputs) - 1)
        padded = torch.where(inside, inputs[at], torch.ones((), dtype=inputs.dtype))
        shifted = torch.cat([torch.ones_like(padded[:, :1]), padded.cumprod(dim=-1)[:, :-1]], dim=-1)
        out[at[inside]] = shifted[inside]
    return out


def psnr_db(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float64]) -> float:
    """PSNR of values whose peak is 1; infinite for equal ones."""
    error = float(np.mean((ours.astype(np.float64) - theirs) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)
