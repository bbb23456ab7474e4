"""Run a frozen encoder once over the cases of a data set, and check that it behaves."""

from __future__ import annotations

import hashlib
import itertools
import logging
import platform
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from .errors import EncoderError, TomoprobeError
from .hashing import sha_of
from .inputs import tiles_of
from .targets import FollowUp, Labels, Lesion, Pair, Suspects
from .types import Case, EncoderCard, Target, Task, TaskCard, Triple

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

BATCH_VOXELS = 2**20
"""Voxels per forward pass on a CPU: eight 48x56x48 grids. Larger batches gain nothing there."""

BATCH_VOXELS_CUDA = 2**25
"""Voxels per forward pass on a GPU; halved whenever memory runs out."""

BATCH_TOLERANCE = 1e-3
"""Largest change of a feature, as a share of its magnitude, that neighbours in the batch may
cause. Kernels chosen by batch size move float32 by 1e-6 to 1e-5; a BatchNorm in training mode by
1e-1 and more."""

AHEAD = 16
"""Cases that are loaded ahead: 64 tiles of 96x96x96 each are 3.6 GB."""

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

T = TypeVar("T")


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


@dataclass(frozen=True)
class DataIdentity:
    """What a set of cases is, told from their content."""

    images_sha: str
    """Images and how they are read: what features depend on."""
    dataset_sha: str
    """Images and targets: stored with every row."""
    regions_sha: str = ""
    """Masks of the cases' regions, which features of encoders with ``EncoderCard.region`` depend
    on, too; empty where no case has one."""


def identify(task: Task, cases: Sequence[Case]) -> DataIdentity:
    """Hash all images, targets and regions of a task. Reads every file once."""
    regions = {case.id: case.region for case in cases if case.region is not None}
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(lambda case: case.digest(), cases))
        masks = list(pool.map(lambda region: region.digest(), regions.values()))
    images, targets = {}, {}
    for case, digest in zip(cases, digests, strict=True):
        images[case.id], targets[case.id] = digest, _as_json(case.target)
    # the version stands for the reader, which can change while the files do not
    reading = [data_set_of(task.card), task.card.data_version, task.source_sha]
    return DataIdentity(
        sha_of([reading, images]),
        sha_of([task.source_sha, sorted(images.items()), targets]),
        sha_of([reading, dict(zip(regions, masks, strict=True))]) if regions else "",
    )


def _as_json(target: Target) -> object:
    """What a target is, told from its content."""
    if isinstance(target, Path):
        return hashlib.sha256(target.read_bytes()).hexdigest()
    if isinstance(target, Labels | Pair):
        return target.digest()
    if isinstance(target, FollowUp):
        return [target.years, target.event]
    if isinstance(target, Suspects):
        return [_as_json(target.lesions), target.places]
    if isinstance(target, tuple):
        return [[*t.center, t.diameter_mm] if isinstance(t, Lesion) else t for t in target]
    return target


def data_set_of(card: TaskCard) -> str:
    """The name that tasks on the same images share."""
    return card.data_set or card.name


# --- extraction ----------------------------------------------------------------------------


def extract(
    encoder: FrozenEncoder,
    cases: Sequence[Case],
    field_of_view_mm: Triple | None,
    device: str = "cpu",
    progress: Progress | None = None,
    check: bool = True,
) -> np.ndarray:
    """Embed every case.

    Args:
        encoder: already on ``device``. One that says ``shuffled = True`` is a stranger's: it gets
            the batches, which stay the same, in random order.
        cases: any order; rows come back in it.
        field_of_view_mm: of the task, see ``TaskCard``.
        device: "cpu" or "cuda[:i]".
        progress: called after each batch.
        check: whether features depend on the batch; a dry run knows already.

    Returns:
        (N, F) float32.

    Raises:
        EncoderError: NaN, wrong width, features that depend on the batch, buffers that change.
        DataError: an image cannot be used.
    """
    import torch

    card = encoder.card
    out = np.empty((len(cases), card.width), np.float32)
    batch = batch_size(card, device)
    checked = not check
    done = 0
    chunks = _chunks(cases, batch, shuffled=getattr(encoder, "shuffled", False))
    with torch.inference_mode(), frozen(encoder):
        for rows, tiles, counts in _batches(cases, chunks, card, field_of_view_mm, batch):
            x = torch.from_numpy(tiles)
            if not checked:
                _check_batch_independence(encoder, x[:1].to(device))
                checked = True
            features = embedded(encoder, x, batch, device)
            starts = np.concatenate([[0], np.cumsum(counts)])
            for row, start, stop in zip(rows, starts[:-1], starts[1:], strict=True):
                part = features[start:stop]
                out[row] = part.mean(0) if card.pool == "mean" else part.max(0)
            done += len(rows)
            if progress:
                progress(done, len(cases))
    return out


