"""Jobs: what a worker does, what it says when it cannot, and what becomes of a job it drops."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
import torch
from safetensors.numpy import save, save_file

from tomoprobe.benchmark import evaluate, predictions, probes, splits
from tomoprobe.benchmark.cache import MAPS
from tomoprobe.benchmark.errors import (
    DataError,
    EncoderError,
    IntakeError,
    IsolationError,
    ManifestError,
    ProbeError,
    StorageError,
    UnknownNameError,
)
from tomoprobe.benchmark.features import extract
from tomoprobe.benchmark.types import Task
from tomoprobe.leaderboard import accounts, db, queue, quotas, uploads
from tomoprobe.leaderboard.intake_records import Identity, Job, Submission
from tomoprobe.submissions import (
    declarations,
    isolation,
    runner,
    self_runs,
    units,
    worker,
    worker_commands,
)
from tomoprobe.submissions.faults import explain
from tomoprobe.submissions.job_log import MAX_BYTES, MAX_LINES, JobLog, clean
from tomoprobe.submissions.load import load
from tomoprobe.submissions.units import Bench, Facts
from tomoprobe.submissions.worker import KEEP_MAPS_S, TRIES, Terms, work

from . import jobs, toy
from .test_cli import typed

TERMS = Terms(lease_s=30.0, beat_s=0.05, poll_s=0.05, retry_s=0.0, left_s=0.0)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    made = jobs.migrated(f"sqlite:///{tmp_path / 'board.db'}")
    yield made
    made.dispose()


@pytest.fixture
def identity(engine: sa.Engine) -> Identity:
    return jobs.submitter(engine)


class Network:
    """Stands for the closed-off process: the same encoder, in this process."""

    def __init__(self) -> None:
        self.during: Callable[[], None] = lambda: None
        """Called with every batch."""
        self.starts = 0
        self.unsafe = False

    @contextmanager
    def isolated(
        self, path: Path, device: str, limits: object = None, *, unsafe_local: bool = False
    ) -> Iterator[object]:
        self.starts += 1
        encoder = load(str(path), device=device)

        def embed(x: torch.Tensor) -> torch.Tensor:
            self.during()
            return encoder.embed(x)

        yield SimpleNamespace(
            card=encoder.card,
            model_sha=encoder.model_sha,
            manifest=encoder.manifest,
            module=encoder.module,
            maps=encoder.maps,
            embed=embed,
            log="a line of the network",
            unsafe=self.unsafe,
            shuffled=False,
            device=device,
        )


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    made = Network()
    monkeypatch.setattr(isolation, "isolated", made.isolated)
    monkeypatch.setattr(isolation, "available", lambda: None)
    return made


@pytest.fixture
def bench(engine: sa.Engine, tmp_path: Path, network: Network) -> Bench:
    return jobs.bench(engine, tmp_path)


def states(engine: sa.Engine, submission: Submission) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for job in queue.jobs(engine, submission.id):
        found.setdefault(job.kind, []).append(job.state)
    return found


def job_of(engine: sa.Engine, submission: Submission, kind: str = "check") -> Job:
    return next(job for job in queue.jobs(engine, submission.id) if job.kind == kind)


# --- from a submission to rows -----------------------------------------------------------------


def test_a_submission_becomes_verified_rows(bench: Bench, identity: Identity, network: Network):
    sent = jobs.submit(bench.engine, identity, tasks=("toy", "toy1"), probes=("knn", "linear"))
    work(bench, TERMS, once=True)
    after = queue.submission(bench.engine, sent.id)
    assert (after.state, after.message) == ("done", None)
    assert states(bench.engine, sent) == {
        "check": ["done"],
        "extract": ["done"],  # the two tasks are on one data set
        "probe": ["done"] * 4,
    }
    rows = db.rows(bench.engine)
    assert {(row.result.task, row.result.probe) for row in rows} == {
        (task, probe) for task in ("toy", "toy1") for probe in ("knn", "linear")
    }
    assert {(row.origin, row.unsafe) for row in rows} == {("verified", False)}
    assert {row.result.model_sha for row in rows} == {after.model_sha}
    assert network.starts == 2  # of the check and of the extraction: probes need no network


def test_the_rows_are_those_of_a_run_on_this_machine(bench: Bench, identity: Identity):
    sent = jobs.submit(bench.engine, identity, probes=("linear",))
    work(bench, TERMS, once=True)
    encoder = replace_in_process(bench, sent)
    opened = runner.open_task(jobs.task("toy"), None, False)
    x = extract(encoder, opened.cases, None)
    probe = probes.get("linear")
    table = evaluate.predict(opened.task.card, opened.cases, x, probe)
    [(unit, parquet)] = db.predictions(bench.engine)
    assert unit.model_sha == encoder.model_sha
    stored, _ = predictions.from_parquet(parquet)
    np.testing.assert_allclose(stored["p1"], table["p1"], rtol=1e-12)


def replace_in_process(bench: Bench, sent: Submission):
    path = bench.cache.folder.parent / "again.toml"
    path.write_text(sent.manifest)
    return load(str(path))


def test_what_ran_without_isolation_says_so(bench: Bench, identity: Identity, network: Network):
    network.unsafe = True
    jobs.submit(bench.engine, identity)
    work(replace(bench, unsafe_local=True), TERMS, once=True)
    rows = db.rows(bench.engine)
    assert rows
    assert all(row.unsafe for row in rows)


def test_an_incomplete_copy_is_refused_unless_it_was_accepted(bench: Bench, identity: Identity):
    sent = jobs.submit(bench.engine, identity)
    partly = replace(bench, task=jobs.incomplete, subset=True)
    work(replace(partly, subset=False), TERMS, once=True)
    assert job_of(bench.engine, sent, "extract").code == "data-missing"
    assert not db.rows(bench.engine)
    again = jobs.submit(bench.engine, identity)
    work(partly, TERMS, once=True)
    assert queue.submission(bench.engine, again.id).state == "done"
    rows = db.rows(bench.engine)
    assert rows and all(row.result.subset for row in rows)


def test_whoever_accepts_incomplete_copies_does_not_mark_complete_ones(
    bench: Bench, identity: Identity
):
    jobs.submit(bench.engine, identity)
    work(replace(bench, subset=True), TERMS, once=True)
    rows = db.rows(bench.engine)
    assert rows and not any(row.result.subset for row in rows)


def test_features_made_without_isolation_stay_marked(
    bench: Bench, identity: Identity, network: Network
):
    network.unsafe = True
    jobs.submit(bench.engine, identity)
    unsafe = replace(bench, unsafe_local=True)
    work(unsafe, replace(TERMS, kinds=("check",)), once=True)
    work(unsafe, replace(TERMS, kinds=("extract",)), once=True)
    network.unsafe = False
    work(bench, TERMS, once=True)
    assert [row.unsafe for row in db.rows(bench.engine)] == [True] * len(db.rows(bench.engine))


def test_the_same_model_again_is_a_duplicate_with_a_link(
    bench: Bench, identity: Identity, network: Network
):
    first = jobs.submit(bench.engine, identity)
    work(bench, TERMS, once=True)
    starts, rows = network.starts, len(db.rows(bench.engine))
    second = jobs.submit(bench.engine, identity)
    work(bench, TERMS, once=True)
    after = queue.submission(bench.engine, second.id)
    assert (after.state, after.duplicate_of) == ("duplicate", first.id)
    assert len(db.rows(bench.engine)) == rows
    assert network.starts == starts + 1  # its check


def test_features_that_were_evicted_are_extracted_again(
    bench: Bench, identity: Identity, network: Network
):
    sent = jobs.submit(bench.engine, identity)
    for kind in ("check", "extract"):
        work(bench, replace(TERMS, kinds=(kind,)), once=True)
    starts = network.starts
    bench.cache.clean()
    for file in bench.cache.folder.glob("encoder-*.json"):
        file.unlink()
    work(bench, TERMS, once=True)
    assert queue.submission(bench.engine, sent.id).state == "done"
    assert network.starts == starts + 1
    assert db.rows(bench.engine)


def test_maps_go_with_the_last_job_of_their_submission_or_after_a_day(
    bench: Bench, identity: Identity
):
    sent = jobs.submit(bench.engine, identity)
    ours, others, old = (maps_of(bench, name) for name in (sent.name, "others", "forgotten"))
    os.utime(old, (0, time.time() - KEEP_MAPS_S - 60))
    for kind in ("check", "extract"):
        work(bench, replace(TERMS, kinds=(kind,)), once=True)
    assert (ours.exists(), others.exists(), old.exists()) == (True, True, False)
    work(bench, TERMS, once=True)
    assert queue.submission(bench.engine, sent.id).state == "done"
    assert (ours.exists(), others.exists()) == (False, True)
    assert {entry.what for entry in bench.cache.entries() if entry.model == sent.name} == {
        "embeddings"
    }


def maps_of(bench: Bench, model: str) -> Path:
    """One file of maps, as a dense protocol leaves it."""
    file = bench.cache.folder / MAPS / model / "case.safetensors"
    file.parent.mkdir(parents=True)
    save_file({"level_0": np.zeros((1, 2, 2, 2), np.float32)}, file, {"model": model})
    return file


def test_rows_and_the_end_of_a_job_are_one_transaction(
    bench: Bench, identity: Identity, monkeypatch: pytest.MonkeyPatch
):
    jobs.submit(bench.engine, identity)
    for kind in ("check", "extract"):
        work(bench, replace(TERMS, kinds=(kind,)), once=True)

    def gone(_: object, job: Job, **__: object) -> None:
        raise queue.LostLease(job)

    with monkeypatch.context() as patch:
        patch.setattr(queue, "finish", gone)
        job = queue.claim(bench.engine, "other", ["probe"], 30.0)
        assert job is not None
        with pytest.raises(queue.LostLease):
            units.probe(bench, job, queue.submission(bench.engine, job.submission_id), JobLog())
    assert not db.rows(bench.engine)
    queue.give_back(bench.engine, job)
    work(bench, TERMS, once=True)
    assert db.rows(bench.engine)


# --- faults --------------------------------------------------------------------------------------


def test_a_fault_of_the_submission_is_told_and_not_tried_again(bench: Bench, identity: Identity):
    broken = jobs.MANIFEST.format(name="broken", high=0.0)  # an empty range
    sent = jobs.submit(bench.engine, identity, manifest_text=broken)
    work(bench, TERMS, once=True)
    after, job = queue.submission(bench.engine, sent.id), job_of(bench.engine, sent)
    assert (after.state, job.state, job.attempt) == ("failed", "failed", 1)
    assert after.code == job.code == "arguments-invalid"
    assert after.stage == "check"
    assert after.message
    assert after.hint
    assert job.log.splitlines()[-1].startswith("arguments-invalid: ")


def test_an_encoder_that_fails_on_the_data_fails_its_submission(
    bench: Bench, identity: Identity, network: Network
):
    sent = jobs.submit(bench.engine, identity)
    work(bench, replace(TERMS, kinds=("check",)), once=True)

    def crash() -> None:
        raise ValueError("\x1b[31mno such layer\x07")

    network.during = crash
    work(bench, TERMS, once=True)
    after, job = queue.submission(bench.engine, sent.id), job_of(bench.engine, sent, "extract")
    assert (after.state, after.code, after.stage) == ("failed", "encoder", "extract")
    assert job.attempt == 1
    assert "no such layer" in job.log
    assert "a line of the network" in job.log
    assert "\x1b" not in job.log
    assert job_of(bench.engine, sent, "probe").state == "cancelled"


def test_a_fault_of_the_platform_is_tried_again_refunded_and_not_blamed(
    bench: Bench, identity: Identity
):
    def missing(name: str):
        def cases(root: Path):
            raise DataError("/srv/secret/place is not there")

        return replace(jobs.task(name), cases=cases)

    sent = jobs.submit(bench.engine, identity)
    assert quotas.used(bench.engine, identity.user)["jobs"] == 1
    work(replace(bench, task=missing), TERMS, once=True)
    after, job = queue.submission(bench.engine, sent.id), job_of(bench.engine, sent, "extract")
    assert (after.state, after.code, job.attempt) == ("failed", "data-missing", TRIES)
    assert "fault of the platform" in (after.message or "")
    assert "secret" not in f"{after.message}{after.hint}{job.log}"
    assert quotas.used(bench.engine, identity.user)["jobs"] == 0


def test_a_fault_of_the_platform_that_passes_leaves_no_trace(
    bench: Bench, identity: Identity, monkeypatch: pytest.MonkeyPatch
):
    write, tries = type(bench.cache)._write, []

    def full(*arguments: object) -> None:
        tries.append(1)
        if len(tries) < TRIES:
            raise OSError(28, "No space left on device")
        write(*arguments)

    monkeypatch.setattr(type(bench.cache), "_write", staticmethod(full))
    sent = jobs.submit(bench.engine, identity)
    work(bench, TERMS, once=True)
    after = queue.submission(bench.engine, sent.id)
    assert (after.state, after.code) == ("done", None)
    assert job_of(bench.engine, sent, "extract").attempt == TRIES


def test_a_job_that_one_machine_cannot_do_is_left_to_the_others(bench: Bench, identity: Identity):
    def missing(name: str):
        def cases(root: Path):
            raise DataError("not there")

        return replace(jobs.task(name), cases=cases)

    sent = jobs.submit(bench.engine, identity)
    poor = replace(TERMS, left_s=3600.0)
    work(replace(bench, task=missing), poor, once=True)
    job = job_of(bench.engine, sent, "extract")
    assert (job.state, job.lost, job.owner) == ("waiting", 1, None)
    work(bench, TERMS, once=True)
    assert queue.submission(bench.engine, sent.id).state == "done"


def test_workers_that_were_stopped_use_up_no_tries(bench: Bench, identity: Identity):
    sent = jobs.submit(bench.engine, identity)
    work(bench, replace(TERMS, kinds=("check",)), once=True)
    for _ in range(TRIES):
        job = queue.claim(bench.engine, "stopped", ["extract"])
        assert job is not None
        queue.give_back(bench.engine, job)
    tries: list[int] = []

    def missing_once(name: str):
        if not tries:
            tries.append(1)
            raise DataError("not there for a moment")
        return jobs.task(name)

    work(replace(bench, task=missing_once), TERMS, once=True)
    assert tries and queue.submission(bench.engine, sent.id).state == "done"


@pytest.mark.parametrize(
    ("error", "code", "fault"),
    [
        (IntakeError("x-y", "m", stage="check", hint="h"), "x-y", "submission"),
        (ManifestError("m"), "manifest", "submission"),
        (EncoderError("m"), "encoder", "submission"),
        (ProbeError("m"), "probe", "submission"),
        (IsolationError("m"), "no-isolation", "platform"),
        (DataError("m"), "data-missing", "platform"),
        (StorageError("m"), "storage", "platform"),
        (UnknownNameError("m"), "worker-outdated", "platform"),
        (OSError(28, "No space left on device"), "storage", "platform"),
        (MemoryError(), "worker-memory", "platform"),
        (ZeroDivisionError("m"), "internal", "platform"),
    ],
)
def test_every_error_has_a_code_and_somebody_whose_fault_it_is(
    error: Exception, code: str, fault: str
):
    told, whose = explain(error, "extract")
    assert (told.code, whose) == (code, fault)
    assert told.message
    assert told.hint
    assert told.stage in ("check", "extract")


def test_a_database_that_is_away_for_a_moment_stops_no_worker(
    bench: Bench, identity: Identity, monkeypatch: pytest.MonkeyPatch
):
    claim, calls = queue.claim, []

    def away(*arguments: object, **options: object) -> Job | None:
        calls.append(1)
        if len(calls) == 1:
            raise StorageError("the database was lost")
        job = claim(*arguments, **options)  # type: ignore[arg-type]
        if job is None:
            os.kill(os.getpid(), signal.SIGTERM)
        return job

    monkeypatch.setattr(queue, "claim", away)
    sent = jobs.submit(bench.engine, identity)
    work(bench, TERMS)
    assert queue.submission(bench.engine, sent.id).state == "done"


# --- interruptions -------------------------------------------------------------------------------


def checked(bench: Bench, identity: Identity) -> Submission:
    """A submission whose features are to be extracted next."""
    sent = jobs.submit(bench.engine, identity)
    work(bench, replace(TERMS, kinds=("check",)), once=True)
    return sent


def test_a_cancelled_submission_is_left_alone(bench: Bench, identity: Identity, network: Network):
    sent = checked(bench, identity)
    starts = network.starts
    queue.cancel(bench.engine, sent.id, "ada")
    work(bench, TERMS, once=True)
    assert queue.submission(bench.engine, sent.id).state == "cancelled"
    assert network.starts == starts


def test_cancelling_stops_the_job_in_hand(bench: Bench, identity: Identity, network: Network):
    sent = checked(bench, identity)

    def cancel() -> None:
        queue.cancel(bench.engine, sent.id, "ada")
        time.sleep(600)  # the heartbeat ends this

    network.during = cancel
    began = time.monotonic()
    work(bench, TERMS, once=True)
    assert time.monotonic() - began < 120
    assert states(bench.engine, sent)["extract"] == ["cancelled"]
    assert not db.rows(bench.engine)


def test_a_worker_that_is_stopped_gives_its_job_back_at_once(
    bench: Bench, identity: Identity, network: Network
):
    sent = checked(bench, identity)

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(600)

    network.during = stop
    began, handler = time.monotonic(), signal.getsignal(signal.SIGTERM)
    work(bench, TERMS)  # not once: SIGTERM ends it
    assert time.monotonic() - began < 120
    assert signal.getsignal(signal.SIGTERM) is handler
    job = job_of(bench.engine, sent, "extract")
    assert (job.state, job.lost, job.owner) == ("waiting", 0, None)
    network.during = lambda: None
    work(bench, TERMS, once=True)
    assert queue.submission(bench.engine, sent.id).state == "done"


def test_a_worker_that_is_stopped_while_idle_ends(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    def nothing(*_: object, **__: object) -> None:  # asked for once its handlers are in place
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()

    monkeypatch.setattr(queue, "claim", nothing)
    began = time.monotonic()
    assert work(bench, replace(TERMS, poll_s=60.0)) == 0
    assert time.monotonic() - began < 120


def test_a_job_that_became_anothers_is_dropped_without_a_word(
    bench: Bench, identity: Identity, network: Network
):
    sent = checked(bench, identity)
    taken: list[Job] = []

    def take() -> None:
        network.during = lambda: None
        later = time.time() + 1000
        queue.reap(bench.engine, later)
        job = queue.claim(bench.engine, "other", ["extract"], 1e6, later)
        assert job is not None
        taken.append(job)
        time.sleep(600)

    network.during = take
    work(bench, TERMS, once=True)
    now = job_of(bench.engine, sent, "extract")
    assert (now.state, now.owner, now.attempt) == ("running", "other", taken[0].attempt)
    queue.give_back(bench.engine, taken[0])
    work(bench, TERMS, once=True)
    assert queue.submission(bench.engine, sent.id).state == "done"


def test_a_lease_that_cannot_be_prolonged_is_given_up(
    bench: Bench, identity: Identity, network: Network, monkeypatch: pytest.MonkeyPatch
):
    sent = checked(bench, identity)

    def away(*_: object, **__: object) -> Job:
        raise StorageError("the database was lost")

    network.during = lambda: time.sleep(600)
    with monkeypatch.context() as patch:
        patch.setattr(queue, "heartbeat", away)
        began = time.monotonic()
        patch.setattr(queue, "claim", only_once(queue.claim))
        work(bench, replace(TERMS, lease_s=0.5), once=True)
    assert time.monotonic() - began < 120
    queue.reap(bench.engine, time.time() + 1000)  # if the worker did not do so itself
    job = job_of(bench.engine, sent, "extract")
    assert (job.state, job.attempt, job.lost) == ("waiting", 1, 1)


def only_once(function: Callable[..., Job | None]) -> Callable[..., Job | None]:
    calls: list[int] = []

    def limited(*arguments: object, **options: object) -> Job | None:
        calls.append(1)
        return function(*arguments, **options) if len(calls) == 1 else None

    return limited


# --- logs ----------------------------------------------------------------------------------------


def test_a_log_holds_no_control_characters():
    log = JobLog()
    log("\x1b[2J\x1b]0;title\x07red\x1b[31m\r\nnext\x00\x9b31m\u202eevil\ud800\n\n")
    assert log.text() == "red\nnext31mevil"
    assert clean("a\tb") == "a b"


def test_a_log_keeps_the_last_lines_within_its_limits():
    log = JobLog()
    for k in range(1000):
        log(f"line {k}")
    assert log.text().splitlines() == [f"line {k}" for k in range(1000 - MAX_LINES, 1000)]
    log("x" * 10**6)
    for _ in range(MAX_LINES):
        log("\N{SNOWMAN}" * 900)
    assert 0 < len(log.text().encode()) <= MAX_BYTES


def test_facts_of_another_model_are_not_believed(tmp_path: Path):
    facts = Facts(2, (), 0, {"weights": "a"}, unsafe=False)
    sha = units.model_sha(facts.identity)
    facts.write(tmp_path, sha)
    assert Facts.read(tmp_path, sha) == facts
    [file] = tmp_path.iterdir()
    file.write_text(json.dumps({**json.loads(file.read_text()), "identity": {"weights": "b"}}))
    assert Facts.read(tmp_path, sha) is None
    file.write_text("{")
    assert Facts.read(tmp_path, sha) is None


# --- self-run ------------------------------------------------------------------------------------

SHA = "ab" * 32


def predicted(
    edit: Callable[[Any], Any] = lambda table: table,
    model_sha: str = SHA,
    task: Callable[[str], Task] = jobs.task,
) -> tuple[bytes, evaluate.Scores]:
    """A table as ``evaluate --predictions`` writes it, edited afterwards, and its true scores."""
    opened = runner.open_task(task("toy"), None, subset=True)
    card, probe = opened.task.card, probes.get("knn")
    x = extract(toy.ToyEncoder(), opened.cases, None)
    table = evaluate.predict(card, opened.cases, x, probe)
    about = predictions.Provenance(
        model="mine",
        model_sha=SHA,
        task=card.name,
        task_version=card.version,
        probe=probe.name,
        probe_version=probe.version,
        kind=card.kind,
        width=2,
        cv=splits.uses_cv(card),
        subset=not opened.complete,
        seconds=1.0,
        device="cpu",
        software="mine",
        dataset_sha=opened.identity.dataset_sha,
        split_sha=opened.split_sha,
    )
    about = replace(about, model_sha=model_sha)
    edited = edit(table)
    return predictions.to_parquet(edited, about), evaluate.score(table, about)


def send(bench: Bench, identity: Identity, raw: bytes, **changes: object) -> Submission:
    """Upload predictions and submit them."""
    upload = uploads.create(bench.engine, identity, "predictions", len(raw), "0" * 64)
    bench.store.folder.mkdir(exist_ok=True)
    bench.store.path(upload.file).write_bytes(raw)
    uploads.advance(bench.engine, upload.id, 0, len(raw))
    uploads.finish(bench.engine, upload.id)
    return jobs.submit(bench.engine, identity, kind="self-run", upload_id=upload.id, **changes)


def test_uploaded_predictions_are_scored_anew_and_marked(bench: Bench, identity: Identity):
    raw, scores = predicted(edit=lambda table: table.sample(frac=1, random_state=0))
    sent = send(bench, identity, raw)
    work(bench, TERMS, once=True)
    after = queue.submission(bench.engine, sent.id)
    assert (after.state, after.message) == ("done", None)
    rows = db.rows(bench.engine)
    assert {row.origin for row in rows} == {"self-run"}
    got = {row.result.metric: (row.result.score, row.result.low) for row in rows}
    assert got == {r.metric: (r.score, r.low) for r in scores.results}


def test_no_table_is_stored_where_another_one_is_refused(bench: Bench, identity: Identity):
    raw, _ = predicted()
    table, about = predictions.from_parquet(raw)
    other = predictions.to_parquet(table, replace(about, probe="retrieve"))
    both = {"a.parquet": raw, "b.parquet": other}
    sent = send(
        bench,
        identity,
        save({name: np.frombuffer(value, np.uint8) for name, value in both.items()}),
        probes=("knn", "retrieve"),
    )
    work(bench, TERMS, once=True)
    after = queue.submission(bench.engine, sent.id)
    assert (after.state, after.code) == ("failed", "predictions-protocol")
    assert not db.rows(bench.engine)


def test_predictions_on_an_incomplete_copy_are_marked_as_such(bench: Bench, identity: Identity):
    raw, scores = predicted(task=jobs.incomplete)
    sent = send(bench, identity, raw)
    work(replace(bench, task=jobs.incomplete, subset=True), TERMS, once=True)
    assert queue.submission(bench.engine, sent.id).state == "done"
    rows = [row.result for row in db.rows(bench.engine)]
    assert {row.metric: row.score for row in rows} == {r.metric: r.score for r in scores.results}
    assert rows and all(row.subset for row in rows)


def test_targets_of_uploaded_predictions_are_ours(bench: Bench, identity: Identity):
    def cheat(table):
        return table.assign(target=(table["p1"] > 0.5).astype(int))

    raw, honest = predicted(edit=cheat)
    send(bench, identity, raw)
    work(bench, TERMS, once=True)
    got = [row.result.score for row in db.rows(bench.engine)]
    assert got == [result.score for result in honest.results]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"edit": lambda t: t[t["case"] != "case045"]}, "predictions-cases"),
        ({"edit": lambda t: t[t["refit"] < 3]}, "predictions-cases"),
        ({"edit": lambda t: t.replace("case045", "case046")}, "predictions-cases"),
        ({"edit": lambda t: t.assign(fold=1)}, "predictions-cases"),
        ({"edit": lambda t: t.drop(columns="p1")}, "predictions-columns"),
        ({"edit": lambda t: t.assign(p1=np.inf)}, "predictions-values"),
        ({"edit": lambda t: t.assign(p1=0.7)}, "predictions-values"),
        ({"edit": lambda t: t.assign(p1="0.5")}, "predictions-values"),
        ({"dataset_sha": "0" * 64}, "predictions-other-data"),
        ({"task_version": 7}, "predictions-other-data"),
        ({"task": "no_such"}, "predictions-unknown"),
        ({"probe": "no_such"}, "predictions-unknown"),
        ({"width": -1}, "predictions-unreadable"),
        ({"seconds": math.inf}, "predictions-unreadable"),
    ],
)
def test_predictions_that_are_not_of_our_task_are_refused(tmp_path: Path, changes: dict, code: str):
    table, about = predictions.from_parquet(predicted(changes.get("edit", lambda t: t))[0])
    said = {**vars(about), **{k: v for k, v in changes.items() if k != "edit"}}
    columns = {
        name: table[name].to_numpy(str if table[name].dtype == object else None) for name in table
    }
    bench = jobs.bench(sa.create_engine("sqlite://"), tmp_path)
    card = declarations.SelfRunCard(
        name="mine", title="Mine", authors="us", license="MIT", pretraining=()
    )
    with pytest.raises(IntakeError) as refused:
        sent = self_runs.Sent(said, len(table))
        self_runs.scored(bench, sent, lambda rows: columns, card, SHA, JobLog())
    assert (refused.value.code, refused.value.stage) == (code, "check")


def test_a_refusal_of_predictions_reaches_the_submission(bench: Bench, identity: Identity):
    sent = send(bench, identity, predicted(lambda t: t.assign(case="x" * 1000))[0])
    work(bench, TERMS, once=True)
    after = queue.submission(bench.engine, sent.id)
    assert (after.state, after.code) == ("failed", "predictions-unreadable")
    assert "more than 200 letters" in (after.message or "")
    assert not db.rows(bench.engine)


@pytest.mark.parametrize("raw", [b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1", b"\x80\x04N."])
def test_bytes_that_are_no_predictions_are_refused(raw: bytes):
    with pytest.raises(IntakeError, match="cannot be read"):
        self_runs.read(raw)


def test_no_column_is_parsed_of_a_table_with_more_rows_than_ours(
    bench: Bench, identity: Identity, monkeypatch: pytest.MonkeyPatch
):
    def parsed(raw, rows):
        raise AssertionError("parsed")

    monkeypatch.setattr(self_runs, "columns_of", parsed)
    sent = send(bench, identity, predicted(lambda t: t.loc[t.index.repeat(9)])[0])
    work(bench, TERMS, once=True)
    assert queue.submission(bench.engine, sent.id).code == "predictions-cases"


def test_more_tables_than_the_submission_can_have_are_refused(bench: Bench, identity: Identity):
    raw = np.frombuffer(predicted()[0], np.uint8)
    sent = send(bench, identity, save({"a.parquet": raw, "b.parquet": raw}))
    assert len(sent.tasks) * len(sent.probes) == 1
    work(bench, TERMS, once=True)
    after = queue.submission(bench.engine, sent.id)
    assert after.code == "predictions-file"
    assert "1 at most" in (after.message or "")


def test_a_table_that_changes_its_rows_after_the_first_look_is_refused():
    raw = predicted()[0]
    rows = self_runs.read(raw).rows
    assert {len(column) for column in self_runs.columns_of(raw, rows).values()} == {rows}
    with pytest.raises(IntakeError, match="make no sense"):
        self_runs.columns_of(raw, rows + 1)


HEAD = {"about": {}, "rows": 1, "columns": []}


@pytest.mark.parametrize(
    "answer",
    [
        b"[]",
        b'"fault"',
        b"[" * 100_000,
        b"1" * 5000,
        json.dumps({**HEAD, "rows": -1}).encode(),
        json.dumps({**HEAD, "rows": True}).encode(),
        json.dumps({**HEAD, "rows": 10**9}).encode(),
        json.dumps({**HEAD, "about": []}).encode(),
        json.dumps({**HEAD, "columns": [["a", "O"]]}).encode(),
        json.dumps({**HEAD, "columns": [["a", "(2,)<f8"]]}).encode(),
        json.dumps({**HEAD, "columns": [["a", ","]]}).encode(),
        json.dumps({**HEAD, "columns": [7]}).encode(),
        b"",
    ],
)
def test_a_reader_that_was_led_astray_is_not_believed(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(self_runs, "_said", lambda *given: (bytearray(answer + b"\n"), 0))
    with pytest.raises(IntakeError, match="cannot be read"):
        self_runs.columns_of(b"PAR1", 1)


def test_a_reader_that_does_not_stop_talking_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    talks = tmp_path / "talks"
    talks.write_text("#!/bin/sh\nexec cat /dev/zero\n")
    talks.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(talks))
    with pytest.raises(IntakeError, match="more than"):
        self_runs.read(b"PAR1")


def test_the_reader_of_predictions_can_open_nothing_more():
    tries = """
