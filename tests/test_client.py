"""The client against a server that fails in every way that servers and lines do."""

import logging
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from tomoprobe.benchmark.errors import (
    AccessError,
    ConflictError,
    IntakeError,
    QuotaError,
    ServerError,
    StorageError,
    UnknownNameError,
)
from tomoprobe.submissions import answers, connection, logins
from tomoprobe.submissions.client import Client
from tomoprobe.submissions.upload_files import File, measured

from .submission_server import TOKEN, Server, breaks_off, loses_its_answer, status

SIZE = 1_000_003
"""Sixteen chunks and an odd rest."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def waits() -> list[float]:
    """Seconds that the client would have slept."""
    return []


@pytest.fixture
def client(server: Server, waits: list[float]) -> Iterator[Client]:
    with Client(server.url, TOKEN, sleep=waits.append) as opened:
        yield opened


@pytest.fixture
def file(tmp_path: Path) -> File:
    path = tmp_path / "model.safetensors"
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return measured(path)


def arrived(server: Server, file: File) -> bool:
    return [bytes(kept) for kept in server.bytes.values()] == [file.path.read_bytes()]


# --- upload --------------------------------------------------------------------------------------


def test_a_file_arrives_in_chunks_and_every_byte_once(client, server, file):
    sent: list[int] = []
    id = client.upload(file, "safetensors", sent.append)
    assert server.uploads[id]["state"] == "complete"
    assert arrived(server, file) and server.received == SIZE
    assert server.count("PATCH /api/v1/uploads/") == SIZE // server.chunk_bytes + 1
    assert sent == sorted(sent) and sent[-1] == SIZE


def test_an_upload_that_breaks_at_95_percent_sends_only_what_is_missing(client, server, file):
    whole = SIZE // server.chunk_bytes
    # the 16th of 16 chunks: 95 % are there
    server.faults.append(("PATCH", _after(whole, server, breaks_off(10_000))))
    client.upload(file, "safetensors")
    assert arrived(server, file)
    assert server.received == SIZE


def _after(chunks: int, server: Server, fault: Callable) -> Callable:
    """The fault once so many chunks are there; until then, an honest answer."""

    def maybe(handler) -> None:
        handler.close_connection = False
        if server.received >= (chunks - 1) * server.chunk_bytes:
            fault(handler)
        else:
            server.faults.append(("PATCH", maybe))
            handler.serve()

    return maybe


def test_a_lost_answer_is_no_second_chunk(client, server, file):
    server.fail("PATCH", loses_its_answer, loses_its_answer)
    client.upload(file, "safetensors")
    assert arrived(server, file) and server.received == SIZE


def _dies_before_it_hashes(handler) -> None:
    """Keeps the rest of the file, and is gone before it has looked at it."""
    (upload,) = handler.site.uploads.values()
    handler.site.bytes[upload["id"]] += handler.body()
    upload["offset"] = len(handler.site.bytes[upload["id"]])
    handler.reset()


@pytest.mark.parametrize("again", [False, True], ids=["same client", "another client"])
def test_a_file_that_arrived_whole_in_a_server_that_died_is_finished(client, server, file, again):
    server.chunk_bytes = SIZE
    server.fail("PATCH", _dies_before_it_hashes)
    if again:
        server.fail("GET /api/v1/uploads/", status(401, error="Expired.", code="not-authenticated"))
        with pytest.raises(AccessError):
            client.upload(file, "safetensors")
    id = client.upload(file, "safetensors")
    assert server.uploads[id]["state"] == "complete" and arrived(server, file)
    assert server.received == 0, "nothing was sent twice"


def test_a_server_that_never_ends_an_upload_is_not_asked_for_ever(client, server, file):
    server.chunk_bytes = SIZE
    server.fail("PATCH", _dies_before_it_hashes)
    server.fail("PATCH", *[status(200, state="open", offset=SIZE)] * 50)
    with pytest.raises(ConflictError, match="does not end"):
        client.upload(file, "safetensors")
    assert connection.TRIES <= server.count("PATCH") <= connection.TRIES + 2


def test_another_process_goes_on_where_the_first_was_killed(server, file, tmp_path):
    """Nothing is kept on this side: the server knows the file by its sha256."""
    code = (
        "import sys; from pathlib import Path\n"
        "from tomoprobe.submissions.client import Client\n"
        "from tomoprobe.submissions.upload_files import measured\n"
        "def sent(offset):\n"
        "    print(offset, flush=True)\n"
        "    sys.stdin.readline()\n"
        "Client(sys.argv[1], sys.argv[2]).upload(measured(Path(sys.argv[3])), 'safetensors', sent)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, server.url, TOKEN, str(file.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        text=True,
    )
    with process:
        assert process.stdin and process.stdout
        while server.received < SIZE // 2:
            process.stdout.readline()
            process.stdin.write("\n")
            process.stdin.flush()
        process.kill()
    before = server.received
    assert before < SIZE
    with Client(server.url, TOKEN, sleep=lambda s: time.sleep(0.05)) as client:
        id = client.upload(file, "safetensors")
    assert len(server.uploads) == 1 and server.uploads[id]["state"] == "complete"
    assert arrived(server, file) and server.received == SIZE


def test_a_complete_upload_is_not_sent_again(client, server, file):
    first = client.upload(file, "safetensors")
    assert client.upload(file, "safetensors") == first
    assert server.received == SIZE


def test_a_wrong_offset_is_corrected_by_the_server(client, server, file):
    server.fail("PATCH", status(409, error="Elsewhere.", code="conflict", offset=0))
    client.upload(file, "safetensors")
    assert arrived(server, file)


def test_a_server_that_never_agrees_on_the_offset_ends_in_its_words(client, server, file):
    conflict = status(409, error="Another request is writing.", code="conflict", offset=0)
    server.fail("PATCH", *[conflict] * 50)
    with pytest.raises(ConflictError, match="Another request is writing"):
        client.upload(file, "safetensors")
    assert server.count("PATCH") == connection.TRIES


@pytest.mark.parametrize("code", [502, 503, 504])
def test_a_server_that_restarts_is_waited_for(client, server, file, waits, code):
    server.fail("PATCH", status(code, error="Restarting.", code="restart"))
    server.fail("GET", status(code, error="Restarting.", code="restart"))
    client.upload(file, "safetensors")
    assert arrived(server, file) and len(waits) == 2


def test_a_line_that_drops_every_other_chunk_still_brings_the_file_over(client, server, file):
    def unsteady(handler) -> None:
        server.faults.append(("PATCH", steady))
        handler.reset()

    def steady(handler) -> None:
        handler.close_connection = False
        server.faults.append(("PATCH", unsteady))
        handler.serve()

    server.fail("PATCH", unsteady)
    client.upload(file, "safetensors")
    assert arrived(server, file)


def test_chunks_shrink_where_long_ones_never_arrive(server, tmp_path):
    """Of a chunk that breaks off nothing stays: a line that lasts for 300 KB needs small ones."""
    server.chunk_bytes = 8 << 20
    path = tmp_path / "large.safetensors"
    path.write_bytes(bytes(3 << 20))
    lengths: list[int] = []

    def short(handler) -> None:
        server.faults.append(("PATCH", short))
        handler.close_connection = False
        lengths.append(int(handler.headers["Content-Length"]))
        if lengths[-1] > 300_000:
            handler.rfile.read(300_000)
            handler.reset()
        else:
            handler.serve()

    server.fail("PATCH", short)
    with Client(server.url, TOKEN, sleep=lambda s: None) as client:
        client.upload(measured(path), "safetensors")
    assert arrived(server, measured(path))
    assert max(lengths) == 3 << 20


def test_an_upload_that_has_expired_begins_anew(client, server, file):
    def expire(handler) -> None:
        handler.body()
        for id in list(server.uploads):
            del server.uploads[id], server.bytes[id]
        server.received = 0
        handler.answer(404, {"error": "There is no such upload.", "code": "not-found"})

    server.faults.append(("PATCH", _after(5, server, expire)))
    client.upload(file, "safetensors")
    assert arrived(server, file)


def test_a_file_that_changes_on_the_way_is_refused_with_the_code_of_the_server(
    client, server, file
):
    with file.path.open("r+b") as out:
        out.write(b"other")
    with pytest.raises(IntakeError, match="Another sha256") as caught:
        client.upload(file, "safetensors")
    assert (caught.value.code, caught.value.hint) == ("sha256-mismatch", "Compare.")


def test_a_file_that_becomes_shorter_is_said_so(client, server, file):
    os.truncate(file.path, 1000)
    with pytest.raises(StorageError, match="became shorter"):
        client.upload(file, "safetensors")


def test_a_server_that_kept_another_file_is_not_believed(client, server, file):
    client.upload(file, "safetensors")
    (upload,) = server.uploads.values()

    def lies(handler) -> None:
        handler.answer(200, {**upload, "sha256": "0" * 64})

    server.fail("GET /api/v1/uploads", lies)
    with pytest.raises(ServerError, match="Nothing was submitted"):
        client.upload(file, "safetensors")


# --- errors and patience --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "headers", "kind"),
    [
        (401, {}, AccessError),
        (403, {}, AccessError),
        (404, {}, UnknownNameError),
        (409, {}, ConflictError),
        (413, {}, IntakeError),
        (422, {}, IntakeError),
        (429, {}, QuotaError),
        (429, {"Retry-After": "86400"}, QuotaError),
        (500, {}, ServerError),
        (507, {}, StorageError),
    ],
)
def test_each_answer_is_an_error_of_its_kind_with_the_words_of_the_server(
    client, server, waits, code, headers, kind
):
    body = {"error": "It cannot be.", "code": "some-code", "hint": "Do that.", "stage": "check"}
    server.fail("GET", status(code, headers, **body))
    with pytest.raises(kind, match=r"It cannot be\. Do that\.") as caught:
        client.me()
    assert waits == []
    error = caught.value
    if isinstance(error, AccessError):
        assert error.status == code
    if isinstance(error, IntakeError):
        assert (error.code, error.stage, error.hint) == ("some-code", "check", "Do that.")
    if isinstance(error, QuotaError):
        assert error.retry_after == (86400 if headers else None)


def test_a_token_that_expires_during_an_upload_says_how_to_go_on(client, server, file):
    expired = status(401, error="The token has expired.", code="not-authenticated")
    server.faults.append(("PATCH", _after(5, server, expired)))
    with pytest.raises(AccessError, match=r"has expired\. Log in again: tomoprobe login"):
        client.upload(file, "safetensors")


def test_a_full_disk_ends_the_upload_and_keeps_what_arrived(client, server, file):
    full = status(507, error="The server's disk is full.", code="store-full")
    server.faults.append(("PATCH", _after(5, server, full)))
    with pytest.raises(StorageError, match="disk is full"):
        client.upload(file, "safetensors")
    before = server.received
    assert before > 0
    client.upload(file, "safetensors")
    assert server.received == SIZE


def test_retry_after_is_honoured(client, server, waits):
    server.fail("GET", status(429, {"Retry-After": "7"}, error="Too often.", code="rate"))
    assert client.me()["name"] == "ada"
    assert waits == [7.0]


def test_waits_grow_and_end_in_the_reason(client, server, waits):
    client.me()
    server.fail("GET", *[status(503, error="The database is away.", code="storage")] * 50)
    with pytest.raises(ServerError, match="The database is away"):
        client.me()
    assert server.count("GET") == 1 + connection.TRIES
    for number, seconds in enumerate(waits):
        longest = min(connection.MOST_DELAY, connection.FIRST_DELAY * 2**number)
        assert longest / 2 <= seconds <= longest


def test_an_address_where_nobody_answers_is_told_soon(server, waits):
    port = server.url.rpartition(":")[2]
    server._http.server_close()
    with (
        Client(f"http://127.0.0.1:{port}", TOKEN, sleep=waits.append) as client,
        pytest.raises(ServerError, match="is not reached"),
    ):
        client.me()
    assert len(waits) == connection.FIRST_TRIES - 1


def test_a_page_that_is_no_api_is_said_so(client, server):
    def page(handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html")
        handler.send_header("Content-Length", "6")
        handler.end_headers()
        handler.wfile.write(b"<html>")

    server.fail("GET", page)
    with pytest.raises(ServerError, match="text/html where JSON is expected"):
        client.me()


def test_a_redirect_is_not_followed_because_the_token_is_for_one_server(client, server):
    server.fail("GET", status(302, {"Location": "http://127.0.0.1:9/elsewhere"}))
    with pytest.raises(ServerError, match="sends us elsewhere"):
        client.me()


@pytest.mark.parametrize("text", ["board.example.org", "ftp://a", "https://u:p@a", "https://a?t=1"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ServerError):
        Client(text, TOKEN)


def test_a_date_in_retry_after_is_read():
    head = {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}
    assert answers.retry_after(httpx.Response(503, headers=head)) == 0.0
    assert answers.retry_after(httpx.Response(503, headers={"Retry-After": "soon"})) is None


# --- secrets -------------------------------------------------------------------------------------


def test_the_token_is_in_one_header_and_in_no_address_or_log(client, server, file, caplog):
    caplog.set_level(logging.DEBUG)
    server.fail("PATCH", status(503, error="Later.", code="later"))
    found = client.submit("name = 'm'", client.upload(file, "safetensors"), tasks=["t"])
    list(_ended(client, server, found["id"]))
    assert len(server.asked) > 10
    for _, target, headers in server.asked:
        assert TOKEN not in target
        assert headers.count(TOKEN) == 1 and f"Authorization: Bearer {TOKEN}" in headers
    assert caplog.records
    assert TOKEN not in caplog.text
    assert TOKEN not in repr(vars(client)) and TOKEN not in repr(logins.Login(server.url, TOKEN))


def test_a_token_that_is_none_is_not_sent(server):
    with pytest.raises(AccessError):
        Client(server.url, "tmp_\nX-Admin: 1")
    assert server.asked == []


# --- submissions ---------------------------------------------------------------------------------


def _ended(client: Client, server: Server, id: str) -> Iterator[dict]:
    server.states[id] = deque([{"state": "checking"}, {"state": "evaluating"}, {"state": "done"}])
    yield from client.follow(id)


def test_a_submission_whose_answer_is_lost_is_found_and_not_made_twice(client, server, file):
    upload = client.upload(file, "safetensors")
    old = client.submit("name = 'm'", upload, tasks=["other"])
    server.fail("POST /api/v1/submissions", loses_its_answer)
    found = client.submit("name = 'm'", upload, tasks=["t"])
    assert len(server.submissions) == 2 and found["id"] != old["id"]


def test_a_submission_that_never_arrived_is_made(client, server, file):
    upload = client.upload(file, "safetensors")
    server.fail("POST /api/v1/submissions", breaks_off(10))
    assert client.submit("name = 'm'", upload)["id"] in server.submissions
    assert len(server.submissions) == 1


def test_following_tells_each_change_until_the_end(client, server):
    id = client.submit("name = 'm'", None, tasks=["t"])["id"]
    seen = [found["state"] for found in _ended(client, server, id)]
    assert seen == ["queued", "checking", "evaluating", "done"]


def test_following_goes_on_over_a_broken_line_and_a_restart(client, server):
    id = client.submit("name = 'm'", None, tasks=["t"])["id"]
    server.states[id] = deque([{"state": "checking", "broken": True}, {"state": "done"}])
    server.fail("GET .*/events", status(503, error="Restarting.", code="restart"))
    assert [f["state"] for f in client.follow(id)] == ["queued", "checking", "done"]


def test_the_page_of_a_submission_has_a_whole_address(client, server):
    found = client.submit("name = 'm'", None, tasks=["t"])
    assert client.submission(found["id"])["url"] == f"{server.url}/submissions/{found['id']}"


@pytest.mark.parametrize("action", ["cancel", "withdraw"])
def test_what_was_done_although_its_answer_was_lost_is_no_conflict(client, server, action):
    id = client.submit("name = 'm'", None)["id"]
    server.fail(f"POST .*/{action}", loses_its_answer)
    assert getattr(client, action)(id)["state"] in ("cancelled", "withdrawn")
    with pytest.raises(ConflictError, match="already"):
        getattr(client, action)(id)


@pytest.mark.parametrize(
    "id", ["../me", "..", "", "a b", "x?everybody=1", "0" * 15 + "/", "A" * 16]
)
def test_what_is_no_id_never_reaches_the_server(client, server, id):
    with pytest.raises(UnknownNameError, match="tomoprobe status"):
        client.submission(id)
    assert server.asked == []


# --- logins --------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of configuration, and no login in the environment."""
    monkeypatch.setattr(logins, "user_config_dir", lambda *a, **k: str(tmp_path / "config" / "t"))
    monkeypatch.delenv(logins.SERVER, raising=False)
    monkeypatch.delenv(logins.TOKEN, raising=False)
    return tmp_path / "config" / "t" / "login.json"


