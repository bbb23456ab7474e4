import csv
import io
import json
import re
import signal
import socket
import subprocess
import sys
import time
from html.parser import HTMLParser
from urllib.parse import urlencode

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tomoprobe.benchmark.statistics import ESTIMANDS, FLAGS
from tomoprobe.benchmark.types import Change
from tomoprobe.leaderboard import db
from tomoprobe.leaderboard.settings import Current
from tomoprobe.leaderboard.site import Settings, create_app

from .board_data import (
    FEW,
    LEVELS,
    REAL_TASKS,
    SMOKE_TASKS,
    Visitor,
    add,
    fill,
    fresh,
    model_card,
    result,
    sha,
    task_card,
)

SUITES = {"sarcoma": ["sarcoma_ct_sex", "sarcoma_mr_sex"], "elsewhere": ["not_here"]}
EVIL = "<script>alert(1)"  # no slash: it also has to be a part of a path


class Page(HTMLParser):
    """What a test asks of a page: its elements, its text, and its first table."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self._in_table = 0
        self._cell = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self._in_table += 1
        if self._in_table == 1 and tag == "tr":
            self.rows.append([])
        if self._in_table == 1 and tag in ("th", "td"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        if tag in ("th", "td"):
            self._cell = False

    def handle_data(self, data):
        self.text += data
        if self._in_table == 1 and self._cell:
            self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {data}".split())

    @property
    def models(self) -> list[str]:
        """Names in the second column, without the caption's row."""
        return [row[1].replace(" ", "") for row in self.rows[1:] if len(row) > 2]

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    engine = fresh(tmp_path_factory.mktemp("board"))
    fill(engine)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def visitor(engine):
    return Visitor(create_app(engine, Settings(suites=SUITES)))


@pytest.fixture
def empty(tmp_path):
    engine = fresh(tmp_path)
    yield engine
    engine.dispose()


def board_page(visitor, query: str = "") -> Page:
    answer = visitor.get(f"/{query}")
    assert answer.status_code == 200
    return Page(answer.text)


def board_json(visitor, query: str = "") -> dict:
    return visitor.get(f"/board.json{query}").json()


# --- the board --------------------------------------------------------------------------------


def test_models_are_rows_and_tasks_are_columns(visitor):
    page = board_page(visitor)
    assert sorted(page.models) == sorted(LEVELS)
    assert len(page.rows[0]) == 4 + len(REAL_TASKS) + len(SMOKE_TASKS)
    (row,) = (r for r in page.rows if r[1].replace(" ", "") == "resnet18_mae")
    assert row[2:4] == ["1.80", "5/5"]
    assert "0.941 (best) [0.879, 0.990]" in row


def test_the_better_mean_rank_is_on_top_and_incomplete_models_are_below(visitor):
    models = board_json(visitor)["models"]
    ranks = [m["mean_rank"] for m in models if m["mean_rank"] is not None]
    assert ranks == sorted(ranks)
    assert [m["mean_rank"] for m in models[len(ranks) :]] == [None] * 3
    assert [m["place"] for m in models] == [1, 2, 3, 4, 4, None, None, None]
    assert [m["model"] for m in models] == board_page(visitor).models


def test_an_empty_cell_says_why(visitor):
    cells = {
        m["model"]: {task: cell["note"] for task, cell in m["scores"].items()}
        for m in board_json(visitor)["models"]
    }
    assert cells["vit_base_dino"]["sarcoma_mr_sex"] == "not evaluated"
    assert "not defined" in cells["intensity"]["sarcoma_mr_sex"]
    page = board_page(visitor)
    assert "not evaluated" in page.text
    assert "subset, not ranked" in page.text


def test_warnings_are_footnotes(visitor):
    html = visitor.get("/").text
    assert f"a{FLAGS[FEW]}" in Page(html).text
    assert 'href="#note-a"' in html
    assert 'id="note-a"' in html


def test_the_page_says_what_an_interval_is_about_and_for_which_tasks(visitor):
    both = board_page(visitor).text
    assert f"sarcoma_ct_age, sarcoma_ct_sex, sarcoma_mr_sex: {ESTIMANDS['cv']}" in both
    assert ESTIMANDS["split"] in both
    assert ESTIMANDS["seeds"] not in both
    one = visitor.get("/tasks/adrenal_mnist3d").text
    assert f"<p>{ESTIMANDS['split']}</p>" in one
    assert ESTIMANDS["cv"] not in one


