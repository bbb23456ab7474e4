"""What a safetensors file says about itself, read with the standard library and nothing else.

The format (huggingface/safetensors, README, section Format): eight bytes, the length N of the
header as an unsigned little-endian integer; N bytes of JSON that begin with ``{`` and may end in
spaces; then the tensors' bytes, without gaps. The header maps a tensor's name to its ``dtype``,
``shape`` and ``data_offsets``, which count from the header's end; ``__metadata__`` maps text to
text. The site reads this much and no tensor; so the format's own rules are checked here, and those
that its reference reader leaves open, too: it takes names that are given twice, for example.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NoReturn

from ..benchmark.errors import IntakeError
from .file_formats import GZIP, described, ends_as_zip

DTYPES = MappingProxyType(
    {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}
    | {"BOOL": 1}
)
"""Bytes per element of the types that are taken. Quantised and complex ones are not."""

LENGTH_BYTES = 8

_ALLOWED_CONTROLS = "\t\n\r"
_PACK = "Make the submission with `tomoprobe pack FILE`, which converts it on your machine."
_REWRITE = "Write the file anew with safetensors.torch.save_file, or with `tomoprobe pack`."
_AGAIN = "Compare its size with the original, and send it again."


@dataclass(frozen=True)
class Limits:
    """How much of everything a file may hold. The header's 1 MiB holds some 8000 tensors."""

    header_bytes: int = 1 << 20
    tensors: int = 20_000
    name: int = 512
    """Characters of a tensor's name."""
    dims: int = 8
    side: int = (1 << 31) - 1
    """Along one dimension."""
    elements: int = 1 << 36
    """Of one tensor."""
    digits: int = 20
    """Of a number in the header: 2^64 has 20."""


LIMITS = Limits()


@dataclass(frozen=True)
class TensorInfo:
    """One tensor, as declared."""

    dtype: str
    """One of `DTYPES`."""
    shape: tuple[int, ...]
    begin: int
    """First byte, counted from the header's end."""
    end: int
    """One past the last byte."""

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a file holds."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int
    """Of the file: where byte 0 of the tensors is."""
    elements: int = field(default=0)
    """Of all tensors together."""


def read_header(path: Path, limits: Limits = LIMITS) -> Header:
    """Read and check the header of a safetensors file; no tensor is read.

    Args:
        path: of a regular file.
        limits: see `Limits`.

    Raises:
        IntakeError: stage ``upload``; another format, a truncated file, a header that
            is too large or no JSON, names twice or unfit, types that are not taken, shapes and
            offsets that contradict each other, overlap or leave holes, or bytes after the tensors.
        OSError: it cannot be read, which on a server is no fault of the file.
    """
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        raw = _header_bytes(file, size, limits)
        archive_too = ends_as_zip(file, size)
    if archive_too:
        raise _refused(
            "file-polyglot",
            "The file is a zip archive as well as a safetensors file.",
            _REWRITE,
        )
    data = _json(raw, limits)
    start = LENGTH_BYTES + len(raw)
    metadata = _metadata(data.pop("__metadata__", {}))
    if not data:
        raise _refused("header-empty", "The file holds no tensor.", _REWRITE)
    if len(data) > limits.tensors:
        raise _refused(
            "header-tensors",
            f"The file holds {len(data)} tensors, {limits.tensors} at most are taken.",
            "Leave out what the encoder does not run.",
        )
    tensors = {name: _tensor(name, entry, limits) for name, entry in data.items()}
    _gapless(tensors, size - start)
    elements = sum(info.elements for info in tensors.values())
    return Header(MappingProxyType(tensors), MappingProxyType(metadata), start, elements)


# --- the file ------------------------------------------------------------------------------------


def _open(path: Path) -> BinaryIO:
    """A regular file, open; a pipe or device would block, so it is not waited for."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise _refused("file-kind", "This is no regular file.", "Give the path of a file.")
    return file


def _header_bytes(file: BinaryIO, size: int, limits: Limits) -> bytes:
    """The header's N bytes, brackets included."""
    first = file.read(LENGTH_BYTES + 1)
    if not first:
        raise _refused("file-empty", "The file is empty.", _AGAIN)
    if first.startswith(GZIP):  # would pass for a header of 559903 bytes
        raise _other_format(first)
    length = int.from_bytes(first[:LENGTH_BYTES], "little")
    if len(first) <= LENGTH_BYTES or length < 2 or first[LENGTH_BYTES:] != b"{":
        raise _other_format(first)
    if length > limits.header_bytes:
        # Three bytes of text before a bracket would be read as a length, too.
        raise _refused(
            "header-size",
            f"The header is said to have {length} bytes; {limits.header_bytes} at most are taken.",
            f"If this is no safetensors file: {_PACK}",
        )
    if length > size - LENGTH_BYTES:
        raise _refused(
            "file-truncated",
            f"The header is said to have {length} bytes, but the file has only {size}: it is "
            "truncated.",
            _AGAIN,
        )
    raw = first[LENGTH_BYTES:] + file.read(length - 1)
    if len(raw) != length:
        raise _refused("file-truncated", "The file became shorter while it was read.", _AGAIN)
    return raw


def _other_format(first: bytes) -> IntakeError:
    found = described(first) or "not a safetensors file"
    return _refused("not-safetensors", f"This is {found}; only safetensors is taken.", _PACK)


# --- the header ----------------------------------------------------------------------------------


