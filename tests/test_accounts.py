from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from tomoprobe.benchmark.errors import (
    AccessError,
    ConflictError,
    IntakeError,
    QuotaError,
    UnknownNameError,
)
from tomoprobe.leaderboard import accounts, queue, quotas, uploads
from tomoprobe.leaderboard.intake_records import Quota
from tomoprobe.leaderboard.intake_tables import METADATA, SESSIONS, TOKENS

from .board_data import fresh, sha
from .intake_data import NOW, claimed, do, member, send

DAY = 86_400.0


@pytest.fixture
def engine(url):
    engine = fresh(url)
    yield engine
    engine.dispose()


@pytest.fixture
def ada(engine):
    accounts.add_user(engine, "ada", "maintainer", now=NOW)
    return accounts.issue_token(engine, "ada", ["read", "submit"], 30, now=NOW)


# --- users and tokens -----------------------------------------------------------------------------


def test_a_token_lets_its_user_in_and_is_noted_as_used(engine, ada):
    secret, token = ada
    found = accounts.authenticate(engine, secret, "submit", NOW + 5)
    assert (found.user.name, found.token_id, found.scopes) == ("ada", token.id, ("read", "submit"))
    assert token.last_used is None
    assert accounts.tokens(engine, "ada")[0].last_used == "2026-11-23T05:56:05Z"


def test_the_secret_is_stored_nowhere(engine, ada):
    secret, token = ada
    assert secret.startswith(accounts.PREFIX)
    assert secret.removeprefix(accounts.PREFIX).startswith(token.hint)
    cookie, _ = accounts.open_session(engine, secret, NOW)
    with engine.connect() as connection:
        for table in METADATA.sorted_tables:
            said = repr(connection.execute(sa.select(table)).all())
            assert secret.removeprefix(accounts.PREFIX) not in said
            assert cookie not in said


@pytest.mark.parametrize(
    "forged",
    ["", "tmp_", "ada", "tmp_" + "A" * 43, "tmp_" + "A" * 42 + "é", "tmp_" + "A" * 10_000, "\x00"],
)
def test_a_secret_that_was_never_issued_is_refused(engine, ada, forged):
    with pytest.raises(AccessError) as caught:
        accounts.authenticate(engine, forged, "read", NOW)
    assert caught.value.status == 401


def test_a_token_expires_to_the_second(engine, ada):
    end = NOW + 30 * DAY
    assert accounts.authenticate(engine, ada[0], "read", end - 1)
    with pytest.raises(AccessError, match="expired on 2026-12-23") as caught:
        accounts.authenticate(engine, ada[0], "read", end)
    assert caught.value.status == 401


def test_a_revoked_token_is_refused_and_its_sessions_with_it(engine, ada):
    cookie, _ = accounts.open_session(engine, ada[0], NOW)
    accounts.revoke_token(engine, ada[1].id, now=NOW)
    with pytest.raises(AccessError, match="revoked"):
        accounts.authenticate(engine, ada[0], "read", NOW)
    with pytest.raises(AccessError, match="not logged in"):
        accounts.session(engine, cookie, NOW)


def test_a_revoked_user_is_refused_with_every_token_and_session(engine, ada):
    cookie, _ = accounts.open_session(engine, ada[0], NOW)
    accounts.revoke_user(engine, "ada", now=NOW)
    with pytest.raises(AccessError):
        accounts.authenticate(engine, ada[0], "read", NOW)
    with pytest.raises(AccessError):
        accounts.session(engine, cookie, NOW)
    with pytest.raises(AccessError, match="gets no token"):
        accounts.issue_token(engine, "ada", ["read"], now=NOW)


def test_a_scope_that_the_token_lacks_is_forbidden_and_not_unknown(engine, ada):
    with pytest.raises(AccessError, match="needs the scope 'maintain'") as caught:
        accounts.authenticate(engine, ada[0], "maintain", NOW)
    assert caught.value.status == 403


def test_a_higher_scope_allows_what_lower_ones_do(engine, ada):
    secret, _ = accounts.issue_token(engine, "ada", ["maintain"], now=NOW)
    assert accounts.authenticate(engine, secret, "read", NOW).allows("submit")


@pytest.mark.parametrize(
    ("role", "scope"), [("reader", "submit"), ("submitter", "maintain"), ("maintainer", "admin")]
)
def test_no_token_goes_beyond_the_role_of_its_user(engine, role, scope):
    accounts.add_user(engine, "bob", role)
    with pytest.raises(AccessError, match=f"does not allow the scope {scope}"):
        accounts.issue_token(engine, "bob", ["read", scope])


