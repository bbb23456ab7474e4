import random
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count

import pytest
import sqlalchemy as sa

from tomoprobe.benchmark.errors import (
    ConflictError,
    EncoderError,
    IntakeError,
    IsolationError,
    ManifestError,
    QuotaError,
    StorageError,
    UnknownNameError,
)
from tomoprobe.leaderboard import accounts, db, queue, quotas, uploads
from tomoprobe.leaderboard.backup import backup, restore
from tomoprobe.leaderboard.intake_tables import JOBS, SECRETS
from tomoprobe.leaderboard.integrity import check
from tomoprobe.leaderboard.merging import merge
from tomoprobe.leaderboard.site import create_app

from .board_data import Visitor, add, fresh, result, sha
from .intake_data import NOW, claimed, do, do_all, member, plan, send, stored

DAY = 86_400.0
NAN = IntakeError("nan", "Tensor 'a' holds NaN.", stage="check", hint="Train again.")


@pytest.fixture
def engine(url):
    engine = fresh(url)
    yield engine
    engine.dispose()


@pytest.fixture
def bob(engine):
    return member(engine, "bob")


def states(engine, submission) -> list[str]:
    return [job.state for job in queue.jobs(engine, submission.id)]


def state(engine, submission) -> str:
    return queue.submission(engine, submission.id).state


# --- the way of a submission ----------------------------------------------------------------------


def test_a_submission_goes_from_its_check_to_its_rows(engine, bob):
    sent = send(engine, bob, probes=[])
    assert (sent.state, sent.user, sent.tasks, sent.probes) == ("queued", "bob", ("t",), ())
    job = claimed(engine)
    assert (job.kind, job.attempt, job.owner, job.state) == ("check", 1, "w", "running")
    assert state(engine, sent) == "checking"
    after = queue.checked(engine, job, model_sha=sha("a"), planned=plan("t", "u"), now=NOW + 2)
    assert (after.state, after.model_sha) == ("evaluating", sha("a"))
    assert do_all(engine, now=NOW + 3) == 4
    assert state(engine, sent) == "done"
    assert [row.result.task for row in db.rows(engine)] == ["t", "u"]
    assert {row.origin for row in db.rows(engine)} == {"verified"}
    jobs = queue.jobs(engine, sent.id)
    assert [(j.kind, j.state) for j in jobs] == [
        ("check", "done"),
        ("extract", "done"),
        ("probe", "done"),
        ("extract", "done"),
        ("probe", "done"),
    ]
    assert jobs[0].seconds == 2
    assert queue.claim(engine, "w", ["check", "extract", "probe"], now=NOW) is None


def test_a_probe_waits_for_its_features_and_a_worker_gets_only_what_it_can_do(engine, bob):
    send(engine, bob)
    assert queue.claim(engine, "w", ["extract", "probe"], now=NOW) is None
    do(engine, claimed(engine, kinds=["check"]))
    assert queue.claim(engine, "w", ["probe", "check"], now=NOW) is None
    do(engine, claimed(engine, kinds=["extract"]))
    assert claimed(engine, kinds=["probe"]).task == "t"


def test_what_fails_says_why_and_takes_what_needs_it_along(engine, bob):
    sent = send(engine, bob)
    do(engine, claimed(engine), ("t", "u"))
    queue.fail(engine, claimed(engine), replace_stage(NAN, "extract"), "line 1\nline 2", now=NOW)
    assert states(engine, sent) == ["done", "failed", "cancelled", "waiting", "waiting"]
    assert state(engine, sent) == "evaluating"  # the other data set goes on
    do_all(engine)
    found = queue.submission(engine, sent.id)
    assert (found.state, found.code, found.stage) == ("failed", "nan", "extract")
    assert (found.message, found.hint) == ("Tensor 'a' holds NaN.", "Train again.")
    assert queue.jobs(engine, sent.id)[1].log == "line 1\nline 2"
    assert "which this one needs, failed" in queue.jobs(engine, sent.id)[2].message
    assert [row.result.task for row in db.rows(engine)] == ["u"]


def replace_stage(error: IntakeError, stage: str) -> IntakeError:
    return IntakeError(error.code, error.message, stage=stage, hint=error.hint)


@pytest.mark.parametrize(
    ("error", "fault", "said"),
    [
        (ManifestError("Key x is unknown."), "submission", "Key x is unknown."),
        (EncoderError("Gave NaN."), "submission", "Gave NaN."),
        (IsolationError("No namespaces."), "platform", "(IsolationError)"),
        (StorageError("/srv/secret is full"), "platform", "(StorageError)"),
        (KeyError("/srv/secret"), "platform", "(KeyError)"),
    ],
)
def test_whose_fault_it_was_decides_what_is_said_and_counted(engine, bob, error, fault, said):
    sent = send(engine, bob)
    queue.fail(engine, claimed(engine), error, now=NOW)
    found = queue.submission(engine, sent.id)
    assert found.state == "failed"
    assert said in found.message
    assert "/srv" not in found.message
    assert found.code and found.hint and found.stage == "check"
    entry = next(e for e in accounts.audited(engine) if e.action == "job-failed")
    assert entry.detail["fault"] == fault


