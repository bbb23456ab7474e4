"""Tasks that ask for the scanner: shown, and never counted as quality."""

from pathlib import Path

import pytest

from tomoprobe import tasks
from tomoprobe.benchmark import splits
from tomoprobe.benchmark.errors import DataError
from tomoprobe.tasks import suites

VENDOR = tasks.get("sarcoma_mr_vendor")


@pytest.mark.parametrize("name", suites.get("site_leakage"))
def test_whoever_tells_the_scanner_is_never_ranked_for_it(name: str) -> None:
    card = tasks.get(name).card
    assert not card.evidence and card.kind == "classification"
    assert "never ranked" in card.note and "shortcut" in card.note


def scanned(root: Path, *vendors: str) -> Path:
    """A data root with the MR of one patient per vendor; no voxel is there to be read."""
    folder = root / "soft_tissue_sarcoma"
    folder.mkdir()
    lines = ["id,sex,age_years,mr_manufacturer"]
    for number, vendor in enumerate(vendors, 1):
        lines.append(f"STS_{number:03d},M,50,{vendor}")
        (folder / f"STS_{number:03d}").mkdir()
        (folder / f"STS_{number:03d}" / "mr.nii.gz").touch()
    (folder / "metadata.csv").write_text("\n".join(lines))
    return root


def test_makers_with_few_patients_are_one_class(tmp_path: Path) -> None:
    root = scanned(tmp_path, "GE MEDICAL SYSTEMS", "SIEMENS", "Philips Medical Systems")
    cases = tasks.open_cases(VENDOR, root, subset=True)[0]
    assert [VENDOR.card.classes[int(c.target)] for c in cases] == ["GE", "other", "other"]  # type: ignore
    assert splits.uses_cv(VENDOR.card)


def test_a_patient_without_a_maker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="STS_002 has no mr_manufacturer"):
        tasks.open_cases(VENDOR, scanned(tmp_path, "SIEMENS", ""), subset=True)


def test_of_the_twenty_patients_at_hand_twelve_were_scanned_by_ge(data_root: Path) -> None:
    cases = tasks.open_cases(VENDOR, data_root, subset=True)[0]
    assert [c.target for c in cases].count(0) == 12 and len(cases) == 20
