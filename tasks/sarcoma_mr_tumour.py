"""Where is the soft-tissue sarcoma of the limb? T1-weighted MR; 51 patients, 5 x 5 CV."""

from ._sarcoma import tumour

TASK = tumour(
    "mr",
    "Soft-tissue sarcoma on T1 MR",
    "Whole crops are shown, because no box inside the smallest holds the tumours. They end 5 cm "
    "around the tumour, or where the scan ends, mostly nearer: on the 20 patients at hand an "
    "ellipsoid as large as the crop says reaches Dice 0.57, one ellipsoid for all 0.52. The place "
    "is given away, of the size hardly anything.",
    boxed=False,
)
