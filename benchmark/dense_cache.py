"""Keep the maps of an encoder: one file per case, on the lattice of the task.

Written and locked like the embeddings (see ``cache``): beside the final name and moved, so that a
killed run leaves nothing half-written, and two runs at once compute a case once.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import numpy as np

from .cache import MAPS, move_into_place
from .dense import Level, Pyramid, check_forward_voxels, pyramid
from .features import data_set_of
from .hashing import sha_of
from .inputs import loaded
from .lattice import lattice_of
from .studies import Setting
from .types import Case
from .volumes import PREPROCESSING_VERSION

VERSION = 2
"""Raised whenever a value of a kept pyramid would differ."""


class Pyramids:
    """The pyramids of a setting's cases, from disk or made now; one in memory at a time."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._counted: set[Path] = set()
        self._checked = False
        card, encoder = setting.card, setting.encoder
        self.key = sha_of(
            {
                "model": encoder.model_sha,
                "images": setting.identity.images_sha,
                "lattice_mm": card.lattice_mm,
                "field_of_view_mm": card.field_of_view_mm,
                "preprocessing": PREPROCESSING_VERSION,
                "maps": VERSION,
                "device": setting.device.split(":")[0],
            }
        )
        name = f"{data_set_of(card)}-{encoder.card.name}-{self.key[:16]}"
        self.folder = setting.cache.folder / MAPS / name

    def of(self, row: int) -> Pyramid:
        """The pyramid of a case.

        Args:
            row: of ``setting.cases``.

        Raises:
            EncoderError: see ``dense.pyramid``; likewise ``ProbeError`` and ``DataError``.
            StorageError: the folder cannot be written.
        """
        if getattr(self._setting.encoder, "shuffled", False) and not self._path(row).exists():
            # a stranger's encoder is not to learn from the order of the cases which they are
            rows = [r for r in range(len(self._setting.cases)) if not self._path(r).exists()]
            random.SystemRandom().shuffle(rows)
            for other in rows:
                self._get(other)
        return self._get(row)

    def _path(self, row: int) -> Path:
        # an id may hold anything, a file's name may not
        return self.folder / f"{sha_of(self._setting.cases[row].id)[:24]}.safetensors"

    def _get(self, row: int) -> Pyramid:
        from filelock import FileLock

        case, path, cache = self._setting.cases[row], self._path(row), self._setting.cache
        with cache.writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_suffix(".lock"))
            lock.acquire()
        try:
            started = time.perf_counter()
            kept = self._read(path, case)
            if kept is None:
                made = self._make(case)
                with cache.writing():
                    self._write(path, case, made, time.perf_counter() - started)
                self._counted.add(path)
                return made
            found, seconds = kept
            if path not in self._counted:  # once, however often a study reads it
                self._counted.add(path)
                self._setting.earlier_s.append(seconds - (time.perf_counter() - started))
            return found
        finally:
            lock.release()

    def _make(self, case: Case) -> Pyramid:
        setting = self._setting
        volume = loaded(case, "image", case.load)
        check, self._checked = not self._checked, True
        return pyramid(volume, setting.encoder, setting.card, setting.device, check)

    def _read(self, path: Path, case: Case) -> tuple[Pyramid, float] | None:
        """And the seconds that it took to make; None where the file is missing or not ours."""
        from safetensors import SafetensorError, safe_open

        if not path.exists():
            return None
        try:
            with safe_open(path, "numpy") as file:
                meta = file.metadata() or {}
                if (meta.get("key"), meta.get("case")) != (self.key, case.id):
                    return None
                facts = json.loads(meta["facts"])
                levels = tuple(
                    Level(file.get_tensor(f"level_{i}"), factor, mm)
                    for i, (factor, mm) in enumerate(facts["levels"])
                )
                image, affine = file.get_tensor("image"), file.get_tensor("affine")
                seconds = float(facts["seconds"])
        except (SafetensorError, OSError, KeyError, ValueError):
            return None  # unreadable: extract again
        encoder = self._setting.encoder
        check_forward_voxels(facts["forward_voxels"], encoder.card.name, self._setting.card)
        lattice = lattice_of(facts["image_shape"], affine, self._setting.card)
        return Pyramid(lattice, levels, image, facts["forward_voxels"]), seconds

    def _write(self, path: Path, case: Case, made: Pyramid, seconds: float) -> None:
        from safetensors.numpy import save

        encoder = self._setting.encoder
        facts = {
            "image_shape": made.lattice.image_shape,
            "levels": [(level.factor, level.mm) for level in made.levels],
            "forward_voxels": made.forward_voxels,
            "seconds": seconds,
        }
        meta = {
            "key": self.key,
            "case": case.id,
            "model": encoder.card.name,
            "data_set": data_set_of(self._setting.card),
            "facts": json.dumps(facts),
        }
        arrays = {f"level_{i}": level.values for i, level in enumerate(made.levels)}
        arrays |= {"image": made.image, "affine": made.lattice.image_affine}
        data = save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, metadata=meta)
        move_into_place(data, path)
