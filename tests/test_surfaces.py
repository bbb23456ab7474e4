"""Dice, NSD and HD95: right where they can be counted by hand, and by brute force elsewhere."""

import math

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist

from tomoprobe.benchmark.errors import MaskError
from tomoprobe.benchmark.surfaces import measures, surface

SPACING = (1.0, 2.0, 5.0)


def cube(*start: int, shape: tuple[int, int, int] = (30, 30, 20), side: int = 6) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(s, s + side) for s in start)] = 1
    return labels


def one(truth: np.ndarray, predicted: np.ndarray, tolerance: float = 2.0) -> dict[str, float]:
    return measures(truth, predicted, SPACING, 2, tolerance)


def test_equal_maps_score_best() -> None:
    assert one(cube(3, 4, 5), cube(3, 4, 5)) == {"dice_1": 1.0, "nsd_1": 1.0, "hd95_1": 0.0}


@pytest.mark.parametrize(("axis", "mm"), [(0, 10.0), (1, 20.0), (2, 50.0)])
def test_two_cubes_apart_are_as_far_as_they_were_moved(axis: int, mm: float) -> None:
    start, moved = [2, 2, 2], [2, 2, 2]
    moved[axis] += 10
    found = one(cube(*start), cube(*moved))
    assert found["dice_1"] == 0 and found["nsd_1"] == 0
    # of the 152 surface voxels 36 are a whole move away: more than 5 %
    assert found["hd95_1"] == mm


def test_the_share_of_a_moved_surface_is_counted_by_hand() -> None:
    """A cube of 6 voxels a side, moved by one voxel of 1 mm along the first axis."""
    truth, predicted = cube(5, 5, 5), cube(6, 5, 5)
    found = one(truth, predicted, tolerance=0.5)
    assert found["dice_1"] == 5 / 6
    # A surface has 2 * 36 + 4 * 20 = 152 voxels: the first and the last slice, and the rims of 20
    # of the four between. The rims of the slices 6 to 10, which are in both cubes, are on both.
    assert found["nsd_1"] == 5 * 20 / 152
    assert one(truth, predicted, tolerance=1.0)["nsd_1"] == 1.0, "one voxel of 1 mm is within 1 mm"
    assert found["hd95_1"] == 1.0


def test_a_surface_at_the_tolerance_is_within_it_however_the_spacing_is_rounded() -> None:
    truth, predicted = cube(5, 5, 5), cube(5, 5, 6)
    spacing = (1.0, 2.0, 5.0000004)
    assert measures(truth, predicted, spacing, 2, 5.0)["nsd_1"] == 1.0
    assert measures(truth, predicted, spacing, 2, 4.99)["nsd_1"] < 1.0


def test_the_surface_of_a_cube_is_its_shell_also_at_the_edge_of_the_image() -> None:
    for start in ((5, 5, 5), (0, 0, 0)):
        inner = cube(*(s + 1 for s in start), side=4)
        assert (surface(cube(*start) > 0) == (cube(*start) > inner)).all()


def test_hd95_is_that_of_the_worse_direction() -> None:
    """A true speck far from everything weighs little, unless it is what is missed."""
    both = cube(2, 2, 2)
    speck = both.copy()
    speck[25, 2, 2] = 1
    assert one(both, speck)["hd95_1"] == one(speck, both)["hd95_1"] == 0
    plate = both.copy()
    plate[20, 2:8, 2:4] = 1  # 12 of 164 surface voxels; of both surfaces less than 5 %
    assert one(both, plate)["hd95_1"] == one(plate, both)["hd95_1"] == 20 - 7


def test_classes_that_are_nowhere_do_not_count_and_those_on_one_side_score_worst() -> None:
    nothing, something = np.zeros((30, 30, 20), np.uint8), cube(2, 2, 2)
    assert all(map(math.isnan, one(nothing, nothing).values()))
    worst = {"dice_1": 0.0, "nsd_1": 0.0, "hd95_1": math.hypot(30, 60, 100)}
    assert one(nothing, something) == worst == one(something, nothing)


