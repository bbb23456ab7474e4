"""Bring one image onto another by frozen features: one fixed optimisation for all encoders.

The method is that of ConvexAdam (Siebert, Hansen, Heinrich, Fast 3D registration with accurate
optimisation and little learning for Learn2Reg 2021, LNCS 13166 (2022) 174), whose settings are
taken over where they do not depend on the size of the image; written anew here.

1. Discrete: on a coarse grid the dissimilarity of every point to all its neighbours in a window is
   tabulated. The field that is both smooth and alike is found by turns: each point takes its best
   candidate near the field so far, then the field is smoothed, and the pull towards the field grows
   (Heinrich et al., Non-parametric discrete registration with convex optimisation, WBIR 2014, LNCS
   8545, 51). Done in both directions, then made the inverse of each other.
2. Continuous: Adam moves the control points of a finer grid, with diffusion regularisation.

Everything is float32 and has no random part; no step adds in an order that may change, so that two
runs give the same field. Where features are constant nothing pulls, and the field is exactly 0.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from .errors import ProbeError
from .types import Triple

if TYPE_CHECKING:
    import torch

COARSE = 3
"""Points of the lattice per point of the coarse grid. ConvexAdam takes 6 of images of about 200
voxels along an axis; lattices here have about 50, and the window still reaches 12 points."""

REACH = 4
"""Half the width of the window, in steps of the coarse grid: ConvexAdam's ``disp_hw``."""

COUPLING = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Weight of the squared distance to the field so far (steps of the coarse grid), one per turn, for
features of which two random points differ by 2: ConvexAdam's, whose MIND has about that scale."""

CONSISTENCY_TURNS = 15
"""Turns in which the two directions are averaged: ConvexAdam's."""

CONTROL = 2
"""Points of the lattice per control point of the second step: ConvexAdam's ``grid_sp_adam``."""

STEPS = 80
"""Of Adam: ConvexAdam's ``selected_niter``."""

STEP_SIZE = 1.0
"""Of Adam, in steps of the control grid: ConvexAdam's."""

STILL = 1e-3
"""Adam's epsilon: where the gradient with respect to a control point is below it, the point moves
less than a step. Adam otherwise makes full steps of rounding errors. Ours."""

SMOOTHNESS = 1.25
"""Weight of the mean squared difference of neighbouring control points: ConvexAdam's ``lambda``."""

CHUNK = 81
"""Candidates of which the costs are smoothed at once, to save memory."""

UNLIKE = 2.0
"""Expected squared distance of two unrelated points, in units of the features' total variance:
the cost of a candidate where there is no image."""


def register(
    fixed: np.ndarray,
    moving: np.ndarray,
    seen: np.ndarray,
    spacing: Triple,
    device: str = "cpu",
) -> np.ndarray:
    """Find where the points of one image are in another.

    Args:
        fixed: (C, x, y, z) float32 features on a lattice; the variance of fixed and moving
            together, summed over channels, is 1, or 0 of constant features, as ``_descriptors``
            makes them.
        moving: likewise, of the other image, on the same points.
        seen: (x, y, z) bool: where the moving image has voxels.
        spacing: of the lattice, mm.
        device: "cpu" or "cuda[:i]".

    Returns:
        (3, x, y, z) float32 mm along the axes of the lattice: from each point of the fixed image
        to its point in the moving image.

    Raises:
        ProbeError: arrays of different lattices, or features that are not finite.
    """
    import torch

    if fixed.shape != moving.shape or fixed.shape[1:] != seen.shape:
        raise ProbeError(
            f"Features of the fixed image {fixed.shape}, of the moving image {moving.shape} and "
            f"the mask {seen.shape} are not on one lattice. Resample the moving image first."
        )
    if not (np.isfinite(fixed).all() and np.isfinite(moving).all()):
        raise ProbeError(
            "A registration needs finite features, but some are NaN or infinite. Check the encoder."
        )
    mm = np.asarray(spacing, np.float32)
    scale = mm / np.float32(mm.prod() ** (1 / 3))
    with torch.no_grad():
        f, m = (torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in (fixed, moving))
        s = torch.from_numpy(seen.astype(np.float32)).to(device)
        variance = float(torch.cat([f.flatten(1), m.flatten(1)], 1).var(1, correction=0).sum())
        if variance == 0:
            return np.zeros((3, *seen.shape), np.float32)
        axis_scale = torch.from_numpy(scale).to(device)
        field = _discrete(_pooled(f, m, s, COARSE), axis_scale, UNLIKE * variance)
        parts = _pooled(f, m, s, CONTROL)
        start = _resampled(field, COARSE, CONTROL, parts[0].shape[1:])
    field = _continuous(parts, start, axis_scale)
    with torch.no_grad():
        found = _resampled(field, CONTROL, 1, seen.shape)
    return found.cpu().numpy() * mm[:, None, None, None]


