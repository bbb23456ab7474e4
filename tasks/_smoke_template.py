"""The head that the smoke cohort is made of: ICBM152, read once, with its ventricles found.

ICBM 2009a nonlinear symmetric: T1 and maps of grey and white matter, 1 mm, brain only, as shipped
by nilearn (Fonov et al., NeuroImage 54:313, 2011). It is the average of 152 adults: no real person.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..benchmark.errors import DataError
from ..benchmark.types import Shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

SHAPE: Shape = (48, 56, 48)
SPACING_MM = 4.0
"""The grid of every subject, RAS+: 192 x 224 x 192 mm, brain and margin."""

REACH_MM = 8.0
"""SD of the Gaussian with which the shift of the ventricles' wall fades with distance."""

TEMPLATE_SHA256 = "79197a4e816fe769af4e19e1f4964dc9965936606e35813a8a6afa06ff95b70c"
"""Of the three template arrays. Another template would be another cohort under the same name."""


@dataclass(frozen=True)
class Template:
    """The head, blurred to the subject's voxel size and sampled at 2 mm."""

    channels: Array
    """(5, 96, 112, 96): T1 in [0, 1], and fractions of grey, white, ventricle and brain."""
    outward: Array
    """(3, 48, 56, 48): away from the ventricles' wall, length 1 at the wall, fading."""
    reached: NDArray[np.bool_]
    """(48, 56, 48): voxels that the head of some subject may cover."""


@cache
def template() -> Template:
    """Read and prepare the head: about 3 s, once per process.

    Raises:
        DataError: nilearn is missing, or ships other images than the cohort was made from.
    """
    from scipy import ndimage

    t1, grey, white = (_field_of_view(a.astype(np.float64) / 255) for a in _template_arrays())
    ventricle = _lateral_ventricles(grey + white)
    t1, grey, white = (_at_2_mm(a) for a in (t1, grey, white))
    brain = ndimage.binary_closing(grey + white > 0.5, iterations=3)
    brain = np.asarray(ndimage.binary_fill_holes(brain), np.float64)
    channels = np.stack([t1, grey, white, _at_2_mm(ventricle), brain])
    reached = np.asarray(ndimage.binary_dilation(_halved(brain) > 0, iterations=5), bool)  # 20 mm
    return Template(channels, _outward(ventricle), reached)


def _template_arrays() -> list[NDArray[np.uint8]]:
    """T1, grey and white, (197, 233, 189) uint8 at 1 mm, RAS+; found without importing nilearn."""
    from nibabel.nifti1 import Nifti1Image

    found = importlib.util.find_spec("nilearn")
    if found is None or found.origin is None:
        raise DataError(
            "The smoke cohort is made from the ICBM152 head that the package nilearn ships, and "
            "nilearn is not installed. Run: pip install nilearn"
        )
    folder = Path(found.origin).parent / "datasets" / "data"
    arrays: list[NDArray[np.uint8]] = []
    digest = hashlib.sha256()
    for kind in ("t1", "gm", "wm"):
        path = folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
        try:
            array = np.asanyarray(Nifti1Image.from_filename(path).dataobj)
        except OSError as error:
            raise DataError(
                f"The smoke cohort needs {path}, which cannot be read ({error}). Install the "
                "nilearn of constraints.txt."
            ) from error
        digest.update(array.tobytes())
        arrays.append(array)
    if digest.hexdigest() != TEMPLATE_SHA256:
        raise DataError(
            f"The ICBM152 images in {folder} are not those the smoke cohort was made from: "
            "another head would be another cohort under the same name. Install the nilearn of "
            "constraints.txt."
        )
    return arrays


def _field_of_view(array: Array) -> Array:
    """(197, 233, 189) at 1 mm -> (192, 224, 192), the brain's center at the center.

    The brain spans 27-169, 28-207, 1-154 of the voxel indices.
    """
    return np.pad(array[2:194, 5:229], ((0, 0), (0, 0), (18, 0)))[:, :, :192]


def _lateral_ventricles(tissue: Array) -> NDArray[np.bool_]:
    """The largest pool of fluid that a box around the lateral ventricles encloses: 17.8 ml.

    Args:
        tissue: fraction of grey and white matter, (192, 224, 192) at 1 mm.
    """
    from scipy import ndimage

    # MNI x -42..42, y -62..45, z -15..35 mm; voxel 0 of the grid is at -96, -129, -90
    box = (slice(54, 139), slice(67, 175), slice(75, 126))
    pools = np.zeros(tissue[box].shape, np.int32)
    ndimage.label(tissue[box] < 0.5, output=pools)
    size = np.bincount(pools.ravel())
    size[0] = 0
    for axis in range(3):  # what touches the border is the fluid around the brain
        for end in (0, -1):
            size[pools.take(end, axis)] = 0
    ventricle = np.zeros(tissue.shape, bool)
    ventricle[box] = pools == size.argmax()
    return ventricle


def _outward(ventricle: NDArray[np.bool_]) -> Array:
    """Gradient of the distance from the wall, weighted by a Gaussian of that distance, at 4 mm."""
    from scipy import ndimage

    # 40 mm around the box above: five SDs of the Gaussian
    near = (slice(14, 178), slice(26, 214), slice(34, 166))
    inside = ventricle[near]
    outer, inner = np.zeros(inside.shape), np.zeros(inside.shape)
    ndimage.distance_transform_edt(~inside, distances=outer)
    ndimage.distance_transform_edt(inside, distances=inner)
    signed = outer - inner
    distance = np.full(ventricle.shape, signed.max())
    distance[near] = signed  # mm, positive outside
    distance = _halved(_at_2_mm(distance))
    slope = np.stack([np.gradient(distance, SPACING_MM, axis=axis) for axis in range(3)])
    return slope * np.exp(-0.5 * (distance / REACH_MM) ** 2)


def _at_2_mm(array: Array | NDArray[np.bool_]) -> Array:
    """Blur by a box of 3 mm, then average 2 x 2 x 2 voxels: together close to a 4 mm voxel."""
    from scipy import ndimage

    return _halved(ndimage.uniform_filter(array.astype(np.float64), 3, mode="nearest"))


def _halved(array: Array) -> Array:
    x, y, z = (n // 2 for n in array.shape)
    return array.reshape(x, 2, y, 2, z, 2).mean(axis=(1, 3, 5))
