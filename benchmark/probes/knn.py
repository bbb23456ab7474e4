"""Nearest neighbours by cosine similarity: nothing is trained but k."""

from dataclasses import dataclass

import numpy as np

from ..types import Features, Kind, Predictions
from ._training import choose, directions, resampled_patients, standardised_sides

NEIGHBOURS = (50, 20, 10, 5, 3, 1)
"""Candidates for k, smoothest first. 20 is the usual choice for frozen features (DINO, Caron et
al. 2021, section 4.1); the small ones serve small sets."""

LARGEST_SHARE = 0.25
"""No k above this share of the training cases: an answer from half of them is no neighbourhood."""


@dataclass(frozen=True)
class KnnProbe:
    """Votes (classification) or mean (regression) of the k most similar training cases."""

    name: str = "knn"
    title: str = "k nearest neighbours by cosine similarity, k chosen on val"
    version: int = 1
    kinds: tuple[Kind, ...] = ("classification", "regression")
    cost: str = (
        "Nothing is trained: one matrix product and a sort, 0.2 s of a CPU core for 1,000 cases of "
        "512 features; not measured on a GPU, which it does not use."
    )

    def __call__(self, features: Features, seed: int, refits: int) -> Predictions:
        """Features are standardised on train, then compared by angle; see ``types.Probe``."""
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):  # a sum in another order breaks a tie another way
            return self._fit(features, seed, refits)

    def _fit(self, features: Features, seed: int, refits: int) -> Predictions:
        sides = standardised_sides(features)
        n_classes = features.n_classes
        most = max(1, int(LARGEST_SHARE * len(sides.train)))
        candidates = [k for k in NEIGHBOURS if k <= most]

        def losses(
            x: np.ndarray, target: np.ndarray, out: np.ndarray, out_target: np.ndarray
        ) -> np.ndarray:
            near = _order(out, x)
            answers = [_answer(near, target, k, n_classes) for k in candidates]
            if n_classes:
                rows = np.arange(len(out))
                return -np.log(np.stack([a[rows, out_target.astype(int)] for a in answers]))
            return np.stack([(a - out_target) ** 2 for a in answers])

        k = candidates[choose(sides, seed, losses)]
        near = _order(sides.test, sides.train)
        values = _answer(near, sides.train_target, k, n_classes)
        draws = resampled_patients(sides.train_patient, seed, refits)
        again = [_answer(near, sides.train_target, k, n_classes, w) for w in draws]
        shape = (refits, *values.shape)
        return Predictions(values, np.stack(again) if again else np.empty(shape), {"k": k})


def _order(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Training rows by falling cosine similarity, (m, n); ties by row."""
    return np.argsort(-directions(x) @ directions(train).T, axis=1, kind="stable")


def _answer(
    near: np.ndarray,
    target: np.ndarray,
    k: int,
    n_classes: int,
    weight: np.ndarray | None = None,
) -> np.ndarray:
    """The k nearest, a row drawn w times counting w times.

    Returns:
        (m, K) vote shares, smoothed by one vote spread over the classes so that a unanimous
        vote is not certainty; or (m,) means.
    """
    count = np.ones(len(target), int) if weight is None else weight
    k = min(k, int(count.sum()))
    ordered = count[near]  # (m, n)
    before = np.cumsum(ordered, axis=1) - ordered
    votes = np.clip(k - before, 0, ordered)  # copies of each neighbour among the first k
    labels = target[near]
    if not n_classes:
        return (votes * labels).sum(1) / k
    share = np.stack([(votes * (labels == c)).sum(1) for c in range(n_classes)], axis=1)
    return (share + 1 / n_classes) / (k + 1)


PROBES = (KnnProbe(),)
