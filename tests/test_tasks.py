"""The registry, the contract of a task file, and the real tasks on real data."""

import csv
import hashlib
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tomoprobe import tasks
from tomoprobe.benchmark import evaluate, metrics, probes, splits
from tomoprobe.benchmark.errors import (
    DataError,
    IncompleteDataError,
    MaskError,
    PatientError,
    TaskFileError,
    UnknownNameError,
    VolumeError,
)
from tomoprobe.benchmark.features import extract, identify
from tomoprobe.benchmark.predictions import Provenance
from tomoprobe.benchmark.targets import Labels
from tomoprobe.benchmark.types import Case, EncoderCard, Grid, Seat, Task, Window
from tomoprobe.benchmark.volumes import check_same_grid
from tomoprobe.tasks import _medmnist, _msd, suites

from .toy import CARD, ToyEncoder, cases

TOY = Task(CARD, lambda root: cases())


# --- finding -------------------------------------------------------------------------------------


def test_every_file_of_the_folder_is_listed() -> None:
    assert {"smoke_lesion", "adrenal_mnist3d", "msd_hippocampus", "sarcoma_ct_sex"} <= set(
        tasks.names()
    )
    assert not [name for name in tasks.names() if name.startswith("_") or name == "suites"]


@pytest.mark.parametrize("name", tasks.names())
def test_a_task_keeps_the_contract(name: str) -> None:
    task = tasks.get(name)
    card = task.card
    assert card.name == name
    assert sys.modules[f"tomoprobe.tasks.{name}"].__doc__
    assert card.version >= 1 and card.data_set and (card.files or not card.evidence)
    assert card.kind != "regression" or card.unit
    assert card.evidence or card.note, "what is not ranked says why"
    sides = [card.counts[side] for side in ("train", "val", "test") if side in card.counts]
    assert not sides or sum(sides) == card.counts["cases"]
    seats = task.roster()
    if not seats:  # the publisher's list is not known: then a copy is checked by number
        assert "not known to us" in card.note or "not counted by us" in card.note
        return
    placed = splits.assign(card, seats)
    assert len(seats) == card.counts["cases"]
    assert len({s.patient for s in seats}) == card.counts["patients"]
    for side in ("train", "val", "test"):
        if side in card.counts:
            assert sum(s.split == side for s in placed) == card.counts[side]


@pytest.mark.parametrize("name", tasks.names())
def test_a_card_says_where_the_data_come_from_and_on_which_terms(name: str) -> None:
    card = tasks.get(name).card
    # an open licence with its version, or terms in words
    assert re.fullmatch(r"CC BY(-SA|-NC|-NC-SA)? \d\.\d|CC0-1\.0", card.license) or (
        "smoke" in card.name and len(card.license) > 20
    ), card.license
    assert re.match(r"https?://[\w.-]+\.\w+", card.source)
    for path, url, md5 in card.files:
        assert path and not path.startswith("/") and ".." not in path
        assert re.match(r"https?://[\w.-]+\.\w+/", url), url
        assert re.fullmatch(r"([0-9a-f]{32})?", md5), md5


def test_no_two_files_have_the_same_checksum() -> None:
    known = {file for name in tasks.names() for file in tasks.get(name).card.files if file[2]}
    assert len({md5 for _, _, md5 in known}) == len(known)
    assert len(known) >= 24  # twelve of MedMNIST3D, ten archives of the MSD, two files of IXI


def test_tasks_on_the_same_images_agree_on_their_origin() -> None:
    shared: dict[str, set] = {}
    for name in tasks.names():
        card = tasks.get(name).card
        # of a pair the second image may be of another modality
        modality = card.modality.partition(" ")[0] if card.kind == "registration" else card.modality
        shared.setdefault(card.data_set, set()).add((modality, card.anatomy, card.license))
    assert all(len(facts) == 1 for facts in shared.values())


def test_listing_imports_no_heavy_package() -> None:
    code = (
        "import sys; from tomoprobe import tasks; [tasks.get(n) for n in tasks.names()];"
        "heavy = 'torch monai sklearn scipy nibabel nilearn pandas xlrd'.split();"
        "print(*[m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_an_unknown_task_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'smoke_lesion'"):
        tasks.get("smoke_lession")


@pytest.mark.parametrize("suite", suites.SUITES)
def test_a_suite_names_tasks_that_exist(suite: str) -> None:
    members = suites.get(suite)
    assert members and len(set(members)) == len(members)
    assert set(members) <= set(tasks.names())


def test_core_has_evidence_only() -> None:
    cards = [tasks.get(name).card for name in suites.get("core")]
    assert all(card.evidence and card.modality != "EM" for card in cards)
    assert not [card.name for card in cards if card.name.endswith("_64")]


