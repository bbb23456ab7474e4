import gzip
import os
import re
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoprobe.benchmark.errors import MaskError, VolumeError
from tomoprobe.benchmark.volumes import (
    check_same_grid,
    file_sha256,
    image_sha256,
    read_image,
    read_mask,
)

SHAPE = (7, 9, 5)
SPACING = (0.8, 1.5, 3.0)
ORIGIN = (-30.0, 12.5, 101.0)
OBLIQUE = (0.8, -0.48, 0.36, 0.6, 0.64, -0.48, 0.0, 0.6, 0.8)
DIRECTIONS = {
    "LPS": (1, 0, 0, 0, 1, 0, 0, 0, 1),
    "RAS": (-1, 0, 0, 0, -1, 0, 0, 0, 1),
    "sagittal": (0, 0, 1, 1, 0, 0, 0, -1, 0),
    "oblique": OBLIQUE,
}
SUFFIXES = ("nrrd", "nhdr", "mha", "mhd")


def save(path: Path, array: np.ndarray | None = None, direction="LPS", packed=False) -> Path:
    """A file as SimpleITK writes it; ``array`` is (X, Y, Z)."""
    if array is None:
        array = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection(DIRECTIONS[direction])
    sitk.WriteImage(image, str(path), packed)
    return path


def changed(path: Path, *changes: tuple[str, str]) -> Path:
    """The same file with parts of its header's text replaced."""
    data = path.read_bytes()
    for old, new in changes:
        assert data.count(old.encode()) == 1, old
        data = data.replace(old.encode(), new.encode())
    path.write_bytes(data)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(VolumeError) as caught:
        read_image(path, "scanner")
    assert str(path.parent) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("packed", [False, True])
def test_every_voxel_keeps_its_place_in_the_patient(direction, suffix, packed, tmp_path):
    path = save(tmp_path / f"x.{suffix}", direction=direction, packed=packed)
    volume = read_image(path, "HU")
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    assert volume.voxels.dtype == np.float32
    assert sorted(volume.spacing) == pytest.approx(sorted(SPACING))
    image = sitk.ReadImage(str(path))
    for index in np.ndindex(*SHAPE):
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        ours = np.linalg.solve(volume.affine, [-x, -y, z, 1])[:3]
        assert volume.voxels[(0, *np.rint(ours).astype(int))] == image[index]
        np.testing.assert_allclose(ours, np.rint(ours), atol=1e-6)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_every_number_type_is_read(dtype, suffix, tmp_path):
    array = (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 120).astype(dtype)
    volume = read_image(save(tmp_path / f"x.{suffix}", array, "RAS"), "scanner")
    np.testing.assert_array_equal(volume.voxels[0], array)


@pytest.mark.parametrize(
    ("suffix", "change"),
    [
        ("nrrd", ("endian: little", "endian: big")),
        ("mha", ("BinaryDataByteOrderMSB = False", "BinaryDataByteOrderMSB = True")),
        ("mha", ("BinaryDataByteOrderMSB = False", "ElementByteOrderMSB = True")),
    ],
)
def test_big_endian_voxels_are_read(suffix, change, tmp_path):
    array = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    path = changed(save(tmp_path / f"x.{suffix}", array.byteswap(), "RAS"), change)
    np.testing.assert_array_equal(read_image(path, "scanner").voxels[0], array)


def test_a_nrrd_in_ras_is_the_same_image_as_in_lps(tmp_path):
    volume = read_image(save(tmp_path / "x.nrrd", direction="oblique"), "scanner")
    text = (tmp_path / "x.nrrd").read_bytes().split(b"\n\n")[0].decode()
    lines = {}
    for field in ("space directions", "space origin"):
        line = re.search(rf"{field}: (.*)", text)[1]
        flip = r"\((-?)([^,]+),(-?)([^,]+),"
        swapped = re.sub(flip, lambda m: f"({_minus(m[1])}{m[2]},{_minus(m[3])}{m[4]},", line)
        lines[f"{field}: {line}"] = f"{field}: {swapped}"
    for space in ("right-anterior-superior", "RAS"):
        path = save(tmp_path / "y.nrrd", direction="oblique")
        changed(path, ("left-posterior-superior", space), *lines.items())
        again = read_image(path, "scanner")
        np.testing.assert_allclose(again.affine, volume.affine, atol=1e-6)
        np.testing.assert_array_equal(again.voxels, volume.voxels)


def _minus(sign: str) -> str:
    return "" if sign else "-"


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_the_format_is_told_by_content_and_not_by_name(suffix, tmp_path):
    path = save(tmp_path / f"x.{suffix}")
    expected = read_image(path, "scanner").voxels
    for name in ("plain", "x.nii.gz", "x.dcm"):
        path = path.rename(tmp_path / name)
        np.testing.assert_array_equal(read_image(path, "scanner").voxels, expected)


