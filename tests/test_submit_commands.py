"""``tomoprobe submit`` and what follows it, as they are typed, against the small server."""

import io
import json
import re
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load

from tomoprobe.submissions import following, logins, sending
from tomoprobe.submissions.client import Client

from .jobs import MANIFEST
from .submission_server import TOKEN, Server, status
from .test_cli import typed


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that the environment names."""
    with Server() as running:
        monkeypatch.setenv(logins.SERVER, running.url)
        monkeypatch.setenv(logins.TOKEN, TOKEN)
        yield running


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A model without weights, which is the quickest to check."""
    folder = tmp_path / "packed"
    folder.mkdir()
    (folder / "manifest.toml").write_text(MANIFEST.format(name="histogram", high=1.0))
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture):
    """``run(*arguments)``: exit code, stdout and stderr."""
    return lambda *arguments: typed(capsys, *arguments)


def planned(server: Server, *states: dict) -> None:
    """What will become of the first submission."""
    server.states[f"{0xA0:016x}"] = deque(states)


def unit(kind: str, state: str, **more: object) -> dict:
    blank = {"data_set": "", "task": "toy", "probe": "", "code": None, "seconds": None, "log": ""}
    return {"job": len(kind), "kind": kind, "state": state, **blank, **more}


DONE = [
    {"state": "checking", "place": None},
    {"state": "evaluating", "jobs": [unit("check", "done"), unit("extract", "running")]},
    {"state": "done", "jobs": [unit("check", "done"), unit("extract", "done")]},
]


def test_submit_checks_sends_and_follows_to_the_end(server, packed, run):
    planned(server, *DONE)
    code, out, err = run("submit", packed, "--task", "toy", "--probe", "knn")
    assert code == 0, err
    (asked,) = server.bodies
    assert asked["manifest"] == (packed / "manifest.toml").read_text()
    assert (asked["tasks"], asked["probes"], asked["suite"]) == (["toy"], ["knn"], None)
    assert "histogram passes the checks of the server" in err
    told = re.findall(r"my_model is (.*)", err)
    assert told[0] == "queued: 2 jobs ahead, starts in about 3 min"
    assert told[2:] == ["evaluating: 1 of 2 units", "done"]
    assert f"{server.url}/submissions/" in out


def test_a_model_that_the_server_would_refuse_is_not_sent(server, packed, run):
    manifest = packed / "manifest.toml"
    manifest.write_text(manifest.read_text().replace("high = 1.0", 'high = "much"'))
    code, _, err = run("submit", packed, "--task", "toy")
    assert code == 2 and "high" in err
    assert server.asked == []


def test_no_check_leaves_it_to_the_server(server, packed, run, monkeypatch):
    def never(*arguments: object) -> None:
        raise AssertionError("checked")

    monkeypatch.setattr(sending, "checked", never)
    planned(server, {"state": "done"})
    assert run("submit", packed, "--no-check", "--task", "toy")[0] == 0


def test_without_a_task_the_core_suite_is_asked_for(server, packed, run):
    run("submit", packed, "--no-check", "--no-follow")
    assert (server.bodies[0]["suite"], server.bodies[0]["tasks"]) == ("core", [])


def test_anonymous_and_embargo_reach_the_server(server, packed, run):
    run("submit", packed, "--no-check", "--no-follow", "--anonymous", "--embargo", "2027-01-31")
    assert server.bodies[0]["anonymous"] is True
    assert server.bodies[0]["embargo_until"] == "2027-01-31"
    code, _, err = run("submit", packed, "--embargo", "January")
    assert code == 2 and "%Y-%m-%d" in err


def test_a_failure_is_told_with_code_stage_reason_and_hint_and_exit_2(server, packed, run):
    why = {"code": "weights-nan", "stage": "check", "message": "NaN.", "hint": "Train again."}
    planned(server, {"state": "failed", **why, "jobs": [unit("check", "failed", **why)]})
    code, out, _ = run("submit", packed, "--no-check", "--task", "toy")
    assert code == 2
    assert "my_model is failed: NaN. Train again. (weights-nan, in check)" in out
    assert "tomoprobe logs" in out


def test_a_refusal_says_what_the_server_says(server, packed, run):
    body = {"error": "10 of 10 jobs today.", "code": "quota", "hint": "Come back tomorrow."}
    server.fail("POST /api/v1/submissions", status(429, {"Retry-After": "50000"}, **body))
    code, out, err = run("submit", packed, "--no-check", "--task", "toy")
    assert code == 2 and out == ""
    assert err.splitlines()[-1] == "10 of 10 jobs today. Come back tomorrow."


def test_ctrl_c_stops_following_and_not_the_job(server, packed, run, monkeypatch):
    def interrupted(self, id: str) -> Iterator[dict]:
        yield self.submission(id)
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "follow", interrupted)
    code, _, err = run("submit", packed, "--no-check", "--task", "toy")
    assert code == 0
    assert "it goes on. Look: tomoprobe status 00000000000000a0" in err
    assert server.submissions["00000000000000a0"]["state"] == "queued"
    assert server.count("POST .*/cancel") == 0


def test_json_is_one_document_on_stdout(server, packed, run):
    planned(server, *DONE)
    code, out, _ = run("submit", packed, "--no-check", "--task", "toy", "--json")
    assert code == 0 and json.loads(out)["state"] == "done"
    assert json.loads(run("status", "--json")[1])[0]["id"] == json.loads(out)["id"]
    assert json.loads(run("status", json.loads(out)["id"], "--json")[1])["state"] == "done"


@pytest.mark.parametrize("missing", ["nowhere", "manifest", "weights"])
def test_a_folder_that_was_not_packed_says_what_is_missing(server, packed, run, missing):
    manifest = packed / "manifest.toml"
    if missing == "manifest":
        manifest.unlink()
    if missing == "weights":
        text = manifest.read_text()
        manifest.write_text(text + '\n[weights]\nfile = "model.safetensors"\n')
    folder = packed / "nowhere" if missing == "nowhere" else packed
    code, _, err = run("submit", folder, "--task", "toy")
    assert code == 2 and "tomoprobe pack" in err.replace("\n", " ")
    assert server.asked == []


# --- predictions ---------------------------------------------------------------------------------


def parquet(path: Path, model_sha: str = "ab" * 32, task: str = "toy", probe: str = "knn") -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    about = json.dumps({"model_sha": model_sha, "task": task, "probe": probe}).encode()
    table = pa.table({"case": ["a"]}).replace_schema_metadata({b"tomoprobe": about})
    pq.write_table(table, path)


CARD = 'name = "mine"\ntitle = "Mine"\nauthors = "Me"\nlicense = "MIT"\npretraining = []\n'


def test_predictions_are_sent_as_one_file_and_called_self_run(server, tmp_path, run):
    (tmp_path / "manifest.toml").write_text(CARD)
    parquet(tmp_path / "toy.knn.parquet")
    parquet(tmp_path / "toy2.knn.parquet", task="toy2")
    code, _, err = run("submit", "--predictions", tmp_path, "--no-follow")
    assert code == 0, err
    assert "self-run: never ranked" in err
    (upload,) = server.uploads.values()
    assert (upload["kind"], upload["state"]) == ("predictions", "complete")
    sent = load(bytes(server.bytes[upload["id"]]))
    files = sorted(tmp_path.glob("*.parquet"))
    assert {name: raw.tobytes() for name, raw in sent.items()} == {
        file.name: file.read_bytes() for file in files
    }
    assert server.bodies[0]["tasks"] == ["toy", "toy2"]
    assert server.bodies[0]["upload"] == upload["id"]
    run("submit", "--predictions", tmp_path, "--no-follow")
    assert len(server.uploads) == 1, "the same predictions are the same file"


