"""Uploads and submissions over HTTP: who may do what, and what is left when something breaks."""

import asyncio
import hashlib
import json
import os
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import httpx
import pytest
import sqlalchemy as sa

from tomoprobe.benchmark.errors import IntakeError, StorageError
from tomoprobe.leaderboard import accounts, queue, uploads
from tomoprobe.leaderboard.intake_tables import UPLOADS
from tomoprobe.submissions import api, headers, receiving, upload_store
from tomoprobe.submissions.api_models import MANIFEST
from tomoprobe.submissions.upload_store import Part, UploadStore

from .board_data import add, result, sha
from .live_site import announcement, ask, patch, running, safetensors, send, with_weights

DAY_S = 24 * 60 * 60


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    with running(tmp_path_factory.mktemp("site"), chunk_bytes=1 << 20) as site:
        yield site


@pytest.fixture
def alice(live):
    with live.client("alice") as client:
        yield client


@pytest.fixture
def bob(live):
    with live.client("bob") as client:
        yield client


def files(live) -> list[str]:
    return sorted(path.name for path in live.store.iterdir()) if live.store.exists() else []


def refused(answer: httpx.Response, status: int, code: str) -> dict:
    told = answer.json()
    assert (answer.status_code, told["code"]) == (status, code), answer.text
    assert told["error"]
    return told


# --- who asks


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer tmp_" + "A" * 43,
        "Bearer tmp_" + "A" * 4000,
        "Basic dXNlcjpwYXNz",
        "Bearer ' OR 1=1 --",
        "Bearer tmp_\x80\xff",
    ],
)
def test_without_a_valid_token_nothing_is_told(live, header):
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    for path in ("/me", "/submissions", "/submissions/0123456789abcdef", "/uploads/" + "0" * 16):
        answer = ask("GET", f"{live.address}/api/v1{path}", headers=headers)
        refused(answer, 401, "not-authenticated")
        assert answer.headers["www-authenticate"] == "Bearer"


def test_a_token_ends_when_it_expires_or_is_revoked_or_its_user_is(live):
    accounts.add_user(live.engine, "carol", "submitter")
    past, _ = accounts.issue_token(live.engine, "carol", ["read"], 1, now=time.time() - 2 * DAY_S)
    revoked, token = accounts.issue_token(live.engine, "carol", ["read"])
    kept, _ = accounts.issue_token(live.engine, "carol", ["read"])

    def me(secret):
        headers = {"Authorization": f"Bearer {secret}"}
        return ask("GET", f"{live.address}/api/v1/me", headers=headers)

    assert "expired" in refused(me(past), 401, "not-authenticated")["error"]
    assert me(revoked).status_code == 200
    accounts.revoke_token(live.engine, token.id)
    refused(me(revoked), 401, "not-authenticated")
    assert me(kept).json()["name"] == "carol"
    accounts.revoke_user(live.engine, "carol")
    refused(me(kept), 401, "not-authenticated")


def test_a_token_allows_what_its_scope_says_and_no_more(live):
    with live.client("ruth") as ruth:
        assert ruth.get("/submissions").status_code == 200
        refused(ruth.post("/uploads", json=announcement(b"x" * 9)), 403, "not-allowed")
        refused(ruth.post("/submissions", json={"manifest": MANIFEST}), 403, "not-allowed")
        refused(ruth.get("/submissions?everybody=true"), 403, "not-allowed")
    weak, _ = accounts.issue_token(live.engine, "mia", ["read"])
    headers = {"Authorization": f"Bearer {weak}"}
    answer = ask("GET", f"{live.address}/api/v1/submissions?everybody=true", headers=headers)
    refused(answer, 403, "not-allowed")


@pytest.mark.parametrize("where", ["/api/v1/me?token={}", "/?access_token={}", "/{}", "/x?a=%20{}"])
def test_an_address_with_a_token_is_refused_even_if_it_is_valid(live, where):
    answer = ask("GET", live.address + where.format(live.tokens["alice"]))
    assert answer.status_code == 403
    assert "revoked" in answer.text
    assert live.tokens["alice"] not in answer.text


def test_a_token_in_the_query_logs_nobody_in(live):
    answer = ask("GET", f"{live.address}/api/v1/me?authorization=Bearer+x&token=x")
    refused(answer, 401, "not-authenticated")


# --- uploads


def test_a_file_in_chunks_arrives_whole_under_a_name_of_the_server(live, alice):
    data = safetensors(70_000)
    answer = send(alice, data, chunk=100_000)
    assert answer.json()["state"] == "complete"
    upload = uploads.stored(live.engine, answer.json()["id"])
    assert (live.store / upload.file).read_bytes() == data
    assert (live.store / upload.file).stat().st_mode & 0o077 == 0
    assert alice.get(f"/uploads/{upload.id}").json()["offset"] == len(data)


