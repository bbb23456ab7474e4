"""Every shift: what it says, the same for a case whenever asked, and nothing else changed."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tomoprobe.benchmark import shifts
from tomoprobe.benchmark.errors import UnknownNameError
from tomoprobe.benchmark.features import DataIdentity
from tomoprobe.benchmark.shifted_cases import shifted_case, shifted_identity
from tomoprobe.benchmark.types import Case, Region, Unit, Volume

AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])
BY_NAME = {v.name: v for v in shifts.VIEWS}
EVERY = pytest.mark.parametrize("name", BY_NAME)


def image(unit: Unit = "scanner", shape: tuple[int, int, int] = (24, 20, 16)) -> Volume:
    """A bright ellipsoid with a brighter core off the center, in the unit's usual numbers."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    body = (x**2 + y**2 + z**2 < 0.8).astype(np.float32)
    core = ((x - 0.3) ** 2 + (y + 0.2) ** 2 + z**2 < 0.1).astype(np.float32)
    texture = np.random.default_rng(0).random(shape, np.float32) * 0.1
    values = 0.5 * body + 0.3 * core + texture * body
    if unit == "HU":
        values = values * 1500 - 1000
    elif unit == "scanner":
        values = values * 700
    return Volume(values[None].astype(np.float32), AFFINE, unit)


def case(volume: Volume, region: Region | None = None) -> Case:
    return Case("c1", "p1", 0, lambda: volume, lambda: "digest", region=region)


@EVERY
@pytest.mark.parametrize("unit", ["HU", "scanner", "relative"])
def test_a_shift_keeps_grid_and_unit_and_changes_the_image(name: str, unit: Unit) -> None:
    volume = image(unit)
    before = volume.voxels.copy()
    out = shifts.shifted(volume, BY_NAME[name], "c1")
    assert out.voxels.shape == volume.voxels.shape and out.voxels.dtype == np.float32
    np.testing.assert_array_equal(out.affine, volume.affine)
    np.testing.assert_array_equal(volume.voxels, before)
    assert out.unit == unit and np.isfinite(out.voxels).all()
    assert np.abs(out.voxels - before).max() > 1e-3 * np.ptp(before)
    if unit == "relative":
        assert 0 <= out.voxels.min() <= out.voxels.max() <= 1


@EVERY
def test_a_case_is_always_shifted_alike_and_in_any_memory_order(name: str) -> None:
    volume = image()
    turned = replace(volume, voxels=np.asfortranarray(volume.voxels))
    first, second = (shifts.shifted(v, BY_NAME[name], "c1").voxels for v in (volume, turned))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("kind", ["noise", "motion", "bias"])
def test_two_cases_are_shifted_differently(kind: str) -> None:
    one, other = (shifts.shifted(image(), BY_NAME[f"{kind}_2"], c).voxels for c in ("c1", "c2"))
    assert np.abs(one - other).max() > 1


@pytest.mark.parametrize("shift", shifts.SHIFTS, ids=lambda s: s.name)
def test_a_stronger_shift_changes_more(shift: shifts.Shift) -> None:
    volume = image()
    change = [
        np.abs(shifts.shifted(volume, shifts.View(shift, n), "c1").voxels - volume.voxels).mean()
        for n in (1, 2, 3)
    ]
    assert all(more > 1.2 * less for less, more in pairwise(change))


@EVERY
def test_units_of_the_scanner_do_not_matter(name: str) -> None:
    volume = image()
    bright = replace(volume, voxels=volume.voxels * 1000)
    one, other = (shifts.shifted(v, BY_NAME[name], "c1").voxels for v in (volume, bright))
    np.testing.assert_allclose(other / 1000, one, rtol=1e-3, atol=0.05)


@EVERY
def test_an_image_without_structure_stays_finite(name: str) -> None:
    for shape in ((1, 1, 1), (4, 1, 5)):
        volume = Volume(np.full((1, *shape), 7, np.float32), np.eye(4), "scanner")
        assert np.isfinite(shifts.shifted(volume, BY_NAME[name], "c1").voxels).all()


def test_noise_has_the_stated_share_of_the_range() -> None:
    volume = image("HU", (40, 40, 40))
    added = shifts.shifted(volume, BY_NAME["noise_2"], "c1").voxels - volume.voxels
    low, high = np.percentile(volume.voxels, shifts.ENDS)
    assert added.std() == pytest.approx(0.03 * (high - low), rel=0.02)
    assert abs(added.mean()) < 0.02 * added.std()


def test_noise_of_a_magnitude_image_stays_above_zero_and_lifts_the_air() -> None:
    out = shifts.shifted(image(), BY_NAME["noise_3"], "c1").voxels
    air = image().voxels == 0
    low, high = np.percentile(image().voxels, shifts.ENDS)
    assert out.min() >= 0
    # mean of a Rayleigh distribution
    assert out[air].mean() == pytest.approx(0.09 * (high - low) * np.sqrt(np.pi / 2), rel=0.05)


