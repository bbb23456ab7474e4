"""The check of an ONNX graph in a process of its own, which a graph may bring down."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..benchmark.errors import IntakeError, IsolationError
from .job_log import clean
from .onnx_graph import GraphFacts, size_of
from .onnx_limits import refuse, require

MODULE = "tomoprobe.submissions._graph_child"
SECONDS = 360.0
"""By the clock: three times the child's limit of a processor's time."""

_READY = b"ready\n"
_CODE = re.compile("graph-[a-z0-9-]{1,40}")
_TEXT = 2000
"""Letters of a message on its way back."""


def validate(path: Path) -> GraphFacts:
    """As `onnx_graph.validate`, in a process with limits.

    Raises:
        IntakeError: the graph is refused; codes begin with ``graph-``.
        InstallationError: onnx is not installed.
        IsolationError: the process could not be started or closed off.
    """
    require("onnx")
    try:
        with path.open("rb") as file:
            size_of(file)
            done = subprocess.run(  # noqa: S603 - our own program
                [sys.executable, "-I", "-m", MODULE],
                stdin=file,
                capture_output=True,
                timeout=SECONDS,
                env={},
                check=False,
            )
    except subprocess.TimeoutExpired:
        refuse("check-stopped", f"Checking the graph took more than {SECONDS:.0f} s.")
    except OSError as error:
        raise IsolationError(f"No process can check the graph: {error}.") from error
    if not done.stdout.startswith(_READY):
        said = clean(done.stderr.decode(errors="replace"))[-_TEXT:]
        raise IsolationError(f"The process that checks graphs does not start here: {said}")
    try:
        told = json.loads(done.stdout[len(_READY) :])
        if "refused" not in told:
            return _facts(told["facts"])
        code, message, hint = (clean(str(text))[:_TEXT] for text in told["refused"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        refuse(
            "check-stopped",
            f"Checking the graph ended with status {done.returncode}: it asks for too much memory "
            "or time, or the parser cannot cope with it.",
        )
    if not _CODE.fullmatch(code):
        refuse("check-stopped", "The check of the graph answered nonsense.")
    raise IntakeError(code, message, stage="check", hint=hint)


def _facts(told: Mapping[str, Any]) -> GraphFacts:
    """The child's answer, each value made anew."""
    x, y, z = map(int, told["shape"])
    return GraphFacts(
        sha256=str(told["sha256"])[:64],
        channels=int(told["channels"]),
        shape=(x, y, z),
        width=int(told["width"]),
        strides=tuple(map(int, told["strides"])),
        parameters=int(told["parameters"]),
        opset=int(told["opset"]),
        operators={str(name): int(count) for name, count in told["operators"].items()},
        bytes=int(told["bytes"]),
        operations=int(told["operations"]),
    )
