"""The other side of `isolation`: closes itself off, loads a model, embeds what it is sent.

Started as ``python -I -m``, with an empty environment and three pipes, in one of three roles:

``supervise FD``
    Enters new namespaces, starts the next role as their first process and ends with it, or ends
    it when ``FD`` is closed, that is, when the parent is gone.
``serve``
    The model's process: no privilege, no network, a root of read-only binds.
``plain``
    The same without a wall around it, for ``unsafe_local``.

Messages are frames: a magic word, a kind, a length, bytes. Arrays are raw little-endian float32
behind their dimensions, everything else is JSON; nothing here or there can hold code. This module
stays with the standard library until the process is closed off: a library that starts threads
would be in the way of new namespaces.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import select
import shutil
import signal
import struct
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _linux

if TYPE_CHECKING:
    import torch

    from .load import LoadedEncoder

MODULE = "tomoprobe.submissions._isolated_child"

HEAD = struct.Struct("<4sBQ")
"""Magic word, kind and length of what follows."""
MAGIC = b"tmpb"
SETUP, START, EMBED, MAPS, BUFFERS = 1, 2, 3, 4, 5
SEALED, READY, ARRAYS, MEMORY, FAILED = 17, 18, 19, 20, 21

MODEL = "/model"
"""Where the manifest and its weights lie in the model's root."""
SCRATCH = "/scratch"
"""The one folder that the model's process can write to; memory, and gone with it."""
INSIDE = 65534
"""The user that the model runs as, as it sees it: nobody."""
MAX_MESSAGE = 4000
"""Letters of an error on its way back."""


def array_head(shapes: Sequence[Sequence[int]]) -> bytes:
    """How many arrays follow, and their dimensions."""
    head = struct.pack("<B", len(shapes))
    for shape in shapes:
        head += struct.pack(f"<B{len(shape)}I", len(shape), *shape)
    return head


# --- frames, as this side reads and writes them --------------------------------------------------


def _read(view: memoryview) -> bool:
    """Fill ``view`` from the parent; False where the parent has closed."""
    while view:
        n = os.readv(0, [view])
        if not n:
            return False
        view = view[n:]
    return True


def _read_head() -> tuple[int, int] | None:
    raw = bytearray(HEAD.size)
    if not _read(memoryview(raw)):
        return None
    _, kind, length = HEAD.unpack(raw)
    return kind, length


def _read_json(kind: int) -> dict[str, Any]:
    """The frame of that kind, which the parent always sends now."""
    head = _read_head()
    if head is None or head[0] != kind:
        raise SystemExit(0)  # the parent is gone
    raw = bytearray(head[1])
    if not _read(memoryview(raw)):
        raise SystemExit(0)
    return json.loads(raw)


def _write(out: int, kind: int, *parts: bytes | memoryview) -> None:
    views = [memoryview(part).cast("B") for part in parts]
    head = memoryview(HEAD.pack(MAGIC, kind, sum(view.nbytes for view in views)))
    for whole in (head, *views):
        rest = whole
        while rest:
            rest = rest[os.write(out, rest) :]


# --- the supervisor ------------------------------------------------------------------------------


def _supervise(life: int) -> None:
    """Start the model's process in new namespaces; end with it, and it with the parent."""
    plan = _read_json(SETUP)
    if os.geteuid() == 0:
        # Root needs no user namespace for the rest, and its mounts then belong to nobody inside.
        _linux.unshare(_linux.NAMESPACES)
    else:
        user, group = os.geteuid(), os.getegid()
        _linux.unshare(_linux.CLONE_NEWUSER | _linux.NAMESPACES)
        _map_ids(user, group)
    child = os.fork()
    if child == 0:
        os.close(life)
        _enter(plan)
    os.closerange(0, 2)  # so that the parent sees it when the model's process closes them
    watched = os.pidfd_open(child)
    if watched not in select.select([watched, life], [], [])[0]:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    raise SystemExit(status if status >= 0 else 128 - status)


def _map_ids(user: int, group: int) -> None:
    """Be `INSIDE` in the new user namespace, and nobody else."""
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{INSIDE} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{INSIDE} {group} 1")