def test_the_same_file_announced_again_goes_on_where_it_was(alice):
    data = safetensors(5001)
    opened = alice.post("/uploads", json=announcement(data)).json()
    assert patch(alice, opened["id"], 0, data[:7000]).json()["offset"] == 7000
    again = alice.post("/uploads", json=announcement(data)).json()
    assert (again["id"], again["offset"]) == (opened["id"], 7000)
    done = patch(alice, opened["id"], 7000, data[7000:]).json()
    assert done["state"] == "complete"
    assert alice.post("/uploads", json=announcement(data)).json()["state"] == "complete"


@pytest.mark.parametrize("offset", [0, 1999, 2001, 10**12])
def test_a_chunk_at_a_wrong_offset_is_answered_with_the_right_one(alice, offset):
    data = safetensors(5002)
    opened = alice.post("/uploads", json=announcement(data)).json()
    if opened["offset"] == 0:
        patch(alice, opened["id"], 0, data[:2000])
    told = refused(patch(alice, opened["id"], offset, data[offset:][:100]), 409, "conflict")
    assert told["offset"] == 2000


def test_more_bytes_than_declared_are_refused_while_they_come(live, alice):
    data = safetensors(5003)
    opened = alice.post("/uploads", json=announcement(data)).json()
    patch(alice, opened["id"], 0, data[:3000])
    refused(patch(alice, opened["id"], 3000, data[3000:] + b"x"), 413, "too-large")
    assert alice.get(f"/uploads/{opened['id']}").json()["offset"] == 3000
    part = live.store / (uploads.stored(live.engine, opened["id"]).file + ".part")
    assert part.stat().st_size == 3000
    assert patch(alice, opened["id"], 3000, data[3000:]).json()["state"] == "complete"


def test_a_chunk_without_a_length_is_broken_off_as_well(alice):
    data = safetensors(5004)
    opened = alice.post("/uploads", json=announcement(data)).json()

    def endless():
        for _ in range(10_000):
            yield b"x" * 10_000

    answer = alice.patch(
        f"/uploads/{opened['id']}", content=endless(), headers={"Upload-Offset": "0"}
    )
    refused(answer, 413, "too-large")


def test_a_chunk_that_breaks_off_leaves_nothing_behind(live, alice, monkeypatch):
    monkeypatch.setattr(receiving, "_WRITE_AT_ONCE", 1000)  # so that some of it is on the disk
    data = safetensors(50_005)
    opened = alice.post("/uploads", json=announcement(data)).json()
    patch(alice, opened["id"], 0, data[:1000])
    host, port = live.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as line:
        line.sendall(
            f"PATCH /api/v1/uploads/{opened['id']} HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {live.tokens['alice']}\r\n"
            f"Upload-Offset: 1000\r\nContent-Length: 100000\r\n\r\n".encode()
            + data[1000:60_000]
        )
        time.sleep(0.2)
    part = live.store / (uploads.stored(live.engine, opened["id"]).file + ".part")
    deadline = time.monotonic() + 10
    while part.stat().st_size != 1000 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert part.stat().st_size == 1000
    assert alice.get(f"/uploads/{opened['id']}").json()["offset"] == 1000
    assert patch(alice, opened["id"], 1000, data[1000:]).json()["state"] == "complete"


def test_a_sender_who_falls_silent_does_not_hold_the_upload_for_ever(live, alice, monkeypatch):
    monkeypatch.setattr(api, "SILENCE_S", 0.5)
    data = safetensors(5013)
    opened = alice.post("/uploads", json=announcement(data)).json()
    host, port = live.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as line:
        line.sendall(
            f"PATCH /api/v1/uploads/{opened['id']} HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {live.tokens['alice']}\r\n"
            f"Upload-Offset: 0\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            + data[:100]
        )
        assert line.recv(1000).startswith(b"HTTP/1.1 409")
    assert patch(alice, opened["id"], 0, data).json()["state"] == "complete"


def test_of_many_chunks_at_one_offset_exactly_one_counts(live, alice):
    data = safetensors(200_006)[:800_000] + safetensors(6)
    opened = alice.post("/uploads", json=announcement(data)).json()
    start = threading.Barrier(8)

    def race(k: int) -> int:
        with live.client("alice") as mine:
            start.wait()
            # each says something else, so that a mixture would show
            return patch(mine, opened["id"], 0, bytes([k]) * 400_000).status_code

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(race, range(8)))
    assert sorted(answers) == [200] + [409] * 7
    assert alice.get(f"/uploads/{opened['id']}").json()["offset"] == 400_000
    part = live.store / (uploads.stored(live.engine, opened["id"]).file + ".part")
    assert part.read_bytes() == bytes([answers.index(200)]) * 400_000


