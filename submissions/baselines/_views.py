"""Views of a label map: the appearance engine of anatomix, from grey levels to artefacts.

Two views of one map share its shapes and nothing else: contrast, noise, bias and artefacts are
drawn for each. Every probability and range is that of Dey et al. (ICLR 2025) as their published
generator has it (neel-dey/anatomix 4fcf7b9, ``sample_gmm``, step2_generate_views.py and
``get_transforms`` in datagen_utils.py); what they leave at a default of MONAI is named.

Torch operations on the device of the labels; everything random comes from `Dice`.
"""

from __future__ import annotations

import numpy as np
import torch
from monai.transforms.intensity.array import GaussianSharpen, GaussianSmooth
from torch import Tensor
from torch.nn import functional

from ._synthesis import SHAPES, Dice, smooth_noise

MEANS, SDS = (25.0, 255.0), (5.0, 20.0)
"""Of the grey levels of each label, before scaling."""

MOST_LABELS = SHAPES[1] + 3
"""No label is higher than that: the shapes, outside, uncovered and the envelope."""

ZERO_BACKGROUND = 0.25
"""Probability that the lowest label is black."""

TEXTURE_SPACINGS, TEXTURE_SD, TEXTURE_SHARE = (4, 8, 16, 32), (0.0, 5.0), 0.02
"""Smooth noise that multiplies the grey levels by 1 + 0.02 times itself; voxels of 128^3."""

BIAS, BIAS_COEFFICIENTS, BIAS_DEGREE = 0.98, (0.0, 0.075), 3
"""Probability, coefficients of the Legendre polynomials, and their degree (MONAI's default)."""

SPIKE, SPIKE_LEVEL, SPIKE_RANGE = 0.2, 2.5, (0.95, 1.1)
"""Probability; the spike is the mean log magnitude times 2.5 times the range (MONAI's default)."""

GAMMA, GAMMA_RANGE = 0.5, (0.5, 2.0)
"""Probability and exponent."""

SMOOTH, SMOOTH_SIGMA = 0.5, (0.0, 0.333)
"""Probability, and voxels per axis."""

GIBBS, GIBBS_ALPHA = 0.5, (0.0, 0.333)
"""Probability, and the share of the frequencies' radius that is cut off."""

SHARPEN, SHARPEN_SIGMA, SHARPEN_SECOND, SHARPEN_ALPHA = 0.25, (0.5, 1.0), 0.5, (10.0, 30.0)
"""Probability; widths in voxels of the first and the second filter and the weight of their
difference (MONAI's defaults). The second is drawn between 0.5 and the first, per axis."""

LOW_RESOLUTION, ZOOM = 0.333, (0.5, 1.0)
"""Probability, and the factor of each side (MONAI's default)."""


def view(dice: Dice, labels: Tensor) -> Tensor:
    """One image of a label map.

    Args:
        dice: what is random, on the device of the labels.
        labels: (X, Y, Z), integers from 0 to `MOST_LABELS` - 1.

    Returns:
        (X, Y, Z), float32 in [0, 1], both ends reached.
    """
    image = grey_levels(dice, labels)
    shape = (image.shape[0], image.shape[1], image.shape[2])
    texture = smooth_noise(dice, 1, shape, TEXTURE_SPACINGS, TEXTURE_SD)[0]
    image = min_max(image * (1 + TEXTURE_SHARE * texture))
    if dice.happens(BIAS):
        image = image * bias_field(dice, image.shape)
    if dice.happens(SPIKE):
        image = with_spike(dice, image)
    if dice.happens(GAMMA):
        low, high = image.min(), image.max()
        image = low + (high - low) * min_max(image) ** dice.uniform(*GAMMA_RANGE)
    if dice.happens(SMOOTH):
        sigma = [dice.uniform(*SMOOTH_SIGMA) for _ in range(3)]
        image = _plain(GaussianSmooth(sigma)(image[None]))
    if dice.happens(GIBBS):
        image = without_high_frequencies(image, dice.uniform(*GIBBS_ALPHA))
    if dice.happens(SHARPEN):
        first = [dice.uniform(*SHARPEN_SIGMA) for _ in range(3)]
        second = [dice.uniform(SHARPEN_SECOND, sigma) for sigma in first]
        image = _plain(GaussianSharpen(first, second, dice.uniform(*SHARPEN_ALPHA))(image[None]))
    if dice.happens(LOW_RESOLUTION):
        image = at_low_resolution(image, dice.uniform(*ZOOM))
    return min_max(image.clamp_min(0))


