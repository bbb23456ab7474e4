"""What is asked: one task per file, listed by the folder, imported on use.

A file of this folder (but for names that begin with ``_``) exposes ``TASK``, whose card is called
like the file. Listing imports no reader, and no task imports torch.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from hashlib import sha256
from importlib import import_module
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ..benchmark import paths
from ..benchmark.errors import (
    DataError,
    IncompleteDataError,
    TaskFileError,
    TomoprobeError,
    UnknownNameError,
)
from ..benchmark.splits import assign
from ..benchmark.targets import FollowUp, Labels, Lesion, Pair, Suspects
from ..benchmark.types import Case, Kind, Modality, Seat, Split, Target, Task

if TYPE_CHECKING:
    import numpy as np

__all__ = ["check", "get", "load_file", "names", "open_cases"]

_NOT_TASKS = {"suites"}
_SHOWN = 20
"""Missing cases that a message names; the rest are counted."""


# --- finding ---------------------------------------------------------------------------------


def names() -> list[str]:
    """All tasks, in alphabetical order; imports none."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(f.stem for f in files if f.stem[0] != "_" and f.stem not in _NOT_TASKS)


def get(name: str) -> Task:
    """Import one task.

    Raises:
        UnknownNameError: there is no such file.
    """
    if name not in names():
        raise UnknownNameError.of("task", name, names())
    task = import_module(f".{name}", __name__).TASK
    return check(task, name)


