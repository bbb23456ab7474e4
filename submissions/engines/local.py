"""The local engine: one child process per slot, on this machine, with nothing to set up."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from ...benchmark.errors import ConflictError, StorageError
from . import Ended, Slot


class LocalEngine:
    """Child processes of this one.

    A child's standard input is a pipe that only this process holds the other end of. It closes
    with this process, however that ends, and the child takes that for the request to stop.

    Args:
        command: of a worker; ``--slot NAME`` is added.
        environment: of the workers. The GPUs in its ``CUDA_VISIBLE_DEVICES`` are dealt out, one
            per GPU slot, in their order; where that is not set, they are those of the machine.
        slots: how many workers share the processor's cores.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], slots: int = 1
    ) -> None:
        self._command = tuple(command)
        self._environment = dict(environment)
        # as many threads as cores in each of several workers would only wait for one another
        self._environment.setdefault(
            "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // max(1, slots)))
        )
        self._children: dict[Slot, subprocess.Popen[bytes]] = {}

    def start(self, slot: Slot) -> None:
        """See ``Engine``."""
        if slot in self._children:
            raise ConflictError(
                f"Slot {slot.name} has a worker. Wait until it has ended, or name another slot."
            )
        try:
            self._children[slot] = subprocess.Popen(  # noqa: S603 - our own command
                [*self._command, "--slot", slot.name],
                stdin=subprocess.PIPE,
                env={**self._environment, "CUDA_VISIBLE_DEVICES": self._gpu_of(slot)},
                start_new_session=True,  # Ctrl-C is for this process, which then asks its children
            )
        except OSError as error:
            raise StorageError(
                f"No worker can be started in slot {slot.name}: {error.strerror}. Free memory, or "
                "raise the limit on processes."
            ) from error

    def _gpu_of(self, slot: Slot) -> str:
        """What ``CUDA_VISIBLE_DEVICES`` is in a slot."""
        if not slot.gpu:
            return ""
        given = self._environment.get("CUDA_VISIBLE_DEVICES")
        if given is None:
            return str(slot.number)
        gpus = [gpu for gpu in given.split(",") if gpu]
        if slot.number >= len(gpus):
            raise StorageError(
                f"There is no GPU for slot {slot.name}: CUDA_VISIBLE_DEVICES is '{given}'. Ask for "
                "fewer GPUs, or let this process see more."
            )
        return gpus[slot.number]

    def running(self) -> frozenset[Slot]:
        """See ``Engine``."""
        return frozenset(s for s, child in self._children.items() if child.poll() is None)

    def ended(self) -> list[Ended]:
        """See ``Engine``."""
        found = []
        for slot, child in list(self._children.items()):
            if child.poll() is not None:
                found.append(Ended(slot, child.returncode))
                del self._children[slot]
                self._close(child)
        return found

    def stop(self, grace_s: float) -> None:
        """See ``Engine``."""
        children = list(self._children.values())
        for child in children:
            child.terminate()
        until = time.monotonic() + grace_s
        for child in children:
            try:
                child.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            self._close(child)
        self._children.clear()

    def pids(self) -> dict[Slot, int]:
        """The process in each slot: what an operator looks for."""
        return {slot: child.pid for slot, child in self._children.items()}

    @staticmethod
    def _close(child: subprocess.Popen[bytes]) -> None:
        if child.stdin is not None:
            with suppress(OSError):
                child.stdin.close()