@pytest.mark.parametrize(
    ("scopes", "days", "error"),
    [
        ([], 1, ConflictError),
        (["root"], 1, UnknownNameError),
        (["read"], 0, ConflictError),
        (["read"], 10_000, ConflictError),
    ],
)
def test_a_token_needs_scopes_that_exist_and_an_end(engine, ada, scopes, days, error):
    with pytest.raises(error):
        accounts.issue_token(engine, "ada", scopes, days)


@pytest.mark.parametrize("name", ["", "Ada", "a b", "../x", "a\n", "ä", "-a", "a" * 65, "local"])
def test_a_name_that_is_none_is_refused(engine, name):
    with pytest.raises(ConflictError, match="cannot be the name"):
        accounts.add_user(engine, name, "reader")


def test_a_name_is_never_given_twice(engine, ada):
    accounts.revoke_user(engine, "ada")
    with pytest.raises(ConflictError, match="There is a user 'ada'"):
        accounts.add_user(engine, "ada", "reader")


def test_roles_and_users_that_do_not_exist_are_named(engine):
    with pytest.raises(UnknownNameError, match="Did you mean 'admin'"):
        accounts.add_user(engine, "eve", "admn")
    for act in (accounts.revoke_user, accounts.user, accounts.tokens):
        with pytest.raises(UnknownNameError, match="no user 'eve'"):
            act(engine, "eve")
    with pytest.raises(UnknownNameError, match="no token 7"):
        accounts.revoke_token(engine, 7)


# --- sessions -------------------------------------------------------------------------------------


def test_a_session_is_its_token_in_a_browser(engine, ada):
    cookie, csrf = accounts.open_session(engine, ada[0], NOW)
    found, again = accounts.session(engine, cookie, NOW + 60)
    assert (found.token_id, found.scopes, again) == (ada[1].id, ("read", "submit"), csrf)
    assert csrf != cookie
    assert accounts.open_session(engine, ada[0], NOW)[1] != csrf


@pytest.mark.parametrize("cookie", ["", "x", "\x00", "A" * 5000])
def test_a_cookie_that_was_never_set_is_refused(engine, ada, cookie):
    with pytest.raises(AccessError, match="not logged in"):
        accounts.session(engine, cookie, NOW)


def test_a_session_ends_when_it_is_closed_and_after_a_day_of_work(engine, ada):
    cookies = [accounts.open_session(engine, ada[0], NOW)[0] for _ in range(2)]
    accounts.close_session(engine, cookies[0])
    with pytest.raises(AccessError):
        accounts.session(engine, cookies[0], NOW)
    assert accounts.session(engine, cookies[1], NOW + accounts.SESSION_S - 1)
    with pytest.raises(AccessError):
        accounts.session(engine, cookies[1], NOW + accounts.SESSION_S)
    accounts.open_session(engine, ada[0], NOW + accounts.SESSION_S)
    with engine.connect() as connection:  # what has expired is cleaned away
        assert connection.scalar(sa.select(sa.func.count()).select_from(SESSIONS)) == 1


def test_a_session_does_not_outlive_its_token(engine, ada):
    secret, _ = accounts.issue_token(engine, "ada", ["read"], 1, now=NOW)
    cookie, _ = accounts.open_session(engine, secret, NOW + DAY - 60)
    with pytest.raises(AccessError, match="expired"):
        accounts.session(engine, cookie, NOW + DAY)


# --- audit ----------------------------------------------------------------------------------------


def test_who_did_what_is_written_down_without_secrets(engine, ada):
    accounts.set_quota(engine, "ada", Quota(jobs_per_day=3), by="root", now=NOW)
    accounts.revoke_token(engine, ada[1].id, by="root", now=NOW)
    found = accounts.audited(engine)
    said = [(entry.actor, entry.action, entry.subject) for entry in reversed(found)]
    assert said == [
        ("local", "user-added", "ada"),
        ("local", "token-issued", "ada"),
        ("root", "quota-set", "ada"),
        ("root", "token-revoked", "ada"),
    ]
    assert found[1].detail["jobs_per_day"] == 3
    assert accounts.user(engine, "ada").quota.jobs_per_day == 3
    assert ada[0] not in repr(found)
    with engine.connect() as connection:
        digest = connection.scalar(sa.select(TOKENS.c.digest))
    assert digest not in repr(found)


# --- quotas ---------------------------------------------------------------------------------------


