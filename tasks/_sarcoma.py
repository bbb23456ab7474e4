"""Reader of the TCIA collection Soft-tissue-Sarcoma (Vallieres et al. 2015), as volumes.

Layout: ``soft_tissue_sarcoma/metadata.csv`` with a row per patient (``id, sex, age_years, ...``),
and ``soft_tissue_sarcoma/STS_xxx/{ct,mr}.nii.gz``: CT in HU and T1-weighted MR, cropped to the
tumour with a margin of 5 cm, 2x2 averaged in plane, as in the IBSI release of the collection;
beside each, where it is there, the tumour as drawn by the publisher, ``{ct,mr}_gtv.nii.gz`` (0, 1).
51 patients; CC BY 3.0.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ..benchmark.errors import DataError
from ..benchmark.types import Case, Kind, Seat, Target, Task, TaskCard, Triple, Unit
from ._nifti import nifti_case

FOLDER = "soft_tissue_sarcoma"
PATIENTS = tuple(f"STS_{number:03d}" for number in range(1, 52))

FIELD_OF_VIEW_MM: Mapping[str, Triple] = {"ct": (130.0, 130.0, 150.0), "mr": (72.0, 52.0, 80.0)}
"""The crops follow the tumour, so their size is information. These boxes lie inside the smallest
crop of the 20 patients at hand (CT 133x131x154 mm, MR 72x53x82 mm): what is shown has one size."""

UNITS: Mapping[str, Unit] = {"ct": "HU", "mr": "scanner"}

FORWARD_VOXELS = 2**28
"""Ours: sixteen times the largest crop of the 20 patients at 1 mm."""

SEXES = ("male", "female")


def task(
    scan: Literal["ct", "mr"],
    what: str,
    title: str,
    kind: Kind,
    target: Callable[[Mapping[str, str]], Target],
    classes: tuple[str, ...] = (),
    unit: str = "",
) -> Task:
    """A task on one of the two scans of every patient.

    Args:
        scan: which.
        what: last part of the task's name.
        title: of the card.
        kind: classification (AUROC) or regression (MAE).
        target: from a row of the table.
        classes: names of the classes.
        unit: of a regression target.
    """
    metric = "auroc" if kind == "classification" else "mae"
    note = "The images are centered on the tumour and show the limb around it, not the whole body."
    card = replace(_card(scan, what, title, kind, metric, note, classes), unit=unit)

    def cases(root: Path) -> Sequence[Case]:
        return [
            nifti_case(row["id"], image, target(row), UNITS[scan], region=_gtv(image))
            for row, image in _images(root, scan)
        ]

    return Task(card, cases, _roster)


def tumour(scan: Literal["ct", "mr"], title: str, note: str, boxed: bool) -> Task:
    """The segmentation of the tumour on one of the two scans.

    It was drawn on T2-weighted MR and copied to the other scans by rigid registration (Vallieres
    et al. 2015, section 2).

    Args:
        scan: which.
        title: of the card.
        note: what the crop gives away.
        boxed: show ``FIELD_OF_VIEW_MM`` only, not whole crops.
    """
    note = f"Drawn on T2-weighted MR and copied to this scan by rigid registration. {note}"
    classes = ("background", "tumour")
    card = _card(scan, "tumour", title, "segmentation", "dice", note, classes)
    card = replace(
        card,
        field_of_view_mm=card.field_of_view_mm if boxed else None,
        lattice_mm=(4.0, 4.0, 4.0),
        tolerance_mm=4.0,  # ours: two voxels in plane, one slice of 3.27 mm
        forward_voxels=FORWARD_VOXELS,
        files=((f"{card.files[0][0]}, {scan}_gtv.nii.gz", *card.files[0][1:]),),
    )

    def cases(root: Path) -> Sequence[Case]:
        return [
            nifti_case(row["id"], image, _gtv(image), UNITS[scan])  # the mask is the answer
            for row, image in _images(root, scan)
            if _gtv(image).exists()
        ]

    return Task(card, cases, _roster)


def _card(
    scan: Literal["ct", "mr"],
    what: str,
    title: str,
    kind: Kind,
    metric: str,
    note: str,
    classes: tuple[str, ...],
) -> TaskCard:
    """What all tasks on a scan have in common, and what is their own."""
    return TaskCard(
        name=f"sarcoma_{scan}_{what}",
        version=1,
        title=title,
        kind=kind,
        modality="CT" if scan == "ct" else "MR",
        anatomy="extremity soft tissue",
        metric=metric,
        license="CC BY 3.0",
        source="https://www.cancerimagingarchive.net/collection/soft-tissue-sarcoma/",
        citation="Vallieres M et al. A radiomics model from joint FDG-PET and MRI texture features "
        "for the prediction of lung metastases in soft-tissue sarcomas of the extremities. "
        "Physics in Medicine and Biology 60:5471 (2015).",
        counts={"cases": len(PATIENTS), "patients": len(PATIENTS)},
        classes=classes,
        field_of_view_mm=FIELD_OF_VIEW_MM[scan],
        data_set=f"sarcoma_{scan}",
        files=(
            (
                f"{FOLDER}/metadata.csv and {FOLDER}/STS_xxx/{scan}.nii.gz",
                "https://www.cancerimagingarchive.net/collection/soft-tissue-sarcoma/",
                "",
            ),
        ),
        note=f"51 patients: intervals are wide. {note}",
    )


def _images(root: Path, scan: Literal["ct", "mr"]) -> Iterator[tuple[Mapping[str, str], Path]]:
    """Rows of the table whose image is there."""
    for row in _table(root / FOLDER / "metadata.csv"):
        image = root / FOLDER / row["id"] / f"{scan}.nii.gz"
        if image.exists():
            yield row, image


def _gtv(image: Path) -> Path:
    """The file of the tumour on an image."""
    return image.with_name(image.name.replace(".nii.gz", "_gtv.nii.gz"))


def _roster() -> Sequence[Seat]:
    return [Seat(patient, patient) for patient in PATIENTS]


def sex(row: Mapping[str, str]) -> int:
    """Class of a row: 0 male, 1 female.

    Raises:
        DataError: neither M nor F.
    """
    if row["sex"] not in ("M", "F"):
        raise DataError(
            f"Patient {row['id']} has the sex '{row['sex']}' in metadata.csv; M or F is expected."
        )
    return "MF".index(row["sex"])


def age(row: Mapping[str, str]) -> float:
    """Years, from a row.

    Raises:
        DataError: not a finite number.
    """
    try:
        years = float(row["age_years"])
    except (TypeError, ValueError):
        years = math.nan
    if not math.isfinite(years):
        raise DataError(
            f"Patient {row['id']} has the age '{row['age_years']}' in metadata.csv; years are "
            "expected."
        )
    return years


def _table(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []  # the registry says what is missing and where it comes from
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        lacking = {"id", "sex", "age_years"} - set(table.fieldnames or ())
        if lacking:
            raise DataError(
                f"{path} has no column {', '.join(sorted(lacking))}; id, sex and age_years are "
                "expected. Restore the table."
            )
        return list(table)
