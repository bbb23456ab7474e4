"""What a run prints: progress while it goes, scores when it is done."""

import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
from rich.console import Console

from tomoprobe.benchmark import probes as protocols
from tomoprobe.benchmark.intervals import Difference
from tomoprobe.benchmark.statistics import FLAGS
from tomoprobe.benchmark.types import Result, Task, TaskCard
from tomoprobe.leaderboard.records import StoredRow
from tomoprobe.submissions import console, progress, scores
from tomoprobe.submissions.runner import Failure, OpenTask, Outcome, Reporter
from tomoprobe.submissions.runs import Ran
from tomoprobe.submissions.session import Session

from .toy import CARD

SKIPPED = "skipped: class 'dark' has 4 training patients, 5 are needed"

AGE = replace(CARD, name="toy_age", kind="regression", metric="mae", classes=(), unit="years")


def result(
    model: str, probe: str, score: float | None, shots: int | None = None, card: TaskCard = CARD
) -> Result:
    return Result(
        model=model,
        model_sha=model.ljust(64, "0"),
        task=card.name,
        task_version=1,
        probe=probe,
        probe_version=1,
        metric=card.metric,
        shots=shots,
        seed=0,
        score=score,
        low=None if score is None else score - 0.1,
        high=None if score is None else score + 0.1,
        spread=None if score is None else 0.01,
        n_test=20,
        subset=False,
        seconds=1.0,
        device="cpu",
        software="test",
        dataset_sha="d",
        split_sha="s",
    )


def run_of(results: Sequence[tuple[Result, tuple[str, ...]]], names: Sequence[str]) -> Ran:
    shas = {r.model: r.model_sha for r, _ in results}
    cards = {r.task: AGE if r.task == AGE.name else CARD for r, _ in results}
    opened = [
        OpenTask(Task(card, lambda root: []), [], True, cast("object", None), "s")  # type: ignore[arg-type]
        for card in cards.values()
    ]
    return Ran(Outcome(shas, ()), opened, [protocols.get(name) for name in names])


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch):
    """``printed(results, width)``: what ``print_scores`` prints of these rows."""

    def show(
        results: Sequence[tuple[Result, tuple[str, ...]]],
        width: int = 140,
        gap: Difference | None = None,
    ) -> str:
        rows = [StoredRow(i, r, True, flags, "") for i, (r, flags) in enumerate(results)]
        names = list(dict.fromkeys(r.probe for r, _ in results))
        differing = {CARD.name: {r.model_sha: gap for r, _ in results if r.model != "intensity"}}
        monkeypatch.setattr("tomoprobe.submissions.runs.rows_of", lambda work, ran: rows)
        monkeypatch.setattr(
            "tomoprobe.submissions.runs.differences",
            lambda work, ran, probe, floor: differing if gap else {},
        )
        paper = io.StringIO()
        monkeypatch.setattr(console, "out", Console(file=paper, width=width, highlight=False))
        work = cast("Session", SimpleNamespace(shown_url="sqlite:///scores.db"))
        console.print_scores(work, run_of(results, names))
        return paper.getvalue()

    return show


SEVERAL = [
    (result(model, probe, 0.8 - 0.1 * i, shots), ("few_positives",))
    for i, model in enumerate(["intensity", "random_resnet10"])
    for probe, shots in [
        ("linear", None),
        ("knn", None),
        ("linear_pca64", None),
        ("few_shot", 1),
        ("few_shot", 10),
        ("label_efficiency", 100),
        ("label_efficiency", None),
    ]
]
GAP = Difference(-0.1, -0.2, -0.01, 0.01)


def test_a_probe_with_a_metric_of_its_own_stands_in_the_table_under_that_metric(printed) -> None:
    shown = [
        (replace(result(model, probe, score), metric=metric), ())
        for model, scores in (("intensity", (0.9, 0.11)), ("random_resnet10", (0.6, 0.33)))
        for probe, metric, score in zip(
            ("linear", "retrieve"), ("auroc", "map"), scores, strict=True
        )
    ]
    for width in (140, 60):
        text = printed(shown, width)
        assert "toy: AUROC" in text
        assert "mAP ↑" in text
        assert text.index("intensity") < text.index("random_resnet10")
        assert all(score in text for score in ("0.900", "0.110", "0.600", "0.330"))