def at_once(count: int, act) -> list:
    """Results of as many threads that all begin together; errors are results."""

    def tried(k: int):
        try:
            return act(k)
        except (QuotaError, ConflictError, queue.LostLease) as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(tried, range(count)))


def test_twelve_threads_get_no_more_than_the_five_jobs_there_are(engine):
    who = member(engine, "bob", Quota(jobs_per_day=5))
    found = at_once(12, lambda _: send(engine, who))
    refused = [f for f in found if isinstance(f, QuotaError)]
    assert len(refused) == 7
    assert "may have 5 submissions in 24 hours" in str(refused[0])
    assert len(queue.submissions(engine)) == 5  # whoever is refused leaves nothing behind
    assert quotas.used(engine, who.user, NOW)["jobs"] == 5


def test_threads_get_no_more_bytes_than_there_are(engine):
    who = member(engine, "bob", Quota(bytes_kept=1000))
    found = at_once(8, lambda k: uploads.create(engine, who, "onnx", 300, sha(str(k)), NOW))
    assert sum(isinstance(f, QuotaError) for f in found) == 5
    assert quotas.used(engine, who.user, NOW)["bytes"] == 900
    assert len(uploads.uploads(engine, who)) == 3


def test_it_is_said_when_there_will_be_more(engine):
    who = member(engine, "bob", Quota(jobs_per_day=2))
    for late in (0, 3600):
        send(engine, who, NOW + late)
    with pytest.raises(QuotaError) as caught:
        send(engine, who, NOW + 7200)
    assert caught.value.retry_after == DAY - 7200
    send(engine, who, NOW + 7200 + caught.value.retry_after)


def test_waiting_does_not_help_against_full_storage(engine):
    who = member(engine, "bob", Quota(bytes_kept=10))
    with pytest.raises(QuotaError) as caught:
        uploads.create(engine, who, "onnx", 11, sha("x"), NOW)
    assert caught.value.retry_after is None


def test_a_quota_that_was_raised_holds_at_once_for_whoever_is_logged_in(engine):
    who = member(engine, "bob", Quota(jobs_per_day=0))
    with pytest.raises(QuotaError):
        send(engine, who)
    accounts.set_quota(engine, "bob", Quota(jobs_per_day=1))
    send(engine, who)


def test_faults_of_the_platform_are_always_refunded_and_own_ones_three_times_a_day(engine):
    who = member(engine, "bob", Quota(jobs_per_day=100))
    broken = IntakeError("nan", "There is a NaN.", stage="check", hint="Train again.")
    for _ in range(5):
        send(engine, who)
        queue.fail(engine, claimed(engine), broken, now=NOW)
    assert quotas.used(engine, who.user, NOW)["jobs"] == 2
    for _ in range(5):
        send(engine, who)
        queue.fail(engine, claimed(engine), OSError("the disk"), now=NOW)
    assert quotas.used(engine, who.user, NOW)["jobs"] == 2
    send(engine, who, NOW + DAY + 1)
    queue.fail(engine, claimed(engine, now=NOW + DAY + 1), broken, now=NOW + DAY + 1)
    assert quotas.used(engine, who.user, NOW + DAY + 1)["jobs"] == 0


def test_what_is_cancelled_before_it_began_costs_nothing(engine):
    who = member(engine, "bob", Quota(jobs_per_day=1))
    for _ in range(3):
        queue.cancel(engine, send(engine, who).id, "bob", NOW)
    begun = send(engine, who)
    claimed(engine)
    queue.cancel(engine, begun.id, "bob", NOW)
    with pytest.raises(QuotaError):
        send(engine, who)


def test_gpu_seconds_are_reserved_when_an_extraction_starts_and_settled_when_it_ends(engine):
    who = member(engine, "bob", Quota(gpu_hours_per_month=0.5))
    send(engine, who)
    do(engine, claimed(engine), ("t", "u"))
    first = claimed(engine, kinds=["extract"], lease_s=5000.0)
    assert quotas.used(engine, who.user, NOW)["gpu_seconds"] == 600
    queue.finished(engine, first, now=NOW + 1500)
    assert quotas.used(engine, who.user, NOW)["gpu_seconds"] == 1500
    late = NOW + 1500
    second = claimed(engine, now=late, kinds=["extract"])  # with what is left
    assert quotas.used(engine, who.user, late)["gpu_seconds"] == 1800
    queue.give_back(engine, second, now=late)
    with engine.begin() as connection:
        quotas.reserve(connection, who.user, "gpu_seconds", 300, now=late)
    assert queue.claim(engine, "w", ["extract"], now=late) is None
    assert "0.5 GPU-hours in 30 days" in queue.place(engine, first.submission_id, late).held
    assert claimed(engine, now=late).kind == "probe"  # of the first one: needs no GPU
    with pytest.raises(QuotaError):  # more than is left, and none at all is left
        accounts.set_quota(engine, "bob", Quota(gpu_hours_per_month=1500 / 3600))
        send(engine, who, late)
    assert claimed(engine, kinds=["extract"], now=NOW + 31 * DAY)


