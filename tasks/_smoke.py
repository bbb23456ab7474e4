"""The smoke cohort: 240 simulated patients, made once and kept in the cache folder.

What is stored, under ``smoke/v1-seed0-xxxxxxxx/`` (the suffix is a hash of the recipe):

    voxels.npy      (240, 48, 56, 48) float16, multiples of 1/1024; the images
    tissue.npy      (240, 48, 56, 48) uint8; 0 background, 1 CSF, 2 grey, 3 white, 4 ventricle
    knots.npy       (240, 3, k, k, k) float32 mm; with the angles and the shift of the wall in the
                    table, the deformation (``_smoke_image.displacement``)
    subjects.csv    one row per patient: side, lesion, center and size, ventricle volume,
                    follow-up time and event, sha256 of the voxels

The folder is written under another name and moved, so that it is there complete or not at all,
whatever two processes do at once or is killed on the way.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, get_type_hints

from ..benchmark.errors import StorageError
from ..benchmark.paths import cache_home
from ..benchmark.types import Case, Seat, Split, Target, Task, TaskCard, Volume

if TYPE_CHECKING:
    import numpy as np

    from ._smoke_image import Recipe, Subject

VERSION = 1
"""Of the generator: raised whenever a voxel or a fact of the cohort changes."""

SIDES: dict[Split, int] = {"train": 110, "val": 30, "test": 100}
"""Patients per side, by id: an official split."""

COUNTS = {"cases": sum(SIDES.values()), "patients": sum(SIDES.values()), **SIDES}

STALE_S = 3600.0
"""A half-written folder of this age belongs to a killed run: making a cohort takes seconds."""

NOTE = (
    "Semi-synthetic: one template brain (ICBM152), randomly deformed and degraded. A check that "
    "everything runs, never evidence about radiology."
)
SOURCE = "https://nist.mni.mcgill.ca/icbm-152-nonlinear-atlases-2009/"
CITATION = (
    "Fonov V et al. Unbiased average age-appropriate atlases for pediatric studies. NeuroImage "
    "54:313 (2011)."
)
LICENSE = "ICBM 2009a template terms: free use with the copyright notice (McGill University)"
ANATOMY = "brain"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Row:
    """What is known about a patient, besides the images."""

    id: str
    side: str
    lesion: int
    """1: has a lesion; 0: has the same change of intensity, scattered."""
    x_mm: float
    """Center of the lesion, from the center of the grid, RAS+; a control's is where it would be."""
    y_mm: float
    z_mm: float
    diameter_mm: float
    contrast: float
    ventricle_ml: float
    wall_mm: float
    """Shift of the ventricles' wall."""
    pitch_deg: float
    """Rotation about X, Y and Z."""
    roll_deg: float
    yaw_deg: float
    followup_years: float
    """Time to the event, or to the end of observation."""
    event: int
    """1: the event was seen; 0: censored."""
    sha256: str
    """Of the voxels as stored."""


@dataclass(frozen=True)
class Cohort:
    """A generated cohort on disk; arrays are memory-mapped."""

    folder: Path
    rows: tuple[Row, ...]

    def voxels(self) -> np.ndarray:
        """(N, 48, 56, 48) float16."""
        return self._array("voxels")

    def tissue(self) -> np.ndarray:
        """(N, 48, 56, 48) uint8."""
        return self._array("tissue")

    def displacement(self, index: int) -> np.ndarray:
        """(3, 48, 56, 48) mm: from each voxel of a patient to its point of the template."""
        from ._smoke_image import displacement

        row = self.rows[index]
        angles = (row.pitch_deg, row.roll_deg, row.yaw_deg)
        return displacement(self._array("knots")[index], angles, row.wall_mm)

    def _array(self, name: str) -> np.ndarray:
        import numpy as np

        from ..benchmark.volumes import NUMPY_HEADERS

        path = self.folder / f"{name}.npy"
        try:
            with NUMPY_HEADERS:
                return np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise StorageError(
                f"{path} of the smoke cohort cannot be read ({error}). Remove the folder "
                f"{self.folder}: it is made anew on the next run."
            ) from error


def cohort(
    seed: int = 0,
    home: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    recipe: Recipe | None = None,
) -> Cohort:
    """The cohort of a seed: from the cache folder, or made now (about 10 s on two cores).

    The same bytes whatever the number of workers, in every process.

    Args:
        seed: the tasks use 0.
        home: the cache folder; None takes ``paths.cache_home()``.
        workers: threads (scipy and numpy release the interpreter's lock); None takes the cores.
        progress: called with (done, total) while the cohort is made.
        recipe: how strongly patients vary; None takes the tasks'.

    Raises:
        DataError: the template is missing or another one.
        StorageError: the folder cannot be written, or what is there cannot be read.
    """
    from ._smoke_image import Recipe
    from ._smoke_template import TEMPLATE_SHA256

    recipe = recipe or Recipe()
    key = json.dumps([asdict(recipe), SIDES, TEMPLATE_SHA256], sort_keys=True)
    name = f"v{VERSION}-seed{seed}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    folder = (home or cache_home()) / "smoke" / name
    if not folder.is_dir():
        try:
            _make(folder, seed, recipe, workers or (os.cpu_count() or 1), progress)
        except OSError as error:
            raise StorageError(
                f"The smoke cohort cannot be written to {folder.parent}: "
                f"{error.strerror or error}. It needs 100 MB: free some space, or set "
                "TOMOPROBE_HOME to another folder."
            ) from error
    return Cohort(folder, _read_table(folder / "subjects.csv"))


