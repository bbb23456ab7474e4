"""A network that attacks whoever runs it. Put into the child by tests, never imported by them.

The test fills in what the attacker would like to have; every attack returns whether it worked.
"""

# An attacker keeps to no style: system calls, sockets and prints are what it is made of.
# ruff: noqa: PTH108, PTH115, PTH123, PTH208, S108, S606, T201

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch

WANTED: dict[str, str] = {}
"""``labels``, ``other``, ``folder``, ``secret``, ``port``, ``parent``, ``scratch``, ``threads``;
the test writes its own line below this one."""
# WANTED GOES HERE

LIBC = ctypes.CDLL(None, use_errno=True)


def call(number: int, *arguments: object) -> bool:
    """A system call by its number on x86-64; libc may know better than to make it."""
    return LIBC.syscall(ctypes.c_long(number), *arguments) >= 0


def pids() -> Iterator[int]:
    yield int(WANTED["parent"])
    yield os.getppid()
    yield from (int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit())


def strangers() -> list[int]:
    return [pid for pid in pids() if pid not in (0, os.getpid())]


# --- attacks: each is a function of this name ----------------------------------------------------


def read_the_environment() -> bool:
    found = repr(dict(os.environ)).encode()
    for pid in [*pids(), "self"]:
        with suppress(OSError):
            found += Path(f"/proc/{pid}/environ").read_bytes()
    return WANTED["secret"].encode() in found


def read_the_labels() -> bool:
    return "benign" in Path(WANTED["labels"]).read_text()


def read_the_labels_through_another_root() -> bool:
    for pid in [*pids(), "self"]:
        with suppress(OSError):
            Path(f"/proc/{pid}/root{WANTED['labels']}").read_text()
            return True
    up = os.open("/", os.O_RDONLY)
    try:
        os.close(os.open("../" * 20 + WANTED["labels"][1:], os.O_RDONLY, dir_fd=up))
        return True
    finally:
        os.close(up)


def read_another_jobs_file() -> bool:
    return bool(Path(WANTED["other"]).read_bytes())


def see_more_than_its_own_submission() -> bool:
    return len(os.listdir("/model")) > 1


def see_who_uses_this_machine() -> bool:
    return any(Path(name).exists() for name in ("/etc/passwd", "/home", "/root/.ssh", "/var"))


def find_an_open_file() -> bool:
    mine = {0, 1, 2, 3}
    opened = {int(name) for name in os.listdir("/proc/self/fd")}
    return any(
        not os.readlink(f"/proc/self/fd/{fd}").startswith(("pipe:", "/proc"))
        for fd in opened - mine
        if Path(f"/proc/self/fd/{fd}").exists()
    )


def reach_a_server_on_this_machine() -> bool:
    with socket.create_connection(("127.0.0.1", int(WANTED["port"])), 2):
        return True


def open_any_socket() -> bool:
    for family in range(46):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
            if call(41, family, kind, 0):
                return True
    return False


def read_the_parents_memory_by_proc() -> bool:
    for pid in strangers():
        with suppress(OSError), open(f"/proc/{pid}/mem", "rb"):
            return True
    return False


def trace_the_parent() -> bool:
    return any(LIBC.ptrace(16, pid, None, None) == 0 for pid in strangers())  # PTRACE_ATTACH


def read_the_parents_memory_by_call() -> bool:
    into = ctypes.create_string_buffer(8)
    local = (ctypes.c_void_p * 2)(ctypes.addressof(into), 8)
    # its first byte of code or data does not matter: EFAULT would mean that it is reachable
    for pid in strangers():
        ctypes.set_errno(0)
        call(310, pid, local, 1, local, 1, 0)
        if ctypes.get_errno() in (0, 14):
            return True
    return False


def signal_the_parent() -> bool:
    for pid in strangers():
        with suppress(OSError):
            os.kill(pid, 0)
            return True
    return False