@pytest.mark.parametrize(
    ("suite", "pattern", "number"),
    [
        ("medmnist3d", r"\w+_mnist3d", 6),
        ("medmnist3d_64", r"\w+_mnist3d_64", 6),
        ("ixi", r"ixi_\w+", 3),
        ("msd", r"msd_\w+", 11),
    ],
)
def test_the_suite_of_a_publisher_has_all_its_tasks(suite: str, pattern: str, number: int) -> None:
    belong = {
        name
        for name in tasks.names()
        # pairs of its images are ours, and have a suite of their own
        if re.fullmatch(pattern, name) and tasks.get(name).card.kind != "registration"
    }
    assert set(suites.get(suite)) == belong and len(belong) == number


def test_an_unknown_suite_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'smoke'"):
        suites.get("smok")


# --- the contract of a card ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"license": ""}, "'license' is empty"),
        ({"citation": ""}, "'citation' is empty"),
        ({"name": "toys"}, "called 'toys' but the file 'toy'"),
        ({"kind": "captioning"}, "'kind' is 'captioning', expected one of classification"),
        ({"kind": "segmentation", "metric": "dice"}, "'lattice_mm' is empty, which a segm"),
        ({"kind": "segmentation", "metric": "dice"}, "needs 'classes'.*and 'tolerance_mm'"),
        ({"modality": "MRI"}, "'modality' is 'MRI', expected one of CT, MR"),
        ({"metric": "auc"}, "'metric' is 'auc', expected one of auroc"),
        ({"kind": "regression"}, "'metric' is 'auroc', expected one of mae"),
        ({"kind": "segmentation"}, "'metric' is 'auroc', expected one of dice"),
        ({"counts": {"cases": 60}}, "'counts' lacks patients"),
        ({"classes": ("one",)}, "fewer than two classes"),
        ({"version": 0}, "'version' is 0, expected 1 or more"),
    ],
)
def test_a_broken_card_is_refused(change: dict, complaint: str) -> None:
    with pytest.raises(TaskFileError, match=complaint):
        tasks.check(replace(TOY, card=replace(CARD, **change)), "toy")


def test_all_faults_of_a_card_are_told_at_once() -> None:
    with pytest.raises(TaskFileError, match=r"'source' is empty.*'version' is 0"):
        tasks.check(replace(TOY, card=replace(CARD, source="", version=0)), "toy")


PRIVATE = """
from tomoprobe.benchmark.types import Task, TaskCard
TASK = Task(TaskCard(name="mine", version=1, title="Mine", kind="regression", modality="CT",
    anatomy="liver", metric="mae", license="private", source="here", citation="none",
    counts={"cases": 1, "patients": 1}, unit="mm"), lambda root: [])
"""


def test_a_private_file_becomes_a_task(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PRIVATE)
    assert tasks.load_file(tmp_path / "mine.py").card.title == "Mine"


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("mine.py", None, "There is no task file"),
        ("mine.txt", PRIVATE, "There is no task file"),
        ("mine.py", "TASK = (", "fails when it is run: SyntaxError"),
        ("mine.py", "1 / 0", "fails when it is run: ZeroDivisionError: division by zero"),
        ("mine.py", "import sys; sys.exit(0)", "fails when it is run: SystemExit"),
        ("mine.py", "task = 1", "exposes NoneType as TASK"),
        ("mine.py", "TASK = 1", "exposes int as TASK"),
        ("yours.py", PRIVATE, "the card is called 'mine' but the file 'yours'"),
        ("smoke_lesion.py", PRIVATE, "called like a task that ships"),
    ],
)
def test_a_broken_private_file_is_refused(
    tmp_path: Path, file: str, text: str | None, complaint: str
) -> None:
    if text is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises(TaskFileError, match=complaint):
        tasks.load_file(tmp_path / file)


# --- opening -------------------------------------------------------------------------------------


def test_a_complete_set_opens_with_its_sides(tmp_path: Path) -> None:
    opened, complete = tasks.open_cases(TOY, tmp_path, subset=False)
    assert complete
    assert [case.split for case in opened].count("test") == 20
    hashed = Task(replace(CARD, counts={"cases": 60, "patients": 300}), lambda root: cases(), tuple)
    unplaced = replace(hashed, cases=lambda root: [replace(case, split=None) for case in cases()])
    opened, complete = tasks.open_cases(unplaced, tmp_path, subset=True)
    assert not complete and {case.split for case in opened} == {"train", "val", "test"}


