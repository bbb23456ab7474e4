"""What the operator relies on: settings, users, limits, logs, monitors, an honest API document."""

import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from tomoprobe.benchmark.errors import QuotaError
from tomoprobe.leaderboard import accounts, db
from tomoprobe.leaderboard.opening import known_revisions
from tomoprobe.submissions import configuration as settings
from tomoprobe.submissions.api_models import MANIFEST
from tomoprobe.submissions.cli import app as command
from tomoprobe.submissions.configuration import Configuration, ConfigurationError
from tomoprobe.submissions.rate_limits import Buckets, network_of
from tomoprobe.submissions.request_logs import JsonLines

from .board_data import add, result, sha
from .live_site import announcement, ask, running, safetensors, send

ROOT = Path(__file__).parents[1]
ROOMS = ("benchmark", "tasks", "leaderboard", "submissions")
SECRET = "tmp_" + "S" * 43


# --- settings


def test_every_variable_that_is_read_anywhere_is_in_the_table():
    named = {
        name
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        for name in re.findall(r"\bTOMOPROBE_[A-Z_]+", path.read_text())
    }
    assert {variable.name for variable in settings.TABLE} == named
    assert all(variable.meaning and variable.default for variable in settings.TABLE)


def test_every_setting_can_be_set_and_the_default_is_what_the_table_says():
    given = {
        "TOMOPROBE_STORE": "/srv/uploads",
        "TOMOPROBE_BASE_URL": "https://example.org/board/",
        "TOMOPROBE_TITLE": "A board",
        "TOMOPROBE_MAX_UPLOAD_BYTES": "1000",
        "TOMOPROBE_CHUNK_BYTES": "2000",
        "TOMOPROBE_FORM_UPLOAD_BYTES": "3000",
        "TOMOPROBE_FREE_BYTES": "0",
        "TOMOPROBE_REQUESTS_PER_MINUTE": "5",
        "TOMOPROBE_REQUESTS_PER_MINUTE_AND_ADDRESS": "6",
        "TOMOPROBE_TRUSTED_PROXIES": "10.0.0.1, 192.168.0.0/16",
        "TOMOPROBE_METRICS_TOKEN": "0123456789abcdef",
        "TOMOPROBE_LOG_LEVEL": "warning",
    }
    read = Configuration.from_environment(given)
    default = Configuration.from_environment({name: "" for name in given})
    assert default == Configuration()
    same = [name for name, value in vars(read).items() if value == getattr(default, name)]
    assert same == []
    assert (read.base_url, read.secure) == ("https://example.org/board", True)
    assert read.trusted_proxies == ("10.0.0.1", "192.168.0.0/16")
    for variable in settings.TABLE:
        if number := re.fullmatch(r"(\d+)( \(.*\))?", variable.default):
            name = variable.name.removeprefix("TOMOPROBE_").lower()
            if hasattr(default, name):
                assert getattr(default, name) == int(number[1]), name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CHUNK_BYTES", "8 MiB"),
        ("CHUNK_BYTES", "-1"),
        ("CHUNK_BYTES", "0"),
        ("BASE_URL", "example.org"),
        ("BASE_URL", "javascript:alert(1)"),
        ("TRUSTED_PROXIES", "everybody"),
        ("LOG_LEVEL", "loud"),
        ("METRICS_TOKEN", "short"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(name, value):
    with pytest.raises(ConfigurationError, match=f"TOMOPROBE_{name}") as told:
        Configuration.from_environment({f"TOMOPROBE_{name}": value})
    assert name != "METRICS_TOKEN" or value not in str(told.value)


def test_the_server_imports_nothing_that_loads_a_model():
    code = (
        "import sys, tomoprobe.submissions.site\n"
        "print([m for m in ('torch', 'monai', 'sklearn', 'onnx', 'onnxruntime', 'safetensors') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    for name in ("api", "forms", "headers", "receiving", "service", "site", "upload_store"):
        text = (ROOT / "submissions" / f"{name}.py").read_text()
        assert not re.search(r"^\s*(import|from) (pickle|marshal|shelve|torch|onnx)", text, re.M)


# --- users


@pytest.fixture
def users(tmp_path):
    url = f"sqlite:///{tmp_path / 'users.db'}"

    def run(*words: str, fails: bool = False) -> str:
        done = CliRunner().invoke(command, ["users", *words, "--db", url])
        assert (done.exit_code != 0) == fails, done.output + repr(done.exception)
        return done.output

    run.engine = db.connect(url)
    yield run
    run.engine.dispose()


def test_the_first_admin_is_made_on_this_machine_and_the_token_is_shown_once(users):
    shown = users("add", "root", "--role", "admin")
    (secret,) = re.findall(r"tmp_[A-Za-z0-9_-]{43}", shown)
    assert accounts.authenticate(users.engine, secret, "admin").user.name == "root"
    later = users("list") + users("list", "--json") + users("quota", "root")
    assert secret not in later and secret[4:10] in later
    with users.engine.connect() as connection:
        for table in sa.inspect(users.engine).get_table_names():
            rows = connection.execute(sa.text(f'SELECT * FROM "{table}"')).fetchall()  # noqa: S608
            assert secret not in repr(rows), table


def test_users_are_given_tokens_quotas_and_an_end(users):
    users("add", "alice", "--jobs", "3", "--gib", "0.5")
    user = accounts.user(users.engine, "alice")
    assert (user.role, user.quota.jobs_per_day, user.quota.bytes_kept) == ("submitter", 3, 1 << 29)
    users("quota", "alice", "--jobs", "7")
    assert "0 of 7" in users("quota", "alice")
    shown = users("token", "alice", "--scope", "read", "--days", "1")
    (secret,) = re.findall(r"tmp_[A-Za-z0-9_-]{43}", shown)
    identity = accounts.authenticate(users.engine, secret, "read")
    assert identity.scopes == ("read",)
    users("revoke", "alice", "--token", str(identity.token_id))
    with pytest.raises(accounts.AccessError):
        accounts.authenticate(users.engine, secret, "read")
    users("revoke", "alice")
    assert "revoked" in users("list")
    actions = [entry.action for entry in accounts.audited(users.engine, 50)]
    assert {"user-added", "token-issued", "quota-set", "token-revoked", "user-revoked"} <= set(
        actions
    )
    users("token", "alice", fails=True)
    users("add", "alice", fails=True)
    users("add", "A B", fails=True)
    users("revoke", "nobody", fails=True)
    users("token", "root", "--scope", "admin", fails=True)


# --- limits


def test_a_bucket_empties_and_fills_at_an_even_pace():
    buckets = Buckets(60)
    assert [buckets.take("a", now=0.0) for _ in range(60)] == [None] * 60
    assert buckets.take("a", now=0.0) == 1.0
    assert buckets.take("b", now=0.0) is None
    assert buckets.take("a", now=1.0) is None
    assert buckets.take("a", now=1.5) == pytest.approx(0.5)
    assert [buckets.take("a", now=1e6) for _ in range(61)][-1] is not None


def test_buckets_are_forgotten_so_that_visitors_cannot_fill_the_memory():
    buckets = Buckets(1, capacity=3)
    for k in range(100):
        buckets.take(str(k), now=0.0)
    assert buckets.take("99", now=0.0) is not None
    assert buckets.take("0", now=0.0) is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
    ],
)
def test_a_household_of_ipv6_is_one_address(one, other, same):
    networks = [network_of({"type": "http", "client": (host, 1)}) for host in (one, other)]
    assert (networks[0] == networks[1]) == same


