"""What the segmentation studies share: points to learn from, rows to answer with, pictures."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import EncoderError, MaskError
from ..inputs import loaded
from ..predictions import HEADLINE
from ..splits import position
from ..studies import Setting, Trial
from ..targets import Labels
from ..types import TaskCard, Triple

if TYPE_CHECKING:
    from ..dense import Level, Pyramid
    from ..lattice import Lattice

Predictor = Callable[["Pyramid"], np.ndarray]
"""Maps of one image -> (K, *lattice.shape) float32: one score or probability per class."""


# --- truth -----------------------------------------------------------------------------------


def truth_of(setting: Setting, row: int, lattice: Lattice) -> np.ndarray:
    """The label map (X, Y, Z) of a case on its image's voxels.

    Args:
        setting: with the cases.
        row: of the case.
        lattice: of its image.

    Raises:
        MaskError: it names a class that the task does not have, or lies beside its image.
        DataError: the task cannot load it.
    """
    from ..volumes import check_on_grid

    case = setting.cases[row]
    assert isinstance(case.target, Labels)  # noqa: S101  of every segmentation, see ``tasks``
    labels, affine = loaded(case, "label map", case.target.load)
    n_classes = len(setting.card.classes)
    if labels.min() < 0 or labels.max() >= n_classes:
        raise MaskError(
            f"The label map of case '{case.id}' holds {int(labels.min())} to {int(labels.max())}; "
            f"the classes of '{setting.card.name}' are 0 to {n_classes - 1}. Correct the labels or "
            "the task's classes."
        )
    try:
        check_on_grid(lattice.image_shape, lattice.image_affine, labels.shape, affine)
    except MaskError as error:
        raise MaskError(f"The label map of case '{case.id}': {error}") from error
    return labels


# --- points to learn from --------------------------------------------------------------------


@dataclass(frozen=True)
class Points:
    """Lattice points of one case: half background, the other half shared among its classes."""

    index: np.ndarray
    """(P, 3) int."""
    label: np.ndarray
    """(P,) int."""
    weight: np.ndarray
    """(P,) float64: how many of the case's points each stands for."""


def points_of(setting: Setting, row: int, lattice: Lattice, most: int) -> Points:
    """Draw points of one case; who is drawn depends on the task and the case alone.

    Args:
        setting: with the cases.
        row: of the case.
        lattice: of its image.
        most: points; a class that has fewer than its part leaves the rest to nobody.
    """
    from ..lattice import labels_on

    card, case = setting.card, setting.cases[row]
    labels = labels_on(lattice, truth_of(setting, row, lattice)).ravel()
    seed = position(card.name, card.data_version, "points", case.id)
    rng = np.random.default_rng(int(seed * 2**53))
    present = np.unique(labels)
    drawn, weight = [], []
    for label in present:
        where = np.flatnonzero(labels == label)
        part = most // 2 if label == 0 else most // 2 // max(1, int((present > 0).sum()))
        n = min(len(where), max(1, part))
        drawn.append(np.sort(rng.choice(where, n, replace=False)))
        weight.append(np.full(n, len(where) / n))
    flat = np.concatenate(drawn)
    index = np.stack(np.unravel_index(flat, lattice.shape), axis=1)
    return Points(index, labels[flat].astype(np.int64), np.concatenate(weight))


def some_of(setting: Setting, rows: Sequence[int] | np.ndarray, most: int) -> list[int]:
    """At most so many of these cases, which ones depends on the task and the cases alone."""
    card = setting.card

    def place(row: int) -> float:
        return position(card.name, card.data_version, "some", setting.cases[row].id)

    return sorted((int(row) for row in rows), key=place)[:most]