def test_an_incomplete_copy_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    roster = [Seat(case.id, case.patient, case.split) for case in cases()]
    files = (("toy/images.npz", "https://example.org/toy", "d41d8cd98f00b204e9800998ecf8427e"),)
    partial = Task(replace(CARD, files=files), lambda root: cases()[:35], lambda: roster)
    with pytest.raises(IncompleteDataError) as caught:
        tasks.open_cases(partial, tmp_path, subset=False)
    told = str(caught.value)
    assert "35 of 60 cases" in told and "0 of 20 test" in told
    assert "missing are case035, case036" in told and "case054 and 5 more" in told
    assert "case055" not in told
    assert "--subset" in told
    assert "toy/images.npz from https://example.org/toy (MD5 d41d8cd9" in told
    opened, complete = tasks.open_cases(partial, tmp_path, subset=True)
    assert len(opened) == 35 and not complete


def test_cases_that_are_not_of_the_set_make_another_set(tmp_path: Path) -> None:
    roster = [Seat(case.id, case.patient, case.split) for case in cases()]
    foreign = replace(cases()[0], id="mine", patient="mine")
    swapped = Task(CARD, lambda root: [foreign, *cases()[1:]], lambda: roster)
    with pytest.raises(IncompleteDataError, match="missing are case000; not part of it are mine"):
        tasks.open_cases(swapped, tmp_path, subset=False)
    assert not tasks.open_cases(swapped, tmp_path, subset=True)[1]


def test_nothing_there_is_refused_even_as_a_subset(tmp_path: Path) -> None:
    with pytest.raises(IncompleteDataError, match="No case of 'msd_hippocampus'"):
        tasks.open_cases(tasks.get("msd_hippocampus"), tmp_path, subset=True)


@pytest.mark.parametrize("name", ["adrenal_mnist3d", "msd_hippocampus_volume", "sarcoma_mr_age"])
def test_a_missing_data_root_is_told_with_what_to_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOMOPROBE_DATA", raising=False)
    for root in (None, tmp_path / "nowhere"):
        with pytest.raises(
            DataError, match=r"--data-root DIR or set\s+TOMOPROBE_DATA.*Source: http"
        ):
            tasks.open_cases(tasks.get(name), root, subset=False)


def test_the_data_root_may_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    card = replace(CARD, files=(("x", "https://example.org", ""),))
    monkeypatch.setenv("TOMOPROBE_DATA", str(tmp_path))
    tasks.open_cases(Task(card, lambda root: asked.append(root) or cases()), None, subset=False)
    assert asked == [tmp_path]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_data_root_is_told(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o000)
    with pytest.raises(DataError, match="not a folder that can be read"):
        tasks.open_cases(tasks.get("adrenal_mnist3d"), locked, subset=False)


def test_duplicates_are_refused(tmp_path: Path) -> None:
    twice = Task(CARD, lambda root: [*cases()[:-1], cases()[0]])
    with pytest.raises(PatientError, match="'case000' of 'toy' is listed twice"):
        tasks.open_cases(twice, tmp_path, subset=False)
    first, last = cases()[0], cases()[-1]
    both = Task(CARD, lambda root: [*cases()[:-1], replace(last, patient=first.patient)])
    with pytest.raises(PatientError, match="on two sides"):
        tasks.open_cases(both, tmp_path, subset=False)


@pytest.mark.parametrize(
    ("kind", "metric", "target"),
    [
        ("classification", "auroc", 2),
        ("classification", "auroc", -1),
        ("classification", "auroc", 0.5),
        ("regression", "mae", float("nan")),
        ("segmentation", "dice", 1),
    ],
)
def test_a_target_that_does_not_fit_the_card_is_refused(
    tmp_path: Path, kind: str, metric: str, target: float
) -> None:
    card = replace(CARD, kind=kind, metric=metric)
    odd = [replace(case, target=target) for case in cases()]
    with pytest.raises(TaskFileError, match="Case 'case000' of 'toy' has the target"):
        tasks.open_cases(Task(card, lambda root: odd), tmp_path, subset=False)


# --- readers, on files made here -----------------------------------------------------------------


def adrenal_like(folder: Path, **changes: np.ndarray) -> Task:
    """A task on an NPZ file of the official layout with 4, 2 and 3 rows."""
    rng = np.random.default_rng(0)
    arrays = {}
    for side, n in zip(_medmnist.SIDES, (4, 2, 3), strict=True):
        arrays[f"{side}_images"] = 255 * rng.integers(0, 2, (n, 5, 5, 5), np.uint8)
        arrays[f"{side}_labels"] = np.arange(n, dtype=np.uint8)[:, None] % 2
    np.savez_compressed(folder / "tiny.npz", **(arrays | changes))
    card = replace(
        tasks.get("adrenal_mnist3d").card,
        files=(("medmnist/tiny.npz", "https://example.org/tiny.npz", ""),),
        counts={"cases": 9, "patients": 9, "train": 4, "val": 2, "test": 3},
    )
    return _medmnist.task(card, spacing_mm=2.0)


