"""Where is the soft-tissue sarcoma of the limb? CT; 51 patients, 5 x 5 CV."""

from ._sarcoma import tumour

TASK = tumour(
    "ct",
    "Soft-tissue sarcoma on CT",
    "The publisher's crop ends 5 cm around the tumour, so it gives the answer away: on the 20 "
    "patients at hand an ellipsoid as large as the crop says reaches Dice 0.75. Inside the box, "
    "which all crops fill, one ellipsoid for all reaches 0.53: the place is given away, the size "
    "is not. What lies outside the box counts as missed: Dice is 0.98 at most, for the largest "
    "tumour 0.79.",
    boxed=True,
)
