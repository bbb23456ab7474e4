"""What the tables of accounts, uploads, submissions and jobs give back. Standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from .records import Json

Role = Literal["reader", "submitter", "maintainer", "admin"]
Scope = Literal["read", "submit", "maintain", "admin"]
UploadKind = Literal["safetensors", "onnx", "predictions"]
UploadState = Literal["open", "complete", "refused", "expired", "deleted"]
SubmissionKind = Literal["weights", "onnx", "seed", "self-run"]
SubmissionState = Literal[
    "queued",
    "checking",
    "evaluating",
    "done",
    "failed",
    "cancelled",
    "withdrawn",
    "duplicate",
]
JobKind = Literal["check", "extract", "probe"]
JobState = Literal["waiting", "running", "done", "failed", "cancelled"]
Fault = Literal["platform", "submission"]
ReportKind = Literal["dispute", "leak"]
ReportState = Literal["open", "upheld", "rejected"]

ROLES: tuple[Role, ...] = ("reader", "submitter", "maintainer", "admin")
SCOPES: tuple[Scope, ...] = ("read", "submit", "maintain", "admin")
"""The k-th role may have the first k scopes; a scope allows what those before it allow."""


@dataclass(frozen=True)
class Quota:
    """How much one user may ask for."""

    jobs_per_day: int = 10
    """Submissions in any 24 hours, those that were refunded not counted."""
    gpu_hours_per_month: float = 20.0
    """Of extracting features, in any 30 days; on whatever device it ran."""
    bytes_kept: int = 20 << 30
    """Of uploads that are not deleted yet."""


@dataclass(frozen=True)
class User:
    """An account."""

    id: int
    name: str
    role: Role
    created: str
    revoked: str | None
    quota: Quota


@dataclass(frozen=True)
class Token:
    """A token without its secret."""

    id: int
    user_id: int
    hint: str
    """The first six characters after the prefix, by which its owner knows it again."""
    scopes: tuple[Scope, ...]
    created: str
    expires: str
    revoked: str | None
    last_used: str | None


@dataclass(frozen=True)
class Identity:
    """Who asks, and with which token."""

    user: User
    token_id: int
    scopes: tuple[Scope, ...]
    """Of the token, less what the user's role does not allow any more."""

    def allows(self, scope: Scope) -> bool:
        """Whether one of the scopes is this one or a higher one."""
        return any(SCOPES.index(held) >= SCOPES.index(scope) for held in self.scopes)


@dataclass(frozen=True)
class AuditEntry:
    """Who did what to whom."""

    id: int
    at: str
    actor: str
    """Name of a user, ``"local"`` for the command line of the operator, or ``"platform"``."""
    action: str
    """In kebab case, e.g. ``"token-revoked"``."""
    subject: str
    detail: Json


@dataclass(frozen=True)
class Upload:
    """A file that is arriving, or has arrived."""

    id: str
    user_id: int
    token_id: int
    kind: UploadKind
    size: int
    sha256: str
    """As declared; of the whole file, 64 lower-case hexadecimal digits."""
    received: int
    """Bytes so far: where the next chunk starts."""
    state: UploadState
    file: str
    """Name chosen here, without a folder."""
    reason: Mapping[str, str] | None
    """Of a refusal: ``code``, ``stage``, ``message`` and ``hint``."""
    created: str
    expires: float
    """After which the file may be deleted, in seconds since 1970."""


@dataclass(frozen=True)
class Submission:
    """What was asked for and how far it is."""

    id: str
    user_id: int
    user: str
    """Name of the user."""
    name: str
    manifest: str
    """TOML, as it was sent."""
    upload_id: str | None
    kind: SubmissionKind
    tasks: tuple[str, ...]
    probes: tuple[str, ...]
    state: SubmissionState
    code: str | None
    """Of a failure, in kebab case; likewise the next three."""
    stage: str | None
    message: str | None
    hint: str | None
    model_sha: str | None
    """Known after the check."""
    duplicate_of: str | None
    """Id of the submission that holds the same model on the same tasks."""
    anonymous: bool
    embargo_until: str | None
    """Date from which its rows are shown, e.g. ``"2027-01-31"``; None: at once."""
    created: str
    updated: str
    unsafe_local: bool
    """It ran without isolation."""

    @property
    def active(self) -> bool:
        """Whether something is still to be done for it."""
        return self.state in ACTIVE


ACTIVE: tuple[SubmissionState, ...] = ("queued", "checking", "evaluating")


@dataclass(frozen=True)
class Job:
    """One unit of work of a submission. What does not apply to its kind is an empty text."""

    id: int
    submission_id: str
    kind: JobKind
    data_set: str
    task: str
    probe: str
    state: JobState
    attempt: int
    """How often it was claimed: the fencing token."""
    lost: int
    """How often a worker was lost with it, or gave it back after a fault of the platform."""
    owner: str | None
    lease_until: float | None
    heartbeat: float | None
    claimed: float | None
    """When the last attempt began, in seconds since 1970."""
    code: str | None
    stage: str | None
    message: str | None
    hint: str | None
    log: str
    """Last lines, without control characters; for the submitter and the maintainers only."""
    created: str
    started: str | None
    ended: str | None
    seconds: float | None
    depends_on: int | None
    """Id of the job that must be done first."""


@dataclass(frozen=True)
class Planned:
    """Features of one data set that are to be extracted, and what is to be probed on them."""

    data_set: str
    """What the features are cached under; once per submission and ``task``."""
    task: str = ""
    """Of the extraction, where it is of one task only."""
    probes: tuple[tuple[str, str], ...] = ()
    """(task, probe), each once per submission."""


@dataclass(frozen=True)
class Place:
    """Where a submission stands in the queue."""

    ahead: int
    """Waiting jobs of all users before its first waiting one."""
    wait_s: float | None
    """Until that one starts, from the median of the last jobs of each kind; None: not known."""
    workers: int
    """Seen lately; 0: nothing will start before the operator starts one."""
    held: str = ""
    """Why it is passed over although its turn may have come: no GPU seconds are left."""


@dataclass(frozen=True)
class Edit:
    """One change of a card."""

    id: int
    submission_id: str
    at: str
    by: str
    before: Json
    after: Json


@dataclass(frozen=True)
class Report:
    """What a reader says is wrong with the rows of a model."""

    id: int
    model_sha: str
    task: str | None
    """None: all of them."""
    kind: ReportKind
    text: str
    by: int | None
    """Id of a user."""
    at: str
    state: ReportState
    answer: str | None