def test_quota_in_bytes_holds_against_a_race(live):
    accounts.add_user(live.engine, "small", "submitter", quota=accounts.Quota(bytes_kept=3_500_000))
    secret, _ = accounts.issue_token(live.engine, "small", ["submit"])
    start = threading.Barrier(8)

    def race(k: int) -> httpx.Response:
        asked = {"kind": "onnx", "size": 1_000_000, "sha256": f"{k:064x}"}
        headers = {"Authorization": f"Bearer {secret}"}
        start.wait()
        return ask("POST", f"{live.address}/api/v1/uploads", json=asked, headers=headers)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(race, range(8)))
    assert sorted(a.status_code for a in answers) == [201] * 3 + [429] * 5
    for answer in answers:
        if answer.status_code == 429:
            refused(answer, 429, "quota")


def test_another_token_sees_nothing_of_an_upload_not_even_of_the_same_user(live, alice, bob):
    data = safetensors(5007)
    opened = alice.post("/uploads", json=announcement(data)).json()
    other, _ = accounts.issue_token(live.engine, "alice", ["submit"])
    with live.client(secret=other) as second:
        for stranger in (bob, second):
            refused(stranger.get(f"/uploads/{opened['id']}"), 404, "not-found")
            refused(patch(stranger, opened["id"], 0, data), 404, "not-found")
            refused(stranger.delete(f"/uploads/{opened['id']}"), 404, "not-found")
    assert alice.get(f"/uploads/{opened['id']}").json()["offset"] == 0


def test_a_wrong_hash_ends_the_upload_and_deletes_the_file(live, alice):
    data = safetensors(5008)
    opened = alice.post("/uploads", json={**announcement(data), "sha256": "0" * 64}).json()
    told = refused(patch(alice, opened["id"], 0, data), 422, "sha256-mismatch")
    assert told["stage"] == "upload"
    assert hashlib.sha256(data).hexdigest() in told["error"]
    state = alice.get(f"/uploads/{opened['id']}").json()
    assert (state["state"], state["reason"]["code"]) == ("refused", "sha256-mismatch")
    assert not [name for name in files(live) if name.startswith(opened["id"])]
    refused(patch(alice, opened["id"], len(data), b""), 409, "conflict")


