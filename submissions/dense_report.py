"""What the summary of a run shows of dense protocols: scores per class, and their pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..benchmark.predictions import from_parquet
from ..leaderboard.details import KINDS, MASKS, Detail, Details, class_names, detail_of

if TYPE_CHECKING:
    from ..leaderboard.records import StoredRow
    from .runs import Ran
    from .scores import RunScores, TaskScores
    from .session import Session

FOLDER = "pictures"
"""Below the folder of a run: what its protocols draw, in a folder per unit."""

MOST = 6
"""Pictures of one task, those of the best models first: enough to see how answers differ."""

MOST_BYTES = 6_000_000
"""Of all pictures of a page: it stays small enough for an e-mail, whose limit is often 10 MB."""

SHADES = 128
"""Colors of an embedded picture: gray values and those of labels. A quarter of the bytes is saved
(six pictures of CT and MR), and nothing is seen of it."""

_SHOWN = {
    "segmentation": "image, truth and prediction of a tested case",
    "registration": "a tested pair before and after registration, borders of the fixed image's "
    "labels in blue and of the moving one's in orange",
}


def details_by_probe(work: Session, ran: Ran, found: RunScores) -> dict[str, dict[str, Details]]:
    """Each class's scores and what they take, by task and probe.

    Args:
        work: where the predictions are.
        ran: the run.
        found: its scores.
    """
    from .runs import predictions_of

    scores = {one.card.name: one for one in found.tasks if one.card.kind in KINDS}
    if not scores:
        return {}
    read: dict[tuple[str, str], dict[str, Detail]] = {}
    for unit, parquet in predictions_of(work, ran):
        row = _row(scores.get(unit.task), unit.probe, unit.model_sha)
        if row is None:
            continue
        table, _ = from_parquet(parquet, leave_out=(MASKS,))
        detail = detail_of(table, row.result.shots)
        if detail is not None:
            read.setdefault((unit.task, unit.probe), {})[unit.model_sha] = detail
    out: dict[str, dict[str, Details]] = {}
    for (task, probe), by_model in read.items():
        order = [line.model_sha for line in scores[task].lines if line.model_sha in by_model]
        lines = tuple((sha, by_model[sha]) for sha in order)
        names = class_names(scores[task].card.classes, list(by_model.values()))
        out.setdefault(task, {})[probe] = Details(names, lines, 0, ())
    return out


def _row(scores: TaskScores | None, probe: str, sha: str) -> StoredRow | None:
    """The number that is shown of a model by a probe."""
    lines = scores.lines if scores is not None else ()
    return next((line.cells.get(probe) for line in lines if line.model_sha == sha), None)


@dataclass(frozen=True)
class Drawing:
    """One picture of an answer."""

    probe: str
    model: str
    png: str
    """As a data URI."""
    width: int
    """Pixels, as is ``height``."""
    height: int
    shown: str
    """What is seen."""


@dataclass(frozen=True)
class Drawings:
    """Those of one task."""

    shown: Sequence[Drawing] = ()
    left_out: int = 0
    """More are in the folder."""


def drawings(folder: Path, found: RunScores) -> Mapping[str, Drawings]:
    """Pictures that the protocols of a run drew, by task.

    A file that is no picture is passed over: it never ends a run.

    Args:
        folder: of the run.
        found: its scores; models come in their order.
    """
    room = MOST_BYTES
    out = {}
    for scores in found.tasks:
        shown: list[Drawing] = []
        left_out = 0
        for probe, model, path in _files(folder / FOLDER, scores):
            drawing = _drawing(path, probe, model, _SHOWN.get(scores.card.kind, "a tested case"))
            if drawing is None:
                continue
            if len(shown) < MOST and len(drawing.png) <= room:
                shown.append(drawing)
                room -= len(drawing.png)
            else:
                left_out += 1
        out[scores.card.name] = Drawings(shown, left_out)
    return out


def _files(folder: Path, scores: TaskScores) -> Iterator[tuple[str, str, Path]]:
    for column in scores.columns:
        for line in scores.lines:
            if column.probe in line.cells:
                of_unit = folder / f"{scores.card.name}.{column.probe}.{line.model}"
                for path in sorted(of_unit.glob("*.png")):
                    yield column.probe, line.model, path


def _drawing(path: Path, probe: str, model: str, shown: str) -> Drawing | None:
    """A picture with fewer colors; None where the file cannot be read."""
    file = io.BytesIO()
    try:
        with Image.open(path) as image:
            size = image.size
            image.convert("RGB").quantize(SHADES).save(file, "PNG", optimize=True)
    except OSError:
        return None
    data = base64.b64encode(file.getvalue()).decode()
    return Drawing(probe, model, f"data:image/png;base64,{data}", *size, shown)
