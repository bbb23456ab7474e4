"""The loss over the steps as an SVG file, in the board's style."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup

from ...leaderboard.charts import line, round_ticks, text
from ...leaderboard.curves import standalone

MOST = 200
"""Points of the line; more steps are averaged in equal runs, as the description says."""

_TOP, _HEIGHT, _AXIS = 12, 260, 46  # px
_LEFT, _RIGHT = 10.0, 97.0  # percent


def loss_curve(losses: Sequence[tuple[int, float]], title: str) -> str:
    """A complete SVG file.

    Args:
        losses: (step, loss), rising steps, finite; at least one.
        title: what is shown.
    """
    run = -(-len(losses) // MOST)
    parts_of = [losses[i : i + run] for i in range(0, len(losses), run)]
    points = [(sum(s for s, _ in p) / len(p), sum(v for _, v in p) / len(p)) for p in parts_of]
    ticks = round_ticks([value for _, value in points], "loss")
    first, last = losses[0][0], losses[-1][0]
    bottom = _TOP + _HEIGHT

    def x(step: float) -> str:
        share = (step - first) / (last - first) if last > first else 0.5
        return f"{_LEFT + share * (_RIGHT - _LEFT):.2f}%"

    def y(value: float) -> float:
        return round(bottom - (value - ticks[0]) / (ticks[-1] - ticks[0]) * _HEIGHT, 1)

    words = (
        f"Loss {points[0][1]:.4g} at the start, {points[-1][1]:.4g} at the end, step {last}."
        + (f" Each point is the mean of {run} steps." if run > 1 else "")
    )
    parts = [
        Markup(
            '<svg class="chart" role="img" aria-labelledby="loss-title loss-desc" width="100%" '
            'height="{}" xmlns="http://www.w3.org/2000/svg">'
        ).format(bottom + _AXIS),
        Markup('<title id="loss-title">{}</title>').format(title),
        Markup('<desc id="loss-desc">{}</desc>').format(words),
    ]
    for tick in ticks:
        parts.append(line("grid", "0%", y(tick), "100%", y(tick)))
        parts.append(text("tick", "0%", y(tick) - 4, f"{tick:.4g}".replace("-", "−"), "start"))
    for step in sorted({first, (first + last) // 2, last}):
        parts.append(line("grid", x(step), bottom, x(step), bottom + 5))
        parts.append(text("tick", x(step), bottom + 18, str(step), "middle"))
    legend = "step" if run == 1 else f"step; each point is the mean of {run}"
    parts.append(text("value", "50%", bottom + 36, legend, "middle"))
    parts.append(Markup('<g class="curve curve-1">'))
    parts += [line("line", x(a), y(v), x(b), y(w)) for (a, v), (b, w) in pairwise(points)]
    parts += [Markup("</g>"), Markup("</svg>")]
    return standalone(Markup("\n").join(parts))
