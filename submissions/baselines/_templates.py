"""Shapes for the label engine from folders of binary masks, such as those of TotalSegmentator."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nibabel import nifti1
from nibabel.filebasedimages import ImageFileError

from ...benchmark.errors import MaskError
from ...benchmark.types import Shape
from ._synthesis import REFERENCE_SIDE

SUFFIXES = (".nii", ".nii.gz")

KEPT = 1024
"""Templates kept in memory: 2 GiB at 128^3, 34 MB at 32^3."""

TRIES = 20
"""Masks looked at for one that is not empty: TotalSegmentator ships an empty file for each organ
that a patient lacks, about half of them."""


class Templates:
    """Binary masks in folders, cropped to what is in them. Safe to use from several threads."""

    def __init__(self, data: Sequence[Path], shape: Shape) -> None:
        """List the masks.

        Args:
            data: folders, searched through all levels, or files.
            shape: X, Y, Z of the label maps.

        Raises:
            MaskError: there is no NIfTI file.
        """
        found = {
            file
            for path in data
            for file in (path.rglob("*") if path.is_dir() else [path])
            if file.name.endswith(SUFFIXES) and file.is_file()
        }
        self.files = sorted(found)
        self.shape = shape
        self._kept: OrderedDict[Path, np.ndarray | None] = OrderedDict()
        self._lock = threading.Lock()
        if not self.files:
            raise MaskError(
                f"{', '.join(map(str, data))}: no masks found. Expected folders with binary masks "
                "as .nii or .nii.gz, one per organ, such as those of TotalSegmentator."
            )

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """(X, Y, Z) uint8: a mask that is not empty.

        Raises:
            MaskError: a file cannot be read, or none of many that were drawn has a voxel.
        """
        for _ in range(TRIES):
            template = self._read(self.files[int(rng.integers(len(self.files)))])
            if template is not None:
                return template
        raise MaskError(
            f"{TRIES} masks in a row, drawn from {len(self.files)}, were empty (for example "
            f"{self.files[0]}). Give folders in which most masks have voxels above 0."
        )

    def _read(self, file: Path) -> np.ndarray | None:
        """The template, or None for an empty mask; from memory where it is still there."""
        with self._lock:
            if file in self._kept:
                self._kept.move_to_end(file)
                return self._kept[file]
        try:
            mask = np.asanyarray(nifti1.load(file).dataobj) > 0
        except (OSError, EOFError, ValueError, ImageFileError) as error:
            raise MaskError(f"{file}: cannot be read as NIfTI ({error}).") from error
        if mask.ndim != 3:
            raise MaskError(f"{file}: expected a mask with 3 axes, found {mask.ndim}.")
        template = fitted(mask, self.shape) if mask.any() else None
        with self._lock:
            self._kept[file] = template
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return template


def fitted(mask: np.ndarray, shape: Shape) -> np.ndarray:
    """A mask in the middle of the grid, in proportion.

    It is cropped to its box and put into 128^3 voxels of its own, as the authors do, then brought
    to the grid; what is longer than 128 voxels loses its ends.

    Args:
        mask: (X, Y, Z), boolean, with a voxel at least.
        shape: of the grid.

    Returns:
        (X, Y, Z) uint8, 0 and 1; with one voxel at least.
    """
    places = np.argwhere(mask)
    middle = (places.min(0) + places.max(0) + 1) / 2
    # By where each voxel falls, so that a thin structure survives on a coarse grid.
    units = np.array(shape) / REFERENCE_SIDE
    holes_shut = np.maximum(1, np.ceil(units)).astype(int)
    template = np.zeros(shape, np.uint8)
    for step in np.ndindex(*holes_shut):  # on grids finer than 128^3 one voxel covers several
        offset = (np.array(step) + 0.5) / holes_shut
        index = np.floor((places + offset - middle) * units + np.array(shape) / 2).astype(int)
        inside = ((index >= 0) & (index < np.array(shape))).all(1)
        template[tuple(index[inside].T)] = 1
    if not template.any():  # hollow in the middle and longer than the grid
        template[tuple(n // 2 for n in shape)] = 1
    return template
