"""The label engine and the view engine: what they draw, how fast, and from which randomness."""

import time

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from tomoprobe.benchmark.errors import MaskError
from tomoprobe.submissions.baselines import _synthesis as synthesis
from tomoprobe.submissions.baselines import _views as views
from tomoprobe.submissions.baselines._templates import Templates, fitted
from tomoprobe.submissions.baselines.anatomix import write_samples

SHAPE = (32, 32, 32)


def dice(*seed):
    return synthesis.Dice(np.random.default_rng(seed))


def test_the_same_generator_gives_the_same_pair_and_another_gives_another():
    def pair(seed):
        drawn = dice(seed)
        labels = synthesis.label_map(drawn, SHAPE)
        return labels, views.view(drawn, labels), views.view(drawn, labels)

    first, again, other = pair(1), pair(1), pair(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[1], first[2])


def test_torchs_own_random_state_has_no_say():
    torch.manual_seed(0)
    first = synthesis.label_map(dice(5), SHAPE)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(synthesis.label_map(dice(5), SHAPE), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_pair_at_32_cubed_takes_less_than_a_quarter_of_a_processor_second():
    def pair(seed):
        drawn = dice(seed)
        labels = synthesis.label_map(drawn, SHAPE)
        return [views.view(drawn, labels) for _ in range(2)]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pair(0)  # the first call imports and plans
        start = time.process_time()
        for seed in range(8):
            pair(seed)
        assert (time.process_time() - start) / 8 < 0.25
    finally:
        torch.set_num_threads(threads)


def test_label_maps_hold_20_to_39_shapes_two_thirds_have_a_body_and_a_third_an_envelope():
    count, bodies, envelopes = 240, 0, 0
    shape = (16, 16, 16)
    templates = torch.zeros((25, *shape), dtype=torch.uint8)  # so that only the body shows
    for seed in range(count):
        labels = synthesis.label_map(dice(seed), shape, templates)
        found = set(labels.unique().tolist())
        assert found <= {0, 1, 27}
        bodies += bool(found - {0})
        envelopes += 27 in found
    assert bodies / count == pytest.approx(2 / 3, abs=0.1)
    assert envelopes / count == pytest.approx(1 / 3, abs=0.1)
    rng = np.random.default_rng(0)
    assert {synthesis.shape_count(rng) for _ in range(500)} == set(range(20, 40))


def test_label_maps_are_made_of_regions_and_not_of_specks():
    shares = []
    for seed in range(12):
        labels = synthesis.label_map(dice(seed), SHAPE).numpy()
        assert len(np.unique(labels)) >= 6
        shares.append((labels[1:] == labels[:-1]).mean())
    assert min(shares) > 0.75  # neighbours are mostly of one label
    assert max(shares) < 0.99


def test_the_last_shape_written_covers_the_others(monkeypatch):
    monkeypatch.setattr(synthesis, "FOREGROUND_SHARE", 0.0)
    everywhere = torch.ones((3, *SHAPE), dtype=torch.uint8)
    assert synthesis.label_map(dice(0), SHAPE, everywhere).unique().tolist() == [3]


def test_a_transformed_template_keeps_its_volume_in_the_mean_of_the_scales():
    # The determinant of the map is the product of three scales, whose mean is 1; what leaves the
    # grid comes in again, so the share of voxels stays the same.
    template = torch.zeros(SHAPE, dtype=torch.uint8)
    template[8:24, 8:24, 8:24] = 1
    shares, places = [], []
    for seed in range(60):
        moved = synthesis.transformed(dice(seed), template)
        assert set(moved.unique().tolist()) <= {0, 1}
        shares.append(moved.float().mean().item())
        places.append(moved.numpy())
    assert np.mean(shares) == pytest.approx(1 / 8, rel=0.25)
    assert np.mean(places, 0).std() < 0.1  # anywhere, not only around the middle


def test_without_chance_the_transform_is_scipys_affine_with_wrapping(monkeypatch):
    template = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (8, 12, 10), np.uint8))
    monkeypatch.setattr(synthesis, "SCALE", 0.0)
    monkeypatch.setattr(synthesis, "SHEAR", 0.0)
    monkeypatch.setattr(synthesis, "SHIFT", 0.0)
    turned = []
    monkeypatch.setattr(synthesis, "_rotation", lambda angles: np.eye(3))
    for seed in range(20):
        moved = synthesis.transformed(dice(seed), template).numpy()
        turned.append(
            [
                (x, y, z)
                for x in (1, -1)
                for y in (1, -1)
                for z in (1, -1)
                if np.array_equal(
                    moved,
                    ndimage.affine_transform(
                        template.numpy(), np.diag([x, y, z]), order=0, mode="grid-wrap"
                    ),
                )
            ]
        )
    assert all(len(found) == 1 for found in turned)
    assert len({found[0] for found in turned}) > 4  # reflections of all kinds


