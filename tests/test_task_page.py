"""What the site shows of training budgets, paired comparisons and superseded results."""

import re
from dataclasses import replace

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine

from tomoprobe.benchmark.statistics import ESTIMANDS, FLAGS
from tomoprobe.benchmark.types import Change
from tomoprobe.leaderboard import comparisons, db
from tomoprobe.leaderboard.records import Pending
from tomoprobe.leaderboard.settings import Current, Settings
from tomoprobe.leaderboard.site import create_app
from tomoprobe.leaderboard.tables import RESULTS

from .board_data import (
    BUDGETS,
    FEW_SHOT,
    LEVELS,
    NOT_ENOUGH,
    REAL_TASKS,
    Visitor,
    add,
    add_curve,
    fill_curves,
    fresh,
    result,
    sha,
    task_card,
)
from .test_site import EVIL, Page, board_json

TASK = REAL_TASKS[0]
NAMES = list(LEVELS)[:4]
PERCENT_PAGE = f"/tasks/{TASK.name}?probe=label_efficiency"
FEW_PAGE = f"/tasks/{TASK.name}?probe=few_shot"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    engine = fresh(tmp_path_factory.mktemp("curves"))
    fill_curves(engine)
    add(engine, [result(NAMES[0], TASK.name)], TASK)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def visitor(engine):
    return Visitor(create_app(engine, BUDGETS))


@pytest.fixture
def empty(tmp_path):
    engine = fresh(tmp_path)
    yield engine
    engine.dispose()


def table(visitor: Visitor, path: str, caption: str) -> list[list[str]]:
    """The rows of the table that is described by an element of that id."""
    html = visitor.get(path).text
    (found,) = re.findall(rf'aria-labelledby="{caption}".*?(<table.*?</table>)', html, re.DOTALL)
    return [row for row in Page(found).rows if row]


# --- curves and sizes --------------------------------------------------------------------------


def test_a_probe_with_a_budget_has_its_curves_on_the_task_page(visitor):
    html = visitor.get(PERCENT_PAGE).text
    (chart,) = re.findall(r'<svg class="chart"[^>]*curves-title.*?</svg>\n<figcaption', html, re.S)
    assert "% of training patients" in chart
    assert all(f">{name}</text>" in chart for name in NAMES)
    assert "by training size" in chart


def test_every_size_is_a_column_with_the_mean_over_the_curve_last(visitor, engine):
    head, *rows = table(visitor, PERCENT_PAGE, "sizes-caption")
    labels = ["1 % of labels", "10 % of labels", "100 % of labels", "mean over the curve"]
    assert head == ["Model", *labels]
    assert sorted(row[0].replace(" ", "") for row in rows) == sorted(NAMES)
    stored = {
        row.result.shots: row.result.score
        for row in db.rows(engine, probe="label_efficiency", models=[sha(NAMES[0])], metric="auroc")
    }
    (mine,) = (row for row in rows if row[0].replace(" ", "") == NAMES[0])
    for cell, shots in zip(mine[1:], (1, 10, 100, None), strict=True):
        assert cell.startswith(f"{stored[shots]:.3f}")


def test_a_size_that_could_not_be_drawn_is_a_sentence_and_no_column(visitor):
    assert table(visitor, FEW_PAGE, "sizes-caption")[0] == [
        "Model",
        "1 patient per class",
        "5 patients per class",
    ]
    assert (
        f"20 patients per class: skipped, because {NOT_ENOUGH}."
        in Page(visitor.get(FEW_PAGE).text).text
    )


@pytest.mark.parametrize(
    ("version", "odd"), [(2, {"subset": True, "dataset_sha": sha("half")}), (1, {})]
)
def test_an_incomplete_or_older_row_does_not_bring_a_skipped_size_back(empty, version, odd):
    for name, at, changes in (("a", 2, {}), ("b", 2, {}), ("c", version, odd)):
        card = replace(TASK, version=at)
        add_curve(empty, name, 0.8, card, "few_shot", FEW_SHOT, {"20": NOT_ENOUGH}, **changes)
    visitor = Visitor(create_app(empty, BUDGETS))
    assert len(table(visitor, FEW_PAGE, "sizes-caption")[0]) == 3
    text = Page(visitor.get(FEW_PAGE).text).text
    assert f"20 patients per class: skipped, because {NOT_ENOUGH}." in text


