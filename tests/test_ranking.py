from dataclasses import replace
from math import isclose

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoprobe.benchmark.evaluate import SKIPPED
from tomoprobe.benchmark.types import Change
from tomoprobe.leaderboard.ranking import (
    SELF_RUN,
    Column,
    Standing,
    average_ranks,
    standings,
)
from tomoprobe.leaderboard.records import Unit
from tomoprobe.leaderboard.settings import Current
from tomoprobe.leaderboard.versions import Versions

from .board_data import result, sha, stored

T = Column("t", 1, "auroc", "linear", 1)
U = Column("u", 1, "mae", "linear", 1)
SMOKE = Column("smoke", 1, "auroc", "linear", 1, evidence=False)


def rows_of(table: dict[str, dict[str, float | None]], first: int = 1):
    """Rows from {model: {task: score}}; the metric of task ``u`` is a loss."""
    found = []
    for model, scores in table.items():
        for task, score in scores.items():
            metric = "mae" if task == "u" else "auroc"
            found.append(stored(first + len(found), result(model, task, score, metric=metric)))
    return found


def stand(rows, columns=(T, U), models=None, evaluated=()) -> dict[str, Standing]:
    shas = {row.result.model_sha for row in rows} | {sha(m) for m in models or ()}
    names = {sha(name): name for name in (*"abcdefgh", *(models or ()))}
    return {names[s.model_sha]: s for s in standings(rows, columns, shas, evaluated).rows}


scores = st.sampled_from([0.5, 0.6, 0.7, 0.8, None])  # few values, so that ties are common
tables = st.dictionaries(
    st.sampled_from("abcdefgh"),
    st.dictionaries(st.sampled_from(["t", "u"]), scores, max_size=2),
    max_size=8,
)


# --- ranks ----------------------------------------------------------------------


def test_the_larger_auroc_and_the_smaller_error_rank_first():
    board = stand(rows_of({"a": {"t": 0.9, "u": 3.0}, "b": {"t": 0.8, "u": 2.0}}))
    assert [c.rank for c in board["a"].cells] == [1, 2]
    assert [c.best for c in board["a"].cells] == [True, False]
    assert [c.best for c in board["b"].cells] == [False, True]


def test_equal_scores_share_a_rank():
    board = stand(rows_of({"a": {"t": 0.9}, "b": {"t": 0.7}, "c": {"t": 0.9}}), [T])
    assert {name: s.cells[0].rank for name, s in board.items()} == {"a": 1.5, "c": 1.5, "b": 3}
    assert board["a"].place == board["c"].place == 1
    assert board["b"].place == 3


def test_a_model_alone_on_a_task_is_not_called_the_best():
    cell = stand(rows_of({"a": {"t": 0.9}}), [T])["a"].cells[0]
    assert (cell.rank, cell.best) == (1, False)


@given(st.dictionaries(st.text(min_size=1), st.integers(-5, 5), min_size=1), st.booleans())
def test_ranks_add_up_whatever_the_ties(values, higher):
    ranks = average_ranks(values, higher)
    n = len(values)
    assert isclose(sum(ranks.values()), n * (n + 1) / 2)
    for a in values:
        for b in values:
            if values[a] == values[b]:
                assert ranks[a] == ranks[b]
            else:
                assert (ranks[a] < ranks[b]) == ((values[a] > values[b]) == higher)


@given(tables, st.randoms())
@settings(deadline=None)
def test_the_order_of_rows_and_models_does_not_matter(table, random):
    rows = rows_of(table)
    shas = [sha(name) for name in table]
    expected = standings(rows, [T, U], shas)
    random.shuffle(rows)
    random.shuffle(shas)
    assert standings(rows, [T, U], shas) == expected


@given(tables)
@settings(deadline=None)
def test_a_model_that_is_not_finished_changes_nobodys_mean_rank(table):
    rows = rows_of(table)
    before = stand(rows)
    after = stand([*rows, *rows_of({"newcomer": {"t": 0.99}}, first=1000)], models=["newcomer"])
    assert after["newcomer"].mean_rank is None
    for name, standing in before.items():
        assert after[name].mean_rank == standing.mean_rank
        assert after[name].place == standing.place


