"""CT or T1 MR? Both scans of every patient with a soft-tissue sarcoma of the limb; trivial.

Input: the two crops of each patient, in one box that lies inside the smallest of either.
Label: 0 CT, 1 MR.
Split: 5 x 5 cross-validation by patient, so that both scans of a patient are on one side.
License: CC BY 3.0.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..benchmark.types import Case, Seat, Task
from ._sarcoma import PATIENTS, task

CLASSES = ("CT", "MR")
TITLE = "CT or MR of a limb"

SCANS = (
    task("ct", "modality", TITLE, "classification", lambda row: 0, classes=CLASSES),
    task("mr", "modality", TITLE, "classification", lambda row: 1, classes=CLASSES),
)

CARD = replace(
    SCANS[1].card,  # whose box is the smaller one
    name="sarcoma_modality",
    modality="CT and MR",
    counts={"cases": 2 * len(PATIENTS), "patients": len(PATIENTS)},
    data_set="sarcoma",
    files=SCANS[0].card.files + SCANS[1].card.files,
    note="A trivial sanity check: whatever tells bone from fat tells CT from MR, and so does the "
    "intensity transform that a model's card names for each. A score much below 1 is a sign of "
    "broken preprocessing. Never ranked.",
    evidence=False,
)


def cases(root: Path) -> Sequence[Case]:
    """Both scans of every patient at hand; the patient keeps them together."""
    return [
        replace(case, id=f"{case.patient}_{name}")
        for name, scan in zip(CLASSES, SCANS, strict=True)
        for case in scan.cases(root)
    ]


def roster() -> Sequence[Seat]:
    """Both scans of all patients."""
    return [Seat(f"{patient}_{name}", patient) for name in CLASSES for patient in PATIENTS]


TASK = Task(CARD, cases, roster)
