"""Every kind of task on one board: its own probe, metric, unit and floor; and the probes' pages."""

import csv
import io
import json
import re
from dataclasses import replace
from html import unescape

import pytest
from typer.testing import CliRunner

from tomoprobe.benchmark import metrics, probes
from tomoprobe.leaderboard import db
from tomoprobe.leaderboard.floors import floors
from tomoprobe.leaderboard.protocols import standard_probe
from tomoprobe.leaderboard.ranking import Column, standings
from tomoprobe.leaderboard.records import StoredModel
from tomoprobe.leaderboard.settings import Current, Settings
from tomoprobe.leaderboard.site import create_app
from tomoprobe.submissions.cli import app
from tomoprobe.submissions.upkeep import site_settings

from .board_data import (
    KINDS,
    PROTOCOLS,
    Visitor,
    add,
    fill_kinds,
    fresh,
    model_card,
    result,
    sha,
    stored,
    task_card,
)
from .test_site import Page, board_json, board_page

SHOWN_BY = {
    "classification": "linear",
    "regression": "linear",
    "segmentation": "segment_linear",
    "registration": "register",
    "detection": "detect",
    "candidates": "score_candidates",
    "survival": "survival",
}


@pytest.fixture(scope="module")
def visitor(tmp_path_factory):
    engine = fresh(tmp_path_factory.mktemp("kinds"))
    fill_kinds(engine)
    yield Visitor(create_app(engine, PROTOCOLS))
    engine.dispose()


@pytest.fixture
def empty(tmp_path):
    engine = fresh(tmp_path)
    yield engine
    engine.dispose()


def heads(visitor, query: str = "") -> dict[str, str]:
    """The head of every column by its task."""
    page = board_page(visitor, query)
    tasks = [task["name"] for task in board_json(visitor, query)["tasks"]]
    return dict(zip(tasks, page.rows[0][4:], strict=True))


def words(html: str) -> str:
    """The text of a page, with a blank where a tag was."""
    text = unescape(re.sub(r"<[^>]*>", " ", html))
    return " ".join(text.split()).replace(" ,", ",")


# --- the standard view ---------------------------------------------------------------------------


def test_where_no_probe_is_asked_for_every_kind_is_shown_by_its_standard_probe(visitor):
    shown = board_json(visitor)
    assert {t["name"]: t["probe"] for t in shown["tasks"]} == {
        card.name: SHOWN_BY[card.kind] for card in KINDS
    }
    assert {t["name"]: t["metric"] for t in shown["tasks"]} == {c.name: c.metric for c in KINDS}
    assert shown["probe"] is None
    assert "the standard probe of each kind" in board_page(visitor).text
    (probe,) = re.findall(r'<select name="probe".*?</select>', visitor.get("/").text, re.S)
    assert '<option value="">standard</option>' in probe
    assert "selected" not in probe


def test_kinds_come_in_a_fixed_order_with_sanity_checks_last(visitor):
    kinds = [task["kind"] for task in board_json(visitor)["tasks"]]
    assert kinds == [*SHOWN_BY, "registration"]


def test_a_probe_that_is_asked_for_shows_the_tasks_it_has(visitor):
    shown = board_json(visitor, "?probe=linear")
    assert shown["probe"] == "linear"
    assert {t["name"] for t in shown["tasks"]} == {"kinds_mass", "kinds_age"}
    assert "kinds_hippocampus" in board_page(visitor, "?probe=linear").text.split("not shown")[1]


def test_a_probe_with_a_metric_of_its_own_is_ranked_by_it_everywhere(visitor):
    (task,) = board_json(visitor, "?probe=retrieve")["tasks"]
    assert (task["name"], task["metric"]) == ("kinds_mass", "map")
    assert "kinds_mass.map" in visitor.get("/board.csv?probe=retrieve").text.splitlines()[0]
    assert "mAP, retrieve probe" in Page(visitor.get("/tasks/kinds_mass?probe=retrieve").text).text
    assert "mAP ↑" in words(visitor.get(f"/models/{sha('random_swin')}").text)
    assert "AUROC, linear probe" in Page(visitor.get("/tasks/kinds_mass").text).text


def test_a_task_page_opens_with_the_standard_probe_of_its_kind(visitor):
    for card in KINDS:
        text = Page(visitor.get(f"/tasks/{card.name}").text).text
        assert f", {SHOWN_BY[card.kind]} probe" in text


def test_a_model_page_has_the_standard_probes_first_in_the_order_of_the_kinds(visitor):
    html = visitor.get(f"/models/{sha('random_swin')}").text
    found = re.findall(r'<h2 id="probe-\d+"><a[^>]*>(\w+)</a>', html)
    assert found == [*dict.fromkeys(SHOWN_BY.values()), "retrieve"]


