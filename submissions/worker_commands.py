"""``tomoprobe worker``: do the jobs of submissions. Heavy imports wait until it is run."""

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..benchmark.errors import IsolationError, UnknownNameError
from .db_commands import Database

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from .engines import Slot
    from .units import Bench

_GRACE_S = 30.0
"""For giving jobs back. A worker that takes longer is ended, and its lease ends by itself."""

_UNSAFE = (
    "Networks run as this user, with its files, network and memory: --unsafe-local is for networks "
    "that you trust. Every row made so says so."
)


def worker(
    db: Database = None,
    gpus: Annotated[
        int, typer.Option(min=0, help="Workers with a GPU of their own each; they do all jobs.")
    ] = 0,
    slots: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Workers without a GPU. Default: 1, or 0 beside GPUs. Beside GPUs they only "
            "check submissions.",
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="End when nothing is left to do.")] = False,
    poll: Annotated[
        float, typer.Option(min=0.1, help="Seconds before looking for jobs again.")
    ] = 2.0,
    data_root: Annotated[
        Path | None,
        typer.Option(
            "--data-root", envvar="TOMOPROBE_DATA", help="Folder that holds the data sets."
        ),
    ] = None,
    unsafe_local: Annotated[
        bool,
        typer.Option(
            "--unsafe-local",
            help="Run networks even where they cannot be closed off. Marks every row.",
        ),
    ] = False,
    subset: Annotated[
        bool,
        typer.Option(
            "--subset",
            help="Accept incomplete copies; rows are marked and never ranked beside complete ones.",
        ),
    ] = False,
    slot: Annotated[
        str | None, typer.Option(hidden=True, help="Be the worker of this slot.")
    ] = None,
) -> None:
    """Do the jobs of submissions until stopped: check, extract features, probe.

    Any number of these may work on one database, on any number of machines that share the folder
    TOMOPROBE_STORE. One process per slot; SIGTERM or Ctrl-C lets each give its job back.
    """
    from . import session

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    url = session.existing_database(db)
    if slot is not None:
        _stop_with_the_one_above()
        _work(url, slot, gpus, once, poll, data_root, unsafe_local, subset)
        return
    _check_isolation(unsafe_local)
    chosen = _slots(gpus, (0 if gpus else 1) if slots is None else slots)
    command = [sys.executable, "-m", "tomoprobe.submissions", "worker", "--gpus", str(gpus)]
    command += ["--poll", str(poll), *(["--once"] if once else [])]
    command += [*(["--unsafe-local"] if unsafe_local else []), *(["--subset"] if subset else [])]
    given = {} if data_root is None else {"TOMOPROBE_DATA": str(data_root.absolute())}
    # not as an argument, which other users of the machine see: it may hold a password
    raise typer.Exit(
        _supervise(command, {**os.environ, **given, "TOMOPROBE_DB": url}, chosen, once)
    )


def _slots(gpus: int, slots: int) -> "list[Slot]":
    from .engines import Slot

    chosen = [Slot(n, gpu=True) for n in range(gpus)] + [Slot(n) for n in range(slots)]
    if not chosen:
        raise UnknownNameError("No worker was asked for. Give --gpus or --slots a number above 0.")
    return chosen


def _check_isolation(unsafe_local: bool) -> None:
    """Say now, and not at every job, what this machine cannot do.

    Raises:
        IsolationError: it cannot close a process off, and was not told to do without.
    """
    from . import isolation

    reason = isolation.available()
    if unsafe_local:
        typer.echo(_UNSAFE, err=True)
    elif reason is not None:
        raise IsolationError(
            f"This machine cannot close off the process that runs a network: {reason} No job is "
            "done without that. Use another machine, or --unsafe-local for networks you trust."
        )


def _supervise(
    command: list[str], environment: dict[str, str], chosen: "list[Slot]", once: bool
) -> int:
    """Keep a worker in every slot until SIGTERM or Ctrl-C; the exit status."""
    from .engines import supervise
    from .engines.local import LocalEngine

    stop = threading.Event()
    before = {n: signal.signal(n, lambda *_: stop.set()) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        engine = LocalEngine(command, environment, len(chosen))
        return supervise(engine, chosen, stop, once=once, grace_s=_GRACE_S)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- in a slot -----------------------------------------------------------------------------------


def _work(
    url: str,
    slot: str,
    gpus: int,
    once: bool,
    poll: float,
    data_root: Path | None,
    unsafe_local: bool,
    subset: bool,
) -> None:
    """Be the worker of a slot."""
    from ..leaderboard import db as database
    from . import worker as jobs

    on_gpu = slot.startswith("gpu")
    engine = database.connect(url)
    try:
        database.migrate(engine)
        bench = _bench(engine, data_root, "cuda:0" if on_gpu else "cpu", unsafe_local, subset)
        # features differ between kinds of devices, so beside GPUs they come from those alone
        kinds = ("check",) if gpus and not on_gpu else jobs.ALL_KINDS
        jobs.work(bench, jobs.Terms(kinds=kinds, poll_s=poll), once=once)
    finally:
        engine.dispose()


def _bench(
    engine: "Engine", data_root: Path | None, device: str, unsafe_local: bool, subset: bool
) -> "Bench":
    from ..benchmark.cache import FeatureCache
    from . import session, units
    from .configuration import Configuration
    from .upload_store import UploadStore

    return units.Bench(
        engine=engine,
        cache=FeatureCache(units.features_home()),
        store=UploadStore(Configuration.from_environment().store_folder),
        data_root=data_root,
        device=session.resolve_device(device),
        unsafe_local=unsafe_local,
        subset=subset,
    )


def _stop_with_the_one_above() -> None:
    """Take the end of standard input, whose other end it holds, for its request to stop."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE_S)
        os._exit(1)  # hangs where no signal reaches it; its lease ends by itself

    threading.Thread(target=watch, name="above", daemon=True).start()
