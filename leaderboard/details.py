"""What stored predictions tell beside the scores: each class of a segmentation, and the cost.

Read from the database when a task's page is asked for and remembered until a stored unit is
replaced, or the public may see another choice of them, as in ``comparisons``.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from sqlalchemy import Engine

from ..benchmark.errors import StorageError, UnknownNameError
from ..benchmark.metrics.segmentation import MEASURES, per_class
from ..benchmark.predictions import from_parquet, headline_of
from . import db, printing
from .figures import MOST_POINTS, with_floors
from .protocols import kind_of
from .records import StoredRow, Unit
from .reports import TaskReport

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("segmentation", "registration")
"""Of tasks whose tables hold such columns."""

MASKS = "mask"
"""The column of label maps: most of the bytes of a table, and not needed here."""

_KEPT = 4096

Asked = tuple[Unit, int | None]
"""A unit and the size of its budget that is shown."""


@dataclass(frozen=True)
class Detail:
    """One unit, in the fits on all training patients."""

    scores: Mapping[str, tuple[float, ...]]
    """By measure of ``MEASURES``, one per class without the background: the mean over cases, NaN
    where none counts; empty where the answers are no label maps."""
    forward_voxels: float | None
    """That the encoder was shown per case, with what windows share counted again; the mean over
    the tested cases. A case of a registration is two images."""
    decoder_parameters: float | None
    """Trained weights of a decoder without its projections: the same for all encoders."""
    projection_parameters: float | None
    """Trained weights that bring the encoder's levels to the width of the decoder."""


@dataclass(frozen=True)
class Details:
    """Those of a task's page."""

    classes: tuple[str, ...]
    """Without the background; empty where no label maps were answered."""
    lines: tuple[tuple[str, Detail], ...]
    """By ``model_sha``, in the order of the page."""
    left_out: int
    """Models beyond ``MOST_POINTS``."""
    unreadable: tuple[str, ...]
    """Models whose stored predictions cannot be read."""

    @property
    def measures(self) -> tuple[str, ...]:
        """Shown of each class."""
        return MEASURES if self.classes else ()

    @property
    def decoders(self) -> bool:
        """Whether a decoder was trained."""
        return any(detail.decoder_parameters is not None for _, detail in self.lines)


def detail_of(table: "pd.DataFrame", shots: int | None) -> Detail | None:
    """What a table of predictions tells, if it has such columns.

    Args:
        table: of one unit.
        shots: of a probe with a budget, the size that is shown; None: all sizes.
    """
    rows = headline_of(table)
    if shots is not None and "shots" in rows.columns:
        rows = rows.query(f"shots == {shots}")

    def mean(column: str) -> float | None:
        """Over cases, which several repeats and sizes have in common."""
        if column not in rows.columns or rows.empty:
            return None
        return float(np.mean([part[column].mean() for _, part in rows.groupby("case")]))

    scores = {name: tuple(values.tolist()) for name, values in per_class(rows).items()}
    found = Detail(
        scores if all(scores.values()) else {},
        mean("forward_voxels"),
        mean("chosen_decoder_parameters"),
        mean("chosen_projection_parameters"),
    )
    return found if found.scores or found.forward_voxels is not None else None


class Reader:
    """Reads details from one database, each once. Threads take turns."""

    def __init__(self, engine: Engine) -> None:
        """``engine``: of a migrated database."""
        self._engine = engine
        self._lock = Lock()
        self._known: OrderedDict[Asked, Detail | None] = OrderedDict()
        self._as_of: tuple[int, str] | None = None

    def read(self, rows: Sequence[StoredRow]) -> tuple[dict[str, Detail], list[str]]:
        """Details by ``model_sha``, and the models whose predictions cannot be read.

        Args:
            rows: one per model, of one task and probe.
        """
        found: dict[str, Detail] = {}
        unreadable: list[str] = []
        with self._lock:
            _, _, change, day = db.state(self._engine)
            if self._as_of != (change, day):
                self._known.clear()
                self._as_of = (change, day)
            for row in rows:
                try:
                    detail = self._detail(row)
                except (StorageError, UnknownNameError):
                    unreadable.append(row.result.model_sha)
                    continue
                if detail is not None:
                    found[row.result.model_sha] = detail
        return found, unreadable

    def _detail(self, row: StoredRow) -> Detail | None:
        unit = Unit(*(getattr(row.result, name) for name in Unit._fields))
        asked = unit, row.result.shots
        if asked not in self._known:
            table, _ = from_parquet(db.parquet(self._engine, unit), leave_out=(MASKS,))
            self._known[asked] = detail_of(table, row.result.shots)
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(asked)
        return self._known[asked]


def details_of(report: TaskReport, reader: Reader) -> Details | None:
    """Details of the models of a page; None where the task or the probe has none.

    Args:
        report: of the page.
        reader: of the same database.
    """
    if kind_of(report.task) not in KINDS:
        return None
    rows = {s.model_sha: row for s in report.shown if (row := s.cells[0].row) is not None}
    read = with_floors(list(rows), report.floors.nothing, MOST_POINTS)
    found, unreadable = reader.read([rows[sha] for sha in read])
    if not found:
        return None
    lines = tuple((sha, found[sha]) for sha in read if sha in found)
    names = class_names(report.task.card.get("classes", ()), [detail for _, detail in lines])
    return Details(names, lines, len(rows) - len(read), tuple(unreadable))


def class_names(of_card: Sequence[str], details: Sequence[Detail]) -> tuple[str, ...]:
    """Names of the classes that have scores; of a class that the card does not name, its index."""
    most = max((len(one.scores.get(MEASURES[0], ())) for one in details), default=0)
    known = list(of_card[1 : most + 1])
    return tuple(known + [str(k) for k in range(len(known) + 1, most + 1)])


def of_class(measure: str, detail: Detail, k: int) -> str:
    """A measure of the class at place k of ``class_names``, as it is printed."""
    values = detail.scores.get(measure, ())
    return printing.score_text(measure, values[k] if k < len(values) else None, None, None)
