"""Is there a lesion? One simulated ball of changed intensity in the white matter, or none.

Input: 240 warped copies of one template head, 48x56x48 at 4 mm, simulated T1 MR.
Label: 0 control, with the same change of intensity scattered over as many white-matter voxels, so
that the histogram does not tell; 1 lesion of 10 to 15 mm.
Split: 110 / 30 / 100, fixed.
License: of the ICBM152 template; made on this machine, nothing is downloaded.
"""

from ..benchmark.types import TaskCard
from ._smoke import ANATOMY, CITATION, COUNTS, LICENSE, NOTE, SOURCE, task

CARD = TaskCard(
    name="smoke_lesion",
    version=1,
    title="Simulated white-matter lesion, present or not",
    kind="classification",
    modality="MR",
    anatomy=ANATOMY,
    metric="auroc",
    license=LICENSE,
    source=SOURCE,
    citation=CITATION,
    counts=COUNTS,
    classes=("control", "lesion"),
    data_set="smoke",
    note=NOTE
    + " Lesions come with slightly larger ventricles (the wall is 0.25 mm further out), as in "
    "small-vessel disease: a weak shortcut.",
    evidence=False,
)

TASK = task(CARD, lambda row: row.lesion)
