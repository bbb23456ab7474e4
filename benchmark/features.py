"""Run a frozen encoder once over the cases of a data set, and check that it behaves."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .errors import EncoderError
from .grids import to_tiles
from .types import Case, EncoderCard, Triple

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

BATCH_VOXELS = 2**20
"""Voxels per forward pass on a CPU: eight 48x56x48 grids. Larger batches gain nothing there."""

BATCH_VOXELS_CUDA = 2**25
"""Voxels per forward pass on a GPU; halved whenever memory runs out."""

BATCH_TOLERANCE = 1e-3
"""Largest change of a feature, in units of that batch's feature SD, that other neighbours in the
batch may cause. Kernels chosen by batch size move float32 by 1e-6 to 1e-5; a BatchNorm in
training mode by 1e-1 and more."""

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


class FrozenEncoder(Protocol):
    """An encoder with its identity, as ``submissions.load`` returns it."""

    @property
    def card(self) -> EncoderCard: ...  # noqa: D102
    @property
    def model_sha(self) -> str: ...  # noqa: D102
    @property
    def module(self) -> torch.nn.Module | None:
        """What has buffers and a mode; None for an encoder without a network."""
        ...

    def embed(self, x: torch.Tensor) -> torch.Tensor: ...  # noqa: D102
    def maps(self, x: torch.Tensor) -> Sequence[torch.Tensor]: ...  # noqa: D102


# --- identity ------------------------------------------------------------------------------


def sha_of(value: Any) -> str:
    """sha256 of the canonical JSON of plain types, as hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class DataIdentity:
    """What a set of cases is, told from their content."""

    images: dict[str, str]
    """Digest of every image by case id."""
    dataset_sha: str
    """Images and targets: stored with every row."""


def identify(cases: Sequence[Case]) -> DataIdentity:
    """Hash all images and targets. Reads every file once."""
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(lambda case: case.digest(), cases))
    images = {case.id: digest for case, digest in zip(cases, digests, strict=True)}
    lines = []
    for case in sorted(cases, key=lambda c: c.id):
        target = case.target
        if isinstance(target, Path):
            target = hashlib.sha256(target.read_bytes()).hexdigest()
        lines.append([case.id, images[case.id], target])
    return DataIdentity(images, sha_of(lines))


# --- extraction ----------------------------------------------------------------------------


