"""A 2D network of one's own answers for volumes."""

import torch

from tomoprobe.benchmark.types import EncoderCard, Grid, MinMax
from tomoprobe.submissions.slice_adapter import SliceEncoder, restack

CARD = EncoderCard(
    name="mine",
    title="My 2D network",
    grid=Grid((6, 8, 70)),
    intensity={"scanner": MinMax()},
    width=3,
)


def test_the_embedding_is_the_mean_over_slices() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    x = torch.randn(2, 1, 6, 8, 70)  # more slices than go through at once
    with torch.no_grad():
        found = SliceEncoder(network, CARD, axis=2).embed(x)
        wanted = torch.stack([network(v.permute(3, 0, 1, 2)).mean(0) for v in x])
    torch.testing.assert_close(found, wanted)


def test_slices_fewer_than_the_stride_are_averaged_into_one() -> None:
    maps = torch.arange(6.0).reshape(6, 1, 1, 1)  # two volumes of three slices
    found = restack(maps, batch=2, axis=0, stride=8)
    assert found.shape == (2, 1, 1, 1, 1)
    assert found.flatten().tolist() == [1.0, 4.0]
