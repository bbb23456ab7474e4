"""What the operator of a site decides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ..benchmark.types import Budget, Change, Kind


@dataclass(frozen=True)
class Current:
    """What this release knows of a task or a probe: rows of an older version are superseded."""

    version: int
    changes: tuple[Change, ...] = ()
    """Why the version was raised, oldest first."""
    budget: Budget | None = None
    """Of a probe that trains on a few patients: what ``shots`` counts."""
    metric: str = ""
    """Of a probe: the metric that ranks it. Empty: that of each task."""
    kinds: tuple[Kind, ...] = ()
    """Of a probe: what it serves."""
    standard: tuple[Kind, ...] = ()
    """Of a probe: kinds that the board shows by it where no probe is asked for."""
    on_request: bool = False
    """Of a probe: it runs only when it is named."""
    title: str = ""
    """Of a probe: one sentence."""
    cost: str = ""
    """Of a probe: one sentence on what it takes."""


@dataclass(frozen=True)
class Settings:
    """Everything has a default that suits a board on one's own machine."""

    title: str = "How good are the frozen features?"
    """Heading of the board."""
    base_url: str = ""
    """Public address, e.g. ``"https://example.org/board"``, when it differs from the one uvicorn
    listens on; its path is put before every link."""
    suites: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names of tasks by name of the suite, to filter by."""
    tasks: Mapping[str, Current] = field(default_factory=dict)
    """By name. Handed in, like the suites: the site sees neither the tasks nor the probes."""
    probes: Mapping[str, Current] = field(default_factory=dict)

    navigation: Sequence[tuple[str, str]] = ()
    """Path and label of pages beside the board, for the header."""

    @property
    def root(self) -> str:
        """What stands before the path of every link: empty, or a path without a final slash."""
        return urlsplit(self.base_url).path.rstrip("/")
