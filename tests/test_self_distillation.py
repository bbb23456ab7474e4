"""Losses, targets, schedules and the teacher, against cases by hand and numpy."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tomoprobe.submissions.baselines import _multi_crop as crops
from tomoprobe.submissions.baselines import _self_distillation as distil

OPTIONS = {
    "targets": "sinkhorn",
    "student_temperature": 0.1,
    "teacher_temperature": (0.04, 0.07),
    "teacher_warmup": 0.3,
    "momentum": (0.9, 1.0),
    "freeze_last": 0.1,
}


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


# --- losses ---------------------------------------------------------------------------------------


def test_dino_compares_each_teacher_crop_with_every_other_student_crop():
    targets, logits = softmax(random(2, 5, 7)), random(3, 5, 7, seed=1)
    said = np.log(softmax(logits / 0.1))
    pairs = [
        -(targets[t, b] * said[s, b]).sum()
        for t, s in [(0, 1), (0, 2), (1, 0), (1, 2)]
        for b in range(5)
    ]
    found = distil.dino_loss(torch.tensor(targets), torch.tensor(logits), 0.1)
    assert float(found) == pytest.approx(np.mean(pairs), rel=1e-5)


def test_dino_of_a_uniform_student_is_the_log_of_the_prototypes():
    targets = torch.tensor(softmax(random(2, 3, 16)))
    assert float(distil.dino_loss(targets, torch.zeros(4, 3, 16), 0.1)) == pytest.approx(
        math.log(16)
    )


def test_ibot_is_the_mean_over_masked_patches_then_over_crops_that_have_any():
    masks = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    targets, logits = softmax(random(3, 4)), random(3, 4, seed=1)
    each = -(targets * np.log(softmax(logits / 0.2))).sum(1)
    found = distil.ibot_loss(torch.tensor(targets), torch.tensor(logits), masks, 0.2)
    assert float(found) == pytest.approx(((each[0] + each[1]) / 2 + each[2]) / 2, rel=1e-5)


def test_ibot_without_a_masked_patch_is_zero_and_still_differentiable():
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = distil.ibot_loss(torch.zeros(0, 4), logits, torch.zeros(2, 3, dtype=torch.bool), 0.1)
    loss.backward()
    assert float(loss.detach()) == 0


def test_koleo_of_known_points():
    # Unit vectors at 0, 60 and 180 degrees: chords 1, 1 and sqrt 3. Lengths do not matter.
    angles = np.radians([0, 60, 180])
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * [[1], [5], [0.3]]
    found = distil.koleo_loss(torch.tensor(points))
    assert float(found) == pytest.approx(-math.log(math.sqrt(3)) / 3, abs=1e-6)


def test_koleo_pushes_neighbours_apart():
    points = torch.tensor([[1.0, 0.0], [0.9, 0.1]], requires_grad=True)
    distil.koleo_loss(points).backward()
    assert points.grad is not None
    assert points.grad[1, 1] < 0  # descent raises the second coordinate of the second point


def test_gram_loss_compares_cosines_between_patches():
    a, b = random(2, 5, 3), random(2, 5, 3, seed=1)
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b)]
    wanted = np.mean([(u @ u.T - v @ v.T) ** 2 for u, v in zip(unit[0], unit[1], strict=True)])
    found = distil.gram_loss(torch.tensor(a), torch.tensor(b))
    assert float(found) == pytest.approx(wanted, rel=1e-5)
    assert float(distil.gram_loss(torch.tensor(a), 3 * torch.tensor(a))) == pytest.approx(0)


# --- targets --------------------------------------------------------------------------------------


def test_sinkhorn_fills_prototypes_evenly_with_rows_that_sum_to_one():
    logits = torch.tensor(random(24, 6) * 0.1)
    found = distil.sinkhorn_knopp(logits, 0.05, iterations=100)
    torch.testing.assert_close(found.sum(1), torch.ones(24))
    torch.testing.assert_close(found.sum(0), torch.full((6,), 4.0), rtol=1e-4, atol=0)


def test_three_iterations_of_sinkhorn_equal_the_algorithm_written_out():
    logits = random(5, 3)
    q = np.exp(logits / 0.5).T
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdims=True) * 3
        q /= q.sum(0, keepdims=True) * 5
    found = distil.sinkhorn_knopp(torch.tensor(logits), 0.5)
    np.testing.assert_allclose(found.numpy(), q.T * 5, rtol=1e-5)


def test_sinkhorn_stays_finite_at_small_temperatures_and_takes_no_rows():
    logits = torch.tensor([[1.0, -1.0, -1.0], [1.0, -1.0, -0.99]])
    found = distil.sinkhorn_knopp(logits, 0.01)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.sum(1), torch.ones(2))
    assert distil.sinkhorn_knopp(torch.zeros(0, 3), 0.1).shape == (0, 3)


def test_the_centre_is_subtracted_and_follows_the_mean_logits():
    centre = distil.Centre(3, momentum=0.9)
    first = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]])
    torch.testing.assert_close(centre(first, 0.5), (first / 0.5).softmax(1))
    torch.testing.assert_close(centre.average, torch.tensor([0.2, 0.0, 0.1]))
    second = torch.tensor([[0.2, 0.0, 0.1]])
    torch.testing.assert_close(centre(second, 0.5), torch.full((1, 3), 1 / 3))


# --- measures -------------------------------------------------------------------------------------


def test_collapse_to_one_point_has_no_spread_and_isotropy_has_one():
    assert distil.embedding_std(torch.ones(8, 4)) == pytest.approx(0, abs=1e-6)
    wide = torch.tensor(random(4000, 16))
    assert distil.embedding_std(wide) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("answers", "marginal", "conditional"),
    [
        (np.eye(4), math.log(4), 0),  # each image its own prototype
        (np.full((4, 4), 0.25), math.log(4), math.log(4)),  # collapsed: uniform
        (np.eye(4)[[1, 1, 1, 1]], 0, 0),  # collapsed: one prototype
    ],
)
def test_entropies_tell_the_two_kinds_of_collapse(answers, marginal, conditional):
    found = distil.teacher_entropy(torch.tensor(answers))
    assert found == pytest.approx((marginal, conditional), abs=1e-6)


# --- schedules and the teacher --------------------------------------------------------------------


def test_schedules_at_the_start_the_middle_and_the_end():
    assert distil.half_cosine(0.992, 1, 0) == pytest.approx(0.992)
    assert distil.half_cosine(0.992, 1, 0.5) == pytest.approx(0.996)
    assert distil.half_cosine(0.992, 1, 1) == pytest.approx(1)
    assert distil.half_cosine(0.992, 1, 1 / 3) == pytest.approx(0.994)
    assert [distil.warmed_up(0.04, 0.07, 0.3, p) for p in (0, 0.15, 0.3, 1)] == pytest.approx(
        [0.04, 0.055, 0.07, 0.07]
    )
    assert distil.warmed_up(0.04, 0.07, 0, 0) == 0.07


class Bare(distil.SelfDistillation):
    """With a loss that a test can do by hand."""

    def loss(self, batch, progress):
        targets = self.targets("dino", self.teacher["backbone"](batch), progress)
        logits = self.student["dino"](self.student["backbone"](batch))
        return -(targets * logits.log_softmax(-1)).sum(-1).mean(), {}


def bare(**changes):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    return Bare(backbone, {"dino": distil.Head(4, 8, 5, 6)}, {**OPTIONS, **changes})


def test_the_teacher_is_the_moving_average_of_the_student():
    system = bare()
    with torch.no_grad():
        for p in system.teacher.parameters():
            p.fill_(1.0)
        for p in system.student.parameters():
            p.fill_(2.0)
    system.student["backbone"][1].running_mean.fill_(7.0)
    system.after_step(0.0)
    assert all(torch.allclose(p, torch.tensor(1.1)) for p in system.teacher.parameters())
    assert system.teacher["backbone"][1].running_mean.tolist() == [7.0] * 4
    system.after_step(0.5)  # momentum 0.95
    assert all(torch.allclose(p, torch.tensor(1.145)) for p in system.teacher.parameters())


def test_only_the_student_is_trained_and_the_teacher_is_published():
    system = bare().train()
    trained = {id(p) for group in system.parameters_to_train() for p in group["params"]}
    assert trained == {id(p) for p in system.student.parameters()}
    assert not system.teacher.training
    assert system.encoder() is system.teacher["backbone"]
    decaying = {
        id(p) for group in system.parameters_to_train() if group["decay"] for p in group["params"]
    }
    assert id(system.student["dino"].prototypes) not in decaying
    assert id(system.student["backbone"][0].bias) not in decaying
    assert id(system.student["backbone"][0].weight) in decaying


def test_prototypes_stay_until_they_are_set_free():
    system = bare().train()
    optimizer = torch.optim.AdamW(system.student.parameters(), weight_decay=0.1)
    before = system.student["dino"].prototypes.detach().clone()
    batch = torch.randn(8, 3)
    for progress, moved in ((0.0, False), (0.5, True)):
        optimizer.zero_grad()
        system(batch, progress)[0].backward()
        system.before_step(progress)
        optimizer.step()
        assert (not torch.equal(system.student["dino"].prototypes, before)) is moved


def test_targets_sharpen_with_the_temperature_of_the_time():
    system = bare(teacher_temperature=(0.04, 0.4))
    embeddings = torch.randn(12, 4)
    early, late = (
        distil.teacher_entropy(system.targets("dino", embeddings, p))[1] for p in (0, 0.9)
    )
    assert early < late


def test_a_head_gives_cosines_whatever_the_length_of_its_prototypes():
    head = distil.Head(4, 8, 5, 6)
    x = torch.randn(3, 4)
    before = head(x)
    with torch.no_grad():
        head.prototypes.mul_(7)
    torch.testing.assert_close(head(x), before)
    assert before.abs().max() <= 1 + 1e-6


# --- crops ----------------------------------------------------------------------------------------


def test_a_box_has_the_drawn_share_of_the_plane():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        x, y = crops.box((200, 100), (0.25, 0.5), (0.75, 4 / 3), rng)
        assert 0 <= x.start < x.stop <= 200
        assert 0 <= y.start < y.stop <= 100
        shares.append((x.stop - x.start) * (y.stop - y.start) / 20000)
    assert 0.24 < min(shares) < 0.27
    assert 0.48 < max(shares) < 0.51


def test_a_whole_crop_of_the_same_size_is_the_volume():
    volume = np.arange(512, dtype=np.float32).reshape(8, 8, 8)
    rng = np.random.default_rng(0)
    found = crops.crop_3d(volume, 8, (1, 1), (1, 1), rng, turn=0.0)
    np.testing.assert_array_equal(found, volume)
    turned = crops.crop_3d(volume, 8, (1, 1), (1, 1), rng, turn=1.0)
    assert not np.array_equal(turned, volume)
    np.testing.assert_array_equal(np.sort(turned, axis=None), volume.ravel())


def test_flips_of_a_slice_mirror_left_and_right_only():
    image = np.arange(12, dtype=np.float32).reshape(4, 3)
    rng = np.random.default_rng(0)
    whole = crops.region(image[..., None], (1, 1), rng)[..., 0]
    assert np.array_equal(whole, image)
    square = np.arange(16, dtype=np.float32).reshape(4, 4)
    np.testing.assert_array_equal(crops.crop_2d(square, 4, (1, 1), rng, flip=1.0), square[::-1])


def test_shrinking_averages_and_growing_interpolates():
    fine = np.array([[0, 2], [4, 6]], np.float32)
    assert crops.resized(fine, (1, 1)).item() == 3
    np.testing.assert_allclose(
        crops.resized(np.array([[0.0, 4.0]], np.float32), (1, 4)), [[0, 1, 3, 4]]
    )
    checker = np.indices((16, 16, 16)).sum(0) % 2
    np.testing.assert_allclose(crops.resized(checker.astype(np.float32), (8, 8, 8)), 0.5)


def test_jitter_keeps_the_range_where_only_contrast_changes():
    image = np.random.default_rng(0).random((9, 9), dtype=np.float32)
    seen = set()
    for seed in range(20):
        found = crops.jittered(image, np.random.default_rng(seed), gamma=0.5, blur=0.0, noise=0.0)
        assert found.min() == pytest.approx(image.min(), abs=1e-6)
        assert found.max() == pytest.approx(image.max(), abs=1e-6)
        np.testing.assert_array_equal(found.argsort(axis=None), image.argsort(axis=None))
        seen.add(round(float(found.mean()), 5))
    assert len(seen) > 5


@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 0.5, 1.0])
def test_masks_cover_their_share_exactly(share):
    for seed in range(10):
        mask = crops.block_mask((14, 14), share, np.random.default_rng(seed))
        assert mask.sum() == int(share * 196)


def test_masks_are_blocks():
    mask = crops.block_mask((14, 14), 0.37, np.random.default_rng(0))
    assert (mask[1:] == mask[:-1]).mean() > 0.7  # of scattered patches, 0.53 are like the next
