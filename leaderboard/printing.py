"""How a score and its interval are printed: the only place, for the pages and the terminal."""

from collections.abc import Callable
from math import ceil, floor, isfinite, isinf, log10

from ..benchmark import metrics

SHORT = {
    "mae": "MAE",
    "ece": "ECE",
    "nsd": "NSD",
    "hd95": "HD95",
    "warped_dice": "Dice",
    "warped_hd95": "HD95",
    "tre": "TRE",
    "epe": "EPE",
    "sd_log_jacobian": "SD log J",
    "folding": "Folding",
    "cpm": "CPM",
    "map": "mAP",
    "concordance": "C index",
    "integrated_brier": "Brier score",
    "icc": "ICC",
}
"""For metrics whose title is too long for the head of a column."""

NOTHING = "–"

_DECIMALS = 3
"""Of metrics without a unit: intervals on 100 to 1,000 patients are a few hundredths wide, so a
fourth decimal would be noise."""

_MOST_DECIMALS = 6


def metric_title(metric: str) -> str:
    """The name of a metric as papers print it; its key where this release does not know it."""
    if metric in SHORT:
        return SHORT[metric]
    return metrics.get(metric).title if metric in metrics.names() else metric


def has_unit(metric: str) -> bool:
    """Whether the score may carry a unit: errors without an upper end do."""
    return metric not in metrics.names() or isinf(metrics.get(metric).high)


def unit_of(metric: str, of_target: str) -> str:
    """Of a score: the metric's own, or that of a regression's target; empty: none.

    >>> unit_of("mae", "years"), unit_of("r2", "years")
    ('years', '')
    """
    if metric not in metrics.names():
        return of_target
    known = metrics.get(metric)
    if known.unit or known.kind != "regression":
        return known.unit
    return of_target if has_unit(metric) else ""


def metric_in_full(metric: str) -> str:
    """The name of a metric where there is room for it."""
    return metrics.get(metric).title if metric in metrics.names() else metric


def score_text(metric: str, score: float | None, low: float | None, high: float | None) -> str:
    """The score alone.

    >>> score_text("auroc", 0.8316, 0.79, 0.871)
    '0.832'
    >>> score_text("mae", 1234.56, 1187.0, 1290.4)
    '1,235'
    """
    if score is None or not isfinite(score):
        return NOTHING
    if has_unit(metric):
        return _fixed(score, _decimals_for(score, low, high))
    decimals = _DECIMALS
    # 0.9997 is not a perfect score and does not print as one
    while decimals < _MOST_DECIMALS and abs(round(score, decimals)) == 1 != abs(score):
        decimals += 1
    return _fixed(score, decimals)


def signed_text(metric: str, delta: float, low: float, high: float) -> str:
    """A difference of scores, with its sign.

    >>> signed_text("auroc", 0.0316, 0.01, 0.05), signed_text("mae", -12.34, -20.0, -4.0)
    ('+0.032', '−12.3')
    """
    text = score_text(metric, delta, low, high)
    return f"+{text}" if delta > 0 else text


def p_text(p: float) -> str:
    """A p-value; below a thousandth the resampling cannot tell.

    >>> p_text(0.0312), p_text(0.0004), p_text(1.0)
    ('0.031', '< 0.001', '1.000')
    """
    if not isfinite(p):
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def interval_text(metric: str, score: float | None, low: float | None, high: float | None) -> str:
    """The 95 % interval, rounded outwards; empty where there is none.

    Outwards, because an interval that is printed narrower than it is claims too much; with enough
    decimals that the ends differ, because [1.00, 1.00] would claim certainty.

    >>> interval_text("auroc", 1.0, 0.99961, 1.0)
    '[0.999, 1.000]'
    >>> interval_text("mae", 1234.56, 1187.04, 1290.4)
    '[1,187, 1,291]'
    """
    if low is None or high is None or not (isfinite(low) and isfinite(high)) or low >= high:
        return ""
    if has_unit(metric):
        least = _decimals_for(high if score is None else score, low, high)
    else:
        least = _DECIMALS
    for decimals in range(least, max(least, _MOST_DECIMALS) + 1):
        ends = (
            _fixed(_outwards(low, decimals, floor), decimals),
            _fixed(_outwards(high, decimals, ceil), decimals),
        )
        if ends[0] != ends[1]:
            return f"[{ends[0]}, {ends[1]}]"
    return ""


def with_interval(
    metric: str, score: float | None, low: float | None, high: float | None, unit: str = ""
) -> str:
    """Score, unit and interval on one line.

    >>> with_interval("mae", 8.312, 7.21, 9.64, "years")
    '8.3 years [7.2, 9.7]'
    """
    value = score_text(metric, score, low, high)
    if value != NOTHING and unit and has_unit(metric):
        value = f"{value} {unit}"
    return f"{value} {interval_text(metric, score, low, high)}".rstrip()


def plain(value: float, digits: int = 3) -> str:
    """A number without an interval: so many significant digits, never an exponent.

    >>> plain(1234567.0), plain(0.012345), plain(2.0)
    ('1,234,567', '0.0123', '2.00')
    """
    if not isfinite(value):
        return NOTHING
    size = floor(log10(abs(value))) if value else 0
    return _fixed(value, min(max(0, digits - 1 - size), 9))


def whole(value: float | None) -> str:
    """A count, or the mean of counts.

    >>> whole(2097152.4), whole(None)
    ('2,097,152', '–')
    """
    return NOTHING if value is None or not isfinite(value) else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """How long something took, to two significant digits or more.

    >>> duration(0.042), duration(12.5), duration(500.0), duration(9000.0)
    ('0.042 s', '12.5 s', '8.3 min', '2.5 h')
    """
    if seconds < 120:
        return f"{plain(seconds, 2 if seconds < 1 else 3)} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _decimals_for(score: float, low: float | None, high: float | None) -> int:
    """As many as leave two significant digits of the interval's half width.

    The usual rule for a measurement with an uncertainty (GUM, JCGM 100:2008, 7.2.6); three
    significant digits of the score where there is no interval.
    """
    half = (high - low) / 2 if low is not None and high is not None else 0.0
    if half > 0 and isfinite(half):
        return min(max(0, 1 - floor(log10(half))), 9)
    size = floor(log10(abs(score))) if score else 0
    return min(max(0, 2 - size), 9)


def _outwards(value: float, decimals: int, direction: Callable[[float], int]) -> float:
    scale = 10**decimals
    # 0.83 * 1000 is 830.0000000000001 in binary: not a reason to print 0.831
    return direction(round(value * scale, 6)) / scale


def _fixed(value: float, decimals: int) -> str:
    text = f"{value:,.{decimals}f}"
    if float(text.replace(",", "")) == 0:
        text = text.removeprefix("-")
    return text.replace("-", "−")
