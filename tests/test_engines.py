"""What every engine promises. A further engine joins by one line in ENGINES."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tomoprobe.benchmark.errors import ConflictError, StorageError
from tomoprobe.submissions.engines import MISCONFIGURED, Engine, Slot, supervise
from tomoprobe.submissions.engines.local import LocalEngine

Make = Callable[..., Engine]

ENGINES: dict[str, Callable[[list[str], Mapping[str, str]], Engine]] = {"local": LocalEngine}
"""By name: from a worker's command and environment to an engine."""

WORKER = """
import os, signal, sys, time
from pathlib import Path

how, folder = sys.argv[1], Path(sys.argv[2])
slot = sys.argv[sys.argv.index("--slot") + 1]

def stop(*_):
    (folder / f"{slot}.stopped").touch()
    sys.exit(0)

signal.signal(signal.SIGTERM, signal.SIG_IGN if how == "deaf" else stop)
with (folder / f"{slot}.starts").open("a") as file:
    file.write(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
if how.isdecimal():
    sys.exit(int(how))
time.sleep(60)
"""
"""Stands for a worker: a start of the true one takes seconds."""

CPU0, CPU1, GPU0, GPU1 = Slot(0), Slot(1), Slot(0, gpu=True), Slot(1, gpu=True)


@pytest.fixture(params=list(ENGINES))
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    made: list[Engine] = []
    script = tmp_path / "worker.py"
    script.write_text(WORKER)

    def build(how: str = "works", **environment: str) -> Engine:
        command = [sys.executable, "-S", str(script), how, str(tmp_path)]
        plain = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
        made.append(ENGINES[request.param](command, {**plain, **environment}))
        return made[-1]

    yield build
    for engine in made:
        engine.stop(0)


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def starts(folder: Path, slot: Slot) -> list[list[str]]:
    """[process, visible GPUs] of every start in a slot."""
    file = folder / f"{slot.name}.starts"
    return [line.split(" ") for line in file.read_text().splitlines()] if file.exists() else []


# --- the contract ------------------------------------------------------------------------------


def test_a_started_worker_runs_in_its_slot_and_nowhere_else(make: Make, tmp_path: Path):
    engine = make()
    assert engine.running() == frozenset()
    engine.start(CPU1)
    wait_for(lambda: starts(tmp_path, CPU1))
    assert engine.running() == {CPU1}
    assert not engine.ended()
    assert not starts(tmp_path, CPU0)


def test_a_slot_has_one_worker_at_a_time(make: Make):
    engine = make()
    engine.start(CPU0)
    with pytest.raises(ConflictError, match="cpu0"):
        engine.start(CPU0)
    engine.start(CPU1)
    assert engine.running() == {CPU0, CPU1}


@pytest.mark.parametrize("status", [0, 2, 7])
def test_an_end_is_told_once_with_its_status_and_frees_the_slot(make: Make, status: int):
    engine = make(str(status))
    engine.start(CPU0)
    wait_for(lambda: not engine.running())
    assert [tuple(end) for end in engine.ended()] == [(CPU0, status)]
    assert not engine.ended()
    engine.start(CPU0)


def test_a_killed_worker_is_told_as_a_failure(make: Make, tmp_path: Path):
    engine = make()
    engine.start(CPU0)
    wait_for(lambda: starts(tmp_path, CPU0))
    os.kill(int(starts(tmp_path, CPU0)[0][0]), signal.SIGKILL)
    wait_for(lambda: not engine.running())
    [end] = engine.ended()
    assert end.slot == CPU0
    assert end.status not in (0, MISCONFIGURED)


def test_stop_lets_workers_end_by_themselves(make: Make, tmp_path: Path):
    engine = make()
    for slot in (CPU0, CPU1):
        engine.start(slot)
        wait_for(lambda slot=slot: starts(tmp_path, slot))
    engine.stop(30)
    assert (tmp_path / "cpu0.stopped").exists()
    assert (tmp_path / "cpu1.stopped").exists()
    assert not engine.running()


def test_stop_ends_a_worker_that_does_not_listen(make: Make, tmp_path: Path):
    engine = make("deaf")
    engine.start(CPU0)
    wait_for(lambda: starts(tmp_path, CPU0))
    pid = int(starts(tmp_path, CPU0)[0][0])
    engine.stop(0.1)
    assert not engine.running()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_stop_may_come_twice_and_without_workers(make: Make):
    engine = make()
    engine.stop(1)
    engine.start(CPU0)
    engine.stop(0)
    engine.stop(0)
    assert not engine.running()