def batch_size(card: EncoderCard, device: str) -> int:
    """Grids per forward pass."""
    budget = BATCH_VOXELS_CUDA if device.startswith("cuda") else BATCH_VOXELS
    return max(1, budget // (int(np.prod(card.grid.shape)) * (card.channels + card.region)))


def _chunks(cases: Sequence[Case], batch: int, shuffled: bool) -> list[list[int]]:
    """Rows in runs of ``batch``, across which no forward pass reaches: their order is free.

    Who shares a run follows from the cases' names alone, and not from their order, which in many
    data sets is that of the answers.
    """
    rows = sorted(range(len(cases)), key=lambda row: _digest(cases[row].id.encode()))
    chunks = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    if shuffled:
        random.SystemRandom().shuffle(chunks)
    return chunks


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _batches(
    cases: Sequence[Case],
    chunks: Sequence[Sequence[int]],
    card: EncoderCard,
    field_of_view_mm: Triple | None,
    batch: int,
) -> Iterator[tuple[list[int], np.ndarray, list[int]]]:
    """Whole cases, grouped until ``batch`` tiles are reached; loading runs ahead in threads.

    Yields rows of ``cases``, their tiles (T, C, X, Y, Z) stacked, and the tiles of each row. The
    order within a group follows from the voxels alone: a place in it tells nothing that they do
    not, and yet it is the same in every run, as the last digit of a feature can depend on it.
    """
    pool = ThreadPoolExecutor(max_workers=4)
    try:
        pending: deque[Future[np.ndarray]] = deque()
        waiting = iter([cases[row] for chunk in chunks for row in chunk])
        for chunk in chunks:
            group: list[tuple[bytes, int, np.ndarray]] = []
            for row in chunk:
                for case in itertools.islice(waiting, AHEAD - len(pending)):
                    pending.append(pool.submit(tiles_of, case, card, field_of_view_mm))
                tiles = np.ascontiguousarray(pending.popleft().result())
                group.append((_digest(tiles.data.cast("B")), row, tiles))
                if sum(len(tiles) for _, _, tiles in group) >= batch or row == chunk[-1]:
                    group.sort(key=lambda one: one[0])
                    stack = [tiles for _, _, tiles in group]
                    yield [row for _, row, _ in group], np.concatenate(stack), list(map(len, stack))
                    group = []
    finally:
        pool.shutdown(cancel_futures=True)  # after a failure nobody waits for what was queued


def embedded(encoder: FrozenEncoder, x: torch.Tensor, batch: int, device: str) -> np.ndarray:
    """(T, C, X, Y, Z) -> (T, F), checked."""

    def part(start: int, stop: int) -> np.ndarray:
        return _embed_checked(encoder, x[start:stop].to(device))

    return np.concatenate(list(in_batches(part, len(x), batch, encoder.card.name, device)))


def in_batches(
    part: Callable[[int, int], T], count: int, batch: int, name: str, device: str
) -> Iterator[T]:
    """What ``part(start, stop)`` gives of each batch; halves it when a GPU's memory runs out.

    Args:
        part: runs the encoder on grids ``start`` to ``stop``.
        count: of grids.
        batch: grids at once, to begin with.
        name: of the encoder.
        device: it runs on.

    Raises:
        EncoderError: not even one grid fits.
    """
    import torch

    start = 0
    while start < count:
        try:
            done = part(start, min(start + batch, count))
        except torch.cuda.OutOfMemoryError:
            if batch == 1:
                raise EncoderError(
                    f"Encoder '{name}' does not fit into the memory of {device} "
                    "even with a batch of one. Use a smaller grid or --device cpu."
                ) from None
            torch.cuda.empty_cache()
            batch //= 2
            logger.warning("out of memory on %s: batch halved to %d", device, batch)
            continue
        yield done
        del done  # before the next is made
        start += batch


def _embed_checked(encoder: FrozenEncoder, x: torch.Tensor) -> np.ndarray:
    import torch

    card = encoder.card
    try:
        features = encoder.embed(x)
    except (TomoprobeError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # an encoder's own code can fail in any way
        raise EncoderError(
            f"Encoder '{card.name}' fails on an array of shape {tuple(x.shape)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(features, torch.Tensor) or tuple(features.shape) != (len(x), card.width):
        got = getattr(features, "shape", None)
        raise EncoderError(
            f"Encoder '{card.name}' returned {type(features).__name__}"
            f"{'' if got is None else f' of shape {tuple(got)}'} for {len(x)} volumes; its card "
            f"promises a tensor ({len(x)}, {card.width}). Correct embed() or the card's width."
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
    """A volume's features must be the same alone and beside a very different neighbour.

    Args:
        encoder: any.
        x: (1, C, X, Y, Z), with the region's channel if the card wants one. The neighbour is made
            from it, so that a grid of which only one fits into a batch is checked too.
    """
    import torch

    turned = x.flip((2, 3, 4))
    image = encoder.card.channels
    # a region's mask stays one
    neighbour = torch.cat([turned[:, :image] * -0.5 + x[:, :image].mean(), turned[:, image:]], 1)
    pair = torch.cat([x, neighbour])
    together = _embed_checked(encoder, pair)
    alone = np.concatenate([_embed_checked(encoder, part) for part in (x, neighbour)])
    # per feature, because one large feature must not hide another; the median keeps rounding in
    # features that are all but dead from counting
    size = np.maximum(np.abs(together), np.abs(alone)).max(0)
    scale = np.maximum(size, 1e-2 * np.quantile(size, 0.5, method="lower")) + 1e-12
    worst = float((np.abs(together - alone) / scale).max())
    if worst > BATCH_TOLERANCE:
        raise EncoderError(
            f"Features of encoder '{encoder.card.name}' depend on the batch: the same volume "
            f"alone and beside another differs by {worst:.2g} of a feature's size (allowed "
            f"{BATCH_TOLERANCE:g}). Every volume has to be embedded by itself: put BatchNorm into "
            "eval() and remove normalisation over the batch."
        )


@contextmanager
def frozen(encoder: FrozenEncoder) -> Iterator[None]:
    """Check that the encoder is the same afterwards.

    Raises:
        EncoderError: its buffers changed.
    """
    before = buffers_sha(encoder.module)
    yield
    if buffers_sha(encoder.module) != before:
        raise EncoderError(
            f"Encoder '{encoder.card.name}' changed its buffers while it ran. A frozen encoder "
            "keeps them: call eval() on every part and do not update running statistics."
        )


def buffers_sha(module: torch.nn.Module | None) -> str:
    """sha256 of a network's buffers, as hex: running statistics that drift show here."""
    import torch

    digest = hashlib.sha256()
    if module is not None:
        for name, buffer in module.named_buffers():
            digest.update(name.encode())
            # as bytes: numpy has no bfloat16
            raw = buffer.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(raw.numpy().tobytes())
    return digest.hexdigest()


def device_name(device: str) -> str:
    """What a row says about the hardware, e.g. ``cpu: x86_64`` or ``cuda: NVIDIA H100``."""
    if device.startswith("cuda"):
        import torch

        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"cpu: {platform.machine()}"
