"""The radiomics control: published values, what it looks at, and what it does without MIRP."""

import csv
import logging
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tomoprobe.benchmark.errors import EncoderError, ManifestError
from tomoprobe.submissions.architectures import _radiomics, radiomics
from tomoprobe.submissions.load import load

needs_mirp = pytest.mark.skipif(
    not _radiomics.available(), reason="needs the extra 'radiomics' (MIRP)"
)

PHANTOM = (
    "1 4 4 1 1  1 4 6 1 1  4 1 6 4 1  4 4 6 4 1 "
    "1 4 4 1 1  1 1 6 1 1  . 1 3 1 1  4 4 6 1 1 "
    "1 4 4 . .  1 1 1 1 1  1 1 . 1 1  1 1 6 1 1 "
    "1 4 4 . .  1 1 1 1 1  1 1 1 1 1  1 1 6 1 1 "
)
"""Grey levels of the IBSI digital phantom, 5 x 4 x 4 voxels, x fastest; a dot is outside of the
region (figure in chapter 5 of the reference manual)."""

PHANTOM_MM = 2.0
"""Edge of its voxels."""

LENGTHS = {
    "morph_volume": 3,
    "morph_vol_approx": 3,
    "morph_integ_int": 3,
    "morph_area_mesh": 2,
    "morph_av": -1,
    "morph_com": 1,
    "morph_diam": 1,
    "morph_pca_maj_axis": 1,
    "morph_pca_min_axis": 1,
    "morph_pca_least_axis": 1,
}
"""Powers of length: the encoder's unit is the voxel."""


def published():
    path = Path(__file__).with_name("ibsi_digital_phantom.csv")
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines))


def phantom():
    """(2, 5, 4, 4): grey levels and the region."""
    levels = [0 if level == "." else int(level) for level in PHANTOM.split()]
    image = np.array(levels, np.float32).reshape(4, 4, 5).transpose(2, 1, 0)
    return np.stack([image, image > 0])


def network(readout="all", bins=32):
    return radiomics.build(shape=(8, 8, 8), channels=2, readout=readout, bins=bins)


def embed(net, image, region):
    x = np.stack([image, region])[None].astype(np.float32)
    return dict(zip(net.feature_names, net.embed(torch.from_numpy(x))[0].numpy(), strict=True))


def blob(seed=0, n=12):
    """A noisy image with values between 0 and 1, and a region in its middle."""
    rng = np.random.default_rng(seed)
    region = np.zeros((n, n, n), bool)
    region[3:8, 2:8, 4:9] = rng.random((5, 6, 5)) > 0.1
    return rng.random((n, n, n)).astype(np.float32), region


# --- published values -----------------------------------------------------------------------------


@needs_mirp
def test_every_feature_has_the_value_that_the_ibsi_published():
    found = embed(network(bins=6), *phantom())
    reference = published()
    assert sorted(row["feature"] for row in reference) == sorted(found)
    wrong = {}
    for row in reference:
        value = float(found[row["feature"]]) * PHANTOM_MM ** LENGTHS.get(row["feature"], 0)
        expected = float(row["value"])
        if row["tolerance"]:
            agrees = abs(value - expected) <= float(row["tolerance"])
        else:  # values are given to three significant digits
            agrees = float(f"{value:.3g}") == expected
        if not agrees:
            wrong[row["feature"]] = (value, expected)
    assert not wrong


# --- what the features depend on ------------------------------------------------------------------


@needs_mirp
def test_only_what_is_inside_the_region_counts():
    net = network()
    image, region = blob()
    elsewhere = np.where(region, image, 7 - image)
    assert embed(net, elsewhere, region) == embed(net, image, region)


