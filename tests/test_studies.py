"""Every study: an oracle is near the best, a constant at chance, and each number comes again."""

import math
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from tomoprobe.benchmark import evaluate, metrics, predictions, probes
from tomoprobe.benchmark.cache import FeatureCache
from tomoprobe.benchmark.features import FrozenEncoder, identify
from tomoprobe.benchmark.studies import Setting, Study, answers_of, cost_of, metric_of
from tomoprobe.benchmark.types import Result
from tomoprobe.tasks import check, open_cases

STUDIES = [name for name in probes.names() if isinstance(probes.get(name), Study)]


@cache
def toy(name: str) -> ModuleType:
    """The module beside this one with a task, an oracle and a trivial encoder for a study."""
    return import_module(f"tests.study_{name}")


def study(name: str) -> Study:
    """The study as it is, or a shorter one that its module gives for the sweep."""
    shorter = getattr(toy(name), "study", None)
    found = shorter() if shorter else probes.get(name)
    assert isinstance(found, Study)
    return found


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str, FrozenEncoder], pd.DataFrame]:
    times = iter(range(100))

    def _run(name: str, encoder: FrozenEncoder) -> pd.DataFrame:
        task = check(toy(name).task())
        cases, _ = open_cases(task, None, subset=True)
        cache = FeatureCache(tmp_path / str(next(times)))
        setting = Setting(task.card, cases, encoder, cache, identify(task, cases))
        return study(name).run(setting)

    return _run


def scored(name: str, table: pd.DataFrame) -> dict[tuple[str, int | None], Result]:
    """All rows of a table, by metric and shots."""
    card = toy(name).task().card
    about = predictions.Provenance(
        model="toy",
        model_sha="0" * 64,
        task=card.name,
        task_version=1,
        probe=name,
        probe_version=1,
        kind=answers_of(study(name), card),
        width=1,
        cv=False,
        subset=False,
        seconds=0.0,
        device="cpu",
        software="",
        dataset_sha="",
        split_sha="",
    )
    stored = predictions.from_parquet(predictions.to_parquet(table, about))
    return {(row.metric, row.shots): row for row in evaluate.score(*stored).results}


def headline(name: str, table: pd.DataFrame) -> float:
    """The score of the metric that ranks, at the largest number of shots."""
    metric = metric_of(study(name), toy(name).task().card)
    rows = {shots: row for (of, shots), row in scored(name, table).items() if of == metric}
    score = rows[max(rows, key=lambda shots: shots or 0)].score
    assert score is not None
    return score


@pytest.mark.parametrize("name", STUDIES)
def test_an_oracle_is_near_the_best_and_two_runs_agree(name: str, run) -> None:
    low, high = toy(name).BEST
    table = run(name, toy(name).oracle())
    assert low <= headline(name, table) <= high
    again = scored(name, run(name, toy(name).oracle()))
    for key, row in scored(name, table).items():
        if row.score is None or not math.isfinite(row.score):
            assert again[key].score == row.score
        else:
            assert again[key].score == pytest.approx(row.score, abs=1e-4)
            if row.low is not None and row.high is not None:
                assert row.low <= row.score <= row.high, key


@pytest.mark.parametrize("name", STUDIES)
def test_what_does_not_see_the_image_is_at_chance(name: str, run) -> None:
    low, high = toy(name).CHANCE
    table = run(name, toy(name).trivial())
    assert low <= headline(name, table) <= high
    assert {"repeat", "fold", "refit", "case", "patient"} <= set(table.columns)
    keys = [key for key in ("shots", "repeat", "refit", "case") if key in table.columns]
    assert not table.duplicated(keys).any(), "one row per fit and test case"
    assert (table["refit"] == predictions.HEADLINE).any()


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_says_what_it_is(name: str) -> None:
    found = study(name)
    assert found.name == name and found.version >= 1 and found.kinds
    assert found.title and not found.title.endswith(".")
    cost = cost_of(found)
    assert cost.endswith(".") and any(map(str.isdigit, cost)), "a sentence with a number"
    assert "GPU" in cost, "and whether it was measured on one"
    for kind in [found.answers] if found.answers else found.kinds:
        assert metrics.for_kind(kind), kind
    ranks = getattr(found, "metric", "")
    assert not ranks or ranks in metrics.names()
