"""Drawn images of 20 classes, for pretraining where there are no photographs.

Twelve classes are textures, which differ in their spatial spectrum and order, and eight are shapes.
Within a class colour, contrast, scale, position, rotation, sharpness, light, noise and what else is
in the picture are random, and drawn in the same way for all classes: none of them tells the class.
All constants here are ours.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Field = np.ndarray
"""(n, n) float64, in [0, 1] where it is a pattern or a mask."""
Frame = tuple[np.ndarray, np.ndarray]
"""Two coordinates of each pixel, (n, n): -1 to 1 across the image, then shifted and turned."""

CONTRAST = 0.35
"""Least distance of the two colours of a picture in RGB of [0, 1]."""
CLUTTER = 4
"""Most distractors in a picture."""


def draw(rng: np.random.Generator, size: int, label: int) -> np.ndarray:
    """Draw one image of a class.

    Args:
        rng: all randomness.
        size: pixels of each side.
        label: index into `CLASSES`.

    Returns:
        (size, size, 3) uint8.
    """
    name = CLASSES[label]
    back, front = _colours(rng)
    image = back * (1 + 0.25 * (_noise(rng, size, rng.uniform(1, 2.5)) - 0.5))[..., None]
    _clutter(rng, image)
    if name in TEXTURES:
        pattern = TEXTURES[name](rng, _frame(rng, size, 0.3))
        # Half of the textures fill the picture, half an area in it: a texture is no background.
        cover = np.ones_like(pattern) if rng.random() < 0.5 else _cover(rng, size)
        other = np.clip(back + rng.uniform(-0.15, 0.15, 3), 0, 1)
        inside = other + (front - other) * pattern[..., None]
    else:
        cover = SHAPES[name](rng, _frame(rng, size, 0.25))
        inside = front * (1 + 0.25 * (_noise(rng, size, rng.uniform(0, 2.5)) - 0.5))[..., None]
    image += (inside - image) * cover[..., None]
    if rng.random() < 0.5:
        _clutter(rng, image, small=True)
    x, _ = _frame(rng, size, 0)
    image *= (1 + rng.uniform(0, 0.3) * x)[..., None]  # light from one side
    image += rng.normal(0, rng.uniform(0, 0.06), image.shape)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def _cover(rng: np.random.Generator, size: int) -> Field:
    """A blob, large enough that a texture repeats within it."""
    x, y = _frame(rng, size, 0.2)
    return _blob(rng, (x / 1.5, y / 1.5))


def _colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    while True:
        back, front = rng.uniform(0.05, 0.95, (2, 3))
        if np.linalg.norm(back - front) >= CONTRAST:
            return back, front


def _frame(rng: np.random.Generator, size: int, shift: float) -> Frame:
    line = (np.arange(size) + 0.5) * 2 / size - 1
    a, b = rng.uniform(-shift, shift, 2)
    x, y = np.meshgrid(line - a, line - b, indexing="ij")
    turn = rng.uniform(0, 2 * np.pi)
    return x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)


def _noise(rng: np.random.Generator, size: int, slope: float) -> Field:
    """Noise whose amplitude falls with the frequency to the power of ``slope``."""
    frequency = _frequency(size)
    frequency[0, 0] = np.inf
    return _filtered(rng, frequency**-slope)


def _filtered(rng: np.random.Generator, gain: np.ndarray) -> Field:
    """White noise through a filter, ranked by its range onto [0, 1]."""
    size = gain.shape[0]
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) * gain, (size, size))
    low, high = np.percentile(field, (1, 99))
    return np.clip((field - low) / (high - low), 0, 1)


def _frequency(size: int) -> np.ndarray:
    """(n, n // 2 + 1), cycles per image."""
    return size * np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])


