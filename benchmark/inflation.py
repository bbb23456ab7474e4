"""By how much the bootstrap's SE is too small under repeated cross-validation.

The table is made by ``simulation``: run it again whenever the protocol changes.
"""

import csv
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

Of = Literal["score", "difference"]


class _Table(NamedTuple):
    axes: tuple[np.ndarray, np.ndarray, np.ndarray]
    """log patients, log width, AUROC; each rising."""
    factor: np.ndarray
    """One value per combination."""


@cache
def _tables() -> dict[str, _Table]:
    with Path(__file__).with_name("inflation.csv").open(newline="") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    tables = {}
    for of in sorted({row["of"] for row in rows}):
        mine = {
            (int(r["n"]), int(r["width"]), float(r["auroc"])): float(r["factor"])
            for r in rows
            if r["of"] == of
        }
        n = sorted({key[0] for key in mine})
        width = sorted({key[1] for key in mine})
        auroc = sorted({key[2] for key in mine})
        grid = np.array([[[mine[a, b, c] for c in auroc] for b in width] for a in n])
        tables[of] = _Table((np.log(n), np.log(width), np.array(auroc)), grid)
    return tables


def factor(of: Of, n: int, width: int, score: float) -> tuple[float, bool]:
    """The factor for an AUROC, and whether it lies in the simulated range.

    Interpolated linearly in log n, log width and AUROC; at the nearest edge beyond the range. An
    AUROC below the lowest true one is no reason for doubt: chance gives such scores, and they were
    part of that cell.

    Args:
        of: a score, or the difference of two.
        n: patients.
        width: features the probe was fitted on.
        score: the AUROC.
    """
    axes, grid = _tables()[of]
    at = np.array([np.log(n), np.log(width), score])
    low = (axes[0][0], axes[1][0], -np.inf)
    high = [axis[-1] for axis in axes]
    inside = bool(np.all(at >= low) and np.all(at <= high))
    for x, axis in zip(at, axes, strict=True):
        grid = _interpolate(x, axis, grid)
    return float(grid), inside


def largest(of: Of, n: int, width: int) -> float:
    """The largest factor over all scores, for metrics that were not simulated."""
    return max(factor(of, n, width, score)[0] for score in _tables()[of].axes[2])


def _interpolate(x: float, axis: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Along the first axis of ``grid``; constant beyond its ends."""
    if not np.isfinite(x) or len(axis) == 1:
        return grid[-1]
    x = float(np.clip(x, axis[0], axis[-1]))
    i = int(np.clip(np.searchsorted(axis, x, "right") - 1, 0, len(axis) - 2))
    w = (x - axis[i]) / (axis[i + 1] - axis[i])
    return (1 - w) * grid[i] + w * grid[i + 1]
