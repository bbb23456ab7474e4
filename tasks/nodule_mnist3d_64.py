"""Benign or malignant lung nodule, as radiologists rate it: the same nodules at 64^3.

Input: presumably 64 mm around the nodule at 1 mm, where the set at 28^3 has 28 mm: see the note.
"""

from dataclasses import replace

from ._medmnist import npz, task, with_size
from .nodule_mnist3d import CARD as CARD_28

SIDE_MM = 64.0
"""Of a crop of 64 voxels at the 1 mm of the set at 28^3; the publisher does not say."""

CARD = replace(
    with_size(
        CARD_28,
        "nodule_mnist3d_64",
        npz("nodulemnist3d_64", "c47c5b7d457bf6332200d2ea6d64ecd8"),
    ),
    field_of_view_mm=(SIDE_MM, SIDE_MM, SIDE_MM),
    note=CARD_28.note + " How the larger images were made is not published; we take them for "
    "larger crops at the same 1 mm, not for finer voxels.",
)

TASK = task(CARD, spacing_mm=SIDE_MM / 64)
