"""Reader of the Medical Segmentation Decathlon (Antonelli et al., Nature Communications 13, 2022).

Layout of every task: ``TaskNN_Name/{imagesTr,labelsTr}/CASE.nii.gz``. The labels of ``imagesTs``
are not public, so the public training cases are split here, by hashing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..benchmark.types import Case, Seat, Target, Task, TaskCard, Unit
from ._nifti import nifti_case

CITATION = (
    "Antonelli M et al. The Medical Segmentation Decathlon. Nature Communications 13:4128 (2022); "
    "Simpson AL et al. arXiv:1902.09063 (2019)."
)


def task(
    card: TaskCard,
    folder: str,
    unit: Unit,
    ids: Sequence[str],
    target: Callable[[Path], Target],
) -> Task:
    """A task on the public training cases.

    Args:
        card: of the task.
        folder: e.g. ``Task04_Hippocampus``.
        unit: of the voxels.
        ids: of the complete public set.
        target: from the path of a case's mask.
    """

    def cases(root: Path) -> Sequence[Case]:
        # the publisher's archive holds macOS resource forks, "._CASE.nii.gz"
        images = sorted((root / folder / "imagesTr").glob("[!.]*.nii.gz"))
        masks = root / folder / "labelsTr"
        return [
            nifti_case(image.name.removesuffix(".nii.gz"), image, target(masks / image.name), unit)
            for image in images
            if (masks / image.name).exists()
        ]

    return Task(card, cases, lambda: [Seat(id_, id_) for id_ in ids])


def numbers(text: str) -> list[int]:
    """Numbers and ranges, separated by blanks.

    >>> numbers("1 3-5")
    [1, 3, 4, 5]
    """
    found: list[int] = []
    for part in text.split():
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def volume_mm3(mask: Path, labels: Sequence[int]) -> float:
    """Volume of all ``labels`` together, in mm3: voxels times the volume of one.

    Raises:
        MaskError: the mask is empty or holds other labels.
    """
    import numpy as np

    from ..benchmark.volumes import read_mask

    voxels, affine = read_mask(mask, labels)
    # rounded, so that the last bit of a determinant does not make it other data
    return round(float(np.count_nonzero(voxels) * abs(np.linalg.det(affine[:3, :3]))), 3)
