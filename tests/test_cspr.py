"""CSPR's network: its strides, its transform of images, its published files."""

import pytest
import torch
from safetensors.torch import save_file

from tomoprobe.benchmark.errors import ManifestError
from tomoprobe.submissions.architectures import cspr
from tomoprobe.submissions.load import load

from .goldens import recipe_input

SMALL = {"layers": [1, 1, 1, 1], "base_channels": 4}


def small(shape, weights=None, **changes):
    arguments = {"shape": list(shape), **({} if weights else {"seed": 0}), **SMALL, **changes}
    return load("cspr", arguments=arguments, weights=weights)


def volume(*shape):
    return torch.from_numpy(recipe_input((2, 1, *shape), 0))


def test_the_variable_dimension_transform_makes_colour_depth():
    images = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    volumes = cspr.variable_dimension_transform(images)
    assert volumes.shape == (2, 1, 3, 4, 5)
    assert torch.equal(volumes[1, 0, 2], images[1, 2])


def test_an_images_depth_of_three_survives_all_stages():
    network = cspr.build(shape=(3, 64, 96), channels=1, readout="last").eval()
    assert sum(p.numel() for p in network.parameters()) == 33_160_000
    with torch.no_grad():
        stages = network.stages(volume(3, 64, 96))
    assert [tuple(one.shape[1:]) for one in stages] == [
        (64, 3, 16, 24),
        (128, 3, 8, 12),
        (256, 3, 4, 6),
        (512, 3, 2, 3),
    ]


@pytest.mark.parametrize("depth", [3, 12, 33])
def test_maps_are_averaged_along_a_depth_that_was_not_strided(depth):
    encoder = small((depth, 40, 32))
    x = volume(depth, 40, 32)
    stage = encoder.module.stages(x)[0]
    wanted = [stage[:, :, start : start + 4].mean(2) for start in range(0, depth, 4)]
    torch.testing.assert_close(encoder.maps(x)[0], torch.stack(wanted, 2))


def test_the_depth_stride_is_part_of_the_identity_but_not_of_the_weights():
    plane, cube = small((32, 32, 32)), small((32, 32, 32), depth_stride=True)
    assert plane.model_sha != cube.model_sha
    ours, theirs = plane.module.state_dict(), cube.module.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert (plane.embed(volume(32, 32, 32)) - cube.embed(volume(32, 32, 32))).abs().max() > 1e-3


def test_readouts_are_the_pooled_last_stage_and_all_stages():
    x = volume(12, 40, 32)
    means = [one.mean((2, 3, 4)) for one in small((12, 40, 32)).module.stages(x)]
    torch.testing.assert_close(small((12, 40, 32)).embed(x), means[-1])
    every = small((12, 40, 32), readout="concat")
    assert every.card.width == 4 + 8 + 16 + 32
    torch.testing.assert_close(every.embed(x), torch.cat(means, 1))


def test_a_published_file_loads_in_half_precision_without_its_head_and_counters(tmp_path):
    encoder = small((12, 40, 32))
    state = {
        f"backbone.{key}": value.half()
        for key, value in encoder.module.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    state["head.fc.weight"] = torch.ones(10, 32)
    save_file(state, tmp_path / "w.safetensors")
    again = small((12, 40, 32), tmp_path / "w.safetensors")
    x = volume(12, 40, 32)
    torch.testing.assert_close(again.embed(x), encoder.embed(x), rtol=1e-2, atol=1e-2)


def test_a_projection_on_the_first_shortcut_is_used_or_refused(tmp_path):
    older = small((12, 40, 32), layer1_downsample=True)
    file = tmp_path / "w.safetensors"
    save_file(older.module.state_dict(), file)
    with pytest.raises(ManifestError, match=r"layer1\.0\.downsample"):
        small((12, 40, 32), file)
    x = volume(12, 40, 32)
    again = small((12, 40, 32), file, layer1_downsample=True)
    torch.testing.assert_close(again.embed(x), older.embed(x))
