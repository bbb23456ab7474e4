"""What a run will cost, from a few cases of each task. Nothing is stored."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..benchmark.features import batch_size, data_set_of, extract
from ..benchmark.grids import tile_count
from ..benchmark.types import Task
from .choosing import LoadEncoder
from .runner import open_task
from .session import Session

LARGEST_SAMPLE = 32
"""Cases that are embedded to know the cost of all, at most."""


@dataclass(frozen=True)
class Plan:
    """The cost of one encoder on one task."""

    encoder: str
    task: str
    volumes: int
    forwards: int
    """Grids to embed; 0 where the features are cached."""
    memory_mb: float
    """Peak of the whole process so far (CPU), or of the device's allocations for the sample."""
    seconds: float
    """Of the extraction, extrapolated from the sample; 0 where the features are cached."""
    sampled: int


def plan(
    work: Session, encoders: Mapping[str, LoadEncoder], tasks: Sequence[Task], subset: bool
) -> list[Plan]:
    """Embed a few cases of each task and extrapolate.

    Raises:
        DataError: a task's data cannot be used.
        EncoderError: the encoder misbehaves; better now than after hours.
    """
    plans = []
    opened = [open_task(task, work.data_root, subset) for task in tasks]
    for load in encoders.values():
        encoder = load(work.device)
        for task in opened:
            card = task.task.card
            box = card.field_of_view_mm
            # a full batch, so that memory is that of a real run
            n = min(len(task.cases), batch_size(encoder.card, work.device), LARGEST_SAMPLE)
            sample = task.cases[:n]
            volumes = (case.load() for case in sample)
            tiles = sum(
                tile_count(v.voxels.shape[1:], v.affine, encoder.card, box) for v in volumes
            )
            if work.device.startswith("cuda"):
                import torch

                torch.cuda.reset_peak_memory_stats(work.device)
            extract(encoder, sample[:1], box, work.device)  # checks, compiles, warms up
            started = time.perf_counter()
            extract(encoder, sample, box, work.device, check=False)
            scale = len(task.cases) / n
            cached = work.cache.has(encoder, data_set_of(card), task.identity, box, work.device)
            plans.append(
                Plan(
                    encoder.card.name,
                    card.name,
                    len(task.cases),
                    0 if cached else round(tiles * scale),
                    _peak_memory_mb(work.device),
                    0.0 if cached else (time.perf_counter() - started) * scale,
                    n,
                )
            )
    return plans


def _peak_memory_mb(device: str) -> float:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB
