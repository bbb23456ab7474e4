"""A folder of DICOM files -> the checked facts of the slices of one series; no pixel is decoded.

What is taken from the files is said in ``dicom``. Section numbers are those of DICOM PS3.3.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import VolumeError
from .nifti import reading
from .types import Unit

if TYPE_CHECKING:
    from pydicom import Dataset

MODALITIES = ("CT", "MR", "PT")
"""Modalities whose images are slices of a volume."""

COSINES = 1e-3
"""Difference of direction cosines that is rounding: 0.25 mm at 250 mm from the center."""

_TAGS = [
    "SOPClassUID",
    "Modality",
    "ImageType",
    "SeriesInstanceUID",
    "SeriesDescription",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]

_NO_VOLUME = {
    "LOCALIZER": "localizer (scout) images, which are no part of the volume",
    "MOSAIC": "mosaics, which hold all slices of a volume side by side",
}
"""Values of ImageType (C.8.3.1.1.1; MOSAIC is Siemens's) and what they mean."""

_FIRST = (
    b"\x02\x00\x00\x00",
    b"\x02\x00\x01\x00",
    b"\x08\x00\x00\x00",
    b"\x08\x00\x01\x00",
    b"\x08\x00\x05\x00",
    b"\x08\x00\x08\x00",
    b"\x08\x00\x16\x00",
)
"""Little-endian tags that a file without preamble may begin with."""


@dataclass(frozen=True, eq=False)
class Slice:
    """The checked facts of one slice."""

    path: Path
    frame: int
    shape: tuple[int, int]
    """Rows, columns."""
    position: np.ndarray
    """(3,) LPS mm of the center of the first pixel."""
    directions: np.ndarray
    """(2, 3) unit vectors: along a row (column index up), and along a column."""
    spacing: tuple[float, float]
    """mm between rows, and between columns."""
    slope: float
    intercept: float


def slices_in(folder: Path, unit: Unit | None, series: str | None) -> list[Slice]:
    """All slices of the one series, in the order of the file names."""
    headers: list[tuple[Path, Dataset]] = []
    others: Counter[str] = Counter()
    with reading(folder):
        paths = sorted(path for path in folder.iterdir() if path.is_file())
    for path in paths:
        header = _header(path)
        if header is not None and _is_slice(path, header):
            headers.append((path, header))
        else:
            others["not DICOM" if header is None else header.get("Modality", "DICOMDIR")] += 1
    if not headers:
        found = ", ".join(f"{n} x {what}" for what, n in others.items()) or "no file"
        raise VolumeError(
            f"{folder} holds no image of the modalities {', '.join(MODALITIES)}, but {found}. Name "
            "the folder in which the slices of one series are; subfolders are not searched."
        )
    headers = _one_series(folder, headers, series)
    return [one for path, header in headers for one in _frames(path, header, unit)]


def _header(path: Path) -> "Dataset | None":
    """The tags of a DICOM file up to its pixels; None for any other file."""
    from pydicom import dcmread
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    with reading(path), path.open("rb") as file:
        head = file.read(132)
    marked = head[128:] == b"DICM"
    # old files have neither preamble nor mark, but begin with an element of group 2 or 8
    if not marked and not (len(head) == 132 and head[:4] in _FIRST):
        return None
    with parsing(path):
        meta = read_file_meta_info(path) if marked else {}
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            raise VolumeError(
                f"{path} is deflated as a whole and cannot be checked before it is unpacked. "
                "Rewrite it uncompressed, for example with dcmconv of DCMTK."
            )
        header = dcmread(path, stop_before_pixels=True, specific_tags=[*_TAGS], force=not marked)
        for _ in header.iterall():  # pydicom decodes a value, and finds it damaged, when asked
            pass
        if "SOPClassUID" not in header and "MediaStorageSOPClassUID" in meta:
            header.SOPClassUID = meta["MediaStorageSOPClassUID"].value
        return header if marked or "SOPClassUID" in header else None


def _is_slice(path: Path, header: "Dataset") -> bool:
    """Whether a DICOM file is an image of a volume, and not a DICOMDIR, a report or a contour.

    Raises:
        VolumeError: the file does not say so. pydicom reads a file that is cut short without a
            word, and a slice left out at the end of a stack leaves no gap.
    """
    from pydicom.uid import MediaStorageDirectoryStorage, RawDataStorage

    modality = header.get("Modality")
    if header.get("SOPClassUID") in (MediaStorageDirectoryStorage, RawDataStorage):
        return False
    if modality and modality not in MODALITIES:
        return False
    if not modality or not header.get("Rows"):
        raise VolumeError(
            f"{path} has no {'Rows' if modality else 'Modality'}, as if it were cut short. An "
            "intact DICOM image is expected: copy or download it again, or take it out of the "
            "folder."
        )
    return True


@contextmanager
def parsing(path: Path) -> Iterator[None]:
    """Turn what pydicom raises into ``VolumeError``."""
    try:
        with reading(path):
            yield
    except VolumeError:
        raise
    except Exception as error:  # a damaged file may raise anything in a parser and its decoders
        raise VolumeError(
            f"{path} is damaged: {type(error).__name__}: {error}. An intact DICOM file is "
            "expected: copy or download it again."
        ) from error


def _one_series(
    folder: Path, headers: "list[tuple[Path, Dataset]]", series: str | None
) -> "list[tuple[Path, Dataset]]":
    counts = Counter(str(header.get("SeriesInstanceUID", "")) for _, header in headers)
    names = {
        str(h.get("SeriesInstanceUID", "")): f"{h.Modality}, '{h.get('SeriesDescription', '')}'"
        for _, h in headers
    }
    if series is None and len(counts) == 1:
        return headers
    if series in counts:
        return [(p, h) for p, h in headers if h.get("SeriesInstanceUID", "") == series]
    listed = "; ".join(f"{uid} ({n} files, {names[uid]})" for uid, n in counts.items())
    wanted = "one is expected" if series is None else f"'{series}' is wanted and not there"
    raise VolumeError(
        f"{folder} holds {len(counts)} series and {wanted}: {listed}. Name one of them (the "
        "argument 'series' of read_dicom_series), or give each series a folder of its own."
    )


def _frames(path: Path, header: "Dataset", unit: Unit | None) -> Iterator[Slice]:
    """The slices in one file: one, or as many as an enhanced file has frames."""
    kinds = header.get("ImageType") or []
    for kind, meaning in _NO_VOLUME.items():
        if kind in ([kinds] if isinstance(kinds, str) else kinds):
            raise VolumeError(
                f"{path} is one of the series' {meaning}. Slices of one volume are expected: move "
                "such files out of the folder."
            )
    color = header.get("PhotometricInterpretation", "")
    if int(header.get("SamplesPerPixel") or 1) != 1 or color != "MONOCHROME2":
        raise VolumeError(
            f"{path} has the photometric interpretation '{color}'; 'MONOCHROME2' is expected, one "
            "value per pixel that is shown the brighter the larger it is. Leave color images out; "
            "convert MONOCHROME1 after checking whether its values are inverted."
        )
    groups = header.get("PerFrameFunctionalGroupsSequence")
    count = int(header.get("NumberOfFrames") or 1)
    if not groups and count == 1:
        yield _slice(path, header, 0, [header], unit)
        return
    if len(groups or ()) != count:
        raise VolumeError(
            f"{path} has {count} frames and places for {len(groups or ())} of them "
            "(PerFrameFunctionalGroupsSequence). Convert it to one file per slice, or to NIfTI "
            "with dcm2niix."
        )
    shared = header.get("SharedFunctionalGroupsSequence") or []
    for frame, group in enumerate(groups):
        sources = [
            item[keyword][0]
            for keyword in (
                "PlanePositionSequence",
                "PlaneOrientationSequence",
                "PixelMeasuresSequence",
                "PixelValueTransformationSequence",
            )
            for item in (group, *shared)
            if item.get(keyword)
        ]
        yield _slice(path, header, frame, sources, unit)


def _slice(
    path: Path, header: "Dataset", frame: int, sources: "Sequence[Dataset]", unit: Unit | None
) -> Slice:
    """Check one slice's tags; ``sources`` are where they may be, nearest first."""

    def numbers(keyword: str, count: int) -> np.ndarray:
        value: Any = next((s.get(keyword) for s in sources if s.get(keyword) is not None), None)
        try:
            found = np.asarray(value, np.float64).reshape(-1)
        except (TypeError, ValueError):
            found = np.empty(0)
        if len(found) != count or not np.isfinite(found).all():
            raise _missing(path, keyword)
        return found

    directions = numbers("ImageOrientationPatient", 6).reshape(2, 3)
    if np.abs(directions @ directions.T - np.eye(2)).max() > 10 * COSINES:
        raise VolumeError(
            f"{path}: the directions {directions.tolist()} (ImageOrientationPatient) are not two "
            "unit vectors at a right angle. Correct the tag, or leave the series out."
        )
    between_rows, between_columns = numbers("PixelSpacing", 2)
    kind = next((s.RescaleType for s in sources if s.get("RescaleType")), "HU")
    # US: unspecified, which C.11.1.1.2 allows for CT
    if unit == "HU" and (header.Modality != "CT" or kind not in ("HU", "US")):
        raise VolumeError(
            f"{path} holds {header.Modality} in the unit '{kind}', and Hounsfield units are asked "
            "for. Read it with the unit 'scanner', or choose the CT series."
        )
    slope, intercept = 1.0, 0.0
    if unit == "HU" or any("RescaleSlope" in s or "RescaleIntercept" in s for s in sources):
        slope, intercept = numbers("RescaleSlope", 1)[0], numbers("RescaleIntercept", 1)[0]
    if slope == 0 or between_rows <= 0 or between_columns <= 0 or "ModalityLUTSequence" in header:
        raise VolumeError(
            f"{path}: RescaleSlope is {slope:g}, PixelSpacing ({between_rows:g}, "
            f"{between_columns:g}), and there is {'a' if 'ModalityLUTSequence' in header else 'no'}"
            " modality lookup table. A slope other than 0, positive lengths and no table are "
            "expected: correct the file, or leave the series out."
        )
    try:
        shape = (int(header.Rows), int(header.Columns))
    except (AttributeError, TypeError, ValueError):
        raise _missing(path, "Rows and Columns") from None
    place = numbers("ImagePositionPatient", 3)
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    spacing = (float(between_rows), float(between_columns))
    return Slice(path, frame, shape, place, directions, spacing, float(slope), float(intercept))


def _missing(path: Path, keyword: str) -> VolumeError:
    return VolumeError(
        f"{path} has no usable {keyword}, without which a slice has no place or value. Export the "
        "series anew from its source, or leave it out."
    )
