"""The forms: sessions, forged requests, what strangers type, and what a browser does with them."""

import json
import re
import tomllib
from html.parser import HTMLParser
from urllib.parse import urlsplit

import httpx
import pytest

from tomoprobe.benchmark.errors import IntakeError
from tomoprobe.leaderboard import accounts, queue, uploads
from tomoprobe.submissions.api_models import MANIFEST

from .board_data import add, result, sha
from .live_site import ask, running, safetensors, with_weights
from .test_browser import CONTRASTS, browser  # noqa: F401 - a fixture

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'>{{7*7}}"


class Page(HTMLParser):
    """Elements of a page, and the fields of its forms by their action."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.forms: dict[str, dict[str, str]] = {}
        self.text = ""
        self._form: dict[str, str] = {}
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.elements.append((tag, given))
        if tag == "form":
            self._form = self.forms.setdefault(given.get("action") or "", {})
        if tag == "input" and given.get("name"):
            self._form[given["name"]] = given.get("value") or ""

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    with running(
        tmp_path_factory.mktemp("site"), form_upload_bytes=1 << 20, chunk_bytes=1 << 20
    ) as site:
        add(site.engine, [result("texture", "smoke_lesion")])
        yield site


@pytest.fixture
def alice(live):
    with live.browser("alice") as client:
        yield client


@pytest.fixture
def mia(live):
    with live.browser("mia") as client:
        yield client


def csrf(client: httpx.Client, path: str = "/account") -> str:
    page = Page(client.get(path).text)
    return next(form["csrf"] for form in page.forms.values() if "csrf" in form)


def submitted(client: httpx.Client, manifest: str = MANIFEST, **fields) -> httpx.Response:
    fields = {"csrf": csrf(client), "manifest": manifest, "suite": "smoke", **fields}
    return client.post("/submit", data=fields, files={"file": ("", b"")})


def identity(client: httpx.Client, manifest: str = MANIFEST, **fields) -> str:
    answer = submitted(client, manifest, **fields)
    assert answer.status_code == 303, Page(answer.text).text
    return answer.headers["location"].rsplit("/", 1)[1]


# --- sessions


def test_the_cookie_of_a_session_is_kept_from_scripts_and_other_sites(live, tmp_path):
    with live.browser(None) as client:
        answer = client.post("/login", data={"token": live.tokens["alice"]})
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie
        assert "Secure" not in cookie  # over http it would not come back
        assert live.tokens["alice"] not in cookie + answer.headers["location"]
    with running(tmp_path, base_url="https://board.example.org") as secure:
        token = {"token": secure.tokens["alice"]}
        answer = ask("POST", f"{secure.address}/login", data=token)
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-") and "Secure" in cookie
        assert "Domain" not in cookie


def test_who_is_not_logged_in_is_sent_to_the_login_and_back(live):
    with live.browser(None) as client:
        for path in (
            "/account",
            "/submit",
            "/submissions",
            "/submissions/" + "0" * 16,
            "/maintain",
        ):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["location"]) == (303, f"/login?next={path}")
        answer = client.post("/login", data={"token": live.tokens["alice"], "next": "/submit"})
        assert answer.headers["location"] == "/submit"
        assert client.get("/submit").status_code == 200


@pytest.mark.parametrize(
    "next", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)", ""]
)
def test_the_login_leads_to_no_other_site(live, next):
    with live.browser(None) as client:
        page = Page(client.get("/login", params={"next": next}).text)
        assert page.forms["/login"]["next"] == "/submissions"
        answer = client.post("/login", data={"token": live.tokens["alice"], "next": next})
        assert answer.headers["location"] == "/submissions"


@pytest.mark.parametrize("token", ["", "wrong", "tmp_" + "A" * 43, EVIL])
def test_a_wrong_token_logs_nobody_in_and_is_not_repeated(live, token):
    with live.browser(None) as client:
        answer = client.post("/login", data={"token": token})
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
        assert Page(answer.text).all("script") == []
        assert not token or token not in answer.text


@pytest.mark.parametrize(
    "cookie", ["", "x", "A" * 43, "A" * 5000, "../../x", '"; DROP TABLE users']
)
def test_a_forged_cookie_is_nobody(live, cookie):
    with live.browser(None) as client:
        answer = client.get("/account", headers={"Cookie": f"tomoprobe_session={cookie}"})
        assert answer.status_code == 303 and "/login" in answer.headers["location"]


def test_a_cookie_is_worth_nothing_after_the_logout_or_the_end_of_its_token(live):
    secret, token = accounts.issue_token(live.engine, "alice", ["submit"])
    with live.browser(None) as client:
        client.post("/login", data={"token": secret})
        kept = client.cookies["tomoprobe_session"]
        assert client.get("/account").status_code == 200
        assert client.post("/logout", data={"csrf": csrf(client)}).status_code == 303
        replayed = {"Cookie": f"tomoprobe_session={kept}"}
        assert ask("GET", f"{live.address}/account", headers=replayed).status_code == 303
        client.post("/login", data={"token": secret})
        accounts.revoke_token(live.engine, token.id)
        assert client.get("/account").status_code == 303


def test_a_session_may_no_more_than_its_token(live):
    with live.browser("ruth") as ruth:
        assert ruth.get("/submissions").status_code == 200
        assert ruth.get("/submit").status_code == 403
        assert ruth.get("/maintain").status_code == 403
        answer = ruth.post("/submit", data={"csrf": csrf(ruth), "manifest": MANIFEST})
        assert answer.status_code == 403


# --- forged requests


FORGED = ["missing", "another session's", "of another user", "foreign origin", "foreign site"]


@pytest.mark.parametrize("how", FORGED)
def test_no_form_is_taken_that_another_site_made(live, alice, how):
    with live.browser("bob") as bob, live.browser("alice") as second:
        fields, headers = {"csrf": csrf(alice)}, {}
        if how == "missing":
            fields = {}
        elif how == "another session's":
            fields = {"csrf": csrf(second)}
        elif how == "of another user":
            fields = {"csrf": csrf(bob)}
        elif how == "foreign origin":
            headers = {"Origin": "https://evil.example"}
        else:
            headers = {"Sec-Fetch-Site": "cross-site"}
    id = identity(alice)
    uploads_before = len(uploads.uploads(live.engine, accounts_of(live)))
    for path in (
        "/logout",
        "/submit",
        f"/submissions/{id}/cancel",
        f"/submissions/{id}/withdraw",
        f"/submissions/{id}/card",
        f"/report/{sha('texture')}",
        "/account/tokens/1/revoke",
    ):
        answer = alice.post(path, data={**fields, "title": "x"}, headers=headers)
        assert answer.status_code == 403, path
    sent = {"kind": "onnx", "size": 9, "sha256": "0" * 64}
    token = {"X-CSRF-Token": fields["csrf"]} if fields else {}
    answer = alice.post("/submit/uploads", json=sent, headers={**headers, **token})
    assert answer.status_code == 403
    assert len(uploads.uploads(live.engine, accounts_of(live))) == uploads_before
    assert queue.submission(live.engine, id).state == "queued"
    assert queue.edits(live.engine, id) == []
    assert alice.get("/account").status_code == 200


def accounts_of(live):
    return accounts.authenticate(live.engine, live.tokens["alice"], "read")


def test_a_foreign_origin_cannot_even_log_in(live):
    with live.browser(None) as client:
        answer = client.post(
            "/login",
            data={"token": live.tokens["alice"]},
            headers={"Origin": "https://evil.example"},
        )
        assert answer.status_code == 403 and "set-cookie" not in answer.headers


def test_nothing_changes_by_get(live, alice):
    id = identity(alice)
    for path in ("/logout", f"/submissions/{id}/cancel", f"/submissions/{id}/withdraw"):
        assert alice.get(path).status_code in (404, 405)
    assert queue.submission(live.engine, id).state == "queued"


# --- submitting


def test_a_form_without_a_file_submits_a_seed_and_shows_its_state(alice):
    id = identity(alice)
    page = Page(alice.get(f"/submissions/{id}").text)
    assert "Waits for the check" in page.text and "No worker is running" in page.text
    assert f"/submissions/{id}/cancel" in page.forms
    assert any(m.get("http-equiv") == "refresh" for m in page.all("meta"))
    answer = alice.post(f"/submissions/{id}/cancel", data={"csrf": csrf(alice)})
    assert answer.status_code == 303
    page = Page(alice.get(f"/submissions/{id}").text)
    assert "Cancelled" in page.text and not page.all("meta")[-1].get("http-equiv")


def test_without_a_script_the_file_comes_with_the_form(live, alice):
    data = safetensors(3001)
    answer = alice.post(
        "/submit",
        data={"csrf": csrf(alice), "manifest": "", "suite": "smoke"},
        files={
            "manifest_file": ("manifest.toml", with_weights(data).encode()),
            "file": ("../../../etc/model.safetensors", data),
        },
    )
    assert answer.status_code == 303, Page(answer.text).text
    found = queue.submission(live.engine, answer.headers["location"].rsplit("/", 1)[1])
    upload = uploads.stored(live.engine, found.upload_id)
    assert (live.store / upload.file).read_bytes() == data
    assert found.kind == "weights"


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("model.pt", b"PK\x03\x04", "tomoprobe pack"),
        ("model.safetensors", b"\x80\x04\x95.", "only safetensors"),
        ("model.pkl.onnx", b"\x80\x04\x95.", "a pickle"),
        ("x.parquet", safetensors(10), "neither a Parquet file"),
    ],
)
def test_a_refused_form_says_why_and_keeps_what_was_typed(live, alice, name, data, said):
    before = alice.get("/account").text.count("MiB")
    answer = alice.post(
        "/submit",
        data={
            "csrf": csrf(alice),
            "manifest": MANIFEST,
            "suite": "smoke",
            "task": "sarcoma_ct_sex",
        },
        files={"file": (name, data)},
    )
    page = Page(answer.text)
    assert answer.status_code == 422
    assert said in page.text and 'name = "my_resnet"' in page.text
    assert {"value": "sarcoma_ct_sex", "checked": None}.items() <= next(
        box for box in page.all("input") if box.get("value") == "sarcoma_ct_sex"
    ).items()
    assert alice.get("/account").text.count("MiB") == before


def test_a_file_that_came_with_a_refused_form_is_deleted(live, alice):
    data = safetensors(3002)
    answer = alice.post(
        "/submit",
        data={"csrf": csrf(alice), "manifest": with_weights(safetensors(3)), "suite": "smoke"},
        files={"file": ("model.safetensors", data)},
    )
    assert answer.status_code == 422
    mine = uploads.uploads(live.engine, accounts_of(live))
    assert len(data) not in {each.size for each in mine}
    assert not [p for p in live.store.iterdir() if p.stat().st_size == len(data)]


def test_a_form_that_is_too_large_is_broken_off(alice):
    answer = alice.post(
        "/submit",
        data={"csrf": csrf(alice), "manifest": MANIFEST, "suite": "smoke"},
        files={"file": ("model.onnx", bytes(3 << 20))},
    )
    assert answer.status_code == 413


# --- what strangers type


def harmless(page: Page) -> None:
    """Nothing of ``EVIL`` became an element, an attribute or a template."""
    assert not [s for s in page.all("script") if not (s.get("src") or "").startswith("/static/")]
    assert not page.all("img")
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert "style" not in attributes
        for name in ("href", "src", "action"):
            assert urlsplit(attributes.get(name) or "").scheme in ("", "http", "https")


def test_what_strangers_type_stays_text_on_every_page(live, alice, mia):
    quoted = json.dumps(EVIL)
    manifest = re.sub(r'^(title|authors|license) = ".*"$', rf"\1 = {quoted}", MANIFEST, flags=re.M)
    manifest = manifest.replace("pretraining = []", f"pretraining = [{quoted}]")
    manifest = f"note = {quoted}\nsource = {quoted}\ncitation = {quoted}\n{manifest}"
    assert tomllib.loads(manifest)["title"] == EVIL
    id = identity(alice, manifest)
    changes = {name: EVIL for name in ("title", "authors", "license", "source", "citation", "note")}
    fields = {"csrf": csrf(alice), "pretraining": EVIL, **changes}
    changed = {**fields, "title": f"{EVIL} again"}
    assert alice.post(f"/submissions/{id}/card", data=changed).status_code == 303
    fail(live, id, f"{EVIL}\n\x1b[31m{EVIL}", EVIL)
    text = {"csrf": csrf(alice), "kind": "leak", "task": "", "text": EVIL}
    assert alice.post(f"/report/{sha('texture')}", data=text).status_code == 303
    refused = alice.post("/submit", data={**text, "manifest": EVIL, "suite": EVIL, "task": EVIL})
    assert refused.status_code == 422
    pages = [refused.text, alice.get("/nowhere/" + "<script>alert(1)<").text]
    for client, path in [
        (alice, "/submissions"),
        (alice, f"/submissions/{id}"),
        (alice, f"/submissions/{id}/card"),
        (alice, f"/report/{sha('texture')}"),
        (alice, "/account"),
        (mia, "/maintain"),
        (mia, "/submissions?everybody=1"),
    ]:
        answer = client.get(path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "script-src 'self'" in policy and "unsafe" not in policy
        assert answer.headers["cache-control"] == "no-store"
        pages.append(answer.text)
    for html in pages:
        harmless(Page(html))
        assert "<script>alert" not in html and "<img src=x" not in html
    assert EVIL in Page(alice.get(f"/submissions/{id}").text).text


def fail(live, id: str, log: str, message: str = "The weights hold NaN.") -> None:
    while (job := queue.claim(live.engine, "worker", ["check"])) is not None:
        error = IntakeError("weights-nan", message, stage="check", hint="Train on.")
        queue.fail(live.engine, job, error, log)
        if job.submission_id == id:
            return
    raise AssertionError(f"{id} has no check")


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("*a* and `b`", "<em>a</em> and <code>b</code>"),
        ("[x](https://example.org)", 'rel="nofollow noopener noreferrer"'),
        ("[x](javascript:alert(1))", "[x](javascript:alert(1))"),
        ("[x](data:text/html,hi)", "[x](data:text/html,hi)"),
        ("<b onclick=x>hi</b>", "&lt;b onclick=x&gt;hi&lt;/b&gt;"),
        ("# big", "# big"),
        ("> " * 500 + "deep", "<blockquote>"),
    ],
)
def test_a_note_is_sanitised_markdown(live, alice, text, html):
    id = identity(alice)
    before = {"title": "t", "authors": "a", "license": "l", "pretraining": "", "source": ""}
    fields = {"csrf": csrf(alice), **before, "citation": "", "note": text}
    assert alice.post(f"/submissions/{id}/card", data=fields).status_code == 303
    answer = alice.get(f"/submissions/{id}").text
    assert html in answer
    harmless(Page(answer))


def test_last_lines_are_for_the_submitter_and_maintainers_only(live, alice, mia):
    id = identity(alice)
    fail(live, id, "line of the log\x07")
    page = Page(alice.get(f"/submissions/{id}").text)
    assert "line of the log" in page.text and "\x07" not in page.text
    assert "weights-nan" in page.text and "Train on." in page.text and "check" in page.text
    assert "line of the log" in mia.get(f"/submissions/{id}").text
    with live.browser("bob") as bob:
        assert bob.get(f"/submissions/{id}").status_code == 404
        assert bob.get(f"/submissions/{id}/events").status_code == 404


# --- reports


def test_a_row_is_disputed_from_its_page_and_a_maintainer_decides(live, alice, mia):
    board = ask("GET", f"{live.address}/models/{sha('texture')}").text
    links = [
        a["href"] for a in Page(board).all("a") if (a.get("href") or "").startswith("/report/")
    ]
    assert links == [f"/report/{sha('texture')}?kind={kind}" for kind in ("dispute", "leak")]
    text = {"csrf": csrf(alice), "kind": "dispute", "task": "smoke_lesion", "text": "Too short"}
    assert alice.post(links[0], data=text).status_code == 422
    text["text"] = "The split that was used is not the published one."
    assert alice.post(links[0], data=text).status_code == 303
    page = Page(mia.get("/maintain").text)
    assert text["text"] in page.text
    action = max(a for a in page.forms if a.startswith("/maintain/reports/"))
    decision = {"csrf": csrf(mia), "state": "rejected", "text": "It is: see the card."}
    assert alice.post(action, data={**decision, "csrf": csrf(alice)}).status_code == 403
    assert mia.post(action, data=decision).status_code == 303
    page = Page(alice.get(links[0]).text)
    assert "It is: see the card." in page.text and "rejected" in page.text


# --- in a browser


@pytest.fixture
def visit(browser, live):  # noqa: F811 - the fixture that is imported
    """Opens pages as a user; fails on any complaint of the browser or foreign request."""
    complaints, contexts = [], []

    def opened(path: str, user: str | None = "alice", width: int = 1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        context.set_default_timeout(15_000)
        contexts.append(context)
        if user is not None:
            cookie, _ = accounts.open_session(live.engine, live.tokens[user])
            context.add_cookies(
                [{"name": "tomoprobe_session", "value": cookie, "url": live.address}]
            )
        page = context.new_page()
        page.on("console", lambda m: complaints.append(m.text) if m.type != "log" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda r: complaints.append(r.url) if not r.url.startswith(live.address) else None,
        )
        page.goto(live.address + path)
        return page

    yield opened
    for context in contexts:
        context.close()
    # what a test refuses or breaks off on purpose is reported by the browser itself
    meant = ("the server responded with a status of 4", "net::ERR_FAILED")
    assert [c for c in complaints if not any(text in c for text in meant)] == []


@pytest.mark.browser
def test_a_browser_logs_in_sends_a_file_in_chunks_and_follows_it_live(visit, live, tmp_path):
    from playwright.sync_api import expect

    data = safetensors(700_000)
    file = tmp_path / "model.safetensors"
    file.write_bytes(data)
    page = visit("/submit", user=None)
    page.fill("#token", live.tokens["alice"])
    page.click("main button[type=submit]")
    page.wait_for_url("**/submit")
    page.fill("#manifest", with_weights(data))
    page.set_input_files("#file", file)
    page.select_option("#suite", "smoke")
    page.click("#send")
    page.wait_for_url("**/submissions/*")
    id = page.url.rsplit("/", 1)[1]
    upload = uploads.stored(live.engine, queue.submission(live.engine, id).upload_id)
    assert (live.store / upload.file).read_bytes() == data
    expect(page.locator("#live .state").first).to_have_text("queued")
    page.evaluate("window.untouched = true")
    while (job := queue.claim(live.engine, "worker", ["check"])).submission_id != id:
        pass
    expect(page.locator("#live .state").first).to_have_text("checking")
    assert page.evaluate("window.untouched")
    error = IntakeError("weights-nan", "The weights hold NaN.", stage="check", hint="Train on.")
    queue.fail(live.engine, job, error, "its last line")
    expect(page.locator("#live .state").first).to_have_text("failed")
    expect(page.locator("pre.log")).to_contain_text("its last line")
    expect(page.locator(".problem").first).to_contain_text("Train on.")


@pytest.mark.browser
def test_a_browser_goes_on_with_a_broken_upload(visit, live, tmp_path):
    data = safetensors(800_000)
    file = tmp_path / "model.safetensors"
    file.write_bytes(data)
    page = visit("/submit")
    sent = []

    def line(route):
        sent.append(route.request.headers["upload-offset"])
        if len(sent) == 2:
            route.abort()
        else:
            route.continue_()

    page.route("**/submit/uploads/*", line)
    page.fill("#manifest", with_weights(data))
    page.set_input_files("#file", file)
    page.select_option("#suite", "smoke")
    page.click("#send")
    page.wait_for_url("**/submissions/*")
    assert sent == ["0", str(1 << 20), str(1 << 20), str(2 << 20), str(3 << 20)]


@pytest.mark.browser
def test_a_browser_is_told_why_a_file_is_refused(visit, tmp_path):
    from playwright.sync_api import expect

    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\x80\x04\x95." + bytes(100))
    page = visit("/submit")
    page.fill("#manifest", MANIFEST)
    page.set_input_files("#file", file)
    page.click("#send")
    expect(page.locator("#trouble")).to_contain_text("only safetensors is taken")
    expect(page.locator("#send")).to_be_enabled()


@pytest.fixture
def everything(live, alice) -> dict[str, str]:
    """Paths of pages with something on them, by the user who sees them."""
    id = identity(alice)
    fail(live, id, "a line\nand " + "another " * 100)
    return {
        "/login": None,
        "/account": "alice",
        "/submit": "alice",
        "/submissions": "alice",
        f"/submissions/{identity(alice)}": "alice",
        f"/submissions/{id}": "alice",
        f"/submissions/{id}/card": "alice",
        f"/report/{sha('texture')}": "alice",
        "/maintain": "mia",
    }


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_has_contrast_and_fits_a_telephone(visit, everything, scheme):
    for path, user in everything.items():
        page = visit(path, user, width=360, color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
        for details in page.locator("details").all():
            details.evaluate("d => { d.open = true; }")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
        found = page.evaluate(CONTRASTS)
        assert len(found) > 5
        assert [f for f in found if f[0] < 4.5] == [], path


@pytest.mark.browser
def test_every_field_has_a_name_for_those_who_hear_it(visit, everything):
    for path, user in everything.items():
        unnamed = visit(path, user).evaluate(
            """() => [...document.querySelectorAll(
              "input:not([type=hidden]):not([hidden]), select, textarea, button, progress")]
              .filter((e) => !(e.labels?.length || e.textContent.trim() || e.ariaLabel))
              .map((e) => e.outerHTML)"""
        )
        assert unnamed == [], path
