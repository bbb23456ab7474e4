"""Glioma on T1-weighted MR after contrast.

Input: MR of the whole brain, 240x240x155 at 1 mm; of the four channels (FLAIR, T1, T1 after
contrast, T2) the third. Skull-stripped, registered by the publisher (BraTS).
Label: mask with 0 background, 1 edema, 2 non-enhancing tumour, 3 enhancing tumour.
Split: hashed; the labels of the publisher's test set are not public.
License: CC BY-SA 4.0.
"""

from ._msd import segmentation

CHANNEL = 2
"""Order in the publisher's dataset.json: FLAIR, T1w, t1gd, T2w."""

TASK = segmentation(
    "msd_brain_tumour",
    "Task01_BrainTumour",
    title="Glioma on T1 MR after contrast",
    modality="MR",
    anatomy="brain",
    classes=("background", "edema", "non-enhancing tumour", "enhancing tumour"),
    lattice_mm=2.0,
    tolerance_mm=5.0,
    cases=484,
    md5="240a19d752f0d9e9101544901065d872",
    note="One channel of four is read: T1 after contrast, which shows the enhancing tumour; edema "
    "is better seen on FLAIR, so scores are no measure of what four channels allow. The "
    "images are those of BraTS 2016 and 2017, on whose successors published encoders are "
    "pretrained.",
    ids=tuple(f"BRATS_{number:03d}" for number in range(1, 485)),
    channel=CHANNEL,
)
