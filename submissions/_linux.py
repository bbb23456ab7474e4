"""The calls of the Linux kernel that close a process off, which Python's library does not have.

Only the standard library: what calls this has to be single-threaded and quick to start.
Numbers are from the kernel's headers (``linux/sched.h``, ``linux/mount.h``, ``linux/prctl.h``,
``linux/seccomp.h``, ``linux/bpf_common.h``, ``asm/unistd_64.h``, ``asm-generic/unistd.h``).
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys
from contextlib import suppress

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
NAMESPACES = (
    CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
)
"""All but the user namespace."""

MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x2, 0x4, 0x8
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2

ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 0x1, 0x2, 0x4, 0x8
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000

_PR_SET_PDEATHSIG = 1
_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4
_PR_GET_SECCOMP, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 21, 22, 2
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS, _PR_GET_NO_NEW_PRIVS = 38, 39
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION = 0x20080522

_SIGKILL, _EPERM, _EINVAL, _ENOSYS = 9, 1, 22, 38

# asm/unistd_64.h of x86-64, asm-generic/unistd.h of arm64
_MACHINES = ("x86_64", "aarch64")
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_UNSHARE = {"x86_64": 272, "aarch64": 97}
_CAPGET = {"x86_64": 125, "aarch64": 90}
_CAPSET = {"x86_64": 126, "aarch64": 91}
_MOUNT_SETATTR = 442
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435
_CLONE_THREAD = 0x00010000
_X32 = 0x40000000

_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # other processes and their memory
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "perf_event_open": (298, 241),
    # new processes and programs: threads are all that a network needs
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    # namespaces, roots and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "chroot": (161, 51),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "statmount": (457, 457),
    "listmount": (458, 458),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "acct": (163, 89),
    # the network: no family at all, not even between threads
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    # memory that no limit of the process counts, and messages to others
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_secret": (447, 447),
    # parts of the kernel with a history
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    "lookup_dcookie": (212, 18),
    "modify_ldt": (154, None),
    "iopl": (172, None),
    "ioperm": (173, None),
    "vmsplice": (278, 75),
    "personality": (135, 92),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    # the machine
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
}
"""System calls that are answered EPERM: (x86-64, arm64), None where there is none.

A list of what is refused, not of what is allowed: torch, its threads and a driver of a GPU use
calls that change with every version. It is the last of several walls: namespaces, no capability
and no second user stand before it.
"""
_REFUSED_WITHOUT_GPU: dict[str, tuple[int, int]] = {"memfd_create": (319, 279)}
"""CUDA keeps code in such memory; elsewhere it would only escape the limit."""


def machine() -> str:
    """The processor's name; OSError where its system calls are not known here."""
    name = platform.machine()
    if name not in _MACHINES:
        raise OSError(_ENOSYS, f"processors of type '{name}' are not known here")
    return name


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _call(number: int, what: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char]) -> int:
    # as a long each: a bare int would be passed as 32 bits
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    call = _libc().syscall
    call.restype = ctypes.c_long
    return _check(call(ctypes.c_long(number), *wide), what)


def _prctl(option: int, *arguments: int) -> int:
    rest = [ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4]]
    return _check(_libc().prctl(option, *rest), f"prctl {option}")


# --- namespaces and mounts -----------------------------------------------------------------------


def unshare(flags: int) -> None:
    """Enter new namespaces."""
    _call(_UNSHARE[machine()], "unshare", flags)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Mount a file system, or a part of one."""
    result = _libc().mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()
    )
    _check(result, f"mount {kind or source} on {target}")


def bind(source: str, target: str) -> None:
    """Show a file or folder, with what is mounted below it, at a second place."""
    mount(source, target, flags=MS_BIND | MS_REC)


def restrict(target: str, attributes: int, recursive: bool = True) -> None:
    """Add attributes to a mount; those that it has stay (Linux 5.12)."""
    size = struct.pack("=QQQQ", attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    what = f"mount_setattr {target}"
    _call(_MOUNT_SETATTR, what, _AT_FDCWD, target.encode(), flags, size, len(size))


def pivot_root(new: str, old: str) -> None:
    """Make ``new`` the root and put the old one at ``old``."""
    _call(_PIVOT_ROOT[machine()], "pivot_root", new.encode(), old.encode())


def detach(target: str) -> None:
    """Unmount at once, whoever still uses it."""
    _check(_libc().umount2(target.encode(), _MNT_DETACH), f"umount {target}")


# --- privileges ----------------------------------------------------------------------------------


def die_with_parent() -> None:
    """SIGKILL for this process when the thread that made it ends."""
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)


def set_dumpable(dumpable: bool) -> None:
    """Whether processes of the same user may read this one's memory."""
    _prctl(_PR_SET_DUMPABLE, int(dumpable))


