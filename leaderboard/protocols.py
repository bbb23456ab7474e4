"""Which probe a kind of task is shown by, and which metric ranks it.

Handed in by the settings, because the site sees no probe: what they do not know falls back to what
the results themselves say.
"""

from collections.abc import Collection, Iterable, Mapping

from ..benchmark.types import Budget
from .records import StoredTask, Unit
from .settings import Settings

PREFERRED = "linear"
"""Shown where the settings name no standard probe: the protocol that the literature reports."""


def kind_of(task: StoredTask) -> str:
    """What the task asks."""
    return str(task.card.get("kind", ""))


def standard_probe(kind: str, settings: Settings) -> str:
    """The probe by which the kind is shown where none is asked for."""
    named = (name for name, known in settings.probes.items() if kind in known.standard)
    return next(named, PREFERRED)


def preferred_probe(kind: str, probes: Collection[str], settings: Settings) -> str:
    """Of these probes the one to show where none is asked for; empty where there is none."""
    for name in (standard_probe(kind, settings), PREFERRED):
        if name in probes:
            return name
    return min(probes, default="")


def probes_by_kind(
    tasks: Iterable[StoredTask], units: Iterable[Unit], settings: Settings
) -> Mapping[str, str]:
    """Of each kind with results the probe to show: one for all its tasks, so that ranks compare.

    Args:
        tasks: all versions of all tasks.
        units: those that decide what is shown.
        settings: of the operator.
    """
    kinds = {(task.name, task.version): kind_of(task) for task in tasks}
    found: dict[str, set[str]] = {}
    for unit in units:
        kind = kinds.get((unit.task, unit.task_version))
        if kind is not None:
            found.setdefault(kind, set()).add(unit.probe)
    return {kind: preferred_probe(kind, probes, settings) for kind, probes in found.items()}


def metric_of(task: StoredTask, probe: str, settings: Settings) -> str:
    """The metric that ranks a probe on a task."""
    known = settings.probes.get(probe)
    return (known.metric if known else "") or str(task.card["metric"])


def budget_of(probe: str, settings: Settings) -> Budget | None:
    """The training budget of a probe that this release knows."""
    known = settings.probes.get(probe)
    return known.budget if known else None
