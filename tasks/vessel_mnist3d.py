"""Brain artery with an aneurysm or without, from its shape alone.

Input: voxelised surface of one segment of brain vessels (IntrA: 103 models from MRA), 28^3.
Label: 0 healthy vessel, 1 aneurysm.
Split: the publisher's, 7:1:2 at random (1,335 / 191 / 382 segments).
License: CC BY 4.0.
"""

from ..benchmark.types import TaskCard
from ._medmnist import CITATION, LICENSE, NO_PATIENTS, SOURCE, counts, npz, task

SIDE_MM = 28.0
"""Nominal: each segment is voxelised into the same cube and its size is not published."""

CARD = TaskCard(
    name="vessel_mnist3d",
    version=1,
    title="Brain vessel: healthy or aneurysm, from its shape",
    kind="classification",
    modality="MR",
    anatomy="brain vessels",
    metric="auroc",
    license=LICENSE,
    source=SOURCE,
    citation=CITATION,
    counts=counts(train=1335, val=191, test=382),
    classes=(
        "vessel",
        "aneurysm",
    ),
    field_of_view_mm=(SIDE_MM, SIDE_MM, SIDE_MM),
    data_set="vessel_mnist3d",
    files=(npz("vesselmnist3d", "b41fd4f7e7e2feedddb201585ecafa1b"),),
    note="The images are shapes without texture, cut from surfaces that were reconstructed from MR "
    "angiography; the size of a segment is gone and the voxel size is nominal. Nor is the "
    f"direction of the axes published. {NO_PATIENTS}; 1,908 segments come from 103 patients' "
    "vessels and are split at random, so segments of one patient may be on both sides.",
)

TASK = task(CARD, spacing_mm=SIDE_MM / 28)
