from dataclasses import replace
from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tomoprobe.benchmark.errors import EncoderError, VolumeError
from tomoprobe.benchmark.grids import (
    mask_to_grid,
    plan,
    resample,
    resolve,
    tile_count,
    to_tiles,
)
from tomoprobe.benchmark.types import EncoderCard, Grid, MinMax, Volume, Window, ZScore
from tomoprobe.benchmark.volumes import from_array, read_mask, read_nifti

IDENTITY = Window(0, 1)


def card_of(shape=(16, 16, 16), spacing=(1.0, 1.0, 1.0), axes="RAS", intensity=IDENTITY, **facts):
    """A card that takes every unit by one transform."""
    return EncoderCard(
        name="test",
        title="Test",
        grid=Grid(shape, spacing, axes),
        intensity={unit: intensity for unit in ("HU", "scanner", "relative")},
        width=1,
        **facts,
    )


def noise(shape=(12, 13, 14), spacing=(1.0, 1.0, 1.0), unit="scanner", seed=0) -> Volume:
    return from_array(np.random.default_rng(seed).random(shape), spacing, unit)


def rotation(angle: float) -> np.ndarray:
    u = np.array([3.0, -1.0, 2.0]) / np.sqrt(14)
    cross = np.array([[0, -u[2], u[1]], [u[2], 0, -u[0]], [-u[1], u[0], 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def affine_of(codes: str, spacing, angle: float = 0.0) -> np.ndarray:
    rows = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    columns = np.zeros((3, 3))
    for axis, code in enumerate(codes):
        row, sign = rows[code]
        columns[row, axis] = sign * spacing[axis]
    affine = np.eye(4)
    affine[:3, :3] = rotation(angle) @ columns
    affine[:3, 3] = (20.0, -55.0, 310.0)
    return affine


def index_of(shape) -> np.ndarray:
    """(X, Y, Z, 3) indices."""
    return np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)


def place(affine: np.ndarray, index: np.ndarray) -> np.ndarray:
    return index @ affine[:3, :3].T + affine[:3, 3]


def centroid(weights: np.ndarray) -> np.ndarray:
    return np.tensordot(weights / weights.sum(), index_of(weights.shape), axes=3)


# --- a landmark, followed through every step ----------------------------------------------------

SCANS = {
    "RAS": ("RAS", 0.0),
    "LPS": ("LPS", 0.0),
    "PSR": ("PSR", 0.0),
    "LIA": ("LIA", 0.0),
    "oblique": ("LPS", 0.4),
    "oblique, permuted": ("SLA", -0.6),
}


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("axes", ["RAS", "LPS", "PSR", "LIA", "SAL"])
@pytest.mark.parametrize("tiling", ["crop", "tiles"])
def test_a_landmark_and_its_mask_keep_their_place_in_the_scanner(scan, axes, tiling, tmp_path):
    rng = np.random.default_rng([list(SCANS).index(scan), ord(axes[0]), ord(axes[2]), len(tiling)])
    codes, angle = SCANS[scan]
    spacing = rng.permutation([0.9, 1.3, 2.5])
    shape = tuple(int(n) for n in 70 / spacing + rng.integers(0, 3, 3))
    affine = affine_of(codes, spacing, angle)
    landmark = place(affine, np.array(shape) * rng.uniform(0.4, 0.6, 3))
    distance = np.linalg.norm(place(affine, index_of(shape)) - landmark, axis=-1)
    blob = np.exp(-((distance / 5) ** 2) / 2)
    nib.Nifti1Image(blob.astype(np.float32), affine).to_filename(tmp_path / "image.nii.gz")
    nib.Nifti1Image((distance < 8).astype(np.uint8), affine).to_filename(tmp_path / "mask.nii.gz")

    volume = read_nifti(tmp_path / "image.nii.gz", "scanner")
    mask, mask_affine = read_mask(tmp_path / "mask.nii.gz", [1])
    grid_spacing = tuple(rng.uniform(1.0, 2.2, 3))
    grid_shape = tuple(int(n) for n in 48 / np.array(grid_spacing) + rng.integers(0, 3, 3))
    card = card_of(grid_shape, grid_spacing, axes, tiling=tiling, overlap=0.6)
    box = (66.0, 60.0, 69.0)
    tiles = to_tiles(volume, card, box)[:, 0]
    masks = mask_to_grid(mask, mask_affine, card, box)
    layout = plan(volume.voxels.shape[1:], volume.affine, card, box)

    whole = np.argmax(tiles.sum((1, 2, 3)))  # the tile that holds all of the blob
    for seen in (tiles[whole], masks[whole].astype(float)):
        found = centroid(seen)
        expected = place(np.linalg.inv(layout.affines[whole]), landmark)
        assert np.abs(found - expected).max() < 0.5
    peak = np.unravel_index(np.argmax(tiles[whole]), tiles[whole].shape)
    assert masks[whole][peak] == 1


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 30)] * 3),
    spacing=st.tuples(*[st.floats(0.4, 4.0)] * 3),
    grid=st.tuples(*[st.integers(1, 20)] * 3),
    mm=st.none() | st.tuples(*[st.floats(0.5, 4.0)] * 3),
    axes=st.sampled_from(["RAS", "LPS", "PSR", "LIA", "ASR", "IPR"]),
    tiling=st.sampled_from(["crop", "tiles"]),
    angle=st.sampled_from([0.0, 0.3, -0.5]),
    box=st.none() | st.tuples(*[st.floats(5.0, 150.0)] * 3),
)
def test_every_voxel_of_every_tile_is_where_its_affine_says(
    shape, spacing, grid, mm, axes, tiling, angle, box
):
    affine = affine_of("RAS", spacing, angle)
    # three channels that hold the scanner position: trilinear interpolation keeps them exactly
    voxels = np.moveaxis(place(affine, index_of(shape)), -1, 0).astype(np.float32)
    volume = Volume(voxels, affine, "scanner")
    card = card_of(grid, mm, axes, Window(-1e4, 1e4, -1e4, 1e4), channels=3, tiling=tiling)
    layout = plan(shape, affine, card, box)
    tiles = to_tiles(volume, card, box)
    assert tiles.shape == (len(layout.affines), 3, *grid)
    assert tiles.flags.c_contiguous
    half_box = np.minimum(box or np.inf, np.multiply(shape, spacing)) / 2
    for tile, there in zip(tiles, layout.affines, strict=True):
        position = place(there, index_of(grid))
        voxel = place(np.linalg.inv(affine), position)
        from_center = np.abs(voxel - (np.array(shape) - 1) / 2) * spacing
        is_padding = np.any(from_center > half_box + 1e-6, axis=-1)
        assert np.all(tile[:, is_padding] == -1e4)
        # between the outermost voxel center and the edge, the outermost voxel's value is taken
        nearest = place(affine, np.clip(voxel, 0, np.array(shape) - 1))
        np.testing.assert_allclose(tile[:, ~is_padding], nearest[~is_padding].T, atol=2e-3)


