"""Second images of registration tasks: who is paired with whom, and where the moving image lies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..benchmark.splits import position
from ..benchmark.targets import Labels, Pair
from ..benchmark.types import Unit, Volume

if TYPE_CHECKING:
    import numpy as np

Place = Callable[[Volume, Volume], "np.ndarray"]
"""Fixed and moving image -> affine (4, 4) that the moving image gets."""

Mask = Callable[[Path], "tuple[np.ndarray, np.ndarray]"]
"""Label map (X, Y, Z) and affine of a file."""


def partners(name: str, ids: Sequence[str]) -> Mapping[str, str]:
    """The moving image of each fixed one: the next in a circle, in hashed order.

    Every image is fixed once and moving once. Pairs depend on the whole list, which has to be that
    of the complete set.

    Args:
        name: of the task.
        ids: of all images of one side, two or more.
    """
    order = sorted(ids, key=lambda id_: position(name, "pair", id_))
    return dict(zip(order, [*order[1:], *order[:1]], strict=True))


def pair_of_files(
    images: tuple[Path, Path],
    masks: tuple[Path, Path],
    units: tuple[Unit, Unit],
    read: Mask,
    place: Place,
    what: str,
    displacement: Callable[[], np.ndarray] | None = None,
) -> Pair:
    """A pair whose images and label maps are files; fixed first, moving second.

    Args:
        images: of which the moving one is read when it is asked for.
        masks: on the voxels of their images.
        units: of the images' voxels.
        read: a label map.
        place: where the moving image is put.
        what: what else the pair depends on, such as the place, in words: part of its digest.
        displacement: of the pair, if it is known.
    """

    def placed() -> Volume:
        from ..benchmark.volumes import read_nifti

        fixed, moving = (read_nifti(i, u) for i, u in zip(images, units, strict=True))
        return replace(moving, affine=place(fixed, moving))

    def moving_labels() -> tuple[np.ndarray, np.ndarray]:
        return read(masks[1])[0], placed().affine

    def digest() -> str:
        from ..benchmark.volumes import file_sha256

        parts = [what, *(file_sha256(path) for path in (images[1], *masks))]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    return Pair(
        placed,
        digest,
        Labels(partial(read, masks[0]), partial(_digest, masks[0])),
        Labels(moving_labels, partial(_digest, masks[1])),
        displacement,
    )


def centered(fixed: Volume, moving: Volume) -> np.ndarray:
    """The moving image's affine, moved such that the images' centers are one point."""
    affine = moving.affine.copy()
    affine[:3, 3] += center(fixed) - center(moving)
    return affine


def center(volume: Volume) -> np.ndarray:
    """(3,) scanner mm: the middle of the image."""
    import numpy as np

    middle = (np.array(volume.voxels.shape[1:]) - 1) / 2
    return volume.affine[:3, :3] @ middle + volume.affine[:3, 3]


def _digest(mask: Path) -> str:
    from ..benchmark.volumes import file_sha256

    return file_sha256(mask)