def test_links_of_a_column_lead_to_the_task_by_the_probe_shown(visitor):
    links = {a.get("href") for a in board_page(visitor).all("a")}
    assert "/tasks/kinds_hippocampus?probe=segment_linear" in links
    assert "/probes/segment_linear" in links
    for link in links:
        if link and link.startswith(("/tasks/", "/probes", "/?sort")):
            assert visitor.get(link).status_code == 200, link


def test_the_mean_rank_is_over_all_kinds_that_count(visitor):
    models = {m["model"]: m for m in board_json(visitor)["models"]}
    assert models["swin_unetr_btcv"]["mean_rank"] == 1
    assert models["swin_unetr_btcv"]["tasks_counting"] == len(KINDS) - 1
    assert models["mind"]["mean_rank"] is None


def test_without_settings_a_kind_is_shown_by_a_probe_that_has_results(empty):
    fill_kinds(empty)
    shown = {t["name"]: t["probe"] for t in board_json(Visitor(create_app(empty)))["tasks"]}
    assert shown == {card.name: SHOWN_BY[card.kind] for card in KINDS}


def test_one_probe_stands_for_a_kind_even_where_another_has_more_tasks(empty):
    settings = Settings(probes={"knn": Current(1), "linear": Current(1, standard=("regression",))})
    for task in ("t", "u"):
        add(empty, [result(task=task, probe="knn")])
    add(empty, [result(task="t")])
    shown = board_json(Visitor(create_app(empty, settings)))
    assert [(t["name"], t["probe"]) for t in shown["tasks"]] == [("t", "linear")]
    assert "u" in board_page(Visitor(create_app(empty, settings))).text.split("not shown")[1]


def test_sizes_of_one_standard_probe_are_no_sizes_of_another(empty):
    few = task_card("s", "dice", kind="segmentation", classes=())
    add(empty, [result(task="t", shots=k) for k in (1, 16)])
    add(empty, [result(task="s", metric="dice", probe="segment_linear", score=0.7)], few)
    visitor = Visitor(create_app(empty, PROTOCOLS))
    for query, score in (("", 0.8), ("?shots=1", 0.8), ("?shots=16", 0.8)):
        (model,) = board_json(visitor, query)["models"]
        assert (model["scores"]["t"]["score"], model["scores"]["s"]["score"]) == (score, 0.7)
    assert visitor.get("/?shots=7").status_code == 400


# --- floors --------------------------------------------------------------------------------------


def model(name: str, parameters: int | None) -> StoredModel:
    card = {} if parameters is None else {"parameters": parameters}
    manifest = {"onnx": sha("graph")} if name.startswith("graph") else {"architecture": {}}
    return StoredModel(sha(name), name, card, manifest, "2026-01-01T00:00:00Z")


def floors_of(scores: dict[str, tuple[float, int | None]], metric: str = "auroc", **changes):
    """The floors of one column, and its cells by model."""
    rows = [
        stored(i, replace(result(name, score=score, metric=metric), **changes.get(name, {})))
        for i, (name, (score, _)) in enumerate(scores.items())
    ]
    models = [model(name, parameters) for name, (_, parameters) in scores.items()]
    column = Column("t", 1, metric, "linear", 1)
    found = standings(rows, [column], [m.model_sha for m in models])
    names = {m.model_sha: m.name for m in models}
    made = floors(found, models, names)
    under = {
        names[s.model_sha]: made.under(s.model_sha, s.cells[0], 0) is not None for s in found.rows
    }
    return made.of[0], under


def test_the_floor_is_the_best_model_without_parameters():
    floor, under = floors_of({"a": (0.9, 5), "b": (0.6, 5), "low": (0.5, 0), "high": (0.7, 0)})
    assert floor is not None
    assert (floor.label, floor.text) == ("high", "0.700")
    assert under == {"a": False, "b": True, "low": False, "high": False}


def test_of_errors_the_floor_is_the_smallest_and_larger_ones_are_worse():
    floor, under = floors_of({"a": (4.0, 5), "b": (9.0, 5), "c": (7.0, 0), "d": (8.0, 0)}, "mae")
    assert floor is not None
    assert floor.label == "c"
    assert under == {"a": False, "b": True, "c": False, "d": False}


def test_a_row_that_is_not_ranked_neither_is_a_floor_nor_below_one():
    subset = {"subset": True, "dataset_sha": "half"}
    scores = {"a": (0.9, 0), "b": (0.6, 0), "c": (0.1, 5), "d": (0.2, 5)}
    floor, under = floors_of(scores, a=subset, c=subset)
    assert floor is not None
    assert floor.label == "b"
    assert under == {"a": False, "b": False, "c": False, "d": True}