def test_sizes_are_chosen_in_words_and_the_largest_that_was_drawn_is_the_default(visitor):
    html = visitor.get(FEW_PAGE).text
    options = re.findall(r'<option value="(\d*)"( selected)?>([^<]*per class)</option>', html)
    assert options == [
        ("1", "", "1 patient per class"),
        ("5", " selected", "5 patients per class"),
        ("20", "", "20 patients per class"),
    ]
    html = visitor.get(f"{PERCENT_PAGE}&shots=10").text
    assert "AUROC, label_efficiency probe, 10 % of labels" in html
    assert '<option value="10" selected>10 % of labels' in html
    assert '<option value="">mean over the curve' in html


def test_the_skipped_size_itself_says_why_in_place_of_scores(visitor):
    page = Page(visitor.get(f"{FEW_PAGE}&shots=20").text)
    assert [row[2] for row in page.rows[1:]] == [f"– skipped: {NOT_ENOUGH}"] * len(NAMES)
    assert "not defined" not in page.text


def test_a_comparison_is_made_anew_when_a_unit_was_replaced_and_kept_when_one_was_added(
    empty, monkeypatch
):
    fill_curves(empty, models=2)
    made = []
    curve_of = comparisons.curve_of
    monkeypatch.setattr(comparisons, "curve_of", lambda *of: made.append(of) or curve_of(*of))
    comparer = comparisons.Comparer(empty)
    reference, other = (
        next(
            unit
            for unit in db.units(empty)
            if (unit.model_sha, unit.probe) == (sha(name), "label_efficiency")
        )
        for name in NAMES[:2]
    )

    def difference():
        return comparer.compare(reference, [other], "auroc", None, True).differences[sha(NAMES[1])]

    before = difference()
    add(empty, [result("new")])
    assert (difference(), len(made)) == (before, 2)
    with empty.begin() as connection:
        its = RESULTS.c.model_sha == sha(NAMES[1])
        connection.execute(sa.update(RESULTS).where(its).values(origin="self-run"))
    add_curve(empty, NAMES[1], 5.0, TASK)
    assert difference() != before
    assert len(made) == 4


def test_a_probe_without_a_budget_has_no_curves(visitor):
    html = visitor.get(f"/tasks/{TASK.name}?probe=linear").text
    assert "By training size" not in html
    assert "mean over the curve" not in html


def test_a_ninth_model_is_named_below_the_picture_and_stays_in_the_table(empty):
    names = [f"m{i}" for i in range(9)] + ["intensity"]
    for i, name in enumerate(names):
        rows = [
            result(name, "t", 0.9 - i / 50, probe="few_shot", shots=shots, seed="all")
            for shots in (1, 5)
        ]
        add(empty, rows)
    visitor = Visitor(create_app(empty, BUDGETS))
    html = visitor.get("/tasks/t?probe=few_shot").text
    assert (
        "Drawn are the best by 5 patients per class and the floors; only in the table: m7, m8."
        in (" ".join(Page(html).text.split()))
    )
    assert html.count('<g class="curve curve-8">') == 1
    assert ">intensity</text>" in html
    assert len(table(visitor, "/tasks/t?probe=few_shot", "sizes-caption")) == 11


def test_intervals_of_a_budget_are_about_training_draws_also_for_the_mean_over_the_curve(visitor):
    text = Page(visitor.get(PERCENT_PAGE).text).text
    assert ESTIMANDS["seeds"] in text
    assert ESTIMANDS["cv"] not in text
    assert ESTIMANDS["split"] not in text


def test_under_cross_validation_with_a_budget_both_are_said(empty):
    card = replace(REAL_TASKS[1], name="small")
    for name, level in (("a", 0.8), ("b", 0.5)):
        add_curve(empty, name, level, card, cv=True)
    text = Page(Visitor(create_app(empty, BUDGETS)).get("/tasks/small").text).text
    assert ESTIMANDS["seeds"] in text
    assert ESTIMANDS["cv"] in text
    assert ESTIMANDS["split"] not in text


# --- the board ---------------------------------------------------------------------------------


def test_the_board_says_in_words_what_the_probe_was_trained_on(visitor):
    page = visitor.get("/?probe=label_efficiency").text
    assert "label_efficiency probe, mean over the curve" in page
    assert '<option value="10">10 % of labels</option>' in page
    assert "few_shot probe, 1 patient per class" in visitor.get("/?probe=few_shot&shots=1").text


