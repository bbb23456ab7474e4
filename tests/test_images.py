"""Images to pretrain on: drawn ones, pictures in folders, slices of volumes."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tomoprobe.benchmark.errors import DataError
from tomoprobe.submissions.baselines import _procedural_images
from tomoprobe.submissions.baselines._images import (
    Drawn,
    pictures,
    random_box,
    read_picture,
    resized,
    unlabelled,
)

UNIT = {"scanner": {"type": "MinMax"}}
WHOLE = {"scanner": {"type": "MinMax", "low_percentile": 0.0, "high_percentile": 100.0}}


def rng(*seed):
    return np.random.default_rng([*seed])


def save(path, color, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


@pytest.mark.parametrize("label", range(len(_procedural_images.CLASSES)))
def test_a_drawing_follows_from_its_generator_alone(label):
    first, again, other = (_procedural_images.draw(rng(s), 40, label) for s in (1, 1, 2))
    assert first.shape == (40, 40, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.std() > 5


def test_all_classes_are_drawn_about_equally_often():
    draws, source = rng(0), Drawn(16)
    counts = np.bincount([source.draw(draws)[1] for _ in range(600)], minlength=20)
    assert len(source.classes) == len(counts) == 20
    assert counts.min() > 10


def test_mean_colour_does_not_tell_the_class():
    def colours(seed):
        labels = np.arange(400) % 20
        images = [_procedural_images.draw(rng(seed, i), 24, y) for i, y in enumerate(labels)]
        return np.array([image.mean((0, 1)) for image in images]), labels

    known, known_labels = colours(0)
    asked, labels = colours(1)
    distance = ((asked[:, None] - known[None]) ** 2).sum(2)
    accuracy = (known_labels[distance.argmin(1)] == labels).mean()
    assert accuracy < 0.15  # chance is 0.05


def test_classes_are_sub_folders_and_the_same_in_every_folder(tmp_path):
    for root, name, color in (("a", "cat", "red"), ("a", "dog", "lime"), ("b", "dog", "blue")):
        save(tmp_path / root / name / "deeper" / "1.png", color)
    save(tmp_path / "a" / "loose.png", "white")
    (tmp_path / "a" / "cat" / ".hidden.png").write_bytes(b"no picture")
    found = pictures([tmp_path / "a", tmp_path / "b"], labelled=True)
    assert found.classes == ("cat", "dog")
    seen = {(tuple(image[0, 0]), label) for image, label in map(found.draw, map(rng, range(40)))}
    assert seen == {((255, 0, 0), 0), ((0, 255, 0), 1), ((0, 0, 255), 1)}


def test_pictures_of_one_class_or_none_are_refused(tmp_path):
    with pytest.raises(DataError, match="There is no"):
        pictures([tmp_path / "absent"], labelled=True)
    with pytest.raises(DataError, match="No picture"):
        pictures([tmp_path], labelled=True)
    save(tmp_path / "cat" / "1.png", "red")
    with pytest.raises(DataError, match="one class alone, 'cat'"):
        pictures([tmp_path], labelled=True)


def test_a_damaged_picture_is_named(tmp_path):
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1\.png"):
        pictures([tmp_path], labelled=False).draw(rng(0))


def test_a_picture_of_16_bits_is_scaled_not_clipped(tmp_path):
    deep = np.array([[1000, 1100], [1200, 3000]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "ct.png")
    assert read_picture(tmp_path / "ct.png")[..., 1].tolist() == [[0, 13], [26, 255]]


def test_a_resized_box_holds_the_box_alone():
    image = np.zeros((8, 12, 3), np.uint8)
    image[2:4, 6:10] = 200
    assert (resized(image, 5, (6, 2, 10, 4)) == 200).all()


def test_boxes_have_the_area_and_aspect_asked_for_and_lie_within():
    draws = rng(0)
    for _ in range(200):
        left, upper, right, lower = random_box(draws, 90, 120, (0.3, 0.6))
        w, h = right - left, lower - upper
        assert left >= 0 <= upper
        assert right <= 120
        assert lower <= 90
        assert 0.29 < w * h / (90 * 120) < 0.61
        assert 0.73 < w / h < 1.37
    assert random_box(draws, 2, 400, (0.9, 1.0)) == (0, 0, 400, 2)


def test_slices_are_those_of_the_volume_scaled_to_8_bits(tmp_path):
    z = np.broadcast_to(np.arange(5.0, dtype=np.float32), (6, 7, 5))
    nib.save(nib.Nifti1Image(z, np.eye(4)), tmp_path / "v.nii.gz")
    source = unlabelled([tmp_path], WHOLE)
    values = set()
    for seed in range(30):
        image, label = source.draw(rng(seed))
        assert image.shape == (6, 7, 3)
        assert label == -1
        assert image.min() == image.max()
        values.add(int(image[0, 0, 0]))
    assert values <= {0, 64, 128, 191, 255}
    assert {191, 255} <= values


def test_a_folder_may_hold_pictures_and_volumes(tmp_path):
    save(tmp_path / "p" / "1.png", "red")
    for name in ("v", "empty"):
        (tmp_path / name).mkdir()
    block = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    nib.save(nib.Nifti1Image(block, np.eye(4)), tmp_path / "v" / "v.nii.gz")
    source = unlabelled([tmp_path], UNIT)
    shapes = {source.draw(rng(seed))[0].shape for seed in range(30)}
    assert shapes == {(6, 8, 3), (3, 4, 3)}
    assert unlabelled([tmp_path / "p"], UNIT).describe() == "1 pictures of p"
    with pytest.raises(DataError, match="No image below"):
        unlabelled([tmp_path / "empty"], UNIT)