def test_a_model_of_which_nobody_counted_all_parameters_is_no_floor():
    assert floors_of({"a": (0.9, None), "b": (0.6, 5)})[0] is None
    floor, under = floors_of({"graph_of_constants": (0.9, 0), "a": (0.6, 0), "b": (0.7, 5)})
    assert floor is not None
    assert floor.label == "a"
    assert not any(under.values())


def test_every_column_names_its_metric_its_unit_its_direction_and_its_floor(visitor):
    expected = {
        "kinds_mass": r"AUROC ↑ higher is better · about .* floor 0\.680 \(intensity\)",
        "kinds_age": r"MAE, years ↓ lower is better · about .* floor 11\.31 \(intensity\)",
        "kinds_hippocampus": r"Dice ↑ .* segment_ linear floor 0\.\d{3} \(patches\)",
        "kinds_known_warp": r"EPE, mm ↓ lower is better · about .* floor 3\.45 \(mind\)",
    }
    found = heads(visitor)
    for task, pattern in expected.items():
        assert re.search(pattern, words(found[task])), found[task]


def test_a_score_below_its_floor_says_so_in_words_and_names_the_floor(visitor):
    html = visitor.get("/").text
    (row,) = (r for r in Page(html).rows if r[1].replace(" ", "") == "random_swin")
    assert row[4].endswith("below floor")
    assert row[5].endswith("worse than floor")
    assert "below the floor of 0.680 (intensity)" in html
    assert "above the floor of 11.31 (intensity)" in html
    assert "below floor" in visitor.get("/tasks/kinds_mass").text
    assert "below floor" in visitor.get(f"/models/{sha('random_swin')}").text
    best = next(r for r in Page(html).rows if r[1].startswith("swin_ unetr"))
    assert not any("floor" in cell for cell in best)


def test_the_json_holds_floors_units_and_who_is_below(visitor):
    shown = board_json(visitor)
    tasks = {t["name"]: t for t in shown["tasks"]}
    floor = tasks["kinds_mass"]["floor"]
    assert (floor["model"], floor["model_sha"]) == ("intensity", sha("intensity"))
    assert (tasks["kinds_age"]["unit"], tasks["kinds_known_warp"]["unit"]) == ("years", "mm")
    assert tasks["kinds_mass"]["unit"] == ""
    for row in shown["models"]:
        for name, cell in row["scores"].items():
            if not cell["below_floor"]:
                continue
            better = tasks[name]["higher_is_better"]
            gap = cell["score"] - tasks[name]["floor"]["score"]
            assert gap < 0 if better else gap > 0
    below = {m["model"] for m in shown["models"] if m["scores"]["kinds_mass"]["below_floor"]}
    assert below == {"random_swin"}


def test_a_board_without_such_models_has_no_floor(empty):
    add(empty, [result("a")], encoder=model_card("a"))
    visitor = Visitor(create_app(empty))
    assert board_json(visitor)["tasks"][0]["floor"] is None
    assert "floor" not in visitor.get("/").text.lower()


# --- the pages of tasks of the new kinds ----------------------------------------------------------


def test_a_segmentation_page_shows_the_grid_the_tolerance_and_the_cap(visitor):
    text = words(visitor.get("/tasks/kinds_hippocampus").text)
    for fact in (
        "Classes background, anterior, posterior",
        "Lattice of dense protocols, mm 1.0, 1.0, 1.0",
        "Tolerance of surfaces, mm 1.0",
        "Most voxels shown per scan 4,000,000",
        "HD95, mm",
    ):
        assert fact in text


def test_directions_and_units_of_the_new_metrics_are_told(visitor):
    html = visitor.get("/tasks/kinds_pairs").text
    (table,) = re.findall(r'aria-labelledby="metrics-caption".*?(<table.*?</table>)', html, re.S)
    head = [words(cell) for cell in Page(table).rows[0]]
    assert head == [
        "Model",
        "Dice ↑ higher is better",
        "Folding ↓ lower is better",
        "SD log J ↓ lower is better",
        "HD95, mm ↓ lower is better",
    ]
    chart = visitor.get("/tasks/kinds_known_warp").text
    assert re.search(r"swin_unetr_btcv: [\d.]+ mm \[", chart)


# --- the pages of the probes ----------------------------------------------------------------------


def test_every_probe_has_a_page_and_is_on_the_list(visitor):
    page = Page(visitor.get("/probes").text)
    links = {a.get("href") for a in page.all("a")}
    for name in PROTOCOLS.probes:
        assert f"/probes/{name}" in links
        assert visitor.get(f"/probes/{name}").status_code == 200
    assert "Probes" in board_page(visitor).text


