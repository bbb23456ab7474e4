"""Colon cancer on CT.

Input: portal-venous CT of the abdomen, whole.
Label: mask with 0 background, 1 primary colon cancer.
Split: 5 x 5 cross-validation; the labels of the publisher's test set are not public.
License: CC BY-SA 4.0.
"""

from ._msd import PRETRAINED_ON, segmentation

TASK = segmentation(
    "msd_colon",
    "Task10_Colon",
    title="Colon cancer",
    modality="CT",
    anatomy="colon",
    classes=("background", "colon cancer primaries"),
    lattice_mm=3.0,
    tolerance_mm=4.0,
    cases=126,
    md5="bad7a188931dc2f6acf72b08eb6202d0",
    note="The list of the training cases is not known to us: a copy is checked by number only. "
    f"{PRETRAINED_ON}",
)
