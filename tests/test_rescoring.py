"""Raising a version: what is recomputed from stored predictions, what waits for features."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine

from tomoprobe.benchmark import probes
from tomoprobe.benchmark.cache import FeatureCache
from tomoprobe.benchmark.types import Change, Probe, Task, TaskCard, redone_since
from tomoprobe.leaderboard import db
from tomoprobe.submissions.rescoring import rescore
from tomoprobe.submissions.runner import open_task, run
from tomoprobe.submissions.session import Session
from tomoprobe.submissions.upkeep import recompute

from .toy import CARD, TOY, ToyEncoder, cases

LINEAR = probes.get("linear")
NEW_METRIC = Change(2, "ranked by average precision", redo="scores")
NEW_LABELS = Change(2, "two labels were wrong")


class Silent:
    """A reporter that tells nobody."""

    def __getattr__(self, name: str) -> object:
        return lambda *args, **more: None


def evaluated(
    engine: Engine, folder: Path, task: Task = TOY, probe: Probe = LINEAR, subset: bool = False
) -> None:
    outcome = run(
        engine,
        {"toy": ToyEncoder},  # type: ignore[dict-item]
        [open_task(task, folder, subset)],
        [probe],
        FeatureCache(folder / "features"),
        "cpu",
        Silent(),  # type: ignore[arg-type]
    )
    assert not outcome.failures


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = db.connect(f"sqlite:///{tmp_path / 'board.db'}")
    db.migrate(engine)
    evaluated(engine, tmp_path)
    yield engine
    engine.dispose()


def raised(*changes: Change) -> dict[str, TaskCard]:
    return {"toy": replace(CARD, version=1 + len(changes), changes=changes)}


KNOWN = {"linear": LINEAR}


def replaced(change: Change) -> Probe:
    """The linear probe at version 2; a frozen dataclass takes no new attribute."""
    facts = {"name": LINEAR.name, "title": LINEAR.title, "kinds": LINEAR.kinds}
    return SimpleNamespace(**facts, version=2, changes=(change,))  # type: ignore[return-value]


def test_what_is_current_is_left_alone(engine: Engine) -> None:
    assert list(rescore(engine, {"toy": CARD}, KNOWN)) == []


def test_a_change_of_scores_is_recomputed_from_stored_predictions(engine: Engine) -> None:
    before = db.rows(engine)
    cards = {"toy": replace(raised(NEW_METRIC)["toy"], metric="average_precision")}
    (done,) = rescore(engine, cards, KNOWN)
    assert (done.fate, done.why) == ("rescored", "task version 2: ranked by average precision")
    rows = db.rows(engine)
    assert rows[: len(before)] == before, "the old rows stay as they were"
    new = [row.result for row in rows[len(before) :]]
    assert [r.task_version for r in new] == [2] * len(before)
    assert [(r.metric, r.score, r.low, r.high) for r in new] == [
        (r.result.metric, r.result.score, r.result.low, r.result.high) for r in before
    ]
    assert db.task(engine, "toy").card["metric"] == "average_precision"
    assert list(rescore(engine, cards, KNOWN)) == [], "once is enough"


def test_a_change_of_labels_waits_for_features_and_says_why(engine: Engine) -> None:
    (done,) = rescore(engine, raised(NEW_LABELS), KNOWN)
    assert done.fate == "queued"
    (waiting,) = db.pending(engine)
    assert (waiting.task_version, waiting.why) == (2, "task version 2: two labels were wrong")
    list(rescore(engine, raised(NEW_LABELS), KNOWN))
    assert len(db.pending(engine)) == 1, "asking again queues nothing twice"


def test_what_waited_is_done_when_it_is_evaluated_again(engine: Engine, tmp_path: Path) -> None:
    list(rescore(engine, raised(NEW_LABELS), KNOWN))
    evaluated(engine, tmp_path, Task(raised(NEW_LABELS)["toy"], lambda root: cases()))
    assert db.pending(engine) == []
    assert list(rescore(engine, raised(NEW_LABELS), KNOWN)) == []


def test_a_change_of_scores_after_one_of_labels_does_not_save_the_predictions(
    engine: Engine,
) -> None:
    later = Change(3, "median instead of mean", redo="scores")
    (done,) = rescore(engine, raised(NEW_LABELS, later), KNOWN)
    assert done.fate == "queued"
    assert "two labels were wrong; median instead of mean" in done.why


def test_a_version_that_no_change_explains_needs_features(engine: Engine) -> None:
    (done,) = rescore(engine, {"toy": replace(CARD, version=2)}, KNOWN)
    assert (done.fate, done.why) == ("queued", "task version 2: no reason is stated")


def test_a_probe_is_redone_like_a_task(engine: Engine) -> None:
    solver = Change(2, "better solver")
    (waits,) = rescore(engine, {"toy": CARD}, {"linear": replaced(solver)}, dry_run=True)
    assert waits.fate == "queued"
    assert db.pending(engine) == [], "a dry run changes nothing"
    changed = replaced(replace(solver, redo="scores"))
    (done,) = rescore(engine, {"toy": CARD}, {"linear": changed})
    assert (done.fate, done.why) == ("rescored", "probe version 2: better solver")
    assert {row.result.probe_version for row in db.rows(engine)} == {1, 2}


def test_a_probe_that_is_gone_is_told(engine: Engine) -> None:
    (left,) = rescore(engine, {"toy": CARD}, {})
    assert (left.fate, left.why) == ("left", "probe 'linear' is gone")


def test_a_private_task_is_taken_as_it_is_stored(engine: Engine) -> None:
    assert list(rescore(engine, {}, KNOWN)) == []
    raised_probe = replaced(Change(2, "rounded", redo="scores"))
    assert [r.fate for r in rescore(engine, {}, {"linear": raised_probe})] == ["rescored"]


def test_what_waits_already_is_said_to_wait(engine: Engine) -> None:
    list(rescore(engine, raised(NEW_LABELS), KNOWN))
    for dry_run in (True, False):
        (again,) = rescore(engine, raised(NEW_LABELS), KNOWN, dry_run)
        assert again.fate == "waiting"


def test_an_incomplete_copy_at_the_new_version_settles_nothing(
    engine: Engine, tmp_path: Path
) -> None:
    cards = raised(NEW_LABELS)
    list(rescore(engine, cards, KNOWN))
    part = Task(cards["toy"], lambda root: cases()[:50])
    evaluated(engine, tmp_path, part, subset=True)
    assert len(db.pending(engine)) == 1, "it still waits"
    (again,) = rescore(engine, cards, KNOWN)
    assert again.fate == "waiting"


def test_a_subset_at_the_new_version_does_not_hide_the_complete_old_one(
    engine: Engine, tmp_path: Path
) -> None:
    cards = raised(NEW_METRIC)
    part = Task(cards["toy"], lambda root: cases()[:50])
    evaluated(engine, tmp_path, part, subset=True)
    (done,) = rescore(engine, cards, KNOWN)
    assert done.fate == "rescored"
    assert {r.result.task_version for r in db.rows(engine) if not r.result.subset} == {1, 2}


def test_an_incomplete_copy_of_an_old_version_is_left_alone(tmp_path: Path) -> None:
    engine = db.connect(f"sqlite:///{tmp_path / 'part.db'}")
    db.migrate(engine)
    evaluated(engine, tmp_path, Task(CARD, lambda root: cases()[:50]), subset=True)
    (left,) = rescore(engine, raised(NEW_LABELS), KNOWN)
    assert left.fate == "left" and db.pending(engine) == []
    engine.dispose()


def test_predictions_that_cannot_be_read_are_made_again(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("update predictions set parquet = :junk"), {"junk": b"junk"})
    (done,) = rescore(engine, raised(NEW_METRIC), KNOWN)
    assert done.fate == "queued"
    assert "cannot be read" in db.pending(engine)[0].why


def test_superseded_rows_are_not_recomputed_with_todays_code(
    engine: Engine, tmp_path: Path
) -> None:
    list(rescore(engine, raised(NEW_METRIC), KNOWN))
    with engine.begin() as connection:
        connection.execute(sa.text("update results set score = 0.1 where task_version = 1"))
    work = Session(engine, str(engine.url), None, "cpu", FeatureCache(tmp_path))
    found = list(recompute(work))
    assert {row.superseded for row in found} == {True, False}
    assert all(row.equal for row in found if not row.superseded)


def test_sides_depend_on_the_version_of_the_data_not_of_the_scores() -> None:
    assert redone_since(2, [NEW_METRIC]) == 1
    assert redone_since(2, [NEW_LABELS]) == 2
    assert raised(NEW_METRIC)["toy"].data_version == 1
    assert raised(NEW_LABELS)["toy"].data_version == 2