@given(tables)
@settings(deadline=None)
def test_only_models_ranked_on_every_task_have_a_mean_rank(table):
    board = stand(rows_of(table))
    finished = {name for name, row in table.items() if len(row) == 2 and None not in row.values()}
    assert {name for name, s in board.items() if s.mean_rank is not None} == finished
    means = [board[name].mean_rank for name in finished]
    assert isclose(sum(means), len(means) * (len(means) + 1) / 2)
    assert {name for name, s in board.items() if s.place == 1} == {
        name for name in finished if board[name].mean_rank == min(means)
    }


@given(tables, st.sampled_from([2.0, 0.5]))
@settings(deadline=None)
def test_ranks_do_not_depend_on_the_unit_of_a_score(table, factor):
    scaled = {
        name: {t: None if x is None else x * factor for t, x in row.items()}
        for name, row in table.items()
    }
    one, other = stand(rows_of(table)), stand(rows_of(scaled))
    assert {n: s.mean_rank for n, s in one.items()} == {n: s.mean_rank for n, s in other.items()}


def test_the_mean_rank_counts_complete_models_only_but_a_column_counts_all():
    board = stand(rows_of({"a": {"t": 0.7, "u": 1.0}, "b": {"t": 0.6, "u": 2.0}, "c": {"t": 0.9}}))
    assert board["a"].cells[0].rank == 2
    assert board["a"].mean_rank == 1
    assert (board["c"].done, board["c"].place) == (1, None)


# --- what competes ----------------------------------------------------------------------


def test_subset_rows_are_shown_but_never_ranked_beside_complete_ones():
    rows = rows_of({"a": {"t": 0.7}, "b": {"t": 0.9}})
    rows[1] = replace(rows[1], result=replace(rows[1].result, subset=True))
    board = stand(rows, [T])
    assert board["a"].cells[0].rank == 1
    shown = board["b"].cells[0]
    assert (shown.row, shown.rank, shown.best) == (rows[1], None, False)
    assert "incomplete copy" in shown.reason
    assert board["b"].done == 0


def test_a_complete_row_replaces_a_subset_row_of_the_same_model():
    whole = result("a", "t", 0.6)
    part = replace(whole, score=0.9, subset=True, dataset_sha="part")
    for rows in ([stored(1, whole), stored(2, part)], [stored(1, part), stored(2, whole)]):
        assert stand(rows, [T])["a"].cells[0].row.result == whole


def test_rows_on_other_data_do_not_compete_with_the_first_complete_ones():
    rows = rows_of({"a": {"t": 0.7}, "b": {"t": 0.9}, "c": {"t": 0.6}})
    rows[1] = replace(rows[1], result=replace(rows[1].result, split_sha="other"))
    board = stand(rows, [T])
    assert [board[m].cells[0].rank for m in "abc"] == [1, None, 2]
    assert "another split" in board["b"].cells[0].reason


def test_an_undefined_score_is_not_ranked():
    board = stand(rows_of({"a": {"t": None}, "b": {"t": 0.5}}), [T])
    assert board["a"].cells[0].rank is None
    assert "not defined" in board["a"].cells[0].reason
    assert board["b"].cells[0].rank == 1


def test_a_row_over_all_seeds_stands_for_the_model_before_a_single_seed():
    rows = [stored(k, result("a", "t", 0.5 + k / 10, seed=s)) for k, s in enumerate([1, "all", 0])]
    assert stand(rows, [T])["a"].cells[0].row.result.seed == "all"
    assert stand([rows[0], rows[2]], [T])["a"].cells[0].row.result.seed == 0


def test_rows_of_another_probe_version_shots_or_metric_do_not_stand_in():
    same = result("a", "t")
    for change in (
        {"probe": "knn"},
        {"probe_version": 2},
        {"task_version": 2},
        {"shots": 5},
        {"metric": "brier"},
    ):
        assert stand([stored(1, replace(same, **change))], [T])["a"].cells[0].row is None


# --- sanity checks ----------------------------------------------------------------------


