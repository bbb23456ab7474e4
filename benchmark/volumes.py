"""Files and arrays -> ``Volume``: canonical RAS+, mm, float32, never cast to integers."""

import hashlib
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

import numpy as np

from . import nifti
from .errors import MaskError, VolumeError
from .nifti import open_unpacked, reading
from .types import Triple, Unit, Volume

PREPROCESSING_VERSION: int = 1
"""Part of the feature cache's key: raised when reading, resampling or scaling changes a value."""

NUMPY_HEADERS = Lock()
"""Held while numpy parses the header of an array file: it calls ``ast.literal_eval``, which in
Python 3.11 fails now and then ("AST constructor recursion depth mismatch") when two threads do."""

GRID_TOLERANCE = 0.1
"""Voxels by which the corners of a mask may lie away from its image's: headers are rounded."""

_FILES = "NIfTI in one piece (.nii or .nii.gz), NRRD (.nrrd or .nhdr), MetaImage (.mha or .mhd)"

IMAGE_FORMATS = f"{_FILES}, a folder of DICOM files, or an NPZ file through read_npz"
"""What an image may be stored as, in words."""

MASK_FORMATS = f"{_FILES}, or an NPZ file through read_npz"
"""Likewise a mask."""

ROUNDING = 1e-3
"""How far a label may be from an integer: labels stored with a scale factor come back inexact."""


def read_image(path: Path, unit: Unit, channel: int | None = None) -> Volume:
    """Read one image of any format: the one door for tasks and private data.

    Args:
        path: a file of NIfTI, NRRD or MetaImage, told apart by content, not by name; or a folder
            with the DICOM files of one series.
        unit: what the numbers mean.
        channel: see ``read_nifti``, the only format that has channels here.

    Returns:
        Voxels (1, X, Y, Z), any memory order; the affine of the turned image.

    Raises:
        VolumeError: see ``read_nifti``, ``read_dicom_series`` and ``itk_images.read``.
    """
    if path.is_dir():
        if channel is not None:
            raise _no_channels(path, channel)
        return read_dicom_series(path, unit)
    voxels, affine = _read_file(path, IMAGE_FORMATS, channel)
    return _volume(voxels[None], affine, unit, str(path))


def read_dicom_series(folder: Path, unit: Unit, series: str | None = None) -> Volume:
    """Read the slices of one DICOM series, in the order of their positions; see ``dicom``.

    Args:
        folder: the files, of any name; other files and subfolders are left alone.
        unit: ``HU`` for CT only.
        series: the SeriesInstanceUID wanted, where the folder holds several.

    Returns:
        Voxels (1, X, Y, Z) after each slice's own rescale; the affine of the turned image.

    Raises:
        VolumeError: no slices, several series, or slices that do not make one regular volume.
    """
    from . import dicom

    voxels, affine = dicom.read(folder, unit, series)
    return _volume(voxels[None], affine, unit, str(folder))


def read_nifti(path: Path, unit: Unit, channel: int | None = None) -> Volume:
    """Read one image, NIfTI-1 or NIfTI-2, ``.nii`` or ``.nii.gz``.

    Args:
        path: the file; (X, Y, Z) or (X, Y, Z, 1), any orientation, any real dtype.
        unit: what the file's numbers mean: the file cannot say.
        channel: which one, counted from 0, of an image of several, (X, Y, Z, C), such as the MR
            sequences of one patient in one file. The others are not kept in memory.

    Returns:
        Voxels (1, X, Y, Z), any memory order; the affine of the turned image.

    Raises:
        VolumeError: missing, damaged, not a single-file NIfTI, not 3D, without that channel,
            complex or color, too large, without usable spacing or affine, or with NaN or infinite
            voxels, or ``relative`` ones outside [0, 1].
    """
    voxels, affine = nifti.read(path, channel)
    return _volume(voxels[None], affine, unit, str(path))


