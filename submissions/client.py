"""What a submitter asks of a server: upload, submit, follow, cancel, withdraw, edit."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Self
from urllib.parse import urljoin

from ..benchmark.errors import (
    ConflictError,
    IntakeError,
    ServerError,
    UnknownNameError,
)
from .answers import Unreached
from .connection import Connection
from .upload_files import File, pieces
from .upload_files import opened as opened_file

FINAL = frozenset({"done", "failed", "cancelled", "withdrawn", "duplicate"})
"""States in which nothing more happens by itself."""

_ID = re.compile("[0-9a-f]{16}")
"""Of uploads and submissions."""

_LEAST_CHUNK, _MOST_CHUNK = 1 << 18, 64 << 20
"""Bytes of a chunk, within what the server takes. It is halved when the line breaks, so that also
one that never lasts for long brings something over, and doubled when a chunk has arrived."""

_POLL = 3.0
"""Seconds from the end of a stream of events to the next question."""


class Client:
    """A user of a server. Use it as a context manager, or close it.

    Args:
        base_url: of the site.
        token: of the user, shown once when it was issued.
        sleep: how to wait, in seconds.
        told: hears, while something is tried again, what happened and how many seconds are waited.

    Every method raises the `TomoprobeError` that the server's answer amounts to: AccessError,
    QuotaError, ConflictError, IntakeError (with code and hint), UnknownNameError, StorageError, or
    ServerError when the server is not reached or makes no sense.
    """

    def __init__(
        self,
        base_url: str,
        token: str,
        *,
        sleep: Callable[[float], None] = time.sleep,
        told: Callable[[str, float], None] = lambda what, seconds: None,
    ) -> None:
        self._connection = Connection(base_url, token, sleep=sleep, told=told)
        self._sleep = sleep

    @property
    def base_url(self) -> str:
        """Of the site, without a final slash."""
        return self._connection.base_url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def me(self) -> dict[str, Any]:
        """Who this token is, its scopes, and what is used of the quotas."""
        return self._connection.request("GET", "/me")

    # --- upload ----------------------------------------------------------------------------------

    def upload(
        self, file: File, kind: str, sent: Callable[[int], None] = lambda offset: None
    ) -> str:
        """Bring a file to the server, from where an earlier attempt ended; gives the upload's id.

        What is there is the server's knowledge: it is asked after every failure, and opening an
        upload of the same sha256 again gives the one that is under way.

        Args:
            file: as `measured`.
            kind: ``"safetensors"``, ``"onnx"`` or ``"predictions"``.
            sent: hears how many bytes are on their way or there; less again after a failure.

        Raises:
            IntakeError: the server refuses the file, or it has changed meanwhile.
        """
        backoff = self._connection.backoff()
        opened = self._open(file, kind)
        offset, most, chunk = int(opened["offset"]), 0, _MOST_CHUNK
        with opened_file(file.path) as source:
            # whole but open: the server ended before it had looked at it, which a chunk of no
            # bytes has it do again
            while offset < file.size or opened["state"] == "open":
                sent(offset)
                size = min(chunk, int(opened["chunk_bytes"]), file.size - offset)
                try:
                    opened = {**opened, **self._send(opened["id"], source, offset, size, sent)}
                    offset = int(opened["offset"])
                    if not size and opened["state"] == "open":
                        raise ConflictError(
                            f"{self.base_url} has all bytes of {file.path}, but does not end the "
                            "upload. Run the same command again, or tell its operator."
                        )
                except (Unreached, ConflictError) as error:
                    backoff.wait(error)
                    # of a chunk that did not arrive whole, nothing may be kept
                    chunk = max(_LEAST_CHUNK, size // 2)
                    opened = self._resumed(opened["id"], file, kind)
                    offset = int(opened["offset"])
                except UnknownNameError as error:  # it has expired meanwhile
                    backoff.wait(error)
                    opened = self._open(file, kind)
                    offset = int(opened["offset"])
                else:
                    chunk = min(_MOST_CHUNK, chunk * 2)
                if offset > most:
                    most = offset
                    backoff.reset()
        sent(offset)
        self._check_arrived(opened["id"], file)
        return opened["id"]

    def _send(
        self, id: str, source: BinaryIO, offset: int, size: int, sent: Callable[[int], None]
    ) -> dict[str, Any]:
        """One chunk; gives the upload after it."""
        return self._connection.once(
            "PATCH",
            f"/uploads/{_part(id)}",
            content=pieces(source, offset, size, sent),
            headers={
                "Upload-Offset": str(offset),
                "Content-Type": "application/offset+octet-stream",
                "Content-Length": str(size),
            },
        )

    def _open(self, file: File, kind: str) -> dict[str, Any]:
        """Twice the same is one upload, so it may be tried again."""
        asked = {"kind": kind, "size": file.size, "sha256": file.sha256}
        return self._connection.request("POST", "/uploads", json=asked)

    def _resumed(self, id: str, file: File, kind: str) -> dict[str, Any]:
        """The upload as the server has it, or a new one."""
        try:
            found = self._connection.request("GET", f"/uploads/{_part(id)}")
        except UnknownNameError:
            found = self._open(file, kind)
        if found["state"] == "refused":
            raise _refused(found)
        if found["state"] in ("expired", "deleted"):
            found = self._open(file, kind)
        return found

    def _check_arrived(self, upload: str, file: File) -> None:
        """The server has read the file again and found the same sha256."""
        found = self._connection.request("GET", f"/uploads/{_part(upload)}")
        if found["state"] != "complete":
            raise _refused(found)
        if found["sha256"] != file.sha256:
            raise ServerError(
                f"The server has a file of sha256 {found['sha256']}, but {file.path} has "
                f"{file.sha256}. Nothing was submitted: run the same command again."
            )

    # --- submissions -----------------------------------------------------------------------------

    def submit(
        self,
        manifest: str,
        upload: str | None,
        *,
        tasks: Sequence[str] = (),
        suite: str | None = None,
        probes: Sequence[str] = (),
        anonymous: bool = False,
        embargo_until: str | None = None,
    ) -> dict[str, Any]:
        """Submit what was uploaded; gives the submission.

        Args:
            manifest: TOML, as text.
            upload: id; None for a random initialisation or a model without weights.
            tasks: names.
            suite: name of a set of tasks; instead of, or besides, ``tasks``.
            probes: names; none means all that serve the tasks.
            anonymous: hide the name and the authors.
            embargo_until: date (YYYY-MM-DD) before which nobody else sees the rows.
        """
        asked = {
            "manifest": manifest,
            "upload": upload,
            "tasks": list(tasks),
            "suite": suite,
            "probes": list(probes),
            "anonymous": anonymous,
            "embargo_until": embargo_until,
        }
        known = {found["id"] for found in self.submissions()}
        backoff = self._connection.backoff()
        while True:
            try:
                return self._seen(self._connection.once("POST", "/submissions", json=asked))
            except Unreached as error:
                backoff.wait(error)
                if not error.arrived:
                    continue
                # a quota is at stake: look whether it is there before asking again
                for found in self.submissions():
                    if found["id"] not in known and found["upload"] == upload:
                        return found

    def submissions(self) -> list[dict[str, Any]]:
        """One's own, newest first."""
        found = self._connection.request("GET", "/submissions")["submissions"]
        return [self._seen(one) for one in found]

    def submission(self, id: str) -> dict[str, Any]:
        """Its state, reason, place in the queue and units."""
        return self._seen(self._connection.request("GET", f"/submissions/{_part(id)}"))

    def _seen(self, found: dict[str, Any]) -> dict[str, Any]:
        """With the whole address of its page; a server may not know its own."""
        return {**found, "url": urljoin(self.base_url, found.get("url") or "")}

    def logs(self, id: str) -> list[dict[str, Any]]:
        """The last lines of its units."""
        return self._connection.request("GET", f"/submissions/{_part(id)}/logs")["logs"]

    def cancel(self, id: str) -> dict[str, Any]:
        """Stop it; what is stored already stays."""
        return self._act(id, "cancel", "cancelled")

    def withdraw(self, id: str) -> dict[str, Any]:
        """Take its rows off the board."""
        return self._act(id, "withdraw", "withdrawn")

    def _act(self, id: str, action: str, reached: str) -> dict[str, Any]:
        backoff = self._connection.backoff()
        while True:
            try:
                self._connection.once("POST", f"/submissions/{_part(id)}/{action}")
                return self.submission(id)
            except Unreached as error:
                backoff.wait(error)
                found = self.submission(id)
                if found["state"] == reached:  # it had arrived
                    return found

    def edit(self, id: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change fields of its card; the history stays. Gives the submission."""
        self._connection.request("PATCH", f"/submissions/{_part(id)}/card", json=dict(changes))
        return self.submission(id)

    def follow(self, id: str) -> Iterator[dict[str, Any]]:
        """The submission, again whenever it has changed, until nothing more happens by itself.

        Goes on over broken connections and restarts of the server.
        """
        last = None
        while True:
            for found in self._states(id):
                if found != last:
                    yield found
                    last = found
                if found["state"] in FINAL:
                    return
            self._sleep(_POLL)

    def _states(self, id: str) -> Iterator[dict[str, Any]]:
        """As it is now, then as the stream of events tells it for as long as that is to be had."""
        yield self.submission(id)
        path, headers = f"/submissions/{_part(id)}/events", {"Accept": "text/event-stream"}
        try:
            with self._connection.stream("GET", path, headers=headers) as response:
                for line in response.iter_lines():
                    if line.startswith("data:"):
                        yield self._seen(_event(line))
        except Unreached:
            return  # the next question has the patience


# --- helpers -------------------------------------------------------------------------------------


def _part(id: str) -> str:
    """An id as a part of a path, whatever was typed."""
    if not _ID.fullmatch(id):
        raise UnknownNameError(
            f"'{id}' is no id: 16 hexadecimal digits are expected. 'tomoprobe status' lists yours."
        )
    return id


def _event(line: str) -> dict[str, Any]:
    try:
        return json.loads(line.removeprefix("data:"))
    except ValueError as error:
        raise ServerError(f"An event of the server is no JSON ({error}).") from error


def _refused(upload: Mapping[str, Any]) -> IntakeError:
    reason = upload.get("reason") or {}
    return IntakeError(
        str(reason.get("code") or "upload-incomplete"),
        str(reason.get("message") or f"The upload is '{upload.get('state')}', not complete."),
        stage="upload",
        hint=str(reason.get("hint") or "Run the same command again."),
    )