def test_sanity_checks_count_only_where_nothing_else_is_shown():
    rows = rows_of({"a": {"t": 0.7, "smoke": 0.5}, "b": {"t": 0.6, "smoke": 0.9}})
    mixed = standings(rows, [T, SMOKE], [sha("a"), sha("b")])
    assert mixed.counting == (True, False)
    assert mixed.total == 1
    assert [s.mean_rank for s in mixed.rows] == [1, 2]
    assert mixed.rows[0].model_sha == sha("a")
    alone = standings(rows, [SMOKE], [sha("a"), sha("b")])
    assert (alone.total, alone.rows[0].model_sha) == (1, sha("b"))


def test_a_model_without_the_sanity_check_is_complete():
    board = stand(rows_of({"a": {"t": 0.7}}), [T, SMOKE])
    assert (board["a"].done, board["a"].mean_rank) == (1, 1)
    assert board["a"].cells[1].reason == "not evaluated"


# --- empty cells ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "reason"),
    [
        ({"task": "u"}, "not evaluated"),
        ({"task_version": 3}, "evaluated on version 3 of the task only"),
        ({"probe": "knn"}, "evaluated with knn only"),
        ({"probe_version": 2}, "evaluated with version 2 of linear only"),
        ({}, "evaluated without auroc at these shots"),
    ],
)
def test_an_empty_cell_says_what_was_evaluated_instead(unit, reason):
    there = Unit(sha("a"), "t", 1, "linear", 1, "data", "split")._replace(**unit)
    board = stand([], [T], models=["a"], evaluated=[there])
    assert board["a"].cells[0].reason == reason


def test_a_board_without_tasks_lists_the_models_without_ranks():
    board = stand([], [], models=["a", "b"])
    assert {(s.done, s.mean_rank, s.place) for s in board.values()} == {(0, None, None)}


# --- training sizes and versions ----------------------------------------------------------------

REASON = "class 'mass' has 9 training patients, 20 are needed"


def skipped(id: int, model: str, task: str = "t"):
    return stored(id, result(model, task, None, shots=20), (f"{SKIPPED}{REASON}",))


def test_a_skipped_size_says_its_reason_and_not_that_the_metric_is_undefined():
    column = replace(T, shots=20)
    cell = stand([skipped(1, "a")], [column])["a"].cells[0]
    assert (cell.rank, cell.reason) == (None, f"{SKIPPED}{REASON}")


def test_a_column_that_nobody_can_finish_does_not_count():
    columns = [replace(T, shots=20), replace(T, task="v", shots=20)]
    rows = [skipped(1, "a"), skipped(2, "b")]
    rows += [stored(3, result("a", "v", 0.7, shots=20)), stored(4, result("b", "v", 0.6, shots=20))]
    found = standings(rows, columns, [sha("a"), sha("b")])
    assert found.counting == (False, True)
    assert [s.mean_rank for s in found.rows] == [1, 2]
    nothing = standings(rows[:2], columns[:1], [sha("a"), sha("b")])
    assert nothing.total == 0
    assert {(s.done, s.mean_rank, s.place) for s in nothing.rows} == {(0, None, None)}


@pytest.mark.parametrize(
    "odd",
    [
        {"subset": True, "dataset_sha": sha("half")},
        {"task_version": 1},
        {"subset": True, "dataset_sha": sha("half"), "score": 0.7},
        {"task_version": 1, "score": 0.7},
    ],
)
def test_an_incomplete_or_older_row_does_not_bring_a_skipped_column_back(odd):
    versions = Versions({"t": Current(2), "v": Current(1)}, {"linear": Current(1)})
    columns = [replace(T, version=2, shots=20), replace(T, task="v", shots=20)]
    rows = [stored(id, result(m, "v", 0.9 - id / 10, shots=20)) for id, m in ((1, "a"), (2, "b"))]
    current = [skipped(3, "a"), skipped(4, "b")]
    rows += [replace(r, result=replace(r.result, task_version=2)) for r in current]
    last = skipped(5, "c")
    changed = replace(last.result, **{"task_version": 2} | odd)
    rows.append(replace(last, result=changed, flags=() if "score" in odd else last.flags))
    models = [sha(name) for name in "abc"]
    found = standings(rows, columns, models, versions=versions)
    assert found.counting == (False, True)
    assert [(s.model_sha, s.mean_rank) for s in found.rows] == [
        (sha("a"), 1),
        (sha("b"), 2),
        (sha("c"), None),
    ]


