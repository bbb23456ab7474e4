"""What a run will cost, from a few cases of each task. Nothing is stored."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..benchmark.deformations import carried
from ..benchmark.dense import pyramid
from ..benchmark.features import batch_size, data_set_of, extract
from ..benchmark.grids import tile_count
from ..benchmark.studies import AnyProbe, Needs, needs, tested_rows
from ..benchmark.targets import Pair
from ..benchmark.types import Case, Task, Volume
from .choosing import LoadEncoder
from .runner import OpenTask, open_task
from .session import Session

if TYPE_CHECKING:
    from .load import LoadedEncoder

LARGEST_SAMPLE = 32
"""Cases that are embedded to know the cost of all, at most."""

MAPPED_SAMPLE = 2
"""Cases whose maps are made, likewise."""


@dataclass(frozen=True)
class Plan:
    """The cost of one encoder on one task."""

    encoder: str
    task: str
    volumes: int
    """Images to show: two of a pair."""
    forwards: int
    """Grids to show the encoder; 0 where the features are cached, or it has no maps."""
    memory_mb: float
    """Peak of the whole process so far (CPU), or of the device's allocations for the sample."""
    seconds: float
    """Of the extraction, extrapolated from the sample; 0 where the features are cached. What
    protocols do with features and maps comes on top."""
    sampled: int
    what: Needs = "embeddings"
    cached: bool = False


def plan(
    work: Session,
    encoders: Mapping[str, LoadEncoder],
    tasks: Sequence[Task],
    subset: bool,
    probes: Sequence[AnyProbe],
) -> list[Plan]:
    """Show the encoders a few cases of each task and extrapolate.

    Every image counts once. Not counted: protocols that run on request and show images again,
    shifted (``shift``, ``stability``) or for tokens (``attentive``). Their ``cost`` says how often.

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
            wanted = {needs(probe, card) for probe in probes if card.kind in probe.kinds}
            if "embeddings" in wanted:
                plans.append(_embedding(work, encoder, task))
            if "maps" in wanted and card.lattice_mm:
                plans.append(_mapping(work, encoder, task))
    return plans


def _embedding(work: Session, encoder: LoadedEncoder, task: OpenTask) -> Plan:
    """From a full batch, so that memory is that of a real run."""
    card, device = task.task.card, work.device
    box = card.field_of_view_mm
    n = min(len(task.cases), batch_size(encoder.card, device), LARGEST_SAMPLE)
    sample = task.cases[:n]
    volumes = (case.load() for case in sample)
    tiles = sum(tile_count(v.voxels.shape[1:], v.affine, encoder.card, box) for v in volumes)
    _forget_peak(device)
    extract(encoder, sample[:1], box, device)  # checks, compiles, warms up
    started = time.perf_counter()
    extract(encoder, sample, box, device, check=False)
    scale = len(task.cases) / n
    cached = work.cache.has(encoder, data_set_of(card), task.identity, box, device)
    return Plan(
        encoder.card.name,
        card.name,
        len(task.cases),
        0 if cached else round(tiles * scale),
        _peak_memory_mb(device),
        0.0 if cached else (time.perf_counter() - started) * scale,
        n,
        cached=cached,
    )


def _mapping(work: Session, encoder: LoadedEncoder, task: OpenTask) -> Plan:
    """Of protocols that need maps; they share them."""
    card, device = task.task.card, work.device
    cases = task.cases
    if card.kind == "registration":  # nobody is trained on
        cases = [cases[row] for row in tested_rows(card, cases)]
    sample = cases[:MAPPED_SAMPLE]
    if not sample:
        return Plan(encoder.card.name, card.name, 0, 0, _peak_memory_mb(device), 0.0, 0, "maps")
    _forget_peak(device)
    pyramid(sample[0].load(), encoder, card, device)  # checks, compiles, warms up
    started = time.perf_counter()
    shown = [
        pyramid(image, encoder, card, device).forward_voxels
        for case in sample
        for image in _images(case)
    ]
    scale = len(cases) / len(sample)
    return Plan(
        encoder.card.name,
        card.name,
        round(len(shown) * scale),
        round(sum(shown) / math.prod(encoder.card.grid.shape) * scale),
        _peak_memory_mb(device),
        (time.perf_counter() - started) * scale,
        len(sample),
        "maps",
    )


def _images(case: Case) -> Iterator[Volume]:
    """Those of a case whose maps are made: of a pair the moving one, too, as ``register`` does."""
    image = case.load()
    yield image
    if isinstance(case.target, Pair):
        x, y, z = image.voxels.shape[1:]
        yield carried(case.target.load(), (x, y, z), image.affine).volume


def _forget_peak(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def _peak_memory_mb(device: str) -> float:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB
