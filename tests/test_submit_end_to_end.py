"""From a checkpoint on a laptop to a row on the board: every part is the real one."""

import io
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import nibabel as nib
import numpy as np
import pytest
import sqlalchemy as sa

from tomoprobe.leaderboard import queue
from tomoprobe.leaderboard.intake_records import Submission
from tomoprobe.submissions import baselines, isolation, logins
from tomoprobe.tasks.msd_hippocampus import FOLDER, IDS

from .running_site import FACTS, SHAPES, resnet18, site, swin_unetr, token_of, worker
from .test_cli import typed
from .test_submission_forms import Page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(isolation.available() is not None, reason="no process is closed off here"),
]

TASK, PROBE = "smoke_lesion", "knn"

FEW_CASES = "msd_hippocampus_volume"
"""A task of which ``data`` has a few cases: for networks that take long for each."""

PATIENCE_S = 600.0
"""For a worker on a busy machine."""


class Platform(NamedTuple):
    """A server with its worker, and the folder of its user."""

    address: str
    url: str
    folder: Path
    engine: sa.Engine

    def page(self, path: str) -> str:
        """What a visitor reads, without the places where a long name may break."""
        return httpx.get(self.address + path).text.replace("<wbr>", "")

    def rows(self, **query: str) -> list[dict]:
        """Of the public API."""
        return httpx.get(f"{self.address}/api/v1/results", params=query).json()["results"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in which a box is as bright as it is large, under 40 names of the public set."""
    root = tmp_path_factory.mktemp("data")
    draw, affine = np.random.default_rng(0), np.eye(4)
    for name in ("imagesTr", "labelsTr"):
        (root / FOLDER / name).mkdir(parents=True)
    for case in IDS[:40]:
        size = draw.integers(4, 12)
        mask = np.zeros((34, 46, 30), np.uint8)
        mask[10 : 10 + size, 10:20, 10:20] = 1
        image = draw.normal(size=mask.shape) + size * mask
        nib.save(nib.Nifti1Image(image.astype(np.float32), affine), _nifti(root, "imagesTr", case))
        nib.save(nib.Nifti1Image(mask, affine), _nifti(root, "labelsTr", case))
    return root


def _nifti(root: Path, folder: str, case: str) -> Path:
    return root / FOLDER / folder / f"{case}.nii.gz"


@pytest.fixture(scope="module")
def platform(
    tmp_path_factory: pytest.TempPathFactory, home: Path, data: Path
) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("platform")
    url, store = f"sqlite:///{folder / 'board.db'}", folder / "store"
    log = folder / "worker.log"
    with site(url, store) as (address, engine), worker(url, store, home, log, data):
        yield Platform(address, url, folder, engine)


@pytest.fixture
def run(platform: Platform, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """``run(*arguments)`` as the user Ada, who is logged in."""
    monkeypatch.setattr(logins, "user_config_dir", lambda *a, **k: str(platform.folder / "config"))
    for name in (logins.SERVER, logins.TOKEN):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TOMOPROBE_DB", platform.url)
    if not logins.path().exists():
        code, out, err = typed(capsys, "users", "add", "ada")
        assert code == 0, err
        (token,) = re.findall(r"tmp_[A-Za-z0-9_-]{43}", out)
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{token}\n"))
        code, _, err = typed(capsys, "login", "--server", platform.address)
        assert code == 0 and "as ada (submitter)" in err
    return lambda *arguments: typed(capsys, *arguments)


@pytest.mark.parametrize("make", [resnet18, swin_unetr], ids=lambda make: make.__name__)
def test_a_checkpoint_of_monai_becomes_a_verified_row(platform, run, tmp_path, make):
    make(tmp_path / "checkpoint.pt")
    name, packed = f"my_{make.__name__}", tmp_path / "packed"
    code, _, err = run(
        "pack",
        tmp_path / "checkpoint.pt",
        "--out",
        packed,
        "--yes",
        "--name",
        name,
        "--shape",
        SHAPES[make.__name__],
        *FACTS,
    )
    assert code == 0, err
    code, out, err = run("submit", packed, "--task", TASK, "--probe", PROBE, "--json")
    found = json.loads(out)
    assert code == 0 and found["state"] == "done", err + _log(platform)
    assert f"{name} passes the checks of the server: {found['model_sha']}" in err
    rows = platform.rows(model=found["model_sha"])
    assert rows and {row["origin"] for row in rows} == {"verified"}
    assert {(row["model"], row["task"], row["probe"]) for row in rows} == {(name, TASK, PROBE)}
    assert name in platform.page(f"/?probe={PROBE}")
    code, out, _ = run("status", found["id"])
    assert code == 0 and "3 of 3 units" in out
    for unit in ("check", "extract", "probe"):
        assert re.search(rf"--- {unit}.*: done", run("logs", found["id"])[1])
    # another upload of the same bytes is not asked for, and the same model is told to be there
    again = json.loads(run("submit", packed, "--task", TASK, "--probe", PROBE, "--json")[1])
    assert (again["state"], again["duplicate_of"]) == ("duplicate", found["id"])
    assert again["upload"] == found["upload"]


def by_command(platform: Platform, run, packed: Path) -> str:
    """Submit a packed model with ``tomoprobe submit``; gives the id."""
    arguments = ("--no-check", "--task", FEW_CASES, "--probe", PROBE, "--json")
    code, out, err = run("submit", packed, *arguments)
    assert code == 0, err + _log(platform)
    return json.loads(out)["id"]


def by_form(platform: Platform, run, packed: Path) -> str:
    """Submit it with the form, as a browser without scripts does; gives the id."""
    with httpx.Client(base_url=platform.address, timeout=60) as visitor:
        visitor.post("/login", data={"token": token_of(platform.engine, "grace")})
        page = Page(visitor.get("/submit").text)
        answer = visitor.post(
            "/submit",
            data={"csrf": page.forms["/submit"]["csrf"], "task": FEW_CASES, "probe": PROBE},
            files={
                "manifest_file": ("manifest.toml", (packed / "manifest.toml").read_bytes()),
                "file": ("model.safetensors", (packed / "model.safetensors").read_bytes()),
            },
        )
        assert answer.status_code == 303, Page(answer.text).text
        return answer.headers["location"].rpartition("/")[2]


@pytest.mark.parametrize(
    ("name", "submit"), [("coralbay_tiny", by_command), ("anatomix_tiny", by_form)]
)
def test_a_reference_encoder_is_submitted_like_anybodys(
    platform, run, tmp_path, monkeypatch, data, name, submit
):
    packed = tmp_path / "packed"
    packed.mkdir()
    text = baselines.path(name).read_text().replace(f"{name}.safetensors", "model.safetensors")
    # the smallest grid that both take
    text = re.sub(r"shape = \[.*\]", "shape = [32, 32, 32]", text)
    (packed / "manifest.toml").write_text(text)
    weights = baselines.path(name).with_suffix(".safetensors").read_bytes()
    (packed / "model.safetensors").write_bytes(weights)
    id = submit(platform, run, packed)
    found = _ended(platform, id)
    assert found.state == "done", f"{found.message} {_log(platform)}"
    theirs = platform.rows(model=found.model_sha)
    assert {(row["model"], row["origin"]) for row in theirs} == {(name, "verified")}
    assert name in platform.page(f"/?probe={PROBE}")
    # the same on one's own machine, which has none of these features
    monkeypatch.setenv("TOMOPROBE_HOME", str(tmp_path / "home"))
    code, _, err = run(
        *("evaluate", "-e", packed / "manifest.toml", "--task", FEW_CASES, "--probe", PROBE),
        *("--data-root", data, "--subset"),
        *("--db", f"sqlite:///{tmp_path / 'mine.db'}", "--json", tmp_path / "rows.jsonl"),
        *("--out", tmp_path / "out", "--device", "cpu"),
    )
    assert code == 0, err
    mine = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row["model_sha"] for row in mine} == {found.model_sha}
    assert {row["metric"]: row["score"] for row in theirs} == {
        row["metric"]: pytest.approx(row["score"], abs=1e-6) for row in mine
    }


def test_predictions_of_ones_own_are_recomputed_and_called_self_run(
    platform, run, tmp_path, monkeypatch
):
    monkeypatch.delenv("TOMOPROBE_DB")
    code, _, err = run(
        *("evaluate", "-e", "intensity", "--task", TASK, "--probe", PROBE),
        *("--db", tmp_path / "mine.db", "--json", tmp_path / "rows.jsonl"),
        *("--predictions", tmp_path / "p", "--out", tmp_path / "out", "--device", "cpu"),
    )
    assert code == 0, err
    card = 'name = "mine"\ntitle = "Mine"\nauthors = "Me"\nlicense = "MIT"\npretraining = []\n'
    (tmp_path / "p" / "manifest.toml").write_text(card)
    code, out, err = run("submit", "--predictions", tmp_path / "p", "--json")
    found = json.loads(out)
    assert code == 0 and found["state"] == "done", err + _log(platform)
    assert found["kind"] == "self-run" and "self-run: never ranked" in err
    theirs = platform.rows(model=found["model_sha"])
    mine = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row["origin"] for row in theirs} == {"self-run"}
    assert {(r["metric"], r["score"], r["low"]) for r in theirs} == {
        (r["metric"], r["score"], r["low"]) for r in mine
    }


def test_what_is_withdrawn_is_not_shown_and_what_is_edited_is(platform, run, tmp_path):
    id, sha = _submitted(run, tmp_path, "histogram", 0.5)
    code, out, _ = run("edit", id, "--title", "A better title")
    assert code == 0
    assert "A better title" in platform.page(f"/models/{sha}")
    assert platform.rows(model=sha)
    code, out, _ = run("withdraw", id)
    assert code == 0 and "histogram is withdrawn" in out
    assert platform.rows(model=sha) == []
    assert httpx.get(f"{platform.address}/models/{sha}").status_code == 404


def test_an_anonymous_row_does_not_say_whose_it_is(platform, run, tmp_path):
    _, sha = _submitted(run, tmp_path, "secret_name", 0.25, "--anonymous")
    names = {row["model"] for row in platform.rows(model=sha)}
    assert len(names) == 1 and re.fullmatch(r"anonymous-[0-9a-f]{4}", names.pop())
    assert "secret_name" not in platform.page(f"/models/{sha}")


def test_a_row_under_embargo_is_not_shown(platform, run, tmp_path):
    from datetime import UTC, datetime, timedelta

    tomorrow = (datetime.now(UTC) + timedelta(days=2)).date().isoformat()
    _, sha = _submitted(run, tmp_path, "early", 0.125, "--embargo", tomorrow)
    assert platform.rows(model=sha) == []


def test_a_refusal_by_the_worker_comes_back_with_code_stage_and_hint(platform, run, tmp_path):
    packed = _packed(tmp_path, "bad", high=-1.0)  # below its low, which only the network knows
    code, out, err = run("submit", packed, "--no-check", "--task", TASK, "--probe", PROBE)
    assert code == 2
    assert re.search(r"bad is failed: .+ \([a-z0-9-]+, in check\)", out), out + err


def test_a_cancelled_submission_stops(platform, run, tmp_path):
    packed = _packed(tmp_path, "unwanted", 0.875)
    flags = ("--no-check", "--no-follow", "--json")
    code, out, err = run("submit", packed, "--suite", "medmnist3d", *flags)
    assert code == 0, err
    id = json.loads(out)["id"]
    code, out, err = run("cancel", id, "--json")
    found = json.loads(out)
    assert code == 0 and found["state"] == "cancelled", err
    assert {unit["state"] for unit in found["jobs"]} <= {"cancelled", "done"}
    code, _, err = run("cancel", id)
    assert code == 2 and err.strip()


def _ended(platform: Platform, id: str) -> Submission:
    """A submission, once nothing more happens to it."""
    until = time.monotonic() + PATIENCE_S
    while (found := queue.submission(platform.engine, id)).active:
        assert time.monotonic() < until, f"{id} stays {found.state}"
        time.sleep(0.1)
    return found


def _submitted(run, folder: Path, name: str, high: float, *flags: str) -> tuple[str, str]:
    """Id and model of a tiny submission that is done."""
    packed = _packed(folder, name, high)
    arguments = ("--no-check", "--task", TASK, "--probe", PROBE, "--json", *flags)
    code, out, err = run("submit", packed, *arguments)
    found = json.loads(out)
    assert code == 0 and found["state"] == "done", (err, found)
    return found["id"], found["model_sha"]


def _packed(folder: Path, name: str, high: float) -> Path:
    """A model without weights, on scanner units scaled by percentiles."""
    packed = folder / name
    packed.mkdir()
    (packed / "manifest.toml").write_text(
        f"""
name = "{name}"
title = "Histogram"
authors = "tests"
license = "Apache-2.0"
readout = "histogram"
pretraining = []

[architecture]
name = "intensity"

[architecture.arguments]
low = 0.0
high = {high}

[grid]
shape = [16, 16, 16]

[intensity]
scanner = {{type = "MinMax"}}
relative = {{type = "Window", low = 0.0, high = 1.0}}
"""
    )
    return packed


def _log(platform: Platform) -> str:
    return (platform.folder / "worker.log").read_text()
