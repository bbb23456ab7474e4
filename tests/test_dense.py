"""Maps of any encoder, brought to the task's lattice, and kept."""

import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from tomoprobe.benchmark import dense
from tomoprobe.benchmark.cache import FeatureCache
from tomoprobe.benchmark.dense import pyramid
from tomoprobe.benchmark.dense_cache import Pyramids
from tomoprobe.benchmark.errors import (
    DataError,
    EncoderError,
    ProbeError,
    StorageError,
    VolumeError,
)
from tomoprobe.benchmark.features import DataIdentity
from tomoprobe.benchmark.grids import to_tiles
from tomoprobe.benchmark.lattice import labels_on, lattice_of, to_native
from tomoprobe.benchmark.studies import Setting
from tomoprobe.benchmark.types import (
    Case,
    EncoderCard,
    Grid,
    Intensity,
    MinMax,
    TaskCard,
    Triple,
    Volume,
    Window,
    ZScore,
)

from . import toy

CARD = replace(
    toy.CARD, kind="segmentation", lattice_mm=(2.0, 2.0, 2.0), field_of_view_mm=(40.0, 36.0, 48.0)
)
MM = {"relative": Window(-1000, 1000, -1000, 1000)}
"""Leaves coordinates in mm as they are."""
AFFINE = np.array([[1.2, 0, 0, 10], [0, 0.9, 0, -20], [0, 0, 2, 5], [0, 0, 0, 1]], np.float64)
SHAPE = (41, 50, 27)


@dataclass
class Pooling(toy.ToyEncoder):
    """Maps are the image, averaged over blocks."""

    calls: list[int] = field(default_factory=list)

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        self.calls.append(len(x))
        return [functional.avg_pool3d(x, s, ceil_mode=True) for s in self.card.strides]


def encoder_card(
    shape: tuple[int, int, int] = (16, 16, 16),
    spacing: Triple | None = (2.0, 2.0, 2.0),
    axes: str = "RAS",
    strides: tuple[int, ...] = (1, 2, 4),
) -> EncoderCard:
    grid = Grid(shape, spacing, axes)
    return replace(toy.ENCODER_CARD, grid=grid, strides=strides, intensity=MM)


def coordinate(axis: int, affine: np.ndarray = AFFINE) -> Volume:
    """An image that tells in each voxel where it is along an axis, mm."""
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    mm = index @ affine[:3, :3].T + affine[:3, 3]
    return Volume(mm[None, ..., axis].astype(np.float32), affine, "relative")


