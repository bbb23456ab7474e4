"""One simulated patient of the smoke cohort: the template, deformed, lesioned and scanned.

Pure functions of a seed. Everything is computed in float64 and rounded to a grid at the end
(voxels to 1/1024, facts to three decimals): processors differ in the last bit of ``exp`` or of a
sum, a difference of about 1e-16 that the grid absorbs, so that the stored bytes and their hash are
the same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from ._smoke_template import SHAPE, SPACING_MM, template

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

GRID_STEP = 1 / 1024
"""Voxels are multiples of this in [0, 2), which float16 holds exactly."""

BACKGROUND, CSF, GREY, WHITE, VENTRICLE = range(5)
"""Labels of the tissue maps."""


@dataclass(frozen=True)
class Recipe:
    """How strongly subjects vary. The defaults make the tasks neither trivial nor impossible."""

    warp_mm: float = 1.0
    """SD of each component of the random smooth deformation."""
    warp_knots_mm: float = 24.0
    """Distance of the control points of its cubic B-spline."""
    rotation_deg: float = 3.0
    """SD of the rotation about each axis."""
    ventricle_mm: tuple[float, float] = (0.6, 0.7)
    """Mean and SD of the shift of the ventricles' wall; positive enlarges."""
    atrophy_mm: float = 0.25
    """Further shift in patients with a lesion, as in small-vessel disease: a weak shortcut."""
    ventricle_range_mm: tuple[float, float] = (-1.0, 2.6)
    """The shift is clipped to this: beyond it the deformation would fold."""
    gamma: float = 0.08
    """SD of the logarithm of the exponent on intensities."""
    bias: float = 0.04
    """SD of the logarithm of the smooth multiplicative field."""
    bias_knots_mm: float = 72.0
    """Distance of its control points."""
    noise: tuple[float, float] = (0.02, 0.04)
    """Range of the SD of the noise in each channel; the magnitude is then Rician."""
    diameter_mm: tuple[float, float] = (10.0, 15.0)
    """Range of the lesion's diameter."""
    contrast: tuple[float, float] = (0.4, 0.8)
    """Range of the lesion's relative change of intensity, without its sign."""
    bright: float = 0.25
    """Share of lesions that are bright. Most are dark: white matter is the brightest tissue of the
    image, and pipelines that clip at a high percentile remove what is brighter still."""
    psf: float = 0.1
    """Share of a voxel's signal that each of its neighbours along an axis receives, as by a
    scanner's blur: without it the scattered voxels of controls stand out more than a lesion."""


@dataclass(frozen=True)
class Subject:
    """One simulated patient and everything that is known about them."""

    voxels: NDArray[np.float16]
    """(48, 56, 48), arbitrary scanner units, white matter near 0.86."""
    tissue: NDArray[np.uint8]
    """(48, 56, 48): 0 background, 1 CSF, 2 grey, 3 white, 4 lateral ventricle."""
    knots: NDArray[np.float32]
    """(3, k_x, k_y, k_z) mm: control points of the smooth deformation."""
    angles_deg: tuple[float, float, float]
    """Rotation about X, then Y, then Z."""
    wall_mm: float
    """Shift of the ventricles' wall."""
    ventricle_ml: float
    center_mm: tuple[float, float, float]
    """Where the lesion is (or would be), from the center of the grid, RAS+."""
    diameter_mm: float
    contrast: float
    """Relative change of intensity, signed."""


