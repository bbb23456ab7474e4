"""How far scores of repeated cross-validation really lie from the truth: makes ``inflation.csv``.

    python -m tomoprobe.benchmark.simulation --out benchmark/inflation.csv

Two encoders that are equally good give Gaussian features of the same patients. Each is scored as
the benchmark scores: hashed folds, 5 repeats x 5 folds, features standardised on the training
patients, L2 logistic regression, patient bootstrap of the out-of-fold predictions. The truth is
known without test patients: the AUROC of a linear score w.x for classes N(0, I) and N(delta, I) is
Phi(w.delta / (sqrt(2) |w|)). What is to be estimated is its mean over all training sets, so that
the error contains what the test patients do and what the training patients do.

A factor makes the 95 % quantile of |error| / (t SE) equal to 1, on the logit scale for a score and
on the plain scale for a difference, whose truth is 0.
"""

import argparse
import csv
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from scipy import linalg, stats
from scipy.special import expit, logit, ndtr, ndtri

from . import metrics
from .intervals import LEVEL
from .resampling import patient_draws, sample, spread
from .splits import FOLDS, REPEATS, fold
from .statistics import over_repeats
from .types import TaskCard

logger = logging.getLogger(__name__)

REPETITIONS = {
    (30, 32): 1_000,
    (30, 512): 800,
    (30, 2048): 300,
    (51, 32): 1_000,
    (51, 512): 800,
    (51, 2048): 250,
    (100, 32): 1_000,
    (100, 512): 400,
    (100, 2048): 150,
    (200, 32): 600,
    (200, 512): 200,
    (200, 2048): 80,
}
"""Studies per cell, by (patients, features): from hand-made features to the widest encoders."""
AUROCS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Truths aimed at; the table holds those that were reached, too."""

C = 1.0
"""Inverse penalty, in scikit-learn's convention. Choosing C in inner folds, as the probe does, gave
a factor 0 to 11 % smaller (51 patients, 32 features; no difference at 512) and takes 50 fits
instead of one."""

CORRELATIONS = (0.0, 0.5, 0.9)
"""Of the two encoders' features given the class, in turn."""

RARER = (0.3, 0.5)
"""Share of the rarer class, uniform: the factor is an average over it."""

DRAWS = 1_000
MOST_ITERATIONS = 50

CARD = TaskCard(
    name="simulation",
    version=0,
    title="Simulated features",
    kind="classification",
    modality="CT",
    anatomy="none",
    metric="auroc",
    license="Apache-2.0",
    source="",
    citation="",
    counts={},
)
"""Of which only name and version matter: the folds are hashed from them."""


@dataclass(frozen=True)
class Study:
    """Two encoders under repeated cross-validation on the same patients."""

    target: np.ndarray
    """(n,) 0 or 1."""
    patient: np.ndarray
    """(n,) identifiers."""
    fold: np.ndarray
    """(R, n)."""
    predictions: np.ndarray
    """(2, R, n, 2) out-of-fold log-odds of each class, for each encoder."""
    truth: np.ndarray
    """(2,) mean AUROC of the fold models of each encoder on all patients there are."""


@dataclass(frozen=True)
class Errors:
    """|error| / (t SE), not inflated, of one study; NaN where the score has no SE."""

    score: np.ndarray
    """(2,) on the logit scale."""
    difference: float


# --- fits ----------------------------------------------------------------------------------