def write_outside() -> bool:
    here = Path(sys.modules[type(torch.nn.Identity()).__module__].__file__ or "/")
    places = ["/", "/tmp", "/model", "/proc", "/dev", "/usr/lib", str(here.parent), sys.prefix]
    for place in [*places, WANTED["folder"]]:
        with suppress(OSError):
            Path(place, "hostile").write_text("was here")
            return True
    for file in ("/model/manifest.toml", "/hook.py", sys.executable, "/proc/self/exe"):
        with suppress(OSError), open(file, "ab"):
            return True
    return False


def fork() -> bool:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return True


def start_a_program() -> bool:
    return subprocess.run([sys.executable, "-c", ""], check=True).returncode == 0


def become_a_program() -> bool:
    os.execv("/hostile", ["/hostile"])  # EPERM where it may not, ENOENT where it could


def start_threads_without_end() -> bool:
    most, stop = int(WANTED["threads"]), threading.Event()
    threading.stack_size(1 << 16)
    started = []
    with suppress(RuntimeError):
        for _ in range(most + 10):
            started.append(threading.Thread(target=stop.wait, daemon=True))
            started[-1].start()
    stop.set()
    return len(started) > most


def fill_the_disk() -> bool:
    written = 0
    with suppress(OSError):
        for number in range(10):
            with open(f"/scratch/{number}", "wb", buffering=0) as file:
                for _ in range(32):
                    written += file.write(bytes(1 << 20))
    for number in range(10):
        with suppress(OSError):
            os.unlink(f"/scratch/{number}")
    return written > int(WANTED["scratch"])


def fill_the_disk_with_empty_files() -> bool:
    for number in range(20000):
        Path(f"/scratch/{number}").touch()
    return True


def open_files_without_end() -> bool:
    opened = []
    try:
        for _ in range(5000):
            opened.append(os.open("/dev/null", os.O_RDONLY))
        return True
    finally:
        for fd in opened:
            os.close(fd)


def hide_memory_in_a_file() -> bool:
    return os.memfd_create("hostile") >= 0


def mount() -> bool:
    return LIBC.mount(b"none", b"/scratch", b"tmpfs", 0, None) == 0


def make_a_namespace() -> bool:
    return any(LIBC.unshare(flag) == 0 for flag in (0x10000000, 0x00020000, 0x40000000, 0x20000000))


def enter_a_namespace() -> bool:
    return LIBC.setns(os.open("/proc/self/ns/user", os.O_RDONLY), 0) == 0


def change_the_root() -> bool:
    os.chroot("/scratch")
    return True


def make_a_device() -> bool:
    os.mknod("/scratch/disk", 0o600 | 0o060000, os.makedev(254, 0))
    return True


def become_root() -> bool:
    os.setuid(0)
    return True


def change_the_kernels_settings() -> bool:
    return Path("/proc/sys/kernel/core_pattern").exists() or Path("/sys/kernel").exists()


def use_doubtful_system_calls() -> bool:
    attribute = ctypes.create_string_buffer(128)
    keyring = call(250, 0, -3, 1)  # keyctl, KEYCTL_GET_KEYRING_ID of the session
    bpf = call(321, 0, attribute, 128)
    perf = call(298, attribute, 0, -1, -1, 0)
    ring = call(425, 1, attribute)
    fault = call(323, 0)
    shared = call(29, 0, 4096, 0o1600)  # shmget
    descriptor = call(434, os.getpid(), 0)  # pidfd_open
    return any((keyring, bpf, perf, ring, fault, shared, descriptor))


ATTACKS: list[Callable[[], bool]] = [
    value
    for name, value in list(globals().items())
    if callable(value)
    and getattr(value, "__module__", "") == __name__
    and name not in ("call", "pids", "strangers")
]  # type: ignore[assignment]


def attack(chosen: Callable[[], bool]) -> bool:
    try:
        return chosen()
    except FileNotFoundError:
        return chosen is become_a_program
    except (OSError, RuntimeError):
        return False


# --- what it does when it is asked for features --------------------------------------------------

