"""Workers and the processes of networks are killed at random moments; the work is done once."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from tomoprobe.benchmark.metrics import for_kind
from tomoprobe.leaderboard import db, queue
from tomoprobe.leaderboard.intake_records import Job
from tomoprobe.submissions._isolated_child import MODULE

from . import jobs

TASKS = tuple(f"toy{k}" for k in range(98))
UNITS = 2 * (1 + 1 + len(TASKS))
"""Two models: a check, an extraction and 98 probes each."""

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


def test_200_units_are_done_once_whoever_is_killed(engine: sa.Engine, workers: Workers):
    identity = jobs.submitter(engine)
    for number in range(2):
        jobs.submit(engine, identity, number, tasks=TASKS)
    dice, killed, due = random.Random(7), Counter[str](), 10
    until = time.monotonic() + PATIENCE_S
    while (now := counted(engine))["waiting"] + now["running"]:
        assert time.monotonic() < until, f"stuck: {dict(now)}"
        left = UNITS - now["done"] - now["failed"] - now["cancelled"]
        networks = workers.children()
        if networks and killed["network"] < 2:
            time.sleep(dice.uniform(0.0, 2.0))
            for pid in networks:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed["network"] += 1
        elif now["first"] and killed["early"] < 2:
            time.sleep(dice.uniform(0.0, 3.0))
            workers.kill(dice.randrange(2))
            killed["early"] += 1
        elif now["done"] >= due and left > 20:
            # by what was done, not by the clock: else a busy machine would see nothing but kills
            time.sleep(dice.uniform(0.0, 0.5))
            workers.kill(dice.randrange(2))
            killed["late"] += 1
            due = now["done"] + dice.randint(2, 12)
        else:
            time.sleep(0.1)
    assert killed["network"] == killed["early"] == 2
    assert killed["late"] >= 10
    check_all_is_well(engine)


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