def test_logs_are_capped_and_hold_no_control_characters(engine, bob):
    sent = send(engine, bob)
    job = claimed(engine)
    queue.heartbeat(engine, job, now=NOW, log="so far")
    assert queue.jobs(engine, sent.id)[0].log == "so far"
    nasty = "x" * 10**6 + "\x1b[31m\x00\r\u202eend\ud800\n"
    queue.fail(engine, job, replace_message(NAN, "a\x00b\x1b" + "y" * 10**5), nasty, now=NOW)
    found = queue.jobs(engine, sent.id)[0]
    assert found.log.endswith("end\n")
    assert len(found.log) <= 16_000
    assert found.message.startswith("aby")
    assert len(found.message) <= 4_000
    assert not {"\x00", "\x1b", "\r", "\u202e"} & set(found.log + found.message)


def replace_message(error: IntakeError, message: str) -> IntakeError:
    return IntakeError(error.code, message, stage=error.stage, hint=error.hint)


# --- leases ---------------------------------------------------------------------------------------


def test_heartbeats_keep_a_job_and_without_them_it_is_the_next_ones(engine, bob):
    send(engine, bob)
    job = claimed(engine, "one", lease_s=10.0)
    queue.heartbeat(engine, job, 10.0, NOW + 8)
    assert queue.reap(engine, NOW + 17) == []
    assert [j.id for j in queue.reap(engine, NOW + 18.5)] == [job.id]
    again = claimed(engine, "two", now=NOW + 19)
    assert (again.id, again.attempt, again.lost, again.owner) == (job.id, 2, 1, "two")


def test_a_zombie_can_end_nothing_and_store_nothing(engine, bob):
    sent = send(engine, bob)
    do(engine, claimed(engine))
    do(engine, claimed(engine))
    zombie = claimed(engine, "one", lease_s=1.0)
    queue.reap(engine, NOW + 2)
    for again in (False, True):  # while it waits, and while another has it
        if again:
            heir = claimed(engine, "one", now=NOW + 3)  # even of the same name
        acts = (
            lambda: stored(engine, zombie),
            lambda: queue.finished(engine, zombie, now=NOW),
            lambda: queue.fail(engine, zombie, NAN, now=NOW),
            lambda: queue.heartbeat(engine, zombie, now=NOW),
            lambda: queue.give_back(engine, zombie, NOW),
        )
        for act in acts:
            with pytest.raises(queue.LostLease, match="not held by one in attempt 1"):
                act()
        assert db.rows(engine) == []
        assert db.models(engine) == []
    assert stored(engine, heir)
    assert state(engine, sent) == "done"
    with pytest.raises(queue.LostLease):  # what is done is not done again
        stored(engine, heir)


def test_a_zombie_cannot_add_jobs_or_claim_a_model(engine, bob):
    sent = send(engine, bob)
    zombie = claimed(engine, lease_s=1.0)
    queue.reap(engine, NOW + 2)
    with pytest.raises(queue.LostLease):
        queue.checked(engine, zombie, model_sha=sha("a"), planned=plan(), now=NOW)
    with pytest.raises(queue.LostLease):
        add(engine, [result()], also=lambda c: queue.identify(c, zombie, sha("a"), NOW))
    found = queue.submission(engine, sent.id)
    assert (found.state, found.model_sha, len(queue.jobs(engine, sent.id))) == ("queued", None, 1)


def test_a_job_that_loses_three_workers_fails_and_is_not_counted(engine, bob):
    sent = send(engine, bob)
    for k in range(3):
        claimed(engine, f"w{k}", now=NOW + 100 * k)
        assert len(queue.reap(engine, NOW + 100 * k + 61)) == 1
    found = queue.submission(engine, sent.id)
    assert (found.state, found.code, found.stage) == ("failed", "worker-lost", "check")
    assert "3 workers" in found.message
    assert quotas.used(engine, bob.user, NOW)["jobs"] == 0


def test_a_job_that_is_given_back_is_not_counted_as_lost(engine, bob):
    send(engine, bob)
    for _ in range(5):
        queue.give_back(engine, claimed(engine), NOW)
    job = claimed(engine)
    assert (job.attempt, job.lost) == (6, 0)
    queue.give_back(engine, job, NOW, failed=True)
    assert claimed(engine).lost == 1


def test_a_job_that_is_left_to_others_holds_up_nothing(engine, bob):
    first, second = send(engine, bob), send(engine, bob, name="second")
    job = claimed(engine)
    queue.give_back(engine, job, NOW)
    assert job.submission_id == first.id
    other = claimed(engine, leave=[job.id])
    assert other.submission_id == second.id
    assert queue.claim(engine, "w", ["check"], now=NOW, leave=[job.id]) is None
    assert claimed(engine, "another").id == job.id


def test_machines_whose_clocks_differ_do_not_take_each_others_jobs(engine, bob, monkeypatch):
    send(engine, bob)
    job = queue.claim(engine, "right", ["check"], 60.0)
    true = time.time()
    monkeypatch.setattr(time, "time", lambda: true + 3600)
    # SQLite is a file of one machine, whose clock it is
    assert bool(queue.reap(engine)) == (engine.dialect.name == "sqlite")
    if engine.dialect.name == "sqlite":
        return
    found = queue.heartbeat(engine, job, 60.0)
    assert abs(found.lease_until - true - 60) < 30
    queue.finished(engine, job)
    assert queue.jobs(engine, job.submission_id)[0].seconds < 30


