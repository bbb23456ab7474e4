"""A model's child process as its parent holds it: started, spoken to against the clock, stopped."""

from __future__ import annotations

import os
import select
import site
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..benchmark.errors import IsolationError
from . import _isolated_child as far
from . import _linux
from .job_log import clean

_PIPE_BYTES = 1 << 20
"""What a pipe holds; the kernel's limit for ordinary users, /proc/sys/fs/pipe-max-size."""
_LOG_BYTES = 16 * 1024
_LOG_LINES = 10
_LOG_LETTERS = 1500
_STOP_SECONDS = 10.0
_SYSTEM = (
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/sys/devices/system/cpu",
    "/proc/cpuinfo",
    "/proc/meminfo",
)
"""What shared libraries need: themselves, where they are, which processors there are."""
_GPU = ("/usr/local/nvidia", "/usr/local/cuda", "/proc/driver/nvidia", "/proc/devices")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


@dataclass(frozen=True)
class Limits:
    """What one child may use."""

    memory: int = 8 * 2**30
    """Bytes beyond what torch takes when it is imported."""
    batch_seconds: float = 300.0
    """For one answer, by the clock."""
    start_seconds: float = 300.0
    """Until the model is loaded."""
    threads: int = 256
    """Tasks of the kernel: torch, OpenMP and BLAS have some each. Processes: one."""
    open_files: int = 256
    scratch: int = 64 * 2**20
    """Bytes of files; they lie in memory and go with the child."""
    result: int = 2**31
    """Bytes of one answer."""


class Gone(Exception):
    """The child has ended; ``code`` as the shell counts: 128 + signal."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(f"status {code}")


class Late(Exception):
    """The child has not answered in time."""


# --- what the child is shown ---------------------------------------------------------------------


def plan(files: Mapping[str, Path], limits: Limits, devices: Sequence[str]) -> dict[str, Any]:
    """What the supervisor has to do, as JSON.

    Args:
        files: path in the child -> file here, of the submission.
        limits: of the child.
        devices: paths of a GPU's device files, if one is used.
    """
    on_gpu = bool(devices)
    binds: list[tuple[str, str]] = []
    links: list[tuple[str, str]] = []
    for path in map(Path, sorted({*_installation(), *_SYSTEM, *(_GPU if on_gpu else ())})):
        if path.is_symlink() and not path.parent.is_symlink():
            links.append((str(path), str(path.readlink())))
        if not path.exists():
            continue
        real = str(path.resolve())
        targets = {real} if path.is_symlink() else {real, str(path)}
        binds += [(real, target) for target in sorted(targets)]
    shown: list[tuple[str, str]] = []
    for source, target in sorted(binds, key=lambda pair: len(pair[1])):
        if not any(Path(target).is_relative_to(wider) for _, wider in shown):
            shown.append((source, target))
    shown += [(str(path.resolve()), target) for target, path in files.items()]
    return {
        "binds": shown,
        "links": links,
        "devices": [device for device in (*_DEVICES, *devices) if Path(device).exists()],
        "scratch": limits.scratch,
        "threads": limits.threads,
        "open_files": limits.open_files,
        "gpu": on_gpu,
    }


def _installation() -> set[str]:
    """Python, the installed packages and this one."""
    paths = sysconfig.get_paths()
    found = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    found |= set(site.getsitepackages())
    for prefix in (sys.prefix, sys.base_prefix, sys.base_exec_prefix):
        # an environment of its own as a whole; of the system's only the parts above
        if prefix not in ("/", "/usr", "/usr/local"):
            found.add(prefix)
    if sys.base_prefix in ("/", "/usr", "/usr/local"):
        found |= {sys.executable, str(Path(sys.executable).resolve())}
        found |= {str(path) for path in map(Path, _links_of(Path(sys.executable)))}
    here = Path(__file__).parent  # in a checkout the folders lie beside one another
    return found | {str(here), str(here.parent / "benchmark")}


def _links_of(path: Path) -> list[Path]:
    """The files on the way from a symbolic link to what it means."""
    found = [path]
    while path.is_symlink():
        path = path.parent / path.readlink()
        found.append(path)
    return found


def gpu(device: str) -> list[str]:
    """Paths of the device files that CUDA needs for one GPU, which is then ``cuda:0``.

    Args:
        device: "cuda[:i]", counted among those that CUDA_VISIBLE_DEVICES leaves.

    Raises:
        IsolationError: its file cannot be told.
    """
    index = int(device.partition(":")[2] or 0)
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    name = visible[index] if index < len(visible) else str(index)
    if not name.isdigit():
        name = next((minor for uuid, minor in _minors() if uuid.startswith(name)), name)
    if not Path(f"/dev/nvidia{name}").exists():
        raise IsolationError(
            f"There is no device file for '{device}' (CUDA calls it '{name}'). Name whole GPUs in "
            "CUDA_VISIBLE_DEVICES, by number or UUID; parts of one cannot be handed on."
        )
    return [f"/dev/nvidia{name}", "/dev/nvidiactl", "/dev/nvidia-uvm"]


def _minors() -> list[tuple[str, str]]:
    """UUID of each GPU and the number of its device file, as NVIDIA's driver tells them."""
    found = []
    for path in Path("/proc/driver/nvidia/gpus").glob("*/information"):
        lines = (line.partition(":") for line in path.read_text().splitlines())
        facts = {key.strip(): value.strip() for key, _, value in lines}
        found.append((facts.get("GPU UUID", ""), facts.get("Device Minor", "")))
    return found