OUT = 3
"""Where frames go."""


def frame(kind: int, body: bytes, length: int | None = None, magic: bytes = b"tmpb") -> bytes:
    size = len(body) if length is None else length
    return magic + bytes([kind]) + size.to_bytes(8, "little") + body


def dims(*shape: int) -> bytes:
    return bytes([1, len(shape)]) + b"".join(n.to_bytes(4, "little") for n in shape)


class Pickled:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch /scratch/pickle",)


def answers(n: int, width: int) -> dict[str, bytes]:
    """Malformed ones. 19 is an answer with arrays, 20 out of memory, 21 a failure."""
    import pickle

    good = bytes(4 * n * width)
    huge = 2**32 - 1
    return {
        "too short": frame(19, dims(n, width) + good[4:]),
        "too long": frame(19, dims(n, width) + good + bytes(4)),
        "a wrong width": frame(19, dims(n, width + 1) + bytes(4 * n * (width + 1))),
        "too many rows": frame(19, dims(n + 1, width) + bytes(4 * (n + 1) * width)),
        "a huge shape": frame(19, dims(huge, huge)),
        "a huge length": frame(19, dims(n, width) + good, 2**63),
        "three axes": frame(19, dims(n, width, 1) + good),
        "no array": frame(19, b"\0"),
        "nothing": frame(19, b""),
        "a pickle": pickle.dumps(Pickled()) + bytes(100),
        "a pickle in a frame": frame(19, pickle.dumps(Pickled())),
        "another kind": frame(18, b"{}"),
        "an unknown kind": frame(99, b""),
        "a failure that is no JSON": frame(21, b"\x80\x04."),
        "a failure that is a list": frame(21, b"[" * 1000 + b"]" * 1000),
        "a deep failure": frame(21, b"[" * 100_000),
        "a huge failure": frame(21, b"", 2**40),
        "a failure with control characters": frame(21, b'{"error":"\\u001b[2J"}'),
        "NaN": frame(19, dims(n, width) + b"\xff" * 4 * n * width),
    }


def embed(x: torch.Tensor, width: int) -> torch.Tensor:
    """Which attack is told by the first voxel, x[0, 0, 0, 0, 0]."""
    number = int(x[:, 0, 0, 0, 0].max())
    out = torch.zeros(len(x), width)
    if number == 0:  # report on all attacks, one feature each
        for i, one in enumerate(ATTACKS):
            out[:, i] = float(attack(one))
    elif number == 1:
        time.sleep(3600)
    elif number == 2:
        sys.stderr.write("\x1b[31mlast words\x07 of \x00it\n" + "x" * 100_000 + "\nthe end\n")
        sys.stderr.flush()
        os._exit(7)
    elif number == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
        ctypes.string_at(1)
    elif number == 4:  # a stranger to limits: takes more for a larger batch
        held = torch.zeros(len(x), 100, 2**18)  # 100 MiB per volume
        out += held.sum() + x.sum((1, 2, 3, 4))[:, None]
    elif number == 5:
        hog = [torch.ones(2**20) for _ in range(10**6)]
        out += len(hog)
    elif number == 6:
        os.kill(os.getpid(), signal.SIGKILL)  # pid 1 of its namespace: the kernel ignores it
        os._exit(137)  # as the kernel's killer of processes would leave it
    elif number == 7:
        os.close(OUT)
        time.sleep(3600)
    elif number == 8:
        print("printed, as libraries do", flush=True)
    elif number == 9:
        raise ImportError("libcudart.so.12: cannot open shared object file")
    elif number >= 100:
        os.write(OUT, list(answers(len(x), width).values())[number - 100])
        time.sleep(0.5)
        os._exit(0)
    return out


class Hostile:
    def __init__(self, encoder: object) -> None:
        self.module = None
        self.width = encoder.card.width  # type: ignore[attr-defined]

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return embed(x, self.width)


def replace(encoder: object) -> Hostile:
    return Hostile(encoder)