def test_gpu_seconds_of_a_lost_or_returned_extraction_are_given_back(engine, bob):
    send(engine, bob)
    do(engine, claimed(engine))
    queue.give_back(engine, claimed(engine), NOW)
    claimed(engine, lease_s=1.0)
    queue.reap(engine, NOW + 2)
    assert quotas.used(engine, bob.user, NOW)["gpu_seconds"] == 0
    queue.finished(engine, claimed(engine), now=NOW + 7)
    assert quotas.used(engine, bob.user, NOW + 7)["gpu_seconds"] == 7


def test_users_take_turns_whoever_has_sent_most(engine, bob):
    for _ in range(5):
        send(engine, bob)
    eve = member(engine, "eve")
    sent = send(engine, eve)
    first, second = claimed(engine, "one"), claimed(engine, "two", now=NOW + 1)
    assert second.submission_id == sent.id != first.submission_id
    queue.fail(engine, second, NAN, now=NOW + 2)
    late = send(engine, eve, NOW + 3)
    queue.fail(engine, first, NAN, now=NOW + 4)
    # none has one running: whoever was served longest ago
    assert claimed(engine, now=NOW + 5).submission_id != late.id
    assert claimed(engine, now=NOW + 6).submission_id == late.id


def test_many_workers_at_once_never_get_the_same_job(engine, bob):
    sent = {send(engine, bob).id for _ in range(12)}
    got, start = [], threading.Barrier(6)

    def work(name: str) -> None:
        start.wait()
        while job := queue.claim(engine, name, ["check"], now=NOW):
            got.append((job.submission_id, job.attempt))

    run([threading.Thread(target=work, args=(f"w{k}",)) for k in range(6)])
    assert sorted(got) == sorted((id, 1) for id in sent)