def test_axis_codes_are_transpositions_and_flips_of_the_ras_array():
    volume = noise((9, 10, 11))
    ras = to_tiles(volume, card_of((8, 9, 10)))[0, 0]
    lai = to_tiles(volume, card_of((8, 9, 10), axes="LAI"))[0, 0]
    np.testing.assert_array_equal(lai, ras[::-1, :, ::-1])
    psr = to_tiles(volume, card_of((9, 10, 8), axes="PSR"))[0, 0]
    np.testing.assert_array_equal(psr, ras.transpose(1, 2, 0)[::-1])


def test_shape_and_spacing_are_in_the_models_axis_order():
    volume = noise((8, 12, 20), (2.0, 1.0, 0.5))  # X, Y, Z; 16 x 12 x 10 mm
    card = card_of((12, 20, 8), (1.0, 0.5, 2.0), "ASR")
    expected = volume.voxels[0].transpose(1, 2, 0)
    np.testing.assert_array_equal(to_tiles(volume, card)[0, 0], expected)


# --- resampling --------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 24)] * 3),
    spacing=st.tuples(*[st.floats(0.4, 4.0)] * 3),
    mm=st.tuples(*[st.floats(0.4, 4.0)] * 3),
    scale=st.sampled_from([1.0, 1e6, 1e-6]),
    order=st.permutations(range(3)),
)
def test_resampling_equals_scipy_in_double_precision(shape, spacing, mm, scale, order):
    voxels = np.random.default_rng(0).normal(size=shape) * scale
    volume = from_array(voxels, spacing, "scanner")
    # the same voxels in another memory order
    memory = np.ascontiguousarray(volume.voxels[0].transpose(order)).transpose(np.argsort(order))
    array, affine = resample(replace(volume, voxels=memory[None]), mm)
    size = [
        max(1, int(np.floor(n * a / b + 0.5))) for n, a, b in zip(shape, spacing, mm, strict=True)
    ]
    assert array.shape == (1, *size)
    at = [
        (n - 1) / 2 + (np.arange(m) - (m - 1) / 2) * b / a
        for n, m, a, b in zip(shape, size, spacing, mm, strict=True)
    ]
    expected = ndimage.map_coordinates(
        volume.voxels[0].astype(np.float64),
        np.meshgrid(*at, indexing="ij"),
        order=1,
        mode="nearest",
    )
    assert np.abs(array[0] - expected).max() <= 1e-5 * np.abs(voxels).max()
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), mm)
    np.testing.assert_allclose(place(affine, (np.array(size) - 1) / 2), 0, atol=1e-9)


