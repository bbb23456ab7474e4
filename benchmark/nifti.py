"""One NIfTI file -> raw voxels and affine in canonical RAS+ order, every promise checked.

The header is checked before a voxel is decompressed, so that a header that promises 100 GB costs
nothing. nibabel parses it; the bytes are read here, because nibabel stops reading at the last
voxel and therefore never sees the checksum that ends a gzip file.

What is taken from the header, and how:
    - Three dimensions; more only where they are 1, as in (X, Y, Z, 1). A series or several
      channels are refused, unless the caller says which one volume of them is meant.
    - Affine: sform, else qform, else voxel sizes, as nibabel and MONAI do. The image is turned by
      flips and transpositions to the axes nearest to RAS+; nothing is interpolated, so an oblique
      or sheared image keeps its directions in the affine.
    - ``pixdim`` has to be positive and finite even where the affine comes from elsewhere: a zero
      there means that some program has written the file wrongly.
    - Lengths in mm, or unit not stated. Meters and microns are refused, not converted: nothing
      in the file tells a correct unit from a wrong one, and a wrong one scales every length.
    - ``scl_slope`` and ``scl_inter`` are applied.
"""

import gzip
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import cast

import numpy as np
from isal import igzip, igzip_lib

from .errors import VolumeError
from .types import Shape

MAX_VOXELS = 2**30
"""Default cap per array: 4 GiB of float32, twice a 512 x 512 x 2000 whole-body CT. The environment
variable TOMOPROBE_MAX_VOXELS replaces it."""

MAX_OFFSET = 2**28
"""Bytes before the voxels: header extensions. Real ones are kilobytes to a few MB."""

MAX_DEFLATE_RATIO = 1032
"""Deflate cannot compress better: a match of 258 bytes costs at least two bits (RFC 1951)."""

SINGULAR = 1e-3
"""Least volume of a voxel relative to the box of its edge lengths: less is a plane, not a grid."""


class NotNiftiError(VolumeError):
    """Something else than a NIfTI file: another reader may know it."""


@dataclass(frozen=True)
class Header:
    """The checked facts of a NIfTI header."""

    shape: Shape
    dtype: np.dtype
    offset: int
    """Bytes before the first voxel."""
    scaling: tuple[float, float] | None
    """Slope and intercept, or None where the voxels are stored as they are."""
    affine: np.ndarray
    """(4, 4) float64: index in the file's own order to scanner mm."""
    channels: int = 1
    """Volumes of ``shape``, one after the other."""

    @property
    def part(self) -> int:
        """Bytes of the voxels of one channel."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def size(self) -> int:
        """Bytes up to the end of the last voxel."""
        return self.offset + self.channels * self.part


def read(path: Path, channel: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read a NIfTI-1 or NIfTI-2 file, compressed or not (told apart by content, not by name).

    Args:
        path: the file.
        channel: which volume of an image of several, (X, Y, Z, C), counted from 0; the others
            are never in memory. None: the file has to hold one volume.

    Returns:
        Voxels (X, Y, Z), a read-only view with the dtype of the file, or float32 or float64 where
        the header scales; affine (4, 4) float64. Values are not checked.

    Raises:
        VolumeError: missing, damaged, not a single-file NIfTI, not 3D, without that channel,
            complex or color, too large, or without usable spacing or affine.
    """
    with reading(path):
        is_gzip = _is_gzip(path)
        with open_unpacked(path) as file:
            header = parse(path, file.read(540), channel)
        most = path.stat().st_size * (MAX_DEFLATE_RATIO if is_gzip else 1)
        if header.size > most:
            raise VolumeError(
                f"{path} is too short: its header promises {header.size:,} bytes and the file can "
                f"hold at most {most:,}. Copy or download it again."
            )
        start = header.offset + (channel or 0) * header.part
        with open_unpacked(path) as file:
            seen = skip(file, start)
            data = file.read(header.part)
            # to the end, where gzip compares checksum and length
            seen += len(data) + skip(file)
    if seen < header.size:
        raise VolumeError(
            f"{path} is too short: {seen:,} bytes of the {header.size:,} that its header "
            "promises. Copy or download it again."
        )
    voxels = np.ndarray(header.shape, header.dtype, data, order="F")
    if header.scaling:
        slope, inter = header.scaling
        # float32 holds 8 and 16 bit integers exactly; wider ones are scaled in float64
        with np.errstate(over="ignore", invalid="ignore"):  # becomes infinite, which callers refuse
            voxels = voxels.astype(np.result_type(header.dtype, np.float32))
            voxels *= slope
            voxels += inter
    return to_canonical(voxels, header.affine)


