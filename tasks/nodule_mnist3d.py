"""Benign or malignant lung nodule, as radiologists rate it.

Input: CT around one nodule of LIDC-IDRI, 28^3 at 1 mm, centered.
Label: 0 benign (rating 1 or 2 of 5), 1 malignant (4 or 5); rating 3 is left out.
Split: the publisher's, 7:1:2 at random (1,158 / 165 / 310 nodules).
License: CC BY 4.0.
"""

from ..benchmark.types import TaskCard
from ._medmnist import CITATION, GRAY, LICENSE, NO_PATIENTS, SOURCE, counts, npz, task

SIDE_MM = 28.0
"""The publisher crops 28 voxels of 1 mm around the center of the nodule."""

CARD = TaskCard(
    name="nodule_mnist3d",
    version=1,
    title="Lung nodule: benign or malignant, as rated",
    kind="classification",
    modality="CT",
    anatomy="lung",
    metric="auroc",
    license=LICENSE,
    source=SOURCE,
    citation=CITATION,
    counts=counts(train=1158, val=165, test=310),
    classes=(
        "benign",
        "malignant",
    ),
    field_of_view_mm=(SIDE_MM, SIDE_MM, SIDE_MM),
    data_set="nodule_mnist3d",
    files=(npz("nodulemnist3d", "8755a7e9e05a4d9ce80a24c3e7a256f3"),),
    note="The label is what radiologists think, not pathology; nodules of the middle rating are "
    "left out, which makes the question easier than in practice. LIDC-IDRI (also as LUNA16) "
    f"is a common pretraining set of CT encoders. {GRAY} {NO_PATIENTS}; the publisher splits "
    "at random and does not say whether by patient.",
)

TASK = task(CARD, spacing_mm=SIDE_MM / 28)
