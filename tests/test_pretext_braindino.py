"""BrainDINO's pretext: its slices and masks, its three losses, and that it learns."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from tomoprobe.submissions.baselines import _self_distillation as distil
from tomoprobe.submissions.baselines import braindino

TINY, FULL = braindino.TINY, braindino.FULL
SMALL = replace(TINY, batch=4)


@dataclass
class Stripes:
    """Volumes whose axial slices are stripes, wider the higher the slice."""

    def sample(self, rng):
        x = np.arange(48, dtype=np.float32)
        phase = float(rng.uniform(0, 6))
        planes = [np.sin(x[:, None] / (1 + z / 8) + phase) + 0 * x[None] for z in range(32)]
        return np.stack(planes, 2).astype(np.float32)

    def describe(self):
        return "stripes"


def source(preset=TINY):
    patch = preset.architecture.get("patch", braindino.PATCH)
    return braindino.SliceCrops(Stripes(), preset.options, patch)


def batch(preset=SMALL, step=0):
    rngs = [np.random.default_rng([step, i]) for i in range(preset.batch)]
    return default_collate([source(preset).sample(rng) for rng in rngs])


def build(preset=SMALL):
    torch.manual_seed(0)
    system = braindino.PRETEXT.objective(preset).train()
    with torch.no_grad():
        system.student["backbone"].mask_token.normal_()
    return system


def test_a_sample_has_crops_and_masks_and_depends_on_its_generator_alone():
    first, again = (source().sample(np.random.default_rng(1)) for _ in range(2))
    assert first["global"].shape == (2, 1, 48, 48)
    assert first["local"].shape == (2, 1, 24, 24)
    assert first["masks"].shape == (2, 6, 6)
    assert first["masks"].dtype == torch.bool
    torch.testing.assert_close(first, again, rtol=0, atol=0)


def test_full_takes_the_published_sizes():
    sample = source(FULL).sample(np.random.default_rng(0))
    assert sample["global"].shape == (2, 1, 224, 224)
    assert sample["local"].shape == (8, 1, 96, 96)
    assert sample["masks"].shape == (2, 14, 14)


def test_half_of_the_crops_are_masked_by_a_tenth_to_a_half():
    shares = torch.cat(
        [
            source().sample(np.random.default_rng(i))["masks"].float().mean((1, 2))
            for i in range(150)
        ]
    )
    masked = shares[shares > 0]
    assert len(masked) / len(shares) == pytest.approx(0.5, abs=0.1)
    assert masked.min() >= 3 / 36
    assert masked.max() <= 0.5
    assert masked.mean() == pytest.approx(0.3, abs=0.05)


def test_the_loss_is_the_weighted_sum_of_the_three_computed_crop_by_crop():
    system, data = build(), batch()
    total, found = system.loss(data, 0.0)
    masks = data["masks"].flatten(2)  # (B, 2, P)
    assert masks.any()

    def tokens(network, images, hidden=None):
        last = len(network.blocks) - 1
        return network.norm(network.run(images, {last}, hidden)[last])

    with torch.no_grad():
        slow, fast = system.teacher, system.student
        heard = [tokens(slow["backbone"], data["global"][:, i]) for i in (0, 1)]
        large = [
            tokens(fast["backbone"], data["global"][:, i], data["masks"][:, i]) for i in (0, 1)
        ]
        small = [tokens(fast["backbone"], data["local"][:, i]) for i in range(2)]
        first = 1 + 4  # after CLS and storage tokens
        targets = distil.sinkhorn_knopp(slow["dino"](torch.cat([t[:, 0] for t in heard])), 0.04)
        said = torch.stack([fast["dino"](t[:, 0]) for t in (*large, *small)])
        dino = distil.dino_loss(targets.unflatten(0, (2, -1)), said, 0.1)
        koleo = sum(float(distil.koleo_loss(t[:, 0])) for t in large)
        hidden = torch.cat([masks[:, 0], masks[:, 1]])
        patches = [torch.cat([t[:, first:] for t in side])[hidden] for side in (heard, large)]
        answers = distil.sinkhorn_knopp(slow["ibot"](patches[0]), 0.04)
        ibot = distil.ibot_loss(answers, fast["ibot"](patches[1]), hidden, 0.1)
    assert float(found["dino"]) == pytest.approx(float(dino), rel=1e-4)
    assert float(found["ibot"]) == pytest.approx(float(ibot), rel=1e-4)
    assert float(found["koleo"]) == pytest.approx(koleo, rel=1e-4)
    wanted = float(dino) + float(ibot) + TINY.options["koleo_weight"] * koleo
    assert total.item() == pytest.approx(wanted, rel=1e-4)


def test_the_student_sees_the_mask_token_and_the_teacher_the_patches():
    system, data = build(), batch()
    before = {k: float(v) for k, v in system.loss(data, 0.0)[1].items()}
    with torch.no_grad():
        system.teacher["backbone"].mask_token.normal_()
    same = {k: float(v) for k, v in system.loss(data, 0.0)[1].items()}
    assert same == before
    with torch.no_grad():
        system.student["backbone"].mask_token.normal_()
    changed = {k: float(v) for k, v in system.loss(data, 0.0)[1].items()}
    assert changed["ibot"] != before["ibot"]


def test_nothing_masked_gives_no_ibot_loss_and_gradients_for_all():
    system, data = build(), batch()
    data["masks"] = torch.zeros_like(data["masks"])
    loss, found = system(data, 0.0)
    assert float(found["ibot"]) == 0
    loss.backward()
    missing = [n for n, p in system.student.named_parameters() if p.grad is None]
    assert missing == []
    assert all(p.grad is None for p in system.teacher.parameters())


def test_the_anchor_is_the_teacher_until_it_starts_to_hold():
    options = {**TINY.options, "gram_weight": 2.0, "gram_start": 0.5, "momentum": (0.5, 0.5)}
    system, data = build(replace(SMALL, options=options)), batch()
    assert float(system.loss(data, 0.0)[1]["gram"]) == 0

    def anchored():
        pair = zip(system.anchor.parameters(), system.encoder().parameters(), strict=True)
        return all(torch.equal(a, t) for a, t in pair)

    with torch.no_grad():
        system.student["backbone"].blocks[0].attn.qkv.weight.add_(0.1)
    system.after_step(0.4)
    assert anchored()
    system.after_step(0.5)
    assert not anchored()
    assert float(system.loss(data, 0.5)[1]["gram"]) > 0
    anchor = {id(p) for p in system.anchor.parameters()}
    assert not anchor & {id(p) for g in system.parameters_to_train() for p in g["params"]}


def test_rates_grow_with_depth_as_in_dinov2():
    options = {**TINY.options, "layer_decay": 0.9, "patch_embed_rate": 0.2}
    system = build(replace(SMALL, options=options))  # 4 blocks
    assert system.rate("norm.weight") == 1
    assert system.rate("blocks.3.attn.qkv.weight") == pytest.approx(0.9)
    assert system.rate("blocks.0.norm1.weight") == pytest.approx(0.9**4)
    assert system.rate("cls_token") == pytest.approx(0.9**5)
    assert system.rate("patch_embed.proj.weight") == pytest.approx(0.2 * 0.9**5)


def test_a_few_steps_learn_and_do_not_collapse():
    preset = replace(TINY, batch=16)
    system = build(preset)
    groups = [{"params": g["params"]} for g in system.parameters_to_train()]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    losses, measures = [], {}
    for step in range(25):
        loss, measures = system(batch(preset, step), 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        system.after_step(0.0)
        losses.append(float(loss.detach()))
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.5
    assert measures["teacher_information"] > 0.1
    assert measures["embedding_std"] > 0.1
