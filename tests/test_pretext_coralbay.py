"""CoralBay's pretext: its crops, its loss, and that it learns rather than collapses."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from tomoprobe.submissions.baselines import coralbay
from tomoprobe.submissions.baselines._self_distillation import dino_loss, sinkhorn_knopp

TINY, FULL = coralbay.TINY, coralbay.FULL


@dataclass
class Noise:
    """Volumes of smooth noise, each of its own brightness and coarseness."""

    count: int = 6

    def sample(self, rng):
        seed = int(rng.integers(self.count))
        coarse = np.random.default_rng(seed).random((4 + 2 * seed,) * 3, dtype=np.float32)
        grown = np.kron(coarse, np.ones((4, 4, 4), np.float32))
        return (0.5 * grown + seed / (2 * self.count))[:48, :48, :48]

    def describe(self):
        return f"{self.count} blocks of noise"


def source(preset=TINY):
    return coralbay.Crops(Noise(), preset.options)


def batch(preset=TINY, step=0):
    rngs = [np.random.default_rng([step, i]) for i in range(preset.batch)]
    return default_collate([source(preset).sample(rng) for rng in rngs])


def build(preset=TINY):
    torch.manual_seed(0)
    return coralbay.PRETEXT.objective(preset).train()


def test_a_sample_has_two_large_and_the_small_crops_and_depends_on_its_generator_alone():
    first, again, other = (source().sample(np.random.default_rng(s)) for s in (1, 1, 2))
    assert first["global"].shape == (2, 1, 24, 24, 24)
    assert first["local"].shape == (2, 1, 16, 16, 16)
    assert first["global"].dtype == torch.float32
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first["global"], other["global"])
    assert not torch.equal(first["global"][0], first["global"][1])


def test_full_takes_ten_crops_of_the_published_sizes():
    sample = source(FULL).sample(np.random.default_rng(0))
    assert sample["global"].shape == (2, 1, 96, 96, 96)
    assert sample["local"].shape == (8, 1, 48, 48, 48)


def test_the_rate_of_full_follows_the_published_rule():
    assert pytest.approx(2e-3 * math.sqrt(FULL.batch / 1024), rel=0.02) == FULL.learning_rate


def test_the_loss_is_dino_between_the_crops_of_each_image():
    preset = replace(TINY, batch=3)
    system, data = build(preset), batch(preset)
    with torch.no_grad():
        for p in system.student.parameters():
            p.add_(0.01 * torch.randn_like(p))  # a student unlike its teacher
    found = system.loss(data, 0.0)[0]
    teacher, student = ([m["backbone"].embed, m["dino"]] for m in (system.teacher, system.student))

    def answers(network, crops):  # crop by crop: (B, K) each
        return torch.stack([network[1](network[0](crops[:, i])) for i in range(crops.shape[1])])

    with torch.no_grad():
        said = torch.cat([answers(student, data["global"]), answers(student, data["local"])])
        balanced = sinkhorn_knopp(answers(teacher, data["global"]).flatten(0, 1), 0.04)
        wanted = dino_loss(balanced.unflatten(0, (2, 3)), said, 0.1)
    assert found.item() == pytest.approx(float(wanted), rel=1e-4)


def test_gradients_reach_all_of_the_student_and_none_of_the_teacher():
    preset = replace(TINY, batch=2)
    system = build(preset)
    system(batch(preset), 0.0)[0].backward()
    missing = [
        name
        for name, p in system.student.named_parameters()
        if p.grad is None or not torch.isfinite(p.grad).all()
    ]
    assert missing == []
    assert all(p.grad is None for p in system.teacher.parameters())


def test_centring_runs_as_well_and_moves_its_centre():
    preset = replace(TINY, batch=2, options={**TINY.options, "targets": "centre"})
    system = build(preset)
    loss, _ = system(batch(preset), 0.0)
    assert torch.isfinite(loss)
    assert system.centres["dino"].average.abs().max() > 0


@pytest.mark.slow
def test_a_few_steps_learn_and_do_not_collapse():
    preset = replace(TINY, batch=8)
    system = build(preset)
    optimizer = torch.optim.AdamW(system.parameters_to_train()[0]["params"], lr=1e-3)
    losses, measures = [], {}
    for step in range(16):
        loss, measures = system(batch(preset, step), 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        system.after_step(0.0)
        losses.append(float(loss.detach()))
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.2
    assert measures["teacher_information"] > 0.1
    assert measures["embedding_std"] > 0.1


def test_the_card_asks_for_hounsfield_units_as_the_authors_scale_them():
    card = coralbay.PRETEXT.card(FULL)
    window = card["intensity"]["HU"]
    assert (window["low"], window["high"]) == (-1000, 1000)
    assert card["grid"] == {"spacing": [1.5, 1.5, 1.5]}
    assert "grid" not in coralbay.PRETEXT.card(TINY)
