"""An encoder whose network runs in a child: asks it, and checks whatever it answers."""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np

from ..benchmark.errors import EncoderError, InstallationError, IsolationError, ManifestError
from ..benchmark.types import EncoderCard
from . import _isolated_child as far
from ._isolated_process import Child, Gone, Late, Limits, gpu, plan, variables
from .job_log import clean
from .manifest import Manifest, card_identity, model_sha, read

if TYPE_CHECKING:
    import torch

_MAX_JSON = 1 << 20
_MAX_WIDTH = 1 << 20
"""Features: twice a million would be no embedding any more."""
_MAX_MAPS = 64
_MAX_PARAMETERS = 1 << 50
_KILLED, _ABORTED = 128 + 9, 128 + 6  # SIGKILL, SIGABRT as a shell counts them


class _OutOfMemory(Exception):
    """The child ran into its limit, or the machine's."""


class _Killed(_OutOfMemory):
    """Not by its own limit, which it can tell: by the machine, short of memory, or by somebody."""


class _Buffers:
    """Stands for a network where only its buffers are asked for, see `features.extract`."""

    def __init__(self, encoder: IsolatedEncoder) -> None:
        self._encoder = encoder

    def named_buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        import torch

        yield "sha256", torch.frombuffer(bytearray(self._encoder.buffers()), dtype=torch.uint8)


