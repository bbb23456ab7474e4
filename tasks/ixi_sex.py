"""Sex of a healthy adult from T1 MR of the head.

Input: IXI, T1 MR of about 240x240x180 mm at 0.9x0.9x1.2 mm from three hospitals; with face.
Label: 0 male, 1 female.
Split: hashed; the publisher gives none.
License: CC BY-SA 3.0.
"""

from ._ixi import task

TASK = task(
    "sex",
    "Sex from T1 MR of the head",
    "classification",
    lambda subject: subject.sex,
    classes=("male", "female"),
    note="The size of the head and the face are in the image, not the brain alone.",
)