def test_a_task_that_lacks_the_size_says_why_and_does_not_count(empty):
    add_curve(empty, "a", 0.8, TASK, "few_shot", FEW_SHOT, {"20": NOT_ENOUGH})
    add_curve(empty, "a", 0.8, REAL_TASKS[1], "few_shot", FEW_SHOT)
    visitor = Visitor(create_app(empty, BUDGETS))
    shown = board_json(visitor, "?probe=few_shot")
    assert shown["shots"] == 20
    (model,) = shown["models"]
    assert model["scores"][TASK.name]["note"] == f"skipped: {NOT_ENOUGH}"
    assert (model["tasks_done"], model["tasks_counting"], model["mean_rank"]) == (1, 1, 1)
    assert f"skipped: {NOT_ENOUGH}" in Page(visitor.get("/?probe=few_shot").text).text


def test_changing_the_probe_does_not_need_another_number_of_shots_first(visitor):
    assert board_json(visitor, "?probe=linear&shots=10")["shots"] is None
    assert board_json(visitor, "?probe=few_shot&shots=100")["shots"] == 5
    assert visitor.get("/?probe=linear&shots=7").status_code == 400
    assert visitor.get(f"{FEW_PAGE}&shots=100").status_code == 200


# --- comparisons -------------------------------------------------------------------------------


def test_everybody_is_compared_with_the_best_on_all_labels(visitor, engine):
    rows = db.rows(engine, probe="label_efficiency", metric="auroc")
    full = {r.result.model: r.result.score or 0.0 for r in rows if r.result.shots == 100}
    best = max(full, key=lambda name: full[name])
    assert f"Compared with {best}" in visitor.get(PERCENT_PAGE).text
    _, *differences = table(visitor, PERCENT_PAGE, "differences-caption")
    assert {row[0].replace(" ", "") for row in differences} == {*NAMES} - {best}


def test_the_difference_is_that_of_the_scores_and_its_sign_follows_the_reference(visitor, engine):
    rows = db.rows(engine, probe="label_efficiency", metric="auroc")
    score = {r.result.model: r.result.score or 0.0 for r in rows if r.result.shots == 10}
    for reference in (NAMES[0], NAMES[3]):
        path = f"{PERCENT_PAGE}&shots=10&against={sha(reference)}"
        _, *found = table(visitor, path, "differences-caption")
        for row in found:
            name = row[0].replace(" ", "")
            shown = float(row[1].split()[0].replace("−", "-"))
            assert shown == pytest.approx(score[name] - score[reference], abs=0.00051)
            assert row[1].startswith(("+", "−", "0"))


def test_a_clear_gap_is_marked_and_a_small_one_is_not(empty):
    for name, level in (("best", 4.0), ("second", 3.9), ("last", 0.1)):
        add_curve(empty, name, level, TASK, n_test=100)
    visitor = Visitor(create_app(empty, BUDGETS))
    path = f"{PERCENT_PAGE}&shots=100&against={sha('second')}"
    found = {row[0]: row[3] for row in table(visitor, path, "differences-caption")[1:]}
    assert found == {"best": "not told apart", "last": "worse"}
    path = f"{PERCENT_PAGE}&shots=100&against={sha('last')}"
    found = {row[0]: row[3] for row in table(visitor, path, "differences-caption")[1:]}
    assert found == {"best": "better", "second": "better"}


def test_outside_the_simulated_range_there_is_no_mark(empty):
    card = replace(REAL_TASKS[1], name="small")
    for name, level in (("a", 4.0), ("b", 0.1)):
        add_curve(empty, name, level, card, cv=True)
    _, row = table(Visitor(create_app(empty, BUDGETS)), "/tasks/small", "differences-caption")
    assert "no mark" in row[3]


def test_the_labels_a_better_model_needs_are_fewer_and_a_worse_one_never_gets_there(visitor):
    path = f"{PERCENT_PAGE}&against={sha('texture')}"
    _, *found = table(visitor, path, "labels-title")
    shares = {row[0].replace(" ", ""): row[1] for row in found}
    assert set(shares) == {*NAMES} - {"texture"}
    assert re.fullmatch(r"(≤ )?[\d.]+ % \[.* %, .* %\]", shares[NAMES[0]])
    assert not shares[NAMES[0]].startswith("100 %")
    path = f"{PERCENT_PAGE}&against={sha(NAMES[0])}"
    _, *found = table(visitor, path, "labels-title")
    assert {row[0].replace(" ", ""): row[1] for row in found}["texture"].startswith("> 100 %")


