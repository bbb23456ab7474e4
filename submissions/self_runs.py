"""Results that a submitter computed: the predictions are taken, everything else is ours.

Cases, sides, folds and targets come from our copy of the task, and so do the scores. Such rows say
that they are self-run: who has the test cases can predict them as well as he likes.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from ..benchmark import evaluate, predictions, probes, splits
from ..benchmark.budgets import budget_of
from ..benchmark.errors import IntakeError, StorageError, UnknownNameError
from ..benchmark.studies import Study
from ..benchmark.types import Features, Predictions, Probe, TaskCard
from ..leaderboard import db, queue
from ..leaderboard.intake_records import Job, Submission
from . import _parquet_child as reader
from . import headers
from .declarations import SelfRunCard
from .job_log import JobLog, clean
from .manifest import explain
from .manifest_text import parsed

if TYPE_CHECKING:
    import pandas as pd
    from sqlalchemy import Connection

    from .runner import OpenTask
    from .units import Bench

MAX_WIDTH = 1 << 20
"""Features of an encoder. What is said of them widens cross-validated intervals, and is believed
as far as the predictions are: such rows are never ranked."""

_SUM_TOLERANCE = 1e-3
"""By which class probabilities may miss a sum of 1: float16 rounds by up to 5e-4."""

_HEAD_BYTES = 1 << 20
"""Of the line before the columns: 64 KiB of the file's own words, escaped, and 400 names."""

_ROW_BYTES = 2 * 4 * reader.MAX_TEXT + 8 * reader.MAX_COLUMNS
"""Of a row: the case and the patient as texts, and numbers of 8 bytes."""

_READ_AT_ONCE = 1 << 20

_RUN_AGAIN = "Write it again with this release: tomoprobe evaluate --predictions DIR."

_SHA = re.compile("[0-9a-f]{64}")


def check(bench: Bench, job: Job, submission: Submission, log: JobLog) -> None:
    """Score every uploaded table anew, then store the rows; the last ends the job.

    All tables are checked and scored before the rows of the first are stored: a submission that is
    refused leaves none.

    Raises:
        IntakeError: a table is not what the task and the probe make, or of a model whose rows were
            computed here.
        DataError: the data of a task are not here.
        LostLease: the job is not ours any more.
    """
    upload = bench.upload_of(submission)
    if upload is None:
        raise StorageError(f"Submission {submission.id} has no predictions.")
    card = _card(submission.manifest)
    most = len(submission.tasks) * len(submission.probes or probes.default())
    sent = [read(raw) for raw in _files(upload, most)]
    log(f"{len(sent)} tables of predictions")
    shas = {str(table.about.get("model_sha")) for table in sent}
    sha = shas.pop() if shas else ""
    if shas or not _SHA.fullmatch(sha):
        raise _refused("predictions-model", "The tables are not of one model.", _RUN_AGAIN)
    _check_free(bench, sha)
    units = []
    for k, raw in enumerate(_files(upload, most)):
        unit = scored(bench, sent[k], partial(columns_of, raw), card, sha, log)
        log(
            f"{unit.opened.task.card.name} with {unit.about.probe}: {len(unit.scores.results)} rows"
        )
        units.append(unit)
    for k, unit in enumerate(units):

        def also(connection: Connection, last: bool = k == len(units) - 1) -> None:
            queue.identify(connection, job, sha)
            if last:
                queue.finish(connection, job, log=log.text())

        unit.add(bench, card, sha, also)


def _card(text: str) -> SelfRunCard:
    try:
        return SelfRunCard.model_validate(parsed(text, "check"))
    except ValidationError as error:
        raise _refused(
            "manifest-invalid", f"The manifest: {explain(error, SelfRunCard)}.", "Correct it."
        ) from error


def _check_free(bench: Bench, sha: str) -> None:
    """What was computed here speaks for a model; nobody adds his own numbers to it."""
    if any(row.origin != "self-run" for row in db.rows(bench.engine, models=[sha])):
        raise _refused(
            "predictions-verified",
            f"Rows of model {sha[:12]} were computed here from its weights.",
            "Submit the weights for further tasks, too.",
        )


# --- reading -------------------------------------------------------------------------------------


class Sent(NamedTuple):
    """What a table says of itself; nothing of it is believed yet."""

    about: Mapping[str, Any]
    rows: int


Columns = Callable[[int], Mapping[str, np.ndarray]]
"""Parses the columns of a table, which has to have so many rows."""


def _files(upload: Path, most: int) -> Iterator[bytes]:
    """A Parquet file, or several as rows of bytes in one safetensors file.

    Raises:
        IntakeError: there are more than ``most``, or something else.
    """
    with upload.open("rb") as file:
        if file.read(4) == b"PAR1":
            yield upload.read_bytes()
            return
        header = headers.read_header(upload)
        if len(header.tensors) > most:
            raise _refused(
                "predictions-file",
                f"The file holds {len(header.tensors)} tables; the tasks and probes of the "
                f"submission make {most} at most.",
                "Name the tasks that the tables are of when you submit them.",
            )
        for name, info in header.tensors.items():
            if info.dtype != "U8" or not name.endswith(".parquet"):
                raise _refused(
                    "predictions-file",
                    f"The file holds {headers.shown(name)}, which is no .parquet file.",
                    "Send a folder of predictions with 'tomoprobe submit --predictions DIR'.",
                )
            file.seek(header.data_start + info.begin)
            yield file.read(info.end - info.begin)


