"""Changes of an image at test time: what another scanner, protocol or patient would do to it.

Seven kinds at three strengths each. The second strength of resampling, contrast and rotation is
what the protocol is named after (5 mm slices, 1.5 times the contrast, 10 degrees). Noise of 1, 3
and 9 % and fields of 20 and 40 % are levels of BrainWeb (Collins et al., IEEE TMI 17 (1998) 463).
All others are our choice: from what a reader hardly sees to what a reader complains about, a ladder
as in ImageNet-C (Hendrycks & Dietterich, ICLR 2019), which has five steps. Amounts are shares of
the image's own range, or mm, or degrees, so that CT in HU and MR in arbitrary units are shifted
alike.

Every draw is a hash of (kind, case): a case is always shifted alike, whatever the order, and its
three strengths are the same draw, more of it. Shape and spacing are kept. ``relative`` images stay
in [0, 1].

No shift depends on the encoder. Some leave an image as it is: 5 mm slices one whose slices are
thicker already, contrast one that is a mask.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from .errors import UnknownNameError
from .types import Volume

VERSION = 1
"""Part of the feature cache's key: raised when a shifted voxel changes."""

ENDS = (0.5, 99.5)
"""Percentiles of an image's range, of which amounts are shares: as ``MinMax`` and ``ZScore``."""

SAMPLED = 2**21
"""About how many voxels, spread over the image, percentiles are taken of: 1 s for a whole CT."""

AIR = -1000.0
"""HU."""

GHOSTS = 4
"""Ghosts are this share of the image apart along Y: 1 / GHOSTS."""

ORDER = 3
"""Of the polynomial that is the logarithm of a bias field (Van Leemput et al., IEEE TMI 18 (1999)
885; also TorchIO's and MONAI's default)."""

Change = Callable[[Volume, float, np.random.Generator], Volume]


@dataclass(frozen=True)
class Shift:
    """One kind of change."""

    name: str
    title: str
    strengths: tuple[float, float, float]
    unit: str
    """Of the strengths."""
    apply: Change
    turns: bool = False
    """It moves the anatomy: label maps and regions have to follow."""


class View(NamedTuple):
    """One kind of change at one strength."""

    shift: Shift
    number: int
    """Of the strength, from 1."""

    @property
    def name(self) -> str:
        """Such as ``noise_1``."""
        return f"{self.shift.name}_{self.number}"

    @property
    def strength(self) -> float:
        """In the shift's unit."""
        return self.shift.strengths[self.number - 1]


# --- the kinds -------------------------------------------------------------------------------


def noise(volume: Volume, share: float, rng: np.random.Generator) -> Volume:
    """Add Gaussian noise; ``share``: its SD, of the range.

    MR in scanner units without negative voxels is a magnitude image, whose noise is Rician: the
    length of a complex number with Gaussian noise in both parts (Gudbjartsson & Patz, MRM 34
    (1995) 910).
    """

    def change(channel: np.ndarray) -> np.ndarray:
        low, high = _range(channel)
        sd = np.float32(share * (high - low))
        moved = channel + sd * rng.standard_normal(channel.shape, np.float32)
        if volume.unit == "scanner" and float(channel.min()) >= 0:
            moved = np.hypot(moved, sd * rng.standard_normal(channel.shape, np.float32))
        return moved

    return _each(volume, change)


def blur(volume: Volume, mm: float, rng: np.random.Generator) -> Volume:
    """Convolve with a Gaussian; ``mm``: its SD, the same along all axes."""
    from scipy.ndimage import gaussian_filter

    del rng
    sd = [mm / s for s in volume.spacing]
    return _each(volume, lambda channel: gaussian_filter(channel, sd, mode="nearest"))


def motion(volume: Volume, mm: float, rng: np.random.Generator) -> Volume:
    """Let the patient move to and fro during an MR scan; ``mm``: the amplitude.

    The motion is a sine along Y, where phases are encoded; line j of k-space is taken at its time
    j. A periodic error in k-space is a row of ghosts in the image (Wood & Henkelman, Medical
    Physics 12 (1985) 143). What is left is the magnitude, as in MR; CT is treated alike. The draw
    is the phase of the sine.
    """
    phase = float(rng.uniform(0, 2 * np.pi))

    def change(channel: np.ndarray) -> np.ndarray:
        low = _nothing(volume, channel)
        # mirrored, because the jump where a crop's ends meet would be the strongest ghost of all
        n = 2 * channel.shape[1]
        time = np.fft.ifftshift(np.arange(n))  # in the order of the transform's frequencies
        offset = mm * np.sin(2 * np.pi * time / (2 * GHOSTS) + phase)
        cycles = np.fft.fftfreq(n, volume.spacing[1])  # per mm
        ramp = np.exp(-2j * np.pi * cycles * offset).astype(np.complex64)[:, None]
        out = np.empty(channel.shape, np.float32)
        for x, plane in enumerate(channel):  # one by one: complex numbers of a whole CT are 2 GB
            above = np.maximum(plane, low)  # a magnitude would turn what is below upwards
            mirrored = np.concatenate([above, above[::-1]])
            lines = np.fft.fft(mirrored - low, axis=0) * ramp
            out[x] = low + np.abs(np.fft.ifft(lines, axis=0))[: len(plane)]
        return out

    return _each(volume, change)


