"""Pictures of dense answers: the right slice, the right way round, in mm, and told apart."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tomoprobe.benchmark import overlays, panels
from tomoprobe.benchmark.errors import StorageError

SHAPE = (20, 30, 10)
SPACING = (2.0, 1.0, 4.0)
POINT = (4, 21, 7)
RAW = ("scanner", "scanner")


def labelled() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    x, y, z = POINT
    labels[x - 1 : x + 2, y - 1 : y + 2, z - 1 : z + 2] = 1
    labels[x, y, z] = 2
    return labels


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def has(path: Path, color: tuple[int, int, int]) -> np.ndarray:
    return (pixels(path) == color).all(2)


def test_the_planes_go_through_the_middle_of_the_labels() -> None:
    labels = labelled()
    assert panels.center(labels, SHAPE) == POINT
    labels[POINT] = 0
    assert labels[panels.center(labels, SHAPE)], "a ring is cut where it is, not in its hole"
    assert panels.center(None, SHAPE) == (10, 15, 5) == panels.center(labels * 0, SHAPE)


@pytest.mark.parametrize("plane", panels.PLANES, ids=lambda plane: plane.name)
def test_slices_hang_as_radiologists_hang_them(plane: panels.Plane) -> None:
    """A mark that is right, anterior and superior of the middle."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[15, 25, 8] = 1
    marks = panels.marks(labels, plane, (15, 25, 8), SPACING)
    across = {"axial": 0, "coronal": 0, "sagittal": 1}[plane.name]
    up = {"axial": 1, "coronal": 2, "sagittal": 2}[plane.name]
    mm = [n * s for n, s in zip(SHAPE, SPACING, strict=True)]
    height, width = marks.shape
    assert width / height == pytest.approx(mm[across] / mm[up], rel=0.02)
    rows, columns = np.nonzero(marks)
    where = [(place + 0.5) / n for place, n in zip((15, 25, 8), SHAPE, strict=True)]
    assert (columns.mean() + 0.5) / width == pytest.approx(1 - where[across], abs=0.01)
    assert (rows.mean() + 0.5) / height == pytest.approx(1 - where[up], abs=0.01)
    assert plane.ends == (("R", "L") if across == 0 else ("A", "P"))


