"""What is kept under shifts, and how little embeddings move: the numbers and the two studies."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tomoprobe.benchmark import evaluate, metrics, predictions, shifts
from tomoprobe.benchmark.cache import FeatureCache
from tomoprobe.benchmark.errors import ProbeError
from tomoprobe.benchmark.features import FrozenEncoder, identify
from tomoprobe.benchmark.probes import linear, shift, stability
from tomoprobe.benchmark.studies import Setting
from tomoprobe.benchmark.targets import Labels
from tomoprobe.benchmark.types import Case, Task, Volume

from . import study_shift, toy
from .toy import ToyEncoder

VIEWS = ["clean", *(v.name for v in shifts.VIEWS)]


def setting(
    folder: Path, task: Task, encoder: FrozenEncoder, cases: list[Case] | None = None
) -> Setting:
    found = list(task.cases(folder)) if cases is None else cases
    return Setting(task.card, found, encoder, FeatureCache(folder), identify(task, found))


# --- metrics ---------------------------------------------------------------------------------


def answered(times: int = 4, **scores: Callable[[int], float]) -> pd.DataFrame:
    """Each view's probability of class 1 is given by case; six cases, each so many times."""
    n = 6 * times
    rows: dict[str, list] = {
        "case": [f"c{i}" for i in range(n)],
        "target": [0, 0, 0, 1, 1, 1] * times,
    }
    for name in VIEWS:
        p1 = [scores.get(name, scores["other"])(i % 6) for i in range(n)]
        rows |= {f"{name}_p0": [1 - p for p in p1], f"{name}_p1": p1}
    return pd.DataFrame(rows)


def value(name: str, table: pd.DataFrame) -> float:
    metric = metrics.get(name)
    return metric(*metric.read(table))


def right(i: int) -> float:
    return i / 6


def blind(i: int) -> float:
    return 0.5


def wrong(i: int) -> float:
    return 1 - i / 6


def test_all_is_kept_of_what_does_not_change() -> None:
    for metric in metrics.for_kind("robustness"):
        assert value(metric.name, answered(other=right)) == 1.0


def test_nothing_is_kept_of_what_falls_to_chance_or_below() -> None:
    for fallen in (blind, wrong):
        table = answered(clean=right, other=fallen)
        assert value("kept", table) == 0.0
    # the plain quotient of a coin's AUROC
    assert value("kept_score", answered(clean=right, other=blind)) == pytest.approx(0.5)


def test_a_model_at_chance_has_nothing_to_keep() -> None:
    table = answered(clean=blind, other=right)
    assert value("kept", table) == 0.0
    assert value("kept", answered(other=blind)) == 0.0 == metrics.get("kept").chance(np.zeros(3))
    assert value("kept_score", answered(other=blind)) == metrics.get("kept_score").chance(
        np.zeros(3)
    )


def test_each_kind_of_shift_has_its_own_number_and_kept_is_their_mean() -> None:
    table = answered(other=right, noise_3=blind, blur_1=blind, blur_2=blind, blur_3=blind)
    assert value("kept_noise", table) == pytest.approx(2 / 3)
    assert value("kept_blur", table) == 0.0
    assert value("kept_motion", table) == 1.0
    parts = [value(f"kept_{s.name}", table) for s in shifts.SHIFTS]
    assert value("kept", table) == pytest.approx(np.mean(parts))


def test_a_share_is_that_of_the_gain_over_chance() -> None:
    def half(i: int) -> float:  # 6 of 9 pairs in order: AUROC 0.667
        return [0.1, 0.4, 0.6, 0.3, 0.5, 0.7][i]

    table = answered(clean=right, other=half)
    assert value("kept", table) == pytest.approx((6 / 9 - 0.5) / 0.5)
    assert value("kept_score", table) == pytest.approx(6 / 9)