def _make(folder: Path, seed: int, recipe: Recipe, workers: int, progress: Progress | None) -> None:
    """Simulate all patients into a temporary folder and give it its name."""
    import numpy as np

    from ._smoke_image import subject
    from ._smoke_template import template

    template()  # once, before the threads would each make their own
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(".making-*"):
        if time.time() - left.stat().st_mtime > STALE_S:
            shutil.rmtree(left, ignore_errors=True)
    lesioned = _lesioned(seed)
    n = len(lesioned)
    making = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    try:
        # in memory, 100 MB: a memory-mapped file on a full disk ends the process, not the write
        first = subject(seed, 0, bool(lesioned[0]), recipe)
        images = {
            name: np.empty((n, *array.shape), array.dtype) for name, array in _arrays(first).items()
        }

        def simulate(index: int) -> tuple[int, Row]:
            one = subject(seed, index, bool(lesioned[index]), recipe)
            for name, array in _arrays(one).items():
                images[name][index] = array
            return index, _row(seed, index, int(lesioned[index]), one)

        rows: dict[int, Row] = {}
        with ThreadPoolExecutor(workers) as pool:
            for job in as_completed([pool.submit(simulate, index) for index in range(n)]):
                index, row = job.result()
                rows[index] = row
                if progress is not None:
                    progress(len(rows), n)
        for name, image in images.items():
            np.save(making / f"{name}.npy", image)
        _write_table(making / "subjects.csv", [rows[index] for index in range(n)])
        try:
            making.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was first, with the same bytes
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _arrays(one: Subject) -> dict[str, np.ndarray]:
    return {"voxels": one.voxels, "tissue": one.tissue, "knots": one.knots}


def _lesioned(seed: int) -> np.ndarray:
    """(N,) 0 or 1: half of each side, in random order."""
    import numpy as np

    rng = np.random.default_rng(np.random.SeedSequence([seed, 2**32 - 1]))
    return np.concatenate([rng.permutation(np.arange(n) % 2) for n in SIDES.values()])


def _row(seed: int, index: int, lesion: int, one: Subject) -> Row:
    years, event = _followup(seed, index, lesion, one.ventricle_ml)
    x, y, z = one.center_mm
    return Row(
        id=f"smoke_{index:03d}",
        side=[side for side, n in SIDES.items() for _ in range(n)][index],
        lesion=lesion,
        x_mm=x,
        y_mm=y,
        z_mm=z,
        diameter_mm=one.diameter_mm,
        contrast=one.contrast,
        ventricle_ml=one.ventricle_ml,
        wall_mm=one.wall_mm,
        pitch_deg=one.angles_deg[0],
        roll_deg=one.angles_deg[1],
        yaw_deg=one.angles_deg[2],
        followup_years=years,
        event=event,
        sha256=hashlib.sha256(one.voxels.tobytes()).hexdigest(),
    )


def _followup(seed: int, index: int, lesion: int, ventricle_ml: float) -> tuple[float, int]:
    """Simulated years to an event, or to the end of observation, and whether it was seen.

    Exponential, 0.08 per year for a control with ventricles of 21 ml; a lesion triples the hazard
    and 8 ml more fluid double it. Observation ends uniformly between 1 and 12 years: about half
    of the patients are censored.
    """
    import numpy as np

    rng = np.random.default_rng(np.random.SeedSequence([seed, index, 1]))
    hazard = 0.08 * 3.0**lesion * 2.0 ** ((ventricle_ml - 21) / 8)
    time_to_event, end = rng.exponential(1 / hazard), rng.uniform(1, 12)
    return round(min(time_to_event, end), 3), int(time_to_event <= end)


def _write_table(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def _read_table(path: Path) -> tuple[Row, ...]:
    types = get_type_hints(Row)
    try:
        with path.open(newline="") as file:
            rows = [
                Row(**{name: types[name](value) for name, value in row.items()})
                for row in csv.DictReader(file)
            ]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"{path} of the smoke cohort cannot be read ({error}). Remove the folder "
            f"{path.parent}: it is made anew on the next run."
        ) from error
    return tuple(rows)


# --- tasks ---------------------------------------------------------------------------------------


def task(card: TaskCard, target: Callable[[Row], Target]) -> Task:
    """A task on the cohort of seed 0; the data root is not used."""

    def cases(root: Path) -> Sequence[Case]:
        del root
        made = cohort()
        return [_case(made, index, target(row)) for index, row in enumerate(made.rows)]

    return Task(card, cases, _roster)


def _roster() -> Sequence[Seat]:
    sides: list[Split] = [side for side, n in SIDES.items() for _ in range(n)]
    return [Seat(f"smoke_{i:03d}", f"smoke_{i:03d}", side) for i, side in enumerate(sides)]


def _case(made: Cohort, index: int, target: Target) -> Case:
    seat = _roster()[index]

    def load() -> Volume:
        from ..benchmark.volumes import from_array
        from ._smoke_template import SPACING_MM

        return from_array(made.voxels()[index], (SPACING_MM, SPACING_MM, SPACING_MM), "scanner")

    def digest() -> str:
        return hashlib.sha256(made.voxels()[index].tobytes()).hexdigest()

    return Case(seat.id, seat.patient, target, load, digest, seat.split)