def _enter(plan: Mapping[str, Any]) -> None:
    """As the first process of the namespaces: lose everything, then become the model's process."""
    _linux.die_with_parent()
    root = os.geteuid() == 0
    _change_root(plan, root)
    if root:
        os.setgroups([])
        os.setresgid(INSIDE, INSIDE, INSIDE)
        os.setresuid(INSIDE, INSIDE, INSIDE)
        _linux.set_dumpable(True)  # else /proc/self stays root's
        _linux.unshare(_linux.CLONE_NEWUSER)  # counts threads apart from others of this user
        _map_ids(INSIDE, INSIDE)
    _linux.die_with_parent()  # a change of user forgets it
    _linux.no_new_privileges()
    _linux.drop_capabilities()
    _limit(plan)
    # one descriptor each for the supervisor's own use could be left; a model finds three pipes
    os.closerange(3, 1 << 16)
    # A new program: its file, /proc/self/exe, then is the read-only one inside.
    os.execve(sys.executable, [sys.executable, "-I", "-m", MODULE, "serve"], {})  # noqa: S606


def _change_root(plan: Mapping[str, Any], root: bool) -> None:
    """Build a root of read-only binds on a tmpfs and enter it; the old one is gone after that."""
    safe = _linux.MS_NOSUID | _linux.MS_NODEV
    _linux.mount("none", "/", flags=_linux.MS_REC | _linux.MS_PRIVATE)
    # Two turns: what is bound may lie below the folder on which the tmpfs has to be mounted.
    _linux.mount("tmpfs", "/tmp", "tmpfs", safe, "mode=755")  # noqa: S108
    for name in ("old", "new"):
        Path("/tmp", name).mkdir()  # noqa: S108
    _linux.pivot_root("/tmp", "/tmp/old")  # noqa: S108
    os.chdir("/")
    _linux.bind("/new", "/new")
    for source, target in plan["binds"]:
        _show(f"/old{source}", f"/new{target}", root)
    for source in plan["devices"]:
        _place(f"/old{source}", f"/new{source}")
        _linux.bind(f"/old{source}", f"/new{source}")
        _linux.restrict(f"/new{source}", _linux.ATTR_NOSUID | _linux.ATTR_NOEXEC)
    for target, points_to in plan["links"]:
        if not Path(f"/new{target}").exists():
            Path(f"/new{target}").symlink_to(points_to)
    for folder in ("/new/proc/pids", f"/new{SCRATCH}"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    # Processes only, beside the facts about the machine in the plan: neither settings nor tasks.
    _linux.mount("proc", "/new/proc/pids", "proc", safe | _linux.MS_NOEXEC, "subset=pid")
    for name in ("self", "thread-self"):
        Path(f"/new/proc/{name}").symlink_to(f"pids/{name}")
    limit = f"mode=1777,size={plan['scratch']},nr_inodes=1024"
    _linux.mount("tmpfs", f"/new{SCRATCH}", "tmpfs", safe | _linux.MS_NOEXEC, limit)
    os.chdir("/new")
    _linux.pivot_root(".", ".")
    _linux.detach(".")  # the old root lies on top of the new one
    os.chdir("/")
    _linux.restrict("/", _linux.ATTR_RDONLY, recursive=False)


def _place(source: str, target: str) -> None:
    """An empty file or folder to mount on."""
    if Path(source).is_dir():
        Path(target).mkdir(parents=True, exist_ok=True)
    else:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(target).touch()


def _show(source: str, target: str, root: bool) -> None:
    """Bind a file or folder read-only, or copy a file that only its owner may read."""
    _place(source, target)
    if root and Path(source).is_file() and not Path(source).stat().st_mode & 0o004:
        shutil.copyfile(source, target)  # as root we may, as the model's user we could not
        Path(target).chmod(0o444)
        return
    _linux.bind(source, target)
    only = _linux.ATTR_RDONLY | _linux.ATTR_NOSUID | _linux.ATTR_NODEV
    _linux.restrict(target, only)


def _limit(plan: Mapping[str, Any]) -> None:
    for what, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, plan["scratch"]),
        (resource.RLIMIT_NOFILE, plan["open_files"]),
        (resource.RLIMIT_NPROC, plan["threads"]),
    ):
        resource.setrlimit(what, (value, value))


# --- the model's process -------------------------------------------------------------------------


