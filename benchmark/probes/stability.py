"""Stability: how far embeddings move under shifts that leave the patient the same. No labels.

Embeddings are standardised as the linear probe standardises them, so that no feature counts more
for its unit: mean 0 and SD 1 over the clean scans that are compared, features that are constant
there left out, values beyond 10 SDs clipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..errors import ProbeError
from ..metrics.stability import NEIGHBOURS
from ..splits import position
from ..studies import Setting, tested_rows
from ..types import Answer, Kind
from ._training import LARGEST_SD, directions, mean_and_sd
from ._views import shifted_embeddings

if TYPE_CHECKING:
    import pandas as pd

MOST = 100
"""Scans that are compared, chosen by a hash of their ids: each is embedded 22 times over."""


@dataclass(frozen=True)
class StabilityStudy:
    """Each scan under 21 shifts and a move of the grid, beside all clean scans.

    Scans of the test side; under cross-validation of everybody, as nobody trains.
    """

    name: str = "stability"
    title: str = "How little embeddings move under shifts of the image and of the grid; no labels"
    version: int = 1
    kinds: tuple[Kind, ...] = ("classification", "regression", "segmentation", "survival")
    answers: Answer = "stability"
    metric: str = "icc"
    on_request: bool = True
    needs: Literal["embeddings"] = "embeddings"
    cost: str = f"Embeds at most {MOST} test images 22 times over; not measured on a GPU."

    def run(self, setting: Setting) -> pd.DataFrame:
        """Compare embeddings; see ``Study.run``.

        For each view v, ``v_between`` and ``v_within`` (squared lengths, see
        ``metrics.stability``), ``v_itself`` (1 where no clean scan is nearer than the scan itself,
        by cosine) and ``v_shared`` (of the nearest other scans, the share that are so before and
        after).

        Raises:
            ProbeError: fewer than three scans.
        """
        import pandas as pd

        rows = _chosen(setting)
        clean = setting.embeddings()[rows].astype(np.float64)
        mean, sd = mean_and_sd(clean)
        kept = np.isfinite(sd)

        def scaled(x: np.ndarray) -> np.ndarray:
            return np.clip((x[:, kept] - mean[kept]) / sd[kept], -LARGEST_SD, LARGEST_SD)

        before = scaled(clean)
        columns: dict[str, np.ndarray] = {}
        for name, x in shifted_embeddings(setting, rows, move=True).items():
            for measure, values in compared(before, scaled(x.astype(np.float64))).items():
                columns[f"{name}_{measure}"] = values
        cases = [setting.cases[row] for row in rows]
        return pd.DataFrame(
            {
                "repeat": 0,
                "fold": 0,
                "refit": -1,
                "case": [case.id for case in cases],
                "patient": [case.patient for case in cases],
                **columns,
            }
        )


def compared(clean: np.ndarray, shifted: np.ndarray) -> dict[str, np.ndarray]:
    """What is stored of a view, (N,) each; ``clean`` and ``shifted`` (N, F), standardised."""
    middle = (clean + shifted) / 2
    n = len(clean)
    alike, among = _cosine(shifted, clean), _cosine(clean, clean)
    own = alike.diagonal()[:, None]
    nearer = alike >= own  # ties count against: a constant embedding recognises nobody
    np.fill_diagonal(nearer, False)
    for matrix in (alike, among):
        np.fill_diagonal(matrix, -np.inf)
    k = min(NEIGHBOURS, n - 1)
    near, then = (np.argsort(-m, axis=1, kind="stable")[:, :k] for m in (alike, among))
    return {
        "between": _squared(middle - middle.mean(0)),
        "within": _squared(clean - shifted) / 2,
        "itself": np.where(nearer.any(1), 0.0, 1.0),
        "shared": (near[:, :, None] == then[:, None, :]).any(2).mean(1),
    }


def _squared(x: np.ndarray) -> np.ndarray:
    """(N,) squared lengths."""
    return np.einsum("nf,nf->n", x, x)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, N) cosine similarities; 0 for what has no direction."""
    return directions(a) @ directions(b).T


def _chosen(setting: Setting) -> np.ndarray:
    """Rows of the scans that are compared, rising."""
    rows = tested_rows(setting.card, setting.cases)
    if len(rows) < 3:
        raise ProbeError(
            f"'{setting.card.name}' has {len(rows)} test scans here; at least 3 are needed to "
            "compare embeddings. Use a larger part of the data set."
        )
    rows.sort(key=lambda i: position("stability", setting.cases[i].id))
    return np.sort(rows[:MOST])


PROBES = (StabilityStudy(),)