def to_canonical(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn (X, Y, Z) voxels to the axes nearest to RAS+ by flips and transpositions.

    Returns:
        A view of the voxels and their affine: every voxel keeps its position in mm.
    """
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    turn = io_orientation(affine)
    return apply_orientation(voxels, turn), affine @ inv_ornt_aff(turn, voxels.shape)


def parse(path: Path, head: bytes, channel: int | None = None) -> Header:
    """Check the first 540 bytes of a file, of which ``channel`` is wanted (see ``read``).

    Raises:
        VolumeError: see ``read``.
    """
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header
    from nibabel.spatialimages import HeaderDataError

    endian = "<" if int.from_bytes(head[:4], "little") in (348, 540) else ">"
    length = int.from_bytes(head[:4], "little" if endian == "<" else "big")
    if length == 348 and head[344:348] == b"n+1\0":
        header = Nifti1Header(head[:348], endianness=endian, check=False)
    elif length == 540 and head[4:8] == b"n+2\0" and len(head) == 540:
        header = Nifti2Header(head, endianness=endian, check=False)
    else:
        raise NotNiftiError(
            f"{path} is not a NIfTI file in one piece (.nii or .nii.gz). Convert the image, for "
            "example with nibabel or dcm2niix."
        )
    shape, channels = _shape(path, [int(n) for n in np.asarray(header["dim"])], channel)
    try:
        dtype = np.dtype(header.get_data_dtype())
    except (HeaderDataError, KeyError):
        dtype = np.dtype("V")
    check_dtype(dtype, str(path))
    pixdim = np.asarray(header["pixdim"], np.float64)
    _check_lengths(path, pixdim, int(np.asarray(header["xyzt_units"])))
    if abs(pixdim[0]) != 1:  # the standard reads any other qfac as 1; nibabel refuses it
        header["pixdim"] = [1, *pixdim[1:]]
    try:
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
        slope, inter = header.get_slope_inter()
    except (HeaderDataError, ValueError) as error:
        raise VolumeError(
            f"{path}: the header contradicts itself: {error}. Write the file anew from its source."
        ) from error
    if not spans_space(affine):
        raise VolumeError(
            f"{path}: the affine {np.round(affine[:3], 4).tolist()} does not span space. Three "
            "finite, independent directions are expected: correct sform or qform."
        )
    offset = float(np.asarray(header["vox_offset"]))
    if not length <= offset <= MAX_OFFSET:
        raise VolumeError(
            f"{path}: the voxels are said to begin at byte {offset:g}; expected {length} to "
            f"{MAX_OFFSET:,}. Write the file anew from its source."
        )
    scaling = None if slope is None else (float(slope), float(inter or 0.0))
    scaling = None if scaling == (1.0, 0.0) else scaling
    return Header(shape, dtype, int(offset), scaling, affine, channels)


def check_dtype(dtype: np.dtype, what: str) -> None:
    """Only real numbers of at most 64 bits can become float32.

    Raises:
        VolumeError: complex, color, extended precision, text, objects or an unknown code.
    """
    if dtype.kind not in "buif" or dtype.itemsize > 8:
        raise VolumeError(
            f"{what} holds voxels of the type {dtype} (complex, color, extended or unknown). "
            "Integers or floats of at most 64 bits are expected: keep one real value per voxel."
        )


def max_voxels() -> int:
    """The cap on the voxels of one array: TOMOPROBE_MAX_VOXELS, or ``MAX_VOXELS``."""
    text = os.environ.get("TOMOPROBE_MAX_VOXELS", "")
    if not text:
        return MAX_VOXELS
    try:
        return int(text)
    except ValueError:
        raise VolumeError(
            f"TOMOPROBE_MAX_VOXELS is '{text}'; a whole number of voxels is expected. Unset it "
            f"for the default of {MAX_VOXELS:,}."
        ) from None


def check_count(voxels: int, what: str) -> None:
    """Refuse an array before memory is taken for it.

    Raises:
        VolumeError: more voxels than ``max_voxels()``.
    """
    if voxels > max_voxels():
        raise VolumeError(
            f"{what} promises {voxels:,} voxels; at most {max_voxels():,} are read. Crop or "
            "resample it, or set the environment variable TOMOPROBE_MAX_VOXELS if the memory is "
            "there."
        )


_DAMAGED = (
    EOFError,
    gzip.BadGzipFile,
    zlib.error,
    zipfile.BadZipFile,
    cast("type[Exception]", igzip_lib.IsalError),  # typed as an instance by its stubs
)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the operating system and the decompressors raise into ``VolumeError``."""
    try:
        yield
    except FileNotFoundError as error:
        raise VolumeError(f"{path} is missing. Check the data root and the download.") from error
    except _DAMAGED as error:
        raise VolumeError(
            f"{path} is damaged: {error}. An intact file is expected: copy or download it again."
        ) from error
    except OSError as error:
        raise VolumeError(
            f"{path} cannot be read: {error.strerror or error}. A readable file is expected: "
            "check the path and its permissions."
        ) from error


def open_unpacked(path: Path) -> BufferedIOBase:
    """Open a file for reading, unpacked if it is gzip by its content."""
    # ISA-L inflates three times as fast as zlib, and inflating is most of the time of a read
    return cast(BufferedIOBase, igzip.open(path) if _is_gzip(path) else path.open("rb"))


def skip(file: BufferedIOBase, count: int | None = None) -> int:
    """Read past ``count`` bytes, or to the end, keeping nothing; how many there were."""
    seen = 0
    while part := file.read(2**20 if count is None else min(2**20, count - seen)):
        seen += len(part)
    return seen


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _shape(path: Path, dim: list[int], channel: int | None) -> tuple[Shape, int]:
    """The three sizes and the channels in the header's ``dim``, whose first entry is their number.

    Channels are along the fourth dimension or, as in vector images, the only longer one after it.
    """
    rank, sizes = dim[0], dim[1 : max(dim[0], 0) + 1]
    if not 3 <= rank <= 7 or min(sizes) < 1:
        raise VolumeError(
            f"{path} has the dimensions {sizes}: three are expected, each at least 1. Stack "
            "slices into a volume first."
        )
    x, y, z, *more = sizes
    channels = math.prod(more)
    if channels != max([1, *more]) or (channel is None and channels != 1):
        raise VolumeError(
            f"{path} has the dimensions {sizes}: one volume is expected, not a series or a vector "
            "field. Name the channel that the task is about (the argument 'channel'), or write it "
            "as a file of its own."
        )
    if channel is not None and not 0 <= channel < channels:
        raise VolumeError(
            f"{path} has the dimensions {sizes} and no channel {channel}: 0 to {channels - 1} are "
            "there. Check that this is the file that the task's card names."
        )
    check_count(x * y * z, str(path))
    return (x, y, z), channels


def _check_lengths(path: Path, pixdim: np.ndarray, xyzt_units: int) -> None:
    """Voxel sizes that are lengths, in mm."""
    size = pixdim[1:4]
    if not (np.all(np.isfinite(size)) and np.all(size > 0)):
        raise VolumeError(
            f"{path}: the voxel size is {tuple(size.tolist())}; three positive lengths in mm are "
            "expected. Correct 'pixdim' in the header."
        )
    code = xyzt_units & 7  # the lower three bits: 0 not stated, 1 meter, 2 mm, 3 micron
    if code not in (0, 2):
        raise VolumeError(
            f"{path}: lengths are in {({1: 'meters', 3: 'microns'}).get(code, 'no known unit')}; "
            "mm are expected. Correct 'xyzt_units', and the affine where it is not in mm."
        )


def spans_space(affine: np.ndarray) -> bool:
    """Finite, no column of length zero, and the columns not in one plane."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.all(np.isfinite(affine)) and np.all(lengths > 0)):
        return False
    return bool(abs(np.linalg.det(affine[:3, :3] / lengths)) > SINGULAR)