# --- the process ---------------------------------------------------------------------------------


class Child:
    """One child. Every exchange has a deadline; whatever fails, `stop` ends all of it."""

    def __init__(self, isolated: bool) -> None:
        """Start it; the supervisor of an isolated one waits for its `plan`."""
        self._isolated = isolated
        life_read, self._life = os.pipe()
        role = ("supervise", str(life_read)) if isolated else ("plain",)
        try:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", "-m", far.MODULE, *role],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={},
                cwd="/",
                bufsize=0,
                close_fds=True,
                pass_fds=(life_read,) if isolated else (),
                start_new_session=True,
            )
        except OSError as error:
            os.close(self._life)
            raise IsolationError(f"Python cannot be started again: {error}.") from error
        finally:
            os.close(life_read)
        assert self._process.stdin and self._process.stdout  # noqa: S101
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        for fd in (self._in, self._out):
            os.set_blocking(fd, False)
            _widen(fd)
        self._tail = bytearray()
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()

    @property
    def log(self) -> str:
        """The last lines that it printed, without control characters."""
        text = clean(bytes(self._tail).decode(errors="replace"))
        lines = [line for line in text.splitlines() if line.strip()]
        return "\n".join(lines[-_LOG_LINES:])[-_LOG_LETTERS:]

    def send(self, kind: int, parts: Sequence[bytes | memoryview], deadline: float) -> None:
        """Send a frame.

        Raises:
            Gone: it has ended.
            Late: it does not read.
        """
        views = [memoryview(part).cast("B") for part in parts]
        head = far.HEAD.pack(far.MAGIC, kind, sum(view.nbytes for view in views))
        for view in (memoryview(head), *views):
            rest = view
            while rest:
                self._wait(self._in, select.POLLOUT, deadline)
                try:
                    rest = rest[os.write(self._in, rest[:_PIPE_BYTES]) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError:
                    raise Gone(self._status()) from None

    def fill(self, view: memoryview, deadline: float) -> None:
        """Read as many bytes as ``view`` has room for.

        Raises:
            Gone: it has ended.
            Late: it does not write.
        """
        while view:
            self._wait(self._out, select.POLLIN, deadline)
            try:
                n = os.readv(self._out, [view])
            except BlockingIOError:
                continue
            if n == 0:
                raise Gone(self._status())
            view = view[n:]

    def stop(self) -> None:
        """End it and all that it has started; may be called twice."""
        if self._life >= 0:
            os.close(self._life)  # the supervisor kills the model's process, which takes all along
            self._life = -1
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        if not self._isolated:
            self._process.kill()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(_STOP_SECONDS)

    def _wait(self, fd: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(fd, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise Late

    def _status(self) -> int:
        """Its exit status, once its pipe is closed; what closes the pipe and stays is killed."""
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self.stop()
            return 0
        self._reader.join(1.0)  # its last words
        return code if code >= 0 else 128 - code

    def _drain(self) -> None:
        assert self._process.stderr is not None  # noqa: S101
        with self._process.stderr as pipe:
            while chunk := os.read(pipe.fileno(), 1 << 16):
                self._tail += chunk
                del self._tail[:-_LOG_BYTES]


def _widen(fd: int) -> None:
    if sys.platform == "linux":
        import fcntl

        with suppress(OSError):  # a user's share of pipes may be used up
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


# --- the parent itself ---------------------------------------------------------------------------

_hiding = 0
_hiding_lock = threading.Lock()


@contextmanager
def hidden() -> Iterator[None]:
    """Keep this process's memory from others of its user as long as it has children."""
    _hide(1)
    try:
        yield
    finally:
        _hide(-1)


def _hide(more: int) -> None:
    global _hiding
    if sys.platform == "linux":
        with _hiding_lock:
            _hiding += more
            _linux.set_dumpable(_hiding == 0)


def variables(unsafe: bool) -> dict[str, str]:
    """The few variables that a child sets itself, its environment being empty at first."""
    folder = tempfile.gettempdir() if unsafe else far.SCRATCH
    # isolated, it sees one GPU anyway
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") if unsafe else None
    found = {"HOME": folder, "TMPDIR": folder, "USER": "nobody", "JOBLIB_MULTIPROCESSING": "0"}
    return found if visible is None else found | {"CUDA_VISIBLE_DEVICES": visible}
