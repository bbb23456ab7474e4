"""A worker: takes one job after the other, does it, and stores what came of it.

It holds a job by a lease that a thread prolongs. Whatever becomes of the worker, the lease ends
and the job is another's; and a job is ended in the transaction of what it stores, so that it is
stored once. A worker may be killed at any moment; asked to stop, it gives its job back first.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..benchmark.errors import StorageError
from ..leaderboard import queue
from ..leaderboard.intake_records import Job, JobKind
from . import units
from .faults import explain
from .job_log import JobLog

if TYPE_CHECKING:
    from .units import Bench

logger = logging.getLogger(__name__)

TRIES = 3
"""So many faults of the platform end a job, of workers that were lost or that could not do it."""

KEEP_MAPS_S = 24 * 3600.0
"""After which maps that an evaluation left behind go. Those of a submission go with its last job;
whoever needs some again makes them again."""

SWEEP_S = 3600.0
"""Between two looks for such maps."""

ALL_KINDS: tuple[JobKind, ...] = ("check", "extract", "probe")


@dataclass(frozen=True)
class Terms:
    """How a worker works."""

    owner: str = field(
        default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    )
    """No two workers share it, also not one before and one after a restart."""
    kinds: Sequence[JobKind] = ALL_KINDS
    """What it takes."""
    lease_s: float = 60.0
    """After which a job that nobody prolongs is another's. A stop for collecting memory, or of a
    virtual machine, takes seconds."""
    beat_s: float = 10.0
    """Between two prolongations, in which a cancellation is noticed and the log is shown."""
    poll_s: float = 2.0
    """Before looking again where there was nothing to do."""
    retry_s: float = 5.0
    """Before a job is given back after a fault of the platform; longer each time."""
    left_s: float = 120.0
    """In which it is left to other workers: what is wrong may be wrong with this machine alone."""


def work(bench: Bench, terms: Terms, *, once: bool = False) -> int:
    """Do jobs until asked to stop by SIGTERM or SIGINT. In the main thread only.

    Args:
        bench: what the worker has at hand.
        terms: how it works.
        once: end when there is nothing that can be done now, be it that a job is left to others.

    Returns:
        How many jobs were ended, well or not.

    Raises:
        StorageError: with ``once``, the database cannot be used. Else it is tried again.
    """
    ended, reaped, swept = 0, -terms.lease_s, -SWEEP_S
    left: dict[int, float] = {}
    with Interrupts() as interrupts:
        while not interrupts.stopping:
            try:
                if time.monotonic() - reaped > terms.lease_s / 4:
                    reaped = time.monotonic()
                    for job in queue.reap(bench.engine):
                        logger.warning("job %d was lost by %s", job.id, job.owner)
                if time.monotonic() - swept > SWEEP_S:
                    swept = time.monotonic()
                    with suppress(StorageError):  # the next job tells, if it matters to it
                        bench.cache.clean_maps(older_than_s=KEEP_MAPS_S)
                left = {id: until for id, until in left.items() if until > time.monotonic()}
                job = queue.claim(
                    bench.engine, terms.owner, terms.kinds, terms.lease_s, leave=tuple(left)
                )
            except StorageError as error:
                if once:
                    raise
                logger.warning("%s", error)
                interrupts.wait(terms.poll_s)
                continue
            if job is not None:
                ended += _do(bench, job, terms, interrupts, left)
            elif once:
                break
            else:
                interrupts.wait(terms.poll_s)
    return ended


def _do(
    bench: Bench, job: Job, terms: Terms, interrupts: Interrupts, left: dict[int, float]
) -> bool:
    """One job; whether it was ended by us. Until when it is left to others is noted in ``left``."""
    log = JobLog()
    logger.info("job %d: %s %s", job.id, job.kind, job.task or job.data_set or job.submission_id)
    try:
        submission = queue.submission(bench.engine, job.submission_id)
        with _Heartbeat(bench.engine, job, terms, log, interrupts):
            try:
                interrupts.allow()
                units.DO[job.kind](bench, job, submission, log)
            finally:
                interrupts.forbid()
    except (LostJob, queue.LostLease):
        interrupts.forbid()
        logger.info("job %d is not ours any more", job.id)
        return False
    except Stopped:
        interrupts.forbid()
        with suppress(queue.LostLease, StorageError):  # a lost lease: it was done already
            queue.give_back(bench.engine, job)
            logger.info("job %d given back", job.id)
        return False
    except Exception as error:  # of any code that a job runs through; the next job can be well
        if _failed(bench, job, terms, interrupts, error, log):
            return True
        left[job.id] = time.monotonic() + terms.left_s
        return False
    with suppress(StorageError):  # the job is well ended all the same
        if queue.submission(bench.engine, job.submission_id).state != "evaluating":
            bench.cache.clean_maps(submission.name)
    return True


def _failed(
    bench: Bench, job: Job, terms: Terms, interrupts: Interrupts, error: Exception, log: JobLog
) -> bool:
    """End a job that failed, or give it back where another try may help."""
    told, fault = explain(error, job.kind)
    log(f"{told.code}: {told.message}")
    if fault == "platform":
        logger.error("job %d: %s", job.id, told.code, exc_info=error)
    else:
        logger.info("job %d: %s: %s", job.id, told.code, told.message)
    try:
        if fault == "platform" and job.lost + 1 < TRIES:
            interrupts.wait(min(terms.retry_s * (job.lost + 1), terms.lease_s / 2))
            queue.give_back(bench.engine, job, failed=True)
            return False
        queue.fail(bench.engine, job, told, log.text(), fault=fault)
    except queue.LostLease:
        return False
    except StorageError as trouble:  # the lease ends, and the job is tried again
        logger.warning("job %d: %s", job.id, trouble)
        return False
    return True


# --- what interrupts a job ------------------------------------------------------------------------


class Stopped(BaseException):
    """The worker was asked to stop. Like ``KeyboardInterrupt``, no ``Exception``."""


class LostJob(BaseException):
    """The job in hand was cancelled, or is another worker's."""


