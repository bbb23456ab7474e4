"""The client against the real site: what one promises, the other keeps. No worker is needed."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from safetensors.numpy import save_file

from tomoprobe.benchmark.errors import (
    AccessError,
    ConflictError,
    IntakeError,
    QuotaError,
    StorageError,
    UnknownNameError,
)
from tomoprobe.leaderboard import accounts, queue, uploads
from tomoprobe.leaderboard.intake_records import Quota
from tomoprobe.submissions import logins, receiving
from tomoprobe.submissions.client import Client
from tomoprobe.submissions.upload_files import File, measured

from .jobs import MANIFEST
from .running_site import site, token_of
from .test_cli import typed

SEED = MANIFEST.format(name="histogram", high=1.0)
WITH_FILE = SEED + '\n[weights]\nfile = "model.safetensors"\n'

_NUMBERS = count()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, sa.Engine]]:
    folder = tmp_path_factory.mktemp("site")
    with site(f"sqlite:///{folder / 'board.db'}", folder / "store") as found:
        yield found


@pytest.fixture
def token(running) -> str:
    """Of a user of this test alone."""
    return token_of(running[1], f"user{next(_NUMBERS)}")


@pytest.fixture
def client(running, token: str) -> Iterator[Client]:
    with Client(running[0], token, sleep=lambda seconds: None) as opened:
        yield opened


@pytest.fixture
def file(tmp_path: Path) -> File:
    """Five chunks."""
    values = np.random.default_rng(0).normal(size=(1_200_000,)).astype(np.float32)
    save_file({"a": values}, tmp_path / "model.safetensors")
    return measured(tmp_path / "model.safetensors")


@contextmanager
def proxy(address: str, budgets: list[int]) -> Iterator[str]:
    """A line to the site of which each connection breaks after so many bytes from the client."""
    host, port = address.removeprefix("http://").split(":")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def back(client: socket.socket, server: socket.socket) -> None:
            with suppress(OSError):
                while data := server.recv(1 << 16):
                    client.sendall(data)

        def serve() -> None:
            while True:
                try:
                    client, _ = listening.accept()
                except OSError:
                    return
                left = budgets.pop(0) if budgets else 1 << 40
                server = socket.create_connection((host, int(port)))
                threading.Thread(target=back, args=(client, server), daemon=True).start()
                with client, server, suppress(OSError):
                    while left > 0 and (data := client.recv(min(left, 1 << 16))):
                        left -= len(data)
                        server.sendall(data)
                    for end in (client, server):
                        end.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def stored(client: Client, id: str) -> dict:
    return client._connection.request("GET", f"/uploads/{id}")


def test_a_file_arrives_over_a_line_that_breaks_again_and_again(running, token, file):
    sent: list[int] = []
    with (
        proxy(running[0], [1_300_000, 100, 2_500_000, 700_000, 1_100_000]) as address,
        Client(address, token, sleep=lambda seconds: None) as client,
    ):
        id = client.upload(file, "safetensors", sent.append)
        found = stored(client, id)
    assert (found["state"], found["offset"], found["sha256"]) == (
        "complete",
        file.size,
        file.sha256,
    )
    assert sent != sorted(sent), "the line has broken"


def test_the_same_file_again_is_the_same_upload(client, file):
    first = client.upload(file, "safetensors")
    assert client.upload(file, "safetensors") == first
    used = client.me()["used"]["bytes_kept"]
    assert used == file.size, "and is counted once"


def test_an_interrupted_upload_goes_on_with_a_new_client(running, token, file):
    class Killed(BaseException):
        pass

    def stop(offset: int) -> None:
        if offset > 2 << 20:
            raise Killed

    with Client(running[0], token) as client, pytest.raises(Killed):
        client.upload(file, "safetensors", stop)
    sent: list[int] = []
    with Client(running[0], token, sleep=lambda seconds: None) as client:
        client.upload(file, "safetensors", sent.append)
    assert sent[0] == 2 << 20


@pytest.mark.parametrize("died_in", [(receiving, "_finish"), (uploads, "finish")])
def test_an_upload_whose_server_died_at_its_end_is_finished(client, file, monkeypatch, died_in):
    honest, died = getattr(*died_in), []

    def dies_once(*arguments):
        if not died:
            died.append(True)
            raise StorageError("The server is killed.")
        return honest(*arguments)

    monkeypatch.setattr(*died_in, dies_once)
    with suppress(StorageError):
        client.upload(file, "safetensors")
    id = client.upload(file, "safetensors")
    assert died and stored(client, id)["state"] == "complete"


def test_an_upload_is_nobody_elses(running, client, file):
    id = client.upload(file, "safetensors")
    other = token_of(running[1], "stranger")
    with Client(running[0], other) as stranger:
        with pytest.raises(UnknownNameError):
            stored(stranger, id)
        with pytest.raises(UnknownNameError):
            stranger.submit(WITH_FILE, id, tasks=["smoke_lesion"])
        assert stranger.upload(file, "safetensors") != id


def test_two_at_once_send_one_file(running, token, file):
    def upload(_: int) -> str:
        with Client(running[0], token) as client:
            return client.upload(file, "safetensors")

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(upload, range(2))
    assert first == second


def test_a_token_that_is_revoked_during_an_upload_ends_it(running, token, client, file):
    name = client.me()["name"]

    def revoke(offset: int) -> None:
        if offset == 2 << 20:
            accounts.revoke_user(running[1], name)

    with pytest.raises(AccessError) as caught:
        client.upload(file, "safetensors", revoke)
    assert caught.value.status == 401


def test_quotas_of_jobs_and_bytes_are_told(running, client, file):
    accounts.set_quota(running[1], client.me()["name"], Quota(1, 1.0, file.size - 1))
    with pytest.raises(QuotaError):
        client.upload(file, "safetensors")
    client.submit(SEED, None, tasks=["smoke_lesion"])
    with pytest.raises(QuotaError) as caught:
        client.submit(SEED, None, tasks=["smoke_lesion"])
    assert (caught.value.retry_after or 0) > 3600


def test_a_full_disk_is_told(tmp_path, file):
    url = f"sqlite:///{tmp_path / 'board.db'}"
    with (
        site(url, tmp_path / "store", free_bytes=1 << 49) as (address, engine),
        Client(address, token_of(engine, "ada")) as client,
    ):
        with pytest.raises(StorageError, match="no room"):
            client.upload(file, "safetensors")
        assert client.me()["used"]["bytes_kept"] == 0


def test_a_pickle_is_refused_with_a_code_and_what_to_do(client, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x80\x04" + bytes(1000))
    with pytest.raises(IntakeError) as caught:
        client.upload(measured(path), "safetensors")
    assert caught.value.code and caught.value.hint and caught.value.stage == "upload"


def test_predictions_come_as_one_file(client, tmp_path):
    path = tmp_path / "predictions.safetensors"
    save_file({"a.knn.parquet": np.frombuffer(b"PAR1....PAR1", np.uint8)}, path)
    id = client.upload(measured(path), "predictions")
    assert stored(client, id)["state"] == "complete"
    card = 'name = "mine"\ntitle = "M"\nauthors = "M"\nlicense = "MIT"\npretraining = []\n'
    assert client.submit(card, id, tasks=["smoke_lesion"])["kind"] == "self-run"
    save_file({"weights": np.zeros(3, np.float32)}, path)
    with pytest.raises(IntakeError):
        client.upload(measured(path), "predictions")


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"manifest": "name ="}, IntakeError),
        ({"tasks": []}, IntakeError),
        ({"tasks": ["no_such_task"]}, (IntakeError, UnknownNameError)),
        ({"probes": ["no_such_probe"]}, (IntakeError, UnknownNameError)),
        ({"suite": "no_such_suite"}, (IntakeError, UnknownNameError)),
        ({"embargo_until": "tomorrow"}, IntakeError),
        ({"upload": "0" * 16}, UnknownNameError),
        ({"manifest": WITH_FILE}, IntakeError),
    ],
)
def test_what_cannot_be_submitted_is_an_error_of_its_kind(client, changes, kind):
    asked = {"manifest": SEED, "upload": None, "tasks": ["smoke_lesion"], **changes}
    with pytest.raises(kind) as caught:
        client.submit(**asked)
    assert str(caught.value)
    assert client.submissions() == []


def test_a_submission_is_followed_from_another_place_until_it_is_cancelled(client, running):
    found = client.submit(SEED, None, tasks=["smoke_lesion"], probes=["knn"])
    assert found["url"].startswith(running[0])
    seen = []
    for state in client.follow(found["id"]):
        seen.append(state["state"])
        if len(seen) == 1:
            assert state["place"]["workers"] == 0
            client.cancel(found["id"])
    assert seen == ["queued", "cancelled"]
    with pytest.raises(ConflictError):
        client.cancel(found["id"])
    assert [unit["state"] for unit in client.logs(found["id"])] == ["cancelled"]


def test_cards_are_edited_and_submissions_withdrawn(client, running):
    id = client.submit(SEED, None, tasks=["smoke_lesion"])["id"]
    client.edit(id, {"title": "Better", "pretraining": ["IXI"]})
    (edit,) = queue.edits(running[1], id)
    assert edit.after == {"title": "Better", "pretraining": ["IXI"]}
    with pytest.raises(IntakeError):
        client.edit(id, {"grid": "larger"})
    client.cancel(id)
    assert client.withdraw(id)["state"] == "withdrawn"


def test_the_commands_speak_with_the_site(running, token, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(logins.SERVER, running[0])
    monkeypatch.setenv(logins.TOKEN, token)
    (tmp_path / "manifest.toml").write_text(SEED)
    code, _, err = typed(capsys, "submit", tmp_path, "--no-check", "--no-follow", "-s", "smoke")
    assert code == 0, err
    code, out, err = typed(capsys, "status")
    assert code == 0 and "histogram" in out and "smoke_lesion" in out
    id = out.split("histogram")[0].split()[-1]
    code, out, err = typed(capsys, "status", id)
    assert code == 0 and "no worker is running" in out
    assert "--- check: waiting" in typed(capsys, "logs", id)[1]
    assert "is cancelled" in typed(capsys, "cancel", id)[1]
