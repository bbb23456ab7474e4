"""The spine: features of a task's cases -> probe -> per-case predictions -> scores.

``predict`` makes a table with one row per test case and fit; ``score`` turns such a table into
results. Recomputing a published number is calling ``score`` on the stored table.
"""

from __future__ import annotations

import io
import json
import math
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from . import metrics, statistics
from .errors import StorageError
from .splits import FOLDS, REPEATS, fold, uses_cv
from .types import Case, Features, Kind, Probe, Result, TaskCard

if TYPE_CHECKING:
    import pandas as pd

REFITS = 20
"""Refits on resampled training patients, from which the spread comes."""

HEADLINE = -1
"""Value of the column ``refit`` for the fit on all training patients."""


@dataclass(frozen=True)
class Provenance:
    """What a row says about where it comes from."""

    model: str
    model_sha: str
    task: str
    task_version: int
    probe: str
    probe_version: int
    kind: Kind
    width: int
    """F: the inflation of cross-validated intervals depends on it."""
    cv: bool
    subset: bool
    seconds: float
    device: str
    software: str
    dataset_sha: str
    split_sha: str


@dataclass(frozen=True)
class Scores:
    """Results of one probe on one task, with the reasons to be careful, by metric."""

    results: tuple[Result, ...]
    flags: Mapping[str, tuple[str, ...]]


# --- predict -----------------------------------------------------------------------------------


def predict(
    card: TaskCard, cases: Sequence[Case], x: np.ndarray, probe: Probe, seed: int = 0
) -> pd.DataFrame:
    """Per-case predictions of one probe on one task.

    Args:
        card: of the task.
        cases: with their sides, as ``tasks.open_cases`` returns them.
        x: (N, F) features in the order of ``cases``.
        probe: any that serves the task's kind.
        seed: of what is random in the probe.

    Returns:
        One row per (repeat, refit, test case): ``repeat`` and ``fold`` (0 without
        cross-validation), ``refit`` (-1: all training patients), ``case``, ``patient``,
        ``target``, ``p0``, ``p1``, ... (class probabilities) or ``value`` (float64, so that
        recomputing is exact), and ``chosen_*``, the hyper-parameters of the fit.
    """
    if not uses_cv(card):
        split = np.array([case.split for case in cases])
        return _fit(card, cases, x, split, probe, seed, repeat=0, held_out=0, refits=range(REFITS))
    import pandas as pd

    parts = []
    share = REFITS // REPEATS
    for repeat in range(REPEATS):
        folds = np.array([fold(card, repeat, case.patient) for case in cases])
        refits = range(repeat * share, (repeat + 1) * share)
        for k in range(FOLDS):
            if (folds == k).any():  # sides depend on one patient alone, so a fold can be empty
                split = np.where(folds == k, "test", "train")
                parts.append(_fit(card, cases, x, split, probe, seed, repeat, k, refits))
    return pd.concat(parts, ignore_index=True)


