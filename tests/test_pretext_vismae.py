"""VIS-MAE's pretraining: what is masked, what counts, what is published."""

import dataclasses

import numpy as np
import pytest
import torch

from tomoprobe.submissions.architectures import vismae as network
from tomoprobe.submissions.architectures._swin_2d import SwinBlock
from tomoprobe.submissions.baselines import vismae
from tomoprobe.submissions.baselines._swin_decoder import PatchExpanding
from tomoprobe.submissions.baselines.vismae import PRETEXT, FlippedImages

TINY = PRETEXT.presets["tiny"]
SMALL = dataclasses.replace(TINY, architecture={"embed_dim": 12, "window": 4})


def objective(preset=SMALL):
    torch.manual_seed(0)
    return PRETEXT.objective(preset)


def images(count=2):
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8)


def test_three_in_four_whole_windows_are_masked():
    torch.manual_seed(0)
    mask = vismae.window_mask(50, 56, 56)
    windows = mask.reshape(50, 14, 4, 14, 4).transpose(2, 3).flatten(3).float().mean(3)
    assert set(windows.unique().tolist()) == {0.0, 1.0}
    assert windows.sum((1, 2)).tolist() == [147.0] * 50  # 196 windows, 49 kept
    # Every window is as likely to be masked as any other.
    assert windows.mean(0).min() > 0.5
    assert windows.mean(0).max() < 0.98


def test_patches_hold_rows_columns_and_channels_in_this_order():
    picture = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    patches = vismae.patchify(picture, 2)
    assert patches.shape == (2, 2, 3, 12)
    wanted = [picture[1, c, 2 + row, 4 + column] for row in (0, 1) for column in (0, 1)
              for c in range(3)]  # fmt: skip
    assert patches[1, 1, 2].tolist() == wanted
    assert torch.equal(vismae.unpatchify(patches, 2), picture)


def test_the_error_is_the_mean_over_masked_patches_alone():
    predicted = torch.zeros(1, 2, 2, 3)
    target = torch.tensor([[[[1.0, 2, 3], [9, 9, 9]], [[0, 0, 6], [9, 9, 9]]]])
    mask = torch.tensor([[[True, False], [True, False]]])
    wanted = ((1 + 4 + 9) / 3 + 36 / 3) / 2
    assert float(vismae.masked_error(predicted, target, mask)) == pytest.approx(wanted)
    target[:, :, 1] = -5.0
    assert float(vismae.masked_error(predicted, target, mask)) == pytest.approx(wanted)


def test_masked_pixels_are_replaced_before_the_first_block():
    trained, picture = objective().eval(), images()
    embed, mask = trained.network.patch_embed, vismae.window_mask(2, 16, 16)
    other = picture.clone()
    hidden = mask.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].expand_as(picture)
    other[hidden] = 255 - other[hidden]
    with torch.no_grad():
        first, second = (
            trained.reconstruct(embed(x.float() / 255), mask)[0] for x in (picture, other)
        )
        shown = trained.reconstruct(embed(picture.float() / 255), ~mask)[0]
    assert first.shape == (2, 16, 16, 48)
    assert torch.equal(first, second)
    assert not torch.allclose(first, shown)


def test_expanding_lays_four_neighbours_out_row_by_row():
    expanding = PatchExpanding(4)
    expanding.norm = torch.nn.Identity()
    with torch.no_grad():
        expanding.expand.weight.copy_(torch.eye(8)[:, :4] + torch.eye(8)[:, 4:])
        found = expanding(torch.tensor([[[[1.0, 2, 3, 4]]]]))
    assert found.shape == (1, 2, 2, 2)
    assert found[0].tolist() == [[[1, 2], [3, 4]], [[1, 2], [3, 4]]]


def test_the_whole_model_has_the_keys_of_the_published_layout():
    full = PRETEXT.objective(PRETEXT.presets["full"])
    state = full.whole_state()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    # 26.94 M with the position embedding that no token meets, 3136 x 96.
    assert sum(p.numel() for p in full.parameters()) == pytest.approx(26.94e6 - 3136 * 96, abs=1e4)
    assert shapes["mask_token"] == (1, 1, 96)
    assert shapes["first_patch_expanding.expand.weight"] == (1536, 768)
    assert shapes["layers_up.0.blocks.1.attn.relative_position_bias_table"] == (169, 12)
    assert shapes["layers_up.0.upsample.expand.weight"] == (768, 384)
    assert shapes["layers_up.1.upsample.norm.bias"] == (96,)
    assert shapes["layers_up.2.blocks.0.mlp.fc1.weight"] == (384, 96)
    assert not any(key.startswith("layers_up.2.upsample") for key in shapes)
    assert shapes["norm_up.weight"] == (96,)
    assert shapes["decoder_pred.weight"] == (48, 96)


