"""Retrieval: are the scans most similar to a scan of the same class? Nothing is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..metrics.retrieval import RANKS
from ..splits import uses_cv
from ..studies import Setting
from ..types import Answer, Features, Kind
from ._training import directions, standardised_sides

if TYPE_CHECKING:
    import pandas as pd

DIGITS = 9
"""Cosines that agree to so many decimals are tied: what is left is the order of summation."""

BLOCK = 256
"""Queries compared at once: 40 MB of cosines with a gallery of 20,000."""


class Found(NamedTuple):
    """How well each query was answered, (Q,) each."""

    ap: np.ndarray
    """Average precision; NaN where nothing in the gallery is relevant."""
    recall: np.ndarray
    """(len(RANKS), Q) chance that one of the first k is relevant, NaN likewise."""


@dataclass(frozen=True)
class RetrieveStudy:
    """Every test scan asks for its like among the scans of other patients.

    The gallery is train and val, which hold no test patient. Under cross-validation, where
    everybody is tested, it is the scans of all other patients: every patient is a fold, and one
    repeat says all. Each patient is then in all other galleries as well, which resampled queries
    do not show: intervals over queries alone would be 0.6 times as wide as they should be (20 to
    100 simulated patients), so they are widened, and marked, as those of all cross-validated
    scores. Features are scaled to mean 0 and SD 1 on the gallery,
    clipped as for all probes, and compared by angle, as in ``knn``. A scan is relevant if it is of
    the query's class.

    Scans that are equally similar have no order: a query scores what it would on average over all
    orders of them. Features that say nothing therefore score exactly what a random order does.
    """

    name: str = "retrieve"
    title: str = "Retrieval of scans of the same class by cosine similarity"
    version: int = 1
    kinds: tuple[Kind, ...] = ("classification",)
    answers: Answer = "retrieval"
    metric: str = "map"
    cost: str = (
        "Nothing is trained: one matrix product and a sort on the CPU, 0.2 s for 300 queries in a "
        "gallery of 1,300; embeddings are those that the linear probe keeps; not measured on a GPU."
    )

    def run(self, setting: Setting) -> pd.DataFrame:
        """Rank the gallery for every test scan; see ``studies.Study``.

        Returns:
            Beside the common columns: ``target``; ``relevant`` and ``gallery``, how many scans of
            that class and in all could be found; ``ap``; ``recall_1``, ``recall_5``,
            ``recall_10``.

        Raises:
            ProbeError: there is nobody to ask, or nobody to find.
        """
        import pandas as pd
        from threadpoolctl import threadpool_limits

        card, cases = setting.card, setting.cases
        x = setting.embeddings()
        target = np.array([case.target for case in cases], np.int64)
        patient = np.array([case.patient for case in cases])
        tables = []
        with threadpool_limits(1):  # a sum in another order breaks a tie another way
            for fold, side in enumerate(_galleries(setting, patient)):
                sides = standardised_sides(
                    Features(x, target, side, patient, card.kind, len(card.classes)), val=False
                )
                test = np.flatnonzero(side == "test")
                same = target[test][:, None] == sides.train_target
                found = _answered(directions(sides.test), directions(sides.train), same)
                tables.append(
                    pd.DataFrame(
                        {
                            "repeat": 0,
                            "fold": fold,
                            "refit": -1,
                            "case": [cases[int(row)].id for row in test],
                            "patient": patient[test],
                            "target": target[test],
                            "relevant": same.sum(1),
                            "gallery": same.shape[1],
                            "ap": found.ap,
                            **{f"recall_{k}": r for k, r in zip(RANKS, found.recall, strict=True)},
                        }
                    )
                )
        return pd.concat(tables, ignore_index=True)


def _galleries(setting: Setting, patient: np.ndarray) -> Iterator[np.ndarray]:
    """(N,) ``train`` for the gallery and ``test`` for who asks it; nobody asks twice."""
    if not uses_cv(setting.card):
        asks = np.array([case.split == "test" for case in setting.cases])
        yield np.where(asks, "test", "train")
        return
    for who in np.unique(patient):
        yield np.where(patient == who, "test", "train")


def _answered(query: np.ndarray, gallery: np.ndarray, same: np.ndarray) -> Found:
    """Rank the gallery (n, F) for every query (Q, F); ``same`` (Q, n) is what it should find."""
    parts = []
    for first in range(0, len(query), BLOCK):
        rows = slice(first, first + BLOCK)
        cosine = np.round(query[rows] @ gallery.T, DIGITS)
        parts += [ranked(c, s) for c, s in zip(cosine, same[rows], strict=True)]
    return Found(np.array([p.ap for p in parts]), np.stack([p.recall for p in parts], axis=1))


def ranked(similarity: np.ndarray, relevant: np.ndarray) -> Found:
    """Score one query, in expectation over all orders of tied scans.

    McSherry & Najork, Computing information retrieval performance measures efficiently in the
    presence of tied scores, ECIR 2008, section 3.

    Args:
        similarity: (n,) of the gallery, n > 0.
        relevant: (n,) bool.

    Returns:
        ``ap`` of shape () and ``recall`` of shape (len(RANKS),).
    """
    total = int(relevant.sum())
    if not total:
        return Found(np.array(np.nan), np.full(len(RANKS), np.nan))
    order = np.argsort(-similarity, kind="stable")
    value, hit = similarity[order], relevant[order].astype(np.float64)
    n = len(value)
    start = np.flatnonzero(np.r_[True, value[1:] != value[:-1]])  # of each group of tied scans
    size = np.diff(np.r_[start, n])
    hits = np.add.reduceat(hit, start)
    before = np.cumsum(hits) - hits  # relevant scans in the groups before
    group = np.repeat(np.arange(len(start)), size)
    inside = np.arange(n) - start[group]  # places before, in the same group
    # given that a place is taken by a relevant scan, how many relevant ones are up to it
    others = inside * (hits - 1)[group] / np.maximum(size - 1, 1)[group]
    precision = (before[group] + 1 + others) / np.arange(1, n + 1)
    ap = float(((hits / size)[group] * precision).sum()) / total
    return Found(np.array(ap), np.array([_recall(k, start, size, hits, before) for k in RANKS]))


def _recall(
    k: int, start: np.ndarray, size: np.ndarray, hits: np.ndarray, before: np.ndarray
) -> float:
    """Chance that one of the first k is relevant; arguments describe the groups of ties."""
    from ..metrics.retrieval import random_hit

    last = int(np.searchsorted(start, k, "left")) - 1  # the group that holds the k-th place
    if before[last] or not hits[last]:
        return float(before[last] > 0)
    return random_hit(int(hits[last]), int(size[last]), k - int(start[last]))


PROBES = (RetrieveStudy(),)
