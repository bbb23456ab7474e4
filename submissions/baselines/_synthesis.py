"""Label maps that look like anatomy and are not: the label engine of anatomix.

A map is a heap of randomly transformed shapes, each with a label of its own, often cut out by a
warped ball (the body) and sometimes wrapped by a shell (the skin). Two views of it are drawn by
`_views`. Every number is that of Dey et al. (ICLR 2025) as their published generator has it
(neel-dey/anatomix 4fcf7b9, step1_generate_labels.py and datagen_utils.py), where no other source is
named. Lengths are given there in voxels of a grid of 128^3; here they scale with the grid, axis by
axis.

All tensors are made on one device, and everything random follows from one NumPy generator: a GPU
makes its own samples. The same generator gives other maps on another kind of device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...benchmark.types import Shape

REFERENCE_SIDE = 128
"""Voxels of the grid that all lengths here refer to."""

SHAPES = (20, 39)
"""Shapes per map, both ends included."""

SCALE, SHEAR = 0.5, 0.5
"""Scales are drawn from 1 - 0.5 to 1 + 0.5 per axis, the three shears from -0.5 to 0.5."""

SHIFT = 5.0
"""Voxels along each axis, either way; the angles about the three axes are any."""

FOREGROUND_SHARE = 2 / 3
"""Of the maps: cut out by a warped ball."""

ENVELOPE_SHARE = 1 / 2
"""Of those: with a shell around the ball."""

BALL_RADIUS, BALL_SHIFT = (48.0, 72.0), 32.0
"""Voxels."""

WARP_SPACINGS, WARP_SD = (8, 16, 32), (1.0, 5.0)
"""Voxels between the nodes of the noise that warps the ball, and the range of its SD."""

ENVELOPE_WIDTHS = (2.0, 3.0, 4.0)
"""Voxels that the shell reaches inwards and outwards."""

BLOB_RADII = (8.0, 40.0)
"""Voxels; half axes of the procedural shapes, drawn evenly on a logarithmic scale. Ours: what the
bounding boxes of organs span at 1.5 mm, from a vertebra's body to half a liver."""

BLOB_SPACINGS, BLOB_ROUGHNESS = (12, 24, 48), 0.35
"""Voxels between the nodes of their noise, and the largest SD per spacing; ours. The radius is 1,
so the outlines bulge and dent by about a third."""

MOST_ALONE = 3
"""Shapes that stand alone, at most; ours."""


