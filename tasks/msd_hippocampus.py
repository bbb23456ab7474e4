"""Anterior and posterior hippocampus on T1 MR.

Input: T1 MR crops around one hippocampus, about 35x50x36 mm, 1 mm isotropic.
Label: mask with 0 background, 1 anterior, 2 posterior.
Split: hashed; the labels of the publisher's test set are not public.
License: CC BY-SA 4.0.
"""

from ..benchmark.types import TaskCard
from ._msd import CITATION, task

FOLDER = "Task04_Hippocampus"
LABELS = (1, 2)

CARD = TaskCard(
    name="msd_hippocampus",
    version=1,
    title="Anterior and posterior hippocampus",
    kind="segmentation",
    modality="MR",
    anatomy="hippocampus",
    metric="dice",
    license="CC BY-SA 4.0",
    source="http://medicaldecathlon.com",
    citation=CITATION,
    counts={"cases": 260, "patients": 260},
    classes=("background", "anterior", "posterior"),
    # the largest crop: nothing is cut, smaller ones are padded
    field_of_view_mm=(44.0, 60.0, 48.0),
    data_set="msd_hippocampus",
    files=(
        (FOLDER, "https://msd-for-monai.s3-us-west-2.amazonaws.com/Task04_Hippocampus.tar", ""),
    ),
    note="The set has crops of the left and right hippocampus of 195 subjects, whose ids are not "
    "published: each crop counts as a patient, so both sides of the split may hold one subject and "
    "intervals are a little too narrow.",
)

TASK = task(CARD, FOLDER, "scanner", target=lambda mask: mask)