def test_a_login_is_stored_for_its_owner_alone(config):
    old = os.umask(0)
    try:
        assert logins.store(logins.Login("https://a.org", TOKEN)) == config
    finally:
        os.umask(old)
    assert config.stat().st_mode & 0o777 == 0o600
    assert config.parent.stat().st_mode & 0o777 == 0o700
    assert logins.current() == logins.Login("https://a.org", TOKEN)
    logins.store(logins.Login("https://b.org", TOKEN))
    assert logins.current().server == "https://b.org"
    assert list(config.parent.iterdir()) == [config]


def test_a_login_that_others_may_read_is_not_used(config):
    logins.store(logins.Login("https://a.org", TOKEN))
    config.chmod(0o640)
    with pytest.raises(AccessError, match="chmod 600") as caught:
        logins.current()
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '{"server": "https://a.org"}', "{", "\xff"])
def test_a_file_that_holds_no_login_says_what_to_do(config, text):
    config.parent.mkdir(parents=True)
    config.write_text(text, encoding="latin-1")
    config.chmod(0o600)
    with pytest.raises(AccessError, match="tomoprobe login"):
        logins.current()


def test_the_environment_wins_over_the_file(config, monkeypatch):
    logins.store(logins.Login("https://a.org", "tmp_old"))
    monkeypatch.setenv(logins.TOKEN, "tmp_new")
    assert logins.current() == logins.Login("https://a.org", "tmp_new")
    monkeypatch.setenv(logins.SERVER, "https://b.org/")
    assert logins.current() == logins.Login("https://b.org", "tmp_new")


def test_a_stored_token_is_never_sent_to_another_server(config, monkeypatch):
    logins.store(logins.Login("https://a.org", TOKEN))
    monkeypatch.setenv(logins.SERVER, "https://b.org")
    with pytest.raises(AccessError, match=r"stored token is for https://a\.org"):
        logins.current()


def test_without_a_login_the_error_says_how_to_log_in(config):
    with pytest.raises(AccessError, match="tomoprobe login"):
        logins.current()
