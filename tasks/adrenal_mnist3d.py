"""Normal or diseased adrenal gland, from its shape alone.

Input: binary masks of left or right adrenal glands, drawn on CT, 28^3 at 64/28 mm, centered.
Label: 0 normal, 1 hyperplasia.
Split: the publisher's, by patient (1,188 / 98 / 298 glands of 792 patients).
License: CC BY 4.0.
"""

from ..benchmark.types import TaskCard
from ._medmnist import task

CARD = TaskCard(
    name="adrenal_mnist3d",
    version=1,
    title="Adrenal gland: normal or hyperplasia, from its shape",
    kind="classification",
    modality="CT",
    anatomy="adrenal gland",
    metric="auroc",
    license="CC BY 4.0",
    source="https://medmnist.com",
    citation="Yang J et al. MedMNIST v2: a large-scale lightweight benchmark for 2D and 3D "
    "biomedical image classification. Scientific Data 10:41 (2023).",
    counts={"cases": 1584, "patients": 1584, "train": 1188, "val": 98, "test": 298},
    classes=("normal", "hyperplasia"),
    # the publisher crops a cube of 64 mm around the center of the gland
    field_of_view_mm=(64.0, 64.0, 64.0),
    data_set="adrenal_mnist3d",
    files=(
        (
            "medmnist/adrenalmnist3d.npz",
            "https://zenodo.org/records/10519652/files/adrenalmnist3d.npz?download=1",
            "bbd3c5a5576322bc4cdfea780653b1ce",
        ),
    ),
    note="The images are masks: shape without texture. The two glands of a patient are on one side "
    "of the official split, but patient ids are not published, so each gland counts as a patient "
    "and intervals are a little too narrow. Volume alone reaches an AUROC of 0.69.",
)

TASK = task(CARD, spacing_mm=64 / 28)
