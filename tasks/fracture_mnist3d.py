"""Kind of a rib fracture on CT.

Input: CT around one fracture of RibFrac, a cube of 64 mm resized to 28^3, centered.
Label: 0 buckle, 1 nondisplaced, 2 displaced; segmental fractures are left out.
Split: that of RibFrac (1,027 / 103 / 240 fractures).
License: CC BY 4.0.
"""

from ..benchmark.types import TaskCard
from ._medmnist import CITATION, GRAY, LICENSE, NO_PATIENTS, SOURCE, counts, npz, task

SIDE_MM = 64.0
"""The publisher crops a cube of 64 mm around the center of the fracture."""

CARD = TaskCard(
    name="fracture_mnist3d",
    version=1,
    title="Rib fracture: buckle, nondisplaced or displaced",
    kind="classification",
    modality="CT",
    anatomy="rib",
    metric="auroc",
    license=LICENSE,
    source=SOURCE,
    citation=CITATION,
    counts=counts(train=1027, val=103, test=240),
    classes=(
        "buckle",
        "nondisplaced",
        "displaced",
    ),
    field_of_view_mm=(SIDE_MM, SIDE_MM, SIDE_MM),
    data_set="fracture_mnist3d",
    files=(npz("fracturemnist3d", "6aa7b0143a6b42da40027a9dda61302f"),),
    note=f"{GRAY} {NO_PATIENTS}; the split is that of RibFrac, where a patient has several "
    "fractures. A voxel of 2.3 mm hardly shows a fracture line: look at fracture_mnist3d_64 "
    "too.",
)

TASK = task(CARD, spacing_mm=SIDE_MM / 28)