def run(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_whoever_dies_when_each_unit_is_stored_once_and_nothing_is_stuck(engine, bob):
    """Workers that stop at any moment, and zombies that go on: a clock that all share."""
    names = [f"model{k}" for k in range(6)]
    for name in names:
        send(engine, bob, name=name)
    ticks = count()
    chance = random.Random(7)
    added: list[tuple[str, str]] = []
    lock = threading.Lock()

    def now() -> float:
        return NOW + next(ticks)

    def ended(job, at: float) -> None:
        if job.kind == "probe":
            if stored(engine, job, at):
                with lock:
                    name = queue.submission(engine, job.submission_id).name
                    added.append((name, job.task))
        else:
            do(engine, job, ("t", "u"), at)

    def work(name: str) -> None:
        zombies = []
        for _ in range(60):
            queue.reap(engine, now(), most_attempts=10_000)
            job = queue.claim(engine, name, ["check", "extract", "probe"], 15.0, now())
            with lock:
                dies, wakes = chance.random() < 0.3, chance.random() < 0.5
            try:
                if job is not None and dies:
                    zombies.append(job)
                elif job is not None:
                    ended(job, now())
                if zombies and wakes:
                    ended(zombies.pop(), now())
            except queue.LostLease:
                pass

    run([threading.Thread(target=work, args=(f"w{k}",)) for k in range(4)])
    queue.reap(engine, NOW + 10**6, most_attempts=10_000)
    do_rest(engine)
    assert {s.state for s in queue.submissions(engine)} == {"done"}
    rows = [(row.result.model, row.result.task) for row in db.rows(engine)]
    assert sorted(rows) == sorted((name, task) for name in names for task in ("t", "u"))
    assert len(added) == len(set(added))
    assert check_without_predictions(engine) == []


def do_rest(engine) -> None:
    while job := queue.claim(engine, "last", ["check", "extract", "probe"], now=NOW + 10**6):
        do(engine, job, ("t", "u"), NOW + 10**6)


def check_without_predictions(engine) -> list[str]:
    """Faults, but of predictions: those of these tests are made up."""
    return [fault for fault in check(engine).faults if "Parquet" not in fault]


# --- changing one's mind --------------------------------------------------------------------------


def test_what_is_cancelled_is_taken_from_its_worker(engine, bob):
    sent = send(engine, bob)
    do(engine, claimed(engine))
    job = claimed(engine)
    assert queue.cancel(engine, sent.id, "bob", NOW + 9).state == "cancelled"
    assert states(engine, sent) == ["done", "cancelled", "cancelled"]
    with pytest.raises(queue.LostLease):
        queue.heartbeat(engine, job, now=NOW + 9)
    assert quotas.used(engine, bob.user, NOW + 9)["gpu_seconds"] == 9
    with pytest.raises(ConflictError, match="cancelled already"):
        queue.cancel(engine, sent.id, "bob")


def test_what_does_not_exist_is_not_found(engine):
    for act in (queue.cancel, queue.withdraw):
        with pytest.raises(UnknownNameError):
            act(engine, "0" * 16, "bob")
    with pytest.raises(UnknownNameError):
        queue.submission(engine, "\x00'; --")
    with pytest.raises(UnknownNameError):
        queue.edit_card(engine, "x", "bob", {"title": "New"})
    assert queue.place(engine, "x") is None
    assert queue.jobs(engine, "\x00") == queue.reports(engine, "\x00") == []
    with pytest.raises(UnknownNameError):
        db.model(engine, "\x00")
    with pytest.raises(UnknownNameError):
        accounts.user(engine, "\x00")


def test_the_place_counts_what_is_ahead_and_the_wait_is_of_the_median(engine, bob):
    first = send(engine, bob)
    assert queue.place(engine, first.id, NOW).workers == 0
    for took in (10, 30, 20):
        job = claimed(engine)
        queue.fail(engine, job, NAN, now=NOW)
        with engine.begin() as connection:
            done = {"state": "done", "seconds": took}
            connection.execute(sa.update(JOBS).where(JOBS.c.id == job.id).values(**done))
        last = send(engine, bob)
    third = send(engine, bob)
    found = queue.place(engine, third.id, NOW)
    assert (found.ahead, found.wait_s, found.workers, found.held) == (1, 20.0, 1, "")
    claimed(engine, "two")  # takes the last one
    assert queue.place(engine, last.id, NOW) is None
    assert queue.place(engine, third.id, NOW).wait_s == 5.0  # half of 20, by two workers
    assert queue.place(engine, third.id, NOW + 4000).wait_s is None  # they are gone


def test_a_worker_is_seen_while_it_asks_or_holds_a_job(engine, bob):
    send(engine, bob)
    job = claimed(engine, "one", lease_s=5000.0)
    queue.claim(engine, "two", ["probe"], now=NOW)
    queue.heartbeat(engine, job, 5000.0, NOW + 400)
    assert queue.workers(engine, NOW + 410) == [("one", ("check", "extract", "probe"), 10.0)]
    assert queue.depths(engine) == {("check", "running"): 1}


def test_submissions_are_listed_newest_first_and_by_user_and_state(engine, bob):
    sent = [send(engine, bob) for _ in range(3)]
    other = send(engine, member(engine, "eve"))
    queue.cancel(engine, sent[0].id, "bob")
    ids = [s.id for s in queue.submissions(engine)]
    assert ids == [other.id, *(s.id for s in reversed(sent))]
    assert [s.id for s in queue.submissions(engine, "bob", limit=2)] == [sent[2].id, sent[1].id]
    assert [s.id for s in queue.submissions(engine, state="cancelled")] == [sent[0].id]


@pytest.mark.parametrize(
    "changes", [{"name": "a\x00"}, {"manifest_text": "\x00"}, {"tasks": ["\x00"]}]
)
def test_zero_bytes_are_refused_with_a_reason_on_both_databases(engine, bob, changes):
    with pytest.raises(IntakeError, match="zero byte"):
        send(engine, bob, **changes)


@pytest.mark.parametrize("day", ["tomorrow", "2027-1-1", "20270101", "2031-01-01", "2027-02-30"])
def test_an_embargo_needs_a_date_that_is_one_and_not_too_far(engine, bob, day):
    with pytest.raises(IntakeError) as caught:
        send(engine, bob, embargo_until=day)
    assert caught.value.code == "embargo-date"


# --- duplicates -----------------------------------------------------------------------------------


def test_the_same_model_on_the_same_tasks_is_answered_with_the_first(engine, bob):
    first = send(engine, bob)
    do_all(engine)
    eve = member(engine, "eve")
    second = send(engine, eve, NOW + 1)
    assert do_all(engine, now=NOW + 1) == 1
    found = queue.submission(engine, second.id)
    assert (found.state, found.duplicate_of, found.code) == ("duplicate", first.id, "duplicate")
    assert quotas.used(engine, eve.user, NOW + 1)["jobs"] == 0
    with pytest.raises(ConflictError):
        queue.withdraw(engine, second.id, "eve")
    with pytest.raises(ConflictError):
        queue.edit_card(engine, second.id, "eve", {"title": "Mine"})


def test_the_same_model_on_more_tasks_is_no_duplicate(engine, bob):
    send(engine, bob)
    do_all(engine)
    more = send(engine, bob, NOW + 1)
    do_all(engine, ("t", "u"), NOW + 1)
    assert state(engine, more) == "done"
    assert [row.result.task for row in db.rows(engine)] == ["t", "u"]


def test_what_the_operator_has_evaluated_is_not_computed_again(engine, bob):
    add(engine, [result()])
    sent = send(engine, bob)
    assert do_all(engine) == 1
    found = queue.submission(engine, sent.id)
    assert (found.state, found.duplicate_of, found.model_sha) == ("duplicate", None, sha("a"))


@pytest.mark.parametrize("change", ["embargo", "unfinished", "local"])
def test_what_nobody_can_see_makes_no_duplicate_of_anothers_submission(engine, bob, change):
    first = send(engine, bob, embargo_until=None if change == "unfinished" else "2027-01-31")
    if change == "unfinished":
        do(engine, claimed(engine))
        assert state(engine, first) == "evaluating"
    else:
        do_all(engine)
    if change == "local":
        hour = datetime.fromtimestamp(NOW + 3600, UTC)
        add(engine, [result(task="u")], added=hour)
        add(engine, [result(probe="knn")], added=hour)
    asked = ("u",) if change == "local" else ("t",)
    eve = send(engine, member(engine, "eve"), NOW + 1, tasks=asked)
    do_all(engine, asked, NOW + 1)
    found = queue.submission(engine, eve.id)
    assert (found.state, found.duplicate_of) == ("done", None)
    again = send(engine, bob, NOW + 2)
    do_all(engine, now=NOW + 2)
    assert queue.submission(engine, again.id).duplicate_of == first.id  # one's own is known


def test_rows_on_an_incomplete_copy_of_the_data_make_no_duplicate(engine, bob):
    """A worker with all of the data may be there now."""
    send(engine, bob)
    for _ in range(2):
        do(engine, claimed(engine))
    job = claimed(engine)
    part = result("a", subset=True, dataset_sha="half")
    add(
        engine,
        [part],
        origin="verified",
        also=lambda connection: queue.finish(connection, job, now=NOW),
    )
    again = send(engine, bob, NOW + 1)
    assert do_all(engine, now=NOW + 1) == 3
    assert state(engine, again) == "done"
    once_more = send(engine, bob, NOW + 2)
    assert do_all(engine, now=NOW + 2) == 1
    assert queue.submission(engine, once_more.id).duplicate_of is not None


def test_a_submission_of_which_the_probe_failed_makes_no_duplicate(engine, bob):
    first = send(engine, bob, tasks=["t", "u"])
    do(engine, claimed(engine), ("t", "u"))
    queue.fail(engine, claimed(engine), replace_stage(NAN, "extract"), now=NOW)
    assert state(engine, first) == "evaluating"
    again = send(engine, bob, NOW + 1)
    do(engine, claimed(engine, kinds=["check"]))
    assert (state(engine, first), state(engine, again)) == ("evaluating", "evaluating")
    do_all(engine, now=NOW + 1)
    assert state(engine, again) == "done"
    assert {row.result.task for row in db.rows(engine)} == {"t", "u"}


def test_what_failed_or_was_withdrawn_can_be_submitted_again(engine, bob):
    first = send(engine, bob)
    do_all(engine)
    queue.withdraw(engine, first.id, "bob", NOW)
    again = send(engine, bob, NOW + 1)
    assert do_all(engine, now=NOW + 1) == 3
    assert state(engine, again) == "done"
    assert len(db.rows(db.public(engine, NOW + 1))) == 1


# --- what the public sees -------------------------------------------------------------------------


def pages(engine) -> list[str]:
    """Everything that the site says of the model "a", and of the others."""
    visitor = Visitor(create_app(engine))
    paths = ("/", "/board.json", "/board.csv", "/tasks/t", "/api/v1/results", "/api/v1/models")
    return [visitor.get(path).text for path in (*paths, f"/models/{sha('a')}")]


@pytest.fixture
def board(engine, bob):
    """A board with a model of the operator's, whose site is asked before anything is hidden."""
    add(engine, [result("other", score=0.5)])
    return engine


def test_withdrawn_rows_are_on_no_page_but_stay_in_the_database(board, bob):
    sent = send(board, bob)
    do_all(board)
    visitor = Visitor(create_app(board))
    assert sha("a") in visitor.get("/board.json").text
    queue.withdraw(board, sent.id, "bob")
    for path in ("/", "/board.json", "/board.csv", "/tasks/t", "/api/v1/results", "/api/v1/models"):
        assert sha("a") not in visitor.get(path).text, path
    assert sha("other") in visitor.get("/board.json").text
    assert visitor.get(f"/models/{sha('a')}").status_code == 404
    assert visitor.get(f"/api/v1/results?model={sha('a')}").json()["results"] == []
    assert len(db.rows(board, models=[sha("a")])) == 1
    unit = db.units(board)[0]._replace(model_sha=sha("a"))
    with pytest.raises(UnknownNameError):
        db.parquet(db.public(board), unit)
    assert not any(u.model_sha == sha("a") for u, _ in db.predictions(db.public(board)))
    (probe,) = visitor.get("/api/v1/probes").json()["probes"]
    assert [m["units"] for m in probe["measured"]] == [t["models"] for t in probe["tasks"]] == [1]


def test_an_embargo_ends_on_its_day_without_anybody_doing_anything(board, bob):
    send(board, bob, embargo_until="2026-11-25")
    do_all(board)
    day = [len(db.rows(db.public(board, NOW + k * DAY))) for k in range(4)]
    assert day == [1, 1, 2, 2]
    seen = [db.state(db.public(board, NOW + k * DAY)) for k in (1, 2)]
    assert seen[0] != seen[1]  # so pages that are kept are made anew


def test_an_anonymous_model_is_shown_without_anything_that_names_it(board, bob):
    from .board_data import model_card

    sent = send(board, bob, anonymous=True)
    do(board, claimed(board))
    do(board, claimed(board))
    telling = {"title": "Gold", "authors": "Ann", "source": "https://gold.org", "note": "Gold!"}
    stored(
        board,
        claimed(board),
        encoder=model_card("a", **telling, citation="Gold et al.", readout="gold.layer"),
        manifest={**telling, "name": "a", "weights": {"sha256": "f00d"}, "architecture": "r10"},
    )
    said = pages(board)
    for text in said:
        assert "anonymous-" in text
        assert not any(word in text for word in ("Gold", "Ann", "gold", "f00d"))
    (row,) = [r for r in db.rows(db.public(board)) if r.result.model_sha == sha("a")]
    assert row.result.model.startswith("anonymous-")
    assert db.model(board, sha("a")).card["title"] == "Gold"  # kept
    assert queue.submission(board, sent.id).anonymous


@pytest.mark.parametrize("change", ["withdraw", "anonymous", "embargo", "edit"])
def test_whoever_submits_a_published_model_again_cannot_hide_or_rename_it(board, bob, change):
    eve = member(board, "eve")
    flags = {
        "anonymous": {"anonymous": True},
        "embargo": {"embargo_until": "2028-01-01"},
    }.get(change, {})
    sent = send(board, eve, NOW + 10**8, name="other", tasks=["t", "u"], **flags)
    do_all(board, ("t", "u"), NOW + 10**8)
    assert state(board, sent) == "done"
    if change == "withdraw":
        queue.withdraw(board, sent.id, "eve")
    if change == "edit":
        queue.edit_card(board, sent.id, "eve", {"title": "Eve's"})
    (found,) = db.models(db.public(board))
    assert (found.name, found.card["title"]) == ("other", "The model other")
    assert {r.result.model for r in db.rows(db.public(board))} == {"other"}


def test_a_second_submission_hides_nothing_of_the_first(engine, bob):
    send(engine, bob)
    do_all(engine)
    eve = member(engine, "eve")
    second = send(engine, eve, NOW + 1, anonymous=True)
    do_all(engine, ("t", "u"), NOW + 1)
    queue.edit_card(engine, second.id, "eve", {"authors": "Eve"})
    (found,) = db.models(db.public(engine))
    assert (found.name, found.card["authors"]) == ("a", "A. Author")
    queue.withdraw(engine, second.id, "eve")
    assert len(db.rows(db.public(engine))) == 2


def test_edits_are_shown_and_kept_one_after_another(engine, bob):
    sent = send(engine, bob)
    do_all(engine)
    visitor = Visitor(create_app(engine))
    page = f"/models/{sha('a')}"
    assert "The model a" in visitor.get(page).text
    queue.edit_card(engine, sent.id, "bob", {"title": "Better"}, NOW + 1)
    queue.edit_card(
        engine, sent.id, "bob", {"title": "Best", "pretraining": ["LIDC", "MSD"]}, NOW + 2
    )
    assert "Best" in visitor.get(page).text
    assert "LIDC" in visitor.get(page).text
    history = [(e.before["title"], e.after["title"], e.by) for e in queue.edits(engine, sent.id)]
    assert history == [("The model a", "Better", "bob"), ("Better", "Best", "bob")]
    assert queue.edits(engine, sent.id)[1].before["pretraining"] == []
    assert db.model(engine, sha("a")).card["title"] == "The model a"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Nothing is changed"),
        ({"name": "b"}, "cannot be changed"),
        ({"grid": {"shape": [1, 1, 1]}}, "cannot be changed"),
        ({"title": ""}, "0 letters"),
        ({"license": "  "}, "0 letters"),
        ({"title": "x" * 301}, "301 letters"),
        ({"title": 7}, "not a int"),
        ({"note": "a\x00b"}, "control characters"),
        ({"note": "a\u202eb"}, "control characters"),
        ({"pretraining": "LIDC"}, "is a list"),
        ({"pretraining": [""]}, "0 letters"),
    ],
)
def test_an_edit_that_cannot_be_is_refused(engine, bob, changes, said):
    sent = send(engine, bob)
    with pytest.raises(ManifestError, match=said):
        queue.edit_card(engine, sent.id, "bob", changes)
    assert queue.edits(engine, sent.id) == []


