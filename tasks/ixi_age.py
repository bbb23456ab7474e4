"""Age of a healthy adult from T1 MR of the head.

Input: IXI, T1 MR of about 240x240x180 mm at 0.9x0.9x1.2 mm from three hospitals.
Target: age at the scan, years; about 20 to 86.
Split: hashed; the publisher gives none.
License: CC BY-SA 3.0.
"""

from ._ixi import task

TASK = task(
    "age",
    "Age from T1 MR of the head",
    "regression",
    lambda subject: subject.age,
    unit="years",
    note="Sites differ in scanner and in the ages of their volunteers, so part of the age can be "
    "read from the scanner: compare ixi_site.",
)