def test_an_overlay_shows_truth_and_prediction_in_the_colors_of_the_legend(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    truth = labelled()
    predicted = np.where(truth == 1, 0, truth)
    file = tmp_path / "overlay.png"
    overlays.overlay(
        file, image, truth, predicted, SPACING, ("nothing", "rim", "core"), "scanner", title="a"
    )
    rim, core = has(file, panels.color(1)), has(file, panels.color(2))
    third = rim.shape[1] // 3
    legend = slice(-panels.TITLE - panels.GAP, None)
    assert rim[legend].any() and core[legend].any()
    rim[legend] = core[legend] = False
    assert not rim[:, :third].any() and rim[:, third : 2 * third].any()
    assert not rim[:, 2 * third :].any() and core[:, 2 * third :].any()
    assert [p.name for p in tmp_path.iterdir()] == ["overlay.png"]


def test_the_background_stays_the_image(tmp_path: Path) -> None:
    panel = np.full((40, 50, 3), 77, np.uint8)
    marks = np.zeros((40, 50), np.uint8)
    marks[10:20, 10:30] = 1
    drawn = panels.painted(panel, marks)
    assert (drawn[marks == 0] == 77).all()
    assert (drawn[10, 10:30] == panels.color(1)).all(), "the border is all color"
    assert not (drawn[15, 15] == panels.color(1)).all() and not (drawn[15, 15] == 77).all()


def test_a_checkerboard_of_equal_images_is_the_image_and_of_others_is_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    fixed = rng.normal(size=(24, 24, 24)).astype(np.float32)
    other = rng.normal(size=fixed.shape).astype(np.float32)
    file = tmp_path / "board.png"
    overlays.checkerboard(file, fixed, fixed.copy(), other, (1.0, 1.0, 1.0), RAW)
    sheet = pixels(file).astype(int)
    step = panels.SIDE + panels.GAP
    rows = slice(panels.GAP + panels.TITLE, panels.GAP + panels.TITLE + panels.SIDE)
    inside = slice(20, panels.SIDE - 20)  # without the letters at the sides
    fixed_, _, after, board_before, board_after = (
        sheet[rows, panels.GAP + k * step : panels.GAP + k * step + panels.SIDE] for k in range(5)
    )
    assert (fixed_[inside, inside] == board_after[inside, inside]).all()
    assert (fixed_[inside, inside] == after[inside, inside]).all()
    same = (fixed_[inside, inside] == board_before[inside, inside]).all(2).mean()
    assert 0.4 < same < 0.65, "every other square is the fixed image's"


def test_borders_of_both_labels_are_seen_where_they_are_the_same(tmp_path: Path) -> None:
    image, labels = np.zeros(SHAPE, np.float32), labelled()
    file = tmp_path / "board.png"
    overlays.checkerboard(
        file, image, image, image, SPACING, RAW, fixed_labels=labels, moved_labels=labels
    )
    last = slice(-panels.SIDE - panels.GAP, None)
    shades = [
        has(file, shade)[: -panels.TITLE - panels.GAP, last].sum()
        for shade in (panels.FIXED, panels.MOVING)
    ]
    assert min(shades) > 0.3 * sum(shades) > 0


def test_colors_of_twenty_classes_are_told_apart() -> None:
    colors = np.array([panels.color(k) for k in range(1, 21)], float)
    apart = np.linalg.norm(colors[:, None] - colors[None], axis=2)[~np.eye(20, dtype=bool)]
    assert apart.min() > 15


def test_a_window_becomes_black_and_white() -> None:
    image = np.linspace(-1000, 1000, 20 * 30 * 10).reshape(SHAPE).astype(np.float32)
    soft = panels.gray_scale(np.full(SHAPE, 40.0), "HU")
    panel = panels.picture(image, panels.PLANES[0], (0, 0, 5), (1.0, 1.0, 1.0), soft)
    assert panel.min() == 0 and panel.max() == 255
    low, high, _ = panels.gray_scale(image, "scanner")
    assert -1000 < low < -980 and 980 < high < 1000


def first_panel(file: Path) -> np.ndarray:
    """Gray values in the middle of the upper left panel."""
    middle = panels.SIDE // 2
    top, left = panels.GAP + panels.TITLE + middle, panels.GAP + middle
    return pixels(file)[top - 50 : top + 50, left - 50 : left + 50, 0].astype(int)


def test_ct_is_shown_in_a_window_in_hu_whatever_metal_and_air_there_is(tmp_path: Path) -> None:
    """40 HU is the middle of a soft-tissue window; percentiles would show it nearly white."""
    image = np.full((24, 24, 24), 40.0, np.float32)
    image[:, :, ::2] = -1000.0
    image[12:, :, 12] = 100.0
    image[:12, :, 12] = 40.0
    nothing = np.zeros(image.shape, np.uint8)
    file, one = tmp_path / "ct.png", (1.0, 1.0, 1.0)
    overlays.overlay(file, image, nothing, nothing, one, ("a", "b"), "HU")
    assert set(np.unique(first_panel(file)[:, -20:]).tolist()) == {round(255 * 200 / 400)}
    assert set(np.unique(first_panel(file)[:, :20]).tolist()) == {round(255 * 260 / 400)}
    overlays.checkerboard(file, image, image, image, one, ("HU", "scanner"))
    assert set(np.unique(first_panel(file)[:, -20:]).tolist()) == {round(255 * 200 / 400)}


def test_the_two_images_of_a_pair_have_the_scale_of_their_own_unit(tmp_path: Path) -> None:
    ct = np.full((24, 24, 24), 40.0, np.float32)
    mr = np.linspace(0, 900, 24**3, dtype=np.float32).reshape(ct.shape)
    file = tmp_path / "pair.png"
    overlays.checkerboard(file, ct, mr, mr, (1.0, 1.0, 1.0), ("HU", "scanner"))
    step = panels.SIDE + panels.GAP
    top = panels.GAP + panels.TITLE
    sheet = pixels(file)[top + 60 : top + 280, :, 0].astype(int)
    fixed, moved = (
        sheet[:, panels.GAP + k * step + 20 : panels.GAP + k * step + 280] for k in (0, 2)
    )
    assert np.ptp(fixed[:, 40:200]) == 0
    assert np.ptp(moved) > 200


def test_what_cannot_be_drawn_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with overlays.optional("case '1' of 'toy'"):
        raise OSError("the disk is full")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == "No picture of case '1' of 'toy': the disk is full"


def test_a_flat_image_is_drawn(tmp_path: Path) -> None:
    flat = np.zeros(SHAPE, np.float32)
    nothing = np.zeros(SHAPE, np.uint8)
    overlays.overlay(
        tmp_path / "flat.png", flat, nothing, nothing, SPACING, ("nothing", "mark"), "HU"
    )
    assert pixels(tmp_path / "flat.png").size


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    image, labels = np.zeros(SHAPE, np.float32), labelled()
    with pytest.raises(StorageError, match=r"The picture .*x\.png cannot be written"):
        overlays.overlay(
            tmp_path / "no" / "x.png", image, labels, labels, SPACING, ("a", "b", "c"), "HU"
        )
