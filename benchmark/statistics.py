"""How sure a score and a difference are: patient-clustered bootstrap, paired across models.

Patients are drawn with replacement (2,000 draws, the same ones for every model), and the spread of
the draws becomes an interval on a scale on which the score is nearly normal:

proportion-like scores (AUROC, average precision, balanced accuracy)
    Wilson's interval at the effective sample size p(1-p)/SE^2 (Korn & Graubard, Survey Methodology
    24 (1998) 193). Percentiles of the draws cover 86 % of nominal 95 % at 20 cases and AUROC 0.9,
    and give [1, 1] for a perfect score; this does neither.
means of scores of cases (Dice, average precision of a query, shares of lesions found)
    logit of the estimate +- t SE: Wilson's interval is one of hits and misses, which vary more. For
    Dice of 10 to 100 simulated cases it covers 94 to 96 %, near 0 or 1 no less than 91 %.
errors (log), Pearson r (Fisher z), R2 (log of the unexplained share)
    estimate +- t SE, with SE multiplied by sqrt(n / (n-1)), because draws from n patients vary less
    than n patients do (Hesterberg, The American Statistician 69 (2015) 371).

Quantiles are Student's with Satterthwaite's degrees of freedom over classes (and seeds): the rarer
class alone can decide how well the spread is known. Under repeated cross-validation the training
patients vary too, which no resampling of predictions shows: SE is multiplied by a simulated factor
(see ``inflation``). Classes are drawn separately, so that all of this holds for the class shares of
the test set, on which average precision, Brier score and calibration error depend. Coverage is
measured in tests/test_coverage.py; heavy-tailed errors, where one
patient decides the mean, are beyond all of this.
"""

from collections.abc import Sequence

import numpy as np

from . import inflation
from .intervals import Difference, Evidence, Interval, difference, interval
from .metrics import Metric
from .resampling import Sample, patient_draws, sample, seed_draws

DRAWS = 2_000
"""Between seeds of the draws, end points move by 1 to 4 % of the interval's width (SD)."""

FEW = 10
"""Patients in the smaller class below which a classification score is flagged."""

ESTIMANDS = {
    "split": "95 % interval: the score of this trained probe on all patients like the test "
    "patients. Training is taken as it is; its variation is the spread.",
    "seeds": "95 % interval: the mean score over draws of these training patients, and over all "
    "patients like the test patients. Draws of nearly all of them are alike: another set of "
    "training patients may move the score further.",
    "cv": "95 % interval: the mean score of probes trained on four fifths as many patients, over "
    "all training sets and patients like these.",
}
"""What an interval is about, by protocol; printed under every table."""

FLAGS = {
    "few_positives": f"fewer than {FEW} test patients in the smaller class",
    "undefined": "the metric is not defined on this test set",
    "degenerate": "no variation between patients, such as a perfect score: the interval is a bound",
    "biased": "the estimate depends on the number of test cases; the interval does not correct it",
    "unstable": "the metric is not defined in one of ten draws of patients or more",
    "uncalibrated": "outside the simulated range: the interval is a guess, significance not shown",
}
"""What each flag says to the reader."""


# --- one test set --------------------------------------------------------------------------


def score_interval(
    metric: Metric,
    target: np.ndarray,
    prediction: np.ndarray,
    patient: np.ndarray,
    seed: int = 0,
    draws: int = DRAWS,
) -> Interval:
    """Score on a held-out test set, with its interval over patients.

    Args:
        metric: which.
        target: (N,).
        prediction: (N, ...), such as (N, K) or (N,); or (S, N, ...) of S training seeds, whose
            mean score is taken and which are then drawn with replacement as well (crossed
            bootstrap).
        patient: (N,) identifiers: all cases of a patient are drawn together.
        seed: of the draws.
        draws: how many.
    """
    runs = _runs(metric, prediction)
    who = sample_of(metric, target, runs[0], patient)
    counts = patient_draws(who, draws, seed)
    once = np.array([metric(target, p) for p in runs])
    drawn = np.stack([metric(target, p, counts[:, who.member]) for p in runs])
    evidence = crossed(drawn, once, counts, who, seed)
    return interval(metric, float(once.mean()), evidence, few(metric, who))


def paired_difference(
    metric: Metric,
    target: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    patient: np.ndarray,
    seed: int = 0,
    draws: int = DRAWS,
) -> Difference:
    """Score of ``a`` minus score of ``b`` on the same test set, from the same draws.

    Arguments as in :func:`score_interval`; ``a`` and ``b`` have the same shape, and run s of both
    was trained on the same patients.
    """
    runs = _runs(metric, a), _runs(metric, b)
    who = sample_of(metric, target, runs[0][0], patient)
    counts = patient_draws(who, draws, seed)
    weights = counts[:, who.member]
    once = [np.array([metric(target, p) for p in part]) for part in runs]
    drawn = [np.stack([metric(target, p, weights) for p in part]) for part in runs]
    evidence = crossed(drawn[0] - drawn[1], once[0] - once[1], counts, who, seed)
    scores = (float(once[0].mean()), float(once[1].mean()))
    return difference(metric, scores, evidence, few(metric, who))


# --- repeated cross-validation ---------------------------------------------------------------


