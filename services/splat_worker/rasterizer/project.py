"""Projection: gaussians to ellipses on the frame, and the colour of those that can be seen.

Follows gsplat's `fully_fused_projection` and `spherical_harmonics` (see README.md). Work is split into
chunks of gaussians; a survivor's record goes to its chunk's part of the record buffer, so that chunks need
not wait for one another.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import prange

from services.splat_worker.camera import Camera
from services.splat_worker.rasterizer.compiled import compiled
from services.splat_worker.scene import FloatArray, Scene

CHUNK = 1024  # gaussians projected by one thread at a time
# One record is one cache line of float32.
RECORD = 16
X, Y = 0, 1  # centre in pixels
A, B, C = 2, 3, 4  # log2 of the falloff: A dx^2 + B dx dy + C dy^2, never positive
LOG2_OPACITY = 5  # never positive
RED, GREEN, BLUE = 6, 7, 8
X0, X1, Y0, Y1 = 9, 10, 11, 12  # first and last pixel that it may reach, inside the frame
REACH = 13  # log2 of the falloff at which alpha is 1/255, never positive
DISC = 14  # B^2 - 4 A C, from the covariance's determinant: free of cancellation, always negative
DEPTH = 15  # distance along the camera's axis

_F = np.float32
_NEAR, _FAR = _F(0.01), _F(1e10)
_BLUR = _F(0.3)  # added to both variances, in px^2
_MAX_SIGMAS_SQUARED = _F(3.33 * 3.33)
_LOG2_E = _F(math.log2(math.e))
_HALF, _ONE, _TWO, _ZERO = _F(0.5), _F(1), _F(2), _F(0)
_MARGIN_PX = _F(0.01)  # the box is worth rounding outwards by: far under a pixel, far over float32's error


@dataclass(frozen=True)
class Projection:
    """What can be seen: records [gaussians, RECORD] with gaps, and per survivor (in scene order) where its
    record is."""

    records: FloatArray
    depth_keys: npt.NDArray[np.uint32]  # [visible] depth as sortable bits
    slots: npt.NDArray[np.int32]  # [visible] row of `records`
    sources: npt.NDArray[np.int32]  # [gaussians] row of `records` -> gaussian
    ms: float

    @property
    def visible(self) -> int:
        return len(self.slots)


def camera_constants(camera: Camera) -> FloatArray:
    """What the kernel needs of a camera: [rotation 9, translation 3, position 3, fx, fy, cx, cy, limits
    4]."""
    rotation = np.reshape(camera.rotation, (3, 3))
    position = -rotation.T @ np.array(camera.translation)
    lens = (camera.fx, camera.fy, camera.cx, camera.cy)
    return np.array((*camera.rotation, *camera.translation, *position, *lens, *camera.limits), dtype=np.float32)


@dataclass(frozen=True)
class ProjectionBuffers:
    """Memory that a projection writes to, for scenes of up to `len(sources)` gaussians."""

    records: FloatArray  # [gaussians, RECORD]
    keys: npt.NDArray[np.uint32]  # [gaussians]
    sources: npt.NDArray[np.int32]  # [gaussians]
    dense_keys: npt.NDArray[np.uint32]  # [gaussians]
    dense_slots: npt.NDArray[np.int32]  # [gaussians]
    spare_slots: npt.NDArray[np.int32]  # [gaussians]

    @staticmethod
    def allocate(count: int) -> "ProjectionBuffers":
        # Records start on a cache line, so that each of them is exactly one.
        floats = np.empty(count * RECORD + RECORD, dtype=np.float32)
        skip = (-floats.ctypes.data % 64) // 4
        return ProjectionBuffers(
            records=floats[skip : skip + count * RECORD].reshape(count, RECORD),
            keys=np.empty(count, dtype=np.uint32),
            sources=np.empty(count, dtype=np.int32),
            dense_keys=np.empty(count, dtype=np.uint32),
            dense_slots=np.empty(count, dtype=np.int32),
            spare_slots=np.empty(count, dtype=np.int32),
        )


def project(scene: Scene, camera: Camera, sh_degree: int, antialiased: bool, buffers: ProjectionBuffers) -> Projection:
    """Project and colour the scene's gaussians; `ms` is left to the caller's clock."""
    constants = camera_constants(camera)
    found = np.zeros(-(-scene.count // CHUNK), dtype=np.int64)
    _project_kernel(
        scene.means, scene.quats, scene.scales, scene.opacities, scene.sh, sh_degree, antialiased, constants,
        camera.width, camera.height, buffers.records, buffers.keys, buffers.sources, found,
    )  # fmt: skip
    ends = np.cumsum(found)
    _gather_kernel(found, ends, buffers.keys, buffers.dense_keys, buffers.dense_slots)
    visible = int(ends[-1]) if len(ends) else 0
    return Projection(
        records=buffers.records,
        depth_keys=buffers.dense_keys[:visible],
        slots=buffers.dense_slots[:visible],
        sources=buffers.sources,
        ms=0.0,
    )


@compiled()
def sh_basis(degree: int, x: float, y: float, z: float, basis: FloatArray) -> None:
    """Real SH basis up to `degree` at a unit direction (Sloan, JCGT 2013), as gsplat orders it."""
    basis[0] = _F(0.2820947917738781)
    if degree < 1:
        return
    basis[1] = _F(-0.48860251190292) * y
    basis[2] = _F(0.48860251190292) * z
    basis[3] = _F(-0.48860251190292) * x
    if degree < 2:
        return
    zz = z * z
    t1 = _F(-1.092548430592079) * z
    c1 = x * x - y * y
    s1 = _TWO * x * y
    basis[4] = _F(0.5462742152960395) * s1
    basis[5] = t1 * y
    basis[6] = _F(0.9461746957575601) * zz - _F(0.3153915652525201)
    basis[7] = t1 * x
    basis[8] = _F(0.5462742152960395) * c1
    if degree < 3:
        return
    t2 = _F(-2.285228997322329) * zz + _F(0.4570457994644658)
    t3 = _F(1.445305721320277) * z
    basis[9] = _F(-0.5900435899266435) * (x * s1 + y * c1)
    basis[10] = t3 * s1
    basis[11] = t2 * y
    basis[12] = z * (_F(1.865881662950577) * zz - _F(1.119528997770346))
    basis[13] = t2 * x
    basis[14] = t3 * c1
    basis[15] = _F(-0.5900435899266435) * (x * c1 - y * s1)


@compiled(parallel=True)
def _project_kernel(
    means: FloatArray,
    quats: FloatArray,
    scales: FloatArray,
    opacities: FloatArray,
    sh: FloatArray,
    degree: int,
    antialiased: bool,
    cam: FloatArray,
    width: int,
    height: int,
    records: FloatArray,
    keys: npt.NDArray[np.uint32],
    sources: npt.NDArray[np.int32],
    found: npt.NDArray[np.int64],
) -> None:
    count = len(means)
    coefficients = (degree + 1) * (degree + 1)
    last_x, last_y = _F(width - 1), _F(height - 1)
    r00, r01, r02, r10, r11, r12 = cam[0], cam[1], cam[2], cam[3], cam[4], cam[5]
    r20, r21, r22, t0, t1, t2 = cam[6], cam[7], cam[8], cam[9], cam[10], cam[11]
    eye_x, eye_y, eye_z = cam[12], cam[13], cam[14]
    fx, fy, cx, cy = cam[15], cam[16], cam[17], cam[18]
    for chunk in prange(len(found)):
        basis = np.empty(16, np.float32)
        slot = chunk * CHUNK
        for i in range(chunk * CHUNK, min(count, (chunk + 1) * CHUNK)):
            mx, my, mz = means[i, 0], means[i, 1], means[i, 2]
            z = r20 * mx + r21 * my + r22 * mz + t2
            opacity = opacities[i]
            if not (z > _NEAR and z < _FAR and opacity * _F(255) >= _ONE):
                continue
            x = r00 * mx + r01 * my + r02 * mz + t0
            y = r10 * mx + r11 * my + r12 * mz + t1
            inv_z = _ONE / z

            # Camera-space axes of the gaussian: view rotation times quaternion rotation times scale.
            qw, qx, qy, qz = quats[i, 0], quats[i, 1], quats[i, 2], quats[i, 3]
            s0, s1, s2 = scales[i, 0], scales[i, 1], scales[i, 2]
            m00 = (_ONE - _TWO * (qy * qy + qz * qz)) * s0
            m10 = _TWO * (qx * qy + qw * qz) * s0
            m20 = _TWO * (qx * qz - qw * qy) * s0
            m01 = _TWO * (qx * qy - qw * qz) * s1
            m11 = (_ONE - _TWO * (qx * qx + qz * qz)) * s1
            m21 = _TWO * (qy * qz + qw * qx) * s1
            m02 = _TWO * (qx * qz + qw * qy) * s2
            m12 = _TWO * (qy * qz - qw * qx) * s2
            m22 = (_ONE - _TWO * (qx * qx + qy * qy)) * s2

            # Jacobian of the projection, at the clamped direction; rows times the view rotation.
            jx = min(max(x * inv_z, cam[19]), cam[20]) * inv_z * fx
            jy = min(max(y * inv_z, cam[21]), cam[22]) * inv_z * fy
            gx, gy = fx * inv_z, fy * inv_z
            u0, u1, u2 = gx * r00 - jx * r20, gx * r01 - jx * r21, gx * r02 - jx * r22
            v0, v1, v2 = gy * r10 - jy * r20, gy * r11 - jy * r21, gy * r12 - jy * r22
            a0, a1, a2 = (
                u0 * m00 + u1 * m10 + u2 * m20,
                u0 * m01 + u1 * m11 + u2 * m21,
                u0 * m02 + u1 * m12 + u2 * m22,
            )
            b0, b1, b2 = (
                v0 * m00 + v1 * m10 + v2 * m20,
                v0 * m01 + v1 * m11 + v2 * m21,
                v0 * m02 + v1 * m12 + v2 * m22,
            )
            cov_xx = a0 * a0 + a1 * a1 + a2 * a2 + _BLUR
            cov_xy = a0 * b0 + a1 * b1 + a2 * b2
            cov_yy = b0 * b0 + b1 * b1 + b2 * b2 + _BLUR
            # |a x b|^2 is the unblurred determinant without the cancellation that ruins a needle's.
            n0, n1, n2 = a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0
            sharp_det = n0 * n0 + n1 * n1 + n2 * n2
            det = sharp_det + _BLUR * (cov_xx + cov_yy - _BLUR)
            if antialiased:
                opacity *= math.sqrt(sharp_det / det)
                if not opacity * _F(255) >= _ONE:
                    continue

            # Pixels where alpha can reach 1/255; NaN fails every comparison and drops out.
            reach = _TWO * math.log(opacity * _F(255))
            sigmas_squared = min(reach, _MAX_SIGMAS_SQUARED)
            radius_x = math.sqrt(sigmas_squared * cov_xx) + _MARGIN_PX
            radius_y = math.sqrt(sigmas_squared * cov_yy) + _MARGIN_PX
            px, py = fx * x * inv_z + cx, fy * y * inv_z + cy
            x0 = max(np.ceil(px - radius_x - _HALF), _ZERO)
            y0 = max(np.ceil(py - radius_y - _HALF), _ZERO)
            x1 = min(np.floor(px + radius_x - _HALF), last_x)
            y1 = min(np.floor(py + radius_y - _HALF), last_y)
            if not (x0 <= x1 and y0 <= y1 and det < _F(np.inf) and px == px and py == py):
                continue

            scale = _LOG2_E / det
            record = records[slot]
            record[X] = px
            record[Y] = py
            record[A] = -_HALF * cov_yy * scale
            record[B] = cov_xy * scale
            record[C] = -_HALF * cov_xx * scale
            record[LOG2_OPACITY] = math.log(opacity) * _LOG2_E
            record[X0] = x0
            record[X1] = x1
            record[Y0] = y0
            record[Y1] = y1
            record[REACH] = -_HALF * reach * _LOG2_E
            record[DISC] = -scale * _LOG2_E
            record[DEPTH] = z

            dx, dy, dz = mx - eye_x, my - eye_y, mz - eye_z
            unit = _ONE / math.sqrt(max(dx * dx + dy * dy + dz * dz, _F(1e-24)))
            sh_basis(degree, dx * unit, dy * unit, dz * unit, basis)
            red, green, blue = _HALF, _HALF, _HALF
            for k in range(coefficients):
                red += basis[k] * sh[i, k, 0]
                green += basis[k] * sh[i, k, 1]
                blue += basis[k] * sh[i, k, 2]
            record[RED] = max(red, _ZERO)
            record[GREEN] = max(green, _ZERO)
            record[BLUE] = max(blue, _ZERO)

            keys[slot] = np.float32(z).view(np.uint32)
            sources[slot] = i
            slot += 1
        found[chunk] = slot - chunk * CHUNK


@compiled(parallel=True)
def _gather_kernel(
    found: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    keys: npt.NDArray[np.uint32],
    dense_keys: npt.NDArray[np.uint32],
    dense_slots: npt.NDArray[np.int32],
) -> None:
    for chunk in prange(len(found)):
        first = ends[chunk] - found[chunk]
        for i in range(found[chunk]):
            dense_keys[first + i] = keys[chunk * CHUNK + i]
            dense_slots[first + i] = chunk * CHUNK + i