@pytest.mark.parametrize("width", [60, 70, 80, 100, 120, 140, 200])
def test_no_interval_breaks_however_narrow_the_terminal(printed, width: int) -> None:
    text = printed(SEVERAL, width, GAP)
    assert all(len(line) <= width for line in text.splitlines())
    table = text.split("1) ")[0]
    assert "…" not in table
    # two models with five probes, and one difference
    assert len(re.findall(r"\[−?\d\.\d+, −?\d\.\d+\]", table)) == 11
    assert table.count("toy: AUROC") == 1


def test_eighty_columns_keep_a_score_and_its_interval_on_one_line(printed) -> None:
    text = printed(SEVERAL, 80, GAP)
    assert re.search(r"random_resnet10 +0\.700 \[0\.\d+, 0\.800\] 1 .*−0\.100 \[", text)


def test_of_a_budget_the_largest_size_and_the_area_stand_for_the_curve(printed) -> None:
    rows = [
        (result("a", "few_shot", 0.61, 1), ()),
        (result("a", "few_shot", 0.72, 5), ()),
        (result("a", "few_shot", None, 10), (SKIPPED.replace("5 are", "10 are"),)),
        (result("a", "few_shot", None, 20), (SKIPPED.replace("5 are", "20 are"),)),
        (result("a", "label_efficiency", 0.83, 100), ()),
        (result("a", "label_efficiency", 0.64, None), ()),
    ]
    text = printed(rows)
    assert "0.720" in text and "5 patients per class" in text
    assert "0.640" in text and "mean over the curve" in text
    assert "0.610" not in text and "0.830" not in text
    assert "few_shot could not be drawn at 10, 20" in text and "10 are needed" in text


def test_flags_are_footnotes_and_a_sentence_is_shown_as_it_is(printed) -> None:
    text = printed(
        [
            (result("a", "linear", 0.7), ("few_positives",)),
            (result("b", "linear", None), ("a sentence of the [protocol]",)),
        ]
    )
    assert f"1) {FLAGS['few_positives']}" in text
    assert "2) a sentence of the [protocol]" in text


def test_models_are_sorted_by_the_direction_of_the_metric(printed) -> None:
    higher = printed([(result(m, "linear", s), ()) for m, s in [("low", 0.6), ("high", 0.9)]])
    assert higher.index("high  ") < higher.index("low  ")
    rows = [(result(m, "linear", s, card=AGE), ()) for m, s in [("bad", 9.0), ("good", 4.0)]]
    rows += [(result("undefined", "linear", None, card=AGE), ())]
    lower = printed(rows)
    assert lower.index("good  ") < lower.index("bad  ") < lower.index("undefined  ")
    assert "MAE, years (lower is better)" in lower


def test_the_main_number_of_a_unit() -> None:
    rows = [result("a", "few_shot", s, k) for k, s in [(1, 0.5), (5, 0.6), (10, None)]]
    main = scores.main_of([*rows, replace(rows[0], metric="brier", shots=20)], "auroc")
    assert main is not None and main.shots == 5
    assert scores.main_of([], "auroc") is None


# --- progress ------------------------------------------------------------------------------------


def tasks(n: int) -> list[Task]:
    return [Task(replace(CARD, name=f"task_{i:02d}"), lambda root: []) for i in range(n)]


TWO = [protocols.get("linear"), protocols.get("knn")]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A stderr that is a file, in a process that was told to use colours."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    paper = io.StringIO()
    monkeypatch.setattr(progress, "err", Console(file=paper, stderr=True, highlight=False))
    return paper


def go(reporter: progress.Tracker, encoders: Sequence[str], names: Sequence[str]) -> None:
    """What the runner reports of a run in which everything works."""
    for encoder, name in itertools.product(encoders, names):
        reporter.extracting(encoder, name, 1, 1)
        for probe in TWO:
            reporter.probing(encoder, name, probe.name)
            found = [replace(result(encoder, probe.name, 0.8), task=name)]
            reporter.finished(encoder, name, probe.name, True, found)


def test_a_log_has_a_plain_line_per_finished_unit_with_its_score(log: io.StringIO) -> None:
    with progress.progress(2, tasks(3), TWO) as reporter:
        go(reporter, ["a", "b"], [t.card.name for t in tasks(3)])
    lines = log.getvalue().splitlines()
    assert len(lines) == 12
    assert lines[0] == " 1/12  a task_00 linear  AUROC 0.800 [0.700, 0.900]"
    assert lines[-1].startswith("12/12  b task_02 knn")
    assert "\x1b" not in log.getvalue() and "\r" not in log.getvalue()


def test_what_was_stored_before_is_said(log: io.StringIO) -> None:
    with progress.progress(1, tasks(1), TWO) as reporter:
        reporter.finished("a", "task_00", "linear", new=False)
    assert log.getvalue() == "1/2  a task_00 linear  (stored before)\n"