def test_a_gain_that_may_be_luck_is_not_kept_in_full() -> None:
    def barely(i: int) -> float:  # AUROC 6/9
        return [0.1, 0.4, 0.6, 0.3, 0.5, 0.7][i]

    kept = [value("kept", answered(times, other=barely)) for times in (1, 4, 40)]
    assert 0 < kept[0] < kept[1] < kept[2] == 1.0
    luck = np.sqrt((3 + 3 + 1) / (12 * 3 * 3))  # of the AUROC of six cases in random order
    assert kept[0] == pytest.approx((6 / 9 - 0.5) / (2 * luck))
    assert value("kept_score", answered(1, other=barely)) == 1.0


def test_errors_are_kept_when_they_do_not_grow() -> None:
    y = np.tile([0.0, 1, 2, 3, 4, 10], 9)
    rows = {"case": [f"c{i}" for i in range(54)], "target": y}
    rows |= {f"{name}_value": y + (1.0 if name == "clean" else 1.5) for name in VIEWS}
    table = pd.DataFrame(rows)
    chance = np.abs(y - np.median(y)).mean()
    assert value("kept", table) == pytest.approx((chance - 1.5) / (chance - 1))
    assert value("kept_score", table) == pytest.approx(1 / 1.5)


def test_dice_is_kept_as_a_mean_over_classes_of_the_patients_that_count() -> None:
    rows: dict[str, list] = {"case": ["a", "b"]}
    for name in VIEWS:
        clean = name == "clean"
        rows[f"{name}_dice_1"] = [0.8 if clean else 0.4, 0.6 if clean else 0.3]
        rows[f"{name}_dice_2"] = [0.5 if clean else 0.25, np.nan]
    table = pd.DataFrame(rows)
    assert value("kept", table) == value("kept_score", table) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["kept", "kept_noise", "kept_score"])
def test_weighting_a_robustness_answer_is_repeating_its_rows(name: str) -> None:
    rng = np.random.default_rng(0)
    metric = metrics.get(name)
    target = np.arange(12) % 2
    p1 = np.clip(0.3 * target[:, None] + rng.random((12, 22)) * 0.7, 0, 1)
    weights = rng.integers(0, 4, size=(5, 12))
    prediction = np.stack([1 - p1, p1], 2)
    values = p1 + 1.0
    for t, p in ((target, prediction), (target.astype(float), values)):
        drawn = metric(t, p, weights)
        for row, score in zip(weights, drawn, strict=True):
            again = np.repeat(np.arange(12), row)
            if t.dtype == float and name != "kept_score":
                continue  # the median of the whole sample is chance there
            assert score == pytest.approx(metric(t[again], p[again]), nan_ok=True)


# --- the shift study -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("cv", [False, True])
def test_the_clean_view_is_the_linear_probe(tmp_path: Path, kind: str, cv: bool) -> None:
    counts = {"cases": 36, "patients": 36} if cv else study_shift.CARD.counts
    card = replace(
        study_shift.CARD,
        kind=kind,  # type: ignore[arg-type]
        counts=counts,
        classes=("small", "large") if kind == "classification" else (),
    )
    cases = study_shift.cases()
    if kind == "regression":
        cases = [replace(c, target=float(c.target) + i / 10) for i, c in enumerate(cases)]  # type: ignore[arg-type]
    cases = [replace(c, split=None) for c in cases] if cv else cases
    at = setting(tmp_path, Task(card, lambda root: cases), study_shift.Size(), cases)
    table = shift.ShiftStudy().run(at)
    x = at.cache.get(at.encoder, card.data_set, cases, at.identity, None).x
    probe = linear.PROBES[0]
    wanted = evaluate.predict(card, cases, x, probe).query("repeat == 0")
    column = "p1" if kind == "classification" else "value"
    for refit in (-1, 0):
        one = table.query(f"refit == {refit}").sort_values("case")
        other = wanted.query(f"refit == {refit}").sort_values("case")
        assert one["case"].tolist() == other["case"].tolist()
        np.testing.assert_array_equal(one["fold"], other["fold"])
        np.testing.assert_allclose(one[f"clean_{column}"], other[column], atol=1e-9)
    assert {f"{v}_{column}" for v in VIEWS} <= set(table.columns)


