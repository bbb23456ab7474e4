"""One picture of many samples of a label engine: labels in colours, their views in grey."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE = 160
"""Pixels of a tile's longer side."""

GAP = 4
"""White pixels between tiles."""


@dataclass(frozen=True)
class Sample:
    """A label map with its two views, all (X, Y, Z)."""

    labels: np.ndarray
    """Integers from 0."""
    views: tuple[np.ndarray, np.ndarray]
    """In [0, 1]."""


def contact_sheet(samples: Sequence[Sample]) -> Image.Image:
    """A row per sample: labels and views in the middle slice across Z, then across Y."""
    rows: list[list[Image.Image]] = []
    for sample in samples:
        row: list[Image.Image] = []
        for axis in (2, 1):
            middle = sample.labels.shape[axis] // 2
            row.append(_tile(_coloured(sample.labels.take(middle, axis))))
            row.extend(
                _tile((view.take(middle, axis) * 255).round().astype(np.uint8))
                for view in sample.views
            )
        rows.append(row)
    widths = [max(row[i].width for row in rows) for i in range(6)]
    heights = [max(tile.height for tile in row) for row in rows]
    size = (sum(widths) + GAP * 7, sum(heights) + GAP * (len(rows) + 1))
    sheet = Image.new("RGB", size, "white")
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        left = GAP
        for tile, width in zip(row, widths, strict=True):
            sheet.paste(tile, (left, top))
            left += width + GAP
        top += height + GAP
    return sheet


def _coloured(labels: np.ndarray) -> np.ndarray:
    """Black for 0; else hues a golden ratio apart, so that neighbours in number look different."""
    numbers = np.arange(int(labels.max()) + 1)
    hue = (numbers * 0.618034) % 1.0
    # Three cosines a third of a turn apart: a plain wheel of colours.
    angle = 2 * np.pi * (hue[:, None] + np.array([0, 1, 2]) / 3)
    palette = (140 + 110 * np.cos(angle)).astype(np.uint8)
    palette[0] = 0
    return palette[labels]


def _tile(pixels: np.ndarray) -> Image.Image:
    """(X, Y) or (X, Y, 3) -> upright: the second axis goes up."""
    image = Image.fromarray(np.ascontiguousarray(pixels.swapaxes(0, 1)[::-1]))
    scale = SIDE / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST)
