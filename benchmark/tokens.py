"""Several vectors of a scan instead of one: what attention pools.

What a token is depends on the encoder and the task, not on the scan:

tiles
    Where the card covers a scan by tiles and some scan of the task has several: the embedding of
    each tile, in the order of ``grids.Layout.corners``.
positions
    Otherwise, where the encoder has maps: its coarsest map, averaged over equal parts to at most
    ``MOST`` x ``MOST`` x ``MOST`` positions, the last axis fastest. For 2D encoders these are
    groups of slices: their maps are averaged over as many slices as pixels.
whole
    Otherwise the embedding: one token, over which attention has nothing to choose.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from .errors import EncoderError
from .features import FrozenEncoder, Progress, batch_size, embedded, frozen, in_batches
from .inputs import tiles_of
from .sliding_window import checked_maps
from .splits import position
from .types import Case, Triple

if TYPE_CHECKING:
    import torch

MOST = 4
"""Positions along an axis: 64 tokens. A 48x56x48 grid has 3x4x3 at stride 16."""

AHEAD = 4
"""Cases loaded ahead."""


class Tokens(NamedTuple):
    """Of all cases, in their order."""

    values: list[np.ndarray]
    """(T_n, D) float32 of each case; T_n differs between cases only if they are tiles."""
    of: Literal["tiles", "positions", "whole"]


def tokens_of(
    encoder: FrozenEncoder,
    cases: Sequence[Case],
    field_of_view_mm: Triple | None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Tokens:
    """Run the encoder over every case, one at a time, in hashed order.

    The order of the cases is in many data sets that of the answers, so it is not the one in which
    an encoder meets them; a stranger's meets them in random order, as in ``features.extract``.

    Raises:
        EncoderError: NaN, or another shape than the card promises.
        DataError: an image cannot be used.
    """
    card = encoder.card
    if card.tiling == "tiles":
        found = _run(encoder, cases, field_of_view_mm, device, progress, _embedding)
        if not card.strides or max(map(len, found)) > 1:
            return Tokens(found, "tiles" if max(map(len, found)) > 1 else "whole")
    if card.strides:
        return Tokens(
            _run(encoder, cases, field_of_view_mm, device, progress, _positions), "positions"
        )
    return Tokens(_run(encoder, cases, field_of_view_mm, device, progress, _embedding), "whole")


Reading = Callable[[FrozenEncoder, "torch.Tensor", str], np.ndarray]
"""(encoder, tiles (T, C, X, Y, Z), device) -> (T', D) float32."""


def _run(
    encoder: FrozenEncoder,
    cases: Sequence[Case],
    field_of_view_mm: Triple | None,
    device: str,
    progress: Progress | None,
    reading: Reading,
) -> list[np.ndarray]:
    import torch

    rows = sorted(range(len(cases)), key=lambda row: position("tokens", cases[row].id))
    if getattr(encoder, "shuffled", False):
        random.SystemRandom().shuffle(rows)
    found: dict[int, np.ndarray] = {}
    with torch.inference_mode(), frozen(encoder):
        for row, tiles in _loaded(encoder, cases, rows, field_of_view_mm):
            found[row] = reading(encoder, torch.from_numpy(tiles), device)
            if progress:
                progress(len(found), len(cases))
    return [found[row] for row in range(len(cases))]


def _loaded(
    encoder: FrozenEncoder,
    cases: Sequence[Case],
    rows: Sequence[int],
    field_of_view_mm: Triple | None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Rows with their tiles; loading runs ahead in threads."""
    pool = ThreadPoolExecutor(max_workers=AHEAD)
    try:
        pending: list[Future[np.ndarray]] = []
        for number, row in enumerate(rows):
            for later in rows[number + len(pending) : number + AHEAD]:
                pending.append(pool.submit(tiles_of, cases[later], encoder.card, field_of_view_mm))
            yield row, pending.pop(0).result()
    finally:
        pool.shutdown(cancel_futures=True)


def _embedding(encoder: FrozenEncoder, x: torch.Tensor, device: str) -> np.ndarray:
    """(T, F): of each tile."""
    return embedded(encoder, x, batch_size(encoder.card, device), device)


def _positions(encoder: FrozenEncoder, x: torch.Tensor, device: str) -> np.ndarray:
    """(P, C): of the parts of the first tile's coarsest map."""
    from torch.nn.functional import adaptive_avg_pool3d

    def part(start: int, stop: int) -> np.ndarray:
        coarsest = checked_maps(encoder, x[start:stop].to(device))[-1]
        x_, y_, z_ = (min(n, MOST) for n in coarsest.shape[2:])
        pooled = adaptive_avg_pool3d(coarsest, (x_, y_, z_))
        return pooled.flatten(2)[0].T.cpu().numpy()

    (values,) = in_batches(part, 1, 1, encoder.card.name, device)
    if not np.isfinite(values).all():
        raise EncoderError(
            f"Encoder '{encoder.card.name}' has NaN or infinity in its coarsest map. Maps have to "
            "be finite: look for a division by a zero SD or an overflow in half precision."
        )
    return np.ascontiguousarray(values)