# --- self-run and unsafe rows ---------------------------------------------------------------------


def test_a_verified_row_replaces_a_self_run_one_and_never_the_other_way(engine):
    add(engine, [result(score=0.99)], origin="self-run", manifest={"name": "claimed"})
    assert not add(engine, [result(score=0.98)], origin="self-run")
    assert add(engine, [result(score=0.7)], origin="verified", parquet=b"ours")
    assert not add(engine, [result(score=0.99)], origin="self-run")
    (row,) = db.rows(engine)
    assert (row.result.score, row.origin) == (0.7, "verified")
    assert [parquet for _, parquet in db.predictions(engine)] == [b"ours"]
    assert db.model(engine, sha("a")).manifest["name"] == "a"
    kept = next(e for e in accounts.audited(engine) if e.action == "unit-replaced")
    assert kept.detail["rows"][0]["score"] == 0.99


def test_a_row_made_in_isolation_replaces_one_made_without(engine):
    add(engine, [result()], unsafe=True)
    assert db.rows(engine)[0].unsafe
    assert not add(engine, [result()], origin="verified", unsafe=True)
    assert add(engine, [result()], origin="verified")
    assert not db.rows(engine)[0].unsafe


def test_an_origin_that_is_none_is_a_bug(engine):
    with pytest.raises(ValueError, match="not of 'mine'"):
        add(engine, [result()], origin="mine")


