"""A small server of the submission API on loopback, whose faults are chosen by the test."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

TOKEN = "tmp_" + "s3cret" * 7 + "x"

Fault = Callable[["_Handler"], None]
"""What happens instead of an answer."""


def status(number: int, headers: dict[str, str] | None = None, /, **body: object) -> Fault:
    """An answer of this status."""

    def fault(handler: _Handler) -> None:
        handler.body()
        handler.close_connection = False
        handler.answer(number, body, headers)

    return fault


def breaks_off(after: int) -> Fault:
    """Reads so many bytes of the body, then drops the connection; nothing of them is kept."""

    def fault(handler: _Handler) -> None:
        handler.rfile.read(after)
        handler.reset()

    return fault


def loses_its_answer(handler: _Handler) -> None:
    """Does what was asked, but the answer does not arrive."""
    handler.answers = False
    handler.serve()
    handler.reset()


class Server:
    """Uploads and submissions in memory; ``faults`` are used up one per matching request."""

    chunk_bytes = 1 << 16

    def __init__(self) -> None:
        self.uploads: dict[str, dict[str, Any]] = {}
        self.bytes: dict[str, bytearray] = {}
        self.submissions: dict[str, dict[str, Any]] = {}
        self.states: dict[str, deque[dict[str, Any]]] = {}
        """What becomes of a submission, told one by one by its stream of events."""
        self.asked: list[tuple[str, str, str]] = []
        """Method, whole target, and every header as text."""
        self.bodies: list[Any] = []
        self.faults: list[tuple[str, Fault]] = []
        self.received = 0
        """Bytes of chunks that were kept."""
        server = self

        class Handler(_Handler):
            site = server

        self._http = _Quiet(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(10)

    def fail(self, pattern: str, *faults: Fault) -> None:
        """The next requests whose ``METHOD /path`` matches end in these faults, one each."""
        self.faults += [(pattern, fault) for fault in faults]

    def count(self, pattern: str) -> int:
        """Requests so far whose ``METHOD /path`` matches."""
        return sum(bool(re.search(pattern, f"{m} {path}")) for m, path, _ in self.asked)


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no news."""


class _Handler(BaseHTTPRequestHandler):
    site: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    answers = True

    def log_message(self, format: str, *args: object) -> None: ...

    def _any(self) -> None:
        self.answers = True
        site = self.site
        site.asked.append((self.command, self.path, str(self.headers)))
        for i, (pattern, fault) in enumerate(site.faults):
            if re.search(pattern, f"{self.command} {self.path}"):
                del site.faults[i]
                self.close_connection = True
                fault(self)
                return
        self.serve()

    do_GET = do_POST = do_PATCH = do_DELETE = _any

    def reset(self) -> None:
        """Drop the connection, as a cable does that is pulled."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def answer(self, code: int, body: object, headers: dict[str, str] | None = None) -> None:
        if not self.answers:
            return
        data = json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    # --- routes ----------------------------------------------------------------------------------

    def serve(self) -> None:
        data = self.body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "The token is not valid.", "code": "not-authenticated"})
            return
        parts = self.path.removeprefix("/api/v1/").split("/")
        match self.command, parts:
            case "GET", ["me"]:
                self.answer(200, {"name": "ada", "role": "submitter"})
            case "POST", ["uploads"]:
                self.open_upload(json.loads(data))
            case "GET", ["uploads", id] if id in self.site.uploads:
                self.answer(200, self.site.uploads[id])
            case "PATCH", ["uploads", id] if id in self.site.uploads:
                self.take(self.site.uploads[id], data)
            case "POST", ["submissions"]:
                self.submit(json.loads(data))
            case "GET", ["submissions"]:
                self.answer(200, {"submissions": list(self.site.submissions.values())[::-1]})
            case "GET", ["submissions", id] if id in self.site.submissions:
                self.answer(200, self.site.submissions[id])
            case "GET", ["submissions", id, "events"] if id in self.site.submissions:
                self.events(id)
            case "GET", ["submissions", id, "logs"] if id in self.site.submissions:
                self.answer(200, {"id": id, "logs": self.site.submissions[id].get("logs", [])})
            case "POST", ["submissions", id, ("cancel" | "withdraw") as action]:
                self.end(self.site.submissions[id], action)
            case "PATCH", ["submissions", id, "card"]:
                self.site.bodies.append(json.loads(data))
                self.answer(200, self.site.submissions[id])
            case _:
                self.answer(404, {"error": f"There is no {self.path}.", "code": "not-found"})

    def open_upload(self, asked: dict[str, Any]) -> None:
        for known in self.site.uploads.values():
            same = all(known[k] == asked[k] for k in ("kind", "size", "sha256"))
            if same and known["state"] in ("open", "complete"):
                self.answer(201, known)
                return
        id = f"{len(self.site.uploads):016x}"
        self.site.uploads[id] = {
            "id": id,
            **asked,
            "offset": 0,
            "state": "open",
            "chunk_bytes": self.site.chunk_bytes,
            "expires": time.time() + 3600,
            "reason": None,
        }
        self.site.bytes[id] = bytearray()
        self.answer(201, self.site.uploads[id])

    def take(self, upload: dict[str, Any], data: bytes) -> None:
        if int(self.headers["Upload-Offset"]) != upload["offset"] or upload["state"] != "open":
            said = f"The upload goes on at byte {upload['offset']}."
            self.answer(409, {"error": said, "code": "conflict", "offset": upload["offset"]})
            return
        assert len(data) <= self.site.chunk_bytes
        kept = self.site.bytes[upload["id"]]
        kept += data
        self.site.received += len(data)
        upload["offset"] = len(kept)
        if len(kept) == upload["size"]:
            if hashlib.sha256(kept).hexdigest() == upload["sha256"]:
                upload["state"] = "complete"
            else:
                why = {"code": "sha256-mismatch", "message": "Another sha256.", "hint": "Compare."}
                upload |= {"state": "refused", "reason": why}
                self.answer(
                    422, {"error": why["message"], "code": why["code"], "hint": why["hint"]}
                )
                return
        self.answer(200, upload)

    def submit(self, asked: dict[str, Any]) -> None:
        self.site.bodies.append(asked)
        id = f"{len(self.site.submissions) + 0xA0:016x}"
        self.site.submissions[id] = {
            "id": id,
            "name": "my_model",
            "kind": "weights",
            "state": "queued",
            "upload": asked["upload"],
            "tasks": asked["tasks"],
            "created": "2026-11-23T05:56:00Z",
            "place": {"ahead": 2, "wait_s": 200.0, "workers": 1},
            "jobs": [],
            "url": f"/submissions/{id}",
        }
        self.answer(201, self.site.submissions[id])

    def end(self, found: dict[str, Any], action: str) -> None:
        reached = {"cancel": "cancelled", "withdraw": "withdrawn"}[action]
        if found["state"] == reached:
            self.answer(409, {"error": f"It is {reached} already.", "code": "conflict"})
            return
        found["state"] = reached
        self.answer(200, found)

    def events(self, id: str) -> None:
        """Each change that is planned, and the end of the stream after it."""
        found, planned = self.site.submissions[id], self.site.states.get(id, deque())
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"retry: 3000\n\n")
        while planned:
            found |= planned.popleft()
            broken = found.pop("broken", False)
            self.wfile.write(f": \nevent: state\ndata: {json.dumps(found)}\n\n".encode())
            self.wfile.flush()
            if broken:
                self.reset()
                return
        self.close_connection = True