def test_a_shifted_view_is_the_answer_to_the_shifted_image(tmp_path: Path) -> None:
    at = setting(tmp_path, study_shift.task(), study_shift.Size())
    table = shift.ShiftStudy().run(at).query("refit == -1")
    # by hand: one test case replaced by its blurred image, under the ordinary probe
    cases = list(at.cases)
    row = next(i for i, c in enumerate(cases) if c.split == "test")
    blurred = shifts.shifted(cases[row].load(), shifts.view("blur_2"), cases[row].id)
    cases[row] = replace(cases[row], load=lambda: blurred, digest=lambda: "blurred")
    other = setting(tmp_path / "b", study_shift.task(), study_shift.Size(), cases)
    x = other.cache.get(other.encoder, "toy", cases, other.identity, None).x
    wanted = evaluate.predict(at.card, cases, x, linear.PROBES[0])
    wanted = wanted.query(f"refit == -1 and case == '{cases[row].id}'")["p1"].item()
    found = table.query(f"case == '{cases[row].id}'")
    assert found["blur_2_p1"].item() == pytest.approx(wanted, abs=1e-6)
    assert found["clean_p1"].item() != pytest.approx(wanted, abs=1e-6)


def test_shifted_embeddings_are_kept(tmp_path: Path) -> None:
    encoder = ToyEncoder()
    cases = toy.cases()[26:46]  # all sides, few of each
    task = Task(toy.CARD, lambda root: cases)
    first = shift.ShiftStudy().run(setting(tmp_path, task, encoder, cases))
    seen = encoder.seen
    second = shift.ShiftStudy().run(setting(tmp_path, task, encoder, cases))
    assert encoder.seen == seen
    pd.testing.assert_frame_equal(first, second)


class Bright:
    """The image as a map."""

    card = replace(study_shift.SIZE, name="toy_image", strides=(1,))
    model_sha = "3" * 64
    module = None

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :2]

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x]


def test_a_segmentation_is_followed_by_its_labels(tmp_path: Path) -> None:
    card = replace(
        study_shift.CARD,
        kind="segmentation",
        metric="dice",
        classes=("background", "rod"),
        lattice_mm=(1.0, 1.0, 1.0),
        tolerance_mm=1.0,
    )

    def rod(i: int, split: str) -> Case:
        labels = np.zeros((16, 16, 4), np.uint8)
        labels[2:14, 6 + i % 3 : 9 + i % 3] = 1
        noise = np.random.default_rng(i).random(labels.shape) * 0.05
        voxels = (0.1 + 0.7 * labels + noise)[None].astype(np.float32)
        volume = Volume(voxels, np.eye(4), "relative")
        target = Labels(lambda: (labels, np.eye(4)), lambda: f"l{i}")
        return Case(f"c{i}", f"p{i}", target, lambda: volume, lambda: f"i{i}", split)  # type: ignore[arg-type]

    cases = [rod(i, s) for i, s in enumerate(["train"] * 4 + ["val"] * 2 + ["test"] * 2)]
    table = shift.ShiftStudy().run(
        setting(tmp_path, Task(card, lambda root: cases), Bright(), cases)
    )
    assert len(table) == 2
    assert table["clean_dice_1"].min() > 0.97
    # turned by 20 degrees the rod is nowhere near its old place, yet found
    assert table["rotation_3_dice_1"].min() > 0.85
    assert table["blur_3_dice_1"].max() < table["clean_dice_1"].min()
    assert 0.5 < value("kept", table) < 1


# --- the stability study ---------------------------------------------------------------------


def test_icc_is_that_of_shrout_and_fleiss_for_one_feature() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=40)
    a, b = (true + 0.5 * rng.normal(size=40) for _ in range(2))
    both = np.stack([a, b], 1)
    between = 2 * both.mean(1).var(ddof=1)
    within = both.var(axis=1, ddof=1).mean()
    wanted = (between - within) / (between + within)
    columns = stability.compared(a[:, None], b[:, None])
    names = [*(v.name for v in shifts.VIEWS), "moved"]
    table = pd.DataFrame({f"{n}_{c}": columns[c] for n, c in product(names, columns)})
    assert value("icc", table) == pytest.approx(wanted)
    assert value("icc_moved", table) == pytest.approx(wanted)


