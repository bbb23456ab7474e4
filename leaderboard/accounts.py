"""Users, tokens, browser sessions, and who did what.

A token is shown once, when it is issued; what is stored is its SHA-256. A fast hash is right here:
a token holds 256 random bits, which nobody guesses however fast each guess is.
"""

import hashlib
import re
import secrets
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from ..benchmark.errors import AccessError, ConflictError, UnknownNameError
from .clock import DAY_S, seconds, stamp
from .intake_records import (
    ROLES,
    SCOPES,
    AuditEntry,
    Identity,
    Quota,
    Role,
    Scope,
    Token,
    User,
)
from .intake_tables import AUDIT, SESSIONS, TOKENS, USERS
from .opening import writing
from .storage_errors import reported

__all__ = [
    "DEFAULT",
    "PREFIX",
    "ROLES",
    "SCOPES",
    "Identity",
    "Quota",
    "Token",
    "User",
    "add_user",
    "audit",
    "audited",
    "authenticate",
    "close_session",
    "issue_token",
    "open_session",
    "revoke_token",
    "revoke_user",
    "session",
    "set_quota",
    "tokens",
    "user",
    "users",
]

DEFAULT = Quota()

PREFIX = "tmp_"
"""Of every token, so that scanners of leaked secrets can know one."""

LONGEST_DAYS = 366
"""For how long a token may be issued: a year."""

