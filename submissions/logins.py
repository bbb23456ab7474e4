"""Which server, and with which token: the environment, or what ``tomoprobe login`` stored."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from platformdirs import user_config_dir

from ..benchmark.errors import AccessError, StorageError
from .answers import checked_address

SERVER, TOKEN = "TOMOPROBE_SERVER", "TOMOPROBE_TOKEN"
"""Environment variables; they win over the file."""


@dataclass(frozen=True)
class Login:
    """A server and a token for it."""

    server: str
    token: str = field(repr=False)


def path() -> Path:
    """The file of the stored login, in the platform's folder for configuration."""
    return Path(user_config_dir("tomoprobe", appauthor=False)) / "login.json"


def current() -> Login:
    """The login in use.

    A stored token is only for the server it was stored with, whatever the environment names.

    Raises:
        AccessError: there is none, it is another server's, or others may read the file.
        ServerError: the address is none.
    """
    server, token = os.environ.get(SERVER), os.environ.get(TOKEN)
    if server and token:
        return Login(checked_address(server), token)
    stored = _read()
    if stored is None:
        missing = f"{TOKEN} is not set" if server else "You are not logged in"
        raise AccessError(
            f"{missing}. Run 'tomoprobe login', or set {SERVER} and {TOKEN}. The operator of the "
            "server gives you a token."
        )
    if server and checked_address(server) != stored.server:
        raise AccessError(
            f"{SERVER} is {checked_address(server)}, but the stored token is for {stored.server}. "
            f"Set {TOKEN} too, or run 'tomoprobe login'."
        )
    return Login(stored.server, token or stored.token)


def store(login: Login) -> Path:
    """Write the login for its owner's eyes only; gives the file.

    Raises:
        StorageError: the folder cannot be written.
    """
    file = path()
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    text = json.dumps({"server": login.server, "token": login.token}) + "\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # 0600 from its first moment on, so that nobody can open it in between
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write(text)
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"{file} cannot be written: {error.strerror}. Set {SERVER} and {TOKEN} instead."
        ) from error
    return file


def _read() -> Login | None:
    file = path()
    try:
        with file.open(encoding="utf-8") as opened:
            mode = stat.S_IMODE(os.fstat(opened.fileno()).st_mode)
            told = json.load(opened)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise AccessError(
            f"{file} cannot be read ({error}). Run 'tomoprobe login' to write it anew."
        ) from error
    if os.name == "posix" and mode & 0o077:
        raise AccessError(
            f"Others may read {file} (mode {mode:04o}), and with it your token. Have it revoked if "
            "they are strangers; then: chmod 600 " + str(file)
        )
    match told:
        case {"server": str(server), "token": str(token)}:
            return Login(checked_address(server), token)
        case _:
            raise AccessError(f"{file} holds no login. Run 'tomoprobe login' to write it anew.")