@pytest.mark.parametrize(
    ("query", "tasks"),
    [
        ("?kind=regression", {"msd_hippocampus_volume", "sarcoma_ct_age", "smoke_ventricles"}),
        ("?modality=MR&kind=classification", {"sarcoma_mr_sex", "smoke_lesion"}),
        ("?anatomy=hippocampus", {"msd_hippocampus_volume"}),
        ("?suite=sarcoma", {"sarcoma_ct_sex", "sarcoma_mr_sex"}),
        ("?task=smoke_lesion&task=sarcoma_ct_age", {"smoke_lesion", "sarcoma_ct_age"}),
        ("?kind=&modality=&utm_source=x", {t.name for t in (*REAL_TASKS, *SMOKE_TASKS)}),
        ("?suite=sarcoma&modality=MR&kind=regression", set()),
    ],
)
def test_filters_choose_the_tasks(visitor, query, tasks):
    assert {t["name"] for t in board_json(visitor, query)["tasks"]} == tasks
    headers = {h.get("id") for h in board_page(visitor, query).all("a")}
    assert {h for h in headers if h and h.startswith("sort-task.")} == {
        f"sort-task.{name}" for name in tasks
    }


def test_the_ranks_are_among_the_tasks_shown(visitor):
    models = board_json(visitor, "?task=adrenal_mnist3d")["models"]
    assert models[0]["model"] == "resnet18_mae"
    assert [m["mean_rank"] for m in models] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_search_hides_models_but_changes_no_rank(visitor):
    found = board_json(visitor, "?q=RANDOM")["models"]
    assert [m["model"] for m in found] == ["random_resnet10", "random_slices", "random_swin"]
    assert [m["place"] for m in found] == [3, 4, 4]
    assert "No model fits" in board_page(visitor, "?q=nothing").text


def test_complete_only_leaves_models_that_did_every_task(visitor):
    models = board_json(visitor, "?complete=1")["models"]
    assert {(m["tasks_done"], m["tasks_counting"]) for m in models} == {(5, 5)}
    assert len(models) == 5


def test_another_probe_shows_its_own_scores(visitor):
    shown = board_json(visitor, "?probe=knn")
    assert shown["probe"] == "knn"
    scored = {
        m["model"] for m in shown["models"] for c in m["scores"].values() if c["score"] is not None
    }
    assert scored == {"texture", "intensity"}
    assert "evaluated with linear only" in board_page(visitor, "?probe=knn").text


@pytest.mark.parametrize("order", ["", "&order=asc", "&order=desc"])
def test_sorting_by_a_task_puts_cells_without_a_rank_last(visitor, order):
    shown = board_json(visitor, f"?sort=task.sarcoma_ct_sex{order}")["models"]
    scores = [m["scores"]["sarcoma_ct_sex"]["score"] for m in shown]
    assert scores[:-1] == sorted(scores[:-1], reverse=order != "&order=asc")
    assert shown[-1]["model"] == "texture"
    missing = board_json(visitor, f"?sort=task.sarcoma_mr_sex{order}")["models"][-2:]
    assert {m["model"] for m in missing} == {"vit_base_dino", "intensity"}


def test_an_error_sorts_smallest_first(visitor):
    shown = board_json(visitor, "?sort=task.sarcoma_ct_age")["models"]
    scores = [m["scores"]["sarcoma_ct_age"]["score"] for m in shown]
    assert scores == sorted(scores)


@pytest.mark.parametrize("sort", ["model", "done", "rank", "task.sarcoma_ct_age"])
def test_a_header_says_how_the_table_is_sorted_and_its_link_turns_the_order(visitor, sort):
    page = board_page(visitor, f"?sort={sort}")
    (header,) = (h for h in page.all("th") if h.get("aria-sort"))
    (link,) = (a for a in page.all("a") if a.get("id") == f"sort-{sort}")
    turned = Page(visitor.get(link["href"]).text)
    (other,) = (h for h in turned.all("th") if h.get("aria-sort"))
    assert {header["aria-sort"], other["aria-sort"]} == {"ascending", "descending"}
    ranked = [m for m in page.models if m not in ("texture", "intensity", "vit_base_dino")]
    again = [m for m in turned.models if m in ranked]
    assert again != ranked or sort == "done"


