"""Pancreas and its tumours on CT.

Input: portal-venous CT of the abdomen, whole.
Label: mask with 0 background, 1 pancreas, 2 cancer.
Split: hashed; the labels of the publisher's test set are not public.
License: CC BY-SA 4.0.
"""

from ._msd import PRETRAINED_ON, numbers, segmentation

CASES = """
    1 4-6 10 12 15-16 18-19 21 24-25 28-29 32 35 37 40-43 45-46 48-52 55-56 58 61 64 66-67
    69-71 74-75 77-78 80-81 83-84 86-89 91-96 98-107 109-111 113-114 117 119-120 122 124-127
    129-131 135 137-138 140 145 147-149 155 157-160 165-167 169-170 172-173 175 178-183
    186-187 191 193-194 196-201 203-204 207 209-215 217-219 222 224-231 234-236 239 241-244
    246-247 249 253-256 258-259 261-262 264-270 274-280 283-287 289-305 308-313 315-316 318
    320-321 323 325-331 333-334 336 339 342-348 350-351 354-358 360-362 364-367 369-370 372
    374-380 382 385-389 391-393 395 398-402 404-406 409-416 418-419 421
"""
"""Numbers of the 281 public training cases, as two published lists of the archive give them."""

TASK = segmentation(
    "msd_pancreas",
    "Task07_Pancreas",
    title="Pancreas and its tumours",
    modality="CT",
    anatomy="pancreas",
    classes=("background", "pancreas", "cancer"),
    lattice_mm=2.5,
    tolerance_mm=5.0,
    cases=281,
    md5="4f7080cfca169fa8066d17ce6eb061e4",
    note=PRETRAINED_ON,
    ids=tuple(f"pancreas_{number:03d}" for number in numbers(CASES)),
)