@pytest.mark.parametrize(
    ("kind", "data", "code"),
    [
        ("safetensors", b"\x80\x04\x95" + b"." * 100, "not-safetensors"),
        ("safetensors", b"PK\x03\x04" + b"\0" * 100, "not-safetensors"),
        ("safetensors", b"\xff" * 100, "not-safetensors"),
        ("safetensors", safetensors() + b"x", "file-trailing"),
        ("safetensors", safetensors()[:-1], "file-truncated"),
        ("safetensors", b"\xff\xff\xff\x7f\0\0\0\0{" + b" " * 100, "header-size"),
        ("onnx", b"\x80\x04\x95" + b"." * 100, "not-onnx"),
        ("onnx", b"PK\x03\x04" + b"\0" * 100, "not-onnx"),
        ("onnx", b"PAR1" + b"\0" * 100 + b"PAR1", "not-onnx"),
        ("predictions", b"a,b\n1,2\n", "not-predictions"),
        ("predictions", b"PAR1" + b"\0" * 100, "not-predictions"),
        ("predictions", safetensors(), "not-predictions"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_its_first_bytes(live, alice, kind, data, code):
    before = set(files(live))
    told = refused(send(alice, data, kind), 422, code)
    assert told["hint"]
    assert set(files(live)) <= before


@pytest.mark.parametrize(
    "asked",
    [
        {"kind": "pickle", "size": 10, "sha256": "0" * 64},
        {"kind": "onnx", "size": 0, "sha256": "0" * 64},
        {"kind": "onnx", "size": -1, "sha256": "0" * 64},
        {"kind": "onnx", "size": True, "sha256": "0" * 64},
        {"kind": "onnx", "size": 1.5, "sha256": "0" * 64},
        {"kind": "onnx", "size": 10, "sha256": "0" * 63},
        {"kind": "onnx", "size": 10, "sha256": "../../etc/passwd"},
        {"kind": "onnx", "size": 10, "sha256": "0" * 64, "file": "/etc/passwd"},
        {"kind": "onnx"},
        [],
        None,
        "x",
    ],
)
def test_an_announcement_that_makes_no_sense_is_refused(alice, asked):
    refused(alice.post("/uploads", json=asked), 422, "invalid-request")


def test_a_file_that_is_too_large_is_refused_before_it_comes(alice):
    asked = {"kind": "onnx", "size": 1 << 50, "sha256": "0" * 64}
    told = refused(alice.post("/uploads", json=asked), 413, "too-large")
    assert told["hint"]


@pytest.mark.parametrize(
    "id", ["..%2F..%2Fetc", "%00" * 16, "0" * 15, "g" * 16, "é" * 16, "0" * 999]
)
def test_an_id_that_is_none_is_refused(alice, id):
    assert alice.get(f"/uploads/{id}").status_code in (404, 422)
    assert alice.get(f"/submissions/{id}").status_code in (404, 422)


def test_a_deleted_upload_gives_its_bytes_back(live, alice):
    before = alice.get("/me").json()["used"]["bytes_kept"]
    done = send(alice, safetensors(5009)).json()
    assert alice.get("/me").json()["used"]["bytes_kept"] == before + done["size"]
    assert alice.delete(f"/uploads/{done['id']}").status_code == 204
    assert alice.get("/me").json()["used"]["bytes_kept"] == before
    assert not [name for name in files(live) if name.startswith(done["id"])]


def test_a_full_disk_is_said_and_leaves_what_came_before(live, alice, monkeypatch):
    data = safetensors(5010)
    opened = alice.post("/uploads", json=announcement(data)).json()
    patch(alice, opened["id"], 0, data[:1000])

    def full(self, data):
        os.pwrite(self._descriptor, data[:10], 1000)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Part, "write", full)
    refused(patch(alice, opened["id"], 1000, data[1000:]), 507, "store-full")
    monkeypatch.undo()
    assert alice.get(f"/uploads/{opened['id']}").json()["offset"] == 1000
    assert patch(alice, opened["id"], 1000, data[1000:]).json()["state"] == "complete"


@pytest.mark.parametrize("kind", ["safetensors", "predictions", "onnx"])
def test_a_file_that_the_server_cannot_read_is_kept(live, alice, monkeypatch, kind):
    data = safetensors(5020 + len(kind), name="x.weight")
    if kind == "predictions":
        data = b"PAR1" + data + b"PAR1"
    if kind == "onnx":
        data = b"\x08\x08" + data

    def no_more(*arguments):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(
        *((headers, "_open") if kind == "safetensors" else (receiving.Path, "open")), no_more
    )
    opened = alice.post("/uploads", json=announcement(data, kind)).json()
    refused(patch(alice, opened["id"], 0, data), 503, "storage")
    monkeypatch.undo()
    assert alice.get(f"/uploads/{opened['id']}").json()["state"] == "open"
    assert patch(alice, opened["id"], len(data), b"").json()["state"] == "complete"


@pytest.mark.parametrize("slow_in", ["write", "sync", "advance"])
def test_a_request_that_is_cancelled_waits_for_its_thread_and_contradicts_nothing(
    live, alice, monkeypatch, slow_in
):
    data = safetensors(5030 + len(slow_in))
    opened = alice.post("/uploads", json=announcement(data)).json()
    store = UploadStore(live.store)
    stored = uploads.stored(live.engine, opened["id"])
    mine = accounts.authenticate(live.engine, live.tokens["alice"], "submit")
    entered, ended = threading.Event(), []
    where, name = (uploads, "advance") if slow_in == "advance" else (Part, slow_in)
    original = getattr(where, name)

    def slow(*arguments):
        entered.set()
        time.sleep(0.3)
        given = original(*arguments)
        ended.append(name)
        return given

    monkeypatch.setattr(where, name, slow)

    async def cancelled():
        async def chunks():
            yield data[:1000]

        sending = asyncio.create_task(
            receiving.receive(live.engine, store, mine, stored.id, 0, chunks(), 1 << 20)
        )
        while not entered.is_set():
            await asyncio.sleep(0.01)
        sending.cancel()
        await asyncio.sleep(0)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert ended == [name]

    asyncio.run(cancelled())
    monkeypatch.undo()
    assert alice.get(f"/uploads/{opened['id']}").json()["offset"] == 1000
    assert (live.store / f"{stored.file}.part").read_bytes() == data[:1000]
    assert patch(alice, opened["id"], 1000, data[1000:]).json()["state"] == "complete"


def test_without_room_an_upload_is_not_even_opened(tmp_path):
    with running(tmp_path, free_bytes=1 << 50) as site, site.client() as client:
        refused(client.post("/uploads", json=announcement(b"x" * 100)), 507, "store-full")
        assert client.get("/me").json()["used"]["bytes_kept"] == 0


def test_an_upload_that_goes_on_needs_room_for_what_is_missing_only(alice, monkeypatch):
    data = safetensors(5014)
    opened = alice.post("/uploads", json=announcement(data)).json()
    patch(alice, opened["id"], 0, data[:-500])

    def with_free(free: int):
        found = SimpleNamespace(free=free)
        monkeypatch.setattr(upload_store.shutil, "disk_usage", lambda folder: found)
        return alice.post("/uploads", json=announcement(data))

    refused(with_free(499), 507, "store-full")
    assert with_free(500).json()["id"] == opened["id"]
    patch(alice, opened["id"], len(data) - 500, data[-500:])
    assert with_free(0).json()["state"] == "complete"


@pytest.mark.parametrize("died_in", ["receiving._finish", "uploads.finish"])
def test_a_server_that_died_before_its_answer_finishes_on_the_next_try(
    live, alice, monkeypatch, died_in
):
    data = safetensors(5011 + len(died_in))
    opened = alice.post("/uploads", json=announcement(data)).json()

    def died(*arguments):
        raise StorageError("died")

    module, name = died_in.split(".")
    monkeypatch.setattr({"receiving": receiving, "uploads": uploads}[module], name, died)
    refused(patch(alice, opened["id"], 0, data), 503, "storage")
    monkeypatch.undo()
    state = alice.get(f"/uploads/{opened['id']}").json()
    assert (state["offset"], state["state"]) == (len(data), "open")
    assert patch(alice, opened["id"], len(data), b"").json()["state"] == "complete"
    path = live.store / uploads.stored(live.engine, opened["id"]).file
    assert path.read_bytes() == data
    assert [name for name in files(live) if name.startswith(opened["id"])] == [path.name]


def test_a_file_that_is_complete_while_a_second_request_waits_is_not_lost(live, alice, monkeypatch):
    data = safetensors(5015)
    opened = alice.post("/uploads", json=announcement(data)).json()
    with monkeypatch.context() as patched:
        patched.setattr(receiving, "_finish", lambda *arguments: _raise(StorageError("died")))
        refused(patch(alice, opened["id"], 0, data), 503, "storage")
    writing = UploadStore.writing

    def late(store: UploadStore, name: str):
        store.complete(name)  # by the first request, between this one's look and its lock
        return writing(store, name)

    monkeypatch.setattr(UploadStore, "writing", late)
    assert patch(alice, opened["id"], len(data), b"").json()["state"] == "complete"
    assert (live.store / uploads.stored(live.engine, opened["id"]).file).read_bytes() == data


def _raise(error: Exception) -> None:
    raise error


def test_a_rest_that_is_too_long_ends_an_upload_and_its_file(live, alice):
    data = safetensors(5012)
    opened = alice.post("/uploads", json=announcement(data)).json()
    patch(alice, opened["id"], 0, data[:1000])
    with live.engine.begin() as connection:
        connection.execute(
            sa.update(UPLOADS).where(UPLOADS.c.id == opened["id"]).values(expires=time.time() - 1)
        )
    assert alice.get(f"/uploads/{opened['id']}").json()["state"] == "expired"
    refused(patch(alice, opened["id"], 1000, data[1000:]), 409, "conflict")
    deleted = receiving.sweep(live.engine, UploadStore(live.store))
    assert [name for name in deleted if name.startswith(opened["id"])]
    assert not [name for name in files(live) if name.startswith(opened["id"])]
    assert alice.post("/uploads", json=announcement(data)).json()["id"] != opened["id"]


def test_a_file_of_no_upload_is_swept_after_a_day(live):
    live.store.mkdir(exist_ok=True)
    stray, foreign = live.store / ("f" * 16 + ".onnx.part"), live.store / "notes.txt"
    stray.write_bytes(b"x")
    foreign.write_bytes(b"x")
    store = UploadStore(live.store)
    assert stray.name not in {f"{n}.part" for n in receiving.sweep(live.engine, store)}
    moment = time.time() + 2 * DAY_S
    assert "f" * 16 + ".onnx" in receiving.sweep(live.engine, store, moment)
    assert foreign.exists() and not stray.exists()


# --- submissions


def test_a_seed_is_submitted_queued_cancelled_and_cannot_be_cancelled_again(alice):
    answer = alice.post("/submissions", json={"manifest": MANIFEST, "suite": "smoke"})
    assert answer.status_code == 201, answer.text
    found = answer.json()
    assert (found["state"], found["kind"], found["name"]) == ("queued", "seed", "my_resnet")
    assert found["tasks"] == ["smoke_lesion", "smoke_ventricles"]
    assert found["place"]["workers"] == 0
    assert [job["kind"] for job in found["jobs"]] == ["check"]
    assert found["url"].endswith(f"/submissions/{found['id']}")
    assert alice.post(f"/submissions/{found['id']}/cancel").json()["state"] == "cancelled"
    refused(alice.post(f"/submissions/{found['id']}/cancel"), 409, "conflict")


def test_weights_are_submitted_with_their_file_and_only_with_it(alice, bob):
    data, other = safetensors(6001), safetensors(6002)
    upload = send(alice, data).json()["id"]
    asked = {"manifest": with_weights(data), "upload": upload, "tasks": ["smoke_lesion"]}
    refused(alice.post("/submissions", json={**asked, "upload": None}), 422, "manifest-file")
    refused(alice.post("/submissions", json={**asked, "manifest": MANIFEST}), 422, "manifest-file")
    wrong = {**asked, "manifest": with_weights(other)}
    refused(alice.post("/submissions", json=wrong), 422, "manifest-file")
    refused(bob.post("/submissions", json=asked), 404, "not-found")
    answer = alice.post("/submissions", json=asked)
    assert (answer.status_code, answer.json()["kind"]) == (201, "weights")
    # the same again while it runs, and deleting what it needs
    refused(alice.post("/submissions", json=asked), 409, "conflict")
    refused(alice.delete(f"/uploads/{upload}"), 409, "conflict")


@pytest.mark.parametrize("why", ["its submission is under way", "its file is gone"])
def test_a_complete_upload_that_cannot_be_used_is_not_given_again(live, alice, why):
    data = safetensors(6010 + len(why))
    upload = send(alice, data).json()["id"]
    if why == "its file is gone":
        (live.store / uploads.stored(live.engine, upload).file).unlink()
    else:
        asked = {"manifest": with_weights(data), "upload": upload, "tasks": ["smoke_lesion"]}
        assert alice.post("/submissions", json=asked).status_code == 201
    again = send(alice, data).json()
    assert again["id"] != upload and again["state"] == "complete"


def test_an_embargo_of_two_years_is_taken_and_a_day_more_is_not(live, alice):
    last = datetime.now(UTC).date() + timedelta(days=731)
    asked = {"manifest": MANIFEST.replace("my_resnet", "two_years"), "tasks": ["smoke_lesion"]}
    late = {**asked, "embargo_until": str(last + timedelta(days=1))}
    refused(alice.post("/submissions", json=late), 422, "embargo-date")
    answer = alice.post("/submissions", json={**asked, "embargo_until": str(last)})
    assert answer.status_code == 201, answer.text
    with live.browser() as browser:
        assert f'max="{last}"' in browser.get("/submit").text


def test_an_upload_that_is_not_whole_cannot_be_submitted(alice):
    data = safetensors(6003)
    opened = alice.post("/uploads", json=announcement(data)).json()
    asked = {"manifest": with_weights(data), "upload": opened["id"], "suite": "smoke"}
    refused(alice.post("/submissions", json=asked), 409, "conflict")


def test_predictions_become_a_self_run_of_a_model_that_is_not_sent(alice):
    data = b"PAR1" + bytes(100) + b"PAR1"
    upload = send(alice, data, "predictions").json()["id"]
    card = 'name = "closed"\ntitle = "A closed model"\nauthors = "Us"\n'
    asked = {"manifest": card, "upload": upload, "tasks": ["smoke_lesion"]}
    told = refused(alice.post("/submissions", json=asked), 422, "manifest-invalid")
    assert "license" in told["error"] and "pretraining" in told["error"]
    asked["manifest"] = card + 'license = "proprietary"\npretraining = ["our own"]\n'
    assert alice.post("/submissions", json=asked).json()["kind"] == "self-run"


@pytest.mark.parametrize("line", ["license = ", "pretraining = ", "authors = ", "name = "])
def test_required_fields_are_required(alice, line):
    manifest = re.sub(rf"^{line}.*\n", "", MANIFEST, flags=re.M)
    assert manifest != MANIFEST
    told = refused(
        alice.post("/submissions", json={"manifest": manifest, "suite": "smoke"}),
        422,
        "manifest-invalid",
    )
    assert line.split()[0] in told["error"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"manifest": "= ="}, "manifest-toml"),
        ({"manifest": "a = " + "[" * 5000}, "manifest-toml"),
        ({"manifest": "a" + ".a" * 1500 + " = 1"}, "manifest-invalid"),
        ({"manifest": "a" + ".a" * 3000 + " = 1"}, "manifest-toml"),
        ({"manifest": "a" + ".a" * 32_000 + " = 1"}, "manifest-toml"),
        ({"manifest": MANIFEST.replace("My ResNet-10", "\\u0000\\u001b[2J")}, "manifest-text"),
        ({"manifest": MANIFEST.replace('"resnet"', '"os.system"')}, "manifest-invalid"),
        ({"manifest": MANIFEST.replace('"my_resnet"', '"../../etc"')}, "manifest-invalid"),
        ({"manifest": MANIFEST + "x" * 70_000}, "invalid-request"),
        ({"suite": "nowhere"}, "unknown-suite"),
        ({"tasks": ["smoke_lession"]}, "unknown-task"),
        ({"suite": None}, "no-task"),
        ({"probes": ["linar"]}, "unknown-probe"),
        ({"embargo_until": "tomorrow"}, "embargo-date"),
        ({"embargo_until": "9999-01-01"}, "embargo-date"),
        ({"upload": "../../etc/passwd"}, "invalid-request"),
        ({"anonymous": "maybe"}, "invalid-request"),
        ({"unsafe_local": True}, "invalid-request"),
        ({"tasks": ["\x00"]}, "invalid-request"),
    ],
)
def test_a_submission_that_makes_no_sense_is_refused_with_a_reason(alice, changes, code):
    asked = {"manifest": MANIFEST, "suite": "smoke", **changes}
    before = alice.get("/me").json()["used"]["jobs_per_day"]
    refused(alice.post("/submissions", json=asked), 422, code)
    assert alice.get("/me").json()["used"]["jobs_per_day"] == before