SESSION_S = 12 * 60 * 60
"""How long a browser stays logged in: a working day."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")

_SECRET = re.compile(r"tmp_[A-Za-z0-9_-]{43}")

_RESERVED = ("local", "platform")
"""Actors in the audit that are no users."""


# --- users ---------------------------------------------------------------------------------------


def add_user(
    engine: Engine,
    name: str,
    role: Role,
    *,
    quota: Quota = DEFAULT,
    by: str = "local",
    now: float | None = None,
) -> User:
    """Make an account; it has no token yet.

    Args:
        engine: of a migrated database.
        name: lower-case letters, digits, ``.``, ``_`` and ``-``, 1 to 64.
        role: one of ``ROLES``.
        quota: what the user may ask for.
        by: for the audit; ``"local"``: the operator's command line.
        now: seconds since 1970; None: the clock's.

    Raises:
        ConflictError: the name is taken, also if that user is revoked, or it is no name.
        UnknownNameError: there is no such role.
    """
    if role not in ROLES:
        raise UnknownNameError.of("role", role, ROLES)
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise ConflictError(
            f"'{name[:80]}' cannot be the name of a user. Expected 1 to 64 lower-case letters, "
            f"digits, '.', '_' or '-', beginning and ending with a letter or digit, and not "
            f"{' or '.join(_RESERVED)}."
        )
    with reported(engine), writing(engine) as connection:
        if connection.scalar(sa.select(sa.exists().where(USERS.c.name == name))):
            raise ConflictError(
                f"There is a user '{name}' already. Choose another name: one is never given twice, "
                "as the audit names users by it."
            )
        connection.execute(
            sa.insert(USERS).values(name=name, role=role, created=stamp(now), **vars(quota))
        )
        audit(connection, by, "user-added", name, now=now, role=role, **vars(quota))
        return _user(connection, name)


def revoke_user(engine: Engine, name: str, *, by: str = "local", now: float | None = None) -> User:
    """Close an account with all its tokens and sessions; its rows stay.

    Raises:
        UnknownNameError: there is no such user.
    """
    with reported(engine), writing(engine) as connection:
        found = _user(connection, name)
        if found.revoked is None:
            _update(connection, USERS, USERS.c.id == found.id, revoked=stamp(now))
            open_tokens = sa.and_(TOKENS.c.user_id == found.id, TOKENS.c.revoked.is_(None))
            _update(connection, TOKENS, open_tokens, revoked=stamp(now))
            connection.execute(sa.delete(SESSIONS).where(SESSIONS.c.user_id == found.id))
            audit(connection, by, "user-revoked", name, now=now)
        return _user(connection, name)


def set_quota(
    engine: Engine, name: str, quota: Quota, *, by: str = "local", now: float | None = None
) -> User:
    """Let a user ask for more or less from now on.

    Raises:
        UnknownNameError: there is no such user.
    """
    with reported(engine), writing(engine) as connection:
        found = _user(connection, name)
        _update(connection, USERS, USERS.c.id == found.id, **vars(quota))
        audit(connection, by, "quota-set", name, now=now, **vars(quota))
        return _user(connection, name)


def user(engine: Engine, name: str) -> User:
    """The account of that name.

    Raises:
        UnknownNameError: there is no such user.
    """
    with reported(engine), engine.connect() as connection:
        return _user(connection, name)


def users(engine: Engine) -> list[User]:
    """Every account, revoked ones too, by name."""
    with reported(engine), engine.connect() as connection:
        found = [user_of(row) for row in connection.execute(sa.select(USERS)).mappings()]
    return sorted(found, key=lambda user: user.name)


def user_of(row: sa.RowMapping) -> User:
    """A row of the table as an account."""
    values = dict(row)
    quota = Quota(**{name: values.pop(name) for name in vars(DEFAULT)})
    return User(**values, quota=quota)


def _user(connection: Connection, name: str) -> User:
    found = None
    if _NAME.fullmatch(name):
        query = sa.select(USERS).where(USERS.c.name == name)
        found = connection.execute(query).mappings().first()
    if found is None:
        raise UnknownNameError(
            f"There is no user '{name[:80]}'. `tomoprobe users list` names those there are."
        )
    return user_of(found)


def _update(
    connection: Connection, table: sa.Table, which: sa.ColumnElement[bool], **values: object
) -> int:
    return connection.execute(sa.update(table).where(which).values(**values)).rowcount


# --- tokens --------------------------------------------------------------------------------------


def issue_token(
    engine: Engine,
    user_name: str,
    scopes: Sequence[Scope],
    days: int = 90,
    *,
    by: str = "local",
    now: float | None = None,
) -> tuple[str, Token]:
    """Make a token.

    Args:
        engine: of a migrated database.
        user_name: whose it is.
        scopes: at least one, none above the user's role.
        days: until it expires, 1 to ``LONGEST_DAYS``.
        by: for the audit.
        now: seconds since 1970; None: the clock's.

    Returns:
        The secret, which can never be shown again, and what is kept.

    Raises:
        UnknownNameError: there is no such user or scope.
        AccessError: the user is revoked, or the role does not allow a scope.
        ConflictError: no scope at all, or for too long.
    """
    for scope in scopes:
        if scope not in SCOPES:
            raise UnknownNameError.of("scope", scope, SCOPES)
    if not scopes:
        raise ConflictError(f"A token needs a scope. Known: {', '.join(SCOPES)}.")
    if not 1 <= days <= LONGEST_DAYS:
        raise ConflictError(
            f"A token cannot be issued for {days} days. Expected 1 to {LONGEST_DAYS}."
        )
    kept = tuple(scope for scope in SCOPES if scope in scopes)
    secret = PREFIX + secrets.token_urlsafe(32)
    with reported(engine), writing(engine) as connection:
        owner = _user(connection, user_name)
        if owner.revoked is not None:
            raise AccessError(f"User '{user_name}' is revoked and gets no token.", 403)
        beyond = [scope for scope in kept if scope not in _allowed(owner.role)]
        if beyond:
            raise AccessError(
                f"The role {owner.role} does not allow the scope {', '.join(beyond)}. Expected "
                f"among {', '.join(_allowed(owner.role))}.",
                403,
            )
        id = connection.scalar(
            sa.insert(TOKENS)
            .values(
                user_id=owner.id,
                digest=_digest(secret),
                hint=secret.removeprefix(PREFIX)[:6],
                scopes=list(kept),
                created=stamp(now),
                expires=stamp(seconds(now) + days * DAY_S),
            )
            .returning(TOKENS.c.id)
        )
        audit(connection, by, "token-issued", user_name, now=now, token=id, scopes=kept, days=days)
        row = connection.execute(sa.select(TOKENS).where(TOKENS.c.id == id)).mappings().one()
        return secret, _token(row)


def revoke_token(engine: Engine, id: int, *, by: str = "local", now: float | None = None) -> Token:
    """End a token and the sessions opened with it. Whose it is, the caller has to check.

    Raises:
        UnknownNameError: there is none with that id.
    """
    query = (
        sa.select(TOKENS, USERS.c.name)
        .join(USERS, USERS.c.id == TOKENS.c.user_id)
        .where(TOKENS.c.id == id)
    )
    with reported(engine), writing(engine) as connection:
        found = connection.execute(query).mappings().first()
        if found is None:
            raise UnknownNameError(f"There is no token {id}. Give the id of an issued one.")
        if found["revoked"] is None:
            _update(connection, TOKENS, TOKENS.c.id == id, revoked=stamp(now))
            connection.execute(sa.delete(SESSIONS).where(SESSIONS.c.token_id == id))
            audit(connection, by, "token-revoked", found["name"], now=now, token=id)
        return _token(
            connection.execute(sa.select(TOKENS).where(TOKENS.c.id == id)).mappings().one()
        )


def tokens(engine: Engine, user_name: str) -> list[Token]:
    """The tokens of a user, oldest first, without their secrets.

    Raises:
        UnknownNameError: there is no such user.
    """
    with reported(engine), engine.connect() as connection:
        owner = _user(connection, user_name)
        query = sa.select(TOKENS).where(TOKENS.c.user_id == owner.id).order_by(TOKENS.c.id)
        return [_token(row) for row in connection.execute(query).mappings()]


def authenticate(engine: Engine, secret: str, scope: Scope, now: float | None = None) -> Identity:
    """Who holds this token, if it allows the scope.

    Raises:
        AccessError: 401 for a secret that is none, revoked or expired; 403 where it is valid but
            does not allow the scope.
    """
    if not _SECRET.fullmatch(secret):
        raise AccessError(
            "That is not a token of this site. Expected one as it was shown when it was issued, "
            f"beginning with {PREFIX}."
        )
    with reported(engine), engine.connect() as connection:
        found = _holder(connection, TOKENS.c.digest == _digest(secret))
        identity = _valid(found, now)
    if not identity.allows(scope):
        raise AccessError(
            f"This needs the scope '{scope}', but the token has {', '.join(identity.scopes)}. Ask "
            "the operator for another token.",
            403,
        )
    _note_use(engine, found, now)
    return identity


def _allowed(role: Role) -> tuple[Scope, ...]:
    return SCOPES[: ROLES.index(role) + 1]


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _token(row: sa.RowMapping) -> Token:
    values = {name: row[name] for name in Token.__dataclass_fields__}
    return Token(**{**values, "scopes": tuple(values["scopes"])})


def _holder(connection: Connection, which: sa.ColumnElement[bool]) -> sa.RowMapping | None:
    """The token with its user's columns, which are prefixed."""
    columns = [column.label(f"user_{column.name}") for column in USERS.c]
    query = (
        sa.select(*TOKENS.c, *(c for c in columns if c.name != "user_id"))
        .join(USERS, USERS.c.id == TOKENS.c.user_id)
        .where(which)
    )
    return connection.execute(query).mappings().first()


