"""What the operator sets by the environment: one table of variables, read in one place.

The fields of ``Configuration`` are those that the site and the worker read; ``TABLE`` lists every
variable of the program, also those that a command takes as an option.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from ipaddress import ip_network
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ..benchmark.errors import UnknownNameError
from ..benchmark.paths import cache_home

LOG_LEVELS = ("debug", "info", "warning", "error")


class ConfigurationError(UnknownNameError):
    """A variable of the environment has a value that means nothing here."""


class Variable(NamedTuple):
    """One row of the documented table."""

    name: str
    meaning: str
    default: str
    """As the reader is told."""


# --- how values are read -----------------------------------------------------------------------


def _whole(low: int, high: int) -> Callable[[str, str], int]:
    def read(name: str, text: str) -> int:
        plain = text.isascii() and text.isdigit() and len(text) < 20
        if not plain or not low <= int(text) <= high:
            raise _unfit(name, text, f"a whole number from {low} to {high}")
        return int(text)

    return read


def _folder(_name: str, text: str) -> Path:
    return Path(text).expanduser()


def _address(name: str, text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise _unfit(name, text, "an address such as https://example.org/board")
    return text.rstrip("/")


def _level(name: str, text: str) -> str:
    if text not in LOG_LEVELS:
        raise _unfit(name, text, f"one of {', '.join(LOG_LEVELS)}")
    return text


def _networks(name: str, text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for part in found:
        try:
            ip_network(part, strict=False)
        except ValueError as error:
            expected = "addresses or networks, separated by commas, such as 10.0.0.0/8"
            raise _unfit(name, text, expected) from error
    return found


def _text(_name: str, text: str) -> str:
    return text


def _secret(name: str, text: str) -> str:
    if len(text) < _SHORTEST_SECRET or not text.isascii() or not text.isprintable():
        # the value is not repeated: it is to be a secret
        raise ConfigurationError(
            f"{name} is not fit for a secret: at least {_SHORTEST_SECRET} printable ASCII "
            "characters are expected. Make one with `openssl rand -hex 32`."
        )
    return text


_SHORTEST_SECRET = 16
"""Characters. 64 bits in hexadecimal, which nobody guesses over a network."""


def _unfit(name: str, text: str, expected: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name} is '{text}', but {expected} is expected. Correct or unset it."
    )


# --- the settings ------------------------------------------------------------------------------


def _about(
    variable: str, meaning: str, read: Callable[[str, str], Any], shown: str
) -> dict[str, Any]:
    """Of a field that is read from a variable; ``shown`` is its default in words."""
    return {"variable": Variable(variable, meaning, shown), "read": read}


_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What the operator decides about submissions. Every default suits a machine of one's own."""

    store: Path | None = field(
        default=None,
        metadata=_about(
            "TOMOPROBE_STORE",
            "folder of uploaded files; the site and its workers share it",
            _folder,
            "`uploads` in `TOMOPROBE_HOME`",
        ),
    )
    base_url: str = field(
        default="",
        metadata=_about(
            "TOMOPROBE_BASE_URL",
            "public address of the site, e.g. `https://example.org/board`; over https, cookies are "
            "`Secure`",
            _address,
            "the address it listens on",
        ),
    )
    title: str = field(
        default="",
        metadata=_about(
            "TOMOPROBE_TITLE", "heading of the board", _text, "How good are the frozen features?"
        ),
    )
    max_upload_bytes: int = field(
        default=4 * _GIB,
        metadata=_about(
            "TOMOPROBE_MAX_UPLOAD_BYTES",
            "largest file that is taken",
            _whole(1, 1 << 50),
            "4294967296 (4 GiB)",
        ),
    )
    chunk_bytes: int = field(
        default=8 << 20,
        metadata=_about(
            "TOMOPROBE_CHUNK_BYTES",
            "largest piece of an upload; what a broken line costs at most",
            _whole(1 << 10, 1 << 30),
            "8388608 (8 MiB)",
        ),
    )
    form_upload_bytes: int = field(
        default=_GIB // 4,
        metadata=_about(
            "TOMOPROBE_FORM_UPLOAD_BYTES",
            "largest file that a browser without JavaScript may send, in one piece",
            _whole(1 << 10, 1 << 40),
            "268435456 (256 MiB)",
        ),
    )
    free_bytes: int = field(
        default=_GIB,
        metadata=_about(
            "TOMOPROBE_FREE_BYTES",
            "space that uploads leave free on the disk of the store",
            _whole(0, 1 << 50),
            "1073741824 (1 GiB)",
        ),
    )
    requests_per_minute: int = field(
        default=600,
        metadata=_about(
            "TOMOPROBE_REQUESTS_PER_MINUTE",
            "requests of one token; more are answered with 429 and `Retry-After`",
            _whole(1, 1_000_000),
            "600",
        ),
    )
    requests_per_minute_and_address: int = field(
        default=1200,
        metadata=_about(
            "TOMOPROBE_REQUESTS_PER_MINUTE_AND_ADDRESS",
            "requests of one network address (of IPv6, of a /64)",
            _whole(1, 1_000_000),
            "1200",
        ),
    )
    trusted_proxies: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "TOMOPROBE_TRUSTED_PROXIES",
            "addresses or networks of reverse proxies whose `X-Forwarded-For` is believed, "
            "separated by commas",
            _networks,
            "none",
        ),
    )
    metrics_token: str = field(
        default="",
        metadata=_about(
            "TOMOPROBE_METRICS_TOKEN",
            "secret that `/metrics` asks for as a bearer token",
            _secret,
            "`/metrics` answers this machine only",
        ),
    )
    log_level: str = field(
        default="info",
        metadata=_about(
            "TOMOPROBE_LOG_LEVEL",
            f"{', '.join(LOG_LEVELS)}: what `serve` logs, as JSON lines on standard error; `info` "
            "holds every request",
            _level,
            "info",
        ),
    )

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Configuration:
        """Read the variables that are set; an empty one counts as not set.

        Raises:
            ConfigurationError: a value that cannot be used.
        """
        given = os.environ if environ is None else environ
        values = {}
        for each in fields(cls):
            name = each.metadata["variable"].name
            if given.get(name):
                values[each.name] = each.metadata["read"](name, given[name])
        return cls(**values)

    @property
    def store_folder(self) -> Path:
        """``store``, or its default; not created here."""
        return cache_home() / "uploads" if self.store is None else self.store

    @property
    def secure(self) -> bool:
        """Whether visitors come over https."""
        return self.base_url.startswith("https://")


# --- the table ---------------------------------------------------------------------------------

_ELSEWHERE = (
    Variable("TOMOPROBE_DATA", "folder of the data sets, as `--data-root`", "none"),
    Variable(
        "TOMOPROBE_HOME",
        "folder for features, generated cohorts, uploads and the default database",
        "the user's cache folder",
    ),
    Variable(
        "TOMOPROBE_DB",
        "database URL or SQLite file, as `--db`",
        "`tomoprobe.db` in `TOMOPROBE_HOME`",
    ),
    Variable("TOMOPROBE_SERVER", "address of the site that `submit` sends to", "of `login`"),
    Variable("TOMOPROBE_TOKEN", "token of `submit`, in place of the stored one", "of `login`"),
    Variable("TOMOPROBE_MAX_VOXELS", "largest image that is read, in voxels", "1073741824"),
)

TABLE = (*_ELSEWHERE, *(each.metadata["variable"] for each in fields(Configuration)))
"""Every variable of the program."""


def table() -> str:
    """The table as Markdown, for the documentation."""
    rows = (f"| `{name}` | {meaning} | {default} |" for name, meaning, default in TABLE)
    return "\n".join(["| setting | meaning | default |", "|---|---|---|", *rows])
