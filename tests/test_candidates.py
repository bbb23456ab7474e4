"""Marked places: which are right, what is learnt from them, and the FROC curve they give."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tomoprobe import tasks
from tomoprobe.benchmark import metrics, predictions, probes
from tomoprobe.benchmark.cache import FeatureCache
from tomoprobe.benchmark.errors import EncoderError, ProbeError, TaskFileError
from tomoprobe.benchmark.features import FrozenEncoder, identify
from tomoprobe.benchmark.probes import score_candidates
from tomoprobe.benchmark.studies import Setting, Study
from tomoprobe.benchmark.targets import Lesion, Suspects
from tomoprobe.benchmark.types import Case, Task

from . import study_score_candidates, toy
from .study_score_candidates import CARD, cases, oracle


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., pd.DataFrame]:
    def _run(made: list[Case], encoder: FrozenEncoder | None = None) -> pd.DataFrame:
        task = tasks.check(Task(CARD, lambda root: made))
        opened, _ = tasks.open_cases(task, None, subset=True)
        encoder = encoder or oracle()
        cache = FeatureCache(tmp_path / "cache")
        study = probes.get("score_candidates")
        assert isinstance(study, Study)
        return study.run(Setting(CARD, opened, encoder, cache, identify(task, opened)))

    return _run


def of(case: Case) -> Suspects:
    assert isinstance(case.target, Suspects)
    return case.target


def changed(side: str, change: Callable[[Suspects], Suspects]) -> list[Case]:
    return [replace(c, target=change(of(c))) if c.split == side else c for c in cases()]


def headline(table: pd.DataFrame) -> pd.DataFrame:
    return predictions.headline_of(table).set_index("case")


def test_a_mark_is_right_within_the_radius_of_the_nearest_lesion(run) -> None:
    lesions = (Lesion((0.0, 0.0, 0.0), 6.0), Lesion((5.0, 0.0, 0.0), 8.0))
    marks = ((0.0, 2.9, 0.0), (0.0, 3.1, 0.0), (2.0, 0.0, 0.0), (9.1, 0.0, 0.0), (2.8, 0.0, 0.0))
    made = cases()
    made = [*made[:-1], replace(made[-1], target=Suspects(lesions, marks))]
    row = headline(run(made)).loc[made[-1].id]
    assert list(row["found"]) == [0, -1, 0, -1, 1]
    assert row["lesions"] == 2
    assert list(row["x_mm"]) == [0, 0, 2, 9.1, 2.8]


def test_a_lesion_that_nobody_marked_is_missed_by_everyone(run) -> None:
    """Half of the lesions lose their marks: the curve ends at half."""
    rng = iter(range(100))

    def unmarked(target: Suspects) -> Suspects:
        if not target.lesions or next(rng) % 2:
            return target
        away = [p for p in target.places if all(math.dist(p, o.center) > 3 for o in target.lesions)]
        return Suspects(target.lesions, tuple(away))

    table = headline(run(changed("test", unmarked)))
    found = sum(len({f for f in row if f >= 0}) for row in table["found"])
    lesions = table["lesions"].sum()
    assert 0 < found < lesions
    cpm = metrics.get("cpm")
    read = cpm.read(table.reset_index())
    assert cpm(read.target, read.prediction) == pytest.approx(found / lesions, abs=0.05)


def test_the_order_of_marks_does_not_matter_and_an_image_may_have_none(run) -> None:
    plain = headline(run(cases()))
    turned = headline(
        run([replace(c, target=Suspects(of(c).lesions, of(c).places[::-1])) for c in cases()])
    )
    for case in plain.index:
        np.testing.assert_allclose(
            plain.loc[case, "scores"], turned.loc[case, "scores"][::-1], rtol=1e-6
        )
    empty = headline(run(changed("test", lambda target: Suspects(target.lesions, ()))))
    assert all(len(scores) == 0 for scores in empty["scores"])
    assert len(empty) == len(plain)


def test_what_is_true_of_test_cases_changes_no_score(run) -> None:
    blind = changed("test", lambda target: Suspects((), target.places))
    assert headline(run(blind))["scores"].tolist() == headline(run(cases()))["scores"].tolist()


def test_where_marks_are_too_many_the_right_ones_are_kept(run, monkeypatch) -> None:
    learnt = []
    fit = score_candidates.fit

    def noted(parts, *rest):
        learnt.append([part.label for part in parts])
        return fit(parts, *rest)

    monkeypatch.setattr(score_candidates, "fit", noted)
    monkeypatch.setattr(score_candidates, "POINTS_IN_ALL", 14 * 4)
    run(cases())
    train = [of(case) for case in cases() if case.split == "train"]
    assert [len(labels) for labels in learnt[0]] == [4] * len(train)
    assert [sum(labels) for labels in learnt[0]] == [len(target.lesions) for target in train]


def test_what_cannot_be_told_apart_is_said(run) -> None:
    with pytest.raises(EncoderError, match="no maps"):
        run(cases(), toy.ToyEncoder())
    with pytest.raises(ProbeError, match="no right mark"):
        run(changed("train", lambda target: Suspects((), target.places)))

    def right(target: Suspects) -> Suspects:
        return Suspects(target.lesions, tuple(lesion.center for lesion in target.lesions))

    with pytest.raises(ProbeError, match="no wrong mark"):
        run(changed("train", right))


def test_refits_tell_right_from_wrong_marks_where_most_images_have_but_right_ones(run) -> None:
    """A draw without a wrong mark would give NaN for scores."""
    first = next(case.id for case in cases() if case.split == "train")

    def right_alone(case: Case) -> Case:
        if case.split != "train" or case.id == first:
            return case
        lesions = of(case).lesions
        return replace(case, target=Suspects(lesions, tuple(one.center for one in lesions)))

    table = run([right_alone(case) for case in cases()])
    assert set(table["refit"]) == {predictions.HEADLINE, 0, 1, 2}
    assert all(np.isfinite(scores).all() for scores in table["scores"])


def test_a_mark_outside_of_the_image_is_read_at_its_border(run) -> None:
    last = cases()[-1]
    outside = [(30.0, 0.0, 0.0), (500.0, 0.0, 0.0)]
    made = [*cases()[:-1], replace(last, target=Suspects(of(last).lesions, tuple(outside)))]
    near, far = headline(run(made)).loc[last.id, "scores"]
    assert near == pytest.approx(far)


def test_progress_ends_at_its_total(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    task = study_score_candidates.task()
    opened, _ = tasks.open_cases(task, None, subset=True)
    study = probes.get("score_candidates")
    assert isinstance(study, Study)
    setting = Setting(CARD, opened, oracle(), FeatureCache(tmp_path), identify(task, opened))
    study.run(replace(setting, progress=lambda done, total: told.append((done, total))))
    assert [done for done, _ in told] == list(range(1, 41))
    assert {total for _, total in told} == {40}


def test_places_may_be_rows_of_an_array(run) -> None:
    last = cases()[-1]
    target = Suspects(of(last).lesions, np.array(of(last).places, np.float32))  # type: ignore[arg-type]
    table = headline(run([*cases()[:-1], replace(last, target=target)]))
    assert table.loc[last.id, "scores"] == pytest.approx(
        headline(run(cases())).loc[last.id, "scores"], rel=1e-3
    )


@pytest.mark.parametrize(
    "target",
    [
        (),
        Suspects((), ((0.0, math.nan, 0.0),)),
        Suspects((), ((0.0, 0.0),)),  # type: ignore[arg-type]
        Suspects((Lesion((0.0, 0.0, 0.0), 0.0),), ()),
    ],
)
def test_a_target_that_is_none_is_refused_by_name(target) -> None:
    made = [*cases()[:-1], replace(cases()[-1], target=target)]
    with pytest.raises(TaskFileError, match=r"case039.*Expected Suspects"):
        tasks.open_cases(Task(CARD, lambda root: made), None, subset=True)


def test_scores_change_with_the_places_that_are_told_of_in_the_data_set_hash() -> None:
    task = study_score_candidates.task()
    moved = changed("test", lambda target: Suspects(target.lesions, target.places[1:]))
    one, other = identify(task, cases()), identify(task, moved)
    assert one.images_sha == other.images_sha
    assert one.dataset_sha != other.dataset_sha


def test_in_every_smoke_head_one_mark_of_ten_is_right_if_there_is_a_lesion() -> None:
    made = tasks.get("smoke_lesion_candidates").cases(Path())
    assert sum(bool(of(case).lesions) for case in made) == 120
    for case in made:
        target = of(case)
        assert len(set(target.places)) == 10
        near = [
            [
                math.dist(place, lesion.center) <= lesion.diameter_mm / 4 + 2e-3
                for place in target.places
            ]
            for lesion in target.lesions
        ]
        assert [sum(row) for row in near] == [1] * len(target.lesions)
        away = [math.dist(p, o.center) for o in target.lesions for p in target.places]
        assert sum(mm > 20 for mm in away) == 9 * len(target.lesions)
