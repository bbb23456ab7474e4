"""Registration finds known deformations, moves nothing without evidence, and is scored rightly."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from tomoprobe import tasks
from tomoprobe.benchmark import deformations, metrics
from tomoprobe.benchmark.cache import FeatureCache
from tomoprobe.benchmark.dense import Level, Pyramid
from tomoprobe.benchmark.errors import DataError, MaskError, ProbeError
from tomoprobe.benchmark.features import identify
from tomoprobe.benchmark.lattice import lattice_of
from tomoprobe.benchmark.probes._descriptors import CHANNELS, shared
from tomoprobe.benchmark.probes.register import Register
from tomoprobe.benchmark.registration import register
from tomoprobe.benchmark.studies import Setting
from tomoprobe.benchmark.targets import Labels, Pair
from tomoprobe.benchmark.types import Volume
from tomoprobe.benchmark.volumes import check_same_grid
from tomoprobe.submissions.load import load

from . import study_register as toy

SIZE = (24, 26, 22)
ONE = (1.0, 1.0, 1.0)
ALL = np.ones(SIZE, bool)
INNER = (slice(None), *(slice(5, -5),) * 3)


def features(seed: int = 0, channels: int = 3) -> np.ndarray:
    """(C, 40, 42, 38) smooth noise: enough to cut images of ``SIZE`` 8 voxels away."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(channels, *(n + 16 for n in SIZE)))
    return np.stack([ndimage.gaussian_filter(c, 1.5) for c in noise]).astype(np.float32)


def scaled(*images: np.ndarray) -> list[np.ndarray]:
    """Such that the total variance of all is 1."""
    flat = np.concatenate([i.reshape(len(i), -1) for i in images], axis=1)
    return [(i / np.sqrt(flat.var(1).sum())).astype(np.float32) for i in images]