def test_an_unsafe_row_marks_its_submission(engine, bob):
    sent = send(engine, bob)
    do(engine, claimed(engine))
    do(engine, claimed(engine))
    stored(engine, claimed(engine), unsafe=True)
    assert queue.submission(engine, sent.id).unsafe_local


def test_what_also_has_to_be_done_is_done_with_the_unit_or_not_at_all(engine):
    def fails(connection) -> None:
        raise RuntimeError("stop")

    for _ in range(2):
        with pytest.raises(RuntimeError):
            add(engine, [result()], also=fails)
        assert db.rows(engine) == db.models(engine) == []
    add(engine, [result()])
    done = []
    assert not add(engine, [result()], also=done.append)
    assert len(done) == 1  # a unit that is there already ends its job, too


def test_self_run_rows_are_not_seen_before_their_embargo_ends(engine, bob):
    sent = send(engine, bob, embargo_until="2027-01-31")
    job = claimed(engine)
    add(
        engine,
        [result()],
        origin="self-run",
        also=lambda connection: queue.identify(connection, job, sha("a"), NOW),
    )
    assert db.rows(db.public(engine, NOW)) == []
    assert queue.is_hidden(engine, sha("a"), NOW)
    queue.checked(engine, job, model_sha=sha("a"), planned=[], now=NOW)
    assert state(engine, sent) == "done"
    assert db.rows(db.public(engine, NOW)) == []
    assert len(db.rows(db.public(engine, NOW + 80 * DAY))) == 1


