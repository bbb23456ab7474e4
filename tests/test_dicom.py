"""Series written with pydicom: phantoms whose value is a known function of the place in mm."""

import shutil
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from tomoprobe.benchmark.dicom import dicom_sha256
from tomoprobe.benchmark.errors import VolumeError
from tomoprobe.benchmark.grids import plan, to_tiles
from tomoprobe.benchmark.types import EncoderCard, Grid, Volume, Window
from tomoprobe.benchmark.volumes import image_sha256, read_dicom_series, read_image

GRADIENT = np.array([2.0, -3.0, 5.0])  # HU per mm along L, P, S

AXIAL = ((1, 0, 0), (0, 1, 0))
CORONAL = ((1, 0, 0), (0, 0, -1))
SAGITTAL = ((0, 1, 0), (0, 0, -1))
OBLIQUE = ((0.8, 0.6, 0), (-0.48, 0.64, 0.6))
PLANES = {"axial": AXIAL, "coronal": CORONAL, "sagittal": SAGITTAL, "oblique": OBLIQUE}


@dataclass(frozen=True)
class Phantom:
    """A series of slices; ``step`` in mm from one slice to the next, along the normal if None."""

    rows: int = 6
    columns: int = 8
    slices: int = 5
    spacing: tuple[float, float] = (1.5, 0.75)  # between rows, between columns
    gap: float = 2.5
    origin: tuple[float, float, float] = (-20.0, 31.0, 7.0)
    plane: tuple = AXIAL
    step: tuple | None = None
    slope: float = 0.5
    intercept: float = -1024.0

    def position(self, k: float) -> np.ndarray:
        step = self.step or self.gap * np.cross(*self.plane)
        return np.array(self.origin) + k * np.array(step)

    def places(self, k: float) -> np.ndarray:
        """(rows, columns, 3) LPS mm of the pixels."""
        across, down = np.array(self.plane, float)
        r, c = np.meshgrid(np.arange(self.rows), np.arange(self.columns), indexing="ij")
        return (
            self.position(k)
            + c[..., None] * across * self.spacing[1]
            + r[..., None] * down * self.spacing[0]
        )

    def slice(self, k: float, **tags) -> FileDataset:
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage
        ds = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
        ds.SOPClassUID = CTImageStorage
        ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.SeriesInstanceUID = "1.2.3"
        ds.SeriesDescription = "Chest"
        ds.Modality = "CT"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.Rows, ds.Columns = self.rows, self.columns
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.PixelSpacing = list(self.spacing)
        ds.ImagePositionPatient = [f"{x:.6f}" for x in self.position(k)]
        ds.ImageOrientationPatient = [float(x) for x in np.ravel(self.plane)]
        ds.RescaleSlope, ds.RescaleIntercept = str(self.slope), str(self.intercept)
        for name, value in tags.items():
            setattr(ds, name, value)
        for name in [name for name, value in tags.items() if value is None]:
            delattr(ds, name)
        if "PixelData" not in tags:
            slope = float(tags.get("RescaleSlope") or self.slope)
            intercept = float(tags.get("RescaleIntercept") or self.intercept)
            stored = (self.places(k) @ GRADIENT - intercept) / slope
            ds.PixelData = np.rint(stored).astype("<i2").tobytes()
        return ds

    def write(self, folder: Path, order=None, **tags) -> Path:
        """All slices, under names that say nothing about their order."""
        folder.mkdir(parents=True, exist_ok=True)
        for k in range(self.slices) if order is None else order:
            put(self.slice(k, InstanceNumber=99 - int(k), **tags), folder / f"{(k * 7) % 11:g}")
        return folder


def put(ds: FileDataset, path: Path) -> Path:
    ds.save_as(path, enforce_file_format=True)
    return path


def place(affine: np.ndarray, shape) -> np.ndarray:
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def expected(volume: Volume) -> np.ndarray:
    """The phantom's value at every voxel, from the volume's own affine (RAS)."""
    return place(volume.affine, volume.voxels.shape[1:]) @ (GRADIENT * (-1, -1, 1))


def refusal(folder: Path, unit="HU", **how) -> str:
    with pytest.raises(VolumeError) as caught:
        read_dicom_series(folder, unit, **how)
    assert str(folder) in str(caught.value)
    return str(caught.value)


