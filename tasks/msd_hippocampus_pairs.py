"""Bring the hippocampus of one subject onto that of another, T1 MR.

Input: two T1 MR crops around a hippocampus, about 35x50x36 mm, 1 mm isotropic, of two images of
one side of the split; their centers are put on one point.
Truth: masks of the anterior and posterior hippocampus in both.
Split: that of msd_hippocampus; each crop is fixed once and moving once.
License: CC BY-SA 4.0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from ..benchmark.splits import side
from ..benchmark.targets import Pair
from ..benchmark.types import Case, Seat, Split, Task
from ._pairs import centered, pair_of_files, partners
from .msd_hippocampus import CARD as SEGMENTATION
from .msd_hippocampus import FOLDER, IDS, LABELS
from .msd_hippocampus import TASK as IMAGES

CARD = replace(
    SEGMENTATION,
    name="msd_hippocampus_pairs",
    title="One hippocampus onto another",
    kind="registration",
    metric="warped_dice",
    tolerance_mm=None,
    note="Pairs of two images of one side of the split, in a hashed circle: every image is fixed "
    "once and moving once, and intervals go by the fixed one. Images begin center on center, "
    "which their crops around the hippocampus make a good start. The set has crops of the left "
    "and right hippocampus of 195 subjects, whose ids are not published: a pair may be of one "
    "subject.",
)


@cache
def _pairs() -> Mapping[str, str]:
    """The moving image of each fixed one."""
    sides: dict[str, list[str]] = {}
    for id_ in IDS:
        sides.setdefault(_side(id_), []).append(id_)
    return {k: v for ids in sides.values() for k, v in partners(CARD.name, ids).items()}


def _side(id_: str) -> Split:
    return side(SEGMENTATION, id_)


def cases(root: Path) -> Sequence[Case]:
    """The pairs of which both images are at hand."""
    here = {case.id: case for case in IMAGES.cases(root)}
    return [
        replace(here[fixed], target=_pair(root, fixed, moving), split=_side(fixed))
        for fixed, moving in sorted(_pairs().items())
        if fixed in here and moving in here
    ]


def _pair(root: Path, fixed: str, moving: str) -> Pair:
    from ..benchmark.volumes import read_mask

    images, masks = (
        (root / FOLDER / folder / f"{fixed}.nii.gz", root / FOLDER / folder / f"{moving}.nii.gz")
        for folder in ("imagesTr", "labelsTr")
    )
    return pair_of_files(
        images,
        masks,
        ("scanner", "scanner"),
        lambda path: read_mask(path, LABELS),
        centered,
        "center on center",
    )


TASK = Task(CARD, cases, lambda: [Seat(id_, id_, _side(id_)) for id_ in sorted(IDS)])
