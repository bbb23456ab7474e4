"""``tomoprobe users``: accounts and tokens. The first admin can be made only here, on this machine.

Heavy imports wait until a command needs them.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from .db_commands import Database

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from ..leaderboard.accounts import Quota

users_app = typer.Typer(
    help="Look after users: add, revoke, quota, token, list.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the user.")]
Role = Literal["reader", "submitter", "maintainer", "admin"]
Scope = Literal["read", "submit", "maintain", "admin"]
Days = Annotated[int, typer.Option(help="Until the token expires.", min=1, max=366)]
Jobs = Annotated[int | None, typer.Option(help="Submissions in 24 hours.", min=0)]
GpuHours = Annotated[float | None, typer.Option(help="GPU-hours in 30 days.", min=0)]
Gigabytes = Annotated[float | None, typer.Option(help="GiB of uploads that are kept.", min=0)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@users_app.command()
def add(
    name: Name,
    role: Annotated[Role, typer.Option(help="What the user may do.")] = "submitter",
    days: Days = 90,
    jobs: Jobs = None,
    gpu_hours: GpuHours = None,
    gib: Gigabytes = None,
    db: Database = None,
) -> None:
    """Add a user and print a first token, which is shown this once."""
    from ..leaderboard import accounts

    with _opened(db) as engine:
        quota = _quota(accounts.DEFAULT, jobs, gpu_hours, gib)
        user = accounts.add_user(engine, name, role, quota=quota)
        secret, token = accounts.issue_token(engine, name, _scopes(user.role), days)
    typer.echo(f"Added {name} ({role}).")
    _print_secret(secret, token.scopes, token.expires)


@users_app.command()
def revoke(
    name: Name,
    token: Annotated[
        int | None, typer.Option(help="Only this token; `users list` has the numbers.")
    ] = None,
    db: Database = None,
) -> None:
    """Close an account with all its tokens and sessions, or end one of its tokens."""
    from ..benchmark.errors import UnknownNameError
    from ..leaderboard import accounts

    with _opened(db) as engine:
        if token is None:
            accounts.revoke_user(engine, name)
            typer.echo(f"Revoked {name} with all tokens and sessions.")
            return
        if token not in {each.id for each in accounts.tokens(engine, name)}:
            raise UnknownNameError(f"{name} has no token {token}. `tomoprobe users list` has them.")
        accounts.revoke_token(engine, token)
    typer.echo(f"Revoked token {token} of {name}.")


@users_app.command()
def quota(
    name: Name,
    jobs: Jobs = None,
    gpu_hours: GpuHours = None,
    gib: Gigabytes = None,
    db: Database = None,
) -> None:
    """Say what a user may ask for, or print it where nothing is named."""
    from ..leaderboard import accounts, quotas

    with _opened(db) as engine:
        user = accounts.user(engine, name)
        wanted = _quota(user.quota, jobs, gpu_hours, gib)
        if wanted != user.quota:
            user = accounts.set_quota(engine, name, wanted)
        used = quotas.used(engine, user)
    most = user.quota
    typer.echo(f"submissions in 24 hours   {used['jobs']:g} of {most.jobs_per_day}")
    hours = used["gpu_seconds"] / 3600
    typer.echo(f"GPU-hours in 30 days      {hours:.2f} of {most.gpu_hours_per_month:g}")
    kept = used["bytes"] / _GIB
    typer.echo(f"GiB of uploads            {kept:.2f} of {most.bytes_kept / _GIB:g}")


@users_app.command()
def token(
    name: Name,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="read, submit, maintain or admin. Repeatable. Default: all that the role allows."
        ),
    ] = None,
    days: Days = 90,
    db: Database = None,
) -> None:
    """Issue another token and print it, this once."""
    from ..leaderboard import accounts

    with _opened(db) as engine:
        chosen = cast("tuple[Scope, ...]", tuple(scope or ()))  # issue_token knows the names
        scopes = chosen or _scopes(accounts.user(engine, name).role)
        secret, issued = accounts.issue_token(engine, name, scopes, days)
    _print_secret(secret, issued.scopes, issued.expires)


@users_app.command("list")
def list_users(db: Database = None, as_json: Json = False) -> None:
    """List users and their tokens, without secrets."""
    from dataclasses import asdict

    from ..leaderboard import accounts

    with _opened(db) as engine:
        found = [(user, accounts.tokens(engine, user.name)) for user in accounts.users(engine)]
    if as_json:
        rows = [{**asdict(user), "tokens": [asdict(t) for t in tokens]} for user, tokens in found]
        typer.echo(json.dumps(rows, indent=1))
        return
    for user, tokens in found:
        closed = f", revoked {user.revoked[:10]}" if user.revoked else ""
        typer.echo(f"{user.name}  {user.role}, since {user.created[:10]}{closed}")
        for each in tokens:
            state = "revoked" if each.revoked else f"until {each.expires[:10]}"
            scopes = ", ".join(each.scopes)
            typer.echo(f"  token {each.id}  tmp_{each.hint}...  {scopes}; {state}")


_GIB = 1 << 30


def _quota(
    before: "Quota", jobs: int | None, gpu_hours: float | None, gib: float | None
) -> "Quota":
    from ..leaderboard.accounts import Quota

    return Quota(
        before.jobs_per_day if jobs is None else jobs,
        before.gpu_hours_per_month if gpu_hours is None else gpu_hours,
        before.bytes_kept if gib is None else round(gib * _GIB),
    )


def _scopes(role: Role) -> tuple[Scope, ...]:
    """All that a role allows."""
    from ..leaderboard.accounts import ROLES, SCOPES

    return SCOPES[: ROLES.index(role) + 1]


def _print_secret(secret: str, scopes: tuple[str, ...], expires: str) -> None:
    typer.echo(f"Token ({', '.join(scopes)}; until {expires[:10]}), shown this once:")
    typer.echo(secret)


@contextmanager
def _opened(db: str | None) -> Iterator["Engine"]:
    """The database, made or migrated if need be."""
    from ..leaderboard import db as database
    from . import session

    engine = database.connect(session.database_url(db))
    try:
        database.migrate(engine)
        yield engine
    finally:
        engine.dispose()
