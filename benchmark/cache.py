"""Keep what an encoder said: one array file per (encoder, data set).

Every task, probe and seed on those images reads the same file. Files are written beside their
final name and moved, under a lock that the kernel releases when its holder dies: two runs at once
compute once, and a killed run leaves nothing half-written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from .errors import StorageError
from .features import DataIdentity, FrozenEncoder, Progress, extract
from .hashing import sha_of
from .types import Case, Triple
from .volumes import PREPROCESSING_VERSION

MAPS = "maps"
"""Subfolder of what ``dense_cache`` keeps: a folder per (encoder, data set), a file per case."""


def cache_key(
    encoder: FrozenEncoder,
    identity: DataIdentity,
    field_of_view_mm: Triple | None,
    device: str,
) -> str:
    """sha256 over all that decides the features, as hex.

    The device's class is part of it, because kernels differ between classes; its number is not.
    """
    # only where it decides the features: a mask that is corrected leaves all others cached
    regions = {"regions": identity.regions_sha} if encoder.card.region else {}
    return sha_of(
        {
            **regions,
            "model": encoder.model_sha,
            "images": identity.images_sha,
            "field_of_view_mm": field_of_view_mm,
            "preprocessing": PREPROCESSING_VERSION,
            "dtype": "float32",
            "device": device.split(":")[0],
        }
    )


class Extracted(NamedTuple):
    """Features and what they cost."""

    x: np.ndarray
    """(N, F) float32."""
    seconds: float
    """Wall time of the extraction, also when the features now come from the cache."""


@dataclass(frozen=True)
class CacheEntry:
    """One file of features."""

    path: Path
    model: str
    data_set: str
    n: int
    width: int
    bytes: int
    modified: float
    """Seconds since the epoch."""
    what: Literal["embeddings", "maps"] = "embeddings"
    """Maps: ``path`` is a folder, ``n`` its files and ``width`` the channels of all maps."""


def move_into_place(data: bytes, path: Path) -> None:
    """Write a file beside its name and move it there: complete or not at all.

    Raises:
        OSError: it cannot be written; nothing is left.
    """
    part = path.with_suffix(".part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


class FeatureCache:
    """A folder of safetensors files, one per (encoder, data set)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(
        self,
        encoder: FrozenEncoder,
        data_set: str,
        cases: Sequence[Case],
        identity: DataIdentity,
        field_of_view_mm: Triple | None,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> Extracted:
        """Features of ``cases`` in their order: read, or extracted and kept.

        Raises:
            StorageError: the folder cannot be written.
        """
        from filelock import FileLock

        key = cache_key(encoder, identity, field_of_view_mm, device)
        path = self.folder / f"{data_set}-{encoder.card.name}-{key[:16]}.safetensors"
        with self.writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_suffix(".lock"))
            lock.acquire()
        try:
            stored = self._read(path, key, cases)
            if stored is not None:
                if progress:
                    progress(len(cases), len(cases))
                return stored
            started = time.perf_counter()
            x = extract(encoder, cases, field_of_view_mm, device, progress)
            extracted = Extracted(x, time.perf_counter() - started)
            with self.writing():
                self._write(path, key, extracted, cases, encoder.card.name, data_set)
            return extracted
        finally:
            lock.release()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What a full disk or a read-only folder does in here becomes a ``StorageError``."""
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"The feature cache {self.folder} cannot be written: {error.strerror or error}. "
                "Free some space ('tomoprobe cache --clean'), or point TOMOPROBE_HOME elsewhere."
            ) from error

    def has(
        self,
        encoder: FrozenEncoder,
        data_set: str,
        identity: DataIdentity,
        field_of_view_mm: Triple | None,
        device: str,
    ) -> bool:
        """Whether the features are already there."""
        key = cache_key(encoder, identity, field_of_view_mm, device)
        return (self.folder / f"{data_set}-{encoder.card.name}-{key[:16]}.safetensors").exists()

    @staticmethod
    def _read(path: Path, key: str, cases: Sequence[Case]) -> Extracted | None:
        """Rows in the order of ``cases``; None where the file is missing or not ours."""
        from safetensors import SafetensorError, safe_open

        if not path.exists():
            return None
        try:
            with safe_open(path, "numpy") as file:
                meta = file.metadata() or {}
                x = file.get_tensor("x")
        except (SafetensorError, OSError):
            return None  # unreadable: extract again
        if meta.get("key") != key:
            return None
        row = {id_: i for i, id_ in enumerate(json.loads(meta["ids"]))}
        return Extracted(x[[row[case.id] for case in cases]], float(meta["seconds"]))

    @staticmethod
    def _write(
        path: Path,
        key: str,
        extracted: Extracted,
        cases: Sequence[Case],
        model: str,
        data_set: str,
    ) -> None:
        from safetensors.numpy import save

        meta = {
            "key": key,
            "model": model,
            "data_set": data_set,
            "ids": json.dumps([case.id for case in cases]),
            "seconds": repr(extracted.seconds),
        }
        move_into_place(save({"x": np.ascontiguousarray(extracted.x)}, metadata=meta), path)

    def entries(self) -> list[CacheEntry]:
        """All files of embeddings and folders of maps, newest first."""
        found = [_entry([path]) for path in self.folder.glob("*.safetensors")]
        for folder in (self.folder / MAPS).glob("*/"):
            paths = sorted(folder.glob("*.safetensors"))
            if paths:  # one that was cleaned keeps its locks
                found.append(_entry(paths, folder))
        return sorted(found, key=lambda entry: -entry.modified)

    def clean(self, model: str | None = None) -> int:
        """Delete the files of one model, or all, and what killed runs left; return the bytes.

        Files that a run is writing now are left alone. Lock files stay: deleting one that
        another process waits for would let two in.
        """
        doomed: list[Path] = []
        for entry in self.entries():
            if model is None or entry.model == model:
                maps = entry.what == "maps"
                doomed += entry.path.glob("*.safetensors") if maps else [entry.path]
        left = [*self.folder.glob("*.part"), *self.folder.glob(f"{MAPS}/*/*.part")]
        return self._delete([*doomed, *left])

    def clean_maps(self, model: str | None = None, older_than_s: float = 0.0) -> int:
        """Delete maps, which are large, and keep embeddings; return the bytes.

        Args:
            model: whose; None: of all.
            older_than_s: seconds since the last of a folder was written.
        """
        latest = time.time() - older_than_s
        return self._delete(
            [
                path
                for entry in self.entries()
                if entry.what == "maps" and model in (None, entry.model)
                if entry.modified <= latest
                for path in entry.path.glob("*.safetensors")
            ]
        )

    def _delete(self, doomed: Sequence[Path]) -> int:
        """Those that nobody is writing; the bytes."""
        from filelock import FileLock, Timeout

        freed = 0
        with self.writing():
            for path in doomed:
                with suppress(Timeout), FileLock(path.with_suffix(".lock"), timeout=0):
                    if path.exists():  # another cleaner may have been faster
                        freed += path.stat().st_size
                        path.unlink()
        return freed


def _entry(paths: Sequence[Path], folder: Path | None = None) -> CacheEntry:
    """One file of embeddings, or the files of maps in a folder, told from the first."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(paths[0], "numpy") as file:
            meta = file.metadata() or {}
            if folder is None:
                n, width = file.get_slice("x").get_shape()
            else:
                levels = [key for key in file.keys() if key.startswith("level_")]  # noqa: SIM118
                n = len(paths)
                width = sum(file.get_slice(level).get_shape()[0] for level in levels)
    except (SafetensorError, OSError):
        meta, n, width = {}, 0, 0
    stats = [path.stat() for path in paths]
    return CacheEntry(
        folder or paths[0],
        meta.get("model", "unreadable"),
        meta.get("data_set", ""),
        n,
        width,
        sum(stat.st_size for stat in stats),
        max(stat.st_mtime for stat in stats),
        "embeddings" if folder is None else "maps",
    )
