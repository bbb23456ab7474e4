"""Six structures of the brain on T1 MR of ten healthy volunteers, labelled by a program.

Input: ten T1 heads of IXI (Hammersmith Hospital), 90x120x120 at 2 mm, 8 bit. A sample that the
authors of CCL-NMF (CBICA, University of Pennsylvania) publish with their program.
Label: map by DLMUSE, made on these images and published beside them, its regions put together: 1
ventricles, 2 hippocampi, 3 thalami, 4 cerebellum, 5 brain stem, 6 white matter of the lobes.
Split: 5 x 5 cross-validation by patient.
License: CC BY-SA 3.0.

Layout: ``ixi10/nifti/IXI012-HH-1211-T1_ds.nii.gz`` and
``ixi10/dlmuse/IXI012-HH-1211-T1_ds_DLMUSE.nii.gz``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..benchmark.targets import Labels
from ..benchmark.types import Case, Seat, Task, TaskCard
from ._ixi import FIELD_OF_VIEW_MM
from ._nifti import nifti_case

if TYPE_CHECKING:
    import numpy as np

FOLDER = "ixi10"

SUBJECTS = ("012", "013", "014", "015", "033", "034", "039", "048", "049", "051")

REGIONS: Mapping[str, tuple[int, ...]] = {
    "ventricles": (4, 11, 49, 50, 51, 52),
    "hippocampi": (47, 48),
    "thalami": (59, 60),
    "cerebellum": (38, 39, 40, 41, 71, 72, 73),
    "brain stem": (35,),
    "white matter of the lobes": (81, 82, 83, 84, 85, 86, 87, 88),
}
"""Numbers of the regions of each class: NiChart_DLMUSE, shared/dicts/MUSE_ROI_complete_list.csv,
where the ventricles are the composite 509, the cerebellum 502 and the white matter 405 + 408 + 410
+ 412."""

HIGHEST = 207
"""The last number of that list that is a region's own."""

SOURCE = "https://github.com/CBICA/CCL_NMF_Prediction"

CARD = TaskCard(
    name="ixi10_structures",
    version=1,
    title="Structures of the brain",
    kind="segmentation",
    modality="MR",
    anatomy="brain",
    metric="dice",
    license="CC BY-SA 3.0",
    source=SOURCE,
    citation="IXI: Information eXtraction from Images, EPSRC GR/S21533/02, brain-development.org; "
    "Doshi J et al. MUSE: MUlti-atlas region Segmentation utilizing Ensembles of registration "
    "algorithms and parameters, and locally optimal atlas selection. NeuroImage 127:186 (2016).",
    counts={"cases": len(SUBJECTS), "patients": len(SUBJECTS)},
    classes=("background", *REGIONS),
    field_of_view_mm=FIELD_OF_VIEW_MM,
    lattice_mm=(2.0, 2.0, 2.0),  # the images' own
    tolerance_mm=2.0,  # one voxel
    forward_voxels=2**27,  # ours: sixteen times the field of view at 1 mm
    data_set="ixi10",
    files=(
        (f"{FOLDER}/nifti", f"{SOURCE}/tree/main/test/input/IXI", ""),
        (f"{FOLDER}/dlmuse", f"{SOURCE}/tree/main/test/input/IXI", ""),
    ),
    note="Ten volunteers of one hospital, and labels that a program made and nobody corrected: a "
    "score says how well that program is imitated. A check on real heads, never ranked. IXI is "
    "part of OpenBHB, on which encoders of brain MR are pretrained.",
    evidence=False,
)


def cases(root: Path) -> Sequence[Case]:
    """The heads that have their labels beside them."""
    images = sorted((root / FOLDER / "nifti").glob("IXI*-T1_ds.nii.gz"))
    paired = [(image, root / FOLDER / "dlmuse" / _labelled(image.name)) for image in images]
    return [
        nifti_case(image.name.partition("-")[0], image, structures(mask), "scanner")
        for image, mask in paired
        if mask.exists()
    ]


def structures(path: Path) -> Labels:
    """The map of a file with its regions put together; whatever has no class is background."""

    def load() -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        from ..benchmark.volumes import read_mask

        regions, affine = read_mask(path, range(1, HIGHEST + 1))
        class_of = np.zeros(HIGHEST + 1, np.int32)
        for k, numbers in enumerate(REGIONS.values(), start=1):
            class_of[list(numbers)] = k
        return class_of[regions], affine

    def digest() -> str:
        from ..benchmark.volumes import file_sha256

        content = f"{file_sha256(path)} {sorted(REGIONS.items())}"
        return hashlib.sha256(content.encode()).hexdigest()

    return Labels(load, digest)


def _labelled(image: str) -> str:
    return image.replace("_ds.nii.gz", "_ds_DLMUSE.nii.gz")


TASK = Task(CARD, cases, lambda: [Seat(f"IXI{n}", f"IXI{n}") for n in SUBJECTS])