def test_what_needs_the_network_is_left_out_of_predictions_and_said(server, tmp_path, run):
    (tmp_path / "manifest.toml").write_text(CARD)
    parquet(tmp_path / "toy.linear.parquet", probe="linear")
    parquet(tmp_path / "toy.retrieve.parquet", probe="retrieve")
    parquet(tmp_path / "pairs.register.parquet", task="pairs", probe="register")
    code, _, err = run("submit", "--predictions", tmp_path, "--no-follow")
    assert code == 0, err
    assert "Left out 2 of 3 tables (register, retrieve: " in " ".join(err.split())
    (upload,) = server.uploads.values()
    assert set(load(bytes(server.bytes[upload["id"]]))) == {"toy.linear.parquet"}
    assert server.bodies[0]["tasks"] == ["toy"]


def test_predictions_of_networks_alone_are_refused_here(server, tmp_path, run):
    (tmp_path / "manifest.toml").write_text(CARD)
    parquet(tmp_path / "toy.retrieve.parquet", probe="retrieve")
    code, _, err = run("submit", "--predictions", tmp_path)
    assert code == 2
    assert "Submit the weights" in " ".join(err.split())
    assert server.asked == []


@pytest.mark.parametrize("case", ["none", "two models", "no predictions", "card"])
def test_predictions_that_are_no_submission_are_refused_here(server, tmp_path, run, case):
    (tmp_path / "manifest.toml").write_text(CARD if case != "card" else 'name = "mine"\n')
    if case != "none":
        parquet(tmp_path / "a.parquet")
    if case == "two models":
        parquet(tmp_path / "b.parquet", "cd" * 32)
    if case == "no predictions":
        (tmp_path / "b.parquet").write_bytes(b"PAR1")
    code, _, err = run("submit", "--predictions", tmp_path)
    assert code == 2
    expected = {"card": "license: missing", "two models": "2 models"}.get(case, "--predictions")
    assert expected in err
    assert server.asked == []


# --- status, logs and the rest --------------------------------------------------------------------


@pytest.fixture
def submitted(server: Server) -> str:
    with Client(server.url, TOKEN) as client:
        return client.submit("name = 'm'", None, tasks=["toy"])["id"]


def test_status_lists_submissions_and_shows_the_units_of_one(server, submitted, run):
    assert submitted in run("status")[1]
    why = {"code": "worker-lost", "stage": "extract", "message": "Gone.", "hint": "Ours."}
    server.submissions[submitted] |= {
        "state": "failed",
        **why,
        "jobs": [unit("check", "done", seconds=1.5), unit("extract", "failed", **why)],
    }
    code, out, _ = run("status", submitted)
    assert code == 2
    assert "2 of 2 units" in out and "extract toy" in out and "1.5" in out
    assert out.count("Gone. Ours. (worker-lost, in extract)") == 2


def test_a_waiting_submission_without_any_worker_is_said_so(server, submitted, run):
    server.submissions[submitted]["place"] = {"ahead": 0, "wait_s": None, "workers": 0}
    assert "no worker is running" in run("status", submitted)[1]


def test_logs_are_printed_without_control_characters(server, submitted, run):
    server.submissions[submitted]["logs"] = [unit("check", "done", log="one\n\x1b[31mtwo\u202e")]
    code, out, _ = run("logs", submitted)
    assert code == 0 and "--- check toy: done" in out
    assert "one" in out and "two" in out
    assert "\x1b" not in out and "\u202e" not in out


