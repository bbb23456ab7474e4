"""What went wrong, as an answer of HTTP: one place for status, code and words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from ..benchmark.errors import (
    AccessError,
    ConflictError,
    IntakeError,
    ManifestError,
    QuotaError,
    StorageError,
    TomoprobeError,
    UnknownNameError,
)
from ..leaderboard.view import ParameterError
from .api_models import Problem
from .job_log import clean
from .upload_store import StoreFullError

_FAULTS_SHOWN = 5


class Told(NamedTuple):
    """An answer."""

    status: int
    title: str
    """Of a page."""
    problem: Problem
    headers: Mapping[str, str]

    @property
    def body(self) -> dict[str, Any]:
        """As JSON."""
        return self.problem.model_dump(exclude_none=True)


def told(error: Exception) -> Told | None:
    """How to answer; None for what is no fault of the visitor, nor known."""
    match error:
        case IntakeError():
            status = 413 if error.code == "too-large" else 422
            problem = _problem(error.message, error.code, error.hint, stage=error.stage)
            return Told(status, "This cannot be taken", problem, {})
        case AccessError():
            if error.status == 403:
                return _told(403, "Not allowed", error, "not-allowed")
            headers = {"WWW-Authenticate": "Bearer"}
            return _told(401, "Not logged in", error, "not-authenticated", headers)
        case QuotaError():
            headers = (
                {}
                if error.retry_after is None
                else {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
            )
            return _told(429, "Too much or too often", error, "quota", headers)
        case ConflictError():
            problem = _problem(str(error), "conflict", offset=error.offset)
            return Told(409, "Not in this state", problem, {})
        case ManifestError():
            return _told(422, "This cannot be taken", error, "manifest-invalid")
        case ParameterError():
            return _told(400, "The board does not know that", error, "parameter")
        case UnknownNameError():
            return _told(404, "Not found", error, "not-found")
        case StoreFullError():
            return _told(507, "No room", error, "store-full")
        case StorageError():
            return _told(503, "The database cannot be read", error, "storage")
        case RequestValidationError():
            problem = _problem(_faults(error), "invalid-request", "See /api/v1/openapi.json.")
            return Told(422, "This cannot be taken", problem, {})
        case HTTPException():
            return _of_http(error)
        case TomoprobeError():
            return _told(400, "That does not work", error, "refused")
    return None


def _told(
    status: int, title: str, error: Exception, code: str, headers: Mapping[str, str] | None = None
) -> Told:
    return Told(status, title, _problem(str(error), code), headers or {})


def _problem(
    message: str, code: str, hint: str = "", stage: str | None = None, offset: int | None = None
) -> Problem:
    return Problem(error=clean(message), code=code, hint=clean(hint), stage=stage, offset=offset)


def _of_http(error: HTTPException) -> Told:
    codes = {404: "not-found", 405: "method", 413: "too-large", 400: "invalid-request"}
    code = codes.get(error.status_code, f"http-{error.status_code}")
    said = str(error.detail)
    problem = _problem(said if said.endswith(".") else f"{said}.", code)
    return Told(error.status_code, said.rstrip("."), problem, error.headers or {})


def _faults(error: RequestValidationError) -> str:
    """What pydantic found, without what was sent."""
    faults = []
    for fault in error.errors()[:_FAULTS_SHOWN]:
        where = ".".join(str(part) for part in fault["loc"] if part != "body") or "the body"
        faults.append(f"{where[:100]}: {fault['msg'].removeprefix('Value error, ')}")
    more = len(error.errors()) - len(faults)
    return "; ".join(faults) + (f"; and {more} more" if more > 0 else "") + "."
