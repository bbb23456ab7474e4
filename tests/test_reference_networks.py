"""VIS-MAE, BrainDINO and anatomix: what no golden shows, and the published layouts."""

import json

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinTransformerBlock, compute_mask
from safetensors.torch import save_file
from torch.nn import functional

from tomoprobe.submissions import architectures
from tomoprobe.submissions.architectures._rotary_vit import RotaryEmbedding, rotate
from tomoprobe.submissions.architectures._swin_2d import EPS, PatchMerging, SwinBlock
from tomoprobe.submissions.load import load

from .test_goldens import SHARED

TINY = {
    "anatomix": {"width": 2, "downs": 2},
    "braindino": {"patch": 4, "dim": 16, "depth": 4, "heads": 2, "layer_scale": 1.0},
    "vismae": {
        "patch": 2,
        "embed_dim": 8,
        "depths": (1, 2, 1, 2),
        "num_heads": (1, 2, 4, 8),
        "window": 4,
    },
}
SLICED = ("braindino", "vismae")


def network(name, shape=(16, 24, 20), channels=1, seed=0, **changes):
    """A tiny network, its learned vectors away from the ones and zeros they start from."""
    architecture = architectures.get(name)
    torch.manual_seed(seed)
    arguments = {"readout": architecture.READOUTS[0], **TINY[name], **changes}
    built = architecture.build(shape=shape, channels=channels, **arguments).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return built.requires_grad_(False)