@pytest.mark.parametrize(
    "query", ["", "?modality=CT&q=r&sort=model&order=desc", "?kind=regression", "?probe=knn"]
)
def test_the_downloads_are_exactly_what_is_shown(visitor, query):
    page, shown = board_page(visitor, query), board_json(visitor, query)
    links = [a["href"] for a in page.all("a") if (a.get("href") or "").startswith("/board.")]
    assert len(links) == 2
    for link in links:
        assert visitor.get(link).status_code == 200
        assert visitor.get(link).text == visitor.get(link.split("?")[0] + query).text
    table = list(csv.DictReader(io.StringIO(visitor.get(f"/board.csv{query}").text)))
    assert [row["model"] for row in table] == page.models == [m["model"] for m in shown["models"]]
    for row, model in zip(table, shown["models"], strict=True):
        assert row["mean_rank"] == str(model["mean_rank"] or "")
        for task in shown["tasks"]:
            cell, name = model["scores"][task["name"]], f"{task['name']}.{task['metric']}"
            for column, value in ((name, cell["score"]), (f"{name}.low", cell["low"])):
                assert row[column] == ("" if value is None else repr(value))
    if query:
        assert links[0].endswith(shown["view"])


# --- what a visitor may do wrong ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("modality=XR", "No modality is called 'XR'"),
        ("kind=regresion", "Did you mean 'regression'"),
        ("probe=liner", "Did you mean 'linear'"),
        ("task=adrenal_mnist", "Did you mean 'adrenal_mnist3d'"),
        ("suite=elsewhere", "Known: sarcoma"),
        ("sort=auroc", "sorting"),
        ("order=up", "Known: asc, desc"),
        ("complete=yes", "Known: 1"),
        ("shots=many", "a whole number is expected"),
        ("shots=7", "No number of shots is called '7'"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/board.json", "/board.csv"])
def test_an_unknown_value_gets_a_clear_message(visitor, path, query, says):
    answer = visitor.get(f"{path}?{query}")
    assert answer.status_code == 400
    text = Page(answer.text).text if path == "/" else answer.json()["error"]
    assert says in text


NAMES = ("kind", "modality", "anatomy", "probe", "shots", "suite", "task", "q", "complete")


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*NAMES, "sort", "order", "version", "limit", "after", "model"]),
            st.one_of(st.text(max_size=8), st.sampled_from(["", "CT", "linear", "1", "task."])),
        ),
        max_size=4,
    ),
    st.sampled_from(
        [
            "/",
            "/board.json",
            "/board.csv",
            "/tasks/smoke_lesion",
            "/probes",
            "/probes/linear",
            "/api/v1/results",
            "/api/v1/probes",
        ]
    ),
)
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_is_asked_is_answered_or_refused(visitor, pairs, path):
    assert visitor.get(f"{path}?{urlencode(pairs)}").status_code in (200, 400, 404)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/tasks/sarcoma_ct_sexx", "Did you mean 'sarcoma_ct_sex'"),
        ("/tasks/smoke_lesion?version=9", "has no version 9"),
        ("/models/abc", "No model has the identity 'abc'"),
        ("/probes/liner", "Did you mean 'linear'"),
        ("/nowhere", "There is no page at /nowhere"),
        (f"/{EVIL}", "There is no page"),
    ],
)
def test_an_unknown_page_is_a_page_too(visitor, path, says):
    answer = visitor.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
    assert says in Page(answer.text).text
    assert EVIL not in answer.text
    assert 'href="/"' in answer.text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/results?limit=0x10", 400),
        ("/api/v1/results?limit=99999999", 400),
        ("/api/v1/results?after=-1", 400),
        ("/api/v1/nothing", 404),
        ("/tasks/smoke_lesion?version=one", 400),
        ("/tasks/smoke_lesion?probe=none", 400),
    ],
)
def test_wrong_requests_are_told_what_is_wrong(visitor, path, status):
    answer = visitor.get(path)
    assert answer.status_code == status
    if path.startswith("/api"):
        assert answer.json()["error"]


def test_a_database_that_cannot_be_read_is_a_message_and_no_crash(tmp_path):
    engine = db.connect(f"sqlite:///{tmp_path / 'nowhere' / 'board.db'}")
    visitor = Visitor(create_app(engine))
    assert visitor.get("/healthz").status_code == 503
    answer = visitor.get("/")
    assert answer.status_code == 503
    assert "folder has to exist" in Page(answer.text).text


# --- the other pages ----------------------------------------------------------------------------


