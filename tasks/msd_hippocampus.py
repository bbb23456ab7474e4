"""Anterior and posterior hippocampus on T1 MR.

Input: T1 MR crops around one hippocampus, about 35x50x36 mm, 1 mm isotropic.
Label: mask with 0 background, 1 anterior, 2 posterior.
Split: hashed; the labels of the publisher's test set are not public.
License: CC BY-SA 4.0.
"""

from ..benchmark.types import TaskCard
from ._msd import CITATION, LICENSE, SOURCE, archive, numbers, task

FOLDER = "Task04_Hippocampus"
LABELS = (1, 2)

CASES = """
    1 3-4 6-8 11 14-15 17 19-20 23-26 33-42 44-46 48-53 56-58 60 64-65 67-68 70 74-75 77 83-84
    87-99 101-102 104-109 114 123-127 130 132-133 135-136 138 141-146 148-150 152 154-158 160-166
    169-178 180-181 184-185 188-190 193-195 197 199 203-205 207 210 212 215-217 219-236 238
    242-245 248-253 257 259-261 263-265 268-269 274 276-277 279-280 282 286-290 292 294-305
    308-311 314 316-322 325-338 340-341 343 345 349-356 358-361 363 366-368 370 372-376 378
    380-381 383 385-387 389-390 393-394
"""
"""Numbers of the 260 public training cases, from the publisher's dataset.json."""

CARD = TaskCard(
    name="msd_hippocampus",
    version=1,
    title="Anterior and posterior hippocampus",
    kind="segmentation",
    modality="MR",
    anatomy="hippocampus",
    metric="dice",
    license=LICENSE,
    source=SOURCE,
    citation=CITATION,
    counts={"cases": 260, "patients": 260},
    classes=("background", "anterior", "posterior"),
    # the largest crop: nothing is cut, smaller ones are padded
    field_of_view_mm=(44.0, 60.0, 48.0),
    lattice_mm=(1.0, 1.0, 1.0),  # the images' own
    tolerance_mm=1.0,  # the challenge's (Antonelli et al. 2022, Methods, "Metrics")
    forward_voxels=2**21,  # ours: sixteen times the field of view at 1 mm
    data_set="msd_hippocampus",
    files=(archive(FOLDER, "9d24dba78a72977dbd1d2e110310f31b"),),
    note="The set has crops of the left and right hippocampus of 195 subjects, whose ids are not "
    "published: each crop counts as a patient, so both sides of the split may hold one subject and "
    "intervals are a little too narrow.",
)

IDS = tuple(f"hippocampus_{number:03d}" for number in numbers(CASES))

TASK = task(CARD, FOLDER, "scanner", IDS, target=lambda mask: mask)