def image(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- published layouts --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "keys"),
    [("anatomix", 5_899_344, 115), ("braindino", 85_641_984, 164), ("vismae", 20_411_850, 125)],
)
def test_by_default_a_network_has_the_published_size_and_keys(name, parameters, keys):
    architecture = architectures.get(name)
    with torch.device("meta"):
        built = architecture.build(shape=(64, 64, 64), channels=1, readout=architecture.READOUTS[0])
    state = built.state_dict()
    assert sum(p.numel() for p in built.parameters()) == parameters
    assert len(state) == keys
    file = SHARED / name / "layout.json"
    if file.is_file():
        found = [[k, list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in state.items()]
        assert found == json.loads(file.read_text())["keys"]


def test_the_modules_of_anatomix_are_numbered_as_published():
    built = network("anatomix", (32, 32, 32), width=1, downs=4)
    assert len(built.model) == 66
    assert built.contrasted == (27, 31, 38, 45, 52, 65)
    assert built.skips == [8, 15, 22, 29]
    assert built.ends == [36, 43, 50, 57, 64]


@pytest.mark.parametrize(
    ("name", "others"),
    [
        (
            "vismae",
            ("pos_embed", "mask_token", "layers_up.0.blocks.0.norm1.weight", "norm_up.bias"),
        ),
        ("braindino", ("dino_head.last_layer.weight", "ibot_head.mlp.0.bias")),
    ],
)
def test_of_a_published_checkpoint_only_the_encoder_is_taken(tmp_path, name, others):
    state = {k: v.contiguous() for k, v in network(name).state_dict().items()}
    given = {"shape": [16, 24, 20], **TINY[name]}
    shas = set()
    for i, extra in enumerate(((), others)):
        file = tmp_path / f"{i}.safetensors"
        full = state | {key: torch.ones(3) for key in extra}
        save_file({f"teacher.backbone.{k}": v for k, v in full.items()}, file)
        shas.add(load(name, arguments=given, weights=file).model_sha)
    assert len(shas) == 1


def test_half_precision_keeps_the_stored_periods(tmp_path):
    state = {k: v.to(torch.float16) for k, v in network("braindino").state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    given = {"shape": [16, 24, 20], **TINY["braindino"]}
    encoder = load("braindino", arguments=given, weights=tmp_path / "w.safetensors")
    periods = encoder.module.rope_embed.periods
    assert periods.dtype == torch.bfloat16
    assert torch.equal(periods, network("braindino").rope_embed.periods)


@pytest.mark.parametrize("name", sorted(TINY))
def test_every_parameter_is_trained_by_embedding_and_maps(name):
    built = network(name).requires_grad_(True)
    x = image(1, 1, 16, 24, 4 if name in SLICED else 20)
    parts = [built.embed(x), *built.maps(x)]
    torch.stack([(part * image(*part.shape)).sum() for part in parts]).sum().backward()
    idle = {k for k, p in built.named_parameters() if p.grad is None or not p.grad.any()}
    assert idle == ({"mask_token"} if name == "braindino" else set())


# --- slices -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SLICED)
def test_a_volumes_embedding_is_the_mean_of_its_slices(name):
    built = network(name)
    x = image(2, 1, 16, 24, 70)  # more slices than go through at once
    wanted = [torch.stack([built.read(v[None, ..., z])[0] for z in range(70)]).mean(0) for v in x]
    torch.testing.assert_close(built.embed(x), torch.stack(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SLICED)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_maps_of_slices_lie_in_the_volume_where_the_slices_did(name, axis):
    built = network(name, (16, 16, 16), axis=axis)
    x = image(2, 1, 16, 16, 70).movedim(4, 2 + axis)
    for found, stride in zip(built.maps(x), built.strides, strict=True):
        assert found.shape[2 + axis] == -(-70 // stride)
        for group in (0, 64 // stride, 69 // stride):
            members = range(group * stride, min((group + 1) * stride, 70))
            planes = [
                built.planes(x.select(2 + axis, i))[built.strides.index(stride)] for i in members
            ]
            torch.testing.assert_close(
                found.select(2 + axis, group), torch.stack(planes).mean(0), rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("name", SLICED)
def test_fewer_slices_than_the_stride_make_one_group(name):
    built = network(name)
    x = image(1, 1, 16, 24, 1)
    for found, plane in zip(built.maps(x), built.planes(x[..., 0]), strict=True):
        torch.testing.assert_close(found[..., 0], plane)


@pytest.mark.parametrize("name", SLICED)
def test_grey_is_three_equal_channels(name):
    grey, colour = network(name), network(name, channels=3)
    x = image(1, 1, 16, 24, 3)
    torch.testing.assert_close(grey.embed(x), colour.embed(x.expand(-1, 3, -1, -1, -1)))


# --- VIS-MAE ------------------------------------------------------------------------------------


def test_patches_at_the_end_are_padded_with_zeros():
    built = network("vismae", patch=4)
    x = image(1, 1, 30, 27)
    padded = functional.pad(x, (0, 1, 0, 2))
    shapes = []
    for ours, wanted in zip(built.planes(x), built.planes(padded), strict=True):
        torch.testing.assert_close(ours, wanted)
        shapes.append(tuple(ours.shape[2:]))
    assert shapes == [(8, 7), (4, 4), (2, 2), (1, 1)]


def swin_block(shift):
    torch.manual_seed(0)
    block = SwinBlock(8, 2, 4, shift)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return block.requires_grad_(False)


@pytest.mark.parametrize("shift", [0, 2])
def test_windows_shift_and_are_masked_and_padded_as_in_monai(shift):
    ours = swin_block(shift)
    theirs = SwinTransformerBlock(8, 2, (4, 4), (shift, shift))
    theirs.norm1.eps = theirs.norm2.eps = EPS
    state = {k.replace("mlp.fc", "mlp.linear"): v for k, v in ours.state_dict().items()}
    theirs.load_state_dict(state, strict=True)
    x = image(2, 10, 7, 8)  # padded to 12 x 8
    mask = compute_mask([12, 8], (4, 4), (shift, shift), "cpu") if shift else None
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x, mask), rtol=1e-4, atol=1e-4)


def test_a_map_of_one_window_is_still_shifted_and_masked():
    block = swin_block(shift=2)
    x = image(1, 4, 4, 8)
    moved = x.clone()
    moved[0, 0, 0, 0] += 1
    changed = (block(moved) - block(x))[0].abs().amax(2) > 1e-5
    wanted = torch.zeros(4, 4, dtype=torch.bool)
    wanted[:2, :2] = True  # the part of the window that the roll did not bring to it
    assert torch.equal(changed, wanted)


def test_neighbours_are_merged_column_by_column():
    merging = PatchMerging(1).requires_grad_(False)
    merging.reduction.weight[0] = torch.arange(4)  # the answer rises with the place of the one
    found = []
    for row, column in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x = torch.zeros(1, 2, 2, 1)
        x[0, row, column] = 1
        found.append(float(merging(x)[0, 0, 0, 0]))
    assert found == sorted(set(found))


def test_the_readouts_of_vismae_are_made_of_its_stages():
    x = image(1, 1, 16, 24)
    planes = network("vismae").planes(x)
    means = [plane.mean((2, 3)) for plane in planes]
    torch.testing.assert_close(network("vismae", readout="pooled").read(x), means[-1])
    torch.testing.assert_close(network("vismae", readout="stages").read(x), torch.cat(means, 1))
    last = planes[-1]
    centred = last - last.mean(1, keepdim=True)
    normed = centred / (last.var(1, correction=0, keepdim=True) + EPS).sqrt()
    torch.testing.assert_close(
        network("vismae", readout="pooled_ln").read(x), normed.mean((2, 3)), rtol=1e-4, atol=1e-5
    )


# --- BrainDINO ----------------------------------------------------------------------------------


def test_the_angles_of_a_hand_computed_grid():
    rope = RotaryEmbedding(8, torch.float32)  # periods 1 and 10
    sine, cosine = rope(1, 2)  # one row at 0; columns at -1/2 and 1/2
    angles = torch.tensor([[0, 0, -torch.pi, -0.1 * torch.pi], [0, 0, torch.pi, 0.1 * torch.pi]])
    torch.testing.assert_close(sine, angles.tile(2).sin(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cosine, angles.tile(2).cos(), rtol=1e-5, atol=1e-6)


def test_channels_turn_with_those_half_a_head_away_and_only_those_of_patches():
    x = torch.zeros(1, 1, 3, 4)  # one token of another kind, two patches
    x[..., 0] = 1
    angles = torch.tensor([[0.1, 0.2, 0.1, 0.2], [0.3, 0.4, 0.3, 0.4]])
    wanted = torch.zeros(3, 4)
    wanted[0, 0] = 1
    wanted[1:, 0], wanted[1:, 2] = torch.tensor([0.1, 0.3]).cos(), torch.tensor([0.1, 0.3]).sin()
    torch.testing.assert_close(rotate(x, (angles.sin(), angles.cos()))[0, 0], wanted)


def test_the_stored_periods_are_the_published_ones():
    # Of a head of 64 channels, as in the layout of the release.
    wanted = [1, 1.3359375, 1.78125, 2.375, 3.15625, 4.21875, 5.625, 7.5]
    wanted += [10, 13.3125, 17.75, 23.75, 31.625, 42.25, 56.25, 75]
    assert RotaryEmbedding(64, torch.float32).periods.tolist() == wanted


def test_the_precision_of_the_rotation_is_another_model_with_near_features():
    given = {"shape": [16, 24, 20], **TINY["braindino"], "seed": 0}
    exact, rounded = (load("braindino", arguments={**given, "rope": r}) for r in ("fp32", "bf16"))
    assert exact.model_sha != rounded.model_sha
    x = image(1, 1, 16, 24, 2)
    off = (exact.maps(x)[0] - rounded.maps(x)[0]).abs().max()
    assert 0 < off < 0.1


def test_tokens_know_where_they_are_by_the_rotation_alone():
    built = network("braindino", readout="mean")
    x = image(1, 1, 16, 24)
    shuffled = x.roll((4, 8), (2, 3))  # by whole patches
    assert (built.read(shuffled) - built.read(x)).abs().max() > 1e-3
    for block in built.blocks:
        block.attn.qkv.weight[:32] = 0  # neither queries nor keys: nothing is left to turn
    torch.testing.assert_close(built.read(shuffled), built.read(x), rtol=1e-4, atol=1e-5)


def test_dense_maps_are_the_last_blocks_of_the_four_quarters():
    assert network("braindino", depth=12).dense == [2, 5, 8, 11]
    assert network("braindino", depth=2).dense == [0, 1]
    built = network("braindino", depth=8)
    x = image(1, 1, 16, 24)
    tokens = built.run(x, {1})[1]
    first = built.norm(tokens)[0, 5 + 1 * 6 + 2]  # after CLS and four storage tokens: row 1, col. 2
    torch.testing.assert_close(built.planes(x)[0][0, :16, 1, 2], first)


def test_a_masked_patch_is_not_seen():
    built = network("braindino")
    built.mask_token.fill_(0.5)
    masks = torch.zeros(1, 4, 6, dtype=torch.bool)
    x = image(1, 1, 16, 24)
    moved = x.clone()
    moved[..., 4:8, 8:12] += 1
    last = len(built.blocks) - 1
    nothing = built.run(x, {last}, masks)[last]
    torch.testing.assert_close(nothing, built.run(x, {last})[last])
    masks[0, 1, 2] = True
    hidden = built.run(x, {last}, masks)[last]
    assert (hidden - nothing).abs().max() > 1e-3
    torch.testing.assert_close(built.run(moved, {last}, masks)[last], hidden)


def test_only_queries_and_values_have_a_bias_where_there_is_one():
    built = network("braindino", qkv_bias=True)
    x = image(1, 1, 16, 24)
    before = built.read(x)
    built.blocks[0].attn.qkv.bias[16:32] += 1.0  # of the keys
    assert torch.equal(built.read(x), before)
    for part in (slice(0, 16), slice(32, 48)):
        built.blocks[0].attn.qkv.bias[part] += 1.0
        assert (built.read(x) - before).abs().max() > 1e-3
        built.blocks[0].attn.qkv.bias[part] -= 1.0


# --- anatomix -----------------------------------------------------------------------------------


def test_anatomix_with_one_down_is_what_a_hand_written_pass_gives():
    built = network("anatomix", (4, 6, 8), downs=1, width=4)
    state = built.state_dict()  # shares its memory with the network
    for key, value in state.items():
        if "running_mean" in key:
            value.normal_(std=0.2)
        elif "running_var" in key:
            value.uniform_(0.5, 1.5)

    def convolve(x, number):
        return functional.conv3d(
            functional.pad(x, (1,) * 6, mode="reflect"), state[f"model.{number}.weight"]
        )

    def block(x, number):
        names = ("running_mean", "running_var", "weight", "bias")
        mean, var, weight, bias = (state[f"model.{number + 1}.{name}"] for name in names)
        x = functional.batch_norm(convolve(x, number), mean, var, weight, bias, eps=1e-5)
        return x.relu()

    x = image(2, 1, 4, 6, 8)
    skip = block(block(block(x, 0), 3), 6)
    deep = block(block(functional.max_pool3d(skip, 2), 10), 13)
    up = deep
    for axis in (2, 3, 4):
        up = up.repeat_interleave(2, axis)
    entry = torch.cat([skip, up], 1)
    fine = block(block(entry, 17), 20)
    output = convolve(fine, 23)
    assert all(part.std((2, 3, 4)).max() > 0.1 for part in (skip, deep, fine, output))  # alive
    found = built.maps(x)
    torch.testing.assert_close(found[0], output, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], deep, rtol=1e-4, atol=1e-5)
    vectors = {
        "relu": torch.cat([deep.mean((2, 3, 4)), fine.mean((2, 3, 4))], 1),
        "conv": torch.cat(
            [convolve(functional.max_pool3d(skip, 2), 10).mean((2, 3, 4)), output.mean((2, 3, 4))],
            1,
        ),
        "output": output.mean((2, 3, 4)),
    }
    for readout, wanted in vectors.items():
        built.readout = readout
        torch.testing.assert_close(built.embed(x), wanted, rtol=1e-4, atol=1e-5)


def test_a_random_anatomix_keeps_its_signal_to_the_end():
    built = architectures.get("anatomix").build(shape=(32, 32, 32), channels=1, readout="relu")
    with torch.no_grad():
        scales = [float(m.std()) for m in built.eval().maps(image(1, 1, 32, 32, 32))]
    assert min(scales) > 0.05
    assert max(scales) < 20