Parts = tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]
"""Features (C, a, b, c) of both images and the share (a, b, c) of each block that the moving image
covers."""


# --- discrete ----------------------------------------------------------------------------------


def _discrete(parts: Parts, scale: torch.Tensor, unlike: float) -> torch.Tensor:
    """(3, a, b, c) displacements in steps of the grid, consistent with those of the inverse."""
    import torch

    fixed, moving, seen = parts
    # where the moving image does not reach, nothing pulls: the field follows its neighbours. Else
    # the moving image is stretched over all of the fixed one
    everywhere = torch.ones_like(seen)
    there = _coupled(_costs(fixed, moving, seen, seen, unlike), scale)
    back = _coupled(_costs(moving, fixed, everywhere, seen, unlike), scale)
    grid = _grid(there.shape[1:], there)
    for _ in range(CONSISTENCY_TURNS):
        there, back = (
            (there - _sample(back, grid + there)) / 2,
            (back - _sample(there, grid + back)) / 2,
        )
    return there


def _costs(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    there: torch.Tensor,
    here: torch.Tensor,
    unlike: float,
) -> torch.Tensor:
    """How much less than ``unlike`` each point is unlike each candidate, (D, a, b, c).

    Args:
        fixed: (C, a, b, c) features of the points.
        moving: (C, a, b, c) features of the candidates.
        there: (a, b, c) whether there is an image at a candidate; if not, it is as unlike as any.
        here: (a, b, c) whether a point counts.
        unlike: expected distance of unrelated points.
    """
    import torch
    from torch.nn import functional

    shape = fixed.shape[1:]
    around = functional.pad(moving, [REACH] * 6)
    around_there = functional.pad(there, [REACH] * 6)
    costs = torch.empty((len(_offsets()), *shape), device=fixed.device)
    for cost, offset in zip(costs, _offsets().tolist(), strict=True):
        window = tuple(slice(REACH + o, REACH + o + n) for o, n in zip(offset, shape, strict=True))
        distance = (fixed - around[(slice(None), *window)]).square_().sum(0)
        known = around_there[window] * here
        torch.mul(distance.sub_(unlike), known, out=cost)
    for part in costs.split(CHUNK):
        part.copy_(_smooth(part))
    return costs