def test_a_nifti_file_goes_through_the_same_door(tmp_path):
    array = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    nib.Nifti1Image(array, np.eye(4)).to_filename(tmp_path / "x.nii.gz")
    volume = read_image(tmp_path / "x.nii.gz", "scanner")
    np.testing.assert_array_equal(volume.voxels[0], array)
    (tmp_path / "x.txt").write_text("hello")
    assert "missing" in refusal(tmp_path / "absent.nrrd")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_mask_lies_on_its_image(suffix, tmp_path):
    labels = (np.random.default_rng(0).random(SHAPE) * 3).astype(np.uint8)
    image = read_image(save(tmp_path / "i.nrrd", labels * 10.0, "oblique"), "scanner")
    mask, affine = read_mask(save(tmp_path / f"m.{suffix}", labels, "oblique", True), (1, 2))
    np.testing.assert_array_equal(mask * 10, image.voxels[0])
    check_same_grid(image, affine, mask.shape)
    with pytest.raises(MaskError, match="labels"):
        read_mask(tmp_path / f"m.{suffix}", [1])


def test_metaimage_header_size_minus_one_means_the_last_bytes(tmp_path):
    path = save(tmp_path / "x.mhd")
    expected = read_image(path, "scanner").voxels
    raw = tmp_path / "x.raw"
    for before, size in [(b"12345", "-1"), (b"1234567", "7")]:
        data = raw.read_bytes()
        raw.write_bytes(before + data)
        text = path.read_text()
        path.write_text(text.replace("ElementDataFile", f"HeaderSize = {size}\nElementDataFile"))
        np.testing.assert_array_equal(read_image(path, "scanner").voxels, expected)
        raw.write_bytes(data)
        path.write_text(text)


def test_a_nrrd_packed_in_several_members_is_read_whole(tmp_path):
    path = save(tmp_path / "x.nrrd", packed=True)
    expected = read_image(path, "scanner").voxels
    head, body = path.read_bytes().split(b"\n\n", 1)
    body = gzip.decompress(body)
    path.write_bytes(head + b"\n\n" + gzip.compress(body[:99]) + gzip.compress(body[99:]))
    np.testing.assert_array_equal(read_image(path, "scanner").voxels, expected)


# --- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cut", [1, 4, 7, 12, 0.3, 0.6, 0.9])
def test_truncated_voxels_are_refused(suffix, packed, cut, tmp_path):
    array = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
    path = save(tmp_path / f"x.{suffix}", array, packed=packed)
    path = next(iter(set(tmp_path.iterdir()) - {path}), path)  # the payload, where it is detached
    data = path.read_bytes()
    path.write_bytes(data[:-cut] if cut >= 1 else data[: int(len(data) * cut)])
    assert re.search("damaged|too short|promises", refusal(tmp_path / f"x.{suffix}"))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("at", [-2, -6, -200])
def test_damaged_compressed_voxels_are_refused(suffix, at, tmp_path):
    # ITK returns the voxels of all of these without a word
    array = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
    path = save(tmp_path / f"x.{suffix}", array, packed=True)
    payload = next(iter(set(tmp_path.iterdir()) - {path}), path)
    data = bytearray(payload.read_bytes())
    data[at] ^= 1
    payload.write_bytes(data)
    assert re.search("damaged|promises", refusal(path))


def test_a_payload_that_is_larger_than_promised_is_refused(tmp_path):
    path = save(tmp_path / "x.mhd", packed=True)
    for size in (629, 631, 10**7):
        (tmp_path / "x.zraw").write_bytes(zlib.compress(bytes(size)))
        assert re.search("promises|too early", refusal(path))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_payload_is_refused(suffix, tmp_path):
    path = save(tmp_path / f"x.{suffix}")
    others = set(tmp_path.iterdir()) - {path}
    for other in others:
        other.unlink()
        assert "missing" in refusal(path)
    if not others:
        path.write_bytes(path.read_bytes()[:100])
        assert "too short" in refusal(path)


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
@pytest.mark.parametrize("packed", [False, True])
def test_an_enormous_promise_is_refused_before_anything_is_unpacked(
    suffix, packed, tmp_path, monkeypatch
):
    path = save(tmp_path / f"x.{suffix}", packed=packed)
    changed(path, ("7 9 5", "4000 4000 3200"))
    assert "51,200,000,000 voxels" in refusal(path)
    monkeypatch.setenv("TOMOPROBE_MAX_VOXELS", "100000000000")
    assert "too short" in refusal(path)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["nrrd", "mha"]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_random_damage_is_refused_or_read_but_never_crashes(tmp_path_factory, suffix, changes):
    path = tmp_path_factory.getbasetemp() / f"fuzz-{os.getpid()}.{suffix}"
    save(path, np.ones(SHAPE, np.uint8))
    data = bytearray(path.read_bytes())
    for at, value in changes:
        data[at] = value
    path.write_bytes(data)
    try:
        volume = read_image(path, "scanner")
    except VolumeError:
        return
    assert np.isfinite(volume.voxels).all()
    assert np.isfinite(volume.affine).all()


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_voxels_that_are_not_finite_are_refused(suffix, tmp_path):
    array = np.ones(SHAPE, np.float32)
    array[1, 2, 3] = np.nan
    assert "1 of 315 voxels" in refusal(save(tmp_path / f"x.{suffix}", array))


