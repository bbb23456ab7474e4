"""Learning curves as pictures, on a page and as a file, and the words for training sizes."""

import re
from math import log
from xml.etree import ElementTree

import pytest

from tomoprobe.benchmark.learning_curves import LabelShare
from tomoprobe.benchmark.types import Budget
from tomoprobe.leaderboard.charts import Point, dot_and_whisker
from tomoprobe.leaderboard.curves import MOST_CURVES, Curve, learning_curves_svg, standalone
from tomoprobe.leaderboard.figures import with_floors
from tomoprobe.leaderboard.sizes import (
    axis_title,
    default_size,
    share_interval,
    share_text,
    size_in_words,
)

SVG = "{http://www.w3.org/2000/svg}"
RISING = Curve("rising", [(1, 0.6, 0.5, 0.7), (10, 0.7, 0.6, 0.8), (100, 0.8, 0.7, 0.9)])
FALLING = Curve("falling", [(100, 0.5, None, None), (1, 0.75, 0.7, 0.8)])


def drawn(*curves: Curve, metric: str = "auroc") -> ElementTree.Element:
    svg = learning_curves_svg(curves, title="A title", metric=metric, x_label="patients per class")
    return ElementTree.fromstring(svg)  # noqa: S314 - our own


def lines(svg: ElementTree.Element, name: str) -> list[dict[str, float]]:
    return [
        {k: float(v.rstrip("%")) for k, v in line.attrib.items() if k != "class"}
        for line in svg.iter(f"{SVG}line")
        if line.get("class") == name
    ]


def test_sizes_stand_on_a_logarithmic_axis_and_better_scores_higher() -> None:
    first, second = lines(drawn(RISING), "line")
    step = first["x2"] - first["x1"]
    assert step > 10
    assert second["x2"] - second["x1"] == pytest.approx(step, abs=0.02)  # 1 to 10 as 10 to 100
    assert first["y1"] > first["y2"] == second["y1"] > second["y2"]
    uneven = Curve("uneven", [(1, 0.6, None, None), (2, 0.7, None, None), (100, 0.8, None, None)])
    a, b = lines(drawn(uneven), "line")
    share = (a["x2"] - a["x1"]) / (b["x2"] - a["x1"])
    assert share == pytest.approx(log(2) / log(100), abs=0.002)


def test_every_point_with_an_interval_has_a_line_from_end_to_end() -> None:
    found = lines(drawn(RISING, FALLING), "range")
    assert len(found) == 4
    assert all(r["x1"] == r["x2"] and r["y1"] > r["y2"] for r in found)
    heights = {round(r["y1"] - r["y2"], 1) for r in found}
    assert len(heights) == 2  # three are 0.2 high, one 0.1
    assert max(heights) == pytest.approx(2 * min(heights), abs=0.2)


def test_points_are_joined_in_the_order_of_their_sizes() -> None:
    (only,) = lines(drawn(FALLING), "line")
    assert only["x1"] < only["x2"]
    assert only["y1"] < only["y2"]


def test_every_tick_is_a_size_that_somebody_has() -> None:
    ticks = [t.text for t in drawn(RISING, FALLING).iter(f"{SVG}text") if t.get("class") == "tick"]
    assert ticks[-3:] == ["1", "10", "100"]


@pytest.mark.parametrize("points", [[(5, 0.7, 0.6, 0.8)], [(5, 0.7, None, None)], [(5, 0, 0, 0)]])
def test_a_single_point_is_drawn_in_the_middle(points: list) -> None:
    svg = drawn(Curve("one", points))
    assert lines(svg, "line") == []
    (marker, _) = svg.findall(f".//{SVG}svg")
    assert marker.get("x") == "54.50%"


def test_curves_differ_in_more_than_their_colour() -> None:
    curves = [Curve(f"m{i}", RISING.points) for i in range(MOST_CURVES)]
    svg = drawn(*curves)
    looks = set()
    for i in range(1, MOST_CURVES + 1):
        groups = [g for g in svg.iter(f"{SVG}g") if g.get("class") == f"curve curve-{i}"]
        assert len(groups) == 2, "one in the plot, one in the legend"
        markers = {
            (path.get("class"), path.get("d"))
            for g in groups
            for path in g.iter(f"{SVG}path")
            if (path.get("class") or "").startswith("marker")
        }
        assert len(markers) == 1, "the legend shows the marker of the plot"
        looks |= markers
    assert len(looks) == MOST_CURVES