def test_a_probe_page_tells_what_it_serves_what_ranks_what_changed_and_what_it_costs(visitor):
    text = words(visitor.get("/probes/linear").text)
    for told in (
        "Logistic or ridge regression on the embedding",
        "Serves classification, regression",
        "standard for regression",
        "version 2",
        "Version 2 the solver was exchanged.",
        "Under a second per fit on 2 cores",
    ):
        assert told in text
    assert "mean average precision" in Page(visitor.get("/probes/retrieve").text).text.lower()
    assert "only where it is named" in Page(visitor.get("/probes/retrieve").text).text
    assert "Nothing is evaluated with this probe yet" in visitor.get("/probes/knn").text


def test_seconds_are_measured_once_per_unit_and_by_device(empty):
    for name, seconds, device in (("a", 10.0, "cpu"), ("b", 30.0, "cpu"), ("c", 2.0, "cuda")):
        rows = [result(name, metric=m, seconds=seconds, device=device) for m in ("auroc", "brier")]
        add(empty, rows)
    add(empty, [result("d", seconds=1.0, device="cpu", subset=True, dataset_sha="half")])
    add(empty, [result("e", seconds=1.0, device="cpu")], origin="self-run")
    visitor = Visitor(create_app(empty))
    (probe,) = visitor.get("/api/v1/probes").json()["probes"]
    assert probe["measured"] == [
        {"device": "cpu", "units": 2, "median_seconds": 20.0, "longest_seconds": 30.0},
        {"device": "cuda", "units": 1, "median_seconds": 2.0, "longest_seconds": 2.0},
    ]
    rows = Page(visitor.get("/probes/linear").text).rows
    assert rows[1] == ["cpu", "2", "20.0 s", "30.0 s"]


def test_the_api_lists_the_probes_with_their_tasks(visitor):
    found = {p["name"]: p for p in visitor.get("/api/v1/probes").json()["probes"]}
    assert set(found) == set(PROTOCOLS.probes)
    assert found["retrieve"]["metric"] == "map"
    assert found["retrieve"]["on_request"] is True
    assert found["linear"]["standard_for"] == ["classification", "regression"]
    assert found["linear"]["changes"][0]["why"] == "the solver was exchanged."
    (task,) = found["segment_linear"]["tasks"]
    assert task == {"name": "kinds_hippocampus", "version": 1, "metric": "dice", "models": 5}


def test_an_unknown_probe_has_no_page(visitor):
    answer = visitor.get("/probes/linea")
    assert answer.status_code == 404
    assert "Did you mean" in Page(answer.text).text


@pytest.mark.parametrize("path", ["/probes", "/api/v1/probes"])
def test_an_empty_board_without_settings_lists_no_probe(empty, path):
    assert Visitor(create_app(empty)).get(path).status_code == 200


def test_the_csv_of_all_kinds_has_a_column_per_task(visitor):
    table = list(csv.DictReader(io.StringIO(visitor.get("/board.csv").text)))
    assert {f"{card.name}.{card.metric}" for card in KINDS} < set(table[0])


# --- what this release tells the site -------------------------------------------------------------


def test_the_site_is_told_of_every_probe_and_of_one_standard_probe_per_kind():
    settings = site_settings()
    assert set(settings.probes) == set(probes.names())
    for kind, name in probes.STANDARD.items():
        assert standard_probe(kind, settings) == name
        assert kind in probes.get(name).kinds
        assert not settings.probes[name].on_request
    for name, known in settings.probes.items():
        assert known.kinds == probes.get(name).kinds
        assert known.title
        assert not known.metric or known.metric in metrics.names()


def test_listing_the_probes_says_what_ranks_and_what_runs_on_request_only():
    done = CliRunner().invoke(app, ["probes", "--json"])
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert set(rows) == set(probes.names())
    for name, row in rows.items():
        probe = probes.get(name)
        assert row["kinds"] == list(probe.kinds)
        assert row["metric"] == (getattr(probe, "metric", "") or None)
        assert row["on_request"] == (name not in probes.default())
        assert row["cost"] == getattr(probe, "cost")  # noqa: B009 - every probe of ours has one
    assert rows["linear"]["standard_for"] == ["classification", "regression"]
    table = CliRunner().invoke(app, ["probes"], env={"COLUMNS": "200"}).stdout
    assert "ranks by" in table
    assert "cost" in table
    assert "on request" in table


def test_timings_leave_out_what_others_computed(empty):
    add(empty, [result("a")], origin="self-run")
    assert db.timings(empty) == []