def subject(seed: int, index: int, lesioned: bool, recipe: Recipe | None = None) -> Subject:
    """Simulate one patient.

    With and without a lesion the same numbers are drawn, in the same order: what differs is where
    the change of intensity is put, and a little the ventricles.

    Args:
        seed: of the cohort.
        index: of the patient within it.
        lesioned: one ball of changed intensity in white matter; otherwise the same weights of
            change, scattered over as many white-matter voxels.
        recipe: how strongly patients vary.
    """
    from scipy import ndimage

    recipe = recipe or Recipe()
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))
    head = template()

    angles = _triple(rng.normal(0, recipe.rotation_deg, 3))
    shift = rng.normal(*recipe.ventricle_mm) + recipe.atrophy_mm * lesioned
    wall = round(float(np.clip(shift, *recipe.ventricle_range_mm)), 3)
    knots = _knots(rng, recipe.warp_mm, recipe.warp_knots_mm, components=3)
    bias = spline(
        _knots(rng, recipe.bias, recipe.bias_knots_mm, components=1), recipe.bias_knots_mm
    )
    gamma = np.exp(rng.normal(0, recipe.gamma))
    sigma = rng.uniform(*recipe.noise)
    diameter = round(rng.uniform(*recipe.diameter_mm), 3)
    sign = 1 if rng.random() < recipe.bright else -1
    contrast = round(sign * rng.uniform(*recipe.contrast), 3)

    where = head.reached
    offset = displacement(knots, angles, wall, where, recipe)
    t1, grey, white, ventricle, brain = _sample(head.channels, _grid_mm()[:, where] + offset)

    deep_white = _filled(white, where)
    center, weight, specks = _change(rng, deep_white, diameter)
    t1 = _filled(t1, where) * (1 + contrast * (weight if lesioned else specks))
    for axis in range(3):
        t1 = ndimage.correlate1d(t1, (recipe.psf, 1 - 2 * recipe.psf, recipe.psf), axis)
    clean = t1**gamma * np.exp(bias[0])
    real = clean + sigma * rng.standard_normal(SHAPE)
    magnitude = np.hypot(real, sigma * rng.standard_normal(SHAPE))

    return Subject(
        voxels=_rounded(np.clip(magnitude, 0, 2 - GRID_STEP), GRID_STEP).astype(np.float16),
        tissue=_filled(_labels(grey, white, ventricle, brain), where).astype(np.uint8),
        knots=knots.astype(np.float32),
        angles_deg=angles,
        wall_mm=wall,
        ventricle_ml=round(float(ventricle.sum()) * SPACING_MM**3 / 1000, 3),
        center_mm=center,
        diameter_mm=diameter,
        contrast=contrast,
    )


def displacement(
    knots: Array,
    angles_deg: tuple[float, float, float],
    wall_mm: float,
    where: NDArray[np.bool_] | None = None,
    recipe: Recipe | None = None,
) -> Array:
    """The known deformation: from a subject's voxel to the matching point of the template.

    The subject's image at x shows the template at ``x + displacement(x)``: rotation about the
    center, then the smooth field, then the shift of the ventricles' wall.

    Returns:
        (3, n) mm for the voxels chosen by ``where``, or (3, 48, 56, 48) for all of them.
    """
    from scipy import ndimage

    recipe = recipe or Recipe()
    chosen = np.ones(SHAPE, bool) if where is None else where
    start = _grid_mm()[:, chosen]
    smooth = spline(knots, recipe.warp_knots_mm)[:, chosen]
    point = np.einsum("ij,jn->ni", rotation(angles_deg), start).T + smooth
    index = point / SPACING_MM + _middle(SHAPE)[:, None]
    push = np.stack(
        [ndimage.map_coordinates(c, index, order=1, mode="nearest") for c in template().outward]
    )
    moved = point - wall_mm * push - start
    return moved if where is not None else moved.reshape(3, *SHAPE)


def rotation(angles_deg: tuple[float, float, float]) -> Array:
    """(3, 3) rotation about X, then Y, then Z."""
    (a, b, c), (d, e, f) = np.cos(np.radians(angles_deg)), np.sin(np.radians(angles_deg))
    about_x = np.array([[1, 0, 0], [0, a, -d], [0, d, a]])
    about_y = np.array([[b, 0, e], [0, 1, 0], [-e, 0, b]])
    about_z = np.array([[c, -f, 0], [f, c, 0], [0, 0, 1]])
    return np.einsum("ij,jk,kl->il", about_z, about_y, about_x)