def noise(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Volume:
    voxels = np.random.default_rng(seed).uniform(size=(1, *shape)).astype(np.float32)
    return Volume(voxels, AFFINE, "relative")


def points(lattice: dense.Lattice, margin: int = 0) -> np.ndarray:
    index = np.argwhere(np.ones(lattice.shape, bool))
    last = np.array(lattice.shape) - 1 - margin
    return index[((index >= margin) & (index <= last)).all(1)]


# --- geometry --------------------------------------------------------------------------------


def test_the_lattice_is_central_and_as_large_as_the_field_of_view() -> None:
    lattice = lattice_of(SHAPE, AFFINE, CARD)
    assert lattice.shape == (20, 18, 24)
    center = (np.array(lattice.shape) - 1) / 2
    image_center = AFFINE[:3, :3] @ ((np.array(SHAPE) - 1) / 2) + AFFINE[:3, 3]
    np.testing.assert_allclose(lattice.to_mm(center[None])[0], image_center)
    np.testing.assert_allclose(np.linalg.norm(lattice.affine[:3, :3], axis=0), 2)
    some = np.array([[0.0, 3.0, 5.5], [19.0, 0.0, 1.0]])
    np.testing.assert_allclose(lattice.index_of(lattice.to_mm(some)), some, atol=1e-9)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("axes", ["RAS", "LAI", "SPL"])
@pytest.mark.parametrize("spacing", [(1.0, 1.5, 1.2), (2.0, 2.0, 3.0)])
def test_coordinates_come_back_at_every_stride_axis_code_and_spacing(
    axis: int, axes: str, spacing: Triple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(dense.IMAGE, "relative", MM["relative"])  # mm are no share of 1
    # tiles of several sizes, none of which has padding
    card = encoder_card((8, 12, 8), spacing, axes)
    made = pyramid(coordinate(axis), Pooling(card), CARD)
    assert made.forward_voxels > 3 * 8 * 12 * 8
    index = points(made.lattice, margin=6)  # at the rim a coarse map has no neighbour to go by
    truth = made.lattice.to_mm(index)[:, axis]
    for level, values in zip(made.levels, made.at(index), strict=True):
        # a tile of two of a map's voxels is clamped beyond their centers, where it says little
        np.testing.assert_allclose(values[:, 0], truth, atol=0.05 * level.mm)
    np.testing.assert_allclose(
        made.image[0][tuple(points(made.lattice).T)],
        made.lattice.to_mm(points(made.lattice))[:, axis],
        atol=1e-3,
    )


def test_an_encoder_whose_map_is_the_image_gives_the_image() -> None:
    card = encoder_card((20, 18, 24), (2.0, 2.0, 2.0), strides=(1,))
    made = pyramid(noise(), Pooling(card), CARD)
    assert [level.factor for level in made.levels] == [1]
    np.testing.assert_allclose(made.full(0), made.image, atol=1e-3)  # float16


def test_an_encoder_without_a_spacing_is_shown_the_lattices_or_a_finer_one() -> None:
    encoder = Pooling(encoder_card((16, 16, 16), None, "LAI"))
    made = pyramid(coordinate(0), encoder, CARD)
    assert [level.mm for level in made.levels] == [2, 4, 8]
    assert [level.factor for level in made.levels] == [1, 2, 4]
    inner = points(made.lattice, margin=6)
    np.testing.assert_allclose(
        made.at(inner, [0])[0][:, 0], made.lattice.to_mm(inner)[:, 0], atol=0.05
    )
    fine = pyramid(coordinate(0), Pooling(encoder_card((32, 32, 32), None)), CARD)
    assert fine.forward_voxels == 32**3, "one tile holds the field of view"
    assert [level.mm for level in fine.levels] == [1.5, 3, 6]  # 48 mm in 32 voxels


def test_images_of_all_sizes_are_read_at_the_same_scales() -> None:
    encoder = Pooling(encoder_card((16, 16, 16), None))
    card = replace(CARD, field_of_view_mm=None)
    small, large = (pyramid(noise((n, n, n)), encoder, card) for n in (16, 60))
    assert [v.factor for v in small.levels] == [v.factor for v in large.levels]
    assert [v.mm for v in small.levels] == [v.mm for v in large.levels]


def test_maps_that_depend_on_the_batch_are_refused() -> None:
    class Mixing(Pooling):
        def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
            return super().maps(x - x.mean(0))

    with pytest.raises(EncoderError, match="depend on the batch"):
        pyramid(noise(), Mixing(encoder_card()), CARD, check=True)


def test_a_card_that_crops_is_covered_by_tiles_all_the_same() -> None:
    card = encoder_card((8, 8, 8), strides=(1,))
    assert card.tiling == "crop"
    made = pyramid(noise(), Pooling(card), CARD)
    one = pyramid(noise(), Pooling(encoder_card((20, 18, 24), strides=(1,))), CARD)
    np.testing.assert_allclose(made.full(0), one.full(0), atol=2e-3)


def test_overlapping_tiles_agree_with_one_large_tile() -> None:
    """Of a toy that sees one voxel around: only what is near a tile's edge differs."""

    class Smooth(toy.ToyEncoder):
        def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [functional.avg_pool3d(x, 3, 1, 1, count_include_pad=False)]

    small = pyramid(noise(), Smooth(encoder_card((12, 12, 12), strides=(1,))), CARD)
    large = pyramid(noise(), Smooth(encoder_card((20, 18, 24), strides=(1,))), CARD)
    assert small.forward_voxels > large.forward_voxels
    difference = np.abs(small.full(0) - large.full(0))
    assert np.quantile(difference, 0.9) < 0.02  # away from edges: rounding
    assert difference.max() < 0.1


def test_tiles_are_blended_without_a_seam() -> None:
    """Each tile says its own number: in between the values pass smoothly."""

    class Numbered(toy.ToyEncoder):
        def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [x.mean((2, 3, 4), keepdim=True).expand(-1, -1, *x.shape[2:])]

    card = encoder_card((10, 18, 24), strides=(1,))
    made = pyramid(coordinate(0), Numbered(replace(card, overlap=0.5)), CARD)
    line = made.full(0)[0, :, 9, 12]
    assert np.all(np.diff(line) >= -0.02)
    assert np.abs(np.diff(line)).max() < 0.4 * (line[-1] - line[0])
    np.testing.assert_allclose(made.full(0)[0], np.broadcast_to(line[:, None, None], (20, 18, 24)))


def test_maps_of_slices_keep_their_resolution_across() -> None:
    class Slices(toy.ToyEncoder):
        def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [functional.avg_pool3d(x, (4, 4, 1))]

    card = encoder_card((20, 20, 24), strides=(4,))  # 4 in plane; across it is finer
    made = pyramid(coordinate(2), Slices(card), replace(CARD, field_of_view_mm=(40, 40, 48)))
    assert made.levels[0].factor == 1
    assert made.levels[0].mm == 8
    index = points(made.lattice)
    truth = made.lattice.to_mm(index)[:, 2]
    np.testing.assert_allclose(made.at(index)[0][:, 0], truth, atol=0.05)


def test_a_stride_that_does_not_divide_the_grid_is_rounded_up() -> None:
    card = encoder_card((18, 18, 26), strides=(4,))  # 5, 5 and 7 voxels, the last half outside
    made = pyramid(coordinate(1), Pooling(card), replace(CARD, field_of_view_mm=(36, 36, 52)))
    index = points(made.lattice, margin=5)
    np.testing.assert_allclose(made.at(index)[0][:, 0], made.lattice.to_mm(index)[:, 1], atol=0.05)


def test_a_level_is_as_coarse_as_its_map_allows() -> None:
    card = encoder_card((16, 16, 16), (2.5, 2.5, 2.5), strides=(1, 2, 4))
    made = pyramid(noise(), Pooling(card), CARD)
    assert [(level.factor, level.mm) for level in made.levels] == [(1, 2.5), (2, 5.0), (4, 10.0)]
    assert [level.values.shape[1:] for level in made.levels] == [
        (20, 18, 24),
        (10, 9, 12),
        (5, 5, 6),
    ]


def test_reading_points_and_the_whole_lattice_is_the_same() -> None:
    made = pyramid(noise(), Pooling(encoder_card()), CARD)
    index = points(made.lattice)
    for level in range(3):
        at = made.at(index, [level])[0]
        np.testing.assert_allclose(at[:, 0], made.full(level).reshape(-1), atol=1e-5)


@pytest.mark.parametrize("how", [MinMax(), ZScore(), Window(0.2, 0.7)])
@pytest.mark.parametrize("shape", [(12, 12, 12), (30, 12, 30)])
def test_maps_are_made_of_what_embeddings_are_made_of(
    how: Intensity, shape: tuple[int, int, int]
) -> None:
    """The same tiles, with the same intensities, padding and axes."""
    seen: list[torch.Tensor] = []

    class Watching(toy.ToyEncoder):
        def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
            seen.append(x)
            return [x]

    card = replace(
        encoder_card(shape, (2.0, 2.0, 3.0), "PIL", strides=(1,)),
        intensity={"relative": how},
        tiling="tiles",
    )
    pyramid(noise(), Watching(card), CARD)
    tiles = to_tiles(noise(), card, CARD.field_of_view_mm)
    np.testing.assert_allclose(torch.cat(seen).numpy(), tiles, atol=1e-7)  # padding is rounded


# --- labels ----------------------------------------------------------------------------------


def test_labels_survive_the_way_to_the_lattice_and_back() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[12:30, 10:40, 8:20] = 1
    labels[18:24, 20:30, 10:16] = 2
    lattice = lattice_of(SHAPE, AFFINE, replace(CARD, lattice_mm=(1.0, 1.0, 1.0)))
    on = labels_on(lattice, labels)
    scores = np.stack([on == k for k in range(3)]).astype(np.float32)
    back = to_native(lattice, scores)
    for k in (1, 2):
        both = ((back == k) & (labels == k)).sum()
        assert (
            2 * both / ((back == k).sum() + (labels == k).sum()) > 0.9
        )  # a cube of 6 to 10 voxels is mostly surface
    assert labels_on(lattice, back).shape == lattice.shape


def test_there_is_background_outside_of_the_field_of_view_and_nothing_missing_inside() -> None:
    everywhere = np.stack([np.zeros((20, 18, 24)), np.ones((20, 18, 24))]).astype(np.float32)
    lattice = lattice_of(SHAPE, AFFINE, CARD)
    back = to_native(lattice, everywhere)
    mm = [np.abs(np.arange(n) - (n - 1) / 2) * s for n, s in zip(SHAPE, (1.2, 0.9, 2), strict=True)]
    x, y, z = (m <= f / 2 for m, f in zip(mm, (40, 36, 48), strict=True))
    np.testing.assert_array_equal(back, x[:, None, None] & y[:, None] & z)
    # without a field of view all of the image is answered, although 49.2 mm are 25 points of 2 mm
    whole = lattice_of(SHAPE, AFFINE, replace(CARD, field_of_view_mm=None))
    assert to_native(whole, np.stack([np.zeros(whole.shape), np.ones(whole.shape)])).all()


def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from tomoprobe.benchmark import lattice as module

    lattice = lattice_of(SHAPE, AFFINE, CARD)
    scores = np.random.default_rng(0).normal(size=(4, *lattice.shape)).astype(np.float32)
    at_once = to_native(lattice, scores)
    monkeypatch.setattr(module, "SLAB_VOXELS", 3000)
    np.testing.assert_array_equal(to_native(lattice, scores), at_once)
    assert set(np.unique(at_once)) == {0, 1, 2, 3}


def test_labels_of_another_image_are_refused() -> None:
    lattice = lattice_of(SHAPE, AFFINE, CARD)
    with pytest.raises(VolumeError, match="does not belong"):
        labels_on(lattice, np.zeros((3, 3, 3)))
    with pytest.raises(ProbeError, match="do not fit"):
        to_native(lattice, np.zeros((2, 3, 3, 3)))


# --- checks ----------------------------------------------------------------------------------


def test_an_encoder_without_maps_gives_the_image_alone() -> None:
    made = pyramid(noise(), toy.ToyEncoder(encoder_card(strides=())), CARD)
    assert made.levels == ()
    assert made.forward_voxels == 0
    assert made.image.shape == (1, 20, 18, 24)


def test_a_task_without_a_lattice_is_refused() -> None:
    with pytest.raises(ProbeError, match="lattice_mm"):
        pyramid(noise(), Pooling(encoder_card()), replace(CARD, lattice_mm=None))


def test_more_voxels_than_the_task_allows_are_refused_before_any_is_shown() -> None:
    encoder = Pooling(encoder_card((8, 8, 8)))
    shown = pyramid(noise(), encoder, CARD).forward_voxels
    encoder.calls.clear()
    with pytest.raises(EncoderError, match="allows"):
        pyramid(noise(), encoder, replace(CARD, forward_voxels=shown - 1))
    assert encoder.calls == []
    assert pyramid(noise(), encoder, replace(CARD, forward_voxels=shown)).forward_voxels == shown


class Misbehaving(toy.ToyEncoder):
    def __init__(self, how: str) -> None:
        super().__init__(encoder_card((8, 8, 8), strides=(1,)))
        self.how, self.call = how, 0
        if how == "buffers":
            self.module = torch.nn.BatchNorm3d(1)

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        self.call += 1
        if self.how == "buffers":
            assert self.module is not None
            self.module.train()
            return [self.module(x)]
        return {
            "nan": lambda: [x / 0],
            "number": lambda: [x, x],
            "shape": lambda: [x[:, 0]],
            "crash": lambda: [x.nothing],  # type: ignore[attr-defined]
            "changing": lambda: [x.repeat(1, self.call, 1, 1, 1)],
        }[self.how]()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("nan", "NaN or infinity"),
        ("number", "gives 2 maps"),
        ("shape", "a tensor"),
        ("crash", "AttributeError"),
        ("changing", "for another of the same shape"),
        ("buffers", "changed its buffers"),
    ],
)
def test_an_encoder_that_misbehaves_is_named(
    how: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tomoprobe.benchmark import features

    monkeypatch.setattr(features, "BATCH_VOXELS", 8**3)  # one tile at a time
    with pytest.raises(EncoderError, match=message):
        pyramid(noise(), Misbehaving(how), CARD)


def test_a_region_is_shown_as_empty() -> None:
    class Described(toy.ToyEncoder):
        def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
            assert x.shape[1] == 2
            return [x]

    card = replace(encoder_card(strides=(1,)), region=True)
    made = pyramid(noise(), Described(card), CARD)
    image, mask = made.full(0)
    assert not mask.any()
    assert image.any()


def test_one_channel_is_repeated_for_a_model_that_wants_three() -> None:
    card = replace(encoder_card(strides=(1,)), channels=3)
    made = pyramid(noise(), Pooling(card), CARD)
    assert made.levels[0].values.shape[0] == 3
    np.testing.assert_array_equal(made.levels[0].values[0], made.levels[0].values[2])
    assert made.image.shape[0] == 1


def test_memory_that_runs_out_halves_the_batch() -> None:
    class Tight(Pooling):
        def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
            if len(x) > 2:
                raise torch.cuda.OutOfMemoryError
            return super().maps(x)

    card = encoder_card((8, 8, 8))
    tight, wide = Tight(card), Pooling(card)
    halved, whole = pyramid(noise(), tight, CARD), pyramid(noise(), wide, CARD)
    assert max(tight.calls) <= 2 < max(wide.calls)
    for a, b in zip(halved.levels, whole.levels, strict=True):
        np.testing.assert_array_equal(a.values, b.values)


@pytest.mark.parametrize(("scale", "dtype"), [(1, "float16"), (1e6, "float32"), (1e-6, "float32")])
def test_half_precision_is_used_where_it_keeps_the_values(scale: float, dtype: str) -> None:
    class Scaled(toy.ToyEncoder):
        def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [x * scale]

    made = pyramid(noise(), Scaled(encoder_card((20, 18, 24), strides=(1,))), CARD)
    assert made.levels[0].values.dtype == dtype
    np.testing.assert_allclose(made.full(0), made.image * scale, rtol=2e-3, atol=2e-4 * scale)


# --- memory ----------------------------------------------------------------------------------

SCALED_DOWN = """
import resource, sys
import numpy as np, torch
from tomoprobe.benchmark import features
from tomoprobe.benchmark.dense import pyramid
from tomoprobe.benchmark.types import EncoderCard, Grid, TaskCard, Volume, Window

torch.set_num_threads(1)
features.BATCH_VOXELS = 4 * 32**3

class Wide:
    card = EncoderCard("wide", "", Grid((32, 32, 32), (1.5, 1.5, 1.5)), {"HU": Window(-1000, 1000)},
                       width=1, strides=(2,))
    model_sha, module = "0" * 64, None
    def maps(self, x):
        return [torch.nn.functional.avg_pool3d(x, 2).expand(-1, 48, -1, -1, -1).contiguous()]

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

task = TaskCard("t", 1, "", "segmentation", "CT", "", "dice", "", "", "", {}, lattice_mm=(6, 6, 6))
affine = np.diag([0.8, 0.8, 0.8, 1])
small = Volume(np.zeros((1, 40, 40, 40), np.float32), affine, "HU")
pyramid(small, Wide(), task)  # libraries are loaded, kernels compiled
volume = Volume(np.zeros((1, 240, 240, 200), np.float32), affine, "HU")
before = peak()
made = pyramid(volume, Wide(), task)
print(peak() - before, made.forward_voxels)
"""


def test_memory_is_that_of_the_accumulators_and_one_batch() -> None:
    """A CT of 192 x 192 x 160 mm in 125 tiles of 48 channels, four at a time."""
    out = subprocess.run(
        [sys.executable, "-c", SCALED_DOWN], capture_output=True, text=True, check=True
    ).stdout
    used, voxels = map(float, out.split())
    tiles = voxels / 32**3
    all_maps = tiles * 48 * 16**3 * 4 / 2**20  # MiB: what holding on to them would take
    assert all_maps > 90
    assert used < all_maps / 2


# --- cache -----------------------------------------------------------------------------------


def image_case(index: int) -> Case:
    volume = noise((20, 20, 20), seed=index)
    return Case(
        f"case/{index}",
        f"p{index}",
        0,
        lambda: volume,
        lambda: sha256(volume.voxels.tobytes()).hexdigest(),
        "train",
    )


def setting(folder: Path, encoder: toy.ToyEncoder, card: TaskCard = CARD, n: int = 3) -> Setting:
    identity = DataIdentity("images", "dataset")
    cases = [image_case(i) for i in range(n)]
    return Setting(card, cases, encoder, FeatureCache(folder), identity)


def same(a: dense.Pyramid, b: dense.Pyramid) -> bool:
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.lattice.affine, b.lattice.affine)
    for one, other in zip(a.levels, b.levels, strict=True):
        np.testing.assert_array_equal(one.values, other.values)
        assert one.values.dtype == other.values.dtype
        assert (one.factor, one.mm) == (other.factor, other.mm)
    return a.forward_voxels == b.forward_voxels and a.lattice.shape == b.lattice.shape