def test_blur_spreads_a_point_by_the_stated_mm() -> None:
    voxels = np.zeros((1, 41, 41, 41), np.float32)
    voxels[0, 20, 20, 20] = 1e4
    out = shifts.shifted(Volume(voxels, AFFINE, "HU"), BY_NAME["blur_3"], "c1").voxels[0]
    for axis, spacing in enumerate((1.0, 1.5, 2.0)):
        profile = out.sum(tuple({0, 1, 2} - {axis}))
        at = (np.arange(41) - 20) * spacing
        assert np.sqrt((profile * at**2).sum() / profile.sum()) == pytest.approx(3, rel=0.05)


def test_motion_makes_ghosts_a_quarter_of_the_image_apart() -> None:
    voxels = np.zeros((1, 3, 64, 3), np.float32)
    voxels[0, :, 30:34] = 100
    out = shifts.shifted(Volume(voxels, np.eye(4), "scanner"), BY_NAME["motion_3"], "c1").voxels
    line = out[0, 1, :, 1]
    ghosts = line[[14, 15, 16, 46, 47, 48]].max()
    between = line[[22, 23, 24, 38, 39, 40]].max()
    assert ghosts > 5 and ghosts > 2 * between


def test_a_bias_field_is_smooth_and_within_its_ends() -> None:
    volume = Volume(np.full((1, 20, 20, 20), 100, np.float32), np.eye(4), "scanner")
    field = shifts.shifted(volume, BY_NAME["bias_2"], "c1").voxels[0] / 100
    assert 1 / 1.4 - 1e-4 <= field.min() < field.max() <= 1.4 + 1e-4
    assert max(field.max(), 1 / field.min()) == pytest.approx(1.4, rel=1e-3)
    assert max(np.abs(np.diff(field, axis=a)).max() for a in range(3)) < 0.15


def test_a_bias_field_leaves_air_in_ct_as_it_is() -> None:
    volume = image("HU")
    out = shifts.shifted(volume, BY_NAME["bias_3"], "c1").voxels
    air = volume.voxels == -1000
    np.testing.assert_allclose(out[air], -1000, atol=1e-3)


def test_thick_slices_average_along_the_coarsest_axis_alone() -> None:
    volume = image("HU", (8, 8, 32))
    out = shifts.shifted(volume, BY_NAME["slices_3"], "c1").voxels[0]
    # 64 mm in 8 slices of 8 mm: four of the image's each, whose means lie between their centers
    means = volume.voxels[0].reshape(8, 8, 8, 4).mean(3)
    wanted = 7 / 8 * means[..., 1:-1] + (means[..., :-2] + means[..., 2:]) / 16
    middle = (out[..., 1::4] + out[..., 2::4])[..., 1:-1] / 2
    np.testing.assert_allclose(middle, wanted, atol=1e-2)
    along_x = replace(volume, voxels=volume.voxels.transpose(0, 3, 2, 1),
                      affine=np.diag([2.0, 1.5, 1.0, 1.0]))  # fmt: skip
    turned = shifts.shifted(along_x, BY_NAME["slices_3"], "c1").voxels[0]
    np.testing.assert_allclose(turned.transpose(2, 1, 0), out, atol=1e-3)


def test_thick_slices_keep_a_constant_and_a_ramp() -> None:
    ramp = np.broadcast_to(np.arange(40, dtype=np.float32), (1, 2, 2, 40))
    out = shifts.shifted(Volume(ramp, np.eye(4), "HU"), BY_NAME["slices_2"], "c1").voxels
    np.testing.assert_allclose(out[..., 3:-3], ramp[..., 3:-3], atol=1e-4)
    flat = Volume(np.full((1, 3, 3, 37), 5, np.float32), np.eye(4), "HU")
    np.testing.assert_allclose(shifts.shifted(flat, BY_NAME["slices_2"], "c1").voxels, 5, atol=1e-5)


def test_slices_that_are_thick_already_stay() -> None:
    volume = image()
    thick = replace(volume, affine=np.diag([1.0, 1.0, 6.0, 1.0]))
    for name in ("slices_1", "slices_2"):
        np.testing.assert_array_equal(
            shifts.shifted(thick, BY_NAME[name], "c1").voxels, volume.voxels
        )
    assert (shifts.shifted(thick, BY_NAME["slices_3"], "c1").voxels != volume.voxels).any()


def test_contrast_of_ct_is_stretched_about_water() -> None:
    ramp = np.linspace(-1000, 1000, 4001, dtype=np.float32).reshape(1, 1, 1, -1)
    out = shifts.shifted(Volume(ramp, np.eye(4), "HU"), BY_NAME["contrast_2"], "c1").voxels
    inside = np.abs(ramp) < 600
    np.testing.assert_allclose(out[inside], 1.5 * ramp[inside], rtol=1e-5, atol=1e-3)
    assert out.min() >= -1000 and out.max() <= 1000


