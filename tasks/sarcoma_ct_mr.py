"""Bring the T1 MR of a limb with a sarcoma onto the CT of the same patient.

Input: CT (fixed) and T1 MR (moving), both cropped to the tumour with a margin of 5 cm, about
2x2x3.3 mm. The publisher's scans are aligned; the MR is put 15 mm and 5 degrees off its place.
Truth: the tumour in both; its displacement, which is the motion.
Split: cross-validation by patient; nothing is trained, all are tested.
License: CC BY 3.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..benchmark.splits import position
from ..benchmark.targets import Pair
from ..benchmark.types import Case, Seat, Task, Volume
from ._pairs import center, pair_of_files
from ._sarcoma import FOLDER, PATIENTS, task

if TYPE_CHECKING:
    import numpy as np

SHIFT_MM = 15.0
TURN_DEG = 5.0
"""The motion of every pair, in a hashed direction and about a hashed axis through the middle of the
MR. Ours: of tumours of 80 to 900 ml it leaves an overlap of about 0.7."""

SCANS = task("ct", "mr", "CT and T1 MR of a limb", "classification", lambda row: 0, ("a", "b"))
OTHERS = task("mr", "ct", "T1 MR and CT of a limb", "classification", lambda row: 0, ("a", "b"))

CARD = replace(
    SCANS.card,
    name="sarcoma_ct_mr",
    title="T1 MR of a limb onto the CT of the same patient",
    kind="registration",
    modality="CT and MR",
    metric="warped_dice",
    classes=("background", "tumour"),
    field_of_view_mm=None,  # the whole crop: no answer can be read from its size
    lattice_mm=(3.0, 3.0, 3.0),  # between the voxels' sides, 2 mm and 3.3 mm
    forward_voxels=2**26,  # ours: five times the largest crop at hand at 1 mm
    files=SCANS.card.files + OTHERS.card.files,
    note="The tumour was drawn once and copied to the other scan by a rigid registration of the "
    "publisher's, so that both masks are one, and the scans as they are overlap perfectly. The MR "
    f"is therefore moved by {SHIFT_MM:g} mm and turned by {TURN_DEG:g} degrees, in a direction and "
    "about an axis hashed from the patient, and has to find back. The end-point error is that of "
    "the tumour's voxels. What the publisher's registration left is part of the truth: from the "
    "scans as they are, MIND descriptors end as far from it as from the moved ones (four patients: "
    "6.7 mm, Dice 0.88), so nobody should be expected to reach a Dice of 1. 51 patients: intervals "
    "are wide.",
)


def cases(root: Path) -> Sequence[Case]:
    """Patients of whom both scans and both masks are at hand."""
    found = []
    for case in SCANS.cases(root):
        folder = root / FOLDER / case.patient
        if all((folder / f"{name}.nii.gz").exists() for name in ("mr", "ct_gtv", "mr_gtv")):
            found.append(replace(case, target=_pair(folder, case), region=None))
    return found


def _pair(folder: Path, case: Case) -> Pair:
    from ..benchmark.volumes import read_mask

    images, masks = (
        (folder / f"ct{end}.nii.gz", folder / f"mr{end}.nii.gz") for end in ("", "_gtv")
    )
    return pair_of_files(
        images,
        masks,
        ("HU", "scanner"),
        lambda path: read_mask(path, (1,)),
        partial(_moved, case.patient),
        f"moved by {SHIFT_MM:g} mm and {TURN_DEG:g} degrees",
        partial(_displacement, case, images[1], masks[0]),
    )


def motion(patient: str, middle: np.ndarray) -> np.ndarray:
    """(4, 4): the motion in scanner mm, about a point."""
    import numpy as np
    from scipy.spatial.transform import Rotation

    turned = np.eye(4)
    axis = TURN_DEG * _direction(patient, "axis")
    turned[:3, :3] = Rotation.from_rotvec(axis, degrees=True).as_matrix()
    turned[:3, 3] = middle - turned[:3, :3] @ middle + SHIFT_MM * _direction(patient, "shift")
    return turned


def _direction(patient: str, what: str) -> np.ndarray:
    """(3,) of length 1, uniform on the sphere."""
    import numpy as np

    height = 2 * position(CARD.name, patient, what, "height") - 1
    angle = 2 * np.pi * position(CARD.name, patient, what, "angle")
    across = np.sqrt(1 - height**2)
    return np.array([across * np.cos(angle), across * np.sin(angle), height])


def _moved(patient: str, fixed: Volume, moving: Volume) -> np.ndarray:
    """The moving image's affine after the motion."""
    del fixed
    return motion(patient, center(moving)) @ moving.affine


def _displacement(case: Case, mr: Path, mask: Path) -> np.ndarray:
    """(3, X, Y, Z) mm along the axes of the CT, inside the tumour; NaN elsewhere."""
    import numpy as np

    from ..benchmark.volumes import read_mask, read_nifti

    affine = case.load().affine
    tumour = read_mask(mask, (1,))[0] > 0
    points = np.argwhere(tumour) @ affine[:3, :3].T + affine[:3, 3]
    turned = motion(case.patient, center(read_nifti(mr, "scanner")))
    moved = points @ (turned[:3, :3] - np.eye(3)).T + turned[:3, 3]
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    found = np.full((3, *tumour.shape), np.nan, np.float32)
    found[:, tumour] = np.linalg.solve(axes, moved.T)
    return found


TASK = Task(CARD, cases, lambda: [Seat(patient, patient) for patient in PATIENTS])