def test_requests_are_limited_per_token_and_per_address(tmp_path):
    with (
        running(tmp_path, requests_per_minute=5) as site,
        site.client("alice") as alice,
        site.client("bob") as bob,
    ):
        answers = [alice.get("/me") for _ in range(7)]
        assert [a.status_code for a in answers] == [200] * 5 + [429] * 2
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 12
        assert answers[-1].json()["code"] == "quota"
        assert "content-security-policy" in answers[-1].headers
        assert bob.get("/me").status_code == 200
    other = tmp_path / "other"
    other.mkdir()
    with running(other, requests_per_minute_and_address=5) as site:
        codes = [ask("GET", f"{site.address}/login").status_code for _ in range(7)]
        assert codes == [200] * 5 + [429] * 2
        assert ask("GET", f"{site.address}/healthz").status_code == 200


def test_a_body_that_is_too_long_is_not_read_to_its_end(tmp_path):
    with running(tmp_path) as site, site.client() as alice:
        answer = alice.post("/submissions", content=b"x" * (2 << 20))
        assert (answer.status_code, answer.json()["code"]) == (413, "too-large")

        def endless():
            for _ in range(5000):
                yield b"x" * 1000

        assert alice.post("/submissions", content=endless()).status_code == 413


# --- monitors


def test_metrics_count_requests_jobs_and_bytes_and_name_no_visitor(tmp_path):
    with running(tmp_path) as site, site.client() as alice:
        send(alice, safetensors(2000))
        body = {"manifest": MANIFEST, "suite": "smoke"}
        assert alice.post("/submissions", json=body).status_code == 201
        for k in range(5):
            ask("GET", f"{site.address}/no/such/page/{k}")
            ask("GET", f"{site.address}/submissions/{k:016x}")
        text = ask("GET", f"{site.address}/metrics").text
        assert 'tomoprobe_jobs{kind="check",state="waiting"} 1.0' in text
        assert "tomoprobe_workers 0.0" in text and "tomoprobe_database_up 1.0" in text
        route = 'method="GET",route="/submissions/{id}",status="303"'
        assert f"tomoprobe_requests_total{{{route}}} 5.0" in text
        assert 'route="other",status="404"} 5.0' in text
        received = re.search(r"^tomoprobe_received_bytes_total (\S+)", text, re.M)
        assert float(received[1]) > 8000
        assert "alice" not in text and "127.0.0.1" not in text
        forwarded = {"X-Forwarded-For": "127.0.0.1"}
        assert ask("GET", f"{site.address}/metrics", headers=forwarded).status_code == 403