def test_contrast_is_more_than_a_normalisation_undoes() -> None:
    volume = image()
    out = shifts.shifted(volume, BY_NAME["contrast_2"], "c1").voxels

    def scaled(x: np.ndarray) -> np.ndarray:
        return (x - x.mean()) / x.std()

    assert np.abs(scaled(out) - scaled(volume.voxels)).max() > 0.1


def test_rotation_turns_by_the_stated_degrees_in_mm() -> None:
    shape = (61, 41, 3)
    x, y = np.meshgrid(np.arange(61) - 30.0, (np.arange(41) - 20) * 1.5, indexing="ij")
    blob = np.exp(-((x - 20) ** 2 + y**2) / 18)
    volume = Volume(
        np.broadcast_to(blob[..., None], shape)[None].astype(np.float32), AFFINE, "relative"
    )
    out = shifts.shifted(volume, BY_NAME["rotation_2"], "c1").voxels[0, :, :, 1]
    at = np.array([(out * x).sum(), (out * y).sum()]) / out.sum()
    assert np.hypot(*at) == pytest.approx(20, abs=0.1)
    assert abs(np.degrees(np.arctan2(at[1], at[0]))) == pytest.approx(10, abs=0.2)


@EVERY
def test_labels_follow_the_anatomy(name: str) -> None:
    volume = image("HU")
    labels = (volume.voxels[0] > 120).astype(np.uint8) + (volume.voxels[0] > -500)
    out = shifts.shifted(volume, BY_NAME[name], "c1").voxels[0]
    there = shifts.shifted_labels(labels, volume, BY_NAME[name], "c1")
    assert there.dtype == labels.dtype and set(np.unique(there)) <= {0, 1, 2}
    if BY_NAME[name].shift.turns:
        assert (there != labels).any()
        inside = out > -500
        assert 2 * (inside & (there > 0)).sum() / (inside.sum() + (there > 0).sum()) > 0.97
    else:
        np.testing.assert_array_equal(there, labels)


def test_the_grid_moves_by_one_voxel_and_the_anatomy_stays() -> None:
    volume = image()
    out = shifts.moved(volume)
    assert out.voxels.shape == volume.voxels.shape
    np.testing.assert_array_equal(out.voxels[:, :-1, :-1, :-1], volume.voxels[:, 1:, 1:, 1:])
    np.testing.assert_allclose(out.affine @ [0, 0, 0, 1], volume.affine @ [1, 1, 1, 1])


def test_a_plane_has_nowhere_to_move_to() -> None:
    volume = image(shape=(6, 1, 4))
    np.testing.assert_array_equal(shifts.moved(volume).voxels[:, :-1, :, :-1],
                                  volume.voxels[:, 1:, :, 1:])  # fmt: skip


def test_an_unknown_view_is_named_with_the_nearest() -> None:
    assert shifts.view("blur_2").strength == 2.0
    with pytest.raises(UnknownNameError, match="Did you mean 'noise_1'"):
        shifts.view("noise1")


# --- cases -----------------------------------------------------------------------------------


def test_a_region_turns_with_its_image_and_only_then() -> None:
    volume = image("HU")
    mask = volume.voxels[0] > 120
    whole = case(volume, Region(lambda: (mask, AFFINE), lambda: "mask"))
    turned = shifted_case(whole, BY_NAME["rotation_3"]).region
    assert turned is not None and turned.digest() != "mask"
    found, affine = turned.load()
    assert found.dtype == np.bool_ and (found != mask).any()
    np.testing.assert_array_equal(affine, AFFINE)
    blurred = shifted_case(whole, BY_NAME["blur_3"]).region
    assert blurred is not None and blurred.digest() == "mask"
    off = shifted_case(whole, None)
    assert off.region is not None
    there, where = off.region.load()
    np.testing.assert_array_equal(there[:-1, :-1, :-1], mask[1:, 1:, 1:])
    np.testing.assert_allclose(where, off.load().affine)


def test_features_are_kept_apart_by_view_and_by_whose_they_are() -> None:
    one = case(image())
    cases = [one, replace(one, id="c2")]
    identity = DataIdentity("images", "all")
    names = [shifted_identity(identity, v, cases).images_sha for v in (*shifts.VIEWS, None)]
    assert len({*names, "images"}) == 23
    view = BY_NAME["blur_1"]
    assert shifted_identity(identity, view, cases[::-1]) == shifted_identity(identity, view, cases)
    assert shifted_identity(identity, view, cases[:1]) != shifted_identity(identity, view, cases)
    digests = {shifted_case(one, v).digest() for v in (*shifts.VIEWS, None)}
    assert len({*digests, one.digest()}) == 23
