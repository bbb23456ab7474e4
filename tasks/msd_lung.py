"""Lung cancer on CT.

Input: CT of the chest, whole.
Label: mask with 0 background, 1 cancer.
Split: 5 x 5 cross-validation; the labels of the publisher's test set are not public.
License: CC BY-SA 4.0.
"""

from ._msd import PRETRAINED_ON, numbers, segmentation

CASES = """
    1 3-6 9-10 14-16 18 20 22-23 25-29 31 33-34 36-38 41-49 51 53-55 57-59 61-62 64-66 69-71
    73-75 78-81 83-84 86 92-93 95-96
"""
"""Numbers of the 63 public training cases, from the publisher's dataset.json."""

TASK = segmentation(
    "msd_lung",
    "Task06_Lung",
    title="Lung cancer",
    modality="CT",
    anatomy="lung",
    classes=("background", "cancer"),
    lattice_mm=3.0,
    tolerance_mm=2.0,
    cases=63,
    md5="8afd997733c7fc0432f71255ba4e52dc",
    note=f"The images are of the TCIA collection NSCLC Radiogenomics. {PRETRAINED_ON}",
    ids=tuple(f"lung_{number:03d}" for number in numbers(CASES)),
)
