"""Reader of IXI (brain-development.org): T1 MR of healthy volunteers from three London hospitals.

Layout: ``IXI-T1/IXI012-HH-1211-T1.nii.gz`` (IXI-T1.tar, unpacked into a folder of that name) and
``IXI.xls``, or the same table saved as ``IXI.csv``. The name of an image says who was scanned
(IXI012) and where (HH). Axes are often PSR; reading turns them. CC BY-SA 3.0.

Rules, because the real table has subjects without a row, rows without an image, rows without an
age, and 26 subjects with two rows, most of them a copy with zeros but two or more contradictory:
    - a subject is used if the rows with its number name one age and one sex between them;
    - 0, an empty field, NaN and infinity are no value; ages are compared at three decimals;
    - all tasks are about these subjects, so that they share features and their scores can be
      read side by side.
"""

from __future__ import annotations

import csv
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..benchmark.errors import DataError
from ..benchmark.types import Case, Kind, Target, Task, TaskCard, Triple
from ._nifti import nifti_case

FOLDER = "IXI-T1"
TABLES = ("IXI.xls", "IXI.csv")
SHEET = "Table"
"""Of the workbook's sheets the one with the subjects; the others decode columns."""

SITES = ("Guys", "HH", "IOP")
IMAGE = re.compile(r"(IXI(\d{3,}))-(Guys|HH|IOP)-\d+-T1\.nii\.gz")

SUBJECTS = 561
"""With a T1 image and one age and sex. Derived, because the list itself is not known to us: of the
581 T1 images 18 belong to subjects without an age (563 ages are reported by users of the archive),
15 of these without any row, and the rows of the subjects 219 and 328 contradict each other."""

FIELD_OF_VIEW_MM: Triple = (160.0, 224.0, 208.0)
"""The head without most of the neck. In the ten heads at hand (HH), whose images are 180x240x240
mm, the segmented brain reaches at most 74, 108 and 94 mm from the image's center (R, A, S)."""

URL = "https://biomedic.doc.ic.ac.uk/brain-development/downloads/IXI/"


class Subject(NamedTuple):
    """One usable subject."""

    id: str
    """``IXI012``."""
    site: str
    age: float
    """Years at the scan."""
    sex: int
    """0 male, 1 female."""


def task(
    what: str,
    title: str,
    kind: Kind,
    target: Callable[[Subject], Target],
    note: str,
    classes: tuple[str, ...] = (),
    unit: str = "",
    evidence: bool = True,
) -> Task:
    """A task on the T1 image of every usable subject.

    Args:
        what: last part of the task's name.
        title: of the card.
        kind: classification (AUROC) or regression (MAE).
        target: from a subject.
        note: what there is to say besides how the subjects were chosen.
        classes: names of the classes.
        unit: of a regression target.
        evidence: of the card.
    """
    card = TaskCard(
        name=f"ixi_{what}",
        version=1,
        title=title,
        kind=kind,
        modality="MR",
        anatomy="brain",
        metric="auroc" if kind == "classification" else "mae",
        license="CC BY-SA 3.0",
        source="https://brain-development.org/ixi-dataset/",
        citation="IXI: Information eXtraction from Images, EPSRC GR/S21533/02. Biomedical Image "
        "Analysis Group, Imperial College London, brain-development.org.",
        counts={"cases": SUBJECTS, "patients": SUBJECTS},
        classes=classes,
        unit=unit,
        field_of_view_mm=FIELD_OF_VIEW_MM,
        data_set="ixi",
        # MD5s as public downloaders compare them (of the archive: TorchIO, datasets/ixi.py)
        files=(
            (FOLDER, URL + "IXI-T1.tar", "34901a0593b41dd19c1a1f746eac2d58"),
            (TABLES[0], URL + TABLES[0], "066002afe250e4375d132266fcfceac5"),
        ),
        note=f"{note} Of the 581 T1 images those are used whose subject has one age and one sex in "
        f"the table; that these are {SUBJECTS} is derived from reports, not counted by us. IXI is "
        "part of OpenBHB, on which encoders of brain MR are pretrained: look at what a model has "
        "seen.",
        evidence=evidence,
    )

    def cases(root: Path) -> Sequence[Case]:
        people = _people(root)
        images = sorted((root / FOLDER).glob("IXI*.nii.gz"))
        named = [(image, IMAGE.fullmatch(image.name)) for image in images]
        subjects = [
            (image, Subject(match[1], match[3], *people[int(match[2])]))
            for image, match in named
            if match and int(match[2]) in people
        ]
        return [nifti_case(who.id, image, target(who), "scanner") for image, who in subjects]

    return Task(card, cases)


