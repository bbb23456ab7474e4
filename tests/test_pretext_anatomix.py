"""anatomix's pretext: the contrast by hand, and a short training."""

import json

import numpy as np
import torch

from tomoprobe.submissions import pretraining
from tomoprobe.submissions.baselines._contrast import (
    contrast_invariance,
    features_at,
    labels_at,
    supervised_contrast,
)
from tomoprobe.submissions.baselines.anatomix import PRETEXT
from tomoprobe.submissions.load import load


def by_hand(features, labels, temperature):
    """Khosla et al. (2020), equation 2, as loops."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    losses = []
    for i in range(len(unit)):
        others = [j for j in range(len(unit)) if j != i]
        e = {j: np.exp(unit[i] @ unit[j] / temperature) for j in others}
        same = [j for j in others if labels[j] == labels[i]]
        losses.append(-np.mean([np.log(e[j] / sum(e.values())) for j in same]))
    return np.mean(losses)


def test_the_loss_is_supervised_contrast_as_loops_give_it():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(12, 5)), np.array([0, 1, 2] * 4)
    found = supervised_contrast(torch.tensor(features), torch.tensor(labels), 0.33)
    np.testing.assert_allclose(found.item(), by_hand(features, labels, 0.33), rtol=1e-5)


def test_the_loss_is_least_where_labels_are_told_apart():
    labels = torch.tensor([0, 0, 1, 1])
    apart = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    mixed = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    assert supervised_contrast(apart, labels, 0.33) < supervised_contrast(mixed, labels, 0.33)


def test_a_position_is_the_same_place_in_both_views_and_in_the_labels():
    maps = torch.arange(64.0).view(1, 1, 4, 4, 4).repeat(2, 3, 1, 1, 1)
    positions = torch.tensor([0, 21, 63])
    found = features_at(maps, positions)
    assert torch.equal(found[0], found[1])
    assert found[0, :, 0].tolist() == [0.0, 21.0, 63.0]
    labels = torch.arange(64).view(1, 4, 4, 4)
    assert labels_at(labels, (4, 4, 4), positions).tolist() == [[0, 21, 63]]


def test_equal_views_are_fully_invariant():
    features = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    measures = contrast_invariance(features, features, torch.arange(30) % 3)
    assert max(measures.values()) > 0.99


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
    assert set(PRETEXT.presets) == {"tiny", "full"}
    assert all(preset.note for preset in PRETEXT.presets.values())
