"""``tomoprobe submit`` and what follows it. Heavy imports wait until they are run."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .client import Client
    from .sending import Parcel

Id = Annotated[str, typer.Argument(metavar="ID", help="Of the submission.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

_LOOK_AGAIN = 2.0
"""Seconds between two looks at a log."""


def submit(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="FOLDER", help="What 'tomoprobe pack' wrote.", show_default=False),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option("--task", "-t", help="Name of a task. Repeatable.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option("--suite", "-s", help="A named set of tasks. Default: core.")
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option("--probe", "-p", help="Default: all that serve the tasks. Repeatable."),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="Folder that 'evaluate --predictions' wrote: results of your own run. They are "
            "recomputed, marked self-run, and never ranked. FOLDER is then where manifest.toml is; "
            "default: the same."
        ),
    ] = None,
    anonymous: Annotated[
        bool, typer.Option("--anonymous", help="Hide the name and the authors.")
    ] = False,
    embargo: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d"],
            metavar="DATE",
            help="Hide the rows until this date, at most two years.",
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Check here first, as the server will.")
    ] = True,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Show how it goes until it is done.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Send a packed model to the server and follow it to the board.

    An upload that was interrupted goes on when the same command is run again.
    Ctrl-C stops following, not the job.
    """
    from . import following, sending, submission_tables, tables

    with TemporaryDirectory(prefix="tomoprobe-submit-") as scratch, _client() as client:
        parcel = _parcel(folder, predictions, Path(scratch))
        if check and parcel.kind != "self-run":
            checked = sending.checked(parcel, following.say)
            following.say(f"{parcel.name} passes the checks of the server: {checked.model_sha}")
        with following.uploading(parcel.name) as sent:
            upload = sending.send(client, parcel, sent)
        tasks = task or parcel.tasks
        found = client.submit(
            parcel.manifest,
            upload,
            tasks=tasks,
            suite=suite or (None if tasks else DEFAULT_SUITE),
            probes=probe or (),
            anonymous=anonymous,
            embargo_until=embargo.date().isoformat() if embargo else None,
        )
        label = " (self-run: never ranked)" if parcel.kind == "self-run" else ""
        following.say(f"Submission {found['id']}{label}: {found.get('url') or client.base_url}")
        if follow:
            found = _followed(client, found)
    if as_json:
        tables.print_json(found)
    elif follow:
        submission_tables.print_result(found)
    _exit_with(found)


DEFAULT_SUITE = "core"
"""Real tasks on which most models can be compared."""


def _parcel(folder: Path | None, predictions: Path | None, scratch: Path) -> Parcel:
    from . import following, sending

    if predictions is not None:
        return sending.predictions(predictions, folder, scratch, following.say)
    if folder is None:
        raise typer.BadParameter(
            "Name the folder that 'tomoprobe pack' wrote, or --predictions FOLDER."
        )
    return sending.packed(folder)


def _followed(client: Client, found: Mapping[str, Any]) -> Mapping[str, Any]:
    from . import following

    try:
        return following.follow(client, found)
    except KeyboardInterrupt:
        following.say(f"Not followed any more; it goes on. Look: tomoprobe status {found['id']}")
        raise typer.Exit(0) from None


def status(
    id: Annotated[str | None, typer.Argument(metavar="ID", help="Default: all of yours.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show how it goes until it is done.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say how far a submission is, or list yours."""
    from . import submission_tables, tables

    with _client() as client:
        if id is None:
            every = client.submissions()
            tables.print_json(every) if as_json else submission_tables.print_submissions(every)
            return
        found: Mapping[str, Any] = client.submission(id)
        if follow:
            found = _followed(client, found)
    tables.print_json(found) if as_json else submission_tables.print_submission(found)
    _exit_with(found)


def logs(
    id: Id,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until it is done.")] = False,
    as_json: Json = False,
) -> None:
    """Print the last lines of a submission's units."""
    from . import submission_tables, tables
    from .client import FINAL

    with _client() as client:
        if as_json:
            tables.print_json(client.logs(id))
            return
        shown: list[dict[str, Any]] = []
        while True:
            state = client.submission(id)["state"]
            found = client.logs(id)  # after the state, so that the last look misses nothing
            submission_tables.print_logs(found, shown)
            if not follow or state in FINAL:
                return
            shown = found
            time.sleep(_LOOK_AGAIN)


def cancel(id: Id, as_json: Json = False) -> None:
    """Stop a submission; rows that are stored already stay."""
    with _client() as client:
        _tell(client.cancel(id), as_json)


def withdraw(id: Id, as_json: Json = False) -> None:
    """Take a submission's rows off the board; they are kept, and not shown."""
    with _client() as client:
        _tell(client.withdraw(id), as_json)


def edit(
    id: Id,
    title: Annotated[str | None, typer.Option(help="One line.")] = None,
    authors: Annotated[str | None, typer.Option(help="One line.")] = None,
    license: Annotated[str | None, typer.Option(help="SPDX identifier of the weights.")] = None,
    source: Annotated[str | None, typer.Option(help="Where the model is from.")] = None,
    citation: Annotated[str | None, typer.Option(help="How to cite it.")] = None,
    note: Annotated[str | None, typer.Option(help="Anything else, in Markdown.")] = None,
    pretraining: Annotated[
        list[str] | None,
        typer.Option(help="A data set that the weights have seen. Repeatable; replaces the list."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Correct the card of a model; every change is kept and shown."""
    given = {
        "title": title,
        "authors": authors,
        "license": license,
        "source": source,
        "citation": citation,
        "note": note,
        "pretraining": pretraining,
    }
    changes = {field: value for field, value in given.items() if value is not None}
    if not changes:
        raise typer.BadParameter(f"Name what to change: --{', --'.join(given)}.")
    with _client() as client:
        _tell(client.edit(id, changes), as_json)


def login(
    server: Annotated[
        str | None, typer.Option(help="Address of the server; asked for otherwise.")
    ] = None,
) -> None:
    """Store the address of a server and your token for it.

    The token is asked for, or read from standard input: on a command line others would see it.
    """
    from . import answers, following, logins
    from .client import Client

    address = answers.checked_address(server or typer.prompt("Server", err=True))
    if answers.unencrypted(address):
        following.say(f"{address} is not encrypted: others on the network can read the token.")
    if sys.stdin.isatty():
        token = typer.prompt("Token", hide_input=True, err=True)
    else:
        token = sys.stdin.readline()
    login = logins.Login(address, token.strip())
    with Client(login.server, login.token) as client:
        me = client.me()
    file = logins.store(login)
    following.say(
        f"Logged in to {address} as {me['name']} ({me['role']}). Stored in {file}, which only you "
        "may read."
    )


def _client() -> Client:
    from . import following, logins
    from .client import Client

    login = logins.current()
    return Client(login.server, login.token, told=following.trying_again)


def _tell(found: Mapping[str, Any], as_json: bool) -> None:
    from . import submission_tables, tables

    if as_json:
        tables.print_json(found)
    else:
        submission_tables.print_submission(found)


def _exit_with(found: Mapping[str, Any]) -> None:
    """2 if it failed, wholly or in part; the reasons are printed already."""
    if found["state"] == "failed" or any(u["state"] == "failed" for u in found.get("jobs") or ()):
        raise typer.Exit(2)