def test_a_share_whose_interval_is_a_guess_says_so_in_a_footnote(empty, monkeypatch):
    for name, level in (("a", 0.8), ("b", 0.7)):
        add_curve(empty, name, level, TASK)
    flag = "uncalibrated"  # of the share alone: no score on the page has it
    real = comparisons.compare.label_shares
    monkeypatch.setattr(
        comparisons.compare,
        "label_shares",
        lambda *given: {k: replace(s, flags=(flag,)) for k, s in real(*given).items()},
    )
    html = Visitor(create_app(empty, BUDGETS)).get(PERCENT_PAGE).text
    (shares,) = re.findall(r'<table class="saved">.*?</table>', html, re.S)
    (letter,) = re.findall(r'</span><sup><a href="#note-(\w+)"', shares)
    assert html.count(f'href="#note-{letter}"') == 1
    assert f'<div id="note-{letter}"><dt>{letter}</dt><dd>{FLAGS[flag]}</dd>' in html


def test_few_shot_compares_but_knows_no_share_of_labels(visitor):
    html = visitor.get(FEW_PAGE).text
    assert "differences-caption" in html
    assert "Labels needed" not in html


def test_models_whose_predictions_cannot_be_read_are_named_each_time(empty):
    add_curve(empty, "a", 0.8, TASK)
    add_curve(empty, "b", 0.7, TASK)
    rows = [
        replace(row.result, model="torn", model_sha=sha("torn"), score=0.5)
        for row in db.rows(empty, models=[sha("a")])
    ]
    add(empty, rows, TASK)
    visitor = Visitor(create_app(empty, BUDGETS))
    for shots in ("", "10"):
        text = Page(visitor.get(f"{PERCENT_PAGE}&shots={shots}").text).text
        assert "because the stored predictions cannot be read: torn." in text
        (_, row) = table(visitor, f"{PERCENT_PAGE}&shots={shots}", "differences-caption")
        assert row[0] == "b"


def test_an_unknown_or_unranked_model_to_compare_with_is_told(empty):
    add_curve(empty, "a", 0.8, TASK)
    add_curve(empty, "b", 0.7, TASK)
    add_curve(empty, "partial", 0.7, TASK, subset=True, dataset_sha=sha("half"))
    visitor = Visitor(create_app(empty, BUDGETS))
    assert visitor.get(f"{PERCENT_PAGE}&against=nobody").status_code == 400
    evil = visitor.get(f"{PERCENT_PAGE}&against={EVIL}")
    assert EVIL not in evil.text
    answer = visitor.get(f"{PERCENT_PAGE}&against={sha('partial')}")
    assert answer.status_code == 200
    assert "partial has no ranked result here" in Page(answer.text).text


def test_beyond_so_many_models_those_left_out_are_named(empty, monkeypatch):
    from tomoprobe.leaderboard import pages, rivals

    for module in (rivals, pages):
        monkeypatch.setattr(module, "MOST_COMPARED", 2)
    for name, level in (("a", 0.8), ("b", 0.7), ("c", 0.6), ("intensity", 0.1)):
        add_curve(empty, name, level, TASK)
    visitor = Visitor(create_app(empty, BUDGETS))
    path = f"{PERCENT_PAGE}&against={sha('a')}"
    shown = [row[0] for row in table(visitor, path, "differences-caption")[1:]]
    assert len(shown) == 2
    assert "intensity" in shown
    (left_out,) = {"b", "c"} - set(shown)
    assert f"not compared: {left_out}." in Page(visitor.get(path).text).text


def test_a_curve_is_scored_once_however_often_it_is_compared(empty, monkeypatch):
    for name, level in (("a", 0.8), ("b", 0.7), ("c", 0.6)):
        add_curve(empty, name, level, TASK)
    scored = []
    real = comparisons.curve_of
    monkeypatch.setattr(
        comparisons, "curve_of", lambda table, metric: scored.append(metric) or real(table, metric)
    )
    visitor = Visitor(create_app(empty, BUDGETS))
    for query in ("", "&shots=10", f"&against={sha('c')}"):
        assert visitor.get(PERCENT_PAGE + query).status_code == 200
    assert len(scored) == 3


# --- superseded --------------------------------------------------------------------------------

WHY = "masks were corrected"
KNOWN = Settings(tasks={"t": Current(2, (Change(2, f"{WHY}."),))}, probes={"linear": Current(1)})


