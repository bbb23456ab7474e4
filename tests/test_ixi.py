"""IXI: the real table's traps, and the official layout built from the ten heads at hand."""

import csv
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import xlwt

from tomoprobe import tasks
from tomoprobe.benchmark import splits
from tomoprobe.benchmark.errors import DataError, IncompleteDataError, TaskFileError
from tomoprobe.benchmark.types import Case

COLUMNS = ("IXI_ID", "SEX_ID (1=m, 2=f)", "HEIGHT", "STUDY_DATE", "AGE")
NAMES = ("ixi_age", "ixi_sex", "ixi_site")

Row = tuple[object, ...]


def write_xls(root: Path, rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> None:
    """The workbook as the publisher has it: the table, and sheets that decode its columns."""
    book = xlwt.Workbook()
    book.add_sheet("Ethnicity").write(0, 0, "ID")
    sheet = book.add_sheet("Table")
    for i, row in enumerate([columns, *rows]):
        for j, value in enumerate(row):
            if value is not None:  # an empty cell
                sheet.write(i, j, value)
    book.save(str(root / "IXI.xls"))


def write_csv(root: Path, rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> None:
    """The same, saved by a spreadsheet program."""
    with (root / "IXI.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([columns, *rows])


def write_images(root: Path, *names: str) -> None:
    (root / "IXI-T1").mkdir(exist_ok=True)
    for number, name in enumerate(names):
        image = nib.nifti1.Nifti1Image(np.full((4, 5, 6), number, np.int16), np.eye(4))
        nib.nifti1.save(image, root / "IXI-T1" / f"{name}.nii.gz")


def opened(name: str, root: Path) -> list[Case]:
    return tasks.open_cases(tasks.get(name), root, subset=True)[0]


def targets(name: str, root: Path) -> dict[str, object]:
    return {case.id: case.target for case in opened(name, root)}


# --- the table -----------------------------------------------------------------------------------


def test_who_was_scanned_and_where_come_from_the_name_of_the_image(tmp_path: Path) -> None:
    write_images(tmp_path, "IXI002-Guys-0828-T1", "IXI012-HH-1211-T1", "IXI035-IOP-0873-T1")
    write_xls(
        tmp_path,
        [(2, 2, 164, "2005-11-25", 35.8001), (12, 1, 175, None, 38.78), (35, 1, 0, None, 23.5)],
    )
    assert targets("ixi_age", tmp_path) == {"IXI002": 35.8, "IXI012": 38.78, "IXI035": 23.5}
    assert targets("ixi_sex", tmp_path) == {"IXI002": 1, "IXI012": 0, "IXI035": 0}
    assert targets("ixi_site", tmp_path) == {"IXI002": 0, "IXI012": 1, "IXI035": 2}
    assert all(case.patient == case.id for case in opened("ixi_age", tmp_path))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("write", [write_xls, write_csv])
def test_only_subjects_with_one_age_and_one_sex_are_used(tmp_path: Path, write, name: str) -> None:
    write_images(
        tmp_path,
        *(f"IXI{number:03d}-Guys-0828-T1" for number in (1, 2, 3, 4, 5, 6, 7)),
        "IXI008-Guys-0828-T2",
        "IXI009-Elsewhere-0828-T1",
    )
    (tmp_path / "IXI-T1" / "._IXI010-Guys-0828-T1.nii.gz").write_bytes(b"a macOS fork")
    complete = [(number, 1, 170, "2005-11-25", 40.5) for number in (8, 9, 10, 600)]
    write(
        tmp_path,
        [
            *complete,  # rows without a T1 image
            (1, 2, 170, "2005-11-25", 50.25),
            (2, 2, 170, None, 30.0),  # twice: the second row is a copy with zeros
            (2, 0, 0, None, 0),
            (3, 1, 170, None, 30.0004),  # twice, equal but for rounding
            (3, 1, 171, None, 30.0),
            (4, 1, 170, None, None),  # no age
            (5, 1, 170, None, 30.0),  # two ages
            (5, 1, 170, None, 47.0),
            (6, 0, 170, None, 30.0),  # no sex
            # 7 has no row
        ],
    )
    assert [case.id for case in opened(name, tmp_path)] == ["IXI001", "IXI002", "IXI003"]


def test_two_rows_of_different_sex_are_no_answer(tmp_path: Path) -> None:
    write_images(tmp_path, "IXI001-Guys-0828-T1", "IXI328-Guys-0889-T1")
    rows = [(1, 1, 0, None, 30.0), (328, 1, 0, None, 30.0), (328, 2, 0, None, 30.0)]
    write_csv(tmp_path, rows)
    assert list(targets("ixi_sex", tmp_path)) == ["IXI001"]


def test_the_workbook_wins_over_its_copy(tmp_path: Path) -> None:
    write_images(tmp_path, "IXI001-Guys-0828-T1")
    write_csv(tmp_path, [(1, 1, 0, None, 30.0)])
    assert targets("ixi_age", tmp_path) == {"IXI001": 30.0}
    write_xls(tmp_path, [(1, 1, 0, None, 31.0)])
    assert targets("ixi_age", tmp_path) == {"IXI001": 31.0}


def test_without_a_table_the_message_says_where_it_comes_from(tmp_path: Path) -> None:
    write_images(tmp_path, "IXI001-Guys-0828-T1")
    with pytest.raises(IncompleteDataError, match=r"IXI\.xls from https://.*IXI/IXI\.xls \(MD5"):
        opened("ixi_age", tmp_path)


@pytest.mark.parametrize("write", [write_xls, write_csv])
def test_a_table_without_the_columns_is_refused(tmp_path: Path, write) -> None:
    write(tmp_path, [(1, 30.0)], ("IXI_ID", "AGE"))
    with pytest.raises(DataError, match=r"has the columns IXI_ID, AGE; IXI_ID, 'SEX_ID"):
        opened("ixi_age", tmp_path)


def test_text_where_a_number_belongs_is_refused(tmp_path: Path) -> None:
    write_csv(tmp_path, [(1, 1, 0, None, "unknown")])
    with pytest.raises(DataError, match=r"IXI\.csv has 'unknown' where a number is expected"):
        opened("ixi_age", tmp_path)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_what_is_not_finite_is_no_value(tmp_path: Path, value: str) -> None:
    write_images(tmp_path, *(f"IXI{number:03d}-Guys-0828-T1" for number in (1, 2, 3, 4)))
    rows: list[Row] = [
        (1, 1, 0, None, value),
        (2, value, 0, None, 30.0),
        (3, 1, 0, None, 31.0),
        (4, 2, 0, None, 32.0),
        (4, value, 0, None, value),
    ]
    write_csv(tmp_path, rows)
    assert targets("ixi_age", tmp_path) == {"IXI003": 31.0, "IXI004": 32.0}


@pytest.mark.parametrize("who", ["nan", "inf", "12.5"])
def test_a_row_of_no_subject_is_named(tmp_path: Path, who: str) -> None:
    write_csv(tmp_path, [(1, 1, 0, None, 30.0), (who, 2, 164, "2005-11-25", 35.8)])
    complaint = rf"has the IXI_ID '{who}' in the row '{who}, 2, 164, 2005-11-25, 35\.8'"
    with pytest.raises(DataError, match=complaint):
        opened("ixi_age", tmp_path)


@pytest.mark.parametrize("content", [b"", b"<html>403 Forbidden</html>", b"\xd0\xcf\x11\xe0" * 200])
def test_a_workbook_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "IXI.xls").write_bytes(content)
    with pytest.raises(DataError, match="is not a readable Excel 97 workbook") as caught:
        opened("ixi_age", tmp_path)
    assert not isinstance(caught.value, TaskFileError)


def test_the_three_tasks_are_about_the_same_images() -> None:
    cards = [tasks.get(name).card for name in NAMES]
    assert len({card.data_set for card in cards}) == 1
    assert len({card.field_of_view_mm for card in cards}) == 1
    assert len({tuple(card.counts.items()) for card in cards}) == 1
    assert not any(splits.uses_cv(card) for card in cards)
    assert [card.evidence for card in cards] == [True, True, False]


# --- ten real heads ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ten_heads(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official layout, its images being links to the ten heads at hand."""
    source = data_root / "ixi10"
    if not source.is_dir():
        pytest.skip(f"the ten heads of IXI are not at {source}")
    root = tmp_path_factory.mktemp("ixi")
    (root / "IXI-T1").mkdir()
    for image in (source / "nifti").glob("*_ds.nii.gz"):
        (root / "IXI-T1" / image.name.replace("_ds", "")).symlink_to(image)
    with (source / "lists" / "IXI_demog_n10.csv").open() as file:
        people = list(csv.DictReader(file))
    rows = [
        (int(who["MRID"][3:6]), "MF".index(who["Sex"]) + 1, 0, None, float(who["Age"]))
        for who in people
    ]
    write_xls(root, rows)
    return root


@pytest.mark.parametrize("name", NAMES)
def test_ten_heads_are_a_subset_that_has_to_be_asked_for(ten_heads: Path, name: str) -> None:
    with pytest.raises(IncompleteDataError, match=r"10 of 561 cases; 10 of 561 patients"):
        tasks.open_cases(tasks.get(name), ten_heads, subset=False)
    found, complete = tasks.open_cases(tasks.get(name), ten_heads, subset=True)
    assert len(found) == 10 and not complete
    assert len({case.digest() for case in found}) == 10


def test_the_heads_have_their_age_sex_and_hospital(ten_heads: Path) -> None:
    assert targets("ixi_age", ten_heads)["IXI012"] == 38.78
    assert targets("ixi_sex", ten_heads)["IXI014"] == 1
    assert set(targets("ixi_site", ten_heads).values()) == {1}


def test_a_head_is_turned_to_ras_and_its_brain_is_in_the_box(
    ten_heads: Path, data_root: Path
) -> None:
    box = np.array(tasks.get("ixi_age").card.field_of_view_mm)
    for case in opened("ixi_age", ten_heads)[::4]:
        volume = case.load()
        assert volume.unit == "scanner"
        assert volume.voxels.shape == (1, 90, 120, 120), "stored as posterior, superior, right"
        assert nib.orientations.aff2axcodes(volume.affine) == ("R", "A", "S")
        (path,) = (data_root / "ixi10" / "dlmuse").glob(f"{case.id}-*")
        brain = nib.funcs.as_closest_canonical(nib.nifti1.load(path))
        center = (np.array(brain.shape) - 1) / 2
        away = np.abs(np.argwhere(np.asarray(brain.dataobj) > 0) - center) + 0.5
        assert (away.max(axis=0) * volume.spacing <= box / 2).all(), case.id
