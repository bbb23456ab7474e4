"""What to run: encoders, tasks and probes from what was typed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..benchmark import probes as protocols
from ..benchmark.errors import (
    TaskFileError,
    TomoprobeError,
    UnknownNameError,
)
from ..benchmark.studies import AnyProbe
from ..benchmark.types import Task
from ..tasks import get as get_task
from ..tasks import load_file, suites
from . import architectures, manifest
from .baselines import names as known_baselines
from .baselines import path as manifest_path

if TYPE_CHECKING:
    from .load import LoadedEncoder

LoadEncoder = Callable[[str], "LoadedEncoder"]
"""Loads an encoder onto a device; called when its turn has come."""


def baselines() -> dict[str, LoadEncoder]:
    """The baselines of a first look, by name.

    Left out are those that need more than this package's own requirements, the floors of protocols
    on maps, and the random copies of trained ones, which only matter beside these on real tasks.
    """
    known = known_baselines()

    def says(name: str, what: str) -> str:
        return architectures.constant(manifest.read(manifest_path(name)).registered.name, what)

    plain = [
        name
        for name in known
        if not (says(name, "EXTRA") or says(name, "DENSE"))
        and f"{name.removeprefix('random_')}_tiny" not in known
    ]
    return encoders(plain, None, None)


def encoders(
    specs: Sequence[str], arguments: str | None, weights: Path | None
) -> dict[str, LoadEncoder]:
    """Loaders for what was typed after ``--encoder``, by what was typed.

    Raises:
        TomoprobeError: arguments that are not a JSON object.
        UnknownNameError: a name without a meaning; found now and not when its turn comes.
    """
    from .load import load

    try:
        parsed = json.loads(arguments) if arguments else None
        if not isinstance(parsed, dict | None):
            raise ValueError(f"a {type(parsed).__name__}")
    except ValueError as error:
        raise TomoprobeError(
            f"--arguments is not a JSON object ({error}). Expected e.g. '{{\"width\": 16}}'."
        ) from error
    names = [*known_baselines(), *architectures.names()]
    for spec in specs:
        if not (spec in names or ":" in spec or spec.endswith(".toml")):
            raise UnknownNameError.of("encoder", spec, set(names))

    def loader(spec: str) -> LoadEncoder:
        return lambda device: load(spec, arguments=parsed, weights=weights, device=device)

    return {spec: loader(spec) for spec in specs}


def probes(names: Sequence[str] | None) -> list[AnyProbe]:
    """The probes of these names, or all but those that run on request only.

    Raises:
        UnknownNameError: no such probe.
    """
    return [protocols.get(name) for name in names or protocols.default()]


def suite(name: str) -> list[Task]:
    """The tasks of a suite."""
    return [get_task(task) for task in suites.get(name)]


def tasks(names: Sequence[str], suite_name: str | None) -> list[Task]:
    """The tasks that were named, a file being a private one; then those of the suite.

    Raises:
        TaskFileError: none was named.
        UnknownNameError: no such task or suite.
    """
    chosen = [load_file(Path(n)) if n.endswith(".py") else get_task(n) for n in names]
    chosen += suite(suite_name) if suite_name else []
    if not chosen:
        raise TaskFileError(
            "Nothing to evaluate on. Name a task (--task NAME or --task ./my_task.py) or a suite "
            "(--suite NAME); 'tomoprobe tasks' lists them."
        )
    return list({task.card.name: task for task in chosen}.values())
