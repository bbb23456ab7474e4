"""Where tomoprobe keeps what it makes, and where the user keeps the data."""

import os
from pathlib import Path


def cache_home() -> Path:
    """The folder for generated cohorts, features and predictions; not created here.

    ``TOMOPROBE_HOME`` overrides the platform's cache folder (``~/.cache/tomoprobe`` on Linux).
    """
    chosen = os.environ.get("TOMOPROBE_HOME")
    if chosen:
        return Path(chosen).expanduser()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("tomoprobe", appauthor=False))


def data_root(option: Path | None = None) -> Path | None:
    """The data root in use: the option where one is given, else ``TOMOPROBE_DATA``, else None."""
    if option is not None:
        return option.expanduser()
    chosen = os.environ.get("TOMOPROBE_DATA")
    return Path(chosen).expanduser() if chosen else None
