"""Bring one simulated head onto another, whose deformation is known.

Input: 20 pairs of patients of the smoke cohort's test side, 48x56x48 at 4 mm, simulated T1 MR.
Truth: the displacement from each voxel of the head to its point in the other head, through the
template that both were made of; and the tissue maps of both.
Split: all pairs are tested.
License: of the ICBM152 template; made on this machine, nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..benchmark.targets import Labels, Pair
from ..benchmark.types import Case, Seat, Task, TaskCard
from . import _smoke

if TYPE_CHECKING:
    import numpy as np

PAIRS = tuple((fixed, fixed + 1) for fixed in range(140, 240, 5))
"""Indices of the fixed and the moving patient: nobody is in two pairs."""

TURNS = 30
"""Of the fixed-point iteration that inverts a deformation: its gradient is below 0.6, and 0.6 to
the 30th power of the 10 mm at most is 2 micrometers."""

CARD = TaskCard(
    name="smoke_pairs",
    version=1,
    title="One simulated head onto another",
    kind="registration",
    modality="MR",
    anatomy=_smoke.ANATOMY,
    metric="epe",
    license=_smoke.LICENSE,
    source=_smoke.SOURCE,
    citation=_smoke.CITATION,
    counts={"cases": len(PAIRS), "patients": len(PAIRS), "test": len(PAIRS)},
    classes=("background", "CSF", "grey matter", "white matter", "lateral ventricles"),
    lattice_mm=(4.0, 4.0, 4.0),  # the images' own
    forward_voxels=2**24,  # ours: twice the head at 1 mm
    data_set="smoke_pairs",
    note=_smoke.NOTE + " The true displacement is known; the error is taken inside the fixed head.",
    evidence=False,
)

_SCANS = _smoke.task(CARD, lambda row: 0)


def cases(root: Path) -> Sequence[Case]:
    """The pairs; made on first use."""
    made = _smoke.cohort()
    scans = _SCANS.cases(root)
    return [
        replace(scans[fixed], target=_pair(made, scans[moving], fixed, moving), split="test")
        for fixed, moving in PAIRS
    ]


def _pair(made: _smoke.Cohort, scan: Case, fixed: int, moving: int) -> Pair:
    def digest() -> str:
        rows = [made.rows[index].sha256 for index in (fixed, moving)]
        return hashlib.sha256("\n".join(["through the template", *rows]).encode()).hexdigest()

    return Pair(
        scan.load,
        digest,
        _tissue(made, fixed),
        _tissue(made, moving),
        lambda: between(made, fixed, moving),
    )


def _tissue(made: _smoke.Cohort, index: int) -> Labels:
    def load() -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        from ..benchmark.volumes import from_array
        from ._smoke_template import SPACING_MM

        labels = np.asarray(made.tissue()[index])
        spacing = (SPACING_MM, SPACING_MM, SPACING_MM)
        return labels.astype(np.int32), from_array(labels, spacing, "scanner").affine

    return Labels(load, lambda: hashlib.sha256(made.tissue()[index].tobytes()).hexdigest())


def between(made: _smoke.Cohort, fixed: int, moving: int) -> np.ndarray:
    """(3, 48, 56, 48) mm: from each voxel of one patient to its point in another; NaN outside.

    A voxel x of the fixed head shows the template at t = x + d(x). The point y of the moving head
    that shows it too solves y + d'(y) = t, by turns of y = t - d'(y), d' being trilinear between
    the voxels.
    """
    import numpy as np
    from scipy import ndimage

    from ._smoke_template import SPACING_MM

    head = np.asarray(made.tissue()[fixed]) > 0
    start = np.argwhere(head).T.astype(float)  # (3, n) voxels
    target = start + made.displacement(fixed)[:, head] / SPACING_MM
    other = made.displacement(moving) / SPACING_MM
    point = target
    for _ in range(TURNS):
        moved = [ndimage.map_coordinates(d, point, order=1, mode="nearest") for d in other]
        point = target - np.stack(moved)
    found = np.full((3, *head.shape), np.nan, np.float32)
    found[:, head] = (point - start) * SPACING_MM
    return found


def roster() -> Sequence[Seat]:
    """The fixed patients."""
    ids = [f"smoke_{fixed:03d}" for fixed, _ in PAIRS]
    return [Seat(id_, id_, "test") for id_ in ids]


TASK = Task(CARD, cases, roster)