def grey_levels(dice: Dice, labels: Tensor) -> Tensor:
    """(X, Y, Z) labels -> [0, 1]: a normal distribution of grey levels for each label."""
    means, sds = (
        torch.from_numpy(dice.rng.uniform(*limits, MOST_LABELS).astype(np.float32)).to(dice.device)
        for limits in (MEANS, SDS)
    )
    labels = labels.long()
    image = means[labels] + sds[labels] * dice.normal(labels.shape)
    if dice.happens(ZERO_BACKGROUND):
        image = image.masked_fill(labels == labels.min(), 0.0)
    return min_max(image.clamp_min(0))


def min_max(image: Tensor) -> Tensor:
    """Scaled to [0, 1]; 0 where all is equal."""
    low, high = image.aminmax()
    return (image - low) / (high - low).clamp_min(torch.finfo(image.dtype).tiny)


def bias_field(dice: Dice, shape: torch.Size) -> Tensor:
    """(X, Y, Z): the exponential of a random polynomial (van Leemput et al., IEEE TMI 1999)."""
    degree = BIAS_DEGREE
    powers = np.indices((degree + 1,) * 3).sum(0)
    weights = np.zeros((degree + 1,) * 3)
    drawn = (powers > 0) & (powers <= degree)  # the constant is left out
    weights[drawn] = dice.rng.uniform(*BIAS_COEFFICIENTS, int(drawn.sum()))
    basis = [np.polynomial.legendre.legvander(np.linspace(-1, 1, n), degree) for n in shape]
    arrays = [torch.from_numpy(a.astype(np.float32)).to(dice.device) for a in (weights, *basis)]
    return torch.einsum("ijk,xi,yj,zk->xyz", *arrays).exp()


def with_spike(dice: Dice, image: Tensor) -> Tensor:
    """A bright frequency somewhere in k-space: stripes."""
    frequencies = torch.fft.fftn(image)
    place = tuple(int(dice.rng.integers(n)) for n in image.shape)
    log_magnitude = (frequencies.abs() + 1e-10).log()  # MONAI's guard
    spike = (log_magnitude.mean() * (SPIKE_LEVEL * dice.uniform(*SPIKE_RANGE))).exp()
    frequencies[place] = torch.polar(spike, frequencies[place].angle())
    return torch.fft.ifftn(frequencies).real


def without_high_frequencies(image: Tensor, alpha: float) -> Tensor:
    """Gibbs ringing: only a ball of k-space is kept.

    Args:
        image: (X, Y, Z).
        alpha: share of the radius sqrt(2)/2 of the longest side that is cut off, in [0, 1].
    """
    radius = (1 - alpha) * max(image.shape) * 2**0.5 / 2
    distance = torch.zeros(image.shape, device=image.device)
    for axis, n in enumerate(image.shape):
        along = torch.arange(n, device=image.device) - (n - 1) / 2
        distance += along.view([-1 if axis == i else 1 for i in range(3)]) ** 2
    kept = torch.fft.ifftshift(distance <= radius**2)
    return torch.fft.ifftn(torch.fft.fftn(image) * kept).real


def at_low_resolution(image: Tensor, zoom: float) -> Tensor:
    """Nearest voxels of a coarser grid, interpolated back."""
    coarse = [max(1, round(n * zoom)) for n in image.shape]
    small = functional.interpolate(image[None, None], size=coarse, mode="nearest-exact")
    return functional.interpolate(small, size=tuple(image.shape), mode="trilinear")[0, 0]


def _plain(image: Tensor) -> Tensor:
    """(1, X, Y, Z) of MONAI's tensors -> (X, Y, Z) of torch's."""
    return image.as_subclass(Tensor)[0]
