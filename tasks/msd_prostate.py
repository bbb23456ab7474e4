"""Zones of the prostate on T2-weighted MR.

Input: MR of the prostate, about 320x320x20 at 0.6x0.6x4 mm; of the two channels (T2, ADC) the
first.
Label: mask with 0 background, 1 peripheral zone, 2 transition zone.
Split: 5 x 5 cross-validation; the labels of the publisher's test set are not public.
License: CC BY-SA 4.0.
"""

from ._msd import numbers, segmentation

CASES = "0-2 4 6-7 10 13-14 16-18 20-21 24-25 28-29 31-32 34-35 37-44 46-47"
"""Numbers of the 32 public training cases, from the publisher's dataset.json."""

CHANNEL = 0
"""Order in the publisher's dataset.json: T2, ADC."""

TASK = segmentation(
    "msd_prostate",
    "Task05_Prostate",
    title="Zones of the prostate",
    modality="MR",
    anatomy="prostate",
    classes=("background", "peripheral zone", "transition zone"),
    lattice_mm=1.5,
    tolerance_mm=4.0,
    cases=32,
    md5="35138f08b1efaef89d7424d2bcc928db",
    note="One channel of two is read: T2, on which the zones are seen. 32 patients: intervals are "
    "wide.",
    ids=tuple(f"prostate_{number:02d}" for number in numbers(CASES)),
    channel=CHANNEL,
)
