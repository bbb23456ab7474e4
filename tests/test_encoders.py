"""Contracts over every baseline and every architecture, and what loading refuses."""

import json
import math
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tomoprobe.benchmark.errors import EncoderError, ManifestError, UnknownNameError
from tomoprobe.benchmark.features import extract
from tomoprobe.benchmark.types import Case, Encoder, Volume
from tomoprobe.submissions import architectures, baselines
from tomoprobe.submissions.architectures import _radiomics
from tomoprobe.submissions.load import load
from tomoprobe.submissions.manifest import model_sha, parse, write
from tomoprobe.submissions.weights import state_sha

GRID = (48, 56, 48)

# Small enough to run in a moment; an architecture that needs no help is not listed.
SMALL = {
    "anatomix": {"width": 4, "downs": 2},
    "braindino": {"patch": 8, "dim": 16, "depth": 4, "heads": 2, "layer_scale": 1.0},
    "coralbay": {"feature_size": 12, "depths": [1, 1, 1, 1], "window_size": 4},
    "cspr": {"layers": [1, 1, 1, 1], "base_channels": 4},
    "resnet": {"layers": [1, 1, 1, 1], "block_inplanes": [4, 8, 8, 16], "conv1_t_stride": 2},
    "segresnet": {"blocks_down": [1, 1, 1]},
    "slices": {"layers": [1, 1, 1, 1], "block_inplanes": [4, 8, 8, 16], "conv1_t_stride": 2},
    "swin_unetr": {"feature_size": 12, "depths": [1, 1, 1, 1], "window_size": 4},
    "vismae": {"embed_dim": 8, "depths": [1, 2, 1, 2], "num_heads": [1, 2, 4, 8], "window": 4},
    "vit": {
        "patch_size": 8,
        "hidden_size": 24,
        "mlp_dim": 32,
        "num_layers": 2,
        "num_heads": 2,
        "cls_token": True,
    },
}


# Their card has to ask for a region.
REGION = {"radiomics": {"region": True}}


def runnable(names):
    """The names as parameters; what needs an extra that is not installed is skipped."""
    missing = pytest.mark.skipif(
        not _radiomics.available(), reason="needs the extra 'radiomics' (MIRP)"
    )
    return [pytest.param(n, marks=missing if n == "radiomics" else ()) for n in names]


def arguments_of(name, **changes):
    """Arguments of a small, randomly initialised model; a changed value of None removes a key."""
    seed = {"seed": 0} if name in SMALL else {}
    own = SMALL.get(name, {}) | REGION.get(name, {})
    merged = {"shape": list(GRID), **seed, **own, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def blind(name):
    """Whether an architecture says the same of every volume, on purpose."""
    return getattr(architectures.get(name), "BLIND", False)


def small(name, **changes):
    return load(name, arguments=arguments_of(name, **changes))


@cache
def volumes(n=3):
    """(n, 1, 48, 56, 48): smooth blobs in noise, so that no statistic is degenerate."""
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, k) for k in GRID), indexing="ij")
    radius = np.sqrt(sum(a**2 for a in axes))
    x = np.stack([np.clip(1.2 - radius * s, 0, 1) for s in rng.uniform(0.9, 1.4, n)])
    return torch.from_numpy((x + rng.normal(0, 0.05, x.shape))[:, None].astype(np.float32))


def shown(encoder, n=3):
    """The volumes on the encoder's grid; cropped, with an empty mask, if it wants regions."""
    if not encoder.card.region:
        shape = encoder.card.grid.shape
        return torch.nn.functional.interpolate(volumes(n), shape) if shape != GRID else volumes(n)
    x = volumes(n)[..., 16:32, 20:36, 16:32]  # such encoders are slow
    return torch.cat([x, torch.zeros_like(x)], dim=1)


def every_encoder():
    made = [(load, runnable(baselines.names())), (small, runnable(architectures.names()))]
    return [
        pytest.param(make, *p.values, marks=p.marks, id=f"{make.__name__}-{p.values[0]}")
        for make, names in made
        for p in names
    ]