def test_quota_in_jobs_holds_against_a_race(live):
    accounts.add_user(live.engine, "busy", "submitter", quota=accounts.Quota(jobs_per_day=3))
    secret, _ = accounts.issue_token(live.engine, "busy", ["submit"])
    start = threading.Barrier(8)

    def race(_: int) -> httpx.Response:
        start.wait()
        return ask(
            "POST",
            f"{live.address}/api/v1/submissions",
            json={"manifest": MANIFEST, "suite": "smoke"},
            headers={"Authorization": f"Bearer {secret}"},
        )

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(race, range(8)))
    assert sorted(a.status_code for a in answers) == [201] * 3 + [429] * 5
    late = next(a for a in answers if a.status_code == 429)
    assert 0 < int(late.headers["retry-after"]) <= DAY_S


def test_strangers_see_nothing_of_a_submission_and_maintainers_everything(live, alice, bob):
    id = alice.post("/submissions", json={"manifest": MANIFEST, "suite": "smoke"}).json()["id"]
    for path in ("", "/logs", "/events", "/card"):
        refused(bob.get(f"/submissions/{id}{path}"), 404, "not-found")
    refused(bob.post(f"/submissions/{id}/cancel"), 404, "not-found")
    refused(bob.post(f"/submissions/{id}/withdraw"), 404, "not-found")
    refused(bob.patch(f"/submissions/{id}/card", json={"title": "Mine"}), 404, "not-found")
    assert id not in bob.get("/submissions").text
    with live.client("mia") as mia:
        assert mia.get(f"/submissions/{id}").json()["user"] == "alice"
        assert id in mia.get("/submissions?everybody=true").text
        assert mia.post(f"/submissions/{id}/cancel").json()["state"] == "cancelled"