# --- geometry and values -----------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANES)
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 4, 1, 3)])
def test_every_voxel_has_the_value_of_its_place_in_the_patient(name, order, tmp_path):
    phantom = Phantom(plane=PLANES[name])
    volume = read_dicom_series(phantom.write(tmp_path, order), "HU")
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    assert volume.voxels.dtype == np.float32
    assert volume.unit == "HU"
    assert sorted(volume.spacing) == pytest.approx([0.75, 1.5, 2.5])
    np.testing.assert_allclose(volume.voxels[0], expected(volume), atol=0.26)  # half a slope
    corners = place(volume.affine, volume.voxels.shape[1:]).reshape(-1, 3) * (-1, -1, 1)
    first = np.linalg.norm(corners - phantom.position(0), axis=1).min()
    last = np.linalg.norm(corners - phantom.position(4), axis=1).min()
    assert max(first, last) < 1e-5


@pytest.mark.parametrize("name", PLANES)
def test_the_reader_agrees_with_an_independent_one(name, tmp_path):
    Phantom(plane=PLANES[name]).write(tmp_path)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    volume = read_dicom_series(tmp_path, "HU")
    for index in [(0, 0, 0), (7, 5, 4), (3, 1, 2)]:
        lps = np.array(image.TransformIndexToPhysicalPoint(index))
        ours = np.linalg.solve(volume.affine, [-lps[0], -lps[1], lps[2], 1])[:3]
        np.testing.assert_allclose(ours, np.rint(ours), atol=1e-4)
        assert volume.voxels[(0, *np.rint(ours).astype(int))] == pytest.approx(image[index])


def test_each_slice_has_its_own_slope_and_intercept(tmp_path):
    phantom = Phantom()
    for k in range(5):
        ds = phantom.slice(
            k, Modality="PT", RescaleSlope=f"{0.1 + k / 20:.2f}", RescaleIntercept=str(k - 2.0)
        )
        put(ds, tmp_path / f"{k}.dcm")
    volume = read_dicom_series(tmp_path, "scanner")
    np.testing.assert_allclose(volume.voxels[0], expected(volume), atol=0.16)


