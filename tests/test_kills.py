"""Server, workers and networks are killed at random moments; the work is done once."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
import sqlalchemy as sa
from safetensors.numpy import save_file

from tomoprobe.benchmark.metrics import for_kind
from tomoprobe.leaderboard import accounts, db, queue, uploads
from tomoprobe.leaderboard.intake_records import Identity, Job
from tomoprobe.submissions._isolated_child import MODULE
from tomoprobe.submissions.client import Client
from tomoprobe.submissions.upload_files import measured

from . import jobs

TASKS = tuple(f"toy{k}" for k in range(98))
UNITS = 2 * (1 + 1 + len(TASKS))
"""Two models: a check, an extraction and 98 probes each."""

SITE_KILLS = 3
"""At most: it is not killed any more when little is left to do."""

START_S = 120.0
PATIENCE_S = 900.0
"""On a machine that others use as well. Alone it takes a minute."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds processes in /proc"),
]


class Workers:
    """Two workers, and a new one for each that dies."""

    def __init__(self, url: str, folder: Path) -> None:
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "tests.killed_worker", url, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
        )
        self.pids = [self._start(), self._start()]

    def _start(self) -> int:
        assert self._zygote.stdin and self._zygote.stdout
        self._zygote.stdin.write("another\n")
        self._zygote.stdin.flush()
        return int(self._zygote.stdout.readline())

    def kill(self, index: int) -> None:
        """End one without warning and start another."""
        os.kill(self.pids[index], signal.SIGKILL)
        self.pids[index] = self._start()

    def children(self) -> list[int]:
        """Processes that hold a network, and those between."""
        found = []
        for folder in Path("/proc").iterdir():
            with suppress(OSError, ValueError, IndexError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                command = (folder / "cmdline").read_bytes().split(b"\0")
                if parent in {*self.pids, *found} and MODULE.encode() in command:
                    found.append(int(folder.name))
        return found

    def stop(self) -> None:
        """Ask them to end."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        self._zygote.communicate(timeout=60)


@pytest.fixture
def workers(url: str, tmp_path: Path, engine: sa.Engine) -> Iterator[Workers]:
    made = Workers(url, tmp_path)
    yield made
    made.stop()


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    made = jobs.migrated(url)
    yield made
    made.dispose()


class Site:
    """A site on one port, killed at random moments and started again each time."""

    def __init__(self, url: str, folder: Path, engine: sa.Engine) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self.starts = self.kills = self.kills_at_work = 0
        self._command = [sys.executable, "-m", "tests.killed_site", url, str(folder), str(port)]
        self._engine = engine
        self._dice = random.Random(8)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        while not self._ended.is_set():
            process = subprocess.Popen(
                [*self._command, *TASKS],
                cwd=Path(__file__).parent.parent,
            )
            try:
                while not self._answers() and not self._ended.wait(0.1):
                    assert process.poll() is None, "the site ends by itself"
                self.starts += 1
                while self.kills == SITE_KILLS or self._left() < 40:
                    if self._ended.wait(0.1):
                        return
                self._ended.wait(self._dice.uniform(0.5, 3.0))
                self.kills_at_work += self._left() > 0
                self.kills += 1
            finally:
                process.kill()
                process.wait()

    def _left(self) -> int:
        now = counted(self._engine)
        return now["waiting"] + now["running"]

    def _answers(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.address}/readyz").status_code == 200
        return False

    def wait_for_start(self, number: int) -> None:
        """Until it answers after that start."""
        until = time.monotonic() + START_S
        while self.starts < number:
            assert time.monotonic() < until, "the site was not killed, or does not start"
            time.sleep(0.05)

    def stop(self) -> None:
        """End it."""
        self._ended.set()
        self._thread.join(30)


@pytest.fixture
def site(url: str, tmp_path: Path, engine: sa.Engine) -> Iterator[Site]:
    made = Site(url, tmp_path, engine)
    yield made
    made.stop()


def visit(site: Site, secret: str, folder: Path) -> list[str]:
    """Submit two models, upload a file, and follow both to the end; gives their last states."""
    file = folder / "model.safetensors"
    save_file({"a": np.random.default_rng(0).normal(size=200_000)}, file)
    site.wait_for_start(1)
    with Client(site.address, secret) as client:

        def submit(number: int) -> str:
            text = jobs.MANIFEST.format(name=f"histogram{number}", high=1.0 + number / 64)
            return client.submit(text, None, tasks=TASKS, probes=("knn",))["id"]

        ids = [submit(0)]
        # slowly, so that the site is killed in between
        client.upload(measured(file), "safetensors", lambda offset: time.sleep(0.2))
        site.wait_for_start(2)
        ids.append(submit(1))
        return [list(client.follow(id))[-1]["state"] for id in ids]


def all_jobs(engine: sa.Engine) -> list[Job]:
    return [job for sent in queue.submissions(engine) for job in queue.jobs(engine, sent.id)]


def counted(engine: sa.Engine) -> Counter[str]:
    """Jobs by state, and under ``first`` those that are no probes and have not ended."""
    found: Counter[str] = Counter()
    for (kind, state), n in queue.depths(engine).items():
        found[state] += n
        if kind != "probe" and state in ("waiting", "running"):
            found["first"] += n
    return found


def test_200_units_are_done_once_whoever_is_killed(
    engine: sa.Engine, workers: Workers, site: Site, tmp_path: Path
):
    identity = jobs.submitter(engine)
    secret, _ = accounts.issue_token(engine, "ada", ["read", "submit"])
    with ThreadPoolExecutor(1) as pool:
        visited = pool.submit(visit, site, secret, tmp_path)
        dice, killed, due = random.Random(7), Counter[str](), 10
        until = time.monotonic() + PATIENCE_S
        while not visited.done():
            now, sent = counted(engine), len(queue.submissions(engine))
            if time.monotonic() > until:
                site.stop()  # else the visitor would go on
                pytest.fail(f"stuck: {dict(now)}")
            left = UNITS - now["done"] - now["failed"] - now["cancelled"]
            networks = workers.children()
            if networks and killed["network"] < sent:
                time.sleep(dice.uniform(0.0, 2.0))
                for pid in networks:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                killed["network"] += 1
            elif now["first"] and killed["early"] < sent:
                time.sleep(dice.uniform(0.0, 3.0))
                workers.kill(dice.randrange(2))
                killed["early"] += 1
            elif now["done"] >= due and left > 20:
                # by what was done, not by the clock: else a busy machine would see only kills
                time.sleep(dice.uniform(0.0, 0.5))
                workers.kill(dice.randrange(2))
                killed["late"] += 1
                due = now["done"] + dice.randint(2, 12)
            else:
                time.sleep(0.1)
    assert killed["network"] == killed["early"] == 2
    assert killed["late"] >= 10
    assert site.kills_at_work >= 2
    check_all_is_well(engine)
    check_site(site, engine, visited.result())
    check_upload(engine, identity, tmp_path)


def check_all_is_well(engine: sa.Engine) -> None:
    """Nothing is lost, doubled or stuck, and every failure has a reason."""
    ended = all_jobs(engine)
    assert len(ended) == UNITS
    assert {job.state for job in ended} <= {"done", "failed", "cancelled"}
    for job in ended:
        if job.state != "done":
            assert job.code
            assert job.message
            assert job.hint
    done = [job for job in ended if job.state == "done"]
    assert len(done) >= 0.9 * UNITS
    sha = {sent.id: sent.model_sha for sent in queue.submissions(engine)}
    units = [(unit.model_sha, unit.task, unit.probe) for unit in db.units(engine)]
    probed = [(sha[job.submission_id], job.task, job.probe) for job in done if job.kind == "probe"]
    assert sorted(units) == sorted(probed)
    metrics = [metric.name for metric in for_kind("classification")]
    rows = Counter(
        (r.result.model_sha, r.result.task, r.result.probe, r.result.metric)
        for r in db.rows(engine)
    )
    assert set(rows.values()) == {1}
    assert set(rows) == {(*unit, metric) for unit in units for metric in metrics}
    for sent in queue.submissions(engine):
        its = [job for job in ended if job.submission_id == sent.id]
        assert sent.state == ("done" if all(job.state == "done" for job in its) else "failed")
        assert sent.state == "done" or sent.message


def check_site(site: Site, engine: sa.Engine, states: list[str]) -> None:
    """It told how both submissions ended, and shows every row once."""
    assert states == [sent.state for sent in reversed(queue.submissions(engine))]
    names = ("model_sha", "task", "probe", "metric")
    answer = httpx.get(f"{site.address}/api/v1/results").raise_for_status().json()
    shown = Counter(tuple(row[name] for name in names) for row in answer["results"])
    assert set(shown.values()) == {1}
    assert set(shown) == {tuple(getattr(r.result, n) for n in names) for r in db.rows(engine)}


def check_upload(engine: sa.Engine, identity: Identity, folder: Path) -> None:
    """The file that was sent while the site was killed is there once, as it was."""
    [upload] = uploads.uploads(engine, identity)
    assert upload.state == "complete"
    kept = measured(folder / "uploads" / upload.file)
    assert kept.sha256 == measured(folder / "model.safetensors").sha256