def test_the_same_spacing_leaves_every_voxel_untouched():
    volume = noise((12, 7, 9), (0.7, 1.1, 3.0))
    array, affine = resample(volume, volume.spacing)
    np.testing.assert_array_equal(array, volume.voxels)
    np.testing.assert_allclose(affine, volume.affine)


def test_half_a_voxel_of_output_is_rounded_up_and_one_is_always_left():
    volume = noise((5, 7, 1))
    assert resample(volume, (2.0, 2.0, 9.0))[0].shape == (1, 3, 4, 1)


def test_a_given_shape_lies_around_the_center_and_repeats_the_edge():
    array, affine = resample(noise((3, 3, 3)), (1, 1, 1), (5, 5, 5))
    np.testing.assert_array_equal(array[0], np.pad(noise((3, 3, 3)).voxels[0], 1, mode="edge"))
    np.testing.assert_allclose(affine[:3, 3], -2)


# --- field of view, crop, padding ---------------------------------------------------------------


def test_a_larger_image_is_cropped_at_its_center_and_an_odd_voxel_goes_at_the_far_end():
    volume = noise((9, 10, 16))
    tile = to_tiles(volume, card_of((6, 6, 6)))[0, 0]
    np.testing.assert_array_equal(tile, volume.voxels[0, 1:7, 2:8, 5:11])


def test_a_smaller_image_is_padded_with_background():
    volume = noise((3, 4, 5), unit="HU")
    tile = to_tiles(volume, card_of((6, 6, 6), intensity=Window(-1, 1, 5, 7)))[0, 0]
    expected = np.full((6, 6, 6), 5.0)
    expected[1:4, 1:5, 0:5] = volume.voxels[0] + 6
    np.testing.assert_allclose(tile, expected, atol=1e-6)


@pytest.mark.parametrize("how", [Window(-100, 100), ZScore(), MinMax(0, 100, -1, 1)])
def test_padding_is_the_least_value_of_the_transform(how):
    tiles = to_tiles(noise((8, 8, 8)), card_of((12, 12, 12), intensity=how))
    assert tiles[0, 0, 0, 0, 0] == pytest.approx(tiles.min())
    assert np.ptp(tiles[0, 0, 0]) == 0


@pytest.mark.parametrize("how", [IDENTITY, ZScore(0, 100), MinMax(0, 100)])
def test_what_lies_outside_the_field_of_view_changes_nothing(how):
    volume = noise((20, 20, 20))
    box = (10.0, 12.0, 8.0)
    card = card_of((14, 14, 14), intensity=how)
    tile = to_tiles(volume, card, box)
    spoiled = np.full_like(volume.voxels, 900.0)
    keep = (slice(None), slice(5, 15), slice(4, 16), slice(6, 14))
    spoiled[keep] = volume.voxels[keep]
    np.testing.assert_array_equal(to_tiles(replace(volume, voxels=spoiled), card, box), tile)
    assert len(np.unique(tile)) == 10 * 12 * 8 + (1 if how == IDENTITY else 0)


def test_a_field_of_view_beyond_the_image_makes_no_empty_tiles():
    volume = noise((16, 16, 16))
    card = card_of((8, 8, 8), tiling="tiles", overlap=0.0)
    assert len(to_tiles(volume, card)) == 8
    np.testing.assert_array_equal(to_tiles(volume, card, (500, 500, 500)), to_tiles(volume, card))