def extract(
    encoder: FrozenEncoder,
    cases: Sequence[Case],
    field_of_view_mm: Triple | None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> np.ndarray:
    """Embed every case.

    Args:
        encoder: already on ``device``.
        cases: any order; rows come back in it.
        field_of_view_mm: of the task, see ``TaskCard``.
        device: "cpu" or "cuda[:i]".
        progress: called after each case.

    Returns:
        (N, F) float32.

    Raises:
        EncoderError: NaN, wrong width, features that depend on the batch, buffers that change.
        DataError: an image cannot be used.
    """
    import torch

    card = encoder.card
    before = _buffers_sha(encoder.module)
    out = np.empty((len(cases), card.width), np.float32)
    size = int(np.prod(card.grid.shape)) * card.channels
    budget = BATCH_VOXELS_CUDA if device.startswith("cuda") else BATCH_VOXELS
    batch = max(1, budget // size)
    checked = False
    done = 0
    with torch.inference_mode():
        for rows, tiles, counts in _batches(cases, card, field_of_view_mm, batch):
            x = torch.from_numpy(tiles)
            if not checked:
                _check_batch_independence(encoder, x[:4].to(device))
                checked = True
            features = _embed(encoder, x, batch, device)
            starts = np.concatenate([[0], np.cumsum(counts)])
            for row, start, stop in zip(rows, starts[:-1], starts[1:], strict=True):
                part = features[start:stop]
                out[row] = part.mean(0) if card.pool == "mean" else part.max(0)
            done += len(rows)
            if progress:
                progress(done, len(cases))
    if _buffers_sha(encoder.module) != before:
        raise EncoderError(
            f"Encoder '{card.name}' changed its buffers while embedding. A frozen encoder keeps "
            "them: call eval() on every part and do not update running statistics."
        )
    return out


def _batches(
    cases: Sequence[Case], card: EncoderCard, field_of_view_mm: Triple | None, batch: int
) -> Iterator[tuple[list[int], np.ndarray, list[int]]]:
    """Whole cases, grouped until ``batch`` tiles are reached; loading runs ahead in threads.

    Yields rows of ``cases``, their tiles (T, C, X, Y, Z) stacked, and the tiles of each row.
    """

    def load(case: Case) -> np.ndarray:
        return to_tiles(case.load(), card, field_of_view_mm)

    ahead = 2 * batch
    with ThreadPoolExecutor(max_workers=4) as pool:
        pending = [pool.submit(load, case) for case in cases[:ahead]]
        rows: list[int] = []
        stack: list[np.ndarray] = []
        for row in range(len(cases)):
            tiles = pending[row].result()
            pending[row] = None  # type: ignore[call-overload]  # frees the array
            if row + ahead < len(cases):
                pending.append(pool.submit(load, cases[row + ahead]))
            rows.append(row)
            stack.append(tiles)
            if sum(map(len, stack)) >= batch or row == len(cases) - 1:
                yield rows, np.concatenate(stack), [len(t) for t in stack]
                rows, stack = [], []


def _embed(encoder: FrozenEncoder, x: torch.Tensor, batch: int, device: str) -> np.ndarray:
    """(T, C, X, Y, Z) -> (T, F), checked; halves the batch when a GPU's memory runs out."""
    import torch

    parts = []
    start = 0
    while start < len(x):
        try:
            parts.append(_embed_checked(encoder, x[start : start + batch].to(device)))
        except torch.cuda.OutOfMemoryError:
            if batch == 1:
                raise EncoderError(
                    f"Encoder '{encoder.card.name}' does not fit into the memory of {device} "
                    "even with a batch of one. Use a smaller grid or --device cpu."
                ) from None
            torch.cuda.empty_cache()
            batch //= 2
            logger.warning("out of memory on %s: batch halved to %d", device, batch)
            continue
        start += batch
    return np.concatenate(parts)


def _embed_checked(encoder: FrozenEncoder, x: torch.Tensor) -> np.ndarray:
    card = encoder.card
    features = encoder.embed(x)
    if tuple(features.shape) != (len(x), card.width):
        raise EncoderError(
            f"Encoder '{card.name}' returned shape {tuple(features.shape)} for {len(x)} volumes; "
            f"its card promises ({len(x)}, {card.width}). Correct embed() or the card's width."
        )
    values = features.float().cpu().numpy()
    if not np.isfinite(values).all():
        n = int((~np.isfinite(values).all(1)).sum())
        raise EncoderError(
            f"Encoder '{card.name}' returned NaN or infinity for {n} of {len(x)} volumes. "
            "Features have to be finite: look for a division by a zero SD or an overflow in "
            "half precision."
        )
    return values


def _check_batch_independence(encoder: FrozenEncoder, x: torch.Tensor) -> None:
    """A volume's features must be the same alone and among others."""
    together = _embed_checked(encoder, x)
    alone = np.concatenate([_embed_checked(encoder, x[i : i + 1]) for i in range(len(x))])
    scale = float(together.std()) or 1.0
    worst = float(np.abs(together - alone).max()) / scale
    if worst > BATCH_TOLERANCE:
        raise EncoderError(
            f"Features of encoder '{encoder.card.name}' depend on the batch: the same volume "
            f"alone and among others differs by {worst:.2g} SD (allowed {BATCH_TOLERANCE:g}). "
            "Every volume has to be embedded by itself: put BatchNorm into eval() and remove "
            "normalisation over the batch."
        )


def _buffers_sha(module: torch.nn.Module | None) -> str:
    import torch

    digest = hashlib.sha256()
    if module is not None:
        for name, buffer in module.named_buffers():
            digest.update(name.encode())
            # as bytes: numpy has no bfloat16
            raw = buffer.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(raw.numpy().tobytes())
    return digest.hexdigest()
