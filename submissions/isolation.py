"""Run a submitted model in a child process that can reach nothing but the arrays it is sent.

The parent loads and preprocesses volumes; the child (`_isolated_child`) holds the network. Between
them are two pipes with length-prefixed frames of raw float32, in random order and without any
name. The child has no environment, no network, no file but Python, its libraries and the
submission, no privilege, and limits on memory, time, threads and files. What it answers is data of
a stranger: kind, size, shape and finiteness are checked before anything is done with it.

Where the kernel offers no such walls nothing is run, unless ``unsafe_local`` is given.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from ..benchmark.errors import IsolationError
from . import _isolated_child as far
from ._isolated_encoder import IsolatedEncoder
from ._isolated_process import Child, Gone, Late, Limits, hidden, plan

__all__ = ["IsolatedEncoder", "Limits", "available", "isolated"]

_PROBE_SECONDS = 30.0
_HINT = (
    "Run on Linux 5.12 or newer where this user may make user namespaces (in a container: with the "
    "capability SYS_ADMIN, or a seccomp profile that lets unshare and mount pass), or accept the "
    "risk with --unsafe-local, which is printed on every row."
)


@cache
def available() -> str | None:
    """None where a process can be closed off here, else why not. Tried out, once."""
    if sys.platform != "linux":
        return f"{sys.platform} has no namespaces"
    try:
        child = Child(isolated=True)
    except IsolationError as error:
        return str(error)
    deadline = time.monotonic() + _PROBE_SECONDS
    head = bytearray(far.HEAD.size)
    try:
        child.send(far.SETUP, [json.dumps(plan({}, Limits(), ())).encode()], deadline)
        child.send(far.START, [json.dumps({"spec": None, "gpu": False}).encode()], deadline)
        child.fill(memoryview(head), deadline)
    except Gone:
        return child.log or "the closed-off process ended at once"
    except Late:
        return f"the closed-off process did not start within {_PROBE_SECONDS:.0f} s"
    finally:
        child.stop()
    return None


@contextmanager
def isolated(
    manifest_path: Path, device: str, limits: Limits | None = None, *, unsafe_local: bool = False
) -> Iterator[IsolatedEncoder]:
    """Load a manifest in a child of its own and hand out its encoder.

    Args:
        manifest_path: with the weights beside it.
        device: "cpu" or "cuda[:i]".
        limits: of the child.
        unsafe_local: use a plain child process, which nothing holds back. Time limits and the
            checks of what it answers remain.

    Raises:
        IsolationError: there are no walls here, or they could not be put up.
        ManifestError: the manifest, arguments or weights do not fit.
        EncoderError: the model fails, or needs more memory or time than its limits.
    """
    with opened(manifest_path, device, limits or Limits(), unsafe_local) as encoder:
        yield encoder


@contextmanager
def opened(
    manifest_path: Path,
    device: str,
    limits: Limits,
    unsafe_local: bool = False,
    hook: Path | None = None,
) -> Iterator[IsolatedEncoder]:
    """As `isolated`; ``hook`` is a Python file that replaces the network, for hostile tests."""
    reason = None if unsafe_local else available()
    if reason is not None:
        raise IsolationError(f"A model cannot be closed off here: {reason}. {_HINT}")
    with hidden():
        encoder = IsolatedEncoder(Path(manifest_path), device, limits, unsafe_local, hook)
        try:
            encoder.start()
            yield encoder
        finally:
            encoder.close()
