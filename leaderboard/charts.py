"""Charts as SVG made on the server: nothing to load, readable without a script.

Horizontal positions are percentages and there is no view box, so a chart fills the width it gets
and its text keeps its size, on a telephone too. Colours are classes of the style sheet.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from markupsafe import Markup

from ..benchmark import metrics
from .printing import has_unit, plain, with_interval

_ROW = 42  # px: one line of text above one whisker
_TOP = 10
_AXIS = 30
_LEFT, _RIGHT = 2.0, 98.0  # percent: room for a dot and a tick label at both ends
_TICKS = 5


@dataclass(frozen=True)
class Point:
    """One model in a chart."""

    label: str
    score: float
    low: float | None
    high: float | None
    ranked: bool = True
    """False: drawn hollow."""
    best: bool = False


@dataclass(frozen=True)
class Reference:
    """A score to compare with, e.g. that of guessing."""

    value: float
    label: str


def dot_and_whisker(
    points: Sequence[Point],
    *,
    title: str,
    metric: str,
    unit: str = "",
    reference: Reference | None = None,
) -> Markup:
    """Scores as dots on their 95 % intervals, in the order given.

    Args:
        points: at least one.
        title: what is shown; the SVG's accessible name.
        metric: name of the metric, for printing.
        unit: of the metric, where it has one.
        reference: drawn as a dashed line when it lies within the axis.
    """
    values = [v for p in points for v in (p.score, p.low, p.high) if v is not None]
    if reference is not None:
        values.append(reference.value)
    ticks = round_ticks(values, metric)
    low, high = ticks[0], ticks[-1]

    def x(value: float) -> str:
        share = (min(max(value, low), high) - low) / (high - low)
        return f"{_LEFT + share * (_RIGHT - _LEFT):.2f}%"

    bottom = _TOP + _ROW * len(points)
    parts = [
        Markup(
            '<svg class="chart" role="img" aria-labelledby="chart-title chart-desc" width="100%" '
            'height="{}" xmlns="http://www.w3.org/2000/svg">'
        ).format(bottom + _AXIS),
        Markup('<title id="chart-title">{}</title>').format(title),
        Markup('<desc id="chart-desc">{}</desc>').format(_in_words(points, metric, unit)),
    ]
    for tick in ticks:
        parts.append(line("grid", x(tick), _TOP, x(tick), bottom))
        anchor = "start" if tick == low else "end" if tick == high else "middle"
        edge = "0%" if tick == low else "100%" if tick == high else x(tick)
        parts.append(text("tick", edge, bottom + 18, tick_label(tick, metric), anchor))
    if reference is not None and low <= reference.value <= high:
        at = x(reference.value)
        parts.append(line("reference", at, _TOP, at, bottom))
    for i, point in enumerate(points):
        top = _TOP + i * _ROW
        middle = top + 27
        if i:
            parts.append(line("between", "0%", top, "100%", top))
        label = "label best" if point.best else "label"
        value = with_interval(metric, point.score, point.low, point.high, unit)
        parts.append(text(label, "0%", top + 17, point.label, "start"))
        parts.append(text("value", "100%", top + 17, value, "end"))
        if point.low is not None and point.high is not None:
            ends = x(point.low), x(point.high)
            parts.append(line("whisker", ends[0], middle, ends[1], middle))
            parts += [line("whisker", end, middle - 4, end, middle + 4) for end in ends]
        shape = "dot" if point.ranked else "dot hollow"
        parts.append(
            Markup('<circle class="{}" cx="{}" cy="{}" r="4.5"/>').format(
                shape, x(point.score), middle
            )
        )
    parts.append(Markup("</svg>"))
    return Markup("\n").join(parts)


def _in_words(points: Sequence[Point], metric: str, unit: str) -> str:
    return "; ".join(
        f"{p.label}: {with_interval(metric, p.score, p.low, p.high, unit)}" for p in points
    )


def round_ticks(values: Sequence[float], metric: str) -> list[float]:
    """Round numbers, the first and last of which enclose the values (at least one).

    They stay within the range of the metric.
    """
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    step = _round_step(span / _TICKS)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    if first == last:
        first, last = first - 1, last + 1
    ticks = [k * step for k in range(first, last + 1)]
    if metric in metrics.names():
        ends = metrics.get(metric).low - 1e-9, metrics.get(metric).high + 1e-9
        inside = [t for t in ticks if ends[0] <= t <= ends[1]]
        ticks = inside if len(inside) > 1 else ticks
    return ticks


def _round_step(step: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below ``step``."""
    power = 10.0 ** floor(log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9))


def tick_label(tick: float, metric: str) -> str:
    """A tick of the metric's axis as text."""
    return plain(tick) if has_unit(metric) else f"{tick:.3g}".replace("-", "−")


def line(name: str, x1: str, y1: float, x2: str, y2: float) -> Markup:
    """A straight line of a class of the style sheet; ``x`` in percent, ``y`` in px."""
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(name, x1, y1, x2, y2)


def text(name: str, x: str, y: float, words: str, anchor: str) -> Markup:
    """Words of a class of the style sheet; ``anchor`` is start, middle or end."""
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        name, x, y, anchor, words
    )