def test_metrics_may_ask_for_a_secret(tmp_path):
    secret = "0123456789abcdef"  # noqa: S105
    with running(tmp_path, metrics_token=secret) as site:
        for given in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Bearer é".encode()}):
            assert ask("GET", f"{site.address}/metrics", headers=given).status_code == 401
        good = {"Authorization": f"Bearer {secret}"}
        assert ask("GET", f"{site.address}/metrics", headers=good).status_code == 200


def test_ready_means_database_tables_and_disk(tmp_path, monkeypatch):
    with running(tmp_path) as site:

        def ready() -> dict:
            answer = ask("GET", f"{site.address}/readyz")
            assert (answer.status_code == 200) == answer.json()["ready"]
            return answer.json()

        assert ready() == {"ready": True, "database": True, "schema": True, "store": True}
        assert [p for p in site.store.iterdir() if p.name.startswith(".ready")] == []
        site.store.rmdir()
        site.store.write_text("in the way")
        assert ready() == {"ready": False, "database": True, "schema": True, "store": False}
        site.store.unlink()
        db.migrate_to(site.engine, known_revisions()[1])
        assert ready() == {"ready": False, "database": True, "schema": False, "store": True}
        db.migrate(site.engine)
        site.engine.dispose()
        for path in tmp_path.glob("site.db*"):
            path.unlink()
        (tmp_path / "site.db").mkdir()
        assert ready()["database"] is False
        assert ask("GET", f"{site.address}/healthz").status_code == 503
        (tmp_path / "site.db").rmdir()


# --- logs


def test_a_line_of_the_log_is_json_without_secrets_whatever_is_logged():
    stream = io.StringIO()
    log = logging.Logger("tomoprobe.test")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    log.addHandler(handler)
    log.warning("token %s\nand a line", SECRET, extra={"fields": {"path": f"/x/{SECRET}"}})
    try:
        raise QuotaError(f"with {SECRET}")
    except QuotaError:
        log.exception("failed")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[0])["message"] == "token tmp_***\nand a line"
    assert "QuotaError" in json.loads(lines[1])["traceback"]
    assert SECRET not in stream.getvalue()