def test_maps_are_made_once_and_read_again(tmp_path: Path) -> None:
    encoder = Pooling(encoder_card())
    first = Pyramids(setting(tmp_path, encoder)).of(1)
    assert same(first, pyramid(noise((20, 20, 20), seed=1), Pooling(encoder_card()), CARD))
    encoder.calls.clear()
    assert same(Pyramids(setting(tmp_path, encoder)).of(1), first)
    assert encoder.calls == []
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    "other",
    [
        replace(CARD, lattice_mm=(3.0, 3.0, 3.0)),
        replace(CARD, field_of_view_mm=(20.0, 18.0, 24.0)),
        replace(CARD, field_of_view_mm=None),
    ],
)
def test_another_lattice_is_another_file(tmp_path: Path, other: TaskCard) -> None:
    encoder = Pooling(encoder_card())
    Pyramids(setting(tmp_path, encoder)).of(0)
    encoder.calls.clear()
    Pyramids(setting(tmp_path, encoder, other)).of(0)
    assert encoder.calls
    encoder.calls.clear()
    Pyramids(setting(tmp_path, replace(encoder, model_sha="1" * 64))).of(0)
    assert encoder.calls


@pytest.mark.parametrize("damage", ["truncated", "foreign"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: str) -> None:
    encoder = Pooling(encoder_card())
    pyramids = Pyramids(setting(tmp_path, encoder))
    first = pyramids.of(0)
    pyramids.of(1)
    one, other = sorted(tmp_path.rglob("*.safetensors"))
    for path, instead in ((one, other.read_bytes()), (other, one.read_bytes())):
        path.write_bytes(path.read_bytes()[:500] if damage == "truncated" else instead)
    assert same(pyramids.of(0), first)
    encoder.calls.clear()
    assert same(pyramids.of(0), first)
    assert encoder.calls == []


def test_two_at_once_run_the_encoder_once(tmp_path: Path) -> None:
    encoder = Pooling(encoder_card())
    alone = Pooling(encoder_card())
    pyramid(noise((20, 20, 20), seed=0), alone, CARD, check=True)
    found: list[dense.Pyramid] = []

    def work() -> None:
        found.append(Pyramids(setting(tmp_path, encoder)).of(0))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same(*found)
    assert encoder.calls == alone.calls


def test_a_strangers_encoder_gets_the_cases_in_no_order(tmp_path: Path) -> None:
    """What it is shown first must not depend on which case is asked for first."""
    shown: set[bytes] = set()

    class Stranger(Pooling):
        shuffled = True

        def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
            self.first = getattr(self, "first", x.numpy().tobytes())
            return super().maps(x)

    for attempt in range(12):
        encoder = Stranger(encoder_card((20, 18, 24), None))
        Pyramids(setting(tmp_path / str(attempt), encoder)).of(0)
        assert len(list((tmp_path / str(attempt)).rglob("*.safetensors"))) == 3
        shown.add(encoder.first)
    assert len(shown) > 1  # all 12 the same: once in 3^11


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="No space left"):
        Pyramids(setting(tmp_path, Pooling(encoder_card()))).of(0)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_a_case_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    made = setting(tmp_path, Pooling(encoder_card()))
    broken = [replace(case, load=lambda: 1 / 0) for case in made.cases]  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"case/2.*ZeroDivisionError"):
        Pyramids(replace(made, cases=broken)).of(2)


