"""How far a predicted label map is from the true one, per class, on the voxels of the image.

Definitions are those that Metrics Reloaded recommends (Maier-Hein et al., Nature Methods 21 (2024)
195, supplementary note 3) on the surface as voxels:

surface
    The voxels of a class of which one of the six neighbors is outside it; what lies beyond the
    image is outside. Distances are between centers of voxels, in mm.
Dice
    2 |A and B| / (|A| + |B|), in voxels.
NSD, the normalised surface distance
    The share of both surfaces, taken together, that lies within the tolerance of the other one
    (Nikolov et al., arXiv:1809.04430). Of the Medical Segmentation Decathlon, too (Antonelli et
    al., Nature Communications 13 (2022) 4128), whose code weighs each part of a surface by its
    area, where here each voxel counts once.
HD95
    The larger of two 95th percentiles: of the distances from the true surface to the predicted
    one, and of those from the predicted to the true one.

A class that is neither in the truth nor in the prediction is not counted: NaN. One that is in only
one of them scores Dice 0, NSD 0 and, as HD95, the diagonal of the image: the worst there is, so
that leaving a structure out never pays.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np

from .errors import MaskError
from .types import Triple

ROUNDING_MM = 1e-3
"""Surfaces exactly a tolerance apart are within it, though spacings are rounded: a tolerance is
often a whole number of voxels."""

PERCENTILE = 95


def measures(
    truth: np.ndarray,
    predicted: np.ndarray,
    spacing: Triple,
    n_classes: int,
    tolerance_mm: float,
) -> dict[str, float]:
    """Score one label map against the true one.

    Args:
        truth: (X, Y, Z) integers, 0 background, k the class k.
        predicted: (X, Y, Z) likewise.
        spacing: mm along X, Y, Z.
        n_classes: K, with the background, which is not scored.
        tolerance_mm: of the NSD.

    Returns:
        For each class k in 1..K-1 ``dice_k`` and ``nsd_k``, in [0, 1], and ``hd95_k`` in mm; NaN
        where the class is in neither map.

    Raises:
        MaskError: shapes differ, or a label is not one of the K.
    """
    from scipy.ndimage import find_objects

    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.ndim != 3 or truth.shape != predicted.shape:
        raise MaskError(
            f"The prediction has {predicted.shape} voxels and the truth {truth.shape}. Both have "
            "to be label maps (X, Y, Z) on the voxels of the image."
        )
    for what, labels in (("prediction", predicted), ("truth", truth)):
        low, high = labels.min(initial=0), labels.max(initial=0)
        if labels.dtype.kind not in "iu" or low < 0 or high >= n_classes:
            raise MaskError(
                f"The {what} has {labels.dtype} labels from {low} to {high}; integers from 0 to "
                f"{n_classes - 1} are expected, one for each class of the task."
            )
    boxes = find_objects(truth, n_classes - 1), find_objects(predicted, n_classes - 1)
    extent = [n * s for n, s in zip(truth.shape, spacing, strict=True)]
    worst = {"dice": 0.0, "nsd": 0.0, "hd95": math.hypot(*extent)}
    found: dict[str, float] = {}
    for k, (a, b) in enumerate(zip(*boxes, strict=True), start=1):
        if a is None and b is None:
            scores = dict.fromkeys(worst, math.nan)
        elif a is None or b is None:
            scores = worst
        else:
            box = tuple(
                slice(min(p.start, q.start), max(p.stop, q.stop)) for p, q in zip(a, b, strict=True)
            )
            scores = _of_class(truth[box] == k, predicted[box] == k, spacing, tolerance_mm)
        found |= {f"{name}_{k}": value for name, value in scores.items()}
    return found


def surface(mask: np.ndarray) -> np.ndarray:
    """(X, Y, Z) bool: the voxels of a mask with a neighbor outside it; six neighbors."""
    padded = np.pad(mask, 1)
    inside = mask.copy()
    for axis, side in product(range(3), (0, 2)):
        shift = [slice(1, -1)] * 3
        shift[axis] = slice(side, side + mask.shape[axis])
        inside &= padded[tuple(shift)]
    return mask & ~inside


def _of_class(
    truth: np.ndarray, predicted: np.ndarray, spacing: Triple, tolerance_mm: float
) -> dict[str, float]:
    """Scores of two masks (X, Y, Z) of which none is empty."""
    shared, total = (int(x) for x in ((truth & predicted).sum(), truth.sum() + predicted.sum()))
    a, b = surface(truth), surface(predicted)
    to_truth = _distances(a, spacing)[b]
    to_predicted = _distances(b, spacing)[a]
    both = np.concatenate([to_truth, to_predicted])
    return {
        "dice": 2 * shared / total,
        "nsd": float((both <= tolerance_mm + ROUNDING_MM).mean()),
        "hd95": float(max(np.percentile(d, PERCENTILE) for d in (to_truth, to_predicted))),
    }


def _distances(points: np.ndarray, spacing: Triple) -> np.ndarray:
    """(X, Y, Z) float32 mm from every voxel to the nearest of the points, (X, Y, Z) bool."""
    from edt import edt

    # one thread: cases are many and cores few
    return edt(~points, anisotropy=spacing, black_border=False, parallel=1)
