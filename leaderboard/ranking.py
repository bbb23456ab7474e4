"""Results -> standings. Pure: no database, no page, and the order of the rows does not matter.

Which numbers compete. A row is *ranked* when it was made on a complete copy of the data, on the
same data and split as the first complete row of its column, has a score, and was computed here: a
self-run row neither competes nor decides what others are compared on. All other rows are shown with
the reason why they do not compete. A row of an older version of the task or the probe
stands in, unranked and marked, for a model that has none of the version shown.

Ranks. Within a column every ranked row has a rank, and equal scores share the average of the
ranks they span. The mean rank is taken among the models that are ranked in every column that
counts, with ranks counted among these models only: so a model that is not finished changes
nobody's mean rank.

Sanity checks (cards with ``evidence`` false) count only where no other task is shown. Beside real
tasks they are shown, but enter neither the mean rank nor the number of tasks done: a simulated
lesion must not make up for a missing patient. Nor counts a column whose training size could not
be drawn on its task: nobody can finish it. Nor one in which all rows are self-run: a submitter
would take the mean rank from all others.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from ..benchmark import metrics
from ..benchmark.evaluate import SKIPPED
from ..benchmark.types import Result
from .records import StoredRow, Unit
from .versions import Versions

SELF_RUN = "self-run: computed by the submitter, not rerun from weights"
"""Why such a row does not compete."""

UNSAFE = "made without isolation"
"""Said of each row whose model ran in a process that nothing closed off."""


def higher_is_better(metric: str) -> bool:
    """Whether a larger score is the better one.

    Assumed of a metric that this release does not know any more, so that old rows stay readable.
    """
    return metric not in metrics.names() or metrics.get(metric).higher_is_better


@dataclass(frozen=True)
class Column:
    """One task as it is asked: what a row must be made with to stand in this column."""

    task: str
    version: int
    metric: str
    probe: str
    probe_version: int
    shots: int | None = None
    evidence: bool = True
    """False: a sanity check."""

    @property
    def higher_is_better(self) -> bool:
        """Direction of the metric."""
        return higher_is_better(self.metric)


@dataclass(frozen=True)
class Cell:
    """What one model shows in one column."""

    row: StoredRow | None = None
    rank: float | None = None
    """Among the ranked rows of the column; None: does not compete."""
    best: bool = False
    """Holds the best score of a column in which at least two rows compete."""
    reason: str = ""
    """Why the cell is empty, or why its row does not compete."""
    superseded: bool = False
    """The row is of an older version than the column."""


@dataclass(frozen=True)
class Standing:
    """One model across all columns."""

    model_sha: str
    cells: tuple[Cell, ...]
    """In the order of the columns."""
    done: int
    """Columns that count in which the model is ranked."""
    mean_rank: float | None
    """None: not ranked in every column that counts."""
    place: int | None
    """1 + the number of models with a better mean rank; equal ones share a place."""


@dataclass(frozen=True)
class Standings:
    """The whole board."""

    columns: tuple[Column, ...]
    counting: tuple[bool, ...]
    """Which columns enter the mean rank and the number of tasks done."""
    rows: tuple[Standing, ...]
    """Best first: by mean rank, then by tasks done, then by ``model_sha``."""

    @property
    def total(self) -> int:
        """Number of columns that count."""
        return sum(self.counting)


def standings(
    rows: Iterable[StoredRow],
    columns: Sequence[Column],
    models: Iterable[str],
    evaluated: Iterable[Unit] = (),
    versions: Versions | None = None,
) -> Standings:
    """Rank models across columns.

    Args:
        rows: in any order; those that fit no column are ignored.
        columns: what is shown.
        models: ``model_sha`` of every model to be listed, evaluated or not. Rows of others are
            ignored.
        evaluated: units that are stored, from which an empty cell gets its reason.
        versions: the newest there are; None: rows of older versions do not stand in.
    """
    listed = sorted(set(models))
    known = set(listed)
    by_question: dict[tuple[object, ...], list[StoredRow]] = defaultdict(list)
    by_name: dict[tuple[object, ...], list[StoredRow]] = defaultdict(list)
    for row in rows:
        if row.result.model_sha in known:
            by_question[_question(row)].append(row)
            by_name[_name(row.result)].append(row)
    done_elsewhere: dict[tuple[str, str], list[Unit]] = defaultdict(list)
    for unit in evaluated:
        done_elsewhere[unit.model_sha, unit.task].append(unit)

    table: list[dict[str, Cell]] = []
    for column in columns:
        cells = _column(column, by_question[_asked(column)])
        if versions is not None:
            cells = _superseded(column, by_name[_name(column)], versions) | cells
        for sha in listed:
            if sha not in cells:
                cells[sha] = Cell(reason=_why_empty(column, done_elsewhere[sha, column.task]))
        table.append(cells)

    asked = [
        not why_skipped(cells.values()) and not _only_self_run(cells.values()) for cells in table
    ]
    any_evidence = any(c.evidence and there for c, there in zip(columns, asked, strict=True))
    counting = tuple(
        there and (column.evidence or not any_evidence)
        for column, there in zip(columns, asked, strict=True)
    )
    counted = [i for i, counts in enumerate(counting) if counts]
    mean_ranks = _mean_ranks([table[i] for i in counted], [columns[i] for i in counted], listed)
    found = [
        Standing(
            model_sha=sha,
            cells=tuple(cells[sha] for cells in table),
            done=sum(table[i][sha].rank is not None for i in counted),
            mean_rank=mean_ranks.get(sha),
            place=_place(mean_ranks, sha),
        )
        for sha in listed
    ]
    found.sort(
        key=lambda s: (s.mean_rank is None, s.mean_rank or 0.0, -s.done, s.model_sha),
    )
    return Standings(tuple(columns), counting, tuple(found))


def average_ranks(scores: Mapping[str, float], higher_is_better: bool) -> dict[str, float]:
    """Rank 1 is the best; equal scores share the average of the ranks they span.

    >>> average_ranks({"a": 0.9, "b": 0.8, "c": 0.9}, higher_is_better=True)
    {'a': 1.5, 'b': 3.0, 'c': 1.5}
    """
    tied: dict[float, int] = defaultdict(int)
    for score in scores.values():
        tied[score] += 1
    rank_of: dict[float, float] = {}
    before = 0
    for score in sorted(tied, reverse=higher_is_better):
        rank_of[score] = before + (tied[score] + 1) / 2
        before += tied[score]
    return {name: rank_of[score] for name, score in scores.items()}


def headline(rows: Iterable[StoredRow], ours: tuple[str, str] | None) -> StoredRow:
    """The one row that a model shows for a question, of the several (at least one) it may have.

    Computed here before self-run; then complete before subset; then on the data and split that is
    ranked (``ours``); then over all seeds before a single one, and the first seed; then on more
    test cases; then the newest.
    """

    def key(row: StoredRow) -> tuple[object, ...]:
        r = row.result
        one_seed = (r.seed != "all", r.seed if isinstance(r.seed, int) else -1)
        return (is_self_run(row), r.subset, data_of(row) != ours, *one_seed, -r.n_test, -row.id)

    return min(rows, key=key)


def is_self_run(row: StoredRow) -> bool:
    """Whether the submitter computed it."""
    return row.origin == "self-run"


def data_of(row: StoredRow) -> tuple[str, str]:
    """What two rows must share to be comparable."""
    return (row.result.dataset_sha, row.result.split_sha)


def ranked_data(rows: Iterable[StoredRow]) -> tuple[str, str] | None:
    """Data and split of the first complete row of ours: what later rows are compared on."""
    complete = (r for r in rows if not r.result.subset and not is_self_run(r))
    first = min(complete, key=lambda r: r.id, default=None)
    return None if first is None else data_of(first)


def why_not_ranked(row: StoredRow, ours: tuple[str, str] | None) -> str:
    """Empty for a row that competes."""
    if is_self_run(row):
        return SELF_RUN
    if row.result.subset:
        return "made on an incomplete copy of the data"
    if data_of(row) != ours:
        return "made on other data or another split than the first complete result"
    if row.result.score is None:
        return _skipped(row) or "the metric is not defined on this test set"
    return ""


def why_skipped(cells: Iterable[Cell]) -> tuple[str, ...]:
    """Why the training size of a column could not be drawn; empty: it could, or nobody tried.

    Only complete rows of ours, of the column's own version, tell: an incomplete copy, or an older
    version, has other training patients.
    """
    told = [
        _skipped(cell.row)
        for cell in cells
        if cell.row is not None
        and not cell.row.result.subset
        and not cell.superseded
        and not is_self_run(cell.row)
    ]
    return tuple(sorted({flag.removeprefix(SKIPPED) for flag in told})) if all(told) else ()


def _only_self_run(cells: Iterable[Cell]) -> bool:
    rows = [cell.row for cell in cells if cell.row is not None and not cell.superseded]
    return bool(rows) and all(is_self_run(row) for row in rows)


def _question(row: StoredRow) -> tuple[object, ...]:
    r = row.result
    return (r.task, r.task_version, r.metric, r.probe, r.probe_version, r.shots)


def _asked(c: Column) -> tuple[object, ...]:
    return (c.task, c.version, c.metric, c.probe, c.probe_version, c.shots)


def _column(column: Column, rows: Sequence[StoredRow]) -> dict[str, Cell]:
    """The cells of the models that have a row in this column."""
    ours = ranked_data(rows)
    by_model: dict[str, list[StoredRow]] = defaultdict(list)
    for row in rows:
        by_model[row.result.model_sha].append(row)
    chosen = {sha: headline(its, ours) for sha, its in by_model.items()}
    reasons = {sha: why_not_ranked(row, ours) for sha, row in chosen.items()}
    scores = {
        sha: row.result.score
        for sha, row in chosen.items()
        if row.result.score is not None and not reasons[sha]
    }
    ranks = average_ranks(scores, column.higher_is_better)
    pick = max if column.higher_is_better else min
    best = pick(scores.values()) if len(scores) > 1 else None
    return {
        sha: Cell(row, ranks.get(sha), sha in scores and scores[sha] == best, reasons[sha])
        for sha, row in chosen.items()
    }


def _skipped(row: StoredRow) -> str:
    """The flag that says why the row's training size could not be drawn; empty: it could."""
    return next((flag for flag in row.flags if flag.startswith(SKIPPED)), "")


