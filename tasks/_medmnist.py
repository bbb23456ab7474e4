"""Reader of the 3D sets of MedMNIST v2 (Yang et al., Scientific Data 10:41, 2023).

Facts of the sets (labels, numbers per side, file names, MD5s): the publisher's
``medmnist/info.py``, version 3, for the files of Zenodo record 10519652. The organ and vessel sets
of earlier records have one case more each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..benchmark.errors import DataError
from ..benchmark.types import Case, Seat, Split, Task, TaskCard, Volume

if TYPE_CHECKING:
    import numpy as np

SIDES: tuple[Split, ...] = ("train", "val", "test")

LICENSE = "CC BY 4.0"
SOURCE = "https://medmnist.com"
CITATION = (
    "Yang J et al. MedMNIST v2: a large-scale lightweight benchmark for 2D and 3D biomedical image "
    "classification. Scientific Data 10:41 (2023)."
)

GRAY = (
    "The images are 8-bit gray values whose window is not published, so they have no physical "
    "unit; nor is the direction of their axes published, which are read as RAS."
)
"""What the note of every set of gray images says."""

NO_PATIENTS = (
    "Patient ids are not published: each image counts as a patient, so intervals are too narrow"
)
"""What the note of every set says; each adds what is known of its split."""


def task(card: TaskCard, spacing_mm: float) -> Task:
    """A task on one NPZ file of the official layout: ``{train,val,test}_{images,labels}``.

    Args:
        card: ``files`` names the one file; ``counts`` has the official numbers per side.
        spacing_mm: isotropic voxel size.
    """

    def roster() -> Sequence[Seat]:
        return [_seat(card, side, row) for side in SIDES for row in range(card.counts[side])]

    def cases(root: Path) -> Sequence[Case]:
        return _cases(card, spacing_mm, root)

    return Task(card, cases, roster)


def npz(stem: str, md5: str) -> tuple[str, str, str]:
    """The entry of a card's ``files`` for one file of Zenodo record 10519652."""
    url = f"https://zenodo.org/records/10519652/files/{stem}.npz?download=1"
    return (f"medmnist/{stem}.npz", url, md5)


def counts(train: int, val: int, test: int) -> dict[str, int]:
    """The ``counts`` of a card, every image counting as a patient."""
    cases = train + val + test
    return {"cases": cases, "patients": cases, "train": train, "val": val, "test": test}


def with_size(card: TaskCard, name: str, file: tuple[str, str, str]) -> TaskCard:
    """The card of the same set at another size."""
    return replace(card, name=name, data_set=name, files=(file,))


def _seat(card: TaskCard, side: Split, row: int) -> Seat:
    id_ = f"{side}_{row:04d}"
    return Seat(id_, id_, side)


def _cases(card: TaskCard, spacing_mm: float, root: Path) -> list[Case]:
    from ..benchmark.volumes import read_npz

    ((relative, url, md5),) = card.files
    path = next(
        (p for p in (root / relative, root / Path(relative).name) if p.exists()), root / relative
    )
    if not path.exists():
        return []  # the registry says what is missing and where it comes from
    _check_published(path, url, md5)
    labels = read_npz(path, [f"{side}_labels" for side in SIDES])

    @cache
    def images(side: Split) -> np.ndarray:
        return read_npz(path, [f"{side}_images"])[f"{side}_images"]

    return [
        Case(
            id=_seat(card, side, row).id,
            patient=_seat(card, side, row).patient,
            target=int(label.item()),
            load=_loader(images, side, row, spacing_mm),
            digest=_digester(images, side, row),
            split=side,
        )
        for side in SIDES
        for row, label in enumerate(labels[f"{side}_labels"])
    ]


def _check_published(path: Path, url: str, md5: str) -> None:
    """The file is the publisher's, byte by byte; every file is if the card states no MD5."""
    from ..benchmark.nifti import reading

    if not md5:
        return
    with reading(path), path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise DataError(
            f"{path} is not the published file: its MD5 is {found}, expected {md5}. Download it "
            f"again from {url}"
        )


def _loader(
    images: Callable[[Split], np.ndarray], side: Split, row: int, spacing_mm: float
) -> Callable[[], Volume]:
    def load() -> Volume:
        from ..benchmark.volumes import from_array

        spacing = (spacing_mm, spacing_mm, spacing_mm)
        # published as 8 bit; 255 is the largest value there is
        return from_array(images(side)[row].astype("float32") / 255, spacing, "relative")

    return load


def _digester(images: Callable[[Split], np.ndarray], side: Split, row: int) -> Callable[[], str]:
    def digest() -> str:
        image = images(side)[row]
        return hashlib.sha256(f"{image.dtype}{image.shape}".encode() + image.tobytes()).hexdigest()

    return digest
