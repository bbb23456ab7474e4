"""Tables of one's submissions, and the lines of their logs, on stdout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from .following import in_words, reason_of, unit_name, units_of
from .terminal import clean, out


def print_submissions(found: Sequence[Mapping[str, Any]]) -> None:
    """All of them, newest first."""
    if not found:
        out.print("You have submitted nothing yet: tomoprobe pack, then tomoprobe submit.")
        return
    table = _table("id", "name", "state", "tasks", "created", "why")
    for one in found:
        why = reason_of(one) or (f"of {one['duplicate_of']}" if one.get("duplicate_of") else "")
        cells = (one["id"], one["name"], one["state"], _few(one["tasks"]), one["created"], why)
        table.add_row(*(escape(clean(str(cell))) for cell in cells))
    out.print(table)


def print_submission(found: Mapping[str, Any]) -> None:
    """One, with its units."""
    _say(in_words(found))
    for label, value in (
        ("id", found["id"]),
        ("model", found.get("model_sha")),
        ("same model as", found.get("duplicate_of")),
        ("hidden until", found.get("embargo_until")),
        ("shown as", "anonymous" if found.get("anonymous") else None),
        ("kind", "self-run: never ranked" if found.get("kind") == "self-run" else found["kind"]),
        ("page", found.get("url")),
    ):
        if value:
            _say(f"  {label}: {value}")
    units = found.get("jobs") or ()
    if not units:
        return
    settled, total = units_of(found)
    table = _table("unit", "state", "seconds", "why")
    table.title = f"{settled} of {total} units"
    for unit in units:
        seconds = "" if unit.get("seconds") is None else f"{unit['seconds']:.1f}"
        cells = (unit_name(unit), unit["state"], seconds, reason_of(unit))
        table.add_row(*(escape(clean(cell)) for cell in cells))
    out.print(table)


def print_result(found: Mapping[str, Any]) -> None:
    """How a submission ended, and where to look next."""
    id, state = found["id"], found["state"]
    _say(in_words(found))
    failed = [unit for unit in found.get("jobs") or () if unit["state"] == "failed"]
    for unit in failed:
        _say(f"  {unit_name(unit)}: {reason_of(unit)}")
    if state == "duplicate":
        _say(f"The same model is there already: tomoprobe status {found['duplicate_of']}")
    elif state == "failed" or failed:
        _say(f"The last lines of its log: tomoprobe logs {id}")
    if found.get("url"):
        _say(found["url"])


def print_logs(logs: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]] = ()) -> None:
    """Lines of the units, less those that were printed before."""
    old = {unit["job"]: (unit["log"], unit["state"]) for unit in before}
    for unit in logs:
        text, state = old.get(unit["job"], ("", None))
        lines = new_lines(text.splitlines(), unit["log"].splitlines())
        if lines or state != unit["state"]:
            _say(f"--- {unit_name(unit)}: {unit['state']}")
        for line in lines:
            _say(line)
        if state != unit["state"] and (reason := reason_of(unit)):
            _say(reason)


def new_lines(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """What came after ``old``, of which the server may have let the first lines go.

    >>> new_lines(["a", "b", "c"], ["b", "c", "d"])
    ['d']
    """
    for start in range(len(old)):
        kept = list(old[start:])
        if list(new[: len(kept)]) == kept:
            return list(new[len(kept) :])
    return list(new)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 2 else f"{names[0]} and {len(names) - 1} more"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        right = column == "seconds"
        table.add_column(column, justify="right" if right else "left", no_wrap=i == 0)
    return table


def _say(text: str) -> None:
    out.print(Text(clean(text)), soft_wrap=True)