def test_a_version_that_nobody_has_yet_leaves_the_older_results_with_a_note(empty):
    add(empty, [result("a", score=0.8)])
    add(empty, [result("b", score=0.7)])
    visitor = Visitor(create_app(empty, KNOWN))
    note = f"task version 2: {WHY}"
    shown = board_json(visitor)
    assert shown["tasks"][0]["superseded"] == note
    assert [m["scores"]["t"]["rank"] for m in shown["models"]] == [1, 2]
    for path in ("/", "/tasks/t", f"/models/{sha('a')}"):
        text = " ".join(Page(visitor.get(path).text).text.split())
        assert note in text
        assert "superseded" in text.lower()


def test_once_somebody_is_redone_older_rows_stand_unranked_beside_them(empty):
    add(empty, [result("old", score=0.9)])
    changes = (Change(2, WHY),)
    add(
        empty,
        [result("new", score=0.6, task_version=2)],
        task_card("t", version=2, changes=changes),
    )
    visitor = Visitor(create_app(empty))
    scores = {m["model"]: m["scores"]["t"] for m in board_json(visitor)["models"]}
    assert (scores["new"]["rank"], scores["new"]["superseded"]) == (1, False)
    assert (scores["old"]["score"], scores["old"]["rank"]) == (0.9, None)
    assert scores["old"]["superseded"]
    assert WHY in scores["old"]["note"]
    for path in ("/", "/tasks/t", f"/models/{sha('old')}"):
        html = visitor.get(path).text
        assert "superseded, not ranked" in html
        assert WHY in Page(html).text
    assert visitor.get("/tasks/t").text.count("dot hollow") == 1
    assert "<strong>Superseded</strong> by task version 2" in visitor.get("/tasks/t?version=1").text


def test_a_raised_probe_supersedes_its_rows_on_every_task(empty):
    add(empty, [result("a", "t"), result("a", "t", metric="brier")])
    add(empty, [result("a", "u")])
    add(empty, [result("b", "u", probe_version=2)])
    rows = Visitor(create_app(empty)).get("/api/v1/results").json()["results"]
    assert {(r["model"], r["task"]): r["superseded"] for r in rows} == {
        ("a", "t"): "probe version 2: no reason is stated",
        ("a", "u"): "probe version 2: no reason is stated",
        ("b", "u"): None,
    }


def test_a_probe_that_has_only_an_older_version_of_a_task_keeps_its_column(empty):
    add(empty, [result("a", score=0.8, probe="knn")])
    add(empty, [result("a", score=0.7, task_version=2)], task_card("t", version=2))
    visitor = Visitor(create_app(empty))
    shown = board_json(visitor, "?probe=knn")
    assert shown["tasks"][0]["version"] == 1
    assert shown["models"][0]["scores"]["t"]["score"] == 0.8
    assert board_json(visitor)["tasks"][0]["version"] == 2
    assert "0.800" in visitor.get("/tasks/t?probe=knn").text  # as the board links it


def test_what_changed_lists_each_version_who_is_done_and_who_waits(empty):
    add(empty, [result("a")])
    add(empty, [result("b")])
    add(empty, [result("a", task_version=2)], task_card("t", version=2, changes=(Change(2, WHY),)))
    db.queue(empty, [Pending(sha("b"), "t", 2, "linear", 2, "raised")])
    known = Settings(probes={"linear": Current(2, (Change(2, "another solver"),))})
    visitor = Visitor(create_app(empty, known))
    assert table(visitor, "/tasks/t", "changed-caption")[1:] == [
        ["task version 2", WHY, "1", "1"],
        ["task version 1", "the first", "2", "0"],
        ["linear probe version 2", "another solver", "0", "1"],
        ["linear probe version 1", "the first", "2", "0"],
    ]


def test_a_task_that_never_changed_has_no_such_section(visitor):
    assert "What changed" not in visitor.get(f"/tasks/{TASK.name}").text


def test_reasons_are_escaped(empty):
    add(empty, [result("a")])
    add(empty, [result("b")])
    changes = (Change(2, EVIL),)
    settings = Settings(tasks={"t": Current(2, changes)}, probes={"linear": Current(2, changes)})
    visitor = Visitor(create_app(empty, settings))
    for path in ("/", "/tasks/t", f"/models/{sha('a')}"):
        answer = visitor.get(path)
        assert EVIL not in answer.text
        assert "&lt;script&gt;alert(1)" in answer.text


@pytest.mark.parametrize("path", ["/", "/?probe=", "/board.json", "/board.csv", "/api/v1/results"])
def test_an_empty_database_is_answered(empty: Engine, path: str) -> None:
    visitor = Visitor(create_app(empty, KNOWN))
    assert visitor.get(path).status_code == 200
    assert visitor.get("/tasks/t").status_code == 404
