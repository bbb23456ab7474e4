"""Bring the head of one healthy volunteer onto that of another, T1 MR; ten heads only.

Input: T1 MR of ten volunteers of IXI (Hammersmith Hospital), 240x240x180 mm at 2 mm.
Truth: deep structures of the brain in both, labelled by a network (DLMUSE), not by hand.
Split: cross-validation by volunteer; nothing is trained, all are tested.
License: CC BY-SA 3.0.

Layout: ``ixi10/nifti/IXI012-HH-1211-T1_ds.nii.gz`` and
``ixi10/dlmuse/IXI012-HH-1211-T1_ds_DLMUSE.nii.gz``, as in the demonstration data of NiChart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..benchmark.targets import Pair
from ..benchmark.types import Case, Seat, Task, TaskCard
from ._ixi import FIELD_OF_VIEW_MM
from ._nifti import nifti_case
from ._pairs import centered, pair_of_files, partners

if TYPE_CHECKING:
    import numpy as np

IMAGES = (
    "IXI012-HH-1211",
    "IXI013-HH-1212",
    "IXI014-HH-1236",
    "IXI015-HH-1258",
    "IXI033-HH-1259",
    "IXI034-HH-1260",
    "IXI039-HH-1261",
    "IXI048-HH-1326",
    "IXI049-HH-1358",
    "IXI051-HH-1328",
)

STRUCTURES = {
    35: "brain stem",
    31: "right amygdala",
    32: "left amygdala",
    36: "right caudate",
    37: "left caudate",
    47: "right hippocampus",
    48: "left hippocampus",
    51: "right lateral ventricle",
    52: "left lateral ventricle",
    55: "right pallidum",
    56: "left pallidum",
    57: "right putamen",
    58: "left putamen",
    59: "right thalamus",
    60: "left thalamus",
}
"""Numbers of MUSE (Doshi et al., NeuroImage 127 (2016) 186) that are scored. Sizes and places of
these labels in the ten heads were compared with anatomy by us."""

LARGEST = 207
"""Number of MUSE."""

CARD = TaskCard(
    name="ixi10_pairs",
    version=1,
    title="One head onto another, ten heads",
    kind="registration",
    modality="MR",
    anatomy="brain",
    metric="warped_dice",
    license="CC BY-SA 3.0",
    source="https://brain-development.org/ixi-dataset/",
    citation="IXI: Information eXtraction from Images, EPSRC GR/S21533/02. Biomedical Image "
    "Analysis Group, Imperial College London, brain-development.org. Labels: DLMUSE, CBICA, "
    "University of Pennsylvania.",
    counts={"cases": len(IMAGES), "patients": len(IMAGES)},
    classes=("background", *STRUCTURES.values()),
    field_of_view_mm=FIELD_OF_VIEW_MM,
    lattice_mm=(3.0, 3.0, 3.0),  # ours: 270,000 points of a head
    forward_voxels=2**26,  # ours: nine heads at 1 mm
    data_set="ixi10",
    files=(("ixi10/nifti and ixi10/dlmuse", "https://brain-development.org/ixi-dataset/", ""),),
    note="Ten heads and labels made by a network: a check that registration works on whole heads, "
    "no evidence. Images begin center on center, and every head is fixed once and moving once.",
    evidence=False,
)


def cases(root: Path) -> Sequence[Case]:
    """The pairs of which both images are at hand."""
    return [
        nifti_case(
            fixed.partition("-")[0], _image(root, fixed), _pair(root, fixed, moving), "scanner"
        )
        for fixed, moving in sorted(partners(CARD.name, IMAGES).items())
        if all(
            path.exists()
            for name in (fixed, moving)
            for path in (_image(root, name), _mask(root, name))
        )
    ]


def _image(root: Path, name: str) -> Path:
    return root / "ixi10" / "nifti" / f"{name}-T1_ds.nii.gz"


def _mask(root: Path, name: str) -> Path:
    return root / "ixi10" / "dlmuse" / f"{name}-T1_ds_DLMUSE.nii.gz"


def _pair(root: Path, fixed: str, moving: str) -> Pair:
    return pair_of_files(
        (_image(root, fixed), _image(root, moving)),
        (_mask(root, fixed), _mask(root, moving)),
        ("scanner", "scanner"),
        _labels,
        centered,
        f"center on center, {sorted(STRUCTURES)}",
    )


def _labels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The structures, numbered as in the card's classes."""
    import numpy as np

    from ..benchmark.volumes import read_mask

    values, affine = read_mask(path, range(1, LARGEST + 1))
    number = np.zeros(LARGEST + 1, np.int32)
    number[list(STRUCTURES)] = np.arange(1, len(STRUCTURES) + 1)
    return number[values], affine


TASK = Task(CARD, cases, lambda: [Seat(n.partition("-")[0], n.partition("-")[0]) for n in IMAGES])
