"""Samples made ahead of the step that needs them, the same whatever makes them and whenever.

Sample ``i`` of step ``t`` is drawn with a generator of (seed, t, i) alone, where ``i`` counts over
all processes: a run that is resumed sees what it would have seen, and two processes with batches of
b see together what one with 2b does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch.utils.data import DataLoader, Dataset, default_collate

from ._pretraining import Source

AHEAD = 2
"""Steps whose samples are made before they are asked for; as ``prefetch_factor`` of torch."""

Kind = Literal["threads", "processes"]


@dataclass(frozen=True)
class Plan:
    """Which samples a process draws."""

    source: Source
    seed: int
    start: int
    """First step."""
    steps: int
    """One after the last step."""
    batch: int
    """Samples per step and process."""
    process: int = 0

    def sample(self, step: int, position: int) -> Any:
        """The sample at a position of this process's batch."""
        key = [self.seed, step, self.process * self.batch + position]
        return self.source.sample(np.random.default_rng(key))


def batches(plan: Plan, workers: int, kind: Kind = "threads") -> Iterator[Any]:
    """Collated batches from ``plan.start`` on, each sample made by one of the workers.

    Args:
        plan: what to draw.
        workers: at least 1.
        kind: ``threads`` suit sources that spend their time in numpy, scipy or torch, which let
            other threads run; ``processes`` those that run Python, but each keeps its own cache.
    """
    if kind == "processes":
        yield from DataLoader(
            _Indexed(plan),
            batch_size=plan.batch,
            sampler=range(plan.start * plan.batch, plan.steps * plan.batch),
            num_workers=workers,
            prefetch_factor=AHEAD,
        )
        return
    with ThreadPoolExecutor(workers, "samples") as pool:
        waiting: deque[list[Future[Any]]] = deque()
        try:
            for step in range(plan.start, plan.steps + AHEAD):
                if step < plan.steps:
                    waiting.append([pool.submit(plan.sample, step, i) for i in range(plan.batch)])
                if step >= plan.start + AHEAD:
                    yield default_collate([one.result() for one in waiting.popleft()])
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Indexed(Dataset[Any]):
    """A plan as torch's workers ask for it."""

    plan: Plan

    def __getitem__(self, index: int) -> Any:
        return self.plan.sample(*divmod(index, self.plan.batch))
