"""Where a glTF scene's nodes put its meshes: a move, a turn and an even scale, which gaussians can follow."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headway.errors import BadInput
from services.splat_worker.readers.gltf_document import Document, Node
from services.splat_worker.scene import FloatArray

Matrix = npt.NDArray[np.float64]
MAX_NODES = 4096
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Placement:
    """A mesh at one place of the scene."""

    mesh: int
    rotation: Matrix  # [3, 3], orthonormal, not mirrored
    scale: float
    translation: Matrix  # [3]

    @property
    def is_upright(self) -> bool:
        """Whether nothing is turned."""
        return bool(np.allclose(self.rotation, np.eye(3), atol=1e-7))

    def moved(self, means: FloatArray) -> FloatArray:
        """Means [gaussians, 3] in the scene."""
        moved: FloatArray = means @ (self.scale * self.rotation).T.astype(np.float32)
        return moved + self.translation.astype(np.float32)

    def turned(self, quats: FloatArray) -> FloatArray:
        """Rotations [gaussians, 4] wxyz in the scene."""
        if self.is_upright:
            return quats
        w, x, y, z = _quat(self.rotation)
        left = np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])
        turned: FloatArray = quats @ left.T.astype(np.float32)
        return turned


def placements(document: Document) -> Iterator[Placement]:
    """Every mesh that the default scene shows, once for each node; without a scene, every mesh where it is.

    Raises BadInput for nodes that form no tree, and for those that mirror or stretch.
    """
    if not document.scenes:
        yield from (Placement(mesh, np.eye(3), 1.0, np.zeros(3)) for mesh in range(len(document.meshes)))
        return
    number = document.scene or 0
    if number >= len(document.scenes):
        raise BadInput("scene", f"{number}; there are {len(document.scenes)}")
    waiting = [(node, np.eye(4)) for node in document.scenes[number].nodes]
    seen = set[int]()
    while waiting:
        index, parent = waiting.pop(0)
        if index >= len(document.nodes) or index in seen or len(seen) == MAX_NODES:
            raise BadInput(f"nodes.{index}", f"is not there, has two parents, or is one of more than {MAX_NODES}")
        seen.add(index)
        node = document.nodes[index]
        world = parent @ _matrix(node)
        waiting.extend((child, world) for child in node.children)
        if node.mesh is not None:
            if node.mesh >= len(document.meshes):
                raise BadInput(f"nodes.{index}.mesh", f"{node.mesh}; there are {len(document.meshes)}")
            yield _placement(node.mesh, world, index)


def _matrix(node: Node) -> Matrix:
    if node.matrix is not None:
        return np.array(node.matrix, dtype=np.float64).reshape(4, 4).T
    x, y, z, w = np.array(node.rotation) / max(float(np.linalg.norm(node.rotation)), 1e-12)
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    ) * np.array(node.scale)
    matrix[:3, 3] = node.translation
    return matrix


def _placement(mesh: int, world: Matrix, index: int) -> Placement:
    linear = world[:3, :3]
    with np.errstate(all="ignore"):
        scale = float(np.cbrt(np.linalg.det(linear)))
        even = scale > 0 and np.allclose(linear.T @ linear, scale**2 * np.eye(3), atol=_TOLERANCE * scale**2, rtol=0)
    if not (even and np.isfinite(world).all() and np.array_equal(world[3], [0, 0, 0, 1])):
        raise BadInput(f"nodes.{index}", "mirrors, stretches or shears; gaussians can be moved, turned and scaled")
    return Placement(mesh, linear / scale, scale, world[:3, 3])


def _quat(rotation: Matrix) -> tuple[float, float, float, float]:
    """wxyz of a rotation: the eigenvector of Bar-Itzhack's symmetric matrix with the largest eigenvalue."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    symmetric = np.array(
        [
            [xx - yy - zz, 0, 0, 0],
            [yx + xy, yy - xx - zz, 0, 0],
            [zx + xz, zy + yz, zz - xx - yy, 0],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    x, y, z, w = np.linalg.eigh(symmetric / 3)[1][:, -1]  # reads the lower triangle
    return float(w), float(x), float(y), float(z)