def cut(whole: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """The image that shows at x what the central cut shows at x + u(x)."""
    at = np.indices(SIZE) + 8.0 + moves
    return np.stack([ndimage.map_coordinates(c, at, order=1) for c in whole])


STILL = np.zeros((3, *SIZE))


# --- the optimisation -----------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [(2.0, -3.0, 1.0), (0.5, 6.0, -4.25)])
def test_a_known_translation_is_found_to_a_fraction_of_a_voxel(shift: tuple[float, ...]) -> None:
    moves = STILL + np.array(shift)[:, None, None, None]
    fixed, moving = scaled(cut(features(), moves), cut(features(), STILL))
    found = register(fixed, moving, ALL, ONE)
    assert found.shape == (3, *SIZE) and found.dtype == np.float32
    np.testing.assert_allclose(found[INNER].mean((1, 2, 3)), shift, atol=0.25)
    assert deformations.end_point_error(found[INNER], moves[INNER]) < 0.5


def test_a_displacement_is_in_mm_along_each_axis() -> None:
    moves = STILL + np.array([2.0, -3.0, 1.0])[:, None, None, None]
    fixed, moving = scaled(cut(features(), moves), cut(features(), STILL))
    found = register(fixed, moving, ALL, (2.0, 3.0, 4.0))
    np.testing.assert_allclose(found[INNER].mean((1, 2, 3)), (4.0, -9.0, 4.0), atol=0.8)


def wave() -> np.ndarray:
    """(3, *SIZE) voxels: a smooth deformation of 3 voxels on average."""
    x, y, z = np.indices(SIZE)
    return np.stack([3 * np.sin(y / 6), 2 + np.cos(z / 5), 2 * np.sin(x / 7 + 1)])


def test_a_smooth_deformation_is_found_by_more_than_three_quarters_and_twice_alike() -> None:
    fixed, moving = scaled(cut(features(), wave()), cut(features(), STILL))
    found = register(fixed, moving, ALL, ONE)
    before = deformations.end_point_error(STILL[INNER], wave()[INNER])
    assert deformations.end_point_error(found[INNER], wave()[INNER]) < before / 4
    assert deformations.smoothness(deformations.jacobian(found, ONE))[1] == 0
    np.testing.assert_array_equal(register(fixed, moving, ALL, ONE), found)


@pytest.mark.parametrize("seen", [ALL, np.arange(SIZE[0])[:, None, None] > ALL * 8])
def test_constant_features_move_nothing_at_all(seen: np.ndarray) -> None:
    flat = np.zeros((2, *SIZE), np.float32)
    assert not register(flat, flat, seen, ONE).any()
    assert not register(flat + 3, flat + 3, seen, ONE).any()
    fixed, moving = scaled(cut(features(), STILL), cut(features(), STILL))
    part = np.indices(SIZE)[0] > 11
    alike = register(fixed * part, moving * part, seen, ONE)  # constant on one side
    assert np.abs(alike).max() < 0.05


def test_what_lies_beyond_the_moving_image_does_not_pull() -> None:
    """The unseen part holds nonsense; the seen part is in place, so nothing should move there."""
    fixed, moving = scaled(cut(features(), STILL), cut(features(), STILL))
    seen = np.indices(SIZE)[0] > 9
    moving[:, ~seen] = features(9)[:, 8:-8, 8:-8, 8:-8][:, ~seen] * 30
    found = register(fixed, moving, seen, ONE)
    assert np.abs(found[:, 14:]).mean() < 0.3
    assert np.abs(found[:, :8]).mean() < 1.0


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f, m, s: (f, m[:, 1:], s), "lattice"),
        (lambda f, m, s: (f, m, s[1:]), "lattice"),
        (lambda f, m, s: (f, m * np.nan, s), "NaN"),
    ],
)
def test_what_cannot_be_compared_is_refused(spoil, says: str) -> None:
    flat = np.zeros((1, *SIZE), np.float32)
    with pytest.raises(ProbeError, match=says):
        register(*spoil(flat, flat, ALL), ONE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_the_same_twice_and_what_a_processor_finds() -> None:
    fixed, moving = scaled(cut(features(), wave()), cut(features(), STILL))
    there = register(fixed, moving, ALL, ONE, "cuda")
    np.testing.assert_array_equal(register(fixed, moving, ALL, ONE, "cuda"), there)
    np.testing.assert_allclose(there, register(fixed, moving, ALL, ONE), atol=0.1)


# --- descriptors ----------------------------------------------------------------------------------


def pyramid(*levels: np.ndarray) -> Pyramid:
    lattice = lattice_of((8, 8, 8), np.eye(4), toy.CARD)
    factors = [8 // level.shape[1] for level in levels]
    made = tuple(Level(v, f, float(f)) for v, f in zip(levels, factors, strict=True))
    return Pyramid(lattice, made, np.zeros((1, 8, 8, 8), np.float32), 0)


def noise(channels: int, side: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(channels, side, side, side)).astype(np.float32)


def test_descriptors_are_few_of_variance_one_and_count_levels_alike() -> None:
    one, other = ([noise(40, 8, i) * 100, noise(5, 4, i), noise(1, 8, 9) * 0 + 7] for i in (0, 1))
    seen = np.ones((8, 8, 8), bool)
    a, b = shared(pyramid(*one), pyramid(*other), seen)
    assert a.shape == b.shape and len(a) <= CHANNELS
    both = np.concatenate([a.reshape(len(a), -1), b.reshape(len(b), -1)], axis=1).var(1)
    n = CHANNELS // 3
    assert both.sum() == pytest.approx(1, rel=1e-4)
    assert both[:n].sum() == pytest.approx(both[n:].sum(), rel=1e-4)


def test_descriptors_of_one_image_are_the_same_on_both_sides() -> None:
    levels = [noise(6, 8, 0), noise(9, 2, 0)]
    a, b = shared(pyramid(*levels), pyramid(*levels), np.ones((8, 8, 8), bool))
    np.testing.assert_array_equal(a, b)
    assert a.std() > 0


def test_levels_coarser_than_the_search_are_left_out_unless_there_is_no_finer_one() -> None:
    fine, twice, coarse = noise(6, 8, 0), noise(6, 4, 1), noise(6, 1, 2)
    seen = np.ones((8, 8, 8), bool)

    def of(*levels: np.ndarray) -> np.ndarray:
        return shared(pyramid(*levels), pyramid(*levels), seen)[0]

    np.testing.assert_array_equal(of(fine, twice, coarse), of(fine, twice))
    assert of(fine, twice).shape != of(fine).shape
    four = noise(6, 2, 3)
    assert of(four).any()
    np.testing.assert_array_equal(of(four, coarse), of(four))
    assert of(four, noise(6, 2, 4)).shape[0] > of(four).shape[0], "none of two alike"
    np.testing.assert_array_equal(of(four, fine * 0 + 3), of(four, four * 0))
    assert of(fine * 0 + 3, four).any(), "a constant map is no finer one"


def test_descriptors_do_not_depend_on_what_is_not_seen() -> None:
    one, other = noise(3, 8, 0), noise(3, 8, 1)
    seen = np.indices((8, 8, 8))[1] > 3
    spoiled = np.where(seen, other, 1e3).astype(np.float32)
    for a, b in zip(
        *(shared(pyramid(one), pyramid(o), seen) for o in (other, spoiled)), strict=True
    ):
        np.testing.assert_allclose(a[:, seen], b[:, seen], atol=1e-5)


def test_constant_maps_have_one_empty_descriptor_and_no_maps_are_refused() -> None:
    flat = noise(2, 8, 0) * 0 + 5
    a, b = shared(pyramid(flat), pyramid(flat), np.ones((8, 8, 8), bool))
    assert a.shape == (1, 8, 8, 8) and not a.any() and not b.any()
    with pytest.raises(ProbeError, match="maps"):
        shared(pyramid(), pyramid(), np.ones((8, 8, 8), bool))


# --- what a field does ----------------------------------------------------------------------------


def test_the_jacobian_of_a_linear_field_is_its_determinant_and_a_reflection_is_folded() -> None:
    grid = np.indices((6, 7, 8)) * np.array([1.0, 2.0, 3.0])[:, None, None, None]
    matrix = np.array([[0.2, 0.1, 0.0], [0.0, -0.3, 0.2], [0.1, 0.0, 0.5]])
    field = np.einsum("ij,jxyz->ixyz", matrix, grid)
    determinant = deformations.jacobian(field, (1.0, 2.0, 3.0))
    np.testing.assert_allclose(determinant, np.linalg.det(np.eye(3) + matrix), rtol=1e-6)
    sd, folding = deformations.smoothness(determinant)
    assert sd == pytest.approx(0, abs=1e-6) and folding == 0
    field[0] = -2 * grid[0]
    assert deformations.smoothness(deformations.jacobian(field, (1.0, 2.0, 3.0)))[1] == 1
    assert deformations.smoothness(np.array([1.0, math.e**2, 1.0, math.e**2]))[0] == pytest.approx(
        1
    )


def test_errors_are_in_mm_and_only_where_the_truth_is_known() -> None:
    true = np.full((3, 4, 4, 4), np.nan)
    assert math.isnan(deformations.end_point_error(np.zeros_like(true), true))
    true[:, 0] = np.array([3.0, 0.0, 4.0])[:, None, None]
    assert deformations.end_point_error(np.zeros_like(true), true) == pytest.approx(5)


AFFINE = np.array(
    [[1.9, 0.1, 0.0, -40.0], [-0.1, 1.9, 0.2, 12.0], [0.0, -0.2, 3.0, 7.0], [0, 0, 0, 1]]
)


def other_affine() -> np.ndarray:
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("xyz", (4, -7, 5), degrees=True).as_matrix()
    return turned @ np.diag([1.5, 1.5, 2.0, 1.0]) + np.array([[0, 0, 0, v] for v in (-42, 9, 5, 0)])


def field_to(target: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """(3, *shape) mm along the axes of ``AFFINE``: to the points x -> target @ x in scanner mm."""
    index = np.indices(shape).reshape(3, -1)
    points = AFFINE[:3, :3] @ index + AFFINE[:3, 3:]
    moved = target[:3, :3] @ points + target[:3, 3:] - points
    axes = AFFINE[:3, :3] / np.linalg.norm(AFFINE[:3, :3], axis=0)
    return np.linalg.solve(axes, moved).reshape(3, *shape)


def test_images_and_labels_are_pulled_through_both_affines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A moving image that holds its own scanner coordinates tells where each voxel was taken."""
    monkeypatch.setattr(deformations, "SLAB_VOXELS", 300)
    there = other_affine()
    index = np.indices((20, 22, 18)).reshape(3, -1)
    points = (there[:3, :3] @ index + there[:3, 3:]).reshape(3, 20, 22, 18).astype(np.float32)
    moving = Volume(points, there, "scanner")
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("z", 3, degrees=True).as_matrix()
    motion[:3, 3] = 1.0, -2.0, 1.5
    shape = (10, 12, 8)
    field = field_to(motion, shape)
    fixed = AFFINE[:3, :3] @ np.indices(shape).reshape(3, -1) + AFFINE[:3, 3:]
    expected = (motion[:3, :3] @ fixed + motion[:3, 3:]).reshape(3, *shape)
    found = deformations.carried(moving, shape, AFFINE, field)
    assert found.seen.any() and not found.seen.all()
    back = np.linalg.inv(there)
    at = np.einsum("ij,jxyz->ixyz", back[:3, :3], expected) + back[:3, 3][:, None, None, None]
    inner = ((at >= 0) & (at <= np.array([19, 21, 17])[:, None, None, None])).all(0)
    assert inner.any() and found.seen[inner].all()
    np.testing.assert_allclose(found.volume.voxels[:, inner], expected[:, inner], atol=1e-3)
    assert (found.volume.voxels[0][~found.seen] == points[0].min()).all()
    labels = np.arange(1, 20 * 22 * 18 + 1).reshape(20, 22, 18)
    pulled = deformations.pulled_labels(labels, there, field, AFFINE)
    assert (pulled[~found.seen] == 0).all()
    nearest = np.rint(at[:, inner]).astype(int)
    assert (pulled[inner] == labels[tuple(nearest)]).mean() > 0.99


def test_landmarks_that_are_moved_onto_their_partners_are_without_error() -> None:
    points = np.array([[-30.0, 20.0, 15.0], [-35.0, 25.0, 20.0]])
    motion = np.eye(4)
    motion[:3, 3] = 3.0, 0.0, 4.0
    moved = points + motion[:3, 3]
    field = field_to(motion, (10, 12, 8))
    assert deformations.landmark_error(points, moved, field, AFFINE) == pytest.approx(0, abs=1e-6)
    assert deformations.landmark_error(points, moved, field * 0, AFFINE) == pytest.approx(5)


def test_a_field_on_the_lattice_is_interpolated_to_the_voxels_and_kept_beyond() -> None:
    card = replace(toy.CARD, lattice_mm=(2.0, 2.0, 2.0), field_of_view_mm=(12.0, 12.0, 12.0))
    lattice = lattice_of((20, 20, 20), np.eye(4), card)
    field = np.stack(np.meshgrid(*lattice.positions, indexing="ij")).astype(np.float32)
    found = deformations.at_voxels(lattice, field)
    voxels = np.clip(np.arange(20), lattice.positions[0][0], lattice.positions[0][-1])
    np.testing.assert_allclose(
        found[0], np.broadcast_to(voxels[:, None, None], (20, 20, 20)), atol=1e-5
    )


# --- the study and its metrics --------------------------------------------------------------------


def setting(folder: Path, target: Pair | None = None, **changes: object) -> Setting:
    task = toy.task()
    cases, _ = tasks.open_cases(task, None, subset=False)
    if target is not None:
        cases = [replace(cases[0], target=target)]
    cache = FeatureCache(folder)
    made = Setting(task.card, cases, toy.oracle(), cache, identify(task, cases))
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_study_scores_what_is_known_and_draws_its_first_pair(tmp_path: Path) -> None:
    pair = toy.pair(0).target
    assert isinstance(pair, Pair)
    points = np.array([[8.0, 9.0, 7.0], [11.0, 12.0, 10.0]])
    moves = toy.motion(0)[:, [8, 11], [9, 12], [7, 10]].T
    marked = replace(
        pair, displacement=None, landmarks=lambda: (points, points + moves), fixed=None, moving=None
    )
    table = Register().run(setting(tmp_path, marked, pictures=tmp_path))
    assert table["tre"][0] < 0.6 < table["tre_before"][0]
    assert table[["dice", "hd95", "epe"]].isna().all(axis=None)
    assert table["forward_voxels"][0] == 2 * np.prod(toy.SHAPE)
    assert (tmp_path / "0000.png").stat().st_size > 5000


def test_a_picture_is_named_by_row_and_its_failure_costs_no_score(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ready = setting(tmp_path)
    named = [replace(case, id=f"my_task/{case.id}") for case in ready.cases[:1]]
    folder = tmp_path / "pictures"
    ready = replace(ready, cases=named, pictures=folder)
    lost = Register().run(ready)
    assert "No picture of pair 'my_task/pair0'" in caplog.text
    assert str(folder) in caplog.text
    folder.mkdir()
    pd.testing.assert_frame_equal(Register().run(ready), lost)
    assert [path.name for path in folder.iterdir()] == ["0000.png"]


def test_labels_on_other_voxels_than_their_image_are_refused(tmp_path: Path) -> None:
    pair = toy.pair(0).target
    assert isinstance(pair, Pair)
    other = Labels(lambda: (np.ones((3, 3, 3), np.int32), np.eye(4)), lambda: "0")
    with pytest.raises(MaskError, match="grid"):
        Register().run(setting(tmp_path, replace(pair, moving=other)))


def test_a_registration_task_without_pairs_or_tested_pairs_is_refused(tmp_path: Path) -> None:
    ready = setting(tmp_path)
    train = [replace(case, split="train") for case in ready.cases]
    with pytest.raises(ProbeError, match="test side"):
        Register().run(replace(ready, cases=train))
    single = [replace(case, target=1.0) for case in ready.cases]
    with pytest.raises(DataError, match="Pair"):
        Register().run(replace(ready, cases=single))


def test_metrics_are_means_over_the_pairs_that_have_the_truth() -> None:
    rows = pd.DataFrame(
        {
            "dice": [0.5, 0.9, np.nan],
            "dice_before": [0.1, 0.3, np.nan],
            "folding": [0.0, 0.0, 0.03],
            "tre": [np.nan] * 3,
        }
    )
    dice, folding, tre = (metrics.get(name) for name in ("warped_dice", "folding", "tre"))
    target, prediction = dice.read(rows)
    assert dice(target, prediction) == pytest.approx(0.7)
    assert dice.chance(target) == pytest.approx(0.2)
    draws = np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    np.testing.assert_allclose(dice(target, prediction, draws), [1.9 / 3, np.nan])
    assert folding(*folding.read(rows)) == pytest.approx(0.01)
    assert folding.chance(folding.read(rows).target) == 0
    assert math.isnan(tre(*tre.read(rows.assign(tre_before=np.nan))))


# --- tasks and floors -----------------------------------------------------------------------------

PAIR_TASKS = ("smoke_pairs", "msd_hippocampus_pairs", "sarcoma_ct_mr", "ixi10_pairs")


@pytest.mark.parametrize("name", PAIR_TASKS[1:])
def test_a_real_pair_has_labels_on_its_voxels_that_overlap(name: str, data_root: Path) -> None:
    opened, _ = tasks.open_cases(tasks.get(name), data_root, subset=True)
    case = opened[0]
    pair = case.target
    assert isinstance(pair, Pair) and pair.fixed is not None and pair.moving is not None
    fixed, moving = case.load(), pair.load()
    labels, others = pair.fixed.load(), pair.moving.load()
    check_same_grid(fixed, labels[1], labels[0].shape)
    check_same_grid(moving, others[1], others[0].shape)
    still = np.zeros((3, *labels[0].shape), np.float32)
    pulled = deformations.pulled_labels(*others, still, fixed.affine)
    a, b = labels[0] > 0, pulled > 0
    assert 0.3 < 2 * (a & b).sum() / (a.sum() + b.sum()) < 0.95
    assert set(np.unique(labels[0])) <= set(range(len(tasks.get(name).card.classes)))


def test_the_motion_of_a_sarcoma_pair_brings_its_tumours_together(data_root: Path) -> None:
    opened, _ = tasks.open_cases(tasks.get("sarcoma_ct_mr"), data_root, subset=True)
    pair = opened[0].target
    assert isinstance(pair, Pair) and pair.displacement and pair.fixed and pair.moving
    fixed, labels = opened[0].load(), pair.fixed.load()[0]
    true = pair.displacement()
    lengths = np.linalg.norm(true[:, labels > 0], axis=0)
    assert 10 < lengths.mean() < 20 and np.isnan(true[:, labels == 0]).all()
    filled = np.where(np.isfinite(true), true, np.nanmean(true, axis=(1, 2, 3), keepdims=True))
    pulled = deformations.pulled_labels(*pair.moving.load(), filled, fixed.affine)
    assert 2 * (pulled * labels).sum() / (pulled.sum() + labels.sum()) > 0.93


def test_partners_are_of_one_side_and_nobody_is_his_own(data_root: Path) -> None:
    opened, _ = tasks.open_cases(tasks.get("msd_hippocampus_pairs"), data_root, subset=True)
    sides = {case.id: case.split for case in opened}
    images = {case.id: case.digest() for case in opened[:20]}
    assert set(sides.values()) == {"train", "val", "test"}
    for case in opened[:20]:
        assert isinstance(case.target, Pair)
        assert case.target.digest() != images[case.id]


def test_a_baseline_that_says_nothing_registers_nothing_and_mind_does(tmp_path: Path) -> None:
    """On a simulated pair of heads whose deformation is known."""
    task = tasks.get("smoke_pairs")
    cases, complete = tasks.open_cases(task, None, subset=False)
    assert complete and len(cases) == task.card.counts["test"]
    one = Setting(
        task.card, cases[:1], load("mind"), FeatureCache(tmp_path), identify(task, cases[:1])
    )
    nothing = Register().run(replace(one, encoder=load("nothing")))
    for name in ("dice", "hd95", "epe"):
        assert nothing[name][0] == nothing[f"{name}_before"][0]
    assert nothing["sd_log_jacobian"][0] == nothing["folding"][0] == 0
    mind = Register().run(one)
    assert mind["epe"][0] < nothing["epe"][0] / 2
    assert mind["dice"][0] > nothing["dice"][0] + 0.05


def test_mind_ignores_the_sign_and_size_of_contrast() -> None:
    x = torch.from_numpy(features()[None, :1, :16, :16, :16])
    maps = load("mind").maps
    assert maps(x)[0].shape == (1, 12, 16, 16, 16)
    torch.testing.assert_close(maps(x)[0], maps(-3 * x + 2)[0], rtol=1e-3, atol=1e-4)
    assert maps(x)[0].amax(1).min() == 1 and maps(x)[0].min() >= 0
