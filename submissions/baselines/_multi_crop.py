"""Random resized crops of volumes and slices, and what is done to them, for self-distillation.

All randomness comes from the generator that is passed. Images are float32 arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

Range = tuple[float, float]

ASPECT_2D: Range = (3 / 4, 4 / 3)
"""Of the sides of a 2D crop: the usual of random resized crops (Szegedy et al., 1409.4842)."""
ASPECT_3D: Range = (0.9, 1 / 0.9)
"""Of the sides of a 3D crop within the slice (3DINO's published code)."""
ATTEMPTS = 10
"""Boxes tried before one of the plane's own proportions is taken."""


class Volumes(Protocol):
    """Where the crops are cut from."""

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """(X, Y, Z) float32 in RAS, scaled as the model wants it."""
        ...

    def describe(self) -> str:
        """What, how many, whose."""
        ...


def box(
    shape: Sequence[int], area: Range, aspect: Range, rng: np.random.Generator
) -> tuple[slice, slice]:
    """A random rectangle of a plane.

    Args:
        shape: of the plane, in pixels.
        area: share of the plane, drawn uniformly.
        aspect: ratio of the sides relative to the plane's own, drawn log-uniformly.
        rng: the generator.
    """
    share, sides = 1.0, (1.0, 1.0)
    for _ in range(ATTEMPTS):
        share = rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        sides = math.sqrt(share * ratio), math.sqrt(share / ratio)
        if max(sides) <= 1:
            break
    else:  # too large a share for any such ratio
        sides = math.sqrt(share), math.sqrt(share)
    first, second = (span(n, side, rng) for n, side in zip(shape, sides, strict=True))
    return first, second


def span(length: int, share: float, rng: np.random.Generator) -> slice:
    """A random run of ``share`` of ``length`` voxels, at least one."""
    size = min(length, max(1, round(share * length)))
    start = int(rng.integers(length - size + 1))
    return slice(start, start + size)


def region(volume: np.ndarray, share: Range, rng: np.random.Generator) -> np.ndarray:
    """A random box with the volume's proportions, which is then cropped like an image of its own.

    Args:
        volume: (X, Y, Z).
        share: of each side; (1, 1) for the whole volume.
        rng: the generator.
    """
    side = rng.uniform(*share)
    x, y, z = (span(n, side, rng) for n in volume.shape)
    return volume[x, y, z]


def crop_3d(
    volume: np.ndarray,
    size: int,
    in_slice: Range,
    cross_slice: Range,
    rng: np.random.Generator,
    *,
    turn: float,
) -> np.ndarray:
    """A random box of a volume, resized to a cube, flipped and turned.

    Args:
        volume: (X, Y, Z); slices are stacked along Z.
        size: voxels along each side of the cube.
        in_slice: share of the area of a slice.
        cross_slice: share of the slices.
        rng: the generator.
        turn: probability of a flip along each axis, and of a quarter turn about each axis.

    Returns:
        (size, size, size) float32.
    """
    x, y = box(volume.shape[:2], in_slice, ASPECT_3D, rng)
    z = span(volume.shape[2], rng.uniform(*cross_slice), rng)
    cube = resized(volume[x, y, z], (size,) * 3)
    for axis in range(3):
        if rng.random() < turn:
            cube = np.flip(cube, axis)
    for axes in ((1, 2), (0, 2), (0, 1)):
        if rng.random() < turn:
            cube = np.rot90(cube, int(rng.integers(1, 4)), axes)
    return np.ascontiguousarray(cube)


def crop_2d(
    image: np.ndarray, size: int, area: Range, rng: np.random.Generator, *, flip: float
) -> np.ndarray:
    """A random rectangle of a slice, resized to a square; mirrored along the first axis or not.

    Args:
        image: (X, Y); X is left to right.
        size: pixels along each side of the square.
        area: share of the slice.
        rng: the generator.
        flip: probability of mirroring left and right.

    Returns:
        (size, size) float32.
    """
    square = resized(image[box(image.shape, area, ASPECT_2D, rng)], (size,) * 2)
    return np.ascontiguousarray(square[::-1] if rng.random() < flip else square)


def resized(image: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """An image on another number of voxels, float32.

    Where there are fewer, voxels are averaged first: plain linear interpolation would skip some
    and fold fine structure into noise.
    """
    values = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None, None]
    fewer = [min(old, new) for old, new in zip(image.shape, shape, strict=True)]
    if tuple(fewer) != image.shape and image.ndim == 2:
        values = functional.adaptive_avg_pool2d(values, (fewer[0], fewer[1]))
    elif tuple(fewer) != image.shape:
        values = functional.adaptive_avg_pool3d(values, (fewer[0], fewer[1], fewer[2]))
    if fewer != list(shape):
        mode = "bilinear" if image.ndim == 2 else "trilinear"
        values = functional.interpolate(values, list(shape), mode=mode, align_corners=False)
    return values[0, 0].numpy()


def jittered(
    image: np.ndarray, rng: np.random.Generator, *, gamma: float, blur: float, noise: float
) -> np.ndarray:
    """Another contrast, sharpness and noise, each with probability 1/2.

    Args:
        image: any shape.
        rng: the generator.
        gamma: the exponent, on the image's own range, is drawn log-uniformly from 1 / (1 + gamma)
            to 1 + gamma.
        blur: largest standard deviation of a Gaussian, voxels.
        noise: largest standard deviation of white noise, as a share of the image's own.

    Returns:
        The same shape, float32.
    """
    contrast, smooth, rough = rng.random(3) < 0.5
    if contrast:
        low, high = float(image.min()), float(image.max())
        exponent = math.exp(rng.uniform(-1, 1) * math.log1p(gamma))
        if high > low:
            image = ((image - low) / (high - low)) ** exponent * (high - low) + low
    if smooth:
        image = ndimage.gaussian_filter(image, rng.uniform(0, blur))
    if rough:
        spread = rng.uniform(0, noise) * float(image.std())
        image = image + spread * rng.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(image, dtype=np.float32)


def block_mask(
    shape: tuple[int, int], share: float, rng: np.random.Generator, *, smallest: int = 4
) -> np.ndarray:
    """Mask patches in rectangles until ``share`` of them is masked (BEiT, 2106.08254, alg. 1).

    Args:
        shape: patches along the two sides.
        share: of the patches; rounded down.
        rng: the generator.
        smallest: patches in a rectangle, but for the last that fills up. BEiT takes 16 of 14 x 14,
            DINOv2's code 4.

    Returns:
        ``shape`` bool, True where masked; exactly ``int(share * patches)`` are.
    """
    mask = np.zeros(shape, dtype=bool)
    wanted = int(share * mask.size)
    while (left := wanted - int(mask.sum())) > 0:
        area = rng.uniform(min(smallest, left), left)
        ratio = math.exp(rng.uniform(-1, 1) * math.log(1 / 0.3))  # BEiT's aspect ratios
        h = min(shape[0], max(1, round(math.sqrt(area * ratio))))
        w = min(shape[1], max(1, round(math.sqrt(area / ratio))))
        top, start = int(rng.integers(shape[0] - h + 1)), int(rng.integers(shape[1] - w + 1))
        block = mask[top : top + h, start : start + w]
        free = np.argwhere(~block)[:left]  # row by row: the last rectangle may be cut short
        block[free[:, 0], free[:, 1]] = True
    return mask