def test_a_column_that_one_complete_row_finished_counts():
    rows = [skipped(1, "a"), stored(2, result("b", "t", 0.7, shots=20))]
    found = standings(rows, [replace(T, shots=20)], [sha("a"), sha("b")])
    assert found.counting == (True,)


def test_skipped_rows_of_incomplete_copies_alone_do_not_say_that_nobody_can_finish():
    row = skipped(1, "a")
    row = replace(row, result=replace(row.result, subset=True))
    assert standings([row], [replace(T, shots=20)], [sha("a")]).counting == (True,)


def test_an_older_row_stands_in_unranked_until_the_model_is_done_again():
    versions = Versions({"t": Current(2, (Change(2, "relabelled"),))}, {"linear": Current(1)})
    column = replace(T, version=2)
    old, again = result("a", "t", 0.9), result("a", "t", 0.5, task_version=2)
    other = stored(2, result("b", "t", 0.6, task_version=2))

    def cells(*rows):
        listed = standings(rows, [column], [sha("a"), sha("b")], versions=versions).rows
        return {s.model_sha: s.cells[0] for s in listed}

    before = cells(stored(1, old), other)
    assert (before[sha("a")].row.result, before[sha("a")].rank) == (old, None)
    assert before[sha("a")].superseded
    assert before[sha("a")].reason == "superseded by task version 2: relabelled"
    assert (before[sha("b")].rank, before[sha("b")].superseded) == (1, False)
    after = cells(stored(1, old), other, stored(3, again))
    assert (after[sha("a")].row.result, after[sha("a")].rank) == (again, 2)
    assert not after[sha("a")].superseded


def test_of_several_older_rows_the_newest_version_stands_in():
    versions = Versions({"t": Current(3)}, {})
    rows = [stored(k, result("a", "t", k / 10, task_version=k)) for k in (2, 1)]
    (found,) = standings(rows, [replace(T, version=3)], [sha("a")], versions=versions).rows
    assert found.cells[0].row.result.task_version == 2


# --- self-run rows ------------------------------------------------------------------------------


def self_run(row):
    return replace(row, origin="self-run")


def test_a_self_run_row_is_shown_with_its_reason_and_changes_nobodys_rank():
    rows = rows_of({"a": {"t": 0.9, "u": 3.0}, "b": {"t": 0.8, "u": 2.0}})
    claimed = [self_run(row) for row in rows_of({"c": {"t": 0.999, "u": 0.1}}, first=10)]
    before, after = stand(rows), stand([*rows, *claimed])
    for name in "ab":
        assert (after[name].cells, after[name].mean_rank) == (
            before[name].cells,
            before[name].mean_rank,
        )
    for cell, row in zip(after["c"].cells, claimed, strict=True):
        assert (cell.row, cell.rank, cell.best, cell.reason) == (row, None, False, SELF_RUN)
    assert (after["c"].done, after["c"].mean_rank, after["c"].place) == (0, None, None)


def test_a_self_run_row_does_not_decide_on_which_data_models_are_compared():
    (first,) = rows_of({"c": {"t": 0.9}})
    odd = self_run(replace(first, result=replace(first.result, split_sha=sha("my own split"))))
    board = stand([odd, *rows_of({"a": {"t": 0.8}, "b": {"t": 0.7}}, first=2)], [T])
    assert [board[name].cells[0].rank for name in "abc"] == [1, 2, None]


def test_a_row_of_ours_wins_over_a_self_run_one_of_the_same_question():
    (ours,) = rows_of({"a": {"t": 0.7}})
    claimed = replace(ours, id=2, result=replace(ours.result, score=0.99, seed="all"))
    cell = stand([self_run(claimed), ours], [T])["a"].cells[0]
    assert (cell.row, cell.rank) == (ours, 1)


def test_a_task_with_self_run_rows_only_takes_the_mean_rank_from_nobody():
    rows = rows_of({"a": {"t": 0.9}, "b": {"t": 0.8}})
    claimed = [self_run(row) for row in rows_of({"c": {"u": 0.1}}, first=10)]
    board = stand([*rows, *claimed])
    assert [board[name].mean_rank for name in "abc"] == [1, 2, None]
    found = standings([*rows, *claimed], [T, U], [sha(n) for n in "abc"])
    assert found.counting == (True, False)
