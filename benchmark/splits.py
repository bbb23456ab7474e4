"""Who is on which side: pure functions of (task, version, purpose, draw, patient), by hashing.

Sides and folds look at one patient alone, so a new patient never moves another. That and exact
stratification exclude each other: whatever balances classes exactly must look at the others.
Sides and folds are therefore balanced on average only, and supports, which have to hold exactly
K patients of each class, are stratified prefixes of one hashed order: nested in K, and a new
patient can only push a later one out.

They live here, below ``tasks``, because the probes need them too.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from .errors import PatientError
from .hashing import sha_of
from .types import Case, Seat, Split, TaskCard

TEST_SHARE = 0.3
VAL_SHARE = 0.1
"""Shares of patients where the publisher gives no split. Test is the larger of the held-out
sides because the intervals come from it; 0.6 is left to train on."""

CV_BELOW = 200
"""Fewer patients than this in the complete set: repeated cross-validation instead of one split."""

FOLDS = 5
REPEATS = 5


def position(*parts: str | int) -> float:
    """Uniform number in [0, 1) that depends on nothing but ``parts``.

    >>> 0 <= position("task", 1, "side", 0, "p001") < 1
    True
    """
    key = json.dumps(parts, ensure_ascii=True).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") / 2**64


def uses_cv(card: TaskCard) -> bool:
    """Whether the protocol is repeated cross-validation: a fact of the card, not of the copy."""
    return card.counts["patients"] < CV_BELOW and "test" not in card.counts


def side(card: TaskCard, patient: str) -> Split:
    """The side of a patient whom the publisher put on none."""
    u = position(card.name, card.data_version, "side", 0, patient)
    if u < TEST_SHARE:
        return "test"
    return "val" if u < TEST_SHARE + VAL_SHARE else "train"


def fold(card: TaskCard, draw: int, patient: str, k: int = FOLDS) -> int:
    """The fold, in 0..k-1, that holds a patient out in one repeat of cross-validation."""
    return int(position(card.name, card.data_version, "fold", draw, patient) * k)


def support(
    card: TaskCard, draw: int, patients: Sequence[str], labels: Sequence[int], k: int
) -> list[str]:
    """The first ``k`` training patients of each class in the hashed order of one draw.

    Supports are nested: those for a smaller ``k`` are contained in those for a larger one.

    Args:
        card: of the task.
        draw: number of the draw.
        patients: training patients, any order, each once.
        labels: class of each patient.
        k: patients per class.

    Raises:
        PatientError: a class has fewer than ``k`` patients, or a patient is given twice.
    """
    if len(set(patients)) != len(patients):
        raise PatientError(
            "A patient is given twice; a support takes every patient once. Pass one label per "
            "patient."
        )
    chosen: list[str] = []
    for label in sorted(set(labels)):
        members = [p for p, y in zip(patients, labels, strict=True) if y == label]
        if len(members) < k:
            raise PatientError(
                f"Class {label} of '{card.name}' has {len(members)} training patients, but "
                f"{k} are needed. Use fewer shots."
            )
        members.sort(key=lambda p: position(card.name, card.data_version, "support", draw, p))
        chosen += members[:k]
    return chosen


def assign(card: TaskCard, seats: Sequence[Seat]) -> list[Seat]:
    """Give every seat its side and check that nobody sits twice.

    Under cross-validation everybody is ``test`` once per repeat: the side is left None.

    Raises:
        PatientError: a case twice, or a patient on two sides.
    """
    seen: set[str] = set()
    sides: dict[str, Split | None] = {}
    placed: list[Seat] = []
    for seat in seats:
        if seat.id in seen:
            raise PatientError(
                f"Case '{seat.id}' of '{card.name}' is listed twice. Every case has an id of "
                "its own: remove the copy."
            )
        seen.add(seat.id)
        split = None if uses_cv(card) else seat.split or side(card, seat.patient)
        if sides.setdefault(seat.patient, split) != split:
            raise PatientError(
                f"Patient '{seat.patient}' of '{card.name}' is on two sides: "
                f"{sides[seat.patient]} and {split}. A patient is on exactly one side: correct "
                "the split or the patient id."
            )
        placed.append(Seat(seat.id, seat.patient, split))
    return placed


def split_sha(card: TaskCard, placed: Sequence[Seat]) -> str:
    """sha256 of the list that was used: every case with its side, or its folds under CV."""
    lines = [
        [
            s.id,
            s.patient,
            s.split or [fold(card, draw, s.patient) for draw in range(REPEATS)],
        ]
        for s in sorted(placed)
    ]
    return sha_of(lines)


def seats_of(cases: Sequence[Case]) -> list[Seat]:
    """The cases without their images."""
    return [Seat(case.id, case.patient, case.split) for case in cases]


def published_card(card: TaskCard, placed: Sequence[Seat]) -> dict[str, Any]:
    """A task's card as it is published: plain JSON types, with the hash of the split.

    Args:
        card: of the task.
        placed: the complete set, as ``assign`` returns it; empty where its list is not known.
    """
    return card.as_dict() | {"split_sha": split_sha(card, placed) if placed else None}