def test_failures_count_all_units_that_they_take_along(log: io.StringIO) -> None:
    with progress.progress(["a", "b.toml"], tasks(3), TWO) as reporter:
        reporter.failed(Failure("a", "task_00", "knn", "too few\n patients\x1b[2J"))
        reporter.failed(Failure("a", "task_00", "all", "damaged"))
        reporter.failed(Failure("b.toml", "all", "all", "no such file"))
        assert reporter.settled == 8
        go(reporter, ["a"], ["task_01", "task_02"])
        assert reporter.settled == reporter.total == 12
    lines = log.getvalue().splitlines()
    assert len(lines) == 7 and "\x1b" not in log.getvalue()
    assert [line.split()[0] for line in lines[:3]] == ["1/12", "2/12", "8/12"]
    assert "too few patients" in lines[0]


def test_two_encoders_of_one_name_are_told_apart_by_what_was_asked_for() -> None:
    reporter = progress.Tracker(["a.toml", "b.toml"], tasks(2), TWO)
    for asked in ("a.toml", "b.toml"):
        reporter.loading(asked)
        go(reporter, ["resnet"], ["task_00", "task_01"])
    assert reporter.settled == reporter.total == 8
    assert reporter.names == {"a.toml": "resnet", "b.toml": "resnet"}


def test_a_part_of_a_run_counts_only_what_is_done_here() -> None:
    reporter = progress.Tracker(["a", "b"], tasks(2), TWO)
    reporter.planned({"a": ["task_01"], "b": []})
    assert reporter.total == 2


def test_the_time_left_comes_from_what_was_measured() -> None:
    now = [0.0]
    reporter = progress.Tracker(["a", "b"], tasks(3), TWO, clock=lambda: now[0])
    assert reporter.seconds_left() is None
    for name in ("task_00", "task_01"):
        now[0] += 10
        go(reporter, ["a"], [name])
    assert reporter.seconds_left() == pytest.approx(40)  # four tasks at 10 s
    for probe in TWO:
        reporter.finished("a", "task_02", probe.name, new=False)
    assert reporter.seconds_left() == pytest.approx(30)
    now[0] += 40
    reporter.working("b", "task_00", "linear", 1, 4)
    assert reporter.step.startswith("linear: b on task_00")
    assert reporter.seconds_left() == pytest.approx(3 * 40 + 20)  # of a study: by its steps
    reporter.extracting("b", "task_00", 1, 4)
    assert reporter.seconds_left() == pytest.approx(3 * 40 + 20)  # a slower one: by its features


@pytest.mark.parametrize(("encoders", "n_tasks"), [(1, 1), (5, 40), (30, 2), (3, 120)])
def test_the_display_fits_a_terminal(encoders: int, n_tasks: int) -> None:
    names = [f"encoder_with_a_long_name_{i}" for i in range(encoders)]
    display = progress.Display(names, tasks(n_tasks), TWO)
    go(display, names[:1], [t.card.name for t in tasks(n_tasks)][: n_tasks // 2 + 1])
    display.extracting(names[-1], "task_00", 3, 20)
    if n_tasks > 1:
        display.failed(Failure(names[-1], f"task_{n_tasks - 1:02d}", "all", "damaged"))
    paper = io.StringIO()
    Console(file=paper, width=80, force_terminal=True, color_system=None).print(display)
    lines = paper.getvalue().splitlines()
    assert len(lines) < 24 and max(map(len, lines)) <= 80
    text = paper.getvalue()
    assert f"of {encoders * n_tasks * 2} units" in text
    assert f"features: {names[-1]}"[:30] in text and "3/20" in text
    assert "AUROC 0.800" in text
    assert n_tasks == 1 or ("1 failed" in text and re.search(r"\d+ left", text))
    assert all(name in text for name in names[:1] + names[-1:])


def test_a_terminal_gets_the_display(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    paper = Terminal()
    monkeypatch.setattr(
        progress, "err", Console(file=paper, width=80, force_terminal=True, highlight=False)
    )
    with progress.progress(1, tasks(1), TWO) as reporter:
        reporter.failed(Failure("a", "task_00", "knn", "too [few] patients"))
    assert "too [few] patients" in paper.getvalue()
    assert "1 of 2 units" in paper.getvalue()


def test_a_tracker_is_a_reporter() -> None:
    reporter: Reporter = progress.Tracker([], [], [])
    assert reporter