encoders = pytest.mark.parametrize(("make", "name"), every_encoder())


# --- contracts ----------------------------------------------------------------------------------


@encoders
def test_an_encoder_gives_what_its_card_promises(make, name):
    encoder = make(name)
    assert isinstance(encoder, Encoder)
    x = shown(encoder)
    with torch.no_grad():
        features = encoder.embed(x)
        maps = encoder.maps(x) if encoder.card.strides else []
    assert features.shape == (3, encoder.card.width)
    assert features.dtype == torch.float32
    assert torch.isfinite(features).all()
    assert len(maps) == len(encoder.card.strides)
    assert list(encoder.card.strides) == sorted(set(encoder.card.strides))
    for found, stride in zip(maps, encoder.card.strides, strict=True):
        assert found.shape[0] == 3
        assert found.shape[2:] == tuple(math.ceil(n / stride) for n in x.shape[2:])
        assert found.dtype == torch.float32
        assert torch.isfinite(found).all()


@encoders
def test_features_tell_volumes_apart_or_nothing_does(make, name):
    encoder = make(name)
    features = encoder.embed(shown(encoder))
    apart = float((features[0] - features[1]).abs().max())
    assert apart == 0 if blind(encoder.manifest["architecture"]["name"]) else apart > 1e-4


@encoders
def test_features_do_not_depend_on_the_batch_or_the_run(make, name):
    encoder = make(name)
    x = shown(encoder)
    together = encoder.embed(x)
    tolerance = {"rtol": 1e-4, "atol": 1e-4 * float(together.std())}
    torch.testing.assert_close(encoder.embed(x), together, **tolerance)
    torch.testing.assert_close(encoder.embed(x.flip(0)).flip(0), together, **tolerance)
    torch.testing.assert_close(encoder.embed(x[1:2]), together[1:2], **tolerance)
    if not encoder.card.strides:
        return
    alone = encoder.maps(x[1:2])
    for one, all_ in zip(alone, encoder.maps(x), strict=True):
        torch.testing.assert_close(one, all_[1:2], rtol=1e-4, atol=1e-4 * float(all_.std()))


@encoders
def test_an_encoder_is_frozen(make, name):
    encoder = make(name)
    before = {k: v.clone() for k, v in encoder.module.state_dict().items()}
    features = encoder.embed(shown(encoder))
    if encoder.card.strides:
        encoder.maps(shown(encoder))
    assert not features.requires_grad
    assert not any(module.training for module in encoder.module.modules())
    assert not any(p.requires_grad for p in encoder.module.parameters())
    after = encoder.module.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


@encoders
def test_a_constant_volume_has_finite_features(make, name):
    encoder = make(name)
    assert torch.isfinite(encoder.embed(torch.zeros_like(shown(encoder, 1)))).all()


@encoders
def test_two_loads_are_one_model(make, name):
    one, other = make(name), make(name)
    assert one.model_sha == other.model_sha
    assert state_sha(one.module) == state_sha(other.module)
    assert one.card == other.card


@encoders
def test_the_identity_is_plain_json_and_its_own_hash(make, name):
    encoder = make(name)
    assert model_sha(json.loads(json.dumps(encoder.manifest))) == encoder.model_sha


def test_no_two_models_share_an_identity():
    lacking = set() if _radiomics.available() else {"radiomics"}
    shas = [load(name).model_sha for name in baselines.names() if name not in lacking]
    shas += [small(name).model_sha for name in architectures.names() if name not in lacking]
    assert len(set(shas)) == len(shas)


@pytest.mark.parametrize("name", runnable(architectures.names()))
def test_every_readout_is_another_model_of_the_stated_width(name):
    shas = set()
    readouts = architectures.get(name).READOUTS
    for readout in readouts:
        encoder = small(name, readout=readout)
        assert encoder.embed(shown(encoder, 1)).shape == (1, encoder.card.width)
        assert encoder.card.readout == readout
        shas.add(encoder.model_sha)
    assert len(shas) == len(readouts) >= (1 if blind(name) else 2)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_another_seed_is_another_model(name):
    one, other = small(name), small(name, seed=1)
    assert one.model_sha != other.model_sha
    assert state_sha(one.module) != state_sha(other.module)