# --- headers -----------------------------------------------------------------------------------

NRRD = {
    "no space": (("space: left-posterior-superior", "space dimension: 3"), "space is 'not stated'"),
    "scanner space": (("left-posterior-superior", "scanner-xyz"), "which side is left"),
    "microns": (("encoding", 'space units: "um" "um" "um"\nencoding'), "['um']"),
    "text": (("encoding: raw", "encoding: text"), "encoding 'text'"),
    "bzip2": (("encoding: raw", "encoding: bzip2"), "encoding 'bzip2'"),
    "skipped lines": (("encoding", "line skip: 2\nencoding"), "lineskip 2"),
    "skipped bytes": (("encoding", "byte skip: 8\nencoding"), "byteskip 8"),
    "two encodings": (("encoding", "encoding: gzip\nencoding"), "twice"),
    "flat": (("(0,1.5,0)", "(0.8,0,0)"), "header"),
    "zero length": (("(0,1.5,0)", "(0,0,0)"), "header"),
    "four axes": (
        ("dimension: 3", "dimension: 4"),
        "header cannot be read",
    ),
    "a number of sizes": (("sizes: 7 9 5", "sizes: 7 9"), "header cannot be read"),
    "no type": (("type: short", "type: block"), "header|type"),
}

META = {
    "microns": (("NDims", "DistanceUnits = um\nNDims"), "['um']"),
    "slope": (("NDims", "ElementToIntensityFunctionSlope = 2\nNDims"), "slope of 2"),
    "text": (("BinaryData = True", "BinaryData = False"), "text instead"),
    "two sizes": (("DimSize = 7 9 5", "DimSize = 7 9 5\nDimSize = 7 9 4"), "twice"),
    "zero length": (("1.5 3", "0 3"), "size|header"),
    "two axes": (("NDims = 3", "NDims = 2"), "dimensions|header"),
    "a vector": (("NDims = 3", "NDims = 3\nElementNumberOfChannels = 3"), "3 numbers per voxel"),
    "no type": (("MET_SHORT", "MET_OTHER"), "type|header"),
}


@pytest.mark.parametrize("name", NRRD)
def test_a_bad_nrrd_header_is_refused(name, tmp_path):
    change, message = NRRD[name]
    assert_in(message, refusal(changed(save(tmp_path / "x.nrrd"), change)))


@pytest.mark.parametrize("name", META)
def test_a_bad_metaimage_header_is_refused(name, tmp_path):
    change, message = META[name]
    assert_in(message, refusal(changed(save(tmp_path / "x.mha"), change)))


def assert_in(messages: str, text: str) -> None:
    assert any(message in text for message in messages.split("|")), text


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_units_of_mm_are_accepted(suffix, tmp_path):
    line = ("encoding", 'space units: "mm" "mm" "mm"\nencoding')
    path = changed(
        save(tmp_path / f"x.{suffix}"),
        line if suffix == "nrrd" else ("NDims", "DistanceUnits = mm\nNDims"),
    )
    assert sorted(read_image(path, "scanner").spacing) == pytest.approx(sorted(SPACING))


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_vectors_series_and_flat_images_are_refused(suffix, tmp_path):
    path = tmp_path / f"x.{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5, 2)), isVector=True), str(path))
    assert_in("numbers per voxel|dimensions|which side", refusal(path))
    sitk.WriteImage(sitk.JoinSeries([sitk.Image(3, 4, 5, sitk.sitkInt16)] * 2), str(path))
    assert_in("dimensions|which side", refusal(path))
    sitk.WriteImage(sitk.Image(3, 4, sitk.sitkInt16), str(path))
    assert_in("dimensions|which side", refusal(path))


def test_a_complex_image_is_refused(tmp_path):
    sitk.WriteImage(sitk.Image(3, 4, 5, sitk.sitkComplexFloat32), str(tmp_path / "x.mha"))
    assert_in("type|numbers per voxel", refusal(tmp_path / "x.mha"))


@pytest.mark.parametrize(
    "name", ["../x.raw", "/etc/passwd", "sub/x.raw", "..", "LIST", "LIST 2", "x%03d.raw 1 5 1"]
)
@pytest.mark.parametrize("suffix", ["nhdr", "mhd"])
def test_a_header_cannot_name_a_file_outside_its_folder(name, suffix, tmp_path):
    folder = tmp_path / "a"
    (folder / "sub").mkdir(parents=True)
    path = save(folder / f"x.{suffix}")
    for other in (tmp_path, folder / "sub"):
        (other / "x.raw").write_bytes((folder / "x.raw").read_bytes())
    assert "own folder" in refusal(changed(path, ("x.raw", name)))


# --- digest ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_digest_covers_the_voxels_of_a_detached_header(suffix, tmp_path):
    path = save(tmp_path / f"x.{suffix}", np.zeros(SHAPE, np.uint8))
    before = image_sha256(path)
    assert before == image_sha256(path)
    save(path, np.ones(SHAPE, np.uint8))
    assert image_sha256(path) != before
    assert (image_sha256(path) == file_sha256(path)) == (suffix in ("nrrd", "mha"))
