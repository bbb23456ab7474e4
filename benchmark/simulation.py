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
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import logit, ndtr, ndtri

from . import inflation, metrics
from .intervals import LEVEL, quantile
from .newton import fold_models
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

PENALTIES = tuple(10.0**k for k in range(-4, 2))
"""Candidates for C. Each cell uses the one with the least out-of-fold log-loss over pilot studies.
The probe chooses anew in every fold, which takes 50 times as many fits; where that was tried (30,
51 and 75 patients), errors in units of SE were 0 to 6 % smaller."""

PILOT = 10
"""Studies of which separation and penalty of a cell are set."""

CORRELATIONS = (0.0, 0.5, 0.9)
"""Of the two encoders' features given the class, in turn."""

RARER = (0.3, 0.5)
"""Share of the rarer class, uniform: the factor is an average over it."""

DRAWS = 1_000
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


class Design(NamedTuple):
    """What two equally good encoders and their probes are like."""

    delta: float
    """Distance of the class means, in SDs of a feature."""
    c: float
    """Inverse penalty of the probes, in scikit-learn's convention."""


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


# --- one study -----------------------------------------------------------------------------


def study(n: int, width: int, design: Design, number: int, seed: int) -> Study:
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
    shift = design.delta / math.sqrt(
        width
    )  # spread over all features, so that standardising keeps it
    truth, predictions = np.empty(2), np.zeros((2, REPEATS, n, 2))
    for encoder in range(2):
        x = math.sqrt(rho) * shared + math.sqrt(1 - rho) * rng.normal(size=(n, width))
        x += shift * y[:, None]
        w, intercept = fold_models(x, y, train, design.c)
        reach = shift * w.sum(1) / (math.sqrt(2) * np.linalg.norm(w, axis=1))
        truth[encoder] = ndtr(reach).mean()
        for (r, k), odds in zip(models, w @ x.T + intercept[:, None], strict=True):
            out = folds[r] == k
            predictions[encoder, r, out] = odds[out, None] * (-0.5, 0.5)
    return Study(y, patient, folds, predictions, truth)


@cache
def design(n: int, width: int, auroc: float, seed: int) -> Design:
    """The separation at which probes reach about this AUROC, and the penalty they would choose."""
    wanted = ndtri(auroc)
    # a score along the difference of the class means, each off by its sampling error
    share = sum(RARER) / 2
    noise = width / (n * (1 - 1 / FOLDS)) / (share * (1 - share))
    delta = math.sqrt(wanted**2 + math.sqrt(wanted**4 + 2 * wanted**2 * noise))
    found = Design(float(delta), 1.0)

    def pilot(d: Design) -> list[Study]:
        return [study(n, width, d, number, seed + 1) for number in range(PILOT)]

    for _ in range(2):
        losses = [
            float(np.mean([_log_loss(s) for s in pilot(found._replace(c=c))])) for c in PENALTIES
        ]
        found = found._replace(c=PENALTIES[int(np.argmin(losses))])
        for _ in range(2 if auroc > 0.5 else 0):
            reached = ndtri(np.mean([s.truth for s in pilot(found)]))
            found = found._replace(delta=float(found.delta * (wanted / reached) ** 0.7))
    return found


def _log_loss(s: Study) -> float:
    """Of the out-of-fold predictions."""
    odds = s.predictions[..., 1] - s.predictions[..., 0]
    return float(np.logaddexp(0, np.where(s.target == 1, -odds, odds)).mean())


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
        margin = math.sqrt(variance) * quantile(freedom)
        found.append(abs(gap) / margin if margin > 0 else math.nan)
    return Errors(np.array(found[:2]), found[2])


def _gap(score: float, truth: float) -> float:
    """Error on the logit scale, in units of AUROC at the score."""
    if not 0 < score < 1:
        return math.nan  # its interval is a bound of its own, see ``intervals``
    return float(logit(score) - logit(truth)) * score * (1 - score)


# --- the table -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    of: inflation.Of
    n: int
    width: int
    auroc: float
    factor: float
    """Smoothed over neighbouring cells: what intervals use."""
    simulated: float
    """As counted in this cell."""
    error: float
    """Monte Carlo standard error of ``simulated``."""
    studies: int
    truth: float
    """AUROC that was reached, aimed at being ``auroc``."""
    coverage_without: float
    """Coverage of nominal 95 % intervals without a factor."""


def cell(n: int, width: int, auroc: float, studies: int, seed: int) -> list[Row]:
    """Simulate one cell, for scores and for differences."""
    like = design(n, width, auroc, seed)
    made = [study(n, width, like, number, seed) for number in range(studies)]
    truth = float(np.mean([s.truth for s in made]))
    found = [errors(s, truth) for s in made]
    ratios: dict[inflation.Of, np.ndarray] = {
        "score": np.array([e.score for e in found]),
        "difference": np.array([[e.difference] for e in found]),
    }
    rows = []
    for of, ratio in ratios.items():
        rng = np.random.default_rng(seed)
        resampled = [ratio[rng.integers(studies, size=studies)] for _ in range(200)]
        rows.append(
            Row(
                of,
                n,
                width,
                auroc,
                factor=math.nan,
                simulated=round(float(np.nanquantile(ratio, LEVEL)), 3),
                error=round(float(np.std([np.nanquantile(r, LEVEL) for r in resampled])), 3),
                studies=studies,
                truth=truth,
                coverage_without=float((ratio[np.isfinite(ratio)] <= 1).mean()),
            )
        )
    return rows


def smoothed(rows: list[Row]) -> list[Row]:
    """Fill in the factors: a polynomial in log n, log width and AUROC through the simulated ones.

    Weighted least squares of the logarithms: twice as exact as the cells, and off by little more
    than their Monte Carlo error (chi-square per degree of freedom 1.2 for scores, 1.0 for
    differences). What is left for scores are steps where a cell's penalty changes (0.1 to 1
    between AUROC 0.90 and 0.95 at 51 patients and 32 features), which the probe, choosing per
    fold, does not make.
    """
    filled = []
    for of in ("score", "difference"):
        mine = [row for row in rows if row.of == of]
        n, width, auroc = (
            np.array([getattr(row, name) for row in mine]) for name in ("n", "width", "auroc")
        )
        u, v, a = np.log(n / 77), np.log(width / 256), (auroc - 0.75) / 0.25
        terms = [u**0, u, v, u * u, u * v, v * v, a, a**2, a**3]
        terms += [u * a, u * u * a, u * a**2, u * a**3, v * a, v * v * a, v * a**2, v * a**3]
        terms += [u * v * a]
        x = np.stack(terms, axis=1)
        simulated = np.array([row.simulated for row in mine])
        weight = simulated / np.array([row.error for row in mine])
        fit = np.linalg.lstsq(x * weight[:, None], np.log(simulated) * weight, rcond=None)[0]
        factors = np.exp(x @ fit)
        filled += [replace(r, factor=float(f)) for r, f in zip(mine, factors, strict=True)]
    return filled


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description="Make the table of inflation factors.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the repetitions")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    rows = []
    for (n, width), repetitions in REPETITIONS.items():
        for auroc in AUROCS:
            studies = max(20, round(options.scale * repetitions))
            rows += cell(n, width, auroc, studies, options.seed)
            logger.info("n=%d width=%d auroc=%.2f", n, width, auroc)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        for row in smoothed(rows):
            writer.writerow(
                {k: f"{v:.3f}" if isinstance(v, float) else v for k, v in asdict(row).items()}
            )


if __name__ == "__main__":
    main()
