"""Statistics of voxel values, one row per volume: what the two floors are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def histogram(values: torch.Tensor, low: float, high: float, bins: int) -> torch.Tensor:
    """Shares of values per bin; what lies outside counts into the first and last bin.

    Args:
        values: (B, n).
        low: lower end of the first bin.
        high: upper end of the last bin.
        bins: how many, of equal width.

    Returns:
        (B, bins), each row summing to 1.
    """
    rows, n = values.shape
    index = ((values - low) * (bins / (high - low))).clamp(0, bins - 1).long()
    index += torch.arange(rows, device=values.device)[:, None] * bins
    counts = torch.bincount(index.flatten(), minlength=rows * bins)
    return counts.view(rows, bins).to(values.dtype) / n


def quantiles(
    ordered: torch.Tensor, levels: Sequence[float], start: torch.Tensor | None = None
) -> torch.Tensor:
    """Quantiles of rows that are already sorted, by linear interpolation.

    ``torch.quantile`` refuses more than 16 million values, which a volume may have.

    Args:
        ordered: (B, n), ascending.
        levels: in [0, 1].
        start: (B,) first element that counts, at most n - 1; None: all count.

    Returns:
        (B, len(levels)).
    """
    rows, n = ordered.shape
    first = torch.zeros(rows, device=ordered.device) if start is None else start
    first = first.to(torch.float64)[:, None]
    level = torch.tensor(levels, dtype=torch.float64, device=ordered.device)[None]
    position = first + level * (n - 1 - first)  # (B, levels)
    below = position.floor()
    share = (position - below).to(ordered.dtype)
    low = ordered.gather(1, below.long())
    high = ordered.gather(1, position.ceil().long())
    return low + share * (high - low)


def moments(values: torch.Tensor, selected: torch.Tensor | None = None) -> torch.Tensor:
    """Mean, SD, skewness and excess kurtosis of each row; a constant row has 0 for the last two.

    Args:
        values: (B, n).
        selected: (B, n) bool, the values that count; None: all. Where none does, all four are 0.

    Returns:
        (B, 4).
    """
    share = torch.ones_like(values) if selected is None else selected.to(values.dtype)
    share = share / share.sum(1, keepdim=True).clamp(min=1)
    mean = (share * values).sum(1)
    centered = values - mean[:, None]
    powers = [(share * centered.pow(k)).sum(1) for k in (2, 3, 4)]
    variance = powers[0]
    # Below float32's resolution of the mean a row is constant, and its ratios are rounding noise.
    constant = variance <= (1e-6 * (1 + mean.abs())).square()
    scale = variance.masked_fill(constant, torch.inf)
    skewness = powers[1] / scale.pow(1.5)
    kurtosis = (powers[2] / scale.square() - 3).masked_fill(constant, 0)
    return torch.stack([mean, variance.sqrt(), skewness, kurtosis], dim=1)