@pytest.mark.parametrize("place", ["", "medmnist"])
def test_an_npz_file_is_found_in_its_folder_or_in_the_root(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    task = adrenal_like(tmp_path / place)
    opened, complete = tasks.open_cases(task, tmp_path, subset=False)
    assert complete
    volume = opened[1].load()
    assert volume.voxels.shape == (1, 5, 5, 5) and volume.spacing == (2.0, 2.0, 2.0)
    assert volume.unit == "relative" and set(np.unique(volume.voxels)) == {0.0, 1.0}
    assert len({case.digest() for case in opened}) == 9
    assert [case.target for case in opened] == [0, 1, 0, 1, 0, 1, 0, 1, 0]


def test_a_changed_download_is_refused(tmp_path: Path) -> None:
    task = adrenal_like(tmp_path)
    file = (*task.card.files[0][:2], "bbd3c5a5576322bc4cdfea780653b1ce")
    with pytest.raises(DataError, match="is not the published file: its MD5"):
        strict = _medmnist.task(replace(task.card, files=(file,)), spacing_mm=2.0)
        tasks.open_cases(strict, tmp_path, subset=True)


def test_a_truncated_npz_file_is_refused(tmp_path: Path) -> None:
    task = adrenal_like(tmp_path)
    whole = (tmp_path / "tiny.npz").read_bytes()
    (tmp_path / "tiny.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VolumeError):
        tasks.open_cases(task, tmp_path, subset=True)


VOXELS = EncoderCard(
    name="voxels",
    title="Voxels",
    grid=Grid((4, 4, 4)),
    intensity={"relative": Window(0, 1)},
    width=64,
)


@dataclass
class Voxels(ToyEncoder):
    """All voxels of a 4x4x4 view of the field of view."""

    card: EncoderCard = VOXELS

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


@pytest.mark.parametrize("name", ["organ_mnist3d", "fracture_mnist3d"])
def test_a_task_of_many_classes_runs_through_the_spine(tmp_path: Path, name: str) -> None:
    published = tasks.get(name).card
    k = len(published.classes)
    assert k == {"organ_mnist3d": 11, "fracture_mnist3d": 3}[name]
    rng = np.random.default_rng(0)
    prototypes = rng.integers(0, 180, (k, 8, 8, 8))
    arrays, numbers = {}, {"train": 6 * k, "val": 2 * k, "test": 4 * k}
    for side, n in numbers.items():
        labels = np.arange(n) % k
        images = prototypes[labels] + rng.integers(0, 60, (n, 8, 8, 8))
        arrays[f"{side}_images"] = images.astype(np.uint8)
        arrays[f"{side}_labels"] = labels.astype(np.uint8)[:, None]
    np.savez(tmp_path / "tiny.npz", **arrays)
    card = replace(
        published,
        files=(("medmnist/tiny.npz", "https://example.org/tiny.npz", ""),),
        counts=_medmnist.counts(**numbers),
    )
    assert card.field_of_view_mm is not None
    task = _medmnist.task(card, spacing_mm=card.field_of_view_mm[0] / 8)
    some, complete = tasks.open_cases(task, tmp_path, subset=False)
    assert complete
    x = extract(Voxels(), some, card.field_of_view_mm)
    table = evaluate.predict(card, some, x, probes.get("linear"))
    assert {f"p{label}" for label in range(k)} <= set(table.columns)
    about = Provenance(
        model="voxels",
        model_sha="0" * 64,
        task=card.name,
        task_version=card.version,
        probe="linear",
        probe_version=1,
        kind=card.kind,
        width=64,
        cv=False,
        subset=False,
        seconds=1.0,
        device="cpu",
        software="test",
        dataset_sha=identify(task, some).dataset_sha,
        split_sha=splits.split_sha(card, splits.seats_of(some)),
    )
    scores = {row.metric: row for row in evaluate.score(table, about).results}
    assert set(scores) == {metric.name for metric in metrics.for_kind("classification")}
    assert (scores["auroc"].score or 0) > 0.95
    assert all(row.n_test == 4 * k and row.score is not None for row in scores.values())
    assert (scores["auroc"].low or 0) <= (scores["auroc"].score or 0)


@pytest.mark.parametrize("name", sorted(n for n in tasks.names() if n.endswith("_mnist3d_64")))
def test_the_two_sizes_of_a_set_show_the_same_cases(name: str) -> None:
    large, small = tasks.get(name).card, tasks.get(name.removesuffix("_64")).card
    assert (large.counts, large.classes) == (small.counts, small.classes)
    assert large.data_set != small.data_set, "features of two sizes are two things"
    if name != "nodule_mnist3d_64":  # a larger crop, not finer voxels
        assert large.field_of_view_mm == small.field_of_view_mm


# --- Medical Segmentation Decathlon --------------------------------------------------------------

MSD_FOLDERS = {
    tasks.get(name).card.files[0][0]: name
    for name in suites.get("msd")
    if name != "msd_hippocampus_volume"
}


def test_the_decathlon_has_ten_sets() -> None:
    assert [folder[:6] for folder in sorted(MSD_FOLDERS)] == [f"Task{n:02d}" for n in range(1, 11)]
    cards = [tasks.get(name).card for _, name in sorted(MSD_FOLDERS.items())]
    numbers = [card.counts["cases"] for card in cards]
    assert numbers == [484, 20, 131, 260, 32, 63, 281, 303, 41, 126]  # Antonelli 2022, table 1
    assert all(
        folder in url
        for folder, name in MSD_FOLDERS.items()
        for _, url, _ in tasks.get(name).card.files
    )


@pytest.mark.parametrize("folder", sorted(MSD_FOLDERS))
def test_a_set_of_the_decathlon_opens_on_the_official_layout(tmp_path: Path, folder: str) -> None:
    task = tasks.get(MSD_FOLDERS[folder])
    card, seats = task.card, task.roster()
    ids = [seat.id for seat in seats[:2]] or ["some_001", "some_002"]
    channels = {"Task01_BrainTumour": (4,), "Task05_Prostate": (2,)}.get(folder, ())
    for sub in ("imagesTr", "labelsTr"):
        (tmp_path / folder / sub).mkdir(parents=True)
    for index, id_ in enumerate(ids):
        values = 1000 * index + np.arange(60 * math.prod(channels), dtype=np.float32)
        image = values.reshape(3, 4, 5, *channels, order="F")
        mask = np.arange(60, dtype=np.uint8).reshape(3, 4, 5) % len(card.classes)
        for sub, array in (("imagesTr", image), ("labelsTr", mask)):
            path = tmp_path / folder / sub / f"{id_}.nii.gz"
            nib.nifti1.save(nib.nifti1.Nifti1Image(array, np.diag([1.0, 1.0, 3.0, 1.0])), path)
            path.with_name(f"._{path.name}").write_bytes(b"fork")
    found, complete = tasks.open_cases(task, tmp_path, subset=True)
    assert [case.id for case in found] == ids and not complete
    assert len({case.digest() for case in found}) == 2
    volume = found[0].load()
    assert volume.voxels.shape == (1, 3, 4, 5)
    assert volume.unit == ("HU" if card.modality == "CT" else "scanner")
    first = {"Task01_BrainTumour": 2 * 60, "Task05_Prostate": 0}.get(folder, 0)
    assert volume.voxels.min() == first, "the channel that the card names"
    assert isinstance(found[0].target, Labels)
    mask, affine = found[0].target.load()
    check_same_grid(volume, affine, mask.shape)
    assert set(np.unique(mask)) == set(range(len(card.classes)))
    assert all(case.region is None for case in found), "the mask is the answer"


@pytest.fixture
def hippocampi(tmp_path: Path) -> Path:
    """A data root with two crops of the public set, and what else the archive holds."""
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "Task04_Hippocampus" / folder).mkdir(parents=True)
    for number, size in ((1, 4), (394, 6)):
        image = np.random.default_rng(number).normal(size=(34, 46, 30)).astype(np.float32)
        mask = np.zeros(image.shape, np.uint8)
        mask[10 : 10 + size, 10:14, 10:14] = 1
        mask[10 : 10 + size, 14:18, 10:14] = 2
        affine = np.diag([1.0, 1.0, 2.0, 1.0])
        for folder, array in (("imagesTr", image), ("labelsTr", mask)):
            path = tmp_path / "Task04_Hippocampus" / folder / f"hippocampus_{number:03d}.nii.gz"
            nib.save(nib.Nifti1Image(array, affine), path)
    (tmp_path / "Task04_Hippocampus" / "imagesTr" / "._hippocampus_001.nii.gz").write_bytes(b"fork")
    return tmp_path


def test_the_volume_is_voxels_times_voxel_size(hippocampi: Path) -> None:
    task = tasks.get("msd_hippocampus_volume")
    opened, complete = tasks.open_cases(task, hippocampi, subset=True)
    assert not complete
    assert all(case.region is None for case in opened), "the mask is the answer"
    assert {case.id: case.target for case in opened} == {
        "hippocampus_001": 4 * 4 * 8 * 2.0,
        "hippocampus_394": 6 * 4 * 8 * 2.0,
    }


def test_segmentation_cases_point_at_their_mask_and_share_the_images(hippocampi: Path) -> None:
    masks, _ = tasks.open_cases(tasks.get("msd_hippocampus"), hippocampi, subset=True)
    volumes, _ = tasks.open_cases(tasks.get("msd_hippocampus_volume"), hippocampi, subset=True)
    assert [m.digest() for m in masks] == [v.digest() for v in volumes]
    assert [m.id for m in masks] == [v.id for v in volumes]
    targets = [m.target for m in masks if isinstance(m.target, Labels)]
    assert [np.count_nonzero(t.load()[0]) for t in targets] == [4 * 4 * 8, 6 * 4 * 8]
    assert len({t.digest() for t in targets}) == 2
    assert tasks.get("msd_hippocampus").card.data_set == (
        tasks.get("msd_hippocampus_volume").card.data_set
    )


def test_an_empty_mask_is_refused(hippocampi: Path) -> None:
    path = hippocampi / "Task04_Hippocampus" / "labelsTr" / "hippocampus_001.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((34, 46, 30), np.uint8), np.eye(4)), path)
    with pytest.raises(MaskError, match="hippocampus_001"):
        tasks.open_cases(tasks.get("msd_hippocampus_volume"), hippocampi, subset=True)


def test_a_crop_without_its_mask_counts_as_missing(hippocampi: Path) -> None:
    (hippocampi / "Task04_Hippocampus" / "labelsTr" / "hippocampus_001.nii.gz").unlink()
    with pytest.raises(IncompleteDataError, match=r"1 of 260 cases.*missing are hippocampus_001"):
        tasks.open_cases(tasks.get("msd_hippocampus"), hippocampi, subset=False)


def test_ranges_are_written_out() -> None:
    assert _msd.numbers("1 3-5 9") == [1, 3, 4, 5, 9]


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ("id,sex,age_years\nSTS_001,X,50\n", "has the sex 'X'"),
        ("id,age_years\nSTS_001,50\n", "has no column sex"),
        ("id,sex,age_years\nSTS_001,M,50\nSTS_001,M,50\n", "listed twice"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, table: str, complaint: str) -> None:
    folder = tmp_path / "soft_tissue_sarcoma"
    (folder / "STS_001").mkdir(parents=True)
    (folder / "metadata.csv").write_text(table)
    nib.save(
        nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), folder / "STS_001/ct.nii.gz"
    )
    with pytest.raises(DataError, match=complaint):
        tasks.open_cases(tasks.get("sarcoma_ct_sex"), tmp_path, subset=True)


