"""One NRRD or MetaImage file -> raw voxels and affine in canonical RAS+ order.

SimpleITK reads the header: sizes, number type, spacing, origin and directions, which it turns to
LPS whatever a NRRD's ``space`` is. The voxels are read here, for two reasons. ITK compares no
checksum: where the payload of a compressed file is damaged it returns what it could unpack, the
rest being whatever was in memory. And a header may name any file of the machine as its payload.

What is taken from the header, and how:
    - Three dimensions and one number per voxel; vectors, colors and series are refused.
    - NRRD: ``space`` has to be one of the three anatomical ones, for without it nothing says which
      side is left. MetaImage has no such field: its axes are LPS by ITK's convention, and
      ``AnatomicalOrientation`` is ignored, as ITK does.
    - Lengths in mm, or unit not stated; other units are refused, see ``nifti``.
    - Payload raw, gzip or zlib, in the same file or in one other file in the same folder.
"""

import re
from dataclasses import dataclass
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from isal import igzip, isal_zlib

from .errors import VolumeError
from .nifti import (
    MAX_DEFLATE_RATIO,
    check_count,
    check_dtype,
    reading,
    skip,
    spans_space,
    to_canonical,
)

MAX_HEADER = 2**20
"""Bytes of text before the payload: real ones are kilobytes, with a segmentation's names in it."""

SPACES = {
    "left-posterior-superior": "LPS",
    "right-anterior-superior": "RAS",
    "left-anterior-superior": "LAS",
}
"""The spaces of the NRRD definition that fix all three axes to the patient, with short names."""


@dataclass(frozen=True)
class Payload:
    """Where the voxels of a header are and how they are stored."""

    path: Path
    offset: int
    """Bytes before them; -1: they are the last bytes of the file."""
    packed: bool
    """gzip or zlib."""
    endian: Literal["<", ">"]


def kind(head: bytes) -> str | None:
    """SimpleITK's name for the format of a file that begins with these bytes, if it is ours."""
    if re.match(rb"NRRD000\d\r?\n", head):
        return "NrrdImageIO"
    # MetaImage has no magic bytes; one of these two opens every header, after comments at most
    if re.match(rb"(?:[A-Za-z]+ *= *[^\r\n\0]*\r?\n)*?(?:ObjectType|NDims) *= *\w+\r?\n", head):
        return "MetaImageIO"
    return None


