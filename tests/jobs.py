"""Submissions of tiny models on toy tasks, for tests of the worker."""

from dataclasses import replace
from pathlib import Path

import sqlalchemy as sa

from tomoprobe.benchmark.cache import FeatureCache
from tomoprobe.benchmark.errors import UnknownNameError
from tomoprobe.benchmark.types import Case, Task
from tomoprobe.leaderboard import accounts, db, queue
from tomoprobe.leaderboard.intake_records import Identity, Quota, Submission
from tomoprobe.submissions.units import Bench
from tomoprobe.submissions.upload_store import UploadStore

from . import toy

MANIFEST = """
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
shape = [8, 8, 8]
spacing = [1.0, 1.0, 1.0]

[intensity]
relative = {{type = "Window", low = -4.0, high = 4.0}}
"""

RICH = Quota(jobs_per_day=10_000, gpu_hours_per_month=1000.0, bytes_kept=1 << 30)


def task(name: str) -> Task:
    """``toy``, or one of its many siblings ``toy1``, ``toy2``, ... on the same images."""
    if not name.startswith("toy"):
        raise UnknownNameError.of("task", name, ["toy"])
    shift = int(name.removeprefix("toy") or 0)
    card = replace(toy.CARD, name=name, evidence=False)

    def cases(_: Path) -> list[Case]:
        return [
            replace(case, target=(index % 2) ^ (index % (shift + 7) == 0))
            for index, case in enumerate(toy.cases())
        ]

    return Task(card, cases)


def incomplete(name: str) -> Task:
    """As `task`, of which this copy lacks four test cases."""
    whole = task(name)
    return replace(whole, cases=lambda root: list(whole.cases(root))[:-4])


def bench(engine: sa.Engine, folder: Path, **changes: object) -> Bench:
    """A worker's surroundings below a folder."""
    made = Bench(
        engine=engine,
        cache=FeatureCache(folder / "features"),
        store=UploadStore(folder / "uploads"),
        task=task,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def submitter(engine: sa.Engine, name: str = "ada", quota: Quota = RICH) -> Identity:
    """A user with a token that lets him submit."""
    accounts.add_user(engine, name, "submitter", quota=quota)
    secret, _ = accounts.issue_token(engine, name, ["submit"])
    return accounts.authenticate(engine, secret, "submit")


def submit(
    engine: sa.Engine,
    identity: Identity,
    number: int = 0,
    tasks: tuple[str, ...] = ("toy",),
    probes: tuple[str, ...] = ("knn",),
    **changes: object,
) -> Submission:
    """A model without weights; another number is another model."""
    name = f"histogram{number}"
    values = {
        "manifest_text": MANIFEST.format(name=name, high=1.0 + number / 64),
        "name": name,
        "kind": "seed",
        "tasks": tasks,
        "probes": probes,
        **changes,
    }
    return queue.submit(engine, identity, **values)  # type: ignore[arg-type]


def migrated(url: str) -> sa.Engine:
    """An engine on a database with all tables."""
    engine = db.connect(url)
    db.migrate(engine)
    return engine