def fail(live, id: str, log: str, message: str = "The weights hold NaN.") -> None:
    """What a worker does with a check that is refused."""
    while (job := queue.claim(live.engine, "worker", ["check"])) is not None:
        error = IntakeError("weights-nan", message, stage="check", hint="Train on.")
        queue.fail(live.engine, job, error, log)
        if job.submission_id == id:
            return
    raise AssertionError(f"{id} has no check")


def test_a_failure_is_told_with_code_stage_hint_and_clean_last_lines(alice, live):
    id = alice.post("/submissions", json={"manifest": MANIFEST, "suite": "smoke"}).json()["id"]
    fail(live, id, "\x1b[31mred\x1b[0m \x07bell \u202ereversed\n" + "x" * 100_000 + "\nlast line")
    found = alice.get(f"/submissions/{id}").json()
    assert (found["state"], found["code"], found["stage"]) == ("failed", "weights-nan", "check")
    assert found["message"] == "The weights hold NaN." and found["hint"] == "Train on."
    (log,) = alice.get(f"/submissions/{id}/logs").json()["logs"]
    assert log["log"].endswith("last line")
    assert len(log["log"]) < 20_000
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", log["log"])


def test_events_tell_each_change_and_end_with_the_submission(live, alice):
    id = alice.post("/submissions", json={"manifest": MANIFEST, "suite": "smoke"}).json()["id"]
    states = []
    with alice.stream("GET", f"/submissions/{id}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: "):
                states.append(json.loads(line.removeprefix("data: "))["state"])
                if states == ["queued"]:
                    fail(live, id, "")
    assert states[0] == "queued" and states[-1] == "failed"


