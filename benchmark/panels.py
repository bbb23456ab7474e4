"""Slices as panels of a picture: cut, zoomed in proportion to mm, painted, and put on a sheet."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .errors import StorageError
from .types import Shape, Triple, Unit

if TYPE_CHECKING:
    from PIL import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

OKABE_ITO = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)
"""Orange, sky blue, bluish green, yellow, vermilion, reddish purple, blue: classes 1 to 7."""

SOFT_TISSUE = (-160.0, 240.0)
"""HU; level 40 and width 400, the usual setting for abdomen and muscle."""

WIDE = (-1000.0, 400.0)
"""HU; from air to dense bone, where a good part of the image is lung."""

LUNG = (-950.0, -500.0)
"""HU of aerated lung; air around the patient is below."""

LUNG_SHARE = 0.15
"""Of the image: above, a soft-tissue window would show mainly black."""

PERCENTILES = (0.5, 99.5)
"""What becomes black and white in images without a physical unit."""

LOOKED_AT = 1_000_000
"""Voxels, spread over the image, that decide its gray scale: more do not change it visibly."""

SIDE = 300
"""Pixels of the longest side of the box."""

SQUARES = 8
"""Of a checkerboard along the longest side of the box."""

FILL = 0.35
"""How much of a class's color its area gets; its border gets all of it."""

GAP = 6
TITLE = 24
COLUMN = 170
"""Pixels between panels, of a line of text, and of a column at least, for its title."""

DASH = 5
"""Pixels of one color where two borders are the same."""

PAGE = (16, 18, 22)
TEXT = (232, 234, 237)

FIXED, MOVING = OKABE_ITO[1], OKABE_ITO[0]
"""Borders of labels of the two images of a registration."""

Color = tuple[int, int, int]


def color(label: int) -> Color:
    """Of a class from 1; those after the seventh repeat the hues, lighter.

    >>> color(1)
    (230, 159, 0)
    """
    turn, place = divmod(label - 1, len(OKABE_ITO))
    hue, light, depth = colorsys.rgb_to_hls(*(c / 255 for c in OKABE_ITO[place]))
    light += (1 - light) * (1 - 0.6**turn)
    r, g, b = (round(255 * c) for c in colorsys.hls_to_rgb(hue, light, depth))
    return (r, g, b)


# --- gray scales ---------------------------------------------------------------------------------


class Grays(NamedTuple):
    """What of an image is black and what is white."""

    black: float
    white: float
    said: str
    """In words, with the unit."""


def gray_scale(image: np.ndarray, unit: Unit) -> Grays:
    """How an image (X, Y, Z) is shown: HU in a window, [0, 1] whole, others by percentiles."""
    if unit == "relative":
        return Grays(0.0, 1.0, "0 to 1")
    step = max(1, round((image.size / LOOKED_AT) ** (1 / 3)))
    some = image[::step, ::step, ::step]
    if unit == "HU":
        lung = np.mean((some > LUNG[0]) & (some < LUNG[1]))
        low, high = WIDE if lung > LUNG_SHARE else SOFT_TISSUE
        return Grays(low, high, f"{low:.0f} to {high:.0f} HU".replace("-", "−"))
    low, high = np.percentile(some, PERCENTILES)
    said = f"percentiles {PERCENTILES[0]:g} to {PERCENTILES[1]:g}"
    return Grays(float(low), float(high), said)


# --- planes --------------------------------------------------------------------------------------


class Plane(NamedTuple):
    """One of the three."""

    name: str
    axis: int
    """Across which it is cut."""
    ends: tuple[str, str]
    """What is to the left and to the right of the panel."""


PLANES = (
    Plane("axial", 2, ("R", "L")),
    Plane("coronal", 1, ("R", "L")),
    Plane("sagittal", 0, ("A", "P")),
)


