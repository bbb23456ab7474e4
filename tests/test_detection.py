"""Lesions: candidates in heat maps, what counts as found, and the FROC curve."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from tomoprobe import tasks
from tomoprobe.benchmark import metrics, predictions, probes
from tomoprobe.benchmark.cache import FeatureCache
from tomoprobe.benchmark.errors import EncoderError, ProbeError
from tomoprobe.benchmark.features import FrozenEncoder, identify
from tomoprobe.benchmark.lattice import lattice_of
from tomoprobe.benchmark.metrics.detection import RATES
from tomoprobe.benchmark.probes._candidates import Candidates, hit_mm, peaks, sampled
from tomoprobe.benchmark.studies import Setting, Study
from tomoprobe.benchmark.targets import Lesion
from tomoprobe.benchmark.types import Task, TaskCard
from tomoprobe.tasks._sarcoma_detection import box_of

from . import study_detect, toy

CPM = metrics.get("cpm")
AT_1 = metrics.get("sensitivity_1")


# --- the metric ------------------------------------------------------------------------------


def table(*scans: tuple[list[float], list[int], int]) -> pd.DataFrame:
    return pd.DataFrame(scans, columns=["scores", "found", "lesions"])


BY_HAND = table(
    ([0.9, 0.8, 0.7, 0.6], [0, -1, 0, 1], 2),
    ([0.85, 0.5], [-1, 0], 1),
)
"""In order: hit, false (1/2 per scan), false (1 per scan), a second hit of one lesion, hit, hit."""


def test_froc_by_hand() -> None:
    read = CPM.read(BY_HAND)
    # a third at 1/8, 1/4 and 1/2; all at 1 and more
    assert CPM(read.target, read.prediction) == pytest.approx((3 * (1 / 3) + 4) / 7)
    assert AT_1(read.target, read.prediction) == pytest.approx(1)
    assert metrics.get("sensitivity_8")(read.target, read.prediction) == pytest.approx(1)


def test_candidates_of_one_score_come_together() -> None:
    read = CPM.read(table(([0.5, 0.5], [0, -1], 1), ([], [], 0)))
    # one false positive in two scans; below 1/2 the curve rises linearly
    assert CPM(read.target, read.prediction) == pytest.approx((0.25 + 0.5 + 5) / 7)


def test_an_empty_list_finds_nothing_and_no_lesion_is_no_score() -> None:
    read = CPM.read(table(([], [], 1), ([0.3], [-1], 0)))
    assert CPM(read.target, read.prediction) == 0
    read = CPM.read(table(([0.3], [-1], 0), ([], [], 0)))
    assert np.isnan(CPM(read.target, read.prediction))


def random_scans(seed: int, n: int = 12) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    scans = []
    for _ in range(n):
        lesions = int(rng.integers(0, 4))
        found = rng.integers(-1, max(lesions, 1), 15) if lesions else np.full(15, -1)
        found = np.where(rng.random(15) < 0.6, -1, found)
        scores = np.round(rng.random(15) + 0.3 * (found >= 0), 1 + seed % 2)  # with ties
        scans.append((scores.tolist(), found.tolist(), lesions))
    return table(*scans)


def curve(scans: pd.DataFrame) -> np.ndarray:
    """Sensitivity at each rate, threshold by threshold."""
    best: list[float] = []
    wrong: list[float] = []
    for scores, found, lesions in scans.itertuples(index=False):
        wrong += [s for s, f in zip(scores, found, strict=True) if f < 0]
        for lesion in range(lesions):
            hits = [s for s, f in zip(scores, found, strict=True) if f == lesion]
            best += [max(hits)] if hits else []
    thresholds = sorted({*best, *wrong}, reverse=True)
    false = [0.0] + [sum(s >= t for s in wrong) / len(scans) for t in thresholds]
    right = [0.0] + [sum(s >= t for s in best) / scans["lesions"].sum() for t in thresholds]
    # of several sensitivities at one number of false positives the last, which is the best
    last = [i for i in range(len(false)) if i + 1 == len(false) or false[i + 1] > false[i]]
    # in between thresholds, from the best at the number before to the first at the next
    out = []
    for rate in RATES:
        at = max(i for i in last if false[i] <= rate + 1e-12)
        if at + 1 == len(false):
            out.append(right[at])
        else:
            share = (rate - false[at]) / (false[at + 1] - false[at])
            out.append(right[at] + share * (right[at + 1] - right[at]))
    return np.array(out)


@pytest.mark.parametrize("seed", range(6))
def test_the_curve_agrees_with_counting_at_every_threshold(seed: int) -> None:
    scans = random_scans(seed)
    read = CPM.read(scans)
    assert CPM(read.target, read.prediction) == pytest.approx(curve(scans).mean())
    assert AT_1(read.target, read.prediction) == pytest.approx(curve(scans)[RATES.index(1.0)])


def test_a_scan_that_is_drawn_twice_counts_twice() -> None:
    scans = random_scans(1)
    read = CPM.read(scans)
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 3, (5, len(scans)))
    drawn = CPM(read.target, read.prediction, counts)
    for count, score in zip(counts, drawn, strict=True):
        again = CPM.read(scans.loc[np.repeat(scans.index, count)])
        assert score == pytest.approx(CPM(again.target, again.prediction))


def test_folds_are_thresholded_by_themselves() -> None:
    one, other = random_scans(2), random_scans(3)
    both = CPM.read(pd.concat([one, other.assign(scores=other["scores"].map(shifted))]))
    fold = np.repeat([0, 1], [len(one), len(other)])
    found = [curve(part).mean() * part["lesions"].sum() for part in (one, other)]
    expected = sum(found) / (one["lesions"].sum() + other["lesions"].sum())
    assert CPM(both.target, both.prediction, fold=fold) == pytest.approx(expected)
    assert CPM(both.target, both.prediction) != pytest.approx(expected)


def shifted(scores: list[float]) -> list[float]:
    return [100 + s for s in scores]


# --- candidates ------------------------------------------------------------------------------

CARD = study_detect.CARD


def test_peaks_come_best_first_and_apart() -> None:
    heat = np.zeros((20, 20, 20), np.float32)
    heat[5, 5, 5], heat[5, 5, 8], heat[15, 10, 2] = 3, 2, 5
    found = peaks(heat, (2.0, 2.0, 2.0), 5.0)
    assert found.index[:3].tolist() == [[15, 10, 2], [5, 5, 5], [5, 5, 8]]
    assert found.score[:3].tolist() == [5, 3, 2]
    assert np.all(np.diff(found.score) <= 0)
    near = peaks(heat, (2.0, 2.0, 2.0), 6.0)  # 6 mm apart: suppressed
    assert [5, 5, 8] not in near.index.tolist()
    assert [5, 5, 8] in peaks(heat, (2.0, 2.0, 3.0), 6.0).index.tolist()
    place = found.index * 2.0
    distance = np.linalg.norm(place[:, None] - place, axis=2)
    assert distance[~np.eye(len(place), dtype=bool)].min() > 5


def test_a_shoulder_is_no_peak() -> None:
    ramp = np.broadcast_to(np.arange(20.0)[:, None, None], (20, 20, 20)).copy()
    ramp += 0.01 * np.arange(20) + 0.1 * np.arange(20)[:, None]
    assert peaks(ramp, (1.0, 1.0, 1.0), 3.0).index.tolist() == [[19, 19, 19]]


@pytest.mark.parametrize(
    ("diameter", "expected"), [(2.0, 2 * np.sqrt(3)), (10.0, 5.0), (30.0, 15.0), (150.0, 20.0)]
)
def test_a_lesion_is_hit_from_within_its_radius_but_not_from_far(
    diameter: float, expected: float
) -> None:
    assert hit_mm(Lesion((0, 0, 0), diameter), CARD) == pytest.approx(expected)


def test_of_two_lesions_the_nearer_is_hit() -> None:
    lattice = lattice_of((24, 24, 24), np.eye(4), CARD)
    one, other = lattice.to_mm(np.array([[2, 2, 2], [5, 2, 2]]))
    lesions = [Lesion(tuple(one), 10.0), Lesion(tuple(other), 10.0)]
    index = np.array([[2, 2, 2], [4, 2, 2], [5, 3, 2], [10, 10, 10]])
    found = Candidates(index, np.arange(4.0)).found(lattice, lesions, CARD)
    assert found.tolist() == [0, 1, 1, -1]
    assert Candidates(index, np.arange(4.0)).found(lattice, [], CARD).tolist() == [-1] * 4


def test_points_to_learn_from_are_inside_or_clearly_outside() -> None:
    lattice = lattice_of((60, 60, 60), np.eye(4), CARD)
    lesion = Lesion((30.0, 30.0, 30.0), 50.0)  # hit from 20 mm, 25 mm large
    index, label = sampled(lattice, [lesion], CARD, seed=0, most=400)
    away = np.linalg.norm(lattice.to_mm(index) - 30, axis=1)
    assert label.sum() == 100 and len(label) == 400
    assert away[label == 1].max() <= 20 and away[label == 0].min() > 25
    again = sampled(lattice, [lesion], CARD, seed=0, most=400)
    np.testing.assert_array_equal(again[0], index)
    index, label = sampled(lattice, [], CARD, seed=0, most=400)
    assert not label.any() and len(np.unique(index, axis=0)) == len(index)


# --- the study -------------------------------------------------------------------------------


def run(task: Task, encoder: FrozenEncoder, folder: Path) -> pd.DataFrame:
    cases, _ = tasks.open_cases(tasks.check(task), None, subset=True)
    setting = Setting(task.card, cases, encoder, FeatureCache(folder), identify(task, cases))
    study = probes.get("detect")
    assert isinstance(study, Study)
    return study.run(setting)


def few(card: TaskCard) -> Task:
    """Without an official split: cross-validated."""
    counts = {"cases": 12, "patients": 12}
    cases = [replace(study_detect.case(i + 1, "train"), split=None) for i in range(12)]
    return Task(replace(card, counts=counts), lambda root: cases)


def test_every_patient_is_tested_once_under_cross_validation(tmp_path: Path) -> None:
    every = run(few(CARD), study_detect.oracle(), tmp_path)
    assert every.groupby("refit").size().to_dict() == {
        predictions.HEADLINE: 12,
        0: 12,
        1: 12,
        2: 12,
    }
    found = predictions.headline_of(every)
    assert sorted(found["case"]) == [f"case{i + 1:03d}" for i in range(12)]
    assert set(found["fold"]) <= set(range(5)) and found["fold"].nunique() > 2
    assert set(found["repeat"]) == {0}
    read = CPM.read(found)
    assert CPM(read.target, read.prediction, fold=found["fold"].to_numpy()) > 0.8


def test_where_the_candidates_are_is_kept_in_scanner_mm(tmp_path: Path) -> None:
    task = study_detect.task()
    every = run(task, study_detect.oracle(), tmp_path)
    found = predictions.headline_of(every).set_index("case")
    for case in study_detect.cases():
        if case.split != "test":
            continue
        row = found.loc[case.id]
        places = np.column_stack([row["x_mm"], row["y_mm"], row["z_mm"]])
        lesions = case.target
        assert row["lesions"] == len(lesions)
        for place, hit in zip(places, row["found"], strict=True):
            away = [np.linalg.norm(place - lesion.center) for lesion in lesions]
            assert hit == -1 or away[hit] == min(away) <= 2 * np.sqrt(3)
            assert hit != -1 or all(a > 2 * np.sqrt(3) for a in away)


def test_test_cases_do_not_change_what_is_learnt(tmp_path: Path) -> None:
    """With other lesions on the test side the candidates stay."""
    cases = study_detect.cases()
    blind = [replace(c, target=()) if c.split == "test" else c for c in cases]
    blind[-1] = cases[-1]
    first = run(study_detect.task(), study_detect.oracle(), tmp_path / "a")
    second = run(Task(CARD, lambda root: blind), study_detect.oracle(), tmp_path / "b")
    assert first["scores"].tolist() == second["scores"].tolist()
    assert second["lesions"].sum() < first["lesions"].sum()


def test_what_cannot_be_located_is_said(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="no maps"):
        run(study_detect.task(), toy.ToyEncoder(), tmp_path)
    nowhere = [replace(c, target=()) for c in study_detect.cases()]
    with pytest.raises(ProbeError, match="No training case"):
        run(Task(CARD, lambda root: nowhere), study_detect.oracle(), tmp_path)


# --- tasks -----------------------------------------------------------------------------------


def test_smoke_lesions_are_where_the_image_changes() -> None:
    cases = tasks.get("smoke_lesion_detection").cases(Path())
    assert sum(bool(case.target) for case in cases) == 120
    inside, around = [], []
    for case in [c for c in cases if c.target][:12]:
        (lesion,) = case.target
        volume = case.load()
        index = np.indices(volume.voxels.shape[1:]).reshape(3, -1).T
        mm = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
        away = np.linalg.norm(mm - lesion.center, axis=1)
        values = volume.voxels[0].ravel()
        inside.append(values[away < 4].mean())
        around.append(values[(away > 10) & (away < 14)].mean())
    change = np.abs(np.array(inside) / np.array(around) - 1)
    assert np.median(change) > 0.1


def test_a_crop_that_points_at_the_tumour_is_moved(tmp_path: Path) -> None:
    folder = tmp_path / "soft_tissue_sarcoma"
    folder.mkdir()
    names = [f"STS_{i:03d}" for i in range(1, 9)]
    lines = [f"{name},M,50" for name in names]
    (folder / "metadata.csv").write_text("\n".join(["id,sex,age_years", *lines]))
    for name in names:
        (folder / name).mkdir()
        mask = np.zeros((30, 36, 24), np.uint8)
        mask[12:18, 15:21, 9:15] = 1
        affine = np.diag([-2.0, -2.0, 3.0, 1.0])
        for stem, array in (("ct", mask.astype(np.int16)), ("ct_gtv", mask)):
            nib.nifti1.save(nib.nifti1.Nifti1Image(array, affine), folder / name / f"{stem}.nii.gz")
    cases, _ = tasks.open_cases(tasks.get("sarcoma_ct_tumour_detection"), tmp_path, subset=True)
    offsets = []
    for case in cases:
        volume = case.load()
        (lesion,) = case.target
        assert volume.voxels.shape[1:] == (20, 24, 16)
        assert case.region is None, "the mask would be the answer"
        index = np.linalg.inv(volume.affine) @ [*lesion.center, 1]
        bright = np.argwhere(volume.voxels[0] > 0)
        assert np.all(bright.min(0) <= index[:3]) and np.all(index[:3] <= bright.max(0))
        offsets.append(index[:3] - (np.array([20, 24, 16]) - 1) / 2)
        assert lesion.diameter_mm == pytest.approx((6 * 6**3 * 12 / np.pi) ** (1 / 3), abs=1e-3)
    assert np.abs(offsets).max() > 2 and len({tuple(o) for o in offsets}) == len(names)
    assert len({case.digest() for case in cases}) == len(names)


def test_the_center_stays_in_the_box() -> None:
    for center in ((0.2, 0.0, 5.0), (29.0, 34.6, 23.0), (15, 18, 12)):
        for i in range(20):
            box = box_of(f"p{i}", (30, 36, 24), center)
            for a, b, c, n in zip(box.start, box.stop, center, (30, 36, 24), strict=True):
                assert 0 <= a < b <= n and a <= c <= b - 1 + 0.5