def test_a_cpu_slot_sees_no_gpu_and_a_gpu_slot_its_own(make: Make, tmp_path: Path):
    engine = make()
    for slot in (CPU0, GPU0, GPU1):
        engine.start(slot)
        wait_for(lambda slot=slot: starts(tmp_path, slot))
    assert [starts(tmp_path, s)[0][1] for s in (CPU0, GPU0, GPU1)] == ["", "0", "1"]


# --- supervision, by any engine ------------------------------------------------------------------


def test_supervision_starts_a_dead_worker_again_and_leaves_none_behind(make: Make, tmp_path: Path):
    engine, stop = make(), threading.Event()
    thread = threading.Thread(
        target=supervise, args=(engine, [CPU0, CPU1], stop), kwargs={"pause_s": 0.01}
    )
    thread.start()
    wait_for(lambda: starts(tmp_path, CPU0) and starts(tmp_path, CPU1))
    os.kill(int(starts(tmp_path, CPU0)[0][0]), signal.SIGKILL)
    wait_for(lambda: len(starts(tmp_path, CPU0)) == 2)
    assert len(starts(tmp_path, CPU1)) == 1
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    assert not engine.running()
    assert (tmp_path / "cpu1.stopped").exists()


def test_supervision_waits_longer_before_each_restart(make: Make, tmp_path: Path):
    engine, stop = make("7"), threading.Event()
    thread = threading.Thread(
        target=supervise, args=(engine, [CPU0], stop), kwargs={"pause_s": 0.2, "poll_s": 0.01}
    )
    began = time.monotonic()
    thread.start()
    wait_for(lambda: len(starts(tmp_path, CPU0)) == 4)
    stop.set()
    thread.join(30)
    assert time.monotonic() - began > 0.2 + 0.4 + 0.8


def test_supervision_ends_when_workers_that_work_once_are_done(make: Make, tmp_path: Path):
    assert supervise(make("0"), [CPU0, CPU1], threading.Event(), once=True) == 0
    assert [len(starts(tmp_path, slot)) for slot in (CPU0, CPU1)] == [1, 1]


def test_supervision_gives_up_where_a_start_can_never_work(make: Make, tmp_path: Path):
    assert supervise(make(str(MISCONFIGURED)), [CPU0], threading.Event()) == MISCONFIGURED
    assert len(starts(tmp_path, CPU0)) == 1


def test_supervision_stops_the_others_where_a_start_fails(make: Make, tmp_path: Path):
    engine = make(CUDA_VISIBLE_DEVICES="5")
    with pytest.raises(StorageError, match="no GPU for slot gpu1"):
        supervise(engine, [GPU0, GPU1], threading.Event())
    assert not engine.running()


# --- the local engine ----------------------------------------------------------------------------


def test_the_gpus_that_this_process_sees_are_dealt_out(make: Make, tmp_path: Path):
    engine = make(CUDA_VISIBLE_DEVICES="3,GPU-8a1c")
    for slot in (GPU0, GPU1):
        engine.start(slot)
        wait_for(lambda slot=slot: starts(tmp_path, slot))
    assert [starts(tmp_path, s)[0][1] for s in (GPU0, GPU1)] == ["3", "GPU-8a1c"]


def test_a_slot_without_a_gpu_says_so():
    engine = LocalEngine([sys.executable], {"CUDA_VISIBLE_DEVICES": "0"})
    with pytest.raises(StorageError, match="fewer GPUs"):
        engine.start(GPU1)


def test_a_program_that_is_not_there_says_so():
    with pytest.raises(StorageError, match="cpu0"):
        LocalEngine(["/nowhere/worker"], {}).start(CPU0)


def test_workers_learn_that_the_process_above_them_was_killed(tmp_path: Path):
    worker = textwrap.dedent("""
        import sys
        from pathlib import Path
        folder = Path(sys.argv[1])
        (folder / "up").touch()
        sys.stdin.buffer.read()
        (folder / "alone").touch()
    """)
    (tmp_path / "worker.py").write_text(worker)
    above = textwrap.dedent(f"""
        import os, sys, time
        from tomoprobe.submissions.engines import Slot
        from tomoprobe.submissions.engines.local import LocalEngine
        command = [sys.executable, "-S", {str(tmp_path / "worker.py")!r}, {str(tmp_path)!r}]
        engine = LocalEngine(command, os.environ)
        engine.start(Slot(0))
        engine.start(Slot(1))
        time.sleep(60)
    """)
    parent = subprocess.Popen([sys.executable, "-c", above])
    try:
        wait_for((tmp_path / "up").exists)
        assert not (tmp_path / "alone").exists()
    finally:
        parent.kill()
        parent.wait()
    wait_for((tmp_path / "alone").exists)