@needs_mirp
def test_features_ignore_where_the_region_lies_and_how_the_axes_run():
    net = network()
    image, region = blob()
    expected = embed(net, image, region)
    moved = [np.roll(a, (3, -2, 1), axis=(0, 1, 2)) for a in (image, region)]
    assert embed(net, *moved) == pytest.approx(expected, rel=1e-4)
    for order in ((0, 2, 1), (2, 0, 1)):
        turned = [a.transpose(order)[::-1] for a in (image, region)]
        # the mesh's volume and area depend a little on the order of its triangles
        assert embed(net, *turned) == pytest.approx(expected, rel=2e-2, abs=1e-4)


@needs_mirp
def test_texture_does_not_depend_on_the_unit_of_the_intensities():
    net = network("texture")
    image, region = blob()
    scaled = image.astype(np.float64) * 512 + 64  # powers of two: no rounding moves a voxel's bin
    assert embed(net, scaled, region) == pytest.approx(embed(net, image, region), rel=1e-3)


@needs_mirp
def test_texture_sees_what_the_histogram_cannot():
    image, region = blob()
    values = np.sort(image[region])
    smooth = image.copy()
    smooth[region] = values
    first, other = (embed(network("first_order"), i, region) for i in (image, smooth))
    assert other == pytest.approx(first, rel=1e-4)
    noise, ramp = (embed(network("texture"), i, region) for i in (image, smooth))
    assert ramp["cm_corr"] > noise["cm_corr"] + 0.5


@needs_mirp
def test_a_larger_region_has_a_larger_volume_and_the_same_shape():
    small, large = np.zeros((2, 20, 20, 20), bool)
    small[5:9, 5:9, 5:9] = True
    large[3:11, 3:11, 3:11] = True
    net = network("morphology")
    one, two = (embed(net, np.ones((20, 20, 20)), region) for region in (small, large))
    assert two["morph_vol_approx"] == 8 * one["morph_vol_approx"] == 512
    assert two["morph_vol_dens_aabb"] == pytest.approx(one["morph_vol_dens_aabb"], rel=0.1)


@needs_mirp
@pytest.mark.parametrize("corner", [(1, 1, 1), (2, 1, 1), (4, 4, 1)], ids=str)
@pytest.mark.parametrize("flat", [True, False])
def test_a_tiny_or_flat_region_has_finite_features(corner, flat):
    image, region = np.ones((8, 8, 8)) * 0.5, np.zeros((8, 8, 8), bool)
    region[tuple(slice(1, 1 + n) for n in corner)] = True
    if not flat:
        image = np.random.default_rng(0).random((8, 8, 8))
    found = embed(network(), image, region)
    assert all(np.isfinite(value) for value in found.values())
    assert found["stat_mean"] == pytest.approx(image[region].mean(), abs=1e-6)
    if max(corner) == 1:
        assert found["morph_pca_flatness"] == found["cm_contrast"] == 0  # not defined


@needs_mirp
def test_nothing_is_printed_logged_or_drawn_at_random(capfd, caplog):
    net = network()
    handlers, state = list(logging.root.handlers), random.getstate()
    with caplog.at_level(logging.INFO):
        embed(net, *blob())
    assert logging.root.handlers[: len(handlers)] == handlers
    assert random.getstate() == state
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


# --- the body -------------------------------------------------------------------------------------


def tissue(shape, seed=0, level=0.6):
    return np.random.default_rng(seed).normal(level, 0.05, shape).clip(0.3, 1)


def test_the_body_is_the_largest_thing_in_the_air():
    image = np.random.default_rng(1).uniform(0, 0.05, (16, 16, 16))  # noise, as in MR
    patient = np.zeros(image.shape, bool)
    patient[3:13, 3:13, 2:14] = True
    image[patient] = tissue(image.shape)[patient]
    image[:1, :8] = 0.6  # the table
    np.testing.assert_array_equal(radiomics.body(image, 0, 1), patient)