class Dice:
    """One NumPy generator, and a torch generator on the device that follows from it."""

    def __init__(self, rng: np.random.Generator, device: torch.device | str = "cpu") -> None:
        self.rng = rng
        self.device = torch.device(device)
        seed = int(rng.integers(2**63 - 1))
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def uniform(self, low: float, high: float) -> float:
        """One number; drawn on the CPU, so that no GPU has to be waited for."""
        return float(self.rng.uniform(low, high))

    def happens(self, probability: float) -> bool:
        """Whether an event of this probability happens."""
        return bool(self.rng.random() < probability)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal noise."""
        return torch.randn(tuple(shape), generator=self.generator, device=self.device)


def smooth_noise(
    dice: Dice, fields: int, shape: Shape, spacings: Sequence[int], sd: tuple[float, float]
) -> Tensor:
    """Noise as sum over several resolutions (Hoffmann et al., SynthMorph, arXiv 2004.10282).

    Args:
        dice: what is random.
        fields: how many.
        shape: X, Y, Z.
        spacings: distances of the nodes in voxels of a grid of 128^3.
        sd: the range from which the SD of each spacing is drawn, in the unit of the result.

    Returns:
        (fields, X, Y, Z).
    """
    total = torch.zeros((fields, *shape), device=dice.device)
    for spacing in spacings:
        nodes = (math.ceil(REFERENCE_SIDE / spacing),) * 3
        coarse = dice.normal((1, fields, *nodes)) * dice.uniform(*sd)
        total += functional.interpolate(coarse, size=shape, mode="trilinear")[0]
    return total


def blobs(dice: Dice, count: int, shape: Shape) -> Tensor:
    """Procedural shapes: ellipsoids whose outline is bent by smooth noise, in the middle.

    Returns:
        (count, X, Y, Z), boolean; where there are no templates of organs.
    """
    low, high = (math.log(radius) for radius in BLOB_RADII)
    radii = torch.from_numpy(np.exp(dice.rng.uniform(low, high, (count, 3))).astype(np.float32))
    radii = radii.to(dice.device)
    distance = torch.zeros((count, *shape), device=dice.device)
    for axis, along in enumerate(_centred(shape, dice.device)):
        distance += (along[None] / radii[:, axis, None, None, None]) ** 2
    noise = smooth_noise(dice, count, shape, BLOB_SPACINGS, (0.0, BLOB_ROUGHNESS))
    return distance.sqrt() + noise < 1


def transformed(dice: Dice, template: Tensor) -> Tensor:
    """A template under a random affine map about the grid's corner; what leaves comes in opposite.

    So the shape lands anywhere, and where it is shrunk it is repeated, as in the published engine.

    Args:
        dice: what is random.
        template: (X, Y, Z).

    Returns:
        (X, Y, Z), the nearest voxels of the template.
    """
    rng = dice.rng
    scale = rng.uniform(1 - SCALE, 1 + SCALE, 3) * rng.choice((-1.0, 1.0), 3)  # or reflected
    shear = np.eye(3)
    shear[np.triu_indices(3, 1)] = rng.uniform(-SHEAR, SHEAR, 3)
    matrix = np.diag(scale) @ _rotation(rng.uniform(-np.pi, np.pi, 3)) @ shear
    shift = rng.uniform(-SHIFT, SHIFT, 3)
    sides = template.shape
    unit = np.array(sides) / REFERENCE_SIDE  # voxels here per voxel of the reference
    matrix = unit[:, None] * matrix / unit[None]
    places = [
        torch.arange(n, dtype=torch.float32, device=template.device).view(
            [-1 if axis == i else 1 for i in range(3)]
        )
        for axis, n in enumerate(sides)
    ]
    index = torch.zeros((1, 1, 1), dtype=torch.int32, device=template.device)
    for axis, n in enumerate(sides):
        row = [float(value) for value in matrix[axis]]
        place = places[0] * row[0] + float(shift[axis] * unit[axis])
        place = (place + places[1] * row[1]) + places[2] * row[2]
        index = index * n + place.round_().to(torch.int32).remainder_(n)
    return template.flatten()[index.long()]


def median(labels: Tensor) -> Tensor:
    """(X, Y, Z) -> the same: the median of each voxel and its six neighbours, edges repeated."""
    x, y, z = labels.shape
    padded = functional.pad(labels[None, None].float(), (1,) * 6, mode="replicate")[0, 0]
    neighbours = [padded[1 : x + 1, 1 : y + 1, 1 : z + 1]]
    for axis, n in enumerate((x, y, z)):
        middle = [slice(1, side + 1) for side in (x, y, z)]
        for start in (0, 2):
            middle[axis] = slice(start, start + n)
            neighbours.append(padded[tuple(middle)])
    return torch.stack(neighbours, -1).median(-1).values.to(labels.dtype)


def body(dice: Dice, shape: Shape) -> Tensor:
    """(X, Y, Z) boolean: a ball at a random place, warped by smooth noise."""
    radius = dice.uniform(*BALL_RADIUS)
    warp = smooth_noise(dice, 3, shape, WARP_SPACINGS, WARP_SD)
    distance = torch.zeros(shape, device=dice.device)
    for axis, along in enumerate(_centred(shape, dice.device)):
        distance += (along - dice.uniform(-BALL_SHIFT, BALL_SHIFT) + warp[axis]) ** 2
    return median((distance <= radius**2).to(torch.uint8)) > 0


def envelope(inside: Tensor, width: float) -> Tensor:
    """The shell on both sides of a region's outline.

    Args:
        inside: (X, Y, Z), boolean.
        width: by which a ball reaches inwards and outwards, in voxels of a grid of 128^3; at least
            one voxel of this grid.

    Returns:
        (X, Y, Z), boolean: the region dilated by that ball, less the region eroded by it.
    """
    radii = [max(1.0, width * n / REFERENCE_SIDE) for n in inside.shape]
    reach = [math.floor(radius) for radius in radii]
    steps = torch.meshgrid(
        *(torch.arange(-r, r + 1, device=inside.device) for r in reach), indexing="ij"
    )
    distance = torch.stack([(s / r) ** 2 for s, r in zip(steps, radii, strict=True)]).sum(0)
    ball = (distance <= 1 + 1e-6).float()  # the poles count, whatever the rounding
    sides = [r for reached in reversed(reach) for r in (reached, reached)]
    # Repeated at the edges: outside of the grid the region goes on as it left.
    padded = functional.pad(inside[None, None].float(), sides, mode="replicate")
    covered = functional.conv3d(padded, ball[None, None])[0, 0]
    return (covered > 0.5) & (covered < ball.sum() - 0.5)


def label_map(dice: Dice, shape: Shape, templates: Tensor | None = None) -> Tensor:
    """One label map.

    Args:
        dice: what is random.
        shape: X, Y, Z.
        templates: (n, X, Y, Z), each a shape around the middle; None: procedural `blobs`.

    Returns:
        (X, Y, Z) int16: 0 for what no shape covers or lies outside of the body; the shapes, of
        which the last one written covers the others; with a body the voxels in it that no shape
        covers are 1 and the shapes follow; the envelope has the highest label.
    """
    if templates is None:
        templates = blobs(dice, shape_count(dice.rng), shape)
    labels = torch.zeros(shape, dtype=torch.int16, device=dice.device)
    for number, template in enumerate(templates, start=1):
        labels.masked_fill_(transformed(dice, template) > 0, number)
    labels = median(labels)
    if dice.happens(FOREGROUND_SHARE):
        inside = body(dice, shape)
        labels = torch.where(inside, labels + 1, torch.zeros_like(labels))
        if dice.happens(ENVELOPE_SHARE):
            shell = envelope(inside, float(dice.rng.choice(ENVELOPE_WIDTHS)))
            labels.masked_fill_(shell, len(templates) + 2)
    return labels


def shape_count(rng: np.random.Generator) -> int:
    """How many shapes a map has."""
    return int(rng.integers(SHAPES[0], SHAPES[1] + 1))


def few_shapes(labels: Tensor, rng: np.random.Generator) -> Tensor:
    """A label map of a few of its shapes, the rest 0; as it is where it has no shape."""
    shapes = labels.unique()[1:].cpu().numpy()
    if not len(shapes):
        return labels
    kept = rng.choice(shapes, min(len(shapes), int(rng.integers(1, MOST_ALONE + 1))), replace=False)
    return labels * torch.isin(labels, torch.from_numpy(kept).to(labels.device))


def _centred(shape: Shape, device: torch.device) -> list[Tensor]:
    """Places along each axis from the middle, in voxels of 128^3: (X, 1, 1), (1, Y, 1), ..."""
    places: list[Tensor] = []
    for axis, n in enumerate(shape):
        along = (torch.arange(n, device=device) - (n - 1) / 2) * (REFERENCE_SIDE / n)
        places.append(along.view([-1 if axis == i else 1 for i in range(3)]))
    return places


def _rotation(angles: np.ndarray) -> np.ndarray:
    """(3, 3): about the first, the second and the third axis, in radians, multiplied in order."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        c, s = np.cos(angle), np.sin(angle)
        turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
        turn = np.roll(turn, (axis, axis), (0, 1))
        matrix = matrix @ turn
    return matrix
