"""What an encoder is shown of a case: the image on the encoder's grid and, if asked, the region."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from .errors import DataError, MaskError, TomoprobeError
from .grids import mask_to_grid, tile_count, to_tiles
from .types import Case, EncoderCard, Triple, Volume
from .volumes import check_same_grid

T = TypeVar("T")


def loaded(case: Case, what: str, load: Callable[[], T]) -> T:
    """What a task's own function loads, or a typed error.

    Args:
        case: whose.
        what: is loaded, for the message, e.g. ``"image"``.
        load: of the task.

    Raises:
        DataError: it fails.
    """
    try:
        return load()
    except TomoprobeError:
        raise
    except Exception as error:  # a task's own code can fail in any way
        raise DataError(
            f"The {what} of case '{case.id}' cannot be loaded: {type(error).__name__}: {error}. "
            "Check its file, or the task's load()."
        ) from error


def tiles_of(case: Case, card: EncoderCard, field_of_view_mm: Triple | None) -> np.ndarray:
    """Load a case and bring it to the encoder's grid.

    Returns:
        (T, C, X, Y, Z) float32, see ``to_tiles``; with ``EncoderCard.region`` one channel more.

    Raises:
        DataError: the image or its region cannot be used.
        EncoderError: see ``to_tiles``.
    """
    volume = loaded(case, "image", case.load)
    tiles = to_tiles(volume, card, field_of_view_mm)
    if not card.region:
        return tiles
    return np.concatenate([tiles, _region(case, volume, card, field_of_view_mm)], axis=1)


def _region(
    case: Case, volume: Volume, card: EncoderCard, field_of_view_mm: Triple | None
) -> np.ndarray:
    """The mask of a case's region on the tiles of its image: (T, 1, X, Y, Z) float32, 0 or 1.

    Raises:
        MaskError: off its image's grid, or without a voxel on the encoder's.
    """
    if case.region is None:
        tiles = tile_count(volume.voxels.shape[1:], volume.affine, card, field_of_view_mm)
        return np.zeros((tiles, 1, *card.grid.shape), np.float32)
    mask, affine = loaded(case, "region", case.region.load)
    try:
        check_same_grid(volume, affine, mask.shape)
    except MaskError as error:
        raise MaskError(f"The region of case '{case.id}': {error}") from error
    # the image's own affine: within the tolerance of the check, the tiles have to be the same
    tiles = mask_to_grid(mask.astype(bool), volume.affine, card, field_of_view_mm)
    if not tiles.any():
        raise MaskError(
            f"The region of case '{case.id}' has {int(mask.sum()):,} voxels in its image and none "
            f"on the grid of encoder '{card.name}'. It lies outside of the task's field of view, "
            "or is smaller than a voxel of the grid: correct the mask, or use a larger grid."
        )
    return tiles[:, None].astype(np.float32)
