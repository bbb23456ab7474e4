"""CSPR's pretraining: labelled images through the variable dimension transform."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from tomoprobe.benchmark.errors import DataError
from tomoprobe.submissions.architectures import cspr as network
from tomoprobe.submissions.baselines.cspr import PRETEXT, LabelledCrops

TINY = PRETEXT.presets["tiny"]
SMALL = dataclasses.replace(
    TINY,
    architecture={**TINY.architecture, "base_channels": 4},
    options={**TINY.options, "size": 32, "drawn": 40},
)


class OneImage:
    """A picture whose planes are red 10, green 20, blue 30 and whose left half is darker."""

    classes = ("a", "b")

    def draw(self, rng):
        image = np.broadcast_to(np.array([10, 20, 30], np.uint8), (20, 20, 3)).copy()
        image[:, 10:] += 100
        return image, 1

    def describe(self):
        return "one image"


def samples(count):
    source = LabelledCrops(OneImage(), 16, (1.0, 1.0))
    return [source.sample(np.random.default_rng(seed)) for seed in range(count)]


def test_channels_are_shuffled_and_half_of_the_images_flipped():
    orders, flips = [], []
    for image, label in samples(120):
        assert image.shape == (3, 16, 16)
        assert image.dtype == torch.uint8
        assert int(label) == 1
        flips.append(bool(image[0, 0, 0] > image[0, 0, -1]))
        orders.append(tuple((image.amin((1, 2))).tolist()))
    assert len(set(orders)) == 6
    assert all(sorted(order) == [10, 20, 30] for order in orders)
    assert 40 < sum(flips) < 80


def test_the_loss_is_cross_entropy_with_a_tenth_spread_over_all_classes():
    torch.manual_seed(0)
    objective = PRETEXT.objective(SMALL).eval()
    with torch.no_grad():
        objective.fc.weight.zero_()
        objective.fc.bias.copy_(torch.linspace(-1, 1, 20))
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    loss, measures = objective.loss((images, torch.tensor([19, 3])), 0.0)
    logits = [-1 + 2 * i / 19 for i in range(20)]
    log_sum = math.log(sum(math.exp(v) for v in logits))
    logs = [v - log_sum for v in logits]
    wanted = [-(0.9 * logs[y] + 0.1 * sum(logs) / 20) for y in (19, 3)]
    assert loss.item() == pytest.approx(sum(wanted) / 2, rel=1e-5)
    assert float(measures["accuracy"]) == 0.5


def test_the_network_sees_normalised_colour_as_depth():
    torch.manual_seed(0)
    objective = PRETEXT.objective(SMALL).eval()
    seen = []
    objective.network.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    objective.loss((images, torch.tensor([0, 1])), 0.0)
    assert seen[0].shape == (2, 1, 3, 32, 32)
    assert float(seen[0][1, 0, 2, 5, 7]) == pytest.approx(
        (int(images[1, 2, 5, 7]) - 114.495) / 57.63, rel=1e-5
    )


def test_what_is_published_is_the_encoder_that_strides_along_the_depth():
    encoder = PRETEXT.objective(SMALL).encoder()
    assert not encoder.depth_stride
    volumes = network.build(
        shape=SMALL.shape, channels=1, readout=SMALL.readout, **SMALL.architecture
    )
    assert volumes.depth_stride
    volumes.load_state_dict(encoder.state_dict())


def test_every_parameter_decays_as_the_authors_have_it():
    objective = PRETEXT.objective(SMALL)
    (group,) = objective.parameters_to_train()
    assert group["decay"]
    assert len(group["params"]) == len(list(objective.parameters()))


def test_the_card_maps_the_window_onto_the_pixels_of_training():
    card = PRETEXT.card(TINY)
    for table in card["intensity"].values():
        assert table["out_low"] * 57.63 + 114.495 == pytest.approx(0, abs=1e-9)
        assert table["out_high"] * 57.63 + 114.495 == pytest.approx(255)
    assert card["grid"]["axes"] == "SPL"


def test_more_folders_than_classes_are_refused_and_fewer_taken(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / name / "1.png")
    assert PRETEXT.source(SMALL, [tmp_path]).describe() == (
        f"3 pictures of 3 classes of {tmp_path.name}"
    )
    few = dataclasses.replace(SMALL, options={**SMALL.options, "classes": 2})
    with pytest.raises(DataError, match="3 sub-folders"):
        PRETEXT.source(few, [tmp_path])


def test_a_short_training_learns():
    torch.manual_seed(0)
    objective = PRETEXT.objective(SMALL).train()
    source = PRETEXT.source(SMALL, ())
    batch = default_collate([source.sample(np.random.default_rng(i)) for i in range(24)])
    optimizer = torch.optim.SGD(objective.parameters(), 0.05, 0.9)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss, _ = objective.loss(batch, 0.0)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(20), abs=0.3)
    assert losses[-1] < losses[0] - 0.5