def bias(volume: Volume, share: float, rng: np.random.Generator) -> Volume:
    """Multiply with a smooth field that runs at most from 1 / (1 + share) to 1 + share.

    The field acts on what lies above air (HU), 0 (scanner units) or the lower end of the range.
    """
    degrees = [
        (i, j, k)
        for i in range(ORDER + 1)
        for j in range(ORDER + 1)
        for k in range(ORDER + 1)
        if 0 < i + j + k <= ORDER
    ]
    weights = np.zeros((ORDER + 1,) * 3)
    for degree in degrees:
        weights[degree] = rng.uniform(-1, 1)
    x, y, z = (np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in volume.voxels.shape[1:])
    field = np.polynomial.legendre.leggrid3d(x, y, z, weights).astype(np.float32)
    field *= np.float32(np.log1p(share) / max(float(np.abs(field).max()), 1e-12))
    np.exp(field, out=field)

    def change(channel: np.ndarray) -> np.ndarray:
        low = np.float32(_nothing(volume, channel))
        return low + (channel - low) * field

    return _each(volume, change)


def slices(volume: Volume, mm: float, rng: np.random.Generator) -> Volume:
    """Scan with slices ``mm`` thick, side by side, and interpolate back to the image's grid.

    Slices are cut across the axis that is the coarsest already, the last of equals. Each is the
    mean over its thickness. An image whose slices are that thick stays as it is.
    """
    del rng
    spacing = volume.spacing
    axis = max(range(3), key=lambda a: (round(spacing[a], 3), a))
    n, step = volume.voxels.shape[1 + axis], spacing[axis]
    if mm <= step or n == 1:
        return volume
    count = max(1, round(n * step / mm))
    edges = (np.arange(count + 1) - count / 2) * mm / step + n / 2  # in voxels, 0 is the first edge
    # integrals from the first edge to each voxel's edge, of a one-hot image: means are differences
    steps = np.vstack([np.zeros(n), np.tril(np.ones((n, n)))])
    edges = np.clip(edges, 0, n)
    sums = np.stack([np.interp(edges, np.arange(n + 1), column) for column in steps.T], axis=1)
    means = np.diff(sums, axis=0) / np.diff(edges)[:, None]  # (count, n)
    centers = (edges[:-1] + edges[1:]) / 2 - 0.5
    back = np.stack([np.interp(np.arange(n), centers, row) for row in np.eye(count)], axis=1)
    through = (back @ means).astype(np.float32)  # (n, n)

    def change(channel: np.ndarray) -> np.ndarray:
        return np.moveaxis(np.tensordot(through, channel, (1, axis)), 0, axis)

    return _each(volume, change)


def contrast(volume: Volume, factor: float, rng: np.random.Generator) -> Volume:
    """Stretch about water (HU) or about the mean, and clip to the range.

    The clip makes it the narrower window that a reader would set, as in the contrast of PIL and
    torchvision: a stretch alone is undone to the last digit by every z-score.
    """
    del rng

    def change(channel: np.ndarray) -> np.ndarray:
        low, high = _range(channel)
        inside = np.clip(channel, low, high)
        about = 0.0 if volume.unit == "HU" else float(inside.mean(dtype=np.float64))
        return np.clip(
            np.float32(about) + np.float32(factor) * (inside - np.float32(about)), low, high
        )

    return _each(volume, change)


def rotation(volume: Volume, degrees: float, rng: np.random.Generator) -> Volume:
    """Turn about the image's center in the axial plane, to a side that is drawn; linear.

    What comes from outside of the image is the lower end of its range.
    """
    side = _side(rng)
    return _each(volume, lambda channel: _turned(volume, channel, side * degrees, 1))


SHIFTS = (
    Shift("noise", "Noise", (0.01, 0.03, 0.09), "of the range", noise),
    Shift("blur", "Blur", (1.0, 2.0, 3.0), "mm", blur),
    Shift("motion", "Motion ghosts", (1.0, 2.0, 4.0), "mm", motion),
    Shift("bias", "Bias field", (0.2, 0.4, 0.8), "of the intensity", bias),
    Shift("slices", "Thick slices", (3.0, 5.0, 8.0), "mm", slices),
    Shift("contrast", "Contrast", (1.25, 1.5, 2.0), "times", contrast),
    Shift("rotation", "Rotation", (5.0, 10.0, 20.0), "degrees", rotation, turns=True),
)