def payload(path: Path) -> Payload:
    """Read the text of a NRRD or MetaImage header and find its voxels.

    Raises:
        VolumeError: missing, another format, or voxels stored in a way that is not read.
    """
    with reading(path), path.open("rb") as file:
        head = file.read(MAX_HEADER)
    form = kind(head[:4096])
    if form is None:
        raise VolumeError(
            f"{path} is neither NRRD nor MetaImage. A file that begins with 'NRRD000' or with "
            "'ObjectType =' or 'NDims =' is expected."
        )
    return _nrrd(path, head) if form == "NrrdImageIO" else _meta(path, head)


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a NRRD or MetaImage file, attached or detached header, told apart by content.

    Returns:
        Voxels (X, Y, Z) with the dtype of the file; affine (4, 4) float64, RAS+ mm. Values are
        not checked.

    Raises:
        VolumeError: missing, damaged, another format, not 3D, a vector or color per voxel, too
            large, in other units than mm, or with voxels outside the header's folder.
    """
    where = payload(path)
    shape, dtype, affine = _information(path)
    count = int(np.prod(shape))
    check_count(count, str(path))
    dtype = dtype.newbyteorder(where.endian)
    data = _bytes(where, count * dtype.itemsize)
    return to_canonical(np.ndarray(shape, dtype, data, order="F"), affine)


def _information(path: Path) -> tuple[tuple[int, ...], np.dtype, np.ndarray]:
    """What SimpleITK makes of a header: sizes, number type and RAS+ affine."""
    import SimpleITK

    sitk = cast(Any, SimpleITK)  # its classes are made by SWIG, which types nothing
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with path.open("rb") as file:
        reader.SetImageIO(kind(file.read(4096)))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        # many lines, of which the last says what was wrong
        reason = str(error).strip().splitlines()[-1]
        raise VolumeError(
            f"{path}: the header cannot be read: {reason}. Write the file anew from its source."
        ) from error
    shape = tuple(int(n) for n in reader.GetSize())
    if len(shape) != 3 or min(shape) < 1:
        raise VolumeError(
            f"{path} has the dimensions {list(shape)}: three are expected, each at least 1. Write "
            "the one volume that the task is about as a file of its own."
        )
    if reader.GetNumberOfComponents() != 1:
        raise VolumeError(
            f"{path} holds {reader.GetNumberOfComponents()} numbers per voxel (a vector or a "
            "color); one is expected. Write the component that the task is about as a file."
        )
    name = sitk.GetPixelIDValueAsString(reader.GetPixelID())  # such as '16-bit signed integer'
    found = re.fullmatch(r"(\d+)-bit (signed integer|unsigned integer|float)", name)
    dtype = np.dtype(f"{found[2][0].replace('s', 'i')}{int(found[1]) // 8}" if found else "V")
    check_dtype(dtype, str(path))
    direction = np.reshape(reader.GetDirection(), (3, 3))
    affine = np.eye(4)
    affine[:3, :3] = direction * np.asarray(reader.GetSpacing())
    affine[:3, 3] = reader.GetOrigin()
    affine[:2] *= -1  # LPS to RAS
    if not spans_space(affine):
        raise VolumeError(
            f"{path}: the directions and voxel sizes {np.round(affine[:3], 4).tolist()} in the "
            "header do not span space. Three finite, independent directions are expected: correct "
            "the header."
        )
    return shape, dtype, affine


# --- the two headers -----------------------------------------------------------------------


def _nrrd(path: Path, head: bytes) -> Payload:
    """The fields of a NRRD header that say how voxels are stored (the definition's section 5)."""
    end = re.search(rb"\r?\n\r?\n", head)
    text = head[: end.start()] if end else head
    fields: dict[str, str] = {}
    for line in text.decode("latin-1").splitlines()[1:]:
        if line.startswith("#") or ":=" in line or ":" not in line:
            continue
        key, value = line.split(":", 1)
        # the definition allows 'data file' and 'datafile'
        _add(path, fields, key.replace(" ", "").lower(), value.strip())
    if end is None and "datafile" not in fields:
        raise VolumeError(f"{path} is too short: it ends in its header. Copy or download it again.")
    space = fields.get("space", "")
    if space.lower() not in SPACES and space.upper() not in SPACES.values():
        raise VolumeError(
            f"{path}: the space is '{space or 'not stated'}', so nothing says which side is left. "
            f"One of {', '.join(SPACES)} is expected: write the file anew from its source."
        )
    units = set(re.findall(r'"([^"]*)"', fields.get("spaceunits", "")))
    _check_unit(path, units - {"", "none", "???"})
    encoding = fields.get("encoding", "").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise _stored(path, f"encoding '{encoding}'")
    for field in ("lineskip", "byteskip"):
        skipped = fields.get(field, "0")
        if not (skipped == "0" or (field, skipped, encoding) == ("byteskip", "-1", "raw")):
            raise _stored(path, f"{field} {skipped}")
    endian = ">" if fields.get("endian", "little").lower() == "big" else "<"
    detached = "datafile" in fields
    offset = 0 if detached or end is None else end.end()
    if fields.get("byteskip") == "-1":
        offset = -1
    where = _beside(path, fields["datafile"]) if detached else path
    return Payload(where, offset, encoding != "raw", endian)


def _meta(path: Path, head: bytes) -> Payload:
    """The fields of a MetaImage header that say how voxels are stored."""
    end = re.search(rb"^ElementDataFile[ \t]*=[^\n]*\n?", head, re.MULTILINE)
    if end is None:
        raise VolumeError(
            f"{path} is too short: 'ElementDataFile', which ends the header, is missing. Copy or "
            "download it again."
        )
    fields: dict[str, str] = {}
    for line in head[: end.end()].decode("latin-1").splitlines():
        key, _, value = line.partition("=")
        _add(path, fields, key.strip(), value.strip())
    _check_unit(path, {fields.get("DistanceUnits", "mm")} - {"?", ""})
    slope = fields.get("ElementToIntensityFunctionSlope", "1")
    shift = fields.get("ElementToIntensityFunctionOffset", "0")
    try:
        scaled = (float(slope), float(shift)) != (1.0, 0.0)
        offset = int(fields.get("HeaderSize", "0"))
    except ValueError:
        scaled, offset = True, 0
    if scaled or offset < -1:
        raise _stored(path, f"HeaderSize {offset}, a slope of {slope} and an offset of {shift}")
    if not _true(fields.get("BinaryData", "True")):
        raise _stored(path, "text instead of binary data")
    order = fields.get("ElementByteOrderMSB", fields.get("BinaryDataByteOrderMSB", "False"))
    endian = ">" if _true(order) else "<"
    packed = _true(fields.get("CompressedData", "False"))
    name = fields["ElementDataFile"]
    if name.upper() == "LOCAL":
        if offset > 0:
            raise _stored(path, f"HeaderSize {offset} in one file with the voxels")
        return Payload(path, end.end(), packed, endian)
    return Payload(_beside(path, name), offset, packed, endian)


def _add(path: Path, fields: dict[str, str], key: str, value: str) -> None:
    if key in fields and fields[key] != value:  # programs differ on which of the two counts
        raise VolumeError(
            f"{path}: the header states '{key}' twice, '{fields[key]}' and '{value}'. Write the "
            "file anew from its source."
        )
    fields[key] = value


def _true(value: str) -> bool:
    return value[:1] in ("T", "t", "1")  # as MetaIO reads it


def _check_unit(path: Path, units: set[str]) -> None:
    if units - {"mm", "millimeter", "millimeters"}:
        raise VolumeError(
            f"{path}: lengths are in {sorted(units)}; mm are expected. Write the file anew in mm."
        )


def _stored(path: Path, how: str) -> VolumeError:
    return VolumeError(
        f"{path} stores its voxels in a way that is not read: {how}. Raw or gzip-compressed "
        "binary voxels without scale factors are expected: write the file anew with SimpleITK."
    )


def _beside(path: Path, name: str) -> Path:
    """The file that a detached header names, if it lies in the header's own folder.

    A header that came from elsewhere could otherwise have any file of this machine read.
    """
    if name.startswith("./"):
        name = name[2:]
    outside = name in ("", ".", "..") or re.search(r"[/\\\0]", name)
    if outside or "%" in name or re.fullmatch(r"LIST( \d+)?", name):
        raise VolumeError(
            f"{path} names '{name}' as its voxels; one file in the header's own folder is "
            "expected. Write the image as one file (.nrrd or .mha)."
        )
    return path.parent / name


# --- voxels --------------------------------------------------------------------------------


def _bytes(where: Payload, size: int) -> bytes:
    """The ``size`` bytes of the voxels, whose checksum is right where they are compressed."""
    with reading(where.path):
        total = where.path.stat().st_size
        offset = total - size if where.offset == -1 else where.offset
        most = max(0, total - offset) * (MAX_DEFLATE_RATIO if where.packed else 1)
        if offset < 0 or size > most:
            raise VolumeError(
                f"{where.path} is too short: the header promises {size:,} bytes of voxels and "
                f"the file can hold at most {most:,}. Copy or download it again."
            )
        with where.path.open("rb") as file:
            file.seek(offset)
            source = _unpacked(file, size) if where.packed else file
            data = source.read(size)
            more = skip(source)  # to the end, where gzip compares checksum and length
    if len(data) < size or (where.packed and more):
        raise VolumeError(
            f"{where.path} holds {len(data) + more:,} bytes of voxels and its header promises "
            f"{size:,}. Copy or download it again."
        )
    return data


def _unpacked(file: Any, size: int) -> BufferedIOBase:
    """The unpacked rest of a file: gzip, or zlib as MetaImage has it."""
    start = file.tell()
    magic = file.read(2)
    file.seek(start)
    if magic == b"\x1f\x8b":
        return cast(BufferedIOBase, igzip.GzipFile(fileobj=file))
    inflate = isal_zlib.decompressobj()
    data = inflate.decompress(file.read(), size + 1)
    while not inflate.eof and len(data) <= size:
        part = inflate.decompress(inflate.unconsumed_tail, 2**20)
        if not part and not inflate.eof:
            raise EOFError("the compressed voxels end too early")
        data += part
    return BytesIO(data)
