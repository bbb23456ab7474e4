"""How far a scan's embedding moves when the scan is shifted, beside how far scans lie apart.

The intraclass correlation is ICC(1,1) of Shrout & Fleiss, Psychological Bulletin 86 (1979) 420,
for the two embeddings of a scan, clean and shifted, with traces in place of mean squares, as in the
I2C2 of Shou et al., Cognitive, Affective & Behavioral Neuroscience 13 (2013) 714:

    ICC = (B - W) / (B + W),   B = 2 / (N - 1) sum |m_n - m|^2,   W = 1 / N sum |x_n - y_n|^2 / 2

where m_n is the mean of a scan's two embeddings and m the mean of all. One for embeddings that do
not move, 0 where they move as far as scans lie apart, -1 at worst. In bootstrap draws m stays that
of the whole sample.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..shifts import MOVED, SHIFTS, VIEWS
from . import Metric, Read

if TYPE_CHECKING:
    import pandas as pd

NEIGHBOURS = 5
"""Of a scan, compared between its clean and its shifted embedding."""


def views(shift: str = "") -> list[str]:
    """Names of the views of one kind, or of all with the move of the grid."""
    names = [v.name for v in VIEWS if shift in ("", v.shift.name)]
    return [*names, MOVED] if shift in ("", MOVED) else names


def _read(rows: pd.DataFrame, of: tuple[str, ...], shift: str = "") -> Read:
    """Nothing, (N, 0); and the columns ``of`` of the views, (N, V, len(of))."""
    stack = [rows[[f"{name}_{o}" for o in of]].to_numpy(np.float64) for name in views(shift)]
    return Read(np.empty((len(rows), 0)), np.stack(stack, axis=1))


def _icc(
    target: np.ndarray, prediction: np.ndarray, weights: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """(B,) mean over views; NaN where nothing varies, or a draw is one scan."""
    n = weights.sum(1)
    between, within = (
        np.einsum("bn,nv->vb", weights, prediction[:, :, column]) for column in (0, 1)
    )
    b, w = 2 * between / np.maximum(n - 1, 1), within / np.maximum(n, 1)
    icc = np.full(b.shape, np.nan)
    np.divide(b - w, b + w, out=icc, where=b + w > 0)
    return np.where(n > 1, icc.mean(0), np.nan)


def _mean(
    target: np.ndarray, prediction: np.ndarray, weights: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """(B,) mean over cases and views."""
    return weights @ prediction[:, :, 0].mean(1) / weights.sum(1)


def _correlation(name: str, title: str, shift: str = "") -> Metric:
    return Metric(
        name,
        title,
        "stability",
        higher_is_better=True,
        low=-1.0,
        high=1.0,
        scale="fisher_z",
        chance=lambda target: 0.0,
        compute=_icc,
        read=partial(_read, of=("between", "within"), shift=shift),
    )


def _by_luck(target: np.ndarray, wanted: int) -> float:
    """Share of ``wanted`` among as many scans drawn blindly."""
    return min(1.0, wanted / max(1, len(target)))


METRICS = (
    _correlation("icc", "Intraclass correlation"),
    *(_correlation(f"icc_{s.name}", f"ICC: {s.title.lower()}", s.name) for s in SHIFTS),
    _correlation(f"icc_{MOVED}", "ICC: grid moved by a voxel", MOVED),
    Metric(
        "neighbours",
        "Nearest is itself",
        "stability",
        higher_is_better=True,
        low=0.0,
        high=1.0,
        scale="proportion",
        chance=partial(_by_luck, wanted=1),
        compute=_mean,
        read=partial(_read, of=("itself",)),
    ),
    Metric(
        "neighbourhood",
        f"{NEIGHBOURS} nearest shared",
        "stability",
        higher_is_better=True,
        low=0.0,
        high=1.0,
        scale="proportion",
        chance=partial(_by_luck, wanted=NEIGHBOURS),
        compute=_mean,
        read=partial(_read, of=("shared",)),
    ),
)
