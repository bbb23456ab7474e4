"""Whose fault it was, and in which words its submitter hears of it.

What the submission brought about is told in full and not tried again. What the platform brought
about is tried again, costs the submitter nothing, and is told without our paths and hosts: those
are for the operator's log.
"""

from __future__ import annotations

from typing import NamedTuple

from ..benchmark.errors import (
    DataError,
    EncoderError,
    InstallationError,
    IntakeError,
    IsolationError,
    ManifestError,
    ProbeError,
    StorageError,
    TomoprobeError,
    UnknownNameError,
)
from ..leaderboard.intake_records import Fault, JobKind


class Explained(NamedTuple):
    """A failure as it is stored."""

    error: IntakeError
    fault: Fault


_PACK = "Correct the submission ('tomoprobe pack' checks as this did) and send it again."
_OURS = "Nothing is wrong with the submission and it costs no quota; the operator has been told."

_SUBMISSION: tuple[tuple[type[TomoprobeError], str, str], ...] = (
    (ManifestError, "manifest", _PACK),
    (
        EncoderError,
        "encoder",
        "Run 'tomoprobe evaluate' with this manifest on your machine to see the same.",
    ),
    (
        ProbeError,
        "probe",
        "Run 'tomoprobe evaluate' with this manifest on your machine to see the same.",
    ),
)
"""Errors that the submission brought about, with their code and what to do."""

_PLATFORM: tuple[tuple[type[BaseException], str, str], ...] = (
    (
        InstallationError,
        "worker-installation",
        "this worker lacks a library or a device that the model needs",
    ),
    (IsolationError, "no-isolation", "this worker cannot close a process off"),
    (DataError, "data-missing", "a data set cannot be read on this worker"),
    (StorageError, "storage", "the database or the disk of the platform cannot be used"),
    (UnknownNameError, "worker-outdated", "this worker knows a name no more that was asked for"),
    (OSError, "storage", "the disk or the system of this worker cannot be used"),
    (MemoryError, "worker-memory", "this worker is out of memory"),
)


def explain(error: BaseException, stage: JobKind) -> Explained:
    """Code, stage, message and hint of what stopped a job, and whose fault it was.

    Anything that is not known to be the submission's is the platform's.
    """
    if isinstance(error, IntakeError):
        return Explained(error, "submission")
    if not isinstance(error, IsolationError):
        for kind, code, hint in _SUBMISSION:
            if isinstance(error, kind):
                return Explained(
                    IntakeError(code, str(error), stage=stage, hint=hint), "submission"
                )
    for kind, code, what in _PLATFORM:
        if isinstance(error, kind):
            return Explained(_of_platform(code, what, stage), "platform")
    what = f"an error of tomoprobe itself ({type(error).__name__})"
    return Explained(_of_platform("internal", what, stage), "platform")


def _of_platform(code: str, what: str, stage: JobKind) -> IntakeError:
    return IntakeError(code, f"A fault of the platform: {what}.", stage=stage, hint=_OURS)