@pytest.mark.parametrize("age", ["unknown", "nan", "inf", ""])
def test_an_age_that_is_no_number_is_refused(tmp_path: Path, age: str) -> None:
    folder = tmp_path / "soft_tissue_sarcoma"
    (folder / "STS_001").mkdir(parents=True)
    (folder / "metadata.csv").write_text(f"id,sex,age_years\nSTS_001,M,{age}\n")
    shutil.copy(Path(__file__), folder / "STS_001" / "mr.nii.gz")  # listing reads no image
    with pytest.raises(DataError, match=f"Patient STS_001 has the age '{age}'"):
        tasks.open_cases(tasks.get("sarcoma_mr_age"), tmp_path, subset=True)


# --- real data -----------------------------------------------------------------------------------


def opened(name: str, root: Path) -> list[Case]:
    return tasks.open_cases(tasks.get(name), root, subset=True)[0]


def test_the_real_adrenal_set_is_complete(data_root: Path) -> None:
    found, complete = tasks.open_cases(tasks.get("adrenal_mnist3d"), data_root, subset=False)
    assert complete
    # 64 / 28 mm is printed nowhere in the file: the publisher crops a cube of 64 mm
    assert found[0].load().spacing == pytest.approx((64 / 28,) * 3)
    assert sum(int(case.target) for case in found if case.split == "test") == 69  # type: ignore
    path = data_root / "medmnist" / "adrenalmnist3d.npz"
    assert (
        hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        == (tasks.get("adrenal_mnist3d").card.files[0][2])
    )


