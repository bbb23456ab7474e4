"""The spine on a toy task: cases -> features -> predictions -> scores -> stored form."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from tomoprobe.benchmark import evaluate, metrics, predictions, probes
from tomoprobe.benchmark.compare import against
from tomoprobe.benchmark.errors import StorageError
from tomoprobe.benchmark.features import extract, identify
from tomoprobe.benchmark.splits import seats_of, split_sha, uses_cv
from tomoprobe.benchmark.types import Case, Features, Predictions, TaskCard

from .toy import CARD, TOY, ToyEncoder, cases

CV_CARD = replace(CARD, counts={"cases": 60, "patients": 60})
REGRESSION_CARD = replace(CARD, kind="regression", metric="mae", classes=())


def provenance(card: TaskCard, some: list[Case], **changes: object) -> predictions.Provenance:
    made = predictions.Provenance(
        model="toy_mean",
        model_sha="0" * 64,
        task=card.name,
        task_version=card.version,
        probe="linear",
        probe_version=1,
        kind=card.kind,
        width=2,
        cv=uses_cv(card),
        subset=False,
        seconds=1.0,
        device="cpu",
        software="test",
        dataset_sha=identify(TOY, some).dataset_sha,
        split_sha=split_sha(card, seats_of(some)),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def predicted(card: TaskCard, noise: float = 0.0) -> tuple[pd.DataFrame, predictions.Provenance]:
    some = cases(card)
    x = extract(ToyEncoder(), some, None)
    x = x + noise * np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    return evaluate.predict(card, some, x, probes.get("linear")), provenance(card, some)


@pytest.mark.parametrize("card", [CARD, CV_CARD, REGRESSION_CARD])
def test_every_metric_of_the_kind_gets_a_row_with_an_interval(card: TaskCard) -> None:
    scores = evaluate.score(*predicted(card))
    assert [r.metric for r in scores.results] == [m.name for m in metrics.for_kind(card.kind)]
    for row in scores.results:
        assert row.low is not None and row.high is not None and row.score is not None
        assert row.low <= row.score <= row.high or row.metric == "ece"
        assert row.spread is not None and row.spread >= 0
        assert row.shots is None
        assert row.seed == ("all" if card is CV_CARD else 0)
        assert row.n_test == (60 if card is CV_CARD else 20)


def test_the_score_is_that_of_the_headline_fit() -> None:
    table, about = predicted(CARD)
    row = next(r for r in evaluate.score(table, about).results if r.metric == "auroc")
    headline = table[table["refit"] == predictions.HEADLINE]
    assert row.score == pytest.approx(roc_auc_score(headline["target"], headline["p1"]), abs=1e-12)


def test_cross_validation_holds_every_case_out_once_per_repeat() -> None:
    table, _ = predicted(CV_CARD)
    headline = table[table["refit"] == predictions.HEADLINE]
    assert (headline.groupby(["repeat", "case"]).size() == 1).all()
    assert headline.groupby("repeat").size().tolist() == [60] * 5
    assert table[table["refit"] != predictions.HEADLINE]["refit"].nunique() == evaluate.REFITS


def test_a_probe_never_sees_a_test_target() -> None:
    class Spy:
        name, version, kinds, title = "spy", 1, ("classification",), "looks"

        def __call__(self, features: Features, seed: int, refits: int) -> Predictions:
            test = features.split == "test"
            assert (features.target[test] == -1).all()
            assert set(features.patient[test]).isdisjoint(features.patient[~test])
            values = np.full((test.sum(), 2), 0.5)
            return Predictions(values, np.stack([values] * refits), {})

    for card in (CARD, CV_CARD):
        some = cases(card)
        evaluate.predict(card, some, np.zeros((60, 2), np.float32), Spy())  # type: ignore[arg-type]


@pytest.mark.parametrize("card", [CARD, CV_CARD, REGRESSION_CARD])
def test_stored_predictions_give_every_score_again_to_the_last_digit(card: TaskCard) -> None:
    table, about = predicted(card)
    stored, about_again = predictions.from_parquet(predictions.to_parquet(table, about))
    assert about_again == about
    assert evaluate.score(stored, about_again) == evaluate.score(table, about)
    shuffled = stored.sample(frac=1, random_state=0)
    assert evaluate.score(shuffled, about_again) == evaluate.score(table, about)


def test_bytes_that_are_no_predictions_are_refused() -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        predictions.from_parquet(b"not parquet")


def test_two_runs_give_identical_scores() -> None:
    assert evaluate.score(*predicted(CARD)) == evaluate.score(*predicted(CARD))


def test_the_row_has_exactly_the_published_fields() -> None:
    row = evaluate.score(*predicted(CARD)).results[0].as_dict()
    assert ", ".join(row) == (
        "model, model_sha, task, task_version, probe, probe_version, metric, shots, seed, score, "
        "low, high, spread, n_test, subset, seconds, device, software, dataset_sha, split_sha"
    )


@pytest.mark.parametrize("card", [CARD, CV_CARD])
def test_a_worse_model_differs_from_a_better_one_and_not_from_itself(card: TaskCard) -> None:
    good, worse = predicted(card), predicted(card, noise=5.0)
    differences = against("good", {"good": good, "worse": worse, "twin": good}, "auroc")
    assert differences["twin"].delta == 0 and differences["twin"].p > 0.9
    assert differences["worse"].delta < 0 and differences["worse"].high < 0


def test_models_tested_on_other_cases_are_not_paired() -> None:
    table, about = predicted(CARD)
    other = replace(about, split_sha="another")
    assert against("a", {"a": (table, about), "b": (table, other)}, "auroc") == {}