def _name(of: Result | Column) -> tuple[object, ...]:
    """A question without its versions."""
    return (of.task, of.metric, of.probe, of.shots)


def _superseded(column: Column, rows: Iterable[StoredRow], versions: Versions) -> dict[str, Cell]:
    """For each model its newest row of older versions than the column's, which does not compete."""
    by_model: dict[str, list[StoredRow]] = defaultdict(list)
    for row in rows:
        r = row.result
        older = r.task_version <= column.version and r.probe_version <= column.probe_version
        if older and versions.superseded(r):
            by_model[r.model_sha].append(row)
    found = {}
    for sha, its in by_model.items():
        last = max((r.result.task_version, r.result.probe_version) for r in its)
        same = [r for r in its if (r.result.task_version, r.result.probe_version) == last]
        row = headline(same, ranked_data(same))
        reason = f"superseded by {versions.superseded(row.result)}"
        found[sha] = Cell(row, reason=reason, superseded=True)
    return found


def _mean_ranks(
    table: Sequence[Mapping[str, Cell]], columns: Sequence[Column], models: Sequence[str]
) -> dict[str, float]:
    """Of the models that are ranked in every column, among themselves."""
    complete = [sha for sha in models if all(cells[sha].rank is not None for cells in table)]
    ranks: dict[str, list[float]] = defaultdict(list)
    for cells, column in zip(table, columns, strict=True):
        scores = {
            sha: row.result.score
            for sha in complete
            if (row := cells[sha].row) is not None and row.result.score is not None
        }
        for sha, rank in average_ranks(scores, column.higher_is_better).items():
            ranks[sha].append(rank)
    return {sha: fmean(its) for sha, its in ranks.items()}


def _place(mean_ranks: Mapping[str, float], sha: str) -> int | None:
    if sha not in mean_ranks:
        return None
    return 1 + sum(other < mean_ranks[sha] for other in mean_ranks.values())


def _why_empty(column: Column, units: Sequence[Unit]) -> str:
    """The nearest thing that was evaluated instead."""
    if not units:
        return "not evaluated"
    same_version = [u for u in units if u.task_version == column.version]
    if not same_version:
        versions = ", ".join(str(v) for v in sorted({u.task_version for u in units}))
        return f"evaluated on version {versions} of the task only"
    same_probe = [u for u in same_version if u.probe == column.probe]
    if not same_probe:
        return f"evaluated with {', '.join(sorted({u.probe for u in same_version}))} only"
    if all(u.probe_version != column.probe_version for u in same_probe):
        versions = ", ".join(str(v) for v in sorted({u.probe_version for u in same_probe}))
        return f"evaluated with version {versions} of {column.probe} only"
    return f"evaluated without {column.metric} at these shots"
