"""The tumour of a soft-tissue sarcoma as something to be found, on crops that do not point at it.

The publisher's crops are centered on the tumour, so that the middle of the image would be the
answer. Of every crop a box of two thirds of its length along each axis is shown, whose place is
hashed from the patient: the tumour's center is then up to a sixth of the crop's length away from
the image's. That box is the image of these tasks; it is a data set of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np

from ..benchmark.errors import TaskFileError
from ..benchmark.splits import position
from ..benchmark.targets import Lesion
from ..benchmark.types import Case, Shape, Task, Volume
from ._sarcoma import tumour

CUT = 1 / 3
"""Share of a crop's length that is cut off along each axis, at both ends together."""


@dataclass(frozen=True)
class Box:
    """A part of an image."""

    start: Shape
    stop: Shape

    def of(self, volume: Volume) -> Volume:
        """The part."""
        parts = tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        shift = np.eye(4)
        shift[:3, 3] = self.start
        return replace(
            volume, voxels=volume.voxels[(slice(None), *parts)], affine=volume.affine @ shift
        )


def box_of(patient: str, shape: Sequence[int], center: Sequence[float]) -> Box:
    """What is shown of a crop.

    Args:
        patient: whose hash decides where the box lies.
        shape: X, Y, Z of the crop.
        center: voxel coordinates of the tumour's center, which stays in.
    """
    starts, stops = [], []
    for axis, n, c in zip("xyz", shape, center, strict=True):
        length = max(1, n - round(n * CUT))
        least = max(0, int(np.ceil(c)) - length + 1)
        most = min(n - length, int(np.floor(c)))
        place = position("sarcoma_moved", 1, axis, patient)
        starts.append(least + int(place * (max(most, least) - least + 1)))
        stops.append(starts[-1] + length)
    (a, b, c), (i, j, k) = starts, stops
    return Box((a, b, c), (i, j, k))


def task(scan: Literal["ct", "mr"], title: str, floor: float) -> Task:
    """Localisation of the tumour on one of the two scans.

    Args:
        scan: which.
        title: of the card.
        floor: CPM of ``detect`` with the baseline ``nothing``, measured.
    """
    base = tumour(scan, title, "", boxed=False)
    card = replace(
        base.card,
        name=f"{base.card.name}_detection",
        kind="detection",
        metric="cpm",
        classes=(),
        tolerance_mm=None,
        data_set=f"{base.card.data_set}_moved",
        note=f"{base.card.note.strip()} The publisher's crops are centered on the tumour: two "
        "thirds of each, at a hashed place, are shown, so that a guess at the middle is off by 3 "
        "cm on average. The tumour fills much of such a box all the same: an encoder whose maps "
        f"are constant reaches a CPM of {floor:g} on the 20 patients at hand, by the place alone. "
        "A candidate has to be within the tumour's radius of its center, and within 2 cm.",
    )

    def cases(root: Path) -> Sequence[Case]:
        return [_case(case) for case in base.cases(root)]

    return Task(card, cases, base.roster)


def _case(case: Case) -> Case:
    """The same patient; reads the mask, because the center is the answer."""
    from ..benchmark.volumes import read_mask

    if not isinstance(case.target, Path):
        raise TaskFileError(f"Case '{case.id}' has no file of a mask to find the tumour's center.")
    mask, affine = read_mask(case.target, (1,))
    inside = np.argwhere(mask)
    center = inside.mean(0)
    x, y, z = (affine[:3, :3] @ center + affine[:3, 3]).tolist()
    mm3 = len(inside) * abs(float(np.linalg.det(affine[:3, :3])))
    lesion = Lesion((x, y, z), round((6 * mm3 / np.pi) ** (1 / 3), 3))
    box = box_of(case.patient, mask.shape, center.tolist())

    def digest() -> str:
        return sha256(f"{case.digest()} {box.start} {box.stop}".encode()).hexdigest()

    return replace(case, target=(lesion,), load=lambda: box.of(case.load()), digest=digest)