def test_rotations_are_rotations_in_the_order_of_the_axes():
    x, y, z = np.eye(3)
    quarter = np.pi / 2
    assert np.allclose(synthesis._rotation(np.array([quarter, 0, 0])) @ y, z)
    assert np.allclose(synthesis._rotation(np.array([0, quarter, 0])) @ z, x)
    assert np.allclose(synthesis._rotation(np.array([0, 0, quarter])) @ x, y)
    both = synthesis._rotation(np.array([quarter, quarter, 0]))
    assert np.allclose(both @ z, x)  # about the second axis first, then the first
    assert np.linalg.det(both) == pytest.approx(1)


def test_the_median_is_that_of_the_voxel_and_its_six_neighbours():
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, 40, (9, 8, 7)).astype(np.int16))
    cross = ndimage.generate_binary_structure(3, 1)
    expected = ndimage.median_filter(labels.numpy(), footprint=cross, mode="nearest")
    assert np.array_equal(synthesis.median(labels).numpy(), expected)


@pytest.mark.parametrize("width", [2.0, 4.0])
def test_the_envelope_is_what_dilation_adds_and_erosion_takes(width):
    inside = np.zeros((64, 64, 64), bool)
    inside[20:44, 18:40, 25:50] = True
    radius = width / 2  # 64 voxels instead of 128
    reach = np.abs(np.indices((5, 5, 5)) - 2)
    ball = (reach**2).sum(0) <= radius**2
    expected = ndimage.binary_dilation(inside, ball) & ~ndimage.binary_erosion(inside, ball)
    found = synthesis.envelope(torch.from_numpy(inside), width).numpy()
    assert np.array_equal(found, expected)


def test_an_envelope_does_not_close_the_body_where_the_grid_ends():
    inside = torch.zeros((32, 32, 32), dtype=torch.bool)
    inside[:, :16] = True
    shell = synthesis.envelope(inside, 4.0)
    assert shell.any(dim=(0, 2)).nonzero().flatten().tolist() == [15, 16]


def test_views_reach_from_0_to_1_and_differ_in_contrast():
    correlations = []
    for seed in range(12):
        drawn = dice(seed)
        labels = synthesis.label_map(drawn, SHAPE)
        pair = [views.view(drawn, labels) for _ in range(2)]
        for image in pair:
            assert image.dtype == torch.float32
            assert (image.min().item(), image.max().item()) == (0.0, 1.0)
        means = [ndimage.mean(image, labels, labels.unique()) for image in pair]
        correlations.append(np.corrcoef(means)[0, 1])
    assert min(correlations) < 0 < max(correlations)


def test_labels_explain_most_of_a_views_grey_levels():
    explained = []
    for seed in range(12):
        drawn = dice(seed)
        labels = synthesis.label_map(drawn, SHAPE)
        image = views.view(drawn, labels).numpy()
        means = np.zeros(64)
        present = np.unique(labels)
        means[present] = ndimage.mean(image, labels, present)
        explained.append(1 - (image - means[labels]).var() / image.var())
    assert np.median(explained) > 0.6
    assert np.median(explained) < 0.99  # and noise and artefacts the rest


def test_grey_levels_follow_the_published_ranges_and_a_quarter_have_a_black_background():
    labels = (torch.arange(32) // 16)[:, None, None].expand(SHAPE)
    black = 0
    for seed in range(200):
        image = views.grey_levels(dice(seed), labels)
        black += bool((image[:16] == 0).all())
    assert black / 200 == pytest.approx(0.25, abs=0.08)


def test_the_bias_field_is_smooth_positive_and_about_one():
    field = views.bias_field(dice(3), torch.Size(SHAPE))
    assert field.shape == SHAPE
    assert field.min() > 0.4
    assert field.max() < 2.1  # exp(19 x 0.0375), when all polynomials are 1
    assert (field[1:] / field[:-1] - 1).abs().max() < 0.15


def test_artefacts_do_what_they_are_named_after():
    image = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    ringing = torch.fft.fftshift(torch.fft.fftn(views.without_high_frequencies(image, 0.333)))
    assert ringing[0, 0, 0].abs() < 1e-2  # the corner of k-space is gone
    assert ringing[16, 16, 16].abs() > 1  # its middle stays

    spiked = views.with_spike(dice(0), image)
    changed = (torch.fft.fftn(spiked) - torch.fft.fftn(image)).abs() > 1e-2
    assert 1 <= changed.sum() <= 2  # one frequency, or it and its mirror image

    coarse = views.at_low_resolution(image, 0.5)
    assert coarse.shape == image.shape
    assert coarse.var() < image.var()


def test_other_shapes_and_flat_grids_work():
    for shape in ((16, 24, 40), (64, 16, 16)):
        drawn = dice(1)
        labels = synthesis.label_map(drawn, shape)
        assert labels.shape == shape
        assert views.view(drawn, labels).shape == shape


def save(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), np.eye(4)), path)


