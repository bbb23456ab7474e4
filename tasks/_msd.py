"""Reader of the Medical Segmentation Decathlon (Antonelli et al., Nature Communications 13, 2022).

Layout of every task: ``TaskNN_Name/{imagesTr,labelsTr}/CASE.nii.gz``. The labels of ``imagesTs``
are not public, so the public training cases are split here, by hashing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..benchmark.types import Case, Modality, Seat, Target, Task, TaskCard, Unit
from ._nifti import nifti_case

CITATION = (
    "Antonelli M et al. The Medical Segmentation Decathlon. Nature Communications 13:4128 (2022); "
    "Simpson AL et al. arXiv:1902.09063 (2019)."
)
SOURCE = "http://medicaldecathlon.com"
LICENSE = "CC BY-SA 4.0"


FORWARD_VOXELS = 2**28
"""What an encoder may be shown of one scan of the CT and large MR sets, ours: 512x512x400 voxels
with overlapping tiles, twice."""

PATIENTS_UNKNOWN = (
    "Patient ids are not published: each image counts as a patient. The labels of the publisher's "
    "test set are not public, so the public training cases are split by hashing."
)
"""What the note of every set says."""

PRETRAINED_ON = (
    "Published CT encoders are pretrained on collections that hold these images, such as "
    "AbdomenAtlas: look at what a model has seen."
)
"""What the note of the six CT sets says (Qu et al. 2023, arXiv:2305.09666: CT of the MSD is one of
the collected sets)."""


def segmentation(
    name: str,
    folder: str,
    *,
    title: str,
    modality: Modality,
    anatomy: str,
    classes: tuple[str, ...],
    lattice_mm: float,
    tolerance_mm: float,
    cases: int,
    md5: str,
    note: str,
    ids: Sequence[str] = (),
    channel: int | None = None,
) -> Task:
    """A segmentation task on one of the ten sets, on whole images.

    Args:
        name: of the card.
        folder: e.g. ``Task02_Heart``.
        title: of the card.
        modality: of the set; CT is in HU.
        anatomy: of the card.
        classes: names of the labels 0, 1, ... (``labels`` of the publisher's dataset.json).
        lattice_mm: spacing, isotropic, at which dense protocols compare encoders: fine enough for
            the smallest structure, coarse enough for 2 to 3 million points per scan.
        tolerance_mm: of the normalised surface distance, as in the challenge (Antonelli et al.
            2022, Methods, "Metrics").
        cases: ``numTraining`` of dataset.json.
        md5: of the archive, as MONAI lists them (monai/apps/datasets.py).
        note: what there is to say besides ``PATIENTS_UNKNOWN``.
        ids: of the public training cases; empty where the list is not known to us.
        channel: which channel of a 4D image is read.
    """
    card = TaskCard(
        name=name,
        version=1,
        title=title,
        kind="segmentation",
        modality=modality,
        anatomy=anatomy,
        metric="dice",
        license=LICENSE,
        source=SOURCE,
        citation=CITATION,
        counts={"cases": cases, "patients": cases},
        classes=classes,
        lattice_mm=(lattice_mm, lattice_mm, lattice_mm),
        tolerance_mm=tolerance_mm,
        forward_voxels=FORWARD_VOXELS,
        data_set=name,
        files=(archive(folder, md5),),
        note=f"{note} {PATIENTS_UNKNOWN}",
    )
    unit: Unit = "HU" if modality == "CT" else "scanner"
    return task(card, folder, unit, ids, target=lambda mask: mask, channel=channel)


def archive(folder: str, md5: str) -> tuple[str, str, str]:
    """The entry of a card's ``files``; the MD5 is that of the archive."""
    return (folder, f"https://msd-for-monai.s3-us-west-2.amazonaws.com/{folder}.tar", md5)


def task(
    card: TaskCard,
    folder: str,
    unit: Unit,
    ids: Sequence[str],
    target: Callable[[Path], Target],
    channel: int | None = None,
) -> Task:
    """A task on the public training cases.

    Args:
        card: of the task.
        folder: e.g. ``Task04_Hippocampus``.
        unit: of the voxels.
        ids: of the complete public set, or none.
        target: from the path of a case's mask.
        channel: which channel of a 4D image is read.
    """

    def cases(root: Path) -> Sequence[Case]:
        # the publisher's archive holds macOS resource forks, "._CASE.nii.gz"
        images = sorted((root / folder / "imagesTr").glob("[!.]*.nii.gz"))
        masks = root / folder / "labelsTr"
        return [
            nifti_case(
                image.name.removesuffix(".nii.gz"),
                image,
                target(masks / image.name),
                unit,
                channel=channel,
            )
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
