"""Per-case predictions: the table between a probe and its scores, and the form it is stored in.

Every published number can be recomputed from such a table: see ``evaluate.score``.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .errors import StorageError
from .metrics import Metric
from .types import Answer

if TYPE_CHECKING:
    import pandas as pd

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
    kind: Answer
    """Of the answers, which decides the metrics."""
    width: int
    """F: the inflation of cross-validated intervals depends on it."""
    cv: bool
    subset: bool
    seconds: float
    device: str
    software: str
    dataset_sha: str
    split_sha: str
    area: bool = False
    """Whether the mean over the curve is a row too: of the probe's ``Budget``."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """By size of the training budget, why it could not be drawn. JSON has text keys only."""


# --- as arrays ---------------------------------------------------------------------------------


def headline_of(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the fit on all training patients."""
    return table.query(f"refit == {HEADLINE}")


class Tested(NamedTuple):
    """What a metric reads of one kind of fit; cases sorted by id."""

    target: np.ndarray
    """(N, ...)."""
    patient: np.ndarray
    """(N,) str."""
    values: np.ndarray
    """(R, N, ...) of R repeats, such as (R, N, K) probabilities or (R, N) values."""
    fold: np.ndarray
    """(R, N) the fold that held each case out."""


def stacked(table: pd.DataFrame, metric: Metric) -> Tested:
    """Arrays of the rows of one kind of fit, a repeat being a row of the arrays."""
    repeats = [
        part.sort_values("case", kind="stable") for _, part in table.groupby("repeat", sort=True)
    ]
    read = [metric.read(part) for part in repeats]
    fold = np.stack([part["fold"].to_numpy() for part in repeats])
    patient = repeats[0]["patient"].to_numpy(str)
    return Tested(read[0].target, patient, np.stack([r.prediction for r in read]), fold)


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


def from_parquet(data: bytes, leave_out: Collection[str] = ()) -> tuple[pd.DataFrame, Provenance]:
    """The inverse of ``to_parquet``.

    Args:
        data: of the file.
        leave_out: columns that are not unpacked, such as label maps where scores are asked for.

    Raises:
        StorageError: these bytes are not such a file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(io.BytesIO(data))
        names = [name for name in file.schema_arrow.names if name not in leave_out]
        arrow = file.read(names)
        about = json.loads((arrow.schema.metadata or {})[b"tomoprobe"])
        return arrow.to_pandas(), Provenance(**about)
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
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
