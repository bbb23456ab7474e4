"""Checkpoints on their owner's machine: the one place that opens a pickle, and only as data.

``torch.load(weights_only=True)`` builds tensors and plain containers and refuses the rest. That has
been broken before (CVE-2025-32434, CVE-2026-24747), so that servers and workers never come here:
they read safetensors alone. `tomoprobe inspect` and `tomoprobe pack` do, for files that their user
chose.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..benchmark.errors import IntakeError
from .file_formats import described
from .headers import read_header, shown

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
"""Of the files that are opened here."""

_TEACHERS = ("teacher", "model_ema", "ema", "target_encoder")
"""Where self-distillation and weight averaging keep the network that is used afterwards."""

_TRAINING = re.compile(r"optim|sched|scaler|rng|loops|callbacks|lr_", re.IGNORECASE)
_DEPTH = 4
"""How deep state dicts are looked for."""
_MOST_PADDING = 1.5
"""Declared by unpacked size per byte of file: a stored zip's entries fit into the file."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one network in a file, and what else is there."""

    path: Path
    format: str
    """In words."""
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    """As torch spells them, without ``torch.``."""
    part: str
    """Where in the file the tensors are, keys joined by ``/``; empty: at the top."""
    others: tuple[str, ...]
    """Further parts that hold networks."""
    baggage: tuple[str, ...]
    """What else the file holds, in words."""
    tensor: Callable[[str], torch.Tensor]
    """One tensor by its name."""

    def renamed(self, names: Mapping[str, str]) -> Checkpoint:
        """The same with other beginnings of names; each the first that matches, ``{old: new}``.

        Raises:
            IntakeError: two tensors would have the same name.
        """
        new: dict[str, str] = {}
        for key in self.shapes:
            old = next((old for old in names if key.startswith(old)), None)
            name = key if old is None else names[old] + key.removeprefix(old)
            if name in new:
                raise _refused(
                    "rename-collision",
                    f"{shown(key)} and {shown(new[name])} would both be called {shown(name)}.",
                    "Rename fewer, or to something else.",
                )
            new[name] = key
        tensor = self.tensor
        return replace(
            self,
            shapes={name: self.shapes[key] for name, key in new.items()},
            dtypes={name: self.dtypes[key] for name, key in new.items()},
            tensor=lambda name: tensor(new[name]),
        )


def open_checkpoint(path: Path, part: str | None = None) -> Checkpoint:
    """Open a checkpoint without running anything in it.

    Args:
        path: of a .safetensors file, or of what ``torch.save`` wrote.
        part: where in the file the tensors are, as `Checkpoint.part`; None: of a teacher and a
            student the teacher, else the part with the most tensors.

    Raises:
        IntakeError: no such file, another format, a broken or compressed archive, TorchScript, a
            pickle that needs code, or no tensors.
    """
    try:
        with path.open("rb") as file:
            first = file.read(16)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not first:
        raise _refused("file-empty", f"'{path}' is empty.", "Copy it again.")
    if path.suffix == ".onnx":
        raise _refused(
            "not-a-checkpoint",
            f"'{path}' is a graph, not a checkpoint.",
            "Export it anew with `tomoprobe pack --onnx package.module:factory`, or write a "
            "manifest with [onnx] beside it.",
        )
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    known = described(first)
    if first.startswith(b"PK"):
        _check_zip(path)
    elif known is not None and "pickle" not in known:
        raise _refused(
            "not-a-checkpoint",
            f"'{path}' is {known}.",
            f"Unpack it if it is an archive; then give a {', '.join(SUFFIXES)} or .onnx file.",
        )
    return _pick(path, _load(path, mapped=first.startswith(b"PK")), part)


def _unreadable(path: Path, error: OSError) -> IntakeError:
    return _refused(
        "file-unreadable",
        f"'{path}' cannot be read ({error.strerror}).",
        "Give the path of a checkpoint.",
    )


# --- formats -------------------------------------------------------------------------------------


def _open_safetensors(path: Path) -> Checkpoint:
    try:
        header = read_header(path)
    except OSError as error:
        raise _unreadable(path, error) from error

    def tensor(name: str) -> torch.Tensor:
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                return file.get_tensor(name)
        except SafetensorError as error:
            raise _refused("checkpoint-broken", f"'{path}': {error}.", "Copy it again.") from error

    return Checkpoint(
        path,
        "safetensors",
        {name: info.shape for name, info in header.tensors.items()},
        {name: _TORCH_NAMES[info.dtype] for name, info in header.tensors.items()},
        "",
        (),
        tuple(f"metadata {shown(k)}: {shown(v)}" for k, v in header.metadata.items()),
        tensor,
    )


_TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"} | {
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def _check_zip(path: Path) -> None:
    """An archive as ``torch.save`` writes it: stored, not compressed, and without code."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _refused(
            "checkpoint-broken",
            f"'{path}' begins as a zip archive but is none ({error}): it may be truncated.",
            "Compare its size with the original, and copy it again.",
        ) from error
    total = sum(entry.file_size for entry in entries)
    compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if compressed or total > _MOST_PADDING * path.stat().st_size:
        raise _refused(
            "checkpoint-compressed",
            f"'{path}' unpacks to {total:,} bytes; torch.save does not compress.",
            "If it is an archive around a checkpoint, unpack it first.",
        )
    names = [entry.filename for entry in entries]
    if any("/code/" in name or name.endswith("constants.pkl") for name in names):
        raise _refused(
            "checkpoint-torchscript",
            f"'{path}' is a TorchScript program, which is code.",
            "Where it was made, save the weights: torch.save(network.state_dict(), 'weights.pt').",
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise _refused(
            "not-a-checkpoint",
            f"'{path}' is a zip archive, but none that torch.save wrote.",
            "Unpack it, and give the checkpoint inside.",
        )


def _load(path: Path, *, mapped: bool) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats and deprecated storages
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise _refused(
            "checkpoint-needs-code",
            f"'{path}' holds more than tensors{what}: opening it would run code of its author.",
            "Where you trust it, with the library that made it, load it with weights_only=False "
            "and write the tensors alone: torch.save(c['state_dict'], 'clean.pt'), or whatever the "
            "key is called; then take clean.pt.",
        ) from error
    except Exception as error:  # a broken or forged pickle can fail in any way
        reason = (str(error).splitlines() or [""])[0][:200]
        raise _refused(
            "checkpoint-broken",
            f"'{path}' is no whole checkpoint ({type(error).__name__}: {reason}).",
            "Compare its size with the original, and copy it again.",
        ) from error


# --- what is in it -------------------------------------------------------------------------------


def _pick(path: Path, content: object, part: str | None) -> Checkpoint:
    """Choose the network among everything a training script saved."""
    found = dict(_state_dicts(content))
    if not found:
        raise _refused(
            "checkpoint-no-tensors",
            f"'{path}' holds {_in_words(content)}, but no tensors by name.",
            "Save network.state_dict() where the checkpoint was made.",
        )
    if part is not None and part not in found:
        raise _refused(
            "checkpoint-no-part",
            f"'{path}' has no part {shown(part)}.",
            f"Its parts are: {', '.join(shown(name) for name in found)}.",
        )
    chosen = part if part is not None else _likely(found)
    tensors = found[chosen]
    others = tuple(n for n in found if n != chosen and not _TRAINING.search(n))
    return Checkpoint(
        path,
        "PyTorch, opened as data only (weights_only=True)",
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()},
        chosen,
        others,
        tuple(_baggage(content, chosen)),
        lambda name: tensors[name],
    )


def _likely(found: Mapping[str, Mapping[str, torch.Tensor]]) -> str:
    networks = [name for name in found if not _TRAINING.search(name)] or list(found)
    largest = max(networks, key=lambda name: len(found[name]))
    for name in networks:
        taught = name.rpartition("/")[2].lower() in _TEACHERS
        if taught and 2 * len(found[name]) >= len(found[largest]):
            return name
    return largest


def _state_dicts(
    content: object, at: str = "", depth: int = 0
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Every mapping from names to tensors, by where it is."""
    if not isinstance(content, Mapping) or depth > _DEPTH:
        return
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and _is_plain(v)}
    if tensors:
        yield at, tensors
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Mapping):
            yield from _state_dicts(value, f"{at}/{key}" if at else key, depth + 1)


def _is_plain(value: object) -> bool:
    return isinstance(value, torch.Tensor) and not value.is_sparse and not value.is_quantized


def _baggage(content: object, chosen: str) -> Iterator[str]:
    """What stands beside the chosen tensors at the top of the file."""
    if not isinstance(content, Mapping) or not chosen:
        return
    for key, value in content.items():
        if str(key) != chosen.split("/")[0]:
            training = " (state of the training)" if _TRAINING.search(str(key)) else ""
            yield f"{shown(key)}: {_in_words(value)}{training}"


def _in_words(value: object) -> str:
    match value:
        case torch.Tensor():
            return f"a tensor {tuple(value.shape)}"
        case Mapping() | list() | tuple():
            size = _tensor_bytes(value)
            held = f", {size / 1e6:.1f} MB of tensors" if size else ""
            return f"{type(value).__name__} of {len(value)}{held}"
        case _:
            return shown(value)


def _tensor_bytes(value: object) -> int:
    total, stack = 0, [value]
    while stack:
        match stack.pop():
            case torch.Tensor() as tensor:
                total += tensor.numel() * tensor.element_size()
            case Mapping() as table:
                stack += table.values()
            case list() | tuple() as items:
                stack += items
            case _:
                pass
    return total


def _refused(code: str, message: str, hint: str) -> IntakeError:
    return IntakeError(code, message, stage="check", hint=hint)