def test_an_embedding_that_does_not_move_is_recognised_and_one_at_random_is_not() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 8))
    same = stability.compared(x, x)
    assert same["itself"].all() and (same["shared"] == 1).all() and not same["within"].any()
    other = stability.compared(x, rng.normal(size=(30, 8)))
    assert other["itself"].mean() < 0.2 and other["shared"].mean() < 0.4
    constant = stability.compared(np.zeros((30, 0)), np.zeros((30, 0)))
    assert not constant["itself"].any() and not constant["between"].any()


def test_a_constant_embedding_has_no_icc(tmp_path: Path) -> None:
    table = stability.StabilityStudy().run(
        setting(tmp_path, study_shift.task(), study_shift.trivial())
    )
    assert np.isnan(value("icc", table)) and value("neighbours", table) == 0.0


def test_the_unit_of_a_feature_does_not_matter(tmp_path: Path) -> None:
    class Louder(study_shift.Size):
        model_sha = "4" * 64

        def embed(self, x: torch.Tensor) -> torch.Tensor:
            return super().embed(x) * torch.tensor([1000.0, 0.01]) + 5

    tables = [
        stability.StabilityStudy().run(setting(tmp_path, study_shift.task(), encoder))
        for encoder in (study_shift.Size(), Louder())
    ]
    assert value("icc", tables[0]) == pytest.approx(value("icc", tables[1]), abs=1e-4)


def test_only_so_many_scans_of_the_test_side_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stability, "MOST", 5)
    at = setting(tmp_path, study_shift.task(), study_shift.Size())
    table = stability.StabilityStudy().run(at)
    tested = {c.id for c in at.cases if c.split == "test"}
    assert len(table) == 5 and set(table["case"]) <= tested
    # a case that is added moves no other out, unless its hash is smaller
    more = [*at.cases, study_shift.ball(99, True, "test")]
    later = stability.StabilityStudy().run(
        setting(tmp_path / "b", study_shift.task(), study_shift.Size(), more)
    )
    assert len(set(table["case"]) & set(later["case"])) >= 4


def test_two_scans_are_too_few_to_compare(tmp_path: Path) -> None:
    few = study_shift.cases()[:22]
    with pytest.raises(ProbeError, match="2 test scans"):
        stability.StabilityStudy().run(
            setting(tmp_path, study_shift.task(), study_shift.Size(), few)
        )


def test_all_numbers_of_stability_come_with_intervals_from_the_stored_table(tmp_path: Path) -> None:
    table = stability.StabilityStudy().run(
        setting(tmp_path, study_shift.task(), study_shift.Size())
    )
    about = predictions.Provenance(
        "toy", "0", "toy", 1, "stability", 1, "stability", 2, False, False, 0.0, "cpu", "", "", ""
    )
    stored = predictions.from_parquet(predictions.to_parquet(table, about))
    rows = {row.metric: row for row in evaluate.score(*stored).results}
    icc = rows["icc"]
    assert icc.score is not None and icc.low is not None and icc.high is not None
    assert icc.low < icc.score < icc.high
    assert rows["neighbours"].score is not None


def test_a_clean_score_at_chance_still_gets_an_interval() -> None:
    # clean: no gain on the whole sample, some on many of its draws
    rng = np.random.default_rng(0)
    p1 = rng.permutation(20) / 20
    target = np.arange(20) % 2
    if metrics.get("auroc")(target, np.stack([1 - p1, p1], 1)) > 0.5:
        p1 = 1 - p1
    rows = {"case": [f"c{i}" for i in range(20)], "patient": [f"p{i}" for i in range(20)]}
    table = pd.DataFrame(rows | {"target": target, "repeat": 0, "fold": 0, "refit": -1})
    for name in VIEWS:
        table[f"{name}_p0"], table[f"{name}_p1"] = 1 - p1, p1
    about = predictions.Provenance(
        "toy", "0", "toy", 1, "shift", 1, "robustness", 2, False, False, 0.0, "cpu", "", "", ""
    )
    kept = next(r for r in evaluate.score(table, about).results if r.metric == "kept")
    assert kept.score == 0.0 and kept.low == 0.0 and kept.high is not None and kept.high > 0.1