def test_followed_logs_print_each_line_once(server, submitted, run, monkeypatch):
    found = server.submissions[submitted]
    steps = [
        {"state": "checking", "logs": [unit("check", "running", log="a\nb")]},
        {"state": "checking", "logs": [unit("check", "running", log="b\nc")]},
        {"state": "done", "logs": [unit("check", "done", log="b\nc\nd")]},
    ]

    def next_step(seconds: float) -> None:
        found.update(steps.pop(0))

    next_step(0)
    monkeypatch.setattr("tomoprobe.submissions.submit_commands.time.sleep", next_step)
    code, out, _ = run("logs", submitted, "--follow")
    assert code == 0
    assert [line for line in out.split() if len(line) == 1] == ["a", "b", "c", "d"]


def test_cancel_and_withdraw_say_the_new_state(server, submitted, run):
    assert "my_model is cancelled" in run("cancel", submitted)[1]
    assert "my_model is withdrawn" in run("withdraw", submitted)[1]
    code, _, err = run("withdraw", submitted)
    assert code == 2 and "It is withdrawn already." in err


def test_edit_sends_only_what_was_named(server, submitted, run):
    assert run("edit", submitted, "--title", "New", "--pretraining", "IXI")[0] == 0
    assert server.bodies[-1] == {"title": "New", "pretraining": ["IXI"]}
    code, _, err = run("edit", submitted)
    assert code == 2 and "--title" in err


def test_an_id_that_is_not_known_is_an_error_of_one_line(server, run):
    for id in ("ffff", "f" * 16):
        code, out, err = run("status", id)
        assert (code, out) == (2, "") and err.count("\n") == 1


# --- login ---------------------------------------------------------------------------------------


def test_login_reads_the_token_from_standard_input_and_tries_it(server, run, tmp_path, monkeypatch):
    monkeypatch.setattr(logins, "user_config_dir", lambda *a, **k: str(tmp_path / "config"))
    monkeypatch.delenv(logins.TOKEN)
    monkeypatch.delenv(logins.SERVER)
    monkeypatch.setattr(sys, "stdin", io.StringIO("tmp_wrong\n"))
    code, out, err = run("login", "--server", server.url)
    assert code == 2 and "not valid" in err
    assert not (tmp_path / "config").exists(), "a token that does not work is not stored"
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{TOKEN}\n"))
    code, out, err = run("login", "--server", server.url + "/")
    assert code == 0 and "as ada (submitter)" in err
    assert TOKEN not in out + err
    assert logins.current() == logins.Login(server.url, TOKEN)
    assert run("status")[0] == 0


def test_without_a_login_every_command_says_how_to_log_in(run, tmp_path, monkeypatch):
    monkeypatch.setattr(logins, "user_config_dir", lambda *a, **k: str(tmp_path / "config"))
    monkeypatch.delenv(logins.TOKEN, raising=False)
    monkeypatch.delenv(logins.SERVER, raising=False)
    for command in (["status"], ["logs", "a"], ["cancel", "a"], ["withdraw", "a"]):
        code, _, err = run(*command)
        assert code == 2 and "tomoprobe login" in err


def test_what_a_server_says_cannot_steer_the_terminal(server, submitted, run):
    server.submissions[submitted]["name"] = "\x1b]0;owned\x07[red]x[/red]"
    out = run("status", submitted)[1] + run("status")[1]
    assert "\x1b" not in out and "\x07" not in out
    assert "[red]x[/red]" in out, "and markup is text"


# --- what is shown -------------------------------------------------------------------------------


def test_an_upload_tells_tenths_where_nothing_can_be_redrawn(capsys):
    with following.uploading("m") as sent:
        for offset in range(0, 1001, 10):
            sent(offset, 1000)
        sent(500, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1].split(" %")[0] for line in lines] == [
        str(p) for p in range(0, 101, 10)
    ]


def test_on_a_terminal_the_display_holds_state_bar_units_and_how_to_leave():
    from rich.console import Console

    console = Console(file=io.StringIO(), width=80)
    found = {"name": "m", **DONE[1]}
    console.print(following._Shown(found))
    text = console.file.getvalue()
    assert "m is evaluating: 1 of 2 units" in text
    assert "extract toy" in text and "Ctrl-C stops following" in text
