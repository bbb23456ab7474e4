"""A dry run on phantoms: the faults of a model that only running it shows, before data are touched.

Every volume has to be embedded by itself and alike each time: otherwise a score would depend on
who sat beside whom in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import numpy as np
import torch

from ..benchmark.errors import EncoderError, IntakeError, IsolationError
from ..benchmark.features import BATCH_TOLERANCE
from ..benchmark.types import EncoderCard, ZScore
from ._isolated_encoder import IsolatedEncoder

T = TypeVar("T")

Log = Callable[[str], None]
"""Called with one line for the submitter."""

_MANY_VOXELS = 1 << 23
"""Above this, two phantoms make the batch instead of three: 256 MiB of float32 at the largest."""


class Model(Protocol):
    """What is rehearsed: a `LoadedEncoder` or an `IsolatedEncoder`."""

    @property
    def card(self) -> EncoderCard: ...  # noqa: D102
    def embed(self, x: torch.Tensor) -> torch.Tensor: ...  # noqa: D102
    def maps(self, x: torch.Tensor) -> Sequence[torch.Tensor]: ...  # noqa: D102


def rehearse(model: Model, log: Log) -> None:
    """Embed phantoms twice, in another order and alone; run the maps once.

    Args:
        model: to run.
        log: told what is done.

    Raises:
        IntakeError: stage ``check``; the model fails, or answers with a wrong shape, values that
            are not finite, other values the second time, or values that depend on the batch.
        IsolationError: its process broke: no fault of the model.
    """
    card = model.card
    x = torch.from_numpy(phantoms(card))
    log(f"dry run: {len(x)} phantoms of {tuple(x.shape[1:])}, twice, reordered and alone")
    first = _embed(model, x)
    if _apart(first, _embed(model, x)):
        raise _refused(
            "dry-run-unstable",
            "The same volumes give other features the second time.",
            "Remove what is random when the model is applied: dropout, noise, sampling.",
        )
    order = [*range(1, len(x)), 0]
    reordered = _embed(model, x[order])
    alone = _embed(model, x[:1])
    if _apart(first[order], reordered) or _apart(first[:1], alone, first):
        raise _refused(
            "dry-run-batch",
            "A volume's features depend on the other volumes of its batch.",
            "Export in eval mode, so that BatchNorm uses its stored statistics, and without "
            "normalisation over the batch.",
        )
    if not _apart(first[order], first):
        log("note: all phantoms have the same features; the model hardly sees its input")
    if card.strides:
        _check_maps(model, x[:1])
    log(f"dry run passed: embeddings of {card.width} numbers, {len(card.strides)} maps")


def phantoms(card: EncoderCard) -> np.ndarray:
    """Different volumes as the card wants them: a body, an organ in it, a little noise.

    Returns:
        (B, C, X, Y, Z) float32 on the scale of one of the card's intensity transforms, B 2 or 3;
        with ``EncoderCard.region`` the organ's mask as one more channel.
    """
    shape = card.grid.shape
    count = 3 if math.prod(shape) * card.channels <= _MANY_VOXELS else 2
    how = next(iter(card.intensity.values()))
    low, high = (-2.0, 2.0) if isinstance(how, ZScore) else (how.out_low, how.out_high)
    rng = np.random.default_rng(0)
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in shape]
    grid = np.meshgrid(*axes, indexing="ij", sparse=True)
    made = np.empty((count, card.channels + card.region, *shape), np.float32)
    for volume in made:
        center, radii = rng.uniform(-0.3, 0.3, 3), rng.uniform(0.3, 0.5, 3)
        body = sum((g / 0.9) ** 2 for g in grid) <= 1
        # at least one voxel, on a coarse grid, too
        away = np.asarray(
            sum(((g - c) / r) ** 2 for g, c, r in zip(grid, center, radii, strict=True))
        )
        organ = away <= max(1.0, float(away.min()))
        scale = rng.uniform(0.5, 1.0)
        image = np.clip(scale * (0.4 * body + 0.4 * organ), 0, 1)
        for channel in volume[: card.channels]:
            noisy = np.clip(image + rng.normal(0, 0.03, shape).astype(np.float32), 0, 1)
            channel[:] = low + (high - low) * noisy
        if card.region:
            volume[-1] = organ
    return made


def _embed(model: Model, x: torch.Tensor) -> np.ndarray:
    """(B, C, X, Y, Z) -> (B, F) float32, checked."""
    features = _run(model, lambda: model.embed(x))
    wanted = (len(x), model.card.width)
    if not isinstance(features, torch.Tensor) or tuple(features.shape) != wanted:
        raise _refused(
            "dry-run-shape",
            f"The embedding of {len(x)} volumes is {_what(features)}; {wanted} was expected.",
            "Correct the width, or what the model returns.",
        )
    return _finite(features, "embedding")


def _check_maps(model: Model, x: torch.Tensor) -> None:
    """As many maps as strides, each of the grid's shape divided by its stride, rounded up."""
    card = model.card
    maps = _run(model, lambda: list(model.maps(x)))
    if len(maps) != len(card.strides):
        raise _refused(
            "dry-run-maps",
            f"The model gives {len(maps)} maps, the card states {len(card.strides)} strides.",
            "Correct the strides.",
        )
    for found, stride in zip(maps, card.strides, strict=True):
        wanted = tuple(-(-n // stride) for n in card.grid.shape)
        if found.ndim != 2 + len(wanted) or (len(found), *found.shape[2:]) != (len(x), *wanted):
            raise _refused(
                "dry-run-maps",
                f"The map at stride {stride} is {_what(found)}; ({len(x)}, C, "
                f"{', '.join(map(str, wanted))}) was expected.",
                "Correct the strides, or the order of the maps: fine to coarse.",
            )
        _finite(found, f"map at stride {stride}")


_FAILURES = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError)
"""What a network that runs in this process may raise."""


def _run(model: Model, step: Callable[[], T]) -> T:
    """One step of a model, whose own code can fail in any way.

    Whatever a child of its own does arrives as an EncoderError; all else would be ours.
    """
    failures = () if isinstance(model, IsolatedEncoder) else _FAILURES
    try:
        return step()
    except IsolationError:
        raise
    except (EncoderError, *failures) as e:
        if isinstance(e, MemoryError):
            raise _refused(
                "dry-run-stopped",
                "The model ran out of memory.",
                "Use a smaller grid, a coarser patch, or a smaller network.",
            ) from e
        lines = str(e).splitlines() or [""]
        raise _refused(
            "dry-run-failed",
            f"The model fails on a phantom of its own grid: {type(e).__name__}: {lines[0][:500]}",
            "Run it on the machine where it was made: `tomoprobe pack` does the same dry run.",
        ) from e


def _finite(found: torch.Tensor, what: str) -> np.ndarray:
    values = found.detach().float().cpu().numpy()
    if not np.isfinite(values).all():
        raise _refused(
            "dry-run-nan",
            f"The {what} of a phantom holds NaN or infinity.",
            "Look for a division by a zero SD, an overflow in half precision, or weights of "
            "after the training diverged.",
        )
    return values


def _apart(a: np.ndarray, b: np.ndarray, all_rows: np.ndarray | None = None) -> bool:
    """Whether features differ by more than rounding, as a share of each feature's size.

    The scale is that of ``features.extract``, which asks the same of real volumes.
    """
    rows = a if all_rows is None else all_rows
    size = np.abs(rows).max(0)
    scale = np.maximum(size, 1e-2 * np.quantile(size, 0.5, method="lower")) + 1e-12
    return bool((np.abs(a - b) / scale).max() > BATCH_TOLERANCE)


def _what(found: object) -> str:
    return str(tuple(found.shape)) if isinstance(found, torch.Tensor) else type(found).__name__


def _refused(code: str, message: str, hint: str) -> IntakeError:
    return IntakeError(code, message, stage="check", hint=hint)