@pytest.mark.slow
def test_serve_serves_the_site_logs_requests_as_json_and_stops_quietly(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"sqlite:///{tmp_path / 'board.db'}"
    engine = db.connect(url)
    db.migrate(engine)
    accounts.add_user(engine, "alice", "submitter")
    secret, _ = accounts.issue_token(engine, "alice", ["submit"])
    engine.dispose()
    environment = {**os.environ, "TOMOPROBE_STORE": str(tmp_path / "uploads")}
    arguments = ["-m", "tomoprobe.submissions", "serve", "--db", url, "--port", str(port)]
    server = subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            try:
                if ask("GET", f"{address}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                assert server.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
        headers = {"Authorization": f"Bearer {secret}"}
        answer = ask("GET", f"{address}/api/v1/me?secret=hidden", headers=headers)
        assert answer.json()["name"] == "alice"
        ask("GET", f"{address}/api/v1/{secret}")
        assert ask("GET", f"{address}/").status_code == 200
    finally:
        server.send_signal(signal.SIGINT)
        _, err = server.communicate(timeout=30)
    lines = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    (me,) = (line for line in lines if line.get("route") == "/api/v1/me")
    assert me | {"status": 200, "user": "alice", "method": "GET", "path": "/api/v1/me"} == me
    assert me["request"] == answer.headers["x-request-id"]
    assert secret not in err and "hidden" not in err
    assert "Traceback" not in err


# --- the API's document


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    with running(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture(scope="module")
def document(live) -> dict:
    return ask("GET", f"{live.address}/api/v1/openapi.json").json()


def operations(document: dict):
    for path, by_method in document["paths"].items():
        for method, operation in by_method.items():
            yield method, path, operation


def test_every_operation_is_described_and_every_body_has_an_example(document):
    found = list(operations(document))
    assert len(found) >= 17
    for method, path, operation in found:
        assert operation["description"], (method, path)
        assert (method, path) == ("get", "/api/v1/reports") or operation["security"]
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        assert body is None or body["examples"], (method, path)
        if method != "get" and not path.endswith(("/cancel", "/withdraw")) and method != "delete":
            assert operation.get("requestBody"), (method, path)
    assert "/api/v1/submissions/{id}/events" in document["paths"]


def test_every_example_of_the_document_works_on_a_live_site(live, document):
    import jsonschema_rs

    add(live.engine, [result("texture", "smoke_lesion")])
    made: dict[str, str] = {"/api/v1/reports/{id}": "1"}
    ran = []
    with live.client("mia") as client:
        for method, path, operation in sorted(operations(document), key=_order):
            content = operation.get("requestBody", {}).get("content", {})
            examples = content.get("application/json", {}).get("examples", {})
            for example in [e["value"] for e in examples.values()] or [None]:
                if isinstance(example, dict) and "model_sha" in example:
                    example = {**example, "model_sha": sha("texture")}
                of = "/".join(path.split("/")[:4])
                target = path.replace("{id}", made.get(of, "1"))
                if method in ("patch",) and of.endswith("uploads"):
                    data = safetensors(50)
                    opened = client.post("/uploads", json=announcement(data)).json()
                    target, example = path.replace("{id}", opened["id"]), None
                    headers, body = {"Upload-Offset": "0"}, data
                else:
                    headers, body = {}, None
                query = {"model_sha": sha("texture")} if target == "/api/v1/reports" else None
                answer = client.request(
                    method,
                    live.address + target,
                    json=example,
                    content=body,
                    headers=headers,
                    params=query if method == "get" else None,
                )
                assert answer.is_success, (method, target, answer.text)
                described = operation["responses"][str(answer.status_code)]
                schema = described.get("content", {}).get("application/json", {}).get("schema")
                if schema is not None:
                    whole = {**schema, "components": document["components"]}
                    jsonschema_rs.validator_for(whole).validate(answer.json())
                    if method == "post" and "id" in answer.json() and "{id}" not in path:
                        made[of] = str(answer.json()["id"])
                ran.append((method, path))
    assert {(m, p) for m, p, _ in operations(document)} == set(ran)


def _order(operation: tuple[str, str, dict]) -> tuple[bool, bool, bool, str]:
    """What makes things first, what ends them last."""
    method, path, _ = operation
    ends = method == "delete" or path.endswith(("/events", "/withdraw"))
    return ends, "cancel" in path, not (method == "post" and "{id}" not in path), path


@pytest.mark.slow
def test_no_request_that_fits_the_document_or_breaks_it_ends_in_a_fault_of_ours(live, document):
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings

    schema = schemathesis.openapi.from_dict(document)
    headers = {"Authorization": f"Bearer {live.tokens['mia']}"}
    seen = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path.endswith("/events"):
            continue

        @given(
            case=operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE)
            | operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
        )
        @settings(
            max_examples=12,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        def tried(case):
            answer = case.call(base_url=live.address, headers=headers)
            seen.add(answer.status_code)
            assert answer.status_code < 500 or answer.status_code == 507, answer.text
            if answer.status_code >= 400 and "json" in answer.headers.get("content-type", [""])[0]:
                assert {"error", "code"} <= answer.json().keys()

        tried()
    assert {201, 404, 422} <= seen
