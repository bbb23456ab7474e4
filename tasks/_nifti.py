"""Cases whose image is a NIfTI file."""

from functools import partial
from pathlib import Path

from ..benchmark.types import Case, Target, Unit, Volume


def nifti_case(patient: str, image: Path, target: Target, unit: Unit) -> Case:
    """A case that is called like its patient; the file is read when it is asked for."""
    return Case(patient, patient, target, partial(_load, image, unit), partial(_digest, image))


def _load(image: Path, unit: Unit) -> Volume:
    from ..benchmark.volumes import read_nifti

    return read_nifti(image, unit)


def _digest(image: Path) -> str:
    from ..benchmark.volumes import file_sha256

    return file_sha256(image)
