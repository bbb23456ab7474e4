"""Everything that can go wrong and is not a bug.

    TomoprobeError
    ├── DataError              the data on disk
    │   ├── VolumeError        one image: truncated, NaN, 4D, zero spacing, too large, ...
    │   ├── MaskError          one mask: empty, unknown label, not on its image's grid
    │   ├── IncompleteDataError  fewer cases than the card promises
    │   └── PatientError       a patient twice, or on two sides of a split
    ├── UnknownNameError       no task, encoder, probe, metric or suite of that name
    ├── TaskFileError          a task file or object that breaks the contract
    ├── ManifestError          a manifest or its weights that break the contract
    ├── EncoderError           an encoder that misbehaves: NaN, width, batch, buffers
    │   └── IsolationError     the process that runs a model cannot be closed off, or broke
    │       └── InstallationError  this machine lacks a library or a device that a model needs
    ├── ProbeError             a probe that cannot be fitted on these features
    ├── TrainingError          a pretraining that diverged, or that is not its checkpoint's
    ├── IntakeError            a submission that is refused, with a code and a stage
    ├── AccessError            no valid token or session, or not allowed to do that
    ├── QuotaError             too much or too often
    ├── ConflictError          not in the state that this step needs
    ├── ServerError            a server that is not reached, or whose answer makes no sense
    └── StorageError           disk full, folder read-only, database locked or too new

Each message says what was wrong, what was expected and what to do. The command line prints the
message and exits 2; the site shows it. Any other exception is a bug and keeps its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class TomoprobeError(Exception):
    """Root of all errors a user can do something about."""


class DataError(TomoprobeError):
    """The data on disk are not what the task expects."""


class VolumeError(DataError):
    """One image cannot be used."""


class MaskError(DataError):
    """One mask cannot be used."""


class IncompleteDataError(DataError):
    """Fewer cases are on disk than the task's card promises."""


class PatientError(DataError):
    """A patient or case appears twice, or on more than one side of a split."""


class UnknownNameError(TomoprobeError):
    """Nothing is registered under that name."""

    @classmethod
    def of(cls, what: str, name: str, known: Iterable[str]) -> "UnknownNameError":
        """Compose the message, with the nearest known name.

        >>> UnknownNameError.of("task", "smoke_lession", ["smoke_lesion"]).args[0]
        "No task is called 'smoke_lession'. Did you mean 'smoke_lesion'? Known: smoke_lesion."
        """
        names = sorted(known)
        near = get_close_matches(name, names, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return cls(f"No {what} is called '{name}'.{hint} Known: {', '.join(names)}.")


class TaskFileError(TomoprobeError):
    """A task file or object breaks the contract of a task."""


class ManifestError(TomoprobeError):
    """A manifest, or the weights it names, breaks the contract."""


class EncoderError(TomoprobeError):
    """An encoder misbehaves."""


class ProbeError(TomoprobeError):
    """A probe cannot be fitted on these features."""


class TrainingError(TomoprobeError):
    """A pretraining cannot go on."""


class ServerError(TomoprobeError):
    """A server is not reached, has a fault of its own, or answers what cannot be understood."""


class StorageError(TomoprobeError):
    """A folder or database cannot be written or read."""


class IsolationError(EncoderError):
    """The process that runs a model cannot be closed off, or it broke."""


class InstallationError(IsolationError):
    """This machine lacks a library, file or device that a model needs: no fault of the model."""


class IntakeError(TomoprobeError):
    """A submission is refused.

    Args:
        code: what is wrong, in kebab case, e.g. ``"header-overlap"``; stable, so that programs can
            tell one from another.
        message: what was wrong and what was expected.
        stage: ``"upload"``, ``"check"``, ``"extract"`` or ``"probe"``.
        hint: what to do.
    """

    def __init__(self, code: str, message: str, *, stage: str, hint: str) -> None:
        super().__init__(f"{message} {hint}".strip())
        self.code, self.stage, self.message, self.hint = code, stage, message, hint


class AccessError(TomoprobeError):
    """No valid token or session (401), or one that does not allow this (403)."""

    def __init__(self, message: str, status: int = 401) -> None:
        super().__init__(message)
        self.status = status


class QuotaError(TomoprobeError):
    """Too much or too often; ``retry_after`` in seconds, None where waiting does not help."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ConflictError(TomoprobeError):
    """Something is not in the state that this step needs; ``offset`` of an upload, if it is one."""

    def __init__(self, message: str, offset: int | None = None) -> None:
        super().__init__(message)
        self.offset = offset
