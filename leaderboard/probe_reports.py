"""What the pages of the protocols show: what each asks, what ranks it, and what it took."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from sqlalchemy import Engine

from ..benchmark.errors import UnknownNameError
from . import db
from .board import answered_by, newest
from .protocols import kind_of, metric_of
from .records import StoredTask, Timing
from .settings import Current, Settings
from .versions import Versions


@dataclass(frozen=True)
class Measured:
    """What the units of a probe took on one device."""

    device: str
    units: int
    median_seconds: float
    longest_seconds: float


@dataclass(frozen=True)
class Served:
    """One task with results of the probe."""

    task: StoredTask
    """The newest version with such results."""
    metric: str
    models: int
    """With results on that version."""


@dataclass(frozen=True)
class ProbeReport:
    """One protocol."""

    name: str
    known: Current
    """By the release, or of one it does not know any more its newest stored version alone."""
    kinds: tuple[str, ...]
    """That it serves, as far as the release or its results tell."""
    tasks: tuple[Served, ...]
    """Sanity checks last, then by kind, modality and name."""
    measured: tuple[Measured, ...]
    """By device, sorted."""


def probe_reports(engine: Engine, settings: Settings) -> tuple[ProbeReport, ...]:
    """Every probe that the release knows or that has results, by name."""
    stored, units, timings = db.tasks(engine), db.units(engine), db.timings(engine)
    versions = Versions.of(stored, units, settings).probes
    reports = []
    for name in sorted(versions):
        answered = answered_by(name, units)
        tasks = [t for t in newest(stored, answered) if (t.name, t.version) in answered]
        models: dict[tuple[str, int], set[str]] = {}
        for unit in units:
            if unit.probe == name:
                models.setdefault((unit.task, unit.task_version), set()).add(unit.model_sha)
        served = (
            Served(t, metric_of(t, name, settings), len(models[t.name, t.version])) for t in tasks
        )
        kinds = versions[name].kinds or dict.fromkeys(sorted(kind_of(task) for task in tasks))
        mine = [timing for timing in timings if timing.probe == name]
        reports.append(
            ProbeReport(name, versions[name], tuple(kinds), tuple(served), _measured(mine))
        )
    return tuple(reports)


def probe_report(engine: Engine, name: str, settings: Settings) -> ProbeReport:
    """The probe of that name.

    Raises:
        UnknownNameError: neither the release nor the results know it.
    """
    reports = {report.name: report for report in probe_reports(engine, settings)}
    if name not in reports:
        raise UnknownNameError.of("probe", name, reports)
    return reports[name]


def _measured(timings: Iterable[Timing]) -> tuple[Measured, ...]:
    by_device: dict[str, list[float]] = {}
    for timing in timings:
        by_device.setdefault(timing.device, []).append(timing.seconds)
    return tuple(
        Measured(device, len(seconds), median(seconds), max(seconds))
        for device, seconds in sorted(by_device.items())
    )
