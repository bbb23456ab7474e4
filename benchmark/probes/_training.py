"""What probes share: sides, folds inside train, patient resampling, and the choice on val."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..errors import ProbeError
from ..splits import position
from ..types import Features

INNER_FOLDS = 5
"""Folds of the cross-validation inside train where there is no val."""


LARGEST_SD = 10.0
"""Where standardised features are clipped. A Gaussian comes there by chance once in 10^23."""


@dataclass(frozen=True)
class Sides:
    """The rows of each side."""

    train: np.ndarray
    """(n, F) float64."""
    train_target: np.ndarray
    train_patient: np.ndarray
    val: np.ndarray
    val_target: np.ndarray
    test: np.ndarray


def directions(x: np.ndarray) -> np.ndarray:
    """Rows (n, F) of length 1; rows of zeros stay: they have no direction."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def mean_and_sd(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the features of rows (n, F): (F,) means and SDs; the SD of a constant is infinite."""
    mean, sd = x.mean(0), x.std(0)
    # relative to the mean: a constant feature keeps an SD of rounding errors
    return mean, np.where(sd > 1e-7 * np.abs(mean) + 1e-12, sd, np.inf)


def sides_of(features: Features, val: bool = True) -> Sides:
    """Split the rows, as they are.

    Args:
        features: with train and test rows.
        val: False leaves the val side empty, and its rows and targets unread.

    Raises:
        ProbeError: train or test has no rows, or a training target is missing.
    """
    rows = {side: features.split == side for side in ("train", "val", "test")}
    for side in ("train", "test"):
        if not rows[side].any():
            raise ProbeError(
                f"There is no {side} case. A probe needs train and test patients: use a larger "
                "part of the data set."
            )
    if not val:
        rows["val"] = np.zeros(0, np.intp)
    known = features.target[rows["train"]], features.target[rows["val"]]
    for target in known:
        if not np.isfinite(target).all() or (
            features.kind == "classification" and (target < 0).any()
        ):
            raise ProbeError("A training target is missing. Every train and val case needs one.")
    return Sides(
        features.x[rows["train"]].astype(np.float64),
        known[0],
        features.patient[rows["train"]],
        features.x[rows["val"]].astype(np.float64),
        known[1],
        features.x[rows["test"]].astype(np.float64),
    )


def standardised_sides(features: Features, val: bool = True) -> Sides:
    """Split the rows, scale every feature to mean 0 and SD 1 on train; constant ones become 0.

    Values beyond ``LARGEST_SD`` are clipped: a unit that is almost dead on train can be 1,000 of
    its SDs away on a test case, and would alone decide a linear prediction. Arguments and errors
    as for ``sides_of``.
    """
    sides = sides_of(features, val)
    mean, sd = mean_and_sd(sides.train)

    def scaled(x: np.ndarray) -> np.ndarray:
        return np.clip((x - mean) / sd, -LARGEST_SD, LARGEST_SD)

    return replace(sides, train=scaled(sides.train), val=scaled(sides.val), test=scaled(sides.test))


def inner_folds(patient: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(train rows, held-out rows) of patient-grouped folds; empty folds are left out."""
    fold = np.array([int(position("inner", seed, str(p)) * INNER_FOLDS) for p in patient])
    for held_out in range(INNER_FOLDS):
        out = fold == held_out
        if out.any() and not out.all():
            yield np.flatnonzero(~out), np.flatnonzero(out)


def resampled_patients(patient: np.ndarray, seed: int, draws: int) -> np.ndarray:
    """Multiplicities of the rows when patients are drawn with replacement, (draws, n) int."""
    patients, index = np.unique(patient, return_inverse=True)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 20]))
    counts = rng.multinomial(len(patients), np.full(len(patients), 1 / len(patients)), draws)
    return counts[:, index]


def choose(
    sides: Sides,
    seed: int,
    losses: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    folds: Iterable[tuple[np.ndarray, np.ndarray]] | None = None,
) -> int:
    """Index of the candidate with the least loss on val, or over folds inside train.

    Args:
        sides: standardised rows.
        seed: of the inner folds.
        losses: (x, target, held-out x, held-out target) -> (candidates, n held-out) losses, with
            candidates ordered from the strongest regularisation to the weakest: the first of
            equal ones is taken.
        folds: (train rows, held-out rows) to use instead of ``inner_folds``.
    """
    if len(sides.val):
        per_case = losses(sides.train, sides.train_target, sides.val, sides.val_target)
        return int(per_case.mean(1).argmin())
    total: np.ndarray | None = None
    for train, out in inner_folds(sides.train_patient, seed) if folds is None else folds:
        per_case = losses(
            sides.train[train], sides.train_target[train], sides.train[out], sides.train_target[out]
        ).sum(1)
        total = per_case if total is None else total + per_case
    return 0 if total is None else int(total.argmin())
