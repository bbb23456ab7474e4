"""Robustness: the probe that learnt from clean images, asked about shifted ones.

The linear probe (of a segmentation, the linear layer of ``segment_linear``) is fitted on clean
training patients, what it chooses is chosen on clean ones; then the images of the test side are
shifted (see ``shifts``) and asked about again. Nobody trains for the shifts, so what is measured is
what the frozen features let through. Where a shift turns the anatomy, the true labels turn too.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..evaluate import REFITS
from ..inputs import loaded
from ..predictions import HEADLINE
from ..shifts import VIEWS, shifted, shifted_labels
from ..splits import REPEATS, position, uses_cv
from ..studies import Setting, Trial, trials
from ..types import Answer, Features, Kind
from ._views import shifted_embeddings
from .linear import PROBES as LINEAR

if TYPE_CHECKING:
    import pandas as pd

    from ..dense_cache import Pyramids
    from .segment_linear import Fitted

CLEAN = "clean"
"""Name of the view that is the image as it is."""


@dataclass(frozen=True)
class ShiftStudy:
    """The linear probe on 21 shifts of every test image.

    Under cross-validation, one repeat of its folds: every patient is tested once, so every image
    is shifted and embedded 21 times, not 105. Segmentations are not refitted on resampled patients.
    """

    name: str = "shift"
    title: str = "The linear probe on test images with noise, blur, motion, bias field, and more"
    version: int = 1
    kinds: tuple[Kind, ...] = ("classification", "regression", "segmentation")
    answers: Answer = "robustness"
    metric: str = "kept"
    on_request: bool = True
    cost: str = (
        "Runs the encoder over every test image 21 times more; the fit is that of linear, or of "
        "segment_linear; not measured on a GPU."
    )

    def run(self, setting: Setting) -> pd.DataFrame:
        """Fit on clean images, predict clean and shifted ones; see ``Study.run``."""
        import pandas as pd

        if setting.card.kind == "segmentation":
            return _segmented(setting)
        fits = list(trials(setting.card, setting.cases, repeats=1))
        tested = np.unique(np.concatenate([trial.rows("test") for trial in fits]))
        x = setting.embeddings()
        views = {CLEAN: x[tested], **shifted_embeddings(setting, tested)}
        parts = [part for trial in fits for part in _fitted(setting, trial, tested, x, views)]
        return pd.concat(parts, ignore_index=True)


def _fitted(
    setting: Setting, trial: Trial, tested: np.ndarray, x: np.ndarray, views: dict[str, np.ndarray]
) -> Iterator[pd.DataFrame]:
    """The rows of one trial, one table per refit.

    Args:
        setting: of the run.
        trial: who trains and who is tested.
        tested: (n,) rows of the cases that ``views`` holds.
        x: (N, F) clean embeddings.
        views: (n, F) by name.
    """
    import pandas as pd

    card, cases = setting.card, setting.cases
    classification = card.kind == "classification"
    known, asked = trial.rows("train", "val"), trial.rows("test")
    where = np.searchsorted(tested, asked)
    # the probe gets every view as if it were more test cases, which cannot influence one another
    n_asked = len(views) * len(asked)
    nothing = np.full(n_asked, -1 if classification else np.nan)
    target = np.array([float(case.target) for case in cases])  # type: ignore[arg-type]
    patient = np.array([case.patient for case in cases])
    features = Features(
        np.concatenate([x[known], *(values[where] for values in views.values())]),
        np.concatenate([target[known], nothing]).astype(np.int64 if classification else float),
        np.concatenate([trial.side[known], np.full(n_asked, "test")]),
        np.concatenate([patient[known], np.tile(patient[asked], len(views))]),
        card.kind,
        len(card.classes),
    )
    share = REFITS // REPEATS if uses_cv(card) else REFITS
    predictions = LINEAR[0](features, setting.seed, share)
    who = {
        "case": [cases[row].id for row in asked],
        "patient": patient[asked],
        "target": target[asked].astype(np.int64 if classification else float),
    }
    fits = {HEADLINE: predictions.values, **dict(enumerate(predictions.refits))}
    for refit, values in fits.items():
        by_view = values.reshape(len(views), len(asked), -1)
        columns = {
            f"{name}_p{k}" if classification else f"{name}_value": by_view[i, :, k]
            for i, name in enumerate(views)
            for k in range(by_view.shape[2])
        }
        yield pd.DataFrame(
            {
                "repeat": trial.repeat,
                "fold": trial.fold,
                "refit": refit,
                **who,
                **columns,
                **{f"chosen_{name}": value for name, value in predictions.chosen.items()},
            }
        )


# --- segmentation ----------------------------------------------------------------------------


def _segmented(setting: Setting) -> pd.DataFrame:
    """Dice of each class in every view; one image in memory at a time."""
    import pandas as pd

    from ..dense_cache import Pyramids
    from ._segmentation import Ticks
    from .segment_linear import fitted

    pyramids = Pyramids(setting)
    fits = list(trials(setting.card, setting.cases, repeats=1))
    tests = sum(len(trial.rows("test")) for trial in fits)
    learnt = sum(len(trial.rows("train", "val")) for trial in fits)
    tick = Ticks(setting, learnt + tests * (1 + len(VIEWS)))
    found = []
    for trial in fits:
        fit = fitted(setting, trial, pyramids, tick=tick)
        # images are met in an order that tells nothing
        order = sorted(trial.rows("test"), key=lambda row: position("shift", setting.cases[row].id))
        for row in order:
            case = setting.cases[row]
            found.append(
                {
                    "repeat": trial.repeat,
                    "fold": trial.fold,
                    "refit": HEADLINE,
                    "case": case.id,
                    "patient": case.patient,
                    **_dice_by_view(setting, int(row), pyramids, fit, tick),
                    **{f"chosen_{name}": value for name, value in fit.chosen.items()},
                }
            )
    return pd.DataFrame(found)


def _dice_by_view(
    setting: Setting, row: int, pyramids: Pyramids, fit: Fitted, tick: Callable[[], None]
) -> dict[str, float]:
    """``clean_dice_1``, ..., of one case."""
    from ..dense import pyramid
    from ..lattice import to_native
    from ._segmentation import truth_of

    case, card = setting.cases[row], setting.card
    volume = loaded(case, "image", case.load)
    clean = pyramids.of(row)
    truth = truth_of(setting, row, clean.lattice)
    found: dict[str, float] = {}
    views = [None, *VIEWS]
    if getattr(setting.encoder, "shuffled", False):  # nor in which order views come
        random.SystemRandom().shuffle(views)
    for how in views:
        if how is None:
            maps, wanted = clean, truth
        else:
            moved = shifted(volume, how, case.id)
            maps = pyramid(moved, setting.encoder, card, setting.device)
            wanted = shifted_labels(truth, volume, how, case.id)
        drawn = to_native(maps.lattice, fit(maps))
        name = CLEAN if how is None else how.name
        for k in range(1, len(card.classes)):
            found[f"{name}_dice_{k}"] = _dice(wanted == k, drawn == k)
        tick()
    return found


def _dice(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Of two masks; NaN where both are empty, as in ``surfaces``."""
    total = int(truth.sum()) + int(predicted.sum())
    return 2 * int((truth & predicted).sum()) / total if total else math.nan


PROBES = (ShiftStudy(),)