def _coupled(costs: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Turns of choosing and smoothing, from no displacement on: (3, a, b, c)."""
    import torch

    offsets = torch.from_numpy(_offsets()).to(costs)  # (D, 3)
    shape = costs.shape[1:]
    weighted = offsets * scale.square()
    length = (offsets * weighted).sum(1)[:, None, None, None]
    field = torch.zeros((3, *shape), device=costs.device)
    for weight in COUPLING:
        # |d - u|^2 without |u|^2, which is the same for all candidates
        pull = length - 2 * torch.einsum("dk,kxyz->dxyz", weighted, field)
        best = pull.mul_(weight).add_(costs).argmin(0)
        field = _smooth(offsets[best].permute(3, 0, 1, 2))
    return field


def _offsets() -> np.ndarray:
    """(D, 3) int64: all candidates of the window, in steps of the grid."""
    around = range(-REACH, REACH + 1)
    return np.array(list(itertools.product(around, around, around)), np.int64)


# --- continuous --------------------------------------------------------------------------------


def _continuous(parts: Parts, start: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Refine (3, a, b, c) displacements, in steps of the grid, by gradient descent."""
    import torch

    fixed, moving, seen = parts
    grid = _grid(seen.shape, start)
    size = scale[:, None, None, None]
    control = start.clone().requires_grad_()
    # who counts is settled before: else points would be drawn into the moving image, or out of it
    counts = _sample(seen[None], grid + _spread(start))[0]
    optimizer = torch.optim.Adam([control], lr=STEP_SIZE, eps=STILL)
    with torch.enable_grad():
        for _ in range(STEPS):
            optimizer.zero_grad()
            field = _spread(control)
            distance = (_sample(moving, grid + field) - fixed).square().sum(0)
            bend = sum(
                (field.narrow(a, 1, n - 1) - field.narrow(a, 0, n - 1)).mul(size).square().mean()
                for a, n in enumerate(field.shape)
                if a and n > 1
            )
            # a sum over control points, so that gradients do not shrink with the image
            (((counts * distance).mean() + SMOOTHNESS * bend) * counts.numel()).backward()
            optimizer.step()
    return _spread(control.detach())


def _spread(control: torch.Tensor) -> torch.Tensor:
    """Smooth thrice, which comes close to a cubic B-spline with these control points."""
    return _smooth(_smooth(_smooth(control)))


# --- on grids ----------------------------------------------------------------------------------


def _pooled(fixed: torch.Tensor, moving: torch.Tensor, seen: torch.Tensor, step: int) -> Parts:
    """Means over blocks of ``step`` points along each axis; of the moving image, where it is."""
    share = _blocks(seen[None], step)
    inside = _blocks(moving * seen, step) / share.clamp(min=1e-6)
    return _blocks(fixed, step), inside, share[0]


def _blocks(values: torch.Tensor, step: int) -> torch.Tensor:
    """(C, x, y, z) -> (C, a, b, c); a last block that is not full repeats its last point."""
    from torch.nn import functional

    rest = [-n % step for n in values.shape[1:]]
    padded = functional.pad(values[None], [0, rest[2], 0, rest[1], 0, rest[0]], mode="replicate")
    return functional.avg_pool3d(padded, step)[0]


def _resampled(
    field: torch.Tensor, before: int, after: int, shape: tuple[int, ...]
) -> torch.Tensor:
    """A field on blocks of ``before`` points on blocks of ``after`` points, in their steps."""
    # block i covers points step * i on, its center is (step - 1) / 2 further
    points = _grid(shape, field) * after + (after - 1) / 2
    return _sample(field, (points - (before - 1) / 2) / before) * (before / after)


def _grid(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """(3, a, b, c): the index of each point."""
    import torch

    axes = [torch.arange(n, dtype=like.dtype, device=like.device) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def _sample(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Trilinear values (C, a, b, c) at indices (3, x, y, z), clamped: (C, x, y, z).

    With respect to the indices its gradient has one fixed order of sums, on GPUs too.
    """
    import torch
    from torch.nn import functional

    last = torch.tensor([max(1, n - 1) for n in values.shape[1:]], device=values.device)
    relative = 2 * index / last[:, None, None, None] - 1
    return functional.grid_sample(
        values[None],
        relative.flip(0).permute(1, 2, 3, 0)[None],  # it wants the last axis first
        padding_mode="border",
        align_corners=True,
    )[0]


def _smooth(field: torch.Tensor) -> torch.Tensor:
    """Mean of three neighbours along each axis of (C, a, b, c); the border is repeated."""
    import torch

    for axis in (1, 2, 3):
        n = field.shape[axis]
        before = torch.cat([field.narrow(axis, 0, 1), field.narrow(axis, 0, n - 1)], axis)
        after = torch.cat([field.narrow(axis, 1, n - 1), field.narrow(axis, n - 1, 1)], axis)
        field = (before + field + after) / 3
    return field