def test_without_spacing_the_field_of_view_just_fits_the_shape():
    volume = noise((40, 30, 20), (1.0, 2.0, 1.0))  # 40 x 60 x 20 mm
    assert resolve(Grid((16, 16, 16)), None, volume).spacing == (3.75,) * 3
    assert resolve(Grid((16, 16, 16)), (32, 8, 8), volume).spacing == (2.0,) * 3
    assert resolve(Grid((30, 10, 10), None, "PIR"), None, volume).spacing == (4.0,) * 3
    grid = Grid((16, 16, 16), (1.0, 2.0, 3.0))
    assert resolve(grid, (32, 8, 8), volume) == grid
    assert to_tiles(volume, card_of(spacing=None)).shape == (1, 1, 16, 16, 16)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 300)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 5.0)] * 3),
    grid=st.tuples(*[st.integers(1, 128)] * 3),
)
def test_without_spacing_nothing_is_cut_off(shape, spacing, grid):
    affine = affine_of("RAS", spacing)
    layout = plan(shape, affine, card_of(grid, None, tiling="tiles"))
    assert len(layout.corners) == 1
    assert any(n == t for n, t in zip(layout.shape, layout.tile, strict=True))


# --- tiles -------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 400), st.integers(1, 128), st.integers(0, 950))
def test_tiles_cover_everything_with_the_least_overlap_and_are_as_few_as_possible(n, tile, mille):
    card = card_of((tile, 1, 1), tiling="tiles", overlap=mille / 1000)
    starts = plan((n, 1, 1), np.eye(4), card).starts[0]
    if n <= tile:
        assert starts == (-((tile - n) // 2),)
        return
    assert starts[0] == 0
    assert starts[-1] == n - tile
    gaps = [b - a for a, b in pairwise(starts)]
    stride = max(1, tile * (1000 - mille) // 1000)  # the widest gap that keeps the overlap
    assert max(gaps) <= stride
    assert max(gaps) - min(gaps) <= 1
    assert (len(starts) - 2) * stride < n - tile  # one tile less would not reach the end


def test_tiles_are_pieces_of_one_image_on_one_scale():
    volume = noise((20, 18, 9))
    for how in (IDENTITY, ZScore(), MinMax()):
        card = card_of((8, 8, 8), intensity=how, tiling="tiles")
        whole = to_tiles(volume, replace(card, grid=Grid((20, 18, 9), (1.0, 1.0, 1.0))))[0, 0]
        tiles = to_tiles(volume, card)
        corners = plan((20, 18, 9), volume.affine, card).corners
        assert len(tiles) == 3 * 3 * 2
        for tile, (x, y, z) in zip(tiles, corners, strict=True):
            np.testing.assert_array_equal(tile[0], whole[x : x + 8, y : y + 8, z : z + 8])


def test_a_crop_has_the_scale_of_the_whole_image():
    volume = noise((20, 18, 9))
    volume.voxels[0, 0, 0, :5] = 40.0
    for how in (IDENTITY, ZScore(), MinMax()):
        whole = to_tiles(volume, card_of((20, 18, 9), intensity=how))[0, 0]
        crop = to_tiles(volume, card_of((8, 8, 8), intensity=how))[0, 0]
        np.testing.assert_array_equal(crop, whole[6:14, 5:13, 0:8])


@pytest.mark.parametrize("tiling", ["crop", "tiles"])
@pytest.mark.parametrize("box", [None, (20.0, 90.0, 15.0)])
def test_tiles_are_counted_without_reading_a_voxel(tiling, box):
    volume = noise((40, 21, 33), (0.9, 2.0, 1.2))
    card = card_of((10, 12, 14), (1.0, 1.5, 1.1), "SRP", tiling=tiling)
    count = tile_count((40, 21, 33), volume.affine, card, box)
    assert count == len(to_tiles(volume, card, box))
    assert (count == 1) == (tiling == "crop")


# --- masks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiling", ["crop", "tiles"])
def test_a_mask_lies_on_the_voxels_of_its_image(tiling):
    labels = (np.random.default_rng(0).random((15, 14, 13)) * 4).astype(np.int32)
    image = from_array(labels, (1.0, 2.0, 1.5), "scanner")
    card = card_of((8, 20, 6), (2.0, 1.5, 1.0), "AIR", Window(0, 9, 0, 9), tiling=tiling)
    same = replace(card, grid=replace(card.grid, spacing=(2.0, 1.5, 1.0)))
    masks = mask_to_grid(labels, image.affine, same)
    # on the image's own spacing, nearest and trilinear are the same voxels
    np.testing.assert_array_equal(masks, to_tiles(image, same)[:, 0])
    coarse = replace(card, grid=replace(card.grid, spacing=(2.7, 2.1, 1.9)))
    masks = mask_to_grid(labels, image.affine, coarse)
    assert masks.dtype == labels.dtype
    assert masks.shape == to_tiles(image, coarse)[:, 0].shape
    assert set(np.unique(masks)) <= {0, 1, 2, 3}


def test_a_nearest_neighbor_halfway_is_the_later_one():
    mask = np.arange(1, 5, dtype=np.int32).reshape(4, 1, 1)
    masks = mask_to_grid(mask, np.eye(4), card_of((2, 1, 1), (2.0, 1.0, 1.0)))
    assert masks.ravel().tolist() == [2, 4]


# --- intensity ---------------------------------------------------------------------------------


def head(scale: float = 1.0) -> Volume:
    """A bright ball with a dark core in noisy air."""
    rng = np.random.default_rng(0)
    radius = np.linalg.norm(index_of((24, 24, 24)) - 11.5, axis=-1)
    voxels = np.where(radius < 9, 0.7, 0.0) - np.where(radius < 4, 0.45, 0.0)
    voxels += np.abs(rng.normal(0, 0.03, voxels.shape))
    return from_array(voxels.clip(0, 1) * scale, (1, 1, 1), "scanner")


@pytest.mark.parametrize("how", [ZScore(), MinMax()])
@pytest.mark.parametrize("scale", [1e6, 255.0, 1e-6, 1e-30, 1e30])
def test_mr_in_0_to_1_and_in_millions_give_the_same_array(how, scale):
    card = card_of((20, 20, 20), (1.3, 1.2, 1.1), intensity=how)
    small, large = to_tiles(head(), card), to_tiles(head(scale), card)
    assert np.ptp(small) > 0.5
    np.testing.assert_allclose(large, small, atol=1e-4)


def test_a_window_maps_hounsfield_units_and_clips_them():
    volume = from_array(np.array([-3024.0, -1000, 0, 1000, 3000]).reshape(5, 1, 1), (1, 1, 1), "HU")
    tile = to_tiles(volume, card_of((5, 1, 1), intensity=Window(-1000, 1000, -1, 1)))
    np.testing.assert_allclose(tile.ravel(), [-1, -1, 0, 1, 1], atol=1e-6)


def test_the_z_score_is_that_of_the_clipped_foreground():
    voxels = head().voxels
    tile = to_tiles(head(), card_of((24, 24, 24), intensity=ZScore(1, 90)))
    foreground = voxels > voxels.mean()
    high = np.percentile(voxels[foreground], 90)
    sample = np.minimum(voxels[foreground], high)
    low = np.percentile(voxels, 1)
    expected = (voxels.clip(low, high) - sample.mean()) / sample.std()
    np.testing.assert_allclose(tile[0], expected, atol=1e-4)


def test_the_z_score_keeps_the_dark_half_of_a_crop_without_air():
    values = np.random.default_rng(0).permutation(1000).reshape(10, 10, 10)
    tile = to_tiles(
        from_array(values, (1, 1, 1), "scanner"), card_of((10,) * 3, intensity=ZScore())
    )
    assert len(np.unique(tile)) > 980


def test_the_min_max_takes_its_percentiles_from_the_volume():
    volume = noise((16, 16, 16))
    tile = to_tiles(volume, card_of(intensity=MinMax(5, 95, -1, 3)))
    low, high = np.percentile(volume.voxels, [5, 95])
    expected = (volume.voxels.clip(low, high) - low) / (high - low) * 4 - 1
    np.testing.assert_allclose(tile[0], expected, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, -1000.0, 1e6, 1e30])
@pytest.mark.parametrize("how", [ZScore(), MinMax(0.5, 99.5, -1, 1), Window(-1000, 1000)])
def test_a_constant_image_stays_finite_and_constant(value, how):
    volume = from_array(np.full((9, 9, 9), value), (0.7, 1.3, 1), "scanner")
    tiles = to_tiles(volume, card_of((6, 6, 6), intensity=how))
    assert np.isfinite(tiles).all()
    assert np.ptp(tiles) < 1e-6


@pytest.mark.parametrize("how", [ZScore(), MinMax()])
@pytest.mark.parametrize("bright", [1, 300])
def test_an_image_of_two_values_keeps_both(how, bright):
    voxels = np.zeros(1000)
    voxels[:bright] = 7
    tiles = to_tiles(
        from_array(voxels.reshape(10, 10, 10), (1, 1, 1), "scanner"),
        card_of((10, 10, 10), intensity=how),
    )
    assert np.isfinite(tiles).all()
    assert len(np.unique(tiles)) == 2


def test_channels_are_scaled_each_by_its_own_statistics():
    one = noise((8, 8, 8)).voxels
    volume = Volume(np.concatenate([one, one * 1000 + 5]), np.eye(4), "scanner")
    tiles = to_tiles(volume, card_of((8, 8, 8), intensity=ZScore(), channels=2))
    np.testing.assert_allclose(tiles[:, 0], tiles[:, 1], atol=1e-3)


def test_one_channel_is_repeated_for_a_model_that_wants_three():
    tiles = to_tiles(noise(), card_of((8, 8, 8), channels=3, tiling="tiles"))
    assert tiles.shape[1:] == (3, 8, 8, 8)
    assert tiles.flags.c_contiguous
    for channel in (1, 2):
        np.testing.assert_array_equal(tiles[:, channel], tiles[:, 0])


# --- what is refused ---------------------------------------------------------------------------


def test_a_unit_that_the_card_does_not_name_is_refused_but_relative_is_taken_as_it_is():
    card = replace(card_of((12, 13, 14)), intensity={"HU": Window(-1000, 1000)})
    with pytest.raises(EncoderError, match=r"'scanner'; it accepts \['HU'\]"):
        to_tiles(noise(), card)
    volume = noise(unit="relative")
    np.testing.assert_array_equal(to_tiles(volume, card)[0], volume.voxels)


@pytest.mark.parametrize("channels", [2, 4])
def test_a_channel_count_that_the_model_cannot_take_is_refused_with_both_numbers(channels):
    volume = Volume(np.zeros((channels, 4, 4, 4), np.float32), np.eye(4), "HU")
    with pytest.raises(VolumeError, match=f"{channels} channels.*takes 3"):
        to_tiles(volume, card_of(channels=3))


@pytest.mark.parametrize("codes", ["LPS", "PSR", "RAI", "ARS"])
def test_a_volume_that_is_not_in_ras_order_is_refused(codes):
    volume = Volume(np.zeros((1, 4, 4, 4), np.float32), affine_of(codes, (1, 1, 1)), "HU")
    with pytest.raises(VolumeError, match="not in RAS"):
        to_tiles(volume, card_of())


@pytest.mark.parametrize(
    "facts",
    [
        {"axes": "RAA"},
        {"axes": "RA"},
        {"axes": "XYZ"},
        {"shape": (0, 4, 4)},
        {"spacing": (1, 0, 1)},
        {"spacing": (1, np.nan, 1)},
        {"overlap": 1.0},
        {"overlap": -0.1},
        {"intensity": Window(1, 1)},
        {"intensity": Window(0, np.inf)},
        {"intensity": ZScore(99, 1)},
        {"intensity": MinMax(-1, 99)},
    ],
)
def test_a_card_that_makes_no_sense_is_refused(facts):
    with pytest.raises(EncoderError, match=r"expected|Correct|correct"):
        to_tiles(noise(), card_of(**facts))


@pytest.mark.parametrize("tiling", ["crop", "tiles"])
def test_a_result_that_would_not_fit_in_memory_is_refused(tiling):
    # a header may state voxels of a hundred meters
    volume = Volume(np.zeros((1, 9, 9, 9), np.float32), np.diag([1e5, 1e5, 1e5, 1]), "HU")
    with pytest.raises(VolumeError, match="at 1 x 1 x 1 mm for 'test' promises"):
        to_tiles(volume, card_of(tiling=tiling))


# --- real data ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("soft_tissue_sarcoma/STS_001/ct.nii.gz", "HU"),
        ("soft_tissue_sarcoma/STS_001/mr.nii.gz", "scanner"),
        ("ixi10/nifti/IXI012-HH-1211-T1_ds.nii.gz", "scanner"),
        ("Task04_Hippocampus/imagesTr/hippocampus_001.nii.gz", "scanner"),
        ("Task04_Hippocampus/imagesTr/hippocampus_003.nii.gz", "scanner"),
    ],
)
def test_real_images_become_finite_tiles_with_contrast(path, unit, data_root):
    if not (data_root / path).is_file():
        pytest.skip(f"{path} is not under the data root")
    volume = read_nifti(data_root / path, unit)
    how = Window(-1000, 1000) if unit == "HU" else ZScore()
    for card in (
        card_of((32, 32, 32), (2.0, 2.0, 2.0), "LAI", how, tiling="tiles"),
        card_of((48, 48, 48), None, "RAS", how),
    ):
        tiles = to_tiles(volume, card)
        assert np.isfinite(tiles).all()
        assert tiles.std() > 0.05
        assert np.abs(tiles).max() < 50