def load_file(path: Path) -> Task:
    """A private task from a file of its own.

    Raises:
        TaskFileError: the file is missing, fails when it is run, or exposes no sound ``TASK``.
    """
    if path.stem in names():
        raise TaskFileError(
            f"The task file {path} is called like a task that ships with tomoprobe: its rows could "
            "not be told apart. Give the file and its card another name."
        )
    spec = importlib.util.spec_from_file_location(f"tomoprobe_private_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise TaskFileError(
            f"There is no task file {path}. Expected a Python file that exposes TASK; "
            "CONTRIBUTING.md shows a complete one."
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # somebody else's code can fail in any way
        del sys.modules[spec.name]
        raise TaskFileError(
            f"The task file {path} fails when it is run: {type(error).__name__}: {error}. "
            "Run it with python to see where."
        ) from error
    task = check(getattr(module, "TASK", None), path.stem)
    return replace(task, source_sha=sha256(path.read_bytes()).hexdigest())


def check(task: object, stem: str | None = None) -> Task:
    """The task, if it keeps the contract.

    Raises:
        TaskFileError: it does not; says which field is wrong and what is expected.
    """
    from ..benchmark import metrics

    if not isinstance(task, Task):
        raise TaskFileError(
            f"'{stem}' exposes {type(task).__name__} as TASK. Expected a tomoprobe Task: "
            "TASK = Task(card, cases)."
        )
    card = task.card
    faults = [
        f"'{field.name}' is empty"
        for field in fields(card)
        if field.name in _REQUIRED and not getattr(card, field.name)
    ]
    if stem is not None and card.name != stem:
        faults.append(f"the card is called '{card.name}' but the file '{stem}'")
    for name, known in (("kind", get_args(Kind)), ("modality", get_args(Modality))):
        if getattr(card, name) not in known:
            faults.append(
                f"'{name}' is '{getattr(card, name)}', expected one of {', '.join(known)}"
            )
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", card.data_set or "x"):
        faults.append(f"'data_set' is '{card.data_set}', expected letters, digits, '_', '.', '-'")
    missing = {"cases", "patients"} - set(card.counts)
    if missing:
        faults.append(f"'counts' lacks {', '.join(sorted(missing))}")
    if card.kind == "classification" and len(card.classes) < 2:
        faults.append("'classes' names fewer than two classes")
    if card.kind in get_args(Kind):
        known_metrics = [metric.name for metric in metrics.for_kind(card.kind)]
        if card.metric not in known_metrics:
            faults.append(
                f"'metric' is '{card.metric}', expected one of {', '.join(known_metrics)}"
            )
    if card.kind in _DENSE and not card.lattice_mm:
        faults.append(f"'lattice_mm' is empty, which a {card.kind} needs")
    if card.kind == "segmentation" and not (card.tolerance_mm and len(card.classes) > 1):
        faults.append("a segmentation needs 'classes', background first, and 'tolerance_mm'")
    if not (isinstance(card.version, int) and card.version >= 1):
        faults.append(f"'version' is {card.version!r}, expected 1 or more")
    if faults:
        raise TaskFileError(f"Task '{card.name or stem}': {'; '.join(faults)}. Correct its card.")
    return task


_DENSE = ("segmentation", "registration", "detection", "candidates")
"""Kinds whose protocols need maps on one lattice."""

_REQUIRED = (
    "name",
    "title",
    "kind",
    "modality",
    "anatomy",
    "metric",
    "license",
    "source",
    "citation",
    "counts",
)


# --- opening ---------------------------------------------------------------------------------


def open_cases(task: Task, root: Path | None, subset: bool) -> tuple[list[Case], bool]:
    """Find a task's cases, place them on their sides, and compare them with the card.

    Args:
        task: any.
        root: the data root; None takes ``TOMOPROBE_DATA``.
        subset: accept an incomplete copy.

    Returns:
        The cases with their sides, and whether they are the complete set.

    Raises:
        DataError: no data root, or no case in it.
        IncompleteDataError: cases are missing and ``subset`` is False.
        PatientError: a case twice, or a patient on two sides.
        TaskFileError: a target that does not fit the card.
    """
    card = task.card
    root = paths.data_root(root)
    # what is no evidence may be generated; all else is read from somewhere
    if root is None and (card.files or card.evidence):
        raise DataError(
            f"'{card.name}' needs data, and no data root is given. Pass --data-root DIR or set "
            f"TOMOPROBE_DATA. {_where_from(task)}"
        )
    if card.files and root is not None and not os.access(root, os.R_OK | os.X_OK):
        raise DataError(
            f"The data root {root} is not a folder that can be read. Pass --data-root DIR or set "
            f"TOMOPROBE_DATA. {_where_from(task)}"
        )
    cases = _cases_of(task, root or Path())
    if not cases:
        raise IncompleteDataError(
            f"No case of '{card.name}' is in the data root {root}. {_where_from(task)}"
        )
    seats = assign(card, [Seat(case.id, case.patient, case.split) for case in cases])
    placed = [
        replace(case, split=seat.split, target=_target(task, case))
        for case, seat in zip(cases, seats, strict=True)
    ]
    lacks = _lacks(task, placed)
    if lacks and not subset:
        raise IncompleteDataError(
            f"The copy of '{card.name}' in {root} is incomplete: {lacks}. {_where_from(task)} To "
            "evaluate on what is there, pass --subset: its rows are marked and never ranked "
            "beside complete ones."
        )
    return placed, not lacks


def _lacks(task: Task, cases: Sequence[Case]) -> str:
    """How the copy differs from the complete set, in words; empty for a complete one."""
    card = task.card
    found = {
        "cases": len(cases),
        "patients": len({case.patient for case in cases}),
        **Counter(case.split for case in cases if case.split is not None),
    }
    short = [
        f"{found.get(what, 0)} of {n} {what}"
        for what, n in card.counts.items()
        if found.get(what, 0) != n
    ]
    here = {case.id for case in cases}
    roster = [seat.id for seat in task.roster()]
    missing = [id_ for id_ in roster if id_ not in here]
    strange = sorted(here - set(roster)) if roster else []
    short += [
        f"{what} {_listed(ids)}"
        for what, ids in (("missing are", missing), ("not part of it are", strange))
        if ids
    ]
    return "; ".join(short)


def _listed(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(ids[:_SHOWN]) + more


def _cases_of(task: Task, root: Path) -> list[Case]:
    """The task's own list, or a typed error."""
    name = task.card.name
    try:
        cases = list(task.cases(root))
    except TomoprobeError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"The data of '{name}' cannot be read: {error}. Check the data root {root} and its "
            f"permissions. {_where_from(task)}"
        ) from error
    except Exception as error:  # somebody else's code can fail in any way
        raise TaskFileError(
            f"cases() of '{name}' fails on the data root {root}: {type(error).__name__}: {error}. "
            f"Check the data root and the task. {_where_from(task)}"
        ) from error
    for case in cases:
        if case.split not in (None, *get_args(Split)):
            raise TaskFileError(
                f"Case '{case.id}' of '{name}' is on the side '{case.split}'. Expected one of "
                f"{', '.join(get_args(Split))}, or None: correct the task's cases()."
            )
    return cases


def _target(task: Task, case: Case) -> Target:
    """The target as the card's kind has it: a numpy number becomes a plain one."""
    card, target = task.card, case.target
    if card.kind == "classification":
        expected = f"a class index from 0 to {len(card.classes) - 1}"
        if isinstance(target, Integral) and 0 <= int(target) < len(card.classes):
            return int(target)
    elif card.kind == "regression":
        expected = "a finite number"
        if isinstance(target, Real) and math.isfinite(target):
            return float(target)
    elif card.kind == "segmentation":
        expected = "the file of a mask, or Labels"
        if isinstance(target, Path):
            return _labels(target, len(card.classes))
        if isinstance(target, Labels):
            return target
    elif card.kind == "registration":
        expected = "a Pair with at least one truth"
        if isinstance(target, Pair) and any(
            (target.fixed and target.moving, target.displacement, target.landmarks)
        ):
            return target
    elif card.kind == "detection":
        expected = "a tuple of Lesion, with finite centers and diameters above 0"
        if isinstance(target, tuple) and all(map(_is_lesion, target)):
            return target
    elif card.kind == "candidates":
        expected = "Suspects with finite lesions of diameters above 0, and finite places"
        if (
            isinstance(target, Suspects)
            and all(map(_is_lesion, target.lesions))
            and all(len(place) == 3 and all(map(math.isfinite, place)) for place in target.places)
        ):
            places = tuple((float(x), float(y), float(z)) for x, y, z in target.places)
            return replace(target, places=places)
    else:
        expected = "a FollowUp of more than 0 finite years"
        if isinstance(target, FollowUp) and math.isfinite(target.years) and target.years > 0:
            return target
    raise TaskFileError(
        f"Case '{case.id}' of '{card.name}' has the target {target!r}. Expected {expected}: "
        "correct the task's cases()."
    )


def _labels(path: Path, n_classes: int) -> Labels:
    """The label map in a file."""

    def load() -> tuple[np.ndarray, np.ndarray]:
        from ..benchmark.volumes import read_mask

        return read_mask(path, range(1, n_classes))

    return Labels(load, lambda: sha256(path.read_bytes()).hexdigest())


def _is_lesion(value: object) -> bool:
    return (
        isinstance(value, Lesion)
        and all(map(math.isfinite, value.center))
        and math.isfinite(value.diameter_mm)
        and value.diameter_mm > 0
    )


def _where_from(task: Task) -> str:
    """Where the data come from and where they have to be."""
    files = "; ".join(
        f"{path} from {url}" + (f" (MD5 {md5})" if md5 else "")
        for path, url, md5 in task.card.files
    )
    place = f" Expected below the data root: {files}." if files else ""
    return f"Source: {task.card.source} ({task.card.license}).{place}"