def fit_narrow(x: np.ndarray, y: np.ndarray, train: np.ndarray) -> np.ndarray:
    """L2 logistic regressions by Newton's method, all folds at once.

    Args:
        x: (M, n, F) standardised per fold model.
        y: (n,) 0 or 1.
        train: (M, n) 1 for training patients, else 0.

    Returns:
        (M, F) weights, without the intercept, which is not penalised.
    """
    models, n, width = x.shape
    x = np.concatenate([x, np.ones((models, n, 1))], axis=2)
    penalty = np.append(np.full(width, 1 / C), 0.0)
    w = np.zeros((models, width + 1))
    diagonal = np.arange(width + 1)
    for _ in range(MOST_ITERATIONS):
        p = expit((x @ w[..., None])[..., 0])
        gradient = ((train * (p - y))[:, None] @ x)[:, 0] + penalty * w
        hessian = (x * (train * p * (1 - p))[..., None]).transpose(0, 2, 1) @ x
        hessian[:, diagonal, diagonal] += penalty
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        w -= step
        if np.abs(step).max() < 1e-6:
            break
    return w[:, :-1]


def fit_wide(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The same for one model in the span of its training patients, for more features than those.

    Newton's method on the Gram matrix: Rasmussen & Williams, Gaussian Processes for Machine
    Learning (2006), algorithm 3.1, with an intercept that is not penalised.

    Args:
        x: (n, F) standardised training features.
        y: (n,) 0 or 1.

    Returns:
        (F,) weights.
    """
    gram = C * x @ x.T
    f = np.zeros(len(y))
    for _ in range(MOST_ITERATIONS):
        p = expit(f)
        root = np.sqrt(p * (1 - p))
        b = root[:, None] * gram * root
        b.flat[:: len(y) + 1] += 1
        both = np.stack([root * f + (y - p) / root, root], axis=1)
        both = linalg.cho_solve(linalg.cho_factor(b, overwrite_a=True), both) * root[:, None]
        intercept = both[:, 0].sum() / both[:, 1].sum()
        a = both[:, 0] - intercept * both[:, 1]
        previous, f = f, gram @ a + intercept
        if np.abs(f - previous).max() < 1e-6:
            break
    return C * x.T @ a


def fold_models(x: np.ndarray, y: np.ndarray, train: np.ndarray) -> np.ndarray:
    """(M, F) weights for features as they are: the scaling of each fold's training is folded in."""
    size = train.sum(1, keepdims=True)
    mean = train @ x / size
    sd = np.sqrt(train @ (x * x) / size - mean**2)
    if x.shape[1] < len(x):
        return fit_narrow((x - mean[:, None]) / sd[:, None], y, train) / sd
    rows = [t > 0 for t in train]
    parts = zip(rows, mean, sd, strict=True)
    return np.stack([fit_wide((x[r] - m) / s, y[r]) / s for r, m, s in parts])


# --- one study -----------------------------------------------------------------------------


def study(n: int, width: int, delta: float, number: int, seed: int) -> Study:
    """Simulate one study: ``number`` changes the patients, their folds and the correlation."""
    rng = np.random.default_rng([seed, n, width, number])
    y = np.zeros(n, np.int64)
    while not 5 <= y.sum() <= n - 5:  # a data set has more than a handful of each class
        y = (rng.random(n) < rng.uniform(*RARER)).astype(np.int64)
    patient = np.array([f"p{i:03d}" for i in range(n)])
    card = replace(CARD, version=number)
    folds = np.array([[fold(card, draw, p) for p in patient] for draw in range(REPEATS)])
    models = [(r, k) for r in range(REPEATS) for k in np.unique(folds[r])]
    train = np.stack([folds[r] != k for r, k in models]).astype(float)  # (M, n)

    rho = CORRELATIONS[number % len(CORRELATIONS)]
    shared = rng.normal(size=(n, width))
    shift = delta / math.sqrt(width)  # spread over all features, so that standardising keeps it
    truth, predictions = np.empty(2), np.zeros((2, REPEATS, n, 2))
    for encoder in range(2):
        x = math.sqrt(rho) * shared + math.sqrt(1 - rho) * rng.normal(size=(n, width))
        x += shift * y[:, None]
        w = fold_models(x, y, train)
        reach = shift * w.sum(1) / (math.sqrt(2) * np.linalg.norm(w, axis=1))
        truth[encoder] = ndtr(reach).mean()
        for (r, k), odds in zip(models, w @ x.T, strict=True):
            out = folds[r] == k
            predictions[encoder, r, out] = odds[out, None] * (-0.5, 0.5)
    return Study(y, patient, folds, predictions, truth)


@cache
def separation(n: int, width: int, auroc: float, seed: int) -> float:
    """|delta| at which training on four fifths of n patients gives about this AUROC."""
    if auroc <= 0.5:
        return 0.0
    wanted = ndtri(auroc)
    # a score along the difference of the class means, each off by its sampling error
    share = sum(RARER) / 2
    noise = width / (n * (1 - 1 / FOLDS)) / (share * (1 - share))
    delta = math.sqrt(wanted**2 + math.sqrt(wanted**4 + 2 * wanted**2 * noise))
    for _ in range(4):
        pilot = [study(n, width, delta, number, seed + 1).truth for number in range(10)]
        delta *= (wanted / ndtri(np.mean(pilot))) ** 0.7
    return float(delta)


def errors(s: Study, truth: float) -> Errors:
    """How far the benchmark's answers to a study are from the truth, in units of t SE.

    Args:
        s: the study.
        truth: expected AUROC of both encoders.
    """
    who = sample("classification", s.target, s.patient, n_classes=2)
    counts = patient_draws(who, DRAWS, seed=0)
    auroc = metrics.get("auroc")
    answers = [over_repeats(auroc, s.target, p, s.fold, counts) for p in s.predictions]
    (a, drawn_a), (b, drawn_b) = answers
    found = []
    for gap, values in (
        (_gap(a, truth), drawn_a),
        (_gap(b, truth), drawn_b),
        (a - b, drawn_a - drawn_b),
    ):
        defined = np.isfinite(values)
        variance, freedom = spread(values[defined], counts[defined], who, pairs=True)
        margin = math.sqrt(variance) * float(stats.t.ppf((1 + LEVEL) / 2, freedom))
        found.append(abs(gap) / margin if margin > 0 else math.nan)
    return Errors(np.array(found[:2]), found[2])


def _gap(score: float, truth: float) -> float:
    """Error on the logit scale, in units of AUROC at the score."""
    if not 0 < score < 1:
        return math.nan  # its interval is a bound of its own, see ``intervals``
    return float(logit(score) - logit(truth)) * score * (1 - score)


# --- the table -----------------------------------------------------------------------------


def rows(scale: float, seed: int) -> Iterator[dict[str, object]]:
    """Rows of the table, cell by cell; ``scale`` multiplies the repetitions."""
    for (n, width), repetitions in REPETITIONS.items():
        for auroc in AUROCS:
            delta = separation(n, width, auroc, seed)
            studies = [
                study(n, width, delta, number, seed)
                for number in range(max(20, round(scale * repetitions)))
            ]
            truth = float(np.mean([s.truth for s in studies]))
            found = [errors(s, truth) for s in studies]
            ratios = {
                "score": np.array([e.score for e in found]),
                "difference": np.array([[e.difference] for e in found]),
            }
            for of, ratio in ratios.items():
                rng = np.random.default_rng(seed)
                resampled = [ratio[rng.integers(len(ratio), size=len(ratio))] for _ in range(200)]
                yield {
                    "of": of,
                    "n": n,
                    "width": width,
                    "auroc": auroc,
                    "factor": f"{np.nanquantile(ratio, LEVEL):.3f}",
                    "error": f"{np.std([np.nanquantile(r, LEVEL) for r in resampled]):.3f}",
                    "repetitions": len(studies),
                    "truth": f"{truth:.3f}",
                    "coverage_without": f"{(ratio <= 1).mean():.3f}",
                }
            logger.info("n=%d width=%d auroc=%.2f", n, width, auroc)


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the repetitions")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    writer = None
    with options.out.open("w", newline="") as file:
        for row in rows(options.scale, options.seed):
            if writer is None:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
            file.flush()


if __name__ == "__main__":
    main()
