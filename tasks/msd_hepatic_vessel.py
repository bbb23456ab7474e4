"""Vessels and tumours of the liver on CT.

Input: portal-venous CT of the abdomen, whole.
Label: mask with 0 background, 1 vessel, 2 tumour.
Split: hashed; the labels of the publisher's test set are not public.
License: CC BY-SA 4.0.
"""

from ._msd import PRETRAINED_ON, segmentation

TASK = segmentation(
    "msd_hepatic_vessel",
    "Task08_HepaticVessel",
    title="Vessels and tumours of the liver",
    modality="CT",
    anatomy="liver",
    classes=("background", "vessel", "tumour"),
    lattice_mm=2.5,
    tolerance_mm=3.0,
    cases=303,
    md5="641d79e80ec66453921d997fbf12a29c",
    note="The list of the training cases is not known to us: a copy is checked by number only. "
    f"{PRETRAINED_ON}",
)