def test_a_quota_below_the_first_guess_is_used_and_then_used_up(engine):
    who = member(engine, "bob", Quota(gpu_hours_per_month=0.1))
    sent = send(engine, who)
    do(engine, claimed(engine), ("t", "u"))
    assert queue.place(engine, sent.id, NOW).held == ""
    first = claimed(engine, kinds=["extract"])
    assert quotas.used(engine, who.user, NOW)["gpu_seconds"] == 360
    assert queue.claim(engine, "w", ["extract"], now=NOW) is None
    queue.finished(engine, first, now=NOW + 10)
    assert quotas.used(engine, who.user, NOW + 10)["gpu_seconds"] == 10
    assert claimed(engine, kinds=["extract"], now=NOW + 10)


# --- uploads --------------------------------------------------------------------------------------


@pytest.fixture
def who(engine):
    return member(engine, "bob", Quota(bytes_kept=1000))


def opened(engine, who, size: int = 100, kind: str = "safetensors", file: str = "file"):
    return uploads.create(engine, who, kind, size, sha(file), NOW)


def whole(engine, who, kind: str = "safetensors"):
    found = opened(engine, who, kind=kind)
    uploads.advance(engine, found.id, 0, found.size, NOW)
    return uploads.finish(engine, found.id, NOW)


def test_chunks_follow_one_another_until_the_file_is_whole(engine, who):
    found = opened(engine, who)
    assert (found.state, found.received) == ("open", 0)
    assert found.id in found.file
    uploads.advance(engine, found.id, 0, 60, NOW)
    with pytest.raises(ConflictError, match="60 of 100 bytes") as caught:
        uploads.finish(engine, found.id, NOW)
    assert caught.value.offset == 60
    assert uploads.advance(engine, found.id, 60, 100, NOW).received == 100
    assert uploads.finish(engine, found.id, NOW).state == "complete"
    with pytest.raises(ConflictError, match="complete, not open"):
        uploads.advance(engine, found.id, 100, 100, NOW)


def test_whoever_announces_the_same_file_again_goes_on_with_it(engine, who):
    found = opened(engine, who)
    uploads.advance(engine, found.id, 0, 40, NOW)
    again = opened(engine, who)
    assert (again.id, again.received) == (found.id, 40)
    assert quotas.used(engine, who.user, NOW)["bytes"] == 100
    assert opened(engine, member(engine, "eve")).id != found.id


@pytest.mark.parametrize(("start", "end"), [(0, 50), (50, 60), (90, 100), (40, 101), (40, 30)])
def test_a_chunk_elsewhere_is_told_where_to_go_on(engine, who, start, end):
    found = opened(engine, who)
    uploads.advance(engine, found.id, 0, 40, NOW)
    with pytest.raises(ConflictError) as caught:
        uploads.advance(engine, found.id, start, end, NOW)
    assert caught.value.offset == 40
    assert uploads.get(engine, found.id, who).received == 40


def test_of_many_that_send_the_same_chunk_one_wins(engine, who):
    found = opened(engine, who)
    results = at_once(8, lambda _: uploads.advance(engine, found.id, 0, 10, NOW))
    assert sum(isinstance(r, ConflictError) for r in results) == 7
    assert {r.offset for r in results if isinstance(r, ConflictError)} == {10}


def test_an_upload_is_of_the_token_that_opened_it(engine, who):
    found = opened(engine, who)
    secret, _ = accounts.issue_token(engine, "bob", ["submit"], now=NOW)
    other = accounts.authenticate(engine, secret, "submit", NOW)
    for stranger in (other, member(engine, "eve")):
        with pytest.raises(UnknownNameError, match="no upload"):
            uploads.get(engine, found.id, stranger)
    assert uploads.get(engine, found.id, who) == found


