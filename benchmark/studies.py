"""Protocols that need more than one vector per image: maps, tiles, second images, shifted images.

A ``Probe`` is handed features; a ``Study`` is handed the encoder and everything around it, and
answers with the same kind of table, one row per test case and fit. What is scored, stored, ranked
and compared afterwards is the same for both.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from .splits import FOLDS, REPEATS, fold, position, uses_cv
from .types import Answer, Case, Kind, Probe, TaskCard

if TYPE_CHECKING:
    import pandas as pd

    from .cache import FeatureCache
    from .features import DataIdentity, FrozenEncoder, Progress

INNER_SHARE = 0.2
"""Of the training patients, held out for choices where there is no val: one fold of five."""


@dataclass(frozen=True)
class Setting:
    """One encoder on one task, with all that a study may use."""

    card: TaskCard
    cases: Sequence[Case]
    """With their sides, as ``tasks.open_cases`` returns them."""
    encoder: FrozenEncoder
    """On its device."""
    cache: FeatureCache
    """Embeddings that are there already, and the folder for what a study keeps."""
    identity: DataIdentity
    """Of the cases."""
    device: str = "cpu"
    seed: int = 0
    progress: Progress | None = None
    """Called with (done, total) as often as there is something to tell."""
    pictures: Path | None = None
    """Folder, there already, for pictures of this run; None: none are drawn."""
    earlier_s: list[float] = field(default_factory=list, compare=False)
    """Seconds that kept embeddings and maps took when they were made, less those to read them
    now: what a study costs does not depend on what ran before it."""

    def embeddings(self) -> np.ndarray:
        """(N, F) float32 of all cases, which every protocol on embeddings shares.

        Raises:
            EncoderError: the encoder misbehaves.
            DataError: an image cannot be used.
        """
        card, started = self.card, time.perf_counter()
        found = self.cache.get(
            self.encoder,
            card.data_set or card.name,  # as features.data_set_of: the site reaches this file
            self.cases,
            self.identity,
            card.field_of_view_mm,
            self.device,
            self.progress,
        )
        self.earlier_s.append(found.seconds - (time.perf_counter() - started))
        return found.x


@runtime_checkable
class Study(Protocol):
    """One protocol that runs the encoder itself.

    More attributes are optional: ``changes``, a tuple of ``Change``; ``metric``, the name of the
    metric that ranks where it is not the task's; ``on_request``, True for one that runs only when
    it is named; ``needs``, where it reads something else than the function of that name says;
    ``cost``, a sentence with a number on what it takes, which every study here has.
    """

    name: str
    version: int
    kinds: tuple[Kind, ...]
    answers: Answer | Literal[""]
    """What the metrics of the table are; empty: those of what was asked."""
    title: str
    """One sentence for the board."""

    def run(self, setting: Setting) -> pd.DataFrame:
        """Do the whole protocol.

        Returns:
            One row per (repeat, refit, test case): ``repeat`` (of the cross-validation, or the
            seed or draw), ``fold`` (0 without cross-validation), ``refit`` (-1, the headline fit;
            or the number of a refit on resampled training patients), ``case``, ``patient``, the
            columns that the metrics of ``answers`` read, and ``chosen_*``, what was chosen on
            train and val. With ``shots`` where it trains on several numbers of patients.

        Raises:
            ProbeError: it cannot be done on this task.
            EncoderError: the encoder has no maps, or gives NaN.
            DataError: an image or a target cannot be used.
        """
        ...


AnyProbe = Probe | Study


def answers_of(probe: AnyProbe, card: TaskCard) -> Answer:
    """What the metrics of a probe's table are."""
    return (probe.answers or card.kind) if isinstance(probe, Study) else card.kind


def metric_of(probe: AnyProbe, card: TaskCard) -> str:
    """The name of the metric that ranks this probe on this task."""
    return getattr(probe, "metric", "") or card.metric


def on_request(probe: AnyProbe) -> bool:
    """Whether it runs only when it is named."""
    return getattr(probe, "on_request", False)


def cost_of(probe: AnyProbe) -> str:
    """What it takes, in a sentence; empty: nobody said."""
    return getattr(probe, "cost", "")


Needs = Literal["embeddings", "maps"]


def needs(probe: AnyProbe, card: TaskCard) -> Needs:
    """What of the encoder a probe reads on this task.

    Maps where a task is about places (``_PLACES``), unless a study's attribute ``needs`` says
    otherwise; embeddings elsewhere.
    """
    said: Needs | None = getattr(probe, "needs", None)
    return said or ("maps" if card.kind in _PLACES else "embeddings")


_PLACES: tuple[Kind, ...] = ("segmentation", "registration", "detection", "candidates")


class Trial(NamedTuple):
    """Who trains and who is tested, once."""

    repeat: int
    fold: int
    """0 without cross-validation."""
    side: np.ndarray
    """(N,) of ``train``, ``val``, ``test``, in the order of the cases."""

    def rows(self, *sides: str) -> np.ndarray:
        """Indices of the cases of these sides."""
        return np.flatnonzero(np.isin(self.side, sides))


def trials(card: TaskCard, cases: Sequence[Case], repeats: int = REPEATS) -> Iterator[Trial]:
    """The official or hashed split, or all folds of all repeats of the cross-validation.

    Args:
        card: of the task.
        cases: with their sides.
        repeats: of the cross-validation.
    """
    if not uses_cv(card):
        yield Trial(0, 0, np.array([case.split for case in cases], "U5"))
        return
    for repeat in range(repeats):
        folds = np.array([fold(card, repeat, case.patient) for case in cases])
        for k in range(FOLDS):
            if (folds == k).any():  # sides depend on one patient alone, so a fold can be empty
                yield Trial(repeat, k, np.where(folds == k, "test", "train").astype("U5"))


def tested_rows(card: TaskCard, cases: Sequence[Case]) -> list[int]:
    """Whom a study that trains on nobody tests: under cross-validation everybody."""
    everybody = uses_cv(card)
    return [row for row, case in enumerate(cases) if everybody or case.split == "test"]


def with_val(trial: Trial, card: TaskCard, cases: Sequence[Case]) -> Trial:
    """The same trial with a val side: the task's, or ``INNER_SHARE`` of the training patients."""
    if (trial.side == "val").any():
        return trial
    place = [
        position(card.name, card.data_version, "inner", trial.repeat, trial.fold, case.patient)
        for case in cases
    ]
    inner = (trial.side == "train") & (np.array(place) < INNER_SHARE)
    if not inner.any() or not ((trial.side == "train") & ~inner).any():
        return trial
    return trial._replace(side=np.where(inner, "val", trial.side))