def _valid(found: sa.RowMapping | None, now: float | None) -> Identity:
    if found is None or found["revoked"] is not None or found["user_revoked"] is not None:
        raise AccessError("This token is not known here, or was revoked. Ask for another one.")
    if found["expires"] <= stamp(now):
        raise AccessError(f"This token expired on {found['expires'][:10]}. Ask for another one.")
    values = {c.name: found[f"user_{c.name}"] for c in USERS.c if c.name != "id"}
    quota = Quota(**{name: values.pop(name) for name in vars(DEFAULT)})
    owner = User(id=found["user_id"], **values, quota=quota)
    held: tuple[Scope, ...] = tuple(s for s in _allowed(owner.role) if s in found["scopes"])
    return Identity(owner, found["id"], held)


_USE_NOTED_S = 60 * 60
"""How exactly the last use of a token is known: writing it each time would make readers writers."""


def _note_use(engine: Engine, found: sa.RowMapping | None, now: float | None) -> None:
    if found is None:
        return
    last = found["last_used"]
    if last is not None and last > stamp(seconds(now) - _USE_NOTED_S):
        return
    with reported(engine), writing(engine) as connection:
        _update(connection, TOKENS, TOKENS.c.id == found["id"], last_used=stamp(now))


# --- sessions ------------------------------------------------------------------------------------


