"""Whose scanner made the MR? How much of the scanner the features carry; never ranked.

Input: T1 MR crops of a limb around a soft-tissue sarcoma, in the box of all tasks on them.
Label: 0 GE, 1 any other (Siemens and Philips together).
Split: 5 x 5 cross-validation by patient.
License: CC BY 3.0.
"""

from collections.abc import Mapping
from dataclasses import replace

from ..benchmark.errors import DataError
from ..benchmark.types import Task
from ._sarcoma import task

CLASSES = ("GE", "other")
"""Of the 20 patients at hand 12 were scanned by GE, 6 by Siemens and 2 by Philips: a class of 2 can
be neither trained nor tested, so all others are one."""


def vendor(row: Mapping[str, str]) -> int:
    """Class of a row, by its column ``mr_manufacturer``.

    Raises:
        DataError: no manufacturer is given.
    """
    name = (row.get("mr_manufacturer") or "").strip()
    if not name:
        raise DataError(
            f"Patient {row['id']} has no mr_manufacturer in metadata.csv; a name such as "
            "'GE MEDICAL SYSTEMS' is expected. Restore the table."
        )
    return int(not name.upper().startswith("GE "))


MADE = task("mr", "vendor", "Maker of the MR scanner", "classification", vendor, classes=CLASSES)

TASK = Task(
    replace(
        MADE.card,
        note="A check for confounding, never ranked: a high score is leakage, not quality. "
        "Features that tell the scanner may use it as a shortcut, since the makers' patients "
        "differ. " + MADE.card.note,
        evidence=False,
    ),
    MADE.cases,
    MADE.roster,
)
