"""Pictures of what a dense protocol answered: label maps over their image, pairs of images.

Three planes through one point, in proportion to mm, as radiologists hang them: the patient's right
on the left of an axial and a coronal slice, the face to the left in a sagittal one, front or head
up. Colors are those of Okabe and Ito (Color Universal Design, 2008), which readers of any color
vision can tell apart.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from . import panels
from .panels import FIXED, MOVING, PLANES
from .types import Triple, Unit

logger = logging.getLogger(__name__)


@contextmanager
def optional(what: str) -> Iterator[None]:
    """Log a warning where a picture cannot be drawn or written: the scores are worth more.

    Args:
        what: the picture is of.
    """
    try:
        yield
    except Exception as error:  # of the image, the font or the disk; none is worth a run
        logger.warning("No picture of %s: %s", what, str(error) or type(error).__name__)


def overlay(
    path: Path,
    image: np.ndarray,
    truth: np.ndarray,
    predicted: np.ndarray,
    spacing: Triple,
    classes: Sequence[str],
    unit: Unit,
    title: str = "",
) -> None:
    """Draw an image, its true and its predicted label map side by side, as PNG.

    The planes go through the voxel of the truth that is nearest to the center of all its classes;
    of the prediction where the truth is empty.

    Args:
        path: the file, in a folder that is there; written beside it and moved.
        image: (X, Y, Z), any scale, RAS+.
        truth: (X, Y, Z) integers, 0 background.
        predicted: (X, Y, Z) likewise.
        spacing: mm along X, Y, Z.
        classes: their names, background first.
        unit: of the image's values; decides what is black and white, see ``panels.gray_scale``.
        title: a line above, such as the case and its score.

    Raises:
        StorageError: the file cannot be written.
    """
    point = panels.center(truth if truth.any() else predicted, image.shape)
    shown = panels.gray_scale(image, unit)
    rows = []
    for plane in PLANES:
        alone = panels.picture(image, plane, point, spacing, shown)
        maps = [panels.marks(labels, plane, point, spacing) for labels in (truth, predicted)]
        rows.append([alone, *(panels.painted(alone, labels) for labels in maps)])
    legend = [(name, panels.color(k)) for k, name in enumerate(classes) if k]
    panels.write(path, panels.sheet(rows, ("image", "truth", "prediction"), legend, title))


def checkerboard(
    path: Path,
    fixed: np.ndarray,
    moved: np.ndarray,
    before: np.ndarray,
    spacing: Triple,
    units: tuple[Unit, Unit],
    *,
    fixed_labels: np.ndarray | None = None,
    moved_labels: np.ndarray | None = None,
    before_labels: np.ndarray | None = None,
    title: str = "",
) -> None:
    """Draw a registration, as PNG: both images, and squares of one in turn with the other.

    Where the registration is right, edges run on from square to square. Borders of labels are drawn
    in every panel: those of the fixed image blue, those of the moving one orange. The planes go
    through the center of the fixed labels, or of the image where there are none.

    Args:
        path: the file, in a folder that is there; written beside it and moved.
        fixed: (X, Y, Z), any scale, RAS+.
        moved: (X, Y, Z) the moving image on the fixed one's voxels, after registration.
        before: (X, Y, Z) likewise, before registration.
        spacing: mm along X, Y, Z.
        units: of the values of the fixed and of the moving image; they decide what is black and
            white, see ``panels.gray_scale``.
        fixed_labels: (X, Y, Z) integers, of the fixed image.
        moved_labels: (X, Y, Z) integers, of the moving image, warped like it.
        before_labels: (X, Y, Z) integers, of the moving image before registration.
        title: a line above.

    Raises:
        StorageError: the file cannot be written.
    """
    point = panels.center(fixed_labels, fixed.shape)
    of_fixed, of_moving = (
        panels.gray_scale(image, unit) for image, unit in zip((fixed, moved), units, strict=True)
    )
    images = ((fixed, of_fixed), (before, of_moving), (moved, of_moving))
    rows = []
    for plane in PLANES:
        f, b, m = (panels.picture(image, plane, point, spacing, w) for image, w in images)
        fixed_border, before_border, moved_border = (
            None if labels is None else panels.border(panels.marks(labels, plane, point, spacing))
            for labels in (fixed_labels, before_labels, moved_labels)
        )
        square = panels.board(f.shape[:2])[..., None]
        row = (
            (f, None),
            (b, before_border),
            (m, moved_border),
            (np.where(square, f, b), before_border),
            (np.where(square, f, m), moved_border),
        )
        rows.append([panels.outlined(panel, fixed_border, border) for panel, border in row])
    titles = (
        "fixed",
        "moving before",
        "moving after",
        "checkerboard before",
        "checkerboard after",
    )
    legend = [
        (f"labels of the {whose} image", shade)
        for whose, shade, labels in (
            ("fixed", FIXED, fixed_labels),
            ("moving", MOVING, moved_labels),
        )
        if labels is not None
    ]
    panels.write(path, panels.sheet(rows, titles, legend, title))