@pytest.mark.parametrize("name", architectures.names())
def test_an_architecture_declares_what_the_registry_promises(name):
    architecture = architectures.get(name)
    assert isinstance(architecture.VERSION, int)
    assert architecture.SUMMARY.endswith(".")
    assert architecture.__doc__


@pytest.mark.parametrize("name", runnable(baselines.names()))
def test_a_baselines_listed_card_is_that_of_its_network(name):
    listed = {card.name: card for card in baselines.cards()}
    assert load(name).card == listed[name]


def test_stating_a_default_changes_nothing():
    assert small("resnet").model_sha == small("resnet", no_max_pool=False).model_sha
    assert small("resnet").model_sha != small("resnet", no_max_pool=True).model_sha


def test_extraction_accepts_a_loaded_encoder():
    encoder = load("texture")
    image = volumes(1)[0].numpy()
    case = Case(
        id="a",
        patient="a",
        target=0,
        load=lambda: Volume(image, np.diag([4.0, 4, 4, 1]), "relative"),
        digest=lambda: "0" * 64,
    )
    found = extract(encoder, [case], None)
    assert found.shape == (1, encoder.card.width)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", runnable(baselines.names()))
def test_a_gpu_gives_the_cpus_features(name):
    here, there = load(name), load(name, device="cuda")
    assert there.model_sha == here.model_sha
    expected = here.embed(shown(here))
    # TensorFloat-32 convolutions keep 10 bits of the mantissa.
    torch.testing.assert_close(
        there.embed(shown(here)).cpu(), expected, rtol=1e-2, atol=1e-2 * float(expected.std())
    )


# --- random initialisation ----------------------------------------------------------------------


