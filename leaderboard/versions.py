"""Which rows are superseded: made at a version of a task or a probe that was raised since.

They are never deleted. Where a model has nothing newer they are shown, marked and unranked.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..benchmark.types import Change, Result
from .records import Pending, StoredTask, Unit
from .settings import Current, Settings


@dataclass(frozen=True)
class Step:
    """One version of a task or a probe, and how far the board has come with it."""

    what: str
    """``"task"``, or the name of the probe."""
    version: int
    why: str
    """Empty for the first version."""
    redone: int
    """Models that are evaluated at this version of it, on the task in question."""
    waiting: int
    """Models that are queued for it."""


@dataclass(frozen=True)
class Versions:
    """The newest version of everything: what is stored, and what this release knows."""

    tasks: Mapping[str, Current] = field(default_factory=dict)
    probes: Mapping[str, Current] = field(default_factory=dict)

    @classmethod
    def of(
        cls, tasks: Iterable[StoredTask], units: Iterable[Unit], settings: Settings
    ) -> "Versions":
        """From all versions of all tasks, all units, and the release."""
        newest_tasks: dict[str, Current] = {}
        for task in sorted(tasks, key=lambda t: t.version):
            newest_tasks[task.name] = _newer(
                newest_tasks.get(task.name), Current(task.version, _changes_in(task.card))
            )
        newest_probes: dict[str, Current] = {}
        for unit in units:
            newest_probes[unit.probe] = _newer(
                newest_probes.get(unit.probe), Current(unit.probe_version)
            )
        for name, known in settings.tasks.items():
            newest_tasks[name] = _newer(newest_tasks.get(name), known)
        for name, known in settings.probes.items():
            newest_probes[name] = _newer(newest_probes.get(name), known)
        return cls(newest_tasks, newest_probes)

    def superseded(self, result: Result) -> str:
        """By what the row is superseded, as :func:`since` says it; empty: it counts."""
        return self.behind(result.task, result.task_version, result.probe, result.probe_version)

    def behind(self, task: str, task_version: int, probe: str, probe_version: int) -> str:
        """What has changed since these versions; empty: they are the newest."""
        parts = [
            since(what, old, current.version, current.changes)
            for what, old, current in (
                ("task", task_version, self.tasks.get(task)),
                ("probe", probe_version, self.probes.get(probe)),
            )
            if current is not None
        ]
        return "; ".join(part for part in parts if part)

    def history(
        self, task: str, probe: str, units: Iterable[Unit], pending: Iterable[Pending]
    ) -> tuple[Step, ...]:
        """Every version of the task and of the probe that is stored, known or waited for.

        Empty where there has been one version of each, and nothing waits.
        """
        here = [u for u in units if u.task == task]
        queue = [p for p in pending if p.task == task]
        steps: list[Step] = []
        for what, current, done, waits in (
            (
                "task",
                self.tasks.get(task),
                [(u.task_version, u.model_sha) for u in here],
                [(p.task_version, p.model_sha) for p in queue],
            ),
            (
                probe,
                self.probes.get(probe),
                [(u.probe_version, u.model_sha) for u in here if u.probe == probe],
                [(p.probe_version, p.model_sha) for p in queue if p.probe == probe],
            ),
        ):
            newest = current.version if current else 1
            why = {change.version: change.why for change in current.changes} if current else {}
            found = {newest, *why, *(v for v, _ in done), *(v for v, _ in waits)}
            if len(found) > 1 or (waits and what == "task"):
                steps += [
                    Step(
                        what,
                        version,
                        why.get(version, "" if version == min(found) else NO_REASON),
                        len({sha for v, sha in done if v == version}),
                        len({sha for v, sha in waits if v == version}),
                    )
                    for version in sorted(found, reverse=True)
                ]
        return tuple(steps)


NO_REASON = "no reason is stated"


def since(what: str, old: int, now: int, changes: Iterable[Change]) -> str:
    """What has come after version ``old`` of a task or a probe; empty: nothing.

    >>> since("task", 1, 2, [Change(2, "masks were corrected.")])
    'task version 2: masks were corrected'
    """
    if now <= old:
        return ""
    whys = [change.why.rstrip(".") for change in changes if old < change.version <= now]
    return f"{what} version {now}: {'; '.join(whys) or NO_REASON}"


def _newer(one: Current | None, other: Current) -> Current:
    """The newer of two, with the changes of both; those of ``other`` win."""
    if one is None:
        return other
    changes = {c.version: c for c in (*one.changes, *other.changes)}
    return replace(
        other,
        version=max(one.version, other.version),
        changes=tuple(changes[version] for version in sorted(changes)),
        budget=other.budget or one.budget,
    )


_CHANGE = {item.name for item in fields(Change)}


def _changes_in(card: Mapping[str, Any]) -> tuple[Change, ...]:
    """Of a stored card, which may be of a release with other fields, or with none."""
    listed: Sequence[Mapping[str, Any]] = card.get("changes") or ()
    return tuple(
        Change(**{k: v for k, v in item.items() if k in _CHANGE})
        for item in listed
        if {"version", "why"} <= item.keys()
    )