def read(raw: bytes) -> Sent:
    """Let a child say what a Parquet file is about; no column is read.

    Raises:
        IntakeError: it is no table of predictions, or breaks the child's limits.
    """
    head, _, _ = _answer(raw, _HEAD_BYTES, reader.ABOUT)
    return Sent(head["about"], head["rows"])


def columns_of(raw: bytes, rows: int) -> Mapping[str, np.ndarray]:
    """Let a child parse a Parquet file.

    Args:
        raw: the file.
        rows: of our own table; another number is refused.

    Raises:
        IntakeError: as `read`.
    """
    most = min(_HEAD_BYTES + rows * _ROW_BYTES, reader.MEMORY)
    head, said, start = _answer(raw, most)
    columns: dict[str, np.ndarray] = {}
    try:
        if head["rows"] != rows:
            raise ValueError(head["rows"])
        for name, dtype in head["columns"]:
            kind = np.dtype(str(dtype))
            if kind.kind not in "ifU" or not 0 < kind.itemsize <= 4 * reader.MAX_TEXT:
                raise ValueError(dtype)
            columns[str(name)] = np.frombuffer(said, kind, rows, start)
            start += rows * kind.itemsize
    except Exception as error:  # whatever a child that was led astray may answer
        raise _unreadable("its columns make no sense") from error
    return columns


def _answer(raw: bytes, most: int, *options: str) -> tuple[dict[str, Any], bytearray, int]:
    """The first line of a child's answer, checked; the whole answer, and where its columns begin.

    Raises:
        IntakeError: the child refuses the file, or says nothing of sense, too much or too late.
    """
    said, status = _said(raw, most, *options)
    end = said.find(b"\n", 0, _HEAD_BYTES)
    try:
        head = json.loads(said[: max(end, 0)])
        if type(head) is not dict:
            raise TypeError(type(head))
        fault = head.get("fault")
        if fault is None:
            rows = head["rows"]
            if type(head["about"]) is not dict or type(head["columns"]) is not list:
                raise TypeError(head.keys())
            if type(rows) is not int or not 0 <= rows <= reader.MAX_ROWS:
                raise ValueError(rows)
    except Exception as error:  # whatever a child that was led astray may answer
        raise _unreadable(f"reading it ended with status {status}") from error
    if fault is not None:
        raise _unreadable(clean(str(fault)[:1000])[:500])
    return head, said, end + 1


def _said(raw: bytes, most: int, *options: str) -> tuple[bytearray, int]:
    """What a child says of a file, in at most so many bytes, and how it ended."""
    command = [sys.executable, "-I", "-m", reader.MODULE, *options]
    said, late = bytearray(), threading.Event()
    with tempfile.TemporaryFile() as file:
        file.write(raw)
        file.seek(0)
        with subprocess.Popen(  # noqa: S603 - our own program
            command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}
        ) as child:

            def stop() -> None:
                late.set()
                child.kill()

            clock = threading.Timer(3 * reader.SECONDS, stop)
            clock.start()
            try:
                out = child.stdout
                while out is not None and len(said) <= most and (more := out.read(_READ_AT_ONCE)):
                    said += more
                if len(said) > most:
                    raise _unreadable(f"it gives more than {most} bytes")
                status = child.wait()
            finally:
                child.kill()
                clock.cancel()
    if late.is_set():
        raise _unreadable("reading it takes too long")
    return said, status


def _unreadable(why: str) -> IntakeError:
    return _refused("predictions-unreadable", f"The predictions cannot be read: {why}.", _RUN_AGAIN)


# --- against our own roster ----------------------------------------------------------------------


class Scored(NamedTuple):
    """A table that was found to be what the task and the probe make."""

    opened: OpenTask
    parquet: bytes
    """The table, as it is stored: small enough to wait for the other tables."""
    about: predictions.Provenance
    scores: evaluate.Scores

    def add(
        self, bench: Bench, card: SelfRunCard, sha: str, also: Callable[[Connection], None]
    ) -> None:
        """Store the rows."""
        from .runner import published_card

        said = {**card.model_dump(mode="json"), "width": self.about.width, "strides": []}
        db.add(
            bench.engine,
            model_sha=sha,
            model_card=said,
            manifest={"self-run": sha},
            task_card=published_card(self.opened),
            results=self.scores.results,
            parquet=self.parquet,
            flags=self.scores.flags,
            origin="self-run",
            also=also,
        )