def is_dumpable() -> bool:
    """See `set_dumpable`."""
    return _prctl(_PR_GET_DUMPABLE) == 1


def drop_capabilities() -> None:
    """All of them, for good: bounding, ambient, inheritable, permitted and effective."""
    for capability in range(64):
        try:
            _prctl(_PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno == _EINVAL:  # one more than this kernel knows
                break
            raise
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    _call(_CAPSET[machine()], "capset", header, bytes(24))


def has_capabilities() -> bool:
    """Whether this process holds any."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    held = ctypes.create_string_buffer(24)
    _call(_CAPGET[machine()], "capget", header, held)
    return any(held.raw)


def no_new_privileges() -> None:
    """No program that this process starts can gain any."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def is_sealed() -> bool:
    """Whether no privilege can be gained and a filter of system calls is in force."""
    return _prctl(_PR_GET_NO_NEW_PRIVS) == 1 and _prctl(_PR_GET_SECCOMP) == _SECCOMP_MODE_FILTER


_M_ARENA_MAX = -8
"""Of glibc's ``malloc.h``."""


def few_arenas() -> None:
    """Let threads share their heaps: each has 64 MiB of addresses set aside, which limits count."""
    mallopt = getattr(_libc(), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)


# --- the filter of system calls ------------------------------------------------------------------

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data


def filter_program(gpu: bool) -> bytes:
    """The filter as BPF instructions, 8 bytes each."""
    name = machine()
    column = _MACHINES.index(name)

    def step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("=HBBI", code, yes, no, value)

    program = [
        step(_LOAD, _ARCHITECTURE),
        step(_JUMP_EQUAL, _AUDIT_ARCH[name], 1, 0),
        step(_RETURN, _KILL),  # the calls of 32-bit programs have other numbers
        step(_LOAD, _NUMBER),
    ]
    if name == "x86_64":
        program += [step(_JUMP_AT_LEAST, _X32, 0, 1), step(_RETURN, _KILL)]
    refused = {**_REFUSED, **({} if gpu else _REFUSED_WITHOUT_GPU)}
    for numbers in refused.values():
        number = numbers[column]
        if number is not None:
            program += [step(_JUMP_EQUAL, number, 0, 1), step(_RETURN, _ERRNO | _EPERM)]
    program += [
        # its flags lie in memory, out of a filter's sight; libc falls back to clone
        step(_JUMP_EQUAL, _CLONE3, 0, 1),
        step(_RETURN, _ERRNO | _ENOSYS),
        step(_JUMP_EQUAL, _CLONE[name], 0, 3),
        step(_LOAD, _FIRST_ARGUMENT),
        step(_JUMP_ANY_BIT, _CLONE_THREAD, 1, 0),
        step(_RETURN, _ERRNO | _EPERM),
        step(_RETURN, _ALLOW),
    ]
    return b"".join(program)


def filter_system_calls(gpu: bool) -> None:
    """Refuse `_REFUSED` to this process from now on; it has to be single-threaded.

    Args:
        gpu: whether CUDA will run.
    """
    program = ctypes.create_string_buffer(filter_program(gpu))
    head = struct.pack("=HxxxxxxQ", (len(program) - 1) // 8, ctypes.addressof(program))
    held = ctypes.create_string_buffer(head)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(held))


def close_off(memory: int, seconds: int) -> None:
    """This process gets no new file, socket or process; little memory and time.

    Args:
        memory: bytes beyond what it takes now.
        seconds: of a processor.
    """
    linux = sys.platform == "linux"
    pages = int(open("/proc/self/statm").read().split()[0]) if linux else 0  # noqa: SIM115, PTH123
    for what, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_AS, pages * resource.getpagesize() + memory),
    ):
        resource.setrlimit(what, (value, value))
    if linux:
        no_new_privileges()
        with suppress(OSError):  # a machine whose calls we do not know keeps the limits above
            filter_system_calls(gpu=False)