def test_a_whole_checkpoint_goes_on_where_it_was():
    first, picture = objective(), images()
    torch.manual_seed(1)
    second = PRETEXT.objective(SMALL)
    state = {**first.whole_state(), "pos_embed": torch.zeros(1, 256, 12)}
    second.load_whole_state(state)
    losses = []
    for one in (first, second):
        torch.manual_seed(2)
        losses.append(one.eval().loss(picture, 0.0)[0].item())
    assert losses[0] == losses[1]
    with pytest.raises(RuntimeError, match="decoder_pred"):
        second.load_whole_state({k: v for k, v in state.items() if k != "decoder_pred.bias"})
    with pytest.raises(RuntimeError, match="stray"):
        second.load_whole_state({**state, "stray": torch.zeros(1)})


def test_what_is_published_is_the_encoder():
    built = network.build(
        shape=SMALL.shape, channels=1, readout=SMALL.readout, **SMALL.architecture
    )
    built.load_state_dict(objective().encoder().state_dict())


def test_every_parameter_has_a_gradient_and_a_step_lowers_the_loss():
    trained, picture = objective().train(), images(8)
    optimizer = torch.optim.AdamW(trained.parameters(), 2e-3)
    losses, measures = [], {}
    for _ in range(12):
        torch.manual_seed(3)  # the same mask
        optimizer.zero_grad()
        loss, measures = trained.loss(picture, 0.0)
        loss.backward()
        assert all(p.grad is not None for p in trained.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert float(measures["embedding_std"]) > 0


def test_dropped_branches_leave_the_sample_as_it_was_and_others_larger():
    block = SwinBlock(8, 2, 4, 0).train()
    x = torch.randn(64, 4, 4, 8)
    with torch.no_grad():
        whole = block.attn(torch.randn(64, 1, 16, 8), None)
    vismae.drop_path(block, 0.25)
    torch.manual_seed(0)
    with torch.no_grad():
        same = (block(x) == x).flatten(1).all(1)
        block.attn.proj.weight.zero_()
        block.attn.proj.bias.fill_(3.0)
        values = block.attn(torch.zeros(64, 1, 16, 8), None).amax((1, 2, 3))
        block.eval()
        plain = block.attn(torch.zeros(64, 1, 16, 8), None)
    assert whole.shape == (64, 1, 16, 8)
    assert 0 < same.sum() < 20  # both branches: one sample in 16
    assert set(values.tolist()) == {0.0, 4.0}
    assert plain.eq(3).all()


def test_the_full_preset_drops_more_the_deeper_and_the_tiny_nothing():
    def hooks(preset):
        found = PRETEXT.objective(preset)
        return [
            len(block.mlp._forward_hooks)
            for stage in found.network.layers
            for block in stage.blocks
        ]

    assert hooks(SMALL) == [0] * 8
    assert (
        hooks(dataclasses.replace(SMALL, options={"size": 64, "drop_path": 0.1})) == [0] + [1] * 7
    )


class OneImage:
    """Dark at the left."""

    classes = ()

    def draw(self, rng):
        image = np.zeros((30, 20, 3), np.uint8)
        image[:, 10:] = 200
        return image, -1

    def describe(self):
        return "one image"


def test_samples_are_resized_and_half_of_them_flipped():
    source = FlippedImages(OneImage(), 16)
    made = [source.sample(np.random.default_rng(seed)) for seed in range(60)]
    assert all(one.shape == (3, 16, 16) and one.dtype == torch.uint8 for one in made)
    assert 15 < sum(bool(one[0, 0, 0] > one[0, 0, -1]) for one in made) < 45


def test_the_card_normalises_as_training_does():
    for table in PRETEXT.card(TINY)["intensity"].values():
        assert table["out_low"] == pytest.approx((0 - 0.223) / 0.202)
        assert table["out_high"] == pytest.approx((1 - 0.223) / 0.202)


def test_the_built_in_source_is_slices_of_synthetic_volumes_and_drawings():
    source = PRETEXT.source(TINY, ())
    described = source.describe()
    assert "512 synthetic label maps" in described
    assert "drawn images" in described
    grey = [
        bool((one[0] == one[1]).all())
        for one in (source.sample(np.random.default_rng(seed)) for seed in range(20))
    ]
    assert True in grey
    assert False in grey
