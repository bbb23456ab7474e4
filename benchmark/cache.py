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
from typing import NamedTuple

import numpy as np

from .errors import StorageError
from .features import DataIdentity, FrozenEncoder, Progress, extract
from .hashing import sha_of
from .types import Case, Triple
from .volumes import PREPROCESSING_VERSION


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
        with self._writing():
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
            with self._writing():
                self._write(path, key, extracted, cases, encoder.card.name, data_set)
            return extracted
        finally:
            lock.release()

    @contextmanager
    def _writing(self) -> Iterator[None]:
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
        part = path.with_suffix(".part")
        try:
            part.write_bytes(save({"x": np.ascontiguousarray(extracted.x)}, metadata=meta))
            part.replace(path)
        except OSError:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise

    def entries(self) -> list[CacheEntry]:
        """All files, newest first."""
        from safetensors import SafetensorError, safe_open

        found = []
        for path in self.folder.glob("*.safetensors"):
            try:
                with safe_open(path, "numpy") as file:
                    meta = file.metadata() or {}
                    n, width = file.get_slice("x").get_shape()
            except (SafetensorError, OSError):
                meta, n, width = {}, 0, 0
            stat = path.stat()
            found.append(
                CacheEntry(
                    path,
                    meta.get("model", "unreadable"),
                    meta.get("data_set", ""),
                    n,
                    width,
                    stat.st_size,
                    stat.st_mtime,
                )
            )
        return sorted(found, key=lambda entry: -entry.modified)

    def clean(self, model: str | None = None) -> int:
        """Delete the files of one model, or all, and what killed runs left; return the bytes.

        Files that a run is writing now are left alone. Lock files stay: deleting one that
        another process waits for would let two in.
        """
        from filelock import FileLock, Timeout

        freed = 0
        doomed = [e.path for e in self.entries() if model is None or e.model == model]
        with self._writing():
            for path in [*doomed, *self.folder.glob("*.part")]:
                with suppress(Timeout), FileLock(path.with_suffix(".lock"), timeout=0):
                    if path.exists():  # another cleaner may have been faster
                        freed += path.stat().st_size
                        path.unlink()
        return freed