def center(labels: np.ndarray | None, shape: Sequence[int]) -> Shape:
    """The labelled voxel nearest to the center of them all; the middle where there is none."""
    if labels is None or not labels.any():
        x, y, z = (n // 2 for n in shape)
        return (x, y, z)
    points = np.argwhere(labels)
    x, y, z = points[((points - points.mean(0)) ** 2).sum(1).argmin()].tolist()
    return (x, y, z)


def scaled(values: np.ndarray, grays: Grays) -> np.ndarray:
    """Gray values as float32, 0 black and 1 white."""
    low, high, _ = grays
    return np.clip((values.astype(np.float32) - low) / max(high - low, 1e-12), 0, 1)


def picture(
    image: np.ndarray, plane: Plane, point: Shape, spacing: Triple, grays: Grays
) -> np.ndarray:
    """The plane through a voxel of an image (X, Y, Z): (height, width, 3) uint8."""
    from PIL import Image

    gray = np.rint(255 * scaled(cut(image, plane, point), grays)).astype(np.uint8)
    size = pixels(plane, image.shape, spacing)
    return np.asarray(Image.fromarray(gray).resize(size, Image.Resampling.BICUBIC).convert("RGB"))


def marks(labels: np.ndarray, plane: Plane, point: Shape, spacing: Triple) -> np.ndarray:
    """The plane through a voxel of labels (X, Y, Z): (height, width), as sharp as voxels are."""
    values = cut(labels, plane, point)
    width, height = pixels(plane, labels.shape, spacing)
    rows = ((np.arange(height) + 0.5) / height * values.shape[0]).astype(np.int64)
    columns = ((np.arange(width) + 0.5) / width * values.shape[1]).astype(np.int64)
    return values[np.ix_(rows, columns)]


def cut(array: np.ndarray, plane: Plane, point: Shape) -> np.ndarray:
    """(X, Y, Z) -> (rows, columns), from the top and from the left."""
    return np.ascontiguousarray(array.take(point[plane.axis], plane.axis).T[::-1, ::-1])


def pixels(
    plane: Plane, shape: Sequence[int], spacing: Triple, side: int = SIDE
) -> tuple[int, int]:
    """Width and height of a panel, in proportion to mm; the box is ``side`` pixels long."""
    mm = [n * s for n, s in zip(shape, spacing, strict=True)]
    width, height = (length for axis, length in enumerate(mm) if axis != plane.axis)
    scale = side / max(mm)
    return max(1, round(width * scale)), max(1, round(height * scale))


# --- painting ------------------------------------------------------------------------------------


def border(labels: np.ndarray) -> np.ndarray:
    """(height, width) bool: labelled pixels next to another label, two pixels wide."""
    near = np.pad(labels, 2)
    height, width = labels.shape
    edge = np.zeros(labels.shape, bool)
    for row, column in ((0, 2), (1, 2), (3, 2), (4, 2), (2, 0), (2, 1), (2, 3), (2, 4)):
        edge |= near[row : row + height, column : column + width] != labels
    return edge & (labels != 0)


def painted(panel: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A panel (height, width, 3) under the colors of its labels (height, width)."""
    colors = np.array([(0, 0, 0), *(color(k) for k in range(1, int(labels.max(initial=0)) + 1))])
    share = np.where(labels != 0, FILL, 0.0)
    share[border(labels)] = 1.0
    mixed = panel + share[..., None] * (colors[labels] - panel.astype(np.float64))
    return np.rint(mixed).astype(np.uint8)


def outlined(
    panel: np.ndarray, of_fixed: np.ndarray | None, of_moving: np.ndarray | None
) -> np.ndarray:
    """A panel with the borders of both labels, in turn where they are the same."""
    drawn = panel.copy()
    none = np.zeros(panel.shape[:2], bool)
    fixed, moving = (none if border is None else border for border in (of_fixed, of_moving))
    rows, columns = np.indices(none.shape)
    turn = (rows + columns) // DASH % 2 == 0
    drawn[fixed] = FIXED
    drawn[moving & (~fixed | turn)] = MOVING
    return drawn


def board(shape: tuple[int, int]) -> np.ndarray:
    """(height, width) bool, True in every other square."""
    side = SIDE / SQUARES
    rows, columns = (np.arange(n) // side for n in shape)
    return (rows[:, None] + columns[None]) % 2 == 0


def sheet(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    legend: Sequence[tuple[str, Color]],
    title: str,
) -> Image.Image:
    """Panels in rows of one plane each, with titles above and a legend below."""
    from PIL import Image, ImageDraw, ImageFont

    font, small = ImageFont.load_default(16), ImageFont.load_default(13)
    column = max(COLUMN, *(panel.shape[1] for row in rows for panel in row))
    width = 2 * GAP + len(titles) * column + (len(titles) - 1) * GAP
    lines = _lines(legend, width - 2 * GAP, font)
    top = GAP + (TITLE if title else 0)
    heights = [max(panel.shape[0] for panel in row) for row in rows]
    height = top + TITLE + sum(heights) + len(rows) * GAP + len(lines) * TITLE + GAP
    page = Image.new("RGB", (width, height), PAGE)
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((GAP, GAP), title, TEXT, font)
    for place, text in enumerate(titles):
        middle = GAP + place * (column + GAP) + column / 2
        draw.text((middle, top + TITLE / 2), text, TEXT, font, anchor="mm")
    y = top + TITLE
    for plane, row, high in zip(PLANES, rows, heights, strict=True):
        for place, panel in enumerate(row):
            x = GAP + place * (column + GAP) + (column - panel.shape[1]) // 2
            page.paste(Image.fromarray(panel), (x, y))
            right, middle = x + panel.shape[1] - 4, y + panel.shape[0] // 2
            outline = {"fill": TEXT, "font": small, "stroke_width": 2, "stroke_fill": PAGE}
            draw.text((x + 4, middle), plane.ends[0], anchor="lm", **outline)
            draw.text((right, middle), plane.ends[1], anchor="rm", **outline)
            if place == 0:
                draw.text((x + 4, y + 3), plane.name, **outline)
        y += high + GAP
    for line in lines:
        for x, text, shade in line:
            draw.rectangle((GAP + x, y + 5, GAP + x + 12, y + 17), shade)
            draw.text((GAP + x + 18, y + 11), text, TEXT, font, anchor="lm")
        y += TITLE
    return page


def _lines(
    legend: Sequence[tuple[str, Color]], width: int, font: FreeTypeFont | ImageFont
) -> list[list[tuple[float, str, Color]]]:
    """Where each entry of the legend begins: lines of (pixel, text, color)."""
    lines: list[list[tuple[float, str, Color]]] = []
    x = 0.0
    for text, shade in legend:
        length = 18 + font.getlength(text) + 18
        if not lines or x + length > width:
            lines.append([])
            x = 0.0
        lines[-1].append((x, text, shade))
        x += length
    return lines


def write(path: Path, page: Image.Image) -> None:
    """Save as PNG, beside the file, and move it there.

    Raises:
        StorageError: the file cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        page.save(part, "PNG")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StorageError(
            f"The picture {path} cannot be written: {error.strerror or error}. Free some space, or "
            "choose another folder."
        ) from error