@pytest.mark.parametrize(("bits", "signed"), [(12, 0), (12, 1), (16, 0), (16, 1), (8, 0)])
def test_stored_bits_and_sign_are_honored(bits, signed, tmp_path):
    values = np.arange(48).reshape(6, 8) * (2**bits // 64) - signed * 2 ** (bits - 1)
    kind = "u1" if bits == 8 else ("<i2" if signed else "<u2")
    stored = values.astype(kind)
    if bits == 12 and signed:
        stored = (values & 0x0FFF).astype("<u2")  # the sign is bit 11; the upper four are free
    tags = {
        "BitsAllocated": 8 if bits == 8 else 16,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": signed,
        "PixelData": stored.tobytes(),
    }
    Phantom(slope=1.0, intercept=-5.0).write(tmp_path, **tags)
    voxels = read_dicom_series(tmp_path, "HU").voxels[0]
    np.testing.assert_array_equal(voxels[::-1, ::-1, 0].T, values - 5)


def test_mr_without_rescale_keeps_its_stored_values_and_ct_is_refused(tmp_path):
    bare = {"RescaleSlope": None, "RescaleIntercept": None, "PixelData": bytes(range(96))}
    Phantom().write(tmp_path / "mr", Modality="MR", **bare)
    voxels = read_dicom_series(tmp_path / "mr", "scanner").voxels[0]
    stored = np.frombuffer(bytes(range(96)), "<i2").reshape(6, 8)
    np.testing.assert_array_equal(voxels[::-1, ::-1, 2].T, stored)
    Phantom().write(tmp_path / "ct", **bare)
    assert "RescaleSlope" in refusal(tmp_path / "ct")


def test_padding_outside_the_circle_stays_as_it_is(tmp_path):
    stored = np.full((6, 8), -1952, "<i2")
    Phantom().write(tmp_path, PixelData=stored.tobytes(), PixelPaddingValue=-1952)
    assert (read_dicom_series(tmp_path, "HU").voxels == -2000).all()


def test_hounsfield_units_come_from_ct_only(tmp_path):
    Phantom().write(tmp_path / "mr", Modality="MR")
    assert "Hounsfield" in refusal(tmp_path / "mr")
    Phantom().write(tmp_path / "density", RescaleType="MGML")
    assert "MGML" in refusal(tmp_path / "density")


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_other_transfer_syntaxes_hold_the_same_volume(syntax, tmp_path):
    Phantom().write(tmp_path / "a")
    (tmp_path / "b").mkdir()
    for path in (tmp_path / "a").iterdir():
        ds = pydicom.dcmread(path)
        if syntax == RLELossless:
            ds.compress(RLELossless)
        else:
            swapped = np.frombuffer(ds.PixelData, "<i2")
            if syntax == ExplicitVRBigEndian:
                ds["PixelData"].VR = "OW"
                ds.PixelData = swapped.astype(">i2").tobytes()
            ds = Dataset(ds)
            ds.file_meta = FileMetaDataset()
            ds.file_meta.TransferSyntaxUID = syntax
        ds.save_as(
            tmp_path / "b" / path.name,
            enforce_file_format=True,
            **({} if syntax == RLELossless else {"little_endian": None}),
        )
    a, b = (read_dicom_series(tmp_path / n, "HU") for n in "ab")
    np.testing.assert_array_equal(a.voxels, b.voxels)
    np.testing.assert_array_equal(a.affine, b.affine)
    assert dicom_sha256(tmp_path / "a") == dicom_sha256(tmp_path / "b")


def enhanced(phantom: Phantom, order, **tags) -> FileDataset:
    """One multi-frame file; what all frames share is in the shared groups."""
    frames = [phantom.slice(k) for k in order]
    ds = phantom.slice(
        0,
        NumberOfFrames=len(frames),
        PixelData=b"".join(f.PixelData for f in frames),
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        PixelSpacing=None,
        RescaleSlope=None,
        RescaleIntercept=None,
    )
    measures, orientation, values = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = frames[0].PixelSpacing
    orientation.ImageOrientationPatient = frames[0].ImageOrientationPatient
    values.RescaleSlope, values.RescaleIntercept = str(phantom.slope), str(phantom.intercept)
    values.RescaleType = "HU"
    shared = Dataset()
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([orientation])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for frame in frames:
        position, group = Dataset(), Dataset()
        position.ImagePositionPatient = frame.ImagePositionPatient
        group.PlanePositionSequence = Sequence([position])
        group.PixelValueTransformationSequence = Sequence([values])
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups)
    for name, value in tags.items():
        setattr(ds, name, value)
    return ds


def test_a_multi_frame_file_is_the_same_volume_as_its_slices(tmp_path):
    phantom = Phantom(plane=OBLIQUE)
    phantom.write(tmp_path / "slices")
    (tmp_path / "one").mkdir()
    put(enhanced(phantom, (3, 1, 0, 4, 2)), tmp_path / "one" / "x")
    assert dicom_sha256(tmp_path / "one") == dicom_sha256(tmp_path / "slices")
    np.testing.assert_array_equal(
        read_dicom_series(tmp_path / "one", "HU").voxels,
        read_dicom_series(tmp_path / "slices", "HU").voxels,
    )


def test_a_multi_frame_file_of_ct_needs_its_rescale(tmp_path):
    ds = enhanced(Phantom(), range(5))
    for group in ds.PerFrameFunctionalGroupsSequence:
        del group.PixelValueTransformationSequence
    put(ds, tmp_path / "x")
    assert "RescaleSlope" in refusal(tmp_path)


def test_a_multi_frame_file_without_places_is_refused(tmp_path):
    ds = enhanced(Phantom(), range(5))
    del ds.PerFrameFunctionalGroupsSequence
    put(ds, tmp_path / "x")
    assert "5 frames and places for 0" in refusal(tmp_path, "scanner")


# --- what is in the folder ---------------------------------------------------------------------


def test_files_are_told_by_content_and_others_are_left_alone(tmp_path):
    Phantom().write(tmp_path / "a")
    Phantom().write(tmp_path / "b")
    (tmp_path / "b" / "notes.dcm").write_text("not an image at all " * 30)
    (tmp_path / "b" / "empty").touch()
    (tmp_path / "b" / "subfolder").mkdir()
    for modality in ("SEG", "RTSTRUCT", "SR"):
        put(
            Phantom().slice(0, Modality=modality, SeriesInstanceUID="9.9"),
            tmp_path / f"b/{modality}",
        )
    directory = Dataset()
    directory.file_meta = FileMetaDataset()
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.file_meta.MediaStorageSOPClassUID = pydicom.uid.MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    directory.save_as(tmp_path / "b" / "DICOMDIR", enforce_file_format=True)
    a, b = (read_dicom_series(tmp_path / name, "HU") for name in "ab")
    np.testing.assert_array_equal(a.voxels, b.voxels)