def test_those_who_do_not_see_it_are_told_every_score() -> None:
    svg = drawn(RISING, FALLING)
    assert svg.get("role") == "img"
    title, description = svg.find(f"{SVG}title"), svg.find(f"{SVG}desc")
    assert title is not None and description is not None
    assert svg.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
    assert title.text == "A title"
    assert description.text is not None
    assert "falling: 0.750 [0.700, 0.800] at 1; 0.500 at 100" in description.text


def test_names_of_models_are_escaped() -> None:
    evil = "<script>alert(1)</script>"
    svg = learning_curves_svg(
        [Curve(evil, RISING.points)], title=evil, metric="auroc", x_label="shots"
    )
    assert evil not in svg
    assert svg.count("&lt;script&gt;") == 3


@pytest.mark.parametrize(
    "svg",
    [
        learning_curves_svg([RISING, FALLING], title="A & B", metric="auroc", x_label="shots"),
        dot_and_whisker([Point("a", 0.7, 0.6, 0.8)], title="A & B", metric="auroc"),
    ],
)
def test_a_file_of_a_chart_has_everything_it_needs_inside(svg: str) -> None:
    text = standalone(svg)
    root = ElementTree.fromstring(text.encode())  # noqa: S314 - our own
    style = root.find(f"{SVG}style")
    assert style is not None and style.text is not None
    assert (root.get("width") or "").isdigit()
    inner = root.find(f"{SVG}svg")
    assert inner is not None
    assert int(root.attrib["height"]) > int(inner.attrib["height"])
    assert [t.text for t in root.findall(f"{SVG}text")] == ["A & B"]
    assert "://" not in text.replace("http://www.w3.org/2000/svg", "")
    used = {name for e in root.iter() for name in (e.get("class") or "").split()}
    unstyled = {name for name in used if f".{name}" not in style.text}
    assert unstyled <= {"label"}
    # every colour that is used is defined, for light and for dark
    asked = set(re.findall(r"var\((--curve-\d|--ink|--paper|--faint|--rule|--mark)\)", style.text))
    dark = style.text[style.text.index("@media") :]
    assert asked
    assert all(f"{name}:" in dark and style.text.count(f"{name}:") == 2 for name in asked)


def test_the_floors_are_in_every_picture() -> None:
    models = ["a", "b", "c", "intensity", "d", "texture"]
    nothing = {"intensity", "texture"}
    assert with_floors(models, nothing, 4) == ["a", "b", "intensity", "texture"]
    assert with_floors(models, nothing, 1) == ["intensity"]
    assert with_floors(models, nothing, 99) == models


# --- words -------------------------------------------------------------------------------------

PER_CLASS = Budget("patients per class", (1, 20))
PERCENT = Budget("percent", (1, 100), area=True)


@pytest.mark.parametrize(
    ("shots", "budget", "words"),
    [
        (1, PER_CLASS, "1 patient per class"),
        (20, PER_CLASS, "20 patients per class"),
        (10, PERCENT, "10 % of labels"),
        (None, PERCENT, "mean over the curve"),
        (None, None, "all data"),
        (4, None, "4 shots"),
    ],
)
def test_a_size_is_said_in_words(shots: int | None, budget: Budget | None, words: str) -> None:
    assert size_in_words(shots, budget) == words


def test_the_axis_says_what_it_counts() -> None:
    assert axis_title(PER_CLASS) == "patients per class"
    assert axis_title(PERCENT) == "% of training patients"


def test_the_mean_over_the_curve_is_shown_first_and_else_the_largest_size() -> None:
    assert default_size([1, None, 100]) is None
    assert default_size([1, 20, 5]) == 20
    assert default_size([]) is None


def test_a_share_of_labels_beyond_what_was_tried_says_so() -> None:
    inf = float("inf")
    assert share_text(LabelShare(inf, 40.0, inf, 1, 100)) == "> 100 %"
    assert share_interval(LabelShare(inf, 40.0, inf, 1, 100)) == "[40 %, > 100 %]"
    assert share_text(LabelShare(2.0, 2.0, 3.5, 2, 100)) == "≤ 2 %"
    assert share_interval(LabelShare(2.0, 2.0, 3.46, 2, 100)) == "[≤ 2 %, 3.5 %]"
