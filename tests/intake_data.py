"""Users, submissions and jobs for tests: a database with them, and what a worker would do."""

from datetime import UTC, datetime

from sqlalchemy import Engine

from tomoprobe.leaderboard import accounts, queue
from tomoprobe.leaderboard.intake_records import Identity, Job, Planned, Quota, Submission

from .board_data import add, result, sha

NOW = 1_795_413_360.0
"""2026-11-23T05:56:00Z."""

MANIFEST = """
name = "a"
title = "The model a"
authors = "A. Author"
license = "Apache-2.0"
pretraining = []
"""

PLENTY = Quota(jobs_per_day=10_000, gpu_hours_per_month=1e6, bytes_kept=1 << 40)


def member(engine: Engine, name: str, quota: Quota = PLENTY) -> Identity:
    """A submitter who is logged in."""
    accounts.add_user(engine, name, "submitter", quota=quota, now=NOW)
    secret, _ = accounts.issue_token(engine, name, ["submit"], now=NOW)
    return accounts.authenticate(engine, secret, "submit", NOW)


def send(engine: Engine, who: Identity, now: float = NOW, **changes: object) -> Submission:
    """A submission from a seed, which needs no upload."""
    values = {
        "manifest_text": MANIFEST,
        "name": "a",
        "kind": "seed",
        "tasks": ["t"],
        "probes": ["linear"],
    }
    return queue.submit(engine, who, **values | changes, now=now)


def claimed(engine: Engine, owner: str = "w", now: float = NOW, **changes: object) -> Job:
    """The next job, which there is."""
    kinds = changes.pop("kinds", ("check", "extract", "probe"))
    job = queue.claim(engine, owner, kinds, **{"lease_s": 60.0} | changes, now=now)
    assert job is not None
    return job


def plan(*tasks: str) -> list[Planned]:
    """One data set per task, probed once."""
    return [Planned(f"data of {task}", probes=((task, "linear"),)) for task in tasks or ("t",)]


def stored(engine: Engine, job: Job, now: float = NOW, **changes: object) -> bool:
    """What a worker stores at the end of a probe: one row, and the end of the job."""
    model = queue.submission(engine, job.submission_id).name
    return add(
        engine,
        [result(model, job.task)],
        **{
            "origin": "verified",
            "added": datetime.fromtimestamp(now, UTC),
            "also": lambda connection: queue.finish(connection, job, log="done", now=now),
        }
        | changes,
    )


def do(engine: Engine, job: Job, tasks: tuple[str, ...] = ("t",), now: float = NOW) -> None:
    """Do a job well, whatever its kind."""
    if job.kind == "check":
        name = queue.submission(engine, job.submission_id).name
        queue.checked(engine, job, model_sha=sha(name), planned=plan(*tasks), now=now)
    elif job.kind == "extract":
        queue.finished(engine, job, now=now)
    else:
        stored(engine, job, now)


def do_all(engine: Engine, tasks: tuple[str, ...] = ("t",), now: float = NOW) -> int:
    """Do whatever waits; how many jobs that were."""
    count = 0
    while job := queue.claim(engine, "w", ("check", "extract", "probe"), now=now):
        do(engine, job, tasks, now)
        count += 1
    return count