_AGAIN_S = 20.0
"""After which an interrupt that did not end the job is sent again: where it is raised inside a
destructor, Python drops it."""


class Interrupts:
    """Signals as exceptions, raised in the main thread and only while a job is in hand."""

    def __init__(self) -> None:
        self.stopping = False
        self._allowed = self._lost = False
        self._raised: float | None = None
        self._before: dict[int, Any] = {}
        self._main = threading.main_thread().ident or 0

    def __enter__(self) -> Interrupts:
        handlers: dict[int, Callable[[int, FrameType | None], None]] = {
            signal.SIGTERM: self._stop,
            signal.SIGINT: self._stop,
            signal.SIGUSR1: self._look,
        }
        self._before = {number: signal.signal(number, h) for number, h in handlers.items()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def allow(self) -> None:
        """A job is in hand from now on.

        Raises:
            Stopped: a request to stop came before.
        """
        self._lost, self._raised = False, None
        self._allowed = True
        self._raise_if_wanted()

    def forbid(self) -> None:
        """No job is in hand any more. A request to stop is kept, a loss is not."""
        self._allowed = False

    def lose(self) -> None:
        """The job in hand is not ours any more. From any thread; repeated without harm."""
        self._lost = True
        self.nudge()

    def nudge(self) -> None:
        """Let the main thread look whether to stop what it does. From any thread."""
        signal.pthread_kill(self._main, signal.SIGUSR1)

    def wait(self, seconds: float) -> None:
        """Sleep; a request to stop ends it."""
        until = time.monotonic() + seconds
        while not self.stopping and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))  # a handler that raises nothing does not end a longer one

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True
        self._raise_if_wanted()

    def _look(self, number: int, frame: FrameType | None) -> None:
        self._raise_if_wanted()

    def _raise_if_wanted(self) -> None:
        if not self._allowed or not (self.stopping or self._lost):
            return
        now = time.monotonic()
        if self._raised is None or now - self._raised > _AGAIN_S:  # cleaning up takes a moment
            self._raised = now
            raise LostJob if self._lost else Stopped


class _Heartbeat:
    """Prolongs the lease of the job in hand from a thread of its own."""

    def __init__(
        self, engine: Any, job: Job, terms: Terms, log: JobLog, interrupts: Interrupts
    ) -> None:
        self._engine, self._job, self._terms, self._log = engine, job, terms, log
        self._interrupts = interrupts
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()  # else it could interrupt the next job

    def _beat(self) -> None:
        until = time.monotonic() + self._terms.lease_s
        lost = False
        while not self._ended.wait(self._terms.beat_s):
            if self._interrupts.stopping:
                self._interrupts.nudge()
            if not lost:
                try:
                    begun = time.monotonic()
                    queue.heartbeat(
                        self._engine, self._job, self._terms.lease_s, log=self._log.text()
                    )
                    until = begun + self._terms.lease_s
                except queue.LostLease:
                    lost = True
                except Exception as error:  # a thread that ends here would lose every job
                    logger.warning("job %d: no heartbeat: %s", self._job.id, error)
                    lost = time.monotonic() > until
            if lost and not self._ended.is_set():
                self._interrupts.lose()
