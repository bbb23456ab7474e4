"""Excitatory or inhibitory synapse on electron microscopy; no radiology.

Input: EM of a rat's brain around one synapse, a cube of 1,024 nm resized to 28^3.
Label: 0 inhibitory, 1 excitatory.
Split: the publisher's, 7:1:2 at random (1,230 / 177 / 352 synapses).
License: CC BY 4.0.
"""

from ..benchmark.types import TaskCard
from ._medmnist import CITATION, GRAY, LICENSE, SOURCE, counts, npz, task

SIDE_MM = 64.0
"""Nominal, 62,500 times the true 1,024 nm: models of the human body take lengths in mm, and at the
true scale a whole image would be a fraction of one of their voxels."""

CARD = TaskCard(
    name="synapse_mnist3d",
    version=1,
    title="Synapse: inhibitory or excitatory",
    kind="classification",
    modality="EM",
    anatomy="rat brain",
    metric="auroc",
    license=LICENSE,
    source=SOURCE,
    citation=CITATION,
    counts=counts(train=1230, val=177, test=352),
    classes=(
        "inhibitory",
        "excitatory",
    ),
    field_of_view_mm=(SIDE_MM, SIDE_MM, SIDE_MM),
    data_set="synapse_mnist3d",
    files=(npz("synapsemnist3d", "1235b78a3cd6280881dd7850a78eadb6"),),
    note="No radiology: electron microscopy of one neuron of one rat, shown as the sixth set of "
    "MedMNIST3D and never ranked. The true cube of 1,024 nm is presented as if it were 64 mm. "
    "Synapses of one neuron are split at random and share their surroundings; each counts as "
    f"a patient. {GRAY}",
    evidence=False,
)

TASK = task(CARD, spacing_mm=SIDE_MM / 28)