def dice_of(
    truth: np.ndarray, predicted: np.ndarray, weight: np.ndarray, case: np.ndarray, n_classes: int
) -> float:
    """Mean over foreground classes of the mean Dice over cases, from weighted points.

    A case counts for a class that it or its prediction has, as in ``surfaces``.

    Args:
        truth: (P,) labels.
        predicted: (P,) labels.
        weight: (P,).
        case: (P,) int, from 0.
        n_classes: K.
    """
    cases = int(case.max()) + 1
    size = cases * n_classes

    def counted(labels: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return np.bincount(case * n_classes + labels, weight, size).reshape(cases, n_classes)

    both = counted(truth, weight * (truth == predicted))
    return mean_dice(both, counted(truth, weight) + counted(predicted, weight))


def mean_dice(both: np.ndarray, either: np.ndarray) -> float:
    """Mean over foreground classes of the mean Dice over the cases that have them.

    Args:
        both: (cases, K) voxels of a class in truth and prediction.
        either: (cases, K) voxels of it in the truth plus those in the prediction.

    Returns:
        In [0, 1]; 0 where no case has any.
    """
    there = either[:, 1:] > 0
    dice = np.where(there, 2 * both[:, 1:] / np.where(there, either[:, 1:], 1), 0.0)
    counts = there.sum(0)
    if not counts.any():
        return 0.0
    return float((dice.sum(0)[counts > 0] / counts[counts > 0]).mean())


# --- levels ----------------------------------------------------------------------------------


def levels_of(setting: Setting, pyramid: Pyramid) -> list[int]:
    """Indices of all levels.

    Raises:
        EncoderError: the encoder gives no maps.
    """
    if not pyramid.levels:
        raise EncoderError(
            f"Encoder '{setting.encoder.card.name}' has no maps, and a segmentation needs them. "
            "Add strides to its card and a method maps(), or leave this protocol out."
        )
    return list(range(len(pyramid.levels)))


class Maps(Protocol):
    """Where the pyramids of a setting's cases come from."""

    def of(self, row: int) -> Pyramid:
        """That of a row of ``setting.cases``."""
        ...


@dataclass(frozen=True)
class Coarse:
    """Only maps that are so coarse; where all are finer, the coarsest averaged over such blocks."""

    maps: Maps
    from_mm: float

    def of(self, row: int) -> Pyramid:
        """The pyramid of a case without its finer levels."""
        made = self.maps.of(row)
        kept = tuple(one for one in made.levels if one.mm >= self.from_mm - 1e-6)
        if made.levels and not kept:
            kept = (averaged(made.levels[-1], made.lattice.spacing, self.from_mm),)
        return replace(made, levels=kept)


def averaged(level: Level, spacing: Triple, mm: float) -> Level:
    """A level as means over cubes of its voxels, the fewest that make ``mm`` along every axis.

    Args:
        level: of a lattice.
        spacing: of the lattice, mm.
        mm: size of the new voxels, at least.
    """
    times = 1
    while level.factor * times * min(spacing) < mm - 1e-6:
        times *= 2
    whole = np.pad(
        level.values.astype(np.float32),
        [(0, 0), *((0, -n % times) for n in level.values.shape[1:])],
        mode="edge",
    )
    c, x, y, z = whole.shape
    parts = whole.reshape(c, x // times, times, y // times, times, z // times, times)
    factor = level.factor * times
    return type(level)(parts.mean((2, 4, 6)), factor, max(level.mm, factor * max(spacing)))


# --- answers ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """One fit that test cases are asked of."""

    columns: Mapping[str, Any]
    """Of its rows: ``repeat``, ``fold``, ``refit``, ``chosen_*``, ``shots``."""
    predict: Predictor


def measured(
    card: TaskCard, lattice: Lattice, values: np.ndarray, truth: np.ndarray, spacing: Triple
) -> tuple[np.ndarray, dict[str, float]]:
    """Bring scores to the image's voxels and compare them with the truth there.

    Args:
        card: of the task.
        lattice: of the image.
        values: (K, *lattice.shape).
        truth: (X, Y, Z) labels.
        spacing: of the image, mm.

    Returns:
        (X, Y, Z) uint8 labels, and ``dice_k``, ``nsd_k``, ``hd95_k`` for k = 1..K-1.
    """
    from ..lattice import to_native
    from ..surfaces import measures

    assert card.tolerance_mm is not None  # noqa: S101  of every segmentation, see ``tasks``
    predicted = to_native(lattice, values)
    return predicted, measures(truth, predicted, spacing, len(card.classes), card.tolerance_mm)


def answers(
    setting: Setting,
    rows: Sequence[int] | np.ndarray,
    pyramids: Maps,
    fits: Sequence[Fit],
    tick: Callable[[], None],
    picture: bool = False,
) -> list[dict[str, Any]]:
    """One row per test case and fit; one case is in memory at a time.

    The label map is kept of the headline fit of the first repeat alone: other repeats and refits
    are there to tell how far scores move.

    Args:
        setting: with the cases.
        rows: of the test cases.
        pyramids: their maps.
        fits: what predicts them.
        tick: called after each case.
        picture: draw the first case's headline prediction, if pictures are wanted.
    """
    found = []
    for number, row in enumerate(rows):
        case, pyramid = setting.cases[row], pyramids.of(int(row))
        truth = truth_of(setting, int(row), pyramid.lattice)
        spacing = pyramid.lattice.image_spacing
        drawn = not picture or number > 0
        for fit in fits:
            values = fit.predict(pyramid)
            labels, scores = measured(setting.card, pyramid.lattice, values, truth, spacing)
            headline = fit.columns["refit"] == HEADLINE and fit.columns["repeat"] == 0
            found.append(
                {
                    **fit.columns,
                    "case": case.id,
                    "patient": case.patient,
                    **scores,
                    "mask": zlib.compress(labels.tobytes()) if headline else None,
                    "shape": "x".join(map(str, labels.shape)),
                    "forward_voxels": pyramid.forward_voxels,
                }
            )
            if headline and not drawn:
                drawn = True
                _draw(setting, int(row), truth, labels, spacing)
        tick()
    return found


def _draw(
    setting: Setting, row: int, truth: np.ndarray, predicted: np.ndarray, spacing: Triple
) -> None:
    """The overlay of one case, where pictures are wanted."""
    from ..overlays import optional, overlay

    if setting.pictures is not None:
        case = setting.cases[row]
        with optional(f"case '{case.id}' of '{setting.card.name}'"):
            volume = case.load()
            overlay(
                setting.pictures / f"{row:04d}.png",
                volume.voxels[0],
                truth,
                predicted,
                spacing,
                setting.card.classes,
                volume.unit,
                title=f"{case.id}, {setting.encoder.card.name}",
            )


class Ticks:
    """Tells how many cases of how many have been dealt with."""

    def __init__(self, setting: Setting, total: int) -> None:
        self.setting, self.total, self.done = setting, total, 0

    def __call__(self) -> None:
        """One more."""
        self.done += 1
        if self.setting.progress:
            self.setting.progress(min(self.done, self.total), self.total)


def all_cases(trial: Trial) -> int:
    """Cases that a trial deals with."""
    return len(trial.rows("train", "val", "test"))