def test_real_hippocampal_volumes_equal_the_independent_table(data_root: Path) -> None:
    with (data_root / "Task04_Hippocampus" / "volumes_mm3.csv").open() as file:
        known = {row["case"]: float(row["total_mm3"]) for row in csv.DictReader(file)}
    found = opened("msd_hippocampus_volume", data_root)
    assert {case.id: case.target for case in found} == pytest.approx(known)
    assert set(known) <= {seat.id for seat in tasks.get("msd_hippocampus").roster()}


def test_the_box_of_the_volume_task_hides_the_size_of_the_crop(data_root: Path) -> None:
    """The publisher's crop grows with the hippocampus; what the box shows of it may not."""
    box = tasks.get("msd_hippocampus_volume").card.field_of_view_mm
    assert box is not None
    found = opened("msd_hippocampus_volume", data_root)
    folder = data_root / "Task04_Hippocampus" / "imagesTr"
    sizes = np.array([nib.nifti1.load(folder / f"{c.id}.nii.gz").shape for c in found], float)
    volume = np.array([c.target for c in found])

    def r2(size: np.ndarray) -> float:
        design = np.c_[np.ones(len(size)), size]
        weights = np.linalg.lstsq(design, volume, rcond=None)[0]
        return 1 - ((volume - design @ weights) ** 2).sum() / ((volume - volume.mean()) ** 2).sum()

    assert r2(sizes) > 0.3
    assert r2(np.minimum(sizes, box)) < 0.1


