import gzip
import hashlib
import io
import os
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tomoprobe.benchmark.errors import MaskError, VolumeError
from tomoprobe.benchmark.types import Volume
from tomoprobe.benchmark.volumes import (
    check_same_grid,
    file_sha256,
    from_array,
    image_sha256,
    read_image,
    read_mask,
    read_nifti,
    read_npz,
)

SPACING = (0.8, 1.5, 3.0)
SHAPE = (7, 9, 5)

# byte positions in a NIfTI-1 header, from nifti1.h
DIM, DATATYPE, PIXDIM, VOX_OFFSET, XYZT, SFORM_CODE, SROW = 40, 70, 76, 108, 123, 254, 280


def affine_of(codes: str, spacing=SPACING, angle: float = 0.0, shear: float = 0.0) -> np.ndarray:
    """An affine whose axes run towards ``codes``, rotated about an oblique axis and sheared."""
    columns = np.zeros((3, 3))
    for axis, code in enumerate(codes):
        row, sign = {
            "R": (0, 1),
            "L": (0, -1),
            "A": (1, 1),
            "P": (1, -1),
            "S": (2, 1),
            "I": (2, -1),
        }[code]
        columns[row, axis] = sign * spacing[axis]
    u = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
    cross = np.array([[0, -u[2], u[1]], [u[2], 0, -u[0]], [-u[1], u[0], 0]])
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    tilt = np.eye(3)
    tilt[1, 2] = shear
    affine = np.eye(4)
    affine[:3, :3] = turn @ tilt @ columns
    affine[:3, 3] = (-30.0, 12.5, 101.0)
    return affine


ORIENTATIONS = {
    "RAS": affine_of("RAS"),
    "LPS": affine_of("LPS"),
    "PSR": affine_of("PSR"),
    "LIA": affine_of("LIA"),
    "oblique": affine_of("LPS", angle=0.35),
    "oblique, permuted": affine_of("PIR", angle=-0.5),
    "sheared": affine_of("PSR", shear=0.3),
}