def spline(knots: Array, spacing_mm: float) -> Array:
    """Uniform cubic B-spline of these control points at every voxel: (C, k...) -> (C, X, Y, Z).

    Control point 1 of each axis sits on voxel 0.
    """
    field = np.asarray(knots, np.float64)
    for axis, (n, k) in enumerate(zip(SHAPE, field.shape[1:], strict=True), start=1):
        at = np.arange(n)[:, None] * SPACING_MM / spacing_mm + 1 - np.arange(k)[None]
        distance = np.abs(at)
        near = 2 / 3 - distance**2 + distance**3 / 2
        far = np.clip(2 - distance, 0, None) ** 3 / 6
        basis = np.where(distance < 1, near, far)  # (n, k)
        field = np.moveaxis(
            np.einsum("nk,...k->...n", basis, np.moveaxis(field, axis, -1)), -1, axis
        )
    return field


def _knots(rng: np.random.Generator, sd: float, spacing_mm: float, components: int) -> Array:
    """Random control points such that the field has this SD; (components, k_x, k_y, k_z)."""
    counts = [int(np.ceil((n - 1) * SPACING_MM / spacing_mm)) + 3 for n in SHAPE]
    # a uniform cubic B-spline of unit white noise has variance 151/315 per axis on average
    # (the integral of the squared basis function)
    raw = rng.normal(0, sd / (151 / 315) ** 1.5, (components, *counts))
    return _rounded(raw, 1e-3).astype(np.float32).astype(np.float64)


def _change(
    rng: np.random.Generator, white: Array, diameter_mm: float
) -> tuple[tuple[float, float, float], Array, Array]:
    """Where intensity changes: the center of a ball in white matter, its weights, and the specks.

    Returns:
        The center in mm from the center of the grid; the ball's weight per voxel (1 inside, less
        at the border); the same weights scattered over white-matter voxels.
    """
    from scipy import ndimage

    deep = np.argwhere(ndimage.uniform_filter(white, 3) > 0.8)
    voxel = deep[rng.integers(len(deep))] + rng.uniform(-0.5, 0.5, 3)
    center = _triple((voxel - _middle(SHAPE)) * SPACING_MM)
    distance = np.sqrt(sum((x - c) ** 2 for x, c in zip(_grid_mm(), center, strict=True)))
    weight = np.clip((diameter_mm / 2 - distance) / SPACING_MM + 0.5, 0, 1)
    return center, weight, _scatter(rng, white, weight[weight > 0])


def _scatter(rng: np.random.Generator, white: Array, values: Array) -> Array:
    """The values at random white-matter voxels, 0 elsewhere: (48, 56, 48)."""
    specks = np.zeros(SHAPE)
    seats = np.argwhere(white > 0.8)
    chosen = seats[rng.choice(len(seats), len(values), replace=False)]
    specks[tuple(chosen.T)] = values
    return specks


def _sample(channels: Array, point_mm: Array) -> list[Array]:
    """Trilinear values of each 2 mm channel at points in mm from the center: (n,) each."""
    from scipy import ndimage

    index = point_mm * (2 / SPACING_MM) + _middle(channels.shape[1:])[:, None]
    # the blur's running sums leave -1e-17 where there is nothing
    return [
        np.clip(ndimage.map_coordinates(c, index, order=1, mode="constant"), 0, 1) for c in channels
    ]


def _labels(grey: Array, white: Array, ventricle: Array, brain: Array) -> Array:
    """The largest fraction's label; ventricles and the rest of the CSF share what is not tissue."""
    fluid = np.clip(brain - grey - white - ventricle, 0, 1)
    return np.stack([1 - brain, fluid, grey, white, ventricle]).argmax(axis=0)


@cache
def _grid_mm() -> Array:
    """(3, 48, 56, 48): each voxel's position in mm from the center of the grid, RAS+."""
    middle = _middle(SHAPE)[:, None, None, None]
    return (np.indices(SHAPE, dtype=np.float64) - middle) * SPACING_MM


def _middle(shape: tuple[int, ...]) -> Array:
    return (np.array(shape, np.float64) - 1) / 2


def _filled(values: Array, where: NDArray[np.bool_]) -> Array:
    """Values at the chosen voxels, 0 elsewhere."""
    full = np.zeros(SHAPE)
    full[where] = values
    return full


def _rounded(values: Array, step: float) -> Array:
    return np.round(values / step) * step


def _triple(values: Array) -> tuple[float, float, float]:
    x, y, z = (round(float(v), 3) for v in values)
    return x, y, z
