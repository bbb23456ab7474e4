"""Sides, folds and supports depend on the patient alone."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tomoprobe.benchmark import splits
from tomoprobe.benchmark.errors import PatientError
from tomoprobe.benchmark.types import Seat

from .toy import CARD

HASHED = replace(CARD, counts={"cases": 400, "patients": 400})
SMALL = replace(CARD, counts={"cases": 51, "patients": 51})

patients = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=40, unique=True)


def seats(ids: list[str]) -> list[Seat]:
    return [Seat(f"{patient}/scan", patient) for patient in ids]


@given(patients, patients)
def test_adding_patients_moves_nobody(some: list[str], others: list[str]) -> None:
    more = list(dict.fromkeys([*some, *others]))
    alone = {s.patient: s.split for s in splits.assign(HASHED, seats(some))}
    together = {s.patient: s.split for s in splits.assign(HASHED, seats(more))}
    assert {p: together[p] for p in some} == alone


@given(patients, st.randoms())
def test_the_order_of_the_cases_changes_no_side_and_no_hash(ids: list[str], random) -> None:
    shuffled = ids[:]
    random.shuffle(shuffled)
    one, other = (splits.assign(HASHED, seats(order)) for order in (ids, shuffled))
    assert sorted(one) == sorted(other)
    assert splits.split_sha(HASHED, one) == splits.split_sha(HASHED, other)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 5))
def test_supports_are_nested_and_hold_k_of_each_class(a: int, b: int, draw: int) -> None:
    small, large = sorted((a, b))
    ids = [f"p{i}" for i in range(24)]
    labels = [i % 3 for i in range(24)]
    few = splits.support(HASHED, draw, ids, labels, small)
    many = splits.support(HASHED, draw, ids, labels, large)
    assert set(few) <= set(many)
    for chosen, k in ((few, small), (many, large)):
        assert sorted(labels[ids.index(p)] for p in chosen) == sorted([0, 1, 2] * k)


@given(st.sets(st.integers(0, 60), min_size=4, max_size=20), st.integers(0, 60))
def test_a_new_patient_only_pushes_later_ones_out_of_a_support(known: set[int], new: int) -> None:
    before = splits.support(HASHED, 0, [f"p{i}" for i in known], [0] * len(known), 4)
    joined = known | {new}
    after = splits.support(HASHED, 0, [f"p{i}" for i in joined], [0] * len(joined), 4)
    assert len(set(before) - set(after)) <= 1
    assert set(after) - set(before) <= {f"p{new}"}


def test_draws_differ() -> None:
    ids = [f"p{i}" for i in range(50)]
    drawn = {tuple(splits.support(HASHED, draw, ids, [0] * 50, 5)) for draw in range(10)}
    assert len(drawn) == 10


def test_a_class_with_too_few_patients_is_refused() -> None:
    with pytest.raises(PatientError, match=r"Class 1 of 'toy' has 2 training patients, but 3"):
        splits.support(HASHED, 0, ["a", "b", "c", "d", "e"], [0, 0, 0, 1, 1], 3)


def test_a_patient_given_twice_to_a_support_is_refused() -> None:
    with pytest.raises(PatientError, match="given twice"):
        splits.support(HASHED, 0, ["a", "a"], [0, 0], 1)


def test_all_scans_of_a_patient_are_on_one_side() -> None:
    scans = [Seat(f"p{i // 3}/{i}", f"p{i // 3}") for i in range(90)]
    sides: dict[str, set] = {}
    for seat in splits.assign(HASHED, scans):
        sides.setdefault(seat.patient, set()).add(seat.split)
    assert all(len(found) == 1 for found in sides.values())
    assert set().union(*sides.values()) == {"train", "val", "test"}


def test_a_patient_on_two_sides_is_refused() -> None:
    with pytest.raises(
        PatientError, match=r"Patient 'p1' of 'toy' is on two sides: train and test"
    ):
        splits.assign(CARD, [Seat("a", "p1", "train"), Seat("b", "p1", "test")])


def test_a_case_listed_twice_is_refused() -> None:
    with pytest.raises(PatientError, match="Case 'a' of 'toy' is listed twice"):
        splits.assign(CARD, [Seat("a", "p1", "train"), Seat("a", "p1", "train")])


def test_the_publishers_side_is_kept() -> None:
    official = [Seat(f"c{i}", f"p{i}", "test") for i in range(20)]
    assert {s.split for s in splits.assign(CARD, official)} == {"test"}


def test_shares_are_about_those_stated() -> None:
    placed = splits.assign(HASHED, seats([f"p{i}" for i in range(4000)]))
    share = {side: sum(s.split == side for s in placed) / 4000 for side in ("val", "test")}
    assert share["test"] == pytest.approx(splits.TEST_SHARE, abs=0.02)
    assert share["val"] == pytest.approx(splits.VAL_SHARE, abs=0.02)


def test_small_sets_are_cross_validated_whatever_the_copy_holds() -> None:
    assert splits.uses_cv(SMALL)
    assert not splits.uses_cv(HASHED)
    assert not splits.uses_cv(CARD)  # 60 patients, but an official split
    assert {s.split for s in splits.assign(SMALL, seats(["a", "b"]))} == {None}
    folds = [splits.fold(SMALL, 0, f"p{i}") for i in range(500)]
    assert sorted(set(folds)) == list(range(splits.FOLDS))


def test_another_version_of_a_task_has_another_split() -> None:
    second = replace(HASHED, version=2)
    ids = [f"p{i}" for i in range(100)]
    first, other = (splits.assign(card, seats(ids)) for card in (HASHED, second))
    assert [s.split for s in first] != [s.split for s in other]
    assert splits.split_sha(HASHED, first) != splits.split_sha(second, other)


def test_the_hash_tells_lists_apart() -> None:
    whole = splits.assign(SMALL, seats(["a", "b", "c"]))
    assert splits.split_sha(SMALL, whole) != splits.split_sha(SMALL, whole[:2])
    assert len(splits.split_sha(SMALL, whole)) == 64
