"""Engines start workers, and nothing else.

What is to be done, who does it and what came of it is in the database: a worker that vanishes
loses its lease, and another one takes the job. So an engine needs to know nothing about jobs, and
the next one (a cluster's scheduler) is one file that keeps ``Engine`` and passes
``tests/test_engines.py``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

logger = logging.getLogger(__name__)

MISCONFIGURED = 2
"""Exit status of a worker that cannot work as it was called: starting it again would not help."""

FIRST_PAUSE_S = 1.0
"""Before a worker that died at once is started again; doubled each time, up to ``LAST_PAUSE_S``."""
LAST_PAUSE_S = 60.0


@dataclass(frozen=True)
class Slot:
    """Room for one worker."""

    number: int
    """From 0, among the slots of its kind."""
    gpu: bool = False
    """Whether it has a GPU of its own; without, its worker sees none."""

    @property
    def name(self) -> str:
        """``"gpu0"``, ``"cpu1"``."""
        return f"{'gpu' if self.gpu else 'cpu'}{self.number}"


class Ended(NamedTuple):
    """A worker that is no more."""

    slot: Slot
    status: int
    """Its exit status; negative: the number of the signal that ended it."""


class Engine(Protocol):
    """Where workers run."""

    def start(self, slot: Slot) -> None:
        """Start a worker in a slot; returns before it has come up.

        Raises:
            ConflictError: the slot has a worker.
            StorageError: the machine cannot start one now.
        """
        ...

    def running(self) -> frozenset[Slot]:
        """The slots that have a worker, or one on its way."""
        ...

    def ended(self) -> Sequence[Ended]:
        """The workers that ended since the last call; each is told once."""
        ...

    def stop(self, grace_s: float) -> None:
        """Ask every worker to give its job back and end; after ``grace_s`` make it end.

        Returns when none is left. May be called again.
        """
        ...


def supervise(
    engine: Engine,
    slots: Sequence[Slot],
    stop: threading.Event,
    *,
    once: bool = False,
    poll_s: float = 0.2,
    grace_s: float = 30.0,
    pause_s: float = FIRST_PAUSE_S,
) -> int:
    """Keep a worker in every slot until ``stop`` is set; none is left when this returns.

    Args:
        engine: any.
        slots: at least one.
        stop: ends it.
        once: a worker that ends well is not started again, and when none is left, this ends.
        poll_s: between two looks at the workers.
        grace_s: that workers have for giving their jobs back.
        pause_s: before the first restart of a worker that died at once.

    Returns:
        0, or ``MISCONFIGURED`` where a worker said so.
    """
    due = dict.fromkeys(slots, 0.0)  # slots to fill, and from when on
    started: dict[Slot, float] = {}
    pauses = dict.fromkeys(slots, pause_s)
    try:
        while not stop.is_set():
            for slot in [slot for slot, moment in due.items() if moment <= time.monotonic()]:
                engine.start(slot)
                started[slot] = time.monotonic()
                del due[slot]
            for slot, status in engine.ended():
                if status == MISCONFIGURED:
                    return status
                if once and status == 0:
                    continue
                if time.monotonic() - started[slot] > LAST_PAUSE_S:
                    pauses[slot] = pause_s
                logger.warning(
                    "the worker in %s ended (%d); another one starts in %.1f s",
                    slot.name,
                    status,
                    pauses[slot],
                )
                due[slot] = time.monotonic() + pauses[slot]
                pauses[slot] = min(2 * pauses[slot], LAST_PAUSE_S)
            if not due and not engine.running():
                return 0
            stop.wait(poll_s)
        return 0
    finally:
        engine.stop(grace_s)