def test_each_class_is_scored_on_its_own() -> None:
    truth, predicted = cube(2, 2, 2), cube(2, 2, 2)
    truth[truth > 0] = 2
    predicted[predicted > 0] = 2
    truth[20, 20, 10] = 1
    found = measures(truth, predicted, SPACING, 4, 1.0)
    assert (found["dice_2"], found["dice_1"]) == (1.0, 0.0) and math.isnan(found["dice_3"])
    assert list(found) == [f"{name}_{k}" for k in (1, 2, 3) for name in ("dice", "nsd", "hd95")]
    assert {type(value) for value in found.values()} == {float}


def pairs_of_maps() -> list[tuple[np.ndarray, np.ndarray]]:
    """Of two classes, from a few specks to nearly everything."""
    rng = np.random.default_rng(0)
    maps = [
        rng.integers(1, 3, (2, 6, 7, 5)) * (rng.random((2, 6, 7, 5)) < share)
        for share in (0.03, 0.2, 0.7)
    ]
    return [(a, b) for a, b in (np.pad(m, ((0, 0), (2, 3), (1, 1), (0, 2))) for m in maps)]


UNEQUAL = (0.8, 1.3, 2.5)


@pytest.mark.parametrize("tolerance", [0.5, 1.4, 2.2])
def test_equals_all_distances_between_all_points(tolerance: float) -> None:
    for truth, predicted in pairs_of_maps():
        found = measures(truth, predicted, UNEQUAL, 3, tolerance)
        for k in (1, 2):
            a, b = (
                np.argwhere((m == k) & ~ndimage.binary_erosion(m == k)) for m in (truth, predicted)
            )
            apart = cdist(a * UNEQUAL, b * UNEQUAL)
            to_b, to_a = apart.min(1), apart.min(0)
            within = (to_b <= tolerance).sum() + (to_a <= tolerance).sum()
            assert found[f"nsd_{k}"] == pytest.approx(within / (len(a) + len(b)))
            worse = max(np.percentile(to_b, 95), np.percentile(to_a, 95))
            assert found[f"hd95_{k}"] == pytest.approx(worse, rel=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy")  # MONAI warns of itself
def test_equals_monai() -> None:
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice

    for truth, predicted in pairs_of_maps():
        found = measures(truth, predicted, UNEQUAL, 3, 1.4)
        a, b = (
            torch.from_numpy(np.stack([labels == k for k in range(3)])[None])
            for labels in (truth, predicted)
        )
        nsd = compute_surface_dice(b, a, [1.4] * 2, spacing=UNEQUAL)[0].tolist()
        hd95 = compute_hausdorff_distance(b, a, percentile=95, spacing=UNEQUAL)[0].tolist()
        assert [found["nsd_1"], found["nsd_2"]] == pytest.approx(nsd, abs=1e-6)
        assert [found["hd95_1"], found["hd95_2"]] == pytest.approx(hd95, rel=1e-5)


def test_where_the_labels_lie_in_the_image_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 2, (2, 8, 8, 8), np.uint8)
    small = np.pad(truth, 1), np.pad(predicted, 1)
    large = np.pad(truth, ((9, 1), (1, 5), (3, 2))), np.pad(predicted, ((9, 1), (1, 5), (3, 2)))
    assert one(*small) == one(*large)


@pytest.mark.parametrize(
    ("predicted", "complaint"),
    [
        (np.zeros((3, 3, 3), np.uint8), r"prediction has \(3, 3, 3\) voxels and the truth"),
        (np.full((30, 30, 20), 2, np.uint8), "uint8 labels from 0 to 2; integers from 0 to 1"),
        (np.full((30, 30, 20), -1), "labels from -1 to 0"),
        (np.zeros((30, 30, 20), np.float32), "float32 labels"),
    ],
)
def test_maps_that_do_not_fit_are_refused(predicted: np.ndarray, complaint: str) -> None:
    with pytest.raises(MaskError, match=complaint):
        one(cube(2, 2, 2), predicted)
