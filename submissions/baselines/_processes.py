"""The processes that train together, and what each does on its own device."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import distributed


@dataclass(frozen=True)
class World:
    """The processes that train together, and this one among them."""

    rank: int
    size: int
    device: torch.device


@contextmanager
def processes(device: str) -> Iterator[World]:
    """The processes that ``torchrun`` started, or this one alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(0, 1, torch.device(device))
        return
    local = torch.device(device)
    if local.type == "cuda":
        local = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if local.type == "cuda" else "gloo")
    try:
        yield World(distributed.get_rank(), size, local)
    finally:
        distributed.destroy_process_group()


def reseed(seed: int, step: int, process: int) -> None:
    """Seed torch's generators from these numbers alone."""
    state = np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(state >> np.uint64(1)))


def moved(batch: Any, device: torch.device) -> Any:
    """A pytree of tensors on the device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return [moved(value, device) for value in batch]
    return batch
