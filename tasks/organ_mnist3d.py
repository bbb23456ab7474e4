"""Which of eleven organs is in the box?

Input: CT of one organ's bounding box, stretched to a cube of 28^3.
Label: one of eleven organs, sides told apart.
Split: the publisher's, by scan (971 / 161 / 610 boxes of 115 / 16 / 70 CT scans of LiTS).
License: CC BY 4.0.
"""

from ..benchmark.types import TaskCard
from ._medmnist import CITATION, GRAY, LICENSE, NO_PATIENTS, SOURCE, counts, npz, task

SIDE_MM = 128.0
"""Nominal, as if every box had this size: boxes are stretched to cubes and their sizes are not
published. The order of an abdominal organ, so that models with a fixed spacing see it about as
large as in a whole scan."""

CARD = TaskCard(
    name="organ_mnist3d",
    version=1,
    title="Organ in the box",
    kind="classification",
    modality="CT",
    anatomy="abdomen and thorax",
    metric="auroc",
    license=LICENSE,
    source=SOURCE,
    citation=CITATION,
    counts=counts(train=971, val=161, test=610),
    classes=(
        "liver",
        "right kidney",
        "left kidney",
        "right femur",
        "left femur",
        "bladder",
        "heart",
        "right lung",
        "left lung",
        "spleen",
        "pancreas",
    ),
    field_of_view_mm=(SIDE_MM, SIDE_MM, SIDE_MM),
    data_set="organ_mnist3d",
    files=(npz("organmnist3d", "a0c5a1ff56af4f155c46d46fbb45a2fe"),),
    note="Every organ is stretched to the same cube, so its size and proportions are gone; the "
    "voxel size is nominal. The CT scans are those of LiTS: msd_liver has those of train and "
    f"val, and published CT encoders are pretrained on them. {GRAY} {NO_PATIENTS}; the split "
    "is by scan.",
)

TASK = task(CARD, spacing_mm=SIDE_MM / 28)
