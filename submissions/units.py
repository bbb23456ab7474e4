"""What a worker does for a job: check, extract or probe; each can be done again without harm."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..benchmark import probes as protocols
from ..benchmark.cache import Extracted, FeatureCache
from ..benchmark.errors import IntakeError, StorageError
from ..benchmark.features import Progress, data_set_of
from ..benchmark.paths import cache_home
from ..benchmark.studies import AnyProbe, Study
from ..benchmark.types import EncoderCard, Task
from ..leaderboard import queue, uploads
from ..leaderboard.intake_records import Job, Planned, Submission
from ..tasks import get as get_task
from . import isolation, runner
from .job_log import JobLog
from .manifest import Manifest, model_sha
from .upload_store import UploadStore

if TYPE_CHECKING:
    import torch
    from sqlalchemy import Engine

OPENED_S = 60 * 60.0
"""How long a task stays open in a worker: hashing a large data set takes minutes, and its many
probes follow one another. No longer, so that files that were exchanged are seen."""
MOST_OPENED = 16


@dataclass(frozen=True)
class Bench:
    """What a worker has at hand."""

    engine: Engine
    cache: FeatureCache
    store: UploadStore
    data_root: Path | None = None
    device: str = "cpu"
    unsafe_local: bool = False
    """Whether networks may run where nothing closes them off."""
    subset: bool = False
    """Whether an incomplete copy of a data set will do; its rows are marked."""
    limits: isolation.Limits = field(default_factory=isolation.Limits)
    task: Callable[[str], Task] = get_task
    probe: Callable[[str], AnyProbe] = protocols.get
    _opened: dict[str, tuple[float, runner.OpenTask]] = field(default_factory=dict, repr=False)

    def open(self, name: str, log: JobLog) -> runner.OpenTask:
        """A task with its cases found and hashed, perhaps some time ago.

        Raises:
            DataError: its data are not here, or not all and ``subset`` is not given.
            UnknownNameError: there is no such task.
        """
        now = time.monotonic()
        since, opened = self._opened.get(name, (0.0, None))
        if opened is None or now - since > OPENED_S:
            opened = runner.open_task(self.task(name), self.data_root, self.subset)
            self._opened[name] = (now, opened)
            while len(self._opened) > MOST_OPENED:
                del self._opened[min(self._opened, key=lambda other: self._opened[other][0])]
        incomplete = "" if opened.complete else ", an incomplete copy"
        log(f"task {name}: {len(opened.cases)} cases{incomplete}")
        return opened

    def upload_of(self, submission: Submission) -> Path | None:
        """The file that came with it; None where none belongs to it.

        Raises:
            StorageError: it is not where uploads are kept.
        """
        if submission.upload_id is None:
            return None
        path = self.store.path(uploads.stored(self.engine, submission.upload_id).file)
        if not path.is_file():
            raise StorageError(
                f"The upload of submission {submission.id} is not in {path.parent}. Let the site "
                "and its workers share the folder TOMOPROBE_STORE."
            )
        return path


# --- check -------------------------------------------------------------------------------------


def check(bench: Bench, job: Job, submission: Submission, log: JobLog) -> None:
    """Parse and try what was sent; plan its jobs, or end it as a duplicate.

    Raises:
        IntakeError: it is refused.
        LostLease: the job is not ours any more.
    """
    from . import intake, self_runs

    if submission.kind == "self-run":
        self_runs.check(bench, job, submission, log)
        return
    checked = intake.check(
        submission.manifest,
        bench.upload_of(submission),
        submission.kind,
        log=log,
        device=bench.device,
        unsafe_local=bench.unsafe_local,
    )
    planned = plan(submission, bench.task, bench.probe)
    after = queue.checked(
        bench.engine, job, model_sha=checked.model_sha, planned=planned, log=log.text()
    )
    if after.duplicate_of is None:
        facts = Facts.of(checked.card, checked.identity, unsafe=False)
        facts.write(bench.cache.folder, checked.model_sha)


def plan(
    submission: Submission, task: Callable[[str], Task], probe: Callable[[str], AnyProbe]
) -> list[Planned]:
    """One extraction per data set, and every probe on every task whose kind it serves.

    Raises:
        IntakeError: no probe serves any of the tasks.
    """
    tasks = [task(name) for name in submission.tasks]
    probes = [probe(name) for name in submission.probes or protocols.default()]
    by_data_set: dict[str, list[tuple[str, str]]] = {}
    for each in tasks:
        for one in probes:
            if each.card.kind in one.kinds:
                pairs = by_data_set.setdefault(data_set_of(each.card), [])
                pairs.append((each.card.name, one.name))
    if not by_data_set:
        raise IntakeError(
            "nothing-to-do",
            f"No probe among {', '.join(one.name for one in probes)} serves one of the tasks "
            f"{', '.join(submission.tasks)}.",
            stage="check",
            hint="'tomoprobe probes' says what each serves.",
        )
    return [Planned(name, probes=tuple(pairs)) for name, pairs in by_data_set.items()]


# --- extract -----------------------------------------------------------------------------------


def extract(bench: Bench, job: Job, submission: Submission, log: JobLog) -> None:
    """Features of one data set into the cache, for every task of the submission on it.

    Raises:
        EncoderError: the network misbehaves.
        DataError: the data are not here.
        LostLease: the job is not ours any more.
    """
    asked = [bench.probe(name) for name in submission.probes or protocols.default()]
    with lazy_encoder(bench, submission, log) as encoder:
        for name in submission.tasks:
            card = bench.task(name).card
            embeds = any(card.kind in p.kinds and not isinstance(p, Study) for p in asked)
            if data_set_of(card) == job.data_set and embeds:
                features_of(bench, encoder, bench.open(name, log), log)
    queue.finished(bench.engine, job, log=log.text())


def features_of(
    bench: Bench, encoder: LazyEncoder, opened: runner.OpenTask, log: JobLog
) -> Extracted:
    """From the cache; extracted now where they are not, or no more, in it."""
    progress = _tenths(log, f"features for {opened.task.card.name}", "cases")
    return runner.embedded(bench.cache, encoder, opened, bench.device, progress)


def _tenths(log: JobLog, what: str, of: str) -> Progress:
    """Ten lines, however many cases or steps there are.

    Args:
        log: of the job.
        what: is done.
        of: what is counted.
    """
    told = -1

    def progress(done: int, total: int) -> None:
        nonlocal told
        tenth = 10 * done // max(1, total)
        if tenth > told:
            told = tenth
            log(f"{what}: {done} of {total} {of}")

    return progress


# --- probe -------------------------------------------------------------------------------------


def probe(bench: Bench, job: Job, submission: Submission, log: JobLog) -> None:
    """Fit one probe on cached features; its rows and the end of the job are one transaction.

    Raises:
        ProbeError: it cannot be fitted.
        LostLease: the job is not ours any more; nothing was stored.
    """
    opened, protocol = bench.open(job.task, log), bench.probe(job.probe)
    with lazy_encoder(bench, submission, log) as encoder:
        if isinstance(protocol, Study):
            what = f"{protocol.name} on {job.task}"
            log(what)
            told = _tenths(log, what, "steps")
            answer = runner.studied(bench.cache, encoder, opened, protocol, bench.device, told)
        else:
            features = features_of(bench, encoder, opened, log)
            log(f"probe {protocol.name} on {job.task}")
            answer = runner.probed(opened, protocol, features)
        runner.store(
            bench.engine,
            encoder,
            opened,
            protocol,
            answer,
            bench.device,
            origin="verified",
            unsafe=encoder.unsafe,
            also=lambda connection: queue.finish(connection, job, log=log.text()),
        )


DO: Mapping[str, Callable[[Bench, Job, Submission, JobLog], None]] = {
    "check": check,
    "extract": extract,
    "probe": probe,
}
"""By kind of job. Each ends its job itself, in the transaction of what it stores."""


# --- encoders that start when they are needed ----------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What a probe needs to know of an encoder, kept beside its features: then it need not run."""

    width: int
    strides: tuple[int, ...]
    parameters: int
    identity: Mapping[str, Any]
    """The canonical manifest."""
    unsafe: bool
    """It has run without isolation on this machine, so features may come from that."""

    @classmethod
    def of(cls, card: EncoderCard, identity: Mapping[str, Any], *, unsafe: bool) -> Facts:
        """Of an encoder that has been loaded."""
        return cls(card.width, card.strides, card.parameters, identity, unsafe)

    @classmethod
    def read(cls, folder: Path, sha: str) -> Facts | None:
        """None where they are not here, or are not of this model."""
        try:
            values = json.loads(cls._path(folder, sha).read_text())
            facts = cls(**{**values, "strides": tuple(values["strides"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return facts if model_sha(facts.identity) == sha else None

    def write(self, folder: Path, sha: str) -> None:
        """Beside the features; that it ran without isolation is never forgotten.

        Raises:
            StorageError: the folder cannot be written.
        """
        known = self.read(folder, sha)
        values = {**vars(self), "unsafe": self.unsafe or (known is not None and known.unsafe)}
        path = self._path(folder, sha)
        part = path.with_suffix(f".{time.monotonic_ns()}.part")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(values))
            part.replace(path)
        except OSError as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise StorageError(
                f"{folder} cannot be written: {error.strerror}. Free some space, or point "
                "TOMOPROBE_HOME elsewhere."
            ) from error

    @staticmethod
    def _path(folder: Path, sha: str) -> Path:
        return folder / f"encoder-{sha}.json"


class LazyEncoder:
    """An encoder whose network starts, isolated, with the first array. A `FrozenEncoder`."""

    shuffled = True
    """See ``isolation.IsolatedEncoder``."""

    def __init__(
        self,
        manifest: Manifest,
        sha: str,
        facts: Facts,
        start: Callable[[], isolation.IsolatedEncoder],
    ) -> None:
        self.card = manifest.card(facts.width, facts.strides, facts.parameters)
        self.model_sha = sha
        self.manifest = facts.identity
        self.unsafe = facts.unsafe
        self._start = start
        self._running: isolation.IsolatedEncoder | None = None

    def _network(self) -> isolation.IsolatedEncoder:
        if self._running is None:
            self._running = self._start()
            self.unsafe = self.unsafe or self._running.unsafe
        return self._running

    @property
    def module(self) -> torch.nn.Module | None:
        """What stands for the network's buffers; asked for when something is to be embedded."""
        return self._network().module

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) -> (B, F)."""
        return self._network().embed(x)

    def maps(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """(B, C, X, Y, Z) -> maps, fine to coarse."""
        return self._network().maps(x)


@contextmanager
def lazy_encoder(bench: Bench, submission: Submission, log: JobLog) -> Iterator[LazyEncoder]:
    """The encoder of a submission that passed its check.

    Raises:
        StorageError: its file is gone, or is another one than was checked.
    """
    from . import intake

    sha = submission.model_sha
    if sha is None:
        raise StorageError(f"Submission {submission.id} has no model_sha, though it was checked.")
    with ExitStack() as stack:

        def start() -> isolation.IsolatedEncoder:
            path = stack.enter_context(_unpacked(bench, submission))
            log("starting the network in a process of its own")
            running = stack.enter_context(
                isolation.isolated(
                    path, bench.device, bench.limits, unsafe_local=bench.unsafe_local
                )
            )
            stack.callback(lambda: log(running.log))
            if running.model_sha != sha:
                raise StorageError(
                    f"The file of submission {submission.id} gives model {running.model_sha} and "
                    f"not {sha}, as at its check. Restore it from a copy."
                )
            found = Facts.of(running.card, running.manifest, unsafe=running.unsafe)
            found.write(bench.cache.folder, sha)
            return running

        facts, running = Facts.read(bench.cache.folder, sha), None
        if facts is None:  # another machine did the check, or the folder was cleaned
            running = start()
            facts = Facts.of(running.card, running.manifest, unsafe=running.unsafe)
        manifest = intake.read_manifest(submission.manifest)
        yield LazyEncoder(manifest, sha, facts, start if running is None else lambda: running)


@contextmanager
def _unpacked(bench: Bench, submission: Submission) -> Iterator[Path]:
    """The manifest in a folder of its own, with its file beside it."""
    from . import intake

    manifest = intake.read_manifest(submission.manifest)
    upload = bench.upload_of(submission)
    with intake.staged(manifest, upload, submission.kind) as path:
        yield path


def features_home() -> Path:
    """Where a worker keeps features: where ``tomoprobe evaluate`` does."""
    return cache_home() / "features"