def open_session(engine: Engine, secret: str, now: float | None = None) -> tuple[str, str]:
    """Log a browser in with a token.

    Returns:
        The cookie, and the text that every form has to carry.

    Raises:
        AccessError: as ``authenticate`` does.
    """
    identity = authenticate(engine, secret, "read", now)
    cookie, csrf = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    with reported(engine), writing(engine) as connection:
        connection.execute(sa.delete(SESSIONS).where(SESSIONS.c.expires <= stamp(now)))
        _valid(_holder(connection, TOKENS.c.id == identity.token_id), now)  # not revoked meanwhile
        connection.execute(
            sa.insert(SESSIONS).values(
                digest=_digest(cookie),
                user_id=identity.user.id,
                token_id=identity.token_id,
                csrf=csrf,
                created=stamp(now),
                expires=stamp(seconds(now) + SESSION_S),
            )
        )
        audit(
            connection,
            identity.user.name,
            "session-opened",
            identity.user.name,
            now=now,
            token=identity.token_id,
        )
    return cookie, csrf


def session(engine: Engine, cookie: str, now: float | None = None) -> tuple[Identity, str]:
    """Who is logged in with this cookie, and the text that forms have to carry.

    A session allows what its token allows, and ends with it.

    Raises:
        AccessError: 401, no such session, or it or its token has expired or was revoked.
    """
    query = sa.select(SESSIONS).where(SESSIONS.c.digest == _digest(cookie))
    with reported(engine), engine.connect() as connection:
        found = connection.execute(query).mappings().first()
        if found is None or found["expires"] <= stamp(now):
            raise AccessError("You are not logged in, or not any more. Log in with a token.")
        return _valid(_holder(connection, TOKENS.c.id == found["token_id"]), now), found["csrf"]


def close_session(engine: Engine, cookie: str) -> None:
    """Log out; a cookie that is not known is no error."""
    with reported(engine), writing(engine) as connection:
        connection.execute(sa.delete(SESSIONS).where(SESSIONS.c.digest == _digest(cookie)))


# --- audit ---------------------------------------------------------------------------------------


def audit(
    where: Engine | Connection,
    actor: str,
    action: str,
    subject: str,
    *,
    now: float | None = None,
    **detail: Any,
) -> None:
    """Note who did what; never a secret.

    Args:
        where: a database, or a writing transaction of which this becomes a part.
        actor: name of a user, ``"local"`` or ``"platform"``.
        action: in kebab case.
        subject: to whom or what.
        now: seconds since 1970; None: the clock's.
        **detail: plain JSON types.
    """
    row = sa.insert(AUDIT).values(
        at=stamp(now), actor=actor, action=action, subject=subject, detail=detail
    )
    if isinstance(where, Connection):
        where.execute(row)
        return
    with reported(where), writing(where) as connection:
        connection.execute(row)


def audited(engine: Engine, limit: int = 100) -> list[AuditEntry]:
    """The last entries, newest first."""
    query = sa.select(AUDIT).order_by(AUDIT.c.id.desc()).limit(limit)
    with reported(engine), engine.connect() as connection:
        return [AuditEntry(**row) for row in connection.execute(query).mappings()]