def _fit(
    card: TaskCard,
    cases: Sequence[Case],
    x: np.ndarray,
    split: np.ndarray,
    probe: Probe,
    seed: int,
    repeat: int,
    held_out: int,
    refits: range,
) -> pd.DataFrame:
    """One call of the probe; the targets of test cases are hidden from it."""
    import pandas as pd

    classification = card.kind == "classification"
    target = np.array([case.target for case in cases], np.int64 if classification else float)
    patient = np.array([case.patient for case in cases])
    test = split == "test"
    hidden = np.where(test, -1 if classification else math.nan, target)
    features = Features(x, hidden, split, patient, card.kind, len(card.classes))
    predictions = probe(features, seed, len(refits))
    who = {
        "case": [case.id for case, is_test in zip(cases, test, strict=True) if is_test],
        "patient": patient[test],
        "target": target[test],
    }
    fits = {HEADLINE: predictions.values, **dict(zip(refits, predictions.refits, strict=True))}
    tables = []
    for refit, values in fits.items():
        columns = (
            {f"p{k}": values[:, k] for k in range(values.shape[1])}
            if classification
            else {"value": values}
        )
        tables.append(
            pd.DataFrame(
                {
                    "repeat": repeat,
                    "fold": held_out,
                    "refit": refit,
                    **who,
                    **columns,
                    **{f"chosen_{name}": value for name, value in predictions.chosen.items()},
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


# --- score -------------------------------------------------------------------------------------


def score(table: pd.DataFrame, provenance: Provenance) -> Scores:
    """All metrics of the task's kind, with intervals, from per-case predictions."""
    tested = stacked(headline_of(table))
    results, flags = [], {}
    for metric in metrics.for_kind(provenance.kind):
        if provenance.cv:
            interval = statistics.cv_interval(
                metric,
                tested.target,
                tested.values,
                tested.patient,
                tested.fold,
                provenance.width,
            )
        else:
            interval = statistics.score_interval(
                metric, tested.target, tested.values[0], tested.patient
            )
        results.append(
            Result(
                model=provenance.model,
                model_sha=provenance.model_sha,
                task=provenance.task,
                task_version=provenance.task_version,
                probe=provenance.probe,
                probe_version=provenance.probe_version,
                metric=metric.name,
                shots=None,
                seed="all" if provenance.cv else 0,
                score=_finite(interval.score),
                low=_finite(interval.low),
                high=_finite(interval.high),
                spread=_finite(_spread(metric, table)),
                n_test=len(tested.target),
                subset=provenance.subset,
                seconds=provenance.seconds,
                device=provenance.device,
                software=provenance.software,
                dataset_sha=provenance.dataset_sha,
                split_sha=provenance.split_sha,
            )
        )
        flags[metric.name] = tuple(interval.flags)
    return Scores(tuple(results), flags)


def headline_of(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the fit on all training patients."""
    return table.query(f"refit == {HEADLINE}")


class Tested(NamedTuple):
    """Predictions of one kind of fit as arrays; cases sorted by id."""

    target: np.ndarray
    """(N,)."""
    patient: np.ndarray
    """(N,) str."""
    values: np.ndarray
    """(R, N, K) probabilities or (R, N) values of R repeats."""
    fold: np.ndarray
    """(R, N) the fold that held each case out."""


def stacked(table: pd.DataFrame) -> Tested:
    """Arrays of the rows of one kind of fit, a repeat being a row of the arrays."""
    columns = [c for c in table.columns if c == "value" or (c[0] == "p" and c[1:].isdigit())]
    repeats = [
        part.sort_values("case", kind="stable") for _, part in table.groupby("repeat", sort=True)
    ]
    first = repeats[0]
    values = np.stack([part[columns].to_numpy(np.float64) for part in repeats])
    if columns == ["value"]:
        values = values[:, :, 0]
    fold = np.stack([part["fold"].to_numpy() for part in repeats])
    return Tested(first["target"].to_numpy(), first["patient"].to_numpy(str), values, fold)


def _spread(metric: metrics.Metric, table: pd.DataFrame) -> float:
    """SD of the score over refits; under cross-validation a refit is one repeat's folds."""
    scores = []
    for _, part in table.query(f"refit != {HEADLINE}").groupby("refit", sort=True):
        tested = stacked(part)
        scores.append(metric(tested.target, tested.values[0], fold=tested.fold[0]))
    return float(np.std(scores, ddof=1)) if len(scores) > 1 else math.nan


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


# --- the stored form ---------------------------------------------------------------------------


def to_parquet(table: pd.DataFrame, provenance: Provenance) -> bytes:
    """The table with its provenance inside, so that a file alone can be scored again."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = pa.Table.from_pandas(table, preserve_index=False)
    about = json.dumps(vars(provenance)).encode()
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), b"tomoprobe": about})
    out = io.BytesIO()
    pq.write_table(arrow, out, compression="zstd")
    return out.getvalue()


def from_parquet(data: bytes) -> tuple[pd.DataFrame, Provenance]:
    """The inverse of ``to_parquet``.

    Raises:
        StorageError: these bytes are not such a file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        arrow = pq.read_table(io.BytesIO(data))
        about = json.loads((arrow.schema.metadata or {})[b"tomoprobe"])
        return arrow.to_pandas(), Provenance(**about)
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"Stored predictions cannot be read ({error}). Expected a Parquet file written by "
            "tomoprobe: restore it from a copy, or evaluate again."
        ) from error


# --- provenance --------------------------------------------------------------------------------


def software() -> str:
    """The releases that a score may depend on."""
    packages = ("tomoprobe", "torch", "monai", "scikit-learn", "numpy", "scipy")
    python = f"python {sys.version_info.major}.{sys.version_info.minor}"
    return "; ".join([python, *(f"{name} {version(name)}" for name in packages)])


def device_name(device: str) -> str:
    """What a row says about the hardware, e.g. ``cpu: x86_64`` or ``cuda: NVIDIA H100``."""
    if device.startswith("cuda"):
        import torch

        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"cpu: {platform.machine()}"