def test_random_weights_are_the_same_in_every_process():
    code = (
        "import torch; torch.manual_seed(7); torch.set_default_dtype(torch.float64);"
        "from tomoprobe.submissions.load import load;"
        "from tomoprobe.submissions.weights import state_sha;"
        "print(*[state_sha(load(n).module) for n in ('random_resnet10', 'random_swin')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [state_sha(load(name).module) for name in ("random_resnet10", "random_swin")]
    assert done.stdout.split() == here


def test_loading_leaves_the_random_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    small("resnet")
    assert torch.equal(torch.rand(4), expected)
    assert torch.get_default_dtype() == torch.float32


# --- what the floors measure --------------------------------------------------------------------


def test_the_intensity_floor_ignores_where_voxels_are():
    shuffled = volumes(2).flatten(2)[:, :, torch.randperm(math.prod(GRID))].reshape(2, 1, *GRID)
    encoder = load("intensity")
    torch.testing.assert_close(
        encoder.embed(shuffled), encoder.embed(volumes(2)), rtol=1e-3, atol=1e-4
    )


def test_the_intensity_floor_measures_size_and_histogram():
    x = torch.zeros(1, 1, *GRID)
    x[0, 0, :12] = 0.75  # a quarter of the volume
    size = small("intensity", readout="size").embed(x)
    torch.testing.assert_close(size, torch.tensor([[0.25, 0.25]]))
    histogram = small("intensity", readout="histogram", bins=4).embed(x)
    torch.testing.assert_close(histogram, torch.tensor([[0.75, 0, 0, 0.25]]))


def test_the_intensity_floors_quantiles_and_moments_are_numpys():
    x = volumes(2)
    found = load("intensity").embed(x).numpy()
    for row, volume in zip(found, x.numpy(), strict=True):
        voxels = volume.ravel().astype(np.float64)
        bright = voxels[voxels > voxels.mean()]
        levels = (0.05, 0.25, 0.5, 0.75, 0.95)
        np.testing.assert_allclose(row[34], voxels.mean(), rtol=1e-4)
        np.testing.assert_allclose(row[35], voxels.std(), rtol=1e-4)
        np.testing.assert_allclose(row[38:43], np.quantile(voxels, levels), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(row[43], bright.mean(), rtol=1e-4)
        np.testing.assert_allclose(row[47:52], np.quantile(bright, levels), rtol=1e-4, atol=1e-5)


def test_the_texture_floor_sees_what_the_histogram_cannot():
    rng = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 1, *GRID, generator=rng)
    ordered = noise.flatten().sort().values.reshape(1, 1, *GRID)
    both = torch.cat([noise, ordered])
    intensity = load("intensity").embed(both)
    torch.testing.assert_close(intensity[0], intensity[1], rtol=1e-3, atol=1e-4)
    texture = load("texture").embed(both)
    assert (texture[0] - texture[1]).abs().max() > 0.1


def test_texture_maps_are_gradient_and_laplacian():
    x = torch.zeros(1, 1, *GRID)
    x[0, 0] = torch.arange(GRID[0])[:, None, None] ** 2 / 100
    first = load("texture").maps(x)[0][0, :, 10, 10, 10]
    expected = torch.tensor([1.0, 0.2, 0.02])  # x^2 / 100 at 10, its slope and its curvature
    torch.testing.assert_close(first[:3], expected, rtol=1e-4, atol=1e-4)


# --- slices -------------------------------------------------------------------------------------


def test_a_volume_of_equal_slices_embeds_like_one_slice():
    encoder = small("slices")
    one = volumes(1)[..., 24:25]
    torch.testing.assert_close(
        encoder.embed(one.expand(-1, -1, -1, -1, 20)), encoder.embed(one), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_restacked_slices_lie_where_they_were_cut(axis):
    encoder = small("slices", axis=axis, conv1_t_stride=1, no_max_pool=True)
    x = volumes(1).clone()
    index = [slice(None)] * 5
    index[2 + axis] = slice(20, 21)
    x[tuple(index)] += 1.0
    moved = [a - b for a, b in zip(encoder.maps(x), encoder.maps(volumes(1)), strict=True)]
    for change, stride in zip(moved, encoder.card.strides, strict=True):
        others = [d for d in (0, 1, 2, 3, 4) if d != 2 + axis]
        where = change.abs().amax(others).nonzero().flatten().tolist()
        assert where == [20 // stride]


# --- MONAI's weights ----------------------------------------------------------------------------

OF_MONAI = ("resnet", "segresnet", "slices", "swin_unetr", "vit")


def monai_network(name):
    """The plain MONAI network that an architecture takes its weights from, and its own maps."""
    from monai.networks import nets

    torch.manual_seed(1)
    arguments = SMALL[name]
    if name == "resnet":
        network = nets.ResNet("basic", spatial_dims=3, n_input_channels=1, **arguments)
    elif name == "slices":
        network = nets.ResNet("basic", spatial_dims=2, n_input_channels=1, **arguments)
    elif name == "segresnet":
        network = nets.SegResNet(blocks_up=(1, 1), **arguments)
    elif name == "swin_unetr":
        network = nets.SwinUNETR(1, 2, **arguments)
    else:
        plain = {k: v for k, v in arguments.items() if k != "cls_token"}
        network = nets.ViT(1, GRID, classification=True, **plain)
    # Untrained running statistics are 0 and 1, which would hide that they are loaded.
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network.eval()


def weights_file(path, state, prefix=""):
    save_file({prefix + k: v.contiguous().clone() for k, v in state.items()}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module._orig_mod.backbone.", "teacher.model.encoder."])
@pytest.mark.parametrize("name", OF_MONAI)
def test_a_monai_state_dict_loads_and_computes_what_monai_computes(tmp_path, name, prefix):
    network = monai_network(name)
    file = weights_file(tmp_path / "w.safetensors", network.state_dict(), prefix)
    encoder = load(name, arguments=arguments_of(name, seed=None), weights=file)
    x = volumes(1)
    with torch.no_grad():
        if name == "resnet":
            network.fc = None
            theirs, ours = network(x), encoder.maps(x)[-1].mean((2, 3, 4))
        elif name == "slices":
            network.fc = None
            theirs = network(x[0].permute(3, 0, 1, 2)).mean(0, keepdim=True)
            ours = encoder.embed(x)[:, -16:]
        elif name == "segresnet":
            theirs, ours = network.encode(x)[0], encoder.maps(x)[-1]
        elif name == "swin_unetr":
            theirs, ours = network.swinViT(x, True)[-1], encoder.maps(x)[-1]
        else:
            network.classification_head = torch.nn.Identity()
            theirs = network(x)[0]
            ours = load(
                name, arguments=arguments_of(name, seed=None, readout="cls"), weights=file
            ).embed(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_swin_with_blocks_runs_monais_blocks(tmp_path):
    network = monai_network("swin_unetr")
    file = weights_file(tmp_path / "w.safetensors", network.state_dict())
    encoder = load(
        "swin_unetr", arguments=arguments_of("swin_unetr", seed=None, blocks=True), weights=file
    )
    assert encoder.card.strides == (1, 2, 4, 8, 16, 32)
    with torch.no_grad():
        stages = network.swinViT(volumes(1), True)
        maps = encoder.maps(volumes(1))
        torch.testing.assert_close(maps[0], network.encoder1(volumes(1)), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(maps[5], network.encoder10(stages[4]), rtol=1e-4, atol=1e-4)


def test_unused_tensors_are_named_in_the_log(tmp_path, caplog):
    network = monai_network("swin_unetr")
    file = weights_file(tmp_path / "w.safetensors", network.state_dict())
    with caplog.at_level("INFO"):
        load("swin_unetr", arguments=arguments_of("swin_unetr", seed=None), weights=file)
    assert "tensors are not used" in caplog.text
    assert "decoder1" in caplog.text


def test_the_file_around_the_weights_is_not_part_of_the_identity(tmp_path):
    state = monai_network("resnet").state_dict()
    halves = {k: v.half().float() for k, v in state.items() if v.is_floating_point()}
    plain = weights_file(tmp_path / "a.safetensors", halves)  # without batch counters, too
    wrapped = weights_file(
        tmp_path / "b.safetensors", {k: v.half() for k, v in halves.items()}, "module."
    )
    given = arguments_of("resnet", seed=None)
    one, other = (load("resnet", arguments=given, weights=file) for file in (plain, wrapped))
    assert one.model_sha == other.model_sha
    assert one.embed(volumes(1)).dtype == torch.float32
    state["conv1.weight"] = state["conv1.weight"] + 1
    third = weights_file(tmp_path / "c.safetensors", state)
    assert load("resnet", arguments=given, weights=third).model_sha != one.model_sha


def test_of_a_self_distilled_pair_the_teacher_is_taken(tmp_path, caplog):
    state = monai_network("resnet").state_dict()
    pair = {f"student.backbone.{k}": v + 1 for k, v in state.items()}
    pair |= {f"teacher.backbone.{k}": v for k, v in state.items()}
    given = arguments_of("resnet", seed=None)
    with caplog.at_level("INFO"):
        both = load(
            "resnet", arguments=given, weights=weights_file(tmp_path / "a.safetensors", pair)
        )
    assert "student.backbone.bn1.bias" in caplog.text
    alone = load("resnet", arguments=given, weights=weights_file(tmp_path / "b.safetensors", state))
    assert both.model_sha == alone.model_sha
    del pair["teacher.backbone.bn1.bias"]  # and never a part of each
    with pytest.raises(ManifestError, match="1 missing"):
        load("resnet", arguments=given, weights=weights_file(tmp_path / "c.safetensors", pair))


# --- bad weights --------------------------------------------------------------------------------


def without(state, *names):
    return {k: v for k, v in state.items() if k not in names}


def with_nan(state):
    state["layer1.0.conv1.weight"][0, 0, 0, 0, 0] = math.nan
    return state


RESNET_STATES = [
    pytest.param(
        lambda s: without(s, "conv1.weight", "bn1.bias"), "2 missing ('conv1.weight'", id="missing"
    ),
    pytest.param(lambda s: {**s, "head.weight": torch.ones(2)}, "1 unexpected", id="unexpected"),
    pytest.param(
        lambda s: {f"net.{k}": v for k, v in s.items()}, "more) and ", id="unknown-prefix"
    ),
    pytest.param(
        lambda s: {**s, "module.conv1.weight": s["conv1.weight"].clone()}, "twice", id="twice"
    ),
    pytest.param(lambda s: {**s, "bn1.bias": torch.zeros(5)}, "has the shape (5,)", id="shape"),
    pytest.param(
        lambda s: {**s, "bn1.bias": torch.zeros(4, dtype=torch.int8)}, "torch.int8", id="integer"
    ),
    pytest.param(with_nan, "NaN or infinite", id="nan"),
]


@pytest.mark.parametrize(("spoil", "says"), RESNET_STATES)
def test_weights_that_do_not_fit_are_refused(tmp_path, spoil, says):
    file = weights_file(tmp_path / "w.safetensors", spoil(monai_network("resnet").state_dict()))
    with pytest.raises(ManifestError) as refused:
        load("resnet", arguments=arguments_of("resnet", seed=None), weights=file)
    assert says in str(refused.value)
    assert str(file) in str(refused.value)


def test_tables_that_the_arguments_determine_may_not_differ(tmp_path):
    state = monai_network("swin_unetr").state_dict()
    key = "swinViT.layers1.0.blocks.0.attn.relative_position_index"
    state[key] = state[key] + 1_000_000  # would read beyond the table
    file = weights_file(tmp_path / "w.safetensors", state)
    with pytest.raises(ManifestError, match="relative_position_index"):
        load("swin_unetr", arguments=arguments_of("swin_unetr", seed=None), weights=file)


def test_truncated_foreign_and_missing_files_are_refused(tmp_path):
    file = weights_file(tmp_path / "w.safetensors", monai_network("resnet").state_dict())
    given = arguments_of("resnet", seed=None)
    short = tmp_path / "short.safetensors"
    short.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ManifestError, match="truncated"):
        load("resnet", arguments=given, weights=short)
    pickled = tmp_path / "w.pt"
    torch.save(monai_network("resnet").state_dict(), pickled)
    with pytest.raises(ManifestError, match="pickle"):
        load("resnet", arguments=given, weights=pickled)
    with pytest.raises(ManifestError, match="no weights file"):
        load("resnet", arguments=given, weights=tmp_path / "none.safetensors")


# --- bad specs, arguments and manifests ---------------------------------------------------------


def test_an_unknown_encoder_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'random_resnet10'"):
        load("random_resnet")


def test_a_baseline_takes_no_arguments():
    with pytest.raises(ManifestError, match="complete manifest"):
        load("random_resnet10", arguments={"seed": 1})
    with pytest.raises(ManifestError, match="complete manifest"):
        load("random_resnet10", weights=baselines.path("random_resnet10"))


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("resnet", {"layer": [1, 1, 1, 1]}, "layer: unknown key. Did you mean 'layers'?"),
        ("resnet", {"layers": [1, 1, 1]}, "layers"),
        ("resnet", {"layers": [1, 1, 1, "2"]}, "layers.3"),
        ("resnet", {"conv1_t_size": 4}, "conv1_t_size"),
        ("resnet", {"block_inplanes": [4, 4, 4, 10**9]}, "block_inplanes.3"),
        ("resnet", {"no_max_pool": 1}, "no_max_pool"),
        ("resnet", {"readout": "lst"}, "Did you mean 'last'?"),
        ("resnet", {"seed": None}, "has weights"),
        ("texture", {"seed": 0}, "has no weights"),
        ("texture", {"shape": [8, 56, 48]}, "octaves"),
        ("texture", {"scales": 6}, "scales"),
        ("intensity", {"low": 2.0}, "low"),
        ("swin_unetr", {"feature_size": 16}, "feature_size"),
        ("swin_unetr", {"num_heads": [5, 6, 12, 24]}, "num_heads"),
        ("swin_unetr", {"blocks": True, "shape": [32, 32, 32]}, "single voxel"),
        ("coralbay", {"merging": "mergingv2"}, "merging"),
        ("coralbay", {"shape": [32, 32, 32]}, "single voxel"),
        ("coralbay", {"num_heads": [5, 6, 12, 24]}, "num_heads"),
        ("coralbay", {"blocks": False, "readout": "concat_six"}, "readout"),
        ("anatomix", {"shape": [48, 54, 48]}, "multiples of 4"),
        ("anatomix", {"downs": 5, "shape": [32, 64, 64]}, "from 64 on"),
        ("braindino", {"shape": [48, 50, 47]}, "48 x 50"),
        ("braindino", {"dim": 20}, "dim"),
        ("braindino", {"channels": 2}, "channels"),
        ("braindino", {"rope": "fp16"}, "rope"),
        ("vismae", {"num_heads": [5, 6, 12, 24]}, "num_heads"),
        ("vismae", {"region": True}, "region"),
        ("vit", {"shape": [48, 50, 48]}, "multiple of"),
        ("vit", {"cls_token": False, "readout": "cls"}, "cls_token"),
        ("vit", {"num_heads": 5}, "num_heads"),
        ("slices", {"axis": 3}, "axis"),
        ("segresnet", {"init_filters": 12}, "init_filters"),
    ],
)
def test_bad_arguments_are_refused_by_name(name, changes, says):
    with pytest.raises(ManifestError) as refused:
        small(name, **changes)
    assert says in str(refused.value)


def manifest_file(folder, **changes):
    data = {
        "name": "mine",
        "title": "Mine",
        "authors": "A",
        "license": "MIT",
        "readout": "concat",
        "pretraining": [],
        "weights": {"file": "w.safetensors"},
        "architecture": {"name": "resnet", "arguments": SMALL["resnet"]},
        "grid": {"shape": list(GRID)},
        "intensity": {"HU": {"type": "ZScore"}},
        **changes,
    }
    path = folder / "m.toml"
    write(parse({k: v for k, v in data.items() if v is not None}, "test"), path)
    return str(path)


def test_a_manifest_finds_its_weights_beside_it(tmp_path):
    weights_file(tmp_path / "w.safetensors", monai_network("resnet").state_dict())
    encoder = load(manifest_file(tmp_path))
    assert encoder.card.name == "mine"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = (tmp_path / "w.safetensors").rename(elsewhere / "v.safetensors")
    assert load(manifest_file(tmp_path), weights=moved).model_sha == encoder.model_sha


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"weights": {"file": "w.safetensors", "sha256": "0" * 64}}, "promises"),
        ({"weights": {"file": "v.safetensors"}}, "no weights file"),
        ({"width": 7}, "width: 7 is declared"),
        ({"strides": [1, 2]}, "strides"),
        ({"parameters": 1}, "parameters"),
        ({"weights": None}, "has weights"),
    ],
)
def test_a_manifest_that_promises_otherwise_is_refused(tmp_path, changes, says):
    weights_file(tmp_path / "w.safetensors", monai_network("resnet").state_dict())
    with pytest.raises(ManifestError) as refused:
        load(manifest_file(tmp_path, **changes))
    assert says in str(refused.value)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(EncoderError, match="cannot be used here"):
        load("texture", device="nonsense")