def test_events_end_when_the_token_is_revoked(live):
    secret, token = accounts.issue_token(live.engine, "alice", ["submit"])
    with live.client(secret=secret) as client:
        id = client.post("/submissions", json={"manifest": MANIFEST, "suite": "smoke"}).json()["id"]
        with client.stream("GET", f"/submissions/{id}/events") as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    accounts.revoke_token(live.engine, token.id)
        refused(client.get(f"/submissions/{id}"), 401, "not-authenticated")


def test_a_card_is_edited_with_its_history_and_nothing_but_prose(alice):
    id = alice.post("/submissions", json={"manifest": MANIFEST, "suite": "smoke"}).json()["id"]
    path = f"/submissions/{id}/card"
    assert alice.patch(path, json={"title": "Better", "pretraining": ["X"]}).status_code == 200
    assert alice.patch(path, json={"title": "Best"}).status_code == 200
    history = alice.get(path).json()["edits"]
    assert [edit["after"]["title"] for edit in history] == ["Better", "Best"]
    assert history[1]["before"] == {"title": "Better"}
    assert history[0]["by"] == "alice"
    for wrong in (
        {"name": "x"},
        {"grid": {}},
        {"title": ""},
        {"note": "\x1b"},
        {"note": "x" * 3000},
    ):
        refused(alice.patch(path, json=wrong), 422, "invalid-request")
    refused(alice.patch(path, json={}), 422, "no-change")