def _json(raw: bytes, limits: Limits) -> dict[str, Any]:
    """The header's object, with every key once and no number but integers."""

    def integer(digits: str) -> int:
        if len(digits) > limits.digits:
            raise _refused(
                "header-number", f"The header holds a number of {len(digits)} digits.", _REWRITE
            )
        return int(digits)

    def other(text: str) -> NoReturn:
        raise _refused(
            "header-number",
            f"The header holds the number {text[:20]}; integers are expected.",
            _REWRITE,
        )

    try:
        found = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_once,
            parse_int=integer,
            parse_float=_never(other),
            parse_constant=_never(other),
        )
    except UnicodeDecodeError as error:
        raise _refused("header-json", "The header is not text in UTF-8.", _REWRITE) from error
    except RecursionError as error:
        raise _refused("header-depth", "The header is nested too deeply.", _REWRITE) from error
    except json.JSONDecodeError as error:
        raise _refused("header-json", f"The header is no JSON ({error.msg}).", _REWRITE) from error
    if not isinstance(found, dict):
        raise _refused("header-json", "The header is no JSON object.", _REWRITE)
    return found


def _never(raises: Callable[[str], NoReturn]) -> Callable[[str], Any]:
    return raises


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all different: readers disagree on which of two counts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise _refused("header-duplicate", f"The header gives {shown(twice)} twice.", _REWRITE)
    return found


def _metadata(given: Any) -> dict[str, str]:
    texts = isinstance(given, dict) and all(isinstance(value, str) for value in given.values())
    if not texts:
        raise _refused("header-metadata", "__metadata__ does not map text to text.", _REWRITE)
    if not all(_is_text(part) for pair in given.items() for part in pair):
        raise _refused(
            "header-metadata", "__metadata__ holds control characters or broken text.", _REWRITE
        )
    return given


def _is_text(value: str) -> bool:
    """Characters that every database and page can hold."""
    return all(
        c in _ALLOWED_CONTROLS or not (ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or _lone(c))
        for c in value
    )


def _lone(character: str) -> bool:
    return "\ud800" <= character <= "\udfff"


def _tensor(name: str, entry: Any, limits: Limits) -> TensorInfo:
    """One entry of the header, checked by itself."""
    if not name or len(name) > limits.name or not name.isprintable():
        raise _refused(
            "header-name",
            f"The name {shown(name)} is empty, longer than {limits.name} characters or holds "
            "characters that cannot be printed.",
            "Rename the tensor.",
        )
    if "/" in name or "\\" in name or name in (".", ".."):
        raise _refused(
            "header-name", f"The name {shown(name)} looks like a path.", "Rename the tensor."
        )
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _refused(
            "header-entry",
            f"Tensor {shown(name)}: dtype, shape and data_offsets are expected, nothing else.",
            _REWRITE,
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _refused(
            "header-dtype",
            f"Tensor {shown(name)} has the type {shown(dtype)}; taken are {', '.join(DTYPES)}.",
            "Export the weights in floating point, unquantised.",
        )
    if not _sizes(shape) or len(shape) > limits.dims or any(n > limits.side for n in shape):
        raise _refused(
            "header-shape",
            f"Tensor {shown(name)} has the shape {shown(shape)}; at most {limits.dims} whole "
            f"numbers from 0 to {limits.side} are expected.",
            _REWRITE,
        )
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _refused(
            "header-offsets",
            f"Tensor {shown(name)} has the offsets {shown(offsets)}; begin <= end are expected.",
            _REWRITE,
        )
    info = TensorInfo(dtype, tuple(shape), offsets[0], offsets[1])
    if info.elements > limits.elements:
        raise _refused(
            "header-shape",
            f"Tensor {shown(name)} of shape {shown(shape)} has more than {limits.elements} "
            "elements.",
            _REWRITE,
        )
    wanted = info.elements * DTYPES[dtype]
    if info.end - info.begin != wanted:
        raise _refused(
            "header-length",
            f"Tensor {shown(name)} of shape {shown(shape)} and type {dtype} takes {wanted} bytes, "
            f"its offsets leave {info.end - info.begin}.",
            _REWRITE,
        )
    return info


def _sizes(value: Any) -> bool:
    """Whether this is a list of whole numbers from 0 on; truth values are none."""
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _gapless(tensors: Mapping[str, TensorInfo], data_bytes: int) -> None:
    """The tensors fill the rest of the file exactly, each byte belonging to one."""
    at, before = 0, ""
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin < at:
            raise _refused(
                "header-overlap",
                f"Tensors {shown(before)} and {shown(name)} share bytes.",
                "Clone tied tensors before saving, or keep one of them.",
            )
        if info.begin > at:
            raise _refused(
                "header-hole",
                f"{info.begin - at} bytes before tensor {shown(name)} belong to no tensor.",
                _REWRITE,
            )
        at, before = info.end, name
    if at > data_bytes:
        raise _refused(
            "file-truncated",
            f"The header declares {at} bytes of tensors, the file has {data_bytes}: it is "
            "truncated.",
            _AGAIN,
        )
    if at < data_bytes:
        raise _refused(
            "file-trailing", f"{data_bytes - at} bytes follow the last tensor.", _REWRITE
        )


# --- words ---------------------------------------------------------------------------------------

_LONGEST_SHOWN = 80


def shown(value: object) -> str:
    """Anything as one short line of plain ASCII: what a stranger wrote may hold anything."""
    try:
        text = ascii(value)
    except RecursionError:
        text = f"a nested {type(value).__name__}"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def few(names: Iterable[str], most: int = 5) -> str:
    """The first names of many, and how many more there are."""
    names = list(names)
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name) for name in names[:most]) + more


def _refused(code: str, message: str, hint: str) -> IntakeError:
    return IntakeError(code, message, stage="upload", hint=hint)