def test_a_task_page_shows_its_card_its_chart_and_all_metrics(visitor):
    html = visitor.get("/tasks/adrenal_mnist3d").text
    page = Page(html)
    assert "Adrenal mass or normal gland" in page.text
    assert "cases 1,584, patients 1,584" in page.text
    assert "size alone reaches an AUROC of 0.69" in page.text
    for metric in ("Average precision", "Brier score", "ECE"):
        assert metric in page.text
    assert re.search(r"<svg[^>]*role=\"img\"[^>]*aria-labelledby", html)
    assert "<title id=" in html
    assert "resnet18_mae: 0.941 [0.879, 0.990]; swin_unetr_btcv" in html
    assert html.count('class="dot"') == len(LEVELS)
    assert [row[0] for row in page.rows[1:]] == [str(k) for k in range(1, 9)]


def test_a_task_page_draws_what_does_not_compete_hollow_and_names_what_is_missing(visitor):
    assert visitor.get("/tasks/sarcoma_ct_sex").text.count("dot hollow") == 1
    missing = Page(visitor.get("/tasks/sarcoma_mr_sex").text).text
    assert "Not evaluated with this probe: vit_base_dino." in missing


def test_a_task_page_can_show_another_probe_version_or_number_of_shots(empty):
    visitor = Visitor(create_app(empty))
    add(empty, [result(score=0.61), result(score=0.62, shots=4, seed="all")])
    add(empty, [result(score=0.63, probe="knn")])
    add(empty, [result(score=0.64, task_version=2)], task_card("t", version=2))
    for query, score in (
        ("?version=1", "0.610"),
        ("?version=1&shots=4", "0.620"),
        ("?version=1&probe=knn", "0.630"),
        ("", "0.640"),
    ):
        assert score in Page(visitor.get(f"/tasks/t{query}").text).rows[1][2]
    note = board_json(visitor, "?shots=")["models"][0]["scores"]["t"]
    assert note["score"] == 0.64


def test_the_board_can_show_a_number_of_shots(empty):
    visitor = Visitor(create_app(empty))
    add(empty, [result(score=0.6, shots=1), result(score=0.7, shots=16)])
    assert board_json(visitor)["shots"] == 16
    assert board_json(visitor, "?shots=1")["models"][0]["scores"]["t"]["score"] == 0.6
    assert 'name="shots"' in visitor.get("/").text


def test_a_model_page_shows_its_card_manifest_and_scores(visitor):
    page = Page(visitor.get(f"/models/{sha('texture')}").text)
    assert "The model texture" in page.text
    assert sha("texture") in page.text
    assert '"architecture": "resnet10"' in page.text
    metric = "AUROC ↑ higher is better floor 0.732 (texture)"
    assert page.rows[1][:4] == ["adrenal_ mnist3d", metric, "0.732 [0.670, 0.781]", "4 of 8"]
    assert "14,360,000" in Page(visitor.get(f"/models/{sha('resnet18_mae')}").text).text
    assert "knn probe" in page.text


def test_models_of_one_name_are_told_apart(empty):
    for model_sha in ("1" * 64, "2" * 64):
        add(empty, [result("twin", model_sha=model_sha)])
    models = board_page(Visitor(create_app(empty))).models
    assert models == ["twin(11111111)", "twin(22222222)"]


def test_an_empty_board_says_which_command_fills_it(empty):
    answer = Visitor(create_app(empty)).get("/")
    assert answer.status_code == 200
    assert "tomoprobe quickstart" in answer.text


def test_a_board_of_sanity_checks_says_so_first(empty):
    fill(empty, SMOKE_TASKS)
    visitor = Visitor(create_app(empty))
    assert "Sanity check, never evidence." in board_page(visitor).text
    assert board_json(visitor)["models"][0]["mean_rank"] == 1.5
    assert "Sanity check, never evidence." in visitor.get("/tasks/smoke_lesion").text


def test_sanity_checks_beside_real_tasks_are_marked_and_do_not_count(visitor):
    page = board_page(visitor)
    assert "Sanity check, never evidence." not in page.text
    assert page.text.count("sanity check") == 1 + len(SMOKE_TASKS)
    counts = {t["name"]: t["counts_for_mean_rank"] for t in board_json(visitor)["tasks"]}
    assert [counts[t.name] for t in SMOKE_TASKS] == [False, False]
    assert sum(counts.values()) == len(REAL_TASKS)


