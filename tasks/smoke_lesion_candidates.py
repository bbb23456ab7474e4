"""Which of ten marked places is the lesion? Simulated, and nine marks are other patients' places.

Input: 240 warped copies of one template head, 48x56x48 at 4 mm, simulated T1 MR.
Target: lesions of half of the patients (10 to 15 mm), and ten marks in every head: one up to a
quarter of the diameter off the center of the lesion, or of where a control's would be, and nine
where other patients have theirs, so that the place tells nothing.
Split: 110 / 30 / 100, fixed.
License: of the ICBM152 template; made on this machine, nothing is downloaded.
"""

import math
from dataclasses import replace
from functools import cache

from ..benchmark.splits import position
from ..benchmark.targets import Suspects
from ..benchmark.types import Triple
from ._smoke import Row, cohort, task
from .smoke_lesion_detection import CARD as DETECTION
from .smoke_lesion_detection import lesions

MARKS = 10
"""Per head."""

APART_MM = 20.0
"""From the lesion's center to any other mark; no lesion has a radius above 7.5 mm."""

CARD = replace(
    DETECTION,
    name="smoke_lesion_candidates",
    title="Simulated white-matter lesion among ten marked places",
    kind="candidates",
)


def suspects(row: Row) -> Suspects:
    """Of a patient."""
    own = (row.x_mm, row.y_mm, row.z_mm)
    far = [(id_, place) for id_, place in _places() if math.dist(place, own) > APART_MM]
    far.sort(key=lambda other: position(CARD.name, 1, row.id, other[0]))
    marks = [_moved(row, own), *(place for _, place in far[: MARKS - 1])]
    return Suspects(lesions(row), tuple(sorted(marks)))


@cache
def _places() -> tuple[tuple[str, Triple], ...]:
    """Where each patient's lesion is, or would be."""
    return tuple((row.id, (row.x_mm, row.y_mm, row.z_mm)) for row in cohort().rows)


def _moved(row: Row, place: Triple) -> Triple:
    """A detector does not hit the center."""
    angle, height, share = (position(CARD.name, 1, row.id, what) for what in "ahs")
    z = 2 * height - 1
    r = math.sqrt(1 - z * z)
    direction = (r * math.cos(2 * math.pi * angle), r * math.sin(2 * math.pi * angle), z)
    length = share * row.diameter_mm / 4
    x, y, z = (round(a + length * b, 3) for a, b in zip(place, direction, strict=True))
    return (x, y, z)


TASK = task(CARD, suspects)
