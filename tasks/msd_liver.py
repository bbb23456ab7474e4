"""Liver and its tumours on CT.

Input: contrast-enhanced CT of the abdomen, whole.
Label: mask with 0 background, 1 liver, 2 cancer.
Split: 5 x 5 cross-validation; the labels of the publisher's test set are not public.
License: CC BY-SA 4.0.
"""

from ._msd import PRETRAINED_ON, segmentation

TASK = segmentation(
    "msd_liver",
    "Task03_Liver",
    title="Liver and its tumours",
    modality="CT",
    anatomy="liver",
    classes=("background", "liver", "cancer"),
    lattice_mm=3.0,
    tolerance_mm=7.0,
    cases=131,
    md5="a90ec6c4aa7f6a3d087205e23d4e6397",
    note="The images are the training set of LiTS, of which organ_mnist3d is made too. "
    f"{PRETRAINED_ON}",
    ids=tuple(f"liver_{number}" for number in range(131)),
)
