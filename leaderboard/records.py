"""What the database gives back. Standard library only: ranking and pages know no SQL."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ..benchmark.types import Result

Json = Mapping[str, Any]
"""A card or manifest as it was stored: the vocabulary of the release that wrote it, so a reader
asks for each field with a default."""


Origin = Literal["local", "verified", "self-run"]
"""Who computed a row: the operator by a command, the platform from submitted weights, or the
submitter."""


class Unit(NamedTuple):
    """What is evaluated, stored and lost as one: one model, task and probe on one state of data."""

    model_sha: str
    task: str
    task_version: int
    probe: str
    probe_version: int
    dataset_sha: str
    split_sha: str


class Timing(NamedTuple):
    """What one unit took where it was computed."""

    probe: str
    task: str
    device: str
    seconds: float


@dataclass(frozen=True)
class StoredRow:
    """One published number and what its reader must know."""

    id: int
    """Grows with every row that is added."""
    result: Result
    calibrated: bool
    """False: the interval lies outside the range in which its coverage was simulated, so no
    significance mark may be shown."""
    flags: tuple[str, ...]
    """Warnings about this number, as the evaluation wrote them."""
    added: str
    """UTC, ISO 8601, e.g. ``"2026-11-23T05:56:00Z"``."""
    origin: Origin = "local"
    unsafe: bool = False
    """The model ran without isolation."""


@dataclass(frozen=True)
class StoredModel:
    """A model as it was when its first row was added."""

    model_sha: str
    name: str
    card: Json
    manifest: Json
    added: str


@dataclass(frozen=True)
class StoredTask:
    """One version of a task as it was when its first row was added."""

    name: str
    version: int
    card: Json
    added: str


@dataclass(frozen=True)
class Pending:
    """What is to be evaluated and waits for features."""

    model_sha: str
    task: str
    task_version: int
    """At which it is to be done; likewise the probe's."""
    probe: str
    probe_version: int
    why: str
    """For the reader of the board, e.g. which version was raised."""
    added: str = ""
    """UTC, ISO 8601; the database sets it where it is empty."""
