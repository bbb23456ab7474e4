"""A card's intensity transform, fitted to one image: every one is a clip and a linear map.

Foreground, for ``ZScore``: the voxels above the mean of the image. It needs no threshold, so MR in
[0, 1] and the same MR in millions have the same foreground, and unlike "not zero" it leaves out
noisy air (TorchIO offers it for the same purpose: Perez-Garcia 2021, ``ZNormalization.mean``). It
also leaves out dark tissue. Therefore only the upper percentile, the mean and the SD are the
foreground's; the lower percentile is the whole image's, or everything below the mean would be
clipped to one value: half of a crop that holds no air.
"""

import math
from typing import NamedTuple

import numpy as np

from .errors import EncoderError
from .types import EncoderCard, Intensity, MinMax, Unit, Window, ZScore

FLAT = 1e-6
"""An SD or range below this share of the largest magnitude is rounding: float32 holds 7 digits."""


class Ramp(NamedTuple):
    """``base + scale * (clip(v, low, high) - low)``."""

    low: float
    high: float
    scale: float
    base: float
    """The least value that can result: what the background has, and what padding gets."""


def transform(card: EncoderCard, unit: Unit) -> Intensity:
    """The transform that a model wants for voxels of a unit.

    Raises:
        EncoderError: the card does not name the unit, or names a transform without extent.
    """
    how = card.intensity.get(unit)
    if how is None and unit == "relative":
        how = Window(0.0, 1.0)  # already scaled by the publisher: taken as it is
    if how is None:
        raise EncoderError(
            f"Encoder '{card.name}' does not say how it takes voxels in '{unit}'; it accepts "
            f"{sorted(card.intensity)}. Add the unit to the card's 'intensity', or choose another "
            "task."
        )
    if isinstance(how, Window):
        sound = -math.inf < how.low < how.high < math.inf
    else:
        sound = 0 <= how.low_percentile < how.high_percentile <= 100
    if not sound:
        raise EncoderError(
            f"Encoder '{card.name}' has {how} for '{unit}'. The upper end has to be above the "
            "lower one, and percentiles in 0..100: correct the card's 'intensity'."
        )
    return how


def fit(how: Intensity, values: np.ndarray) -> Ramp:
    """Fit a transform to the values of one channel, any shape, float32, finite.

    A constant image becomes constant (0 for ``ZScore``, ``out_low`` for ``MinMax``), never NaN.
    """
    if isinstance(how, Window):
        return _between(how.low, how.high, how.out_low, how.out_high)
    if isinstance(how, MinMax):
        low, high = (float(p) for p in np.percentile(values, _percentiles(how)))
        if _is_flat(high - low, low, high):  # nearly all voxels are equal: keep the others
            low, high = float(values.min()), float(values.max())
        if _is_flat(high - low, low, high):
            return Ramp(low, high, 0.0, how.out_low)
        return _between(low, high, how.out_low, how.out_high)
    return _zscore(how, values)


def _zscore(how: ZScore, values: np.ndarray) -> Ramp:
    foreground = values[values > values.mean(dtype=np.float64)]
    if foreground.size == 0:
        foreground = values
    low = float(np.percentile(values, how.low_percentile))
    high = float(np.percentile(foreground, how.high_percentile))
    low = min(low, high)
    # after clipping, so that metal or flow artefacts do not set the scale
    sample = np.clip(foreground, low, high)
    mean, sd = float(sample.mean(dtype=np.float64)), float(sample.std(dtype=np.float64))
    if _is_flat(sd, low, high):  # two-valued: its foreground is constant, it is not
        sample = np.clip(values, low, high)
        mean, sd = float(sample.mean(dtype=np.float64)), float(sample.std(dtype=np.float64))
    if _is_flat(sd, low, high):
        return Ramp(low, high, 0.0, 0.0)
    return Ramp(low, high, 1 / sd, (low - mean) / sd)


def _between(low: float, high: float, out_low: float, out_high: float) -> Ramp:
    return Ramp(low, high, (out_high - out_low) / (high - low), out_low)


def _percentiles(how: MinMax) -> tuple[float, float]:
    return how.low_percentile, how.high_percentile


def _is_flat(extent: float, low: float, high: float) -> bool:
    return extent <= FLAT * max(abs(low), abs(high))