# --- safety ---------------------------------------------------------------------------------------


@pytest.fixture
def attacked(empty):
    """A board on which every text that somebody else wrote is an attack."""
    task = task_card(
        EVIL, title=EVIL, note=EVIL, citation=EVIL, anatomy=EVIL, source="javascript:alert(1)"
    )
    encoder = model_card(EVIL, title=EVIL, note=EVIL, authors=EVIL, source="JavaScript:alert(1)")
    row = result(EVIL, EVIL, device=EVIL)
    add(empty, [row], task, encoder, flags=[[EVIL]], manifest={"name": EVIL})
    probes = {"linear": Current(1, (Change(1, EVIL),), title=EVIL, cost=EVIL)}
    settings = Settings(title=EVIL, suites={EVIL: [EVIL]}, probes=probes)
    visitor = Visitor(create_app(empty, settings))
    return [
        visitor.get("/"),
        visitor.get(f"/?{urlencode({'q': EVIL})}"),
        visitor.get(f"/?{urlencode({'kind': EVIL})}"),
        visitor.get(f"/models/{sha(EVIL)}"),
        visitor.get(f"/tasks/{EVIL}"),
        visitor.get("/probes"),
        visitor.get("/probes/linear"),
    ]


def test_what_others_wrote_is_escaped_everywhere(attacked):
    for answer in attacked:
        assert answer.status_code in (200, 400)
        assert EVIL not in answer.text
        assert "&lt;script&gt;alert(1)" in answer.text
        links = [a.get("href") or "" for a in Page(answer.text).all("a")]
        assert not [href for href in links if href.lower().startswith("javascript")]


def test_pages_hold_no_inline_script_or_style_and_load_nothing_from_elsewhere(visitor, attacked):
    paths = ("/", "/tasks/smoke_lesion", f"/models/{sha('texture')}", "/probes", "/probes/linear")
    answers = [visitor.get(path) for path in paths]
    for answer in (*answers, *attacked):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        for tag, attributes in Page(answer.text).elements:
            assert tag != "style"
            assert tag != "script" or (attributes.get("src") or "").startswith("/static/")
            assert tag != "link" or (attributes["href"] or "").startswith("/static/")
            assert not [a for a in attributes if a == "style" or a.startswith("on")]


def test_a_name_is_no_formula_in_a_spreadsheet(empty):
    add(empty, [result("=HYPERLINK(1)")])
    text = Visitor(create_app(empty)).get("/board.csv").text
    assert "'=HYPERLINK(1)" in text


def test_the_site_imports_neither_torch_nor_pandas():
    program = (
        "import sys, tomoprobe.leaderboard.site\n"
        "heavy = {'torch', 'monai', 'sklearn', 'nibabel', 'pandas'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- caching and data -----------------------------------------------------------------------------


def test_a_page_is_sent_again_only_when_the_board_has_changed(empty):
    visitor = Visitor(create_app(empty))
    add(empty, [result("a")])
    first = visitor.get("/")
    tag = first.headers["etag"]
    again = visitor.get("/", **{"if-none-match": f'"other", {tag}'})
    assert (again.status_code, again.content) == (304, b"")
    add(empty, [result("b")])
    changed = visitor.get("/", **{"if-none-match": tag})
    assert changed.status_code == 200
    assert board_page(visitor).models == ["a", "b"]


def test_a_change_by_another_process_is_seen(empty, tmp_path):
    visitor = Visitor(create_app(empty))
    assert "No results yet" in visitor.get("/").text
    other = db.connect(f"sqlite:///{tmp_path / 'board.db'}")
    add(other, [result("a")])
    other.dispose()
    assert board_page(visitor).models == ["a"]


def test_pages_are_compressed_for_those_who_can_read_it(visitor):
    small = visitor.get("/", **{"accept-encoding": "gzip"})
    plain = visitor.get("/", **{"accept-encoding": "identity"})
    assert small.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert small.text == plain.text
    assert int(small.headers["content-length"]) < len(plain.content) / 3


def test_assets_may_be_kept_for_ever_because_their_address_holds_their_hash(visitor):
    page = board_page(visitor)
    for address in [page.all("script")[0]["src"], page.all("link")[1]["href"]]:
        answer = visitor.get(address)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]