def positions(affine: np.ndarray, shape) -> np.ndarray:
    """(X, Y, Z, 3) scanner mm of every voxel."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    image = nib.Nifti1Image(array, np.diag([*SPACING, 1.0]) if affine is None else affine)
    image.to_filename(path)
    return path


def patched(path: Path, *changes: tuple[int, str, tuple]) -> Path:
    """A small valid .nii with some header bytes replaced."""
    save(path, np.ones(SHAPE, np.float32))
    data = bytearray(path.read_bytes())
    for at, kind, values in changes:
        struct.pack_into("<" + kind, data, at, *values)
    path.write_bytes(data)
    return path


# --- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_every_voxel_keeps_its_place_in_the_scanner(name, tmp_path):
    affine = ORIENTATIONS[name]
    slope = np.array([1.0, 100.0, 10000.0])
    path = save(tmp_path / "x.nii.gz", positions(affine, SHAPE) @ slope, affine)
    volume = read_nifti(path, "scanner")
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    expected = positions(volume.affine, volume.voxels.shape[1:]) @ slope
    np.testing.assert_allclose(volume.voxels[0], expected, rtol=1e-6)
    assert sorted(volume.spacing) == pytest.approx(sorted(np.linalg.norm(affine[:3, :3], axis=0)))


def test_an_oblique_image_keeps_its_directions(tmp_path):
    affine = affine_of("RAS", angle=0.35)
    volume = read_nifti(save(tmp_path / "x.nii", np.ones(SHAPE), affine), "scanner")
    np.testing.assert_allclose(volume.affine, affine, rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e-6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float_voxels_of_any_scale_arrive_as_they_are(dtype, scale, tmp_path):
    array = (np.random.default_rng(0).random(SHAPE) * scale).astype(dtype)
    voxels = read_nifti(save(tmp_path / "x.nii.gz", array), "scanner").voxels
    assert voxels.dtype == np.float32
    np.testing.assert_array_equal(voxels[0], array.astype(np.float32))


@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "i4", "u2", ">f4"])
def test_every_integer_type_and_byte_order_is_read(dtype, tmp_path):
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype) % 251
    header = nib.Nifti1Header(endianness=">" if dtype.startswith(">") else "<")
    header.set_data_dtype(dtype)
    nib.Nifti1Image(array, np.eye(4), header).to_filename(tmp_path / "x.nii")
    np.testing.assert_array_equal(read_nifti(tmp_path / "x.nii", "HU").voxels[0], array)


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_slope_and_intercept_are_applied(dtype, tmp_path):
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    stored = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)
    image = nib.Nifti1Image(stored, np.eye(4), header)
    image.header.set_slope_inter(0.25, -1024)
    image.to_filename(tmp_path / "x.nii.gz")
    stored = np.asarray(nib.load(tmp_path / "x.nii.gz").dataobj.get_unscaled())
    np.testing.assert_array_equal(
        read_nifti(tmp_path / "x.nii.gz", "HU").voxels[0], stored * 0.25 - 1024
    )


def test_nifti_2_and_nifti_1_packed_or_not_read_alike(tmp_path):
    array = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    affine = ORIENTATIONS["oblique"]
    nib.Nifti2Image(array, affine).to_filename(tmp_path / "two.nii.gz")
    first = read_nifti(save(tmp_path / "one.nii", array, affine), "scanner")
    second = read_nifti(tmp_path / "two.nii.gz", "scanner")
    np.testing.assert_array_equal(first.voxels, second.voxels)
    np.testing.assert_allclose(first.affine, second.affine, rtol=1e-6, atol=1e-5)


def test_compression_is_told_by_content_and_not_by_name(tmp_path):
    save(tmp_path / "x.nii.gz", np.ones(SHAPE, np.uint8)).rename(tmp_path / "x.nii")
    assert read_nifti(tmp_path / "x.nii", "HU").voxels.shape == (1, *SHAPE)


def test_a_gzip_file_of_several_members_is_read_whole(tmp_path):
    array = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    data = save(tmp_path / "x.nii", array).read_bytes()
    (tmp_path / "y.nii.gz").write_bytes(gzip.compress(data[:400]) + gzip.compress(data[400:]))
    np.testing.assert_array_equal(read_nifti(tmp_path / "y.nii.gz", "HU").voxels[0], array)


def test_the_qform_is_used_without_a_sform(tmp_path):
    affine = ORIENTATIONS["oblique"]
    image = nib.Nifti1Image(np.ones(SHAPE, np.float32), affine)
    image.set_qform(affine, code=1)
    image.set_sform(None, code=0)
    image.to_filename(tmp_path / "x.nii")
    data = bytearray((tmp_path / "x.nii").read_bytes())
    if struct.unpack_from("<f", data, PIXDIM)[0] == 1.0:
        struct.pack_into("<f", data, PIXDIM, 0.0)  # many writers leave qfac at 0, which means 1
        (tmp_path / "x.nii").write_bytes(data)
    turned = read_nifti(tmp_path / "x.nii", "scanner").affine
    expected = nib.as_closest_canonical(image).affine
    np.testing.assert_allclose(turned, expected, atol=1e-4)


def test_a_series_of_one_frame_is_a_volume(tmp_path):
    array = np.random.default_rng(0).random((*SHAPE, 1)).astype(np.float32)
    volume = read_nifti(save(tmp_path / "x.nii.gz", array), "scanner")
    np.testing.assert_array_equal(volume.voxels[0], array[..., 0])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("extra", [(4,), (1, 4)])
@pytest.mark.parametrize("channel", [0, 2, 3])
def test_one_channel_of_several_is_read_as_if_it_were_a_file(channel, extra, packed, tmp_path):
    array = np.random.default_rng(0).integers(0, 999, (*SHAPE, *extra)).astype(np.int16)
    affine = ORIENTATIONS["oblique, permuted"]
    several = save(tmp_path / f"x.nii{'.gz' * packed}", array, affine)
    alone = save(tmp_path / "y.nii", array.reshape(*SHAPE, 4)[..., channel], affine)
    volume, expected = read_nifti(several, "scanner", channel), read_nifti(alone, "scanner")
    np.testing.assert_array_equal(volume.voxels, expected.voxels)
    np.testing.assert_array_equal(volume.affine, expected.affine)
    np.testing.assert_array_equal(read_image(several, "scanner", channel).voxels, volume.voxels)


def test_a_channel_that_is_not_there_is_refused_and_the_only_one_is_number_0(tmp_path):
    several = save(tmp_path / "x.nii", np.ones((*SHAPE, 2), np.uint8))
    for channel in (2, -1):
        with pytest.raises(VolumeError, match=rf"no channel {channel}: 0 to 1 are there"):
            read_nifti(several, "scanner", channel)
    with pytest.raises(VolumeError, match="argument 'channel'"):
        read_nifti(several, "scanner")
    one = save(tmp_path / "y.nii", np.ones(SHAPE, np.uint8))
    assert read_nifti(one, "scanner", 0).voxels.shape == (1, *SHAPE)
    with pytest.raises(VolumeError, match="no channel 1"):
        read_nifti(one, "scanner", 1)
    both = save(tmp_path / "z.nii", np.ones((*SHAPE, 2, 3), np.uint8))
    with pytest.raises(VolumeError, match="dimensions"):
        read_nifti(both, "scanner", 0)


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_cut_after_the_wanted_channel_is_refused_all_the_same(packed, tmp_path):
    path = save(tmp_path / f"x.nii{'.gz' * packed}", np.random.default_rng(0).random((*SHAPE, 3)))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(VolumeError, match=r"damaged|too short"):
        read_nifti(path, "scanner", 0)


@pytest.mark.parametrize("packed", [False, True])
def test_only_the_wanted_channel_is_held_in_memory(packed, tmp_path):
    shape = (64, 64, 32)
    array = np.zeros((*shape, 16), np.float32)
    array[..., 9] = 1
    path = save(tmp_path / f"x.nii{'.gz' * packed}", array)
    tracemalloc.start()
    try:
        assert read_nifti(path, "scanner", 9).voxels.min() == 1
        assert tracemalloc.get_traced_memory()[1] < array.nbytes / 2
    finally:
        tracemalloc.stop()


def test_two_channels_of_one_file_are_two_images(tmp_path):
    path = save(tmp_path / "x.nii", np.ones((*SHAPE, 2), np.uint8))
    digests = [image_sha256(path), image_sha256(path, 0), image_sha256(path, 1)]
    assert len(set(digests)) == 3
    assert digests[0] == file_sha256(path)


def test_voxels_have_no_negative_strides_and_can_be_written_to(tmp_path):
    volume = read_nifti(
        save(tmp_path / "x.nii", np.ones(SHAPE, np.float32), ORIENTATIONS["LPS"]), "HU"
    )
    assert min(volume.voxels.strides) > 0
    assert volume.voxels.flags.writeable


def test_a_read_only_data_root_is_read_and_left_alone(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    save(root / "x.nii.gz", np.ones(SHAPE, np.uint8))
    np.savez_compressed(root / "x.npz", a=np.ones(3))
    for path in root.iterdir():
        path.chmod(0o444)
    root.chmod(0o555)
    try:
        before = [(p.name, p.stat().st_mtime_ns) for p in sorted(root.iterdir())]
        read_nifti(root / "x.nii.gz", "HU")
        read_mask(root / "x.nii.gz", [1])
        read_npz(root / "x.npz")
        file_sha256(root / "x.npz")
        assert [(p.name, p.stat().st_mtime_ns) for p in sorted(root.iterdir())] == before
    finally:
        root.chmod(0o755)


def test_importing_the_readers_imports_no_heavy_package():
    code = (
        "import sys, tomoprobe.benchmark.volumes, tomoprobe.benchmark.grids;"
        "print([m for m in ('torch', 'monai', 'sklearn', 'nibabel', 'numba', 'scipy',"
        " 'pydicom', 'SimpleITK') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"), [("x.foo", b"hello"), ("x.nrrd", b""), ("x.nii.gz", b"<html>403</html>")]
)
def test_a_file_of_no_known_format_is_told_what_is_read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    formats = r"NIfTI in one piece.*NRRD.*MetaImage.*"
    with pytest.raises(VolumeError, match=rf"{name} .*{formats}folder of DICOM.*NPZ"):
        read_image(path, "HU")
    with pytest.raises(VolumeError, match=rf"{name} .*{formats}NPZ") as caught:
        read_mask(path, [1])
    assert "folder" not in str(caught.value)
    with pytest.raises(VolumeError, match="not a NIfTI file in one piece"):
        read_nifti(path, "HU")


@settings(max_examples=25, deadline=None)
@given(st.floats(0.0, 0.999))
def test_a_truncated_gzip_file_is_refused_wherever_it_ends(tmp_path_factory, share):
    folder = tmp_path_factory.mktemp("cut")
    array = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    data = save(folder / "x.nii.gz", array).read_bytes()
    (folder / "x.nii.gz").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(VolumeError, match=r"damaged|not a NIfTI|too short"):
        read_nifti(folder / "x.nii.gz", "HU")


def test_a_wrong_checksum_is_refused(tmp_path):
    path = save(tmp_path / "x.nii.gz", np.random.default_rng(0).random(SHAPE))
    data = bytearray(path.read_bytes())
    data[-8] ^= 1  # the CRC is the first half of the last eight bytes
    path.write_bytes(data)
    with pytest.raises(VolumeError, match=r"damaged.*CRC"):
        read_nifti(path, "HU")


def test_a_truncated_uncompressed_file_is_refused(tmp_path):
    path = save(tmp_path / "x.nii", np.ones(SHAPE))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(VolumeError, match="too short"):
        read_nifti(path, "HU")


def test_a_header_that_promises_100_gb_is_refused_before_anything_is_unpacked(
    tmp_path, monkeypatch
):
    changes = [(DIM, "4h", (3, 4000, 4000, 3200)), (DATATYPE, "2h", (4, 16))]
    path = patched(tmp_path / "x.nii", *changes)
    packed = tmp_path / "x.nii.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for file in (path, packed):
        with pytest.raises(VolumeError, match="51,200,000,000 voxels"):
            read_nifti(file, "HU")
        monkeypatch.setenv("TOMOPROBE_MAX_VOXELS", "100000000000")
        with pytest.raises(VolumeError, match="too short"):  # the cap gone: the file is too small
            read_nifti(file, "HU")
        monkeypatch.delenv("TOMOPROBE_MAX_VOXELS")


def test_a_header_is_judged_before_its_voxels_are_unpacked(tmp_path):
    path = patched(tmp_path / "x.nii", (DIM, "4h", (3, 4000, 4000, 3200)))
    path.write_bytes(gzip.compress(path.read_bytes()[:352] + bytes(2**25), 1))
    tracemalloc.start()
    try:
        with pytest.raises(VolumeError, match="voxels; at most"):
            read_nifti(path, "HU")
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_the_cap_on_voxels_comes_from_the_environment(tmp_path, monkeypatch):
    path = save(tmp_path / "x.nii", np.ones(SHAPE, np.uint8))
    monkeypatch.setenv("TOMOPROBE_MAX_VOXELS", "314")
    with pytest.raises(VolumeError, match="315 voxels; at most 314"):
        read_nifti(path, "HU")
    monkeypatch.setenv("TOMOPROBE_MAX_VOXELS", "315")
    assert read_nifti(path, "HU").voxels.size == 315
    monkeypatch.setenv("TOMOPROBE_MAX_VOXELS", "a lot")
    with pytest.raises(VolumeError, match="whole number"):
        read_nifti(path, "HU")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_voxels_that_are_not_finite_are_refused(bad, tmp_path):
    array = np.ones(SHAPE)
    array[1, 2, 3] = bad
    with pytest.raises(VolumeError, match="1 of 315 voxels that are NaN, infinite"):
        read_nifti(save(tmp_path / "x.nii.gz", array), "scanner")
    with pytest.raises(VolumeError, match="1 of 315"):
        from_array(array, SPACING, "scanner")


def test_voxels_that_overflow_when_scaled_are_refused(tmp_path):
    path = patched(tmp_path / "x.nii", (112, "2f", (3e38, 3e38)))
    with pytest.raises(VolumeError, match="infinite"):
        read_nifti(path, "scanner")


@pytest.mark.parametrize("shape", [(*SHAPE, 2), (*SHAPE, 1, 3), SHAPE[:2]])
def test_anything_but_three_dimensions_is_refused(shape, tmp_path):
    with pytest.raises(VolumeError, match="dimensions"):
        read_nifti(save(tmp_path / "x.nii.gz", np.ones(shape, np.float32)), "HU")


BAD_HEADERS = {
    "zero spacing": ([(PIXDIM + 8, "f", (0.0,))], "voxel size"),
    "negative spacing": ([(PIXDIM + 4, "f", (-1.0,))], "voxel size"),
    "NaN spacing": ([(PIXDIM + 12, "f", (np.nan,))], "voxel size"),
    "infinite spacing": ([(PIXDIM + 12, "f", (np.inf,))], "voxel size"),
    "microns": ([(XYZT, "b", (3,))], "microns"),
    "empty axis": ([(DIM, "4h", (3, 7, 0, 5))], "dimensions"),
    "negative axis": ([(DIM, "4h", (3, 7, -9, 5))], "dimensions"),
    "no axes": ([(DIM, "h", (0,))], "dimensions"),
    "a thousand axes": ([(DIM, "h", (1000,))], "dimensions"),
    "two equal columns": (
        [(SROW, "12f", (1, 1, 0, 0, 2, 2, 0, 0, 3, 3, 1, 0))],
        "does not span",
    ),
    "a column of zeros": (
        [(SROW, "12f", (1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0))],
        "does not span",
    ),
    "NaN in the affine": ([(SROW, "f", (np.nan,))], "does not span"),
    "RGB": ([(DATATYPE, "2h", (128, 24))], "color"),
    "RGBA": ([(DATATYPE, "2h", (2304, 32))], "color"),
    "complex": ([(DATATYPE, "2h", (32, 64))], "complex"),
    "extended precision": ([(DATATYPE, "2h", (1536, 128))], "extended"),
    "unknown type": ([(DATATYPE, "2h", (999, 8))], "unknown"),
    "voxels inside the header": ([(VOX_OFFSET, "f", (10.0,))], "begin at byte"),
    "voxels nowhere": ([(VOX_OFFSET, "f", (np.nan,))], "begin at byte"),
    "voxels far away": ([(VOX_OFFSET, "f", (1e12,))], "begin at byte"),
    "voxels after the end": ([(VOX_OFFSET, "f", (1e6,))], "too short"),
    "intercept not a number": ([(112, "2f", (1.0, np.nan))], "contradicts"),
    "no rotation": (
        [(SFORM_CODE - 2, "2h", (1, 0)), (256, "3f", (0.9, 0.9, 0.9))],
        "contradicts",
    ),
    "a header of a pair": ([(344, "4s", (b"ni1\0",))], "not a NIfTI"),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
@pytest.mark.parametrize("packed", [False, True])
def test_a_bad_header_is_refused_and_the_message_names_the_file(name, packed, tmp_path):
    changes, message = BAD_HEADERS[name]
    path = patched(tmp_path / "x.nii", *changes)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    if packed and name == "voxels after the end":
        message = "too short|damaged"
    with pytest.raises(VolumeError, match=message) as caught:
        read_nifti(path, "scanner")
    assert str(path) in str(caught.value)


def test_missing_files_folders_and_other_formats_are_refused(tmp_path):
    with pytest.raises(VolumeError, match="missing"):
        read_nifti(tmp_path / "absent.nii.gz", "HU")
    with pytest.raises(VolumeError, match="cannot be read"):
        read_nifti(tmp_path, "HU")
    for content in (b"", b"\x1f\x8b", b"hello", b"P6 " + bytes(1000), gzip.compress(b"no")):
        (tmp_path / "x.nii.gz").write_bytes(content)
        with pytest.raises(VolumeError, match=r"not a NIfTI|damaged"):
            read_nifti(tmp_path / "x.nii.gz", "HU")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 347), st.integers(0, 255)), min_size=1, max_size=6))
def test_random_damage_to_a_header_is_refused_or_read_but_never_crashes(tmp_path_factory, bytes_):
    path = tmp_path_factory.getbasetemp() / f"fuzz-{os.getpid()}.nii"
    save(path, np.ones(SHAPE, np.float32))
    data = bytearray(path.read_bytes())
    for at, value in bytes_:
        data[at] = value
    path.write_bytes(data)
    try:
        volume = read_nifti(path, "scanner")
    except VolumeError:
        return
    assert np.isfinite(volume.voxels).all()
    assert np.isfinite(volume.affine).all()


# --- masks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_mask_turns_with_its_image(name, tmp_path):
    labels = (np.random.default_rng(0).random(SHAPE) * 3).astype(np.uint8)
    image = read_nifti(save(tmp_path / "i.nii", labels * 10.0, ORIENTATIONS[name]), "scanner")
    mask, affine = read_mask(save(tmp_path / "m.nii.gz", labels, ORIENTATIONS[name]), (1, 2))
    assert mask.dtype == np.int32
    np.testing.assert_array_equal(mask * 10, image.voxels[0])
    check_same_grid(image, affine, mask.shape)


def test_labels_stored_as_floats_are_integers_all_the_same(tmp_path):
    labels = np.zeros(SHAPE)
    labels[2:4] = 2
    labels[4] = 0.9999
    mask, _ = read_mask(save(tmp_path / "m.nii", labels), [1, 2])
    np.testing.assert_array_equal(mask, np.rint(labels))


def test_an_empty_mask_is_refused(tmp_path):
    with pytest.raises(MaskError, match="empty"):
        read_mask(save(tmp_path / "m.nii.gz", np.zeros(SHAPE, np.uint8)), [1])


def test_unknown_labels_are_refused_by_number(tmp_path):
    labels = np.zeros(SHAPE, np.int16)
    labels[0, 0, :3] = (1, 7, -2)
    with pytest.raises(MaskError, match=r"\[-2, 7\].*\[1\]"):
        read_mask(save(tmp_path / "m.nii", labels), [1])


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
def test_a_mask_of_probabilities_is_refused(value, tmp_path):
    labels = np.ones(SHAPE)
    labels[0, 0, 0] = value
    with pytest.raises(MaskError, match="not integers"):
        read_mask(save(tmp_path / "m.nii", labels), [1])


def test_a_damaged_mask_is_refused_like_an_image(tmp_path):
    path = save(tmp_path / "m.nii.gz", np.ones(SHAPE, np.uint8))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(VolumeError, match="damaged"):
        read_mask(path, [1])


def test_a_mask_off_its_images_grid_is_refused():
    volume = from_array(np.ones(SHAPE), SPACING, "HU")
    check_same_grid(volume, volume.affine, SHAPE)
    check_same_grid(volume, volume.affine + np.eye(4)[:, ::-1] * 1e-4, SHAPE)
    with pytest.raises(MaskError, match="one grid"):
        check_same_grid(volume, volume.affine, SHAPE[::-1])
    for row, column, change in [(0, 3, 0.1), (1, 1, 0.05), (2, 0, 0.1), (0, 3, np.nan)]:
        moved = volume.affine.copy()
        moved[row, column] += change
        with pytest.raises(MaskError, match="mm away"):
            check_same_grid(volume, moved, SHAPE)


# --- arrays ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float16, np.float64])
def test_an_array_becomes_a_volume_centered_at_zero(dtype):
    array = (np.random.default_rng(0).random(SHAPE) * 2).astype(dtype)
    volume = from_array(array, SPACING, "scanner")
    np.testing.assert_array_equal(volume.voxels, array[None].astype(np.float32))
    assert volume.voxels.dtype == np.float32
    assert volume.spacing == pytest.approx(SPACING)
    assert positions(volume.affine, SHAPE).mean((0, 1, 2)) == pytest.approx([0, 0, 0], abs=1e-9)


def test_an_array_with_channels_keeps_them_and_is_copied():
    array = np.zeros((2, *SHAPE), np.float32)
    volume = from_array(array, SPACING, "scanner")
    array[:] = 1
    assert volume.voxels.shape == (2, *SHAPE)
    assert volume.voxels.max() == 0


@pytest.mark.parametrize("shape", [(4, 4), (1, 1, 4, 4, 4), (0, 4, 4)])
def test_an_array_that_is_no_volume_is_refused(shape):
    with pytest.raises(VolumeError, match="not a volume"):
        from_array(np.zeros(shape), SPACING, "HU")


@pytest.mark.parametrize("high", [1.01, 255, -0.01])
def test_relative_voxels_outside_0_to_1_are_refused(high):
    with pytest.raises(VolumeError, match="are in"):
        from_array(np.array([0.0, high]).reshape(2, 1, 1), SPACING, "relative")
    assert from_array(np.array([0.0, 1.0]).reshape(2, 1, 1), SPACING, "relative").unit == "relative"


@pytest.mark.parametrize("spacing", [(0, 1, 1), (1, -1, 1), (1, 1, np.nan), (np.inf, 1, 1)])
def test_an_array_needs_a_positive_spacing(spacing):
    with pytest.raises(VolumeError, match="positive lengths"):
        from_array(np.zeros(SHAPE), spacing, "HU")


@pytest.mark.parametrize("array", [np.zeros(SHAPE, complex), np.full(SHAPE, "a")])
def test_an_array_without_real_numbers_is_refused(array):
    with pytest.raises(VolumeError, match="type"):
        from_array(array, SPACING, "HU")


# --- npz ---------------------------------------------------------------------------------------


def test_npz_arrays_are_read_by_key(tmp_path):
    a, b = np.arange(6).reshape(2, 3), np.ones(4, np.uint8)
    np.savez_compressed(tmp_path / "x.npz", a=a, b=b)
    both = read_npz(tmp_path / "x.npz")
    assert list(both) == ["a", "b"]
    np.testing.assert_array_equal(both["a"], a)
    assert list(read_npz(tmp_path / "x.npz", ["b"])) == ["b"]


def test_a_missing_npz_key_is_named(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.ones(1))
    with pytest.raises(VolumeError, match=r"no array \['c'\]; it holds \['a'\]"):
        read_npz(tmp_path / "x.npz", ["a", "c"])


def test_npz_files_cannot_carry_pickles(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{"a": 1}], dtype=object))
    with pytest.raises(VolumeError, match="cannot be read"):
        read_npz(tmp_path / "x.npz")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_a_truncated_npz_file_is_refused(share, tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.random.default_rng(0).random(5000))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(VolumeError, match="damaged"):
        read_npz(path)


def test_a_damaged_npz_array_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=np.zeros(5000))
    data = bytearray(path.read_bytes())
    data[20000] ^= 1
    path.write_bytes(data)
    with pytest.raises(VolumeError, match=r"damaged.*CRC"):
        read_npz(path)


def test_npz_arrays_that_promise_more_than_they_hold_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", head.getvalue() + bytes(800))
    with pytest.raises(VolumeError, match="cannot be read"):
        read_npz(path)
    np.savez(path, a=np.zeros(1000))
    monkeypatch.setenv("TOMOPROBE_MAX_VOXELS", "999")
    with pytest.raises(VolumeError, match="at most 999"):
        read_npz(path)


def test_a_missing_npz_file_and_another_format_are_refused(tmp_path):
    with pytest.raises(VolumeError, match="missing"):
        read_npz(tmp_path / "absent.npz")
    (tmp_path / "x.npz").write_text("hello")
    with pytest.raises(VolumeError, match="damaged"):
        read_npz(tmp_path / "x.npz")


def test_the_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    with pytest.raises(VolumeError, match="missing"):
        file_sha256(tmp_path / "absent")


# --- real data ---------------------------------------------------------------------------------


def check_real(path: Path, unit) -> Volume:
    volume = read_nifti(path, unit)
    image = nib.as_closest_canonical(nib.load(path))
    np.testing.assert_array_equal(volume.voxels[0], image.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(volume.affine, image.affine, atol=1e-5)
    return volume


@pytest.mark.parametrize("patient", ["STS_001", "STS_021", "STS_039"])
def test_real_ct_and_mr_with_their_tumor_masks_open(patient, data_root):
    folder = data_root / "soft_tissue_sarcoma" / patient
    if not folder.is_dir():
        pytest.skip(f"{patient} is not under the data root")
    for image, unit in [("ct", "HU"), ("mr", "scanner")]:
        volume = check_real(folder / f"{image}.nii.gz", unit)
        mask, affine = read_mask(folder / f"{image}_gtv.nii.gz", [1])
        check_same_grid(volume, affine, mask.shape)


def test_real_hippocampus_crops_of_every_dtype_open_and_their_masks_have_the_known_volume(
    data_root,
):
    folder = data_root / "Task04_Hippocampus"
    if not folder.is_dir():
        pytest.skip("Task04_Hippocampus is not under the data root")
    table = (folder / "volumes_mm3.csv").read_text().splitlines()[1:]
    seen = set()
    for line in table[::20]:
        case, *_, total = line.split(",")
        path = folder / "imagesTr" / f"{case}.nii.gz"
        seen.add(str(nib.load(path).get_data_dtype()))
        volume = check_real(path, "scanner")
        mask, affine = read_mask(folder / "labelsTr" / f"{case}.nii.gz", (1, 2))
        check_same_grid(volume, affine, mask.shape)
        assert np.count_nonzero(mask) * np.prod(volume.spacing) == pytest.approx(float(total))
    assert len(seen) > 1


def test_real_heads_in_psr_order_open(data_root):
    folder = data_root / "ixi10" / "nifti"
    paths = sorted(folder.glob("*.nii.gz"))[:2]
    if not paths:
        pytest.skip("ixi10 is not under the data root")
    for path in paths:
        assert check_real(path, "scanner").spacing == pytest.approx((2, 2, 2), rel=1e-4)


def test_the_real_adrenal_file_opens(data_root):
    path = data_root / "medmnist" / "adrenalmnist3d.npz"
    if not path.is_file():
        pytest.skip("adrenalmnist3d is not under the data root")
    arrays = read_npz(path, ["test_images", "test_labels"])
    assert arrays["test_images"].shape == (298, 28, 28, 28)
    volume = from_array(arrays["test_images"][0] / 255, (1, 1, 1), "relative")
    assert set(np.unique(volume.voxels)) == {0, 1}