@pytest.fixture
def sarcomas(tmp_path: Path) -> Path:
    """A data root with two patients; the second lacks the tumour's mask on MR."""
    folder = tmp_path / "soft_tissue_sarcoma"
    folder.mkdir()
    table = "id,sex,age_years\nSTS_001,M,50\nSTS_051,F,60\n"
    (folder / "metadata.csv").write_text(table)
    for number, patient in enumerate(("STS_001", "STS_051")):
        (folder / patient).mkdir()
        for scan in ("ct", "mr"):
            image = np.full((4, 5, 6), number, np.int16)
            mask = np.zeros(image.shape, np.uint8)
            mask[0, 1:3, 2] = 1
            for stem, array in ((scan, image), (f"{scan}_gtv", mask)):
                saved = nib.nifti1.Nifti1Image(array, np.diag([-2.0, -2.0, 3.0, 1.0]))
                nib.nifti1.save(saved, folder / patient / f"{stem}.nii.gz")
    (folder / "STS_051" / "mr_gtv.nii.gz").unlink()
    return tmp_path


@pytest.mark.parametrize("name", ["sarcoma_ct_sex", "sarcoma_ct_age", "sarcoma_mr_age"])
def test_the_region_of_a_sarcoma_is_its_tumour(sarcomas: Path, name: str) -> None:
    first, second = tasks.open_cases(tasks.get(name), sarcomas, subset=True)[0]
    assert first.region is not None
    mask, affine = first.region.load()
    assert mask.dtype == bool and mask.sum() == 2
    assert mask[3, 2:4, 2].all(), "turned to RAS as its image is"
    check_same_grid(first.load(), affine, mask.shape)
    assert first.region.digest() == first.region.digest() != first.digest()
    assert (second.region is None) == ("_mr_" in name)


def test_both_scans_of_a_patient_stay_on_one_side(sarcomas: Path) -> None:
    task = tasks.get("sarcoma_modality")
    found, complete = tasks.open_cases(task, sarcomas, subset=True)
    assert not complete
    assert {case.id: case.target for case in found} == {
        "STS_001_CT": 0,
        "STS_051_CT": 0,
        "STS_001_MR": 1,
        "STS_051_MR": 1,
    }
    assert {case.id: case.load().unit for case in found} == {
        case.id: "HU" if case.target == 0 else "scanner" for case in found
    }
    assert splits.uses_cv(task.card) and not task.card.evidence
    seats = task.roster()
    assert len(seats) == 102 and {case.id for case in found} <= {seat.id for seat in seats}
    assert {seat.patient for seat in seats} == {seat.id[:7] for seat in seats}


@pytest.mark.parametrize("scan", ["ct", "mr"])
def test_the_tumour_of_a_sarcoma_is_the_answer_or_the_region(sarcomas: Path, scan: str) -> None:
    found, _ = tasks.open_cases(tasks.get(f"sarcoma_{scan}_tumour"), sarcomas, subset=True)
    assert [case.id for case in found] == ["STS_001", "STS_051"][: 2 if scan == "ct" else 1]
    assert all(case.region is None for case in found), "it would give the answer away"
    assert isinstance(found[0].target, Labels)
    mask, affine = found[0].target.load()
    check_same_grid(found[0].load(), affine, mask.shape)
    assert mask.sum() == 2 and mask[3, 2:4, 2].all()
    others = tasks.open_cases(tasks.get(f"sarcoma_{scan}_sex"), sarcomas, subset=True)[0]
    assert found[0].digest() == others[0].digest(), "one image, one entry of the cache"