def _clutter(rng: np.random.Generator, image: np.ndarray, small: bool = False) -> None:
    """Paint discs and strips over an image, in place."""
    size = image.shape[0]
    for _ in range(rng.integers(0, CLUTTER + 1)):
        x, y = _frame(rng, size, 1)
        radius = rng.uniform(0.03, 0.08 if small else 0.25)
        thick = np.hypot(x, y) if rng.random() < 0.5 else np.maximum(abs(x), abs(y) / 6)
        cover = rng.uniform(0.3, 0.9) * _solid(thick - radius)
        image += (rng.uniform(0, 1, 3) - image) * cover[..., None]


def _solid(distance: np.ndarray) -> Field:
    """1 inside (negative distance), 0 outside, one pixel of transition."""
    return np.clip(0.5 - distance * distance.shape[0] / 2, 0, 1)


def _wave(rng: np.random.Generator, phase: np.ndarray) -> Field:
    """A periodic pattern, from a soft sine to sharp bars."""
    return np.clip(0.5 + rng.uniform(0.5, 3) * np.sin(phase + rng.uniform(0, 2 * np.pi)), 0, 1)


def _period(rng: np.random.Generator) -> float:
    """A tenth to a quarter of the image, in a frame's units."""
    return 2 * float(np.exp(rng.uniform(np.log(1 / 10), np.log(1 / 4))))


# --- textures ------------------------------------------------------------------------------------


def _grating(rng: np.random.Generator, frame: Frame) -> Field:
    return _wave(rng, 2 * np.pi * frame[0] / _period(rng))


def _waves(rng: np.random.Generator, frame: Frame) -> Field:
    period = _period(rng)
    bend = period * rng.uniform(0.3, 0.7)
    bent = frame[0] + bend * np.sin(2 * np.pi * frame[1] / (period * rng.uniform(1.5, 3)))
    return _wave(rng, 2 * np.pi * bent / period)


def _checkers(rng: np.random.Generator, frame: Frame) -> Field:
    x, y = (np.sin(2 * np.pi * one / (1.4 * _period(rng))) for one in frame)
    return np.clip(0.5 + rng.uniform(1, 4) * x * y, 0, 1)


def _lattice(rng: np.random.Generator, frame: Frame) -> Field:
    period = _period(rng)
    x, y = ((one / period) % 1 - 0.5 for one in frame)
    return _solid(period * (np.hypot(x, y) - rng.uniform(0.2, 0.35)))


def _scatter(rng: np.random.Generator, frame: Frame) -> Field:
    period = _period(rng)
    nearest, _ = _distances(frame, rng.uniform(-1.5, 1.5, (int(9 / period**2), 2)))
    return _solid(nearest - period * rng.uniform(0.2, 0.35))


def _cells(rng: np.random.Generator, frame: Frame) -> Field:
    period = 1.3 * _period(rng)
    first, second = _distances(frame, rng.uniform(-1.5, 1.5, (int(9 / period**2), 2)))
    return _solid(second - first - period * rng.uniform(0.1, 0.2))