VIEWS = tuple(View(shift, number) for shift in SHIFTS for number in (1, 2, 3))

MOVED = "moved"
"""Name of the view that ``moved`` gives; none of ``VIEWS``, being no shift of the image."""


def view(name: str) -> View:
    """The view of that name.

    Raises:
        UnknownNameError: there is none.
    """
    found = {v.name: v for v in VIEWS}
    if name not in found:
        raise UnknownNameError.of("shift", name, found)
    return found[name]


# --- applied ---------------------------------------------------------------------------------


def shifted(volume: Volume, how: View, case: str) -> Volume:
    """The image of a case, shifted; shape, affine and unit are kept.

    Args:
        volume: any unit.
        how: which shift, how strong.
        case: id, of which the draw is a hash.
    """
    return how.shift.apply(volume, how.strength, _draw(how.shift.name, case))


def shifted_labels(labels: np.ndarray, volume: Volume, how: View, case: str) -> np.ndarray:
    """The label map (X, Y, Z) that belongs to ``shifted(volume, ...)``, nearest neighbor.

    It is the same map unless the shift turns the anatomy; outside of the image is background.
    """
    if not how.shift.turns:
        return labels
    side = _side(_draw(how.shift.name, case))
    return _turned(volume, labels, side * how.strength, 0)


def moved(volume: Volume) -> Volume:
    """The same scan with its frame one voxel further along each axis.

    Encoders' grids are laid around the frame's center, so every grid moves by one voxel through
    the anatomy, which stays where it is in mm. The last plane of each axis is repeated.
    """
    steps = [min(1, n - 1) for n in volume.voxels.shape[1:]]
    voxels = np.pad(volume.voxels, [(0, 0), *((0, s) for s in steps)], mode="edge")
    inside = tuple(slice(s, None) for s in steps)
    affine = volume.affine.copy()
    affine[:3, 3] = (volume.affine @ [*steps, 1])[:3]
    return replace(volume, voxels=voxels[(slice(None), *inside)], affine=affine)


# --- parts -----------------------------------------------------------------------------------


def _draw(kind: str, case: str) -> np.random.Generator:
    """The random numbers of a kind of shift for a case."""
    digest = hashlib.sha256(json.dumps([kind, case]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _side(rng: np.random.Generator) -> float:
    return float(rng.choice([-1.0, 1.0]))


def _each(volume: Volume, change: Callable[[np.ndarray], np.ndarray]) -> Volume:
    """Change every channel (X, Y, Z); ``relative`` voxels stay in [0, 1]."""
    voxels = np.stack([change(channel) for channel in volume.voxels]).astype(np.float32, copy=False)
    if volume.unit == "relative":
        voxels = np.clip(voxels, 0, 1)
    return replace(volume, voxels=voxels)


def _range(channel: np.ndarray) -> tuple[float, float]:
    """The ends of a channel's range; its extremes where nearly all voxels are equal (a mask)."""
    every = max(1, round((channel.size / SAMPLED) ** (1 / 3)))
    low, high = np.percentile(channel[::every, ::every, ::every], ENDS)
    if not high > low:
        low, high = channel.min(), channel.max()
    return float(low), float(high)


def _nothing(volume: Volume, channel: np.ndarray) -> float:
    """What a voxel holds that gives no signal."""
    if volume.unit == "HU":
        return AIR
    if volume.unit == "scanner" and float(channel.min()) >= 0:
        return 0.0
    return _range(channel)[0]


def _turned(volume: Volume, values: np.ndarray, degrees: float, order: int) -> np.ndarray:
    """Values (X, Y, Z) on the image's voxels, turned in mm; order 0 nearest, 1 linear."""
    from scipy.ndimage import affine_transform

    angle = np.deg2rad(degrees)
    spacing = np.array(volume.spacing)
    turn = np.eye(3)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix = turn * spacing / spacing[:, None]  # voxels to mm, turned, to voxels
    center = (np.array(values.shape) - 1) / 2
    outside = _range(values)[0] if order else 0
    was_bool = values.dtype == np.bool_
    out = affine_transform(
        values.astype(np.uint8) if was_bool else values,
        matrix,
        tuple(center - matrix @ center),  # pyright: ignore[reportArgumentType]  its stub says float
        order=order,
        mode="constant",
        cval=outside,
    )
    return out.astype(bool) if was_bool else out
