"""Scores against the number of training patients, as SVG made on the server.

The same technique as in ``charts``: horizontal positions are percentages, there is no view box and
no script, so a curve fills the width it gets. A line is told from the others by its dashes and its
markers as well as by its colour, and curves stand a little aside from one another, so that
intervals at the same size do not hide each other.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log
from pathlib import Path

from markupsafe import Markup

from .charts import line, round_ticks, text, tick_label
from .printing import metric_title, with_interval

MOST_CURVES = 8
"""Lines that can be told apart: as many colours, dashes and markers are in the style sheet."""

STYLES = Path(__file__).parent / "static" / "chart.css"

_TOP = 12  # px
_HEIGHT = 260
_AXIS = 46  # px: tick labels and what they count
_LEGEND_ROW = 22
_LEFT, _RIGHT = 14.0, 95.0  # percent: room for the labels of the axis, and for curves set aside
_ASIDE = 4.0  # px between neighbouring curves
_WIDTH_ALONE = 760  # px of a file that no page gives a width
_MARGIN = 16
_HEAD = 44  # px above the chart of a file: its title, which on a page is a heading

_MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z",  # circle
    "M-4 -4H4V4H-4Z",  # square
    "M0 -5 5 4H-5Z",  # triangle
    "M0 -5.5 5.5 0 0 5.5 -5.5 0Z",  # diamond
)
"""Filled for the first four curves, hollow for the others."""


@dataclass(frozen=True)
class Curve:
    """One model's scores by training size."""

    label: str
    points: Sequence[tuple[int, float, float | None, float | None]]
    """(size, score, low, high), in any order; sizes without a score are left out."""


def learning_curves_svg(
    curves: Sequence[Curve], *, title: str, metric: str, x_label: str, id: str = "curves"
) -> Markup:
    """Scores with 95 % intervals over the logarithm of the size, one line per model.

    Args:
        curves: at least one point in all; lines beyond ``MOST_CURVES`` look like earlier ones.
        title: what is shown; the SVG's accessible name.
        metric: name of the metric, for printing.
        x_label: what the sizes count, e.g. ``"patients per class"``.
        id: of this chart among those of a page.
    """
    points = [point for curve in curves for point in curve.points]
    ticks = round_ticks([v for _, *ends in points for v in ends if v is not None], metric)
    sizes = sorted({size for size, *_ in points})
    bottom = _TOP + _HEIGHT

    def x(size: int) -> str:
        reach = log(sizes[-1]) - log(sizes[0])
        share = (log(size) - log(sizes[0])) / reach if reach else 0.5
        return f"{_LEFT + share * (_RIGHT - _LEFT):.2f}%"

    def y(score: float) -> float:
        share = (min(max(score, ticks[0]), ticks[-1]) - ticks[0]) / (ticks[-1] - ticks[0])
        return round(bottom - share * _HEIGHT, 1)

    parts = [
        Markup(
            '<svg class="chart" role="img" aria-labelledby="{id}-title {id}-desc" width="100%" '
            'height="{height}" xmlns="http://www.w3.org/2000/svg">'
        ).format(id=id, height=bottom + _AXIS + _LEGEND_ROW * len(curves) + 8),
        Markup('<title id="{}-title">{}</title>').format(id, title),
        Markup('<desc id="{}-desc">{}</desc>').format(id, _in_words(curves, metric, x_label)),
    ]
    for tick in ticks:
        parts.append(line("grid", "0%", y(tick), "100%", y(tick)))
        parts.append(text("tick", "0%", y(tick) - 4, tick_label(tick, metric), "start"))
    for size in sizes:
        parts.append(line("grid", x(size), bottom, x(size), bottom + 5))
        parts.append(text("tick", x(size), bottom + 18, str(size), "middle"))
    parts.append(text("value", "50%", bottom + 36, f"{x_label}, logarithmic", "middle"))
    for i, curve in enumerate(curves):
        aside = (i - (len(curves) - 1) / 2) * _ASIDE
        parts.append(
            Markup('<g class="curve curve-{}" transform="translate({:g} 0)">').format(
                i % MOST_CURVES + 1, aside
            )
        )
        drawn = sorted(curve.points)
        for (size, score, *_), (size_2, score_2, *_) in pairwise(drawn):
            parts.append(line("line", x(size), y(score), x(size_2), y(score_2)))
        for size, score, low, high in drawn:
            if low is not None and high is not None:
                parts.append(line("range", x(size), y(low), x(size), y(high)))
            parts.append(_marker(i, x(size), y(score)))
        parts.append(Markup("</g>"))
    for i, curve in enumerate(curves):
        middle = bottom + _AXIS + _LEGEND_ROW * i + 10
        name = i % MOST_CURVES + 1
        parts += [
            Markup('<g class="curve curve-{}">').format(name),
            Markup('<path class="line" d="M0 {0}H44"/>').format(middle),
            _marker(i, "22", middle),
            Markup("</g>"),
            text("label", "54", middle + 4.5, curve.label, "start"),
        ]
    parts.append(Markup("</svg>"))
    return Markup("\n").join(parts)


def standalone(svg: str) -> str:
    """A chart as a complete file: with its styles inside, its title, a width and a background.

    Args:
        svg: as ``learning_curves_svg`` or ``dot_and_whisker`` returns it.
    """
    chart = str(svg)
    height = int(re.findall(r'height="(\d+)"', chart)[0]) + _HEAD + _MARGIN
    title = re.findall(r"<title[^>]*>(.*?)</title>", chart, re.DOTALL)[0]
    place = f'width="{_WIDTH_ALONE - 2 * _MARGIN}" x="{_MARGIN}" y="{_HEAD}"'
    chart = chart.replace('width="100%"', place, 1)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<svg class="chart" width="{_WIDTH_ALONE}" height="{height}" '
        'xmlns="http://www.w3.org/2000/svg">\n'
        f"<style>\n{STYLES.read_text(encoding='utf-8')}</style>\n"
        f'<rect class="paper" width="{_WIDTH_ALONE}" height="{height}"/>\n'
        f'<text class="best" x="{_MARGIN}" y="{_MARGIN + 12}" aria-hidden="true">{title}</text>\n'
        f"{chart}\n</svg>\n"
    )


def _marker(i: int, x: str, y: float) -> Markup:
    """The marker of the i-th curve; an SVG inside the SVG, because a path knows no percentages."""
    shape = "marker" if i % MOST_CURVES < len(_MARKERS) else "marker hollow"
    return Markup('<svg x="{}" y="{}" overflow="visible"><path class="{}" d="{}"/></svg>').format(
        x, y, shape, _MARKERS[i % len(_MARKERS)]
    )


def _in_words(curves: Sequence[Curve], metric: str, x_label: str) -> str:
    """What the picture shows, for those who do not see it."""
    told = []
    for curve in curves:
        scores = "; ".join(
            f"{with_interval(metric, score, low, high)} at {size}"
            for size, score, low, high in sorted(curve.points)
        )
        told.append(f"{curve.label}: {scores or 'no score'}")
    return f"{metric_title(metric)} by {x_label}. {'. '.join(told)}."
