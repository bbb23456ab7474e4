"""anatomix's objective: whose voxels are compared in which layers, and that it learns."""

import dataclasses
import json
import math

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

from tomoprobe.submissions import pretraining
from tomoprobe.submissions.architectures import anatomix as architecture
from tomoprobe.submissions.baselines import _contrast as contrast
from tomoprobe.submissions.baselines import _shown as shown
from tomoprobe.submissions.baselines import anatomix
from tomoprobe.submissions.load import load

TINIEST = dataclasses.replace(
    anatomix.TINY,
    architecture={"width": 4, "downs": 2},
    shape=(32, 32, 32),
    options={
        **anatomix.TINY.options,
        "grid": (16, 16, 16),
        "cube": None,
        "masks": 0.0,
        "projector_width": 32,
    },
)


def batch_of(preset, *seeds, data=()):
    source = anatomix.PRETEXT.source(preset, data)
    return default_collate([source.sample(np.random.default_rng(seed)) for seed in seeds])


def by_definition(features, labels, temperature):
    """Equation 2 of Khosla et al., sum by sum."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    losses = []
    for i in range(len(unit)):
        others = [a for a in range(len(unit)) if a != i]
        whole = sum(math.exp(unit[i] @ unit[a] / temperature) for a in others)
        positive = [p for p in others if labels[p] == labels[i]]
        shares = [math.exp(unit[i] @ unit[p] / temperature) / whole for p in positive]
        losses.append(-sum(map(math.log, shares)) / len(positive))
    return np.mean(losses)


def test_the_contrast_of_four_voxels_by_hand():
    """Each anchor has one positive with cosine 1 and two others with cosine 0, or 0 and 1, 0."""
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 4.0]])
    found = contrast.supervised_contrast(features, torch.tensor([0, 1, 0, 1]), 0.5)
    assert found.item() == pytest.approx(-math.log(math.e**2 / (math.e**2 + 2)), rel=1e-5)
    swapped = contrast.supervised_contrast(features, torch.tensor([0, 0, 1, 1]), 0.5)
    assert swapped.item() == pytest.approx(math.log(math.e**2 + 2), rel=1e-5)


def test_voxels_of_one_label_alone_have_no_nan_in_the_gradient():
    features = torch.randn(6, 4, requires_grad=True)
    contrast.supervised_contrast(features, torch.zeros(6), 0.33).backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_labels_of_a_coarse_voxel_are_those_where_it_begins():
    labels = torch.arange(2 * 8 * 8 * 4).view(2, 8, 8, 4)
    found = contrast.labels_at(labels, (4, 4, 2), torch.arange(32))
    expected = nn.functional.interpolate(labels[:, None].float(), (4, 4, 2), mode="nearest")
    assert torch.equal(found, expected.flatten(1).long())
    assert found[0, 31] == labels[0, 6, 6, 2]


def test_features_and_labels_are_read_at_the_same_places():
    labels = torch.arange(8 * 6 * 4).view(1, 8, 6, 4)
    maps = labels[:, ::2, ::2, ::2].float()[None].expand(2, 3, -1, -1, -1)
    positions = contrast.drawn_positions((4, 3, 2), 10, torch.device("cpu"))
    features = contrast.features_at(maps, positions)
    read = contrast.labels_at(labels, (4, 3, 2), positions)[0]
    assert features.shape == (2, 10, 3)
    assert torch.equal(features[1, :, 2].long(), read)
    assert len(positions.unique()) == 10
    assert len(contrast.drawn_positions((2, 2, 2), 512, torch.device("cpu"))) == 8


def test_projectors_have_three_layers_and_no_parameters_in_the_last_norm():
    modules = list(contrast.projector(16, 256, 3))
    linear = [m for m in modules if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(16, 256), (256, 256), (256, 256)]
    assert [m.affine for m in modules if isinstance(m, nn.BatchNorm1d)] == [True, True, False]


def test_both_views_of_a_layer_are_read_at_one_set_of_voxels_in_six_layers(monkeypatch):
    drawn, read = [], []
    draw, features_at = anatomix.drawn_positions, anatomix.features_at

    def noted(sides, count, device):
        drawn.append((tuple(sides), draw(sides, count, device)))
        return drawn[-1][1]

    def read_at(maps, positions):
        read.append((tuple(maps.shape[:2]), positions))
        return features_at(maps, positions)

    monkeypatch.setattr(anatomix, "drawn_positions", noted)
    monkeypatch.setattr(anatomix, "features_at", read_at)
    options = {**anatomix.TINY.options, "grid": (32, 32, 32), "cube": None}
    preset = dataclasses.replace(anatomix.TINY, batch=1, options=options)
    anatomix.PRETEXT.objective(preset).loss(batch_of(preset, 0), 0.0)
    assert [sides[0] for sides, _ in drawn] == [4, 2, 4, 8, 16, 32]
    assert [len(positions) for _, positions in drawn] == [64, 8, 64, 512, 512, 512]
    assert [shape for shape, _ in read] == [(2, n) for n in (64, 128, 64, 32, 16, 16)]
    assert all(x is y for (_, x), (_, y) in zip(drawn, read, strict=True))


def test_the_loss_is_the_mean_over_layers_and_samples_of_the_papers_sum(monkeypatch):
    """Against the definition, on what the projectors give."""
    seen = []
    supervised = anatomix.supervised_contrast

    def noted(features, labels, temperature):
        seen.append((features.detach().double().numpy(), labels.numpy(), temperature))
        return supervised(features, labels, temperature)

    monkeypatch.setattr(anatomix, "supervised_contrast", noted)
    preset = dataclasses.replace(TINIEST, options={**TINIEST.options, "positions": 20})
    loss, _ = anatomix.PRETEXT.objective(preset).loss(batch_of(preset, 0, 1), 0.0)
    layers = architecture.build(shape=(16,) * 3, channels=1, readout="relu", downs=2).contrasted
    assert len(seen) == 2 * len(layers)
    assert all(len(x) == 40 and (y[:20] == y[20:]).all() for x, y, _ in seen)
    assert loss.item() == pytest.approx(np.mean([by_definition(*x) for x in seen]), rel=1e-4)


@pytest.mark.parametrize("cube", [None, 12])
def test_the_network_sees_other_cubes_and_both_are_read_at_the_same_voxels(monkeypatch, cube):
    """With the image itself for a map, and one view twice, both are read alike."""
    seen, read = [], []
    features_at = anatomix.features_at
    monkeypatch.setattr(anatomix, "view", lambda dice, labels: labels.float())
    monkeypatch.setattr(
        anatomix,
        "features_at",
        lambda maps, positions: read.append(maps) or features_at(maps, positions),
    )
    preset = dataclasses.replace(TINIEST, options={**TINIEST.options, "cube": cube})
    objective = anatomix.PRETEXT.objective(preset)

    def run(images, layers):
        seen.append(images)
        widths = {n: anatomix.channels(objective.network, n) for n in layers}
        return {n: images.expand(-1, width, -1, -1, -1) for n, width in widths.items()}

    monkeypatch.setattr(objective.network, "run", run)
    torch.manual_seed(0)
    objective.loss(batch_of(preset, 0), 0.0)
    first, second = seen[0]
    assert first.shape == (1, *[cube or 16] * 3)
    assert torch.equal(first, second) is (cube is None)
    assert all(torch.equal(*maps) for maps in read)


def test_what_two_cubes_share_lies_as_in_the_label_map_at_every_stride():
    """The image is the index of each voxel; coarse maps are its means."""
    torch.manual_seed(0)
    index = torch.arange(24.0**3, dtype=torch.float64).reshape(1, 24, 24, 24)
    sizes = set()
    for _ in range(30):
        drawn = shown.Shown.drawn((24, 24, 24), 16, 8)
        seen = drawn.images(index.expand(2, 2, 1, -1, -1, -1))
        assert seen.shape == (4, 1, 16, 16, 16)
        labels = drawn.shared_labels(index)
        sizes.add(labels.shape)
        for stride in (1, 2, 4, 8):
            maps = drawn.shared(torch.nn.functional.avg_pool3d(seen, stride))
            wanted = torch.nn.functional.avg_pool3d(labels[:, None], stride)
            assert torch.allclose(maps, wanted.expand_as(maps), rtol=1e-12)
    assert len(sizes) == 8  # 8 or 16 voxels along each axis


def test_every_symmetry_of_the_cube_is_drawn_and_every_place():
    torch.manual_seed(0)
    drawn = [shown.Shown.drawn((24, 24, 24), 16, 8) for _ in range(600)]
    assert len({(one.order, one.flips) for one in drawn}) == 48
    assert len({start for one in drawn for start in one.starts}) == 8


def test_in_some_pairs_one_view_is_a_mask_of_a_few_shapes():
    options = {**TINIEST.options, "masks": 0.5}
    objective = anatomix.PRETEXT.objective(dataclasses.replace(TINIEST, options=options))
    labels, images = objective.pairs(batch_of(TINIEST, *range(40)), torch.device("cpu"))
    binary = [[set(view.unique().tolist()) <= {0.0, 1.0} for view in pair] for pair in images]
    assert 10 < sum(map(any, binary)) < 30
    assert {tuple(pair) for pair in binary} == {(False, False), (False, True), (True, False)}
    for pair, found, of in zip(images, binary, labels, strict=True):
        if any(found):
            assert torch.equal(pair[found.index(True), 0] > 0, of > 0)
            assert len(of.unique()) <= 4


@pytest.mark.slow
def test_it_learns_what_helps_on_pairs_it_has_not_seen():
    torch.manual_seed(0)
    objective = anatomix.PRETEXT.objective(TINIEST)
    held_out = batch_of(TINIEST, 100, 101, 102, 103)

    def check():
        with torch.no_grad():
            torch.manual_seed(1)
            return objective.loss(held_out, 0.0)[0].item()

    before = check()
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for step in range(60):
        loss, _ = objective.loss(batch_of(TINIEST, step), 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert check() < before - 0.1


def test_measures_tell_invariance_from_collapse():
    labels = torch.tensor([0, 0, 1, 1])
    axes = torch.eye(2)[labels]
    perfect = contrast.contrast_invariance(axes, 3 * axes, labels)
    assert perfect["same_voxel"] == pytest.approx(1)
    assert perfect["other_label"] == pytest.approx(0)
    assert perfect["accuracy"] == 1
    assert perfect["embedding_std"] > 0.5
    collapsed = contrast.contrast_invariance(torch.ones(4, 2), torch.ones(4, 2), labels)
    assert collapsed["embedding_std"] == pytest.approx(0, abs=1e-6)
    assert contrast.contrast_invariance(axes[:2], axes[:2], labels[:2])["other_label"] == 0


def test_labels_made_by_the_objective_follow_the_seed_and_may_come_from_masks(tmp_path):
    preset = dataclasses.replace(TINIEST, options={**TINIEST.options, "labels_on_device": True})
    objective = anatomix.PRETEXT.objective(preset)
    batch = batch_of(preset, 0, 1)
    assert set(batch) == {"seed"}
    device = torch.device("cpu")
    labels, images = objective.pairs(batch, device)
    assert labels.shape == (2, 16, 16, 16)
    assert images.shape == (2, 2, 1, 16, 16, 16)
    assert torch.equal(objective.pairs(batch, device)[1], images)

    nib.save(nib.Nifti1Image(np.ones((60, 60, 60), np.uint8), np.eye(4)), tmp_path / "cube.nii.gz")
    batch = batch_of(preset, 0, 1, data=[tmp_path])
    assert batch["templates"].shape == (2, 39, 16, 16, 16)
    assert (batch["templates"].flatten(2).sum(2) > 0).sum(1).tolist() == batch["count"].tolist()
    assert not torch.equal(objective.pairs(batch, device)[0], labels)


def test_what_is_published_is_the_plain_network_within_4_mib():
    state = anatomix.PRETEXT.objective(anatomix.TINY).encoder().state_dict()
    plain = architecture.build(shape=(64, 64, 64), channels=1, readout="relu", width=8)
    plain.load_state_dict(state, strict=True)
    assert 2 * sum(x.numel() for x in state.values()) < 4 * 2**20


def test_a_short_training_leaves_an_encoder_that_loads(tmp_path):
    trained = pretraining.pretrain("anatomix", "tiny", [], tmp_path, "cpu", 0, 2)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(np.isfinite(line["loss"]) for line in lines)
    loaded = load(str(trained.manifest))
    assert loaded.card.pretraining == ()
    x = torch.rand(1, 1, *loaded.card.grid.shape)
    assert loaded.embed(x).shape == (1, loaded.card.width)


def test_both_presets_state_what_they_are_for():
    assert set(anatomix.PRETEXT.presets) == {"tiny", "full"}
    assert all(preset.note for preset in anatomix.PRETEXT.presets.values())
