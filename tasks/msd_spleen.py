"""Spleen on CT.

Input: portal-venous CT of the abdomen, whole.
Label: mask with 0 background, 1 spleen.
Split: 5 x 5 cross-validation; the labels of the publisher's test set are not public.
License: CC BY-SA 4.0.
"""

from ._msd import PRETRAINED_ON, numbers, segmentation

CASES = "2-3 6 8-10 12-14 16-22 24-29 31-33 38 40-41 44-47 49 52-53 56 59-63"
"""Numbers of the 41 public training cases, from the publisher's dataset.json."""

TASK = segmentation(
    "msd_spleen",
    "Task09_Spleen",
    title="Spleen",
    modality="CT",
    anatomy="spleen",
    classes=("background", "spleen"),
    lattice_mm=3.0,
    tolerance_mm=3.0,
    cases=41,
    md5="410d4a301da4e5b2f6f86ec3ddba524e",
    note=PRETRAINED_ON,
    ids=tuple(f"spleen_{number}" for number in numbers(CASES)),
)