def test_without_air_all_of_the_image_is_body_but_not_its_padding():
    image = np.full((16, 16, 16), 1e-9)  # padding, after the rounding of a transform
    inside = (slice(2, 14), slice(0, 16), slice(5, 11))
    image[inside] = tissue((12, 16, 6))
    image[inside][:6] /= 3  # darker tissue, such as cerebrospinal fluid
    image[inside][3, 5, 2] = 0  # one voxel below the lower percentile
    expected = np.zeros(image.shape, bool)
    expected[inside] = True
    np.testing.assert_array_equal(radiomics.body(image, 0, 1), expected)


def test_a_few_bright_voxels_do_not_make_the_rest_air():
    image = tissue((16, 16, 16), level=0.35) / 2.5
    image[2:5, 2:5, 2:5] = 1.0
    assert radiomics.body(image, 0, 1).all()


def test_the_body_of_a_mask_is_its_largest_part():
    image = np.zeros((16, 16, 16))
    image[4:10, 4:9, 3:12] = 1
    organ = image.astype(bool)
    image[13, 13, 13] = 1
    np.testing.assert_array_equal(radiomics.body(image, 0, 1), organ)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_all_of_a_constant_image_is_body(level):
    assert radiomics.body(np.full((4, 5, 6), level), 0, 1).all()


def test_the_body_does_not_depend_on_the_range_of_the_transform():
    image = np.zeros((12, 12, 12))
    image[3:9, 3:9, 3:9] = tissue((6, 6, 6))
    expected = radiomics.body(image, 0, 1)
    np.testing.assert_array_equal(radiomics.body(image * 4 - 2, -2, 2), expected)


@needs_mirp
def test_without_a_region_the_body_is_described():
    net = network()
    image = np.zeros((12, 12, 12), np.float32)
    image[3:9, 3:9, 3:9] = tissue((6, 6, 6))
    body = radiomics.body(image, 0, 1)
    assert 0 < body.sum() < body.size
    assert embed(net, image, np.zeros_like(image)) == embed(net, image, body)


# --- loading --------------------------------------------------------------------------------------


@needs_mirp
def test_readouts_are_parts_of_the_whole():
    image, region = blob()
    whole = embed(network(), image, region)
    parts = [embed(network(readout), image, region) for readout in radiomics.READOUTS[1:]]
    assert {name: value for part in parts for name, value in part.items()} == whole
    assert sum(map(len, parts)) == len(whole)


@needs_mirp
def test_the_baseline_wants_a_region_and_names_its_features():
    encoder = load("radiomics")
    assert encoder.card.region and encoder.card.strides == ()
    assert len(encoder.module.feature_names) == len(set(encoder.module.feature_names)) == 159
    with pytest.raises(EncoderError, match="has no maps"):
        encoder.maps(torch.zeros(1, 2, 8, 8, 8))


@needs_mirp
def test_without_a_regions_channel_it_is_refused():
    with pytest.raises(ManifestError, match="region = true"):
        load("radiomics", arguments={"bins": 16})


def test_without_mirp_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mirp", None)
    monkeypatch.setattr(_radiomics, "find_spec", lambda name: None)
    assert not _radiomics.available()
    with pytest.raises(EncoderError, match=r"pip install 'tomoprobe\[radiomics\]'"):
        load("radiomics")


@needs_mirp
def test_another_version_of_mirp_is_refused(monkeypatch):
    changed = {**_radiomics.FEATURES, "stat": "mean var skew unheard_of"}
    monkeypatch.setattr(_radiomics, "FEATURES", changed)
    with pytest.raises(EncoderError, match="stat_unheard_of"):
        network()


def test_listing_and_asking_for_mirp_import_neither_it_nor_torch():
    code = (
        "import sys\n"
        "from tomoprobe.submissions import listing\n"
        "from tomoprobe.submissions.architectures import _radiomics\n"
        "assert 'radiomics' in [card.name for card in listing.encoders(None)]\n"
        "assert 'radiomics' in listing.architectures()\n"
        "_radiomics.available()\n"
        "print([name for name in ('mirp', 'itk', 'skimage', 'torch') if name in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