def test_templates_come_from_all_folders_and_empty_masks_are_passed_over(tmp_path):
    mask = np.zeros((90, 80, 70))
    mask[10:50, 20:60, 30:70] = 1
    save(tmp_path / "s1" / "segmentations" / "liver.nii.gz", mask)
    save(tmp_path / "s2" / "spleen.nii", np.zeros((5, 5, 5)))
    templates = Templates([tmp_path], SHAPE)
    assert len(templates.files) == 2
    for seed in range(5):
        template = templates.draw(np.random.default_rng(seed))
        assert template.shape == SHAPE
        assert template.sum() == 10**3  # 40 of 128 voxels are 10 of 32
        assert np.argwhere(template).mean(0) == pytest.approx([15.5] * 3, abs=0.51)


def test_a_thin_or_a_small_structure_survives_and_a_fine_grid_has_no_holes():
    line = np.zeros((100, 3, 3), bool)
    line[:, 1, 1] = True
    assert fitted(line, SHAPE).any(axis=(1, 2)).sum() in (25, 26)
    assert fitted(np.ones((1, 1, 1), bool), SHAPE).sum() == 1
    cube = fitted(np.ones((20, 20, 20), bool), (256, 128, 128))
    assert cube.sum() == 40 * 20 * 20


def test_folders_without_usable_masks_are_refused_by_name(tmp_path):
    with pytest.raises(MaskError, match="no masks found"):
        Templates([tmp_path], SHAPE)
    save(tmp_path / "empty.nii.gz", np.zeros((5, 5, 5)))
    with pytest.raises(MaskError, match="were empty"):
        Templates([tmp_path], SHAPE).draw(np.random.default_rng(0))
    save(tmp_path / "empty.nii.gz", np.zeros((5, 5, 5, 2)))
    with pytest.raises(MaskError, match="3 axes"):
        Templates([tmp_path], SHAPE).draw(np.random.default_rng(0))
    (tmp_path / "empty.nii.gz").write_bytes(b"no image")
    with pytest.raises(MaskError, match=r"empty\.nii\.gz.*cannot be read"):
        Templates([tmp_path], SHAPE).draw(np.random.default_rng(0))


def test_written_samples_can_be_read_and_looked_at(tmp_path):
    written = write_samples(2, tmp_path / "out", (32, 24, 16), seed=3)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [
            "contact_sheet.png",
            *(f"{name}_00{i}.nii.gz" for name in ("labels", "view1", "view2") for i in (0, 1)),
        ]
    )
    assert {path.parent for path in written} == {tmp_path / "out"}
    labels = np.asanyarray(nib.load(tmp_path / "out" / "labels_001.nii.gz").dataobj)
    assert labels.shape == (32, 24, 16)
    assert np.issubdtype(labels.dtype, np.integer)
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.width > 6 * 100
        assert len(sheet.convert("RGB").getcolors(1 << 24)) > 50
    again = write_samples(1, tmp_path / "again", (32, 24, 16), seed=3)
    view = "view2_000.nii.gz"
    assert (tmp_path / "again" / view) in again
    first, second = (nib.load(tmp_path / folder / view).get_fdata() for folder in ("out", "again"))
    assert np.array_equal(first, second)


def test_samples_can_be_made_of_given_masks(tmp_path):
    mask = np.zeros((60, 60, 60))
    mask[5:55, 5:55, 5:55] = 1
    save(tmp_path / "masks" / "cube.nii.gz", mask)
    write_samples(1, tmp_path / "given", SHAPE, seed=0, data=[tmp_path / "masks"])
    write_samples(1, tmp_path / "blobs", SHAPE, seed=0)
    given, blobs = (
        nib.load(tmp_path / folder / "labels_000.nii.gz").get_fdata()
        for folder in ("given", "blobs")
    )
    assert not np.array_equal(given, blobs)


@pytest.mark.parametrize(("n", "shape"), [(0, SHAPE), (1, (32, 8, 32))])
def test_too_few_samples_or_voxels_are_refused(tmp_path, n, shape):
    with pytest.raises(ValueError, match="expected 1 or more"):
        write_samples(n, tmp_path, shape, seed=0)