class IsolatedEncoder:
    """A frozen encoder whose network runs in a child. Satisfies `FrozenEncoder`.

    Volumes reach the child in the order in which they are given: whoever gives cases gives them in
    an order that tells nothing, as `features.extract` does.
    """

    shuffled = True
    """`features.extract` sends its batches in random order."""

    def __init__(
        self, path: Path, device: str, limits: Limits, unsafe: bool, hook: Path | None
    ) -> None:
        """As `isolation.opened`; no child yet."""
        self.device = device
        self.unsafe = unsafe
        """It runs without isolation."""
        self._limits = limits
        self._manifest = read(path)
        self._name = self._manifest.name
        self._setup, self._start = _orders(path, self._manifest, device, limits, unsafe, hook)
        self._child: Child | None = None
        self._log = ""
        self._ready: dict[str, Any] | None = None
        self._largest: int | None = None  # volumes per request, once memory has run out

    # --- identity --------------------------------------------------------------------------------

    @property
    def card(self) -> EncoderCard:
        """Of the manifest; width, strides and the number of parameters are the network's."""
        return _card(self._manifest, self._known())

    @property
    def manifest(self) -> Mapping[str, Any]:
        """The canonical manifest, as `LoadedEncoder` has it."""
        return self._known()["identity"]

    @property
    def model_sha(self) -> str:
        """Of the canonical manifest."""
        return model_sha(self.manifest)

    @property
    def module(self) -> torch.nn.Module | None:
        """Stands for the child's network where its buffers are asked for; None if it has none."""
        return cast("torch.nn.Module", _Buffers(self)) if self._known()["buffers"] else None

    @property
    def log(self) -> str:
        """The last lines that the child printed, without control characters."""
        return self._log if self._child is None else self._child.log

    # --- features --------------------------------------------------------------------------------

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) on any device -> (B, F) on the CPU.

        Raises:
            EncoderError: the child fails, ends, hangs, runs out of memory or answers nonsense.
            IsolationError: it is killed again and again, or this machine lacks what it needs.
        """
        return self._run(far.EMBED, x)[0]

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, X, Y, Z) -> maps (B, C_i, x_i, y_i, z_i) on the CPU, fine to coarse.

        Raises:
            EncoderError: as `embed`, or the encoder has no maps.
        """
        if not self.card.strides:
            raise EncoderError(
                f"Encoder '{self._name}' has no maps, only an embedding. Dense tasks need "
                "maps(x) and the strides on the card."
            )
        return self._run(far.MAPS, x)

    def buffers(self) -> bytes:
        """32 bytes that stay the same as long as the network's buffers do.

        Raises:
            EncoderError: the child fails, ends, hangs, runs out of memory or answers nonsense.
            IsolationError: it is killed, or this machine lacks what it needs.
        """
        try:
            with self._exchange("telling its buffers") as (child, deadline):
                child.send(far.BUFFERS, (), deadline)
                length = self._expect(child, deadline, far.BUFFERS, 32)
                digest = bytearray(length)
                child.fill(memoryview(digest), deadline)
        except _Killed:
            raise IsolationError(
                f"The process of encoder '{self._name}' was killed while telling its buffers. Look "
                "whether the machine is short of memory, and try again."
            ) from None
        except _OutOfMemory:
            raise EncoderError(
                f"Encoder '{self._name}' needs more memory than its process may take "
                f"({self._limits.memory / 2**30:.3g} GiB) to tell its buffers. Use a smaller "
                "network."
            ) from None
        return bytes(digest)

    def _run(self, kind: int, x: torch.Tensor) -> list[torch.Tensor]:
        import torch

        volumes = x.detach().cpu().numpy()
        card = self.card
        wanted = (card.channels + card.region, *card.grid.shape)
        if volumes.dtype != np.float32 or volumes.shape[1:] != wanted or not len(volumes):
            raise EncoderError(
                f"Encoder '{self._name}' got {volumes.dtype} of shape {volumes.shape}; float32 "
                f"(B, {', '.join(map(str, wanted))}) is expected."
            )
        parts: list[list[np.ndarray]] = []
        start, killed = 0, False
        while start < len(volumes):
            batch = volumes[start : start + (self._largest or len(volumes))]
            try:
                parts.append(self._ask(kind, np.ascontiguousarray(batch)))
            except _OutOfMemory as error:
                by_others = isinstance(error, _Killed)
                if by_others and not killed:
                    killed = True  # once more: it may have had nothing to do with this batch
                    continue
                if by_others and len(batch) == 1:
                    raise IsolationError(
                        f"The process of encoder '{self._name}' was killed twice at one volume, "
                        "and not by its own limit of memory. Look whether the machine is short of "
                        "memory, and try again."
                    ) from None
                if len(batch) == 1:
                    raise EncoderError(
                        f"Encoder '{self._name}' needs more memory than there is on {self.device} "
                        f"(its process may take {self._limits.memory / 2**30:.3g} GiB) even with a "
                        "batch of one. Use a smaller grid or network."
                    ) from None
                self._largest, killed = len(batch) // 2, False
                continue
            start, killed = start + len(batch), False
        return [torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*parts, strict=True)]

    def _ask(self, kind: int, x: np.ndarray) -> list[np.ndarray]:
        """One batch, in this order: to the child, and its checked answer."""
        with self._exchange(f"embedding {len(x)} volumes") as (child, deadline):
            dims = struct.pack("<5I", *x.shape)
            child.send(kind, (dims, x.reshape(-1).data), deadline)
            length = self._expect(child, deadline, far.ARRAYS, self._limits.result)
            wanted = [self._known()["width"]] if kind == far.EMBED else self._known()["strides"]
            n_axes = 2 if kind == far.EMBED else 5
            head = bytearray(min(length, 1 + (1 + 4 * n_axes) * len(wanted)))
            child.fill(memoryview(head), deadline)
            shapes = self._shapes(bytes(head), n_axes, len(wanted))
            for shape, fact in zip(shapes, wanted, strict=True):
                self._check_shape(kind, len(x), shape, fact)
            if length != len(head) + 4 * sum(map(math.prod, shapes)):
                raise self._nonsense(f"{length} bytes for arrays of the shapes {shapes}")
            arrays = [np.empty(shape, "<f4") for shape in shapes]
            for array in arrays:
                child.fill(array.reshape(-1).data.cast("B"), deadline)
            bad = [~np.isfinite(array.reshape(len(x), -1)).all(1) for array in arrays]
        if n := int(np.logical_or.reduce(bad).sum()):
            raise EncoderError(
                f"Encoder '{self._name}' returned NaN or infinity for {n} of {len(x)} volumes. "
                "Features have to be finite: look for a division by a zero SD or an overflow in "
                "half precision."
            )
        return arrays

    def _shapes(self, head: bytes, n_axes: int, count: int) -> list[tuple[int, ...]]:
        """The dimensions at the head of an answer of that many arrays."""
        step = 1 + 4 * n_axes
        bodies = [head[1 + i * step : 1 + (i + 1) * step] for i in range(count)]
        if head[:1] != bytes([count]) or any(
            len(body) != step or body[0] != n_axes for body in bodies
        ):
            raise self._nonsense(f"something other than {count} arrays of {n_axes} axes")
        return [struct.unpack(f"<{n_axes}I", body[1:]) for body in bodies]

    def _check_shape(self, kind: int, n: int, shape: tuple[int, ...], fact: int) -> None:
        """An embedding's ``fact`` is its width, a map's its stride."""
        if kind == far.EMBED:
            right, promised = shape == (n, fact), f"({n}, {fact})"
        else:
            grid = self._manifest.grid.shape
            axes = [(size // fact, -(-size // fact)) for size in grid]
            right = shape[0] == n and 0 < shape[1] <= _MAX_WIDTH
            right &= all(low <= x <= high for x, (low, high) in zip(shape[2:], axes, strict=True))
            promised = f"({n}, C, {', '.join(str(high) for _, high in axes)})"
        if not right:
            raise EncoderError(
                f"Encoder '{self._name}' returned an array of shape {shape} for {n} volumes; its "
                f"card promises {promised}. Correct the network or the card."
            )

    # --- the child -------------------------------------------------------------------------------

    def start(self) -> None:
        """Start a child and have it load the model.

        Raises:
            IsolationError: it could not be closed off, or was killed.
            ManifestError: the manifest, arguments or weights do not fit.
            EncoderError: the model cannot be loaded within its limits.
        """
        child = Child(isolated=not self.unsafe)
        self._child = child
        deadline = time.monotonic() + self._limits.start_seconds
        head = bytearray(far.HEAD.size)
        try:
            if self._setup is not None:
                child.send(far.SETUP, [self._setup], deadline)
            child.send(far.START, [self._start], deadline)
            child.fill(memoryview(head), deadline)
        except (Gone, Late) as error:
            self.close()
            raise IsolationError(
                f"The process for encoder '{self._name}' could not be closed off "
                f"({error}): {self._log or 'it said nothing'}"
            ) from None
        try:
            with self._exchange("loading the model", deadline):
                length = self._expect(child, deadline, far.READY, _MAX_JSON)
                ready = self._check_ready(self._json(child, deadline, length))
        except _Killed:
            raise IsolationError(
                f"The process of encoder '{self._name}' was killed while loading the model. Look "
                "whether the machine is short of memory, and try again."
            ) from None
        except _OutOfMemory:
            self.close()
            raise EncoderError(
                f"Encoder '{self._name}' does not fit into memory: its process may take "
                f"{self._limits.memory / 2**30:.3g} GiB beside torch. Use a smaller network."
            ) from None
        if self._ready is not None and ready != self._ready:
            raise self._nonsense("another identity than at first")
        self._ready = ready

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.stop()
            self._log = self._child.log
            self._child = None

    def _known(self) -> dict[str, Any]:
        if self._ready is None:
            self.start()
        assert self._ready is not None  # noqa: S101
        return self._ready

    @contextmanager
    def _exchange(self, doing: str, deadline: float | None = None) -> Iterator[tuple[Child, float]]:
        """Speak with the child, a new one if need be; after a failure it is not spoken to again."""
        if self._child is None:
            self.start()
        child = self._child
        assert child is not None  # noqa: S101
        started = time.monotonic()
        if deadline is None:
            deadline = started + self._limits.batch_seconds
        try:
            yield child, deadline
        except Late:
            self.close()
            raise EncoderError(
                f"Encoder '{self._name}' was stopped: {doing} took longer than its limit of "
                f"{deadline - started:.3g} s. Use a smaller grid or network."
            ) from None
        except Gone as gone:
            self.close()
            if gone.code == _KILLED:
                raise _Killed from None
            if gone.code == _ABORTED and "bad_alloc" in self._log:
                raise _OutOfMemory from None
            raise EncoderError(
                f"The process of encoder '{self._name}' ended ({gone}) while {doing}. Its last "
                f"lines: {self._log or 'none'}"
            ) from None
        except BaseException:
            self.close()  # an answer may be half read
            raise

    def _expect(self, child: Child, deadline: float, kind: int, largest: int) -> int:
        """Read the head of an answer of that kind and return its length."""
        head = bytearray(far.HEAD.size)
        child.fill(memoryview(head), deadline)
        magic, found, length = far.HEAD.unpack(head)
        if magic == far.MAGIC and found == far.MEMORY and length == 0:
            raise _OutOfMemory
        if magic == far.MAGIC and found == far.FAILED and length <= _MAX_JSON:
            self._raise(self._json(child, deadline, length))
        if magic != far.MAGIC or found != kind:
            raise self._nonsense(f"the bytes {bytes(head[:8]).hex()}")
        if length > largest:
            raise self._nonsense(f"{length} bytes where at most {largest} are allowed")
        return length

    def _json(self, child: Child, deadline: float, length: int) -> dict[str, Any]:
        raw = bytearray(length)
        child.fill(memoryview(raw), deadline)
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError):
            raise self._nonsense("text that is no JSON") from None
        if not isinstance(value, dict):
            raise self._nonsense("JSON that is no table")
        return value

    def _raise(self, told: Mapping[str, Any]) -> NoReturn:
        """The child's error as ours; only what a model can be to blame for."""
        kind = told.get("error")
        message = clean(str(told.get("message")))[: far.MAX_MESSAGE]
        if kind == "memory":
            raise _OutOfMemory
        if kind == "ManifestError":
            raise ManifestError(message)
        if kind == "EncoderError":
            raise EncoderError(message)
        if kind == "InstallationError":
            raise InstallationError(
                f"Encoder '{self._name}' cannot be run on this machine: {message}"
            )
        raise EncoderError(f"Encoder '{self._name}' fails: {clean(str(kind))[:80]}: {message}")

    def _nonsense(self, what: str) -> EncoderError:
        return EncoderError(
            f"The process of encoder '{self._name}' answered {what}; no network of ours does. It "
            "was stopped."
        )

    def _check_ready(self, ready: Mapping[str, Any]) -> dict[str, Any]:
        """The facts of a loaded network, each within its bounds and fitting the manifest."""
        facts = {key: ready.get(key) for key in ("width", "strides", "parameters", "identity")}
        width, strides, parameters, identity = facts.values()
        sane = (
            _is_count(width, 1, _MAX_WIDTH)
            and _is_count(parameters, 0, _MAX_PARAMETERS)
            and isinstance(strides, list)
            and len(strides) <= _MAX_MAPS
            and all(_is_count(stride, 1, max(self._manifest.grid.shape)) for stride in strides)
            and isinstance(identity, dict)
        )
        if not sane:
            raise self._nonsense("impossible facts about its network")
        identity = cast("dict[str, Any]", identity)
        card = _card(self._manifest, facts)
        wanted = {"card": card_identity(card), "readout": card.readout, "seed": self._manifest.seed}
        for key, value in wanted.items():
            if identity.get(key) != json.loads(json.dumps(value)):
                raise self._nonsense(f"a '{key}' that is not its manifest's")
        return {**facts, "buffers": ready.get("buffers") is True}


def _is_count(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _card(manifest: Manifest, facts: Mapping[str, Any]) -> EncoderCard:
    return manifest.card(facts["width"], tuple(facts["strides"]), facts["parameters"])


def _orders(
    path: Path, manifest: Manifest, device: str, limits: Limits, unsafe: bool, hook: Path | None
) -> tuple[bytes | None, bytes]:
    """What the supervisor (None: there is none) and the child are told."""
    import torch

    files = {f"{far.MODEL}/manifest.toml": path}
    for table in (manifest.weights, getattr(manifest, "onnx", None)):
        if table is not None:
            source = path.parent / table.file
            if not source.is_file():
                raise ManifestError(
                    f"Manifest '{path}' names the file '{table.file}', which is not beside it. Put "
                    "it there."
                )
            files[f"{far.MODEL}/{table.file}"] = source
    if hook is not None:
        files["/hook.py"] = hook
    on_gpu = device.startswith("cuda")
    threads = torch.get_num_threads()  # sums in another order would have other last digits
    start = {
        "spec": str(path.resolve()) if unsafe else f"{far.MODEL}/manifest.toml",
        "device": "cuda:0" if on_gpu and not unsafe else device,
        "gpu": on_gpu,
        "memory": limits.memory,
        "torch_threads": threads,
        "environment": variables(unsafe) | {"OMP_NUM_THREADS": str(threads)},
        "hook": None if hook is None else str(hook.resolve()) if unsafe else "/hook.py",
    }
    devices: Sequence[str] = gpu(device) if on_gpu and not unsafe else ()
    setup = None if unsafe else json.dumps(plan(files, limits, devices)).encode()
    return setup, json.dumps(start).encode()