def test_the_api_gives_every_row_page_by_page(engine, visitor):
    found, after = [], 0
    while after is not None:
        part = visitor.get(f"/api/v1/results?limit=100&after={after}").json()
        assert len(part["results"]) <= 100
        found += part["results"]
        after = part["next"]
    stored = db.rows(engine)
    assert [row["id"] for row in found] == [row.id for row in stored]
    expected = json.loads(json.dumps(stored[7].result.as_dict()))
    assert {k: found[7][k] for k in expected} == expected
    knn = visitor.get("/api/v1/results?probe=knn&task=smoke_lesion&metric=auroc").json()
    assert {r["model"] for r in knn["results"]} == {"texture", "intensity"}


def test_the_api_gives_cards_as_they_were_stored(visitor):
    tasks = visitor.get("/api/v1/tasks").json()["tasks"]
    assert {t["name"]: t["card"] for t in tasks} == {
        c.name: c.as_dict() for c in (*REAL_TASKS, *SMOKE_TASKS)
    }
    models = visitor.get("/api/v1/models").json()["models"]
    assert {m["name"] for m in models} == set(LEVELS)


def test_links_hold_the_path_of_a_site_that_is_not_at_the_root(engine):
    settings = Settings(base_url="https://example.org/board/")
    page = board_page(Visitor(create_app(engine, settings)))
    links = [a["href"] for a in page.all("a") if not a["href"].startswith("#")]
    assert links
    assert all(href.startswith("/board/") for href in links)


# --- the server -----------------------------------------------------------------------------------


def test_serve_creates_the_database_answers_and_stops_when_interrupted(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = (
        "import sys\nfrom tomoprobe.leaderboard.site import serve\n"
        "serve(sys.argv[1], port=int(sys.argv[2]))\n"
    )
    url = f"sqlite:///{tmp_path / 'new.db'}"
    server = subprocess.Popen([sys.executable, "-c", program, url, str(port)])
    try:
        answer = _ask_until_up(f"http://127.0.0.1:{port}/", server)
        assert "tomoprobe quickstart" in answer.text
        assert "server" not in answer.headers
        assert httpx.head(f"http://127.0.0.1:{port}/").status_code == 200
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0
    finally:
        server.kill()


def _ask_until_up(url: str, server: subprocess.Popen) -> httpx.Response:
    deadline = time.monotonic() + 60
    while True:
        try:
            return httpx.get(url)
        except httpx.ConnectError:
            assert server.poll() is None, "the server has ended"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.1)


# --- self-run and unsafe rows --------------------------------------------------------------------


def test_rows_that_were_not_computed_here_or_without_isolation_say_so(tmp_path):
    engine = fresh(tmp_path)
    add(engine, [result("ours", score=0.7)])
    add(engine, [result("claimed", score=0.99)], origin="self-run")
    add(engine, [result("bare", score=0.6)], origin="verified", unsafe=True)
    visitor = Visitor(create_app(engine))
    for path in ("/", "/tasks/t"):
        page = visitor.get(path).text
        assert "self-run, not ranked" in page
        assert "made without isolation" in page
    models = {m["model"]: m for m in visitor.get("/board.json").json()["models"]}
    cells = {name: m["scores"]["t"] for name, m in models.items()}
    assert [cells[name]["rank"] for name in ("ours", "bare", "claimed")] == [1, 2, None]
    assert cells["claimed"]["origin"] == "self-run"
    assert "not rerun from weights" in cells["claimed"]["note"]
    assert cells["bare"]["unsafe"] is True
    table = visitor.get("/board.csv").text
    assert "made without isolation" in table
    assert "not rerun from weights" in table
    rows = {r["model"]: r for r in visitor.get("/api/v1/results").json()["results"]}
    assert (rows["ours"]["origin"], rows["claimed"]["origin"]) == ("local", "self-run")
    engine.dispose()


def test_a_self_run_of_a_newer_version_makes_no_row_look_old(tmp_path):
    engine = fresh(tmp_path)
    add(engine, [result("ours", score=0.7)])
    newer = result("claimed", score=0.99, task_version=2, probe_version=2)
    add(engine, [newer], task_card("t", version=2), origin="self-run")
    visitor = Visitor(create_app(engine))
    (task,) = visitor.get("/board.json").json()["tasks"]
    assert (task["version"], task["probe_version"]) == (1, 1)
    models = {m["model"]: m for m in visitor.get("/board.json").json()["models"]}
    assert models["ours"]["scores"]["t"]["rank"] == 1
    assert "self-run" not in visitor.get("/tasks/t").text
    engine.dispose()