def _serve(closed: bool) -> None:
    """Load the model and answer until the parent closes the pipe."""
    start = _read_json(START)
    # What libraries print must not get between the frames.
    out = os.dup(1)
    os.dup2(2, 1)
    if closed:
        _linux.filter_system_calls(start["gpu"])
        if _linux.has_capabilities() or not _linux.is_sealed():
            raise SystemExit("this process still has privileges")
    if sys.platform == "linux":
        _linux.few_arenas()
    _write(out, SEALED)
    if start["spec"] is None:
        return  # all there was to find out
    os.environ.update(start["environment"])
    try:
        encoder = _load(start)
        ready = {
            "width": encoder.card.width,
            "strides": encoder.card.strides,
            "parameters": encoder.card.parameters,
            "identity": encoder.manifest,
            "buffers": encoder.module is not None,
        }
    except Exception as error:
        _fail(out, error)
        return
    hook = start["hook"]
    served = encoder if hook is None else _hooked(Path(hook), encoder)
    _write(out, READY, json.dumps(ready).encode())
    while (head := _read_head()) is not None:
        if not _answer(out, served, *head):
            return


def _load(start: Mapping[str, Any]) -> LoadedEncoder:
    import torch

    torch.set_num_threads(start["torch_threads"])
    from .load import load

    _limit_memory(start["memory"], start["gpu"])
    return load(start["spec"], device=start["device"])


def _limit_memory(memory: int, gpu: bool) -> None:
    """So much more than the libraries have taken by now."""
    page = resource.getpagesize()
    try:
        fields = Path("/proc/self/statm").read_text().split()
    except OSError:  # no Linux: not closed off either
        return
    # size and data. CUDA reserves addresses for all memory of the machine and its GPUs: there
    # only what can be written counts.
    what, used = (resource.RLIMIT_DATA, fields[5]) if gpu else (resource.RLIMIT_AS, fields[0])
    limit = int(used) * page + memory
    resource.setrlimit(what, (limit, limit))


def _hooked(path: Path, encoder: LoadedEncoder) -> Any:
    """What a test puts in the model's place; the file is in the parent's hand alone."""
    spec = importlib.util.spec_from_file_location("hook", path)
    assert spec is not None and spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.replace(encoder)


def _answer(out: int, encoder: LoadedEncoder, kind: int, length: int) -> bool:
    """Answer one request; False where the process has to be replaced."""
    import numpy as np
    import torch

    try:
        raw = np.empty(length, np.uint8)
        if not _read(raw.data):
            return False
        if kind == BUFFERS:
            _write(out, BUFFERS, _buffers(encoder.module))
            return True
        dims = struct.unpack_from("<5I", raw.data)
        x = torch.empty(dims)  # aligned as torch likes it
        x.numpy().reshape(-1)[:] = raw[20:].view("<f4")
        del raw
        with torch.inference_mode():
            made = [encoder.embed(x)] if kind == EMBED else encoder.maps(x)
            arrays = [np.ascontiguousarray(y.float().cpu().numpy()) for y in made]
        parts = [array.reshape(-1).data for array in arrays if array.size]
        _write(out, ARRAYS, array_head([array.shape for array in arrays]), *parts)
    except BrokenPipeError:
        return False
    except Exception as error:  # a network can fail in any way
        if not _of_memory(error):
            _fail(out, error)
            return True
        _write(out, MEMORY)
        return False  # what an interrupted kernel leaves behind is not to be trusted
    return True


def _buffers(module: torch.nn.Module | None) -> bytes:
    """32 bytes that change when a buffer does."""
    import hashlib

    import torch

    digest = hashlib.sha256()
    for name, buffer in () if module is None else module.named_buffers():
        digest.update(name.encode())
        digest.update(buffer.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def _of_memory(error: Exception) -> bool:
    import torch

    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    # torch's and onnxruntime's allocators on a CPU have no error of their own
    words = (
        "can't allocate memory",
        "cannot allocate memory",
        "not enough memory",
        "bad_alloc",
        "failed to allocate memory",
    )
    return any(word in str(error).lower() for word in words)


def _fail(out: int, error: Exception) -> None:
    traceback.print_exception(error)
    what, message = type(error).__name__, str(error)
    if _of_memory(error):
        what = "memory"
    elif isinstance(error, (ImportError, OSError)):
        # a network is data and opens nothing: what is missing is missing on this machine
        what, message = "InstallationError", f"{what}: {message}"
    told = json.dumps({"error": what, "message": message[:MAX_MESSAGE]})
    _write(out, FAILED, told.encode())


def main() -> None:
    """Run in the role that the parent named."""
    role = sys.argv[1]
    if role == "supervise":
        try:
            _supervise(int(sys.argv[2]))
        except OSError as error:
            raise SystemExit(str(error)) from None
    elif role == "plain":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _serve(closed=False)
    else:
        _serve(closed=True)


if __name__ == "__main__":
    main()