def read_mask(path: Path, labels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Read one mask in the orientation that ``read_image`` gives to its image.

    Args:
        path: a NIfTI, NRRD or MetaImage file of integers, or of floats that are integers.
        labels: what may occur besides the background 0.

    Returns:
        Mask (X, Y, Z) int32, any memory order, and affine (4, 4).

    Raises:
        VolumeError: the file cannot be used, as in ``read_image``.
        MaskError: no voxel is labelled, a label is unknown, or a value is not an integer.
    """
    values, affine = _read_file(path, MASK_FORMATS)
    found: list[float] = np.unique(values).tolist()
    odd = [v for v in found if not math.isfinite(v) or abs(v - round(v)) > ROUNDING]
    if odd:
        raise MaskError(
            f"{path} has values that are not integers, such as {odd[0]}. A mask holds labels, "
            f"here {sorted(labels)}: threshold a probability map first."
        )
    unknown = sorted({round(v) for v in found} - {0, *labels})
    if unknown:
        raise MaskError(
            f"{path} holds the labels {unknown[:10]}; expected 0 for background and "
            f"{sorted(labels)}. Check that this is the mask of this task."
        )
    whole = np.rint(values) if values.dtype.kind == "f" else values
    mask = np.array(whole, dtype=np.int32, order="K", copy=True)
    if not mask.any():
        raise MaskError(
            f"{path} is empty: no voxel has one of the labels {sorted(labels)}. Remove the case "
            "or restore its mask."
        )
    return mask, affine


def check_same_grid(volume: Volume, mask_affine: np.ndarray, mask_shape: Sequence[int]) -> None:
    """Check that a mask lies on its image's voxels; see ``check_on_grid``."""
    check_on_grid(volume.voxels.shape[1:], volume.affine, mask_shape, mask_affine)


def check_on_grid(
    shape: tuple[int, ...],
    affine: np.ndarray,
    mask_shape: Sequence[int],
    mask_affine: np.ndarray,
) -> None:
    """Check that a mask lies on the voxels (X, Y, Z) of an image of that affine.

    Raises:
        MaskError: another shape, or a corner farther away than ``GRID_TOLERANCE`` voxels.
    """
    if tuple(mask_shape) != shape:
        raise MaskError(
            f"The mask has {tuple(mask_shape)} voxels and its image {shape} (RAS+ order). They "
            "have to be on one grid: resample the mask to the image, nearest neighbor."
        )
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, 8)
    apart = (mask_affine - affine) @ np.vstack([corners, np.ones(8)])
    worst = float(np.linalg.norm(apart[:3], axis=0).max())
    if not worst <= GRID_TOLERANCE * float(np.linalg.norm(affine[:3, :3], axis=0).min()):
        raise MaskError(
            f"The mask has its image's shape but lies up to {worst:.3g} mm away from it. Both "
            "need the same affine: resample the mask to the image, nearest neighbor."
        )


def from_array(array: np.ndarray, spacing: Triple, unit: Unit) -> Volume:
    """Make a volume of an array that has no scanner, such as one from an NPZ file.

    Args:
        array: (X, Y, Z) or (C, X, Y, Z) in RAS+ order, any real dtype; copied.
        spacing: mm along X, Y, Z.
        unit: what the numbers mean.

    Returns:
        A volume whose center is at 0 mm.

    Raises:
        VolumeError: another number of dimensions, no voxels, complex, NaN or infinite voxels,
            ``relative`` voxels outside [0, 1], or a spacing that is not positive.
    """
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise VolumeError(
            f"An array of shape {array.shape} is not a volume: (X, Y, Z) or (C, X, Y, Z) with at "
            "least one voxel is expected."
        )
    nifti.check_dtype(array.dtype, "The array")
    if not all(math.isfinite(s) and s > 0 for s in spacing):
        raise VolumeError(f"The spacing {spacing} is not three positive lengths in mm.")
    voxels = array if array.ndim == 4 else array[None]
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * s for n, s in zip(voxels.shape[1:], spacing, strict=True)]
    return _volume(voxels, affine, unit, "The array")


