"""Where are cerebrospinal fluid, grey matter, white matter and ventricles? Simulated T1 MR.

Input: 240 warped copies of one template head, 48x56x48 at 4 mm, simulated T1 MR.
Label: map with 0 background, 1 CSF, 2 grey matter, 3 white matter, 4 ventricles, known exactly.
Split: 110 / 30 / 100, fixed.
License: of the ICBM152 template; made on this machine, nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from ..benchmark.targets import Labels
from ..benchmark.types import TaskCard
from ._smoke import ANATOMY, CITATION, COUNTS, LICENSE, NOTE, SOURCE, Row, cohort, task

if TYPE_CHECKING:
    import numpy as np

CARD = TaskCard(
    name="smoke_tissue",
    version=1,
    title="Tissues of the brain",
    kind="segmentation",
    modality="MR",
    anatomy=ANATOMY,
    metric="dice",
    license=LICENSE,
    source=SOURCE,
    citation=CITATION,
    counts=COUNTS,
    classes=("background", "CSF", "grey matter", "white matter", "ventricles"),
    lattice_mm=(4.0, 4.0, 4.0),  # the images' own
    tolerance_mm=4.0,  # one voxel
    forward_voxels=2**27,  # sixteen times the image at 1 mm
    data_set="smoke",
    note=NOTE + " Intensities follow from the tissues, so that brightness alone goes a long way.",
    evidence=False,
)


def labels(row: Row) -> Labels:
    """The tissues of one patient, read when they are asked for."""
    index = int(row.id.removeprefix("smoke_"))

    def load() -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        from ..benchmark.volumes import from_array
        from ._smoke_template import SPACING_MM

        tissue = cohort().tissue()[index]
        affine = from_array(tissue, (SPACING_MM, SPACING_MM, SPACING_MM), "scanner").affine
        return tissue.astype(np.int32), affine

    def digest() -> str:
        return hashlib.sha256(cohort().tissue()[index].tobytes()).hexdigest()

    return Labels(load, digest)


TASK = task(CARD, labels)
