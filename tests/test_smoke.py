"""The smoke cohort: the same everywhere, true to what it says, neither trivial nor impossible."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import kurtosis, skew
from sklearn.metrics import r2_score, roc_auc_score

from tomoprobe import tasks
from tomoprobe.benchmark.errors import StorageError
from tomoprobe.benchmark.features import extract
from tomoprobe.benchmark.paths import cache_home
from tomoprobe.benchmark.probes import get as get_probe
from tomoprobe.benchmark.targets import FollowUp
from tomoprobe.benchmark.types import Features
from tomoprobe.submissions.load import load
from tomoprobe.tasks import _smoke
from tomoprobe.tasks._smoke_image import VENTRICLE, WHITE, Recipe, displacement, subject
from tomoprobe.tasks._smoke_template import SHAPE, SPACING_MM, template

VOXELS_SHA256 = "95baaa6764a41587ffb6d652974a89fa7033e0fb662bc955fa80624eb66adad1"
"""Of voxels.npy. Where another value is right, scores change: raise the version of both tasks and
``_smoke.VERSION``."""

MAKE = """
import sys
from pathlib import Path
from tomoprobe.tasks import _smoke
_smoke.cohort(home=Path(sys.argv[1]), workers=int(sys.argv[2]))
"""

LEAST_CPU = {
    # as on a processor of 2008: other instructions, other last bits
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX512F",
}


@pytest.fixture(scope="session")
def cohort(home: Path) -> _smoke.Cohort:
    return _smoke.cohort(home=home)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(made: _smoke.Cohort) -> dict[str, str]:
    return {file.name: sha256(file) for file in sorted(made.folder.iterdir())}


# --- the same everywhere -------------------------------------------------------------------------


@pytest.mark.slow
def test_every_process_makes_the_same_bytes_and_a_killed_one_leaves_nothing(
    cohort: _smoke.Cohort, tmp_path: Path
) -> None:
    assert sha256(cohort.folder / "voxels.npy") == VOXELS_SHA256

    def start(workers: int, **environment: str) -> subprocess.Popen:
        command = [sys.executable, "-c", MAKE, str(tmp_path), str(workers)]
        return subprocess.Popen(command, env=os.environ | environment)

    killed = start(1)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("smoke/.making-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    (left,) = (tmp_path / "smoke").iterdir()
    assert left.name.startswith(".making-")
    os.utime(left, (0, 0))

    both = [start(1), start(3, **LEAST_CPU)]  # at once, into one folder
    assert [process.wait() for process in both] == [0, 0]
    (folder,) = (tmp_path / "smoke").iterdir()
    assert folder.name == cohort.folder.name
    assert contents(_smoke.cohort(home=tmp_path)) == contents(cohort)


def test_another_seed_or_recipe_is_another_cohort_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def make(folder: Path, *rest: object) -> None:
        made.append(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_smoke, "_make", make)
    for arguments in ({"seed": 0}, {"seed": 1}, {"recipe": Recipe(contrast=(0.1, 0.2))}):
        with pytest.raises(StorageError, match="No space left on device"):
            _smoke.cohort(home=tmp_path, **arguments)  # type: ignore[arg-type]
    assert len(set(made)) == 3
    assert (subject(0, 0, True).voxels != subject(1, 0, True).voxels).any()


def test_a_cohort_is_made_once(cohort: _smoke.Cohort, home: Path) -> None:
    before = (cohort.folder / "voxels.npy").stat().st_mtime_ns
    calls: list[tuple[int, int]] = []
    again = _smoke.cohort(home=home, progress=lambda *at: calls.append(at))
    assert again == cohort and not calls
    assert (cohort.folder / "voxels.npy").stat().st_mtime_ns == before


def test_the_cache_folder_is_the_platforms_unless_chosen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOMOPROBE_HOME", str(tmp_path))
    assert cache_home() == tmp_path
    monkeypatch.setenv("TOMOPROBE_HOME", "~/kept")
    assert cache_home() == Path.home() / "kept"
    monkeypatch.delenv("TOMOPROBE_HOME")
    assert "tomoprobe" in cache_home().parts and cache_home().is_absolute()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cohorts of three patients."""
    monkeypatch.setattr(_smoke, "SIDES", {"train": 1, "val": 1, "test": 1})