@pytest.mark.parametrize("scan", ["ct", "mr"])
def test_every_sarcoma_crop_fills_the_box(data_root: Path, scan: str) -> None:
    box = np.array(tasks.get(f"sarcoma_{scan}_sex").card.field_of_view_mm)
    smallest = np.array(tasks.get("sarcoma_modality").card.field_of_view_mm)
    assert (smallest <= box).all()
    for case in opened(f"sarcoma_{scan}_sex", data_root):
        header = nib.nifti1.load(
            data_root / "soft_tissue_sarcoma" / case.id / f"{scan}.nii.gz"
        ).header
        extent = np.array(header.get_data_shape()) * header.get_zooms()
        assert (extent >= box).all(), (case.id, extent)


def test_the_real_sarcoma_sample_is_refused_unless_it_may_be_partial(data_root: Path) -> None:
    task = tasks.get("sarcoma_ct_age")
    with pytest.raises(IncompleteDataError, match=r"20 of 51 cases.*missing are STS_002"):
        tasks.open_cases(task, data_root, subset=False)
    ages = {case.patient: case.target for case in opened("sarcoma_ct_age", data_root)}
    assert ages["STS_003"] == 17.0
    sexes = {case.patient: case.target for case in opened("sarcoma_mr_sex", data_root)}
    names = tasks.get("sarcoma_mr_sex").card.classes
    assert (names[int(sexes["STS_001"])], names[int(sexes["STS_003"])]) == ("male", "female")  # type: ignore
    volume = opened("sarcoma_ct_age", data_root)[0].load()
    assert volume.unit == "HU" and volume.voxels.min() < -900


@pytest.mark.parametrize("scan", ["ct", "mr"])
def test_every_real_tumour_lies_on_its_image_and_in_the_box(data_root: Path, scan: str) -> None:
    box = np.array(tasks.get(f"sarcoma_{scan}_sex").card.field_of_view_mm)
    for case in opened(f"sarcoma_{scan}_sex", data_root):
        assert case.region is not None
        mask, affine = case.region.load()
        volume = case.load()
        check_same_grid(volume, affine, mask.shape)
        away = np.abs(np.argwhere(mask) - (np.array(mask.shape) - 1) / 2) * volume.spacing
        assert (away <= box / 2).all(axis=1).any(), "a view without the tumour has no region"


@pytest.mark.parametrize(
    "name",
    ["adrenal_mnist3d", "msd_hippocampus", "sarcoma_ct_sex", "sarcoma_mr_age", "sarcoma_modality"],
)
def test_real_images_load_and_their_digest_stays(data_root: Path, name: str) -> None:
    first, *_, last = opened(name, data_root)
    for case in (first, last):
        assert case.load().voxels.dtype == np.float32
        assert case.digest() == case.digest()
    assert first.digest() != last.digest()


def test_the_box_of_the_tumour_task_hides_how_large_the_tumour_is(data_root: Path) -> None:
    """The crop of CT ends 5 cm around the tumour: an ellipsoid that large is nearly the answer."""
    box = tasks.get("sarcoma_ct_tumour").card.field_of_view_mm
    assert box is not None

    def dice(seen: tuple[float, ...]) -> float:
        scores = []
        for case in opened("sarcoma_ct_tumour", data_root)[:8]:
            assert isinstance(case.target, Labels)
            mask, affine = case.target.load()
            spacing = np.abs(np.diag(affine)[:3])
            extent = np.array(mask.shape) * spacing
            radii = np.maximum((np.minimum(extent, seen) - 100) / 2, 5)
            place = [
                (np.arange(n) + 0.5) * s - e / 2
                for n, s, e in zip(mask.shape, spacing, extent, strict=True)
            ]
            grid = np.ix_(*place)
            guess = sum((x / r) ** 2 for x, r in zip(grid, radii, strict=True)) <= 1
            scores.append(2 * (guess & (mask > 0)).sum() / (guess.sum() + mask.sum()))
        return float(np.mean(scores))

    assert dice((np.inf,) * 3) > 0.65
    assert dice(box) < 0.4


def test_the_structures_of_the_ten_heads_equal_the_published_volumes(data_root: Path) -> None:
    task = tasks.get("ixi10_structures")
    found, complete = tasks.open_cases(task, data_root, subset=False)
    assert complete and splits.uses_cv(task.card)
    with (data_root / "ixi10" / "dlmuse" / "IXI_dlmuse.csv").open() as file:
        rows = {row["MRID"][:6]: row for row in csv.DictReader(file)}
    composites = (
        ("509",),
        ("47", "48"),
        ("59", "60"),
        ("502",),
        ("35",),
        ("405", "408", "410", "412"),
    )
    for case in found[:3]:
        assert isinstance(case.target, Labels)
        mask, affine = case.target.load()
        check_same_grid(case.load(), affine, mask.shape)
        volumes = 8.0 * np.bincount(mask.ravel(), minlength=len(task.card.classes))
        known = [sum(float(rows[case.id][column]) for column in columns) for columns in composites]
        assert volumes[1:].tolist() == known