def test_what_is_done_is_in_the_audit(live, alice):
    id = alice.post("/submissions", json={"manifest": MANIFEST, "suite": "smoke"}).json()["id"]
    alice.post(f"/submissions/{id}/cancel")
    alice.post(f"/submissions/{id}/withdraw")
    done = [e.action for e in accounts.audited(live.engine, 20) if e.subject == id]
    assert {"submitted", "submission-cancelled", "submission-withdrawn"} <= set(done)
    everything = json.dumps([vars(e) for e in accounts.audited(live.engine, 1000)], default=str)
    assert not [secret for secret in live.tokens.values() if secret in everything]


def test_a_model_is_sent_reported_and_withdrawn_on_both_kinds_of_database(tmp_path, url):
    with running(tmp_path, url) as site, site.client("alice") as alice:
        add(site.engine, [result("texture", "smoke_lesion")])
        data = safetensors(500)
        upload = send(alice, data, chunk=1000).json()
        refused(patch(alice, upload["id"], 0, data), 409, "conflict")
        asked = {"manifest": with_weights(data), "upload": upload["id"], "suite": "smoke"}
        id = alice.post("/submissions", json=asked).json()["id"]
        changes = {"note": "Für *alle*", "pretraining": ["X"]}
        assert alice.patch(f"/submissions/{id}/card", json=changes).status_code == 200
        leak = {"model_sha": sha("texture"), "kind": "leak", "text": "It has seen the test set."}
        assert alice.post("/reports", json=leak).status_code == 201
        assert alice.post(f"/submissions/{id}/cancel").json()["state"] == "cancelled"
        assert alice.post(f"/submissions/{id}/withdraw").json()["state"] == "withdrawn"
        assert alice.delete(f"/uploads/{upload['id']}").status_code == 204
        assert ask("GET", f"{site.address}/readyz").json()["ready"]
        assert 'state="cancelled"' in ask("GET", f"{site.address}/metrics").text


def test_what_was_reported_of_a_hidden_model_is_told_to_nobody(tmp_path, url):
    with running(tmp_path, url) as site, site.client("alice") as alice:
        later = datetime.fromtimestamp(time.time() + 60, UTC)
        add(site.engine, [result("texture", "smoke_lesion")], added=later)
        asked = {"manifest": MANIFEST, "suite": "smoke"}
        id = alice.post("/submissions", json=asked).json()["id"]
        job = queue.claim(site.engine, "w", ["check"])
        queue.checked(site.engine, job, model_sha=sha("texture"), planned=[])
        leak = {"model_sha": sha("texture"), "kind": "leak", "text": "It has seen the test set."}
        assert alice.post("/reports", json=leak).status_code == 201
        path = f"{site.address}/api/v1/reports?model_sha="
        assert len(ask("GET", path + sha("texture")).json()["reports"]) == 1
        assert alice.post(f"/submissions/{id}/withdraw").status_code == 200
        hidden = ask("GET", path + sha("texture"))
        refused(hidden, 404, "not-found")
        never = ask("GET", path + sha("never"))
        assert hidden.text.replace(sha("texture"), "") == never.text.replace(sha("never"), "")


def test_the_time_is_utc(alice):
    created = alice.post("/submissions", json={"manifest": MANIFEST, "suite": "smoke"}).json()[
        "created"
    ]
    moment = datetime.strptime(created, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert abs((datetime.now(UTC) - moment).total_seconds()) < 60
