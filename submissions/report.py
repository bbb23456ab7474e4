"""The summary of a run: one HTML page that needs nothing beside it, the curves, and the rows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..benchmark import compare
from ..benchmark.budgets import budget_of
from ..benchmark.errors import StorageError
from ..benchmark.learning_curves import LabelShare
from ..benchmark.predictions import from_parquet
from ..benchmark.splits import FOLDS, REPEATS, uses_cv
from ..benchmark.studies import AnyProbe, metric_of
from ..benchmark.types import Budget
from ..leaderboard import db as database
from ..leaderboard import printing
from ..leaderboard.charts import Point, dot_and_whisker
from ..leaderboard.curves import MOST_CURVES, STYLES, Curve, learning_curves_svg, standalone
from ..leaderboard.details import Details, of_class
from ..leaderboard.figures import MOST_POINTS, REFERENCES, with_floors
from ..leaderboard.floors import without_parameters
from ..leaderboard.ranking import higher_is_better
from ..leaderboard.records import StoredRow
from ..leaderboard.sizes import axis_title, share_interval, share_text, size_in_words
from .dense_report import FOLDER, Drawings, details_by_probe, drawings
from .pictures import Picture, pictures
from .scores import RunScores, TaskScores, gather

if TYPE_CHECKING:
    from .runner import OpenTask
    from .runs import Ran
    from .session import Session

NAME = "summary.html"

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class CurveReport:
    """One probe with a budget on one task."""

    probe: AnyProbe
    budget: Budget
    metric: str
    sizes: Sequence[int | None]
    """Rising; None: the area, last."""
    cells: Mapping[str, Mapping[int | None, StoredRow]]
    """By model_sha and size."""
    svg: Markup
    """Empty where fewer than two sizes have a score: that is no curve."""
    left_out: int
    """Models with a curve that are not drawn: more lines could not be told apart."""
    shares: Mapping[str, LabelShare]
    """By model_sha; only of percentages."""
    reference: str
    """model_sha of the model whose full-data score the shares are about."""


@dataclass(frozen=True)
class TaskPart:
    """One task on the page."""

    opened: OpenTask
    pictures: Sequence[Picture]
    scores: TaskScores | None
    """None where no unit of the task could be done."""
    chart: Markup
    curves: Sequence[CurveReport]
    details: Mapping[str, Details]
    """By probe: scores of each class, and what they take."""
    drawn: Drawings
    """What the protocols drew."""


def write_report(
    work: Session,
    ran: Ran,
    folder: Path,
    command: str,
    started: datetime,
    scores: RunScores | None = None,
) -> Path:
    """Write ``summary.html``, ``rows.jsonl`` and the learning curves of a run into a folder.

    Args:
        work: where the rows are.
        ran: the run.
        folder: made where it is missing; files of an earlier run are replaced.
        command: as it was typed.
        started: of the run, with its time zone.
        scores: as ``console.print_scores`` returns them; None: they are gathered here.

    Returns:
        The path of the page.

    Raises:
        StorageError: the folder cannot be written.
    """
    from .runs import write_json_lines

    found = scores or gather(work, ran)
    parts = _parts(work, ran, found, folder)
    page = (
        _environment()
        .get_template("report.html")
        .render(
            found=found,
            parts=parts,
            outcome=ran.outcome,
            command=command,
            started=started,
            seconds=max(0.0, (datetime.now(started.tzinfo) - started).total_seconds()),
            software=sorted({row.result.software for row in found.rows}),
            devices=sorted({row.result.device for row in found.rows}),
            database=work.shown_url,
            release=version("tomoprobe"),
        )
    )
    for part in parts:
        for curve in part.curves:
            if curve.svg:
                name = f"curves-{part.opened.task.card.name}-{curve.probe.name}.svg"
                _write(folder / name, standalone(curve.svg))
    write_json_lines([row.result for row in found.rows], folder / "rows.jsonl")
    _write(folder / NAME, page)
    return folder / NAME


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}. The scores are in the database; choose "
            "another folder and run the same command again."
        ) from error


# --- parts ---------------------------------------------------------------------------------------


def _parts(work: Session, ran: Ran, found: RunScores, folder: Path) -> list[TaskPart]:
    by_task = {scores.card.name: scores for scores in found.tasks}
    budgets = {probe.name: (probe, b) for probe in ran.probes if (b := budget_of(probe))}
    shares = _label_shares(work, ran, found, budgets)
    nothing = without_parameters(database.models(work.engine))
    details, drawn = details_by_probe(work, ran, found), drawings(folder, found)
    parts = []
    for opened in ran.tasks:
        card = opened.task.card
        scores = by_task.get(card.name)
        chart, curves = Markup(), []
        if scores is not None:
            chart = _chart(scores, f"chart-{card.name}")
            curves = [
                _curve(
                    scores,
                    *budgets[column.probe],
                    column.metric,
                    nothing,
                    *shares.get((card.name, column.probe), ("", {})),
                )
                for column in scores.columns
                if column.probe in budgets
            ]
            scores = scores.with_flags(
                flag for curve in curves for share in curve.shares.values() for flag in share.flags
            )
        parts.append(
            TaskPart(
                opened,
                pictures(card, opened.cases),
                scores,
                chart,
                curves,
                details.get(card.name, {}),
                drawn.get(card.name, Drawings()),
            )
        )
    return parts


def _label_shares(
    work: Session, ran: Ran, found: RunScores, budgets: Mapping[str, tuple[AnyProbe, Budget]]
) -> dict[tuple[str, str], tuple[str, dict[str, LabelShare]]]:
    """The reference and the shares of the other models, by task and probe.

    The reference is the floor, or else the first model, whose curve is there.
    """
    from .runs import predictions_of

    percent = [name for name, (_, budget) in budgets.items() if budget.unit == "percent"]
    if not percent:
        return {}
    stored: dict[tuple[str, str], dict[str, tuple]] = {}
    for unit, parquet in predictions_of(work, ran):
        if unit.probe in percent:
            models = stored.setdefault((unit.task, unit.probe), {})
            models[unit.model_sha] = from_parquet(parquet)
    order = [found.floor, *ran.outcome.model_shas.values()]
    cards = {opened.task.card.name: opened.task.card for opened in ran.tasks}
    shares = {}
    for (task, probe), models in stored.items():
        reference = next(sha for sha in order if sha in models)
        metric = metric_of(budgets[probe][0], cards[task])
        shares[task, probe] = reference, compare.label_shares(reference, models, metric)
    return shares


def _chart(scores: TaskScores, id: str) -> Markup:
    probe = scores.columns[0].probe
    rows = [line.cells[probe] for line in scores.lines if probe in line.cells]
    points = [
        Point(r.model, r.score, r.low, r.high, ranked=not r.subset)
        for r in (row.result for row in rows)
        if r.score is not None
    ]
    if not points:
        return Markup()
    svg = dot_and_whisker(
        points[:MOST_POINTS],
        title=f"{printing.metric_title(scores.metric)} on {scores.card.name}, {probe} probe",
        metric=scores.metric,
        unit=scores.unit,
        reference=REFERENCES.get(scores.metric),
    )
    return svg.replace("chart-title", f"{id}-title").replace("chart-desc", f"{id}-desc")


def _curve(
    scores: TaskScores,
    probe: AnyProbe,
    budget: Budget,
    metric: str,
    nothing: Collection[str],
    reference: str,
    shares: Mapping[str, LabelShare],
) -> CurveReport:
    cells: dict[str, dict[int | None, StoredRow]] = {}
    for row in scores.rows:
        if row.result.probe == probe.name:
            cells.setdefault(row.result.model_sha, {})[row.result.shots] = row
    sizes = {size for by_size in cells.values() for size in by_size}
    drawable = {
        line.model_sha: Curve(line.model, points)
        for line in scores.lines
        if (points := list(_points(cells.get(line.model_sha, {}))))
    }
    curves = [drawable[sha] for sha in with_floors(list(drawable), nothing, MOST_CURVES)]
    svg = Markup()
    if len({size for curve in curves for size, *_ in curve.points}) > 1:
        svg = learning_curves_svg(
            curves,
            title=f"{probe.name} on {scores.card.name}",
            metric=metric,
            x_label=axis_title(budget),
            id=f"curves-{scores.card.name}-{probe.name}",
        )
    rising = sorted(sizes, key=lambda size: float("inf") if size is None else size)
    left_out = len(drawable) - len(curves)
    return CurveReport(probe, budget, metric, rising, cells, svg, left_out, shares, reference)


def _points(
    by_size: Mapping[int | None, StoredRow],
) -> Iterator[tuple[int, float, float | None, float | None]]:
    for size, row in by_size.items():
        r = row.result
        if size is not None and r.score is not None:
            yield size, r.score, r.low, r.high


# --- page ----------------------------------------------------------------------------------------


def _environment() -> Environment:
    """The template, with everything escaped and every missing name an error."""
    environment = Environment(
        loader=FileSystemLoader([_HERE, STYLES.parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        references=REFERENCES,
        most_models=MOST_POINTS,
        sides=_sides,
        drawn_in=FOLDER,
        nothing=printing.NOTHING,
        higher_is_better=higher_is_better,
    )
    environment.filters.update(
        metric=printing.metric_title,
        score=lambda r: printing.score_text(r.metric, r.score, r.low, r.high),
        interval=lambda r: printing.interval_text(r.metric, r.score, r.low, r.high),
        spread=lambda value: printing.NOTHING if value is None else printing.plain(value, 2),
        signed=lambda gap, metric: printing.signed_text(metric, gap.delta, gap.low, gap.high),
        between=lambda gap, metric: printing.interval_text(metric, gap.delta, gap.low, gap.high),
        size=size_in_words,
        whole=printing.whole,
        of_class=of_class,
        share=share_text,
        share_interval=share_interval,
        web_address=lambda url: url if url.startswith(("https://", "http://")) else "",
    )
    return environment


def _sides(opened: OpenTask) -> str:
    """How the cases of a task are used."""
    patients = len({case.patient for case in opened.cases})
    counted = f"{len(opened.cases):,} cases of {patients:,} patients"
    if uses_cv(opened.task.card):
        return f"{counted}; {REPEATS} repeats of {FOLDS}-fold cross-validation by patient"
    counts = [(s, sum(c.split == s for c in opened.cases)) for s in ("train", "val", "test")]
    return f"{counted}: " + ", ".join(f"{n:,} {side}" for side, n in counts if n)
