"""From the maps of a network's stages to one vector: the readouts that staged networks share."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...benchmark.errors import ManifestError
from ..manifest import did_you_mean

READOUTS = (
    "concat",
    "last",
    "concat_mean_std",
    "last_mean_std",
    "concat_mean_max",
    "last_mean_max",
)
"""Stages (all of them, or the last) and what is taken over space: mean unless stated."""


def chosen(readout: str, readouts: Sequence[str]) -> str:
    """The readout, if the architecture has it.

    Raises:
        ManifestError: it has not.
    """
    if readout not in readouts:
        raise ManifestError(
            f"readout: '{readout}' is unknown.{did_you_mean(readout, list(readouts))} "
            f"This architecture has: {', '.join(readouts)}."
        )
    return readout


def width(channels: Sequence[int], readout: str) -> int:
    """Length of the embedding that `pooled` makes from stages with these channels.

    >>> width([16, 32], "concat"), width([16, 32], "last_mean_std")
    (48, 64)
    """
    stages, _, pools = readout.partition("_")
    taken = channels if stages == "concat" else channels[-1:]
    return sum(taken) * (len(pools.split("_")) if pools else 1)


def pooled(maps: Sequence[torch.Tensor], readout: str) -> torch.Tensor:
    """Reduce maps (B, C_i, ...) over space and join them: (B, F), stages fine to coarse."""
    stages, _, pools = readout.partition("_")
    parts: list[torch.Tensor] = []
    for stage in maps if stages == "concat" else maps[-1:]:
        flat = stage.flatten(2)  # (B, C, n)
        parts.append(flat.mean(2))
        if pools == "mean_std":
            parts.append(flat.std(2, correction=0))
        elif pools == "mean_max":
            parts.append(flat.amax(2))
    return torch.cat(parts, dim=1)