def read_npz(path: Path, keys: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Read arrays from an NPZ file, without pickle.

    Args:
        path: the file.
        keys: the arrays wanted, which have to be there; all if empty.

    Returns:
        The arrays by key, with their own dtypes.

    Raises:
        VolumeError: missing or damaged file, an array missing, of Python objects, or too large.
    """
    arrays: dict[str, np.ndarray] = {}
    with reading(path), zipfile.ZipFile(path) as archive:
        stored = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        missing = [key for key in keys if key not in stored]
        if missing:
            raise VolumeError(
                f"{path} has no array {missing}; it holds {sorted(stored)}. Check that this is "
                "the file that the task's card names."
            )
        for key in keys or stored:
            # 8 bytes: the widest number. The archive never unpacks more than it states.
            nifti.check_count(stored[key].file_size // 8, f"{path}, array '{key}',")
            try:
                with archive.open(stored[key]) as file, NUMPY_HEADERS:
                    arrays[key] = np.lib.format.read_array(file, allow_pickle=False)
            except (ValueError, MemoryError, RuntimeError) as error:
                raise VolumeError(
                    f"{path}: the array '{key}' cannot be read: {error}. Plain numeric arrays as "
                    "numpy.savez writes them are expected: download the file again."
                ) from error
    return arrays


def file_sha256(path: Path) -> str:
    """sha256 of what a file holds, as hex; of a gzip file, of what it unpacks to.

    So a copy that was packed again is the same data.

    Raises:
        VolumeError: the file is missing, damaged or cannot be read.
    """
    with reading(path), open_unpacked(path) as file:
        digest = hashlib.sha256()
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def image_sha256(path: Path, channel: int | None = None) -> str:
    """sha256 of what ``read_image`` reads, as hex: what a case's digest has to be made of.

    A file is hashed as by ``file_sha256``, with the payload where the header is detached from it;
    a folder as by ``dicom_sha256``. The channel is part of it: two channels of one file are two
    images.

    Raises:
        VolumeError: missing, damaged, or a folder or detached header that cannot be read.
    """
    if path.is_dir():
        from .dicom import dicom_sha256

        return dicom_sha256(path)
    parts = [file_sha256(path)]
    if _format(path):
        from . import itk_images

        voxels = itk_images.payload(path).path
        parts += [file_sha256(voxels)] if voxels != path else []
    if channel is not None:
        parts.append(f"channel {channel}")
    return parts[0] if len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _read_file(
    path: Path, formats: str, channel: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Raw voxels and affine of a file of any format; ``formats``: what is read, in words."""
    if not _format(path):
        try:
            return nifti.read(path, channel)
        except nifti.NotNiftiError:
            raise VolumeError(
                f"{path} is of no known format. Expected is {formats}. Convert it, for example "
                "with SimpleITK or dcm2niix, or download it again if it should be one of these."
            ) from None
    from . import itk_images

    if channel is not None:
        raise _no_channels(path, channel)
    return itk_images.read(path)


def _format(path: Path) -> str | None:
    """SimpleITK's name for NRRD and MetaImage; None for all else."""
    from . import itk_images

    with reading(path), path.open("rb") as file:
        head = file.read(4096)
    if head[128:132] == b"DICM":
        raise VolumeError(
            f"{path} is one DICOM file; a series is read as a whole. Name the folder of its files."
        )
    return itk_images.kind(head)


def _no_channels(path: Path, channel: int) -> VolumeError:
    return VolumeError(
        f"{path} is not NIfTI, and channel {channel} of it was asked for. Only NIfTI files are "
        "read by channel: leave 'channel' out, or convert the image."
    )


def _volume(voxels: np.ndarray, affine: np.ndarray, unit: Unit, what: str) -> Volume:
    """A volume with voxels of its own: float32, finite, no negative strides (torch has none)."""
    with np.errstate(over="ignore"):  # what overflows is refused as infinite below
        voxels = np.array(voxels, dtype=np.float32, order="K", copy=True)
    # the extremes carry every NaN and infinity, without a second array
    low, high = float(voxels.min()), float(voxels.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = voxels.size - int(np.count_nonzero(np.isfinite(voxels)))
        raise VolumeError(
            f"{what} has {bad:,} of {voxels.size:,} voxels that are NaN, infinite or beyond "
            "float32. Only finite numbers are accepted: repair the image or leave the case out."
        )
    if unit == "relative" and not 0 <= low <= high <= 1:
        raise VolumeError(
            f"{what} runs from {low:g} to {high:g}, but 'relative' voxels are in [0, 1]. Divide by "
            "the publisher's maximum (8-bit images: 255)."
        )
    return Volume(voxels, affine, unit)