def _distances(frame: Frame, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """To the nearest and the second nearest of the points (k, 2)."""
    square = (frame[0][..., None] - points[:, 0]) ** 2 + (frame[1][..., None] - points[:, 1]) ** 2
    two = np.sqrt(np.partition(square, 1, axis=-1)[..., :2])
    return two[..., 0], two[..., 1]


def _rings(rng: np.random.Generator, frame: Frame) -> Field:
    return _wave(rng, 2 * np.pi * np.hypot(*frame) / _period(rng))


def _spokes(rng: np.random.Generator, frame: Frame) -> Field:
    return _wave(rng, rng.integers(5, 13) * np.arctan2(*frame))


def _spiral(rng: np.random.Generator, frame: Frame) -> Field:
    arms = rng.integers(2, 6) * rng.choice([-1, 1])
    return _wave(rng, arms * np.arctan2(*frame) + 2 * np.pi * np.hypot(*frame) / _period(rng))


def _static(rng: np.random.Generator, frame: Frame) -> Field:
    return _noise(rng, frame[0].shape[0], rng.uniform(0, 0.6))


def _clouds(rng: np.random.Generator, frame: Frame) -> Field:
    return _noise(rng, frame[0].shape[0], rng.uniform(1.6, 2.6))


def _labyrinth(rng: np.random.Generator, frame: Frame) -> Field:
    size = frame[0].shape[0]
    middle = 2 / _period(rng)  # cycles per image
    band = np.exp(-(((_frequency(size) - middle) / (0.15 * middle)) ** 2))
    return np.clip(0.5 + rng.uniform(2, 6) * (_filtered(rng, band) - 0.5), 0, 1)


TEXTURES: dict[str, Callable[[np.random.Generator, Frame], Field]] = {
    "grating": _grating,
    "waves": _waves,
    "checkers": _checkers,
    "lattice": _lattice,
    "scatter": _scatter,
    "cells": _cells,
    "rings": _rings,
    "spokes": _spokes,
    "spiral": _spiral,
    "static": _static,
    "clouds": _clouds,
    "labyrinth": _labyrinth,
}

# --- shapes --------------------------------------------------------------------------------------


def _radius(rng: np.random.Generator) -> float:
    return rng.uniform(0.35, 0.75)


def _disc(rng: np.random.Generator, frame: Frame) -> Field:
    return _solid(np.hypot(frame[0], frame[1] * rng.uniform(1, 1.6)) - _radius(rng))


def _triangle(rng: np.random.Generator, frame: Frame) -> Field:
    # A third of a turn per side, each at the same distance from the center.
    third = 2 * np.pi / 3
    within = np.arctan2(*frame) % third - third / 2
    return _solid(np.hypot(*frame) * np.cos(within) - 0.6 * _radius(rng))


def _square(rng: np.random.Generator, frame: Frame) -> Field:
    sides = (abs(frame[0]), abs(frame[1]) * rng.uniform(1, 1.6))
    return _solid(np.maximum(*sides) - 0.85 * _radius(rng))


def _star(rng: np.random.Generator, frame: Frame) -> Field:
    corners = rng.integers(4, 8)
    # From 1 at a corner to 0 between two, linear in the angle.
    corner = abs((np.arctan2(*frame) * corners / (2 * np.pi)) % 1 - 0.5) * 2
    edge = _radius(rng) * (0.4 + 0.75 * corner**1.5)
    return _solid(np.hypot(*frame) - edge)


def _annulus(rng: np.random.Generator, frame: Frame) -> Field:
    radius = _radius(rng)
    return _solid(abs(np.hypot(*frame) - radius) - radius * rng.uniform(0.12, 0.3))


def _cross(rng: np.random.Generator, frame: Frame) -> Field:
    x, y = abs(frame[0]), abs(frame[1])
    long, wide = 1.1 * _radius(rng), rng.uniform(0.22, 0.38)
    bars = (np.maximum(x - long, y - long * wide), np.maximum(y - long, x - long * wide))
    return _solid(np.minimum(*bars))


def _crescent(rng: np.random.Generator, frame: Frame) -> Field:
    radius = 1.1 * _radius(rng)
    bite = np.hypot(frame[0] - radius * rng.uniform(0.45, 0.7), frame[1]) - 0.9 * radius
    return _solid(np.maximum(np.hypot(*frame) - radius, -bite))


def _blob(rng: np.random.Generator, frame: Frame) -> Field:
    angle = np.arctan2(*frame)
    edge = np.ones_like(angle)
    for order in (2, 3, 4, 5):
        edge += rng.uniform(0.05, 0.4) / order * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    return _solid(np.hypot(*frame) - _radius(rng) * edge)


SHAPES: dict[str, Callable[[np.random.Generator, Frame], Field]] = {
    "disc": _disc,
    "triangle": _triangle,
    "square": _square,
    "star": _star,
    "annulus": _annulus,
    "cross": _cross,
    "crescent": _crescent,
    "blob": _blob,
}

CLASSES = (*TEXTURES, *SHAPES)