import socket
from tomoprobe.submissions import _linux, _parquet_child as child
child._warm_up()
_linux.close_off(child.MEMORY, child.SECONDS)
for attempt in (lambda: open('/etc/hostname'), socket.socket):
    try:
        attempt()
    except OSError:
        continue
    raise SystemExit('opened')
"""
    subprocess.run([sys.executable, "-c", tries], check=True)


def test_nobody_adds_numbers_to_a_model_that_was_computed_here(bench: Bench, identity: Identity):
    jobs.submit(bench.engine, identity)
    work(bench, TERMS, once=True)
    [sha] = {row.result.model_sha for row in db.rows(bench.engine)}
    before = len(db.rows(bench.engine))
    sent = send(bench, identity, predicted(model_sha=sha)[0])
    work(bench, TERMS, once=True)
    assert queue.submission(bench.engine, sent.id).code == "predictions-verified"
    assert len(db.rows(bench.engine)) == before


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize("subset", [False, True])
def test_every_slot_is_told_whether_incomplete_copies_are_accepted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    network: Network,
    subset: bool,
):
    commands: list[list[str]] = []
    benches: list[Bench] = []

    def supervise(command: list[str], *_: object) -> int:
        commands.append(command)
        return 0

    monkeypatch.setattr(worker_commands, "_supervise", supervise)
    monkeypatch.setattr(worker_commands, "_stop_with_the_one_above", lambda: None)
    monkeypatch.setattr(worker, "work", lambda bench, *_, **__: benches.append(bench))
    db = ("--db", f"sqlite:///{tmp_path / 'mine.db'}")
    jobs.migrated(db[1]).dispose()
    typed(capsys, "worker", *db, *(["--subset"] if subset else []))
    [[_, _, _, *arguments]] = commands
    typed(capsys, *arguments, *db, "--slot", "cpu0")
    assert [bench.subset for bench in benches] == [subset]


@pytest.mark.slow
def test_the_command_works_off_the_queue_in_processes_of_its_own(
    tmp_path: Path, home: Path, engine: sa.Engine, identity: Identity
):
    text = jobs.MANIFEST.format(name="tiny", high=1.0).replace("relative =", "scanner =")
    sent = jobs.submit(
        engine, identity, manifest_text=text, tasks=("smoke_ventricles",), probes=("linear",)
    )
    command = [sys.executable, "-m", "tomoprobe.submissions", "worker", "--once", "--slots", "2"]
    unsafe = isolation.available() is not None
    done = subprocess.run(
        [*command, "--poll", "0.2", *(["--unsafe-local"] if unsafe else [])],
        env={**os.environ, "TOMOPROBE_DB": f"sqlite:///{tmp_path / 'board.db'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    after = queue.submission(engine, sent.id)
    assert (after.state, after.message) == ("done", None)
    assert {row.unsafe for row in db.rows(engine)} == {unsafe}
    assert accounts.users(engine)[0].name == "ada"