@pytest.mark.parametrize(
    ("kind", "size", "digest", "code"),
    [
        ("pickle", 1, sha("x"), "upload-kind"),
        ("onnx", 0, sha("x"), "upload-size"),
        ("onnx", -5, sha("x"), "upload-size"),
        ("onnx", 1 << 63, sha("x"), "upload-size"),
        ("onnx", 1, sha("x").upper(), "upload-hash"),
        ("onnx", 1, "../../etc", "upload-hash"),
        ("onnx", 1, sha("x") + "\n", "upload-hash"),
    ],
)
def test_what_cannot_be_a_file_is_refused_before_a_byte_is_sent(
    engine, who, kind, size, digest, code
):
    with pytest.raises(IntakeError) as caught:
        uploads.create(engine, who, kind, size, digest, NOW)
    assert caught.value.code == code
    assert quotas.used(engine, who.user, NOW)["bytes"] == 0


def test_a_reader_can_upload_nothing(engine):
    accounts.add_user(engine, "eve", "reader", now=NOW)
    secret, _ = accounts.issue_token(engine, "eve", ["read"], now=NOW)
    eve = accounts.authenticate(engine, secret, "read", NOW)
    with pytest.raises(AccessError) as caught:
        uploads.create(engine, eve, "onnx", 1, sha("x"), NOW)
    assert caught.value.status == 403
    with pytest.raises(AccessError):
        send(engine, eve)


def test_a_refused_upload_keeps_its_reason_and_frees_its_bytes_when_it_is_deleted(engine, who):
    found = opened(engine, who)
    error = IntakeError("header-hole", "There is a hole.", stage="upload", hint="Pack it again.")
    told = uploads.refuse(engine, found.id, error, NOW)
    assert (told.state, told.reason["code"], told.reason["hint"]) == (
        "refused",
        "header-hole",
        "Pack it again.",
    )
    assert [u.id for u in uploads.expired(engine, NOW)] == [found.id]
    uploads.forget(engine, found.id, NOW)
    assert uploads.expired(engine, NOW) == []
    assert quotas.used(engine, who.user, NOW)["bytes"] == 0
    with pytest.raises(ConflictError):
        uploads.refuse(engine, found.id, error, NOW)


def test_an_upload_that_rests_expires_and_one_that_goes_on_does_not(engine, who):
    rests, goes_on = opened(engine, who), opened(engine, who, file="other")
    late = NOW + uploads.OPEN_S
    uploads.advance(engine, goes_on.id, 0, 1, late - 1)
    assert [u.id for u in uploads.expired(engine, late)] == [rests.id]
    with pytest.raises(ConflictError, match="expired, not open"):
        uploads.advance(engine, rests.id, 0, 1, late)
    # the file is not deleted yet: asked again, it is named again
    assert [u.id for u in uploads.expired(engine, late)] == [rests.id]


def test_a_file_that_a_submission_needs_is_kept(engine, who):
    file = whole(engine, who)
    found = send(engine, who, kind="weights", upload_id=file.id)
    late = NOW + 400 * DAY
    assert uploads.expired(engine, late) == []
    with pytest.raises(ConflictError, match="still needs"):
        uploads.forget(engine, file.id, late)
    queue.cancel(engine, found.id, "bob", NOW)
    assert [u.id for u in uploads.expired(engine, late)] == [file.id]


@pytest.mark.parametrize("kind", ["seed", "onnx"])
def test_a_file_of_another_kind_is_refused(engine, who, kind):
    with pytest.raises(ConflictError):
        send(engine, who, kind=kind, upload_id=whole(engine, who).id)


def test_a_file_has_to_be_there_whole_and_ones_own(engine, who):
    with pytest.raises(ConflictError, match="takes an upload"):
        send(engine, who, kind="weights")
    with pytest.raises(UnknownNameError):
        send(engine, who, kind="weights", upload_id="0" * 16)
    with pytest.raises(ConflictError, match="open, not complete"):
        send(engine, who, kind="weights", upload_id=opened(engine, who, file="other").id)
    with pytest.raises(UnknownNameError):
        send(engine, member(engine, "eve"), kind="weights", upload_id=whole(engine, who).id)
    assert queue.submissions(engine) == []


def test_a_file_is_in_one_submission_at_a_time(engine, who):
    file = whole(engine, who)
    found = at_once(4, lambda _: send(engine, who, kind="weights", upload_id=file.id))
    assert sum(isinstance(f, ConflictError) for f in found) == 3
    queue.cancel(engine, queue.submissions(engine)[0].id, "bob", NOW)
    send(engine, who, kind="weights", upload_id=file.id)


def test_moments_are_utc():
    assert datetime.fromtimestamp(NOW, UTC).isoformat() == "2026-11-23T05:56:00+00:00"