def test_progress_is_told_after_every_patient(tiny: None, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    _smoke.cohort(home=tmp_path, workers=2, progress=lambda *at: calls.append(at))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_a_full_disk_is_told_and_leaves_nothing(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, array: np.ndarray) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(StorageError, match=r"No space left on device.*TOMOPROBE_HOME"):
        _smoke.cohort(home=tmp_path)
    assert not list((tmp_path / "smoke").iterdir())


def test_a_home_that_cannot_be_written_is_told(tiny: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="set TOMOPROBE_HOME to another folder"):
        _smoke.cohort(home=tmp_path / "file")


@pytest.mark.parametrize("name", ["voxels.npy", "subjects.csv"])
def test_a_damaged_cohort_is_told_with_what_to_do(tiny: None, tmp_path: Path, name: str) -> None:
    made = _smoke.cohort(home=tmp_path)
    whole = (made.folder / name).read_bytes()
    (made.folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StorageError, match="Remove the folder"):
        _smoke.cohort(home=tmp_path).voxels()


# --- true to what it says ------------------------------------------------------------------------


def test_half_of_each_side_has_a_lesion(cohort: _smoke.Cohort) -> None:
    found = Counter((row.side, row.lesion) for row in cohort.rows)
    for side, n in _smoke.SIDES.items():
        assert found[side, 0] == found[side, 1] == n / 2
    assert _smoke.SIDES["test"] == 100 and len(cohort.rows) == 240


@pytest.mark.parametrize("name", ["smoke_lesion", "smoke_ventricles", "smoke_survival"])
def test_the_tasks_read_the_cohort_and_need_no_data_root(
    cohort: _smoke.Cohort, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOMOPROBE_DATA", raising=False)
    cases, complete = tasks.open_cases(tasks.get(name), None, subset=False)
    assert complete
    row = cohort.rows[7]
    volume = cases[7].load()
    assert volume.voxels.dtype == np.float32 and volume.voxels.shape == (1, *SHAPE)
    assert volume.spacing == (SPACING_MM,) * 3 and volume.unit == "scanner"
    assert (cases[7].id, cases[7].split, cases[7].digest()) == (row.id, row.side, row.sha256)
    targets = {
        "smoke_lesion": row.lesion,
        "smoke_ventricles": row.ventricle_ml,
        "smoke_survival": FollowUp(row.followup_years, bool(row.event)),
    }
    assert cases[7].target == targets[name]
    card = tasks.get(name).card
    assert not card.evidence
    for words in ("one template brain", "Semi-synthetic", "never evidence"):
        assert words in card.note


def test_voxels_lie_on_the_stated_grid(cohort: _smoke.Cohort) -> None:
    voxels = cohort.voxels()[:20].astype(np.float64)
    assert voxels.min() >= 0 and voxels.max() < 2
    assert (voxels * 1024 == np.round(voxels * 1024)).all()


def test_a_lesion_is_a_ball_of_the_stated_change_at_its_center() -> None:
    for index in range(6):
        ill, well = subject(0, index, True), subject(0, index, False)
        center = np.array(ill.center_mm) / SPACING_MM + (np.array(SHAPE) - 1) / 2
        at = tuple(np.round(center).astype(int))
        assert ill.tissue[at] == WHITE and 10 <= ill.diameter_mm <= 15
        white = np.median(ill.voxels[ill.tissue == WHITE].astype(float))
        change = float(ill.voxels[at]) / white - 1
        assert np.sign(change) == np.sign(ill.contrast) and 0.25 < abs(change) < 1.2
        assert abs(float(well.voxels[at]) / white - 1) < 0.35


def test_lesions_and_controls_have_the_same_histogram() -> None:
    """On average: what differs within white matter is where the changed voxels are."""
    dark = [
        [
            np.mean(one.voxels[one.tissue == WHITE].astype(float))
            for one in (subject(0, index, True), subject(0, index, False))
        ]
        for index in range(8)
    ]
    assert np.allclose(*np.transpose(dark), rtol=0.005)


def test_the_known_deformation_maps_a_patient_onto_the_template(cohort: _smoke.Cohort) -> None:
    head = template()
    middle = (np.array(SHAPE) - 1) / 2
    grid = (np.indices(SHAPE) - middle[:, None, None, None]) * SPACING_MM
    for index in (0, 5):
        point = grid + cohort.displacement(index)
        where = point / 2 + ((np.array(head.channels.shape[1:]) - 1) / 2)[:, None, None, None]
        ventricle = ndimage.map_coordinates(head.channels[3], where, order=1)
        assert ventricle.sum() * SPACING_MM**3 / 1000 == pytest.approx(
            cohort.rows[index].ventricle_ml, abs=0.01
        )
        label = cohort.tissue()[index] == VENTRICLE
        assert ventricle[label].mean() > 0.6 and ventricle[~label].mean() < 0.01


def test_the_deformation_never_folds(cohort: _smoke.Cohort) -> None:
    wall = np.array([row.wall_mm for row in cohort.rows])
    for index in (int(wall.argmin()), int(wall.argmax())):
        moved = cohort.displacement(index)
        slopes = np.stack([np.stack(np.gradient(c, SPACING_MM)) for c in moved])
        jacobian = np.linalg.det(np.moveaxis(slopes, (0, 1), (-2, -1)) + np.eye(3))
        assert jacobian.min() > 0.1


def test_the_warp_has_the_stated_size() -> None:
    knots = [subject(0, index, True).knots for index in range(4)]
    smooth = [displacement(k, (0.0, 0.0, 0.0), 0.0) for k in knots]
    assert np.std(smooth) == pytest.approx(1.0, abs=0.15)


def test_ventricles_vary_and_grow_with_their_wall(cohort: _smoke.Cohort) -> None:
    volume = np.array([row.ventricle_ml for row in cohort.rows])
    wall = np.array([row.wall_mm for row in cohort.rows])
    assert volume.std() / volume.mean() > 0.1
    assert 10 < volume.min() < 16 and 28 < volume.max() < 40
    assert np.corrcoef(volume, wall)[0, 1] > 0.9


def test_events_come_earlier_with_a_lesion_and_some_are_censored(cohort: _smoke.Cohort) -> None:
    rate = {
        lesion: sum(row.event for row in cohort.rows if row.lesion == lesion)
        / sum(row.followup_years for row in cohort.rows if row.lesion == lesion)
        for lesion in (0, 1)
    }
    assert rate[1] > 2 * rate[0]
    assert 0.2 < np.mean([row.event for row in cohort.rows]) < 0.8


# --- neither trivial nor impossible --------------------------------------------------------------


def fine_texture(voxels: np.ndarray) -> np.ndarray:
    """The features that were found to see most: Laplacian well inside the brain, two scales."""
    image = voxels.astype(np.float32) / np.percentile(voxels.astype(np.float32), 99.5)
    inside = ndimage.binary_erosion(ndimage.gaussian_filter(image, 1) > 0.2, iterations=3)
    found: list[float] = []
    for smooth in (image, ndimage.gaussian_filter(image, 1)):
        laplacian = ndimage.laplace(smooth)[inside]
        found += [laplacian.mean(), laplacian.std(), skew(laplacian), kurtosis(laplacian)]
        found += np.percentile(laplacian, [0.1, 1, 5, 25, 50, 75, 95, 99, 99.9]).tolist()
    return np.array(found, np.float32)


def held_out(made: _smoke.Cohort, x: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Test targets and the linear probe's answers."""
    target = np.array([getattr(row, what) for row in made.rows])
    split = np.array([row.side for row in made.rows])
    patient = np.array([row.id for row in made.rows])
    kind, classes = ("classification", 2) if what == "lesion" else ("regression", 0)
    features = Features(x, target, split, patient, kind, classes)  # type: ignore[arg-type]
    values = get_probe("linear")(features, seed=0, refits=0).values
    return target[split == "test"], values[:, 1] if what == "lesion" else values


def embeddings(made: _smoke.Cohort, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    cases = [_smoke._case(made, i, row.lesion) for i, row in enumerate(made.rows)]
    found = {name: extract(load(name, device="cpu"), cases, None) for name in names}
    return found | {"fine": np.stack([fine_texture(voxels) for voxels in made.voxels()])}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_both_tasks_are_neither_trivial_nor_impossible(
    seed: int, home: Path, tmp_path: Path
) -> None:
    # seed 0 is the tasks' cohort, which other tests have made
    made = _smoke.cohort(seed, home=home if seed == 0 else tmp_path, workers=1)
    seen = embeddings(made, ("intensity", "texture"))
    auroc = {k: float(roc_auc_score(*held_out(made, x, "lesion"))) for k, x in seen.items()}
    r2 = {k: float(r2_score(*held_out(made, x, "ventricle_ml"))) for k, x in seen.items()}
    shutil.rmtree(tmp_path)
    assert 0.45 <= auroc["intensity"] <= 0.70, auroc
    assert auroc["texture"] >= 0.70, auroc
    assert max(auroc.values()) < 0.97, auroc
    assert r2["intensity"] < 0.6 < r2["texture"] < 0.98, r2


def test_numpy_headers_are_parsed_by_one_thread_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``ast.literal_eval``, which numpy parses them with, fails in threads of Python 3.11."""
    from numpy.lib import format as npy

    from tomoprobe.benchmark.volumes import read_npz

    np.save(tmp_path / "voxels.npy", np.zeros(3))
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    inside, most = 0, 0

    def slowly(real):
        def call(*arguments, **options):
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            inside -= 1
            return real(*arguments, **options)

        return call

    monkeypatch.setattr(np, "load", slowly(np.load))
    monkeypatch.setattr(npy, "read_array", slowly(npy.read_array))
    cohort = _smoke.Cohort(tmp_path, ())
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(cohort.voxels) for _ in range(8)]
        futures += [pool.submit(read_npz, tmp_path / "arrays.npz") for _ in range(8)]
        assert all(future.result() is not None for future in futures)
    assert most == 1