def claims(engine, who, now: float = NOW, task: str = "t", **flags):
    """Predictions that somebody says are of model "a", as the check of them stores their rows."""
    upload = uploads.create(engine, who, "predictions", 4, sha(f"{who.user.id} {now}"), now=now)
    uploads.advance(engine, upload.id, 0, 4, now=now)
    uploads.finish(engine, upload.id, now=now)
    sent = send(engine, who, now, kind="self-run", upload_id=upload.id, **flags)
    job = claimed(engine, now=now)

    def also(connection) -> None:
        queue.identify(connection, job, sha("a"), now)
        queue.finish(connection, job, now=now)

    try:
        add(engine, [result(task=task, score=0.99)], origin="self-run", also=also)
    except IntakeError as error:
        queue.fail(engine, job, error, now=now)
    return sent


@pytest.mark.parametrize("change", ["withdraw", "anonymous", "embargo", "edit"])
def test_who_sent_predictions_has_no_say_once_the_model_was_evaluated_here(engine, bob, change):
    flags = {
        "anonymous": {"anonymous": True},
        "embargo": {"embargo_until": "2028-01-01"},
    }.get(change, {})
    sent = claims(engine, bob, **flags)
    assert state(engine, sent) == "done"
    if change == "edit":
        queue.edit_card(engine, sent.id, "bob", {"title": "Bob's"})
        assert db.models(db.public(engine))[0].card["title"] == "Bob's"  # until then it is his
    add(engine, [result(score=0.7)], added=datetime.fromtimestamp(NOW + 60, UTC))
    if change == "withdraw":
        queue.withdraw(engine, sent.id, "bob", NOW + 61)
    (found,) = db.models(db.public(engine))
    assert (found.name, found.card["title"]) == ("a", "The model a")
    (row,) = db.rows(db.public(engine))
    assert (row.result.model, row.result.score) == ("a", 0.7)


@pytest.mark.parametrize("change", ["withdrawn", "anonymous", "embargo", "self-run", "local"])
def test_predictions_are_not_taken_of_a_model_that_is_anothers(engine, bob, change):
    flags = {
        "anonymous": {"anonymous": True},
        "embargo": {"embargo_until": "2028-01-01"},
    }.get(change, {})
    if change == "self-run":
        claims(engine, bob, anonymous=True)
    elif change == "local":
        add(engine, [result()])
    else:
        first = send(engine, bob, NOW, **flags)
        do_all(engine)
        if change == "withdrawn":
            queue.withdraw(engine, first.id, "bob")
    before = (db.rows(engine), db.rows(db.public(engine)), db.models(db.public(engine)))
    sent = claims(engine, member(engine, "eve"), NOW + 1, task="u")
    found = queue.submission(engine, sent.id)
    assert (found.state, found.code, found.model_sha) == ("failed", "predictions-claimed", None)
    assert (db.rows(engine), db.rows(db.public(engine)), db.models(db.public(engine))) == before


def test_ones_own_predictions_can_be_added_to_and_shown_again(engine, bob):
    first = claims(engine, bob)
    queue.withdraw(engine, first.id, "bob", NOW)
    seen = db.state(engine)
    again = claims(engine, bob, NOW + 1)  # nothing of it is new
    assert state(engine, again) == "done"
    assert len(db.rows(db.public(engine))) == 1
    assert db.state(engine) != seen


@pytest.mark.parametrize("origin", ["local", "verified"])
def test_a_model_whose_rows_came_by_a_merge_can_be_hidden_by_nobody(engine, bob, new_url, origin):
    other = fresh(new_url("sqlite"))
    add(other, [result()], origin=origin)
    merge(engine, other)
    other.dispose()
    for now, who in ((NOW, bob), (NOW + 1, member(engine, "eve"))):
        sent = send(engine, who, now, tasks=["u"], embargo_until="2028-01-01", anonymous=True)
        do_all(engine, ("u",), now)
        assert state(engine, sent) == "done"
        queue.withdraw(engine, sent.id, who.user.name, now)
    assert {row.result.task for row in db.rows(db.public(engine))} == {"t", "u"}
    assert [model.name for model in db.models(db.public(engine))] == ["a"]


def test_rows_of_the_first_submission_take_no_say_from_it_when_there_is_a_second(engine, bob):
    for k, name in enumerate(["bob", "eve"]):
        who = bob if name == "bob" else member(engine, name)
        send(engine, who, NOW + 60 * k, embargo_until="2027-01-31")
        do_all(engine, now=NOW + 60 * k)
    assert db.rows(db.public(engine, NOW + 120)) == []


