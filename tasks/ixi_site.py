"""At which hospital was the head scanned? How much of the scanner the features carry.

Input: IXI, T1 MR of about 240x240x180 mm at 0.9x0.9x1.2 mm.
Label: 0 Guys (Philips 1.5 T), 1 HH (Hammersmith, Philips 3 T), 2 IOP (GE 1.5 T).
Split: hashed; the publisher gives none.
License: CC BY-SA 3.0.
"""

from ._ixi import SITES, task

TASK = task(
    "site",
    "Hospital that made the T1 MR",
    "classification",
    lambda subject: SITES.index(subject.site),
    classes=SITES,
    note="A check for confounding, never ranked: features that tell the scanner are not better "
    "features, and they may use it as a shortcut to age or sex. About 56, 32 and 12 % of the "
    "images are from Guys, HH and IOP.",
    evidence=False,
)
