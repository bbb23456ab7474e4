"""Cases whose image is a NIfTI file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..benchmark.types import Case, Region, Target, Unit, Volume

if TYPE_CHECKING:
    import numpy as np


def nifti_case(
    patient: str,
    image: Path,
    target: Target,
    unit: Unit,
    *,
    id_: str = "",
    channel: int | None = None,
    region: Path | None = None,
) -> Case:
    """A case whose file is read when it is asked for.

    Args:
        patient: who was scanned.
        image: (X, Y, Z), or (X, Y, Z, C) with a ``channel``.
        target: of the case.
        unit: of the voxels.
        id_: of the case; that of the patient if empty.
        channel: which one of a file with several, from 0.
        region: a mask of 0 and 1 on the image's voxels, if there is one and the file exists.
    """
    return Case(
        id=id_ or patient,
        patient=patient,
        target=target,
        load=partial(_load, image, unit, channel),
        digest=partial(_digest, image, channel),
        region=_region(region) if region is not None and region.exists() else None,
    )


def _load(image: Path, unit: Unit, channel: int | None) -> Volume:
    from ..benchmark.volumes import read_nifti

    return read_nifti(image, unit, channel)


def _digest(image: Path, channel: int | None) -> str:
    from ..benchmark.volumes import image_sha256

    return image_sha256(image, channel)


def _region(mask: Path) -> Region:
    return Region(partial(_load_region, mask), partial(_digest, mask, None))


def _load_region(mask: Path) -> tuple[np.ndarray, np.ndarray]:
    from ..benchmark.volumes import read_mask

    voxels, affine = read_mask(mask, (1,))
    return voxels.astype(bool), affine
