"""Pictures of a task's data for the summary of a run: three slices of a few cases, as PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..benchmark import panels
from ..benchmark.targets import FollowUp, Labels, Lesion, Pair, Suspects
from ..benchmark.types import Case, TaskCard, Triple, Volume

MOST = 4
"""Cases per task: enough to see what is asked, few enough not to be waited for."""

SIDE = 168
"""Pixels of the longest side of the box: six tasks stay below 1 MB."""

GREYS = 64
"""Steps from black to white: hardly seen, and the files are a third smaller than with 256."""


@dataclass(frozen=True)
class View:
    """One slice."""

    plane: str
    """``axial``, ``coronal`` or ``sagittal``."""
    png: str
    """As a data URI."""
    width: int
    """CSS pixels, as is ``height``: in proportion to mm, equal for the views of a case."""
    height: int


@dataclass(frozen=True)
class Picture:
    """One case."""

    case: str
    target: str
    views: tuple[View, ...]
    """Empty where the image cannot be shown."""
    shown: str
    """Size of the box and gray scale, or why there is no picture."""


def pictures(card: TaskCard, cases: Sequence[Case], most: int = MOST) -> list[Picture]:
    """A few cases as the task shows them: its field of view, in mm, before any encoder.

    A case that cannot be loaded becomes a picture without views: it never ends a run.

    Args:
        card: of the task.
        cases: at least one.
        most: pictures.
    """
    return [_picture(card, case) for case in _chosen(card, cases, most)]


def _chosen(card: TaskCard, cases: Sequence[Case], most: int) -> list[Case]:
    """The first of each class, the second of each, ...; of values, evenly from least to most."""
    if card.kind == "regression":
        rising = sorted(cases, key=lambda case: float(case.target))  # type: ignore[arg-type]
        places = np.linspace(0, len(rising) - 1, min(most, len(rising))).round().astype(int)
        return [rising[place] for place in places]
    if card.kind != "classification":
        return list(cases[:most])
    turns: dict[object, int] = {}
    queue = []
    for place, case in enumerate(cases):
        turns[case.target] = turns.get(case.target, 0) + 1
        queue.append((turns[case.target], place))
    first = [cases[place] for _, place in sorted(queue)[:most]]
    return sorted(first, key=lambda case: int(case.target))  # type: ignore[arg-type]


def _picture(card: TaskCard, case: Case) -> Picture:
    target = _target(card, case)
    try:
        volume = case.load()
        views, shown = _views(volume, card.field_of_view_mm)
    except Exception as error:  # a task's own code can fail in any way; the scores stand
        reason = f"no picture: {str(error) or type(error).__name__}"
        return Picture(case.id, target, (), reason)
    return Picture(case.id, target, views, shown)


def _target(card: TaskCard, case: Case) -> str:
    """What is asked of a case, in words."""
    target = case.target
    if isinstance(target, Labels):
        return "a mask"
    if isinstance(target, Pair):
        return "a second image"
    if isinstance(target, FollowUp):
        return f"{target.years:.2f} years, {'event' if target.event else 'censored'}"
    if isinstance(target, Suspects):
        return f"{_lesions(len(target.lesions))}, {len(target.places)} places marked"
    if isinstance(target, tuple):
        if card.kind == "detection":
            return _lesions(sum(isinstance(t, Lesion) for t in target))
        named = [name for name, there in zip(card.classes, target, strict=False) if there]
        return ", ".join(named) or "none"
    if isinstance(target, Path):
        return "a mask"
    if card.kind == "classification":
        return card.classes[int(target)]
    return f"{float(target):.4g} {card.unit}".rstrip()


def _lesions(n: int) -> str:
    return f"{n} lesion{'' if n == 1 else 's'}"


def _views(volume: Volume, field_of_view_mm: Triple | None) -> tuple[tuple[View, ...], str]:
    box = _box(volume, field_of_view_mm)
    grays = panels.gray_scale(box, volume.unit)
    shades = np.rint(panels.scaled(box, grays) * (GREYS - 1)) * (255 / (GREYS - 1))
    gray = np.rint(shades).astype(np.uint8)
    middle = panels.center(None, box.shape)
    views = tuple(
        _view(
            plane.name,
            panels.cut(gray, plane, middle),
            panels.pixels(plane, box.shape, volume.spacing, SIDE),
        )
        for plane in panels.PLANES
    )
    mm = [n * s for n, s in zip(box.shape, volume.spacing, strict=True)]
    size = " × ".join(f"{length:.0f}" for length in mm)
    channels = f", channel 1 of {len(volume.voxels)}" if len(volume.voxels) > 1 else ""
    return views, f"{size} mm, {grays.said}{channels}"


def _box(volume: Volume, field_of_view_mm: Triple | None) -> np.ndarray:
    """The first channel in the task's central box, (X, Y, Z), as far as the image reaches."""
    image = volume.voxels[0]
    if field_of_view_mm is None:
        return image
    parts = []
    for n, spacing, length in zip(image.shape, volume.spacing, field_of_view_mm, strict=True):
        kept = min(n, max(1, round(length / spacing)))
        start = (n - kept) // 2
        parts.append(slice(start, start + kept))
    return image[tuple(parts)]


def _view(plane: str, values: np.ndarray, shown: tuple[int, int]) -> View:
    """A slice as PNG with at most the pixels it is shown with; the page stretches small ones."""
    image = Image.fromarray(values)
    pixels = min(shown[0], image.width), min(shown[1], image.height)
    if pixels != image.size:
        image = image.resize(pixels, Image.Resampling.BOX)
    file = io.BytesIO()
    image.quantize(GREYS).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return View(plane, f"data:image/png;base64,{data}", *shown)
