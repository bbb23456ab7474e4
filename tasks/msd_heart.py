"""Left atrium on MR.

Input: MR of the heart, about 320x320x115 voxels.
Label: mask with 0 background, 1 left atrium.
Split: 5 x 5 cross-validation; the labels of the publisher's test set are not public.
License: CC BY-SA 4.0.
"""

from ._msd import numbers, segmentation

CASES = "3-5 7 9-11 14 16-24 26 29-30"
"""Numbers of the 20 public training cases, from the publisher's dataset.json."""

TASK = segmentation(
    "msd_heart",
    "Task02_Heart",
    title="Left atrium",
    modality="MR",
    anatomy="heart",
    classes=("background", "left atrium"),
    lattice_mm=2.0,
    tolerance_mm=4.0,
    cases=20,
    md5="06ee59366e1e5124267b774dbd654057",
    note="20 images: intervals are wide.",
    ids=tuple(f"la_{number:03d}" for number in numbers(CASES)),
)