@pytest.mark.parametrize("what", ["cancel", "fail"])
def test_whatever_changes_what_is_shown_changes_the_state(engine, bob, what):
    add(engine, [result()], origin="self-run")
    sent = send(engine, bob, embargo_until="2028-01-01")
    do(engine, claimed(engine))
    assert db.rows(db.public(engine, NOW)) == []  # whoever has the weights decides
    before = db.state(engine)
    if what == "cancel":
        queue.cancel(engine, sent.id, "bob", NOW)
    else:
        queue.fail(engine, claimed(engine), replace_stage(NAN, "extract"), now=NOW)
    assert len(db.rows(db.public(engine, NOW))) == 1
    assert db.state(engine) != before


# --- reports --------------------------------------------------------------------------------------


def test_a_row_can_be_disputed_and_the_answer_is_kept(engine, bob):
    add(engine, [result()])
    before = db.state(engine)
    made = queue.report(
        engine, model_sha=sha("a"), task="t", kind="leak", text=" Saw MSD. ", by=bob.user.id
    )
    assert (made.state, made.text, made.answer) == ("open", "Saw MSD.", None)
    assert db.state(engine) != before
    queue.answer(engine, made.id, "upheld", "Right.", "ada")
    (found,) = queue.reports(engine, sha("a"))
    assert (found.state, found.answer) == ("upheld", "Right.")
    assert queue.reports(engine, state="open") == []
    for changes in ({"model_sha": sha("x")}, {"kind": "spam"}):
        with pytest.raises(UnknownNameError):
            queue.report(engine, **{"model_sha": sha("a"), "kind": "leak", "text": "x"} | changes)
    for text in ("", "  ", "x" * 5000):
        with pytest.raises(IntakeError):
            queue.report(engine, model_sha=sha("a"), kind="dispute", text=text)


# --- copies ---------------------------------------------------------------------------------------


def test_a_backup_brings_everything_and_goes_on_where_it_was(engine, bob, new_url, tmp_path):
    send(engine, bob)
    do_all(engine)
    waiting = send(engine, bob, name="b")
    do(engine, claimed(engine))
    backup(engine, tmp_path / "kept.db")
    for kind in ("sqlite", "postgresql"):
        other = db.connect(new_url(kind))
        counts = restore(other, tmp_path / "kept.db")
        assert counts["tokens"] == 1
        assert queue.submissions(other) == queue.submissions(engine)
        assert queue.jobs(other, waiting.id) == queue.jobs(engine, waiting.id)
        assert do_all(other) == 2
        send(other, bob)  # new ids follow those that were restored
        assert check_without_predictions(other) == []
        other.dispose()


def test_a_merge_takes_rows_and_neither_accounts_nor_what_is_hidden(engine, bob, new_url):
    add(engine, [result("local")])
    for name, flags in (
        ("open", {}),
        ("later", {"embargo_until": "2099-01-31"}),
        ("shy", {"anonymous": True}),
        ("gone", {}),
    ):
        if "embargo_until" in flags:
            flags = {"embargo_until": "2028-01-31"}
        sent = send(engine, bob, name=name, **flags)
        do_all(engine)
    queue.withdraw(engine, sent.id, "bob")
    db.queue(engine, [pending(name) for name in ("local", "later")])
    add(engine, [result("open", "x")], origin="self-run", unsafe=True)
    other = fresh(new_url("sqlite"))
    assert merge(other, engine) == (3, 0, 3)
    assert [m.name for m in db.models(other)] == ["local", "open"]
    assert [p.model_sha for p in db.pending(other)] == [sha("local")]
    origins = {(r.result.model, r.result.task): (r.origin, r.unsafe) for r in db.rows(other)}
    assert origins == {
        ("local", "t"): ("local", False),
        ("open", "t"): ("verified", False),
        ("open", "x"): ("self-run", True),
    }
    assert accounts.users(other) == queue.submissions(other) == accounts.audited(other) == []
    with other.connect() as connection:
        for name in SECRETS:
            count = sa.select(sa.func.count()).select_from(sa.table(name))
            assert connection.scalar(count) == 0
    other.dispose()


def pending(name: str):
    from tomoprobe.leaderboard.records import Pending

    return Pending(sha(name), "t", 2, "linear", 1, "raised")


def test_jobs_that_nobody_will_ever_do_are_a_fault(engine, bob):
    sent = send(engine, bob)
    do(engine, claimed(engine))
    assert check_without_predictions(engine) == []
    with engine.begin() as connection:
        extract = sa.and_(JOBS.c.submission_id == sent.id, JOBS.c.kind == "extract")
        connection.execute(sa.update(JOBS).where(extract).values(state="cancelled"))
    (fault,) = check_without_predictions(engine)
    assert "will never be done" in fault
    with engine.begin() as connection:
        connection.execute(sa.update(JOBS).values(state="cancelled"))
    (fault,) = check_without_predictions(engine)
    assert f"{sent.id} is not ended" in fault


def test_an_older_release_is_not_let_to_show_what_is_hidden(engine, bob):
    send(engine, bob, anonymous=True)
    do_all(engine)
    with pytest.raises(StorageError, match="older release would rank and show"):
        db.migrate_to(engine, "0002")
    assert db.revision(engine) == db.newest()
    assert len(db.rows(engine)) == 1


def test_too_many_submissions_are_refused_before_anything_is_written(engine):
    from tomoprobe.leaderboard.intake_records import Quota

    eve = member(engine, "eve", replace(Quota(), jobs_per_day=0))
    with pytest.raises(QuotaError):
        send(engine, eve)
    assert queue.submissions(engine) == []
    assert queue.depths(engine) == {}