# --- the table -----------------------------------------------------------------------------------


def _people(root: Path) -> dict[int, tuple[float, int]]:
    """Age and sex by number, of those for whom the table says one of each.

    Raises:
        DataError: the table cannot be read, lacks a column, has text where a number belongs, or a
            row whose IXI_ID is no number of a subject.
    """
    path = next((root / name for name in TABLES if (root / name).exists()), None)
    if path is None:
        return {}  # the registry says what is missing and where it comes from
    rows = _xls(path) if path.suffix == ".xls" else _csv(path)
    header = [str(name).strip() for name in next(rows, ())]
    try:
        number, age = header.index("IXI_ID"), header.index("AGE")
        sex = next(i for i, name in enumerate(header) if name.startswith("SEX_ID"))
    except (ValueError, StopIteration) as error:
        raise DataError(
            f"{path} has the columns {', '.join(header) or 'none'}; IXI_ID, 'SEX_ID (1=m, 2=f)' "
            f"and AGE are expected. Download it again from {URL}IXI.xls"
        ) from error
    ages: Mapping[int, set[float]] = defaultdict(set)
    sexes: Mapping[int, set[int]] = defaultdict(set)
    for short in rows:
        row = [*short, *[""] * (len(header) - len(short))]
        who = _subject(path, row[number], row)
        ages[who] |= {round(_number(path, row[age]), 3)} - {0.0}
        sexes[who] |= {int(_number(path, row[sex])) - 1} & {0, 1}
    return {
        who: (min(ages[who]), min(sexes[who]))
        for who in ages
        if len(ages[who]) == len(sexes[who]) == 1
    }


def _subject(path: Path, field: object, row: Sequence[object]) -> int:
    """The whole number in a cell; 0, which nobody has, where it is empty."""
    found = _float(path, field)
    if not found.is_integer():  # nor are NaN and infinity
        shown = ", ".join(str(cell) for cell in row)
        raise DataError(
            f"{path} has the IXI_ID {field!r} in the row '{shown}'; the whole number of a subject "
            f"is expected. Restore the table from {URL}IXI.xls"
        )
    return int(found)


def _number(path: Path, field: object) -> float:
    """The number in a cell; 0 where there is no value."""
    found = _float(path, field)
    return found if math.isfinite(found) else 0.0


def _float(path: Path, field: object) -> float:
    try:
        return float(str(field).strip() or 0)
    except ValueError as error:
        raise DataError(
            f"{path} has {field!r} where a number is expected. Restore the table from {URL}IXI.xls"
        ) from error


def _xls(path: Path) -> Iterator[Sequence[object]]:
    import xlrd

    try:
        with xlrd.open_workbook(str(path)) as book:
            sheet = book[SHEET if SHEET in book.sheet_names() else 0]
            rows = [sheet.row_values(row) for row in range(sheet.nrows)]
    except OSError:
        raise
    except Exception as error:  # a damaged workbook can fail in any way
        raise DataError(
            f"{path} is not a readable Excel 97 workbook: {error}. Download it again from "
            f"{URL}IXI.xls, or save the table as IXI.csv in its place."
        ) from error
    yield from rows


def _csv(path: Path) -> Iterator[Sequence[object]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        yield from [row for row in csv.reader(file) if row]
