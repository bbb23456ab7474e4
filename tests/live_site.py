"""A whole site on a free port of this machine, and what its tests send to it."""

import hashlib
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn
from sqlalchemy import Engine

from tomoprobe.leaderboard import accounts, db
from tomoprobe.leaderboard.settings import Current, Settings
from tomoprobe.submissions.api_models import MANIFEST
from tomoprobe.submissions.configuration import Configuration
from tomoprobe.submissions.site import create_site

SETTINGS = Settings(
    suites={"smoke": ["smoke_lesion", "smoke_ventricles"]},
    tasks={name: Current(1) for name in ("smoke_lesion", "smoke_ventricles", "sarcoma_ct_sex")},
    probes={"linear": Current(1), "knn": Current(1)},
)


NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Trusts nobody. Without it each client would read the certificates of the machine, for nothing."""


def ask(method: str, address: str, **given) -> httpx.Response:
    """One request, without a token or a cookie."""
    return httpx.request(method, address, verify=NO_TLS, timeout=30, **given)


@dataclass
class Live:
    """A site that runs, its database, and a token for each of its users."""

    address: str
    engine: Engine
    store: Path
    tokens: dict[str, str]

    def client(self, user: str = "alice", secret: str = "") -> httpx.Client:
        """Of the API, with the token of a user."""
        headers = {"Authorization": f"Bearer {secret or self.tokens[user]}"}
        return httpx.Client(
            base_url=f"{self.address}/api/v1", headers=headers, timeout=30, verify=NO_TLS
        )

    @contextmanager
    def browser(self, user: str | None = "alice") -> Iterator[httpx.Client]:
        """With the cookie of a user who has logged in; follows no redirect."""
        with httpx.Client(base_url=self.address, timeout=30, verify=NO_TLS) as client:
            if user is not None:
                answer = client.post("/login", data={"token": self.tokens[user]})
                assert answer.status_code == 303
            yield client


@contextmanager
def running(folder: Path, url: str | None = None, **configured) -> Iterator[Live]:
    """A site with the users alice and bob (submitters), ruth (reader) and mia (maintainer)."""
    engine = db.connect(url or f"sqlite:///{folder / 'site.db'}")
    db.migrate(engine)
    tokens = {}
    for name, role in {
        "alice": "submitter",
        "bob": "submitter",
        "ruth": "reader",
        "mia": "maintainer",
    }.items():
        accounts.add_user(
            engine, name, role, quota=accounts.Quota(jobs_per_day=1000, bytes_kept=1 << 24)
        )
        scopes = accounts.SCOPES[: accounts.ROLES.index(role) + 1]
        tokens[name], _ = accounts.issue_token(engine, name, scopes)
    configuration = Configuration(
        **{"store": folder / "uploads", "free_bytes": 0, "requests_per_minute": 100_000}
        | {"requests_per_minute_and_address": 100_000}
        | configured
    )
    app = create_site(engine, SETTINGS, configuration)
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=1)
    )
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.02)
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        yield Live(address, engine, configuration.store_folder, tokens)
        server.should_exit = True
        thread.join(10)
    engine.dispose()


def safetensors(count: int = 1000, name: str = "weight") -> bytes:
    """A file with one tensor of so many float32."""
    header = json.dumps(
        {name: {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}
    ).encode()
    body = b"".join(struct.pack("<f", i % 97) for i in range(count))
    return struct.pack("<Q", len(header)) + header + body


def announcement(data: bytes, kind: str = "safetensors") -> dict:
    return {"kind": kind, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def send(client: httpx.Client, data: bytes, kind: str = "safetensors", chunk: int = 1 << 30):
    """Announce a file and send it; gives the last answer."""
    opened = client.post("/uploads", json=announcement(data, kind))
    assert opened.status_code == 201, opened.text
    offset, answer = 0, opened
    while offset < len(data):
        answer = patch(client, opened.json()["id"], offset, data[offset : offset + chunk])
        if answer.status_code != 200:
            return answer
        offset = answer.json()["offset"]
    return answer


def patch(client: httpx.Client, id: str, offset: int, data: bytes) -> httpx.Response:
    return client.patch(f"/uploads/{id}", content=data, headers={"Upload-Offset": str(offset)})


def with_weights(data: bytes) -> str:
    """The manifest of the examples, for a file instead of a seed."""
    sha = hashlib.sha256(data).hexdigest()
    plain = MANIFEST.replace("seed = 1\n", "")
    return f'{plain}\n[weights]\nfile = "model.safetensors"\nsha256 = "{sha}"\n'