def test_slices_without_the_preamble_are_read(tmp_path):
    Phantom().write(tmp_path / "a")
    (tmp_path / "b").mkdir()
    for path in (tmp_path / "a").iterdir():
        ds = Dataset(pydicom.dcmread(path))
        ds.save_as(tmp_path / "b" / path.name, implicit_vr=True, little_endian=True)
    assert dicom_sha256(tmp_path / "b") == dicom_sha256(tmp_path / "a")


def test_files_of_other_modalities_alone_are_named(tmp_path):
    put(Phantom().slice(0, Modality="RTSTRUCT"), tmp_path / "a")
    (tmp_path / "b").write_text("hello")
    message = refusal(tmp_path)
    assert "1 x RTSTRUCT" in message
    assert "1 x not DICOM" in message
    (tmp_path / "nothing").mkdir()
    assert "no file" in refusal(tmp_path / "nothing")
    assert "missing" in refusal(tmp_path / "absent")


def test_several_series_are_listed_and_one_can_be_chosen(tmp_path):
    Phantom().write(tmp_path)
    other = Phantom(intercept=0.0, slices=3)
    for k in range(3):
        tags = {"SeriesInstanceUID": "1.2.4", "SeriesDescription": "Lung 1 mm"}
        put(other.slice(k, **tags), tmp_path / f"other{k}")
    message = refusal(tmp_path)
    assert "1.2.3 (5 files, CT, 'Chest')" in message
    assert "1.2.4 (3 files, CT, 'Lung 1 mm')" in message
    assert "'1.9'" in refusal(tmp_path, series="1.9")
    chosen = read_dicom_series(tmp_path, "HU", series="1.2.4")
    assert chosen.voxels.shape == (1, 8, 6, 3)
    assert dicom_sha256(tmp_path, "1.2.3") != dicom_sha256(tmp_path, "1.2.4")


def test_read_image_opens_a_folder_and_points_from_a_slice_to_it(tmp_path):
    Phantom().write(tmp_path)
    np.testing.assert_array_equal(
        read_image(tmp_path, "HU").voxels, read_dicom_series(tmp_path, "HU").voxels
    )
    assert image_sha256(tmp_path) == dicom_sha256(tmp_path)
    with pytest.raises(VolumeError, match="Name the folder"):
        read_image(tmp_path / "0", "HU")
    with pytest.raises(VolumeError, match="channel 1"):
        read_image(tmp_path, "HU", channel=1)


# --- stacks that are no volume -----------------------------------------------------------------


def test_a_missing_slice_is_named_by_its_neighbors(tmp_path):
    Phantom(slices=9).write(tmp_path, [0, 1, 2, 5, 6, 8])
    message = refusal(tmp_path)
    assert "misses 3 slices at the usual distance of 2.5 mm" in message
    assert "2 between 12.00 and 19.50 mm" in message
    assert "1 between 22.00 and 27.00 mm" in message


def test_uneven_distances_are_refused_and_rounded_positions_are_not(tmp_path):
    Phantom().write(tmp_path / "uneven", [0, 1, 2, 3.3, 4.2])
    assert "varies from 2.25 to 3.25 mm" in refusal(tmp_path / "uneven")
    phantom = Phantom(slices=20, gap=0.625)
    phantom.write(tmp_path / "rounded")
    for path in (tmp_path / "rounded").iterdir():
        path.unlink()
    for k in range(20):
        z = f"{7 + 0.625 * k:.1f}"
        put(phantom.slice(k, ImagePositionPatient=[-20, 31, z]), tmp_path / "rounded" / f"{k}")
    volume = read_dicom_series(tmp_path / "rounded", "HU")
    assert volume.spacing[2] == pytest.approx(0.625, abs=2e-3)


