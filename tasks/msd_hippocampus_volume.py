"""Volume of the hippocampus on T1 MR.

Input: T1 MR crops around one hippocampus, about 35x50x36 mm, 1 mm isotropic.
Target: volume of the whole hippocampus (anterior and posterior) in the mask, mm3.
Split: hashed; the labels of the publisher's test set are not public.
License: CC BY-SA 4.0.
"""

from dataclasses import replace

from ._msd import task, volume_mm3
from .msd_hippocampus import CARD as SEGMENTATION
from .msd_hippocampus import FOLDER, IDS, LABELS

CARD = replace(
    SEGMENTATION,
    name="msd_hippocampus_volume",
    title="Volume of the hippocampus",
    kind="regression",
    metric="mae",
    classes=(),
    lattice_mm=None,
    tolerance_mm=None,
    forward_voxels=None,
    unit="mm3",
    # The publisher's crop grows with the hippocampus: on 200 crops its size alone predicts the
    # volume with R2 0.34. Inside this box, which 93 % of crops fill, R2 is 0.02, and 99.6 % of the
    # labelled voxels are in it.
    field_of_view_mm=(32.0, 44.0, 28.0),
    note=SEGMENTATION.note + " The central 32x44x28 mm are shown, because the size of the "
    "publisher's crop gives the volume away; 0.4 % of the hippocampus lies outside.",
)

TASK = task(CARD, FOLDER, "scanner", IDS, target=lambda mask: volume_mm3(mask, LABELS))