def scored(
    bench: Bench, sent: Sent, columns: Columns, card: SelfRunCard, sha: str, log: JobLog
) -> Scored:
    """Score a table on our own roster.

    Args:
        bench: of the worker.
        sent: what the table says of itself.
        columns: parses them.
        card: what its submitter says of the model.
        sha: the model's identity, as the table says.
        log: of the job.

    Raises:
        IntakeError: it is of another task, probe or state of the data than ours, or incomplete.
        DataError: the data of the task are not here.
    """
    about = sent.about
    try:
        task, probe = str(about["task"]), bench.probe(str(about["probe"]))
        opened = bench.open(bench.task(task).card.name, log)
        width, seconds = int(about["width"]), float(about["seconds"])
    except UnknownNameError as error:
        raise _refused("predictions-unknown", clean(str(error)), _RUN_AGAIN) from error
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _unreadable("it does not say what it is of") from error
    ours = opened.task.card
    state = {
        "task_version": ours.version,
        "probe_version": probe.version,
        "dataset_sha": opened.identity.dataset_sha,
        "split_sha": opened.split_sha,
    }
    other = [name for name, value in state.items() if about.get(name) != value]
    if other:
        raise _refused(
            "predictions-other-data",
            f"The predictions on '{task}' were made on another {', '.join(other)} than the one "
            "here.",
            _RUN_AGAIN,
        )
    if not (0 < width <= MAX_WIDTH and math.isfinite(seconds) and seconds >= 0):
        raise _refused("predictions-unreadable", "Its width or seconds make no sense.", _RUN_AGAIN)
    if isinstance(probe, Study):
        raise _refused(
            "predictions-protocol",
            f"'{probe.name}' runs the network itself: what it finds cannot be sent.",
            "Submit the weights.",
        )
    table = checked_table(sent.rows, columns, ours, opened, probe)
    provenance = predictions.Provenance(
        model=card.name,
        model_sha=sha,
        task=ours.name,
        task_version=ours.version,
        probe=probe.name,
        probe_version=probe.version,
        kind=ours.kind,
        width=width,
        cv=splits.uses_cv(ours),
        subset=not opened.complete,
        seconds=seconds,
        device=clean(str(about.get("device", "")))[:80],
        software=clean(str(about.get("software", "")))[:300],
        dataset_sha=opened.identity.dataset_sha,
        split_sha=opened.split_sha,
        area=evaluate.has_area(probe),
        skipped=evaluate.skipped_sizes(ours, opened.cases, probe),
    )
    parquet = predictions.to_parquet(table, provenance)
    return Scored(opened, parquet, provenance, evaluate.score(table, provenance))


def checked_table(
    rows: int, parse: Columns, card: TaskCard, opened: OpenTask, probe: Probe
) -> pd.DataFrame:
    """Our own table of this task and probe, with the predictions that were sent.

    Raises:
        IntakeError: another set of fits or cases, or predictions that are none.
    """
    nothing = np.zeros((len(opened.cases), 1), np.float32)
    table = evaluate.predict(card, opened.cases, nothing, _Blank(probe))
    known = [
        name for name in ("repeat", "fold", "refit", "shots", "case", "patient") if name in table
    ]
    values = [name for name in table.columns if name not in (*known, "target")]
    other = _refused(
        "predictions-cases",
        f"The predictions of '{probe.name}' on '{card.name}' are not of exactly our test "
        f"cases, folds and fits ({rows} rows, expected {len(table)}).",
        _RUN_AGAIN,
    )
    if rows != len(table):  # before any column is parsed: our table bounds theirs
        raise other
    columns = parse(rows)
    missing = [name for name in (*known, *values) if name not in columns]
    if missing:
        raise _refused(
            "predictions-columns", f"The predictions lack {', '.join(missing)}.", _RUN_AGAIN
        )
    order, theirs = _sorted(table), _sorted(columns)
    if not all((table[name].to_numpy()[order] == columns[name][theirs]).all() for name in known):
        raise other
    for name in values:
        column = columns[name]
        if column.dtype.kind not in "if" or not np.isfinite(column).all():
            raise _refused("predictions-values", f"Column {name} is not finite.", _RUN_AGAIN)
        filled = np.empty(rows)
        filled[order] = column[theirs]
        table[name] = filled
    if card.kind == "classification":
        p = table[values].to_numpy()
        if (p < 0).any() or (abs(p.sum(1) - 1) > _SUM_TOLERANCE).any():
            raise _refused(
                "predictions-values", "The class probabilities do not sum to 1.", _RUN_AGAIN
            )
    return table


def _sorted(columns: Any) -> np.ndarray:
    """Order of the rows by fit and case."""
    keys = [name for name in ("case", "refit", "fold", "repeat", "shots") if name in columns]
    return np.lexsort([np.asarray(columns[name]).astype(str) for name in keys])


class _Blank:
    """A probe that predicts nothing: which fits and cases another one makes."""

    def __init__(self, probe: Probe) -> None:
        self.name, self.version, self.kinds = probe.name, probe.version, probe.kinds
        self.title = probe.title
        budget = budget_of(probe)
        if budget is not None:
            self.budget = budget

    def __call__(self, features: Features, seed: int, refits: int) -> Predictions:
        n = int((features.split == "test").sum())
        shape = (n, features.n_classes) if features.kind == "classification" else (n,)
        return Predictions(np.zeros(shape), np.zeros((refits, *shape)), {})


def _refused(code: str, message: str, hint: str) -> IntakeError:
    return IntakeError(code, message, stage="check", hint=hint)