def test_two_slices_at_one_position_are_refused(tmp_path):
    Phantom().write(tmp_path / "copy")
    shutil.copy(tmp_path / "copy" / "0", tmp_path / "copy" / "again")
    message = refusal(tmp_path / "copy")
    assert "6 slices at 5 positions, such as 0 and again" in message
    Phantom().write(tmp_path / "phases")
    for k in range(5):
        put(Phantom().slice(k, AcquisitionNumber=2), tmp_path / "phases" / f"second{k}")
    assert "10 slices at 5 positions" in refusal(tmp_path / "phases")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Phantom(plane=SAGITTAL), "mixes 2 orientations"),
        (Phantom(spacing=(1.4, 0.75)), "mixes 2 pixel spacings"),
        (Phantom(rows=7), "mixes 2 matrix sizes"),
    ],
)
def test_mixed_slices_are_refused_with_their_numbers(other, message, tmp_path):
    Phantom().write(tmp_path, [0, 1, 2, 3])
    put(other.slice(4), tmp_path / "other")
    found = refusal(tmp_path)
    assert message in found
    assert "4 slices with" in found
    assert "1 slices with" in found


def test_a_localizer_a_mosaic_and_a_single_slice_are_refused(tmp_path):
    Phantom().write(tmp_path / "scout")
    put(Phantom().slice(9, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), tmp_path / "scout/x")
    assert "localizer" in refusal(tmp_path / "scout")
    Phantom().write(tmp_path / "mosaic", ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"])
    assert "mosaics" in refusal(tmp_path / "mosaic")
    Phantom().write(tmp_path / "one", [0])
    assert "one slice" in refusal(tmp_path / "one")


def tilted(degrees: float, **how) -> Phantom:
    """The table moves along S, the slices lean by ``degrees`` about L."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return Phantom(plane=((1, 0, 0), (0, c, s)), step=(0, 0, 2.5), **how)


def test_a_tilted_gantry_is_refused_with_its_angle_and_rounding_is_no_tilt(tmp_path):
    message = refusal(tilted(17.5).write(tmp_path / "a"))
    assert "tilted by 17.5 degrees" in message
    assert "dcm2niix" in message
    volume = read_dicom_series(tilted(0.2).write(tmp_path / "b"), "HU")
    np.testing.assert_allclose(volume.voxels[0], expected(volume), atol=0.26)


def test_why_tilt_is_refused_a_model_would_be_shown_a_ball_as_an_ellipsoid():
    # 20 degrees of shear in the affine, as a reader that kept the tilt would hand it on
    shape, angle = (40, 40, 40), np.radians(20)
    affine = np.eye(4)
    affine[1, 1], affine[2, 1] = np.cos(angle), np.sin(angle)
    center = place(affine, [1] * 3)[0, 0, 0] + affine[:3, :3] @ np.array([19.5] * 3)
    radius = np.linalg.norm(place(affine, shape) - center, axis=-1)
    volume = Volume((radius < 12).astype(np.float32)[None], affine, "HU")
    card = EncoderCard(
        name="x",
        title="x",
        grid=Grid((40, 40, 40), (1.0, 1.0, 1.0)),
        intensity={"HU": Window(0, 1)},
        width=1,
        strides=(1,),
        license="CC0-1.0",
    )
    tile = to_tiles(volume, card)[0, 0]
    index = np.argwhere(tile > 0.5)
    # in the patient, by the layout's affine, it is a ball: the bookkeeping is right ...
    mm = index @ plan(shape, affine, card).affines[0][:3, :3].T
    assert np.abs(np.corrcoef(mm.T) - np.eye(3)).max() < 0.02
    # ... in the array that the model is shown, two of its axes are correlated by -sin(angle)
    assert np.corrcoef(index.T)[1, 2] == pytest.approx(-np.sin(angle), abs=0.02)


def test_slices_beside_the_line_of_the_others_are_refused(tmp_path):
    phantom = Phantom()
    phantom.write(tmp_path, [0, 1, 3, 4])
    put(replace(phantom, origin=(-17.0, 31.0, 7.0)).slice(2), tmp_path / "beside")
    assert "beside" in refusal(tmp_path)


# --- files that are not usable -----------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleIntercept"],
)
def test_a_missing_tag_is_named(name, tmp_path):
    Phantom().write(tmp_path)
    put(Phantom().slice(5, **{name: None}), tmp_path / "x")
    message = refusal(tmp_path)
    assert f"no usable {name}" in message
    assert str(tmp_path / "x") in message


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"PixelSpacing": [0, 1]}, "PixelSpacing"),
        ({"RescaleSlope": "0"}, "RescaleSlope is 0"),
        ({"ModalityLUTSequence": Sequence([Dataset()])}, "modality lookup table"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "right angle"),
        ({"ImageOrientationPatient": [2, 0, 0, 0, 2, 0]}, "unit vectors"),
        ({"ImagePositionPatient": []}, "ImagePositionPatient"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "MONOCHROME1"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "RGB"),
    ],
)
def test_slices_that_cannot_be_used_are_refused(tags, message, tmp_path):
    stored = bytes(96)
    Phantom().write(tmp_path, PixelData=stored, **tags)
    assert message in refusal(tmp_path)


def test_an_enormous_promise_is_refused_before_pixels_are_read(tmp_path, monkeypatch):
    Phantom().write(tmp_path, Rows=65535, Columns=65535, PixelData=bytes(96))
    assert "21,474,181,125 voxels" in refusal(tmp_path)
    monkeypatch.setenv("TOMOPROBE_MAX_VOXELS", "239")
    Phantom().write(tmp_path / "small")
    assert "240 voxels" in refusal(tmp_path / "small")


def test_compression_without_a_decoder_names_the_packages(tmp_path):
    phantom = Phantom()
    for k in range(5):
        ds = phantom.slice(k)
        ds.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xf7" + bytes(40)])
        ds["PixelData"].is_undefined_length = True
        ds.file_meta.TransferSyntaxUID = JPEGLSLossless
        put(ds, tmp_path / str(k))
    if pydicom.pixels.get_decoder(JPEGLSLossless).is_available:
        pytest.skip("a JPEG-LS decoder is installed")
    message = refusal(tmp_path)
    assert "JPEG-LS" in message
    assert "pylibjpeg-libjpeg" in message


def test_a_deflated_file_is_refused_before_it_is_unpacked(tmp_path):
    ds = Phantom().slice(0)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    put(ds, tmp_path / "x")
    assert "deflated" in refusal(tmp_path)


@pytest.mark.parametrize("cut", [1, 40, 95, 97, 300, 500, 700])
@pytest.mark.parametrize("packed", [False, True])
def test_a_truncated_file_is_refused(cut, packed, tmp_path):
    Phantom().write(tmp_path)
    ds = pydicom.dcmread(tmp_path / "0")
    if packed:
        ds.compress(RLELossless)
    put(ds, tmp_path / "0")
    data = (tmp_path / "0").read_bytes()
    # the last eight bytes of a compressed file only close the sequence of its frames
    (tmp_path / "0").write_bytes(data[: -cut - 8 * packed])
    refusal(tmp_path)


def test_voxels_that_are_not_finite_are_refused(tmp_path):
    Phantom().write(tmp_path, RescaleSlope="1e38", PixelData=np.full(48, 9, "<i2").tobytes())
    assert "infinite" in refusal(tmp_path)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), min_size=1, max_size=6))
def test_random_damage_is_refused_or_read_but_never_crashes(tmp_path_factory, changes):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    Phantom(slices=2).write(folder)
    path = folder / "0"
    data = bytearray(path.read_bytes())
    for at, value in changes:
        data[at % len(data)] = value
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about values that the standard forbids
        try:
            volume = read_dicom_series(folder, "HU")
        except VolumeError:
            return
    assert np.isfinite(volume.voxels).all()
    assert np.isfinite(volume.affine).all()


# --- digest ------------------------------------------------------------------------------------


def test_the_digest_is_that_of_pixels_and_places_whatever_the_files_are_called(tmp_path):
    Phantom().write(tmp_path / "a")
    Phantom().write(tmp_path / "b", PatientName="Doe^Jane", StudyDate="20200101")
    for i, path in enumerate(sorted((tmp_path / "b").iterdir())):
        path.rename(path.parent / f"IM{9 - i:04d}.dcm")
    digest = dicom_sha256(tmp_path / "a")
    assert digest == dicom_sha256(tmp_path / "b")
    Phantom(gap=2.6).write(tmp_path / "gap", PixelData=bytes(96))
    Phantom(gap=2.5).write(tmp_path / "same", PixelData=bytes(96))
    Phantom().write(tmp_path / "pixel", PixelData=bytes(95) + b"\1")
    Phantom(intercept=-1000.0).write(tmp_path / "scale", PixelData=bytes(96))
    names = ("gap", "same", "pixel", "scale")
    assert len({digest, *(dicom_sha256(tmp_path / n) for n in names)}) == 5
