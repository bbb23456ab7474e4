"""Volumes to pretrain on: folders of images of any format.

Every image is read, brought to one spacing and scaled by the card's own intensity transform, once;
it stays in memory while there is room. The rest is read anew for every sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np
from pydantic import TypeAdapter

from ...benchmark import intensity, interpolation
from ...benchmark.errors import DataError, EncoderError
from ...benchmark.grids import resample
from ...benchmark.types import Intensity, Triple, Unit, Volume
from ...benchmark.volumes import read_image
from ..manifest_tables import IntensityTable

CACHE_BYTES = 4 << 30
"""Default bound of what one source keeps in memory: about 70 chest CTs at 1.5 mm."""

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Of the files that are taken from a folder. A folder with ``.dcm`` files is one image."""

HU_BELOW = -500.0
"""An image with a voxel below is taken for CT in HU: air is -1000, fat -100; MR is not negative."""

DRAWS = 10
"""Slices tried for one that is not mostly air; the last is taken as it is."""


@dataclass(frozen=True)
class Volumes:
    """Scaled volumes, drawn at random. Safe to use from several threads."""

    loaders: Sequence[Callable[[], Volume]]
    """Each reads one image."""
    intensity: Mapping[Unit, Intensity]
    spacing: Triple | None
    """mm; None: each image's own."""
    description: str
    cache_bytes: int = CACHE_BYTES
    _kept: dict[int, np.ndarray] = field(default_factory=dict, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def __len__(self) -> int:
        return len(self.loaders)

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """(X, Y, Z) float32 in RAS+ order, one image of all; shared, so not to be written to."""
        return self.at(int(rng.integers(len(self.loaders))))

    def at(self, index: int) -> np.ndarray:
        """The image of an index, from memory where it is there.

        Raises:
            DataError: it cannot be read.
            EncoderError: it is of a unit for which there is no transform.
        """
        with self._lock:
            kept = self._kept.get(index)
        if kept is not None:
            return kept
        made = self._scaled(self.loaders[index]())
        with self._lock:
            # Nothing is ever dropped: every image is as likely to be asked for as any other.
            if sum(v.nbytes for v in self._kept.values()) + made.nbytes <= self.cache_bytes:
                self._kept[index] = made
        return made

    def describe(self) -> str:
        """For the card."""
        return self.description

    def _scaled(self, volume: Volume) -> np.ndarray:
        how = self.intensity.get(volume.unit)
        if how is None:
            raise EncoderError(
                f"{self.description}: an image is in '{volume.unit}', and this system takes "
                f"{sorted(self.intensity)}. Give other data."
            )
        voxels = volume.voxels if self.spacing is None else resample(volume, self.spacing)[0]
        image = np.array(voxels[0], np.float32, order="C", copy=True)
        interpolation.ramp(image.reshape(-1), *intensity.fit(how, image))
        return image


def volumes(
    data: Sequence[Path],
    *,
    intensity: Mapping[str, Any],
    spacing: Triple | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> Volumes:
    """The images of folders and files.

    Args:
        data: files (NIfTI, NRRD, MetaImage), folders of them at any depth, folders of DICOM series.
            One 3D image each: leave masks out.
        intensity: as on the card: unit -> table with its ``type``.
        spacing: mm to resample to; None keeps each image's own.
        cache_bytes: of scaled voxels kept in memory.

    Raises:
        DataError: no image there.
    """
    adapter: TypeAdapter[Any] = TypeAdapter(IntensityTable)
    tables: dict[Unit, Intensity] = {
        cast("Unit", unit): adapter.validate_python(table).as_type()
        for unit, table in intensity.items()
    }
    files = image_files(data)
    names = ", ".join(path.name or str(path) for path in data)
    return Volumes(
        [_Reader(file) for file in files],
        tables,
        spacing,
        f"{len(files)} images of {names}",
        cache_bytes,
    )


def image_files(data: Sequence[Path]) -> list[Path]:
    """The image files, and folders of DICOM series, below the paths; sorted, hidden ones left out.

    Raises:
        DataError: a path that is not there, or no image at all.
    """
    found: set[Path] = set()
    for path in data:
        if not path.exists():
            raise DataError(f"There is no '{path}'. Name a folder of images, or a file.")
        if path.is_file():
            found.add(path)
            continue
        for file in path.rglob("*"):
            if file.name.startswith(".") or not file.is_file():
                continue
            if file.name.lower().endswith(SUFFIXES):
                found.add(file)
            elif file.suffix.lower() == ".dcm":
                found.add(file.parent)
    if not found:
        raise DataError(
            f"No image below {', '.join(map(str, data))}. Files that end in {', '.join(SUFFIXES)} "
            "or folders with .dcm files are expected."
        )
    return sorted(found)


def axial_slice(
    volume: np.ndarray, rng: np.random.Generator, min_foreground: float = 0.1
) -> np.ndarray:
    """A random axial slice (X, Y) of a volume (X, Y, Z), seldom one that is mostly air.

    Args:
        volume: scaled.
        rng: the generator.
        min_foreground: share of voxels above the volume's mean below which another is drawn.
    """
    threshold = volume.mean(dtype=np.float64)
    image = volume[:, :, 0]
    for _ in range(DRAWS):
        image = volume[:, :, int(rng.integers(volume.shape[2]))]
        if (image > threshold).mean() >= min_foreground:
            break
    return np.ascontiguousarray(image)


@dataclass(frozen=True)
class _Reader:
    """Reads one image, CT or MR told apart by its voxels: formats but DICOM do not say."""

    path: Path

    def __call__(self) -> Volume:
        volume = read_image(self.path, "scanner")
        unit: Unit = "HU" if float(volume.voxels.min()) < HU_BELOW else "scanner"
        return Volume(volume.voxels, volume.affine, unit)