def test_kept_maps_are_listed_and_cleaned_with_the_embeddings(tmp_path: Path) -> None:
    encoder = Pooling(encoder_card())
    made = setting(tmp_path, encoder)
    pyramids = Pyramids(made)
    for row in range(3):
        pyramids.of(row)
    made.cache.get(encoder, "toy", made.cases, made.identity, None)
    maps, embeddings = sorted(made.cache.entries(), key=lambda entry: entry.what, reverse=True)
    assert (maps.what, maps.model, maps.data_set, maps.n, maps.width) == (
        "maps",
        "toy_mean",
        "toy",
        3,
        3,
    )
    assert (embeddings.what, embeddings.n, embeddings.width) == ("embeddings", 3, 2)
    assert maps.bytes == sum(path.stat().st_size for path in maps.path.glob("*.safetensors"))
    (maps.path / "left.part").write_bytes(b"half")
    assert made.cache.clean("another model") == 4
    assert made.cache.clean("toy_mean") == maps.bytes + embeddings.bytes
    assert made.cache.entries() == []
    encoder.calls.clear()
    pyramids.of(0)
    assert encoder.calls


def test_maps_can_be_cleaned_alone_and_only_old_ones(tmp_path: Path) -> None:
    encoder = Pooling(encoder_card())
    made = setting(tmp_path, encoder)
    Pyramids(made).of(0)
    made.cache.get(encoder, "toy", made.cases, made.identity, None)
    assert made.cache.clean_maps("another model") == 0
    assert made.cache.clean_maps("toy_mean", older_than_s=60) == 0
    (maps,) = (entry for entry in made.cache.entries() if entry.what == "maps")
    for path in maps.path.glob("*.safetensors"):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 100))
    assert made.cache.clean_maps(older_than_s=60) == maps.bytes
    assert [entry.what for entry in made.cache.entries()] == ["embeddings"]