def cv_interval(
    metric: Metric,
    target: np.ndarray,
    predictions: np.ndarray,
    patient: np.ndarray,
    fold: np.ndarray,
    width: int,
    seed: int = 0,
    draws: int = DRAWS,
) -> Interval:
    """Score under repeated cross-validation.

    The score is the mean over repeats, in every draw of patients too: repeats see the same
    patients and are no further evidence. Metrics that compare cases compare those of one fold,
    because a model that was trained with fewer positives ranks its fold, which holds more of them,
    lower: pooled over folds, features without any signal score an AUROC of 0.3.

    Args:
        metric: which.
        target: (N,).
        predictions: (R, N, K) or (R, N) out-of-fold predictions of R repeats.
        patient: (N,) identifiers.
        fold: (R, N) the fold that held each case out.
        width: F, the number of features the probe was fitted on.
        seed: of the draws.
        draws: how many.
    """
    who = sample_of(metric, target, predictions[0], patient)
    counts = patient_draws(who, draws, seed)
    score, values = over_repeats(metric, target, predictions, fold, counts[:, who.member])
    factor, flags = cv_factor("score", metric, predictions.shape[-1], who, width, (score,))
    evidence = Evidence(values, counts, who, factor=factor, logit=True)
    return interval(metric, score, evidence, flags)


def cv_difference(
    metric: Metric,
    target: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    patient: np.ndarray,
    fold: np.ndarray,
    width: int,
    seed: int = 0,
    draws: int = DRAWS,
) -> Difference:
    """Score of ``a`` minus score of ``b`` under repeated cross-validation with the same folds.

    Arguments as in :func:`cv_interval`; ``width`` is that of the wider features.
    """
    who = sample_of(metric, target, a[0], patient)
    counts = patient_draws(who, draws, seed)
    score_a, values_a = over_repeats(metric, target, a, fold, counts[:, who.member])
    score_b, values_b = over_repeats(metric, target, b, fold, counts[:, who.member])
    scores = (score_a, score_b)
    factor, flags = cv_factor("difference", metric, a.shape[-1], who, width, scores)
    evidence = Evidence(values_a - values_b, counts, who, factor=factor)
    return difference(metric, scores, evidence, flags)


def over_repeats(
    metric: Metric,
    target: np.ndarray,
    predictions: np.ndarray,
    fold: np.ndarray,
    weights: np.ndarray,
) -> tuple[float, np.ndarray]:
    """The score of a repeated cross-validation: of the sample, and (B,) of each draw.

    Args:
        metric: which.
        target: (N,).
        predictions: (R, N, K) or (R, N).
        fold: (R, N).
        weights: (B, N) how often each case counts in each draw.
    """
    pairs = list(zip(predictions, fold, strict=True))
    once = [metric(target, p, fold=f) for p, f in pairs]
    drawn = [metric(target, p, weights, f) for p, f in pairs]
    return float(np.mean(once)), np.mean(drawn, axis=0)


# --- many comparisons --------------------------------------------------------------------------


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjusted p-values, in the order given (Holm, Scand. J. Stat. 6 (1979) 65).

    Among those below 0.05, the chance of any false one is at most 5 %. NaN stays NaN and does not
    count as a comparison.

    >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, np.float64)
    adjusted = np.full(p.shape, np.nan)
    order = [i for i in np.argsort(p, kind="stable") if not np.isnan(p[i])]
    steps = [p[i] * (len(order) - rank) for rank, i in enumerate(order)]
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if steps else []
    return adjusted


# --- parts -------------------------------------------------------------------------------------


def _runs(metric: Metric, prediction: np.ndarray) -> np.ndarray:
    """(S, N, ...), whether or not there was an axis of seeds: those of a stored table have one."""
    if metric.kind not in ("classification", "regression"):
        return prediction
    single = 2 if metric.kind == "classification" else 1
    return prediction[None] if prediction.ndim == single else prediction


def sample_of(
    metric: Metric, target: np.ndarray, prediction: np.ndarray, patient: np.ndarray
) -> Sample:
    """Who is drawn; ``prediction`` (N, K) or (N,) of one training tells the number of classes."""
    return sample(metric.kind, target, patient, n_classes=prediction.shape[-1])


def crossed(
    drawn: np.ndarray, once: np.ndarray, counts: np.ndarray, who: Sample, seed: int
) -> Evidence:
    """Draw seeds as well: drawn (S, B) and once (S,) of each seed."""
    n_seeds = len(once)
    values = mean_of_drawn(drawn, seed)
    if n_seeds == 1:
        return Evidence(values, counts, who)
    return Evidence(values, counts, who, n_seeds, float(once.var(ddof=1)) / n_seeds)


def mean_of_drawn(drawn: np.ndarray, seed: int) -> np.ndarray:
    """(B,) mean over training seeds that are drawn as well, of the scores (S, B) of each."""
    n_seeds, draws = drawn.shape
    if n_seeds == 1:
        return drawn[0]
    share = seed_draws(n_seeds, draws, seed) / n_seeds  # (B, S)
    # a score that is not defined spoils only the draws that hold its seed
    return np.where(share > 0, share * drawn.T, 0).sum(1)


def few(metric: Metric, who: Sample) -> tuple[str, ...]:
    """The flag of a test set with hardly anybody of one class, or none."""
    return ("few_positives",) if metric.kind == "classification" and who.smallest < FEW else ()


def cv_factor(
    of: inflation.Of,
    metric: Metric,
    n_classes: int,
    who: Sample,
    width: int,
    scores: tuple[float, ...],
) -> tuple[float, tuple[str, ...]]:
    """Factor of SE, the largest of those for ``scores``; and the flags."""
    if metric.name == "auroc" and n_classes == 2:
        found = [inflation.factor(of, who.n_patients, width, score) for score in scores]
        factor, known = max(f for f, _ in found), all(inside for _, inside in found)
    else:  # not simulated
        factor, known = inflation.largest(of, who.n_patients, width), False
    return factor, (*few(metric, who), *(() if known else ("uncalibrated",)))
