"""Sizes of a training budget in words: what ``shots`` means where a probe has a budget."""

from collections.abc import Iterable
from math import isinf

from ..benchmark.learning_curves import LabelShare
from ..benchmark.types import Budget


def size_in_words(shots: int | None, budget: Budget | None) -> str:
    """What a row with so many shots was trained on.

    >>> size_in_words(1, Budget("patients per class", (1, 5)))
    '1 patient per class'
    >>> size_in_words(10, Budget("percent", (1, 10))), size_in_words(None, None)
    ('10 % of labels', 'all data')
    """
    if budget is None:
        return "all data" if shots is None else f"{shots} shots"
    if shots is None:
        return "mean over the curve"
    if budget.unit == "percent":
        return f"{shots} % of labels"
    return "1 patient per class" if shots == 1 else f"{shots} patients per class"


def axis_title(budget: Budget | None) -> str:
    """What the axis of a learning curve counts."""
    if budget is None:
        return "shots"
    return "% of training patients" if budget.unit == "percent" else budget.unit


def default_size(sizes: Iterable[int | None]) -> int | None:
    """All data or the mean over the curve where there is such a row, else the most shots."""
    there = set(sizes)
    return None if None in there or not there else max(k for k in there if k is not None)


def share_text(found: LabelShare) -> str:
    """A share of labels, which may lie beyond what was tried.

    >>> share_text(LabelShare(31.6, 12.0, 58.2, smallest=1, largest=100))
    '32 %'
    >>> share_text(LabelShare(1.0, 1.0, float("inf"), smallest=1, largest=100))
    '≤ 1 %'
    """
    return _percent(found.share, found)


def share_interval(found: LabelShare) -> str:
    """The 95 % interval of a share.

    >>> share_interval(LabelShare(31.6, 1.0, float("inf"), smallest=1, largest=100))
    '[≤ 1 %, > 100 %]'
    """
    return f"[{_percent(found.low, found)}, {_percent(found.high, found)}]"


def _percent(value: float, found: LabelShare) -> str:
    if isinf(value):
        return f"> {found.largest} %"
    if value <= found.smallest:
        return f"≤ {found.smallest} %"
    return f"{value:.{1 if value < 9.95 else 0}f} %"  # two significant digits
