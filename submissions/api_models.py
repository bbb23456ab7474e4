"""What the API takes and gives, as the OpenAPI document describes it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ..leaderboard.intake_records import (
    Edit,
    Identity,
    Job,
    Place,
    Report,
    Submission,
    Upload,
)
from .job_log import clean

MANIFEST = """\
name = "my_resnet"
title = "My ResNet-10, randomly initialised"
authors = "Me and my group"
license = "Apache-2.0"
readout = "pooled"
seed = 1
pretraining = []

[architecture]
name = "resnet"
arguments = {layers = [1, 1, 1, 1]}

[grid]
shape = [48, 48, 48]

[intensity.HU]
type = "Window"
low = -1000.0
high = 1000.0

[intensity.scanner]
type = "ZScore"
"""
"""The manifest of the examples: a network that needs no file."""

SHA_OF_EXAMPLE = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def _plain(text: str) -> str:
    """Text that every database and terminal can hold."""
    if clean(text.replace("\r\n", "\n")) != text.replace("\r\n", "\n").replace("\t", " "):
        raise ValueError("control characters are not taken")
    return text.strip()


PlainText = Annotated[str, AfterValidator(_plain)]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Given(BaseModel):
    model_config = ConfigDict(frozen=True)


# --- asked -------------------------------------------------------------------------------------


class NewUpload(_Asked):
    """A file that is to come."""

    kind: Literal["safetensors", "onnx", "predictions"]
    size: Annotated[int, Field(ge=1, lt=1 << 53, strict=True, description="in bytes")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="of the whole file")]


class NewSubmission(_Asked):
    """A model, and what it is to be evaluated on."""

    manifest: Annotated[str, Field(max_length=1 << 16, description="TOML, as `pack` writes it")]
    upload: Annotated[
        str | None,
        Field(pattern=r"^[0-9a-f]{16}$", description="id of a complete upload, if there is a file"),
    ] = None
    tasks: Annotated[list[PlainText], Field(max_length=1000)] = []
    suite: Annotated[PlainText, Field(max_length=64)] | None = None
    probes: Annotated[
        list[PlainText], Field(max_length=100, description="empty: all that serve a task")
    ] = []
    anonymous: Annotated[bool, Field(strict=True, description="hide name and authors")] = False
    embargo_until: Annotated[
        str | None,
        Field(max_length=10, description="date from which rows are shown; at most two years"),
    ] = None


class CardChanges(_Asked):
    """Prose of a card; what is left out stays. What decides the features cannot be changed."""

    title: Annotated[PlainText, Field(min_length=1, max_length=200)] | None = None
    authors: Annotated[PlainText, Field(min_length=1, max_length=200)] | None = None
    license: Annotated[PlainText, Field(min_length=1, max_length=200)] | None = None
    pretraining: (
        Annotated[
            list[Annotated[PlainText, Field(min_length=1, max_length=200)]], Field(max_length=100)
        ]
        | None
    ) = None
    source: Annotated[PlainText, Field(max_length=2000)] | None = None
    citation: Annotated[PlainText, Field(max_length=2000)] | None = None
    note: Annotated[PlainText, Field(max_length=2000, description="Markdown")] | None = None


class NewReport(_Asked):
    """What is wrong with the rows of a model."""

    model_sha: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    task: Annotated[PlainText, Field(max_length=64)] | None = None
    kind: Literal["dispute", "leak"]
    text: Annotated[PlainText, Field(min_length=10, max_length=4000)]


class Answer(_Asked):
    """What a maintainer decides about a report."""

    state: Literal["upheld", "rejected"]
    text: Annotated[PlainText, Field(min_length=1, max_length=4000)]


# --- given -------------------------------------------------------------------------------------


class Problem(_Given):
    """Every answer that is no success."""

    error: str
    code: str
    hint: str = ""
    stage: str | None = None
    offset: int | None = None


class UploadState(_Given):
    """How far an upload is."""

    id: str
    kind: str
    size: int
    sha256: str
    offset: Annotated[int, Field(description="where the next chunk starts")]
    state: Literal["open", "complete", "refused", "expired", "deleted"]
    chunk_bytes: Annotated[int, Field(description="the most that one PATCH may hold")]
    expires: Annotated[float, Field(description="seconds since 1970")]
    reason: dict[str, str] | None = None

    @classmethod
    def of(cls, upload: Upload, chunk_bytes: int) -> UploadState:
        """From the database."""
        resting = upload.state == "open"
        return cls(
            id=upload.id,
            kind=upload.kind,
            size=upload.size,
            sha256=upload.sha256,
            offset=upload.received,
            state="expired" if resting and upload.expires <= time.time() else upload.state,
            chunk_bytes=chunk_bytes,
            expires=upload.expires,
            reason=dict(upload.reason) if upload.reason else None,
        )


class QueuePlace(_Given):
    """Where a submission stands."""

    ahead: int
    wait_s: float | None
    workers: int
    held: str = ""


class JobState(_Given):
    """One unit of work."""

    id: int
    kind: str
    data_set: str
    task: str
    probe: str
    state: str
    attempt: int
    code: str | None
    stage: str | None
    message: str | None
    hint: str | None
    created: str
    started: str | None
    ended: str | None
    seconds: float | None

    @classmethod
    def of(cls, job: Job) -> JobState:
        """From the database."""
        return cls(**{name: _shown(getattr(job, name)) for name in cls.model_fields})


class SubmissionState(_Given):
    """What was asked for, and how far it is."""

    id: str
    name: str
    user: str
    kind: str
    state: str
    code: str | None
    stage: str | None
    message: str | None
    hint: str | None
    tasks: list[str]
    probes: list[str]
    upload: str | None
    model_sha: str | None
    duplicate_of: str | None
    anonymous: bool
    embargo_until: str | None
    unsafe_local: bool
    created: str
    updated: str
    place: QueuePlace | None = None
    jobs: list[JobState] = []
    url: str = ""

    @classmethod
    def of(
        cls, found: Submission, url: str, place: Place | None = None, jobs: list[Job] | None = None
    ) -> SubmissionState:
        """From the database."""
        same = set(cls.model_fields) - {"tasks", "probes", "upload", "place", "jobs", "url"}
        return cls(
            **{name: _shown(getattr(found, name)) for name in same},
            tasks=list(found.tasks),
            probes=list(found.probes),
            upload=found.upload_id,
            place=QueuePlace(**vars(place)) if place else None,
            jobs=[JobState.of(job) for job in jobs or ()],
            url=url,
        )


class Submissions(_Given):
    """Several of them, newest first."""

    submissions: list[SubmissionState]


class JobLogs(_Given):
    """The last lines of one unit of work."""

    job: int
    kind: str
    data_set: str
    task: str
    probe: str
    state: str
    attempt: int
    code: str | None
    stage: str | None
    message: str | None
    hint: str | None
    log: str

    @classmethod
    def of(cls, job: Job) -> JobLogs:
        """From the database, cleaned once more: it is read in terminals."""
        same = set(cls.model_fields) - {"job"}
        return cls(job=job.id, **{name: _shown(getattr(job, name)) for name in same})


class Logs(_Given):
    """Of a submission; private to its submitter and the maintainers."""

    id: str
    logs: list[JobLogs]


class CardEdit(_Given):
    """One change of a card."""

    at: str
    by: str
    before: dict[str, Any]
    after: dict[str, Any]

    @classmethod
    def of(cls, edit: Edit) -> CardEdit:
        """From the database."""
        return cls(at=edit.at, by=edit.by, before=dict(edit.before), after=dict(edit.after))


class Edits(_Given):
    """Every change of a card, oldest first."""

    edits: list[CardEdit]


class Allowance(_Given):
    """Of jobs, GPU-hours and bytes."""

    jobs_per_day: float
    gpu_hours_per_month: float
    bytes_kept: float


class Me(_Given):
    """Whose token this is."""

    name: str
    role: str
    scopes: list[str]
    quota: Allowance
    used: Allowance

    @classmethod
    def of(cls, identity: Identity, used: Mapping[str, float]) -> Me:
        """From the database."""
        return cls(
            name=identity.user.name,
            role=identity.user.role,
            scopes=list(identity.scopes),
            quota=Allowance(**vars(identity.user.quota)),
            used=Allowance(
                jobs_per_day=used.get("jobs", 0.0),
                gpu_hours_per_month=used.get("gpu_seconds", 0.0) / 3600,
                bytes_kept=used.get("bytes", 0.0),
            ),
        )


class ReportState(_Given):
    """A dispute or a leak, and what became of it; who reported stays private."""

    id: int
    model_sha: str
    task: str | None
    kind: str
    text: str
    at: str
    state: str
    answer: str | None

    @classmethod
    def of(cls, report: Report) -> ReportState:
        """From the database."""
        return cls(**{name: getattr(report, name) for name in cls.model_fields})


class Reports(_Given):
    """Of one model."""

    reports: list[ReportState]


def _shown(value: Any) -> Any:
    return clean(value) if isinstance(value, str) else value
