"""Paired comparisons of models on one task, from stored predictions, remembered.

Scoring a curve again takes about a second per model, so what was computed is kept until a stored
unit is replaced, or the public may see another choice of them: units that are added change nothing.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Engine

from ..benchmark import compare
from ..benchmark.errors import StorageError
from ..benchmark.evaluate import Curve, curve_of
from ..benchmark.learning_curves import LabelShare
from ..benchmark.metrics import Metric
from ..benchmark.predictions import Provenance, from_parquet
from ..benchmark.statistics import Difference
from . import db
from .records import Unit

if TYPE_CHECKING:
    import pandas as pd

MOST_COMPARED = 16
"""Models beside the reference: at about a second each, the first visitor waits no longer."""

_CURVES = 48
"""Curves kept: each holds 2,000 draws of 10 trainings at 7 sizes, about 1 MB."""

_NUMBERS = 4096

T = TypeVar("T")


@dataclass(frozen=True)
class Compared:
    """All that is compared with one model, by ``model_sha``."""

    differences: Mapping[str, Difference]
    """Score minus the reference's; p-values are adjusted by Holm across all of them."""
    shares: Mapping[str, LabelShare]
    """Labels needed to reach the reference's score on all labels; empty without percentages."""
    unreadable: tuple[str, ...]
    """Whose stored predictions cannot be read."""


class Comparer:
    """Compares the models of one database. Threads take turns."""

    def __init__(self, engine: Engine) -> None:
        """``engine``: of a migrated database."""
        self._engine = engine
        self._lock = Lock()
        self._curves: OrderedDict[Hashable, Curve] = OrderedDict()
        self._differences: OrderedDict[Hashable, Difference | None] = OrderedDict()
        self._shares: OrderedDict[Hashable, LabelShare | None] = OrderedDict()
        self._unreadable: set[Unit] = set()
        self._as_of: tuple[int, str] | None = None

    def compare(
        self, reference: Unit, others: Sequence[Unit], metric: str, shots: int | None, shares: bool
    ) -> Compared:
        """Compare with ``reference`` everybody that was tested on the same cases.

        Args:
            reference: of one task and probe.
            others: of the same task and probe.
            metric: its name.
            shots: of a probe with a budget, the size; None: the mean over the curve.
            shares: whether to ask for the share of labels as well.
        """
        with self._lock:
            self._forget_what_changed()
            stored = _Stored(self._engine, (reference, *others), self._unreadable)

            def curve(table: "pd.DataFrame", of: Metric) -> Curve:
                key = (stored.unit_of(table), of.name)
                return _kept(self._curves, key, _CURVES, lambda: curve_of(table, of))

            def of_pair(
                kept: "OrderedDict[Hashable, T | None]",
                other: Unit,
                how: Hashable,
                ask: "Callable[[Mapping[str, tuple[pd.DataFrame, Provenance]]], Mapping[str, T]]",
            ) -> T | None:
                def found() -> T | None:
                    pair = stored.pair(reference, other)
                    return None if pair is None else ask(pair).get("other")

                return _kept(kept, (reference, other, metric, how), _NUMBERS, found)

            differences: dict[str, Difference] = {}
            reached: dict[str, LabelShare] = {}
            for other in others:
                difference = of_pair(
                    self._differences,
                    other,
                    shots,
                    lambda pair: compare.against("reference", pair, metric, shots, curve),
                )
                if difference is not None:
                    differences[other.model_sha] = difference
                if shares:
                    share = of_pair(
                        self._shares,
                        other,
                        "share",
                        lambda pair: compare.label_shares("reference", pair, metric, curve),
                    )
                    if share is not None:
                        reached[other.model_sha] = share
            unreadable = [u.model_sha for u in (reference, *others) if u in self._unreadable]
        adjusted = compare.adjusted({reference.model_sha: differences})[reference.model_sha]
        return Compared(adjusted, reached, tuple(unreadable))

    def _forget_what_changed(self) -> None:
        _, _, change, day = db.state(self._engine)
        if self._as_of != (change, day):
            for kept in (self._curves, self._differences, self._shares, self._unreadable):
                kept.clear()
            self._as_of = (change, day)


def _kept(kept: "OrderedDict[Hashable, T]", key: Hashable, most: int, make: Callable[[], T]) -> T:
    """The value under ``key``, made if need be; the one asked for longest ago is dropped."""
    if key not in kept:
        kept[key] = make()
        while len(kept) > most:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]


class _Stored:
    """Predictions of the units of one comparison, read when the first of them is asked for."""

    def __init__(self, engine: Engine, units: Sequence[Unit], unreadable: set[Unit]) -> None:
        """``unreadable``: gets the units that cannot be read."""
        self._engine = engine
        self._units = units
        self._tables: dict[Unit, tuple[pd.DataFrame, Provenance]] | None = None
        self._names: dict[int, Unit] = {}
        self._unreadable = unreadable

    def unit_of(self, table: "pd.DataFrame") -> Unit:
        return self._names[id(table)]  # alive as long as this object

    def pair(
        self, reference: Unit, other: Unit
    ) -> "Mapping[str, tuple[pd.DataFrame, Provenance]] | None":
        """Both, or None where one cannot be read."""
        if self._tables is None:
            self._tables = self._read()
        if reference not in self._tables or other not in self._tables:
            return None
        return {"reference": self._tables[reference], "other": self._tables[other]}

    def _read(self) -> "dict[Unit, tuple[pd.DataFrame, Provenance]]":
        tables: dict[Unit, tuple[pd.DataFrame, Provenance]] = {}
        for unit, parquet in _predictions(self._engine, self._units):
            try:
                tables[unit] = from_parquet(parquet)
            except StorageError:
                self._unreadable.add(unit)
            else:
                self._names[id(tables[unit][0])] = unit
        return tables


def _predictions(engine: Engine, units: Sequence[Unit]) -> Iterable[tuple[Unit, bytes]]:
    wanted = set(units)
    tasks, models = {u.task for u in units}, {u.model_sha for u in units}
    for unit, parquet in db.predictions(engine, sorted(tasks), sorted(models)):
        if unit in wanted:
            yield unit, parquet
