"""The DICOM files of one series -> raw voxels and affine in canonical RAS+ order.

pydicom parses and decodes. All headers are read and checked before a pixel is decoded. Section
numbers are those of DICOM PS3.3.

What is taken from the files, and how:
    - Which files: told by content. Names, DICOMDIR and files of other kinds play no part. What is
      not CT, MR or PET (SEG, RTSTRUCT, SR, ...) is left out. Subfolders are not searched.
    - Order: by position along the normal of the slices (C.7.6.2.1.1), never by name or
      InstanceNumber, which follow the acquisition, or by SliceLocation, whose origin is free.
    - Spacing: PixelSpacing, and the distance of the positions; neither SliceThickness nor
      SpacingBetweenSlices, which disagree with it where slices overlap or leave gaps.
    - Values: each slice's own RescaleSlope and RescaleIntercept, which vary in PET.
    - Pixels outside the scanner's circle (PixelPaddingValue) stay what they are, usually -2000 HU
      or less, as in a NIfTI file made of the same series; a window in HU clips them to air.
    - MONOCHROME1 is refused, not inverted: by C.7.6.3.1.2 it only says that the least value is
      shown white, but some writers have inverted the values too, and the file cannot say.
    - A tilted gantry is refused: the stack is sheared. Its affine would be exact, but grids are
      laid along an image's own axes, so a model would be shown sheared anatomy.
    - Multi-frame ("enhanced") files are read as so many slices.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .dicom_files import COSINES, Slice, parsing, slices_in
from .errors import VolumeError
from .nifti import check_count, to_canonical
from .types import Unit

if TYPE_CHECKING:
    from pydicom import Dataset

TOLERANCE = 0.1
"""Share of the slice distance by which a slice may be off its place, as for masks: positions are
often written with one decimal, half of which is 8 % of a distance of 0.625 mm."""

SAME_PLACE = 0.01
"""mm along the normal under which two slices are at one position."""

SIDEWAYS = 0.5
"""Pixels by which a slice may be off the line of the others."""

TILT = 0.5
"""Degrees between the line of positions and the normal: 1 % of shear, from rounded positions."""


def read(folder: Path, unit: Unit, series: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read the slices of one series.

    Args:
        folder: the files, of any name.
        unit: ``HU`` for CT only; any other for all modalities.
        series: the SeriesInstanceUID wanted, where the folder holds several.

    Returns:
        Voxels (X, Y, Z) float32, rescaled; affine (4, 4) float64, RAS+ mm. Values are not checked.

    Raises:
        VolumeError: no slices, several series, missing tags, a file damaged or compressed in a
            way that is not read, color, or slices that do not make one regular volume.
    """
    return to_canonical(*_stack(slices_in(folder, unit, series), folder))


def dicom_sha256(folder: Path, series: str | None = None) -> str:
    """sha256, as hex, of a series' geometry and rescaled voxels in the order of positions.

    File names, compression, and tags such as the patient's name are no part of it.

    Raises:
        VolumeError: see ``read``.
    """
    voxels, affine = _stack(slices_in(folder, None, series), folder)
    digest = hashlib.sha256(np.array([*voxels.shape], "<i8").tobytes())
    digest.update(affine.astype("<f8").tobytes())
    for plane in np.moveaxis(voxels, -1, 0):
        digest.update(plane.astype("<f4").tobytes(order="F"))
    return digest.hexdigest()


# --- geometry ------------------------------------------------------------------------------


def _stack(slices: list[Slice], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Order, check and decode slices.

    Returns:
        Voxels (columns, rows, slices) float32, and their RAS+ affine.
    """
    if len(slices) < 2:
        raise VolumeError(
            f"{folder} holds one slice; a volume has at least two. Check that all files are there."
        )
    _check_alike(folder, "matrix sizes (rows, columns)", [s.shape for s in slices], 0)
    _check_alike(folder, "pixel spacings in mm", [s.spacing for s in slices], COSINES)
    turns = [tuple(s.directions.reshape(-1).tolist()) for s in slices]
    _check_alike(folder, "orientations (direction cosines)", turns, COSINES)
    slices, affine = _ordered(slices, folder)
    rows, columns = slices[0].shape
    check_count(rows * columns * len(slices), str(folder))
    voxels = np.empty((columns, rows, len(slices)), np.float32, order="F")
    _decode(slices, voxels)
    return voxels, affine


def _check_alike(
    folder: Path, what: str, values: Sequence[tuple[float, ...]], tolerance: float
) -> None:
    groups: Counter[tuple[float, ...]] = Counter()
    for value in values:
        same = (g for g in groups if np.abs(np.subtract(g, value)).max() <= tolerance)
        groups[next(same, value)] += 1
    if len(groups) > 1:
        listed = "; ".join(
            f"{n} slices with {tuple(round(v, 4) for v in value)}"
            for value, n in groups.most_common(4)
        )
        raise VolumeError(
            f"{folder} mixes {len(groups)} {what}: {listed}. The slices of one volume share them: "
            "give each stack a folder of its own."
        )


def _ordered(slices: list[Slice], folder: Path) -> tuple[list[Slice], np.ndarray]:
    """Slices in the order of their positions, and the affine of the stack, if it is regular."""
    across, down = slices[0].directions
    normal = np.cross(across, down)
    slices = sorted(slices, key=lambda s: float(s.position @ normal))
    positions = np.stack([s.position for s in slices])
    heights = positions @ normal
    _check_gaps(slices, heights, folder)
    # the line nearest to all positions: its ends alone would carry their rounding to every slice
    index = np.arange(len(slices)) - (len(slices) - 1) / 2
    center = positions.mean(0)
    step = index @ (positions - center) / (index @ index)
    gap = float(step @ normal)
    off = positions - (center + index[:, None] * step)
    along = off @ normal
    aside = np.linalg.norm(off - along[:, None] * normal, axis=1)
    if np.abs(along).max() > TOLERANCE * gap:
        gaps = np.diff(heights)
        raise VolumeError(
            f"{folder}: the distance of the slices varies from {gaps.min():.4g} to "
            f"{gaps.max():.4g} mm. Equal distances are expected: give each part a folder of its "
            "own, or resample the series."
        )
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(step - gap * normal), gap)))
    if tilt > TILT:
        raise VolumeError(
            f"{folder} was scanned with the gantry tilted by {tilt:.1f} degrees, so its slices are "
            "sheared against each other. A model would be shown sheared anatomy: correct the tilt "
            "with dcm2niix, which resamples the stack, and read the NIfTI file."
        )
    if aside.max() > SIDEWAYS * min(slices[0].spacing):
        raise VolumeError(
            f"{folder}: slices lie up to {aside.max():.3g} mm beside the line of the others "
            f"({slices[int(aside.argmax())].path.name}). One straight stack is expected: give each "
            "part a folder of its own, or resample the series."
        )
    between_rows, between_columns = slices[0].spacing
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([across * between_columns, down * between_rows, step])
    affine[:3, 3] = center + index[0] * step
    affine[:2] *= -1  # LPS to RAS
    return slices, affine


def _check_gaps(slices: list[Slice], heights: np.ndarray, folder: Path) -> None:
    """Refuse two slices at one position, and places without a slice."""
    gaps = np.diff(heights)
    places = 1 + int((gaps > SAME_PLACE).sum())
    if places < len(slices):
        first = int(np.argmax(gaps <= SAME_PLACE))
        raise VolumeError(
            f"{folder} has {len(slices)} slices at {places} positions, such as "
            f"{slices[first].path.name} and {slices[first + 1].path.name} at {heights[first]:.2f} "
            "mm along the normal: several phases, echoes or directions, or copies. Give each "
            "volume a folder of its own."
        )
    usual = float(np.median(gaps))
    wide = np.flatnonzero(gaps > 1.5 * usual)
    if len(wide):
        absent = [round(float(gaps[i]) / usual) - 1 for i in wide]
        listed = "; ".join(
            f"{n} between {heights[i]:.2f} and {heights[i + 1]:.2f} mm "
            f"({slices[i].path.name}, {slices[i + 1].path.name})"
            for n, i in zip(absent[:5], wide[:5], strict=True)
        )
        raise VolumeError(
            f"{folder} misses {sum(absent)} slices at the usual distance of {usual:.4g} mm: "
            f"{listed}, positions along the normal. Complete the series: copy or download it again."
        )


# --- pixels --------------------------------------------------------------------------------


def _decode(slices: list[Slice], voxels: np.ndarray) -> None:
    """Fill the voxels, file by file, with rescaled values."""
    from pydicom.pixels.utils import iter_pixels

    files: dict[Path, list[int]] = {}
    for slot, one in enumerate(slices):
        files.setdefault(one.path, []).append(slot)
    for path, slots in files.items():
        with parsing(path):
            source = _source(path)
            frames = iter_pixels(source, indices=[slices[slot].frame for slot in slots])
            for slot, pixels in zip(slots, frames, strict=True):
                one = slices[slot]
                if pixels.shape != one.shape:
                    raise ValueError(f"pixels {pixels.shape} where {one.shape} are promised")
                # float64 first: rounded once, like a stored 16 bit integer in a scaled NIfTI
                with np.errstate(over="ignore"):  # becomes infinite, which callers refuse
                    voxels[:, :, slot] = pixels.T * np.float64(one.slope) + one.intercept


def _source(path: Path) -> "Path | Dataset":
    """What pydicom decodes a file's pixels from.

    Raises:
        VolumeError: compressed, and the decoder is not installed.
    """
    from pydicom import dcmread
    from pydicom.filereader import read_file_meta_info
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    with path.open("rb") as file:
        marked = file.read(132)[128:] == b"DICM"
    if not marked:  # nor compressed, which only the missing file meta could say
        bare = dcmread(path, force=True)
        implicit, _ = bare.original_encoding
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        bare.file_meta.TransferSyntaxUID = syntax
        return bare
    syntax = UID(str(read_file_meta_info(path).get("TransferSyntaxUID", "")))
    if not syntax.is_compressed:
        return path
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise VolumeError(
            f"{path} is compressed as '{syntax.name}' and no decoder for it is installed. Install "
            "the packages pylibjpeg, pylibjpeg-libjpeg (JPEG, JPEG-LS) and pylibjpeg-openjpeg "
            "(JPEG 2000), or decompress the series, for example with gdcmconv --raw."
        )
    return path
