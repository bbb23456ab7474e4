"""What a prediction is worth: one metric family per file of this folder.

A file adds metrics by exposing ``METRICS``, a tuple of :class:`Metric`; the folder is the list.
Every metric takes integer multiplicities of the cases, so that 2,000 bootstrap draws are one
vectorised call: cases are sorted once, each draw is then a pass over them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Literal, NamedTuple, overload

import numpy as np

from ..errors import ProbeError, UnknownNameError
from ..types import Answer

if TYPE_CHECKING:
    import pandas as pd

Scale = Literal["proportion", "log", "fisher_z", "log_unexplained"]
"""Where a metric's interval is built (see ``statistics``): a proportion-like score in [0, 1]; an
error above 0; a correlation; a share of explained variance, through the share left unexplained."""

_CELLS = 2_000_000
"""Draws x cases handled at once: 16 MB per float64 temporary."""


class Read(NamedTuple):
    """What a metric takes from the rows of one repeat, one row per case, sorted by case."""

    target: np.ndarray
    """(N, ...)."""
    prediction: np.ndarray
    """(N, ...); may be of objects where the length differs between cases."""


def read_plain(rows: pd.DataFrame) -> Read:
    """The column ``target``, and ``p0``, ``p1``, ... (N, K) or ``value`` (N,)."""
    columns = [c for c in rows.columns if c == "value" or (c[0] == "p" and c[1:].isdigit())]
    values = rows[columns].to_numpy(np.float64)
    target = rows["target"].to_numpy()
    return Read(target, values[:, 0] if columns == ["value"] else values)


@dataclass(frozen=True)
class Metric:
    """One way to score predictions against targets."""

    name: str
    title: str
    kind: Answer
    higher_is_better: bool
    low: float
    high: float
    """The range of possible scores; infinite where it has no end."""
    scale: Scale
    chance: Callable[[np.ndarray], float]
    """(N,) targets -> what the best prediction that ignores the image scores on them."""
    compute: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    """(target (N,), prediction (N, K) or (N,), weights (B, N) float64, fold (N,) int) -> (B,)."""
    pairs: bool = False
    """A mean over pairs of cases of two classes, whose variance is that of pairs, too."""
    read: Callable[[pd.DataFrame], Read] = read_plain
    """What ``compute`` gets, from the stored table."""
    unit: str = ""
    """Of the score; empty: none, or that of a regression's target."""

    @overload
    def __call__(
        self,
        target: np.ndarray,
        prediction: np.ndarray,
        weights: None = None,
        fold: np.ndarray | None = None,
    ) -> float: ...

    @overload
    def __call__(
        self,
        target: np.ndarray,
        prediction: np.ndarray,
        weights: np.ndarray,
        fold: np.ndarray | None = None,
    ) -> np.ndarray: ...

    def __call__(
        self,
        target: np.ndarray,
        prediction: np.ndarray,
        weights: np.ndarray | None = None,
        fold: np.ndarray | None = None,
    ) -> float | np.ndarray:
        """Score one set of predictions, or many resamples of it.

        Args:
            target: (N,) class indices, or values.
            prediction: (N, K) class probabilities, or (N,) values.
            weights: (B, N) how often each case counts in each draw: integers from 0. None: once.
            fold: (N,) the cross-validation fold that held a case out, for predictions that come
                from several models. Metrics that compare cases (AUROC, Pearson r) then compare
                only cases of one fold, that is of one model. None: one model made them all.

        Returns:
            The score, or with ``weights`` (B,) scores. NaN where the metric is not defined: a
            single class has no AUROC, a constant no correlation.

        Raises:
            ProbeError: the predictions do not fit the targets, or are not finite.
        """
        target, prediction = np.asarray(target), np.asarray(prediction)
        if self.read is read_plain:
            prediction = prediction.astype(np.float64, copy=False)
            if self.kind == "classification":
                target = target.astype(np.int64)
            self._check(target, prediction)
        folds = np.zeros(len(target), np.int64) if fold is None else np.asarray(fold)
        if weights is None:
            once = np.ones((1, len(target)))
            return float(self.compute(target, prediction, once, folds)[0])
        step = max(1, _CELLS // max(1, len(target)))
        parts = [
            self.compute(target, prediction, np.ascontiguousarray(rows, np.float64), folds)
            for rows in (weights[i : i + step] for i in range(0, len(weights), step))
        ]
        return np.concatenate(parts) if parts else np.empty(0)

    def _check(self, target: np.ndarray, prediction: np.ndarray) -> None:
        columns = 2 if self.kind == "classification" else 1
        expected = "(N, K) class probabilities" if columns == 2 else "(N,) values"
        if prediction.ndim != columns or len(prediction) != len(target) or target.ndim != 1:
            raise ProbeError(
                f"{self.title} needs {expected} for {len(target)} targets, but got predictions of "
                f"shape {prediction.shape}. Return one row per case, in the order of the cases."
            )
        if not np.isfinite(prediction).all():
            raise ProbeError(
                f"{self.title} needs finite predictions, but some are NaN or infinite. Check the "
                "features and the fit of the probe."
            )
        if (
            columns == 2
            and len(target)
            and not 0 <= target.min() <= target.max() < prediction.shape[1]
        ):
            raise ProbeError(
                f"{self.title} got {prediction.shape[1]} columns of class probabilities, but the "
                f"targets name classes {target.min()} to {target.max()}. Return one column per "
                "class of the task, also for classes that training does not hold."
            )


@cache
def _all() -> dict[str, Metric]:
    modules = (m.name for m in iter_modules(__path__) if not m.name.startswith("_"))
    found = [m for name in modules for m in import_module(f".{name}", __name__).METRICS]
    return {m.name: m for m in sorted(found, key=lambda m: m.name)}


def names() -> tuple[str, ...]:
    """Names of all metrics, sorted.

    >>> "auroc" in names()
    True
    """
    return tuple(_all())


def get(name: str) -> Metric:
    """The metric of that name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in _all():
        raise UnknownNameError.of("metric", name, names())
    return _all()[name]


def for_kind(kind: Answer) -> tuple[Metric, ...]:
    """All metrics that score answers of this kind, by name."""
    return tuple(m for m in _all().values() if m.kind == _ALIKE.get(kind, kind))


_ALIKE: Mapping[Answer, Answer] = {"candidates": "detection"}
"""Scores of marked places are the same table as places with scores."""
