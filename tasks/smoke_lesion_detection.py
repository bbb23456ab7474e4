"""Where is the lesion? One simulated ball of changed intensity in the white matter, or none.

Input: 240 warped copies of one template head, 48x56x48 at 4 mm, simulated T1 MR.
Label: center and diameter (10 to 15 mm) of the lesion; half of the patients have none, but the
same change of intensity scattered over as many white-matter voxels.
Split: 110 / 30 / 100, fixed.
License: of the ICBM152 template; made on this machine, nothing is downloaded.
"""

from ..benchmark.targets import Lesion
from ..benchmark.types import TaskCard
from ._smoke import ANATOMY, CITATION, COUNTS, LICENSE, NOTE, SOURCE, Row, task

CARD = TaskCard(
    name="smoke_lesion_detection",
    version=1,
    title="Simulated white-matter lesion, where",
    kind="detection",
    modality="MR",
    anatomy=ANATOMY,
    metric="cpm",
    license=LICENSE,
    source=SOURCE,
    citation=CITATION,
    counts=COUNTS,
    lattice_mm=(4.0, 4.0, 4.0),
    forward_voxels=2**27,  # sixteen times the image at 1 mm
    data_set="smoke",
    note=NOTE + " Half of the test patients have no lesion, and count for the false alarms.",
    evidence=False,
)


def lesions(row: Row) -> tuple[Lesion, ...]:
    """Of a patient; the image's center is at 0 mm."""
    if not row.lesion:
        return ()
    return (Lesion((row.x_mm, row.y_mm, row.z_mm), row.diameter_mm),)


TASK = task(CARD, lesions)
