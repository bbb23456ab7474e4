"""CoralBay's encoder: its two patch mergings, its maps and readouts, its small variants."""

import pytest
import torch
from safetensors.torch import save_file

from tomoprobe.benchmark.errors import ManifestError
from tomoprobe.submissions.architectures import coralbay
from tomoprobe.submissions.load import load

from .goldens import recipe, recipe_input

SMALL = {"feature_size": 12, "depths": [2, 1, 1, 1], "window_size": 3}
SHAPE = (40, 52, 36)  # pads patches never, windows and mergings often


def small(**changes):
    arguments = {"shape": list(SHAPE), "seed": 0, **SMALL, **changes}
    return load("coralbay", arguments={k: v for k, v in arguments.items() if v is not None})


def volume(seed=0, shape=SHAPE):
    return torch.from_numpy(recipe_input((1, 1, *shape), seed))


# --- patch merging --------------------------------------------------------------------------------

JOINED = {  # by hand: what a cube of eight tokens, each 100 x + 10 y + z, becomes
    "fixed": [0, 100, 10, 1, 110, 101, 11, 111],
    "legacy": [0, 100, 10, 1, 101, 10, 1, 111],
}


@pytest.mark.parametrize("name", JOINED)
def test_a_merging_joins_the_neighbours_that_its_name_says(name):
    merging = coralbay.MERGINGS[name](1)
    merging.norm = merging.reduction = torch.nn.Identity()
    places = torch.tensor(
        [[[[[100 * x + 10 * y + z] for z in (0, 1)] for y in (0, 1)] for x in (0, 1)]]
    )
    assert merging(places).flatten().tolist() == JOINED[name]


def test_a_merging_fills_an_odd_side_with_zeros():
    merging = coralbay.PatchMerging(1)
    merging.norm = merging.reduction = torch.nn.Identity()
    joined = merging(torch.ones(1, 3, 2, 2, 1))
    assert joined.shape == (1, 2, 1, 1, 8)
    assert joined[0, 1, 0, 0].tolist() == [1, 0, 1, 1, 0, 0, 1, 0]  # the x = 1 neighbours lack


def test_the_merging_is_part_of_the_identity():
    fixed, legacy = small(), small(merging="legacy")
    assert fixed.model_sha != legacy.model_sha
    assert fixed.manifest["architecture"]["arguments"]["merging"] == "fixed"
    same, other = fixed.embed(volume()), legacy.embed(volume())
    torch.testing.assert_close(same[:, :24], other[:, :24])  # strides 1 and 2: nothing merged yet
    assert (same[:, 24:] - other[:, 24:]).abs().max() > 0.01


# --- what the rest of it computes -----------------------------------------------------------------

PINNED = {  # mean, standard deviation, every eighth value or so
    ("fixed", True): (
        0.556801,
        0.323508,
        [0.53564, 0.9248, 0.23192, 0.34093, 0.2738, 0.63524, 0.45067, 0.58108],
    ),
    ("fixed", False): (
        0.0,
        0.583131,
        [-0.05546, -0.29845, -0.08539, -0.04481, 0.88969, 0.08697, -1.122, -0.96746, 0.61679],
    ),
    ("legacy", True): (
        0.556589,
        0.337487,
        [0.53564, 0.92, 0.23692, 0.38148, 0.38225, 0.30917, 0.58393, 0.56131],
    ),
    ("legacy", False): (
        0.0,
        0.612496,
        [-0.05546, -0.12194, -0.18403, 0.08301, 0.69718, 0.48889, -1.12785, -0.85117, -0.4806],
    ),
}


def pinned(merging, blocks):
    """The embedding of a small network filled by the goldens' recipe."""
    encoder = small(merging=merging, blocks=blocks)
    state = encoder.module.state_dict()
    floats = {k: v for k, v in state.items() if v.is_floating_point()}
    state |= {k: torch.from_numpy(recipe(k, v.shape, 1)) for k, v in floats.items()}
    encoder.module.load_state_dict(state)
    return encoder.embed(volume(1))