# --- Python objects -----------------------------------------------------------------------------

OBJECTS = '''
import torch
from tomoprobe.benchmark.types import EncoderCard, Grid, Window

def card(**changes):
    facts = {"name": "means", "title": "Means", "grid": Grid((48, 56, 48)),
             "intensity": {"relative": Window(0, 1)}, "width": 2}
    return EncoderCard(**{**facts, **changes})

class Means:
    """An encoder that is no module, but holds one."""
    def __init__(self, scale=1.0):
        self.card = card()
        self.norm = torch.nn.BatchNorm3d(1)
        self.scale = scale
    def embed(self, x):
        x = self.norm(x) * self.scale
        return torch.stack([x.mean((1, 2, 3, 4)), x.amax((1, 2, 3, 4))], dim=1)

class Net(torch.nn.Module):
    """A module with a card; its forward is the embedding."""
    def __init__(self):
        super().__init__()
        self.card = card(name="net", strides=(2,))
        self.conv = torch.nn.Conv3d(1, 2, 2, stride=2)
        with torch.no_grad():
            self.conv.weight.fill_(0.5)
            self.conv.bias.fill_(0.0)
    def forward(self, x):
        return self.conv(x).mean((2, 3, 4))
    def maps(self, x):
        return [self.conv(x)]

ready = Means()
def no_encoder(): return 3
def no_maps():
    encoder = Means(); encoder.card = card(strides=(1,)); return encoder
def wrong_count():
    encoder = Net(); encoder.card = card(parameters=5); return encoder
'''


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    """A module in the current folder, which is not on the path; its name is the test's."""
    name = f"objects_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{name}.py").write_text(OBJECTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("factory", ["Means", "Net", "ready"])
def test_any_python_object_can_be_an_encoder(module, factory):
    encoder = load(f"{module}:{factory}")
    assert isinstance(encoder, Encoder)
    assert encoder.embed(volumes(2)).shape == (2, 2)
    assert encoder.card.parameters == {"Means": 2, "ready": 2, "Net": 18}[factory]
    assert not any(part.training for part in encoder.module.modules())
    assert load(f"{module}:{factory}").model_sha == encoder.model_sha


def test_a_python_objects_maps_are_reached_where_there_are_any(module):
    assert load(f"{module}:Net").maps(volumes(1))[0].shape == (1, 2, 24, 28, 24)
    with pytest.raises(EncoderError, match="no maps"):
        load(f"{module}:Means").maps(volumes(1))


def test_arguments_source_and_weights_are_a_python_objects_identity(module, tmp_path):
    shas = [
        load(f"{module}:Means").model_sha,
        load(f"{module}:Means", arguments={"scale": 2.0}).model_sha,
        load(f"{module}:Net").model_sha,
    ]
    file = tmp_path / f"{module}.py"
    file.write_text(OBJECTS.replace("fill_(0.5)", "fill_(0.25)"))
    sys.modules.pop(module)
    shas.append(load(f"{module}:Net").model_sha)
    assert len(set(shas)) == 4


@pytest.mark.parametrize(
    ("name", "arguments", "error", "says"),
    [
        ("no_encoder", {}, EncoderError, "no encoder"),
        ("no_maps", {}, EncoderError, "no maps"),
        ("wrong_count", {}, EncoderError, "18"),
        ("Mean", {}, UnknownNameError, "Did you mean 'Means'?"),
        ("ready", {"scale": 1.0}, EncoderError, "takes no arguments"),
        ("Means", {"size": 1.0}, EncoderError, "size"),
    ],
)
def test_a_python_object_that_is_no_encoder_is_refused(module, name, arguments, error, says):
    with pytest.raises(error) as refused:
        load(f"{module}:{name}", arguments=arguments)
    assert says in str(refused.value)


def test_an_unknown_module_is_told_from_a_broken_one(module, tmp_path):
    with pytest.raises(UnknownNameError, match="no_such_module"):
        load("no_such_module:factory")
    (tmp_path / f"{module}.py").write_text("import no_such_dependency\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        load(f"{module}:factory")


def test_a_python_object_takes_no_weights(module, tmp_path):
    with pytest.raises(ManifestError, match="loads its own weights"):
        load(f"{module}:Net", weights=tmp_path / "w.safetensors")