@pytest.mark.parametrize(("merging", "blocks"), PINNED)
def test_another_monai_may_not_change_features_unnoticed(merging, blocks):
    """Recorded with MONAI 1.6.1, where the full network reproduced the upstream goldens."""
    found = pinned(merging, blocks)
    mean, std, values = PINNED[merging, blocks]
    step = found.shape[1] // 8
    torch.testing.assert_close(found[0, ::step], torch.tensor(values), rtol=1e-3, atol=1e-3 * std)
    assert float(found.mean()) == pytest.approx(mean, abs=1e-3 * std)
    assert float(found.std(correction=0)) == pytest.approx(std, rel=1e-3)


def test_monais_swin_unetr_is_the_same_network():
    from monai.networks.nets.swin_unetr import SwinUNETR

    theirs = SwinUNETR(1, 2, use_v2=True, **SMALL).eval()
    ours = small()
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith(("decoder", "out."))}
    ours.module.load_state_dict(state, strict=True)
    with torch.no_grad():
        stages = theirs.swinViT(volume(), True)
        wanted = [theirs.encoder1(volume()), theirs.encoder2(stages[0]), theirs.encoder3(stages[1])]
        wanted += [theirs.encoder4(stages[2]), stages[3], theirs.encoder10(stages[4])]
    for found, expected in zip(ours.maps(volume()), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# --- readouts and small variants ------------------------------------------------------------------


def test_readouts_are_means_of_the_maps():
    means = [one.mean((2, 3, 4)) for one in small().maps(volume())]
    assert [one.shape[1] for one in means] == [12, 12, 24, 48, 96, 192]
    wanted = {"concat": means[:4] + means[5:], "concat_six": means, "head": means[5:]}
    for readout, parts in wanted.items():
        torch.testing.assert_close(small(readout=readout).embed(volume()), torch.cat(parts, 1))


def test_without_blocks_the_maps_are_the_swin_stages():
    encoder = small(blocks=False, use_v2=False)
    assert encoder.card.strides == (2, 4, 8, 16, 32)
    assert encoder.card.width == 12 + 24 + 48 + 96 + 192
    means = [one.mean((2, 3, 4)) for one in encoder.maps(volume())]
    torch.testing.assert_close(encoder.embed(volume()), torch.cat(means, 1))
    head = small(blocks=False, use_v2=False, readout="head")
    torch.testing.assert_close(head.embed(volume()), means[-1])


def test_the_default_is_the_published_network():
    network = coralbay.build(shape=(96, 96, 96), channels=1, readout="concat")
    assert sum(p.numel() for p in network.parameters()) == 53_164_146
    assert (network.width, network.strides) == (1152, (1, 2, 4, 8, 16, 32))


@pytest.mark.parametrize(
    "prefix", ["teacher.backbone.", "model.encoder.", "encoder.", "_orig_mod."]
)
def test_a_published_file_loads_under_its_prefixes(tmp_path, prefix):
    encoder = small()
    state = {prefix + k: v.clone() for k, v in encoder.module.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    again = load(
        "coralbay",
        arguments={"shape": list(SHAPE), **SMALL},
        weights=tmp_path / "w.safetensors",
    )
    torch.testing.assert_close(again.embed(volume()), encoder.embed(volume()))
    with pytest.raises(ManifestError, match="unexpected"):  # these weights are of v2 blocks
        load(
            "coralbay",
            arguments={"shape": list(SHAPE), **SMALL, "use_v2": False},
            weights=tmp_path / "w.safetensors",
        )


def test_small_crops_train_every_weight():
    network = coralbay.build(
        shape=(48, 48, 48),
        channels=1,
        readout="concat",
        feature_size=12,
        use_v2=False,
        blocks=False,
    )
    network.train().embed(volume(shape=(16, 16, 16))).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
